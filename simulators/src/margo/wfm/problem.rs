//! Problem documents (RFC 9457).

use serde_json::{Value, json};

use super::faults::{Fault, TypeRoot};
use crate::margo::http::Answer;
use crate::margo::schema::Problem;

const MEDIA_TYPE: &str = "application/problem+json";

/// A refusal in the interface's own words.
pub(super) fn answer(root: TypeRoot, status: u16, name: &str, detail: &str, errors: &[Problem]) -> Answer {
    let mut body = json!({ "type": root.of(name), "title": title(name), "status": status, "detail": detail });
    if !errors.is_empty() {
        body["errors"] = serde_json::to_value(errors).unwrap_or_default();
    }
    Answer::with(status, MEDIA_TYPE, body.to_string())
}

/// `gateway-not-found` as people write it.
fn title(name: &str) -> String {
    let words = name.replace('-', " ");
    let mut letters = words.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// The answer that a fault puts in the place of the right one.
pub(super) fn scripted(fault: &Fault, root: TypeRoot) -> Option<Answer> {
    let seconds = |after: &Option<u64>| after.map(|after| after.to_string());
    let (answer, retry_after) = match fault {
        Fault::Problem { name, status, root, retry_after, retryable, retry_after_seconds, backoff } => {
            let mut body =
                json!({ "type": root.of(name), "title": title(name), "status": status, "detail": "scripted" });
            let fields = [
                ("retryable", retryable.map(Value::from)),
                ("retryAfterSeconds", retry_after_seconds.map(Value::from)),
                ("backoffStrategy", backoff.clone().map(Value::from)),
            ];
            for (key, value) in fields {
                if let Some(value) = value {
                    body[key] = value;
                }
            }
            (Answer::with(*status, MEDIA_TYPE, body.to_string()), seconds(retry_after))
        }
        Fault::PlainJson { status, retry_after } => {
            (Answer::json(*status, &json!({ "error": "scripted", "code": status })), seconds(retry_after))
        }
        Fault::Empty { status, retry_after } => (Answer::new(*status), retry_after.clone()),
        Fault::Html { status } => {
            (Answer::with(*status, "text/html", "<html><body><h1>Bad gateway</h1></body></html>"), None)
        }
        Fault::Retired => return Some(retired(root)),
        Fault::ArtifactMissing => {
            return Some(self::answer(root, 404, "deployment-not-found", "the artifact is not there", &[]));
        }
        _ => return None,
    };
    Some(match retry_after {
        Some(after) => answer.header("retry-after", after),
        None => answer,
    })
}

pub(super) fn retired(root: TypeRoot) -> Answer {
    answer(root, 403, "not-authorized", "the relationship between this WFM and this client is retired", &[])
}
