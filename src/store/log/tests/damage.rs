//! Damage to files of a stopped log: all of it is found, it costs what was damaged and no more, and it never prevents a
//! start.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::*;
use crate::store::fs::FileSystem;
use crate::store::fs::sim::Fault;
use crate::store::{OnFull, Start};

/// A log with 60 records in the bulk lane and a consumer that acknowledged none, closed cleanly.
fn stopped() -> (SimFs, Config, Vec<(Seq, u64)>) {
    let (fs, config) = (SimFs::new(3), config(40));
    let mut engine = open(&fs, &config);
    engine.register("a", Start::Oldest).unwrap();
    let all = (1..=60).map(|name| (engine.append(record(Lane::Bulk, name, 100), 0).unwrap(), name)).collect();
    engine.append(record(Lane::Critical, 1, 20), 0).unwrap();
    engine.close(1).unwrap();
    fs.kill();
    (fs, config, all)
}

/// Opens and reads; returns what is lost, after checking that exactly that is reported.
fn reopen(fs: &SimFs, config: &Config, all: &[(Seq, u64)], what: &str) -> Vec<Seq> {
    let mut engine = open(fs, config);
    let consumer = engine.register("a", Start::Oldest).unwrap();
    let (records, gaps) = drain(&mut engine, &consumer, Lane::Bulk).unwrap();
    assert!(records.iter().all(|one| all.contains(one)), "{what}: only what was appended");
    let got: BTreeSet<Seq> = records.iter().map(|r| r.0).collect();
    let lost: Vec<Seq> = all.iter().map(|a| a.0).filter(|seq| !got.contains(seq)).collect();
    let told: Vec<Seq> = gaps.iter().flat_map(|g| g.from_seq..=g.to_seq).collect();
    assert_eq!(told, lost, "{what}: what is reported is what is lost");
    assert_eq!(gaps.iter().map(|g| g.records).sum::<u64>(), lost.len() as u64, "{what}");
    // And it goes on.
    let next = engine.append(record(Lane::Bulk, 61, 100), 0).unwrap();
    assert!(next > all.last().unwrap().0, "{what}: {next} is not used again");
    engine.close(2).unwrap();
    lost
}

fn segments(fs: &SimFs) -> Vec<(PathBuf, u64)> {
    let bulk = |path: &PathBuf| path.to_string_lossy().contains("bulk") && path.extension().is_some_and(|e| e == "seg");
    fs.files().into_iter().filter(|(path, _)| bulk(path)).collect()
}

#[test]
fn a_flipped_bit_costs_one_record_at_most() {
    let (_, _, all) = stopped();
    let files = segments(&stopped().0);
    assert!(files.len() >= 4, "{files:?}");
    for (path, len) in files {
        for at in (0..len).step_by(7) {
            let (fs, config, _) = stopped();
            fs.tamper(&path, |bytes| bytes[at as usize] ^= 1 << (at % 8));
            let lost = reopen(&fs, &config, &all, &format!("{} byte {at}", path.display()));
            assert!(lost.len() <= 1, "byte {at} of {}: {lost:?}", path.display());
        }
    }
}

#[test]
fn truncation_at_every_length_costs_what_was_cut() {
    let (_, _, all) = stopped();
    for (path, len) in segments(&stopped().0) {
        for keep in (0..len).rev().step_by(11) {
            let (fs, config, _) = stopped();
            fs.tamper(&path, |bytes| bytes.truncate(keep as usize));
            let lost = reopen(&fs, &config, &all, &format!("{} cut to {keep}", path.display()));
            let frames = len.saturating_sub(keep).div_ceil(136) as usize;
            assert!(lost.len() <= frames + 1, "cut to {keep}: {lost:?}");
        }
    }
}

#[test]
fn any_one_file_may_vanish() {
    let (fs, _, all) = stopped();
    for (path, _) in fs.files() {
        let (fs, config, _) = stopped();
        fs.remove(&path).unwrap();
        let lost = reopen(&fs, &config, &all, &path.display().to_string());
        let in_bulk = segments(&stopped().0).iter().any(|(p, _)| *p == path);
        assert_eq!(lost.is_empty(), !in_bulk, "{}: {lost:?}", path.display());
        assert!(lost.len() <= SEGMENT as usize / 136, "{}: at most one segment, not {lost:?}", path.display());
    }
}

/// As [`stopped`], but the process was killed: some records were synced, the last ones only written.
fn killed(turns: u64) -> (SimFs, Config, Vec<(Seq, u64)>) {
    let (fs, config) = (SimFs::new(3), config(40));
    let mut engine = open(&fs, &config);
    engine.register("a", Start::Oldest).unwrap();
    let mut all = Vec::new();
    for name in 1..=60 * turns {
        all.push((engine.append(record(Lane::Bulk, name, 100), name * 1_000_000).unwrap(), name));
        engine.flush();
        if name % 60 < 30 {
            run_jobs(&mut engine, &fs, name * 1_000_000);
        }
        if turns > 1 {
            // Recycled segments: old frames follow the newest.
            let consumer = engine.register("a", Start::Oldest).unwrap();
            drop(drain(&mut engine, &consumer, Lane::Bulk).unwrap());
            let last = all.len().saturating_sub(60);
            if last > 0 {
                consumer.lanes()[Lane::Bulk as usize].settle(1, all[last - 1].0);
                all.drain(..last);
            }
        }
    }
    drop(engine);
    fs.kill();
    (fs, config, all)
}

/// What is missing, and what gaps say: at least that, and at most the numbers that were reserved.
fn reopen_killed(fs: &SimFs, config: &Config, all: &[(Seq, u64)], what: &str) -> (Vec<Seq>, u64) {
    let mut engine = open(fs, config);
    let consumer = engine.register("a", Start::Oldest).unwrap();
    let (records, gaps) = drain(&mut engine, &consumer, Lane::Bulk).unwrap();
    let got: BTreeSet<Seq> = records.iter().map(|r| r.0).collect();
    let lost: Vec<Seq> = all.iter().map(|a| a.0).filter(|seq| !got.contains(seq)).collect();
    let told = |seq: &Seq| gaps.iter().any(|g| (g.from_seq..=g.to_seq).contains(seq));
    assert!(lost.iter().all(told), "{what}: {lost:?} but {gaps:?}");
    let next = engine.append(record(Lane::Bulk, 61, 100), 0).unwrap();
    assert!(next > all.last().unwrap().0, "{what}: {next} is not used again");
    (lost, gaps.iter().map(|g| g.records).sum())
}

#[test]
fn after_a_kill_nothing_is_told_when_nothing_is_missing() {
    for turns in [1, 5] {
        let (fs, config, all) = killed(turns);
        assert_eq!(reopen_killed(&fs, &config, &all, "untouched"), (Vec::new(), 0));
    }
}

#[test]
fn after_a_kill_any_one_file_may_vanish_and_is_told() {
    for turns in [1, 5] {
        for (path, _) in killed(turns).0.files() {
            let (fs, config, all) = killed(turns);
            fs.remove(&path).unwrap();
            let (lost, told) = reopen_killed(&fs, &config, &all, &path.display().to_string());
            let in_bulk = segments(&killed(turns).0).iter().any(|(p, _)| *p == path);
            let acks = path.ends_with("acks");
            // After some turns a file may hold only what was acknowledged.
            assert!(acks || turns > 1 || lost.is_empty() != in_bulk, "{}: {lost:?}", path.display());
            assert!(told >= lost.len() as u64, "{}: {told} told, {lost:?}", path.display());
        }
    }
}

#[test]
fn after_a_kill_a_flipped_bit_costs_one_record_and_is_told() {
    for turns in [1, 5] {
        for (path, len) in segments(&killed(turns).0) {
            for at in (0..len).step_by(29 * turns as usize) {
                let (fs, config, all) = killed(turns);
                fs.tamper(&path, |bytes| bytes[at as usize] ^= 1 << (at % 8));
                let (lost, told) = reopen_killed(&fs, &config, &all, &format!("{} byte {at}", path.display()));
                assert!(lost.len() <= 1, "byte {at} of {}: {lost:?}", path.display());
                // A record that was acknowledged already is told too.
                assert!(told <= 1 || turns > 1, "byte {at} of {}: {told} told, {lost:?}", path.display());
            }
        }
    }
}

#[test]
fn random_bytes_in_any_file_never_prevent_a_start() {
    let (fs, _, all) = stopped();
    for (path, len) in fs.files() {
        for round in 0..8u64 {
            let (fs, config, _) = stopped();
            let mut random = round.wrapping_mul(0x9E37_79B9) + 1;
            fs.tamper(&path, |bytes| {
                for byte in bytes.iter_mut().skip((round * len / 16) as usize) {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    *byte = (random >> 56) as u8;
                }
            });
            reopen(&fs, &config, &all, &format!("{} round {round}", path.display()));
        }
    }
}

#[test]
fn when_the_nth_operation_fails_nothing_accepted_is_lost() {
    for fault in [Fault::Once, Fault::From] {
        for n in 1..120 {
            let (fs, config) = (SimFs::new(n), config(40));
            let mut engine = open(&fs, &config);
            let consumer = engine.register("a", Start::Oldest).unwrap();
            fs.fail(n, fault);
            let mut all = Vec::new();
            for name in 1..=30 {
                if let Ok(seq) = engine.append(record(Lane::Bulk, name, 100), name * 1_000_000) {
                    all.push((seq, name));
                }
                engine.flush();
                run_jobs(&mut engine, &fs, name * 20_000_000);
            }
            fs.heal();
            for second in 1..6 {
                run_jobs(&mut engine, &fs, second * 1_000_000_000);
            }
            assert_eq!(engine.durable(Lane::Bulk), engine.last(Lane::Bulk), "writes again 5 s after the fault {n}");
            let (records, gaps) = drain(&mut engine, &consumer, Lane::Bulk).unwrap();
            assert!(gaps.is_empty() && records == all, "{n} {fault:?}: {gaps:?}");
            drop((engine, consumer));
            fs.power_cut();
            let mut engine = open(&fs, &config);
            let consumer = engine.register("a", Start::Oldest).unwrap();
            let (records, _) = drain(&mut engine, &consumer, Lane::Bulk).unwrap();
            assert_eq!(records, all, "{n} {fault:?}");
        }
    }
}

#[test]
fn a_full_disk_is_survived_and_used_again_when_there_is_room() {
    let (fs, config) = (SimFs::new(5), config(40));
    let mut engine = open(&fs, &config);
    let consumer = engine.register("a", Start::Oldest).unwrap();
    engine.append(record(Lane::Bulk, 1, 100), 0).unwrap();
    engine.flush();
    run_jobs(&mut engine, &fs, 1_000_000_000);
    fs.set_capacity(fs.used().0);
    let mut all = vec![(1, 1)];
    for name in 2..=200 {
        all.push((engine.append(record(Lane::Bulk, name, 100), name * 1_000_000).unwrap(), name));
        engine.flush();
        run_jobs(&mut engine, &fs, 1_000_000_000 + name * 1_000_000);
    }
    let stats = engine.stats();
    assert!(stats.bulk.failing.is_some() && !stats.reserve, "the reserve is used up, then memory: {stats:?}");
    assert!(stats.bulk.lost["disk-failure"] > 0);
    fs.heal();
    run_jobs(&mut engine, &fs, 5_000_000_000);
    assert_eq!(engine.stats().bulk.failing, None);
    let (records, gaps) = drain(&mut engine, &consumer, Lane::Bulk).unwrap();
    let lost: u64 = gaps.iter().map(|g| g.records).sum();
    assert_eq!(records.len() as u64 + lost, 200, "{gaps:?}");
    assert_eq!(lost, engine.stats().bulk.lost["disk-failure"]);
    run_jobs(&mut engine, &fs, 20_000_000_000);
    assert!(engine.stats().reserve, "the reserve is made again");
}

#[test]
fn a_full_lane_that_keeps_what_it_has_is_synced_and_rests() {
    for policy in [OnFull::PushBack, OnFull::DropNewest] {
        let (fs, mut config) = (SimFs::new(7), config(12));
        config.bulk.on_full = policy;
        let mut engine = open(&fs, &config);
        let consumer = engine.register("a", Start::Oldest).unwrap();
        let (mut kept, mut now) = (0, 0);
        while engine.append(record(Lane::Bulk, kept + 1, 100), now).is_ok() && engine.stats().bulk.lost.is_empty() {
            (kept, now) = (kept + 1, now + 1_000_000);
            engine.flush();
        }
        now += 2_000_000_000;
        run_jobs(&mut engine, &fs, now);
        assert!(engine.durable(Lane::Bulk) >= kept, "{policy:?}: what was accepted is synced");
        assert!(engine.deadline().is_none_or(|at| at > now), "{policy:?}: nothing is left to do");
        drop((engine, consumer));
        fs.power_cut();
        let mut engine = open(&fs, &config);
        let consumer = engine.register("a", Start::Oldest).unwrap();
        assert_eq!(drain(&mut engine, &consumer, Lane::Bulk).unwrap().0.len() as u64, kept, "{policy:?}");
    }
}

#[test]
fn a_damaged_format_file_is_no_later_version() {
    let (fs, _, all) = stopped();
    let (path, len) = fs.files().into_iter().find(|(path, _)| path.ends_with("FORMAT")).unwrap();
    for at in 0..len * 8 {
        let (fs, config, _) = stopped();
        fs.tamper(&path, |bytes| bytes[(at / 8) as usize] ^= 1 << (at % 8));
        assert!(reopen(&fs, &config, &all, &format!("bit {at}")).is_empty());
    }
    for text in ["fieldgate log 1\n", "fieldgate log 2\n", ""] {
        let (fs, config, _) = stopped();
        fs.tamper(&path, |bytes| *bytes = text.as_bytes().to_vec());
        assert!(reopen(&fs, &config, &all, text).is_empty());
    }
}

#[test]
fn the_log_of_a_later_version_is_left_alone() {
    let (fs, config, _) = stopped();
    let line = "fieldgate log 2";
    let sum = crc32c::crc32c(line.as_bytes());
    let path = fs.files().into_iter().find(|(path, _)| path.ends_with("FORMAT")).unwrap().0;
    fs.tamper(&path, |bytes| *bytes = format!("{line} crc32c:{sum:08x}\n").into_bytes());
    let refused = Engine::open(Arc::new(fs.clone()), config, stamp(0)).map(|_| ()).unwrap_err().to_string();
    assert!(refused.contains("has format 2, which a newer fieldgate wrote"), "{refused}");
}
