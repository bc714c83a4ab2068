//! Checked devices as the pipeline takes them.

use super::checked::{Deadband, Device};
use crate::pipeline::{self, BatchLimits, PointRule};

impl Device {
    /// What happens to values, parallel to the points.
    pub fn rules(&self) -> Vec<PointRule> {
        let rule = |r: &super::checked::Rule| PointRule {
            scale: r.scale,
            offset: r.offset,
            clamp: r.clamp,
            deadband: match r.deadband {
                Deadband::None => pipeline::Deadband::None,
                Deadband::Absolute(d) => pipeline::Deadband::Absolute(d),
                Deadband::Percent(d) => pipeline::Deadband::Percent(d),
            },
            heartbeat: r.heartbeat,
            on_change: r.on_change,
            stale_after: r.stale_after,
        };
        self.rules.iter().map(rule).collect()
    }

    /// When a batch of this device is closed.
    pub fn batch_limits(&self) -> BatchLimits {
        BatchLimits { max_samples: self.batch_samples, max_delay: self.batch_delay }
    }
}
