//! The table of a configuration job: one per device, one for the gateway.

use crate::management::table::{Row, Table, words};

words!(
    /// Where the configuration of a target is.
    State {
        /// Nothing is in work.
        Settled = "settled",
        /// A version waits until the device runs.
        Waiting = "waiting",
        /// A version is being applied.
        Applying = "applying",
        /// It is applied; values are awaited.
        Proving = "proving",
        /// The last proven version is being applied again.
        RollingBack = "rolling-back",
    }
);

words!(
    /// What can happen to it.
    Event {
        /// A valid, newer version came.
        Desired = "desired",
        /// The hardware is new: apply and prove again what is in force.
        Reapply = "reapply",
        /// The device is polled now.
        Runs = "runs",
        /// The device is not polled any more.
        Stops = "stops",
        /// The drivers took the settings.
        Applied = "applied",
        /// They refused.
        ApplyFailed = "apply-failed",
        /// Values arrived as demanded.
        Proven = "proven",
        /// They did not, in time.
        ProofFailed = "proof-failed",
    }
);

words!(
    /// Conditions.
    Guard {
        /// The target is polled (the gateway always is).
        Running = "a running device",
    }
);

words!(
    /// What follows.
    Action {
        /// Make the version the candidate.
        Take = "take",
        /// Keep the version for later; a newer one replaces it.
        Queue = "queue",
        /// Run with the settings of the state.
        Apply = "apply",
        /// Note which points are not good now: they are excused.
        Baseline = "baseline",
        /// The candidate is in force and enters the history.
        Commit = "commit",
        /// The candidate enters the history as rolled back.
        GiveUp = "give-up",
        /// Raise an alarm.
        Alarm = "alarm",
        /// Begin with the version that waits, if one does.
        Next = "next",
    }
);

use Action as A;
use Event as E;
use State as S;

type R = Row<State, Event, Guard, Action>;

const fn row(from: S, event: E, to: S, effects: &'static [A]) -> R {
    Row { from, event, guard: None, to, effects }
}

const fn runs(from: S, event: E, to: S, effects: &'static [A]) -> R {
    Row { from, event, guard: Some(Guard::Running), to, effects }
}

/// The life of a version.
pub static TABLE: Table<State, Event, Guard, Action> = Table {
    name: "configuration",
    initial: &[S::Settled],
    terminal: &[],
    rows: &[
        runs(S::Settled, E::Desired, S::Applying, &[A::Take, A::Baseline, A::Apply]),
        row(S::Settled, E::Desired, S::Waiting, &[A::Take]),
        row(S::Settled, E::Reapply, S::Applying, &[A::Take, A::Baseline, A::Apply]),
        runs(S::Waiting, E::Desired, S::Applying, &[A::Take, A::Baseline, A::Apply]),
        row(S::Waiting, E::Desired, S::Waiting, &[A::Take]),
        row(S::Waiting, E::Runs, S::Applying, &[A::Baseline, A::Apply]),
        row(S::Waiting, E::Reapply, S::Applying, &[A::Baseline, A::Apply]),
        row(S::Applying, E::Desired, S::Applying, &[A::Queue]),
        row(S::Applying, E::Applied, S::Proving, &[]),
        row(S::Applying, E::ApplyFailed, S::RollingBack, &[A::GiveUp, A::Apply, A::Alarm]),
        row(S::Applying, E::Stops, S::Waiting, &[]),
        row(S::Applying, E::Reapply, S::Applying, &[A::Baseline, A::Apply]),
        row(S::Proving, E::Desired, S::Proving, &[A::Queue]),
        row(S::Proving, E::Proven, S::Settled, &[A::Commit, A::Next]),
        row(S::Proving, E::ProofFailed, S::RollingBack, &[A::GiveUp, A::Apply, A::Alarm]),
        row(S::Proving, E::Stops, S::Waiting, &[]),
        row(S::Proving, E::Reapply, S::Applying, &[A::Baseline, A::Apply]),
        row(S::RollingBack, E::Desired, S::RollingBack, &[A::Queue]),
        row(S::RollingBack, E::Reapply, S::Applying, &[A::Take, A::Baseline, A::Apply]),
        row(S::RollingBack, E::Applied, S::Settled, &[A::Next]),
        row(S::RollingBack, E::ApplyFailed, S::RollingBack, &[A::Alarm]),
        row(S::RollingBack, E::Stops, S::Settled, &[A::Next]),
    ],
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sound() {
        assert_eq!(TABLE.problems(), Vec::<String>::new());
    }
}
