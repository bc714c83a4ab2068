//! Looks whether what was installed is still there.

use super::store::{Installed, Place};
use super::{Engines, Host, Ways, held};

impl Engines {
    /// Looks at every host from time to time, for ever.
    pub(in crate::app::margo) async fn watch(&self) {
        let hosts = self.hosts.iter().map(|(host, engine)| async move {
            // What an order of the life before left is asked for again soon after the start, or never.
            self.look(host, false).await;
            loop {
                tokio::time::sleep(engine.check_every).await;
                self.look(host, true).await;
            }
        });
        futures::future::join_all(hosts).await;
    }

    pub(super) async fn look(&self, host: &Host, sweeps: bool) {
        let orders = held(&self.busy).clone();
        let busy = self.busy.clone();
        let sweep = move |name: &str, directory: &std::path::Path| {
            // No order begins while this is held.
            let orders = held(&busy);
            if sweeps && !orders.contains_key(name) { std::fs::remove_dir_all(directory) } else { Ok(()) }
        };
        let projects = match Place::all(&self.root, sweep).await {
            Ok(projects) => projects,
            Err(error) => return tracing::warn!(%error, "the directory of Compose projects cannot be read"),
        };
        let installed: Vec<(Place, String, Installed)> = projects
            .into_iter()
            .filter(|(_, journal)| journal.host() == *host)
            .filter_map(|(place, journal)| Some((place, journal.owner, journal.installed?)))
            .collect();
        if installed.is_empty() {
            return;
        }
        let ways = self.ways(host.as_ref(), "");
        let found = match &ways {
            Ok(ways) => Ways::answers(ways).await,
            Err(refusal) => Err(refusal.clone()),
        };
        let Ok(found) = found else { return };
        let now = held(&self.busy).clone();
        for (place, owner, Installed { containers, .. }) in installed {
            // An even number of begins and ends, and the same as before: nobody was at it in the meantime.
            let quiet =
                orders.get(place.name()) == now.get(place.name()) && now.get(place.name()).is_none_or(|n| n % 2 == 0);
            let there = found.get(place.name()).copied().unwrap_or(0);
            if quiet && there < containers {
                tracing::warn!(project = place.name(), containers, there, "containers of a deployment are gone");
                self.lost.send_if_modified(|lost| lost.entry(host.clone()).or_default().insert(owner));
            }
        }
    }
}
