//! Random operations in lockstep with a naive model: a list of what was appended, and sets of what was acknowledged.
//!
//! `FIELDGATE_MODEL_SEEDS=10000 cargo test --lib store::log::tests::model` runs more seeds; `FIELDGATE_MODEL_SEED=7` one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::*;
use crate::model::GapReason;
use crate::store::Start;
use crate::store::fs::sim::Fault;
use crate::store::log::engine::Refusal;

/// What was appended under a number: name of the record, and whether a sync covered it.
#[derive(Default)]
struct LaneModel {
    records: BTreeMap<Seq, u64>,
    synced: Seq,
    /// Numbers above `accepted` that a power cut may have taken.
    doubtful: BTreeSet<Seq>,
    last: Seq,
    /// In memory only, on a disk that took not even a note of that, when the process was killed.
    excused: BTreeSet<Seq>,
}

#[derive(Default)]
struct ConsumerModel {
    from: [Seq; 2],
    acked: [BTreeSet<Seq>; 2],
    /// Acknowledged, but a crash may have undone it.
    unsaved: [BTreeSet<Seq>; 2],
}

struct World {
    fs: SimFs,
    config: Config,
    engine: Option<Engine>,
    handles: BTreeMap<String, Arc<ConsumerShared>>,
    lanes: [LaneModel; 2],
    consumers: BTreeMap<String, ConsumerModel>,
    now: u64,
    names: u64,
    random: u64,
    /// Faults were injected: the disk may have lost what only memory had.
    faulty: bool,
    trace: Vec<String>,
}

impl World {
    fn roll(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    fn engine(&mut self) -> &mut Engine {
        self.engine.as_mut().expect("open")
    }

    fn append(&mut self) {
        let lane = if self.roll(4) == 0 { Lane::Critical } else { Lane::Bulk };
        for _ in 0..1 + self.roll(8) {
            self.names += 1;
            let (name, len, now) = (self.names, 8 + self.roll(200) as usize, self.now);
            match self.engine().append(record(lane, name, len), now) {
                Ok(seq) => {
                    let model = &mut self.lanes[lane as usize];
                    assert!(seq > model.last, "{seq} was given out before");
                    model.last = seq;
                    model.records.insert(seq, name);
                }
                Err(Refusal::Disk(_)) if self.faulty => {}
                Err(other) => panic!("{other:?}"),
            }
        }
        self.engine().flush();
    }

    fn jobs(&mut self) {
        let (fs, now) = (self.fs.clone(), self.now);
        run_jobs(self.engine(), &fs, now);
        self.note_synced();
    }

    fn note_synced(&mut self) {
        for lane in Lane::ALL {
            let durable = self.engine().durable(lane);
            let model = &mut self.lanes[lane as usize];
            model.synced = model.synced.max(durable.min(model.last));
        }
    }

    /// Reads everything a consumer has open, compares it with the model and acknowledges some of it.
    fn consume(&mut self, name: &str, all: bool) {
        for lane in Lane::ALL {
            let (i, handle) = (lane as usize, self.handles[name].clone());
            let Some((records, gaps)) = drain(self.engine(), &handle, lane) else {
                assert!(self.faulty);
                continue;
            };
            assert!(records.windows(2).all(|w| w[0].0 < w[1].0), "in order");
            let got: BTreeMap<Seq, u64> = records.into_iter().collect();
            let model = &self.lanes[i];
            for (seq, name) in &got {
                assert_eq!(model.records.get(seq), Some(name), "{lane:?} {seq} is what was appended");
            }
            let lost = |seq: Seq| gaps.iter().find(|g| g.from_seq <= seq && seq <= g.to_seq);
            let consumer = &self.consumers[name];
            for &seq in model.records.range(consumer.from[i] + 1..).map(|(seq, _)| seq) {
                if consumer.acked[i].contains(&seq) || consumer.unsaved[i].contains(&seq) || got.contains_key(&seq) {
                    continue;
                }
                if lost(seq).is_none() && model.excused.contains(&seq) {
                    continue;
                }
                let gap =
                    lost(seq).unwrap_or_else(|| panic!("{lane:?} {seq} vanished for {name}: neither record nor gap"));
                let why = gap.reason;
                let fair = match why {
                    GapReason::QuotaBytes => true,
                    GapReason::UnsyncedAtPowerLoss => model.doubtful.contains(&seq) || self.faulty,
                    GapReason::DiskFailure | GapReason::QuotaNewest => self.faulty,
                    // The ack file knew of them, the log had them in memory only and could not say so any more.
                    GapReason::Corruption => model.excused.contains(&seq),
                    _ => false,
                };
                assert!(fair, "{lane:?} {seq} lost for {name} without cause: {gap:?}, synced {}", model.synced);
            }
            let mut open: Vec<(Seq, Seq)> =
                got.keys().map(|&s| (s, s)).chain(gaps.iter().map(|g| (g.from_seq, g.to_seq))).collect();
            let keep = if all { 0 } else { self.roll(4) };
            open.retain(|_| keep == 0 || self.roll(4) != 0);
            for (first, last) in open {
                handle.lanes()[i].settle(first, last);
                let known: Vec<Seq> = self.lanes[i].records.range(first..=last).map(|(&s, _)| s).collect();
                self.consumers.get_mut(name).unwrap().unsaved[i].extend(known);
            }
        }
    }

    fn register(&mut self) {
        let name = format!("c{}", self.roll(3));
        let start = if self.roll(2) == 0 { Start::Oldest } else { Start::Now };
        match self.engine().register(&name, start) {
            Ok(handle) => {
                let from = handle.lanes().each_ref().map(|progress| progress.cursor);
                self.consumers.entry(name.clone()).or_insert(ConsumerModel { from, ..ConsumerModel::default() });
                self.handles.insert(name, handle);
            }
            Err(error) => {
                assert!(self.faulty, "{error}");
                self.forget(&name);
            }
        }
    }

    /// After a failure nothing is promised about this consumer: begin anew with it.
    fn forget(&mut self, name: &str) {
        self.consumers.remove(name);
        self.handles.remove(name);
        self.fs.heal();
        self.engine().register(name, Start::Now).unwrap();
        self.engine().remove(name).unwrap();
    }

    fn remove(&mut self) {
        let Some(name) = self.handles.keys().next().cloned() else { return };
        let removed = self.engine().remove(&name);
        if removed.is_err() {
            assert!(self.faulty, "{removed:?}");
            self.forget(&name);
        }
        self.consumers.remove(&name);
        self.handles.remove(&name);
    }

    /// Ends the process in one way or another and opens the log again.
    fn crash(&mut self, power: bool) {
        for i in 0..2 {
            let lane = &self.engine.as_ref().unwrap().lanes[i];
            if lane.failed.is_some() && !lane.commit.noted_failing {
                // Not even the failure could be written down: these may vanish without a word.
                let model = &mut self.lanes[i];
                model.excused.extend(model.records.range(model.synced + 1..).map(|(&s, _)| s));
            }
        }
        self.engine = None;
        self.fs.heal();
        if power {
            self.fs.power_cut();
            for model in &mut self.lanes {
                model.doubtful.extend(model.records.range(model.synced + 1..).map(|(&s, _)| s));
            }
        } else {
            self.fs.kill();
            if self.faulty {
                for model in &mut self.lanes {
                    model.doubtful.extend(model.records.range(model.synced + 1..).map(|(&s, _)| s));
                }
            }
        }
        self.reopen();
    }

    fn reopen(&mut self) {
        let engine = open(&self.fs, &self.config);
        self.engine = Some(engine);
        self.handles.clear();
        let known: Vec<String> = self.engine().consumers().map(|c| c.name.clone()).collect();
        let want: Vec<String> = self.consumers.keys().cloned().collect();
        assert_eq!(known, want, "registered consumers are kept");
        for name in want {
            let handle = self.engine().register(&name, Start::Now).unwrap();
            let consumer = self.consumers.get_mut(&name).unwrap();
            for i in 0..2 {
                // What was not saved may come again.
                let progress = &handle.lanes()[i];
                let unsaved = std::mem::take(&mut consumer.unsaved[i]);
                consumer.acked[i].extend(unsaved.into_iter().filter(|&s| progress.is_settled(s)));
            }
            self.handles.insert(name, handle);
        }
        self.note_synced();
        let quota = self.config.quota_bytes;
        assert!(self.fs.used().1 <= quota, "peak {} of {quota}", self.fs.used().1);
    }

    fn close(&mut self) {
        let now = self.now;
        let closed = self.engine().close(now);
        assert!(closed.is_ok() || self.faulty, "{closed:?}");
        if closed.is_ok() {
            self.note_synced();
            self.engine = None;
            self.fs.kill();
            self.reopen();
        } else {
            self.crash(false);
        }
    }

    fn step(&mut self, faults: bool) {
        let action = self.roll(if faults { 27 } else { 24 });
        self.trace.push(format!("{action}@{}", self.now / 1_000_000));
        match action {
            0..=8 => self.append(),
            9..=14 => {
                self.now += 1_000_000 * (1 + self.roll(400));
                self.jobs();
            }
            15..=18 => {
                let pick = self.roll(3);
                if let Some(name) = self.handles.keys().nth(pick as usize).cloned() {
                    self.consume(&name, false);
                }
            }
            19 => self.register(),
            20 if self.roll(4) == 0 => self.remove(),
            21 => self.crash(true),
            22 => self.crash(false),
            23 => self.close(),
            24 | 25 => {
                self.faulty = true;
                let (n, fault) = (1 + self.roll(12), if self.roll(3) == 0 { Fault::From } else { Fault::Once });
                self.fs.fail(n, fault);
            }
            26 => {
                self.faulty = true;
                let capacity = self.fs.used().0 + self.roll(2) * SEGMENT;
                self.fs.set_capacity(capacity);
            }
            _ => {
                let now = stamp(self.now);
                self.engine().tidy(now);
            }
        }
        if self.roll(10) == 0 {
            self.fs.heal();
        }
    }

    /// In the end everybody gets everything, and nothing is held any more.
    fn finish(&mut self) {
        self.fs.heal();
        for _ in 0..3 {
            self.now += 2_000_000_000;
            self.jobs();
        }
        let names: Vec<String> = self.handles.keys().cloned().collect();
        for name in names {
            self.consume(&name, true);
            for lane in Lane::ALL {
                let handle = self.handles[&name].clone();
                let (records, gaps) = drain(self.engine(), &handle, lane).unwrap();
                assert!(records.is_empty() && gaps.is_empty(), "{records:?} {gaps:?}");
            }
        }
        self.append();
        self.now += 2_000_000_000;
        self.jobs();
        for lane in Lane::ALL {
            assert_eq!(self.engine().durable(lane), self.engine().last(lane), "writes again after the faults");
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("actions: {}", self.trace.join(" "));
        }
    }
}

fn run(seed: u64, faults: bool) {
    let mut world = World {
        fs: SimFs::new(seed),
        config: config(12),
        engine: None,
        handles: BTreeMap::new(),
        lanes: Default::default(),
        consumers: BTreeMap::new(),
        now: 0,
        names: 0,
        random: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
        faulty: false,
        trace: Vec::new(),
    };
    world.reopen();
    world.register();
    let steps = 30 + world.roll(120);
    for _ in 0..steps {
        world.step(faults);
    }
    world.finish();
}

fn seeds(default: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    match number("FIELDGATE_MODEL_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("FIELDGATE_MODEL_SEEDS").unwrap_or(default),
    }
}

fn run_all(faults: bool) {
    for seed in seeds(400) {
        let result = std::panic::catch_unwind(|| run(seed, faults));
        if let Err(panic) = result {
            eprintln!("the model test fails with FIELDGATE_MODEL_SEED={seed} (faults: {faults})");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn crashes_and_power_cuts_lose_nothing_that_was_synced() {
    run_all(false);
}

#[test]
fn failing_and_full_disks_lose_nothing_unreported() {
    run_all(true);
}
