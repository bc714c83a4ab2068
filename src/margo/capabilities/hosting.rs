//! Resources of a device that hosts workloads, as somebody configured them.

use serde_json::{Map, Value, json};

/// Processor architectures that the standard names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Architecture {
    Amd64,
    Arm64,
    Arm,
}

impl Architecture {
    /// As the standard writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
            Self::Arm => "arm",
        }
    }
}

/// One processor.
#[derive(Debug, Clone, PartialEq)]
pub struct Cpu {
    /// Cores that workloads may have.
    pub cores: f64,
    /// Architecture.
    pub architecture: Architecture,
}

/// One peripheral.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peripheral {
    /// `gpu`, `display`, `camera`, `microphone` or `speaker`.
    pub kind: String,
    /// Who made it.
    pub manufacturer: Option<String>,
    /// Which.
    pub model: Option<String>,
}

/// One interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// `ethernet`, `wifi`, `cellular`, `bluetooth`, `usb`, `canbus` or `rs232`.
    pub kind: String,
}

/// What runs components.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Runtime {
    Oci,
    Custom,
}

/// Kinds of deployments that can be hosted here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum DeploymentType {
    Compose,
    Custom,
}

/// Names of peripherals and interfaces in the standard.
pub(crate) const PERIPHERALS: [&str; 5] = ["gpu", "display", "camera", "microphone", "speaker"];
pub(crate) const INTERFACES: [&str; 7] = ["ethernet", "wifi", "cellular", "bluetooth", "usb", "canbus", "rs232"];

/// What a device gives to workloads.
#[derive(Debug, Clone, PartialEq)]
pub struct Hosting {
    /// Processors, at least one.
    pub cpus: Vec<Cpu>,
    /// Memory, such as `12Gi`.
    pub memory: String,
    /// Storage, such as `64Gi`.
    pub storage: String,
    /// Peripherals.
    pub peripherals: Vec<Peripheral>,
    /// Interfaces.
    pub interfaces: Vec<Interface>,
    /// Whether an OpenTelemetry collector receives OTLP; a device that hosts must have one.
    pub otel_collector: bool,
    /// Runtimes, at least one.
    pub runtimes: Vec<Runtime>,
    /// Kinds of deployments, at least one.
    pub deployment_types: Vec<DeploymentType>,
}

impl Hosting {
    pub(super) fn write_to(&self, properties: &mut Map<String, Value>) {
        let cpu = |cpu: &Cpu| json!({ "cores": cpu.cores, "architecture": cpu.architecture.as_str() });
        let runtime = |runtime: &Runtime| match runtime {
            Runtime::Oci => "oci",
            Runtime::Custom => "custom",
        };
        let kind = |kind: &DeploymentType| match kind {
            DeploymentType::Compose => "compose",
            DeploymentType::Custom => "custom",
        };
        let mut set = |name: &str, value: Value| properties.insert(name.to_owned(), value);
        set("cpus", self.cpus.iter().map(cpu).collect());
        set("memory", self.memory.clone().into());
        set("storage", self.storage.clone().into());
        set("peripherals", self.peripherals_json());
        set("interfaces", self.interfaces_json());
        set("otelCollector", self.otel_collector.into());
        set("supportedRuntimes", self.runtimes.iter().map(runtime).collect());
        set("supportedDeploymentTypes", self.deployment_types.iter().map(kind).collect());
    }

    pub(crate) fn peripherals_json(&self) -> Value {
        let one = |peripheral: &Peripheral| {
            let mut value = json!({ "type": peripheral.kind });
            if let Some(manufacturer) = &peripheral.manufacturer {
                value["manufacturer"] = manufacturer.as_str().into();
            }
            if let Some(model) = &peripheral.model {
                value["model"] = model.as_str().into();
            }
            value
        };
        self.peripherals.iter().map(one).collect()
    }

    pub(crate) fn interfaces_json(&self) -> Value {
        self.interfaces.iter().map(|interface| json!({ "type": interface.kind })).collect()
    }

    /// Everybody's resources as those of one device; `None` when nobody has any.
    pub(super) fn combined<'a>(all: impl Iterator<Item = &'a Self>) -> Option<Self> {
        all.fold(None, |sum: Option<Self>, next| {
            let Some(mut sum) = sum else { return Some(next.clone()) };
            sum.cpus.extend(next.cpus.iter().cloned());
            sum.memory = add(&sum.memory, &next.memory);
            sum.storage = add(&sum.storage, &next.storage);
            sum.peripherals.extend(next.peripherals.iter().cloned());
            sum.interfaces.extend(next.interfaces.iter().cloned());
            sum.otel_collector &= next.otel_collector;
            let runtimes = next.runtimes.iter().filter(|r| !sum.runtimes.contains(r)).copied().collect::<Vec<_>>();
            sum.runtimes.extend(runtimes);
            // Placement is ours: what one of them takes is brought to that one.
            let kinds = next.deployment_types.iter().filter(|kind| !sum.deployment_types.contains(kind));
            let kinds = kinds.copied().collect::<Vec<_>>();
            sum.deployment_types.extend(kinds);
            Some(sum)
        })
    }
}

const UNITS: [(&str, u64); 10] = [
    ("Ei", 1 << 60),
    ("Pi", 1 << 50),
    ("Ti", 1 << 40),
    ("Gi", 1 << 30),
    ("Mi", 1 << 20),
    ("Ki", 1 << 10),
    ("T", 1_000_000_000_000),
    ("G", 1_000_000_000),
    ("M", 1_000_000),
    ("k", 1_000),
];

/// Bytes of a quantity such as `12Gi`, `512M` or `1024`; `None` when it is none.
pub fn parse_quantity(text: &str) -> Option<u64> {
    let (number, factor) =
        UNITS.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor))).unwrap_or((text, 1));
    if !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()) {
        return number.parse::<u64>().ok()?.checked_mul(factor);
    }
    let fraction = number
        .parse::<f64>()
        .ok()
        .filter(|n| n.is_finite() && *n >= 0.0 && number.starts_with(|c: char| c.is_ascii_digit()))?;
    let bytes = fraction * factor as f64;
    (bytes < 9e18).then_some(bytes as u64)
}

/// The sum, in the largest binary unit that holds it whole.
fn add(a: &str, b: &str) -> String {
    let sum = parse_quantity(a).unwrap_or(0).saturating_add(parse_quantity(b).unwrap_or(0));
    let unit = UNITS.iter().find(|(unit, factor)| unit.ends_with('i') && sum > 0 && sum.is_multiple_of(*factor));
    unit.map_or_else(|| sum.to_string(), |(unit, factor)| format!("{}{unit}", sum / factor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_and_added() {
        for (text, bytes) in [("12Gi", 12 << 30), ("512M", 512_000_000), ("1024", 1024), ("1.5Ki", 1536), ("0", 0)] {
            assert_eq!(parse_quantity(text), Some(bytes), "{text}");
        }
        for bad in ["", "Gi", "-1Gi", "x", "1e400", "99999999999999999999", "17Ei", "+1", "inf"] {
            assert_eq!(parse_quantity(bad), None, "{bad}");
        }
        assert_eq!(add("12Gi", "512Mi"), "12800Mi");
        assert_eq!(add("1", "2"), "3");
    }
}
