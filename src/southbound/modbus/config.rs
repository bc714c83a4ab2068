//! Checked configuration of one Modbus device.

use std::fmt;
use std::time::Duration;

use crate::model::{Access, DataType, Device};
use crate::southbound::breaker;

/// A Modbus device: one unit on one link.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The physical link. Devices with equal links share it.
    pub link: Link,
    /// How the link behaves; the first device on a link decides.
    pub options: LinkOptions,
    /// Unit (slave) address. 1 to 247 by the standard; TCP devices also use 0 and 255.
    pub unit: u8,
    /// Where each point lies, parallel to `Device::points`.
    pub points: Vec<PointAddress>,
    /// What one request may carry.
    pub limits: Limits,
    /// Longest wait for a reply. `None`: 1 s on TCP; on serial lines the time both frames take on the wire plus
    /// [`LinkOptions::turnaround`].
    pub reply_timeout: Option<Duration>,
    /// How often a failed read is tried again at once. Writes are never repeated.
    pub retries: u8,
    /// How often points that the device refused are asked for again: an update of the device may have brought them.
    pub retry_refused: Duration,
    /// When the device goes off scan.
    pub breaker: breaker::Settings,
    /// How points are written.
    pub write: WriteOptions,
    /// Whether to ask the device what it is (FC 43/14, then FC 17) when it was reached. Off for devices that such a
    /// question upsets.
    pub identify: bool,
    /// Object of FC 43/14 that holds the serial number: the standard names none, so that vendors use a private one
    /// (0x80 to 0xFF). `None`: it stays a text beside others, and the identity has no serial number.
    pub serial_object: Option<u8>,
}

impl Config {
    /// A device with every default, and no points yet.
    pub fn new(link: Link, unit: u8) -> Self {
        Self {
            link,
            options: LinkOptions::default(),
            unit,
            points: Vec::new(),
            limits: Limits::default(),
            reply_timeout: None,
            retries: 1,
            retry_refused: Duration::from_secs(600),
            breaker: breaker::Settings::default(),
            write: WriteOptions::default(),
            identify: true,
            serial_object: None,
        }
    }

    /// Widest gap, in registers, that is read along rather than making a second request.
    pub fn max_gap(&self) -> u16 {
        self.limits.max_gap.unwrap_or(match self.link {
            Link::Tcp { .. } => 64,
            Link::RtuOverTcp { .. } | Link::Serial(_) => 16,
        })
    }

    /// The first contradiction in this configuration, in words.
    pub(crate) fn problem(&self, device: &Device) -> Option<String> {
        if self.points.len() != device.points.len() {
            return Some(format!("{} points but {} addresses", device.points.len(), self.points.len()));
        }
        if self.unit == 0 && matches!(self.link, Link::Serial(_)) {
            return Some("unit 0 is the broadcast address of a serial line and never answers; use 1 to 247".into());
        }
        if let Some(problem) = self.limits.problem() {
            return Some(problem);
        }
        let named = device.points.iter().zip(&self.points);
        named
            .map(|(point, address)| (point, address.problem(&self.limits, point.access)))
            .find_map(|(point, problem)| problem.map(|problem| format!("point {}: {problem}", point.id)))
    }
}

/// A physical link.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Link {
    /// Modbus TCP.
    Tcp {
        /// Name or address, IPv6 with or without brackets. Names are looked up at every connect.
        host: String,
        /// TCP port, 502 by the standard.
        port: u16,
    },
    /// RTU frames over a TCP stream, as serial device servers offer.
    RtuOverTcp {
        /// Name or address, IPv6 with or without brackets. Names are looked up at every connect.
        host: String,
        /// TCP port.
        port: u16,
    },
    /// RTU on a serial port.
    Serial(SerialLine),
}

/// A serial port and its settings.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SerialLine {
    /// Device file, such as `/dev/serial/by-id/…`.
    pub path: String,
    /// Bits per second.
    pub baud: u32,
    /// 7 or 8; RTU needs 8.
    pub data_bits: DataBits,
    /// Parity; the standard's default is even.
    pub parity: Parity,
    /// Stop bits; 2 where there is no parity, by the standard.
    pub stop_bits: StopBits,
}

impl SerialLine {
    /// A line with the standard's defaults: 8 data bits, even parity, 1 stop bit.
    pub fn new(path: &str, baud: u32) -> Self {
        Self { path: path.into(), baud, data_bits: DataBits::Eight, parity: Parity::Even, stop_bits: StopBits::One }
    }
}

/// Data bits of a character.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum DataBits {
    Seven,
    Eight,
}

/// Parity bit of a character.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Parity {
    None,
    Even,
    Odd,
}

/// Stop bits of a character.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum StopBits {
    One,
    Two,
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Link::Tcp { host, port } => write!(f, "modbus-tcp://{}:{port}", Host(host)),
            Link::RtuOverTcp { host, port } => write!(f, "modbus-rtu-tcp://{}:{port}", Host(host)),
            Link::Serial(line) => write!(f, "modbus-rtu://{}", line.path),
        }
    }
}

struct Host<'a>(&'a str);

impl fmt::Display for Host<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.contains(':') && !self.0.starts_with('[') {
            true => write!(f, "[{}]", self.0),
            false => f.write_str(self.0),
        }
    }
}

/// Behaviour of a link, the same for all its devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkOptions {
    /// Longest wait for a TCP connection.
    pub connect_timeout: Duration,
    /// Wait between attempts to make the link: first and longest; it doubles from one to the other.
    pub reconnect: (Duration, Duration),
    /// Wait after the link was made before the first request.
    pub pause_after_connect: Duration,
    /// Wait between a reply and the next request; at least 3.5 characters on serial lines whatever stands here.
    pub pause_between_requests: Duration,
    /// Close the connection when no cycle is under way, for devices that accept one client at a time.
    pub close_after_cycle: bool,
    /// RTU only: how long a unit is left alone after a timeout, so that a late reply comes while nobody waits for one.
    /// Other units of the link go on meanwhile. Set it above the longest time that the slowest unit, or a converter on the
    /// way, ever keeps a reply. `None`: 1 s; it grows by itself to twice the latest reply seen.
    pub late_reply_guard: Option<Duration>,
    /// After a timeout on RTU: ask the unit to echo a random number (FC 8) before it is trusted again, which proves that
    /// no earlier reply is still on its way. Units that ignore the question are recognised and left alone for 3 s instead.
    pub resync_echo: bool,
    /// Longest time a unit on a serial line needs between a request and the first byte of its reply.
    pub turnaround: Duration,
    /// Refuse replies that carry another unit than the request. Off for gateways that always answer as unit 0, 1 or 255;
    /// Modbus TCP only, RTU always checks.
    pub check_unit: bool,
}

impl Default for LinkOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(3),
            reconnect: (Duration::from_millis(500), Duration::from_secs(30)),
            pause_after_connect: Duration::ZERO,
            pause_between_requests: Duration::ZERO,
            close_after_cycle: false,
            late_reply_guard: None,
            resync_echo: true,
            turnaround: Duration::from_millis(300),
            check_unit: true,
        }
    }
}

/// What one request of a device may carry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Registers per read, 1 to 125.
    pub max_registers: u16,
    /// Coils or discrete inputs per read, 1 to 2000.
    pub max_bits: u16,
    /// Registers per write, 1 to 123.
    pub max_write_registers: u16,
    /// Widest gap in registers (for bits: 16 each) that is read along. `None`: 64 on TCP, 16 on RTU.
    pub max_gap: Option<u16>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_registers: 125, max_bits: 2000, max_write_registers: 123, max_gap: None }
    }
}

impl Limits {
    fn problem(&self) -> Option<String> {
        let ranges = [
            ("max_registers", self.max_registers, 125),
            ("max_bits", self.max_bits, 2000),
            ("max_write_registers", self.max_write_registers, 123),
        ];
        ranges
            .into_iter()
            .find(|&(_, value, most)| value == 0 || value > most)
            .map(|(name, value, most)| format!("{name} = {value} is outside 1 to {most}"))
    }
}

/// How points are written.
#[derive(Debug, Clone, PartialEq)]
pub struct WriteOptions {
    /// Which functions to use.
    pub function: WriteFunction,
    /// Read the point back after a write and compare.
    pub verify: bool,
    /// Wait between a write and its read-back, for devices that take values over in their own cycle.
    pub verify_delay: Duration,
    /// Largest difference of the read-back that still counts as equal, in raw units.
    pub tolerance: f64,
    /// Write registers and read them back in one request (FC 23), for devices that support it.
    pub read_write: bool,
    /// Change bits of a register with FC 22 where the device supports it, else by reading and writing the register.
    pub mask_write: bool,
}

impl Default for WriteOptions {
    fn default() -> Self {
        Self {
            function: WriteFunction::Auto,
            verify: true,
            verify_delay: Duration::ZERO,
            tolerance: 0.0,
            read_write: false,
            mask_write: true,
        }
    }
}

/// Which functions write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WriteFunction {
    /// FC 5 and 6 for a single coil or register, FC 15 and 16 for more.
    #[default]
    Auto,
    /// FC 5 and 6 only; values of several registers cannot be written.
    Single,
    /// FC 15 and 16 only.
    Multiple,
}

/// The four tables of a Modbus device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    /// Bits, read and written (0x references, FC 1).
    Coil,
    /// Bits, read only (1x references, FC 2).
    Discrete,
    /// Registers, read only (3x references, FC 4).
    Input,
    /// Registers, read and written (4x references, FC 3).
    Holding,
}

impl Table {
    /// Whether the table holds bits.
    pub const fn is_bits(self) -> bool {
        matches!(self, Table::Coil | Table::Discrete)
    }

    /// Whether the table can be written.
    pub const fn is_writable(self) -> bool {
        matches!(self, Table::Coil | Table::Holding)
    }

    /// The function code that reads it.
    pub const fn read_function(self) -> u8 {
        match self {
            Table::Coil => 1,
            Table::Discrete => 2,
            Table::Holding => 3,
            Table::Input => 4,
        }
    }

    /// The name used in configuration files.
    pub const fn as_str(self) -> &'static str {
        match self {
            Table::Coil => "coil",
            Table::Discrete => "discrete",
            Table::Input => "input",
            Table::Holding => "holding",
        }
    }
}

/// Order of the octets of a value in its registers. `A` is the most significant octet (of each 32 bits).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[allow(clippy::upper_case_acronyms, reason = "the names that every manual of a device uses")]
pub enum WordOrder {
    /// Most significant register and octet first, as the standard has it.
    #[default]
    ABCD,
    /// Least significant register first, octets in order.
    CDAB,
    /// Most significant register first, octets of each register swapped.
    BADC,
    /// Least significant octet first.
    DCBA,
}

impl WordOrder {
    /// All four orders.
    pub const ALL: [WordOrder; 4] = [WordOrder::ABCD, WordOrder::CDAB, WordOrder::BADC, WordOrder::DCBA];

    /// Least significant register first.
    pub const fn swaps_words(self) -> bool {
        matches!(self, WordOrder::CDAB | WordOrder::DCBA)
    }

    /// Octets of each register swapped.
    pub const fn swaps_octets(self) -> bool {
        matches!(self, WordOrder::BADC | WordOrder::DCBA)
    }
}

/// How a text lies in its registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TextOptions {
    /// Which octets are letters.
    pub charset: Charset,
    /// Cut at the first NUL.
    pub trim_nul: bool,
    /// Drop spaces at the end.
    pub trim_space: bool,
    /// The second letter lies in the high octet of each register.
    pub swap_octets: bool,
}

impl Default for TextOptions {
    fn default() -> Self {
        Self { charset: Charset::Utf8, trim_nul: true, trim_space: true, swap_octets: false }
    }
}

/// Character set of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Charset {
    /// 7-bit ASCII; anything else is a decode error.
    Ascii,
    /// UTF-8; invalid sequences are a decode error.
    Utf8,
}

/// Where one point lies and how to read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PointAddress {
    /// The table.
    pub table: Table,
    /// First coil, input or register as it goes over the wire: 0-based.
    pub address: u16,
    /// Type in the device; the same as the point's.
    pub data_type: DataType,
    /// Registers of a BCD value (1 to 4), octets of a text or of bytes (1 to 250). Ignored for other types.
    pub length: u16,
    /// Order of the octets.
    pub order: WordOrder,
    /// First and last bit of the value that count, bit 0 the least significant, both included.
    pub bit: Option<(u8, u8)>,
    /// For texts; `swap_octets` also for bytes.
    pub text: TextOptions,
}

impl PointAddress {
    /// A point with standard order and no bit range; texts and BCD need [`Self::length`] set.
    pub fn new(table: Table, address: u16, data_type: DataType) -> Self {
        let length = if data_type == DataType::Bcd { 1 } else { 2 };
        Self { table, address, data_type, length, order: WordOrder::ABCD, bit: None, text: TextOptions::default() }
    }

    /// Coils, inputs or registers that the value takes.
    pub const fn width(&self) -> u16 {
        if self.table.is_bits() {
            return 1;
        }
        match self.data_type {
            DataType::Bool | DataType::I8 | DataType::U8 | DataType::I16 | DataType::U16 => 1,
            DataType::I32 | DataType::U32 | DataType::F32 => 2,
            DataType::I64 | DataType::U64 | DataType::F64 => 4,
            DataType::Bcd => self.length,
            DataType::Text | DataType::Bytes => self.length.div_ceil(2),
        }
    }

    /// The first contradiction, in words.
    pub(crate) fn problem(&self, limits: &Limits, access: Access) -> Option<String> {
        let width = self.width();
        if u32::from(self.address) + u32::from(width) > 0x1_0000 {
            return Some(format!("address {} and {width} registers go beyond 65535", self.address));
        }
        if access != Access::Read && !self.table.is_writable() {
            return Some(format!("the {} table cannot be written; make the point read-only", self.table.as_str()));
        }
        if self.table.is_bits() {
            let fits = self.data_type == DataType::Bool && self.bit.is_none();
            return (!fits).then(|| format!("a {} is a bool without a bit range", self.table.as_str()));
        }
        self.length_problem(limits, access).or_else(|| self.bit_problem())
    }

    fn length_problem(&self, limits: &Limits, access: Access) -> Option<String> {
        match self.data_type {
            DataType::Bcd if !(1..=4).contains(&self.length) => Some("a bcd value takes 1 to 4 registers".into()),
            DataType::Text | DataType::Bytes if !(1..=250).contains(&self.length) => {
                Some("a string or bytes value takes 1 to 250 octets".into())
            }
            _ if self.width() > limits.max_registers => Some(format!(
                "{} registers do not fit one request of at most {}, and a value is never split",
                self.width(),
                limits.max_registers
            )),
            _ if access != Access::Read && self.width() > limits.max_write_registers => Some(format!(
                "{} registers do not fit one write of at most {}",
                self.width(),
                limits.max_write_registers
            )),
            _ => None,
        }
    }

    fn bit_problem(&self) -> Option<String> {
        let (first, last) = self.bit?;
        let bits = match self.data_type {
            DataType::Bool if first != last => return Some("a bool is one bit: give one bit, not a range".into()),
            DataType::F32 | DataType::F64 | DataType::Bcd | DataType::Text | DataType::Bytes => {
                return Some(format!("a {} has no bit range", self.data_type.as_str()));
            }
            DataType::Bool | DataType::I8 | DataType::U8 | DataType::I16 | DataType::U16 => 16,
            DataType::I32 | DataType::U32 => 32,
            DataType::I64 | DataType::U64 => 64,
        };
        (first > last || last >= bits).then(|| format!("bits {first} to {last} are not in 0 to {}", bits - 1))
    }
}
