//! Which manifest is in force: one small record, the single point at which an update becomes true.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::manifest::Manifest;
use crate::margo::storage::{Change, Storage, StorageError, commit_in_order, get_blob, put_blob, read};
use crate::margo::words::{DeploymentId, Digest};

const KEY: &str = "head";

/// The manifest in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Its version: the highest ever accepted.
    pub version: u64,
    /// The `ETag` that came with it, as it stands.
    pub etag: Option<String>,
    /// Digest of its body, under which it lies as a blob.
    pub body: Digest,
    /// The version before: what deployments that changed were adopted at.
    pub previous: u64,
}

/// Reads and writes the head with what it names.
#[derive(Debug)]
pub struct HeadStore<'a, S>(pub &'a S);

impl<S: Storage> HeadStore<'_, S> {
    /// The manifest in force and the YAML of its deployments.
    ///
    /// # Errors
    /// [`StorageError`]; a blob that is missing counts as damage, since it was there before the head named it.
    pub async fn load(&self) -> Result<Option<(Head, Manifest, BTreeMap<DeploymentId, Bytes>)>, StorageError> {
        let entries = self.0.scan(KEY).await?;
        let Some((key, value)) = entries.into_iter().find(|(key, _)| key == KEY) else { return Ok(None) };
        let head: Head = read(&key, &value)?;
        let missing = |what: String| StorageError::Damaged { what, reason: "it is not there".to_owned() };
        let body = get_blob(self.0, &head.body).await?.ok_or_else(|| missing("the manifest in force".to_owned()))?;
        let manifest = Manifest::parse(&body).map_err(|error| StorageError::Damaged {
            what: "the manifest in force".to_owned(),
            reason: error.to_string(),
        })?;
        let mut yamls = BTreeMap::new();
        for entry in &manifest.deployments {
            let yaml = get_blob(self.0, &entry.artifact.digest).await?;
            yamls.insert(entry.id.clone(), yaml.ok_or_else(|| missing(format!("deployment {}", entry.id)))?);
        }
        Ok(Some((head, manifest, yamls)))
    }

    /// Puts a manifest in force: its blobs first, then the record, in one commit.
    ///
    /// # Errors
    /// [`StorageError`]; then the manifest before is in force.
    pub async fn advance(
        &self,
        before: Option<&Head>,
        manifest: &Manifest,
        body: &Bytes,
        etag: Option<String>,
        yamls: &BTreeMap<DeploymentId, Bytes>,
        held: &BTreeSet<Digest>,
    ) -> Result<Head, StorageError> {
        let mut blobs = put_blob(&manifest.digest, body);
        for yaml in yamls.values() {
            let digest = Digest::of(yaml);
            if !held.contains(&digest) {
                blobs.extend(put_blob(&digest, yaml));
            }
        }
        commit_in_order(self.0, blobs).await?;
        let previous = before.map_or(0, |head| head.version);
        let head = Head { version: manifest.version, etag, body: manifest.digest, previous };
        self.0.commit(vec![Change::put(KEY.to_owned(), &head)?]).await?;
        Ok(head)
    }

    /// No manifest is in force: another fleet manager counts for itself.
    pub fn forget() -> Change {
        Change::Delete(KEY.to_owned())
    }

    /// Keeps another `ETag` of the same manifest.
    ///
    /// # Errors
    /// [`StorageError`].
    pub async fn set_etag(&self, head: &Head, etag: Option<String>) -> Result<Head, StorageError> {
        let head = Head { etag, ..head.clone() };
        self.0.commit(vec![Change::put(KEY.to_owned(), &head)?]).await?;
        Ok(head)
    }
}
