//! Where deployments go, acted out: components are fetched, placements made, and those that are not wanted any more left.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::core::{Job, Reconciler, Retry, Running, of_mut};
use super::place::{Look, Placed, place};
use super::record::{Part, Placement};
use super::report;
use crate::margo::api::StatusError;
use crate::margo::deployment::{Deployment, Profile};
use crate::margo::words::{DeploymentId, DevicePath, Digest};

impl Reconciler {
    /// Resolves where a deployment goes, and fetches its components.
    pub(super) fn place(&mut self, id: &DeploymentId, now_ns: u64) {
        let Some(record) = self.records.get(id).cloned() else { return };
        let Some(wanted) = record.wanted else {
            self.leave_all(id);
            return;
        };
        let fail = |code: &str, why: &str| report::error(&self.scope.top, code, why);
        let deployment = match self.deployments.get(id) {
            Some(Ok(deployment)) => deployment.clone(),
            Some(Err(error)) => return self.fail_record(id, fail("invalid-deployment", &error.to_string())),
            // Its manifest was not given yet.
            None => return,
        };
        let has_engine = || self.devices.values().any(|view| view.engine.is_some());
        let is_taken = match &deployment.profile {
            Profile::Custom => true,
            Profile::Compose => has_engine(),
            Profile::Helm | Profile::Other(_) => false,
        };
        if !is_taken {
            let more = if has_engine() { "`custom` and `compose`" } else { "`custom`" };
            let why = format!("this gateway runs no {} deployments; it takes {more} ones", deployment.profile.as_str());
            return self.fail_record(id, fail("unsupported-profile", &why));
        }
        let ready = record.ready.as_ref().filter(|ready| ready.digest == wanted);
        if ready.is_none() {
            self.fetch(id, wanted, &deployment, now_ns);
        }
        let mut load: BTreeMap<DevicePath, usize> = BTreeMap::new();
        for placement in self.placements.values().filter(|placement| placement.deployment != *id) {
            *load.entry(placement.path.clone()).or_default() += 1;
        }
        let parts = ready.map(|ready| {
            ready.parts.iter().filter_map(|part| Some((part, self.works.get(&part.work)?.as_ref()))).collect()
        });
        let begun = self.placements_of(id).any(|placement| !placement.leaving && placement.is_touched());
        let held = if begun { BTreeMap::new() } else { self.held_by_others(id) };
        let look = Look {
            scope: &self.scope,
            devices: &self.devices,
            parts,
            chosen: &record.chosen,
            begun,
            held: &held,
            load: &load,
        };
        match place(deployment.target.as_ref(), &look) {
            Placed::Later => {}
            Placed::Nowhere(error) => {
                self.leave_all(id);
                self.fail_record(id, error);
            }
            Placed::On(paths) => self.settle_on(id, paths, ready.is_some()),
        }
    }

    /// What other deployments hold of each device, or will hold once they are brought to where they were placed.
    fn held_by_others(&self, id: &DeploymentId) -> BTreeMap<DevicePath, BTreeSet<String>> {
        let mut held: BTreeMap<DevicePath, BTreeSet<String>> = BTreeMap::new();
        for placement in self.placements.values().filter(|placement| placement.deployment != *id) {
            let ready = self.records.get(&placement.deployment).and_then(|record| record.ready.as_ref());
            let coming = ready.filter(|_| !placement.leaving).into_iter().flat_map(|ready| &ready.parts);
            let works = coming.map(|part| part.work).chain(placement.parts.iter().filter_map(Part::in_force));
            let claims = works.filter_map(|work| self.works.get(&work)).flat_map(|work| work.claims());
            held.entry(placement.path.clone()).or_default().extend(claims);
        }
        held
    }

    fn fetch(&mut self, id: &DeploymentId, digest: Digest, deployment: &Arc<Deployment>, now_ns: u64) {
        let asked = self.running.values().any(|job| *job == Running::Fetch(id.clone(), digest));
        if !asked && !self.refused.contains(id) && self.may_try(&Retry::Fetch(id.clone()), now_ns) {
            self.begin(Running::Fetch(id.clone(), digest), Job::Fetch(deployment.clone()));
        }
    }

    fn fail_record(&mut self, id: &DeploymentId, error: StatusError) {
        let Some(record) = self.records.get_mut(id) else { return };
        if record.failed.as_ref() != Some(&error) {
            record.failed = Some(error);
            self.changed_records.insert(id.clone());
            self.change_all_of(id);
        }
    }

    fn leave_all(&mut self, id: &DeploymentId) {
        for (key, placement) in of_mut(&mut self.placements, id) {
            if !placement.leaving {
                placement.leaving = true;
                self.changed.insert(key.clone());
            }
        }
        self.changed_records.insert(id.clone());
    }

    fn settle_on(&mut self, id: &DeploymentId, paths: BTreeSet<DevicePath>, is_ready: bool) {
        for (key, placement) in of_mut(&mut self.placements, id) {
            let leaving = !paths.contains(&placement.path);
            if placement.leaving != leaving {
                // Back again: whatever was undone meanwhile is to be done anew.
                placement.aligned = None;
                placement.leaving = leaving;
                self.changed.insert(key.clone());
            }
        }
        for path in &paths {
            let key = (id.clone(), path.clone());
            if !self.placements.contains_key(&key) {
                let device = self.devices.get(path).and_then(|view| view.device.clone());
                let mut placement = Placement::new(id.clone(), path.clone(), device);
                // To the fleet manager of an opaque gateway it is the same device as before.
                if let Some(before) = self.placements_of(id).next().filter(|_| self.scope.opaque) {
                    (placement.begun, placement.told) = (before.begun.clone(), before.told);
                }
                self.placements.insert(key.clone(), placement);
                self.changed.insert(key);
            }
        }
        let Some(record) = self.records.get_mut(id) else { return };
        let chosen: Vec<DevicePath> = paths.into_iter().collect();
        // An error of fetching stays until it was fetched.
        let cured = record.failed.is_some() && is_ready;
        if record.chosen != chosen || cured {
            record.chosen = chosen;
            if cured {
                record.failed = None;
            }
            self.changed_records.insert(id.clone());
            self.change_all_of(id);
        }
    }
}
