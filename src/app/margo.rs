//! The Margo client on the running gateway: its [`Plant`] on the registry and the command service, its [`Storage`] on the
//! state store, and the supervised tasks.
//!
//! Children are the devices that were approved and belong to this gateway. One that is out of service, shows another identity
//! or is about to be handed over stays one, and counts as unreachable. Recipes are commands: with limits, interlocks, read-back, audit
//! and at-most-once by correlation id, as if a person had sent them. What a recipe that failed half way wrote stays
//! until its deployment is removed. Configurations are versions of `config/desired`, with their proof and way back.
//! Firmware is offered at the firmware desk and approved by its deployment.

mod configuration;
mod firmware;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

use super::commands::AnswersToLog;
use super::events::EventLog;
use super::firmware::FirmwareDesk;
use super::latest::Latest;
use super::management::Fleet;
use super::supervisor::Supervisor;
use crate::contract::v1;
use crate::contract::v1::event::Severity;
use crate::management::command::{Answer, AnswerSink, CommandRequest, CommandService, Receipt};
use crate::management::lifecycle::{Declaration, DeviceRecord, State};
use crate::management::service::Management;
use crate::margo::client::{self, ClientStatus};
use crate::margo::component::{PointValue, Work};
use crate::margo::config::{Config, Mode};
use crate::margo::plant::{Act, Alert, Before, Child, Functions, Identity, Inventory, Order, Plant, Refusal};
use crate::margo::storage::{Change, Storage, StorageError};
use crate::model::{Access, DeviceId};
use crate::platform::clock::SharedClock;
use crate::platform::durable::{Access as FileAccess, Disk};
use crate::security::pki::BelievedTime;
use crate::store::{Op, StateError, Store};

/// Tree of the state store.
const TREE: &str = "margo";
/// Answers of commands that may wait for the client.
const ANSWERS: usize = 256;
/// How often the inventory is looked at.
const LOOK: Duration = Duration::from_secs(2);
/// Longest wait for the answer of a command that was stored.
const COMMAND: Duration = Duration::from_secs(300);
/// What is answered to a command that a restart kept from beginning.
const RESTARTED: &str = "restarted";
/// Writes that one command may have.
const MOST_WRITES: usize = 32;
/// The file with the client's status, for `fieldgate margo status`.
pub const STATUS_FILE: &str = "status.json";

/// [`Storage`] in one tree of the state store; clients of a transparent gateway have a prefix each.
#[derive(Debug, Clone)]
pub struct StateStorage {
    store: Store,
    prefix: String,
}

impl Storage for StateStorage {
    async fn scan(&self, prefix: &str) -> Result<Vec<(String, Bytes)>, StorageError> {
        let whole = format!("{}{prefix}", self.prefix);
        let entries = self.store.state().scan(TREE, whole.as_bytes()).map_err(failed)?;
        let name = |key: &Bytes| String::from_utf8_lossy(key).get(self.prefix.len()..).unwrap_or_default().to_owned();
        Ok(entries.iter().map(|(key, value)| (name(key), value.clone())).collect())
    }

    async fn commit(&self, changes: Vec<Change>) -> Result<(), StorageError> {
        let key = |key: String| Bytes::from(format!("{}{key}", self.prefix));
        let op = |change| match change {
            Change::Put(name, value) => Op::Put { tree: TREE.to_owned(), key: key(name), value },
            Change::Delete(name) => Op::Delete { tree: TREE.to_owned(), key: key(name) },
        };
        let ops: Vec<Op> = changes.into_iter().map(op).collect();
        if ops.is_empty() { Ok(()) } else { self.store.state().batch(ops).await.map_err(failed) }
    }
}

fn failed(error: StateError) -> StorageError {
    StorageError::Failed(error.to_string())
}

/// Hands answers to the log and lets the Margo client hear them.
#[derive(Debug, Clone)]
pub struct HeardAnswers {
    log: AnswersToLog,
    heard: broadcast::Sender<v1::CommandResult>,
}

impl HeardAnswers {
    /// In front of the log.
    pub fn new(log: AnswersToLog) -> Self {
        Self { log, heard: broadcast::channel(ANSWERS).0 }
    }

    /// The answers from now on.
    pub fn listener(&self) -> broadcast::Sender<v1::CommandResult> {
        self.heard.clone()
    }
}

impl AnswerSink for HeardAnswers {
    async fn answer(&self, answers: Vec<Answer>) -> Result<(), String> {
        let results: Vec<v1::CommandResult> = match self.heard.receiver_count() {
            0 => Vec::new(),
            _ => answers.iter().map(|answer| answer.result.clone()).collect(),
        };
        self.log.answer(answers).await?;
        for result in results {
            // An error only says that the last listener has just left.
            let _ = self.heard.send(result);
        }
        Ok(())
    }
}

/// The gateway as the client needs it.
#[derive(Debug, Clone)]
pub struct GatewayPlant {
    /// Who is there.
    pub management: Management,
    /// Who answers, and with which values.
    pub latest: Latest,
    /// Who writes.
    pub commands: CommandService,
    /// What was answered.
    pub answers: broadcast::Sender<v1::CommandResult>,
    /// Where alerts go.
    pub events: EventLog,
    /// Who takes firmware.
    pub fleet: Fleet,
    /// Who updates devices.
    pub desk: FirmwareDesk,
    /// What outlives a restart.
    pub store: Store,
    /// Where images of firmware lie.
    pub cache: PathBuf,
}

/// One device as the registry has it: who was approved, so that neither a restart nor a stranger at its address changes what
/// the fleet manager is told.
fn child(id: &DeviceId, record: &DeviceRecord, declared: Option<&Declaration>) -> Child {
    let plate = record.name_plate();
    let said = |text: String| (!text.is_empty()).then_some(text);
    let delegated = |function| declared.is_some_and(|declared| declared.delegated.contains(function));
    let writable = declared.is_some_and(|d| d.profile.points.values().any(|point| point.max_access != Access::Read));
    Child {
        id: id.clone(),
        parent: None,
        identity: Identity { vendor: said(plate.vendor), model: said(plate.model), serial: said(plate.serial) },
        hardware: record.approved().map(|pin| pin.value.clone()).unwrap_or_default(),
        protocol: record.protocol.clone(),
        functions: Functions {
            configuration: delegated("config"),
            recipe: writable && delegated("command"),
            firmware: false,
        },
        reachable: record.state == State::Active,
    }
}

impl Plant for GatewayPlant {
    async fn inventory(&self) -> Inventory {
        let held = self.management.look(|core| {
            let life = core.lifecycle();
            let held = life.devices().iter().filter(|(_, record)| record.is_held());
            held.map(|(id, record)| child(id, record, life.declaration(id))).collect::<Vec<_>>()
        });
        // The gateway stops, and nothing is taken back for that.
        let Ok(mut children) = held.await else { return std::future::pending().await };
        self.latest.read(|table| {
            for child in &mut children {
                child.reachable &= table.get(&child.id).is_some_and(firmware::is_polled);
                child.functions.firmware = self.fleet.firmware(&child.id).is_ok();
            }
        });
        Inventory { gateway: Identity::default(), functions: Functions::default(), children }
    }

    async fn changed(&self) {
        let before = self.inventory().await;
        loop {
            tokio::time::sleep(LOOK).await;
            if self.inventory().await != before {
                return;
            }
        }
    }

    async fn before(&self, device: Option<&DeviceId>, work: &Work) -> Result<Before, Refusal> {
        let device = device.ok_or_else(not_for_the_gateway)?;
        if !self.answers_now(device) {
            return Err(unreachable(device));
        }
        let values = match work {
            Work::Configuration { .. } => return configuration::before(&self.management, device).await,
            Work::Firmware { .. } => return self.firmware_ways(device).before(),
            Work::Recipe { values } => values,
        };
        if values.len() > MOST_WRITES {
            let text = format!(
                "the recipe writes {} points, one command of this gateway writes at most {MOST_WRITES}",
                values.len()
            );
            return Err(Refusal::new("too-many-writes", text));
        }
        self.latest.read(|table| {
            let view = table.get(device).ok_or_else(|| unreachable(device))?;
            let mut before = Before::default();
            for PointValue { point, .. } in values {
                let at = view.device.points.iter().position(|known| known.id.as_str() == point);
                let at = at.ok_or_else(|| Refusal::new("unknown-point", format!("{device} has no point {point}")))?;
                // A point that is only written, or was never read, has no value to go back to.
                let value = view.samples[at].as_ref().and_then(|sample| sample.value.as_ref()).and_then(json);
                before.values.extend(value.map(|value| (point.clone(), value)));
            }
            Ok(before)
        })
    }

    async fn carry_out(&self, order: Order) -> Result<(), Refusal> {
        let Order { key, device, actor, act } = order;
        let device = device.ok_or_else(not_for_the_gateway)?;
        let values: Vec<PointValue> = match act {
            Act::Apply(Work::Configuration { document }) => {
                let applied = configuration::apply(&self.management, &key, &device, &actor, document).await;
                // Who fell silent in the middle of it proved nothing, neither good nor bad.
                return applied.map_err(|refusal| match self.answers_now(&device) {
                    false if refusal.code == configuration::NOT_PROVEN => Refusal { unreachable: true, ..refusal },
                    _ => refusal,
                });
            }
            Act::Undo { work: Work::Configuration { .. }, before } => {
                return configuration::undo(&self.management, &key, &device, &actor, &before).await;
            }
            Act::Apply(Work::Recipe { values }) => values,
            Act::Undo { work: Work::Recipe { .. }, before } => {
                before.values.into_iter().map(|(point, value)| PointValue { point, value }).collect()
            }
            Act::Apply(Work::Firmware { image, manifest, .. }) => {
                let wanted = firmware::Wanted { key: &key, actor: &actor, image, cache: &self.cache, manifest };
                return self.firmware_ways(&device).apply(wanted).await;
            }
            Act::Undo { work: Work::Firmware { .. }, before } => {
                return self.firmware_ways(&device).undo(&actor, &before).await;
            }
        };
        if values.is_empty() {
            return Ok(());
        }
        // A command that did not begin before a restart is sent again under the next name; the ledger answers for the names
        // before, so that every life of the program goes the same way.
        let mut life = 0_u32;
        loop {
            let name = if life == 0 { key.clone() } else { format!("{key}.{life}") };
            match self.write(&name, &device, &actor, &values).await {
                Err(refusal) if refusal.code == RESTARTED => life += 1,
                ended => return ended,
            }
        }
    }

    async fn alert(&self, alert: Alert) {
        self.events.report(Severity::Alarm, alert.code, "", alert.text).await;
    }
}

impl GatewayPlant {
    const fn firmware_ways<'a>(&'a self, device: &'a DeviceId) -> firmware::Ways<'a> {
        let Self { desk, latest, events, store, .. } = self;
        firmware::Ways { desk, latest, events, store, device }
    }

    /// Whether a device is polled and answers.
    fn answers_now(&self, device: &DeviceId) -> bool {
        self.latest.read(|table| table.get(device).is_some_and(firmware::is_polled))
    }

    async fn write(&self, key: &str, device: &DeviceId, actor: &str, values: &[PointValue]) -> Result<(), Refusal> {
        let write = |value: &PointValue| v1::Write { point: value.point.clone(), value: Some(proto(&value.value)) };
        let command = v1::Command {
            correlation_id: key.to_owned(),
            writes: values.iter().map(write).collect(),
            ..v1::Command::default()
        };
        let mut answers = self.answers.subscribe();
        // What a fleet manager may ask is decided by `[margo]`, not by roles.
        let request = CommandRequest { device: device.clone(), command, actor: actor.to_owned(), forbidden: None };
        let stopping = || Refusal { unreachable: true, ..Refusal::new("stopping", "the gateway is stopping") };
        self.commands.submit(request, Receipt::none()).await.map_err(|_| stopping())?;
        let answered = tokio::time::timeout(COMMAND, async {
            loop {
                match answers.recv().await {
                    Ok(result) if result.correlation_id == key && result.device == device.as_str() => {
                        return Some(result);
                    }
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return None,
                }
            }
        });
        match answered.await {
            Ok(Some(result)) => outcome(&result),
            Ok(None) => Err(stopping()),
            Err(_) => {
                Err(Refusal::new("no-answer", format!("{device} gave no answer to the command within five minutes")))
            }
        }
    }
}

fn outcome(result: &v1::CommandResult) -> Result<(), Refusal> {
    use v1::command_result::Outcome;
    match result.outcome() {
        Outcome::Done => Ok(()),
        Outcome::ConfirmationRequired => Err(Refusal::new(
            "confirmation-required",
            "a point of the recipe needs a person's confirmation, which a deployment cannot give",
        )),
        _ => {
            let code = if result.code.is_empty() { "failed" } else { &result.code };
            let unreachable = matches!(code, "timeout" | "offline" | "unreachable" | "link-down");
            Err(Refusal { unreachable, ..Refusal::new(code, result.message.clone()) })
        }
    }
}

fn not_for_the_gateway() -> Refusal {
    Refusal::new("not-supported", "nothing is deployed to the gateway itself")
}

fn unreachable(device: &DeviceId) -> Refusal {
    Refusal { unreachable: true, ..Refusal::new("unreachable", format!("{device} is not polled now")) }
}

/// A value of a point as a recipe writes it.
fn json(value: &crate::model::Value) -> Option<Value> {
    use crate::model::Value as V;
    Some(match value {
        V::Bool(bool) => (*bool).into(),
        V::Int(number) => (*number).into(),
        V::Uint(number) => (*number).into(),
        V::Float(number) => serde_json::Number::from_f64(f64::from(*number))?.into(),
        V::Double(number) => serde_json::Number::from_f64(*number)?.into(),
        V::Text(text) => text.as_ref().into(),
        V::Bytes(_) => return None,
    })
}

fn proto(value: &Value) -> pbjson_types::Value {
    use pbjson_types::value::Kind;
    let kind = match value {
        Value::Bool(bool) => Kind::BoolValue(*bool),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::Null | Value::Array(_) | Value::Object(_) => Kind::NullValue(0),
    };
    pbjson_types::Value { kind: Some(kind) }
}

/// Starts the clients that the configuration names; each is started again when it fails.
pub fn start(
    supervisor: &mut Supervisor,
    config: &Config,
    plant: GatewayPlant,
    store: &Store,
    clock: &SharedClock,
    time: &BelievedTime,
) {
    let (config, plant) = (Arc::new(config.clone()), Arc::new(plant));
    let clients: Vec<Option<DeviceId>> = match &config.mode {
        Mode::Transparent(devices) => devices.keys().cloned().map(Some).collect(),
        Mode::SeeThru | Mode::Opaque => vec![None],
    };
    for only in clients {
        let prefix = only.as_ref().map(|device| format!("{device}/")).unwrap_or_default();
        let directory =
            only.as_ref().map_or_else(|| config.directory.clone(), |device| config.directory.join(device.as_str()));
        let storage = StateStorage { store: store.clone(), prefix };
        let (status, seen) = watch::channel(ClientStatus::default());
        let token = supervisor.token();
        supervisor.spawn("margo status", keep_status(seen, directory, token.clone()));
        let (config, plant, clock, time) = (config.clone(), plant.clone(), clock.clone(), time.clone());
        supervisor.spawn_restarting("margo client", move || {
            let (config, only, plant, storage) = (config.clone(), only.clone(), plant.clone(), storage.clone());
            let (clock, time, status, token) = (clock.clone(), time.clone(), status.clone(), token.clone());
            async move {
                let run = client::run(config, only, plant, storage, clock, time, status, token);
                run.await.map_err(|error| error.to_string())
            }
        });
    }
}

/// Writes the status to a file, for the command line; at most once per second.
async fn keep_status(
    mut seen: watch::Receiver<ClientStatus>,
    directory: PathBuf,
    token: CancellationToken,
) -> Result<(), String> {
    let disk = Disk::default();
    loop {
        let status = seen.borrow_and_update().clone();
        let text = serde_json::to_vec_pretty(&status).unwrap_or_default();
        let (disk, directory) = (disk.clone(), directory.clone());
        let written = tokio::task::spawn_blocking(move || {
            disk.create_directory(&directory, FileAccess::Private)?;
            disk.replace(&directory.join(STATUS_FILE), &text, FileAccess::Private)
        });
        if let Ok(Err(error)) = written.await {
            tracing::warn!(%error, "the status of the Margo client cannot be written");
        }
        tokio::select! {
            () = token.cancelled() => return Ok(()),
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
        tokio::select! {
            () = token.cancelled() => return Ok(()),
            changed = seen.changed() => if changed.is_err() {
                // The client has ended for good.
                token.cancelled().await;
                return Ok(());
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_points_go_both_ways() {
        use crate::model::Value as V;
        for (value, wanted) in
            [(V::Bool(true), Value::from(true)), (V::Int(-3), Value::from(-3)), (V::Double(1.5), Value::from(1.5))]
        {
            assert_eq!(json(&value), Some(wanted));
        }
        assert_eq!(json(&V::Bytes(vec![1].into())), None);
        assert_eq!(proto(&Value::from(2)), pbjson_types::Value::from(2.0));
    }
}
