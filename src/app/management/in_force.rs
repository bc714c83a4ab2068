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
