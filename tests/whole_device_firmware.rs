//! Firmware of devices on the real program: over topics and at the command line, by Modbus file records to a simulated device
//! and by MQTT chunks to a vendor's, with updates that fail, that nobody signed, that nobody may ask for, and kills in between.
#![allow(clippy::unwrap_used, reason = "a test ends with a panic when its surroundings fail")]

mod support;
mod whole_support;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use fieldgate_simulators::firmware_target::{FirmwareTarget, Settings, Trouble};
use serde_json::{Value, json};
use support::{PythonServer, SOON, Subscriber, eventually, publish};
use whole_support::{Site, body, stop};

const ENGINEER: &str = "[[management.role]]\nidentity = \"mqtt:*\"\nrole = \"engineer\"\n";
const POINTS: &str = "[[points]]\nid = \"state\"\ntable = \"holding\"\naddress = 0\n";
const EAGER: &str = "tier = 2\nrate = \"100 ms\"\non_change = false\n";
/// The device is gone while it restarts; nobody waits long for it.
const PATIENT: &str = "breaker = { failures = 100 }\n";
const PROFILE: &str = "[firmware]\nmethod = \"modbus-files\"\nstatus = 0\ncommand = 1\nsize = 2\nreceived = 4\ndigest = 8\n\
    version = 32\nprove_within = \"20 s\"\n";

struct Bench {
    site: Site,
    device: FirmwareTarget,
    runtime: tokio::runtime::Runtime,
}

impl Bench {
    /// A device `pump` that takes firmware, and a bus-mate `mate` on the same link that does not.
    fn new(roles: &str, trouble: Trouble, profile: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let settings = Settings { listen, version: "1.0.0".to_owned(), restart: Duration::from_millis(300), trouble };
        let device = runtime.block_on(FirmwareTarget::start(settings)).unwrap();
        let bench = Self { site: Site::new(""), device, runtime };
        for key in ["plant", "stranger"] {
            bench.site.done(&["firmware", "keygen", &bench.site.file(key)]);
        }
        bench.site.main_file(&format!("[firmware]\nkeys = [\"plant.pub\"]\n\n{roles}"));
        bench.site.write("profiles/pump-p7.toml", &format!("{PROFILE}{profile}\n{POINTS}"));
        let port = bench.device.address().port();
        bench.site.device("pump", port, &format!("profile = \"pump-p7\"\n{EAGER}"), PATIENT, "");
        let link = format!("[modbus]\nlink = \"tcp://127.0.0.1:{port}\"\nunit = 2\n{PATIENT}");
        bench.site.write("devices/mate.toml", &format!("{EAGER}{link}{POINTS}"));
        bench
    }

    /// An image of the device that says its version, and its signed manifest.
    fn image(&self, version: &str, size: usize) -> (Vec<u8>, String) {
        let mut image = format!("#!/bin/sh\necho {version}\n").into_bytes();
        image.resize_with(size, || b'#');
        std::fs::write(self.site.file("image"), &image).unwrap();
        (image, self.sign("plant", "pump-p7", version))
    }

    fn sign(&self, key: &str, target: &str, version: &str) -> String {
        let (image, key) = (self.site.file("image"), self.site.file(key));
        self.site.done(&["firmware", "sign", &image, "--key", &key, "--target", target, "--release", version]);
        std::fs::read_to_string(self.site.file("image.manifest")).unwrap()
    }

    fn url(&self) -> String {
        format!("file://{}", self.site.file("image"))
    }

    /// Publishes a request and waits for its answer.
    fn ask(&self, topic: &str, request: &Value) -> Value {
        let (head, _) = topic.rsplit_once('/').unwrap();
        let results = self.site.subscribe(&format!("{head}/result"));
        publish(self.site.port(), &format!("fieldgate/v1/plant/{topic}"), &request.to_string(), &[]).unwrap();
        let id = request["correlationId"].as_str().unwrap();
        shown(&results, |b| b["correlationId"] == id)
    }

    fn offer(&self, id: &str, manifest: &str) -> Value {
        let offer = json!({"correlationId": id, "manifest": manifest, "url": self.url()});
        self.ask("devices/pump/firmware/desired", &offer)
    }

    fn approve(&self, id: &str) -> Value {
        self.ask("devices/pump/firmware/request", &json!({"correlationId": id, "action": "approve"}))
    }

    fn audit(&self, action: &str) -> Vec<Value> {
        let all = self.site.json(&["audit", "--device", "pump", "--json", "--last", "10000"]);
        all.as_array().unwrap().iter().filter(|entry| entry["action"] == action).cloned().collect()
    }

    /// What the command line says of the job, once it is over.
    fn over(&self) -> Value {
        eventually("the end of the job", SOON * 4, || {
            let jobs = self.site.json(&["firmware", "status", "pump", "--json"]);
            let job = jobs.as_array()?.first()?.clone();
            let stage = job["stage"].as_str().unwrap_or_default().to_owned();
            ["done", "rolled-back", "failed", "refused"].contains(&stage.as_str()).then_some(job)
        })
    }

    fn end(self) {
        drop(self.device);
        self.runtime.shutdown_background();
    }
}

/// The last message that fits.
fn shown(subscriber: &Subscriber, fits: impl Fn(&Value) -> bool) -> Value {
    eventually("the topic to show it", SOON * 2, || {
        let all = subscriber.messages();
        all.iter().rev().filter(|m| !m.payload.is_empty()).map(|m| body(&m.payload)).find(|b| fits(b))
    })
}

#[test]
fn an_offer_over_topics_is_approved_transferred_proven_and_disturbs_nobody() {
    let bench = Bench::new(ENGINEER, Trouble::Busy, "rate = \"24 KiB\"\n");
    let gateway = bench.site.start();
    bench.site.wait_for_state("pump", "online");
    bench.site.wait_for_state("mate", "online");
    let status = bench.site.subscribe("devices/pump/firmware/status");
    let (image, manifest) = bench.image("2.0.0", 60_001);
    let offered = bench.offer("o1", &manifest);
    assert_eq!((&offered["outcome"], &offered["action"]), (&json!("DONE"), &json!("firmware-offer")), "{offered}");
    let waits = shown(&status, |b| b["stage"] == "offered");
    assert_eq!(
        (&waits["job"], &waits["fromVersion"], &waits["version"]),
        (&json!("o1"), &json!("1.0.0"), &json!("2.0.0"))
    );
    assert_eq!(bench.device.writes(), 0, "nothing begins without a word");
    assert_eq!(bench.approve("a1")["outcome"], "DONE");
    shown(&status, |b| b["stage"] == "installing" && b["progress"].as_f64() > Some(0.1));
    let (began, reads) = (Instant::now(), bench.device.reads(2));
    shown(&status, |b| b["stage"] == "installing" && b["progress"].as_f64() > Some(0.7));
    let (time, reads) = (began.elapsed(), bench.device.reads(2) - reads);
    assert!(reads as f64 > time.as_secs_f64() * 10.0 * 0.4, "the bus-mate was read {reads} times in {time:?}");
    let job = bench.over();
    assert_eq!(job["stage"], "done", "{job}");
    let done = shown(&status, |b| b["stage"] == "done");
    assert_eq!((&done["approvedBy"], &done["progress"]), (&json!("mqtt:local:anonymous"), &json!(1.0)), "{done}");
    assert!(bench.device.image() == image && bench.device.version() == "2.0.0");
    let capabilities = bench.site.subscribe("devices/pump/capabilities");
    let known = shown(&capabilities, |b| b["firmware"] == "2.0.0");
    assert!(known["functions"].as_array().unwrap().contains(&json!("firmware")), "{known}");
    // What comes again is answered again, and done once; another request under the same name is none.
    let writes = bench.device.writes();
    assert_eq!(bench.offer("o1", &manifest)["outcome"], "DONE");
    assert_eq!(bench.approve("a1")["outcome"], "DONE");
    let abort = json!({"correlationId": "a1", "action": "abort"});
    assert_eq!(bench.ask("devices/pump/firmware/request", &abort)["code"], "correlation-reused");
    let after = bench.site.json(&["firmware", "status", "pump", "--json"]);
    assert_eq!((after[0]["stage"].as_str(), bench.device.writes()), (Some("done"), writes));
    for action in ["firmware-offer", "firmware-approve"] {
        let entries: Vec<_> = bench.audit(action).into_iter().filter(|entry| entry["outcome"] == "done").collect();
        assert_eq!(entries.len(), 1, "{action}: {entries:?}");
        assert_eq!(entries[0]["actor"], "mqtt:local:anonymous");
    }
    stop(gateway);
    bench.end();
}

#[test]
fn an_image_that_is_damaged_on_its_way_or_does_not_start_leaves_the_old_one_running() {
    for trouble in [Trouble::DoesNotStart, Trouble::BadMemory] {
        let bench = Bench::new(ENGINEER, trouble, "");
        let gateway = bench.site.start();
        bench.site.wait_for_state("pump", "online");
        let events = bench.site.subscribe("devices/pump/events");
        bench.image("2.0.0", 5_000);
        let (manifest, url) = (bench.site.file("image.manifest"), bench.url());
        bench.site.done(&["firmware", "set", &manifest, "--for", "pump", "--url", &url]);
        bench.site.done(&["firmware", "approve", "pump"]);
        let job = bench.over();
        assert_eq!(
            (&job["stage"], &job["code"]),
            (&json!("rolled-back"), &json!("device-failed")),
            "{trouble:?}: {job}"
        );
        assert_eq!(bench.device.version(), "1.0.0");
        shown(&events, |b| b["kind"] == "firmware-rolled-back" && b["severity"] == "ALARM");
        // The device is as before: the next update is its own matter.
        bench.device.set_trouble(Trouble::None);
        bench.site.done(&["firmware", "set", &manifest, "--for", "pump", "--upload", &bench.site.file("image")]);
        let job = bench.over();
        assert_eq!((job["stage"].as_str(), bench.device.version().as_str()), (Some("done"), "2.0.0"), "{job}");
        stop(gateway);
        bench.end();
    }
}

#[test]
fn what_is_unsigned_wrongly_signed_older_truncated_or_for_others_is_refused_on_its_topic() {
    let bench = Bench::new(ENGINEER, Trouble::None, "");
    let gateway = bench.site.start();
    bench.site.wait_for_state("pump", "online");
    let (image, good) = bench.image("2.0.0", 3_000);
    let unsigned: String = good.lines().filter(|l| !l.starts_with("signature")).map(|l| format!("{l}\n")).collect();
    let offers = [
        (unsigned, "unsigned"),
        (good.replace("2.0.0", "2.0.1"), "bad-signature"),
        (bench.sign("stranger", "pump-p7", "2.0.0"), "bad-signature"),
        (bench.sign("plant", "pump-p8", "2.0.0"), "wrong-target"),
        (bench.sign("plant", "pump-p7", "0.9.0"), "older"),
        (bench.sign("plant", "pump-p7", "1.0.0"), "same"),
        ("nothing".to_owned(), "malformed"),
    ];
    for (n, (manifest, code)) in offers.iter().enumerate() {
        let answer = bench.offer(&format!("bad-{n}"), manifest);
        assert_eq!((&answer["outcome"], &answer["code"]), (&json!("REJECTED"), &json!(code)), "{answer}");
    }
    let offer = |id: &str| json!({"correlationId": id, "manifest": good, "url": bench.url()});
    assert_eq!(bench.ask("devices/mate/firmware/desired", &offer("mate"))["code"], "no-firmware");
    assert_eq!(bench.ask("devices/nobody/firmware/desired", &offer("nobody"))["code"], "unknown-device");
    assert_eq!(bench.approve("nothing-there")["code"], "no-job");
    // An engineer has no right to the gateway's own firmware.
    assert_eq!(bench.ask("firmware/desired", &offer("own"))["code"], "not-allowed");
    // Signed, but the bytes are others: refused after the transfer to the gateway, before the device hears of it.
    for (n, (bytes, code)) in
        [(&image[..2_990], "truncated"), (&[&image[..2_999], b"!"].concat()[..], "wrong-digest")].iter().enumerate()
    {
        std::fs::write(bench.site.file("image"), bytes).unwrap();
        assert_eq!(bench.offer(&format!("spoilt-{n}"), &good)["outcome"], "DONE");
        assert_eq!(bench.approve(&format!("approve-{n}"))["outcome"], "DONE");
        let job = bench.over();
        assert_eq!((&job["stage"], &job["code"]), (&json!("refused"), &json!(code)), "{job}");
    }
    // Given up by somebody, and then decided.
    assert_eq!(bench.offer("given-up", &good)["outcome"], "DONE");
    let abort = json!({"correlationId": "abort", "action": "abort", "job": "given-up"});
    assert_eq!(bench.ask("devices/pump/firmware/request", &abort)["outcome"], "DONE");
    assert_eq!(bench.over()["code"], "rejected");
    assert_eq!(bench.approve("too-late")["code"], "out-of-order");
    assert_eq!((bench.device.writes(), bench.device.version().as_str()), (0, "1.0.0"));
    stop(gateway);
    bench.end();
}

#[test]
fn who_has_no_right_changes_nothing_and_stands_in_the_audit_log() {
    let viewer = "[[management.role]]\nidentity = \"mqtt:*\"\nrole = \"viewer\"\n";
    let bench = Bench::new(viewer, Trouble::None, "");
    let gateway = bench.site.start();
    bench.site.wait_for_state("pump", "online");
    let (_, manifest) = bench.image("2.0.0", 1_000);
    assert_eq!(bench.offer("o1", &manifest)["code"], "not-allowed");
    assert_eq!(bench.approve("a1")["code"], "not-allowed");
    let unknown = json!({"correlationId": "u1", "action": "burn"});
    assert_eq!(bench.ask("devices/pump/firmware/request", &unknown)["code"], "unknown-action");
    let refused = [bench.audit("firmware-offer"), bench.audit("firmware-approve")].concat();
    let by: Vec<_> = refused.iter().map(|entry| (entry["actor"].as_str(), entry["outcome"].as_str())).collect();
    assert_eq!(by, [(Some("mqtt:local:anonymous"), Some("not-allowed")); 2]);
    assert_eq!(bench.site.json(&["firmware", "status", "pump", "--json"]), json!([]));
    // Malformed, and repeated: nothing happens.
    for junk in ["{", "{\"correlationId\": 7}", "[]"] {
        publish(bench.site.port(), "fieldgate/v1/plant/devices/pump/firmware/desired", junk, &[]).unwrap();
    }
    assert_eq!(bench.offer("o2", &manifest)["code"], "not-allowed");
    assert_eq!(bench.site.json(&["firmware", "status", "--json"]), json!([]));
    stop(gateway);
    bench.end();
}

#[test]
fn a_gateway_killed_in_the_middle_of_a_transfer_goes_on_where_it_was() {
    let bench = Bench::new(ENGINEER, Trouble::None, "rate = \"24 KiB\"\n");
    let mut gateway = bench.site.start();
    bench.site.wait_for_state("pump", "online");
    let (image, manifest) = bench.image("2.0.0", 120_000);
    assert_eq!(bench.offer("o1", &manifest)["outcome"], "DONE");
    gateway.kill();
    gateway = bench.site.start();
    assert_eq!(bench.approve("a1")["outcome"], "DONE");
    let pieces = image.len().div_ceil(240);
    for share in [4, 2] {
        eventually("a part of the transfer", SOON * 2, || (bench.device.writes() > pieces / share).then_some(()));
        gateway.kill();
        assert_eq!(bench.device.version(), "1.0.0", "the old one runs until the new one is whole");
        gateway = bench.site.start();
    }
    let job = bench.over();
    assert_eq!((job["stage"].as_str(), job["id"].as_str()), (Some("done"), Some("o1")), "{job}");
    assert!(bench.device.image() == image);
    let writes = bench.device.writes();
    assert!(writes < pieces + pieces / 8, "{writes} pieces were written for {pieces}");
    // Both answers stand, however often the requests come.
    assert_eq!(bench.offer("o1", &manifest)["outcome"], "DONE");
    assert_eq!(bench.approve("a1")["outcome"], "DONE");
    assert_eq!(bench.audit("firmware-approve").len(), 1);
    stop(gateway);
    bench.end();
}

#[test]
fn an_update_that_is_killed_at_any_stage_ends_in_the_new_version() {
    for killed_at in ["offered", "approved", "transferring", "verified", "installing", "proving"] {
        let bench = Bench::new(ENGINEER, Trouble::None, "");
        let gateway = bench.site.start();
        bench.site.wait_for_state("pump", "online");
        let (image, manifest) = bench.image("2.0.0", 30_000);
        assert_eq!(bench.offer("o1", &manifest)["outcome"], "DONE");
        let order = ["offered", "approved", "transferring", "verified", "installing", "proving", "done"];
        let at = |stage: &str| order.iter().position(|known| *known == stage).unwrap_or(order.len());
        let stage = || {
            let octets = std::fs::read(bench.site.data().join("firmware/jobs/pump.json")).ok()?;
            Some(serde_json::from_slice::<Value>(&octets).ok()?["stage"].as_str()?.to_owned())
        };
        let topic = "fieldgate/v1/plant/devices/pump/firmware/request";
        let approve = json!({"correlationId": "a1", "action": "approve"});
        if killed_at != "offered" {
            publish(bench.site.port(), topic, &approve.to_string(), &[]).unwrap();
        }
        eventually(&format!("the stage {killed_at}"), SOON, || (at(&stage()?) >= at(killed_at)).then_some(()));
        gateway.kill();
        let gateway = bench.site.start();
        // Whoever got no answer asks again.
        assert_eq!(bench.approve("a1")["outcome"], "DONE", "killed at {killed_at}");
        let job = bench.over();
        assert_eq!(job["stage"], "done", "killed at {killed_at}: {job}");
        assert!(bench.device.image() == image, "killed at {killed_at}");
        stop(gateway);
        bench.end();
    }
}

#[test]
fn a_device_out_of_service_gets_nothing_until_it_is_back() {
    let bench = Bench::new(ENGINEER, Trouble::None, "");
    let gateway = bench.site.start();
    bench.site.wait_for_state("pump", "online");
    let (image, manifest) = bench.image("2.0.0", 3_000);
    assert_eq!(bench.offer("o1", &manifest)["outcome"], "DONE");
    bench.site.done(&["onboard", "suspend", "pump", "--reason", "repair"]);
    assert_eq!(bench.approve("a1")["outcome"], "DONE");
    let status = bench.site.subscribe("devices/pump/firmware/status");
    let waits = shown(&status, |b| b["reason"].as_str().is_some_and(|reason| reason.contains("not in service")));
    assert_eq!((waits["stage"].as_str(), bench.device.writes()), (Some("verified"), 0), "{waits}");
    bench.site.done(&["onboard", "resume", "pump"]);
    let job = bench.over();
    assert_eq!(job["stage"], "done", "{job}");
    assert!(bench.device.image() == image);
    stop(gateway);
    bench.end();
}

#[test]
fn a_vendors_device_takes_chunks_over_mqtt_although_messages_are_lost() {
    let bench = Bench::new(ENGINEER, Trouble::None, "");
    bench.site.write(
        "profiles/vendor.toml",
        "[firmware]\nmethod = \"mqtt\"\ntopic = \"vendor/mate\"\nchunk = \"1 KiB\"\npatience = \"1 s\"\nprove_within = \"20 s\"\n",
    );
    let mate = std::fs::read_to_string(bench.site.file("devices/mate.toml")).unwrap();
    bench.site.write("devices/mate.toml", &format!("profile = \"vendor\"\n{mate}"));
    let gateway = bench.site.start();
    bench.site.wait_for_state("mate", "online");
    let port = bench.site.port().to_string();
    let vendor = PythonServer::start("vendor.py", &["--port", &port, "--topic", "vendor/mate", "--bad"]);
    let (image, _) = bench.image("3.1.0", 20_000);
    let manifest = bench.sign("plant", "vendor", "3.1.0");
    let files = [bench.site.file("image.manifest"), bench.site.file("image")];
    bench.site.done(&["firmware", "set", &files[0], "--for", "mate", "--upload", &files[1]]);
    let status = bench.site.subscribe("devices/mate/firmware/status");
    let failed = shown(&status, |b| b["stage"] == "failed");
    assert_eq!(failed["code"], "device-refused", "it says so when it is told to start it: {failed}");
    drop(vendor);
    let mut vendor = PythonServer::start("vendor.py", &["--port", &port, "--topic", "vendor/mate", "--lose", "9"]);
    let offer = json!({"correlationId": "o1", "manifest": manifest});
    assert_eq!(bench.ask("devices/mate/firmware/desired", &offer)["outcome"], "DONE");
    let request = |id: &str, more: Value| {
        let mut request = json!({"correlationId": id, "job": "o1"});
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        bench.ask("devices/mate/firmware/request", &request)
    };
    assert_eq!(request("a1", json!({"action": "approve"}))["outcome"], "DONE");
    // The artifact itself comes in two parts over MQTT, the second one too early first.
    let part = |from: usize, to: usize| json!({"action": "chunk", "offset": from.to_string(), "data": base64(&image[from..to])});
    assert_eq!(request("c0", part(12_000, 20_000))["code"], "expected-offset");
    let first = request("c1", part(0, 12_000));
    assert!(first["message"].as_str().unwrap().contains("12000"), "{first}");
    assert_eq!(request("c2", part(12_000, 20_000))["outcome"], "DONE");
    let done = shown(&status, |b| b["job"] == "o1" && ["done", "failed"].contains(&b["stage"].as_str().unwrap_or("")));
    assert_eq!((&done["stage"], &done["fromVersion"]), (&json!("done"), &json!("1.0.0")), "{done}");
    let seen = vendor.ask("version");
    assert_eq!(seen["version"], "3.1.0", "{seen}");
    // With the device goes its job.
    bench.site.done(&["onboard", "decommission", "mate", "--yes"]);
    let job = bench.site.data().join("firmware/jobs/mate.json");
    eventually("the job to be forgotten", SOON, || (!job.exists()).then_some(()));
    eventually("the topic to be cleared", SOON, || status.messages().last()?.payload.is_empty().then_some(()));
    assert_eq!(bench.site.json(&["firmware", "status", "--json"]), json!([]));
    stop(gateway);
    bench.end();
}

fn base64(octets: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(octets)
}
