//! Ranges of sequence numbers that hold no records any more, and why.

use prost::Message;

use crate::contract::v1;
use crate::model::{Gap, GapReason, Lane, Record, RecordKind, Seq};

/// Holes that fit the ack file; they adjoin mostly, so there are few.
pub(crate) const MAX_HOLES: usize = 64;

/// Like a [`Gap`], before it is known whom it concerns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hole {
    pub from: Seq,
    pub to: Seq,
    pub from_ms: i64,
    pub to_ms: i64,
    /// 0 when the numbers were never given to an accepted record: nothing is lost and nobody is told.
    pub records: u64,
    pub reason: GapReason,
}

impl Hole {
    /// A hole of unknown time that lost every number in it.
    pub fn new(from: Seq, to: Seq, reason: GapReason) -> Self {
        Self { from, to, from_ms: 0, to_ms: 0, records: to - from + 1, reason }
    }

    /// Numbers that were never given to an accepted record.
    pub fn unused(from: Seq, to: Seq) -> Self {
        Self { records: 0, ..Self::new(from, to, GapReason::UnsyncedAtPowerLoss) }
    }

    /// The part of it in `from..=to`.
    pub fn clip(&self, from: Seq, to: Seq) -> Self {
        let (from, to) = (self.from.max(from), self.to.min(to));
        let whole = (from, to) == (self.from, self.to);
        let records = if whole { self.records } else { self.records.min(to - from + 1) };
        Self { from, to, records, ..self.clone() }
    }

    /// As consumers see it.
    pub fn gap(&self, lane: Lane, consumer: Option<String>) -> Gap {
        Gap {
            lane,
            consumer,
            from_seq: self.from,
            to_seq: self.to,
            from_ms: self.from_ms,
            to_ms: self.to_ms,
            records: self.records,
            reason: self.reason,
        }
    }

    /// The record of the log that stands for it. Its sequence number is the last one lost.
    pub fn record(&self, lane: Lane) -> Record {
        let payload = crate::contract::gap(&self.gap(lane, None)).encode_to_vec().into();
        Record { lane, seq: self.to, ts_ms: self.to_ms, device: 0, kind: RecordKind::Gap, count: 1, payload }
    }

    /// Reads such a record back.
    pub fn from_record(record: &Record) -> Option<Self> {
        if record.kind != RecordKind::Gap {
            return None;
        }
        let gap = v1::Gap::decode(record.payload.as_ref()).ok()?;
        let ms =
            |t: Option<pbjson_types::Timestamp>| t.map_or(0, |t| t.seconds * 1000 + i64::from(t.nanos / 1_000_000));
        if gap.to_seq != record.seq || gap.from_seq > gap.to_seq || gap.from_seq == 0 {
            return None;
        }
        Some(Self {
            from: gap.from_seq,
            to: gap.to_seq,
            from_ms: ms(gap.from),
            to_ms: ms(gap.to),
            records: gap.records,
            reason: reason_from_str(&gap.reason)?,
        })
    }
}

/// All reasons; the place in this list is the number in the ack file, so it may only grow.
const REASONS: [GapReason; 8] = [
    GapReason::QuotaBytes,
    GapReason::QuotaAge,
    GapReason::QuotaNewest,
    GapReason::ThinnedOut,
    GapReason::UnsyncedAtPowerLoss,
    GapReason::Corruption,
    GapReason::DiskFailure,
    GapReason::QueueOverflow,
];

fn reason_from_str(text: &str) -> Option<GapReason> {
    REASONS.into_iter().find(|r| r.as_str() == text)
}

/// Number of a reason in the ack file.
pub(crate) fn reason_number(reason: GapReason) -> u8 {
    REASONS.iter().position(|r| *r == reason).map_or(u8::MAX, |at| at as u8)
}

/// The reason with this number.
pub(crate) fn reason_from_number(number: u8) -> Option<GapReason> {
    REASONS.get(usize::from(number)).copied()
}

/// Disjoint holes in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Holes(Vec<Hole>);

impl Holes {
    /// Takes a list from the ack file; what overlaps is left out.
    pub fn from_list(list: Vec<Hole>) -> Self {
        let mut holes = Self::default();
        for hole in list {
            holes.add(hole);
        }
        holes
    }

    /// Adds what of `hole` is not covered yet, joining it to an adjoining hole of the same reason. Returns how many
    /// records that added.
    pub fn add(&mut self, hole: Hole) -> u64 {
        let mut added = 0;
        for piece in self.uncovered(hole.from, hole.to) {
            let piece = hole.clip(piece.0, piece.1);
            added += piece.records;
            self.insert(piece);
        }
        added
    }

    fn insert(&mut self, piece: Hole) {
        let at = self.0.partition_point(|h| h.to < piece.from);
        let joins =
            |a: &Hole, b: &Hole| a.to + 1 == b.from && a.reason == b.reason && (a.records == 0) == (b.records == 0);
        if at > 0 && joins(&self.0[at - 1], &piece) {
            let before = &mut self.0[at - 1];
            before.to = piece.to;
            before.records += piece.records;
            before.to_ms = if piece.to_ms != 0 { piece.to_ms } else { before.to_ms };
        } else {
            self.0.insert(at, piece);
        }
    }

    /// The parts of `from..=to` that no hole covers.
    pub fn uncovered(&self, from: Seq, to: Seq) -> Vec<(Seq, Seq)> {
        let mut out = Vec::new();
        let mut pos = from;
        for hole in self.0.iter().filter(|h| h.to >= from && h.from <= to) {
            if hole.from > pos {
                out.push((pos, hole.from - 1));
            }
            pos = hole.to + 1;
        }
        if pos <= to {
            out.push((pos, to));
        }
        out
    }

    /// The holes inside `from..=to`, clipped to it.
    pub fn inside(&self, from: Seq, to: Seq) -> Vec<Hole> {
        self.0.iter().filter(|h| h.to >= from && h.from <= to).map(|h| h.clip(from, to)).collect()
    }

    /// The holes, or parts of them above `above`, that reach without a break to `last`.
    pub fn trailing(&self, last: Seq, above: Seq) -> Vec<Hole> {
        let mut end = last;
        let mut found = Vec::new();
        for hole in self.0.iter().rev() {
            if hole.to != end || hole.to <= above {
                break;
            }
            end = hole.from - 1;
            found.push(hole.clip(above + 1, last));
        }
        found.reverse();
        found
    }

    /// Takes `from..=to` out, because the log itself tells of it now.
    pub fn remove(&mut self, from: Seq, to: Seq) {
        let cut = |hole: Hole| {
            let before = (hole.from < from).then(|| hole.clip(hole.from, from.saturating_sub(1)));
            let after = (hole.to > to).then(|| hole.clip(to + 1, hole.to));
            let apart = hole.to < from || hole.from > to;
            if apart { [Some(hole), None] } else { [before, after] }
        };
        self.0 = std::mem::take(&mut self.0).into_iter().flat_map(cut).flatten().collect();
    }

    /// Forgets what lies wholly below `seq`.
    pub fn forget_below(&mut self, seq: Seq) {
        self.0.retain(|h| h.to >= seq);
    }

    /// All of them.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Hole> {
        self.0.iter()
    }

    /// Those that the ack file has room for: the newest.
    pub fn to_list(&self) -> Vec<Hole> {
        self.0[self.0.len().saturating_sub(MAX_HOLES)..].to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adjoining_holes_of_one_reason_join_and_overlaps_count_once() {
        let mut holes = Holes::default();
        assert_eq!(holes.add(Hole::new(1, 10, GapReason::QuotaBytes)), 10);
        assert_eq!(holes.add(Hole::new(11, 20, GapReason::QuotaBytes)), 10);
        assert_eq!(holes.add(Hole::new(15, 30, GapReason::Corruption)), 10);
        assert_eq!(holes.iter().map(|h| (h.from, h.to, h.records)).collect::<Vec<_>>(), [(1, 20, 20), (21, 30, 10)]);
        assert_eq!(holes.uncovered(5, 40), [(31, 40)]);
        assert_eq!(holes.inside(18, 22).iter().map(|h| h.records).collect::<Vec<_>>(), [3, 2]);
        assert_eq!(
            holes.trailing(30, 5).iter().map(|h| (h.from, h.to, h.records)).collect::<Vec<_>>(),
            [(6, 20, 15), (21, 30, 10)]
        );
        assert_eq!(holes.trailing(31, 5), []);
        holes.remove(10, 25);
        assert_eq!(holes.iter().map(|h| (h.from, h.to, h.records)).collect::<Vec<_>>(), [(1, 9, 9), (26, 30, 5)]);
    }

    #[test]
    fn a_hole_is_a_record_and_back() {
        for reason in REASONS {
            let hole =
                Hole { from: 3, to: 9, from_ms: 1_700_000_000_123, to_ms: 1_700_000_000_999, records: 5, reason };
            assert_eq!(Hole::from_record(&hole.record(Lane::Bulk)), Some(hole));
            assert_eq!(reason_from_number(reason_number(reason)), Some(reason));
        }
        let mut other = Hole::new(1, 2, GapReason::Corruption).record(Lane::Bulk);
        other.seq = 7;
        assert_eq!(Hole::from_record(&other), None);
    }
}
