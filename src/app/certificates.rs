//! Certificates while the gateway runs: the plant's authority for the broker's listeners, and the gateway's own enrolment.
//!
//! `prepare` runs before anything listens: it makes what is missing and says from when on a clock is believed. `start` begins
//! the tasks that renew. What happens becomes events; what stands (a life that ends, an enrolment that fails) stands in
//! health until it is over. TLS itself follows the files: `security` looks at them every few seconds, so a certificate that
//! the command line renewed or revoked counts as soon as one that was renewed here.
//!
//! Limits: one authority, one listener slot ([`PLANT_SLOT`]) for all listeners of the broker. An authority that cannot be
//! opened keeps the gateway from starting only when a listener needs it.

#[cfg(feature = "est")]
mod enrolment;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::events::EventLog;
use super::health::HealthDesk;
use super::supervisor::Supervisor;
use crate::config::{Gateway, PLANT_SLOT, TlsContext};
use crate::contract::v1::event::Severity;
use crate::platform::beat;
use crate::platform::clock::SharedClock;
use crate::platform::process;
use crate::security::pki::{Alarm, BelievedTime, Keeper, KeeperEvent, Pki, PkiConfig, PkiError, ServerNames};

/// Events of a keeper that may wait.
const EVENTS: usize = 64;
/// The keeper tries again every minute; what did not come back by then is over.
const FAILURE_STANDS: Duration = Duration::from_secs(150);
/// Whose standing problems these are, in health.
const PLANT: &str = "certificates";

/// Where the plant's authority is.
pub fn pki_directory(data: &Path) -> PathBuf {
    data.join("pki")
}

/// Where the gateway's own identity is.
pub fn identity_directory(data: &Path) -> PathBuf {
    data.join("identity")
}

/// How the authority of this gateway issues.
pub fn pki_config(gateway: &Gateway) -> PkiConfig {
    let config = PkiConfig::new(&pki_directory(&gateway.identity.data_dir));
    PkiConfig { server_life: gateway.pki.server_life, client_life: gateway.pki.client_life, ..config }
}

/// What was made ready before anything listens.
#[derive(Debug)]
pub struct Certificates {
    keeper: Option<Keeper>,
    problems: Vec<String>,
    #[cfg(feature = "est")]
    enrolments: Vec<enrolment::Enrolment>,
    tls: TlsContext,
}

impl Certificates {
    /// Opens the plant's authority, makes one if a listener needs it, issues what listeners lack, and reads the gateway's
    /// own identity.
    pub async fn prepare(gateway: &Gateway, clock: &SharedClock) -> Result<Self, String> {
        let (gateway, clock) = (gateway.clone(), clock.clone());
        // Keys are made and files synced: not on a thread that others wait for.
        let prepared = tokio::task::spawn_blocking(move || Self::prepare_now(&gateway, &clock));
        prepared.await.map_err(|e| e.to_string())?
    }

    fn prepare_now(gateway: &Gateway, clock: &SharedClock) -> Result<Self, String> {
        let needed = gateway.broker.as_ref().is_some_and(|broker| broker.uses_plant());
        let opened = open(gateway, needed, clock).map_err(|e| e.to_string());
        let (keeper, problems) = match opened {
            Ok(keeper) => (keeper, Vec::new()),
            Err(error) if needed => return Err(error),
            Err(error) => {
                tracing::error!("the plant's certificate authority cannot be used: {error}");
                (None, vec![format!("the plant's certificate authority cannot be used: {error}")])
            }
        };
        let time = keeper.as_ref().map_or_else(|| BelievedTime::new(clock.clone(), 0), Keeper::time);
        Ok(Self {
            keeper,
            problems,
            #[cfg(feature = "est")]
            enrolments: enrolment::all(gateway, &time, clock)?,
            tls: TlsContext { pki: pki_directory(&gateway.identity.data_dir), time },
        })
    }

    /// What listeners and connections need.
    pub const fn tls(&self) -> &TlsContext {
        &self.tls
    }

    /// Starts the tasks that renew.
    pub fn start(self, supervisor: &mut Supervisor, events: &EventLog, health: &HealthDesk) {
        let token = supervisor.token();
        health.set_problems(PLANT, self.problems);
        if let Some(keeper) = self.keeper {
            let (tell, told) = mpsc::channel(EVENTS);
            let reporter = PlantReporter::new(events, health);
            supervisor.spawn("certificates", until_stopped(keeper.run(tell, token.clone()), token.clone()));
            supervisor.spawn("certificate events", reporter.run(told, token.clone()));
        }
        #[cfg(feature = "est")]
        for enrolment in self.enrolments {
            enrolment.start(supervisor, events, health);
        }
    }
}

/// A keeper that ends while nobody asked it to takes the process with it: certificates would end unnoticed.
async fn until_stopped(keeper: impl Future<Output = ()>, token: CancellationToken) -> Result<(), String> {
    keeper.await;
    if token.is_cancelled() { Ok(()) } else { Err("it stopped; see the log".to_owned()) }
}

fn open(gateway: &Gateway, needed: bool, clock: &SharedClock) -> Result<Option<Keeper>, PkiError> {
    let config = pki_config(gateway);
    let pki = match (Pki::exists(&config.directory), needed) {
        (true, _) => Pki::open(config, clock.clone())?,
        (false, true) if gateway.pki.create => {
            tracing::info!(directory = %config.directory.display(), "a certificate authority for the plant is made");
            Pki::create(config, &gateway.pki.name, clock.clone())?
        }
        (false, true) => return Err(PkiError::Missing(config.directory)),
        (false, false) => return Ok(None),
    };
    let mut listeners = BTreeMap::new();
    if needed {
        listeners.insert(PLANT_SLOT.to_owned(), listener_names(gateway)?);
    }
    // TLS follows the files, so nobody needs the keeper's own watches.
    let (keeper, _) = Keeper::new(pki, listeners, clock.clone())?;
    Ok(Some(keeper))
}

/// The machine's name, loopback, the addresses listened on, and what `pki.names` adds.
fn listener_names(gateway: &Gateway) -> Result<ServerNames, PkiError> {
    let host = process::host_id();
    let names = ServerNames::of_host(&host).or_else(|_| ServerNames::of_host("gateway"))?;
    let listeners = gateway.broker.iter().flat_map(|broker| &broker.listeners);
    let names = listeners.fold(names, |names, listener| names.with_address(listener.address.ip()));
    gateway.pki.names.iter().try_fold(names, |names, name| names.with_name(name))
}

/// What the plant's keeper tells, as events and as standing problems.
struct PlantReporter {
    events: EventLog,
    health: HealthDesk,
    /// By what was tried: why it failed, and until when that stands.
    failures: BTreeMap<String, (String, Instant)>,
    /// By subject and serial: what is to be done.
    ending: BTreeMap<String, String>,
}

impl PlantReporter {
    fn new(events: &EventLog, health: &HealthDesk) -> Self {
        let (failures, ending) = (BTreeMap::new(), BTreeMap::new());
        Self { events: events.clone(), health: health.clone(), failures, ending }
    }

    async fn run(mut self, mut told: mpsc::Receiver<KeeperEvent>, token: CancellationToken) -> Result<(), String> {
        let mut every = beat::every(FAILURE_STANDS / 2);
        loop {
            tokio::select! {
                () = token.cancelled() => return Ok(()),
                event = told.recv() => match event {
                    Some(event) => self.tell(event).await,
                    None => return if token.is_cancelled() { Ok(()) } else { Err("the keeper ended".to_owned()) },
                },
                _ = every.tick() => {}
            }
            self.failures.retain(|_, (_, until)| *until > Instant::now());
            let failures = self.failures.iter().map(|(act, (reason, _))| format!("could not {act}: {reason}"));
            self.health.set_problems(PLANT, failures.chain(self.ending.values().cloned()).collect());
        }
    }

    async fn tell(&mut self, event: KeeperEvent) {
        let (severity, kind, text) = match event {
            KeeperEvent::Renewed { slot, serial } => {
                let text =
                    format!("listener {slot} has a new certificate, serial {serial}; connections that exist go on");
                (Severity::Info, "certificate-renewed", text)
            }
            KeeperEvent::List { number } => {
                (Severity::Info, "revocation-list", format!("revocation list {number} is in force"))
            }
            KeeperEvent::Failed { act, reason } => {
                let until = Instant::now() + FAILURE_STANDS;
                let text = format!("could not {act}: {reason}; it is tried again every minute");
                // Said once, not every minute.
                let before = self.failures.insert(act, (reason.clone(), until));
                if before.is_some_and(|(known, _)| known == reason) {
                    return;
                }
                (Severity::Warning, "certificate-failed", text)
            }
            KeeperEvent::Alarm { subject, serial, change } => {
                let serial = serial.map_or_else(String::new, |serial| format!(" (serial {serial})"));
                let (severity, text) = life(&format!("the certificate of {subject}{serial}"), change.to);
                let key = format!("{subject}{serial}");
                match severity {
                    Severity::Info => self.ending.remove(&key),
                    _ => self.ending.insert(key, text.clone()),
                };
                (severity, "certificate-life", text)
            }
        };
        self.events.report(severity, kind, "", text).await;
    }
}

/// How urgent it is that a certificate ends, and what to do.
fn life(what: &str, alarm: Alarm) -> (Severity, String) {
    match alarm {
        Alarm::None => (Severity::Info, format!("{what} needs no attention any more")),
        Alarm::Half => (Severity::Info, format!("half of the life of {what} is over")),
        Alarm::Fifth => (Severity::Warning, format!("20 % of the life of {what} is left; renew it")),
        Alarm::Twentieth => (Severity::Alarm, format!("5 % of the life of {what} is left; renew it now")),
        Alarm::Expired => (Severity::Alarm, format!("{what} has expired; issue a new one")),
    }
}
