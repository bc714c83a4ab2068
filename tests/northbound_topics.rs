//! `docs/topics.md` against the contract: every example parses, every topic, message, field and enum value is there.
#![allow(clippy::unwrap_used, reason = "a test may stop at what it did not expect")]

use std::collections::BTreeSet;

use fieldgate::contract::{ContractMessage, Encoding, topics, v1};
use fieldgate::management::desired::Target;
use fieldgate::management::request::Ask;
use fieldgate::model::DeviceId;

const DOC: &str = include_str!("../docs/topics.md");
const PROTOS: [&str; 3] = [
    include_str!("../proto/fieldgate/v1/telemetry.proto"),
    include_str!("../proto/fieldgate/v1/gateway.proto"),
    include_str!("../proto/fieldgate/v1/device.proto"),
];

/// (heading, message, example) of every section with an example.
fn sections() -> Vec<(&'static str, &'static str, &'static str)> {
    DOC.split("\n## ")
        .skip(1)
        .map(|section| {
            let (heading, body) = section.split_once('\n').unwrap();
            let message = heading.rsplit('`').nth(1).unwrap();
            let example = body.split("```json\n").nth(1).unwrap_or_else(|| panic!("{heading} has no example"));
            (heading, message, example.split("```").next().unwrap())
        })
        .collect()
}

fn parse<M: ContractMessage + PartialEq + std::fmt::Debug>(heading: &str, example: &str) {
    let message =
        M::decode_as(Encoding::Json, example.as_bytes()).unwrap_or_else(|e| panic!("example of {heading}: {e}"));
    assert_ne!(message, M::default(), "{heading}");
    let again = M::decode_as(Encoding::Protobuf, &message.encode_as(Encoding::Protobuf)).unwrap();
    assert_eq!(message, again, "{heading}");
}

#[test]
fn every_example_is_the_message_that_it_names() {
    for (heading, message, example) in sections() {
        match message {
            "Status" => parse::<v1::Status>(heading, example),
            "Health" => parse::<v1::Health>(heading, example),
            "Gap" => parse::<v1::Gap>(heading, example),
            "Event" => parse::<v1::Event>(heading, example),
            "Onboarding" => parse::<v1::Onboarding>(heading, example),
            "Capabilities" => parse::<v1::Capabilities>(heading, example),
            "Telemetry" => parse::<v1::Telemetry>(heading, example),
            "Point" => parse::<v1::Point>(heading, example),
            "Command" => parse::<v1::Command>(heading, example),
            "CommandResult" => parse::<v1::CommandResult>(heading, example),
            "ManagementRequest" => parse::<v1::ManagementRequest>(heading, example),
            "ManagementResult" => parse::<v1::ManagementResult>(heading, example),
            "Announcement" => parse::<v1::Announcement>(heading, example),
            "DesiredConfig" => parse::<v1::DesiredConfig>(heading, example),
            "ReportedConfig" => parse::<v1::ReportedConfig>(heading, example),
            "DesiredFirmware" => parse::<v1::DesiredFirmware>(heading, example),
            "FirmwareRequest" => parse::<v1::FirmwareRequest>(heading, example),
            "FirmwareStatus" => parse::<v1::FirmwareStatus>(heading, example),
            "DeviceClock" => parse::<v1::DeviceClock>(heading, example),
            "AuditEntry" => parse::<v1::AuditEntry>(heading, example),
            other => panic!("{heading}: add {other} to this test"),
        }
    }
}

#[test]
fn every_topic_has_its_row_and_its_section() {
    let d = DeviceId::new("d").unwrap();
    let topics: BTreeSet<String> = [
        topics::STATUS.to_owned(),
        topics::HEALTH.to_owned(),
        topics::GAPS.to_owned(),
        topics::EVENTS.to_owned(),
        topics::onboarding(&d),
        topics::capabilities(&d),
        topics::telemetry("d"),
        topics::point("d", "p"),
        topics::events("d"),
        topics::command(&d),
        topics::command_result("d"),
        "devices/d/onboarding/request".to_owned(),
        "devices/d/onboarding/announce".to_owned(),
        topics::management_result("approve", "d"),
        topics::config_desired(&d),
        Target::Device(d.clone()).topic(),
        topics::management_result("configure", "d"),
        topics::device_time(&d),
        topics::firmware_desired("d"),
        "devices/d/firmware/request".to_owned(),
        topics::firmware_status("d"),
        topics::management_result("firmware-offer", "d"),
        "firmware/desired".to_owned(),
        "firmware/request".to_owned(),
        topics::firmware_status(""),
        topics::management_result("firmware-offer", ""),
        "management/request".to_owned(),
        topics::management_result("approve", ""),
        "config/desired".to_owned(),
        Target::Gateway.topic(),
        topics::management_result("configure", ""),
    ]
    .into_iter()
    .map(|t| t.replace("devices/d", "devices/{d}").replace("points/p", "points/{p}"))
    .collect();
    let first = |text: &'static str| text.split('`').nth(1).unwrap().to_owned();
    let rows: BTreeSet<String> = DOC.lines().filter(|l| l.starts_with("| `")).map(first).collect();
    assert_eq!(rows, topics, "rows of the table");
    let headings: BTreeSet<String> =
        sections().iter().filter(|(h, ..)| h.starts_with('`')).map(|(h, ..)| first(h)).collect();
    assert_eq!(headings, topics, "headings");
    // A topic function that this test does not know of is missing here, and so in the documentation.
    let known = [
        "default_root",
        "onboarding",
        "capabilities",
        "telemetry",
        "point",
        "events",
        "command",
        "command_result",
        "device_time",
        "firmware_desired",
        "config_desired",
        "firmware_status",
        "management_result",
        "parse_point",
    ];
    for line in include_str!("../src/contract/topics.rs").lines() {
        if let Some(name) = line.strip_prefix("pub fn ").and_then(|l| l.split('(').next()) {
            assert!(known.contains(&name), "document the topic of topics::{name} and add it to this test");
        }
    }
    for filter in topics::RequestTopic::FILTERS {
        assert!(topics.contains(&filter.replacen('+', "{d}", 1)), "{filter}");
    }
    for filter in Ask::FILTERS {
        assert!(
            topics::RequestTopic::FILTERS.contains(&filter),
            "management waits for {filter}, which nobody subscribes to"
        );
    }
}

/// Words of the proto files: message and enum names, fields by their JSON name, enum values.
fn words_of_the_contract() -> BTreeSet<String> {
    let mut words = BTreeSet::new();
    for line in PROTOS.iter().flat_map(|p| p.lines()).map(str::trim).filter(|l| !l.starts_with("//")) {
        if let Some(name) = line.strip_prefix("message ").map(|l| l.trim_end_matches([' ', '{'])) {
            words.insert(name.to_owned());
        } else if let Some((left, _)) =
            line.split_once(" = ").filter(|_| line.ends_with(';') && !line.starts_with("syntax"))
        {
            let name = left.rsplit(' ').next().unwrap();
            if name.ends_with("_UNSPECIFIED") {
                continue;
            }
            words.insert(if name.chars().all(|c| c.is_ascii_uppercase() || c == '_') {
                name.to_owned()
            } else {
                camel(name)
            });
        }
    }
    words
}

fn camel(snake: &str) -> String {
    let mut parts = snake.split('_');
    let mut out = parts.next().unwrap().to_owned();
    for part in parts {
        out.push_str(&part[..1].to_uppercase());
        out.push_str(&part[1..]);
    }
    out
}

#[test]
fn every_message_field_and_enum_value_is_mentioned() {
    let words = words_of_the_contract();
    assert!(
        words.contains("ConsumerHealth") && words.contains("replaySecondsLeft") && words.contains("SYNCHRONISED"),
        "{words:?}"
    );
    let mentioned = |word: &str| [format!("`{word}`"), format!("\"{word}\"")].iter().any(|w| DOC.contains(w.as_str()));
    let missing: Vec<_> = words.iter().filter(|w| !mentioned(w)).collect();
    assert!(missing.is_empty(), "docs/topics.md does not mention {missing:?}");
}
