//! When a new gateway counts as healthy. Pure.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::model::Stamp;

/// What the running gateway knows about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HealthReport {
    /// The store is open.
    pub store_open: bool,
    /// A first message was accepted by the broker or an uplink.
    pub published: bool,
    /// Devices that were polled since the start, with or without success.
    pub polled: BTreeSet<String>,
    /// Devices that are polled right now: what a new binary has to reach.
    pub online: BTreeSet<String>,
}

/// Judgement about a binary on trial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealthVerdict {
    /// It does everything that the old one did.
    Healthy,
    /// Not yet; this is missing.
    Waiting(String),
    /// The time is over; this was missing.
    Failed(String),
}

/// The gate that a new binary has to pass in time.
#[derive(Debug, Clone)]
pub struct HealthGate {
    devices: Vec<String>,
    deadline_ns: u64,
}

impl HealthGate {
    /// Demands, by `within` from `now` on, an open store, a first publication, and a poll of each of `devices`.
    pub fn new(devices: Vec<String>, within: Duration, now: Stamp) -> Self {
        Self { devices, deadline_ns: now.mono_ns + within.as_nanos() as u64 }
    }

    /// Judges.
    pub fn judge(&self, report: &HealthReport, now: Stamp) -> HealthVerdict {
        let missing = self.missing(report);
        match missing {
            None => HealthVerdict::Healthy,
            Some(missing) if now.mono_ns >= self.deadline_ns => HealthVerdict::Failed(missing),
            Some(missing) => HealthVerdict::Waiting(missing),
        }
    }

    fn missing(&self, report: &HealthReport) -> Option<String> {
        if !report.store_open {
            return Some("the store is not open".to_owned());
        }
        if !report.published {
            return Some("nothing was published yet".to_owned());
        }
        let unseen: Vec<&str> =
            self.devices.iter().map(String::as_str).filter(|id| !report.polled.contains(*id)).collect();
        let first = unseen.first()?;
        Some(match unseen.len() {
            1 => format!("device {first} was not polled yet"),
            more => format!("{more} devices were not polled yet, among them {first}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ClockTrust;

    fn at(seconds: u64) -> Stamp {
        Stamp {
            wall_ms: 0,
            mono_ns: seconds * 1_000_000_000,
            uptime: Default::default(),
            trust: ClockTrust::Unsynchronised,
        }
    }

    #[test]
    fn healthy_is_store_publication_and_every_device_that_was_polled_before() {
        let gate = HealthGate::new(vec!["pump-1".to_owned(), "pump-2".to_owned()], Duration::from_secs(60), at(5));
        let mut report = HealthReport::default();
        assert!(matches!(gate.judge(&report, at(6)), HealthVerdict::Waiting(missing) if missing.contains("store")));
        report.store_open = true;
        assert!(matches!(gate.judge(&report, at(6)), HealthVerdict::Waiting(missing) if missing.contains("published")));
        report.published = true;
        report.polled.insert("pump-1".to_owned());
        assert!(matches!(gate.judge(&report, at(64)), HealthVerdict::Waiting(missing) if missing.contains("pump-2")));
        assert!(matches!(gate.judge(&report, at(65)), HealthVerdict::Failed(_)));
        report.polled.insert("pump-2".to_owned());
        assert_eq!(gate.judge(&report, at(65)), HealthVerdict::Healthy);
    }
}
