//! The handle of the southbound side: starts, changes and stops link tasks and routes commands to them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::model::{DeviceId, Reason, Value};
use crate::platform::clock::SharedClock;

use super::driver::{Driver, Fault, Scope};
use super::link::{Command, LinkTask};
use super::{
    DeviceConfig, DriverConfig, ExchangeError, IdentifyError, Identity, LinkKey, Update, WriteDone, WriteError,
};

/// Commands that may wait for one link.
const COMMANDS: usize = 64;
/// A link task that does not end by itself within this time is cut off.
const STOP_WITHIN: Duration = Duration::from_millis(1_500);
/// Pause before a link task that panicked begins anew.
const RESTART_AFTER: Duration = Duration::from_secs(1);

/// What `Southbound::apply` did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Applied {
    /// Devices that were not there before.
    pub added: Vec<DeviceId>,
    /// Devices that are polled no more.
    pub removed: Vec<DeviceId>,
    /// Devices with another configuration than before.
    pub changed: Vec<DeviceId>,
    /// Devices that went on undisturbed.
    pub unchanged: Vec<DeviceId>,
}

/// Handle of the southbound side; clones are handles of the same one.
#[derive(Debug, Clone)]
pub struct Southbound {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    updates: mpsc::Sender<Update>,
    clock: SharedClock,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    links: HashMap<LinkKey, RunningLink>,
    devices: BTreeMap<DeviceId, DeviceConfig>,
    /// Who is on which link.
    members: HashMap<LinkKey, BTreeSet<DeviceId>>,
    stopped: bool,
}

#[derive(Debug)]
struct RunningLink {
    commands: mpsc::Sender<Command>,
    cancel: CancellationToken,
    task: JoinHandle<()>,
    /// A device on the link, for comparing link settings.
    sample: DeviceConfig,
}

impl State {
    /// Notes a device; gives its link.
    fn put(&mut self, device: DeviceConfig) -> LinkKey {
        let (id, key) = (device.device.id.clone(), device.link());
        self.members.entry(key.clone()).or_default().insert(id.clone());
        self.devices.insert(id, device);
        key
    }

    /// Forgets a device; gives the link that it was on.
    fn take(&mut self, id: &DeviceId) -> Option<LinkKey> {
        let key = self.devices.remove(id)?.link();
        if let Some(members) = self.members.get_mut(&key) {
            members.remove(id);
            if members.is_empty() {
                self.members.remove(&key);
            }
        }
        Some(key)
    }

    /// Devices of a link, in the order of their ids.
    fn on_link(&self, key: &LinkKey) -> Vec<DeviceConfig> {
        let members = self.members.get(key).into_iter().flatten();
        members.filter_map(|id| self.devices.get(id).cloned()).collect()
    }
}

impl Southbound {
    /// Starts polling. Must be called in a Tokio runtime. Configurations must have passed [`DeviceConfig::check`]; one that
    /// has not is left out with an error in the log.
    pub fn start(devices: Vec<DeviceConfig>, updates: mpsc::Sender<Update>, clock: SharedClock) -> Southbound {
        let shared = Shared { updates, clock, state: Mutex::default() };
        let southbound = Southbound { shared: Arc::new(shared) };
        let mut state = southbound.shared.state.try_lock().expect("nobody else has the handle yet");
        for device in checked(devices).into_values() {
            state.put(device);
        }
        let all: Vec<_> = state.members.keys().map(|key| (key.clone(), state.on_link(key))).collect();
        for (key, devices) in all {
            let link = southbound.spawn(&key, devices);
            state.links.insert(key, link);
        }
        drop(state);
        southbound
    }

    /// Puts another set of devices in force. Devices whose configuration is the same go on undisturbed, also beside changed
    /// ones on the same link, unless the settings of the link itself change.
    pub async fn apply(&self, devices: Vec<DeviceConfig>) -> Applied {
        let mut state = self.shared.state.lock().await;
        if state.stopped {
            return Applied::default();
        }
        let devices = checked(devices);
        let applied = difference(&state.devices, &devices);
        let changed = |id: &DeviceId| devices.get(id).cloned();
        let put = applied.added.iter().chain(&applied.changed).filter_map(changed).collect();
        self.adjust(&mut state, put, &applied.removed).await;
        applied
    }

    /// Puts these devices in force beside or instead of what is polled, and takes others off. What this costs follows the
    /// number of devices on the links of those that change, not the number of all.
    pub async fn change(&self, devices: Vec<DeviceConfig>, gone: &[DeviceId]) {
        let mut state = self.shared.state.lock().await;
        if state.stopped {
            return;
        }
        let mut gone = gone.to_vec();
        gone.extend(devices.iter().filter(|device| device.check().is_err()).map(|device| device.device.id.clone()));
        let changed = checked(devices).into_values().filter(|d| state.devices.get(&d.device.id) != Some(d)).collect();
        self.adjust(&mut state, changed, &gone).await;
    }

    async fn adjust(&self, state: &mut State, put: Vec<DeviceConfig>, gone: &[DeviceId]) {
        let mut touched: HashSet<LinkKey> = gone.iter().filter_map(|id| state.take(id)).collect();
        for device in put {
            touched.extend(state.take(&device.device.id));
            touched.insert(state.put(device));
        }
        let mut wanted: HashMap<LinkKey, Vec<DeviceConfig>> = touched
            .iter()
            .map(|key| (key.clone(), state.on_link(key)))
            .filter(|(_, devices)| !devices.is_empty())
            .collect();
        let keep = |key: &LinkKey, link: &RunningLink| {
            wanted.get(key).is_some_and(|devices| devices[0].same_link_settings(&link.sample))
        };
        let stop: Vec<&LinkKey> =
            touched.iter().filter(|key| state.links.get(*key).is_some_and(|link| !keep(key, link))).collect();
        let stopping: Vec<RunningLink> = stop.into_iter().filter_map(|key| state.links.remove(key)).collect();
        futures::future::join_all(stopping.into_iter().map(stop_link)).await;
        for (key, devices) in wanted.drain() {
            match state.links.get_mut(&key) {
                Some(link) => {
                    link.sample = devices[0].clone();
                    let (done, applied) = oneshot::channel();
                    if link.commands.send(Command::Devices { devices, done }).await.is_ok() {
                        // The task takes it up within the request under way; it cannot refuse.
                        let _ = applied.await;
                    }
                }
                None => {
                    let link = self.spawn(&key, devices);
                    state.links.insert(key, link);
                }
            }
        }
    }

    /// Writes a raw (already unscaled) value to one point: checked against the point's type, sent once, read back if the
    /// device is so configured. Dropping the future before the write had its turn means that it is not carried out.
    pub async fn write(&self, device: &DeviceId, point: u32, value: Value) -> Result<WriteDone, WriteError> {
        let unknown = WriteError::UnknownPoint { device: device.clone(), point };
        let commands = self.route(device).await.ok_or(unknown)?;
        let (reply, outcome) = oneshot::channel();
        let command = Command::Write { device: device.clone(), point, value, reply };
        commands.try_send(command).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => WriteError::Busy,
            mpsc::error::TrySendError::Closed(_) => WriteError::Stopped,
        })?;
        outcome.await.unwrap_or(Err(WriteError::Stopped))
    }

    /// Has the points of a device read soon, whenever they are due; `false` when it is not polled or its link is busy.
    pub async fn hurry(&self, device: &DeviceId) -> bool {
        let Some(commands) = self.route(device).await else { return false };
        commands.try_send(Command::Hurry { device: device.clone() }).is_ok()
    }

    /// Carries one request in the protocol's own form (Modbus: function code and data) over the link that polls the device,
    /// and gives the reply. What is due on the link is read before the next such request, up to eight reads.
    pub async fn exchange(&self, device: &DeviceId, request: Vec<u8>) -> Result<Vec<u8>, ExchangeError> {
        let commands = self.route(device).await.ok_or_else(|| ExchangeError::UnknownDevice(device.clone()))?;
        let (reply, outcome) = oneshot::channel();
        let command = Command::Exchange { device: device.clone(), request, reply };
        commands.try_send(command).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ExchangeError::Busy,
            mpsc::error::TrySendError::Closed(_) => ExchangeError::Stopped,
        })?;
        outcome.await.unwrap_or(Err(ExchangeError::Stopped))
    }

    /// Asks a device what it is.
    pub async fn identify(&self, device: &DeviceId) -> Result<Identity, IdentifyError> {
        let commands = self.route(device).await.ok_or_else(|| IdentifyError::UnknownDevice(device.clone()))?;
        let (reply, outcome) = oneshot::channel();
        commands.try_send(Command::Identify { device: device.clone(), reply }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => IdentifyError::Busy,
            mpsc::error::TrySendError::Closed(_) => IdentifyError::Stopped,
        })?;
        outcome.await.unwrap_or(Err(IdentifyError::Stopped))
    }

    /// Stops every link within 2 s, whatever the devices do, and closes its connection. Commands that wait are answered
    /// with `stopped`.
    pub async fn shutdown(self) {
        let mut state = self.shared.state.lock().await;
        state.stopped = true;
        state.devices.clear();
        state.members.clear();
        let links: Vec<RunningLink> = state.links.drain().map(|(_, link)| link).collect();
        futures::future::join_all(links.into_iter().map(stop_link)).await;
    }

    async fn route(&self, device: &DeviceId) -> Option<mpsc::Sender<Command>> {
        let state = self.shared.state.lock().await;
        let key = state.devices.get(device)?.link();
        state.links.get(&key).map(|link| link.commands.clone())
    }

    fn spawn(&self, key: &LinkKey, devices: Vec<DeviceConfig>) -> RunningLink {
        let (commands, inbox) = mpsc::channel(COMMANDS);
        let cancel = CancellationToken::new();
        let sample = devices[0].clone();
        let seat = Seat {
            name: key.0.clone(),
            inbox,
            cancel: cancel.clone(),
            updates: self.shared.updates.clone(),
            clock: self.shared.clock.clone(),
        };
        let task = match &sample.driver {
            #[cfg(feature = "modbus")]
            DriverConfig::Modbus(config) => {
                let (link, options) = (config.link.clone(), config.options.clone());
                tokio::spawn(seat.supervise(devices, move || {
                    super::modbus::driver::ModbusDriver::new(link.clone(), options.clone())
                }))
            }
        };
        RunningLink { commands, cancel, task, sample }
    }
}

/// What a link task has for life, over restarts.
struct Seat {
    name: String,
    inbox: mpsc::Receiver<Command>,
    cancel: CancellationToken,
    updates: mpsc::Sender<Update>,
    clock: SharedClock,
}

impl Seat {
    /// Runs a link until it is cancelled. A panic costs this link one second, and nobody else anything.
    async fn supervise<D: Driver>(mut self, mut devices: Vec<DeviceConfig>, driver: impl Fn() -> D) {
        let mut after_panic = false;
        loop {
            let mut task = LinkTask::new(self.name.clone(), driver(), self.updates.clone(), self.clock.clone());
            std::mem::take(&mut devices).into_iter().for_each(|device| task.attach(device));
            if std::mem::take(&mut after_panic) {
                task.link_down(&Fault {
                    scope: Scope::Link,
                    reason: Reason::LinkDown,
                    text: "internal error, see the log; the link begins anew".into(),
                });
            }
            let run = AssertUnwindSafe(task.run(&mut self.inbox)).catch_unwind();
            let outcome = tokio::select! {
                () = self.cancel.cancelled() => Ok(()),
                outcome = run => outcome,
            };
            task.hand_over_rest();
            if outcome.is_ok() {
                return;
            }
            error!(link = self.name, "the link task panicked; this is a bug, the link begins anew");
            devices = task.configs();
            after_panic = true;
            tokio::time::sleep(RESTART_AFTER).await;
        }
    }
}

async fn stop_link(link: RunningLink) {
    link.cancel.cancel();
    let mut task = link.task;
    if tokio::time::timeout(STOP_WITHIN, &mut task).await.is_err() {
        warn!("a link did not stop in time and is cut off");
        task.abort();
    }
}

fn checked(devices: Vec<DeviceConfig>) -> BTreeMap<DeviceId, DeviceConfig> {
    let mut kept = BTreeMap::new();
    for device in devices {
        match device.check() {
            Ok(()) => drop(kept.insert(device.device.id.clone(), device)),
            Err(problem) => error!(%problem, "device left out"),
        }
    }
    kept
}

fn difference(old: &BTreeMap<DeviceId, DeviceConfig>, new: &BTreeMap<DeviceId, DeviceConfig>) -> Applied {
    let mut applied = Applied::default();
    applied.removed.extend(old.keys().filter(|id| !new.contains_key(*id)).cloned());
    for (id, config) in new {
        let list = match old.get(id) {
            None => &mut applied.added,
            Some(before) if before == config => &mut applied.unchanged,
            Some(_) => &mut applied.changed,
        };
        list.push(id.clone());
    }
    applied
}
