//! Clocks that are wrong: no battery (1970 at boot), set while the gateway runs, steps of hours both ways, with the real
//! binary. The wall clock is a few lines of C in front of the C library's, built here with `cc`, which add what a file
//! says; nothing else of the machine is touched.
//!
//! Held against the plant's own count and clock: every number that was answered arrives, in the order of the log, and
//! what was stored before the clock was set arrives with the time at which the plant really answered.
#![allow(clippy::unwrap_used, reason = "a test ends with a panic when its surroundings fail")]

mod support;
mod torture_support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, UNIX_EPOCH};

use support::{Mosquitto, SOON, eventually, temp_dir};
use torture_support::{Account, Collector, CountingPlant, Gateway, Setup, ago, run_for};

const HOUR: i64 = 3_600;
/// How far a mended stamp may be from the plant's time: a scan, and what a busy machine adds.
const CLOSE: Duration = Duration::from_secs(10);

const SHIM: &str = r#"
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t id, struct timespec *now) {
    long result = syscall(SYS_clock_gettime, id, now);
    if (result == 0 && id == CLOCK_REALTIME) {
        const char *path = getenv("FIELDGATE_TEST_CLOCK");
        FILE *file = path ? fopen(path, "r") : NULL;
        long long seconds = 0;
        if (file) {
            if (fscanf(file, "%lld", &seconds) == 1) now->tv_sec += seconds;
            fclose(file);
        }
    }
    return (int)result;
}
"#;

/// A wall clock that a test sets.
struct WrongClock {
    library: PathBuf,
    offset: PathBuf,
}

impl WrongClock {
    fn build(folder: &Path) -> Self {
        let (source, library) = (folder.join("clock.c"), folder.join("clock.so"));
        std::fs::write(&source, SHIM).expect("writable");
        let built = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).status();
        assert!(built.expect("cc, which the build needs too").success(), "cc refused the shim");
        let clock = Self { library, offset: folder.join("offset") };
        clock.set(0);
        clock
    }

    /// Seconds that the wall clock is ahead of the machine's.
    fn set(&self, seconds: i64) {
        let new = self.offset.with_extension("new");
        std::fs::write(&new, seconds.to_string()).expect("writable");
        std::fs::rename(new, &self.offset).expect("renamed");
    }

    fn start(&self, setup: &Setup<'_>) -> Gateway {
        let preload = format!("LD_PRELOAD={}", self.library.display());
        let offset = format!("FIELDGATE_TEST_CLOCK={}", self.offset.display());
        setup.start_under(&["env", &preload, &offset])
    }
}

fn since_1970() -> Duration {
    UNIX_EPOCH.elapsed().expect("after 1970")
}

/// Runs until the gateway has this many records more, synced.
fn more_records(gateway: &Gateway, records: u64) {
    let before = eventually("the admin socket", SOON, || Some(gateway.synced()).filter(|s| *s > 0));
    eventually("more records", SOON, || (gateway.synced() >= before + records).then_some(()));
}

fn everything_arrived(collector: &Collector, plant: &CountingPlant) -> Account {
    let answers = plant.answers();
    for (device, times) in &answers {
        collector.wait_for_number("ordered", *device, times.len() as u32, SOON * 3);
    }
    let account = collector.account("ordered");
    assert!(account.gaps.is_empty(), "{:?}", account.gaps);
    assert_eq!(account.contradictions(), Vec::<String>::new());
    let seqs: Vec<u64> = account.first_arrivals().iter().map(|a| a.seq).collect();
    assert!(seqs.is_sorted(), "an in-order uplink sends in the order of the log, whatever the clock says");
    account
}

/// Whether a message carries the time at which the plant answered, on the machine's clock.
fn is_right(arrival: &torture_support::Arrival, plant: &CountingPlant) -> bool {
    let answered = plant.answers()[&arrival.device][arrival.number as usize - 1];
    let real = (since_1970() - ago(answered, Instant::now())).as_millis() as i64;
    (real - arrival.wall_ms).unsigned_abs() <= CLOSE.as_millis() as u64
}

#[test]
fn a_backlog_that_was_stored_in_1970_arrives_with_the_right_times() {
    let (folder, plant) = (temp_dir(), CountingPlant::start());
    let clock = WrongClock::build(folder.path());
    let broker = Mosquitto::with_config("allow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 0\n");
    let collector = Collector::start(broker.port());
    // Nobody listens there: what is read is stored.
    let mut setup = Setup::new(folder.path(), &plant, support::free_port());
    setup.write();

    clock.set(60 - since_1970().as_secs() as i64);
    let gateway = clock.start(&setup);
    more_records(&gateway, 40);
    let health = gateway.health().expect("it runs");
    assert_eq!(health["clock"], "UNSYNCHRONISED", "{health}");
    // A restart on the way: the boot of the machine is the same, the process is not.
    gateway.kill();
    let gateway = clock.start(&setup);
    more_records(&gateway, 40);

    clock.set(0);
    let settings = setup.data_dir().join("clock-settings");
    eventually("a note of the clock's setting", SOON, || settings.exists().then_some(()));
    let in_1970 = plant.answers();
    more_records(&gateway, 20);
    gateway.kill();

    // The backlog is delivered by a later process, which never saw the wrong clock.
    setup.broker_port = broker.port();
    setup.write();
    let gateway = clock.start(&setup);
    let account = everything_arrived(&collector, &plant);
    gateway.stop();
    // What was done to devices in 1970 stands in the audit log with the time at which it really was done.
    let audit = Command::new(env!("CARGO_BIN_EXE_fieldgate"))
        .args(["--config", &folder.path().display().to_string(), "audit", "--json", "--last", "1000"])
        .output()
        .expect("it starts");
    let entries: serde_json::Value = serde_json::from_slice(&audit.stdout).expect("JSON");
    let entries = entries.as_array().expect("a list");
    assert!(!entries.is_empty() && entries.iter().all(|e| e["mended"] == true), "{entries:?}");
    let year = |e: &serde_json::Value| e["time"].as_str().and_then(|t| t.get(..4)?.parse::<u32>().ok());
    assert!(entries.iter().all(|e| year(e) > Some(2020)), "{entries:?}");
    // What had been answered and was not yet accepted when the process was killed is no loss.
    let missing = account.missing(&plant.answers());
    assert!(missing.len() <= 20, "{missing:?}");
    let wrong: Vec<_> = account.arrivals.iter().filter(|a| !is_right(a, &plant)).collect();
    assert!(wrong.is_empty(), "times far from those of the plant: {wrong:?}");
    let mended = account.arrivals.iter().filter(|a| a.mended).count();
    let early: usize = in_1970.values().map(Vec::len).sum();
    assert!(mended >= 80 && mended <= early + 20, "{mended} of {early} are marked as mended");
    println!(
        "{} arrivals, {mended} of them stored in 1970 and mended, none off by more than {CLOSE:?}",
        account.arrivals.len()
    );
}

#[test]
fn steps_of_hours_both_ways_lose_and_reorder_nothing() {
    let (folder, plant) = (temp_dir(), CountingPlant::start());
    let clock = WrongClock::build(folder.path());
    let broker = Mosquitto::with_config("allow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 0\n");
    let collector = Collector::start(broker.port());
    let mut setup = Setup::new(folder.path(), &plant, broker.port());
    // A clock that nobody disciplines must not make the log forget.
    setup.store_lines = "max_age = \"1 h\"";
    setup.write();
    let mut gateway = clock.start(&setup);
    collector.wait_for_number("ordered", 1, 5, SOON);
    for hours in [3, -2, 30, -(since_1970().as_secs() as i64) / HOUR, 0] {
        clock.set(hours * HOUR);
        let now = plant.answers();
        // More than the keep-alive of 5 s would be needed for a timer on the wall clock to show; a scan is 50 ms.
        for (device, times) in &now {
            collector.wait_for_number("ordered", *device, times.len() as u32 + 20, SOON);
        }
        assert!(gateway.child.is_running(), "a step to {hours} h: {:#?}", gateway.child.lines());
    }
    run_for(Duration::from_secs(2));
    let account = everything_arrived(&collector, &plant);
    gateway.stop();
    assert_eq!(account.missing(&plant.answers()).iter().filter(|m| ago(m.2, Instant::now()) > SOON).count(), 0);
    println!("{} arrivals over five steps of the clock, in order, 0 lost", account.arrivals.len());
}
