//! What the store keeps: records in lanes, and gaps where records were lost.

use bytes::Bytes;

/// Place of a record in its lane. Starts at 1, grows by one for each record, is never used again, not even after a power
/// cut, and never depends on the wall clock. `(lane, seq)` is the idempotency key of a record.
pub type Seq = u64;

/// Records of one kind of promise. A lane is written, synced, evicted and replayed on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// State changes, alarms, command results, audit: few, synced within 5 ms, evicted last, sent first.
    Critical,
    /// Telemetry: many, synced within 100 ms, evicted first.
    Bulk,
}

impl Lane {
    /// All lanes, most important first.
    pub const ALL: [Lane; 2] = [Lane::Critical, Lane::Bulk];

    /// Name in paths, topics and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Lane::Critical => "critical",
            Lane::Bulk => "bulk",
        }
    }
}

/// What the payload of a record is. The number is the `schema` field of the frame on disk: never reuse one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum RecordKind {
    /// `fieldgate.v1.Telemetry` without `seq` and `historical`, which the reader adds.
    Telemetry = 1,
    /// `fieldgate.v1.Event`.
    Event = 2,
    /// `fieldgate.v1.Gap`, written by the store itself.
    Gap = 3,
    /// `fieldgate.v1.CommandResult`.
    CommandResult = 4,
    /// `fieldgate.v1.AuditEntry`: kept locally, not published to topics.
    Audit = 5,
    /// One change of the keyed state, for rebuilding it. Internal to the store.
    Journal = 6,
    /// `fieldgate.v1.ManagementResult`.
    ManagementResult = 7,
    /// What stood here was erased by decision of a person; the payload says nothing. Written by the store itself.
    Erased = 8,
}

impl RecordKind {
    /// The kind with this number on disk, if this version knows it.
    pub const fn from_u16(number: u16) -> Option<Self> {
        Some(match number {
            1 => RecordKind::Telemetry,
            2 => RecordKind::Event,
            3 => RecordKind::Gap,
            4 => RecordKind::CommandResult,
            5 => RecordKind::Audit,
            6 => RecordKind::Journal,
            7 => RecordKind::ManagementResult,
            8 => RecordKind::Erased,
            _ => return None,
        })
    }
}

/// One record of the log. Cloning shares the payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Lane it lies in.
    pub lane: Lane,
    /// Place in the lane.
    pub seq: Seq,
    /// Wall clock at append, milliseconds since 1970; for people and age quotas, never for order.
    pub ts_ms: i64,
    /// crc32c of the device id, so that readers can skip without decoding; 0 for the gateway itself.
    pub device: u32,
    /// What the payload is.
    pub kind: RecordKind,
    /// Number of samples in the payload (1 for anything but telemetry).
    pub count: u16,
    /// Encoded message, see [`RecordKind`].
    pub payload: Bytes,
}

/// Why records were lost. The text form is part of the topic contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GapReason {
    /// The byte quota evicted the oldest.
    QuotaBytes,
    /// The age quota evicted the oldest.
    QuotaAge,
    /// The quota refused the newest (policy drop-newest).
    QuotaNewest,
    /// Thinned out: one of n was kept.
    ThinnedOut,
    /// Accepted but not yet synced when the power went, inside the configured sync interval.
    UnsyncedAtPowerLoss,
    /// Bytes on disk were damaged; the records cannot be read.
    Corruption,
    /// The disk refused the write (full, I/O error) and the RAM ring overflowed.
    DiskFailure,
    /// The queue in front of the store was full.
    QueueOverflow,
}

impl GapReason {
    /// The text that stands in messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            GapReason::QuotaBytes => "quota-bytes",
            GapReason::QuotaAge => "quota-age",
            GapReason::QuotaNewest => "quota-newest",
            GapReason::ThinnedOut => "thinned-out",
            GapReason::UnsyncedAtPowerLoss => "unsynced-at-power-loss",
            GapReason::Corruption => "corruption",
            GapReason::DiskFailure => "disk-failure",
            GapReason::QueueOverflow => "queue-overflow",
        }
    }
}

/// Records that a lane, or one consumer of it, will never deliver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// The lane that lost them.
    pub lane: Lane,
    /// The consumer that loses them; `None` when nobody will get them.
    pub consumer: Option<String>,
    /// First sequence number lost.
    pub from_seq: Seq,
    /// Last sequence number lost, included.
    pub to_seq: Seq,
    /// Wall clock of the first record lost, milliseconds since 1970; 0 when unknown.
    pub from_ms: i64,
    /// Wall clock of the last record lost; 0 when unknown.
    pub to_ms: i64,
    /// How many records were lost, exactly where it is known, else the width of the range.
    pub records: u64,
    /// Why.
    pub reason: GapReason,
}
