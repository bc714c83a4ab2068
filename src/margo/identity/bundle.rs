//! The trust bundle: a SPIFFE bundle (JWK set) made into trust anchors.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use serde::Deserialize;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::super::words::Digest;
use super::svid::accepted_key;

/// Longest bundle that is read.
pub const MAX_BUNDLE: usize = 256 * 1024;
/// Most anchors of a bundle.
const MAX_ANCHORS: usize = 64;
/// A refresh is asked for at most this often and at least that often, whatever the hint says.
const HINTS: std::ops::RangeInclusive<u64> = 30..=7 * 86_400;
/// When the bundle gives no hint.
const DEFAULT_HINT: u64 = 300;

/// Why a bundle is not used. The one in force stays.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// No JSON of the right form, or too long.
    #[error("the trust bundle cannot be read: {0}")]
    Form(String),
    /// No anchor in it.
    #[error(
        "the trust bundle holds no usable anchor (keys with use x509-svid and a certificate in x5c); it is refused"
    )]
    Empty,
    /// Older than the one in force.
    #[error("the trust bundle has sequence {offered}, the one in force has {held}; an older bundle is refused")]
    Older {
        /// What was offered.
        offered: u64,
        /// What is in force.
        held: u64,
    },
}

/// A bundle that can be used.
#[derive(Clone)]
pub struct TrustBundle {
    /// `spiffe_sequence`; 0 when the bundle gives none.
    pub sequence: u64,
    /// `spiffe_refresh_hint`, held within 30 s and a week.
    pub refresh: Duration,
    /// Digest of the text that it was read from.
    pub digest: Digest,
    anchors: Vec<CertificateDer<'static>>,
    roots: Arc<RootCertStore>,
    domains: BTreeSet<String>,
    ignored: usize,
}

impl std::fmt::Debug for TrustBundle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let anchors = self.anchors.len();
        f.debug_struct("TrustBundle")
            .field("sequence", &self.sequence)
            .field("anchors", &anchors)
            .finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct Jwks {
    #[serde(default)]
    spiffe_sequence: Option<u64>,
    #[serde(default)]
    spiffe_refresh_hint: Option<u64>,
    #[serde(default)]
    keys: Vec<serde_json::Value>,
}

impl TrustBundle {
    /// Reads a bundle. Keys for other uses are ignored, and so is one whose certificate cannot be read or has a key that is
    /// not accepted: an anchor less only closes a door.
    ///
    /// # Errors
    /// [`BundleError::Form`] and [`BundleError::Empty`].
    pub fn parse(bytes: &[u8]) -> Result<Self, BundleError> {
        if bytes.len() > MAX_BUNDLE {
            return Err(BundleError::Form(format!("it has {} bytes, at most {MAX_BUNDLE} are read", bytes.len())));
        }
        let set: Jwks = serde_json::from_slice(bytes).map_err(|error| BundleError::Form(error.to_string()))?;
        let mut roots = RootCertStore::empty();
        let mut anchors: Vec<CertificateDer<'static>> = Vec::new();
        let mut ignored = 0;
        for key in &set.keys {
            if key.get("use").and_then(serde_json::Value::as_str) != Some("x509-svid") {
                continue;
            }
            let certificate = anchor(key);
            let known = |der: &CertificateDer<'static>| anchors.contains(der);
            match certificate {
                Some(der) if known(&der) => {}
                Some(der) if anchors.len() < MAX_ANCHORS && roots.add(der.clone()).is_ok() => anchors.push(der),
                _ => ignored += 1,
            }
        }
        if anchors.is_empty() {
            return Err(BundleError::Empty);
        }
        let hint = set.spiffe_refresh_hint.unwrap_or(DEFAULT_HINT).clamp(*HINTS.start(), *HINTS.end());
        Ok(Self {
            sequence: set.spiffe_sequence.unwrap_or(0),
            refresh: Duration::from_secs(hint),
            digest: Digest::of(bytes),
            domains: anchors.iter().filter_map(domain).collect(),
            anchors,
            roots: Arc::new(roots),
            ignored,
        })
    }

    /// Whether this may take the place of `held`; it then takes it as a whole.
    ///
    /// # Errors
    /// [`BundleError::Older`].
    pub fn may_replace(&self, held: Option<&Self>) -> Result<(), BundleError> {
        match held {
            Some(held) if self.sequence < held.sequence => {
                Err(BundleError::Older { offered: self.sequence, held: held.sequence })
            }
            _ => Ok(()),
        }
    }

    /// The anchors as certificates.
    pub fn anchors(&self) -> &[CertificateDer<'static>] {
        &self.anchors
    }

    /// The anchors for a verifier.
    pub fn roots(&self) -> &Arc<RootCertStore> {
        &self.roots
    }

    /// The trust domains that the anchors name; an anchor need not name one.
    pub fn domains(&self) -> &BTreeSet<String> {
        &self.domains
    }

    /// Keys with `use: x509-svid` that could not be used.
    pub fn ignored(&self) -> usize {
        self.ignored
    }

    /// A bundle of these certificates, as text: what `fieldgate margo join` writes for an operator who has PEM only.
    pub fn write(anchors: &[CertificateDer<'_>], sequence: u64) -> String {
        let keys: Vec<_> = anchors
            .iter()
            .map(|der| {
                let ec = matches!(kind(der), Some(Kind::Ec));
                serde_json::json!({ "kty": if ec { "EC" } else { "RSA" }, "use": "x509-svid", "x5c": [STANDARD.encode(der)] })
            })
            .collect();
        serde_json::json!({ "spiffe_sequence": sequence, "spiffe_refresh_hint": DEFAULT_HINT, "keys": keys })
            .to_string()
    }
}

/// The trust domain of an authority, by its own SPIFFE ID.
fn domain(der: &CertificateDer<'static>) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let names = &certificate.subject_alternative_name().ok()??.value.general_names;
    names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix("spiffe://")?.split('/').next().map(str::to_owned),
        _ => None,
    })
}

enum Kind {
    Ec,
    Other,
}

fn kind(der: &CertificateDer<'_>) -> Option<Kind> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    match certificate.public_key().parsed().ok()? {
        x509_parser::public_key::PublicKey::EC(_) => Some(Kind::Ec),
        _ => Some(Kind::Other),
    }
}

fn anchor(key: &serde_json::Value) -> Option<CertificateDer<'static>> {
    let text = key.get("x5c")?.get(0)?.as_str()?;
    let der = STANDARD.decode(text).ok()?;
    let (rest, certificate) = X509Certificate::from_der(&der).ok()?;
    (rest.is_empty() && accepted_key(&certificate).is_ok()).then(|| CertificateDer::from(der.clone()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::tests::Ca;
    use super::*;

    fn key(ca: &Ca) -> serde_json::Value {
        json!({ "kty": "EC", "use": "x509-svid", "x5c": [STANDARD.encode(ca.der())] })
    }

    fn parse(value: &serde_json::Value) -> Result<TrustBundle, BundleError> {
        TrustBundle::parse(value.to_string().as_bytes())
    }

    #[test]
    fn keys_for_other_uses_are_ignored() {
        let (a, b) = (Ca::new("a"), Ca::new("b"));
        let jwt = json!({ "kty": "EC", "use": "jwt-svid", "kid": "x", "x5c": [STANDARD.encode(b.der())] });
        let broken = json!({ "kty": "EC", "use": "x509-svid", "x5c": ["AAAA"] });
        let bundle =
            parse(&json!({ "spiffe_sequence": 7, "keys": [key(&a), jwt, broken, key(&a)], "extra": 1 })).unwrap();
        assert_eq!((bundle.anchors().len(), bundle.ignored(), bundle.sequence), (1, 1, 7));
        assert_eq!(bundle.refresh, Duration::from_secs(300));
    }

    #[test]
    fn only_the_first_certificate_of_a_key_counts() {
        let (a, b) = (Ca::new("a"), Ca::new("b"));
        let two = json!({ "use": "x509-svid", "x5c": [STANDARD.encode(a.der()), STANDARD.encode(b.der())] });
        assert_eq!(parse(&json!({ "keys": [two] })).unwrap().anchors(), [a.der()]);
    }

    #[test]
    fn an_empty_bundle_is_refused() {
        for empty in [json!({ "keys": [] }), json!({}), json!({ "keys": [{ "use": "jwt-svid" }] })] {
            assert_eq!(parse(&empty).unwrap_err(), BundleError::Empty);
        }
        assert!(matches!(TrustBundle::parse(b"no json"), Err(BundleError::Form(_))));
        assert!(matches!(TrustBundle::parse(&vec![b' '; MAX_BUNDLE + 1]), Err(BundleError::Form(_))));
    }

    #[test]
    fn a_lower_bundle_sequence_is_refused_and_an_equal_or_higher_one_replaces() {
        let ca = Ca::new("a");
        let with = |sequence: u64| parse(&json!({ "spiffe_sequence": sequence, "keys": [key(&ca)] })).unwrap();
        let held = with(5);
        assert_eq!(with(4).may_replace(Some(&held)), Err(BundleError::Older { offered: 4, held: 5 }));
        let none = parse(&json!({ "keys": [key(&ca)] })).unwrap();
        assert_eq!(none.may_replace(Some(&held)), Err(BundleError::Older { offered: 0, held: 5 }));
        assert!(with(5).may_replace(Some(&held)).is_ok() && with(6).may_replace(Some(&held)).is_ok());
        assert!(with(0).may_replace(None).is_ok());
    }

    #[test]
    fn the_refresh_hint_is_held_in_bounds() {
        let ca = Ca::new("a");
        let with = |hint: u64| parse(&json!({ "spiffe_refresh_hint": hint, "keys": [key(&ca)] })).unwrap().refresh;
        assert_eq!(with(0), Duration::from_secs(30));
        assert_eq!(with(600), Duration::from_secs(600));
        assert_eq!(with(u64::MAX), Duration::from_secs(7 * 86_400));
    }

    #[test]
    fn what_is_written_is_read_back() {
        let (a, b) = (Ca::new("a"), Ca::new("b"));
        let bundle = TrustBundle::parse(TrustBundle::write(&[a.der(), b.der()], 3).as_bytes()).unwrap();
        assert_eq!((bundle.anchors(), bundle.sequence), (&[a.der(), b.der()][..], 3));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = TrustBundle::parse(&bytes);
        }
    }
}
