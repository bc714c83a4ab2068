//! How the client stands, for people and machines.

use serde::{Deserialize, Serialize};

/// One deployment on one device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeploymentLine {
    /// Id of the deployment.
    pub deployment: String,
    /// Path of the device; empty while it is on none.
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
    /// Deployments.
    pub deployments: Vec<DeploymentLine>,
}
