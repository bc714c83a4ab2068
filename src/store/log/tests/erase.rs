//! Erasing records of one device in place.

use std::collections::BTreeSet;

use super::*;
use crate::store::fs::sim::{Fault, SimFs};
use crate::store::{Erased, Erasure, Start};

/// Names stand in the payloads as eight octets; these are far from anything else in the files.
const FIRST: u64 = 0xC0FF_EE00_DEAD_0000;

/// Everything of one device, also what is not delivered.
fn by_device(device: u64) -> Erasure {
    let is_meant = move |kind, payload: &[u8]| kind == RecordKind::Telemetry && name_of(payload) % 3 == device;
    Erasure { device: device as u32, is_meant: Arc::new(is_meant), undelivered: true }
}

fn names(first: u64, count: u64) -> impl Iterator<Item = u64> {
    first..first + count
}

fn add(engine: &mut Engine, lane: Lane, all: impl Iterator<Item = u64>) {
    for name in all {
        let record = NewRecord { device: (name % 3) as u32, ..record(lane, name, 100) };
        engine.append(record, 0).expect("there is room");
    }
    engine.flush();
}

fn erase(engine: &mut Engine, fs: &SimFs, now: u64, what: Erasure) -> Result<Erased, String> {
    let ticket = engine.erase(what);
    run_jobs(engine, fs, now);
    let done = engine.take_erased();
    assert_eq!(done.len(), 1);
    assert_eq!(done[0].0, ticket);
    assert!(!engine.is_erasing());
    done.into_iter().next().unwrap().1
}

/// Names that stand in any file, whatever its name is.
fn traces(fs: &SimFs) -> BTreeSet<u64> {
    let found = |octets: Vec<u8>| {
        let windows = octets.windows(8).map(|w| u64::from_le_bytes(w.try_into().unwrap()));
        windows.filter(|name| (FIRST..FIRST + 100_000).contains(name)).collect::<Vec<_>>()
    };
    fs.files().iter().flat_map(|(path, _)| found(fs.content(path))).collect()
}

#[test]
fn the_records_of_one_device_go_and_nobody_else_notices() {
    let fs = SimFs::new(3);
    let mut engine = open(&fs, &config(20));
    let (slow, quick) =
        (engine.register("slow", Start::Oldest).unwrap(), engine.register("quick", Start::Oldest).unwrap());
    add(&mut engine, Lane::Bulk, names(FIRST, 60));
    add(&mut engine, Lane::Critical, names(FIRST + 1000, 9));
    run_jobs(&mut engine, &fs, 1_000_000_000);
    // Some of it is not synced yet.
    add(&mut engine, Lane::Bulk, names(FIRST + 60, 12));
    quick.lanes()[Lane::Bulk as usize].settle(1, 72);
    quick.lanes()[Lane::Critical as usize].settle(1, 9);

    let polite = Erasure { undelivered: false, ..by_device(1) };
    let left = erase(&mut engine, &fs, 1_000_000_000, polite).unwrap();
    assert_eq!((left.records, left.waiting.get("slow"), left.waiting.get("quick")), (0, Some(&27), None));
    assert_eq!(drain(&mut engine, &slow, Lane::Bulk).unwrap().0.len(), 72, "what was promised is still there");

    let done = erase(&mut engine, &fs, 2_000_000_000, by_device(1)).unwrap();
    assert_eq!((done.records, done.undelivered.get("slow"), done.undelivered.get("quick")), (27, Some(&27), None));
    assert_eq!((done.waiting.len(), done.unreadable), (0, 0));
    let check = |engine: &mut Engine, slow: &ConsumerShared| {
        let (records, gaps) = drain(engine, slow, Lane::Bulk).unwrap();
        let want: Vec<_> = names(FIRST, 72).zip(1..).filter(|(n, _)| n % 3 != 1).map(|(n, seq)| (seq, n)).collect();
        assert_eq!((records, gaps), (want, Vec::new()));
        assert_eq!(drain(engine, slow, Lane::Critical).unwrap().0.len(), 6);
    };
    check(&mut engine, &slow);
    assert!(traces(&fs).iter().all(|n| n % 3 != 1), "{:?}", traces(&fs));
    // Again it finds what it did, and nothing more.
    let again = erase(&mut engine, &fs, 3_000_000_000, by_device(1)).unwrap();
    assert_eq!((again.records, again.undelivered.len()), (27, 0));
    engine.close(4_000_000_000).unwrap();
    drop((engine, slow, quick));
    let mut engine = open(&fs, &config(20));
    let slow = engine.register("slow", Start::Oldest).unwrap();
    check(&mut engine, &slow);
    assert_eq!(engine.append(record(Lane::Bulk, FIRST + 80, 100), 0).unwrap(), 73, "numbers go on");
}

#[test]
fn files_that_were_used_before_keep_nothing() {
    let fs = SimFs::new(4);
    let mut engine = open(&fs, &config(9));
    let reader = engine.register("a", Start::Oldest).unwrap();
    // Segments are filled, released and used again, so that older frames lie in spares and behind the newest ones.
    for round in 0..8 {
        add(&mut engine, Lane::Bulk, names(FIRST + 100 * round, 40));
        reader.lanes()[Lane::Bulk as usize].settle(1, 40 * (round + 1));
        run_jobs(&mut engine, &fs, (1 + round) * 2_000_000_000);
        engine.tidy(stamp((1 + round) * 2_000_000_000 + 1));
    }
    let before = traces(&fs);
    assert!(before.iter().any(|n| n % 3 == 2), "there is something to find");
    erase(&mut engine, &fs, 20_000_000_000, by_device(2)).unwrap();
    let after = traces(&fs);
    assert!(after.iter().all(|n| n % 3 != 2), "{after:?}");
    assert!(!after.is_empty(), "the segments in use keep what others sent");
    // It goes on as before, in files that are made anew.
    add(&mut engine, Lane::Bulk, names(FIRST + 5000, 90));
    run_jobs(&mut engine, &fs, 22_000_000_000);
    assert_eq!(drain(&mut engine, &reader, Lane::Bulk).unwrap().0.len(), 90);
}

#[test]
fn a_power_cut_at_any_write_leaves_each_record_as_it_was_or_erased() {
    for seed in 0..60u64 {
        let fs = SimFs::new(seed);
        let mut engine = open(&fs, &config(20));
        engine.register("a", Start::Oldest).unwrap();
        add(&mut engine, Lane::Bulk, names(FIRST, 60));
        run_jobs(&mut engine, &fs, 2_000_000_000);
        engine.erase(by_device(0));
        // As many jobs as the seed says, then the lights go out.
        for _ in 0..seed % 8 {
            if let Some(job) = engine.next_job(3_000_000_000) {
                let job = job.run(&fs);
                engine.finish_job(job, 3_000_000_000);
            }
        }
        let done = engine.take_erased();
        drop(engine);
        fs.power_cut();
        if !done.is_empty() {
            assert!(traces(&fs).iter().all(|n| n % 3 != 0), "seed {seed}: what was erased came back");
        }
        let mut engine = open(&fs, &config(20));
        let reader = engine.register("a", Start::Oldest).unwrap();
        let (records, _) = drain(&mut engine, &reader, Lane::Bulk).unwrap();
        let others: Vec<u64> = records.iter().map(|(_, n)| *n).filter(|n| n % 3 != 0).collect();
        let want: Vec<u64> = names(FIRST, 60).filter(|n| n % 3 != 0).collect();
        assert_eq!(others, want, "seed {seed}: others lost something");
        // Asked for again, it is done to its end.
        erase(&mut engine, &fs, 3_000_000_000, by_device(0)).unwrap();
        assert!(traces(&fs).iter().all(|n| n % 3 != 0), "seed {seed}");
    }
}

#[test]
fn a_disk_that_refuses_makes_it_fail_and_it_can_be_asked_for_again() {
    let mut refused = 0;
    for n in 1..30 {
        let fs = SimFs::new(5);
        let mut engine = open(&fs, &config(20));
        let reader = engine.register("a", Start::Oldest).unwrap();
        add(&mut engine, Lane::Bulk, names(FIRST, 30));
        run_jobs(&mut engine, &fs, 2_000_000_000);
        fs.fail(n, Fault::Once);
        refused += usize::from(erase(&mut engine, &fs, 3_000_000_000, by_device(1)).is_err());
        fs.heal();
        run_jobs(&mut engine, &fs, 9_000_000_000);
        assert_eq!(erase(&mut engine, &fs, 12_000_000_000, by_device(1)).unwrap().records, 10, "fault {n}");
        assert_eq!(drain(&mut engine, &reader, Lane::Bulk).unwrap().0.len(), 20, "fault {n}");
        assert!(traces(&fs).iter().all(|name| name % 3 != 1), "fault {n}");
    }
    assert!(refused > 3, "{refused}");
}
