//! What decommissioning removes, and what the certificate of erasure says of it.
//!
//! Promise: the certificate names what was found and removed, and what is left by intention. Everything may be done twice:
//! after a crash, a refusal of the disk or a wait for delivery it begins anew.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep};

use super::world::{Plant, blocking};
use crate::app::adapters::RETAINED;
use crate::app::commands::COMMANDS;
use crate::app::ingest::device_hash;
use crate::contract::view::TelemetryView;
use crate::contract::{ContractMessage, Encoding, topics, v1};
use crate::management::lifecycle::{Erasure, Stored};
use crate::model::{DeviceId, RecordKind};
use crate::store::{self, Erased, Op};

/// Results of commands that are forgotten in one write.
const CHUNK: usize = 500;
/// How long a consumer that keeps up is waited for, and the first of the growing pauses between two looks at the log.
const SHORT_WAIT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(200);

/// What a certificate says besides.
const LEFT: &str = "left: this audit log, its entry in the registry, what consumers already have, and in the journal of the \
                    registry its former configuration until that space is used again";

impl Plant {
    /// Takes its credentials back, removes what is kept of it, and erases its values in the store as `stored` says.
    pub(super) async fn remove(&self, device: &DeviceId, stored: Stored) -> Result<Erasure, String> {
        self.fleet.at_rest(device).await;
        let (credentials, id) = (self.credentials.clone(), device.clone());
        let revoked = blocking(move || credentials.revoke(&id)).await?;
        self.fleet.forget(device);
        self.firmware.forget(device).await?;
        self.clear_topics(device)?;
        let results = self.forget_results(device).await?;
        let log = match stored {
            Stored::Keep => {
                "stored values stay in the log until they are delivered and their space is used again".to_owned()
            }
            Stored::AfterDelivery | Stored::Now => {
                let erased = self.erase_stored(device, stored == Stored::Now).await?;
                if !erased.waiting.is_empty() {
                    return Ok(Erasure::Waits(erased.waiting.into_keys().collect()));
                }
                in_words(&erased)
            }
        };
        Ok(Erasure::Done(vec![
            format!("{revoked} certificates revoked"),
            "retained topics cleared, at brokers that are not connected now when they are".to_owned(),
            "configuration with its versions and firmware job removed".to_owned(),
            format!("results of {results} commands removed"),
            log,
            LEFT.to_owned(),
        ]))
    }

    /// Those that files and management know, and whatever else the embedded broker keeps below the device's topic: points
    /// of a file that is gone, say.
    fn clear_topics(&self, device: &DeviceId) -> Result<(), String> {
        self.fleet.clear_topics(device);
        let (root, shown) = (format!("{}/", self.root), topics::onboarding(device));
        let all = self.store.state().scan(RETAINED, format!("{root}devices/{device}/").as_bytes());
        for (topic, _) in all.map_err(|e| e.to_string())? {
            let topic = String::from_utf8_lossy(&topic);
            let topic = topic.strip_prefix(&root).unwrap_or_default();
            if !topic.is_empty() && topic != shown {
                self.fleet.clear_topic(topic);
            }
        }
        Ok(())
    }

    async fn forget_results(&self, device: &DeviceId) -> Result<usize, String> {
        let state = self.store.state();
        let commands = state.scan(COMMANDS, format!("{device}/").as_bytes()).map_err(|e| e.to_string())?;
        for some in commands.chunks(CHUNK) {
            let delete = |(key, _): &(Bytes, Bytes)| Op::Delete { tree: COMMANDS.to_owned(), key: key.clone() };
            state.batch(some.iter().map(delete).collect()).await.map_err(|e| e.to_string())?;
        }
        Ok(commands.len())
    }

    /// Consumers that keep up get what is theirs within a moment, so that moment is waited for.
    async fn erase_stored(&self, device: &DeviceId, undelivered: bool) -> Result<Erased, String> {
        let (id, until) = (device.as_str().to_owned(), Instant::now() + SHORT_WAIT);
        let is_meant = std::sync::Arc::new(move |kind, payload: &[u8]| is_of(&id, kind, payload));
        let erasure = store::Erasure { device: device_hash(device.as_str()), is_meant, undelivered };
        let mut pause = PAUSE;
        loop {
            let erased = self.store.erase(erasure.clone()).await.map_err(|e| e.to_string())?;
            if erased.waiting.is_empty() || Instant::now() + pause > until {
                return Ok(erased);
            }
            sleep(pause).await;
            pause *= 2;
        }
    }
}

/// Values, events and results of commands. Audit entries are the proof and stay; answers are the requesters'.
fn is_of(device: &str, kind: RecordKind, payload: &[u8]) -> bool {
    match kind {
        RecordKind::Telemetry => TelemetryView::parse(payload).is_ok_and(|view| view.device == device),
        RecordKind::Event => v1::Event::decode_as(Encoding::Protobuf, payload).is_ok_and(|m| m.device == device),
        RecordKind::CommandResult => {
            v1::CommandResult::decode_as(Encoding::Protobuf, payload).is_ok_and(|m| m.device == device)
        }
        RecordKind::Gap
        | RecordKind::Audit
        | RecordKind::Journal
        | RecordKind::ManagementResult
        | RecordKind::Erased => false,
    }
}

fn in_words(erased: &Erased) -> String {
    let mut words = format!("{} stored records overwritten in the log", erased.records);
    for (consumer, records) in &erased.undelivered {
        words += &format!(", {records} of them not delivered to {consumer}");
    }
    if erased.discarded > 0 {
        words += &format!(", {} damaged files deleted that may have held more", erased.discarded);
    }
    if erased.unreadable > 0 {
        words += &format!(
            ", {} segments have damaged places that may hold more until they are used again",
            erased.unreadable
        );
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_device_sent_is_meant() {
        let event =
            |device: &str| v1::Event { device: device.into(), ..v1::Event::default() }.encode_as(Encoding::Protobuf);
        let telemetry =
            v1::Telemetry { device: "pump".into(), ..v1::Telemetry::default() }.encode_as(Encoding::Protobuf);
        assert!(is_of("pump", RecordKind::Telemetry, &telemetry) && is_of("pump", RecordKind::Event, &event("pump")));
        assert!(!is_of("pump", RecordKind::Event, &event("pump-2")), "another id of the same hash, say");
        assert!(!is_of("pump", RecordKind::Audit, &event("pump")));
        assert!(!is_of("pump", RecordKind::Telemetry, b"\xff"));
    }

    #[test]
    fn a_certificate_names_who_did_not_get_what() {
        let undelivered = [("cloud".to_owned(), 3)].into();
        let erased = Erased { records: 12, undelivered, discarded: 1, unreadable: 1, ..Erased::default() };
        let words = in_words(&erased);
        assert!(
            words.starts_with("12 stored records overwritten in the log, 3 of them not delivered to cloud"),
            "{words}"
        );
        assert!(
            words.contains("1 damaged files deleted") && words.contains("1 segments have damaged places"),
            "{words}"
        );
    }
}
