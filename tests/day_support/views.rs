//! The three views at the end of the day: the fleet manager's, the broker's and the gateways' own.

use std::collections::{BTreeMap, BTreeSet};

use fieldgate_simulators::margo::Records;
use serde_json::Value;

use super::{Day, names};
use crate::whole_support::{Gate, done_once, said};

/// One gateway, as its command line and its broker show it.
struct Side {
    name: String,
    devices: Vec<Value>,
    registry: Vec<Value>,
    margo: Value,
    audit: Vec<Value>,
    retained: BTreeMap<String, Value>,
}

/// All views.
pub struct Views {
    seen: Records,
    sides: [Side; 2],
}

impl Side {
    fn of(gate: &Gate, day: &Day) -> Self {
        let name = gate.name().to_owned();
        // At rest: told is what there is to tell.
        let margo = gate.until("that everything was told", &["margo", "status", "--json"], |clients| {
            let status = &clients[0];
            let given = day.wfm.with(|seen| seen.clients[&name].given_version);
            status["connected"] == true
                && status["statuses_waiting"] == 0
                && status["devices_reported"] == status["devices"]
                && status["manifest_version"] == given
        });
        let list = |arguments: &[&str]| gate.until("a list", arguments, |_| true).as_array().unwrap().clone();
        let active =
            |all: &Value| all.as_array().unwrap().iter().all(|d| d["life"] != "active" || d["state"] == "online");
        let devices = gate.until("every device online", &["devices", "--json"], active);
        Self {
            name,
            devices: devices.as_array().unwrap().clone(),
            registry: list(&["onboard", "list", "--all", "--json"]),
            margo: margo[0].clone(),
            audit: gate.audit(),
            retained: gate.retained(),
        }
    }

    /// Ids of the devices that are in service here.
    fn active(&self) -> BTreeSet<&str> {
        let active = self.devices.iter().filter(|line| line["life"] == "active");
        active.map(|line| said(line, "device")).collect()
    }
}

impl Views {
    /// Takes them from processes that run.
    pub fn of(day: &Day) -> Self {
        let sides = [Side::of(&day.south, day), Side::of(&day.north, day)];
        Self { seen: day.wfm.records(), sides }
    }

    /// Compares them.
    pub fn agree(&self) {
        for side in &self.sides {
            self.devices(side);
            self.deployments(side);
            done_once(&side.name, &side.audit);
        }
        let [south, north] = &self.sides;
        let here: BTreeSet<&str> = south.active();
        assert_eq!((here.len(), north.active()), (names().len() - 2, BTreeSet::from(["pump-4"])));
        self.orders(south);
        // A kill may come between the fleet manager's confirmation and our note of it: then something is told twice. One in
        // the middle of a handshake ends the connection.
        let twice = ["the same status again", "nothing changed since the last report"];
        let cut = ["reset", "eof", "Broken pipe", "closed"];
        let mut notes = self.seen.notes();
        notes.retain(|note| {
            let of_a_kill = if note.starts_with(" :") { &cut[..] } else { &twice };
            !of_a_kill.iter().any(|text| note.contains(text))
        });
        assert!(notes.is_empty(), "what we sent contradicts the reference: {notes:?}");
    }

    /// The fleet manager's devices are the gateway and what is in service there; command line, topics and registry say the
    /// same of each.
    fn devices(&self, side: &Side) {
        let name = &side.name;
        let active = side.active();
        let wanted: BTreeSet<String> =
            std::iter::once(name.clone()).chain(active.iter().map(|device| format!("{name}/{device}"))).collect();
        let found: BTreeSet<String> = self.seen.devices_of(name).map(str::to_owned).collect();
        assert_eq!(found, wanted, "{name}: the fleet manager's devices and those in service");
        for line in &side.registry {
            let device = said(line, "device");
            let shown = &side.retained[&format!("devices/{device}/onboarding")];
            assert_eq!(shown, line, "{name}: topic and registry of {device}");
            assert_eq!(said(line, "state") == "active", active.contains(device), "{name}: {line}");
            let Some(known) = self.seen.devices.get(&format!("{name}/{device}")) else {
                // A device that waits, or waited, for approval at one of the gateways keeps what its file offers.
                let left =
                    |topic: &&String| topic.starts_with(&format!("devices/{device}/")) && topic.ends_with("reported");
                assert_eq!(side.retained.keys().find(left), None, "{name}: {device} is gone");
                continue;
            };
            let told = &known.capabilities["properties"];
            let plate = ["vendor", "modelNumber", "serialNumber"].map(|field| said(told, field));
            assert_eq!(plate, ["vendor", "model", "serial"].map(|field| said(line, field)), "{name}: {device}");
        }
    }

    /// Every deployment that is wanted stands as it was told, on the same devices and with the same adopted version, and
    /// there is no other.
    fn deployments(&self, side: &Side) {
        let name = &side.name;
        let mut ours = BTreeSet::new();
        for line in side.margo["deployments"].as_array().unwrap() {
            let (id, device) = (said(line, "deployment"), said(line, "device"));
            let told = match device {
                "" => self.seen.latest(id).into_iter().max_by_key(|status| status.number),
                device => self.seen.status(id, Some(device)),
            };
            let told = told.unwrap_or_else(|| panic!("{name}: {line} was never told"));
            assert_eq!(told.state, said(line, "state"), "{name}: {line} and {}", told.body);
            assert_eq!(told.adopted, line["adopted"].as_u64(), "{name}: {line} and {}", told.body);
            let code = said(&told.body["status"]["error"], "code");
            assert!(said(line, "reason").contains(code), "{name}: {line} and {}", told.body);
            ours.insert(id.to_owned());
            if told.state == "installed" {
                let newest = self.seen.clients[name].manifest_version;
                assert_eq!(told.adopted, Some(newest), "{name}: what is in force is the newest: {}", told.body);
            }
        }
        let wanted = self.seen.deployments.iter().filter(|(_, one)| one.wanted && one.client.as_ref() == Some(name));
        assert_eq!(ours, wanted.map(|(id, _)| id.clone()).collect(), "{name}: deployments here and wanted");
        for (id, one) in self.seen.deployments.iter().filter(|(_, one)| one.client.as_ref() == Some(name)) {
            let open =
                self.seen.latest(id).into_iter().find(|s| !["installed", "failed", "removed"].contains(&&*s.state));
            assert!(open.is_none(), "{name}: {id} ({:?}) was left at {open:?}", one.document.target);
        }
    }

    /// What is in force on a device came from its deployment, by the audit log.
    fn orders(&self, side: &Side) {
        for (id, one) in &self.seen.deployments {
            let actor = format!("margo:{id}");
            let installed = self.seen.latest(id).into_iter().filter(|status| status.state == "installed");
            for status in installed {
                let device = status.device.as_deref().and_then(|device| device.strip_prefix("south/")).unwrap();
                let object = format!("devices/{device}");
                let by_it = |entry: &&Value| {
                    said(entry, "actor") == actor
                        && said(entry, "object").starts_with(&object)
                        && said(entry, "outcome") == "done"
                };
                let story = || {
                    let of_it = side.audit.iter().filter(|entry| said(entry, "object").starts_with(&object));
                    of_it.map(Value::to_string).collect::<Vec<_>>().join("\n")
                };
                let target = &one.document.target;
                assert!(side.audit.iter().any(|e| by_it(&e)), "nobody wrote down {target} on {device}:\n{}", story());
            }
        }
    }
}
