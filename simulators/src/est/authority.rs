//! The server's two-stage authority and its certs-only messages.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use time::OffsetDateTime;

use super::Fault;

type Failure = Box<dyn std::error::Error + Send + Sync>;

const YEAR: Duration = Duration::from_secs(365 * 86_400);

pub(super) struct Authority {
    root: CertificateDer<'static>,
    root_pem: String,
    issuing: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    stranger: Issuer<'static, KeyPair>,
    server: (CertificateDer<'static>, Vec<u8>),
    /// Signs instead.
    other: Option<Arc<dyn super::Issuer>>,
}

impl Authority {
    pub fn new(other: Option<Arc<dyn super::Issuer>>) -> Result<Self, Failure> {
        let (root_params, root_key) =
            (authority("Enrolment root", BasicConstraints::Unconstrained)?, KeyPair::generate()?);
        let root = root_params.self_signed(&root_key)?;
        let root_issuer = Issuer::new(root_params, root_key);
        let (mut params, key) =
            (authority("Enrolment issuing", BasicConstraints::Constrained(0))?, KeyPair::generate()?);
        params.use_authority_key_identifier_extension = true;
        let issuing = params.signed_by(&key, &root_issuer)?;
        let issuer = Issuer::new(params, key);
        let stranger = Issuer::new(authority("Stranger", BasicConstraints::Unconstrained)?, KeyPair::generate()?);
        let mut params = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()])?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        (params.not_before, params.not_after) = window(YEAR * 10, Duration::ZERO)?;
        let key = KeyPair::generate()?;
        let server = (params.signed_by(&key, &issuer)?.into(), key.serialize_der());
        Ok(Self { root_pem: root.pem(), root: root.into(), issuing: issuing.into(), issuer, stranger, server, other })
    }

    pub fn root_pem(&self) -> String {
        self.root_pem.clone()
    }

    pub fn tls(&self) -> Result<rustls::ServerConfig, Failure> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.root.clone())?;
        for root in self.other.iter().flat_map(|other| other.authorities()) {
            roots.add(root)?;
        }
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone()).allow_unauthenticated();
        let chain = vec![self.server.0.clone(), self.issuing.clone()];
        let key = PrivatePkcs8KeyDer::from(self.server.1.clone());
        let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        Ok(config.with_client_cert_verifier(verifier.build()?).with_single_cert(chain, key.into())?)
    }

    /// The answer to `/cacerts`.
    pub fn authorities(&self) -> Vec<u8> {
        match &self.other {
            Some(other) => certs_only(&other.authorities().iter().collect::<Vec<_>>()),
            None => certs_only(&[&self.root, &self.issuing]),
        }
    }

    /// The answer to a request, spoilt if asked.
    pub fn grant(
        &self,
        der: &[u8],
        life: Duration,
        ahead: Duration,
        fault: Option<&Fault>,
    ) -> Result<Vec<u8>, Failure> {
        if let Some(other) = &self.other {
            let mut chain = other.sign(der, life)?;
            chain.reverse();
            return Ok(certs_only(&chain.iter().collect::<Vec<_>>()));
        }
        let mut request = CertificateSigningRequestParams::from_der(&der.into())?;
        (request.params.not_before, request.params.not_after) = window(life, ahead)?;
        request.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        request.params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        request.params.use_authority_key_identifier_extension = true;
        let granted = match fault {
            Some(Fault::WrongAuthority) => request.signed_by(&self.stranger)?,
            Some(Fault::WrongKey) => request.params.signed_by(&KeyPair::generate()?, &self.issuer)?,
            _ => request.signed_by(&self.issuer)?,
        };
        // The issuing authority first: a client must not rely on the order of a set.
        Ok(certs_only(&[&self.issuing, granted.der()]))
    }
}

fn authority(name: &str, constraints: BasicConstraints) -> Result<CertificateParams, Failure> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(constraints);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = window(YEAR * 20, Duration::ZERO)?;
    Ok(params)
}

#[allow(clippy::disallowed_methods, reason = "certificates of a simulator are valid now; there is no clock to inject")]
fn window(life: Duration, ahead: Duration) -> Result<(OffsetDateTime, OffsetDateTime), Failure> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)? + ahead;
    let start = OffsetDateTime::from_unix_timestamp(i64::try_from(now.as_secs())? - 60)?;
    Ok((start, start + life))
}

/// A certs-only CMS message (RFC 5652, 5; RFC 8951, 3.1).
fn certs_only(certificates: &[&CertificateDer<'_>]) -> Vec<u8> {
    const SIGNED_DATA: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x02];
    const DATA: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01];
    let all: Vec<u8> = certificates.iter().flat_map(|certificate| certificate.iter().copied()).collect();
    let signed = [tlv(0x02, &[1]), tlv(0x31, &[]), tlv(0x30, DATA), tlv(0xa0, &all), tlv(0x31, &[])].concat();
    tlv(0x30, &[SIGNED_DATA, &tlv(0xa0, &tlv(0x30, &signed))].concat())
}

fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    let length = content.len();
    match length {
        0..=0x7f => out.push(length as u8),
        0x80..=0xff => out.extend([0x81, length as u8]),
        _ => out.extend([0x82, (length >> 8) as u8, length as u8]),
    }
    out.extend(content);
    out
}
