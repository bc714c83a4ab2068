//! Keeps listener certificates and the revocation list fresh while the gateway runs, and tells who must know.
//!
//! [`Keeper::tick`] decides and acts for one moment and returns what happened; [`Keeper::run`] calls it every minute.
//! Nothing is passed in: it compares what is with what should be, so boot, retry and change are one path. A renewal that
//! fails is tried again with the next tick; the certificate in use stays in use.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use tokio::sync::{mpsc, watch};

use super::alarm::{Alarm, AlarmChange, AlarmTracker};
use super::inventory::Serial;
use super::life::{ClockGuard, Reading, Renewal, Throttle, Validity, renewal, renewal_share};
use super::swap::ServerIdentity;
use super::{BelievedTime, Crl, Pki, PkiError, ServerNames};
use crate::platform::clock::SharedClock;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(60);
/// Renewals let through at once, and one more per minute after that.
const BURST: u64 = 4;
/// Window of renewal, as shares of the life that is over.
const WINDOW: (f64, f64) = (0.60, 0.70);

/// What verifiers of client certificates need.
#[derive(Debug, Clone)]
pub struct Trust {
    /// The authority that issues client certificates.
    pub anchor: CertificateDer<'static>,
    /// What it took back.
    pub list: Crl,
}

/// Something that happened to a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeeperEvent {
    /// A listener has a new certificate.
    Renewed {
        /// Which listener.
        slot: String,
        /// The new serial.
        serial: Serial,
    },
    /// A certificate came nearer to its end, or away from it.
    Alarm {
        /// A listener's slot, `authority`, or the name in a device's or user's certificate.
        subject: String,
        /// Which certificate.
        serial: Option<Serial>,
        /// Before and now.
        change: AlarmChange,
    },
    /// A new revocation list is in force.
    List {
        /// Its number.
        number: u64,
    },
    /// Something could not be done; it is tried again within a minute.
    Failed {
        /// What, for people.
        act: String,
        /// Why not, for people.
        reason: String,
    },
}

/// What is followed while running.
#[derive(Debug, Clone)]
pub struct Watches {
    /// Per listener: its certificate with key.
    pub servers: BTreeMap<String, watch::Receiver<Arc<ServerIdentity>>>,
    /// Authority and revocation list.
    pub trust: watch::Receiver<Arc<Trust>>,
}

struct Server {
    names: ServerNames,
    sender: watch::Sender<Arc<ServerIdentity>>,
    alarm: AlarmTracker,
}

/// The task that renews.
pub struct Keeper {
    pki: Pki,
    servers: BTreeMap<String, Server>,
    trust: watch::Sender<Arc<Trust>>,
    authority_alarm: AlarmTracker,
    client_alarms: BTreeMap<Serial, AlarmTracker>,
    guard: ClockGuard,
    throttle: Throttle,
    time: BelievedTime,
    clock: SharedClock,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper").field("servers", &self.servers.keys().collect::<Vec<_>>()).finish_non_exhaustive()
    }
}

impl Keeper {
    /// Takes over `pki`; every listener (slot name and names for its certificate) gets a certificate if it has none, or if
    /// the one it has cannot be used, is revoked, or lacks a name.
    ///
    /// # Errors
    /// When a missing certificate or the revocation list cannot be made.
    pub fn new(
        mut pki: Pki,
        listeners: BTreeMap<String, ServerNames>,
        clock: SharedClock,
    ) -> Result<(Self, Watches), PkiError> {
        let mut servers = BTreeMap::new();
        let mut receivers = BTreeMap::new();
        for (slot, names) in listeners {
            let identity = match usable(&pki, &slot, &names) {
                Some(identity) => identity,
                None => pki.issue_server(&slot, &names)?,
            };
            let (sender, receiver) = watch::channel(Arc::new(identity));
            receivers.insert(slot.clone(), receiver);
            servers.insert(slot, Server { names, sender, alarm: AlarmTracker::default() });
        }
        let time = BelievedTime::new(clock.clone(), pki.book().floor());
        let (trust, trust_receiver) = watch::channel(Arc::new(trust_of(&mut pki)?));
        let keeper = Self {
            pki,
            servers,
            trust,
            authority_alarm: AlarmTracker::default(),
            client_alarms: BTreeMap::new(),
            guard: ClockGuard::default(),
            throttle: Throttle::new(BURST, EVERY.as_nanos() as u64),
            time,
            clock,
        };
        Ok((keeper, Watches { servers: receivers, trust: trust_receiver }))
    }

    /// The authority, for acts that a request asks for while running.
    pub const fn pki(&mut self) -> &mut Pki {
        &mut self.pki
    }

    /// The time as the inventory lets it be believed; its floor rises with what is written there.
    pub fn time(&self) -> BelievedTime {
        self.time.clone()
    }

    /// Looks once.
    pub fn tick(&mut self) -> Vec<KeeperEvent> {
        let stamp = self.clock.now();
        let mut events = Vec::new();
        if let Err(error) = self.pki.refresh() {
            events.push(failed("read the certificate inventory", &error));
        }
        let settled = self.guard.settled(stamp);
        let now = Reading { firm: self.pki.reading(stamp).firm && settled, ..self.pki.reading(stamp) };
        self.keep_servers(now, &mut events);
        self.keep_list(&mut events);
        self.watch_lives(now, &mut events);
        self.time.raise(self.pki.book().floor());
        events
    }

    fn keep_servers(&mut self, now: Reading, events: &mut Vec<KeeperEvent>) {
        for (slot, server) in &mut self.servers {
            let current = server.sender.borrow().clone();
            adopt_newer(&self.pki, slot, &current, server, events);
            let current = server.sender.borrow().clone();
            let entry = self.pki.book().entry(&current.serial);
            let provisional = entry.is_some_and(|entry| entry.provisional);
            let share = renewal_share(current.serial.as_bytes(), WINDOW.0, WINDOW.1);
            let due = renewal(current.validity, share, provisional, now) == Renewal::Due
                || self.pki.book().is_revoked(&current.serial);
            // The authority ends with or before a fresh one would: renewing gains nothing and would never stop.
            let gains = self.pki.authority().validity().not_after > current.validity.not_after || provisional;
            if due && gains && self.throttle.take(self.clock.now()) {
                match self.pki.renew_server(slot, &server.names) {
                    Ok(identity) => publish(slot, server, identity, events),
                    Err(error) => events.push(failed(&format!("renew the certificate of {slot}"), &error)),
                }
            }
        }
    }

    fn keep_list(&mut self, events: &mut Vec<KeeperEvent>) {
        let result = self.pki.refresh_list().and_then(|_| trust_of(&mut self.pki));
        match result {
            Ok(trust) if trust.list.number != self.trust.borrow().list.number => {
                events.push(KeeperEvent::List { number: trust.list.number });
                self.trust.send_replace(Arc::new(trust));
            }
            Ok(_) => {}
            Err(error) => events.push(failed("renew the revocation list", &error)),
        }
    }

    fn watch_lives(&mut self, now: Reading, events: &mut Vec<KeeperEvent>) {
        for (slot, server) in &mut self.servers {
            let current = server.sender.borrow().clone();
            note(&mut server.alarm, current.validity, now, slot, Some(&current.serial), events);
        }
        note(&mut self.authority_alarm, self.pki.authority().validity(), now, "authority", None, events);
        let book = self.pki.book();
        let watched = |serial: &Serial| !book.is_revoked(serial) && !book.is_replaced(serial);
        self.client_alarms.retain(|serial, tracker| {
            // A clearing for a certificate that was renewed or taken back.
            let gone = !watched(serial);
            if gone && tracker.current() != Alarm::None {
                let subject = book.entry(serial).map(|entry| entry.subject.clone()).unwrap_or_default();
                let change = AlarmChange { from: tracker.current(), to: Alarm::None };
                events.push(KeeperEvent::Alarm { subject, serial: Some(serial.clone()), change });
            }
            !gone
        });
        for entry in book.entries().filter(|entry| entry.purpose != super::Purpose::Server && watched(&entry.serial)) {
            let tracker = self.client_alarms.entry(entry.serial.clone()).or_default();
            note(tracker, entry.validity, now, &entry.subject, Some(&entry.serial), events);
        }
    }

    /// Looks every minute until `stop` is cancelled. Events go to `events`; when nobody takes them they wait, which delays
    /// nothing but the next look.
    pub async fn run(mut self, events: mpsc::Sender<KeeperEvent>, stop: tokio_util::sync::CancellationToken) {
        let mut every = tokio::time::interval(EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = every.tick() => {}
            }
            // Signing takes a millisecond and fsync some more: not on a thread that others wait for.
            let looked = tokio::task::spawn_blocking(move || {
                let events = self.tick();
                (self, events)
            });
            let Ok((keeper, happened)) = looked.await else {
                tracing::error!("the certificate keeper stopped; restart the gateway before its certificates end");
                return;
            };
            self = keeper;
            for event in happened {
                log(&event);
                tokio::select! {
                    () = stop.cancelled() => return,
                    sent = events.send(event) => if sent.is_err() { return },
                }
            }
        }
    }
}

/// The certificate in the slot if it can be used as it is.
fn usable(pki: &Pki, slot: &str, names: &ServerNames) -> Option<ServerIdentity> {
    let identity = match pki.server(slot) {
        Ok(identity) => identity?,
        Err(error) => {
            tracing::warn!(%error, slot, "the listener's certificate cannot be used; a new one is issued");
            return None;
        }
    };
    let entry = pki.book().entry(&identity.serial)?;
    let has_names = names.to_texts().iter().all(|name| entry.names.contains(name));
    let now = pki.now();
    let in_time = !now.firm || identity.validity.contains(now.seconds);
    (has_names && in_time && !pki.book().is_revoked(&identity.serial)).then_some(identity)
}

/// Takes over what `fieldgate certs renew` put into the slot meanwhile.
fn adopt_newer(pki: &Pki, slot: &str, current: &ServerIdentity, server: &Server, events: &mut Vec<KeeperEvent>) {
    match pki.server(slot) {
        Ok(Some(identity)) if identity.serial != current.serial => publish(slot, server, identity, events),
        Ok(_) => {}
        Err(error) => events.push(failed(&format!("read the certificate of {slot}"), &error)),
    }
}

fn publish(slot: &str, server: &Server, identity: ServerIdentity, events: &mut Vec<KeeperEvent>) {
    events.push(KeeperEvent::Renewed { slot: slot.to_owned(), serial: identity.serial.clone() });
    server.sender.send_replace(Arc::new(identity));
}

fn trust_of(pki: &mut Pki) -> Result<Trust, PkiError> {
    Ok(Trust { anchor: pki.authority().certificate().clone(), list: pki.list()? })
}

fn note(
    tracker: &mut AlarmTracker,
    validity: Validity,
    now: Reading,
    subject: &str,
    serial: Option<&Serial>,
    events: &mut Vec<KeeperEvent>,
) {
    if let Some(change) = tracker.observe(validity, now) {
        events.push(KeeperEvent::Alarm { subject: subject.to_owned(), serial: serial.cloned(), change });
    }
}

fn failed(act: &str, error: &PkiError) -> KeeperEvent {
    KeeperEvent::Failed { act: act.to_owned(), reason: error.to_string() }
}

fn log(event: &KeeperEvent) {
    match event {
        KeeperEvent::Renewed { slot, serial } => tracing::info!(slot, %serial, "new server certificate in use"),
        KeeperEvent::List { number } => tracing::info!(number, "new revocation list in force"),
        KeeperEvent::Failed { act, reason } => tracing::warn!(reason, "could not {act}; trying again within a minute"),
        KeeperEvent::Alarm { subject, change, .. } => match change.to {
            Alarm::None => tracing::info!(subject, "certificate is fresh again"),
            Alarm::Half => tracing::info!(subject, "half of the certificate's life is over"),
            Alarm::Fifth => tracing::warn!(subject, "a fifth of the certificate's life is left"),
            Alarm::Twentieth => {
                tracing::error!(subject, "the certificate ends soon: renew it with `fieldgate certs renew`")
            }
            Alarm::Expired => {
                tracing::error!(subject, "the certificate has expired: issue a new one with `fieldgate certs issue`")
            }
        },
    }
}
