//! What the gateway knows about a device and its points, whatever protocol it speaks.

use std::sync::Arc;

use super::{DeviceId, PointId};

/// Margo's two tiers of device management (working group on device management, 2024-07-08).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Tier {
    /// Keeps its proprietary management interface; only what was delegated can be managed here.
    #[default]
    One,
    /// Workload and device management both go through this gateway.
    Two,
}

/// What may be done with a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Access {
    /// Read only: every write is denied. The default.
    #[default]
    Read,
    /// Read and written.
    ReadWrite,
    /// Written only; never polled.
    Write,
}

/// Data type of a point as the device holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum DataType {
    Bool,
    I8,
    I16,
    I32,
    I64,
    U8,
    U16,
    U32,
    U64,
    F32,
    F64,
    /// Binary-coded decimal, 4 digits per 16-bit register; the point's length gives the registers.
    Bcd,
    /// Text of a fixed number of bytes.
    Text,
    /// Raw octets of a fixed length.
    Bytes,
}

impl DataType {
    /// The name used in configuration files and in `capabilities`.
    pub const fn as_str(self) -> &'static str {
        match self {
            DataType::Bool => "bool",
            DataType::I8 => "i8",
            DataType::I16 => "i16",
            DataType::I32 => "i32",
            DataType::I64 => "i64",
            DataType::U8 => "u8",
            DataType::U16 => "u16",
            DataType::U32 => "u32",
            DataType::U64 => "u64",
            DataType::F32 => "f32",
            DataType::F64 => "f64",
            DataType::Bcd => "bcd",
            DataType::Text => "string",
            DataType::Bytes => "bytes",
        }
    }
}

/// Range that a written value must keep, in engineering units (after scaling), ends included.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Smallest value that may be written.
    pub min: f64,
    /// Largest value that may be written.
    pub max: f64,
}

/// A point as everyone but its driver sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// Unique in its device.
    pub id: PointId,
    /// Text for people; may be empty.
    pub description: String,
    /// Engineering unit after scaling, such as `m3/h`; may be empty.
    pub unit: String,
    /// Type in the device; a scaled point reports doubles.
    pub data_type: DataType,
    /// Whether it may be read and written.
    pub access: Access,
    /// Range of writes; `None` when only the type bounds them.
    pub limits: Option<Limits>,
}

/// A device as everyone but its driver sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Device {
    /// Unique on this gateway.
    pub id: DeviceId,
    /// Text for people; may be empty.
    pub description: String,
    /// Protocol name, such as `modbus-tcp`.
    pub protocol: &'static str,
    /// Where it is reached, without secrets, such as `tcp://192.0.2.7:502 unit 3`.
    pub address: String,
    /// Margo tier.
    pub tier: Tier,
    /// All points; a driver and the pipeline name a point by its index in this list.
    pub points: Arc<[Point]>,
}
