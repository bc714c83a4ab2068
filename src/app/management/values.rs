//! Last values of points, for interlocks.

use crate::app::latest::Latest;
use crate::management::desired::Watcher;
use crate::management::permit::PointValues;
use crate::model::{DeviceId, Quality, Value};

/// What the drivers gave last: numbers as they were read, not as the deadband let them pass.
#[derive(Debug, Clone)]
pub struct LastValues {
    /// Qualities, texts, staleness.
    pub latest: Latest,
    /// Numbers.
    pub watcher: Watcher,
}

impl PointValues for LastValues {
    fn good(&self, device: &DeviceId, point: &str) -> Option<Value> {
        let sample = self.latest.read(|table| {
            let view = table.get(device)?;
            let index = view.device.points.iter().position(|p| p.id.as_str() == point)?;
            view.samples.get(index)?.clone()
        })?;
        if sample.quality != Quality::Good {
            return None;
        }
        match (sample.value?, self.watcher.latest(device).get(point)) {
            (Value::Bool(is), _) => Some(Value::Bool(is)),
            (value, None) => Some(value),
            (_, Some(seen)) if !seen.good => None,
            (value, Some(seen)) => Some(seen.value.map_or(value, Value::Double)),
        }
    }
}
