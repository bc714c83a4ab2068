//! The keyed state: small, rarely written, never lost.
//!
//! Device registry, configuration versions, jobs, epochs (durable trees) and retained messages (lazy trees). A durable
//! change is first a record in the critical lane of the log and synced there, then it is applied to sled, flushed and
//! synced (`Db::flush` alone is no promise: it leaves the real sync to a timer); only then it is acknowledged. Every
//! value carries a version and a checksum. A sled directory that is missing, damaged, or behind the journal is set aside
//! as `state.bad` and rebuilt from the journal, or brought up to date from it. When the journal has grown, a snapshot of
//! the whole state is written behind it and the old part is released.
//!
//! Lazy trees are written behind, within a second, and are not journalled: after damage to sled they are empty.
//!
//! Limits: keys and values together up to [`MAX_VALUE`] bytes; sled's cache 1 MiB. All writing happens on one thread of
//! its own, with a bounded queue in front of it; reading is direct. It must not be used for fast values one by one.

mod db;
mod journal;
#[cfg(test)]
mod tests;
mod value;
pub(crate) mod writer;

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use db::Shared;
use journal::Change;
use writer::Request;

/// Most bytes of a key and its value together.
pub const MAX_VALUE: usize = 128 * 1024;
/// Requests that may wait for the writer; then callers wait.
pub(crate) const QUEUE: usize = 64;
/// Tree of the store's own entries.
pub(crate) const OWN_TREE: &str = "fieldgate";
const EPOCH_KEY: &[u8] = b"epoch";

/// The state cannot be read or changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// The name of a tree is wrong.
    #[error("{0:?} is no name for a tree; use 1 to 64 characters of A-Z a-z 0-9 . _ -")]
    Tree(String),
    /// A tree is either durable or lazy.
    #[error("tree {0} is written {1}; it cannot be written the other way too")]
    Mixed(String, &'static str),
    /// Too large.
    #[error("{len} bytes in tree {tree} are more than the {MAX_VALUE} that one entry may have")]
    TooLarge {
        /// The tree.
        tree: String,
        /// Bytes of key and value.
        len: usize,
    },
    /// A value is damaged; the state is rebuilt from the journal, try again.
    #[error("the entry in tree {0} is damaged; the state is being rebuilt from its journal, try again")]
    Damaged(String),
    /// The change is not durable.
    #[error("the state cannot be saved: {0}")]
    Disk(String),
    /// The store is closed.
    #[error("the store is closed")]
    Closed,
}

/// One change of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Sets a key of a tree.
    Put {
        /// Tree.
        tree: String,
        /// Key.
        key: Bytes,
        /// Value.
        value: Bytes,
    },
    /// Removes a key of a tree; it is no error when it is not there.
    Delete {
        /// Tree.
        tree: String,
        /// Key.
        key: Bytes,
    },
}

/// The keyed state; clones share it.
#[derive(Debug, Clone)]
pub struct StateStore {
    shared: Arc<Shared>,
    requests: mpsc::Sender<Request>,
}

impl StateStore {
    /// The value of a key.
    ///
    /// # Errors
    /// The value is damaged on disk, or sled fails.
    pub fn get(&self, tree: &str, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        self.checked(tree, self.shared.get(tree, key))
    }

    /// All entries of a tree whose keys begin with `prefix`, in order of the keys.
    ///
    /// # Errors
    /// As for [`StateStore::get`].
    pub fn scan(&self, tree: &str, prefix: &[u8]) -> Result<Vec<(Bytes, Bytes)>, StateError> {
        self.checked(tree, self.shared.scan(tree, prefix))
    }

    fn checked<T>(&self, tree: &str, result: Result<T, db::ReadError>) -> Result<T, StateError> {
        result.map_err(|error| {
            if matches!(error, db::ReadError::Gone) {
                return StateError::Closed;
            }
            tracing::error!(tree, %error, "the state is damaged; it is rebuilt from its journal");
            // When the queue is full the next reader asks again.
            _ = self.requests.try_send(Request::Rebuild);
            StateError::Damaged(tree.to_owned())
        })
    }

    /// Sets a key. Durable when this returns.
    ///
    /// # Errors
    /// See [`StateError`]; after an error the change may or may not be there after a restart.
    pub async fn put(&self, tree: &str, key: &[u8], value: Bytes) -> Result<(), StateError> {
        self.batch(vec![Op::Put { tree: tree.to_owned(), key: Bytes::copy_from_slice(key), value }]).await
    }

    /// Removes a key. Durable when this returns.
    ///
    /// # Errors
    /// As for [`StateStore::put`].
    pub async fn delete(&self, tree: &str, key: &[u8]) -> Result<(), StateError> {
        self.batch(vec![Op::Delete { tree: tree.to_owned(), key: Bytes::copy_from_slice(key) }]).await
    }

    /// Makes several changes, all or none of them. Durable when this returns.
    ///
    /// # Errors
    /// As for [`StateStore::put`]; the whole batch must fit [`MAX_VALUE`].
    pub async fn batch(&self, ops: Vec<Op>) -> Result<(), StateError> {
        let change = Change::new(ops)?;
        self.shared.check_kind(change.trees(), false)?;
        self.ask(|reply| Request::Durable { change, reply }).await?
    }

    /// Sets a key of a lazy tree: visible at once, on disk within about a second, once for many changes of one key.
    ///
    /// # Errors
    /// The names or sizes are wrong, or the store is closed.
    pub async fn put_lazy(&self, tree: &str, key: &[u8], value: Bytes) -> Result<(), StateError> {
        self.lazy(tree, key, Some(value)).await
    }

    /// Removes a key of a lazy tree, in the same way.
    ///
    /// # Errors
    /// As for [`StateStore::put_lazy`].
    pub async fn delete_lazy(&self, tree: &str, key: &[u8]) -> Result<(), StateError> {
        self.lazy(tree, key, None).await
    }

    async fn lazy(&self, tree: &str, key: &[u8], value: Option<Bytes>) -> Result<(), StateError> {
        journal::check_entry(tree, key, value.as_deref().unwrap_or_default())?;
        self.shared.check_kind([tree].into_iter(), true)?;
        let (first, full) = self.shared.pend(tree, key, value);
        if first {
            self.requests.send(Request::WriteBehind).await.map_err(|_| StateError::Closed)?;
        }
        if full {
            // Too much waits in memory: have it written first.
            return self.flush().await;
        }
        Ok(())
    }

    /// Writes what lazy trees have waiting.
    ///
    /// # Errors
    /// Sled or the disk fails.
    pub async fn flush(&self) -> Result<(), StateError> {
        self.ask(|reply| Request::Flush { reply }).await?
    }

    /// A number that is greater by one at every call, durable before it is returned; the first is 1.
    ///
    /// # Errors
    /// As for [`StateStore::put`].
    pub async fn next_epoch(&self) -> Result<u64, StateError> {
        self.ask(|reply| Request::NextEpoch { reply }).await?
    }

    /// Writes what waits and lets go of the files.
    pub(crate) async fn close(&self) {
        _ = self.ask(|reply| Request::Close { reply }).await;
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, StateError> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| StateError::Closed)?;
        answer.await.map_err(|_| StateError::Closed)
    }
}
