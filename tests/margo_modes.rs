//! The whole program in each of its modes and with every kind of target, against a simulated fleet manager that knows the
//! mode and checks everything that it receives by the schemas.
#![cfg(feature = "margo")]
#![allow(clippy::unwrap_used, reason = "a test ends with a panic when its surroundings fail")]

mod margo_support;
mod support;
mod whole_support;

use fieldgate_simulators::margo::Op;
use fieldgate_simulators::margo::schema::Mode as Shape;
use margo_support::{DAY, Manager, PATIENCE, POINT, error, recipe};
use serde_json::json;
use whole_support::{FakeDevice, Mode, Site, errors, stop};

const HOSTING: &str = "cpu = [{ cores = 2.0, architecture = \"arm64\" }], memory = \"512Mi\", storage = \"8Gi\", \
    interfaces = [\"ethernet\"], runtimes = [\"custom\"], deployment_types = [\"custom\"]";

/// A site with the devices `names`, each with a setpoint that can be written, and the recipe `pump`.
fn site(margo: &str, names: &[&str]) -> (Site, Vec<FakeDevice>) {
    let site = Site::new(margo);
    let head = "delegated = [\"command\"]\nrate = \"200 ms\"\n";
    let more = "timeout = \"500 ms\"\nbreaker = { failures = 2 }\n[modbus.write]\nverify = false\n";
    let devices = names.iter().map(|name| {
        let device = FakeDevice::start(Mode::Well);
        site.device(name, device.port(), head, more, POINT);
        device
    });
    let devices = devices.collect();
    recipe(&site, "pump", &json!([{ "point": "setpoint", "value": 42 }]));
    (site, devices)
}

#[test]
fn an_opaque_gateway_is_one_device_with_combined_capabilities_and_places_deployments_itself() {
    let manager = Manager::start(|options| options.mode = Shape::Opaque);
    let more = format!(
        "mode = \"opaque\"\ngateway = {{ hosting = {{ {HOSTING} }} }}\n\
         [[margo.device]]\nid = \"pump-2\"\nhosting = {{ {HOSTING} }}\n"
    );
    let (site, devices) = site(&manager.settings(&["recipe"], &more), &["pump-1", "pump-2"]);
    manager.join(&site);
    let gateway = site.start();
    let combined = manager.wait("the combined capabilities", |seen| {
        let reported = seen.devices.get("plant")?.capabilities.clone();
        (reported["properties"]["cpus"].as_array()?.len() == 2).then_some(reported)
    });
    assert_eq!(combined["properties"]["memory"], "1Gi");
    assert_eq!(combined["properties"]["storage"], "16Gi");
    assert_eq!(combined["properties"]["interfaces"].as_array().unwrap().len(), 2);

    // Once each is reachable, the idler one is chosen: both get one of two.
    site.wait_for_state("pump-1", "online");
    site.wait_for_state("pump-2", "online");
    let first = manager.deploy("plant", "pump");
    let status = manager.reaches(&first, None, "installed");
    assert_eq!(status.device, None, "the fleet manager knows one device");
    let second = manager.deploy("plant", "pump");
    manager.reaches(&second, None, "installed");
    let writes = || devices.iter().map(FakeDevice::writes).collect::<Vec<_>>();
    assert_eq!(writes(), [[(10, 42)], [(10, 42)]]);
    // One too many waits for whoever gives up first, and moves there.
    let third = manager.deploy("plant", "pump");
    let (code, _, why) = error(&manager.reaches(&third, None, "failed"));
    assert!(code == "conflict" && why.contains("is held by deployment"), "{code}: {why}");
    manager.remove(&second, None);
    manager.reaches(&third, None, "installed");
    assert_eq!(writes(), [vec![(10, 42)], vec![(10, 42), (10, 1_010), (10, 42)]]);
    // What is inside is nobody's to name.
    let inside = manager.deploy("plant/pump-1", "pump");
    let (code, source, _) = error(&manager.reaches(&inside, None, "failed"));
    assert_eq!((code.as_str(), source.as_str()), ("101", "plant"));
    for id in [first, third, inside] {
        manager.remove(&id, None);
    }
    assert!(writes().iter().all(|writes| writes.last() == Some(&(10, 1_010))), "{:?}", writes());
    assert_eq!(manager.wfm.with(|seen| seen.devices.keys().cloned().collect::<Vec<_>>()), ["plant"]);
    manager.found_nothing_wrong();
    stop(gateway);
}

#[test]
fn a_transparent_gateway_is_a_client_an_identity_and_a_connection_per_device() {
    let manager = Manager::start(|options| options.mode = Shape::Transparent);
    let device = |id: &str| format!("[[margo.device]]\nid = \"{id}\"\ncert = \"{id}.pem\"\nkey = \"{id}.key\"\n");
    let both = format!("{}{}", device("pump-1"), device("pump-2"));
    let more = format!("mode = \"transparent\"\n{both}");
    let (site, devices) = site(&manager.settings(&["recipe"], &more), &["pump-1", "pump-2", "pump-3"]);
    site.write("bundle.json", &manager.authority.bundle().to_string());
    let refused = site.run(&["margo", "join", "--trust-domain", "plant.example", "--wfm", manager.wfm.id()]);
    assert!(
        !refused.status.success() && errors(&refused).contains("--device (pump-1, pump-2)"),
        "{}",
        errors(&refused)
    );
    for name in ["pump-1", "pump-2"] {
        manager.join_as(&site, &["--device", name], name, name);
    }
    let gateway = site.start();
    manager.sees("pump-1");
    manager.sees("pump-2");
    let clients = manager.wfm.with(|seen| seen.clients.clone());
    let of = |name: &str| clients[name].clone();
    assert_eq!(clients.len(), 2, "the gateway itself and a device without an identity are invisible");
    assert_ne!(of("pump-1").connection, of("pump-2").connection);
    assert_ne!(of("pump-1").certificate, of("pump-2").certificate);

    let id = manager.deploy("pump-1", "pump");
    assert_eq!(manager.reaches(&id, None, "installed").client, "pump-1");
    assert_eq!(devices.iter().map(|device| device.writes().len()).collect::<Vec<_>>(), [1, 0, 0]);
    // A device is renewed, and retired, by itself.
    let key = std::fs::read_to_string(site.path().join("pump-2.csr.pem")).unwrap();
    let renewed = manager.authority.sign_request(&key, &of("pump-2").identity, DAY).unwrap();
    site.write("pump-2.pem", &renewed);
    let certificate = |seen: &fieldgate_simulators::margo::Records, name: &str| seen.clients[name].certificate.clone();
    manager.wait("the renewed certificate", |seen| {
        (certificate(seen, "pump-2") != of("pump-2").certificate).then_some(())
    });
    assert_eq!(manager.wfm.with(|seen| certificate(seen, "pump-1")), of("pump-1").certificate);
    assert!(manager.wfm.retire("pump-2", true));
    manager.wait("the refusal", |seen| (seen.count(Op::Manifest, 403) > 0).then_some(()));
    manager.remove(&id, None);
    for words in ["has retired this client as pump-2", "the last request was answered as pump-1"] {
        support::eventually(words, PATIENCE, || site.done(&["margo", "status"]).contains(words).then_some(()));
    }
    assert_eq!(manager.wfm.with(|seen| seen.devices.keys().cloned().collect::<Vec<_>>()), ["pump-1", "pump-2"]);
    stop(gateway);
}

#[test]
fn every_kind_of_target_is_resolved_and_refused_with_the_gateway_as_source() {
    let manager = Manager::start(|options| options.mode = Shape::SeeThru);
    let settings = |wildcard: &str| manager.settings(&["recipe"], &format!("wildcard = \"{wildcard}\""));
    let (site, devices) = site(&settings("one"), &["pump-1", "pump-2"]);
    manager.join(&site);
    let writes = || devices.iter().map(|device| device.writes().len()).collect::<Vec<_>>();
    let gateway = site.start();
    manager.sees("plant/pump-1");
    manager.sees("plant/pump-2");
    site.wait_for_state("pump-1", "online");
    site.wait_for_state("pump-2", "online");

    // A named child, and one that nobody knows.
    let named = manager.deploy("plant/pump-2", "pump");
    manager.reaches(&named, Some("plant/pump-2"), "installed");
    let unknown = manager.deploy("plant/pump-9", "pump");
    let status = manager.reaches(&unknown, Some("plant/pump-9"), "failed");
    assert_eq!(error(&status), ("101".into(), "plant".into(), "Unknown child device ID".into()));
    // The gateway's choice: one child, the idler one.
    let chosen = manager.deploy("plant/*", "pump");
    manager.reaches(&chosen, Some("plant/pump-1"), "installed");
    assert_eq!(writes(), [1, 1]);
    manager.remove(&chosen, Some("plant/pump-1"));
    // A child that does not answer is told, tried again, and undone when it answers.
    devices[0].set(Mode::Hangs);
    site.wait_for_state("pump-1", "off-scan");
    let late = manager.deploy("plant/pump-1", "pump");
    let status = manager.reaches(&late, Some("plant/pump-1"), "failed");
    assert_eq!(error(&status), ("102".into(), "plant".into(), "Child device unreachable".into()));
    devices[0].set(Mode::Well);
    manager.reaches(&late, Some("plant/pump-1"), "installed");
    for (id, device) in [(&named, "plant/pump-2"), (&late, "plant/pump-1"), (&unknown, "plant/pump-9")] {
        manager.remove(id, Some(device));
    }
    stop(gateway);

    // Everyone that fits.
    site.main_file(&settings("every"));
    let gateway = site.start();
    let before = writes();
    let every = manager.deploy("plant/*", "pump");
    for child in ["plant/pump-1", "plant/pump-2"] {
        manager.reaches(&every, Some(child), "installed");
    }
    assert_eq!(writes(), [before[0] + 1, before[1] + 1]);
    assert!(manager.wfm.remove(&every));
    for child in ["plant/pump-1", "plant/pump-2"] {
        manager.reaches(&every, Some(child), "removed");
    }
    stop(gateway);

    // Placement is the fleet manager's.
    site.main_file(&settings("refused"));
    let gateway = site.start();
    let before = writes();
    let refused = manager.deploy("plant/*", "pump");
    let status = manager.reaches(&refused, None, "failed");
    assert_eq!(error(&status), ("103".into(), "plant".into(), "Autonomous placement not supported".into()));
    assert_eq!(writes(), before);
    manager.remove(&refused, None);
    manager.found_nothing_wrong();
    stop(gateway);
}

#[test]
fn a_device_behind_a_device_is_reported_after_it_and_deployed_to_by_its_whole_path() {
    let manager = Manager::start(|options| options.mode = Shape::SeeThru);
    let behind = "[[margo.device]]\nid = \"drive-1\"\nparent = \"pump-1\"\n";
    let (site, devices) = site(&manager.settings(&["recipe"], behind), &["drive-1", "pump-1"]);
    manager.join(&site);
    let gateway = site.start();
    let path = "plant/pump-1/drive-1";
    manager.sees(path);
    let labels = manager.wfm.with(|seen| seen.devices[path].capabilities["labels"].clone());
    assert_eq!((&labels["fieldgate.dev/tier"], &labels["fieldgate.dev/takes"]), (&json!(1), &json!(["recipe"])));
    let id = manager.deploy(path, "pump");
    manager.reaches(&id, Some(path), "installed");
    assert_eq!(devices.iter().map(|device| device.writes().len()).collect::<Vec<_>>(), [1, 0]);
    manager.remove(&id, Some(path));
    manager.found_nothing_wrong();
    stop(gateway);
}
