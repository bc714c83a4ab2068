//! What runs: the devices of the files, as the plan of management allows them, with the desired configuration laid on.
//!
//! Everything that knows the devices is changed here, from north to south, so that no sample meets a part that does not know
//! it yet. Drivers name points by their place in the device's list; therefore devices that change rest while pipelines and
//! scalings are exchanged: no value is taken for that of another point, and nothing is written to another register.
//!
//! A plan names every device, but only what differs from what is in force is made, compared and handed on: one setting of
//! one device of a thousand costs little more than in a small plant.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use tokio::sync::{mpsc, oneshot, watch};

use super::declare::{profile, takes_firmware};
use super::in_force::{InForce, Running};
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
use crate::model::DeviceId;
use crate::northbound::{Directory, StateBoard};
use crate::pipeline::DevicePipeline;
use crate::platform::clock::SharedClock;
use crate::southbound::{Identity, Southbound};

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
    /// What was applied last, also the lock of a change.
    in_force: tokio::sync::Mutex<InForce>,
    /// Devices whose capabilities stand on their topics as the files say.
    shown: Mutex<BTreeSet<DeviceId>>,
    /// What devices said of themselves in this run.
    identities: Mutex<BTreeMap<DeviceId, Claim>>,
    applied: watch::Sender<u64>,
}

#[derive(Debug, Clone, Default)]
struct Files {
    revision: u64,
    /// Those that files declare, and those of `built`.
    devices: Arc<BTreeMap<DeviceId, Device>>,
    types: Arc<BTreeMap<String, Device>>,
    /// Devices that no file declares, with type and address.
    built: BTreeMap<DeviceId, (String, String)>,
}

impl Files {
    /// Adds the devices of a plan that no file declares, and leaves out those of an earlier one. Gives those that cannot be
    /// built, and why.
    fn build(&mut self, plan: &Plan) -> BTreeMap<DeviceId, String> {
        let asked = |(id, planned): (&DeviceId, &PlannedDevice)| Some((id.clone(), planned.undeclared.clone()?));
        let asked: BTreeMap<_, _> = plan.devices.iter().filter_map(asked).collect();
        let mut failures = BTreeMap::new();
        if asked == self.built {
            return failures;
        }
        let mut devices = (*self.devices).clone();
        self.built.keys().for_each(|id| drop(devices.remove(id)));
        for (id, (name, address)) in &asked {
            let kind = self.types.get(name).ok_or_else(|| format!("profiles/{name}.toml is no type for it"));
            match kind.and_then(|kind| kind.placed(id, address)) {
                Ok(device) => drop(devices.insert(id.clone(), device)),
                Err(why) => drop(failures.insert(id.clone(), why)),
            }
        }
        self.built = asked.into_iter().filter(|(id, _)| !failures.contains_key(id)).collect();
        self.devices = Arc::new(devices);
        failures
    }
}

impl Fleet {
    /// Nothing runs yet.
    pub fn new(parts: FleetParts) -> Self {
        let (files, in_force, shown, identities) = Default::default();
        Self(Arc::new(Inner { parts, files, in_force, shown, identities, applied: watch::Sender::new(0) }))
    }

    /// The drivers.
    pub fn southbound(&self) -> &Southbound {
        &self.0.parts.southbound
    }

    /// The devices of a configuration, for the plans from now on. Gives the number of this set.
    pub fn set_files(&self, loaded: &Loaded) -> u64 {
        let devices = loaded.devices.iter().map(|d| (d.model.id.clone(), d.clone())).collect();
        let mut files = self.0.files.write().unwrap_or_else(PoisonError::into_inner);
        let types = Arc::new(loaded.types.clone());
        *files = Files { revision: files.revision + 1, devices: Arc::new(devices), types, built: BTreeMap::new() };
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
        self.shown().remove(device);
        points.iter().flat_map(|p| p.iter()).for_each(|p| board.clear(&topics::point(device.as_str(), p.id.as_str())));
        let wanted = [topics::config_desired(device), topics::firmware_desired(device.as_str())];
        let told =
            [topics::capabilities(device), topics::device_time(device), topics::firmware_status(device.as_str())];
        wanted.iter().chain(&told).for_each(|topic| board.clear(topic));
        board.clear(&Target::Device(device.clone()).topic());
    }

    /// Waits until a device does not run.
    pub async fn at_rest(&self, device: &DeviceId) {
        let mut applied = self.0.applied.subscribe();
        while self.0.in_force.lock().await.running.contains_key(device) {
            // The sender lives as long as `self`.
            let _told = applied.changed().await;
        }
    }

    /// Clears one retained topic.
    pub fn clear_topic(&self, topic: &str) {
        self.0.parts.board.clear(topic);
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
        let in_force = self.0.in_force.lock().await;
        in_force.running.get(device).is_some_and(|run| run.mode == Mode::Trusted)
    }

    /// What is known of a device in this run is forgotten.
    pub fn forget(&self, device: &DeviceId) {
        self.identities().remove(device);
        self.shown().remove(device);
    }

    /// Makes what runs equal to the plan. Gives the devices that could not be set up, and why.
    pub async fn apply(&self, plan: &Plan) -> BTreeMap<DeviceId, String> {
        let mut in_force = self.0.in_force.lock().await;
        let (files, unbuilt) = {
            let mut files = self.0.files.write().unwrap_or_else(PoisonError::into_inner);
            let unbuilt = files.build(plan);
            (files.clone(), unbuilt)
        };
        let rewritten = in_force.take(&files.devices, plan);
        self.shown().retain(|id| !rewritten.contains(id));
        match self.change(&in_force, &files, plan).await {
            Ok(()) => in_force.done(),
            Err(stopping) => tracing::debug!("devices are not changed: {stopping}"),
        }
        self.0.applied.send_replace(files.revision);
        in_force.failures.clone().into_iter().chain(unbuilt).collect()
    }

    async fn change(&self, now: &InForce, files: &Files, plan: &Plan) -> Result<(), String> {
        let stopping = || "the gateway is stopping".to_owned();
        let parts = &self.0.parts;
        if now.changed().next().is_none() {
            self.show_news(files, plan);
            return Ok(());
        }
        self.tell_models(now).await?;
        self.show_news(files, plan);
        let known = now.changed().filter(|id| now.model(id).is_some());
        let rules = known.map(|id| (id.clone(), rules(id, files.devices.get(id), plan.devices.get(id)))).collect();
        parts.commands.set_rules(rules, Arc::new(parts.values.clone())).await.map_err(|e| e.to_string())?;

        let (resting, moved) = now.drivers();
        if !resting.is_empty() {
            parts.southbound.change(Vec::new(), &resting).await;
        }
        let pipelines: Vec<_> = now.changed_running().map(pipeline).collect();
        let gone = now.stopped();
        parts.scalings.change(&pipelines, &gone);
        let (done, replaced) = oneshot::channel();
        parts.control.send(Control::Change { pipelines, gone, done }).await.map_err(|_| stopping())?;
        replaced.await.map_err(|_| stopping())?;
        if !moved.is_empty() {
            parts.southbound.change(moved, &[]).await;
        }
        tracing::debug!(devices = now.changed().count(), "changed");
        Ok(())
    }

    /// Publishers, last values and commands know the devices as they run, those that do not as their files say.
    async fn tell_models(&self, now: &InForce) -> Result<(), String> {
        let parts = &self.0.parts;
        let directory = parts.directory.borrow().clone();
        let is_news = |id: &DeviceId| match (directory.get(id.as_str()), now.model(id)) {
            (Some(before), Some(model)) => before != model,
            (before, model) => before.is_some() != model.is_some(),
        };
        let is_news = now.changed().any(is_news);
        if is_news {
            for id in now.changed().filter(|id| now.model(id).is_none()) {
                parts.board.clear(&topics::capabilities(id));
            }
            let known = now.known();
            parts.directory.send_replace(Arc::new(known.iter().map(|(id, m)| (id.to_string(), m.clone())).collect()));
            parts.commands.set_devices(known).await.map_err(|e| e.to_string())?;
        }
        parts.latest.change(now.changed_running().map(|run| &run.device.model), &now.stopped());
        Ok(())
    }

    /// Shows what devices can do whose files are new or that came back, and clears what is shown of those that are gone.
    fn show_news(&self, files: &Files, plan: &Plan) {
        let news: Vec<&Device> = {
            let shown = self.shown();
            let is_news = |id: &DeviceId| !shown.contains(id) && !plan.gone.contains(id);
            files.devices.iter().filter(|(id, _)| is_news(id)).map(|(_, device)| device).collect()
        };
        news.into_iter().for_each(|device| self.show(device));
        // Again after every start: the process may have died before the brokers heard of it.
        plan.gone.iter().for_each(|device| self.clear_topics(device));
    }

    /// Its capabilities: what it says and what its files offer.
    fn show(&self, device: &Device) {
        let parts = &self.0.parts;
        let claim = self.identities().get(&device.model.id).cloned().unwrap_or_default();
        let message = capabilities(&device.model, &profile(device), &claim, parts.clock.now());
        parts.board.set(&topics::capabilities(&device.model.id), &message);
        self.shown().insert(device.model.id.clone());
    }

    fn shown(&self) -> MutexGuard<'_, BTreeSet<DeviceId>> {
        self.0.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn files(&self) -> Files {
        self.0.files.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn identities(&self) -> MutexGuard<'_, BTreeMap<DeviceId, Claim>> {
        self.0.identities.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
