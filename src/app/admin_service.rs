//! What the command line sees through the admin socket.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, mpsc};

use super::firmware::{FirmwareDesk, Question};
use super::health::HealthDesk;
use super::latest::{DeviceView, Latest};
use super::reload::ReloadHandle;
use crate::admin::{Answer, DeviceLine, PointLine, Reply, Request, Service};
use crate::contract::{ContractMessage, json_value, timestamp, v1};
use crate::management::command::{CommandRequest, CommandService, Receipt};
use crate::management::core::Core;
use crate::management::lifecycle::Source;
use crate::management::service::{Management, Stopped};
use crate::management::socket::{self, SocketAnswer, SocketAsk};
use crate::model::{Batch, DeviceId, Point, Quality, Sample, Tier};
use crate::southbound::Identity;

/// Lines that a slow terminal may lag behind before it is told that it skipped some.
const STREAM_DEPTH: usize = 1024;
/// Longest wait for the answer to a command: its longest time in the configuration, and the queue before it.
const COMMAND_LIMIT: Duration = Duration::from_secs(660);

/// Answers from the tables of the running gateway.
#[derive(Debug)]
pub struct AdminService {
    latest: Latest,
    health: HealthDesk,
    reload: ReloadHandle,
    firmware: FirmwareDesk,
    management: Management,
    commands: CommandService,
    results: broadcast::Sender<v1::CommandResult>,
}

impl AdminService {
    /// A service over these tables.
    pub fn new(
        latest: Latest,
        health: HealthDesk,
        reload: ReloadHandle,
        firmware: FirmwareDesk,
        management: Management,
        commands: CommandService,
        results: broadcast::Sender<v1::CommandResult>,
    ) -> Self {
        Self { latest, health, reload, firmware, management, commands, results }
    }
}

impl Service for AdminService {
    async fn answer(&self, uid: u32, request: Request) -> Reply {
        match request {
            Request::Devices => Reply::One(self.devices().await),
            Request::Points { device } => Reply::One(self.points(device.as_deref())),
            Request::Tail { device, point } => self.tail(device, point),
            Request::Health => Reply::One(match serde_json::to_value(self.health.message()) {
                Ok(value) => Answer::Json { value },
                Err(error) => Answer::Error { error: error.to_string() },
            }),
            Request::Firmware { question } => Reply::One(self.firmware(uid, question).await),
            Request::Manage { question } => Reply::One(match self.manage(uid, question).await {
                Ok(value) => Answer::Json { value },
                Err(error) => Answer::Error { error },
            }),
            Request::Reload => Reply::One(match self.reload.reload().await {
                Ok(text) => Answer::Text { text },
                Err(error) => Answer::Error { error },
            }),
        }
    }
}

impl AdminService {
    /// Devices that run, and those that wait, rest or are gone.
    async fn devices(&self) -> Answer {
        let mut devices = device_lines(&self.latest);
        let Ok(known) = self.management.look(known).await else {
            return Answer::Error { error: Stopped.to_string() };
        };
        for known in known {
            match devices.iter_mut().find(|line| line.device == known.device) {
                Some(line) => line.life = known.state,
                None => devices.push(resting(known)),
            }
        }
        devices.sort_by(|a, b| a.device.cmp(&b.device));
        Answer::Devices { devices }
    }

    async fn manage(&self, uid: u32, question: serde_json::Value) -> Result<serde_json::Value, String> {
        let answer = match serde_json::from_value(question) {
            Ok(SocketAsk::Command { device, command }) => self.command(uid, &device, *command).await?,
            Ok(ask) => self.management.socket(uid, ask).await.map_err(|e| e.to_string())?,
            Err(error) => SocketAnswer::Error(format!("not a question of device management: {error}")),
        };
        serde_json::to_value(answer).map_err(|e| e.to_string())
    }

    /// The same way as a command over MQTT; the answer also goes to the topic.
    async fn command(&self, uid: u32, device: &str, mut command: v1::Command) -> Result<SocketAnswer, String> {
        let device = match DeviceId::new(device) {
            Ok(device) => device,
            Err(error) => return Ok(SocketAnswer::Error(error.to_string())),
        };
        if command.correlation_id.is_empty() {
            command.correlation_id = socket::correlation_id();
        }
        let id = command.correlation_id.clone();
        let mut results = self.results.subscribe();
        let request =
            CommandRequest { device: device.clone(), command, actor: format!("cli:uid={uid}"), forbidden: None };
        self.commands.submit(request, Receipt::none()).await.map_err(|e| e.to_string())?;
        let wait = async {
            loop {
                match results.recv().await {
                    Ok(result) if result.correlation_id == id && result.device == device.as_str() => {
                        break Some(result);
                    }
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => break None,
                }
            }
        };
        match tokio::time::timeout(COMMAND_LIMIT, wait).await {
            Ok(Some(result)) => Ok(SocketAnswer::Command(Box::new(result))),
            _ => Ok(SocketAnswer::Error(format!("no answer to {id} yet; it will come on the topic of the device"))),
        }
    }

    async fn firmware(&self, uid: u32, question: serde_json::Value) -> Answer {
        let asked =
            serde_json::from_value::<Question>(question).map_err(|e| format!("not a question about firmware: {e}"));
        let answer = match asked {
            Ok(question) => {
                let answer = self.firmware.ask(question, &format!("cli:uid={uid}")).await;
                answer.map_err(|refusal| format!("{} ({})", refusal.message, refusal.code))
            }
            Err(error) => Err(error),
        };
        match answer.and_then(|reply| serde_json::to_value(reply).map_err(|e| e.to_string())) {
            Ok(value) => Answer::Json { value },
            Err(error) => Answer::Error { error },
        }
    }

    fn points(&self, device: Option<&str>) -> Answer {
        self.latest.read(|table| {
            if let Some(name) = device
                && !table.contains_key(name)
            {
                return unknown_device(name, table.keys().map(|id| id.as_str()));
            }
            Answer::Points { points: point_lines(table, device) }
        })
    }

    fn tail(&self, device: Option<String>, point: Option<String>) -> Reply {
        if let Some(name) = &device {
            let unknown = self.latest.read(|t| {
                (!t.contains_key(name.as_str())).then(|| unknown_device(name, t.keys().map(|id| id.as_str())))
            });
            if let Some(error) = unknown {
                return Reply::One(error);
            }
        }
        let (out, stream) = mpsc::channel(STREAM_DEPTH);
        tokio::spawn(forward(self.latest.tail(), self.latest.clone(), device, point, out));
        Reply::Stream(stream)
    }
}

fn unknown_device<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Answer {
    let known = known.collect::<Vec<_>>().join(", ");
    Answer::Error { error: format!("there is no device {name:?}; configured are: {known}") }
}

/// Copies matching samples until the client leaves. What the client does not take in time is counted, not queued.
async fn forward(
    mut batches: broadcast::Receiver<Arc<Batch>>,
    latest: Latest,
    device: Option<String>,
    point: Option<String>,
    out: mpsc::Sender<Answer>,
) {
    loop {
        let batch = tokio::select! {
            () = out.closed() => return,
            next = batches.recv() => match next {
                Ok(batch) => batch,
                Err(broadcast::error::RecvError::Closed) => return,
                Err(broadcast::error::RecvError::Lagged(count)) => {
                    if out.send(Answer::Skipped { count }).await.is_err() {
                        return;
                    }
                    continue;
                }
            },
        };
        if device.as_deref().is_some_and(|d| d != batch.device.as_str()) {
            continue;
        }
        let units: BTreeMap<String, String> = latest.read(|table| {
            let points = table.get(&batch.device).map(|v| v.device.points.clone());
            points.iter().flat_map(|p| p.iter()).map(|p| (p.id.to_string(), p.unit.clone())).collect()
        });
        for sample in batch.samples.iter().filter(|s| point.as_deref().is_none_or(|p| p == s.point.as_str())) {
            let unit = units.get(sample.point.as_str()).cloned().unwrap_or_default();
            let line = sample_line(batch.device.as_str(), sample, unit);
            if out.send(Answer::Sample(line)).await.is_err() {
                return;
            }
        }
    }
}

/// All devices for a table.
pub fn device_lines(latest: &Latest) -> Vec<DeviceLine> {
    latest.read(|table| table.values().map(device_line).collect())
}

/// Points of one device, or of all, for a table.
pub fn point_lines(table: &BTreeMap<DeviceId, DeviceView>, device: Option<&str>) -> Vec<PointLine> {
    let wanted = table.values().filter(|view| device.is_none_or(|name| view.device.id.as_str() == name));
    wanted
        .flat_map(|view| view.device.points.iter().zip(&view.samples).map(|(p, s)| line(view, p, s.as_ref())))
        .collect()
}

/// All devices of the registry but those whose file is gone: these are told by `onboard list --all`.
fn known(core: &Core) -> Vec<v1::Onboarding> {
    let is_gone = |d: &v1::Onboarding| {
        let declared = DeviceId::new(&d.device).is_ok_and(|id| core.lifecycle().declaration(&id).is_some());
        d.source == Source::Declared.as_str() && !declared
    };
    core.list().devices.into_iter().filter(|d| !is_gone(d)).collect()
}

/// A device that is not polled.
fn resting(known: v1::Onboarding) -> DeviceLine {
    let named =
        [("vendor", known.vendor), ("model", known.model), ("serial", known.serial), ("firmware", known.firmware)];
    let identity = named.into_iter().filter(|(_, text)| !text.is_empty()).map(|(key, text)| (key.to_owned(), text));
    DeviceLine {
        device: known.device,
        protocol: known.protocol,
        address: known.address,
        tier: known.tier as u8,
        life: known.state,
        state: "not-polled".to_owned(),
        reason: known.reason,
        points: 0,
        requests: 0,
        failures: 0,
        overruns: 0,
        identity: identity.collect(),
    }
}

fn device_line(view: &DeviceView) -> DeviceLine {
    DeviceLine {
        life: String::new(),
        device: view.device.id.to_string(),
        protocol: view.device.protocol.to_owned(),
        address: view.device.address.clone(),
        tier: if view.device.tier == Tier::Two { 2 } else { 1 },
        state: view.state.as_str().to_owned(),
        reason: view.state.reason().unwrap_or_default().to_owned(),
        points: view.device.points.len(),
        requests: view.stats.requests,
        failures: view.stats.failures,
        overruns: view.stats.overruns.values().sum(),
        identity: identity(&view.identity),
    }
}

fn identity(identity: &Identity) -> BTreeMap<String, String> {
    let named = [
        ("vendor", &identity.vendor),
        ("model", &identity.model),
        ("serial", &identity.serial),
        ("firmware", &identity.firmware),
    ];
    let named = named.into_iter().filter_map(|(key, text)| Some((key.to_owned(), text.clone()?)));
    named.chain(identity.other.clone()).collect()
}

fn line(view: &DeviceView, point: &Point, sample: Option<&Sample>) -> PointLine {
    let device = view.device.id.as_str();
    match sample {
        Some(sample) => sample_line(device, sample, point.unit.clone()),
        None => PointLine {
            device: device.to_owned(),
            point: point.id.to_string(),
            value: serde_json::Value::Null,
            unit: point.unit.clone(),
            quality: quality(Quality::Bad),
            reason: "not-yet-read".to_owned(),
            time: String::new(),
        },
    }
}

fn sample_line(device: &str, sample: &Sample, unit: String) -> PointLine {
    let json = sample.value.as_ref().map(json_value);
    PointLine {
        device: device.to_owned(),
        point: sample.point.to_string(),
        value: json.and_then(|v| serde_json::to_value(v).ok()).unwrap_or_default(),
        unit,
        quality: quality(sample.quality),
        reason: sample.reason.map_or_else(String::new, |r| r.as_str().to_owned()),
        time: rfc3339(sample.at.wall_ms),
    }
}

fn quality(quality: Quality) -> String {
    match quality {
        Quality::Good => "good",
        Quality::Uncertain => "uncertain",
        Quality::Bad => "bad",
    }
    .to_owned()
}

fn rfc3339(wall_ms: i64) -> String {
    let text = timestamp(wall_ms).encode_as(crate::contract::Encoding::Json);
    String::from_utf8_lossy(&text).trim_matches('"').to_owned()
}
