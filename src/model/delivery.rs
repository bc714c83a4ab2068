<<<<<<< HEAD
//! What a consumer of the store is handed, in which order, and how much is still to come.

use super::{Gap, Record};

/// In which order a consumer gets what it has not confirmed yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Order {
    /// What is appended from now on first; what is older comes beside it, at the consumer's pace.
    #[default]
    LiveFirst,
    /// Everything in order of its sequence number, lane by lane.
    InOrder,
}

/// One thing to pass on and to confirm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivery {
    /// A record of the log.
    Record {
        /// The record.
        record: Record,
        /// It is older than the live start of this session.
        historical: bool,
    },
    /// Records that will never come; delivered once and confirmed by its range like a record.
    Gap(Gap),
}

/// How much a consumer has not confirmed yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Depth {
    /// Records not confirmed, those in flight included.
    pub records: u64,
    /// Their size in bytes.
    pub bytes: u64,
    /// Wall clock of the oldest of them, milliseconds since 1970.
    pub oldest_ms: Option<i64>,
    /// Records lost for this consumer since start.
=======
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
>>>>>>> store
    pub lost: u64,
}
