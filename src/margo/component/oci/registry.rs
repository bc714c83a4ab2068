//! The pull side of registries (OCI distribution), read within limits of size and time.
//!
//! **Promise.** Nothing that a registry sends is read beyond what its place allows: a manifest, a token, a layer of the size
//! that its manifest says, the beginning of a refusal. Silence ends a request, and so does a registry that dribbles. Redirects
//! are followed (large registries keep their blobs elsewhere), but not out of TLS. The login is shown only to the registry,
//! or to where it says that tokens are given out, over TLS or to one that is spoken to without.
//!
//! `docs/decisions/0008-registry-within-limits.md` says why requests are made here and not by the OCI client crate.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use oci_spec::distribution::Reference;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Response, StatusCode, Url};
use tokio::time::Instant;

use super::super::format::{Layer, MAX_MANIFEST};
use super::{Miss, SourceConfig};
use crate::security::Secret;

/// Manifests of images, of the open standard and of Docker.
pub(super) const OCI_IMAGE_MEDIA_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_IMAGE_MEDIA_TYPE: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Longest answer of a token service.
const MAX_TOKEN: usize = 64 << 10;
/// What is read of a refusal.
const MAX_REFUSAL: usize = 8 << 10;
/// Most redirects of one request.
const MAX_REDIRECTS: usize = 5;
/// Most repositories whose tokens are kept.
const MAX_TOKENS: usize = 256;

/// How long a registry may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// Until a connection stands, and between two pieces.
    pub silence: Duration,
    /// For an answer with all that is small.
    pub answer: Duration,
    /// Slowest rate of a layer beyond that, in bytes per second.
    pub rate: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { silence: Duration::from_secs(30), answer: Duration::from_secs(60), rate: 16 << 10 }
    }
}

impl Pace {
    fn of(self, size: u64) -> Instant {
        Instant::now() + self.answer + Duration::from_secs(size / self.rate.max(1))
    }
}

/// Registries, by the settings that are common to them.
pub(super) struct Registry {
    http: reqwest::Client,
    plain: Vec<String>,
    login: Option<(String, Secret)>,
    /// By registry and repository; the values of `Authorization`.
    known: Mutex<BTreeMap<String, HeaderValue>>,
    pace: Pace,
}

impl Registry {
    /// # Errors
    /// When the authorities' file cannot be used.
    pub fn new(config: &SourceConfig, pace: Pace) -> Result<Self, std::io::Error> {
        let policy = reqwest::redirect::Policy::custom(|attempt| {
            let from_tls = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
            match attempt.previous().len() > MAX_REDIRECTS || (from_tls && attempt.url().scheme() != "https") {
                true => attempt.error("a redirect too many, or out of TLS"),
                false => attempt.follow(),
            }
        });
        let mut builder = reqwest::Client::builder()
            .redirect(policy)
            .connect_timeout(pace.silence)
            .read_timeout(pace.silence)
            .user_agent(concat!("fieldgate/", env!("CARGO_PKG_VERSION")));
        if let Some(path) = &config.ca {
            let anchors = reqwest::Certificate::from_pem_bundle(&std::fs::read(path)?);
            builder = builder.tls_certs_only(anchors.map_err(std::io::Error::other)?);
        }
        let http = builder.build().map_err(std::io::Error::other)?;
        let (plain, login) = (config.plain.clone(), config.login.clone());
        Ok(Self { http, plain, login, known: Mutex::default(), pace })
    }

    /// The manifest of an artifact as it is.
    pub async fn manifest(&self, reference: &Reference) -> Result<Bytes, Miss> {
        let which = reference.digest().or_else(|| reference.tag()).unwrap_or("latest");
        let types = [OCI_IMAGE_MEDIA_TYPE, DOCKER_IMAGE_MEDIA_TYPE].join(", ");
        let until = self.pace.of(0);
        let answer = self.get(reference, &format!("manifests/{which}"), &types, until).await?;
        whole(Body { answer, until }, MAX_MANIFEST, "its manifest").await
    }

    /// A layer, piece by piece.
    pub async fn blob(&self, reference: &Reference, layer: &Layer) -> Result<Body, Miss> {
        let until = self.pace.of(layer.size);
        let answer = self.get(reference, &format!("blobs/{}", layer.digest), "*/*", until).await?;
        Ok(Body { answer, until })
    }

    async fn get(&self, reference: &Reference, path: &str, accept: &str, until: Instant) -> Result<Response, Miss> {
        let (registry, repository) = (reference.resolve_registry(), reference.repository());
        let scheme = if self.plain.iter().any(|plain| plain == registry) { "http" } else { "https" };
        let url = format!("{scheme}://{registry}/v2/{repository}/{path}");
        let place = format!("{registry}/{repository}");
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&place).cloned();
        let mut answer = self.ask(&url, accept, known.as_ref(), until).await?;
        if answer.status() == StatusCode::UNAUTHORIZED {
            let shown = self.log_in(repository, &answer, until).await?;
            answer = self.ask(&url, accept, Some(&shown), until).await?;
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            if known.len() >= MAX_TOKENS {
                known.clear();
            }
            known.insert(place, shown);
        }
        if answer.status() == StatusCode::OK { Ok(answer) } else { Err(refusal(Body { answer, until }).await) }
    }

    async fn ask(
        &self,
        url: &str,
        accept: &str,
        shown: Option<&HeaderValue>,
        until: Instant,
    ) -> Result<Response, Miss> {
        let mut request = self.http.get(url).header(ACCEPT, accept);
        if let Some(shown) = shown {
            request = request.header(AUTHORIZATION, shown);
        }
        within(until, request.send()).await
    }

    /// What a registry that answered with 401 is to be shown.
    async fn log_in(&self, repository: &str, answer: &Response, until: Instant) -> Result<HeaderValue, Miss> {
        let headers = answer.headers().get_all(WWW_AUTHENTICATE);
        let challenges: Vec<&str> = headers.iter().filter_map(|value| value.to_str().ok()).collect();
        let Some(bearer) = challenges.iter().find_map(|challenge| parameters(challenge, "bearer")) else {
            let basic = challenges.iter().any(|challenge| parameters(challenge, "basic").is_some());
            return match self.login.as_ref().filter(|_| basic) {
                Some(login) => secret_header(&basic_value(login)),
                None => Err(Miss::Later("Not authorized: the registry wants a login that it was not given".to_owned())),
            };
        };
        let realm = bearer.get("realm").map(String::as_str).unwrap_or_default();
        let mut url = Url::parse(realm).map_err(|error| Miss::Later(format!("the realm {realm:?}: {error}")))?;
        let place = format!("{}:{}", url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or(0));
        if url.scheme() != "https" && !self.plain.contains(&place) {
            let why = format!("the registry gives tokens out at {realm:?}, which is not protected by TLS");
            return Err(Miss::Later(why));
        }
        url.query_pairs_mut().append_pair("scope", &format!("repository:{repository}:pull"));
        if let Some(service) = bearer.get("service") {
            url.query_pairs_mut().append_pair("service", service);
        }
        let shown = self.login.as_ref().map(|login| secret_header(&basic_value(login))).transpose()?;
        let answer = self.ask(url.as_str(), "application/json", shown.as_ref(), until).await?;
        if answer.status() != StatusCode::OK {
            return Err(refusal(Body { answer, until }).await);
        }
        let body = whole(Body { answer, until }, MAX_TOKEN, "its token").await?;
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let token = body["token"].as_str().or_else(|| body["access_token"].as_str());
        let token = token.ok_or_else(|| Miss::Later("the registry gave no token".to_owned()))?;
        secret_header(&format!("Bearer {token}"))
    }
}

fn basic_value((user, password): &(String, Secret)) -> String {
    use base64::Engine;
    let pair = format!("{user}:{}", password.expose());
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
}

/// A header that is not printed.
fn secret_header(value: &str) -> Result<HeaderValue, Miss> {
    let header = HeaderValue::from_str(value);
    let mut header = header.map_err(|_| Miss::Later("the login, or a token for it, is no header".to_owned()))?;
    header.set_sensitive(true);
    Ok(header)
}

/// A body that arrives, until it has taken too long.
pub(super) struct Body {
    answer: Response,
    until: Instant,
}

impl Body {
    /// The next piece; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Miss> {
        within(self.until, self.answer.chunk()).await
    }
}

async fn within<T>(until: Instant, work: impl Future<Output = reqwest::Result<T>>) -> Result<T, Miss> {
    match tokio::time::timeout_at(until, work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(Miss::Later(reason(&error))),
        Err(_) => Err(Miss::Later("the registry takes too long".to_owned())),
    }
}

/// The innermost cause says most; addresses with tokens in them are left out.
fn reason(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    if error.is_timeout() { "the registry is silent".to_owned() } else { cause.to_string() }
}

async fn whole(mut body: Body, most: usize, what: &str) -> Result<Bytes, Miss> {
    let mut bytes = Vec::new();
    while let Some(piece) = body.next().await? {
        if bytes.len() + piece.len() > most {
            return Err(Miss::Never(format!("{what} has more than the {most} bytes that are read of it")));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes.into())
}

/// What a registry says when it does not give; it may give later. Only the beginning is read.
async fn refusal(mut body: Body) -> Miss {
    let status = body.answer.status();
    let mut bytes = Vec::new();
    while let Ok(Some(piece)) = body.next().await {
        bytes.extend_from_slice(&piece[..piece.len().min(MAX_REFUSAL - bytes.len())]);
        if bytes.len() >= MAX_REFUSAL {
            break;
        }
    }
    let said: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let part = |name: &str| said["errors"][0][name].as_str().unwrap_or_default().to_owned();
    let words: String = format!("{} {}", part("code"), part("message")).chars().take(200).collect();
    let words = words.replace(char::is_control, " ");
    Miss::Later(match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => format!("Not authorized: {status} {words}"),
        _ => format!("the registry answered {status} {words}"),
    })
}

/// The parameters of a challenge of that scheme (RFC 9110, 11.6.1), if it is one.
fn parameters(challenge: &str, scheme: &str) -> Option<BTreeMap<String, String>> {
    let (name, mut rest) = challenge.trim().split_once(' ').unwrap_or((challenge.trim(), ""));
    if !name.eq_ignore_ascii_case(scheme) {
        return None;
    }
    let mut found = BTreeMap::new();
    while let Some((key, after)) = rest.split_once('=') {
        let key = key.trim_matches([' ', ',']).to_ascii_lowercase();
        let (value, tail) = match after.trim_start().strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after.split_once(',').unwrap_or((after, "")),
        };
        found.insert(key, value.trim().to_owned());
        rest = tail;
    }
    Some(found)
}

#[cfg(test)]
mod tests;
