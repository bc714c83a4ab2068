//! What a new configuration changes, and what of it a running gateway can take.

use std::collections::BTreeMap;
use std::fmt;

use super::Loaded;
use super::checked::{Broker, Device, Gateway, Uplink};
use crate::model::DeviceId;

/// What changed. Lists are sorted by name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// Devices that are new.
    pub devices_added: Vec<DeviceId>,
    /// Devices that are gone.
    pub devices_removed: Vec<DeviceId>,
    /// Devices of which anything is different.
    pub devices_changed: Vec<DeviceId>,
    /// Devices that keep polling undisturbed.
    pub devices_unchanged: Vec<DeviceId>,
    /// Uplinks that are new.
    pub uplinks_added: Vec<String>,
    /// Uplinks that are gone.
    pub uplinks_removed: Vec<String>,
    /// Uplinks of which anything is different: their session is made again, their place in the log stays.
    pub uplinks_changed: Vec<String>,
    /// Sections that a running gateway takes.
    pub live: Vec<&'static str>,
    /// Sections that count from the next start only.
    pub restart: Vec<&'static str>,
}

impl Changes {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        let devices = self.devices_added.len() + self.devices_removed.len() + self.devices_changed.len();
        let uplinks = self.uplinks_added.len() + self.uplinks_removed.len() + self.uplinks_changed.len();
        devices + uplinks + self.live.len() + self.restart.len() == 0
    }
}

/// Compares two configurations.
pub fn diff(old: &Loaded, new: &Loaded) -> Changes {
    let mut changes = Changes::default();
    let by_id =
        |devices: &'_ [Device]| devices.iter().map(|d| (d.model.id.clone(), d.clone())).collect::<BTreeMap<_, _>>();
    let (before, after) = (by_id(&old.devices), by_id(&new.devices));
    for (id, device) in &after {
        let list = match before.get(id) {
            None => &mut changes.devices_added,
            Some(was) if same_device(was, device) => &mut changes.devices_unchanged,
            Some(_) => &mut changes.devices_changed,
        };
        list.push(id.clone());
    }
    changes.devices_removed = before.keys().filter(|id| !after.contains_key(*id)).cloned().collect();
    if old.types != new.types {
        changes.live.push("profiles");
    }
    diff_uplinks(&old.gateway, &new.gateway, &mut changes);
    diff_sections(&old.gateway, &new.gateway, &mut changes);
    changes
}

/// A device that moved to another file is the same device.
fn same_device(a: &Device, b: &Device) -> bool {
    Device { file: b.file.clone(), ..a.clone() } == *b
}

fn diff_uplinks(old: &Gateway, new: &Gateway, changes: &mut Changes) {
    let by_name = |uplinks: &'_ [Uplink]| {
        uplinks.iter().map(|u| (u.consumer.name.clone(), u.clone())).collect::<BTreeMap<_, _>>()
    };
    let (before, after) = (by_name(&old.uplinks), by_name(&new.uplinks));
    for (name, uplink) in &after {
        match before.get(name) {
            None => changes.uplinks_added.push(name.clone()),
            Some(was) if was != uplink => changes.uplinks_changed.push(name.clone()),
            Some(_) => {}
        }
    }
    changes.uplinks_removed = before.keys().filter(|name| !after.contains_key(*name)).cloned().collect();
}

/// The log level and limits are read where they are used; what is open on disk or listens is made once.
fn diff_sections(old: &Gateway, new: &Gateway, changes: &mut Changes) {
    let (a, b) = (&old.identity, &new.identity);
    let mut note = |differs: bool, name, live: bool| {
        if differs {
            if live { changes.live.push(name) } else { changes.restart.push(name) }
        }
    };
    note(a.description != b.description, "gateway.description", true);
    note(a.id != b.id, "gateway.id", false);
    note(a.data_dir != b.data_dir, "gateway.data_dir", false);
    note(a.root != b.root, "gateway.root", false);
    note(old.store != new.store, "store", false);
    let closed = |broker: &Option<Broker>| broker.as_ref().map(Broker::without_access);
    let same_listeners = closed(&old.broker) == closed(&new.broker);
    note(!same_listeners, "broker", false);
    note(same_listeners && old.broker != new.broker, "broker users and rules", true);
    note(old.local != new.local, "local", true);
    note(old.log.level != new.log.level, "log.level", true);
    note(old.log.format != new.log.format, "log.format", false);
    note(old.otlp != new.otlp, "otlp", false);
    #[cfg(feature = "margo")]
    note(old.margo != new.margo || old.svid != new.svid, "margo", false);
    note(old.limits != new.limits, "limits", false);
    note(old.management != new.management, "management", false);
    note(old.pki != new.pki, "pki", false);
    note(old.est != new.est, "est", false);
    note(old.firmware != new.firmware, "firmware", false);
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("nothing changed");
        }
        let ids = |ids: &[DeviceId]| ids.iter().map(DeviceId::as_str).collect::<Vec<_>>().join(", ");
        let parts = [
            ("devices added", ids(&self.devices_added)),
            ("devices removed", ids(&self.devices_removed)),
            ("devices changed", ids(&self.devices_changed)),
            ("uplinks added", self.uplinks_added.join(", ")),
            ("uplinks removed", self.uplinks_removed.join(", ")),
            ("uplinks changed", self.uplinks_changed.join(", ")),
            ("applied now", self.live.join(", ")),
            ("applied at the next start only", self.restart.join(", ")),
        ];
        let told: Vec<_> = parts
            .into_iter()
            .filter(|(_, names)| !names.is_empty())
            .map(|(what, names)| format!("{what}: {names}"))
            .collect();
        f.write_str(&told.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::config::load;

    const POINT: &str = "[[points]]\nid = \"p\"\ntable = \"coil\"\naddress = 1\n";

    fn write(dir: &Path, file: &str, text: &str) {
        fs::create_dir_all(dir.join("devices")).unwrap();
        fs::write(dir.join(file), text).unwrap();
    }

    fn device(unit: u8) -> String {
        format!("[modbus]\nlink = \"tcp://h\"\nunit = {unit}\n{POINT}")
    }

    #[test]
    fn changes_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        write(
            dir.path(),
            "fieldgate.toml",
            "[gateway]\nid = \"g\"\n[[uplink]]\nname = \"a\"\nservers = \"mqtt://h\"\n",
        );
        for (name, unit) in [("same", 1), ("gone", 2), ("other", 3), ("moved", 4)] {
            write(dir.path(), &format!("devices/{name}.toml"), &device(unit));
        }
        let old = load(dir.path()).unwrap();
        assert!(diff(&old, &load(dir.path()).unwrap()).is_empty());
        write(
            dir.path(),
            "fieldgate.toml",
            "[gateway]\nid = \"g\"\n[log]\nlevel = \"debug\"\n[store]\nmax_size = \"2 GiB\"\n[[uplink]]\nname = \"a\"\nservers = \"mqtt://h2\"\n[[uplink]]\nname = \"b\"\nservers = \"mqtt://h\"\n",
        );
        write(dir.path(), "devices/other.toml", &device(9));
        write(dir.path(), "devices/new.toml", &device(5));
        fs::remove_file(dir.path().join("devices/gone.toml")).unwrap();
        fs::remove_file(dir.path().join("devices/moved.toml")).unwrap();
        write(dir.path(), "devices/elsewhere.toml", &format!("id = \"moved\"\n{}", device(4)));
        let changes = diff(&old, &load(dir.path()).unwrap());
        assert_eq!(
            changes.to_string(),
            "devices added: new; devices removed: gone; devices changed: other; uplinks added: b; uplinks changed: a; \
             applied now: log.level; applied at the next start only: store"
        );
        assert_eq!(changes.devices_unchanged.len(), 2);
    }
}
