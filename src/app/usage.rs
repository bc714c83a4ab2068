//! How many bytes a metered uplink sent today, kept over restarts so that a restart does not renew the day's budget.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use crate::northbound::{ConsumerHealth, Usage};
use crate::store::Store;

const TREE: &str = "usage";
/// Bytes sent in the last interval before a power cut are forgotten: at most so long.
const EVERY: Duration = Duration::from_secs(60);

/// What the consumer sent today, as far as it was kept.
pub fn load(store: &Store, consumer: &str) -> Usage {
    let kept = store.state().get(TREE, consumer.as_bytes()).ok().flatten();
    kept.and_then(|bytes| decode(&bytes)).unwrap_or_default()
}

/// Keeps the consumer's usage until the future is dropped; nothing is written while nothing is sent.
pub async fn keep(store: Store, consumer: String, health: watch::Receiver<ConsumerHealth>) {
    let mut kept = health.borrow().usage;
    loop {
        tokio::time::sleep(EVERY).await;
        let now = health.borrow().usage;
        if now == kept {
            continue;
        }
        kept = now;
        if let Err(error) = store.state().put_lazy(TREE, consumer.as_bytes(), encode(now)).await {
            tracing::warn!(consumer, %error, "the bytes sent today were not kept");
        }
    }
}

fn encode(usage: Usage) -> Bytes {
    [usage.day.to_le_bytes(), usage.bytes.to_le_bytes()].concat().into()
}

fn decode(bytes: &[u8]) -> Option<Usage> {
    let (day, sent) = bytes.split_at_checked(8)?;
    Some(Usage { day: i64::from_le_bytes(day.try_into().ok()?), bytes: u64::from_le_bytes(sent.try_into().ok()?) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_round_trips_and_garbage_is_none() {
        let usage = Usage { day: 20_000, bytes: 123_456_789_012 };
        assert_eq!(decode(&encode(usage)), Some(usage));
        assert_eq!(decode(b"short"), None);
    }
}
