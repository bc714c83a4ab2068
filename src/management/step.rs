//! What a core wants after an input: records to make durable, and effects that are carried out once they are.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::journal::{Change, Shelf, record};
use crate::contract::{Stamped, v1};
use crate::model::{DeviceId, Stamp, Uptime};

/// A retained message, or its removal.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "each carries the message of its name")]
pub enum Shown {
    Onboarding(Box<v1::Onboarding>),
    Config(Box<v1::ReportedConfig>),
    Clock(v1::DeviceClock),
    /// The topic is cleared.
    Nothing,
}

/// What is asked of the world. All of them may be done twice: after a crash they are.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Set a retained topic, relative to the root.
    Show {
        /// The topic.
        topic: String,
        /// Its new content.
        shown: Shown,
    },
    /// Give the final answer to a request.
    Answer(Box<super::core::Answer>),
    /// Publish an event and let alarms follow it.
    Raise(v1::Event),
    /// The set of running devices changed: take it from the core and apply it.
    ApplyPlan,
    /// Ask a device who it is, whether it is polled or not.
    Identify(DeviceId),
    /// Make credentials for a device that connects by itself.
    Issue {
        /// The device.
        device: DeviceId,
        /// Its certificate signing request in PEM; empty for a token.
        signing_request: String,
    },
    /// Take back the credentials of a device.
    Revoke(DeviceId),
    /// Take its credentials back and remove what is kept of a device.
    Erase {
        /// The device.
        device: DeviceId,
        /// What becomes of its values in the store.
        stored: super::lifecycle::Stored,
    },
    /// Read the clock of a device.
    ReadClock(DeviceId),
    /// Set the clock of a device to the time of the gateway.
    SetClock(DeviceId),
    /// Look for devices in a range of addresses.
    Scan(super::lifecycle::ScanRequest),
    /// Change settings of the gateway itself.
    ApplyGateway(serde_json::Value),
}

/// One line of the audit log before it is a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditNote {
    /// Milliseconds since 1970.
    pub at_ms: i64,
    /// Trust in that, as messages number it.
    #[serde(default)]
    pub clock: i32,
    /// Boot of the machine and its uptime then, which mend the time of a clock that was not set.
    #[serde(default)]
    pub boot: u32,
    /// See `boot`.
    #[serde(default)]
    pub uptime_ms: u64,
    /// Who.
    pub actor: String,
    /// From where, such as an address.
    #[serde(default)]
    pub from: String,
    /// What.
    pub action: String,
    /// To what.
    pub object: String,
    /// More words.
    pub detail: String,
    /// How it ended.
    pub outcome: String,
    /// The request.
    pub correlation_id: String,
}

impl AuditNote {
    /// The contract's message. `id` tells an entry that was handed over twice because of a crash.
    pub fn message(&self, id: &str) -> v1::AuditEntry {
        let from = (!self.from.is_empty()).then(|| format!("from {}", self.from));
        let detail = [from.as_deref(), Some(self.detail.as_str())];
        let entry = v1::AuditEntry {
            actor: self.actor.clone(),
            action: self.action.clone(),
            object: self.object.clone(),
            detail: detail.into_iter().flatten().filter(|t| !t.is_empty()).collect::<Vec<_>>().join("; "),
            outcome: self.outcome.clone(),
            correlation_id: self.correlation_id.clone(),
            id: id.to_owned(),
            ..v1::AuditEntry::default()
        };
        entry.at(self.at_ms, self.clock, Uptime { boot: self.boot, ms: self.uptime_ms })
    }
}

/// Who causes a step, for its audit entries.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cause {
    /// Identity, such as `mqtt:local:anna`, `cli:uid=0`, `configuration` or `gateway`.
    pub actor: String,
    /// Address, such as `192.0.2.4:51000`; may be empty.
    pub from: String,
    /// The request; empty when there is none.
    pub correlation_id: String,
}

impl Cause {
    /// The gateway itself, or its files.
    pub fn own(actor: &str) -> Self {
        Self { actor: actor.to_owned(), ..Self::default() }
    }
}

/// What is to be made durable and then done. Records of one key overwrite each other, so that a batch of a thousand
/// requests writes each record once.
#[derive(Debug, Default)]
pub struct Step {
    changes: BTreeMap<(Shelf, String), Option<Bytes>>,
    /// To be done after the commit, in this order.
    pub effects: Vec<Effect>,
    shows: BTreeMap<String, Shown>,
    apply_plan: bool,
    /// Audit entries; the core gives them their numbers.
    pub notes: Vec<AuditNote>,
}

impl Step {
    /// Whether nothing is to be made durable or done.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
            && self.effects.is_empty()
            && self.shows.is_empty()
            && self.notes.is_empty()
            && !self.apply_plan
    }

    /// Whether records are to be made durable.
    pub fn has_changes(&self) -> bool {
        !self.changes.is_empty()
    }

    /// Whether the set of running devices is to be applied.
    pub fn wants_plan(&self) -> bool {
        self.apply_plan
    }

    /// Sets a record.
    pub fn put<T: Serialize>(&mut self, shelf: Shelf, key: impl Into<String>, value: &T) {
        self.changes.insert((shelf, key.into()), Some(record(value)));
    }

    /// Removes a record.
    pub fn delete(&mut self, shelf: Shelf, key: impl Into<String>) {
        self.changes.insert((shelf, key.into()), None);
    }

    /// Sets a retained topic; the last word of a step holds.
    pub fn show(&mut self, topic: String, shown: Shown) {
        self.shows.insert(topic, shown);
    }

    /// Asks for the set of running devices to be applied, once per step.
    pub fn apply_plan(&mut self) {
        self.apply_plan = true;
    }

    /// Asks for something.
    pub fn act(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    /// Writes down who did what.
    pub fn audit(&mut self, now: Stamp, cause: &Cause, action: &str, object: String, detail: String, outcome: &str) {
        let uptime = now.uptime.unless_synchronised(now.trust);
        self.notes.push(AuditNote {
            at_ms: now.wall_ms,
            clock: v1::ClockTrust::from(now.trust).into(),
            boot: uptime.boot,
            uptime_ms: uptime.ms,
            actor: cause.actor.clone(),
            from: cause.from.clone(),
            action: action.to_owned(),
            object,
            detail,
            outcome: outcome.to_owned(),
            correlation_id: cause.correlation_id.clone(),
        });
    }

    /// Publishes an event of a device (`None`: of the gateway).
    pub fn raise(
        &mut self,
        now: Stamp,
        device: Option<&DeviceId>,
        severity: v1::event::Severity,
        kind: &str,
        message: String,
    ) {
        let event = v1::Event {
            device: device.map_or_else(String::new, |d| d.as_str().to_owned()),
            severity: severity.into(),
            kind: kind.to_owned(),
            message,
            ..v1::Event::default()
        };
        self.act(Effect::Raise(event.stamped(now)));
    }

    /// The changes for the journal, and the effects that follow their commit.
    pub fn into_parts(mut self) -> (Vec<Change>, Vec<Effect>) {
        let changes = self.changes.into_iter().map(|((shelf, key), value)| Change { shelf, key, value }).collect();
        let mut effects: Vec<Effect> =
            self.shows.into_iter().map(|(topic, shown)| Effect::Show { topic, shown }).collect();
        if self.apply_plan {
            effects.push(Effect::ApplyPlan);
        }
        effects.append(&mut self.effects);
        (changes, effects)
    }
}
