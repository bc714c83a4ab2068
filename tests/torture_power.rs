//! Power cuts: the data directory lies on an ext4 in a file, the file is copied while the gateway runs, and the gateway
//! is started on the copy. What the page cache of the file system had not written is gone, as it is when the power goes.
//!
//! The gateway stands still (SIGSTOP) for the moment of the copy, because a copy takes longer than a power cut. Held
//! against two yardsticks: the numbers that the gateway itself called synced, and the times at which the plant answered.
//! Control runs make syncs do nothing (strace), all of them and those of the segments alone, and must lose synced records:
//! else this test could not fail. What an ext4 cannot show about the others is said in docs/durability.md.
//! CI: 5 cuts; `FIELDGATE_CUTS=1000` is the full count. Without loop mounts the library's simulated disk
//! has to do, and the output says so.
#![allow(clippy::unwrap_used, reason = "a test ends with a panic when its surroundings fail")]

mod support;
mod torture_support;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use std::sync::Arc;

use fieldgate::model::Lane;
use fieldgate::platform::clock::SystemClock;
use fieldgate::store::fs::sim::SimFs;
use fieldgate::store::fs::{FileSystem, SyncPoint};
use fieldgate::store::{self, Store};
use rustix::process::Signal;
use support::{Mosquitto, SOON, eventually, temp_dir};
use torture_support::{
    Account, Collector, CountingPlant, Dice, Gateway, Image, Mount, Setup, ago, library, loop_mounts_work, run_for,
    strict, times,
};

/// Default of `bulk_interval`.
const INTERVAL: Duration = Duration::from_millis(100);

/// What a sync itself, and the way from the plant to the log, may take: more on a machine that builds at the same time.
fn slack() -> Duration {
    Duration::from_millis(if strict() { 300 } else { 5_000 })
}

/// Cuts of one gateway before a new file system is made.
const CUTS_PER_RUN: usize = 25;

/// A gateway at work on a file system in a file; nobody takes its records.
struct Site {
    // In the order of their end.
    gateway: Option<Gateway>,
    _mount: Mount,
    image: Image,
    plant: CountingPlant,
    folder: tempfile::TempDir,
}

/// Whose syncs do nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Without {
    None,
    /// Those of all files and directories.
    All,
    /// Those of the segments of telemetry only; the ack files and directories are synced.
    Segments,
}

impl Site {
    fn start(without: Without) -> Self {
        let (folder, plant) = (temp_dir(), CountingPlant::start());
        let image = Image::make(folder.path().join("disk.img"), 64).expect("an ext4 can be made");
        let mount = image.mount(folder.path().join("disk")).expect("it can be mounted");
        let mut setup = Setup::new(folder.path(), &plant, support::free_port());
        setup.data = Some(mount.path().join("data"));
        (setup.devices, setup.quota_mib) = (10, 16);
        setup.write();
        let mut strace: Vec<String> = Vec::new();
        if without != Without::None {
            let words = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync,fsync"];
            strace.extend(words.into_iter().chain(["-e", "inject=fdatasync,fsync:retval=0"]).map(str::to_owned));
        }
        if without == Without::Segments {
            // The files must be there before strace can be told of them.
            let first = setup.start();
            eventually("the first records", SOON, || (first.synced() > 5).then_some(()));
            first.stop();
            let files = library::files(&setup.data_dir().join("store/buffer/bulk"));
            let segments = files.iter().filter(|file| file.extension().is_some_and(|e| e == "seg"));
            strace.extend(segments.flat_map(|file| ["-P".to_owned(), file.display().to_string()]));
        }
        let gateway = setup.start_under(&strace.iter().map(String::as_str).collect::<Vec<_>>());
        gateway.wait_until_up();
        Self { gateway: Some(gateway), _mount: mount, image, plant, folder }
    }

    fn gateway(&self) -> &Gateway {
        self.gateway.as_ref().expect("it runs until the site is dropped")
    }

    /// Cuts the power: returns what the disk holds, what was called synced before, and the moment.
    fn cut(&self, name: &str) -> (Image, u64, Instant) {
        let synced = self.gateway().synced();
        self.gateway().child.signal_group(Signal::STOP);
        let at = Instant::now();
        let copy = self.image.copy(self.folder.path().join(name));
        self.gateway().child.signal_group(Signal::CONT);
        (copy.expect("the image can be copied"), synced, at)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(gateway) = self.gateway.take() {
            gateway.kill();
        }
    }
}

/// Starts the gateway on a copy, without devices, and returns what a subscriber gets from it.
fn recover(copy: Image, folder: &Path, plant: &CountingPlant) -> Account {
    let folder = folder.join("after");
    std::fs::create_dir_all(&folder).expect("writable");
    let account = {
        let mount = copy.mount(folder.join("disk")).expect("ext4 recovers from a power cut");
        let broker = Mosquitto::with_config("allow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 0\n");
        let collector = Collector::start(broker.port());
        let mut setup = Setup::new(&folder, plant, broker.port());
        setup.data = Some(mount.path().join("data"));
        (setup.devices, setup.quota_mib) = (0, 16);
        setup.write();
        let gateway = setup.start();
        collector.wait_for("ordered", "the first status", SOON, |account| (!account.epochs.is_empty()).then_some(()));
        gateway.wait_until_drained(SOON * 3);
        // The broker confirmed before the subscriber may have read.
        let mut before = usize::MAX;
        eventually("quiet at the subscriber", SOON, || {
            run_for(Duration::from_millis(100));
            let now = collector.account("ordered").arrivals.len();
            (std::mem::replace(&mut before, now) == now).then_some(())
        });
        gateway.stop();
        collector.account("ordered")
    };
    copy.delete();
    account
}

/// Numbers up to `synced` that are neither there nor can be missing for another reason.
fn synced_lost(account: &Account, synced: u64) -> u64 {
    let there: BTreeSet<u64> = account.arrivals.iter().map(|a| a.seq).collect();
    (1..=synced).filter(|seq| !there.contains(seq) && !account.other_seqs.contains(seq)).count() as u64
}

#[test]
fn a_power_cut_takes_nothing_that_was_synced() {
    if let Err(why) = loop_mounts_work() {
        println!("NOT RUN on real files: no loop mounts here ({why}). COUNTED AS SIMULATED.");
        simulated();
        return;
    }
    let (cuts, dice) = (times("FIELDGATE_CUTS", 5), Dice::new());
    let (mut longest, mut gaps, mut lost_unsynced, mut checked) = (Duration::ZERO, 0, 0, 0);
    let mut site = Site::start(Without::None);
    for cut in 0..cuts {
        if cut > 0 && cut % CUTS_PER_RUN == 0 {
            site = Site::start(Without::None);
        }
        run_for(dice.millis(200, 1_200));
        let (copy, synced, at) = site.cut(&format!("cut-{cut}.img"));
        // Nothing answered later can be in the copy.
        let mut answers = site.plant.answers();
        answers.values_mut().for_each(|times| times.retain(|time| *time <= at));
        let account = recover(copy, site.folder.path(), &site.plant);
        // The keyed state came through too: the site's first start was epoch 1.
        assert!(account.epochs.keys().all(|epoch| *epoch >= 2), "cut {cut}: epochs {:?}", account.epochs);
        assert_eq!(synced_lost(&account, synced), 0, "cut {cut}: of {synced} synced records; gaps {:?}", account.gaps);
        assert_eq!(account.contradictions(), Vec::<String>::new(), "cut {cut}");
        let missing = account.missing(&answers);
        let window = missing.iter().map(|(_, _, time)| ago(*time, at)).max().unwrap_or_default();
        assert!(window <= INTERVAL + slack(), "cut {cut}: a record accepted {window:?} before the cut is lost");
        let told: Vec<_> = account.gaps.iter().filter(|gap| gap.lane == "bulk").collect();
        let right = told.iter().all(|gap| gap.reason == "unsynced-at-power-loss" && gap.from > synced);
        assert!(right, "cut {cut}: {synced} were synced, but {told:?}");
        assert!(missing.len() <= 10 || !told.is_empty(), "cut {cut}: {} are missing and no gap says so", missing.len());
        longest = longest.max(window);
        gaps += usize::from(!told.is_empty());
        lost_unsynced += missing.len();
        checked += synced;
    }
    println!(
        "{cuts} cuts on ext4: 0 of {checked} synced records lost; {lost_unsynced} not yet synced lost, {gaps} cuts reported a gap, oldest lost was answered {longest:?} before the cut"
    );
}

#[test]
fn without_syncs_the_same_cut_loses_synced_records() {
    if let Err(why) = loop_mounts_work() {
        println!(
            "NOT RUN: no loop mounts here ({why}); the store's model tests leave out each sync of a simulated disk"
        );
        return;
    }
    for without in [Without::All, Without::Segments] {
        cut_without(without);
    }
}

fn cut_without(without: Without) {
    let site = Site::start(without);
    let from = site.gateway().synced();
    let synced = eventually("a few hundred records called synced", SOON, || {
        Some(site.gateway().synced()).filter(|synced| *synced > from + 200)
    });
    let (copy, _, _) = site.cut("control.img");
    let account = recover(copy, site.folder.path(), &site.plant);
    let lost = synced_lost(&account, synced);
    println!("control, syncs left out: {without:?}: {lost} of {synced} records called synced are lost");
    assert!(lost > 0, "the power cut is none: nothing was lost although nothing was synced");
}

/// The same promise on the simulated disk that the library brings, through the library's own interface.
fn simulated() {
    let (cuts, dice) = (times("FIELDGATE_CUTS", 5), Dice::new());
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    let mut checked = 0;
    for _ in 0..cuts {
        let (disk, folder) = (SimFs::new(dice.roll(u64::MAX)), temp_dir());
        // The log lies on the simulated disk, the keyed state on a real one.
        let config = store::Config::with_quota(folder.path().join("store"), 8 << 20);
        for dir in folder.path().ancestors().collect::<Vec<_>>().into_iter().rev() {
            let _ = disk.make_dir(dir);
            // Names that are not synced go with the power.
            dir.parent().map(|parent| disk.sync_dir(parent, SyncPoint::Opening));
        }
        let open = || Store::open_on(Arc::new(disk.clone()), config.clone(), SystemClock::shared()).expect("it opens");
        checked += runtime.block_on(async {
            let store = open();
            drop(library::consumer(&store, "reader").await);
            let synced = 20 + dice.roll(200);
            for number in 1..=synced {
                let append = store.append_synced(vec![library::record(Lane::Critical, number, 120)]);
                append.await.expect("synced");
            }
            disk.power_cut();
            drop(store);
            let store = eventually("the lock of the earlier life", SOON, || Some(open()));
            let read = library::read_all(&mut library::consumer(&store, "reader").await).await;
            assert_eq!(read.missing(Lane::Critical, synced), Vec::<u64>::new());
            synced
        });
    }
    println!("SIMULATED: {cuts} cuts, 0 of {checked} synced records lost");
}
