//! Reads `[[uplink]]`: other brokers that get what the store keeps.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::{consumer, topic_root};
use crate::config::checked::{Identity, Uplink};
use crate::config::problem::Place;
use crate::config::reader::Reader;
use crate::config::secret::twice;
use crate::config::tree::Item;
use crate::config::value::{boolean, choice, host_port, line, millis, size};
use crate::model::is_unreserved;
use crate::northbound::{ServerUrl, UplinkConfig, Version};
use crate::security::ClientTlsFiles;
use crate::store::Backlog;

const VERSIONS: &[(&str, Version)] = &[("3.1.1", Version::V311), ("5", Version::V5)];
/// The system's authorities on Debian and its kin.
pub const SYSTEM_CA: &str = "/etc/ssl/certs/ca-certificates.crt";

pub(super) fn read(root: &Reader<'_>, gateway: &Identity, enrols: bool) -> Vec<Uplink> {
    let mut seen: BTreeMap<String, Place> = BTreeMap::new();
    let mut uplinks = Vec::new();
    for reader in root.tables("uplink", "uplink") {
        let Some(uplink) = uplink(&reader, gateway, enrols) else { continue };
        if let Some(first) = seen.insert(uplink.consumer.name.clone(), reader.place("name").clone()) {
            reader.error("name", twice("uplink", &uplink.consumer.name, &first));
        }
        uplinks.push(uplink);
    }
    uplinks
}

fn uplink(reader: &Reader<'_>, gateway: &Identity, enrols: bool) -> Option<Uplink> {
    let name = reader.required("name", "name = \"site\"", name);
    let servers = reader.list("servers", server).unwrap_or_default();
    if servers.is_empty() {
        let text = "`servers` is missing or empty; write servers = [\"mqtts://broker.example:8883\"]";
        reader.context.error(reader.place("servers"), reader.key("servers"), text);
    }
    let encrypted = servers.iter().any(|s| s.tls);
    let (tls, enrolled) = client_tls(&reader.section("tls", "uplink.tls"), enrols);
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
    let topics = reader.or("root", gateway.root.clone(), topic_root);
    let reached = UplinkConfig {
        servers,
        version: reader.or("version", Version::V311, choice(VERSIONS)),
        client_id: reader.optional("client_id", line(128)),
        user,
        password,
        keep_alive: reader.or("keep_alive", Duration::from_secs(20), millis(5_000, 3_600_000)),
        connect_timeout: reader.or("connect_timeout", Duration::from_secs(5), millis(1_000, 300_000)),
        reconnect_max: reader.or("reconnect_max", Duration::from_secs(4), millis(1_000, 600_000)),
        session_expiry: reader.or("session_expiry", Duration::from_secs(86_400), millis(0, 30 * 86_400_000)),
        max_packet: reader.or("packet_size", 1 << 20, packet_size),
    };
    // Every key is asked for, also when the name is missing.
    let consumer = consumer::uplink(reader, name.clone().unwrap_or_default(), topics, reached);
    let backlog = Backlog {
        bytes: reader.optional("max_backlog", size(1 << 20..=16 << 40)),
        age: reader.optional("max_age", millis(60_000, 3_650 * 86_400_000)),
    };
    name.map(|_| Uplink { consumer, tls: encrypted.then_some(tls), enrolled, backlog })
}

fn packet_size(item: &Item) -> Result<usize, String> {
    size(1 << 10..=256 << 20)(item).map(|octets| usize::try_from(octets).unwrap_or(usize::MAX))
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

fn server(item: &Item) -> Result<ServerUrl, String> {
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
    if tls && host.contains(':') {
        return Err(format!("\"{text}\": TLS verifies a host name or an IPv4 address; give the broker a name"));
    }
    Ok(ServerUrl { tls, host, port })
}

/// Files, and whether the identity among them is the enrolled one.
fn client_tls(section: &Reader<'_>, enrols: bool) -> (ClientTlsFiles, bool) {
    let enrolled = section.or("enrolled", false, boolean);
    if enrolled && !enrols {
        section.error("enrolled", "needs an [est] section: it says where the gateway gets its certificate");
    }
    if enrolled && (section.has("cert") || section.has("key")) {
        section.error("enrolled", "cannot stand beside `cert` and `key`; remove one of both");
    }
    let (ca, cert, key) = (section.file("ca"), section.file("cert"), section.file("key"));
    if section.has("cert") != section.has("key") {
        let there = if section.has("cert") { "cert" } else { "key" };
        section.error(there, "a client certificate needs both `cert` and `key`");
    }
    let files = ClientTlsFiles {
        ca: ca.unwrap_or_else(|| PathBuf::from(SYSTEM_CA)),
        certificate: cert,
        key,
        server_name: section.optional("server_name", server_name),
    };
    (files, enrolled)
}

fn server_name(item: &Item) -> Result<String, String> {
    let text = line(253)(item)?;
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':');
    if text.chars().all(legal) { Ok(text) } else { Err(format!("\"{text}\" is no host name")) }
}
