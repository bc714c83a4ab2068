//! Reads `[[uplink]]`: other brokers that get what the store keeps.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{ENCODINGS, qos, topic_root};
use crate::config::checked::{
    ClientTls, Filter, Identity, MqttVersion, Qos, Replay, ReplayOrder, Server, Uplink, Window,
};
use crate::config::problem::Place;
use crate::config::reader::Reader;
use crate::config::secret::twice;
use crate::config::tree::Item;
use crate::config::value::{boolean, choice, host_port, line, millis, size, unsigned};
use crate::contract::Encoding;
use crate::model::is_unreserved;

const VERSIONS: &[(&str, MqttVersion)] = &[("3.1.1", MqttVersion::V4), ("5", MqttVersion::V5)];
const ORDERS: &[(&str, ReplayOrder)] = &[("live-first", ReplayOrder::LiveFirst), ("in-order", ReplayOrder::InOrder)];

pub(super) fn read(root: &Reader<'_>, gateway: &Identity) -> Vec<Uplink> {
    let mut seen: BTreeMap<String, Place> = BTreeMap::new();
    let mut uplinks = Vec::new();
    for reader in root.tables("uplink", "uplink") {
        let Some(uplink) = uplink(&reader, gateway) else { continue };
        if let Some(first) = seen.insert(uplink.name.clone(), reader.place("name").clone()) {
            reader.error("name", twice("uplink", &uplink.name, &first));
        }
        uplinks.push(uplink);
    }
    uplinks
}

fn uplink(reader: &Reader<'_>, gateway: &Identity) -> Option<Uplink> {
    let name = reader.required("name", "name = \"site\"", name);
    let servers = reader.list("servers", server).unwrap_or_default();
    if servers.is_empty() {
        let text = "`servers` is missing or empty; write servers = [\"mqtts://broker.example:8883\"]";
        reader.context.error(reader.place("servers"), reader.key("servers"), text);
    }
    let encrypted = servers.iter().any(|s| s.tls);
    let tls = client_tls(&reader.section("tls", "uplink.tls"));
    if reader.has("tls") && !encrypted && !servers.is_empty() {
        reader.error("tls", "is set, but no server is spoken to over TLS; write mqtts:// in `servers`");
    }
    let user = reader.optional("user", line(1000));
    let password = reader.secret("password");
    if reader.has("password") && !reader.has("user") {
        reader.error("password", "needs a `user`");
    }
    if reader.has("password")
        && servers.iter().any(|s| !s.tls && s.host != "localhost" && !s.host.starts_with("127.") && s.host != "::1")
    {
        reader.warn("password", "is sent readably to a server without TLS; write mqtts:// in `servers`");
    }
    let version = reader.or("version", MqttVersion::V5, choice(VERSIONS));
    let rest = Uplink {
        name: String::new(),
        servers,
        version,
        client_id: reader.optional("client_id", line(128)).unwrap_or_else(|| format!("fieldgate-{}", gateway.id)),
        user,
        password,
        tls,
        keep_alive: reader.or("keep_alive", Duration::from_secs(30), millis(5_000, 64_800_000)),
        connect_timeout: reader.or("connect_timeout", Duration::from_secs(10), millis(100, 60_000)),
        encoding: reader.or("encoding", Encoding::Json, choice(ENCODINGS)),
        root: reader.or("root", gateway.root.clone(), topic_root),
        filter: filter(&reader.section("filter", "uplink.filter")),
        qos: reader.or("qos", Qos::AtLeastOnce, qos),
        window: reader.or("window", 100, unsigned(1..=65_535)),
        packet_size: reader.or("packet_size", 1 << 20, size(1 << 10..=256 << 20)),
        commands: reader.or("commands", true, boolean),
        replay: replay(&reader.section("replay", "uplink.replay")),
        windows: reader.list("windows", window).unwrap_or_default(),
        daily_budget: reader.optional("daily_budget", size(1 << 10..=1 << 50)),
        resend_window: reader.or("resend_window", Duration::ZERO, millis(0, 86_400_000)),
    };
    Some(Uplink { name: name?, ..rest })
}

/// The name is part of file names in the store: an id, and not the embedded broker's.
fn name(item: &Item) -> Result<String, String> {
    let text = line(64)(item)?;
    if text == "local" {
        return Err("\"local\" is the embedded broker's name; choose another".to_owned());
    }
    if text.chars().all(is_unreserved) && text != "." && text != ".." {
        return Ok(text);
    }
    Err(format!("\"{text}\" must be 1 to 64 of A-Z a-z 0-9 . _ ~ -"))
}

fn server(item: &Item) -> Result<Server, String> {
    let text = line(300)(item)?;
    let (tls, rest) = match text.split_once("://") {
        Some(("mqtt" | "tcp", rest)) => (false, rest),
        Some(("mqtts" | "ssl" | "tls", rest)) => (true, rest),
        _ => return Err(format!("\"{text}\" is no broker; write \"mqtt://host:1883\" or \"mqtts://host:8883\"")),
    };
    let (host, port) = host_port(rest.trim_end_matches('/'), Some(if tls { 8883 } else { 1883 }))?;
    if port == 0 {
        return Err(format!("\"{text}\": port 0 cannot be reached"));
    }
    Ok(Server { tls, host, port })
}

fn client_tls(section: &Reader<'_>) -> ClientTls {
    let (ca, cert, key) = (section.file("ca"), section.file("cert"), section.file("key"));
    if section.has("cert") != section.has("key") {
        let there = if section.has("cert") { "cert" } else { "key" };
        section.error(there, "a client certificate needs both `cert` and `key`");
    }
    ClientTls { ca, identity: cert.zip(key), server_name: section.optional("server_name", server_name) }
}

fn server_name(item: &Item) -> Result<String, String> {
    let text = line(253)(item)?;
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':');
    if text.chars().all(legal) { Ok(text) } else { Err(format!("\"{text}\" is no host name")) }
}

fn filter(section: &Reader<'_>) -> Filter {
    Filter {
        devices: section.list("devices", pattern).unwrap_or_default(),
        telemetry: section.or("telemetry", true, boolean),
        events: section.or("events", true, boolean),
        points: section.or("points", false, boolean),
    }
}

fn pattern(item: &Item) -> Result<String, String> {
    let text = line(64)(item)?;
    let stem = text.strip_suffix('*').unwrap_or(&text);
    if stem.chars().all(is_unreserved) {
        return Ok(text);
    }
    Err(format!("\"{text}\" is no device; write an id, or its beginning and `*`"))
}

fn replay(section: &Reader<'_>) -> Replay {
    Replay {
        order: section.or("order", ReplayOrder::LiveFirst, choice(ORDERS)),
        records_per_second: section.optional("records_per_second", unsigned(1..=1_000_000)),
    }
}

/// `22:00-06:00`
fn window(item: &Item) -> Result<Window, String> {
    let text = line(20)(item)?;
    let minutes = |part: &str| {
        let (h, m) = part.trim().split_once(':')?;
        let (h, m): (u16, u16) = (h.parse().ok()?, m.parse().ok()?);
        (m < 60 && h * 60 + m <= 1440).then_some(h * 60 + m)
    };
    let read = || {
        let (from, to) = text.split_once('-')?;
        Some(Window { from: minutes(from).filter(|m| *m < 1440)?, to: minutes(to)? })
    };
    match read() {
        Some(window) if window.from != window.to => Ok(window),
        _ => Err(format!("\"{text}\" is no time of day; write from-to in UTC, such as \"22:00-06:00\"")),
    }
}
