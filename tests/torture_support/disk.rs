//! Small ext4 file systems in a file, mounted over a loop device: they can be copied while they are in use, as a power
//! cut would leave them, and they can be filled up.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::program;

fn run(name: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program(name)).args(arguments).output().map_err(|error| format!("{name}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() { Ok(()) } else { Err(format!("{name} {arguments:?}: {said}")) }
}

/// Whether a loop device can be mounted here; if not, why.
pub fn loop_mounts_work() -> Result<(), String> {
    if std::env::var_os("FIELDGATE_NO_LOOP").is_some() {
        return Err("FIELDGATE_NO_LOOP is set".to_owned());
    }
    let folder = crate::support::temp_dir();
    Image::make(folder.path().join("try.img"), 4)?.mount(folder.path().join("try")).map(drop)
}

/// A file that holds a file system.
pub struct Image(PathBuf);

impl Image {
    /// Makes an ext4 of so many MiB.
    pub fn make(path: PathBuf, mib: u64) -> Result<Self, String> {
        let file = std::fs::File::create(&path).map_err(|error| error.to_string())?;
        file.set_len(mib << 20).map_err(|error| error.to_string())?;
        let name = path.display().to_string();
        run("mkfs.ext4", &["-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", &name])?;
        Ok(Self(path))
    }

    /// A copy of what the block device holds now.
    pub fn copy(&self, to: PathBuf) -> Result<Self, String> {
        run("cp", &["--sparse=always", &self.0.display().to_string(), &to.display().to_string()])?;
        Ok(Self(to))
    }

    /// Mounts it; the journal is replayed as after a power cut.
    pub fn mount(&self, at: PathBuf) -> Result<Mount, String> {
        std::fs::create_dir_all(&at).map_err(|error| error.to_string())?;
        run("mount", &["-o", "loop", &self.0.display().to_string(), &at.display().to_string()])?;
        Ok(Mount(at))
    }

    pub fn delete(self) {
        let _ = std::fs::remove_file(self.0);
    }
}

/// A mounted image; unmounted when dropped, at once even if it is in use.
pub struct Mount(PathBuf);

impl Mount {
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let at = self.0.display().to_string();
        if run("umount", &[&at]).is_err() {
            let _ = run("umount", &["-l", &at]);
        }
    }
}
