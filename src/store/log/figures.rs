//! The engine's figures for [`Stats`].

use std::sync::atomic::Ordering;

use super::engine::{Engine, INTERNAL};
use super::holes::reason_from_number;
use super::lane::LaneLog;
use crate::model::{Lane, Seq};
use crate::store::stats::{ConsumerStats, LaneStats, Stats};

impl LaneLog {
    fn stats(&self) -> LaneStats {
        let named = |(number, &count): (usize, &u64)| Some((reason_from_number(number as u8)?.as_str(), count));
        LaneStats {
            appended: self.counters.appended,
            payload_bytes: self.counters.payload_bytes,
            written_bytes: self.counters.frame_bytes + self.counters.other_bytes,
            syncs: self.counters.syncs,
            failures: self.counters.failures,
            failing: self.failed.as_ref().map(|f| f.error.clone()),
            first_seq: self
                .sealed
                .iter()
                .chain(self.active.as_ref().map(|a| &a.segment))
                .map(|s| s.base)
                .min()
                .unwrap_or(self.next),
            next_seq: self.next,
            durable_seq: self.durable,
            unsynced: self.unsynced.len() as u64,
            allocated_bytes: self.allocated(),
            segments: self.sealed.len() as u64 + u64::from(self.active.is_some()),
            damaged_segments: self.sealed.iter().filter(|s| s.damaged).count() as u64 + self.bad.len() as u64,
            lost: self.counters.lost.iter().enumerate().filter(|(_, n)| **n > 0).filter_map(named).collect(),
        }
    }
}

impl Engine {
    /// Figures of now. The depths are those of the last update.
    pub fn stats(&self) -> Stats {
        let [critical, bulk] = [&self.lanes[0], &self.lanes[1]].map(LaneLog::stats);
        let payload = critical.payload_bytes + bulk.payload_bytes;
        let written = critical.written_bytes + bulk.written_bytes;
        let consumers = self.consumers.iter().filter(|(name, _)| !name.starts_with(INTERNAL));
        let consumers = consumers.map(|(name, shared)| {
            let mut depth = *shared.depth();
            depth.lost = shared.lanes().iter().map(|p| p.lost_in_all()).sum();
            let in_use = shared.in_use.load(Ordering::Acquire);
            (name.clone(), ConsumerStats { depth, in_use, crowded: shared.is_crowded() })
        });
        Stats {
            consumers: consumers.collect(),
            critical,
            bulk,
            allocated_bytes: self.allocated(),
            quota_bytes: self.config.quota_bytes,
            reserve: self.reserve.is_some(),
            write_amplification: if payload == 0 { 0.0 } else { written as f64 / payload as f64 },
        }
    }

    /// The last number given out in a lane.
    pub fn last(&self, lane: Lane) -> Seq {
        self.lanes[lane as usize].next - 1
    }
}
