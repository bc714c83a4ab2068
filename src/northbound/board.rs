//! The latest retained state messages (health, onboarding, capabilities, configuration reported …).
//!
//! Set by the application and management, published by every session: all of them after it connects, then what changes,
//! coalesced per topic (a slow link gets the newest only). Removal publishes an empty retained payload. Bounded by the
//! number of topics; the marks of removed topics are kept up to [`TOMBSTONES`], then the oldest are forgotten, which a
//! session that was away longer than that many removals does not learn of.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use tokio::sync::watch;

use crate::contract::{ContractMessage, Encoding};

/// Removed topics remembered.
const TOMBSTONES: usize = 4096;

/// A state message, encoded once per encoding and only when somebody wants it.
pub struct StateMessage {
    protobuf: Bytes,
    json: OnceLock<Bytes>,
    to_json: fn(&[u8]) -> Bytes,
}

impl StateMessage {
    fn new<M: ContractMessage>(message: &M) -> Self {
        Self { protobuf: message.encode_as(Encoding::Protobuf), json: OnceLock::new(), to_json: reencode::<M> }
    }

    /// The message in this encoding.
    pub fn payload(&self, encoding: Encoding) -> Bytes {
        match encoding {
            Encoding::Protobuf => self.protobuf.clone(),
            Encoding::Json => self.json.get_or_init(|| (self.to_json)(&self.protobuf)).clone(),
        }
    }
}

fn reencode<M: ContractMessage>(protobuf: &[u8]) -> Bytes {
    M::decode_as(Encoding::Protobuf, protobuf).expect("it was encoded from this very type").encode_as(Encoding::Json)
}

impl fmt::Debug for StateMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StateMessage").field("bytes", &self.protobuf.len()).finish_non_exhaustive()
    }
}

/// One topic that a session has to publish. `None`: it was removed.
pub type Change = (Arc<str>, Option<Arc<StateMessage>>);

#[derive(Debug, Default)]
struct Slots {
    by_topic: HashMap<Arc<str>, (u64, Option<Arc<StateMessage>>)>,
    by_version: BTreeMap<u64, Arc<str>>,
    removed: usize,
    version: u64,
}

/// The board, shared by cloning.
#[derive(Debug, Clone)]
pub struct StateBoard {
    slots: Arc<Mutex<Slots>>,
    version: watch::Sender<u64>,
}

impl Default for StateBoard {
    fn default() -> Self {
        Self { slots: Arc::default(), version: watch::channel(0).0 }
    }
}

impl StateBoard {
    /// Sets the message of a topic relative to the root; nothing happens if it is the same as before.
    pub fn set<M: ContractMessage>(&self, topic: &str, message: &M) {
        let message = StateMessage::new(message);
        let mut slots = self.lock();
        if let Some((_, Some(known))) = slots.by_topic.get(topic)
            && known.protobuf == message.protobuf
        {
            return;
        }
        slots.put(topic, Some(Arc::new(message)));
        self.version.send_replace(slots.version);
    }

    /// Removes a topic: its retained message is cleared on every broker.
    pub fn remove(&self, topic: &str) {
        let mut slots = self.lock();
        if matches!(slots.by_topic.get(topic), Some((_, Some(_)))) {
            slots.put(topic, None);
            slots.forget_old_removals();
            self.version.send_replace(slots.version);
        }
    }

    /// As [`Self::remove`], also for a topic that this board never set: it may be retained from an earlier run, or was
    /// published by the sessions themselves.
    pub fn clear(&self, topic: &str) {
        let mut slots = self.lock();
        if !matches!(slots.by_topic.get(topic), Some((_, None))) {
            slots.put(topic, None);
            slots.forget_old_removals();
            self.version.send_replace(slots.version);
        }
    }

    /// The message of a topic, if it is set.
    pub fn get(&self, topic: &str) -> Option<Arc<StateMessage>> {
        self.lock().by_topic.get(topic).and_then(|(_, message)| message.clone())
    }

    /// What changed after `version` (0: everything), oldest change first, and the version that it brings a session to.
    pub fn changes(&self, version: u64) -> (Vec<Change>, u64) {
        let slots = self.lock();
        let changes = slots
            .by_version
            .range(version + 1..)
            .filter_map(|(_, topic)| slots.by_topic.get(topic).map(|(_, message)| (topic.clone(), message.clone())))
            .collect();
        (changes, slots.version)
    }

    /// Wakes when the version grows.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slots {
    fn put(&mut self, topic: &str, message: Option<Arc<StateMessage>>) {
        self.version += 1;
        let name = self.by_topic.get_key_value(topic).map_or_else(|| Arc::from(topic), |(name, _)| name.clone());
        self.removed += usize::from(message.is_none());
        if let Some((old, before)) = self.by_topic.insert(name.clone(), (self.version, message)) {
            self.by_version.remove(&old);
            self.removed -= usize::from(before.is_none());
        }
        self.by_version.insert(self.version, name);
    }

    fn forget_old_removals(&mut self) {
        while self.removed > TOMBSTONES {
            let is_removed = |topic: &Arc<str>| matches!(self.by_topic.get(topic), Some((_, None)));
            let Some(version) = self.by_version.iter().find(|(_, topic)| is_removed(topic)).map(|(v, _)| *v) else {
                return;
            };
            if let Some(topic) = self.by_version.remove(&version) {
                self.by_topic.remove(&topic);
            }
            self.removed -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::v1;

    fn device(state: &str) -> v1::Onboarding {
        v1::Onboarding { state: state.into(), ..v1::Onboarding::default() }
    }

    fn names(changes: &[Change]) -> Vec<&str> {
        changes.iter().map(|(t, _)| &**t).collect()
    }

    #[test]
    fn changes_are_coalesced_per_topic_and_come_oldest_first() {
        let board = StateBoard::default();
        board.set("a", &device("pending"));
        board.set("b", &device("pending"));
        board.set("a", &device("active"));
        let (changes, version) = board.changes(0);
        assert_eq!(names(&changes), ["b", "a"]);
        let json = changes[1].1.as_ref().unwrap().payload(Encoding::Json);
        assert_eq!(&json[..], br#"{"state":"active"}"#);
        board.set("a", &device("active"));
        assert_eq!(board.changes(version), (vec![], version).clone());
        board.set("b", &device("active"));
        assert_eq!(names(&board.changes(version).0), ["b"]);
    }

    #[test]
    fn a_removal_is_a_change_too() {
        let board = StateBoard::default();
        let watch = board.watch();
        board.remove("never");
        assert!(!watch.has_changed().unwrap());
        board.set("a", &device("active"));
        let (_, version) = board.changes(0);
        board.remove("a");
        assert!(watch.has_changed().unwrap());
        let (changes, _) = board.changes(version);
        assert_eq!(names(&changes), ["a"]);
        assert!(changes[0].1.is_none() && board.get("a").is_none());
    }

    #[test]
    fn marks_of_removed_topics_are_bounded() {
        let board = StateBoard::default();
        board.set("stays", &device("active"));
        for n in 0..TOMBSTONES + 10 {
            let topic = format!("t{n}");
            board.set(&topic, &device("active"));
            board.remove(&topic);
        }
        let (changes, _) = board.changes(0);
        assert_eq!(changes.len(), TOMBSTONES + 1);
        assert_eq!(&*changes[0].0, "stays");
    }

    impl PartialEq for StateMessage {
        fn eq(&self, other: &Self) -> bool {
            self.protobuf == other.protobuf
        }
    }
}
