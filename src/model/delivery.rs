//! What a consumer of the store is handed.

use super::{Gap, Record};

/// In which order a consumer's session wants its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Order {
    /// New records at once, the backlog behind them.
    #[default]
    LiveFirst,
    /// Everything from the cursor on, oldest first.
    InOrder,
}

/// One thing to send and then to acknowledge by its range of sequence numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivery {
    /// A record.
    Record {
        /// The record.
        record: Record,
        /// Older than the live start of this session: it is replayed.
        historical: bool,
    },
    /// Records that this consumer will never get. Delivered once, acknowledged by `from_seq..=to_seq`.
    Gap(Gap),
}

/// How far a consumer is behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Depth {
    /// Records not acknowledged.
    pub records: u64,
    /// About how many bytes they take in the log.
    pub bytes: u64,
    /// About when the oldest of them was appended, milliseconds since 1970; `None` when there is none.
    pub oldest_ms: Option<i64>,
    /// Records that were lost to this consumer since it was registered, each reported as a gap.
    pub lost: u64,
}
