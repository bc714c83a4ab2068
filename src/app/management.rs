//! Device management on the running gateway: what [`crate::management`] asks of the outside, built on the store, the drivers
//! and the topics.
//!
//! **Promise.** A device is polled, and its values are trusted, only as its state in the registry allows. What runs is
//! always the files with the desired configuration in force laid on them ([`overlay`]); devices that did not change keep
//! polling, whatever happens to their neighbours.
//!
//! **Form.** [`journal`] keeps the registry in one tree of the state store; [`declare`] says what the files declare;
//! [`fleet`] makes what runs equal to a plan, and [`in_force`] knows what that changes; [`world`] and [`outlet`] are the two traits that management owns; [`requests`]
//! is the way from a topic to management.
//!
//! **Must not** decide anything about a device: that is management's.

mod credentials;
mod declare;
mod erase;
mod fleet;
mod in_force;
mod journal;
pub mod keys;
mod outlet;
mod overlay;
mod requests;
mod values;
mod world;

use std::sync::Arc;
use std::time::Duration;

pub use fleet::{Fleet, FleetParts, claim};
pub use requests::run as run_requests;
pub use values::LastValues;

use super::certificates::pki_config;
use super::commands::ScaledWriter;
use super::events::EventLog;
use super::firmware::FirmwareDesk;
use crate::config::Loaded;
use crate::management::core::{Counters, Input, Settings};
use crate::management::desired::Watcher;
use crate::management::journal::JournalError;
use crate::management::lifecycle::Policy;
use crate::management::service::{Management, Stopped};
use crate::northbound::StateBoard;
use crate::platform::clock::SharedClock;
use crate::store::Store;
use crate::telemetry::LogHandle;

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
    /// Writes through scaling and driver.
    pub writer: ScaledWriter,
    /// Updates under way.
    pub firmware: FirmwareDesk,
    /// The log level.
    pub logs: LogHandle,
    /// Where requests are counted.
    pub counters: Arc<Counters>,
    /// Time.
    pub clock: SharedClock,
}

/// Reads the registry and starts management. Nothing runs before [`take_files`].
pub async fn start(loaded: &Loaded, ground: Ground) -> Result<(Management, tokio::task::JoinHandle<()>), JournalError> {
    let section = &loaded.gateway.management;
    let data_dir = loaded.gateway.identity.data_dir.clone();
    let unreadable = |reason| JournalError::Medium { act: "read", reason };
    let Ground { store, board, events, watcher, fleet, writer, firmware, logs, counters, clock } = ground;
    let settings = Settings {
        gateway: loaded.gateway.identity.id.clone(),
        policy: Policy {
            auto_approve_declared: section.approve_declared,
            rules: section.approve.clone(),
            stored: section.stored,
            deliver_within_ms: section.deliver_within.as_millis() as i64,
            ..Policy::default()
        },
        roles: section.roles.clone(),
        partners: section.partners.clone(),
        signing_key: Some(keys::signing_key(&data_dir).map_err(unreadable)?),
        counters,
    };
    let outlet = outlet::Topics { board, events, store: store.clone(), clock: clock.clone() };
    let credentials = credentials::Credentials { config: pki_config(&loaded.gateway), clock: clock.clone() };
    let world = world::Plant {
        root: loaded.gateway.identity.root.clone(),
        fleet,
        store: store.clone(),
        watcher: watcher.clone(),
        writer,
        firmware,
        logs,
        credentials: Arc::new(credentials),
        clock: clock.clone(),
    };
    let journal = journal::StateJournal::new(store);
    let (management, task) = Management::start(settings, journal, world, outlet, watcher, clock).await?;
    if let Some(hash) = keys::claim_code(&data_dir).map_err(unreadable)? {
        // The task has just begun; it stops only with the gateway.
        let _stopped = management.arm_claim_code(hash).await;
        keys::forget_claim_code(&data_dir).map_err(unreadable)?;
    }
    Ok((management, task))
}

/// Hands the files to management and waits until what they ask for runs.
pub async fn take_files(management: &Management, fleet: &Fleet, loaded: &Loaded) -> Result<(), Stopped> {
    let devices = declare::declarations(loaded);
    let revision = fleet.set_files(loaded);
    management.report(Input::Files { devices, profiles: declare::types(loaded) }).await?;
    if tokio::time::timeout(APPLY_LIMIT, fleet.applied(revision)).await.is_err() {
        tracing::warn!("the devices are still being set up");
    }
    Ok(())
}
