//! PEM: reading and writing, and a private key that does not print itself.

use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::PkiError;

/// Longest PEM file that is read: a chain of a dozen certificates is a tenth of it.
pub(super) const MAX_PEM: u64 = 256 * 1024;

/// A private key as PKCS#8 PEM. Prints as `"…"`.
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateKeyPem(String);

impl PrivateKeyPem {
    pub(super) fn new(pem: String) -> Self {
        Self(pem)
    }

    /// The text itself, for the one place that writes it to its owner's file.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for PrivateKeyPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"…\"")
    }
}

/// One block of PEM (RFC 7468) with lines of 64 characters.
pub(super) fn encode(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.extend(line.iter().map(|&byte| char::from(byte)));
        pem.push('\n');
    }
    pem.push_str(&format!("-----END {label}-----\n"));
    pem
}

/// Certificates as PEM, in their order.
pub(super) fn encode_chain(chain: &[CertificateDer<'_>]) -> String {
    chain.iter().map(|certificate| encode("CERTIFICATE", certificate)).collect()
}

/// All certificates of a PEM text, at least one.
pub(super) fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| PkiError::invalid("certificate PEM", error))?;
    if chain.is_empty() {
        return Err(PkiError::invalid("certificate PEM", "there is no CERTIFICATE block in it"));
    }
    Ok(chain)
}

/// The private key of a PEM text; PKCS#8 only, because that is what can be stored and moved everywhere.
pub(super) fn private_key(pem: &str) -> Result<PrivateKeyDer<'static>, PkiError> {
    match PrivateKeyDer::from_pem_slice(pem.as_bytes()) {
        Ok(key @ PrivateKeyDer::Pkcs8(_)) => Ok(key),
        Ok(_) => Err(PkiError::invalid(
            "private key",
            "it is not PKCS#8; convert it with `openssl pkcs8 -topk8 -nocrypt -in old.key -out new.key`",
        )),
        Err(error) => {
            Err(PkiError::invalid("private key", format!("{error}; an encrypted key must be decrypted first")))
        }
    }
}

/// Reads a PEM file of at most [`MAX_PEM`] bytes.
pub(super) fn read(path: &Path) -> Result<String, PkiError> {
    let length = std::fs::metadata(path).map_err(PkiError::io("read", path))?.len();
    if length > MAX_PEM {
        return Err(PkiError::invalid("PEM file", format!("{} has {length} bytes", path.display())));
    }
    std::fs::read_to_string(path).map_err(PkiError::io("read", path))
}

/// Reads a private key's file and refuses one that others may read.
pub(super) fn read_private(path: &Path) -> Result<String, PkiError> {
    let mode = std::fs::metadata(path).map_err(PkiError::io("read", path))?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(PkiError::Exposed { path: path.to_owned(), mode });
    }
    read(path)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_private_key_does_not_print_itself() {
        assert_eq!(format!("{:?}", PrivateKeyPem::new("MARKED-SECRET".to_owned())), "\"…\"");
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_read_back(der in proptest::collection::vec(any::<u8>(), 1..400)) {
            let read = certificates(&encode("CERTIFICATE", &der)).unwrap();
            prop_assert_eq!(read[0].as_ref(), &der[..]);
        }

        #[test]
        fn any_text_is_refused_or_read_but_never_panics(text in ".{0,400}") {
            let _ = certificates(&text);
            let _ = private_key(&text);
        }
    }
}
