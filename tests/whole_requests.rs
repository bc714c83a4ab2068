//! Malformed, oversized, repeated and out-of-order requests on every request topic of the real program, with a kill in
//! between: nothing changes, all is counted, and neither memory nor the audit log grows with them.
//!
//! 600 requests, or 10,000 with `FIELDGATE_FULL=1`.
#![allow(clippy::unwrap_used, reason = "a test ends with a panic when its surroundings fail")]

mod support;
mod whole_support;

use std::io::{Read, Write};
use std::net::TcpStream;

use rustix::process::Signal;
use serde_json::{Value, json};
use support::{SOON, Subscriber, eventually};
use whole_support::{FakeDevice, Mode, Site, body, stop};

const POINTS: &str = "[[points]]\nid = \"level\"\ntable = \"holding\"\naddress = 10\n\
                      [[points]]\nid = \"setpoint\"\ntable = \"holding\"\naddress = 20\naccess = \"read-write\"\n";
/// Every topic that takes requests.
const TOPICS: [&str; 9] = [
    "devices/pump/command",
    "devices/pump/onboarding/request",
    "devices/pump/onboarding/announce",
    "devices/pump/config/desired",
    "devices/pump/firmware/desired",
    "devices/pump/firmware/request",
    "management/request",
    "config/desired",
    "firmware/request",
];
/// Requests in a row.
const WINDOW: usize = 20;
/// What the process may grow by while thousands of requests are refused, with the noise of its allocator.
const MEMORY: u64 = 24 << 20;

/// A client of MQTT 3.1.1 that sends no faster than the gateway takes.
struct Client {
    stream: TcpStream,
    answers: Subscriber,
    next: u16,
    open: usize,
}

impl Client {
    fn connect(port: u16) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.write_all(&[0x10, 13, 0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 60, 0, 1, b'f']).unwrap();
        let mut accepted = [0; 4];
        stream.read_exact(&mut accepted).unwrap();
        assert_eq!(accepted, [0x20, 2, 0, 0]);
        let answers = Subscriber::start(port, "fieldgate/v1/plant/management/result", &[]);
        Self { stream, answers, next: 1, open: 0 }
    }

    fn send(&mut self, topic: &str, payload: &[u8]) {
        let topic = format!("fieldgate/v1/plant/{topic}");
        let mut length = 2 + topic.len() + 2 + payload.len();
        let mut packet = vec![0x32];
        while length > 0 {
            packet.push((length % 128) as u8 | if length > 127 { 0x80 } else { 0 });
            length /= 128;
        }
        packet.extend((topic.len() as u16).to_be_bytes());
        packet.extend(topic.as_bytes());
        packet.extend(self.next.to_be_bytes());
        packet.extend(payload);
        self.next = self.next % 60_000 + 1;
        self.stream.write_all(&packet).unwrap();
        let mut confirmation = [0; 4];
        self.stream.read_exact(&mut confirmation).expect("a confirmation");
        assert_eq!(confirmation[..2], [0x40, 2]);
        self.open += 1;
        if self.open >= WINDOW {
            self.finish();
        }
    }

    /// Waits until what was sent before was looked at: requests are taken in order. More at once would be turned away.
    fn finish(&mut self) {
        self.open = 0;
        let id = format!("mark-{}", self.answers.messages().len());
        let mark = json!({"correlationId": id, "action": "nonsense", "device": "pump"}).to_string();
        self.send("management/request", mark.as_bytes());
        self.answers.wait_for("the answer", SOON, |message| body(&message.payload)["correlationId"] == id.as_str());
    }
}

/// The `n`-th of the bad requests.
fn bad(n: usize) -> (&'static str, Vec<u8>) {
    let topic = TOPICS[(n / 8) % TOPICS.len()];
    let words = |value: Value| value.to_string().into_bytes();
    match n % 16 {
        0 | 8 => (topic, vec![b'{'; 40]),
        1 | 9 => (topic, vec![0xff, 1, n as u8]),
        2 | 10 if n % 80 == 2 => (topic, vec![b'a'; 100_000]),
        2 | 10 => (topic, br#"{"correlationId": "x", "action": 7, "version": "one"}"#.to_vec()),
        // Come again: they were done before, also before the restart.
        3 | 11 => (
            "devices/pump/command",
            words(json!({"correlationId": "once", "writes": [{"point": "setpoint", "value": 1020}]})),
        ),
        4 => (
            "devices/pump/config/desired",
            words(json!({"correlationId": "v2", "version": "2", "settings": {"rate": "200 ms"}})),
        ),
        12 => ("management/request", words(json!({"correlationId": "again", "action": "nonsense", "device": "pump"}))),
        // Out of order: an older version, a step that is not possible now, a part of an upload that nobody offered.
        5 | 13 => (
            "devices/pump/config/desired",
            words(json!({"correlationId": format!("old-{n}"), "version": "1", "settings": {"rate": "5 s"}})),
        ),
        6 | 14 => {
            let action = ["resume", "readmit", "cancel", "accept-identity", "offer", "nonsense"][(n / 8) % 6];
            ("devices/pump/onboarding/request", words(json!({"correlationId": format!("step-{n}"), "action": action})))
        }
        _ => {
            let (id, topic) = (format!("part-{n}"), ["devices/pump/firmware/request", "firmware/request"][(n / 8) % 2]);
            (topic, words(json!({"correlationId": id, "action": "approve", "job": "nobody-offered-this"})))
        }
    }
}

#[test]
fn bad_requests_change_nothing_are_counted_and_cost_bounded_memory() {
    let full = std::env::var("FIELDGATE_FULL").is_ok_and(|value| value == "1");
    let count = if full { 10_000 } else { 600 };
    let site = Site::new("[[management.role]]\nidentity = \"mqtt:*\"\nrole = \"engineer\"\n");
    let device = FakeDevice::start(Mode::Well);
    site.device("pump", device.port(), "tier = 2\nrate = \"100 ms\"\n", "identify = false", POINTS);
    let mut gateway = site.start();
    site.wait_for_state("pump", "online");
    // Done once, to be repeated ever after.
    let mut client = Client::connect(site.port());
    client.send("devices/pump/command", &bad(3).1);
    client.send("devices/pump/config/desired", &bad(4).1);
    client.finish();
    let config = || site.json(&["config", "show", "pump", "--json"]);
    eventually("version 2 to be in force", SOON, || {
        (config()["version"] == "2" && config()["state"] == "settled").then_some(())
    });
    eventually("the write", SOON, || (device.writes() == [(20, 1020)]).then_some(()));
    let before = config();

    let (mut resident, health) = (0, site.subscribe("health"));
    for part in 0..3 {
        let mut client = Client::connect(site.port());
        for n in part * count / 3..(part + 1) * count / 3 {
            let (topic, payload) = bad(n);
            client.send(topic, &payload);
        }
        client.finish();
        match part {
            // What a first third needs is needed by all; then the process is another one.
            0 => {
                gateway.signal(Signal::KILL);
                gateway.wait(SOON);
                gateway = site.start();
                site.wait_for_state("pump", "online");
            }
            1 => resident = gateway.resident_bytes(),
            _ => {}
        }
    }
    let grown = gateway.resident_bytes().saturating_sub(resident);
    assert!(grown < MEMORY, "{} MiB more for the last {} requests", grown >> 20, count / 3);

    let after = config();
    // How the newest wish ended is told there; what is in force stays.
    for key in ["version", "state", "history", "effective"] {
        assert_eq!(after[key], before[key], "{key}");
    }
    assert_eq!(device.writes(), [(20, 1020)], "what came again is not done again");
    let devices = site.json(&["devices", "--json"]);
    assert_eq!(devices[0]["life"], "active", "{devices}");
    // Each is counted once, since the restart, but for configurations that come again: retained ones do that by themselves.
    let sent = (count - count / 3) as u64 * (WINDOW as u64 + 1) / WINDOW as u64;
    let number = |told: &Value, key: &str| told[key].as_str().and_then(|n| n.parse::<u64>().ok()).unwrap_or_default();
    let counted =
        |told: &Value| ["requestsRefused", "requestsMalformed", "requestsRepeated"].map(|key| number(told, key));
    let told = eventually("the counts on the topic", SOON * 2, || {
        let told = body(&health.messages().last()?.payload);
        (number(&told, "uptimeSeconds") > 0 && counted(&told).iter().sum::<u64>() >= sent * 9 / 10 - 2).then_some(told)
    });
    let counts = counted(&told);
    println!(
        "{count} bad requests: {counts:?} refused, malformed and repeated since the restart; {} KiB more",
        grown >> 10
    );
    assert!(counts.iter().all(|n| *n >= sent / 20), "{counts:?}");
    assert!(counts.iter().sum::<u64>() <= sent + 2, "{counts:?} of {sent}");
    // Of a flood, some are written down one by one and the rest as a number.
    let audit = site.json(&["audit", "--json", "--last", "100000"]);
    let refusals = audit.as_array().unwrap().iter().filter(|e| e["outcome"] != "done").count();
    assert!(refusals < 400, "{refusals} audit entries");
    assert!(gateway.is_running());
    stop(gateway);
}
