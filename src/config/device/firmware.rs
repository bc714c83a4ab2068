//! Reads `[firmware]` of a device or profile: how this kind of device takes firmware.

use std::time::Duration;

use crate::config::checked::Device;
use crate::config::problem::Place;
use crate::config::reader::{Context, Reader};
use crate::config::tree::Item;
use crate::config::value::{choice, line, millis, size, unsigned};
use crate::management::firmware::{DeviceForm, FileRecordProfile, Way};

#[derive(Clone, Copy)]
enum Method {
    Files,
    Mqtt,
}

const METHODS: &[(&str, Method)] = &[("modbus-files", Method::Files), ("mqtt", Method::Mqtt)];

/// Keys that only one of the methods knows.
const KEYS: &[&str] = &[
    "first_file",
    "records_per_file",
    "registers_per_write",
    "status",
    "command",
    "size",
    "received",
    "digest",
    "version",
    "version_registers",
    "begin",
    "activate",
    "roll_back",
    "idle",
    "receiving",
    "verified",
    "activating",
    "failed",
    "topic",
    "chunk",
    "patience",
];

/// `profile` is the name of the device's profile: what manifests name if the section does not say otherwise.
pub(super) fn read(section: &Reader<'_>, profile: Option<&str>) -> Option<DeviceForm> {
    let method = section.required("method", "method = \"modbus-files\" or \"mqtt\"", choice(METHODS));
    let target = match (section.optional("target", target), profile) {
        (Some(target), _) => Some(target),
        (None, Some(profile)) if !section.has("target") => Some(profile.to_owned()),
        (None, _) if section.has("target") => None,
        (None, _) => {
            let text = "`target` is missing; write what manifests for this kind of device name: target = \"pump-p7\"";
            section.context.error(&section.table.place, section.key("target"), text);
            None
        }
    };
    let prove_within = section.or("prove_within", Duration::from_secs(300), millis(1_000, 3_600_000));
    let rate = section.optional("rate", size(64..=1 << 20));
    let Some(method) = method else {
        // Which keys belong here is not known; only what is missing is told.
        for key in KEYS {
            section.has(key);
        }
        return None;
    };
    let way = match method {
        Method::Files => Way::FileRecords(files(section)?),
        Method::Mqtt => Way::Chunks {
            topic: section.optional("topic", topic),
            size: section.or("chunk", 4 << 10, size(64..=256 << 10)) as usize,
            patience: section.or("patience", Duration::from_secs(5), millis(100, 60_000)),
        },
    };
    Some(DeviceForm { target: target?, prove_within, rate, way })
}

fn files(section: &Reader<'_>) -> Option<FileRecordProfile> {
    let register = |key, example| section.required(key, example, unsigned::<u16>(0..=0xFFFF));
    let number = |key, default| section.or(key, default, unsigned::<u16>(0..=0xFFFF));
    let (status, command) = (register("status", "status = 0"), register("command", "command = 1"));
    let (size, version) = (register("size", "size = 2"), register("version", "version = 32"));
    let profile = FileRecordProfile {
        first_file: section.or("first_file", 1, unsigned(1..=0xFFFF)),
        records_per_file: section.or("records_per_file", 10_000, unsigned(1..=10_000)),
        registers_per_write: section.or("registers_per_write", 120, unsigned(1..=122)),
        received: section.optional("received", unsigned(0..=0xFFFE)),
        digest: section.optional("digest", unsigned(0..=0xFFF0)),
        version_registers: section.or("version_registers", 16, unsigned(1..=125)),
        commands: [number("begin", 1), number("activate", 2), number("roll_back", 3)],
        states: [
            number("idle", 0),
            number("receiving", 1),
            number("verified", 2),
            number("activating", 3),
            number("failed", 4),
        ],
        status: status?,
        command: command?,
        size: size?,
        version: version?,
    };
    for (keys, numbers) in [
        ("begin, activate and roll_back", &profile.commands[..]),
        ("idle, receiving, verified, activating and failed", &profile.states[..]),
    ] {
        if (1..numbers.len()).any(|at| numbers[..at].contains(&numbers[at])) {
            section.error("method", format!("{keys} must be different numbers"));
            return None;
        }
    }
    Some(profile)
}

/// What stands behind `target:` in a manifest.
fn target(item: &Item) -> Result<String, String> {
    let text = line(64)(item)?;
    let legal = text.chars().all(crate::model::is_unreserved) && !text.starts_with("gateway");
    if legal {
        Ok(text)
    } else {
        Err(format!("\"{text}\" cannot be a target; use A-Z a-z 0-9 . _ ~ -, not gateway…"))
    }
}

fn topic(item: &Item) -> Result<String, String> {
    let text = line(200)(item)?;
    let legal = !text.contains(['+', '#']) && !text.starts_with(['/', '$']) && !text.ends_with('/');
    if legal { Ok(text) } else { Err(format!("\"{text}\" is no base topic; write it like \"vendor/pump-1\"")) }
}

/// Chunks travel over the embedded broker; without one they cannot.
pub(in crate::config) fn check_broker(context: &Context<'_>, has_broker: bool, devices: &[Device]) {
    let by_mqtt = |device: &&Device| {
        matches!(device.management.firmware.as_ref().map(|form| &form.way), Some(Way::Chunks { .. }))
    };
    for device in devices.iter().filter(by_mqtt).filter(|_| !has_broker) {
        let text = "\"mqtt\" goes over the embedded broker, which is switched off: configure a [[broker.listener]]";
        context.error(&Place::file(&device.file), "firmware.method", text);
    }
}
