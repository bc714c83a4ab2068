//! Events into the critical lane: what a person may want to know, on the topics `events` and `devices/{d}/events`.

use super::ingest::device_hash;
use crate::contract::v1::event::Severity;
use crate::contract::{ContractMessage, Encoding, Stamped, v1};
use crate::model::{Lane, RecordKind};
use crate::platform::clock::SharedClock;
use crate::store::{NewRecord, Store};

/// Appends events; cheap to clone.
#[derive(Debug, Clone)]
pub struct EventLog {
    store: Store,
    clock: SharedClock,
}

impl EventLog {
    /// Writes to this store.
    pub fn new(store: Store, clock: SharedClock) -> Self {
        Self { store, clock }
    }

    /// Appends one event; `device` is empty for the gateway itself. Without a store there is nobody to tell but the log.
    pub async fn report(&self, severity: Severity, kind: &str, device: &str, message: String) {
        let now = self.clock.now();
        let event = v1::Event {
            device: device.to_owned(),
            severity: severity.into(),
            kind: kind.to_owned(),
            message,
            ..v1::Event::default()
        };
        self.keep(event.stamped(now)).await;
    }

    /// Appends an event that somebody made.
    pub async fn keep(&self, event: v1::Event) {
        let record = NewRecord {
            lane: Lane::Critical,
            kind: RecordKind::Event,
            device: device_hash(&event.device),
            ts_ms: self.clock.wall_ms(),
            count: 1,
            payload: event.encode_as(Encoding::Protobuf),
        };
        if let Err(error) = self.store.append(vec![record]).await {
            tracing::error!(%error, kind = event.kind, device = event.device, message = event.message, "event was not stored");
        }
    }
}
