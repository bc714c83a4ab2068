//! Devices that the configuration declares: where they are in their life, who they say they are, what they can do.
//!
//! A declared device is active and approved by `configuration`. What its protocol reveals of its identity is pinned when it
//! is first seen; a different one later is told once, with an alarm, until a person looks.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::contract::{timestamp, v1};
use crate::model::{Access, Device, DeviceId, Stamp, Tier};

/// What a device says of itself, as its driver found it. Empty where it says nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeviceIdentity {
    /// Manufacturer.
    pub vendor: String,
    /// Model or product code.
    pub model: String,
    /// Serial number.
    pub serial: String,
    /// Firmware or hardware revision.
    pub firmware: String,
    /// Whatever else it told, by name.
    pub other: BTreeMap<String, String>,
    /// One text that stays the same as long as the hardware does; empty when the protocol reveals nothing.
    pub fingerprint: String,
}

/// What is kept of a device across restarts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// The identity that was approved; empty when none was seen yet.
    pub fingerprint: String,
    /// When the device became active, milliseconds since 1970.
    pub since_ms: i64,
}

impl Pin {
    /// The pin as octets, for the keyed state of the store.
    pub fn encode(&self) -> Bytes {
        serde_json::to_vec(self).expect("a pin has string keys, and writing to memory does not fail").into()
    }

    /// Reads [`Pin::encode`]; `None` for anything else, which is pinned again then.
    pub fn decode(octets: &[u8]) -> Option<Self> {
        serde_json::from_slice(octets).ok()
    }
}

/// What is to be done after a change.
#[derive(Debug, Clone, PartialEq)]
pub enum OnboardingOutput {
    /// Keep this across restarts, before anything below is published.
    Keep(DeviceId, Pin),
    /// Forget what was kept, and clear the retained topics of the device.
    Forget(DeviceId),
    /// Publish on `devices/{d}/onboarding`.
    Onboarding(v1::Onboarding),
    /// Publish on `devices/{d}/capabilities`.
    Capabilities(v1::Capabilities),
    /// Store and publish on `devices/{d}/events`.
    Event(v1::Event),
}

#[derive(Debug)]
struct Known {
    device: Arc<Device>,
    pin: Pin,
    identity: DeviceIdentity,
    /// The other fingerprint that was last told.
    alarmed: Option<String>,
}

/// Keeps the life of declared devices. No I/O.
#[derive(Debug, Default)]
pub struct Onboarding {
    devices: BTreeMap<DeviceId, Known>,
}

impl Onboarding {
    /// Nothing declared yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the declared devices, at start and after each reload; `kept` finds what was kept of one across restarts.
    pub fn declare(
        &mut self,
        devices: &[Arc<Device>],
        kept: impl Fn(&DeviceId) -> Option<Pin>,
        now: Stamp,
    ) -> Vec<OnboardingOutput> {
        let mut outputs = Vec::new();
        let gone: Vec<_> = self.devices.keys().filter(|id| !devices.iter().any(|d| d.id == **id)).cloned().collect();
        for id in gone {
            self.devices.remove(&id);
            outputs.push(OnboardingOutput::Forget(id));
        }
        for device in devices {
            match self.devices.get_mut(&device.id) {
                Some(known) if known.device == *device => {}
                Some(known) => {
                    known.device = device.clone();
                    outputs.extend(known.shown(now));
                }
                None => outputs.extend(self.add(device, kept(&device.id), now)),
            }
        }
        outputs
    }

    fn add(&mut self, device: &Arc<Device>, kept: Option<Pin>, now: Stamp) -> Vec<OnboardingOutput> {
        let is_new = kept.is_none();
        let pin = kept.unwrap_or(Pin { fingerprint: String::new(), since_ms: now.wall_ms });
        let known = Known { device: device.clone(), pin, identity: DeviceIdentity::default(), alarmed: None };
        let mut outputs = Vec::new();
        if is_new {
            outputs.push(OnboardingOutput::Keep(device.id.clone(), known.pin.clone()));
        }
        outputs.extend(known.shown(now));
        self.devices.insert(device.id.clone(), known);
        outputs
    }

    /// Takes what a device says of itself. Unknown devices are of an older configuration and are ignored.
    pub fn identified(&mut self, device: &DeviceId, identity: DeviceIdentity, now: Stamp) -> Vec<OnboardingOutput> {
        let Some(known) = self.devices.get_mut(device) else { return Vec::new() };
        let mut outputs = Vec::new();
        let seen = identity.fingerprint.clone();
        let is_same = known.identity == identity;
        known.identity = identity;
        let changed = if seen.is_empty() || seen == known.pin.fingerprint {
            known.alarmed.take().is_some()
        } else if known.pin.fingerprint.is_empty() {
            known.pin.fingerprint = seen;
            outputs.push(OnboardingOutput::Keep(device.clone(), known.pin.clone()));
            true
        } else if known.alarmed.as_deref() != Some(&seen) {
            outputs.push(OnboardingOutput::Event(changed_event(known, &seen, now)));
            known.alarmed = Some(seen);
            true
        } else {
            false
        };
        if changed {
            outputs.push(OnboardingOutput::Onboarding(known.onboarding()));
        }
        if !is_same {
            outputs.push(OnboardingOutput::Capabilities(capabilities(&known.device, &known.identity, now)));
        }
        outputs
    }

    /// Accepts the identity that a device shows now: a person has looked and the hardware was replaced.
    pub fn accept(&mut self, device: &DeviceId) -> Vec<OnboardingOutput> {
        let Some(known) = self.devices.get_mut(device) else { return Vec::new() };
        let Some(seen) = known.alarmed.take() else { return Vec::new() };
        known.pin.fingerprint = seen;
        vec![
            OnboardingOutput::Keep(device.clone(), known.pin.clone()),
            OnboardingOutput::Onboarding(known.onboarding()),
        ]
    }

    /// Whether a device shows another identity than the one that was approved.
    pub fn has_changed(&self, device: &DeviceId) -> bool {
        self.devices.get(device).is_some_and(|known| known.alarmed.is_some())
    }
}

impl Known {
    fn shown(&self, now: Stamp) -> [OnboardingOutput; 2] {
        [
            OnboardingOutput::Onboarding(self.onboarding()),
            OnboardingOutput::Capabilities(capabilities(&self.device, &self.identity, now)),
        ]
    }

    fn onboarding(&self) -> v1::Onboarding {
        let reason = match &self.alarmed {
            Some(seen) => format!("identity-changed: the device shows {seen}"),
            None => String::new(),
        };
        v1::Onboarding {
            device: self.device.id.to_string(),
            state: "active".to_owned(),
            since: Some(timestamp(self.pin.since_ms)),
            protocol: self.device.protocol.to_owned(),
            address: self.device.address.clone(),
            tier: match self.device.tier {
                Tier::One => 1,
                Tier::Two => 2,
            },
            fingerprint: self.pin.fingerprint.clone(),
            approved_by: "configuration".to_owned(),
            approved_at: Some(timestamp(self.pin.since_ms)),
            reason,
            source: "declared".to_owned(),
            ..v1::Onboarding::default()
        }
    }
}

fn changed_event(known: &Known, seen: &str, now: Stamp) -> v1::Event {
    let details = [("approved", known.pin.fingerprint.as_str()), ("seen", seen)];
    v1::Event {
        device: known.device.id.to_string(),
        time: Some(timestamp(now.wall_ms)),
        severity: v1::event::Severity::Alarm.into(),
        kind: "identity-changed".to_owned(),
        message: format!(
            "{} at {} is not the device that was approved; check the wiring and the address, or accept the new device if it was replaced",
            known.device.id, known.device.address
        ),
        details: details.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
        clock: v1::ClockTrust::from(now.trust).into(),
        ..v1::Event::default()
    }
}

/// What a device can do: what it says of itself, and the points that its configuration names.
pub fn capabilities(device: &Device, identity: &DeviceIdentity, now: Stamp) -> v1::Capabilities {
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
    use crate::model::{DataType, Limits, Point, PointId};
    use crate::platform::clock::{Clock, ManualClock};

    fn device(address: &str) -> Arc<Device> {
        let point = |id: &str, access, limits| Point {
            id: PointId::new(id).unwrap(),
            description: String::new(),
            unit: "m".into(),
            data_type: DataType::I16,
            access,
            limits,
        };
        Arc::new(Device {
            id: DeviceId::new("pump").unwrap(),
            description: String::new(),
            protocol: "modbus-tcp",
            address: address.into(),
            tier: Tier::One,
            points: Arc::new([
                point("a", Access::Read, None),
                point("b", Access::ReadWrite, Some(Limits { min: 0.0, max: 5.0 })),
            ]),
        })
    }

    fn identity(fingerprint: &str) -> DeviceIdentity {
        DeviceIdentity { vendor: "ACME".into(), fingerprint: fingerprint.into(), ..DeviceIdentity::default() }
    }

    fn kinds(outputs: &[OnboardingOutput]) -> Vec<&'static str> {
        let kind = |o: &OnboardingOutput| match o {
            OnboardingOutput::Keep(..) => "keep",
            OnboardingOutput::Forget(_) => "forget",
            OnboardingOutput::Onboarding(_) => "onboarding",
            OnboardingOutput::Capabilities(_) => "capabilities",
            OnboardingOutput::Event(_) => "event",
        };
        outputs.iter().map(kind).collect()
    }

    #[test]
    fn a_declared_device_is_active_and_its_identity_is_pinned() {
        let clock = ManualClock::at(1_000);
        let mut desk = Onboarding::new();
        let id = DeviceId::new("pump").unwrap();
        let outputs = desk.declare(&[device("tcp://a")], |_| None, clock.now());
        assert_eq!(kinds(&outputs), ["keep", "onboarding", "capabilities"]);
        let OnboardingOutput::Onboarding(onboarding) = &outputs[1] else { panic!() };
        assert_eq!(
            (onboarding.state.as_str(), onboarding.approved_by.as_str(), onboarding.tier),
            ("active", "configuration", 1)
        );
        let OnboardingOutput::Capabilities(capabilities) = &outputs[2] else { panic!() };
        assert_eq!(capabilities.functions, ["read", "write"]);
        assert_eq!((capabilities.points[1].writable, capabilities.points[1].max), (true, Some(5.0)));

        let outputs = desk.identified(&id, identity("f1"), clock.now());
        assert_eq!(kinds(&outputs), ["keep", "onboarding", "capabilities"]);
        assert_eq!(kinds(&desk.identified(&id, identity("f1"), clock.now())), Vec::<&str>::new());
        assert_eq!(kinds(&desk.declare(&[device("tcp://a")], |_| None, clock.now())), Vec::<&str>::new());
        assert_eq!(kinds(&desk.declare(&[device("tcp://b")], |_| None, clock.now())), ["onboarding", "capabilities"]);
    }

    #[test]
    fn another_identity_is_told_once_also_after_a_restart() {
        let clock = ManualClock::at(1_000);
        let id = DeviceId::new("pump").unwrap();
        let pin = Pin { fingerprint: "f1".into(), since_ms: 5 };
        assert_eq!(Pin::decode(&pin.encode()), Some(pin.clone()));
        assert_eq!(Pin::decode(b"x"), None);
        let mut desk = Onboarding::new();
        assert_eq!(
            kinds(&desk.declare(&[device("a")], |_| Some(pin.clone()), clock.now())),
            ["onboarding", "capabilities"]
        );
        let outputs = desk.identified(&id, identity("f2"), clock.now());
        assert_eq!(kinds(&outputs), ["event", "onboarding", "capabilities"]);
        assert!(desk.has_changed(&id));
        assert_eq!(kinds(&desk.identified(&id, identity("f2"), clock.now())), Vec::<&str>::new());
        assert_eq!(
            kinds(&desk.identified(&id, identity("f1"), clock.now())),
            ["onboarding", "capabilities"],
            "the first device is back"
        );
        assert!(!desk.has_changed(&id));
        desk.identified(&id, identity("f3"), clock.now());
        assert_eq!(kinds(&desk.accept(&id)), ["keep", "onboarding"]);
        assert!(!desk.has_changed(&id));
    }

    #[test]
    fn devices_that_are_gone_are_forgotten() {
        let clock = ManualClock::at(1_000);
        let mut desk = Onboarding::new();
        desk.declare(&[device("a")], |_| None, clock.now());
        assert_eq!(kinds(&desk.declare(&[], |_| None, clock.now())), ["forget"]);
        assert!(desk.identified(&DeviceId::new("pump").unwrap(), identity("x"), clock.now()).is_empty());
    }
}
