//! One update of one target, from the offer to its end: what is durable.

use serde::{Deserialize, Serialize};

use super::Stage;

/// Where the bytes come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// `http://`, `https://` or `file://`.
    Url(String),
    /// Chunks that somebody sends, over MQTT or the CLI.
    Upload,
}

/// Who said yes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Approval {
    /// A person or client with the right.
    Operator(String),
    /// The maintenance window opened.
    Window,
}

/// What is wished: content of `firmware/desired`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offer {
    /// Correlation id: an offer that arrives twice is answered twice and done once.
    pub id: String,
    /// The signed manifest, as text.
    pub manifest: String,
    /// Where the bytes come from.
    pub source: Source,
    /// Whether an older version is wanted.
    #[serde(default)]
    pub allow_downgrade: bool,
    /// Whether the maintenance window approves, instead of a person.
    #[serde(default)]
    pub in_window: bool,
}

/// A job as it is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// The target's id: `gateway` or a device's.
    pub target: String,
    /// Where it stands.
    pub stage: Stage,
    /// What was wished.
    pub offer: Offer,
    /// Version of the artifact.
    pub version: String,
    /// Size of the artifact in bytes.
    pub size: u64,
    /// SHA-256 of the artifact.
    pub sha256: String,
    /// Which key signed.
    pub signer: String,
    /// Version that ran when it was offered.
    pub from_version: Option<String>,
    /// Who said yes.
    pub approval: Option<Approval>,
    /// Bytes on the gateway's disk, synced.
    pub received: u64,
    /// Bytes on the target, as far as it said so.
    pub delivered: u64,
    /// How often the step under way failed and was tried again.
    pub attempts: u32,
    /// Stable code of the reason, when it was refused, failed or rolled back.
    pub code: Option<String>,
    /// The reason, for people.
    pub reason: Option<String>,
    /// When the stage was entered, Unix milliseconds.
    pub since_ms: i64,
}

impl Job {
    /// Share of the transfer that is done, 0.0 to 1.0: first to the gateway, then to the target.
    pub fn progress(&self) -> f64 {
        let share = |bytes: u64| if self.size == 0 { 1.0 } else { (bytes as f64 / self.size as f64).min(1.0) };
        match self.stage {
            Stage::Installing => share(self.delivered),
            Stage::Verified | Stage::Proving | Stage::Done | Stage::RolledBack => 1.0,
            _ => share(self.received),
        }
    }
}
