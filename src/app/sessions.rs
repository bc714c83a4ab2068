//! One northbound session per consumer of the log; kept, started and stopped as the configuration says.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::adapters::{BrokerPublisher, LogSource};
use super::usage;
use crate::broker::EmbeddedBroker;
use crate::northbound::{Consumer, ConsumerConfig, ConsumerHealth, ConsumerKind, Context};
use crate::security::pki::BelievedTime;
use crate::security::{ClientTls, ClientTlsFiles};
use crate::store::{Backlog, ConsumerSpec, Start, Store};

/// A consumer as the configuration wants it.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// The session's settings.
    pub config: ConsumerConfig,
    /// Certificates of an uplink that speaks TLS.
    pub tls: Option<ClientTlsFiles>,
    /// What may wait for it.
    pub backlog: Backlog,
}

/// The running sessions.
#[derive(Debug)]
pub struct Sessions {
    store: Store,
    context: Context,
    broker: Option<EmbeddedBroker>,
    time: BelievedTime,
    running: HashMap<String, Session>,
}

#[derive(Debug)]
struct Session {
    wanted: Wanted,
    stop: CancellationToken,
    task: JoinHandle<()>,
    health: watch::Receiver<ConsumerHealth>,
}

impl Sessions {
    /// No session yet.
    pub fn new(store: Store, context: Context, broker: Option<EmbeddedBroker>, time: BelievedTime) -> Self {
        Self { store, context, broker, time, running: HashMap::new() }
    }

    /// Makes the running sessions those that are wanted: unchanged ones are left alone, changed ones start anew at their
    /// cursor, and those that are gone for good release what the log kept for them.
    pub async fn apply(&mut self, wanted: Vec<Wanted>) -> Result<(), String> {
        let (same, leaving): (HashMap<_, _>, HashMap<_, _>) =
            std::mem::take(&mut self.running).into_iter().partition(|(_, session)| wanted.contains(&session.wanted));
        self.running = same;
        for (name, session) in leaving {
            session.end().await;
            if !wanted.iter().any(|w| w.config.name == name) {
                self.release(&name).await;
            }
        }
        for wanted in wanted {
            if !self.running.contains_key(&wanted.config.name) {
                let session = self.start(wanted).await?;
                self.running.insert(session.wanted.config.name.clone(), session);
            }
        }
        Ok(())
    }

    /// Releases consumers that the log knows from an earlier run but the configuration does not name any more.
    pub async fn release_unknown(&self) {
        let known: Vec<String> = self.store.stats().borrow().consumers.keys().cloned().collect();
        for name in known.into_iter().filter(|name| !self.running.contains_key(name)) {
            self.release(&name).await;
        }
    }

    /// Health of every session.
    pub fn health(&self) -> Vec<watch::Receiver<ConsumerHealth>> {
        let mut sessions: Vec<_> = self.running.iter().collect();
        sessions.sort_by_key(|(name, _)| name.as_str());
        sessions.into_iter().map(|(_, session)| session.health.clone()).collect()
    }

    /// Asks every session to say goodbye and waits for all of them.
    pub async fn stop(&mut self) {
        let sessions: Vec<_> = self.running.drain().map(|(_, session)| session).collect();
        sessions.iter().for_each(|session| session.stop.cancel());
        for session in sessions {
            session.end().await;
        }
    }

    async fn release(&self, name: &str) {
        match self.store.remove_consumer(name).await {
            Ok(()) => tracing::info!(consumer = name, "consumer is not configured any more; its backlog is released"),
            Err(error) => tracing::warn!(consumer = name, %error, "consumer could not be released"),
        }
    }

    async fn start(&self, wanted: Wanted) -> Result<Session, String> {
        let name = wanted.config.name.clone();
        let fail = |act: &str, reason: String| format!("{act} consumer {name}: {reason}");
        let spec = ConsumerSpec { name: name.clone(), start: Start::Oldest, backlog: wanted.backlog };
        let source = LogSource(self.store.consumer(spec).await.map_err(|e| fail("open", e.to_string()))?);
        let sent = usage::load(&self.store, &name);
        let (consumer, health) = Consumer::new(wanted.config.clone(), source, self.context.clone(), sent)
            .map_err(|e| fail("configure", e.to_string()))?;
        let stop = CancellationToken::new();
        let ended = stop.clone();
        let task = match (&wanted.config.kind, &self.broker) {
            (ConsumerKind::Local, Some(broker)) => {
                let publisher = BrokerPublisher(broker.clone());
                tokio::spawn(async move { drop(consumer.run_local(publisher, ended).await) })
            }
            (ConsumerKind::Local, None) => return Err(fail("start", "the embedded broker is switched off".to_owned())),
            (ConsumerKind::Uplink(_), _) => {
                let tls = wanted
                    .tls
                    .clone()
                    .map(|files| ClientTls::load(files, &self.time))
                    .transpose()
                    .map_err(|e| fail("read certificates of", e.to_string()))?;
                let source = move |_: &str| {
                    tls.as_ref().map(ClientTls::current).ok_or_else(|| "no TLS settings for this uplink".to_owned())
                };
                let (store, usage_name, usage_health) = (self.store.clone(), name.clone(), health.clone());
                tokio::spawn(async move {
                    let keep_usage = usage::keep(store, usage_name, usage_health);
                    tokio::select! {
                        source = consumer.run_uplink(Arc::new(source), ended) => drop(source),
                        () = keep_usage => {}
                    }
                })
            }
        };
        Ok(Session { wanted, stop, task, health })
    }
}

impl Session {
    async fn end(self) {
        self.stop.cancel();
        if let Err(error) = self.task.await {
            tracing::error!(consumer = self.wanted.config.name, %error, "session failed");
        }
    }
}
