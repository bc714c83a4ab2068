//! The store as a library, for what must be done a thousand times or without a gateway around it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use fieldgate::contract::{ContractMessage, Encoding, telemetry};
use fieldgate::model::{
    Batch, ClockTrust, Delivery, DeviceId, Gap, Lane, Order, PointId, Quality, RecordKind, Sample, Stamp, Value,
};
use fieldgate::platform::clock::SystemClock;
use fieldgate::store::{Backlog, Config, Consumer, ConsumerSpec, NewRecord, Start, Store};

/// Everything that a consumer was handed.
#[derive(Debug, Default)]
pub struct Read {
    pub records: BTreeMap<(Lane, u64), Vec<u8>>,
    pub gaps: Vec<Gap>,
    /// What the store itself says that this consumer lost.
    pub lost: u64,
}

impl Read {
    /// Records of a lane below or at `last` that were not handed out.
    pub fn missing(&self, lane: Lane, last: u64) -> Vec<u64> {
        (1..=last).filter(|seq| !self.records.contains_key(&(lane, *seq))).collect()
    }

    /// Of `missing`, those that no gap tells of.
    pub fn silent(&self, lane: Lane, missing: &[u64]) -> Vec<u64> {
        let told = |seq: &u64| self.gaps.iter().any(|g| g.lane == lane && (g.from_seq..=g.to_seq).contains(seq));
        missing.iter().filter(|seq| !told(seq)).copied().collect()
    }
}

/// A record whose payload can be checked: its number, then filling.
pub fn record(lane: Lane, number: u64, bytes: usize) -> NewRecord {
    let mut payload = number.to_le_bytes().to_vec();
    payload.extend((0..bytes.saturating_sub(8)).map(|i| (number as u8).wrapping_add(i as u8)));
    NewRecord {
        lane,
        kind: RecordKind::Telemetry,
        device: 1 + (number % 7) as u32,
        ts_ms: 1_763_812_800_000 + number as i64,
        count: 1,
        payload: payload.into(),
    }
}

/// The device in a backlog that was there before the gateway started.
pub const OLD: u8 = 200;

/// A record of [`OLD`].
pub fn old_record(number: u64) -> NewRecord {
    let at = Stamp {
        wall_ms: 1_763_812_800_000 + number as i64 * 50,
        mono_ns: 0,
        uptime: Default::default(),
        trust: ClockTrust::Synchronised,
    };
    let sample = |name: &str, value: Value| Sample {
        point: PointId::new(name).expect("legal"),
        value: Some(value),
        quality: Quality::Good,
        reason: None,
        at,
    };
    let mut samples = vec![sample("count", Value::Uint(number))];
    samples.extend(["flow", "level", "power"].map(|name| sample(name, Value::Double(number as f64 / 7.0))));
    let batch = Batch { device: DeviceId::new(&format!("c{OLD}")).expect("legal"), at, samples };
    NewRecord {
        lane: Lane::Bulk,
        kind: RecordKind::Telemetry,
        device: u32::from(OLD),
        ts_ms: at.wall_ms,
        count: batch.samples.len() as u16,
        payload: telemetry(&batch).encode_as(Encoding::Protobuf),
    }
}

/// Fills the store of a gateway that is away with so many bytes of [`OLD`]; returns how many records that took.
pub fn fill(data: &Path, quota_mib: u64, consumers: &[&str], bytes: u64) -> u64 {
    std::fs::create_dir_all(data).expect("writable");
    tokio::runtime::Runtime::new().expect("threads").block_on(async {
        let config = Config::with_quota(data.join("store"), quota_mib << 20);
        let store = Store::open(config, SystemClock::shared()).expect("opens");
        for name in consumers {
            drop(consumer(&store, name).await);
        }
        let (mut number, mut done) = (0, 0);
        while done < bytes {
            let records: Vec<_> = (number + 1..=number + 100).map(old_record).collect();
            number += records.len() as u64;
            done += records.iter().map(|r| r.payload.len() as u64 + 36).sum::<u64>();
            store.append(records).await.expect("accepted");
        }
        store.close().await.expect("closed");
        number
    })
}

/// Registers or takes over a consumer.
pub async fn consumer(store: &Store, name: &str) -> Consumer {
    let spec = ConsumerSpec { name: name.to_owned(), start: Start::Oldest, backlog: Backlog::default() };
    store.consumer(spec).await.unwrap_or_else(|error| panic!("consumer {name}: {error}"))
}

/// Reads and acknowledges everything there is.
pub async fn read_all(consumer: &mut Consumer) -> Read {
    let mut read = Read::default();
    consumer.begin_session(Order::InOrder);
    while consumer.depth().records > 0 {
        let next = tokio::time::timeout(Duration::from_secs(30), consumer.live(4_096)).await;
        let next = next.unwrap_or_else(|_| panic!("{} records are owed and none comes", consumer.depth().records));
        for delivery in next.expect("the store is open") {
            let (lane, from, to) = match delivery {
                Delivery::Record { record, .. } => {
                    let key = (record.lane, record.seq);
                    read.records.insert(key, record.payload.to_vec());
                    (key.0, key.1, key.1)
                }
                Delivery::Gap(gap) => {
                    let range = (gap.lane, gap.from_seq, gap.to_seq);
                    read.gaps.push(gap);
                    range
                }
            };
            consumer.ack(lane, from, to);
        }
    }
    read.lost = consumer.depth().lost;
    read
}

/// Bytes of all files below a directory.
pub fn bytes_on_disk(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).map(|entries| entries.flatten().collect::<Vec<_>>()).unwrap_or_default();
    entries
        .iter()
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => bytes_on_disk(&entry.path()),
            // Files that go while this looks count as gone.
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}

/// All files below a directory.
pub fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).expect("readable").flatten() {
        if entry.path().is_dir() { all.extend(files(&entry.path())) } else { all.push(entry.path()) }
    }
    all.sort();
    all
}

/// Copies a directory with everything in it.
pub fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("writable");
    for entry in std::fs::read_dir(from).expect("readable").flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_dir(&entry.path(), &target);
        } else if entry.metadata().is_ok_and(|meta| meta.is_file()) {
            std::fs::copy(entry.path(), target).expect("copied");
        }
    }
}
