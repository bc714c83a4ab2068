//! Devices that have not had the time to answer yet: at the start, and when one was just approved, a device connects for a
//! moment. It is waited for instead of being told as unreachable, and not for long.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::app::latest::DeviceView;
use crate::model::DeviceId;
use crate::southbound::DeviceState;

/// How long a device is waited for.
const GRACE: Duration = Duration::from_secs(5);

/// Since when devices connect.
#[derive(Debug, Default)]
pub(super) struct Grace(BTreeMap<DeviceId, Instant>);

impl Grace {
    /// Whether a device that does not answer may still be about to: nothing is known of it yet, or it connects.
    pub(super) fn holds(&mut self, device: &DeviceId, view: Option<&DeviceView>, now: Instant) -> bool {
        if view.is_some_and(|view| !matches!(view.state, DeviceState::Connecting)) {
            self.0.remove(device);
            return false;
        }
        let since = *self.0.entry(device.clone()).or_insert(now);
        now < since + GRACE
    }

    /// Forgets devices that are not there any more.
    pub(super) fn keep(&mut self, is_there: impl Fn(&DeviceId) -> bool) {
        self.0.retain(|device, _| is_there(device));
    }

    /// Until the next of them has had its time.
    pub(super) fn ends(&self, now: Instant) -> Option<Instant> {
        self.0.values().map(|since| *since + GRACE).filter(|end| *end > now).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_device_that_connects_is_waited_for_and_not_for_long() {
        let (a, b) = (DeviceId::new("a").unwrap(), DeviceId::new("b").unwrap());
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let mut grace = Grace::default();
        assert!(grace.holds(&a, None, now) && grace.holds(&b, None, now + second));
        assert!(grace.holds(&a, None, now + 4 * second));
        assert_eq!(grace.ends(now + 4 * second), Some(now + GRACE));
        assert!(!grace.holds(&a, None, now + GRACE) && grace.holds(&b, None, now + GRACE));
        assert_eq!(grace.ends(now + GRACE), Some(now + second + GRACE));
        assert!(!grace.holds(&a, None, now + 60 * second), "its time does not begin anew by itself");
        grace.keep(|_| false);
        assert_eq!(grace.ends(now), None);
        assert!(grace.holds(&a, None, now + 60 * second), "a device that was approved again connects anew");
    }
}
