//! The newest bundle on disk, so that a gateway without its network knows its fleet manager after a restart.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::bundle::{BundleError, MAX_BUNDLE, TrustBundle};
use crate::platform::durable::{Access, Disk};

/// The cache cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The file system refused.
    #[error("cannot {act} the cached trust bundle {}: {source}", path.display())]
    Io {
        /// What was tried.
        act: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// What lies there is no bundle.
    #[error("the cached trust bundle is not used: {0}")]
    Bundle(#[from] BundleError),
}

/// What lies in the file.
#[derive(Serialize, Deserialize)]
struct Entry {
    /// Where it came from: a bundle of another source says nothing about the sequence of this one.
    source: String,
    bundle: String,
}

/// One file.
#[derive(Debug, Clone)]
pub struct BundleCache {
    path: PathBuf,
    disk: Disk,
}

impl BundleCache {
    /// The cache in `directory`.
    pub fn new(directory: &Path, disk: Disk) -> Self {
        Self { path: directory.join("trust-bundle.json"), disk }
    }

    /// The bundle that came from `source`; `None` when there is none.
    ///
    /// # Errors
    /// When the file is there and cannot be used. The caller goes on without.
    pub fn load(&self, source: &str) -> Result<Option<TrustBundle>, CacheError> {
        let bytes = match std::fs::read(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(|source| self.io("read", source))?,
        };
        if bytes.len() > 3 * MAX_BUNDLE {
            return Err(BundleError::Form("it is too long".to_owned()).into());
        }
        let entry: Entry = serde_json::from_slice(&bytes).map_err(|error| BundleError::Form(error.to_string()))?;
        if entry.source != source {
            return Ok(None);
        }
        Ok(Some(TrustBundle::parse(entry.bundle.as_bytes())?))
    }

    /// Writes the bundle as it came from `source`.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn store(&self, source: &str, text: &str) -> Result<(), CacheError> {
        let entry = Entry { source: source.to_owned(), bundle: text.to_owned() };
        let bytes = serde_json::to_vec(&entry).map_err(|error| BundleError::Form(error.to_string()))?;
        if let Some(directory) = self.path.parent() {
            self.disk.create_directory(directory, Access::Private).map_err(|source| self.io("create", source))?;
        }
        self.disk.replace(&self.path, &bytes, Access::Private).map_err(|source| self.io("write", source))
    }

    /// Removes what lies there.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn clear(&self) -> Result<(), CacheError> {
        match self.disk.remove(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(self.io("remove", error)),
            _ => Ok(()),
        }
    }

    fn io(&self, act: &'static str, source: std::io::Error) -> CacheError {
        CacheError::Io { act, path: self.path.clone(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Ca;
    use super::*;

    #[test]
    fn the_bundle_is_cached_for_offline_starts() {
        let directory = tempfile::tempdir().unwrap();
        let cache = BundleCache::new(directory.path(), Disk::default());
        assert!(cache.load("uri").unwrap().is_none());
        cache.store("uri", &TrustBundle::write(&[Ca::new("a").der()], 4)).unwrap();
        assert_eq!(cache.load("uri").unwrap().unwrap().sequence, 4);
        assert!(cache.load("another").unwrap().is_none(), "another source begins anew");
        std::fs::write(directory.path().join("trust-bundle.json"), "garbage").unwrap();
        assert!(matches!(cache.load("uri"), Err(CacheError::Bundle(_))));
    }
}
