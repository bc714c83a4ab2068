//! The supervised tasks: one client, or one per device of a transparent gateway, and files that say how each stands.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::compose::Engines;
use super::state::StateStorage;
use super::{GatewayPlant, Ground};
use crate::app::supervisor::Supervisor;
use crate::margo::client::{self, ClientStatus, StatusFiles};
use crate::margo::config::{Config, Member};
use crate::margo::host::ContainerEngine;
use crate::model::DeviceId;
use crate::platform::clock::SharedClock;
use crate::security::pki::BelievedTime;

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
        supervisor.spawn("margo status", keep_status(seen, StatusFiles::new(&member.directory), token.clone()));
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

/// Writes the status to its files, for the command line; at most once per second.
async fn keep_status(
    mut seen: watch::Receiver<ClientStatus>,
    mut files: StatusFiles,
    token: CancellationToken,
) -> Result<(), String> {
    loop {
        tokio::select! {
            () = token.cancelled() => return Ok(()),
            changed = seen.changed() => if changed.is_err() {
                // The client has ended for good.
                token.cancelled().await;
                return Ok(());
            },
        }
        let status = seen.borrow_and_update().clone();
        let written = tokio::task::spawn_blocking(move || {
            let written = files.write(status);
            (files, written)
        });
        let written = written.await.map_err(|error| error.to_string())?;
        files = written.0;
        if let Err(error) = written.1 {
            tracing::warn!(%error, "the status of the Margo client cannot be written");
        }
        tokio::select! {
            () = token.cancelled() => return Ok(()),
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
}
