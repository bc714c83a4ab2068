//! Long outages: the quota is hit, the broker comes back, live data and backlog are sent together; the quota holds at
//! every moment; a large backlog opens at once and takes no memory.
//!
//! CI: a backlog of 8 MiB behind the gateway, churn of 15 turns at 16 MiB and 2 at 64, opening 64 MiB. Full:
//! `FIELDGATE_BACKLOG_MIB=64 FIELDGATE_TURNS=15 FIELDGATE_OPEN_MIB=1024` (then also churn at 256 MiB).
#![allow(clippy::unwrap_used, reason = "a test ends with a panic when its surroundings fail")]

mod support;
mod torture_support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fieldgate::model::Lane;
use fieldgate::platform::clock::SystemClock;
use fieldgate::store::{Config, Store};
use support::{Mosquitto, SOON, temp_dir};
use torture_support::library::{OLD, bytes_on_disk, consumer, old_record, record};
use torture_support::{Collector, CountingPlant, Setup, percentile, run_for, strict, times};

/// Devices that are read while the backlog drains, 20 times a second each.
const LIVE_DEVICES: u8 = 2;
/// Fills the store of a gateway that is away until the quota has evicted; returns how many records were accepted.
async fn outage(data: &Path, quota_mib: u64, consumers: &[&str]) -> u64 {
    std::fs::create_dir_all(data).expect("writable");
    let store =
        Store::open(Config::with_quota(data.join("store"), quota_mib << 20), SystemClock::shared()).expect("opens");
    for name in consumers {
        drop(consumer(&store, name).await);
    }
    let mut stats = store.stats();
    let mut number = 0;
    while stats.borrow_and_update().bulk.lost.is_empty() {
        let records: Vec<_> = (number + 1..=number + 500).map(old_record).collect();
        number += records.len() as u64;
        store.append(records).await.expect("accepted");
    }
    store.close().await.expect("closed");
    number
}

#[test]
fn live_and_backlog_together_after_an_outage_that_hit_the_quota() {
    let mib = times("FIELDGATE_BACKLOG_MIB", 8) as u64;
    let (folder, plant) = (temp_dir(), CountingPlant::start());
    let broker = Mosquitto::with_config("allow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 0\n");
    let collector = Collector::start(broker.port());
    let mut setup = Setup::new(folder.path(), &plant, broker.port());
    (setup.uplinks, setup.devices, setup.quota_mib) = (&[("live", false)], LIVE_DEVICES, mib);
    setup.write();
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    let old = runtime.block_on(outage(&setup.data_dir(), mib, &["live"]));

    let (gateway, began) = (setup.start(), Instant::now());
    let mut memory = Vec::new();
    let limit = Duration::from_secs(60 + mib * 10);
    let drained = loop {
        assert!(began.elapsed() < limit, "not drained after {limit:?}");
        run_for(Duration::from_millis(100));
        let account = collector.account_len("live", OLD);
        if account.0 > 0 {
            memory.push(gateway.child.resident_bytes());
        }
        if account.1 >= old {
            break Instant::now();
        }
    };
    let answers = plant.answers();
    let account = collector.account("live");
    gateway.stop();

    let replayed: Vec<_> = account.arrivals.iter().filter(|a| a.device == OLD).collect();
    let first = replayed.first().expect("a backlog").at;
    let last = replayed.last().expect("a backlog").at;
    let gap: u64 = account.gaps.iter().filter(|gap| gap.lane == "bulk").map(|gap| gap.records).sum();
    let mut latency: Vec<Duration> = account
        .first_arrivals()
        .iter()
        .filter(|a| a.device != OLD && a.at <= last)
        .map(|a| a.at.saturating_duration_since(answers[&a.device][a.number as usize - 1]))
        .collect();
    let live_rate = f64::from(LIVE_DEVICES) * 20.0;
    let rate = replayed.len() as f64 / (last - first).as_secs_f64();
    let (p50, p99) = (percentile(&mut latency, 50.0), percentile(&mut latency, 99.0));
    let (low, high) = (memory.iter().min().copied().unwrap_or(0), memory.iter().max().copied().unwrap_or(0));
    println!(
        "{mib} MiB: {old} records, {gap} evicted and told, {} replayed in {:?}: {rate:.0}/s = {:.0} x the live rate; live p50 {p50:?} p99 {p99:?} of {}; RSS {} to {} KiB",
        replayed.len(),
        last - first,
        rate / live_rate,
        latency.len(),
        low >> 10,
        high >> 10
    );
    let _ = drained;
    let numbers = &account.numbers()[&OLD];
    assert_eq!(numbers.len() as u64 + gap, old, "replayed and evicted are not all: {:?}", account.gaps);
    assert!(gap > 0, "the quota was not hit");
    assert!(rate >= 20.0 * live_rate, "drained at {rate:.0}/s only");
    assert!(p99 <= Duration::from_secs(2), "live p99 {p99:?} while the backlog drains");
    assert!(high - low <= 24 << 20, "memory grew from {low} to {high}");
}

/// Appends `turns` times the quota while a second thread measures what lies on the disk.
fn churn(quota_mib: u64, turns: u64) {
    let (folder, stop, peak) = (temp_dir(), Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let dir = folder.path().join("store");
    let measure = {
        let (dir, stop, peak) = (dir.clone(), stop.clone(), peak.clone());
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                // The keyed state is not part of the log and has no quota.
                let bytes = bytes_on_disk(&dir).saturating_sub(bytes_on_disk(&dir.join("state")));
                peak.fetch_max(bytes, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(2));
            }
        })
    };
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    let quota = quota_mib << 20;
    let (amplification, took) = runtime.block_on(async {
        let store = Store::open(Config::with_quota(&dir, quota), SystemClock::shared()).expect("opens");
        drop(consumer(&store, "away").await);
        let (mut number, mut bytes, began) = (0, 0, Instant::now());
        while bytes < quota * turns {
            let records: Vec<_> = (0..250).map(|i| record(Lane::Bulk, number + i, 1_000)).collect();
            (number, bytes) = (number + 250, bytes + 250 * 1_036);
            store.append(records).await.expect("accepted");
        }
        store.sync().await;
        let took = began.elapsed();
        let figures = store.stats().borrow().write_amplification;
        store.close().await.expect("closed");
        (figures, took)
    });
    stop.store(true, Ordering::Relaxed);
    measure.join().expect("it measures");
    let peak = peak.load(Ordering::Relaxed);
    println!(
        "{quota_mib} MiB quota, {turns} turns in {took:?}: peak on disk {peak} of {quota} bytes, {amplification:.2} bytes written per payload byte"
    );
    assert!(peak <= quota, "{peak} bytes on disk with a quota of {quota}");
    assert!(peak > quota / 2, "the quota was not used: {peak}");
}

#[test]
fn the_quota_holds_at_every_moment() {
    let turns = std::env::var("FIELDGATE_TURNS").ok().map(|t| t.parse().expect("a number"));
    churn(16, turns.unwrap_or(15));
    churn(64, turns.unwrap_or(2));
    if let Some(turns) = turns {
        churn(256, turns);
    }
}

#[test]
fn a_large_backlog_opens_at_once_in_little_memory() {
    // The measured process is this test again, so that its memory is the store's alone.
    if let Ok(dir) = std::env::var("FIELDGATE_OPEN_DIR") {
        return open_and_tell(Path::new(&dir));
    }
    let mib = times("FIELDGATE_OPEN_MIB", 64) as u64;
    let folder = temp_dir();
    let dir = folder.path().join("store");
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    runtime.block_on(async {
        // A quota with room for all of it.
        let store = Store::open(Config::with_quota(&dir, (mib << 20) * 2), SystemClock::shared()).expect("opens");
        drop(consumer(&store, "away").await);
        let mut number = 0;
        while number * 1_036 < mib << 20 {
            store.append((0..250).map(|i| record(Lane::Bulk, number + i, 1_000)).collect()).await.expect("accepted");
            number += 250;
        }
        store.close().await.expect("closed");
    });
    let mut command = std::process::Command::new(std::env::current_exe().expect("it runs"));
    command.args(["--exact", "a_large_backlog_opens_at_once_in_little_memory", "--nocapture"]);
    let output =
        command.env("FIELDGATE_OPEN_DIR", &dir).env("FIELDGATE_OPEN_QUOTA", ((mib << 20) * 2).to_string()).output();
    let output = output.expect("it starts");
    let said = String::from_utf8_lossy(&output.stdout);
    let figures: Vec<u64> = said
        .lines()
        .find_map(|line| line.split_once("OPENED ").map(|(_, rest)| rest))
        .unwrap_or_else(|| panic!("the child said {said} {}", String::from_utf8_lossy(&output.stderr)))
        .split_whitespace()
        .map(|n| n.parse().expect("a number"))
        .collect();
    let (micros, rss, pending) = (figures[0], figures[1], figures[2]);
    println!(
        "{mib} MiB backlog: open {:.3} s, RSS after it {} KiB, {pending} records pending",
        micros as f64 / 1e6,
        rss >> 10
    );
    assert!(pending * 1_036 >= mib << 20, "the backlog is not there");
    let bound = if strict() { 200_000 } else { 2_000_000 };
    assert!(micros <= bound, "opening took {micros} µs");
    assert!(rss <= 30 << 20, "RSS {rss}");
}

fn open_and_tell(dir: &Path) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("threads");
    let quota: u64 = std::env::var("FIELDGATE_OPEN_QUOTA").expect("set by the parent").parse().expect("a number");
    runtime.block_on(async {
        let began = Instant::now();
        let store = Store::open(Config::with_quota(dir, quota), SystemClock::shared()).expect("opens");
        let micros = began.elapsed().as_micros();
        let reader = consumer(&store, "away").await;
        let status = std::fs::read_to_string("/proc/self/status").expect("linux");
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("linux says VmRSS");
        let rss: u64 = rss.trim().trim_end_matches(" kB").trim().parse::<u64>().expect("a number") * 1_024;
        println!("OPENED {micros} {rss} {}", reader.depth().records);
        drop(reader);
        tokio::time::timeout(SOON, store.close()).await.expect("in time").expect("closed");
    });
}
