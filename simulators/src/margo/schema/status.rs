//! `DeploymentStatusManifest`.

use serde_json::{Map, Value};

use super::{Problem, Problems, join};

/// From the least to the most severe.
const STATES: [&str; 6] = ["installed", "removed", "pending", "installing", "removing", "failed"];

/// What the fleet manager knows about the deployment.
#[derive(Debug, Clone, Default)]
pub struct Expected<'a> {
    /// The older interface, which has `apiVersion` and `kind` and no `adoptedManifestVersion`.
    pub older: bool,
    /// Its id, from the path.
    pub deployment: &'a str,
    /// Names of its components; empty when nobody knows.
    pub components: Vec<&'a str>,
    /// The newest manifest that the client was given.
    pub newest: u64,
    /// First segment of its target: the device that the client must be.
    pub root: &'a str,
}

/// Every problem of a status.
pub fn check(manifest: &Value, expected: &Expected<'_>) -> Vec<Problem> {
    let mut problems = Problems::default();
    let Value::Object(top) = manifest else {
        problems.add("", "must be an object");
        return problems.0;
    };
    if let Some(id) = problems.string(top, "", "deploymentId")
        && id != expected.deployment
    {
        problems.add("deploymentId", format!("must be the id in the path, `{}`", expected.deployment));
    }
    adopted(top, expected, &mut problems);
    if top.contains_key("deviceId")
        && let Some(device) = problems.string(top, "", "deviceId")
    {
        if !super::is_device_id(device) {
            problems.add("deviceId", format!("`{device}` is no device id"));
        } else if device.split('/').next() != Some(expected.root) {
            problems.add("deviceId", format!("`{device}` is not below the target's gateway, `{}`", expected.root));
        }
    }
    let overall = problems.object(top, "", "status").and_then(|status| state(status, "status", top, &mut problems));
    components(top, overall.as_deref(), expected, &mut problems);
    problems.0
}

fn adopted(top: &Map<String, Value>, expected: &Expected<'_>, problems: &mut Problems) {
    const KEY: &str = "adoptedManifestVersion";
    match top.get(KEY) {
        None if expected.older => {}
        None => problems.add(KEY, "is required"),
        Some(value) => match value.as_u64() {
            Some(version) if version >= 1 && version <= expected.newest => {}
            Some(version) => {
                problems.add(KEY, format!("{version} was never given; the newest manifest is {}", expected.newest));
            }
            None => problems.add(KEY, "must be a whole number of at least 1"),
        },
    }
}

/// The state, if it is one.
fn state(object: &Map<String, Value>, at: &str, top: &Map<String, Value>, problems: &mut Problems) -> Option<String> {
    let found = problems.string(object, at, "state").map(str::to_owned);
    if let Some(found) = &found {
        problems.one_of(found, &join(at, "state"), &STATES);
    }
    if let Some(error) = object.get("error").filter(|error| !error.is_null()) {
        let at = join(at, "error");
        match error.as_object() {
            Some(error) => check_error(error, &at, top, problems),
            None => problems.add(at, "must be an object"),
        }
    }
    found
}

fn check_error(error: &Map<String, Value>, at: &str, top: &Map<String, Value>, problems: &mut Problems) {
    let code = match error.get("code") {
        Some(Value::String(code)) if !code.is_empty() => code.clone(),
        Some(Value::Number(code)) => code.to_string(),
        _ => {
            problems.add(join(at, "code"), "must be a code");
            return;
        }
    };
    let source = problems.string(error, at, "source");
    let message = problems.string(error, at, "message");
    let wanted = match code.as_str() {
        "101" => "Unknown child device ID",
        "102" => "Child device unreachable",
        "103" => "Autonomous placement not supported",
        _ => return,
    };
    // Free text may follow: the code is what a machine reads.
    if message.is_some_and(|message| !message.starts_with(wanted)) {
        problems.add(join(at, "message"), format!("code {code} means `{wanted}`"));
    }
    let device = top.get("deviceId").and_then(Value::as_str);
    if let (Some(source), Some(device)) = (source, device)
        && device.strip_prefix(source).is_none_or(|rest| !rest.is_empty() && !rest.starts_with('/'))
    {
        problems.add(join(at, "source"), format!("code {code} comes from the gateway of `{device}`"));
    }
}

fn components(top: &Map<String, Value>, overall: Option<&str>, expected: &Expected<'_>, problems: &mut Problems) {
    let Some(items) = problems.array(top, "", "components") else { return };
    let mut names = Vec::new();
    let mut worst = None;
    for (index, item) in items.iter().enumerate() {
        let at = format!("components[{index}]");
        let Some(item) = item.as_object() else {
            problems.add(at, "must be an object");
            continue;
        };
        if let Some(name) = problems.string(item, &at, "name") {
            if names.contains(&name) {
                problems.add(join(&at, "name"), format!("`{name}` stands here twice"));
            }
            names.push(name);
        }
        if let Some(found) = state(item, &at, top, problems) {
            worst = worst.max(STATES.iter().position(|state| *state == found));
        }
    }
    for missing in expected.components.iter().filter(|name| !names.contains(name)) {
        problems.add("components", format!("`{missing}` is missing: every component has an entry"));
    }
    if !expected.components.is_empty() {
        for strange in names.iter().filter(|name| !expected.components.contains(name)) {
            problems.add("components", format!("the deployment has no component `{strange}`"));
        }
    }
    if let (Some(overall), Some(worst)) = (overall, worst)
        && overall != STATES[worst]
    {
        problems.add("status.state", format!("must be the most severe of its components, `{}`", STATES[worst]));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn expected() -> Expected<'static> {
        Expected { older: false, deployment: "d", components: vec!["a", "b"], newest: 7, root: "gw" }
    }

    fn good() -> Value {
        json!({
            "deploymentId": "d", "adoptedManifestVersion": 7, "deviceId": "gw/x", "status": { "state": "installing" },
            "components": [{ "name": "a", "state": "installed" }, { "name": "b", "state": "installing" }],
        })
    }

    fn problems(change: impl Fn(&mut Value)) -> Vec<String> {
        let mut manifest = good();
        change(&mut manifest);
        check(&manifest, &expected())
            .into_iter()
            .map(|problem| format!("{}: {}", problem.field, problem.message))
            .collect()
    }

    #[test]
    fn a_complete_status_is_accepted() {
        assert!(problems(|_| ()).is_empty());
        assert!(problems(|m| m["later"] = json!("tolerated")).is_empty());
    }

    #[test]
    fn gateway_errors_come_from_the_gateway_in_the_references_words() {
        let failed = |code: &str, source: &str, message: &str| {
            let error = json!({ "code": code, "source": source, "message": message });
            problems(move |m| {
                m["status"] = json!({ "state": "failed", "error": error });
                for index in [0, 1] {
                    m["components"][index]["state"] = json!("failed");
                }
            })
        };
        assert!(failed("101", "gw", "Unknown child device ID").is_empty());
        assert!(failed("102", "gw", "Child device unreachable: no answer for 5 s").is_empty());
        assert_eq!(failed("102", "plc", "Child device unreachable").len(), 1);
        assert_eq!(failed("103", "gw", "no").len(), 1);
        assert!(failed("E-77", "whoever", "our own").is_empty());
    }

    #[test]
    fn the_overall_state_is_the_most_severe() {
        // failed > removing > installing > pending > removed > installed
        for (a, b, overall) in [
            ("failed", "removing", "failed"),
            ("removing", "installing", "removing"),
            ("installing", "pending", "installing"),
            ("pending", "removed", "pending"),
            ("removed", "installed", "removed"),
        ] {
            for state in STATES {
                let found = problems(|m| {
                    m["components"][0]["state"] = json!(a);
                    m["components"][1]["state"] = json!(b);
                    m["status"]["state"] = json!(state);
                });
                assert_eq!(found.is_empty(), state == overall, "{a} {b} {state}: {found:?}");
            }
        }
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        for (pointer, value) in [
            ("/deploymentId", json!("other")),
            ("/adoptedManifestVersion", json!(8)),
            ("/adoptedManifestVersion", json!(0)),
            ("/adoptedManifestVersion", json!("7")),
            ("/deviceId", json!("other/x")),
            ("/deviceId", json!("gw/*")),
            ("/components/0/name", json!("b")),
            ("/components/1/state", json!("done")),
            ("/status/state", json!("INSTALLING")),
        ] {
            let found = problems(|m| *m.pointer_mut(pointer).unwrap() = value.clone());
            assert!(!found.is_empty(), "{pointer}");
        }
        let found = problems(|m| *m["components"].as_array_mut().unwrap() = Vec::new());
        assert_eq!(found.len(), 2, "{found:?}");
    }
}
