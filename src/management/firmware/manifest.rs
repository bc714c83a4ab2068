//! The manifest of an artifact and its signatures.
//!
//! A manifest is text with one form only, so that what is read is what was signed:
//! ```text
//! fieldgate-firmware-v1
//! target: gateway-x86_64
//! version: 1.4.2
//! size: 8123456
//! sha256: 64 lowercase hex digits
//! min-version: 1.2.0
//! signature: base64 of the ed25519 signature over all lines above the first signature, newlines included
//! ```
//! `min-version` is optional: the oldest version that can be updated directly. Several signatures may follow, so that keys
//! can be changed without a gap.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::Version;
use super::keys::{SigningKey, TrustedKeys};
use super::refusal::Refusal;
use crate::model::is_unreserved;

const HEADER: &str = "fieldgate-firmware-v1";
/// Longest manifest, signatures included.
const MAX: usize = 8 * 1024;
/// Most signatures that are tried.
const MAX_SIGNATURES: usize = 8;

/// What an artifact is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// What it is for: `gateway-<architecture>` or the name of a device profile.
    pub target: String,
    /// Its version.
    pub version: Version,
    /// Its size in bytes.
    pub size: u64,
    /// SHA-256 of its bytes, 64 lowercase hex digits.
    pub sha256: String,
    /// The oldest version that can be updated directly.
    pub min_version: Option<Version>,
}

impl Manifest {
    /// The one form that is signed.
    pub fn to_text(&self) -> String {
        let Self { target, version, size, sha256, min_version } = self;
        let mut text = format!("{HEADER}\ntarget: {target}\nversion: {version}\nsize: {size}\nsha256: {sha256}\n");
        if let Some(min) = min_version {
            text.push_str(&format!("min-version: {min}\n"));
        }
        text
    }

    /// The manifest with a signature: what is handed to a gateway.
    pub fn sign(&self, key: &SigningKey) -> String {
        let text = self.to_text();
        let signature = STANDARD.encode(key.sign(text.as_bytes()));
        format!("{text}signature: {signature}\n")
    }
}

/// A manifest as it was handed in, with the signatures that came with it. Not checked yet: [`SignedManifest::verify`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedManifest {
    manifest: Manifest,
    signatures: Vec<Vec<u8>>,
}

impl SignedManifest {
    /// Reads a manifest.
    ///
    /// # Errors
    /// [`Refusal::Malformed`] when it is not in the one form.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let malformed = |reason: &str| Refusal::Malformed(reason.to_owned());
        if text.len() > MAX {
            return Err(malformed("it is longer than 8 KiB"));
        }
        let at = text.find("\nsignature: ").map_or(text.len(), |at| at + 1);
        let (body, signatures) = text.split_at(at);
        let manifest = parse_body(body)?;
        if manifest.to_text() != body {
            return Err(malformed("its lines are not in the one form that is signed"));
        }
        let decode = |line: &str| {
            let encoded =
                line.strip_prefix("signature: ").ok_or_else(|| malformed("something follows the signatures"))?;
            STANDARD.decode(encoded).map_err(|_| malformed("a signature is no base64"))
        };
        let signatures: Vec<Vec<u8>> = signatures.lines().map(decode).collect::<Result<_, _>>()?;
        if signatures.len() > MAX_SIGNATURES {
            return Err(malformed("it has more than 8 signatures"));
        }
        Ok(Self { manifest, signatures })
    }

    /// The manifest if one of `keys` signed it, and that key's short name.
    ///
    /// # Errors
    /// [`Refusal::NoKeys`], [`Refusal::Unsigned`] or [`Refusal::BadSignature`].
    pub fn verify(&self, keys: &TrustedKeys) -> Result<(&Manifest, String), Refusal> {
        if keys.is_empty() {
            return Err(Refusal::NoKeys);
        }
        if self.signatures.is_empty() {
            return Err(Refusal::Unsigned);
        }
        let text = self.manifest.to_text();
        let signer = self.signatures.iter().find_map(|signature| keys.verify(text.as_bytes(), signature));
        signer.map(|signer| (&self.manifest, signer)).ok_or(Refusal::BadSignature)
    }

    /// The manifest without a check, for people to look at.
    pub const fn unverified(&self) -> &Manifest {
        &self.manifest
    }
}

fn parse_body(body: &str) -> Result<Manifest, Refusal> {
    let malformed = |reason: String| Refusal::Malformed(reason);
    let mut lines = body.lines();
    if lines.next() != Some(HEADER) {
        return Err(malformed(format!("it does not begin with {HEADER:?}")));
    }
    let mut field = |name: &str| {
        let line = lines.next().and_then(|line| line.strip_prefix(name)).and_then(|rest| rest.strip_prefix(": "));
        line.map(str::to_owned).ok_or_else(|| malformed(format!("the line {name:?} is missing or in the wrong place")))
    };
    let target = field("target")?;
    if target.is_empty() || target.len() > 64 || !target.chars().all(is_unreserved) {
        return Err(malformed("its target is no id".to_owned()));
    }
    let version = Version::parse(&field("version")?).map_err(malformed)?;
    let size = field("size")?.parse().map_err(|_| malformed("its size is no number".to_owned()))?;
    let sha256 = field("sha256")?;
    if sha256.len() != 64 || !sha256.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(malformed("its sha256 is not 64 lowercase hex digits".to_owned()));
    }
    let min_version = match lines.next() {
        None => None,
        Some(line) => match line.strip_prefix("min-version: ") {
            Some(text) => Some(Version::parse(text).map_err(malformed)?),
            None => return Err(malformed(format!("the line {line:?} is unknown"))),
        },
    };
    Ok(Manifest { target, version, size, sha256, min_version })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn manifest() -> Manifest {
        let min_version = Some(Version::parse("1.0").unwrap());
        let version = Version::parse("1.4.2").unwrap();
        Manifest { target: "gateway-x86_64".to_owned(), version, size: 7, sha256: "a".repeat(64), min_version }
    }

    #[test]
    fn a_signed_manifest_is_believed_and_others_are_refused_with_their_own_codes() {
        let (ours, theirs) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
        let trusted = TrustedKeys::from_pem(&ours.public_pem()).unwrap();
        let code =
            |text: &str| SignedManifest::parse(text).and_then(|m| m.verify(&trusted).map(|_| ())).map_err(|r| r.code());
        let good = manifest().sign(&ours);
        assert_eq!(code(&good), Ok(()));
        assert_eq!(code(&manifest().to_text()), Err("unsigned"));
        assert_eq!(code(&manifest().sign(&theirs)), Err("bad-signature"));
        assert_eq!(code(&good.replace("size: 7", "size: 8")), Err("bad-signature"));
        assert_eq!(code(&good.replace("size: 7", "size: 07")), Err("malformed"));
        assert_eq!(code(&(good.clone() + "more: 1\n")), Err("malformed"));
        let second = good.lines().last().unwrap();
        let rotated = manifest().sign(&theirs) + second + "\n";
        assert_eq!(code(&rotated), Ok(()), "two signatures, one of them ours");
        let nobody = SignedManifest::parse(&good).unwrap();
        assert_eq!(nobody.verify(&TrustedKeys::default()), Err(Refusal::NoKeys));
    }

    proptest! {
        #[test]
        fn any_text_is_refused_without_panic(text in "(fieldgate-firmware-v1\n)?(target: a\n)?(\\PC|\n){0,200}") {
            let _ = SignedManifest::parse(&text);
        }

        #[test]
        fn no_changed_byte_passes(at in 0usize..1_000, to in any::<u8>()) {
            let key = SigningKey::from_pem(&SigningKey::generate().unwrap().expose_pem()).unwrap();
            let trusted = TrustedKeys::from_pem(&key.public_pem()).unwrap();
            let good = manifest().sign(&key);
            let mut bytes = good.clone().into_bytes();
            let at = at % bytes.len();
            bytes[at] = to;
            let Ok(text) = String::from_utf8(bytes) else { return Ok(()) };
            let believed = SignedManifest::parse(&text).is_ok_and(|m| m.verify(&trusted).is_ok_and(|(m, _)| *m != manifest()));
            prop_assert!(!believed, "{}", text);
        }
    }
}
