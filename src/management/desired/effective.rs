//! The reported message: what is in force, where each setting comes from, and the history.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};

use super::job::{Job, Target, Version};
use crate::contract::{timestamp, v1};
use crate::management::table::Word;

/// Settings in force with their origin. Points show only what a document changed; the files say the rest.
pub(super) fn effective(base: &Map<String, Json>, overlay: &Json) -> Map<String, Json> {
    let mut out = Map::new();
    let empty = Map::new();
    let overlay = overlay.as_object().unwrap_or(&empty);
    for (key, value) in base {
        out.insert(key.clone(), json!({ "value": value, "from": "file" }));
    }
    for (key, value) in overlay {
        let entry = match (key.as_str(), value) {
            ("points" | "groups", Json::Object(named)) => Json::Object(named.iter().map(marked).collect()),
            _ => json!({ "value": value, "from": "desired" }),
        };
        out.insert(key.clone(), entry);
    }
    out
}

fn marked((name, settings): (&String, &Json)) -> (String, Json) {
    let empty = Map::new();
    let keys = settings.as_object().unwrap_or(&empty);
    let keys = keys.iter().map(|(key, value)| (key.clone(), json!({ "value": value, "from": "desired" })));
    (name.clone(), Json::Object(keys.collect()))
}

/// The retained message of a target.
pub(super) fn reported(
    target: &Target,
    job: &Job,
    base: &Map<String, Json>,
    history: Option<&BTreeMap<u64, Version>>,
) -> v1::ReportedConfig {
    let desired = job.candidate.as_ref().map_or(job.result_version, |c| c.version);
    let effective = Json::Object(effective(base, &job.in_force.settings));
    let line = |v: &Version| v1::ConfigVersion {
        version: v.version,
        result: v.result.clone(),
        time: Some(timestamp(v.at_ms)),
        by: v.by.clone(),
        comment: v.comment.clone(),
        digest: v.digest(),
    };
    v1::ReportedConfig {
        device: target.device().map_or_else(String::new, |d| d.as_str().to_owned()),
        version: job.in_force.version,
        state: job.state.as_str().to_owned(),
        result: job.result.clone(),
        desired_version: desired,
        errors: job.errors.iter().map(crate::management::request::FieldError::message).collect(),
        since: Some(timestamp(job.since_ms)),
        by: job.in_force.by.clone(),
        effective: serde_json::from_value(effective).ok(),
        history: history.into_iter().flat_map(|h| h.values().rev()).map(line).collect(),
    }
}
