//! The whole program as a client of Margo against peers that we did not write: a library for message signatures (RFC 9421) behind
//! the preview interface, and Docker's registry.
#![cfg(feature = "margo")]
#![allow(clippy::unwrap_used, reason = "a test ends with a panic when its surroundings fail")]

mod margo_support;
mod support;
mod whole_support;

use std::process::Command;

use fieldgate::margo::component::RECIPE_TYPE;
use fieldgate_simulators::margo::Deployment;
use margo_support::{Manager, POINT, error};
use serde_json::{Value, json};
use support::{Child, SOON, free_port, python, root, temp_dir, wait_for_port};
use whole_support::{FakeDevice, Mode, Site, errors, stop, text};

/// A certificate of its own for `localhost`, with a key of that kind.
fn openssl(kind: &[&str], certificate: &str, key: &str) {
    let made = Command::new("openssl")
        .args(["req", "-x509", "-nodes", "-days", "2", "-newkey"])
        .args(kind)
        .args(["-subj", "/CN=peer", "-addext", "subjectAltName=DNS:localhost"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout", key, "-out", certificate])
        .output();
    assert!(made.unwrap().status.success(), "openssl makes a certificate");
}

/// The preview interface with that kind of key.
fn requests_are_signed(algorithm: &str, kind: &[&str], more: &str) {
    let site = Site::new("");
    openssl(&["ec", "-pkeyopt", "ec_paramgen_curve:P-256"], &site.file("web.pem"), &site.file("web.key"));
    openssl(kind, &site.file("client.pem"), &site.file("client.key"));
    let mut command = Command::new(python());
    command.arg("-u").arg(root().join("tests/servers/wfm_preview.py"));
    command.args([site.file("web.pem"), site.file("web.key"), algorithm.to_owned()]);
    let manager = Child::spawn("wfm_preview.py", command);
    let ready = manager.wait_for("its port", SOON * 2, |line| line.starts_with("READY"));
    site.main_file(&format!(
        "[margo]\nurl = \"https://localhost:{}/below/this\"\ninterface = \"preview\"\npolling = {{ every = \"1 s\" }}\n\
         trust = {{ ca = \"web.pem\"{more} }}\nidentity = {{ cert = \"client.pem\", key = \"client.key\" }}\n",
        ready.trim_start_matches("READY ")
    ));
    let gateway = site.start();
    let told = |method: &str, path: &str| -> Value {
        let told = |line: &str| serde_json::from_str::<Value>(line).ok();
        let fits = |line: &str| told(line).is_some_and(|told| told["method"] == method && told["path"] == path);
        told(&manager.wait_for(path, SOON, fits)).unwrap()
    };
    let covered = json!(["@method", "@target-uri", "@authority", "content-digest", "@signature-params"]);
    let report = told("POST", "/below/this/api/v1/clients/client-1/capabilities/plant");
    assert_eq!((&report["covered"], &report["alg"]), (&covered, &json!(algorithm)), "{report}");
    let covered = json!(["@method", "@target-uri", "@authority", "@signature-params"]);
    let poll = told("GET", "/below/this/api/v1/clients/client-1/deployments");
    assert_eq!((&poll["covered"], &poll["alg"]), (&covered, &json!(algorithm)), "{poll}");
    stop(gateway);
}

#[test]
fn requests_of_the_preview_interface_are_signed_by_an_ecdsa_key() {
    requests_are_signed("ecdsa-p256-sha256", &["ec", "-pkeyopt", "ec_paramgen_curve:P-256"], "");
}

#[test]
fn requests_of_the_preview_interface_are_signed_by_an_rsa_key_with_pss_or_without() {
    requests_are_signed("rsa-pss-sha512", &["rsa:3072"], "");
    requests_are_signed("rsa-v1_5-sha256", &["rsa:3072"], ", rsa_pss = false");
}

/// `gateway` with the password `secret`, as `htpasswd -B` writes it.
const LOGIN: &str = "gateway:$2b$04$EN72MgZjd2c16LRMcaO0KOBniDWCKBUZQeGs1pIIAJmWfbPBeqSGy\n";

/// Docker's registry, over TLS with a certificate of its own and with a login.
struct Registry {
    address: String,
    folder: tempfile::TempDir,
    _child: Child,
}

impl Registry {
    fn start() -> Self {
        let (folder, port) = (temp_dir(), free_port());
        let path = |name: &str| folder.path().join(name).display().to_string();
        let (certificate, key) = (path("registry.pem"), path("registry.key"));
        openssl(&["ec", "-pkeyopt", "ec_paramgen_curve:P-256"], &certificate, &key);
        std::fs::write(path("htpasswd"), LOGIN).unwrap();
        let configuration = json!({
            "version": 0.1,
            "storage": { "filesystem": { "rootdirectory": path("blobs") } },
            "auth": { "htpasswd": { "realm": "plant", "path": path("htpasswd") } },
            "http": { "addr": format!("127.0.0.1:{port}"), "tls": { "certificate": certificate, "key": key } },
        });
        // Every JSON is YAML.
        std::fs::write(path("registry.yml"), configuration.to_string()).unwrap();
        let mut command = Command::new("docker-registry");
        command.args(["serve", &path("registry.yml")]);
        let child = Child::spawn("docker-registry", command);
        wait_for_port(port, SOON);
        Self { address: format!("localhost:{port}"), folder, _child: child }
    }

    fn push(&self, name: &str, content: &str) -> String {
        let mut command = Command::new(python());
        command.arg(root().join("tests/servers/oci_push.py")).arg(format!("https://{}", self.address));
        let output = command.args(["gateway:secret", name, "1.0", RECIPE_TYPE, content]).output().unwrap();
        assert!(output.status.success(), "{}", errors(&output));
        text(&output).trim().to_owned()
    }
}

#[test]
fn artifacts_come_from_dockers_registry_over_tls_with_a_login() {
    let manager = Manager::start(|_| {});
    let registry = Registry::start();
    let digest = registry.push("recipes/pump", r#"{"values": [{"point": "setpoint", "value": 42}]}"#);
    let settings = |artifacts: &str| {
        let site = manager.settings(&["recipe"], "");
        // The directory of the other tests is no source here.
        site.lines().filter(|line| !line.starts_with("artifacts")).map(|line| format!("{line}\n")).collect::<String>()
            + &format!("artifacts = {{ {artifacts} }}\n")
    };
    let login = "user = \"gateway\", password = \"secret\"";
    let site = Site::new(&settings(&format!("ca = \"registry.pem\", {login}")));
    std::fs::copy(registry.folder.path().join("registry.pem"), site.path().join("registry.pem")).unwrap();
    let device = FakeDevice::start(Mode::Well);
    let head = "delegated = [\"command\"]\nrate = \"200 ms\"\n";
    site.device("pump", device.port(), head, "[modbus.write]\nverify = false\n", POINT);
    manager.join(&site);
    let deploy = |revision: &str| {
        let repository = format!("oci://{}/recipes/pump", registry.address);
        let wanted = Deployment::custom("plant/pump", "pump").component("part", &repository, revision);
        manager.wfm.deploy(wanted).unwrap()
    };
    let gateway = site.start();
    site.wait_for_state("pump", "online");
    for revision in ["1.0", digest.as_str()] {
        let id = deploy(revision);
        manager.reaches(&id, Some("plant/pump"), "installed");
        manager.remove(&id, Some("plant/pump"));
    }
    assert_eq!(device.writes(), [(10, 42), (10, 1_010), (10, 42), (10, 1_010)]);
    let missing = deploy("2.0");
    let (code, _, why) = error(&manager.reaches(&missing, Some("plant/pump"), "failed"));
    assert_eq!(code, "artifact-unavailable", "{why}");
    manager.remove(&missing, Some("plant/pump"));
    stop(gateway);
    // Without its certificate the registry is not believed.
    site.main_file(&settings(login));
    let gateway = site.start();
    let doubted = deploy("1.0");
    let (code, _, why) = error(&manager.reaches(&doubted, Some("plant/pump"), "failed"));
    assert!(code == "artifact-unavailable" && why.contains("certificate"), "{code}: {why}");
    assert_eq!(device.writes().len(), 4);
    stop(gateway);
}
