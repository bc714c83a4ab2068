//! Device management on the real program: approval over MQTT and at the command line, a configuration that is taken back by
//! itself, roles, critical points, transfer between two gateways, decommissioning, and kills in between.
#![allow(clippy::unwrap_used, reason = "a test ends with a panic when its surroundings fail")]

mod support;
mod whole_support;

use std::io::Write;
use std::process::{Command, Stdio};

use rustix::process::Signal;
use serde_json::{Value, json};
use support::{Child, SOON, Subscriber, eventually, publish};
use whole_support::{FakeDevice, Mode, Site, body, errors, stop, text};

const POINTS: &str = r#"
[[points]]
id = "level"
table = "holding"
address = 10

[[points]]
id = "setpoint"
table = "holding"
address = 20
access = "read-write"
critical = true

[[points]]
id = "speed"
table = "holding"
address = 21
access = "read-write"
interlock = "level >= 5000"
"#;

const ASK: &str =
    "[management]\napprove_declared = false\n[[management.role]]\nidentity = \"mqtt:*\"\nrole = \"engineer\"\n";

fn site(more: &str, device: &FakeDevice) -> Site {
    let site = Site::new(more);
    site.device("pump", device.port(), "tier = 2\nrate = \"100 ms\"\n", "identify = false", POINTS);
    site
}

fn topic(rest: &str) -> String {
    format!("fieldgate/v1/plant/{rest}")
}

/// The last message of a retained topic that fits.
fn shown(subscriber: &Subscriber, fits: impl Fn(&Value) -> bool) -> Value {
    eventually("the topic to show it", SOON * 2, || {
        let all = subscriber.messages();
        all.iter().rev().filter(|m| !m.payload.is_empty()).map(|m| body(&m.payload)).find(|b| fits(b))
    })
}

fn ask(site: &Site, rest: &str, request: &Value) -> Value {
    let path = topic(rest);
    let results = match rest.rsplit_once('/') {
        Some((head, _)) => format!("{}/result", topic(head)),
        None => panic!("{rest}"),
    };
    let results = Subscriber::start(site.port(), &results, &[]);
    publish(site.port(), &path, &request.to_string(), &[]).expect("published");
    let id = request["correlationId"].as_str().unwrap().to_owned();
    shown(&results, |b| b["correlationId"] == id.as_str())
}

fn audit(site: &Site, device: &str) -> Vec<(String, String, String)> {
    let all = site.json(&["audit", "--device", device, "--json", "--last", "10000"]);
    let text = |e: &Value, key: &str| e[key].as_str().unwrap_or_default().to_owned();
    all.as_array().unwrap().iter().map(|e| (text(e, "action"), text(e, "outcome"), text(e, "actor"))).collect()
}

fn life(site: &Site, device: &str, state: &str) {
    eventually(&format!("{device} to be {state}"), SOON * 2, || {
        let all = site.json(&["devices", "--json"]);
        all.as_array()?.iter().any(|d| d["device"] == device && d["life"] == state).then_some(())
    });
}

fn kill(gateway: Child) {
    gateway.signal(Signal::KILL);
    let mut gateway = gateway;
    gateway.wait(SOON);
}

#[test]
fn nothing_is_read_before_somebody_approves_over_mqtt_and_a_kill_changes_nothing() {
    let device = FakeDevice::start(Mode::Well);
    let site = site(ASK, &device);
    let gateway = site.start();
    life(&site, "pump", "pending");
    assert_eq!(device.connections(), 0, "nobody approved it");
    kill(gateway);
    let gateway = site.start();
    life(&site, "pump", "pending");
    assert_eq!(device.connections(), 0);
    let onboarding = site.subscribe("devices/pump/onboarding");
    let request = json!({"correlationId": "a1", "action": "approve", "reason": "commissioning"});
    let answer = ask(&site, "devices/pump/onboarding/request", &request);
    assert_eq!(answer["outcome"], "DONE", "{answer}");
    shown(&onboarding, |b| b["state"] == "active" && b["approvedBy"] == "mqtt:local:anonymous");
    site.wait_for_state("pump", "online");
    // The same request again is answered again and done once.
    let again = ask(&site, "devices/pump/onboarding/request", &request);
    assert_eq!(again["outcome"], "DONE");
    kill(gateway);
    let gateway = site.start();
    site.wait_for_state("pump", "online");
    let approvals = audit(&site, "pump").into_iter().filter(|(action, ..)| action == "approve").count();
    assert_eq!(approvals, 1, "{:?}", audit(&site, "pump"));
    stop(gateway);
}

#[test]
fn the_command_line_takes_a_device_out_of_service_back_and_to_its_end() {
    let device = FakeDevice::start(Mode::Well);
    let site = site("", &device);
    let gateway = site.start();
    site.wait_for_state("pump", "online");
    assert!(site.run(&["onboard", "suspend", "pump", "--reason", "repair"]).status.success());
    life(&site, "pump", "suspended");
    let refused = site.run(&["command", "pump", "speed=7"]);
    assert!(!refused.status.success() && errors(&refused).contains("not-in-service"), "{}", errors(&refused));
    assert!(site.run(&["onboard", "resume", "pump"]).status.success());
    site.wait_for_state("pump", "online");
    let asked = site.run(&["onboard", "decommission", "pump"]);
    assert!(errors(&asked).contains("--yes"), "what cannot be undone asks first: {}", errors(&asked));
    assert!(site.run(&["onboard", "decommission", "pump", "--yes"]).status.success());
    life(&site, "pump", "decommissioned");
    let seen = device.requests();
    kill(gateway);
    let gateway = site.start();
    life(&site, "pump", "decommissioned");
    assert!(device.requests() <= seen + 8, "it is not polled any more");
    let capabilities = site.subscribe("devices/pump/capabilities");
    let log = audit(&site, "pump");
    assert!(log.iter().any(|(action, ..)| action == "certificate-of-erasure"), "{log:?}");
    assert_eq!(log.iter().filter(|(action, ..)| action == "decommission").count(), 1);
    drop(capabilities);
    stop(gateway);
}

#[test]
fn a_configuration_is_proven_or_rolled_back_by_itself_on_the_real_drivers() {
    let device = FakeDevice::start(Mode::Well);
    let site = site("", &device);
    let gateway = site.start();
    site.wait_for_state("pump", "online");
    let reported = site.subscribe("devices/pump/config/reported");
    site.write("good.json", r#"{"rate": "200 ms", "points": {"level": {"expect": {"min": 0, "max": 5000}}}}"#);
    let file = site.path().join("good.json").display().to_string();
    let set = site.run(&["config", "set", "pump", &file, "--prove-within", "10 s"]);
    assert!(set.status.success(), "{}", errors(&set));
    shown(&reported, |b| b["version"] == "1" && b["result"] == "applied");
    // Level is 1010: this cannot be proven.
    site.write("bad.json", r#"{"points": {"level": {"expect": {"min": 2000}}}}"#);
    let file = site.path().join("bad.json").display().to_string();
    assert!(site.run(&["config", "set", "pump", &file, "--prove-within", "2 s"]).status.success());
    let back = shown(&reported, |b| b["desiredVersion"] == "2" && b["state"] == "settled");
    assert_eq!((back["version"].as_str(), back["result"].as_str()), (Some("1"), Some("rolled-back")), "{back}");
    assert!(back["errors"][0]["message"].as_str().unwrap().contains("level"), "{back}");
    // Killed while a version is in work, it goes on and ends the same way.
    assert!(site.run(&["config", "set", "pump", &file, "--prove-within", "3 s"]).status.success());
    kill(gateway);
    let gateway = site.start();
    let reported = site.subscribe("devices/pump/config/reported");
    shown(&reported, |b| b["desiredVersion"] == "3" && b["result"] == "rolled-back" && b["state"] == "settled");
    site.write("wrong.json", r#"{"rate": "1 ms", "points": {"nowhere": {}}}"#);
    let file = site.path().join("wrong.json").display().to_string();
    let refused = site.run(&["config", "set", "pump", &file]);
    let told = errors(&refused);
    assert!(!refused.status.success() && told.contains("/settings/rate") && told.contains("nowhere"), "{told}");
    let shown = site.run(&["config", "show", "pump"]);
    assert!(text(&shown).contains("rolled-back"), "{}", text(&shown));
    stop(gateway);
}

#[test]
fn the_gateway_itself_is_configured_while_it_runs_and_after_a_kill() {
    let device = FakeDevice::start(Mode::Well);
    let site = site("[log]\nlevel = \"warn\"\n", &device);
    // At this level nobody says that it started.
    let start = || {
        let gateway = Child::spawn("fieldgate", site.command(&["run"]));
        eventually("its socket", SOON, || site.run(&["devices"]).status.success().then_some(()));
        site.wait_for_state("pump", "online");
        gateway
    };
    // A client that comes and goes is a line at this level.
    let is_loud = |gateway: &Child| {
        eventually("more lines", SOON, || {
            publish(site.port(), "x", "y", &[]).ok()?;
            gateway.lines().iter().any(|line| line.contains("DEBUG")).then_some(())
        });
    };
    let gateway = start();
    assert!(!gateway.lines().iter().any(|line| line.contains("DEBUG")));
    site.write("loud.json", r#"{"log": {"level": "debug"}}"#);
    site.write("wrong.json", r#"{"store": {"max_size": "1 GiB"}}"#);
    let file = |name: &str| site.path().join(name).display().to_string();
    let set = site.run(&["config", "set", "gateway", &file("loud.json")]);
    assert!(set.status.success(), "{}", errors(&set));
    is_loud(&gateway);
    let in_force = |version: &str| {
        let what = format!("version {version} of the gateway to be in force");
        eventually(&what, SOON, || {
            let shown = site.json(&["config", "show", "gateway", "--json"]);
            (shown["version"] == version && shown["state"] == "settled").then_some(())
        });
    };
    in_force("1");
    let refused = site.run(&["config", "set", "gateway", &file("wrong.json")]);
    let told = errors(&refused);
    assert!(!refused.status.success() && told.contains("/settings/store") && told.contains("fieldgate.toml"), "{told}");
    kill(gateway);
    let gateway = start();
    is_loud(&gateway);
    // Back to the file's level, as a version of its own.
    site.write("quiet.json", "{}");
    let set = site.run(&["config", "set", "gateway", &file("quiet.json")]);
    assert!(set.status.success(), "{}", errors(&set));
    in_force("2");
    stop(gateway);
}

#[test]
fn without_a_role_everything_is_refused_and_audited_and_a_claim_code_makes_the_first_administrator() {
    let device = FakeDevice::start(Mode::Well);
    let site = site("[management]\napprove_declared = true\n", &device);
    let made = site.run(&["claim"]);
    let code = text(&made).lines().next().unwrap().rsplit(' ').next().unwrap().to_owned();
    let gateway = site.start();
    site.wait_for_state("pump", "online");
    let request = json!({"correlationId": "r1", "action": "suspend"});
    assert_eq!(ask(&site, "devices/pump/onboarding/request", &request)["code"], "not-allowed");
    let several = json!({"correlationId": "r2", "action": "decommission", "device": "*"});
    assert_eq!(ask(&site, "management/request", &several)["code"], "not-allowed");
    let desired = json!({"correlationId": "r3", "version": "1", "settings": {"rate": "1 s"}});
    assert_eq!(ask(&site, "devices/pump/config/desired", &desired)["code"], "not-allowed");
    let results = Subscriber::start(site.port(), &topic("devices/pump/command/result"), &[]);
    let command = json!({"correlationId": "r4", "writes": [{"point": "speed", "value": 1}]});
    publish(site.port(), &topic("devices/pump/command"), &command.to_string(), &[]).unwrap();
    shown(&results, |b| b["correlationId"] == "r4" && b["code"] == "not-allowed");
    assert_eq!(device.writes(), []);
    let refused = audit(&site, "pump").into_iter().filter(|(_, outcome, _)| outcome.contains("not-allowed")).count();
    assert!(refused >= 3, "{:?}", audit(&site, "pump"));

    let wrong = json!({"correlationId": "c1", "action": "claim", "token": "0000-0000-0000-0000-0000"});
    assert_eq!(ask(&site, "management/request", &wrong)["code"], "not-allowed");
    let claim = json!({"correlationId": "c2", "action": "claim", "token": code});
    assert_eq!(ask(&site, "management/request", &claim)["outcome"], "DONE");
    let request = json!({"correlationId": "r5", "action": "suspend"});
    assert_eq!(ask(&site, "devices/pump/onboarding/request", &request)["outcome"], "DONE");
    life(&site, "pump", "suspended");
    stop(gateway);
}

#[test]
fn critical_points_take_two_steps_and_interlocks_hold() {
    let device = FakeDevice::start(Mode::Well);
    let site = site("", &device);
    let gateway = site.start();
    site.wait_for_state("pump", "online");
    let results = Subscriber::start(site.port(), &topic("devices/pump/command/result"), &[]);
    let send = |id: &str, point: &str, confirmation: &str| {
        let command =
            json!({"correlationId": id, "confirmation": confirmation, "writes": [{"point": point, "value": 1020}]});
        publish(site.port(), &topic("devices/pump/command"), &command.to_string(), &[]).unwrap();
        shown(&results, |b| b["correlationId"] == id)
    };
    let first = send("k1", "setpoint", "");
    assert_eq!(first["outcome"], "CONFIRMATION_REQUIRED", "{first}");
    assert_eq!(device.writes(), []);
    assert_eq!(send("k2", "setpoint", "0000")["code"], "confirmation-invalid");
    let token = send("k3", "setpoint", "")["confirmation"].as_str().unwrap().to_owned();
    assert_eq!(send("k4", "setpoint", &token)["outcome"], "DONE");
    assert_eq!(device.writes(), [(20, 1020)]);
    // Level is 1010; speed wants at least 5000.
    assert_eq!(send("k5", "speed", "")["code"], "interlocked");
    let done = site.run(&["command", "pump", "setpoint=1020", "--yes"]);
    assert!(done.status.success(), "{}", errors(&done));
    assert_eq!(device.writes().len(), 2);
    stop(gateway);
}

#[test]
fn a_device_is_handed_over_and_no_two_gateways_own_it() {
    let device = FakeDevice::start(Mode::Well);
    let (south, north) = (Site::new(""), Site::new(""));
    let key = |site: &Site| text(&site.run(&["export", "--public-key"])).trim().to_owned();
    let main = |site: &Site, id: &str, partner: &str, key: &str, declared: bool| {
        let text = format!(
            "[gateway]\nid = \"{id}\"\n[[broker.listener]]\naddress = \"127.0.0.1:{}\"\n[management]\napprove_declared = {declared}\n[management.partners]\n{partner} = \"{key}\"\n",
            site.port()
        );
        site.write("fieldgate.toml", &text);
    };
    let (south_key, north_key) = (key(&south), key(&north));
    main(&south, "south", "north", &north_key, true);
    main(&north, "north", "south", &south_key, false);
    for site in [&south, &north] {
        site.device("pump", device.port(), "tier = 2\nrate = \"100 ms\"\n", "identify = false", POINTS);
    }
    let (first, second) = (south.start(), north.start());
    south.wait_for_state("pump", "online");
    life(&north, "pump", "pending");
    let file = |name: &str| south.path().join(name).display().to_string();
    let done = |site: &Site, arguments: &[&str]| {
        let output = site.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", errors(&output));
    };
    done(&south, &["export", "pump", "--to", "north", "--output", &file("offer")]);
    done(&north, &["import", &file("offer"), "--output", &file("receipt")]);
    life(&north, "pump", "receiving");
    life(&south, "pump", "transferring");
    // Killed in the middle, on both sides: the documents are still good.
    kill(first);
    kill(second);
    let (first, second) = (south.start(), north.start());
    south.wait_for_state("pump", "online");
    done(&south, &["import", &file("receipt"), "--output", &file("release")]);
    life(&south, "pump", "transferred");
    done(&north, &["import", &file("release")]);
    north.wait_for_state("pump", "online");
    life(&north, "pump", "active");
    // The same documents again change nothing.
    done(&north, &["import", &file("release")]);
    done(&south, &["import", &file("receipt")]);
    life(&south, "pump", "transferred");
    stop(first);
    stop(second);
}

#[test]
fn bad_requests_by_the_thousand_change_nothing() {
    let device = FakeDevice::start(Mode::Well);
    let site = site(ASK, &device);
    let gateway = site.start();
    life(&site, "pump", "pending");
    let before = memory(&site);
    let count: usize = if std::env::var("FIELDGATE_FULL").is_ok_and(|v| v == "1") { 10_000 } else { 1_000 };
    let line = |n: usize| match n % 4 {
        0 => "{".to_owned(),
        1 => format!("{{\"correlationId\":\"{n}\",\"action\":\"explode\",\"device\":\"*\"}}"),
        2 => "{\"correlationId\":\"same\",\"action\":\"resume\"}".to_owned(),
        _ => "x".repeat(2_000),
    };
    let lines: String = (0..count / 4).map(|n| line(n) + "\n").collect();
    let topics = [
        "devices/pump/onboarding/request",
        "management/request",
        "devices/pump/config/desired",
        "devices/nobody/onboarding/request",
        "devices/pump/firmware/desired",
        "devices/pump/firmware/request",
        "firmware/request",
    ];
    for rest in topics {
        flood(site.port(), &topic(rest), &lines);
    }
    publish(site.port(), &topic("management/request"), &"x".repeat(100_000), &[]).expect("published");
    // While the flood is worked off, more of it is told to come again later.
    let mut n = 0;
    let answer = eventually("the end of the flood", SOON * 3, || {
        n += 1;
        let request = json!({"correlationId": format!("last-{n}"), "action": "suspend"});
        let answer = ask(&site, "devices/pump/onboarding/request", &request);
        (answer["code"] != "busy").then_some(answer)
    });
    assert_eq!(answer["code"], "not-possible", "{answer}");
    life(&site, "pump", "pending");
    let after = memory(&site);
    assert!(after < before + 64_000_000, "{before} bytes before, {after} after");
    assert!(audit(&site, "pump").len() < 200, "refusals are written down, but not all of them");
    stop(gateway);
}

/// Every line as a message.
fn flood(port: u16, topic: &str, lines: &str) {
    let mut command = Command::new(support::program("mosquitto_pub"));
    command.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-q", "1", "-l", "-t", topic]);
    let mut client = command.stdin(Stdio::piped()).spawn().expect("it starts");
    client.stdin.take().expect("piped").write_all(lines.as_bytes()).expect("it reads");
    assert!(client.wait().expect("it ends").success());
}

fn memory(site: &Site) -> i64 {
    let health = site.subscribe("health");
    let health = shown(&health, |_| true);
    health["memoryBytes"].as_str().and_then(|n| n.parse().ok()).unwrap_or_default()
}

#[test]
fn a_device_that_a_scan_finds_runs_by_its_profile_without_a_file() {
    let device = FakeDevice::start(Mode::Well);
    let site = Site::new("");
    site.write("profiles/meter.toml", &format!("tier = 2\nrate = \"100 ms\"\n{POINTS}"));
    let gateway = site.start();
    site.done(&["onboard", "scan", &format!("127.0.0.1/32 port {} units 1-1", device.port())]);
    let id = eventually("the device to be found", SOON, || {
        let waiting = site.json(&["onboard", "list", "--json"]);
        Some(waiting.as_array()?.iter().find(|d| d["state"] == "pending")?["device"].as_str()?.to_owned())
    });
    let unknown = site.run(&["approve", &id, "--profile", "nothing"]);
    assert!(errors(&unknown).contains("no profile"), "{}", errors(&unknown));
    let telemetry = site.subscribe(&format!("devices/{id}/telemetry"));
    site.done(&["approve", &id, "--profile", "meter"]);
    site.wait_for_state(&id, "online");
    telemetry.wait_for("a value", SOON, |m| body(&m.payload)["points"].as_array().is_some_and(|p| !p.is_empty()));
    // It is configured and commanded as any other, also by the next process.
    site.write("wish.json", r#"{"rate": "200 ms"}"#);
    site.done(&["config", "set", &id, &site.file("wish.json"), "--prove-within", "10 s"]);
    let settled = || {
        eventually("its configuration", SOON, || {
            let shown = site.json(&["config", "show", &id, "--json"]);
            (shown["version"] == "1" && shown["state"] == "settled").then_some(())
        });
    };
    settled();
    kill(gateway);
    let gateway = site.start();
    site.wait_for_state(&id, "online");
    settled();
    site.done(&["command", &id, "setpoint=1020", "--yes"]);
    assert_eq!(device.writes(), [(20, 1020)]);
    // The profile changes under it, and it goes in the end.
    site.write("profiles/meter.toml", &format!("tier = 2\nrate = \"100 ms\"\n{}", POINTS.replace("level", "height")));
    gateway.signal(Signal::HUP);
    eventually("the new name", SOON, || {
        let points = site.json(&["points", &id, "--json"]);
        points.as_array()?.iter().any(|p| p["point"] == "height" && p["quality"] == "good").then_some(())
    });
    site.done(&["onboard", "decommission", &id, "--yes"]);
    life(&site, &id, "decommissioned");
    stop(gateway);
}
