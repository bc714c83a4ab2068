//! Reads PEM files and says what is wrong with them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};

/// Why TLS cannot be set up. Every text names the file.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or holds no PEM of the kind.
    #[error("{what} {} cannot be read: {source}", path.display())]
    Read {
        /// What the file should hold.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// The file is readable and holds none of what it should.
    #[error("{} holds no {what} in PEM form", path.display())]
    Empty {
        /// What the file should hold.
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// rustls refuses what was read.
    #[error("{what} {} cannot be used: {reason}", path.display())]
    Unusable {
        /// What the file holds.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The name to verify is neither a DNS name nor an address.
    #[error("{0:?} is no server name: use a DNS name or an IP address")]
    ServerName(String),
    /// Only one of certificate and key is configured.
    #[error("a client certificate needs its key and the other way round; give both or none")]
    HalfPair,
}

/// The one crypto provider of the program.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn all<T: PemObject>(what: &'static str, path: &Path) -> Result<Vec<T>, TlsError> {
    let failed = |source| TlsError::Read { what, path: path.to_owned(), source };
    let items = T::pem_file_iter(path).map_err(failed)?.collect::<Result<Vec<T>, _>>().map_err(failed)?;
    if items.is_empty() {
        return Err(TlsError::Empty { what, path: path.to_owned() });
    }
    Ok(items)
}

pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    all("certificate", path)
}

pub(super) fn revocation_list(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    all("certificate revocation list", path)
}

pub(super) fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let what = "private key";
    if let Some(warning) = exposed_key_warning(path) {
        tracing::warn!("{warning}");
    }
    PrivateKeyDer::from_pem_file(path).map_err(|source| TlsError::Read { what, path: path.to_owned(), source })
}

/// All certificates of a bundle as trust anchors.
pub(super) fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|e| unusable("CA certificate", path, &e))?;
    }
    Ok(roots)
}

pub(super) fn unusable(what: &'static str, path: &Path, reason: &dyn std::fmt::Display) -> TlsError {
    TlsError::Unusable { what, path: path.to_owned(), reason: reason.to_string() }
}

/// A warning when others than the owner and root may read the private key `path`; `None` when all is well or the file
/// cannot be looked at. Reading by the group is allowed: distributions give keys to a group of services.
pub fn exposed_key_warning(path: &Path) -> Option<String> {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(path).ok()?.permissions().mode() & 0o777;
    (mode & 0o007 != 0).then(|| {
        let path = path.display();
        format!("private key {path} can be read by everyone (mode {mode:03o}); run `chmod o-rwx {path}`")
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_that_everyone_reads_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        std::fs::write(&path, "x").unwrap();
        for (mode, reported) in [(0o644, true), (0o640, false), (0o600, false)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(exposed_key_warning(&path).is_some(), reported, "{mode:o}");
        }
    }

    #[test]
    fn errors_name_the_file() {
        let missing = key(Path::new("/nonexistent/key.pem")).unwrap_err();
        assert!(missing.to_string().contains("private key /nonexistent/key.pem"), "{missing}");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        std::fs::write(&path, "no pem").unwrap();
        assert!(matches!(roots(&path), Err(TlsError::Empty { .. })));
    }
}
