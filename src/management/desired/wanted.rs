//! A desired document before it is taken: whether it is new, and what is wrong with it.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use super::MAX_DOCUMENT;
use super::desk::Facts;
use super::document::{parse_device, parse_duration, parse_gateway};
use super::job::{Job, USUAL_PROOF_MS, Version, digest};
use crate::management::request::FieldError;
use crate::management::step::Cause;
use crate::model::Stamp;

/// Longest time of proof.
const MAX_PROOF_MS: u64 = 3_600_000;

/// A desired document, decoded.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// Its number.
    pub version: u64,
    /// The overlay.
    pub settings: Json,
    /// Take the settings of this version of the history instead; 0 for none.
    pub restore: u64,
    /// How long values may take to arrive; empty for 30 s.
    pub prove_within: String,
    /// Words for the history.
    pub comment: String,
}

/// Why a document is refused, and a text that tells this refusal from others.
pub(super) type Rejected = (Vec<FieldError>, String);

/// `None` when the document is the one that is in force or in work.
pub(super) fn check(
    job: &Job,
    wanted: Wanted,
    history: Option<&BTreeMap<u64, Version>>,
    facts: Facts<'_>,
    cause: &Cause,
    now: Stamp,
) -> Result<Option<Version>, Rejected> {
    let fingerprint = format!("{}:{}:{}", wanted.version, wanted.restore, digest(&wanted.settings));
    let fail = |errors: Vec<FieldError>| (errors, fingerprint.clone());
    let one = |path: &str, code: &str, text: String| fail(vec![FieldError::new(path, code, text)]);
    let settings = match wanted.restore {
        0 => wanted.settings,
        number => match history.and_then(|h| h.get(&number)) {
            Some(version) => version.settings.clone(),
            None => return Err(one("/restore", "unknown-version", format!("version {number} is not in the history"))),
        },
    };
    if settings.to_string().len() > MAX_DOCUMENT {
        return Err(one("/settings", "out-of-range", format!("is larger than {MAX_DOCUMENT} bytes")));
    }
    let within_ms = match wanted.prove_within.as_str() {
        "" => USUAL_PROOF_MS,
        text => match parse_duration(text).map(|d| d.as_millis() as u64) {
            Some(ms @ 1_000..=MAX_PROOF_MS) => ms,
            _ => return Err(one("/prove_within", "out-of-range", "must be a duration from 1 s to 1 h".to_owned())),
        },
    };
    if wanted.version <= job.highest {
        if is_taken(job, history, wanted.version, &settings) {
            return Ok(None);
        }
        let text = format!("is {}; it must be greater than {}, the last version taken", wanted.version, job.highest);
        return Err(one("/version", "stale-version", text));
    }
    let errors = match facts.profile {
        Some(profile) => parse_device(&settings, profile).err(),
        None => parse_gateway(&settings).err(),
    };
    if let Some(errors) = errors {
        return Err(fail(errors));
    }
    let comment = match wanted.restore {
        0 => wanted.comment.chars().take(200).collect(),
        number => format!("restored from version {number}"),
    };
    Ok(Some(Version {
        version: wanted.version,
        settings,
        within_ms,
        by: cause.actor.clone(),
        at_ms: now.wall_ms,
        comment,
        result: String::new(),
    }))
}

/// Whether these settings are known as this version: in force, in work, waiting, or in the history.
pub(super) fn is_taken(job: &Job, history: Option<&BTreeMap<u64, Version>>, number: u64, settings: &Json) -> bool {
    let known = [Some(&job.in_force), job.candidate.as_ref(), job.queued.as_ref()];
    let given_up = history.and_then(|h| h.get(&number));
    known.into_iter().flatten().chain(given_up).any(|v| v.version == number && v.settings == *settings)
}
