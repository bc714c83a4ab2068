//! `[log]` and `[otlp]` as the telemetry module takes them.

use super::checked::{Gateway, LogFormat};
use crate::telemetry::{self, LogConfig, OtlpConfig};

impl Gateway {
    /// How logs are written.
    pub fn log_config(&self) -> LogConfig {
        let format = match self.log.format {
            LogFormat::Text => telemetry::LogFormat::Text,
            LogFormat::Json => telemetry::LogFormat::Json,
        };
        LogConfig { level: self.log.level.clone(), format }
    }

    /// What is exported; `None` without `[otlp]`.
    pub fn otlp_config(&self) -> Option<OtlpConfig> {
        self.otlp.as_ref().map(|otlp| OtlpConfig {
            endpoint: otlp.endpoint.clone(),
            headers: otlp.headers.iter().map(|(name, value)| (name.clone(), value.expose().to_owned())).collect(),
            ca: None,
            metrics: otlp.metrics,
            traces: otlp.traces,
            logs: otlp.logs,
            interval: otlp.interval,
            timeout: otlp.timeout,
        })
    }
}
