//! What the fleet manager is told about a deployment, made from the records.

use super::record::{Placement, Record};
use crate::margo::api::{Component, DeploymentStatus, State, StatusError, overall};
use crate::margo::words::{DevicePath, Digest};

/// How a deployment stands on one device.
pub(super) fn of_placement(
    record: &Record,
    placement: &Placement,
    device: Option<DevicePath>,
    head_version: u64,
) -> DeploymentStatus {
    let leaving = placement.leaving;
    let components: Vec<Component> = record
        .names
        .iter()
        .map(|name| match placement.parts.iter().find(|part| part.name == *name) {
            // The new revision cannot be used, whatever is in force of the old one.
            _ if record.failed.is_some() && !leaving => {
                Component { name: name.clone(), state: State::Failed, error: record.failed.clone() }
            }
            Some(part) => Component { name: name.clone(), state: part.state, error: part.error.clone() },
            // A component of the new revision where the old one is being undone.
            None => {
                let state = match leaving {
                    true if placement.parts.is_empty() => State::Removed,
                    true => overall(placement.parts.iter().map(|part| part.state)),
                    false => State::Pending,
                };
                Component { name: name.clone(), state, error: None }
            }
        })
        .collect();
    let error = components.iter().filter(|c| c.state == State::Failed).find_map(|c| c.error.clone());
    let error = error.or_else(|| components.iter().find_map(|c| c.error.clone()));
    DeploymentStatus {
        deployment_id: record.id.clone(),
        adopted_manifest_version: adopted(record, placement, head_version),
        device,
        state: overall(components.iter().map(|c| c.state)),
        error,
        components,
    }
}

/// The newest manifest whose revision this device has begun.
pub(super) fn adopted(record: &Record, placement: &Placement, head_version: u64) -> u64 {
    match &placement.begun {
        // The removal is what the newest manifest wants, and it has begun.
        _ if placement.leaving && record.wanted.is_none() => head_version.max(1),
        Some(begun) if record.wanted == Some(begun.digest) => head_version.max(begun.version),
        Some(begun) => begun.version,
        // Nothing older is held: the manifest that brought the deployment is all there is to name.
        None => record.arrived,
    }
}

/// How a deployment stands that is on no device.
pub(super) fn of_record(record: &Record, device: Option<DevicePath>, head_version: u64) -> DeploymentStatus {
    let (state, error) = match (&record.wanted, &record.failed) {
        (None, _) => (State::Removed, None),
        (Some(_), Some(error)) => (State::Failed, Some(error.clone())),
        (Some(_), None) => (State::Pending, None),
    };
    let component = |name: &String| Component { name: name.clone(), state, error: error.clone() };
    DeploymentStatus {
        deployment_id: record.id.clone(),
        adopted_manifest_version: if record.wanted.is_none() {
            head_version.max(record.arrived)
        } else {
            record.arrived
        },
        device,
        state,
        error: error.clone(),
        components: record.names.iter().map(component).collect(),
    }
}

/// How a deployment stands over all of its devices.
pub(super) fn of_all(
    record: &Record,
    placements: &[&Placement],
    device: Option<DevicePath>,
    head_version: u64,
) -> DeploymentStatus {
    let each: Vec<DeploymentStatus> =
        placements.iter().map(|placement| of_placement(record, placement, None, head_version)).collect();
    let component = |name: &String| {
        let states = each.iter().flat_map(|status| &status.components).filter(|c| c.name == *name);
        let worst = overall(states.clone().map(|c| c.state));
        Component {
            name: name.clone(),
            state: worst,
            error: states.filter(|c| c.state == worst).find_map(|c| c.error.clone()),
        }
    };
    let components: Vec<Component> = record.names.iter().map(component).collect();
    DeploymentStatus {
        deployment_id: record.id.clone(),
        adopted_manifest_version: each
            .iter()
            .map(|status| status.adopted_manifest_version)
            .min()
            .unwrap_or(record.arrived),
        device,
        state: overall(components.iter().map(|c| c.state)),
        error: components.iter().find_map(|c| c.error.clone()),
        components,
    }
}

pub(super) fn digest(status: &DeploymentStatus) -> Digest {
    Digest::of(status.to_json().to_string().as_bytes())
}

/// The error of a refusal, as a status carries it.
pub(super) fn error(source: &DevicePath, code: &str, message: &str) -> StatusError {
    let message: String = message.chars().map(|c| if c.is_control() { ' ' } else { c }).take(500).collect();
    StatusError::of(source, code, if message.is_empty() { code } else { &message })
}
