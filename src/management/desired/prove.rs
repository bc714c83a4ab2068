//! Whether a device is healthy after a change: what its points gave since then.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use super::document::{DeviceOverlay, LimitsOverlay, PointOverlay};
use super::profile::{PointProfile, Profile};
use crate::model::{Access, Device, DeviceId};

/// The last result of a point, before any filter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Observed {
    /// Monotonic time of the scan, nanoseconds; 0 when there was none.
    pub mono_ns: u64,
    /// Read without a failure.
    pub good: bool,
    /// The value in engineering units where it is a number.
    pub value: Option<f64>,
}

const NEVER: Observed = Observed { mono_ns: 0, good: false, value: None };

/// Notes the last result of every point of every device. `app` calls [`Watcher::scan`] for each scan; that costs one
/// uncontended lock and 32 bytes per point.
#[derive(Debug, Clone, Default)]
pub struct Watcher {
    devices: Arc<RwLock<BTreeMap<DeviceId, Mutex<Marks>>>>,
}

#[derive(Debug)]
struct Marks {
    device: Arc<Device>,
    points: Vec<Observed>,
}

impl Watcher {
    /// Notes the results of a scan: index of the point and what it gave.
    pub fn scan(&self, device: &Arc<Device>, results: impl IntoIterator<Item = (u32, Observed)>) {
        {
            let devices = self.devices.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(marks) = devices.get(&device.id) {
                let mut marks = marks.lock().unwrap_or_else(PoisonError::into_inner);
                return marks.note(device, results);
            }
        }
        let mut marks = Marks { device: device.clone(), points: vec![NEVER; device.points.len()] };
        marks.note(device, results);
        self.devices.write().unwrap_or_else(PoisonError::into_inner).insert(device.id.clone(), Mutex::new(marks));
    }

    /// Forgets a device.
    pub fn forget(&self, device: &DeviceId) {
        self.devices.write().unwrap_or_else(PoisonError::into_inner).remove(device);
    }

    /// Last results of all points of a device, by name.
    pub fn latest(&self, device: &DeviceId) -> BTreeMap<String, Observed> {
        let devices = self.devices.read().unwrap_or_else(PoisonError::into_inner);
        let Some(marks) = devices.get(device) else { return BTreeMap::new() };
        let marks = marks.lock().unwrap_or_else(PoisonError::into_inner);
        marks.device.points.iter().zip(&marks.points).map(|(p, o)| (p.id.as_str().to_owned(), *o)).collect()
    }
}

impl Marks {
    fn note(&mut self, device: &Arc<Device>, results: impl IntoIterator<Item = (u32, Observed)>) {
        if !Arc::ptr_eq(&self.device, device) {
            let same = self.device.points == device.points;
            self.device = device.clone();
            if !same {
                self.points = vec![NEVER; device.points.len()];
            }
        }
        for (index, observed) in results {
            if let Some(slot) = self.points.get_mut(index as usize) {
                *slot = observed;
            }
        }
    }
}

/// What the observations say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Proven,
    /// Not yet, and why.
    Missing(Vec<String>),
}

/// Points that are not known to be good now; right after a start that is every point, since none was read yet.
pub(super) fn baseline(profile: &Profile, latest: &BTreeMap<String, Observed>) -> Vec<String> {
    let bad = |name: &str| latest.get(name).is_none_or(|o| !o.good);
    profile.points.iter().filter(|(name, p)| p.polled && bad(name)).map(|(name, _)| name.clone()).collect()
}

/// Whether values have arrived since `since_ns` as the overlay demands.
pub(super) fn judge(
    profile: &Profile,
    overlay: &DeviceOverlay,
    latest: &BTreeMap<String, Observed>,
    excused: &[String],
    since_ns: u64,
    within: Duration,
) -> Verdict {
    if overlay.enabled == Some(false) {
        return Verdict::Proven;
    }
    let untouched = PointOverlay::default();
    let mut missing = Vec::new();
    let (mut polled, mut fresh) = (0, 0);
    for (name, point) in &profile.points {
        let wanted = overlay.points.get(name).unwrap_or(&untouched);
        if !point.polled || wanted.enabled == Some(false) || wanted.access == Some(Access::Write) {
            continue;
        }
        polled += 1;
        let seen = latest.get(name).copied().unwrap_or(NEVER);
        let is_fresh = seen.mono_ns > since_ns;
        fresh += u32::from(is_fresh && seen.good);
        // A point that is read rarely cannot prove anything in this time; a point that was bad before is excused, unless
        // the version itself says what is expected of it.
        let is_excused = wanted.expect.is_none() && excused.iter().any(|e| e == name);
        if every(point, wanted, overlay) * 2 > within || is_excused {
            continue;
        }
        if let Some(why) = complaint(seen, is_fresh, wanted.expect) {
            missing.push(format!("{name}: {why}"));
        }
    }
    if missing.is_empty() && polled > 0 && fresh == 0 {
        missing.push("no point gave a good value".to_owned());
    }
    if missing.is_empty() { Verdict::Proven } else { Verdict::Missing(missing) }
}

fn every(point: &PointProfile, wanted: &PointOverlay, overlay: &DeviceOverlay) -> Duration {
    wanted.rate.or(overlay.rate).unwrap_or(Duration::from_millis(point.every_ms))
}

fn complaint(seen: Observed, is_fresh: bool, expect: Option<LimitsOverlay>) -> Option<String> {
    if !is_fresh {
        return Some("no value since the change".to_owned());
    }
    if !seen.good {
        return Some("its quality is not good, and it was before".to_owned());
    }
    let (Some(range), Some(value)) = (expect, seen.value) else { return None };
    if range.min.is_some_and(|m| value < m) || range.max.is_some_and(|m| value > m) {
        return Some(format!("{value} is not in the expected range"));
    }
    None
}
