//! The authority that signs: made here, or brought along by the plant.

use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::inventory::Serial;
use super::life::{BACKDATED, DAY, EARLIEST, Reading, Validity};
use super::{PkiError, PrivateKeyPem, pem};
use crate::platform::durable::{Access, Disk};

/// Life of an authority made here.
const LIFE: i64 = 20 * 365 * DAY;
/// Added to it when the clock is not set: nobody knows how far back the start lies.
const UNSET_CLOCK_RESERVE: i64 = 10 * 365 * DAY;

/// A certificate authority with its key, ready to sign. Prints no key.
pub struct Authority {
    chain: Vec<CertificateDer<'static>>,
    issuer: Issuer<'static, KeyPair>,
    validity: Validity,
    subject: String,
    key_id: Vec<u8>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("subject", &self.subject)
            .field("validity", &self.validity)
            .finish_non_exhaustive()
    }
}

/// What is signed: the one form of all leaf certificates.
pub(super) struct Leaf<'a> {
    pub serial: &'a Serial,
    pub common_name: &'a str,
    pub sans: Vec<SanType>,
    pub usage: ExtendedKeyUsagePurpose,
    pub validity: Validity,
}

impl Authority {
    /// Makes a new authority: ECDSA P-256, self-signed, 20 years, no authorities below it.
    ///
    /// # Errors
    /// When no key can be made or `name` is not representable.
    pub fn create(name: &str, now: Reading) -> Result<(String, PrivateKeyPem), PkiError> {
        let key = KeyPair::generate().map_err(PkiError::sign("the authority"))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(name);
        params.serial_number = Some(SerialNumber::from_slice(Serial::random().as_bytes()));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let (start, life) = match now.firm {
            true => (now.seconds - BACKDATED, LIFE),
            false => (EARLIEST, LIFE + UNSET_CLOCK_RESERVE),
        };
        params.not_before = date(start)?;
        params.not_after = date(start + life)?;
        let certificate = params.self_signed(&key).map_err(PkiError::sign("the authority"))?;
        Ok((pem::encode("CERTIFICATE", certificate.der()), PrivateKeyPem::new(key.serialize_pem())))
    }

    /// Checks a chain (the authority first, then those above it) and its PKCS#8 key, and makes them ready to sign.
    ///
    /// # Errors
    /// When one of them cannot be read, they do not belong together, the certificate may not sign certificates and
    /// revocation lists, the chain is broken, or it has ended.
    pub fn load(chain_pem: &str, key_pem: &str, now: Reading) -> Result<Self, PkiError> {
        let chain = pem::certificates(chain_pem)?;
        pem::private_key(key_pem)?;
        let key = KeyPair::from_pem(key_pem)
            .map_err(|_| PkiError::invalid("authority key", "it is no P-256, P-384, Ed25519 or RSA key in PKCS#8"))?;
        let (validity, subject, key_id) = check(&chain, &key)?;
        if now.firm && now.seconds > validity.not_after {
            return Err(PkiError::AuthorityExpired);
        }
        let issuer = Issuer::from_ca_cert_der(&chain[0], key)
            .map_err(|error| PkiError::NotAnAuthority(format!("its name cannot be used: {error}")))?;
        let authority = Self { chain, issuer, validity, subject, key_id };
        authority.prove()?;
        Ok(authority)
    }

    /// Reads the authority of a directory.
    pub(super) fn open(directory: &Path, now: Reading) -> Result<Self, PkiError> {
        let (chain, key) = (directory.join("ca.pem"), directory.join("ca.key"));
        if !key.exists() || !chain.exists() {
            return Err(PkiError::Missing(directory.to_owned()));
        }
        Self::load(&pem::read(&chain)?, &pem::read_private(&key)?, now)
    }

    /// Writes chain and key into a directory that has none. The key first: without the certificate it is nothing.
    pub(super) fn save(directory: &Path, chain: &str, key: &PrivateKeyPem, disk: &Disk) -> Result<(), PkiError> {
        let (chain_path, key_path) = (directory.join("ca.pem"), directory.join("ca.key"));
        if chain_path.exists() {
            return Err(PkiError::Exists(directory.to_owned()));
        }
        disk.create_directory(directory, Access::Private).map_err(PkiError::io("create", directory))?;
        disk.replace(&key_path, key.expose().as_bytes(), Access::Private).map_err(PkiError::io("write", &key_path))?;
        disk.replace(&chain_path, chain.as_bytes(), Access::Public).map_err(PkiError::io("write", &chain_path))
    }

    /// Whether a directory has an authority.
    pub(super) fn exists(directory: &Path) -> bool {
        directory.join("ca.pem").exists()
    }

    /// The authority's certificate first, then those above it.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The certificate that signs: what verifiers trust.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.chain[0]
    }

    /// The chain as PEM.
    pub fn chain_pem(&self) -> String {
        pem::encode_chain(&self.chain)
    }

    /// SHA-256 of the authority's certificate, lowercase hex: what people compare over the telephone.
    pub fn fingerprint(&self) -> String {
        super::request::key_fingerprint(self.certificate())
    }

    /// From when to when the authority may sign.
    pub const fn validity(&self) -> Validity {
        self.validity
    }

    /// Its name.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    pub(super) fn key_id(&self) -> &[u8] {
        &self.key_id
    }

    pub(super) const fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }

    /// Signs a leaf for `key`.
    pub(super) fn sign(&self, leaf: Leaf<'_>, key: &impl PublicKeyData) -> Result<CertificateDer<'static>, PkiError> {
        let mut params = CertificateParams::default();
        params.serial_number = Some(SerialNumber::from_slice(leaf.serial.as_bytes()));
        params.distinguished_name = common_name(leaf.common_name);
        params.subject_alt_names = leaf.sans;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![leaf.usage];
        params.use_authority_key_identifier_extension = true;
        params.not_before = date(leaf.validity.not_before)?;
        params.not_after = date(leaf.validity.not_after)?;
        let signed = params.signed_by(key, &self.issuer).map_err(PkiError::sign("the certificate"))?;
        Ok(signed.into())
    }

    /// Signs something and looks at it: a name that the library cannot write back byte by byte would make every
    /// certificate worthless, and this is the moment to say so.
    fn prove(&self) -> Result<(), PkiError> {
        let serial = Serial::random();
        let probe = Leaf {
            serial: &serial,
            common_name: "probe",
            sans: Vec::new(),
            usage: ExtendedKeyUsagePurpose::ClientAuth,
            validity: self.validity,
        };
        let signed = self.sign(probe, self.issuer.key())?;
        let (leaf, authority) = (parse(&signed)?, parse(self.certificate())?);
        if leaf.issuer().as_raw() != authority.subject().as_raw() {
            return Err(PkiError::NotAnAuthority("its name is written in a way that cannot be reproduced".to_owned()));
        }
        let signature = leaf.verify_signature(Some(authority.public_key()));
        signature.map_err(|_| PkiError::NotAnAuthority("its key does not sign what its certificate says".to_owned()))
    }
}

/// Checks what a chain and a key must be to sign; returns validity, name and key identifier of the first certificate.
fn check(chain: &[CertificateDer<'static>], key: &KeyPair) -> Result<(Validity, String, Vec<u8>), PkiError> {
    let refuse = |reason: &str| Err(PkiError::NotAnAuthority(reason.to_owned()));
    let certificate = parse(&chain[0])?;
    if !certificate.is_ca() {
        return refuse("its basic constraints do not say CA");
    }
    if certificate
        .key_usage()
        .ok()
        .flatten()
        .is_some_and(|usage| !usage.value.key_cert_sign() || !usage.value.crl_sign())
    {
        return refuse("its key usage lacks keyCertSign or cRLSign");
    }
    if certificate.public_key().raw != key.subject_public_key_info() {
        return refuse(
            "the key does not belong to it; the first certificate of the chain must be the authority itself",
        );
    }
    for pair in chain.windows(2) {
        let (below, above) = (parse(&pair[0])?, parse(&pair[1])?);
        if !above.is_ca() || below.verify_signature(Some(above.public_key())).is_err() {
            return refuse("a certificate of its chain is not signed by the next one");
        }
    }
    let key_id = certificate.iter_extensions().find_map(|extension| match extension.parsed_extension() {
        x509_parser::extensions::ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
        _ => None,
    });
    let Some(key_id) = key_id else { return refuse("it has no subject key identifier") };
    Ok((validity_of(&certificate), certificate.subject().to_string(), key_id))
}

/// Parses a whole certificate.
pub(super) fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, PkiError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(PkiError::invalid("certificate", "there are bytes behind its end")),
        Err(error) => Err(PkiError::invalid("certificate", error)),
    }
}

pub(super) fn validity_of(certificate: &X509Certificate<'_>) -> Validity {
    let validity = certificate.validity();
    Validity { not_before: validity.not_before.timestamp(), not_after: validity.not_after.timestamp() }
}

/// A date as the certificate library wants it, from Unix seconds.
pub(super) fn date(seconds: i64) -> Result<OffsetDateTime, PkiError> {
    OffsetDateTime::from_unix_timestamp(seconds)
        .map_err(|_| PkiError::invalid("date", format!("{seconds} seconds after 1970 is out of range")))
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}
