//! What the files declare, as management takes it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value as Json, json};

use crate::config::{Device, Loaded, format_duration};
use crate::management::desired::{PointProfile, Profile};
use crate::management::lifecycle::Declaration;
use crate::model::Tier;
use crate::southbound::DriverConfig;

/// Every device that the files declare and do not switch off.
pub fn declarations(loaded: &Loaded) -> Vec<Declaration> {
    loaded.devices.iter().map(declaration).collect()
}

/// Types for devices that no file declares.
pub fn types(loaded: &Loaded) -> BTreeMap<String, Arc<Profile>> {
    loaded.types.iter().map(|(name, device)| (name.clone(), Arc::new(profile(device)))).collect()
}

fn declaration(device: &Device) -> Declaration {
    let DriverConfig::Modbus(modbus) = &device.driver;
    Declaration {
        device: device.model.id.clone(),
        protocol: device.model.protocol.to_owned(),
        address: device.model.address.clone(),
        tier: if device.model.tier == Tier::Two { 2 } else { 1 },
        fingerprint: device.management.fingerprint.clone(),
        identifies: modbus.identify,
        delegated: device.management.delegated.clone(),
        profile: Arc::new(profile(device)),
    }
}

/// The frame that a desired document must keep.
pub fn profile(device: &Device) -> Profile {
    let every = |index: usize| device.groups.iter().find(|g| g.points.contains(&(index as u32))).map(|g| g.every);
    let points = device.model.points.iter().enumerate().map(|(index, point)| {
        let every = every(index);
        let point_profile = PointProfile {
            data_type: point.data_type,
            max_access: point.access,
            limits: point.limits,
            polled: every.is_some(),
            every_ms: every.map_or(0, |every| every.as_millis() as u64),
        };
        (point.id.as_str().to_owned(), point_profile)
    });
    Profile {
        base: base(device),
        points: points.collect(),
        groups: device.groups.iter().filter_map(|g| g.name.clone()).collect(),
        clock: device.management.clock.clone(),
        time: device.management.time,
        methods: device.management.methods.keys().cloned().collect(),
        firmware: takes_firmware(device),
    }
}

/// Whether the gateway may update it: tier 1 devices keep their own management but for what they delegate.
pub fn takes_firmware(device: &Device) -> bool {
    let delegated = device.model.tier == Tier::Two || device.management.delegated.contains("firmware");
    delegated && device.management.firmware.is_some()
}

/// What `effective` shows as the files' own.
fn base(device: &Device) -> Map<String, Json> {
    let mut base = Map::new();
    let named =
        |g: &crate::config::checked::Group| Some((g.name.clone()?, json!({ "rate": format_duration(g.every) })));
    let groups: BTreeMap<String, Json> = device.groups.iter().filter_map(named).collect();
    let rates: BTreeSet<Duration> = device.groups.iter().filter(|g| g.name.is_none()).map(|g| g.every).collect();
    if let (Some(rate), 1) = (rates.first(), rates.len()) {
        base.insert("rate".to_owned(), format_duration(*rate).into());
    }
    if !groups.is_empty() {
        base.insert("groups".to_owned(), json!(groups));
    }
    base
}
