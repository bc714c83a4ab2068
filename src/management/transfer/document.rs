//! Signed documents of a transfer.

use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize};

use crate::management::desired::Version;
use crate::management::lifecycle::{Claim, Pin, sha256_hex};
use crate::management::request::Refusal;

/// Largest document, in bytes of text.
const MAX_DOCUMENT: usize = 768 * 1024;
/// Most devices in one.
pub(in crate::management) const MAX_DEVICES: usize = 1_000;

/// The gateway's own key for signing.
#[derive(Clone)]
pub struct SigningKey(Arc<Ed25519KeyPair>);

impl SigningKey {
    /// Reads an Ed25519 key in PKCS#8 (DER).
    ///
    /// # Errors
    /// Words for people when it is none.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, String> {
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).map_err(|e| format!("no Ed25519 key: {e}"))?;
        Ok(Self(Arc::new(pair)))
    }

    /// Makes a new key: the key, and its PKCS#8 form to keep in a file with mode 0600.
    ///
    /// # Errors
    /// [`Refusal`] when the system gives no random numbers.
    pub fn generate() -> Result<(Self, Vec<u8>), Refusal> {
        let unavailable = || Refusal::new("unavailable", "the system gives no random numbers; try again");
        let der = Ed25519KeyPair::generate_pkcs8(&ring::rand::SystemRandom::new()).map_err(|_| unavailable())?;
        let key = Self::from_pkcs8(der.as_ref()).map_err(|_| unavailable())?;
        Ok((key, der.as_ref().to_vec()))
    }

    /// The public key, 32 octets, for the partner's files.
    pub fn public(&self) -> Vec<u8> {
        self.0.public_key().as_ref().to_vec()
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(\"…\")")
    }
}

/// What a document is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Devices are offered.
    Export,
    /// They were received.
    Receipt,
    /// They are the receiver's.
    Release,
}

/// A device with everything that the next owner needs, and no secret.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExportedDevice {
    /// Its id.
    pub device: String,
    /// Such as `modbus-tcp`.
    pub protocol: String,
    /// Where it is reached.
    pub address: String,
    /// Margo tier.
    pub tier: u8,
    /// Type, when no file declares it.
    #[serde(default)]
    pub profile: String,
    /// The pinned identity.
    pub pinned: Option<Pin>,
    /// What it revealed last.
    pub claim: Option<Claim>,
    /// Configuration in force; `None` when only the files speak.
    pub in_force: Option<Version>,
    /// Its history.
    #[serde(default)]
    pub history: Vec<Version>,
}

/// A document of a transfer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Document {
    /// What it is.
    pub kind: Kind,
    /// Names the transfer, on both sides.
    pub id: String,
    /// Who signs.
    pub from: String,
    /// For whom.
    pub to: String,
    /// When, milliseconds since 1970.
    pub made_ms: i64,
    /// SHA-256 of the export's payload; empty in the export.
    #[serde(default)]
    pub export: String,
    /// The devices; empty but in the export.
    #[serde(default)]
    pub devices: Vec<ExportedDevice>,
}

impl Document {
    /// The signed text, and the digest of the payload.
    ///
    /// # Errors
    /// [`Refusal`] when it is too large.
    pub fn sign(&self, key: &SigningKey) -> Result<(String, String), Refusal> {
        let payload = serde_json::to_vec(self).expect("records have string keys and writers to memory do not fail");
        let signature = key.0.sign(&payload);
        let text = format!("fgx1.{}.{}", BASE64.encode(&payload), BASE64.encode(signature));
        if text.len() > MAX_DOCUMENT {
            let what =
                format!("the document has {} bytes, at most {MAX_DOCUMENT} are possible: export fewer", text.len());
            return Err(Refusal::new("too-many", what));
        }
        Ok((text, sha256_hex(&payload)))
    }

    /// Reads a document and checks its signature with the key that `key_of` gives for its sender. Gives the digest of its
    /// payload, too.
    ///
    /// # Errors
    /// [`Refusal`]; nothing of a document with a wrong signature is used but the sender's name.
    pub fn open(text: &str, key_of: impl Fn(&str) -> Option<Vec<u8>>) -> Result<(Self, String), Refusal> {
        let bad = |what: &str| Refusal::new("invalid", format!("not a transfer document: {what}"));
        if text.len() > MAX_DOCUMENT {
            return Err(bad("too large"));
        }
        let mut parts = text.trim().split('.');
        let (Some("fgx1"), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(bad("it must look like fgx1.….…"));
        };
        let payload = BASE64.decode(payload).map_err(|_| bad("damaged"))?;
        let signature = BASE64.decode(signature).map_err(|_| bad("damaged"))?;
        let document: Document = serde_json::from_slice(&payload).map_err(|_| bad("damaged"))?;
        let Some(key) = key_of(&document.from) else {
            let from: String = document.from.chars().take(64).collect();
            let text = format!("{from:?} is no partner; add its public key to [management.partners]");
            return Err(Refusal::new("not-allowed", text));
        };
        UnparsedPublicKey::new(&ED25519, key).verify(&payload, &signature).map_err(|_| {
            Refusal::new("not-allowed", "the signature is wrong: the document was changed or is not the partner's")
        })?;
        Ok((document, sha256_hex(&payload)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_changed_character_is_refused() {
        let (key, _) = SigningKey::generate().unwrap();
        let document = Document {
            kind: Kind::Receipt,
            id: "t1".into(),
            from: "a".into(),
            to: "b".into(),
            made_ms: 5,
            export: "00".into(),
            devices: vec![],
        };
        let (text, digest) = document.sign(&key).unwrap();
        let open = |text: &str| Document::open(text, |_| Some(key.public()));
        assert_eq!(open(&text).unwrap(), (document, digest));
        for at in 0..text.len() {
            let mut other = text.clone().into_bytes();
            other[at] = if other[at] == b'A' { b'B' } else { b'A' };
            if other != text.as_bytes() {
                assert!(open(std::str::from_utf8(&other).unwrap()).is_err(), "changed at {at}");
            }
        }
        assert!(open(&text[..text.len() - 1]).is_err() && open("").is_err());
        assert!(!format!("{key:?}").contains(char::is_numeric));
    }
}
