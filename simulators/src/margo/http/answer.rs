//! An answer, and the manner in which it is given.

use std::time::Duration;

use axum::body::Body;
use hyper::Response;
use hyper::body::Bytes;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue};
use serde_json::Value;

use super::dribble::Dribble;

/// How an answer is given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Manner {
    /// It comes this much later.
    pub latency: Duration,
    /// The body comes in pieces of so many bytes with a pause before each.
    pub dribble: Option<(usize, Duration)>,
    /// The body ends after so many bytes, though the head promised all.
    pub truncate: Option<usize>,
    /// The connection closes instead.
    pub hang_up: bool,
    /// The connection is reset instead.
    pub reset: bool,
}

/// An answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Bytes,
    pub manner: Box<Manner>,
}

impl Answer {
    pub fn new(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub fn with(status: u16, media_type: &str, body: impl Into<Bytes>) -> Self {
        Self::new(status).header("content-type", media_type).body(body)
    }

    pub fn json(status: u16, value: &Value) -> Self {
        Self::with(status, "application/json", value.to_string())
    }

    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    pub fn into_response(self, manner: &Manner) -> Response<Body> {
        let whole = self.body.len();
        let body = if manner.dribble.is_some() || manner.truncate.is_some() {
            let (piece, pause) = manner.dribble.unwrap_or((usize::MAX, Duration::ZERO));
            Body::new(Dribble::new(self.body, piece, pause, manner.truncate))
        } else {
            Body::from(self.body)
        };
        let mut response = Response::new(body);
        *response.status_mut() = hyper::StatusCode::from_u16(self.status).unwrap_or_default();
        for (name, value) in self.headers {
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                response.headers_mut().insert(name, value);
            }
        }
        if whole > 0 && !response.headers().contains_key(CONTENT_LENGTH) {
            response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(whole));
        }
        if whole == 0 {
            response.headers_mut().remove(CONTENT_TYPE);
        }
        response
    }
}
