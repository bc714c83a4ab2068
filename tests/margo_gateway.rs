//! The whole program as a client of the simulated fleet manager: join by its own words, recipes that reach registers,
//! configurations and firmware that are proven or taken back, kills in between, and removals.
#![cfg(feature = "margo")]
#![allow(clippy::unwrap_used, reason = "a test ends with a panic when its surroundings fail")]

mod support;
mod whole_support;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use fieldgate::margo::component::{CONFIGURATION_TYPE, FIRMWARE_MANIFEST_TYPE, FIRMWARE_TYPE, RECIPE_TYPE};
use fieldgate_simulators::firmware_target::{FirmwareTarget, Settings, Trouble};
use fieldgate_simulators::margo::{Authority, Deployment, Records, Wfm, WfmOptions};
use serde_json::json;
use support::eventually;
use whole_support::margo::{self, PATIENCE, artifact, join, repository};
use whole_support::{FakeDevice, Mode, Site, body, errors, said, stop, text};

const POINT: &str = "[[points]]\nid = \"setpoint\"\ntable = \"holding\"\naddress = 10\naccess = \"read-write\"\n";

/// A site of one pump that has joined a fleet manager, which may deploy `delegate` to it.
fn joined(wfm: &Wfm, authority: &Authority, delegate: &str) -> (Site, FakeDevice) {
    let site = Site::new(&margo::settings(wfm, &[delegate], ""));
    let device = FakeDevice::start(Mode::Well);
    site.device(
        "pump",
        device.port(),
        "delegated = [\"command\", \"config\"]\n",
        "[modbus.write]\nverify = false\n",
        POINT,
    );
    join(&site, wfm, authority, "plant");
    (site, device)
}

#[test]
fn a_gateway_joins_takes_a_recipe_survives_a_kill_and_takes_it_back() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let authority = Authority::new("plant.example").unwrap();
    let wfm = runtime.block_on(Wfm::start(WfmOptions::new(authority.clone()))).unwrap();
    let wait = |what: &str, look: &dyn Fn(&Records) -> Option<()>| margo::wait(&runtime, &wfm, what, look);
    let (site, device) = joined(&wfm, &authority, "recipe");
    let recipe = json!({ "values": [{ "point": "setpoint", "value": 42 }] });
    artifact(&site, "pump", "1.0", &[(RECIPE_TYPE, &recipe.to_string())], &json!({}));

    let gateway = site.start();
    wait("the pump", &|seen| seen.devices.contains_key("plant/pump").then_some(()));
    let id =
        wfm.deploy(Deployment::custom("plant/pump", "pump").component("recipe", &repository("pump"), "1.0")).unwrap();
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

/// Whether a deployment to the pump ended. One that finds the pump silent (102) is tried again.
fn has_ended(seen: &Records, id: &str) -> bool {
    seen.status(id, Some("plant/pump")).is_some_and(|status| match status.state.as_str() {
        "failed" => status.body["status"]["error"]["code"] != "102",
        state => state == "installed",
    })
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
    let wait = |what: &str, look: &dyn Fn(&Records) -> Option<()>| margo::wait(&runtime, &wfm, what, look);
    let (site, _device) = joined(&wfm, &authority, "configuration");
    let good = json!({ "settings": { "rate": "300 ms" }, "proveWithin": "10 s", "comment": "faster" });
    let bad = json!({ "settings": { "points": { "setpoint": { "expect": { "max": 1 } } } }, "proveWithin": "2 s" });
    let wrong = json!({ "settings": { "rtae": "1 s" } });
    for (name, document) in [("good", &good), ("bad", &bad), ("wrong", &wrong)] {
        artifact(&site, name, "1.0", &[(CONFIGURATION_TYPE, &document.to_string())], &json!({}));
    }
    let gateway = site.start();
    wait("the pump", &|seen| seen.devices.contains_key("plant/pump").then_some(()));
    let deploy = |name: &str| {
        let from = repository(name);
        wfm.deploy(Deployment::custom("plant/pump", name).component("settings", &from, "1.0")).unwrap()
    };
    let status = |seen: &Records, id: &_| seen.status(id, Some("plant/pump")).cloned();
    let first = deploy("good");
    wait("an end", &|seen| has_ended(seen, &first).then_some(()));
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
        wait(name, &|seen| has_ended(seen, &id).then_some(()));
        let failed = wfm.with(|seen| format!("{:?}", status(seen, &id)));
        assert!(failed.contains("\"failed\"") && failed.contains(told), "{failed}");
        assert!(wfm.remove(&id));
        wait("removed", &|seen| (status(seen, &id)?.state == "removed").then_some(()));
    }
    assert_eq!(in_force(&site).1, rate);
    stop(gateway);
}

#[test]
fn a_device_that_falls_silent_before_it_proved_a_configuration_is_told_as_102_and_gets_it_again() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let authority = Authority::new("plant.example").unwrap();
    let wfm = runtime.block_on(Wfm::start(WfmOptions::new(authority.clone()))).unwrap();
    let (site, device) = joined(&wfm, &authority, "configuration");
    let never = json!({ "settings": { "rate": "200 ms", "points": { "setpoint": { "expect": { "max": 1 } } } }, "proveWithin": "10 s" });
    artifact(&site, "never", "1.0", &[(CONFIGURATION_TYPE, &never.to_string())], &json!({}));
    let gateway = site.start();
    site.wait_for_state("pump", "online");
    let wanted = Deployment::custom("plant/pump", "never").component("settings", &repository("never"), "1.0");
    let id = wfm.deploy(wanted).unwrap();
    let told = |what: &str, state: &str, code: &str| {
        margo::wait(&runtime, &wfm, what, |seen| {
            let status = seen.status(&id, Some("plant/pump"))?;
            let error = said(&status.body["status"]["error"], "code");
            (status.state == state && error == code).then_some(())
        });
    };
    told("the begin", "installing", "");
    device.set(Mode::Hangs);
    told("that it does not answer", "failed", "102");
    device.set(Mode::Well);
    told("that it was tried again, and is wrong", "failed", "health-gate");
    stop(gateway);
}

const PROFILE: &str = "[firmware]\nmethod = \"modbus-files\"\nstatus = 0\ncommand = 1\nsize = 2\nreceived = 4\ndigest = 8\n\
    version = 32\nprove_within = \"20 s\"\nrate = \"24 KiB\"\n\n[[points]]\nid = \"state\"\ntable = \"holding\"\naddress = 0\n";

/// Firmware of the pump, signed with a key of the site, as an artifact.
fn firmware(site: &Site, name: &str, key: &str, version: &str) {
    let image = format!("#!/bin/sh\necho {version}\n{}", "#".repeat(40_000));
    let (path, key) = (site.path().join(name), site.path().join(key));
    site.write(name, &image);
    let (path, key) = (path.to_str().unwrap(), key.to_str().unwrap());
    let signed = site.run(&["firmware", "sign", path, "--key", key, "--target", "pump-p7", "--release", version]);
    assert!(signed.status.success(), "{}", errors(&signed));
    let manifest = std::fs::read_to_string(format!("{path}.manifest")).unwrap();
    artifact(site, name, "1.0", &[(FIRMWARE_TYPE, &image), (FIRMWARE_MANIFEST_TYPE, &manifest)], &json!({}));
}

/// A site of one pump that takes firmware, joined, with the images `good`, `bad` and `foreign`.
fn firmware_site(wfm: &Wfm, authority: &Authority, port: u16) -> Site {
    let site = Site::new("");
    for key in ["plant", "stranger"] {
        let made = site.run(&["firmware", "keygen", site.path().join(key).to_str().unwrap()]);
        assert!(made.status.success(), "{}", errors(&made));
    }
    site.main_file(&format!("[firmware]\nkeys = [\"plant.pub\"]\n\n{}", margo::settings(wfm, &["firmware"], "")));
    site.write("profiles/pump-p7.toml", PROFILE);
    let head = "profile = \"pump-p7\"\ndelegated = [\"firmware\"]\nrate = \"100 ms\"\n";
    site.device("pump", port, head, "breaker = { failures = 100 }\n", "");
    firmware(&site, "good", "plant", "2.0.0");
    firmware(&site, "bad", "plant", "3.0.0");
    firmware(&site, "foreign", "stranger", "4.0.0");
    join(&site, wfm, authority, "plant");
    site
}

#[test]
fn firmware_is_deployed_once_over_a_kill_rolled_back_when_it_fails_and_stays_when_it_is_removed() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let authority = Authority::new("plant.example").unwrap();
    let wfm = runtime.block_on(Wfm::start(WfmOptions::new(authority.clone()))).unwrap();
    let wait = |what: &str, look: &dyn Fn(&Records) -> Option<()>| margo::wait(&runtime, &wfm, what, look);
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let restart = Duration::from_millis(300);
    let settings = Settings { listen, version: "1.0.0".to_owned(), restart, trouble: Trouble::None };
    let device = runtime.block_on(FirmwareTarget::start(settings)).unwrap();
    let site = firmware_site(&wfm, &authority, device.address().port());
    let gateway = site.start();
    wait("the pump", &|seen| seen.devices.contains_key("plant/pump").then_some(()));
    let deploy = |name: &str| {
        let from = repository(name);
        wfm.deploy(Deployment::custom("plant/pump", name).component("firmware", &from, "1.0")).unwrap()
    };
    let status = |seen: &Records, id: &_| seen.status(id, Some("plant/pump")).cloned();
    let end = |id: &String| {
        wait("an end", &|seen| has_ended(seen, id).then_some(()));
        wfm.with(|seen| format!("{:?}", status(seen, id)))
    };
    let remove = |id: &String| {
        assert!(wfm.remove(id));
        wait("removed", &|seen| (status(seen, id)?.state == "removed").then_some(()));
    };

    let first = deploy("good");
    wait("a part of the transfer, or an end", &|seen| (device.writes() > 20 || has_ended(seen, &first)).then_some(()));
    let known = || format!("{:?}\n{}", wfm.with(|seen| status(seen, &first)), whole_support::tail(&gateway));
    assert!(device.writes() > 20, "{}", known());
    gateway.kill();
    assert_eq!(device.version(), "1.0.0");
    let gateway = site.start();
    let installed = end(&first);
    assert!(installed.contains("\"installed\""), "{installed}");
    assert_eq!(device.version(), "2.0.0");
    let audit = site.json(&["audit", "--device", "pump", "--json", "--last", "10000"]);
    let entries = audit.as_array().unwrap().iter().filter(|entry| entry["action"] == "firmware-offer");
    let by: Vec<_> =
        entries.map(|entry| (entry["actor"].as_str().unwrap(), entry["outcome"].as_str().unwrap())).collect();
    assert_eq!(by, [(format!("margo:{first}").as_str(), "done")], "offered once, by its deployment");

    let events = site.subscribe("devices/pump/events");
    remove(&first);
    eventually("the event", PATIENCE, || {
        let mut all = events.messages().into_iter().filter(|m| !m.payload.is_empty()).map(|m| body(&m.payload));
        all.any(|event| event["kind"] == "margo-firmware-stays" && event["message"].as_str().unwrap().contains("2.0.0"))
            .then_some(())
    });
    assert_eq!(device.version(), "2.0.0", "firmware is not taken back");

    device.set_trouble(Trouble::DoesNotStart);
    for (name, told) in [("bad", ["device-failed", "runs again"]), ("foreign", ["bad-signature", "not signed"])] {
        let id = deploy(name);
        let failed = end(&id);
        assert!(failed.contains("\"failed\"") && told.iter().all(|told| failed.contains(told)), "{failed}");
        assert_eq!(device.version(), "2.0.0");
        remove(&id);
    }
    // What runs already is in force without a transfer.
    let writes = device.writes();
    let installed = end(&deploy("good"));
    assert!(installed.contains("\"installed\""), "{installed}");
    assert_eq!((device.version().as_str(), device.writes()), ("2.0.0", writes));
    stop(gateway);
    drop(device);
    runtime.shutdown_background();
}
