//! Writes over MQTT against a server nobody here wrote, and what is left of them: the value in the device, the one final
//! answer, the line in the audit log. And a gateway that is killed in the middle of a write.
#![allow(clippy::unwrap_used, reason = "a test ends with a panic when its surroundings fail")]

mod support;
mod whole_support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;

use fieldgate::contract::{ContractMessage, Encoding, v1};
use fieldgate::model::RecordKind;
use serde_json::{Value, json};
use support::{Child, Mosquitto, SOON, Subscriber, eventually, publish, root};
use whole_support::{FakeDevice, Mode, Site, body, stop};

const POINTS: &str = r#"
[[points]]
id = "setpoint"
table = "holding"
address = 10
access = "read-write"
min = 0
max = 100

[[points]]
id = "ratio"
table = "holding"
address = 20
type = "i16"
scale = 0.1
access = "read-write"

[[points]]
id = "locked"
table = "holding"
address = 11
"#;

/// Reads one holding register as any client does.
fn register(port: u16, address: u16) -> u16 {
    let reply = exchange(port, 3, address, 1, 11);
    u16::from_be_bytes([reply[9], reply[10]])
}

/// Writes one holding register as any client does.
fn set_register(port: u16, address: u16, value: u16) {
    assert_eq!(exchange(port, 6, address, value, 12)[7], 6);
}

fn exchange(port: u16, function: u8, address: u16, word: u16, length: usize) -> Vec<u8> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the server listens");
    stream.set_read_timeout(Some(SOON)).expect("legal");
    let ([a, b], [c, d]) = (address.to_be_bytes(), word.to_be_bytes());
    stream.write_all(&[0, 1, 0, 0, 0, 6, 1, function, a, b, c, d]).expect("it takes requests");
    let mut reply = vec![0; length];
    stream.read_exact(&mut reply).expect("it answers");
    reply
}

/// Sends commands to one device through one broker and collects the answers.
struct Operator {
    port: u16,
    topic: String,
    results: Subscriber,
}

impl Operator {
    fn new(port: u16, device: &str) -> Self {
        let topic = format!("fieldgate/v1/plant/devices/{device}/command");
        let results = Subscriber::start(port, &format!("{topic}/result"), &[]);
        Self { port, topic, results }
    }

    fn send(&self, payload: &str) {
        publish(self.port, &self.topic, payload, &[]).expect("published");
    }

    fn answers(&self, id: &str) -> Vec<Value> {
        let all = self.results.messages();
        all.iter().map(|message| body(&message.payload)).filter(|body| said(body, "correlationId") == id).collect()
    }

    fn answer(&self, id: &str) -> Value {
        eventually(&format!("the answer to {id}"), SOON, || self.answers(id).first().cloned())
    }

    fn write(&self, id: &str, point: &str, value: Value) -> Value {
        self.send(&json!({"correlationId": id, "writes": [{"point": point, "value": value}]}).to_string());
        self.answer(id)
    }
}

/// A field; what is absent has its default.
fn said<'a>(body: &'a Value, field: &str) -> &'a str {
    body[field].as_str().unwrap_or_default()
}

fn assert_refused(answer: &Value, codes: &[&str]) {
    assert_eq!(answer["outcome"], "REJECTED", "{answer}");
    assert!(codes.contains(&said(answer, "code")), "wanted one of {codes:?}: {answer}");
    assert!(!said(answer, "message").is_empty(), "no words: {answer}");
}

#[test]
fn writes_are_done_refused_answered_and_audited() {
    let mut server = Command::new(support::python());
    server.arg("-u").arg(root().join("tests/servers/modbus_pymodbus.py")).args(["tcp", "1"]);
    let server = Child::spawn("modbus_pymodbus.py", server);
    let ready = server.wait_for("that it listens", SOON * 2, |line| line.starts_with("READY"));
    let port: u16 = ready.split(' ').nth(1).and_then(|port| port.parse().ok()).expect("a port");
    let site = Site::new("[limits]\ncommands_per_second = 1000\n");
    site.device("pump", port, "rate = \"200 ms\"\n", "", POINTS);
    let gateway = site.start();
    site.wait_for_state("pump", "online");
    let operator = Operator::new(site.port(), "pump");

    // Done, read back, and there.
    let done = operator.write("done-1", "setpoint", json!(42));
    assert_eq!((said(&done, "outcome"), done["writes"][0]["readBack"].as_f64()), ("DONE", Some(42.0)), "{done}");
    assert_eq!(register(port, 10), 42);
    let scaled = operator.write("done-2", "ratio", json!(-12.5));
    assert_eq!((&scaled["outcome"], &scaled["writes"][0]["readBack"]), (&"DONE".into(), &json!(-12.5)), "{scaled}");
    assert_eq!(register(port, 20) as i16, -125);

    // The same command again is answered again and not done again.
    set_register(port, 10, 7);
    let again = operator.write("done-1", "setpoint", json!(42));
    assert_eq!(again["outcome"], "DONE", "{again}");
    eventually("the second answer", SOON, || (operator.answers("done-1").len() == 2).then_some(()));
    assert_eq!(register(port, 10), 7, "a repeated command was done again");

    // Refused, each for its reason, and nothing happens in the device.
    let before = register(port, 11);
    assert_refused(&operator.write("no-1", "locked", json!(1)), &["denied"]);
    assert_refused(&operator.write("no-2", "setpoint", json!(101)), &["out-of-range"]);
    assert_refused(&operator.write("no-3", "ratio", json!(1e9)), &["out-of-range"]);
    assert_refused(&operator.write("no-4", "nothing", json!(1)), &["unknown-point"]);
    assert_refused(&operator.write("no-5", "setpoint", json!("ten")), &["wrong-type"]);
    operator.send(r#"{"correlationId": "no-6", "writes": [{"point": "setpoint", "value": 5}], "expires": "2020-01-01T00:00:00Z"}"#);
    // A machine whose clock was never set cannot tell, and refuses as well.
    assert_refused(&operator.answer("no-6"), &["expired", "clock-not-set"]);
    operator.send(r#"{"correlationId": "no-7", "writes": [{"point": "setpoint", "value": 5}"#);
    let malformed = eventually("the answer to a broken request", SOON, || {
        let all = operator.results.messages();
        all.iter().map(|message| body(&message.payload)).find(|body| body["code"] == "malformed")
    });
    assert_refused(&malformed, &["malformed"]);
    operator.send(r#"{"correlationId": "no-8", "writes": []}"#);
    assert_refused(&operator.answer("no-8"), &["malformed"]);
    let nobody = Operator::new(site.port(), "nobody");
    assert_refused(&nobody.write("no-10", "setpoint", json!(5)), &["unknown-device"]);
    // Several writes in one command: the first failure ends it before anything is written.
    operator.send(
        &json!({"correlationId": "no-11", "writes": [{"point": "setpoint", "value": 9}, {"point": "locked", "value": 9}]}).to_string(),
    );
    assert_refused(&operator.answer("no-11"), &["denied"]);
    assert_eq!((register(port, 10), register(port, 11)), (7, before), "a refused command was done");

    // For a gateway that is there a retained command is like any other, as MQTT does not tell it apart. It stays in the
    // broker, and is not done again by a gateway that comes later.
    let retained = r#"{"correlationId": "kept-1", "writes": [{"point": "setpoint", "value": 5}]}"#;
    publish(site.port(), &operator.topic, retained, &["-r"]).expect("published");
    operator.answer("kept-1");
    set_register(port, 10, 7);
    stop(gateway);
    let gateway = site.start();
    site.wait_for_state("pump", "online");
    let operator = Operator::new(site.port(), "pump");
    let kept = Subscriber::start(site.port(), &operator.topic, &[]);
    kept.wait_for("the retained command", SOON, |message| message.retain);
    assert_eq!(operator.write("after", "ratio", json!(1))["outcome"], "DONE");
    assert_eq!(register(port, 10), 7, "a retained command was done again after a restart");
    stop(gateway);

    let audit = audit(&site);
    for (id, outcome) in [
        ("done-1", "done"),
        ("done-2", "done"),
        ("no-1", "denied"),
        ("no-2", "out-of-range"),
        ("no-4", "unknown-point"),
    ] {
        let lines: Vec<_> = audit.iter().filter(|line| line.correlation_id == id).collect();
        assert_eq!(lines.len(), 1, "{id}: {audit:?}");
        assert!(lines[0].outcome.contains(outcome), "{:?}", lines[0]);
        assert!(lines[0].actor.starts_with("mqtt:local") && lines[0].object.contains("pump"), "{:?}", lines[0]);
    }
}

/// The audit log. No consumer of the store is ever handed its lines, so they are read as they stand in the files of the
/// critical lane: `src/store/log/frame.rs` describes a frame.
fn audit(site: &Site) -> Vec<v1::AuditEntry> {
    let mut entries = Vec::new();
    for file in files(&site.data()) {
        let octets = std::fs::read(&file).expect("readable");
        let mut at = 64;
        while let Some(header) = octets.get(at..at + 36)
            && header[..2] == [0xd1, 0xf6]
        {
            let length = u32::from_le_bytes(header[4..8].try_into().expect("four")) as usize;
            let payload = &octets[at + 36..at + 36 + length];
            if u16::from_le_bytes([header[32], header[33]]) == RecordKind::Audit as u16 {
                entries.push(v1::AuditEntry::decode_as(Encoding::Protobuf, payload).expect("an entry"));
            }
            at += 36 + length;
        }
    }
    entries
}

/// All segments below a directory.
fn files(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).expect("readable").flatten();
    let below = entries.flat_map(|entry| match entry.path() {
        path if path.is_dir() => files(&path),
        path if path.extension().is_some_and(|extension| extension == "seg") => vec![path],
        _ => Vec::new(),
    });
    below.collect()
}

/// A gateway with an uplink to `broker` and one device, whose replies it awaits long enough to be caught in a write.
fn site_with_slow_pump(broker: &Mosquitto, device: &FakeDevice) -> Site {
    let site = Site::new(&format!(
        "[[uplink]]\nname = \"site\"\nservers = [\"mqtt://127.0.0.1:{}\"]\nreconnect_max = \"1 s\"\n",
        broker.port()
    ));
    site.device("pump", device.port(), "rate = \"200 ms\"\n", "timeout = \"20 s\"\n", POINTS);
    site
}

#[test]
fn a_gateway_killed_in_the_middle_of_a_write_answers_once_and_does_not_repeat_it() {
    let broker = Mosquitto::start();
    let device = FakeDevice::start(Mode::HangsOnWrites);
    let site = site_with_slow_pump(&broker, &device);
    // A broker that stays, so that every answer is seen.
    let operator = Operator::new(broker.port(), "pump");
    let online = Subscriber::start(broker.port(), "fieldgate/v1/plant/status", &[]);
    let gateway = site.start();
    site.wait_for_state("pump", "online");
    let is_online = |message: &support::Message| body(&message.payload)["state"] == "ONLINE";
    online.wait_for("the gateway", SOON, is_online);

    operator.send(&json!({"correlationId": "killed", "writes": [{"point": "setpoint", "value": 55}]}).to_string());
    eventually("the write at the device", SOON, || (!device.writes().is_empty()).then_some(()));
    // A second one waits behind it.
    operator.send(&json!({"correlationId": "queued", "writes": [{"point": "ratio", "value": 1}]}).to_string());
    // One that is answered at once comes after it on the same way, so that the second one is stored for sure.
    operator.send(&json!({"correlationId": "refused", "writes": [{"point": "locked", "value": 1}]}).to_string());
    assert_refused(&operator.answer("refused"), &["denied"]);
    gateway.kill();
    device.set(Mode::Well);
    let gateway = site.start();

    let killed = operator.answer("killed");
    assert_eq!((said(&killed, "outcome"), said(&killed, "code")), ("FAILED", "outcome-unknown"), "{killed}");
    let queued = operator.answer("queued");
    assert_eq!((said(&queued, "outcome"), said(&queued, "code")), ("REJECTED", "restarted"), "{queued}");
    // It goes on: a later command is done, and with it everything before has had its time.
    let later = operator.write("later", "setpoint", json!(33));
    assert_eq!(device.writes(), [(10, 55), (10, 33)], "a write was repeated or left out: {later}");
    for id in ["killed", "queued", "later"] {
        assert_eq!(operator.answers(id).len(), 1, "{id}: {:?}", operator.answers(id));
    }
    stop(gateway);
    let audit = audit(&site);
    for id in ["killed", "queued", "later"] {
        assert_eq!(audit.iter().filter(|line| line.correlation_id == id).count(), 1, "{id}: {audit:?}");
    }
}

/// What the device did is unknown when the gateway is stopped, or the device's file is changed, in the middle of a write;
/// "nothing was written" would be a lie.
#[test]
fn a_write_cut_off_by_a_stop_or_a_reload_is_not_called_undone() {
    let broker = Mosquitto::start();
    let device = FakeDevice::start(Mode::HangsOnWrites);
    let site = site_with_slow_pump(&broker, &device);
    let operator = Operator::new(broker.port(), "pump");
    let online = Subscriber::start(broker.port(), "fieldgate/v1/plant/status", &[]);
    let gateway = site.start();
    site.wait_for_state("pump", "online");
    online.wait_for("the gateway", SOON, |message| body(&message.payload)["state"] == "ONLINE");
    let hang = |id: &str, writes: usize| {
        operator.send(&json!({"correlationId": id, "writes": [{"point": "setpoint", "value": 55}]}).to_string());
        eventually("the write at the device", SOON, || (device.writes().len() == writes).then_some(()));
    };

    hang("reloaded", 1);
    site.device("pump", device.port(), "rate = \"300 ms\"\n", "timeout = \"20 s\"\n", POINTS);
    gateway.signal(rustix::process::Signal::HUP);
    let reloaded = operator.answer("reloaded");
    assert_eq!(said(&reloaded, "outcome"), "FAILED", "{reloaded}");

    site.wait_for_state("pump", "online");
    hang("stopped", 2);
    stop(gateway);
    let gateway = site.start();
    let stopped = operator.answer("stopped");
    assert_eq!(said(&stopped, "outcome"), "FAILED", "{stopped}");
    for id in ["reloaded", "stopped"] {
        assert_eq!(operator.answers(id).len(), 1, "{id}: {:?}", operator.answers(id));
    }
    assert_eq!(device.writes(), [(10, 55), (10, 55)], "a write was repeated");
    stop(gateway);
}
