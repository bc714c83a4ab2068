//! A backlog through everything that happens to it: reloads that change the broker, the topics, the encoding and the set
//! of uplinks, kills, an uplink that is removed for good, one that is merely down; its rate, its progress and its budget.
//! The real binary and mosquitto.
#![allow(clippy::unwrap_used, reason = "a test ends with a panic when its surroundings fail")]

mod support;
mod torture_support;

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use support::{Mosquitto, SOON, eventually, temp_dir};
use torture_support::library::{OLD, fill};
use torture_support::{Collector, CountingPlant, Gateway, Setup, lane, run_for};

fn mosquitto() -> Mosquitto {
    Mosquitto::with_config("allow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 0\n")
}

fn consumer(gateway: &Gateway, name: &str) -> Option<Value> {
    gateway.health()?["consumers"].as_array()?.iter().find(|c| c["name"] == name).cloned()
}

fn whole(value: &Value) -> u64 {
    value.as_u64().or_else(|| value.as_str()?.parse().ok()).unwrap_or(0)
}

/// Writes the configuration and has it read; returns when the consumers are those that it names.
fn reload(gateway: &Gateway, setup: &Setup<'_>) {
    setup.write();
    gateway.child.signal(Signal::HUP);
    eventually("the uplinks of the new configuration", SOON, || {
        let health = gateway.health()?;
        let mut names: Vec<_> = health["consumers"].as_array()?.iter().filter_map(|c| c["name"].as_str()).collect();
        let mut wanted: Vec<_> = setup.uplinks.iter().map(|(name, _)| *name).collect();
        names.sort_unstable();
        wanted.sort_unstable();
        (names == wanted).then_some(())
    });
}

fn more_answers(plant: &CountingPlant) {
    let before = plant.count();
    eventually("more answers of the plant", SOON, || (plant.count() > before + 20).then_some(()));
}

#[test]
fn a_backlog_survives_every_change_of_broker_topics_encoding_and_consumers() {
    let (folder, plant) = (temp_dir(), CountingPlant::start());
    // Nobody listens at any of these ports.
    let mut setup = Setup::new(folder.path(), &plant, support::free_port());
    setup.uplinks = &[("kept", true), ("leaving", false)];
    setup.write();
    let gateway = setup.start();
    gateway.wait_until_up();
    more_answers(&plant);
    // Another broker, other topics, another encoding, another order.
    setup.broker_port = support::free_port();
    setup.root = "somewhere/else";
    setup.uplink_lines = "encoding = \"protobuf\"";
    setup.uplinks = &[("kept", false), ("leaving", true)];
    reload(&gateway, &setup);
    more_answers(&plant);
    // One more, one fewer.
    setup.uplinks = &[("kept", false), ("new", true)];
    reload(&gateway, &setup);
    more_answers(&plant);
    gateway.kill();
    let gateway = setup.start();
    gateway.wait_until_up();
    more_answers(&plant);
    // Now one that is there, with the first topics and encoding.
    let broker = mosquitto();
    let collector = Collector::start(broker.port());
    (setup.broker_port, setup.root, setup.uplink_lines) = (broker.port(), "fieldgate/v1", "");
    setup.uplinks = &[("kept", true), ("new", true)];
    reload(&gateway, &setup);
    more_answers(&plant);
    setup.devices = 0;
    reload(&gateway, &setup);
    gateway.wait_until_drained(SOON * 2);
    let answers = plant.answers();
    for root in ["kept", "new"] {
        // A number that was on its way when the process was killed or the devices went is no loss.
        let account = eventually("everything at the subscriber", SOON, || {
            let account = collector.account(root);
            (account.missing(&answers).len() <= 2 * answers.len()).then_some(account)
        });
        assert!(account.gaps.is_empty(), "{root}: {:?}", account.gaps);
        assert_eq!(account.contradictions(), Vec::<String>::new(), "{root}");
        println!(
            "{root}: {} arrivals, {} missing of {}",
            account.arrivals.len(),
            account.missing(&answers).len(),
            plant.count()
        );
    }
    gateway.stop();
}

#[test]
fn an_uplink_that_is_down_holds_its_records_and_one_that_is_removed_releases_them() {
    let (folder, plant) = (temp_dir(), CountingPlant::start());
    let broker = mosquitto();
    let collector = Collector::start(broker.port());
    let mut setup = Setup::new(folder.path(), &plant, broker.port());
    (setup.uplinks, setup.devices, setup.quota_mib) = (&[("here", true), ("away", true)], 1, 16);
    setup.first_uplink_lines = "window = 500";
    setup.away = Some("away");
    setup.write();
    let old = fill(&setup.data_dir(), 16, &["here", "away"], 6 << 20);
    let gateway = setup.start();
    collector.wait_for("here", "the whole backlog", SOON * 3, |account| {
        (account.numbers().get(&OLD).map_or(0, |n| n.len() as u64) == old).then_some(())
    });
    eventually("nothing owed to the one that is there", SOON, || {
        (whole(&consumer(&gateway, "here")?["pendingRecords"]) < 10).then_some(())
    });
    // Longer than acknowledgements need to become durable and segments to be released.
    run_for(Duration::from_secs(3));
    let health = gateway.wait_until_up();
    assert_eq!(lane(&health, "firstSeq"), 1, "what waits for the one that is down stays");
    assert!(whole(&consumer(&gateway, "away").expect("it is known")["pendingRecords"]) >= old);
    let before = lane(&health, "bytes");

    setup.uplinks = &[("here", true)];
    reload(&gateway, &setup);
    let after = eventually("released segments", SOON, || {
        let health = gateway.health()?;
        (lane(&health, "firstSeq") > old / 2).then_some(lane(&health, "bytes"))
    });
    println!("{} MiB on disk while one was down, {} MiB after it was removed", before >> 20, after >> 20);
    assert!(after + (3 << 20) < before, "{after} bytes of {before}");
    gateway.stop();
}

#[test]
fn a_replay_keeps_to_its_rate_and_says_how_far_it_is() {
    const RATE: u64 = 400;
    let (folder, plant) = (temp_dir(), CountingPlant::start());
    let broker = mosquitto();
    let collector = Collector::start(broker.port());
    let mut setup = Setup::new(folder.path(), &plant, broker.port());
    (setup.uplinks, setup.devices) = (&[("live", false)], 1);
    setup.replay_lines = "max_records = 400";
    setup.write();
    let old = fill(&setup.data_dir(), 64, &["live"], 1 << 20);
    let gateway = setup.start();
    let first = collector.wait_for("live", "the first of the backlog", SOON, |account| {
        account.arrivals.iter().find(|a| a.device == OLD).copied()
    });
    let (mut last, mut looks) = (0.0, 0);
    let done = loop {
        run_for(Duration::from_millis(250));
        let health = consumer(&gateway, "live").expect("it answers");
        let (progress, left) = (health["replayProgress"].as_f64().unwrap_or(0.0), health["replaySecondsLeft"].as_f64());
        if progress > 0.05 && progress < 0.9 {
            assert!(progress + 0.02 >= last, "{progress} after {last}");
            (last, looks) = (progress, looks + 1);
            // The rate is smoothed over 10 s, so the estimate is worth something in the second half only; within a factor
            // of five, since the machine may be busy.
            let ideal = (1.0 - progress) * old as f64 / RATE as f64;
            let left = left.unwrap_or(0.0);
            let good = progress < 0.5 || (left > ideal / 5.0 && left < ideal * 5.0 + 5.0);
            assert!(left > 0.0 && good, "{left} s left instead of {ideal} at {progress}");
        }
        let account = collector.account("live");
        if account.numbers().get(&OLD).map_or(0, |n| n.len() as u64) == old {
            break account;
        }
        assert!(first.at.elapsed() < SOON * 6, "not drained: {health}");
    };
    let replayed: Vec<_> = done.arrivals.iter().filter(|a| a.device == OLD).collect();
    let took = replayed.last().expect("a backlog").at - first.at;
    let rate = old as f64 / took.as_secs_f64();
    println!("{old} records in {took:?}: {rate:.0}/s of {RATE}; {looks} looks at the progress");
    assert!(rate <= RATE as f64 * 1.2, "{rate}/s is faster than allowed");
    assert!(looks >= 3, "the progress was never shown");
    // The past keeps its times and says so; what is live does not wait for it.
    assert!(replayed.iter().all(|a| a.historical && a.wall_ms < 1_763_900_000_000), "original times, marked");
    let live =
        done.arrivals.iter().filter(|a| a.device != OLD && !a.historical && a.at < replayed[replayed.len() / 2].at);
    assert!(live.count() > 5, "live data came beside the backlog");
    gateway.stop();
}

#[test]
fn a_byte_budget_closes_the_link_and_a_restart_does_not_renew_it() {
    const BUDGET: u64 = 30 << 10;
    let (folder, plant) = (temp_dir(), CountingPlant::start());
    let broker = mosquitto();
    let collector = Collector::start(broker.port());
    let mut setup = Setup::new(folder.path(), &plant, broker.port());
    (setup.devices, setup.uplink_lines) = (2, "daily_budget = \"30 KiB\"");
    setup.write();
    let spent = |gateway: &Gateway| {
        let health = consumer(gateway, "ordered")?;
        health["reason"].as_str()?.contains("budget").then_some(health)
    };
    let gateway = setup.start();
    eventually("that the budget is spent", SOON, || spent(&gateway));
    let arrived = collector.account("ordered").arrivals.len();
    assert!(arrived > 0 && arrived as u64 * 100 < BUDGET * 2, "{arrived} messages for {BUDGET} bytes");
    gateway.stop();
    let (gateway, began) = (setup.start(), Instant::now());
    eventually("that it is still spent", SOON, || spent(&gateway));
    more_answers(&plant);
    let now = collector.account("ordered").arrivals.len();
    // A stop in order may say goodbye, and what was under way may be counted only afterwards.
    assert!(now <= arrived + 200, "{now} after {arrived}: the budget was renewed {:?} ago", began.elapsed());
    // Events override it where they are told to.
    setup.uplink_lines = "daily_budget = \"30 KiB\"\ncritical_overrides = true";
    reload(&gateway, &setup);
    let before = collector.account("ordered").events;
    setup.devices = 1;
    reload(&gateway, &setup);
    collector
        .wait_for("ordered", "an event beyond the budget", SOON * 2, |account| (account.events > before).then_some(()));
    let telemetry = collector.account("ordered").arrivals.len();
    assert!(telemetry <= now + 200, "{telemetry} after {now}: telemetry passes the budget");
    gateway.stop();
}
