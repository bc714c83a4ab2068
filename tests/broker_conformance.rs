//! One script of client behaviour, run against mosquitto and against the embedded broker: for subscribers and publishers the
//! two are interchangeable.
//!
//! Needs `mosquitto` (Debian) and a python with paho-mqtt 2.1.0; `FIELDGATE_PYTHON` names it, else `python3`.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fieldgate::broker::{
    Access, Acl, AclRule, Config, EmbeddedBroker, Limits, Listener, LocalBroker, MemoryRetained, User, Who,
};
use fieldgate::platform::clock::SystemClock;
use fieldgate::security::pki::BelievedTime;
use fieldgate::security::{ClientCertificates, PasswordHash, ServerTls, ServerTlsFiles, hash_password};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// A CA, a server certificate for localhost and a client certificate of `scada-1`.
fn certificates(dir: &Path) {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(vec![]).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.distinguished_name.push(DnType::CommonName, "test CA");
    fs::write(dir.join("ca.pem"), ca.self_signed(&ca_key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(ca, ca_key);
    for (name, names) in [("server", vec!["localhost".to_owned()]), ("client", vec![])] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(names).unwrap();
        let common = if name == "client" { "scada-1" } else { "localhost" };
        params.distinguished_name.push(DnType::CommonName, common);
        fs::write(dir.join(format!("{name}.pem")), params.signed_by(&key, &issuer).unwrap().pem()).unwrap();
        fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}

fn python() -> String {
    let python = std::env::var("FIELDGATE_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let found = Command::new(&python).args(["-c", "import paho.mqtt.properties"]).output();
    let found = found.is_ok_and(|out| out.status.success());
    assert!(
        found,
        "{python} has no paho-mqtt: `pip install paho-mqtt==2.1.0` in a venv and set FIELDGATE_PYTHON to its python"
    );
    python
}

fn run_script(broker: &str, dir: &Path, ports: [u16; 3]) {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/servers/mqtt_conformance.py");
    let mut command = Command::new(python());
    command.arg(script).args(["--broker", broker]);
    for (name, port) in ["--open", "--auth", "--tls"].into_iter().zip(ports) {
        command.arg(name).arg(port.to_string());
    }
    for (name, file) in [("--ca", "ca.pem"), ("--cert", "client.pem"), ("--key", "client.key")] {
        command.arg(name).arg(dir.join(file));
    }
    let out = command.output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    println!("{text}{}", String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{broker} does not pass the conformance script:\n{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_broker_passes() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let tls = ServerTls::load(
        ServerTlsFiles {
            certificate: dir.path().join("server.pem"),
            key: dir.path().join("server.key"),
            client_ca: Some(dir.path().join("ca.pem")),
            client_certificates: ClientCertificates::Required,
            revocation_lists: vec![],
        },
        &BelievedTime::new(SystemClock::shared(), 0),
    )
    .unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let rule = |who: &str, access, filter| AclRule::new(Who::parse(who), access, filter).unwrap();
    let acl = Acl {
        rules: vec![
            rule("ann", Access::ReadWrite, "ann/#"),
            rule("ann", Access::Read, "shared/#"),
            rule("scada-1", Access::ReadWrite, "plant/#"),
        ],
        authenticated: Access::Deny,
        anonymous: Access::ReadWrite,
    };
    let hash: PasswordHash = hash_password(&"secret".into()).unwrap();
    let listeners =
        vec![Listener::tcp(any), Listener { anonymous: false, ..Listener::tcp(any) }, Listener::tls(any, tls)];
    let users = vec![User { name: "ann".into(), hash }];
    let config = Config::new(listeners, users, acl, Limits::default()).unwrap();
    let broker = EmbeddedBroker::start(config, MemoryRetained::default(), SystemClock::shared()).await.unwrap();
    let ports: Vec<u16> = broker.addresses().iter().map(SocketAddr::port).collect();
    let path = dir.path().to_owned();
    tokio::task::spawn_blocking(move || run_script("fieldgate", &path, ports.try_into().unwrap())).await.unwrap();
    let stats = broker.stats();
    assert_eq!((stats.slow_clients, stats.queued_bytes), (0, 0), "{stats:?}");
    broker.shutdown().await;
}

/// A mosquitto that stops with the test.
struct Mosquitto(Child);

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn mosquitto(dir: &Path) -> (Mosquitto, [u16; 3]) {
    let free: Vec<TcpListener> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let ports: Vec<u16> = free.iter().map(|s| s.local_addr().unwrap().port()).collect();
    let [open, auth, tls]: [u16; 3] = ports.try_into().unwrap();
    drop(free);
    let made =
        Command::new("mosquitto_passwd").args(["-b", "-c"]).arg(dir.join("passwd")).args(["ann", "secret"]).status();
    assert!(made.is_ok_and(|s| s.success()), "mosquitto_passwd cannot be run; install Debian's mosquitto");
    fs::write(
        dir.join("acl"),
        "user ann\ntopic readwrite ann/#\ntopic read shared/#\nuser scada-1\ntopic readwrite plant/#\n",
    )
    .unwrap();
    let d = dir.display();
    // It gives up root after start: what it reads then must be readable.
    let config = format!(
        "user root\nper_listener_settings true\nmax_queued_messages 10000\n\
         listener {open} 127.0.0.1\nallow_anonymous true\n\
         listener {auth} 127.0.0.1\nallow_anonymous false\npassword_file {d}/passwd\nacl_file {d}/acl\n\
         listener {tls} localhost\ncafile {d}/ca.pem\ncertfile {d}/server.pem\nkeyfile {d}/server.key\n\
         require_certificate true\nuse_identity_as_username true\nacl_file {d}/acl\n"
    );
    fs::write(dir.join("mosquitto.conf"), config).unwrap();
    let binary = ["/usr/sbin/mosquitto", "mosquitto"].into_iter().find(|b| Command::new(b).arg("-h").output().is_ok());
    let binary = binary.expect("mosquitto cannot be run; install Debian's mosquitto");
    let child = Command::new(binary).arg("-c").arg(dir.join("mosquitto.conf")).stderr(Stdio::null()).spawn().unwrap();
    let child = Mosquitto(child);
    let end = Instant::now() + Duration::from_secs(10);
    while [open, auth, tls].iter().any(|&port| TcpStream::connect(("127.0.0.1", port)).is_err()) {
        assert!(Instant::now() < end, "mosquitto does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    (child, [open, auth, tls])
}

#[test]
fn mosquitto_passes_too() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let (_mosquitto, ports) = mosquitto(dir.path());
    run_script("mosquitto", dir.path(), ports);
}
