//! What a caller of the southbound side can be told.

use std::time::Duration;

use crate::model::{DeviceId, Value};

/// A write that was done.
#[derive(Debug, Clone, PartialEq)]
pub struct WriteDone {
    /// The raw value read back from the device; `None` when the configuration asks for no read-back.
    pub read_back: Option<Value>,
}

/// Why a write was not done, or is not known to be done.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum WriteError {
    /// No such device, or no such point of it.
    #[error("no point {point} of a device {device} is configured; check the names")]
    UnknownPoint {
        /// The device asked for.
        device: DeviceId,
        /// Index of the point asked for.
        point: u32,
    },
    /// The point is read-only by configuration or by its nature (input register, discrete input).
    #[error("the point cannot be written: {0}")]
    NotWritable(String),
    /// The value does not fit the point's type.
    #[error("value {value} does not fit the point: {reason}")]
    OutOfRange {
        /// The value asked for.
        value: Value,
        /// What would fit.
        reason: String,
    },
    /// The link is down; nothing was sent.
    #[error("nothing was sent, the link is down: {0}")]
    LinkDown(String),
    /// The device is off scan after repeated failures; nothing was sent.
    #[error("nothing was sent, the device is off scan: {0}")]
    OffScan(String),
    /// Some bits of a register were to be changed, and the register could not be read first; nothing was written.
    #[error("nothing was written, the register could not be read first: {0}")]
    NotSent(String),
    /// Too many writes wait for the link; nothing was sent.
    #[error("nothing was sent, the link is busy with other writes; try again")]
    Busy,
    /// The write was sent and no answer came: it may or may not have been done.
    #[error("no answer within {0:?}: the write may or may not have been done; read the point before trying again")]
    Timeout(Duration),
    /// The answer was broken or the link was lost after the write was sent: it may or may not have been done.
    #[error("the answer was lost ({0}): the write may or may not have been done; read the point before trying again")]
    AnswerLost(String),
    /// The device refused.
    #[error("the device refused the write: {text}")]
    DeviceException {
        /// The protocol's code of the refusal.
        code: u8,
        /// The code in words.
        text: String,
    },
    /// The write was confirmed, but the point reads otherwise.
    #[error("the device confirmed {written}, but the point reads {read}")]
    ReadBackMismatch {
        /// The raw value written.
        written: Value,
        /// The raw value read afterwards.
        read: Value,
    },
    /// The write was confirmed, but the point could not be read back.
    #[error("the device confirmed the write, but reading it back failed: {0}")]
    ReadBackFailed(String),
    /// The gateway stops, or the device's configuration changes.
    #[error("the device is being stopped or reconfigured; try again")]
    Stopped,
}

impl WriteError {
    /// The stable code that stands in `command/result`.
    pub const fn code(&self) -> &'static str {
        match self {
            WriteError::UnknownPoint { .. } => "unknown-point",
            WriteError::NotWritable(_) => "not-writable",
            WriteError::OutOfRange { .. } => "out-of-range",
            WriteError::LinkDown(_) => "link-down",
            WriteError::OffScan(_) => "off-scan",
            WriteError::NotSent(_) => "read-first-failed",
            WriteError::Busy => "busy",
            WriteError::Timeout(_) => "timeout",
            WriteError::AnswerLost(_) => "answer-lost",
            WriteError::DeviceException { .. } => "device-exception",
            WriteError::ReadBackMismatch { .. } => "read-back-mismatch",
            WriteError::ReadBackFailed(_) => "read-back-failed",
            WriteError::Stopped => "stopped",
        }
    }

    /// Whether the device may hold the new value although this is an error.
    pub const fn may_have_happened(&self) -> bool {
        matches!(
            self,
            WriteError::Timeout(_)
                | WriteError::AnswerLost(_)
                | WriteError::ReadBackMismatch { .. }
                | WriteError::ReadBackFailed(_)
        )
    }
}

/// Why a request of another protocol layer, such as a transfer of firmware, brought no reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExchangeError {
    /// No such device runs.
    #[error("device {0} is not polled; put it in service first")]
    UnknownDevice(DeviceId),
    /// The driver does not carry such a request.
    #[error("this link does not carry such a request: {0}")]
    Unsupported(String),
    /// Too much waits for the link.
    #[error("the link is busy; try again")]
    Busy,
    /// The link is down; nothing was sent.
    #[error("nothing was sent, the link is down: {0}")]
    LinkDown(String),
    /// The device is off scan after repeated failures; nothing was sent.
    #[error("nothing was sent, the device is off scan: {0}")]
    OffScan(String),
    /// It was sent, and no valid answer came: the device may have obeyed.
    #[error("no answer: {0}")]
    NoAnswer(String),
    /// The gateway stops, or the device's configuration changes.
    #[error("the device is being stopped or reconfigured; try again")]
    Stopped,
}

/// Why a device could not be asked what it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentifyError {
    /// No such device.
    #[error("no device {0} is configured; check the name")]
    UnknownDevice(DeviceId),
    /// Too much waits for the link.
    #[error("the link is busy; try again")]
    Busy,
    /// It did not answer.
    #[error("the device did not answer: {0}")]
    Failed(String),
    /// It answers, but does not support identification.
    #[error("the device does not support identification")]
    Unsupported,
    /// The gateway stops, or the device's configuration changes.
    #[error("the device is being stopped or reconfigured; try again")]
    Stopped,
}
