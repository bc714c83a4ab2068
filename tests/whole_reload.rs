//! A configuration that is changed again and again while devices are read twenty times a second and written to: no value
//! is ever taken for that of another point, and nothing is written to a register that nobody named.
#![allow(clippy::unwrap_used, reason = "a test ends with a panic when its surroundings fail")]

mod support;
mod whole_support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use support::{SOON, publish};
use whole_support::{FakeDevice, Mode, Site, body, sized, stop};

const EAGER: &str = "rate = \"50 ms\"\non_change = false\n";
const DEVICES: usize = 4;

/// Points by name and address; the name tells the address.
fn points(addresses: &[u16]) -> String {
    let point = |address: &u16| {
        format!("[[points]]\nid = \"p{address}\"\ntable = \"holding\"\naddress = {address}\naccess = \"read-write\"\n")
    };
    addresses.iter().map(point).collect()
}

#[test]
fn values_and_writes_keep_to_their_points_through_every_reload() {
    let rounds = sized(Duration::from_secs(40), Duration::from_secs(200)).as_secs();
    let site = Site::new("[limits]\ncommands_per_second = 1000\n");
    let devices: Vec<_> = (0..3).map(|_| FakeDevice::start(Mode::Well)).collect();
    // The same place in the list is another register in each of them; register 3 is in all of them.
    let layouts = [points(&[1, 4, 3]), points(&[50, 3, 1]), points(&[3, 60, 1, 2])];
    let telling = ["p4", "p50", "p60"];
    // The first two have a connection of their own, the others share one.
    let device = |index: usize, points: &str| {
        let port = devices[index.min(2)].port();
        format!("{EAGER}\n[modbus]\nlink = \"tcp://127.0.0.1:{port}\"\nunit = {index}\n{points}")
    };
    let configure = |layout: usize| {
        for index in 0..DEVICES {
            site.write(&format!("devices/plc-{index}.toml"), &device(index, &layouts[layout]));
        }
    };
    // Keeps the shared link in use, whatever happens to the others.
    site.write("devices/steady.toml", &device(3, &points(&[7])).replace("unit = 3", "unit = 9"));
    configure(0);
    let gateway = site.start();
    let values = site.subscribe("devices/+/telemetry");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for index in [0, 2, 3] {
            let (done, port) = (&done, site.port());
            scope.spawn(move || {
                let topic = format!("fieldgate/v1/plant/devices/plc-{index}/command");
                for id in 0.. {
                    if done.load(Ordering::SeqCst) {
                        return;
                    }
                    // What this device answers when it is read back.
                    let command =
                        json!({"correlationId": format!("w-{id}"), "writes": [{"point": "p3", "value": 1_003}]});
                    publish(port, &topic, &command.to_string(), &[]).expect("published");
                }
            });
        }
        // Stops the writers also when this fails.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::SeqCst);
            }
        }
        let _stop = Stop(&done);
        for round in 1..=rounds as usize {
            let layout = round % layouts.len();
            let seen = values.messages().len();
            configure(layout);
            gateway.signal(Signal::HUP);
            let all = support::eventually("the new points of all devices", SOON, || {
                let fresh = values.messages().split_off(seen);
                let new = |device: &str| {
                    fresh.iter().any(|message| {
                        let told = body(&message.payload);
                        let last =
                            told["points"].as_array().and_then(|all| all.iter().find(|p| p["name"] == telling[layout]));
                        told["device"] == device && last.is_some()
                    })
                };
                (0..DEVICES).all(|index| new(&format!("plc-{index}"))).then_some(fresh)
            });
            for message in all {
                let told = body(&message.payload);
                for point in told["points"].as_array().expect("points") {
                    let address: u64 = point["name"].as_str().and_then(|n| n[1..].parse().ok()).expect("an address");
                    if let Some(value) = point["value"].as_u64() {
                        assert_eq!(value, address + 1_000, "round {round}: a value of another point: {told}");
                    }
                }
            }
        }
    });
    let writes: Vec<_> = devices.iter().flat_map(FakeDevice::writes).collect();
    assert_eq!(devices[2].connections(), 1, "a link that stayed in use was made anew");
    assert!(writes.len() > 20, "hardly anything was written: {}", writes.len());
    assert!(writes.iter().all(|write| *write == (3, 1_003)), "written to a register that nobody named: {writes:?}");
    stop(gateway);
}
