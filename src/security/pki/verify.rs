//! Who a presented certificate is, if it may be believed.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{CertificateError, RootCertStore};
use x509_parser::extensions::GeneralName;

use super::authority::{parse, validity_of};
use super::inventory::Serial;
use super::life::Validity;
use super::request::{ClientSubject, key_fingerprint};

/// Who presented a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The device or user.
    pub subject: ClientSubject,
    /// Serial number of the certificate.
    pub serial: Serial,
    /// SHA-256 of its public key (SubjectPublicKeyInfo), lowercase hex: what is pinned at approval.
    pub key: String,
    /// From when to when it is valid.
    pub validity: Validity,
}

/// Why a presented certificate is not believed. [`VerifyError::code`] is stable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// None was presented, or it cannot be read.
    #[error("the certificate cannot be read: {0}")]
    Malformed(String),
    /// Its end has passed.
    #[error("the certificate has expired")]
    Expired,
    /// Its start lies ahead.
    #[error("the certificate is not valid yet; compare the clocks")]
    NotYet,
    /// It was taken back.
    #[error("the certificate is revoked")]
    Revoked,
    /// Somebody else signed it.
    #[error("the certificate was not issued by this plant's authority")]
    Untrusted,
    /// It is for something else, such as a server.
    #[error("the certificate is not for clients")]
    WrongPurpose,
    /// It is good but names nobody.
    #[error(
        "the certificate names neither one device nor one user (URI urn:fieldgate:device:… or urn:fieldgate:user:…)"
    )]
    NoIdentity,
    /// The trust itself is unusable.
    #[error("the trust anchors or the revocation list cannot be used: {0}")]
    Trust(String),
}

impl VerifyError {
    /// Stable name of the failure for machines.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::Expired => "expired",
            Self::NotYet => "not-yet-valid",
            Self::Revoked => "revoked",
            Self::Untrusted => "untrusted",
            Self::WrongPurpose => "wrong-purpose",
            Self::NoIdentity => "no-identity",
            Self::Trust(_) => "trust",
        }
    }
}

/// Checks a presented chain (the leaf first) against `anchor` and the revocation list at `now` (Unix seconds): the same
/// check that the TLS listeners make.
///
/// # Errors
/// Why it is not believed.
pub fn verify_client(
    chain: &[CertificateDer<'_>],
    anchor: &CertificateDer<'static>,
    list: Option<&CertificateRevocationListDer<'static>>,
    now: i64,
) -> Result<Identity, VerifyError> {
    let Some((leaf, intermediates)) = chain.split_first() else {
        return Err(VerifyError::Malformed("there is none".to_owned()));
    };
    let trust = |error: &dyn std::fmt::Display| VerifyError::Trust(error.to_string());
    let mut roots = RootCertStore::empty();
    roots.add(anchor.clone()).map_err(|error| trust(&error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .with_crls(list.cloned())
        .only_check_end_entity_revocation()
        .build()
        .map_err(|error| trust(&error))?;
    let time = UnixTime::since_unix_epoch(Duration::from_secs(now.max(0).unsigned_abs()));
    verifier.verify_client_cert(leaf, intermediates, time).map_err(explain)?;
    identity(leaf)
}

fn explain(error: rustls::Error) -> VerifyError {
    use CertificateError as C;
    let rustls::Error::InvalidCertificate(reason) = error else { return VerifyError::Malformed(error.to_string()) };
    match reason {
        C::Expired | C::ExpiredContext { .. } => VerifyError::Expired,
        C::NotValidYet | C::NotValidYetContext { .. } => VerifyError::NotYet,
        C::Revoked => VerifyError::Revoked,
        C::InvalidPurpose | C::InvalidPurposeContext { .. } => VerifyError::WrongPurpose,
        C::UnknownIssuer | C::BadSignature => VerifyError::Untrusted,
        C::UnknownRevocationStatus => VerifyError::Trust("the revocation list is not this authority's".to_owned()),
        other => VerifyError::Malformed(format!("{other:?}")),
    }
}

/// The one name of ours in a certificate that was verified before.
fn identity(leaf: &CertificateDer<'_>) -> Result<Identity, VerifyError> {
    let certificate = parse(leaf).map_err(|error| VerifyError::Malformed(error.to_string()))?;
    let alternative = certificate.subject_alternative_name().ok().flatten();
    let names = alternative.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    let subjects = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => ClientSubject::from_uri(uri),
        _ => None,
    });
    let subjects: Vec<ClientSubject> = subjects.collect();
    let [subject] = &subjects[..] else { return Err(VerifyError::NoIdentity) };
    Ok(Identity {
        subject: subject.clone(),
        serial: Serial::from_bytes(certificate.raw_serial()),
        key: key_fingerprint(certificate.public_key().raw),
        validity: validity_of(&certificate),
    })
}
