//! **The server side of Modbus**, written from the Modbus Application Protocol Specification V1.1b3 and the serial line
//! guide V1.02. It is Sans-IO: bytes in, bytes out; [`crate::server`] moves them.
//!
//! Function codes 1–6, 8 (echo only), 15, 16, 17 (report server id), 22 (mask write), 23 (read and write) and 43/14 (identification).
//! Addresses are 0-based protocol addresses everywhere.

pub mod frame;
pub mod memory;
pub mod pdu;
pub mod value;

pub use memory::Memory;

/// The four tables of the data model (V1.1b3, 4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    /// Bits, read and written.
    Coil,
    /// Bits, read only.
    Discrete,
    /// Registers, read only.
    Input,
    /// Registers, read and written.
    Holding,
}

impl Table {
    /// The name that scenario files use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Table::Coil => "coil",
            Table::Discrete => "discrete",
            Table::Input => "input",
            Table::Holding => "holding",
        }
    }

    /// The table of that name.
    pub fn parse(name: &str) -> Option<Self> {
        [Table::Coil, Table::Discrete, Table::Input, Table::Holding].into_iter().find(|table| table.as_str() == name)
    }

    /// Whether its items are bits.
    pub const fn is_bits(self) -> bool {
        matches!(self, Table::Coil | Table::Discrete)
    }

    /// Whether clients may write it.
    pub const fn is_writable(self) -> bool {
        matches!(self, Table::Coil | Table::Holding)
    }
}

/// Exception codes (V1.1b3, 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exception {
    /// The function code is not known here.
    IllegalFunction = 1,
    /// An address that the device does not have.
    IllegalAddress = 2,
    /// A count or value that the device does not take.
    IllegalValue = 3,
    /// The device failed while it tried.
    DeviceFailure = 4,
    /// The device is busy with a long command.
    Busy = 6,
    /// A gateway got no answer from the device behind it.
    TargetFailed = 11,
}

impl Exception {
    /// The exception of that code, if this server ever sends it.
    pub fn from_code(code: u8) -> Option<Self> {
        use Exception::{Busy, DeviceFailure, IllegalAddress, IllegalFunction, IllegalValue, TargetFailed};
        [IllegalFunction, IllegalAddress, IllegalValue, DeviceFailure, Busy, TargetFailed]
            .into_iter()
            .find(|exception| *exception as u8 == code)
    }
}
