//! Disks that fail and disks that are full, under the real binary: `strace` makes system calls fail, and a small ext4 is
//! filled up and freed again.
//!
//! Held against the plant's own count: a number that was answered must arrive in the end, or a gap must have told of it.
//! Nobody takes the records while the disk fails, so everything that arrives later came through the log. Without strace
//! or loop mounts the part concerned says that it was not run.
#![allow(clippy::unwrap_used, reason = "a test ends with a panic when its surroundings fail")]

mod support;
mod torture_support;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use fieldgate::model::Lane;
use fieldgate::platform::clock::SystemClock;
use fieldgate::store::{Config, Store};
use support::{Mosquitto, SOON, eventually, temp_dir};
use torture_support::{Account, Collector, CountingPlant, Gateway, Image, Setup, library, loop_mounts_work, run_for};

/// Scans whose answers were on their way when the gateway was told to stop.
const AT_THE_STOP: usize = 2;

/// What the plant answered, and what a subscriber finally got.
struct Outcome {
    answers: BTreeMap<u8, Vec<Instant>>,
    account: Account,
}

impl Outcome {
    /// Starts the gateway without faults and without devices and drains it.
    fn drain(folder: &Path, data: &Path, plant: &CountingPlant) -> Self {
        let answers = plant.answers();
        let broker = Mosquitto::with_config("allow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 0\n");
        let collector = Collector::start(broker.port());
        let mut setup = Setup::new(folder, plant, broker.port());
        (setup.data, setup.devices, setup.quota_mib) = (Some(data.to_owned()), 0, 32);
        setup.write();
        let gateway = setup.start();
        collector.wait_for("ordered", "the first status", SOON, |account| (!account.epochs.is_empty()).then_some(()));
        gateway.wait_until_drained(SOON * 3);
        gateway.stop();
        // A last message to the subscriber may be on its way; the broker delivers in order.
        let mut before = usize::MAX;
        eventually("quiet at the subscriber", SOON, || {
            run_for(Duration::from_millis(100));
            let now = collector.account("ordered").arrivals.len();
            (std::mem::replace(&mut before, now) == now).then_some(())
        });
        Self { answers, account: collector.account("ordered") }
    }

    /// Nothing contradicts itself, and what is missing was told. `earlier` counts what was answered, by device, when the
    /// gateway was stopped before.
    fn check(&self, what: &str, earlier: &BTreeMap<u8, usize>) {
        let answered: usize = self.answers.values().map(Vec::len).sum();
        let missing = self.account.missing(&self.answers);
        let told: u64 = self.account.gaps.iter().filter(|gap| gap.lane == "bulk").map(|gap| gap.records).sum();
        println!(
            "{what}: {answered} answered, {} missing, gaps tell of {told}: {:?}",
            missing.len(),
            self.account.gaps
        );
        assert_eq!(self.account.contradictions(), Vec::<String>::new(), "{what}");
        // The last answers of each device before a stop may not have been accepted.
        let late = |device: &u8, number: &u32| {
            let stops = [Some(self.answers[device].len()), earlier.get(device).copied()];
            stops.into_iter().flatten().any(|end| (end + 1 - AT_THE_STOP.min(end)..=end).contains(&(*number as usize)))
        };
        let silent = missing.iter().filter(|(device, number, _)| !late(device, number)).count();
        assert!(silent as u64 <= told, "{what}: {silent} are missing and gaps tell of {told} only: {missing:?}");
    }
}

/// Lets a gateway run for a while with system calls that fail, and drains it after a stop in order.
fn under_strace(what: &str, segments_only: bool, trace: &str, inject: &str) {
    let (folder, plant) = (temp_dir(), CountingPlant::start());
    let mut setup = Setup::new(folder.path(), &plant, support::free_port());
    setup.quota_mib = 32;
    setup.write();
    // The files must be there before strace can be told of them.
    let first = setup.start();
    eventually("the first records", SOON, || (first.synced() > 5).then_some(()));
    first.stop();
    let earlier = plant.answers().iter().map(|(device, answers)| (*device, answers.len())).collect();
    let mut strace = vec!["strace", "-f", "-qq", "-o", "/dev/null", "-e", trace, "-e", inject];
    let files = library::files(&setup.data_dir());
    let names: Vec<String> = files
        .iter()
        .filter(|file| !segments_only || file.extension().is_some_and(|e| e == "seg" || e == "spare"))
        .map(|file| file.display().to_string())
        .collect();
    if segments_only {
        assert!(!names.is_empty(), "{what}: there are no segments in {files:?}");
        names.iter().for_each(|name| strace.extend(["-P", name]));
    }
    let mut faulty = setup.start_under(&strace);
    faulty.wait_until_up();
    let before = plant.count();
    run_for(Duration::from_secs(3));
    assert!(faulty.child.is_running(), "{what}: the gateway ended: {:?}", faulty.child.lines());
    assert!(plant.count() > before + 50, "{what}: the gateway stopped reading");
    let said = faulty.child.lines();
    let complained = said.iter().any(|line| line.contains("Input/output error") || line.contains("No space left"));
    assert!(complained, "{what}: no fault struck; the gateway said {said:#?}");
    stop_under_strace(faulty);
    Outcome::drain(folder.path(), &setup.data_dir(), &plant).check(what, &earlier);
}

/// strace does not pass a signal on, so its child gets it; strace ends with it.
fn stop_under_strace(mut gateway: Gateway) {
    let strace = gateway.child.id();
    let children = std::fs::read_to_string(format!("/proc/{strace}/task/{strace}/children")).expect("strace runs");
    let child = children.split_whitespace().next().and_then(|id| id.parse().ok()).expect("strace has a child");
    let child = rustix::process::Pid::from_raw(child).expect("a process id is not zero");
    rustix::process::kill_process(child, rustix::process::Signal::TERM).expect("the gateway runs");
    gateway.child.wait(SOON * 2);
}

#[test]
fn syncs_that_fail_again_and_again_lose_nothing_silently() {
    under_strace(
        "every third fdatasync fails with EIO",
        false,
        "trace=fdatasync",
        "inject=fdatasync:error=EIO:when=3+3",
    );
}

#[test]
fn writes_that_fail_for_a_while_lose_nothing_silently() {
    under_strace(
        "writes 5 to 40 to the segments fail with ENOSPC",
        true,
        "trace=pwrite64",
        "inject=pwrite64:error=ENOSPC:when=5..40",
    );
}

#[test]
fn writes_that_fail_now_and_then_lose_nothing_silently() {
    under_strace(
        "every seventh write to the segments fails with EIO",
        true,
        "trace=pwrite64",
        "inject=pwrite64:error=EIO:when=4+7",
    );
}

#[test]
fn a_full_disk_is_survived_and_left_within_five_seconds() {
    if let Err(why) = loop_mounts_work() {
        println!("NOT RUN: no loop mounts here ({why}); the store's model tests fill a simulated disk");
        return;
    }
    let (folder, plant) = (temp_dir(), CountingPlant::start());
    let image = Image::make(folder.path().join("disk.img"), 48).expect("an ext4 can be made");
    let mount = image.mount(folder.path().join("disk")).expect("it can be mounted");
    let mut setup = Setup::new(folder.path(), &plant, support::free_port());
    setup.data = Some(mount.path().join("data"));
    (setup.devices, setup.quota_mib) = (10, 32);
    setup.write();
    // Records of a real load would take hours to fill a segment; what else lies on the disk fills it in a moment, from
    // before the start, so that not even the first segments can be made.
    let (filler, mut gateway) = (mount.path().join("filler"), setup.start());
    gateway.wait_until_up();
    eventually("the first records", SOON, || (gateway.synced() > 20).then_some(()));
    gateway.stop();
    fill(&filler);
    library::files(&setup.data_dir())
        .iter()
        .filter(|file| file.extension().is_some_and(|e| e == "spare") || file.ends_with("reserve"))
        .for_each(|file| std::fs::remove_file(file).expect("removable"));
    fill(&filler);
    gateway = setup.start();
    eventually("that it runs on a full disk", SOON, || {
        assert!(gateway.child.is_running(), "it ended: {:#?}", gateway.child.lines());
        gateway.health()
    });
    let before = plant.count();
    run_for(Duration::from_secs(3));
    assert!(gateway.child.is_running() && plant.count() > before + 50, "the gateway does not go on on a full disk");
    let (synced, freed) = (gateway.synced(), Instant::now());
    std::fs::remove_file(&filler).expect("removable");
    eventually("more synced records", SOON, || (gateway.synced() > synced).then_some(()));
    let took = freed.elapsed();
    println!("full disk: synced {synced} while full, syncs again {took:?} after space returned");
    assert!(took <= Duration::from_secs(5), "took {took:?}");
    gateway.stop();
    Outcome::drain(folder.path(), &setup.data_dir(), &plant).check("full disk", &BTreeMap::new());
}

#[test]
fn a_log_that_fills_the_disk_goes_on_when_space_returns() {
    if let Err(why) = loop_mounts_work() {
        println!("NOT RUN: no loop mounts here ({why}); the store's model tests fill a simulated disk");
        return;
    }
    let folder = temp_dir();
    let image = Image::make(folder.path().join("disk.img"), 32).expect("an ext4 can be made");
    let mount = image.mount(folder.path().join("disk")).expect("it can be mounted");
    let filler = mount.path().join("filler");
    std::fs::write(&filler, vec![1; 12 << 20]).expect("there is room");
    tokio::runtime::Runtime::new().expect("threads").block_on(async {
        // More quota than disk.
        let config = Config::with_quota(mount.path().join("store"), 64 << 20);
        let store = Store::open(config.clone(), SystemClock::shared()).expect("opens");
        drop(library::consumer(&store, "reader").await);
        let (mut accepted, mut refused, stats) = (0, 0, store.stats());
        let failing = || stats.borrow().bulk.failing.clone();
        let mut append = async |count: u64| {
            for _ in 0..count {
                let records = (0..10).map(|i| library::record(Lane::Bulk, i, 4_000)).collect();
                match store.append(records).await {
                    Ok(last) => accepted = last,
                    Err(_) => refused += 10,
                }
            }
        };
        // Until the disk is full, and then more than the memory for that holds (1 MiB).
        let began = Instant::now();
        while failing().is_none() {
            append(20).await;
            assert!(began.elapsed() < SOON, "32 MiB never fill up");
        }
        let said = failing();
        append(100).await;
        let (durable, freed) = (stats.borrow().bulk.durable_seq, Instant::now());
        std::fs::remove_file(&filler).expect("removable");
        while failing().is_some() || stats.borrow().bulk.durable_seq <= durable {
            append(1).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
            assert!(freed.elapsed() < SOON, "does not recover: {:?}", failing());
        }
        let took = freed.elapsed();
        store.close().await.expect("closed in order");
        // What is on the disk now is what counts.
        let store = Store::open(config, SystemClock::shared()).expect("opens");
        let read = library::read_all(&mut library::consumer(&store, "reader").await).await;
        let missing = read.missing(Lane::Bulk, accepted);
        let told: u64 = read.gaps.iter().map(|gap| gap.records).sum();
        println!(
            "log fills the disk ({}): {accepted} accepted, {refused} refused, {} lost and {told} told, syncs again {took:?} after space returned",
            said.unwrap_or_default(),
            missing.len()
        );
        assert_eq!(read.silent(Lane::Bulk, &missing), Vec::<u64>::new(), "lost without a gap");
        assert_eq!(missing.len() as u64, told, "the gaps do not say how many: {:?}", read.gaps);
        assert!(took <= Duration::from_secs(5), "took {took:?}");
        store.close().await.expect("closed");
    });
}

/// Writes until there is no room at all.
fn fill(path: &Path) {
    use std::io::Write;
    let mut file = std::fs::File::options().append(true).create(true).open(path).expect("a file can be made");
    for size in [1 << 20, 4096, 512, 1] {
        while file.write_all(&vec![7; size]).is_ok() {}
    }
    let _ = file.sync_all();
}
