//! The Margo client on the running gateway: its [`Plant`] on the registry and the command service, its [`Storage`] on the
//! state store, and the supervised tasks.
//!
//! Children are the devices that were approved and belong to this gateway. One that is out of service, shows another identity
//! or is about to be handed over stays one, and counts as unreachable. Recipes are commands ([`recipe`]), configurations are
//! versions of `config/desired` ([`configuration`]), firmware is offered at the firmware desk and approved by its
//! deployment ([`firmware`]), and Compose projects are brought up at container engines ([`compose`]).

mod clients;
mod compose;
mod configuration;
mod firmware;
mod grace;
mod recipe;
mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{broadcast, watch};
use tokio::time::Instant;

pub use clients::start;

use super::events::EventLog;
use super::firmware::FirmwareDesk;
use super::latest::Latest;
use super::management::Fleet;
use crate::contract::v1;
use crate::contract::v1::event::Severity;
use crate::management::command::CommandService;
use crate::management::lifecycle::{Declaration, DeviceRecord, State};
use crate::management::service::Management;
use crate::margo::component::Work;
use crate::margo::plant::{Act, Alert, Before, Child, Functions, Identity, Inventory, Order, Plant, Refusal};
use crate::model::{Access, DeviceId};
use crate::store::Store;

/// Changes of the inventory within this time are looked at once.
const SETTLE: Duration = Duration::from_millis(200);

/// What of the gateway the clients need.
#[derive(Debug, Clone)]
pub struct Ground {
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
}

/// The gateway as one client needs it.
#[derive(Debug)]
struct GatewayPlant {
    ground: Ground,
    /// Where images of firmware lie.
    images: PathBuf,
    /// The container engines of hosts.
    engines: Arc<compose::Engines>,
    /// What the inventory was made of last.
    seen: Mutex<Seen>,
    /// Who has not had the time to answer yet.
    grace: Mutex<grace::Grace>,
}

/// Changes of the registry, of what is known of devices, and of what is gone from container engines.
#[derive(Debug, Clone)]
struct Seen(watch::Receiver<u64>, watch::Receiver<u64>, watch::Receiver<BTreeMap<Option<DeviceId>, BTreeSet<String>>>);

/// One device as the registry has it: who was approved, so that neither a restart nor a stranger at its address changes what
/// the fleet manager is told.
fn child(id: &DeviceId, record: &DeviceRecord, declared: Option<&Declaration>) -> Child {
    let plate = record.name_plate();
    let said = |text: String| (!text.is_empty()).then_some(text);
    let delegated = |function| declared.is_some_and(|declared| declared.delegated.contains(function));
    let writable = declared.is_some_and(|d| d.profile.points.values().any(|point| point.max_access != Access::Read));
    Child {
        id: id.clone(),
        identity: Identity { vendor: said(plate.vendor), model: said(plate.model), serial: said(plate.serial) },
        hardware: record.approved().map(|_| format!("piece {}", record.piece)).unwrap_or_default(),
        protocol: record.protocol.clone(),
        tier: record.tier,
        firmware: record.claim.as_ref().and_then(|claim| said(claim.firmware.clone())),
        functions: Functions {
            configuration: delegated("config"),
            recipe: writable && delegated("command"),
            firmware: false,
        },
        reachable: record.state == State::Active,
        connecting: false,
        lost: BTreeSet::new(),
    }
}

impl Plant for GatewayPlant {
    async fn inventory(&self) -> Option<Inventory> {
        {
            let mut seen = self.seen();
            let Seen(registry, devices, engines) = &mut *seen;
            // What changes from here on is a change since this inventory.
            registry.mark_unchanged();
            devices.mark_unchanged();
            engines.mark_unchanged();
        }
        let held = self.ground.management.look(|core| {
            let life = core.lifecycle();
            let held = life.devices().iter().filter(|(_, record)| record.is_held());
            held.map(|(id, record)| child(id, record, life.declaration(id))).collect::<Vec<_>>()
        });
        let mut children = held.await.ok()?;
        self.ground.latest.read(|table| {
            let mut grace = self.grace();
            let now = Instant::now();
            for child in &mut children {
                let view = table.get(&child.id);
                let is_silent = child.reachable && !view.is_some_and(firmware::is_polled);
                child.connecting = is_silent && grace.holds(&child.id, view, now);
                child.reachable &= !is_silent;
                child.functions.firmware = self.ground.fleet.firmware(&child.id).is_ok();
                child.lost = self.engines.lost(Some(&child.id));
            }
        });
        self.grace().keep(|id| children.binary_search_by(|child| child.id.cmp(id)).is_ok());
        let stays = |id: &str| children.binary_search_by(|child| child.id.as_str().cmp(id)).is_ok();
        firmware::sweep(&self.ground.store, stays).await;
        let lost = self.engines.lost(None);
        Some(Inventory { gateway: Identity::default(), functions: Functions::default(), lost, children })
    }

    async fn changed(&self) {
        let Seen(mut registry, mut devices, mut engines) = self.seen().clone();
        let grace = self.grace().ends(Instant::now());
        let gone = tokio::select! {
            () = tokio::time::sleep_until(grace.unwrap_or_else(Instant::now)), if grace.is_some() => return,
            changed = registry.changed() => changed.is_err(),
            changed = devices.changed() => changed.is_err(),
            changed = engines.changed() => changed.is_err(),
        };
        if gone {
            // The gateway stops: there is no news any more.
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(SETTLE).await;
    }

    async fn before(&self, device: Option<&DeviceId>, work: &Work) -> Result<Before, Refusal> {
        if let Some(device) = device.filter(|device| !self.answers_now(device)) {
            return Err(unreachable(device));
        }
        let named = || device.ok_or_else(not_for_the_gateway);
        match work {
            Work::Configuration { .. } => configuration::before(&self.ground.management, named()?).await,
            Work::Firmware { .. } => self.firmware_ways(named()?).before(),
            Work::Recipe { values } => self.recipe_ways(named()?, "").before(values),
            Work::Compose(project) => self.engines.ways(device, &project.owner)?.before().await,
        }
    }

    async fn carry_out(&self, order: Order) -> Result<(), Refusal> {
        let Order { key, device, actor, act } = order;
        let named = || device.as_ref().ok_or_else(not_for_the_gateway);
        match act {
            Act::Apply { work: Work::Configuration { document }, .. } => {
                let device = named()?;
                let applied = configuration::apply(&self.ground.management, &key, device, &actor, document).await;
                // Who fell silent in the middle of it proved nothing, neither good nor bad.
                applied.map_err(|refusal| match self.answers_now(device) {
                    false if refusal.code == configuration::NOT_PROVEN => Refusal { unreachable: true, ..refusal },
                    _ => refusal,
                })
            }
            Act::Undo { work: Work::Configuration { .. }, before } => {
                configuration::undo(&self.ground.management, &key, named()?, &actor, &before).await
            }
            Act::Apply { work: Work::Recipe { values }, back } => {
                self.recipe_ways(named()?, &actor).apply(&key, values, &back).await
            }
            Act::Undo { work: Work::Recipe { .. }, before } => {
                self.recipe_ways(named()?, &actor).undo(&key, before).await
            }
            Act::Apply { work: Work::Firmware { image, manifest, .. }, .. } => {
                let wanted = firmware::Wanted { key: &key, actor: &actor, image, cache: &self.images, manifest };
                self.firmware_ways(named()?).apply(wanted).await
            }
            Act::Undo { work: Work::Firmware { .. }, before } => {
                self.firmware_ways(named()?).undo(&actor, &before).await
            }
            Act::Apply { work: Work::Compose(project), .. } => {
                self.engines.ways(device.as_ref(), &project.owner)?.apply(&key, &project).await
            }
            Act::Undo { work: Work::Compose(project), .. } => {
                self.engines.ways(device.as_ref(), &project.owner)?.undo(&project.owner).await
            }
        }
    }

    async fn alert(&self, alert: Alert) {
        self.ground.events.report(Severity::Alarm, alert.code, "", alert.text).await;
    }
}

impl GatewayPlant {
    fn new(ground: Ground, images: PathBuf, engines: Arc<compose::Engines>) -> Self {
        let seen = Mutex::new(Seen(ground.management.changes(), ground.latest.changes(), engines.changes()));
        Self { ground, images, engines, seen, grace: Mutex::default() }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn grace(&self) -> MutexGuard<'_, grace::Grace> {
        self.grace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a device is polled and answers.
    fn answers_now(&self, device: &DeviceId) -> bool {
        self.ground.latest.read(|table| table.get(device).is_some_and(firmware::is_polled))
    }

    const fn firmware_ways<'a>(&'a self, device: &'a DeviceId) -> firmware::Ways<'a> {
        let Ground { desk, latest, events, store, .. } = &self.ground;
        firmware::Ways { desk, latest, events, store, device }
    }

    const fn recipe_ways<'a>(&'a self, device: &'a DeviceId, actor: &'a str) -> recipe::Ways<'a> {
        let Ground { latest, commands, answers, .. } = &self.ground;
        recipe::Ways { latest, commands, answers, device, actor }
    }
}

fn not_for_the_gateway() -> Refusal {
    Refusal::new("not-supported", "only Compose projects are deployed to the gateway itself")
}

fn unreachable(device: &DeviceId) -> Refusal {
    Refusal { unreachable: true, ..Refusal::new("unreachable", format!("{device} is not polled now")) }
}
