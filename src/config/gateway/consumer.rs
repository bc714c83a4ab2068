//! Reads what `[local]` and every `[[uplink]]` have in common: what is published, how, and how a backlog is sent.

use std::time::Duration;

use crate::config::reader::Reader;
use crate::config::tree::{Item, Node};
use crate::config::value::{boolean, choice, line, millis, size, unsigned};
use crate::contract::Encoding;
use crate::model::{Lane, Order, is_unreserved};
use crate::northbound::{
    ConsumerConfig, ConsumerKind, Filter, LinkPolicy, Pattern, PublishSet, Qos, QosSet, ReplayConfig, TimeWindow,
    UplinkConfig,
};

const ENCODINGS: &[(&str, Encoding)] = &[("json", Encoding::Json), ("protobuf", Encoding::Protobuf)];
const ORDERS: &[(&str, Order)] = &[("live-first", Order::LiveFirst), ("in-order", Order::InOrder)];
/// Name of the embedded broker among the consumers.
pub const LOCAL: &str = "local";
const LANES: &[(&str, Lane)] = &[("critical", Lane::Critical), ("bulk", Lane::Bulk)];

/// The embedded broker: it is never away, so it has no windows and no replay.
pub(super) fn local(section: &Reader<'_>, root: &str) -> ConsumerConfig {
    ConsumerConfig {
        name: LOCAL.to_owned(),
        kind: ConsumerKind::Local,
        encoding: section.or("encoding", Encoding::Json, choice(ENCODINGS)),
        root: root.to_owned(),
        publish: publish(&section.section("publish", "local.publish"), true),
        qos: qos_set(section, "local.qos"),
        filter: filter(&section.section("filter", "local.filter")),
        window: section.or("window", 200, unsigned(10..=1_000)),
        replay: ReplayConfig::default(),
        link: LinkPolicy::default(),
        resend_window: Duration::ZERO,
        requests: section.or("requests", true, boolean),
    }
}

/// Another broker; its name, its root and how it is reached are read by the caller.
pub(super) fn uplink(reader: &Reader<'_>, name: String, root: String, reached: UplinkConfig) -> ConsumerConfig {
    ConsumerConfig {
        name,
        kind: ConsumerKind::Uplink(reached),
        encoding: reader.or("encoding", Encoding::Json, choice(ENCODINGS)),
        root,
        publish: publish(&reader.section("publish", "uplink.publish"), false),
        qos: qos_set(reader, "uplink.qos"),
        filter: filter(&reader.section("filter", "uplink.filter")),
        window: reader.or("window", 200, unsigned(10..=1_000)),
        replay: replay(&reader.section("replay", "uplink.replay")),
        link: LinkPolicy {
            windows: reader.list("windows", window).unwrap_or_default(),
            daily_bytes: reader.optional("daily_budget", size(1 << 10..=1 << 50)),
            critical_overrides: reader.or("critical_overrides", false, boolean),
        },
        resend_window: reader.or("resend_window", Duration::ZERO, millis(0, 3_600_000)),
        requests: reader.or("requests", true, boolean),
    }
}

fn publish(section: &Reader<'_>, points: bool) -> PublishSet {
    PublishSet {
        telemetry: section.or("telemetry", true, boolean),
        points: section.or("points", points, boolean),
        events: section.or("events", true, boolean),
        gaps: section.or("gaps", true, boolean),
        results: section.or("results", true, boolean),
        state: section.or("state", true, boolean),
    }
}

/// `qos = 1` for everything, or a table with a value for each kind.
fn qos_set(reader: &Reader<'_>, kind: &'static str) -> QosSet {
    let one = match reader.item("qos").map(|item| &item.node) {
        Some(Node::Table(_)) | None => Qos::AtLeastOnce,
        Some(_) => {
            let all = reader.or("qos", Qos::AtLeastOnce, qos);
            return QosSet { telemetry: all, points: all, events: all, gaps: all, results: all, state: all };
        }
    };
    let section = reader.section("qos", kind);
    QosSet {
        telemetry: section.or("telemetry", one, qos),
        points: section.or("points", one, qos),
        events: section.or("events", one, qos),
        gaps: section.or("gaps", one, qos),
        results: section.or("results", one, qos),
        state: section.or("state", one, qos),
    }
}

/// Quality of service 0 or 1.
fn qos(item: &Item) -> Result<Qos, String> {
    match unsigned::<u8>(0..=2)(item)? {
        0 => Ok(Qos::AtMostOnce),
        1 => Ok(Qos::AtLeastOnce),
        _ => Err("is 2; write 0 or 1 (records are told apart by their sequence number, so 1 is enough)".to_owned()),
    }
}

fn filter(section: &Reader<'_>) -> Filter {
    Filter {
        devices: section.list("devices", pattern).unwrap_or_default(),
        points: section.list("points", pattern).unwrap_or_default(),
        lanes: section.list("lanes", choice(LANES)).unwrap_or_else(|| Lane::ALL.to_vec()),
    }
}

fn pattern(item: &Item) -> Result<Pattern, String> {
    let text = line(64)(item)?;
    if text.chars().all(|c| is_unreserved(c) || c == '*' || c == '?') {
        return Ok(Pattern::new(&text));
    }
    Err(format!("\"{text}\" is no pattern of ids; `*` stands for any characters, `?` for one, such as \"pump-*\""))
}

fn replay(section: &Reader<'_>) -> ReplayConfig {
    ReplayConfig {
        order: section.or("order", Order::LiveFirst, choice(ORDERS)),
        max_records: section.optional("max_records", unsigned(1..=1_000_000)),
        max_bytes: section.optional("max_bytes", size(1 << 10..=1 << 40)),
        target_latency: section.or("target_latency", Duration::from_millis(250), millis(10, 60_000)),
    }
}

/// `22:00-06:00`
fn window(item: &Item) -> Result<TimeWindow, String> {
    line(20)(item)?.parse::<TimeWindow>().map_err(|e| e.to_string())
}
