//! The newest records of each lane in memory, shared by all consumers.
//!
//! A consumer that keeps up is served from here without a word to the store's thread; one that falls behind asks the
//! log. The ring forgets its oldest record when it is full, which costs nothing but a read.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::model::{Lane, Record, RecordKind, Seq};

/// Bookkeeping bytes of a record in the ring.
const OVERHEAD: usize = std::mem::size_of::<Record>() + 64;

#[derive(Debug)]
struct Ring {
    records: VecDeque<Record>,
    bytes: usize,
    limit: usize,
    next: Seq,
}

/// What the ring has for a consumer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// Records were taken up to before this number.
    Until(Seq),
    /// There are records, but not here: ask the log.
    Elsewhere,
    /// There is nothing newer.
    Nothing,
}

/// The rings of both lanes.
#[derive(Debug)]
pub(crate) struct Tail {
    lanes: [Mutex<Ring>; 2],
    /// Told after every append.
    pub changed: Notify,
}

impl Tail {
    /// Rings of this many bytes (critical, bulk), before the records with these numbers.
    pub fn new(limits: [usize; 2], next: [Seq; 2]) -> Self {
        let ring = |i: usize| Mutex::new(Ring { records: VecDeque::new(), bytes: 0, limit: limits[i], next: next[i] });
        Self { lanes: [ring(0), ring(1)], changed: Notify::new() }
    }

    fn ring(&self, lane: Lane) -> MutexGuard<'_, Ring> {
        self.lanes[lane as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds records that were just given their numbers; the lane continues with `next`.
    pub fn push(&self, lane: Lane, records: impl Iterator<Item = Record>, next: Seq) {
        let mut ring = self.ring(lane);
        for record in records.filter(|r| r.kind != RecordKind::Gap) {
            ring.bytes += record.payload.len() + OVERHEAD;
            ring.records.push_back(record);
        }
        ring.next = next;
        while ring.bytes > ring.limit {
            let Some(old) = ring.records.pop_front() else { break };
            ring.bytes -= old.payload.len() + OVERHEAD;
        }
    }

    /// Puts a record of the same length in the place of the one with its number, if that is here.
    pub fn replace(&self, record: Record) {
        let mut ring = self.ring(record.lane);
        if let Ok(at) = ring.records.binary_search_by_key(&record.seq, |r| r.seq) {
            ring.records[at] = record;
        }
    }

    /// The number that the next record of the lane will get.
    pub fn next(&self, lane: Lane) -> Seq {
        self.ring(lane).next
    }

    /// Takes up to `max` records from `from` on, without a break in the numbers.
    pub fn take(&self, lane: Lane, from: Seq, max: usize, out: &mut Vec<Record>) -> Taken {
        let ring = self.ring(lane);
        if from >= ring.next {
            return Taken::Nothing;
        }
        let start = ring.records.partition_point(|r| r.seq < from);
        let mut next = from;
        for record in ring.records.range(start..).take(max) {
            if record.seq != next {
                break;
            }
            out.push(record.clone());
            next += 1;
        }
        if next == from { Taken::Elsewhere } else { Taken::Until(next) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(seq: Seq) -> Record {
        let payload = vec![0; 100].into();
        Record { lane: Lane::Bulk, seq, ts_ms: 0, device: 0, kind: RecordKind::Telemetry, count: 1, payload }
    }

    #[test]
    fn serves_what_it_has_and_says_what_it_has_not() {
        let tail = Tail::new([1000, 10 * (100 + OVERHEAD)], [1, 1]);
        tail.push(Lane::Bulk, (1..=20).filter(|s| *s != 15).map(record), 21);
        let mut out = Vec::new();
        assert_eq!(tail.take(Lane::Bulk, 5, 100, &mut out), Taken::Elsewhere);
        assert_eq!(tail.take(Lane::Bulk, 12, 2, &mut out), Taken::Until(14));
        assert_eq!(tail.take(Lane::Bulk, 14, 9, &mut out), Taken::Until(15));
        assert_eq!(tail.take(Lane::Bulk, 15, 9, &mut out), Taken::Elsewhere);
        assert_eq!(tail.take(Lane::Bulk, 16, 9, &mut out), Taken::Until(21));
        assert_eq!(tail.take(Lane::Bulk, 21, 9, &mut out), Taken::Nothing);
        assert_eq!(out.iter().map(|r| r.seq).collect::<Vec<_>>(), [12, 13, 14, 16, 17, 18, 19, 20]);
    }
}
