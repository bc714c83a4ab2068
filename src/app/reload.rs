//! A changed configuration takes effect as a whole, or nothing changes.
//!
//! Woken by SIGHUP, by a change of any file of the configuration, or by the command line. Devices that did not change
//! keep polling; uplinks that did not change keep their connections. What only a restart can change is named.

use std::path::PathBuf;

use tokio::sync::{mpsc, oneshot};

type Outcome = Result<String, String>;

/// Asks for a reload. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ReloadHandle(mpsc::Sender<oneshot::Sender<Outcome>>);

/// Gets the requests.
#[derive(Debug)]
pub struct ReloadRequests(mpsc::Receiver<oneshot::Sender<Outcome>>);

/// A handle and what it asks.
pub fn channel() -> (ReloadHandle, ReloadRequests) {
    let (ask, asked) = mpsc::channel(4);
    (ReloadHandle(ask), ReloadRequests(asked))
}

impl ReloadHandle {
    /// Reads the configuration again and says what came of it, in words.
    pub async fn reload(&self) -> Outcome {
        let gone = || "the gateway is stopping".to_owned();
        let (answer, answered) = oneshot::channel();
        self.0.send(answer).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

impl ReloadRequests {
    /// The next request.
    pub async fn next(&mut self) -> Option<oneshot::Sender<Outcome>> {
        self.0.recv().await
    }
}

/// The configuration in force and where it came from.
#[derive(Debug)]
pub struct InForce {
    /// What `--config` said.
    pub path: PathBuf,
    /// What was loaded from it.
    pub loaded: crate::config::Loaded,
}
