//! Entries of the audit log: who did what, from where, and how it ended.

use crate::contract::{Stamped, v1};
use crate::model::Stamp;

/// Longest text of one field, in characters: a sender must not fill the log with one entry.
const MAX_FIELD: usize = 1_000;
/// Refusals that are audited one by one in a minute.
const REFUSALS_PER_MINUTE: u32 = 60;
const MINUTE_NS: u64 = 60_000_000_000;

/// What an entry says; texts of senders are cut and made printable.
#[derive(Debug, Clone, Default)]
pub struct Deed<'a> {
    /// Identity on its way in, such as `mqtt:local:operator1`.
    pub actor: &'a str,
    /// Such as `write`.
    pub action: &'a str,
    /// Such as `devices/pump-1/points/setpoint`.
    pub object: &'a str,
    /// Whatever else a reader wants to know.
    pub detail: &'a str,
    /// `done`, `rejected`, `failed`, with the code behind it.
    pub outcome: &'a str,
    /// The request's id.
    pub correlation_id: &'a str,
}

/// Makes an entry.
pub fn entry(at: Stamp, deed: &Deed<'_>) -> v1::AuditEntry {
    v1::AuditEntry {
        actor: printable(deed.actor),
        action: printable(deed.action),
        object: printable(deed.object),
        detail: printable(deed.detail),
        outcome: printable(deed.outcome),
        correlation_id: printable(deed.correlation_id),
        ..v1::AuditEntry::default()
    }
    .stamped(at)
}

/// A text without control characters, at most [`MAX_FIELD`] long.
pub(super) fn printable(text: &str) -> String {
    let mut clean: String = text.chars().take(MAX_FIELD).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if text.chars().nth(MAX_FIELD).is_some() {
        clean.push('…');
    }
    clean
}

/// Keeps a flood of refused requests out of the audit log: so many are written one by one per minute, the others are
/// counted in the next one.
#[derive(Debug, Default)]
pub(super) struct RefusalGate {
    since_ns: u64,
    written: u32,
    skipped: u64,
}

impl RefusalGate {
    /// `Some(skipped before)` when this refusal is to be written.
    pub fn pass(&mut self, at: Stamp) -> Option<u64> {
        if at.mono_ns.saturating_sub(self.since_ns) >= MINUTE_NS {
            (self.since_ns, self.written) = (at.mono_ns, 0);
        }
        if self.written >= REFUSALS_PER_MINUTE {
            self.skipped += 1;
            return None;
        }
        self.written += 1;
        Some(std::mem::take(&mut self.skipped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::clock::{Clock, ManualClock};
    use std::time::Duration;

    #[test]
    fn texts_of_senders_are_cut_and_printable() {
        assert_eq!(printable("a\nb\u{1b}[2J"), "a\u{fffd}b\u{fffd}[2J");
        assert_eq!(printable(&"x".repeat(5_000)).chars().count(), MAX_FIELD + 1);
    }

    #[test]
    fn a_flood_of_refusals_is_counted() {
        let clock = ManualClock::at(0);
        let mut gate = RefusalGate::default();
        let written = (0..1_000).filter(|_| gate.pass(clock.now()).is_some()).count();
        assert_eq!(written, 60);
        clock.advance(Duration::from_secs(60));
        assert_eq!(gate.pass(clock.now()), Some(940));
    }
}
