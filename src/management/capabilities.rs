//! What a device says of itself and what can be asked of it, for `devices/{d}/capabilities`. What a user wants of it is
//! another matter and stands elsewhere ([`super::desired`]).

use super::desired::Profile;
use super::lifecycle::Claim;
use crate::contract::{timestamp, v1};
use crate::model::{Access, Device, Stamp};

/// What a device can do: what it says of itself, and the points that its configuration names.
pub fn capabilities(device: &Device, profile: &Profile, identity: &Claim, now: Stamp) -> v1::Capabilities {
    let is_writable = |access| access != Access::Read;
    let points = device.points.iter().map(|point| v1::PointCapability {
        name: point.id.to_string(),
        description: point.description.clone(),
        unit: point.unit.clone(),
        r#type: point.data_type.as_str().to_owned(),
        writable: is_writable(point.access),
        min: point.limits.map(|l| l.min),
        max: point.limits.map(|l| l.max),
    });
    let mut functions = Vec::new();
    if device.points.iter().any(|p| p.access != Access::Write) {
        functions.push("read".to_owned());
    }
    if device.points.iter().any(|p| is_writable(p.access)) {
        functions.push("write".to_owned());
    }
    if !profile.methods.is_empty() {
        functions.push("method".to_owned());
    }
    if profile.clock.is_some() {
        functions.push("time".to_owned());
    }
    if profile.firmware {
        functions.push("firmware".to_owned());
    }
    v1::Capabilities {
        device: device.id.to_string(),
        vendor: identity.vendor.clone(),
        model: identity.model.clone(),
        serial: identity.serial.clone(),
        firmware: identity.firmware.clone(),
        identification: identity.other.clone().into_iter().collect(),
        points: points.collect(),
        functions,
        time: Some(timestamp(now.wall_ms)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{DataType, DeviceId, Limits, Point, PointId, Tier};
    use crate::platform::clock::{Clock, ManualClock};

    #[test]
    fn what_the_device_says_and_what_its_files_offer() {
        let point = |id: &str, access, limits| Point {
            id: PointId::new(id).unwrap(),
            description: String::new(),
            unit: "m".into(),
            data_type: DataType::I16,
            access,
            limits,
        };
        let device = Device {
            id: DeviceId::new("pump").unwrap(),
            description: String::new(),
            protocol: "modbus-tcp",
            address: "tcp://a".into(),
            tier: Tier::One,
            points: [
                point("a", Access::Read, None),
                point("b", Access::ReadWrite, Some(Limits { min: 0.0, max: 5.0 })),
            ]
            .into(),
        };
        let mut profile = Profile::default();
        let claim = Claim { vendor: "ACME".into(), ..Claim::default() };
        let now = ManualClock::at(1_000).now();
        let shown = capabilities(&device, &profile, &claim, now);
        assert_eq!((shown.vendor.as_str(), shown.functions), ("ACME", vec!["read".to_owned(), "write".to_owned()]));
        assert_eq!((shown.points[1].writable, shown.points[1].max), (true, Some(5.0)));
        profile.methods.insert("start".to_owned());
        assert_eq!(capabilities(&device, &profile, &claim, now).functions, ["read", "write", "method"]);
    }
}
