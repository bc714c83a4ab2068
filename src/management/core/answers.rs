//! Answers given, so that a request that comes twice is answered twice and done once.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::contract::v1;
use crate::management::journal::{JournalError, Records, Shelf};
use crate::management::request::{Actor, Ask, Refusal};
use crate::management::step::{Cause, Step};
use crate::model::Stamp;

/// Answers remembered; the oldest go.
const MAX_ANSWERS: usize = 4_096;

/// The final answer to a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Names the request: requester and correlation id.
    pub key: String,
    /// Who asked.
    pub actor: String,
    /// Where it is published, relative to the root.
    pub topic: String,
    /// The message.
    pub body: v1::ManagementResult,
}

impl Answer {
    pub(super) fn new(actor: &Actor, cause: &Cause, ask: &Ask, body: v1::ManagementResult) -> Self {
        Self { key: key(actor, cause), actor: actor.name.clone(), topic: ask.result_topic(), body }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Kept {
    order: u64,
    digest: String,
    at_ms: i64,
    delivered: bool,
    answer: Answer,
}

#[derive(Debug, Default)]
pub(super) struct Answers {
    by_key: BTreeMap<String, Kept>,
    by_age: BTreeMap<u64, String>,
    /// Delivered since the last commit.
    dirty: BTreeSet<String>,
}

impl Answers {
    pub(super) fn load(records: &Records) -> Result<Self, JournalError> {
        let by_key: BTreeMap<String, Kept> = records.read_all(Shelf::Answers)?;
        let by_age = by_key.iter().map(|(key, kept)| (kept.order, key.clone())).collect();
        Ok(Self { by_key, by_age, dirty: BTreeSet::new() })
    }

    /// The answer to a request that came before, or why this one is none.
    pub(super) fn known(&self, actor: &Actor, cause: &Cause, ask: &Ask) -> Option<Result<Answer, Refusal>> {
        let kept = self.by_key.get(&key(actor, cause))?;
        if kept.digest == ask.digest() {
            return Some(Ok(kept.answer.clone()));
        }
        let text = format!("correlation id {:?} was used for another request; choose a new one", cause.correlation_id);
        Some(Err(Refusal::new("correlation-reused", text)))
    }

    pub(super) fn keep(&mut self, now: Stamp, answer: &Answer, ask: &Ask, step: &mut Step) {
        let order = self.by_age.last_key_value().map_or(1, |(last, _)| last + 1);
        let mut kept =
            Kept { order, digest: ask.digest(), at_ms: now.wall_ms, delivered: false, answer: answer.clone() };
        if !kept.answer.body.token.is_empty() {
            kept.answer.body.token.clear();
            kept.answer.body.message.push_str(" (the token was shown once; revoke it and make another if it is lost)");
        }
        step.put(Shelf::Answers, answer.key.clone(), &kept);
        self.by_age.insert(order, answer.key.clone());
        self.by_key.insert(answer.key.clone(), kept);
        while self.by_key.len() > MAX_ANSWERS {
            let Some((_, oldest)) = self.by_age.pop_first() else { break };
            self.by_key.remove(&oldest);
            self.dirty.remove(&oldest);
            step.delete(Shelf::Answers, oldest);
        }
    }

    /// The answer was handed over; written down with the next commit.
    pub(super) fn delivered(&mut self, key: &str) {
        if let Some(kept) = self.by_key.get_mut(key).filter(|k| !k.delivered) {
            kept.delivered = true;
            self.dirty.insert(key.to_owned());
        }
    }

    pub(super) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    pub(super) fn write_dirty(&mut self, step: &mut Step) {
        for key in std::mem::take(&mut self.dirty) {
            if let Some(kept) = self.by_key.get(&key) {
                step.put(Shelf::Answers, key, kept);
            }
        }
    }

    /// Answers that may not have been handed over before the process ended.
    pub(super) fn undelivered(&self) -> Vec<Answer> {
        let waiting = self.by_age.values().filter_map(|key| self.by_key.get(key)).filter(|kept| !kept.delivered);
        waiting.map(|kept| kept.answer.clone()).collect()
    }
}

fn key(actor: &Actor, cause: &Cause) -> String {
    // A space cannot stand in a correlation id.
    format!("{} {}", cause.correlation_id, actor.name)
}
