//! Signatures of requests (RFC 9421, RFC 9530) as the older interface wants them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, RSA_PKCS1_SHA256, RSA_PSS_SHA512,
    RsaEncoding, RsaKeyPair,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::request::Request;
use crate::margo::words::hex;

/// A request could not be signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// The key is of another kind.
    #[error("the key cannot sign requests: {0}; use ECDSA P-256 or P-384, or RSA from 2,048 bits, as PKCS#8")]
    Key(String),
    /// The certificate cannot be read.
    #[error("the certificate that goes with the signing key cannot be read: {0}")]
    Certificate(String),
    /// The address has no host.
    #[error("{0:?} cannot be signed: it has no host")]
    Url(String),
    /// The library refused.
    #[error("the request could not be signed")]
    Failed,
}

enum Key {
    Ecdsa(EcdsaKeyPair),
    Rsa(RsaKeyPair, &'static dyn RsaEncoding),
}

/// Signs requests with one key. Prints no key.
pub struct RequestSigner {
    key: Key,
    algorithm: &'static str,
    key_id: String,
    random: SystemRandom,
}

impl std::fmt::Debug for RequestSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RequestSigner")
            .field("algorithm", &self.algorithm)
            .field("key_id", &self.key_id)
            .finish_non_exhaustive()
    }
}

impl RequestSigner {
    /// For a certificate and its key. `pss` chooses rsa-pss-sha512 over rsa-v1_5-sha256 for RSA keys.
    ///
    /// # Errors
    /// [`SignError::Key`] and [`SignError::Certificate`].
    pub fn new(certificate: &CertificateDer<'_>, key: &PrivateKeyDer<'_>, pss: bool) -> Result<Self, SignError> {
        let random = SystemRandom::new();
        let PrivateKeyDer::Pkcs8(key) = key else { return Err(SignError::Key("it is not PKCS#8".to_owned())) };
        let der = key.secret_pkcs8_der();
        let ecdsa = |algorithm| EcdsaKeyPair::from_pkcs8(algorithm, der, &random);
        let (key, algorithm) = if let Ok(key) = ecdsa(&ECDSA_P256_SHA256_FIXED_SIGNING) {
            (Key::Ecdsa(key), "ecdsa-p256-sha256")
        } else if let Ok(key) = ecdsa(&ECDSA_P384_SHA384_FIXED_SIGNING) {
            (Key::Ecdsa(key), "ecdsa-p384-sha384")
        } else {
            let key = RsaKeyPair::from_pkcs8(der).map_err(|error| SignError::Key(error.to_string()))?;
            match pss {
                true => (Key::Rsa(key, &RSA_PSS_SHA512), "rsa-pss-sha512"),
                false => (Key::Rsa(key, &RSA_PKCS1_SHA256), "rsa-v1_5-sha256"),
            }
        };
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|e| SignError::Certificate(e.to_string()))?;
        let key_id = hex(ring::digest::digest(&ring::digest::SHA256, parsed.public_key().raw).as_ref());
        Ok(Self { key, algorithm, key_id, random })
    }

    /// Lowercase hexadecimal SHA-256 of the public key: `keyid`.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// Adds `Content-Digest`, `Signature-Input` and `Signature`.
    ///
    /// # Errors
    /// [`SignError::Url`] and [`SignError::Failed`].
    pub fn sign(&self, mut request: Request, now: i64) -> Result<Request, SignError> {
        if let Some(body) = &request.body {
            let digest = ring::digest::digest(&ring::digest::SHA256, body);
            let value = format!("sha-256=:{}:", STANDARD.encode(digest.as_ref()));
            request.headers.push(("content-digest", value));
        }
        let (base, input) = self.base(&request, now)?;
        let signature = self.signature(base.as_bytes())?;
        request.headers.push(("signature-input", format!("sig1={input}")));
        request.headers.push(("signature", format!("sig1=:{}:", STANDARD.encode(signature))));
        Ok(request)
    }

    /// The text that is signed (RFC 9421, 2.5), and its parameters.
    fn base(&self, request: &Request, now: i64) -> Result<(String, String), SignError> {
        let mut covered = vec![
            ("@method", request.method.as_str().to_owned()),
            ("@target-uri", request.url.clone()),
            ("@authority", authority(&request.url)?),
        ];
        if let Some(digest) = request.header("content-digest") {
            covered.push(("content-digest", digest.to_owned()));
        }
        let names: Vec<String> = covered.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        let (created, key, algorithm) = (now, &self.key_id, self.algorithm);
        let input = format!("({});created={created};keyid=\"{key}\";alg=\"{algorithm}\"", names.join(" "));
        let lines = covered.iter().map(|(name, value)| format!("\"{name}\": {value}\n"));
        Ok((format!("{}\"@signature-params\": {input}", lines.collect::<String>()), input))
    }

    fn signature(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        match &self.key {
            // r‖s, not DER.
            Key::Ecdsa(key) => {
                key.sign(&self.random, message).map(|s| s.as_ref().to_vec()).map_err(|_| SignError::Failed)
            }
            Key::Rsa(key, encoding) => {
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(*encoding, &self.random, message, &mut signature).map_err(|_| SignError::Failed)?;
                Ok(signature)
            }
        }
    }
}

/// Host and port, lowercase, without the scheme's own port (RFC 9421, 2.2.3).
fn authority(url: &str) -> Result<String, SignError> {
    let wrong = || SignError::Url(url.to_owned());
    let parsed = reqwest::Url::parse(url).map_err(|_| wrong())?;
    let host = parsed.host_str().ok_or_else(wrong)?;
    Ok(parsed.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")))
}

#[cfg(test)]
pub(crate) mod tests {
    use ring::signature::{ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, UnparsedPublicKey, VerificationAlgorithm};

    use super::super::request::Method;
    use super::*;

    fn signer(algorithm: &'static rcgen::SignatureAlgorithm) -> (Vec<u8>, RequestSigner) {
        let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
        let certificate = rcgen::CertificateParams::default().self_signed(&key).unwrap();
        let der = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        (key.public_key_raw().to_vec(), RequestSigner::new(certificate.der(), &der, true).unwrap())
    }

    pub(crate) fn p256() -> (Vec<u8>, RequestSigner) {
        signer(&rcgen::PKCS_ECDSA_P256_SHA256)
    }

    fn request() -> Request {
        Request::new(Method::Post, "https://WFM.example:443/api/v1/x?y=1".to_owned(), 10).json("{}".into())
    }

    #[test]
    fn method_target_authority_and_digest_are_covered_and_the_signature_is_r_and_s() {
        let cases: [(_, &'static dyn VerificationAlgorithm, usize, &str); 2] = [
            (&rcgen::PKCS_ECDSA_P256_SHA256, &ECDSA_P256_SHA256_FIXED, 64, "ecdsa-p256-sha256"),
            (&rcgen::PKCS_ECDSA_P384_SHA384, &ECDSA_P384_SHA384_FIXED, 96, "ecdsa-p384-sha384"),
        ];
        for (algorithm, verification, length, name) in cases {
            let (public, signer) = signer(algorithm);
            let signed = signer.sign(request(), 1_700_000_000).unwrap();
            assert_eq!(signed.header("content-digest"), Some("sha-256=:RBNvo1WzZ4oRRq0W9+hknpT7T8If536DEMBg9hyq/4o=:"));
            let input = signed.header("signature-input").unwrap();
            assert_eq!(
                input,
                format!(
                    "sig1=(\"@method\" \"@target-uri\" \"@authority\" \"content-digest\");created=1700000000;keyid=\"{}\";alg=\"{name}\"",
                    signer.key_id()
                )
            );
            let base = format!(
                "\"@method\": POST\n\"@target-uri\": https://WFM.example:443/api/v1/x?y=1\n\"@authority\": wfm.example\n\"content-digest\": {}\n\"@signature-params\": {}",
                signed.header("content-digest").unwrap(),
                &input[5..]
            );
            let text = signed.header("signature").unwrap().strip_prefix("sig1=:").unwrap().strip_suffix(':').unwrap();
            let signature = STANDARD.decode(text).unwrap();
            assert_eq!(signature.len(), length);
            UnparsedPublicKey::new(verification, public).verify(base.as_bytes(), &signature).unwrap();
        }
    }

    #[test]
    fn a_request_without_a_body_has_no_content_digest() {
        let request = Request::new(Method::Get, "https://wfm.example:8443/x".to_owned(), 10);
        let signed = p256().1.sign(request, 1).unwrap();
        assert_eq!(signed.header("content-digest"), None);
        assert!(
            signed.header("signature-input").unwrap().starts_with("sig1=(\"@method\" \"@target-uri\" \"@authority\");")
        );
        assert_eq!(authority("https://wfm.example:8443/x").unwrap(), "wfm.example:8443");
    }

    #[test]
    fn the_key_id_is_the_digest_of_the_public_key_and_the_key_does_not_print() {
        let (_, signer) = p256();
        assert!(
            signer.key_id().len() == 64 && signer.key_id().chars().all(|c| c.is_ascii_hexdigit() && !c.is_uppercase())
        );
        assert!(!format!("{signer:?}").to_lowercase().contains("pkcs8"));
    }
}
