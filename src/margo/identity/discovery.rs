//! First contact: how the server that holds the trust bundle is verified, and what discovery says.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::time_provider::TimeProvider;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::super::words::{Digest, WordError};

/// Longest answer of a discovery document.
pub const MAX_DISCOVERY: usize = 16 * 1024;

/// First contact or discovery failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiscoveryError {
    /// The anchors cannot be used.
    #[error("the anchors for first contact in {} cannot be used: {reason}", path.display())]
    Anchors {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// Neither anchors nor pins.
    #[error("first contact needs `anchors` or `pins`: nobody is trusted on first use")]
    Blind,
    /// A pin cannot be read.
    #[error(
        "the pin {0:?} is not `sha256:` and 64 hexadecimal digits, nor `sha256/` and base64, of a public key's SHA-256"
    )]
    Pin(String),
    /// No key of the server is pinned.
    #[error("no public key that the server presented is pinned")]
    NotPinned,
    /// The document has another form.
    #[error("the discovery document cannot be used: {0}")]
    Document(String),
    /// It speaks about others.
    #[error("the discovery document is of trust domain {found}, our own SVID is of {wanted}")]
    OtherDomain {
        /// In the document.
        found: String,
        /// In our own SVID.
        wanted: String,
    },
}

/// How a server is verified before there is a trust bundle.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FirstContact {
    /// PEM file of authorities; the server's DNS name is checked, too.
    pub anchors: Option<PathBuf>,
    /// SHA-256 of public keys (SubjectPublicKeyInfo): of the server itself, or of an authority that it presents.
    pub pins: Vec<Digest>,
}

impl FirstContact {
    /// Reads a pin: `sha256:<hex>`, or `sha256/<base64>` as curl and HPKP write it.
    ///
    /// # Errors
    /// [`DiscoveryError::Pin`].
    pub fn parse_pin(text: &str) -> Result<Digest, DiscoveryError> {
        let wrong = |_: WordError| DiscoveryError::Pin(text.to_owned());
        match text.strip_prefix("sha256/").and_then(|base64| STANDARD.decode(base64).ok()) {
            Some(bytes) if bytes.len() == 32 => {
                Digest::new(&format!("sha256:{}", super::super::words::hex(&bytes))).map_err(wrong)
            }
            _ => Digest::new(text).map_err(wrong),
        }
    }

    /// TLS towards such a server.
    ///
    /// # Errors
    /// [`DiscoveryError::Anchors`], and [`DiscoveryError::Blind`] when there is neither anchor nor pin.
    pub fn client_config(&self, time: Arc<dyn TimeProvider>) -> Result<ClientConfig, DiscoveryError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_details(provider.clone(), time)
            .with_safe_default_protocol_versions()
            .map_err(|error| DiscoveryError::Document(error.to_string()))?;
        match &self.anchors {
            Some(path) => Ok(builder.with_root_certificates(roots(path)?).with_no_client_auth()),
            None if self.pins.is_empty() => Err(DiscoveryError::Blind),
            None => {
                let verifier = PinVerifier { pins: self.pins.clone(), provider };
                Ok(builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth())
            }
        }
    }
}

fn roots(path: &Path) -> Result<RootCertStore, DiscoveryError> {
    let wrong = |reason: String| DiscoveryError::Anchors { path: path.to_owned(), reason };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))? {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
    }
    if roots.is_empty() { Err(wrong("there is no certificate in it".to_owned())) } else { Ok(roots) }
}

/// Verifies by pinned public keys. A pinned leaf is the server, whatever its name; a pinned authority must really have
/// signed the leaf, and then the name counts.
#[derive(Debug)]
struct PinVerifier {
    pins: Vec<Digest>,
    provider: Arc<CryptoProvider>,
}

impl PinVerifier {
    fn is_pinned(&self, certificate: &CertificateDer<'_>) -> bool {
        let parsed = X509Certificate::from_der(certificate).ok();
        parsed.is_some_and(|(_, parsed)| self.pins.contains(&Digest::of(parsed.public_key().raw)))
    }
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.is_pinned(leaf) {
            let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| CertificateError::BadEncoding)?;
            let (from, to) = (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
            let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
            return match now {
                _ if now < from => Err(CertificateError::NotValidYet.into()),
                _ if now > to => Err(CertificateError::Expired.into()),
                _ => Ok(ServerCertVerified::assertion()),
            };
        }
        let mut roots = RootCertStore::empty();
        for pinned in intermediates.iter().filter(|certificate| self.is_pinned(certificate)) {
            roots.add(pinned.clone().into_owned())?;
        }
        if roots.is_empty() {
            return Err(CertificateError::Other(OtherError(Arc::new(DiscoveryError::NotPinned))).into());
        }
        let leaf = ParsedCertificate::try_from(leaf)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&leaf, &roots, intermediates, now, algorithms)?;
        verify_server_name(&leaf, name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, leaf, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, leaf, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// What a discovery document says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discovered {
    /// `trustDomain`.
    pub trust_domain: String,
    /// `trustBundleUri`, https only.
    pub bundle: String,
}

/// Reads a discovery document (`GET /.well-known/margo`) and checks that it speaks about our `trust_domain`.
///
/// # Errors
/// [`DiscoveryError::Document`] and [`DiscoveryError::OtherDomain`].
pub fn parse_discovery(bytes: &[u8], trust_domain: &str) -> Result<Discovered, DiscoveryError> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Document {
        trust_domain: String,
        trust_bundle_uri: String,
    }
    let wrong = |reason: String| DiscoveryError::Document(reason);
    if bytes.len() > MAX_DISCOVERY {
        return Err(wrong(format!("it has {} bytes, at most {MAX_DISCOVERY} are read", bytes.len())));
    }
    let document: Document = serde_json::from_slice(bytes).map_err(|error| wrong(error.to_string()))?;
    if document.trust_domain != trust_domain {
        return Err(DiscoveryError::OtherDomain { found: document.trust_domain, wanted: trust_domain.to_owned() });
    }
    let uri = reqwest::Url::parse(&document.trust_bundle_uri).map_err(|error| wrong(error.to_string()))?;
    if uri.scheme() != "https" || uri.host_str().is_none() {
        return Err(wrong(format!("trustBundleUri {:?} is not an https URI", document.trust_bundle_uri)));
    }
    Ok(Discovered { trust_domain: document.trust_domain, bundle: uri.to_string() })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::tests::{Ca, NOW, at};
    use super::*;

    #[test]
    fn discovery_gives_an_https_bundle_of_our_own_trust_domain() {
        let good = br#"{"trustDomain":"plant.example","trustBundleUri":"https://trust.plant.example/bundle","more":1}"#;
        let found = parse_discovery(good, "plant.example").unwrap();
        assert_eq!(found.bundle, "https://trust.plant.example/bundle");
        assert!(matches!(parse_discovery(good, "other.example"), Err(DiscoveryError::OtherDomain { .. })));
        for bad in [
            &br#"{"trustDomain":"plant.example","trustBundleUri":"http://trust.plant.example/bundle"}"#[..],
            br#"{"trustDomain":"plant.example","trustBundleUri":"bundle"}"#,
            br#"{"trustDomain":"plant.example"}"#,
            b"no json",
            &vec![b' '; MAX_DISCOVERY + 1],
        ] {
            assert!(matches!(parse_discovery(bad, "plant.example"), Err(DiscoveryError::Document(_))));
        }
    }

    #[test]
    fn first_contact_without_anchor_and_pin_is_refused() {
        let time = at(NOW);
        assert_eq!(FirstContact::default().client_config(time).unwrap_err(), DiscoveryError::Blind);
    }

    #[test]
    fn pins_are_read_in_both_writings() {
        let digest = Digest::of(b"key");
        let base64 = format!("sha256/{}", STANDARD.encode(digest.as_bytes()));
        assert_eq!(FirstContact::parse_pin(&base64).unwrap(), digest);
        assert_eq!(FirstContact::parse_pin(&digest.to_string()).unwrap(), digest);
        for bad in ["sha256/AAAA", "sha1/AAAA", ""] {
            assert!(FirstContact::parse_pin(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_pinned_server_or_authority_is_accepted_and_another_is_not() {
        let ca = Ca::new("web");
        let leaf = ca.web_server("trust.plant.example");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let pin = |der: &CertificateDer<'_>| Digest::of(X509Certificate::from_der(der).unwrap().1.public_key().raw);
        let verify = |pins: Vec<Digest>, chain: &[CertificateDer<'static>], name: &'static str, now: i64| {
            let verifier = PinVerifier { pins, provider: provider.clone() };
            let time = UnixTime::since_unix_epoch(Duration::from_secs(now as u64));
            verifier.verify_server_cert(&chain[0], &chain[1..], &ServerName::try_from(name).unwrap(), &[], time)
        };
        let chain = [leaf.clone(), ca.der()];
        assert!(verify(vec![pin(&leaf)], &chain[..1], "anything.example", NOW).is_ok(), "the key is the identity");
        assert!(verify(vec![pin(&leaf)], &chain[..1], "anything.example", NOW + 400 * 86_400).is_err(), "expired");
        assert!(verify(vec![pin(&ca.der())], &chain, "trust.plant.example", NOW).is_ok());
        assert!(verify(vec![pin(&ca.der())], &chain, "other.example", NOW).is_err(), "an authority vouches for a name");
        let strange = Ca::new("strange");
        let forged = [strange.web_server("trust.plant.example"), ca.der()];
        assert!(verify(vec![pin(&ca.der())], &forged, "trust.plant.example", NOW).is_err(), "it did not sign the leaf");
        assert!(verify(vec![Digest::of(b"x")], &chain, "trust.plant.example", NOW).is_err());
    }
}
