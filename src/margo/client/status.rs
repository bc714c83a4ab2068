//! How the client stands, for people and machines.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::engine::{Client, nanos};
use super::leave::Leaving;
use crate::margo::api::{StatusError, overall};
use crate::margo::desired::Exchange;
use crate::margo::plant::Plant;
use crate::margo::reconcile::Placement;
use crate::margo::storage::Storage;
use crate::margo::words::DevicePath;

/// Between two tables of deployments.
const TABLE_PAUSE: Duration = Duration::from_millis(500);

/// One deployment on one device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeploymentLine {
    /// Id of the deployment.
    pub deployment: String,
    /// Path of the device, or of the one that was told to the fleet manager while it is on none; empty for none.
    pub device: String,
    /// The newest manifest whose revision of the deployment this device has begun (`adoptedManifestVersion`).
    pub adopted: u64,
    /// Most severe state.
    pub state: String,
    /// Why, when something is wrong.
    pub reason: String,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ClientStatus {
    /// Path of the device that the client is.
    pub device: String,
    /// The fleet manager's address.
    pub url: String,
    /// Whether the last request was answered.
    pub connected: bool,
    /// Why not, or what else is wrong; empty when nothing is.
    pub problem: String,
    /// The relationship is retired.
    pub retired: bool,
    /// Version of the manifest in force; 0 for none.
    pub manifest_version: u64,
    /// Wall time of the last answer to a poll, milliseconds since 1970; 0 for none.
    pub polled_ms: i64,
    /// Devices that the fleet manager confirmed as they are.
    pub devices_reported: usize,
    /// Devices to report.
    pub devices: usize,
    /// Statuses that wait for confirmation.
    pub statuses_waiting: usize,
    /// How far leaving is.
    #[serde(default)]
    pub leaving: Leaving,
    /// Devices that the fleet manager knows of, whether they are here or not.
    #[serde(default)]
    pub devices_known: usize,
    /// Deployments on devices. Shared, because with a thousand children it is long and a poll changes nothing of it.
    #[serde(default)]
    pub deployments: Arc<Vec<DeploymentLine>>,
}

impl<P: Plant, S: Storage + Clone, X: Exchange> Client<P, S, X> {
    /// Tells how the client stands. The table is made anew only when something of it may have changed, and at most every
    /// [`TABLE_PAUSE`]: with a thousand children it is what costs most.
    pub(super) fn publish(&mut self) {
        let now_ns = self.parts.clock.mono_ns();
        let lines = (self.lines_stale && now_ns >= self.lines_due_ns).then(|| self.lines());
        if lines.is_some() {
            (self.lines_stale, self.lines_due_ns) = (false, now_ns.saturating_add(nanos(TABLE_PAUSE)));
        }
        let (devices_reported, devices) = self.roster.progress();
        let version = self.head.as_ref().map_or(0, |head| head.version);
        let waiting = self.reconciler.outbox().len();
        let now = (devices_reported, devices, self.roster.known(), self.leaving(), version, waiting);
        self.status.send_if_modified(|status| {
            let before = (
                status.devices_reported,
                status.devices,
                status.devices_known,
                status.leaving,
                status.manifest_version,
                status.statuses_waiting,
            );
            (status.devices_reported, status.devices, status.devices_known, status.leaving, _, _) = now;
            (status.manifest_version, status.statuses_waiting) = (version, waiting);
            let table = lines.filter(|lines| *status.deployments != *lines);
            let changed = before != now || table.is_some();
            if let Some(table) = table {
                status.deployments = Arc::new(table);
            }
            changed
        });
    }

    fn lines(&self) -> Vec<DeploymentLine> {
        let mut lines = Vec::new();
        for (record, placements) in self.reconciler.view() {
            let named = record.told.as_ref().and_then(|(device, _)| device.as_ref());
            let line = |placement: Option<&Placement>, state: &str, reason: String| DeploymentLine {
                deployment: record.id.to_string(),
                device: placement
                    .map(|placement| &placement.path)
                    .or(named)
                    .map(DevicePath::to_string)
                    .unwrap_or_default(),
                adopted: self.reconciler.adopted(record, placement),
                state: state.to_owned(),
                reason,
            };
            let failed = record.failed.as_ref();
            let reason = |error: Option<&StatusError>| {
                error.map(|error| format!("{}: {}", error.code, error.message)).unwrap_or_default()
            };
            if placements.is_empty() {
                lines.push(line(None, if failed.is_some() { "failed" } else { "pending" }, reason(failed)));
            }
            for placement in placements {
                let error = placement.parts.iter().find_map(|part| part.error.as_ref()).or(failed);
                let state = overall(placement.parts.iter().map(|part| part.state));
                lines.push(line(Some(placement), state.as_str(), reason(error)));
            }
        }
        lines
    }
}
