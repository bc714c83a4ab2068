//! The whole program with its trust bundle from a server and its artifacts from a registry, and what is spoilt there.
#![cfg(feature = "margo")]
#![allow(clippy::unwrap_used, reason = "a test ends with a panic when its surroundings fail")]

mod margo_support;
mod support;
mod whole_support;

use std::net::{Ipv4Addr, SocketAddr};

use fieldgate::margo::component::RECIPE_TYPE;
use fieldgate_simulators::margo::wfm::records::Status;
use fieldgate_simulators::margo::{
    Deployment, Discovery, DiscoveryFault, Down, Flaw, Layer, OciRegistry, RegistryFault, RegistryOptions,
    WebCertificate,
};
use margo_support::{Manager, PATIENCE, POINT, error};
use serde_json::json;
use support::eventually;
use whole_support::{FakeDevice, Mode, Site, stop};

fn any_port() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

fn says(site: &Site, words: &str) {
    eventually(words, PATIENCE, || site.done(&["margo", "status"]).contains(words).then_some(()));
}

#[test]
fn the_bundle_comes_by_address_or_discovery_is_kept_for_offline_starts_and_exchanged_while_running() {
    let manager = Manager::start(|_| {});
    let server = manager.runtime.block_on(Discovery::start(any_port(), manager.authority.clone())).unwrap();
    let settings = |trust: &str| {
        format!("[margo]\nurl = \"{}\"\npolling = {{ every = \"1 s\" }}\ntrust = {{ {trust} }}\n", manager.wfm.url())
    };
    let by_address = settings(&format!("bundle = \"{}\", anchors = \"web.pem\"", server.bundle_url()));
    let site = Site::new(&by_address);
    site.write("web.pem", &server.roots_pem());
    manager.join(&site);
    std::fs::remove_file(site.path().join("bundle.json")).unwrap();
    let gateway = site.start();
    manager.sees("plant");
    // Anchors are exchanged: a fleet manager that is not believed is a reason to ask for a newer bundle.
    server.inject(fieldgate_simulators::margo::Times::only(DiscoveryFault::LowerSequence, 1));
    manager.authority.add_root().unwrap();
    manager.authority.retire_old_roots();
    manager.wfm.serve(Flaw::None).unwrap();
    let request = std::fs::read_to_string(site.data().join("margo/svid.csr.pem")).unwrap();
    let id = manager.authority.client_id(manager.wfm.id(), "plant");
    site.write("data/margo/svid.pem", &manager.authority.sign_request(&request, &id, margo_support::DAY).unwrap());
    manager.runtime.block_on(manager.wfm.disconnect()).unwrap();
    says(&site, "bundle with sequence 3");
    says(&site, "the last request was answered");
    stop(gateway);
    // A start without the server.
    manager.runtime.block_on(server.set_down(Down::Refused)).unwrap();
    let gateway = site.start();
    manager.asked(2);
    stop(gateway);
    manager.runtime.block_on(server.set_down(Down::Up)).unwrap();
    // By discovery, with a pin; a server with another key is not believed.
    let pinned =
        |pin: &str| settings(&format!("bundle = \"{}\", discover = true, pins = [\"sha256/{pin}\"]", server.url()));
    let before = server.pin();
    server.serve(WebCertificate::Right).unwrap();
    site.main_file(&pinned(&before));
    let gateway = site.start();
    says(&site, "no bundle was fetched yet");
    assert!(!site.done(&["margo", "status"]).contains("the last request was answered"));
    stop(gateway);
    site.main_file(&pinned(&server.pin()));
    let gateway = site.start();
    says(&site, "the last request was answered");
    assert!(server.log().iter().any(|(path, status)| path == "/.well-known/margo" && *status == 200));
    stop(gateway);
}

#[test]
fn artifacts_come_from_a_registry_with_a_login_and_spoilt_ones_reach_no_device() {
    let manager = Manager::start(|_| {});
    let options = RegistryOptions {
        credentials: Some(("gateway".to_owned(), "secret".to_owned())),
        ..RegistryOptions::default()
    };
    let registry = manager.runtime.block_on(OciRegistry::start(options)).unwrap();
    let settings = |password: &str| {
        format!(
            "[margo]\nurl = \"{}\"\npolling = {{ every = \"1 s\" }}\ntrust = {{ bundle = \"bundle.json\" }}\ndelegate = {{ recipe = true }}\nartifacts = {{ plain = [\"{}\"], user = \"gateway\", password = \"{password}\" }}\n",
            manager.wfm.url(),
            registry.address()
        )
    };
    let site = Site::new(&settings("secret"));
    let device = FakeDevice::start(Mode::Well);
    let head = "delegated = [\"command\"]\nrate = \"200 ms\"\n";
    site.device("pump", device.port(), head, "[modbus.write]\nverify = false\n", POINT);
    manager.join(&site);
    let push = |name: &str, content: Vec<u8>| {
        let layer = Layer { media_type: RECIPE_TYPE.to_owned(), title: String::new(), content };
        registry.push(name, "1.0", RECIPE_TYPE, &[layer])
    };
    let value = json!({ "values": [{ "point": "setpoint", "value": 42 }] }).to_string().into_bytes();
    let digest = push("pump", value.clone());
    push("huge", vec![b' '; 70 << 10]);
    let deploy = |name: &str, revision: &str| {
        let wanted = Deployment::custom("plant/pump", name).component("part", &registry.repository(name), revision);
        manager.wfm.deploy(wanted).unwrap()
    };
    let reaches = |id: &str, state: &str| -> Status { manager.reaches(id, Some("plant/pump"), state) };
    let gateway = site.start();
    site.wait_for_state("pump", "online");

    for revision in ["1.0", digest.as_str()] {
        let id = deploy("pump", revision);
        reaches(&id, "installed");
        manager.remove(&id, Some("plant/pump"));
    }
    assert_eq!(device.writes(), [(10, 42), (10, 1_010), (10, 42), (10, 1_010)]);
    assert!(registry.log().iter().any(|(request, status)| request.ends_with("/token") && *status == 200));

    // What is not what its digest says, and what is too large, is refused; what is not there may come.
    registry.inject(RegistryFault::WrongBlob);
    let wrong = deploy("pump", "1.0");
    let (code, source, why) = error(&reaches(&wrong, "failed"));
    assert_eq!((code.as_str(), source.as_str()), ("artifact-refused", "plant"), "{why}");
    registry.clear_faults();
    let huge = deploy("huge", "1.0");
    let (code, _, why) = error(&reaches(&huge, "failed"));
    assert_eq!(code, "artifact-refused", "{why}");
    let late = deploy("late", "1.0");
    let (code, _, why) = error(&reaches(&late, "failed"));
    assert_eq!(code, "artifact-unavailable", "{why}");
    assert_eq!(device.writes().len(), 4, "nothing of it reached the device");
    push("late", value);
    reaches(&late, "installed");
    for id in [&wrong, &huge, &late] {
        manager.remove(id, Some("plant/pump"));
    }
    stop(gateway);

    site.main_file(&settings("guessed"));
    let gateway = site.start();
    let locked = deploy("pump", "1.0");
    let (code, _, why) = error(&reaches(&locked, "failed"));
    assert!(code.starts_with("artifact-") && why.contains("Not authorized"), "{code}: {why}");
    stop(gateway);
}
