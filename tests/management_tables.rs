//! Properties of all tables, crashes between any two durable steps, and the diagrams in the documentation.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod management_support;

use std::fs;
use std::time::Duration;

use fieldgate::contract::v1;
use fieldgate::management::core::Input;
use fieldgate::management::desired::Target;
use fieldgate::management::journal::MemoryJournal;
use fieldgate::management::lifecycle::{Policy, State};
use fieldgate::management::table::{Table, Word};
use fieldgate::management::{clock, desired, lifecycle, transfer};
use management_support::*;
use proptest::prelude::*;

/// From every state every event, with every answer of the guards, leads to a listed state or is refused with words.
fn check_table<S: Word, E: Word, G: Word, F: Word>(table: &Table<S, E, G, F>) {
    assert_eq!(table.problems(), Vec::<String>::new());
    let mut taken = 0;
    for &state in S::ALL {
        for &event in E::ALL {
            for guards in 0..1u32 << G::ALL.len() {
                let holds = |guard: G| guards >> G::ALL.iter().position(|g| *g == guard).unwrap() & 1 == 1;
                match table.decide(state, event, holds) {
                    Ok(row) => {
                        assert!(S::ALL.contains(&row.to));
                        assert!(row.guard.is_none_or(holds));
                        taken += 1;
                    }
                    Err(refused) => {
                        let words = refused.to_string();
                        assert!(words.contains(state.as_str()) && words.contains(event.as_str()), "{words}");
                    }
                }
            }
        }
    }
    assert!(taken >= table.rows.len());
}

#[test]
fn from_every_state_every_event_leads_to_a_listed_state_or_is_refused() {
    check_table(&lifecycle::TABLE);
    check_table(&desired::TABLE);
    check_table(&clock::TABLE);
    check_table(&transfer::TABLE);
}

/// The part of the documentation that is made from a table.
fn section(name: &str, body: &str) -> String {
    format!(
        "<!-- table: {name} (made from the code: `cargo test --test management_tables` says when it is not) -->\n\n{body}\n<!-- end -->"
    )
}

#[test]
fn the_diagrams_in_the_documentation_are_those_of_the_tables() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/device-management.md");
    let mut text = fs::read_to_string(path).unwrap();
    let tables = [
        ("device", lifecycle::TABLE.markdown()),
        ("configuration", desired::TABLE.markdown()),
        ("clock", clock::TABLE.markdown()),
        ("transfer", transfer::TABLE.markdown()),
    ];
    let mut stale = Vec::new();
    for (name, body) in tables {
        let wanted = section(name, &body);
        let begin = text.find(&format!("<!-- table: {name}")).unwrap_or_else(|| panic!("no section for {name}"));
        let end = begin + text[begin..].find("<!-- end -->").unwrap() + "<!-- end -->".len();
        if text[begin..end] != wanted {
            stale.push(name);
            text.replace_range(begin..end, &wanted);
        }
    }
    if std::env::var_os("FIELDGATE_WRITE_DOCS").is_some() {
        fs::write(path, text).unwrap();
    }
    assert!(stale.is_empty(), "docs/device-management.md is older than {stale:?}; run with FIELDGATE_WRITE_DOCS=1");
}

#[test]
fn every_message_of_management_is_explained_and_its_examples_parse() {
    use fieldgate::contract::{ContractMessage, Encoding};
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/device-management.md")).unwrap();
    let proto = include_str!("../proto/fieldgate/v1/management.proto");
    let lines = proto.lines().map(str::trim).filter(|l| !l.starts_with("//"));
    let fields = lines.filter(|l| l.ends_with(';') && l.contains(" = ") && !l.starts_with("syntax"));
    for field in fields.filter_map(|l| l.split(" = ").next()?.rsplit(' ').next()) {
        let mut camel = String::new();
        for part in field.split('_') {
            match camel.is_empty() || part.is_empty() {
                true => camel.push_str(part),
                false => camel.push_str(&(part[..1].to_uppercase() + &part[1..])),
            }
        }
        let upper = field.chars().all(|c| c.is_ascii_uppercase() || c == '_');
        let shown = if upper { field } else { &camel };
        let there = text.contains(&format!("`{shown}`")) || text.contains(&format!("\"{shown}\""));
        assert!(there || field.ends_with("_UNSPECIFIED"), "{shown} is not explained");
    }
    let examples: Vec<_> = text.split("```json ").skip(1).map(|e| e.split("```").next().unwrap()).collect();
    assert_eq!(examples.len(), 9);
    for example in examples {
        let (name, body) = example.split_once('\n').unwrap();
        let body = body.as_bytes();
        match name {
            "ManagementRequest" => drop(v1::ManagementRequest::decode_as(Encoding::Json, body).unwrap()),
            "ManagementResult" => drop(v1::ManagementResult::decode_as(Encoding::Json, body).unwrap()),
            "Announcement" => drop(v1::Announcement::decode_as(Encoding::Json, body).unwrap()),
            "DesiredConfig" => {
                let document = v1::DesiredConfig::decode_as(Encoding::Json, body).unwrap();
                let settings = serde_json::to_value(document.settings).unwrap();
                assert!(desired::parse_device(&settings, &profile()).is_ok());
            }
            "ReportedConfig" => drop(v1::ReportedConfig::decode_as(Encoding::Json, body).unwrap()),
            "DesiredFirmware" => drop(v1::DesiredFirmware::decode_as(Encoding::Json, body).unwrap()),
            "FirmwareRequest" => drop(v1::FirmwareRequest::decode_as(Encoding::Json, body).unwrap()),
            "FirmwareStatus" => drop(v1::FirmwareStatus::decode_as(Encoding::Json, body).unwrap()),
            "DeviceClock" => drop(v1::DeviceClock::decode_as(Encoding::Json, body).unwrap()),
            other => panic!("{other}"),
        }
    }
}

/// A year in the life of a device, in steps that can be asked again after a crash.
fn year(rig: &mut Rig) {
    rig.manage("approve", "pump");
    rig.seconds(2);
    rig.desire("pump", 1, r#"{"rate":"2 s","points":{"sensor":{"enabled":false}}}"#);
    rig.seconds(4);
    rig.plant.breaks_at = Some(Duration::from_millis(50));
    rig.desire("pump", 2, r#"{"rate":"50 ms"}"#);
    rig.seconds(8);
    rig.plant.clock_offset = -90_000;
    rig.manage("set-clock", "pump");
    rig.seconds(2);
    rig.manage("suspend", "pump");
    rig.manage("resume", "pump");
    rig.plant.claims.insert(id("pump"), claim("new"));
    rig.feed(vec![Input::Seen { device: id("pump"), claim: claim("new") }]);
    rig.manage("replace", "pump");
    rig.seconds(8);
    rig.manage("decommission", "pump");
    rig.seconds(40);
}

fn fresh(disk: MemoryJournal) -> Rig {
    let policy = Policy { auto_approve_declared: false, ..Policy::default() };
    Rig::with(fieldgate::management::core::Settings { policy, ..settings("g") }, vec![declaration("pump")], disk)
}

/// Where the device and its configuration are, without times.
fn where_it_is(rig: &Rig) -> (String, String, u64, String) {
    let state = rig.state("pump").to_string();
    match rig.core.desired().job(&Target::Device(id("pump"))) {
        Some(job) => (state, job.state.to_string(), job.in_force.version, job.result.clone()),
        None => (state, String::new(), 0, String::new()),
    }
}

#[test]
fn a_year_without_a_crash() {
    let mut rig = fresh(MemoryJournal::default());
    year(&mut rig);
    assert_eq!(rig.state("pump"), State::Decommissioned);
    assert_eq!(rig.plant.clock_sets, 1);
    let done: Vec<_> = rig.log.values().filter(|e| e.object == "devices/pump").map(|e| e.action.clone()).collect();
    let expected = [
        "discover",
        "offer",
        "approve",
        "enrolled",
        "suspend",
        "resume",
        "identity-mismatch",
        "replace",
        "proven",
        "decommission",
        "erased",
        "certificate-of-erasure",
    ];
    assert_eq!(done.iter().filter(|a| *a != "certificate-of-erasure").count(), expected.len() - 1, "{done:?}");
    for action in expected {
        assert!(done.iter().any(|d| d == action), "{action} in {done:?}");
    }
    rig.check_agreement();
}

/// For every n: the power goes at the nth commit, before or after it is on the disk. The life goes on from there to the same
/// end, the operator's client repeats what it got no answer to, and nothing is done twice.
#[test]
fn a_crash_at_any_commit_ends_in_one_of_two_neighbours() {
    let reference = MemoryJournal::default();
    let mut rig = fresh(reference.clone());
    year(&mut rig);
    let (total, end) = (reference.commits(), where_it_is(&rig));
    assert!(total > 20, "{total} commits are no year");
    println!("{total} commits, a crash before and after each");
    for n in 0..2 * total {
        let disk = MemoryJournal::default();
        match n % 2 {
            0 => disk.cut_power_after(n / 2),
            _ => disk.cut_power_in(n / 2),
        }
        let mut rig = fresh(disk.clone());
        year(&mut rig);
        assert!(rig.crashes <= 1, "the power went once");
        assert_eq!(where_it_is(&rig), end, "crash {n}");
        for once in ["discover", "approve", "replace", "decommission", "certificate-of-erasure"] {
            assert_eq!(rig.audited(once), 1, "{once}, crash {n}");
        }
        rig.check_agreement();
    }
}

/// The neighbours themselves: what is loaded after a cut at commit n is exactly what an undisturbed run had on disk.
#[test]
fn nothing_half_done_is_ever_loaded() {
    let reference = MemoryJournal::default();
    let mut rig = fresh(reference.clone());
    year(&mut rig);
    for n in 0..reference.commits() {
        let disk = MemoryJournal::default();
        disk.cut_power_after(n);
        let core = {
            let mut rig = fresh(disk.clone());
            if rig.crashes == 0 {
                rig.manage("approve", "pump");
                rig.seconds(1);
            }
            drop(rig);
            disk.restore_power();
            fieldgate::management::core::Core::load(&disk.records(), settings("g"), Default::default()).unwrap()
        };
        for record in core.lifecycle().devices().values() {
            let pinned = record.pinned.is_some();
            let must = matches!(record.state, State::Active | State::Transferring);
            assert!(pinned || !must, "cut at {n}: {record:?}");
        }
    }
}

#[derive(Debug, Clone)]
enum Deed {
    Ask(&'static str),
    Desire(u64, &'static str),
    Seen(&'static str),
    Wait(u32),
    Crash,
    CutAfter(u64),
    CutIn(u64),
}

fn deeds() -> impl Strategy<Value = Deed> {
    let actions = vec![
        "offer",
        "approve",
        "reject",
        "suspend",
        "resume",
        "accept-identity",
        "replace",
        "cancel",
        "decommission",
        "readmit",
        "set-clock",
        "identify",
    ];
    let documents = vec![r#"{"rate":"2 s"}"#, r#"{"rate":"50 ms"}"#, r#"{"rate":"1 ms"}"#, "{}"];
    prop_oneof![
        6 => proptest::sample::select(actions).prop_map(Deed::Ask),
        3 => (1u64..12, proptest::sample::select(documents)).prop_map(|(v, d)| Deed::Desire(v, d)),
        2 => proptest::sample::select(vec!["pump", "new", "newer", ""]).prop_map(Deed::Seen),
        2 => (1u32..12).prop_map(Deed::Wait),
        1 => Just(Deed::Crash),
        1 => (0u64..4).prop_map(Deed::CutAfter),
        1 => (0u64..4).prop_map(Deed::CutIn),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whatever is asked, seen and lost in whatever order: topics, registry and audit log agree, a device that reveals
    /// another identity than the pinned one is never trusted, and versions in force never shrink but by going back.
    #[test]
    fn any_life_keeps_the_promises(deeds in proptest::collection::vec(deeds(), 1..60)) {
        let mut rig = Rig::new("g", vec![declaration("pump")]);
        rig.plant.breaks_at = Some(Duration::from_millis(50));
        let mut highest = 0;
        for deed in deeds {
            match deed {
                Deed::Ask(action) => { rig.manage(action, "pump"); }
                Deed::Desire(version, document) => { rig.desire("pump", version, document); }
                Deed::Seen("") => rig.feed(vec![Input::Seen { device: id("pump"), claim: Default::default() }]),
                Deed::Seen(serial) => {
                    rig.plant.claims.insert(id("pump"), claim(serial));
                    rig.feed(vec![Input::Seen { device: id("pump"), claim: claim(serial) }]);
                }
                Deed::Wait(seconds) => rig.seconds(seconds),
                Deed::Crash => rig.restart(),
                Deed::CutAfter(n) => rig.disk.cut_power_after(n),
                Deed::CutIn(n) => rig.disk.cut_power_in(n),
            }
            let record = rig.core.lifecycle().device(&id("pump")).unwrap().clone();
            if let (Some(pin), Some(claim)) = (&record.pinned, &record.claim) {
                let trusted = rig.core.lifecycle().is_running(&id("pump"));
                prop_assert!(!trusted || pin.fits(claim), "{record:?}");
            }
            match rig.core.desired().job(&Target::Device(id("pump"))) {
                Some(job) => {
                    prop_assert!(job.highest >= highest, "versions grow");
                    prop_assert!(job.in_force.version <= job.highest);
                    highest = job.highest;
                }
                None => highest = 0,
            }
        }
        rig.disk.restore_power();
        rig.restart();
        rig.seconds(50);
        rig.check_agreement();
    }

    /// Texts of any kind are read without a panic.
    #[test]
    fn any_document_is_read_or_refused(text in "\\PC{0,200}", json in any::<Vec<u8>>()) {
        let _ = desired::parse_duration(&text);
        let _ = lifecycle::ScanRequest::parse("modbus-tcp", &text, "x");
        let _ = transfer::Document::open(&text, |_| Some(vec![0; 32]));
        if let Ok(value) = serde_json::from_slice(&json) {
            let _ = desired::parse_device(&value, &profile());
            let _ = desired::parse_gateway(&value);
        }
        for topic in ["management/request", "devices/a/config/desired", "devices/a/onboarding/announce", text.as_str()] {
            let _ = fieldgate::management::request::Ask::parse(topic, fieldgate::contract::Encoding::Protobuf, &json);
        }
    }
}

#[test]
fn exactly_one_gateway_owns_a_device_at_any_time() {
    let (mut here, mut there) = partners(vec![declaration("pump"), declaration("fan")]);
    here.seconds(2);
    done(&here.desire("pump", 3, r#"{"heartbeat":"7 s"}"#));
    here.seconds(2);
    let owners = |here: &Rig, there: &Rig| {
        let runs = |rig: &Rig| rig.core.lifecycle().plan_of(&id("pump")).is_some();
        let (a, b) = (runs(here), runs(there));
        assert!(!(a && b), "two owners");
        (a, b)
    };
    let export = |gateway: &str| v1::ManagementRequest {
        action: "export".into(),
        device: "*".into(),
        gateway: gateway.into(),
        ..Default::default()
    };
    let import = |document: &str| v1::ManagementRequest {
        action: "import".into(),
        document: document.into(),
        ..Default::default()
    };
    refused(&here.request(export("nobody")), "invalid");
    let offered = here.request(export("b"));
    done(&offered);
    assert_eq!(here.state("pump"), State::Transferring);
    refused(&here.manage("cancel", "pump"), "not-possible");
    assert_eq!(owners(&here, &there), (true, false));
    // Only the addressee can import, and only an unchanged document.
    refused(&here.request(import(&offered.document)), "not-allowed");
    refused(&there.request(import(&offered.document.replace("fgx1.e", "fgx1.f"))), "invalid");
    let receipt = there.request(import(&offered.document));
    done(&receipt);
    assert_eq!((there.state("pump"), owners(&here, &there)), (State::Receiving, (true, false)));
    // Again: the same receipt, nothing twice.
    there.restart();
    done(&there.request(import(&offered.document)));
    assert_eq!(there.audited("import"), 2);
    let release = here.request(import(&receipt.document));
    done(&release);
    assert_eq!((here.state("pump"), owners(&here, &there)), (State::Transferred, (false, false)));
    here.restart();
    assert_eq!(owners(&here, &there), (false, false), "a restart does not take it back");
    // The retained document comes with the start: it was done, and that is said again. Another one is not possible.
    done(&here.desire("pump", 3, r#"{"heartbeat":"7 s"}"#));
    refused(&here.desire("pump", 3, r#"{"heartbeat":"8 s"}"#), "not-possible");
    refused(&here.desire("pump", 4, r#"{"heartbeat":"7 s"}"#), "not-possible");
    let again = here.request(import(&receipt.document));
    done(&again);
    done(&there.request(import(&release.document)));
    assert_eq!((there.state("pump"), there.state("fan")), (State::Active, State::Active));
    assert_eq!(owners(&here, &there), (false, true));
    assert_eq!(there.reported("pump").version, 3);
    assert_eq!(there.plan.devices[&id("pump")].overlay.heartbeat, Some(Duration::from_secs(7)));
    assert_eq!(there.onboarding("pump").fingerprint, claim("pump").fingerprint());
    here.check_agreement();
    there.check_agreement();
    // And back.
    let offered = there.request(export("a"));
    let receipt = here.request(import(&offered.document));
    done(&receipt);
    let release = there.request(import(&receipt.document));
    done(&here.request(import(&release.document)));
    assert_eq!(owners(&here, &there), (true, false));
}

#[test]
fn a_cancelled_or_voided_transfer_leaves_the_devices_where_they_are() {
    let (mut here, mut there) = partners(vec![declaration("pump"), declaration("fan")]);
    let export = v1::ManagementRequest {
        action: "export".into(),
        device: "*".into(),
        gateway: "b".into(),
        ..Default::default()
    };
    let import = |document: &str| v1::ManagementRequest {
        action: "import".into(),
        document: document.into(),
        ..Default::default()
    };
    let offered = here.request(export.clone());
    let receipt = there.request(import(&offered.document));
    let transfer = here.core.lifecycle().device(&id("pump")).unwrap().transfer.clone();
    done(&here.request(v1::ManagementRequest {
        action: "cancel-transfer".into(),
        document: transfer,
        ..Default::default()
    }));
    assert_eq!(here.state("pump"), State::Active);
    refused(&here.request(import(&receipt.document)), "not-possible");
    // There the devices are given up together, too.
    done(&there.manage("reject", "pump"));
    assert_eq!((there.state("pump"), there.state("fan")), (State::Rejected, State::Rejected));
    // One device changes its identity on the way: the whole transfer is off.
    let offered = here.request(export);
    done(&offered);
    let receipt = there.request(import(&offered.document));
    done(&receipt);
    here.plant.claims.insert(id("fan"), claim("stranger"));
    here.feed(vec![Input::Seen { device: id("fan"), claim: claim("stranger") }]);
    assert_eq!((here.state("pump"), here.state("fan")), (State::Active, State::IdentityChanged));
    refused(&here.request(import(&receipt.document)), "not-possible");
    assert_eq!(here.alarms("transfer-void"), 1);
}

#[test]
fn clocks_are_read_shown_alarmed_and_set_only_from_a_trusted_one() {
    let mut rig = Rig::new("g", vec![declaration("pump")]);
    rig.plant.clock_offset = 120_000;
    rig.seconds(70);
    let shown = |rig: &Rig| match &rig.topics["devices/pump/time"] {
        fieldgate::management::step::Shown::Clock(clock) => clock.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(shown(&rig).state, "in-step", "read at the start, next in an hour");
    rig.seconds(3_600);
    assert_eq!((shown(&rig).state.as_str(), shown(&rig).offset_seconds), ("wrong", Some(120.0)));
    assert_eq!(rig.alarms("device-clock"), 1);
    rig.clock.set_trust(fieldgate::model::ClockTrust::Holdover);
    refused(&rig.manage("set-clock", "pump"), "not-possible");
    rig.clock.set_trust(fieldgate::model::ClockTrust::Synchronised);
    done(&rig.manage("set-clock", "pump"));
    rig.seconds(2);
    assert_eq!((shown(&rig).state.as_str(), rig.plant.clock_sets), ("in-step", 1));
    // By itself, when the configuration says so, at most once per interval.
    done(&rig.desire("pump", 1, r#"{"time":{"set":true,"every":"1 min","warn":"2 s","alarm":"60 s"}}"#));
    rig.seconds(3_600);
    rig.plant.clock_offset = 10_000;
    rig.seconds(61);
    assert_eq!((shown(&rig).state.as_str(), rig.plant.clock_sets), ("in-step", 2));
}
