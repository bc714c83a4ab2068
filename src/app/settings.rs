//! Watches the wall clock: what it shows once it is set is noted, so that stamps taken before are mended.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::platform::beat;
use crate::platform::clock::{ClockBook, SharedClock};

/// How often the clock is looked at.
const EVERY: Duration = Duration::from_secs(1);

/// Runs until `token` is cancelled. A disk that refuses the note is tried again with the next change; until then the note
/// is known to this process only.
pub async fn run(settings: Arc<ClockBook>, clock: SharedClock, token: CancellationToken) -> Result<(), String> {
    let mut ticks = beat::every(EVERY);
    loop {
        tokio::select! {
            () = token.cancelled() => return Ok(()),
            _ = ticks.tick() => {}
        }
        let now = clock.now();
        if !settings.observe(clock.boot(), now) {
            continue;
        }
        tracing::info!(trust = now.trust.as_str(), "the wall clock was set; stamps taken before are mended");
        let book = settings.clone();
        let saved = tokio::task::spawn_blocking(move || book.save()).await.map_err(|e| e.to_string())?;
        if let Err(error) = saved {
            tracing::warn!(%error, "the clock's setting is not saved; after a restart older stamps stay as they are");
        }
    }
}
