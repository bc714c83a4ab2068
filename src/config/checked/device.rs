//! One device: how it is reached, what is read from it and how often, and what happens to each value.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::management::clock::ClockForm;
use crate::management::desired::{Interlock, TimeSettings};
use crate::management::permit::MethodWrite;
use crate::model;

/// A device that passed every check.
#[derive(Debug, Clone, PartialEq)]
pub struct Device {
    /// What everyone but its driver knows of it.
    pub model: Arc<model::Device>,
    /// The file that declares it.
    pub file: PathBuf,
    /// Points that are read together, by rate; write-only points are in none.
    pub groups: Vec<Group>,
    /// What happens to values, parallel to the points.
    pub rules: Vec<Rule>,
    /// A batch is closed when it holds this many samples (1 to 10,000).
    pub batch_samples: usize,
    /// A batch is closed when its first sample is this old (0 to 60 s).
    pub batch_delay: Duration,
    /// What device management has to know of it.
    pub management: DeviceManagement,
    /// How it speaks.
    pub protocol: Protocol,
}

/// What device management has to know of a device.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DeviceManagement {
    /// The only fingerprint that may be approved.
    pub fingerprint: Option<String>,
    /// What may be managed here: `command`, `config`, `firmware`, `time`.
    pub delegated: BTreeSet<&'static str>,
    /// Points that hold its clock.
    pub clock: Option<ClockForm>,
    /// How its clock is looked after.
    pub time: Option<TimeSettings>,
    /// Lists of writes by name.
    pub methods: BTreeMap<String, Vec<MethodWrite>>,
    /// Points whose writes need two steps.
    pub critical: BTreeSet<String>,
    /// Conditions of writes, by point.
    pub interlocks: BTreeMap<String, Interlock>,
}

/// Points with one rate.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// Name in the file; `None` for points that carry the device's or their own rate.
    pub name: Option<String>,
    /// Time from scan to scan, 50 ms to 24 h.
    pub every: Duration,
    /// Indices of points, ascending.
    pub points: Vec<u32>,
}

/// What happens to a value on its way to a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// Factor, not 0.
    pub scale: f64,
    /// Added after scaling.
    pub offset: f64,
    /// Range that values are held in, after scaling.
    pub clamp: Option<(f64, f64)>,
    /// Smallest change that is reported.
    pub deadband: Deadband,
    /// An unchanged value is reported again after this time.
    pub heartbeat: Option<Duration>,
    /// Report changes only (and heartbeats); else every value that was read.
    pub on_change: bool,
    /// A value that was not read for this long is stale.
    pub stale_after: Option<Duration>,
}

/// Smallest change that is reported.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Deadband {
    /// Every change.
    None,
    /// In engineering units, at least 0.
    Absolute(f64),
    /// In percent of the value last reported, 0 to 100.
    Percent(f64),
}

/// How a device speaks.
#[derive(Debug, Clone, PartialEq)]
pub enum Protocol {
    /// Modbus TCP, RTU or RTU over TCP.
    Modbus(Modbus),
}

/// A Modbus device.
#[derive(Debug, Clone, PartialEq)]
pub struct Modbus {
    /// The socket or serial port; devices that name the same one share it.
    pub link: Link,
    /// Unit (slave) id, 0 to 255.
    pub unit: u8,
    /// Most registers in one request, 1 to 125.
    pub max_registers: u16,
    /// Most coils or discrete inputs in one request, 1 to 2,000.
    pub max_bits: u16,
    /// Registers that are read for nothing to save a request, 0 to 124; `None` for the link's own default (64 on TCP,
    /// 16 on serial lines).
    pub max_gap: Option<u16>,
    /// Most registers in one write, 1 to 123.
    pub max_write_registers: u16,
    /// Longest wait for a reply, 10 ms to 60 s; `None` for 1 s on TCP, and on serial lines the time on the wire plus
    /// the turnaround.
    pub timeout: Option<Duration>,
    /// Repeated reads after a failure, 0 to 10; writes are never repeated.
    pub retries: u8,
    /// How points are written.
    pub write: Write,
    /// Ask the device who it is after each connection (function codes 43/14 and 17).
    pub identify: bool,
    /// When a device that does not answer is taken off scan.
    pub breaker: Breaker,
    /// Driver data of the points, parallel to them.
    pub points: Vec<ModbusPoint>,
}

/// When a device that does not answer is left alone, and for how long.
#[derive(Debug, Clone, PartialEq)]
pub struct Breaker {
    /// Failures in a row that take it off scan, 1 to 100.
    pub failures: u32,
    /// First pause before one probe, 100 ms to 1 h.
    pub pause: Duration,
    /// Longest pause; the pause doubles up to it.
    pub max_pause: Duration,
}

/// How points are written.
#[derive(Debug, Clone, PartialEq)]
pub struct Write {
    /// Function codes to use.
    pub function: WriteFunction,
    /// Read back after a write and compare.
    pub verify: bool,
    /// Pause before reading back, 0 to 60 s.
    pub verify_delay: Duration,
    /// Largest difference that still counts as equal, in raw units, at least 0.
    pub tolerance: f64,
    /// Write and read back in one request (function code 23).
    pub read_write: bool,
    /// Change bits of a register by function code 22 where the device knows it.
    pub mask_write: bool,
}

/// Function codes of writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteFunction {
    /// 5 and 6 for single values, 15 and 16 for longer ones.
    Auto,
    /// 5 and 6 only.
    Single,
    /// 15 and 16 only.
    Multiple,
}

/// A physical connection and how to treat it.
#[derive(Debug, Clone, PartialEq)]
pub struct Link {
    /// Where it leads.
    pub transport: Transport,
    /// Everything else; the same for all devices on it.
    pub options: LinkOptions,
}

/// How a link is treated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkOptions {
    /// Longest wait for the connection, 100 ms to 60 s.
    pub connect_timeout: Duration,
    /// Pause after connecting, 0 to 60 s.
    pub pause_after_connect: Duration,
    /// Pause between two requests, 0 to 10 s; on serial lines never less than the silence that the standard asks for.
    pub pause_between_requests: Duration,
    /// Close the connection when nothing is under way.
    pub close_after_cycle: bool,
    /// How long a line is drained after a timeout, so that a late reply is never taken for the answer to the next
    /// request, 0 to 60 s. `None` for the driver's own rule.
    pub late_reply_guard: Option<Duration>,
    /// Prove by an echo (function code 8) that no late reply is on its way after a timeout.
    pub resync_echo: bool,
    /// Longest time a unit on a serial line needs before its reply begins, 0 to 60 s.
    pub turnaround: Duration,
    /// Refuse TCP replies that carry another unit than the request.
    pub check_unit: bool,
}

/// Where a link leads.
#[derive(Debug, Clone, PartialEq)]
pub enum Transport {
    /// Modbus TCP.
    Tcp {
        /// Host name or address.
        host: String,
        /// TCP port.
        port: u16,
    },
    /// RTU frames in a TCP stream (serial device servers).
    RtuOverTcp {
        /// Host name or address.
        host: String,
        /// TCP port.
        port: u16,
    },
    /// A serial line.
    Serial(Serial),
}

impl Transport {
    /// What two devices must share to share the link: `host:port` or the path of the port.
    pub fn medium(&self) -> String {
        match self {
            Transport::Tcp { host, port } | Transport::RtuOverTcp { host, port } => {
                format!("{host}:{port}")
            }
            Transport::Serial(serial) => serial.path.clone(),
        }
    }

    /// Name of the protocol in `onboarding` and in logs.
    pub const fn protocol(&self) -> &'static str {
        match self {
            Transport::Tcp { .. } => "modbus-tcp",
            Transport::RtuOverTcp { .. } => "modbus-rtu-over-tcp",
            Transport::Serial(_) => "modbus-rtu",
        }
    }
}

impl std::fmt::Display for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bracketed = |host: &str| if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        match self {
            Transport::Tcp { host, port } => write!(f, "tcp://{}:{port}", bracketed(host)),
            Transport::RtuOverTcp { host, port } => write!(f, "rtu-over-tcp://{}:{port}", bracketed(host)),
            Transport::Serial(s) => {
                let parity = match s.parity {
                    Parity::None => 'N',
                    Parity::Even => 'E',
                    Parity::Odd => 'O',
                };
                write!(f, "serial://{} {} {}{parity}{}", s.path, s.baud, s.data_bits, s.stop_bits)
            }
        }
    }
}

/// A serial port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Serial {
    /// Path of the port, such as `/dev/ttyUSB0`.
    pub path: String,
    /// 300 to 921,600 bits per second.
    pub baud: u32,
    /// Parity bit.
    pub parity: Parity,
    /// 7 or 8; RTU needs 8.
    pub data_bits: u8,
    /// 1 or 2.
    pub stop_bits: u8,
}

/// Parity bit of a serial line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Parity {
    None,
    Even,
    Odd,
}

/// How addresses are written in a device's files. In the checked form they always count from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Addressing {
    /// 0 to 65535, as on the wire.
    #[default]
    ZeroBased,
    /// 1 to 65536: the first register is 1.
    OneBased,
    /// 5 or 6 digits whose first names the table: 40001 or 400001 is the first holding register.
    Modicon,
}

/// The four tables of a Modbus device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    /// Read and written bits.
    Coil,
    /// Read-only bits.
    Discrete,
    /// Read-only registers.
    Input,
    /// Read and written registers.
    Holding,
}

impl Table {
    /// The name in configuration files.
    pub const fn as_str(self) -> &'static str {
        match self {
            Table::Coil => "coil",
            Table::Discrete => "discrete",
            Table::Input => "input",
            Table::Holding => "holding",
        }
    }

    /// Whether it holds bits and not registers.
    pub const fn is_bits(self) -> bool {
        matches!(self, Table::Coil | Table::Discrete)
    }

    /// Whether a client may write to it.
    pub const fn is_writable(self) -> bool {
        matches!(self, Table::Coil | Table::Holding)
    }
}

/// Order of the octets of a value that is wider than one register, A the most significant. The names hold for 64 bits,
/// too: `cdab` is then `ghefcdab`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Order {
    /// Most significant register and octet first: the standard's own.
    #[default]
    Abcd,
    /// Least significant register first.
    Cdab,
    /// Most significant register first, octets swapped in each.
    Badc,
    /// Least significant register and octet first.
    Dcba,
}

/// Bits of a register, 0 the least significant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BitRange {
    /// Lowest bit.
    pub low: u8,
    /// Highest bit, included.
    pub high: u8,
}

/// What the driver must know of a point.
#[derive(Debug, Clone, PartialEq)]
pub struct ModbusPoint {
    /// Table it lies in.
    pub table: Table,
    /// First address, from 0.
    pub address: u16,
    /// Registers (or bits, in the tables of bits) it takes, 1 to 125; `address + count` stays within 65,536.
    pub count: u16,
    /// Octets of a text or octet string, 1 to 250; else 0.
    pub length: u16,
    /// Order of octets.
    pub order: Order,
    /// Part of the register that is the value.
    pub bits: Option<BitRange>,
}
