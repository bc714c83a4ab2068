//! Reads what `[local]` and every `[[uplink]]` have in common: what is published, how, and how a backlog is sent.

use std::time::Duration;

use crate::config::checked::{Consumer, Filter, LinkPolicy, Publish, Qos, QosSet, Replay, Window};
use crate::config::reader::Reader;
use crate::config::tree::{Item, Node};
use crate::config::value::{boolean, choice, line, millis, size, unsigned};
use crate::contract::Encoding;
use crate::model::{Lane, is_unreserved};

const ENCODINGS: &[(&str, Encoding)] = &[("json", Encoding::Json), ("protobuf", Encoding::Protobuf)];
const ORDERS: &[(&str, bool)] = &[("live-first", true), ("in-order", false)];
const LANES: &[(&str, Lane)] = &[("critical", Lane::Critical), ("bulk", Lane::Bulk)];

/// The embedded broker: it is never away, so it has no windows and no replay.
pub(super) fn local(section: &Reader<'_>, root: &str) -> Consumer {
    Consumer {
        encoding: section.or("encoding", Encoding::Json, choice(ENCODINGS)),
        root: root.to_owned(),
        publish: publish(&section.section("publish", "local.publish"), true),
        qos: qos_set(section, "local.qos"),
        filter: filter(&section.section("filter", "local.filter")),
        window: section.or("window", 200, unsigned(10..=1_000)),
        replay: Replay {
            live_first: true,
            max_records: None,
            max_bytes: None,
            target_latency: Duration::from_millis(250),
        },
        link: LinkPolicy { windows: Vec::new(), daily_budget: None, critical_overrides: false },
        resend_window: Duration::ZERO,
        max_backlog: None,
        max_age: None,
        requests: section.or("requests", true, boolean),
    }
}

/// Another broker; its root is read by the caller.
pub(super) fn uplink(reader: &Reader<'_>, root: String) -> Consumer {
    Consumer {
        encoding: reader.or("encoding", Encoding::Json, choice(ENCODINGS)),
        root,
        publish: publish(&reader.section("publish", "uplink.publish"), false),
        qos: qos_set(reader, "uplink.qos"),
        filter: filter(&reader.section("filter", "uplink.filter")),
        window: reader.or("window", 200, unsigned(10..=1_000)),
        replay: replay(&reader.section("replay", "uplink.replay")),
        link: LinkPolicy {
            windows: reader.list("windows", window).unwrap_or_default(),
            daily_budget: reader.optional("daily_budget", size(1 << 10..=1 << 50)),
            critical_overrides: reader.or("critical_overrides", false, boolean),
        },
        resend_window: reader.or("resend_window", Duration::ZERO, millis(0, 3_600_000)),
        max_backlog: reader.optional("max_backlog", size(1 << 20..=16 << 40)),
        max_age: reader.optional("max_age", millis(60_000, 3_650 * 86_400_000)),
        requests: reader.or("requests", true, boolean),
    }
}

fn publish(section: &Reader<'_>, points: bool) -> Publish {
    Publish {
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

fn pattern(item: &Item) -> Result<String, String> {
    let text = line(64)(item)?;
    if text.chars().all(|c| is_unreserved(c) || c == '*' || c == '?') {
        return Ok(text);
    }
    Err(format!("\"{text}\" is no pattern of ids; `*` stands for any characters, `?` for one, such as \"pump-*\""))
}

fn replay(section: &Reader<'_>) -> Replay {
    Replay {
        live_first: section.or("order", true, choice(ORDERS)),
        max_records: section.optional("max_records", unsigned(1..=1_000_000)),
        max_bytes: section.optional("max_bytes", size(1 << 10..=1 << 40)),
        target_latency: section.or("target_latency", Duration::from_millis(250), millis(10, 60_000)),
    }
}

/// `22:00-06:00`
fn window(item: &Item) -> Result<Window, String> {
    let text = line(20)(item)?;
    let minutes = |part: &str| {
        let (h, m) = part.trim().split_once(':')?;
        let (h, m): (u16, u16) = (h.parse().ok()?, m.parse().ok()?);
        (h < 24 && m < 60).then_some(h * 60 + m)
    };
    let read = || {
        let (from, to) = text.split_once('-')?;
        Some(Window { from: minutes(from)?, to: minutes(to)? })
    };
    read().ok_or_else(|| format!("\"{text}\" is no time of day; write from-to in UTC, such as \"22:00-06:00\""))
}
