//! Which units of an RTU link may still owe a reply, and how they are trusted again.
//!
//! RTU frames carry no transaction id: a reply that comes after its timeout looks exactly like the reply to a later
//! request of the same shape. So after every failure the unit is *suspect*: before it is read again it must answer a
//! question that no read can be confused with (FC 8 with a random number, or the refusal of FC 8). Slaves answer in order,
//! so that answer proves that nothing older is still on its way. A unit that ignores FC 8 is left alone for a long guard
//! time instead; the other units of the link go on meanwhile.
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
    Wait(Duration),
}

#[derive(Debug, Clone, Copy, Default)]
struct Unit {
    /// Since when a reply may be outstanding.
    suspect: Option<Duration>,
    /// The echo was asked since then, without an answer.
    echo_failed: bool,
    /// The unit is known to ignore the echo question.
    ignores_echo: bool,
}

/// State of all units of a link.
#[derive(Debug)]
pub struct Resync {
    echo: bool,
    guard: Duration,
    /// The latest that a reply ever came after its request.
    worst: Duration,
    units: HashMap<u8, Unit>,
}

/// Longest time that a unit without echo is left alone.
const LONGEST_GUARD: Duration = Duration::from_secs(30);

impl Resync {
    /// `guard`: how long a unit that ignores the echo question is left alone after a failure.
    pub fn new(echo: bool, guard: Duration) -> Self {
        Self { echo, guard, worst: Duration::ZERO, units: HashMap::new() }
    }

    /// What must be done before a request to `unit` at `now`.
    pub fn before(&self, unit: u8, now: Duration) -> Before {
        let Some(state) = self.units.get(&unit) else { return Before::Go };
        let Some(since) = state.suspect else { return Before::Go };
        if self.echo && !state.ignores_echo && !state.echo_failed {
            return Before::Echo;
        }
        let guard = self.guard.max(self.worst * 2).min(LONGEST_GUARD);
        if now >= since + guard { Before::Go } else { Before::Wait(since + guard) }
    }

    /// Whether a reply of `unit` may be one to an earlier request.
    pub fn is_suspect(&self, unit: u8) -> bool {
        self.units.get(&unit).is_some_and(|state| state.suspect.is_some())
    }

    /// A request to `unit` was sent and has no valid reply.
    pub fn failed(&mut self, unit: u8, now: Duration) {
        let state = self.units.entry(unit).or_default();
        // A plain request was tried after an unanswered echo and failed too: next time ask for the echo again.
        state.echo_failed = false;
        state.suspect = Some(now);
    }

    /// The echo question to `unit` was not answered.
    pub fn echo_failed(&mut self, unit: u8, now: Duration) {
        let state = self.units.entry(unit).or_default();
        state.echo_failed = true;
        state.suspect = Some(now);
    }

    /// The unit answered the echo question: nothing older is on its way.
    pub fn echo_answered(&mut self, unit: u8) {
        self.units.remove(&unit);
    }

    /// A request to `unit` has its valid reply.
    pub fn answered(&mut self, unit: u8) {
        if let Some(state) = self.units.get_mut(&unit)
            && state.suspect.is_some()
        {
            state.ignores_echo |= state.echo_failed;
            state.echo_failed = false;
            state.suspect = None;
        }
    }

    /// A reply came `after` its request was given up.
    pub fn late(&mut self, after: Duration) {
        self.worst = self.worst.max(after);
    }

    /// The latest that a reply ever came.
    pub fn worst(&self) -> Duration {
        self.worst
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEC: Duration = Duration::from_secs(1);

    #[test]
    fn a_failed_unit_must_echo_first_and_others_need_not() {
        let mut resync = Resync::new(true, 2 * SEC);
        assert_eq!(resync.before(1, SEC), Before::Go);
        resync.failed(1, SEC);
        assert_eq!(resync.before(1, SEC), Before::Echo);
        assert_eq!(resync.before(2, SEC), Before::Go);
        resync.echo_answered(1);
        assert_eq!(resync.before(1, SEC), Before::Go);
    }

    #[test]
    fn a_unit_that_ignores_the_echo_is_left_alone_for_the_guard_and_remembered() {
        let mut resync = Resync::new(true, 2 * SEC);
        resync.failed(1, SEC);
        resync.echo_failed(1, 2 * SEC);
        assert_eq!(resync.before(1, 3 * SEC), Before::Wait(4 * SEC));
        assert_eq!(resync.before(1, 4 * SEC), Before::Go);
        resync.answered(1);
        resync.failed(1, 10 * SEC);
        assert_eq!(resync.before(1, 10 * SEC), Before::Wait(12 * SEC), "no second echo question to a unit that ignores it");
    }

    #[test]
    fn a_dead_unit_is_asked_for_the_echo_again() {
        let mut resync = Resync::new(true, SEC);
        resync.failed(1, SEC);
        resync.echo_failed(1, SEC);
        resync.failed(1, 5 * SEC);
        assert_eq!(resync.before(1, 5 * SEC), Before::Echo);
    }

    #[test]
    fn the_guard_grows_with_the_latest_reply_seen() {
        let mut resync = Resync::new(false, SEC);
        resync.late(3 * SEC);
        resync.failed(1, SEC);
        assert_eq!(resync.before(1, 2 * SEC), Before::Wait(7 * SEC));
    }
}
