//! **Scenario files**: which plant, which devices, what is wrong with them. TOML; unknown keys are refused with their
//! line. The file format is `scenario/raw.rs`, key by key; what is checked beyond it is `scenario/check.rs`. The
//! built-in scenario is `scenarios/pump-station.toml`.

mod build;
mod check;
mod raw;
mod text;

pub use text::parse_duration;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use crate::SimError;
use crate::device::DeviceSpec;
use crate::physics::{PumpStation, Settings, Shape};
use crate::signal::Model;

/// Signals with text in them: the scenario's name.
pub(crate) const TEXT_SIGNALS: [&str; 1] = ["plant.name"];

/// The text of the built-in scenario.
pub const PUMP_STATION: &str = include_str!("../scenarios/pump-station.toml");

/// Where devices are reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// Modbus TCP.
    Tcp(SocketAddr),
    /// RTU frames through a converter's socket. All connections share one line.
    RtuOverTcp {
        /// Where the converter listens.
        bind: SocketAddr,
        /// Speed of the line behind it, which every byte costs; `None`: no cost.
        baud: Option<u32>,
        /// Replies go to every open connection, also to those that came after the request.
        broadcast: bool,
    },
    /// RTU on a serial line.
    Serial {
        /// Device path.
        path: String,
        /// Line speed, 8N1.
        baud: u32,
    },
}

/// One way into the plant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Unique in the scenario.
    pub name: String,
    /// Where.
    pub link: Link,
    /// Connections at a time; a further one is closed at once. `None`: no limit.
    pub max_connections: Option<usize>,
}

/// A signal without a model behind it.
#[derive(Debug, Clone, PartialEq)]
pub struct GeneratorSpec {
    /// Unique among all signals.
    pub name: String,
    /// Its course.
    pub shape: Shape,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Time of one cycle.
    pub period: Duration,
}

/// Which physical model runs.
#[derive(Debug, Clone)]
pub enum ModelSpec {
    /// Only generated signals.
    None,
    /// See [`crate::physics::PumpStation`].
    PumpStation(Settings),
}

/// A checked scenario: every point's signal exists, no address is used twice, every device has its listener.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// Name for people.
    pub name: String,
    /// Text for people.
    pub description: String,
    /// Seed of all randomness.
    pub seed: u64,
    /// Plant time of one step.
    pub step: Duration,
    /// Steps per `step` of real time.
    pub speed: u32,
    /// Whether plant time runs by itself; otherwise by [`crate::Plant::advance`].
    pub runs: bool,
    /// The model.
    pub plant: ModelSpec,
    /// Signals without a model.
    pub generators: Vec<GeneratorSpec>,
    /// Ways in.
    pub listeners: Vec<Listener>,
    /// Devices.
    pub devices: Vec<DeviceSpec>,
}

impl Scenario {
    /// The built-in pump station.
    pub fn pump_station() -> Self {
        Self::parse("pump-station.toml", PUMP_STATION).expect("the built-in scenario is checked by a test")
    }

    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, SimError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| SimError::ReadScenario { path: path.to_owned(), source })?;
        Self::parse(&path.display().to_string(), &text)
    }

    /// Reads and checks a text; `name` stands in errors.
    pub fn parse(name: &str, text: &str) -> Result<Self, SimError> {
        let raw: raw::Scenario = toml::from_str(text)
            .map_err(|source| SimError::Syntax { name: name.to_owned(), source: Box::new(source) })?;
        check::check(raw).map_err(|problem| SimError::Invalid {
            name: name.to_owned(),
            at: problem.at,
            problem: problem.text,
        })
    }

    /// The same scenario on ports that the system chooses; ask [`crate::Plant::address`] for them.
    pub fn on_free_ports(mut self) -> Self {
        for listener in &mut self.listeners {
            match &mut listener.link {
                Link::Tcp(bind) | Link::RtuOverTcp { bind, .. } => bind.set_port(0),
                Link::Serial { .. } => {}
            }
        }
        self
    }

    /// The same scenario with another seed.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        if let ModelSpec::PumpStation(settings) = &mut self.plant {
            settings.seed = seed;
        }
        self
    }

    /// The device of that name, to change before the start.
    pub fn device_mut(&mut self, name: &str) -> Option<&mut DeviceSpec> {
        self.devices.iter_mut().find(|device| device.name == name)
    }

    /// The model in its initial state.
    pub(crate) fn model(&self) -> Option<Box<dyn Model>> {
        match &self.plant {
            ModelSpec::None => None,
            ModelSpec::PumpStation(settings) => Some(Box::new(PumpStation::new(settings.clone()))),
        }
    }
}

#[cfg(test)]
mod tests;
