//! **A site that is a client of the simulated fleet manager**: the manager with its authority, artifacts in a directory, and
//! joining by the program's own words.
#![allow(dead_code, unused_imports, reason = "each test binary uses its own part")]

use std::sync::Arc;
use std::time::Duration;

use fieldgate::margo::component::RECIPE_TYPE;
use fieldgate_simulators::margo::wfm::records::Status;
use fieldgate_simulators::margo::{Authority, Deployment, Records, Wfm, WfmOptions};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

pub use super::whole_support::margo::PATIENCE;
use super::whole_support::{Site, errors, margo, text};

/// How long an SVID lives when nothing else is asked for.
pub const DAY: Duration = Duration::from_secs(86_400);
/// A point that can be written.
pub const POINT: &str = "[[points]]\nid = \"setpoint\"\ntable = \"holding\"\naddress = 10\naccess = \"read-write\"\n";

/// Layers with their media types as version 1.0 of an artifact in the site's directory.
pub fn artifact<B: AsRef<[u8]>>(site: &Site, name: &str, layers: &[(&str, B)]) {
    margo::artifact(site, name, "1.0", layers, &json!({}));
}

/// A recipe under the name `name`.
pub fn recipe(site: &Site, name: &str, values: &Value) {
    artifact(site, name, &[(RECIPE_TYPE, &json!({ "values": values }).to_string())]);
}

/// A running fleet manager.
pub struct Manager {
    /// It.
    pub wfm: Wfm,
    /// Who vouches for it and its clients.
    pub authority: Arc<Authority>,
    /// On which it runs; dropped last.
    pub runtime: Runtime,
}

impl Manager {
    /// Starts one.
    pub fn start(change: impl FnOnce(&mut WfmOptions)) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let authority = Authority::new("plant.example").unwrap();
        let mut options = WfmOptions::new(authority.clone());
        change(&mut options);
        let wfm = runtime.block_on(Wfm::start(options)).unwrap();
        Self { wfm, authority, runtime }
    }

    /// The `[margo]` of a site that polls it every second and takes `delegate` from it, with what stands in `more`.
    pub fn settings(&self, delegate: &[&str], more: &str) -> String {
        margo::settings(&self.wfm, delegate, more)
    }

    /// Joining: the key stays, the request goes to the operator, the chain comes back.
    pub fn join(&self, site: &Site) {
        margo::join(site, &self.wfm, &self.authority, "plant");
    }

    /// Joining as `client`, whose files are called `files`.
    pub fn join_as(&self, site: &Site, more: &[&str], client: &str, files: &str) {
        let mut arguments = vec!["margo", "join", "--trust-domain", "plant.example", "--wfm", self.wfm.id()];
        arguments.extend(more);
        let joined = site.run(&arguments);
        assert!(joined.status.success(), "{}", errors(&joined));
        let id = self.authority.client_id(self.wfm.id(), client);
        assert!(text(&joined).contains(&id), "{}", text(&joined));
        let request = std::fs::read_to_string(site.path().join(format!("{files}.csr.pem"))).unwrap();
        site.write(&format!("{files}.pem"), &self.authority.sign_request(&request, &id, DAY).unwrap());
    }

    /// Waits until `look` finds something.
    pub fn wait<T>(&self, what: &str, look: impl Fn(&Records) -> Option<T>) -> T {
        margo::wait(&self.runtime, &self.wfm, what, look)
    }

    /// Waits until a device was reported.
    pub fn sees(&self, device: &str) {
        self.wait(device, |seen| seen.devices.contains_key(device).then_some(()));
    }

    /// Waits for so many requests more.
    pub fn asked(&self, more: usize) {
        let before = self.wfm.with(|seen| seen.requests.len());
        self.wait("requests", |seen| (seen.requests.len() >= before + more).then_some(()));
    }

    /// Deploys an artifact of the directory.
    pub fn deploy(&self, target: &str, name: &str) -> String {
        self.wfm.deploy(deployment(target, name)).unwrap()
    }

    /// Deploys another artifact in its place.
    pub fn update(&self, id: &str, target: &str, name: &str) {
        self.wfm.deploy(Deployment { id: id.to_owned(), ..deployment(target, name) }).unwrap();
    }

    /// Waits until a deployment has that state, and gives its status.
    pub fn reaches(&self, id: &str, device: Option<&str>, state: &str) -> Status {
        self.wait(state, |seen| seen.status(id, device).filter(|status| status.state == state).cloned())
    }

    /// Everything that was told of a deployment, in short.
    pub fn statuses(&self, id: &str) -> Vec<(Option<String>, String, Value)> {
        self.wfm.with(|seen| {
            let of = seen.statuses.iter().filter(|status| status.deployment == id);
            of.map(|s| (s.device.clone(), s.state.clone(), s.body["status"]["error"].clone())).collect()
        })
    }

    /// Takes a deployment back and waits until it is removed.
    pub fn remove(&self, id: &str, device: Option<&str>) {
        assert!(self.wfm.remove(id));
        self.reaches(id, device, "removed");
    }

    /// What of our requests contradicts the reference: nothing. A status may come twice after a kill between the fleet
    /// manager's confirmation and our note of it.
    pub fn found_nothing_wrong(&self) {
        let mut notes = self.wfm.records().notes();
        notes.retain(|note| !note.contains("the same status again"));
        assert_eq!(notes, Vec::<String>::new(), "nothing that we sent contradicts the reference");
    }
}

fn deployment(target: &str, name: &str) -> Deployment {
    Deployment::custom(target, name).component("part", &margo::repository(name), "1.0")
}

/// Code, source and words of a status's error.
pub fn error(status: &Status) -> (String, String, String) {
    let error = &status.body["status"]["error"];
    let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
    (text("code"), text("source"), text("message"))
}
