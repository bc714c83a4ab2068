//! Compose deployments through the whole program, against a simulated fleet manager and a simulated engine: what is promised, what
//! runs, what is refused, and what a kill, a sick container or an engine that lost everything leave.
#![cfg(feature = "margo")]
#![allow(clippy::unwrap_used, reason = "a test ends with a panic when its surroundings fail")]

mod margo_support;
mod support;
mod whole_support;

use fieldgate::margo::component::RECIPE_TYPE;
use fieldgate::margo::component::compose::{ARCHIVE_TYPES, FILE_TYPE};
use fieldgate_simulators::margo::Deployment;
use fieldgate_simulators::margo::schema::Mode as Shape;
use margo_support::{Manager, PATIENCE, POINT, artifact, error};
use serde_json::{Value, json};
use support::{eventually, python, root};
use whole_support::{FakeDevice, Mode, Site, margo, stop};

const CHILD: Option<&str> = Some("plant/pc");
/// A value that every kind of quoting would spoil.
const ODD: &str = "it's \"$HOME\" ${X:-y} \\ #no\n=';`end\\";

/// The simulated engine of a site.
struct Engine(std::path::PathBuf);

impl Engine {
    fn of(site: &Site) -> Self {
        Self(site.path().join("engine"))
    }

    /// The `compose` table of a host; `more` are further keys.
    fn table(site: &Site, more: &str) -> String {
        let command =
            json!([python(), root().join("simulators/compose/fieldgate-compose"), "--state", Self::of(site).0]);
        format!(
            "compose = {{ command = {command}, otlp_http = \"http://10.9.8.7:4318\", check_every = \"1 s\", {more} }}"
        )
    }

    fn read(&self, host: &str) -> Value {
        let text = std::fs::read(self.0.join(format!("engine-{host}.json"))).ok();
        text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or(Value::Null)
    }

    /// The one project of the gateway's engine.
    fn project(&self) -> Value {
        let projects = self.read(GATEWAY)["projects"].clone();
        let mut all: Vec<Value> =
            projects.as_object().into_iter().flatten().map(|(_, project)| project.clone()).collect();
        if all.len() == 1 { all.remove(0) } else { json!({ "projects": projects }) }
    }

    /// Images of the containers of the one project.
    fn images(&self) -> Vec<String> {
        let containers = self.project()["containers"].clone();
        let images =
            containers.as_object().into_iter().flatten().map(|(_, one)| one["Image"].as_str().unwrap().to_owned());
        images.collect()
    }

    fn faults(&self, faults: &Value) {
        std::fs::create_dir_all(&self.0).unwrap();
        let path = self.0.join("faults.json");
        std::fs::write(path.with_extension("new"), faults.to_string()).unwrap();
        std::fs::rename(path.with_extension("new"), path).unwrap();
    }

    fn calls(&self) -> String {
        std::fs::read_to_string(self.0.join("calls.jsonl")).unwrap_or_default()
    }

    fn count(&self, verb: &str) -> usize {
        self.calls().lines().filter(|line| line.contains(&format!("{{\"verb\": \"{verb}\""))).count()
    }
}

/// How the gateway's engine is called in the simulator's files.
const GATEWAY: &str = "unix-run-sim-sock";
const HOSTING: &str = "hosting = { cpu = [{ cores = 2, architecture = \"amd64\" }], memory = \"1Gi\", storage = \"8Gi\", \
    runtimes = [\"oci\"], deployment_types = [\"compose\"] }";

/// `[margo.gateway]` with an engine.
fn on_gateway(site: &Site, more: &str) -> String {
    format!(
        "[margo.gateway]\n{HOSTING}\n{}\n",
        Engine::table(site, &format!("host = \"unix:///run/sim.sock\", {more}"))
    )
}

/// `[[margo.device]]` with an engine.
fn on_child(site: &Site) -> String {
    format!("[[margo.device]]\nid = \"pc\"\n{HOSTING}\n{}\n", Engine::table(site, "host = \"tcp://127.0.0.1:9\""))
}

/// A compose file with the images `web` and, if there is one, `db`.
fn compose(web: &str, db: &str) -> String {
    let db = if db.is_empty() { String::new() } else { format!("  db: {{image: '{db}', volumes: ['data:/data']}}\n") };
    format!(
        "services:\n  web:\n    image: {web}\n    environment: {{TOKEN: '${{TOKEN:-none}}'}}\n{db}volumes: {{data: }}\n"
    )
}

/// Version 1.0 of an artifact with one compose file.
fn package(site: &Site, name: &str, file: &str) {
    artifact(site, name, &[(FILE_TYPE, file)]);
}

fn deployment(target: &str, name: &str) -> Deployment {
    let plain = Deployment { kind: "compose".to_owned(), ..Deployment::custom(target, name) };
    plain.component("shop", &margo::repository(name), "1.0")
}

impl Manager {
    fn compose(&self, target: &str, name: &str) -> String {
        self.wfm.deploy(deployment(target, name)).unwrap()
    }

    fn compose_again(&self, id: &str, with: Deployment) {
        self.wfm.deploy(Deployment { id: id.to_owned(), ..with }).unwrap();
    }

    /// Waits until a deployment failed with words that hold `told`.
    fn fails(&self, id: &str, device: Option<&str>, code: &str, told: &str) {
        self.wait(told, |seen| {
            let status = seen.status(id, device).filter(|status| status.state == "failed")?;
            let (found, _, words) = error(status);
            (found == code && words.contains(told)).then_some(())
        });
    }
}

/// The states that were told of a deployment, each once.
fn states(manager: &Manager, id: &str) -> Vec<String> {
    let mut states: Vec<String> = manager.statuses(id).into_iter().map(|(_, state, _)| state).collect();
    states.dedup();
    states
}

#[test]
fn compose_is_promised_and_done_where_an_engine_is_configured_and_nowhere_else() {
    let manager = Manager::start(|_| {});
    let site = Site::new("");
    site.main_file(&manager.settings(&[], ""));
    package(&site, "shop", &compose("web:1", "db:1"));
    manager.join(&site);
    let gateway = site.start();
    manager.sees("plant");
    let capabilities = || manager.wfm.with(|seen| seen.devices["plant"].capabilities.clone());
    assert_eq!(capabilities()["properties"]["supportedDeploymentTypes"], Value::Null);
    let id = manager.compose("plant", "shop");
    manager.fails(&id, None, "unsupported-profile", "runs no compose deployments");
    stop(gateway);

    site.main_file(&manager.settings(&[], &on_gateway(&site, "")));
    let gateway = site.start();
    manager.reaches(&id, None, "installed");
    let engine = Engine::of(&site);
    assert_eq!(engine.images(), ["db:1", "web:1"]);
    let properties = capabilities()["properties"].clone();
    assert_eq!(properties["supportedDeploymentTypes"], json!(["compose"]));
    assert_eq!((&properties["supportedRuntimes"], &properties["otelCollector"]), (&json!(["oci"]), &json!(true)));

    // What contradicts itself, or needs more than this host allows, is refused in words.
    package(&site, "bad", "services:\n  web: {image: a, privileged: true}\n");
    artifact(&site, "recipe", &[(RECIPE_TYPE, "{\"values\":[{\"point\":\"a\",\"value\":1}]}")]);
    for (with, code, told) in [
        (deployment("plant", "bad"), "not-allowed", "services.web.privileged needs \"privileged\" in `allow`"),
        (deployment("plant", "recipe"), "artifact-refused", "it takes `custom`"),
        (
            Deployment { kind: "custom".to_owned(), ..deployment("plant", "shop") },
            "artifact-refused",
            "it takes `compose`",
        ),
        (
            deployment("plant", "shop").parameter("p", 1, "NOBODY", "shop"),
            "artifact-refused",
            "stands in the compose file",
        ),
        (deployment("plant", "shop").parameter("p", 1, "DOCKER_HOST", "shop"), "artifact-refused", "use another name"),
        (
            Deployment { kind: "helm".to_owned(), ..deployment("plant", "shop") },
            "unsupported-profile",
            "`custom` and `compose`",
        ),
    ] {
        let refused = manager.wfm.deploy(with).unwrap();
        manager.fails(&refused, None, code, told);
        manager.remove(&refused, None);
    }
    assert_eq!(engine.images(), ["db:1", "web:1"], "nobody else was touched");
    manager.remove(&id, None);
    manager.found_nothing_wrong();
    stop(gateway);
}

#[test]
fn a_project_is_installed_updated_set_back_and_removed() {
    let manager = Manager::start(|_| {});
    let site = Site::new("");
    site.main_file(&manager.settings(&[], &on_gateway(&site, "")));
    package(&site, "one", &compose("web:1", "db:1"));
    package(&site, "two", &compose("web:2", ""));
    package(&site, "sick", &compose("web:unhealthy", "db:2"));
    package(&site, "gone", &compose("web:9", ""));
    package(&site, "job", &compose("web:exits-0", "db:1"));
    let engine = Engine::of(&site);
    engine.faults(&json!([{ "fault": "missing", "image": "web:9" }]));
    manager.join(&site);
    let gateway = site.start();
    manager.sees("plant");
    let id = manager.wfm.deploy(deployment("plant", "one").parameter("token", ODD, "TOKEN", "shop")).unwrap();
    manager.reaches(&id, None, "installed");
    assert_eq!(states(&manager, &id), ["pending", "installing", "installed"]);
    let web = |engine: &Engine| engine.project()["containers"]["web"]["environment"].clone();
    assert_eq!(web(&engine)["TOKEN"], ODD, "a value arrives as it is");
    assert_eq!(web(&engine)["HTTP_OTEL_EXPORTER_OTLP_ENDPOINT"], "http://10.9.8.7:4318");
    assert_eq!(web(&engine)["OTEL_EXPORTER_OTLP_PROTOCOL"], "http/protobuf");

    // Another value is another container; what the update leaves out is gone.
    manager.compose_again(&id, deployment("plant", "one").parameter("token", "other-token", "TOKEN", "shop"));
    eventually("the new value", PATIENCE, || (web(&engine)["TOKEN"] == "other-token").then_some(()));
    assert_eq!(engine.project()["made"], json!({ "db": 1, "web": 2 }));
    manager.reaches(&id, None, "installed");
    manager.compose_again(&id, deployment("plant", "two").parameter("token", "other-token", "TOKEN", "shop"));
    eventually("the update", PATIENCE, || (engine.images() == ["web:2"]).then_some(()));
    manager.reaches(&id, None, "installed");

    // One that does not get healthy, and one that cannot be pulled.
    for (name, told) in [("sick", "is unhealthy; the revision of before runs again"), ("gone", "manifest unknown")] {
        manager.compose_again(&id, deployment("plant", name).parameter("token", "other-token", "TOKEN", "shop"));
        manager.fails(&id, None, "compose-failed", told);
        assert_eq!(engine.images(), ["web:2"], "{name}: what ran before runs");
    }
    let ups = engine.count("up");
    manager.compose_again(&id, deployment("plant", "two").parameter("token", "other-token", "TOKEN", "shop"));
    manager.reaches(&id, None, "installed");
    assert_eq!(engine.count("up"), ups, "what runs is not brought up again");
    // A container that has done its work is no failure.
    manager.compose_again(&id, deployment("plant", "job"));
    eventually("the job", PATIENCE, || (engine.images() == ["db:1", "web:exits-0"]).then_some(()));
    manager.reaches(&id, None, "installed");

    manager.remove(&id, None);
    assert_eq!(engine.read(GATEWAY), json!({ "projects": {}, "volumes": [] }));
    // A first revision that does not come up leaves nothing.
    let sick = manager.compose("plant", "sick");
    manager.fails(&sick, None, "compose-failed", "nothing of it is left");
    assert_eq!(engine.read(GATEWAY), json!({ "projects": {}, "volumes": [] }));
    manager.remove(&sick, None);
    // One that cannot be taken down at once is taken down by its removal.
    engine.faults(&json!([{ "fault": "broken", "verb": "down", "times": 1 }]));
    let stuck = manager.compose("plant", "sick");
    manager.fails(&stuck, None, "compose-failed", "it could not be set back");
    assert_eq!(engine.images(), ["db:2", "web:unhealthy"]);
    manager.remove(&stuck, None);
    assert_eq!(engine.read(GATEWAY), json!({ "projects": {}, "volumes": [] }));

    // Values are in no argument, no log and no status.
    let told = format!("{}{}{:?}", engine.calls(), gateway.lines().join("\n"), manager.wfm.records().statuses);
    assert!(!told.contains("other-token") && !told.contains("`end"), "a value was told");
    manager.found_nothing_wrong();
    stop(gateway);
}

#[test]
fn a_child_with_an_engine_of_its_own_takes_projects_and_is_102_while_it_does_not_answer() {
    let manager = Manager::start(|_| {});
    let site = Site::new("");
    site.main_file(&manager.settings(&[], &on_child(&site)));
    let device = FakeDevice::start(Mode::Well);
    site.device("pc", device.port(), "delegated = [\"command\"]\nrate = \"200 ms\"\n", "", POINT);
    let files = [("shop/compose.yaml", compose("web:1", "")), ("shop/.env", "TOKEN=from the package\n".to_owned())];
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
    artifact(&site, "shop", &[(ARCHIVE_TYPES[0], margo::archive(&files))]);
    package(&site, "mounts", "services: {web: {image: a, volumes: ['./conf:/conf']}}\n");
    let engine = Engine::of(&site);
    engine.faults(&json!([{ "fault": "unreachable" }]));
    manager.join(&site);
    let gateway = site.start();
    manager.sees("plant/pc");
    site.wait_for_state("pc", "online");
    let types = |device: &str| {
        manager.wfm.with(|seen| seen.devices[device].capabilities["properties"]["supportedDeploymentTypes"].clone())
    };
    assert_eq!((types("plant"), types("plant/pc")), (Value::Null, json!(["compose"])));

    let id = manager.compose("plant/pc", "shop");
    manager.fails(&id, CHILD, "102", "Child device unreachable");
    engine.faults(&json!([]));
    manager.reaches(&id, CHILD, "installed");
    let there = engine.read("tcp-127-0-0-1-9");
    let project = there["projects"].as_object().unwrap().values().next().unwrap().clone();
    assert_eq!(project["containers"]["web"]["environment"]["TOKEN"], "from the package");
    assert_eq!(engine.read(GATEWAY), Value::Null);
    // The gateway has none, and an engine elsewhere does not see files of a package.
    let wrong = manager.compose("plant", "shop");
    manager.fails(&wrong, None, "not-supported", "cannot take a Compose project");
    let mounts = manager.compose("plant/pc", "mounts");
    manager.fails(&mounts, CHILD, "not-allowed", "does not see");
    manager.remove(&wrong, None);
    manager.remove(&mounts, CHILD);

    // During a removal, too, it is waited for.
    engine.faults(&json!([{ "fault": "unreachable" }]));
    assert!(manager.wfm.remove(&id));
    manager.wait("removing with 102", |seen| {
        let status = seen.status(&id, CHILD).filter(|status| status.state == "removing")?;
        (error(status).0 == "102").then_some(())
    });
    engine.faults(&json!([]));
    manager.reaches(&id, CHILD, "removed");
    assert_eq!(engine.read("tcp-127-0-0-1-9"), json!({ "projects": {}, "volumes": [] }));
    manager.found_nothing_wrong();
    stop(gateway);
}

#[test]
fn an_opaque_gateway_promises_what_one_of_its_hosts_can_and_chooses_that_one() {
    let manager = Manager::start(|options| options.mode = Shape::Opaque);
    let site = Site::new("");
    let custom = HOSTING.replace("\"oci\"", "\"custom\"").replace("\"compose\"", "\"custom\"");
    let more = format!("mode = \"opaque\"\n[margo.gateway]\n{custom}\n{}", on_child(&site));
    site.main_file(&manager.settings(&[], &more));
    let device = FakeDevice::start(Mode::Well);
    site.device("pc", device.port(), "delegated = [\"command\"]\nrate = \"200 ms\"\n", "", POINT);
    package(&site, "shop", &compose("web:1", ""));
    manager.join(&site);
    let gateway = site.start();
    manager.wait("the combined capabilities", |seen| {
        let types = &seen.devices.get("plant")?.capabilities["properties"]["supportedDeploymentTypes"];
        (*types == json!(["custom", "compose"])).then_some(())
    });
    site.wait_for_state("pc", "online");
    let id = manager.compose("plant", "shop");
    manager.reaches(&id, None, "installed");
    let engine = Engine::of(&site);
    assert_eq!(engine.read("tcp-127-0-0-1-9")["projects"].as_object().unwrap().len(), 1);
    manager.remove(&id, None);
    manager.found_nothing_wrong();
    stop(gateway);
}

#[test]
fn a_device_of_a_transparent_gateway_promises_and_takes_projects_by_itself() {
    let manager = Manager::start(|options| options.mode = Shape::Transparent);
    let site = Site::new("");
    let files = |id: &str| format!("cert = \"{id}.pem\"\nkey = \"{id}.key\"\n");
    let other = format!("[[margo.device]]\nid = \"pump\"\n{}", files("pump"));
    let more = format!("mode = \"transparent\"\n{}{}{other}", on_child(&site), files("pc"));
    site.main_file(&manager.settings(&[], &more));
    let devices = ["pc", "pump"].map(|id| {
        let device = FakeDevice::start(Mode::Well);
        site.device(id, device.port(), "delegated = [\"command\"]\nrate = \"200 ms\"\n", "", POINT);
        device
    });
    package(&site, "shop", &compose("web:1", ""));
    site.write("bundle.json", &manager.authority.bundle().to_string());
    for name in ["pc", "pump"] {
        manager.join_as(&site, &["--device", name], name, name);
    }
    let gateway = site.start();
    for (device, wanted) in [("pc", json!(["compose"])), ("pump", Value::Null)] {
        manager.sees(device);
        let properties = manager.wfm.with(|seen| seen.devices[device].capabilities["properties"].clone());
        assert_eq!(properties["supportedDeploymentTypes"], wanted, "{device}");
    }
    site.wait_for_state("pc", "online");
    let id = manager.compose("pc", "shop");
    assert_eq!(manager.reaches(&id, None, "installed").client, "pc");
    let refused = manager.compose("pump", "shop");
    manager.fails(&refused, None, "unsupported-profile", "runs no compose deployments");
    manager.remove(&refused, None);
    manager.remove(&id, None);
    assert_eq!(Engine::of(&site).read("tcp-127-0-0-1-9"), json!({ "projects": {}, "volumes": [] }));
    manager.found_nothing_wrong();
    stop(gateway);
    drop(devices);
}

#[test]
fn a_gateway_killed_in_the_middle_of_it_goes_on_and_does_it_once() {
    let manager = Manager::start(|_| {});
    let site = Site::new("");
    site.main_file(&manager.settings(&[], &on_gateway(&site, "")));
    package(&site, "one", &compose("web:1", "db:1"));
    package(&site, "two", &compose("web:2", "db:2"));
    let engine = Engine::of(&site);
    manager.join(&site);
    let mut gateway = site.start();
    manager.sees("plant");
    let id = manager.compose("plant", "one");
    manager.reaches(&id, None, "installed");

    // Killed while the first of two containers is there: the compose program is left alone, and holds on.
    engine.faults(&json!([{ "fault": "hold", "times": 1 }]));
    manager.compose_again(&id, deployment("plant", "two"));
    manager.reaches(&id, None, "installing");
    eventually("half of it", PATIENCE, || (engine.images() == ["db:2", "web:1"]).then_some(()));
    gateway.kill();
    gateway = site.start();
    manager.reaches(&id, None, "installed");
    assert_eq!(engine.images(), ["db:2", "web:2"]);
    assert_eq!(engine.project()["made"], json!({ "db": 2, "web": 2 }), "each was made once per revision");
    assert_eq!(states(&manager, &id), ["pending", "installing", "installed", "pending", "installing", "installed"]);

    // One that dies by itself says nothing of use, and is set back.
    engine.faults(&json!([{ "fault": "crash", "times": 1 }]));
    manager.compose_again(&id, deployment("plant", "one"));
    manager.fails(&id, None, "compose-failed", "the revision of before runs again");
    assert_eq!(engine.images(), ["db:2", "web:2"]);

    // Stopped in the middle of it, the compose program ends with the gateway.
    engine.faults(&json!([{ "fault": "hold" }]));
    package(&site, "three", &compose("web:3", "db:3"));
    manager.compose_again(&id, deployment("plant", "three"));
    eventually("half of it", PATIENCE, || (engine.images() == ["db:3", "web:2"]).then_some(()));
    stop(gateway);
    engine.faults(&json!([]));
    std::fs::write(engine.0.join("release"), "").unwrap();
    let gateway = site.start();
    manager.reaches(&id, None, "installed");
    assert_eq!(engine.images(), ["db:3", "web:3"]);
    manager.remove(&id, None);
    manager.found_nothing_wrong();
    stop(gateway);
}

#[test]
fn what_the_engine_lost_is_installed_again_and_a_program_that_is_too_old_is_told() {
    let manager = Manager::start(|_| {});
    let site = Site::new("");
    site.main_file(&manager.settings(&[], &on_gateway(&site, "keep_volumes = true")));
    package(&site, "shop", &compose("web:1", "db:1"));
    package(&site, "slow", &compose("web:starting", ""));
    let engine = Engine::of(&site);
    std::fs::create_dir_all(&engine.0).unwrap();
    std::fs::write(engine.0.join("version"), "1.29.2").unwrap();
    manager.join(&site);
    let gateway = site.start();
    manager.sees("plant");
    let id = manager.compose("plant", "shop");
    manager.fails(&id, None, "compose-command", "version 2 or later is needed");
    std::fs::remove_file(engine.0.join("version")).unwrap();
    manager.reaches(&id, None, "installed");

    // Somebody set the engine up anew.
    std::fs::remove_file(engine.0.join(format!("engine-{GATEWAY}.json"))).unwrap();
    eventually("the containers", PATIENCE, || (engine.images() == ["db:1", "web:1"]).then_some(()));
    manager.wait("both installations", |seen| {
        let all: Vec<&str> = seen.statuses.iter().filter(|s| s.deployment == id).map(|s| s.state.as_str()).collect();
        (all.iter().filter(|state| **state == "installed").count() == 2 && all.ends_with(&["installed"])).then_some(())
    });
    manager.remove(&id, None);
    let volumes = engine.read(GATEWAY)["volumes"].clone();
    assert_eq!(volumes.as_array().unwrap().len(), 1, "the volume is kept: {volumes}");

    // Never ready, within the time that the deployment gives it.
    let mut slow = deployment("plant", "slow");
    slow.components[0].properties.insert("timeout".to_owned(), json!("2s"));
    let id = manager.wfm.deploy(slow).unwrap();
    manager.fails(&id, None, "timeout", "nothing of it is left");
    manager.remove(&id, None);
    manager.found_nothing_wrong();
    stop(gateway);
}
