//! The name in a verified certificate, and which certificate it is.

use std::sync::Arc;

use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::revocation_list::CertificateRevocationList;

/// What the plant's authority puts before the id in the certificate of a device, as a URI.
const DEVICE_URI: &str = "urn:fieldgate:device:";

/// What the name of a device begins with. No other client can have such a name.
pub const DEVICE: &str = "device:";

/// `device:` and the id for a certificate of a device of this plant; else the common name of the subject, else the first
/// DNS, mail or URI alternative name. Only for a certificate that was verified; `None` when it has no such name or an empty
/// one.
pub fn peer_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let common = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
    // A name that begins like that of a device is one that somebody chose.
    let named = |text: &str| match text.starts_with(DEVICE) {
        true => Some(format!("cn:{text}")),
        false => (!text.is_empty()).then(|| text.to_owned()),
    };
    let alternatives = certificate.subject_alternative_name().ok().flatten();
    let names = || alternatives.iter().flat_map(|extension| extension.value.general_names.iter());
    // A user must not become a device, or a device a user, by the choice of a common name.
    let device = names().find_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix(DEVICE_URI),
        _ => None,
    });
    if let Some(id) = device {
        return Some(format!("{DEVICE}{id}")).filter(|_| !id.is_empty());
    }
    common.and_then(named).or_else(|| {
        names().find_map(|name| match name {
            GeneralName::DNSName(text) | GeneralName::RFC822Name(text) | GeneralName::URI(text) => named(text),
            _ => None,
        })
    })
}

/// Which certificate it is: issuer and serial number, as revocation lists name it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct CertificateId(Arc<[u8]>);

impl std::fmt::Debug for CertificateId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CertificateId(…)")
    }
}

impl CertificateId {
    /// That of `certificate`; `None` when it cannot be read.
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        Some(Self::new(certificate.issuer().as_raw(), certificate.raw_serial()))
    }

    /// Serial numbers differ in leading zeros only between encoders.
    fn new(issuer: &[u8], serial: &[u8]) -> Self {
        let first = serial.iter().position(|&octet| octet != 0).unwrap_or(serial.len());
        Self([issuer, &serial[first..]].concat().into())
    }

    /// All that a revocation list names; none when it cannot be read.
    pub(super) fn of_list(list: &CertificateRevocationListDer<'_>) -> Vec<Self> {
        let Ok((_, list)) = CertificateRevocationList::from_der(list) else { return Vec::new() };
        let issuer = list.issuer().as_raw();
        list.iter_revoked_certificates().map(|revoked| Self::new(issuer, revoked.raw_serial())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_common_name_comes_before_alternative_names() {
        let key = rcgen::KeyPair::generate().unwrap();
        let name = |common: Option<&str>| {
            let mut params = rcgen::CertificateParams::new(vec!["pump.example".to_owned()]).unwrap();
            params.distinguished_name = rcgen::DistinguishedName::new();
            if let Some(common) = common {
                params.distinguished_name.push(rcgen::DnType::CommonName, common);
            }
            peer_name(params.self_signed(&key).unwrap().der())
        };
        assert_eq!(name(Some("scada-1")).as_deref(), Some("scada-1"));
        assert_eq!(name(None).as_deref(), Some("pump.example"));
        let mut device = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        device.distinguished_name.push(rcgen::DnType::CommonName, "pump-1");
        let uri = "urn:fieldgate:device:pump-1".try_into().unwrap();
        device.subject_alt_names.push(rcgen::SanType::URI(uri));
        assert_eq!(peer_name(device.self_signed(&key).unwrap().der()).as_deref(), Some("device:pump-1"));
        assert_eq!(peer_name(&CertificateDer::from(vec![1, 2, 3])), None);
    }
}
