//! The file system as the log sees it, so that a test can cut the power.
//!
//! Promise: the log touches files through [`FileSystem`] and [`File`] only. A write is durable after the `sync` of its
//! file, a new or renamed name after the `sync_dir` of its directory, and neither before. Every sync names its
//! [`SyncPoint`]; the simulated file system can leave one out, and a test proves that each of them is needed.

mod real;
pub mod sim;

use std::fmt::Debug;
use std::io;
use std::path::Path;
use std::sync::Arc;

pub use real::RealFs;

/// Every place in the log that waits for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SyncPoint {
    /// The directories of the lanes, when they are made.
    LaneDirectory,
    /// A lane's directory after a segment was created or renamed.
    SegmentDirectory,
    /// The frames of a group commit.
    SegmentData,
    /// A lane's directory after its ack file was created or replaced.
    AckDirectory,
    /// Frames found after an unclean stop, before anybody relies on them.
    Recovery,
    /// The first slot written after opening: withdraws the mark of a clean stop.
    Opening,
    /// Sequence numbers reserved ahead.
    Reservation,
    /// A consumer registered.
    Registration,
    /// A consumer removed.
    Removal,
    /// Acknowledgements and gaps, before the segments that they release are used again.
    Acknowledgement,
    /// The mark of a clean stop.
    Closing,
    /// Records overwritten because they are erased.
    Erasure,
}

impl SyncPoint {
    /// All of them.
    pub const ALL: [SyncPoint; 12] = [
        SyncPoint::LaneDirectory,
        SyncPoint::SegmentDirectory,
        SyncPoint::SegmentData,
        SyncPoint::AckDirectory,
        SyncPoint::Recovery,
        SyncPoint::Opening,
        SyncPoint::Reservation,
        SyncPoint::Registration,
        SyncPoint::Removal,
        SyncPoint::Acknowledgement,
        SyncPoint::Closing,
        SyncPoint::Erasure,
    ];
}

/// How to open a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Open {
    /// For reading; it must exist.
    Read,
    /// For reading and writing; it must exist.
    ReadWrite,
    /// For reading and writing; it is made empty.
    Create,
}

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Name without the directory.
    pub name: String,
    /// Length in bytes.
    pub len: u64,
}

/// An open file. Positions are absolute, so one handle serves readers and the writer.
#[allow(clippy::len_without_is_empty, reason = "a file is asked for its length, never whether it is empty")]
pub trait File: Debug + Send + Sync {
    /// Reads up to `buf.len()` bytes at `offset`; fewer only at the end of the file.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `data` at `offset`.
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()>;
    /// Makes everything written so far durable (`fdatasync`).
    fn sync(&self, point: SyncPoint) -> io::Result<()>;
    /// Asks for early write-out, so that a later sync is short. Success promises nothing; after a failure the file must
    /// not be used, because the kernel reports a write-out error once only.
    fn write_out(&self) -> io::Result<()>;
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
}

/// Held as long as this process owns the store.
pub trait Lock: Debug + Send + Sync {}

/// The file operations that the log needs.
pub trait FileSystem: Debug + Send + Sync {
    /// Makes one directory; it is no error when it exists. Says whether it was made now.
    fn make_dir(&self, dir: &Path) -> io::Result<bool>;
    /// The plain files of a directory, in no order.
    fn list(&self, dir: &Path) -> io::Result<Vec<Entry>>;
    /// Opens a file.
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn File>>;
    /// Renames a file or a directory, replacing a file at the target.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path, point: SyncPoint) -> io::Result<()>;
    /// Takes the lock file, or fails with [`io::ErrorKind::WouldBlock`] when another process holds it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Lock>>;
    /// A number that changes when what was written but not synced may be gone: after a boot or a new mount. A process
    /// that was killed finds the same number, because the page cache outlived it.
    fn incarnation(&self, dir: &Path) -> u64;
}
