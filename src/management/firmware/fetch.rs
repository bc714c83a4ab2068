//! Getting bytes from where an offer says they are.

use std::fs::File;
use std::future::Future;
use std::io::{Read, Seek, SeekFrom};

use bytes::Bytes;

/// Most bytes of one piece from a file.
const FILE_PIECE: usize = 64 * 1024;

/// Why bytes did not come.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// It may work later.
    #[error("cannot fetch {url}: {reason}")]
    Transient {
        /// From where.
        url: String,
        /// Why not.
        reason: String,
    },
    /// It will not work.
    #[error("cannot fetch {url}: {reason}")]
    Permanent {
        /// From where.
        url: String,
        /// Why not.
        reason: String,
    },
}

impl FetchError {
    fn permanent(url: &str, reason: impl ToString) -> Self {
        Self::Permanent { url: url.to_owned(), reason: reason.to_string() }
    }
}

/// A piece of an artifact; `None` at its end.
pub type Piece = Option<Bytes>;

/// Something that fetches.
pub trait Fetch: Send {
    /// Opens `url` at `offset` bytes. Returns where the bytes really begin: a source that cannot resume says 0.
    fn open(&mut self, url: &str, offset: u64) -> impl Future<Output = Result<u64, FetchError>> + Send;

    /// The next piece; `None` at the end, or when nothing is open.
    fn next(&mut self) -> impl Future<Output = Result<Piece, FetchError>> + Send;
}

/// Reads `file://` URLs.
#[derive(Debug, Default)]
pub struct FileFetch {
    open: Option<(String, File)>,
}

impl Fetch for FileFetch {
    async fn open(&mut self, url: &str, offset: u64) -> Result<u64, FetchError> {
        let path = url.strip_prefix("file://").ok_or_else(|| FetchError::permanent(url, "it is no file:// URL"))?;
        let mut file = File::open(path).map_err(|error| FetchError::permanent(url, error))?;
        file.seek(SeekFrom::Start(offset)).map_err(|error| FetchError::permanent(url, error))?;
        self.open = Some((url.to_owned(), file));
        Ok(offset)
    }

    async fn next(&mut self) -> Result<Piece, FetchError> {
        let Some((url, file)) = &mut self.open else { return Ok(None) };
        let mut piece = vec![0; FILE_PIECE];
        let read = file.read(&mut piece).map_err(|error| FetchError::permanent(url, error))?;
        piece.truncate(read);
        Ok((read > 0).then(|| Bytes::from(piece)))
    }
}

#[cfg(feature = "download")]
pub use http::HttpFetch;

#[cfg(feature = "download")]
mod http {
    use std::time::Duration;

    use reqwest::header::{ACCEPT_ENCODING, CONTENT_RANGE, RANGE};
    use reqwest::{Client, Response, StatusCode};

    use super::{Fetch, FetchError, FileFetch, Piece};

    /// Until a server answers, and between two pieces.
    const PATIENCE: Duration = Duration::from_secs(30);

    /// Reads `http://`, `https://` and `file://` URLs.
    #[derive(Debug)]
    pub struct HttpFetch {
        client: Client,
        open: Option<(String, Response)>,
        file: FileFetch,
    }

    impl HttpFetch {
        /// With the trust of `tls` for `https://`. What comes over plain `http://` is protected by its signature.
        ///
        /// # Errors
        /// When the TLS configuration cannot be used.
        pub fn new(tls: rustls::ClientConfig) -> Result<Self, FetchError> {
            let client = Client::builder()
                .tls_backend_preconfigured(tls)
                .no_proxy()
                .connect_timeout(PATIENCE)
                .read_timeout(PATIENCE)
                .redirect(reqwest::redirect::Policy::limited(5))
                .build();
            let client = client.map_err(|error| FetchError::permanent("https://", error))?;
            Ok(Self { client, open: None, file: FileFetch::default() })
        }

        async fn ask(&self, url: &str, offset: u64) -> Result<Response, FetchError> {
            let mut request = self.client.get(url).header(ACCEPT_ENCODING, "identity");
            if offset > 0 {
                request = request.header(RANGE, format!("bytes={offset}-"));
            }
            request.send().await.map_err(|error| transient(url, &error))
        }
    }

    impl Fetch for HttpFetch {
        async fn open(&mut self, url: &str, offset: u64) -> Result<u64, FetchError> {
            self.open = None;
            if url.starts_with("file://") {
                return self.file.open(url, offset).await;
            }
            self.file = FileFetch::default();
            let mut response = self.ask(url, offset).await?;
            if response.status() == StatusCode::RANGE_NOT_SATISFIABLE && offset > 0 {
                // The file is shorter than what we have: another file. Begin again.
                response = self.ask(url, 0).await?;
            }
            let begins = match response.status() {
                StatusCode::OK => 0,
                StatusCode::PARTIAL_CONTENT if range_start(&response) == Some(offset) => offset,
                StatusCode::PARTIAL_CONTENT => {
                    return Err(FetchError::permanent(url, "it answered with another range"));
                }
                status if status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429) => {
                    return Err(FetchError::Transient { url: url.to_owned(), reason: format!("HTTP {status}") });
                }
                status => return Err(FetchError::permanent(url, format!("HTTP {status}"))),
            };
            self.open = Some((url.to_owned(), response));
            Ok(begins)
        }

        async fn next(&mut self) -> Result<Piece, FetchError> {
            match &mut self.open {
                Some((url, response)) => response.chunk().await.map_err(|error| transient(url, &error)),
                None => self.file.next().await,
            }
        }
    }

    /// `bytes 100-199/200` → 100.
    fn range_start(response: &Response) -> Option<u64> {
        let text = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
        text.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
    }

    fn transient(url: &str, error: &reqwest::Error) -> FetchError {
        let mut reason = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(inner) = source {
            reason = inner.to_string();
            source = inner.source();
        }
        if error.is_builder() {
            return FetchError::permanent(url, reason);
        }
        FetchError::Transient { url: url.to_owned(), reason }
    }
}
