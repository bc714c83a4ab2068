//! What the client must remember over a restart: a small keyed store that the app implements.
//!
//! Everything is under few keys: `head` (the manifest in force), `deployment/…`, `status/…`, `reported/…`, and `blob/…`.
//! A blob is named by its digest and lies there in pieces, since one change of the gateway's state store takes at most
//! [`MAX_CHANGE`] bytes. Blobs are written before the change that names them and swept after the one that no longer does,
//! so a crash in between leaves a blob too many and never one too few.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::words::Digest;

/// Most bytes of all keys and values of one commit.
pub const MAX_CHANGE: usize = 96 * 1024;
/// Bytes of one piece of a blob.
const PIECE: usize = 64 * 1024;
const BLOB: &str = "blob/";

/// The storage refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StorageError {
    /// The medium or the store failed.
    #[error("the state of the Margo client cannot be kept: {0}; see to the disk of the gateway")]
    Failed(String),
    /// What was stored cannot be read back.
    #[error("what was stored of {what} is damaged: {reason}")]
    Damaged {
        /// Which entry.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Sets a key.
    Put(String, Bytes),
    /// Removes a key; it need not be there.
    Delete(String),
}

impl Change {
    /// Sets a key to a value as JSON.
    ///
    /// # Errors
    /// [`StorageError::Failed`] when the value cannot be written as JSON.
    pub fn put<T: serde::Serialize>(key: String, value: &T) -> Result<Self, StorageError> {
        let bytes = serde_json::to_vec(value).map_err(|error| StorageError::Failed(error.to_string()))?;
        Ok(Self::Put(key, bytes.into()))
    }

    fn size(&self) -> usize {
        match self {
            Self::Put(key, value) => key.len() + value.len(),
            Self::Delete(key) => key.len(),
        }
    }
}

/// A keyed store. The app implements it on the gateway's state.
pub trait Storage: Send + Sync + 'static {
    /// All entries whose keys begin with `prefix`, sorted.
    fn scan(&self, prefix: &str) -> impl Future<Output = Result<Vec<(String, Bytes)>, StorageError>> + Send;

    /// Makes all changes or none; durable when this returns. At most [`MAX_CHANGE`] bytes.
    fn commit(&self, changes: Vec<Change>) -> impl Future<Output = Result<(), StorageError>> + Send;
}

/// Commits changes of any number in order, in as few commits as [`MAX_CHANGE`] allows. Only what stands in one commit is
/// all or nothing: callers put what belongs together into one call that is small enough.
///
/// # Errors
/// As [`Storage::commit`].
pub async fn commit_in_order<S: Storage>(storage: &S, changes: Vec<Change>) -> Result<(), StorageError> {
    let mut batch = Vec::new();
    let mut size = 0;
    for change in changes {
        let next = change.size();
        if size + next > MAX_CHANGE && !batch.is_empty() {
            storage.commit(std::mem::take(&mut batch)).await?;
            size = 0;
        }
        size += next;
        batch.push(change);
    }
    if batch.is_empty() { Ok(()) } else { storage.commit(batch).await }
}

/// The changes that store a blob.
pub fn put_blob(digest: &Digest, bytes: &Bytes) -> Vec<Change> {
    let pieces = bytes.len().div_ceil(PIECE).max(1);
    let piece = |i: usize| bytes.slice(i * PIECE..((i + 1) * PIECE).min(bytes.len()));
    // The number of pieces stands in each key: a blob of which some are missing is not taken for a shorter one.
    (0..pieces).map(|i| Change::Put(format!("{BLOB}{}/{pieces:05}/{i:05}", digest.hex()), piece(i))).collect()
}

/// A blob that was stored whole; `None` when it is not there.
///
/// # Errors
/// As [`Storage::scan`], or [`StorageError::Damaged`] when it is not what its name says.
pub async fn get_blob<S: Storage>(storage: &S, digest: &Digest) -> Result<Option<Bytes>, StorageError> {
    let pieces = storage.scan(&format!("{BLOB}{}/", digest.hex())).await?;
    let wanted = pieces.first().and_then(|(key, _)| key.split('/').nth(2)?.parse::<usize>().ok());
    if pieces.is_empty() || wanted != Some(pieces.len()) {
        return Ok(None);
    }
    let whole: Vec<u8> = pieces.into_iter().flat_map(|(_, piece)| piece).collect();
    if Digest::of(&whole) != *digest {
        return Err(StorageError::Damaged { what: format!("blob {digest}"), reason: "its digest differs".to_owned() });
    }
    Ok(Some(whole.into()))
}

/// Removes the blobs that nobody names any more.
///
/// # Errors
/// As [`Storage::scan`] and [`Storage::commit`].
pub async fn sweep_blobs<S: Storage>(storage: &S, keep: &BTreeSet<Digest>) -> Result<(), StorageError> {
    let keep: BTreeSet<String> = keep.iter().map(Digest::hex).collect();
    let entries = storage.scan(BLOB).await?;
    let gone = entries.into_iter().filter(|(key, _)| key.split('/').nth(1).is_none_or(|name| !keep.contains(name)));
    commit_in_order(storage, gone.map(|(key, _)| Change::Delete(key)).collect()).await
}

/// A value that was stored as JSON.
///
/// # Errors
/// [`StorageError::Damaged`].
pub fn read<T: serde::de::DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, StorageError> {
    serde_json::from_slice(value)
        .map_err(|error| StorageError::Damaged { what: key.to_owned(), reason: error.to_string() })
}

/// A storage in memory, for tests and for `fieldgate margo` commands that change nothing. Clones share it, as two runs of
/// one gateway share their disk.
#[derive(Debug, Clone, Default)]
pub struct MemoryStorage {
    entries: Arc<Mutex<BTreeMap<String, Bytes>>>,
    /// Commits that still succeed; `None` is no limit. A test ends a run between any two of them.
    left: Arc<Mutex<Option<usize>>>,
}

impl MemoryStorage {
    /// Lets so many commits through and refuses every later one, as a process that was killed.
    pub fn die_after(&self, commits: Option<usize>) {
        *self.left.lock().unwrap_or_else(PoisonError::into_inner) = commits;
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Storage for MemoryStorage {
    async fn scan(&self, prefix: &str) -> Result<Vec<(String, Bytes)>, StorageError> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let found = entries.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
        Ok(found.map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    async fn commit(&self, changes: Vec<Change>) -> Result<(), StorageError> {
        let size: usize = changes.iter().map(Change::size).sum();
        if size > MAX_CHANGE {
            return Err(StorageError::Failed(format!("{size} bytes in one commit")));
        }
        if let Some(left) = self.left.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            *left = left.checked_sub(1).ok_or_else(|| StorageError::Failed("killed".to_owned()))?;
        }
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        for change in changes {
            match change {
                Change::Put(key, value) => entries.insert(key, value),
                Change::Delete(key) => entries.remove(&key),
            };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_blob_is_whole_or_not_there() {
        let storage = MemoryStorage::default();
        let bytes = Bytes::from(vec![7; 3 * PIECE + 1]);
        let digest = Digest::of(&bytes);
        let changes = put_blob(&digest, &bytes);
        assert_eq!(changes.len(), 4);
        storage.die_after(Some(2));
        assert!(commit_in_order(&storage, changes.clone()).await.is_err());
        assert_eq!(get_blob(&storage, &digest).await.unwrap(), None, "half a blob is none");
        storage.die_after(None);
        commit_in_order(&storage, changes).await.unwrap();
        assert_eq!(get_blob(&storage, &digest).await.unwrap(), Some(bytes));
        sweep_blobs(&storage, &BTreeSet::from([digest])).await.unwrap();
        assert!(get_blob(&storage, &digest).await.unwrap().is_some());
        sweep_blobs(&storage, &BTreeSet::new()).await.unwrap();
        assert!(storage.is_empty());
    }

    #[tokio::test]
    async fn an_empty_blob_is_a_blob() {
        let storage = MemoryStorage::default();
        let digest = Digest::of(b"");
        commit_in_order(&storage, put_blob(&digest, &Bytes::new())).await.unwrap();
        assert_eq!(get_blob(&storage, &digest).await.unwrap(), Some(Bytes::new()));
    }
}
