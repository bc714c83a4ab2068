//! The list of deployments as the server sends it.

use std::collections::BTreeSet;

use serde::Deserialize;

use crate::margo::api::MAX_MANIFEST;
use crate::margo::words::{DeploymentId, Digest, WordError};

/// Most deployments of a manifest.
const MAX_DEPLOYMENTS: usize = 10_000;
/// Up to so many missing deployments are always fetched one by one.
const FEW: usize = 4;

/// Why a manifest is refused as a whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// No JSON of the right form, or too long.
    #[error("the manifest cannot be read: {0}")]
    Form(String),
    /// Versions begin at 1.
    #[error("the manifest has version 0; versions begin at 1")]
    VersionZero,
    /// An id or a digest.
    #[error("the manifest is refused: {0}")]
    Word(#[from] WordError),
    /// One deployment twice.
    #[error("the manifest names deployment {0} twice")]
    Twice(DeploymentId),
}

/// Something that the manifest names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// Digest of its bytes.
    pub digest: Digest,
    /// Where it is; may be empty.
    pub url: String,
    /// Advice.
    pub size: Option<u64>,
}

/// One deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Which.
    pub id: DeploymentId,
    /// Its YAML.
    pub artifact: Artifact,
}

/// A manifest that can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// `manifestVersion`.
    pub version: u64,
    /// The archive of all deployments, if there is one.
    pub bundle: Option<Artifact>,
    /// In the order of the list.
    pub deployments: Vec<Entry>,
    /// Digest of the body.
    pub digest: Digest,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    manifest_version: u64,
    #[serde(default)]
    bundle: Option<RawArtifact>,
    #[serde(default)]
    deployments: Option<Vec<RawEntry>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawArtifact {
    digest: String,
    #[serde(default)]
    size_bytes: Option<f64>,
    #[serde(default)]
    url: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawEntry {
    deployment_id: String,
    #[serde(flatten)]
    artifact: RawArtifact,
}

impl Manifest {
    /// Reads a manifest. Unknown fields are let pass.
    ///
    /// # Errors
    /// [`ManifestError`]; then all of it is invalid.
    pub fn parse(body: &[u8]) -> Result<Self, ManifestError> {
        if body.len() > MAX_MANIFEST {
            return Err(ManifestError::Form(format!("it has {} bytes, at most {MAX_MANIFEST} are read", body.len())));
        }
        let raw: Raw = serde_json::from_slice(body).map_err(|error| ManifestError::Form(error.to_string()))?;
        if raw.manifest_version == 0 {
            return Err(ManifestError::VersionZero);
        }
        let list = raw.deployments.unwrap_or_default();
        if list.len() > MAX_DEPLOYMENTS {
            return Err(ManifestError::Form(format!(
                "it names {} deployments, at most {MAX_DEPLOYMENTS} are taken",
                list.len()
            )));
        }
        let bundle = raw.bundle.map(Artifact::read).transpose()?;
        let mut seen = BTreeSet::new();
        let mut deployments = Vec::with_capacity(list.len());
        for entry in list {
            let entry =
                Entry { id: DeploymentId::new(&entry.deployment_id)?, artifact: Artifact::read(entry.artifact)? };
            if !seen.insert(entry.id.as_str().to_ascii_lowercase()) {
                return Err(ManifestError::Twice(entry.id));
            }
            deployments.push(entry);
        }
        Ok(Self { version: raw.manifest_version, bundle, deployments, digest: Digest::of(body) })
    }

    /// How this stands to the newest that was ever accepted: its version and the digest of its body.
    pub fn novelty(&self, held: Option<(u64, Digest)>) -> Novelty {
        match held {
            None => Novelty::Newer,
            Some((version, _)) if self.version > version => Novelty::Newer,
            Some((version, digest)) if self.version == version && self.digest == digest => Novelty::Unchanged,
            Some((version, _)) => Novelty::Rollback { held: version },
        }
    }

    /// The digests of all deployments.
    pub fn digests(&self) -> BTreeSet<Digest> {
        self.deployments.iter().map(|entry| entry.artifact.digest).collect()
    }
}

impl Artifact {
    fn read(raw: RawArtifact) -> Result<Self, WordError> {
        let size = raw.size_bytes.filter(|size| *size >= 0.0).map(|size| size as u64);
        Ok(Self { digest: Digest::new(&raw.digest)?, url: raw.url.unwrap_or_default(), size })
    }
}

/// How a manifest stands to the newest that was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Novelty {
    /// To be accepted, if its artifacts are right.
    Newer,
    /// The same again: some servers ignore `If-None-Match`.
    Unchanged,
    /// An older version, or the same version with another content.
    Rollback {
        /// The newest that was accepted.
        held: u64,
    },
}

/// What is to be fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Need {
    /// Nothing: all deployments are held.
    Nothing,
    /// The archive.
    Bundle,
    /// These, by their place in the list.
    Single(Vec<usize>),
}

/// The archive for a first sync or many changes, single deployments for few.
pub fn need(manifest: &Manifest, held: &BTreeSet<Digest>) -> Need {
    let missing = |(_, entry): &(usize, &Entry)| !held.contains(&entry.artifact.digest);
    let missing: Vec<usize> = manifest.deployments.iter().enumerate().filter(missing).map(|(i, _)| i).collect();
    let many = missing.len() > FEW && missing.len() * 2 > manifest.deployments.len();
    match missing.len() {
        0 => Need::Nothing,
        _ if manifest.bundle.is_some() && many => Need::Bundle,
        _ => Need::Single(missing),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    pub(crate) fn id(n: usize) -> String {
        format!("00000000-0000-4000-8000-{n:012}")
    }

    pub(crate) fn manifest(version: u64, count: usize) -> Value {
        let deployments: Vec<_> = (0..count)
            .map(|n| json!({ "deploymentId": id(n), "digest": Digest::of(id(n).as_bytes()).to_string(), "sizeBytes": 5, "url": "/api/v1/x" }))
            .collect();
        let bundle = if count == 0 {
            Value::Null
        } else {
            json!({ "mediaType": "m", "digest": Digest::of(b"b").to_string(), "url": "/b" })
        };
        json!({ "manifestVersion": version, "bundle": bundle, "deployments": deployments })
    }

    fn parse(value: &Value) -> Result<Manifest, ManifestError> {
        Manifest::parse(value.to_string().as_bytes())
    }

    #[test]
    fn an_equal_or_lower_manifest_version_is_a_rollback() {
        let held = parse(&manifest(5, 2)).unwrap();
        let known = Some((held.version, held.digest));
        assert_eq!(parse(&manifest(6, 2)).unwrap().novelty(known), Novelty::Newer);
        assert_eq!(parse(&manifest(4, 2)).unwrap().novelty(known), Novelty::Rollback { held: 5 });
        assert_eq!(
            parse(&manifest(5, 3)).unwrap().novelty(known),
            Novelty::Rollback { held: 5 },
            "same version, other content"
        );
        assert_eq!(parse(&manifest(1, 0)).unwrap().novelty(None), Novelty::Newer);
    }

    #[test]
    fn an_identical_re_delivery_is_unchanged() {
        let held = parse(&manifest(5, 2)).unwrap();
        assert_eq!(parse(&manifest(5, 2)).unwrap().novelty(Some((held.version, held.digest))), Novelty::Unchanged);
    }

    #[test]
    fn one_sha512_digest_makes_the_whole_manifest_invalid() {
        let sha512 = format!("sha512:{}", "a".repeat(128));
        let mut one = manifest(1, 10);
        one["deployments"][7]["digest"] = json!(sha512);
        assert!(matches!(parse(&one), Err(ManifestError::Word(WordError::Digest(_)))));
        let mut bundle = manifest(1, 1);
        bundle["bundle"]["digest"] = json!(sha512);
        assert!(matches!(parse(&bundle), Err(ManifestError::Word(WordError::Digest(_)))));
    }

    #[test]
    fn unknown_fields_are_accepted_and_the_bundle_is_null_without_deployments() {
        let mut value = manifest(1, 1);
        value["x"] = json!({ "y": 1 });
        value["deployments"][0]["z"] = json!([1]);
        assert_eq!(parse(&value).unwrap().deployments.len(), 1);
        let empty = parse(&manifest(2, 0)).unwrap();
        assert_eq!((empty.bundle, empty.deployments.len()), (None, 0));
        assert!(parse(&json!({ "manifestVersion": 1 })).unwrap().deployments.is_empty());
    }

    #[test]
    fn sizes_that_lie_are_only_advice() {
        let mut value = manifest(1, 1);
        for lie in [json!(0), json!(1e18), json!(-3), json!(null)] {
            value["deployments"][0]["sizeBytes"] = lie;
            assert!(parse(&value).is_ok());
        }
    }

    #[test]
    fn version_zero_twins_and_bad_ids_are_refused() {
        assert_eq!(parse(&manifest(0, 1)).unwrap_err(), ManifestError::VersionZero);
        let mut twins = manifest(1, 2);
        twins["deployments"][1]["deploymentId"] = json!(id(0));
        assert!(matches!(parse(&twins), Err(ManifestError::Twice(_))));
        let mut bad = manifest(1, 1);
        bad["deployments"][0]["deploymentId"] = json!("../x");
        assert!(matches!(parse(&bad), Err(ManifestError::Word(WordError::Deployment(_)))));
        for wrong in [
            "",
            "[]",
            "{}",
            r#"{"manifestVersion":-1}"#,
            r#"{"manifestVersion":1.5}"#,
            r#"{"manifestVersion":18446744073709551616}"#,
        ] {
            assert!(matches!(Manifest::parse(wrong.as_bytes()), Err(ManifestError::Form(_))), "{wrong}");
        }
    }

    #[test]
    fn versions_reach_to_the_end_of_u64() {
        let last = parse(&manifest(u64::MAX, 1)).unwrap();
        assert_eq!((last.version, last.novelty(Some((u64::MAX - 1, last.digest)))), (u64::MAX, Novelty::Newer));
    }

    #[test]
    fn the_bundle_is_for_many_changes_and_single_deployments_for_few() {
        let of = |held: usize, count: usize| {
            let manifest = parse(&manifest(1, count)).unwrap();
            let held = manifest.deployments[..held].iter().map(|entry| entry.artifact.digest).collect();
            need(&manifest, &held)
        };
        assert_eq!(of(0, 10), Need::Bundle);
        assert_eq!(of(0, 4), Need::Single(vec![0, 1, 2, 3]));
        assert_eq!(of(9, 10), Need::Single(vec![9]));
        assert_eq!(of(10, 10), Need::Nothing);
        assert_eq!(of(60, 100), Need::Single((60..100).collect()), "less than half");
        assert_eq!(of(0, 0), Need::Nothing);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Manifest::parse(&bytes);
        }

        #[test]
        fn a_version_is_accepted_exactly_once_and_only_upwards(versions in proptest::collection::vec(1u64..20, 1..40)) {
            let mut held: Option<(u64, Digest)> = None;
            for version in versions {
                let next = parse(&manifest(version, 1)).unwrap();
                match next.novelty(held) {
                    Novelty::Newer => {
                        prop_assert!(held.is_none_or(|(before, _)| version > before));
                        held = Some((version, next.digest));
                    }
                    Novelty::Unchanged => prop_assert_eq!(held, Some((version, next.digest))),
                    Novelty::Rollback { held: before } => prop_assert!(version < before),
                }
            }
        }
    }
}
