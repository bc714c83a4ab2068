//! Secrets, passwords and TLS for everyone else: the only module that reads keys and certificates.
//!
//! **Promise.** A [`Secret`] never prints. Passwords are kept as argon2id hashes and compared by argon2. TLS is rustls 0.23
//! with `ring`, versions 1.2 and 1.3, and always verifies: a server against a CA bundle and its name, a client certificate
//! against a CA bundle and, if given, revocation lists. Certificates, keys, bundles and lists are read again while the
//! gateway runs when a file changes; a file that cannot be used leaves the old configuration in force, with a warning.
//!
//! **Limits.** Files are looked at every few seconds (no inotify: network file systems and container mounts have none).
//! Existing connections keep the configuration they began with. Keys are PEM (PKCS#8, PKCS#1, SEC1), never encrypted.
//!
//! **What it must not do.** Skip verification: there is no such switch. Log the content of a key or a password.

mod client_tls;
mod files;
mod password;
mod peer;
pub mod pki;
mod secret;
mod server_tls;
mod watch;

pub use client_tls::{ClientTls, ClientTlsFiles};
pub use files::{TlsError, exposed_key_warning};
pub use password::{PasswordError, PasswordHash, hash_password};
pub use peer::{CertificateId, DEVICE, peer_name};
pub use secret::Secret;
pub use server_tls::{ClientCertificates, ServerTls, ServerTlsFiles};
