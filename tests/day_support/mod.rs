//! What the day of a plant needs around it: the floor, two gateways and a fleet manager, and the views that must agree.
#![allow(clippy::unwrap_used, reason = "a test ends with a panic when its surroundings fail")]

mod floor;
mod views;

use floor::kind;
pub use floor::{Floor, KINDS, LEVEL, names, serial};
pub use views::Views;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fieldgate::margo::component::{CONFIGURATION_TYPE, RECIPE_TYPE};
use fieldgate_simulators::margo::wfm::records::Status;
use fieldgate_simulators::margo::{Authority, Deployment, Records, Wfm, WfmOptions};
use serde_json::json;
use tokio::runtime::Runtime;

use crate::whole_support::margo::{artifact, join, repository, settings, sign, trust, wait};
use crate::whole_support::{Gate, said, text};

/// The plant, and what the fleet manager wants of it.
pub struct Day {
    pub floor: Floor,
    /// The gateway of the story, and the one that a pump is handed to.
    pub south: Gate,
    pub north: Gate,
    pub authority: Arc<Authority>,
    pub wfm: Wfm,
    pub runtime: Runtime,
    /// Ids of deployments: to all drives, to a drive that there is not, to pumps.
    pub drives: String,
    pub stranger: String,
    pub pump: String,
    pub recipe: String,
    /// Ids of the devices that a scan found, by name.
    found: BTreeMap<String, String>,
}

impl Day {
    /// Gateways that run and have joined the fleet manager.
    pub fn begin() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let authority = Authority::new("plant.example").unwrap();
        let wfm = runtime.block_on(Wfm::start(WfmOptions::new(authority.clone()))).unwrap();
        let floor = Floor::start();
        let (mut south, mut north) = (Gate::new("south"), Gate::new("north"));
        let key = |gate: &Gate| text(&gate.site().run(&["export", "--public-key"])).trim().to_owned();
        let keys = [key(&south), key(&north)];
        for (gate, partner, key) in [(&south, "north", &keys[1]), (&north, "south", &keys[0])] {
            let margo = settings(&wfm, &["configuration", "recipe"], "wildcard = \"every\"");
            let file = format!(
                "[gateway]\nid = \"{}\"\n[[broker.listener]]\naddress = \"127.0.0.1:{}\"\n[management]\n\
                 approve_declared = false\n[[management.role]]\nidentity = \"mqtt:*\"\nrole = \"administrator\"\n\
                 [management.partners]\n{partner} = \"{key}\"\n{margo}",
                gate.name(),
                gate.site().port()
            );
            gate.site().write("fieldgate.toml", &file);
            join(gate.site(), &wfm, &authority, gate.name());
        }
        for gate in [&south, &north] {
            KINDS.iter().for_each(|kind| floor.describe(gate.site(), kind));
        }
        for device in names().iter().filter(|name| kind(name).has_files) {
            floor.declare(south.site(), device);
        }
        floor.declare(north.site(), "pump-4");
        artifacts(&south);
        south.start();
        north.start();
        let [drives, stranger, pump, recipe] = std::array::from_fn(|_| String::new());
        Self { floor, south, north, authority, wfm, runtime, drives, stranger, pump, recipe, found: BTreeMap::new() }
    }

    /// Ends the gateways in order.
    pub fn end(self) {
        self.south.stop();
        self.north.stop();
    }

    /// Scans for a device until it is found. A gateway that is killed in the middle of a scan does not go on with it.
    pub fn find(&mut self, name: &str) {
        let port = self.floor.port(name);
        for attempt in 1_u64.. {
            let scan = json!({"correlationId": format!("scan-{name}-{attempt}"), "action": "scan", "protocol": "modbus-tcp",
                "range": format!("127.0.0.1/32 port {port}")});
            self.south.done("management/request", &scan);
            let began = Instant::now();
            while began.elapsed() < Duration::from_secs(10) {
                let all = self.south.cli(&["onboard", "list", "--all", "--json"]).unwrap_or_default();
                let mut lines = all.as_array().into_iter().flatten();
                if let Some(line) = lines.find(|line| said(line, "address").contains(&format!(":{port} "))) {
                    self.found.insert(name.to_owned(), said(line, "device").to_owned());
                    return;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }

    /// The id of a device.
    pub fn id<'a>(&'a self, name: &'a str) -> &'a str {
        self.found.get(name).map_or(name, String::as_str)
    }

    /// Waits until the fleet manager sees something.
    pub fn sees<T>(&self, what: &str, look: impl Fn(&Records) -> Option<T>) -> T {
        wait(&self.runtime, &self.wfm, what, look)
    }

    /// Wants components (name, artifact, tag) on a target; `id` of the deployment that this is a revision of, or nothing.
    pub fn deploy(&self, id: &str, target: &str, components: &[(&str, &str, &str)]) -> String {
        let mut wanted = Deployment::custom(target, "day");
        if !id.is_empty() {
            id.clone_into(&mut wanted.id);
        }
        let add = |wanted: Deployment, (name, artifact, tag): &(&str, &str, &str)| {
            wanted.component(name, &repository(artifact), tag)
        };
        self.wfm.deploy(components.iter().fold(wanted, add)).unwrap()
    }

    /// Waits for the newest status of a deployment on a child of `south` to have a state and an error code; empty is any.
    pub fn ends(&self, id: &str, child: &str, state: &str, code: &str) -> Status {
        let device = format!("south/{child}");
        self.sees(&format!("{state} {code} of {device}"), |seen| {
            let status = seen.status(id, Some(&device))?;
            let fits = |wanted: &str, found: &str| wanted.is_empty() || wanted == found;
            let error = said(&status.body["status"]["error"], "code");
            let (state, code) = (fits(state, &status.state), fits(code, error));
            (state && code).then(|| status.clone())
        })
    }

    /// Wants the recipe on a pump, until it is there. The id of the deployment.
    pub fn recipe_for(&self, pump: &str) -> String {
        let id = self.deploy("", &format!("south/{pump}"), &[("recipe", "recipe", "1.0")]);
        self.insist(&id, pump);
        id
    }

    /// Waits until the recipe is installed. Nobody can say what was written when the gateway is killed in the middle of it:
    /// then the deployment is failed, and the fleet manager's people want it again, as a new revision.
    pub fn insist(&self, id: &str, pump: &str) {
        let device = format!("south/{pump}");
        for attempt in 1_u64.. {
            let ended = self.sees(&format!("an end of the recipe on {pump}"), |seen| {
                let status = seen.status(id, Some(&device))?;
                let open = said(&status.body["status"]["error"], "code") == "102";
                (status.state == "installed" || (status.state == "failed" && !open)).then(|| status.clone())
            });
            if ended.state == "installed" {
                return;
            }
            assert_eq!(ended.body["status"]["error"]["code"], "outcome-unknown", "{}", ended.body);
            let known = ended.number;
            let mut again = Deployment::custom(&device, "day").component("recipe", &repository("recipe"), "1.0");
            again = again.parameter("attempt", 42, "/values/setpoint", "recipe");
            again.name = format!("attempt {attempt}");
            id.clone_into(&mut again.id);
            self.wfm.deploy(again).unwrap();
            self.sees("the revision that is tried again", |seen| {
                seen.status(id, Some(&device)).filter(|status| status.number > known).map(drop)
            });
        }
    }

    /// Waits until the configuration that a deployment brought is in force.
    pub fn has_rate(&self, device: &str, rate: &str) {
        self.south.until_config(device, &format!("{device} every {rate}"), |shown| {
            shown["state"] == "settled" && shown["effective"]["rate"]["value"] == rate
        });
    }

    /// Waits until `south` knows that a device does not answer.
    pub fn until_silent(&self, device: &str) {
        self.south.until(&format!("the silence of {device}"), &["devices", "--json"], |all| {
            let silent = |line: &serde_json::Value| ["offline", "off-scan"].contains(&said(line, "state"));
            all.as_array().unwrap().iter().any(|line| line["device"] == device && silent(line))
        });
    }

    /// The operator hands out the present trust bundle.
    pub fn trust(&self) {
        [&self.south, &self.north].iter().for_each(|gate| trust(gate.site(), &self.authority));
    }

    /// The operator signs both gateways' requests anew.
    pub fn sign(&self) {
        for gate in [&self.south, &self.north] {
            sign(gate.site(), &self.wfm, &self.authority, gate.name());
        }
    }
}

/// What the story deploys.
fn artifacts(gate: &Gate) {
    let configuration = |name: &str, tag: &str, settings: serde_json::Value, prove: &str, fits: &str| {
        let document = json!({ "settings": settings, "proveWithin": prove }).to_string();
        let annotations = json!({ "dev.fieldgate.fits.model": fits });
        artifact(gate.site(), name, tag, &[(CONFIGURATION_TYPE, &document)], &annotations);
    };
    for (tag, rate) in [("1.0", "300 ms"), ("2.0", "350 ms"), ("3.0", "450 ms")] {
        configuration("drives", tag, json!({ "rate": rate }), "60 s", "D-*");
    }
    configuration("pump", "1.0", json!({ "rate": "400 ms" }), "60 s", "P-*");
    let never = json!({ "points": { "level": { "expect": { "min": LEVEL + 1 } } } });
    configuration("pump", "2.0-bad", never, "2 s", "P-*");
    let values = [("setpoint", 42), ("limit", 60)].map(|(point, value)| json!({ "point": point, "value": value }));
    let recipe = json!({ "values": values }).to_string();
    artifact(gate.site(), "recipe", "1.0", &[(RECIPE_TYPE, &recipe)], &json!({}));
}
