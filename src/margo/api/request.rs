//! Requests and answers without a socket, and the one server that they go to.

use std::time::Duration;

use bytes::Bytes;

/// Methods that the interface uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Method {
    Get,
    Put,
    Post,
    Delete,
}

impl Method {
    /// As it stands in a request.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::Post => "POST",
            Self::Delete => "DELETE",
        }
    }
}

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Method.
    pub method: Method,
    /// Whole address.
    pub url: String,
    /// Headers, names in lowercase.
    pub headers: Vec<(&'static str, String)>,
    /// Body of `PUT` and `POST`.
    pub body: Option<Bytes>,
    /// Longest answer that is read, in bytes after decoding.
    pub limit: usize,
}

impl Request {
    pub(super) fn new(method: Method, url: String, limit: usize) -> Self {
        Self { method, url, headers: Vec::new(), body: None, limit }
    }

    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(super) fn json(self, body: Bytes) -> Self {
        let mut request = self.with("content-type", "application/json").with("accept", "application/json");
        request.body = Some(body);
        request
    }

    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
    }
}

/// An answer, read whole.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Response {
    /// HTTP status code.
    pub status: u16,
    /// `ETag`, as it stands.
    pub etag: Option<String>,
    /// `Retry-After`.
    pub retry_after: Option<Duration>,
    /// `Content-Type`.
    pub content_type: Option<String>,
    /// Body after undoing the content encoding.
    pub body: Bytes,
}

/// An address that is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// The configured one.
    #[error("{0:?} is no address of a fleet manager; write https://host[:port][/prefix] without query or user")]
    Base(String),
    /// One of the server's.
    #[error("the manifest names {0:?}, which is not below the configured address; it is not fetched")]
    Elsewhere(String),
}

/// The configured address of the fleet manager; may carry any prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    origin: String,
    prefix: String,
}

impl Base {
    /// Reads the address. `http` is refused: without TLS nobody would be identified.
    ///
    /// # Errors
    /// [`UrlError::Base`].
    pub fn new(text: &str) -> Result<Self, UrlError> {
        let wrong = || UrlError::Base(text.to_owned());
        let url = reqwest::Url::parse(text).map_err(|_| wrong())?;
        let plain =
            url.username().is_empty() && url.password().is_none() && url.query().is_none() && url.fragment().is_none();
        if url.scheme() != "https" || url.host_str().is_none_or(str::is_empty) || !plain {
            return Err(wrong());
        }
        Ok(Self { origin: url.origin().ascii_serialization(), prefix: url.path().trim_end_matches('/').to_owned() })
    }

    /// `path` (with its first slash) below the address.
    pub fn join(&self, path: &str) -> String {
        format!("{}{}{path}", self.origin, self.prefix)
    }

    /// The address of a `url` of a manifest. Such values begin at `/api/v1/…` without our prefix; servers that write the
    /// prefix or the whole address are understood, too.
    ///
    /// # Errors
    /// [`UrlError::Elsewhere`].
    pub fn resolve(&self, url: &str) -> Result<String, UrlError> {
        let elsewhere = || UrlError::Elsewhere(url.chars().take(200).collect());
        let whole = match url {
            _ if url.starts_with("//") => return Err(elsewhere()),
            _ if url.starts_with(&format!("{}{}/", self.origin, self.prefix)) => url.to_owned(),
            _ if !url.starts_with('/') => return Err(elsewhere()),
            _ if !self.prefix.is_empty() && url.starts_with(&format!("{}/", self.prefix)) => {
                format!("{}{url}", self.origin)
            }
            _ => self.join(url),
        };
        // Parsing resolves dot segments; what climbs out is not below any more.
        let parsed = reqwest::Url::parse(&whole).map_err(|_| elsewhere())?;
        let below = parsed.origin().ascii_serialization() == self.origin
            && parsed.path().starts_with(&format!("{}/", self.prefix))
            && parsed.username().is_empty();
        if below { Ok(parsed.to_string()) } else { Err(elsewhere()) }
    }
}

impl std::fmt::Display for Base {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.origin, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn urls_of_a_manifest_are_joined_to_the_base_url_and_never_to_the_origin() {
        let base = Base::new("https://wfm.example:8443/v1alpha2/margo/").unwrap();
        let wanted = "https://wfm.example:8443/v1alpha2/margo/api/v1/bundles/x";
        assert_eq!(base.resolve("/api/v1/bundles/x").unwrap(), wanted);
        assert_eq!(base.resolve("/v1alpha2/margo/api/v1/bundles/x").unwrap(), wanted);
        assert_eq!(base.resolve(wanted).unwrap(), wanted);
        assert_eq!(
            Base::new("https://wfm.example").unwrap().resolve("/api/v1/x").unwrap(),
            "https://wfm.example/api/v1/x"
        );
    }

    #[test]
    fn urls_that_lead_elsewhere_are_refused() {
        let base = Base::new("https://wfm.example/a").unwrap();
        for bad in [
            "https://evil.example/a/api",
            "//evil.example/x",
            "api/v1/x",
            "",
            "/../../x",
            "https://wfm.example.evil/a/x",
            "https://wfm.example@evil/a/x",
            "https://wfm.example/b/x",
            "/a/../b",
            "/a/%2e%2e/b",
        ] {
            assert!(base.resolve(bad).is_err(), "{bad} → {:?}", base.resolve(bad));
        }
    }

    #[test]
    fn the_base_url_is_https_without_anything_beside_a_prefix() {
        for bad in ["http://wfm", "https://u:p@wfm", "https://wfm/?q", "https://wfm/#f", "wfm", "ftp://wfm", "https://"]
        {
            assert!(Base::new(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn whatever_a_manifest_names_stays_below_the_base(url in "[/.a%2e:@?#h\\\\-]{0,40}") {
            let base = Base::new("https://wfm.example/a").unwrap();
            if let Ok(resolved) = base.resolve(&url) {
                prop_assert!(resolved.starts_with("https://wfm.example/a/"), "{}", resolved);
            }
        }
    }
}
