//! The plant's inventory as the fleet manager sees it: what is reported, and where deployments may go.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::capabilities::{DeviceCapabilities, UNKNOWN, combined};
use super::config::{Config, Details, Mode};
use super::plant::{Child, Functions, Identity, Inventory};
use super::reconcile::{DeviceView, Scope, Wildcard};
use super::words::DevicePath;
use crate::model::DeviceId;

/// Deepest nesting of devices behind devices.
const MAX_DEPTH: usize = 3;

/// Name of our own extension.
const EXTENSION: &str = "x-fieldgate-extensions";

/// Both views.
#[derive(Debug, Default)]
pub struct Survey {
    /// To report.
    pub report: Vec<DeviceCapabilities>,
    /// To place deployments on.
    pub places: BTreeMap<DevicePath, DeviceView>,
}

/// What one client speaks for: the gateway, or one device of a transparent one.
pub fn scope(config: &Config, only: Option<&DeviceId>) -> Option<Scope> {
    match only {
        Some(device) => {
            Some(Scope { top: DevicePath::new(device.as_str()).ok()?, opaque: false, wildcard: Wildcard::Refused })
        }
        None => {
            let opaque = config.mode == Mode::Opaque;
            Some(Scope { top: config.device.clone(), opaque, wildcard: config.wildcard })
        }
    }
}

/// Makes both views of an inventory.
pub fn survey(config: &Config, scope: &Scope, only: Option<&DeviceId>, inventory: &Inventory) -> Survey {
    let mut survey = Survey::default();
    let children = paths(config, &scope.top, only, &inventory.children);
    let gateway = only.is_none().then(|| {
        let view = view(&inventory.gateway, inventory.functions, &config.gateway, config.delegate);
        let view = DeviceView { lost: inventory.lost.clone(), ..view };
        survey.places.insert(scope.top.clone(), view);
        capabilities(scope.top.clone(), &inventory.gateway, &config.gateway)
    });
    let nothing = Details::default();
    for (path, child) in children {
        let details = config.devices.get(&child.id).unwrap_or(&nothing);
        let view = DeviceView {
            device: Some(child.id.clone()),
            hardware: child.hardware.clone(),
            protocol: child.protocol.clone(),
            reachable: child.reachable,
            connecting: child.connecting,
            lost: child.lost.clone(),
            ..view(&child.identity, child.functions, details, config.delegate)
        };
        survey.report.push(with_registry(capabilities(path.clone(), &child.identity, details), child, view.functions));
        survey.places.insert(path, view);
    }
    if let Some(gateway) = gateway {
        match scope.opaque {
            true => survey.report = vec![combined(gateway, &survey.report)],
            false => survey.report.push(gateway),
        }
    }
    survey
}

/// Children with their paths. One whose parent is not there, or that is behind itself, stands directly below the gateway.
fn paths<'a>(
    config: &Config,
    top: &DevicePath,
    only: Option<&DeviceId>,
    children: &'a [Child],
) -> Vec<(DevicePath, &'a Child)> {
    if let Some(only) = only {
        return children.iter().filter(|child| child.id == *only).map(|child| (top.clone(), child)).collect();
    }
    let by_id: BTreeMap<&DeviceId, &Child> = children.iter().map(|child| (&child.id, child)).collect();
    let path = |child: &'a Child| {
        let mut chain = vec![&child.id];
        let mut at = child;
        let parent = |child: &Child| by_id.get(config.devices.get(&child.id)?.parent.as_ref()?).copied();
        while let Some(parent) = parent(at) {
            if chain.len() >= MAX_DEPTH || chain.contains(&&parent.id) {
                chain.truncate(1);
                break;
            }
            chain.push(&parent.id);
            at = parent;
        }
        chain.iter().rev().try_fold(top.clone(), |path, id| path.child(id.as_str())).ok()
    };
    children.iter().filter_map(|child| Some((path(child)?, child))).collect()
}

/// The gateway itself; a child has more to it.
fn view(identity: &Identity, able: Functions, details: &Details, default: Functions) -> DeviceView {
    let given = details.delegate.unwrap_or(default);
    let functions = Functions {
        configuration: able.configuration && given.configuration,
        recipe: able.recipe && given.recipe,
        firmware: able.firmware && given.firmware,
    };
    let identity = Identity {
        vendor: details.vendor.clone().or_else(|| identity.vendor.clone()),
        model: details.model.clone().or_else(|| identity.model.clone()),
        serial: details.serial.clone().or_else(|| identity.serial.clone()),
    };
    DeviceView {
        device: None,
        identity,
        hardware: String::new(),
        protocol: String::new(),
        functions,
        able,
        reachable: true,
        connecting: false,
        engine: details.engine.as_ref().map(|engine| engine.allowed.clone()),
        lost: BTreeSet::new(),
    }
}

fn takes(functions: Functions) -> Vec<&'static str> {
    let all =
        [("configuration", functions.configuration), ("recipe", functions.recipe), ("firmware", functions.firmware)];
    all.into_iter().filter_map(|(name, given)| given.then_some(name)).collect()
}

fn capabilities(id: DevicePath, identity: &Identity, details: &Details) -> DeviceCapabilities {
    let known = |said: &Option<String>, revealed: &Option<String>| {
        said.clone().or_else(|| revealed.clone()).filter(|text| !text.is_empty()).unwrap_or_else(|| UNKNOWN.to_owned())
    };
    DeviceCapabilities {
        id,
        vendor: known(&details.vendor, &identity.vendor),
        model: known(&details.model, &identity.model),
        serial: known(&details.serial, &identity.serial),
        hosting: details.hosting.clone(),
        labels: details.labels.clone(),
        extensions: details.extensions.clone(),
    }
}

/// With what the registry knows: labels to choose devices by, and an extension with what was discovered. The configuration's
/// own words come first; an empty label takes ours away.
fn with_registry(mut device: DeviceCapabilities, child: &Child, given: Functions) -> DeviceCapabilities {
    let mut labels = vec![
        ("fieldgate.dev/protocol", Value::from(child.protocol.as_str())),
        ("fieldgate.dev/tier", child.tier.into()),
    ];
    let takes = takes(given);
    if !takes.is_empty() {
        labels.push(("fieldgate.dev/takes", takes.into()));
    }
    for (name, value) in labels {
        device.labels.entry(name.to_owned()).or_insert(value);
    }
    device.labels.retain(|_, value| *value != json!(""));
    if let Some(firmware) = &child.firmware {
        device.extensions.entry(EXTENSION.to_owned()).or_insert_with(|| json!({ "firmware": firmware }));
    }
    device
}

#[cfg(test)]
mod tests;
