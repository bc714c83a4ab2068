//! Append and drain of records of 120 bytes with group commit: the store's log, SQLite (WAL, synchronous FULL) and sled
//! (with the sync of its file that its `flush` leaves out), in one run on one file system.
//!
//! `cargo run --release [records]`, on the file system of `TMPDIR`; a tmpfs shows no bytes written. All three commit
//! about every 64 KiB, which is 420 records: the log by its own default, the others because they are told to. CPU is that
//! of the whole process, bytes are those that the kernel sent to the block device, both from `/proc/self`.
//!
//! *In groups*: each engine is handed 420 records at once. The log still hands them to a thread of its own, where live
//! readers get them and where they are written before the call returns; the others run in the caller's thread.
//! *10 at a time*: as a poll cycle brings them, each ten answered before the next, with SQLite behind a thread and a
//! channel too, as an asynchronous program has to use it. It answers when the rows are inserted, and commits every 420:
//! a killed process loses what is not committed, where the log's answer means that a killed process loses nothing.
#![forbid(unsafe_code)]

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fieldgate::model::{Delivery, Lane, Order, RecordKind};
use fieldgate::platform::clock::SystemClock;
use fieldgate::store::{Backlog, Config, ConsumerSpec, NewRecord, Start, Store};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const PAYLOAD: usize = 120;
/// Records in one commit: 64 KiB of frames.
const GROUP: u64 = 420;
/// Records that come together in one poll cycle.
const POLL: u64 = 10;

/// What a piece of work cost.
struct Cost {
    wall: Instant,
    cpu: Duration,
    written: u64,
}

impl Cost {
    fn begin() -> Outcome<Self> {
        Ok(Self { wall: Instant::now(), cpu: cpu()?, written: written()? })
    }

    fn print(self, what: &str, records: u64) -> Outcome<()> {
        let wall = self.wall.elapsed();
        let cpu = (cpu()? - self.cpu).as_secs_f64() * 1e6 / records as f64;
        let bytes = (written()? - self.written) as f64 / (records * PAYLOAD as u64) as f64;
        println!("| {what} | {:.0} | {cpu:.2} | {bytes:.2} |", records as f64 / wall.as_secs_f64());
        Ok(())
    }
}

/// User and system time of this process; the kernel counts in hundredths of a second.
fn cpu() -> Outcome<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    let ticks: u64 = fields.map(|f| f.parse::<u64>().unwrap_or(0)).sum();
    Ok(Duration::from_millis(ticks * 10))
}

/// Bytes that this process caused to be sent to the block device.
fn written() -> Outcome<u64> {
    let io = std::fs::read_to_string("/proc/self/io")?;
    Ok(io.lines().find_map(|line| line.strip_prefix("write_bytes: ")).map(str::parse).transpose()?.unwrap_or(0))
}

async fn log(dir: &Path, records: u64, batch: u64, what: &str) -> Outcome<()> {
    let config = || Config::with_quota(dir.join("store"), 1 << 30);
    let store = Store::open(config(), SystemClock::shared())?;
    let spec = || ConsumerSpec { name: "reader".to_owned(), start: Start::Oldest, backlog: Backlog::default() };
    drop(store.consumer(spec()).await?);
    let payload = Bytes::from(vec![7; PAYLOAD]);
    let record =
        |n: u64| NewRecord { lane: Lane::Bulk, kind: RecordKind::Telemetry, device: 1, ts_ms: n as i64, count: 1, payload: payload.clone() };
    let cost = Cost::begin()?;
    for first in (0..records).step_by(batch as usize) {
        store.append((first..records.min(first + batch)).map(record).collect()).await?;
    }
    store.sync().await;
    cost.print(&format!("log, append {what}"), records)?;
    store.close().await?;
    if batch != GROUP {
        return Ok(());
    }

    let store = Store::open(config(), SystemClock::shared())?;
    let mut reader = store.consumer(spec()).await?;
    reader.begin_session(Order::InOrder);
    let (cost, mut got) = (Cost::begin()?, 0);
    while got < records {
        for delivery in reader.live(GROUP as usize).await? {
            let Delivery::Record { record, .. } = delivery else { return Err("the log lost a record".into()) };
            reader.ack(record.lane, record.seq, record.seq);
            got += 1;
        }
    }
    store.sync().await;
    cost.print("log, drain", records)?;
    drop(reader);
    Ok(store.close().await?)
}

fn database(dir: &Path) -> rusqlite::Result<rusqlite::Connection> {
    let db = rusqlite::Connection::open(dir.join("buffer.sqlite"))?;
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.pragma_update(None, "synchronous", "FULL")?;
    db.execute_batch("CREATE TABLE buffer (seq INTEGER PRIMARY KEY, lane INTEGER, ts INTEGER, device INTEGER, payload BLOB)")?;
    Ok(db)
}

const INSERT: &str = "INSERT INTO buffer (lane, ts, device, payload) VALUES (1, ?1, 1, ?2)";

/// SQLite behind a thread, fed ten records at a time.
async fn sqlite_by_polls(dir: &Path, records: u64) -> Outcome<()> {
    type Poll = (Vec<(i64, Bytes)>, tokio::sync::oneshot::Sender<()>);
    let (polls, mut work) = tokio::sync::mpsc::channel::<Poll>(16);
    let db = database(dir)?;
    let thread = std::thread::spawn(move || -> rusqlite::Result<()> {
        let mut open = 0;
        while let Some((rows, reply)) = work.blocking_recv() {
            if open == 0 {
                db.execute_batch("BEGIN IMMEDIATE")?;
            }
            let mut insert = db.prepare_cached(INSERT)?;
            for (ts, payload) in &rows {
                insert.execute((ts, &payload[..]))?;
            }
            open += rows.len() as u64;
            if open >= GROUP {
                db.execute_batch("COMMIT")?;
                open = 0;
            }
            // Whoever asked may have gone.
            let _ = reply.send(());
        }
        if open > 0 { db.execute_batch("COMMIT") } else { Ok(()) }
    });
    let payload = Bytes::from(vec![7; PAYLOAD]);
    let cost = Cost::begin()?;
    for first in (0..records).step_by(POLL as usize) {
        let (reply, answer) = tokio::sync::oneshot::channel();
        let rows = (first..records.min(first + POLL)).map(|n| (n as i64, payload.clone())).collect();
        polls.send((rows, reply)).await?;
        answer.await?;
    }
    drop(polls);
    tokio::task::spawn_blocking(|| thread.join()).await?.map_err(|_| "the thread panicked")??;
    cost.print("SQLite WAL FULL, append 10 at a time", records)
}

fn sqlite(dir: &Path, records: u64) -> Outcome<()> {
    let db = database(dir)?;
    let payload = [7u8; PAYLOAD];
    let cost = Cost::begin()?;
    for first in (0..records).step_by(GROUP as usize) {
        db.execute_batch("BEGIN IMMEDIATE")?;
        let mut insert = db.prepare_cached(INSERT)?;
        for n in first..records.min(first + GROUP) {
            insert.execute((n as i64, &payload[..]))?;
        }
        drop(insert);
        db.execute_batch("COMMIT")?;
    }
    cost.print("SQLite WAL FULL, append in groups", records)?;

    let (cost, mut got) = (Cost::begin()?, 0);
    while got < records {
        let mut select = db.prepare_cached("SELECT seq, payload FROM buffer ORDER BY seq LIMIT ?1")?;
        let mut rows = select.query([GROUP as i64])?;
        let mut last = 0i64;
        while let Some(row) = rows.next()? {
            last = row.get(0)?;
            let payload: Vec<u8> = row.get(1)?;
            got += u64::from(payload.len() == PAYLOAD);
        }
        drop(rows);
        db.prepare_cached("DELETE FROM buffer WHERE seq <= ?1")?.execute([last])?;
    }
    cost.print("SQLite WAL FULL, drain", records)
}

fn sled(dir: &Path, records: u64) -> Outcome<()> {
    let path = dir.join("sled");
    let db = sled::Config::new().path(&path).cache_capacity(8 << 20).flush_every_ms(None).open()?;
    let commit = || -> Outcome<()> {
        db.flush()?;
        Ok(File::open(path.join("db"))?.sync_all()?)
    };
    let cost = Cost::begin()?;
    for n in 0..records {
        db.insert(n.to_be_bytes(), &[7u8; PAYLOAD][..])?;
        if (n + 1) % GROUP == 0 {
            commit()?;
        }
    }
    commit()?;
    cost.print("sled, really synced, append in groups", records)?;

    let (cost, mut got) = (Cost::begin()?, 0);
    while let Some((_, payload)) = db.pop_min()? {
        got += u64::from(payload.len() == PAYLOAD);
        if got % GROUP == 0 {
            commit()?;
        }
    }
    commit()?;
    if got != records {
        return Err("sled lost a record".into());
    }
    cost.print("sled, really synced, drain", records)
}

fn main() -> Outcome<()> {
    let records = std::env::args().nth(1).map_or(Ok(1_000_000), |n| n.parse())?;
    println!("{records} records of {PAYLOAD} bytes\n\n| engine | records/s | CPU µs per record | bytes written per payload byte |\n|---|---|---|---|");
    let dir = || tempfile::tempdir();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(log(dir()?.path(), records, GROUP, "in groups"))?;
    sqlite(dir()?.path(), records)?;
    sled(dir()?.path(), records)?;
    runtime.block_on(log(dir()?.path(), records, POLL, "10 at a time"))?;
    runtime.block_on(sqlite_by_polls(dir()?.path(), records))
}
