//! `DeviceCapabilitiesManifest`.

use serde_json::{Map, Value};

use super::{Mode, Problem, Problems, join};
use crate::margo::spiffe::check::is_segment;

const HOSTING: [&str; 8] = [
    "cpus",
    "memory",
    "storage",
    "peripherals",
    "interfaces",
    "otelCollector",
    "supportedRuntimes",
    "supportedDeploymentTypes",
];
const IDENTITY: [&str; 4] = ["id", "vendor", "modelNumber", "serialNumber"];

/// Which flavour of the document is expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// The older interface, which wants `apiVersion` and `kind`, and knows `roles` and `resources`.
    pub older: bool,
    /// What kind of gateway is expected.
    pub mode: Mode,
}

/// `^[A-Za-z0-9._~-]+(/[A-Za-z0-9._~-]+)*$`, and no segment `.` or `..`, which no URL could carry.
pub fn is_device_id(text: &str) -> bool {
    text.split('/').all(is_segment)
}

/// Every problem of what was put at `device_id`.
pub fn check(manifest: &Value, device_id: &str, shape: Shape) -> Vec<Problem> {
    let mut problems = Problems::default();
    let Value::Object(top) = manifest else {
        problems.add("", "must be an object");
        return problems.0;
    };
    for (key, value) in top {
        match key.as_str() {
            "properties" => {}
            "labels" => labels(value, &mut problems),
            "apiVersion" | "kind" if shape.older => {}
            key if is_extension(key) => {
                if !value.is_object() {
                    problems.add(key, "must be an object");
                }
            }
            key => problems.add(key, "is not a field of the interface; extensions are called x-<name>-extensions"),
        }
    }
    if shape.older {
        problems.constant(top, "apiVersion", "device.margo.org/v1alpha1");
        problems.constant(top, "kind", "DeviceCapabilitiesManifest");
    }
    if let Some(properties) = problems.object(top, "", "properties") {
        check_properties(properties, device_id, shape, &mut problems);
    }
    let child = device_id.contains('/');
    if child && matches!(shape.mode, Mode::Opaque | Mode::Transparent) {
        problems.add("properties.id", "this gateway must not show children");
    }
    problems.0
}

/// `^x-[a-z][a-z0-9-]*-extensions$`.
fn is_extension(key: &str) -> bool {
    key.strip_prefix("x-").and_then(|rest| rest.strip_suffix("-extensions")).is_some_and(|name| {
        name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    })
}

fn labels(value: &Value, problems: &mut Problems) {
    let Value::Object(labels) = value else { return problems.add("labels", "must be an object") };
    for (key, value) in labels {
        let fits = match value {
            Value::String(_) | Value::Number(_) | Value::Bool(_) => true,
            Value::Array(items) => items.iter().all(Value::is_string) || items.iter().all(Value::is_number),
            _ => false,
        };
        if !fits {
            let message = "must be a string, number, boolean, array of strings or array of numbers";
            problems.add(join("labels", key), message);
        }
    }
}

fn check_properties(properties: &Map<String, Value>, device_id: &str, shape: Shape, problems: &mut Problems) {
    const AT: &str = "properties";
    for key in IDENTITY {
        problems.string(properties, AT, key);
    }
    if let Some(Value::String(id)) = properties.get("id")
        && id != device_id
    {
        problems.add("properties.id", format!("must be the id in the path, `{device_id}`"));
    }
    let mut allowed: Vec<&str> = IDENTITY.into_iter().chain(HOSTING).collect();
    if shape.older {
        allowed.extend(["roles", "resources"]);
        return problems.only(properties, AT, &allowed);
    }
    problems.only(properties, AT, &allowed);
    let hosts = HOSTING.iter().any(|key| properties.contains_key(*key));
    if hosts {
        hosting(properties, problems);
    } else if shape.mode == Mode::Opaque {
        problems.add(AT, "an opaque gateway reports the combined capabilities of what it hosts");
    }
}

fn hosting(properties: &Map<String, Value>, problems: &mut Problems) {
    const AT: &str = "properties";
    each(properties, "cpus", problems, |cpu, at, problems| {
        match cpu.get("cores").and_then(Value::as_f64) {
            Some(cores) if cores > 0.0 => {}
            _ => problems.add(join(at, "cores"), "must be a positive number"),
        }
        if let Some(architecture) = problems.string(cpu, at, "architecture") {
            problems.one_of(architecture, &join(at, "architecture"), &["amd64", "arm64", "arm"]);
        }
    });
    for key in ["memory", "storage"] {
        if let Some(text) = problems.string(properties, AT, key)
            && !is_quantity(text)
        {
            problems.add(join(AT, key), format!("`{text}` is no amount such as `12Gi`"));
        }
    }
    each(properties, "peripherals", problems, |part, at, problems| {
        if let Some(kind) = problems.string(part, at, "type") {
            problems.one_of(kind, &join(at, "type"), &["gpu", "display", "camera", "microphone", "speaker"]);
        }
        problems.optional_string(part, at, "manufacturer");
        problems.optional_string(part, at, "model");
    });
    each(properties, "interfaces", problems, |part, at, problems| {
        const KINDS: [&str; 7] = ["ethernet", "wifi", "cellular", "bluetooth", "usb", "canbus", "rs232"];
        if let Some(kind) = problems.string(part, at, "type") {
            problems.one_of(kind, &join(at, "type"), &KINDS);
        }
    });
    if properties.get("otelCollector") != Some(&Value::Bool(true)) {
        problems.add("properties.otelCollector", "must be true: a device that hosts workloads runs a collector");
    }
    choices(properties, "supportedRuntimes", &["oci", "custom"], problems);
    choices(properties, "supportedDeploymentTypes", &["helm", "compose", "custom"], problems);
    if properties.get("cpus").and_then(Value::as_array).is_some_and(Vec::is_empty) {
        problems.add("properties.cpus", "must not be empty");
    }
}

fn each(
    properties: &Map<String, Value>,
    key: &str,
    problems: &mut Problems,
    check: impl Fn(&Map<String, Value>, &str, &mut Problems),
) {
    let Some(items) = problems.array(properties, "properties", key) else { return };
    for (index, item) in items.iter().enumerate() {
        let at = format!("properties.{key}[{index}]");
        match item.as_object() {
            Some(item) => check(item, &at, problems),
            None => problems.add(at, "must be an object"),
        }
    }
}

fn choices(properties: &Map<String, Value>, key: &str, allowed: &[&str], problems: &mut Problems) {
    let Some(items) = problems.array(properties, "properties", key) else { return };
    let at = join("properties", key);
    if items.is_empty() {
        problems.add(&at, "must not be empty");
    }
    for item in items {
        match item.as_str() {
            Some(text) => problems.one_of(text, &at, allowed),
            None => problems.add(&at, "must hold strings"),
        }
    }
}

/// A number with a binary or decimal suffix.
fn is_quantity(text: &str) -> bool {
    const SUFFIXES: [&str; 13] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei", "k", "K", "M", "G", "T", "P", "E"];
    let number = SUFFIXES.iter().find_map(|suffix| text.strip_suffix(suffix)).unwrap_or(text);
    number.parse::<f64>().is_ok_and(|number| number.is_finite() && number >= 0.0)
        && number.starts_with(|c: char| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const RC3: Shape = Shape { older: false, mode: Mode::SeeThru };

    fn fields(manifest: &Value, id: &str, shape: Shape) -> Vec<String> {
        check(manifest, id, shape).into_iter().map(|problem| problem.field).collect()
    }

    fn plain(id: &str) -> Value {
        json!({ "properties": { "id": id, "vendor": "V", "modelNumber": "M", "serialNumber": "S" } })
    }

    fn host(id: &str) -> Value {
        let mut manifest = plain(id);
        let more = json!({
            "cpus": [{ "cores": 4, "architecture": "arm64" }], "memory": "12Gi", "storage": "64Gi",
            "peripherals": [{ "type": "camera", "manufacturer": "C", "model": "D" }],
            "interfaces": [{ "type": "ethernet" }], "otelCollector": true,
            "supportedRuntimes": ["oci"], "supportedDeploymentTypes": ["compose", "custom"],
        });
        let properties = manifest["properties"].as_object_mut().unwrap();
        properties.extend(more.as_object().unwrap().clone());
        manifest
    }

    #[test]
    fn what_the_reference_shows_is_accepted() {
        assert!(fields(&plain("gw/a"), "gw/a", RC3).is_empty());
        assert!(fields(&host("gw"), "gw", RC3).is_empty());
        let mut labelled = plain("gw/a");
        labelled["labels"] = json!({ "plant.example/line": "3", "plant.example/sizes": [1, 2.5], "b": true });
        labelled["x-plant-extensions"] = json!({ "anything": [] });
        assert!(fields(&labelled, "gw/a", RC3).is_empty());
    }

    #[test]
    fn nothing_else_stands_at_the_top_level() {
        let mut manifest = plain("gw");
        manifest["apiVersion"] = json!("device.margo.org/v1alpha1");
        manifest["x-Plant-extensions"] = json!({});
        manifest["x-plant"] = json!({});
        assert_eq!(fields(&manifest, "gw", RC3), ["apiVersion", "x-Plant-extensions", "x-plant"]);
    }

    #[test]
    fn the_older_interface_wants_version_and_kind() {
        let older = Shape { older: true, mode: Mode::Any };
        assert_eq!(fields(&plain("gw"), "gw", older), ["apiVersion", "kind"]);
        let mut manifest = plain("gw");
        manifest["apiVersion"] = json!("device.margo.org/v1alpha1");
        manifest["kind"] = json!("DeviceCapabilitiesManifest");
        manifest["properties"]["roles"] = json!(["standalone device"]);
        assert!(fields(&manifest, "gw", older).is_empty());
    }

    #[test]
    fn hosting_fields_come_together_or_not_at_all() {
        for missing in HOSTING {
            let mut manifest = host("gw");
            manifest["properties"].as_object_mut().unwrap().remove(missing);
            assert_eq!(fields(&manifest, "gw", RC3), [format!("properties.{missing}")]);
        }
        let mut one = plain("gw");
        one["properties"]["memory"] = json!("1Gi");
        assert_eq!(fields(&one, "gw", RC3).len(), 7);
    }

    #[test]
    fn every_field_has_its_kind() {
        for (pointer, value) in [
            ("/properties/cpus/0/architecture", json!("x86_64")),
            ("/properties/cpus/0/cores", json!("4")),
            ("/properties/memory", json!("lots")),
            ("/properties/storage", json!(5)),
            ("/properties/peripherals/0/type", json!("printer")),
            ("/properties/interfaces/0/type", json!("profibus")),
            ("/properties/otelCollector", json!(false)),
            ("/properties/supportedRuntimes", json!([])),
            ("/properties/supportedDeploymentTypes", json!(["helm.v3"])),
            ("/properties/id", json!("another")),
            ("/properties/vendor", json!("")),
        ] {
            let mut manifest = host("gw");
            *manifest.pointer_mut(pointer).unwrap() = value;
            assert_eq!(fields(&manifest, "gw", RC3).len(), 1, "{pointer}");
        }
        let mut labelled = plain("gw");
        labelled["labels"] = json!({ "mixed": [1, "a"], "object": {}, "null": null });
        assert_eq!(fields(&labelled, "gw", RC3).len(), 3);
    }

    #[test]
    fn modes_allow_what_they_are() {
        let shape = |mode| Shape { older: false, mode };
        assert!(fields(&plain("gw/a"), "gw/a", shape(Mode::Any)).is_empty());
        assert_eq!(fields(&plain("gw/a"), "gw/a", shape(Mode::Transparent)), ["properties.id"]);
        assert_eq!(fields(&plain("gw"), "gw", shape(Mode::Opaque)), ["properties"]);
        assert!(fields(&host("gw"), "gw", shape(Mode::Opaque)).is_empty());
    }

    #[test]
    fn device_ids_follow_the_grammar() {
        for good in ["a", "a/b", "a/b/c", "A.z_0~-"] {
            assert!(is_device_id(good), "{good}");
        }
        for bad in ["", "/a", "a/", "a//b", "a b", "a%20b", "ä", "a/..", "a/*"] {
            assert!(!is_device_id(bad), "{bad}");
        }
    }
}
