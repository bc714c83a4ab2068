//! An artifact on the gateway's disk while it comes in.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::Refusal;
use crate::platform::durable::{Access, Disk};

/// A partly received artifact. What is synced is what the job may count as received.
#[derive(Debug)]
pub struct Incoming {
    path: PathBuf,
    file: File,
    received: u64,
    size: u64,
    disk: Disk,
}

impl Incoming {
    /// Goes on with the artifact `sha256` in `directory` at `durable` bytes: what lies behind that was never counted and is
    /// cut off. Starts from nothing when less is there.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn open(directory: &Path, sha256: &str, size: u64, durable: u64, disk: &Disk) -> io::Result<Self> {
        disk.create_directory(directory, Access::Private)?;
        let path = Self::path(directory, sha256);
        let file = disk.open_append(&path, Access::Private)?;
        let length = file.metadata()?.len();
        let received = if length < durable { 0 } else { durable.min(size) };
        if length > received {
            file.set_len(received)?;
            disk.sync(&file, &path)?;
        }
        Ok(Self { path, file, received, size, disk: disk.clone() })
    }

    /// Where the artifact `sha256` lies.
    pub fn path(directory: &Path, sha256: &str) -> PathBuf {
        directory.join(format!("{sha256}.part"))
    }

    /// Bytes so far, synced or not.
    pub const fn received(&self) -> u64 {
        self.received
    }

    /// Adds bytes; not durable before [`Incoming::sync`].
    ///
    /// # Errors
    /// When there would be more than the manifest names (nothing is added then), or the file system refuses.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<Result<(), Refusal>> {
        let after = self.received + bytes.len() as u64;
        if after > self.size {
            return Ok(Err(Refusal::TooLong(self.size)));
        }
        self.disk.write(&mut self.file, &self.path, bytes)?;
        self.received = after;
        Ok(Ok(()))
    }

    /// Makes everything durable and returns how much that is.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn sync(&mut self) -> io::Result<u64> {
        self.disk.sync(&self.file, &self.path)?;
        Ok(self.received)
    }
}

/// Size and SHA-256 of a file, read from the disk.
///
/// # Errors
/// When it cannot be read.
pub fn sha256_of_file(path: &Path) -> io::Result<(u64, String)> {
    let mut file = File::open(path)?;
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    let mut buffer = vec![0; 64 * 1024];
    let mut size = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            read => {
                context.update(&buffer[..read]);
                size += read as u64;
            }
        }
    }
    Ok((size, context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()))
}

/// Whether the file at `path` is exactly `size` bytes with that digest. A missing file counts as empty.
pub(super) fn check_file(path: &Path, size: u64, sha256: &str) -> io::Result<Result<(), Refusal>> {
    let (received, digest) = match sha256_of_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => (0, String::new()),
        read => read?,
    };
    Ok(match received.cmp(&size) {
        std::cmp::Ordering::Less => Err(Refusal::Truncated { received, expected: size }),
        std::cmp::Ordering::Greater => Err(Refusal::TooLong(size)),
        std::cmp::Ordering::Equal if digest != sha256 => {
            Err(Refusal::WrongDigest { received: digest, expected: sha256.to_owned() })
        }
        std::cmp::Ordering::Equal => Ok(()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_synced_before_a_crash_is_cut_and_fetched_again() {
        let directory = tempfile::tempdir().unwrap();
        let disk = Disk::default();
        let mut first = Incoming::open(directory.path(), "aa", 10, 0, &disk).unwrap();
        first.append(b"12345").unwrap().unwrap();
        assert_eq!(first.sync().unwrap(), 5);
        first.append(b"678").unwrap().unwrap();
        drop(first);
        let mut again = Incoming::open(directory.path(), "aa", 10, 5, &disk).unwrap();
        assert_eq!(again.received(), 5);
        again.append(b"67890").unwrap().unwrap();
        assert_eq!(again.append(b"1").unwrap(), Err(Refusal::TooLong(10)));
        again.sync().unwrap();
        assert_eq!(std::fs::read(Incoming::path(directory.path(), "aa")).unwrap(), b"1234567890");
        let shorter = Incoming::open(directory.path(), "bb", 10, 5, &disk).unwrap();
        assert_eq!(shorter.received(), 0, "the file is gone: begin again");
    }
}
