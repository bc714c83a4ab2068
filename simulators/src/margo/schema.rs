//! **What a WFM client may send**, checked as strictly as the reference states it. Written from the reference alone, so
//! that it can contradict the gateway.
//!
//! A check gives every problem with its field, as a `422 semantic-error` lists them. Fields that the reference does not
//! name are refused where it says "nothing else" ([`capabilities`]) and tolerated elsewhere.

mod capabilities;
mod status;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use capabilities::{Shape, check as capabilities, is_device_id};
pub use status::{Expected, check as status};

/// What kind of gateway the fleet manager expects, and so which shapes it accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Any of the three.
    #[default]
    Any,
    /// A gateway and its children below it.
    SeeThru,
    /// One device that hosts workloads.
    Opaque,
    /// One device per client; nobody has children.
    Transparent,
}

/// One problem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Path of the field, such as `properties.cpus[0].cores`.
    pub field: String,
    /// What is wrong.
    pub message: String,
}

/// Collects problems.
#[derive(Debug, Default)]
pub(crate) struct Problems(Vec<Problem>);

impl Problems {
    fn add(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.0.push(Problem { field: field.into(), message: message.into() });
    }

    fn string<'a>(&mut self, object: &'a Map<String, Value>, at: &str, key: &str) -> Option<&'a str> {
        match object.get(key) {
            Some(Value::String(text)) if !text.is_empty() => Some(text),
            Some(Value::String(_)) => self.none(at, key, "must not be empty"),
            Some(_) => self.none(at, key, "must be a string"),
            None => self.none(at, key, "is required"),
        }
    }

    fn optional_string(&mut self, object: &Map<String, Value>, at: &str, key: &str) {
        if object.contains_key(key) {
            self.string(object, at, key);
        }
    }

    fn array<'a>(&mut self, object: &'a Map<String, Value>, at: &str, key: &str) -> Option<&'a Vec<Value>> {
        match object.get(key) {
            Some(Value::Array(array)) => Some(array),
            Some(_) => self.none(at, key, "must be an array"),
            None => self.none(at, key, "is required"),
        }
    }

    fn object<'a>(&mut self, object: &'a Map<String, Value>, at: &str, key: &str) -> Option<&'a Map<String, Value>> {
        match object.get(key) {
            Some(Value::Object(found)) => Some(found),
            Some(_) => self.none(at, key, "must be an object"),
            None => self.none(at, key, "is required"),
        }
    }

    fn one_of(&mut self, found: &str, at: &str, allowed: &[&str]) {
        if !allowed.contains(&found) {
            self.add(at, format!("`{found}` is none of {}", allowed.join(", ")));
        }
    }

    fn only(&mut self, object: &Map<String, Value>, at: &str, allowed: &[&str]) {
        for key in object.keys().filter(|key| !allowed.contains(&key.as_str())) {
            self.add(join(at, key), "is not a field of the interface");
        }
    }

    fn constant(&mut self, object: &Map<String, Value>, key: &str, value: &str) {
        if let Some(found) = self.string(object, "", key)
            && found != value
        {
            self.add(key, format!("must be `{value}`"));
        }
    }

    fn none<T>(&mut self, at: &str, key: &str, message: &str) -> Option<T> {
        self.add(join(at, key), message);
        None
    }
}

fn join(at: &str, key: &str) -> String {
    if at.is_empty() { key.to_owned() } else { format!("{at}.{key}") }
}
