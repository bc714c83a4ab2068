//! Configuration desired and reported: proven or rolled back, with a history, the same for the gateway itself.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod management_support;

use std::time::Duration;

use fieldgate::contract::v1;
use fieldgate::management::core::Input;
use fieldgate::management::desired::{ConfigState, Owner, Target};
use fieldgate::management::lifecycle::State;
use fieldgate::management::request::{Actor, Ask};
use management_support::*;

fn running(count: usize) -> Rig {
    let mut rig = Rig::new("g", (1..=count).map(|n| declaration(&format!("pump-{n}"))).collect());
    rig.seconds(2);
    rig
}

fn job(rig: &Rig) -> ConfigState {
    rig.core.desired().job(&Target::Device(id("pump-1"))).unwrap().state
}

#[test]
fn a_version_is_applied_proven_and_reported_with_its_origin() {
    let mut rig = running(1);
    done(&rig.desire(
        "pump-1",
        1,
        r#"{"rate":"2 s","points":{"setpoint":{"limits":{"max":8},"access":"read-write"}}}"#,
    ));
    assert_eq!(job(&rig), ConfigState::Proving);
    assert_eq!(rig.plan.devices[&id("pump-1")].overlay.rate, Some(Duration::from_secs(2)));
    rig.seconds(2);
    let reported = rig.reported("pump-1");
    assert_eq!((reported.version, reported.state.as_str(), reported.result.as_str()), (1, "settled", "applied"));
    let effective = serde_json::to_value(&reported.effective).unwrap();
    assert_eq!(effective["rate"], serde_json::json!({"value": "2 s", "from": "desired"}));
    assert_eq!(effective["on_change"], serde_json::json!({"value": true, "from": "file"}));
    assert_eq!(effective["points"]["setpoint"]["limits"]["from"], "desired");
    assert_eq!(reported.by, ADMIN);
}

#[test]
fn a_version_that_breaks_the_device_is_rolled_back_by_itself() {
    let mut rig = running(1);
    done(&rig.desire("pump-1", 1, r#"{"rate":"2 s"}"#));
    rig.seconds(3);
    rig.plant.breaks_at = Some(Duration::from_millis(50));
    done(&rig.desire("pump-1", 2, r#"{"rate":"50 ms"}"#));
    rig.seconds(3);
    assert_eq!(job(&rig), ConfigState::Proving);
    rig.seconds(3);
    let reported = rig.reported("pump-1");
    assert_eq!((reported.version, reported.result.as_str(), reported.desired_version), (1, "rolled-back", 2));
    assert!(reported.errors[0].message.contains("level: its quality is not good"), "{:?}", reported.errors);
    assert_eq!(rig.plan.devices[&id("pump-1")].overlay.rate, Some(Duration::from_secs(2)));
    assert_eq!(rig.alarms("config-rolled-back"), 1);
    // The version is spent: the retained document that comes again does nothing, another content is stale.
    rig.desire("pump-1", 2, r#"{"rate":"50 ms"}"#);
    assert_eq!(job(&rig), ConfigState::Settled);
    refused(&rig.desire("pump-1", 2, r#"{"rate":"60 ms"}"#), "invalid");
}

#[test]
fn a_sensor_that_was_broken_before_is_no_reason_and_an_unexpected_value_is_one() {
    let mut rig = running(1);
    done(&rig.desire("pump-1", 1, r#"{"points":{"level":{"expect":{"min":0,"max":10}}}}"#));
    rig.seconds(2);
    assert_eq!(rig.reported("pump-1").version, 1);
    done(&rig.desire("pump-1", 2, r#"{"points":{"level":{"expect":{"min":6}}}}"#));
    rig.seconds(6);
    let reported = rig.reported("pump-1");
    assert_eq!((reported.version, reported.result.as_str()), (1, "rolled-back"));
    assert!(reported.errors[0].message.contains("not in the expected range"));
}

#[test]
fn what_a_version_expects_is_never_excused() {
    let mut rig = running(1);
    done(&rig.desire("pump-1", 1, r#"{"rate":"2 s"}"#));
    rig.seconds(3);
    rig.restart();
    // Nothing was read yet in this run, so that no point is known to be good.
    done(&rig.desire("pump-1", 2, r#"{"points":{"setpoint":{"expect":{"min":1000}}}}"#));
    rig.seconds(6);
    let reported = rig.reported("pump-1");
    assert_eq!((reported.version, reported.result.as_str()), (1, "rolled-back"), "{reported:?}");
}

#[test]
fn drivers_that_refuse_are_rolled_back_at_once_and_until_it_works() {
    let mut rig = running(2);
    rig.plant.refuses.insert(id("pump-1"));
    done(&rig.desire("pump-1", 1, r#"{"rate":"2 s"}"#));
    assert_eq!(job(&rig), ConfigState::RollingBack);
    rig.seconds(30);
    assert_eq!(job(&rig), ConfigState::RollingBack);
    rig.plant.refuses.clear();
    rig.seconds(11);
    assert_eq!(job(&rig), ConfigState::Settled);
    assert!(rig.reported("pump-1").errors[0].message.contains("port is taken"));
}

#[test]
fn every_error_has_a_pointer_and_nothing_is_changed() {
    let mut rig = running(1);
    let result = rig.desire(
        "pump-1",
        1,
        r#"{"rat":"1 s","rate":"1 ms","points":{"a/b~c":{},"level":{"access":"read-write","deadband":"x"},
            "setpoint":{"limits":{"min":-1},"interlock":{"point":"nope","equals":true}}},
            "time":{"warn":"2 h","alarm":"1 s"},"observability":{"owner":"me"}}"#,
    );
    refused(&result, "invalid");
    let found: Vec<_> = result.errors.iter().map(|e| (e.path.as_str(), e.code.as_str())).collect();
    for expected in [
        ("/settings/rat", "unknown-key"),
        ("/settings/rate", "out-of-range"),
        ("/settings/points/a~1b~0c", "unknown-point"),
        ("/settings/points/level/access", "not-permitted"),
        ("/settings/points/level/deadband", "wrong-type"),
        ("/settings/points/setpoint/limits", "not-permitted"),
        ("/settings/points/setpoint/interlock/point", "unknown-point"),
        ("/settings/time/warn", "out-of-range"),
        ("/settings/observability/owner", "out-of-range"),
    ] {
        assert!(found.contains(&expected), "{expected:?} in {found:?}");
    }
    assert_eq!(found.len(), 9);
    let reported = rig.reported("pump-1");
    assert_eq!((reported.result.as_str(), reported.version, reported.errors.len()), ("rejected", 0, 9));
    // The retained document comes again with every connection: no more writes.
    let commits = rig.disk.commits();
    for _ in 0..5 {
        refused(&rig.desire("pump-1", 1, r#"{"rate":"1 ms"}"#), "invalid");
    }
    rig.seconds(3);
    assert!(rig.disk.commits() - commits <= 8, "{}", rig.disk.commits() - commits);
    // The number was not taken: corrected, it is.
    done(&rig.desire("pump-1", 1, r#"{"rate":"2 s"}"#));
}

#[test]
fn versions_grow_strictly_and_any_in_the_history_can_be_restored() {
    let mut rig = running(1);
    for version in 1..=25 {
        done(&rig.desire("pump-1", version, &format!(r#"{{"heartbeat":"{version} s"}}"#)));
        rig.seconds(2);
    }
    let reported = rig.reported("pump-1");
    assert_eq!((reported.version, reported.history.len()), (25, 20));
    refused(&rig.desire("pump-1", 7, r#"{"heartbeat":"1 h"}"#), "invalid");
    let restore = |version| v1::ManagementRequest {
        action: "restore".into(),
        device: "pump-1".into(),
        version,
        ..Default::default()
    };
    refused(&rig.request(restore(5)), "invalid");
    done(&rig.request(restore(6)));
    rig.seconds(2);
    let reported = rig.reported("pump-1");
    assert_eq!((reported.version, reported.history[0].comment.as_str()), (26, "restored from version 6"));
    assert_eq!(rig.plan.devices[&id("pump-1")].overlay.heartbeat, Some(Duration::from_secs(6)));
    rig.restart();
    assert_eq!(rig.reported("pump-1").version, 26);
    assert_eq!(rig.plan.devices[&id("pump-1")].overlay.heartbeat, Some(Duration::from_secs(6)));
}

#[test]
fn the_newest_of_many_wins_and_others_are_left_alone() {
    let mut rig = running(3);
    let other = rig.plan.devices[&id("pump-2")].clone();
    for version in 1..=5 {
        done(&rig.desire("pump-1", version, &format!(r#"{{"heartbeat":"{version} s"}}"#)));
    }
    rig.seconds(5);
    assert_eq!(rig.reported("pump-1").version, 5);
    let results: Vec<_> = rig.reported("pump-1").history.iter().map(|h| h.version).collect();
    assert_eq!(results, [5, 1], "2 to 4 were never in force");
    assert_eq!(rig.plan.devices[&id("pump-2")], other);
    assert!(rig.core.desired().job(&Target::Device(id("pump-2"))).is_none());
}

#[test]
fn a_version_for_a_device_out_of_service_waits() {
    let mut rig = running(1);
    done(&rig.manage("suspend", "pump-1"));
    done(&rig.desire("pump-1", 1, r#"{"rate":"2 s"}"#));
    assert_eq!(job(&rig), ConfigState::Waiting);
    rig.seconds(60);
    assert_eq!(job(&rig), ConfigState::Waiting);
    rig.restart();
    done(&rig.manage("resume", "pump-1"));
    rig.seconds(6);
    assert_eq!((job(&rig), rig.reported("pump-1").version), (ConfigState::Settled, 1));
}

#[test]
fn a_restart_in_the_middle_of_a_proof_proves_again() {
    let mut rig = running(1);
    done(&rig.desire("pump-1", 1, r#"{"rate":"2 s"}"#));
    assert_eq!(job(&rig), ConfigState::Proving);
    rig.restart();
    assert_eq!(job(&rig), ConfigState::Proving);
    rig.seconds(3);
    assert_eq!((job(&rig), rig.reported("pump-1").version), (ConfigState::Settled, 1));
}

#[test]
fn the_gateway_is_configured_the_same_way() {
    let mut rig = running(1);
    done(&rig.desire("", 1, r#"{"log":{"level":"debug"},"history":3,"auto_approve_declared":false}"#));
    rig.seconds(1);
    assert_eq!(rig.reported("").version, 1);
    // What counts from a start only is refused, with its place and what to do.
    let refusal = rig.desire("", 2, r#"{"otlp":{"endpoint":"http://127.0.0.1:4318"},"log":{"format":"json"}}"#);
    refused(&refusal, "invalid");
    let told: Vec<_> = refusal.errors.iter().map(|e| (e.path.as_str(), e.code.as_str())).collect();
    assert_eq!(told, [("/settings/otlp", "not-permitted"), ("/settings/log/format", "not-permitted")]);
    assert!(refusal.errors[0].message.contains("fieldgate.toml"), "{refusal:?}");
    // A device that a file declares from now on waits, also after a restart.
    rig.declared.push(declaration("pump-2"));
    rig.boot();
    assert_eq!(rig.state("pump-2"), State::Pending);
    rig.restart();
    rig.declared.push(declaration("pump-3"));
    rig.boot();
    assert_eq!(rig.state("pump-3"), State::Pending);
    for version in 2..8 {
        done(&rig.desire("", version, r#"{"history":3}"#));
        rig.seconds(1);
    }
    assert_eq!(rig.reported("").history.len(), 3);
}

#[test]
fn a_file_that_changes_under_a_configuration_is_reported() {
    let mut rig = running(1);
    done(&rig.desire("pump-1", 1, r#"{"points":{"setpoint":{"limits":{"max":9}}}}"#));
    rig.seconds(2);
    let mut profile = profile();
    profile.points.remove("setpoint");
    rig.declared[0].profile = std::sync::Arc::new(profile);
    rig.boot();
    assert_eq!(rig.alarms("config-does-not-fit"), 1);
    assert_eq!(rig.reported("pump-1").errors[0].code, "unknown-point");
    assert!(rig.plan.devices[&id("pump-1")].overlay.points.is_empty());
}

#[test]
fn who_exports_telemetry_is_explicit() {
    let mut rig = running(1);
    done(&rig.desire("pump-1", 1, r#"{"observability":{"owner":"none"}}"#));
    assert_eq!(rig.plan.devices[&id("pump-1")].overlay.observability, Some(Owner::None));
}

#[test]
fn a_tier_1_device_is_configured_only_as_far_as_it_delegated() {
    let mut one = declaration("pump-1");
    one.tier = 1;
    let mut rig = Rig::new("g", vec![one]);
    refused(&rig.desire("pump-1", 1, r#"{"rate":"2 s"}"#), "not-delegated");
    rig.declared[0].delegated.insert("config");
    rig.boot();
    done(&rig.desire("pump-1", 1, r#"{"rate":"2 s"}"#));
}

#[test]
fn a_thousand_devices_are_configured_in_few_commits() {
    let mut rig = running(1_000);
    let commits = rig.disk.commits();
    let begin = std::time::Instant::now();
    let inputs = (1..=1_000).map(|n| {
        let document = v1::DesiredConfig {
            version: 1,
            settings: Some(serde_json::from_str(r#"{"rate":"2 s"}"#).unwrap()),
            ..v1::DesiredConfig::default()
        };
        let ask = Ask::Desire { target: Target::Device(id(&format!("pump-{n}"))), document };
        Input::Request(Box::new(fieldgate::management::core::Request { actor: Actor::named(ADMIN), ask }))
    });
    rig.feed(inputs.collect());
    rig.seconds(2);
    let (took, commits) = (begin.elapsed(), rig.disk.commits() - commits);
    println!("1,000 devices configured and proven in {took:?}, {commits} commits");
    assert!(commits <= 8, "{commits}");
    assert_eq!(rig.reported("pump-1000").version, 1);
    // Nothing is due then: an idle gateway writes nothing and wakes for clocks only.
    rig.seconds(3);
    let commits = rig.disk.commits();
    rig.seconds(20);
    assert_eq!(rig.disk.commits(), commits);
}
