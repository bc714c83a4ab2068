//! Where management speaks: the board of retained topics, the event log, and the critical lane for answers and audit.

use bytes::Bytes;

use crate::app::events::EventLog;
use crate::app::ingest::device_hash;
use crate::contract::{ContractMessage, Encoding, v1};
use crate::management::service::Outlet;
use crate::management::step::Shown;
use crate::model::{Lane, RecordKind};
use crate::northbound::StateBoard;
use crate::platform::clock::SharedClock;
use crate::store::{MAX_PAYLOAD, NewRecord, Store};

/// Audit entries in one write.
const CHUNK: usize = 256;

/// [`Outlet`] on the gateway's topics and log.
#[derive(Debug)]
pub struct Topics {
    /// Retained topics.
    pub board: StateBoard,
    /// Events and alarms.
    pub events: EventLog,
    /// Answers and audit entries.
    pub store: Store,
    /// Time of records.
    pub clock: SharedClock,
}

impl Topics {
    fn record(&self, kind: RecordKind, device: &str, payload: Bytes) -> NewRecord {
        NewRecord {
            lane: Lane::Critical,
            kind,
            device: device_hash(device),
            ts_ms: self.clock.wall_ms(),
            count: 1,
            payload,
        }
    }
}

impl Outlet for Topics {
    fn show(&self, topic: &str, shown: Shown) {
        match shown {
            Shown::Onboarding(message) => self.board.set(topic, &*message),
            Shown::Config(message) => self.board.set(topic, &*message),
            Shown::Clock(message) => self.board.set(topic, &message),
            Shown::Nothing => self.board.clear(topic),
        }
    }

    /// The topic follows from the answer: `topics::management_result`.
    async fn answer(&self, _topic: &str, body: &v1::ManagementResult) -> Result<(), String> {
        let mut payload = body.encode_as(Encoding::Protobuf);
        if payload.len() > MAX_PAYLOAD {
            let message = format!("{}; the document is too large for a topic: ask with the command line", body.message);
            let body = v1::ManagementResult { document: String::new(), message, ..body.clone() };
            payload = body.encode_as(Encoding::Protobuf);
        }
        let record = self.record(RecordKind::ManagementResult, &body.device, payload);
        self.store.append_synced(vec![record]).await.map(drop).map_err(|e| e.to_string())
    }

    async fn raise(&self, event: v1::Event) {
        self.events.keep(event).await;
    }

    async fn audit(&self, entries: Vec<v1::AuditEntry>) -> Result<(), String> {
        for chunk in entries.chunks(CHUNK) {
            let record = |entry: &v1::AuditEntry| {
                let device = entry.object.strip_prefix("devices/").and_then(|rest| rest.split('/').next());
                self.record(RecordKind::Audit, device.unwrap_or_default(), entry.encode_as(Encoding::Protobuf))
            };
            let records = chunk.iter().map(record).collect();
            self.store.append_synced(records).await.map_err(|e| e.to_string())?;
        }
        Ok(())
    }
}
