//! What one consumer has acknowledged.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::holes::{Hole, Holes};
use super::intervals::Intervals;
use crate::model::{Depth, Gap, GapReason, Lane, Record, RecordKind, Seq};
use crate::store::Backlog;

/// Acknowledged ranges beyond the cursor that fit the ack file.
pub(crate) const MAX_RANGES: usize = 64;
/// From this many on a new session is in order, so that the ranges become fewer.
const CROWDED: usize = 48;
/// Gaps handed out whose acknowledgement is awaited; beyond that a gap counts at once.
const MAX_PENDING_GAPS: usize = 1024;
/// Ranges given up for one consumer; they adjoin, so there is one for each change of the reason.
pub(crate) const MAX_SHED: usize = 4;

/// A consumer's acknowledgements in one lane.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Everything up to here is settled: acknowledged, or reported lost and acknowledged.
    pub cursor: Seq,
    /// Settled ranges beyond the cursor.
    pub beyond: Intervals,
    /// Records lost whose gap was acknowledged.
    pub lost: u64,
    /// Gaps handed out and not acknowledged, by first number: last number and records.
    gaps: BTreeMap<Seq, (Seq, u64)>,
    /// Given up for this consumer alone, because more waits than it may.
    pub shed: Holes,
    /// Numbers settled since the last look of the engine.
    pub fresh: u64,
}

impl Progress {
    /// Nothing acknowledged but everything up to `cursor`.
    pub fn at(cursor: Seq) -> Self {
        Self { cursor, ..Self::default() }
    }

    /// Settles `first..=last`.
    pub fn settle(&mut self, first: Seq, last: Seq) {
        if last <= self.cursor || first > last {
            return;
        }
        self.fresh += last - first.max(self.cursor + 1) + 1;
        self.beyond.insert(first.max(self.cursor + 1), last);
        while let Some((begin, end)) = self.beyond.first().filter(|&(begin, _)| begin <= self.cursor + 1) {
            debug_assert!(begin > 0);
            self.cursor = self.cursor.max(end);
            self.beyond.pop_first();
        }
        let cursor = self.cursor;
        self.shed.forget_below(cursor + 1);
        let settled: Vec<Seq> = self
            .gaps
            .iter()
            .filter(|&(&from, &(to, _))| to <= cursor || self.beyond.covered(from, to) == to - from + 1)
            .map(|(&f, _)| f)
            .collect();
        for from in settled {
            if let Some((_, records)) = self.gaps.remove(&from) {
                self.lost += records;
            }
        }
    }

    /// Whether `seq` is settled.
    pub fn is_settled(&self, seq: Seq) -> bool {
        seq <= self.cursor || self.beyond.contains(seq)
    }

    /// The first number from `seq` on that is not settled.
    pub fn next_open(&self, seq: Seq) -> Seq {
        let seq = seq.max(self.cursor + 1);
        self.beyond.range_at(seq).map_or(seq, |(_, end)| end + 1)
    }

    /// How many numbers up to `last` are not settled and not given up.
    pub fn open_until(&self, last: Seq) -> u64 {
        if last <= self.cursor {
            return 0;
        }
        let shed: u64 = self.shed.iter().map(|hole| self.open_in(hole.from, hole.to.min(last))).sum();
        // Each range given up is one gap to hand out.
        let gaps =
            self.shed.iter().filter(|hole| hole.from <= last && self.open_in(hole.from, hole.to) > 0).count() as u64;
        self.open_in(self.cursor + 1, last) - shed + gaps
    }

    /// How many numbers of `first..=last` are not settled.
    pub fn open_in(&self, first: Seq, last: Seq) -> u64 {
        let first = first.max(self.cursor + 1);
        if first > last { 0 } else { last - first + 1 - self.beyond.covered(first, last) }
    }

    /// Nothing below this is needed for the consumer: settled or given up.
    pub fn needed_from(&self) -> Seq {
        let mut pos = self.next_open(1);
        while let Some(hole) = self.shed_at(pos) {
            pos = self.next_open(hole.to + 1);
        }
        pos
    }

    /// What was given up at this number, from there on.
    pub fn shed_at(&self, seq: Seq) -> Option<Hole> {
        self.shed.iter().find(|hole| hole.from <= seq && seq <= hole.to).map(|hole| hole.clip(seq, hole.to))
    }

    /// Gives up for this consumer what is open in a range.
    pub fn give_up(&mut self, hole: Hole) {
        if hole.records == 0 {
            return self.settle(hole.from, hole.to);
        }
        let reason =
            self.shed.iter().next_back().map(|last| last.reason).filter(|_| self.shed.iter().count() >= MAX_SHED);
        self.shed.add(Hole { reason: reason.unwrap_or(hole.reason), ..hole });
    }

    /// Records given up whose gap was not handed out yet, at most.
    fn shed_untold(&self) -> u64 {
        let untold = |hole: &&Hole| self.gaps.range(hole.from..=hole.to).next().is_none();
        self.shed.iter().filter(untold).map(|hole| hole.records.min(self.open_in(hole.from, hole.to))).sum()
    }

    /// Records lost, including gaps not yet handed out or acknowledged.
    pub fn lost_in_all(&self) -> u64 {
        self.lost + self.gaps.values().map(|&(_, records)| records).sum::<u64>() + self.shed_untold()
    }

    fn note_gap(&mut self, gap: &Gap) {
        if self.gaps.len() < MAX_PENDING_GAPS {
            self.gaps.insert(gap.from_seq, (gap.to_seq, gap.records));
        } else if !self.gaps.contains_key(&gap.from_seq) {
            self.lost += gap.records;
        }
    }
}

/// Something read from the log, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Item {
    /// A record of any kind but a gap.
    Record(Record),
    /// Numbers without records.
    Hole(Hole),
}

/// Something for this consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Offer {
    /// Not settled, and a kind that consumers see.
    Record(Record),
    /// Not settled.
    Gap(Gap),
}

/// What the engine and the consumer's handle share.
#[derive(Debug)]
pub(crate) struct ConsumerShared {
    pub name: String,
    lanes: Mutex<[Progress; 2]>,
    depth: Mutex<Depth>,
    backlog: Mutex<Backlog>,
    /// Removed while a handle was out.
    pub removed: AtomicBool,
    /// A handle is out.
    pub in_use: AtomicBool,
    /// It holds back a full segment of the critical lane. Only kept for the journal of the state.
    pub pins_old_segment: AtomicBool,
}

impl ConsumerShared {
    /// With the progress of both lanes.
    pub fn new(name: String, lanes: [Progress; 2]) -> Self {
        Self {
            name,
            lanes: Mutex::new(lanes),
            depth: Mutex::default(),
            backlog: Mutex::default(),
            removed: AtomicBool::new(false),
            in_use: AtomicBool::new(false),
            pins_old_segment: AtomicBool::new(false),
        }
    }

    /// The progress of both lanes, by number of the lane.
    pub fn lanes(&self) -> MutexGuard<'_, [Progress; 2]> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far behind, as of the engine's last look.
    pub fn depth(&self) -> MutexGuard<'_, Depth> {
        self.depth.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What may wait for it.
    pub fn backlog(&self) -> Backlog {
        *self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets what may wait for it.
    pub fn set_backlog(&self, backlog: Backlog) {
        *self.backlog.lock().unwrap_or_else(PoisonError::into_inner) = backlog;
    }

    /// Whether the ranges in the ack file are nearly used up.
    pub fn is_crowded(&self) -> bool {
        self.lanes().iter().any(|p| p.beyond.len() >= CROWDED)
    }

    /// Whether the consumer was removed.
    pub fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }

    /// Turns what was read into what this consumer has to deliver. What nobody delivers settles itself.
    pub fn offer(&self, lane: Lane, item: Item, out: &mut Vec<Offer>) {
        let progress = &mut self.lanes()[lane as usize];
        match item {
            Item::Record(record) if progress.is_settled(record.seq) => {}
            Item::Record(record)
                if matches!(
                    record.kind,
                    RecordKind::Journal | RecordKind::Audit | RecordKind::Gap | RecordKind::Erased
                ) =>
            {
                progress.settle(record.seq, record.seq);
            }
            Item::Record(record) => out.push(Offer::Record(record)),
            Item::Hole(hole) if hole.records == 0 => progress.settle(hole.from, hole.to),
            Item::Hole(hole) => {
                let evicted = matches!(hole.reason, GapReason::QuotaBytes | GapReason::QuotaAge);
                let mut pos = progress.next_open(hole.from);
                while pos <= hole.to {
                    let end = progress.beyond.next_from(pos).map_or(hole.to, |begin| hole.to.min(begin - 1));
                    let gap = hole.clip(pos, end).gap(lane, evicted.then(|| self.name.clone()));
                    progress.note_gap(&gap);
                    out.push(Offer::Gap(gap));
                    pos = progress.next_open(end + 1);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledgements_out_of_order_join_the_cursor() {
        let mut progress = Progress::at(0);
        progress.settle(5, 6);
        progress.settle(2, 2);
        assert_eq!((progress.cursor, progress.open_until(10)), (0, 7));
        assert_eq!((progress.next_open(1), progress.next_open(2), progress.next_open(5)), (1, 3, 7));
        progress.settle(1, 1);
        assert_eq!(progress.cursor, 2);
        progress.settle(3, 4);
        assert_eq!((progress.cursor, progress.beyond.len(), progress.open_until(10)), (6, 0, 4));
    }

    #[test]
    fn a_gap_is_cut_around_what_was_acknowledged_and_counted_once() {
        let shared = ConsumerShared::new("a".into(), [Progress::at(0), Progress::at(0)]);
        shared.lanes()[1].settle(4, 5);
        let hole = Hole::new(1, 9, GapReason::QuotaBytes);
        for _ in 0..2 {
            let mut out = Vec::new();
            shared.offer(Lane::Bulk, Item::Hole(hole.clone()), &mut out);
            let ranges: Vec<_> =
                out.iter().map(|o| if let Offer::Gap(g) = o { (g.from_seq, g.to_seq) } else { (0, 0) }).collect();
            assert_eq!(ranges, [(1, 3), (6, 9)]);
            assert_eq!(shared.lanes()[1].lost_in_all(), 7);
        }
        let bulk = &mut shared.lanes()[1];
        bulk.settle(1, 3);
        assert_eq!((bulk.lost, bulk.lost_in_all()), (3, 7));
    }
}
