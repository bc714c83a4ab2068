//! The gateway among the other programs of its machine: what systemd hears, what an OpenTelemetry collector gets and
//! what it does not, and certificates on the way in and out.
#![allow(clippy::unwrap_used, reason = "a test ends with a panic when its surroundings fail")]

#[path = "northbound_support/certs.rs"]
#[allow(dead_code, clippy::unwrap_used, reason = "written for tests; only the files are needed here")]
mod certs;
mod support;
mod whole_support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use certs::Authority;
use rustix::process::Signal;
use support::{Mosquitto, SOON, Subscriber, eventually, free_port, publish};
use whole_support::{FakeDevice, Mode, Site, body, stop};

const POINTS: &str = "[[points]]\nid = \"a\"\ntable = \"holding\"\naddress = 1\naccess = \"read-write\"\n\n[[points]]\nid = \"b\"\ntable = \"holding\"\naddress = 2\n";
const EAGER: &str = "rate = \"200 ms\"\non_change = false\n";

/// What systemd would hear.
struct Systemd {
    socket: UnixDatagram,
    heard: Vec<String>,
}

impl Systemd {
    /// Waits for a line such as `READY=1`; what came before it is forgotten.
    fn wait_for(&mut self, wanted: &str) {
        let deadline = Instant::now() + SOON;
        let mut octets = [0; 4_096];
        while Instant::now() < deadline {
            if let Some(at) = self.heard.iter().position(|line| line.starts_with(wanted)) {
                self.heard.drain(..=at);
                return;
            }
            if let Ok(length) = self.socket.recv(&mut octets) {
                self.heard.extend(String::from_utf8_lossy(&octets[..length]).lines().map(str::to_owned));
            }
        }
        panic!("systemd was not told {wanted}; it heard {:?}", self.heard);
    }
}

#[test]
fn systemd_hears_of_start_life_reload_and_stop() {
    let device = FakeDevice::start(Mode::Well);
    let site = Site::new("");
    site.device("one", device.port(), EAGER, "", POINTS);
    let path = site.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("a socket in our directory");
    socket.set_read_timeout(Some(Duration::from_millis(200))).expect("legal");
    let mut systemd = Systemd { socket, heard: Vec::new() };
    let mut command = site.command(&["run"]);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "1000000");
    let mut gateway = site.start_with(command);
    systemd.wait_for("READY=1");
    let began = Instant::now();
    for _ in 0..3 {
        systemd.wait_for("WATCHDOG=1");
    }
    assert!(began.elapsed() < Duration::from_secs(5), "three signs of life in {:?}", began.elapsed());
    gateway.signal(Signal::HUP);
    systemd.wait_for("RELOADING=1");
    systemd.wait_for("READY=1");
    systemd.wait_for("WATCHDOG=1");
    // A reload that is refused ends, too.
    site.device("one", device.port(), EAGER, "tiemout = 1", POINTS);
    gateway.signal(Signal::HUP);
    systemd.wait_for("RELOADING=1");
    systemd.wait_for("READY=1");
    // What hangs gives no sign of life: systemd would start it again.
    gateway.signal(Signal::STOP);
    let drained = Instant::now();
    while systemd.socket.recv(&mut [0; 4_096]).is_ok() && drained.elapsed() < Duration::from_secs(1) {}
    systemd.heard.clear();
    systemd.socket.set_read_timeout(Some(Duration::from_millis(1_200))).expect("legal");
    assert!(systemd.socket.recv(&mut [0; 4_096]).is_err(), "a stopped process gave a sign of life");
    gateway.signal(Signal::CONT);
    systemd.wait_for("WATCHDOG=1");
    gateway.signal(Signal::TERM);
    systemd.wait_for("STOPPING=1");
    assert!(gateway.wait(SOON).success());
}

/// A collector that takes everything and remembers the first lines of what it was sent.
struct Collector {
    port: u16,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Collector {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback gives a port");
        let (port, requests) = (listener.local_addr().expect("bound").port(), Arc::new(Mutex::new(Vec::new())));
        let kept = requests.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let kept = kept.clone();
                std::thread::spawn(move || collect(stream, &kept));
            }
        });
        Self { port, requests }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().expect("nobody panics with it").clone()
    }

    fn wait_for(&self, path: &str) -> String {
        eventually(&format!("a request to {path}"), SOON, || {
            self.requests().into_iter().find(|request| request.starts_with(&format!("POST {path} ")))
        })
    }
}

fn collect(stream: TcpStream, requests: &Mutex<Vec<String>>) -> Option<()> {
    requests.lock().ok()?.push("a connection".to_owned());
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut writer = stream;
    loop {
        let (mut head, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
            if line.trim().is_empty() {
                break;
            }
            head.push_str(&line);
        }
        let mut content = vec![0; length];
        reader.read_exact(&mut content).ok()?;
        let text: String = content.iter().map(|o| if o.is_ascii_graphic() { char::from(*o) } else { ' ' }).collect();
        requests.lock().ok()?.push(format!("{head}{text}"));
        writer.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").ok()?;
    }
}

#[test]
fn a_collector_gets_metrics_traces_and_logs_when_it_is_configured_and_nothing_otherwise() {
    let collector = Collector::start();
    let device = FakeDevice::start(Mode::Well);
    let endpoint = format!("endpoint = \"http://127.0.0.1:{}\"\ninterval = \"1 s\"\n", collector.port);
    let site = Site::new(&format!("[otlp]\n{endpoint}headers = {{ authorization = {{ env = \"TEST_TOKEN\" }} }}\n"));
    site.device("one", device.port(), EAGER, "", POINTS);
    let mut command = site.command(&["run"]);
    command.env("TEST_TOKEN", "Bearer t0p");
    let gateway = site.start_with(command);
    site.wait_for_state("one", "online");
    let metrics = collector.wait_for("/v1/metrics");
    assert!(metrics.to_ascii_lowercase().contains("authorization: bearer t0p"), "{metrics}");
    assert!(metrics.contains("fieldgate.samples.read") && metrics.contains("plant"), "{metrics}");
    let logs = collector.wait_for("/v1/logs");
    assert!(logs.contains("service.instance.id"), "{logs}");
    let command = "fieldgate/v1/plant/devices/one/command";
    publish(site.port(), command, r#"{"correlationId": "traced", "writes": [{"point": "a", "value": 5}]}"#, &[])
        .expect("published");
    collector.wait_for("/v1/traces");
    stop(gateway);

    // Switched off, or not there: not one connection, and OpenTelemetry's own environment does not change that.
    for section in [format!("[otlp]\nenabled = false\n{endpoint}"), String::new()] {
        let quiet = Collector::start();
        let section = section.replace(&collector.port.to_string(), &quiet.port.to_string());
        site.main_file(&section);
        let mut command = site.command(&["run"]);
        command.env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://127.0.0.1:{}", quiet.port));
        let gateway = site.start_with(command);
        let values = site.subscribe("devices/+/telemetry");
        values.wait_for_count(12, SOON);
        stop(gateway);
        assert_eq!(quiet.requests(), Vec::<String>::new(), "with {section:?}");
    }
}

#[test]
fn a_collector_that_is_away_or_hangs_harms_nobody() {
    let device = FakeDevice::start(Mode::Well);
    let mute = TcpListener::bind("127.0.0.1:0").expect("loopback gives a port");
    for port in [free_port(), mute.local_addr().expect("bound").port()] {
        let site = Site::new(&format!("[otlp]\nendpoint = \"http://127.0.0.1:{port}\"\ninterval = \"1 s\"\n"));
        site.device("one", device.port(), EAGER, "", POINTS);
        let gateway = site.start();
        let values = site.subscribe("devices/+/telemetry");
        values.wait_for_count(15, SOON);
        // Nor the end of the process.
        stop(gateway);
    }
}

#[test]
fn certificates_open_the_way_in_and_out() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let files = support::temp_dir();
    let path = |name: &str| files.path().join(name).display().to_string();
    let write = |name: &str, text: &str| std::fs::write(path(name), text).expect("writable");
    write("ca.pem", &authority.pem);
    write("other-ca.pem", &stranger.pem);
    for (name, signed) in [
        ("broker", authority.sign("localhost")),
        ("gateway", authority.sign("gateway-1")),
        ("scada", authority.sign("scada")),
        ("thief", stranger.sign("scada")),
    ] {
        write(&format!("{name}.pem"), &signed.cert);
        write(&format!("{name}.key"), &signed.key);
    }

    // Out: the site's broker demands a certificate, and takes the name in it for the user.
    let site_broker = Mosquitto::with_config(&format!(
        "allow_anonymous false\ncafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true\nuse_identity_as_username true\n",
        path("ca.pem"),
        path("broker.pem"),
        path("broker.key")
    ));
    let tls = free_port();
    let uplink = |name: &str, ca: &str, with: &str| {
        format!(
            "[[uplink]]\nname = \"{name}\"\nservers = [\"mqtts://localhost:{}\"]\nreconnect_max = \"1 s\"\ntls = {{ ca = \"{}\"{} }}\n\n",
            site_broker.port(),
            path(ca),
            if with.is_empty() {
                String::new()
            } else {
                format!(", cert = \"{}\", key = \"{}\"", path(&format!("{with}.pem")), path(&format!("{with}.key")))
            }
        )
    };
    let site = Site::new(&format!(
        "[[broker.listener]]\naddress = \"127.0.0.1:{tls}\"\n\
         tls = {{ cert = \"{}\", key = \"{}\", client_ca = \"{}\", require_client_cert = true }}\n\n\
         [[broker.acl]]\nuser = \"scada\"\naccess = \"read\"\ntopics = [\"fieldgate/v1/plant/#\"]\n\n\
         [[broker.acl]]\nuser = \"$anonymous\"\ntopics = [\"#\"]\n\n{}{}{}",
        path("broker.pem"),
        path("broker.key"),
        path("ca.pem"),
        uplink("good", "ca.pem", "gateway"),
        uplink("naked", "ca.pem", ""),
        uplink("misled", "other-ca.pem", "gateway"),
    ));
    let device = FakeDevice::start(Mode::Well);
    site.device("one", device.port(), EAGER, "", POINTS);
    let gateway = site.start();
    let (ca, cert, key) = (path("ca.pem"), path("scada.pem"), path("scada.key"));
    let own = ["--cafile", &ca, "--cert", &cert, "--key", &key, "-h", "localhost"];
    let far = Subscriber::start(site_broker.port(), "fieldgate/v1/plant/devices/one/telemetry", &own);
    far.wait_for("values at the site's broker", SOON * 2, |message| body(&message.payload)["device"] == "one");
    site_broker.wait_for_log("the gateway's name", |line| line.contains("gateway-1"));

    // In: the client's certificate is its name, and the name its rights.
    let near = Subscriber::start(tls, "fieldgate/v1/plant/devices/one/telemetry", &own);
    near.wait_for("values over TLS", SOON, |message| body(&message.payload)["device"] == "one");
    let thief = (path("thief.pem"), path("thief.key"));
    let stolen = ["--cafile", &ca, "--cert", &thief.0, "--key", &thief.1, "-h", "localhost"];
    assert!(publish(tls, "x", "1", &stolen).is_err(), "a stranger's certificate was taken");
    assert!(
        publish(tls, "x", "1", &["--cafile", &ca, "-h", "localhost"]).is_err(),
        "a client without a certificate came in"
    );
    assert!(publish(tls, "x", "1", &[]).is_err(), "a client without TLS came in");

    // The uplinks that cannot work say why, and disturb nobody.
    let health = eventually("the reasons", SOON, || {
        let status = site.json(&["store", "status", "--json"]);
        let of = |name: &str| {
            let all = status["consumers"].as_array()?;
            all.iter().find(|consumer| consumer["name"] == name).cloned()
        };
        let (good, naked, misled) = (of("good")?, of("naked")?, of("misled")?);
        let reason = |consumer: &serde_json::Value| consumer["reason"].as_str().unwrap_or_default().to_owned();
        (good["connected"] == true && !reason(&naked).is_empty() && !reason(&misled).is_empty())
            .then(|| (reason(&naked), reason(&misled), naked["connected"] == true || misled["connected"] == true))
    });
    assert!(!health.2, "an uplink without the right certificate connected");
    assert!(health.1.contains("ertificate"), "{health:?}");
    stop(gateway);
}

#[test]
fn users_and_rules_count_at_once_also_for_who_is_connected() {
    let device = FakeDevice::start(Mode::Well);
    let users = |names: &[(&str, &str)]| -> String {
        let user = |(name, password): &(&str, &str)| {
            format!("[[broker.user]]\nname = \"{name}\"\npassword = \"{password}\"\n\n")
        };
        names.iter().map(user).collect()
    };
    let rule = |user: &str, topic: &str| {
        format!("[[broker.acl]]\nuser = \"{user}\"\naccess = \"read\"\ntopics = [\"fieldgate/v1/plant/{topic}\"]\n\n")
    };
    let all = [("stays", "one"), ("leaves", "two"), ("changes", "three"), ("narrows", "four")];
    let site = Site::new(&format!("{}{}", users(&all), rule("*", "#")));
    site.device("one", device.port(), EAGER, "", POINTS);
    let gateway = site.start();
    let client = |name: &str, password: &str, more: &[&str]| {
        let own = [&["-u", name, "-P", password, "-V", "5", "-i", name][..], more].concat();
        Subscriber::start(site.port(), "fieldgate/v1/plant/devices/one/telemetry", &own)
    };
    let [stays, leaves, changes, narrows] = all.map(|(name, password)| client(name, password, &[]));
    for subscriber in [&stays, &leaves, &changes, &narrows] {
        subscriber.wait_for_count(1, SOON);
    }
    // One is gone, one has another password, one may not read values any more.
    let after = [("stays", "one"), ("changes", "another"), ("narrows", "four")];
    let rules = format!("{}{}{}", rule("stays", "#"), rule("changes", "#"), rule("narrows", "health"));
    let told = site.subscribe_as("events", &["-u", "stays", "-P", "one"]);
    site.main_file(&format!("{}{rules}", users(&after)));
    gateway.signal(Signal::HUP);
    let told =
        told.wait_for("that it counts now", SOON, |message| body(&message.payload)["kind"] == "configuration-reloaded");
    let text = body(&told.payload)["message"].as_str().unwrap_or_default().to_owned();
    assert!(text.contains("broker users and rules") && !text.contains("next start"), "{text}");
    // Reason code 0x87 to both, and neither comes back.
    for subscriber in [&leaves, &changes] {
        subscriber.wait_for_line("a disconnection", |line| line.contains("DISCONNECT (135)"));
    }
    let publishes = |name: &str, password: &str| {
        publish(site.port(), "x", "1", &["-u", name, "-P", password]).map_err(|error| error.to_lowercase())
    };
    assert!(publishes("leaves", "two").unwrap_err().contains("refused"), "a removed user came back");
    assert!(publishes("changes", "three").unwrap_err().contains("refused"), "the old password still counts");
    assert!(publishes("changes", "another").is_ok());
    let (seen, before) = (narrows.messages().len(), stays.messages().len());
    stays.wait_for_count(before + 5, SOON);
    assert!(narrows.messages().len() <= seen + 1, "a subscription that is not allowed any more went on");
    stop(gateway);
}
