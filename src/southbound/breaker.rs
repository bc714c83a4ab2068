//! Circuit breaker of one device: after repeated failures it is left alone but for single, ever rarer probes.
//!
//! Sans-IO: time and chance come in as arguments.

use std::time::Duration;

/// When to give up on a device for a while, and when to try again.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Consecutive failed requests after which the device goes off scan; at least 1.
    pub failures: u32,
    /// Wait before the first probe.
    pub backoff_min: Duration,
    /// Longest wait between probes; each failed probe doubles the wait up to this.
    pub backoff_max: Duration,
    /// Share of the wait that is left to chance (0 to 1), so that devices which died together are not probed together.
    pub jitter: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { failures: 3, backoff_min: Duration::from_secs(5), backoff_max: Duration::from_secs(300), jitter: 0.2 }
    }
}

/// What may be sent to the device now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permit {
    /// Normal polling.
    Scan,
    /// One probe request.
    Probe,
    /// Nothing before this time.
    Wait(Duration),
}

/// State of one device. Times are monotonic, counted from any common origin.
#[derive(Debug, Clone)]
pub struct Breaker {
    settings: Settings,
    failures: u32,
    open: Option<Open>,
}

#[derive(Debug, Clone, Copy)]
struct Open {
    until: Duration,
    backoff: Duration,
}

impl Breaker {
    /// A closed breaker: the device is polled.
    pub fn new(settings: Settings) -> Self {
        Self { settings, failures: 0, open: None }
    }

    /// What may be sent at `now`.
    pub fn permit(&self, now: Duration) -> Permit {
        match self.open {
            None => Permit::Scan,
            Some(open) if now >= open.until => Permit::Probe,
            Some(open) => Permit::Wait(open.until),
        }
    }

    /// Whether the device is off scan.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Consecutive failures so far.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// The device answered. Returns true when this brings it back on scan.
    pub fn success(&mut self) -> bool {
        self.failures = 0;
        self.open.take().is_some()
    }

    /// A request failed; `chance` is a random number in 0..1. Returns the time until the next probe when the device is
    /// off scan now (it just went, or a probe failed).
    pub fn failure(&mut self, now: Duration, chance: f64) -> Option<Duration> {
        self.failures = self.failures.saturating_add(1);
        let backoff = match self.open {
            Some(open) => (open.backoff * 2).min(self.settings.backoff_max),
            None if self.failures < self.settings.failures.max(1) => return None,
            None => self.settings.backoff_min.min(self.settings.backoff_max),
        };
        let wait = backoff.mul_f64(1.0 - self.settings.jitter.clamp(0.0, 1.0) * chance.clamp(0.0, 1.0));
        self.open = Some(Open { until: now + wait, backoff });
        Some(wait)
    }

    /// Forgets everything: the link is new, or an operator asks for the device.
    pub fn reset(&mut self) {
        self.failures = 0;
        self.open = None;
    }
}

/// Bounds the share of a link's time that probes may take while healthy devices share the link.
#[derive(Debug, Clone, Default)]
pub struct ProbeBudget {
    next: Duration,
}

/// At most one twentieth of the time of a shared link goes to devices that may be dead.
const PROBE_SHARE: u32 = 20;

impl ProbeBudget {
    /// The earliest time of the next probe.
    pub fn next(&self) -> Duration {
        self.next
    }

    /// A probe began at `started` and ended at `now`.
    pub fn spent(&mut self, started: Duration, now: Duration) {
        self.next = now + now.saturating_sub(started) * (PROBE_SHARE - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SEC: Duration = Duration::from_secs(1);

    #[test]
    fn goes_off_scan_after_n_failures_and_comes_back_on_a_success() {
        let mut breaker = Breaker::new(Settings { jitter: 0.0, ..Settings::default() });
        assert_eq!(breaker.failure(SEC, 0.5), None);
        assert_eq!(breaker.failure(SEC, 0.5), None);
        assert_eq!(breaker.failure(SEC, 0.5), Some(5 * SEC));
        assert_eq!(breaker.permit(5 * SEC), Permit::Wait(6 * SEC));
        assert_eq!(breaker.permit(6 * SEC), Permit::Probe);
        assert_eq!(breaker.failure(6 * SEC, 0.5), Some(10 * SEC));
        assert!(breaker.success());
        assert_eq!(breaker.permit(7 * SEC), Permit::Scan);
        assert!(!breaker.success());
    }

    proptest! {
        #[test]
        fn waits_grow_to_the_cap_and_never_pass_it(chances in prop::collection::vec(0.0..1.0f64, 1..40), jitter in 0.0..1.0f64) {
            let settings = Settings { failures: 1, jitter, ..Settings::default() };
            let mut breaker = Breaker::new(settings.clone());
            let mut now = Duration::ZERO;
            let mut least = settings.backoff_min.mul_f64(1.0 - jitter);
            for chance in chances {
                let wait = breaker.failure(now, chance).unwrap();
                prop_assert!(wait <= settings.backoff_max);
                prop_assert!(wait + Duration::from_nanos(10) >= least, "{wait:?} < {least:?}");
                least = (least * 2).min(settings.backoff_max.mul_f64(1.0 - jitter));
                prop_assert!(matches!(breaker.permit(now), Permit::Wait(_)) || wait.is_zero());
                now += wait;
                prop_assert_eq!(breaker.permit(now), Permit::Probe);
            }
        }

        #[test]
        fn fewer_failures_than_the_limit_never_open(limit in 1u32..10, runs in prop::collection::vec(0u32..10, 0..20)) {
            let mut breaker = Breaker::new(Settings { failures: limit, ..Settings::default() });
            for run in runs {
                for _ in 0..run.min(limit - 1) {
                    prop_assert_eq!(breaker.failure(SEC, 0.1), None);
                }
                breaker.success();
            }
            prop_assert!(!breaker.is_open());
        }

        #[test]
        fn probes_take_at_most_their_share(costs in prop::collection::vec(1u64..3000, 1..50)) {
            let (mut budget, mut now, mut probing) = (ProbeBudget::default(), Duration::ZERO, Duration::ZERO);
            for cost in costs {
                now = now.max(budget.next());
                let started = now;
                now += Duration::from_millis(cost);
                probing += Duration::from_millis(cost);
                budget.spent(started, now);
            }
            prop_assert!(probing * PROBE_SHARE <= budget.next());
        }
    }
}
