//! The engine against a simulated disk.

mod damage;
mod erase;
mod model;
mod syncs;

use std::sync::Arc;
use std::time::Duration;

use super::engine::Engine;
use super::progress::{ConsumerShared, Offer};
use crate::model::{ClockTrust, Gap, Lane, RecordKind, Seq, Stamp};
use crate::store::NewRecord;
use crate::store::config::{Config, SyncPolicy};
use crate::store::fs::sim::SimFs;

pub(super) const SEGMENT: u64 = 2048;
pub(super) const NOON: i64 = 1_763_812_800_000;

pub(super) fn config(segments: u64) -> Config {
    let mut config = Config::with_quota("/store", segments * SEGMENT + 4 * super::acks::FILE_LEN + 4096);
    config.segment_bytes = Some(SEGMENT);
    config.critical.min_bytes = 2 * super::acks::FILE_LEN + 3 * SEGMENT;
    config.bulk.min_bytes = 2 * super::acks::FILE_LEN + 3 * SEGMENT;
    for lane in [&mut config.critical, &mut config.bulk] {
        lane.memory_bytes = 4096;
        lane.tail_bytes = 2048;
        lane.sync = SyncPolicy::Interval(Duration::from_millis(10));
    }
    config
}

pub(super) fn stamp(now: u64) -> Stamp {
    Stamp {
        wall_ms: NOON + (now / 1_000_000) as i64,
        mono_ns: now,
        uptime: Default::default(),
        trust: ClockTrust::Synchronised,
    }
}

pub(super) fn open(fs: &SimFs, config: &Config) -> Engine {
    Engine::open(Arc::new(fs.clone()), config.clone(), stamp(0)).expect("the log opens whatever happened")
}

/// A record whose payload says who it is.
pub(super) fn record(lane: Lane, name: u64, len: usize) -> NewRecord {
    let mut payload = name.to_le_bytes().to_vec();
    payload.resize(len.max(8), name as u8);
    NewRecord {
        lane,
        kind: RecordKind::Telemetry,
        device: name as u32 % 3,
        ts_ms: NOON,
        count: 1,
        payload: payload.into(),
    }
}

pub(super) fn name_of(payload: &[u8]) -> u64 {
    let name = u64::from_le_bytes(payload[..8].try_into().unwrap());
    assert!(payload[8..].iter().all(|&b| b == name as u8), "the payload is whole");
    name
}

/// Runs every job that is due at `now`.
pub(super) fn run_jobs(engine: &mut Engine, fs: &SimFs, now: u64) {
    while let Some(job) = engine.next_job(now) {
        let job = job.run(fs);
        engine.finish_job(job, now);
    }
}

/// Records by number and name, and gaps.
pub(super) type Drained = (Vec<(Seq, u64)>, Vec<Gap>);

/// Everything that a consumer has not acknowledged in a lane; `None` when the disk does not let it be read now.
pub(super) fn drain(engine: &mut Engine, consumer: &ConsumerShared, lane: Lane) -> Option<Drained> {
    let (mut records, mut gaps) = (Vec::new(), Vec::new());
    let (mut pos, mut stuck) = (1, 0);
    loop {
        let end = engine.last(lane) + 1;
        let (offers, next) = engine.read(consumer, lane, pos, end, 100);
        for offer in offers {
            match offer {
                Offer::Record(record) => records.push((record.seq, name_of(&record.payload))),
                Offer::Gap(gap) => gaps.push(gap),
            }
        }
        if next >= end {
            return Some((records, gaps));
        }
        stuck = if next == pos { stuck + 1 } else { 0 };
        if stuck > 5 {
            return None;
        }
        pos = next;
    }
}
