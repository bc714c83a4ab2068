//! Settings of the store, checked when it is opened.

use std::path::PathBuf;
use std::time::Duration;

/// Smallest quota in bytes: eight segments of the smallest size.
pub const MIN_QUOTA: u64 = 8 << 20;

/// When accepted records are synced to the disk. Every sync wears flash; see `docs/durability.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncPolicy {
    /// Every append waits for its sync. Wears flash five to ten times faster than groups.
    Always,
    /// In groups of 64 KiB or 1,000 records, at the latest after this time. A power cut costs at most so much.
    Interval(Duration),
    /// When the operating system thinks fit, which may be half a minute. A power cut costs all of that.
    Os,
}

/// What happens to a lane when its quota is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFull {
    /// The oldest segment goes.
    DropOldest,
    /// New records are not kept until there is room.
    DropNewest,
    /// `append` waits until there is room.
    PushBack,
    /// From three quarters on, one of n new records of each device is kept; when even that is too much, the oldest
    /// segment goes.
    ThinOut {
        /// n, at least 2.
        keep_one_of: u32,
    },
}

/// Settings of one lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneConfig {
    /// When to sync.
    pub sync: SyncPolicy,
    /// What to do when the quota is used up.
    pub on_full: OnFull,
    /// Part of the quota in bytes that the other lane never takes.
    pub min_bytes: u64,
    /// Records older than this go. Counts only while the wall clock is synchronised, and only for records stamped with
    /// a plausible time.
    pub max_age: Option<Duration>,
    /// Records kept in memory while the disk fails, in bytes.
    pub memory_bytes: usize,
    /// Bytes of segments that everybody has confirmed and that stay readable, for `store export`. They are the first to
    /// go when space is needed.
    pub keep_bytes: u64,
    /// Newest records kept in memory for consumers that keep up, in bytes.
    pub tail_bytes: usize,
}

/// Settings of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Directory of the store. Its parent must exist.
    pub dir: PathBuf,
    /// Most bytes that the log takes on disk, at any moment; at least [`MIN_QUOTA`]. The state store is not counted.
    pub quota_bytes: u64,
    /// The lane of events.
    pub critical: LaneConfig,
    /// The lane of telemetry.
    pub bulk: LaneConfig,
    /// Size of a segment in bytes; by default a 32nd of the quota, between 1 and 8 MiB.
    pub segment_bytes: Option<u64>,
}

impl Config {
    /// The defaults: 256 MiB, drop-oldest, 5 ms for the critical lane and 100 ms for bulk.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self::with_quota(dir, 256 << 20)
    }

    /// The defaults with this quota in bytes.
    pub fn with_quota(dir: impl Into<PathBuf>, quota_bytes: u64) -> Self {
        let lane = |sync_ms, min_bytes, tail_bytes| LaneConfig {
            sync: SyncPolicy::Interval(Duration::from_millis(sync_ms)),
            on_full: OnFull::DropOldest,
            min_bytes,
            max_age: None,
            memory_bytes: 1 << 20,
            keep_bytes: 0,
            tail_bytes,
        };
        Self {
            dir: dir.into(),
            quota_bytes,
            critical: lane(5, quota_bytes / 8, 128 << 10),
            bulk: lane(100, quota_bytes / 4, 512 << 10),
            segment_bytes: None,
        }
    }

    /// Size of a segment in bytes.
    pub(crate) fn segment(&self) -> u64 {
        self.segment_bytes.unwrap_or((self.quota_bytes / 32).clamp(1 << 20, 8 << 20))
    }

    /// What is wrong with it, if anything.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.segment_bytes.is_none() && self.quota_bytes < MIN_QUOTA {
            return Err(format!("a quota of {} bytes is too small, give at least 8 MiB", self.quota_bytes));
        }
        if self.critical.min_bytes.saturating_add(self.bulk.min_bytes) > self.quota_bytes {
            return Err("the minimum of both lanes together is more than the quota".to_owned());
        }
        let thin = [&self.critical, &self.bulk]
            .into_iter()
            .any(|l| matches!(l.on_full, OnFull::ThinOut { keep_one_of: 0 | 1 }));
        if thin { Err("thin-out must keep one of at least 2".to_owned()) } else { Ok(()) }
    }
}
