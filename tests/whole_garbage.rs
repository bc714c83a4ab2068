//! Octets without sense to every ear of the gateway: the process stays, and devices and clients that behave are served
//! all the while.
#![allow(clippy::unwrap_used, reason = "a test ends with a panic when its surroundings fail")]

#[path = "northbound_support/certs.rs"]
#[allow(dead_code, clippy::unwrap_used, reason = "written for tests; only the files are needed here")]
mod certs;
mod support;
mod whole_support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use certs::Authority;
use support::{Child, SOON, Subscriber, eventually, free_port};
use whole_support::{FakeDevice, Mode, Site, body, stop, tail};

const POINTS: &str = "[[points]]\nid = \"a\"\ntable = \"holding\"\naddress = 1\n\n[[points]]\nid = \"b\"\ntable = \"holding\"\naddress = 90\n";
const EAGER: &str = "rate = \"100 ms\"\non_change = false\n";

/// MQTT 3.1.1: CONNECT as `g`, SUBSCRIBE to `x`, PINGREQ.
const GOOD: &[u8] =
    &[0x10, 13, 0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 60, 0, 1, b'g', 0x82, 6, 0, 1, 0, 1, b'x', 1, 0xc0, 0];
/// Its answers: CONNACK, SUBACK, PINGRESP.
const ANSWERS: &[u8] = &[0x20, 2, 0, 0, 0x90, 3, 0, 1, 1, 0xd0, 0];

/// xorshift with a seed that never changes: a failure can be repeated.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn octets(&mut self, most: u64) -> Vec<u8> {
        (0..=self.next() % most).map(|_| self.next() as u8).collect()
    }

    /// A good beginning with some octets changed.
    fn bent(&mut self, good: &[u8]) -> Vec<u8> {
        let mut octets = good.to_vec();
        for _ in 0..=self.next() % 3 {
            let at = self.next() as usize % octets.len();
            octets[at] = self.next() as u8;
        }
        octets
    }
}

/// The gateway with a device that behaves, and somebody who watches it.
struct Bench {
    site: Site,
    gateway: Child,
    watcher: Subscriber,
    tls: u16,
    _well: FakeDevice,
}

impl Bench {
    fn start() -> Self {
        let (authority, tls) = (Authority::new(), free_port());
        let server = authority.sign("localhost");
        let site = Site::new(&format!(
            "[[broker.listener]]\naddress = \"127.0.0.1:{tls}\"\ntls = {{ cert = \"server.pem\", key = \"server.key\" }}\nallow_anonymous = true\n\n\
             [broker.limits]\nconnect_timeout = \"1 s\"\n"
        ));
        site.write("server.pem", &server.cert);
        site.write("server.key", &server.key);
        let well = FakeDevice::start(Mode::Well);
        site.device("well", well.port(), EAGER, "", POINTS);
        let gateway = site.start();
        let watcher = site.subscribe("devices/well/telemetry");
        Self { site, gateway, watcher, tls, _well: well }
    }

    /// The process runs and its device is read and published now.
    fn assert_alive(&mut self, after: &str) {
        assert!(self.gateway.is_running(), "{after} ended the process:\n{}", tail(&self.gateway));
        let seen = self.watcher.messages().len();
        eventually(&format!("values after {after}"), SOON, || (self.watcher.messages().len() > seen + 3).then_some(()));
    }

    /// Nothing panicked, and every read of the good device was good.
    fn finish(mut self) {
        self.assert_alive("everything");
        let panicked: Vec<_> = self.gateway.lines().into_iter().filter(|line| line.contains("panicked")).collect();
        assert!(panicked.is_empty(), "{panicked:?}");
        for message in self.watcher.messages() {
            let told = body(&message.payload);
            let points = told["points"].as_array().expect("points");
            assert!(
                points.iter().all(|p| p["quality"] == "GOOD" && (p["value"] == 1_001 || p["value"] == 1_090)),
                "{told}"
            );
        }
        stop(self.gateway);
    }
}

/// Sends octets and waits until the other side closed, or did not for a while.
fn throw(mut stream: impl Read + Write, octets: &[u8]) {
    // It may close in the middle of them.
    let _ = stream.write_all(octets);
    let mut answer = [0; 512];
    while matches!(stream.read(&mut answer), Ok(1..)) {}
}

fn tcp(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_millis(20))).expect("legal");
    stream.set_nodelay(true).expect("legal");
    stream
}

#[test]
fn garbage_at_the_brokers_ports_stops_nobody() {
    let mut bench = Bench::start();
    let mut noise = Noise(0x5eed_0001);
    for port in [bench.site.port(), bench.tls] {
        for round in 0..60 {
            let octets = if round % 2 == 0 { noise.octets(2_000) } else { noise.bent(GOOD) };
            throw(tcp(port), &octets);
        }
        // Half packets: cut off at each octet, closed in order and left open.
        let mut open = Vec::new();
        for end in 0..GOOD.len() {
            let mut stream = tcp(port);
            let _ = stream.write_all(&GOOD[..end]);
            if end % 2 == 0 {
                let _ = stream.shutdown(Shutdown::Write);
            } else {
                open.push(stream);
            }
        }
        bench.assert_alive("half packets");
    }
    // A handshake that stops in the middle: a client hello of TLS 1.2 with nothing behind it.
    throw(tcp(bench.tls), &[0x16, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3]);

    // A good client that sends octet by octet is served.
    let mut slow = tcp(bench.site.port());
    slow.set_read_timeout(Some(SOON)).expect("legal");
    for octet in GOOD {
        slow.write_all(&[*octet]).expect("it is a good client");
    }
    let mut answers = vec![0; ANSWERS.len()];
    slow.read_exact(&mut answers).expect("answers");
    assert_eq!(answers, ANSWERS);
    bench.finish();
}

#[test]
fn garbage_at_the_admin_socket_stops_nobody() {
    let mut bench = Bench::start();
    let path = bench.site.data().join("admin.sock");
    let connect = || {
        let stream = UnixStream::connect(&path).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_millis(20))).expect("legal");
        stream
    };
    let mut noise = Noise(0x5eed_0002);
    let good = b"{\"ask\":\"devices\"}\n";
    for round in 0..60 {
        let octets = if round % 2 == 0 { noise.octets(2_000) } else { noise.bent(good) };
        throw(connect(), &octets);
    }
    for end in 0..good.len() {
        throw(connect(), &good[..end]);
    }
    // Endless lines, nested and deep.
    throw(connect(), &vec![b'['; 100_000]);
    throw(connect(), &[&vec![b'['; 60_000][..], b"\n"].concat());
    bench.assert_alive("garbage at the admin socket");
    // More clients than there are seats, none of which says anything; when they are gone it serves again.
    let idle: Vec<_> = (0..40).map(|_| UnixStream::connect(&path)).collect();
    bench.assert_alive("idle admin clients");
    drop(idle);
    bench.site.wait_for_state("well", "online");
    // One octet at a time is a request all the same.
    let mut slow = connect();
    slow.set_read_timeout(Some(SOON)).expect("legal");
    for octet in good {
        slow.write_all(&[*octet]).expect("it is a good client");
    }
    let mut answer = [0; 10];
    slow.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"{\"answer\":");
    bench.finish();
}

#[test]
fn a_device_that_answers_noise_harms_only_itself() {
    let bench = Bench::start();
    let liars: Vec<_> = (0..3).map(|_| FakeDevice::start(Mode::Noise)).collect();
    let quick = "timeout = \"100 ms\"\n[modbus.breaker]\nfailures = 100\npause = \"100 ms\"\n";
    for (index, liar) in liars.iter().enumerate() {
        bench.site.device(
            &format!("liar-{index}"),
            liar.port(),
            "rate = \"50 ms\"\non_change = false\n",
            quick,
            POINTS,
        );
    }
    bench.gateway.signal(rustix::process::Signal::HUP);
    let lies = bench.site.subscribe("devices/+/telemetry");
    eventually("hundreds of lies", SOON * 3, || liars.iter().all(|liar| liar.requests() > 100).then_some(()));
    for liar in &liars {
        liar.set(Mode::Well);
    }
    // Honest again, they are believed again.
    for index in 0..liars.len() {
        let name = format!("liar-{index}");
        lies.wait_for("an honest value", SOON, |message| {
            let told = body(&message.payload);
            told["device"] == name.as_str()
                && told["points"].as_array().is_some_and(|points| points.iter().any(|p| p["value"] == 1_001))
        });
    }
    bench.finish();
}
