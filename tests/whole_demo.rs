//! The whole path once, from outside: the simulated pump station with its time stopped, the gateway as a process with the
//! demo's configuration, and mosquitto's clients. Every point must arrive with the value that stands in the device, and a
//! command must act in the plant.
#![allow(clippy::unwrap_used, reason = "a test ends with a panic when its surroundings fail")]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use fieldgate_simulators::device::{DeviceSpec, Point};
use fieldgate_simulators::faults::Faults;
use fieldgate_simulators::scenario::Link;
use fieldgate_simulators::{Plant, Scenario, Signal, demo};
use serde_json::Value;
use support::{Child, SOON, Subscriber, free_port, publish, temp_dir, wait_for_port};

/// A plant whose time stands still, and the gateway that reads it.
struct Bench {
    plant: Plant,
    scenario: Scenario,
    port: u16,
    // In the order of their end.
    _gateway: Child,
    _folder: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl Bench {
    fn start() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads");
        let mut scenario = Scenario::pump_station().on_free_ports();
        scenario.runs = false;
        scenario.devices.iter_mut().for_each(|device| device.faults = Faults::default());
        let plant = runtime.block_on(Plant::start(scenario.clone())).expect("the plant starts");
        let (folder, port) = (temp_dir(), free_port());
        write_configuration(folder.path(), &plant, port);
        let mut command = Command::new(env!("CARGO_BIN_EXE_fieldgate"));
        command.arg("--config").arg(folder.path()).arg("run");
        let gateway = Child::spawn("fieldgate", command);
        wait_for_port(port, SOON);
        Self { plant, scenario, port, _gateway: gateway, _folder: folder, _runtime: runtime }
    }

    /// The value that stands in the device's memory, by the simulators' own codec.
    fn expected(&self, device: &DeviceSpec, point: &Point) -> Signal {
        let words = self.plant.peek(&device.name, point.table, point.address, point.format.kind.items());
        point.format.decode(&words.expect("the address is there")).expect("the plant shows legal values")
    }
}

/// The demo's files with the ports of this run.
fn write_configuration(folder: &Path, plant: &Plant, port: u16) {
    let demo_ports: BTreeMap<String, String> = Scenario::pump_station()
        .devices
        .iter()
        .zip(plant.endpoints())
        .map(|(device, bound)| {
            let of = |link: &Link| match link {
                Link::Tcp(address) | Link::RtuOverTcp { bind: address, .. } => format!("//{address}\""),
                Link::Serial { .. } => panic!("the demo has no serial line"),
            };
            (of(&Scenario::pump_station().listeners[device.listener].link), of(&bound.link))
        })
        .collect();
    for (name, text) in demo::FILES {
        let mut text = text.replace("127.0.0.1:1883", &format!("127.0.0.1:{port}"));
        for (demo, bound) in &demo_ports {
            text = text.replace(demo, bound);
        }
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().expect("below the folder")).expect("writable");
        std::fs::write(path, text).expect("writable");
    }
}

fn agrees(said: &Value, expected: &Signal) -> bool {
    match expected {
        Signal::Bool(on) => said.as_bool().or_else(|| said.as_f64().map(|n| n != 0.0)) == Some(*on),
        Signal::Text(text) => said.as_str() == Some(text),
        number => {
            let said = said.as_f64().or_else(|| said.as_bool().map(|on| f64::from(u8::from(on))));
            let expected = number.as_f64().expect("not text");
            // 32-bit floats are printed with their own shortest digits.
            said.is_some_and(|said| (said - expected).abs() <= expected.abs().max(1.0) * 1e-7)
        }
    }
}

#[test]
fn every_point_of_the_demo_arrives_as_it_stands_in_the_device() {
    let bench = Bench::start();
    let points = Subscriber::start(bench.port, "fieldgate/v1/demo/devices/+/points/+", &[]);
    let mut wrong = Vec::new();
    for device in &bench.scenario.devices {
        for point in &device.points {
            // Written only: never read.
            if point.name == "reset" {
                continue;
            }
            let topic = format!("fieldgate/v1/demo/devices/{}/points/{}", device.name, point.name);
            let message = points.wait_for(&topic, SOON, |message| message.topic == topic);
            let body: Value = serde_json::from_slice(&message.payload).expect("JSON");
            let expected = bench.expected(device, point);
            if body["quality"] != "GOOD" || !agrees(&body["value"], &expected) {
                wrong.push(format!("{} {}: {expected:?}, but {body}", device.name, point.name));
            }
        }
    }
    assert!(wrong.is_empty(), "wrong at the subscriber:\n{}", wrong.join("\n"));
}

#[test]
fn a_command_acts_in_the_plant_and_is_answered_once() {
    let bench = Bench::start();
    let root = "fieldgate/v1/demo/devices/station";
    let results = Subscriber::start(bench.port, &format!("{root}/command/result"), &[]);
    let values = Subscriber::start(bench.port, &format!("{root}/points/start-level"), &[]);
    values.wait_for("the first value", SOON, |_| true);
    let command = |id: &str, value: f64| {
        let body = serde_json::json!({"correlationId": id, "writes": [{"point": "start-level", "value": value}]});
        publish(bench.port, &format!("{root}/command"), &body.to_string(), &[]).expect("published");
        let answers = |body: &[u8]| {
            let body: Option<Value> = serde_json::from_slice(body).ok();
            body.filter(|body| body["correlationId"] == id)
        };
        let result = results.wait_for("the answer", SOON, |message| answers(&message.payload).is_some());
        answers(&result.payload).expect("just seen")
    };
    let done = command("whole-1", 2.75);
    assert_eq!(done["outcome"], "DONE", "{done}");
    assert_eq!(done["writes"][0]["readBack"], 2.75, "{done}");
    assert_eq!(bench.plant.signal("control.start_level"), Some(Signal::Number(2.75)));
    values.wait_for("the new value", SOON, |message| {
        serde_json::from_slice::<Value>(&message.payload).is_ok_and(|body| body["value"] == 2.75)
    });
    let refused = command("whole-2", 9.0);
    assert_eq!(refused["outcome"], "REJECTED", "{refused}");
    assert_eq!(bench.plant.signal("control.start_level"), Some(Signal::Number(2.75)));
}

/// What a page on loopback answers, as JSON.
#[cfg(all(feature = "demo", feature = "margo"))]
fn fetch(address: &str, path: &str) -> Option<Value> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nhost: {address}\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
}

/// The command of the README with everything that it can show; it has the plant's usual ports.
#[cfg(all(feature = "demo", feature = "margo"))]
#[test]
fn the_demo_shows_values_and_a_fleet_manager_that_sees_and_reaches_the_devices() {
    let (folder, port) = (temp_dir(), free_port());
    let mut command = Command::new(env!("CARGO_BIN_EXE_fieldgate"));
    command.arg("demo").arg("--margo").arg("--directory").arg(folder.path()).arg("--port").arg(port.to_string());
    let mut demo = Child::spawn("fieldgate demo", command);
    let line = demo.wait_for("the page's address", SOON, |line| line.starts_with("The fleet manager sees"));
    let page = line.split("http://").nth(1).and_then(|rest| rest.split('/').next()).expect("an address").to_owned();
    // Some devices of the plant are slow, or out of service at times.
    let unread = |line: &str| line.split_once("points in all (")?.1.split(' ').next()?.parse::<usize>().ok();
    demo.wait_for("nearly every point read", SOON, |line| unread(line).is_some_and(|unread| unread < 30));
    let points = Subscriber::start(port, "fieldgate/v1/demo/devices/+/points/#", &[]);
    points.wait_for("a value", SOON, |_| true);

    let state = |what: &str, look: &dyn Fn(&Value) -> bool| {
        support::eventually(what, SOON * 2, || fetch(&page, "/api/state").filter(look))
    };
    state("the gateway and its eight devices", &|state| {
        state["records"]["devices"].as_object().is_some_and(|all| all.len() == 9)
    });
    let ended = |state: &Value, wanted: &str| {
        let all = state["latest"].as_object().into_iter().flatten();
        all.filter(|(_, told)| told[0]["body"]["status"]["state"] == wanted).count()
    };
    state("two deployments in force, and one that cannot be", &|state| {
        (ended(state, "installed"), ended(state, "failed")) == (2, 1)
    });
    demo.signal(rustix::process::Signal::INT);
    assert!(demo.wait(SOON).success(), "{:?}", demo.lines().iter().rev().take(20).collect::<Vec<_>>());
}
