//! Where artifacts come from: a registry, or a directory for sites without one.
//!
//! The directory holds one OCI image layout per repository (`<directory>/<host>/<path>/index.json` and `blobs/sha256/…`), as
//! `oras copy --to-oci-layout` and `skopeo copy … oci:…` write it. It is asked first; what it lacks comes from the registry,
//! unless there is none. Both are read within limits: no answer is taken beyond the bytes and the time that its place allows.

mod layout;
mod registry;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use oci_spec::distribution::Reference;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use layout::{Layout, read_limited};
use registry::{Body, Pace, Registry};

use super::format::{FIRMWARE_TYPE, FormatError, Layer, Parts, read_document, read_manifest};
use super::parameters::{ParameterError, bind};
use super::{Fetched, Work, compose};
use crate::margo::deployment::{ComponentRef, Deployment};
use crate::margo::words::Digest;
use crate::platform::durable::{Access, Disk};
use crate::security::Secret;

/// Bytes that are read of a file at once.
const PIECE: usize = 256 << 10;

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
    registry: Option<Registry>,
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
        Self::with_pace(config, cache, Pace::default())
    }

    fn with_pace(config: SourceConfig, cache: PathBuf, pace: Pace) -> Result<Self, std::io::Error> {
        // The HTTP client takes the process-wide provider; a second call changes nothing.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let registry = config.registries.then(|| Registry::new(&config, pace)).transpose()?;
        Ok(Self { config, cache, registry, disk: Disk::default() })
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
        let bytes = self.registry()?.manifest(reference).await?;
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
        let mut body = self.registry()?.blob(reference, layer).await?;
        let mut bytes = Vec::new();
        while let Some(piece) = body.next().await? {
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
        let mut pieces = match local {
            Some(path) => Pieces::File(tokio::fs::File::open(path).await.map_err(broken)?),
            None => Pieces::Answer(self.registry()?.blob(reference, layer).await?),
        };
        while let Some(piece) = pieces.next().await? {
            written += piece.len() as u64;
            if written > layer.size {
                return Err(longer(layer));
            }
            hash.update(&piece);
            file.write_all(&piece).await.map_err(broken)?;
        }
        file.sync_all().await.map_err(broken)?;
        let found = crate::margo::words::hex(hash.finish().as_ref());
        if found == layer.digest.hex() { Ok(()) } else { Err(mismatch(layer, written, &format!("sha256:{found}"))) }
    }

    fn registry(&self) -> Result<&Registry, Miss> {
        self.registry.as_ref().ok_or_else(|| {
            Miss::Later("it is not in the directory of artifacts, and registries are switched off".to_owned())
        })
    }

    fn layout(&self, reference: &Reference) -> Option<Layout> {
        let directory = self.config.directory.as_ref()?;
        Some(Layout::of(directory, reference))
    }
}

/// An image that arrives piece by piece.
enum Pieces {
    File(tokio::fs::File),
    Answer(Body),
}

impl Pieces {
    async fn next(&mut self) -> Found<Bytes> {
        match self {
            Self::Answer(body) => body.next().await,
            Self::File(file) => {
                let mut piece = BytesMut::with_capacity(PIECE);
                let read = file.read_buf(&mut piece).await;
                let read = read.map_err(|error| Miss::Later(format!("the directory of artifacts: {error}")))?;
                Ok((read > 0).then(|| piece.freeze()))
            }
        }
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

fn longer(layer: &Layer) -> Miss {
    Miss::Never(format!("its layer is longer than the {} bytes that its manifest says", layer.size))
}

fn matches(bytes: &Bytes, layer: &Layer) -> Result<(), Miss> {
    let found = Digest::of(bytes);
    if found == layer.digest { Ok(()) } else { Err(mismatch(layer, bytes.len() as u64, &found.to_string())) }
}

/// What ended early may come whole the next time; what is whole and wrong stays wrong.
fn mismatch(layer: &Layer, got: u64, found: &str) -> Miss {
    let what = if layer.kind == FIRMWARE_TYPE { "image" } else { "layer" };
    match got < layer.size {
        true => Miss::Later(format!("its {what} ended after {got} of {} bytes", layer.size)),
        false => Miss::Never(format!("its {what} has digest {found}, wanted is {}", layer.digest)),
    }
}

#[cfg(test)]
pub(crate) mod tests;
