//! TLS that knows one peer: the fleet manager of our own SVID.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::time_provider::TimeProvider;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, OtherError, SignatureScheme};

use super::bundle::TrustBundle;
use super::own::OwnSvid;
use super::spiffe::SpiffeId;
use super::svid::verify_svid;

/// Versions of TLS that are spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TlsVersions {
    /// 1.3, the standard's default.
    #[default]
    Only13,
    /// 1.3, and 1.2 for a server that has no better.
    Also12,
}

/// Verifies the fleet manager by its SPIFFE ID instead of its host name.
#[derive(Debug)]
pub struct WfmVerifier {
    bundle: Arc<TrustBundle>,
    wanted: SpiffeId,
    provider: Arc<CryptoProvider>,
}

impl WfmVerifier {
    /// Accepts `wanted`, as `bundle` vouches for it, and nobody else.
    pub fn new(bundle: Arc<TrustBundle>, wanted: SpiffeId) -> Self {
        Self { bundle, wanted, provider: Arc::new(rustls::crypto::ring::default_provider()) }
    }
}

impl ServerCertVerifier for WfmVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain: Vec<_> =
            std::iter::once(leaf).chain(intermediates).map(|c| CertificateDer::from(c.as_ref())).collect();
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        match verify_svid(&chain, &self.bundle, &self.wanted, now) {
            Ok(()) => Ok(ServerCertVerified::assertion()),
            // The reason travels to the log as it is.
            Err(why) => Err(CertificateError::Other(OtherError(Arc::new(why))).into()),
        }
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

/// TLS as `own` towards its fleet manager.
///
/// # Errors
/// When the key cannot be used.
pub fn client_config(
    own: &OwnSvid,
    bundle: Arc<TrustBundle>,
    time: Arc<dyn TimeProvider>,
    versions: TlsVersions,
) -> Result<ClientConfig, rustls::Error> {
    let versions: &[&rustls::SupportedProtocolVersion] = match versions {
        TlsVersions::Only13 => &[&rustls::version::TLS13],
        TlsVersions::Also12 => &[&rustls::version::TLS13, &rustls::version::TLS12],
    };
    let verifier = WfmVerifier::new(bundle, own.name().wfm().clone());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_details(provider, time)
        .with_protocol_versions(versions)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(own.chain().to_vec(), own.key())?;
    // A resumed session would skip the verifier: an expired SVID or a retired anchor would live on in it.
    config.resumption = Resumption::disabled();
    Ok(config)
}
