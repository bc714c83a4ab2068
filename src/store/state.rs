//! TEMPORARY state store; replaced by the store author's.
use bytes::Bytes;
use std::sync::Arc;
#[derive(Debug, Clone)]
pub struct Change {
    pub key: String,
    pub value: Option<Bytes>,
}
#[derive(Debug, Clone)]
pub struct StateStore {
    db: sled::Db,
    path: Arc<std::path::PathBuf>,
}
#[derive(Debug, thiserror::Error)]
#[error("state store: {0}")]
pub struct StateError(String);
impl StateStore {
    pub fn open(dir: &std::path::Path) -> Result<Self, StateError> {
        let path = dir.join("state");
        let db = sled::Config::new()
            .path(&path)
            .cache_capacity(1 << 20)
            .mode(sled::Mode::LowSpace)
            .open()
            .map_err(|e| StateError(e.to_string()))?;
        Ok(Self { db, path: Arc::new(path) })
    }
    pub async fn get(&self, tree: &str, key: &str) -> Result<Option<Bytes>, StateError> {
        Ok(self
            .db
            .open_tree(tree)
            .and_then(|t| t.get(key))
            .map_err(|e| StateError(e.to_string()))?
            .map(|v| Bytes::copy_from_slice(&v)))
    }
    pub async fn scan(&self, tree: &str, prefix: &str) -> Result<Vec<(String, Bytes)>, StateError> {
        let t = self.db.open_tree(tree).map_err(|e| StateError(e.to_string()))?;
        t.scan_prefix(prefix)
            .map(|kv| {
                kv.map(|(k, v)| (String::from_utf8_lossy(&k).into_owned(), Bytes::copy_from_slice(&v)))
                    .map_err(|e| StateError(e.to_string()))
            })
            .collect()
    }
    pub async fn batch(&self, tree: &str, changes: Vec<Change>) -> Result<(), StateError> {
        self.put_lazy(tree, changes).await?;
        self.db.flush_async().await.map_err(|e| StateError(e.to_string()))?;
        std::fs::File::open(self.path.join("db")).and_then(|f| f.sync_all()).map_err(|e| StateError(e.to_string()))
    }
    pub async fn put_lazy(&self, tree: &str, changes: Vec<Change>) -> Result<(), StateError> {
        let t = self.db.open_tree(tree).map_err(|e| StateError(e.to_string()))?;
        let mut b = sled::Batch::default();
        for c in changes {
            match c.value {
                Some(v) => b.insert(c.key.as_bytes(), &v[..]),
                None => b.remove(c.key.as_bytes()),
            }
        }
        t.apply_batch(b).map_err(|e| StateError(e.to_string()))
    }
    pub async fn next_epoch(&self) -> Result<u64, StateError> {
        let now = self
            .get("meta", "epoch")
            .await?
            .and_then(|b| b.as_ref().try_into().ok().map(u64::from_le_bytes))
            .unwrap_or(0)
            + 1;
        self.batch(
            "meta",
            vec![Change { key: "epoch".into(), value: Some(Bytes::copy_from_slice(&now.to_le_bytes())) }],
        )
        .await?;
        Ok(now)
    }
}
