//! What is remembered of commands across restarts.

use std::future::Future;

use bytes::Bytes;
use prost::Message;
use serde::{Deserialize, Serialize};

use crate::contract::v1;
use crate::model::{DeviceId, Stamp};

/// Names one command: what arrives again with the same key is not done again.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CommandKey {
    /// The device.
    pub device: DeviceId,
    /// The sender's id, 1 to 64 characters.
    pub correlation_id: String,
}

impl CommandKey {
    /// The key as text, for a keyed store: ids of devices have no `/`.
    pub fn as_text(&self) -> String {
        format!("{}/{}", self.device, self.correlation_id)
    }
}

/// How far a command came.
#[derive(Debug, Clone, PartialEq)]
pub enum Progress {
    /// Stored; nothing was written.
    Queued,
    /// The first write may have been sent.
    Started,
    /// Finished; the answer may not have been given yet.
    Done(v1::CommandResult),
    /// Finished and answered.
    Answered(v1::CommandResult),
}

/// One command in the ledger.
#[derive(Debug, Clone, PartialEq)]
pub struct LedgerEntry {
    /// Which command.
    pub key: CommandKey,
    /// crc32c of the command: the same id with another content is refused.
    pub digest: u32,
    /// Wall clock of its arrival, milliseconds since 1970.
    pub accepted_ms: i64,
    /// Who sent it.
    pub actor: String,
    /// How far it came.
    pub progress: Progress,
}

/// The ledger cannot be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the ledger of commands cannot be {act}: {reason}; see the disk of the data directory")]
pub struct LedgerError {
    /// `read` or `written`.
    pub act: &'static str,
    /// Why not.
    pub reason: String,
}

/// Keeps entries by key. The app gives one on the keyed state of the store.
pub trait CommandLedger: Send + Sync + 'static {
    /// All entries.
    fn load(&self) -> impl Future<Output = Result<Vec<LedgerEntry>, LedgerError>> + Send;

    /// Puts and removes entries at once; durable before `Ok`.
    fn apply(
        &self,
        put: Vec<LedgerEntry>,
        remove: Vec<CommandKey>,
    ) -> impl Future<Output = Result<(), LedgerError>> + Send;
}

/// The form on disk. The version grows when a field changes its meaning.
#[derive(Serialize, Deserialize)]
struct Stored {
    v: u8,
    device: String,
    id: String,
    digest: u32,
    at: i64,
    actor: String,
    state: StoredState,
    result: Option<v1::CommandResult>,
}

#[derive(Serialize, Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum StoredState {
    Queued,
    Started,
    Done,
    Answered,
}

const VERSION: u8 = 1;

impl LedgerEntry {
    /// The line in the audit log for its result. Its id is the same however often a crash lets it be written.
    pub(super) fn audited(
        &self,
        result: &v1::CommandResult,
        command: Option<&v1::Command>,
        note: &str,
        at: Stamp,
    ) -> v1::AuditEntry {
        let id = format!("c{}/{}", self.accepted_ms, self.key.as_text());
        v1::AuditEntry { id, ..super::result::audited(&self.actor, command, result, note, at) }
    }

    /// The entry as octets, for a [`CommandLedger`].
    pub fn encode(&self) -> Bytes {
        let (state, result) = match &self.progress {
            Progress::Queued => (StoredState::Queued, None),
            Progress::Started => (StoredState::Started, None),
            Progress::Done(result) => (StoredState::Done, Some(result.clone())),
            Progress::Answered(result) => (StoredState::Answered, Some(result.clone())),
        };
        let stored = Stored {
            v: VERSION,
            device: self.key.device.to_string(),
            id: self.key.correlation_id.clone(),
            digest: self.digest,
            at: self.accepted_ms,
            actor: self.actor.clone(),
            state,
            result,
        };
        serde_json::to_vec(&stored).expect("an entry has string keys, and writing to memory does not fail").into()
    }

    /// Reads [`LedgerEntry::encode`].
    ///
    /// # Errors
    /// Octets that are no entry of a version that this program knows.
    pub fn decode(octets: &[u8]) -> Result<Self, LedgerError> {
        let fail = |reason: String| LedgerError { act: "read", reason };
        let stored: Stored = serde_json::from_slice(octets).map_err(|e| fail(e.to_string()))?;
        if stored.v != VERSION {
            return Err(fail(format!("an entry has version {}, this program knows {VERSION}", stored.v)));
        }
        let progress = match (stored.state, stored.result) {
            (StoredState::Queued, _) => Progress::Queued,
            (StoredState::Done, Some(result)) => Progress::Done(result),
            (StoredState::Answered, Some(result)) => Progress::Answered(result),
            (StoredState::Started | StoredState::Done | StoredState::Answered, _) => Progress::Started,
        };
        Ok(Self {
            key: CommandKey {
                device: stored.device.parse().map_err(|e: crate::model::IdError| fail(e.to_string()))?,
                correlation_id: stored.id,
            },
            digest: stored.digest,
            accepted_ms: stored.at,
            actor: stored.actor,
            progress,
        })
    }

    /// Octets that the entry takes in memory, near enough for a bound.
    pub(super) fn weight(&self) -> usize {
        let result = match &self.progress {
            Progress::Done(result) | Progress::Answered(result) => 2 * result.encoded_len(),
            Progress::Queued | Progress::Started => 0,
        };
        200 + 2 * self.key.correlation_id.len() + self.actor.len() + result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn entries_read_back() {
        let key = CommandKey { device: DeviceId::new("pump").unwrap(), correlation_id: "c\"1/\u{e4}".into() };
        let result = v1::CommandResult { correlation_id: "c1".into(), code: "denied".into(), ..Default::default() };
        for progress in
            [Progress::Queued, Progress::Started, Progress::Done(result.clone()), Progress::Answered(result)]
        {
            let entry = LedgerEntry { key: key.clone(), digest: 7, accepted_ms: -5, actor: "a".into(), progress };
            assert_eq!(LedgerEntry::decode(&entry.encode()), Ok(entry));
        }
    }

    proptest! {
        #[test]
        fn damaged_entries_are_refused(octets in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(LedgerEntry::decode(&octets).is_err());
        }
    }
}
