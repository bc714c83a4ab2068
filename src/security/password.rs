//! Password hashes: argon2id with m = 7168 KiB, t = 5, p = 1 (OWASP's smallest memory setting, for gateways with little RAM).

use std::fmt;

use argon2::password_hash::rand_core::OsRng;
use argon2::password_hash::{PasswordHasher, PasswordVerifier, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};

use super::Secret;

/// KiB of memory for one hash.
const MEMORY_KIB: u32 = 7168;
/// Passes.
const PASSES: u32 = 5;
/// Most memory that a hash from a configuration may ask for; a larger one would let a login exhaust the gateway.
const MOST_MEMORY_KIB: u32 = 65_536;

/// Why a password or its hash cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PasswordError {
    /// The text is no argon2id hash.
    #[error("this is no argon2id hash (`$argon2id$v=19$m=…`): {0}; make one with `fieldgate hash-password`")]
    NoHash(String),
    /// Hashing failed.
    #[error("the password cannot be hashed: {0}")]
    Hash(String),
}

/// A checked argon2id hash in PHC form, such as `$argon2id$v=19$m=7168,t=5,p=1$…$…`. Prints as `"…"`.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash(String);

impl PasswordHash {
    /// Reads a hash in PHC form.
    pub fn parse(text: &str) -> Result<Self, PasswordError> {
        let no_hash = |why: String| PasswordError::NoHash(why);
        let hash = argon2::PasswordHash::new(text).map_err(|e| no_hash(e.to_string()))?;
        if hash.algorithm.as_str() != "argon2id" {
            return Err(no_hash(format!("the algorithm is {}", hash.algorithm)));
        }
        let params = Params::try_from(&hash).map_err(|e| no_hash(e.to_string()))?;
        if params.m_cost() > MOST_MEMORY_KIB {
            return Err(no_hash(format!(
                "it needs {} KiB for each login, the most is {MOST_MEMORY_KIB}",
                params.m_cost()
            )));
        }
        if hash.hash.is_none() {
            return Err(no_hash("the hash itself is missing".to_owned()));
        }
        Ok(Self(text.to_owned()))
    }

    /// The PHC text, for a configuration file.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether `password` is the one. Takes some 20 ms of CPU and 7 MiB; call it from a blocking thread, one at a time.
    pub fn verify(&self, password: &[u8]) -> bool {
        argon2::PasswordHash::new(&self.0).is_ok_and(|hash| Argon2::default().verify_password(password, &hash).is_ok())
    }
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"…\"")
    }
}

/// Hashes a password with a fresh salt. Takes some 20 ms of CPU and 7 MiB.
pub fn hash_password(password: &Secret) -> Result<PasswordHash, PasswordError> {
    let failed = |e: &dyn fmt::Display| PasswordError::Hash(e.to_string());
    let params = Params::new(MEMORY_KIB, PASSES, 1, None).map_err(|e| failed(&e))?;
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let salt = SaltString::generate(&mut OsRng);
    let hash = argon2.hash_password(password.expose().as_bytes(), &salt).map_err(|e| failed(&e))?;
    Ok(PasswordHash(hash.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_verifies_its_password_only() {
        let hash = hash_password(&"correct horse".into()).unwrap();
        assert!(hash.as_str().starts_with("$argon2id$v=19$m=7168,t=5,p=1$"));
        let read = PasswordHash::parse(hash.as_str()).unwrap();
        assert!(read.verify(b"correct horse") && !read.verify(b"correct horsf") && !read.verify(b""));
        assert_eq!(format!("{read:?}"), "\"…\"");
    }

    #[test]
    fn other_texts_are_refused_with_what_to_do() {
        let heavy = "$argon2id$v=19$m=1048576,t=5,p=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNoaGFzaA";
        for bad in [
            "",
            "secret",
            "$argon2i$v=19$m=7168,t=5,p=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNoaGFzaA",
            heavy,
            "$argon2id$v=19$m=7168",
        ] {
            let error = PasswordHash::parse(bad).unwrap_err();
            assert!(error.to_string().contains("fieldgate hash-password"), "{bad}: {error}");
        }
    }
}
