//! An in-memory store of one consumer, in the shape that the real one has.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use fieldgate::contract::{ContractMessage, Encoding, telemetry};
use fieldgate::model::{
    Batch, ClockTrust, Delivery, Depth, DeviceId, Lane, Order, PointId, Quality, Record, RecordKind, Sample, Seq,
    Stamp, Value,
};
use fieldgate::northbound::{RecordSource, SourceClosed};
use tokio::sync::Notify;

#[derive(Default)]
struct LaneState {
    /// Not confirmed.
    records: BTreeMap<Seq, Record>,
    next: Seq,
    live_start: Seq,
    live_at: Seq,
    backlog_at: Seq,
}

#[derive(Default)]
struct Inner {
    lanes: BTreeMap<Lane, LaneState>,
    order: Order,
    confirmed: u64,
    sessions: u64,
    closed: bool,
}

/// The writing side; also shows what was confirmed.
#[derive(Clone, Default)]
pub struct FakeStore {
    inner: Arc<Mutex<Inner>>,
    changed: Arc<Notify>,
}

/// The reading side.
pub struct FakeSource(FakeStore);

#[allow(dead_code)]
impl FakeStore {
    pub fn source(&self) -> FakeSource {
        FakeSource(self.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    pub fn append(&self, lane: Lane, kind: RecordKind, payload: Bytes) -> Seq {
        let mut inner = self.lock();
        let state = inner.lanes.entry(lane).or_default();
        state.next += 1;
        let seq = state.next;
        state.records.insert(seq, Record { lane, seq, ts_ms: seq as i64, device: 1, kind, count: 1, payload });
        drop(inner);
        self.changed.notify_waiters();
        seq
    }

    /// One telemetry record of `device` with one point `n` that counts.
    pub fn append_value(&self, device: &str, value: f64) -> Seq {
        self.append(Lane::Bulk, RecordKind::Telemetry, telemetry_payload(device, &[("n", value)]))
    }

    pub fn confirmed(&self) -> u64 {
        self.lock().confirmed
    }

    pub fn pending(&self) -> u64 {
        self.lock().lanes.values().map(|l| l.records.len() as u64).sum()
    }

    pub fn sessions(&self) -> u64 {
        self.lock().sessions
    }

    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_waiters();
    }

    /// Waits until everything is confirmed.
    pub async fn all_confirmed(&self) {
        self.wait(|s| s.pending() == 0).await;
    }

    pub async fn wait(&self, done: impl Fn(&Self) -> bool) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if done(self) {
                return;
            }
            changed.await;
        }
    }
}

/// A stored batch.
pub fn telemetry_payload(device: &str, points: &[(&str, f64)]) -> Bytes {
    let at =
        Stamp { wall_ms: 1_763_812_800_000, mono_ns: 0, uptime: Default::default(), trust: ClockTrust::Synchronised };
    let sample = |&(name, v): &(&str, f64)| Sample {
        point: PointId::new(name).unwrap(),
        value: Some(Value::Double(v)),
        quality: Quality::Good,
        reason: None,
        at,
    };
    let batch = Batch { device: DeviceId::new(device).unwrap(), at, samples: points.iter().map(sample).collect() };
    telemetry(&batch).encode_as(Encoding::Protobuf)
}

impl Inner {
    fn take(&mut self, max: usize, backlog: bool) -> Vec<Delivery> {
        let order = self.order;
        let mut out = Vec::new();
        for state in self.lanes.values_mut() {
            let (at, end) =
                if backlog { (&mut state.backlog_at, state.live_start) } else { (&mut state.live_at, Seq::MAX) };
            for (seq, record) in state.records.range(*at..) {
                if out.len() >= max || *seq >= end {
                    break;
                }
                *at = seq + 1;
                out.push(Delivery::Record { record: record.clone(), historical: *seq < state.live_start });
            }
            if order == Order::InOrder && !out.is_empty() {
                break;
            }
        }
        out
    }
}

impl FakeSource {
    async fn next(&self, max: usize, backlog: bool) -> Result<Vec<Delivery>, SourceClosed> {
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut inner = self.0.lock();
                if inner.closed {
                    return Err(SourceClosed);
                }
                let batch = inner.take(max, backlog);
                if !batch.is_empty() {
                    return Ok(batch);
                }
            }
            changed.await;
        }
    }
}

impl RecordSource for FakeSource {
    fn begin_session(&mut self, order: Order) {
        let mut inner = self.0.lock();
        inner.order = order;
        inner.sessions += 1;
        for state in inner.lanes.values_mut() {
            state.live_start = state.next + 1;
            state.live_at = if order == Order::InOrder { 0 } else { state.live_start };
            state.backlog_at = 0;
        }
        drop(inner);
        self.0.changed.notify_waiters();
    }

    async fn live(&mut self, max: usize) -> Result<Vec<Delivery>, SourceClosed> {
        self.next(max, false).await
    }

    async fn backlog(&mut self, max: usize) -> Result<Vec<Delivery>, SourceClosed> {
        self.next(max, true).await
    }

    fn ack(&self, lane: Lane, first: Seq, last: Seq) {
        let mut inner = self.0.lock();
        let mut removed = 0;
        if let Some(state) = inner.lanes.get_mut(&lane) {
            for seq in first..=last {
                removed += u64::from(state.records.remove(&seq).is_some());
            }
        }
        inner.confirmed += removed;
        drop(inner);
        self.0.changed.notify_waiters();
    }

    fn depth(&self) -> Depth {
        let inner = self.0.lock();
        let records = inner.lanes.values().map(|l| l.records.len() as u64).sum();
        let bytes = records * 100;
        let oldest_ms = inner.lanes.values().filter_map(|l| l.records.values().next()).map(|r| r.ts_ms).min();
        Depth { records, bytes, oldest_ms, lost: 0 }
    }
}
