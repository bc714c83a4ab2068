//! One lane: its segments, what is written and not synced yet, its consumers' cursors.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::acks::{AckFile, Image, SavedConsumer};
use super::frame;
use super::holes::{Hole, Holes};
use super::progress::{ConsumerShared, MAX_RANGES, MAX_SHED};
use super::segment::{self, HEADER_LEN, Segment};
use crate::model::{GapReason, Lane, Record, RecordKind, Seq};
use crate::store::config::LaneConfig;
use crate::store::fs::{File, FileSystem, Open, SyncPoint};

/// Fewest and most sequence numbers reserved ahead. The number reserved follows the rate, because all of them count as
/// possibly lost after a power cut.
const RESERVE: std::ops::RangeInclusive<u64> = 64..=65_536;
/// Numbers that may be given out beyond the reservation while the ack file cannot be written. Opening after an unclean
/// stop skips as many.
pub(crate) const EMERGENCY: u64 = 1 << 20;
/// Encoded frames kept before they are written.
const WRITE_BUFFER: usize = 64 * 1024;
/// How long to wait before a broken disk is tried again.
pub(crate) const RETRY_NS: u64 = 1_000_000_000;

/// The segment that is being filled.
#[derive(Debug)]
pub(crate) struct Active {
    pub segment: Segment,
    pub file: Arc<dyn File>,
    seed: u32,
    /// Frames not written yet; they belong at `segment.end - out.len()`.
    out: Vec<u8>,
}

/// A file that may become a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Free {
    pub path: PathBuf,
    pub size: u64,
}

/// A consumer as the lane knows it.
#[derive(Debug)]
pub(crate) struct Registered {
    pub shared: Arc<ConsumerShared>,
}

/// Why the lane writes to memory only.
#[derive(Debug)]
pub(crate) struct Failure {
    pub retry_at: u64,
    pub error: String,
}

/// What happened in a lane since opening.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    pub appended: u64,
    pub payload_bytes: u64,
    pub frame_bytes: u64,
    pub other_bytes: u64,
    pub syncs: u64,
    pub failures: u64,
    /// By reason, as `GapReason` numbers them.
    pub lost: [u64; 8],
}

/// See the module.
#[derive(Debug)]
pub(crate) struct LaneLog {
    pub lane: Lane,
    pub fs: Arc<dyn FileSystem>,
    pub dir: PathBuf,
    pub config: LaneConfig,
    pub segment_bytes: u64,
    /// Full segments, oldest first.
    pub sealed: VecDeque<Segment>,
    pub active: Option<Active>,
    pub free: Vec<Free>,
    /// Damaged segments kept for people.
    pub bad: Vec<Free>,
    pub next: Seq,
    pub reserved: Seq,
    /// Nothing up to here waits for a sync, be it on the disk or known to be lost.
    pub durable: Seq,
    /// The last frame on the disk, synced.
    pub on_disk: Seq,
    /// Accepted and not synced, oldest first; all of them are in memory, written or not.
    pub unsynced: VecDeque<Record>,
    pub unsynced_bytes: usize,
    pub holes: Holes,
    pub acks: AckFile,
    pub consumers: BTreeMap<String, Registered>,
    pub failed: Option<Failure>,
    pub commit: super::commit::State,
    pub counters: Counters,
    pub incarnation: u64,
    pub read_buffer: Vec<u8>,
    pub places: Vec<super::read::Place>,
    /// Segments behind whose last frame nothing is left of an earlier life of the file.
    pub scrubbed: BTreeSet<Seq>,
    pub thinning: BTreeMap<u32, u32>,
    /// Segments that end before this number are released, durably.
    pub floor: Seq,
    /// What the floor is to be because of an eviction.
    pub floor_wanted: Seq,
    /// Files that could not be deleted; they count as allocated and are tried again.
    pub garbage: Vec<Free>,
    /// Generation of the next segment.
    pub generation: u32,
    /// Holes up to here have their record in the log.
    pub told: Seq,
    /// When a broken disk may be tried again.
    pub retry_after: u64,
}

/// The first sequence number that a record of the log stands for.
pub(crate) fn first_seq(record: &Record) -> Seq {
    Hole::from_record(record).map_or(record.seq, |hole| hole.from)
}

impl LaneLog {
    /// Bytes of all files of the lane.
    pub fn allocated(&self) -> u64 {
        let segments: u64 = self.sealed.iter().chain(self.active.as_ref().map(|a| &a.segment)).map(|s| s.size).sum();
        let others: u64 = self.free.iter().chain(&self.bad).chain(&self.garbage).map(|f| f.size).sum();
        // Twice, because a broken ack file is replaced by a new one beside it.
        segments + others + 2 * super::acks::FILE_LEN
    }

    /// Whether the active segment has room for a frame of this length.
    pub fn fits(&self, len: usize) -> bool {
        self.active.as_ref().is_some_and(|a| a.segment.end + len as u64 <= a.segment.size)
    }

    /// Gives `record` its number and adds it. There must be room, unless the lane has failed.
    pub fn push(&mut self, mut record: Record, now: u64) -> Record {
        record.seq = self.next;
        self.next += 1;
        self.counters.appended += 1;
        self.counters.payload_bytes += record.payload.len() as u64;
        self.add(record.clone(), now);
        record
    }

    /// Adds a record that has its number already.
    pub fn add(&mut self, record: Record, now: u64) {
        if self.active.is_some() {
            self.encode(&record);
        }
        self.unsynced_bytes += frame::encoded_len(&record);
        self.unsynced.push_back(record);
        self.commit.note(now);
    }

    fn encode(&mut self, record: &Record) {
        let Some(active) = &mut self.active else { return };
        let before = active.out.len();
        frame::encode(&mut active.out, active.seed, record);
        let len = active.out.len() - before;
        active.segment.note(record.seq, record.ts_ms, len);
        if matches!(record.kind, RecordKind::Gap | RecordKind::Erased) {
            active.segment.records -= 1;
        }
        self.counters.frame_bytes += len as u64;
        self.commit.bytes += len;
        if active.out.len() >= WRITE_BUFFER {
            self.flush();
        }
    }

    /// Writes what is encoded, so that it survives the process.
    pub fn flush(&mut self) {
        let Some(active) = &mut self.active else { return };
        if active.out.is_empty() {
            return;
        }
        let (len, at) = (active.out.len(), active.segment.end - active.out.len() as u64);
        let guard = active.segment.size.saturating_sub(active.segment.end).min(frame::GUARD as u64);
        active.out.resize(len + guard as usize, 0);
        let written = active.file.write_at(&active.out, at);
        active.out.truncate(len);
        match written {
            Ok(()) => {
                active.out.clear();
                self.commit.written = active.segment.last;
            }
            Err(error) => self.fail("write to the log", &error),
        }
    }

    /// Closes the active segment with its summary; the next record begins another.
    pub fn seal(&mut self) {
        self.flush();
        let Some(active) = self.active.take() else { return };
        let header = segment::encode_header(self.lane, &active.segment, true);
        self.counters.other_bytes += header.len() as u64;
        if let Err(error) = active.file.write_at(&header, 0) {
            self.active = Some(active);
            return self.fail("seal a segment", &error);
        }
        self.commit.sealed.push(active.file);
        self.sealed.push_back(active.segment);
    }

    /// Makes a zero-filled file. Without a promise of durability: the first commit in it gives that.
    pub fn create_spare(&mut self) -> io::Result<Free> {
        let path = self.dir.join("now.spare");
        if let Err(error) = zero_file(&*self.fs, &path, self.segment_bytes) {
            self.delete(Free { path, size: self.segment_bytes });
            return Err(error);
        }
        self.garbage.retain(|g| g.path != path);
        self.counters.other_bytes += self.segment_bytes;
        Ok(Free { path, size: self.segment_bytes })
    }

    /// Turns a free file into the active segment, which begins with the number `base`.
    pub fn start_segment(&mut self, free: Free, base: Seq) -> io::Result<()> {
        let segment = Segment::new(&self.dir, base, free.size, self.generation);
        self.generation += 1;
        if let Err(error) = self.fs.rename(&free.path, &segment.path) {
            self.delete(free);
            return Err(error);
        }
        self.garbage.retain(|g| g.path != segment.path);
        self.commit.names_changed = true;
        let header = segment::encode_header(self.lane, &segment, false);
        let begun = self.fs.open(&segment.path, Open::ReadWrite).and_then(|f| f.write_at(&header, 0).map(|()| f));
        let file = match begun {
            Ok(file) => file,
            Err(error) => {
                self.delete(Free { path: segment.path, size: segment.size });
                return Err(error);
            }
        };
        self.counters.other_bytes += HEADER_LEN;
        self.active = Some(Active { segment, file, seed: frame::seed(self.lane, base), out: Vec::new() });
        self.note_filling();
        Ok(())
    }

    /// Notes in the ack file which segment is being filled. It need not survive a power cut, which is told anyway; it
    /// must survive the process. A sync of the slot that is under way then confirms nothing and is repeated.
    fn note_filling(&mut self) {
        self.commit.acks_dirty = true;
        let image = self.image(false, self.reservation());
        match self.acks.write(&image) {
            Ok(()) => self.commit.noted_failing = image.degraded,
            Err(error) => {
                tracing::warn!(lane = self.lane.as_str(), %error, "cannot note the segment that is being filled, trying again");
            }
        }
    }

    /// Goes on with a segment found at opening.
    pub fn resume_segment(&mut self, segment: Segment, file: Arc<dyn File>) {
        let seed = frame::seed(self.lane, segment.base);
        self.active = Some(Active { segment, file, seed, out: Vec::new() });
    }

    /// Encodes a record that is in memory already, into a segment begun after a failure.
    pub fn encode_again(&mut self, record: &Record) {
        self.encode(record);
    }

    /// A write or sync failed: nothing beyond the last sync is trusted on disk any more. It is all still in memory.
    pub fn fail(&mut self, act: &str, error: &io::Error) {
        self.commit.restart();
        self.counters.failures += 1;
        if let Some(active) = self.active.take() {
            self.sealed.push_back(active.segment);
        }
        self.places.clear();
        while let Some(last) = self.sealed.back_mut() {
            if last.base <= self.on_disk {
                last.last = last.last.min(self.on_disk);
                break;
            }
            let free = Free { path: last.path.clone(), size: last.size };
            self.sealed.pop_back();
            self.delete(free);
        }
        if self.failed.is_none() {
            tracing::error!(lane = self.lane.as_str(), %error, "cannot {act}; records are kept in memory and the disk is tried again");
            self.failed = Some(Failure { retry_at: self.retry_after, error: error.to_string() });
        }
    }

    /// Notes in the ack file that records are in memory only: should the process be killed now, they are lost, and the
    /// next start must say so. On a disk that takes nothing at all even that is impossible.
    pub fn note_failure(&mut self) {
        if self.failed.is_some() == self.commit.noted_failing {
            return;
        }
        self.commit.acks_dirty = true;
        let image = self.image(false, self.reservation());
        if self.acks.write(&image).is_ok() {
            self.commit.noted_failing = self.failed.is_some();
        }
    }

    /// Drops the oldest records that are in memory only, until they are within the bound.
    pub fn trim_memory(&mut self) {
        while self.failed.is_some() && self.unsynced_bytes > self.config.memory_bytes {
            let Some(old) = self.unsynced.pop_front() else { break };
            self.unsynced_bytes -= frame::encoded_len(&old);
            let hole = Hole::from_record(&old).unwrap_or(Hole {
                from_ms: old.ts_ms,
                to_ms: old.ts_ms,
                ..Hole::new(old.seq, old.seq, GapReason::DiskFailure)
            });
            self.lose(hole);
        }
    }

    /// Notes records as lost.
    pub fn lose(&mut self, hole: Hole) {
        let reason = hole.reason;
        let added = self.holes.add(hole);
        self.counters.lost[super::holes::reason_number(reason) as usize % 8] += added;
        self.commit.acks_dirty = true;
    }

    /// What the ack file should say now, reserving as many numbers as the rate asks for.
    pub fn image(&self, clean: bool, reserved: Seq) -> Image {
        let consumers = self
            .consumers
            .iter()
            .map(|(name, c)| {
                let progress = &c.shared.lanes()[self.lane as usize];
                SavedConsumer {
                    name: name.clone(),
                    cursor: progress.cursor,
                    lost: progress.lost,
                    beyond: progress.beyond.iter().take(MAX_RANGES).collect(),
                    shed: progress.shed.to_list().into_iter().take(MAX_SHED).collect(),
                }
            })
            .collect();
        Image {
            clean,
            degraded: self.failed.is_some(),
            incarnation: self.incarnation,
            next: self.next,
            reserved,
            durable: self.on_disk,
            floor: self.next_floor(),
            filling: self.active.as_ref().map_or(0, |a| a.segment.base),
            consumers,
            holes: self.holes.to_list(),
        }
    }

    /// Up to which number to reserve, given how many were used since the last time.
    pub fn reservation(&self) -> Seq {
        let used = self.next.saturating_sub(self.commit.next_at_save);
        let block = (used * 4).clamp(*RESERVE.start(), *RESERVE.end());
        self.reserved.max(self.next - 1 + block)
    }

    /// Whether the reservation should be renewed soon.
    pub fn reserve_low(&self) -> bool {
        self.reserved.saturating_sub(self.next - 1) < *RESERVE.start() / 2
    }

    /// Saves the ack file and waits for the disk.
    pub fn save_acks(&mut self, clean: bool, point: SyncPoint) -> io::Result<()> {
        let reserved = self.reservation();
        let image = self.image(clean, reserved);
        self.acks.save(&image, point)?;
        self.counters.syncs += 1;
        self.counters.other_bytes += 4096;
        self.saved(&image);
        Ok(())
    }

    /// The image is durable.
    pub fn saved(&mut self, image: &Image) {
        self.reserved = self.reserved.max(image.reserved);
        self.commit.next_at_save = image.next;
        self.commit.noted_failing = image.degraded;
        self.floor = self.floor.max(image.floor);
    }

    /// The lowest number that may still be read.
    pub fn oldest(&self) -> Seq {
        let first = self.sealed.front().or(self.active.as_ref().map(|a| &a.segment)).map(|s| s.base);
        let memory = self.unsynced.front().map(first_seq);
        first.into_iter().chain(memory).min().unwrap_or(self.next)
    }

    /// Last number that the sealed segment at `index` stands for.
    pub fn sealed_until(&self, index: usize) -> Seq {
        let next = self.sealed.get(index + 1).or(self.active.as_ref().map(|a| &a.segment));
        match next {
            Some(next) => next.base - 1,
            None => self.sealed.get(index).map_or(0, |s| s.last),
        }
    }
}

/// Makes a file of zeros and asks for its write-out. After a failure a part of it may be left.
pub(crate) fn zero_file(fs: &dyn FileSystem, path: &std::path::Path, size: u64) -> io::Result<()> {
    let file = fs.open(path, Open::Create)?;
    write_zeros(&*file, 0, size)?;
    file.write_out()
}

/// Zeros from one place to another.
pub(crate) fn write_zeros(file: &dyn File, from: u64, to: u64) -> io::Result<()> {
    static BLOCK: [u8; 64 * 1024] = [0; 64 * 1024];
    let mut done = from;
    while done < to {
        let n = (to - done).min(BLOCK.len() as u64);
        file.write_at(&BLOCK[..n as usize], done)?;
        done += n;
    }
    Ok(())
}
