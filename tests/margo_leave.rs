//! Leaving a fleet manager with the whole program, and joining another one.
#![cfg(feature = "margo")]
#![allow(clippy::unwrap_used, reason = "a test ends with a panic when its surroundings fail")]

mod margo_support;
mod support;
mod whole_support;

use fieldgate_simulators::margo::{Down, Op, Wfm, WfmOptions};
use margo_support::{Manager, POINT, recipe};
use serde_json::json;
use whole_support::{FakeDevice, Mode, Site, errors, stop, text};

/// A site of two pumps that has joined, with the recipe `pump`.
fn joined(manager: &Manager) -> (Site, Vec<FakeDevice>) {
    let site = Site::new(&manager.settings(&["recipe"], ""));
    let devices = ["pump-1", "pump-2"].map(|name| {
        let device = FakeDevice::start(Mode::Well);
        let head = "delegated = [\"command\"]\nrate = \"200 ms\"\n";
        site.device(name, device.port(), head, "[modbus.write]\nverify = false\n", POINT);
        device
    });
    manager.join(&site);
    recipe(&site, "pump", &json!([{ "point": "setpoint", "value": 42 }]));
    (site, devices.into())
}

/// `fieldgate margo leave`, which does not end well before everything is taken back; its words.
fn not_left(site: &Site, more: &[&str]) -> String {
    let left = site.run(&[&["margo", "leave", "--wait", "3"], more].concat());
    assert!(!left.status.success(), "{}", text(&left));
    errors(&left)
}

fn taken_back(manager: &Manager) -> Vec<String> {
    manager.wfm.with(|seen| {
        let paths = seen.requests_of(Op::Leave).filter(|request| request.status == 204);
        paths.map(|request| request.path.split_once("capabilities/").unwrap().1.to_owned()).collect()
    })
}

#[test]
fn leaving_waits_for_the_deployments_takes_children_back_before_their_parent_and_joining_reports_anew() {
    let manager = Manager::start(|_| {});
    let (site, devices) = joined(&manager);
    let gateway = site.start();
    site.wait_for_state("pump-1", "online");
    manager.sees("plant/pump-1");
    manager.sees("plant/pump-2");
    let id = manager.deploy("plant/pump-1", "pump");
    manager.reaches(&id, Some("plant/pump-1"), "installed");
    let words = not_left(&site, &[]);
    assert!(words.contains("1 deployments are still here") && words.contains("--now"), "{words}");
    assert_eq!(taken_back(&manager), Vec::<String>::new());
    // The wish outlives the program.
    gateway.kill();
    let gateway = site.start();
    manager.remove(&id, Some("plant/pump-1"));
    assert_eq!(devices[0].writes(), [(10, 42), (10, 1_010)]);
    println!("{}", site.done(&["margo", "leave"]));
    assert_eq!(taken_back(&manager), ["plant/pump-2", "plant/pump-1", "plant"]);
    assert!(manager.wfm.with(|seen| seen.devices.is_empty()));
    let status = site.done(&["margo", "status"]);
    assert!(status.contains("it has left"), "{status}");
    // Nothing is sent any more, not even by the next life of the program.
    let requests = manager.wfm.with(|seen| seen.requests.len());
    stop(gateway);
    let gateway = site.start();
    site.wait_for_state("pump-1", "online");
    site.wait_for_state("pump-2", "online");
    assert_eq!(manager.wfm.with(|seen| seen.requests.len()), requests);
    site.done(&["margo", "join"]);
    for device in ["plant", "plant/pump-1", "plant/pump-2"] {
        manager.sees(device);
    }
    manager.found_nothing_wrong();
    stop(gateway);
}

#[test]
fn leaving_at_once_leaves_deployments_on_devices_and_a_transfer_begins_anew() {
    let manager = Manager::start(|options| options.first_version = 40);
    let (site, devices) = joined(&manager);
    let gateway = site.start();
    site.wait_for_state("pump-1", "online");
    manager.sees("plant/pump-1");
    manager.sees("plant/pump-2");
    let old = manager.deploy("plant/pump-1", "pump");
    manager.reaches(&old, Some("plant/pump-1"), "installed");
    manager.runtime.block_on(manager.wfm.set_down(Down::Refused)).unwrap();
    let words = not_left(&site, &["--now"]);
    assert!(words.contains("3 devices are still to be taken back") && words.contains("refused"), "{words}");
    let kept = errors(&site.run(&["margo", "leave", "--now", "--wait", "0", "--destroy-key"]));
    assert!(kept.contains("not left yet") && site.data().join("margo/svid.key").exists(), "{kept}");
    manager.runtime.block_on(manager.wfm.set_down(Down::Up)).unwrap();
    let gone = site.done(&["margo", "leave", "--now", "--wait", "60", "--destroy-key"]);
    assert!(gone.contains("is gone") && !site.data().join("margo/svid.key").exists(), "{gone}");
    assert_eq!(taken_back(&manager), ["plant/pump-2", "plant/pump-1", "plant"]);
    assert_eq!(devices[0].writes(), [(10, 42)], "what was deployed stays on the device");
    stop(gateway);

    // Another fleet manager, whose manifests begin with version 1.
    let mut options = WfmOptions::new(manager.authority.clone());
    options.wfm = "wfm-2".to_owned();
    let wfm = manager.runtime.block_on(Wfm::start(options)).unwrap();
    let second = Manager { wfm, ..manager };
    site.main_file(&second.settings(&["recipe"], ""));
    second.join(&site);
    let gateway = site.start();
    second.sees("plant/pump-2");
    support::eventually("a manifest of its own", margo_support::PATIENCE, || {
        let status = site.json(&["margo", "status", "--json"]);
        (1..40).contains(&status[0]["manifest_version"].as_u64()?).then_some(())
    });
    let id = second.deploy("plant/pump-2", "pump");
    second.reaches(&id, Some("plant/pump-2"), "installed");
    // What the fleet manager of before had deployed is not wanted by this one.
    support::eventually("what was left is taken back", margo_support::PATIENCE, || {
        (devices[0].writes() == [(10, 42), (10, 1_010)]).then_some(())
    });
    // It hears nothing of that: it never knew that deployment.
    second.asked(3);
    assert_eq!(second.statuses(&old), []);
    second.found_nothing_wrong();
    stop(gateway);
}
