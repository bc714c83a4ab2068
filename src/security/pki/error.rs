//! Why something about certificates could not be done.

use std::io;
use std::path::{Path, PathBuf};

use super::inventory::InventoryError;

/// Why an act of the plant's authority failed. [`PkiError::code`] is stable.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// There is no authority yet.
    #[error(
        "no certificate authority in {0}; make one with `fieldgate certs ca --create` or bring one along with `--import`"
    )]
    Missing(PathBuf),
    /// There is one already, and it is never overwritten.
    #[error(
        "{0} already holds a certificate authority; move it away first if every certificate it issued shall become worthless"
    )]
    Exists(PathBuf),
    /// The file system refused.
    #[error("cannot {act} {path}: {source}")]
    Io {
        /// What was tried, as a verb.
        act: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Somebody else may read a private key.
    #[error("{path} can be read by others (mode {mode:o}); run `chmod 600 {path}` and consider the key known")]
    Exposed {
        /// The key's file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A text is not what its label says.
    #[error("{what} is not valid: {reason}")]
    Invalid {
        /// What was read.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A certificate brought along cannot be used as an authority.
    #[error("this certificate cannot be the plant's authority: {0}")]
    NotAnAuthority(String),
    /// The wall clock was never set, so nobody knows from when to when a certificate would be valid.
    #[error("the gateway's clock is not set; issue certificates to devices when it is (NTP, or `date -s`)")]
    ClockNotSet,
    /// The authority itself ends.
    #[error("the certificate authority has expired; create or import a new one")]
    AuthorityExpired,
    /// No such certificate.
    #[error("no certificate with serial {0} was issued here; `fieldgate certs list` shows what was")]
    Unknown(String),
    /// It was taken back.
    #[error("certificate {0} is revoked and cannot be renewed; issue a new one")]
    Revoked(String),
    /// Only the owner of the key can renew this one.
    #[error("certificate {0} belongs to a key that the device keeps; renew it with a new request (CSR)")]
    NeedsRequest(String),
    /// Signing failed inside the cryptographic library.
    #[error("cannot sign {what}: {reason}")]
    Sign {
        /// What was to be signed.
        what: &'static str,
        /// The library's reason.
        reason: String,
    },
    /// Another process works on the same directory.
    #[error("another process has held {0} for five seconds; try again, or see with `fuser` who it is")]
    Busy(PathBuf),
    /// The inventory refused.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
}

impl PkiError {
    /// Stable name of the failure for machines.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Missing(_) => "no-authority",
            Self::Exists(_) => "authority-exists",
            Self::Io { .. } => "io",
            Self::Exposed { .. } => "key-exposed",
            Self::Invalid { .. } => "invalid",
            Self::NotAnAuthority(_) => "not-an-authority",
            Self::ClockNotSet => "clock-not-set",
            Self::AuthorityExpired => "authority-expired",
            Self::Unknown(_) => "unknown-certificate",
            Self::Revoked(_) => "revoked",
            Self::NeedsRequest(_) => "needs-request",
            Self::Sign { .. } => "sign",
            Self::Busy(_) => "busy",
            Self::Inventory(_) => "inventory",
        }
    }

    pub(super) fn io(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { act, path, source }
    }

    pub(super) fn invalid(what: &'static str, reason: impl ToString) -> Self {
        Self::Invalid { what, reason: reason.to_string() }
    }

    pub(super) fn sign(what: &'static str) -> impl FnOnce(rcgen::Error) -> Self {
        move |error| Self::Sign { what, reason: error.to_string() }
    }
}
