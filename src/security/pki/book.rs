//! What the inventory's events add up to. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::inventory::{Entry, Event, Reason, Serial};
use super::life::DAY;

/// Revoked and expired certificates stay known this long after their end (RFC 5280, 3.3 wants one list beyond it).
const REMEMBERED: i64 = 30 * DAY;

/// A certificate that was taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Revocation {
    /// When, Unix seconds.
    pub at: i64,
    /// Why.
    pub reason: Reason,
    /// When the certificate would have ended, if known.
    pub not_after: Option<i64>,
}

/// Standing of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// Valid and the newest of its line.
    Valid,
    /// Valid, but a newer one took its place.
    Replaced,
    /// Its start lies ahead.
    NotYet,
    /// Its end has passed.
    Expired,
    /// Taken back.
    Revoked,
}

impl Status {
    /// Stable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Replaced => "replaced",
            Self::NotYet => "not-yet",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        }
    }
}

/// Everything issued and revoked.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Book {
    entries: BTreeMap<Serial, Entry>,
    replaced: BTreeSet<Serial>,
    revoked: BTreeMap<Serial, Revocation>,
    list: Option<(u64, i64, i64)>,
    floor: i64,
}

impl Book {
    /// Takes one event in. Order matters only between a certificate and its revocation, and not even there.
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Issued(entry) => {
                self.raise_floor(entry.issued, entry.trusted_clock);
                self.replaced.extend(entry.replaces.clone());
                self.entries.insert(entry.serial.clone(), entry);
            }
            Event::Revoked { serial, at, reason, not_after } => {
                // The first revocation counts: a later one must not move the date.
                self.revoked.entry(serial).or_insert(Revocation { at, reason, not_after });
            }
            Event::List { number, at, next_update, trusted_clock } => {
                self.raise_floor(at, trusted_clock);
                if self.list.is_none_or(|(newest, ..)| number > newest) {
                    self.list = Some((number, at, next_update));
                }
            }
        }
    }

    fn raise_floor(&mut self, at: i64, trusted: bool) {
        if trusted {
            self.floor = self.floor.max(at);
        }
    }

    /// Newest time that a disciplined clock wrote down here, Unix seconds; 0 for never.
    pub const fn floor(&self) -> i64 {
        self.floor
    }

    /// All certificates by serial.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// One certificate.
    pub fn entry(&self, serial: &Serial) -> Option<&Entry> {
        self.entries.get(serial)
    }

    /// All revocations by serial.
    pub fn revoked(&self) -> impl Iterator<Item = (&Serial, &Revocation)> {
        self.revoked.iter()
    }

    /// Whether a serial was taken back.
    pub fn is_revoked(&self, serial: &Serial) -> bool {
        self.revoked.contains_key(serial)
    }

    /// Whether a newer certificate took this one's place.
    pub fn is_replaced(&self, serial: &Serial) -> bool {
        self.replaced.contains(serial)
    }

    /// The newest revocation list: number, time of issue, time by which the next one is due.
    pub const fn list(&self) -> Option<(u64, i64, i64)> {
        self.list
    }

    /// Standing of `entry` at `now` (Unix seconds).
    pub fn status(&self, entry: &Entry, now: i64) -> Status {
        match entry {
            _ if self.is_revoked(&entry.serial) => Status::Revoked,
            _ if now > entry.validity.not_after => Status::Expired,
            _ if now < entry.validity.not_before => Status::NotYet,
            _ if self.is_replaced(&entry.serial) => Status::Replaced,
            _ => Status::Valid,
        }
    }

    /// The events that are still worth keeping at `now`, and whether dropping the rest is worth a rewrite.
    pub fn compacted(&self, now: i64) -> (Vec<Event>, bool) {
        let kept = |not_after: Option<i64>| not_after.is_none_or(|end| end + REMEMBERED > now);
        let entries = self.entries.values().filter(|entry| kept(Some(entry.validity.not_after)));
        let mut events: Vec<Event> = entries.cloned().map(Event::Issued).collect();
        let revoked = self.revoked.iter().filter(|(_, revocation)| kept(revocation.not_after));
        events.extend(revoked.map(|(serial, revocation)| {
            let Revocation { at, reason, not_after } = *revocation;
            Event::Revoked { serial: serial.clone(), at, reason, not_after }
        }));
        events.extend(self.list.map(|(number, at, next_update)| Event::List {
            number,
            at: at.max(self.floor),
            next_update,
            trusted_clock: self.floor > 0,
        }));
        let all = self.entries.len() + self.revoked.len() + usize::from(self.list.is_some());
        (events.clone(), all >= 64 && events.len() * 2 <= all)
    }
}
