//! Uplinks against a real mosquitto.
#![allow(clippy::unwrap_used, reason = "a test may stop at what it did not expect")]

use std::collections::BTreeMap;
use std::time::Duration;

use fieldgate::contract::{ContractMessage, Encoding, v1};
use fieldgate::model::{Lane, RecordKind};
use fieldgate::northbound::*;
use fieldgate_simulators::proxy::{CutKind, Flow};
use rumqttc::QoS;
use tokio::time::timeout;

use self::observer::Observer;
use self::source::FakeStore;
use self::uplink::*;

#[path = "northbound_support/context.rs"]
mod context;
#[path = "northbound_support/observer.rs"]
mod observer;
#[path = "northbound_support/source.rs"]
mod source;
mod support;
#[path = "northbound_support/uplink.rs"]
mod uplink;

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
        let broker = open_broker();
        let mut observer = Observer::start(broker.port(), "plant/gw/#").await;
        let mut config = config(&[broker.port()]);
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
    let broker = open_broker();
    let proxy = proxy_to(broker.port()).await;
    let mut observer = Observer::start(broker.port(), "plant/gw/status").await;
    let mut up = start(config(&[proxy.address().port()]), &FakeStore::default());
    assert_eq!(state(&observer.next_on("/status").await), v1::status::State::Online);
    proxy.cut(CutKind::Fin);
    assert_eq!(state(&observer.next_on("/status").await), v1::status::State::Offline);
    assert_eq!(state(&observer.next_on("/status").await), v1::status::State::Online);
    up.until("connected twice", |h| h.connections == 2).await;
    assert_eq!(up.notice("uplink-disconnected").await.severity, Severity::Warning);
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
        let broker = open_broker();
        let proxy = proxy_to(broker.port()).await;
        let mut observer = Observer::start(broker.port(), "plant/gw/devices/#").await;
        let mut config = in_order(config(&[proxy.address().port()]));
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
                proxy.cut(CutKind::Fin);
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
    let mut broker = open_broker();
    let mut observer = Observer::start(broker.port(), "plant/gw/devices/#").await;
    let store = FakeStore::default();
    let mut up = start(in_order(config(&[broker.port()])), &store);
    up.connected().await;
    let producing = tokio::spawn(produce(store.clone(), each));
    let mut arrived = Arrived::default();
    let restarting = async {
        store.wait(|s| s.confirmed() >= 1_000).await;
        tokio::task::block_in_place(|| broker.stop());
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
    let mut broker = open_broker();
    let store = FakeStore::default();
    let mut config = in_order(config(&[broker.port()]));
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
    let mut observer = Observer::start(broker.port(), "plant/gw/devices/#").await;
    let mut arrived = Arrived::default();
    arrived.collect(&mut observer, DEVICES, each).await;
    arrived.assert_ordered();
    up.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn live_data_do_not_wait_for_the_backlog() {
    let (old, live) = (20_000usize, 100usize);
    let broker = open_broker();
    let mut observer = Observer::start(broker.port(), "plant/gw/devices/#").await;
    let store = FakeStore::default();
    for n in 0..old {
        store.append_value("old", n as f64);
    }
    let mut config = config(&[broker.port()]);
    config.encoding = Encoding::Protobuf;
    let mut up = start(config, &store);
    // What is stored before the session has begun belongs to the backlog.
    up.until("sending", |h| h.confirmed > 0).await;
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
        let broker = open_broker();
        let proxy = proxy_to(broker.port()).await;
        let mut config = config(&[proxy.address().port(), broker.port()]);
        uplink(&mut config).version = version;
        let store = FakeStore::default();
        let mut up = start(config, &store);
        up.connected().await;
        proxy.change(|faults| faults.hold = true);
        let began = std::time::Instant::now();
        store.append_value("pump", 1.0);
        up.until("found dead", |h| !h.connected).await;
        let found = began.elapsed();
        assert!(found <= Duration::from_millis(8_000), "{found:?}");
        assert!(up.health.borrow().reason.contains("silent"), "{:?}", *up.health.borrow());
        timeout(LONG, store.all_confirmed()).await.unwrap();
        assert!(up.health.borrow().server.ends_with(&broker.port().to_string()));
        up.end().await;
    }
}

#[tokio::test]
async fn one_byte_slices_and_delays_lose_nothing() {
    let broker = open_broker();
    let proxy = proxy_to(broker.port()).await;
    let mut observer = Observer::start(broker.port(), "plant/gw/devices/#").await;
    let store = FakeStore::default();
    let slices = Flow { slice: Some(1), ..Flow::default() };
    let delay = Flow { latency: Duration::from_millis(100), ..Flow::default() };
    for flow in [slices, delay] {
        proxy.change(|faults| (faults.up, faults.down) = (flow, flow));
        let up = start(in_order(config(&[proxy.address().port()])), &store);
        // A byte takes a millisecond: what is on its way is not to take longer than the keep-alive.
        produce(store.clone(), 10).await;
        let mut arrived = Arrived::default();
        arrived.collect(&mut observer, DEVICES, 10).await;
        arrived.assert_ordered();
        up.end().await;
    }
}

#[tokio::test]
async fn commands_arrive_and_are_acknowledged_only_when_stored() {
    for version in both_versions() {
        let broker = open_broker();
        let proxy = proxy_to(broker.port()).await;
        let mut observer = Observer::start(broker.port(), "plant/gw/#").await;
        let mut config = config(&[proxy.address().port()]);
        uplink(&mut config).version = version;
        let mut up = start(config, &FakeStore::default());
        // The status goes out behind the subscription.
        observer.next_on("/status").await;
        let topic = "plant/gw/devices/pump/command";
        let command = |id: &str| format!(r#"{{"correlationId":"{id}","writes":[{{"point":"p","value":1}}]}}"#);
        observer.client.publish(topic, QoS::AtLeastOnce, false, command("c1")).await.unwrap();
        let (id, request) = up.request().await;
        assert_eq!((id.as_str(), request.origin.actor().as_str()), ("c1", "mqtt:site"));
        // Not stored: the connection breaks, the broker delivers it again.
        drop(request);
        proxy.cut(CutKind::Fin);
        let (id, request) = up.request().await;
        assert_eq!(id, "c1");
        request.receipt.accept();
        // Stored: it does not come again, only the one after it that was not.
        observer.client.publish(topic, QoS::AtLeastOnce, false, command("c2")).await.unwrap();
        assert_eq!(up.request().await.0, "c2");
        proxy.cut(CutKind::Fin);
        assert_eq!(up.request().await.0, "c2");
        up.end().await;

        // A retained command is refused by a session that finds it.
        observer.client.publish(topic, QoS::AtLeastOnce, true, command("c3")).await.unwrap();
        while observer.next_on("pump/command").await.payload != command("c3") {}
        let mut config = self::config(&[broker.port()]);
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
    let broker = open_broker();
    let mut observer = Observer::start(broker.port(), "plant/gw/#").await;
    let mut config = config(&[broker.port()]);
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
