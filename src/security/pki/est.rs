//! The gateway's own certificate from somebody else's authority: an EST client (RFC 7030).
//!
//! Promise:
//! - The server is always verified, against anchors that the user gave; never trust on first use.
//! - The key is made here and never leaves; it is durable before the first request, and the same request is repeated until
//!   it is answered (RFC 7030, 4.2.3), so a crash never orphans a certificate.
//! - What comes back is used only if it is for our key, chains to the server's authorities and is valid; then it takes the
//!   place of the old one in one step.
//! - Renewal over mutual TLS with a fresh key at a random 40–60 % of the life; failures back off with full jitter, and the
//!   old certificate stays in use until it ends.
//!
//! Limits: `/cacerts`, `/simpleenroll`, `/simplereenroll`; HTTP Basic for the first enrolment. No server-side keys, no full
//! CMC, no CSR attributes. Answers of at most 256 KiB. One request at a time, 30 s each.
//!
//! On disk, below the directory given: `<serial>/cert.pem key.pem`, the link `current`, `cacerts.pem`, and while a request
//! is open `pending.key` and `pending.csr`.

mod client;
mod cms;
mod keeper;
mod schedule;

pub use client::{EstClient, EstError, Granted};
pub use cms::{CmsError, certificates};
pub use keeper::{EstConfig, EstEvent, EstKeeper, OwnIdentity};
pub use schedule::{Failure, Next, Schedule};
