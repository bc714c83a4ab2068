//! **One day in the life of a plant**: twelve devices of three kinds behind a gateway, and a fleet manager that sees them as
//! Margo devices. They are found, approved, configured, commanded, replaced, handed over to a second gateway and decommissioned;
//! the fleet manager is away for an hour, certificates are exchanged, and the gateway is killed at random moments. At the
//! end the fleet manager, the broker and the gateway tell the same story.
//!
//! `cargo test --all-features --test whole_day -- --nocapture` tells it as it happens. `FIELDGATE_FULL=1` kills 10 times
//! instead of 4, and the hour takes longer; `FIELDGATE_SEED=n` repeats the moments of a run, whose seed is printed first.
#![cfg(feature = "margo")]
#![allow(clippy::unwrap_used, reason = "a test ends with a panic when its surroundings fail")]

mod day_support;
mod support;
mod whole_support;

use std::collections::BTreeSet;
use std::time::Duration;

use day_support::{Day, KINDS, Views, names, serial};
use serde_json::json;
use support::eventually;
use whole_support::margo::PATIENCE;
use whole_support::{Chapter, Kills, said, sized, tell};

/// Requests of a scan that a device sees at the most, with a second one after a kill.
const SCAN: u64 = 8;

/// The chapters, in order.
const CHAPTERS: [Chapter<Day>; 10] = [
    (
        "twelve devices are discovered, eight by files and four by a scan: none is shown to the fleet manager",
        discovered,
    ),
    ("approved kind by kind, they are its devices", approved),
    ("a deployment configures three drives; one is unreachable, and one unknown", deployed),
    ("an update; the fourth drive comes back", updated),
    ("a recipe is written, and its removal takes it back", removed),
    ("an update of a pump fails its health gate and is rolled back", failed),
    ("certificates and anchors are exchanged", rotated),
    ("a pump is replaced, and gets its recipe again", replaced),
    ("a pump is handed over to the other gateway", handed_over),
    ("the fleet manager is away for an hour; a drive is decommissioned", away),
];

fn discovered(day: &mut Day) {
    for name in names().iter().filter(|name| name.starts_with("meter")) {
        day.find(name);
    }
    for name in names() {
        day.south.until_life(day.id(&name), "pending");
    }
    day.sees("the gateways alone", |seen| {
        let gateways = ["north", "south"].iter().all(|gateway| seen.devices.contains_key(*gateway));
        (gateways && seen.devices.len() == 2).then_some(())
    });
    let read = |name: &String| day.floor.requests(name) > if day.id(name) == name { 0 } else { SCAN };
    assert!(!names().iter().any(read), "nobody approved them");
}

fn approved(day: &mut Day) {
    for kind in KINDS.iter().filter(|kind| kind.has_files) {
        let name = kind.name;
        let request = json!({"correlationId": format!("approve-{name}"), "action": "approve", "device": format!("{name}-*"),
            "reason": "commissioning"});
        day.south.done("management/request", &request);
    }
    for name in names() {
        let id = day.id(&name);
        let kind = KINDS.iter().find(|kind| name.starts_with(kind.name)).unwrap();
        if !kind.has_files {
            let request =
                json!({"correlationId": format!("approve-{name}"), "action": "approve", "profile": kind.name});
            day.south.done(&format!("devices/{id}/onboarding/request"), &request);
        }
        day.south.until_life(id, "active");
        day.sees(&format!("{name} as it is"), |seen| {
            let properties = &seen.devices.get(&format!("south/{id}"))?.capabilities["properties"];
            let plate = ["vendor", "modelNumber", "serialNumber"].map(|field| said(properties, field));
            (plate == [kind.vendor, kind.model, &serial(&name)]).then_some(())
        });
    }
}

fn deployed(day: &mut Day) {
    day.floor.set_out("drive-4", true);
    day.until_silent("drive-4");
    day.drives = day.deploy("", "south/*", &[("settings", "drives", "1.0")]);
    day.stranger = day.deploy("", "south/drive-9", &[("settings", "drives", "1.0")]);
    for drive in ["drive-1", "drive-2", "drive-3"] {
        day.ends(&day.drives, drive, "installed", "");
        day.has_rate(drive, "300 ms");
    }
    let unreachable = day.ends(&day.drives, "drive-4", "failed", "102");
    assert_eq!(unreachable.body["status"]["error"]["source"], "south");
    day.ends(&day.stranger, "drive-9", "failed", "101");
    let others: BTreeSet<_> = day.wfm.with(|seen| {
        let all = seen.latest(&day.drives);
        all.iter().filter_map(|status| status.device.clone()).filter(|device| !device.contains("drive")).collect()
    });
    assert!(others.is_empty(), "the deployment fits drives only: {others:?}");
}

fn updated(day: &mut Day) {
    day.deploy(&day.drives.clone(), "south/*", &[("settings", "drives", "2.0")]);
    for drive in ["drive-1", "drive-2", "drive-3"] {
        day.has_rate(drive, "350 ms");
        day.ends(&day.drives, drive, "installed", "");
    }
    let adopted = |drive: &str| day.ends(&day.drives, drive, "", "").adopted.unwrap();
    assert!(adopted("drive-4") < adopted("drive-1"), "who cannot be reached keeps its version");
    day.floor.set_out("drive-4", false);
    day.ends(&day.drives, "drive-4", "installed", "");
    day.has_rate("drive-4", "350 ms");
    assert_eq!(adopted("drive-4"), adopted("drive-1"));
}

fn removed(day: &mut Day) {
    day.recipe = day.recipe_for("pump-2");
    let gone = day.recipe_for("pump-3");
    assert_eq!((day.floor.setting("pump-3", "setpoint"), day.floor.setting("pump-3", "limit")), (42, 60));
    assert!(day.wfm.remove(&gone));
    day.ends(&gone, "pump-3", "removed", "");
    assert_eq!((day.floor.setting("pump-3", "setpoint"), day.floor.setting("pump-3", "limit")), (0, 0));
    assert_eq!(day.floor.setting("pump-2", "setpoint"), 42, "the other one stays");
}

fn failed(day: &mut Day) {
    day.pump = day.deploy("", "south/pump-1", &[("settings", "pump", "1.0")]);
    day.ends(&day.pump, "pump-1", "installed", "");
    day.has_rate("pump-1", "400 ms");
    day.deploy(&day.pump.clone(), "south/pump-1", &[("settings", "pump", "2.0-bad")]);
    let ended = day.ends(&day.pump, "pump-1", "failed", "health-gate");
    let why = ended.body["status"]["error"]["message"].as_str().unwrap();
    assert!(why.contains("level") && why.contains("in force again"), "{why}");
    day.has_rate("pump-1", "400 ms");
}

fn rotated(day: &mut Day) {
    let shown = |day: &Day| {
        day.wfm.with(|seen| seen.clients.values().map(|client| client.certificate.clone()).collect::<Vec<_>>())
    };
    let before = shown(day);
    day.authority.add_root().unwrap();
    day.trust();
    day.sign();
    day.sees("new certificates of both gateways", |seen| {
        let all: Vec<_> = seen.clients.values().map(|client| &client.certificate).collect();
        (all.len() == before.len() && all.iter().zip(&before).all(|(now, before)| *now != before)).then_some(())
    });
    day.authority.retire_old_roots();
    day.trust();
    day.wfm.serve(fieldgate_simulators::margo::Flaw::None).unwrap();
    day.runtime.block_on(day.wfm.disconnect()).unwrap();
    let polls = day.wfm.with(|seen| seen.clients.values().map(|client| client.requests).collect::<Vec<_>>());
    day.sees("requests with the new anchors", |seen| {
        seen.clients.values().zip(&polls).all(|(client, before)| client.requests > before + 1).then_some(())
    });
}

fn replaced(day: &mut Day) {
    let (pump, child) = ("pump-2", "south/pump-2");
    day.floor.set_out(pump, true);
    day.until_silent(pump);
    day.floor.exchange(pump, "S-new");
    day.floor.set_out(pump, false);
    day.south.until_life(pump, "identity-changed");
    let serial_seen = |day: &Day| {
        day.wfm.with(|seen| said(&seen.devices[child].capabilities["properties"], "serialNumber").to_owned())
    };
    assert_eq!(serial_seen(day), serial(pump), "nobody accepted the new hardware yet");
    let request = json!({"correlationId": "replace", "action": "replace", "reason": "bearing worn out"});
    day.south.done("devices/pump-2/onboarding/request", &request);
    day.south.until_life(pump, "active");
    day.sees("the new serial number", |seen| {
        (said(&seen.devices[child].capabilities["properties"], "serialNumber") == "S-new").then_some(())
    });
    let (floor, recipe) = (&day.floor, day.recipe.clone());
    eventually("the recipe in the new hardware", PATIENCE, || (floor.setting(pump, "limit") == 60).then_some(()));
    day.insist(&recipe, pump);
    assert_eq!((day.floor.setting(pump, "setpoint"), day.floor.setting(pump, "limit")), (42, 60));
}

fn handed_over(day: &mut Day) {
    day.south.hands_over("pump-4", &day.north);
    day.sees("the pump behind the other gateway, and there alone", |seen| {
        let (here, there) = (seen.devices.contains_key("south/pump-4"), seen.devices.contains_key("north/pump-4"));
        (there && !here).then_some(())
    });
}

fn away(day: &mut Day) {
    let hour = sized(Duration::from_secs(6), Duration::from_secs(20));
    let began = std::time::Instant::now();
    day.runtime.block_on(day.wfm.set_down(fieldgate_simulators::margo::Down::Refused)).unwrap();
    let retire = json!({"correlationId": "retire", "action": "decommission", "reason": "scrapped"});
    day.south.done("devices/drive-3/onboarding/request", &retire);
    day.south.until_life("drive-3", "decommissioned");
    day.deploy(&day.drives.clone(), "south/*", &[("settings", "drives", "3.0")]);
    day.south.kill();
    std::thread::sleep(hour.saturating_sub(began.elapsed()));
    assert!(day.wfm.with(|seen| seen.devices.contains_key("south/drive-3")), "nobody could tell");
    day.runtime.block_on(day.wfm.set_down(fieldgate_simulators::margo::Down::Up)).unwrap();
    day.sees("that the drive is gone", |seen| (!seen.devices.contains_key("south/drive-3")).then_some(()));
    day.ends(&day.drives, "drive-3", "removed", "");
    for drive in ["drive-1", "drive-2", "drive-4"] {
        day.has_rate(drive, "450 ms");
        day.ends(&day.drives, drive, "installed", "");
    }
}

#[test]
fn of_twelve_devices_two_gateways_and_a_fleet_manager() {
    let seed = Kills::seed();
    let mut kills = Kills::plan(seed, sized(4, 10), CHAPTERS.len());
    eprintln!("day of a plant: FIELDGATE_SEED={seed}");
    let mut day = Day::begin();
    let gates = [day.south.handle()];
    tell("day", &mut day, &CHAPTERS, &gates, &mut kills);
    // Everything that was kept, read again by processes that begin with it.
    day.south.restart();
    day.north.restart();
    Views::of(&day).agree();
    eprintln!("day: {} kills and one in the hour; fleet manager, broker and gateways agree", kills.done());
    day.end();
}
