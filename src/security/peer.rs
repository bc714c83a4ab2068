//! Name and fingerprint of a verified certificate.

use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// What the plant's authority puts before the id in the certificate of a device, as a URI.
const DEVICE: &str = "urn:fieldgate:device:";

/// SHA-256 of the certificate, lower-case hexadecimal.
pub fn peer_fingerprint(certificate: &CertificateDer<'_>) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, certificate);
    digest.as_ref().iter().map(|octet| format!("{octet:02x}")).collect()
}

/// `device:` and the id for a certificate of a device of this plant; else the common name of the subject, else the first DNS, mail or URI alternative name. Only for a certificate that was
/// verified; `None` when it has no such name or an empty one.
pub fn peer_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let common = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
    let named = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let alternatives = certificate.subject_alternative_name().ok().flatten();
    let names = || alternatives.iter().flat_map(|extension| extension.value.general_names.iter());
    // A user must not become a device, or a device a user, by the choice of a common name.
    let device = names().find_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix(DEVICE),
        _ => None,
    });
    if let Some(id) = device {
        return named(&format!("device:{id}"));
    }
    common.and_then(named).or_else(|| {
        names().find_map(|name| match name {
            GeneralName::DNSName(text) | GeneralName::RFC822Name(text) | GeneralName::URI(text) => named(text),
            _ => None,
        })
    })
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
        assert_eq!(peer_name(&CertificateDer::from(vec![1, 2, 3])), None);
    }
}
