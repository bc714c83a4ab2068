//! A directory of OCI image layouts, for sites without a registry.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use oci_spec::distribution::Reference;

use super::super::format::MAX_MANIFEST;
use super::{Found, Miss};
use crate::margo::words::Digest;

/// One OCI image layout.
pub(super) struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The layout of a repository below `directory`.
    pub fn of(directory: &Path, reference: &Reference) -> Self {
        Self { root: directory.join(reference.registry()).join(reference.repository()) }
    }

    /// Where a blob lies, if it is there.
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join("sha256").join(digest.hex())
    }

    /// The manifest of an artifact, verified; none when it is not there.
    pub fn manifest(&self, reference: &Reference) -> Found<Bytes> {
        let digest = match reference.digest() {
            Some(digest) => Digest::new(digest).map_err(|error| Miss::Never(error.to_string()))?,
            None => match self.tagged(reference.tag().unwrap_or("latest"))? {
                Some(digest) => digest,
                None => return Ok(None),
            },
        };
        let path = self.blob(&digest);
        if !path.is_file() {
            return Ok(None);
        }
        let bytes = read_limited(&path, MAX_MANIFEST as u64)?;
        if Digest::of(&bytes) != digest {
            return Err(Miss::Never(format!("{} is not what its name says", path.display())));
        }
        Ok(Some(bytes))
    }

    fn tagged(&self, tag: &str) -> Found<Digest> {
        let path = self.root.join("index.json");
        if !path.is_file() {
            return Ok(None);
        }
        let bytes = read_limited(&path, 4 << 20)?;
        let broken = |reason: String| Miss::Never(format!("{}: {reason}", path.display()));
        let index: serde_json::Value = serde_json::from_slice(&bytes).map_err(|error| broken(error.to_string()))?;
        let named = |entry: &&serde_json::Value| {
            let name = entry["annotations"]["org.opencontainers.image.ref.name"].as_str().unwrap_or_default();
            name == tag || name.rsplit(':').next() == Some(tag)
        };
        let entry = index["manifests"].as_array().and_then(|all| all.iter().find(named));
        let digest = entry.and_then(|entry| entry["digest"].as_str());
        digest.map(Digest::new).transpose().map_err(|error| broken(error.to_string()))
    }
}

/// Reads a file that has at most so many bytes.
pub(super) fn read_limited(path: &Path, most: u64) -> Result<Bytes, Miss> {
    let failed = |error: std::io::Error| Miss::Later(format!("{}: {error}", path.display()));
    let length = std::fs::metadata(path).map_err(failed)?.len();
    if length > most {
        return Err(Miss::Never(format!("{} has {length} bytes, at most {most} are taken", path.display())));
    }
    std::fs::read(path).map(Bytes::from).map_err(failed)
}
