//! The file as written. Every key is documented where it stands; defaults are in brackets.

use serde::Deserialize;
use toml::value::Datetime;

use super::text::Span;

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Name for people.
    pub name: String,
    /// Text for people. [empty]
    #[serde(default)]
    pub description: String,
    /// Seed of all randomness. [1]
    #[serde(default = "one")]
    pub seed: u64,
    /// Plant time of one step, 10 ms to 1 s. [100 ms]
    pub step: Option<Span>,
    /// Plant seconds per real second, 1 to 1000. [1]
    pub speed: Option<u32>,
    /// The physical model. [none]
    pub plant: Option<Plant>,
    /// Signals without a model.
    #[serde(default, rename = "signal")]
    pub signals: Vec<Signal>,
    /// Ways in.
    #[serde(rename = "listener")]
    pub listeners: Vec<Listener>,
    /// Devices.
    #[serde(rename = "device")]
    pub devices: Vec<Device>,
}

fn one() -> u64 {
    1
}

/// `[plant]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plant {
    /// `pump-station` or `none`.
    pub model: String,
    /// Mean dry-weather inflow, m³/h. [170]
    pub inflow_m3h: Option<f64>,
    /// Real length of a plant day of 24 hours. [12 min]
    pub day: Option<Span>,
    /// Hour of the plant day at the start. [6.0]
    pub start_hour: Option<f64>,
    /// Mean motor trips per pump and hour. [2]
    pub trips_per_hour: Option<f64>,
    /// Time after which a tripped drive resets itself; `0s`: never. [45 s]
    pub auto_reset: Option<Span>,
    /// The controllers' date and time at the start. [2026-06-15T06:00:00]
    pub clock: Option<Datetime>,
}

/// `[[signal]]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signal {
    /// Unique.
    pub name: String,
    /// `constant`, `sine`, `ramp`, `square`, `walk` or `counter`.
    pub shape: String,
    /// Lower end. [0]
    pub low: Option<f64>,
    /// Upper end. [100]
    pub high: Option<f64>,
    /// Time of one cycle. [60 s]
    pub period: Option<Span>,
}

/// `[[listener]]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// Unique; devices name it.
    pub name: String,
    /// `tcp`, `rtu-over-tcp` or `serial`.
    pub kind: String,
    /// Address and port, for the first two kinds. Port 0 lets the system choose.
    pub bind: Option<String>,
    /// Device path, for `serial`.
    pub path: Option<String>,
    /// Line speed; each byte of request and reply costs 10 bits. [serial 19200, rtu-over-tcp: no cost]
    pub baud: Option<u32>,
    /// For `rtu-over-tcp`: replies go to every open connection, as many converters do, so that a late reply reaches the
    /// next connection. [false]
    #[serde(default)]
    pub broadcast: bool,
    /// Connections at a time. [no limit]
    pub max_connections: Option<usize>,
}

/// `[[device]]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Unique.
    pub name: String,
    /// Text for people. [empty]
    #[serde(default)]
    pub description: String,
    /// Name of its listener.
    pub listener: String,
    /// Unit id or slave address, 1 to 247. [1]
    pub unit: Option<u8>,
    /// What function 43/14 and 17 reveal. [nothing]
    #[serde(default)]
    pub identity: Identity,
    /// Time to reply. [none]
    pub delay: Option<Delay>,
    /// Planned outages.
    #[serde(default, rename = "outage")]
    pub outages: Vec<Outage>,
    /// Wrong replies.
    #[serde(default, rename = "lie")]
    pub lies: Vec<Lie>,
    /// Addresses without a point.
    #[serde(default, rename = "block")]
    pub blocks: Vec<Block>,
    /// Values.
    #[serde(default)]
    pub points: Vec<Point>,
}

/// `identity = { … }`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Identity {
    /// Manufacturer.
    pub vendor: String,
    /// Product code.
    pub product: String,
    /// Firmware.
    pub revision: String,
    /// Model name.
    pub model: String,
    /// Serial number.
    pub serial: String,
}

/// `delay = { … }`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delay {
    /// Shortest. [0 ms]
    pub min: Option<Span>,
    /// Mean.
    pub typical: Span,
    /// Longest. [10 × typical]
    pub max: Option<Span>,
}

/// `[[device.outage]]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outage {
    /// `silent`, `disconnected` or `exception`. [silent]
    pub kind: Option<String>,
    /// Exception code, for `exception`. [11]
    pub code: Option<u8>,
    /// Plant time of the first.
    pub after: Span,
    /// How long.
    pub lasts: Span,
    /// Time from one to the next. [only once]
    pub every: Option<Span>,
}

/// `[[device.lie]]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lie {
    /// `short-data`, `long-data`, `wrong-length`, `wrong-unit`, `stale-transaction`, `stale-data`, `wrong-function`,
    /// `bad-check`, `garbage`, `truncated`, `twice`, `silence`, `disconnect` or `exception`.
    pub kind: String,
    /// Exception code, for `exception`. [4]
    pub code: Option<u8>,
    /// Probability per request, 0 to 1.
    pub chance: f64,
}

/// `[[device.block]]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Block {
    /// First address, such as `holding:100`.
    pub at: String,
    /// Number of addresses.
    pub count: u16,
    /// `keep` (zeros, may be written), `address` or `count`. [keep]
    pub fill: Option<String>,
}

/// One line of `points = [ … ]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// Unique in the device.
    pub name: String,
    /// Table and 0-based address, such as `input:12`.
    pub at: String,
    /// `bool`, `u16`, `i16`, `u32`, `i32`, `u64`, `i64`, `f32`, `f64`, `bcd16`, `bcd32`, `bcd64`, `text:N` (N
    /// registers), `bit:N` or `bits:N:COUNT`. [bool for bits, u16 for registers]
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// `abcd`, `cdab`, `badc` or `dcba`. [abcd]
    pub order: Option<String>,
    /// Signal that it shows.
    pub signal: Option<String>,
    /// Or a constant: number, state or text.
    pub value: Option<Constant>,
    /// Engineering value = register × scale + offset. [1]
    pub scale: Option<f64>,
    /// See scale. [0]
    pub offset: Option<f64>,
    /// Whether clients may write it. [false]
    #[serde(default)]
    pub write: bool,
    /// Engineering unit. [empty]
    #[serde(default)]
    pub unit: String,
}

/// A constant value.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum Constant {
    /// State.
    Bool(bool),
    /// Counter.
    Count(u64),
    /// Number.
    Number(f64),
    /// Text.
    Text(String),
}
