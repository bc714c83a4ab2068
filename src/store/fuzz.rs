//! The files of the log without a disk, for the fuzzer and for `tests/fuzz_smoke.rs`.

use std::io;
use std::sync::Arc;

use super::fs::{File, SyncPoint};
use super::log::scan::{Found, Scanner};
use super::log::{acks, frame, segment};
use crate::model::Lane;

/// Longest file that is looked at.
const LIMIT: usize = 1 << 20;

/// A file that is there already.
#[derive(Debug)]
struct Content(Vec<u8>);

impl File for Content {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(self.0.len());
        let n = buf.len().min(self.0.len() - from);
        buf[..n].copy_from_slice(&self.0[from..from + n]);
        Ok(n)
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync(&self, _: SyncPoint) -> io::Result<()> {
        Ok(())
    }

    fn write_out(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }
}

/// Takes `data` for a segment: its header, and its frames once as they are and once with right checksums.
pub fn fuzz_segment(data: &[u8]) {
    let data = &data[..data.len().min(LIMIT)];
    let _ = segment::decode_header(Lane::Bulk, 1, data);
    scan(data.to_vec());
    let mut mended = data.to_vec();
    frame::mend(frame::seed(Lane::Bulk, 1), &mut mended);
    scan(mended);
}

fn scan(content: Vec<u8>) {
    let limit = content.len() as u64;
    let mut scanner = Scanner::new(Arc::new(Content(content)), Lane::Bulk, 1, 0, limit, Vec::new());
    let mut last = 0;
    while let Ok(found) = scanner.next() {
        match found {
            Found::Frame(frame, at) => {
                let _ = scanner.record(&frame, at);
            }
            Found::Damage => {}
            Found::End { at, .. } => {
                assert!(at <= limit, "the end lies behind the file");
                return;
            }
        }
        assert!(scanner.pos() > last || last == 0, "a scan that does not move on never ends");
        last = scanner.pos();
    }
}

/// Takes `data` for an ack file, once as it is and once with a right checksum.
pub fn fuzz_acks(data: &[u8]) {
    let data = &data[..data.len().min(acks::FILE_LEN as usize)];
    let _ = acks::newest(&Content(data.to_vec()));
    let mut mended = data.to_vec();
    acks::mend(&mut mended);
    let _ = acks::newest(&Content(mended));
}
