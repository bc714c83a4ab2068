//! Clocks behind a trait: wall time for people, monotonic time for intervals, and how far the wall time can be trusted.

mod book;

use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub use book::ClockBook;

use crate::model::{ClockTrust, Stamp, Uptime};

/// When the monotonic time of a clock began, on the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Boot {
    /// Which boot of the machine; 0 when that is unknown.
    pub id: u32,
    /// Uptime of the machine at monotonic time 0, in milliseconds.
    pub origin_ms: u64,
}

impl Boot {
    /// The uptime of the machine at a monotonic time.
    pub fn uptime(self, mono_ns: u64) -> Uptime {
        Uptime { boot: self.id, ms: self.origin_ms + mono_ns / 1_000_000 }
    }

    /// This boot of this machine, for a monotonic time that begins now. Without `/proc` it is unknown.
    fn of_machine() -> Self {
        let uptime = std::fs::read_to_string("/proc/uptime").ok();
        let seconds = uptime.and_then(|text| text.split_whitespace().next()?.parse::<f64>().ok());
        match (std::fs::read("/proc/sys/kernel/random/boot_id"), seconds) {
            (Ok(id), Some(seconds)) => Self { id: crc32c::crc32c(&id).max(1), origin_ms: (seconds * 1_000.0) as u64 },
            _ => Self::default(),
        }
    }
}

/// Source of time. Shared by every module as `Arc<dyn Clock>`.
pub trait Clock: Debug + Send + Sync + 'static {
    /// Now, on both clocks.
    fn now(&self) -> Stamp;

    /// Milliseconds since 1970 on the wall clock.
    fn wall_ms(&self) -> i64 {
        self.now().wall_ms
    }

    /// Nanoseconds since the clock was made; never steps.
    fn mono_ns(&self) -> u64 {
        self.now().mono_ns
    }

    /// What its monotonic time is counted from.
    fn boot(&self) -> Boot {
        Boot::default()
    }
}

/// A shared clock.
pub type SharedClock = Arc<dyn Clock>;

/// 2024-01-01: an earlier wall clock was never set since boot.
const EARLIEST_PLAUSIBLE_MS: i64 = 1_704_067_200_000;
/// How often the trust is looked up again.
const TRUST_REFRESH: Duration = Duration::from_secs(5);

/// The operating system's clocks.
#[derive(Debug)]
pub struct SystemClock {
    origin: Instant,
    boot: Boot,
    trust: AtomicU8,
    trust_checked_ns: AtomicU64,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self {
            origin: Instant::now(),
            boot: Boot::of_machine(),
            trust: AtomicU8::new(0),
            trust_checked_ns: AtomicU64::new(u64::MAX),
        }
    }
}

impl SystemClock {
    /// A shared system clock; monotonic time starts at 0 now.
    pub fn shared() -> SharedClock {
        Arc::new(Self::default())
    }

    fn trust(&self, wall_ms: i64, mono_ns: u64) -> ClockTrust {
        let checked = self.trust_checked_ns.load(Ordering::Relaxed);
        if checked == u64::MAX || mono_ns.saturating_sub(checked) > TRUST_REFRESH.as_nanos() as u64 {
            self.trust_checked_ns.store(mono_ns, Ordering::Relaxed);
            self.trust.store(u8::from(is_disciplined()), Ordering::Relaxed);
        }
        match (wall_ms < EARLIEST_PLAUSIBLE_MS, self.trust.load(Ordering::Relaxed)) {
            (true, _) => ClockTrust::Unsynchronised,
            (false, 1) => ClockTrust::Synchronised,
            (false, _) => ClockTrust::Holdover,
        }
    }
}

/// Whether a time service says that it disciplines the clock: systemd-timesyncd and chrony both leave a mark.
fn is_disciplined() -> bool {
    ["/run/systemd/timesync/synchronized", "/run/chrony/synchronized"].iter().any(|mark| Path::new(mark).exists())
}

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods, reason = "this is the one place that reads the system's clocks")]
    fn now(&self) -> Stamp {
        let wall_ms = match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => since.as_millis() as i64,
            Err(before) => -(before.duration().as_millis() as i64),
        };
        let mono_ns = self.origin.elapsed().as_nanos() as u64;
        Stamp { wall_ms, mono_ns, uptime: self.boot.uptime(mono_ns), trust: self.trust(wall_ms, mono_ns) }
    }

    fn boot(&self) -> Boot {
        self.boot
    }
}

/// A clock that a test moves by hand.
#[derive(Debug)]
pub struct ManualClock {
    wall_ms: AtomicI64,
    mono_ns: AtomicU64,
    trust: AtomicU8,
}

impl ManualClock {
    /// A synchronised clock that shows `wall_ms`; monotonic time starts at 0.
    pub fn at(wall_ms: i64) -> Arc<Self> {
        Arc::new(Self { wall_ms: AtomicI64::new(wall_ms), mono_ns: AtomicU64::new(0), trust: AtomicU8::new(2) })
    }

    /// Lets time pass on both clocks.
    pub fn advance(&self, by: Duration) {
        self.wall_ms.fetch_add(by.as_millis() as i64, Ordering::SeqCst);
        self.mono_ns.fetch_add(by.as_nanos() as u64, Ordering::SeqCst);
    }

    /// Steps the wall clock only, as a time service does.
    pub fn step_wall(&self, by_ms: i64) {
        self.wall_ms.fetch_add(by_ms, Ordering::SeqCst);
    }

    /// Sets the trust that stamps carry from now on.
    pub fn set_trust(&self, trust: ClockTrust) {
        self.trust.store(trust as u8, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Stamp {
        let trust = match self.trust.load(Ordering::SeqCst) {
            0 => ClockTrust::Unsynchronised,
            1 => ClockTrust::Holdover,
            _ => ClockTrust::Synchronised,
        };
        Stamp {
            wall_ms: self.wall_ms.load(Ordering::SeqCst),
            mono_ns: self.mono_ns.load(Ordering::SeqCst),
            uptime: Default::default(),
            trust,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wall_clock_before_2024_is_not_trusted() {
        let clock = SystemClock::default();
        assert_eq!(clock.trust(0, 0), ClockTrust::Unsynchronised);
        assert_ne!(clock.trust(EARLIEST_PLAUSIBLE_MS, 0), ClockTrust::Unsynchronised);
    }

    #[test]
    fn stepping_the_wall_clock_leaves_monotonic_time_alone() {
        let clock = ManualClock::at(1_000);
        clock.advance(Duration::from_millis(5));
        clock.step_wall(-3_600_000);
        assert_eq!(clock.now().wall_ms, 1_005 - 3_600_000);
        assert_eq!(clock.now().mono_ns, 5_000_000);
    }
}
