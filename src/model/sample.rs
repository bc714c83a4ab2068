//! A value of a point at a time, with its quality.

use std::fmt;
use std::sync::Arc;

use super::{DeviceId, PointId, Stamp};

/// A decoded value. Floating-point values are always finite: what is not a number is a missing value with
/// [`Reason::NotANumber`].
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A coil, discrete input or bit.
    Bool(bool),
    /// Signed integer of 8 to 64 bits.
    Int(i64),
    /// Unsigned integer of 8 to 64 bits, BCD, bit range.
    Uint(u64),
    /// 32-bit float, kept apart so that it prints with its own shortest digits (`21.3`, not `21.299999237060547`).
    Float(f32),
    /// 64-bit float, and every scaled value.
    Double(f64),
    /// Text.
    Text(Arc<str>),
    /// Raw octets.
    Bytes(Arc<[u8]>),
}

impl Value {
    /// The value as a number where it is one; booleans are 0 and 1. 64-bit integers lose digits beyond 2^53.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Value::Bool(b) => Some(f64::from(u8::from(b))),
            Value::Int(i) => Some(i as f64),
            Value::Uint(u) => Some(u as f64),
            Value::Float(f) => Some(f64::from(f)),
            Value::Double(d) => Some(d),
            Value::Text(_) | Value::Bytes(_) => None,
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Bool(v) => v.fmt(f),
            Value::Int(v) => v.fmt(f),
            Value::Uint(v) => v.fmt(f),
            Value::Float(v) => v.fmt(f),
            Value::Double(v) => v.fmt(f),
            Value::Text(v) => v.fmt(f),
            Value::Bytes(v) => v.iter().try_for_each(|b| write!(f, "{b:02x}")),
        }
    }
}

/// Whether a value may be used, in the three steps that OPC, Sparkplug and historians share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Quality {
    /// Read as asked and inside every limit.
    #[default]
    Good,
    /// Usable with care: stale, clamped.
    Uncertain,
    /// Not usable: the last value (if any) is history.
    Bad,
}

/// Why a quality is not good. The text form (kebab-case) is part of the topic contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Not read since start or since the configuration changed.
    NotYetRead,
    /// The device did not answer in time.
    Timeout,
    /// The link (socket, serial port) is down.
    LinkDown,
    /// The device is off scan after repeated failures; probed with back-off.
    OffScan,
    /// The device refused the address (Modbus exception 2 and its like).
    IllegalAddress,
    /// The device answered with another exception.
    DeviceException,
    /// The reply broke the protocol or had the wrong length.
    ProtocolError,
    /// The bytes are no value of the configured type (BCD digit above 9, text that is not UTF-8).
    DecodeError,
    /// NaN or infinite.
    NotANumber,
    /// Outside the clamp range; the value is the range's end.
    Clamped,
    /// Older than it may be: polls are late or skipped.
    Stale,
    /// The point or device is switched off by configuration or an operator.
    Disabled,
    /// The device's identity is not the approved one.
    IdentityChanged,
}

impl Reason {
    /// The text that stands in messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Reason::NotYetRead => "not-yet-read",
            Reason::Timeout => "timeout",
            Reason::LinkDown => "link-down",
            Reason::OffScan => "off-scan",
            Reason::IllegalAddress => "illegal-address",
            Reason::DeviceException => "device-exception",
            Reason::ProtocolError => "protocol-error",
            Reason::DecodeError => "decode-error",
            Reason::NotANumber => "not-a-number",
            Reason::Clamped => "clamped",
            Reason::Stale => "stale",
            Reason::Disabled => "disabled",
            Reason::IdentityChanged => "identity-changed",
        }
    }
}

/// One value of one point at one time.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The point, unique in its device.
    pub point: PointId,
    /// The value; `None` when there is none to report (never read, not a number, unreadable).
    pub value: Option<Value>,
    /// Whether the value may be used.
    pub quality: Quality,
    /// Why the quality is not good; `None` when it is.
    pub reason: Option<Reason>,
    /// When the value was true: the device's own time where the protocol has one, else the time of its reply.
    pub at: Stamp,
}

/// Samples of one device that travel together: one record in the log, one message on `telemetry`.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Whose samples these are.
    pub device: DeviceId,
    /// When the batch was closed.
    pub at: Stamp,
    /// At least one sample, in the order they were read.
    pub samples: Vec<Sample>,
}
