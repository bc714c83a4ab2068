//! The segmented log: an engine that is synchronous, owns no thread and reads no clock.
//!
//! Layout of `<dir>/buffer`: `FORMAT`, `lock`, `reserve`, and per lane a directory with segments
//! (`<base:020>.seg`, see [`segment`]), spares (`*.spare`) and the ack file (`acks`, see [`acks`]).
//!
//! Promises
//! - A record is *accepted* when it was written to its segment; it survives the death of the process. It is *synced*
//!   after the group commit; it survives a power cut.
//! - A sequence number is given out only below a durable reservation, so none is given out twice.
//! - A segment is used again only when its release is durable: every registered consumer has acknowledged all of it, or
//!   a gap says that it was evicted. So a power cut between the two repeats records, and never loses one unreported.
//! - What cannot be read is a gap of exactly the numbers that are missing; the rest of the segment is delivered.
//! - After a failed write or sync the file is not trusted again: what it held beyond the last sync is written anew to
//!   another file from memory.
//!
//! What it must not do: wait (every sync that may be slow is a [`commit::Job`] for another thread; the exceptions are
//! registration of consumers and a quota so tight that a release must be waited for), keep more than its stated bounds
//! in memory, or believe the wall clock.

pub(crate) mod acks;
mod backlog;
pub(crate) mod commit;
pub(crate) mod engine;
pub(crate) mod erase;
mod figures;
pub(crate) mod frame;
pub(crate) mod holes;
pub(crate) mod intervals;
pub(crate) mod lane;
pub(crate) mod progress;
mod quota;
mod read;
pub(crate) mod recovery;
pub(crate) mod scan;
pub(crate) mod segment;
pub(crate) mod tail;
#[cfg(test)]
mod tests;
