//! Reading a lane from any number on: from memory what is not synced, else from the segments.

use std::io;

use super::holes::Hole;
use super::lane::{LaneLog, first_seq};
use super::progress::Item;
use super::scan::{Found, Scanner};
use super::segment::HEADER_LEN;
use crate::model::{GapReason, Seq};
use crate::store::fs::Open;

/// Places remembered, so that going on with a segment needs no search.
const PLACES: usize = 8;
/// Most payload bytes handed out at once.
const MAX_BYTES: usize = 256 * 1024;
/// How often an unreadable place is tried before it counts as lost.
const TRIES: u32 = 100;

/// Where a reader stopped in a segment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    base: Seq,
    next: Seq,
    at: u64,
    tries: u32,
}

impl Place {
    /// Whether it is in the segment with this base.
    pub fn is_in(&self, base: Seq) -> bool {
        self.base == base
    }
}

/// One call of `read`.
struct Reading<'a> {
    pos: Seq,
    /// Last number wanted.
    last: Seq,
    max: usize,
    bytes: usize,
    out: &'a mut Vec<Item>,
}

impl Reading<'_> {
    fn is_full(&self) -> bool {
        self.pos > self.last || self.out.len() >= self.max || self.bytes >= MAX_BYTES
    }

    fn push(&mut self, item: Item) {
        match &item {
            Item::Record(record) => {
                self.pos = record.seq + 1;
                self.bytes += record.payload.len();
            }
            Item::Hole(hole) => self.pos = hole.to + 1,
        }
        self.out.push(item);
    }
}

impl LaneLog {
    /// Reads from `from` up to before `to`, at most about `max` items. Returns where to go on; that is `from` when the
    /// disk cannot be read just now and should be tried again.
    pub fn read(&mut self, from: Seq, to: Seq, max: usize, out: &mut Vec<Item>) -> Seq {
        self.flush();
        let mut reading = Reading { pos: from.max(1), last: to.min(self.next) - 1, max, bytes: 0, out };
        while !reading.is_full() {
            let before = reading.pos;
            if self.unsynced.front().is_some_and(|r| first_seq(r) <= before) {
                self.read_memory(&mut reading);
            } else if let Err(error) = self.read_disk(&mut reading) {
                self.unreadable(&mut reading, &error);
            }
            if reading.pos == before {
                break;
            }
        }
        reading.pos
    }

    fn read_memory(&mut self, reading: &mut Reading<'_>) {
        let start = self.unsynced.partition_point(|r| r.seq < reading.pos);
        let wanted: Vec<_> = self.unsynced.range(start..).take(reading.max - reading.out.len()).cloned().collect();
        for record in wanted {
            if reading.is_full() {
                return;
            }
            let first = first_seq(&record);
            self.missing(reading, first - 1);
            if first > reading.last {
                return;
            }
            self.hand_out(reading, record);
        }
        if !reading.is_full() {
            self.missing(reading, reading.last);
        }
    }

    fn hand_out(&mut self, reading: &mut Reading<'_>, record: crate::model::Record) {
        match Hole::from_record(&record) {
            Some(hole) => reading.push(Item::Hole(hole.clip(reading.pos, reading.last))),
            None => reading.push(Item::Record(record)),
        }
    }

    /// Numbers from the reader's position up to `until` that are nowhere: says why, or notes damage.
    fn missing(&mut self, reading: &mut Reading<'_>, until: Seq) {
        let until = until.min(reading.last);
        if until < reading.pos {
            return;
        }
        for (from, to) in self.holes.uncovered(reading.pos, until) {
            tracing::error!(
                lane = self.lane.as_str(),
                from,
                to,
                "records cannot be read from the log; they are reported as a gap"
            );
            self.lose(Hole::new(from, to, GapReason::Corruption));
        }
        for hole in self.holes.inside(reading.pos, until) {
            reading.push(Item::Hole(hole));
        }
    }

    /// Reads from the segment that holds the position, or over what no segment holds.
    fn read_disk(&mut self, reading: &mut Reading<'_>) -> io::Result<()> {
        let pos = reading.pos;
        let memory = self.unsynced.front().map_or(Seq::MAX, first_seq);
        let index = self.sealed.partition_point(|s| s.base <= pos);
        let in_active = self.active.as_ref().is_some_and(|a| a.segment.base <= pos);
        let (segment, until) = match (in_active, index.checked_sub(1)) {
            (true, _) => (self.active.as_ref().map(|a| a.segment.clone()), self.next - 1),
            (false, Some(index)) => (self.sealed.get(index).cloned(), self.sealed_until(index)),
            (false, None) => (None, 0),
        };
        match segment {
            Some(segment) if pos <= until => self.read_segment(reading, &segment, until.min(memory - 1)),
            _ => {
                let next = self.sealed.get(index).or(self.active.as_ref().map(|a| &a.segment)).map(|s| s.base);
                let next = next.filter(|&base| base > pos).unwrap_or(Seq::MAX).min(memory);
                self.missing(reading, next - 1);
                Ok(())
            }
        }
    }

    fn read_segment(
        &mut self,
        reading: &mut Reading<'_>,
        segment: &super::segment::Segment,
        until: Seq,
    ) -> io::Result<()> {
        let until = until.min(reading.last);
        let file = match self.fs.open(&segment.path, Open::Read) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.missing(reading, until);
                return Ok(());
            }
            Err(e) => return Err(e),
        };
        let place = self.places.iter().position(|p| p.base == segment.base && p.next == reading.pos);
        let at = place.map_or(HEADER_LEN, |i| self.places.remove(i).at);
        let mut scanner =
            Scanner::new(file, self.lane, segment.base, at, segment.end, std::mem::take(&mut self.read_buffer));
        let result = self.read_frames(reading, &mut scanner, until);
        let at = scanner.pos();
        self.read_buffer = scanner.into_buffer();
        if result? {
            self.mark_damaged(segment.base);
        }
        if reading.pos <= until {
            self.remember(Place { base: segment.base, next: reading.pos, at, tries: 0 });
        }
        Ok(())
    }

    /// Says whether damage was met.
    fn read_frames(&mut self, reading: &mut Reading<'_>, scanner: &mut Scanner, until: Seq) -> io::Result<bool> {
        let mut damaged = false;
        while !reading.is_full() && reading.pos <= until {
            match scanner.next()? {
                Found::Frame(frame, _) if frame.seq < reading.pos => {}
                Found::Frame(frame, at) => match scanner.record(&frame, at)? {
                    Some(record) => {
                        self.missing(reading, (first_seq(&record) - 1).min(until));
                        if reading.pos <= until {
                            self.hand_out(reading, record);
                        }
                    }
                    None => self.missing(reading, frame.seq.min(until)),
                },
                Found::Damage => damaged = true,
                Found::End { .. } => self.missing(reading, until),
            }
        }
        Ok(damaged)
    }

    fn remember(&mut self, place: Place) {
        if self.places.len() >= PLACES {
            self.places.remove(0);
        }
        self.places.push(place);
    }

    fn mark_damaged(&mut self, base: Seq) {
        let active = self.active.as_mut().map(|a| &mut a.segment);
        if let Some(segment) = self.sealed.iter_mut().chain(active).find(|s| s.base == base) {
            segment.damaged = true;
        }
    }

    /// The disk refused to be read. After some tries the numbers of this segment count as lost.
    fn unreadable(&mut self, reading: &mut Reading<'_>, error: &io::Error) {
        let known = self.places.iter().position(|p| p.base == 0 && p.next == reading.pos);
        let tries = known.map_or(0, |i| self.places.remove(i).tries) + 1;
        tracing::warn!(lane = self.lane.as_str(), seq = reading.pos, tries, %error, "cannot read the log");
        if tries < TRIES {
            return self.remember(Place { base: 0, next: reading.pos, at: 0, tries });
        }
        let index = self.sealed.partition_point(|s| s.base <= reading.pos);
        let until = self.sealed.get(index).map_or(self.durable, |next| next.base - 1);
        self.missing(reading, until.max(reading.pos));
    }
}
