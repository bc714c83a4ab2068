//! Harness of the torture suites: a plant that knows when it answered which number, a gateway that can be killed, and a
//! subscriber that keeps account of everything that arrives.
//!
//! The yardstick stands outside the gateway: every read of a device is answered with the next number, so a number that
//! was answered and never arrives is a loss, whatever the gateway says about itself.
#![allow(dead_code, unused_imports, reason = "each suite uses its own part")]

mod account;
mod disk;
mod gateway;
pub mod library;
mod plant;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub use account::{Account, Arrival, Collector, GapSeen};
pub use disk::{Image, Mount, loop_mounts_work};
pub use gateway::{Gateway, Setup, lane};
pub use plant::CountingPlant;

/// How often: `variable` from the environment (full counts, see `tests/torture.sh`) or what CI does.
pub fn times(variable: &str, ci: usize) -> usize {
    let wanted =
        std::env::var(variable).ok().map(|n| n.parse().unwrap_or_else(|_| panic!("{variable}={n}: no number")));
    let count = wanted.unwrap_or(ci);
    println!(
        "{variable}={count}{}",
        if wanted.is_none() { " (CI's reduced count; tests/torture.sh runs all)" } else { "" }
    );
    count
}

/// Whether times are held against the bars of a release build on a quiet machine (`FIELDGATE_STRICT=1`). They are always
/// printed.
pub fn strict() -> bool {
    std::env::var_os("FIELDGATE_STRICT").is_some()
}

/// A generator whose seed is printed and can be given as `FIELDGATE_SEED`.
pub struct Dice(AtomicU64);

impl Dice {
    pub fn new() -> Self {
        let given = std::env::var("FIELDGATE_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| {
            u64::from(std::process::id()) ^ u64::from(std::time::UNIX_EPOCH.elapsed().map_or(1, |t| t.subsec_nanos()))
        });
        println!("FIELDGATE_SEED={seed}");
        Self(AtomicU64::new(seed))
    }

    /// 0 to `below` - 1 (splitmix64).
    pub fn roll(&self, below: u64) -> u64 {
        let mut z = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below.max(1)
    }

    pub fn millis(&self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.roll(to - from))
    }
}

/// The p-th percentile, 0 to 100, of durations.
pub fn percentile(all: &mut [Duration], p: f64) -> Duration {
    all.sort_unstable();
    all.get(((all.len() as f64 * p / 100.0).ceil() as usize).clamp(1, all.len().max(1)) - 1)
        .copied()
        .unwrap_or_default()
}

/// Lets time pass that the test is about, such as how long a gateway runs before it is killed.
pub fn run_for(time: Duration) {
    std::thread::sleep(time);
}

/// How long ago.
pub fn ago(then: Instant, now: Instant) -> Duration {
    now.saturating_duration_since(then)
}
