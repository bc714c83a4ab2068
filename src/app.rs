//! One run of the gateway: wiring, supervision, reload, drain.
//!
//! `wire` builds the parts and connects them; this file tells the story of a run. Everything may be used here, and nothing
//! uses this but the command line.
//!
//! Promise: a start that fails says what failed and leaves nothing behind; a stop takes at most five seconds and drains
//! from south to north; a task that must not end takes the process with it, so that systemd starts a clean one.

mod adapters;
mod admin_service;
pub mod certificates;
mod commands;
mod devices;
mod events;
pub mod firmware;
mod health;
mod ingest;
mod latest;
mod management;
#[cfg(feature = "margo")]
mod margo;
mod reload;
mod sessions;
mod settings;
mod supervisor;
mod usage;
mod watchdog;
mod wire;

use std::path::Path;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

pub use management::keys::{leave_claim_code, signing_key};
pub use wire::{Gateway, StartError};

use crate::config::{self, Loaded};
use crate::management::firmware::Slot;
use crate::platform::notify;
use crate::telemetry::{Telemetry, TelemetryError};

/// A stop of the gateway takes at most this long; with [`EXPORT_LIMIT`] behind it, it stays within five seconds.
pub const STOP_LIMIT: Duration = Duration::from_millis(4_000);
/// What is pending for a collector is sent at the end for at most this long.
pub const EXPORT_LIMIT: Duration = Duration::from_millis(800);

/// Why a run ended other than by a signal.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration has problems.
    #[error("{0}")]
    Config(#[from] config::Problems),
    /// Logging or export could not start.
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    /// A part could not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The operating system refused threads or signal handlers.
    #[error("start the runtime: {0}")]
    Runtime(std::io::Error),
    /// A task ended that must not.
    #[error("{0}")]
    Failed(String),
}

/// Runs the gateway with the configuration at `path` until SIGTERM, SIGINT or a failure.
pub fn run(path: &Path) -> Result<(), RunError> {
    // Which version is to run is decided before anything can fail; this call may become another binary.
    let running = config::find_data_dir(path).map_or(Slot::Packaged, |data| firmware::boot(&data));
    let loaded = config::load(path)?;
    let telemetry =
        Telemetry::start(&loaded.gateway.log, loaded.gateway.otlp.as_ref(), loaded.gateway.identity.id.as_str())?;
    let outcome = runtime()?.block_on(serve(path, loaded, &telemetry, running));
    if let Err(error) = &outcome {
        tracing::error!(%error, "the gateway ends");
    }
    telemetry.shutdown(EXPORT_LIMIT);
    outcome
}

/// The runtime that every run uses. Two workers at most: 20,000 values per second take a tenth of one, and every worker
/// more costs wake-ups.
pub fn runtime() -> Result<tokio::runtime::Runtime, RunError> {
    let workers = std::thread::available_parallelism().map_or(2, |n| n.get().clamp(1, 2));
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(workers).thread_name("fieldgate").enable_all().build().map_err(RunError::Runtime)
}

async fn serve(path: &Path, loaded: Loaded, telemetry: &Telemetry, running: Slot) -> Result<(), RunError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Runtime)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Runtime)?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let mut gateway = Gateway::start(path, loaded, telemetry, running).await?;
    let mut restart = gateway.restart();
    notify::ready(&gateway.summary());
    let outcome = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        Ok(reason) = restart.wait_for(Option::is_some) => {
            tracing::info!("restart: {}", reason.as_deref().unwrap_or_default());
            Ok(())
        }
        failure = gateway.failure() => Err(RunError::Failed(failure)),
    };
    notify::stopping();
    gateway.stop(STOP_LIMIT).await;
    outcome
}
