//! Store and forward: the log of records, and the keyed state.
//!
//! Promise: a record is *accepted* when [`Store::append`] returns; from then on it survives the death of the process.
//! After the group commit (5 ms critical, 100 ms bulk, configurable) it survives a power cut. It leaves the log when
//! every registered consumer has acknowledged it, or when a quota evicts it, and then each consumer that had not got it
//! receives a [`Gap`](crate::model::Gap) that says how many, when and why. Or somebody decides that it is erased
//! ([`Store::erase`]), and tells what went undelivered. Nothing else removes it: no restart, no change of broker, topic or
//! encoding, no consumer that is away, no damaged file.
//!
//! Live data does not wait for the disk: what is appended is in the memory of [`Tail`](log::tail) at once, and a consumer
//! that falls behind reads the log without noticing. There is no online or offline mode.
//!
//! Limits: one quota in bytes for the log, never exceeded on disk; about 2 MiB of memory plus 1 MiB for the lane that
//! cannot write; 16 consumers; payloads up to 256 KiB. Queues in front of the log are bounded in bytes; `append` waits
//! when they are full.
//!
//! Parts: [`log`] is the engine, synchronous and without a thread, above the files of [`fs`]; `thread` runs it;
//! [`Consumer`] is one reader. It must not know brokers, topics or devices.

mod config;
mod consumer;
mod error;
pub mod export;
pub mod fs;
mod fuzz;
mod inbox;
pub mod inspect;
mod log;
pub mod state;
mod stats;
#[cfg(test)]
mod tests;
mod thread;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

pub use config::{Config, LaneConfig, MIN_QUOTA, OnFull, SyncPolicy};
pub use consumer::Consumer;
pub use error::{AppendError, CloseError, Closed, ConsumerError, EraseError, OpenError};
#[doc(hidden)]
pub use fuzz::{fuzz_acks, fuzz_segment};
pub use log::erase::{Erased, Erasure, IsMeant};
pub use log::frame::MAX_PAYLOAD;
pub use state::{Op, StateError, StateStore};
pub use stats::{ConsumerStats, LaneStats, Stats};

use crate::model::{Lane, RecordKind, Seq};
use crate::platform::clock::SharedClock;
use fs::{FileSystem, RealFs};
use inbox::{Control, Inbox};

/// A record before it has its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRecord {
    /// Lane it goes to.
    pub lane: Lane,
    /// What the payload is.
    pub kind: RecordKind,
    /// crc32c of the device id; 0 for the gateway itself.
    pub device: u32,
    /// Wall clock now, milliseconds since 1970; for people and the age quota, never for order.
    pub ts_ms: i64,
    /// Samples in the payload, 1 for anything but telemetry.
    pub count: u16,
    /// Encoded message, at most [`MAX_PAYLOAD`] bytes.
    pub payload: Bytes,
}

/// Where a consumer that was never seen before begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Start {
    /// At the oldest record in the log.
    #[default]
    Oldest,
    /// At the next record.
    Now,
}

/// How much may wait for a consumer that is away. What is beyond is given up for this consumer alone, oldest first and
/// telemetry before events; it gets a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Backlog {
    /// Most bytes, to within a segment.
    pub bytes: Option<u64>,
    /// Greatest age, to within a segment; counts as [`LaneConfig::max_age`] does.
    pub age: Option<Duration>,
}

/// Who reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerSpec {
    /// Name under which its place is kept: 1 to 64 characters of `A-Z a-z 0-9 . _ ~ -`, not beginning with `~`.
    pub name: String,
    /// Where it begins when the name is new.
    pub start: Start,
    /// What may wait for it; of the last session that was begun.
    pub backlog: Backlog,
}

/// The store of this process; clones share it. Dropping all clones and consumers stops it as [`Store::close`] does, but
/// without waiting.
#[derive(Debug, Clone)]
pub struct Store {
    inbox: Arc<Inbox>,
    stats: watch::Receiver<Stats>,
    state: StateStore,
}

impl Store {
    /// Opens the store in `config.dir`, making what is missing, and starts its threads.
    ///
    /// # Errors
    /// When another process has it open, the directory cannot be used, or the configuration is wrong. Damage never is
    /// an error: it is reported as gaps.
    pub fn open(config: Config, clock: SharedClock) -> Result<Self, OpenError> {
        Self::open_on(Arc::new(RealFs), config, clock)
    }

    /// Like [`Store::open`], with the log on another file system. The state is always on real files.
    pub fn open_on(fs: Arc<dyn FileSystem>, config: Config, clock: SharedClock) -> Result<Self, OpenError> {
        let state_dir = config.dir.join("state");
        let (inbox, stats) = thread::start(fs, config, clock.clone())?;
        let state = state::writer::start(&state_dir, inbox.clone(), clock)?;
        Ok(Self { inbox, stats, state })
    }

    /// Adds records; waits while the queue in front of the log is full. Returns the number of the last one, when all
    /// are accepted: written to the log and handed to the consumers.
    ///
    /// Cancelling it while it waits for room adds nothing; cancelling it later does not take the records back.
    ///
    /// # Errors
    /// A record is too large (then none is added), the store was closed, or no number can be reserved because the disk
    /// fails.
    pub async fn append(&self, records: Vec<NewRecord>) -> Result<Seq, AppendError> {
        self.inbox.append(records, false).await
    }

    /// Hands records to the log in order without waiting until they are in it; waits only while 1 MiB of a lane is on its
    /// way. What the disk then refuses is counted and told as a gap, as for every record.
    ///
    /// # Errors
    /// [`AppendError::TooLarge`] and [`AppendError::Closed`]; nothing of `records` is kept then.
    pub async fn offer(&self, records: Vec<NewRecord>) -> Result<(), AppendError> {
        self.inbox.hand_over(records, false).await.map(drop)
    }

    /// Resolves when everything that was offered before has been dealt with.
    pub async fn drained(&self) -> Result<(), Closed> {
        self.inbox.drained().await
    }

    /// Like [`Store::append`], but returns after the commit that makes the records survive a power cut.
    ///
    /// # Errors
    /// Also when the disk failed so long that the records were lost from memory.
    pub async fn append_synced(&self, records: Vec<NewRecord>) -> Result<Seq, AppendError> {
        self.inbox.append(records, true).await
    }

    /// Registers a consumer, or goes on with one that is known. The registration is durable when this returns.
    ///
    /// # Errors
    /// The name is wrong or in use, there are too many, or the disk fails.
    pub async fn consumer(&self, spec: ConsumerSpec) -> Result<Consumer, ConsumerError> {
        check_name(&spec.name)?;
        let name = spec.name.clone();
        let reply = self.inbox.ask(|reply| Control::Register { spec, reply }).await;
        let (shared, tail) = reply.map_err(|Closed| ConsumerError::Closed(name))??;
        Ok(Consumer::new(shared, tail, self.inbox.clone()))
    }

    /// Forgets a consumer for good and releases what only it was waiting for.
    ///
    /// # Errors
    /// There is none of that name, or the disk fails.
    pub async fn remove_consumer(&self, name: &str) -> Result<(), ConsumerError> {
        check_name(name)?;
        let owned = name.to_owned();
        let reply = self.inbox.ask(|reply| Control::Remove { name: owned, reply }).await;
        reply.map_err(|Closed| ConsumerError::Closed(name.to_owned()))?
    }

    /// Erases records, in memory and on the disk, whatever is held back for them; see [`log::erase`]. What was appended before
    /// this call is looked at, records that are appended later are not.
    ///
    /// # Errors
    /// The disk refuses; some of it may be done then, and the rest is when it is asked for again.
    pub async fn erase(&self, erasure: Erasure) -> Result<Erased, EraseError> {
        self.inbox.drained().await.map_err(|Closed| EraseError::Closed)?;
        let reply = self.inbox.ask(|reply| Control::Erase { erasure, reply }).await;
        reply.map_err(|Closed| EraseError::Closed)?.map_err(EraseError::Disk)
    }

    /// Figures, renewed about twice a second.
    pub fn stats(&self) -> watch::Receiver<Stats> {
        self.stats.clone()
    }

    /// The keyed state.
    pub fn state(&self) -> &StateStore {
        &self.state
    }

    /// Waits until everything accepted so far is synced, or known to be lost to a failing disk.
    pub async fn sync(&self) {
        _ = self.inbox.ask(|reply| Control::Sync { reply }).await;
    }

    /// Syncs everything, marks the log as cleanly stopped and stops the threads. Consumers and other clones find it
    /// closed.
    ///
    /// # Errors
    /// Something could not be synced; the next start reports what is missing.
    pub async fn close(self) -> Result<(), CloseError> {
        self.state.close().await;
        match self.inbox.ask(|reply| Control::Close { reply }).await {
            Ok(result) => result.map_err(CloseError),
            Err(Closed) => Ok(()),
        }
    }
}

fn check_name(name: &str) -> Result<(), ConsumerError> {
    let legal = !name.starts_with(log::engine::INTERNAL) && crate::model::DeviceId::new(name).is_ok();
    if legal { Ok(()) } else { Err(ConsumerError::Name(name.to_owned())) }
}
