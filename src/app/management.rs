//! Device management on the running gateway: what [`crate::management`] asks of the outside, built on the store, the drivers
//! and the topics.
//!
//! **Promise.** A device is polled, and its values are trusted, only as its state in the registry allows. What runs is
//! always the files with the desired configuration in force laid on them ([`overlay`]); devices that did not change keep
//! polling, whatever happens to their neighbours.
//!
//! **Form.** [`journal`] keeps the registry in one tree of the state store; [`declare`] says what the files declare;
//! [`fleet`] makes what runs equal to a plan; [`world`] and [`outlet`] are the two traits that management owns; [`requests`]
//! is the way from a topic to management.
//!
//! **Must not** decide anything about a device: that is management's.

mod declare;
mod fleet;
mod journal;
mod outlet;
mod overlay;
mod requests;
mod values;
mod world;

use std::collections::BTreeMap;
use std::time::Duration;

pub use fleet::{Fleet, FleetParts, claim};
pub use requests::run as run_requests;
pub use values::LastValues;

use super::events::EventLog;
use crate::config::Loaded;
use crate::management::core::{Input, Settings};
use crate::management::desired::Watcher;
use crate::management::journal::JournalError;
use crate::management::lifecycle::Policy;
use crate::management::service::{Management, Stopped};
use crate::northbound::StateBoard;
use crate::platform::clock::SharedClock;
use crate::store::Store;

/// How long a new configuration may take to reach the drivers before a start or a reload goes on without waiting.
const APPLY_LIMIT: Duration = Duration::from_secs(10);

/// What management stands on.
#[derive(Debug)]
pub struct Ground {
    /// The registry and the log.
    pub store: Store,
    /// Retained topics.
    pub board: StateBoard,
    /// Events and alarms.
    pub events: EventLog,
    /// What the drivers gave last.
    pub watcher: Watcher,
    /// What runs.
    pub fleet: Fleet,
    /// Time.
    pub clock: SharedClock,
}

/// Reads the registry and starts management. Nothing runs before [`take_files`].
pub async fn start(loaded: &Loaded, ground: Ground) -> Result<(Management, tokio::task::JoinHandle<()>), JournalError> {
    let Ground { store, board, events, watcher, fleet, clock } = ground;
    let settings = Settings {
        gateway: loaded.gateway.identity.id.clone(),
        policy: Policy::default(),
        roles: Vec::new(),
        partners: BTreeMap::new(),
        signing_key: None,
    };
    let outlet = outlet::Topics { board: board.clone(), events, store: store.clone(), clock: clock.clone() };
    let world = world::Plant { fleet, board, store: store.clone() };
    Management::start(settings, journal::StateJournal::new(store), world, outlet, watcher, clock).await
}

/// Hands the files to management and waits until what they ask for runs.
pub async fn take_files(management: &Management, fleet: &Fleet, loaded: &Loaded) -> Result<(), Stopped> {
    let devices = declare::declarations(loaded);
    let revision = fleet.set_files(loaded);
    management.report(Input::Files { devices, profiles: BTreeMap::new() }).await?;
    if tokio::time::timeout(APPLY_LIMIT, fleet.applied(revision)).await.is_err() {
        tracing::warn!("the devices are still being set up");
    }
    Ok(())
}
