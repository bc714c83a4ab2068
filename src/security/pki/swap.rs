//! A listener's certificate on disk and in memory, swapped while running.
//!
//! Certificate and key change together or not at all: both are written into a directory of their own, named after the
//! serial, and then the link `current` is renamed onto it. In memory the pair travels through a `watch`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;

use super::authority::{parse, validity_of};
use super::inventory::Serial;
use super::life::Validity;
use super::{PkiError, PrivateKeyPem, pem};
use crate::platform::durable::{Access, Disk};

/// A listener's certificate chain with its key. Prints no key.
pub struct ServerIdentity {
    /// The leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its private key.
    pub key: PrivateKeyDer<'static>,
    /// Serial number of the leaf.
    pub serial: Serial,
    /// From when to when the leaf is valid.
    pub validity: Validity,
}

impl fmt::Debug for ServerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerIdentity")
            .field("serial", &self.serial)
            .field("validity", &self.validity)
            .finish_non_exhaustive()
    }
}

impl ServerIdentity {
    /// Reads chain and key in PEM and checks that they belong together.
    ///
    /// # Errors
    /// When one cannot be read or they do not match.
    pub fn from_pem(chain_pem: &str, key_pem: &str) -> Result<Self, PkiError> {
        let chain = pem::certificates(chain_pem)?;
        let key = pem::private_key(key_pem)?;
        let leaf = parse(&chain[0])?;
        let (serial, validity) = (Serial::from_bytes(leaf.raw_serial()), validity_of(&leaf));
        let identity = Self { chain, key, serial, validity };
        let unusable =
            |_| PkiError::invalid("private key", "its kind cannot be used; take ECDSA P-256 or P-384, Ed25519 or RSA");
        let mismatch = |error: rustls::Error| PkiError::invalid("certificate and key", error);
        identity.certified_key().map_err(unusable)?.keys_match().map_err(mismatch)?;
        Ok(identity)
    }

    /// The pair as a TLS server uses it.
    ///
    /// # Errors
    /// When the key is of a kind that the TLS library does not know.
    pub fn certified_key(&self) -> Result<CertifiedKey, rustls::Error> {
        let key = rustls::crypto::ring::sign::any_supported_type(&self.key)?;
        Ok(CertifiedKey::new(self.chain.clone(), key))
    }
}

/// Gives every new TLS connection the newest certificate. Connections that exist keep theirs.
pub struct SwappedCertificate {
    identities: watch::Receiver<Arc<ServerIdentity>>,
    current: std::sync::Mutex<(Serial, Arc<CertifiedKey>)>,
}

impl fmt::Debug for SwappedCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SwappedCertificate").field("serial", &self.identities.borrow().serial).finish_non_exhaustive()
    }
}

impl SwappedCertificate {
    /// Follows `identities`.
    ///
    /// # Errors
    /// When the first identity has a key that the TLS library does not know.
    pub fn new(identities: watch::Receiver<Arc<ServerIdentity>>) -> Result<Self, rustls::Error> {
        let first = identities.borrow().clone();
        let current = std::sync::Mutex::new((first.serial.clone(), Arc::new(first.certified_key()?)));
        Ok(Self { identities, current })
    }

    /// The newest certificate.
    pub fn newest(&self) -> Arc<CertifiedKey> {
        let identity = self.identities.borrow().clone();
        let mut current = self.current.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if current.0 != identity.serial {
            match identity.certified_key() {
                Ok(key) => *current = (identity.serial.clone(), Arc::new(key)),
                Err(error) => {
                    tracing::error!(%error, serial = %identity.serial, "new server certificate is unusable; the old one stays")
                }
            }
        }
        current.1.clone()
    }
}

impl ResolvesServerCert for SwappedCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.newest())
    }
}

/// The directory of one listener's certificates.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    directory: PathBuf,
    disk: Disk,
}

impl Slot {
    pub(super) fn new(directory: PathBuf, disk: Disk) -> Self {
        Self { directory, disk }
    }

    /// The newest pair, `None` when there is none yet.
    pub(super) fn load(&self) -> Result<Option<ServerIdentity>, PkiError> {
        // Resolve the link once: a swap between the two reads must not mix two pairs.
        let Ok(current) = std::fs::read_link(self.directory.join("current")) else { return Ok(None) };
        let current = self.directory.join(current);
        let chain = pem::read(&current.join("cert.pem"))?;
        let key = pem::read_private(&current.join("key.pem"))?;
        ServerIdentity::from_pem(&chain, &key).map(Some)
    }

    /// Writes a new pair and swaps the link; the pair before stays as the fallback, older ones are removed.
    pub(super) fn store(&self, serial: &Serial, chain: &str, key: &PrivateKeyPem) -> Result<(), PkiError> {
        let directory = self.directory.join(serial.to_string());
        let write = |path: &Path, text: &str, access| {
            self.disk.replace(path, text.as_bytes(), access).map_err(PkiError::io("write", path))
        };
        self.disk.create_directory(&directory, Access::Private).map_err(PkiError::io("create", &directory))?;
        write(&directory.join("key.pem"), key.expose(), Access::Private)?;
        write(&directory.join("cert.pem"), chain, Access::Public)?;
        let link = self.directory.join("current");
        let before = std::fs::read_link(&link).ok();
        self.disk.link(Path::new(&serial.to_string()), &link).map_err(PkiError::io("link", &link))?;
        self.remove_older(&serial.to_string(), before.as_deref());
        Ok(())
    }

    fn remove_older(&self, newest: &str, before: Option<&Path>) {
        let Ok(entries) = std::fs::read_dir(&self.directory) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let keep = name == "current" || name == newest || before.is_some_and(|before| before.as_os_str() == name);
            if !keep && let Err(error) = std::fs::remove_dir_all(entry.path()) {
                tracing::debug!(%error, path = %entry.path().display(), "an old server certificate was not removed");
            }
        }
    }
}
