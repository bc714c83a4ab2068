//! Reads `[management]`: who is trusted without a person, who may do what, and who devices may be handed to.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::config::checked::Management;
use crate::config::reader::Reader;
use crate::config::tree::Item;
use crate::config::value::{boolean, choice, duration, line, text};
use crate::management::lifecycle::{Approval, Policy, Stored};
use crate::management::roles::Role;

const ROLES: &[(&str, Role)] = &[
    ("viewer", Role::Viewer),
    ("operator", Role::Operator),
    ("engineer", Role::Engineer),
    ("administrator", Role::Administrator),
];

const STORED: &[(&str, Stored)] =
    &[("keep", Stored::Keep), ("after-delivery", Stored::AfterDelivery), ("now", Stored::Now)];

pub(super) fn read(section: &Reader<'_>) -> Management {
    let roles = section.tables("role", "management.role");
    let approve = section.tables("approve", "management.approve");
    let decommission = section.section("decommission", "management.decommission");
    let defaults = Policy::default();
    let week = Duration::from_millis(defaults.deliver_within_ms.unsigned_abs());
    Management {
        approve_declared: section.or("approve_declared", true, boolean),
        roles: roles.iter().filter_map(role).collect(),
        approve: approve.iter().filter_map(approval).collect(),
        partners: partners(section),
        stored: decommission.or("stored", defaults.stored, choice(STORED)),
        deliver_within: decommission.or("deliver_within", week, duration(Duration::from_secs(60)..=week * 520)),
    }
}

fn role(reader: &Reader<'_>) -> Option<(String, Role)> {
    let identity = reader.required("identity", "identity = \"mqtt:local:scada\"", line(128));
    let role = reader.required("role", "role = \"operator\"", choice(ROLES));
    let (identity, role) = (identity?, role?);
    if !identity.contains(':') && identity != "*" {
        let text = "names no kind of identity; write mqtt:local:NAME for a client of the embedded broker, mqtt:UPLINK for everyone on an uplink";
        reader.error("identity", text);
    }
    if role > Role::Viewer && identity == "*" {
        reader.error("identity", "everyone can only be a viewer; name a kind of identity, such as \"mqtt:local:*\"");
    }
    Some((identity, role))
}

/// At least one pattern must say something: who wants to approve everything writes device = "*".
fn approval(reader: &Reader<'_>) -> Option<Approval> {
    let any = || "*".to_owned();
    let device = reader.required("device", "device = \"meter-*\"", line(64));
    Some(Approval {
        protocol: reader.optional("protocol", line(64)).unwrap_or_else(any),
        vendor: reader.optional("vendor", line(256)).unwrap_or_else(any),
        model: reader.optional("model", line(256)).unwrap_or_else(any),
        device: device?,
    })
}

fn partners(section: &Reader<'_>) -> BTreeMap<String, Vec<u8>> {
    let read = |(name, _, item): (&str, _, &Item)| match public_key(item) {
        Ok(key) => Some((name.to_owned(), key)),
        Err(text) => {
            section.context.error(&item.place, section.key(&format!("partners.{name}")), text);
            None
        }
    };
    section.names("partners").into_iter().filter_map(read).collect()
}

/// 32 octets in hexadecimal, as `fieldgate export --public-key` prints them.
fn public_key(item: &Item) -> Result<Vec<u8>, String> {
    let text = text(item)?;
    let octet = |pair: &[u8]| std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok());
    let octets: Option<Vec<u8>> = text.as_bytes().chunks(2).map(octet).collect();
    octets.filter(|octets| octets.len() == 32).ok_or_else(|| {
        "is no public key; write the 64 hexadecimal digits that `fieldgate export --public-key` prints there".to_owned()
    })
}
