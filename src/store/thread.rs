//! The threads of the log: one owns the engine, the other waits for the disk.
//!
//! The engine's thread takes everything that has come in, hands it to the consumers, writes it with one call per lane
//! and answers. It never syncs in the ordinary run: that is a job for the second thread, so that live data passes while
//! the disk is busy.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};

use super::config::{Config, SyncPolicy};
use super::error::{AppendError, ConsumerError, OpenError};
use super::fs::FileSystem;
use super::inbox::{Append, Control, Inbox, Queues};
use super::log::commit::{ACK_WRITE_NS, Job};
use super::log::engine::{Engine, Refusal};
use super::log::erase::Erased;
use super::stats::Stats;
use crate::model::{Lane, Seq};
use crate::platform::clock::SharedClock;
use std::sync::atomic::Ordering;

/// How often the housekeeping is done and the figures are renewed.
const TIDY: Duration = Duration::from_millis(500);
/// How long after records were handed out the engine looks what was acknowledged, unless much is before.
const ACK_LOOK: Duration = Duration::from_nanos(ACK_WRITE_NS);
/// How often an append that the quota holds back is tried again.
const PARKED: Duration = Duration::from_millis(20);
/// Records taken in one turn, so that live data is handed on in between.
const TURN: usize = 4096;

/// Opens the log and starts both threads.
pub(crate) fn start(
    fs: Arc<dyn FileSystem>,
    config: Config,
    clock: SharedClock,
) -> Result<(Arc<Inbox>, watch::Receiver<Stats>), OpenError> {
    let hurried = [&config.critical, &config.bulk].map(|lane| lane.sync == SyncPolicy::Os);
    let always = [&config.critical, &config.bulk].map(|lane| lane.sync == SyncPolicy::Always);
    let engine = Engine::open(fs.clone(), config, clock.now())?;
    let inbox = Arc::new(Inbox::new());
    let (stats, receiver) = watch::channel(engine.stats());
    let (jobs, work) = sync_channel(1);
    let spawn_error = |source| OpenError::Io { act: "start a thread for", path: "the store".into(), source };
    let for_jobs = inbox.clone();
    thread::Builder::new()
        .name("store-sync".into())
        .spawn(move || run_jobs(&*fs, &work, &for_jobs))
        .map_err(spawn_error)?;
    let shell = Shell {
        engine,
        clock,
        inbox: inbox.clone(),
        origin: Instant::now(),
        jobs,
        in_flight: false,
        parked: Default::default(),
        accepted: Vec::new(),
        waiting: VecDeque::new(),
        erasing: BTreeMap::new(),
        stats,
        hurried,
        always,
        owners: Arc::downgrade(&inbox),
    };
    thread::Builder::new().name("store".into()).spawn(move || shell.run()).map_err(spawn_error)?;
    Ok((inbox, receiver))
}

fn run_jobs(fs: &dyn FileSystem, work: &Receiver<Job>, inbox: &Inbox) {
    while let Ok(job) = work.recv() {
        inbox.done(job.run(fs));
    }
}

/// Someone who waits for a commit.
struct Waiting {
    lane: Lane,
    seq: Seq,
    reply: Reply,
}

enum Reply {
    Append(oneshot::Sender<Result<Seq, AppendError>>),
    /// One of several parts; the last one to go answers.
    Sync {
        _all: Arc<SyncReply>,
    },
}

/// Answers when the last part is dropped.
struct SyncReply(Option<oneshot::Sender<()>>);

impl Drop for SyncReply {
    fn drop(&mut self) {
        if let Some(reply) = self.0.take() {
            _ = reply.send(());
        }
    }
}

struct Shell {
    engine: Engine,
    clock: SharedClock,
    inbox: Arc<Inbox>,
    origin: Instant,
    jobs: SyncSender<Job>,
    in_flight: bool,
    /// Appends that the quota holds back, by lane.
    parked: [VecDeque<Append>; 2],
    /// Written in this turn; answered after the flush.
    accepted: Vec<(Lane, Append)>,
    waiting: VecDeque<Waiting>,
    /// Who waits for an erasure, by its number.
    erasing: BTreeMap<u64, oneshot::Sender<Result<Erased, String>>>,
    stats: watch::Sender<Stats>,
    hurried: [bool; 2],
    always: [bool; 2],
    owners: Weak<Inbox>,
}

impl Shell {
    fn run(mut self) {
        let mut tidy_at = Duration::ZERO;
        let mut look_at = None;
        loop {
            let lanes = Lane::ALL.map(|l| self.parked[l as usize].is_empty() && !self.engine.is_congested(l));
            let now = self.origin.elapsed();
            let overdue = self.engine.deadline().is_some_and(|at| at <= nanos(now));
            let erasing = self.engine.is_erasing();
            let job = self.in_flight && (overdue || erasing || !self.waiting.is_empty() || lanes != [true; 2]);
            let Queues { controls, appends, done, .. } =
                self.inbox.wait(self.patience(now, tidy_at, look_at), lanes, job);

            let now = self.origin.elapsed();
            if let Some(job) = done {
                self.in_flight = false;
                self.engine.finish_job(job, nanos(now));
            }
            look_at = look_at.filter(|at| *at > now);
            if !controls.is_empty() || appends.iter().any(|queue| !queue.is_empty()) {
                look_at = look_at.or(Some(now + ACK_LOOK));
            }
            for (i, queue) in appends.into_iter().enumerate() {
                self.parked[i].extend(queue);
            }
            self.append_parked(nanos(now));
            let close = self.answer(controls, nanos(now));
            self.send_job(nanos(self.origin.elapsed()));
            self.settle_waiting();
            for (ticket, result) in self.engine.take_erased() {
                if let Some(reply) = self.erasing.remove(&ticket) {
                    _ = reply.send(result);
                }
            }
            if now >= tidy_at {
                tidy_at = now + TIDY;
                self.tidy();
            }
            // One clone is this thread's, one is that of the other thread.
            let abandoned = self.owners.strong_count() <= 2;
            if close.is_some() || abandoned {
                return self.close(close);
            }
        }
    }

    /// How long nothing is to do. A deadline that has passed while a job runs waits for that job.
    fn patience(&self, now: Duration, tidy_at: Duration, look_at: Option<Duration>) -> Duration {
        let deadline = self.engine.deadline().map(Duration::from_nanos).filter(|at| !self.in_flight || *at > now);
        let parked = self.parked.iter().any(|p| !p.is_empty()).then(|| now + PARKED);
        let until = [Some(tidy_at), deadline, look_at, parked].into_iter().flatten().min();
        until.unwrap_or(tidy_at).saturating_sub(now)
    }

    /// Adds what waits, as far as the engine takes it, then flushes and answers.
    fn append_parked(&mut self, now: u64) {
        if self.parked.iter().all(VecDeque::is_empty) {
            return;
        }
        for lane in Lane::ALL {
            let mut taken = 0;
            while taken < TURN && !self.engine.is_congested(lane) {
                let Some(append) = self.parked[lane as usize].pop_front() else { break };
                taken += append.records.len();
                if !self.append_one(lane, append, now) {
                    break;
                }
            }
        }
        self.engine.flush();
        for (lane, append) in std::mem::take(&mut self.accepted) {
            if append.synced || self.always[lane as usize] {
                if self.hurried[lane as usize] {
                    self.engine.hurry(lane);
                }
                self.waiting.push_back(Waiting { lane, seq: append.last, reply: Reply::Append(append.reply) });
            } else {
                _ = append.reply.send(Ok(append.last));
            }
        }
    }

    /// Says whether the lane takes more.
    fn append_one(&mut self, lane: Lane, mut append: Append, now: u64) -> bool {
        while let Some(record) = append.records.pop_front() {
            let len = record.payload.len();
            match self.engine.append(record, now) {
                Ok(seq) => append.last = seq,
                Err(Refusal::Full(record)) => {
                    append.records.push_front(record);
                    self.parked[lane as usize].push_front(append);
                    return false;
                }
                Err(Refusal::TooLarge(max)) => {
                    _ = append.reply.send(Err(AppendError::TooLarge { len, max }));
                    return true;
                }
                Err(Refusal::Disk(error)) => {
                    _ = append.reply.send(Err(AppendError::Disk(error)));
                    return true;
                }
            }
        }
        self.accepted.push((lane, append));
        true
    }

    /// Answers questions; returns the one to close.
    fn answer<P>(&mut self, controls: VecDeque<(Control, P)>, _now: u64) -> Option<oneshot::Sender<io::Result<()>>> {
        let mut close = None;
        for (control, _permit) in controls {
            match control {
                Control::Register { spec, reply } => {
                    let shared = self.engine.register(&spec.name, spec.start).and_then(|shared| {
                        shared.set_backlog(spec.backlog);
                        let used = shared.in_use.swap(true, Ordering::AcqRel);
                        if used { Err(ConsumerError::InUse(spec.name)) } else { Ok(shared) }
                    });
                    if let Err(Ok((shared, _))) = reply.send(shared.map(|shared| (shared, self.engine.tail()))) {
                        shared.in_use.store(false, Ordering::Release);
                    }
                }
                Control::Remove { name, reply } => _ = reply.send(self.engine.remove(&name)),
                Control::Read { consumer, lane, from, to, max, reply } => {
                    if !reply.is_closed() {
                        _ = reply.send(self.engine.read(&consumer, lane, from, to, max));
                    }
                }
                Control::Journal { consumer, from, reply } => _ = reply.send(self.engine.read_journal(&consumer, from)),
                Control::Sync { reply } => {
                    let all = Arc::new(SyncReply(Some(reply)));
                    for lane in Lane::ALL {
                        self.engine.hurry(lane);
                        let seq = self.engine.last(lane);
                        self.waiting.push_back(Waiting { lane, seq, reply: Reply::Sync { _all: all.clone() } });
                    }
                }
                Control::Erase { erasure, reply } => _ = self.erasing.insert(self.engine.erase(erasure), reply),
                Control::Close { reply } => close = Some(reply),
            }
        }
        close
    }

    fn send_job(&mut self, now: u64) {
        if self.in_flight {
            return;
        }
        if let Some(job) = self.engine.next_job(now) {
            self.in_flight = self.jobs.send(job).is_ok();
        }
    }

    fn settle_waiting(&mut self) {
        let engine = &self.engine;
        let mut still = VecDeque::new();
        for Waiting { lane, seq, reply } in self.waiting.drain(..) {
            let durable = engine.durable(lane) >= seq;
            let lost = engine.is_lost(lane, seq);
            match reply {
                Reply::Append(reply) if lost => _ = reply.send(Err(AppendError::Lost(seq))),
                Reply::Append(reply) if durable => _ = reply.send(Ok(seq)),
                Reply::Sync { .. } if durable || lost => {}
                reply => still.push_back(Waiting { lane, seq, reply }),
            }
        }
        self.waiting = still;
    }

    fn tidy(&mut self) {
        self.engine.tidy(self.clock.now());
        self.engine.update_depths();
        self.stats.send_replace(self.engine.stats());
    }

    fn close(mut self, reply: Option<oneshot::Sender<io::Result<()>>>) {
        self.inbox.close();
        while self.in_flight {
            let queues = self.inbox.wait(TIDY, [false; 2], true);
            if let Some(job) = queues.done {
                self.in_flight = false;
                self.engine.finish_job(job, nanos(self.origin.elapsed()));
            }
        }
        let result = self.engine.close(nanos(self.origin.elapsed()));
        if let Err(error) = &result {
            tracing::error!(%error, "the store cannot be closed cleanly; the next start reports what is missing");
        }
        self.settle_waiting();
        self.engine.update_depths();
        self.stats.send_replace(self.engine.stats());
        self.engine.tail().changed.notify_waiters();
        drop(self.engine);
        if let Some(reply) = reply {
            _ = reply.send(result);
        }
    }
}

fn nanos(since: Duration) -> u64 {
    since.as_nanos() as u64
}
