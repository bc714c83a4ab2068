//! What a refusal means. Bodies are `application/problem+json` (RFC 9457), plain JSON, or nothing; all are read leniently.

use std::time::Duration;

use serde_json::Value;

use super::request::Response;
use super::retry::Pacing;

/// Longest text of a server that is kept.
const MAX_TEXT: usize = 300;
/// Longest pause that a server may ask for.
const MAX_PAUSE: Duration = Duration::from_secs(86_400);

/// Kinds of problems, by the last segment of their type, whatever stands before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ProblemKind {
    InvalidRequest,
    SemanticError,
    NotAuthorized,
    Retired,
    GatewayNotFound,
    DeviceNotFound,
    InvalidBundle,
    DeploymentNotFound,
    ServerCannotGenerateResponse,
    /// `about:blank`, nothing, or a type of another time.
    Other,
}

const KINDS: &[(&str, ProblemKind)] = &[
    ("invalid-request", ProblemKind::InvalidRequest),
    ("semantic-error", ProblemKind::SemanticError),
    ("not-authorized", ProblemKind::NotAuthorized),
    ("wfm-client-relationship-retired", ProblemKind::Retired),
    ("gateway-not-found", ProblemKind::GatewayNotFound),
    ("device-not-found", ProblemKind::DeviceNotFound),
    ("invalid-bundle", ProblemKind::InvalidBundle),
    ("deployment-not-found", ProblemKind::DeploymentNotFound),
    ("server-cannot-generate-response", ProblemKind::ServerCannotGenerateResponse),
];

impl ProblemKind {
    /// By the last segment of a type. The type is a name: it is never fetched.
    pub fn of(kind: &str) -> Self {
        let last = kind.trim_end_matches('/').rsplit(['/', '#']).next().unwrap_or_default();
        KINDS.iter().find(|(name, _)| name.eq_ignore_ascii_case(last)).map_or(Self::Other, |(_, kind)| *kind)
    }
}

/// A refusal as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// HTTP status of the answer; that in the body is only the server's opinion.
    pub status: u16,
    /// Kind.
    pub kind: ProblemKind,
    /// `retryable`, if the server said.
    pub retryable: Option<bool>,
    /// The later of `Retry-After` and `retryAfterSeconds`.
    pub retry_after: Option<Duration>,
    /// `backoffStrategy`.
    pub strategy: Pacing,
    /// Title, detail and fields, for people.
    pub text: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = KINDS.iter().find(|(_, kind)| *kind == self.kind).map_or("", |(name, _)| name);
        write!(f, "HTTP {}", self.status)?;
        if !name.is_empty() {
            write!(f, " {name}")?;
        }
        if self.text.is_empty() { Ok(()) } else { write!(f, ": {}", self.text) }
    }
}

/// What is to be done about an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// 200, 201, 204.
    Done,
    /// 304.
    Unchanged,
    /// The same request again, later.
    Later(Problem),
    /// The same request would be refused again: the content is wrong.
    Refused(Problem),
    /// The thing is not there (now).
    NotFound(Problem),
    /// The fleet manager does not know the device above this one.
    ParentMissing(Problem),
    /// The relationship is retired: no requests any more until a person acts.
    Retired(Problem),
}

/// Reads an answer. Decides on the type, then on `retryable`, then on the status.
pub fn judge(response: &Response) -> Verdict {
    match response.status {
        200..=299 => return Verdict::Done,
        304 => return Verdict::Unchanged,
        _ => {}
    }
    let problem = read(response);
    match problem.kind {
        ProblemKind::NotAuthorized | ProblemKind::Retired => return Verdict::Retired(problem),
        ProblemKind::InvalidRequest | ProblemKind::SemanticError => return Verdict::Refused(problem),
        ProblemKind::GatewayNotFound => return Verdict::ParentMissing(problem),
        ProblemKind::DeviceNotFound | ProblemKind::DeploymentNotFound | ProblemKind::InvalidBundle => {
            return Verdict::NotFound(problem);
        }
        ProblemKind::ServerCannotGenerateResponse => return Verdict::Later(problem),
        ProblemKind::Other => {}
    }
    match (problem.retryable, response.status) {
        (Some(true), _) => Verdict::Later(problem),
        (_, 403) => Verdict::Retired(problem),
        (_, 404 | 410) => Verdict::NotFound(problem),
        (Some(false), _) => Verdict::Refused(problem),
        (None, 408 | 425 | 429 | 500..=599) => Verdict::Later(problem),
        (None, _) => Verdict::Refused(problem),
    }
}

fn read(response: &Response) -> Problem {
    let body: Value = serde_json::from_slice(&response.body).unwrap_or(Value::Null);
    let text = |name: &str| body.get(name).and_then(Value::as_str).unwrap_or_default();
    let seconds = body.get("retryAfterSeconds").and_then(|value| {
        let number = value.as_f64().or_else(|| value.as_str()?.parse().ok())?;
        (number >= 0.0 && number.is_finite()).then(|| Duration::try_from_secs_f64(number).unwrap_or(MAX_PAUSE))
    });
    let strategy = match text("backoffStrategy") {
        "none" => Pacing::None,
        "fixed" => Pacing::Fixed,
        _ => Pacing::Exponential,
    };
    Problem {
        status: response.status,
        kind: ProblemKind::of(text("type")),
        retryable: body.get("retryable").and_then(|value| match value {
            Value::Bool(b) => Some(*b),
            Value::String(s) => s.parse().ok(),
            _ => None,
        }),
        retry_after: response.retry_after.max(seconds).map(|pause| pause.min(MAX_PAUSE)),
        strategy,
        text: words(&body, &response.body),
    }
}

/// What the server said, in one printable line.
fn words(body: &Value, raw: &[u8]) -> String {
    let field = |value: &Value| {
        let part = |name: &str| value.get(name).and_then(Value::as_str);
        Some(format!("{}: {}", part("field").unwrap_or("?"), part("message")?))
    };
    let named =
        ["title", "detail", "message", "error"].iter().filter_map(|name| body.get(name)?.as_str().map(str::to_owned));
    let fields = body.get("errors").and_then(Value::as_array).into_iter().flatten().take(5).filter_map(field);
    let parts: Vec<String> = named.chain(fields).collect();
    let text = if parts.is_empty() { String::from_utf8_lossy(raw).into_owned() } else { parts.join("; ") };
    let printable: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_TEXT).collect();
    printable.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn answer(status: u16, body: &str) -> Verdict {
        judge(&Response { status, body: body.to_owned().into(), ..Response::default() })
    }

    #[test]
    fn types_are_accepted_under_every_root_by_their_last_segment() {
        for root in [
            "https://docs.margo.org/specification/problem-types#",
            "https://docs.margo.org/specification/problems/",
            "https://margo.org/docs/errors/",
            "",
            "urn:x/",
        ] {
            for (name, kind) in KINDS {
                assert_eq!(ProblemKind::of(&format!("{root}{name}")), *kind, "{root}{name}");
            }
        }
        assert_eq!(ProblemKind::of("about:blank"), ProblemKind::Other);
        assert_eq!(ProblemKind::of("https://margo.org/docs/errors/tomorrow"), ProblemKind::Other);
    }

    #[test]
    fn the_type_decides_before_retryable_and_retryable_before_the_status() {
        let typed = r#"{"type":"https://margo.org/docs/errors/not-authorized","retryable":true}"#;
        assert!(matches!(answer(503, typed), Verdict::Retired(_)));
        assert!(matches!(answer(400, r#"{"retryable":true}"#), Verdict::Later(_)));
        assert!(matches!(answer(503, r#"{"retryable":false}"#), Verdict::Refused(_)));
        assert!(matches!(answer(422, r#"{"type":"x#semantic-error"}"#), Verdict::Refused(_)));
        assert!(matches!(answer(404, r#"{"type":"x#gateway-not-found"}"#), Verdict::ParentMissing(_)));
    }

    #[test]
    fn too_many_requests_and_server_errors_are_retried_without_any_body() {
        for status in [408, 425, 429, 500, 502, 503, 504] {
            assert!(matches!(answer(status, ""), Verdict::Later(_)), "{status}");
        }
        for status in [400, 401, 405, 406, 409, 422] {
            assert!(matches!(answer(status, ""), Verdict::Refused(_)), "{status}");
        }
        assert!(matches!(answer(404, "<html>"), Verdict::NotFound(_)));
        assert!(matches!(answer(403, ""), Verdict::Retired(_)));
        assert_eq!(
            (answer(204, ""), answer(201, "x"), answer(304, "")),
            (Verdict::Done, Verdict::Done, Verdict::Unchanged)
        );
    }

    #[test]
    fn the_later_of_both_pauses_counts() {
        let body = r#"{"retryAfterSeconds": 20, "backoffStrategy":"fixed"}"#;
        let with = |header: Option<u64>| {
            let retry_after = header.map(Duration::from_secs);
            match judge(&Response { status: 503, retry_after, body: body.into(), ..Response::default() }) {
                Verdict::Later(problem) => (problem.retry_after.unwrap().as_secs(), problem.strategy),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(with(Some(30)), (30, Pacing::Fixed));
        assert_eq!(with(Some(3)), (20, Pacing::Fixed));
        assert_eq!(with(None), (20, Pacing::Fixed));
        assert_eq!(with(Some(u64::MAX)).0, 86_400);
    }

    #[test]
    fn fields_are_told_and_control_characters_are_not() {
        let body = r#"{"title":"Bad\u0007","errors":[{"field":"properties.id","message":"differs"},{"x":1}]}"#;
        let Verdict::Refused(problem) = answer(422, body) else { panic!() };
        assert_eq!(problem.to_string(), "HTTP 422: Bad ; properties.id: differs");
    }

    #[test]
    fn plain_json_pages_and_nothing_at_all_are_read_leniently() {
        let text = |body: &str| match answer(409, body) {
            Verdict::Refused(problem) => problem.text,
            other => panic!("{other:?}"),
        };
        assert_eq!(text(r#"{"error":"no"}"#), "no");
        assert_eq!(text(r#"{"message":"no","retryable":"false"}"#), "no");
        assert_eq!((text("<html>no</html>"), text("")), ("<html>no</html>".to_owned(), String::new()));
        assert_eq!(text(r#"["no"]"#), r#"["no"]"#);
    }

    proptest! {
        #[test]
        fn any_body_is_read(status in 100u16..600, body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = judge(&Response { status, body: body.into(), ..Response::default() });
        }

        #[test]
        fn any_json_is_read(status in 400u16..600, a in "[a-z/#:-]{0,30}", b in any::<f64>(), c in any::<i64>()) {
            let body = serde_json::json!({ "type": a, "retryable": c, "retryAfterSeconds": b, "errors": [a, { "message": c }] });
            let _ = answer(status, &body.to_string());
        }
    }
}
