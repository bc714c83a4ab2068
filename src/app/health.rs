//! The health message, and the same facts as measurements for OpenTelemetry.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::ingest::IngestStats;
use super::latest::{DeviceView, Latest};
use crate::broker::BrokerStats;
use crate::contract::{timestamp, topics, v1};
use crate::management::core::{Counters, Counts};
use crate::management::firmware::HealthReport;
use crate::model::Lane;
use crate::northbound::{ConsumerHealth, StateBoard};
use crate::platform::beat;
use crate::platform::clock::SharedClock;
use crate::platform::process;
use crate::southbound::DeviceState;
use crate::store::{LaneStats, Stats};
use crate::telemetry::Measurement;

use std::sync::atomic::Ordering::Relaxed;

/// How often the message is renewed while nothing happens.
const INTERVAL: Duration = Duration::from_secs(10);

/// Where the numbers come from. Cheap to clone.
#[derive(Clone)]
pub struct HealthDesk {
    clock: SharedClock,
    latest: Latest,
    ingest: Arc<IngestStats>,
    store: watch::Receiver<Stats>,
    broker: Arc<dyn Fn() -> Option<BrokerStats> + Send + Sync>,
    counters: Arc<Counters>,
    consumers: Arc<RwLock<Vec<watch::Receiver<ConsumerHealth>>>>,
    /// What an operator should know and no counter says, such as a reload that was refused.
    problems: Arc<RwLock<BTreeMap<&'static str, Vec<String>>>>,
}

impl std::fmt::Debug for HealthDesk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HealthDesk").finish_non_exhaustive()
    }
}

impl HealthDesk {
    /// A desk without consumers yet.
    pub fn new(
        clock: SharedClock,
        latest: Latest,
        ingest: Arc<IngestStats>,
        store: watch::Receiver<Stats>,
        broker: Arc<dyn Fn() -> Option<BrokerStats> + Send + Sync>,
        counters: Arc<Counters>,
    ) -> Self {
        Self { clock, latest, ingest, store, broker, counters, consumers: Arc::default(), problems: Arc::default() }
    }

    /// Replaces the consumers that are shown.
    pub fn set_consumers(&self, consumers: Vec<watch::Receiver<ConsumerHealth>>) {
        *self.consumers.write().unwrap_or_else(PoisonError::into_inner) = consumers;
    }

    /// Replaces the standing problems of one part of the gateway.
    pub fn set_problems(&self, part: &'static str, problems: Vec<String>) {
        self.problems.write().unwrap_or_else(PoisonError::into_inner).insert(part, problems);
    }

    /// The message now.
    pub fn message(&self) -> v1::Health {
        let now = self.clock.now();
        let consumers: Vec<_> = self.consumers().iter().map(|c| c.to_contract(now.wall_ms)).collect();
        let (devices, mut problems) = self.latest.read(|table| {
            let devices: Vec<_> = table.values().map(device_health).collect();
            let down = table.values().filter_map(|v| Some(format!("device {}: {}", v.device.id, v.state.reason()?)));
            (devices, down.collect::<Vec<_>>())
        });
        problems.extend(
            consumers.iter().filter(|c| !c.reason.is_empty()).map(|c| format!("consumer {}: {}", c.name, c.reason)),
        );
        problems.extend(self.problems.read().unwrap_or_else(PoisonError::into_inner).values().flatten().cloned());
        let requests = self.requests();
        v1::Health {
            time: Some(timestamp(now.wall_ms)),
            clock: v1::ClockTrust::from(now.trust).into(),
            uptime_seconds: now.mono_ns / 1_000_000_000,
            memory_bytes: process::resident_bytes(),
            devices,
            consumers,
            lanes: lanes(&self.store.borrow()),
            samples_read: self.ingest.read.load(Relaxed),
            samples_kept: self.ingest.kept.load(Relaxed),
            problems,
            requests_refused: requests.refused,
            requests_malformed: requests.malformed,
            requests_repeated: requests.replayed,
        }
    }

    /// Requests to the gateway and its devices; what a session turned away is counted there.
    fn requests(&self) -> Counts {
        let add = |counts: Counts, consumer: &ConsumerHealth| Counts {
            refused: counts.refused + consumer.requests_refused,
            malformed: counts.malformed + consumer.requests_malformed,
            ..counts
        };
        self.consumers().iter().fold(self.counters.counts(), add)
    }

    /// All measurements now.
    pub fn measurements(&self) -> Vec<Measurement> {
        let (now, requests) = (self.clock.now(), self.requests());
        let mut all = vec![
            Measurement::new("process.uptime", now.mono_ns as f64 / 1e9),
            Measurement::new("process.memory.usage", process::resident_bytes() as f64),
            Measurement::new("fieldgate.samples.read", self.ingest.read.load(Relaxed) as f64),
            Measurement::new("fieldgate.samples.kept", self.ingest.kept.load(Relaxed) as f64),
            Measurement::new("fieldgate.requests.refused", requests.refused as f64),
            Measurement::new("fieldgate.requests.malformed", requests.malformed as f64),
            Measurement::new("fieldgate.requests.repeated", requests.replayed as f64),
        ];
        self.latest.read(|table| table.values().for_each(|view| measure_device(view, &mut all)));
        for lane in lanes(&self.store.borrow()) {
            let of = |name, value: f64| Measurement::new(name, value).with("lane", lane.lane.as_str());
            all.push(of("fieldgate.store.bytes", lane.bytes as f64));
            all.push(of("fieldgate.store.quota", lane.quota_bytes as f64));
            all.push(of("fieldgate.store.evicted", lane.evicted_records as f64));
            all.push(of("fieldgate.store.write_amplification", lane.write_amplification));
        }
        for consumer in self.consumers() {
            let of = |name, value: f64| Measurement::new(name, value).with("consumer", consumer.name.as_str());
            let oldest = consumer.depth.oldest_ms.map_or(0, |ms| (now.wall_ms - ms).max(0));
            all.push(of("fieldgate.consumer.connected", f64::from(u8::from(consumer.connected))));
            all.push(of("fieldgate.consumer.pending", consumer.depth.records as f64));
            all.push(of("fieldgate.consumer.oldest", oldest as f64 / 1e3));
            all.push(of("fieldgate.consumer.confirmed", consumer.confirmed as f64));
            all.push(of("fieldgate.consumer.lost", consumer.lost as f64));
        }
        if let Some(broker) = (self.broker)() {
            all.push(Measurement::new("fieldgate.broker.clients", broker.clients as f64));
            all.push(Measurement::new("fieldgate.broker.messages_in", broker.messages_in as f64));
            all.push(Measurement::new("fieldgate.broker.messages_out", broker.messages_out as f64));
            all.push(Measurement::new("fieldgate.broker.slow_clients", broker.slow_clients as f64));
            all.push(Measurement::new(
                "fieldgate.broker.refused",
                (broker.refused_logins
                    + broker.refused_connections
                    + broker.denied_publishes
                    + broker.denied_subscriptions) as f64,
            ));
        }
        all
    }

    /// What a new version of the gateway is judged by.
    pub fn report(&self) -> HealthReport {
        let consumers = self.consumers();
        let (polled, online) = self.latest.read(|table| {
            let of = |wanted: fn(&DeviceView) -> bool| -> BTreeSet<String> {
                table.values().filter(|view| wanted(view)).map(|view| view.device.id.to_string()).collect()
            };
            let up = |view: &DeviceView| matches!(view.state, DeviceState::Online | DeviceState::Degraded { .. });
            (of(|view| view.stats.requests > 0), of(up))
        });
        let published = consumers.is_empty() || consumers.iter().any(|consumer| consumer.confirmed > 0);
        HealthReport { store_open: true, published, polled, online }
    }

    /// Renews the message on the board every 10 s, and within a second after a consumer or the store changed.
    pub async fn run(self, board: StateBoard, token: CancellationToken) -> Result<(), String> {
        let mut ticks = beat::every(Duration::from_secs(1));
        let mut last: Option<(u64, u64)> = None;
        loop {
            tokio::select! {
                () = token.cancelled() => return Ok(()),
                _ = ticks.tick() => {}
            }
            let (uptime, face) = (self.clock.now().mono_ns / 1_000_000_000, self.face());
            if last.is_none_or(|(at, old)| old != face || uptime >= at + INTERVAL.as_secs()) {
                last = Some((uptime, face));
                board.set(topics::HEALTH, &self.message());
            }
        }
    }

    /// Changes with what people act on; counters alone wait for the interval. Only this is looked at every second: the
    /// message of a thousand devices is long.
    fn face(&self) -> u64 {
        let mut face = DefaultHasher::new();
        self.latest.read(|table| {
            for view in table.values() {
                (view.device.id.as_str(), view.state.as_str(), view.state.reason()).hash(&mut face);
            }
        });
        let wall_ms = self.clock.wall_ms();
        for consumer in self.consumers() {
            let shown = consumer.to_contract(wall_ms);
            (shown.name, shown.reason).hash(&mut face);
        }
        self.problems.read().unwrap_or_else(PoisonError::into_inner).hash(&mut face);
        face.finish()
    }

    fn consumers(&self) -> Vec<ConsumerHealth> {
        let consumers = self.consumers.read().unwrap_or_else(PoisonError::into_inner);
        consumers.iter().map(|c| c.borrow().clone()).collect()
    }
}

fn device_health(view: &DeviceView) -> v1::DeviceHealth {
    v1::DeviceHealth {
        device: view.device.id.to_string(),
        state: view.state.as_str().to_owned(),
        reason: view.state.reason().unwrap_or_default().to_owned(),
        requests: view.stats.requests,
        failures: view.stats.failures,
        overruns: view.stats.overruns.iter().map(|(cause, count)| ((*cause).to_owned(), *count)).collect(),
        last_reply: view.stats.last_reply.map(|at| timestamp(at.wall_ms)),
    }
}

fn measure_device(view: &DeviceView, all: &mut Vec<Measurement>) {
    let of = |name, value: f64| Measurement::new(name, value).with("device", view.device.id.as_str());
    let up = matches!(view.state, DeviceState::Online | DeviceState::Degraded { .. });
    all.push(of("fieldgate.device.up", f64::from(u8::from(up))));
    all.push(of("fieldgate.device.requests", view.stats.requests as f64));
    all.push(of("fieldgate.device.failures", view.stats.failures as f64));
    for (cause, count) in &view.stats.overruns {
        all.push(of("fieldgate.device.overruns", *count as f64).with("cause", *cause));
    }
}

fn lanes(stats: &Stats) -> Vec<v1::LaneHealth> {
    [(Lane::Critical, &stats.critical), (Lane::Bulk, &stats.bulk)]
        .map(|(lane, of)| lane_health(lane, of, stats))
        .to_vec()
}

fn lane_health(lane: Lane, of: &LaneStats, stats: &Stats) -> v1::LaneHealth {
    v1::LaneHealth {
        lane: lane.as_str().to_owned(),
        bytes: of.allocated_bytes,
        quota_bytes: stats.quota_bytes,
        first_seq: of.first_seq,
        last_seq: of.next_seq.saturating_sub(1),
        synced_seq: of.durable_seq,
        evicted_records: of.lost.values().sum(),
        write_amplification: stats.write_amplification,
    }
}
