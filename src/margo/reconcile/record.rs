//! What is durable of a deployment and of its life on each device.

use serde::{Deserialize, Serialize};

use crate::margo::api::{State, StatusError};
use crate::margo::component::Fits;
use crate::margo::plant::Before;
use crate::margo::storage::{Change, StorageError};
use crate::margo::words::{DeploymentId, DevicePath, Digest, hex};
use crate::model::DeviceId;

/// Prefix of the records' keys.
pub const RECORDS: &str = "deployment/";
/// Prefix of the placements' keys.
pub const PLACEMENTS: &str = "placement/";
/// Key of the number of orders that were given.
pub(super) const ORDERS: &str = "orders";
/// Code of what another deployment holds already.
pub(super) const CONFLICT: &str = "conflict";

/// One deployment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Which.
    pub id: DeploymentId,
    /// Digest of the YAML that is wanted; `None` when it is to be removed.
    pub wanted: Option<Digest>,
    /// The manifest version that brought it first.
    pub arrived: u64,
    /// Names of its components, of the newest revision that could be read.
    pub names: Vec<String>,
    /// Its components, once they were fetched.
    pub ready: Option<Ready>,
    /// Why it cannot be used at all.
    pub failed: Option<StatusError>,
    /// Devices that were chosen for it.
    pub chosen: Vec<DevicePath>,
    /// Device of the last report about the deployment itself, and that report's digest.
    pub told: Option<(Option<DevicePath>, Digest)>,
    /// A fleet manager of before deployed it, and the one of now does not know it: nothing is told of it.
    #[serde(default)]
    pub foreign: bool,
}

/// Components that were fetched, with their parameters bound.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ready {
    /// Digest of the YAML that named them.
    pub digest: Digest,
    /// In the deployment's order.
    pub parts: Vec<ReadyPart>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReadyPart {
    /// Name of the component.
    pub name: String,
    /// Digest of its work, which lies as a blob.
    pub work: Digest,
    /// Devices that it fits.
    pub fits: Fits,
}

/// A revision that a device has begun.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Begun {
    /// Digest of the YAML.
    pub digest: Digest,
    /// The newest manifest known to carry it; while it is the wanted one, the manifest in force counts.
    pub version: u64,
}

/// A deployment on one device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Placement {
    /// Which deployment.
    pub deployment: DeploymentId,
    /// Path of the device.
    pub path: DevicePath,
    /// The device; `None` is the gateway itself.
    #[serde(with = "device_id")]
    pub device: Option<DeviceId>,
    /// The piece of hardware that the parts were brought to; empty while nobody knows.
    #[serde(default)]
    pub hardware: String,
    /// Digest of the YAML that the parts were last aligned to.
    pub aligned: Option<Digest>,
    /// The revision that was begun.
    pub begun: Option<Begun>,
    /// Components.
    pub parts: Vec<Part>,
    /// It is to be undone here.
    pub leaving: bool,
    /// Digest of the last report.
    pub told: Option<Digest>,
}

/// One component on one device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// Name of the component.
    pub name: String,
    /// Work that is to be in force; `None` when it is to be undone.
    pub wanted: Option<Digest>,
    /// Work that is in force.
    pub applied: Option<Digest>,
    /// Work that may be in force: an order for it was given and failed, or was not answered yet.
    pub touched: Option<Digest>,
    /// State.
    pub state: State,
    /// Why it failed.
    pub error: Option<StatusError>,
    /// The failure passes when the device answers or somebody changes a setting: it is looked at again.
    #[serde(default)]
    pub passing: bool,
    /// The order that was given and not answered: its key, and whether it undoes.
    pub order: Option<(String, bool)>,
    /// What was there before the first revision.
    pub before: Before,
}

impl Record {
    /// Key in the storage.
    pub fn key(id: &DeploymentId) -> String {
        format!("{RECORDS}{id}")
    }

    pub(super) fn save(&self) -> Result<Change, StorageError> {
        Change::put(Self::key(&self.id), self)
    }
}

impl Placement {
    pub(super) fn new(deployment: DeploymentId, path: DevicePath, device: Option<DeviceId>) -> Self {
        Self {
            deployment,
            path,
            device,
            hardware: String::new(),
            aligned: None,
            begun: None,
            parts: Vec::new(),
            leaving: false,
            told: None,
        }
    }

    /// Whether something was done to the device, or is being done.
    pub(super) fn is_touched(&self) -> bool {
        self.parts.iter().any(|part| part.order.is_some() || part.in_force().is_some())
    }

    /// Whether it waits for another deployment to give up what it needs.
    pub(super) fn is_in_conflict(&self) -> bool {
        self.parts.iter().any(|part| part.error.as_ref().is_some_and(|error| error.code == CONFLICT))
    }

    /// Key in the storage.
    pub fn key(&self) -> String {
        format!("{PLACEMENTS}{}/{}", self.deployment, self.path)
    }

    pub(super) fn save(&self) -> Result<Change, StorageError> {
        Change::put(self.key(), self)
    }

    /// The key of the order with that number: the same for every run of the program.
    pub(super) fn order_key(&self, part: &str, number: u64) -> String {
        let text = format!("{number}\n{}\n{}\n{part}", self.deployment, self.path);
        format!("margo-{}", hex(&Digest::of(text.as_bytes()).as_bytes()[..16]))
    }
}

impl Part {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            wanted: None,
            applied: None,
            touched: None,
            state: State::Pending,
            error: None,
            passing: false,
            order: None,
            before: Before::default(),
        }
    }

    /// The work that an undo has to take back.
    pub(super) fn in_force(&self) -> Option<Digest> {
        self.touched.or(self.applied)
    }

    /// It is in another state, and nothing is wrong.
    pub(super) fn is_now(&mut self, state: State) {
        (self.state, self.error, self.passing) = (state, None, false);
    }

    /// It failed for good, until somebody deploys something else.
    pub(super) fn fail(&mut self, error: StatusError) {
        (self.state, self.error, self.passing) = (State::Failed, Some(error), false);
    }

    /// It cannot be done now.
    pub(super) fn wait(&mut self, error: StatusError) {
        (self.state, self.error, self.passing) = (State::Failed, Some(error), true);
    }
}

/// The id of a device as text.
mod device_id {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::model::DeviceId;

    pub fn serialize<S: Serializer>(device: &Option<DeviceId>, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(device.as_ref().map_or("", DeviceId::as_str))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<DeviceId>, D::Error> {
        match String::deserialize(from)?.as_str() {
            "" => Ok(None),
            text => DeviceId::new(text).map(Some).map_err(serde::de::Error::custom),
        }
    }
}
