//! What the fleet manager is told about the gateway and its children, and in which order.
//!
//! **Promise.** A parent is reported before its children and taken back after them; a change is reported, and nothing that
//! did not change is sent again, not even after a restart ([`Roster`] keeps what was confirmed). Fields about hosting are
//! sent only for a device that the configuration says hosts workloads: what a device delegates is never guessed.
//!
//! See-thru: the gateway and every approved device. Opaque: one manifest with the combined resources. Transparent: one
//! client per device, each of which reports itself.

mod hosting;
mod roster;

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

pub use hosting::{Architecture, Cpu, DeploymentType, Hosting, Interface, Peripheral, Runtime, parse_quantity};
pub(crate) use hosting::{INTERFACES, PERIPHERALS};
pub use roster::{Act, Roster};

use super::words::DevicePath;

/// What stands for a vendor, model or serial number that a device does not reveal and nobody configured.
pub const UNKNOWN: &str = "unknown";

/// One device as it is reported.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceCapabilities {
    /// Path.
    pub id: DevicePath,
    /// Vendor.
    pub vendor: String,
    /// Model.
    pub model: String,
    /// Serial number.
    pub serial: String,
    /// Resources, for a device that hosts workloads.
    pub hosting: Option<Hosting>,
    /// Labels.
    pub labels: BTreeMap<String, Value>,
    /// `x-…-extensions`.
    pub extensions: BTreeMap<String, Value>,
}

impl DeviceCapabilities {
    /// The manifest as rc.3 wants it: `properties`, `labels` and extensions, and nothing else at the top.
    pub fn to_json(&self) -> Value {
        let mut properties = json!({
            "id": self.id.as_str(),
            "vendor": self.vendor,
            "modelNumber": self.model,
            "serialNumber": self.serial,
        });
        if let (Some(hosting), Some(properties)) = (&self.hosting, properties.as_object_mut()) {
            hosting.write_to(properties);
        }
        let mut whole = Map::new();
        whole.insert("properties".to_owned(), properties);
        if !self.labels.is_empty() {
            whole.insert("labels".to_owned(), self.labels.clone().into_iter().collect::<Map<_, _>>().into());
        }
        whole.extend(self.extensions.clone());
        whole.into()
    }
}

/// Whether a text is the name of an extension (`^x-[a-z][a-z0-9-]*-extensions$`).
pub fn is_extension_name(name: &str) -> bool {
    let Some(middle) = name.strip_prefix("x-").and_then(|rest| rest.strip_suffix("-extensions")) else { return false };
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    middle.starts_with(|c: char| c.is_ascii_lowercase()) && middle.chars().all(legal)
}

/// Whether a value may be a label: text, number, boolean, or a list of texts or of numbers.
pub fn is_label(value: &Value) -> bool {
    match value {
        Value::String(_) | Value::Number(_) | Value::Bool(_) => true,
        Value::Array(all) => all.iter().all(Value::is_string) || all.iter().all(Value::is_number),
        Value::Null | Value::Object(_) => false,
    }
}

/// One device for an opaque gateway: the gateway's own identity, everybody's resources.
pub fn combined(gateway: DeviceCapabilities, children: &[DeviceCapabilities]) -> DeviceCapabilities {
    let all = gateway.hosting.iter().chain(children.iter().filter_map(|child| child.hosting.as_ref()));
    let hosting = Hosting::combined(all);
    DeviceCapabilities { hosting, ..gateway }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::schema;
    use super::*;

    pub(crate) fn device(path: &str) -> DeviceCapabilities {
        DeviceCapabilities {
            id: DevicePath::new(path).unwrap(),
            vendor: "Acme".to_owned(),
            model: "P-100".to_owned(),
            serial: "4711".to_owned(),
            hosting: None,
            labels: BTreeMap::new(),
            extensions: BTreeMap::new(),
        }
    }

    pub(crate) fn child() -> DeviceCapabilities {
        DeviceCapabilities {
            labels: [("acme.example/line".to_owned(), json!("2")), ("acme.example/tags".to_owned(), json!(["a", "b"]))]
                .into(),
            extensions: [("x-acme-extensions".to_owned(), json!({ "any": 1 }))].into(),
            ..device("gw/pump-1")
        }
    }

    pub(crate) fn hosting(cores: f64, memory: &str) -> Hosting {
        Hosting {
            cpus: vec![Cpu { cores, architecture: Architecture::Arm64 }],
            memory: memory.to_owned(),
            storage: "8Gi".to_owned(),
            peripherals: vec![Peripheral {
                kind: "display".to_owned(),
                manufacturer: Some("Acme".to_owned()),
                model: None,
            }],
            interfaces: vec![Interface { kind: "ethernet".to_owned() }],
            otel_collector: true,
            runtimes: vec![Runtime::Custom],
            deployment_types: vec![DeploymentType::Custom],
        }
    }

    #[test]
    fn a_device_that_hosts_nothing_omits_the_hosting_fields() {
        let value = child().to_json();
        assert_eq!(schema::capabilities(&value), Vec::<String>::new());
        let keys: Vec<_> = value["properties"].as_object().unwrap().keys().cloned().collect();
        assert_eq!(keys, ["id", "modelNumber", "serialNumber", "vendor"]);
        let top: Vec<_> = value.as_object().unwrap().keys().cloned().collect();
        assert_eq!(top, ["labels", "properties", "x-acme-extensions"], "nothing else at the top level");
    }

    #[test]
    fn a_device_that_hosts_reports_all_its_resources_by_the_schema() {
        let value = DeviceCapabilities { hosting: Some(hosting(4.0, "12Gi")), ..device("gw") }.to_json();
        assert_eq!(schema::capabilities(&value), Vec::<String>::new());
        assert_eq!(value["properties"]["supportedDeploymentTypes"], json!(["custom"]));
        assert_eq!(value["properties"]["otelCollector"], json!(true));
    }

    #[test]
    fn an_opaque_gateway_lists_cpus_sums_memory_and_storage_and_joins_the_rest() {
        let gateway = DeviceCapabilities { hosting: Some(hosting(4.0, "12Gi")), ..device("gw") };
        let hosts = DeviceCapabilities { hosting: Some(hosting(2.0, "512Mi")), ..device("gw/a") };
        let one = combined(gateway, &[hosts, child()]);
        let value = one.to_json();
        assert_eq!(schema::capabilities(&value), Vec::<String>::new());
        assert_eq!(value["properties"]["cpus"].as_array().unwrap().len(), 2);
        assert_eq!(
            (&value["properties"]["memory"], &value["properties"]["storage"]),
            (&json!("12800Mi"), &json!("16Gi"))
        );
        assert_eq!(value["properties"]["peripherals"].as_array().unwrap().len(), 2);
        assert_eq!(combined(device("gw"), &[child()]).hosting, None, "nobody hosts");
    }

    #[test]
    fn names_of_extensions_and_kinds_of_labels_are_checked() {
        for good in ["x-a-extensions", "x-acme-2-extensions"] {
            assert!(is_extension_name(good), "{good}");
        }
        for bad in ["x--extensions", "x-Acme-extensions", "x-2-extensions", "acme-extensions", "x-acme", "x-extensions"]
        {
            assert!(!is_extension_name(bad), "{bad}");
        }
        for good in [json!("a"), json!(1.5), json!(true), json!(["a", "b"]), json!([1, 2])] {
            assert!(is_label(&good), "{good}");
        }
        for bad in [json!(null), json!({}), json!(["a", 1]), json!([true]), json!([["a"]])] {
            assert!(!is_label(&bad), "{bad}");
        }
    }
}
