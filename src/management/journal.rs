//! Where management keeps its state: a durable, ordered map of a few tables, changed by atomic batches.
//!
//! Promise asked of an implementation: when [`Journal::commit`] returns `Ok`, every change of the batch survives a power
//! cut; when the process ends inside it, either all of the batch or nothing is there at the next start. When it returns
//! an error, either may be the case, so the caller reads its state again (the same path as after a crash).
//!
//! Size: a few records per device, small (under 64 KiB each), rarely written. `app` adapts the state store; because a batch
//! spans tables, an adapter keeps all of them in one tree with keys `{table}/{key}`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

/// The tables. The name is the name on disk: never reuse one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Shelf {
    /// One record per device: where it is in its life.
    Devices,
    /// One record per target (device or gateway): the configuration job.
    Config,
    /// One record per target and version: history of configurations.
    History,
    /// One record per device: its clock.
    Clocks,
    /// Answers given, by requester and correlation id.
    Answers,
    /// Audit entries on their way to the log.
    Audit,
    /// Enrolment tokens, hashed.
    Tokens,
    /// Who holds which role.
    Grants,
    /// Transfers to and from other gateways.
    Transfers,
    /// Single values: counters, the claim code's hash.
    Meta,
}

impl Shelf {
    /// The table with this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|shelf| shelf.as_str() == name)
    }

    /// All tables.
    pub const ALL: [Shelf; 10] = [
        Shelf::Devices,
        Shelf::Config,
        Shelf::History,
        Shelf::Clocks,
        Shelf::Answers,
        Shelf::Audit,
        Shelf::Tokens,
        Shelf::Grants,
        Shelf::Transfers,
        Shelf::Meta,
    ];

    /// Name of the table on disk.
    pub const fn as_str(self) -> &'static str {
        match self {
            Shelf::Devices => "management.devices",
            Shelf::Config => "management.config",
            Shelf::History => "management.history",
            Shelf::Clocks => "management.clocks",
            Shelf::Answers => "management.answers",
            Shelf::Audit => "management.audit",
            Shelf::Tokens => "management.tokens",
            Shelf::Grants => "management.grants",
            Shelf::Transfers => "management.transfers",
            Shelf::Meta => "management.meta",
        }
    }
}

/// One change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The table.
    pub shelf: Shelf,
    /// The key.
    pub key: String,
    /// The new value; `None` removes the key.
    pub value: Option<Bytes>,
}

/// The state could not be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// The medium refused.
    #[error("{act} management state: {reason}")]
    Medium {
        /// `read` or `write`.
        act: &'static str,
        /// What the store said.
        reason: String,
    },
    /// A record is not what this version understands.
    #[error(
        "management record {shelf}/{key} is not readable: {reason}; restore the data directory or remove the record"
    )]
    Record {
        /// The table.
        shelf: &'static str,
        /// The key.
        key: String,
        /// What the parser said.
        reason: String,
    },
}

/// Durable keyed state.
pub trait Journal: Send + 'static {
    /// Everything, at the start and after a failed commit.
    ///
    /// # Errors
    /// [`JournalError::Medium`].
    fn load(&self) -> impl Future<Output = Result<Records, JournalError>> + Send;

    /// Makes all changes durable together, across tables.
    ///
    /// # Errors
    /// [`JournalError::Medium`]; the batch may or may not be there then.
    fn commit(&mut self, changes: Vec<Change>) -> impl Future<Output = Result<(), JournalError>> + Send;
}

/// Everything that a journal holds.
#[derive(Debug, Clone, Default)]
pub struct Records {
    shelves: BTreeMap<Shelf, BTreeMap<String, Bytes>>,
}

impl Records {
    /// Adds a record.
    pub fn insert(&mut self, shelf: Shelf, key: String, value: Bytes) {
        self.shelves.entry(shelf).or_default().insert(key, value);
    }

    /// Reads all records of a table.
    pub(crate) fn read_all<T: DeserializeOwned>(&self, shelf: Shelf) -> Result<BTreeMap<String, T>, JournalError> {
        let parse = |(key, value): (&String, &Bytes)| match serde_json::from_slice(value) {
            Ok(record) => Ok((key.clone(), record)),
            Err(e) => Err(JournalError::Record { shelf: shelf.as_str(), key: key.clone(), reason: e.to_string() }),
        };
        self.shelves.get(&shelf).into_iter().flatten().map(parse).collect()
    }

    /// All values, for tests that look for what must not be there.
    pub fn values(&self) -> impl Iterator<Item = &Bytes> {
        self.shelves.values().flat_map(BTreeMap::values)
    }
}

/// A record as the journal keeps it.
pub(crate) fn record<T: Serialize>(value: &T) -> Bytes {
    serde_json::to_vec(value).expect("records have string keys and writers to memory do not fail").into()
}

/// A journal in memory that outlives its users, as a disk outlives a process, and that can lose power after a number of
/// commits. For tests and for the gateway's demo, where nothing has to survive.
#[derive(Clone, Default)]
pub struct MemoryJournal {
    disk: Arc<Mutex<Disk>>,
}

#[derive(Default)]
struct Disk {
    shelves: BTreeMap<(Shelf, String), Bytes>,
    commits: u64,
    power_ends_after: Option<u64>,
    /// The commit at which the power goes is on the disk all the same.
    last_one_lands: bool,
}

impl MemoryJournal {
    /// Every commit after the next `commits` fails, until [`Self::restore_power`].
    pub fn cut_power_after(&self, commits: u64) {
        let mut disk = self.disk();
        disk.power_ends_after = Some(disk.commits + commits);
    }

    /// As [`Self::cut_power_after`], but the first commit that fails is on the disk all the same: the power went after the
    /// write and before its confirmation.
    pub fn cut_power_in(&self, commits: u64) {
        self.cut_power_after(commits);
        self.disk().last_one_lands = true;
    }

    /// Commits succeed again.
    pub fn restore_power(&self) {
        let mut disk = self.disk();
        (disk.power_ends_after, disk.last_one_lands) = (None, false);
    }

    /// How many commits succeeded so far.
    pub fn commits(&self) -> u64 {
        self.disk().commits
    }

    /// How many records a table holds.
    pub fn len(&self, shelf: Shelf) -> usize {
        self.disk().shelves.keys().filter(|(s, _)| *s == shelf).count()
    }

    /// [`Journal::load`] without a future.
    pub fn records(&self) -> Records {
        let mut records = Records::default();
        for ((shelf, key), value) in &self.disk().shelves {
            records.insert(*shelf, key.clone(), value.clone());
        }
        records
    }

    /// [`Journal::commit`] without a future, for tests of the cores.
    ///
    /// # Errors
    /// While the power is off.
    pub fn apply(&self, changes: Vec<Change>) -> Result<(), JournalError> {
        let mut disk = self.disk();
        let is_off = disk.power_ends_after.is_some_and(|last| disk.commits >= last);
        if is_off && !std::mem::take(&mut disk.last_one_lands) {
            return Err(JournalError::Medium { act: "write", reason: "the power is off".to_owned() });
        }
        disk.commits += 1;
        for Change { shelf, key, value } in changes {
            match value {
                Some(value) => disk.shelves.insert((shelf, key), value),
                None => disk.shelves.remove(&(shelf, key)),
            };
        }
        if is_off {
            return Err(JournalError::Medium { act: "write", reason: "the power went".to_owned() });
        }
        Ok(())
    }

    fn disk(&self) -> std::sync::MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for MemoryJournal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryJournal").field("commits", &self.commits()).finish_non_exhaustive()
    }
}

impl Journal for MemoryJournal {
    async fn load(&self) -> Result<Records, JournalError> {
        Ok(self.records())
    }

    async fn commit(&mut self, changes: Vec<Change>) -> Result<(), JournalError> {
        self.apply(changes)
    }
}
