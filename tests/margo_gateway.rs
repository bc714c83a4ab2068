//! The whole program as a client of the simulated fleet manager: join by its own words, recipes that reach registers,
//! configurations and firmware that are proven or taken back, kills in between, and removals.
#![cfg(feature = "margo")]
#![allow(clippy::unwrap_used, reason = "a test ends with a panic when its surroundings fail")]

mod margo_support;
mod support;
mod whole_support;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use fieldgate::margo::component::{CONFIGURATION_TYPE, FIRMWARE_MANIFEST_TYPE, FIRMWARE_TYPE};
use fieldgate_simulators::firmware_target::{FirmwareTarget, Settings, Trouble};
use fieldgate_simulators::margo::Records;
use fieldgate_simulators::margo::wfm::records::Status;
use margo_support::{Manager, PATIENCE, POINT, artifact, error, recipe};
use serde_json::json;
use support::eventually;
use whole_support::{FakeDevice, Mode, Site, body, errors, stop};

const PUMP: Option<&str> = Some("plant/pump");

/// A site of one pump that has joined a fleet manager, which may deploy `delegate` to it.
fn joined(manager: &Manager, delegate: &str, points: &str) -> (Site, FakeDevice) {
    let site = Site::new(&manager.settings(&[delegate], ""));
    let device = FakeDevice::start(Mode::Well);
    let head = "delegated = [\"command\", \"config\"]\n";
    site.device("pump", device.port(), head, "[modbus.write]\nverify = false\n", points);
    manager.join(&site);
    (site, device)
}

#[test]
fn a_gateway_joins_takes_a_recipe_survives_a_kill_and_takes_it_back() {
    let manager = Manager::start(|_| {});
    let (site, device) = joined(&manager, "recipe", POINT);
    recipe(&site, "pump", &json!([{ "point": "setpoint", "value": 42 }]));

    let gateway = site.start();
    manager.sees("plant/pump");
    let id = manager.deploy("plant/pump", "pump");
    manager.reaches(&id, PUMP, "installed");
    assert_eq!(device.writes(), [(10, 42)]);

    gateway.kill();
    let gateway = site.start();
    manager.asked(3);
    assert_eq!(device.writes(), [(10, 42)], "nothing is applied twice");
    eventually("the status", PATIENCE, || {
        let status = site.done(&["margo", "status"]);
        (status.contains("installed") && status.contains("the last request was answered")).then_some(())
    });

    // What comes while it is away is begun when the pump has connected: until then nobody calls it unreachable.
    gateway.kill();
    recipe(&site, "faster", &json!([{ "point": "setpoint", "value": 43 }]));
    manager.update(&id, "plant/pump", "faster");
    let gateway = site.start();
    eventually("the update", PATIENCE, || (device.writes() == [(10, 42), (10, 43)]).then_some(()));
    manager.reaches(&id, PUMP, "installed");
    let told = manager.statuses(&id);
    assert!(told.iter().all(|(_, _, error)| error.is_null()), "{told:?}");

    manager.remove(&id, PUMP);
    assert_eq!(device.writes()[2..], [(10, 1_010)], "back to what was there before");

    // The same deployment once more, with what its first revision was and then another.
    manager.update(&id, "plant/pump", "pump");
    manager.reaches(&id, PUMP, "installed");
    assert_eq!(device.writes()[3..], [(10, 42)], "what comes back is done again");
    manager.remove(&id, PUMP);
    manager.update(&id, "plant/pump", "faster");
    manager.reaches(&id, PUMP, "installed");
    assert_eq!(device.writes()[4..], [(10, 1_010), (10, 43)]);
    manager.remove(&id, PUMP);
    manager.found_nothing_wrong();
    stop(gateway);
}

#[test]
fn a_recipe_that_fails_half_way_is_set_back_at_once() {
    let manager = Manager::start(|_| {});
    // The second point is refused by the device, which is known only when it is written.
    let more = "[[points]]\nid = \"locked\"\ntable = \"holding\"\naddress = 20\naccess = \"read-write\"\n";
    let (site, device) = joined(&manager, "recipe", &format!("{POINT}{more}"));
    device.refuse(20);
    recipe(&site, "good", &json!([{ "point": "setpoint", "value": 42 }]));
    recipe(&site, "half", &json!([{ "point": "setpoint", "value": 43 }, { "point": "locked", "value": 1 }]));
    let gateway = site.start();
    manager.sees("plant/pump");
    site.wait_for_state("pump", "online");

    let half = manager.deploy("plant/pump", "half");
    let (_, source, why) = error(&manager.reaches(&half, PUMP, "failed"));
    assert!(source == "plant/pump" && why.contains("setpoint set back"), "{source} {why}");
    assert_eq!(device.writes(), [(10, 43), (10, 1_010)], "what was written is set back");
    // A point that holds nothing of a failed deployment is free for another.
    let good = manager.deploy("plant/pump", "good");
    manager.reaches(&good, PUMP, "installed");
    manager.remove(&half, PUMP);
    assert_eq!(device.writes()[2..], [(10, 42)], "and nothing is left to take back");

    // An update that fails goes back to the revision before, and stays failed until something is deployed anew.
    manager.update(&good, "plant/pump", "half");
    manager.reaches(&good, PUMP, "failed");
    assert_eq!(device.writes()[3..], [(10, 43), (10, 42)]);
    manager.remove(&good, PUMP);
    assert_eq!(device.writes()[5..], [(10, 1_010)], "what was there before the first revision");
    manager.found_nothing_wrong();
    stop(gateway);
}

/// Whether a deployment to the pump ended. One that finds the pump silent (102) is tried again.
fn has_ended(seen: &Records, id: &str) -> bool {
    seen.status(id, PUMP).is_some_and(|status| match status.state.as_str() {
        "failed" => status.body["status"]["error"]["code"] != "102",
        state => state == "installed",
    })
}

/// How it ended.
fn end(manager: &Manager, id: &str) -> Status {
    manager.wait("an end", |seen| has_ended(seen, id).then_some(()));
    manager.wfm.with(|seen| seen.status(id, PUMP).cloned()).unwrap()
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
    let manager = Manager::start(|_| {});
    let (site, _device) = joined(&manager, "configuration", POINT);
    let good = json!({ "settings": { "rate": "300 ms" }, "proveWithin": "10 s", "comment": "faster" });
    let bad = json!({ "settings": { "points": { "setpoint": { "expect": { "max": 1 } } } }, "proveWithin": "2 s" });
    let wrong = json!({ "settings": { "rtae": "1 s" } });
    for (name, document) in [("good", &good), ("bad", &bad), ("wrong", &wrong)] {
        artifact(&site, name, &[(CONFIGURATION_TYPE, &document.to_string())]);
    }
    let gateway = site.start();
    manager.sees("plant/pump");
    let first = manager.deploy("plant/pump", "good");
    assert_eq!(end(&manager, &first).state, "installed");
    assert_eq!(in_force(&site), ("applied".to_owned(), json!("300 ms")));

    gateway.kill();
    let gateway = site.start();
    manager.asked(3);
    manager.remove(&first, PUMP);
    let (result, rate) = in_force(&site);
    assert!(result == "applied" && rate != json!("300 ms"), "{result} {rate}: what the files say is in force again");

    for (name, told) in [("bad", "expected range"), ("wrong", "rtae")] {
        let id = manager.deploy("plant/pump", name);
        let failed = end(&manager, &id);
        assert!(failed.state == "failed" && error(&failed).2.contains(told), "{failed:?}");
        manager.remove(&id, PUMP);
    }
    assert_eq!(in_force(&site).1, rate);
    stop(gateway);
}

#[test]
fn a_device_that_falls_silent_before_it_proved_a_configuration_is_told_as_102_and_gets_it_again() {
    let manager = Manager::start(|_| {});
    let (site, device) = joined(&manager, "configuration", POINT);
    let never = json!({ "settings": { "rate": "200 ms", "points": { "setpoint": { "expect": { "max": 1 } } } }, "proveWithin": "10 s" });
    artifact(&site, "never", &[(CONFIGURATION_TYPE, &never.to_string())]);
    let gateway = site.start();
    site.wait_for_state("pump", "online");
    let id = manager.deploy("plant/pump", "never");
    let fails = |code: &str| {
        manager.wait(code, |seen| {
            let status = seen.status(&id, PUMP)?;
            (status.state == "failed" && error(status).0 == code).then_some(())
        });
    };
    manager.reaches(&id, PUMP, "installing");
    device.set(Mode::Hangs);
    fails("102");
    device.set(Mode::Well);
    fails("health-gate");
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
    artifact(site, name, &[(FIRMWARE_TYPE, &image), (FIRMWARE_MANIFEST_TYPE, &manifest)]);
}

/// A site of one pump that takes firmware, joined, with the images `good`, `bad` and `foreign`.
fn firmware_site(manager: &Manager, port: u16) -> Site {
    let site = Site::new("");
    for key in ["plant", "stranger"] {
        let made = site.run(&["firmware", "keygen", site.path().join(key).to_str().unwrap()]);
        assert!(made.status.success(), "{}", errors(&made));
    }
    let settings = manager.settings(&["firmware"], "");
    site.main_file(&format!("[firmware]\nkeys = [\"plant.pub\"]\n\n{settings}"));
    site.write("profiles/pump-p7.toml", PROFILE);
    let head = "profile = \"pump-p7\"\ndelegated = [\"firmware\"]\nrate = \"100 ms\"\n";
    site.device("pump", port, head, "breaker = { failures = 100 }\n", "");
    firmware(&site, "good", "plant", "2.0.0");
    firmware(&site, "bad", "plant", "3.0.0");
    firmware(&site, "foreign", "stranger", "4.0.0");
    manager.join(&site);
    site
}

#[test]
fn firmware_is_deployed_once_over_a_kill_rolled_back_when_it_fails_and_stays_when_it_is_removed() {
    let manager = Manager::start(|_| {});
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let restart = Duration::from_millis(300);
    let settings = Settings { listen, version: "1.0.0".to_owned(), restart, trouble: Trouble::None };
    let device = manager.runtime.block_on(FirmwareTarget::start(settings)).unwrap();
    let site = firmware_site(&manager, device.address().port());
    let gateway = site.start();
    manager.sees("plant/pump");
    let first = manager.deploy("plant/pump", "good");
    manager.wait("a part of the transfer, or an end", |seen| {
        (device.writes() > 20 || has_ended(seen, &first)).then_some(())
    });
    let known = || format!("{:?}\n{}", manager.statuses(&first), whole_support::tail(&gateway));
    assert!(device.writes() > 20, "{}", known());
    gateway.kill();
    assert_eq!(device.version(), "1.0.0");
    let gateway = site.start();
    assert_eq!(end(&manager, &first).state, "installed");
    assert_eq!(device.version(), "2.0.0");
    let audit = site.json(&["audit", "--device", "pump", "--json", "--last", "10000"]);
    let entries = audit.as_array().unwrap().iter().filter(|entry| entry["action"] == "firmware-offer");
    let by: Vec<_> =
        entries.map(|entry| (entry["actor"].as_str().unwrap(), entry["outcome"].as_str().unwrap())).collect();
    assert_eq!(by, [(format!("margo:{first}").as_str(), "done")], "offered once, by its deployment");

    let events = site.subscribe("devices/pump/events");
    manager.remove(&first, PUMP);
    eventually("the event", PATIENCE, || {
        let mut all = events.messages().into_iter().filter(|m| !m.payload.is_empty()).map(|m| body(&m.payload));
        all.any(|event| event["kind"] == "margo-firmware-stays" && event["message"].as_str().unwrap().contains("2.0.0"))
            .then_some(())
    });
    assert_eq!(device.version(), "2.0.0", "firmware is not taken back");

    device.set_trouble(Trouble::DoesNotStart);
    for (name, told) in [("bad", ["device-failed", "runs again"]), ("foreign", ["bad-signature", "not signed"])] {
        let id = manager.deploy("plant/pump", name);
        let failed = end(&manager, &id);
        let ((code, _, why), state) = (error(&failed), failed.state);
        assert_eq!((state.as_str(), code.as_str()), ("failed", told[0]), "{why}");
        assert!(why.contains(told[1]), "{why}");
        assert_eq!(device.version(), "2.0.0");
        manager.remove(&id, PUMP);
    }
    // What runs already is in force without a transfer.
    let writes = device.writes();
    assert_eq!(end(&manager, &manager.deploy("plant/pump", "good")).state, "installed");
    assert_eq!((device.version().as_str(), device.writes()), ("2.0.0", writes));
    stop(gateway);
}
