//! Names in certificates, and requests (PKCS#10, RFC 2986) of those who keep their own key.
//!
//! A request proves possession of a key and nothing else: the names in it are wishes. What ends up in the certificate is
//! what the operator approved.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

use super::{PkiError, PrivateKeyPem, Purpose};
use crate::model::{DeviceId, is_unreserved};

/// Longest common name (RFC 5280, ub-common-name).
const MAX_COMMON_NAME: usize = 64;
/// Longest request that is looked at, in bytes.
const MAX_REQUEST: usize = 16 * 1024;
/// Shortest RSA key that is accepted, in bits.
const MIN_RSA_BITS: usize = 2_048;
/// How a device is named in its certificate.
pub(super) const DEVICE_URI: &str = "urn:fieldgate:device:";
/// How a user is named in a certificate.
pub(super) const USER_URI: &str = "urn:fieldgate:user:";

/// Names of a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerNames {
    host: String,
    dns: BTreeSet<String>,
    addresses: BTreeSet<IpAddr>,
}

impl ServerNames {
    /// The names of a host: its own, `localhost` and the loopback addresses.
    ///
    /// # Errors
    /// When `host` is not a DNS name.
    pub fn of_host(host: &str) -> Result<Self, PkiError> {
        let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        let names = Self { host: host.to_owned(), dns: BTreeSet::new(), addresses: loopback.into() };
        names.with_name(host)?.with_name("localhost")
    }

    /// Adds a DNS name or an IP address. `0.0.0.0` and `::` are left out: nobody connects to them, so name the
    /// addresses that clients use.
    ///
    /// # Errors
    /// When it is neither.
    pub fn with_name(mut self, name: &str) -> Result<Self, PkiError> {
        match name.parse::<IpAddr>() {
            Ok(address) => return Ok(self.with_address(address)),
            Err(_) if is_dns_name(name) => self.dns.insert(name.to_ascii_lowercase()),
            Err(_) => return Err(PkiError::invalid("server name", format!("{name:?} is no host name and no address"))),
        };
        Ok(self)
    }

    /// Adds the address of a listener.
    pub fn with_address(mut self, address: IpAddr) -> Self {
        if !address.is_unspecified() {
            self.addresses.insert(address);
        }
        self
    }

    /// The names of a certificate that is renewed.
    pub(super) fn of_entry(subject: &str, names: &[String]) -> Result<Self, PkiError> {
        let empty = Self { host: subject.to_owned(), dns: BTreeSet::new(), addresses: BTreeSet::new() };
        names.iter().try_fold(empty, |all, name| all.with_name(name))
    }

    /// The host's own name: the certificate's common name.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// All names as text.
    pub fn to_texts(&self) -> Vec<String> {
        self.dns.iter().cloned().chain(self.addresses.iter().map(IpAddr::to_string)).collect()
    }

    pub(super) fn sans(&self) -> Result<Vec<SanType>, PkiError> {
        let invalid = |error: rcgen::Error| PkiError::invalid("server name", error);
        let dns = self.dns.iter().map(|name| Ok(SanType::DnsName(name.as_str().try_into().map_err(invalid)?)));
        dns.chain(self.addresses.iter().map(|&address| Ok(SanType::IpAddress(address)))).collect()
    }
}

/// A host name as in RFC 1123: labels of letters, digits and inner hyphens.
fn is_dns_name(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

/// Who a client certificate is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientSubject {
    /// A device.
    Device(DeviceId),
    /// A person or program; the name has the characters of an id.
    User(String),
}

impl ClientSubject {
    /// A user by name.
    ///
    /// # Errors
    /// When the name is empty, longer than 64 characters or has characters outside `A-Z a-z 0-9 . _ ~ -`.
    pub fn user(name: &str) -> Result<Self, PkiError> {
        let legal = (1..=MAX_COMMON_NAME).contains(&name.len()) && name.chars().all(is_unreserved);
        let user = || Self::User(name.to_owned());
        legal.then(user).ok_or_else(|| {
            PkiError::invalid("user name", format!("{name:?}; use 1 to 64 characters of A-Z a-z 0-9 . _ ~ -"))
        })
    }

    /// The common name.
    pub fn name(&self) -> &str {
        match self {
            Self::Device(device) => device.as_str(),
            Self::User(user) => user,
        }
    }

    /// What the certificate is for.
    pub const fn purpose(&self) -> Purpose {
        match self {
            Self::Device(_) => Purpose::Device,
            Self::User(_) => Purpose::User,
        }
    }

    /// The URI in the certificate.
    pub fn uri(&self) -> String {
        match self {
            Self::Device(device) => format!("{DEVICE_URI}{device}"),
            Self::User(user) => format!("{USER_URI}{user}"),
        }
    }

    /// Reads such a URI.
    pub fn from_uri(uri: &str) -> Option<Self> {
        match (uri.strip_prefix(DEVICE_URI), uri.strip_prefix(USER_URI)) {
            (Some(device), _) => DeviceId::new(device).ok().map(Self::Device),
            (_, Some(user)) => Self::user(user).ok(),
            _ => None,
        }
    }
}

/// A checked request: its signature proves that the sender has the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateRequest {
    /// The common name that the sender wishes, if any; only for people to look at.
    pub wished_name: Option<String>,
    /// The URIs that the sender wishes; only to tell requests apart.
    pub wished_uris: Vec<String>,
    /// SHA-256 of the public key (SubjectPublicKeyInfo), lowercase hex.
    pub key: String,
    pub(super) public_key: Vec<u8>,
}

impl CertificateRequest {
    /// Reads a request in PEM.
    ///
    /// # Errors
    /// When it is no request, its signature is wrong, or its key is of a kind or size that is not accepted.
    pub fn from_pem(pem: &str) -> Result<Self, PkiError> {
        let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes());
        Self::from_der(&der.map_err(|error| PkiError::invalid("certificate request", error))?)
    }

    /// Reads a request in DER.
    ///
    /// # Errors
    /// As [`CertificateRequest::from_pem`].
    pub fn from_der(der: &[u8]) -> Result<Self, PkiError> {
        let invalid = |reason: &str| PkiError::invalid("certificate request", reason);
        if der.len() > MAX_REQUEST {
            return Err(invalid("it is longer than 16 KiB"));
        }
        let (rest, request) = X509CertificationRequest::from_der(der).map_err(|_| invalid("it is not PKCS#10"))?;
        if !rest.is_empty() {
            return Err(invalid("there are bytes behind its end"));
        }
        let info = &request.certification_request_info;
        check_key(&info.subject_pki).map_err(|reason| invalid(&reason))?;
        request.verify_signature().map_err(|_| invalid("its signature does not match its key"))?;
        let wished = info.subject.iter_common_name().next().and_then(|name| name.as_str().ok());
        Ok(Self {
            wished_name: wished.map(str::to_owned),
            wished_uris: wished_uris(&request),
            key: key_fingerprint(info.subject_pki.raw),
            public_key: info.subject_pki.raw.to_vec(),
        })
    }
}

fn wished_uris(request: &X509CertificationRequest<'_>) -> Vec<String> {
    let names = request.requested_extensions().into_iter().flatten().filter_map(|extension| match extension {
        ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
        _ => None,
    });
    let uris = names.flatten().filter_map(|name| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    });
    uris.collect()
}

/// Refuses keys that are too short or of an unknown kind.
pub(super) fn check_key(key: &x509_parser::x509::SubjectPublicKeyInfo<'_>) -> Result<(), String> {
    match key.parsed() {
        Ok(PublicKey::RSA(rsa)) if rsa.key_size() < MIN_RSA_BITS => {
            Err(format!("its RSA key has {} bits; at least {MIN_RSA_BITS} are needed", rsa.key_size()))
        }
        Ok(PublicKey::RSA(_)) => Ok(()),
        Ok(_) => match rcgen::SubjectPublicKeyInfo::from_der(key.raw) {
            Ok(_) => Ok(()),
            Err(_) => Err("its key is not P-256, P-384, Ed25519 or RSA".to_owned()),
        },
        Err(_) => Err("its key cannot be read".to_owned()),
    }
}

/// SHA-256 of a SubjectPublicKeyInfo as lowercase hex.
pub(super) fn key_fingerprint(spki: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, spki);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Makes a P-256 key and a request for it.
///
/// # Errors
/// When the library cannot make a key, or `common_name` is not representable.
pub fn make_request(
    common_name: &str,
    uri: Option<&str>,
) -> Result<(CertificateSigningRequestDer<'static>, PrivateKeyPem), PkiError> {
    let key = KeyPair::generate().map_err(PkiError::sign("a request"))?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    if let Some(uri) = uri {
        let uri = uri.try_into().map_err(|error| PkiError::invalid("URI of a request", error))?;
        params.subject_alt_names.push(SanType::URI(uri));
    }
    let request = params.serialize_request(&key).map_err(PkiError::sign("a request"))?;
    Ok((request.into(), PrivateKeyPem::new(key.serialize_pem())))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_request_is_read_and_one_with_a_wrong_signature_is_refused() {
        let (request, _) = make_request("pump-1", None).unwrap();
        let read = CertificateRequest::from_der(&request).unwrap();
        assert_eq!(read.wished_name.as_deref(), Some("pump-1"));
        assert_eq!(read.key.len(), 64);
        let (request, _) = make_request("pump-1", Some("spiffe://plant/pump")).unwrap();
        assert_eq!(CertificateRequest::from_der(&request).unwrap().wished_uris, ["spiffe://plant/pump"]);
        let (request, _) = make_request("pump-1", None).unwrap();
        let mut forged = request.to_vec();
        let at = forged.windows(6).position(|window| window == b"pump-1").unwrap();
        forged[at] = b'd';
        let error = CertificateRequest::from_der(&forged).unwrap_err();
        assert!(error.to_string().contains("signature does not match"), "{error}");
    }

    #[test]
    fn names_of_a_host_hold_loopback_and_leave_out_the_unspecified_address() {
        let names = ServerNames::of_host("gw-7").unwrap().with_name("10.0.0.7").unwrap().with_name("0.0.0.0").unwrap();
        assert_eq!(names.to_texts(), ["gw-7", "localhost", "10.0.0.7", "127.0.0.1", "::1"]);
        assert!(ServerNames::of_host("not a name").is_err());
        assert!(ServerNames::of_host("-x").is_err() && ServerNames::of_host("").is_err());
        let again = ServerNames::of_entry(names.host(), &names.to_texts()).unwrap();
        assert_eq!(again, names);
    }

    #[test]
    fn a_client_is_read_back_from_its_uri() {
        let device = ClientSubject::Device(DeviceId::new("pump-1").unwrap());
        assert_eq!(ClientSubject::from_uri(&device.uri()), Some(device));
        assert_eq!(ClientSubject::from_uri("urn:fieldgate:user:ann"), Some(ClientSubject::User("ann".to_owned())));
        assert_eq!(ClientSubject::from_uri("urn:fieldgate:user:a/b"), None);
        assert_eq!(ClientSubject::from_uri("spiffe://plant/x"), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(CertificateRequest::from_der(&bytes).is_err());
        }

        #[test]
        fn a_flipped_bit_never_passes(bit in 0usize..4_000) {
            let (request, _) = make_request("pump-1", None).unwrap();
            let original = CertificateRequest::from_der(&request).unwrap();
            let mut bytes = request.to_vec();
            let bit = bit % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            if let Ok(read) = CertificateRequest::from_der(&bytes) {
                prop_assert_eq!(read, original);
            }
        }
    }
}
