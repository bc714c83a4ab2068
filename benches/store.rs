//! Append and drain rates of the log, against sled with a real sync for each group.
//!
//! `cargo bench --bench store` prints a table: records of 120 bytes, in batches as the pipeline makes them, group commit
//! at its defaults, on the file system of `TMPDIR`. CPU is that of the whole process, by `/proc/self/stat`.

#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark stops at the first surprise")]

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fieldgate::model::{Delivery, Lane, RecordKind};
use fieldgate::platform::clock::SystemClock;
use fieldgate::store::{Backlog, Config, ConsumerSpec, NewRecord, Start, Store};

const PAYLOAD: usize = 120;
const RECORDS: usize = 200_000;

fn record(payload: &Bytes) -> NewRecord {
    NewRecord { lane: Lane::Bulk, kind: RecordKind::Telemetry, device: 1, ts_ms: 1, count: 1, payload: payload.clone() }
}

/// User and system time of this process.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

/// Memory of this process that is no file, in MiB.
fn rss() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("RssAnon")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

fn row(what: &str, records: usize, wall: Duration, cpu: Duration, more: &str) {
    let rate = records as f64 / wall.as_secs_f64();
    let each = cpu.as_secs_f64() * 1e6 / records as f64;
    println!("| {what} | {rate:.0} | {each:.2} | {more} |");
}

async fn open(dir: &Path) -> Store {
    Store::open(Config::with_quota(dir.join("store"), 256 << 20), SystemClock::shared()).unwrap()
}

/// Appends in batches and waits for the sync of the last.
async fn append(dir: &Path, batch: usize) {
    let store = open(dir).await;
    let payload = Bytes::from(vec![7; PAYLOAD]);
    let (start, cpu_start) = (Instant::now(), cpu());
    for _ in 0..RECORDS / batch {
        store.append((0..batch).map(|_| record(&payload)).collect()).await.unwrap();
    }
    store.sync().await;
    let (wall, used) = (start.elapsed(), cpu() - cpu_start);
    tokio::time::sleep(Duration::from_millis(600)).await;
    let amplification = store.stats().borrow().write_amplification;
    row(
        &format!("append, {batch} at once"),
        RECORDS,
        wall,
        used,
        &format!("{amplification:.2} bytes written per byte, memory {:.1} MiB", rss()),
    );
    store.close().await.unwrap();
}

/// Appends while a consumer takes and acknowledges everything.
async fn live(dir: &Path, batch: usize) {
    let store = open(dir).await;
    let mut consumer = store
        .consumer(ConsumerSpec { name: "a".into(), start: Start::Now, backlog: Backlog::default() })
        .await
        .unwrap();
    let payload = Bytes::from(vec![7; PAYLOAD]);
    let (start, cpu_start) = (Instant::now(), cpu());
    let reader = tokio::spawn(async move {
        let mut got = 0;
        while got < RECORDS {
            got += take(consumer.live(1000).await.unwrap(), &consumer);
        }
    });
    for _ in 0..RECORDS / batch {
        store.append((0..batch).map(|_| record(&payload)).collect()).await.unwrap();
    }
    reader.await.unwrap();
    let (wall, used) = (start.elapsed(), cpu() - cpu_start);
    row(
        &format!("append + live delivery + ack, {batch} at once"),
        RECORDS,
        wall,
        used,
        &format!("memory {:.1} MiB", rss()),
    );
    store.close().await.unwrap();
}

fn take(deliveries: Vec<Delivery>, consumer: &fieldgate::store::Consumer) -> usize {
    let seqs: Vec<u64> = deliveries
        .iter()
        .map(|d| if let Delivery::Record { record, .. } = d { record.seq } else { panic!() })
        .collect();
    consumer.ack(Lane::Bulk, seqs[0], *seqs.last().unwrap());
    seqs.len()
}

/// Reads and acknowledges what a consumer left behind.
async fn drain(dir: &Path) {
    let store = open(dir).await;
    drop(
        store
            .consumer(ConsumerSpec { name: "a".into(), start: Start::Now, backlog: Backlog::default() })
            .await
            .unwrap(),
    );
    let payload = Bytes::from(vec![7; PAYLOAD]);
    for _ in 0..RECORDS / 1000 {
        store.append((0..1000).map(|_| record(&payload)).collect()).await.unwrap();
    }
    store.close().await.unwrap();
    let opened = Instant::now();
    let store = open(dir).await;
    let opened = opened.elapsed();
    let mut consumer = store
        .consumer(ConsumerSpec { name: "a".into(), start: Start::Now, backlog: Backlog::default() })
        .await
        .unwrap();
    let (start, cpu_start) = (Instant::now(), cpu());
    let mut got = 0;
    while got < RECORDS {
        got += take(consumer.backlog(1000).await.unwrap(), &consumer);
    }
    let (wall, used) = (start.elapsed(), cpu() - cpu_start);
    row(
        "drain a backlog + ack",
        RECORDS,
        wall,
        used,
        &format!("opened in {:.1} ms, memory {:.1} MiB", opened.as_secs_f64() * 1e3, rss()),
    );
    store.close().await.unwrap();
}

/// A backlog of one gigabyte: how long opening takes and what it costs in memory.
async fn gigabyte(dir: &Path) {
    let config = || Config::with_quota(dir.join("store"), 1200 << 20);
    let store = Store::open(config(), SystemClock::shared()).unwrap();
    drop(
        store
            .consumer(ConsumerSpec { name: "a".into(), start: Start::Now, backlog: Backlog::default() })
            .await
            .unwrap(),
    );
    let payload = Bytes::from(vec![7; 4000]);
    for _ in 0..(1 << 30) / 4000 / 100 {
        store.append((0..100).map(|_| record(&payload)).collect()).await.unwrap();
    }
    store.close().await.unwrap();
    let start = Instant::now();
    let store = Store::open(config(), SystemClock::shared()).unwrap();
    println!(
        "| open with a 1 GB backlog | – | – | {:.1} ms, memory {:.1} MiB |",
        start.elapsed().as_secs_f64() * 1e3,
        rss()
    );
    store.close().await.unwrap();
}

/// The same records in sled, with the sync that its `flush` leaves out, in groups of 1,000.
fn sled_append(dir: &Path) {
    let path = dir.join("sled");
    let db = sled::Config::new().path(&path).cache_capacity(8 << 20).flush_every_ms(None).open().unwrap();
    let (start, cpu_start) = (Instant::now(), cpu());
    for n in 0..RECORDS as u64 {
        db.insert(n.to_be_bytes(), vec![7; PAYLOAD]).unwrap();
        if n % 1000 == 999 {
            db.flush().unwrap();
            File::open(path.join("db")).unwrap().sync_all().unwrap();
        }
    }
    row(
        "sled: append, groups of 1000",
        RECORDS,
        start.elapsed(),
        cpu() - cpu_start,
        &format!("memory {:.1} MiB", rss()),
    );
    let (start, cpu_start) = (Instant::now(), cpu());
    let mut done = 0;
    for entry in db.iter() {
        let (key, _) = entry.unwrap();
        db.remove(key).unwrap();
        done += 1;
        if done % 1000 == 0 {
            db.flush().unwrap();
            File::open(path.join("db")).unwrap().sync_all().unwrap();
        }
    }
    row("sled: drain + remove", RECORDS, start.elapsed(), cpu() - cpu_start, &format!("memory {:.1} MiB", rss()));
}

/// What an idle store takes.
async fn idle(dir: &Path) {
    let before = rss();
    let store = open(dir).await;
    let log_and_state = rss() - before;
    println!("| open and idle | – | – | memory {before:.1} MiB before, {log_and_state:.1} MiB more after |");
    store.close().await.unwrap();
}

#[tokio::main]
async fn main() {
    println!("| what | records/s | CPU µs per record | |\n|---|---|---|---|");
    let dir = tempfile::tempdir().unwrap();
    idle(dir.path()).await;
    for batch in [1, 10, 100, 1000] {
        let dir = tempfile::tempdir().unwrap();
        append(dir.path(), batch).await;
    }
    for batch in [10, 100, 1000] {
        let dir = tempfile::tempdir().unwrap();
        live(dir.path(), batch).await;
    }
    let dir = tempfile::tempdir().unwrap();
    drain(dir.path()).await;
    let dir = tempfile::tempdir().unwrap();
    gigabyte(dir.path()).await;
    let dir = tempfile::tempdir().unwrap();
    sled_append(dir.path());
}
