//! Decommissioning on the real program: what is removed, what waits for delivery, and whether the certificate of erasure says
//! what is so.
#![allow(clippy::unwrap_used, reason = "a test ends with a panic when its surroundings fail")]

mod support;
mod whole_support;

use std::net::TcpListener;

use rustix::process::Signal;
use serde_json::Value;
use support::{Child, SOON, Subscriber, eventually};
use whole_support::{FakeDevice, Mode, Site, body, stop};

const POINTS: &str = "[[points]]\nid = \"level\"\ntable = \"holding\"\naddress = 10\n\
                      [[points]]\nid = \"setpoint\"\ntable = \"holding\"\naddress = 20\naccess = \"read-write\"\n";

struct Plant {
    site: Site,
    _devices: [FakeDevice; 2],
    cloud: u16,
    /// Keeps the port until the broker begins; it accepts, and says nothing.
    silence: Option<TcpListener>,
}

/// Two devices, and an uplink to a broker that is not there.
fn plant(policy: &str) -> Plant {
    let silence = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let cloud = silence.local_addr().unwrap().port();
    let more = format!(
        "[management]\napprove_declared = true\n{policy}\n[[management.role]]\nidentity = \"mqtt:*\"\nrole = \"operator\"\n\
         [[uplink]]\nname = \"cloud\"\nservers = [\"mqtt://127.0.0.1:{cloud}\"]\nreconnect_max = \"1 s\"\n"
    );
    let (site, devices) = (Site::new(&more), [FakeDevice::start(Mode::Well), FakeDevice::start(Mode::Well)]);
    for (id, device) in ["pump", "mate"].iter().zip(&devices) {
        site.device(
            id,
            device.port(),
            "tier = 2\nrate = \"100 ms\"\nheartbeat = \"200 ms\"\n",
            "identify = false",
            POINTS,
        );
    }
    Plant { site, _devices: devices, cloud, silence: Some(silence) }
}

impl Plant {
    /// Lines of the log by kind, of one device.
    fn stored(&self, device: &str, kind: &str) -> usize {
        let all = self.site.done(&["store", "export", "--format", "jsonl", "--device", device]);
        all.lines().filter(|line| serde_json::from_str::<Value>(line).unwrap()["kind"] == kind).count()
    }

    /// Also when no file declares it any more.
    fn life(&self, state: &str, reason: &str) {
        let shown = self.site.subscribe("devices/pump/onboarding");
        let is = |message: &Value| {
            message["state"] == state && message["reason"].as_str().unwrap_or_default().contains(reason)
        };
        eventually(&format!("pump to be {state}: {reason}"), SOON * 3, || {
            shown.messages().iter().any(|m| is(&body(&m.payload))).then_some(())
        });
    }

    /// Values, an event and a result of both devices are stored.
    fn works(&self) {
        for device in ["pump", "mate"] {
            self.site.wait_for_state(device, "online");
            self.site.done(&["command", device, "setpoint=1020"]);
            eventually("values", SOON, || (self.stored(device, "telemetry") > 5).then_some(()));
            assert!(self.stored(device, "command-result") > 0 && self.stored(device, "event") > 0);
        }
    }

    fn certificate(&self) -> String {
        let all = self.site.json(&["audit", "--device", "pump", "--json", "--last", "1000"]);
        let all: Vec<&Value> =
            all.as_array().unwrap().iter().filter(|e| e["action"] == "certificate-of-erasure").collect();
        assert_eq!(all.len(), 1, "{all:?}");
        all[0]["detail"].as_str().unwrap().to_owned()
    }

    /// Nothing of the device is left but its entry, the audit log and answers to requests. Its neighbour has everything that
    /// `waits` for the uplink.
    fn is_erased(&self, waits: bool) {
        for kind in ["telemetry", "event", "command-result"] {
            assert_eq!(self.stored("pump", kind), 0, "{kind}");
            assert!(!waits || self.stored("mate", kind) > 0, "{kind}");
        }
        assert!(self.stored("pump", "audit") > 0);
        let bulk = self.site.data().join("store/buffer/bulk");
        let holds = |name: &[u8]| {
            let files = std::fs::read_dir(&bulk).unwrap().map(|entry| std::fs::read(entry.unwrap().path()).unwrap());
            files.into_iter().any(|octets| octets.windows(name.len()).any(|window| window == name))
        };
        assert!((!waits || holds(b"mate")) && !holds(b"pump"), "what is written in the files of the bulk lane");
        // A fresh subscriber gets one retained message: that it is gone.
        let fresh = self.site.subscribe("devices/#");
        // They come in no order.
        eventually("retained topics", SOON, || {
            let all = fresh.messages();
            let came = |end: &str| all.iter().any(|m| m.topic.ends_with(end));
            (came("devices/mate/points/level") && came("devices/pump/onboarding")).then_some(())
        });
        let left: Vec<_> = fresh.messages().into_iter().map(|m| m.topic).filter(|t| t.contains("/pump/")).collect();
        assert_eq!(left, ["fieldgate/v1/plant/devices/pump/onboarding"]);
    }
}

fn kill(mut gateway: Child) {
    gateway.signal(Signal::KILL);
    gateway.wait(SOON);
}

#[test]
fn values_are_erased_once_they_are_delivered_also_after_a_kill() {
    let mut plant = plant("");
    let gateway = plant.site.start();
    plant.works();
    let before = plant.stored("pump", "telemetry");
    plant.site.done(&["onboard", "decommission", "pump", "--yes", "--reason", "scrapped"]);
    plant.life("decommissioning", "when cloud has them");
    assert!(plant.stored("pump", "telemetry") >= before, "what was promised is still there");
    // The file goes first, then the process.
    kill(gateway);
    std::fs::remove_file(plant.site.path().join("devices/pump.toml")).unwrap();
    let elsewhere = Site::new("");
    elsewhere.write(
        "fieldgate.toml",
        &format!("[gateway]\nid = \"cloud\"\n[[broker.listener]]\naddress = \"127.0.0.1:{}\"\n", plant.cloud),
    );
    drop(plant.silence.take());
    let broker = elsewhere.start();
    let got = Subscriber::start(plant.cloud, "fieldgate/v1/plant/devices/pump/telemetry", &[]);
    let told = Subscriber::start(plant.cloud, "fieldgate/v1/plant/events", &[]);
    let gateway = plant.site.start();
    eventually("delivery", SOON * 2, || (got.messages().len() >= before).then_some(()));
    plant.life("decommissioned", "");
    plant.is_erased(false);
    let words = plant.certificate();
    let records: usize =
        words.split(" stored records overwritten").next().unwrap().rsplit(' ').next().unwrap().parse().unwrap();
    assert!(records > before && !words.contains("not delivered"), "{words}");
    eventually("the event", SOON, || {
        told.messages().iter().any(|m| body(&m.payload)["kind"] == "device-erased").then_some(())
    });
    stop(gateway);
    stop(broker);
    let gateway = plant.site.start();
    plant.is_erased(false);
    stop(gateway);
}

#[test]
fn values_are_erased_at_once_or_kept_when_somebody_says_so() {
    let now = plant("");
    let gateway = now.site.start();
    now.works();
    now.site.done(&["onboard", "decommission", "pump", "--yes", "--erase-data"]);
    now.life("decommissioned", "");
    now.is_erased(true);
    let words = now.certificate();
    assert!(words.contains("not delivered to cloud"), "{words}");
    stop(gateway);

    let keep = plant("[management.decommission]\nstored = \"keep\"\n");
    let gateway = keep.site.start();
    keep.works();
    keep.site.done(&["onboard", "decommission", "pump", "--yes"]);
    keep.life("decommissioned", "");
    assert!(keep.stored("pump", "telemetry") > 5);
    let words = keep.certificate();
    assert!(words.contains("stay in the log until they are delivered"), "{words}");
    stop(gateway);
}
