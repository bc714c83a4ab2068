//! What happens when the store is full, as `[store]` and `[[uplink]]` choose it, with the real binary: the oldest goes,
//! the newest is not kept, devices are not read, one of n is kept; one uplink may hold back less than another. And how
//! often the disk is waited for, by `sync`.
//!
//! Held against the plant's own count: what is missing is told on `gaps`, with the right reason and the right number.
#![allow(clippy::unwrap_used, reason = "a test ends with a panic when its surroundings fail")]

mod support;
mod torture_support;

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::{Mosquitto, SOON, eventually, temp_dir};
use torture_support::library::{OLD, fill};
use torture_support::{Account, Collector, CountingPlant, Gateway, Setup, lane, run_for};

const QUOTA_MIB: u64 = 8;
/// In the store before the gateway starts; 6 of the 8 MiB are for telemetry, in segments of 1 MiB.
const FILLED: u64 = 4_900_000;
/// Answers of one device that may have been on their way when the devices were taken away.
const ON_THE_WAY: usize = 2;
const DEVICES: u8 = 20;

fn mosquitto() -> Mosquitto {
    Mosquitto::with_config("allow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 0\n")
}

fn setup<'a>(folder: &'a Path, plant: &'a CountingPlant) -> Setup<'a> {
    let mut setup = Setup::new(folder, plant, support::free_port());
    (setup.devices, setup.quota_mib, setup.rate_ms, setup.octets) = (DEVICES, QUOTA_MIB, 50, 230);
    setup
}

/// What arrived under one root, and how much of it is missing.
struct Outcome {
    account: Account,
    missing_old: u64,
    /// Numbers of the plant that did not arrive.
    missing_new: u64,
    told: u64,
}

impl Outcome {
    fn of(root: &str, old: u64, collector: &Collector, plant: &CountingPlant) -> Self {
        let account = collector.account(root);
        assert_eq!(account.contradictions(), Vec::<String>::new(), "{root}");
        let missing_old = old - account.numbers().get(&OLD).map_or(0, |numbers| numbers.len() as u64);
        let missing_new = account.missing(&plant.answers()).len() as u64;
        let told = account.gaps.iter().filter(|gap| gap.lane == "bulk").map(|gap| gap.records).sum();
        println!(
            "{root}: of {old} old ones {missing_old} are missing, of {} new ones {missing_new}; told {told}",
            plant.count()
        );
        Self { account, missing_old, missing_new, told }
    }

    /// What is missing was told, with this reason and no other.
    fn check(&self, reason: &str) {
        let on_the_way = u64::from(DEVICES) * ON_THE_WAY as u64;
        let missing = self.missing_old + self.missing_new;
        assert!(self.told <= missing && missing <= self.told + on_the_way, "{missing} missing, {} told", self.told);
        assert!(self.account.gaps.iter().all(|gap| gap.reason == reason), "{:?}", self.account.gaps);
    }
}

/// Lets a gateway without a broker run into its quota; then the broker comes, the devices go, and everything drains.
fn run_full(policy: &str, full: impl Fn(&Gateway, &CountingPlant) -> bool) -> Outcome {
    let (folder, plant) = (temp_dir(), CountingPlant::start());
    let mut setup = setup(folder.path(), &plant);
    setup.store_lines = policy;
    setup.write();
    let old = fill(&setup.data_dir(), QUOTA_MIB, &["ordered"], FILLED);
    let gateway = setup.start();
    gateway.wait_until_up();
    eventually("a full store", SOON * 4, || full(&gateway, &plant).then_some(()));
    let at_the_limit = plant.count();
    let (broker, lost) = (mosquitto(), lane(&gateway.wait_until_up(), "evictedRecords"));
    let collector = Collector::start(broker.port());
    setup.broker_port = broker.port();
    setup.write();
    gateway.child.signal(Signal::HUP);
    // It goes on reading, also where it had stopped.
    eventually("more answers of the plant", SOON * 2, || (plant.count() > at_the_limit + 100).then_some(()));
    setup.devices = 0;
    setup.write();
    gateway.child.signal(Signal::HUP);
    drain(&gateway, &collector, "ordered");
    println!("{policy}: {lost} evicted when the broker came");
    let outcome = Outcome::of("ordered", old, &collector, &plant);
    gateway.stop();
    outcome
}

/// Waits until the gateway owes nothing and the subscriber has read all of it.
fn drain(gateway: &Gateway, collector: &Collector, root: &str) {
    gateway.wait_until_drained(SOON * 4);
    let mut before = usize::MAX;
    eventually("quiet at the subscriber", SOON, || {
        run_for(Duration::from_millis(200));
        let now = collector.account(root).arrivals.len();
        (std::mem::replace(&mut before, now) == now).then_some(())
    });
}

fn evicted(gateway: &Gateway) -> u64 {
    gateway.health().map_or(0, |health| lane(&health, "evictedRecords"))
}

#[test]
fn drop_oldest_gives_up_the_oldest_and_tells() {
    let outcome = run_full("when_full = \"drop-oldest\"", |gateway, _| evicted(gateway) > 0);
    outcome.check("quota-bytes");
    assert!(outcome.missing_old > 0 && outcome.missing_new <= u64::from(DEVICES) * ON_THE_WAY as u64);
}

#[test]
fn drop_newest_keeps_what_it_has_and_tells() {
    let outcome = run_full("when_full = \"drop-newest\"", |gateway, _| evicted(gateway) > 100);
    outcome.check("quota-newest");
    assert_eq!(outcome.missing_old, 0);
}

#[test]
fn push_back_stops_reading_and_loses_nothing() {
    let quiet = std::cell::Cell::new((0, Instant::now()));
    let outcome = run_full("when_full = \"push-back\"", |gateway, plant| {
        let now = plant.count();
        if now != quiet.get().0 {
            quiet.set((now, Instant::now()));
        }
        // The queue in front of the store is full too: nothing is read for a hundred scans' time.
        quiet.get().1.elapsed() > Duration::from_secs(5) && now > 0 && gateway.health().is_some()
    });
    outcome.check("nothing may be lost");
    assert_eq!((outcome.missing_old, outcome.told), (0, 0));
}

#[test]
fn thin_out_keeps_one_of_n_and_tells() {
    let outcome = run_full("when_full = \"thin-out\"\nkeep_one_of = 4", |gateway, _| evicted(gateway) > 300);
    outcome.check("thinned-out");
    assert_eq!(outcome.missing_old, 0);
    // Between the first and the last number that is missing, about one in four was kept.
    for (device, numbers) in outcome.account.numbers().iter().filter(|(device, _)| **device != OLD) {
        let all: Vec<u32> = numbers.iter().copied().collect();
        let Some(first) = all.windows(2).position(|w| w[1] > w[0] + 1) else { continue };
        let last = all.windows(2).rposition(|w| w[1] > w[0] + 1).expect("there is a first");
        let (kept, span) = (last - first + 1, (all[last + 1] - all[first]) as usize);
        assert!(kept * 5 >= span && kept * 3 <= span + 9, "device {device}: {kept} of {span} were kept");
    }
}

#[test]
fn an_uplink_may_hold_back_less_than_another() {
    let (folder, plant) = (temp_dir(), CountingPlant::start());
    let mut setup = setup(folder.path(), &plant);
    (setup.uplinks, setup.quota_mib, setup.devices) = (&[("ordered", true), ("patient", false)], 16, 2);
    setup.first_uplink_lines = "max_backlog = \"2 MiB\"";
    setup.write();
    let old = fill(&setup.data_dir(), 16, &["ordered", "patient"], FILLED);
    let lost = |gateway: &Gateway, name: &str| {
        let health = gateway.health()?;
        let consumer = health["consumers"].as_array()?.iter().find(|c| c["name"] == name)?.clone();
        consumer["lost"].as_str()?.parse::<u64>().ok()
    };
    let gateway = setup.start();
    let given_up = eventually("that the limit is kept to", SOON, || lost(&gateway, "ordered").filter(|lost| *lost > 0));
    // It is remembered by a process that was not there.
    gateway.kill();
    let gateway = setup.start();
    let again = eventually("the figures after a kill", SOON, || lost(&gateway, "ordered").filter(|lost| *lost > 0));
    assert!(again >= given_up, "{again} instead of {given_up}");
    let (broker, answered) = (mosquitto(), plant.count());
    let collector = Collector::start(broker.port());
    setup.broker_port = broker.port();
    setup.write();
    gateway.child.signal(Signal::HUP);
    eventually("more answers of the plant", SOON, || (plant.count() > answered + 10).then_some(()));
    setup.devices = 0;
    setup.write();
    gateway.child.signal(Signal::HUP);
    drain(&gateway, &collector, "ordered");
    drain(&gateway, &collector, "patient");
    let outcome = Outcome::of("ordered", old, &collector, &plant);
    outcome.check("quota-bytes");
    // 2 MiB and the segment being filled are left of about 4 MiB.
    assert!(outcome.missing_old > old / 4 && outcome.missing_old < old * 3 / 4, "{} of {old}", outcome.missing_old);
    assert!(outcome.account.first_arrivals().windows(2).all(|w| w[0].seq < w[1].seq), "in order");
    let patient = Outcome::of("patient", old, &collector, &plant);
    assert_eq!((patient.missing_old, patient.told), (0, 0), "what one gives up the other still gets");
    gateway.stop();
}

/// Runs a gateway under strace for a while; returns how often it waited for the disk, and the records it took.
fn syncs_with(sync: &str) -> (u64, u64) {
    let (folder, plant) = (temp_dir(), CountingPlant::start());
    let mut setup = Setup::new(folder.path(), &plant, support::free_port());
    setup.store_lines = sync;
    setup.write();
    let counts = folder.path().join("syncs");
    let name = counts.display().to_string();
    let gateway = setup.start_under(&["strace", "-f", "-qq", "-o", &name, "--seccomp-bpf", "-e", "trace=fdatasync"]);
    eventually("the first records", SOON, || (gateway.synced() > 20).then_some(()));
    let calls = || std::fs::read_to_string(&counts).map_or(0, |text| text.matches("fdatasync(").count() as u64);
    let (before, records) = (calls(), gateway.synced());
    eventually("more records", SOON * 2, || (gateway.synced() >= records + 200).then_some(()));
    let figures = (calls() - before, gateway.synced() - records);
    gateway.kill();
    println!("{sync}: {} syncs for {} records", figures.0, figures.1);
    figures
}

#[test]
fn the_sync_policy_says_how_often_the_disk_is_waited_for() {
    let (always, records) = syncs_with("sync = \"always\"");
    let (interval, of) = syncs_with("sync = \"interval\"\nbulk_interval = \"1 s\"");
    let (os, all) = syncs_with("sync = \"os\"");
    // Batches of several devices share a sync.
    assert!(always * 10 >= records, "always: {always} syncs for {records} records");
    assert!(interval * 20 <= of + 100, "every second: {interval} syncs for {of} records");
    assert!(os * 20 <= all + 100 && os <= interval + 2, "os: {os} syncs for {all} records");
}
