//! **Marked secrets**: in every place where one can be configured or handed over there is a text that occurs nowhere else.
//! None of them may appear in the log (at level trace, with all libraries), on any topic, in what is exported to a collector or
//! by the store, in the store's files, in the arguments of the process, or in what the command line prints, errors included.
#![allow(clippy::unwrap_used, reason = "a test ends with a panic when its surroundings fail")]

mod support;
mod whole_support;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fieldgate_simulators::est::{EstServer, Options};
use serde_json::json;
use support::{Mosquitto, SOON, Subscriber, eventually, publish};
use whole_support::{FakeDevice, Mode, Site, errors, text};

const BROKER_USER: &str = "Canary-Broker-User-71f3";
const BROKER_FILE: &str = "Canary-Broker-File-52ab";
const WRONG: &str = "Canary-Wrong-Password-90cd";
const UPLINK: &str = "Canary-Uplink-Password-18e4";
const OTLP: &str = "Canary-Otlp-Header-66d0";
const EST: &str = "Canary-Est-Token-3b29";
const REGISTRY: &str = "Canary-Registry-Password-5e7a";
const IN_URL: &str = "Canary-In-Url-c417";

/// A collector that keeps what it is sent, without the heads of requests: there the header with the secret belongs.
struct Collector {
    port: u16,
    bodies: Arc<Mutex<Vec<u8>>>,
}

impl Collector {
    fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback gives a port");
        let (port, bodies) = (listener.local_addr().unwrap().port(), Arc::new(Mutex::new(Vec::new())));
        let kept = bodies.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let kept = kept.clone();
                std::thread::spawn(move || collect(stream, &kept));
            }
        });
        Self { port, bodies }
    }

    fn bodies(&self) -> Vec<u8> {
        self.bodies.lock().unwrap().clone()
    }
}

fn collect(mut stream: TcpStream, kept: &Mutex<Vec<u8>>) {
    loop {
        let mut head = Vec::new();
        let mut octet = [0];
        while !head.ends_with(b"\r\n\r\n") {
            if stream.read_exact(&mut octet).is_err() {
                return;
            }
            head.push(octet[0]);
        }
        let head = String::from_utf8_lossy(&head).to_lowercase();
        assert!(head.contains(&OTLP.to_lowercase()), "the collector wants its header");
        let length = head.lines().find_map(|l| l.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        if stream.read_exact(&mut body).is_err() {
            return;
        }
        kept.lock().unwrap().extend(body);
        if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").is_err() {
            return;
        }
    }
}

/// What may appear nowhere, with a name for people.
#[derive(Default)]
struct Canaries(Vec<(String, Vec<u8>)>);

impl Canaries {
    fn add(&mut self, name: &str, secret: &[u8]) {
        assert!(secret.len() >= 12, "{name} is too short to be recognised");
        self.0.push((name.to_owned(), secret.to_vec()));
    }

    /// A line from the middle of a key in PEM, and the same octets raw.
    fn add_key(&mut self, path: &Path) {
        let content = std::fs::read(path).unwrap();
        let name = path.display().to_string();
        match std::str::from_utf8(&content) {
            Ok(pem) if pem.contains("PRIVATE KEY") => {
                // Keys of Ed25519 have one line only.
                let line = pem.lines().filter(|l| !l.starts_with('-')).take(2).last().expect("a key");
                self.add(&name, line.as_bytes());
            }
            _ => self.add(&name, &content[content.len() / 2..content.len() / 2 + 16]),
        }
    }

    fn absent(&self, place: &str, octets: &[u8]) {
        for (name, secret) in &self.0 {
            let found = octets.windows(secret.len()).position(|window| window == secret);
            if let Some(at) = found {
                let around = &octets[at.saturating_sub(200)..(at + 100).min(octets.len())];
                panic!("{name} appears in {place}: …{}…", String::from_utf8_lossy(around));
            }
        }
    }
}

/// Every file below a directory.
fn files(folder: &Path, all: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => files(&entry.path(), all),
            Ok(kind) if kind.is_file() => all.push(entry.path()),
            _ => {}
        }
    }
}

fn listed(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    files(folder, &mut all);
    all
}

const POINTS: &str = "[[points]]\nid = \"a\"\ntable = \"holding\"\naddress = 1\naccess = \"read-write\"\n";

struct Plant {
    site: Site,
    // In the order of their end.
    _device: FakeDevice,
    est: EstServer,
    broker: Mosquitto,
    collector: Collector,
    _runtime: tokio::runtime::Runtime,
}

/// A configuration with a secret wherever one can stand.
fn plant() -> Plant {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let credentials = Some(("gw".to_owned(), EST.to_owned()));
    let options = Options { listen: "127.0.0.1:0".parse().unwrap(), credentials, life: Duration::from_secs(86_400) };
    let est = runtime.block_on(EstServer::start(options)).unwrap();
    let broker = Mosquitto::with_config("allow_anonymous true\npersistence false\n");
    let (collector, device) = (Collector::start(), FakeDevice::start(Mode::Well));
    let site = Site::new("");
    site.write("est-root.pem", &est.root_pem());
    for (name, secret) in
        [("uplink", UPLINK), ("otlp", OTLP), ("est", EST), ("scada", BROKER_FILE), ("registry", REGISTRY)]
    {
        site.write(&format!("secrets/{name}"), &format!("{secret}\n"));
    }
    site.main_file(&format!(
        "[[broker.user]]\nname = \"ann\"\npassword = \"{BROKER_USER}\"\n\
         [[broker.user]]\nname = \"scada\"\npassword = {{ file = \"secrets/scada\" }}\n\
         [[broker.acl]]\nuser = \"*\"\naccess = \"read-write\"\ntopics = [\"#\"]\n\
         [[uplink]]\nname = \"cloud\"\nservers = [\"mqtt://127.0.0.1:{}\"]\nuser = \"gw\"\npassword = {{ file = \"secrets/uplink\" }}\n\
         reconnect_max = \"1 s\"\nrequests = true\n\
         [otlp]\nendpoint = \"http://127.0.0.1:{}\"\ninterval = \"1 s\"\nheaders = {{ authorization = {{ file = \"secrets/otlp\" }} }}\n\
         [est]\nurl = \"{}\"\nanchors = \"est-root.pem\"\nuser = \"gw\"\ntoken = {{ file = \"secrets/est\" }}\ncommon_name = \"gw-1\"\n\
         [margo]\nurl = \"https://127.0.0.1:1\"\ntrust = {{ bundle = \"margo.json\" }}\n\
         [margo.identity.est]\nurl = \"{}\"\nanchors = \"est-root.pem\"\nuser = \"gw\"\ntoken = {{ file = \"secrets/est\" }}\n\
         trust_domain = \"plant.example\"\nwfm = \"wfm-1\"\n\
         [margo.artifacts]\nuser = \"gw\"\npassword = {{ file = \"secrets/registry\" }}\n\
         [firmware]\nkeys = [\"vendor.pub\"]\n\
         [management]\n[[management.role]]\nidentity = \"mqtt:local:scada\"\nrole = \"operator\"\n",
        broker.port(),
        collector.port,
        est.url(),
        est.url(),
    ));
    site.device("pump", device.port(), "tier = 2\nrate = \"100 ms\"\n", "identify = false", POINTS);
    Plant { site, _device: device, est, broker, collector, _runtime: runtime }
}

const ANN: [&str; 4] = ["-u", "ann", "-P", BROKER_USER];

#[test]
fn no_secret_appears_anywhere() {
    let Plant { site, est, broker, collector, .. } = &plant();
    let mut canaries = Canaries::default();
    for secret in [BROKER_USER, BROKER_FILE, WRONG, UPLINK, OTLP, EST, REGISTRY, IN_URL] {
        canaries.add(secret, secret.as_bytes());
    }
    let told = text(&site.run(&["claim"]));
    let code = told.lines().next().unwrap().rsplit(' ').next().unwrap().to_owned();
    canaries.add("the claim code", code.as_bytes());
    let artifact = site.file("artifact");
    std::fs::write(&artifact, "an image").unwrap();
    let vendor = site.file("vendor");
    site.done(&["firmware", "keygen", &vendor]);
    canaries.add_key(Path::new(&vendor));
    site.done(&["firmware", "sign", &artifact, "--key", &vendor, "--target", "gateway", "--release", "9.9.9"]);
    let made = site.run(&["certs", "ca", "--create", "Plant"]);
    assert!(made.status.success(), "{}", errors(&made));
    let out = site.path().join("out-meter").display().to_string();
    let issued = site.run(&["certs", "issue", "--device", "meter", "--out", &out]);
    assert!(issued.status.success(), "{}", errors(&issued));

    let mut command = site.command(&["run"]);
    command.env("FIELDGATE_LOG", "trace");
    let gateway = site.start_with(command);
    let local = Subscriber::start(site.port(), "#", &ANN);
    let cloud = Subscriber::start(broker.port(), "#", &[]);
    site.wait_for_state("pump", "online");
    eventually("the enrolled certificate", SOON * 2, || {
        std::fs::read_link(site.data().join("identity/current")).ok().map(drop)
    });
    assert!(est.log().iter().any(|asked| asked.credentials.is_some()), "the token was used");
    cloud.wait_for("values at the uplink's broker", SOON * 2, |_| true);

    // Tokens and codes on their way in, right and wrong.
    let token =
        site.json(&["onboard", "token", "meter*", "--uses", "3", "--json"])["token"].as_str().unwrap().to_owned();
    canaries.add("the enrolment token", token.rsplit('.').next().unwrap().as_bytes());
    let topic = |rest: &str| format!("fieldgate/v1/plant/{rest}");
    let announce = json!({"correlationId": "s1", "vendor": "ACME", "serial": "7", "protocol": "mqtt", "token": token});
    publish(site.port(), &topic("devices/meter/onboarding/announce"), &announce.to_string(), &ANN).unwrap();
    let wrong = json!({"correlationId": "s2", "protocol": "mqtt", "token": format!("fgt.00000000.{WRONG}")});
    publish(site.port(), &topic("devices/meter-2/onboarding/announce"), &wrong.to_string(), &ANN).unwrap();
    for (id, code) in [("s3", WRONG), ("s4", code.as_str())] {
        let claim = json!({"correlationId": id, "action": "claim", "token": code});
        publish(site.port(), &topic("management/request"), &claim.to_string(), &ANN).unwrap();
    }
    let broken = format!("{{\"correlationId\": \"s5\", \"action\": \"claim\", \"token\": \"{WRONG}\"");
    publish(site.port(), &topic("management/request"), &broken, &ANN).unwrap();
    for id in ["s1", "s2", "s3", "s4"] {
        local.wait_for(&format!("the answer to {id}"), SOON, |message| {
            message.topic.ends_with("/result") && String::from_utf8_lossy(&message.payload).contains(id)
        });
    }
    assert!(publish(site.port(), "x", "y", &["-u", "ann", "-P", WRONG]).is_err(), "a wrong password got in");

    // Keys exist by now; none of them may be seen.
    let mut keys = 0;
    for path in listed(&site.data()).into_iter().chain(listed(Path::new(&out))) {
        let is_key = path.extension().is_some_and(|e| e == "key") || path.file_name().is_some_and(|n| n == "key.pem");
        if is_key {
            keys += 1;
            canaries.add_key(&path);
        }
    }
    assert!(keys >= 3, "the authority's, the device's and the gateway's own key: {keys}");

    // What people and programs print.
    let jsonl = site.path().join("export.jsonl").display().to_string();
    let csv = site.path().join("export.csv").display().to_string();
    let commands: &[&[&str]] = &[
        &["check"],
        &["explain"],
        &["devices"],
        &["devices", "--json"],
        &["points", "--json"],
        &["onboard", "list", "--all"],
        &["onboard", "list", "--all", "--json"],
        &["config", "show", "pump", "--json"],
        &["config", "show", "gateway", "--json"],
        &["audit", "--last", "10000"],
        &["audit", "--last", "10000", "--json"],
        &["certs", "list"],
        &["certs", "list", "--json"],
        &["store", "status"],
        &["store", "export", "--format", "jsonl", "--output", &jsonl],
        &["store", "export", "--format", "csv", "--output", &csv],
        &["firmware", "offer", &format!("{artifact}.manifest"), "--upload", &artifact],
        &["firmware", "status", "--json"],
        &["margo", "status"],
        &["margo", "status", "--json"],
        &["version", "--json"],
        &["export", "--public-key"],
        &["command", "pump", "a=5", "--json"],
        &["command", "pump", "b=5"],
        &["onboard", "suspend", "nobody"],
        &["config", "set", "pump", "/nowhere"],
        &["onboard", "token", "meter*", "--expires", "never"],
        &["import", "secrets/uplink"],
    ];
    let mut worked = 0;
    for arguments in commands {
        let output = site.run(arguments);
        worked += usize::from(output.status.success());
        canaries.absent(&format!("what {arguments:?} prints"), &output.stdout);
        canaries.absent(&format!("the errors of {arguments:?}"), &output.stderr);
    }
    assert!(worked >= 15, "only {worked} commands did something");

    let arguments = std::fs::read(format!("/proc/{}/cmdline", gateway.id())).unwrap();
    canaries.absent("the arguments of the process", &arguments);
    eventually("something at the collector", SOON * 2, || (collector.bodies().len() > 10_000).then_some(()));
    gateway.signal(rustix::process::Signal::TERM);
    gateway.wait_for("its end", SOON, |line| line.contains("stopped in"));
    canaries.absent("the log", gateway.lines().join("\n").as_bytes());
    canaries.absent("what the collector was sent", &collector.bodies());
    for (place, subscriber) in [("the gateway's topics", &local), ("the uplink's topics", &cloud)] {
        // What the test itself published as a request came back to its own subscription.
        let own = ["/request", "/announce"];
        for message in subscriber.messages().iter().filter(|m| own.iter().all(|own| !m.topic.ends_with(own))) {
            canaries.absent(&format!("{place}, {}", message.topic), &message.payload);
        }
    }
    let private = ["pki", "identity", "management", "margo/est"].map(|folder| site.data().join(folder));
    for path in listed(&site.data()).into_iter().chain([PathBuf::from(&jsonl), PathBuf::from(&csv)]) {
        if private.iter().all(|folder| !path.starts_with(folder)) {
            canaries.absent(&path.display().to_string(), &std::fs::read(&path).unwrap_or_default());
        }
    }
    let log = gateway.lines().join("\n");
    assert!(log.contains("TRACE"), "the log was not at its loudest: {log}");
}

/// Mistakes in the configuration are told with their place, never with a secret.
#[test]
fn an_error_in_the_configuration_never_prints_a_secret() {
    let mut canaries = Canaries::default();
    canaries.add("the marked secret", IN_URL.as_bytes());
    let device = FakeDevice::start(Mode::Well);
    for wrong in [
        format!("[[broker.user]]\nname = \"ann\"\npassword = \"{IN_URL}\"\npassword_hash = \"{IN_URL}\"\n"),
        format!("[[broker.user]]\nname = \"ann\"\npassword_hash = \"{IN_URL}\"\n"),
        format!("[[broker.user]]\nname = \"ann\"\npasswort = \"{IN_URL}\"\n"),
        format!("[[broker.user]]\nname = \"ann\"\npassword = [\"{IN_URL}\"]\n"),
        format!("[[broker.user]]\nname = \"ann\"\npassword = {{ text = \"{IN_URL}\" }}\n"),
        format!("[[broker.user]]\nname = \"ann\"\npassword = \"{IN_URL}\n"),
        format!("[[uplink]]\nname = \"cloud\"\nservers = [\"mqtt://gw:{IN_URL}@127.0.0.1:1\"]\n"),
        format!("[[uplink]]\nname = \"cloud\"\nservers = [\"mqtt://127.0.0.1:1\"]\npassword = \"{IN_URL}\"\n"),
        format!("[otlp]\nendpoint = \"http://gw:{IN_URL}@127.0.0.1:4318\"\n"),
        format!("[otlp]\nendpoint = \"http://127.0.0.1:4318\"\nheaders = \"{IN_URL}\"\n"),
        format!(
            "[otlp]\nendpoint = \"http://127.0.0.1:4318\"\nheaders = {{ authorization = {{ env = [\"{IN_URL}\"] }} }}\n"
        ),
        format!("[est]\nurl = \"https://gw:{IN_URL}@127.0.0.1:1\"\nanchors = \"x.pem\"\n"),
        format!("[est]\nurl = \"https://127.0.0.1:1\"\nanchors = \"x.pem\"\ntoken = \"{IN_URL}\"\n"),
    ] {
        let site = Site::new(&wrong);
        site.device("pump", device.port(), "", "", POINTS);
        for arguments in [["check"], ["run"]] {
            let output = site.run(&arguments);
            assert!(!output.status.success(), "{wrong} was taken");
            canaries.absent(&format!("the errors of {wrong}"), &output.stderr);
            canaries.absent(&format!("what is printed for {wrong}"), &output.stdout);
        }
    }
}
