//! What the gateway says about itself: structured logs, and OpenTelemetry metrics, traces and logs if the user asks.
//!
//! Promise:
//! - Nothing leaves the machine unless [`OtlpConfig`] is present: the end user owns the OpenTelemetry settings.
//! - A slow or dead collector never slows the gateway: exporters have queues of their own that drop and count.
//! - ERROR means that data was lost or an operator must act; WARN means that something recovered by itself.
//! - Secrets are never logged: they live in types whose `Debug` prints `"…"`.
//!
//! It must not know other modules: what is measured arrives as [`Measurement`]s from a source that `app` gives.

mod logs;
mod metrics;
#[cfg(feature = "otlp")]
mod otlp;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

pub use logs::{LogHandle, LogLevelError};
pub use metrics::{CATALOGUE, Instrument, Kind, Measurement, MeasurementSource};

/// How logs are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// A level (`error`, `warn`, `info`, `debug`, `trace`) or a `tracing` filter such as `info,fieldgate::broker=debug`.
    pub level: String,
    /// Text for people or JSON for machines; both on standard error.
    pub format: LogFormat,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Text }
    }
}

/// Form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// One readable line per event.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Export to an OpenTelemetry collector over OTLP (http/protobuf).
#[derive(Clone, PartialEq, Eq)]
pub struct OtlpConfig {
    /// Base URL such as `http://127.0.0.1:4318`; `/v1/metrics` and the like are appended.
    pub endpoint: String,
    /// Extra HTTP headers, for example an API token. Values are secrets.
    pub headers: BTreeMap<String, String>,
    /// PEM file with the CAs to trust for an `https` endpoint; the system's when absent.
    pub ca: Option<PathBuf>,
    /// Export metrics.
    pub metrics: bool,
    /// Export traces.
    pub traces: bool,
    /// Export logs.
    pub logs: bool,
    /// Between two exports of metrics (1 s to 1 h).
    pub interval: Duration,
    /// Longest wait for the collector (100 ms to 60 s).
    pub timeout: Duration,
}

impl std::fmt::Debug for OtlpConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OtlpConfig")
            .field("endpoint", &self.endpoint)
            .field("headers", &self.headers.keys().map(|k| (k, "…")).collect::<BTreeMap<_, _>>())
            .field("interval", &self.interval)
            .finish_non_exhaustive()
    }
}

/// Why telemetry could not start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is not understood.
    #[error(transparent)]
    Level(#[from] LogLevelError),
    /// The exporter could not be built.
    #[error("set up OTLP export to {endpoint}: {reason}")]
    Otlp {
        /// Where to.
        endpoint: String,
        /// What went wrong.
        reason: String,
    },
    /// This binary was built without the `otlp` feature.
    #[error("[otlp] is configured, but this binary was built without the feature `otlp`")]
    NotBuilt,
}

/// Running telemetry; keep it until the end of the process.
#[derive(Debug)]
pub struct Telemetry {
    /// Changes the log level while running.
    pub logs: LogHandle,
    #[cfg(feature = "otlp")]
    otlp: Option<otlp::Providers>,
}

impl Telemetry {
    /// Starts logging, and export when `otlp` is given. Call once per process, before anything logs.
    pub fn start(log: &LogConfig, otlp: Option<&OtlpConfig>, gateway: &str) -> Result<Self, TelemetryError> {
        #[cfg(not(feature = "otlp"))]
        {
            let _ = gateway;
            if otlp.is_some() {
                return Err(TelemetryError::NotBuilt);
            }
            Ok(Self { logs: logs::start(log, Vec::new())? })
        }
        #[cfg(feature = "otlp")]
        {
            let providers = otlp.map(|config| otlp::Providers::build(config, gateway)).transpose()?;
            let layers = providers.as_ref().map(otlp::Providers::layers).unwrap_or_default();
            Ok(Self { logs: logs::start(log, layers)?, otlp: providers })
        }
    }

    /// Exports what `source` measures, at the configured interval. Does nothing without `[otlp]`.
    pub fn export(&self, source: MeasurementSource) {
        #[cfg(feature = "otlp")]
        if let Some(providers) = &self.otlp {
            providers.observe(source);
        }
        #[cfg(not(feature = "otlp"))]
        let _ = source;
    }

    /// Sends what is pending, for at most `limit`.
    pub fn shutdown(self, limit: Duration) {
        #[cfg(feature = "otlp")]
        if let Some(providers) = self.otlp {
            providers.shutdown(limit);
        }
        #[cfg(not(feature = "otlp"))]
        let _ = limit;
    }
}
