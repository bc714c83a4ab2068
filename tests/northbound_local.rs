//! The local session from end to end, with a store and a broker in memory.
#![allow(clippy::unwrap_used, reason = "a test may stop at what it did not expect")]

use std::time::Duration;

use fieldgate::contract::{ContractMessage, Encoding, v1};
use fieldgate::model::{Lane, RecordKind};
use fieldgate::northbound::*;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use self::context::{Surroundings, context};
use self::support::{FakeStore, telemetry_payload};

#[path = "northbound_support/context.rs"]
mod context;
#[path = "northbound_support/source.rs"]
mod support;

/// Gives every message to the test, which takes them at its own pace.
struct FakeBroker {
    published: mpsc::Sender<Message>,
    inbound: std::sync::Mutex<Option<mpsc::Receiver<Inbound>>>,
}

impl LocalPublisher for FakeBroker {
    async fn publish(&self, messages: Vec<Message>) -> Result<(), LocalClosed> {
        for message in messages {
            self.published.send(message).await.map_err(|_| LocalClosed)?;
        }
        Ok(())
    }

    fn subscribe(&self, _filters: Vec<String>) -> Result<mpsc::Receiver<Inbound>, LocalClosed> {
        self.inbound.lock().unwrap().take().ok_or(LocalClosed)
    }
}

struct Bench {
    store: FakeStore,
    board: StateBoard,
    published: mpsc::Receiver<Message>,
    clients: mpsc::Sender<Inbound>,
    requests: mpsc::Receiver<Request>,
    notices: mpsc::Receiver<Notice>,
    health: watch::Receiver<ConsumerHealth>,
    stop: CancellationToken,
    running: tokio::task::JoinHandle<support::FakeSource>,
}

fn start(config: ConsumerConfig, store: FakeStore) -> Bench {
    let (published_in, published) = mpsc::channel(8);
    let (clients, inbound) = mpsc::channel(8);
    let (context, Surroundings { board, requests, notices, .. }) = context(1);
    let (consumer, health) = Consumer::new(config, store.source(), context, Usage::default()).unwrap();
    let broker = FakeBroker { published: published_in, inbound: std::sync::Mutex::new(Some(inbound)) };
    let stop = CancellationToken::new();
    let running = tokio::spawn(consumer.run_local(broker, stop.clone()));
    Bench { store, board, published, clients, requests, notices, health, stop, running }
}

impl Bench {
    async fn next(&mut self) -> Message {
        timeout(Duration::from_secs(10), self.published.recv())
            .await
            .expect("a message in time")
            .expect("the session runs")
    }

    async fn next_on(&mut self, topic: &str) -> Message {
        loop {
            let message = self.next().await;
            if &*message.topic == topic {
                return message;
            }
        }
    }
}

fn config() -> ConsumerConfig {
    let mut config = ConsumerConfig::local("local", "r");
    config.publish.points = false;
    config
}

#[tokio::test]
async fn status_board_and_records_are_published_and_confirmed() {
    let mut bench = start(config(), FakeStore::default());
    let status = bench.next().await;
    assert_eq!((&*status.topic, status.retain), ("r/status", Retain::Persisted));
    let status = v1::Status::decode_as(Encoding::Json, &status.payload).unwrap();
    assert_eq!((status.state(), status.epoch), (v1::status::State::Online, 7));

    bench.board.set("health", &v1::Health { uptime_seconds: 5, ..v1::Health::default() });
    assert_eq!(&*bench.next().await.topic, "r/health");
    bench.board.remove("health");
    assert!(bench.next_on("r/health").await.payload.is_empty());

    bench.store.append_value("pump", 1.0);
    let telemetry = bench.next().await;
    assert_eq!(&*telemetry.topic, "r/devices/pump/telemetry");
    bench.store.all_confirmed().await;

    bench.stop.cancel();
    let offline = bench.next().await;
    assert_eq!(v1::Status::decode_as(Encoding::Json, &offline.payload).unwrap().state(), v1::status::State::Offline);
    bench.running.await.unwrap();
}

#[tokio::test]
async fn a_backlog_drains_beside_live_data_and_says_that_it_is_history() {
    let store = FakeStore::default();
    for n in 0..2_000 {
        store.append_value("pump", f64::from(n));
    }
    let mut bench = start(config(), store);
    bench.next().await;
    let mut seen = Vec::new();
    bench.store.append_value("pump", 9e9);
    let mut live_at = None;
    for at in 0..2_001 {
        let t = v1::Telemetry::decode_as(Encoding::Json, &bench.next().await.payload).unwrap();
        if t.historical {
            seen.push(t.seq);
        } else {
            live_at = Some(at);
        }
    }
    assert_eq!(seen, (1..=2_000).collect::<Vec<_>>());
    assert!(live_at.unwrap() < 600, "live data waited for {live_at:?} old records");
    bench.store.all_confirmed().await;
    bench.health.wait_for(|h| h.depth.records == 0 && h.replay_progress.is_none()).await.unwrap();
}

#[tokio::test]
async fn nothing_is_confirmed_before_the_broker_took_it() {
    let mut bench = start(config(), FakeStore::default());
    bench.next().await;
    // The channel to the fake broker holds 8 messages: the rest of the chunk waits, so nothing of it is confirmed.
    for n in 0..64 {
        bench.store.append_value("pump", f64::from(n));
    }
    bench.next().await;
    assert!(bench.store.pending() > 0);
    for _ in 1..64 {
        bench.next().await;
    }
    bench.store.all_confirmed().await;
}

#[tokio::test]
async fn requests_are_handed_over_and_the_second_is_refused_while_the_queue_is_full() {
    let mut bench = start(config(), FakeStore::default());
    bench.next().await;
    let command = |id: &str| Inbound {
        topic: "r/devices/pump/command".into(),
        payload: format!(r#"{{"correlationId":"{id}","writes":[]}}"#).into(),
        retain: false,
        sender: fieldgate::northbound::Sender { name: "anna".into(), ..Default::default() },
        response_topic: Some("answers/anna".into()),
        correlation: None,
    };
    bench.clients.send(command("one")).await.unwrap();
    bench.clients.send(command("two")).await.unwrap();
    let result = bench.next_on("r/devices/pump/command/result").await;
    let result = v1::CommandResult::decode_as(Encoding::Json, &result.payload).unwrap();
    assert_eq!((result.correlation_id.as_str(), result.code.as_str()), ("two", "busy"));
    bench.next_on("answers/anna").await;
    assert_eq!(bench.notices.recv().await.unwrap().kind, "request-refused");

    let RequestKind::Command { command, .. } = bench.requests.recv().await.unwrap().kind else { panic!("a command") };
    assert_eq!(command.correlation_id, "one");
    // Management answers through the store; the requester's own topic gets a copy.
    let result =
        v1::CommandResult { correlation_id: "one".into(), device: "pump".into(), ..v1::CommandResult::default() };
    bench.store.append(Lane::Critical, RecordKind::CommandResult, result.encode_as(Encoding::Protobuf));
    bench.next_on("answers/anna").await;
    bench.next_on("r/devices/pump/command/result").await;
}

#[tokio::test]
async fn a_damaged_record_becomes_a_gap_and_does_not_stop_the_rest() {
    let mut bench = start(config(), FakeStore::default());
    bench.next().await;
    let whole = telemetry_payload("pump", &[("n", 1.0)]);
    bench.store.append(Lane::Bulk, RecordKind::Telemetry, whole.slice(..whole.len() - 1));
    bench.store.append(Lane::Bulk, RecordKind::Telemetry, whole);
    let gap = v1::Gap::decode_as(Encoding::Json, &bench.next_on("r/gaps").await.payload).unwrap();
    assert_eq!((gap.reason.as_str(), gap.from_seq, gap.consumer.as_str()), ("damaged", 1, "local"));
    bench.next_on("r/devices/pump/telemetry").await;
    bench.store.all_confirmed().await;
    assert_eq!(bench.notices.recv().await.unwrap().severity, Severity::Alarm);
    bench.health.wait_for(|h| h.lost == 1).await.unwrap();
}

#[tokio::test]
async fn the_session_ends_when_the_store_closes() {
    let mut bench = start(config(), FakeStore::default());
    bench.next().await;
    bench.store.close();
    bench.running.await.unwrap();
}
