//! Notices that files changed, by looking.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use super::TlsError;

/// How often files are looked at.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(3);

/// What tells one state of a file from another: change time, size and inode.
type Mark = Option<(SystemTime, u64, u64)>;

fn mark(path: &PathBuf) -> Mark {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.modified().ok()?, meta.len(), meta.ino()))
}

/// Builds `T` from files now and again whenever one of them changes, until every receiver is gone. A failing rebuild is
/// logged and leaves the last good value.
pub(super) fn follow<T, F>(
    what: &'static str,
    files: Vec<PathBuf>,
    every: Duration,
    build: F,
) -> Result<watch::Receiver<Arc<T>>, TlsError>
where
    T: Send + Sync + 'static,
    F: Fn() -> Result<Arc<T>, TlsError> + Send + 'static,
{
    let mut marks: Vec<Mark> = files.iter().map(mark).collect();
    let (sender, receiver) = watch::channel(build()?);
    let Ok(runtime) = tokio::runtime::Handle::try_current() else {
        // `fieldgate check` loads files without a runtime: once is enough.
        return Ok(receiver);
    };
    runtime.spawn(async move {
        let mut tick = tokio::time::interval(every);
        loop {
            tokio::select! {
                _ = sender.closed() => return,
                _ = tick.tick() => {}
            }
            let seen: Vec<Mark> = files.iter().map(mark).collect();
            if seen == marks {
                continue;
            }
            marks = seen;
            match build() {
                Ok(value) => {
                    tracing::info!("{what}: certificate files changed, new connections use them");
                    sender.send_replace(value);
                }
                Err(error) => {
                    tracing::warn!("{what}: changed certificate files are not used, the old ones stay: {error}")
                }
            }
        }
    });
    Ok(receiver)
}
