//! The life of a device: found, trusted, changed, replaced, gone.

mod management_support;

use std::time::{Duration, Instant};

use fieldgate::contract::v1;
use fieldgate::management::core::{Core, Input, Request};
use fieldgate::management::journal::{MemoryJournal, Shelf};
use fieldgate::management::lifecycle::{Claim, Finding, Mode, Policy, State, Stored};
use fieldgate::management::request::{Actor, Ask};
use fieldgate::model::DeviceId;
use management_support::*;

fn announce(rig: &mut Rig, name: &str, actor: Actor, token: &str) -> v1::ManagementResult {
    let announcement = v1::Announcement {
        correlation_id: format!("a-{name}-{}", rig.answers.len()),
        vendor: "ACME".into(),
        serial: name.into(),
        token: token.into(),
        ..v1::Announcement::default()
    };
    rig.ask_as(actor, Ask::Announce { device: id(name), announcement })
}

fn own(name: &str, certificate: &str) -> Actor {
    Actor {
        device: Some(id(name)),
        certificate: Some(certificate.to_owned()),
        ..Actor::named(&format!("mqtt:device:{name}"))
    }
}

#[test]
fn declared_devices_run_at_once_and_their_identity_is_pinned() {
    let rig = Rig::new("g", vec![declaration("pump")]);
    assert_eq!(rig.state("pump"), State::Active);
    let shown = rig.onboarding("pump");
    assert_eq!((shown.approved_by.as_str(), shown.source.as_str()), ("configuration", "declared"));
    assert_eq!(shown.fingerprint, claim("pump").fingerprint());
    rig.check_agreement();
}

#[test]
fn with_the_policy_off_a_person_approves() {
    let policy = Policy { auto_approve_declared: false, ..Policy::default() };
    let settings = fieldgate::management::core::Settings { policy, ..settings("g") };
    let mut rig = Rig::with(settings, vec![declaration("pump"), declaration("fan")], MemoryJournal::default());
    assert_eq!((rig.state("pump"), rig.mode("pump")), (State::Pending, None));
    done(&rig.manage("reject", "fan"));
    done(&rig.manage("approve", "pump"));
    assert_eq!((rig.state("pump"), rig.mode("pump")), (State::Active, Some(Mode::Trusted)));
    assert_eq!(rig.onboarding("pump").approved_by, ADMIN);
    refused(&rig.manage("approve", "pump"), "not-possible");
    rig.restart();
    assert_eq!((rig.state("pump"), rig.state("fan")), (State::Active, State::Rejected));
    done(&rig.manage("readmit", "fan"));
    assert_eq!(rig.state("fan"), State::Pending);
    rig.check_agreement();
}

#[test]
fn the_fingerprint_that_a_file_demands_decides() {
    let mut other = declaration("pump");
    other.fingerprint = Some("something else".into());
    let rig = Rig::new("g", vec![other]);
    assert_eq!((rig.state("pump"), rig.mode("pump")), (State::IdentityChanged, Some(Mode::Untrusted)));
    assert_eq!(rig.alarms("identity-mismatch"), 1);
}

#[test]
fn a_changed_identity_stops_trust_until_somebody_decides() {
    let mut rig = Rig::new("g", vec![declaration("pump")]);
    rig.plant.claims.insert(id("pump"), claim("stranger"));
    rig.feed(vec![Input::Seen { device: id("pump"), claim: claim("stranger") }]);
    assert_eq!((rig.state("pump"), rig.mode("pump")), (State::IdentityChanged, Some(Mode::Untrusted)));
    assert_eq!(rig.alarms("identity-mismatch"), 1);
    assert_eq!(rig.onboarding("pump").seen_fingerprint, claim("stranger").fingerprint());
    refused(&rig.manage("resume", "pump"), "not-possible");
    // The old hardware comes back: still a person decides.
    rig.plant.claims.insert(id("pump"), claim("pump"));
    rig.feed(vec![Input::Seen { device: id("pump"), claim: claim("pump") }]);
    assert_eq!(rig.state("pump"), State::IdentityChanged);
    done(&rig.manage("resume", "pump"));
    assert_eq!((rig.state("pump"), rig.mode("pump")), (State::Active, Some(Mode::Trusted)));
    rig.plant.claims.insert(id("pump"), claim("new"));
    rig.feed(vec![Input::Seen { device: id("pump"), claim: claim("new") }]);
    done(&rig.manage("accept-identity", "pump"));
    assert_eq!(rig.onboarding("pump").fingerprint, claim("new").fingerprint());
    rig.check_agreement();
}

#[test]
fn a_silent_device_is_known_by_its_address() {
    let mut quiet = declaration("pump");
    quiet.identifies = false;
    let mut rig = Rig::new("g", vec![]);
    rig.plant.claims.clear();
    rig.declared = vec![quiet];
    rig.boot();
    assert_eq!(rig.state("pump"), State::Active);
    assert!(rig.onboarding("pump").fingerprint.starts_with("tcp://"));
    // Its file gives it another address: that is the owner's own decision.
    rig.declared[0].address = "tcp://192.0.2.9:502 unit 1".into();
    rig.boot();
    assert_eq!(rig.state("pump"), State::Active);
    assert!(rig.onboarding("pump").fingerprint.contains("192.0.2.9"));
}

#[test]
fn a_serial_number_that_is_revealed_later_completes_the_identity() {
    let mut rig = Rig::new("g", vec![]);
    let bare = Claim { serial: String::new(), ..claim("pump") };
    rig.plant.claims.insert(id("pump"), bare.clone());
    rig.declared = vec![declaration("pump")];
    rig.boot();
    assert_eq!(rig.onboarding("pump").fingerprint, bare.fingerprint());
    // Its file names the object of the serial number now.
    rig.feed(vec![Input::Seen { device: id("pump"), claim: claim("pump") }]);
    assert_eq!((rig.state("pump"), rig.alarms("identity-mismatch")), (State::Active, 0));
    assert_eq!(rig.onboarding("pump").fingerprint, claim("pump").fingerprint());
    assert_eq!((rig.audited("complete-identity"), rig.piece("pump")), (1, 0));
    rig.restart();
    rig.feed(vec![Input::Seen { device: id("pump"), claim: Claim { serial: "another".into(), ..claim("pump") } }]);
    assert_eq!(rig.state("pump"), State::IdentityChanged, "from now on it counts");
    rig.check_agreement();
}

#[test]
fn a_replacement_that_is_called_off_is_the_old_piece_again() {
    let mut rig = Rig::new("g", vec![declaration("pump")]);
    let stranger = |rig: &mut Rig, name: &str| {
        rig.plant.claims.insert(id("pump"), claim(name));
        rig.feed(vec![Input::Seen { device: id("pump"), claim: claim(name) }]);
    };
    stranger(&mut rig, "second");
    done(&rig.manage("replace", "pump"));
    assert_eq!((rig.state("pump"), rig.piece("pump")), (State::Replacing, 1));
    done(&rig.manage("cancel", "pump"));
    assert_eq!((rig.onboarding("pump").fingerprint, rig.piece("pump")), (claim("pump").fingerprint(), 0));
    stranger(&mut rig, "second");
    done(&rig.manage("accept-identity", "pump"));
    assert_eq!((rig.state("pump"), rig.piece("pump")), (State::Active, 1));
    rig.check_agreement();
}

#[test]
fn replacement_pins_the_new_hardware_and_proves_its_configuration() {
    let mut rig = Rig::new("g", vec![declaration("pump")]);
    rig.seconds(2);
    done(&rig.desire("pump", 1, r#"{"rate":"2 s"}"#));
    rig.seconds(6);
    assert_eq!(rig.reported("pump").version, 1);
    rig.plant.claims.remove(&id("pump"));
    done(&rig.manage("replace", "pump"));
    assert_eq!((rig.state("pump"), rig.mode("pump")), (State::Replacing, Some(Mode::Trusted)));
    rig.seconds(3);
    rig.plant.claims.insert(id("pump"), claim("new"));
    rig.feed(vec![Input::Seen { device: id("pump"), claim: claim("new") }]);
    assert_eq!(rig.state("pump"), State::Replacing);
    // The broken sensor is not excused here: new hardware has to be whole.
    rig.seconds(10);
    assert_eq!(rig.state("pump"), State::Suspended);
    done(&rig.manage("resume", "pump"));
    assert_eq!(rig.state("pump"), State::Active);
    assert_eq!(rig.onboarding("pump").fingerprint, claim("new").fingerprint());
    rig.check_agreement();
}

#[test]
fn decommissioning_erases_until_it_is_done_and_certifies_it_once() {
    let mut rig = Rig::new("g", vec![declaration("pump")]);
    rig.seconds(2);
    done(&rig.desire("pump", 1, r#"{"rate":"2 s"}"#));
    rig.seconds(6);
    rig.plant.erase_fails = 2;
    done(&rig.manage("decommission", "pump"));
    assert_eq!((rig.state("pump"), rig.mode("pump")), (State::Decommissioning, None));
    rig.restart();
    rig.seconds(61);
    assert_eq!(rig.state("pump"), State::Decommissioned);
    assert_eq!(rig.audited("certificate-of-erasure"), 1);
    assert!(!rig.topics.contains_key("devices/pump/config/reported"));
    assert_eq!((rig.disk.len(Shelf::Config), rig.disk.len(Shelf::History)), (0, 0));
    rig.boot();
    assert_eq!(rig.state("pump"), State::Decommissioned, "a file alone does not raise the dead");
    done(&rig.manage("readmit", "pump"));
    assert_eq!(rig.state("pump"), State::Active);
    rig.check_agreement();
}

#[test]
fn stored_values_are_erased_by_policy_after_delivery_or_when_it_takes_too_long() {
    let mut rig = Rig::new("g", vec![declaration("pump"), declaration("fan")]);
    rig.seconds(2);
    rig.plant.waits_for = vec!["cloud".into()];
    done(&rig.manage("decommission", "pump"));
    rig.seconds(35);
    assert_eq!(rig.state("pump"), State::Decommissioning);
    assert_eq!(rig.onboarding("pump").reason, "stored values are erased when cloud has them");
    assert_eq!(rig.alarms("erase-failed"), 0, "waiting is no failure");
    rig.restart();
    assert_eq!(rig.plant.stored.iter().filter(|s| **s == Stored::AfterDelivery).count(), rig.plant.stored.len());
    rig.clock.advance(Duration::from_secs(8 * 86_400));
    rig.seconds(1);
    assert_eq!((rig.state("pump"), rig.plant.stored.last()), (State::Decommissioned, Some(&Stored::Now)));
    assert_eq!(rig.events.iter().filter(|e| e.kind == "device-erased" && e.device.is_empty()).count(), 1);
    // Somebody may ask for it at once.
    let request = v1::ManagementRequest {
        correlation_id: "now".into(),
        action: "decommission".into(),
        device: "fan".into(),
        erase_data: true,
        ..v1::ManagementRequest::default()
    };
    done(&rig.request(request));
    assert_eq!(rig.state("fan"), State::Decommissioned);
    rig.check_agreement();
}

#[test]
fn devices_announce_themselves_and_impostors_are_refused_with_an_alarm() {
    let mut rig = Rig::new("g", vec![]);
    done(&announce(&mut rig, "meter", own("meter", "aa"), ""));
    assert_eq!(rig.state("meter"), State::Pending);
    refused(&announce(&mut rig, "meter", own("other", "bb"), ""), "not-allowed");
    done(&rig.manage("approve", "meter"));
    assert_eq!((rig.state("meter"), rig.onboarding("meter").fingerprint.as_str()), (State::Active, "aa"));
    refused(&announce(&mut rig, "meter", own("meter", "bb"), ""), "identity-mismatch");
    let bare = Actor { device: Some(id("meter")), ..Actor::named("mqtt:device:meter") };
    refused(&announce(&mut rig, "meter", bare, ""), "identity-mismatch");
    assert_eq!((rig.state("meter"), rig.alarms("identity-mismatch")), (State::Active, 2));
    refused(&announce(&mut rig, "stranger", Actor::named("mqtt:local:eve"), ""), "not-allowed");
    assert!(rig.core.lifecycle().device(&id("stranger")).is_none());
    rig.check_agreement();
}

#[test]
fn a_device_finds_the_answer_to_its_signing_request_where_it_stands_and_renews_by_itself() {
    let mut rig = Rig::new("g", vec![]);
    let request = |rig: &mut Rig, text: &str| {
        let (signing_request, correlation_id) = (text.to_owned(), format!("sign-{text}"));
        let announcement =
            v1::Announcement { correlation_id, vendor: "ACME".into(), signing_request, ..Default::default() };
        rig.ask_as(own("meter", "aa"), Ask::Announce { device: id("meter"), announcement })
    };
    done(&request(&mut rig, "first"));
    assert_eq!(rig.onboarding("meter").certificate, "", "nobody has approved it");
    done(&rig.manage("approve", "meter"));
    assert_eq!((rig.state("meter"), rig.onboarding("meter").certificate.as_str()), (State::Active, "chain for first"));
    rig.restart();
    assert_eq!(rig.onboarding("meter").certificate, "chain for first");
    done(&request(&mut rig, "second"));
    assert_eq!((rig.state("meter"), rig.onboarding("meter").certificate.as_str()), (State::Active, "chain for second"));
    refused(&request(&mut rig, "third"), "too-soon");
    rig.clock.advance(Duration::from_secs(3_601));
    done(&request(&mut rig, "broken"));
    assert_eq!((rig.state("meter"), rig.onboarding("meter").certificate.as_str()), (State::Active, "chain for second"));
    assert!(
        rig.events.iter().any(|e| e.kind == "certificate-not-renewed" && e.message.contains("PEM")),
        "{:?}",
        rig.events
    );
    rig.check_agreement();
}

#[test]
fn tokens_enrol_as_often_as_they_say_and_are_kept_hashed() {
    let mut rig = Rig::new("g", vec![]);
    let made = rig.request(v1::ManagementRequest {
        action: "create-token".into(),
        device: "meter-*".into(),
        uses: 2,
        expires: "1 h".into(),
        ..Default::default()
    });
    done(&made);
    let token = made.token.clone();
    let new = Actor::named("mqtt:enrol");
    refused(&announce(&mut rig, "pump-1", new.clone(), &token), "not-allowed");
    refused(&announce(&mut rig, "meter-1", new.clone(), &format!("{token}x")), "not-allowed");
    done(&announce(&mut rig, "meter-1", new.clone(), &token));
    assert_eq!(rig.state("meter-1"), State::Active);
    assert!(rig.onboarding("meter-1").approved_by.starts_with("token:"));
    rig.restart();
    done(&announce(&mut rig, "meter-2", new.clone(), &token));
    refused(&announce(&mut rig, "meter-3", new.clone(), &token), "not-allowed");
    let kept: String = rig.disk.records().values().map(|v| String::from_utf8_lossy(v).into_owned()).collect();
    let secret = token.rsplit('.').next().unwrap();
    assert!(!kept.contains(secret), "the secret of a token is on the disk");
    assert!(!format!("{:?}", rig.log).contains(secret));

    let short = rig.request(v1::ManagementRequest {
        action: "create-token".into(),
        expires: "1 min".into(),
        ..Default::default()
    });
    rig.clock.advance(Duration::from_secs(61));
    refused(&announce(&mut rig, "meter-4", new, &short.token), "not-allowed");
    rig.check_agreement();
}

#[test]
fn a_scan_discovers_and_the_registry_is_bounded() {
    let mut rig = Rig::new("g", vec![declaration("pump")]);
    let scan = |range: &str| v1::ManagementRequest {
        action: "scan".into(),
        protocol: "modbus-tcp".into(),
        range: range.into(),
        ..Default::default()
    };
    refused(&rig.request(scan("10.0.0.0/8")), "invalid");
    done(&rig.request(scan("192.0.2.0/28")));
    let finding = |n: u32| Input::Found {
        finding: Finding {
            protocol: "modbus-tcp".into(),
            address: format!("tcp://192.0.2.{}:502 unit {}", n % 250, n / 250),
            claim: Some(claim(&n.to_string())),
        },
        asked_by: ADMIN.into(),
    };
    rig.feed((0..1_500).map(finding).collect());
    assert_eq!(rig.core.lifecycle().devices().len(), 1_001);
    rig.feed((0..10).map(finding).collect());
    assert_eq!(rig.core.lifecycle().devices().len(), 1_001, "the same finding is the same device");
    let found: DeviceId =
        rig.core.lifecycle().devices().keys().find(|d| d.as_str().starts_with("found-")).unwrap().clone();
    refused(&rig.manage("approve", found.as_str()), "invalid");
    rig.profiles.insert("acme".into(), std::sync::Arc::new(profile()));
    rig.boot();
    done(&rig.request(v1::ManagementRequest {
        action: "approve".into(),
        device: found.to_string(),
        profile: "acme".into(),
        ..Default::default()
    }));
    assert_eq!(rig.state(found.as_str()), State::Active);
    assert!(rig.plan.devices[&found].undeclared.as_ref().unwrap().1.starts_with("tcp://"));
}

#[test]
fn a_thousand_devices_are_approved_in_one_commit() {
    let policy = Policy { auto_approve_declared: false, ..Policy::default() };
    let settings = fieldgate::management::core::Settings { policy, ..settings("g") };
    let devices = (0..1_000).map(|n| declaration(&format!("pump-{n}"))).collect();
    let mut rig = Rig::with(settings, devices, MemoryJournal::default());
    let (commits, begin) = (rig.disk.commits(), Instant::now());
    let result = rig.manage("approve", "pump-*");
    done(&result);
    assert_eq!(result.devices.len(), 1_000);
    let (took, commits) = (begin.elapsed(), rig.disk.commits() - commits);
    println!("1,000 devices approved and active in {took:?}, {commits} commits");
    assert!(commits <= 4, "{commits} commits");
    assert_eq!(rig.plan.devices.len(), 1_000);
    assert!(rig.core.lifecycle().devices().values().all(|r| r.state == State::Active));
}

#[test]
fn a_request_is_done_once_and_answered_as_often_as_it_comes() {
    let mut rig = Rig::new("g", vec![declaration("pump")]);
    let suspend = v1::ManagementRequest {
        correlation_id: "same".into(),
        action: "suspend".into(),
        device: "pump".into(),
        ..Default::default()
    };
    let ask = Ask::Manage { device: None, request: suspend.clone() };
    let first = rig.ask_as(Actor::named(ADMIN), ask.clone());
    done(&first);
    done(&rig.manage("resume", "pump"));
    rig.restart();
    assert_eq!(rig.ask_as(Actor::named(ADMIN), ask), first);
    assert_eq!((rig.state("pump"), rig.audited("suspend")), (State::Active, 1));
    let other = Ask::Manage { device: None, request: v1::ManagementRequest { action: "reject".into(), ..suspend } };
    refused(&rig.ask_as(Actor::named(ADMIN), other), "correlation-reused");
}

#[test]
fn without_a_right_nothing_happens_and_it_is_audited() {
    let mut rig = Rig::new("g", vec![declaration("pump")]);
    let before = rig.core.list();
    for (n, action) in ["approve", "suspend", "decommission", "export", "grant", "scan", "nonsense"].iter().enumerate()
    {
        let request = v1::ManagementRequest {
            correlation_id: format!("e{n}"),
            action: (*action).into(),
            device: "pump".into(),
            ..Default::default()
        };
        let code = if *action == "nonsense" { "unknown-action" } else { "not-allowed" };
        refused(&rig.ask_as(Actor::named("mqtt:local:eve"), Ask::Manage { device: None, request }), code);
    }
    assert_eq!(rig.core.list(), before);
    assert_eq!(rig.log.values().filter(|e| e.actor == "mqtt:local:eve" && e.outcome == "not-allowed").count(), 6);
}

#[test]
fn a_flood_of_bad_requests_changes_nothing_and_costs_bounded_memory() {
    let mut rig = Rig::new("g", vec![declaration("pump")]);
    let (before, answers, log) = (rig.core.list(), rig.disk.len(Shelf::Answers), rig.log.len());
    let commits = rig.disk.commits();
    for n in 0..10_000u32 {
        let topic =
            ["management/request", "devices/pump/config/desired", "devices/pump/onboarding/request"][n as usize % 3];
        let payload = match n % 4 {
            0 => vec![b'{'; 10],
            1 => vec![0xff; 3],
            2 => br#"{"correlation_id":"x","action":7}"#.to_vec(),
            _ => vec![b'a'; 2_000_000],
        };
        let parsed = Ask::parse(topic, fieldgate::contract::Encoding::Json, &payload).unwrap();
        let refusal = parsed.unwrap_err();
        let actor = Actor::named(&format!("mqtt:local:eve{}", n % 1_000));
        rig.feed(vec![Input::Malformed { actor, refusal }]);
    }
    assert_eq!(rig.core.counters().malformed, 10_000);
    assert_eq!(rig.core.list(), before);
    assert_eq!(rig.disk.len(Shelf::Answers), answers);
    assert!(rig.log.len() - log <= 257 * 10, "{} audit entries", rig.log.len() - log);
    assert!(rig.disk.commits() - commits <= 257 * 10 + 10);
}

#[test]
fn answers_that_were_not_handed_over_are_handed_over_after_a_crash() {
    let rig = Rig::new("g", vec![declaration("pump")]);
    let mut core = Core::load(&rig.disk.records(), rig.settings.clone(), rig.watcher.clone()).unwrap();
    let request = v1::ManagementRequest {
        correlation_id: "last".into(),
        action: "suspend".into(),
        device: "pump".into(),
        ..Default::default()
    };
    let files = Input::Files { devices: rig.declared.clone(), profiles: Default::default() };
    let _ = core.handle(rig.now(), vec![files]);
    let request = Request { actor: Actor::named(ADMIN), ask: Ask::Manage { device: None, request } };
    let (changes, _effects_lost_in_the_crash) =
        core.handle(rig.now(), vec![Input::Request(Box::new(request))]).into_parts();
    rig.disk.apply(changes).unwrap();
    let mut rig = rig;
    rig.restart();
    assert!(rig.answers.iter().any(|a| a.correlation_id == "last"));
    let answered = rig.answers.len();
    done(&rig.manage("resume", "pump"));
    rig.seconds(2);
    rig.restart();
    assert_eq!(rig.answers.len(), answered + 1, "each once");
    rig.check_agreement();
}

#[test]
fn claims_are_never_trusted_with_text() {
    let mut rig = Rig::new("g", vec![declaration("pump")]);
    let claim = Claim { vendor: "x".repeat(100_000), ..claim("pump") };
    rig.feed(vec![Input::Seen { device: id("pump"), claim }]);
    assert!(rig.onboarding("pump").vendor.len() <= 256);
}
