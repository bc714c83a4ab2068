//! What the southbound side tells the gateway: scans, device states, identities.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::model::{DeviceId, Reason, Stamp, Value};

/// One message from the southbound side. Travels over the bounded channel given to `Southbound::start`.
#[derive(Debug, Clone, PartialEq)]
pub enum Update {
    /// Outcomes of a poll cycle.
    Scan(Scan),
    /// On every change of state, and at least every 10 s.
    Device {
        /// The device.
        device: DeviceId,
        /// How it is now.
        state: DeviceState,
        /// Totals since its configuration came into force.
        stats: DeviceStats,
    },
    /// After the device was reached, and when the answer changes.
    Identity {
        /// The device.
        device: DeviceId,
        /// What it says of itself.
        identity: Identity,
    },
}

impl Update {
    /// The device it is about.
    pub const fn device(&self) -> &DeviceId {
        match self {
            Update::Scan(Scan { device, .. }) | Update::Device { device, .. } | Update::Identity { device, .. } => {
                device
            }
        }
    }
}

/// Everything one poll cycle of one rate group produced, failures included; or, when a device fails as a whole, one
/// failed outcome for every point of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Scan {
    /// The device.
    pub device: DeviceId,
    /// When the last reply of the cycle arrived, or when the device was found failing.
    pub at: Stamp,
    /// One entry for each point of the group.
    pub results: Vec<PointResult>,
}

/// Outcome of reading one point.
#[derive(Debug, Clone, PartialEq)]
pub struct PointResult {
    /// Index into `Device::points`.
    pub point: u32,
    /// The raw value (not scaled), or why there is none.
    pub outcome: Result<Value, Reason>,
    /// When the value was true, where that differs from the scan: the device's own time if its protocol has one, else
    /// the time of its reply if that is more than 10 ms before the end of the cycle.
    pub at: Option<Stamp>,
}

/// How a device does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceState {
    /// Not reached yet.
    Connecting,
    /// Every point answers.
    Online,
    /// Answers, but not always or not to everything.
    Degraded {
        /// What is wrong, in words.
        reason: String,
    },
    /// Failed repeatedly; left alone but for a probe now and then.
    OffScan {
        /// The last failure.
        reason: String,
        /// Time until the next probe.
        retry_in: Duration,
    },
    /// Its link (socket, serial port) is down.
    Offline {
        /// Why.
        reason: String,
    },
}

impl DeviceState {
    /// The word used in messages: `connecting`, `online`, `degraded`, `off-scan`, `offline`.
    pub const fn as_str(&self) -> &'static str {
        match self {
            DeviceState::Connecting => "connecting",
            DeviceState::Online => "online",
            DeviceState::Degraded { .. } => "degraded",
            DeviceState::OffScan { .. } => "off-scan",
            DeviceState::Offline { .. } => "offline",
        }
    }

    /// Why the state is not good, if it says so.
    pub fn reason(&self) -> Option<&str> {
        match self {
            DeviceState::Connecting | DeviceState::Online => None,
            DeviceState::Degraded { reason }
            | DeviceState::OffScan { reason, .. }
            | DeviceState::Offline { reason } => Some(reason),
        }
    }
}

impl fmt::Display for DeviceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason() {
            None => f.write_str(self.as_str()),
            Some(reason) => write!(f, "{}: {reason}", self.as_str()),
        }
    }
}

/// Totals of one device since its configuration came into force.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeviceStats {
    /// Requests sent.
    pub requests: u64,
    /// Valid replies, exceptions included.
    pub replies: u64,
    /// Requests without a valid reply: timeouts, broken replies, lost links.
    pub failures: u64,
    /// Failures that were timeouts.
    pub timeouts: u64,
    /// Replies that were exceptions (refusals).
    pub exceptions: u64,
    /// Replies on the device's link that came too late or belonged to nobody, and were thrown away.
    pub late_replies: u64,
    /// Times the device's link was made again after it had been up.
    pub reconnects: u64,
    /// Poll cycles finished.
    pub scans: u64,
    /// Poll cycles left out, by cause: `previous-scan`, `bus-busy`, `backpressure`.
    pub overruns: BTreeMap<&'static str, u64>,
    /// When the last valid reply arrived.
    pub last_reply: Option<Stamp>,
    /// Mean time from request to reply, weighted towards the last sixteen; zero before the first.
    pub round_trip: Duration,
}

/// What a device says of itself. Empty where it says nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Identity {
    /// Manufacturer.
    pub vendor: Option<String>,
    /// Model or product code.
    pub model: Option<String>,
    /// Serial number.
    pub serial: Option<String>,
    /// Firmware or hardware revision.
    pub firmware: Option<String>,
    /// Whatever else it told, by name.
    pub other: BTreeMap<String, String>,
}

impl Identity {
    /// Whether the device told nothing at all.
    pub fn is_empty(&self) -> bool {
        *self == Identity::default()
    }

    /// One line that stays the same as long as the hardware does: vendor, model and serial number, each with its length
    /// in front so that no two identities share a line. Firmware is left out: an update is not a new device.
    pub fn fingerprint(&self) -> String {
        let part = |text: &Option<String>| {
            let text = text.as_deref().unwrap_or("");
            format!("{}:{text}", text.len())
        };
        [part(&self.vendor), part(&self.model), part(&self.serial)].join("|")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_ignores_firmware_and_never_confuses_fields() {
        let a = Identity { vendor: Some("ab".into()), model: Some("c".into()), ..Identity::default() };
        let b = Identity { vendor: Some("a".into()), model: Some("bc".into()), ..Identity::default() };
        assert_ne!(a.fingerprint(), b.fingerprint());
        let updated = Identity { firmware: Some("2".into()), ..a.clone() };
        assert_eq!(a.fingerprint(), updated.fingerprint());
    }
}
