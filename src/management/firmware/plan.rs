//! What to do next for a job. Pure: the same answer after a restart as before.

use super::{Job, Source, Stage, Window};
use crate::model::Stamp;

/// The next thing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing, until somebody offers, approves or sends a chunk.
    Nothing,
    /// Nothing, until the maintenance window opens.
    AwaitWindow,
    /// The maintenance window is open: approve.
    ApproveByWindow,
    /// Begin to fetch.
    Start,
    /// Fetch more.
    Fetch,
    /// All bytes are there: check them.
    Verify,
    /// Check once more and begin to install.
    Install,
    /// Put more of it in place.
    Deliver,
    /// Ask whether it is healthy.
    Prove,
}

/// Decides.
pub fn plan(job: &Job, window: Option<&Window>, now: Stamp) -> Action {
    match job.stage {
        Stage::Offered if !job.offer.in_window => Action::Nothing,
        Stage::Offered if window.is_some_and(|window| window.is_open(now)) => Action::ApproveByWindow,
        Stage::Offered => Action::AwaitWindow,
        Stage::Approved => Action::Start,
        Stage::Transferring if job.received >= job.size => Action::Verify,
        Stage::Transferring => match job.offer.source {
            Source::Url(_) => Action::Fetch,
            Source::Upload => Action::Nothing,
        },
        Stage::Verified => Action::Install,
        Stage::Installing => Action::Deliver,
        Stage::Proving => Action::Prove,
        Stage::Idle | Stage::Done | Stage::RolledBack | Stage::Failed | Stage::Refused => Action::Nothing,
    }
}
