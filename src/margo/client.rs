//! The running client: one task that owns everything, and at most one request to the fleet manager at a time.
//!
//! [`Client::run`] loops: take what happened (a request was answered, a job ended, the plant changed, time passed), make the
//! step durable, begin what follows. Order of requests: reports of devices, a poll that is due, statuses. After a failure
//! nothing is sent before the pause is over; in known downtime nothing is sent at all. A retired relationship stops all
//! requests until the identity changes or the client is started again; a client that left sends none either ([`LeaveFile`]).
//!
//! **Limits.** One request at a time, eight jobs, one poll per interval with at most 10,000 single fetches.

mod answers;
mod engine;
mod errand;
mod identity;
mod leave;
mod manifests;
mod relation;
mod run;
mod status;
mod status_files;
#[cfg(test)]
mod tests;

pub use engine::{Client, ClientError, Parts};
pub use identity::{IdentityDesk, SharedMaterial};
pub use leave::{LeaveFile, Leaving, Wish};
pub use run::{RunError, run};
pub use status::{ClientStatus, DeploymentLine};
pub use status_files::StatusFiles;
