//! Requests over HTTPS: the thin shell under [`super::api`].
//!
//! **Promise.** No redirect is followed and no proxy asked. An answer is read up to the limit of its request, before and
//! after decoding, and within a time. A connection does not outlive what its maker allows ([`Tls::max_age`]); after
//! [`HttpExchange::renew`] the next request is made over a new one.

use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, ETAG, HeaderMap, RETRY_AFTER};
use rustls::time_provider::TimeProvider;

use super::api::{Method, Request, Response};
use super::desired::{Exchange, ExchangeError};
use super::identity::{BundleSource, DiscoveryError, MAX_BUNDLE, parse_discovery};
use crate::platform::clock::SharedClock;

/// Until a connection stands.
const CONNECT: Duration = Duration::from_secs(10);

/// What a connection is made with.
#[derive(Debug)]
pub struct Tls {
    /// Identity and trust.
    pub config: rustls::ClientConfig,
    /// The longest life of connections made with it.
    pub max_age: Duration,
}

type Make = dyn Fn() -> Result<Tls, ExchangeError> + Send + Sync;

struct Current {
    client: reqwest::Client,
    until_ns: u64,
}

/// Sends requests to the fleet manager. Clones share connections.
#[derive(Clone)]
pub struct HttpExchange {
    make: Arc<Make>,
    current: Arc<Mutex<Option<Current>>>,
    /// The two sides did not believe each other.
    doubted: Arc<AtomicBool>,
    timeout: Duration,
    clock: SharedClock,
}

impl std::fmt::Debug for HttpExchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpExchange").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

impl HttpExchange {
    /// `make` gives identity and trust for new connections, whenever some are needed.
    pub fn new(
        make: impl Fn() -> Result<Tls, ExchangeError> + Send + Sync + 'static,
        timeout: Duration,
        clock: SharedClock,
    ) -> Self {
        Self { make: Arc::new(make), current: Arc::default(), doubted: Arc::default(), timeout, clock }
    }

    /// The next request is made over a new connection.
    pub fn renew(&self) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Whether the two sides did not believe each other since this was asked last: a newer trust bundle may end that.
    pub fn was_doubted(&self) -> bool {
        self.doubted.swap(false, Ordering::Relaxed)
    }

    fn client(&self) -> Result<reqwest::Client, ExchangeError> {
        let now = self.clock.mono_ns();
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(current) = current.as_ref().filter(|current| now < current.until_ns) {
            return Ok(current.client.clone());
        }
        let tls = (self.make)()?;
        let client = builder(tls.config, self.timeout).pool_max_idle_per_host(1).build();
        let client = client.map_err(|error| ExchangeError::NotReady(format!("TLS cannot be set up: {error}")))?;
        let until_ns = now.saturating_add(u64::try_from(tls.max_age.as_nanos()).unwrap_or(u64::MAX));
        // The client before is dropped, and its idle connections with it.
        *current = Some(Current { client: client.clone(), until_ns });
        Ok(client)
    }
}

fn builder(tls: rustls::ClientConfig, timeout: Duration) -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .https_only(true)
        .http1_only()
        .no_proxy()
        .no_gzip()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT.min(timeout))
        .timeout(timeout)
        .user_agent(concat!("fieldgate/", env!("CARGO_PKG_VERSION")))
}

impl Exchange for HttpExchange {
    async fn send(&self, request: Request) -> Result<Response, ExchangeError> {
        let method = match request.method {
            Method::Get => reqwest::Method::GET,
            Method::Put => reqwest::Method::PUT,
            Method::Post => reqwest::Method::POST,
            Method::Delete => reqwest::Method::DELETE,
        };
        let limit = request.limit;
        let mut http = self.client()?.request(method, &request.url);
        for (name, value) in &request.headers {
            http = http.header(*name, value);
        }
        if let Some(body) = request.body {
            http = http.body(body);
        }
        let answer = http.send().await.map_err(|error| failed(&error));
        if let Err(ExchangeError::NotBelieved(_)) = &answer {
            // Whatever made the two sides disagree may have changed when we come again.
            self.renew();
            self.doubted.store(true, Ordering::Relaxed);
        }
        let answer = answer?;
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let body = decode(&headers, read(answer, limit).await?, limit)?;
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let retry_after = text(RETRY_AFTER).and_then(|text| retry_after(&text, self.clock.wall_ms() / 1_000));
        Ok(Response { status, etag: text(ETAG), retry_after, content_type: text(CONTENT_TYPE), body: body.into() })
    }
}

/// Seconds, or a date (RFC 9110, 10.2.3) held against our clock.
fn retry_after(text: &str, now: i64) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let at = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?.as_second();
    Some(Duration::from_secs(at.saturating_sub(now).max(0).unsigned_abs()))
}

async fn read(mut answer: reqwest::Response, limit: usize) -> Result<Vec<u8>, ExchangeError> {
    let mut body = Vec::new();
    while let Some(piece) = answer.chunk().await.map_err(|error| failed(&error))? {
        if body.len() + piece.len() > limit {
            return Err(ExchangeError::TooLong(limit));
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

/// Undoes the content encoding; digests are over what comes out.
fn decode(headers: &HeaderMap, body: Vec<u8>, limit: usize) -> Result<Vec<u8>, ExchangeError> {
    let encoding = headers.get(CONTENT_ENCODING).and_then(|value| value.to_str().ok()).unwrap_or("identity");
    match encoding.trim().to_ascii_lowercase().as_str() {
        "" | "identity" => Ok(body),
        "gzip" | "x-gzip" => {
            let mut out = Vec::new();
            let mut decoder = flate2::read::MultiGzDecoder::new(body.as_slice()).take(limit as u64 + 1);
            let broken = |error: std::io::Error| ExchangeError::Unreachable(format!("a damaged answer: {error}"));
            decoder.read_to_end(&mut out).map_err(broken)?;
            if out.len() > limit { Err(ExchangeError::TooLong(limit)) } else { Ok(out) }
        }
        other => Err(ExchangeError::Unreachable(format!("an answer in the unknown encoding {other:?}"))),
    }
}

/// Tells a server that is not believed, or does not believe us, from one that cannot be reached.
fn failed(error: &reqwest::Error) -> ExchangeError {
    let mut innermost: &(dyn std::error::Error + 'static) = error;
    while let Some(inner) = inside(innermost) {
        innermost = inner;
    }
    match innermost.downcast_ref::<rustls::Error>() {
        Some(rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other))) => {
            ExchangeError::NotBelieved(other.0.to_string())
        }
        Some(rustls::Error::AlertReceived(alert)) => {
            ExchangeError::NotBelieved(format!("the server refused our certificate or our TLS ({alert:?})"))
        }
        Some(other) => ExchangeError::NotBelieved(other.to_string()),
        None if error.is_connect() && error.is_timeout() => {
            ExchangeError::NoConnection("no connection in time".to_owned())
        }
        None if error.is_connect() => ExchangeError::NoConnection(innermost.to_string()),
        None if error.is_timeout() => ExchangeError::Unreachable("no answer in time".to_owned()),
        None => ExchangeError::Unreachable(innermost.to_string()),
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

/// Fetches the trust bundle from its server, after discovery if that is how it is found. The error is for people.
///
/// # Errors
/// Why there is none.
pub async fn fetch_bundle(
    source: &BundleSource,
    trust_domain: &str,
    time: Arc<dyn TimeProvider>,
) -> Result<Vec<u8>, String> {
    let (url, contact, discover) = match source {
        BundleSource::File(path) => return std::fs::read(path).map_err(|error| error.to_string()),
        BundleSource::Uri { url, contact } => (url.clone(), contact, false),
        BundleSource::Discovery { url, contact } => {
            (format!("{}/.well-known/margo", url.trim_end_matches('/')), contact, true)
        }
    };
    let text = |error: DiscoveryError| error.to_string();
    let client =
        builder(contact.client_config(time).map_err(text)?, 3 * CONNECT).build().map_err(|error| error.to_string())?;
    let bytes = get(&client, &url).await?;
    match discover {
        false => Ok(bytes),
        true => get(&client, &parse_discovery(&bytes, trust_domain).map_err(text)?.bundle).await,
    }
}

async fn get(client: &reqwest::Client, url: &str) -> Result<Vec<u8>, String> {
    let answer = client
        .get(url)
        .header("accept", "application/json")
        .send()
        .await
        .map_err(|error| failed(&error).to_string())?;
    if !answer.status().is_success() {
        return Err(format!("{url} answered HTTP {}", answer.status().as_u16()));
    }
    read(answer, MAX_BUNDLE).await.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        assert_eq!(retry_after("120", 0), Some(Duration::from_secs(120)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:37 GMT", 784_111_770), Some(Duration::from_secs(7)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:37 GMT", 900_000_000), Some(Duration::ZERO));
        assert_eq!(retry_after("soon", 0), None);
    }

    #[test]
    fn encoded_answers_are_decoded_within_the_limit() {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(&vec![b'a'; 100_000]).unwrap();
        let packed = encoder.finish().unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_ENCODING, "gzip".parse().unwrap());
        assert_eq!(decode(&headers, packed.clone(), 100_000).unwrap().len(), 100_000);
        assert_eq!(decode(&headers, packed, 99_999), Err(ExchangeError::TooLong(99_999)));
        headers.insert(CONTENT_ENCODING, "br".parse().unwrap());
        assert!(decode(&headers, Vec::new(), 10).is_err());
    }
}
