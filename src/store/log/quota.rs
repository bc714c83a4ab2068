//! Room for new segments: the quota, what goes when it is used up, and the reserve for a full disk.

use std::io;

use super::commit::Job;
use super::engine::{Engine, INTERNAL};
use super::holes::Hole;
use super::lane::{Free, LaneLog};
use crate::model::{GapReason, Lane, Seq};
use crate::store::NewRecord;
use crate::store::config::OnFull;
use crate::store::fs::SyncPoint;

/// Files kept ready in a lane after a drain; the space of the others is given back.
const SPARES: usize = 1;
/// Damaged segments kept for people, in each lane.
const KEEP_BAD: usize = 1;
/// 2024-01-01: an earlier stamp says nothing about the age of a record.
pub(super) const EARLIEST_PLAUSIBLE_MS: i64 = 1_704_067_200_000;
/// How long to wait before the reserve is made again.
const RESERVE_RETRY_NS: u64 = 10_000_000_000;
/// Devices whose thinning is counted one by one.
const MAX_THINNED: usize = 4096;

/// Why there is no segment to write to.
#[derive(Debug)]
pub(crate) enum NoRoom {
    /// The quota is used up and this policy says that nothing goes.
    Full(OnFull),
    /// The disk is full or fails.
    Disk(io::Error),
}

impl NoRoom {
    /// As an error of the disk.
    pub fn into_io(self) -> io::Error {
        match self {
            NoRoom::Disk(error) => error,
            NoRoom::Full(_) => io::Error::from(io::ErrorKind::QuotaExceeded),
        }
    }
}

impl LaneLog {
    /// The first number that anybody still needs, by the acknowledgements of now.
    pub fn next_floor(&self) -> Seq {
        let wanted = self.floor.max(self.floor_wanted);
        let needed = self.consumers.values().map(|c| c.shared.lanes()[self.lane as usize].needed_from()).min();
        match (self.readers(), needed) {
            (Some(()), Some(needed)) => wanted.max(needed),
            _ => wanted,
        }
    }

    fn readers(&self) -> Option<()> {
        self.consumers.keys().any(|name| !name.starts_with(INTERNAL)).then_some(())
    }

    /// Whether saving the acknowledgements now would release a segment.
    fn would_release(&self) -> bool {
        !self.sealed.is_empty() && self.sealed_until(0) < self.next_floor()
    }

    /// Whether another segment is needed soon.
    fn is_half_full(&self) -> bool {
        self.active.as_ref().is_some_and(|a| a.segment.end > a.segment.size / 2)
    }

    /// Bytes of segments that nobody needs and that are kept for people.
    fn history(&self) -> u64 {
        let released = (0..self.sealed.len()).take_while(|&i| self.sealed_until(i) < self.floor);
        released.map(|i| self.sealed[i].size).sum()
    }

    /// Takes the oldest segment out if nobody needs it. Says whether there was one.
    fn retire_history(&mut self) -> bool {
        let any = !self.sealed.is_empty() && self.sealed_until(0) < self.floor;
        if any {
            self.retire_front();
        }
        any
    }

    /// Takes the oldest segment out: its file is free.
    fn retire_front(&mut self) {
        let Some(segment) = self.sealed.pop_front() else { return };
        self.places.retain(|p| !p.is_in(segment.base));
        self.scrubbed.remove(&segment.base);
        let free = Free { path: segment.path, size: segment.size };
        if segment.damaged {
            self.keep_bad(free);
        } else if self.free.len() < SPARES && free.size == self.segment_bytes {
            self.free.push(free);
        } else {
            self.delete(free);
        }
        let oldest = self.consumers.values().map(|c| c.shared.lanes()[self.lane as usize].cursor + 1).min();
        self.holes.forget_below(oldest.unwrap_or_else(|| self.oldest()));
    }

    fn keep_bad(&mut self, free: Free) {
        let path = free.path.with_extension("bad");
        match self.fs.rename(&free.path, &path) {
            Ok(()) => self.bad.push(Free { path, ..free }),
            Err(_) => self.delete(free),
        }
        while self.bad.len() > KEEP_BAD {
            let old = self.bad.remove(0);
            self.delete(old);
        }
    }

    /// Deletes a file now, or later when that fails.
    pub fn delete(&mut self, free: Free) {
        match self.fs.remove(&free.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %free.path.display(), %error, "cannot delete a file of the log now");
                self.garbage.retain(|g| g.path != free.path);
                self.garbage.push(free);
            }
            _ => self.garbage.retain(|g| g.path != free.path),
        }
    }

    /// Tries again to delete what could not be deleted.
    pub fn sweep(&mut self) {
        for free in std::mem::take(&mut self.garbage) {
            self.delete(free);
        }
    }

    /// Mean bytes of a frame, over what is in the log.
    pub fn mean_frame(&self) -> u64 {
        let all = || self.sealed.iter().chain(self.active.as_ref().map(|a| &a.segment));
        let (bytes, records) = all().fold((0, 0), |(b, r), s| (b + s.end, r + s.records));
        u64::checked_div(bytes, records).unwrap_or(0)
    }

    /// About when `seq` was appended, between the first and the last stamp of its segment.
    pub fn stamp_of(&self, seq: Seq) -> Option<i64> {
        if let Some(record) = self.unsynced.front().filter(|r| r.seq <= seq) {
            let at = self.unsynced.partition_point(|r| r.seq < seq);
            return Some(self.unsynced.get(at).map_or(record.ts_ms, |r| r.ts_ms));
        }
        let index = self.sealed.partition_point(|s| s.base <= seq);
        let active = self.active.as_ref().map(|a| &a.segment);
        let segment = active.filter(|a| a.base <= seq).or_else(|| self.sealed.get(index.checked_sub(1)?));
        let segment = segment.or_else(|| self.sealed.front()).or(active)?;
        let width = segment.last.saturating_sub(segment.base).max(1) as f64;
        let part = (seq.saturating_sub(segment.base) as f64 / width).min(1.0);
        Some(segment.first_ms + ((segment.last_ms - segment.first_ms) as f64 * part) as i64)
    }
}

impl Engine {
    /// Bytes that the log takes on disk, counting what is being made.
    pub fn allocated(&self) -> u64 {
        let preparing = self.lanes.iter().filter(|l| l.is_preparing()).count() as u64 * self.config.segment();
        let reserve = self.reserve.as_ref().map_or(0, |r| r.size);
        self.lanes.iter().map(LaneLog::allocated).sum::<u64>() + preparing + reserve + 4096
    }

    /// Whether lane `i` may have one segment more: inside the quota, and leaving the other lane its minimum.
    fn may_grow(&self, i: usize) -> bool {
        let segment = self.config.segment();
        let other = if i == 0 { self.config.bulk.min_bytes } else { self.config.critical.min_bytes };
        let preparing = u64::from(self.lanes[i].is_preparing()) * segment;
        self.allocated() + segment <= self.config.quota_bytes
            && self.lanes[i].allocated() + preparing + segment <= self.config.quota_bytes.saturating_sub(other)
    }

    /// Seals the active segment of lane `i` and begins the next, with the number `base`.
    pub(super) fn make_room(&mut self, i: usize, base: Seq) -> Result<(), NoRoom> {
        self.lanes[i].seal();
        if let Some(failure) = &self.lanes[i].failed {
            return Err(NoRoom::Disk(io::Error::other(failure.error.clone())));
        }
        self.lanes.iter_mut().for_each(LaneLog::sweep);
        loop {
            if let Some(free) = self.lanes[i].free.pop() {
                return self.lanes[i].start_segment(free, base).map_err(NoRoom::Disk);
            }
            if self.may_grow(i) {
                match self.lanes[i].create_spare() {
                    Ok(free) => self.lanes[i].free.push(free),
                    Err(e) if is_full(&e) && self.give_up_reserve() => {}
                    Err(e) => return Err(NoRoom::Disk(e)),
                }
                continue;
            }
            if self.lanes[i].retire_history() {
                continue;
            }
            if self.lanes[i].would_release() {
                self.lanes[i].save_acks(false, SyncPoint::Acknowledgement).map_err(NoRoom::Disk)?;
                if self.lanes[i].retire_history() {
                    continue;
                }
            }
            if self.delete_spares_of(1 - i) || self.lanes[1 - i].retire_history() {
                continue;
            }
            let policy = self.lanes[i].config.on_full;
            let Some(victim) = self.victim(i) else { return Err(NoRoom::Full(policy)) };
            self.evict(victim, GapReason::QuotaBytes).map_err(NoRoom::Disk)?;
        }
    }

    fn delete_spares_of(&mut self, i: usize) -> bool {
        let spares = std::mem::take(&mut self.lanes[i].free);
        let any = !spares.is_empty();
        spares.into_iter().for_each(|free| self.lanes[i].delete(free));
        any
    }

    /// The lane that loses its oldest segment for lane `i`.
    fn victim(&self, i: usize) -> Option<usize> {
        let evicts =
            |lane: usize| matches!(self.lanes[lane].config.on_full, OnFull::DropOldest | OnFull::ThinOut { .. });
        let spare = |lane: usize, min: u64| {
            let log = &self.lanes[lane];
            !log.sealed.is_empty() && log.allocated() >= min + self.config.segment()
        };
        let bulk = Lane::Bulk as usize;
        if i != bulk && evicts(bulk) && spare(bulk, self.config.bulk.min_bytes) {
            return Some(bulk);
        }
        (evicts(i) && !self.lanes[i].sealed.is_empty()).then_some(i)
    }

    /// Evicts the oldest segment of a lane. The gap is durable before the file is used again.
    fn evict(&mut self, i: usize, reason: GapReason) -> io::Result<()> {
        self.mark_evicted(i, reason);
        let lane = &mut self.lanes[i];
        if lane.floor < lane.next_floor() {
            lane.save_acks(false, SyncPoint::Acknowledgement)?;
        }
        lane.retire_history();
        Ok(())
    }

    /// Tells everybody who has not had it that the oldest segment of a lane goes.
    fn mark_evicted(&mut self, i: usize, reason: GapReason) {
        let lane = &mut self.lanes[i];
        let Some(front) = lane.sealed.front() else { return };
        let to = lane.sealed_until(0);
        let hole = Hole {
            from_ms: front.first_ms,
            to_ms: front.last_ms,
            records: front.records,
            ..Hole::new(front.base, to, reason)
        };
        let unread = lane.consumers.values().any(|c| c.shared.lanes()[lane.lane as usize].needed_from() <= to);
        if to >= lane.floor && (unread || lane.readers().is_none()) {
            tracing::warn!(
                lane = lane.lane.as_str(),
                from = front.base,
                to,
                records = front.records,
                reason = reason.as_str(),
                "the quota evicts records; consumers that have not had them get a gap"
            );
            lane.lose(hole);
        }
        lane.floor_wanted = lane.floor_wanted.max(to + 1);
    }

    /// Frees what nobody needs, but for what is kept for people.
    pub(super) fn release(&mut self, i: usize) {
        let lane = &mut self.lanes[i];
        while lane.history() > lane.config.keep_bytes && lane.retire_history() {}
    }

    /// Has room made before it is needed, so that no append waits for the disk: what would go when the active segment is
    /// full is given up now, and its file is free when another thread has made that durable.
    fn free_ahead(&mut self, i: usize, now: u64) -> Option<Job> {
        if self.lanes[i].retire_history() {
            return None;
        }
        // A spare that the other lane will need itself soon is left to it.
        let given = !self.lanes[1 - i].is_half_full() && self.delete_spares_of(1 - i);
        if given || self.lanes[1 - i].retire_history() {
            return if self.may_grow(i) { self.lanes[i].spare_job(now) } else { None };
        }
        let victim = if self.lanes[i].would_release() { i } else { self.victim(i)? };
        let lane = &self.lanes[victim];
        if lane.commit.acks_urgent || lane.commit.is_saving_acks() || lane.failed.is_some() {
            return None;
        }
        if !lane.would_release() {
            // Thinning is to make what there is last: nothing goes before it must.
            if matches!(lane.config.on_full, OnFull::ThinOut { .. }) {
                return None;
            }
            self.mark_evicted(victim, GapReason::QuotaBytes);
        }
        self.lanes[victim].commit.acks_urgent = true;
        self.lanes[victim].next_job(now)
    }

    /// Evicts by age. Only stamps that can be believed count.
    pub(super) fn evict_by_age(&mut self, i: usize, wall_ms: i64) {
        let Some(age) = self.lanes[i].config.max_age else { return };
        let limit = wall_ms.saturating_sub(age.as_millis() as i64);
        while self.lanes[i].sealed.front().is_some_and(|s| s.last_ms >= EARLIEST_PLAUSIBLE_MS && s.last_ms < limit) {
            if let Err(error) = self.evict(i, GapReason::QuotaAge) {
                tracing::warn!(%error, "cannot evict by age now");
                return;
            }
        }
    }

    /// Deletes spare files of another size than segments have now.
    pub(super) fn drop_misfits(&mut self, i: usize) {
        let lane = &mut self.lanes[i];
        let (keep, drop): (Vec<Free>, Vec<Free>) =
            std::mem::take(&mut lane.free).into_iter().partition(|f| f.size == lane.segment_bytes);
        lane.free = keep;
        drop.into_iter().for_each(|free| lane.delete(free));
        lane.sweep();
    }

    /// After the quota was made smaller: spares, damaged segments and then the oldest records go.
    pub(super) fn shrink_to_quota(&mut self) {
        while self.allocated() > self.config.quota_bytes {
            let spare = self.lanes.iter_mut().find_map(|l| l.bad.pop().or_else(|| l.free.pop()).map(|f| (l, f)));
            if let Some((lane, free)) = spare {
                lane.delete(free);
            } else if let Some(victim) = [1, 0].into_iter().find(|&i| !self.lanes[i].sealed.is_empty()) {
                if self.evict(victim, GapReason::QuotaBytes).is_err() {
                    return;
                }
            } else {
                return;
            }
        }
    }

    /// Whether thinning leaves this record out.
    pub(super) fn thins_out(&mut self, new: &NewRecord) -> bool {
        let i = new.lane as usize;
        let OnFull::ThinOut { keep_one_of } = self.lanes[i].config.on_full else { return false };
        let other = if i == 0 { self.config.bulk.min_bytes } else { self.config.critical.min_bytes };
        let most = self.config.quota_bytes.saturating_sub(other);
        let lane = &mut self.lanes[i];
        let held: u64 = lane.sealed.iter().chain(lane.active.as_ref().map(|a| &a.segment)).map(|s| s.size).sum();
        if held < most / 4 * 3 {
            lane.thinning.clear();
            return false;
        }
        if lane.thinning.len() >= MAX_THINNED && !lane.thinning.contains_key(&new.device) {
            return false;
        }
        let turn = lane.thinning.entry(new.device).or_insert(0);
        *turn += 1;
        if *turn >= keep_one_of {
            *turn = 0;
        }
        *turn != 0
    }

    /// Deletes the reserve, so that the disk has room for one segment. Says whether there was one.
    fn give_up_reserve(&mut self) -> bool {
        let Some(reserve) = self.reserve.take() else { return false };
        self.reserve_retry_at = 0;
        tracing::error!("the disk is full; the reserve of the log is released, free some space");
        self.fs.remove(&reserve.path).is_ok()
    }

    /// Work that can be done before it is needed: the reserve, and a spare segment for a lane that will need one.
    pub(super) fn ahead_job(&mut self, now: u64) -> Option<Job> {
        for i in 0..2 {
            let lane = &self.lanes[i];
            if lane.is_half_full() && lane.free.is_empty() && !lane.is_preparing() && lane.failed.is_none() {
                let job = if self.may_grow(i) { self.lanes[i].spare_job(now) } else { self.free_ahead(i, now) };
                if job.is_some() {
                    return job;
                }
            }
        }
        let healthy = self.lanes.iter().all(|l| l.failed.is_none());
        let fits = self.allocated() + self.config.segment() <= self.config.quota_bytes;
        if self.reserve.is_none() && healthy && fits && now >= self.reserve_retry_at {
            self.reserve_retry_at = u64::MAX;
            return Some(Job::reserve(self.dir.join("reserve"), self.config.segment()));
        }
        None
    }

    pub(super) fn finish_reserve(&mut self, job: Job, now: u64) {
        match job.into_reserve() {
            Ok(reserve) => self.reserve = Some(reserve),
            Err((partial, error)) => {
                self.lanes[Lane::Bulk as usize].delete(partial);
                tracing::debug!(%error, "no room for the reserve yet");
                self.reserve_retry_at = now + RESERVE_RETRY_NS;
            }
        }
    }
}

/// Whether the disk has no room, as opposed to being broken.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
