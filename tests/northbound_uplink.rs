//! Uplinks against a real mosquitto.
#![allow(clippy::unwrap_used, reason = "a test may stop at what it did not expect")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fieldgate::contract::{ContractMessage, Encoding, v1};
use fieldgate::model::{Lane, RecordKind};
use fieldgate::northbound::*;
use fieldgate::platform::clock::ManualClock;
use rumqttc::QoS;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use self::certs::Authority;
use self::mosquitto::{Mosquitto, Observer};
use self::proxy::{Mode, Proxy};
use self::source::{FakeSource, FakeStore, telemetry_payload};

#[path = "northbound_support/certs.rs"]
mod certs;
#[path = "northbound_support/mosquitto.rs"]
mod mosquitto;
#[path = "northbound_support/proxy.rs"]
mod proxy;
#[path = "northbound_support/source.rs"]
mod source;

const LONG: Duration = Duration::from_secs(60);

struct Uplink {
    store: FakeStore,
    board: StateBoard,
    requests: mpsc::Receiver<Request>,
    notices: mpsc::Receiver<Notice>,
    health: watch::Receiver<ConsumerHealth>,
    clock: Arc<ManualClock>,
    stop: CancellationToken,
    running: tokio::task::JoinHandle<FakeSource>,
}

fn no_tls(_: &str) -> Result<Arc<rustls::ClientConfig>, String> {
    Err("this test has none".to_owned())
}

fn config(ports: &[u16]) -> ConsumerConfig {
    let servers = ports.iter().map(|p| format!("mqtt://127.0.0.1:{p}").parse().unwrap()).collect();
    let mut config = ConsumerConfig::uplink("site", "plant/gw", servers);
    uplink(&mut config).keep_alive = Duration::from_secs(5);
    config
}

fn uplink(config: &mut ConsumerConfig) -> &mut UplinkConfig {
    match &mut config.kind {
        ConsumerKind::Uplink(uplink) => uplink,
        ConsumerKind::Local => unreachable!(),
    }
}

fn start(config: ConsumerConfig, store: &FakeStore) -> Uplink {
    start_tls(config, store, Arc::new(no_tls))
}

fn start_tls(config: ConsumerConfig, store: &FakeStore, tls: Arc<dyn TlsSource>) -> Uplink {
    let (requests_in, requests) = mpsc::channel(4);
    let (notices_in, notices) = mpsc::channel(64);
    let board = StateBoard::default();
    let clock = ManualClock::at(1_763_812_800_000);
    let context = Context {
        gateway: GatewayInfo { id: "gw".into(), version: "0".into(), epoch: 7 },
        board: board.clone(),
        directory: watch::channel(Arc::default()).1,
        requests: requests_in,
        notices: notices_in,
        settings: Arc::default(),
        clock: clock.clone(),
    };
    let (consumer, health) = Consumer::new(config, store.source(), context, Usage::default()).unwrap();
    let stop = CancellationToken::new();
    let running = tokio::spawn(consumer.run_uplink(tls, stop.clone()));
    Uplink { store: store.clone(), board, requests, notices, health, clock, stop, running }
}

impl Uplink {
    async fn until(&mut self, what: &str, is: impl FnMut(&ConsumerHealth) -> bool) -> ConsumerHealth {
        if let Ok(health) = timeout(LONG, self.health.wait_for(is)).await {
            return health.expect("the session runs").clone();
        }
        panic!("not {what} in time: {:?}", *self.health.borrow());
    }

    async fn connected(&mut self) {
        self.until("connected", |h| h.connected).await;
    }

    async fn notice(&mut self, kind: &str) -> Notice {
        loop {
            let notice =
                timeout(LONG, self.notices.recv()).await.unwrap_or_else(|_| panic!("no notice {kind}")).unwrap();
            if notice.kind == kind {
                return notice;
            }
        }
    }

    /// The next request and its correlation id.
    async fn request(&mut self) -> (String, Request) {
        let request = timeout(LONG, self.requests.recv()).await.expect("a request in time").unwrap();
        let RequestKind::Command { command, .. } = &request.kind else { panic!("a command") };
        (command.correlation_id.clone(), request)
    }

    async fn end(self) -> FakeSource {
        self.stop.cancel();
        timeout(Duration::from_secs(5), self.running).await.expect("stops in time").unwrap()
    }
}

fn both_versions() -> [Version; 2] {
    [Version::V311, Version::V5]
}

fn state(message: &rumqttc::Publish) -> v1::status::State {
    v1::Status::decode_as(Encoding::Json, &message.payload).unwrap().state()
}

/// What arrived: per device the values in order of arrival.
#[derive(Default)]
struct Arrived {
    values: BTreeMap<String, Vec<f64>>,
    messages: usize,
}

impl Arrived {
    /// Collects until every value 0..`each` of `devices` devices is there.
    async fn collect(&mut self, observer: &mut Observer, devices: usize, each: usize) {
        let mut missing = devices * each;
        let mut seen: BTreeMap<String, Vec<bool>> = BTreeMap::new();
        while missing > 0 {
            let message = timeout(LONG, observer.messages.recv())
                .await
                .unwrap_or_else(|_| panic!("{missing} of {} values never arrived", devices * each))
                .unwrap();
            if !message.topic.ends_with("/telemetry") {
                continue;
            }
            let batch = v1::Telemetry::decode_as(Encoding::Protobuf, &message.payload).unwrap();
            let Some(pbjson_types::value::Kind::NumberValue(value)) = batch.points[0].value.as_ref().unwrap().kind
            else {
                panic!()
            };
            let seen = seen.entry(batch.device.clone()).or_insert_with(|| vec![false; each]);
            if !std::mem::replace(&mut seen[value as usize], true) {
                missing -= 1;
            }
            self.values.entry(batch.device).or_default().push(value);
            self.messages += 1;
        }
    }

    /// First arrivals come in order per device. With live data first that holds within history and within live data;
    /// these tests run in order.
    fn assert_ordered(&self) {
        for (device, values) in &self.values {
            let mut highest = -1.0;
            for value in values {
                assert!(*value <= highest + 1.0, "{device}: {value} after {highest}");
                highest = f64::max(highest, *value);
            }
        }
    }
}

#[tokio::test]
async fn status_state_and_records_arrive_and_the_end_is_regular() {
    for version in both_versions() {
        let broker = Mosquitto::open();
        let mut observer = Observer::start(broker.port, "plant/gw/#").await;
        let mut config = config(&[broker.port]);
        uplink(&mut config).version = version;
        let mut up = start(config, &FakeStore::default());
        up.board.set("health", &v1::Health { uptime_seconds: 1, ..v1::Health::default() });
        assert_eq!(state(&observer.next_on("/status").await), v1::status::State::Online);
        observer.next_on("gw/health").await;
        up.store.append_value("pump", 1.0);
        observer.next_on("pump/telemetry").await;
        up.store.all_confirmed().await;
        let confirmed = up.until("confirmed", |h| h.confirmed == 1).await;
        assert_eq!((confirmed.connections, confirmed.reason.as_str()), (1, ""));
        up.end().await;
        assert_eq!(state(&observer.next_on("/status").await), v1::status::State::Offline);
    }
}

#[tokio::test]
async fn a_cut_publishes_the_will_and_the_session_comes_back() {
    let broker = Mosquitto::open();
    let proxy = Proxy::start(broker.port).await;
    let mut observer = Observer::start(broker.port, "plant/gw/status").await;
    let mut up = start(config(&[proxy.port]), &FakeStore::default());
    assert_eq!(state(&observer.next_on("/status").await), v1::status::State::Online);
    proxy.cut();
    assert_eq!(state(&observer.next_on("/status").await), v1::status::State::Offline);
    assert_eq!(state(&observer.next_on("/status").await), v1::status::State::Online);
    up.until("connected twice", |h| h.connections == 2).await;
    assert_eq!(up.notice("uplink-disconnected").await.severity, Severity::Warning);
}

fn in_order(mut config: ConsumerConfig) -> ConsumerConfig {
    config.replay.order = fieldgate::model::Order::InOrder;
    config.encoding = Encoding::Protobuf;
    config
}

const DEVICES: usize = 5;

/// Appends `each` values to each device, a little at a time so that cuts fall into the middle.
async fn produce(store: FakeStore, each: usize) {
    for n in 0..each {
        for device in 0..DEVICES {
            store.append_value(&format!("d{device}"), n as f64);
        }
        if n % 20 == 0 {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_thousand_records_survive_forced_drops() {
    for version in both_versions() {
        let each = 25_000 / DEVICES;
        let broker = Mosquitto::open();
        let proxy = Proxy::start(broker.port).await;
        let mut observer = Observer::start(broker.port, "plant/gw/devices/#").await;
        let mut config = in_order(config(&[proxy.port]));
        uplink(&mut config).version = version;
        let window = usize::from(config.window);
        let store = FakeStore::default();
        let mut up = start(config, &store);
        up.connected().await;
        let producing = tokio::spawn(produce(store.clone(), each));
        let total = (DEVICES * each) as u64;
        let cutting = async {
            for part in 1..=3 {
                store.wait(|s| s.confirmed() >= total * part / 5).await;
                proxy.cut();
            }
        };
        let mut arrived = Arrived::default();
        tokio::join!(cutting, arrived.collect(&mut observer, DEVICES, each));
        producing.await.unwrap();
        timeout(LONG, store.all_confirmed()).await.unwrap();
        arrived.assert_ordered();
        let duplicates = arrived.messages - DEVICES * each;
        assert!(duplicates <= 3 * window, "{duplicates} duplicates");
        assert!(store.sessions() >= 4);
        up.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_restarted_loses_nothing() {
    let each = 1_000;
    let mut broker = Mosquitto::open();
    let mut observer = Observer::start(broker.port, "plant/gw/devices/#").await;
    let store = FakeStore::default();
    let mut up = start(in_order(config(&[broker.port])), &store);
    up.connected().await;
    let producing = tokio::spawn(produce(store.clone(), each));
    let mut arrived = Arrived::default();
    let restarting = async {
        store.wait(|s| s.confirmed() >= 1_000).await;
        tokio::task::block_in_place(|| broker.terminate());
        tokio::task::block_in_place(|| broker.restart());
    };
    tokio::join!(restarting, arrived.collect(&mut observer, DEVICES, each));
    producing.await.unwrap();
    timeout(LONG, store.all_confirmed()).await.unwrap();
    up.end().await;
}

/// mosquitto confirms before it writes: when the plug is pulled it has forgotten what it confirmed. The re-send window
/// brings it back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_confirms_and_forgets_is_survived_inside_the_resend_window() {
    let each = 400;
    let mut broker = Mosquitto::open();
    let store = FakeStore::default();
    let mut config = in_order(config(&[broker.port]));
    config.resend_window = LONG;
    let mut up = start(config, &store);
    up.connected().await;
    produce(store.clone(), each).await;
    let all = (DEVICES * each) as u64;
    up.until("confirmed", |h| h.confirmed == all).await;
    assert_eq!(store.pending(), all, "confirmations are held back");
    // Nobody had subscribed: the broker confirmed everything and kept nothing.
    broker.kill();
    broker.restart();
    let mut observer = Observer::start(broker.port, "plant/gw/devices/#").await;
    let mut arrived = Arrived::default();
    arrived.collect(&mut observer, DEVICES, each).await;
    arrived.assert_ordered();
    up.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn live_data_do_not_wait_for_the_backlog() {
    let (old, live) = (20_000usize, 100usize);
    let broker = Mosquitto::open();
    let mut observer = Observer::start(broker.port, "plant/gw/devices/#").await;
    let store = FakeStore::default();
    for n in 0..old {
        store.append_value("old", n as f64);
    }
    let mut config = config(&[broker.port]);
    config.encoding = Encoding::Protobuf;
    let mut up = start(config, &store);
    up.connected().await;
    let producing = tokio::spawn({
        let store = store.clone();
        async move {
            let mut sent = Vec::new();
            let mut tick = tokio::time::interval(Duration::from_millis(10));
            for n in 0..live {
                tick.tick().await;
                sent.push(std::time::Instant::now());
                store.append_value("live", n as f64);
            }
            sent
        }
    });
    let (mut arrived, mut last_old, mut seen_old) = (Vec::new(), -1.0, 0);
    while arrived.len() < live || seen_old < old {
        let message = timeout(LONG, observer.messages.recv()).await.expect("everything arrives").unwrap();
        let batch = v1::Telemetry::decode_as(Encoding::Protobuf, &message.payload).unwrap();
        let Some(pbjson_types::value::Kind::NumberValue(value)) = batch.points[0].value.as_ref().unwrap().kind else {
            panic!()
        };
        if batch.device == "live" {
            assert!(!batch.historical);
            arrived.push(std::time::Instant::now());
        } else {
            assert!(batch.historical && value == last_old + 1.0, "{value} after {last_old}");
            last_old = value;
            seen_old += 1;
        }
    }
    let sent = producing.await.unwrap();
    let worst = sent.iter().zip(&arrived).map(|(s, a)| a.saturating_duration_since(*s)).max().unwrap();
    assert!(worst < Duration::from_secs(2), "{worst:?}");
    up.until("drained", |h| h.replay_progress.is_none() && h.confirmed == (old + live) as u64).await;
    up.end().await;
}

#[tokio::test]
async fn a_half_open_connection_is_found_and_the_next_server_taken() {
    for version in both_versions() {
        let broker = Mosquitto::open();
        let proxy = Proxy::start(broker.port).await;
        let mut config = config(&[proxy.port, broker.port]);
        uplink(&mut config).version = version;
        let store = FakeStore::default();
        let mut up = start(config, &store);
        up.connected().await;
        proxy.set(Mode::Swallow);
        let began = std::time::Instant::now();
        store.append_value("pump", 1.0);
        up.until("found dead", |h| !h.connected).await;
        let found = began.elapsed();
        assert!(found <= Duration::from_millis(8_000), "{found:?}");
        assert!(up.health.borrow().reason.contains("silent"), "{:?}", *up.health.borrow());
        timeout(LONG, store.all_confirmed()).await.unwrap();
        assert!(up.health.borrow().server.ends_with(&broker.port.to_string()));
        up.end().await;
    }
}

#[tokio::test]
async fn one_byte_slices_and_delays_lose_nothing() {
    let broker = Mosquitto::open();
    let proxy = Proxy::start(broker.port).await;
    let mut observer = Observer::start(broker.port, "plant/gw/devices/#").await;
    let store = FakeStore::default();
    for mode in [Mode::Slices, Mode::Delay(Duration::from_millis(100))] {
        proxy.set(mode);
        let up = start(in_order(config(&[proxy.port])), &store);
        produce(store.clone(), 40).await;
        let mut arrived = Arrived::default();
        arrived.collect(&mut observer, DEVICES, 40).await;
        arrived.assert_ordered();
        up.end().await;
    }
}

#[tokio::test]
async fn a_wrong_password_is_told_in_words() {
    let broker = Mosquitto::start("allow_anonymous false\npassword_file {dir}/users", &[("users", "")]);
    for version in both_versions() {
        let mut config = config(&[broker.port]);
        let uplink = uplink(&mut config);
        uplink.version = version;
        uplink.user = Some("gateway".into());
        uplink.password = Some(fieldgate::security::Secret::new("wrong"));
        let mut up = start(config, &FakeStore::default());
        let health = up.until("refused", |h| h.reason.contains("authorised") || h.reason.contains("password")).await;
        assert!(!health.connected);
        assert_eq!(up.notice("uplink-disconnected").await.severity, Severity::Alarm);
        up.end().await;
    }
}

#[tokio::test]
async fn nobody_there_is_told_in_words_and_the_next_server_is_taken() {
    let broker = Mosquitto::open();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut up = start(config(&[free, broker.port]), &FakeStore::default());
    up.connected().await;
    let notice = up.notice("uplink-disconnected").await;
    assert!(notice.message.contains("nobody listens there"), "{notice:?}");
    up.end().await;

    let mut config = config(&[1]);
    uplink(&mut config).servers = vec!["mqtt://no-such-host.invalid".parse().unwrap()];
    let mut up = start(config, &FakeStore::default());
    up.until("unresolved", |h| h.reason.contains("cannot be resolved")).await;
}

#[tokio::test]
async fn a_message_that_is_too_large_is_reported_and_does_not_stop_the_rest() {
    for version in both_versions() {
        let broker = Mosquitto::open();
        let mut observer = Observer::start(broker.port, "plant/gw/#").await;
        let mut config = config(&[broker.port]);
        uplink(&mut config).version = version;
        uplink(&mut config).max_packet = 2048;
        let store = FakeStore::default();
        let mut up = start(config, &store);
        up.connected().await;
        let points: Vec<(String, f64)> = (0..200).map(|n| (format!("point-{n}"), 1.0)).collect();
        let points: Vec<(&str, f64)> = points.iter().map(|(n, v)| (n.as_str(), *v)).collect();
        let large = store.append(Lane::Bulk, RecordKind::Telemetry, telemetry_payload("pump", &points));
        store.append_value("pump", 1.0);
        let gap = v1::Gap::decode_as(Encoding::Json, &observer.next_on("/gaps").await.payload).unwrap();
        assert_eq!((gap.reason.as_str(), gap.from_seq, gap.records), ("message-too-large", large, 1));
        timeout(LONG, store.all_confirmed()).await.unwrap();
        assert_eq!(up.notice("record-undeliverable").await.severity, Severity::Alarm);
        assert_eq!(up.until("counted", |h| h.lost == 1).await.connections, 1);
        up.end().await;
    }
}

/// MQTT 3.1.1 cannot refuse one message: mosquitto closes the connection when a packet is too large for it.
#[tokio::test]
async fn a_message_that_makes_the_broker_disconnect_is_given_up_and_the_rest_flows() {
    let broker = Mosquitto::start("allow_anonymous true\nmax_packet_size 2000", &[]);
    let mut observer = Observer::start(broker.port, "plant/gw/#").await;
    let store = FakeStore::default();
    let points: Vec<(String, f64)> = (0..200).map(|n| (format!("point-{n}"), 1.0)).collect();
    let points: Vec<(&str, f64)> = points.iter().map(|(n, v)| (n.as_str(), *v)).collect();
    store.append_value("pump", 1.0);
    let poison = store.append(Lane::Bulk, RecordKind::Telemetry, telemetry_payload("pump", &points));
    for n in 0..300 {
        store.append_value("pump", f64::from(n));
    }
    let mut up = start(in_order(config(&[broker.port])), &store);
    timeout(LONG * 3, store.all_confirmed()).await.unwrap();
    let gap = v1::Gap::decode_as(Encoding::Protobuf, &observer.next_on("/gaps").await.payload).unwrap();
    assert_eq!((gap.reason.as_str(), gap.from_seq, gap.records), ("broker-disconnects", poison, 1));
    // Three that ended with the message alone on the wire, those before in which it was not alone, and the one that holds.
    let connections = up.until("counted", |h| h.lost == 1).await.connections;
    println!("{connections} connections");
    assert!((4..=12).contains(&connections), "{connections} connections");
    up.end().await;
}

#[tokio::test]
async fn an_mqtt5_refusal_of_one_topic_is_reported_and_does_not_loop() {
    let acl =
        "topic read #\ntopic write plant/gw/status\ntopic write plant/gw/gaps\ntopic write plant/gw/devices/good/#\n";
    let broker = Mosquitto::start("allow_anonymous true\nacl_file {dir}/acl", &[("acl", acl)]);
    let mut observer = Observer::start(broker.port, "plant/gw/#").await;
    let mut config = config(&[broker.port]);
    uplink(&mut config).version = Version::V5;
    let store = FakeStore::default();
    let mut up = start(config, &store);
    up.connected().await;
    store.append_value("bad", 1.0);
    let gap = v1::Gap::decode_as(Encoding::Json, &observer.next_on("/gaps").await.payload).unwrap();
    assert_eq!((gap.reason.as_str(), gap.from_seq), ("refused-by-broker", 1));
    store.append_value("good", 2.0);
    observer.next_on("good/telemetry").await;
    timeout(LONG, store.all_confirmed()).await.unwrap();
    assert!(up.notice("record-undeliverable").await.message.contains("not authorized"));
    // This mosquitto disconnects after a refusal; the gap arrives all the same, and there is no second refusal.
    assert!(up.until("counted", |h| h.lost == 1).await.connections <= 2);
    up.end().await;
}

#[tokio::test]
async fn commands_arrive_and_are_acknowledged_only_when_stored() {
    for version in both_versions() {
        let broker = Mosquitto::open();
        let proxy = Proxy::start(broker.port).await;
        let mut observer = Observer::start(broker.port, "plant/gw/devices/+/command/result").await;
        let mut config = config(&[proxy.port]);
        uplink(&mut config).version = version;
        let mut up = start(config, &FakeStore::default());
        up.connected().await;
        let topic = "plant/gw/devices/pump/command";
        let command = |id: &str| format!(r#"{{"correlationId":"{id}","writes":[{{"point":"p","value":1}}]}}"#);
        observer.client.publish(topic, QoS::AtLeastOnce, false, command("c1")).await.unwrap();
        let (id, request) = up.request().await;
        assert_eq!((id.as_str(), request.origin.actor().as_str()), ("c1", "mqtt:site"));
        // Not stored: the connection breaks, the broker delivers it again.
        drop(request);
        proxy.cut();
        let (id, request) = up.request().await;
        assert_eq!(id, "c1");
        request.receipt.accept();
        // Stored: it does not come again, only the one after it that was not.
        observer.client.publish(topic, QoS::AtLeastOnce, false, command("c2")).await.unwrap();
        assert_eq!(up.request().await.0, "c2");
        proxy.cut();
        assert_eq!(up.request().await.0, "c2");
        up.end().await;

        // A retained command is refused by a session that finds it.
        observer.client.publish(topic, QoS::AtLeastOnce, true, command("c3")).await.unwrap();
        let mut config = self::config(&[broker.port]);
        uplink(&mut config).version = version;
        uplink(&mut config).client_id = Some("another".into());
        let mut up = start(config, &FakeStore::default());
        let result = v1::CommandResult::decode_as(Encoding::Json, &observer.next_on("result").await.payload).unwrap();
        assert_eq!((result.correlation_id.as_str(), result.code.as_str()), ("c3", "retained"));
        up.until("counted", |h| h.requests_refused == 1).await;
        assert!(up.requests.try_recv().is_err());
        up.end().await;
    }
}

#[tokio::test]
async fn a_closed_window_keeps_the_link_shut_but_for_the_critical_lane() {
    let broker = Mosquitto::open();
    let mut observer = Observer::start(broker.port, "plant/gw/#").await;
    let mut config = config(&[broker.port]);
    // The clock of the test shows noon.
    config.link.windows = vec!["13:00-14:00".parse().unwrap()];
    config.link.critical_overrides = true;
    let store = FakeStore::default();
    store.append_value("pump", 1.0);
    let mut up = start(config, &store);
    up.until("shut", |h| h.reason.contains("window")).await;
    let event = v1::Event { kind: "alarm".into(), ..v1::Event::default() }.encode_as(Encoding::Protobuf);
    store.append(Lane::Critical, RecordKind::Event, event);
    observer.next_on("gw/events").await;
    store.wait(|s| s.confirmed() == 1).await;
    assert_eq!(store.pending(), 1, "telemetry waits for the window");
    up.until("shut again", |h| !h.connected && h.connections == 1).await;
    up.clock.advance(Duration::from_secs(3600));
    observer.next_on("pump/telemetry").await;
    timeout(LONG, store.all_confirmed()).await.unwrap();
    up.clock.advance(Duration::from_secs(3600));
    up.until("shut at the end", |h| !h.connected && h.reason.contains("window")).await;
    up.end().await;
}

/// A TLS uplink with this client configuration; `name` is the server's name in the address.
fn start_secured(
    version: Version,
    port: u16,
    name: &str,
    client: Arc<rustls::ClientConfig>,
    store: &FakeStore,
) -> Uplink {
    let mut config = config(&[port]);
    uplink(&mut config).version = version;
    uplink(&mut config).servers = vec![format!("mqtts://{name}:{port}").parse().unwrap()];
    start_tls(config, store, Arc::new(move |_: &str| Ok(client.clone())))
}

#[tokio::test]
async fn tls_verifies_the_server_and_shows_our_certificate() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let (server, client) = (ours.sign("localhost"), ours.sign("gateway-1"));
    let files = [("ca", ours.pem.as_str()), ("cert", server.cert.as_str()), ("key", server.key.as_str())];
    let lines = "cafile {dir}/ca\ncertfile {dir}/cert\nkeyfile {dir}/key\nrequire_certificate true\nuse_identity_as_username true";
    let broker = Mosquitto::start(lines, &files);
    for version in both_versions() {
        let store = FakeStore::default();
        store.append_value("pump", 1.0);
        let up = start_secured(version, broker.port, "localhost", ours.client(Some(&client)), &store);
        timeout(LONG, store.all_confirmed()).await.unwrap();
        up.end().await;

        for (name, client, told) in [
            ("localhost", theirs.client(None), "add its CA"),
            ("127.0.0.1", ours.client(Some(&client)), "another name"),
            ("localhost", ours.client(None), "our certificate"),
        ] {
            let mut up = start_secured(version, broker.port, name, client, &FakeStore::default());
            let health = up.until(told, |h| h.reason.contains(told)).await;
            assert!(!health.connected);
            up.end().await;
        }
    }
    let mut config = config(&[broker.port]);
    uplink(&mut config).servers = vec![format!("mqtts://localhost:{}", broker.port).parse().unwrap()];
    let mut up = start(config, &FakeStore::default());
    up.until("without TLS configuration", |h| h.reason.contains("no TLS configuration: this test has none")).await;
}
