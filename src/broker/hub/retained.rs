//! Retained messages: in memory, bounded, with a note of what must be written.
//!
//! Two classes: what clients and the gateway publish as [`Retain::Persisted`] is noted at once and taken by the writer
//! within a second, the last value per topic; [`Retain::Snapshot`] values carry a mark that the writer collects at
//! intervals, so that a topic that changes ten times a second costs one write per interval.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::Message;
use crate::broker::{Identity, Qos, Retain, topic};

#[derive(Debug)]
struct Entry {
    message: Arc<Message>,
    /// A snapshot-class value that changed since the last snapshot.
    marked: bool,
}

/// A change to be written: the message to keep under a topic, or none.
pub(in crate::broker) type Change = (Arc<str>, Option<Arc<Message>>);

/// All retained messages.
#[derive(Debug)]
pub(in crate::broker) struct Retained {
    map: HashMap<Arc<str>, Entry>,
    bytes: usize,
    most: usize,
    most_bytes: usize,
    /// Topics to be written within a second.
    dirty: HashSet<Arc<str>>,
    /// Messages with an expiry.
    expiring: usize,
}

impl Retained {
    pub fn new(most: usize, most_bytes: usize) -> Self {
        Self { map: HashMap::new(), bytes: 0, most, most_bytes, dirty: HashSet::new(), expiring: 0 }
    }

    pub fn len(&self) -> usize {
        self.map.len()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Keeps `message`, or clears its topic when the payload is empty; `false` when there is no room for it, and then what
    /// was kept before is cleared too: an old value would be worse than none.
    pub fn put(&mut self, message: &Arc<Message>, class: Retain) -> bool {
        let old = self.map.get(&message.topic).map_or(0, |entry| entry.message.cost());
        let fits = self.bytes - old + message.cost() <= self.most_bytes && (old > 0 || self.map.len() < self.most);
        if message.payload.is_empty() || !fits {
            self.remove(&message.topic);
            return fits || message.payload.is_empty();
        }
        self.bytes = self.bytes - old + message.cost();
        self.expiring += usize::from(message.expires.is_some());
        let entry = Entry { message: message.clone(), marked: class == Retain::Snapshot };
        match self.map.get_mut(&message.topic) {
            Some(kept) => {
                self.expiring -= usize::from(kept.message.expires.is_some());
                *kept = entry;
            }
            None => {
                self.map.insert(message.topic.clone(), entry);
            }
        }
        if class == Retain::Persisted {
            self.dirty.insert(message.topic.clone());
        }
        true
    }

    fn remove(&mut self, topic: &str) {
        if let Some((topic, entry)) = self.map.remove_entry(topic) {
            self.bytes -= entry.message.cost();
            self.expiring -= usize::from(entry.message.expires.is_some());
            self.dirty.insert(topic);
        }
    }

    /// Puts back what was stored before the start.
    pub fn restore(&mut self, message: Message) -> bool {
        let topic = message.topic.clone();
        let kept = self.put(&Arc::new(message), Retain::Persisted);
        self.dirty.remove(&topic);
        kept
    }

    /// The messages that `filter` matches.
    pub fn matching<'a>(&'a self, filter: &'a str, now: u64) -> Box<dyn Iterator<Item = &'a Arc<Message>> + 'a> {
        if filter.contains(['+', '#']) {
            Box::new(self.all().filter(move |m| topic::matches(filter, &m.topic) && !m.expired(now)))
        } else {
            Box::new(self.map.get(filter).map(|entry| &entry.message).into_iter().filter(move |m| !m.expired(now)))
        }
    }

    /// All messages.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Message>> {
        self.map.values().map(|entry| &entry.message)
    }

    /// Forgets messages whose time is over.
    pub fn expire(&mut self, now: u64) {
        if self.expiring == 0 {
            return;
        }
        let over: Vec<Arc<str>> = self.all().filter(|m| m.expired(now)).map(|m| m.topic.clone()).collect();
        over.iter().for_each(|topic| self.remove(topic));
    }

    /// Takes what must be written: what is dirty, and with `snapshot` what is marked too.
    pub fn changes(&mut self, snapshot: bool) -> Vec<Change> {
        let mut changes: Vec<Change> = Vec::new();
        if snapshot {
            for (topic, entry) in self.map.iter_mut().filter(|(_, entry)| entry.marked) {
                entry.marked = false;
                if !self.dirty.contains(topic) {
                    changes.push((topic.clone(), Some(entry.message.clone())));
                }
            }
        }
        for topic in self.dirty.drain() {
            let message = self.map.get(&topic).map(|entry| entry.message.clone());
            changes.push((topic, message));
        }
        self.dirty.shrink_to(64);
        changes
    }

    /// The writing failed: take them again next time.
    pub fn not_written(&mut self, topics: impl IntoIterator<Item = Arc<str>>) {
        self.dirty.extend(topics);
    }
}

/// Version of the stored form.
const FORM: u8 = 1;

/// The stored form of a message: `form, qos, expiry (wall ms, 0 none), publisher (0 the gateway, 1 a client with id and
/// name), properties, payload`. `wall_minus_mono` turns monotonic into wall milliseconds.
pub(in crate::broker) fn encode_retained(message: &Message, wall_minus_mono: i64) -> Bytes {
    let mut out = BytesMut::with_capacity(message.cost());
    out.put_u8(FORM);
    out.put_u8(message.qos as u8);
    out.put_i64(message.expires.map_or(0, |at| i64::try_from(at).unwrap_or(i64::MAX).saturating_add(wall_minus_mono)));
    match &message.from {
        None => out.put_u8(0),
        Some(from) => {
            out.put_u8(1);
            for part in [&*from.client_id, from.user.as_deref().unwrap_or(""), from.tls_name.as_deref().unwrap_or("")] {
                out.put_u32(part.len() as u32);
                out.put_slice(part.as_bytes());
            }
        }
    }
    out.put_u32(message.forward.len() as u32);
    out.put_slice(&message.forward);
    out.put_slice(&message.payload);
    out.freeze()
}

/// Reads the stored form; `None` when it is none that this version knows.
pub(in crate::broker) fn decode_retained(name: &str, mut value: Bytes, wall_minus_mono: i64) -> Option<Message> {
    if !topic::valid_name(name) || value.try_get_u8().ok()? != FORM {
        return None;
    }
    let qos = Qos::from_u8(value.try_get_u8().ok()?)?;
    let expires = match value.try_get_i64().ok()? {
        0 => None,
        wall => Some(u64::try_from(wall.saturating_sub(wall_minus_mono)).unwrap_or(0)),
    };
    let from = match value.try_get_u8().ok()? {
        0 => None,
        _ => {
            let client_id = text(&mut value)?.into();
            let named = |text: String| Some(text).filter(|text| !text.is_empty());
            let user = named(text(&mut value)?);
            let tls_name = named(text(&mut value)?);
            Some(Arc::new(Identity { client_id, user, address: None, tls_name, certificate: None }))
        }
    };
    let forward = bytes(&mut value)?;
    Some(Message { topic: name.into(), payload: value, qos, retain: true, forward, expires, from })
}

fn bytes(value: &mut Bytes) -> Option<Bytes> {
    let len = value.try_get_u32().ok()? as usize;
    (len <= value.len()).then(|| value.split_to(len))
}

fn text(value: &mut Bytes) -> Option<String> {
    String::from_utf8(bytes(value)?.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(topic: &str, payload: &str) -> Arc<Message> {
        Arc::new(Message::own(topic.into(), Bytes::copy_from_slice(payload.as_bytes()), Qos::AtLeastOnce, true))
    }

    #[test]
    fn fast_values_are_written_at_snapshots_only() {
        let mut retained = Retained::new(10, 10_000);
        retained.put(&message("fast", "1"), Retain::Snapshot);
        retained.put(&message("slow", "1"), Retain::Persisted);
        retained.put(&message("slow", "2"), Retain::Persisted);
        let changes = retained.changes(false);
        assert_eq!(changes.len(), 1);
        assert_eq!((&*changes[0].0, &changes[0].1.as_ref().unwrap().payload[..]), ("slow", &b"2"[..]));
        assert_eq!(&*retained.changes(true)[0].0, "fast");
        assert!(retained.changes(true).is_empty());
        retained.put(&message("slow", ""), Retain::Persisted);
        assert_eq!(retained.changes(false), [("slow".into(), None)]);
    }

    #[test]
    fn a_full_store_refuses_and_keeps_its_account() {
        let mut retained = Retained::new(2, 1_000);
        assert!(
            retained.put(&message("a", "1"), Retain::Persisted) && retained.put(&message("b", "1"), Retain::Persisted)
        );
        assert!(!retained.put(&message("c", "1"), Retain::Persisted), "too many");
        assert!(!retained.put(&message("a", &"x".repeat(2_000)), Retain::Persisted), "too large");
        assert_eq!(retained.len(), 1, "the old value of a is gone with the refused one");
        retained.put(&message("b", ""), Retain::Persisted);
        assert_eq!((retained.len(), retained.bytes()), (0, 0));
    }

    proptest! {
        #[test]
        fn the_stored_form_round_trips(
            payload in prop::collection::vec(any::<u8>(), 0..50), user in prop::option::of("[a-z]{1,5}"),
            expires in prop::option::of(1u64..1 << 40), own: bool,
        ) {
            let from = (!own).then(|| Arc::new(Identity { client_id: "c/1".into(), user, ..Identity::default() }));
            let forward = Bytes::from_static(b"\x01\x01");
            let before = Message { topic: "a/b".into(), payload: payload.into(), qos: Qos::AtLeastOnce, retain: true, forward, expires, from };
            let stored = encode_retained(&before, 1_700_000_000_000);
            prop_assert_eq!(decode_retained("a/b", stored, 1_700_000_000_000), Some(before));
        }

        #[test]
        fn damaged_values_never_panic(value in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = decode_retained("a", value.into(), 0);
        }
    }
}
