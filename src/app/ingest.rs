//! The middle of the data path: driver updates → pipeline → log.
//!
//! Promise: what a driver handed over is either in the log or counted as lost by the store; the order of one device's
//! samples is the order of its scans. When the store pushes back, this task waits, the queue in front of it fills and the
//! drivers skip scans (counted as `backpressure`): nothing is dropped in between.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::devices::DeviceDesk;
use super::latest::Latest;
use crate::contract::{ContractMessage, Encoding, telemetry};
use crate::management::desired::{Observed, Watcher};
use crate::model::{Batch, DeviceId, Lane, RecordKind};
use crate::pipeline::{DevicePipeline, Input};
use crate::platform::beat;
use crate::platform::clock::SharedClock;
use crate::southbound::{Scan, Update};
use crate::store::{AppendError, MAX_PAYLOAD, NewRecord, Store};

/// Updates taken from the queue at once; their records go to the store together.
const BURST: usize = 64;
/// How often stale values are looked for.
const STALE: Duration = Duration::from_millis(500);
/// Batches that are due within this time are closed together.
const SLACK: Duration = Duration::from_millis(10);

/// Changes that a reload makes while samples keep flowing.
#[derive(Debug)]
pub enum Control {
    /// Use these pipelines from now on; those of devices that were there before inherit what was last reported.
    Change {
        /// Pipelines of devices that are new or changed.
        pipelines: Vec<DevicePipeline>,
        /// Devices whose pipelines are no longer needed.
        gone: Vec<DeviceId>,
        /// Told when it is done.
        done: oneshot::Sender<()>,
    },
}

/// Counters that everyone may read.
#[derive(Debug, Default)]
pub struct IngestStats {
    /// Samples that drivers handed over.
    pub read: AtomicU64,
    /// Samples that passed the filter.
    pub kept: AtomicU64,
    /// Grows with every turn of the loop: a sign of life for the watchdog.
    pub beats: AtomicU64,
}

/// The task's state.
#[derive(Debug)]
pub struct Ingest {
    pipelines: HashMap<DeviceId, DevicePipeline>,
    store: Store,
    latest: Latest,
    desk: DeviceDesk,
    watcher: Watcher,
    clock: SharedClock,
    stats: Arc<IngestStats>,
    /// When batches that are being filled are due, on the monotonic clock. A batch that was full earlier leaves its entry
    /// behind until then.
    due: BTreeSet<(u64, DeviceId)>,
}

impl Ingest {
    /// A task that starts with these pipelines.
    #[allow(clippy::too_many_arguments, reason = "the neighbours of one task, named once where it is made")]
    pub fn new(
        pipelines: Vec<DevicePipeline>,
        store: Store,
        latest: Latest,
        desk: DeviceDesk,
        watcher: Watcher,
        clock: SharedClock,
        stats: Arc<IngestStats>,
    ) -> Self {
        let pipelines = pipelines.into_iter().map(|p| (p.device().id.clone(), p)).collect();
        Self { pipelines, store, latest, desk, watcher, clock, stats, due: BTreeSet::new() }
    }

    /// Runs until `stop` is cancelled, which is done after the drivers have ended; then everything pending is in the log.
    pub async fn run(
        mut self,
        mut updates: mpsc::Receiver<Update>,
        mut control: mpsc::Receiver<Control>,
        stop: CancellationToken,
    ) -> Result<(), String> {
        let mut stale_at = beat::after(STALE);
        let mut burst = Vec::with_capacity(BURST);
        loop {
            self.stats.beats.fetch_add(1, Ordering::Relaxed);
            let look_at = self.due_in().map_or(stale_at, |due| stale_at.min(Instant::now() + due + SLACK));
            let batches = tokio::select! {
                biased;
                Some(change) = control.recv() => {
                    // What was read before belongs to the pipelines of before.
                    let mut batches = Vec::new();
                    for _ in 0..updates.len() {
                        let Ok(update) = updates.try_recv() else { break };
                        batches.extend(self.update(update).await?);
                    }
                    batches.extend(self.change(change));
                    batches
                }
                // What is in the queue still comes; nothing new is taken.
                () = stop.cancelled(), if !updates.is_closed() => {
                    updates.close();
                    continue;
                }
                taken = updates.recv_many(&mut burst, BURST) => {
                    if taken == 0 {
                        break;
                    }
                    let mut batches = Vec::new();
                    for update in burst.drain(..) {
                        batches.extend(self.update(update).await?);
                    }
                    batches
                }
                () = sleep_until(look_at) => {
                    if Instant::now() < stale_at {
                        self.close_due()
                    } else {
                        stale_at = beat::after(STALE);
                        self.tick()
                    }
                }
            };
            self.keep(batches).await?;
        }
        let rest = self.tick();
        self.keep(rest).await?;
        self.store.drained().await.map_err(|error| format!("append telemetry: {error}"))
    }

    async fn update(&mut self, update: Update) -> Result<Vec<Batch>, String> {
        match update {
            Update::Scan(scan) => Ok(self.scan(scan)),
            Update::Device { device, state, stats } => {
                let now = state.clone();
                if let Some(before) = self.latest.state(&device, state, stats) {
                    self.desk.state_changed(&device, &before, &now).await;
                }
                Ok(Vec::new())
            }
            Update::Identity { device, identity } => {
                self.latest.identity(&device, identity.clone());
                self.desk.identified(&device, identity).await;
                Ok(Vec::new())
            }
        }
    }

    fn scan(&mut self, scan: Scan) -> Vec<Batch> {
        let Some(pipeline) = self.pipelines.get_mut(&scan.device) else { return Vec::new() };
        self.stats.read.fetch_add(scan.results.len() as u64, Ordering::Relaxed);
        let observed = scan.results.iter().map(|r| {
            let value = r.outcome.as_ref().ok().and_then(|raw| pipeline.number(r.point, raw));
            (r.point, Observed { mono_ns: scan.at.mono_ns, good: r.outcome.is_ok(), value })
        });
        self.watcher.scan(pipeline.device(), observed);
        let inputs = scan.results.into_iter().map(|r| Input { point: r.point, outcome: r.outcome, at: r.at });
        let batches = pipeline.scan(inputs, scan.at);
        self.due.extend(pipeline.due_ns().map(|at| (at, scan.device)));
        batches
    }

    fn due_in(&self) -> Option<Duration> {
        self.due.first().map(|(due, _)| Duration::from_nanos(due.saturating_sub(self.clock.now().mono_ns)))
    }

    /// Closes the batches that are due, and looks at no other device.
    fn close_due(&mut self) -> Vec<Batch> {
        let (now, mut batches) = (self.clock.now(), Vec::new());
        while let Some((_, device)) = self.due.first().filter(|(at, _)| *at <= now.mono_ns) {
            batches.extend(self.pipelines.get_mut(device).and_then(|p| p.close_due(now)));
            self.due.pop_first();
        }
        batches
    }

    /// Looks at every device: what is stale, and what is due.
    fn tick(&mut self) -> Vec<Batch> {
        let now = self.clock.now();
        let batches = self.pipelines.values_mut().flat_map(|p| p.tick(now)).collect();
        let due = self.pipelines.iter().filter_map(|(id, p)| Some((p.due_ns()?, id.clone())));
        self.due = due.collect();
        batches
    }

    fn change(&mut self, change: Control) -> Vec<Batch> {
        let Control::Change { pipelines, gone, done } = change;
        gone.iter().for_each(|id| drop(self.pipelines.remove(id)));
        let mut batches = Vec::new();
        for mut pipeline in pipelines {
            if let Some(before) = self.pipelines.remove(&pipeline.device().id) {
                batches.extend(pipeline.inherit(before));
            }
            self.pipelines.insert(pipeline.device().id.clone(), pipeline);
        }
        // The asker may have gone; the change is made all the same.
        let _ = done.send(());
        batches
    }

    async fn keep(&mut self, batches: Vec<Batch>) -> Result<(), String> {
        if batches.is_empty() {
            return Ok(());
        }
        let mut records = Vec::with_capacity(batches.len());
        for batch in batches {
            self.stats.kept.fetch_add(batch.samples.len() as u64, Ordering::Relaxed);
            let batch = Arc::new(batch);
            telemetry_records(&batch, &mut records);
            self.latest.batch(&batch);
        }
        // Not awaited until it is in the log: the store keeps the order, and what a failing disk costs it tells as a gap.
        match self.store.offer(records).await {
            Err(error @ AppendError::TooLarge { .. }) => {
                tracing::error!(%error, "telemetry was lost");
                Ok(())
            }
            outcome => outcome.map_err(|error| format!("append telemetry: {error}")),
        }
    }
}

/// One record, or several when the log does not take so large a one: texts of 250 octets in batches of 1,000.
fn telemetry_records(batch: &Batch, out: &mut Vec<NewRecord>) {
    let record = telemetry_record(batch);
    if record.payload.len() <= MAX_PAYLOAD || batch.samples.len() < 2 {
        return out.push(record);
    }
    let (first, second) = batch.samples.split_at(batch.samples.len() / 2);
    for half in [first, second] {
        telemetry_records(&Batch { samples: half.to_vec(), ..batch.clone() }, out);
    }
}

fn telemetry_record(batch: &Batch) -> NewRecord {
    NewRecord {
        lane: Lane::Bulk,
        kind: RecordKind::Telemetry,
        device: device_hash(batch.device.as_str()),
        ts_ms: batch.at.wall_ms,
        count: batch.samples.len().min(usize::from(u16::MAX)) as u16,
        payload: telemetry(batch).encode_as(Encoding::Protobuf),
    }
}

/// The number that stands for a device in a frame's header; 0 stands for the gateway.
pub fn device_hash(device: &str) -> u32 {
    if device.is_empty() { 0 } else { crc32c::crc32c(device.as_bytes()).max(1) }
}
