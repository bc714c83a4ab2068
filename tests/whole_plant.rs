//! A plant of 20 devices × 100 registers at 1 s, served by pymodbus and by pyModbusTCP, read by the real program: every
//! value at a subscriber of the embedded broker is the one of the read that it came from, the requests are those that
//! `explain` announced, and a device that dies harms nobody but itself. The same path over a serial line and over RTU
//! in TCP with fewer points.
//!
//! Measuring takes 12 s, with `FIELDGATE_FULL=1` a minute.
#![allow(clippy::unwrap_used, reason = "a test ends with a panic when its surroundings fail")]

mod support;
mod whole_support;

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{Child, PtyPair, PythonServer, SOON, eventually};
use whole_support::{FakeDevice, Mode, Site, body, errors, journal, now_ms, sized, stop, text};

const DEVICES: usize = 20;
const DEAD: usize = 7;

/// Everything that is read is published; a device that died is looked for again soon.
const DEFAULTS: &str =
    "[defaults]\non_change = false\n\n[defaults.modbus.breaker]\npause = \"1 s\"\nmax_pause = \"2 s\"\n";

#[test]
fn two_thousand_points_of_pymodbus_are_right_and_on_schedule() {
    the_plant_is_read_as_planned("plant_pymodbus.py");
}

#[test]
fn two_thousand_points_of_pymodbustcp_are_right_and_on_schedule() {
    the_plant_is_read_as_planned("plant_pymodbustcp.py");
}

fn the_plant_is_read_as_planned(script: &str) {
    let measured = sized(Duration::from_secs(12), Duration::from_secs(60));
    let site = Site::new(DEFAULTS);
    let log = site.path().join("journal.csv");
    let (folder, log_text) = (site.text(), log.display().to_string());
    let mut plant = PythonServer::start(script, &["--config", &folder, "--journal", &log_text]);

    let planned = requests_per_second(&site);
    assert!((planned - DEVICES as f64).abs() < 0.01, "100 registers fit in one request, but {planned}/s are planned");
    let gateway = site.start();
    let mut recorder = site.recorder(&[]);
    eventually("every device in the record", SOON, || {
        let spans = recorder.ask("report")["spans"].as_object().map_or(0, serde_json::Map::len);
        (spans == DEVICES).then_some(())
    });

    // Everybody lives.
    let began = now_ms();
    std::thread::sleep(measured);
    plant.ask("stats");
    let reads = journal(&log);
    let kept = schedule_kept(&reads, began, now_ms(), |_| true);
    assert!((0.99..=1.01).contains(&kept), "{kept} of the plan's {planned} requests/s were made");
    let report = recorder.ask_within("report", SOON);
    assert_eq!(report["points"], DEVICES * 100, "{report}");
    assert_spotless(&report);

    // One dies.
    let bad = site.subscribe(&format!("devices/plc-{DEAD:02}/points/r099"));
    assert_eq!(plant.ask(&format!("kill {DEAD}"))["ok"], true);
    let died = Instant::now();
    let (died_ms, told) =
        (now_ms(), bad.wait_for("a bad value", SOON, |message| body(&message.payload)["quality"] == "BAD"));
    assert!(died.elapsed() < Duration::from_secs(4), "its values stood for good for {:?}", died.elapsed());
    let told = body(&told.payload);
    assert!(told["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "no reason: {told}");
    std::thread::sleep(measured);
    plant.ask("stats");
    let dead = format!("plc-{DEAD:02}");
    let kept = schedule_kept(&journal(&log), died_ms, now_ms(), |device| device != dead);
    assert!((0.99..=1.01).contains(&kept), "with one device dead the others kept {kept} of their schedule");
    let off = site.json(&["devices", "--json"]);
    let line = off.as_array().and_then(|all| all.iter().find(|line| line["device"] == dead.as_str())).expect("listed");
    assert!(line["state"] == "off-scan" || line["state"] == "offline", "{line}");
    assert!(line["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{line}");

    // And comes back.
    let before = bad.messages().len();
    assert_eq!(plant.ask(&format!("revive {DEAD}"))["ok"], true);
    // A connection that is refused is tried again at the latest after 30 s.
    eventually("a good value again", SOON * 2, || {
        bad.messages()[before..].iter().any(|message| body(&message.payload)["quality"] == "GOOD").then_some(())
    });
    let report = recorder.ask_within("report", SOON);
    assert_spotless_but(&report, &dead);
    stop(gateway);
}

/// The sum of what `explain` says of all links.
fn requests_per_second(site: &Site) -> f64 {
    let output = site.run(&["explain"]);
    assert!(output.status.success(), "{}", errors(&output));
    let figure = |line: &str| line.split(", ").find_map(|part| part.strip_suffix(" requests/s")?.parse::<f64>().ok());
    text(&output).lines().filter_map(figure).sum()
}

/// Reads made in a time, of those due by a schedule of one a second. Whole intervals only, so that the ends do not count:
/// neither by a read too few, nor by the first or last one being late.
fn schedule_kept(reads: &[whole_support::Read], from: i64, to: i64, wanted: impl Fn(&str) -> bool) -> f64 {
    let (mut made, mut due, mut intervals) = (0.0, 0.0, Vec::new());
    for device in (0..DEVICES).map(|index| format!("plc-{index:02}")).filter(|device| wanted(device)) {
        let times: Vec<i64> = reads
            .iter()
            .filter(|read| read.device == device && (from..to).contains(&read.at_ms))
            .map(|r| r.at_ms)
            .collect();
        let (Some(first), Some(last)) = (times.first(), times.last()) else { return 0.0 };
        // A device that stopped being read would look good up to then.
        assert!(to - last < 2_500, "{device} was not read for {} ms", to - last);
        made += times.len() as f64 - 1.0;
        due += ((last - first) as f64 / 1_000.0).round();
        intervals.extend(times.windows(2).map(|pair| pair[1] - pair[0]));
    }
    intervals.sort_unstable();
    let median = intervals.get(intervals.len() / 2).copied().unwrap_or_default();
    assert!((990..=1_010).contains(&median), "every second is planned, and the median interval is {median} ms");
    made / due
}

fn assert_spotless(report: &Value) {
    let judged = &report["judged"];
    for fault in ["missing", "duplicate", "out_of_order"] {
        assert_eq!(judged[fault], 0, "{report}");
    }
    for fault in ["broken", "repeated_seq"] {
        assert_eq!(report[fault], 0, "{report}");
    }
    assert_eq!(report["quality"]["GOOD"], report["samples"], "{report}");
}

/// The read under way when a device died is counted by the device and reached nobody.
fn assert_spotless_but(report: &Value, dead: &str) {
    let judged = &report["judged"];
    assert!(judged["missing"].as_u64() <= Some(100), "{report}");
    for example in report["examples"].as_array().expect("a list") {
        assert_eq!(example["device"], dead, "{report}");
        assert_eq!(example["missing"], 1, "{report}");
    }
    assert_eq!(judged["duplicate"], 0, "{report}");
    assert_eq!(judged["out_of_order"], 0, "{report}");
}

/// A server of two units with `3 × address + unit` in its holding registers, and the port that it listens on.
fn static_server(arguments: &[&str]) -> (Child, u16) {
    let mut command = Command::new(support::python());
    command.arg("-u").arg(support::root().join("tests/servers/modbus_pymodbus.py")).args(arguments);
    let child = Child::spawn("modbus_pymodbus.py", command);
    let line = child.wait_for("that it listens", SOON * 2, |line| line.starts_with("READY"));
    let port = line.split(' ').nth(1).and_then(|port| port.parse().ok()).expect("a port");
    (child, port)
}

#[test]
fn rtu_on_a_serial_line_is_right_and_on_schedule() {
    let line = PtyPair::open();
    let (_server, _) = static_server(&["rtu", "1,2", "--path", &line.far.display().to_string()]);
    two_units_are_right(&format!("serial://{}?baud=115200&parity=none", line.near.display()));
}

#[test]
fn rtu_over_tcp_is_right_and_on_schedule() {
    let (_server, port) = static_server(&["rtu-tcp", "1,2"]);
    two_units_are_right(&format!("rtu-over-tcp://127.0.0.1:{port}"));
}

/// Two units on one bus, 40 registers each, twice a second.
fn two_units_are_right(link: &str) {
    let site = Site::new(DEFAULTS);
    let rows: String = (0..40).map(|r| format!("r{r:03},holding,{},u16\n", 10 * r)).collect();
    // Registers 300 to 309 do not exist in the server.
    let rows: String = rows.lines().filter(|row| !row.contains(",300,")).map(|row| format!("{row}\n")).collect();
    site.write("points/registers.csv", &format!("id,table,address,type\n{rows}"));
    for unit in [1, 2] {
        let text = format!(
            "rate = \"500 ms\"\npoints = [\"../points/registers.csv\"]\n[modbus]\nlink = \"{link}\"\nunit = {unit}\n"
        );
        site.write(&format!("devices/unit-{unit}.toml"), &text);
    }
    let gateway = site.start();
    let values = site.subscribe("devices/+/telemetry");
    for unit in [1_u64, 2] {
        site.wait_for_state(&format!("unit-{unit}"), "online");
    }
    let began = values.messages().len();
    let measured = sized(Duration::from_secs(6), Duration::from_secs(60));
    std::thread::sleep(measured);
    let messages = values.messages();
    let (mut counts, mut bad) = ([0_u32; 2], 0);
    for message in &messages[began..] {
        let told = body(&message.payload);
        let unit = told["device"].as_str().and_then(|d| d.strip_prefix("unit-")?.parse::<u64>().ok()).expect("a unit");
        counts[unit as usize - 1] += 1;
        let points = told["points"].as_array().expect("points");
        assert_eq!(points.len(), 39, "{told}");
        for point in points.iter().filter(|point| point["quality"] == "GOOD") {
            let register: u64 = point["name"].as_str().and_then(|n| n[1..].parse().ok()).expect("a register");
            assert_eq!(point["value"].as_u64(), Some(30 * register + unit), "{told}");
        }
        // A machine that builds something else may stop the server for longer than a serial line waits.
        if points.iter().any(|point| point["quality"] != "GOOD") {
            bad += 1;
        }
    }
    assert!(bad <= messages.len() / 50, "{bad} of {} batches held bad values", messages.len());
    let due = measured.as_secs_f64() * 2.0;
    for count in counts {
        assert!((f64::from(count) - due).abs() <= 1.5 + due * 0.01, "{count} scans, {due} were due");
    }
    stop(gateway);
}

/// The third unit of the bus is silent. Its neighbours are read as if it had never been configured.
#[test]
fn a_dead_slave_does_not_slow_its_bus_mates() {
    let line = PtyPair::open();
    let (_server, _) = static_server(&["rtu", "1,2,3", "--silent", "3", "--path", &line.far.display().to_string()]);
    // As a user has it who configures nothing: a probe after 5 s, 10 s, 20 s …
    let site = Site::new("[defaults]\non_change = false\n");
    for unit in 1..=3 {
        let link = format!("serial://{}?baud=115200&parity=none", line.near.display());
        let point = "[[points]]\nid = \"p\"\ntable = \"holding\"\naddress = 7\n";
        let text = format!("rate = \"500 ms\"\n[modbus]\nlink = \"{link}\"\nunit = {unit}\n{point}");
        site.write(&format!("devices/unit-{unit}.toml"), &text);
    }
    let gateway = site.start();
    let dead = site.wait_for_state("unit-3", "off-scan");
    assert!(!dead["reason"].as_str().unwrap_or_default().is_empty(), "{dead}");
    site.wait_for_state("unit-1", "online");
    let scans = |unit: u64| {
        let values = site.subscribe(&format!("devices/unit-{unit}/telemetry"));
        move || values.messages().into_iter().map(|message| body(&message.payload)).collect::<Vec<_>>()
    };
    let neighbours = [scans(1), scans(2)];
    let before = neighbours.each_ref().map(|scans| scans().len());
    let measured = sized(Duration::from_secs(12), Duration::from_secs(60));
    std::thread::sleep(measured);
    for ((scans, before), unit) in neighbours.iter().zip(before).zip([1_u64, 2]) {
        let all = scans();
        let (count, due) = ((all.len() - before) as f64, measured.as_secs_f64() * 2.0);
        assert!((count - due).abs() <= 1.5 + due * 0.01, "unit {unit}: {count} scans, {due} were due");
        let (good, bad): (Vec<_>, Vec<_>) = all.iter().partition(|told| told["points"][0]["quality"] == "GOOD");
        let wrong = good.iter().find(|told| told["points"][0]["value"].as_u64() != Some(21 + unit));
        assert!(wrong.is_none(), "unit {unit}: {wrong:?}");
        assert!(bad.len() <= all.len() / 50, "unit {unit} was bad: {bad:?}");
    }
    stop(gateway);
}

/// A thousand points of 250 octets are more than one record of the log takes.
#[test]
fn large_values_arrive_whole() {
    const POINTS: usize = 1_000;
    let device = FakeDevice::start(Mode::Well);
    let site = Site::new(DEFAULTS);
    let rows: String = (0..POINTS).map(|n| format!("blob-{n},holding,100,bytes,250\n")).collect();
    site.write("points/blobs.csv", &format!("id,table,address,type,length\n{rows}"));
    site.device("large", device.port(), "rate = \"2 s\"\npoints = [\"../points/blobs.csv\"]\n", "", "");
    let gateway = site.start();
    let values = site.subscribe("devices/large/telemetry");
    let expected: String = (1_100..1_225).map(|word| format!("{word:04x}")).collect();
    let mut seen = std::collections::HashMap::new();
    eventually("every point twice", SOON * 2, || {
        seen.clear();
        for message in values.messages() {
            for point in body(&message.payload)["points"].as_array().expect("points") {
                assert_eq!((&point["quality"], point["value"].as_str()), (&"GOOD".into(), Some(expected.as_str())));
                *seen.entry(point["name"].as_str().expect("a name").to_owned()).or_insert(0) += 1;
            }
        }
        (seen.len() == POINTS && seen.values().all(|times| *times >= 2)).then_some(())
    });
    stop(gateway);
}
