//! Updates of the running gateway: the real program, started again and again as a service manager does, with new versions
//! that work, that do not, and that were never signed; killed at every stage.
#![allow(clippy::unwrap_used, reason = "a test ends with a panic when its surroundings fail")]

mod support;
mod whole_support;

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{Child, SOON, eventually};
use whole_support::{FakeDevice, Mode, Site, errors, stop};

const POINTS: &str = "[[points]]\nid = \"a\"\ntable = \"holding\"\naddress = 1\n";
const EAGER: &str = "rate = \"200 ms\"\non_change = false\n";

struct Bench {
    site: Site,
    _device: FakeDevice,
}

impl Bench {
    fn new(more: &str) -> Self {
        let (device, site) = (FakeDevice::start(Mode::Well), Site::new(""));
        let bench = Self { site, _device: device };
        for key in ["plant", "stranger"] {
            bench.site.done(&["firmware", "keygen", &bench.site.file(key)]);
            let mode = std::fs::metadata(bench.site.file(key)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "a private key is for its owner only");
        }
        bench.site.main_file(&format!("[firmware]\nkeys = [\"plant.pub\"]\n{more}\n"));
        bench.site.device("one", bench._device.port(), EAGER, "", POINTS);
        bench
    }

    /// An artifact that runs `before` when it is started as a gateway and then is this very program.
    fn artifact(&self, before: &str, size: usize) -> String {
        let binary = env!("CARGO_BIN_EXE_fieldgate");
        let mut script = format!(
            "#!/bin/sh\nfor word in \"$@\"; do last=$word; done\nif [ \"$last\" = run ]; then {before}\n:; fi\nexec {binary} \"$@\"\n"
        );
        while script.len() < size {
            script.push_str("# 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abc\n");
        }
        std::fs::write(self.site.file("artifact"), script).unwrap();
        self.site.file("artifact")
    }

    fn sign(&self, key: &str, target: &str, version: &str) -> String {
        let (artifact, key) = (self.site.file("artifact"), self.site.file(key));
        self.site.done(&["firmware", "sign", &artifact, "--key", &key, "--target", target, "--release", version]);
        self.site.file("artifact.manifest")
    }

    fn offer(&self, manifest: &str, more: &[&str]) -> std::process::Output {
        let url = format!("file://{}", self.site.file("artifact"));
        self.site.run(&[&["firmware", "offer", manifest, "--url", &url, "--json"], more].concat())
    }

    /// What the running gateway says of the job.
    fn job(&self) -> Option<Value> {
        let output = self.site.run(&["firmware", "status", "--json"]);
        serde_json::from_slice::<Value>(&output.stdout).ok()?.as_array()?.first().cloned()
    }

    /// The stage on the disk.
    fn stage(&self) -> Option<String> {
        let octets = std::fs::read(self.site.data().join("firmware/jobs/gateway.json")).ok()?;
        Some(serde_json::from_slice::<Value>(&octets).ok()?["stage"].as_str()?.to_owned())
    }

    /// Starts the gateway again whenever it ends, until the job is over; the gateway that runs then, and the job.
    fn until_over(&self, mut gateway: Child) -> (Child, Value) {
        let began = Instant::now();
        loop {
            assert!(began.elapsed() < SOON * 6, "the update never ends: {:?}", self.stage());
            if gateway.has_ended() {
                gateway = self.service();
            }
            if let Some(job) = self.job()
                && ["done", "rolled-back", "failed", "refused"].contains(&job["stage"].as_str().unwrap_or_default())
            {
                return (gateway, job);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// One start of the packaged binary, whatever comes of it.
    fn service(&self) -> Child {
        Child::spawn("fieldgate", self.site.command(&["run"]))
    }
}

fn gateway_target() -> String {
    format!("gateway-{}", std::env::consts::ARCH)
}

#[test]
fn an_offer_that_waits_for_the_maintenance_window_begins_in_it_without_a_word() {
    let bench = Bench::new("window = \"00:00-00:00\"");
    let gateway = bench.site.start();
    bench.site.wait_for_state("one", "online");
    bench.artifact("", 10_000);
    let offered = bench.offer(&bench.sign("plant", &gateway_target(), "9.0.0"), &["--in-window"]);
    assert!(offered.status.success(), "{}", errors(&offered));
    let (gateway, job) = bench.until_over(gateway);
    assert_eq!((job["stage"].as_str(), job["version"].as_str()), (Some("done"), Some("9.0.0")), "{job}");
    assert_eq!(job["approval"], "window", "{job}");
    stop(gateway);
}

/// The place that a process was started from.
fn slot(gateway: &Child) -> String {
    let environment = std::fs::read(format!("/proc/{}/environ", gateway.id())).unwrap();
    let texts = environment.split(|&octet| octet == 0).map(String::from_utf8_lossy);
    let found = texts.filter_map(|text| text.strip_prefix("FIELDGATE_SLOT=").map(str::to_owned)).next();
    found.unwrap_or_else(|| "packaged".to_owned())
}

#[test]
fn an_approved_update_restarts_proves_itself_and_stays() {
    let bench = Bench::new("rate = \"1 MiB\"");
    let gateway = bench.site.start();
    bench.site.wait_for_state("one", "online");
    bench.artifact("", 300_000);
    let manifest = bench.sign("plant", &gateway_target(), "9.0.0");
    let offered = bench.offer(&manifest, &[]);
    assert!(offered.status.success(), "{}", errors(&offered));
    assert_eq!(bench.job().unwrap()["stage"], "offered", "nothing begins without a word");
    bench.site.done(&["firmware", "approve"]);
    let (gateway, job) = bench.until_over(gateway);
    assert_eq!((job["stage"].as_str(), job["version"].as_str()), (Some("done"), Some("9.0.0")), "{job}");
    assert_eq!(slot(&gateway), "a");
    bench.site.wait_for_state("one", "online");
    // It stays, also after a kill.
    gateway.kill();
    let gateway = bench.site.start();
    assert_eq!(slot(&gateway), "a");
    stop(gateway);
}

#[test]
fn an_administrator_updates_it_over_topics_and_is_answered_before_and_after_the_restart() {
    // The transfer takes three seconds, so that the answer is there before the gateway goes down for its restart.
    let administrator = "rate = \"100 KiB\"\n\n[[management.role]]\nidentity = \"mqtt:*\"\nrole = \"administrator\"\n";
    let bench = Bench::new(administrator);
    let gateway = bench.site.start();
    bench.site.wait_for_state("one", "online");
    let status = bench.site.subscribe("firmware/status");
    let results = bench.site.subscribe("firmware/result");
    let told = |subscriber: &support::Subscriber, what: &str, fits: &dyn Fn(&Value) -> bool| {
        eventually(what, SOON * 2, || {
            let all = subscriber.messages();
            all.iter().rev().map(|m| whole_support::body(&m.payload)).find(|b| fits(b))
        })
    };
    bench.artifact("", 300_000);
    let manifest = std::fs::read_to_string(bench.sign("plant", &gateway_target(), "9.0.0")).unwrap();
    let url = format!("file://{}", bench.site.file("artifact"));
    let offer = serde_json::json!({"correlationId": "o1", "manifest": manifest, "url": url});
    let ask = |topic: &str, request: &Value| {
        let topic = format!("fieldgate/v1/plant/{topic}");
        support::publish(bench.site.port(), &topic, &request.to_string(), &[]).unwrap();
    };
    // Retained, as a fleet tool would leave it.
    let desired = "fieldgate/v1/plant/firmware/desired";
    support::publish(bench.site.port(), desired, &offer.to_string(), &["-r"]).unwrap();
    let offered = told(&results, "the answer to the offer", &|b| b["correlationId"] == "o1");
    assert_eq!((offered["outcome"].as_str(), offered["action"].as_str()), (Some("DONE"), Some("firmware-offer")));
    let approve = serde_json::json!({"correlationId": "a1", "action": "approve", "job": "o1"});
    ask("firmware/request", &approve);
    assert_eq!(told(&results, "the answer to the approval", &|b| b["correlationId"] == "a1")["outcome"], "DONE");
    let (gateway, job) = bench.until_over(gateway);
    assert_eq!(
        (job["stage"].as_str(), job["approval"]["operator"].as_str()),
        (Some("done"), Some("mqtt:local:anonymous"))
    );
    assert_eq!(slot(&gateway), "a");
    drop((status, results));
    // The new one answers the same requests again, and does nothing twice.
    let status = bench.site.subscribe("firmware/status");
    let shown = told(&status, "the job on its topic", &|b| b["stage"] == "done");
    assert_eq!((shown["job"].as_str(), shown["version"].as_str()), (Some("o1"), Some("9.0.0")), "{shown}");
    let results = bench.site.subscribe("firmware/result");
    ask("firmware/request", &approve);
    assert_eq!(told(&results, "the answer once more", &|b| b["correlationId"] == "a1")["outcome"], "DONE");
    let log = bench.site.json(&["audit", "--json", "--last", "10000"]);
    let count = |action: &str| log.as_array().unwrap().iter().filter(|entry| entry["action"] == action).count();
    assert_eq!((count("firmware-offer"), count("firmware-approve")), (1, 1));
    stop(gateway);
}

#[test]
fn what_is_unsigned_wrongly_signed_older_the_same_for_others_or_changed_is_refused() {
    let bench = Bench::new("");
    let gateway = bench.site.start();
    bench.artifact("", 1_000);
    let refused = |manifest: &str, code: &str| {
        let output = bench.offer(manifest, &[]);
        assert!(
            !output.status.success() && errors(&output).contains(&format!("({code})")),
            "{code}: {}",
            errors(&output)
        );
        assert!(bench.job().is_none(), "a refused offer left a job");
    };
    refused(&bench.sign("stranger", &gateway_target(), "9.0.0"), "bad-signature");
    refused(&bench.sign("plant", "gateway-of-another-kind", "9.0.0"), "wrong-target");
    refused(&bench.sign("plant", &gateway_target(), "0.0.1"), "older");
    refused(&bench.sign("plant", &gateway_target(), env!("CARGO_PKG_VERSION")), "same");
    let good = bench.sign("plant", &gateway_target(), "9.0.0");
    let signed = std::fs::read_to_string(&good).unwrap();
    let unsigned: String =
        signed.lines().filter(|line| !line.starts_with("signature")).map(|line| format!("{line}\n")).collect();
    std::fs::write(bench.site.file("unsigned"), unsigned).unwrap();
    refused(&bench.site.file("unsigned"), "unsigned");
    std::fs::write(bench.site.file("changed"), signed.replace("9.0.0", "9.0.1")).unwrap();
    refused(&bench.site.file("changed"), "bad-signature");

    // Signed, but the bytes are others: refused after the transfer, and never run.
    let bytes = std::fs::read(bench.site.file("artifact")).unwrap();
    let mut spoilt = bytes.clone();
    *spoilt.last_mut().unwrap() = b'!';
    let wrong = |bytes: &[u8], code: &str| {
        std::fs::write(bench.site.file("artifact"), bytes).unwrap();
        let offered = bench.offer(&good, &[]);
        assert!(offered.status.success(), "{}", errors(&offered));
        bench.site.done(&["firmware", "approve"]);
        let job = eventually("the end of the job", SOON * 2, || {
            bench.job().filter(|job| ["refused", "failed"].contains(&job["stage"].as_str().unwrap_or_default()))
        });
        assert_eq!(job["code"], code, "{job}");
    };
    wrong(&spoilt, "wrong-digest");
    wrong(&bytes[..bytes.len() - 10], "truncated");
    wrong(&[&bytes[..], b"more"].concat(), "too-long");
    assert!(!bench.site.data().join("firmware/boot.json").exists(), "nothing was put on trial");
    assert_eq!(slot(&gateway), "packaged");
    stop(gateway);
}

#[test]
fn a_version_that_dies_or_does_less_than_the_old_one_is_taken_back() {
    for (before, code) in [
        ("exit 1".to_owned(), "no-proof"),
        // It runs, but does not poll what was polled.
        ("mv SITE/devices/one.toml SITE/one.off".to_owned(), "unhealthy"),
    ] {
        let bench = Bench::new("prove_within = \"5 s\"");
        let gateway = bench.site.start();
        bench.site.wait_for_state("one", "online");
        bench.artifact(&before.replace("SITE", &bench.site.text()), 1_000);
        let manifest = bench.sign("plant", &gateway_target(), "9.0.0");
        assert!(bench.offer(&manifest, &[]).status.success());
        bench.site.done(&["firmware", "approve"]);
        let (gateway, job) = bench.until_over(gateway);
        assert_eq!((job["stage"].as_str(), job["code"].as_str()), (Some("rolled-back"), Some(code)), "{job}");
        assert_eq!(slot(&gateway), "packaged");
        stop(gateway);
    }
}

#[test]
fn an_update_that_is_killed_at_any_stage_ends_in_a_version_that_runs() {
    for killed_at in ["offered", "approved", "transferring", "verified", "installing", "proving"] {
        let bench = Bench::new("rate = \"1 MiB\"");
        let gateway = bench.site.start();
        bench.site.wait_for_state("one", "online");
        bench.artifact("", 600_000);
        let manifest = bench.sign("plant", &gateway_target(), "9.0.0");
        assert!(bench.offer(&manifest, &[]).status.success());
        let order = ["offered", "approved", "transferring", "verified", "installing", "proving", "done"];
        let at = |stage: &str| order.iter().position(|known| *known == stage).unwrap_or(order.len());
        if killed_at != "offered" {
            bench.site.done(&["firmware", "approve"]);
        }
        eventually(&format!("the stage {killed_at}"), SOON, || (at(&bench.stage()?) >= at(killed_at)).then_some(()));
        gateway.kill();
        let gateway = bench.site.start();
        if killed_at == "offered" {
            bench.site.done(&["firmware", "approve"]);
        }
        let (gateway, job) = bench.until_over(gateway);
        assert_eq!(job["stage"], "done", "killed at {killed_at}: {job}");
        assert_eq!(slot(&gateway), "a", "killed at {killed_at}");
        stop(gateway);
    }
}
