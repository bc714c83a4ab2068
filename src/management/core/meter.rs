//! Counts what is refused, and writes it down without letting a flood of bad requests wear out the disk.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::management::request::{Actor, Ask, Refusal};
use crate::management::step::{Cause, Step};
use crate::model::Stamp;

/// Refusals of one requester that are written down one by one in a minute; the rest is counted in one entry.
const ENTRIES: u32 = 10;
const MINUTE_NS: u64 = 60_000_000_000;
/// Requesters told apart in a minute; the rest shares one entry.
const REQUESTERS: usize = 256;
const OTHERS: &str = "others";

/// Since start, for everybody who counts and everybody who shows it.
#[derive(Debug, Default)]
pub struct Counters {
    refused: AtomicU64,
    malformed: AtomicU64,
    replayed: AtomicU64,
}

impl Counters {
    /// A request was refused.
    pub fn refused(&self) {
        self.refused.fetch_add(1, Relaxed);
    }

    /// A request came again and was answered again.
    pub fn repeated(&self) {
        self.replayed.fetch_add(1, Relaxed);
    }

    /// What was counted so far.
    pub fn counts(&self) -> Counts {
        let of = |counter: &AtomicU64| counter.load(Relaxed);
        Counts { refused: of(&self.refused), malformed: of(&self.malformed), replayed: of(&self.replayed) }
    }
}

/// Requests since start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Requests refused for a reason: no right, not possible, invalid document.
    pub refused: u64,
    /// Messages that were no request at all.
    pub malformed: u64,
    /// Requests that came again and were answered again.
    pub replayed: u64,
}

#[derive(Debug, Default)]
pub(super) struct Meter {
    counters: Arc<Counters>,
    /// Per requester: entries written and refusals not written in this minute.
    minute: BTreeMap<String, (u32, u64)>,
    ends_ns: u64,
}

impl Meter {
    pub(super) fn new(counters: Arc<Counters>) -> Self {
        Self { counters, ..Self::default() }
    }

    pub(super) fn counts(&self) -> Counts {
        self.counters.counts()
    }

    pub(super) fn replayed(&mut self) {
        self.counters.repeated();
    }

    pub(super) fn malformed(&mut self, now: Stamp, actor: &Actor, refusal: &Refusal, step: &mut Step) {
        self.counters.malformed.fetch_add(1, Relaxed);
        let cause = Cause { actor: actor.name.clone(), from: actor.from.clone(), correlation_id: String::new() };
        self.write(now, &cause, "request", String::new(), refusal, step);
    }

    pub(super) fn refused(&mut self, now: Stamp, cause: &Cause, ask: &Ask, refusal: &Refusal, step: &mut Step) {
        self.counters.refused();
        let object = ask.device().map_or_else(|| "gateway".to_owned(), |d| format!("devices/{d}"));
        let action: String = ask.action().chars().take(32).collect();
        self.write(now, cause, &action, object, refusal, step);
    }

    fn write(&mut self, now: Stamp, cause: &Cause, action: &str, object: String, refusal: &Refusal, step: &mut Step) {
        if self.minute.is_empty() {
            self.ends_ns = now.mono_ns.saturating_add(MINUTE_NS);
        }
        let full = self.minute.len() >= REQUESTERS && !self.minute.contains_key(&cause.actor);
        let who = if full { OTHERS.to_owned() } else { cause.actor.clone() };
        let (written, silent) = self.minute.entry(who).or_default();
        if *written < ENTRIES {
            *written += 1;
            let words: String = refusal.message.chars().take(300).collect();
            step.audit(now, cause, action, object, words, refusal.code);
        } else {
            *silent += 1;
        }
    }

    /// At the end of the minute: one entry per requester for what was not written.
    pub(super) fn roll(&mut self, now: Stamp, step: &mut Step) {
        if self.minute.is_empty() || now.mono_ns < self.ends_ns {
            return;
        }
        for (who, (_, silent)) in std::mem::take(&mut self.minute) {
            if silent > 0 {
                let words = format!("{silent} more requests refused within a minute");
                step.audit(now, &Cause::own(&who), "request", String::new(), words, "refused");
            }
        }
    }

    pub(super) fn next_wake(&self) -> Option<u64> {
        self.minute.values().any(|(_, silent)| *silent > 0).then_some(self.ends_ns)
    }
}
