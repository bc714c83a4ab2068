//! A serial line without hardware: two pseudo-terminals joined by socat.

use std::path::PathBuf;
use std::process::Command;

use super::{Child, SOON, eventually, program, temp_dir};

/// Two ends of a line. Dropping it ends the line.
pub struct PtyPair {
    /// One end, for the gateway.
    pub near: PathBuf,
    /// The other end, for the device.
    pub far: PathBuf,
    _socat: Child,
    _folder: tempfile::TempDir,
}

impl PtyPair {
    /// Opens a line and waits until both ends are there.
    pub fn open() -> Self {
        let folder = temp_dir();
        let (near, far) = (folder.path().join("near"), folder.path().join("far"));
        let mut command = Command::new(program("socat"));
        command.args([&near, &far].map(|end| format!("pty,raw,echo=0,link={}", end.display())));
        let socat = Child::spawn("socat", command);
        eventually("both ends of the line", SOON, || (near.exists() && far.exists()).then_some(()));
        Self { near, far, _socat: socat, _folder: folder }
    }
}
