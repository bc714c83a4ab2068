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
    pub lost: u64,
}
