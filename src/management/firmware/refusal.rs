//! Why firmware is refused, and the check that decides it. Pure.

use super::{Manifest, SignedManifest, TrustedKeys, Version};

/// Code of a job that somebody rejected.
pub(super) const REJECTED: &str = "rejected";

/// Why an artifact is not installed. [`Refusal::code`] is stable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The manifest cannot be read.
    #[error("the manifest is malformed: {0}")]
    Malformed(String),
    /// The gateway trusts no key.
    #[error("no firmware key is configured; set `firmware.keys` to the public keys that may sign")]
    NoKeys,
    /// Nobody signed it.
    #[error("the manifest is not signed; sign it with `fieldgate firmware sign`")]
    Unsigned,
    /// Somebody else signed it, or it was changed afterwards.
    #[error("the manifest is not signed by a configured key, or was changed after signing")]
    BadSignature,
    /// It is for something else.
    #[error("the artifact is for {offered}, this is {expected}")]
    WrongTarget {
        /// What it is for.
        offered: String,
        /// What this is.
        expected: String,
    },
    /// It is larger than allowed.
    #[error("the artifact has {size} bytes; the limit is {limit}")]
    TooLarge {
        /// Its size.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// A newer version runs.
    #[error("{offered} is older than {current}, which runs; allow a downgrade if that is wanted")]
    Older {
        /// Its version.
        offered: String,
        /// The version that runs.
        current: String,
    },
    /// The same version runs.
    #[error("{0} runs already")]
    Same(String),
    /// It needs a stepping stone.
    #[error("{current} cannot be updated directly; install {needed} or a later one first")]
    NeedsIntermediate {
        /// The version that runs.
        current: String,
        /// The oldest version that can be updated.
        needed: String,
    },
    /// Fewer bytes than the manifest names.
    #[error("the artifact has {received} bytes; its manifest names {expected}")]
    Truncated {
        /// Bytes received.
        received: u64,
        /// Bytes expected.
        expected: u64,
    },
    /// More bytes than the manifest names.
    #[error("the artifact has more than the {0} bytes that its manifest names")]
    TooLong(u64),
    /// The bytes are others than those that were signed.
    #[error("the artifact's SHA-256 is {received}; its manifest names {expected}")]
    WrongDigest {
        /// Of the bytes received.
        received: String,
        /// Of the manifest.
        expected: String,
    },
    /// Somebody said no.
    #[error("{who} rejected it")]
    Rejected {
        /// Who.
        who: String,
    },
    /// Another job is under way.
    #[error("a job for {0} is under way; reject it first or wait for its end")]
    Busy(String),
    /// The step does not fit the stage.
    #[error("{event} is not possible while {stage}")]
    OutOfOrder {
        /// What was asked for.
        event: &'static str,
        /// Where the job stands.
        stage: &'static str,
    },
}

impl Refusal {
    /// Stable name of the reason for machines.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::NoKeys => "no-keys",
            Self::Unsigned => "unsigned",
            Self::BadSignature => "bad-signature",
            Self::WrongTarget { .. } => "wrong-target",
            Self::TooLarge { .. } => "too-large",
            Self::Older { .. } => "older",
            Self::Same(_) => "same",
            Self::NeedsIntermediate { .. } => "needs-intermediate",
            Self::Truncated { .. } => "truncated",
            Self::TooLong(_) => "too-long",
            Self::WrongDigest { .. } => "wrong-digest",
            Self::Rejected { .. } => REJECTED,
            Self::Busy(_) => "busy",
            Self::OutOfOrder { .. } => "out-of-order",
        }
    }
}

/// What the user allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Keys that may sign.
    pub keys: TrustedKeys,
    /// Largest artifact in bytes.
    pub limit: u64,
}

/// Whether an artifact may be installed on `target`, where `current` runs (if that is known). Returns who signed.
///
/// # Errors
/// The first reason against it.
pub fn admit<'a>(
    signed: &'a SignedManifest,
    policy: &Policy,
    target: &str,
    current: Option<&Version>,
    allow_downgrade: bool,
) -> Result<(&'a Manifest, String), Refusal> {
    let (manifest, signer) = signed.verify(&policy.keys)?;
    if manifest.target != target {
        return Err(Refusal::WrongTarget { offered: manifest.target.clone(), expected: target.to_owned() });
    }
    if manifest.size > policy.limit {
        return Err(Refusal::TooLarge { size: manifest.size, limit: policy.limit });
    }
    let Some(current) = current else { return Ok((manifest, signer)) };
    let offered = manifest.version.to_string();
    match manifest.version.cmp(current) {
        std::cmp::Ordering::Equal => return Err(Refusal::Same(offered)),
        std::cmp::Ordering::Less if !allow_downgrade => {
            return Err(Refusal::Older { offered, current: current.to_string() });
        }
        _ => {}
    }
    match &manifest.min_version {
        Some(needed) if current < needed => {
            Err(Refusal::NeedsIntermediate { current: current.to_string(), needed: needed.to_string() })
        }
        _ => Ok((manifest, signer)),
    }
}
