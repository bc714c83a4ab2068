//! Certificates on the running gateway: the plant's authority behind a listener, renewal and revocation while clients stay,
//! alarms about lives that end, and the gateway's own enrolment.
#![allow(clippy::unwrap_used, reason = "a test ends with a panic when its surroundings fail")]

#[path = "northbound_support/certs.rs"]
#[allow(dead_code, clippy::unwrap_used, reason = "written for tests; only the files are needed here")]
mod certs;
mod support;
mod whole_support;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use certs::Authority;
use fieldgate::platform::clock::{ManualClock, SharedClock};
use fieldgate::security::pki::{ClientSubject, Pki, PkiConfig, ServerNames};
use fieldgate_simulators::est::{EstServer, Fault, Options};
use support::{Mosquitto, SOON, Subscriber, eventually, free_port, publish};
use whole_support::{FakeDevice, Mode, Site, body, errors, now_ms, stop, text};

const TOKEN: &str = "MARKED-ENROLMENT-TOKEN";
const POINTS: &str = "[[points]]\nid = \"a\"\ntable = \"holding\"\naddress = 1\n";
const EAGER: &str = "rate = \"200 ms\"\non_change = false\n";

/// A site with one device and a TLS listener of the plant's authority, and that listener's port.
fn plant(more: &str) -> (Site, FakeDevice, u16) {
    let (device, port) = (FakeDevice::start(Mode::Well), free_port());
    let listener = format!(
        "[[broker.listener]]\naddress = \"127.0.0.1:{port}\"\ntls = {{ plant = true, require_client_cert = true }}\n{more}"
    );
    let site = Site::new(&listener);
    site.device("one", device.port(), EAGER, "", POINTS);
    (site, device, port)
}

/// Issues a certificate by the command line; the directory with the three files, and the serial.
fn issue(site: &Site, kind: &str, name: &str) -> (PathBuf, String) {
    let out = site.path().join(format!("out-{name}"));
    let told = site.json(&["certs", "issue", kind, name, "--out", &out.display().to_string(), "--json"]);
    (out, told["serial"].as_str().expect("a serial").to_owned())
}

/// Arguments by which an MQTT client shows what `issue` gave.
fn shown(files: &Path) -> [String; 6] {
    let file = |name: &str| files.join(name).display().to_string();
    ["--cafile", "--cert", "--key"]
        .into_iter()
        .zip(["ca.pem", "cert.pem", "key.pem"])
        .flat_map(|(key, name)| [key.to_owned(), file(name)])
        .collect::<Vec<_>>()
        .try_into()
        .expect("six")
}

fn strs(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

/// The serial of the certificate that a listener shows now.
fn served(port: u16) -> Option<String> {
    let script =
        format!("openssl s_client -connect 127.0.0.1:{port} </dev/null 2>/dev/null | openssl x509 -noout -serial");
    let output = Command::new("sh").args(["-c", &script]).output().expect("openssl is installed");
    let line = text(&output).trim().to_lowercase();
    line.strip_prefix("serial=").map(|serial| serial.trim_start_matches('0').to_owned())
}

/// Every private key below a directory is for its owner's eyes only.
fn assert_keys_are_private(directory: &Path, at_least: usize) {
    let mut keys = 0;
    let mut folders = vec![directory.to_owned()];
    while let Some(folder) = folders.pop() {
        assert_eq!(std::fs::metadata(&folder).unwrap().permissions().mode() & 0o077, 0, "{}", folder.display());
        for entry in std::fs::read_dir(&folder).unwrap().flatten() {
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() && std::fs::read_to_string(&path).is_ok_and(|text| text.contains("PRIVATE KEY")) {
                keys += 1;
                assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{}", path.display());
            }
        }
    }
    assert!(keys >= at_least, "{keys} keys in {}", directory.display());
}

#[test]
fn a_listener_is_renewed_while_a_client_stays_and_a_revoked_client_is_out_at_once() {
    let (site, _device, port) = plant("");
    let gateway = site.start();
    let (files, _) = issue(&site, "--user", "ann");
    let (other, _) = issue(&site, "--device", "meter-9");
    let (ann, meter) = (shown(&files), shown(&other));
    let staying = Subscriber::start(port, "fieldgate/v1/plant/devices/one/telemetry", &strs(&ann));
    staying.wait_for_count(3, SOON);
    assert_keys_are_private(&site.data().join("pki"), 2);

    // Nobody without a certificate, and nobody with one of another authority.
    let nobody = publish(port, "x", "y", &["--cafile", &files.join("ca.pem").display().to_string()]);
    assert!(nobody.is_err(), "a client without certificate got in");

    // Renewed by hand: new handshakes see it within seconds, the client that is there notices nothing.
    let before = served(port).expect("a certificate is shown");
    let listed = site.json(&["certs", "list", "--json"]);
    let server =
        listed.as_array().unwrap().iter().find(|row| row["purpose"] == "server").expect("the listener's").clone();
    assert_eq!(server["serial"].as_str().map(|s| s.trim_start_matches('0')), Some(before.as_str()));
    let renewed = site.json(&["certs", "renew", server["serial"].as_str().unwrap(), "--json"]);
    let wanted = renewed["serial"].as_str().unwrap().trim_start_matches('0').to_owned();
    assert_ne!(wanted, before);
    eventually("the new certificate in new handshakes", SOON, || (served(port)? == wanted).then_some(()));
    let seen = staying.messages().len();
    staying.wait_for_count(seen + 5, SOON);

    // Revoked: the connection ends, and no new one is made. Others go on.
    let other = Subscriber::start(port, "fieldgate/v1/plant/devices/meter-9/telemetry", &strs(&meter));
    publish(port, "fieldgate/v1/plant/devices/meter-9/telemetry", "own", &strs(&meter)).unwrap();
    other.wait_for_count(1, SOON);
    // A device touches its own topics only, although no rule of the file says so.
    let curious = Subscriber::start(port, "fieldgate/v1/plant/devices/#", &strs(&meter));
    let witness = Subscriber::start(port, "fieldgate/v1/plant/devices/+/x", &strs(&ann));
    let _refused = publish(port, "fieldgate/v1/plant/devices/one/x", "strange", &strs(&meter));
    publish(port, "fieldgate/v1/plant/devices/meter-9/x", "own", &strs(&meter)).unwrap();
    witness.wait_for("the device's own message", SOON, |message| message.payload == b"own");
    assert!(witness.messages().iter().all(|message| message.payload != b"strange"), "it spoke for another device");
    assert!(curious.messages().is_empty(), "it heard of other devices");
    let serial = site
        .json(&["certs", "list", "--json"])
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["subject"] == "meter-9")
        .unwrap()["serial"]
        .clone();
    let revoked = site.run(&["certs", "revoke", serial.as_str().unwrap(), "--reason", "key-compromise", "--yes"]);
    assert!(revoked.status.success(), "{}", errors(&revoked));
    gateway.wait_for("that the revoked client is disconnected", SOON, |line| line.contains("may not connect any more"));
    eventually("a refusal of the revoked certificate", SOON, || {
        publish(port, "x", "y", &strs(&meter)).is_err().then_some(())
    });
    let seen = staying.messages().len();
    staying.wait_for_count(seen + 5, SOON);
    assert!(publish(port, "x", "y", &strs(&ann)).is_ok(), "an innocent client is refused");
    stop(gateway);
}

#[test]
fn a_device_touches_its_own_topics_only_whatever_the_rules_for_others_say() {
    let (site, _device, port) = plant("[[broker.acl]]\nuser = \"*\"\ntopics = [\"#\"]\n");
    let gateway = site.start();
    let (ann, meter) = (shown(&issue(&site, "--user", "ann").0), shown(&issue(&site, "--device", "meter-9").0));
    let root = "fieldgate/v1/plant";
    let own = format!("{root}/devices/meter-9/x");
    let others = ["x", "devices/meter-9/x"].map(str::to_owned).into_iter();
    let others =
        others.chain(["x", "management/x", "devices/one/x", "devices/meter-90/x"].map(|t| format!("{root}/{t}")));
    let others: Vec<String> = others.collect();

    // It hears what it is told, and nothing else, however it asks.
    let wide = ["#", "+/x", "$SYS/#"].map(str::to_owned).into_iter();
    let wide = wide.chain(["#", "devices/#", "devices/+/x", "devices/one/x"].map(|t| format!("{root}/{t}")));
    let asked: Vec<String> = wide.chain(others.clone()).flat_map(|filter| ["-t".to_owned(), filter]).collect();
    let heard = Subscriber::start(port, &own, &[strs(&asked), strs(&meter)].concat());
    for topic in others.iter().chain([&own]) {
        publish(port, topic, "from ann", &strs(&ann)).unwrap();
    }
    heard.wait_for("what is its own", SOON, |message| message.topic == own);
    assert!(heard.messages().iter().all(|message| message.topic == own), "it heard what is not its own");

    // It speaks for itself only.
    let witness = Subscriber::start(port, "#", &strs(&ann));
    for topic in &others {
        let _refused = publish(port, topic, "from meter-9", &strs(&meter));
    }
    publish(port, &own, "from meter-9", &strs(&meter)).unwrap();
    let said = |message: &support::Message| message.payload == b"from meter-9";
    witness.wait_for("its own message", SOON, |message| said(message) && message.topic == own);
    let strange = witness.messages().into_iter().find(|message| said(message) && message.topic != own);
    assert!(strange.is_none(), "it spoke on {:?}", strange.map(|message| message.topic));
    stop(gateway);
}

#[test]
fn a_device_that_announces_itself_gets_its_request_signed_on_its_topic_and_renews_with_what_it_got() {
    let (site, _device, port) = plant("");
    let gateway = site.start();
    let token = site.json(&["onboard", "token", "meter-9", "--json"])["token"].as_str().unwrap().to_owned();
    let files = issue(&site, "--user", "ann").0;
    let topic = |kind: &str| format!("fieldgate/v1/plant/devices/meter-9/{kind}");
    let openssl = |arguments: &[&str]| {
        let output = Command::new("openssl").args(arguments).current_dir(&files).output().unwrap();
        assert!(output.status.success(), "{}", errors(&output));
        text(&output)
    };
    openssl(&["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "key.pem"]);
    openssl(&["req", "-new", "-key", "key.pem", "-subj", "/CN=whatever", "-out", "request.pem"]);
    let request = std::fs::read_to_string(files.join("request.pem")).unwrap();
    let announce = |number: u32, token: &str| {
        let plate = serde_json::json!({"vendor": "ACME", "serial": "9", "protocol": "mqtt", "token": token,
            "correlationId": format!("n{number}"), "signingRequest": request});
        plate.to_string()
    };

    // The first time it has nothing but a token.
    publish(site.port(), &topic("onboarding/announce"), &announce(1, &token), &[]).unwrap();
    let told = Subscriber::start(site.port(), &topic("onboarding"), &[]);
    let certificate = |message: &support::Message| {
        let chain = body(&message.payload)["certificate"].as_str().map(str::to_owned);
        chain.filter(|chain| !chain.is_empty())
    };
    let first = told.wait_for("its certificate", SOON, |message| certificate(message).is_some());
    std::fs::write(files.join("cert.pem"), certificate(&first).unwrap()).unwrap();
    assert_eq!(body(&first.payload)["state"], "active");
    openssl(&["verify", "-CAfile", "ca.pem", "-purpose", "sslclient", "cert.pem"]);

    // From then on it is known by its certificate, which brings it the next one.
    let shown = shown(&files);
    let own = Subscriber::start(port, &topic("onboarding"), &strs(&shown));
    own.wait_for("where it stands", SOON, |message| certificate(message) == certificate(&first));
    publish(port, &topic("onboarding/announce"), &announce(2, ""), &strs(&shown)).unwrap();
    let second = own.wait_for("its next certificate", SOON, |message| {
        certificate(message).is_some_and(|chain| Some(chain) != certificate(&first))
    });
    let serial = |chain: String| {
        std::fs::write(files.join("shown.pem"), chain).unwrap();
        openssl(&["x509", "-in", "shown.pem", "-noout", "-serial"])
    };
    assert_ne!(serial(certificate(&first).unwrap()), serial(certificate(&second).unwrap()));
    let kept = site.json(&["certs", "list", "--json"]).to_string();
    assert!(kept.matches("meter-9").count() >= 2, "{kept}");

    // With its end here they are worth nothing, and its topic is empty.
    site.done(&["onboard", "decommission", "meter-9", "--yes"]);
    eventually("it is out", SOON, || publish(port, &topic("x"), "still here", &strs(&shown)).err());
    stop(gateway);
}

/// An authority whose certificates were made `days` ago, in the gateway's place.
fn made_ago(site: &Site, days: u64) -> String {
    let config = PkiConfig::new(&site.data().join("pki"));
    std::fs::create_dir_all(site.data()).unwrap();
    std::fs::set_permissions(site.data(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let clock: SharedClock = ManualClock::at(now_ms() - days as i64 * 86_400_000);
    let mut pki = Pki::create(config, "Plant", clock).unwrap();
    let host = fieldgate::platform::process::host_id();
    let names = ServerNames::of_host(&host).or_else(|_| ServerNames::of_host("gateway")).unwrap();
    let listener = pki.issue_server("mqtt", &names).unwrap();
    pki.issue_client(&ClientSubject::user("ann").unwrap()).unwrap();
    listener.serial.to_string()
}

#[test]
fn what_is_due_is_renewed_by_itself_and_a_life_that_ends_is_an_event_and_stands_in_health() {
    let (site, _device, port) = plant("");
    let old = made_ago(&site, 365 * 83 / 100);
    let gateway = site.start();
    // The events were written before anybody could subscribe: the second gateway to look is the command line.
    gateway.wait_for("a renewal", SOON, |line| line.contains("new server certificate in use"));
    eventually("the new certificate", SOON, || (served(port)? != old.trim_start_matches('0')).then_some(()));
    let health = site.subscribe("health");
    let told = health.wait_for("the certificate that ends", SOON, |message| {
        body(&message.payload)["problems"].to_string().contains("20 % of the life of the certificate of ann")
    });
    assert!(!body(&told.payload)["problems"].to_string().contains("mqtt"), "the renewed one needs no attention");
    stop(gateway);
}

#[test]
fn an_authority_that_cannot_be_used_stops_nothing_but_a_listener_that_needs_it() {
    let (site, _device, _) = plant("");
    made_ago(&site, 10);
    let key = site.data().join("pki/ca/ca.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let refused = site.run(&["run"]);
    assert!(!refused.status.success() && errors(&refused).contains("chmod 600"), "{}", errors(&refused));
    // Without the listener the values flow, and health says what is wrong.
    site.main_file("");
    let gateway = site.start();
    let health = site.subscribe("health");
    health.wait_for("the problem", SOON, |message| {
        body(&message.payload)["problems"].to_string().contains("certificate authority cannot be used")
    });
    site.wait_for_state("one", "online");
    stop(gateway);
    // Nobody made one, and nobody may: the listener says what to do.
    std::fs::remove_dir_all(site.data().join("pki")).unwrap();
    let port = free_port();
    site.main_file(&format!(
        "[[broker.listener]]\naddress = \"127.0.0.1:{port}\"\ntls = {{ plant = true }}\n[pki]\ncreate = false\n"
    ));
    let refused = site.run(&["run"]);
    assert!(errors(&refused).contains("certs ca --create"), "{}", errors(&refused));
}

fn identity(site: &Site) -> Option<String> {
    let link = std::fs::read_link(site.data().join("identity/current")).ok()?;
    Some(link.display().to_string())
}

#[test]
fn the_gateway_enrols_shows_its_certificate_to_a_broker_and_renews_it_while_connected() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let credentials = Some(("gw".to_owned(), TOKEN.to_owned()));
    // The server dates a minute back, so 40 to 60 % of this are over after 0 to 30 s.
    let options = Options { listen: "127.0.0.1:0".parse().unwrap(), credentials, life: Duration::from_secs(150) };
    let est = runtime.block_on(EstServer::start(options)).unwrap();
    // The first answer is "not decided yet": the gateway runs all the same, and asks again.
    let folder = support::temp_dir();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let authority = Authority::new();
    let broker = authority.sign("localhost");
    for (name, content) in [
        ("est-root.pem", est.root_pem()),
        ("broker-ca.pem", authority.pem.clone()),
        ("broker.pem", broker.cert.clone()),
        ("broker.key", broker.key.clone()),
        ("token", TOKEN.to_owned()),
    ] {
        std::fs::write(path(name), content).unwrap();
    }
    let mut broker = Mosquitto::with_config(&format!(
        "allow_anonymous false\ncafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true\nuse_identity_as_username true\n",
        path("est-root.pem"),
        path("broker.pem"),
        path("broker.key"),
    ));
    let device = FakeDevice::start(Mode::Well);
    let site = Site::new(&format!(
        "[est]\nurl = \"{}\"\nanchors = \"{}\"\nuser = \"gw\"\ntoken = {{ file = \"{}\" }}\ncommon_name = \"gw-7\"\n\n\
         [[uplink]]\nname = \"site\"\nservers = [\"mqtts://localhost:{}\"]\nreconnect_max = \"1 s\"\n\
         tls = {{ ca = \"{}\", enrolled = true }}\n",
        est.url(),
        path("est-root.pem"),
        path("token"),
        broker.port(),
        path("broker-ca.pem"),
    ));
    site.device("one", device.port(), EAGER, "", POINTS);
    est.script([Fault::Busy(1)]);
    let gateway = site.start();
    let events = site.subscribe("events");
    broker.wait_for_log("the gateway under its enrolled name", |line| line.contains("u'gw-7'"));
    let first = identity(&site).expect("it is enrolled");
    assert_keys_are_private(&site.data().join("identity"), 1);

    // Renewed with the old certificate, while the connection stays.
    eventually("another certificate", SOON * 3, || (identity(&site)? != first).then_some(()));
    events.wait_for("the renewal", SOON * 3, |message| {
        let told = body(&message.payload);
        told["kind"] == "identity-granted" && told["message"].as_str().is_some_and(|text| text.contains("renewed"))
    });
    let renewal = est.log().into_iter().rfind(|asked| asked.act == "simplereenroll").expect("it was asked for");
    assert_eq!((renewal.mutual, renewal.credentials), (true, None), "by mutual TLS, and without the token");
    let closed = |line: &str| line.contains("u'gw-7'");
    assert_eq!(broker.log().iter().filter(|line| closed(line)).count(), 1, "the connection did not stay");
    // The next connection shows the certificate of then.
    broker.restart();
    broker.wait_for_log("the gateway again", |line| line.contains("u'gw-7'"));
    let said = gateway.lines().join("\n");
    assert!(!said.contains(TOKEN) && !said.contains("PRIVATE KEY"), "a secret was logged");
    stop(gateway);
}
