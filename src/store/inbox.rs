//! What is asked of the store's thread: bounded in bytes (appends) and in number (everything else).

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::error::{AppendError, Closed, ConsumerError};
use super::log::commit::Job;
use super::log::frame::MAX_PAYLOAD;
use super::log::progress::{ConsumerShared, Offer};
use super::log::tail::Tail;
use super::{ConsumerSpec, NewRecord};
use crate::model::{Lane, Record, Seq};

/// Bytes of records that may wait in front of each lane.
const APPEND_BYTES: usize = 1 << 20;
/// Bookkeeping bytes of a waiting record.
const OVERHEAD: usize = 64;
/// Questions that may wait.
const CONTROLS: usize = 64;

/// A registered consumer and the rings that it reads first.
pub(crate) type Registration = Result<(Arc<ConsumerShared>, Arc<Tail>), ConsumerError>;

/// A question to the engine.
#[derive(Debug)]
pub(crate) enum Control {
    Register {
        spec: ConsumerSpec,
        reply: oneshot::Sender<Registration>,
    },
    Remove {
        name: String,
        reply: oneshot::Sender<Result<(), ConsumerError>>,
    },
    Read {
        consumer: Arc<ConsumerShared>,
        lane: Lane,
        from: Seq,
        to: Seq,
        max: usize,
        reply: oneshot::Sender<(Vec<Offer>, Seq)>,
    },
    /// The records of the journal of the state from a place on, and where to go on.
    Journal {
        consumer: Arc<ConsumerShared>,
        from: Seq,
        reply: oneshot::Sender<(Vec<Record>, Seq)>,
    },
    Sync {
        reply: oneshot::Sender<()>,
    },
    Close {
        reply: oneshot::Sender<io::Result<()>>,
    },
}

/// Records to add to one lane.
#[derive(Debug)]
pub(crate) struct Append {
    pub records: VecDeque<NewRecord>,
    pub synced: bool,
    pub last: Seq,
    pub reply: oneshot::Sender<Result<Seq, AppendError>>,
    _room: OwnedSemaphorePermit,
}

#[derive(Debug, Default)]
pub(crate) struct Queues {
    pub controls: VecDeque<(Control, OwnedSemaphorePermit)>,
    /// By lane.
    pub appends: [VecDeque<Append>; 2],
    pub done: Option<Job>,
    closed: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Inbox {
    queues: Mutex<Queues>,
    wake: Condvar,
    room: [Arc<Semaphore>; 2],
    controls: Arc<Semaphore>,
    acked: AtomicBool,
}

impl Inbox {
    pub fn new() -> Self {
        let room = || Arc::new(Semaphore::new(APPEND_BYTES));
        Self {
            queues: Mutex::default(),
            wake: Condvar::new(),
            room: [room(), room()],
            controls: Arc::new(Semaphore::new(CONTROLS)),
            acked: AtomicBool::new(false),
        }
    }

    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds records to their lanes; see [`super::Store::append`].
    pub async fn append(&self, records: Vec<NewRecord>, synced: bool) -> Result<Seq, AppendError> {
        if let Some(large) = records.iter().find(|r| r.payload.len() > MAX_PAYLOAD) {
            return Err(AppendError::TooLarge { len: large.payload.len(), max: MAX_PAYLOAD });
        }
        let Some(last_lane) = records.last().map(|r| r.lane) else { return Ok(0) };
        let (critical, bulk) = if records.iter().all(|r| r.lane == last_lane) {
            let split = if last_lane == Lane::Critical { (records, Vec::new()) } else { (Vec::new(), records) };
            (split.0, split.1)
        } else {
            records.into_iter().partition(|r| r.lane == Lane::Critical)
        };
        let mut replies = Vec::with_capacity(2);
        for (lane, records) in [(Lane::Critical, critical), (Lane::Bulk, bulk)] {
            if !records.is_empty() {
                replies.push((lane, self.enqueue(lane, records, synced).await?));
            }
        }
        let mut last = 0;
        for (lane, reply) in replies {
            let seq = reply.await.map_err(|_| AppendError::Closed)??;
            last = if lane == last_lane { seq } else { last };
        }
        Ok(last)
    }

    async fn enqueue(
        &self,
        lane: Lane,
        records: Vec<NewRecord>,
        synced: bool,
    ) -> Result<oneshot::Receiver<Result<Seq, AppendError>>, AppendError> {
        let bytes: usize = records.iter().map(|r| r.payload.len() + OVERHEAD).sum();
        let permits = bytes.min(APPEND_BYTES) as u32;
        let room =
            self.room[lane as usize].clone().acquire_many_owned(permits).await.map_err(|_| AppendError::Closed)?;
        let (reply, answer) = oneshot::channel();
        let mut queues = self.queues();
        if queues.closed {
            return Err(AppendError::Closed);
        }
        let append = Append { records: records.into(), synced, last: 0, reply, _room: room };
        queues.appends[lane as usize].push_back(append);
        drop(queues);
        self.wake.notify_one();
        Ok(answer)
    }

    /// Asks the engine and waits for its answer.
    pub async fn ask<T>(&self, control: impl FnOnce(oneshot::Sender<T>) -> Control) -> Result<T, Closed> {
        let permit = self.controls.clone().acquire_owned().await.map_err(|_| Closed)?;
        let (reply, answer) = oneshot::channel();
        {
            let mut queues = self.queues();
            if queues.closed {
                return Err(Closed);
            }
            queues.controls.push_back((control(reply), permit));
        }
        self.wake.notify_one();
        answer.await.map_err(|_| Closed)
    }

    /// A job is done.
    pub fn done(&self, job: Job) {
        self.queues().done = Some(job);
        self.wake.notify_one();
    }

    /// A consumer has acknowledged something. Wakes the engine once until it has looked.
    pub fn acked(&self) {
        if !self.acked.swap(true, Ordering::AcqRel) {
            // The lock orders this before a wait that has checked the mark already.
            drop(self.queues());
            self.wake.notify_one();
        }
    }

    /// Whether something was acknowledged; asks to be woken again.
    pub fn take_acked(&self) -> bool {
        self.acked.swap(false, Ordering::AcqRel)
    }

    /// Whether something was acknowledged since [`Inbox::take_acked`].
    pub fn is_acked(&self) -> bool {
        self.acked.load(Ordering::Acquire)
    }

    /// Waits for something to do, at most so long. With `lanes` says which lanes' appends are wanted.
    pub fn wait(&self, at_most: Duration, lanes: [bool; 2], look_at_acks: bool) -> Queues {
        let idle = |q: &mut Queues| {
            let appends = (0..2).any(|i| lanes[i] && !q.appends[i].is_empty());
            let acks = look_at_acks && self.acked.load(Ordering::Acquire);
            q.controls.is_empty() && q.done.is_none() && !appends && !acks
        };
        let guard = self.queues();
        let (mut queues, _) =
            self.wake.wait_timeout_while(guard, at_most, idle).unwrap_or_else(PoisonError::into_inner);
        let mut taken =
            Queues { controls: std::mem::take(&mut queues.controls), done: queues.done.take(), ..Queues::default() };
        for i in (0..2).filter(|&i| lanes[i]) {
            taken.appends[i] = std::mem::take(&mut queues.appends[i]);
        }
        taken
    }

    /// Takes no more; what waits is dropped and its callers find the store closed.
    pub fn close(&self) {
        self.room.iter().for_each(|room| room.close());
        self.controls.close();
        let mut queues = self.queues();
        queues.closed = true;
        queues.controls.clear();
        queues.appends.iter_mut().for_each(VecDeque::clear);
    }

    /// Whether the store is closed.
    pub fn is_closed(&self) -> bool {
        self.queues().closed
    }
}
