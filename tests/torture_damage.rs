//! Damaged data directories: bits flipped, files cut short, any one file deleted. The store always opens, hands out every
//! record that is intact, and tells of every other one: what is missing is in a gap, and the counter says how many.
//!
//! CI: 30 flips and 16 truncations at random places; `FIELDGATE_DAMAGES=2000` does so many of each.
#![allow(clippy::unwrap_used, reason = "a test ends with a panic when its surroundings fail")]

mod support;
mod torture_support;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fieldgate::model::{GapReason, Lane};
use fieldgate::platform::clock::SystemClock;
use fieldgate::store::{Config, Op, Store};
use support::{Mosquitto, SOON, eventually, temp_dir};
use torture_support::library::{Read, consumer, copy_dir, files, read_all, record};
use torture_support::{CountingPlant, Dice, Setup, times};

/// Records in the bulk lane: several segments.
const BULK: u64 = 3_000;
/// Records in the critical lane, besides the journal's.
const CRITICAL: u64 = 300;
const PAYLOAD: usize = 120;
const SEGMENT: u64 = 64 << 10;

fn config(folder: &Path) -> Config {
    let mut config = Config::with_quota(folder.join("store"), 16 << 20);
    config.segment_bytes = Some(SEGMENT);
    config
}

/// An intact store, and where each record of a lane stands in it.
struct Original {
    folder: tempfile::TempDir,
    /// Of each lane, the numbers that were given to records; the critical lane also holds the journal's.
    numbers: [Vec<u64>; 2],
    runtime: tokio::runtime::Runtime,
}

impl Original {
    fn make(clean: bool) -> Self {
        let folder = temp_dir();
        let runtime = tokio::runtime::Runtime::new().expect("threads");
        let numbers = runtime.block_on(async {
            let store = Store::open(config(folder.path()), SystemClock::shared()).expect("it opens");
            drop(consumer(&store, "reader").await);
            store.state().batch(vec![put("name", "value"), put("other", "more")]).await.expect("durable");
            let mut numbers = [Vec::new(), Vec::new()];
            for n in 1..=BULK {
                numbers[Lane::Bulk as usize]
                    .push(store.append(vec![record(Lane::Bulk, n, PAYLOAD)]).await.expect("accepted"));
                if n % (BULK / CRITICAL) == 0 {
                    let appended = store.append(vec![record(Lane::Critical, n, PAYLOAD)]).await;
                    numbers[Lane::Critical as usize].push(appended.expect("accepted"));
                }
            }
            store.sync().await;
            let (store_dir, intact) = (folder.path().join("store"), folder.path().join("intact"));
            if !clean {
                // As a killed process leaves it: the directory is copied while the store is open.
                copy_dir(&store_dir, &intact);
            }
            store.close().await.expect("closed in order");
            if clean {
                copy_dir(&store_dir, &intact);
            }
            numbers
        });
        Self { folder, numbers, runtime }
    }

    /// Damages a copy, opens it and checks all that holds always. Returns how many records are really missing; a gap may
    /// name more numbers than were ever given out.
    fn after(&self, what: &str, damage: impl FnOnce(&Path)) -> u64 {
        // Always in the same directory: a store that finds itself in another one assumes that the power was cut.
        let (copy, dir) = (&self.folder, self.folder.path().join("store"));
        for entry in std::fs::read_dir(&dir).expect("readable").flatten() {
            let path = entry.path();
            let removed = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
            removed.expect("removable");
        }
        copy_dir(&self.folder.path().join("intact"), &dir);
        damage(&dir);
        let read = self.runtime.block_on(async {
            let began = Instant::now();
            let store = Store::open(config(copy.path()), SystemClock::shared())
                .unwrap_or_else(|error| panic!("{what}: the start was refused: {error}"));
            assert!(began.elapsed() < Duration::from_secs(10), "{what}: opening took {:?}", began.elapsed());
            let mut reader = consumer(&store, "reader").await;
            let read = read_all(&mut reader).await;
            let state = store.state();
            for (key, value) in [("name", "value"), ("other", "more")] {
                let kept = state.get("kept", key.as_bytes()).expect("readable");
                assert_eq!(kept.as_deref(), Some(value.as_bytes()), "{what}: state {key}");
            }
            // It goes on: what is appended now comes.
            let seq = store.append_synced(vec![record(Lane::Bulk, 77, PAYLOAD)]).await.expect("it accepts records");
            let more = read_all(&mut reader).await;
            assert!(more.records.contains_key(&(Lane::Bulk, seq)), "{what}: a new record {seq} does not come");
            store.close().await.expect("closed");
            read
        });
        self.check(what, &read)
    }

    /// Every record is there as it was, or a gap tells of it; the counter equals the loss.
    fn check(&self, what: &str, read: &Read) -> u64 {
        let mut missing = 0;
        for lane in Lane::ALL {
            let numbers = &self.numbers[lane as usize];
            for (index, seq) in numbers.iter().enumerate() {
                let number = (index as u64 + 1) * if lane == Lane::Bulk { 1 } else { BULK / CRITICAL };
                match read.records.get(&(lane, *seq)) {
                    Some(payload) => {
                        assert_eq!(payload[..], record(lane, number, PAYLOAD).payload[..], "{what}: {lane:?} {seq}");
                    }
                    None => {
                        let told = |gap: &&fieldgate::model::Gap| {
                            gap.lane == lane && (gap.from_seq..=gap.to_seq).contains(seq)
                        };
                        assert!(
                            read.gaps.iter().any(|gap| told(&gap)),
                            "{what}: {lane:?} {seq} is missing and no gap tells of it: {:?}",
                            read.gaps
                        );
                        missing += 1;
                    }
                }
            }
        }
        // The journal's own records lie in the critical lane too and may be among the lost. And where the end of the log
        // and what would tell where it was are both gone, the store names the numbers that it may have given out: more
        // than it had, never fewer.
        let beyond = |gap: &fieldgate::model::Gap| {
            let last = self.numbers[gap.lane as usize].last().copied().unwrap_or(0);
            if gap.reason == GapReason::UnsyncedAtPowerLoss {
                gap.to_seq.saturating_sub(last.max(gap.from_seq - 1))
            } else {
                0
            }
        };
        let (journal, unsure): (u64, u64) = (10, read.gaps.iter().map(beyond).sum());
        let range = missing..=missing + journal + unsure;
        assert!(
            range.contains(&read.lost),
            "{what}: {missing} are missing, the counter says {}: {:?}",
            read.lost,
            read.gaps
        );
        let told: u64 = read.gaps.iter().map(|gap| gap.records).sum();
        assert_eq!(told, read.lost, "{what}: gaps and counter differ: {:?}", read.gaps);
        let right =
            read.gaps.iter().all(|gap| matches!(gap.reason, GapReason::Corruption | GapReason::UnsyncedAtPowerLoss));
        assert!(right, "{what}: {:?}", read.gaps);
        missing
    }
}

fn put(key: &str, value: &str) -> Op {
    Op::Put { tree: "kept".to_owned(), key: key.as_bytes().to_vec().into(), value: value.as_bytes().to_vec().into() }
}

fn name(path: &Path) -> String {
    path.components()
        .rev()
        .take(2)
        .map(|c| c.as_os_str().to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" in ")
}

fn relative(original: &Original) -> Vec<PathBuf> {
    let base = original.folder.path().join("intact");
    files(&base).iter().map(|file| file.strip_prefix(&base).expect("below").to_owned()).collect()
}

#[test]
fn flipped_bits_cost_the_records_they_hit() {
    let (count, dice) = (times("FIELDGATE_DAMAGES", 30), Dice::new());
    for clean in [true, false] {
        let original = Original::make(clean);
        let all = relative(&original);
        let (mut lost, mut most) = (0, 0);
        for _ in 0..count / 2 {
            let file = &all[dice.roll(all.len() as u64) as usize];
            let mut at = (0, 0);
            let missing =
                original.after(&format!("a bit of {} flipped, clean stop {clean}, seed above", name(file)), |copy| {
                    let path = copy.join(file);
                    let mut bytes = std::fs::read(&path).expect("readable");
                    if !bytes.is_empty() {
                        at = (dice.roll(bytes.len() as u64) as usize, dice.roll(8));
                        bytes[at.0] ^= 1 << at.1;
                        std::fs::write(&path, bytes).expect("writable");
                    }
                });
            // One record, or a whole segment when its header is hit.
            let bound = if at.0 < 64 { SEGMENT / PAYLOAD as u64 } else { 1 };
            assert!(missing <= bound, "bit {at:?} of {} cost {} records", name(file), missing);
            (lost, most) = (lost + missing, most.max(missing));
        }
        println!(
            "{} flips, clean stop {clean}: {lost} records lost in all, at most {most} by one; all told",
            count / 2
        );
    }
}

#[test]
fn truncated_files_cost_what_was_cut_off() {
    let (count, dice) = (times("FIELDGATE_DAMAGES", 16), Dice::new());
    for clean in [true, false] {
        let original = Original::make(clean);
        let all = relative(&original);
        let mut lost = 0;
        for _ in 0..count / 2 {
            let file = &all[dice.roll(all.len() as u64) as usize];
            let missing =
                original.after(&format!("{} truncated, clean stop {clean}, seed above", name(file)), |copy| {
                    let file = std::fs::File::options().write(true).open(copy.join(file)).expect("writable");
                    let len = file.metadata().expect("open").len();
                    file.set_len(dice.roll(len + 1)).expect("truncated");
                });
            assert!(missing <= SEGMENT / PAYLOAD as u64, "{} truncated cost {}", name(file), missing);
            lost += missing;
        }
        println!("{} truncations, clean stop {clean}: {lost} records lost in all; all told", count / 2);
    }
}

#[test]
fn any_one_file_may_be_deleted() {
    for clean in [true, false] {
        let original = Original::make(clean);
        let all = relative(&original);
        for file in all.clone() {
            let what = format!("{} deleted, clean stop {clean}", name(&file));
            let missing = original.after(&what, |copy| std::fs::remove_file(copy.join(&file)).expect("removable"));
            if missing > 0 {
                println!("{what}: {} records lost and told", missing);
            }
        }
        // The state is rebuilt from its journal.
        assert!(original.folder.path().join("intact/state").is_dir(), "the state lies elsewhere now");
        original.after(&format!("the state deleted, clean stop {clean}"), |copy| {
            std::fs::remove_dir_all(copy.join("state")).expect("removable");
        });
    }
}

#[test]
fn the_gateway_starts_whatever_file_is_missing() {
    let (folder, plant) = (temp_dir(), CountingPlant::start());
    let broker = Mosquitto::start();
    let mut setup = Setup::new(folder.path(), &plant, support::free_port());
    setup.quota_mib = 16;
    setup.write();
    let gateway = setup.start();
    eventually("some records", SOON, || (gateway.synced() > 50).then_some(()));
    gateway.stop();
    let data = setup.data_dir();
    let all: Vec<PathBuf> =
        files(&data).iter().filter(|f| f.is_file()).map(|f| f.strip_prefix(&data).expect("below").to_owned()).collect();
    let intact = folder.path().join("intact");
    copy_dir(&data, &intact);
    (setup.broker_port, setup.devices) = (broker.port(), 0);
    setup.write();
    for file in &all {
        std::fs::remove_dir_all(&data).expect("removable");
        copy_dir(&intact, &data);
        std::fs::remove_file(data.join(file)).expect("removable");
        let mut gateway = setup.start();
        eventually(&format!("a start without {}", name(file)), SOON, || {
            assert!(gateway.child.is_running(), "without {}: {:#?}", name(file), gateway.child.lines());
            gateway.health()
        });
        gateway.wait_until_drained(SOON);
        gateway.stop();
    }
    println!("the gateway started without each of {} files", all.len());
    // What was acknowledged outlives the keyed state's own files: the number of the life never goes back.
    std::fs::remove_dir_all(&data).expect("removable");
    copy_dir(&intact, &data);
    let mut last = 0;
    let state = data.join("store/state");
    let damages: [&dyn Fn(); 3] = [&|| {}, &|| std::fs::remove_dir_all(&state).expect("removable"), &|| {
        for file in files(&state).iter().filter(|f| f.is_file()) {
            let len = file.metadata().expect("there").len() as usize;
            std::fs::write(file, vec![0x5a; len]).expect("writable");
        }
    }];
    for damage in damages {
        damage();
        let gateway = setup.start();
        gateway.wait_until_up();
        let epoch = eventually("the number of this life", SOON, || {
            let said = gateway.child.lines();
            let line = said.iter().find(|line| line.contains("gateway started"))?;
            let number = line.split_once("epoch")?.1.trim_start_matches(|c: char| !c.is_ascii_digit());
            number.chars().take_while(char::is_ascii_digit).collect::<String>().parse::<u64>().ok()
        });
        assert!(epoch > last, "epoch {epoch} after {last}");
        last = epoch;
        gateway.kill();
    }
}
