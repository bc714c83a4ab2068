//! How fast a backlog may go out beside live data. Pure.
//!
//! A token bucket in records and bytes per second. The rate adapts as TCP does: it doubles until the broker's
//! confirmations become slow for the first time, from then on it grows by a twentieth of the best rate while they are
//! quick and halves when they are slow. Configured limits cap it.

use super::config::ReplayConfig;

/// Slowest rate: an overloaded broker still gets this many records per second.
const FLOOR: f64 = 20.0;
/// First rate of a session.
const START: f64 = 500.0;
/// Fastest rate.
const CEILING: f64 = 200_000.0;
/// The rate is reconsidered this often, milliseconds.
const ROUND_MS: u64 = 100;
/// Tokens that may collect while nothing is sent, milliseconds' worth.
const BURST_MS: f64 = 100.0;

#[derive(Debug)]
pub(super) struct Budget {
    config: ReplayConfig,
    rate: f64,
    /// The rate at which confirmations became slow, slowly forgotten; none yet: doubling.
    best: Option<f64>,
    records: f64,
    bytes: f64,
    /// Mean size of a record, smoothed.
    size: f64,
    filled_ms: u64,
    round_ms: u64,
    slowest_ms: Option<f64>,
    /// Whether the bucket ran dry in this round: only a used rate may grow.
    limited: bool,
}

impl Budget {
    pub(super) fn new(config: ReplayConfig, now_ms: u64) -> Self {
        let mut budget = Self {
            config,
            rate: START,
            best: None,
            records: 0.0,
            bytes: 0.0,
            size: 1000.0,
            filled_ms: now_ms,
            round_ms: now_ms,
            slowest_ms: None,
            limited: true,
        };
        budget.cap();
        budget
    }

    /// A message was confirmed this long after it was sent.
    pub(super) fn confirmed(&mut self, latency_ms: f64) {
        if self.slowest_ms.is_none_or(|s| latency_ms > s) {
            self.slowest_ms = Some(latency_ms);
        }
    }

    /// Records that may be taken from the backlog now. They are paid with [`Budget::spend`].
    pub(super) fn allowance(&mut self, now_ms: u64) -> usize {
        self.refill(now_ms);
        if self.records < 1.0 || self.bytes < 0.0 {
            self.limited = true;
            return 0;
        }
        let fit = if self.config.max_bytes.is_some() { (self.bytes / self.size).max(1.0) } else { f64::MAX };
        self.records.min(fit) as usize
    }

    /// Records were taken.
    pub(super) fn spend(&mut self, records: usize, bytes: usize) {
        self.records -= records as f64;
        self.limited |= self.records < 1.0;
        self.size += (bytes as f64 / records.max(1) as f64 - self.size) / 8.0;
        if self.config.max_bytes.is_some() {
            self.bytes -= bytes as f64;
        }
    }

    /// Records per second allowed now.
    #[cfg(test)]
    fn rate(&self) -> f64 {
        self.rate
    }

    fn refill(&mut self, now_ms: u64) {
        let passed = now_ms.saturating_sub(self.filled_ms) as f64;
        self.filled_ms = now_ms;
        self.records = (self.records + self.rate * passed / 1000.0).min((self.rate * BURST_MS / 1000.0).max(1.0));
        if let Some(most) = self.config.max_bytes {
            let most = most as f64;
            self.bytes = (self.bytes + most * passed / 1000.0).min(most * BURST_MS / 1000.0);
        }
        if now_ms.saturating_sub(self.round_ms) >= ROUND_MS {
            self.round_ms = now_ms;
            self.adapt();
        }
    }

    fn adapt(&mut self) {
        let limited = std::mem::take(&mut self.limited);
        let Some(slowest) = self.slowest_ms.take() else { return };
        if slowest > self.config.target_latency.as_millis() as f64 {
            self.best = Some(self.best.map_or(self.rate, |best| self.rate.max(best * 0.9)));
            self.rate /= 2.0;
        } else if limited {
            match self.best {
                None => self.rate *= 2.0,
                Some(best) => self.rate += (best / 20.0).max(1.0),
            }
        }
        self.cap();
    }

    fn cap(&mut self) {
        let most = self.config.max_records.map_or(CEILING, f64::from);
        self.rate = self.rate.clamp(FLOOR.min(most), most);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Runs for `seconds` against a broker with this latency; gives the records taken.
    fn run(budget: &mut Budget, from_ms: u64, seconds: u64, latency_ms: f64, bytes: usize) -> usize {
        let mut taken = 0;
        for now in (from_ms..from_ms + seconds * 1000).step_by(10) {
            let n = budget.allowance(now);
            if n > 0 {
                budget.spend(n, n * bytes);
                budget.confirmed(latency_ms);
                taken += n;
            }
        }
        taken
    }

    #[test]
    fn a_quick_broker_gets_the_backlog_fast() {
        let mut budget = Budget::new(ReplayConfig::default(), 0);
        assert!(run(&mut budget, 0, 2, 5.0, 100) > 50_000, "{budget:?}");
    }

    #[test]
    fn a_slow_broker_halves_the_rate_and_a_recovered_one_raises_it_step_by_step() {
        let mut budget = Budget::new(ReplayConfig::default(), 0);
        run(&mut budget, 0, 1, 5.0, 100);
        let before = budget.rate();
        run(&mut budget, 1000, 1, 900.0, 100);
        let slow = budget.rate();
        assert!(slow <= before / 100.0, "{before} {slow}");
        run(&mut budget, 2000, 1, 5.0, 100);
        assert!(budget.rate() > slow && budget.rate() < before, "{slow} {}", budget.rate());
    }

    #[test]
    fn configured_limits_hold() {
        let mut budget = Budget::new(ReplayConfig { max_records: Some(100), ..ReplayConfig::default() }, 0);
        assert!((900..=1010).contains(&run(&mut budget, 0, 10, 1.0, 10)));
        let mut budget = Budget::new(ReplayConfig { max_bytes: Some(10_000), ..ReplayConfig::default() }, 0);
        // A grant may overdraw once; the debt is paid before the next.
        let bytes = 1000 * run(&mut budget, 0, 20, 1.0, 1000);
        assert!(bytes <= 200_000 + 60_000, "{bytes}");
    }

    #[test]
    fn a_rate_that_is_not_used_does_not_grow() {
        let mut budget =
            Budget::new(ReplayConfig { target_latency: Duration::from_millis(100), ..ReplayConfig::default() }, 0);
        let at = budget.rate();
        budget.limited = false;
        for now in (0..5000).step_by(50) {
            budget.confirmed(1.0);
            budget.refill(now);
        }
        assert_eq!(budget.rate(), at);
    }
}
