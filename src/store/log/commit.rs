//! Group commit: what is to be synced when, as jobs that another thread runs.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::acks::Image;
use super::erase;
use super::lane::{Free, LaneLog, zero_file};
use crate::model::{Lane, Seq};
use crate::store::config::SyncPolicy;
use crate::store::fs::{File, FileSystem, SyncPoint};

/// Most bytes and records of one group.
const GROUP_BYTES: usize = 64 * 1024;
const GROUP_RECORDS: u64 = 1000;
/// Acknowledgements and time after which the ack file is synced.
const ACKS: u64 = 500;
const ACK_SYNC_NS: u64 = 1_000_000_000;
/// Shortest time between two syncs of the ack file, however many acknowledgements come.
const ACK_SYNC_MIN_NS: u64 = 250_000_000;
/// Acknowledgements and time after which the ack file is written (not synced), so that little is sent twice when the
/// process is killed.
pub(crate) const ACK_WRITE: u64 = 32;
pub(crate) const ACK_WRITE_NS: u64 = 100_000_000;
/// How soon a failed write of the ack file is tried again.
const ACK_RETRY_NS: u64 = super::lane::RETRY_NS;

/// What a lane has to sync.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// When the oldest record that no commit has taken along was accepted.
    since: Option<u64>,
    pub bytes: usize,
    records: u64,
    /// Sealed since the last commit.
    pub sealed: Vec<Arc<dyn File>>,
    pub names_changed: bool,
    /// Last number written to the active segment.
    pub written: Seq,
    in_flight: bool,
    /// Counts failures; a job of an earlier epoch tells nothing.
    epoch: u64,
    /// Someone waits for the next commit.
    pub urgent: bool,
    /// Something but acknowledgements changed in the ack file's content.
    pub acks_dirty: bool,
    acks: u64,
    acks_since: Option<u64>,
    /// Acknowledgements that are not written, and since when.
    unwritten: u64,
    unwritten_since: Option<u64>,
    acks_retry_at: u64,
    acks_synced_at: u64,
    acks_in_flight: bool,
    /// The slot must be synced before something can be released.
    pub acks_urgent: bool,
    pub next_at_save: Seq,
    preparing: bool,
    prepare_after: u64,
    /// What the ack file says about a failing disk.
    pub noted_failing: bool,
}

impl State {
    /// Of a lane just opened, whose next number this is.
    pub fn starting_at(next: Seq) -> Self {
        Self { next_at_save: next, ..Self::default() }
    }

    /// A record was added.
    pub fn note(&mut self, now: u64) {
        self.since.get_or_insert(now);
        self.records += 1;
    }

    /// After a failure everything is to be synced again, in other files.
    pub fn restart(&mut self) {
        self.epoch += 1;
        self.in_flight = false;
        self.sealed.clear();
        self.bytes = 0;
    }

    /// A slot of the ack file is being synced.
    pub fn is_saving_acks(&self) -> bool {
        self.acks_in_flight
    }

    fn taken(&mut self) {
        self.since = None;
        self.bytes = 0;
        self.records = 0;
        self.urgent = false;
    }
}

/// What a job does.
#[derive(Debug)]
enum Work {
    Frames { dir: Option<PathBuf>, files: Vec<Arc<dyn File>>, upto: Seq },
    Acks { file: Arc<dyn File>, image: Image },
    Spare { path: PathBuf, size: u64 },
    Reserve { path: PathBuf, size: u64 },
    Erase(erase::Work),
}

/// Something slow to do for the engine, on any thread, then to be handed back to it.
#[derive(Debug)]
pub(crate) struct Job {
    lane: Lane,
    epoch: u64,
    work: Work,
    result: io::Result<()>,
}

impl Job {
    /// Does it. The result is inside.
    pub fn run(mut self, fs: &dyn FileSystem) -> Self {
        self.result = match &mut self.work {
            Work::Frames { dir, files, .. } => dir
                .iter()
                .try_for_each(|dir| fs.sync_dir(dir, SyncPoint::SegmentDirectory))
                .and_then(|()| files.iter().try_for_each(|file| file.sync(SyncPoint::SegmentData))),
            Work::Acks { file, .. } => file.sync(SyncPoint::Acknowledgement),
            Work::Spare { path, size } | Work::Reserve { path, size } => zero_file(fs, path, *size),
            Work::Erase(work) => work.run(fs),
        };
        self
    }

    /// A job that makes the file that is given up when the disk is full.
    pub fn reserve(path: PathBuf, size: u64) -> Self {
        Self { lane: Lane::Bulk, epoch: 0, work: Work::Reserve { path, size }, result: Ok(()) }
    }

    /// A job for an erasure.
    pub fn erasing(lane: Lane, work: erase::Work) -> Self {
        Self { lane, epoch: 0, work: Work::Erase(work), result: Ok(()) }
    }

    /// Whether it is for an erasure.
    pub fn is_erasing(&self) -> bool {
        matches!(self.work, Work::Erase(_))
    }

    /// What was done for an erasure, and how that ended.
    pub fn into_erasing(self) -> (erase::Work, io::Result<()>) {
        match self.work {
            Work::Erase(work) => (work, self.result),
            _ => unreachable!("asked for a job that is not for an erasure"),
        }
    }

    /// Whether it is for the reserve, and so for no lane.
    pub fn is_reserve(&self) -> bool {
        matches!(self.work, Work::Reserve { .. })
    }

    /// The reserve that was made.
    pub fn into_reserve(self) -> Result<Free, (Free, io::Error)> {
        match self.work {
            Work::Reserve { path, size } => match self.result {
                Ok(()) => Ok(Free { path, size }),
                Err(error) => Err((Free { path, size }, error)),
            },
            _ => unreachable!("asked for a job that is not for the reserve"),
        }
    }

    /// The lane it works for.
    pub fn lane(&self) -> Lane {
        self.lane
    }
}

impl LaneLog {
    /// The next job of this lane, if one is due.
    pub fn next_job(&mut self, now: u64) -> Option<Job> {
        self.take_frames(now).or_else(|| self.take_acks(now))
    }

    /// When [`LaneLog::next_job`] should be asked again at the latest.
    pub fn deadline(&self) -> Option<u64> {
        let frames = self.commit.since.filter(|_| self.failed.is_none() && !self.commit.in_flight);
        let frames = frames.map(|since| since.saturating_add(self.commit_after()));
        let write = self.commit.unwritten_since.map(|since| since + ACK_WRITE_NS);
        let sync = self.commit.acks_since.map(|since| since + ACK_SYNC_NS).filter(|_| !self.commit.acks_in_flight);
        let acks = write.into_iter().chain(sync).min().map(|at| at.max(self.commit.acks_retry_at));
        let retry = self.failed.as_ref().map(|f| f.retry_at);
        frames.into_iter().chain(acks).chain(retry).min()
    }

    fn commit_after(&self) -> u64 {
        match self.config.sync {
            SyncPolicy::Always => 0,
            SyncPolicy::Interval(after) => after.as_nanos() as u64,
            SyncPolicy::Os => u64::MAX / 2,
        }
    }

    fn take_frames(&mut self, now: u64) -> Option<Job> {
        let commit = &self.commit;
        let since = commit.since?;
        let full = commit.bytes >= GROUP_BYTES || commit.records >= GROUP_RECORDS;
        let os = matches!(self.config.sync, SyncPolicy::Os) && !commit.urgent;
        let due = now.saturating_sub(since) >= self.commit_after() || (full && !os) || commit.urgent;
        if !due || commit.in_flight || self.failed.is_some() {
            return None;
        }
        self.flush();
        let mut files = std::mem::take(&mut self.commit.sealed);
        files.extend(self.active.as_ref().map(|active| active.file.clone()));
        // Without room for another segment there may be full ones only.
        let upto = self.active.as_ref().map_or(self.commit.written, |active| active.segment.last);
        if files.is_empty() {
            return None;
        }
        let dir = std::mem::take(&mut self.commit.names_changed).then(|| self.dir.clone());
        self.counters.syncs += files.len() as u64 + u64::from(dir.is_some());
        self.commit.taken();
        self.commit.in_flight = true;
        let work = Work::Frames { dir, files, upto };
        Some(Job { lane: self.lane, epoch: self.commit.epoch, work, result: Ok(()) })
    }

    /// Under [`SyncPolicy::Os`] nothing waits for the disk: what is written counts as synced.
    pub fn settle_without_sync(&mut self) {
        if matches!(self.config.sync, SyncPolicy::Os)
            && self.failed.is_none()
            && !self.commit.urgent
            && !self.commit.in_flight
        {
            self.synced(self.commit.written);
            self.commit.taken();
        }
    }

    fn take_acks(&mut self, now: u64) -> Option<Job> {
        let fresh: u64 =
            self.consumers.values().map(|c| std::mem::take(&mut c.shared.lanes()[self.lane as usize].fresh)).sum();
        let commit = &mut self.commit;
        commit.acks += fresh;
        commit.unwritten += fresh;
        if commit.unwritten > 0 || commit.acks_dirty {
            commit.unwritten_since.get_or_insert(now);
        }
        let low = self.reserve_low();
        let commit = &mut self.commit;
        if commit.acks > 0 || commit.acks_dirty || commit.acks_urgent || low {
            commit.acks_since.get_or_insert(now);
        }
        let since = commit.acks_since?;
        if now < commit.acks_retry_at {
            return None;
        }
        let rested = now.saturating_sub(commit.acks_synced_at) >= ACK_SYNC_MIN_NS;
        let due =
            commit.acks_urgent || low || now.saturating_sub(since) >= ACK_SYNC_NS || (commit.acks >= ACKS && rested);
        // One sync at a time; what comes meanwhile is written beside it, so that it survives the process.
        let sync = due && !commit.acks_in_flight;
        let aged = commit.unwritten_since.is_some_and(|since| now.saturating_sub(since) >= ACK_WRITE_NS);
        if !sync && !aged && commit.unwritten < ACK_WRITE {
            return None;
        }
        (commit.unwritten, commit.unwritten_since) = (0, None);
        let image = self.image(false, self.reservation());
        if let Err(error) = self.acks.write(&image) {
            self.replace_acks(&error, now);
            return None;
        }
        self.commit.noted_failing = image.degraded;
        if !sync {
            return None;
        }
        self.acks.begin_sync();
        self.counters.syncs += 1;
        self.counters.other_bytes += 4096;
        self.commit.acks = 0;
        self.commit.acks_since = None;
        self.commit.acks_dirty = false;
        self.commit.acks_urgent = false;
        self.commit.acks_synced_at = now;
        self.commit.acks_in_flight = true;
        let work = Work::Acks { file: self.acks.file(), image };
        Some(Job { lane: self.lane, epoch: self.commit.epoch, work, result: Ok(()) })
    }

    /// A job that makes a spare segment ready.
    pub fn spare_job(&mut self, now: u64) -> Option<Job> {
        if self.commit.preparing || !self.free.is_empty() || now < self.commit.prepare_after {
            return None;
        }
        self.commit.preparing = true;
        let path = self.dir.join("ahead.spare");
        self.counters.other_bytes += self.segment_bytes;
        let work = Work::Spare { path, size: self.segment_bytes };
        Some(Job { lane: self.lane, epoch: self.commit.epoch, work, result: Ok(()) })
    }

    /// Whether a spare is being made; its bytes are taken already.
    pub fn is_preparing(&self) -> bool {
        self.commit.preparing
    }

    /// Takes the result of a job.
    pub fn finish_job(&mut self, job: Job, now: u64) {
        match job.work {
            Work::Frames { upto, .. } => {
                if job.epoch != self.commit.epoch {
                    return;
                }
                self.commit.in_flight = false;
                match job.result {
                    Ok(()) => self.synced(upto),
                    Err(error) => self.fail("sync the log", &error),
                }
            }
            Work::Acks { file, image } => {
                self.commit.acks_in_flight = false;
                match job.result {
                    // Another file may have taken its place, or a later image became durable meanwhile.
                    Ok(()) if self.acks.confirm(&file) => self.saved(&image),
                    Ok(()) => {}
                    Err(error) => self.replace_acks(&error, now),
                }
            }
            Work::Reserve { .. } | Work::Erase(_) => {}
            Work::Spare { path, size } => {
                self.commit.preparing = false;
                match job.result {
                    Ok(()) => {
                        self.garbage.retain(|g| g.path != path);
                        self.free.push(Free { path, size });
                    }
                    Err(error) => {
                        tracing::debug!(%error, "no spare segment could be made ahead");
                        self.commit.prepare_after = now + super::lane::RETRY_NS;
                        self.delete(Free { path, size });
                    }
                }
            }
        }
    }

    /// Everything up to `upto` survives a power cut.
    fn synced(&mut self, upto: Seq) {
        self.durable = self.durable.max(upto);
        self.on_disk = self.on_disk.max(upto);
        while let Some(record) = self.unsynced.front().filter(|r| r.seq <= upto) {
            self.unsynced_bytes -= super::frame::encoded_len(record);
            if let Some(hole) = super::holes::Hole::from_record(record) {
                self.holes.remove(hole.from, hole.to);
            }
            self.unsynced.pop_front();
        }
    }

    /// The ack file's write or sync failed: another file takes its place.
    fn replace_acks(&mut self, error: &io::Error, now: u64) {
        tracing::warn!(lane = self.lane.as_str(), %error, "the ack file cannot be written, making a new one");
        self.counters.failures += 1;
        let image = self.image(false, self.reservation());
        match self.acks.replace(&image, SyncPoint::Acknowledgement) {
            Ok(()) => self.saved(&image),
            Err(error) => {
                tracing::error!(lane = self.lane.as_str(), %error, "acknowledgements cannot be saved; after a restart they are sent again");
                self.commit.acks_since = Some(now);
                self.commit.acks_retry_at = now + ACK_RETRY_NS;
            }
        }
    }
}
