//! The desired state: the list of deployments (the manifest), the artifacts that it names, and when they are accepted.
//!
//! **Promise.** Acceptance is all or nothing and comes before any change:
//! 1. the version is greater than the highest ever accepted, over restarts; the same version with the same bytes is
//!    "unchanged", everything else is refused and is a security event;
//! 2. one digest that is not sha256 refuses the whole manifest;
//! 3. every artifact is fetched, hashed and compared; one mismatch ends the attempt, and nothing else is tried behind it;
//! 4. `sizeBytes` is advice: it never decides; an archive holds exactly the deployments, as files in its root;
//! 5. each deployment carries its own id;
//! 6. an artifact that is not there (404) means "not now", never "delete"; only absence from a manifest deletes;
//! 7. version and ETag are durable only after all of that, in one commit ([`head`]).
//!
//! **Limits.** 4 MiB per manifest, 10,000 deployments, 1 MiB per deployment, 64 MiB per bundle packed and 128 MiB unpacked,
//! whatever the archive says.
//!
//! **Must not** write a file that an archive names: it is unpacked in memory.

mod bundle;
mod fetch;
pub mod fuzz;
mod head;
mod manifest;
#[cfg(test)]
mod tests;

pub(crate) use bundle::Limited;
pub use bundle::{BundleError, MAX_UNPACKED, unpack};
pub use fetch::{AcceptError, Accepted, Exchange, ExchangeError, Polled, poll};
pub use head::{Head, HeadStore};
pub use manifest::{Entry, Manifest, ManifestError, Need, Novelty, need};
