//! `[store]` as the store takes it.

use std::path::Path;

use super::checked::{FullPolicy, Store, SyncMode};
use crate::store::{self, OnFull, SyncPolicy};

impl Store {
    /// Settings of a store in `data_dir`, which must exist. Only telemetry is thinned out.
    pub fn config(&self, data_dir: &Path) -> store::Config {
        let mut config = store::Config::with_quota(data_dir.join("store"), self.max_size);
        let sync = |interval| match self.sync {
            SyncMode::Always => SyncPolicy::Always,
            SyncMode::Interval => SyncPolicy::Interval(interval),
            SyncMode::Os => SyncPolicy::Os,
        };
        let (on_full, on_full_critical) = match self.when_full {
            FullPolicy::DropOldest => (OnFull::DropOldest, OnFull::DropOldest),
            FullPolicy::DropNewest => (OnFull::DropNewest, OnFull::DropNewest),
            FullPolicy::PushBack => (OnFull::PushBack, OnFull::PushBack),
            FullPolicy::ThinOut(keep_one_of) => (OnFull::ThinOut { keep_one_of }, OnFull::DropOldest),
        };
        (config.critical.sync, config.bulk.sync) = (sync(self.critical_interval), sync(self.bulk_interval));
        (config.critical.on_full, config.bulk.on_full) = (on_full_critical, on_full);
        (config.critical.min_bytes, config.bulk.min_bytes) = (self.critical_min, self.bulk_min);
        (config.critical.max_age, config.bulk.max_age) = (self.max_age, self.max_age);
        // Confirmed events and audit entries stay readable in what telemetry may not have, less what the lane needs to
        // go on.
        config.critical.keep_bytes = self.critical_min.saturating_sub(2 * config.segment());
        config
    }
}
