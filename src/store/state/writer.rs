//! The one thread that changes the state.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};

use super::db::Shared;
use super::journal::{Change, Kind};
use super::{EPOCH_KEY, MAX_VALUE, OWN_TREE, Op, QUEUE, StateError, StateStore};
use crate::model::{Lane, Record, RecordKind, Seq};
use crate::platform::clock::SharedClock;
use crate::store::inbox::{Control, Inbox};
use crate::store::log::progress::ConsumerShared;
use crate::store::{AppendError, Backlog, ConsumerSpec, NewRecord, OpenError, Start};

/// Name under which the journal holds back its records in the log.
pub(crate) const JOURNAL: &str = "~state";
/// Longest time that a lazy change waits.
const WRITE_BEHIND: Duration = Duration::from_millis(800);
/// The journal is compacted when it is longer than this and than four times the state.
const COMPACT_BYTES: usize = 256 * 1024;
/// How often the writer looks whether the journal holds back a segment that nothing else needs.
const PIN_CHECK: Duration = Duration::from_secs(10);

/// Something to do for the writer.
#[derive(Debug)]
pub(crate) enum Request {
    Durable {
        change: Change,
        reply: oneshot::Sender<Result<(), StateError>>,
    },
    NextEpoch {
        reply: oneshot::Sender<Result<u64, StateError>>,
    },
    Flush {
        reply: oneshot::Sender<Result<(), StateError>>,
    },
    /// Lazy changes begin to wait.
    WriteBehind,
    Rebuild,
    /// Writes what waits and lets go of the files.
    Close {
        reply: oneshot::Sender<()>,
    },
}

struct Writer {
    shared: Arc<Shared>,
    inbox: Arc<Inbox>,
    clock: SharedClock,
    place: Arc<ConsumerShared>,
    runtime: Runtime,
    /// Bytes in the journal since the last snapshot.
    journal_bytes: usize,
    snapshot_bytes: usize,
}

/// Opens the state in `dir`, brings it up to date from the journal and starts its thread.
pub(crate) fn start(dir: &Path, inbox: Arc<Inbox>, clock: SharedClock) -> Result<StateStore, OpenError> {
    let fail = |act: &'static str| move |source| OpenError::Io { act, path: dir.to_path_buf(), source };
    let shared = Arc::new(Shared::open(dir).map_err(fail("open the state in"))?);
    let (sender, requests) = mpsc::channel(QUEUE);
    let (opened, result) = std::sync::mpsc::sync_channel(1);
    let for_writer = shared.clone();
    // The caller may be a task of a runtime, where this thread's own runtime must not run.
    let work = move || match Writer::open(for_writer, inbox, clock) {
        Ok(writer) => {
            _ = opened.send(Ok(()));
            writer.run(requests);
        }
        Err(error) => _ = opened.send(Err(error)),
    };
    thread::Builder::new().name("store-state".into()).spawn(work).map_err(fail("start a thread for"))?;
    let gone = |_| Err(io::Error::other("its thread stopped"));
    result.recv().unwrap_or_else(gone).map_err(fail("bring up to date the state in"))?;
    Ok(StateStore { shared, requests: sender })
}

impl Writer {
    fn open(shared: Arc<Shared>, inbox: Arc<Inbox>, clock: SharedClock) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let spec = ConsumerSpec { name: JOURNAL.to_owned(), start: Start::Oldest, backlog: Backlog::default() };
        let registered = runtime.block_on(inbox.ask(|reply| Control::Register { spec, reply }));
        let (place, _tail) = registered.map_err(io::Error::other)?.map_err(io::Error::other)?;
        let mut writer = Self { shared, inbox, clock, place, runtime, journal_bytes: 0, snapshot_bytes: 0 };
        writer.catch_up()?;
        Ok(writer)
    }

    fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut behind_since: Option<Instant> = None;
        let mut pin_checked = Instant::now();
        loop {
            if behind_since.is_some_and(|since| since.elapsed() >= WRITE_BEHIND) {
                behind_since = None;
                self.write_behind();
            }
            if pin_checked.elapsed() >= PIN_CHECK {
                pin_checked = Instant::now();
                self.compact_if_long();
            }
            if self.shared.has_pending() {
                behind_since.get_or_insert_with(Instant::now);
            }
            let patience = behind_since.map_or(PIN_CHECK, |since| WRITE_BEHIND.saturating_sub(since.elapsed()));
            match self.runtime.block_on(async { tokio::time::timeout(patience, requests.recv()).await }) {
                Ok(Some(Request::Close { reply })) => {
                    self.write_behind();
                    self.shared.close();
                    _ = reply.send(());
                    return;
                }
                Ok(Some(request)) => self.handle(request),
                Ok(None) => return self.write_behind(),
                Err(_) => {}
            }
        }
    }

    fn write_behind(&self) {
        if let Err(error) = self.shared.write_pending() {
            tracing::warn!(%error, "retained messages cannot be saved now; they are tried again");
        }
    }

    fn handle(&mut self, request: Request) {
        match request {
            Request::Durable { change, reply } => {
                let result = self.change(&change);
                _ = reply.send(result);
                self.compact_if_long();
            }
            Request::NextEpoch { reply } => _ = reply.send(self.next_epoch()),
            Request::Flush { reply } => _ = reply.send(self.shared.write_pending().map_err(disk)),
            Request::WriteBehind | Request::Close { .. } => {}
            Request::Rebuild => {
                let rebuilt = self.shared.begin_anew().and_then(|()| self.catch_up());
                if let Err(error) = rebuilt {
                    tracing::error!(%error, "the state cannot be rebuilt; restart the gateway");
                }
            }
        }
    }

    /// Journal first, then sled.
    fn change(&mut self, change: &Change) -> Result<(), StateError> {
        let payload = change.encode(Kind::Change);
        self.journal_bytes += payload.len();
        self.journal(vec![payload])?;
        self.shared.apply(change.ops()).map_err(disk)
    }

    fn next_epoch(&mut self) -> Result<u64, StateError> {
        let stored = self.shared.get(OWN_TREE, EPOCH_KEY).map_err(|e| StateError::Disk(e.to_string()))?;
        let epoch = stored.and_then(|v| v.as_ref().try_into().ok()).map_or(0, u64::from_le_bytes) + 1;
        let value = Bytes::copy_from_slice(&epoch.to_le_bytes());
        let op = Op::Put { tree: OWN_TREE.to_owned(), key: Bytes::from_static(EPOCH_KEY), value };
        self.change(&Change::new(vec![op])?)?;
        Ok(epoch)
    }

    /// Appends records to the journal and waits for their sync.
    fn journal(&self, payloads: Vec<Bytes>) -> Result<Seq, StateError> {
        let ts_ms = self.clock.wall_ms();
        let record = |payload| NewRecord {
            lane: Lane::Critical,
            kind: RecordKind::Journal,
            device: 0,
            ts_ms,
            count: 1,
            payload,
        };
        let records = payloads.into_iter().map(record).collect();
        self.runtime.block_on(self.inbox.append(records, true)).map_err(|error| match error {
            AppendError::Closed => StateError::Closed,
            error => StateError::Disk(error.to_string()),
        })
    }

    /// Applies what the journal says and sled does not. The whole journal is compared, because a damaged sled may open
    /// without a word and miss some entries only.
    fn catch_up(&mut self) -> io::Result<()> {
        let mut pos = self.place.lanes()[Lane::Critical as usize].next_open(1);
        let mut ops = Vec::new();
        let mut complete = false;
        loop {
            let (records, next) = self.read(pos)?;
            for record in records {
                let Some((kind, change)) = Change::decode(&record.payload) else {
                    tracing::error!(seq = record.seq, "a change of the state cannot be understood and is left out");
                    continue;
                };
                self.journal_bytes += record.payload.len();
                complete |= kind == Kind::SnapshotEnd;
                ops.extend_from_slice(change.ops());
            }
            if next == pos {
                break;
            }
            pos = next;
        }
        let known = self.shared.durable_entries().map_err(io::Error::other)?.len();
        let in_journal = ops.len();
        let differing = self.shared.differing(ops).map_err(io::Error::other)?;
        if !differing.is_empty() {
            tracing::warn!(entries = differing.len(), "the state was behind its journal and was brought up to date");
            self.shared.apply(&differing)?;
        }
        if known > 0 && in_journal == 0 && !complete {
            tracing::warn!("the journal of the state is gone; a new one is written");
            self.snapshot().map_err(io::Error::other)?;
        }
        Ok(())
    }

    fn read(&self, from: Seq) -> io::Result<(Vec<Record>, Seq)> {
        let consumer = self.place.clone();
        let ask = self.inbox.ask(|reply| Control::Journal { consumer, from, reply });
        self.runtime.block_on(ask).map_err(io::Error::other)
    }

    /// Writes the whole state behind the journal and releases what is before it.
    fn compact_if_long(&mut self) {
        let long = self.journal_bytes > COMPACT_BYTES.max(4 * self.snapshot_bytes);
        let pinning = self.journal_bytes > 0 && self.place.pins_old_segment.load(Ordering::Acquire);
        if !long && !pinning {
            return;
        }
        if let Err(error) = self.snapshot() {
            tracing::warn!(%error, "the journal of the state cannot be compacted now");
        }
    }

    fn snapshot(&mut self) -> Result<(), StateError> {
        let entries = self.shared.durable_entries().map_err(|e| StateError::Disk(e.to_string()))?;
        let mut payloads = vec![Change::default().encode(Kind::SnapshotBegin)];
        let mut part = Vec::new();
        let mut bytes = 0;
        for op in entries {
            let (tree, key, value) = super::journal::parts(&op);
            let len = tree.len() + key.len() + value.map_or(0, Bytes::len) + 16;
            if bytes + len > MAX_VALUE {
                payloads.push(Change::new(std::mem::take(&mut part))?.encode(Kind::SnapshotPart));
                bytes = 0;
            }
            bytes += len;
            part.push(op);
        }
        payloads.push(Change::new(part)?.encode(Kind::SnapshotPart));
        payloads.push(Change::default().encode(Kind::SnapshotEnd));
        let total = payloads.iter().map(Bytes::len).sum();
        let first = {
            // Nobody else writes journal records, so the first of these is the next one that the journal meets.
            let begin = self.journal(vec![payloads.remove(0)])?;
            self.journal(payloads)?;
            begin
        };
        self.place.lanes()[Lane::Critical as usize].settle(1, first - 1);
        self.inbox.acked(1);
        (self.journal_bytes, self.snapshot_bytes) = (total, total);
        Ok(())
    }
}

fn disk(error: io::Error) -> StateError {
    StateError::Disk(error.to_string())
}
