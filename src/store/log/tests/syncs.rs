//! Every sync in the log is needed: without any one of them, a power cut breaks a promise.
//!
//! One scenario that passes every sync point is run over many seeds with that point left out. A point whose removal no
//! seed notices would be a sync that wears flash for nothing, or one that no test protects.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::*;
use crate::model::GapReason;
use crate::store::fs::sim::SimFs;
use crate::store::fs::{FileSystem, SyncPoint};
use crate::store::{Erasure, Start};

/// A life of the log, told with power cuts after each promise. `Err` says which promise was broken.
fn live(seed: u64, left_out: Option<SyncPoint>) -> Result<(), String> {
    let fs = SimFs::new(seed);
    if let Some(point) = left_out {
        fs.leave_out(point);
    }
    let config = config(40);
    let mut names = 0;
    let mut issued: [BTreeSet<Seq>; 2] = Default::default();
    let open = |fs: &SimFs| Engine::open(Arc::new(fs.clone()), config.clone(), stamp(0)).map_err(|e| e.to_string());
    let mut add = |engine: &mut Engine, lane: Lane, n: u64| -> Result<Vec<(Seq, u64)>, String> {
        let mut added = Vec::new();
        for _ in 0..n {
            names += 1;
            let seq = engine.append(record(lane, names, 100), 0).map_err(|e| format!("{e:?}"))?;
            if !issued[lane as usize].insert(seq) {
                return Err(format!("{lane:?} {seq} was given out twice"));
            }
            added.push((seq, names));
        }
        engine.flush();
        Ok(added)
    };

    // A consumer that registered is remembered.
    let mut engine = open(&fs)?;
    let consumer = engine.register("a", Start::Oldest).map_err(|e| e.to_string())?;
    drop((engine, consumer));
    fs.power_cut();
    let mut engine = open(&fs)?;
    let consumer = known(&engine, "a")?;

    // What was synced is there, over several segments; numbers handed out before are not handed out again.
    let mut kept = add(&mut engine, Lane::Bulk, 40)?;
    run_jobs(&mut engine, &fs, 2_000_000_000);
    let unsynced = add(&mut engine, Lane::Bulk, 400)?;
    drop((engine, consumer));
    fs.power_cut();
    let mut engine = open(&fs)?;
    let consumer = known(&engine, "a")?;
    expect(&mut engine, &consumer, &kept)?;
    told(&mut engine, &consumer, &unsynced)?;

    // What a killed process left behind counts once it was seen.
    settle(&mut engine, &consumer);
    run_jobs(&mut engine, &fs, 4_000_000_000);
    kept = add(&mut engine, Lane::Bulk, 5)?;
    drop((engine, consumer));
    fs.kill();
    let mut engine = open(&fs)?;
    let consumer = known(&engine, "a")?;
    expect(&mut engine, &consumer, &kept)?;
    drop((engine, consumer));
    fs.power_cut();
    let mut engine = open(&fs)?;
    let consumer = known(&engine, "a")?;
    expect(&mut engine, &consumer, &kept)?;

    // Acknowledged segments are used again only when that is durable: nothing comes back as damage.
    for round in 0..6 {
        settle(&mut engine, &consumer);
        run_jobs(&mut engine, &fs, (6 + 2 * round) * 1_000_000_000);
        kept = add(&mut engine, Lane::Bulk, 30)?;
        run_jobs(&mut engine, &fs, (7 + 2 * round) * 1_000_000_000);
    }
    drop((engine, consumer));
    fs.power_cut();
    let mut engine = open(&fs)?;
    let consumer = known(&engine, "a")?;
    expect(&mut engine, &consumer, &kept)?;

    // What was erased stays erased, and what somebody waits for stays.
    let erasure = Erasure {
        device: kept[3].1 as u32 % 3,
        is_meant: Arc::new({
            let name = kept[3].1;
            move |_, payload| name_of(payload) == name
        }),
        undelivered: true,
    };
    engine.erase(erasure);
    run_jobs(&mut engine, &fs, 25_000_000_000);
    if engine.take_erased().first().is_none_or(|(_, done)| done.as_ref().is_ok_and(|e| e.records != 1)) {
        return Err("not erased".to_owned());
    }
    drop((engine, consumer));
    fs.power_cut();
    let holds = |path: &std::path::Path| {
        fs.content(path)
            .windows(100)
            .any(|w| w[..8] == kept[3].1.to_le_bytes() && w[8..].iter().all(|b| *b == kept[3].1 as u8))
    };
    if fs.files().iter().any(|(path, _)| holds(path)) {
        return Err("what was erased came back".to_owned());
    }
    kept.remove(3);
    let mut engine = open(&fs)?;
    let consumer = known(&engine, "a")?;
    expect(&mut engine, &consumer, &kept)?;

    // A clean stop is not taken for a power cut, and numbers go on behind it.
    settle(&mut engine, &consumer);
    engine.close(30_000_000_000).map_err(|e| e.to_string())?;
    drop((engine, consumer));
    fs.power_cut();
    let mut engine = open(&fs)?;
    let consumer = known(&engine, "a")?;
    let (records, gaps) = drain(&mut engine, &consumer, Lane::Bulk).ok_or("unreadable")?;
    if !records.is_empty() || !gaps.is_empty() {
        return Err(format!("after a clean stop {} records and {gaps:?} come again", records.len()));
    }
    add(&mut engine, Lane::Bulk, 1)?;
    drop((engine, consumer));
    fs.power_cut();
    let mut engine = open(&fs)?;
    add(&mut engine, Lane::Bulk, 1)?;

    // A consumer that was removed stays away.
    engine.remove("a").map_err(|e| e.to_string())?;
    drop(engine);
    fs.power_cut();
    let engine = open(&fs)?;
    if known(&engine, "a").is_ok() { Err("a removed consumer came back".to_owned()) } else { Ok(()) }
}

fn known(engine: &Engine, name: &str) -> Result<Arc<ConsumerShared>, String> {
    engine.consumers().find(|c| c.name == name).cloned().ok_or_else(|| format!("consumer {name} is forgotten"))
}

fn settle(engine: &mut Engine, consumer: &ConsumerShared) {
    for lane in Lane::ALL {
        let last = engine.last(lane);
        consumer.lanes()[lane as usize].settle(1, last);
    }
}

/// All of these are delivered, and what is missing besides is missing by the power cut only.
fn expect(engine: &mut Engine, consumer: &ConsumerShared, want: &[(Seq, u64)]) -> Result<(), String> {
    let (records, gaps) = drain(engine, consumer, Lane::Bulk).ok_or("unreadable")?;
    let lost = want.iter().find(|one| !records.contains(one));
    if let Some(lost) = lost {
        return Err(format!("{lost:?} is lost: {gaps:?}"));
    }
    match gaps.iter().find(|g| g.reason != GapReason::UnsyncedAtPowerLoss) {
        Some(gap) => Err(format!("{gap:?}")),
        None => Ok(()),
    }
}

/// All of these are delivered or reported as lost.
fn told(engine: &mut Engine, consumer: &ConsumerShared, all: &[(Seq, u64)]) -> Result<(), String> {
    let (records, gaps) = drain(engine, consumer, Lane::Bulk).ok_or("unreadable")?;
    let silent =
        all.iter().find(|one| !records.contains(one) && !gaps.iter().any(|g| (g.from_seq..=g.to_seq).contains(&one.0)));
    silent.map_or(Ok(()), |one| Err(format!("{one:?} is lost without a word")))
}

#[test]
fn with_every_sync_no_promise_is_broken() {
    for seed in 0..200 {
        live(seed, None).unwrap_or_else(|broken| panic!("seed {seed}: {broken}"));
    }
}

#[test]
fn without_any_one_sync_a_promise_is_broken() {
    let unneeded: Vec<SyncPoint> = SyncPoint::ALL
        .into_iter()
        .filter(|&point| {
            let broken = (0..60).find_map(|seed| live(seed, Some(point)).err());
            eprintln!("without {point:?}: {}", broken.as_deref().unwrap_or("nothing breaks"));
            broken.is_none()
        })
        .collect();
    assert_eq!(unneeded, []);
}

#[test]
fn the_scenario_passes_every_sync_point() {
    let fs = SimFs::new(1);
    let engine = open(&fs, &config(12));
    drop(engine);
    assert!(fs.list(std::path::Path::new("/store/buffer")).is_ok());
    let passed: BTreeSet<SyncPoint> = fs.syncs().into_keys().collect();
    assert!(passed.contains(&SyncPoint::LaneDirectory) && passed.contains(&SyncPoint::Opening), "{passed:?}");
}
