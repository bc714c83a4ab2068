//! TLS of our own listeners.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use tokio::sync::watch;

use super::CertificateId;
use super::files::{self, TlsError, unusable};
use super::pki::BelievedTime;
use super::watch::{LOOK_EVERY, follow};

/// Whether clients must show a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClientCertificates {
    /// Asked for and verified if shown; clients without one log in with a password.
    Optional,
    /// No connection without one.
    #[default]
    Required,
}

/// Files of a TLS listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerTlsFiles {
    /// Certificate chain, PEM, the server's own first.
    pub certificate: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
    /// CA bundle that client certificates are verified against; `None` asks for none.
    pub client_ca: Option<PathBuf>,
    /// Whether clients must show a certificate; without meaning when `client_ca` is `None`.
    pub client_certificates: ClientCertificates,
    /// Revocation lists of the client CAs, PEM. With any list, a certificate that no list speaks about is refused.
    pub revocation_lists: Vec<PathBuf>,
}

/// TLS of one listener, renewed while running when a file changes. Clones share it.
#[derive(Debug, Clone)]
pub struct ServerTls {
    files: Arc<ServerTlsFiles>,
    current: watch::Receiver<Arc<Served>>,
}

/// What was made of the files.
#[derive(Debug)]
struct Served {
    config: Arc<ServerConfig>,
    revoked: HashSet<CertificateId>,
}

impl ServerTls {
    /// Reads the files. Inside a tokio runtime they are read again when they change. Certificates of clients are checked
    /// against the time that `time` believes.
    pub fn load(files: ServerTlsFiles, time: &BelievedTime) -> Result<Self, TlsError> {
        Self::load_every(files, time, LOOK_EVERY)
    }

    /// Like [`load`](Self::load), looking at the files every `every`.
    pub fn load_every(files: ServerTlsFiles, time: &BelievedTime, every: Duration) -> Result<Self, TlsError> {
        let files = Arc::new(files);
        let (source, time) = (files.clone(), time.clone());
        let current = follow("TLS listener", files.paths(), every, move || source.build(&time))?;
        Ok(Self { files, current })
    }

    /// The configuration for a new connection.
    pub fn current(&self) -> Arc<ServerConfig> {
        self.current.borrow().config.clone()
    }

    /// Pends until the files were read again.
    pub async fn changed(&mut self) {
        if self.current.changed().await.is_err() {
            // Nobody looks at the files: they stay as they are.
            std::future::pending().await
        }
    }

    /// Whether a revocation list names this certificate.
    pub fn has_revoked(&self, certificate: &CertificateId) -> bool {
        self.current.borrow().revoked.contains(certificate)
    }

    /// Whether clients are asked for a certificate.
    pub fn asks_for_client_certificate(&self) -> bool {
        self.files.client_ca.is_some()
    }

    /// Whether nobody gets in without a certificate.
    pub fn requires_client_certificate(&self) -> bool {
        self.files.client_ca.is_some() && self.files.client_certificates == ClientCertificates::Required
    }
}

impl ServerTlsFiles {
    /// What the plant's authority keeps in `directory` (`<data>/pki`) for the listener `slot`: clients show certificates of
    /// the same authority, and those that it took back are refused.
    pub fn of_plant(directory: &Path, slot: &str, client_certificates: ClientCertificates) -> Self {
        let current = directory.join("server").join(slot).join("current");
        Self {
            certificate: current.join("cert.pem"),
            key: current.join("key.pem"),
            client_ca: Some(directory.join("ca").join("ca.pem")),
            client_certificates,
            revocation_lists: vec![directory.join("crl.pem")],
        }
    }

    fn paths(&self) -> Vec<PathBuf> {
        let mut paths = vec![self.certificate.clone(), self.key.clone()];
        paths.extend(self.client_ca.clone());
        paths.extend(self.revocation_lists.iter().cloned());
        paths
    }

    fn build(&self, time: &BelievedTime) -> Result<Arc<Served>, TlsError> {
        let mut revoked = HashSet::new();
        let builder = ServerConfig::builder_with_details(files::provider(), Arc::new(time.clone()))
            .with_safe_default_protocol_versions()
            .map_err(|e| unusable("certificate", &self.certificate, &e))?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(ca) => {
                let roots = Arc::new(files::roots(ca)?);
                let mut verifier = WebPkiClientVerifier::builder_with_provider(roots, files::provider());
                for list in &self.revocation_lists {
                    let lists = files::revocation_list(list)?;
                    revoked.extend(lists.iter().flat_map(CertificateId::of_list));
                    verifier = verifier.with_crls(lists);
                }
                if self.client_certificates == ClientCertificates::Optional {
                    verifier = verifier.allow_unauthenticated();
                }
                builder.with_client_cert_verifier(verifier.build().map_err(|e| unusable("CA bundle", ca, &e))?)
            }
        };
        let chain = files::certificates(&self.certificate)?;
        let config = builder
            .with_single_cert(chain, files::key(&self.key)?)
            .map_err(|e| unusable("certificate and its key", &self.certificate, &e))?;
        Ok(Arc::new(Served { config: Arc::new(config), revoked }))
    }
}
