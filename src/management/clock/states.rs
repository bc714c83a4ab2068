//! The table of a device's clock.

use crate::management::table::{Row, Table, words};

words!(
    /// What is known of the clock.
    State {
        /// Not read yet, or it cannot be read.
        Unknown = "unknown",
        /// Off by no more than `warn`.
        InStep = "in-step",
        /// Off by more than `warn`.
        Drifting = "drifting",
        /// Off by more than `alarm`.
        Wrong = "wrong",
        /// Being set.
        Setting = "setting",
    }
);

words!(
    /// What can happen to it.
    Event {
        /// Read: off by no more than `warn`.
        Good = "read-in-step",
        /// Read: off by more than `warn`.
        Off = "read-drifting",
        /// Read: off by more than `alarm`.
        FarOff = "read-wrong",
        /// It could not be read.
        Unreadable = "unreadable",
        /// Somebody asks to set it.
        Set = "set",
        /// It was written.
        SetDone = "set-done",
        /// It could not be written.
        SetFailed = "set-failed",
    }
);

words!(
    /// Conditions.
    Guard {
        /// The gateway's own clock is under discipline.
        Trusted = "a synchronised gateway clock",
        /// The settings say `set`, the gateway's clock is trusted, and it was not set in this interval.
        MaySet = "leave to set by itself",
    }
);

words!(
    /// What follows.
    Action {
        /// Write the gateway's time into the device.
        Write = "write",
        /// Read it again.
        Read = "read",
        /// Raise an alarm.
        Alarm = "alarm",
    }
);

use Action as A;
use Event as E;
use Guard as G;
use State as S;

type R = Row<State, Event, Guard, Action>;

const fn row(from: S, event: E, to: S, effects: &'static [A]) -> R {
    Row { from, event, guard: None, to, effects }
}

const fn when(from: S, event: E, guard: G, to: S, effects: &'static [A]) -> R {
    Row { from, event, guard: Some(guard), to, effects }
}

/// What is known of a clock, and how it is put right.
pub static TABLE: Table<State, Event, Guard, Action> = Table {
    name: "clock",
    initial: &[S::Unknown],
    terminal: &[],
    rows: &[
        row(S::Unknown, E::Good, S::InStep, &[]),
        when(S::Unknown, E::Off, G::MaySet, S::Setting, &[A::Write]),
        row(S::Unknown, E::Off, S::Drifting, &[]),
        when(S::Unknown, E::FarOff, G::MaySet, S::Setting, &[A::Alarm, A::Write]),
        row(S::Unknown, E::FarOff, S::Wrong, &[A::Alarm]),
        row(S::Unknown, E::Unreadable, S::Unknown, &[]),
        when(S::Unknown, E::Set, G::Trusted, S::Setting, &[A::Write]),
        row(S::InStep, E::Good, S::InStep, &[]),
        when(S::InStep, E::Off, G::MaySet, S::Setting, &[A::Write]),
        row(S::InStep, E::Off, S::Drifting, &[]),
        when(S::InStep, E::FarOff, G::MaySet, S::Setting, &[A::Alarm, A::Write]),
        row(S::InStep, E::FarOff, S::Wrong, &[A::Alarm]),
        row(S::InStep, E::Unreadable, S::Unknown, &[]),
        when(S::InStep, E::Set, G::Trusted, S::Setting, &[A::Write]),
        row(S::Drifting, E::Good, S::InStep, &[]),
        when(S::Drifting, E::Off, G::MaySet, S::Setting, &[A::Write]),
        row(S::Drifting, E::Off, S::Drifting, &[]),
        when(S::Drifting, E::FarOff, G::MaySet, S::Setting, &[A::Alarm, A::Write]),
        row(S::Drifting, E::FarOff, S::Wrong, &[A::Alarm]),
        row(S::Drifting, E::Unreadable, S::Unknown, &[]),
        when(S::Drifting, E::Set, G::Trusted, S::Setting, &[A::Write]),
        row(S::Wrong, E::Good, S::InStep, &[]),
        row(S::Wrong, E::Off, S::Drifting, &[]),
        when(S::Wrong, E::FarOff, G::MaySet, S::Setting, &[A::Write]),
        row(S::Wrong, E::FarOff, S::Wrong, &[]),
        row(S::Wrong, E::Unreadable, S::Unknown, &[]),
        when(S::Wrong, E::Set, G::Trusted, S::Setting, &[A::Write]),
        row(S::Setting, E::SetDone, S::Unknown, &[A::Read]),
        row(S::Setting, E::SetFailed, S::Wrong, &[A::Alarm]),
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
