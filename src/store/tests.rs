//! Tests of the store as its users see it, on real files.

use std::time::Duration;

use super::*;
use crate::model::{ClockTrust, Delivery, GapReason, Order, Record};
use crate::platform::clock::{Clock, ManualClock, SystemClock};

pub(super) fn record(lane: Lane, n: u64) -> NewRecord {
    let payload = format!("record {n}").into_bytes().into();
    NewRecord { lane, kind: RecordKind::Telemetry, device: 1, ts_ms: 1_763_812_800_000 + n as i64, count: 1, payload }
}

fn open(dir: &std::path::Path) -> Store {
    Store::open(Config::with_quota(dir.join("store"), 16 << 20), SystemClock::shared()).unwrap()
}

fn spec(name: &str, start: Start) -> ConsumerSpec {
    ConsumerSpec { name: name.to_owned(), start, backlog: Backlog::default() }
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
async fn what_everybody_has_confirmed_is_shown_as_long_as_it_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let next = store.append_synced((1..=3).map(|n| record(Lane::Critical, n)).collect()).await.unwrap() + 1;
    store.close().await.unwrap();
    let mut files = inspect::lane_files(&fs::RealFs, &dir.path().join("store"), Lane::Critical).unwrap();
    files.image.as_mut().expect("it was closed").floor = next;
    let (mut records, mut missed) = (0, 0);
    let count = |item| {
        *if matches!(item, log::progress::Item::Record(_)) { &mut records } else { &mut missed } += 1;
        Ok(())
    };
    files.walk(&fs::RealFs, |_| {}, count).unwrap();
    assert_eq!((records, missed), (3, 0));
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

fn records_of(payload: usize, count: u64, ts_ms: i64) -> Vec<NewRecord> {
    let one = |_| NewRecord {
        lane: Lane::Bulk,
        kind: RecordKind::Telemetry,
        device: 1,
        ts_ms,
        count: 1,
        payload: vec![7; payload].into(),
    };
    (0..count).map(one).collect()
}

/// A store with segments of 64 KiB, and a clock that a test moves.
fn small_store(dir: &std::path::Path, change: impl FnOnce(&mut Config)) -> (Store, Arc<ManualClock>) {
    let mut config = Config::with_quota(dir.join("store"), 4 << 20);
    config.segment_bytes = Some(64 << 10);
    // Nothing is handed out from memory that the log has given up.
    config.bulk.tail_bytes = 0;
    change(&mut config);
    let clock = ManualClock::at(NOON);
    (Store::open(config, clock.clone()).unwrap(), clock)
}

const NOON: i64 = 1_763_812_800_000;

#[tokio::test]
async fn what_waits_for_one_consumer_is_limited_in_bytes_and_others_get_all_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = small_store(dir.path(), |_| {});
    let limited =
        |bytes| ConsumerSpec { backlog: Backlog { bytes: Some(bytes), age: None }, ..spec("a", Start::Oldest) };
    drop(store.consumer(limited(256 << 10)).await.unwrap());
    drop(store.consumer(spec("b", Start::Oldest)).await.unwrap());
    store.append(records_of(1_000, 1_000, NOON)).await.unwrap();
    let mut stats = store.stats();
    let given_up = |s: &Stats| s.consumers.get("a").is_some_and(|a| a.depth.lost > 0);
    let lost = stats.wait_for(given_up).await.unwrap().consumers["a"].depth.lost;
    // 256 KiB and the segment that is being filled, with 1,036 bytes a record.
    assert!((600..760).contains(&lost), "{lost}");
    assert_eq!(stats.borrow().consumers["b"].depth.lost, 0);
    store.close().await.unwrap();

    let (store, _) = small_store(dir.path(), |_| {});
    let mut a = store.consumer(limited(256 << 10)).await.unwrap();
    assert_eq!(a.depth().lost, lost, "remembered");
    let mut b = store.consumer(spec("b", Start::Oldest)).await.unwrap();
    for (consumer, lost) in [(&mut a, lost), (&mut b, 0)] {
        consumer.begin_session(Order::InOrder);
        let (mut records, mut gaps) = (0, 0);
        while records + gaps < 1_000 {
            for delivery in consumer.live(500).await.unwrap() {
                match delivery {
                    Delivery::Record { record, .. } => {
                        records += 1;
                        consumer.ack(record.lane, record.seq, record.seq);
                    }
                    Delivery::Gap(gap) => {
                        assert_eq!((gap.consumer.as_deref(), gap.reason), (Some("a"), GapReason::QuotaBytes));
                        gaps += gap.records;
                        consumer.ack(gap.lane, gap.from_seq, gap.to_seq);
                    }
                }
            }
        }
        assert_eq!((gaps, records), (lost, 1_000 - lost));
        assert_eq!((consumer.depth().records, consumer.depth().lost), (0, lost));
    }
    store.close().await.unwrap();
}

#[tokio::test]
async fn a_limited_consumer_that_is_away_does_not_hold_segments_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = small_store(dir.path(), |_| {});
    let limited = ConsumerSpec { backlog: Backlog { bytes: Some(128 << 10), age: None }, ..spec("a", Start::Oldest) };
    drop(store.consumer(limited).await.unwrap());
    store.append(records_of(1_000, 1_000, NOON)).await.unwrap();
    let released = |s: &Stats| s.bulk.first_seq > 500;
    store.stats().wait_for(released).await.unwrap();
    store.close().await.unwrap();
}

#[tokio::test]
async fn age_counts_for_the_store_and_for_one_consumer_only_while_the_clock_is_synchronised() {
    const HOUR: Duration = Duration::from_secs(3_600);
    for of_consumer in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let (store, clock) = small_store(dir.path(), |c| c.bulk.max_age = (!of_consumer).then_some(HOUR));
        let backlog = Backlog { bytes: None, age: of_consumer.then_some(HOUR) };
        drop(store.consumer(ConsumerSpec { backlog, ..spec("a", Start::Oldest) }).await.unwrap());
        clock.set_trust(ClockTrust::Holdover);
        store.append(records_of(1_000, 300, NOON)).await.unwrap();
        clock.advance(2 * HOUR);
        store.append(records_of(1_000, 100, clock.now().wall_ms)).await.unwrap();
        // Some turns of the housekeeping: nobody vouches for this clock, so nothing goes.
        let mut stats = store.stats();
        for _ in 0..3 {
            stats.changed().await.unwrap();
        }
        assert_eq!(stats.borrow().consumers["a"].depth.lost, 0);
        clock.set_trust(ClockTrust::Synchronised);
        let mut a = store.consumer(ConsumerSpec { backlog, ..spec("a", Start::Oldest) }).await.unwrap();
        a.begin_session(Order::InOrder);
        let reason = loop {
            stats.changed().await.unwrap();
            a.begin_session(Order::InOrder);
            let next = a.live(1).await.unwrap().into_iter().next();
            if let Some(Delivery::Gap(gap)) = next {
                assert!(gap.from_seq == 1 && (200..=300).contains(&gap.to_seq), "{gap:?}");
                break gap.reason;
            }
        };
        assert_eq!(reason, GapReason::QuotaAge);
        store.close().await.unwrap();
    }
}

#[tokio::test]
async fn confirmed_records_stay_readable_where_there_is_room_and_go_first() {
    let dir = tempfile::tempdir().unwrap();
    let change = |c: &mut Config| c.bulk.keep_bytes = 256 << 10;
    let (store, _) = small_store(dir.path(), change);
    let a = store.consumer(spec("a", Start::Oldest)).await.unwrap();
    let last = store.append(records_of(1_000, 1_000, NOON)).await.unwrap();
    a.ack(Lane::Bulk, 1, last);
    let mut stats = store.stats();
    let kept = |s: &Stats| s.bulk.first_seq > 600 && s.bulk.first_seq < 800;
    stats.wait_for(kept).await.unwrap();
    drop(a);
    store.close().await.unwrap();
    // They are still there after a restart, and nobody gets them again.
    let (store, _) = small_store(dir.path(), change);
    let kept = store.stats().borrow().bulk.first_seq;
    assert!((600..800).contains(&kept), "{kept}");
    let a = store.consumer(spec("a", Start::Oldest)).await.unwrap();
    assert_eq!(a.depth().records, 0);
    let mut late = store.consumer(spec("late", Start::Oldest)).await.unwrap();
    assert!(late.depth().records < 100, "{:?}", late.depth());
    late.begin_session(Order::InOrder);
    // With the quota used up they are the first to go: nothing that anybody needs does.
    for _ in 0..31 {
        store.append(records_of(1_000, 100, NOON)).await.unwrap();
    }
    let mut stats = store.stats();
    stats.wait_for(|s| s.bulk.next_seq > 4_100).await.unwrap();
    assert!(stats.borrow().bulk.first_seq > kept && stats.borrow().bulk.lost.is_empty(), "{:?}", stats.borrow().bulk);
    drop((a, late));
    store.close().await.unwrap();
}
