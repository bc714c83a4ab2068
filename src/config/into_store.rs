//! `[store]` as the store takes it.

use super::checked::{FullPolicy, Gateway, SyncMode};
use crate::store::{Config, OnFull, SyncPolicy};

impl Gateway {
    /// Settings of the log and the keyed state, below the data directory.
    pub fn store_config(&self) -> Config {
        let store = &self.store;
        let mut config = Config::with_quota(self.identity.data_dir.join("store"), store.max_size);
        let sync = |interval| match store.sync {
            SyncMode::Always => SyncPolicy::Always,
            SyncMode::Interval => SyncPolicy::Interval(interval),
            SyncMode::Os => SyncPolicy::Os,
        };
        config.critical.sync = sync(store.critical_interval);
        config.bulk.sync = sync(store.bulk_interval);
        (config.critical.min_bytes, config.bulk.min_bytes) = (store.critical_min, store.bulk_min);
        config.bulk.max_age = store.max_age;
        config.bulk.on_full = match store.when_full {
            FullPolicy::DropOldest => OnFull::DropOldest,
            FullPolicy::DropNewest => OnFull::DropNewest,
            FullPolicy::PushBack => OnFull::PushBack,
        };
        config
    }
}
