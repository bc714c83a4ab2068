//! The plant's certificates: a small authority of its own, what it issued, what it took back, and when to renew.
//!
//! Promise:
//! - A certificate is in the inventory, durably, before anybody gets it; so everything that exists can be revoked.
//! - A revocation is durable before it is acknowledged, and the revocation list that carries it is written with it.
//! - Private keys lie in files that were created with mode 0600 in a directory of mode 0700, never appear in logs
//!   (their types print `"…"`), and a device that keeps its own key never gives it away (PKCS#10).
//! - Server certificates are renewed at a jittered 60–70 % of their life and swapped while running; nobody restarts.
//! - A clock that was never set, or that jumped, neither expires everything nor starts a storm of renewals.
//!
//! Limits: ECDSA P-256 for everything made here; keys of others may be P-256, P-384, Ed25519 or RSA from 2,048 bits. One
//! issuing authority per gateway; no OCSP. Serials are 128 random bits. Certificates start one hour before they are made,
//! because the clocks of devices are late. A certificate never outlives the authority that signed it.
//!
//! On disk, below `<data>/pki` (0700):
//! ```text
//! ca/ca.pem  ca/ca.key      the authority, its chain first certificate first, and its key (0600)
//! inventory.jsonl           one event per line: {"crc":"…","event":{…}}; append only, compacted when much is forgotten
//! crl.pem                   the revocation list in force, numbered, valid 7 days, renewed after half of that
//! issued/<serial>.pem       every certificate issued, without keys
//! server/<name>/<serial>/   cert.pem and key.pem (0600) of a listener; `current` is a link that is swapped in one step
//! lock                      held while something changes, so that the CLI and the running gateway do not collide
//! ```
//!
//! It must not open sockets (but [`est`] does, to one server that the user names), decide who may ask for a certificate,
//! or know what a device is for.

mod alarm;
mod authority;
mod book;
mod error;
#[cfg(feature = "est")]
pub mod est;
mod inventory;
mod issue;
mod keeper;

mod life;
mod pem;
mod request;
mod revocation;
mod swap;
mod time;
mod verify;

pub use alarm::{Alarm, AlarmChange, AlarmTracker, alarm};
pub use authority::Authority;
pub use book::{Book, Revocation, Status};
pub use error::PkiError;
pub use inventory::{
    Changes, Entry, Event, FileInventory, Inventory, InventoryError, MemoryInventory, Purpose, Reason, Serial,
};
pub use issue::{Issued, Pki, PkiConfig};
pub use keeper::{Keeper, KeeperEvent, Trust, Watches};

pub use life::{ClockGuard, Reading, Renewal, Throttle, Validity, read_clock, renewal, renewal_share};
pub use pem::PrivateKeyPem;
pub use request::{CertificateRequest, ClientSubject, ServerNames, make_request};
pub use revocation::Crl;
pub use swap::{ServerIdentity, SwappedCertificate};
pub use time::BelievedTime;
pub use verify::{Identity, VerifyError, verify_client};
