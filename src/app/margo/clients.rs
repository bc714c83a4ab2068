//! The supervised tasks: one client, or one per device of a transparent gateway, and a file that says how each stands.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::compose::Engines;
use super::state::StateStorage;
use super::{GatewayPlant, Ground};
use crate::app::supervisor::Supervisor;
use crate::margo::client::{self, ClientStatus};
use crate::margo::config::{Config, Member};
use crate::margo::host::ContainerEngine;
use crate::model::DeviceId;
use crate::platform::clock::SharedClock;
use crate::platform::durable::{Access as FileAccess, Disk};
use crate::security::pki::BelievedTime;

/// The file with a client's status, for `fieldgate margo status`.
pub const STATUS_FILE: &str = "status.json";

/// Starts the clients that the configuration names; each is started again when it fails.
pub fn start(supervisor: &mut Supervisor, config: &Config, ground: &Ground, clock: &SharedClock, time: &BelievedTime) {
    let config = Arc::new(config.clone());
    for member in config.members() {
        let prefix = member.only.as_ref().map(|device| format!("{device}/")).unwrap_or_default();
        let storage = StateStorage { store: ground.store.clone(), prefix };
        let engines = Engines::new(member.projects(), hosts(&config, &member));
        let plant = Arc::new(GatewayPlant::new(ground.clone(), member.images(), engines.clone()));
        let (status, seen) = watch::channel(ClientStatus::default());
        let token = supervisor.token();
        let watched = token.clone();
        supervisor.spawn("margo engines", async move {
            tokio::select! {
                () = watched.cancelled() => {}
                // It ends at once where there is no engine.
                () = engines.watch() => {}
            }
            watched.cancelled().await;
            Ok(())
        });
        supervisor.spawn("margo status", keep_status(seen, member.directory.clone(), token.clone()));
        let (config, clock, time) = (config.clone(), clock.clone(), time.clone());
        supervisor.spawn_restarting("margo client", move || {
            let (config, member, plant, storage) = (config.clone(), member.clone(), plant.clone(), storage.clone());
            let (clock, time, status, token) = (clock.clone(), time.clone(), status.clone(), token.clone());
            async move {
                let run = client::run(config, member, plant, storage, clock, time, status, token);
                run.await.map_err(|error| error.to_string())
            }
        });
    }
}

/// The container engines of a client's hosts.
fn hosts(config: &Config, member: &Member) -> BTreeMap<Option<DeviceId>, ContainerEngine> {
    let is_own = |device: &DeviceId| member.only.as_ref().is_none_or(|only| only == device);
    let devices = config.devices.iter().filter(|(device, _)| is_own(device));
    let devices = devices.filter_map(|(device, details)| Some((Some(device.clone()), details.engine.clone()?)));
    let gateway = config.gateway.engine.clone().filter(|_| member.only.is_none());
    devices.chain(gateway.map(|engine| (None, engine))).collect()
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
