//! What runs: the devices of the files, as the plan of management allows them, with the desired configuration laid on.
//!
//! Everything that knows the devices is changed here, from north to south, so that no sample meets a part that does not know
//! it yet. Drivers name points by their place in the device's list; therefore devices that change rest while pipelines and
//! scalings are exchanged: no value is taken for that of another point, and nothing is written to another register.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use tokio::sync::{mpsc, oneshot, watch};

use super::declare::{profile, takes_firmware};
use super::overlay::overlaid;
use super::values::LastValues;
use crate::app::commands::Scalings;
use crate::app::ingest::Control;
use crate::app::latest::Latest;
use crate::config::{Device, Loaded};
use crate::contract::topics;
use crate::management::capabilities::capabilities;
use crate::management::clock::ClockForm;
use crate::management::command::CommandService;
use crate::management::core::{Plan, PlannedDevice};
use crate::management::desired::Target;
use crate::management::firmware::DeviceForm;
use crate::management::lifecycle::{Claim, Mode};
use crate::management::permit::CommandRules;
use crate::management::request::Refusal;
use crate::model::{self, DeviceId};
use crate::northbound::{Directory, StateBoard};
use crate::pipeline::DevicePipeline;
use crate::platform::clock::SharedClock;
use crate::southbound::{DeviceConfig, Identity, Southbound};

/// Everyone who knows the devices.
#[derive(Debug)]
pub struct FleetParts {
    /// The drivers.
    pub southbound: Southbound,
    /// The ingest task's ear.
    pub control: mpsc::Sender<Control>,
    /// The publishers' list of devices.
    pub directory: watch::Sender<Arc<Directory>>,
    /// Last values.
    pub latest: Latest,
    /// What writes need.
    pub scalings: Scalings,
    /// Who executes commands.
    pub commands: CommandService,
    /// For interlocks.
    pub values: LastValues,
    /// Retained topics.
    pub board: StateBoard,
    /// Time.
    pub clock: SharedClock,
}

/// The devices that run; cheap to clone.
#[derive(Debug, Clone)]
pub struct Fleet(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    parts: FleetParts,
    files: RwLock<Files>,
    /// What runs, also the lock of a change.
    running: tokio::sync::Mutex<Vec<Running>>,
    /// What devices said of themselves in this run.
    identities: Mutex<BTreeMap<DeviceId, Claim>>,
    applied: watch::Sender<u64>,
}

#[derive(Debug, Clone, Default)]
struct Files {
    revision: u64,
    devices: Arc<BTreeMap<DeviceId, Device>>,
}

#[derive(Debug, Clone)]
struct Running {
    device: Device,
    mode: Mode,
}

impl Fleet {
    /// Nothing runs yet.
    pub fn new(parts: FleetParts) -> Self {
        let (files, running, identities) = Default::default();
        Self(Arc::new(Inner { parts, files, running, identities, applied: watch::Sender::new(0) }))
    }

    /// The drivers.
    pub fn southbound(&self) -> &Southbound {
        &self.0.parts.southbound
    }

    /// The devices of a configuration, for the plans from now on. Gives the number of this set.
    pub fn set_files(&self, loaded: &Loaded) -> u64 {
        let devices = loaded.devices.iter().map(|d| (d.model.id.clone(), d.clone())).collect();
        let mut files = self.0.files.write().unwrap_or_else(PoisonError::into_inner);
        *files = Files { revision: files.revision + 1, devices: Arc::new(devices) };
        files.revision
    }

    /// Waits until a plan was applied to the files with this number, or newer ones.
    pub async fn applied(&self, revision: u64) {
        let mut applied = self.0.applied.subscribe();
        // The sender lives as long as `self`.
        let _done = applied.wait_for(|done| *done >= revision).await;
    }

    /// A device said who it is.
    pub fn identified(&self, device: &DeviceId, claim: Claim) {
        self.identities().insert(device.clone(), claim);
        let files = self.files();
        if let Some(known) = files.devices.get(device) {
            self.show(known);
        }
    }

    /// Clears every retained topic of a device that is gone, but the one that says so; also what a client wanted of it, which
    /// would come again with every connection.
    pub fn clear_topics(&self, device: &DeviceId) {
        let files = self.files();
        let points = files.devices.get(device).map(|d| d.model.points.clone());
        let board = &self.0.parts.board;
        points.iter().flat_map(|p| p.iter()).for_each(|p| board.clear(&topics::point(device.as_str(), p.id.as_str())));
        let wanted = [topics::config_desired(device), topics::firmware_desired(device.as_str())];
        let told =
            [topics::capabilities(device), topics::device_time(device), topics::firmware_status(device.as_str())];
        wanted.iter().chain(&told).for_each(|topic| board.clear(topic));
        board.clear(&Target::Device(device.clone()).topic());
    }

    /// How it holds its clock.
    pub fn clock_form(&self, device: &DeviceId) -> Option<ClockForm> {
        self.files().devices.get(device)?.management.clock.clone()
    }

    /// How it takes firmware.
    ///
    /// # Errors
    /// Why it takes none here.
    pub fn firmware(&self, device: &DeviceId) -> Result<DeviceForm, Refusal> {
        let files = self.files();
        let known = files.devices.get(device).ok_or_else(|| Refusal::unknown_device(device))?;
        let form = known.management.firmware.clone().ok_or_else(|| {
            let text = format!("{device} does not say how it takes firmware; add [firmware] to its file or profile");
            Refusal::new("no-firmware", text)
        })?;
        if !takes_firmware(known) {
            let text = format!("{device} is a tier 1 device that did not delegate `firmware`; see its file");
            return Err(Refusal::new("not-delegated", text));
        }
        Ok(form)
    }

    /// Whether it is in service and shows the identity that was approved.
    pub async fn is_trusted(&self, device: &DeviceId) -> bool {
        let running = self.0.running.lock().await;
        running.iter().any(|run| run.device.model.id == *device && run.mode == Mode::Trusted)
    }

    /// What is known of a device in this run is forgotten.
    pub fn forget(&self, device: &DeviceId) {
        self.identities().remove(device);
    }

    /// Makes what runs equal to the plan. Gives the devices that could not be set up, and why.
    pub async fn apply(&self, plan: &Plan) -> BTreeMap<DeviceId, String> {
        let mut running = self.0.running.lock().await;
        let files = self.files();
        let (wanted, failures) = wanted(&files, plan);
        let before = std::mem::replace(&mut *running, wanted);
        if let Err(stopping) = self.change(&files, plan, &before, &running).await {
            tracing::debug!("devices are not changed: {stopping}");
        }
        self.0.applied.send_replace(files.revision);
        failures
    }

    async fn change(&self, files: &Files, plan: &Plan, before: &[Running], now: &[Running]) -> Result<(), String> {
        let stopping = || "the gateway is stopping".to_owned();
        let parts = &self.0.parts;
        let known = known(files, now);
        for model in parts.directory.borrow().values().filter(|model| !known.contains_key(&model.id)) {
            parts.board.clear(&topics::capabilities(&model.id));
        }
        parts.directory.send_replace(Arc::new(known.iter().map(|(id, m)| (id.to_string(), m.clone())).collect()));
        parts.latest.set_devices(now.iter().map(|r| &r.device.model));
        files.devices.values().filter(|d| !plan.gone.contains(&d.model.id)).for_each(|device| self.show(device));
        // Again after every start: the process may have died before the brokers heard of it.
        plan.gone.iter().for_each(|device| self.clear_topics(device));
        let rules =
            known.keys().map(|id| (id.clone(), rules(id, files.devices.get(id), plan.devices.get(id)))).collect();
        parts.commands.set_devices(known).await.map_err(|e| e.to_string())?;
        parts.commands.set_rules(rules, Arc::new(parts.values.clone())).await.map_err(|e| e.to_string())?;

        let (old, new) = (drivers(before), drivers(now));
        let (kept, resting): (Vec<_>, Vec<_>) = old.into_iter().partition(|device| new.contains(device));
        if !resting.is_empty() {
            parts.southbound.apply(kept).await;
        }
        let pipelines: Vec<_> = now.iter().map(pipeline).collect();
        parts.scalings.set(&pipelines);
        let (done, replaced) = oneshot::channel();
        parts.control.send(Control::Replace { pipelines, done }).await.map_err(|_| stopping())?;
        replaced.await.map_err(|_| stopping())?;
        let applied = parts.southbound.apply(new).await;
        tracing::debug!(?applied, "devices");
        Ok(())
    }

    /// Its capabilities: what it says and what its files offer.
    fn show(&self, device: &Device) {
        let parts = &self.0.parts;
        let claim = self.identities().get(&device.model.id).cloned().unwrap_or_default();
        let message = capabilities(&device.model, &profile(device), &claim, parts.clock.now());
        parts.board.set(&topics::capabilities(&device.model.id), &message);
    }

    fn files(&self) -> Files {
        self.0.files.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn identities(&self) -> std::sync::MutexGuard<'_, BTreeMap<DeviceId, Claim>> {
        self.0.identities.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Devices to run, and those that cannot.
fn wanted(files: &Files, plan: &Plan) -> (Vec<Running>, BTreeMap<DeviceId, String>) {
    let (mut wanted, mut failures) = (Vec::new(), BTreeMap::new());
    for (id, planned) in &plan.devices {
        let Some(file) = files.devices.get(id) else {
            failures.insert(id.clone(), "no file declares it".to_owned());
            continue;
        };
        if planned.overlay.enabled == Some(false) {
            continue;
        }
        let device = overlaid(file, &planned.overlay);
        match device.southbound().check() {
            Ok(()) => wanted.push(Running { device, mode: planned.mode }),
            Err(problem) => drop(failures.insert(id.clone(), problem.to_string())),
        }
    }
    (wanted, failures)
}

/// Every device that publishers and commands know: those that run as they run, the others as their files say.
fn known(files: &Files, running: &[Running]) -> BTreeMap<DeviceId, Arc<model::Device>> {
    let declared = files.devices.iter().map(|(id, d)| (id.clone(), d.model.clone()));
    let running = running.iter().map(|r| (r.device.model.id.clone(), r.device.model.clone()));
    declared.chain(running).collect()
}

/// The rules of the files, and those of the desired configuration beside or instead of them.
fn rules(id: &DeviceId, file: Option<&Device>, planned: Option<&PlannedDevice>) -> CommandRules {
    let closed = match planned.map(|p| p.mode) {
        Some(Mode::Trusted) => None,
        Some(Mode::Untrusted) => {
            Some(format!("{id} shows another identity than the approved one; somebody must decide"))
        }
        None => Some(format!("{id} is not in service; its onboarding topic says what can be done")),
    };
    let overlay = planned.map(|p| p.overlay.clone()).unwrap_or_default();
    let methods = file.map(|f| f.management.methods.clone()).unwrap_or_default();
    let mut rules = CommandRules { closed, ..CommandRules::new(&overlay, methods) };
    if let Some(file) = file {
        rules.critical.extend(file.management.critical.iter().cloned());
        for (point, interlock) in &file.management.interlocks {
            rules.interlocks.entry(point.clone()).or_insert_with(|| interlock.clone());
        }
    }
    rules
}

fn drivers(running: &[Running]) -> Vec<DeviceConfig> {
    running.iter().map(|r| r.device.southbound()).collect()
}

fn pipeline(running: &Running) -> DevicePipeline {
    let device = &running.device;
    let pipeline = DevicePipeline::new(device.model.clone(), device.rules.clone(), device.batch);
    if running.mode == Mode::Trusted { pipeline } else { pipeline.distrusted() }
}

/// What a driver found, as management takes it.
pub fn claim(identity: &Identity) -> Claim {
    let text = |part: &Option<String>| part.clone().unwrap_or_default();
    Claim {
        certificate: None,
        vendor: text(&identity.vendor),
        model: text(&identity.model),
        serial: text(&identity.serial),
        firmware: text(&identity.firmware),
        other: identity.other.clone(),
    }
}
