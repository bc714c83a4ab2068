//! One record on disk.
//!
//! Little endian: `magic u16, version u8, flags u8, len u32, crc32c u32, seq u64, ts_ms i64, device u32, schema u16,
//! count u16, payload`. The checksum covers all but itself and is seeded with the lane and with the base of the segment,
//! so that a frame left over from an earlier life of a recycled file never validates.

use bytes::Bytes;

use crate::model::{Lane, Record, RecordKind, Seq};

/// First two bytes of a frame.
pub(crate) const MAGIC: [u8; 2] = 0xF6D1u16.to_le_bytes();
/// Version of the frame that is written. This one and the one before it are read.
pub(crate) const VERSION: u8 = 1;
/// Bytes before the payload.
pub(crate) const HEADER: usize = 36;
/// Zeros behind the last frame of a segment that is being filled, as far as there is room. Where they are missing, the
/// last frame was damaged or torn, even in a recycled file, whose old frames follow.
pub(crate) const GUARD: usize = HEADER;
/// Longest payload in bytes.
pub const MAX_PAYLOAD: usize = 256 * 1024;

/// What stands at a place in a segment.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    /// An intact frame and its length in bytes.
    Frame(Frame),
    /// The beginning of what may be a frame of this many bytes; more bytes are needed to tell.
    Short(usize),
    /// No frame.
    Bad,
}

/// An intact frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub seq: Seq,
    pub ts_ms: i64,
    pub device: u32,
    /// Number of the kind; may be unknown to this version.
    pub schema: u16,
    pub count: u16,
    /// Bytes of the whole frame.
    pub len: usize,
    /// The payload's place behind the beginning of the frame is always [`HEADER`].
    pub newer: bool,
}

impl Frame {
    /// The record, with the payload out of `bytes`, where the frame begins; `None` for a kind of a newer version.
    pub fn record(&self, lane: Lane, bytes: &[u8]) -> Option<Record> {
        let kind = RecordKind::from_u16(self.schema).filter(|_| !self.newer)?;
        let payload = Bytes::copy_from_slice(bytes.get(HEADER..self.len)?);
        Some(Record { lane, seq: self.seq, ts_ms: self.ts_ms, device: self.device, kind, count: self.count, payload })
    }
}

/// The checksum before the first byte of a frame of this segment.
pub(crate) fn seed(lane: Lane, base: Seq) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&base.to_le_bytes()), lane.as_str().as_bytes())
}

fn checksum(seed: u32, header: &[u8], payload: &[u8]) -> u32 {
    let sum = crc32c::crc32c_append(crc32c::crc32c_append(seed, &header[..8]), &header[12..HEADER]);
    crc32c::crc32c_append(sum, payload)
}

/// Gives every frame in `bytes` a right checksum, as far as its length allows: a fuzzer would not find one.
pub(crate) fn mend(seed: u32, bytes: &mut [u8]) {
    let mut at = 0;
    while bytes.len() >= at + HEADER {
        let len = u32::from_le_bytes(take(bytes, at + 4)) as usize;
        let end = at.saturating_add(HEADER).saturating_add(len);
        if bytes[at..at + 2] != MAGIC || end > bytes.len() {
            at += 1;
            continue;
        }
        let sum = checksum(seed, &bytes[at..at + HEADER], &bytes[at + HEADER..end]);
        bytes[at + 8..at + 12].copy_from_slice(&sum.to_le_bytes());
        at = end;
    }
}

/// Bytes that a record takes on disk.
pub(crate) fn encoded_len(record: &Record) -> usize {
    HEADER + record.payload.len()
}

/// Appends the frame of `record` to `out`.
pub(crate) fn encode(out: &mut Vec<u8>, seed: u32, record: &Record) {
    let mut header = [0u8; HEADER];
    header[..2].copy_from_slice(&MAGIC);
    header[2] = VERSION;
    header[4..8].copy_from_slice(&(record.payload.len() as u32).to_le_bytes());
    header[12..20].copy_from_slice(&record.seq.to_le_bytes());
    header[20..28].copy_from_slice(&record.ts_ms.to_le_bytes());
    header[28..32].copy_from_slice(&record.device.to_le_bytes());
    header[32..34].copy_from_slice(&(record.kind as u16).to_le_bytes());
    header[34..36].copy_from_slice(&record.count.to_le_bytes());
    let sum = checksum(seed, &header, &record.payload);
    header[8..12].copy_from_slice(&sum.to_le_bytes());
    out.extend_from_slice(&header);
    out.extend_from_slice(&record.payload);
}

/// A fixed number of bytes out of a header that is long enough.
fn take<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("the header is long enough")
}

/// Reads the frame that begins at `bytes[0]`.
pub(crate) fn parse(seed: u32, bytes: &[u8]) -> Parsed {
    if !bytes.iter().zip(MAGIC).all(|(have, want)| *have == want) {
        return Parsed::Bad;
    }
    if bytes.len() < HEADER {
        return Parsed::Short(HEADER);
    }
    let len = u32::from_le_bytes(take(bytes, 4)) as usize;
    if len > MAX_PAYLOAD || bytes[2] == 0 {
        return Parsed::Bad;
    }
    let whole = HEADER + len;
    let Some(payload) = bytes.get(HEADER..whole) else { return Parsed::Short(whole) };
    if checksum(seed, bytes, payload) != u32::from_le_bytes(take(bytes, 8)) {
        return Parsed::Bad;
    }
    Parsed::Frame(Frame {
        seq: u64::from_le_bytes(take(bytes, 12)),
        ts_ms: i64::from_le_bytes(take(bytes, 20)),
        device: u32::from_le_bytes(take(bytes, 28)),
        schema: u16::from_le_bytes(take(bytes, 32)),
        count: u16::from_le_bytes(take(bytes, 34)),
        len: whole,
        newer: bytes[2] > VERSION,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(seq: Seq, payload: Vec<u8>) -> Record {
        Record {
            lane: Lane::Bulk,
            seq,
            ts_ms: -5,
            device: 7,
            kind: RecordKind::Telemetry,
            count: 3,
            payload: payload.into(),
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_read_back(seq: u64, payload in proptest::collection::vec(any::<u8>(), 0..300)) {
            let record = record(seq, payload);
            let mut out = Vec::new();
            encode(&mut out, seed(Lane::Bulk, 9), &record);
            prop_assert_eq!(out.len(), encoded_len(&record));
            let Parsed::Frame(frame) = parse(seed(Lane::Bulk, 9), &out) else { panic!("not a frame") };
            prop_assert_eq!(frame.record(Lane::Bulk, &out), Some(record));
            prop_assert_eq!(parse(seed(Lane::Bulk, 10), &out), Parsed::Bad);
            prop_assert_eq!(parse(seed(Lane::Critical, 9), &out), Parsed::Bad);
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(1, &bytes);
            let mut dressed = MAGIC.to_vec();
            dressed.extend_from_slice(&bytes);
            let _ = parse(1, &dressed);
        }
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let mut out = Vec::new();
        encode(&mut out, 1, &record(4, b"some payload".to_vec()));
        for bit in 0..out.len() * 8 {
            out[bit / 8] ^= 1 << (bit % 8);
            assert!(!matches!(parse(1, &out), Parsed::Frame(_)), "bit {bit}");
            out[bit / 8] ^= 1 << (bit % 8);
        }
        for len in 0..out.len() {
            assert!(matches!(parse(1, &out[..len]), Parsed::Short(_)), "length {len}");
        }
    }
}
