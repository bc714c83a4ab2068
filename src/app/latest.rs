//! The last sample of every point and the state of every device: what `fieldgate devices|points|tail`, the health message
//! and the metrics show. Filled by the ingest task, read by everyone, never waited for.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::{broadcast, watch};

use crate::model::{Batch, Device, DeviceId, PointId, Sample};
use crate::southbound::{DeviceState, DeviceStats, Identity};

/// Batches that a slow `tail` may lag behind before it is told that it skipped some.
const TAIL_DEPTH: usize = 256;

/// What is known of one device now.
#[derive(Debug, Clone)]
pub struct DeviceView {
    /// Its configuration.
    pub device: Arc<Device>,
    /// Last sample per point, parallel to the device's points.
    pub samples: Vec<Option<Sample>>,
    /// State of its link.
    pub state: DeviceState,
    /// Counters of its driver.
    pub stats: DeviceStats,
    /// What it says of itself.
    pub identity: Identity,
    index: HashMap<PointId, usize>,
}

/// The table; cheap to share.
#[derive(Debug, Clone)]
pub struct Latest {
    devices: Arc<RwLock<BTreeMap<DeviceId, DeviceView>>>,
    tail: broadcast::Sender<Arc<Batch>>,
    /// Counts up when another device is there, or one is in another state or says something else of itself.
    changes: watch::Sender<u64>,
}

impl Default for Latest {
    fn default() -> Self {
        Self { devices: Arc::default(), tail: broadcast::channel(TAIL_DEPTH).0, changes: watch::Sender::new(0) }
    }
}

impl Latest {
    /// Takes devices that are new or changed, and leaves out those that are gone; what is known of points that stay is kept.
    pub fn change<'a>(&self, devices: impl IntoIterator<Item = &'a Arc<Device>>, gone: &[DeviceId]) {
        let mut table = self.devices.write().unwrap_or_else(PoisonError::into_inner);
        gone.iter().for_each(|id| drop(table.remove(id)));
        for device in devices {
            let view = match table.remove(&device.id) {
                Some(view) if view.device.points == device.points => DeviceView { device: device.clone(), ..view },
                _ => fresh(device),
            };
            table.insert(device.id.clone(), view);
        }
        drop(table);
        self.changed();
    }

    /// Remembers a batch and hands it to everyone who tails.
    pub fn batch(&self, batch: &Arc<Batch>) {
        self.with(&batch.device, |view| {
            for sample in &batch.samples {
                if let Some(&at) = view.index.get(&sample.point) {
                    view.samples[at] = Some(sample.clone());
                }
            }
        });
        if self.tail.receiver_count() > 0 {
            // An error only says that the last receiver has just left.
            let _ = self.tail.send(batch.clone());
        }
    }

    /// Remembers a device's link state; returns the one before if it was another.
    pub fn state(&self, device: &DeviceId, state: DeviceState, stats: DeviceStats) -> Option<DeviceState> {
        let before = self.with(device, |view| {
            view.stats = stats;
            let before = std::mem::replace(&mut view.state, state);
            (before.as_str() != view.state.as_str()).then_some(before)
        });
        before.flatten().inspect(|_| self.changed())
    }

    /// Remembers what a device says of itself.
    pub fn identity(&self, device: &DeviceId, identity: Identity) {
        let is_new = |view: &mut DeviceView| {
            let is_new = view.identity != identity;
            view.identity = identity;
            is_new
        };
        if self.with(device, is_new) == Some(true) {
            self.changed();
        }
    }

    /// Looks at all devices, in the order of their ids.
    pub fn read<T>(&self, look: impl FnOnce(&BTreeMap<DeviceId, DeviceView>) -> T) -> T {
        look(&self.devices.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// New batches from now on.
    pub fn tail(&self) -> broadcast::Receiver<Arc<Batch>> {
        self.tail.subscribe()
    }

    /// Counts up when another device is there, or one is in another state or says something else of itself; values do not
    /// count.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    fn with<T>(&self, device: &DeviceId, change: impl FnOnce(&mut DeviceView) -> T) -> Option<T> {
        let mut table = self.devices.write().unwrap_or_else(PoisonError::into_inner);
        table.get_mut(device).map(change)
    }
}

fn fresh(device: &Arc<Device>) -> DeviceView {
    DeviceView {
        device: device.clone(),
        samples: vec![None; device.points.len()],
        state: DeviceState::Connecting,
        stats: DeviceStats::default(),
        identity: Identity::default(),
        index: device.points.iter().enumerate().map(|(i, p)| (p.id.clone(), i)).collect(),
    }
}
