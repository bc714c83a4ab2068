//! The archive of all deployments, unpacked in memory and held against the manifest.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Component;

use bytes::Bytes;

use super::manifest::Manifest;
use crate::margo::api::MAX_DEPLOYMENT;
use crate::margo::words::{DeploymentId, Digest};

/// Most bytes of an archive when unpacked.
pub const MAX_UNPACKED: u64 = 128 << 20;

/// Why an archive is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// Its bytes are not those that the manifest names.
    #[error("the bundle has digest {found}, the manifest says {wanted}")]
    Digest {
        /// Of the bytes.
        found: Digest,
        /// In the manifest.
        wanted: Digest,
    },
    /// No gzip, no tar, or damaged.
    #[error("the bundle cannot be unpacked: {0}")]
    Form(String),
    /// A decompression bomb, or a file that no deployment can be.
    #[error("the bundle is larger than a bundle can be ({0}); it is not unpacked")]
    TooLarge(String),
    /// A name that is not a plain file's in the root.
    #[error("the bundle holds {0:?}; it may hold files in its root and nothing else")]
    Name(String),
    /// Not referenced by the manifest.
    #[error("the bundle holds {0:?}, which is none of the manifest's deployments")]
    Extra(String),
    /// Referenced and not there.
    #[error("the bundle lacks deployment {0}")]
    Missing(DeploymentId),
}

/// Stops after a number of bytes, with an error instead of an end.
#[derive(Debug)]
pub(crate) struct Limited<R> {
    inner: R,
    left: u64,
}

impl<R> Limited<R> {
    /// At most `left` bytes of `inner`.
    pub(crate) const fn new(inner: R, left: u64) -> Self {
        Self { inner, left }
    }
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(into)?;
        self.left = self.left.checked_sub(read as u64).ok_or_else(|| std::io::Error::other(TOO_LARGE))?;
        Ok(read)
    }
}

const TOO_LARGE: &str = "unpacked it has more bytes than are allowed";

/// Unpacks `bytes` and gives the YAML of every deployment.
///
/// # Errors
/// [`BundleError`]: one fault refuses all of it.
pub fn unpack(
    bytes: &[u8],
    wanted: &Digest,
    manifest: &Manifest,
) -> Result<BTreeMap<DeploymentId, Bytes>, BundleError> {
    let found = Digest::of(bytes);
    if found != *wanted {
        return Err(BundleError::Digest { found, wanted: *wanted });
    }
    let mut open: BTreeMap<Digest, Vec<DeploymentId>> = BTreeMap::new();
    for entry in &manifest.deployments {
        open.entry(entry.artifact.digest).or_default().push(entry.id.clone());
    }
    let mut unpacked = BTreeMap::new();
    let mut archive = tar::Archive::new(Limited::new(flate2::read::MultiGzDecoder::new(bytes), MAX_UNPACKED));
    for file in archive.entries().map_err(form)? {
        let mut file = file.map_err(form)?;
        let Some(name) = name(&file)? else { continue };
        let yaml = content(&mut file, &name)?;
        let id = open.get_mut(&Digest::of(&yaml)).and_then(Vec::pop).ok_or(BundleError::Extra(name))?;
        unpacked.insert(id, yaml);
    }
    match open.into_values().flatten().next() {
        Some(id) => Err(BundleError::Missing(id)),
        None => Ok(unpacked),
    }
}

/// The name of a plain file in the root; `None` for the root itself.
fn name<R: Read>(file: &tar::Entry<'_, R>) -> Result<Option<String>, BundleError> {
    let raw = file.path_bytes();
    let text = String::from_utf8_lossy(&raw).chars().take(200).collect::<String>();
    let refused = || BundleError::Name(text.clone());
    let kind = file.header().entry_type();
    let path = file.path().map_err(|_| refused())?;
    let parts: Vec<Component<'_>> = path.components().filter(|part| *part != Component::CurDir).collect();
    if kind.is_dir() && parts.is_empty() {
        return Ok(None);
    }
    match parts[..] {
        [Component::Normal(_)] if kind.is_file() && !raw.contains(&b'\\') => Ok(Some(text)),
        _ => Err(refused()),
    }
}

fn content<R: Read>(file: &mut tar::Entry<'_, R>, name: &str) -> Result<Bytes, BundleError> {
    // What the header says decides nothing but how early we stop.
    let limit = MAX_DEPLOYMENT as u64;
    if file.size() > limit {
        return Err(BundleError::TooLarge(format!("{name} has {} bytes", file.size())));
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(form)?;
    if bytes.len() as u64 > limit { Err(BundleError::TooLarge(name.to_owned())) } else { Ok(bytes.into()) }
}

fn form(error: std::io::Error) -> BundleError {
    let text = error.to_string();
    if text.contains(TOO_LARGE) { BundleError::TooLarge(text) } else { BundleError::Form(text) }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;

    use proptest::prelude::*;
    use serde_json::json;

    use super::super::manifest::tests::id;
    use super::*;

    /// A tar of these files; headers are made by hand, so that names may be what the library would refuse.
    pub(crate) fn tar_of(files: &[(&str, u8, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        for (name, kind, content) in files {
            let mut header = tar::Header::new_ustar();
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(tar::EntryType::new(*kind));
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            if *kind == b'2' {
                header.set_link_name("/etc/passwd").unwrap();
            }
            header.set_cksum();
            out.extend_from_slice(header.as_bytes());
            out.extend_from_slice(content);
            out.resize(out.len().next_multiple_of(512), 0);
        }
        out.resize(out.len() + 1024, 0);
        out
    }

    pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn yaml(n: usize) -> Vec<u8> {
        format!("deployment {n}\n").into_bytes()
    }

    fn manifest(count: usize) -> Manifest {
        let list: Vec<_> = (0..count)
            .map(|n| json!({ "deploymentId": id(n), "digest": Digest::of(&yaml(n)).to_string(), "url": "/x" }))
            .collect();
        Manifest::parse(json!({ "manifestVersion": 1, "deployments": list }).to_string().as_bytes()).unwrap()
    }

    fn try_unpack(files: &[(&str, u8, &[u8])], count: usize) -> Result<usize, BundleError> {
        let packed = gzip(&tar_of(files));
        unpack(&packed, &Digest::of(&packed), &manifest(count)).map(|all| all.len())
    }

    #[test]
    fn the_archive_holds_exactly_the_referenced_deployments() {
        let (a, b) = (yaml(0), yaml(1));
        assert_eq!(try_unpack(&[("./", b'5', b""), ("./b.yaml", b'0', &b), ("a.yaml", b'0', &a)], 2), Ok(2));
        assert_eq!(try_unpack(&[], 0), Ok(0));
    }

    #[test]
    fn an_extra_or_missing_file_in_the_bundle_is_refused() {
        let (a, b) = (yaml(0), yaml(1));
        assert!(matches!(try_unpack(&[("a.yaml", b'0', &a), ("b.yaml", b'0', &b)], 1), Err(BundleError::Extra(_))));
        assert!(matches!(try_unpack(&[("a.yaml", b'0', &a), ("readme", b'0', b"x")], 1), Err(BundleError::Extra(_))));
        assert!(
            matches!(try_unpack(&[("a.yaml", b'0', &a), ("c.yaml", b'0', &a)], 1), Err(BundleError::Extra(_))),
            "twice"
        );
        assert!(matches!(try_unpack(&[("a.yaml", b'0', &a)], 2), Err(BundleError::Missing(_))));
    }

    #[test]
    fn one_wrong_digest_among_ten_refuses_the_bundle() {
        let texts: Vec<Vec<u8>> = (0..10).map(|n| if n == 6 { b"forged".to_vec() } else { yaml(n) }).collect();
        let names: Vec<String> = (0..10).map(|n| format!("{n}.yaml")).collect();
        let files: Vec<_> =
            texts.iter().zip(&names).map(|(text, name)| (name.as_str(), b'0', text.as_slice())).collect();
        assert!(matches!(try_unpack(&files, 10), Err(BundleError::Extra(name)) if name == "6.yaml"));
    }

    #[test]
    fn path_traversal_links_and_folders_in_the_archive_are_refused() {
        let a = yaml(0);
        for name in ["../a.yaml", "/a.yaml", "x/a.yaml", "./x/../../a.yaml", "..", "x\\a.yaml"] {
            assert!(matches!(try_unpack(&[(name, b'0', &a)], 1), Err(BundleError::Name(_))), "{name}");
        }
        for kind in [b'1', b'2', b'3', b'4', b'6'] {
            assert!(matches!(try_unpack(&[("a.yaml", kind, b"")], 1), Err(BundleError::Name(_))), "{kind}");
        }
        assert!(matches!(try_unpack(&[("x/", b'5', b"")], 0), Err(BundleError::Name(_))));
    }

    #[test]
    fn a_decompression_bomb_is_not_unpacked() {
        let large = vec![0; MAX_DEPLOYMENT + 1];
        assert!(matches!(try_unpack(&[("a.yaml", b'0', &large)], 1), Err(BundleError::TooLarge(_))));
        // 200 MiB of zeros behind the end of the archive, and inside of it, are a few hundred kilobytes when packed.
        let zeros = vec![0; 1 << 20];
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        let mut header = tar::Header::new_ustar();
        header.set_path("a.yaml").unwrap();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_size(200 << 20);
        header.set_cksum();
        encoder.write_all(header.as_bytes()).unwrap();
        (0..200).for_each(|_| encoder.write_all(&zeros).unwrap());
        let packed = encoder.finish().unwrap();
        assert!(packed.len() < 2 << 20);
        let outcome = unpack(&packed, &Digest::of(&packed), &manifest(0));
        assert!(matches!(outcome, Err(BundleError::TooLarge(_) | BundleError::Name(_))), "{outcome:?}");
    }

    #[test]
    fn a_bundle_with_another_digest_is_not_even_opened() {
        let outcome = unpack(b"anything", &Digest::of(b"other"), &manifest(0));
        assert!(matches!(outcome, Err(BundleError::Digest { .. })));
        assert!(matches!(unpack(b"no gzip", &Digest::of(b"no gzip"), &manifest(0)), Err(BundleError::Form(_))));
        let cut = &gzip(&tar_of(&[("a.yaml", b'0', &yaml(0))]))[..40];
        assert!(matches!(unpack(cut, &Digest::of(cut), &manifest(1)), Err(BundleError::Form(_))));
    }

    proptest! {
        #[test]
        fn any_archive_is_unpacked_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..2_000), wrap in any::<bool>()) {
            let packed = if wrap { gzip(&bytes) } else { bytes };
            let _ = unpack(&packed, &Digest::of(&packed), &manifest(1));
        }
    }
}
