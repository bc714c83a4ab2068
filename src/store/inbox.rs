//! What is asked of the store's thread: bounded in bytes (appends) and in number (everything else).

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::error::{AppendError, Closed, ConsumerError};
use super::log::commit::{ACK_WRITE, Job};
use super::log::erase::{Erased, Erasure};
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

/// What becomes of records handed over: the number of the last one.
pub(crate) type Answer = oneshot::Receiver<Result<Seq, AppendError>>;

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
    Erase {
        erasure: Erasure,
        reply: oneshot::Sender<Result<Erased, String>>,
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
    /// Whether the engine wants to be woken when a job is done.
    awaits_job: bool,
    closed: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Inbox {
    queues: Mutex<Queues>,
    wake: Condvar,
    room: [Arc<Semaphore>; 2],
    controls: Arc<Semaphore>,
    /// Acknowledgements since the engine looked last.
    acked: AtomicU64,
}

impl Inbox {
    pub fn new() -> Self {
        let room = || Arc::new(Semaphore::new(APPEND_BYTES));
        Self {
            queues: Mutex::default(),
            wake: Condvar::new(),
            room: [room(), room()],
            controls: Arc::new(Semaphore::new(CONTROLS)),
            acked: AtomicU64::new(0),
        }
    }

    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds records to their lanes; see [`super::Store::append`].
    pub async fn append(&self, records: Vec<NewRecord>, synced: bool) -> Result<Seq, AppendError> {
        let Some(last_lane) = records.last().map(|r| r.lane) else { return Ok(0) };
        let mut last = 0;
        for (lane, reply) in self.hand_over(records, synced).await? {
            let seq = reply.await.map_err(|_| AppendError::Closed)??;
            last = if lane == last_lane { seq } else { last };
        }
        Ok(last)
    }

    /// Hands records to the engine, by lane, with the answer of each lane to come; waits for room only.
    pub async fn hand_over(&self, records: Vec<NewRecord>, synced: bool) -> Result<Vec<(Lane, Answer)>, AppendError> {
        if let Some(large) = records.iter().find(|r| r.payload.len() > MAX_PAYLOAD) {
            return Err(AppendError::TooLarge { len: large.payload.len(), max: MAX_PAYLOAD });
        }
        let (critical, bulk): (Vec<_>, Vec<_>) = match records.first().map(|r| r.lane) {
            Some(Lane::Bulk) if records.iter().all(|r| r.lane == Lane::Bulk) => (Vec::new(), records),
            _ => records.into_iter().partition(|r| r.lane == Lane::Critical),
        };
        let mut answers = Vec::with_capacity(2);
        for (lane, records) in [(Lane::Critical, critical), (Lane::Bulk, bulk)] {
            if !records.is_empty() {
                answers.push((lane, self.enqueue(lane, records, synced).await?));
            }
        }
        Ok(answers)
    }

    async fn enqueue(&self, lane: Lane, records: Vec<NewRecord>, synced: bool) -> Result<Answer, AppendError> {
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

    /// A job is done. Wakes the engine only if it waits for that; otherwise it sees it when it looks next.
    pub fn done(&self, job: Job) {
        let mut queues = self.queues();
        queues.done = Some(job);
        let wake = queues.awaits_job;
        drop(queues);
        if wake {
            self.wake.notify_one();
        }
    }

    /// A consumer has acknowledged `count` records. Wakes the engine when they are worth writing down; it looks by itself
    /// some time after it handed records out.
    pub fn acked(&self, count: u64) {
        let before = self.acked.fetch_add(count, Ordering::AcqRel);
        if before < ACK_WRITE && before.saturating_add(count) >= ACK_WRITE {
            // The lock orders this before a wait that has checked the number already.
            drop(self.queues());
            self.wake.notify_one();
        }
    }

    /// Waits for something to do, at most so long: a question, appends to the `lanes` that are wanted, many
    /// acknowledgements, and, with `job`, a job that is done.
    pub fn wait(&self, at_most: Duration, lanes: [bool; 2], job: bool) -> Queues {
        let idle = |q: &mut Queues| {
            let appends = (0..2).any(|i| lanes[i] && !q.appends[i].is_empty());
            let acks = self.acked.load(Ordering::Acquire) >= ACK_WRITE;
            let done = job && q.done.is_some();
            q.controls.is_empty() && !done && !appends && !acks
        };
        let mut guard = self.queues();
        guard.awaits_job = job;
        let (mut queues, _) =
            self.wake.wait_timeout_while(guard, at_most, idle).unwrap_or_else(PoisonError::into_inner);
        queues.awaits_job = false;
        self.acked.store(0, Ordering::Release);
        let mut taken =
            Queues { controls: std::mem::take(&mut queues.controls), done: queues.done.take(), ..Queues::default() };
        for i in (0..2).filter(|&i| lanes[i]) {
            taken.appends[i] = std::mem::take(&mut queues.appends[i]);
        }
        taken
    }

    /// Resolves when every append that was enqueued before has been dealt with.
    pub async fn drained(&self) -> Result<(), Closed> {
        for room in &self.room {
            drop(room.acquire_many(APPEND_BYTES as u32).await.map_err(|_| Closed)?);
        }
        Ok(())
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
