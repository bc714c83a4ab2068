//! Keeps an identity of the gateway: enrols it, renews it, and tells who must know.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::super::alarm::{AlarmChange, AlarmTracker};
use super::super::authority::parse;
use super::super::request::{key_fingerprint, make_request};
use super::super::swap::{ServerIdentity, Slot};
use super::super::time::BelievedTime;
use super::super::{CertificateRequest, PkiError, PrivateKeyPem, Serial, pem};
use super::client::{EstClient, EstError, Granted};
use super::schedule::{Next, Schedule};
use crate::platform::clock::SharedClock;
use crate::platform::durable::{Access, Disk};

/// How to enrol.
#[derive(Clone)]
pub struct EstConfig {
    /// `https://host[:port][/label]`.
    pub url: String,
    /// PEM of the anchors that vouch for the server.
    pub anchors_pem: String,
    /// User and token for the first enrolment (HTTP Basic). The token is a secret.
    pub token: Option<(String, String)>,
    /// Common name to ask for.
    pub common_name: String,
    /// URI to ask for, as an SVID has one.
    pub uri: Option<String>,
    /// Where key and certificate are kept.
    pub directory: PathBuf,
    /// The disk; tests look over its shoulder.
    pub disk: Disk,
}

impl std::fmt::Debug for EstConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let user = self.token.as_ref().map(|(user, _)| user);
        f.debug_struct("EstConfig")
            .field("url", &self.url)
            .field("user", &user)
            .field("token", &"…")
            .finish_non_exhaustive()
    }
}

/// Something that happened to the gateway's own identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EstEvent {
    /// A certificate is in use.
    Granted {
        /// Its serial.
        serial: Serial,
        /// Whether it replaces an older one.
        renewed: bool,
    },
    /// The server has not decided; the same request is repeated after this long.
    Pending(Duration),
    /// A request failed; it is repeated after this long.
    Failed {
        /// Stable name of the reason ([`EstError::code`]).
        code: &'static str,
        /// For people.
        reason: String,
        /// Pause before the next attempt.
        retry_in: Duration,
    },
    /// The certificate came nearer to its end, or away from it.
    Alarm(AlarmChange),
}

/// The identity in use; `None` until the first is granted.
pub type OwnIdentity = watch::Receiver<Option<Arc<ServerIdentity>>>;

/// The task that enrols and renews.
pub struct EstKeeper {
    config: EstConfig,
    slot: Slot,
    anchors: Vec<CertificateDer<'static>>,
    schedule: Schedule,
    time: BelievedTime,
    clock: SharedClock,
    identity: watch::Sender<Option<Arc<ServerIdentity>>>,
    alarm: AlarmTracker,
}

impl std::fmt::Debug for EstKeeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EstKeeper").field("config", &self.config).finish_non_exhaustive()
    }
}

impl EstKeeper {
    /// Reads what is on disk. The receiver holds the identity in use, `None` until the first is granted.
    ///
    /// # Errors
    /// When the anchors or the files cannot be read.
    pub fn new(config: EstConfig, time: BelievedTime, clock: SharedClock) -> Result<(Self, OwnIdentity), PkiError> {
        let anchors = pem::certificates(&config.anchors_pem)?;
        let directory = &config.directory;
        config.disk.create_directory(directory, Access::Private).map_err(PkiError::io("create", directory))?;
        config.disk.remove_unfinished(directory).map_err(PkiError::io("tidy", directory))?;
        let slot = Slot::new(directory.clone(), config.disk.clone());
        let (identity, receiver) = watch::channel(slot.load()?.map(Arc::new));
        let (schedule, alarm) = (Schedule::default(), AlarmTracker::default());
        Ok((Self { config, slot, anchors, schedule, time, clock, identity, alarm }, receiver))
    }

    /// Does the next thing and says what happened and how long there is nothing to do.
    pub async fn step(&mut self) -> (Vec<EstEvent>, Duration) {
        let mut events = Vec::new();
        let current = self.identity.borrow().clone();
        if let Some(current) = &current
            && let Some(change) = self.alarm.observe(current.validity, self.time.reading())
        {
            events.push(EstEvent::Alarm(change));
        }
        let known = current.as_ref().map(|identity| (identity.serial.as_bytes(), identity.validity));
        let result = match self.schedule.next(known, self.time.reading(), self.clock.now()) {
            Next::Wait(pause) => return (events, pause),
            Next::Authorities => match self.fetch_authorities().await {
                Err(error) if self.authorities_path().exists() => {
                    tracing::warn!(%error, "the EST server's authorities were not refreshed; those known stay in use");
                    self.schedule.authorities_kept(self.clock.now());
                    Ok(None)
                }
                fetched => fetched.map(|()| None),
            },
            Next::Enrol => self.request(None).await.map(Some),
            Next::Renew => self.request(current.as_deref()).await.map(Some),
        };
        let pause = match result {
            Ok(None) => Duration::ZERO,
            Ok(Some(serial)) => {
                self.schedule.succeeded();
                events.push(EstEvent::Granted { serial, renewed: current.is_some() });
                Duration::ZERO
            }
            Err(error) => {
                let pause = self.schedule.failed(error.failure(), self.clock.now(), rand::random());
                events.push(match error {
                    EstError::Pending(_) => EstEvent::Pending(pause),
                    error => EstEvent::Failed { code: error.code(), reason: error.to_string(), retry_in: pause },
                });
                pause
            }
        };
        (events, pause)
    }

    /// Steps until `stop` is cancelled. Events wait when nobody takes them, which delays nothing but the next step.
    pub async fn run(mut self, events: mpsc::Sender<EstEvent>, stop: CancellationToken) {
        loop {
            let (happened, pause) = tokio::select! {
                () = stop.cancelled() => return,
                stepped = self.step() => stepped,
            };
            for event in happened {
                log(&event);
                tokio::select! {
                    () = stop.cancelled() => return,
                    sent = events.send(event) => if sent.is_err() { return },
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn client(&self, identity: Option<&ServerIdentity>) -> Result<EstClient, EstError> {
        // The server's own roots may be newer than what the user configured years ago; they came over a verified session.
        let mut anchors = self.anchors.clone();
        anchors.extend(self.authorities()?.into_iter().filter(is_root));
        EstClient::new(&self.config.url, &anchors, identity, &self.time)
    }

    async fn fetch_authorities(&mut self) -> Result<(), EstError> {
        let granted = self.client(None)?.authorities().await?;
        if let Some(stranger) = granted.iter().position(|certificate| !is_authority(certificate)) {
            return Err(EstError::Unusable(format!("certificate {stranger} of /cacerts is not an authority")));
        }
        let path = self.authorities_path();
        let text = pem::encode_chain(&granted);
        self.config.disk.replace(&path, text.as_bytes(), Access::Public).map_err(PkiError::io("write", &path))?;
        self.schedule.authorities_fetched(self.clock.now());
        Ok(())
    }

    fn authorities_path(&self) -> PathBuf {
        self.config.directory.join("cacerts.pem")
    }

    fn authorities(&self) -> Result<Vec<CertificateDer<'static>>, EstError> {
        let path = self.authorities_path();
        if path.exists() { Ok(pem::certificates(&pem::read(&path)?)?) } else { Ok(Vec::new()) }
    }

    /// Enrols, or renews as `identity`.
    async fn request(&mut self, identity: Option<&ServerIdentity>) -> Result<Serial, EstError> {
        let (request, key) = self.pending()?;
        let client = self.client(identity)?;
        let granted = match identity {
            Some(_) => client.renew(&request).await?,
            None => {
                let token = self.config.token.as_ref().map(|(user, token)| (user.as_str(), token.as_str()));
                client.enrol(&request, token).await?
            }
        };
        self.take(granted, &request, &key)
    }

    /// The open request and its key; made and made durable if there is none.
    fn pending(&self) -> Result<(Vec<u8>, PrivateKeyPem), PkiError> {
        let (key_path, request_path) = self.pending_paths();
        if let (Ok(key), Ok(request)) = (pem::read_private(&key_path), pem::read(&request_path)) {
            use rustls::pki_types::CertificateSigningRequestDer;
            use rustls::pki_types::pem::PemObject;
            if let Ok(request) = CertificateSigningRequestDer::from_pem_slice(request.as_bytes())
                && self.is_open(&request)
            {
                return Ok((request.to_vec(), PrivateKeyPem::new(key)));
            }
        }
        let (request, key) = make_request(&self.config.common_name, self.config.uri.as_deref())?;
        let text = pem::encode("CERTIFICATE REQUEST", &request);
        let disk = &self.config.disk;
        disk.remove(&request_path).map_err(PkiError::io("remove", &request_path))?;
        disk.replace(&key_path, key.expose().as_bytes(), Access::Private).map_err(PkiError::io("write", &key_path))?;
        disk.replace(&request_path, text.as_bytes(), Access::Public).map_err(PkiError::io("write", &request_path))?;
        Ok((request.to_vec(), key))
    }

    /// Whether a request on disk is still to be asked: not if it was granted just before a crash, nor if it asks for a name
    /// that the configuration no longer gives.
    fn is_open(&self, request: &[u8]) -> bool {
        let Ok(request) = CertificateRequest::from_der(request) else { return false };
        let in_use = self.identity.borrow().as_ref().and_then(|identity| key_of(&identity.chain[0]));
        request.wished_name.as_deref() == Some(self.config.common_name.as_str())
            && request.wished_uris.iter().map(String::as_str).eq(self.config.uri.as_deref())
            && in_use != Some(request.key)
    }

    fn pending_paths(&self) -> (PathBuf, PathBuf) {
        (self.config.directory.join("pending.key"), self.config.directory.join("pending.csr"))
    }

    /// Checks what was granted and puts it in its place.
    fn take(&mut self, granted: Granted, request: &[u8], key: &PrivateKeyPem) -> Result<Serial, EstError> {
        let ours = CertificateRequest::from_der(request)?.key;
        let chain = order(granted, &ours)?;
        self.believe(&chain)?;
        let text = pem::encode_chain(&chain);
        let identity = ServerIdentity::from_pem(&text, key.expose())?;
        let serial = identity.serial.clone();
        self.slot.store(&serial, &text, key)?;
        let (key_path, request_path) = self.pending_paths();
        self.config.disk.remove(&request_path).map_err(PkiError::io("remove", &request_path))?;
        self.config.disk.remove(&key_path).map_err(PkiError::io("remove", &key_path))?;
        self.identity.send_replace(Some(Arc::new(identity)));
        Ok(serial)
    }

    /// The chain must lead to the server's authorities, now.
    fn believe(&self, chain: &[CertificateDer<'static>]) -> Result<(), EstError> {
        let unusable = |error: &dyn std::fmt::Display| EstError::Unusable(error.to_string());
        let mut roots = RootCertStore::empty();
        for authority in self.authorities()? {
            roots.add(authority).map_err(|error| unusable(&error))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        let verifier = verifier.build().map_err(|error| unusable(&error))?;
        let seconds = self.time.reading().seconds.max(0).unsigned_abs();
        let now = rustls::pki_types::UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        verifier.verify_client_cert(&chain[0], &chain[1..], now).map_err(|error| unusable(&error))?;
        if is_authority(&chain[0]) { Err(unusable(&"it is an authority itself")) } else { Ok(()) }
    }
}

/// Our certificate first, whatever the server's order was.
fn order(granted: Granted, ours: &str) -> Result<Granted, EstError> {
    let is_ours = |certificate: &CertificateDer<'_>| key_of(certificate).as_deref() == Some(ours);
    let (mut chain, others): (Granted, Granted) = granted.into_iter().partition(is_ours);
    if chain.len() != 1 {
        return Err(EstError::Unusable("it is not for the key that this gateway asked for".to_owned()));
    }
    chain.extend(others);
    Ok(chain)
}

fn key_of(certificate: &CertificateDer<'_>) -> Option<String> {
    parse(certificate).ok().map(|parsed| key_fingerprint(parsed.public_key().raw))
}

fn is_authority(certificate: &CertificateDer<'_>) -> bool {
    parse(certificate).is_ok_and(|parsed| parsed.is_ca())
}

fn is_root(certificate: &CertificateDer<'_>) -> bool {
    parse(certificate).is_ok_and(|parsed| parsed.subject().as_raw() == parsed.issuer().as_raw())
}

fn log(event: &EstEvent) {
    match event {
        EstEvent::Granted { serial, renewed: true } => tracing::info!(%serial, "the gateway's certificate was renewed"),
        EstEvent::Granted { serial, .. } => tracing::info!(%serial, "the gateway was enrolled"),
        EstEvent::Pending(pause) => tracing::info!(?pause, "the EST server has not decided yet"),
        EstEvent::Failed { code: "refused" | "wrong-server" | "unusable", reason, retry_in } => {
            tracing::error!(?retry_in, "enrolment: {reason}");
        }
        EstEvent::Failed { reason, retry_in, .. } => tracing::warn!(?retry_in, "enrolment: {reason}"),
        EstEvent::Alarm(change) => tracing::warn!(remaining = change.to.as_str(), "life of the gateway's certificate"),
    }
}
