//! The log as a whole: both lanes under one quota, and the consumers.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::commit::Job;
use super::frame::{HEADER, MAX_PAYLOAD};
use super::holes::Hole;
use super::lane::{EMERGENCY, Failure, Free, LaneLog, RETRY_NS, Registered, first_seq};
use super::progress::{ConsumerShared, Item, Offer, Progress};
use super::quota::NoRoom;
use super::recovery::{Opened, Opening};
use super::segment::HEADER_LEN;
use super::tail::Tail;
use crate::model::{ClockTrust, Depth, GapReason, Lane, Record, RecordKind, Seq, Stamp};
use crate::store::config::{Config, OnFull};
use crate::store::fs::{FileSystem, Lock, Open, SyncPoint};
use crate::store::{ConsumerError, NewRecord, OpenError, Start};

/// Version in the file `FORMAT`.
const FORMAT: u32 = 1;
/// Names that begin like this belong to the store itself; they hold records back but do not count as readers.
pub(crate) const INTERNAL: char = '~';

/// Why a record was not taken.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// Longer than this many bytes.
    TooLarge(usize),
    /// No room and the policy is to wait; the record comes back.
    Full(NewRecord),
    /// No sequence number can be reserved because the disk fails.
    Disk(String),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(super) fs: Arc<dyn FileSystem>,
    pub(super) dir: PathBuf,
    pub(super) config: Config,
    pub(super) lanes: [LaneLog; 2],
    pub(super) consumers: BTreeMap<String, Arc<ConsumerShared>>,
    pub(super) tail: Arc<Tail>,
    pub(super) reserve: Option<Free>,
    pub(super) reserve_retry_at: u64,
    /// Until this is false, an unknown consumer begins at the oldest record, whatever it asks for.
    acks_lost: bool,
    handed: [Vec<Record>; 2],
    pub(super) erasures: super::erase::Desk,
    _lock: Box<dyn Lock>,
}

fn io_error(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_path_buf();
    move |source| OpenError::Io { act, path, source }
}

/// Directory of the log inside that of the store.
pub(crate) fn buffer_dir(dir: &Path) -> PathBuf {
    dir.join("buffer")
}

impl Engine {
    /// Opens the log in `<config.dir>/buffer`, making what is missing.
    pub fn open(fs: Arc<dyn FileSystem>, config: Config, now: Stamp) -> Result<Self, OpenError> {
        config.check().map_err(OpenError::Config)?;
        let dir = buffer_dir(&config.dir);
        make_dirs(&*fs, &config.dir, &dir)?;
        let lock_path = dir.join("lock");
        let lock = fs.lock(&lock_path).map_err(|e| match e.kind() {
            io::ErrorKind::WouldBlock => OpenError::Locked(dir.clone()),
            _ => OpenError::Io { act: "lock", path: lock_path, source: e },
        })?;
        check_format(&*fs, &dir)?;
        let incarnation = fs.incarnation(&dir);
        let open = |lane: Lane| {
            let dir = dir.join(lane.as_str());
            let settings = if lane == Lane::Critical { &config.critical } else { &config.bulk };
            let opening = Opening {
                fs: &fs,
                lane,
                dir: dir.clone(),
                config: settings.clone(),
                segment_bytes: config.segment(),
                incarnation,
            };
            opening.run().map_err(io_error("open the log in", &dir))
        };
        let (critical, bulk) = (open(Lane::Critical)?, open(Lane::Bulk)?);
        let reserve = find_reserve(&*fs, &dir);
        let tail =
            Tail::new([config.critical.tail_bytes, config.bulk.tail_bytes], [critical.lane.next, bulk.lane.next]);
        let acks_lost = critical.acks_lost || bulk.acks_lost;
        let consumers = consumers(&critical, &bulk);
        let mut engine = Self {
            fs,
            lanes: [critical.lane, bulk.lane],
            consumers: BTreeMap::new(),
            tail: Arc::new(tail),
            reserve,
            reserve_retry_at: 0,
            acks_lost,
            handed: [Vec::new(), Vec::new()],
            erasures: Default::default(),
            config,
            dir,
            _lock: lock,
        };
        for (shared, lanes) in consumers {
            engine.attach(shared, lanes);
        }
        for lane in &mut engine.lanes {
            let dir = lane.dir.clone();
            lane.save_acks(false, SyncPoint::Opening).map_err(io_error("write the ack file in", &dir))?;
        }
        engine.tidy(now);
        Ok(engine)
    }

    fn attach(&mut self, shared: Arc<ConsumerShared>, in_lanes: [bool; 2]) {
        for lane in Lane::ALL.into_iter().filter(|l| in_lanes[*l as usize]) {
            let log = &mut self.lanes[lane as usize];
            let progress = &mut shared.lanes()[lane as usize];
            for hole in log.holes.iter().filter(|h| h.records == 0) {
                progress.settle(hole.from, hole.to);
            }
            log.consumers.insert(shared.name.clone(), Registered { shared: shared.clone() });
        }
        self.consumers.insert(shared.name.clone(), shared);
    }

    /// The rings that consumers read first.
    pub fn tail(&self) -> Arc<Tail> {
        self.tail.clone()
    }

    /// All consumers but the store's own.
    #[cfg(test)]
    pub fn consumers(&self) -> impl Iterator<Item = &Arc<ConsumerShared>> {
        self.consumers.values().filter(|c| !c.name.starts_with(INTERNAL))
    }

    /// Whether the lane has so much in memory that a commit must be awaited before more is taken.
    pub fn is_congested(&self, lane: Lane) -> bool {
        let log = &self.lanes[lane as usize];
        log.failed.is_none() && log.unsynced_bytes > log.config.memory_bytes
    }

    /// Takes a record. It is accepted after the next [`Engine::flush`].
    pub fn append(&mut self, new: NewRecord, now: u64) -> Result<Seq, Refusal> {
        let (i, max) = (new.lane as usize, MAX_PAYLOAD.min((self.config.segment() - HEADER_LEN) as usize - HEADER));
        if new.payload.len() > max {
            return Err(Refusal::TooLarge(max));
        }
        self.reserve_number(i)?;
        if self.thins_out(&new) {
            return Ok(self.refuse(i, new.ts_ms, GapReason::ThinnedOut));
        }
        if self.lanes[i].failed.is_some() {
            self.try_again(i, now);
        }
        let next = self.lanes[i].next;
        let told = self.lanes[i].told;
        let trailing = self.lanes[i].holes.trailing(next - 1, told);
        let gaps: Vec<Record> = trailing.iter().map(|hole| hole.record(new.lane)).collect();
        for gap in gaps {
            if let Err(full) = self.room_for(i, &gap, now) {
                return self.full(new, full);
            }
            self.lanes[i].told = gap.seq;
            self.lanes[i].add(gap, now);
        }
        let NewRecord { lane, kind, device, ts_ms, count, payload } = new;
        let record = Record { lane, seq: next, ts_ms, device, kind, count, payload };
        if let Err(full) = self.room_for(i, &record, now) {
            let Record { lane, ts_ms, device, kind, count, payload, .. } = record;
            return self.full(NewRecord { lane, kind, device, ts_ms, count, payload }, full);
        }
        let record = self.lanes[i].push(record, now);
        self.handed[i].push(record);
        Ok(next)
    }

    /// Makes room for a record, or lets it stay in memory when the disk fails. `Err` when the quota is used up.
    fn room_for(&mut self, i: usize, record: &Record, now: u64) -> Result<(), OnFull> {
        let len = super::frame::encoded_len(record);
        if self.lanes[i].failed.is_some() || self.lanes[i].fits(len) {
            return Ok(());
        }
        match self.make_room(i, first_seq(record)) {
            Ok(()) => Ok(()),
            Err(NoRoom::Full(policy)) => Err(policy),
            Err(NoRoom::Disk(error)) => {
                self.lanes[i].fail("make a segment", &error);
                self.lanes[i].retry_after = now + RETRY_NS;
                Ok(())
            }
        }
    }

    fn full(&mut self, new: NewRecord, policy: OnFull) -> Result<Seq, Refusal> {
        if policy == OnFull::PushBack {
            return Err(Refusal::Full(new));
        }
        Ok(self.refuse(new.lane as usize, new.ts_ms, GapReason::QuotaNewest))
    }

    /// Numbers a record that is not kept, as a gap.
    fn refuse(&mut self, i: usize, ts_ms: i64, reason: GapReason) -> Seq {
        let lane = &mut self.lanes[i];
        let seq = lane.next;
        lane.next += 1;
        lane.lose(Hole { from_ms: ts_ms, to_ms: ts_ms, ..Hole::new(seq, seq, reason) });
        seq
    }

    fn reserve_number(&mut self, i: usize) -> Result<(), Refusal> {
        let lane = &mut self.lanes[i];
        if lane.next <= lane.reserved {
            return Ok(());
        }
        // The image names the next number: what comes before it must be in the file.
        lane.flush();
        match lane.save_acks(false, SyncPoint::Reservation) {
            Ok(()) => Ok(()),
            Err(_) if lane.next < lane.reserved + EMERGENCY / 2 => Ok(()),
            Err(error) => Err(Refusal::Disk(error.to_string())),
        }
    }

    /// Hands what was appended to the consumers, then writes it: accepted.
    pub fn flush(&mut self) {
        for lane in Lane::ALL {
            let i = lane as usize;
            self.tail.push(lane, self.handed[i].drain(..), self.lanes[i].next);
            self.lanes[i].flush();
            self.lanes[i].trim_memory();
            self.lanes[i].note_failure();
            self.lanes[i].settle_without_sync();
        }
        self.tail.changed.notify_waiters();
    }

    /// The next thing to do on another thread. One at a time: hand the result to [`Engine::finish_job`] first.
    pub fn next_job(&mut self, now: u64) -> Option<Job> {
        for i in 0..2 {
            if self.lanes[i].failed.as_ref().is_some_and(|f| f.retry_at <= now) {
                self.try_again(i, now);
            }
        }
        let [critical, bulk] = &mut self.lanes;
        critical
            .next_job(now)
            .or_else(|| bulk.next_job(now))
            .or_else(|| self.erase_job())
            .or_else(|| self.ahead_job(now))
    }

    /// When [`Engine::next_job`] should be asked at the latest, on the same clock.
    pub fn deadline(&self) -> Option<u64> {
        self.lanes.iter().filter_map(LaneLog::deadline).min()
    }

    /// Takes the result of a job.
    pub fn finish_job(&mut self, job: Job, now: u64) {
        if job.is_reserve() {
            return self.finish_reserve(job, now);
        }
        let i = job.lane() as usize;
        if job.is_erasing() {
            let (work, result) = job.into_erasing();
            self.finish_erasing(work, result);
            return self.lanes[i].note_failure();
        }
        self.lanes[i].finish_job(job, now);
        self.lanes[i].note_failure();
        self.release(i);
    }

    /// Begins a new segment after a failure and writes to it what is not synced.
    fn try_again(&mut self, i: usize, now: u64) {
        let lane = &mut self.lanes[i];
        if lane.failed.as_ref().is_none_or(|f| f.retry_at > now) {
            return;
        }
        lane.retry_after = now + RETRY_NS;
        let records: Vec<Record> = lane.unsynced.iter().cloned().collect();
        let failed = lane.failed.take();
        let base = records.first().map_or(lane.next, first_seq);
        if let Err(error) = self.write_again(i, base, &records) {
            self.lanes[i].fail("go on in a new segment", &error);
            self.lanes[i].failed = failed.or(self.lanes[i].failed.take());
            self.lanes[i].failed.get_or_insert(Failure { retry_at: 0, error: error.to_string() }).retry_at =
                now + RETRY_NS;
            return;
        }
        if self.lanes[i].failed.is_none() {
            tracing::warn!(lane = self.lanes[i].lane.as_str(), records = records.len(), "the disk works again");
            self.lanes[i].commit.note(now);
        }
    }

    fn write_again(&mut self, i: usize, base: Seq, records: &[Record]) -> io::Result<()> {
        self.make_room(i, base).map_err(NoRoom::into_io)?;
        for record in records {
            if !self.lanes[i].fits(super::frame::encoded_len(record)) {
                self.make_room(i, first_seq(record)).map_err(NoRoom::into_io)?;
            }
            self.lanes[i].encode_again(record);
        }
        self.lanes[i].flush();
        Ok(())
    }

    /// Registers a consumer, durably; one that is known goes on where it was.
    pub fn register(&mut self, name: &str, start: Start) -> Result<Arc<ConsumerShared>, ConsumerError> {
        if let Some(shared) = self.consumers.get(name) {
            return Ok(shared.clone());
        }
        let internal = name.starts_with(INTERNAL);
        let max = super::acks::MAX_CONSUMERS;
        if self.consumers.len() >= max {
            return Err(ConsumerError::TooMany(max));
        }
        let start = if self.acks_lost { Start::Oldest } else { start };
        let cursor = |lane: &LaneLog| match start {
            Start::Oldest => lane.oldest().max(lane.floor) - 1,
            Start::Now => lane.next - 1,
        };
        let progress = [Progress::at(cursor(&self.lanes[0])), Progress::at(cursor(&self.lanes[1]))];
        let shared = Arc::new(ConsumerShared::new(name.to_owned(), progress));
        self.attach(shared.clone(), [true, !internal]);
        for i in 0..2 {
            if let Err(error) = self.lanes[i].save_acks(false, SyncPoint::Registration) {
                self.consumers.remove(name);
                for lane in &mut self.lanes {
                    lane.consumers.remove(name);
                    lane.commit.acks_dirty = true;
                }
                return Err(ConsumerError::Disk(name.to_owned(), error.to_string()));
            }
        }
        Ok(shared)
    }

    /// Forgets a consumer, durably, and releases what only it was waiting for.
    pub fn remove(&mut self, name: &str) -> Result<(), ConsumerError> {
        let Some(shared) = self.consumers.remove(name) else { return Err(ConsumerError::Unknown(name.to_owned())) };
        shared.removed.store(true, Ordering::Release);
        for i in 0..2 {
            self.lanes[i].consumers.remove(name);
            self.lanes[i]
                .save_acks(false, SyncPoint::Removal)
                .map_err(|e| ConsumerError::Disk(name.to_owned(), e.to_string()))?;
            self.release(i);
        }
        self.tail.changed.notify_waiters();
        Ok(())
    }

    /// Reads for a consumer. Returns where to go on.
    pub fn read(&mut self, consumer: &ConsumerShared, lane: Lane, from: Seq, to: Seq, max: usize) -> (Vec<Offer>, Seq) {
        let mut offers = Vec::new();
        let mut pos = from;
        while pos < to && offers.len() < max {
            let (start, shed) = {
                let progress = &consumer.lanes()[lane as usize];
                let start = progress.next_open(pos);
                (start, progress.shed_at(start))
            };
            if let Some(hole) = shed.filter(|hole| hole.from < to) {
                let hole = hole.clip(hole.from, to - 1);
                pos = hole.to + 1;
                consumer.offer(lane, Item::Hole(hole), &mut offers);
                continue;
            }
            let mut items = Vec::new();
            let next = self.lanes[lane as usize].read(start, to, max - offers.len(), &mut items);
            for item in items {
                consumer.offer(lane, item, &mut offers);
            }
            pos = next;
            if next <= start {
                break;
            }
        }
        (offers, pos)
    }

    /// The records of the journal of the state from `from` on, and where to go on.
    pub fn read_journal(&mut self, place: &ConsumerShared, from: Seq) -> (Vec<Record>, Seq) {
        let lane = &mut self.lanes[Lane::Critical as usize];
        let mut items = Vec::new();
        let start = place.lanes()[Lane::Critical as usize].next_open(from);
        let mut pos = start;
        for _ in 0..3 {
            pos = lane.read(start, lane.next, 256, &mut items);
            if pos > start {
                break;
            }
        }
        let journal = |item| match item {
            Item::Record(record) if record.kind == RecordKind::Journal => Some(record),
            _ => None,
        };
        (items.into_iter().filter_map(journal).collect(), pos.max(from))
    }

    /// Brings the estimates in the depth of every consumer up to date.
    pub fn update_depths(&self) {
        for shared in self.consumers.values() {
            let mut depth = Depth::default();
            for lane in self.lanes.iter().filter(|l| l.consumers.contains_key(&shared.name)) {
                let (open, first) = {
                    let progress = &shared.lanes()[lane.lane as usize];
                    (progress.open_until(lane.next - 1), progress.next_open(1))
                };
                depth.bytes += open * lane.mean_frame();
                depth.records += open;
                let oldest = (open > 0).then(|| lane.stamp_of(first)).flatten();
                depth.oldest_ms = depth.oldest_ms.into_iter().chain(oldest).min();
            }
            *shared.depth() = depth;
        }
    }

    /// The slow housekeeping: age, releases, the reserve.
    pub fn tidy(&mut self, now: Stamp) {
        for i in 0..2 {
            self.drop_misfits(i);
            self.release(i);
            if now.trust == ClockTrust::Synchronised {
                self.evict_by_age(i, now.wall_ms);
            }
        }
        self.limit_backlogs(now);
        self.shrink_to_quota();
        let critical = &self.lanes[Lane::Critical as usize];
        let oldest = (0..critical.sealed.len()).map(|i| critical.sealed_until(i)).find(|to| *to >= critical.floor);
        for (_, shared) in self.consumers.iter().filter(|(name, _)| name.starts_with(INTERNAL)) {
            let cursor = shared.lanes()[Lane::Critical as usize].cursor;
            shared.pins_old_segment.store(oldest.is_some_and(|to| cursor < to), Ordering::Release);
        }
    }

    /// Makes the next commit of a lane due at once.
    pub fn hurry(&mut self, lane: Lane) {
        self.lanes[lane as usize].commit.urgent = true;
    }

    /// Records of the lane up to here are synced.
    pub fn durable(&self, lane: Lane) -> Seq {
        self.lanes[lane as usize].durable
    }

    /// Whether a record was lost to everybody.
    pub fn is_lost(&self, lane: Lane, seq: Seq) -> bool {
        self.lanes[lane as usize].holes.inside(seq, seq).iter().any(|h| h.records > 0)
    }

    /// Syncs everything and marks the lanes as cleanly stopped.
    pub fn close(&mut self, now: u64) -> io::Result<()> {
        self.flush();
        for i in 0..2 {
            self.try_again(i, now);
            self.lanes[i].commit.urgent = true;
            while let Some(job) = self.lanes[i].next_job(now) {
                let job = job.run(&*self.fs);
                self.lanes[i].finish_job(job, now);
            }
            let lane = &mut self.lanes[i];
            if let Some(failure) = &lane.failed {
                return Err(io::Error::other(failure.error.clone()));
            }
            lane.save_acks(lane.unsynced.is_empty(), SyncPoint::Closing)?;
        }
        Ok(())
    }
}

fn find_reserve(fs: &dyn FileSystem, dir: &Path) -> Option<Free> {
    let entry = fs.list(dir).ok()?.into_iter().find(|e| e.name == "reserve")?;
    Some(Free { path: dir.join(entry.name), size: entry.len })
}

/// The consumers of both ack files. One that only one of them knows was registered when the power went: it is kept.
fn consumers(critical: &Opened, bulk: &Opened) -> Vec<(Arc<ConsumerShared>, [bool; 2])> {
    let mut found: BTreeMap<String, [Option<Progress>; 2]> = BTreeMap::new();
    for (i, opened) in [critical, bulk].into_iter().enumerate() {
        for saved in &opened.saved.consumers {
            let mut progress = Progress::at(saved.cursor);
            progress.lost = saved.lost;
            saved.shed.iter().for_each(|hole| _ = progress.shed.add(hole.clone()));
            saved.beyond.iter().for_each(|&(first, last)| progress.settle(first, last));
            progress.fresh = 0;
            found.entry(saved.name.clone()).or_default()[i] = Some(progress);
        }
    }
    let oldest = [critical.lane.oldest() - 1, bulk.lane.oldest() - 1];
    found
        .into_iter()
        .map(|(name, lanes)| {
            let internal = name.starts_with(INTERNAL);
            let [c, b] = lanes;
            let lanes = [c.unwrap_or_else(|| Progress::at(oldest[0])), b.unwrap_or_else(|| Progress::at(oldest[1]))];
            (Arc::new(ConsumerShared::new(name, lanes)), [true, !internal])
        })
        .collect()
}

fn make_dirs(fs: &dyn FileSystem, root: &Path, dir: &Path) -> Result<(), OpenError> {
    let parent = root.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    for (parent, child) in [(parent, root.to_path_buf()), (root, dir.to_path_buf())] {
        if fs.make_dir(&child).map_err(io_error("make the directory", &child))? {
            fs.sync_dir(parent, SyncPoint::LaneDirectory).map_err(io_error("sync the directory", parent))?;
        }
    }
    let mut made = false;
    for lane in Lane::ALL {
        let child = dir.join(lane.as_str());
        made |= fs.make_dir(&child).map_err(io_error("make the directory", &child))?;
    }
    if made {
        fs.sync_dir(dir, SyncPoint::LaneDirectory).map_err(io_error("sync the directory", dir))?;
    }
    Ok(())
}

/// First line of the file `FORMAT`, with its checksum: a flipped bit must not look like a later version.
fn format_line(version: u32) -> String {
    let text = format!("fieldgate log {version}");
    format!("{text} crc32c:{:08x}", crc32c::crc32c(text.as_bytes()))
}

/// Reads `FORMAT`, or writes it. It is never in the way of a start: a lost or damaged one is written again.
fn check_format(fs: &dyn FileSystem, dir: &Path) -> Result<(), OpenError> {
    let path = dir.join("FORMAT");
    let mut text = vec![0; 64];
    let known = fs.open(&path, Open::Read).and_then(|f| f.read_at(&mut text, 0)).unwrap_or(0);
    text.truncate(known);
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().next().unwrap_or_default();
    let version = line.strip_prefix("fieldgate log ").and_then(|rest| rest.split(' ').next()?.parse().ok());
    let version = version.filter(|&version| line == format_line(version));
    if version == Some(FORMAT) {
        return Ok(());
    }
    if let Some(version) = version.filter(|&version| version > FORMAT) {
        return Err(OpenError::Newer { dir: dir.to_path_buf(), version });
    }
    let written =
        fs.open(&path, Open::Create).and_then(|f| f.write_at(format!("{}\n", format_line(FORMAT)).as_bytes(), 0));
    if let Err(error) = written {
        tracing::warn!(%error, path = %path.display(), "cannot write the format file");
    }
    Ok(())
}
