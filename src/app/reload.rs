//! A changed configuration takes effect as a whole, or nothing changes.
//!
//! Woken by SIGHUP, by a change of any file of the configuration, or by the command line. Devices that did not change
//! keep polling; uplinks that did not change keep their connections. What only a restart can change is named.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::events::EventLog;
use super::health::HealthDesk;
use super::management::{Fleet, take_files};
use super::sessions::Sessions;
use super::wire::wanted;
use crate::broker::{self, EmbeddedBroker};
use crate::config::watch::{POLL_INTERVAL, Watcher};
use crate::config::{self, Loaded, diff::diff};
use crate::contract::v1::event::Severity;
use crate::management::service::Management;
use crate::platform::notify;
use crate::telemetry::LogHandle;

type Outcome = Result<String, String>;

/// Whose standing problems these are, in health.
const CONFIGURATION: &str = "configuration";

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

/// Everything that a new configuration touches.
#[derive(Debug)]
pub struct Reloader {
    /// What is in force.
    pub in_force: Mutex<InForce>,
    /// One per consumer.
    pub sessions: Mutex<Sessions>,
    /// Who decides what runs.
    pub management: Management,
    /// What runs.
    pub fleet: Fleet,
    /// The embedded broker, for users and rules.
    pub broker: Option<EmbeddedBroker>,
    /// Where standing problems are shown.
    pub health: HealthDesk,
    /// Where a reload is reported.
    pub events: EventLog,
    /// The log level.
    pub logs: LogHandle,
}

/// Reloads when asked, on SIGHUP and when a file of the configuration changed.
pub async fn run(
    reloader: Arc<Reloader>,
    mut requests: ReloadRequests,
    token: CancellationToken,
) -> Result<(), String> {
    let mut hangup = signal(SignalKind::hangup()).map_err(|e| format!("listen for SIGHUP: {e}"))?;
    let files = reloader.in_force.lock().await.loaded.files.clone();
    let mut watcher = Watcher::new(files, POLL_INTERVAL);
    loop {
        let answer = tokio::select! {
            () = token.cancelled() => return Ok(()),
            _ = hangup.recv() => None,
            () = watcher.changed() => None,
            asked = requests.next() => match asked {
                Some(answer) => Some(answer),
                None => return Ok(()),
            },
        };
        notify::reloading();
        let outcome = reloader.reload().instrument(tracing::info_span!("reload")).await;
        notify::ready("running");
        watcher.watch(reloader.in_force.lock().await.loaded.files.clone());
        if let Some(answer) = answer {
            // The asker may have hung up; the outcome stands in the log and the events too.
            let _ = answer.send(outcome);
        }
    }
}

impl Reloader {
    /// Reads the configuration again. A bad one changes nothing; the outcome is an event and stands in `health`.
    async fn reload(&self) -> Outcome {
        let mut in_force = self.in_force.lock().await;
        let path = in_force.path.clone();
        let loaded = tokio::task::spawn_blocking(move || config::load(&path)).await.map_err(|e| e.to_string())?;
        let new = match loaded {
            Ok(new) => new,
            Err(problems) => return Err(self.refuse(problems.to_string()).await),
        };
        let changes = diff(&in_force.loaded, &new);
        if changes.is_empty() {
            self.health.set_problems(CONFIGURATION, Vec::new());
            return Ok("the configuration did not change".to_owned());
        }
        if let Err(error) = self.apply(&in_force.loaded, &new).await {
            return Err(self.refuse(error).await);
        }
        let text = changes.to_string();
        let standing = changes.restart.iter().map(|key| format!("[{key}] changed; restart the gateway to use it"));
        self.health.set_problems(CONFIGURATION, standing.collect());
        in_force.loaded = new;
        tracing::info!("configuration reloaded: {text}");
        self.events.report(Severity::Info, "configuration-reloaded", "", text.clone()).await;
        Ok(text)
    }

    async fn refuse(&self, why: String) -> String {
        tracing::error!("the new configuration is refused, the old one stays in force: {why}");
        let problem = format!("the configuration on disk is refused, the old one stays in force: {why}");
        self.health.set_problems(CONFIGURATION, vec![problem.clone()]);
        self.events.report(Severity::Alarm, "configuration-refused", "", problem).await;
        why
    }

    /// What can fail comes first.
    async fn apply(&self, old: &Loaded, new: &Loaded) -> Result<(), String> {
        let access = self.access(old, new).await?;
        self.logs.set_level(&new.gateway.log.level).map_err(|e| e.to_string())?;
        let mut sessions = self.sessions.lock().await;
        if let Err(error) = sessions.apply(wanted(new)).await {
            // Back to what worked; an error on the way back is the one to report.
            sessions.apply(wanted(old)).await?;
            return Err(error);
        }
        self.health.set_consumers(sessions.health());
        drop(sessions);
        if let (Some(broker), Some((users, acl))) = (&self.broker, access) {
            broker.set_access(users, acl);
        }
        take_files(&self.management, &self.fleet, new).await.map_err(|e| e.to_string())?;
        Ok(())
    }

    /// Users and rules of the embedded broker, if they changed. A password that stayed keeps its hash.
    async fn access(&self, old: &Loaded, new: &Loaded) -> Result<Option<(Vec<broker::User>, broker::Acl)>, String> {
        let (Some(running), Some(before), Some(after)) =
            (self.broker.clone(), old.gateway.broker.clone(), new.gateway.broker.clone())
        else {
            return Ok(None);
        };
        if before == after {
            return Ok(None);
        }
        let root = new.gateway.identity.root.clone();
        let hashed = tokio::task::spawn_blocking(move || {
            after.access(&root, |user| before.users.contains(user).then(|| running.password_hash(&user.name)).flatten())
        });
        hashed.await.map_err(|e| e.to_string())?.map(Some).map_err(|e| e.to_string())
    }
}
