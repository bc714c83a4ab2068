//! Tests of the store as its users see it, on real files.

use std::time::Duration;

use super::*;
use crate::model::{Delivery, Order, Record};
use crate::platform::clock::SystemClock;

pub(super) fn record(lane: Lane, n: u64) -> NewRecord {
    let payload = format!("record {n}").into_bytes().into();
    NewRecord { lane, kind: RecordKind::Telemetry, device: 1, ts_ms: 1_763_812_800_000 + n as i64, count: 1, payload }
}

fn open(dir: &std::path::Path) -> Store {
    Store::open(Config::with_quota(dir.join("store"), 16 << 20), SystemClock::shared()).unwrap()
}

fn spec(name: &str, start: Start) -> ConsumerSpec {
    ConsumerSpec { name: name.to_owned(), start }
}

fn numbers(deliveries: &[Delivery]) -> Vec<(Seq, bool)> {
    deliveries
        .iter()
        .map(|d| match d {
            Delivery::Record { record, historical } => (record.seq, *historical),
            Delivery::Gap(gap) => panic!("unexpected {gap:?}"),
        })
        .collect()
}

async fn collect(consumer: &mut Consumer, live: bool, want: usize) -> Vec<Record> {
    let mut out = Vec::new();
    while out.len() < want {
        let next = async { if live { consumer.live(100).await } else { consumer.backlog(100).await } };
        let got = tokio::time::timeout(Duration::from_secs(10), next).await.expect("deliveries in time").unwrap();
        for delivery in got {
            match delivery {
                Delivery::Record { record, .. } => out.push(record),
                Delivery::Gap(gap) => panic!("unexpected {gap:?}"),
            }
        }
    }
    out
}

#[tokio::test]
async fn what_is_appended_is_delivered_and_survives_a_restart_until_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut consumer = store.consumer(spec("a", Start::Oldest)).await.unwrap();
    assert_eq!(store.append((1..=10).map(|n| record(Lane::Bulk, n)).collect()).await.unwrap(), 10);
    assert_eq!(store.append_synced(vec![record(Lane::Critical, 1)]).await.unwrap(), 1);
    let got = consumer.live(100).await.unwrap();
    assert_eq!(got.len(), 11);
    assert!(matches!(&got[0], Delivery::Record { record, historical: false } if record.lane == Lane::Critical));
    consumer.ack(Lane::Bulk, 1, 4);
    consumer.ack(Lane::Bulk, 6, 6);
    assert_eq!(consumer.depth().records, 6);
    store.close().await.unwrap();
    assert!(consumer.live(1).await.is_err());
    drop(consumer);

    let store = open(dir.path());
    let mut consumer = store.consumer(spec("a", Start::Now)).await.unwrap();
    assert_eq!(consumer.depth().records, 6);
    let got = consumer.backlog(100).await.unwrap();
    assert_eq!(numbers(&got), [(1, true)]);
    let got = consumer.backlog(100).await.unwrap();
    assert_eq!(numbers(&got), [(5, true), (7, true), (8, true), (9, true), (10, true)]);
    assert_eq!(store.append(vec![record(Lane::Bulk, 11)]).await.unwrap(), 11);
    assert_eq!(numbers(&consumer.live(100).await.unwrap()), [(11, false)]);
    consumer.begin_session(Order::InOrder);
    assert_eq!(consumer.live(100).await.unwrap().len(), 7 - 6);
    assert_eq!(numbers(&consumer.live(2).await.unwrap()), [(5, true), (7, true)]);
}

#[tokio::test]
async fn a_consumer_that_is_away_holds_its_records_and_one_that_is_removed_releases_them() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::with_quota(dir.path().join("store"), 16 << 20);
    config.segment_bytes = Some(64 << 10);
    let store = Store::open(config, SystemClock::shared()).unwrap();
    let mut fast = store.consumer(spec("fast", Start::Oldest)).await.unwrap();
    drop(store.consumer(spec("away", Start::Oldest)).await.unwrap());
    let big = |n| NewRecord { payload: vec![n as u8; 4000].into(), ..record(Lane::Bulk, n) };
    for chunk in 0..20u64 {
        store.append((0..10).map(|n| big(chunk * 10 + n)).collect()).await.unwrap();
    }
    let got = collect(&mut fast, true, 200).await;
    fast.ack(Lane::Bulk, 1, got.last().unwrap().seq);
    store.sync().await;
    let mut stats = store.stats();
    let held = stats
        .wait_for(|s| s.consumers.get("fast").is_some_and(|c| c.depth.records == 0) && s.bulk.segments > 10)
        .await
        .unwrap()
        .bulk
        .segments;
    store.remove_consumer("away").await.unwrap();
    let left = stats.wait_for(|s| s.bulk.segments < 3).await.unwrap().bulk.segments;
    assert!(held > 10 && left <= 2, "{held} {left}");
    assert_eq!(store.remove_consumer("away").await, Err(ConsumerError::Unknown("away".into())));
}

#[tokio::test]
async fn a_consumer_that_falls_behind_reads_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut slow = store.consumer(spec("slow", Start::Oldest)).await.unwrap();
    let payload: Bytes = vec![7; 1000].into();
    for chunk in 0..50u64 {
        let records = (1..=100).map(|n| NewRecord { payload: payload.clone(), ..record(Lane::Bulk, chunk * 100 + n) });
        store.append(records.collect()).await.unwrap();
    }
    let seqs: Vec<Seq> = collect(&mut slow, true, 5000).await.iter().map(|r| r.seq).collect();
    assert_eq!(seqs, (1..=5000).collect::<Vec<_>>());
}

#[tokio::test]
async fn names_and_directories_are_used_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let other = Store::open(Config::new(dir.path().join("store")), SystemClock::shared());
    assert!(matches!(other, Err(OpenError::Locked(_))), "{other:?}");
    let held = store.consumer(spec("a", Start::Oldest)).await.unwrap();
    assert!(matches!(store.consumer(spec("a", Start::Oldest)).await, Err(ConsumerError::InUse(_))));
    drop(held);
    store.consumer(spec("a", Start::Oldest)).await.unwrap();
    for bad in ["", "a/b", "~state"] {
        assert!(matches!(store.consumer(spec(bad, Start::Oldest)).await, Err(ConsumerError::Name(_))), "{bad:?}");
    }
    let large = NewRecord { payload: vec![0; MAX_PAYLOAD + 1].into(), ..record(Lane::Bulk, 1) };
    assert!(matches!(store.append(vec![large]).await, Err(AppendError::TooLarge { .. })));
}

#[tokio::test]
async fn a_store_that_is_dropped_stops_and_can_be_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.append(vec![record(Lane::Bulk, 1)]).await.unwrap();
    drop(store);
    let again = tokio::task::spawn_blocking(move || {
        for _ in 0..200 {
            match Store::open(Config::with_quota(dir.path().join("store"), 16 << 20), SystemClock::shared()) {
                Err(OpenError::Locked(_)) => std::thread::sleep(Duration::from_millis(20)),
                other => return (other, dir),
            }
        }
        panic!("the store was not released");
    });
    let (store, _dir) = again.await.unwrap();
    assert_eq!(store.unwrap().stats().borrow().bulk.next_seq, 2);
}
