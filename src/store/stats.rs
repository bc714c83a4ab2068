//! Figures of the store.

use std::collections::BTreeMap;

use crate::model::{Depth, Seq};

/// Figures of the store.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Stats {
    /// The critical lane.
    pub critical: LaneStats,
    /// The bulk lane.
    pub bulk: LaneStats,
    /// Consumers by name.
    pub consumers: BTreeMap<String, ConsumerStats>,
    /// Bytes that the log takes on disk.
    pub allocated_bytes: u64,
    /// Bytes that it may take.
    pub quota_bytes: u64,
    /// The reserve for a full disk is in place.
    pub reserve: bool,
    /// Bytes given to the disk for each byte of payload since the start: frames, zero-filling, headers, ack files.
    pub write_amplification: f64,
}

/// Figures of one lane.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LaneStats {
    /// Records accepted since the start.
    pub appended: u64,
    /// Bytes of their payloads.
    pub payload_bytes: u64,
    /// Bytes written to the disk since the start.
    pub written_bytes: u64,
    /// Syncs of files and directories since the start.
    pub syncs: u64,
    /// Writes or syncs that failed since the start.
    pub failures: u64,
    /// Why records are only kept in memory now; `None` when all is well.
    pub failing: Option<String>,
    /// Number of the oldest record that may still be on disk.
    pub first_seq: Seq,
    /// Number that the next record gets.
    pub next_seq: Seq,
    /// Records up to here survive a power cut.
    pub durable_seq: Seq,
    /// Records accepted and not synced yet.
    pub unsynced: u64,
    /// Bytes of files.
    pub allocated_bytes: u64,
    /// Segments that hold records.
    pub segments: u64,
    /// Segments in which damage was found.
    pub damaged_segments: u64,
    /// Records lost since the start, by reason as [`crate::model::GapReason::as_str`] says.
    pub lost: BTreeMap<&'static str, u64>,
}

/// Figures of one consumer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConsumerStats {
    /// How far behind.
    pub depth: Depth,
    /// Someone reads as this consumer now.
    pub in_use: bool,
    /// Acknowledgements came so scattered that new sessions are in order until fewer ranges are open.
    pub crowded: bool,
}
