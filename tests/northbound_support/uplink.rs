//! An uplink session under test, and where it connects to.
#![allow(dead_code, reason = "every test binary uses its own part")]

use std::sync::Arc;
use std::time::Duration;

use fieldgate::contract::Encoding;
use fieldgate::northbound::*;
use fieldgate::platform::clock::ManualClock;
use fieldgate_simulators::proxy::Proxy;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::context::{Surroundings, context};
use crate::source::{FakeSource, FakeStore};
use crate::support::Mosquitto;

/// Longest wait for anything that must happen; generous, for machines under load.
pub const LONG: Duration = Duration::from_secs(60);

/// A mosquitto that is open to everybody, queues without end and keeps sessions on disk at a regular end.
pub fn open_broker() -> Mosquitto {
    Mosquitto::with_config(&format!("{ENDLESS}allow_anonymous true\npersistence true\npersistence_location {{dir}}/\n"))
}

/// No queue of the broker is to be the one that loses.
pub const ENDLESS: &str = "max_queued_messages 0\nmax_inflight_messages 0\n";

/// A proxy in front of a port of this machine.
pub async fn proxy_to(port: u16) -> Proxy {
    let local = |port| std::net::SocketAddr::from(([127, 0, 0, 1], port));
    Proxy::start(local(0), local(port)).await.unwrap()
}

pub struct Uplink {
    pub store: FakeStore,
    pub board: StateBoard,
    pub requests: mpsc::Receiver<Request>,
    pub notices: mpsc::Receiver<Notice>,
    pub health: watch::Receiver<ConsumerHealth>,
    pub clock: Arc<ManualClock>,
    pub stop: CancellationToken,
    pub running: tokio::task::JoinHandle<FakeSource>,
}

pub fn no_tls(_: &str) -> Result<Arc<rustls::ClientConfig>, String> {
    Err("this test has none".to_owned())
}

pub fn config(ports: &[u16]) -> ConsumerConfig {
    let servers = ports.iter().map(|p| format!("mqtt://127.0.0.1:{p}").parse().unwrap()).collect();
    let mut config = ConsumerConfig::uplink("site", "plant/gw", servers);
    uplink(&mut config).keep_alive = Duration::from_secs(5);
    config
}

pub fn uplink(config: &mut ConsumerConfig) -> &mut UplinkConfig {
    match &mut config.kind {
        ConsumerKind::Uplink(uplink) => uplink,
        ConsumerKind::Local => unreachable!(),
    }
}

pub fn start(config: ConsumerConfig, store: &FakeStore) -> Uplink {
    start_tls(config, store, Arc::new(no_tls))
}

pub fn start_tls(config: ConsumerConfig, store: &FakeStore, tls: Arc<dyn TlsSource>) -> Uplink {
    let (context, Surroundings { board, requests, notices, clock }) = context(4);
    let (consumer, health) = Consumer::new(config, store.source(), context, Usage::default()).unwrap();
    let stop = CancellationToken::new();
    let running = tokio::spawn(consumer.run_uplink(tls, stop.clone()));
    Uplink { store: store.clone(), board, requests, notices, health, clock, stop, running }
}

impl Uplink {
    pub async fn until(&mut self, what: &str, is: impl FnMut(&ConsumerHealth) -> bool) -> ConsumerHealth {
        if let Ok(health) = timeout(LONG, self.health.wait_for(is)).await {
            return health.expect("the session runs").clone();
        }
        panic!("not {what} in time: {:?}", *self.health.borrow());
    }

    pub async fn connected(&mut self) {
        self.until("connected", |h| h.connected).await;
    }

    pub async fn notice(&mut self, kind: &str) -> Notice {
        loop {
            let notice =
                timeout(LONG, self.notices.recv()).await.unwrap_or_else(|_| panic!("no notice {kind}")).unwrap();
            if notice.kind == kind {
                return notice;
            }
        }
    }

    /// The next request and its correlation id.
    pub async fn request(&mut self) -> (String, Request) {
        let request = timeout(LONG, self.requests.recv()).await.expect("a request in time").unwrap();
        let RequestKind::Command { command, .. } = &request.kind else { panic!("a command") };
        (command.correlation_id.clone(), request)
    }

    pub async fn end(self) -> FakeSource {
        self.stop.cancel();
        timeout(Duration::from_secs(5), self.running).await.expect("stops in time").unwrap()
    }
}

pub fn both_versions() -> [Version; 2] {
    [Version::V311, Version::V5]
}

pub fn in_order(mut config: ConsumerConfig) -> ConsumerConfig {
    config.replay.order = fieldgate::model::Order::InOrder;
    config.encoding = Encoding::Protobuf;
    config
}
