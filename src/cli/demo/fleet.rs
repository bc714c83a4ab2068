//! The simulated fleet manager of `fieldgate demo --margo`, and how the demo's gateway joins it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fieldgate_simulators::margo::{MargoSimError, Scenario, Site};

use super::free_port;

/// The gateway's id in the demo, and so that of the client.
const CLIENT: &str = "demo";
/// Where the files to join with go, below the demo's folder.
const JOIN: &str = "join";
/// Longer than anybody watches a demo.
const LIFE: Duration = Duration::from_secs(30 * 86_400);

/// A fleet manager that runs; it ends when dropped.
pub struct Fleet(Site);

impl Fleet {
    /// Starts it on the ports of its scenario, or the next free ones.
    pub async fn start() -> Result<Self, MargoSimError> {
        let mut scenario = Scenario::pump_station()?;
        let mut next = 0;
        let addresses: [&mut SocketAddr; 4] = [
            &mut scenario.listen,
            &mut scenario.control,
            &mut scenario.discovery.listen,
            &mut scenario.registry.listen,
        ];
        for address in addresses {
            // Nothing is free: the start says which address it was.
            let port = free_port(address.port().max(next)).unwrap_or(address.port());
            address.set_port(port);
            next = port.saturating_add(1);
        }
        Ok(Self(Site::start(scenario).await?))
    }

    /// The folder of a demo with a fleet manager. Both forget everything between two demos: what the gateway kept of the last
    /// one speaks of a fleet manager that is gone.
    pub fn folder(directory: &Path) -> std::io::Result<PathBuf> {
        let folder = directory.join("margo");
        match std::fs::remove_dir_all(folder.join("data")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(folder),
        }
    }

    /// Writes what the gateway needs to join, and gives the section for its `fieldgate.toml`.
    pub fn join(&self, folder: &Path) -> Result<String, MargoSimError> {
        self.0.write_files(&folder.join(JOIN), &[CLIENT.to_owned()], LIFE)?;
        Ok(format!(
            "# The simulated fleet manager of this run.\n[margo]\nurl = \"{}\"\ntrust = {{ bundle = \"{JOIN}/bundle.json\" }}\n\
             identity = {{ cert = \"{JOIN}/{CLIENT}.pem\", key = \"{JOIN}/{CLIENT}.key\" }}\npolling = {{ every = \"2 s\" }}\n\
             delegate = {{ recipe = true, configuration = true }}\n\
             gateway = {{ vendor = \"fieldgate\", model = \"demo\", serial = \"{}\" }}\nartifacts = {{ plain = [\"{}\"] }}\n",
            self.0.wfm().url(),
            env!("CARGO_PKG_VERSION"),
            self.0.registry().address()
        ))
    }

    /// Where its page is.
    pub fn page(&self) -> String {
        format!("http://{}/", self.0.control())
    }
}
