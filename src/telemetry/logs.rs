//! Log lines through `tracing`, with a level that can be changed while running.

use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use super::{LogConfig, LogFormat};

pub(super) type BoxedLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// A log filter that is not understood.
#[derive(Debug, thiserror::Error)]
#[error(
    "log level {level:?}: {reason}; use error, warn, info, debug, trace or a filter such as info,fieldgate::broker=debug"
)]
pub struct LogLevelError {
    level: String,
    reason: String,
}

/// Changes the log level of the running process: that of the file, and over it one that somebody asks for meanwhile.
#[derive(Debug, Clone)]
pub struct LogHandle {
    handle: reload::Handle<EnvFilter, Registry>,
    levels: Arc<Mutex<Levels>>,
}

#[derive(Debug, Clone)]
struct Levels {
    file: String,
    over: Option<String>,
}

impl LogHandle {
    /// The file names another level or filter. It counts from now on, or once nothing lies over it any more.
    pub fn set_level(&self, level: &str) -> Result<(), LogLevelError> {
        self.change(|levels| level.clone_into(&mut levels.file))
    }

    /// Another level than the file's from now on; `None`: the file's again.
    pub fn set_over(&self, level: Option<&str>) -> Result<(), LogLevelError> {
        self.change(|levels| levels.over = level.map(str::to_owned))
    }

    fn change(&self, change: impl FnOnce(&mut Levels)) -> Result<(), LogLevelError> {
        let mut levels = self.levels.lock().unwrap_or_else(PoisonError::into_inner);
        let mut wanted = levels.clone();
        change(&mut wanted);
        let level = wanted.over.as_ref().unwrap_or(&wanted.file);
        let filter = filter(level)?;
        self.handle.reload(filter).map_err(|e| LogLevelError { level: level.clone(), reason: e.to_string() })?;
        *levels = wanted;
        Ok(())
    }
}

fn filter(level: &str) -> Result<EnvFilter, LogLevelError> {
    // Libraries below us log their own inner life at info; it helps nobody on a plant floor.
    let quiet = "rumqttd=error,rumqttc=error,sled=warn,tokio_modbus=error,hyper=warn,hyper_util=warn,reqwest=warn,opentelemetry=warn,opentelemetry_sdk=warn,opentelemetry-otlp=warn";
    let text = if level.contains("=trace") || level == "trace" { level.to_owned() } else { format!("{quiet},{level}") };
    EnvFilter::try_new(text).map_err(|e| LogLevelError { level: level.to_owned(), reason: e.to_string() })
}

pub(super) fn start(config: &LogConfig, mut layers: Vec<BoxedLayer>) -> Result<LogHandle, LogLevelError> {
    let wanted = std::env::var("FIELDGATE_LOG").unwrap_or_else(|_| config.level.clone());
    let (filter, handle) = reload::Layer::new(filter(&wanted)?);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    layers.push(match config.format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    });
    // The filter stands over all layers, so that what is not logged is not exported either.
    let subscriber = tracing_subscriber::registry().with(layers.with_filter_all(filter));
    if subscriber.try_init().is_err() {
        // A second start in one process (tests): the first subscriber stays.
        tracing::debug!("logging was already started in this process");
    }
    Ok(LogHandle { handle, levels: Arc::new(Mutex::new(Levels { file: wanted, over: None })) })
}

trait WithFilterAll {
    fn with_filter_all(self, filter: reload::Layer<EnvFilter, Registry>) -> BoxedLayer;
}

impl WithFilterAll for Vec<BoxedLayer> {
    fn with_filter_all(self, filter: reload::Layer<EnvFilter, Registry>) -> BoxedLayer {
        self.with_filter(filter).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_level_is_refused_with_its_text() {
        let error = filter("loud=very").unwrap_err().to_string();
        assert!(error.contains("loud=very") && error.contains("use error, warn"), "{error}");
        assert!(filter("info,fieldgate::broker=debug").is_ok());
    }
}
