//! What may wait for one consumer: beyond its limits the oldest segments are given up for it alone.
//!
//! Promise: what is given up becomes a gap for this consumer and for nobody else; it is telemetry before events; the
//! gap is durable before a segment that only this consumer held is used again. Limits hold to within one segment, because
//! the one that is being filled is never given up.

use super::engine::{Engine, INTERNAL};
use super::holes::Hole;
use super::lane::LaneLog;
use super::progress::{ConsumerShared, Progress};
use super::quota::EARLIEST_PLAUSIBLE_MS;
use super::segment::Segment;
use crate::model::{ClockTrust, GapReason, Lane, Seq, Stamp};

/// The part of a segment that a consumer still needs, in bytes.
fn needed_bytes(progress: &Progress, segment: &Segment, until: Seq) -> u64 {
    let open = progress.open_in(segment.base.max(progress.needed_from()), until);
    let width = (until + 1).saturating_sub(segment.base).max(1);
    (u128::from(segment.end) * u128::from(open) / u128::from(width)) as u64
}

impl LaneLog {
    /// Bytes of this lane that wait for a consumer.
    fn waiting_bytes(&self, consumer: &ConsumerShared) -> u64 {
        let progress = &consumer.lanes()[self.lane as usize];
        let sealed = self.sealed.iter().enumerate().map(|(i, s)| needed_bytes(progress, s, self.sealed_until(i)));
        let active = self.active.iter().map(|a| needed_bytes(progress, &a.segment, self.next - 1));
        sealed.chain(active).sum()
    }

    /// The oldest full segment that a consumer needs: its place in the list.
    fn oldest_needed(&self, consumer: &ConsumerShared) -> Option<usize> {
        let needed = consumer.lanes()[self.lane as usize].needed_from();
        let index = (0..self.sealed.len()).find(|&i| self.sealed_until(i) >= needed)?;
        // Behind the last one nothing may be left but what is being filled.
        (needed <= self.sealed_until(index)).then_some(index)
    }

    /// Gives up for a consumer what it needs of this segment and before.
    fn give_up(&mut self, consumer: &ConsumerShared, index: usize, reason: GapReason) {
        let (segment, to) = (&self.sealed[index], self.sealed_until(index));
        let progress = &mut consumer.lanes()[self.lane as usize];
        let from = progress.needed_from();
        let hole = Hole {
            from_ms: segment.first_ms,
            to_ms: segment.last_ms,
            records: segment.records.min(progress.open_in(from, to)),
            ..Hole::new(from, to, reason)
        };
        tracing::warn!(
            consumer = consumer.name,
            lane = self.lane.as_str(),
            from,
            to,
            records = hole.records,
            reason = reason.as_str(),
            "more waits for this consumer than it may hold back; it gets a gap"
        );
        progress.give_up(hole);
        self.commit.acks_dirty = true;
    }
}

impl Engine {
    /// Holds every consumer to what may wait for it.
    pub(super) fn limit_backlogs(&mut self, now: Stamp) {
        let consumers: Vec<_> = self.consumers.values().filter(|c| !c.name.starts_with(INTERNAL)).cloned().collect();
        for consumer in consumers {
            let backlog = consumer.backlog();
            if let (Some(age), ClockTrust::Synchronised) = (backlog.age, now.trust) {
                let limit = now.wall_ms.saturating_sub(age.as_millis() as i64);
                for lane in &mut self.lanes {
                    while let Some(index) = lane
                        .oldest_needed(&consumer)
                        .filter(|&i| (EARLIEST_PLAUSIBLE_MS..limit).contains(&lane.sealed[i].last_ms))
                    {
                        lane.give_up(&consumer, index, GapReason::QuotaAge);
                    }
                }
            }
            let Some(most) = backlog.bytes else { continue };
            while self.lanes.iter().map(|lane| lane.waiting_bytes(&consumer)).sum::<u64>() > most {
                let oldest = [Lane::Bulk, Lane::Critical]
                    .into_iter()
                    .find_map(|lane| Some((lane as usize, self.lanes[lane as usize].oldest_needed(&consumer)?)));
                let Some((lane, index)) = oldest else { break };
                self.lanes[lane].give_up(&consumer, index, GapReason::QuotaBytes);
            }
        }
    }
}
