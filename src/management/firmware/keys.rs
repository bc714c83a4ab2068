//! Keys that vouch for firmware: ed25519, as PEM that openssl reads and writes too.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

/// PKCS#8 v1 around a seed of 32 bytes (RFC 8410, 7).
const PRIVATE_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
/// SubjectPublicKeyInfo around a key of 32 bytes (RFC 8410, 4).
const PUBLIC_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Why a key cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// It is something else.
    #[error("this is no ed25519 {0} key in PEM; make one with `fieldgate firmware keygen`")]
    Format(&'static str),
    /// The system gave no random numbers.
    #[error("the system gave no random numbers")]
    Random,
}

/// A key that signs. Belongs on the machine that builds firmware, never on a gateway. Prints no secret.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    seed: [u8; 32],
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("seed", &"…").field("id", &self.id()).finish()
    }
}

impl SigningKey {
    /// A new key.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn generate() -> Result<Self, KeyError> {
        use ring::rand::SecureRandom;
        let mut seed = [0; 32];
        ring::rand::SystemRandom::new().fill(&mut seed).map_err(|_| KeyError::Random)?;
        Self::from_seed(seed)
    }

    fn from_seed(seed: [u8; 32]) -> Result<Self, KeyError> {
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| KeyError::Format("private"))?;
        Ok(Self { pair, seed })
    }

    /// Reads PKCS#8 PEM, ours or that of `openssl genpkey -algorithm ed25519`.
    ///
    /// # Errors
    /// When it is something else.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        let der = block(pem, "PRIVATE KEY").ok_or(KeyError::Format("private"))?;
        let seed = der.strip_prefix(&PRIVATE_PREFIX[..]).and_then(|seed| seed.try_into().ok());
        Self::from_seed(seed.ok_or(KeyError::Format("private"))?)
    }

    /// The secret as PKCS#8 PEM; write it to a file of mode 0600 and nowhere else.
    pub fn expose_pem(&self) -> String {
        pem("PRIVATE KEY", &[&PRIVATE_PREFIX[..], &self.seed].concat())
    }

    /// The public half as PEM: what gateways are configured with.
    pub fn public_pem(&self) -> String {
        pem("PUBLIC KEY", &[&PUBLIC_PREFIX[..], self.pair.public_key().as_ref()].concat())
    }

    /// Short name of the key: the first 16 hex digits of its SHA-256.
    pub fn id(&self) -> String {
        id(self.pair.public_key().as_ref())
    }

    pub(super) fn sign(&self, message: &[u8]) -> [u8; 64] {
        let signature = self.pair.sign(message);
        let mut bytes = [0; 64];
        bytes.copy_from_slice(signature.as_ref());
        bytes
    }
}

/// The public keys that a gateway trusts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedKeys {
    keys: Vec<[u8; 32]>,
}

impl TrustedKeys {
    /// Reads any number of `PUBLIC KEY` blocks.
    ///
    /// # Errors
    /// When one of them is no ed25519 key, or there is none.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        let wrong = KeyError::Format("public");
        let mut keys = Vec::new();
        for part in text.split_inclusive("-----END PUBLIC KEY-----").filter(|part| part.contains("-----BEGIN")) {
            let der = block(part, "PUBLIC KEY").ok_or_else(|| wrong.clone())?;
            let key = der.strip_prefix(&PUBLIC_PREFIX[..]).and_then(|key| key.try_into().ok());
            keys.push(key.ok_or_else(|| wrong.clone())?);
        }
        if keys.is_empty() { Err(wrong) } else { Ok(Self { keys }) }
    }

    /// Whether there is no key at all; then nothing is ever accepted.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Short names of the keys.
    pub fn ids(&self) -> Vec<String> {
        self.keys.iter().map(|key| id(key)).collect()
    }

    /// The short name of the key that made `signature` over `message`, if it is one of ours.
    pub(super) fn verify(&self, message: &[u8], signature: &[u8]) -> Option<String> {
        let made_it = |key: &&[u8; 32]| UnparsedPublicKey::new(&ED25519, &key[..]).verify(message, signature).is_ok();
        self.keys.iter().find(made_it).map(|key| id(key))
    }
}

fn id(public: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, public);
    digest.as_ref()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
}

/// The bytes of the first block with `label`.
fn block(text: &str, label: &str) -> Option<Vec<u8>> {
    let (_, after) = text.split_once(&format!("-----BEGIN {label}-----"))?;
    let (body, _) = after.split_once(&format!("-----END {label}-----"))?;
    let body: String = body.chars().filter(|c| !c.is_whitespace()).collect();
    STANDARD.decode(body).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_travel_through_pem_and_do_not_print() {
        let key = SigningKey::generate().unwrap();
        let again = SigningKey::from_pem(&key.expose_pem()).unwrap();
        assert_eq!(key.public_pem(), again.public_pem());
        let trusted =
            TrustedKeys::from_pem(&(SigningKey::generate().unwrap().public_pem() + &key.public_pem())).unwrap();
        assert_eq!(trusted.ids()[1], key.id());
        assert_eq!(trusted.verify(b"text", &key.sign(b"text")), Some(key.id()));
        assert_eq!(trusted.verify(b"other", &key.sign(b"text")), None);
        let printed = format!("{key:?}");
        assert!(printed.contains('…') && !printed.contains(&STANDARD.encode(key.seed)), "{printed}");
        assert!(TrustedKeys::from_pem(&key.expose_pem()).is_err() && TrustedKeys::from_pem("").is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_read_but_never_panics(text in ".{0,200}") {
            let _ = TrustedKeys::from_pem(&text);
            let _ = SigningKey::from_pem(&text);
        }
    }
}
