//! One device: how it is reached, what is read from it and how often, and what happens to each value.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::management::clock::ClockForm;
use crate::management::desired::{Interlock, TimeSettings};
use crate::management::firmware::DeviceForm;
use crate::management::permit::MethodWrite;
use crate::model;
use crate::pipeline::{BatchLimits, PointRule};
use crate::southbound::{DeviceConfig, DriverConfig, RateGroup};

/// A device that passed every check.
#[derive(Debug, Clone, PartialEq)]
pub struct Device {
    /// What everyone but its driver knows of it.
    pub model: Arc<model::Device>,
    /// The file that declares it.
    pub file: PathBuf,
    /// Points that are read together, by rate; write-only points are in none.
    pub groups: Vec<Group>,
    /// What happens to values, parallel to the points.
    pub rules: Vec<PointRule>,
    /// When a batch is closed.
    pub batch: BatchLimits,
    /// What device management has to know of it.
    pub management: DeviceManagement,
    /// How it speaks.
    pub driver: DriverConfig,
}

/// What device management has to know of a device.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DeviceManagement {
    /// The only fingerprint that may be approved.
    pub fingerprint: Option<String>,
    /// What may be managed here: `command`, `config`, `firmware`, `time`.
    pub delegated: BTreeSet<&'static str>,
    /// Points that hold its clock.
    pub clock: Option<ClockForm>,
    /// How its clock is looked after.
    pub time: Option<TimeSettings>,
    /// Lists of writes by name.
    pub methods: BTreeMap<String, Vec<MethodWrite>>,
    /// How it takes firmware.
    pub firmware: Option<DeviceForm>,
    /// Points whose writes need two steps.
    pub critical: BTreeSet<String>,
    /// Conditions of writes, by point.
    pub interlocks: BTreeMap<String, Interlock>,
}

/// Points with one rate.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// Name in the file; `None` for points that carry the device's or their own rate.
    pub name: Option<String>,
    /// Time from scan to scan, 50 ms to 24 h.
    pub every: Duration,
    /// Indices of points, ascending.
    pub points: Vec<u32>,
}

impl Device {
    /// What the southbound side needs to know of this device, which is not how its groups are named.
    pub fn southbound(&self) -> DeviceConfig {
        let groups = self.groups.iter().map(|g| RateGroup { every: g.every, points: g.points.clone() });
        DeviceConfig { device: self.model.clone(), groups: groups.collect(), driver: self.driver.clone() }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::load_with;

    /// What passed the checks here passes the driver's own.
    #[test]
    fn the_reference_devices_are_legal_to_the_driver() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/config/reference");
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(
            dir.path().join("fieldgate.toml"),
            "[gateway]\nid = \"g\"\n[defaults.groups.slow]\nrate = \"1 m\"\n",
        )
        .unwrap();
        for part in ["devices", "profiles", "points"] {
            std::fs::create_dir(dir.path().join(part)).unwrap();
            for entry in std::fs::read_dir(source.join(part)).unwrap() {
                let entry = entry.unwrap();
                std::fs::copy(entry.path(), dir.path().join(part).join(entry.file_name())).unwrap();
            }
        }
        let loaded = load_with(dir.path(), &|_| None).unwrap_or_else(|problems| panic!("{problems}"));
        assert_eq!(loaded.devices.len(), 3);
        for device in &loaded.devices {
            assert_eq!(device.southbound().check(), Ok(()), "{}", device.model.id);
            assert_eq!(device.rules.len(), device.model.points.len());
        }
    }
}
