//! TLS of the simulators: which certificate is served can be changed while running, and the client's SVID is held
//! against the authority's bundle as it is at that moment. Sessions are never resumed, so every connection proves itself.

use std::sync::{Arc, Mutex};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig, SignatureScheme,
    SupportedProtocolVersion, version,
};
use serde::{Deserialize, Serialize};

use super::spiffe::{Svid, check};
use super::tools::locked;
use super::{Authority, MargoSimError};

/// Which versions of TLS are spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TlsVersions {
    /// 1.3 only.
    #[default]
    Tls13,
    /// 1.2 only.
    Tls12,
    /// Both.
    Both,
}

impl TlsVersions {
    fn list(self) -> &'static [&'static SupportedProtocolVersion] {
        static BOTH: [&SupportedProtocolVersion; 2] = [&version::TLS13, &version::TLS12];
        match self {
            Self::Tls13 => &BOTH[..1],
            Self::Tls12 => &BOTH[1..],
            Self::Both => &BOTH,
        }
    }
}

/// The certificate that is served, exchangeable while running.
#[derive(Debug)]
pub(crate) struct Identity {
    provider: Arc<CryptoProvider>,
    key: Mutex<Arc<CertifiedKey>>,
}

impl Identity {
    pub fn new(svid: &Svid) -> Result<Arc<Self>, MargoSimError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = Mutex::new(Arc::new(certified(svid, &provider)?));
        Ok(Arc::new(Self { provider, key }))
    }

    /// New connections see this one.
    pub fn serve(&self, svid: &Svid) -> Result<(), MargoSimError> {
        *locked(&self.key) = Arc::new(certified(svid, &self.provider)?);
        Ok(())
    }
}

fn certified(svid: &Svid, provider: &CryptoProvider) -> Result<CertifiedKey, MargoSimError> {
    let key = provider.key_provider.load_private_key(svid.key.clone_key())?;
    Ok(CertifiedKey::new(svid.chain.clone(), key))
}

impl ResolvesServerCert for Identity {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(locked(&self.key).clone())
    }
}

/// A server that asks nobody for a certificate.
pub(crate) fn server(identity: Arc<Identity>, versions: TlsVersions) -> Result<Arc<ServerConfig>, MargoSimError> {
    let config = ServerConfig::builder_with_provider(identity.provider.clone())
        .with_protocol_versions(versions.list())?
        .with_no_client_auth()
        .with_cert_resolver(identity);
    Ok(without_sessions(config))
}

/// A server that demands an SVID of the authority's trust domain.
pub(crate) fn mutual(
    identity: Arc<Identity>,
    versions: TlsVersions,
    authority: Arc<Authority>,
) -> Result<Arc<ServerConfig>, MargoSimError> {
    let provider = identity.provider.clone();
    let config = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions.list())?
        .with_client_cert_verifier(Arc::new(SvidVerifier { authority, provider }))
        .with_cert_resolver(identity);
    Ok(without_sessions(config))
}

fn without_sessions(mut config: ServerConfig) -> Arc<ServerConfig> {
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

struct SvidVerifier {
    authority: Arc<Authority>,
    provider: Arc<CryptoProvider>,
}

impl std::fmt::Debug for SvidVerifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SvidVerifier({})", self.authority.trust_domain())
    }
}

impl ClientCertVerifier for SvidVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        check::spiffe_id(leaf, self.authority.trust_domain()).map_err(Error::General)?;
        let mut roots = RootCertStore::empty();
        for anchor in self.authority.anchors() {
            roots.add(anchor)?;
        }
        WebPkiClientVerifier::builder_with_provider(roots.into(), self.provider.clone())
            .build()
            .map_err(|error| Error::General(error.to_string()))?
            .verify_client_cert(leaf, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
