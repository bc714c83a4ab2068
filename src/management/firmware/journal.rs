//! Where jobs are kept.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::Job;
use crate::platform::durable::{Access, Disk};

/// Longest job on disk.
const MAX: u64 = 64 * 1024;

/// Why a job could not be kept.
#[derive(Debug, thiserror::Error)]
#[error("cannot {act} the firmware job {path}: {source}")]
pub struct JournalError {
    /// What was tried.
    pub act: &'static str,
    /// Where.
    pub path: PathBuf,
    /// Why not.
    pub source: io::Error,
}

/// Keeps the job of each target.
pub trait Journal: fmt::Debug + Send {
    /// The job of a target, `None` when there is none.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    fn load(&self, target: &str) -> Result<Option<Job>, JournalError>;

    /// Keeps a job; durable when this returns `Ok`.
    ///
    /// # Errors
    /// When it is not durable; the caller must then not show it.
    fn put(&mut self, job: &Job) -> Result<(), JournalError>;
}

/// A file per target.
#[derive(Debug, Clone)]
pub struct FileJournal {
    directory: PathBuf,
    disk: Disk,
}

impl FileJournal {
    /// Keeps jobs below `directory`.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn new(directory: &Path, disk: Disk) -> Result<Self, JournalError> {
        let made = disk.create_directory(directory, Access::Private).and_then(|()| disk.remove_unfinished(directory));
        made.map_err(|source| JournalError { act: "prepare", path: directory.to_owned(), source })?;
        Ok(Self { directory: directory.to_owned(), disk })
    }

    /// Targets that have a job.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn targets(&self) -> Result<Vec<String>, JournalError> {
        let failed = |source| JournalError { act: "list", path: self.directory.clone(), source };
        let mut targets = Vec::new();
        for entry in std::fs::read_dir(&self.directory).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            targets.extend(name.to_str().and_then(|name| name.strip_suffix(".json")).map(str::to_owned));
        }
        targets.sort();
        Ok(targets)
    }

    /// Forgets the job of a target; durable when this returns `Ok`.
    ///
    /// # Errors
    /// When it may still be there.
    pub fn forget(&self, target: &str) -> Result<(), JournalError> {
        let path = self.path(target);
        self.disk.remove(&path).map_err(|source| JournalError { act: "remove", path, source })
    }

    fn path(&self, target: &str) -> PathBuf {
        self.directory.join(format!("{target}.json"))
    }

    fn read(path: &Path) -> io::Result<Option<Job>> {
        match std::fs::metadata(path) {
            Ok(meta) if meta.len() > MAX => Err(io::Error::other("it is longer than 64 KiB")),
            Ok(_) => Ok(Some(serde_json::from_slice(&std::fs::read(path)?)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Journal for FileJournal {
    fn load(&self, target: &str) -> Result<Option<Job>, JournalError> {
        let path = self.path(target);
        Self::read(&path).map_err(|source| JournalError { act: "read", path, source })
    }

    fn put(&mut self, job: &Job) -> Result<(), JournalError> {
        let path = self.path(&job.target);
        let text = serde_json::to_vec_pretty(job).map_err(io::Error::from);
        let done = text.and_then(|text| self.disk.replace(&path, &text, Access::Private));
        done.map_err(|source| JournalError { act: "write", path, source })
    }
}

/// Jobs in memory, for tests. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct MemoryJournal {
    jobs: Arc<Mutex<BTreeMap<String, Job>>>,
}

impl Journal for MemoryJournal {
    fn load(&self, target: &str) -> Result<Option<Job>, JournalError> {
        Ok(self.jobs.lock().unwrap_or_else(PoisonError::into_inner).get(target).cloned())
    }

    fn put(&mut self, job: &Job) -> Result<(), JournalError> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).insert(job.target.clone(), job.clone());
        Ok(())
    }
}
