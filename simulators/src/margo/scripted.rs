//! Faults that happen so often, for the simpler services.

use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

/// A fault and how often it happens.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Times<F> {
    /// What goes wrong.
    #[serde(flatten)]
    pub fault: F,
    /// How often; none until it is cleared.
    pub times: Option<u32>,
}

impl<'de, F: Serialize + DeserializeOwned> Deserialize<'de> for Times<F> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut fields = Map::deserialize(deserializer)?;
        let times = field(&mut fields, "times").map_err(Error::custom)?;
        Ok(Self { fault: strict(fields).map_err(Error::custom)?, times })
    }
}

/// Takes one field out; its default when it is not there.
pub(crate) fn field<T: DeserializeOwned + Default>(
    fields: &mut Map<String, Value>,
    name: &str,
) -> Result<T, serde_json::Error> {
    fields.remove(name).map_or_else(|| Ok(T::default()), serde_json::from_value)
}

/// A fault of exactly these fields: one that is misspelt would otherwise be a fault that nobody meant.
pub(crate) fn strict<F: Serialize + DeserializeOwned>(fields: Map<String, Value>) -> Result<F, serde_json::Error> {
    let fault: F = serde_json::from_value(Value::Object(fields.clone()))?;
    let known = serde_json::to_value(&fault)?;
    match fields.keys().find(|key| known.get(key.as_str()).is_none()) {
        Some(strange) => Err(Error::custom(format!("unknown field `{strange}` of this fault"))),
        None => Ok(fault),
    }
}

impl<F> From<F> for Times<F> {
    fn from(fault: F) -> Self {
        Self { fault, times: None }
    }
}

impl<F> Times<F> {
    /// Only so often.
    pub const fn only(fault: F, times: u32) -> Self {
        Self { fault, times: Some(times) }
    }
}

#[derive(Debug)]
pub(crate) struct Scripted<F>(Vec<Times<F>>);

impl<F> Default for Scripted<F> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<F: Clone> Scripted<F> {
    pub fn add(&mut self, fault: Times<F>) {
        self.0.push(fault);
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }

    pub fn all(&self) -> &[Times<F>] {
        &self.0
    }

    /// The faults of a request; those that fit are counted.
    pub fn take(&mut self, fits: impl Fn(&F) -> bool) -> Vec<F> {
        let mut found = Vec::new();
        for rule in self.0.iter_mut().filter(|rule| rule.times != Some(0) && fits(&rule.fault)) {
            rule.times = rule.times.map(|times| times - 1);
            found.push(rule.fault.clone());
        }
        self.0.retain(|rule| rule.times != Some(0));
        found
    }
}
