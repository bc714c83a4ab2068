//! When to ask again: growing pauses with full jitter, never before the server allows it.

use std::time::Duration;

use super::problem::Problem;

/// First pause.
const FIRST: Duration = Duration::from_secs(2);
/// Longest pause of our own.
const LAST: Duration = Duration::from_secs(300);
/// Who polls more often than this is not kept waiting longer than this: after an outage of hours it comes back soon.
const BRISK: Duration = Duration::from_secs(60);

/// How pauses grow, as a server may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pacing {
    /// Not at all: exactly what the server said.
    None,
    /// The same pause each time.
    Fixed,
    /// Twice as long each time.
    #[default]
    Exponential,
}

/// Counts failures in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    failures: u32,
    longest: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { failures: 0, longest: LAST }
    }
}

impl Backoff {
    /// For somebody who asks `every` so long when all is well: pauses grow up to that, within a minute and five minutes.
    pub fn upto(every: Duration) -> Self {
        Self { failures: 0, longest: every.clamp(BRISK, LAST) }
    }

    /// It worked.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Failures in a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// The pause after a failure. `draw` is random in `0.0..1.0`; `problem` is absent when nobody answered.
    pub fn pause(&mut self, problem: Option<&Problem>, draw: f64) -> Duration {
        let floor = problem.and_then(|problem| problem.retry_after).unwrap_or_default();
        let strategy = problem.map_or(Pacing::Exponential, |problem| problem.strategy);
        let own = match strategy {
            // A server that says "no back-off" without a time still gets a breath.
            Pacing::None if !floor.is_zero() => Duration::ZERO,
            Pacing::None | Pacing::Fixed => FIRST,
            Pacing::Exponential => FIRST.saturating_mul(1 << self.failures.min(16)).min(self.longest),
        };
        self.failures = self.failures.saturating_add(1);
        // Full jitter, but never nothing: half a second keeps a broken server from a tight loop.
        let drawn = own.mul_f64(draw.clamp(0.0, 1.0));
        // Behind a floor the jitter spreads those who were all told the same time.
        (floor + drawn).max(Duration::from_millis(500))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::problem::ProblemKind;
    use super::*;

    fn problem(retry_after: Option<u64>, strategy: Pacing) -> Problem {
        Problem {
            status: 503,
            kind: ProblemKind::Other,
            retryable: None,
            retry_after: retry_after.map(Duration::from_secs),
            strategy,
            text: String::new(),
        }
    }

    #[test]
    fn pauses_double_up_to_five_minutes_and_begin_anew_after_success() {
        let mut backoff = Backoff::default();
        let pauses: Vec<u64> = (0..10).map(|_| backoff.pause(None, 1.0).as_secs()).collect();
        assert_eq!(pauses, [2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        backoff.reset();
        assert_eq!(backoff.pause(None, 1.0).as_secs(), 2);
    }

    #[test]
    fn after_an_outage_the_next_attempt_comes_at_the_polling_interval_or_after_a_minute() {
        let longest = |every: u64| {
            let mut backoff = Backoff::upto(Duration::from_secs(every));
            (0..20).map(|_| backoff.pause(None, 1.0).as_secs()).max().unwrap()
        };
        assert_eq!([longest(1), longest(60), longest(90), longest(3_600)], [60, 60, 90, 300]);
    }

    #[test]
    fn pauses_are_drawn_from_the_whole_range() {
        let drawn = |draw: f64| Backoff { failures: 5, ..Backoff::default() }.pause(None, draw);
        assert_eq!(drawn(0.0), Duration::from_millis(500), "never nothing");
        assert_eq!((drawn(0.25).as_secs(), drawn(0.5).as_secs(), drawn(1.0).as_secs()), (16, 32, 64));
    }

    #[test]
    fn fixed_and_none_are_honoured() {
        let mut backoff = Backoff::default();
        for _ in 0..3 {
            assert_eq!(backoff.pause(Some(&problem(None, Pacing::Fixed)), 1.0).as_secs(), 2);
        }
        assert_eq!(backoff.pause(Some(&problem(Some(7), Pacing::None)), 1.0).as_secs(), 7);
    }

    proptest! {
        #[test]
        fn never_earlier_than_retry_after(failures in 0u32..100, after in 0u64..86_400, draw in 0.0f64..1.0) {
            let mut backoff = Backoff { failures, ..Backoff::default() };
            for strategy in [Pacing::None, Pacing::Fixed, Pacing::Exponential] {
                let pause = backoff.pause(Some(&problem(Some(after), strategy)), draw);
                prop_assert!(pause >= Duration::from_secs(after));
                prop_assert!(pause <= Duration::from_secs(after) + LAST);
            }
        }
    }
}
