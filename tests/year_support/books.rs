//! The books of one gateway at the end: its topics, its registry and its audit log must tell the same story, once.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::whole_support::{Gate, done_once, said};

/// What a gateway shows and kept.
pub struct Books {
    name: String,
    retained: BTreeMap<String, Value>,
    registry: Vec<Value>,
    audit: Vec<Value>,
    answers: Vec<Value>,
}

impl Books {
    /// Takes them from a running gateway.
    pub fn of(gate: &Gate) -> Self {
        Self {
            name: gate.name().to_owned(),
            retained: gate.retained(),
            registry: gate.cli(&["onboard", "list", "--all", "--json"]).unwrap().as_array().unwrap().clone(),
            audit: gate.audit(),
            answers: gate.all_answers(),
        }
    }

    /// Topics below `devices/pump/`.
    pub fn topics(&self) -> Vec<&str> {
        self.retained.keys().filter_map(|topic| topic.strip_prefix("devices/pump/")).collect()
    }

    /// Audit entries of an action on an object.
    pub fn audited(&self, action: &str, object: &str) -> Vec<&Value> {
        self.audit.iter().filter(|e| said(e, "action") == action && said(e, "object") == object).collect()
    }

    /// Registry, topic and audit log name the same state of the device, and the audit log tells the way there without a
    /// break: each entry begins where the one before ended.
    pub fn agree(&self, state: &str) {
        let line = self.registry.iter().find(|d| said(d, "device") == "pump").expect("it is in the registry");
        assert_eq!(said(line, "state"), state, "{}: the registry", self.name);
        let shown = &self.retained["devices/pump/onboarding"];
        assert_eq!(shown, line, "{}: topic and registry", self.name);
        let end = self.chain("devices/pump", "discovered");
        assert_eq!(end, state, "{}: the audit log ends elsewhere", self.name);
        self.chain("devices/pump/clock", "unknown");
        let configured = self.chain("devices/pump/config", "settled");
        assert_eq!(configured, "settled", "{}: a configuration is still in work", self.name);
    }

    /// Follows `X to Y` through the details of an object's entries, and says where they end.
    fn chain(&self, object: &str, begin: &str) -> String {
        let mut at = begin.to_owned();
        for entry in self.audit.iter().filter(|e| said(e, "object") == object && said(e, "outcome") == "done") {
            let Some((from, to)) = step(said(entry, "detail")) else { continue };
            assert_eq!(at, from, "{}: {object} was {at}, but then {entry}\n{}", self.name, self.story());
            at = to.to_owned();
        }
        at
    }

    /// Nothing was done twice, and every answer to one correlation id says the same.
    pub fn nothing_twice(&self) {
        done_once(&self.name, &self.audit);
        let mut answers: BTreeMap<&str, Vec<(&str, &str)>> = BTreeMap::new();
        for answer in &self.answers {
            answers
                .entry(said(answer, "correlationId"))
                .or_default()
                .push((said(answer, "outcome"), said(answer, "code")));
        }
        for (id, all) in answers {
            assert!(all.windows(2).all(|pair| pair[0] == pair[1]), "{}: {id} was answered {all:?}", self.name);
        }
    }

    /// Each update was offered and approved once, and answered.
    pub fn firmware(&self, updates: usize) {
        for action in ["firmware-offer", "firmware-approve"] {
            let done = self.audited(action, "devices/pump");
            let ids: Vec<&str> =
                done.iter().filter(|e| said(e, "outcome") == "done").map(|e| said(e, "correlationId")).collect();
            assert_eq!(ids.len(), updates, "{}: {action} of {ids:?}\n{}", self.name, self.story());
            for id in ids {
                let answered =
                    self.answers.iter().any(|a| said(a, "correlationId") == id && said(a, "outcome") == "DONE");
                assert!(answered, "{}: {id} was done and never answered", self.name);
            }
        }
    }

    /// The audit log as lines, for people.
    pub fn story(&self) -> String {
        let line = |e: &Value| {
            let parts = ["time", "actor", "action", "object", "outcome", "correlationId", "detail"];
            parts.map(|part| said(e, part)).join("  ")
        };
        self.audit.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

/// `version 3: applying to proving: words` or `active to replacing` as two states.
fn step(detail: &str) -> Option<(&str, &str)> {
    let detail = match detail.strip_prefix("from ") {
        Some(rest) => rest.split_once("; ")?.1,
        None => detail,
    };
    let rest = match detail.strip_prefix("version ") {
        Some(rest) => rest.split_once(": ")?.1,
        None => detail,
    };
    let (from, rest) = rest.split_once(" to ")?;
    let to = rest.split(':').next()?;
    let is_state = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_lowercase() || c == '-');
    (is_state(from) && is_state(to)).then_some((from, to))
}
