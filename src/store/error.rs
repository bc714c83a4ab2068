//! What can go wrong, in words for people.

use std::io;
use std::path::PathBuf;

/// The store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("another fieldgate process uses the store in {0}; stop it first, or give this one another directory")]
    Locked(PathBuf),
    /// A newer version wrote it.
    #[error(
        "the log in {dir} has format {version}, which a newer fieldgate wrote; use that version, or move the directory away to begin anew"
    )]
    Newer {
        /// The directory.
        dir: PathBuf,
        /// Its format.
        version: u32,
    },
    /// The settings are wrong.
    #[error("the store's configuration is wrong: {0}")]
    Config(String),
    /// The disk refused.
    #[error("cannot {act} {path}: {source}")]
    Io {
        /// What was tried.
        act: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Records were not added.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// One is too large; none was added.
    #[error("a record of {len} bytes is longer than the {max} bytes that the log takes; send smaller batches")]
    TooLarge {
        /// Bytes of its payload.
        len: usize,
        /// Bytes that are allowed.
        max: usize,
    },
    /// The disk fails so long that not even a number can be given out.
    #[error("the disk of the store fails: {0}")]
    Disk(String),
    /// Accepted, then lost because the disk kept failing; consumers get a gap.
    #[error("record {0} was lost before it could be synced, because the disk kept failing")]
    Lost(u64),
    /// The store is closed.
    #[error("the store is closed")]
    Closed,
}

/// A consumer cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConsumerError {
    /// Not a name.
    #[error("{0:?} is no name for a consumer; use 1 to 64 characters of A-Z a-z 0-9 . _ ~ - and do not begin with ~")]
    Name(String),
    /// Two would acknowledge for each other.
    #[error("consumer {0} is in use; stop the other session first")]
    InUse(String),
    /// No room in the ack file.
    #[error("the store keeps at most {0} consumers; remove one that is not needed any more")]
    TooMany(usize),
    /// There is none of that name.
    #[error("there is no consumer {0}")]
    Unknown(String),
    /// The change is not durable.
    #[error("consumer {0} cannot be saved: {1}")]
    Disk(String, String),
    /// The store is closed.
    #[error("consumer {0} cannot be had: the store is closed")]
    Closed(String),
}

/// Nothing, or not all, was erased; it can be asked for again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EraseError {
    /// The disk refused.
    #[error("records cannot be erased: {0}")]
    Disk(String),
    /// The store is closed.
    #[error("the store is closed")]
    Closed,
}

/// The store, or this consumer, is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the store is closed")]
pub struct Closed;

/// Not everything was synced.
#[derive(Debug, thiserror::Error)]
#[error("the store was not closed cleanly: {0}; the next start reports what is missing")]
pub struct CloseError(#[source] pub io::Error);
