//! Who we are towards the fleet manager, and who it must be (the standard's identity framework).
//!
//! **Promise.**
//! - The one name of a peer is its SPIFFE ID. The fleet manager's is taken from our own SVID
//!   (`spiffe://<domain>/margo/wfm/<wfm>` of `…/client/<client>`) and compared exactly; host names play no part.
//! - An SVID is believed only if every rule of [`svid`] holds at the time of the check: one URI, our trust domain, no
//!   authority, a key of an accepted kind, and a chain to an anchor of the bundle in force.
//! - A bundle replaces the one before as a whole. An empty one, one with a lower sequence and one that cannot be read
//!   change nothing. The newest is on disk, so that a gateway starts without its network.
//! - First contact is never blind: discovery and bundle servers are verified by configured anchors and their DNS name, or
//!   by pins of public keys.
//! - Identity and bundle are exchanged while running; connections do not outlive [`connection_cap`], and TLS sessions are
//!   never resumed, since a resumed session is not verified again.
//!
//! **Limits.** ECDSA P-256 and P-384, Ed25519, RSA from 3,072 bits. Chains of at most eight certificates, bundles of at
//! most 64 anchors and 256 KiB. No revocation lists: the accepted text of the standard has none, so a short life of the
//! SVIDs is the protection.
//!
//! **Must not** fetch anything that a certificate names, or keep a private key anywhere but in its file.

mod bundle;
mod cache;
mod discovery;
mod keeper;
mod own;
mod request;
mod spiffe;
mod svid;
#[cfg(test)]
pub(crate) mod tests;
mod verifier;

pub use bundle::{BundleError, MAX_BUNDLE, TrustBundle};
pub use cache::{BundleCache, CacheError};
pub use discovery::{Discovered, DiscoveryError, FirstContact, parse_discovery};
pub use keeper::{BundleSource, IdentityFiles, Keeper, KeeperError, Material, Swap, enrolment_directory};
pub use own::{OwnError, OwnSvid, connection_cap};
pub use request::{RequestError, SvidRequest, make_svid_request};
pub use spiffe::{ClientName, SpiffeError, SpiffeId};
pub use svid::{Moment, SvidError, verify_svid};
pub use verifier::{TlsVersions, WfmVerifier, client_config};
