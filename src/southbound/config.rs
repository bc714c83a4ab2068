//! Checked configuration of devices, as the configuration module hands it over.

use std::sync::Arc;
use std::time::Duration;

use crate::model;

use super::breaker;
#[cfg(feature = "modbus")]
use super::modbus;

/// Shortest poll interval.
pub const FASTEST: Duration = Duration::from_millis(50);
/// Longest poll interval.
pub const SLOWEST: Duration = Duration::from_secs(24 * 3600);

/// Points of a device that are read together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateGroup {
    /// Poll interval, [`FASTEST`] to [`SLOWEST`].
    pub every: Duration,
    /// Indices into `Device::points`.
    pub points: Vec<u32>,
}

/// Checked configuration of one device.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceConfig {
    /// The protocol-neutral view.
    pub device: Arc<model::Device>,
    /// What is read how often. A point in no group is not polled.
    pub groups: Vec<RateGroup>,
    /// What its driver needs.
    pub driver: DriverConfig,
}

/// What a driver needs to know; its point list is parallel to `Device::points`.
#[derive(Debug, Clone, PartialEq)]
pub enum DriverConfig {
    /// Modbus TCP, RTU or RTU-over-TCP.
    #[cfg(feature = "modbus")]
    Modbus(modbus::Config),
}

/// Names a physical link: devices with the same key share one task and, but for protocols that allow more, one connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkKey(pub(super) String);

/// A device configuration that contradicts itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("device {device}: {problem}")]
pub struct ConfigError {
    /// Whose configuration.
    pub device: String,
    /// The thing that is wrong and what to do.
    pub problem: String,
}

impl DeviceConfig {
    /// Checks what the types cannot: that lists are parallel, that indices exist, that every point fits a request.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.problem().map_or(Ok(()), |problem| Err(ConfigError { device: self.device.id.to_string(), problem }))
    }

    fn problem(&self) -> Option<String> {
        for group in &self.groups {
            if group.every < FASTEST || group.every > SLOWEST {
                return Some(format!("the poll interval {:?} is outside 50 ms to 24 h", group.every));
            }
            if let Some(point) = group.points.iter().find(|&&point| point as usize >= self.device.points.len()) {
                return Some(format!("a rate group names point {point}, but there are {}", self.device.points.len()));
            }
        }
        match &self.driver {
            #[cfg(feature = "modbus")]
            DriverConfig::Modbus(config) => config.problem(&self.device),
        }
    }

    /// The physical link of the device.
    pub fn link(&self) -> LinkKey {
        match &self.driver {
            #[cfg(feature = "modbus")]
            DriverConfig::Modbus(config) => LinkKey(config.link.to_string()),
        }
    }

    /// Whether both devices may be served by the same link task without making the link again.
    pub(super) fn same_link_settings(&self, other: &Self) -> bool {
        match (&self.driver, &other.driver) {
            #[cfg(feature = "modbus")]
            (DriverConfig::Modbus(a), DriverConfig::Modbus(b)) => a.link == b.link && a.options == b.options,
        }
    }

    pub(super) fn breaker(&self) -> breaker::Settings {
        match &self.driver {
            #[cfg(feature = "modbus")]
            DriverConfig::Modbus(config) => config.breaker.clone(),
        }
    }

    /// First and longest wait between attempts to make the link.
    pub(super) fn reconnect(&self) -> (Duration, Duration) {
        match &self.driver {
            #[cfg(feature = "modbus")]
            DriverConfig::Modbus(config) => config.options.reconnect,
        }
    }

    /// How often a failed read is tried again at once.
    pub(super) fn retries(&self) -> u8 {
        match &self.driver {
            #[cfg(feature = "modbus")]
            DriverConfig::Modbus(config) => config.retries,
        }
    }

    pub(super) fn identifies(&self) -> bool {
        match &self.driver {
            #[cfg(feature = "modbus")]
            DriverConfig::Modbus(config) => config.identify,
        }
    }
}
