//! Our own SVID: chain and key from files, checked as the fleet manager will check them.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::bundle::TrustBundle;
use super::spiffe::{ClientName, SpiffeError};
use super::svid::{Side, SvidError, check, shape};
use crate::security::pki::{PkiError, ServerIdentity, Validity};

/// Why our own SVID cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OwnError {
    /// A file cannot be read, or certificate and key do not belong together.
    #[error("our own SVID: {0}")]
    Files(#[from] PkiError),
    /// A file cannot be read.
    #[error("our own SVID: cannot read {path}: {reason}")]
    Read {
        /// Which file.
        path: String,
        /// Why not.
        reason: String,
    },
    /// It breaks a rule.
    #[error("our own SVID: {0}")]
    Svid(#[from] SvidError),
    /// It is not that of a client.
    #[error("our own SVID: {0}")]
    Name(#[from] SpiffeError),
}

/// Our own SVID with its key. Prints no key.
pub struct OwnSvid {
    name: ClientName,
    identity: ServerIdentity,
}

impl fmt::Debug for OwnSvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnSvid")
            .field("name", &self.name.id())
            .field("validity", &self.validity())
            .finish_non_exhaustive()
    }
}

impl OwnSvid {
    /// Reads chain and key in PEM. Whether it is valid now and anchored is [`OwnSvid::complaint`]'s to say: an SVID that
    /// our bundle does not know may be known to the fleet manager.
    ///
    /// # Errors
    /// [`OwnError`].
    pub fn from_pem(chain: &str, key: &str) -> Result<Self, OwnError> {
        let identity = ServerIdentity::from_pem(chain, key)?;
        let name = ClientName::of(shape(&identity.chain)?)?;
        Ok(Self { name, identity })
    }

    /// Reads the two files.
    ///
    /// # Errors
    /// [`OwnError`].
    pub fn load(chain: &Path, key: &Path) -> Result<Self, OwnError> {
        let read = |path: &Path| {
            std::fs::read_to_string(path)
                .map_err(|error| OwnError::Read { path: path.display().to_string(), reason: error.to_string() })
        };
        if let Some(warning) = crate::security::exposed_key_warning(key) {
            tracing::warn!("{warning}");
        }
        Self::from_pem(&read(chain)?, &read(key)?)
    }

    /// Who we are, and thereby who the fleet manager is.
    pub fn name(&self) -> &ClientName {
        &self.name
    }

    /// The leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.identity.chain
    }

    /// The private key.
    pub fn key(&self) -> PrivateKeyDer<'static> {
        self.identity.key.clone_key()
    }

    /// From when to when the leaf is valid.
    pub fn validity(&self) -> Validity {
        self.identity.validity
    }

    /// Serial number, for people.
    pub fn serial(&self) -> String {
        self.identity.serial.to_string()
    }

    /// What the fleet manager would complain about at `now` (Unix seconds), if it has the same bundle.
    pub fn complaint(&self, bundle: &TrustBundle, now: i64) -> Option<SvidError> {
        let (found, domains) = (self.name.id().trust_domain(), bundle.domains());
        if !domains.is_empty() && !domains.contains(found) {
            let bundle = domains.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
            return Some(SvidError::OtherBundle { found: found.to_owned(), bundle });
        }
        check(self.chain(), bundle, found, now, Side::Client).err()
    }
}

/// The longest life of a connection made at `now` (Unix seconds): what the configuration allows, a tenth of our SVID's
/// life, and what is left of it. At least a second, so that an expired SVID fails in the handshake and not in a loop.
pub fn connection_cap(validity: Validity, now: i64, configured: Duration) -> Duration {
    let tenth = Duration::from_secs((validity.life() / 10).unsigned_abs());
    let left = Duration::from_secs(validity.not_after.saturating_sub(now).max(1).unsigned_abs());
    configured.min(tenth).min(left).max(Duration::from_secs(1))
}
