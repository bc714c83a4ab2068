//! The rc.3 schemas of what we send, written from the standard's text: a message that breaks one is not sent.

use serde_json::{Map, Value};

use super::capabilities::{INTERFACES, PERIPHERALS, is_extension_name, is_label};
use super::words::{DeploymentId, DevicePath};

const STATES: [&str; 6] = ["pending", "installing", "installed", "failed", "removing", "removed"];
const PROPERTIES: [&str; 12] = [
    "id",
    "vendor",
    "modelNumber",
    "serialNumber",
    "cpus",
    "memory",
    "storage",
    "peripherals",
    "interfaces",
    "otelCollector",
    "supportedRuntimes",
    "supportedDeploymentTypes",
];
/// What is wrong with a DeviceCapabilitiesManifest; empty when nothing is.
pub fn capabilities(value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let Some(top) = value.as_object() else { return vec!["the manifest is no object".to_owned()] };
    for name in top.keys() {
        if !matches!(name.as_str(), "properties" | "labels") && !is_extension_name(name) {
            found.push(format!("`{name}` may not stand at the top level"));
        }
    }
    match top.get("properties").and_then(Value::as_object) {
        None => found.push("`properties` is missing".to_owned()),
        Some(properties) => check_properties(properties, &mut found),
    }
    match top.get("labels") {
        None => {}
        Some(Value::Object(labels)) => {
            found.extend(
                labels.iter().filter(|(_, v)| !is_label(v)).map(|(k, _)| format!("label `{k}` is of a wrong kind")),
            );
        }
        Some(_) => found.push("`labels` is no object".to_owned()),
    }
    found
}

fn check_properties(properties: &Map<String, Value>, found: &mut Vec<String>) {
    found.extend(
        properties.keys().filter(|k| !PROPERTIES.contains(&k.as_str())).map(|k| format!("`properties.{k}` is unknown")),
    );
    for name in ["id", "vendor", "modelNumber", "serialNumber"] {
        if properties.get(name).and_then(Value::as_str).is_none_or(str::is_empty) {
            found.push(format!("`properties.{name}` must be a text"));
        }
    }
    if properties.get("id").and_then(Value::as_str).is_some_and(|id| DevicePath::new(id).is_err()) {
        found.push("`properties.id` is no deviceId".to_owned());
    }
    // With one of these a device says that it hosts, and then it says all of them.
    let hosting = &PROPERTIES[4..];
    if !hosting.iter().any(|name| properties.contains_key(*name)) {
        return;
    }
    found.extend(
        hosting
            .iter()
            .filter(|name| !properties.contains_key(**name))
            .map(|name| format!("`properties.{name}` is missing in a device that hosts")),
    );
    let list = |name: &str| properties.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    for cpu in list("cpus") {
        let known = cpu["architecture"].as_str().is_some_and(|a| ["amd64", "arm64", "arm"].contains(&a));
        if !known || !cpu["cores"].as_f64().is_some_and(|cores| cores > 0.0) {
            found.push(format!("{cpu} is no cpu"));
        }
    }
    let mut words = |name: &str, inside: Option<&str>, known: &[&str], least: usize| {
        let all = list(name);
        if properties.contains_key(name) && all.len() < least {
            found.push(format!("`properties.{name}` needs at least {least}"));
        }
        for item in all {
            let word = inside.map_or(item, |inside| &item[inside]);
            if !word.as_str().is_some_and(|word| known.contains(&word)) {
                found.push(format!("`properties.{name}` holds {word}, which is none of {known:?}"));
            }
        }
    };
    words("peripherals", Some("type"), &PERIPHERALS, 0);
    words("interfaces", Some("type"), &INTERFACES, 0);
    words("supportedRuntimes", None, &["oci", "custom"], 1);
    words("supportedDeploymentTypes", None, &["helm", "compose", "custom"], 1);
    words("cpus", Some("architecture"), &["amd64", "arm64", "arm"], 1);
    if properties.get("otelCollector") != Some(&Value::Bool(true)) {
        found.push("`properties.otelCollector` must be true in a device that hosts".to_owned());
    }
}

/// What is wrong with a DeploymentStatusManifest; empty when nothing is.
pub fn status(value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let Some(top) = value.as_object() else { return vec!["the status is no object".to_owned()] };
    let known = ["deploymentId", "adoptedManifestVersion", "deviceId", "status", "components"];
    found.extend(top.keys().filter(|k| !known.contains(&k.as_str())).map(|k| format!("`{k}` is unknown")));
    if value["deploymentId"].as_str().is_none_or(|id| DeploymentId::new(id).is_err()) {
        found.push("`deploymentId` is no UUID".to_owned());
    }
    if value["adoptedManifestVersion"].as_u64().is_none_or(|version| version == 0) {
        found.push("`adoptedManifestVersion` must be an integer from 1".to_owned());
    }
    if top.get("deviceId").is_some_and(|id| id.as_str().is_none_or(|id| DevicePath::new(id).is_err())) {
        found.push("`deviceId` is none".to_owned());
    }
    check_state("status", &value["status"], &mut found);
    let Some(components) = value["components"].as_array() else {
        found.push("`components` must be a list".to_owned());
        return found;
    };
    for component in components {
        if component["name"].as_str().is_none_or(str::is_empty) {
            found.push("a component has no name".to_owned());
        }
        check_state("component", component, &mut found);
    }
    found
}

fn check_state(what: &str, value: &Value, found: &mut Vec<String>) {
    if !value["state"].as_str().is_some_and(|state| STATES.contains(&state)) {
        found.push(format!("the state of {what} is {}", value["state"]));
    }
    if let Some(error) = value.get("error") {
        let missing =
            ["code", "source", "message"].into_iter().filter(|name| error[name].as_str().is_none_or(str::is_empty));
        found.extend(missing.map(|name| format!("the error of {what} lacks `{name}`")));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::api::tests_support::example_status;
    use super::super::capabilities::DeviceCapabilities;
    use super::super::capabilities::tests::{child, hosting};
    use super::*;

    #[test]
    fn a_host_says_everything_in_the_words_of_the_standard_or_nothing() {
        let whole = DeviceCapabilities { hosting: Some(hosting(4.0, "12Gi")), ..child() }.to_json();
        assert_eq!(capabilities(&whole), Vec::<String>::new());
        for name in &PROPERTIES[4..] {
            let mut less = whole.clone();
            less["properties"].as_object_mut().unwrap().remove(*name);
            assert!(capabilities(&less).iter().any(|wrong| wrong.contains(name)), "{name}");
        }
        let types = |names: &[&str]| names.iter().map(|name| json!({ "type": name })).collect::<Vec<_>>();
        let every = [
            ("peripherals", json!(types(&["gpu", "display", "camera", "microphone", "speaker"]))),
            ("interfaces", json!(types(&["ethernet", "wifi", "cellular", "bluetooth", "usb", "canbus", "rs232"]))),
            ("supportedRuntimes", json!(["oci", "custom"])),
            ("supportedDeploymentTypes", json!(["helm", "compose", "custom"])),
            ("cpus", json!(["amd64", "arm64", "arm"].map(|name| json!({ "cores": 0.5, "architecture": name })))),
        ];
        let with = |name: &str, value: &Value| {
            let mut changed = whole.clone();
            changed["properties"][name] = value.clone();
            capabilities(&changed)
        };
        for (name, words) in every {
            assert_eq!(with(name, &words), Vec::<String>::new(), "{name}");
        }
        let none = [
            ("peripherals", json!([{ "type": "printer" }])),
            ("interfaces", json!([{ "type": "rs485" }])),
            ("supportedRuntimes", json!([])),
            ("supportedRuntimes", json!(["wasm"])),
            ("supportedDeploymentTypes", json!([])),
            ("supportedDeploymentTypes", json!(["helm.v3"])),
            ("cpus", json!([])),
            ("cpus", json!([{ "cores": 1, "architecture": "x86_64" }])),
            ("cpus", json!([{ "cores": "1", "architecture": "arm" }])),
            ("otelCollector", json!(false)),
        ];
        for (name, words) in none {
            assert!(!with(name, &words).is_empty(), "{name} {words}");
        }
    }

    #[test]
    fn messages_of_ours_are_valid_and_broken_ones_are_not() {
        assert!(capabilities(&child().to_json()).is_empty());
        assert!(status(&example_status().to_json()).is_empty());
        let broken = |change: &dyn Fn(&mut Value)| {
            let mut value = child().to_json();
            change(&mut value);
            capabilities(&value).len()
        };
        assert_eq!(broken(&|v| v["apiVersion"] = json!("x")), 1);
        assert_eq!(broken(&|v| v["properties"]["serialNumber"] = json!("")), 1);
        assert_eq!(broken(&|v| v["properties"]["id"] = json!("gw//a")), 1);
        assert_eq!(broken(&|v| v["labels"]["a"] = json!({})), 1);
        assert!(broken(&|v| v["properties"]["cpus"] = json!([])) >= 4, "half a host");
        let broken = |change: &dyn Fn(&mut Value)| {
            let mut value = example_status().to_json();
            change(&mut value);
            status(&value).len()
        };
        assert_eq!(broken(&|v| v["adoptedManifestVersion"] = json!(0)), 1);
        assert_eq!(broken(&|v| v["status"]["state"] = json!("ok")), 1);
        assert_eq!(broken(&|v| v["status"]["error"]["message"] = json!(null)), 1);
        assert_eq!(broken(&|v| v["extra"] = json!(1)), 1);
    }
}
