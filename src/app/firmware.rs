//! Firmware of the gateway itself while it runs: offers and decisions of people, the job that is under way, the proof that a
//! new version works, and the restart that changes versions.
//!
//! `boot` runs before everything else and may become another binary. `start` takes up the job of an earlier life and serves
//! questions. A job is acted out step by step on a thread that may block; between two steps questions are answered. Who
//! opens the local socket may offer and approve (its mode is 0600); what is offered counts only with the signature of a
//! configured key. Every request is in the audit log, every change of stage is an event.
//!
//! Limits: 16 questions may wait; more wait at the socket.

mod question;

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
#[cfg(feature = "download")]
use rustls::ClientConfig;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use question::{Question, Reply};

use super::events::EventLog;
use super::health::HealthDesk;
use super::ingest::device_hash;
use super::supervisor::Supervisor;
use crate::config::Gateway;
use crate::contract::v1::event::Severity;
use crate::contract::{ContractMessage, Encoding, timestamp, v1};
use crate::management::firmware::{
    Approval, Boot, FileJournal, FirmwareError, GatewayTarget, HealthReport, Job, Policy, Slot, Stage, Target,
    TrustedKeys, Updater, UpdaterConfig, Version,
};
use crate::model::{Lane, RecordKind};
use crate::platform::clock::SharedClock;
use crate::platform::durable::Disk;
use crate::security::pki::BelievedTime;
use crate::store::{NewRecord, Store};

#[cfg(not(feature = "download"))]
use crate::management::firmware::FileFetch as Source;
#[cfg(feature = "download")]
use crate::management::firmware::HttpFetch as Source;

/// The gateway's name among targets.
pub const GATEWAY: &str = "gateway";
/// Questions that may wait.
const QUEUE: usize = 16;
/// After a step that the disk refused.
const AGAIN: Duration = Duration::from_secs(5);

/// Where binaries and jobs are.
pub fn directory(data: &Path) -> PathBuf {
    data.join("firmware")
}

/// The first thing that `run` does: becomes the binary that is to run, or says which place this one is.
pub fn boot(data: &Path) -> Slot {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    Boot::new(&directory(data), Disk::default()).start(&arguments)
}

type Asked = (Question, String, oneshot::Sender<Result<Reply, String>>);

/// Asks the running updates. Cheap to clone.
#[derive(Debug, Clone)]
pub struct FirmwareDesk(mpsc::Sender<Asked>);

impl FirmwareDesk {
    /// Asks as `actor`. Errors are words for people.
    pub async fn ask(&self, question: Question, actor: &str) -> Result<Reply, String> {
        let gone = || "the gateway is stopping; ask again later".to_owned();
        let (reply, answer) = oneshot::channel();
        self.0.send((question, actor.to_owned(), reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

/// What an update stands on.
#[derive(Debug)]
pub struct Ground {
    /// What this process was started from.
    pub running: Slot,
    /// The log.
    pub store: Store,
    /// Events.
    pub events: EventLog,
    /// What proves that a new version works.
    pub health: HealthDesk,
    /// Tells why a restart is wanted.
    pub restart: watch::Sender<Option<String>>,
    /// The time that servers' certificates are checked against.
    pub time: BelievedTime,
    /// Time.
    pub clock: SharedClock,
}

/// Takes up what an earlier life left, and serves questions from now on.
pub fn start(gateway: &Gateway, ground: Ground, supervisor: &mut Supervisor) -> Result<FirmwareDesk, String> {
    let Ground { running, store, events, health, restart, time, clock } = ground;
    let (directory, disk) = (directory(&gateway.identity.data_dir), Disk::default());
    let section = &gateway.firmware;
    let config = UpdaterConfig {
        target: GATEWAY.to_owned(),
        directory: directory.clone(),
        policy: Policy { keys: keys(&section.keys)?, limit: section.max_size },
        window: section.window,
        rate: section.rate,
        disk: disk.clone(),
    };
    let (told, report) = watch::channel(HealthReport::default());
    let boot = Boot::new(&directory, disk.clone());
    let version = Version::parse(env!("CARGO_PKG_VERSION"))?;
    let target = GatewayTarget::new(boot, running, version, section.prove_within, report, restart, clock.clone());
    let journal = FileJournal::new(&directory.join("jobs"), disk).map_err(|e| e.to_string())?;
    let fetch = source(section.ca.clone(), &time)?;
    let updater = Updater::new(config, target, fetch, journal, clock.clone()).map_err(|e| e.to_string())?;
    let (ask, asked) = mpsc::channel(QUEUE);
    let token = supervisor.token();
    let clerk = Clerk { store, events, clock, told: updater.job().map(|job| job.stage).filter(|s| s.is_final()) };
    // Looked at right before each step: an installation notes what is polled at that very moment.
    let refresh = move || drop(told.send_replace(health.report()));
    supervisor.spawn("firmware", serve(updater, asked, clerk, refresh, token));
    Ok(FirmwareDesk(ask))
}

/// The public keys of all files.
fn keys(files: &[PathBuf]) -> Result<TrustedKeys, String> {
    let mut all = String::new();
    for file in files {
        let text = std::fs::read_to_string(file).map_err(|e| format!("read {}: {e}", file.display()))?;
        TrustedKeys::from_pem(&text).map_err(|e| format!("{}: {e}", file.display()))?;
        all.push_str(&text);
        all.push('\n');
    }
    if files.is_empty() { Ok(TrustedKeys::default()) } else { TrustedKeys::from_pem(&all).map_err(|e| e.to_string()) }
}

#[cfg(feature = "download")]
fn source(ca: Option<PathBuf>, time: &BelievedTime) -> Result<Source, String> {
    Source::new(download_tls(ca, time)?).map_err(|e| e.to_string())
}

#[cfg(not(feature = "download"))]
fn source(_: Option<PathBuf>, _: &BelievedTime) -> Result<Source, String> {
    Ok(Source::default())
}

/// Without a bundle of the system no `https` server is believed; everything else goes on.
#[cfg(feature = "download")]
fn download_tls(ca: Option<PathBuf>, time: &BelievedTime) -> Result<ClientConfig, String> {
    use crate::security::{ClientTls, ClientTlsFiles};
    let asked = ca.is_some();
    let ca = ca.unwrap_or_else(|| PathBuf::from(crate::config::SYSTEM_CA));
    match ClientTls::load(ClientTlsFiles { ca, certificate: None, key: None, server_name: None }, time) {
        Ok(tls) => Ok(ClientConfig::clone(&tls.current())),
        Err(error) if asked => Err(error.to_string()),
        Err(_) => {
            let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
            let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
            let builder = builder.map_err(|e| e.to_string())?;
            Ok(builder.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth())
        }
    }
}

type Running<T> = Updater<T, Source, FileJournal>;

/// Answers questions and acts out the job until `token` is cancelled.
async fn serve<T: Target + 'static>(
    mut updater: Running<T>,
    mut asked: mpsc::Receiver<Asked>,
    mut clerk: Clerk,
    refresh: impl Fn() + Send + 'static,
    token: CancellationToken,
) -> Result<(), String> {
    let mut due = Some(Instant::now());
    loop {
        clerk.show(updater.job()).await;
        let wake = async {
            match due {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = token.cancelled() => return Ok(()),
            next = asked.recv() => {
                let Some((question, actor, reply)) = next else { return Ok(()) };
                let answer = answer(&mut updater, &question, &actor).await;
                clerk.audit(&question, &actor, &answer).await;
                // The asker may have hung up; what was decided stands in the job.
                let _ = reply.send(answer);
                due = Some(Instant::now());
            }
            () = wake => {
                refresh();
                // A step hashes, syncs and copies: not on a thread that others wait for.
                let (runtime, stop) = (tokio::runtime::Handle::current(), token.clone());
                let stepped = tokio::task::spawn_blocking(move || {
                    let step = runtime.block_on(async {
                        tokio::select! {
                            () = stop.cancelled() => Ok(None),
                            step = updater.step() => step,
                        }
                    });
                    (updater, step)
                });
                let (after, step) = stepped.await.map_err(|e| e.to_string())?;
                updater = after;
                due = match step {
                    Ok(pause) => pause.map(|pause| Instant::now() + pause),
                    Err(error) => {
                        tracing::warn!(%error, "a step of a firmware update could not be kept; it is done again");
                        Some(Instant::now() + AGAIN)
                    }
                };
            }
        }
    }
}

async fn answer<T: Target>(updater: &mut Running<T>, question: &Question, actor: &str) -> Result<Reply, String> {
    let failed = |error: FirmwareError| format!("{} ({})", error, error.code());
    let job = |job: &Job| Reply::Job(Box::new(job.clone()));
    let named = match question {
        Question::Offer { target, .. } | Question::Chunk { target, .. } | Question::Decide { target, .. } => {
            Some(target)
        }
        Question::Jobs { target } => target.as_ref(),
    };
    if let Some(other) = named.filter(|name| *name != GATEWAY) {
        return Err(format!("{other:?} cannot be updated by this gateway; `gateway` can"));
    }
    match question {
        Question::Offer { offer, .. } => updater.offer(offer.clone()).await.map(job).map_err(failed),
        Question::Chunk { id, offset, data, .. } => {
            let bytes = STANDARD.decode(data).map_err(|e| format!("the part is no base64: {e}"))?;
            updater.chunk(id, *offset, &bytes).map(Reply::Next).map_err(failed)
        }
        Question::Decide { id, approve: true, .. } => {
            updater.approve(id, Approval::Operator(actor.to_owned())).map(job).map_err(failed)
        }
        Question::Decide { id, .. } => updater.reject(id, actor).map(job).map_err(failed),
        Question::Jobs { .. } => Ok(Reply::Jobs(updater.job().cloned().into_iter().collect())),
    }
}

/// Writes down what happens.
struct Clerk {
    store: Store,
    events: EventLog,
    clock: SharedClock,
    /// The stage that was told last.
    told: Option<Stage>,
}

impl Clerk {
    /// Tells a new stage, once. After a restart one that is under way is told again: a new version proves with it that it
    /// publishes.
    async fn show(&mut self, job: Option<&Job>) {
        let Some(job) = job.filter(|job| self.told != Some(job.stage)) else { return };
        self.told = Some(job.stage);
        let severity = match job.stage {
            Stage::Failed | Stage::RolledBack => Severity::Alarm,
            Stage::Refused => Severity::Warning,
            _ => Severity::Info,
        };
        let code = job.code.as_ref().map_or_else(String::new, |code| format!(" ({code})"));
        let reason = job.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
        let text = format!("firmware {} for {} is {}{code}{reason}", job.version, job.target, job.stage.as_str());
        tracing::info!("{text}");
        self.events.report(severity, &format!("firmware-{}", job.stage.as_str()), "", text).await;
    }

    async fn audit(&self, question: &Question, actor: &str, answer: &Result<Reply, String>) {
        let (action, id) = match question {
            Question::Offer { offer, .. } => ("firmware-offer", &offer.id),
            Question::Decide { id, approve: true, .. } => ("firmware-approve", id),
            Question::Decide { id, .. } => ("firmware-reject", id),
            Question::Chunk { .. } | Question::Jobs { .. } => return,
        };
        let (detail, outcome) = match answer {
            Ok(Reply::Job(job)) => (format!("version {}", job.version), "done".to_owned()),
            Ok(_) => (String::new(), "done".to_owned()),
            Err(error) => (error.clone(), "refused".to_owned()),
        };
        let now = self.clock.now();
        let entry = v1::AuditEntry {
            time: Some(timestamp(now.wall_ms)),
            actor: actor.to_owned(),
            action: action.to_owned(),
            object: GATEWAY.to_owned(),
            detail,
            outcome,
            correlation_id: id.clone(),
            ..v1::AuditEntry::default()
        };
        let record = NewRecord {
            lane: Lane::Critical,
            kind: RecordKind::Audit,
            device: device_hash(""),
            ts_ms: now.wall_ms,
            count: 1,
            payload: entry.encode_as(Encoding::Protobuf),
        };
        if let Err(error) = self.store.append_synced(vec![record]).await {
            tracing::error!(%error, actor, action, "an audit entry was not stored");
        }
    }
}
