//! From deployments to devices and back: a state machine per deployment, device and component.
//!
//! **Promise.**
//! - Every step is made durable before it has an effect. A process that is killed between any two of them comes back and
//!   goes on: an order that was given is given again under the same key, and the plant does it at most once per key.
//! - Component states are reported as they are, each change in order, through the durable [`super::outbox`]; a change and
//!   its report are one commit.
//! - A device has at most one job at a time; devices do not wait for each other. Components of one deployment follow each
//!   other in their order on each device.
//! - A component whose effect did not change is not applied again by an update. One that an update leaves out is undone,
//!   and a removal undoes all, back to what was there before the first revision.
//! - `adoptedManifestVersion` is kept per device: the newest manifest that carries the revision which this device has begun.
//!   A child that cannot be reached keeps its own while its siblings move on.
//! - Two deployments cannot hold the same configuration, firmware or point of one device: the later one fails and says whose.
//!
//! **Form.** [`Reconciler`] is Sans-IO: it takes what happened and gives a [`Step`], changes to make durable and then jobs to
//! carry out. After a failed commit it is thrown away and loaded again, as after a crash.
//!
//! **Limits.** Eight jobs at a time. Failures that may pass (a device that does not answer, a registry that is down) are
//! tried again after 5 s to 10 min; a failed health gate is not: the fleet manager decides.

mod advance;
mod core;
mod place;
mod record;
mod report;
mod settle;
mod tell;
#[cfg(test)]
pub(crate) mod tests;

pub use core::{Job, JobId, Outcome, Reconciler, Step};
pub use place::{DeviceView, Scope, Wildcard};
pub use record::{Begun, Part, Placement, Ready, ReadyPart, Record};
