//! Where artifacts come from: a registry, or a directory for sites without one.
//!
//! The directory holds one OCI image layout per repository (`<directory>/<host>/<path>/index.json` and `blobs/sha256/…`), as
//! `oras copy --to-oci-layout` and `skopeo copy … oci:…` write it. It is asked first; what it lacks comes from the registry,
//! unless there is none.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use oci_client::Reference;
use oci_client::client::{Certificate, CertificateEncoding, Client, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::manifest::{IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE, OciDescriptor};
use oci_client::secrets::RegistryAuth;
use tokio::io::AsyncWriteExt;

use super::format::{FIRMWARE_TYPE, FormatError, Layer, MAX_MANIFEST, Parts, read_document, read_manifest};
use super::parameters::{ParameterError, bind};
use super::{Fetched, Work, compose};
use crate::margo::deployment::{ComponentRef, Deployment};
use crate::margo::words::Digest;
use crate::platform::durable::{Access, Disk};
use crate::security::Secret;

/// Until a registry answers, and between two pieces.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a component could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The address.
    #[error("component {component}: {repository:?} with revision {revision:?} is no address of an artifact: {reason}")]
    Address {
        /// Component.
        component: String,
        /// Repository.
        repository: String,
        /// Revision.
        revision: String,
        /// What is wrong.
        reason: String,
    },
    /// It may work later.
    #[error("component {component} cannot be fetched now: {reason}")]
    Unavailable {
        /// Component.
        component: String,
        /// Why not.
        reason: String,
    },
    /// It will not work.
    #[error("component {component} cannot be used: {reason}")]
    Refused {
        /// Component.
        component: String,
        /// Why not.
        reason: String,
    },
    /// Another kind of deployment.
    #[error("component {component} is {what}, which a `{profile}` deployment cannot bring; it takes `{wanted}`")]
    Profile {
        /// Component.
        component: String,
        /// What it is.
        what: &'static str,
        /// Of the deployment.
        profile: String,
        /// What would do.
        wanted: String,
    },
    /// Its parameters.
    #[error(transparent)]
    Parameter(#[from] ParameterError),
}

impl SourceError {
    /// Whether it may work later.
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}

/// How artifacts are fetched.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SourceConfig {
    /// Directory with OCI image layouts.
    pub directory: Option<PathBuf>,
    /// Whether registries are asked.
    pub registries: bool,
    /// PEM file of the authorities that registries are verified by; `None` for the operating system's.
    pub ca: Option<PathBuf>,
    /// Registries (`host:port`) that are spoken to without TLS. What comes from them is protected by digests only.
    pub plain: Vec<String>,
    /// User and password.
    pub login: Option<(String, Secret)>,
}

/// Fetches components.
pub struct Source {
    config: SourceConfig,
    /// Where images of firmware lie.
    cache: PathBuf,
    client: Option<Client>,
    disk: Disk,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("config", &self.config).finish_non_exhaustive()
    }
}

/// What a place gave, or that it does not have it.
type Found<T> = Result<Option<T>, Miss>;

/// Why a place did not give.
enum Miss {
    Later(String),
    Never(String),
}

impl Source {
    /// Prepares fetching, of images of firmware into the directory `cache`.
    ///
    /// # Errors
    /// When the authorities' file cannot be read.
    pub fn new(config: SourceConfig, cache: PathBuf) -> Result<Self, std::io::Error> {
        // The registry client takes the process-wide provider; a second call changes nothing.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let certificates = match &config.ca {
            Some(path) => pem_blocks(&std::fs::read_to_string(path)?),
            None => Vec::new(),
        };
        let client = config.registries.then(|| {
            Client::new(ClientConfig {
                protocol: ClientProtocol::HttpsExcept(config.plain.clone()),
                tls_certs_only: certificates,
                platform_resolver: None,
                read_timeout: Some(PATIENCE),
                connect_timeout: Some(PATIENCE),
                user_agent: concat!("fieldgate/", env!("CARGO_PKG_VERSION")),
                ..ClientConfig::default()
            })
        });
        Ok(Self { config, cache, client, disk: Disk::default() })
    }

    /// Fetches every component of a deployment and binds its parameters.
    ///
    /// # Errors
    /// [`SourceError`]: one that cannot be used refuses all.
    pub async fn fetch_all(&self, deployment: &Deployment) -> Result<Vec<Fetched>, SourceError> {
        let names: Vec<&str> = deployment.component_names().collect();
        for parameter in &deployment.parameters {
            let unknown = |name: &&String| !names.contains(&name.as_str());
            if let Some(component) = parameter.targets.iter().flat_map(|(_, components)| components).find(unknown) {
                let (name, component) = (parameter.name.clone(), component.clone());
                return Err(ParameterError::Component { name, component }.into());
            }
        }
        let mut all = Vec::with_capacity(deployment.components.len());
        for component in &deployment.components {
            let mut fetched = self.fetch(component).await?;
            let (found, wanted) = (&deployment.profile, fetched.work.profile());
            if *found != wanted {
                let (profile, wanted) = (found.as_str().to_owned(), wanted.as_str().to_owned());
                let (component, what) = (component.name.clone(), fetched.work.name());
                return Err(SourceError::Profile { component, what, profile, wanted });
            }
            fetched.work = bind(fetched.work, &component.name, &deployment.parameters)?;
            if let Work::Compose(project) = &mut fetched.work {
                project.owner = format!("{}/{}", deployment.id, component.name);
                project.timeout_ms =
                    component.timeout.map(|timeout| timeout.as_millis().try_into().unwrap_or(u64::MAX));
            }
            all.push(fetched);
        }
        Ok(all)
    }

    /// Removes images of firmware that nobody names any more. Not while something is fetched.
    pub fn sweep(&self, keep: &BTreeSet<Digest>) {
        let keep: BTreeSet<String> = keep.iter().map(Digest::hex).collect();
        let Ok(entries) = std::fs::read_dir(&self.cache) else { return };
        for entry in entries.flatten() {
            let named = entry.file_name().to_str().is_some_and(|name| keep.contains(name));
            if !named && let Err(error) = std::fs::remove_file(entry.path()) {
                tracing::debug!(%error, path = %entry.path().display(), "an old image of firmware was not removed");
            }
        }
    }

    async fn fetch(&self, component: &ComponentRef) -> Result<Fetched, SourceError> {
        let reference = reference(component)?;
        let name = &component.name;
        let later = |reason: String| SourceError::Unavailable { component: name.clone(), reason };
        let never = |reason: String| SourceError::Refused { component: name.clone(), reason };
        let miss = |miss: Miss| match miss {
            Miss::Later(reason) => later(reason),
            Miss::Never(reason) => never(reason),
        };
        let manifest = self.manifest(&reference).await.map_err(miss)?;
        let artifact = Digest::of(&manifest);
        let format = |error: FormatError| never(error.to_string());
        let Parts { payload, firmware, further, fits } = read_manifest(&manifest).map_err(format)?;
        let work = match firmware {
            None if compose::limit(&payload.kind).is_some() => {
                let mut layers = Vec::with_capacity(further.len() + 1);
                for layer in std::iter::once(payload).chain(further) {
                    let bytes = self.document(&reference, &layer).await.map_err(miss)?;
                    layers.push((layer, bytes));
                }
                Work::Compose(Box::new(compose::read(&layers).map_err(format)?))
            }
            None => {
                let bytes = self.document(&reference, &payload).await.map_err(miss)?;
                read_document(&payload.kind, &bytes).map_err(format)?
            }
            Some(signed) => {
                let text = self.document(&reference, &signed).await.map_err(miss)?;
                let manifest = String::from_utf8(text.to_vec())
                    .map_err(|_| never("its firmware manifest is no text".to_owned()))?;
                self.image(&reference, &payload).await.map_err(miss)?;
                Work::Firmware { image: payload.digest, size: payload.size, manifest }
            }
        };
        Ok(Fetched { work, fits, artifact })
    }

    /// The manifest of an artifact, verified when the revision is a digest.
    async fn manifest(&self, reference: &Reference) -> Result<Bytes, Miss> {
        if let Some(bytes) = self.layout(reference).map_or(Ok(None), |layout| layout.manifest(reference))? {
            return Ok(bytes);
        }
        let client = self.registry()?;
        let types = [OCI_IMAGE_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE];
        let (bytes, _) = client.pull_manifest_raw(reference, &self.login(), &types).await.map_err(judge)?;
        if bytes.len() > MAX_MANIFEST {
            return Err(Miss::Never(format!("its manifest has {} bytes", bytes.len())));
        }
        match reference.digest() {
            Some(wanted) if Digest::of(&bytes).to_string() != wanted => {
                Err(Miss::Never(format!("its manifest has digest {}, wanted is {wanted}", Digest::of(&bytes))))
            }
            _ => Ok(bytes),
        }
    }

    /// A small layer.
    async fn document(&self, reference: &Reference, layer: &Layer) -> Result<Bytes, Miss> {
        let local = self.layout(reference).map(|layout| layout.blob(&layer.digest));
        let bytes = match local.filter(|path| path.is_file()) {
            Some(path) => read_limited(&path, layer.size)?,
            None => self.pull(reference, layer).await?,
        };
        matches(&bytes, layer).map(|()| bytes)
    }

    async fn pull(&self, reference: &Reference, layer: &Layer) -> Result<Bytes, Miss> {
        let mut stream = self.registry()?.pull_blob_stream(reference, &descriptor(layer)).await.map_err(judge)?.stream;
        let mut bytes = Vec::new();
        while let Some(piece) = stream.next().await {
            let piece = piece.map_err(|error| cut(layer, bytes.len() as u64, &error))?;
            if (bytes.len() + piece.len()) as u64 > layer.size {
                return Err(longer(layer));
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes.into())
    }

    /// An image of firmware, into the cache under its digest.
    async fn image(&self, reference: &Reference, layer: &Layer) -> Result<(), Miss> {
        let broken = |error: std::io::Error| Miss::Later(format!("the cache of firmware: {error}"));
        let directory = &self.cache;
        self.disk.create_directory(directory, Access::Private).map_err(broken)?;
        let place = directory.join(layer.digest.hex());
        if place.metadata().is_ok_and(|found| found.len() == layer.size) {
            return Ok(());
        }
        let unfinished = directory.join(format!(".{}.unfinished", layer.digest.hex()));
        let written = self.write_image(reference, layer, &unfinished).await;
        match written {
            Ok(()) => self.disk.rename(&unfinished, &place).map_err(broken),
            Err(miss) => {
                // Best effort: the next attempt writes over it.
                let _gone = std::fs::remove_file(&unfinished);
                Err(miss)
            }
        }
    }

    async fn write_image(&self, reference: &Reference, layer: &Layer, into: &Path) -> Result<(), Miss> {
        let broken = |error: std::io::Error| Miss::Later(format!("the cache of firmware: {error}"));
        let mut file = tokio::fs::File::create(into).await.map_err(broken)?;
        let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
        let mut written = 0_u64;
        let local = self.layout(reference).map(|layout| layout.blob(&layer.digest)).filter(|path| path.is_file());
        let mut stream = match local {
            Some(path) => {
                let bytes = read_limited(&path, layer.size)?;
                futures::stream::iter([Ok(bytes)]).boxed()
            }
            None => self.registry()?.pull_blob_stream(reference, &descriptor(layer)).await.map_err(judge)?.stream,
        };
        while let Some(piece) = stream.next().await {
            let piece = piece.map_err(|error| cut(layer, written, &error))?;
            written += piece.len() as u64;
            if written > layer.size {
                return Err(longer(layer));
            }
            hash.update(&piece);
            file.write_all(&piece).await.map_err(broken)?;
        }
        file.sync_all().await.map_err(broken)?;
        let found = crate::margo::words::hex(hash.finish().as_ref());
        if found == layer.digest.hex() {
            Ok(())
        } else {
            Err(Miss::Never(format!("its image has digest sha256:{found}, wanted is {}", layer.digest)))
        }
    }

    fn registry(&self) -> Result<&Client, Miss> {
        self.client.as_ref().ok_or_else(|| {
            Miss::Later("it is not in the directory of artifacts, and registries are switched off".to_owned())
        })
    }

    fn login(&self) -> RegistryAuth {
        match &self.config.login {
            Some((user, password)) => RegistryAuth::Basic(user.clone(), password.expose().to_owned()),
            None => RegistryAuth::Anonymous,
        }
    }

    fn layout(&self, reference: &Reference) -> Option<Layout> {
        let directory = self.config.directory.as_ref()?;
        Some(Layout { root: directory.join(reference.registry()).join(reference.repository()) })
    }
}

/// A blob that ended early may come whole the next time; one that is whole and wrong, as the client says, stays wrong.
fn cut(layer: &Layer, got: u64, error: &std::io::Error) -> Miss {
    if got == layer.size { Miss::Never(error.to_string()) } else { Miss::Later(error.to_string()) }
}

/// One OCI image layout.
struct Layout {
    root: PathBuf,
}

impl Layout {
    fn blob(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join("sha256").join(digest.hex())
    }

    fn manifest(&self, reference: &Reference) -> Found<Bytes> {
        let digest = match reference.digest() {
            Some(digest) => Digest::new(digest).map_err(|error| Miss::Never(error.to_string()))?,
            None => match self.tagged(reference.tag().unwrap_or("latest"))? {
                Some(digest) => digest,
                None => return Ok(None),
            },
        };
        let path = self.blob(&digest);
        if !path.is_file() {
            return Ok(None);
        }
        let bytes = read_limited(&path, MAX_MANIFEST as u64)?;
        if Digest::of(&bytes) != digest {
            return Err(Miss::Never(format!("{} is not what its name says", path.display())));
        }
        Ok(Some(bytes))
    }

    fn tagged(&self, tag: &str) -> Found<Digest> {
        let path = self.root.join("index.json");
        if !path.is_file() {
            return Ok(None);
        }
        let bytes = read_limited(&path, 4 << 20)?;
        let broken = |reason: String| Miss::Never(format!("{}: {reason}", path.display()));
        let index: serde_json::Value = serde_json::from_slice(&bytes).map_err(|error| broken(error.to_string()))?;
        let named = |entry: &&serde_json::Value| {
            let name = entry["annotations"]["org.opencontainers.image.ref.name"].as_str().unwrap_or_default();
            name == tag || name.rsplit(':').next() == Some(tag)
        };
        let entry = index["manifests"].as_array().and_then(|all| all.iter().find(named));
        let digest = entry.and_then(|entry| entry["digest"].as_str());
        digest.map(Digest::new).transpose().map_err(|error| broken(error.to_string()))
    }
}

/// `oci://host/path` and a tag, a digest or both.
fn reference(component: &ComponentRef) -> Result<Reference, SourceError> {
    let ComponentRef { name, repository, revision, .. } = component;
    let wrong = |reason: &str| SourceError::Address {
        component: name.clone(),
        repository: repository.clone(),
        revision: revision.clone(),
        reason: reason.to_owned(),
    };
    let place = repository.strip_prefix("oci://").ok_or_else(|| wrong("it must begin with oci://"))?;
    let place = place.trim_end_matches('/');
    let safe = |part: &str| !part.is_empty() && part != "." && part != "..";
    if !place.contains('/') || !place.split('/').all(safe) || place.contains(['@', '\\', '?', '#']) {
        return Err(wrong("it must be oci://host/path"));
    }
    let text = match revision.as_str() {
        "" => return Err(wrong("the revision is missing")),
        digest if digest.starts_with("sha256:") => format!("{place}@{digest}"),
        tag => format!("{place}:{tag}"),
    };
    let parsed: Reference = text.parse().map_err(|_| wrong("it cannot be parsed"))?;
    match parsed.digest().map(Digest::new) {
        Some(Err(error)) => Err(wrong(&error.to_string())),
        _ => Ok(parsed),
    }
}

fn descriptor(layer: &Layer) -> OciDescriptor {
    let size = i64::try_from(layer.size).unwrap_or(i64::MAX);
    OciDescriptor { media_type: layer.kind.clone(), digest: layer.digest.to_string(), size, ..OciDescriptor::default() }
}

fn longer(layer: &Layer) -> Miss {
    Miss::Never(format!("its layer is longer than the {} bytes that its manifest says", layer.size))
}

fn matches(bytes: &Bytes, layer: &Layer) -> Result<(), Miss> {
    let found = Digest::of(bytes);
    let what = if layer.kind == FIRMWARE_TYPE { "image" } else { "layer" };
    if found == layer.digest {
        Ok(())
    } else {
        Err(Miss::Never(format!("its {what} has digest {found}, wanted is {}", layer.digest)))
    }
}

fn read_limited(path: &Path, most: u64) -> Result<Bytes, Miss> {
    let failed = |error: std::io::Error| Miss::Later(format!("{}: {error}", path.display()));
    let length = std::fs::metadata(path).map_err(failed)?.len();
    if length > most {
        return Err(Miss::Never(format!("{} has {length} bytes, at most {most} are taken", path.display())));
    }
    std::fs::read(path).map(Bytes::from).map_err(failed)
}

/// Tells what may work later from what will not.
fn judge(error: OciDistributionError) -> Miss {
    use OciDistributionError as E;
    let text: String = error.to_string().chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect();
    match error {
        E::DigestError(_) | E::SpecViolationError(_) | E::JsonError(_) => Miss::Never(text),
        _ => Miss::Later(text),
    }
}

fn pem_blocks(text: &str) -> Vec<Certificate> {
    const END: &str = "-----END CERTIFICATE-----";
    let blocks = text.split_inclusive(END).filter(|block| block.contains("-----BEGIN CERTIFICATE-----"));
    blocks
        .map(|block| Certificate { encoding: CertificateEncoding::Pem, data: block.trim().as_bytes().to_vec() })
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::super::format::tests::artifact;
    use super::super::{CONFIGURATION_TYPE, FIRMWARE_MANIFEST_TYPE, PointValue, RECIPE_TYPE};
    use super::*;

    /// Writes an artifact into a directory of OCI image layouts.
    pub(crate) fn store(
        root: &Path,
        repository: &str,
        tag: &str,
        layers: &[(&str, &[u8])],
        annotations: serde_json::Value,
    ) -> Digest {
        let layout = root.join(repository);
        std::fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
        let manifest = artifact(layers, annotations);
        let digest = Digest::of(&manifest);
        for bytes in layers.iter().map(|(_, bytes)| *bytes).chain([manifest.as_slice()]) {
            std::fs::write(layout.join("blobs/sha256").join(Digest::of(bytes).hex()), bytes).unwrap();
        }
        let path = layout.join("index.json");
        let mut index: serde_json::Value = std::fs::read(&path)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_else(|| json!({ "schemaVersion": 2, "manifests": [] }));
        let list = index["manifests"].as_array_mut().unwrap();
        list.retain(|entry| entry["annotations"]["org.opencontainers.image.ref.name"] != tag);
        list.push(json!({
            "mediaType": OCI_IMAGE_MEDIA_TYPE, "digest": digest.to_string(), "size": manifest.len(),
            "annotations": { "org.opencontainers.image.ref.name": tag },
        }));
        std::fs::write(path, index.to_string()).unwrap();
        digest
    }

    fn component(repository: &str, revision: &str) -> ComponentRef {
        ComponentRef {
            name: "a".to_owned(),
            repository: repository.to_owned(),
            revision: revision.to_owned(),
            timeout: None,
        }
    }

    fn source(directory: &Path) -> Source {
        let config = SourceConfig { directory: Some(directory.join("oci")), ..SourceConfig::default() };
        Source::new(config, directory.join("cache")).unwrap()
    }

    #[tokio::test]
    async fn a_directory_serves_offline_sites_by_tag_and_by_digest() {
        let dir = tempfile::tempdir().unwrap();
        let recipe = br#"{"values":[{"point":"speed","value":1}]}"#;
        let digest = store(
            &dir.path().join("oci"),
            "registry.example/recipes/a",
            "1.0",
            &[(RECIPE_TYPE, recipe)],
            json!({ "dev.fieldgate.fits.model": "P-*" }),
        );
        let source = source(dir.path());
        for revision in ["1.0".to_owned(), digest.to_string(), format!("1.0@{digest}")] {
            let fetched = source.fetch(&component("oci://registry.example/recipes/a", &revision)).await.unwrap();
            let values = vec![PointValue { point: "speed".to_owned(), value: json!(1) }];
            assert_eq!(fetched.work, Work::Recipe { values });
            assert_eq!((fetched.artifact, fetched.fits.model.as_deref()), (digest, Some("P-*")));
        }
        let missing = source.fetch(&component("oci://registry.example/recipes/a", "2.0")).await.unwrap_err();
        assert!(missing.is_transient(), "{missing}");
    }

    #[tokio::test]
    async fn what_does_not_fit_its_digest_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("oci");
        let bytes: &[u8] = br#"{"points":{}}"#;
        store(&root, "registry.example/c", "1", &[(CONFIGURATION_TYPE, bytes)], json!({}));
        let blob = root.join("registry.example/c/blobs/sha256").join(Digest::of(bytes).hex());
        std::fs::write(&blob, br#"{"points":[]}"#).unwrap();
        let error = source(dir.path()).fetch(&component("oci://registry.example/c", "1")).await.unwrap_err();
        assert!(matches!(error, SourceError::Refused { .. }), "{error}");
    }

    #[tokio::test]
    async fn images_of_firmware_go_to_the_cache_and_half_ones_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("oci");
        let image: &[u8] = b"image bytes";
        store(
            &root,
            "registry.example/fw",
            "1",
            &[(FIRMWARE_TYPE, image), (FIRMWARE_MANIFEST_TYPE, b"fieldgate-firmware-v1\n")],
            json!({}),
        );
        let source = source(dir.path());
        let fetched = source.fetch(&component("oci://registry.example/fw", "1")).await.unwrap();
        let Work::Firmware { image: digest, size, manifest } = fetched.work else { panic!() };
        assert_eq!((size, manifest.as_str()), (11, "fieldgate-firmware-v1\n"));
        let cached = dir.path().join("cache").join(digest.hex());
        assert_eq!(std::fs::read(&cached).unwrap(), image);
        source.sweep(&[digest].into());
        assert!(cached.exists());
        source.sweep(&BTreeSet::new());
        assert!(!cached.exists(), "nobody names it any more");
        source.fetch(&component("oci://registry.example/fw", "1")).await.unwrap();
        std::fs::remove_file(&cached).unwrap();
        std::fs::write(root.join("registry.example/fw/blobs/sha256").join(digest.hex()), b"other bytes").unwrap();
        assert!(source.fetch(&component("oci://registry.example/fw", "1")).await.is_err());
        assert_eq!(std::fs::read_dir(dir.path().join("cache")).unwrap().count(), 0);
    }

    #[test]
    fn addresses_that_are_none_are_refused() {
        for (repository, revision) in [
            ("https://registry.example/a", "1"),
            ("oci://registry.example", "1"),
            ("oci://registry.example/../../etc", "1"),
            ("oci://registry.example/a", ""),
            ("oci://registry.example/a", "sha512:00"),
            ("oci://registry.example/a@sha256:x", "1"),
            ("oci://registry.example/a", "../x"),
        ] {
            assert!(reference(&component(repository, revision)).is_err(), "{repository} {revision}");
        }
    }
}
