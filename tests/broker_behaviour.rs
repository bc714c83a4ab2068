//! The embedded broker over real sockets: what no client tool can show.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fieldgate::broker::{
    Acl, BrokerError, BrokerStats, Config, EmbeddedBroker, Limits, Listener, LocalBroker, MemoryRetained, Publication,
    Qos, Retain, RetainedChange, RetainedStore, RetainedStoreError,
};
use fieldgate::platform::clock::SystemClock;
use fieldgate::security::pki::BelievedTime;
use fieldgate::security::{ClientCertificates, ClientTls, ClientTlsFiles, ServerTls, ServerTlsFiles};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;

/// The time of this machine.
fn believed() -> BelievedTime {
    BelievedTime::new(SystemClock::shared(), 0)
}

const SOON: Duration = Duration::from_secs(10);

async fn start(limits: Limits, retained: impl RetainedStore) -> (EmbeddedBroker, SocketAddr) {
    let listener = Listener::tcp("127.0.0.1:0".parse().unwrap());
    let config = Config::new(vec![listener], vec![], Acl::default(), limits).unwrap();
    let broker = EmbeddedBroker::start(config, retained, SystemClock::shared()).await.unwrap();
    let address = broker.addresses()[0];
    (broker, address)
}

fn publication(topic: &str, payload: impl Into<Bytes>, retain: Retain) -> Publication {
    Publication { topic: topic.into(), payload: payload.into(), qos: Qos::AtLeastOnce, retain }
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    assert!(body.len() < 128);
    [&[first, body.len() as u8], body].concat()
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u16).to_be_bytes(), text.as_bytes()].concat()
}

fn connect_packet(id: &str) -> Vec<u8> {
    packet(0x10, &[&b"\0\x04MQTT\x04\x02\0\0"[..], &text(id)].concat())
}

/// A client that has connected and subscribed to `filter` at QoS 0.
async fn subscriber(address: SocketAddr, id: &str, filter: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // CONNECT and SUBSCRIBE in one write: a client need not wait for its CONNACK.
    let subscribe = packet(0x82, &[&[0, 1], &text(filter)[..], &[0]].concat());
    stream.write_all(&[connect_packet(id), subscribe].concat()).await.unwrap();
    let mut acks = [0; 9];
    timeout(SOON, stream.read_exact(&mut acks)).await.unwrap().unwrap();
    assert_eq!(acks, [0x20, 2, 0, 0, 0x90, 3, 0, 1, 0]);
    stream
}

async fn still_serves(broker: &EmbeddedBroker, address: SocketAddr) {
    let mut client = subscriber(address, "after", "after").await;
    broker.publish(vec![publication("after", "x", Retain::No)]).await.unwrap();
    let mut got = [0; 10];
    timeout(SOON, client.read_exact(&mut got)).await.unwrap().unwrap();
    assert_eq!(&got, b"\x30\x08\0\x05afterx");
}

async fn until(broker: &EmbeddedBroker, what: &str, holds: impl Fn(&BrokerStats) -> bool) {
    for _ in 0..1000 {
        if holds(&broker.stats()) {
            return;
        }
        sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}: {:?}", broker.stats());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn storms_of_random_packets_do_not_stop_it() {
    let (broker, address) = start(Limits::default(), MemoryRetained::default()).await;
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    // 15,000 and more take some seconds: FIELDGATE_STORM=15000
    let rounds = std::env::var("FIELDGATE_STORM").map_or(1500, |text| text.parse().unwrap());
    for round in 0..rounds {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let mut bytes = if round % 3 == 0 { Vec::new() } else { connect_packet(&format!("r{}", round % 7)) };
        for _ in 0..random.random_range(1..8) {
            let body: Vec<u8> = (0..random.random_range(0..40)).map(|_| random.random()).collect();
            let first = if random.random() {
                random.random()
            } else {
                *[0x30, 0x32, 0x34, 0x82, 0xa2, 0x40, 0x50, 0x62, 0x70, 0xc0].get(random.random_range(0..10)).unwrap()
            };
            let well_formed = match first {
                0x30 => [&text("a/b")[..], &body].concat(),
                0x32 | 0x34 => [&text("a/c")[..], &[0, 3], &body].concat(),
                0x82 => [&[0, 1], &text("#")[..], &[2]].concat(),
                _ => body.clone(),
            };
            bytes.extend(packet(first, if random.random() { &well_formed } else { &body }));
        }
        if random.random_bool(0.3) {
            let at = random.random_range(0..bytes.len());
            bytes[at] ^= 1 << random.random_range(0..8);
        }
        let _ = stream.write_all(&bytes).await;
        if random.random_bool(0.2) {
            let _ = timeout(Duration::from_millis(5), stream.read(&mut [0; 100])).await;
        }
    }
    until(&broker, "all connections end", |s| s.clients == 0).await;
    assert!(broker.stats().protocol_errors > 100);
    still_serves(&broker, address).await;
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retained_messages_survive_a_restart_and_fast_ones_are_written_at_stop_only() {
    let store = MemoryRetained::default();
    let (broker, _) = start(Limits::default(), store.clone()).await;
    let messages = vec![publication("slow", "kept", Retain::Persisted), publication("fast", "last", Retain::Snapshot)];
    broker.publish(messages).await.unwrap();
    for _ in 0..500 {
        if !store.is_empty() {
            break;
        }
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(store.len(), 1, "within a second the slow one only");
    broker.shutdown().await;
    assert_eq!(store.len(), 2);
    let (broker, address) = start(Limits::default(), store).await;
    assert_eq!(broker.stats().retained, 2);
    let mut client = subscriber(address, "c", "slow").await;
    let mut got = [0; 12];
    timeout(SOON, client.read_exact(&mut got)).await.unwrap().unwrap();
    assert_eq!(&got, b"\x31\x0a\0\x04slowkept");
    broker.shutdown().await;
}

/// A store whose first writes fail.
#[derive(Clone)]
struct Flaky(MemoryRetained, Arc<std::sync::atomic::AtomicU32>);

impl RetainedStore for Flaky {
    async fn load(&self) -> Result<Vec<(String, Bytes)>, RetainedStoreError> {
        self.0.load().await
    }
    async fn write(&self, changes: Vec<RetainedChange>) -> Result<(), RetainedStoreError> {
        if self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < 2 {
            return Err(RetainedStoreError { act: "written", source: "disk full".into() });
        }
        self.0.write(changes).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_write_is_repeated() {
    let store = MemoryRetained::default();
    let (broker, _) = start(Limits::default(), Flaky(store.clone(), Arc::default())).await;
    broker.publish(vec![publication("a", "1", Retain::Persisted)]).await.unwrap();
    for _ in 0..1000 {
        if !store.is_empty() {
            break;
        }
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(store.len(), 1);
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_that_does_not_read_is_disconnected_and_the_others_get_everything() {
    let limits = Limits { patience: Duration::from_millis(300), queue_bytes: 200_000, ..Limits::default() };
    let (broker, address) = start(limits, MemoryRetained::default()).await;
    let stuck = subscriber(address, "stuck", "t/#").await;
    let mut good = subscriber(address, "good", "t/#").await;
    let reader = tokio::spawn(async move {
        let mut total = 0;
        let mut buffer = vec![0; 65536];
        while total < 20_000 * 1008 {
            total += timeout(SOON, good.read(&mut buffer)).await.unwrap().unwrap();
        }
        (total, good)
    });
    // More than any socket buffer takes; the payload makes each packet 1,008 bytes.
    for i in 0..200 {
        let batch = (0..100).map(|_| publication("t/x", vec![i as u8; 1000], Retain::No)).collect();
        broker.publish(batch).await.unwrap();
    }
    let (total, _good) = reader.await.unwrap();
    assert_eq!(total, 20_000 * 1008, "the good one lost nothing");
    let stats = broker.stats();
    assert_eq!((stats.slow_clients, stats.clients), (1, 1), "{stats:?}");
    assert!(stats.dropped > 0, "what the slow one did not get is counted");
    drop(stuck);
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_connections_are_refused_and_places_become_free() {
    let limits = Limits { connections: 3, ..Limits::default() };
    let (broker, address) = start(limits, MemoryRetained::default()).await;
    let three: Vec<TcpStream> = {
        let mut all = Vec::new();
        for i in 0..3 {
            all.push(subscriber(address, &format!("c{i}"), "t").await);
        }
        all
    };
    let mut fourth = TcpStream::connect(address).await.unwrap();
    let _ = fourth.write_all(&connect_packet("c4")).await;
    assert!(matches!(timeout(SOON, fourth.read(&mut [0; 4])).await.unwrap(), Ok(0) | Err(_)));
    assert_eq!(broker.stats().refused_connections, 1);
    drop(three);
    until(&broker, "places are free", |s| s.clients == 0).await;
    still_serves(&broker, address).await;
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_delivers_what_waits_and_frees_the_port() {
    let (broker, address) = start(Limits::default(), MemoryRetained::default()).await;
    let mut client = subscriber(address, "c", "status").await;
    let messages = (0..3000).map(|_| publication("status", "offline", Retain::Snapshot)).collect();
    broker.publish(messages).await.unwrap();
    let handle = broker.clone();
    timeout(Duration::from_secs(5), broker.shutdown()).await.unwrap();
    let mut all = Vec::new();
    timeout(SOON, client.read_to_end(&mut all)).await.unwrap().unwrap();
    assert_eq!(all.len(), 3000 * 17);
    assert!(handle.publish(vec![publication("x", "", Retain::No)]).await.is_err());
    assert!(handle.subscribe(vec!["#".into()]).is_err());
    std::net::TcpListener::bind(address).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_handle_dropped_stops_it() {
    let (broker, address) = start(Limits::default(), MemoryRetained::default()).await;
    let mut client = subscriber(address, "c", "t").await;
    drop(broker);
    assert_eq!(timeout(SOON, client.read(&mut [0; 8])).await.unwrap().unwrap(), 0);
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let (first, address) = start(Limits::default(), MemoryRetained::default()).await;
    let config = Config::loopback(address.port());
    let error = EmbeddedBroker::start(config, MemoryRetained::default(), SystemClock::shared()).await.unwrap_err();
    assert!(matches!(error, BrokerError::Listen { address: a, .. } if a == address), "{error}");
    first.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_probe_leaves_no_trace_and_keeps_the_broker_up() {
    let mut config = Config::loopback(0);
    config.probe_interval = Duration::from_millis(20);
    let broker = EmbeddedBroker::start(config, MemoryRetained::default(), SystemClock::shared()).await.unwrap();
    assert!(timeout(Duration::from_millis(500), broker.failed()).await.is_err(), "the broker failed");
    until(&broker, "no trace", |s| *s == BrokerStats::default()).await;
    broker.shutdown().await;
}

fn make_certificates(dir: &Path, names: &[&str]) {
    for name in names {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.is_ca = rcgen::IsCa::ExplicitNoCa;
        std::fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
        std::fs::write(dir.join(format!("{name}.pem")), params.self_signed(&key).unwrap().pem()).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_certificate_is_used_without_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    make_certificates(dir.path(), &["one", "two"]);
    let path = |name: &str| dir.path().join(name);
    let install = |name: &str| {
        std::fs::copy(path(&format!("{name}.key")), path("key.new")).unwrap();
        std::fs::copy(path(&format!("{name}.pem")), path("pem.new")).unwrap();
        std::fs::rename(path("key.new"), path("server.key")).unwrap();
        std::fs::rename(path("pem.new"), path("server.pem")).unwrap();
    };
    install("one");
    let files = ServerTlsFiles {
        certificate: path("server.pem"),
        key: path("server.key"),
        client_ca: None,
        client_certificates: ClientCertificates::Optional,
        revocation_lists: vec![],
    };
    let tls = ServerTls::load_every(files, &believed(), Duration::from_millis(20)).unwrap();
    let listener = Listener::tls("127.0.0.1:0".parse().unwrap(), tls);
    let config = Config::new(vec![listener], vec![], Acl::default(), Limits::default()).unwrap();
    let broker = EmbeddedBroker::start(config, MemoryRetained::default(), SystemClock::shared()).await.unwrap();
    let address = broker.addresses()[0];
    let works = async |trusted: &str| {
        let files =
            ClientTlsFiles { ca: path(trusted), certificate: None, key: None, server_name: Some("localhost".into()) };
        let tls = ClientTls::load(files, &believed()).unwrap();
        let stream = TcpStream::connect(address).await.unwrap();
        let Ok(mut stream) = TlsConnector::from(tls.current()).connect(tls.name_for("ignored").unwrap(), stream).await
        else {
            return false;
        };
        stream.write_all(&connect_packet("t")).await.unwrap();
        let mut ack = [0; 4];
        stream.read_exact(&mut ack).await.is_ok() && ack == [0x20, 2, 0, 0]
    };
    assert!(works("one.pem").await && !works("two.pem").await);
    install("two");
    let mut renewed = false;
    for _ in 0..500 {
        renewed = works("two.pem").await;
        if renewed {
            break;
        }
        sleep(Duration::from_millis(20)).await;
    }
    assert!(renewed && !works("one.pem").await);
    std::fs::write(path("server.pem"), "broken").unwrap();
    sleep(Duration::from_millis(100)).await;
    assert!(works("two.pem").await, "a broken file leaves the old certificate in force");
    broker.shutdown().await;
}
