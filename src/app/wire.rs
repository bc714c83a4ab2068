//! The gateway's parts and the lines between them. Read top-down: `start` builds from the disk northwards and starts the
//! devices last, so that the first sample already has a store to go to; `stop` drains the other way round.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::adapters::RetainedInState;
use super::admin_service::{AdminService, device_lines, point_lines};
use super::certificates::{Certificates, identity_directory};
use super::commands::{self, AnswersToLog, LedgerInState, ScaledWriter, Scalings};
use super::devices::DeviceDesk;
use super::events::EventLog;
use super::firmware;
use super::health::HealthDesk;
use super::ingest::{Control, Ingest, IngestStats};
use super::latest::Latest;
use super::management::{self, Fleet, FleetParts, Ground, LastValues};
#[cfg(feature = "margo")]
use super::margo;
use super::reload::{self, InForce, Reloader};
use super::sessions::{Sessions, Wanted};
use super::settings;
use super::supervisor::Supervisor;
use super::watchdog;
use crate::admin::{self, DeviceLine, PointLine};
use crate::broker::{EmbeddedBroker, LocalBroker};
use crate::config::Loaded;
use crate::config::checked::Uplink;
use crate::management::command::{CommandLimits, CommandService};
use crate::management::core::Counters;
use crate::management::desired::Watcher;
use crate::management::firmware::Slot;
use crate::northbound::{Context, GatewayInfo, StateBoard};
use crate::platform::clock::{ClockBook, SharedClock, SystemClock};
use crate::southbound::Southbound;
use crate::store::{self, Backlog, Store};
use crate::telemetry::Telemetry;

/// Why a part could not start.
#[derive(Debug, thiserror::Error)]
#[error("start {part}: {reason}")]
pub struct StartError {
    part: &'static str,
    reason: String,
}

fn failed(part: &'static str) -> impl Fn(&dyn std::fmt::Display) -> StartError {
    move |reason| StartError { part, reason: reason.to_string() }
}

/// A running gateway.
#[derive(Debug)]
pub struct Gateway {
    supervisor: Supervisor,
    southbound: Southbound,
    store: Store,
    broker: Option<EmbeddedBroker>,
    reloader: Arc<Reloader>,
    latest: Latest,
    restart: watch::Receiver<Option<String>>,
    summary: String,
    ingest_stop: CancellationToken,
    ingest_ended: oneshot::Receiver<()>,
}

impl Gateway {
    /// Builds and starts everything that `loaded` names; `path` is where a reload reads it again, `running` the place that
    /// this binary was started from.
    pub async fn start(path: &Path, loaded: Loaded, telemetry: &Telemetry, running: Slot) -> Result<Self, StartError> {
        // Every TLS connection of this process uses ring; a second call (tests) changes nothing.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let clock: SharedClock = SystemClock::shared();
        let mut supervisor = Supervisor::default();
        let token = supervisor.token();
        let summary = format!("{} devices", loaded.devices.len());

        // The store first: everything else writes to it.
        create_private(&loaded.gateway.identity.data_dir).map_err(|e| failed("data directory")(&e))?;
        let store = open_store(&loaded, &clock).await?;
        let settings = Arc::new(ClockBook::open(&loaded.gateway.identity.data_dir));
        supervisor.spawn("clock settings", settings::run(settings.clone(), clock.clone(), token.clone()));
        let epoch = store.state().next_epoch().await.map_err(|e| failed("state store")(&e))?;
        let events = EventLog::new(store.clone(), clock.clone());

        // Certificates before anything that listens or connects with them.
        let certificates =
            Certificates::prepare(&loaded.gateway, &clock).await.map_err(|e| failed("certificates")(&e))?;
        let tls = certificates.tls().clone();

        // The embedded broker, if there is one.
        let broker = match &loaded.gateway.broker {
            Some(section) => {
                let config =
                    section.config(&loaded.gateway.identity.root, &tls).map_err(|e| failed("embedded broker")(&e))?;
                let retained = RetainedInState(store.clone());
                let started = EmbeddedBroker::start(config, retained, clock.clone()).await;
                Some(started.map_err(|e| failed("embedded broker")(&e))?)
            }
            None => None,
        };
        if let Some(broker) = broker.clone() {
            let token = token.clone();
            supervisor.spawn("embedded broker", async move {
                tokio::select! {
                    () = token.cancelled() => Ok(()),
                    error = broker.failed() => Err(error.to_string()),
                }
            });
        }

        // What the sessions share: state topics, requests in, notices out.
        let board = StateBoard::default();
        let (ask, asked) = mpsc::channel(loaded.gateway.limits.command_queue);
        let (notice, notices) = mpsc::channel(64);
        let (directory, directory_watch) = watch::channel(Arc::default());
        let context = Context {
            gateway: GatewayInfo {
                id: loaded.gateway.identity.id.to_string(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                epoch,
            },
            board: board.clone(),
            directory: directory_watch,
            requests: ask,
            notices: notice,
            clock: clock.clone(),
            settings,
        };
        let mut sessions = Sessions::new(store.clone(), context, broker.clone(), tls.time.clone());
        sessions.apply(wanted(&loaded)).await.map_err(|e| failed("sessions")(&e))?;
        sessions.release_unknown().await;

        // From drivers to the log.
        let latest = Latest::default();
        let stats = Arc::new(IngestStats::default());
        let (update, updates) = mpsc::channel(loaded.gateway.limits.scan_queue);
        let (control, controls) = mpsc::channel::<Control>(4);
        let southbound = Southbound::start(Vec::new(), update, clock.clone());
        let (scalings, watcher) = (Scalings::default(), Watcher::default());

        // Who executes commands, and who decides what runs.
        let results = broadcast::Sender::new(256);
        let limits = &loaded.gateway.limits;
        let limits = CommandLimits {
            queue: limits.command_queue,
            per_second: limits.commands_per_second,
            timeout: limits.command_timeout,
        };
        let writer = ScaledWriter { scalings: scalings.clone(), southbound: southbound.clone() };
        let counters = Arc::<Counters>::default();
        let answers = AnswersToLog {
            store: store.clone(),
            clock: clock.clone(),
            counters: counters.clone(),
            results: results.clone(),
        };
        let ledger = LedgerInState(store.clone());
        let started =
            CommandService::start(limits, BTreeMap::new(), writer.clone(), ledger, answers, clock.clone()).await;
        let (command_service, command_task) = started.map_err(|e| failed("commands")(&e))?;
        let fleet = Fleet::new(FleetParts {
            southbound: southbound.clone(),
            control,
            directory,
            latest: latest.clone(),
            scalings,
            commands: command_service.clone(),
            values: LastValues { latest: latest.clone(), watcher: watcher.clone() },
            board: board.clone(),
            clock: clock.clone(),
        });
        let (firmware_desk, firmware_questions) = firmware::desk();
        let ground = Ground {
            store: store.clone(),
            board: board.clone(),
            events: events.clone(),
            watcher: watcher.clone(),
            fleet: fleet.clone(),
            writer: writer.clone(),
            firmware: firmware_desk.clone(),
            logs: telemetry.logs.clone(),
            counters: counters.clone(),
            clock: clock.clone(),
        };
        let started = management::start(&loaded, ground).await;
        let (management, management_task) = started.map_err(|e| failed("device management")(&e))?;
        supervisor.spawn("commands", async move { command_task.await.map_err(|e| e.to_string()) });
        supervisor.spawn("device management", async move { management_task.await.map_err(|e| e.to_string()) });

        let desk = DeviceDesk { management: management.clone(), fleet: fleet.clone(), events: events.clone() };
        let ingest =
            Ingest::new(Vec::new(), store.clone(), latest.clone(), desk, watcher, clock.clone(), stats.clone());
        let (ingest_stop, (ingest_done, ingest_ended)) = (CancellationToken::new(), oneshot::channel());
        let ingest = ingest.run(updates, controls, ingest_stop.clone());
        supervisor.spawn("ingest", async move {
            let outcome = ingest.await;
            // Only a stop waits for this.
            let _ = ingest_done.send(());
            outcome
        });
        // From here on devices are polled.
        management::take_files(&management, &fleet, &loaded).await.map_err(|e| failed("device management")(&e))?;
        // And from here on clients are heard: before, no device was declared yet, and the wrong answer would have been final.
        let (asks, changes) = (firmware_desk.clone(), management.clone());
        let requests = management::run_requests(command_service.clone(), changes, asks, asked, token.clone());
        supervisor.spawn("requests", requests);

        // What people and systemd see.
        let broker_stats = broker.clone();
        let broker_stats = Arc::new(move || broker_stats.as_ref().map(LocalBroker::stats));
        let health =
            HealthDesk::new(clock.clone(), latest.clone(), stats.clone(), store.stats(), broker_stats, counters);
        health.set_consumers(sessions.health());
        telemetry.export({
            let health = health.clone();
            Arc::new(move || health.measurements())
        });
        certificates.start(&mut supervisor, &events, &health);
        #[cfg(feature = "margo")]
        if let Some(config) = &loaded.gateway.margo {
            let ground = margo::Ground {
                management: management.clone(),
                latest: latest.clone(),
                commands: command_service.clone(),
                answers: results.clone(),
                events: events.clone(),
                fleet: fleet.clone(),
                desk: firmware_desk.clone(),
                store: store.clone(),
            };
            margo::start(&mut supervisor, config, &ground, &clock, &tls.time);
        }
        supervisor.spawn("health", health.clone().run(board.clone(), token.clone()));
        supervisor.spawn("watchdog", watchdog::run(stats, store.clone(), token.clone()));
        supervisor.spawn("notices", commands::keep_notices(notices, events.clone(), token.clone()));

        let (restart, restart_wanted) = watch::channel(None);
        let ground = firmware::Ground {
            running,
            store: store.clone(),
            events: events.clone(),
            board: board.clone(),
            fleet: fleet.clone(),
            broker: broker.clone(),
            health: health.clone(),
            restart,
            time: tls.time.clone(),
            clock: clock.clone(),
        };
        let started = firmware::start(&loaded.gateway, ground, firmware_questions, &mut supervisor);
        started.map_err(|e| failed("firmware")(&e))?;

        // Reload and the local door.
        let (handle, reload_requests) = reload::channel();
        let admin_path = loaded.gateway.identity.data_dir.join(admin::SOCKET);
        let reloader = Arc::new(Reloader {
            in_force: tokio::sync::Mutex::new(InForce { path: path.to_owned(), loaded }),
            sessions: tokio::sync::Mutex::new(sessions),
            management: management.clone(),
            fleet,
            broker: broker.clone(),
            health: health.clone(),
            events,
            logs: telemetry.logs.clone(),
        });
        supervisor.spawn("reload", reload::run(reloader.clone(), reload_requests, token.clone()));
        let service =
            AdminService::new(latest.clone(), health, handle, firmware_desk, management, command_service, results);
        let service = Arc::new(service);
        // Open before the start is announced: who hears of it may ask at once. Without it the gateway runs all the same.
        let mut bound = admin::bind(&admin_path).ok();
        supervisor.spawn_restarting("admin socket", move || {
            let (path, bound, service, token) = (admin_path.clone(), bound.take(), service.clone(), token.clone());
            async move {
                let listener = bound.map_or_else(|| admin::bind(&path), Ok).map_err(|e| e.to_string())?;
                tokio::select! {
                    () = token.cancelled() => Ok(()),
                    () = admin::serve(listener, service) => Ok(()),
                }
            }
        });
        tracing::info!(version = env!("CARGO_PKG_VERSION"), epoch, "gateway started with {summary}");
        Ok(Self {
            supervisor,
            southbound,
            store,
            broker,
            reloader,
            latest,
            restart: restart_wanted,
            summary,
            ingest_stop,
            ingest_ended,
        })
    }

    /// One line for `systemctl status`.
    pub fn summary(&self) -> String {
        self.summary.clone()
    }

    /// What the tables of `fieldgate devices` and `fieldgate points` show now.
    pub fn tables(&self) -> (Vec<DeviceLine>, Vec<PointLine>) {
        (device_lines(&self.latest), self.latest.read(|table| point_lines(table, None)))
    }

    /// Addresses that the embedded broker listens on.
    pub fn broker_addresses(&self) -> Vec<std::net::SocketAddr> {
        self.broker.as_ref().map(|b| b.addresses().to_vec()).unwrap_or_default()
    }

    /// Holds the reason once the gateway wants to be started again, to change its version.
    pub fn restart(&self) -> watch::Receiver<Option<String>> {
        self.restart.clone()
    }

    /// Waits until a task ends that must not; says which and why.
    pub async fn failure(&mut self) -> String {
        self.supervisor.failure().await.to_string()
    }

    /// Drains from south to north within `limit`.
    pub async fn stop(self, limit: Duration) {
        let begun = Instant::now();
        let deadline = begun + limit;
        let drain = async {
            self.southbound.shutdown().await;
            self.ingest_stop.cancel();
            // An error only says that the task ended before.
            let _ = self.ingest_ended.await;
            self.store.sync().await;
            self.reloader.sessions.lock().await.stop().await;
        };
        if timeout_at(begun + limit.mul_f64(0.5), drain).await.is_err() {
            tracing::warn!("not everything was sent before the stop; it will be sent after the next start");
        }
        drop(self.reloader);
        self.supervisor.shutdown(limit.mul_f64(0.2)).await;
        if let Some(broker) = self.broker
            && timeout_at(begun + limit.mul_f64(0.85), broker.shutdown()).await.is_err()
        {
            tracing::warn!("the embedded broker did not stop in time");
        }
        match timeout_at(deadline, self.store.close()).await {
            Ok(Ok(())) => tracing::info!("stopped in {:?}", begun.elapsed()),
            Ok(Err(error)) => tracing::error!(%error, "the store was not closed cleanly"),
            Err(_) => tracing::error!("the store did not close in time; it recovers at the next start"),
        }
    }
}

async fn open_store(loaded: &Loaded, clock: &SharedClock) -> Result<Store, StartError> {
    let (config, clock) = (loaded.gateway.store.config(&loaded.gateway.identity.data_dir), clock.clone());
    let opened = tokio::task::spawn_blocking(move || store::Store::open(config, clock)).await;
    opened.map_err(|e| failed("store")(&e))?.map_err(|e| failed("store")(&e))
}

fn create_private(directory: &Path) -> Result<(), String> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(|e| format!("create {}: {e}", directory.display()))
}

/// The consumers of the log that are configured.
pub(super) fn wanted(loaded: &Loaded) -> Vec<Wanted> {
    let local = loaded.gateway.local_consumer().map(|config| Wanted { config, tls: None, backlog: Backlog::default() });
    let enrolled = identity_directory(&loaded.gateway.identity.data_dir);
    let uplink = |u: &Uplink| Wanted { config: u.consumer.clone(), tls: u.tls_files(&enrolled), backlog: u.backlog };
    local.into_iter().chain(loaded.gateway.uplinks.iter().map(uplink)).collect()
}
