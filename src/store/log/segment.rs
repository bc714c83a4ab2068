//! One file of a lane.
//!
//! `<base:020>.seg`: a header of 64 bytes, then frames, then zeros. The name is the truth about the base; the header
//! carries the format version and, once the segment is full, a summary, so that opening need not read the frames.

use std::path::{Path, PathBuf};

use crate::model::{Lane, Seq};

/// Bytes before the first frame.
pub(crate) const HEADER_LEN: u64 = 64;
/// Version of the header that is written and the newest that is read.
pub(crate) const VERSION: u16 = 1;
const MAGIC: [u8; 4] = *b"FGSG";

/// What is known about a segment without reading its frames.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segment {
    pub base: Seq,
    pub path: PathBuf,
    /// Bytes allocated.
    pub size: u64,
    /// Where the frames end.
    pub end: u64,
    /// Last sequence number in it; `base - 1` when it is empty.
    pub last: Seq,
    pub records: u64,
    pub first_ms: i64,
    pub last_ms: i64,
    /// Frames in it were found damaged.
    pub damaged: bool,
    /// Grows with every segment of the lane. Where two hold the same numbers, the later one is right: it was written
    /// after a failure of the other.
    pub generation: u32,
}

impl Segment {
    /// An empty one.
    pub fn new(dir: &Path, base: Seq, size: u64, generation: u32) -> Self {
        let path = dir.join(file_name(base));
        Self {
            base,
            path,
            size,
            end: HEADER_LEN,
            last: base - 1,
            records: 0,
            first_ms: 0,
            last_ms: 0,
            damaged: false,
            generation,
        }
    }

    /// Notes a frame that was added behind the others.
    pub fn note(&mut self, seq: Seq, ts_ms: i64, len: usize) {
        if self.records == 0 {
            self.first_ms = ts_ms;
        }
        self.records += 1;
        self.last = seq;
        self.last_ms = ts_ms;
        self.end += len as u64;
    }
}

/// Name of the segment that begins with `base`.
pub(crate) fn file_name(base: Seq) -> String {
    format!("{base:020}.seg")
}

/// The base in a segment's name.
pub(crate) fn base_of(name: &str) -> Option<Seq> {
    let digits = name.strip_suffix(".seg")?;
    (digits.len() == 20).then(|| digits.parse().ok()).flatten().filter(|&base| base > 0)
}

/// The header of a segment on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Header {
    /// Still being filled, or stopped without a summary.
    Open,
    /// Full; the segment's summary.
    Sealed { last: Seq, records: u64, first_ms: i64, last_ms: i64, end: u64 },
    /// Written by a newer version.
    Newer(u16),
    /// Not a header of this segment.
    Damaged,
}

/// Encodes the header; with the summary when `sealed`.
pub(crate) fn encode_header(lane: Lane, segment: &Segment, sealed: bool) -> [u8; HEADER_LEN as usize] {
    let mut out = [0u8; HEADER_LEN as usize];
    out[..4].copy_from_slice(&MAGIC);
    out[4..6].copy_from_slice(&VERSION.to_le_bytes());
    out[6] = lane as u8;
    out[7] = u8::from(sealed);
    out[8..16].copy_from_slice(&segment.base.to_le_bytes());
    if sealed {
        out[16..24].copy_from_slice(&segment.last.to_le_bytes());
        out[24..32].copy_from_slice(&segment.records.to_le_bytes());
        out[32..40].copy_from_slice(&segment.first_ms.to_le_bytes());
        out[40..48].copy_from_slice(&segment.last_ms.to_le_bytes());
        out[48..56].copy_from_slice(&segment.end.to_le_bytes());
    }
    out[56..60].copy_from_slice(&segment.generation.to_le_bytes());
    let sum = crc32c::crc32c(&out[..60]);
    out[60..].copy_from_slice(&sum.to_le_bytes());
    out
}

/// The generation in an intact header.
pub(crate) fn generation_of(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes[56..60].try_into().expect("the header has 64 bytes"))
}

/// Reads the header of the segment that should begin with `base`.
pub(crate) fn decode_header(lane: Lane, base: Seq, bytes: &[u8]) -> Header {
    let field = |at: usize| -> [u8; 8] { bytes[at..at + 8].try_into().expect("the header has 64 bytes") };
    if bytes.len() < HEADER_LEN as usize || bytes[..4] != MAGIC {
        return Header::Damaged;
    }
    if crc32c::crc32c(&bytes[..60]).to_le_bytes() != bytes[60..64] {
        return Header::Damaged;
    }
    let version = u16::from_le_bytes([bytes[4], bytes[5]]);
    if version > VERSION {
        return Header::Newer(version);
    }
    if bytes[6] != lane as u8 || u64::from_le_bytes(field(8)) != base {
        return Header::Damaged;
    }
    if bytes[7] == 0 {
        return Header::Open;
    }
    Header::Sealed {
        last: u64::from_le_bytes(field(16)),
        records: u64::from_le_bytes(field(24)),
        first_ms: i64::from_le_bytes(field(32)),
        last_ms: i64::from_le_bytes(field(40)),
        end: u64::from_le_bytes(field(48)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_round_trip_and_damage_is_seen() {
        let mut segment = Segment::new(Path::new("/b"), 12, 4096, 7);
        segment.note(12, 100, 50);
        segment.note(14, 101, 50);
        let open = encode_header(Lane::Bulk, &segment, false);
        assert_eq!(decode_header(Lane::Bulk, 12, &open), Header::Open);
        assert_eq!(generation_of(&open), 7);
        let mut sealed = encode_header(Lane::Bulk, &segment, true);
        assert_eq!(
            decode_header(Lane::Bulk, 12, &sealed),
            Header::Sealed { last: 14, records: 2, first_ms: 100, last_ms: 101, end: HEADER_LEN + 100 }
        );
        assert_eq!(decode_header(Lane::Bulk, 13, &sealed), Header::Damaged);
        assert_eq!(decode_header(Lane::Critical, 12, &sealed), Header::Damaged);
        for bit in 0..sealed.len() * 8 {
            sealed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode_header(Lane::Bulk, 12, &sealed), Header::Damaged, "bit {bit}");
            sealed[bit / 8] ^= 1 << (bit % 8);
        }
        assert_eq!(base_of(&file_name(77)), Some(77));
        for other in ["77.seg", "acks", "00000000000000000077.bad", "00000000000000000000.seg"] {
            assert_eq!(base_of(other), None, "{other}");
        }
    }
}
