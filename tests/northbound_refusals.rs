//! What an uplink does when a broker refuses: connections, messages, certificates. Against a real mosquitto.
#![allow(clippy::unwrap_used, reason = "a test may stop at what it did not expect")]

use std::sync::Arc;

use fieldgate::contract::{ContractMessage, Encoding, v1};
use fieldgate::model::{Lane, RecordKind};
use fieldgate::northbound::*;
use tokio::time::timeout;

use self::certs::Authority;
use self::observer::Observer;
use self::source::{FakeStore, telemetry_payload};
use self::support::Mosquitto;
use self::uplink::*;

#[path = "northbound_support/certs.rs"]
mod certs;
#[path = "northbound_support/context.rs"]
mod context;
#[path = "northbound_support/observer.rs"]
mod observer;
#[path = "northbound_support/source.rs"]
mod source;
mod support;
#[path = "northbound_support/uplink.rs"]
mod uplink;

#[tokio::test]
async fn a_wrong_password_is_told_in_words() {
    let broker = Mosquitto::with_files("allow_anonymous false\npassword_file {dir}/users", &[("users", "")]);
    for version in both_versions() {
        let mut config = config(&[broker.port()]);
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
    let broker = open_broker();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut up = start(config(&[free, broker.port()]), &FakeStore::default());
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
        let broker = open_broker();
        let mut observer = Observer::start(broker.port(), "plant/gw/#").await;
        let mut config = config(&[broker.port()]);
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
    let broker = Mosquitto::with_config(&format!("{ENDLESS}allow_anonymous true\nmax_packet_size 2000"));
    let mut observer = Observer::start(broker.port(), "plant/gw/#").await;
    let store = FakeStore::default();
    let points: Vec<(String, f64)> = (0..200).map(|n| (format!("point-{n}"), 1.0)).collect();
    let points: Vec<(&str, f64)> = points.iter().map(|(n, v)| (n.as_str(), *v)).collect();
    store.append_value("pump", 1.0);
    let poison = store.append(Lane::Bulk, RecordKind::Telemetry, telemetry_payload("pump", &points));
    for n in 0..300 {
        store.append_value("pump", f64::from(n));
    }
    let mut up = start(in_order(config(&[broker.port()])), &store);
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
    let broker = Mosquitto::with_files("allow_anonymous true\nacl_file {dir}/acl", &[("acl", acl)]);
    let mut observer = Observer::start(broker.port(), "plant/gw/#").await;
    let mut config = config(&[broker.port()]);
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
    let broker = Mosquitto::with_files(lines, &files);
    for version in both_versions() {
        let store = FakeStore::default();
        store.append_value("pump", 1.0);
        let up = start_secured(version, broker.port(), "localhost", ours.client(Some(&client)), &store);
        timeout(LONG, store.all_confirmed()).await.unwrap();
        up.end().await;

        for (name, client, told) in [
            ("localhost", theirs.client(None), "add its CA"),
            ("127.0.0.1", ours.client(Some(&client)), "another name"),
            ("localhost", ours.client(None), "our certificate"),
        ] {
            let mut up = start_secured(version, broker.port(), name, client, &FakeStore::default());
            let health = up.until(told, |h| h.reason.contains(told)).await;
            assert!(!health.connected);
            up.end().await;
        }
    }
    let mut config = config(&[broker.port()]);
    uplink(&mut config).servers = vec![format!("mqtts://localhost:{}", broker.port()).parse().unwrap()];
    let mut up = start(config, &FakeStore::default());
    up.until("without TLS configuration", |h| h.reason.contains("no TLS configuration: this test has none")).await;
}
