//! Where retained messages survive a restart. The broker owns the trait; the gateway implements it on its state store.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// The retained store could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("retained messages cannot be {act}: {source}")]
pub struct RetainedStoreError {
    /// `read` or `written`.
    pub act: &'static str,
    /// Why.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// One change of the retained messages: the newest value of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetainedChange {
    /// The topic: the key.
    pub topic: Arc<str>,
    /// What to keep, opaque (payload, QoS, publisher, properties, expiry); `None` deletes the topic.
    pub value: Option<Bytes>,
}

/// A durable map from topic to value. The broker calls it from one task, with changes coalesced per topic: at most once a
/// second, and with snapshot-class topics at intervals and at stop only.
pub trait RetainedStore: Send + Sync + 'static {
    /// All topics with their values, in any order.
    fn load(&self) -> impl Future<Output = Result<Vec<(String, Bytes)>, RetainedStoreError>> + Send;

    /// Applies all changes; `Ok` means that they are as durable as the store makes them. On an error the broker keeps them
    /// and tries again with the next ones.
    fn write(&self, changes: Vec<RetainedChange>) -> impl Future<Output = Result<(), RetainedStoreError>> + Send;
}

/// Keeps retained messages in memory only; a clone shares them, so a test can restart a broker on the same one.
#[derive(Debug, Clone, Default)]
pub struct MemoryRetained {
    map: Arc<Mutex<HashMap<Arc<str>, Bytes>>>,
}

impl MemoryRetained {
    /// Number of topics kept.
    pub fn len(&self) -> usize {
        self.map.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl RetainedStore for MemoryRetained {
    async fn load(&self) -> Result<Vec<(String, Bytes)>, RetainedStoreError> {
        let map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(map.iter().map(|(topic, value)| (topic.to_string(), value.clone())).collect())
    }

    async fn write(&self, changes: Vec<RetainedChange>) -> Result<(), RetainedStoreError> {
        let mut map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        for RetainedChange { topic, value } in changes {
            match value {
                Some(value) => map.insert(topic, value),
                None => map.remove(&topic),
            };
        }
        Ok(())
    }
}
