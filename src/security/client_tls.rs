//! TLS towards servers: uplink brokers, a fleet manager.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::sync::watch;

use super::files::{self, TlsError, unusable};
use super::pki::BelievedTime;
use super::watch::{LOOK_EVERY, follow};

/// Files of a TLS client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientTlsFiles {
    /// CA bundle that the server is verified against, PEM. Debian's system bundle is
    /// `/etc/ssl/certs/ca-certificates.crt`.
    pub ca: PathBuf,
    /// Certificate chain of this client, PEM, its own first; with `key` or not at all. While neither file is there, as
    /// before an enrolment, connections show no certificate.
    pub certificate: Option<PathBuf>,
    /// Private key of this client, PEM.
    pub key: Option<PathBuf>,
    /// Name that the server's certificate must carry; `None` takes the host that is connected to.
    pub server_name: Option<String>,
}

/// TLS towards one server, renewed while running when a file changes. Clones share it.
#[derive(Debug, Clone)]
pub struct ClientTls {
    server_name: Option<ServerName<'static>>,
    current: watch::Receiver<Arc<ClientConfig>>,
}

impl ClientTls {
    /// Reads the files. Inside a tokio runtime they are read again when they change. The server's certificate is checked
    /// against the time that `time` believes.
    pub fn load(files: ClientTlsFiles, time: &BelievedTime) -> Result<Self, TlsError> {
        Self::load_every(files, time, LOOK_EVERY)
    }

    /// Like [`load`](Self::load), looking at the files every `every`.
    pub fn load_every(files: ClientTlsFiles, time: &BelievedTime, every: Duration) -> Result<Self, TlsError> {
        if files.certificate.is_some() != files.key.is_some() {
            return Err(TlsError::HalfPair);
        }
        let server_name = files.server_name.as_deref().map(parse_name).transpose()?;
        let time = time.clone();
        let current = follow("TLS client", files.paths(), every, move || files.build(&time))?;
        Ok(Self { server_name, current })
    }

    /// The configuration for a new connection.
    pub fn current(&self) -> Arc<ClientConfig> {
        self.current.borrow().clone()
    }

    /// The name to verify when connecting to `host`.
    pub fn name_for(&self, host: &str) -> Result<ServerName<'static>, TlsError> {
        self.server_name.clone().map_or_else(|| parse_name(host), Ok)
    }

    /// The name set in the configuration to verify instead of the host.
    pub fn server_name(&self) -> Option<&ServerName<'static>> {
        self.server_name.as_ref()
    }

    /// Tells when a new configuration is in force; a long connection can then reconnect at a good moment.
    pub fn changes(&self) -> watch::Receiver<Arc<ClientConfig>> {
        self.current.clone()
    }
}

fn parse_name(name: &str) -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(name.to_owned()).map_err(|_| TlsError::ServerName(name.to_owned()))
}

impl ClientTlsFiles {
    fn paths(&self) -> Vec<PathBuf> {
        [Some(&self.ca), self.certificate.as_ref(), self.key.as_ref()].into_iter().flatten().cloned().collect()
    }

    fn build(&self, time: &BelievedTime) -> Result<Arc<ClientConfig>, TlsError> {
        let builder = ClientConfig::builder_with_details(files::provider(), Arc::new(time.clone()))
            .with_safe_default_protocol_versions()
            .map_err(|e| unusable("CA bundle", &self.ca, &e))?
            .with_root_certificates(files::roots(&self.ca)?);
        let config = match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) if certificate.exists() || key.exists() => builder
                .with_client_auth_cert(files::certificates(certificate)?, files::key(key)?)
                .map_err(|e| unusable("certificate and its key", certificate, &e))?,
            _ => builder.with_no_client_auth(),
        };
        Ok(Arc::new(config))
    }
}
