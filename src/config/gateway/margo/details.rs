//! What is said about the gateway or a device: names, labels, what it delegates and what it hosts.

use std::collections::BTreeMap;

use serde_json::Value;

use super::super::super::reader::Reader;
use super::super::super::tree::{Item, Node};
use super::super::super::value::{boolean, line};
use super::engine::engine;
use super::hosting::hosting;
use crate::margo::capabilities::{DeploymentType, Hosting, Runtime, is_extension_name, is_label};
use crate::margo::config::Details;
use crate::margo::plant::Functions;

pub(super) fn delegate(section: &Reader<'_>, default: Functions) -> Functions {
    Functions {
        configuration: section.or("configuration", default.configuration, boolean),
        recipe: section.or("recipe", default.recipe, boolean),
        firmware: section.or("firmware", default.firmware, boolean),
    }
}

/// Of whom something is said.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Whose {
    Gateway,
    Device,
}

pub(super) fn details(reader: &Reader<'_>, whose: Whose) -> Details {
    let hosting = reader.table("hosting", "margo.hosting").and_then(|table| hosting(&table));
    let engine = reader.table("compose", "margo.compose").and_then(|table| engine(&table, whose));
    agree(reader, hosting.as_ref());
    let text = |key| reader.optional(key, line(200));
    Details {
        vendor: text("vendor"),
        model: text("model"),
        serial: text("serial"),
        parent: None,
        labels: named(reader, "labels", |_| true, is_label, "a text, number, boolean, or list of texts or of numbers"),
        extensions: named(
            reader,
            "extensions",
            is_extension_name,
            Value::is_object,
            "a table; its name is x-<name>-extensions",
        ),
        delegate: reader.table("delegate", "margo.delegate").map(|table| delegate(&table, Functions::default())),
        hosting,
        engine,
    }
}

/// What is reported is what is done: `compose` stands in `deployment_types` exactly where there is an engine. A table that cannot
/// be used was reported already.
fn agree(reader: &Reader<'_>, hosting: Option<&Hosting>) {
    let promised = hosting.is_some_and(|hosting| hosting.deployment_types.contains(&DeploymentType::Compose));
    match (hosting, reader.has("compose")) {
        (None, true) if !reader.has("hosting") => {
            reader.error(
                "compose",
                "a container engine needs `hosting`: what its workloads may have is said there, never guessed",
            );
        }
        (Some(hosting), true) if !promised || !hosting.runtimes.contains(&Runtime::Oci) => {
            let text = "an engine runs `compose` deployments: write \"compose\" into `deployment_types` and \"oci\" into `runtimes`";
            reader.error("hosting", text);
        }
        (Some(_), false) if promised => {
            let text = "promises `compose` deployments and no container engine is configured: add a `compose` table beside \
                        `hosting`, or take \"compose\" out of `deployment_types`";
            reader.error("hosting", text);
        }
        _ => {}
    }
}

fn named(
    reader: &Reader<'_>,
    key: &'static str,
    name_fits: impl Fn(&str) -> bool,
    value_fits: impl Fn(&Value) -> bool,
    help: &str,
) -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    for (name, place, item) in reader.names(key) {
        match json(item).filter(|value| value_fits(value) && name_fits(name)) {
            Some(value) => drop(all.insert(name.to_owned(), value)),
            None => reader.context.error(place, reader.key(key), format!("`{name}` must be {help}")),
        }
    }
    all
}

fn json(item: &Item) -> Option<Value> {
    Some(match &item.node {
        Node::Text(text) | Node::Cell(text) => text.as_str().into(),
        Node::Integer(number) => (*number).into(),
        Node::Float(number) => serde_json::Number::from_f64(*number)?.into(),
        Node::Bool(boolean) => (*boolean).into(),
        Node::Other(_) => return None,
        Node::List(items) => items.iter().map(json).collect::<Option<Vec<_>>>()?.into(),
        Node::Table(table) => {
            let entries = table.entries.iter().map(|(name, entry)| Some((name.clone(), json(&entry.item)?)));
            Value::Object(entries.collect::<Option<_>>()?)
        }
    })
}
