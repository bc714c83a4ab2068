//! Commands: writes to points of devices.
//!
//! The way of a command: checked by the [`CommandDesk`], stored in the [`CommandLedger`] (then the sender's broker may
//! forget it), queued for its device, marked as started, written point by point with read-back, its result stored, then
//! answered through the [`AnswerSink`]. A crash between any two steps leaves an entry that says how far it came.

mod check;
mod desk;
mod ledger;
mod result;
mod service;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

pub use desk::{CommandDesk, Decision, Job, Restored};
pub use ledger::{CommandKey, CommandLedger, LedgerEntry, LedgerError, Progress};
pub use service::{CommandService, ServiceClosed};

use crate::contract::v1;
use crate::model::{DeviceId, PointId, Value};

/// Bounds of commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLimits {
    /// Commands that may wait for one device; more are answered `busy`.
    pub queue: usize,
    /// Commands per second that one device takes; a burst of as many is taken at once.
    pub per_second: u32,
    /// Longest time from start to answer of one command.
    pub timeout: Duration,
}

impl Default for CommandLimits {
    fn default() -> Self {
        Self { queue: 100, per_second: 10, timeout: Duration::from_secs(30) }
    }
}

/// A command that arrived.
#[derive(Debug, Clone, PartialEq)]
pub struct CommandRequest {
    /// The device in the topic.
    pub device: DeviceId,
    /// What is asked.
    pub command: v1::Command,
    /// Who asks, such as `mqtt:local:operator1`.
    pub actor: String,
    /// Why he may not, if so.
    pub forbidden: Option<String>,
}

/// The final answer to one arrival of a command.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// For `devices/{d}/command/result`.
    pub result: v1::CommandResult,
    /// For the audit log; `None` for repetitions and for refusals in a flood.
    pub audit: Option<v1::AuditEntry>,
}

/// Why a write was not done, or is not known to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteFailure {
    /// Stable code, such as `timeout`.
    pub code: String,
    /// For people.
    pub message: String,
    /// Whether the device may hold the new value all the same.
    pub may_have_happened: bool,
}

/// Writes one point. The app gives one that knows scaling and drivers. Points go by name, since their numbers change when
/// the configuration does.
pub trait DeviceWriter: Send + Sync + 'static {
    /// Whether a value in engineering units can be written to a point at all (its type, its raw range), without
    /// writing. The error says why not.
    fn check(&self, device: &DeviceId, point: &PointId, value: &Value) -> Result<(), String>;

    /// Writes a value in engineering units and returns what was read back, if anything was.
    fn write(
        &self,
        device: &DeviceId,
        point: &PointId,
        value: Value,
    ) -> impl Future<Output = Result<Option<Value>, WriteFailure>> + Send;
}

/// Takes answers: they must be durable (or given up by name) when the future is done.
pub trait AnswerSink: Send + Sync + 'static {
    /// Stores answers in their order. An error is logged here; the answers are given again after a restart.
    fn answer(&self, answers: Vec<Answer>) -> impl Future<Output = Result<(), String>> + Send;
}

/// Called once when a command is stored or answered for good: its carrier may forget it.
pub struct Receipt(Option<Box<dyn FnOnce() + Send>>);

impl Receipt {
    /// Calls `stored` when the time has come; dropping the receipt calls nothing.
    pub fn new(stored: impl FnOnce() + Send + 'static) -> Self {
        Self(Some(Box::new(stored)))
    }

    /// For carriers that need none.
    pub fn none() -> Self {
        Self(None)
    }

    pub(in crate::management) fn accept(self) {
        if let Some(stored) = self.0 {
            stored();
        }
    }
}

impl fmt::Debug for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Receipt")
    }
}

/// All devices that take commands, as the configuration has them.
pub type Devices = std::collections::BTreeMap<DeviceId, Arc<crate::model::Device>>;

#[cfg(test)]
mod tests;
