//! One request to an EST server and what became of it.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Client, Method, Response, StatusCode};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use super::super::swap::ServerIdentity;
use super::super::time::BelievedTime;
use super::cms::{self, CmsError};
use super::schedule::Failure;

/// Longest answer that is read.
const MAX_ANSWER: usize = 256 * 1024;
/// One request, from connecting to the last byte.
const TIMEOUT: Duration = Duration::from_secs(30);
/// When a server says 202 without saying when to come back.
const DEFAULT_RETRY: Duration = Duration::from_secs(60);

/// Certificates that the server sent, in its order.
pub type Granted = Vec<CertificateDer<'static>>;

/// Why a request failed. [`EstError::code`] is stable.
#[derive(Debug, thiserror::Error)]
pub enum EstError {
    /// The address cannot be used.
    #[error("{0:?} is no EST server: give https://host[:port][/label]")]
    Url(String),
    /// TLS cannot be set up.
    #[error("cannot set up TLS to the EST server: {0}")]
    Tls(String),
    /// No connection, or it broke.
    #[error("the EST server cannot be reached: {0}")]
    Unreachable(String),
    /// The server could not be verified.
    #[error("the EST server is not the one that the configured anchors vouch for: {0}")]
    WrongServer(String),
    /// 202: come back later.
    #[error("the EST server has not decided yet; asking again in {} s", .0.as_secs())]
    Pending(Duration),
    /// 401, 403.
    #[error("the EST server refuses this gateway (HTTP {0}); check the enrolment token, or ask for approval")]
    Refused(u16),
    /// Another status.
    #[error("the EST server answered HTTP {status}{}", detail(.text))]
    Status {
        /// HTTP status code.
        status: u16,
        /// What the server asks to wait.
        retry_after: Option<Duration>,
        /// Beginning of its text, for people.
        text: String,
    },
    /// The answer is too long.
    #[error("the EST server's answer is longer than {MAX_ANSWER} bytes")]
    TooLong,
    /// The answer is no certificates.
    #[error(transparent)]
    Answer(#[from] CmsError),
    /// What it granted cannot be used.
    #[error("the certificate that the EST server granted is not used: {0}")]
    Unusable(String),
    /// Files.
    #[error(transparent)]
    Pki(#[from] super::super::PkiError),
}

fn detail(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": {text}") }
}

impl EstError {
    /// Stable name of the failure for machines.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Url(_) => "url",
            Self::Tls(_) => "tls",
            Self::Unreachable(_) => "unreachable",
            Self::WrongServer(_) => "wrong-server",
            Self::Pending(_) => "pending",
            Self::Refused(_) => "refused",
            Self::Status { .. } => "status",
            Self::TooLong => "too-long",
            Self::Answer(_) => "answer",
            Self::Unusable(_) => "unusable",
            Self::Pki(_) => "pki",
        }
    }

    /// How to go on.
    pub fn failure(&self) -> Failure {
        match self {
            Self::Pending(after) => Failure::Pending(*after),
            Self::Unreachable(_) => Failure::Transient(None),
            Self::Status { status: 429 | 500..=599, retry_after, .. } => Failure::Transient(*retry_after),
            _ => Failure::Refused,
        }
    }
}

/// Talks to one server. A new one is made for each request: anchors and identity may have changed meanwhile.
pub struct EstClient {
    http: Client,
    base: String,
}

impl std::fmt::Debug for EstClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EstClient").field("base", &self.base).finish_non_exhaustive()
    }
}

impl EstClient {
    /// For the server at `url` (`https://host[:port][/label]`), verified against `anchors`, as `identity` if given.
    ///
    /// # Errors
    /// When the address or the TLS material cannot be used.
    pub fn new(
        url: &str,
        anchors: &[CertificateDer<'static>],
        identity: Option<&ServerIdentity>,
        time: &BelievedTime,
    ) -> Result<Self, EstError> {
        let base = base(url)?;
        let tls = |error: &dyn std::fmt::Display| EstError::Tls(error.to_string());
        let mut roots = RootCertStore::empty();
        for anchor in anchors {
            roots.add(anchor.clone()).map_err(|error| tls(&error))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_details(provider, Arc::new(time.clone()))
            .with_safe_default_protocol_versions()
            .map_err(|error| tls(&error))?
            .with_root_certificates(roots);
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some(ServerIdentity { chain, key, .. }) => {
                builder.with_client_auth_cert(chain.clone(), clone_key(key)).map_err(|error| tls(&error))?
            }
        };
        let http = Client::builder()
            .tls_backend_preconfigured(config)
            .https_only(true)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(TIMEOUT)
            .build()
            .map_err(|error| tls(&error))?;
        Ok(Self { http, base })
    }

    /// The server's authorities (RFC 7030, 4.1).
    ///
    /// # Errors
    /// When the server cannot be reached, verified or understood.
    pub async fn authorities(&self) -> Result<Granted, EstError> {
        let request = self.http.request(Method::GET, format!("{}/cacerts", self.base));
        self.granted(request).await
    }

    /// The first certificate for `request` (PKCS#10 DER), with a user and token for HTTP Basic (RFC 7030, 4.2.1).
    ///
    /// # Errors
    /// When the server cannot be reached, refuses, has not decided, or its answer cannot be understood.
    pub async fn enrol(&self, request: &[u8], token: Option<(&str, &str)>) -> Result<Granted, EstError> {
        let http = self.ask("simpleenroll", request);
        let http = match token {
            None => http,
            Some((user, password)) => {
                let value = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
                let mut value = reqwest::header::HeaderValue::from_str(&value).map_err(|_| EstError::Refused(401))?;
                value.set_sensitive(true);
                http.header(AUTHORIZATION, value)
            }
        };
        self.granted(http).await
    }

    /// A new certificate over mutual TLS (RFC 7030, 4.2.2).
    ///
    /// # Errors
    /// As [`EstClient::enrol`].
    pub async fn renew(&self, request: &[u8]) -> Result<Granted, EstError> {
        self.granted(self.ask("simplereenroll", request)).await
    }

    fn ask(&self, act: &str, request: &[u8]) -> reqwest::RequestBuilder {
        let http = self.http.request(Method::POST, format!("{}/{act}", self.base));
        let http = http.header(CONTENT_TYPE, "application/pkcs10").header("content-transfer-encoding", "base64");
        http.body(STANDARD.encode(request))
    }

    async fn granted(&self, request: reqwest::RequestBuilder) -> Result<Granted, EstError> {
        let response = request.send().await.map_err(|error| unreachable(&error))?;
        let status = response.status();
        let retry_after = retry_after(&response);
        let body = read(response).await;
        match status {
            StatusCode::OK => Ok(cms::certificates(&body?)?),
            StatusCode::ACCEPTED => Err(EstError::Pending(retry_after.unwrap_or(DEFAULT_RETRY))),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(EstError::Refused(status.as_u16())),
            _ => Err(EstError::Status {
                status: status.as_u16(),
                retry_after,
                text: first_words(&body.unwrap_or_default()),
            }),
        }
    }
}

/// `https://host/label` → `https://host/.well-known/est/label` (RFC 7030, 3.2.2).
fn base(url: &str) -> Result<String, EstError> {
    let wrong = || EstError::Url(url.to_owned());
    let parsed = reqwest::Url::parse(url).map_err(|_| wrong())?;
    let plain = parsed.username().is_empty() && parsed.password().is_none() && parsed.query().is_none();
    if parsed.scheme() != "https" || !plain || parsed.host_str().is_none() {
        return Err(wrong());
    }
    let label = parsed.path().trim_matches('/');
    let path = match label {
        "" => "/.well-known/est".to_owned(),
        _ if label.starts_with(".well-known/est") => format!("/{label}"),
        _ => format!("/.well-known/est/{label}"),
    };
    let mut based = parsed;
    based.set_path(&path);
    Ok(based.to_string())
}

fn clone_key(key: &PrivateKeyDer<'static>) -> PrivateKeyDer<'static> {
    key.clone_key()
}

/// Seconds, as RFC 7030 4.2.3 wants; a date is taken as "not said".
fn retry_after(response: &Response) -> Option<Duration> {
    let text = response.headers().get(RETRY_AFTER)?.to_str().ok()?;
    text.trim().parse().ok().map(Duration::from_secs)
}

async fn read(mut response: Response) -> Result<Vec<u8>, EstError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| unreachable(&error))? {
        if body.len() + chunk.len() > MAX_ANSWER {
            return Err(EstError::TooLong);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Tells a server that could not be verified from one that could not be reached.
fn unreachable(error: &reqwest::Error) -> EstError {
    let mut innermost: &(dyn std::error::Error + 'static) = error;
    while let Some(inner) = inside(innermost) {
        innermost = inner;
    }
    match innermost.downcast_ref::<rustls::Error>() {
        Some(rustls::Error::InvalidCertificate(_)) => EstError::WrongServer(innermost.to_string()),
        _ => EstError::Unreachable(innermost.to_string()),
    }
}

/// The cause of an error; an I/O error hides the error that it wraps from `source`.
fn inside<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a (dyn std::error::Error + 'static)> {
    let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    match wrapped {
        Some(wrapped) => Some(wrapped as &(dyn std::error::Error + 'static)),
        None => error.source(),
    }
}

fn first_words(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(400)]);
    let printable: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect();
    printable.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_well_known_path_is_added_once() {
        assert_eq!(base("https://ca.plant:8443").unwrap(), "https://ca.plant:8443/.well-known/est");
        assert_eq!(base("https://ca.plant/line-1/").unwrap(), "https://ca.plant/.well-known/est/line-1");
        assert_eq!(base("https://ca.plant/.well-known/est/a").unwrap(), "https://ca.plant/.well-known/est/a");
        for wrong in ["http://ca.plant", "https://u:p@ca.plant", "ca.plant", "https://ca.plant/?q=1"] {
            assert!(matches!(base(wrong), Err(EstError::Url(_))), "{wrong}");
        }
    }
}
