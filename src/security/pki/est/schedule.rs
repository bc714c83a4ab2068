//! When to ask the EST server what. Pure: the state is what is on disk plus how often it failed.

use std::time::Duration;

use super::super::life::{Reading, Renewal, Validity, renewal, renewal_share};
use crate::model::Stamp;

/// Window of renewal, as shares of the life that is over (Margo's identity framework asks for 40–60 %).
const WINDOW: (f64, f64) = (0.40, 0.60);
/// First upper bound of the pause after a failure.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// Last upper bound.
const LONGEST_PAUSE: Duration = Duration::from_secs(3_600);
/// A server that says `Retry-After: next year` is asked again tomorrow.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(86_400);
/// How often the authorities of the server are fetched again.
const AUTHORITIES_EVERY: Duration = Duration::from_secs(86_400);

/// Why a request did not succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The server takes its time (202); ask the same again after this long.
    Pending(Duration),
    /// It may work later: no connection, 5xx, 429.
    Transient(Option<Duration>),
    /// Somebody must do something: wrong token, refused request, an answer that cannot be believed.
    Refused,
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Nothing for this long.
    Wait(Duration),
    /// Fetch the server's authorities.
    Authorities,
    /// Ask for the first certificate.
    Enrol,
    /// Ask for a new one over mutual TLS.
    Renew,
}

/// The schedule of one identity.
#[derive(Debug, Default)]
pub struct Schedule {
    failures: u32,
    not_before_ns: u64,
    authorities_ns: Option<u64>,
}

impl Schedule {
    /// What to do at `now`, with `current` in use (serial and validity) and the clock read as `clock`.
    pub fn next(&self, current: Option<(&[u8], Validity)>, clock: Reading, now: Stamp) -> Next {
        if now.mono_ns < self.not_before_ns {
            return Next::Wait(Duration::from_nanos(self.not_before_ns - now.mono_ns));
        }
        if self.authorities_ns.is_none_or(|at| now.mono_ns >= at + AUTHORITIES_EVERY.as_nanos() as u64) {
            return Next::Authorities;
        }
        let Some((serial, validity)) = current else { return Next::Enrol };
        match renewal(validity, renewal_share(serial, WINDOW.0, WINDOW.1), false, clock) {
            // An identity that has ended opens no mutual TLS: begin again.
            Renewal::Due if clock.seconds > validity.not_after => Next::Enrol,
            Renewal::Due => Next::Renew,
            // The clock may be set at any moment; the wall clock may be stepped.
            Renewal::Hold => Next::Wait(Duration::from_secs(60)),
            Renewal::At(at) => Next::Wait(Duration::from_secs((at - clock.seconds).clamp(1, 3_600).unsigned_abs())),
        }
    }

    /// The authorities were fetched.
    pub fn authorities_fetched(&mut self, now: Stamp) {
        self.authorities_ns = Some(now.mono_ns);
        self.succeeded();
    }

    /// The authorities known already are good enough until the next look: a server that cannot show them again must not
    /// keep us from renewing.
    pub fn authorities_kept(&mut self, now: Stamp) {
        self.authorities_ns = Some(now.mono_ns);
    }

    /// A certificate was granted.
    pub fn succeeded(&mut self) {
        (self.failures, self.not_before_ns) = (0, 0);
    }

    /// A request failed; returns how long to wait. `dice` is a fresh random number in `0.0..1.0` (full jitter).
    pub fn failed(&mut self, failure: Failure, now: Stamp, dice: f64) -> Duration {
        let bound = FIRST_PAUSE.saturating_mul(1 << self.failures.min(20)).min(LONGEST_PAUSE);
        let jittered = bound.mul_f64(dice.clamp(0.0, 1.0)).max(Duration::from_millis(200));
        let pause = match failure {
            // Not a failure: the next request comes when the server wants it, and a little later.
            Failure::Pending(after) => {
                return self.wait(after.min(LONGEST_RETRY_AFTER) + jittered.min(FIRST_PAUSE), now);
            }
            Failure::Transient(after) => jittered.max(after.unwrap_or_default().min(LONGEST_RETRY_AFTER)),
            Failure::Refused => jittered.max(LONGEST_PAUSE / 4),
        };
        self.failures = self.failures.saturating_add(1);
        self.wait(pause, now)
    }

    fn wait(&mut self, pause: Duration, now: Stamp) -> Duration {
        self.not_before_ns = now.mono_ns + pause.as_nanos() as u64;
        pause
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::ClockTrust;

    const LIFE: Validity = Validity { not_before: 1_790_000_000, not_after: 1_790_000_000 + 1_000_000 };

    fn at(mono_s: u64) -> Stamp {
        Stamp {
            wall_ms: 0,
            mono_ns: mono_s * 1_000_000_000,
            uptime: Default::default(),
            trust: ClockTrust::Synchronised,
        }
    }

    fn firm(seconds: i64) -> Reading {
        Reading { seconds, firm: true }
    }

    #[test]
    fn authorities_first_then_the_certificate_then_renewal_then_enrolment_when_it_is_too_late() {
        let mut schedule = Schedule::default();
        let current = Some((&[1u8, 2][..], LIFE));
        assert_eq!(schedule.next(None, firm(LIFE.not_before), at(0)), Next::Authorities);
        schedule.authorities_fetched(at(0));
        assert_eq!(schedule.next(None, firm(LIFE.not_before), at(1)), Next::Enrol);
        assert!(matches!(schedule.next(current, firm(LIFE.at(0.399)), at(1)), Next::Wait(_)));
        assert_eq!(schedule.next(current, firm(LIFE.at(0.601)), at(1)), Next::Renew);
        assert_eq!(schedule.next(current, firm(LIFE.not_after + 1), at(1)), Next::Enrol);
        assert!(matches!(schedule.next(current, Reading { seconds: 0, firm: false }, at(1)), Next::Wait(_)));
        assert_eq!(schedule.next(current, firm(LIFE.at(0.1)), at(86_401)), Next::Authorities);
    }

    #[test]
    fn a_pending_answer_waits_as_the_server_says_and_does_not_count_as_a_failure() {
        let mut schedule = Schedule::default();
        for _ in 0..50 {
            let pause = schedule.failed(Failure::Pending(Duration::from_secs(30)), at(0), 0.9);
            assert!((30..=35).contains(&pause.as_secs()), "{pause:?}");
        }
        assert!(
            schedule.failed(Failure::Pending(Duration::from_secs(u64::MAX / 4)), at(0), 0.5)
                < Duration::from_secs(90_000)
        );
    }

    proptest! {
        #[test]
        fn pauses_grow_are_bounded_and_never_earlier_than_the_server_allows(dice in proptest::collection::vec(0.0f64..1.0, 1..40), after in proptest::option::of(0u64..7_200)) {
            let mut schedule = Schedule::default();
            for (n, dice) in dice.into_iter().enumerate() {
                let after = after.map(Duration::from_secs);
                let pause = schedule.failed(Failure::Transient(after), at(0), dice);
                let bound = FIRST_PAUSE.saturating_mul(1 << n.min(20)).min(LONGEST_PAUSE).max(after.unwrap_or_default());
                prop_assert!(pause <= bound && pause >= after.unwrap_or_default());
                prop_assert_eq!(schedule.next(None, firm(0), at(0)), Next::Wait(pause));
            }
        }
    }
}
