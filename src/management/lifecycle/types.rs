//! What goes into the registry and comes out of it.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::management::desired::Profile;
use crate::model::DeviceId;

/// Who is trusted without a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Approve devices that a file declares: whoever may write the files may also approve. On by default.
    pub auto_approve_declared: bool,
    /// Approve others that fit one of these.
    pub rules: Vec<Approval>,
    /// What becomes of stored values when a device is decommissioned.
    pub stored: Stored,
    /// With [`Stored::AfterDelivery`]: how long delivery is waited for, in milliseconds.
    pub deliver_within_ms: i64,
    /// Most devices in the registry.
    pub max_devices: usize,
    /// Most devices that nobody declared or approved yet.
    pub max_strangers: usize,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            auto_approve_declared: true,
            rules: Vec::new(),
            stored: Stored::AfterDelivery,
            deliver_within_ms: 7 * 86_400_000,
            max_devices: 10_000,
            max_strangers: 1_000,
        }
    }
}

/// What becomes of the values, events and results of a device that lie in the store when it is decommissioned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// They stay until they are delivered, and until their space is needed.
    Keep,
    /// They are erased when everyone who was promised them has them.
    AfterDelivery,
    /// They are erased at once.
    Now,
}

/// How far the erasing of a device came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Erasure {
    /// All is removed that shall be; in words for the certificate.
    Done(Vec<String>),
    /// Stored values wait for these consumers; all else is removed.
    Waits(Vec<String>),
}

/// Patterns (`*`, `?`) that a device must fit, all of them, to be approved by the policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approval {
    /// Its id.
    pub device: String,
    /// Its protocol.
    pub protocol: String,
    /// What it says its vendor is.
    pub vendor: String,
    /// What it says its model is.
    pub model: String,
}

/// A device as the files declare it.
#[derive(Debug, Clone)]
pub struct Declaration {
    /// Its id.
    pub device: DeviceId,
    /// Such as `modbus-tcp`.
    pub protocol: String,
    /// Without secrets.
    pub address: String,
    /// Margo tier, 1 or 2.
    pub tier: u8,
    /// The fingerprint that the file demands.
    pub fingerprint: Option<String>,
    /// Whether it is asked who it is after each connection; if not, its address is its identity.
    pub identifies: bool,
    /// What may be managed here: `config`, `command`, `time`, `firmware`. Everything for tier 2.
    pub delegated: BTreeSet<&'static str>,
    /// What the files say of its points and settings.
    pub profile: Arc<Profile>,
}

/// How a device shall run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Polled, values trusted.
    Trusted,
    /// Polled; values are bad with reason `identity-changed`, writes are refused.
    Untrusted,
}

/// One device that shall run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// How.
    pub mode: Mode,
    /// Set when no file declares it: type and address to build it from.
    pub undeclared: Option<(String, String)>,
}

/// How something that was asked of the world ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Credentials were made: the chain in PEM that answers the device's request, or nothing when it keeps what it has.
    Issued(String),
    /// They could not be made.
    IssueFailed(String),
    /// Credentials were taken back.
    Revoked,
    /// What was removed, in words for the certificate.
    Erased(Vec<String>),
    /// Stored values are erased when these consumers have them; it is tried again.
    EraseWaits(Vec<String>),
    /// Something could not be removed; it is tried again.
    EraseFailed(String),
    /// The configuration of new hardware works.
    Proven,
    /// It does not.
    ProofFailed(String),
}

/// What other parts of management have to do after a transition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Follow {
    /// Apply and prove the device's configuration again.
    Reapply(DeviceId),
    /// The device left a transfer.
    VoidTransfer(DeviceId),
    /// The device is gone: forget its configuration and clock.
    Gone(DeviceId),
}

/// What a request says besides its event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Details {
    /// Words for the audit log.
    pub reason: String,
    /// The only fingerprint to pin.
    pub fingerprint: Option<String>,
    /// Type of a device that no file declares.
    pub profile: String,
    /// Decommission: erase stored values at once, whatever the policy says.
    pub erase_data: bool,
}
