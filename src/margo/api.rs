//! The management interface in both generations: what is sent, what answers mean. No sockets; [`super::http`] has them.
//!
//! A [`Dialect`] makes requests and signs them where its generation wants that; everything above it is the same for both.
//! [`problem`] reads what servers say when they refuse, and [`retry`] decides when to ask again.
//!
//! **Limits.** Answers are read up to the limit that each [`Request`] carries: 4 MiB for the list of deployments, 64 MiB for
//! a bundle on the wire, 1 MiB for one deployment, 64 KiB for everything else.
//!
//! **Must not** follow a redirect or a `url` to another server than the configured one: our identity would go there.

mod preview;
mod problem;
mod rc3;
mod request;
mod retry;
mod sign;
mod status;

use bytes::Bytes;

pub use preview::{Preview, onboard_request, parse_onboarded};
pub use problem::{Problem, ProblemKind, Verdict, judge};
pub use rc3::Rc3;
pub use request::{Base, Method, Request, Response, UrlError};
pub use retry::{Backoff, Pacing};
pub use sign::{RequestSigner, SignError};
pub use status::{Component, DeploymentStatus, State, StatusError, overall};

use super::capabilities::DeviceCapabilities;
use super::words::{DeploymentId, DevicePath, Digest};

/// Media type of the list of deployments.
pub const MANIFEST_TYPE: &str = "application/vnd.margo.manifest.v1+json";
/// Media type of a bundle.
pub const BUNDLE_TYPE: &str = "application/vnd.margo.bundle.v1+tar+gzip";
/// Longest list of deployments.
pub const MAX_MANIFEST: usize = 4 << 20;
/// Longest bundle on the wire.
pub const MAX_BUNDLE: usize = 64 << 20;
/// Longest deployment.
pub const MAX_DEPLOYMENT: usize = 1 << 20;
/// Longest answer to anything else.
pub const MAX_ANSWER: usize = 64 << 10;

/// An artifact that a manifest names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ArtifactRef<'a> {
    /// All deployments in one archive.
    Bundle {
        /// From the manifest.
        digest: &'a Digest,
        /// From the manifest; may be empty.
        url: &'a str,
    },
    /// One deployment.
    Deployment {
        /// Which.
        id: &'a DeploymentId,
        /// From the manifest.
        digest: &'a Digest,
        /// From the manifest; may be empty.
        url: &'a str,
    },
}

/// One generation of the interface.
pub trait Dialect: Send + Sync {
    /// Reports a device; `first` when the server has never confirmed one for it.
    fn report(&self, device: &DeviceCapabilities, first: bool) -> Request;

    /// Takes a device back.
    fn forget(&self, device: &DevicePath) -> Request;

    /// Asks for the list of deployments, if it is another than that of `etag`.
    fn deployments(&self, etag: Option<&str>) -> Request;

    /// Fetches an artifact.
    ///
    /// # Errors
    /// [`UrlError`] when its `url` leads elsewhere.
    fn artifact(&self, which: ArtifactRef<'_>) -> Result<Request, UrlError>;

    /// Tells how a deployment stands.
    fn status(&self, status: &DeploymentStatus) -> Request;

    /// The last touch before sending, at `now` (Unix seconds): signatures, where the generation has them.
    ///
    /// # Errors
    /// [`SignError`] when the key cannot sign.
    fn seal(&self, request: Request, now: i64) -> Result<Request, SignError>;
}

pub(crate) fn json(value: &serde_json::Value) -> Bytes {
    value.to_string().into()
}

#[cfg(test)]
pub(crate) mod tests_support {
    pub(crate) use super::status::tests::example as example_status;
}
