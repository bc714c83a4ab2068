//! Commands on their way to a device and back: writes through scaling and driver, answers and audit lines into the critical
//! lane.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::events::EventLog;
use super::ingest::device_hash;
use crate::contract::{ContractMessage, Encoding, v1};
use crate::management::command::{
    Answer, AnswerSink, CommandKey, CommandLedger, DeviceWriter, LedgerEntry, LedgerError, WriteFailure,
};
use crate::management::core::Counters;
use crate::model::{Device, DeviceId, Lane, PointId, RecordKind, Value};
use crate::northbound::Notice;
use crate::pipeline::{DevicePipeline, Scaling};
use crate::platform::clock::SharedClock;
use crate::southbound::Southbound;
use crate::store::{NewRecord, Op, Store};

/// Tree of the state store that holds commands and their answers.
pub const COMMANDS: &str = "commands";

/// The scalings of all devices; shared, replaced by a reload.
#[derive(Debug, Clone, Default)]
pub struct Scalings(Arc<RwLock<HashMap<DeviceId, Scaled>>>);

#[derive(Debug)]
struct Scaled {
    device: Arc<Device>,
    scaling: Scaling,
}

impl Scalings {
    /// Takes those of devices that are new or changed, and forgets those of devices that are gone.
    pub fn change(&self, pipelines: &[DevicePipeline], gone: &[DeviceId]) {
        let of =
            |p: &DevicePipeline| (p.device().id.clone(), Scaled { device: p.device().clone(), scaling: p.scaling() });
        let mut scalings = self.0.write().unwrap_or_else(PoisonError::into_inner);
        gone.iter().for_each(|id| drop(scalings.remove(id)));
        scalings.extend(pipelines.iter().map(of));
    }

    fn find(&self, device: &DeviceId, point: &PointId) -> Result<(u32, Scaling), String> {
        let scalings = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let Scaled { device: known, scaling } =
            scalings.get(device).ok_or_else(|| format!("device {device} is not configured"))?;
        let index = known.points.iter().position(|p| p.id == *point);
        let index = index.ok_or_else(|| format!("device {device} has no point {point}"))?;
        Ok((index as u32, scaling.clone()))
    }
}

/// Writes through scaling and driver.
#[derive(Debug, Clone)]
pub struct ScaledWriter {
    /// How values are scaled.
    pub scalings: Scalings,
    /// Who writes.
    pub southbound: Southbound,
}

impl DeviceWriter for ScaledWriter {
    fn check(&self, device: &DeviceId, point: &PointId, value: &Value) -> Result<(), String> {
        let (index, scaling) = self.scalings.find(device, point)?;
        scaling.unscale(index, value).map(drop).map_err(|e| e.to_string())
    }

    async fn write(&self, device: &DeviceId, point: &PointId, value: Value) -> Result<Option<Value>, WriteFailure> {
        let refused = |message: String| WriteFailure { code: "refused".to_owned(), message, may_have_happened: false };
        let (index, scaling) = self.scalings.find(device, point).map_err(refused)?;
        let raw = scaling.unscale(index, &value).map_err(|e| refused(e.to_string()))?;
        // With the point and the device, so that a collector's traces show what took how long.
        let span = tracing::info_span!("write", %device, %point);
        match self.southbound.write(device, index, raw).instrument(span).await {
            Ok(done) => Ok(done.read_back.and_then(|raw| scaling.rescale(index, raw))),
            Err(error) => Err(WriteFailure {
                code: error.code().to_owned(),
                message: error.to_string(),
                may_have_happened: error.may_have_happened(),
            }),
        }
    }
}

/// The ledger of commands in the state store.
#[derive(Debug, Clone)]
pub struct LedgerInState(pub Store);

impl CommandLedger for LedgerInState {
    async fn load(&self) -> Result<Vec<LedgerEntry>, LedgerError> {
        let all = self.0.state().scan(COMMANDS, b"").map_err(|e| LedgerError { act: "read", reason: e.to_string() })?;
        // One damaged entry must not keep the gateway from starting; its command counts as never seen.
        let readable = |(key, octets): &(Bytes, Bytes)| {
            LedgerEntry::decode(octets).inspect_err(|error| tracing::error!(?key, %error, "command left out")).ok()
        };
        Ok(all.iter().filter_map(readable).collect())
    }

    async fn apply(&self, put: Vec<LedgerEntry>, remove: Vec<CommandKey>) -> Result<(), LedgerError> {
        let (tree, text) = (|| COMMANDS.to_owned(), |key: &CommandKey| Bytes::from(key.as_text()));
        let removed = remove.iter().map(|key| Op::Delete { tree: tree(), key: text(key) });
        let put = put.iter().map(|entry| Op::Put { tree: tree(), key: text(&entry.key), value: entry.encode() });
        let changes: Vec<_> = removed.chain(put).collect();
        if changes.is_empty() {
            return Ok(());
        }
        self.0.state().batch(changes).await.map_err(|e| LedgerError { act: "written", reason: e.to_string() })
    }
}

/// Answers and audit lines as records of the critical lane.
#[derive(Debug, Clone)]
pub struct AnswersToLog {
    /// Where they go.
    pub store: Store,
    /// Their time.
    pub clock: SharedClock,
    /// Where refusals are counted.
    pub counters: Arc<Counters>,
    /// Who waits for them in this process.
    pub results: broadcast::Sender<v1::CommandResult>,
}

impl AnswerSink for AnswersToLog {
    async fn answer(&self, answers: Vec<Answer>) -> Result<(), String> {
        let record = |kind, device: u32, payload: Bytes| NewRecord {
            lane: Lane::Critical,
            kind,
            device,
            ts_ms: self.clock.wall_ms(),
            count: 1,
            payload,
        };
        let mut records = Vec::with_capacity(2 * answers.len());
        let given: Vec<_> = match self.results.receiver_count() {
            0 => Vec::new(),
            _ => answers.iter().map(|answer| answer.result.clone()).collect(),
        };
        for Answer { result, audit } in answers {
            match result.outcome() {
                v1::command_result::Outcome::Rejected => self.counters.refused(),
                // What is answered from the books was audited when it was done.
                _ if audit.is_none() => self.counters.repeated(),
                _ => {}
            }
            let device = device_hash(&result.device);
            records.extend(audit.map(|entry| record(RecordKind::Audit, device, entry.encode_as(Encoding::Protobuf))));
            records.push(record(RecordKind::CommandResult, device, result.encode_as(Encoding::Protobuf)));
        }
        self.store.append_synced(records).await.map_err(|e| e.to_string())?;
        // An error only says that nobody waits.
        given.into_iter().for_each(|result| drop(self.results.send(result)));
        Ok(())
    }
}

/// Turns notices of the sessions into events.
pub async fn keep_notices(
    mut notices: mpsc::Receiver<Notice>,
    events: EventLog,
    token: CancellationToken,
) -> Result<(), String> {
    loop {
        tokio::select! {
            () = token.cancelled() => return Ok(()),
            notice = notices.recv() => {
                let Some(notice) = notice else { return Ok(()) };
                let message = format!("consumer {}: {}", notice.consumer, notice.message);
                events.report(notice.severity.into(), notice.kind, "", message).await;
            }
        }
    }
}
