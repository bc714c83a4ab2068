//! Statuses that the fleet manager has not confirmed yet: durable, in order, one at a time.
//!
//! **Promise.** A status is in the outbox in the same commit as the change that it tells of, and leaves it only when the
//! fleet manager confirmed it, or refused its content for good. The last status of a deployment on a device is never lost.
//!
//! **Limits.** 5,000 statuses; beyond that the oldest leaves whose deployment and device have a newer one (the fleet manager
//! then misses a step on the way, never the outcome). A status that the schema forbids is not sent.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::api::DeploymentStatus;
use super::schema;
use super::storage::{Change, StorageError, read};
use super::words::{DeploymentId, DevicePath};

/// Prefix of the keys.
pub const PREFIX: &str = "status/";
/// Most statuses.
const MOST: usize = 5_000;

/// The statuses that wait.
#[derive(Debug, Default)]
pub struct Outbox {
    waiting: BTreeMap<u64, DeploymentStatus>,
    next: u64,
}

fn key(number: u64) -> String {
    format!("{PREFIX}{number:020}")
}

impl Outbox {
    /// Reads what waited before the restart.
    ///
    /// # Errors
    /// [`StorageError::Damaged`].
    pub fn load(entries: &[(String, Bytes)]) -> Result<Self, StorageError> {
        let mut outbox = Self::default();
        for (name, value) in entries {
            let number = name.strip_prefix(PREFIX).and_then(|number| number.parse().ok());
            let number: u64 =
                number.ok_or_else(|| StorageError::Damaged { what: name.clone(), reason: "no number".to_owned() })?;
            outbox.waiting.insert(number, read(name, value)?);
            outbox.next = outbox.next.max(number + 1);
        }
        Ok(outbox)
    }

    /// Adds a status. Gives what to make durable.
    ///
    /// # Errors
    /// [`StorageError::Failed`] when it breaks the schema: that is a mistake of ours, and nobody could read it.
    pub fn push(&mut self, status: DeploymentStatus) -> Result<Vec<Change>, StorageError> {
        let wrong = schema::status(&status.to_json());
        if !wrong.is_empty() {
            return Err(StorageError::Failed(format!(
                "a status of {} breaks the schema: {}",
                status.deployment_id,
                wrong.join("; ")
            )));
        }
        let mut changes = vec![Change::put(key(self.next), &status)?];
        self.waiting.insert(self.next, status);
        self.next += 1;
        if self.waiting.len() > MOST
            && let Some(number) = self.superseded()
        {
            self.waiting.remove(&number);
            changes.push(Change::Delete(key(number)));
        }
        Ok(changes)
    }

    /// Nobody is there to hear them any more.
    pub fn forget(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.waiting).into_keys().map(|number| Change::Delete(key(number))).collect()
    }

    /// The oldest that a newer one of the same deployment and device follows.
    fn superseded(&self) -> Option<u64> {
        let mut newer: BTreeSet<(&DeploymentId, Option<&DevicePath>)> = BTreeSet::new();
        let mut oldest = None;
        for (number, status) in self.waiting.iter().rev() {
            if !newer.insert((&status.deployment_id, status.device.as_ref())) {
                oldest = Some(*number);
            }
        }
        oldest
    }

    /// The next one to send.
    pub fn first(&self) -> Option<(u64, &DeploymentStatus)> {
        self.waiting.iter().next().map(|(number, status)| (*number, status))
    }

    /// It was confirmed, or will never be.
    pub fn done(&mut self, number: u64) -> Change {
        self.waiting.remove(&number);
        Change::Delete(key(number))
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::super::api::State;
    use super::super::api::tests_support::example_status;
    use super::*;

    fn status(version: u64) -> DeploymentStatus {
        DeploymentStatus { adopted_manifest_version: version, ..example_status() }
    }

    #[test]
    fn statuses_leave_in_order_and_survive_a_restart() {
        let mut outbox = Outbox::default();
        let mut entries = BTreeMap::new();
        for version in 1..=3 {
            for change in outbox.push(status(version)).unwrap() {
                let Change::Put(key, value) = change else { panic!() };
                entries.insert(key, value);
            }
        }
        let (number, first) = outbox.first().unwrap();
        assert_eq!(first.adopted_manifest_version, 1);
        let Change::Delete(gone) = outbox.done(number) else { panic!() };
        entries.remove(&gone);
        let again = Outbox::load(&entries.into_iter().collect::<Vec<_>>()).unwrap();
        assert_eq!(again.len(), 2);
        assert_eq!(again.first().unwrap().1.adopted_manifest_version, 2);
        assert_eq!(again.next, outbox.next, "numbers go on");
    }

    #[test]
    fn a_full_outbox_loses_steps_on_the_way_and_never_an_outcome() {
        let mut outbox = Outbox::default();
        let other = DeploymentStatus { device: Some(DevicePath::new("gw/other").unwrap()), ..status(1) };
        outbox.push(other).unwrap();
        for version in 1..=MOST as u64 + 50 {
            outbox.push(status(version)).unwrap();
        }
        assert_eq!(outbox.len(), MOST);
        assert_eq!(outbox.first().unwrap().1.device.as_ref().unwrap().as_str(), "gw/other");
        assert_eq!(outbox.waiting.values().last().unwrap().adopted_manifest_version, MOST as u64 + 50);
    }

    #[test]
    fn a_status_that_breaks_the_schema_is_refused() {
        let mut outbox = Outbox::default();
        assert!(outbox.push(DeploymentStatus { state: State::Installed, ..status(0) }).is_err());
        assert!(outbox.is_empty());
    }
}
