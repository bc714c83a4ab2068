//! From what a driver read to what is worth keeping: scale, clamp, filter, batch.
//!
//! Promise:
//! - Pure: no I/O, no clock, no task. `scan(inputs, at)` and `tick(now)` return finished batches.
//! - Every change of quality or of its reason is reported at once, whatever the deadband says.
//! - A value that leaves here is finite. NaN and infinity become a missing value of quality bad (`not-a-number`).
//! - A deadband compares with the last *reported* value, so a slow drift is never swallowed.
//! - Order per point is the order of the scans; a batch holds samples of one device only.
//!
//! Limits: memory is one [`state`](DevicePipeline) per point plus at most `max_samples` pending samples per device.
//! Decoding of a protocol's octets is not done here: only the driver knows its own (see
//! `docs/decisions/0001-decode-in-the-driver.md`).

mod filter;
mod scale;

use std::sync::Arc;
use std::time::Duration;

use crate::model::{Batch, Device, Quality, Reason, Sample, Stamp, Value};
pub use filter::Deadband;
use filter::Filter;
pub use scale::WriteValueError;

/// How one point is treated on its way to the log.
#[derive(Debug, Clone, PartialEq)]
pub struct PointRule {
    /// Engineering value = raw × `scale` + `offset`. Not zero, finite.
    pub scale: f64,
    /// Added after scaling; finite.
    pub offset: f64,
    /// Engineering range; a value outside becomes the nearest end with quality uncertain (`clamped`).
    pub clamp: Option<(f64, f64)>,
    /// Smallest change worth reporting.
    pub deadband: Deadband,
    /// Report at the latest after this time, changed or not.
    pub heartbeat: Option<Duration>,
    /// Report only changes; `false` reports every scan.
    pub on_change: bool,
    /// Without a result for this long the last value is reported uncertain (`stale`).
    pub stale_after: Option<Duration>,
}

impl Default for PointRule {
    fn default() -> Self {
        Self {
            scale: 1.0,
            offset: 0.0,
            clamp: None,
            deadband: Deadband::None,
            heartbeat: None,
            on_change: true,
            stale_after: None,
        }
    }
}

/// When a batch is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    /// Close at this many samples (1 to 65,535).
    pub max_samples: usize,
    /// Close when the oldest sample has waited this long. Zero closes at the end of every scan: lowest latency.
    pub max_delay: Duration,
}

impl Default for BatchLimits {
    fn default() -> Self {
        Self { max_samples: 1000, max_delay: Duration::ZERO }
    }
}

/// One point's part of a scan, as the driver read it.
#[derive(Debug, Clone, PartialEq)]
pub struct Input {
    /// Index in the device's points.
    pub point: u32,
    /// The decoded raw value, or why there is none.
    pub outcome: Result<Value, Reason>,
    /// The device's own time of the value, where the protocol has one.
    pub at: Option<Stamp>,
}

/// The pipeline of one device.
#[derive(Debug)]
pub struct DevicePipeline {
    device: Arc<Device>,
    rules: Arc<[PointRule]>,
    filters: Vec<Filter>,
    limits: BatchLimits,
    pending: Vec<Sample>,
    pending_since_ns: u64,
    read: u64,
    kept: u64,
    is_trusted: bool,
}

impl DevicePipeline {
    /// A pipeline that has reported nothing yet. `rules` are parallel to the device's points; a missing one is the
    /// default rule.
    pub fn new(device: Arc<Device>, mut rules: Vec<PointRule>, limits: BatchLimits) -> Self {
        rules.resize(device.points.len(), PointRule::default());
        let filters = vec![Filter::default(); device.points.len()];
        Self {
            device,
            rules: rules.into(),
            filters,
            limits,
            pending: Vec::new(),
            pending_since_ns: 0,
            read: 0,
            kept: 0,
            is_trusted: true,
        }
    }

    /// The same for a device whose identity is not the approved one: every value is bad, `identity-changed`.
    pub fn distrusted(self) -> Self {
        Self { is_trusted: false, ..self }
    }

    /// A raw number in engineering units, before any filter.
    pub fn number(&self, point: u32, raw: &Value) -> Option<f64> {
        self.rules.get(point as usize)?.number(raw)
    }

    /// Takes over what was last reported from the pipeline of the same device before a reload, so that points whose rule
    /// did not change are not reported again.
    pub fn inherit(&mut self, old: DevicePipeline) -> Vec<Batch> {
        let mut old = old;
        for (index, point) in self.device.points.iter().enumerate() {
            let Some(before) = old.device.points.iter().position(|p| p == point) else { continue };
            if old.rules[before] == self.rules[index] {
                self.filters[index] = old.filters[before].clone();
            }
        }
        (self.read, self.kept) = (old.read, old.kept);
        let at = old.pending.last().map(|s| s.at);
        at.map(|at| old.close(at)).into_iter().flatten().collect()
    }

    /// The device that this pipeline serves.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Samples taken in and samples passed on since the pipeline was made.
    pub fn counts(&self) -> (u64, u64) {
        (self.read, self.kept)
    }

    /// Takes the results of one scan. Inputs for unknown points are ignored: they belong to an older configuration.
    pub fn scan(&mut self, inputs: impl IntoIterator<Item = Input>, at: Stamp) -> Vec<Batch> {
        let mut full = Vec::new();
        for input in inputs {
            let index = input.point as usize;
            if index >= self.filters.len() {
                continue;
            }
            self.read += 1;
            let stamp = input.at.unwrap_or(at);
            let outcome = if self.is_trusted { input.outcome } else { input.outcome.and(Err(Reason::IdentityChanged)) };
            let (value, quality, reason) = self.rules[index].apply(outcome);
            if self.filters[index].passes(&self.rules[index], value.as_ref(), quality, reason, at.mono_ns) {
                self.push(index, value, quality, reason, stamp, at, &mut full);
            }
        }
        if self.is_due(at.mono_ns) {
            full.extend(self.close(at));
        }
        full
    }

    /// Reports what went stale and closes a batch that has waited long enough.
    pub fn tick(&mut self, now: Stamp) -> Vec<Batch> {
        let mut full = Vec::new();
        for index in 0..self.filters.len() {
            let Some(value) = self.filters[index].goes_stale(&self.rules[index], now.mono_ns) else { continue };
            self.push(index, value, Quality::Uncertain, Some(Reason::Stale), now, now, &mut full);
        }
        full.extend(self.close_due(now));
        full
    }

    /// The batch that is being filled, if it is to be closed by now.
    pub fn close_due(&mut self, now: Stamp) -> Option<Batch> {
        if self.is_due(now.mono_ns) { self.close(now) } else { None }
    }

    /// When the batch that is being filled must be closed by [`DevicePipeline::tick`], on the monotonic clock.
    pub fn due_ns(&self) -> Option<u64> {
        let waits = !self.pending.is_empty();
        waits.then(|| self.pending_since_ns.saturating_add(self.limits.max_delay.as_nanos() as u64))
    }

    /// The part of this pipeline that writes need; cheap to clone and to share.
    pub fn scaling(&self) -> Scaling {
        Scaling { device: self.device.clone(), rules: self.rules.clone() }
    }

    #[allow(clippy::too_many_arguments, reason = "one call for the two places that report a sample")]
    fn push(
        &mut self,
        index: usize,
        value: Option<Value>,
        quality: Quality,
        reason: Option<Reason>,
        stamp: Stamp,
        now: Stamp,
        full: &mut Vec<Batch>,
    ) {
        if self.pending.is_empty() {
            self.pending_since_ns = now.mono_ns;
        }
        self.kept += 1;
        let point = self.device.points[index].id.clone();
        self.pending.push(Sample { point, value, quality, reason, at: stamp });
        if self.pending.len() >= self.limits.max_samples {
            full.extend(self.close(now));
        }
    }

    fn is_due(&self, now_ns: u64) -> bool {
        self.due_ns().is_some_and(|due| now_ns >= due)
    }

    fn close(&mut self, at: Stamp) -> Option<Batch> {
        if self.pending.is_empty() {
            return None;
        }
        Some(Batch { device: self.device.id.clone(), at, samples: std::mem::take(&mut self.pending) })
    }
}

/// Scales written values to raw ones and read-backs to engineering ones, as the pipeline of the same device does.
#[derive(Debug, Clone)]
pub struct Scaling {
    device: Arc<Device>,
    rules: Arc<[PointRule]>,
}

impl Scaling {
    /// The engineering value of a raw one; `None` for a point that does not exist and for what is not a number.
    pub fn rescale(&self, point: u32, raw: Value) -> Option<Value> {
        self.rules.get(point as usize)?.apply(Ok(raw)).0
    }

    /// The raw value to write so that the point shows the engineering value `wanted`, rounded to what the type can hold.
    pub fn unscale(&self, point: u32, wanted: &Value) -> Result<Value, WriteValueError> {
        let index = point as usize;
        match (self.rules.get(index), self.device.points.get(index)) {
            (Some(rule), Some(point)) => scale::unscale(rule, point.data_type, wanted),
            _ => Err(WriteValueError::NoSuchPoint(point)),
        }
    }
}

#[cfg(test)]
mod tests;
