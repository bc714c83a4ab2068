//! The whole program as a client of the simulated fleet manager: join by its own words, a recipe that reaches registers, a
//! kill in between, and a removal that writes back.
#![cfg(feature = "margo")]
#![allow(clippy::unwrap_used, reason = "a test ends with a panic when its surroundings fail")]

mod support;
mod whole_support;

use std::time::Duration;

use fieldgate::margo::component::{CONFIGURATION_TYPE, RECIPE_TYPE};
use fieldgate::margo::words::Digest;
use fieldgate_simulators::margo::{Authority, Deployment, Records, Wfm, WfmOptions};
use serde_json::json;
use whole_support::{FakeDevice, Mode, Site, errors, stop, text};

const PATIENCE: Duration = Duration::from_secs(90);
const POINT: &str = "[[points]]\nid = \"setpoint\"\ntable = \"holding\"\naddress = 10\naccess = \"read-write\"\n";

/// A payload as an image of an OCI image layout.
fn artifact(site: &Site, name: &str, media_type: &str, payload: &serde_json::Value) {
    let payload = payload.to_string();
    let empty =
        json!({ "mediaType": "application/vnd.oci.empty.v1+json", "digest": Digest::of(b"{}").to_string(), "size": 2 });
    let layer =
        json!({ "mediaType": media_type, "digest": Digest::of(payload.as_bytes()).to_string(), "size": payload.len() });
    let manifest = json!({ "schemaVersion": 2, "config": empty, "layers": [layer] }).to_string();
    let digest = Digest::of(manifest.as_bytes());
    let layout = format!("artifacts/registry.example/{name}");
    for bytes in [&payload, &manifest] {
        site.write(&format!("{layout}/blobs/sha256/{}", Digest::of(bytes.as_bytes()).hex()), bytes);
    }
    let entry = json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest.to_string(), "size": manifest.len(),
        "annotations": { "org.opencontainers.image.ref.name": "1.0" },
    });
    site.write(&format!("{layout}/index.json"), &json!({ "schemaVersion": 2, "manifests": [entry] }).to_string());
}

/// A site of one pump that has joined a fleet manager, which may deploy `delegate` to it.
fn joined(wfm: &Wfm, authority: &Authority, delegate: &str) -> (Site, FakeDevice) {
    let site = Site::new(&format!(
        "[margo]\nurl = \"{}\"\ntrust = {{ bundle = \"bundle.json\" }}\npolling = {{ every = \"1 s\" }}\ndelegate = {{ {delegate} = true }}\nartifacts = {{ directory = \"artifacts\", registries = false }}\n",
        wfm.url()
    ));
    let device = FakeDevice::start(Mode::Well);
    site.device(
        "pump",
        device.port(),
        "delegated = [\"command\", \"config\"]\n",
        "[modbus.write]\nverify = false\n",
        POINT,
    );
    site.write("bundle.json", &authority.bundle().to_string());
    // Joining: the key stays, the request goes to the operator, the chain comes back.
    let joined = site.run(&["margo", "join", "--trust-domain", "plant.example", "--wfm", wfm.id()]);
    assert!(joined.status.success(), "{}", errors(&joined));
    assert!(text(&joined).contains(&authority.client_id(wfm.id(), "plant")), "{}", text(&joined));
    let request = std::fs::read_to_string(site.data().join("margo/svid.csr.pem")).unwrap();
    let chain = authority.sign_request(&request, &authority.client_id(wfm.id(), "plant"), Duration::from_secs(86_400));
    site.write("data/margo/svid.pem", &chain.unwrap());
    (site, device)
}

#[test]
fn a_gateway_joins_takes_a_recipe_survives_a_kill_and_takes_it_back() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let authority = Authority::new("plant.example").unwrap();
    let wfm = runtime.block_on(Wfm::start(WfmOptions::new(authority.clone()))).unwrap();
    let wait = |what: &str, look: &dyn Fn(&Records) -> Option<()>| {
        runtime.block_on(wfm.wait(what, PATIENCE, look)).unwrap_or_else(|error| panic!("{error}"));
    };
    let (site, device) = joined(&wfm, &authority, "recipe");
    let recipe = json!({ "values": [{ "point": "setpoint", "value": 42 }] });
    artifact(&site, "pump", RECIPE_TYPE, &recipe);

    let gateway = site.start();
    wait("the pump", &|seen| seen.devices.contains_key("plant/pump").then_some(()));
    let id = wfm
        .deploy(Deployment::custom("plant/pump", "pump").component("recipe", "oci://registry.example/pump", "1.0"))
        .unwrap();
    let state = |seen: &Records| seen.status(&id, Some("plant/pump")).map(|status| status.state.clone());
    wait("installed", &|seen| (state(seen)? == "installed").then_some(()));
    assert_eq!(device.writes(), [(10, 42)]);

    gateway.kill();
    let gateway = site.start();
    let polls = wfm.with(|seen| seen.requests.len());
    wait("polls after the kill", &|seen| (seen.requests.len() >= polls + 3).then_some(()));
    assert_eq!(device.writes(), [(10, 42)], "nothing is applied twice");
    let status = site.run(&["margo", "status"]);
    assert!(
        text(&status).contains("installed") && text(&status).contains("the last request was answered"),
        "{}",
        text(&status)
    );

    assert!(wfm.remove(&id));
    wait("removed", &|seen| (state(seen)? == "removed").then_some(()));
    assert_eq!(device.writes(), [(10, 42), (10, 1_010)], "back to what was there before");
    // The kill may come between the fleet manager's confirmation and our note of it: then one status is told twice.
    let mut notes = wfm.records().notes();
    notes.retain(|note| !note.contains("the same status again"));
    assert_eq!(notes, Vec::<String>::new(), "nothing that we sent contradicts the reference");
    stop(gateway);
}

/// The version in force and the rate of the pump, as the command line shows them.
fn in_force(site: &Site) -> (String, serde_json::Value) {
    let shown = site.run(&["config", "show", "pump", "--json"]);
    assert!(shown.status.success(), "{}", errors(&shown));
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    (shown["result"].as_str().unwrap_or_default().to_owned(), shown["effective"]["rate"]["value"].clone())
}

#[test]
fn a_configuration_is_deployed_with_its_proof_and_taken_back() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let authority = Authority::new("plant.example").unwrap();
    let wfm = runtime.block_on(Wfm::start(WfmOptions::new(authority.clone()))).unwrap();
    let wait = |what: &str, look: &dyn Fn(&Records) -> Option<()>| {
        runtime.block_on(wfm.wait(what, PATIENCE, look)).unwrap_or_else(|error| panic!("{error}"));
    };
    let (site, _device) = joined(&wfm, &authority, "configuration");
    let good = json!({ "settings": { "rate": "300 ms" }, "proveWithin": "10 s", "comment": "faster" });
    let bad = json!({ "settings": { "points": { "setpoint": { "expect": { "max": 1 } } } }, "proveWithin": "2 s" });
    let wrong = json!({ "settings": { "rtae": "1 s" } });
    for (name, document) in [("good", &good), ("bad", &bad), ("wrong", &wrong)] {
        artifact(&site, name, CONFIGURATION_TYPE, document);
    }
    let gateway = site.start();
    wait("the pump", &|seen| seen.devices.contains_key("plant/pump").then_some(()));
    let deploy = |name: &str| {
        let from = format!("oci://registry.example/{name}");
        wfm.deploy(Deployment::custom("plant/pump", name).component("settings", &from, "1.0")).unwrap()
    };
    let status = |seen: &Records, id: &_| seen.status(id, Some("plant/pump")).cloned();
    let first = deploy("good");
    let ended = |seen: &Records, id: &_| {
        status(seen, id).filter(|status| ["installed", "failed"].contains(&status.state.as_str())).map(|_| ())
    };
    wait("an end", &|seen| ended(seen, &first));
    let installed = wfm.with(|seen| format!("{:?}", status(seen, &first)));
    assert!(installed.contains("\"installed\""), "{installed}");
    assert_eq!(in_force(&site), ("applied".to_owned(), json!("300 ms")));

    gateway.kill();
    let gateway = site.start();
    let polls = wfm.with(|seen| seen.requests.len());
    wait("polls after the kill", &|seen| (seen.requests.len() >= polls + 3).then_some(()));
    assert!(wfm.remove(&first));
    wait("removed", &|seen| (status(seen, &first)?.state == "removed").then_some(()));
    let (result, rate) = in_force(&site);
    assert!(result == "applied" && rate != json!("300 ms"), "{result} {rate}: what the files say is in force again");

    for (name, told) in [("bad", "expected range"), ("wrong", "rtae")] {
        let id = deploy(name);
        wait(name, &|seen| (status(seen, &id)?.state == "failed").then_some(()));
        let failed = wfm.with(|seen| format!("{:?}", status(seen, &id)));
        assert!(failed.contains(told), "{failed}");
        assert!(wfm.remove(&id));
        wait("removed", &|seen| (status(seen, &id)?.state == "removed").then_some(()));
    }
    assert_eq!(in_force(&site).1, rate);
    stop(gateway);
}
