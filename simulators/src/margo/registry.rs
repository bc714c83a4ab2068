//! **A small OCI registry**: the pull side of the distribution API (`/v2/`), by tag and by digest, with tokens if asked;
//! artifacts are pushed through the handle.
//!
//! Limits: HTTP unless a certificate is given, no pushes over HTTP, no ranges (a client that asks for one gets the whole
//! blob with 200, as the distribution specification allows).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::body::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::http::{Answer, Ask, Down, Listener, Serve};
use super::scripted::{Scripted, Times};
use super::tls::{self, Identity, TlsVersions};
use super::tools::{locked, random_hex, sha256};
use super::{MargoSimError, Svid};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// Requests that are kept in the log.
const KEPT: usize = 10_000;

/// What goes wrong with a pull.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "fault", rename_all = "kebab-case")]
pub enum RegistryFault {
    /// A blob is not what its digest says, at the same length.
    WrongBlob,
    /// A manifest that is asked for by digest is another.
    WrongManifest,
    /// Blobs are not there.
    BlobMissing,
    /// Manifests are not there.
    ManifestMissing,
    /// Blobs end early.
    Truncate {
        /// After so many bytes.
        bytes: usize,
    },
    /// Blobs come in dribs.
    Dribble {
        /// Bytes at a time.
        bytes: usize,
        /// Milliseconds in between.
        every_ms: u64,
    },
    /// Every answer comes later.
    Latency {
        /// Milliseconds.
        ms: u64,
    },
    /// Every request is answered with this status.
    Status {
        /// HTTP status.
        status: u16,
        /// `Retry-After`, seconds.
        #[serde(default)]
        retry_after: Option<u64>,
    },
    /// Tokens are not taken any more.
    TokenRefused,
}

/// Settings.
#[derive(Debug, Clone)]
pub struct RegistryOptions {
    /// Where to listen; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// User and password that a token costs; none asks for no token.
    pub credentials: Option<(String, String)>,
    /// The server's certificate; none serves HTTP.
    pub certificate: Option<Svid>,
}

impl Default for RegistryOptions {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 0)), credentials: None, certificate: None }
    }
}

/// A layer of an artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Media type.
    pub media_type: String,
    /// File name, as `org.opencontainers.image.title` has it; empty for none.
    pub title: String,
    /// Content.
    pub content: Vec<u8>,
}

#[derive(Debug, Default)]
struct Repository {
    tags: BTreeMap<String, String>,
    manifests: BTreeMap<String, Bytes>,
    blobs: BTreeMap<String, Bytes>,
}

struct Shared {
    credentials: Option<(String, String)>,
    scheme: &'static str,
    token: String,
    repositories: Mutex<BTreeMap<String, Repository>>,
    faults: Mutex<Scripted<RegistryFault>>,
    log: Mutex<Vec<(String, u16)>>,
}

/// A running registry; it ends when dropped.
pub struct OciRegistry {
    listener: Listener,
    shared: Arc<Shared>,
}

impl OciRegistry {
    /// An empty registry.
    pub async fn start(options: RegistryOptions) -> Result<Self, MargoSimError> {
        let config = match &options.certificate {
            Some(svid) => Some(tls::server(Identity::new(svid)?, TlsVersions::Both)?),
            None => None,
        };
        let shared = Arc::new(Shared {
            credentials: options.credentials,
            scheme: if config.is_some() { "https" } else { "http" },
            token: random_hex(16),
            repositories: Mutex::default(),
            faults: Mutex::default(),
            log: Mutex::default(),
        });
        let listener = Listener::start(options.listen, config, shared.clone()).await?;
        Ok(Self { listener, shared })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    /// `oci://` and the repository, as a component has it.
    pub fn repository(&self, name: &str) -> String {
        format!("oci://{}/{name}", self.address())
    }

    /// Stores an artifact under a tag; the digest of its manifest.
    pub fn push(&self, name: &str, tag: &str, artifact_type: &str, layers: &[Layer]) -> String {
        let mut repositories = locked(&self.shared.repositories);
        let repository = repositories.entry(name.to_owned()).or_default();
        let config = repository.blob(b"{}");
        let mut listed = Vec::new();
        for layer in layers {
            let digest = repository.blob(&layer.content);
            let mut entry = json!({ "mediaType": layer.media_type, "digest": digest, "size": layer.content.len() });
            if !layer.title.is_empty() {
                entry["annotations"] = json!({ "org.opencontainers.image.title": layer.title });
            }
            listed.push(entry);
        }
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": artifact_type,
            "config": { "mediaType": EMPTY, "digest": config, "size": 2, "data": "e30=" },
            "layers": listed,
        });
        let bytes = Bytes::from(manifest.to_string());
        let digest = sha256(&bytes);
        repository.manifests.insert(digest.clone(), bytes);
        repository.tags.insert(tag.to_owned(), digest.clone());
        digest
    }

    /// Adds a fault.
    pub fn inject(&self, fault: impl Into<Times<RegistryFault>>) {
        locked(&self.shared.faults).add(fault.into());
    }

    /// The faults in force.
    pub fn faults(&self) -> Vec<Times<RegistryFault>> {
        locked(&self.shared.faults).all().to_vec()
    }

    /// Takes all faults back.
    pub fn clear_faults(&self) {
        locked(&self.shared.faults).clear();
    }

    /// Goes down or comes back, on the same port. Returns when it is so.
    pub async fn set_down(&self, down: Down) -> Result<(), MargoSimError> {
        self.listener.set_down(down).await
    }

    /// Method, path and status of the requests so far, oldest first.
    pub fn log(&self) -> Vec<(String, u16)> {
        locked(&self.shared.log).clone()
    }

    /// Repositories with their tags and digests.
    pub fn catalogue(&self) -> Value {
        let repositories = locked(&self.shared.repositories);
        let tags = |repository: &Repository| serde_json::to_value(&repository.tags).unwrap_or_default();
        repositories.iter().map(|(name, repository)| (name.clone(), tags(repository))).collect()
    }
}

impl Repository {
    fn blob(&mut self, content: &[u8]) -> String {
        let digest = sha256(content);
        self.blobs.insert(digest.clone(), Bytes::copy_from_slice(content));
        digest
    }
}

/// What of the API is asked for.
#[derive(Debug, PartialEq, Eq)]
enum Wanted<'a> {
    Version,
    Token,
    Tags(&'a str),
    Manifest(&'a str, &'a str),
    Blob(&'a str, &'a str),
    Nothing,
}

fn wanted(path: &str) -> Wanted<'_> {
    if path == "/token" {
        return Wanted::Token;
    }
    let Some(rest) = path.strip_prefix("/v2/") else {
        return if path == "/v2" { Wanted::Version } else { Wanted::Nothing };
    };
    if rest.is_empty() {
        return Wanted::Version;
    }
    // Names may have slashes, so the end decides.
    if let Some(name) = rest.strip_suffix("/tags/list") {
        return Wanted::Tags(name);
    }
    let mut parts = rest.rsplitn(3, '/');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(reference), Some("manifests"), Some(name)) => Wanted::Manifest(name, reference),
        (Some(digest), Some("blobs"), Some(name)) => Wanted::Blob(name, digest),
        _ => Wanted::Nothing,
    }
}

impl RegistryFault {
    fn fits(&self, wanted: &Wanted<'_>) -> bool {
        match self {
            Self::WrongBlob | Self::BlobMissing | Self::Truncate { .. } | Self::Dribble { .. } => {
                matches!(wanted, Wanted::Blob(..))
            }
            Self::ManifestMissing => matches!(wanted, Wanted::Manifest(..)),
            Self::WrongManifest => matches!(wanted, Wanted::Manifest(_, reference) if reference.contains(':')),
            Self::TokenRefused => !matches!(wanted, Wanted::Token),
            Self::Latency { .. } | Self::Status { .. } => true,
        }
    }
}

impl Serve for Shared {
    fn answer(&self, ask: &Ask) -> Answer {
        let wanted = wanted(&ask.path);
        let faults = locked(&self.faults).take(|fault| fault.fits(&wanted));
        let mut answer = self.right(ask, &wanted, &faults);
        for fault in &faults {
            match fault {
                RegistryFault::Status { status, retry_after } => {
                    answer = error(*status, "UNKNOWN", "scripted");
                    if let Some(after) = retry_after {
                        answer = answer.header("retry-after", after.to_string());
                    }
                }
                RegistryFault::Latency { ms } => answer.manner.latency = Duration::from_millis(*ms),
                RegistryFault::Truncate { bytes } => answer.manner.truncate = Some(*bytes),
                RegistryFault::Dribble { bytes, every_ms } => {
                    answer.manner.dribble = Some((*bytes, Duration::from_millis(*every_ms)));
                }
                RegistryFault::WrongBlob | RegistryFault::WrongManifest if answer.status == 200 => {
                    let mut other = answer.body.to_vec();
                    // The last byte but one, so that JSON stays JSON's length and mostly JSON.
                    if let Some(byte) = other.iter_mut().rev().nth(1) {
                        *byte ^= 1;
                    }
                    answer.body = other.into();
                }
                _ => {}
            }
        }
        let mut log = locked(&self.log);
        if log.len() < KEPT {
            log.push((format!("{} {}", ask.method, ask.path), answer.status));
        }
        answer
    }
}

impl Shared {
    fn right(&self, ask: &Ask, wanted: &Wanted<'_>, faults: &[RegistryFault]) -> Answer {
        if !matches!(ask.method.as_str(), "GET" | "HEAD") {
            return error(405, "UNSUPPORTED", "this registry can only be pulled from");
        }
        if *wanted == Wanted::Token {
            return self.give_token(ask);
        }
        let bearer = format!("Bearer {}", self.token);
        let known = ask.header("authorization") == Some(bearer.as_str());
        if self.credentials.is_some() && (!known || faults.contains(&RegistryFault::TokenRefused)) {
            return self.ask_for_token(ask, wanted);
        }
        let repositories = locked(&self.repositories);
        let repository = |name: &str| repositories.get(name);
        match *wanted {
            Wanted::Version => Answer::json(200, &json!({})),
            Wanted::Tags(name) => match repository(name) {
                Some(found) => {
                    let tags: Vec<&String> = found.tags.keys().collect();
                    Answer::json(200, &json!({ "name": name, "tags": tags }))
                }
                None => error(404, "NAME_UNKNOWN", name),
            },
            Wanted::Manifest(name, reference) => {
                let digest = |found: &Repository| found.tags.get(reference).cloned().unwrap_or(reference.to_owned());
                let found = repository(name).and_then(|one| Some((digest(one), one.manifests.get(&digest(one))?)));
                match found {
                    Some((digest, bytes)) if !faults.contains(&RegistryFault::ManifestMissing) => {
                        Answer::with(200, MANIFEST, bytes.clone()).header("docker-content-digest", digest)
                    }
                    _ => error(404, "MANIFEST_UNKNOWN", reference),
                }
            }
            Wanted::Blob(name, digest) => match repository(name).and_then(|one| one.blobs.get(digest)) {
                Some(bytes) if !faults.contains(&RegistryFault::BlobMissing) => {
                    Answer::with(200, "application/octet-stream", bytes.clone()).header("docker-content-digest", digest)
                }
                _ => error(404, "BLOB_UNKNOWN", digest),
            },
            Wanted::Token | Wanted::Nothing => error(404, "UNSUPPORTED", &ask.path),
        }
    }

    fn give_token(&self, ask: &Ask) -> Answer {
        let shown = ask.header("authorization").and_then(|value| value.strip_prefix("Basic "));
        let wanted = self.credentials.as_ref().map(|(user, password)| STANDARD.encode(format!("{user}:{password}")));
        if wanted.is_some() && shown.map(str::to_owned) != wanted {
            return error(401, "UNAUTHORIZED", "wrong user or password");
        }
        Answer::json(200, &json!({ "token": self.token, "access_token": self.token, "expires_in": 300 }))
    }

    fn ask_for_token(&self, ask: &Ask, wanted: &Wanted<'_>) -> Answer {
        let realm = format!("{}://{}/token", self.scheme, ask.header("host").unwrap_or("localhost"));
        let scope = match wanted {
            Wanted::Tags(name) | Wanted::Manifest(name, _) | Wanted::Blob(name, _) => {
                format!(",scope=\"repository:{name}:pull\"")
            }
            _ => String::new(),
        };
        let challenge = format!("Bearer realm=\"{realm}\",service=\"simulator\"{scope}");
        error(401, "UNAUTHORIZED", "a token is needed").header("www-authenticate", challenge)
    }
}

fn error(status: u16, code: &str, message: &str) -> Answer {
    Answer::json(status, &json!({ "errors": [{ "code": code, "message": message }] }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_told_apart_by_their_end() {
        assert_eq!(wanted("/v2/"), Wanted::Version);
        assert_eq!(wanted("/v2/a/b/manifests/1.0"), Wanted::Manifest("a/b", "1.0"));
        assert_eq!(wanted("/v2/a/blobs/sha256:1"), Wanted::Blob("a", "sha256:1"));
        assert_eq!(wanted("/v2/a/tags/list"), Wanted::Tags("a"));
        for nothing in ["/", "/v1/", "/v2/a", "/v2/blobs/sha256:1"] {
            assert_eq!(wanted(nothing), Wanted::Nothing, "{nothing}");
        }
    }
}
