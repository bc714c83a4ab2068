//! Reads `[store]`.

use std::time::Duration;

use crate::config::checked::{FullPolicy, Store, SyncMode};
use crate::config::reader::Reader;
use crate::config::units::format_size;
use crate::config::value::{choice, millis, size, unsigned};

const MIB: u64 = 1 << 20;
const SYNC: &[(&str, SyncMode)] =
    &[("always", SyncMode::Always), ("interval", SyncMode::Interval), ("os", SyncMode::Os)];
const FULL: &[(&str, FullPolicy)] = &[
    ("drop-oldest", FullPolicy::DropOldest),
    ("drop-newest", FullPolicy::DropNewest),
    ("push-back", FullPolicy::PushBack),
    ("thin-out", FullPolicy::ThinOut(10)),
];

pub(super) fn read(section: &Reader<'_>) -> Store {
    let max_size = section.or("max_size", 1024 * MIB, size(8 * MIB..=16 << 40));
    let quarter = (64 * MIB).min(max_size / 4);
    let store = Store {
        max_size,
        critical_min: section.or("critical_min", quarter, size(MIB..=16 << 40)),
        bulk_min: section.or("bulk_min", quarter, size(MIB..=16 << 40)),
        sync: section.or("sync", SyncMode::Interval, choice(SYNC)),
        critical_interval: section.or("critical_interval", Duration::from_millis(5), millis(1, 10_000)),
        bulk_interval: section.or("bulk_interval", Duration::from_millis(100), millis(1, 60_000)),
        when_full: when_full(section),
        max_age: section.optional("max_age", millis(60_000, 3_650 * 86_400_000)),
    };
    if store.critical_min.saturating_add(store.bulk_min) > store.max_size {
        let text = format!(
            "`critical_min` and `bulk_min` together are more than `max_size` ({}); raise it",
            format_size(store.max_size)
        );
        section.error("max_size", text);
    }
    if store.sync == SyncMode::Os {
        section.warn(
            "sync",
            "\"os\": a power cut loses what the operating system has not written yet, up to 30 s and more",
        );
    }
    store
}

/// `keep_one_of` belongs to `thin-out`.
fn when_full(section: &Reader<'_>) -> FullPolicy {
    let policy = section.or("when_full", FullPolicy::DropOldest, choice(FULL));
    let keep_one_of = section.optional("keep_one_of", unsigned(2..=10_000));
    match (policy, keep_one_of) {
        (FullPolicy::ThinOut(_), Some(n)) => FullPolicy::ThinOut(n),
        (policy, Some(_)) => {
            section.error("keep_one_of", "is only for when_full = \"thin-out\"");
            policy
        }
        (policy, None) => policy,
    }
}
