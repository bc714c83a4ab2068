//! Reads `hosting`: the resources that a device gives to workloads.

use super::super::super::reader::Reader;
use super::super::super::tree::Item;
use super::super::super::value::{choice, line, number};
use crate::margo::capabilities::{
    Architecture, Cpu, DeploymentType, Hosting, INTERFACES, Interface, PERIPHERALS, Peripheral, Runtime, parse_quantity,
};

fn quantity(item: &Item) -> Result<String, String> {
    let text = line(40)(item)?;
    match parse_quantity(&text) {
        Some(_) => Ok(text),
        None => Err(format!("\"{text}\" is no quantity; write such as \"12Gi\" or \"512Mi\"")),
    }
}

fn one_of(words: &'static [&'static str]) -> impl Fn(&Item) -> Result<String, String> {
    move |item| {
        let text = line(40)(item)?;
        if words.contains(&text.as_str()) {
            Ok(text)
        } else {
            Err(format!("\"{text}\" is none of {}", words.join(", ")))
        }
    }
}

pub(super) fn hosting(section: &Reader<'_>) -> Option<Hosting> {
    const ARCHITECTURES: &[(&str, Architecture)] =
        &[("amd64", Architecture::Amd64), ("arm64", Architecture::Arm64), ("arm", Architecture::Arm)];
    const RUNTIMES: &[(&str, Runtime)] = &[("oci", Runtime::Oci), ("custom", Runtime::Custom)];
    const TYPES: &[(&str, DeploymentType)] =
        &[("compose", DeploymentType::Compose), ("custom", DeploymentType::Custom)];
    let cpus: Vec<Cpu> = section
        .tables("cpu", "margo.hosting.cpu")
        .iter()
        .filter_map(|cpu| {
            let cores = cpu.required("cores", "cores = 4", number).filter(|cores| *cores > 0.0);
            let architecture = cpu.required("architecture", "architecture = \"amd64\"", choice(ARCHITECTURES));
            Some(Cpu { cores: cores?, architecture: architecture? })
        })
        .collect();
    let peripherals: Vec<Peripheral> = section
        .tables("peripheral", "margo.hosting.peripheral")
        .iter()
        .filter_map(|peripheral| {
            let text = |key| peripheral.optional(key, line(200));
            let (manufacturer, model) = (text("manufacturer"), text("model"));
            let kind = peripheral.required("type", "type = \"display\"", one_of(&PERIPHERALS))?;
            Some(Peripheral { kind, manufacturer, model })
        })
        .collect();
    let interfaces = section.list("interfaces", one_of(&INTERFACES)).unwrap_or_default();
    let runtimes = section.list("runtimes", choice(RUNTIMES)).unwrap_or_default();
    let deployment_types = section.list("deployment_types", choice(TYPES)).unwrap_or_default();
    let (memory, storage) = (
        section.required("memory", "memory = \"2Gi\"", quantity),
        section.required("storage", "storage = \"8Gi\"", quantity),
    );
    if cpus.is_empty() || runtimes.is_empty() || deployment_types.is_empty() {
        let text = "a device that hosts has at least one [[cpu]], `runtimes` and `deployment_types`";
        section.context.error(&section.table.place, section.key("cpu"), text);
        return None;
    }
    Some(Hosting {
        cpus,
        memory: memory?,
        storage: storage?,
        peripherals,
        interfaces: interfaces.into_iter().map(|kind| Interface { kind }).collect(),
        otel_collector: true,
        runtimes,
        deployment_types,
    })
}
