//! Files that survive a power cut: written whole or not at all, in the order in which they were asked for.
//!
//! Promise: after a call returned `Ok`, its effect survives a power cut; after a crash inside a call the old content or
//! the new one is there, never a mix. A private file is created with mode 0600 and a private directory with 0700, so
//! there is no moment at which somebody else can read them.
//!
//! Every step passes an [`Observer`] first. In production there is none; a test stops at the n-th step and looks at what
//! is left on the disk.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Marks a file that was being written; such files are left over from a crash and may be removed.
const UNFINISHED: &str = ".unfinished";

/// Who may read a file or directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The owner only: 0600, directories 0700.
    Private,
    /// Everybody may read: 0644, directories 0755.
    Public,
    /// Everybody may read and run it: 0755.
    Executable,
}

impl Access {
    const fn file_mode(self) -> u32 {
        match self {
            Self::Private => 0o600,
            Self::Public => 0o644,
            Self::Executable => 0o755,
        }
    }

    const fn directory_mode(self) -> u32 {
        match self {
            Self::Private => 0o700,
            Self::Public | Self::Executable => 0o755,
        }
    }
}

/// One change that is about to be made to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step<'a> {
    /// A directory is created.
    CreateDirectory(&'a Path),
    /// An empty file is created.
    Create(&'a Path),
    /// Bytes are appended to an open file.
    Write(&'a Path),
    /// A file's content is made durable.
    Sync(&'a Path),
    /// A file or link takes the place of another.
    Rename {
        /// The new file.
        from: &'a Path,
        /// Its final name.
        to: &'a Path,
    },
    /// A symbolic link is created.
    Link(&'a Path),
    /// A file is removed.
    Remove(&'a Path),
    /// The names in a directory are made durable.
    SyncDirectory(&'a Path),
}

/// Sees every step before it is made and may refuse it, as a crash would.
pub trait Observer: Send + Sync {
    /// Called before `step`; an error stops the operation there.
    ///
    /// # Errors
    /// Whatever the observer wants the operation to fail with.
    fn before(&self, step: Step<'_>) -> io::Result<()>;
}

/// The disk. Cloning is cheap.
#[derive(Clone, Default)]
pub struct Disk {
    observer: Option<Arc<dyn Observer>>,
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk").field("observed", &self.observer.is_some()).finish()
    }
}

impl Disk {
    /// A disk whose steps are seen by `observer`.
    pub fn observed(observer: Arc<dyn Observer>) -> Self {
        Self { observer: Some(observer) }
    }

    fn before(&self, step: Step<'_>) -> io::Result<()> {
        self.observer.as_ref().map_or(Ok(()), |observer| observer.before(step))
    }

    /// Creates `path` and its missing parents; an existing directory is left as it is.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn create_directory(&self, path: &Path, access: Access) -> io::Result<()> {
        if path.is_dir() {
            return Ok(());
        }
        self.before(Step::CreateDirectory(path))?;
        DirBuilder::new().recursive(true).mode(access.directory_mode()).create(path)?;
        match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            Some(parent) => self.sync_directory(parent),
            None => Ok(()),
        }
    }

    /// Gives `path` the content `bytes`: temporary file, fsync, rename, fsync of the directory.
    ///
    /// # Errors
    /// When the file system refuses; the old content is then still there.
    pub fn replace(&self, path: &Path, bytes: &[u8], access: Access) -> io::Result<()> {
        let temporary = temporary(path);
        let mut file = self.create(&temporary, access)?;
        let done = self.append(&mut file, &temporary, bytes).and_then(|()| self.rename(&temporary, path));
        if done.is_err() {
            // Best effort: what stays is removed by `remove_unfinished` at the next start.
            let _ = self.remove(&temporary);
        }
        done
    }

    /// Creates a new, empty file; an existing one is an error.
    ///
    /// # Errors
    /// When the file exists or the file system refuses.
    pub fn create(&self, path: &Path, access: Access) -> io::Result<File> {
        self.before(Step::Create(path))?;
        OpenOptions::new().write(true).create_new(true).mode(access.file_mode()).open(path)
    }

    /// Opens `path` for appending, creating it if needed; a new name is made durable.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn open_append(&self, path: &Path, access: Access) -> io::Result<File> {
        let is_new = !path.exists();
        if is_new {
            self.before(Step::Create(path))?;
        }
        let file = OpenOptions::new().append(true).create(true).mode(access.file_mode()).open(path)?;
        if is_new {
            self.sync_directory(parent(path))?;
        }
        Ok(file)
    }

    /// Appends `bytes` to `file`, which lies at `path`, and makes them durable.
    ///
    /// # Errors
    /// When the file system refuses; a part of `bytes` may then be in the file.
    pub fn append(&self, file: &mut File, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.write(file, path, bytes)?;
        self.sync(file, path)
    }

    /// Appends `bytes` without making them durable; [`Disk::sync`] does that.
    ///
    /// # Errors
    /// When the file system refuses; a part of `bytes` may then be in the file.
    pub fn write(&self, file: &mut File, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.before(Step::Write(path))?;
        file.write_all(bytes)
    }

    /// Makes the content of `file`, which lies at `path`, durable.
    ///
    /// # Errors
    /// When the file system refuses; nothing is known then about what was written since the last sync.
    pub fn sync(&self, file: &File, path: &Path) -> io::Result<()> {
        self.before(Step::Sync(path))?;
        file.sync_all()
    }

    /// Renames durably; `to` is replaced.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.before(Step::Rename { from, to })?;
        std::fs::rename(from, to)?;
        self.sync_directory(parent(to))
    }

    /// Makes `link` a symbolic link to `target`, replacing an older link in one step.
    ///
    /// # Errors
    /// When the file system refuses; the old link is then still there.
    pub fn link(&self, target: &Path, link: &Path) -> io::Result<()> {
        let temporary = temporary(link);
        self.before(Step::Link(&temporary))?;
        std::os::unix::fs::symlink(target, &temporary)?;
        let done = self.rename(&temporary, link);
        if done.is_err() {
            let _ = self.remove(&temporary);
        }
        done
    }

    /// Removes a file durably; one that is not there is fine.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn remove(&self, path: &Path) -> io::Result<()> {
        self.before(Step::Remove(path))?;
        match std::fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(()) => self.sync_directory(parent(path)),
        }
    }

    /// Makes the names in `directory` durable.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        self.before(Step::SyncDirectory(directory))?;
        File::open(directory)?.sync_all()
    }

    /// Removes what a crash left of unfinished writes in `directory`.
    ///
    /// # Errors
    /// When the directory cannot be read or a file in it cannot be removed.
    pub fn remove_unfinished(&self, directory: &Path) -> io::Result<()> {
        for entry in std::fs::read_dir(directory)? {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(UNFINISHED)) {
                self.remove(&path)?;
            }
        }
        Ok(())
    }
}

/// A name beside `path` that no other writer uses: process, counter, and a mark to find it after a crash.
fn temporary(path: &Path) -> PathBuf {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let unique = COUNTER.fetch_add(1, Ordering::Relaxed);
    path.with_file_name(format!(".{name}.{}-{unique}{UNFINISHED}", std::process::id()))
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// Refuses every step from the n-th on, as a process that has died.
    struct DiesAt(AtomicUsize);

    impl Observer for DiesAt {
        fn before(&self, _: Step<'_>) -> io::Result<()> {
            let left = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
            left.map(|_| ()).map_err(|_| io::Error::other("dead"))
        }
    }

    #[test]
    fn a_replaced_file_holds_the_old_or_the_new_content_wherever_the_process_dies() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("value");
        for steps in 0.. {
            Disk::default().replace(&path, b"old", Access::Private).unwrap();
            let disk = Disk::observed(Arc::new(DiesAt(AtomicUsize::new(steps))));
            let done = disk.replace(&path, b"new", Access::Private);
            let content = std::fs::read(&path).unwrap();
            assert!(content == b"old" || content == b"new");
            if done.is_ok() {
                assert_eq!(content, b"new");
                assert_eq!(steps, 5, "create, write, sync, rename, sync of the directory");
                return;
            }
        }
    }

    #[test]
    fn a_private_file_is_readable_by_the_owner_only_and_nothing_unfinished_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let disk = Disk::default();
        disk.replace(&path, b"secret", Access::Private).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(temporary(&path), b"half").unwrap();
        disk.remove_unfinished(directory.path()).unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_link_is_swapped_in_one_step() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("current");
        let disk = Disk::default();
        disk.link(Path::new("a"), &link).unwrap();
        disk.link(Path::new("b"), &link).unwrap();
        assert_eq!(std::fs::read_link(&link).unwrap(), Path::new("b"));
    }
}
