//! Passwords of clients.
//!
//! One hash at a time (7 MiB, 20 ms each), behind a queue of waiting logins that is bounded by the connection limit. A
//! password that was right is remembered as a keyed digest, so that a storm of reconnecting clients costs no hashing; a
//! wrong one costs a hash, and an address that fails too often is refused without one.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use blake2::Blake2sMac256;
use blake2::digest::{FixedOutput, KeyInit, Mac};
use tokio::sync::Semaphore;

use crate::security::PasswordHash;

/// Users remembered; there are rarely more.
const MOST_REMEMBERED: usize = 1024;
/// Addresses whose failures are remembered.
const MOST_ADDRESSES: usize = 4096;
/// Failures that an address may have at once.
const BURST: f64 = 10.0;
/// Milliseconds after which one failure is forgiven.
const FORGIVE_MS: f64 = 6_000.0;

/// Outcome of a login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Login {
    Right,
    Wrong,
    /// Too many failures from this address; not even looked at.
    TooMany,
}

type Digest = [u8; 32];

/// Checks passwords.
pub(super) struct Authenticator {
    users: HashMap<String, PasswordHash>,
    one_at_a_time: Semaphore,
    key: Digest,
    remembered: Mutex<HashMap<String, Digest>>,
    failures: Mutex<HashMap<IpAddr, (f64, u64)>>,
    /// Hashed for unknown users, so that the time of an answer does not tell whether a user exists.
    decoy: Option<PasswordHash>,
}

impl std::fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authenticator").field("users", &self.users.len()).finish_non_exhaustive()
    }
}

impl Authenticator {
    pub fn new(users: HashMap<String, PasswordHash>) -> Self {
        Self {
            decoy: users.values().next().cloned(),
            users,
            one_at_a_time: Semaphore::new(1),
            key: rand::random(),
            remembered: Mutex::default(),
            failures: Mutex::default(),
        }
    }

    /// The password hash of a user; `None` when there is no such user.
    pub fn hash_of(&self, user: &str) -> Option<&PasswordHash> {
        self.users.get(user)
    }

    /// Whether there are users at all; without any, user names are not looked at.
    pub fn has_users(&self) -> bool {
        !self.users.is_empty()
    }

    /// Checks a password. `now` is in monotonic milliseconds.
    pub async fn login(&self, user: &str, password: &[u8], address: Option<IpAddr>, now: u64) -> Login {
        let digest = self.digest(user, password);
        if lock(&self.remembered).get(user).is_some_and(|known| same(known, &digest)) {
            return Login::Right;
        }
        if address.is_some_and(|address| self.blocked(address, now)) {
            return Login::TooMany;
        }
        let known = self.users.get(user).cloned();
        let right = match known.clone().or_else(|| self.decoy.clone()) {
            None => false,
            Some(hash) => self.verify(hash, password).await && known.is_some(),
        };
        match (right, address) {
            (true, _) => self.remember(user, digest),
            (false, Some(address)) => self.failed(address, now),
            (false, None) => {}
        }
        if right { Login::Right } else { Login::Wrong }
    }

    async fn verify(&self, hash: PasswordHash, password: &[u8]) -> bool {
        let Ok(_permit) = self.one_at_a_time.acquire().await else { return false };
        let password = password.to_vec();
        tokio::task::spawn_blocking(move || hash.verify(&password)).await.unwrap_or(false)
    }

    fn digest(&self, user: &str, password: &[u8]) -> Digest {
        let mut mac = <Blake2sMac256 as KeyInit>::new_from_slice(&self.key).expect("a key of 32 bytes fits Blake2s");
        mac.update(&(user.len() as u64).to_be_bytes());
        mac.update(user.as_bytes());
        mac.update(password);
        mac.finalize_fixed().into()
    }

    fn remember(&self, user: &str, digest: Digest) {
        let mut remembered = lock(&self.remembered);
        if remembered.len() >= MOST_REMEMBERED {
            remembered.clear();
        }
        remembered.insert(user.to_owned(), digest);
    }

    fn blocked(&self, address: IpAddr, now: u64) -> bool {
        let failures = lock(&self.failures);
        failures.get(&address).is_some_and(|&(count, at)| left(count, at, now) >= BURST - 1.0)
    }

    fn failed(&self, address: IpAddr, now: u64) {
        let mut failures = lock(&self.failures);
        if failures.len() >= MOST_ADDRESSES {
            failures.retain(|_, &mut (count, at)| left(count, at, now) > 0.0);
            if failures.len() >= MOST_ADDRESSES {
                failures.clear();
            }
        }
        let entry = failures.entry(address).or_insert((0.0, now));
        *entry = (left(entry.0, entry.1, now) + 1.0, now);
    }
}

/// Failures not yet forgiven.
fn left(count: f64, at: u64, now: u64) -> f64 {
    (count - now.saturating_sub(at) as f64 / FORGIVE_MS).max(0.0)
}

/// Compares without telling by its time where the difference is.
fn same(a: &Digest, b: &Digest) -> bool {
    a.iter().zip(b).fold(0, |differ, (x, y)| differ | (x ^ y)) == 0
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::hash_password;

    #[tokio::test]
    async fn right_wrong_and_too_often() {
        let users = HashMap::from([("ann".to_owned(), hash_password(&"secret".into()).unwrap())]);
        let auth = Authenticator::new(users);
        let here = Some(IpAddr::from([192, 0, 2, 1]));
        assert_eq!(auth.login("ann", b"secret", here, 0).await, Login::Right);
        assert_eq!(auth.login("bob", b"secret", here, 0).await, Login::Wrong);
        for _ in 0..8 {
            assert_eq!(auth.login("ann", b"guess", here, 0).await, Login::Wrong);
        }
        assert_eq!(auth.login("ann", b"guess", here, 0).await, Login::TooMany);
        assert_eq!(
            auth.login("ann", b"secret", here, 0).await,
            Login::Right,
            "a remembered password is not locked out"
        );
        let there = Some(IpAddr::from([192, 0, 2, 2]));
        assert_eq!(auth.login("ann", b"guess", there, 0).await, Login::Wrong, "others are not locked out");
        assert_eq!(auth.login("ann", b"guess", here, 7_000).await, Login::Wrong, "forgiven after a while");
    }
}
