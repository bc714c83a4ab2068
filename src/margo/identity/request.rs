//! A key of our own and a request for an SVID, for the operator's authority. The key never leaves the gateway.

use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose, SanType};

use super::spiffe::ClientName;

/// The request could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make the request for an SVID: {0}")]
pub struct RequestError(String);

/// Request and key, both PEM. The key does not print.
pub struct SvidRequest {
    /// PKCS#10, for the authority.
    pub request: String,
    /// PKCS#8, for a file that only the gateway reads.
    pub key: crate::security::Secret,
}

impl std::fmt::Debug for SvidRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SvidRequest").field("request", &self.request).finish_non_exhaustive()
    }
}

/// Makes an ECDSA P-256 key, the one kind that everybody must accept, and the request for `name`.
///
/// # Errors
/// [`RequestError`] when the cryptographic library refuses.
pub fn make_svid_request(name: &ClientName) -> Result<SvidRequest, RequestError> {
    let failed = |error: rcgen::Error| RequestError(error.to_string());
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name.client_id());
    params.subject_alt_names = vec![SanType::URI(name.id().as_str().try_into().map_err(failed)?)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let request = params.serialize_request(&key).and_then(|request| request.pem()).map_err(failed)?;
    Ok(SvidRequest { request, key: crate::security::Secret::new(key.serialize_pem()) })
}
