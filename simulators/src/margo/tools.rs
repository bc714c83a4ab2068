//! Small things that the simulators of this module share.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `sha256:` and 64 lowercase hexadecimal digits.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref()))
}

/// `sha512:` and 128 lowercase hexadecimal digits.
pub(crate) fn sha512(bytes: &[u8]) -> String {
    format!("sha512:{}", hex(ring::digest::digest(&ring::digest::SHA512, bytes).as_ref()))
}

/// `length` random bytes in hexadecimal digits.
pub(crate) fn random_hex(length: usize) -> String {
    let mut bytes = vec![0; length];
    // The system's generator does not fail on the systems that this runs on; zeros would still be valid here.
    if ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes).is_err() {
        tracing::warn!("no random numbers");
    }
    hex(&bytes)
}

/// A random UUID, version 4.
pub(crate) fn uuid() -> String {
    let r = random_hex(16);
    format!("{}-{}-4{}-a{}-{}", &r[..8], &r[8..12], &r[13..16], &r[17..20], &r[20..])
}

/// Whether `text` is written as a UUID.
pub(crate) fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

/// Milliseconds since 1970.
#[allow(clippy::disallowed_methods, reason = "a simulator's certificates and log follow the real clock")]
pub(crate) fn now_millis() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// Seconds since 1970.
pub(crate) fn now_seconds() -> i64 {
    (now_millis() / 1000) as i64
}
