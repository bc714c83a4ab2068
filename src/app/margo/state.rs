//! The storage of the client: one tree of the state store.

use bytes::Bytes;

use crate::margo::storage::{Change, Storage, StorageError};
use crate::store::{Op, StateError, Store};

/// Tree of the state store.
const TREE: &str = "margo";

/// [`Storage`] in one tree of the state store; clients of a transparent gateway have a prefix each.
#[derive(Debug, Clone)]
pub struct StateStorage {
    pub(super) store: Store,
    pub(super) prefix: String,
}

impl Storage for StateStorage {
    async fn scan(&self, prefix: &str) -> Result<Vec<(String, Bytes)>, StorageError> {
        let whole = format!("{}{prefix}", self.prefix);
        let entries = self.store.state().scan(TREE, whole.as_bytes()).map_err(failed)?;
        let name = |key: &Bytes| String::from_utf8_lossy(key).get(self.prefix.len()..).unwrap_or_default().to_owned();
        Ok(entries.iter().map(|(key, value)| (name(key), value.clone())).collect())
    }

    async fn commit(&self, changes: Vec<Change>) -> Result<(), StorageError> {
        let key = |key: String| Bytes::from(format!("{}{key}", self.prefix));
        let op = |change| match change {
            Change::Put(name, value) => Op::Put { tree: TREE.to_owned(), key: key(name), value },
            Change::Delete(name) => Op::Delete { tree: TREE.to_owned(), key: key(name) },
        };
        let ops: Vec<Op> = changes.into_iter().map(op).collect();
        if ops.is_empty() { Ok(()) } else { self.store.state().batch(ops).await.map_err(failed) }
    }
}

fn failed(error: StateError) -> StorageError {
    StorageError::Failed(error.to_string())
}
