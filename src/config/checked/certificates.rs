//! Certificates: of listeners, of the plant's authority, of the gateway itself.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::Secret;

/// TLS of a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerTls {
    /// Whose certificates.
    pub certificates: Certificates,
    /// Refuse clients without a certificate.
    pub require_client_cert: bool,
}

/// Where the certificates of a listener come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Certificates {
    /// The plant's authority issues and renews the listener's, and its clients' are accepted.
    Plant,
    /// Files that somebody else renews.
    Files {
        /// Certificate chain, PEM.
        cert: PathBuf,
        /// Private key, PEM.
        key: PathBuf,
        /// Authorities whose client certificates are accepted, PEM.
        client_ca: Option<PathBuf>,
        /// Revoked client certificates, PEM.
        crl: Option<PathBuf>,
    },
}

impl ServerTls {
    /// Whether clients may show certificates.
    pub fn takes_client_certificates(&self) -> bool {
        !matches!(&self.certificates, Certificates::Files { client_ca: None, .. })
    }
}

/// `[pki]`: the plant's certificate authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pki {
    /// Name of an authority that is made here.
    pub name: String,
    /// Make one at the start when a listener needs it and there is none.
    pub create: bool,
    /// More names and addresses in the listeners' certificates.
    pub names: Vec<String>,
    /// Life of listeners' certificates, 1 d to 3,650 d.
    pub server_life: Duration,
    /// Life of certificates of devices and users, 1 d to 3,650 d.
    pub client_life: Duration,
}

/// `[est]`, `[margo.identity.est]`: where the gateway enrols itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Est {
    /// `https://host[:port][/label]`
    pub url: String,
    /// Authorities that vouch for the server, PEM.
    pub anchors: PathBuf,
    /// User of the first enrolment.
    pub user: Option<String>,
    /// Its token.
    pub token: Option<Secret>,
    /// Common name to ask for.
    pub common_name: String,
    /// URI to ask for.
    pub uri: Option<String>,
}
