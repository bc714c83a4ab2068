//! What is kept of one target's configuration.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::states::State;
use crate::management::lifecycle::sha256_hex;
use crate::management::request::FieldError;
use crate::model::DeviceId;

/// Whose configuration it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// The gateway itself.
    Gateway,
    /// A device.
    Device(DeviceId),
}

impl Target {
    /// Key of its record.
    pub fn key(&self) -> String {
        match self {
            Target::Gateway => "gateway".to_owned(),
            Target::Device(id) => format!("device/{id}"),
        }
    }

    /// Reads a key.
    pub fn parse(key: &str) -> Option<Self> {
        match key.strip_prefix("device/") {
            Some(id) => Some(Target::Device(DeviceId::new(id).ok()?)),
            None => (key == "gateway").then_some(Target::Gateway),
        }
    }

    /// Topic of the reported message, relative to the root.
    pub fn topic(&self) -> String {
        match self {
            Target::Gateway => "config/reported".to_owned(),
            Target::Device(id) => format!("devices/{id}/config/reported"),
        }
    }

    /// The device, if it is one.
    pub fn device(&self) -> Option<&DeviceId> {
        match self {
            Target::Gateway => None,
            Target::Device(id) => Some(id),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Gateway => f.write_str("gateway"),
            Target::Device(id) => write!(f, "devices/{id}"),
        }
    }
}

/// One version of a configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Version {
    /// Its number; 0 is the files alone.
    pub version: u64,
    /// The overlay.
    pub settings: Json,
    /// How long values may take to arrive, milliseconds.
    pub within_ms: u64,
    /// Who asked.
    pub by: String,
    /// When, milliseconds since 1970.
    pub at_ms: i64,
    /// Words for the history.
    #[serde(default)]
    pub comment: String,
    /// How it ended: `applied` or `rolled-back`; empty while it is in work.
    #[serde(default)]
    pub result: String,
}

/// Proof takes at most this long when the document does not say.
pub(super) const USUAL_PROOF_MS: u64 = 30_000;

impl Version {
    /// The files alone.
    pub fn files() -> Self {
        Self {
            version: 0,
            settings: Json::Object(serde_json::Map::new()),
            within_ms: USUAL_PROOF_MS,
            by: "configuration".to_owned(),
            at_ms: 0,
            comment: String::new(),
            result: String::new(),
        }
    }

    /// SHA-256 of the settings, hexadecimal.
    pub fn digest(&self) -> String {
        digest(&self.settings)
    }
}

/// SHA-256 of the settings: object keys are sorted, so the order in which a client writes them does not count.
pub(super) fn digest(settings: &Json) -> String {
    sha256_hex(settings.to_string().as_bytes())
}

/// The configuration job of one target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Where it is.
    pub state: State,
    /// Since when, milliseconds since 1970.
    pub since_ms: i64,
    /// The last proven version.
    pub in_force: Version,
    /// The greatest version ever accepted.
    pub highest: u64,
    /// The version in work.
    #[serde(default)]
    pub candidate: Option<Version>,
    /// The version that comes next.
    #[serde(default)]
    pub queued: Option<Version>,
    /// How the last desired version ended: `applied`, `rejected`, `rolled-back`.
    #[serde(default)]
    pub result: String,
    /// Which one that was.
    #[serde(default)]
    pub result_version: u64,
    /// Why.
    #[serde(default)]
    pub errors: Vec<FieldError>,
    /// Digest of the document that was rejected last, so that a retained one is not rejected again and again.
    #[serde(default)]
    pub rejected: String,
    /// Points that were not good before the change: no version is blamed for them.
    #[serde(default)]
    pub excused: Vec<String>,
}

impl Job {
    /// A target of which only the files speak.
    pub fn new(now_ms: i64) -> Self {
        Self {
            state: State::Settled,
            since_ms: now_ms,
            in_force: Version::files(),
            highest: 0,
            candidate: None,
            queued: None,
            result: String::new(),
            result_version: 0,
            errors: Vec::new(),
            rejected: String::new(),
            excused: Vec::new(),
        }
    }

    /// The version that the target shall run with in this state.
    pub fn running(&self) -> &Version {
        match (self.state, &self.candidate) {
            (State::Applying | State::Proving, Some(candidate)) => candidate,
            _ => &self.in_force,
        }
    }
}
