//! The rules for one SVID, written from the reference, and the pieces of a client's SPIFFE ID.

use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// The SPIFFE ID of a certificate that obeys every rule that needs no chain; else which rule it breaks.
pub(crate) fn spiffe_id(der: &[u8], trust_domain: &str) -> Result<String, String> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|error| format!("no certificate: {error}"))?;
    let names = certificate.subject_alternative_name().map_err(|error| format!("subject alternative name: {error}"))?;
    let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    let uris: Vec<&str> = names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect();
    let [uri] = uris[..] else { return Err(format!("{} URI SANs instead of exactly one", uris.len())) };
    let Some(rest) = uri.strip_prefix("spiffe://") else { return Err(format!("{uri} is no SPIFFE ID")) };
    let Some((domain, path)) = rest.split_once('/') else { return Err(format!("{uri} has no path")) };
    if domain != trust_domain {
        return Err(format!("{uri} is not of the trust domain {trust_domain}"));
    }
    if !path.split('/').all(is_segment) {
        return Err(format!("{uri} has a path segment that is empty, `.`, `..` or not of unreserved characters"));
    }
    if certificate.is_ca() {
        return Err(format!("{uri} is an authority"));
    }
    let usage = certificate.key_usage().map_err(|error| format!("key usage: {error}"))?;
    if usage.as_ref().is_some_and(|usage| usage.value.key_cert_sign()) {
        return Err(format!("{uri} may sign certificates"));
    }
    if usage.as_ref().is_some_and(|usage| usage.value.crl_sign()) {
        return Err(format!("{uri} may sign revocation lists"));
    }
    Ok(uri.to_owned())
}

/// The client's part of a SPIFFE ID below the WFM's.
pub(crate) fn client_of<'a>(spiffe_id: &'a str, wfm: &str) -> Option<&'a str> {
    spiffe_id.strip_prefix(wfm)?.strip_prefix("/client/").filter(|client| is_segment(client))
}

/// One segment of unreserved characters.
pub(crate) fn is_segment(text: &str) -> bool {
    !matches!(text, "" | "." | "..") && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._~-".contains(&b))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::margo::{Authority, Flaw, KeyKind};

    #[test]
    fn every_flaw_of_the_leaf_is_named() {
        let authority = Authority::new("plant.example").unwrap();
        let checked = |flaw| {
            let svid = authority.client_svid("w", "c", Duration::from_secs(60), flaw).unwrap();
            spiffe_id(&svid.chain[0], "plant.example")
        };
        assert_eq!(checked(Flaw::None).unwrap(), "spiffe://plant.example/margo/wfm/w/client/c");
        for (flaw, words) in [
            (Flaw::WrongDomain, "trust domain"),
            (Flaw::TwoUris, "2 URI SANs"),
            (Flaw::NoUri, "0 URI SANs"),
            (Flaw::CaLeaf, "is an authority"),
            (Flaw::KeyCertSign, "sign certificates"),
            (Flaw::CrlSign, "revocation lists"),
            (Flaw::RootPath, "no path"),
            (Flaw::NotSpiffe, "no SPIFFE ID"),
        ] {
            let refused = checked(flaw).expect_err("refused");
            assert!(refused.contains(words), "{flaw:?}: {refused}");
        }
        assert!(checked(Flaw::WrongWfm).unwrap().contains("/another/"));
    }

    #[test]
    fn every_kind_of_key_can_be_had() {
        let authority = Authority::new("plant.example").unwrap();
        for key in [KeyKind::P256, KeyKind::P384, KeyKind::Ed25519] {
            let id = authority.wfm_id("w");
            let svid = authority.issue(&id, Flaw::None, Duration::from_secs(60), key).unwrap();
            assert_eq!(spiffe_id(&svid.chain[0], "plant.example").unwrap(), id);
        }
    }

    #[test]
    fn a_client_is_exactly_one_segment_below_its_wfm() {
        let wfm = "spiffe://p/margo/wfm/w";
        assert_eq!(client_of("spiffe://p/margo/wfm/w/client/c", wfm), Some("c"));
        for other in ["spiffe://p/margo/wfm/w", "spiffe://p/margo/wfm/ww/client/c", "spiffe://p/margo/wfm/w/client/c/d"]
        {
            assert_eq!(client_of(other, wfm), None, "{other}");
        }
    }
}
