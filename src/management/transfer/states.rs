//! The table of a transfer, on both sides.

use crate::management::table::{Row, Table, words};

words!(
    /// Where a transfer is.
    State {
        /// Here: exported; the devices are still ours.
        Offered = "offered",
        /// Here: taken back.
        Cancelled = "cancelled",
        /// Here: the receipt came, the devices are the other side's.
        Released = "released",
        /// There: imported; the devices are still the other side's.
        Received = "received",
        /// There: the release came, the devices are ours.
        Activated = "activated",
        /// There: given up before the release.
        Abandoned = "abandoned",
    }
);

words!(
    /// What can happen to it.
    Event {
        /// The other side's receipt.
        Receipt = "receipt",
        /// An administrator takes it back, or does not want it.
        Cancel = "cancel",
        /// A device of it went another way.
        Void = "void",
        /// The earlier owner's release.
        Release = "release",
        /// The same export again.
        Export = "export",
    }
);

words!(
    /// Conditions.
    Guard {
        /// The document names the export that was made.
        SameExport = "the digest of the export",
    }
);

words!(
    /// What follows.
    Action {
        /// The devices are not ours any more.
        HandOver = "hand-over",
        /// The devices stay in service here.
        TakeBack = "take-back",
        /// The devices are ours now.
        TakeOver = "take-over",
        /// The devices are not wanted.
        GiveUp = "give-up",
        /// Answer with a signed receipt.
        SignReceipt = "sign-receipt",
        /// Answer with a signed release.
        SignRelease = "sign-release",
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

const fn when(from: S, event: E, to: S, effects: &'static [A]) -> R {
    Row { from, event, guard: Some(G::SameExport), to, effects }
}

/// A transfer. The first three states are the giving side's, the others the taking side's.
pub static TABLE: Table<State, Event, Guard, Action> = Table {
    name: "transfer",
    initial: &[S::Offered, S::Received],
    terminal: &[S::Cancelled, S::Released, S::Activated, S::Abandoned],
    rows: &[
        when(S::Offered, E::Receipt, S::Released, &[A::HandOver, A::SignRelease]),
        row(S::Offered, E::Cancel, S::Cancelled, &[A::TakeBack]),
        row(S::Offered, E::Void, S::Cancelled, &[A::TakeBack]),
        when(S::Released, E::Receipt, S::Released, &[A::SignRelease]),
        when(S::Received, E::Export, S::Received, &[A::SignReceipt]),
        when(S::Received, E::Release, S::Activated, &[A::TakeOver]),
        row(S::Received, E::Cancel, S::Abandoned, &[A::GiveUp]),
        row(S::Received, E::Void, S::Abandoned, &[A::GiveUp]),
        when(S::Activated, E::Release, S::Activated, &[]),
        when(S::Activated, E::Export, S::Activated, &[A::SignReceipt]),
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
