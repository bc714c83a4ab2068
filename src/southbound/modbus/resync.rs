//! Which units of an RTU link may still owe a reply, and how they are trusted again.
//!
//! RTU frames carry no transaction id: a reply that comes after its timeout looks exactly like the reply to a later
//! request of the same shape. So a unit that did not answer in time is *held*: it is left alone for a guard time, while the
//! other units of the link go on (their replies carry another address). Then it must answer a question that no read can be
//! confused with: FC 8 with a random number, or the refusal of FC 8. A slave answers in order, so that its answer proves
//! that nothing older is on its way; the guard time is for servers and converters that do not. A unit that ignores FC 8 is
//! recognised, and has a longer guard time instead of the question.
//!
//! Sans-IO: times are monotonic from any common origin.

use std::collections::HashMap;
use std::time::Duration;

/// What must be done before a request to a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    /// Nothing.
    Go,
    /// The echo question.
    Echo,
    /// Leave the unit alone until this time.
    Hold(Duration),
}

#[derive(Debug, Clone, Copy, Default)]
struct Unit {
    /// A reply may be outstanding.
    suspect: bool,
    /// When the request was given up whose reply may be outstanding.
    since: Duration,
    held_until: Duration,
    /// The echo was asked since the unit became suspect, without an answer.
    echo_failed: bool,
    /// The unit is known to ignore the echo question.
    ignores_echo: bool,
}

/// State of all units of a link.
#[derive(Debug)]
pub struct Resync {
    echo: bool,
    guard: Duration,
    /// The latest that a reply ever came after its request was given up.
    worst: Duration,
    units: HashMap<u8, Unit>,
}

/// A unit that cannot prove that it owes nothing is held at least so long.
const WITHOUT_PROOF: Duration = Duration::from_secs(3);
/// No unit is held longer.
const LONGEST: Duration = Duration::from_secs(30);

impl Resync {
    /// `echo`: whether to ask the question at all; `guard`: how long a unit is held after a timeout.
    pub fn new(echo: bool, guard: Duration) -> Self {
        Self { echo, guard, worst: Duration::ZERO, units: HashMap::new() }
    }

    /// What must be done before a request to `unit` at `now`.
    pub fn before(&self, unit: u8, now: Duration) -> Before {
        match self.units.get(&unit) {
            Some(state) if state.suspect && now < state.held_until => Before::Hold(state.held_until),
            Some(state) if state.suspect && self.asks(state) && !state.echo_failed => Before::Echo,
            _ => Before::Go,
        }
    }

    /// How long `unit` must still be left alone.
    pub fn held(&self, unit: u8, now: Duration) -> Option<Duration> {
        match self.before(unit, now) {
            Before::Hold(until) => Some(until.saturating_sub(now)),
            Before::Go | Before::Echo => None,
        }
    }

    /// Whether a reply of `unit` may be one to an earlier request.
    pub fn is_suspect(&self, unit: u8) -> bool {
        self.units.get(&unit).is_some_and(|state| state.suspect)
    }

    /// A request to `unit` was sent and has no valid reply; `owed` when nothing came that could have been it.
    pub fn failed(&mut self, unit: u8, now: Duration, owed: bool) {
        let mut state = self.units.get(&unit).copied().unwrap_or_default();
        let hold = if self.asks(&state) { self.guard } else { self.guard.max(WITHOUT_PROOF) };
        state.suspect = true;
        state.since = now;
        state.held_until = if owed { now + self.at_least_worst(hold) } else { now };
        // A plain request was tried after an unanswered echo and failed too: next time ask for the echo again.
        state.echo_failed = false;
        self.units.insert(unit, state);
    }

    /// The echo question to `unit` was not answered.
    pub fn echo_failed(&mut self, unit: u8, now: Duration) {
        let hold = self.at_least_worst(self.guard.max(WITHOUT_PROOF));
        let state = self.units.entry(unit).or_default();
        state.suspect = true;
        state.echo_failed = true;
        state.held_until = now + hold;
    }

    /// The unit answered the echo question: nothing older is on its way.
    pub fn echo_answered(&mut self, unit: u8) {
        self.units.remove(&unit);
    }

    /// A request to `unit` has its valid reply.
    pub fn answered(&mut self, unit: u8) {
        if let Some(state) = self.units.get_mut(&unit)
            && state.suspect
        {
            state.ignores_echo |= state.echo_failed;
            state.echo_failed = false;
            state.suspect = false;
        }
    }

    /// A reply of `unit` to an earlier request was seen to arrive at `now`.
    pub fn late(&mut self, unit: u8, now: Duration) {
        if let Some(state) = self.units.get(&unit).filter(|state| state.suspect) {
            self.worst = self.worst.max(now.saturating_sub(state.since));
        }
    }

    fn asks(&self, state: &Unit) -> bool {
        self.echo && !state.ignores_echo
    }

    fn at_least_worst(&self, hold: Duration) -> Duration {
        hold.max(self.worst * 2).min(LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEC: Duration = Duration::from_secs(1);

    #[test]
    fn after_a_timeout_a_unit_is_held_then_asked_and_others_are_free() {
        let mut resync = Resync::new(true, SEC);
        assert_eq!(resync.before(1, SEC), Before::Go);
        resync.failed(1, SEC, true);
        assert_eq!(resync.before(1, SEC), Before::Hold(2 * SEC));
        assert_eq!(resync.before(2, SEC), Before::Go);
        assert_eq!(resync.before(1, 2 * SEC), Before::Echo);
        resync.echo_answered(1);
        assert_eq!(resync.before(1, 2 * SEC), Before::Go);
    }

    #[test]
    fn a_broken_reply_needs_the_question_but_no_hold() {
        let mut resync = Resync::new(true, SEC);
        resync.failed(1, SEC, false);
        assert_eq!(resync.before(1, SEC), Before::Echo);
    }

    #[test]
    fn a_unit_that_ignores_the_echo_is_held_longer_and_remembered() {
        let mut resync = Resync::new(true, SEC);
        resync.failed(1, SEC, true);
        resync.echo_failed(1, 2 * SEC);
        assert_eq!(resync.before(1, 3 * SEC), Before::Hold(5 * SEC));
        assert_eq!(resync.before(1, 5 * SEC), Before::Go);
        resync.answered(1);
        assert!(!resync.is_suspect(1));
        resync.failed(1, 10 * SEC, true);
        assert_eq!(resync.before(1, 12 * SEC), Before::Hold(13 * SEC));
        assert_eq!(resync.before(1, 13 * SEC), Before::Go, "no second echo question to a unit that ignores it");
    }

    #[test]
    fn a_dead_unit_is_asked_for_the_echo_again() {
        let mut resync = Resync::new(true, SEC);
        resync.failed(1, SEC, true);
        resync.echo_failed(1, 2 * SEC);
        resync.failed(1, 5 * SEC, true);
        assert_eq!(resync.before(1, 6 * SEC), Before::Echo);
    }

    #[test]
    fn the_hold_grows_with_the_latest_reply_seen() {
        let mut resync = Resync::new(true, SEC);
        resync.failed(1, SEC, true);
        resync.late(1, 4 * SEC);
        resync.failed(1, 5 * SEC, true);
        assert_eq!(resync.before(1, 7 * SEC), Before::Hold(11 * SEC));
        resync.late(2, 100 * SEC);
        assert_eq!(resync.before(1, 11 * SEC), Before::Echo, "a reply that nobody owed teaches nothing");
    }
}
