//! How a kind of device takes firmware, as its profile describes it, and the transfer that follows from it. Pure.

use std::fmt;
use std::time::Duration;

use super::chunks::{ChunkBus, ChunkTransfer};
use super::device::{DeviceInfo, DeviceTransfer, TransferError};
use super::file_record::{FileRecordProfile, FileRecordTransfer, PduLink};
use super::{Job, Refusal};

/// How a kind of device takes firmware.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceForm {
    /// What manifests for this kind of device name as their target.
    pub target: String,
    /// How long the device may take to run the new firmware and come to rest.
    pub prove_within: Duration,
    /// Most octets per second towards the device; `None` for as fast as its link gives turns.
    pub rate: Option<u64>,
    /// How the octets travel.
    pub way: Way,
}

/// How the octets travel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// Modbus file records.
    FileRecords(FileRecordProfile),
    /// Chunks on topics of the embedded broker.
    Chunks {
        /// The device's base topic; `None` for its own topics below the gateway's root.
        topic: Option<String>,
        /// Octets of one chunk.
        size: usize,
        /// A message without an answer is sent again after this time.
        patience: Duration,
    },
}

impl DeviceForm {
    /// Checks what the types cannot.
    ///
    /// # Errors
    /// What is wrong, and what would be right.
    pub fn check(&self) -> Result<(), String> {
        match &self.way {
            Way::FileRecords(profile) => profile.check(),
            Way::Chunks { .. } => Ok(()),
        }
    }

    /// Octets that are handed over at a time.
    fn piece(&self) -> u64 {
        match &self.way {
            Way::FileRecords(profile) => u64::from(profile.registers_per_write) * 2,
            Way::Chunks { size, .. } => *size as u64,
        }
    }

    /// The pause after each piece that keeps the rate.
    pub fn pause(&self) -> Duration {
        match self.rate {
            Some(rate) if rate > 0 => Duration::from_secs_f64(self.piece() as f64 / rate as f64),
            _ => Duration::ZERO,
        }
    }
}

/// A transfer of either kind.
#[derive(Debug)]
pub enum AnyTransfer<L, B> {
    /// Modbus file records.
    FileRecords(FileRecordTransfer<L>),
    /// Chunks over MQTT.
    Chunks(ChunkTransfer<B>),
}

macro_rules! each {
    ($transfer:expr, $way:ident => $call:expr) => {
        match $transfer {
            AnyTransfer::FileRecords($way) => $call,
            AnyTransfer::Chunks($way) => $call,
        }
    };
}

impl<L: PduLink + fmt::Debug, B: ChunkBus> DeviceTransfer for AnyTransfer<L, B> {
    async fn info(&mut self) -> Result<DeviceInfo, TransferError> {
        each!(self, way => way.info().await)
    }

    async fn begin(&mut self, job: &Job) -> Result<u64, TransferError> {
        each!(self, way => way.begin(job).await)
    }

    async fn send(&mut self, offset: u64, bytes: &[u8]) -> Result<u64, TransferError> {
        each!(self, way => way.send(offset, bytes).await)
    }

    fn piece(&self) -> usize {
        each!(self, way => way.piece())
    }

    async fn activate(&mut self, job: &Job) -> Result<(), TransferError> {
        each!(self, way => way.activate(job).await)
    }

    async fn roll_back(&mut self, job: &Job) -> Result<(), TransferError> {
        each!(self, way => way.roll_back(job).await)
    }
}

/// Why a device takes no firmware here; the code is stable.
impl From<Refusal> for crate::management::request::Refusal {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.code(), refusal.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_keeps_the_rate() {
        let way = Way::Chunks { topic: None, size: 1_024, patience: Duration::from_secs(1) };
        let form = DeviceForm { target: "p".to_owned(), prove_within: Duration::from_secs(1), rate: None, way };
        assert_eq!(form.pause(), Duration::ZERO);
        assert_eq!(DeviceForm { rate: Some(2_048), ..form }.pause(), Duration::from_millis(500));
    }
}
