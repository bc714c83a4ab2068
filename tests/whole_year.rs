//! **The year of a device**: found, trusted, configured, commanded, set to the time, updated, replaced, handed over to a second
//! gateway and retired, over topics and with the real program, while both gateways are killed at random moments. At the end
//! topics, registry and audit log tell the same story, and nothing was done twice.
//!
//! `cargo test --all-features --test whole_year -- --nocapture` tells the story as it happens. `FIELDGATE_FULL=1` kills 20
//! times instead of 6; `FIELDGATE_SEED=n` repeats the moments of a run, whose seed is printed first.
#![allow(clippy::unwrap_used, reason = "a test ends with a panic when its surroundings fail")]

mod support;
mod whole_support;
mod year_support;

use std::time::Duration;

use fieldgate_simulators::firmware_target::Trouble;
use serde_json::{Value, json};
use support::eventually;
use whole_support::{Chapter, Gate, Kills, sized, tell, text};
use year_support::{Books, FIRST_FIRMWARE, Hardware, Make, firmware};

const SETPOINT: u16 = 1;
const CRITICAL: u16 = 2;
/// How far a clock may be off after it was set, in seconds: the device counts whole ones.
const CLOSE: i64 = 3;

const HEAD: &str = r#"tier = 2
rate = "200 ms"
[clock]
form = "unix-seconds"
point = "clock"
"#;
const POINTS: &str = r#"
[[points]]
id = "level"
table = "holding"
address = 0
[[points]]
id = "setpoint"
table = "holding"
address = 1
access = "read-write"
[[points]]
id = "limit"
table = "holding"
address = 2
access = "read-write"
critical = true
[[points]]
id = "clock"
table = "holding"
address = 100
type = "u32"
access = "read-write"
"#;

/// The chapters, in order.
const CHAPTERS: [Chapter<Year>; 13] = [
    ("discovered, nothing is read", Year::discovered),
    ("approved", Year::approved),
    ("configured", Year::configured),
    ("a bad configuration comes back by itself", Year::misconfigured),
    ("an earlier version is restored", Year::restored),
    ("commanded", Year::commanded),
    ("a critical point, in two steps", Year::critical),
    ("its clock is set", Year::clock),
    ("its firmware is updated", Year::updated),
    ("an update that does not start leaves the old firmware", Year::not_updated),
    ("replaced by new hardware", Year::replaced),
    ("handed over to the second gateway", Year::handed_over),
    ("retired", Year::retired),
];

/// The story so far.
struct Year {
    south: Gate,
    north: Gate,
    hardware: Hardware,
    make: Make,
    /// Values of commands that were answered done, and those whose outcome was not known.
    written: Vec<(u16, u16)>,
    unknown: Vec<(u16, u16)>,
}

fn life(make: Make) {
    let seed = Kills::seed();
    let mut kills = Kills::plan(seed, sized(6, 20), CHAPTERS.len());
    eprintln!("year with {make:?}: FIELDGATE_SEED={seed}");
    let mut year = Year::begin(make);
    let gates = [year.south.handle(), year.north.handle()];
    tell(&format!("{make:?}"), &mut year, &CHAPTERS, &gates, &mut kills);
    year.end();
    eprintln!("{make:?}: {} kills, {} writes, topics, registry and audit log agree", kills.done(), year.written.len());
}

impl Year {
    fn begin(make: Make) -> Self {
        let hardware = Hardware::start(make, "S-1001");
        let (mut south, mut north) = (Gate::new("south"), Gate::new("north"));
        let key = |gate: &Gate| text(&gate.site().run(&["export", "--public-key"])).trim().to_owned();
        let keys = [key(&south), key(&north)];
        let trusted = firmware::prepare(&south, &north);
        // The one of pymodbus takes no files.
        let profile = match make {
            Make::Pymodbus => String::new(),
            Make::Simulator => format!("profile = \"{}\"\n", firmware::KIND),
        };
        for (gate, partner, key) in [(&south, "north", &keys[1]), (&north, "south", &keys[0])] {
            let (id, port) = (gate.name(), gate.site().port());
            let file = format!(
                "[log]\nlevel = \"debug\"\n[gateway]\nid = \"{id}\"\n[[broker.listener]]\naddress = \"127.0.0.1:{port}\"\n[management]\n\
                 approve_declared = false\n[[management.role]]\nidentity = \"mqtt:*\"\nrole = \"administrator\"\n\
                 [management.partners]\n{partner} = \"{key}\"\n{trusted}"
            );
            gate.site().write("fieldgate.toml", &file);
            gate.site().device(
                "pump",
                hardware.port(),
                &format!("{profile}{HEAD}"),
                "serial_object = 128\nreconnect_max = \"1 s\"\n",
                POINTS,
            );
        }
        south.start();
        north.start();
        Self { south, north, hardware, make, written: Vec::new(), unknown: Vec::new() }
    }

    fn discovered(&mut self) {
        self.south.until_life("pump", "pending");
        self.north.until_life("pump", "pending");
        assert_eq!(self.hardware.write_count(), 0);
    }

    fn approved(&mut self) {
        let request = json!({"correlationId": "approve-1", "action": "approve", "reason": "commissioning"});
        self.south.done("devices/pump/onboarding/request", &request);
        self.south.until_life("pump", "active");
        self.polled(true);
    }

    fn configured(&mut self) {
        let wish = json!({"correlationId": "config-1", "version": "1", "proveWithin": "30 s", "comment": "first",
            "settings": {"rate": "300 ms", "points": {"setpoint": {"limits": {"min": 0, "max": 5000}}}}});
        self.south.done("devices/pump/config/desired", &wish);
        self.settled("1", "1", "applied");
        let wrong = json!({"correlationId": "config-wrong", "version": "2",
            "settings": {"rate": "1 ms", "points": {"nowhere": {}}}});
        let refused = self.south.ask("devices/pump/config/desired", &wrong);
        assert_eq!(refused["code"], "invalid", "{refused}");
        let pointers: Vec<&str> =
            refused["errors"].as_array().unwrap().iter().map(|e| e["path"].as_str().unwrap()).collect();
        assert!(pointers.contains(&"/settings/rate") && pointers.contains(&"/settings/points/nowhere"), "{refused}");
    }

    fn misconfigured(&mut self) {
        let wish = json!({"correlationId": "config-2", "version": "2", "proveWithin": "2 s",
            "settings": {"points": {"level": {"expect": {"min": 60_000}}}}});
        self.south.done("devices/pump/config/desired", &wish);
        let reported = self.settled("1", "2", "rolled-back");
        assert!(reported["errors"][0]["message"].as_str().unwrap().contains("level"), "{reported}");
    }

    fn restored(&mut self) {
        let wish = json!({"correlationId": "config-3", "version": "3", "settings": {"rate": "250 ms"}});
        self.south.done("devices/pump/config/desired", &wish);
        self.settled("3", "3", "applied");
        let back = json!({"correlationId": "restore-1", "version": "4", "restore": "1"});
        self.south.done("devices/pump/config/desired", &back);
        let reported = self.settled("4", "4", "applied");
        assert_eq!(reported["effective"]["rate"]["value"], "300 ms", "{reported}");
    }

    fn commanded(&mut self) {
        for n in 1..=8_u16 {
            let (id, value) = (format!("command-{n}"), 1_000 + n);
            let command = json!({"correlationId": id, "writes": [{"point": "setpoint", "value": value}]});
            let answer = self.south.ask("devices/pump/command", &command);
            match (answer["outcome"].as_str().unwrap(), answer["code"].as_str().unwrap_or_default()) {
                ("DONE", _) => self.written.push((SETPOINT, value)),
                // Written or not: a gateway that was killed while it wrote cannot tell, and says so.
                ("FAILED", _) => self.unknown.push((SETPOINT, value)),
                ("REJECTED", "restarted" | "offline" | "not-connected" | "unreachable") => {}
                _ => panic!("{answer}"),
            }
        }
        let beyond = json!({"correlationId": "command-beyond", "writes": [{"point": "setpoint", "value": 5_001}]});
        assert_eq!(self.south.ask("devices/pump/command", &beyond)["code"], "out-of-range");
    }

    fn critical(&mut self) {
        for n in 1.. {
            let ask = |id: String, confirmation: &str| json!({"correlationId": id, "confirmation": confirmation, "writes": [{"point": "limit", "value": 77}]});
            let first = self.south.ask("devices/pump/command", &ask(format!("critical-{n}-ask"), ""));
            if first["outcome"] != "CONFIRMATION_REQUIRED" {
                continue;
            }
            let token = first["confirmation"].as_str().unwrap();
            let second = self.south.ask("devices/pump/command", &ask(format!("critical-{n}-do"), token));
            match second["outcome"].as_str().unwrap() {
                "DONE" => return self.written.push((CRITICAL, 77)),
                "FAILED" => self.unknown.push((CRITICAL, 77)),
                // Tokens do not outlive the process: the question is asked again.
                _ => {}
            }
        }
    }

    fn clock(&mut self) {
        let behind = now() - self.hardware.clock();
        assert!(behind > 3_000, "the clock of new hardware is wrong by {behind} s");
        for n in 1.. {
            let request = json!({"correlationId": format!("clock-{n}"), "action": "set-clock"});
            if self.south.ask("devices/pump/onboarding/request", &request)["outcome"] == "DONE" {
                break;
            }
        }
        let hardware = &mut self.hardware;
        eventually("the clock to be right", Duration::from_secs(60), || {
            let off = (now() - hardware.clock()).abs();
            (off <= CLOSE || (!hardware.clock_runs() && off < 60)).then_some(())
        });
    }

    fn updated(&mut self) {
        if self.make == Make::Pymodbus {
            return;
        }
        self.runs(&self.south, FIRST_FIRMWARE);
        let (image, job) = firmware::update(&self.south, "firmware-2", "2.0.0");
        assert_eq!(job["stage"], "done", "{job}");
        assert!(self.hardware.firmware().image() == image, "the device holds what was signed");
        self.runs(&self.south, "2.0.0");
    }

    fn not_updated(&mut self) {
        if self.make == Make::Pymodbus {
            return;
        }
        let before = self.hardware.firmware().image();
        self.hardware.firmware().set_trouble(Trouble::DoesNotStart);
        let (_, job) = firmware::update(&self.south, "firmware-3", "3.0.0");
        assert_eq!((&job["stage"], &job["code"]), (&json!("rolled-back"), &json!("device-failed")), "{job}");
        self.hardware.firmware().set_trouble(Trouble::None);
        assert!(self.hardware.firmware().image() == before, "the image before it runs on");
        self.runs(&self.south, "2.0.0");
    }

    /// The device runs a version, and the gateway shows it: what it read, and what it knows of the device.
    fn runs(&self, gate: &Gate, version: &str) {
        assert_eq!(self.hardware.firmware().version(), version);
        let is_pump = |d: &&Value| d["device"] == "pump";
        gate.until(&format!("firmware {version} from the device"), &["devices", "--json"], |all| {
            all.as_array().unwrap().iter().find(is_pump).is_some_and(|d| d["identity"]["firmware"] == version)
        });
        gate.until(&format!("firmware {version} in the registry"), &["onboard", "list", "--all", "--json"], |all| {
            all.as_array().unwrap().iter().find(is_pump).is_some_and(|d| d["firmware"] == version)
        });
    }

    /// pymodbus is announced and then exchanged; the simulator is found exchanged, and a person says so.
    fn replaced(&mut self) {
        let request = json!({"correlationId": "replace-1", "action": "replace", "reason": "bearing worn out"});
        match self.make {
            Make::Pymodbus => {
                self.south.done("devices/pump/onboarding/request", &request);
                self.south.until_life("pump", "replacing");
                self.hardware.exchange("S-2002");
            }
            Make::Simulator => {
                self.hardware.exchange("S-2002");
                self.south.until_life("pump", "identity-changed");
                let refused = json!({"correlationId": "distrusted", "writes": [{"point": "setpoint", "value": 4_000}]});
                assert_eq!(self.south.ask("devices/pump/command", &refused)["outcome"], "REJECTED");
                self.south.done("devices/pump/onboarding/request", &request);
            }
        }
        self.south.until_life("pump", "active");
        let line = self.registered(&self.south);
        assert_eq!((line["serial"].as_str(), line["state"].as_str()), (Some("S-2002"), Some("active")), "{line}");
        self.settled("4", "4", "applied");
        if self.make == Make::Simulator {
            self.runs(&self.south, FIRST_FIRMWARE);
        }
    }

    fn handed_over(&mut self) {
        self.south.hands_over("pump", &self.north);
        self.north.until_config("pump", "the configuration that came along", |c| {
            c["version"] == "4" && c["state"] == "settled"
        });
        if self.make == Make::Simulator {
            self.runs(&self.north, FIRST_FIRMWARE);
        }
        let command = json!({"correlationId": "north-1", "writes": [{"point": "setpoint", "value": 2_001}]});
        let answer = self.north.ask("devices/pump/command", &command);
        match answer["outcome"].as_str().unwrap() {
            "DONE" => self.written.push((SETPOINT, 2_001)),
            "FAILED" => self.unknown.push((SETPOINT, 2_001)),
            _ => {}
        }
        let late = json!({"correlationId": "south-late", "writes": [{"point": "setpoint", "value": 3_001}]});
        assert_eq!(self.south.ask("devices/pump/command", &late)["outcome"], "REJECTED", "it is not ours any more");
    }

    fn retired(&mut self) {
        let retire = |id: &str| json!({"correlationId": id, "action": "decommission", "reason": "scrapped"});
        self.north.done("devices/pump/onboarding/request", &retire("retire-1"));
        self.north.until_life("pump", "decommissioned");
        self.south.done("devices/pump/onboarding/request", &retire("retire-2"));
        self.south.until_life("pump", "decommissioned");
    }

    /// Everything that was kept, read again by processes that begin with it.
    fn end(&mut self) {
        for gate in [&self.south, &self.north] {
            gate.restart();
            gate.until_life("pump", "decommissioned");
            let books = Books::of(gate);
            eprintln!("the audit log of {}:\n{}\n", gate.name(), books.story());
            books.agree("decommissioned");
            books.nothing_twice();
            assert_eq!(books.audited("certificate-of-erasure", "devices/pump").len(), 1, "{}", books.story());
            let updates = if (self.make, gate.name()) == (Make::Simulator, "south") { 2 } else { 0 };
            books.firmware(updates);
            assert_eq!(books.topics(), ["onboarding"], "{}: topics of a device that is gone", gate.name());
            gate.stop();
        }
        self.hardware.agrees(SETPOINT, &self.written, &self.unknown);
    }

    /// The configuration at rest: which version is in force, and how the last desired one ended.
    fn settled(&self, in_force: &str, desired: &str, result: &str) -> Value {
        let what = format!("version {in_force} in force, {desired} {result}");
        self.south.until_config("pump", &what, |c| {
            c["state"] == "settled"
                && c["version"] == in_force
                && c["desiredVersion"] == desired
                && c["result"] == result
        })
    }

    fn polled(&self, yes: bool) {
        let what = if yes { "values" } else { "no values" };
        self.south.until(what, &["devices", "--json"], |all| {
            all.as_array().unwrap().iter().any(|d| d["device"] == "pump" && (d["state"] == "online") == yes)
        });
    }

    fn registered(&self, gate: &Gate) -> Value {
        let all = gate.until("the registry", &["onboard", "list", "--all", "--json"], |_| true);
        all.as_array().unwrap().iter().find(|d| d["device"] == "pump").unwrap().clone()
    }
}

fn now() -> i64 {
    whole_support::now_ms() / 1_000
}

#[test]
fn of_a_device_made_of_pymodbus() {
    life(Make::Pymodbus);
}

#[test]
fn of_a_simulated_device() {
    life(Make::Simulator);
}
