//! The mosquitto configuration in `broker-config/` works: rules, TLS, and retained messages over a restart.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

struct Mosquitto(Child);

impl Mosquitto {
    fn start(config: &Path, port: u16) -> Self {
        let binary =
            ["/usr/sbin/mosquitto", "mosquitto"].into_iter().find(|b| Command::new(b).arg("-h").output().is_ok());
        let binary = binary.expect("mosquitto cannot be run; install Debian's mosquitto");
        let broker = Mosquitto(Command::new(binary).arg("-c").arg(config).stderr(Stdio::null()).spawn().unwrap());
        let end = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < end, "mosquitto does not listen on {port}: is the configuration refused?");
            std::thread::sleep(Duration::from_millis(20));
        }
        broker
    }

    fn stop(mut self) {
        let stopped = Command::new("kill").arg(self.0.id().to_string()).status().unwrap();
        assert!(stopped.success() && self.0.wait().unwrap().success());
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn files(dir: &Path, ports: [u16; 2]) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("broker-config/mosquitto");
    let here = dir.display();
    let config = fs::read_to_string(source.join("mosquitto.conf"))
        .unwrap()
        .replace("/etc/mosquitto", &here.to_string())
        .replace("/var/lib/mosquitto/", &format!("{here}/"))
        .replace("listener 1883 127.0.0.1", &format!("listener {} 127.0.0.1", ports[0]))
        .replace("listener 8883", &format!("listener {} 127.0.0.1", ports[1]));
    // As root it would give up its rights before it reads the files of this test.
    fs::write(dir.join("mosquitto.conf"), format!("user root\n{config}")).unwrap();
    fs::copy(source.join("acl"), dir.join("acl")).unwrap();
    fs::write(dir.join("passwd"), "").unwrap();
    for user in ["fieldgate", "scada", "viewer"] {
        let made = Command::new("mosquitto_passwd").arg("-b").arg(dir.join("passwd")).args([user, "secret"]).output();
        assert!(
            made.is_ok_and(|out| out.status.success()),
            "mosquitto_passwd cannot be run; install Debian's mosquitto"
        );
    }
    fs::create_dir(dir.join("certs")).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).unwrap().pem();
    fs::write(dir.join("certs/server.key"), key.serialize_pem()).unwrap();
    fs::write(dir.join("certs/server.pem"), &certificate).unwrap();
    fs::write(dir.join("certs/ca.pem"), &certificate).unwrap();
    dir.join("mosquitto.conf")
}

fn tool(name: &str, port: u16, user: &str, args: &[&str]) -> Output {
    let port = port.to_string();
    Command::new(name)
        .args(["-h", "localhost", "-p", &port, "-u", user, "-P", "secret"])
        .args(args)
        .output()
        .unwrap_or_else(|e| panic!("{name} cannot be run ({e}); install Debian's mosquitto-clients"))
}

#[test]
fn it_starts_keeps_its_rules_and_its_retained_messages() {
    let dir = tempfile::tempdir().unwrap();
    let free: Vec<TcpListener> = (0..2).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let ports: [u16; 2] = [0, 1].map(|i: usize| free[i].local_addr().unwrap().port());
    drop(free);
    let config = files(dir.path(), ports);
    let broker = Mosquitto::start(&config, ports[0]);
    let status = "fieldgate/v1/plant/status";
    assert!(
        tool("mosquitto_pub", ports[0], "fieldgate", &["-t", status, "-m", "online", "-r", "-q", "1"]).status.success()
    );
    let stranger = tool("mosquitto_pub", ports[0], "stranger", &["-t", status, "-m", "x"]);
    assert!(!stranger.status.success(), "a stranger gets in");
    assert!(
        tool("mosquitto_pub", ports[0], "viewer", &["-t", status, "-m", "forged", "-r", "-q", "1"]).status.success()
    );
    broker.stop();

    let _broker = Mosquitto::start(&config, ports[0]);
    let ca = dir.path().join("certs/ca.pem");
    let args = ["--cafile", ca.to_str().unwrap(), "-t", "fieldgate/v1/#", "-C", "1", "-W", "10"];
    let got = tool("mosquitto_sub", ports[1], "viewer", &args);
    assert_eq!(
        String::from_utf8_lossy(&got.stdout).trim(),
        "online",
        "over TLS, after a restart, the viewer's forgery refused"
    );
}
