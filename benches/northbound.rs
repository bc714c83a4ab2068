//! What a value costs northbound: making messages, and the whole way to a mosquitto. `cargo bench --bench northbound`.
#![allow(clippy::unwrap_used, reason = "a test may stop at what it did not expect")]

use std::sync::Arc;
use std::time::Instant;

use fieldgate::contract::Encoding;
use fieldgate::model::{Delivery, Lane, Order, Record, RecordKind};
use fieldgate::northbound::{
    ConsumerConfig, ConsumerKind, Context, GatewayInfo, Publisher, StateBoard, Usage, Version,
};
use fieldgate::platform::clock::SystemClock;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

#[path = "../tests/northbound_support/source.rs"]
mod source;
#[path = "../tests/support/mod.rs"]
mod support;

use self::source::{FakeStore, telemetry_payload};
use self::support::Mosquitto;

const POINTS: usize = 100;

fn batch(device: usize) -> bytes::Bytes {
    let names: Vec<String> = (0..POINTS).map(|n| format!("area-1.point-{n}")).collect();
    let points: Vec<(&str, f64)> =
        names.iter().enumerate().map(|(n, name)| (name.as_str(), n as f64 * 1.37 + 0.5)).collect();
    telemetry_payload(&format!("device-{device}"), &points)
}

fn config(encoding: Encoding, telemetry: bool, points: bool) -> ConsumerConfig {
    let mut config =
        ConsumerConfig::uplink("bench", "fieldgate/v1/bench", vec!["mqtt://127.0.0.1".parse().expect("an address")]);
    config.encoding = encoding;
    config.publish.telemetry = telemetry;
    config.publish.points = points;
    config.replay.order = Order::InOrder;
    config.window = 1000;
    config
}

/// Nanoseconds of CPU per value to make the messages.
fn publisher(name: &str, config: &ConsumerConfig) {
    let mut publisher = Publisher::new(config);
    let payloads: Vec<_> = (0..20).map(batch).collect();
    let mut out = Vec::new();
    let rounds = 2_000u64;
    let mut bytes = 0;
    let mut began = Instant::now();
    for seq in 1..=rounds + 200 {
        if seq == 201 {
            began = Instant::now();
        }
        let payload = payloads[seq as usize % payloads.len()].clone();
        let record = Record {
            lane: Lane::Bulk,
            seq,
            ts_ms: 0,
            device: 1,
            kind: RecordKind::Telemetry,
            count: POINTS as u16,
            payload,
        };
        publisher.delivery(&Delivery::Record { record, historical: false }, &mut out).expect("a good record");
        bytes += out.iter().map(|m| m.payload.len()).sum::<usize>();
        out.clear();
    }
    let ns = began.elapsed().as_nanos() as f64 / (rounds as f64 * POINTS as f64);
    println!(
        "{name:42} {ns:8.0} ns/value   {:6.0} bytes/value",
        bytes as f64 / ((rounds + 200) as f64 * POINTS as f64)
    );
}

/// User and system time of this process, seconds.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap_or(0.0) + fields[12].parse::<f64>().unwrap_or(0.0);
    ticks / 100.0
}

/// CPU per value from the store to a confirmed message.
async fn end_to_end(name: &str, mut config: ConsumerConfig, version: Version, records: usize) {
    let broker = Mosquitto::with_config("allow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 0\n");
    let ConsumerKind::Uplink(uplink) = &mut config.kind else { return };
    uplink.servers = vec![format!("mqtt://127.0.0.1:{}", broker.port()).parse().expect("an address")];
    uplink.version = version;
    let store = FakeStore::default();
    for n in 0..records {
        store.append(Lane::Bulk, RecordKind::Telemetry, batch(n % 20));
    }
    let context = Context {
        gateway: GatewayInfo { id: "bench".into(), version: "0".into(), epoch: 1 },
        board: StateBoard::default(),
        directory: watch::channel(Arc::default()).1,
        requests: mpsc::channel(1).0,
        notices: mpsc::channel(8).0,
        settings: Arc::default(),
        clock: SystemClock::shared(),
    };
    let (consumer, _health) = fieldgate::northbound::Consumer::new(config, store.source(), context, Usage::default())
        .expect("a good configuration");
    let stop = CancellationToken::new();
    let (cpu_before, began) = (cpu(), Instant::now());
    let tls = Arc::new(|_: &str| Err("none".to_owned()));
    let running = tokio::spawn(consumer.run_uplink(tls, stop.clone()));
    store.all_confirmed().await;
    let values = (records * POINTS) as f64;
    let (cpu, wall) = (cpu() - cpu_before, began.elapsed().as_secs_f64());
    println!("{name:42} {:8.2} µs CPU/value   {:9.0} values/s", cpu * 1e6 / values, values / wall);
    stop.cancel();
    let _ = running.await;
}

fn main() {
    publisher("publisher, protobuf batch of 100", &config(Encoding::Protobuf, true, false));
    publisher("publisher, JSON batch of 100", &config(Encoding::Json, true, false));
    publisher("publisher, one JSON message per point", &config(Encoding::Json, false, true));
    publisher("publisher, one protobuf message per point", &config(Encoding::Protobuf, false, true));
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        for version in [Version::V311, Version::V5] {
            end_to_end(
                &format!("uplink {version:?}, protobuf batch of 100"),
                config(Encoding::Protobuf, true, false),
                version,
                20_000,
            )
            .await;
            end_to_end(
                &format!("uplink {version:?}, JSON batch of 100"),
                config(Encoding::Json, true, false),
                version,
                5_000,
            )
            .await;
            end_to_end(
                &format!("uplink {version:?}, JSON message per point"),
                config(Encoding::Json, false, true),
                version,
                1_000,
            )
            .await;
        }
    });
}
