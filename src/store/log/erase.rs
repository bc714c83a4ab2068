//! Erasing what the log holds of one device, by overwriting it in place.
//!
//! Promise
//! - A record that is meant becomes a frame of the same number and length that says nothing: no later read, of whatever
//!   consumer or export, returns it, and numbers, cursors and the records of other devices stay as they are.
//! - When the answer comes, that is synced, and nothing of it is left in spare files, behind the last frame of recycled
//!   ones, or in memory. Damaged files that were set aside for people are deleted, because nobody can say what is in them.
//! - What a consumer was promised and has not confirmed is left alone unless the caller says otherwise; the answer counts
//!   what waits, and for whom.
//! - After a crash in between the same erasure can be asked for again; what was done before is counted with the rest.
//!
//! Form: another thread looks through a segment, the engine overwrites what it found, so that no reader meets half a frame.
//! At most [`TURN`] records are overwritten in a row; everything that waits is done in one walk.
//!
//! Limits: blocks that the file system or the medium has copied elsewhere are beyond its reach. What cannot be read in a
//! damaged segment cannot be told apart; such segments are counted.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::commit::Job;
use super::engine::{Engine, INTERNAL};
use super::frame::{self, Frame};
use super::lane::LaneLog;
use super::scan::{Found, Scanner};
use super::segment::{HEADER_LEN, Segment};
use crate::model::{Lane, Record, RecordKind, Seq};
use crate::store::fs::{File, FileSystem, Open, SyncPoint};

/// Most records overwritten, and most of them noted, in one turn.
const TURN: usize = 2048;
/// Most files synced in one job, so that commits get their turn in between.
const SYNCS: usize = 8;

/// Says of a record with the right [`Erasure::device`] whether it is meant: two ids may share that number.
pub type IsMeant = Arc<dyn Fn(RecordKind, &[u8]) -> bool + Send + Sync>;

/// What is to be erased.
#[derive(Clone)]
pub struct Erasure {
    /// crc32c of the device id, as in its records.
    pub device: u32,
    /// Which records with that number.
    pub is_meant: IsMeant,
    /// Also what a consumer was promised and has not confirmed.
    pub undelivered: bool,
}

impl fmt::Debug for Erasure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Erasure")
            .field("device", &self.device)
            .field("undelivered", &self.undelivered)
            .finish_non_exhaustive()
    }
}

/// What was erased.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Erased {
    /// Records in the log that are overwritten now, by this or an earlier attempt.
    pub records: u64,
    /// Records that somebody had not confirmed when they were overwritten, by consumer.
    pub undelivered: BTreeMap<String, u64>,
    /// Records left alone because somebody has not confirmed them, by consumer. Spare files are left alone, too, then.
    pub waiting: BTreeMap<String, u64>,
    /// Damaged files, set aside earlier, that were deleted.
    pub discarded: u64,
    /// Segments in use with places that nobody can read.
    pub unreadable: u64,
}

/// A frame that is to be overwritten.
#[derive(Debug)]
struct Hit {
    at: u64,
    frame: Frame,
    who: usize,
}

/// A look through a part of one segment, on any thread.
#[derive(Debug)]
pub(crate) struct Look {
    lane: Lane,
    base: Seq,
    path: PathBuf,
    at: u64,
    end: u64,
    wanted: Arc<[Erasure]>,
    hits: Vec<Hit>,
    /// Overwritten before, for each that is wanted.
    before: Vec<u64>,
    /// Where to go on in this segment.
    rest: Option<u64>,
    is_damaged: bool,
}

impl Look {
    /// Notes what is to be overwritten.
    pub fn run(&mut self, fs: &dyn FileSystem) -> io::Result<()> {
        let file = match fs.open(&self.path, Open::Read) {
            // Released meanwhile.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        let mut scanner = Scanner::new(file, self.lane, self.base, self.at, self.end, Vec::new());
        while self.hits.len() < TURN {
            match scanner.next()? {
                Found::End { .. } => return Ok(()),
                Found::Damage => self.is_damaged = true,
                Found::Frame(frame, at) => self.take(frame, at, &mut scanner)?,
            }
        }
        self.rest = Some(scanner.pos());
        Ok(())
    }

    fn take(&mut self, frame: Frame, at: u64, scanner: &mut Scanner) -> io::Result<()> {
        let wanted = self.wanted.clone();
        for (who, erasure) in wanted.iter().enumerate().filter(|(_, e)| e.device == frame.device) {
            let Some(record) = scanner.record(&frame, at)? else { continue };
            if record.kind == RecordKind::Erased {
                self.before[who] += 1;
            } else if (erasure.is_meant)(record.kind, &record.payload) {
                self.hits.push(Hit { at, frame, who });
                return Ok(());
            }
        }
        Ok(())
    }
}

/// What an erasure has another thread do.
#[derive(Debug)]
pub(crate) enum Work {
    Look(Look),
    /// Sync these files of this lane, and its directory.
    Settle {
        lane: Lane,
        dir: Option<PathBuf>,
        files: Vec<Arc<dyn File>>,
    },
}

impl Work {
    /// Does it.
    pub fn run(&mut self, fs: &dyn FileSystem) -> io::Result<()> {
        match self {
            Work::Look(look) => look.run(fs),
            Work::Settle { dir, files, .. } => files
                .iter()
                .try_for_each(|file| file.sync(SyncPoint::Erasure))
                .and_then(|()| dir.iter().try_for_each(|dir| fs.sync_dir(dir, SyncPoint::Erasure))),
        }
    }
}

/// Erasures that wait, and the walk that is under way.
#[derive(Debug, Default)]
pub(super) struct Desk {
    waiting: Vec<(u64, Erasure)>,
    walk: Option<Walk>,
    tickets: u64,
    done: Vec<(u64, Result<Erased, String>)>,
}

#[derive(Debug)]
struct Walk {
    tickets: Vec<u64>,
    wanted: Arc<[Erasure]>,
    results: Vec<Erased>,
    /// Segments still to be looked through, and from where.
    todo: VecDeque<(Lane, Seq, u64)>,
    /// Files written to and not synced.
    touched: [Vec<Arc<dyn File>>; 2],
    /// Directories in which names were removed.
    renamed: [bool; 2],
    is_swept: bool,
}

/// The record that stands in the place of an erased one.
fn blank(lane: Lane, frame: &Frame) -> Record {
    let payload = vec![0; frame.len - frame::HEADER].into();
    let Frame { seq, ts_ms, device, .. } = *frame;
    Record { lane, seq, ts_ms, device, kind: RecordKind::Erased, count: 0, payload }
}

impl LaneLog {
    fn segment(&self, base: Seq) -> Option<&Segment> {
        self.sealed.iter().chain(self.active.as_ref().map(|a| &a.segment)).find(|s| s.base == base)
    }

    /// A handle for writing to a segment in use.
    fn writable(&self, base: Seq) -> io::Result<Option<Arc<dyn File>>> {
        if let Some(active) = self.active.as_ref().filter(|a| a.segment.base == base) {
            return Ok(Some(active.file.clone()));
        }
        self.segment(base).map(|segment| self.fs.open(&segment.path, Open::ReadWrite)).transpose()
    }

    /// Consumers that have not confirmed a record, nor lost it.
    fn who_waits(&self, seq: Seq) -> Vec<String> {
        let waits = |name: &&String| {
            let progress = &self.consumers[*name].shared.lanes()[self.lane as usize];
            !name.starts_with(INTERNAL) && !progress.is_settled(seq) && progress.shed_at(seq).is_none()
        };
        self.consumers.keys().filter(waits).cloned().collect()
    }

    /// Zeros behind the last frame of a segment, where frames of an earlier life of the file may be.
    fn scrub_tail(&mut self, base: Seq) -> io::Result<Option<Arc<dyn File>>> {
        if self.scrubbed.contains(&base) {
            return Ok(None);
        }
        self.flush();
        let Some((end, size)) = self.segment(base).map(|s| (s.end, s.size)) else { return Ok(None) };
        let Some(file) = self.writable(base)? else { return Ok(None) };
        super::lane::write_zeros(&*file, end, size)?;
        self.scrubbed.insert(base);
        Ok(Some(file))
    }
}

impl Engine {
    /// Takes an erasure; its answer comes from [`Engine::take_erased`] under the number given here.
    pub fn erase(&mut self, erasure: Erasure) -> u64 {
        self.erasures.tickets += 1;
        self.erasures.waiting.push((self.erasures.tickets, erasure));
        self.erasures.tickets
    }

    /// Whether an erasure waits or is under way.
    pub fn is_erasing(&self) -> bool {
        self.erasures.walk.is_some() || !self.erasures.waiting.is_empty()
    }

    /// Erasures that ended since the last call.
    pub fn take_erased(&mut self) -> Vec<(u64, Result<Erased, String>)> {
        std::mem::take(&mut self.erasures.done)
    }

    /// The next thing to do for an erasure.
    pub(super) fn erase_job(&mut self) -> Option<Job> {
        if !self.is_erasing() {
            return None;
        }
        let failed = self.lanes.iter().find_map(|l| l.failed.as_ref().map(|f| f.error.clone()));
        if let Some(error) = failed {
            self.give_up_walk(&error);
            return None;
        }
        let mut walk = self.erasures.walk.take().or_else(|| self.begin_walk())?;
        while let Some((lane, base, at)) = walk.todo.pop_front() {
            let log = &mut self.lanes[lane as usize];
            log.flush();
            let Some((path, end)) = log.segment(base).map(|s| (s.path.clone(), s.end)) else { continue };
            let (wanted, before) = (walk.wanted.clone(), vec![0; walk.wanted.len()]);
            let (hits, rest, is_damaged) = Default::default();
            self.erasures.walk = Some(walk);
            let look = Look { lane, base, path, at, end, wanted, hits, before, rest, is_damaged };
            return Some(Job::erasing(lane, Work::Look(look)));
        }
        if let Err(error) = self.sweep_for(&mut walk) {
            self.erasures.walk = Some(walk);
            self.give_up_walk(&error.to_string());
            return None;
        }
        for lane in Lane::ALL {
            let (i, files) = (lane as usize, &mut walk.touched[lane as usize]);
            let files = files.split_off(files.len().saturating_sub(SYNCS));
            let dir = std::mem::take(&mut walk.renamed[i]).then(|| self.lanes[i].dir.clone());
            if dir.is_some() || !files.is_empty() {
                self.erasures.walk = Some(walk);
                return Some(Job::erasing(lane, Work::Settle { lane, dir, files }));
            }
        }
        let done = walk.tickets.into_iter().zip(walk.results.into_iter().map(Ok));
        self.erasures.done.extend(done);
        None
    }

    fn begin_walk(&mut self) -> Option<Walk> {
        let (tickets, wanted): (Vec<_>, Vec<_>) = std::mem::take(&mut self.erasures.waiting).into_iter().unzip();
        let all = |log: &LaneLog| {
            let lane = log.lane;
            let segments = log.sealed.iter().chain(log.active.as_ref().map(|a| &a.segment));
            segments.map(|s| (lane, s.base, HEADER_LEN)).collect::<Vec<_>>()
        };
        let todo = self.lanes.iter().flat_map(all).collect();
        let results = vec![Erased::default(); wanted.len()];
        let walk = Walk {
            tickets,
            wanted: wanted.into(),
            results,
            todo,
            touched: Default::default(),
            renamed: [false; 2],
            is_swept: false,
        };
        (!walk.tickets.is_empty()).then_some(walk)
    }

    fn give_up_walk(&mut self, error: &str) {
        let walk = self.erasures.walk.take();
        let waiting = std::mem::take(&mut self.erasures.waiting).into_iter().map(|(ticket, _)| ticket);
        let tickets = walk.into_iter().flat_map(|w| w.tickets).chain(waiting);
        self.erasures.done.extend(tickets.map(|ticket| (ticket, Err(error.to_owned()))));
    }

    /// Takes the result of a job of an erasure.
    pub(super) fn finish_erasing(&mut self, work: Work, result: io::Result<()>) {
        let Some(mut walk) = self.erasures.walk.take() else { return };
        let outcome = match (work, result) {
            (Work::Look(look), Ok(())) => self.overwrite(&mut walk, look),
            (Work::Settle { lane, .. }, Err(error)) => {
                // The kernel tells it once only: nothing that was not synced before is trusted in these files any more.
                self.lanes[lane as usize].fail("sync what was erased", &error);
                Err(error)
            }
            (_, result) => result,
        };
        self.erasures.walk = Some(walk);
        if let Err(error) = outcome {
            self.give_up_walk(&error.to_string());
        }
    }

    /// Overwrites what was found, on the disk and in memory.
    fn overwrite(&mut self, walk: &mut Walk, look: Look) -> io::Result<()> {
        let Look { lane, base, wanted, hits, before, rest, is_damaged, .. } = look;
        for (result, before) in walk.results.iter_mut().zip(before) {
            result.records += before;
            result.unreadable += u64::from(is_damaged);
        }
        let (tail, log) = (self.tail.clone(), &mut self.lanes[lane as usize]);
        let Some(file) = log.writable(base)?.filter(|_| !hits.is_empty()) else {
            walk.todo.extend(rest.map(|at| (lane, base, at)));
            return Ok(());
        };
        let (seed, mut octets) = (frame::seed(lane, base), Vec::new());
        for Hit { at, frame, who } in hits {
            let (result, waiting) = (&mut walk.results[who], log.who_waits(frame.seq));
            if !waiting.is_empty() && !wanted[who].undelivered {
                waiting.into_iter().for_each(|name| *result.waiting.entry(name).or_default() += 1);
                continue;
            }
            let record = blank(lane, &frame);
            octets.clear();
            frame::encode(&mut octets, seed, &record);
            file.write_at(&octets, at)?;
            result.records += 1;
            waiting.into_iter().for_each(|name| *result.undelivered.entry(name).or_default() += 1);
            if let Ok(at) = log.unsynced.binary_search_by_key(&frame.seq, |r| r.seq) {
                log.unsynced[at] = record.clone();
            }
            tail.replace(record);
        }
        walk.touched[lane as usize].push(file);
        walk.todo.extend(rest.map(|at| (lane, base, at)));
        Ok(())
    }

    /// Removes what earlier lives of files may hold, once nothing has to stay.
    fn sweep_for(&mut self, walk: &mut Walk) -> io::Result<()> {
        if walk.is_swept || walk.results.iter().all(|r| !r.waiting.is_empty()) {
            return Ok(());
        }
        walk.is_swept = true;
        for log in &mut self.lanes {
            let discarded = log.bad.len() as u64;
            for file in std::mem::take(&mut log.free).into_iter().chain(std::mem::take(&mut log.bad)) {
                walk.renamed[log.lane as usize] = true;
                log.delete(file);
            }
            log.sweep();
            if let Some(left) = log.garbage.first() {
                return Err(io::Error::other(format!("{} cannot be deleted", left.path.display())));
            }
            walk.results.iter_mut().for_each(|r| r.discarded += discarded);
            let segments = log.sealed.iter().chain(log.active.as_ref().map(|a| &a.segment));
            for base in segments.map(|s| s.base).collect::<Vec<_>>() {
                let file = log.scrub_tail(base)?;
                walk.touched[log.lane as usize].extend(file);
            }
        }
        Ok(())
    }
}
