//! Reads `[broker]`: the embedded broker.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::topic_filter;
use crate::config::Secret;
use crate::config::checked::{Access, Acl, Broker, BrokerLimits, Certificates, Listener, ServerTls, User};
use crate::config::problem::Place;
use crate::config::reader::Reader;
use crate::config::secret::twice;
use crate::config::tree::Item;
use crate::config::value::{boolean, choice, line, millis, size, text, unsigned};
use crate::security::DEVICE;

const ACCESS: &[(&str, Access)] =
    &[("deny", Access::Deny), ("read", Access::Read), ("write", Access::Write), ("read-write", Access::ReadWrite)];

pub(super) fn read(section: &Reader<'_>) -> Option<Broker> {
    let enabled = section.or("enabled", true, boolean);
    let (users, names) = users(section);
    let mut listeners: Vec<_> =
        section.tables("listener", "broker.listener").iter().filter_map(|r| listener(r, &names)).collect();
    if !section.has("listener") {
        listeners.push(Listener { address: (Ipv4Addr::LOCALHOST, 1883).into(), allow_anonymous: true, tls: None });
    }
    let acl: Vec<_> = section.tables("acl", "broker.acl").iter().filter_map(|r| acl(r, &names)).collect();
    let limits = limits(&section.section("limits", "broker.limits"));
    let snapshot_interval = section.or("snapshot_interval", Duration::from_secs(600), millis(10_000, 86_400_000));
    let probe_interval = section.or("probe_interval", Duration::from_secs(10), millis(1_000, 3_600_000));
    // Who writes rules means them to be all: what no rule speaks about is denied then.
    let unsaid = if section.has("acl") { Access::Deny } else { Access::ReadWrite };
    let authenticated_access = section.or("authenticated_access", unsaid, choice(ACCESS));
    let anonymous_access = section.or("anonymous_access", unsaid, choice(ACCESS));
    refuse_same_address(section, &listeners);
    enabled.then_some(Broker {
        listeners,
        users,
        acl,
        limits,
        authenticated_access,
        anonymous_access,
        snapshot_interval,
        probe_interval,
    })
}

fn refuse_same_address(section: &Reader<'_>, listeners: &[Listener]) {
    for (i, listener) in listeners.iter().enumerate() {
        if listener.address.port() != 0 && listeners[..i].iter().any(|l| l.address == listener.address) {
            section.error(
                "listener",
                format!("two listeners have the address {}; give each its own port", listener.address),
            );
        }
    }
}

fn listener(reader: &Reader<'_>, users: &[String]) -> Option<Listener> {
    let address = reader.required("address", "address = \"127.0.0.1:1883\"", address);
    let tls = reader.table("tls", "broker.listener.tls").and_then(|r| server_tls(&r));
    let local = address.is_none_or(|a| a.ip().is_loopback());
    let allow_anonymous = reader.or("allow_anonymous", local && !reader.has("tls"), boolean);
    if allow_anonymous && !local {
        reader.error("allow_anonymous", "is true on an address that other machines reach; set it to false and add a [[broker.user]], or listen on 127.0.0.1");
    }
    let certificates = tls.as_ref().is_some_and(ServerTls::takes_client_certificates);
    if !allow_anonymous && users.is_empty() && !certificates && address.is_some() {
        reader.error("address", "nobody could log in here: add a [[broker.user]] or `tls.client_ca`, or listen on 127.0.0.1 with allow_anonymous = true");
    }
    if !local && !reader.has("tls") {
        reader.warn("address", "other machines reach this listener without TLS: passwords and values pass readably; add [broker.listener.tls]");
    }
    Some(Listener { address: address?, allow_anonymous, tls })
}

fn address(item: &Item) -> Result<SocketAddr, String> {
    let text = line(100)(item)?;
    text.parse().map_err(|_| format!("\"{text}\" is no address to listen on; write an IP address and a port, such as \"127.0.0.1:1883\", \"0.0.0.0:8883\" or \"[::]:8883\""))
}

fn server_tls(reader: &Reader<'_>) -> Option<ServerTls> {
    let require_client_cert = reader.or("require_client_cert", false, boolean);
    let files = ["cert", "key", "client_ca", "crl"];
    if reader.or("plant", false, boolean) {
        for key in files.into_iter().filter(|key| reader.has(key)) {
            reader.error(key, "cannot stand beside `plant = true`: the plant's authority brings all certificates");
        }
        return Some(ServerTls { certificates: Certificates::Plant, require_client_cert });
    }
    for (key, example) in [("cert", "cert = \"tls/server.pem\""), ("key", "key = \"tls/server.key\"")] {
        if !reader.has(key) {
            let text = format!("`{key}` is missing; write {example}, or plant = true for the plant's own authority");
            reader.context.error(&reader.table.place, reader.key(key), text);
        }
    }
    let (client_ca, crl) = (reader.file("client_ca"), reader.file("crl"));
    if require_client_cert && !reader.has("client_ca") {
        reader.error("require_client_cert", "needs `client_ca`: the authority whose certificates are accepted");
    }
    if reader.has("crl") && !reader.has("client_ca") {
        reader.error("crl", "revokes client certificates, so it needs `client_ca`");
    }
    let (cert, key) = (reader.file("cert"), reader.file("key"));
    let certificates = Certificates::Files { cert: cert?, key: key?, client_ca, crl };
    Some(ServerTls { certificates, require_client_cert })
}

/// Users, and the names of all that are written, also of those whose password is wrong.
fn users(section: &Reader<'_>) -> (Vec<User>, Vec<String>) {
    let mut seen: BTreeMap<String, Place> = BTreeMap::new();
    let (mut users, mut names) = (Vec::new(), Vec::new());
    for reader in section.tables("user", "broker.user") {
        let name = reader.required("name", "name = \"scada\"", user_name);
        let secret = password(&reader);
        let Some(name) = name else { continue };
        if let Some(first) = seen.insert(name.clone(), reader.place("name").clone()) {
            reader.error("name", twice("user", &name, &first));
        }
        names.push(name.clone());
        if let Some((password, hashed)) = secret {
            users.push(User { name, password, hashed });
        }
    }
    (users, names)
}

fn user_name(item: &Item) -> Result<String, String> {
    match line(128)(item)? {
        name if name.contains('*') || name.starts_with('$') || name == "anonymous" => {
            Err(format!("\"{name}\" stands for other clients in [[broker.acl]]; choose another name"))
        }
        name if name.starts_with(DEVICE) => Err(format!(
            "\"{name}\" would be taken for a device; these prove who they are with a certificate (`fieldgate certs issue --device`)"
        )),
        name => Ok(name),
    }
}

/// The password of a user and whether it is a hash.
fn password(reader: &Reader<'_>) -> Option<(Secret, bool)> {
    match (reader.has("password_hash"), reader.has("password")) {
        (true, false) => Some((Secret::new(reader.optional("password_hash", password_hash)?), true)),
        (false, true) => {
            let secret = reader.secret("password")?;
            let hashed = secret.expose().starts_with("$argon2");
            Some((secret, hashed))
        }
        _ => {
            let text = "needs exactly one of `password_hash` and `password`; write password = { file = \"…\" } or the hash that `fieldgate hash-password` prints";
            reader.context.error(&reader.table.place, reader.key("password"), text);
            None
        }
    }
}

fn password_hash(item: &Item) -> Result<String, String> {
    let text = text(item)?;
    match argon2::password_hash::PasswordHash::new(&text) {
        Ok(hash) if hash.algorithm.as_str().starts_with("argon2") && hash.hash.is_some() => Ok(text),
        _ => Err("is no argon2 hash; it begins with $argon2id$v=19$m=…".to_owned()),
    }
}

fn acl(reader: &Reader<'_>, users: &[String]) -> Option<Acl> {
    let user = reader.required("user", "user = \"scada\" (or \"*\", \"$anonymous\", \"$authenticated\")", line(128));
    let access = reader.or("access", Access::ReadWrite, choice(ACCESS));
    let topics = reader.list("topics", topic_filter).unwrap_or_default();
    if !reader.has("topics") {
        reader.context.error(
            &reader.table.place,
            reader.key("topics"),
            "`topics` is missing; write topics = [\"fieldgate/v1/plant-7/#\"]",
        );
    }
    let user = user?;
    let is_name = !user.contains('*') && !user.starts_with('$');
    if !is_name && user.starts_with('$') && user != "$anonymous" && user != "$authenticated" {
        reader.error("user", format!("\"{user}\" is neither \"$anonymous\" nor \"$authenticated\""));
    }
    if is_name && !users.contains(&user) {
        let near = crate::config::suggest::nearest(&user, users.iter().map(String::as_str));
        let meant = near.map_or_else(String::new, |n| format!("; did you mean `{n}`?"));
        reader.warn(
            "user",
            format!("no [[broker.user]] is named `{user}`, so it can only be a client certificate's name{meant}"),
        );
    }
    Some(Acl { user, access, topics })
}

fn limits(section: &Reader<'_>) -> BrokerLimits {
    const KIB64: u64 = 64 << 10;
    BrokerLimits {
        connections: section.or("connections", 200, unsigned(1..=10_000)),
        connections_per_address: section.or("connections_per_address", 50, unsigned(1..=10_000)),
        packet_size: section.or("packet_size", 1 << 20, size(1 << 10..=256 << 20)),
        filters_per_client: section.or("filters_per_client", 5_000, unsigned(1..=100_000)),
        queue_messages: section.or("queue_messages", 50_000, unsigned(10..=10_000_000)),
        queue_size: section.or("queue_size", 4 << 20, size(KIB64..=1 << 30)),
        total_queue_size: section.or("total_queue_size", 24 << 20, size(KIB64..=16 << 30)),
        inflight: section.or("inflight", 100, unsigned(1..=65_535)),
        retained_messages: section.or("retained_messages", 100_000, unsigned(0..=10_000_000)),
        retained_size: section.or("retained_size", 16 << 20, size(KIB64..=16 << 30)),
        sessions: section.or("sessions", 100, unsigned(0..=10_000)),
        session_expiry: section.or("session_expiry", Duration::from_secs(86_400), millis(0, 30 * 86_400_000)),
        patience: section.or("patience", Duration::from_secs(5), millis(0, 60_000)),
        connect_timeout: section.or("connect_timeout", Duration::from_secs(10), millis(100, 60_000)),
    }
}
