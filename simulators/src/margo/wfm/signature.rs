//! HTTP message signatures (RFC 9421) with content digests (RFC 9530), as the older interface profiles them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, RSA_PKCS1_2048_8192_SHA256, RSA_PSS_2048_8192_SHA512,
    UnparsedPublicKey, VerificationAlgorithm,
};
use x509_parser::certificate::X509Certificate;
use x509_parser::public_key::PublicKey;

use crate::margo::http::Ask;
use crate::margo::tools::now_seconds;

/// Seconds that `created` may be away from now.
const AGE: i64 = 300;

/// Why a request is not the client's.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Error {
    #[error("the request is not signed")]
    Unsigned,
    #[error("content-digest: {0}")]
    Digest(&'static str),
    #[error("the signature does not hold: {0}")]
    Wrong(&'static str),
}

/// A client's public key.
pub(super) enum Key {
    P256(Vec<u8>),
    P384(Vec<u8>),
    Rsa(Vec<u8>),
}

impl Key {
    pub fn of(certificate: &X509Certificate<'_>) -> Option<Self> {
        let bits = certificate.public_key().subject_public_key.data.to_vec();
        match certificate.public_key().parsed().ok()? {
            // Uncompressed points (SEC 1, 2.3.3).
            PublicKey::EC(_) if bits.len() == 65 => Some(Self::P256(bits)),
            PublicKey::EC(_) if bits.len() == 97 => Some(Self::P384(bits)),
            PublicKey::RSA(_) => Some(Self::Rsa(bits)),
            _ => None,
        }
    }

    fn verify(&self, algorithm: Option<&str>, message: &[u8], signature: &[u8]) -> Result<(), Error> {
        let (bits, verifier): (_, &'static dyn VerificationAlgorithm) = match (self, algorithm) {
            (Self::P256(bits), None | Some("ecdsa-p256-sha256")) => (bits, &ECDSA_P256_SHA256_FIXED),
            (Self::P384(bits), None | Some("ecdsa-p384-sha384")) => (bits, &ECDSA_P384_SHA384_FIXED),
            (Self::Rsa(bits), None | Some("rsa-pss-sha512")) => (bits, &RSA_PSS_2048_8192_SHA512),
            (Self::Rsa(bits), Some("rsa-v1_5-sha256")) => (bits, &RSA_PKCS1_2048_8192_SHA256),
            _ => return Err(Error::Wrong("alg does not fit the key")),
        };
        let key = UnparsedPublicKey::new(verifier, bits);
        key.verify(message, signature).map_err(|_| Error::Wrong("it is of another key or another message"))
    }
}

/// One member of `Signature-Input`.
#[derive(Debug, PartialEq, Eq)]
struct Input<'a> {
    label: &'a str,
    covered: Vec<&'a str>,
    /// As written, for the signature base.
    written: &'a str,
    created: Option<i64>,
    key_id: Option<&'a str>,
    algorithm: Option<&'a str>,
}

fn parse(header: &str) -> Option<Input<'_>> {
    let (label, rest) = header.split_once('=')?;
    let written = &rest[..end_of_member(rest)];
    let (list, parameters) = written.strip_prefix('(')?.split_once(')')?;
    let covered = list
        .split_ascii_whitespace()
        .map(|item| item.strip_prefix('"')?.strip_suffix('"'))
        .collect::<Option<Vec<&str>>>()?;
    let mut input = Input { label: label.trim(), covered, written, created: None, key_id: None, algorithm: None };
    for parameter in parameters.split(';').filter(|parameter| !parameter.trim().is_empty()) {
        let (name, value) = parameter.split_once('=')?;
        match name.trim() {
            "created" => input.created = value.parse().ok(),
            "keyid" => input.key_id = Some(value.trim_matches('"')),
            "alg" => input.algorithm = Some(value.trim_matches('"')),
            _ => {}
        }
    }
    Some(input)
}

/// Up to a comma outside quotes.
fn end_of_member(text: &str) -> usize {
    let mut quoted = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'"' => quoted = !quoted,
            b',' if !quoted => return at,
            _ => {}
        }
    }
    text.len()
}

/// Holds a request against a client's key.
pub(super) fn verify(ask: &Ask, key: &Key, key_id: &str) -> Result<(), Error> {
    let (Some(input), Some(signature)) = (ask.header("signature-input"), ask.header("signature")) else {
        return Err(Error::Unsigned);
    };
    let input = parse(input).ok_or(Error::Wrong("signature-input cannot be read"))?;
    if !ask.body.is_empty() {
        content_digest(ask)?;
    }
    for needed in ["@method", "@target-uri", "@authority"] {
        if !input.covered.contains(&needed) {
            return Err(Error::Wrong("@method, @target-uri and @authority must be covered"));
        }
    }
    if !ask.body.is_empty() && !input.covered.contains(&"content-digest") {
        return Err(Error::Wrong("content-digest must be covered when there is a body"));
    }
    if input.key_id != Some(key_id) {
        return Err(Error::Wrong("keyid is not the SHA-256 of the client's public key"));
    }
    match input.created {
        Some(created) if (now_seconds() - created).abs() <= AGE => {}
        Some(_) => return Err(Error::Wrong("created is more than five minutes away")),
        None => return Err(Error::Wrong("created is missing")),
    }
    let base = base(ask, &input).ok_or(Error::Wrong("a covered field is missing"))?;
    let value = signature.strip_prefix(input.label).and_then(|rest| rest.strip_prefix("=:"));
    let value = value.and_then(|rest| rest.split_once(':')).map(|(value, _)| value);
    let value = value.and_then(|value| STANDARD.decode(value).ok()).ok_or(Error::Wrong("signature cannot be read"))?;
    key.verify(input.algorithm, base.as_bytes(), &value)
}

fn content_digest(ask: &Ask) -> Result<(), Error> {
    let header = ask.header("content-digest").ok_or(Error::Digest("is missing"))?;
    let value = header.split(',').find_map(|member| member.trim().strip_prefix("sha-256=:")?.strip_suffix(':'));
    let value = value.and_then(|value| STANDARD.decode(value).ok()).ok_or(Error::Digest("no sha-256 in it"))?;
    let right = ring::digest::digest(&ring::digest::SHA256, &ask.body);
    if right.as_ref() == value { Ok(()) } else { Err(Error::Digest("the body is another one")) }
}

/// The signature base (RFC 9421, 2.5).
fn base(ask: &Ask, input: &Input<'_>) -> Option<String> {
    let authority = ask.header("host")?.to_lowercase();
    let query = if ask.query.is_empty() { String::new() } else { format!("?{}", ask.query) };
    let mut lines = String::new();
    for name in &input.covered {
        let value = match *name {
            "@method" => ask.method.to_string(),
            "@authority" => authority.clone(),
            "@scheme" => "https".to_owned(),
            "@path" => ask.path.clone(),
            "@query" => format!("?{}", ask.query),
            "@request-target" => format!("{}{query}", ask.path),
            "@target-uri" => format!("https://{authority}{}{query}", ask.path),
            field => ask.header(field)?.trim().to_owned(),
        };
        lines.push_str(&format!("\"{name}\": {value}\n"));
    }
    lines.push_str(&format!("\"@signature-params\": {}", input.written));
    Some(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_is_read() {
        let text = r#"sig1=("@method" "content-digest");created=5;keyid="a,b";alg="ecdsa-p256-sha256", sig2=()"#;
        let input = parse(text).unwrap();
        assert_eq!(input.label, "sig1");
        assert_eq!(input.covered, ["@method", "content-digest"]);
        assert_eq!((input.created, input.key_id, input.algorithm), (Some(5), Some("a,b"), Some("ecdsa-p256-sha256")));
        assert!(input.written.ends_with("sha256\""));
        for bad in ["", "sig1", "sig1=(", "sig1=(@method)", "sig1=(\"a\" b)"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
