//! TLS of our own listeners.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use tokio::sync::watch;

use super::files::{self, TlsError, unusable};
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
    current: watch::Receiver<Arc<ServerConfig>>,
}

impl ServerTls {
    /// Reads the files. Inside a tokio runtime they are read again when they change.
    pub fn load(files: ServerTlsFiles) -> Result<Self, TlsError> {
        Self::load_every(files, LOOK_EVERY)
    }

    /// Like [`load`](Self::load), looking at the files every `every`.
    pub fn load_every(files: ServerTlsFiles, every: Duration) -> Result<Self, TlsError> {
        let files = Arc::new(files);
        let source = files.clone();
        let current = follow("TLS listener", files.paths(), every, move || source.build())?;
        Ok(Self { files, current })
    }

    /// The configuration for a new connection.
    pub fn current(&self) -> Arc<ServerConfig> {
        self.current.borrow().clone()
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
    fn paths(&self) -> Vec<PathBuf> {
        let mut paths = vec![self.certificate.clone(), self.key.clone()];
        paths.extend(self.client_ca.clone());
        paths.extend(self.revocation_lists.iter().cloned());
        paths
    }

    fn build(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let builder = ServerConfig::builder_with_provider(files::provider())
            .with_safe_default_protocol_versions()
            .map_err(|e| unusable("certificate", &self.certificate, &e))?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(ca) => {
                let roots = Arc::new(files::roots(ca)?);
                let mut verifier = WebPkiClientVerifier::builder_with_provider(roots, files::provider());
                for list in &self.revocation_lists {
                    verifier = verifier.with_crls(files::revocation_list(list)?);
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
        Ok(Arc::new(config))
    }
}
