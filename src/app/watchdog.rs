//! Tells systemd that the gateway is alive only while its data path makes progress.
//!
//! Promise: a sign of life is sent only if the ingest loop has turned and the store's thread has answered since the last
//! one. A process that is merely scheduled but stuck is restarted by systemd.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{interval, timeout};
use tokio_util::sync::CancellationToken;

use super::ingest::IngestStats;
use crate::platform::notify;
use crate::store::Store;

/// Runs until `token` is cancelled; returns at once when systemd asks for no watchdog.
pub async fn run(ingest: Arc<IngestStats>, store: Store, token: CancellationToken) -> Result<(), String> {
    let Some(every) = notify::watchdog_interval() else {
        token.cancelled().await;
        return Ok(());
    };
    let mut ticks = interval(every);
    let mut seen = u64::MAX;
    loop {
        tokio::select! {
            () = token.cancelled() => return Ok(()),
            _ = ticks.tick() => {}
        }
        let beats = ingest.beats.load(Ordering::Relaxed);
        let turned = beats != seen;
        seen = beats;
        if !turned {
            tracing::error!("the ingest loop does not turn; systemd is not told that the gateway is alive");
        } else if !store_answers(&store, every).await {
            tracing::error!("the store does not answer; systemd is not told that the gateway is alive");
        } else {
            notify::alive();
        }
    }
}

async fn store_answers(store: &Store, limit: Duration) -> bool {
    timeout(limit / 2, store.sync()).await.is_ok()
}
