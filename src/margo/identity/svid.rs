//! Whether a presented certificate is the SVID of one named peer. Every rule has a variant of [`SvidError`].

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::CertificateError;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::WebPkiClientVerifier;
use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry as oid;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;

use super::bundle::TrustBundle;
use super::spiffe::{SpiffeError, SpiffeId};

/// Most certificates of a presented chain.
const MAX_CHAIN: usize = 8;
/// Shortest RSA key.
const MIN_RSA_BITS: usize = 3_072;

/// A moment in Unix seconds, shown as a date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment(pub i64);

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_second(self.0) {
            Ok(time) => time.fmt(f),
            Err(_) => write!(f, "{} s", self.0),
        }
    }
}

/// Which rule an SVID breaks. [`SvidError::code`] is stable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SvidError {
    /// None, too many, or not readable.
    #[error("the certificate cannot be read: {0}")]
    Malformed(String),
    /// None or several.
    #[error("the certificate names {0} URIs; an SVID names exactly one")]
    NotOneUri(usize),
    /// No SPIFFE ID.
    #[error("the certificate's URI is refused: {0}")]
    Uri(#[from] SpiffeError),
    /// Another trust domain.
    #[error("the certificate is of trust domain {found}, ours is {wanted}")]
    OtherDomain {
        /// In the certificate.
        found: String,
        /// In our own SVID.
        wanted: String,
    },
    /// The bundle is another domain's.
    #[error("the certificate is of trust domain {found}, and the trust bundle in force is of {bundle}")]
    OtherBundle {
        /// In the certificate.
        found: String,
        /// Of the bundle's anchors.
        bundle: String,
    },
    /// Somebody else of our domain.
    #[error("the certificate is that of {found}; our own SVID says that the fleet manager is {wanted}")]
    OtherPeer {
        /// In the certificate.
        found: String,
        /// From our own SVID.
        wanted: String,
    },
    /// An authority must not be a peer.
    #[error("the certificate is that of an authority (CA); an SVID must not be")]
    Authority,
    /// keyCertSign or cRLSign.
    #[error("the certificate may sign {0}; an SVID must not")]
    MaySign(&'static str),
    /// The key is too weak or of an unknown kind.
    #[error(
        "the certificate's key is {0}; accepted are ECDSA P-256 and P-384, Ed25519 and RSA from {MIN_RSA_BITS} bits"
    )]
    Key(String),
    /// Its end has passed.
    #[error("{what} ended at {end}, and our clock says {now}: renew it, or set the clock that is wrong")]
    Expired {
        /// Which certificate of the chain.
        what: String,
        /// When.
        end: Moment,
        /// Our clock.
        now: Moment,
    },
    /// Its start lies ahead.
    #[error("{what} begins at {start}, and our clock says {now}: set the clock that is wrong")]
    NotYet {
        /// Which certificate of the chain.
        what: String,
        /// When.
        start: Moment,
        /// Our clock.
        now: Moment,
    },
    /// No path to an anchor.
    #[error(
        "no anchor of the trust bundle in force (sequence {sequence}, {anchors} anchors) vouches for the certificate; it is of another authority, or an intermediate certificate behind it is missing"
    )]
    Untrusted {
        /// Of the bundle.
        sequence: u64,
        /// In the bundle.
        anchors: usize,
    },
    /// Extended key usage.
    #[error("the certificate is not meant for this side of a TLS connection")]
    WrongPurpose,
}

impl SvidError {
    /// Stable name of the rule for machines.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::NotOneUri(_) => "not-one-uri",
            Self::Uri(_) => "no-spiffe-id",
            Self::OtherDomain { .. } | Self::OtherBundle { .. } => "other-trust-domain",
            Self::OtherPeer { .. } => "other-peer",
            Self::Authority => "authority",
            Self::MaySign(_) => "may-sign",
            Self::Key(_) => "weak-key",
            Self::Expired { .. } => "expired",
            Self::NotYet { .. } => "not-yet-valid",
            Self::Untrusted { .. } => "untrusted",
            Self::WrongPurpose => "wrong-purpose",
        }
    }
}

/// Which side of the connection the SVID stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Server,
    Client,
}

/// Checks that `chain` (the leaf first) is the fleet manager's SVID `wanted` at `now` (Unix seconds).
///
/// # Errors
/// The first rule that is broken.
pub fn verify_svid(
    chain: &[CertificateDer<'_>],
    bundle: &TrustBundle,
    wanted: &SpiffeId,
    now: i64,
) -> Result<(), SvidError> {
    let found = check(chain, bundle, wanted.trust_domain(), now, Side::Server)?;
    if found != *wanted {
        return Err(SvidError::OtherPeer { found: found.to_string(), wanted: wanted.to_string() });
    }
    Ok(())
}

/// All rules but that of the name; gives the name.
pub(super) fn check(
    chain: &[CertificateDer<'_>],
    bundle: &TrustBundle,
    domain: &str,
    now: i64,
    side: Side,
) -> Result<SpiffeId, SvidError> {
    if chain.len() > MAX_CHAIN {
        return Err(SvidError::Malformed(format!("the chain has {} certificates", chain.len())));
    }
    let id = shape(chain)?;
    if id.trust_domain() != domain {
        return Err(SvidError::OtherDomain { found: id.trust_domain().to_owned(), wanted: domain.to_owned() });
    }
    for certificate in chain {
        accepted_key(&parse(certificate)?)?;
    }
    anchored(chain, bundle, now, side)?;
    Ok(id)
}

/// The rules that a leaf keeps whoever signed it and whenever; gives its name.
pub(super) fn shape(chain: &[CertificateDer<'_>]) -> Result<SpiffeId, SvidError> {
    let leaf = chain.first().ok_or_else(|| SvidError::Malformed("there is none".to_owned()))?;
    let leaf = parse(leaf)?;
    let malformed = |error: x509_parser::error::X509Error| SvidError::Malformed(error.to_string());
    let names = leaf.subject_alternative_name().map_err(malformed)?;
    let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    let uris: Vec<&str> = names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect();
    let [uri] = uris[..] else { return Err(SvidError::NotOneUri(uris.len())) };
    let id = SpiffeId::new(uri)?;
    if leaf.basic_constraints().map_err(malformed)?.is_some_and(|extension| extension.value.ca) {
        return Err(SvidError::Authority);
    }
    if let Some(usage) = leaf.key_usage().map_err(malformed)? {
        if usage.value.key_cert_sign() {
            return Err(SvidError::MaySign("certificates (keyCertSign)"));
        }
        if usage.value.crl_sign() {
            return Err(SvidError::MaySign("revocation lists (cRLSign)"));
        }
    }
    Ok(id)
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, SvidError> {
    let (rest, certificate) =
        X509Certificate::from_der(der).map_err(|error| SvidError::Malformed(error.to_string()))?;
    if rest.is_empty() { Ok(certificate) } else { Err(SvidError::Malformed("there are bytes behind it".to_owned())) }
}

/// Whether a certificate's key is of an accepted kind and strong enough.
pub(super) fn accepted_key(certificate: &X509Certificate<'_>) -> Result<(), SvidError> {
    let info = certificate.public_key();
    if info.algorithm.algorithm == oid::OID_SIG_ED25519 {
        return Ok(());
    }
    match info.parsed() {
        Ok(PublicKey::RSA(rsa)) if rsa.key_size() >= MIN_RSA_BITS => Ok(()),
        Ok(PublicKey::RSA(rsa)) => Err(SvidError::Key(format!("RSA with {} bits", rsa.key_size()))),
        Ok(PublicKey::EC(_)) => {
            let curve = info.algorithm.parameters.as_ref().and_then(|curve| curve.as_oid().ok());
            match curve {
                Some(curve) if curve == oid::OID_EC_P256 || curve == oid::OID_NIST_EC_P384 => Ok(()),
                other => {
                    Err(SvidError::Key(format!("on curve {}", other.map_or("?".to_owned(), |c| c.to_id_string()))))
                }
            }
        }
        _ => Err(SvidError::Key(format!("of kind {}", info.algorithm.algorithm))),
    }
}

fn anchored(chain: &[CertificateDer<'_>], bundle: &TrustBundle, now: i64, side: Side) -> Result<(), SvidError> {
    let provider = rustls::crypto::ring::default_provider();
    let time = UnixTime::since_unix_epoch(Duration::from_secs(now.max(0).unsigned_abs()));
    let (leaf, intermediates) = chain.split_first().ok_or_else(|| SvidError::Malformed("there is none".to_owned()))?;
    let outcome = match side {
        Side::Server => ParsedCertificate::try_from(leaf).and_then(|leaf| {
            let algorithms = provider.signature_verification_algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&leaf, bundle.roots(), intermediates, time, algorithms)
        }),
        Side::Client => WebPkiClientVerifier::builder_with_provider(bundle.roots().clone(), Arc::new(provider))
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))
            .and_then(|verifier| verifier.verify_client_cert(leaf, intermediates, time).map(|_| ())),
    };
    outcome.map_err(|error| explain(&error, chain, bundle, now))
}

fn explain(error: &rustls::Error, chain: &[CertificateDer<'_>], bundle: &TrustBundle, now: i64) -> SvidError {
    use CertificateError as C;
    let rustls::Error::InvalidCertificate(reason) = error else { return SvidError::Malformed(error.to_string()) };
    match reason {
        C::Expired | C::ExpiredContext { .. } => {
            let (what, end) = culprit(chain, |from_to| (from_to.1 < now).then_some(from_to.1));
            SvidError::Expired { what, end: Moment(end.unwrap_or(now)), now: Moment(now) }
        }
        C::NotValidYet | C::NotValidYetContext { .. } => {
            let (what, start) = culprit(chain, |from_to| (from_to.0 > now).then_some(from_to.0));
            SvidError::NotYet { what, start: Moment(start.unwrap_or(now)), now: Moment(now) }
        }
        C::InvalidPurpose | C::InvalidPurposeContext { .. } => SvidError::WrongPurpose,
        C::UnknownIssuer | C::BadSignature => {
            SvidError::Untrusted { sequence: bundle.sequence, anchors: bundle.anchors().len() }
        }
        other => SvidError::Malformed(format!("{other:?}")),
    }
}

/// The first certificate of a chain whose times (from, to) are wrong, for people, and the time that is.
fn culprit(chain: &[CertificateDer<'_>], wrong: impl Fn((i64, i64)) -> Option<i64>) -> (String, Option<i64>) {
    for (at, der) in chain.iter().enumerate() {
        let Ok(certificate) = parse(der) else { continue };
        let times = certificate.validity();
        if let Some(time) = wrong((times.not_before.timestamp(), times.not_after.timestamp())) {
            let what = if at == 0 {
                "the certificate itself".to_owned()
            } else {
                format!("the intermediate certificate {:?} behind it", certificate.subject().to_string())
            };
            return (what, Some(time));
        }
    }
    ("a certificate of the chain".to_owned(), None)
}
