//! Enrolment tokens: whoever presents one under a fitting id is approved. Only the hash is kept.

use std::fmt;

use ring::digest::{SHA256, digest};
use ring::rand::SecureRandom;
use serde::{Deserialize, Serialize};

use crate::management::journal::Shelf;
use crate::management::request::{Refusal, fits};
use crate::management::step::{Cause, Step};
use crate::model::{DeviceId, Stamp};

use super::registry::Lifecycle;

/// Most tokens at a time; expired and used ones do not count.
const MAX_TOKENS: usize = 256;
/// Most devices that one token may enrol.
const MAX_USES: u32 = 10_000;
/// Longest life of a token.
const MAX_LIFE_MS: i64 = 30 * 86_400_000;

/// A token as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// SHA-256 of the secret part (128 random bits, so no slow hash is needed), hexadecimal.
    pub hash: String,
    /// How many devices it may still enrol.
    pub uses_left: u32,
    /// Milliseconds since 1970.
    pub expires_ms: i64,
    /// Pattern of device ids.
    pub device: String,
    /// Type for devices that no file declares.
    #[serde(default)]
    pub profile: String,
    /// Who made it.
    pub made_by: String,
}

/// A token as it is handed out, once.
#[derive(Clone, PartialEq, Eq)]
pub struct Issued {
    /// Names it in lists and in the audit log.
    pub id: String,
    /// The whole text to present, `fgt.{id}.{secret}`; empty when the requester made the secret.
    pub text: String,
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued").field("id", &self.id).field("text", &"…").finish()
    }
}

/// Lower-case hexadecimal SHA-256.
pub(in crate::management) fn sha256_hex(bytes: &[u8]) -> String {
    hex(digest(&SHA256, bytes).as_ref())
}

/// Lower-case hexadecimal.
pub(in crate::management) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, b| {
        for nibble in [b >> 4, b & 15] {
            out.push(char::from(b"0123456789abcdef"[usize::from(nibble)]));
        }
        out
    })
}

/// `N` random octets.
pub(in crate::management) fn random<const N: usize>() -> Result<[u8; N], Refusal> {
    let mut bytes = [0u8; N];
    ring::rand::SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| Refusal::new("unavailable", "the system gives no random numbers; try again"))?;
    Ok(bytes)
}

/// Compares without telling by its duration how much is right.
#[allow(deprecated, reason = "ring's successor of this function is not public; the texts compared are digests")]
pub(in crate::management) fn same_secret(a: &str, b: &str) -> bool {
    ring::constant_time::verify_slices_are_equal(a.as_bytes(), b.as_bytes()).is_ok()
}

impl Lifecycle {
    /// Makes a token for `uses` devices with ids that fit `device`.
    ///
    /// # Errors
    /// [`Refusal`] when a number is out of range or there are too many tokens.
    pub fn create_token(
        &mut self,
        now: Stamp,
        token: Token,
        cause: &Cause,
        step: &mut Step,
    ) -> Result<Issued, Refusal> {
        if token.uses_left == 0 || token.uses_left > MAX_USES {
            return Err(Refusal::new("invalid", format!("`uses` is {}; use 1 to {MAX_USES}", token.uses_left)));
        }
        let life = token.expires_ms.saturating_sub(now.wall_ms);
        if !(1_000..=MAX_LIFE_MS).contains(&life) {
            return Err(Refusal::new("invalid", "`expires` must be 1 s to 30 d from now"));
        }
        self.drop_dead_tokens(now, step);
        if self.tokens.len() >= MAX_TOKENS {
            return Err(Refusal::new("too-many", format!("there are {MAX_TOKENS} tokens; revoke some")));
        }
        let id = hex(&random::<4>()?);
        // A requester who made his own secret sent its hash.
        let (hash, text) = match token.hash.as_str() {
            "" => {
                let secret = hex(&random::<16>()?);
                (sha256_hex(secret.as_bytes()), format!("fgt.{id}.{secret}"))
            }
            known => (known.to_owned(), String::new()),
        };
        let token = Token { hash, made_by: cause.actor.clone(), ..token };
        let what = format!("{} uses for {}, expires in {} s", token.uses_left, token.device, life / 1000);
        step.audit(now, cause, "create-token", format!("tokens/{id}"), what, "done");
        step.put(Shelf::Tokens, id.clone(), &token);
        self.tokens.insert(id.clone(), token);
        Ok(Issued { text, id })
    }

    /// Makes a token useless.
    ///
    /// # Errors
    /// [`Refusal`] when there is none with this id.
    pub fn revoke_token(&mut self, now: Stamp, id: &str, cause: &Cause, step: &mut Step) -> Result<(), Refusal> {
        if self.tokens.remove(id).is_none() {
            return Err(Refusal::new("unknown-token", "there is no token with this id; it may be used up or expired"));
        }
        step.delete(Shelf::Tokens, id);
        step.audit(now, cause, "revoke-token", format!("tokens/{id}"), String::new(), "done");
        Ok(())
    }

    /// Whether `text` is a token for `device`: its id and the profile that it gives. Does not use it up.
    pub(super) fn check_token(&self, now: Stamp, text: &str, device: &DeviceId) -> Result<String, Refusal> {
        // One answer for every reason: a guesser learns nothing.
        let no = || Refusal::new("not-allowed", format!("the token is not valid for {device}; ask for a new one"));
        let mut parts = text.splitn(3, '.');
        let (Some("fgt"), Some(id), Some(secret)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(no());
        };
        let token = self.tokens.get(id).ok_or_else(no)?;
        let right = same_secret(&token.hash, &sha256_hex(secret.as_bytes()));
        let alive = token.uses_left > 0 && token.expires_ms > now.wall_ms;
        if right && alive && fits(&token.device, device.as_str()) { Ok(id.to_owned()) } else { Err(no()) }
    }

    /// Takes one use off a token, in the same step as the approval.
    pub(super) fn use_token(&mut self, id: &str, step: &mut Step) {
        let Some(token) = self.tokens.get_mut(id) else { return };
        token.uses_left = token.uses_left.saturating_sub(1);
        if token.uses_left == 0 {
            self.tokens.remove(id);
            step.delete(Shelf::Tokens, id);
        } else {
            step.put(Shelf::Tokens, id, token);
        }
    }

    fn drop_dead_tokens(&mut self, now: Stamp, step: &mut Step) {
        self.tokens.retain(|id, token| {
            let alive = token.expires_ms > now.wall_ms;
            if !alive {
                step.delete(Shelf::Tokens, id.as_str());
            }
            alive
        });
    }
}
