//! What the client needs of the gateway that it speaks for. The app implements [`Plant`] on device management.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::component::Work;
use crate::model::DeviceId;

/// What a device can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Functions {
    /// A configuration in the form of `config/desired`.
    pub configuration: bool,
    /// Values written to its points.
    pub recipe: bool,
    /// Firmware.
    pub firmware: bool,
}

/// Who a device is; what it does not reveal is `None`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Identity {
    /// Vendor.
    pub vendor: Option<String>,
    /// Model.
    pub model: Option<String>,
    /// Serial number.
    pub serial: Option<String>,
}

/// One approved device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Child {
    /// Id on this gateway.
    pub id: DeviceId,
    /// Who it is.
    pub identity: Identity,
    /// Names the piece of hardware, so that another one in its place is recognised; empty when nobody knows.
    pub hardware: String,
    /// Protocol, such as `modbus-tcp`.
    pub protocol: String,
    /// Tier of its management.
    pub tier: u8,
    /// Firmware that it says it runs.
    pub firmware: Option<String>,
    /// What it can take; what it may take is the configuration's to say.
    pub functions: Functions,
    /// Whether it answers now.
    pub reachable: bool,
    /// Whether it does not answer only because it has not had the time to yet.
    pub connecting: bool,
    /// Compose projects ([`super::component::compose::Project::owner`]) of which the containers are gone.
    pub lost: BTreeSet<String>,
}

/// The gateway and its approved devices.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Inventory {
    /// The gateway itself.
    pub gateway: Identity,
    /// What the gateway itself can take.
    pub functions: Functions,
    /// Compose projects of the gateway itself of which the containers are gone.
    pub lost: BTreeSet<String>,
    /// Sorted by id.
    pub children: Vec<Child>,
}

/// What was in force before something was deployed: what its removal or its failure goes back to. Opaque to the client but for `values`,
/// of which the oldest are kept over updates.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Before {
    /// Values of points before they were written.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub values: BTreeMap<String, Value>,
    /// The plant's own words for a configuration or a firmware, at most 16 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// One thing to do. The plant does it at most once per `key`, over restarts: asked again, it answers again.
#[derive(Debug, Clone, PartialEq)]
pub struct Order {
    /// 1 to 64 printable characters; a correlation id.
    pub key: String,
    /// On whom; `None` is the gateway itself.
    pub device: Option<DeviceId>,
    /// For the audit log: `margo:<deployment id>`.
    pub actor: String,
    /// What.
    pub act: Act,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Act {
    /// Put in force.
    Apply {
        /// What.
        work: Work,
        /// What is in force now, for going back at once when it fails half way.
        back: Before,
    },
    /// Go back.
    Undo {
        /// What was put in force.
        work: Work,
        /// What was there before.
        before: Before,
    },
}

/// The plant could not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct Refusal {
    /// Stable name, such as `health-gate`, `out-of-range`, `interrupted`.
    pub code: String,
    /// For people: what went wrong, and in which state the device is now.
    pub message: String,
    /// The device did not answer: it is tried again when it does.
    pub unreachable: bool,
    /// It may pass by itself: it is tried again, after a while.
    #[serde(default)]
    pub passing: bool,
    /// The device is as it was before the order: there is nothing to undo.
    #[serde(default)]
    pub untouched: bool,
}

impl Refusal {
    /// A refusal that stays one.
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into(), unreachable: false, passing: false, untouched: false }
    }
}

/// Something that a person should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alert {
    /// Stable name, such as `margo-rollback-refused`.
    pub code: &'static str,
    /// Whether it is a security event.
    pub security: bool,
    /// For people.
    pub text: String,
}

/// The gateway, as the client needs it.
pub trait Plant: Send + Sync + 'static {
    /// Who is there now; `None` when nobody can say any more, since the gateway stops: nothing is changed for that.
    fn inventory(&self) -> impl Future<Output = Option<Inventory>> + Send;

    /// Ends when the inventory may have changed since the last call of [`Plant::inventory`].
    fn changed(&self) -> impl Future<Output = ()> + Send;

    /// What is in force now of what `work` would change. Changes nothing.
    ///
    /// # Errors
    /// [`Refusal`], also when the device would refuse `work`.
    fn before(&self, device: Option<&DeviceId>, work: &Work) -> impl Future<Output = Result<Before, Refusal>> + Send;

    /// Carries out an order, with the device's own proof that it worked. A failed one leaves the device as it was, or the
    /// refusal says how it is.
    ///
    /// # Errors
    /// [`Refusal`].
    fn carry_out(&self, order: Order) -> impl Future<Output = Result<(), Refusal>> + Send;

    /// Tells people.
    fn alert(&self, alert: Alert) -> impl Future<Output = ()> + Send;
}
