//! What a step tells: statuses to the outbox, records and placements to the disk.

use super::core::Reconciler;
use super::record::{Placement, Record};
use super::report;
use crate::margo::api::DeploymentStatus;
use crate::margo::storage::{Change, StorageError};
use crate::margo::words::{DeploymentId, DevicePath, Target};

impl Reconciler {
    /// Makes reports and changes of everything that changed in this step. A report comes before the record that says that it
    /// was made: a commit that is cut between them repeats it and loses nothing.
    pub(super) fn tell(&mut self) -> Result<(), StorageError> {
        for key in std::mem::take(&mut self.changed) {
            let Some(mut placement) = self.placements.remove(&key) else { continue };
            let Some(record) = self.records.get(&placement.deployment) else { continue };
            let status = report::of_placement(record, &placement, self.status_device(&placement.path), self.head);
            let digest = report::digest(&status);
            if record.told.is_some() {
                // What was said of the deployment itself sums up its devices.
                self.changed_records.insert(record.id.clone());
            }
            // An opaque gateway is one device: where it took a deployment away is not told beside where it brought it.
            let moved = self.scope.opaque && placement.leaving && self.placements_of(&record.id).any(|p| !p.leaving);
            if placement.told != Some(digest) && !record.names.is_empty() && !record.foreign && !moved {
                placement.told = Some(digest);
                self.push(status)?;
            }
            if placement.is_gone() {
                self.step.changes.push(Change::Delete(placement.key()));
                self.changed_records.insert(placement.deployment.clone());
            } else {
                self.step.changes.push(placement.save()?);
                self.placements.insert(key, placement);
            }
        }
        for id in std::mem::take(&mut self.changed_records) {
            self.tell_record(&id)?;
        }
        Ok(())
    }

    fn push(&mut self, status: DeploymentStatus) -> Result<(), StorageError> {
        self.step.changes.extend(self.outbox.push(status)?);
        Ok(())
    }

    fn tell_record(&mut self, id: &DeploymentId) -> Result<(), StorageError> {
        let device = match self.records.get(id).and_then(|record| record.told.as_ref()) {
            Some((device, _)) => Some(device.clone()),
            None => self.record_device(id),
        };
        let Some(mut record) = self.records.remove(id) else { return Ok(()) };
        let (alone, status) = self.record_status(&record, device);
        if let Some(status) = status.filter(|_| !record.foreign) {
            let digest = report::digest(&status);
            if record.told.as_ref().is_none_or(|(_, told)| *told != digest) {
                record.told = Some((status.device.clone(), digest));
                self.push(status)?;
            }
        }
        if record.wanted.is_none() && alone {
            self.step.changes.push(Change::Delete(Record::key(id)));
        } else {
            self.step.changes.push(record.save()?);
            self.records.insert(id.clone(), record);
        }
        Ok(())
    }

    /// Whether a deployment is on no device, and what is said of it itself: while it is on none, and afterwards if it was
    /// spoken of before, so that the last word is true.
    fn record_status(&self, record: &Record, device: Option<Option<DevicePath>>) -> (bool, Option<DeploymentStatus>) {
        let of: Vec<&Placement> = self.placements_of(&record.id).collect();
        let covered =
            |device: &Option<DevicePath>| of.iter().any(|placement| self.status_device(&placement.path) == *device);
        let known = record.told.is_some();
        let device = device.filter(|device| {
            !covered(device)
                && (of.is_empty() || known)
                && !record.names.is_empty()
                && (record.wanted.is_some() || known)
        });
        let status = device.map(|device| match of.is_empty() {
            true => report::of_record(record, device, self.head),
            false => report::of_all(record, &of, device, self.head),
        });
        (of.is_empty(), status)
    }

    /// The device that a status names: none for the device that the client is.
    fn status_device(&self, path: &DevicePath) -> Option<DevicePath> {
        (*path != self.scope.top && !self.scope.opaque).then(|| path.clone())
    }

    /// The device that a status names while the deployment is on none; `None` while nothing is to be said: components are
    /// fetched, or a choice is made.
    fn record_device(&self, id: &DeploymentId) -> Option<Option<DevicePath>> {
        let record = self.records.get(id)?;
        let failed = record.failed.is_some();
        match self.deployments.get(id) {
            Some(Ok(deployment)) => match &deployment.target {
                Some(Target::Device(path)) => {
                    Some(self.status_device(path).filter(|path| path.is_below(&self.scope.top)))
                }
                _ if failed => Some(None),
                _ => None,
            },
            _ if failed => Some(None),
            _ => None,
        }
    }
}
