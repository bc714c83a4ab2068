//! The broker at the gateway's design load: 20,000 small messages a second to an external subscriber, nothing lost, and what
//! that costs. Figures are printed (`--nocapture`, `--release`); the bounds hold for a debug build on a busy machine too.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fieldgate::broker::{Config, EmbeddedBroker, LocalBroker, MemoryRetained, Publication, Qos, Retain};
use fieldgate::platform::clock::SystemClock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const TOPICS: usize = 2_000;
const SECONDS: usize = 3;
const PER_SECOND: usize = 20_000;

/// CPU time of this process in milliseconds, from the kernel's clock ticks of 10 ms.
fn cpu_ms() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()) * 10
}

fn rss_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_thousand_messages_a_second_reach_an_external_subscriber() {
    let broker =
        EmbeddedBroker::start(Config::loopback(0), MemoryRetained::default(), SystemClock::shared()).await.unwrap();
    let port = broker.addresses()[0].port().to_string();
    let total = SECONDS * PER_SECOND;
    let mut tool = Command::new("mosquitto_sub")
        .args([
            "-h",
            "127.0.0.1",
            "-p",
            &port,
            "-t",
            "fieldgate/v1/plant/devices/+/points/+",
            "-F",
            "%r",
            "-C",
            &total.to_string(),
        ])
        .stdout(Stdio::piped())
        .spawn()
        .expect("mosquitto_sub cannot be run; install Debian's mosquitto-clients");
    let lines = BufReader::new(tool.stdout.take().unwrap()).lines();
    let reader = tokio::task::spawn_blocking(move || lines.count());
    while broker.stats().subscriptions == 0 {
        tokio::task::yield_now().await;
    }
    let topics: Vec<Arc<str>> = (0..TOPICS)
        .map(|i| format!("fieldgate/v1/plant/devices/pump-{}/points/p{}", i / 100, i % 100).into())
        .collect();
    let (cpu, start) = (cpu_ms(), Instant::now());
    let mut tick = tokio::time::interval(Duration::from_millis(10));
    let mut next = topics.iter().cycle();
    for round in 0..SECONDS * 100 {
        tick.tick().await;
        let payload =
            Bytes::from(format!("{{\"value\":{round},\"quality\":\"good\",\"time\":\"2026-01-01T00:00:00.000Z\"}}"));
        let batch = next.by_ref().take(PER_SECOND / 100);
        let batch = batch.map(|topic| Publication {
            topic: topic.clone(),
            payload: payload.clone(),
            qos: Qos::AtMostOnce,
            retain: Retain::Snapshot,
        });
        broker.publish(batch.collect()).await.unwrap();
    }
    let took = start.elapsed();
    let got = reader.await.unwrap();
    let per_message = (cpu_ms() - cpu) as f64 * 1000.0 / total as f64;
    println!(
        "{total} messages in {took:.2?}: {per_message:.2} µs CPU each, RSS {} KiB, {:?}",
        rss_kib(),
        broker.stats()
    );
    assert_eq!(got, total);
    assert_eq!(broker.stats().slow_clients, 0);
    let _ = tool.wait();
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_is_at_the_subscriber_within_milliseconds() {
    let broker =
        EmbeddedBroker::start(Config::loopback(0), MemoryRetained::default(), SystemClock::shared()).await.unwrap();
    let mut stream = TcpStream::connect(broker.addresses()[0]).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream.write_all(b"\x10\x0d\0\x04MQTT\x04\x02\0\0\0\x01s\x82\x06\0\x01\0\x01t\0").await.unwrap();
    stream.read_exact(&mut [0; 9]).await.unwrap();
    let mut times = Vec::new();
    for _ in 0..500 {
        let message = Publication {
            topic: "t".into(),
            payload: Bytes::from_static(b"x"),
            qos: Qos::AtLeastOnce,
            retain: Retain::No,
        };
        let start = Instant::now();
        broker.publish(vec![message]).await.unwrap();
        stream.read_exact(&mut [0; 6]).await.unwrap();
        times.push(start.elapsed());
    }
    times.sort();
    let (p50, p99) = (times[250], times[495]);
    println!("publish to subscriber: p50 {p50:?}, p99 {p99:?}");
    assert!(p50 < Duration::from_millis(5), "p50 {p50:?}");
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_subscribers_get_every_message_of_a_flood() {
    const EACH: usize = 10_000;
    let broker =
        EmbeddedBroker::start(Config::loopback(0), MemoryRetained::default(), SystemClock::shared()).await.unwrap();
    let mut readers = Vec::new();
    for i in 0..50u8 {
        let mut stream = TcpStream::connect(broker.addresses()[0]).await.unwrap();
        let connect = [b"\x10\x0e\0\x04MQTT\x04\x02\0\0\0\x02s", &[b'0' + i][..], b"\x82\x06\0\x01\0\x01t\0"].concat();
        stream.write_all(&connect).await.unwrap();
        stream.read_exact(&mut [0; 9]).await.unwrap();
        readers.push(tokio::spawn(async move {
            let mut buffer = vec![0; 65536];
            let mut left = EACH * 134;
            while left > 0 {
                left -=
                    stream.read(&mut buffer).await.ok().filter(|&n| n > 0).expect("the broker closed the connection");
            }
        }));
    }
    let message =
        Publication { topic: "t".into(), payload: Bytes::from(vec![1; 128]), qos: Qos::AtMostOnce, retain: Retain::No };
    let (cpu, start) = (cpu_ms(), Instant::now());
    for _ in 0..EACH / 100 {
        broker.publish(vec![message.clone(); 100]).await.unwrap();
    }
    for reader in readers {
        reader.await.unwrap();
    }
    let (took, cpu) = (start.elapsed(), cpu_ms() - cpu);
    let rate = (50 * EACH) as f64 / took.as_secs_f64();
    println!(
        "1 to 50: {rate:.0} messages/s, {:.2} µs CPU each (the readers' included), RSS {} KiB",
        cpu as f64 * 1000.0 / (50 * EACH) as f64,
        rss_kib()
    );
    assert_eq!(broker.stats().slow_clients, 0);
    assert!(rss_kib() < 30 * 1024, "RSS {} KiB", rss_kib());
    broker.shutdown().await;
}
