//! Reads `fieldgate.toml`.

mod broker;
mod certificates;
mod consumer;
mod firmware;
mod management;
#[cfg(feature = "margo")]
mod margo;
mod store;
mod uplink;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::checked::{Gateway, Identity, Limits};
use super::reader::Reader;
use super::secret::path;
use super::tree::Item;
use super::value::{boolean, choice, id, line, millis, unsigned};
use crate::contract::topics;
use crate::model::GatewayId;
use crate::telemetry::{LogConfig, LogFormat, OtlpConfig};

pub use consumer::LOCAL;
pub use uplink::SYSTEM_CA;

/// Reads every section but `[defaults]`, which belongs to the devices.
pub(super) fn read(root: &Reader<'_>, file: &Path) -> Gateway {
    let identity = identity(&root.section("gateway", "gateway"), file);
    let est = root.table("est", "est").and_then(|section| certificates::est(&section, &identity));
    #[cfg(feature = "margo")]
    let (margo, svid) = root.table("margo", "margo").and_then(|section| margo::read(&section, &identity)).unzip();
    let uplinks = uplink::read(root, &identity, root.has("est"));
    Gateway {
        store: store::read(&root.section("store", "store")),
        broker: broker::read(&root.section("broker", "broker")),
        local: consumer::local(&root.section("local", "local"), &identity.root),
        log: log(&root.section("log", "log")),
        otlp: root.table("otlp", "otlp").and_then(|section| otlp(&section)),
        limits: limits(&root.section("limits", "limits")),
        management: management::read(&root.section("management", "management")),
        #[cfg(feature = "margo")]
        margo,
        #[cfg(feature = "margo")]
        svid: svid.flatten(),
        pki: certificates::pki(&root.section("pki", "pki"), &identity),
        est,
        firmware: firmware::read(&root.section("firmware", "firmware")),
        uplinks,
        identity,
    }
}

fn identity(section: &Reader<'_>, file: &Path) -> Identity {
    let id = section.optional("id", id::<GatewayId>).unwrap_or_else(host_id);
    let root = section.optional("root", topic_root).unwrap_or_else(|| topics::default_root(&id));
    let beside = || file.parent().unwrap_or(Path::new("")).join("data");
    Identity {
        description: section.optional("description", line(1000)).unwrap_or_default(),
        data_dir: section.optional("data_dir", path).unwrap_or_else(beside),
        root,
        id,
    }
}

/// The host's name made a legal id, `gateway` when it has none.
fn host_id() -> GatewayId {
    let name =
        std::fs::read_to_string("/proc/sys/kernel/hostname").or_else(|_| std::fs::read_to_string("/etc/hostname"));
    legal_id(name.unwrap_or_default().trim())
}

fn legal_id(name: &str) -> GatewayId {
    let legal: String = name.chars().map(|c| if crate::model::is_unreserved(c) { c } else { '-' }).take(64).collect();
    GatewayId::new(&legal).unwrap_or_else(|_| GatewayId::new("gateway").expect("the word is a legal id"))
}

/// A root of topics: levels without wildcards, no `/` at the ends, not in the broker's own `$` space.
pub(super) fn topic_root(item: &Item) -> Result<String, String> {
    let text = line(200)(item)?;
    let legal = |c: char| c != '+' && c != '#';
    if text.starts_with('$') || !text.chars().all(legal) || text.split('/').any(str::is_empty) {
        return Err(format!(
            "\"{text}\" is no root of topics; write levels without `+`, `#`, `$` and empty levels, such as \"fieldgate/v1/plant-7\""
        ));
    }
    Ok(text)
}

/// An MQTT topic filter.
pub(super) fn topic_filter(item: &Item) -> Result<String, String> {
    let text = line(1000)(item)?;
    let levels: Vec<_> = text.split('/').collect();
    let legal = |(i, level): (usize, &&str)| match level.find(['+', '#']) {
        None => true,
        Some(_) => *level == "+" || (*level == "#" && i + 1 == levels.len()),
    };
    if levels.iter().enumerate().all(legal) {
        return Ok(text);
    }
    Err(format!("\"{text}\" is no topic filter; `+` stands alone in its level, `#` alone in the last"))
}

fn log(section: &Reader<'_>) -> LogConfig {
    LogConfig {
        level: section.or("level", "info".to_owned(), log_level),
        format: section.or("format", LogFormat::Text, choice(&[("text", LogFormat::Text), ("json", LogFormat::Json)])),
    }
}

fn log_level(item: &Item) -> Result<String, String> {
    let text = line(1000)(item)?;
    let level = |l: &str| matches!(l, "error" | "warn" | "info" | "debug" | "trace" | "off");
    let directive = |d: &str| match d.split_once('=') {
        Some((target, l)) => !target.is_empty() && level(l),
        None => level(d),
    };
    if text.split(',').all(|d| directive(d.trim())) {
        return Ok(text);
    }
    Err(format!(
        "\"{text}\" is no log level; write error, warn, info, debug or trace, or a list such as \"info,fieldgate::southbound=debug\""
    ))
}

fn otlp(section: &Reader<'_>) -> Option<OtlpConfig> {
    let headers: BTreeMap<_, _> = section
        .names("headers")
        .into_iter()
        .filter_map(|(name, place, item)| {
            let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            if name.is_empty() || !name.chars().all(legal) {
                section.context.error(place, section.key("headers"), format!("`{name}` is no name of a header"));
            }
            Some((name.to_ascii_lowercase(), section.secret_of("headers", item)?.expose().to_owned()))
        })
        .collect();
    let otlp = OtlpConfig {
        endpoint: section
            .required("endpoint", "endpoint = \"http://collector:4318\"", http_address)
            .unwrap_or_default(),
        headers,
        ca: None,
        metrics: section.or("metrics", true, boolean),
        traces: section.or("traces", true, boolean),
        logs: section.or("logs", true, boolean),
        interval: section.or("interval", Duration::from_secs(30), millis(1_000, 3_600_000)),
        timeout: section.or("timeout", Duration::from_secs(10), millis(100, 60_000)),
    };
    // The only one there is; the key may say so.
    section.optional("protocol", choice(&[("http/protobuf", ())]));
    section.or("enabled", true, boolean).then_some(otlp)
}

fn http_address(item: &Item) -> Result<String, String> {
    let text = line(1000)(item)?;
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    match rest.map(|r| r.split('/').next().unwrap_or_default()) {
        Some(host) if super::value::host_port(host, Some(0)).is_ok() => Ok(text.trim_end_matches('/').to_owned()),
        _ => Err(format!("\"{text}\" is no address of a collector; write http://host:4318 or https://host:4318")),
    }
}

fn limits(section: &Reader<'_>) -> Limits {
    Limits {
        scan_queue: section.or("scan_queue", 1_000, unsigned(1..=100_000)),
        command_queue: section.or("command_queue", 100, unsigned(1..=10_000)),
        commands_per_second: section.or("commands_per_second", 10, unsigned(1..=1_000)),
        command_timeout: section.or("command_timeout", Duration::from_secs(30), millis(100, 600_000)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_name_becomes_a_legal_id() {
        assert_eq!(legal_id("plant-7.local").as_str(), "plant-7.local");
        assert_eq!(legal_id("büro 7").as_str(), "b-ro-7");
        assert_eq!(legal_id("").as_str(), "gateway");
        assert_eq!(legal_id(&"x".repeat(100)).as_str().len(), 64);
    }
}
