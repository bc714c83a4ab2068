//! Notices that the files of a configuration changed.
//!
//! Files are polled, since notifications of the kernel miss network file systems, bind mounts and symbolic links that are
//! swung to another version. A change counts when two polls in a row see the same new content, so that a file that is
//! being written is not read half. What counts is content: a file that was only touched changes nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;

use crate::platform::beat;

/// Time between polls.
pub const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// A file of this age or younger is read although its time and size are as before: file systems have coarse clocks.
const YOUNG: Duration = Duration::from_secs(5);
/// Octets that are read of a file; longer files are no configuration.
const MAX_READ: u64 = 16 << 20;

/// What a file or directory looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mark {
    modified: Option<SystemTime>,
    size: u64,
    /// Of the content, or of the sorted names in a directory; `None` when there is nothing or it cannot be read.
    hash: Option<u32>,
}

/// What all files of a configuration look like. Equal when their contents are.
#[derive(Debug, Clone, Default)]
pub struct Marks(BTreeMap<Arc<Path>, Mark>);

impl PartialEq for Marks {
    fn eq(&self, other: &Self) -> bool {
        let content = |(path, mark): (&Arc<Path>, &Mark)| (path.clone(), mark.size, mark.hash);
        self.0.iter().map(content).eq(other.0.iter().map(content))
    }
}

impl Marks {
    /// Looks at every file; one whose time and size are those in `before` is not read again.
    pub fn take(files: &[Arc<Path>], before: &Marks) -> Self {
        Self(files.iter().map(|file| (file.clone(), mark(file, before.0.get(file)))).collect())
    }
}

fn mark(file: &Path, before: Option<&Mark>) -> Mark {
    let Ok(metadata) = std::fs::metadata(file) else { return Mark { modified: None, size: 0, hash: None } };
    let modified = metadata.modified().ok();
    if metadata.is_dir() {
        return Mark { modified, size: 0, hash: names_hash(file) };
    }
    let size = metadata.len();
    let old = modified.and_then(|m| m.elapsed().ok()).is_some_and(|age| age > YOUNG);
    match before {
        Some(before) if old && before.modified == modified && before.size == size => before.clone(),
        _ => Mark { modified, size, hash: content_hash(file) },
    }
}

fn content_hash(file: &Path) -> Option<u32> {
    use std::io::Read;
    let mut content = Vec::new();
    std::fs::File::open(file).ok()?.take(MAX_READ).read_to_end(&mut content).ok()?;
    Some(crc32c::crc32c(&content))
}

fn names_hash(dir: &Path) -> Option<u32> {
    let mut names: Vec<_> = std::fs::read_dir(dir).ok()?.filter_map(|e| Some(e.ok()?.file_name())).collect();
    names.sort();
    Some(
        names
            .iter()
            .fold(0, |hash, name| crc32c::crc32c_append(crc32c::crc32c_append(hash, name.as_encoded_bytes()), b"/")),
    )
}

/// Decides when a change counts. Pure: it is given what the files look like.
#[derive(Debug)]
pub struct Debounce {
    applied: Arc<Marks>,
    seen: Option<Arc<Marks>>,
}

impl Debounce {
    /// Starts from what is in force.
    pub fn new(applied: Marks) -> Self {
        Self { applied: applied.into(), seen: None }
    }

    /// Takes a poll. `true` once per change, when two polls in a row saw the same: then the files are to be loaded, and
    /// count as applied whether the load succeeds or not (a bad file is not tried again until it changes).
    pub fn observe(&mut self, current: Marks) -> bool {
        if current == *self.applied {
            self.seen = None;
            return false;
        }
        if self.seen.as_deref() == Some(&current) {
            self.applied = current.into();
            self.seen = None;
            return true;
        }
        self.seen = Some(current.into());
        false
    }

    /// The newest poll: what need not be read again when time and size are the same.
    fn latest(&self) -> &Arc<Marks> {
        self.seen.as_ref().unwrap_or(&self.applied)
    }
}

/// Asks for a load at once, as SIGHUP does. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Trigger(Arc<Notify>);

impl Trigger {
    /// Makes [`Watcher::changed`] return; several calls before it is polled count as one.
    pub fn fire(&self) {
        self.0.notify_one();
    }
}

/// Watches the files of one configuration.
#[derive(Debug)]
pub struct Watcher {
    files: Arc<[Arc<Path>]>,
    core: Debounce,
    trigger: Trigger,
    every: Duration,
}

impl Watcher {
    /// Watches `files` (see `Loaded::files`) as they are now, polling at `every` ([`POLL_INTERVAL`]).
    pub fn new(files: Vec<PathBuf>, every: Duration) -> Self {
        let files = shared(files);
        let core = Debounce::new(Marks::take(&files, &Marks::default()));
        Self { files, core, trigger: Trigger(Arc::new(Notify::new())), every }
    }

    /// A handle for the signal handler.
    pub fn trigger(&self) -> Trigger {
        self.trigger.clone()
    }

    /// Watches other files from now on: after a load that succeeded.
    pub fn watch(&mut self, files: Vec<PathBuf>) {
        let files = shared(files);
        if files != self.files {
            self.core = Debounce::new(Marks::take(&files, self.core.latest()));
            self.files = files;
        }
    }

    /// Returns when the files changed or the trigger was fired. Cancel safe.
    pub async fn changed(&mut self) {
        loop {
            let fired = tokio::select! {
                () = self.trigger.0.notified() => true,
                () = tokio::time::sleep_until(beat::after(self.every)) => false,
            };
            let (files, before) = (self.files.clone(), self.core.latest().clone());
            let Ok(current) = tokio::task::spawn_blocking(move || Marks::take(&files, &before)).await else { continue };
            if fired {
                self.core = Debounce::new(current);
                return;
            }
            if self.core.observe(current) {
                return;
            }
        }
    }
}

fn shared(files: Vec<PathBuf>) -> Arc<[Arc<Path>]> {
    files.into_iter().map(Arc::from).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn marks(of: &[(&str, u32)]) -> Marks {
        let mark = |hash| Mark { modified: None, size: 1, hash: Some(hash) };
        Marks(of.iter().map(|(path, hash)| (Arc::from(Path::new(path)), mark(*hash))).collect())
    }

    #[test]
    fn a_change_counts_when_it_is_stable_and_once() {
        let mut core = Debounce::new(marks(&[("a", 1)]));
        let polls = [1, 2, 3, 3, 3, 1, 3, 1, 1].map(|hash| core.observe(marks(&[("a", hash)])));
        assert_eq!(polls, [false, false, false, true, false, false, false, false, true]);
    }

    #[test]
    fn content_counts_and_touching_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.toml");
        fs::write(&file, "1").unwrap();
        let files = shared(vec![file.clone(), dir.path().to_owned(), dir.path().join("missing")]);
        let first = Marks::take(&files, &Marks::default());
        let later = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        fs::File::options().write(true).open(&file).unwrap().set_modified(later).unwrap();
        let touched = Marks::take(&files, &first);
        assert_eq!(touched, first);
        fs::write(&file, "2").unwrap();
        assert_ne!(Marks::take(&files, &touched), first, "same size, other content");
        fs::write(&file, "1").unwrap();
        fs::write(dir.path().join("b.toml"), "").unwrap();
        assert_ne!(Marks::take(&files, &touched), first, "a new file in a directory");
    }

    #[tokio::test]
    async fn the_task_wakes_on_change_and_on_the_trigger() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.toml");
        fs::write(&file, "1").unwrap();
        let mut watcher = Watcher::new(vec![file.clone()], Duration::from_millis(5));
        fs::write(&file, "22").unwrap();
        watcher.changed().await;
        watcher.trigger().fire();
        watcher.changed().await;
        tokio::time::timeout(Duration::from_millis(60), watcher.changed()).await.unwrap_err();
    }
}
