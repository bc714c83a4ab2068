//! The name by which a socket is bound and connected: the kernel takes at most 107 octets, and a data directory may lie
//! deeper than that.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Octets that the address of a Unix socket has room for, the closing zero included (`sockaddr_un.sun_path`).
const ROOM: usize = 108;

/// A path that is short enough, for as long as this lives.
#[derive(Debug)]
pub(super) struct Address {
    path: PathBuf,
    /// What a short path goes through.
    _directory: Option<File>,
}

impl Address {
    /// Of the socket at `path`. A longer path is named through its open directory.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(Self { path: path.to_owned(), _directory: None });
        };
        if path.as_os_str().as_bytes().len() < ROOM {
            return Ok(Self { path: path.to_owned(), _directory: None });
        }
        let directory = File::open(parent)?;
        let path = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
        Ok(Self { path, _directory: Some(directory) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}
