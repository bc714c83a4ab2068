//! What was applied last, and what a new plan changes in it.
//!
//! Promise: a device whose files and plan stay as they were is neither built nor compared with others again. What a plan
//! changed counts as changed until it was handed on to everyone: a failure on the way is made good by the next plan.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::overlay::overlaid;
use crate::config::Device;
use crate::management::core::{Plan, PlannedDevice};
use crate::management::lifecycle::Mode;
use crate::model::{self, DeviceId};
use crate::southbound::DeviceConfig;

type Files = Arc<BTreeMap<DeviceId, Device>>;

/// A device as it runs.
#[derive(Debug, Clone)]
pub(super) struct Running {
    pub device: Device,
    pub mode: Mode,
}

/// What was applied, and what came of it.
#[derive(Debug, Default)]
pub(super) struct InForce {
    files: Files,
    planned: BTreeMap<DeviceId, PlannedDevice>,
    pub running: BTreeMap<DeviceId, Running>,
    /// Devices of the plan that cannot run, and why.
    pub failures: BTreeMap<DeviceId, String>,
    /// Devices that are not what they were, and how they ran when everyone last knew.
    changed: BTreeMap<DeviceId, Option<Running>>,
}

impl InForce {
    /// Takes a plan on these files. Gives the devices whose files are not what they were.
    pub fn take(&mut self, files: &Files, plan: &Plan) -> BTreeSet<DeviceId> {
        let rewritten = match Arc::ptr_eq(&self.files, files) {
            true => BTreeSet::new(),
            false => difference(&self.files, files),
        };
        let replanned = difference(&self.planned, &plan.devices);
        self.files = files.clone();
        for id in rewritten.union(&replanned) {
            let before = self.running.remove(id);
            self.changed.entry(id.clone()).or_insert(before);
            self.failures.remove(id);
            let Some(planned) = plan.devices.get(id) else {
                self.planned.remove(id);
                continue;
            };
            self.planned.insert(id.clone(), planned.clone());
            match wanted(files.get(id), planned) {
                Ok(Some(run)) => drop(self.running.insert(id.clone(), run)),
                Ok(None) => {}
                Err(why) => drop(self.failures.insert(id.clone(), why)),
            }
        }
        rewritten
    }

    /// Everyone knows what changed.
    pub fn done(&mut self) {
        self.changed.clear();
    }

    /// Devices that are not what they were.
    pub fn changed(&self) -> impl Iterator<Item = &DeviceId> {
        self.changed.keys()
    }

    /// Those of them that run.
    pub fn changed_running(&self) -> impl Iterator<Item = &Running> {
        self.changed().filter_map(|id| self.running.get(id))
    }

    /// Those of them that do not run.
    pub fn stopped(&self) -> Vec<DeviceId> {
        self.changed().filter(|id| !self.running.contains_key(*id)).cloned().collect()
    }

    /// A device as publishers and commands know it: as it runs, else as its files say.
    pub fn model(&self, id: &DeviceId) -> Option<&Arc<model::Device>> {
        let running = self.running.get(id).map(|run| &run.device);
        running.or_else(|| self.files.get(id)).map(|device| &device.model)
    }

    /// Every device that publishers and commands know.
    pub fn known(&self) -> BTreeMap<DeviceId, Arc<model::Device>> {
        self.files.keys().filter_map(|id| Some((id.clone(), self.model(id)?.clone()))).collect()
    }

    /// Devices that the drivers must let go before points are exchanged, and what they shall poll after it.
    pub fn drivers(&self) -> (Vec<DeviceId>, Vec<DeviceConfig>) {
        let (mut resting, mut moved) = (Vec::new(), Vec::new());
        for (id, before) in &self.changed {
            let before = before.as_ref().map(|run| run.device.southbound());
            let now = self.running.get(id).map(|run| run.device.southbound());
            if before.is_some() && before != now {
                resting.push(id.clone());
            }
            // The drivers see for themselves what they have already.
            moved.extend(now);
        }
        (resting, moved)
    }
}

/// Keys whose values are not the same, or that only one of the two has.
fn difference<T: PartialEq>(old: &BTreeMap<DeviceId, T>, new: &BTreeMap<DeviceId, T>) -> BTreeSet<DeviceId> {
    let removed = old.keys().filter(|id| !new.contains_key(*id));
    let changed = new.iter().filter(|(id, value)| old.get(*id) != Some(*value)).map(|(id, _)| id);
    removed.chain(changed).cloned().collect()
}

/// The device as it shall run; `None` when it is switched off.
fn wanted(file: Option<&Device>, planned: &PlannedDevice) -> Result<Option<Running>, String> {
    let file = file.ok_or("no file declares it")?;
    if planned.overlay.enabled == Some(false) {
        return Ok(None);
    }
    let device = overlaid(file, &planned.overlay);
    device.southbound().check().map_err(|problem| problem.to_string())?;
    Ok(Some(Running { device, mode: planned.mode }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::management::desired::DeviceOverlay;

    fn files(rates: &[(&str, &str)]) -> Files {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("devices")).unwrap();
        std::fs::write(dir.path().join("fieldgate.toml"), "[gateway]\nid = \"g\"\n").unwrap();
        for (name, rate) in rates {
            let text = format!(
                "rate = \"{rate}\"\n[modbus]\nlink = \"tcp://h\"\n[[points]]\nid = \"a\"\ntable = \"holding\"\naddress = 1\n"
            );
            std::fs::write(dir.path().join(format!("devices/{name}.toml")), text).unwrap();
        }
        let loaded = crate::config::load(dir.path()).unwrap_or_else(|problems| panic!("{problems}"));
        let relative = |device: Device| Device { file: Default::default(), ..device };
        Arc::new(loaded.devices.into_iter().map(|device| (device.model.id.clone(), relative(device))).collect())
    }

    fn plan(files: &Files) -> Plan {
        let planned = PlannedDevice { mode: Mode::Trusted, undeclared: None, overlay: Arc::default() };
        Plan { devices: files.keys().map(|id| (id.clone(), planned.clone())).collect(), ..Plan::default() }
    }

    fn names<'a>(ids: impl IntoIterator<Item = &'a DeviceId>) -> Vec<&'a str> {
        ids.into_iter().map(DeviceId::as_str).collect()
    }

    #[test]
    fn only_what_differs_is_handed_on_and_until_everyone_has_it() {
        let (mut force, first) = (InForce::default(), files(&[("a", "1 s"), ("b", "1 s"), ("c", "1 s")]));
        assert_eq!(names(&force.take(&first, &plan(&first))), ["a", "b", "c"]);
        assert_eq!(force.drivers().1.len(), 3);
        force.done();
        assert!(force.take(&first, &plan(&first)).is_empty());
        assert_eq!((force.changed().count(), force.drivers().1.len()), (0, 0));

        // One file has changed, and one is gone.
        let second = files(&[("a", "1 s"), ("b", "5 s")]);
        assert_eq!(names(&force.take(&second, &plan(&second))), ["b", "c"]);
        let (resting, moved) = force.drivers();
        assert_eq!((names(&resting), moved.len()), (vec!["b", "c"], 1));
        assert_eq!(names(&force.stopped()), ["c"]);
        // Not everyone has it: the next plan, in which nothing differs, tells it again.
        assert!(force.take(&second, &plan(&second)).is_empty());
        assert_eq!(names(force.changed()), ["b", "c"]);
        force.done();
        assert_eq!(force.changed().count(), 0);
    }

    #[test]
    fn overlays_count_and_what_goes_back_before_anyone_has_it_need_not_rest() {
        let (mut force, files) = (InForce::default(), files(&[("a", "1 s"), ("b", "1 s")]));
        force.take(&files, &plan(&files));
        force.done();
        let mut off = plan(&files);
        let overlay = DeviceOverlay { enabled: Some(false), ..DeviceOverlay::default() };
        off.devices.get_mut(files.keys().next().unwrap()).unwrap().overlay = Arc::new(overlay);
        assert!(force.take(&files, &off).is_empty(), "its file is as it was");
        assert_eq!((names(&force.stopped()), names(&force.drivers().0)), (vec!["a"], vec!["a"]));
        force.take(&files, &plan(&files));
        assert_eq!((force.stopped().len(), force.drivers().0.len()), (0, 0));
    }
}
