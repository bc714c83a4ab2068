//! Reading the frames of one segment in order, past damage.

use std::io;
use std::sync::Arc;

use super::frame::{self, Frame, Parsed};
use crate::model::{Lane, Record, Seq};
use crate::store::fs::File;

/// Bytes read at once.
const CHUNK: usize = 128 * 1024;
/// Unit in which an unreadable place is skipped.
const PAGE: usize = 4096;

/// What was found next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// An intact frame at this offset.
    Frame(Frame, u64),
    /// Bytes that are no frame, with an intact frame behind them.
    Damage,
    /// No intact frame follows.
    End {
        /// Where the last intact frame ended.
        at: u64,
        /// Whether anything but the [`frame::GUARD`] follows: a frame was torn or damaged here.
        torn: bool,
    },
}

/// Goes through a segment once.
#[derive(Debug)]
pub(crate) struct Scanner {
    file: Arc<dyn File>,
    lane: Lane,
    seed: u32,
    base: Seq,
    pos: u64,
    limit: u64,
    buf: Vec<u8>,
    buf_at: u64,
}

impl Scanner {
    /// Reads from `pos` up to `limit` (both absolute offsets) of the segment that begins with `base`. `buf` is a buffer
    /// to use again.
    pub fn new(file: Arc<dyn File>, lane: Lane, base: Seq, pos: u64, limit: u64, mut buf: Vec<u8>) -> Self {
        buf.clear();
        Self { file, lane, seed: frame::seed(lane, base), base, pos, limit, buf, buf_at: pos }
    }

    /// Offset of what comes next.
    pub fn pos(&self) -> u64 {
        self.pos
    }

    /// Gives the buffer back.
    pub fn into_buffer(self) -> Vec<u8> {
        self.buf
    }

    /// The next frame, damage or the end.
    pub fn next(&mut self) -> io::Result<Found> {
        if let Some(frame) = self.frame_at(self.pos)? {
            let at = self.pos;
            self.pos += frame.len as u64;
            return Ok(Found::Frame(frame, at));
        }
        let stop = self.pos;
        let mut at = stop;
        while at < self.limit {
            let bytes = self.window(at, CHUNK)?;
            let Some(skip) = bytes.iter().position(|&b| b != 0) else {
                at += bytes.len().max(1) as u64;
                continue;
            };
            let Some(found) = bytes[skip..].iter().position(|&b| b == frame::MAGIC[0]) else {
                at += bytes.len() as u64;
                continue;
            };
            at += (skip + found) as u64;
            if at > stop && self.frame_at(at)?.is_some() {
                self.pos = at;
                return Ok(Found::Damage);
            }
            at += 1;
        }
        let guard = self.window(stop, frame::GUARD)?;
        let torn = guard.iter().take(frame::GUARD).any(|&b| b != 0);
        Ok(Found::End { at: stop, torn })
    }

    /// The record of the frame that was found at `at` just now; `None` for a kind that this version does not know.
    pub fn record(&mut self, frame: &Frame, at: u64) -> io::Result<Option<Record>> {
        let lane = self.lane;
        Ok(frame.record(lane, self.window(at, frame.len)?))
    }

    fn frame_at(&mut self, at: u64) -> io::Result<Option<Frame>> {
        let (seed, base) = (self.seed, self.base);
        let mut parsed = frame::parse(seed, self.window(at, frame::HEADER)?);
        if let Parsed::Short(whole) = parsed {
            if at + whole as u64 > self.limit {
                return Ok(None);
            }
            parsed = frame::parse(seed, self.window(at, whole)?);
        }
        Ok(match parsed {
            Parsed::Frame(frame) if frame.seq >= base => Some(frame),
            _ => None,
        })
    }

    /// The bytes from `at` on, at least `want` of them unless the limit is nearer.
    fn window(&mut self, at: u64, want: usize) -> io::Result<&[u8]> {
        let want = want.min(self.limit.saturating_sub(at) as usize);
        let have = (self.buf_at + self.buf.len() as u64).saturating_sub(at) as usize;
        let inside = at >= self.buf_at;
        // A search asks for a whole chunk, but any rest of one serves it.
        let enough = if want >= CHUNK { have > frame::HEADER } else { have >= want };
        if !(inside && enough && have > 0) {
            self.fill(at, want)?;
        }
        let start = (at - self.buf_at) as usize;
        Ok(self.buf.get(start..).unwrap_or_default())
    }

    fn fill(&mut self, at: u64, want: usize) -> io::Result<()> {
        let len = want.max(CHUNK).min(self.limit.saturating_sub(at) as usize);
        self.buf_at = at;
        self.buf.clear();
        self.buf.resize(len, 0);
        let read = match self.file.read_at(&mut self.buf, at) {
            Ok(read) => read,
            Err(error) => self.fill_by_pages(at, error)?,
        };
        self.buf.truncate(read);
        if read < len {
            self.limit = at + read as u64;
        }
        Ok(())
    }

    /// A place that cannot be read twice counts as zeros, that is as damage; the rest of the chunk is saved.
    fn fill_by_pages(&mut self, at: u64, first: io::Error) -> io::Result<usize> {
        tracing::warn!(error = %first, offset = at, "a segment cannot be read here, trying page by page");
        let mut done = 0;
        let mut bad = 0;
        while done < self.buf.len() {
            let end = (done + PAGE).min(self.buf.len());
            let page = &mut self.buf[done..end];
            match self.file.read_at(page, at + done as u64) {
                Ok(n) if n < page.len() => return Ok(done + n),
                Ok(_) => {}
                Err(_) => {
                    page.fill(0);
                    bad += 1;
                }
            }
            done = end;
        }
        if bad * PAGE >= self.buf.len() { Err(first) } else { Ok(done) }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;
    use crate::model::RecordKind;
    use crate::store::fs::sim::SimFs;
    use crate::store::fs::{FileSystem, Open};

    fn record(seq: Seq, len: usize) -> Record {
        let payload = vec![0xD1; len].into();
        Record { lane: Lane::Bulk, seq, ts_ms: 1, device: 0, kind: RecordKind::Telemetry, count: 1, payload }
    }

    fn scan(bytes: &[u8]) -> (Vec<Seq>, usize, bool) {
        let fs = SimFs::new(0);
        let file = fs.open(Path::new("/s"), Open::Create).unwrap();
        file.write_at(bytes, 0).unwrap();
        let mut scanner = Scanner::new(file, Lane::Bulk, 1, 0, bytes.len() as u64, Vec::new());
        let (mut seqs, mut damages) = (Vec::new(), 0);
        loop {
            match scanner.next().unwrap() {
                Found::Frame(frame, at) => {
                    assert_eq!(scanner.record(&frame, at).unwrap().unwrap().seq, frame.seq);
                    seqs.push(frame.seq);
                }
                Found::Damage => damages += 1,
                Found::End { torn, .. } => return (seqs, damages, torn),
            }
        }
    }

    fn log(lens: &[usize]) -> (Vec<u8>, Vec<usize>) {
        let (mut out, mut starts) = (Vec::new(), Vec::new());
        for (i, &len) in lens.iter().enumerate() {
            starts.push(out.len());
            frame::encode(&mut out, frame::seed(Lane::Bulk, 1), &record(i as u64 + 1, len));
        }
        (out, starts)
    }

    proptest! {
        #[test]
        fn damage_costs_the_damaged_records_only(
            lens in proptest::collection::vec(0usize..9000, 1..60), place: prop::sample::Index, bit in 0u8..8, zeros in 0usize..5000,
        ) {
            let (mut bytes, starts) = log(&lens);
            let hit = place.index(bytes.len());
            bytes[hit] ^= 1 << bit;
            let victim = starts.iter().rposition(|&s| s <= hit).unwrap();
            bytes.resize(bytes.len() + zeros, 0);
            let (seqs, damages, torn) = scan(&bytes);
            let want: Vec<Seq> = (1..=lens.len() as u64).filter(|&s| s != victim as u64 + 1).collect();
            prop_assert_eq!(seqs, want);
            prop_assert_eq!(damages, usize::from(victim + 1 != lens.len()));
            prop_assert_eq!(torn, victim + 1 == lens.len());
        }
    }

    #[test]
    fn truncation_at_every_length_keeps_every_whole_frame() {
        let (bytes, starts) = log(&[10, 0, 300, 5]);
        for len in 0..=bytes.len() {
            let whole = (1..=4).filter(|&n| starts.get(n).copied().unwrap_or(bytes.len()) <= len).count() as u64;
            let (seqs, damages, torn) = scan(&bytes[..len]);
            assert_eq!((seqs, damages), ((1..=whole).collect(), 0), "length {len}");
            assert_eq!(torn, whole < 4 && starts[whole as usize] < len, "length {len}");
        }
    }
}
