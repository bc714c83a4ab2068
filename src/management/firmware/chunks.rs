//! Firmware over MQTT for devices that speak it: chunks on a topic, acknowledgements on another.
//!
//! Below the device's own base topic:
//! ```text
//! firmware/begin             → {"job":"…","version":"…","size":n,"sha256":"…"}
//! firmware/chunk/<offset>    → the bytes
//! firmware/activate          → {"job":"…"}
//! firmware/rollback          → {"job":"…"}
//! firmware/query             → {"job":"…"}
//! firmware/ack               ← {"job":"…","state":"receiving","offset":n,"version":"…"}
//! ```
//! One chunk is under way at a time; the offset in an acknowledgement is where the device wants to go on, so a lost or
//! repeated message does no harm. A message without an answer is repeated.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::device::{DeviceInfo, DeviceRun, DeviceTransfer, TransferError};
use super::{Job, Version};

/// How often a message without an answer is sent.
const TRIES: u32 = 4;
/// Longest acknowledgement that is looked at, in bytes.
const MAX_ACK: usize = 4 * 1024;

/// What a device is doing, in its own words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AckState {
    /// Nothing.
    Idle,
    /// Taking bytes.
    Receiving,
    /// It has all bytes and found them right.
    Verified,
    /// Starting the new firmware.
    Activating,
    /// The last update failed.
    Failed,
}

/// An acknowledgement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// The job it speaks about; empty when it knows none.
    #[serde(default)]
    pub job: String,
    /// What it is doing.
    pub state: AckState,
    /// Where it wants to go on.
    #[serde(default)]
    pub offset: u64,
    /// The version that runs.
    pub version: String,
    /// What went wrong, for people.
    #[serde(default)]
    pub reason: String,
}

/// The device's part of a broker.
pub trait ChunkBus: Send {
    /// Publishes to `topic` below the device's base topic, QoS 1; `Ok` when the broker took it.
    fn publish(&mut self, topic: &str, payload: Vec<u8>) -> impl Future<Output = Result<(), String>> + Send;

    /// The next message on `firmware/ack`; `None` when none came within `patience`.
    fn next_ack(&mut self, patience: Duration) -> impl Future<Output = Result<Option<Vec<u8>>, String>> + Send;
}

#[derive(Serialize)]
struct Begin<'a> {
    job: &'a str,
    version: &'a str,
    size: u64,
    sha256: &'a str,
}

/// Firmware over chunks.
#[derive(Debug)]
pub struct ChunkTransfer<B> {
    bus: B,
    piece: usize,
    patience: Duration,
    job: String,
}

impl<B: ChunkBus + fmt::Debug> ChunkTransfer<B> {
    /// Chunks of at most `piece` bytes; a message without an answer is repeated after `patience`.
    pub fn new(bus: B, piece: usize, patience: Duration) -> Self {
        Self { bus, piece: piece.clamp(64, 256 * 1024), patience, job: String::new() }
    }
}

impl<B: ChunkBus> ChunkTransfer<B> {
    /// Sends and waits for an acknowledgement that `fits`; repeats.
    async fn ask(&mut self, topic: &str, payload: &[u8], fits: impl Fn(&Ack) -> bool) -> Result<Ack, TransferError> {
        for _ in 0..TRIES {
            self.bus.publish(topic, payload.to_vec()).await.map_err(TransferError::NoAnswer)?;
            // Late answers to earlier messages may come first; a device that chatters does not keep us for ever.
            for _ in 0..8 {
                match self.bus.next_ack(self.patience).await.map_err(TransferError::NoAnswer)? {
                    Some(payload) if payload.len() <= MAX_ACK => match serde_json::from_slice::<Ack>(&payload) {
                        Ok(ack) if fits(&ack) => return Ok(ack),
                        Ok(_) => {}
                        Err(error) => tracing::debug!(%error, "an acknowledgement of a firmware chunk cannot be read"),
                    },
                    Some(_) => {}
                    None => break,
                }
            }
        }
        Err(TransferError::NoAnswer(format!("no acknowledgement after {TRIES} messages on {topic}")))
    }

    async fn tell(&mut self, topic: &str, fits: impl Fn(&Ack) -> bool) -> Result<Ack, TransferError> {
        let payload = serde_json::json!({ "job": self.job }).to_string();
        self.ask(topic, payload.as_bytes(), fits).await
    }
}

impl<B: ChunkBus> DeviceTransfer for ChunkTransfer<B> {
    async fn info(&mut self) -> Result<DeviceInfo, TransferError> {
        let ack = self.tell("firmware/query", |_| true).await?;
        let version = Version::parse(&ack.version).map_err(TransferError::Refused)?;
        let run = match ack.state {
            AckState::Idle => DeviceRun::Idle,
            AckState::Receiving => DeviceRun::Receiving,
            AckState::Verified => DeviceRun::Verified,
            AckState::Activating => DeviceRun::Activating,
            AckState::Failed => DeviceRun::Failed(ack.reason),
        };
        Ok(DeviceInfo { version, run })
    }

    async fn begin(&mut self, job: &Job) -> Result<u64, TransferError> {
        self.job = job.offer.id.clone();
        let begin = Begin { job: &job.offer.id, version: &job.version, size: job.size, sha256: &job.sha256 };
        let payload = serde_json::to_vec(&begin).map_err(|error| TransferError::Unfit(error.to_string()))?;
        let id = job.offer.id.clone();
        let ack = self.ask("firmware/begin", &payload, |ack| ack.job == id).await?;
        match ack.state {
            AckState::Failed => Err(TransferError::Refused(ack.reason)),
            _ => Ok(ack.offset),
        }
    }

    async fn send(&mut self, offset: u64, bytes: &[u8]) -> Result<u64, TransferError> {
        let id = self.job.clone();
        // An acknowledgement at this very offset is a late one to the chunk before.
        let fits = |ack: &Ack| ack.job == id && (ack.offset != offset || ack.state == AckState::Failed);
        let ack = self.ask(&format!("firmware/chunk/{offset}"), bytes, fits).await?;
        match ack.state {
            AckState::Failed => Err(TransferError::Refused(ack.reason)),
            _ => Ok(ack.offset),
        }
    }

    fn piece(&self) -> usize {
        self.piece
    }

    async fn activate(&mut self, job: &Job) -> Result<(), TransferError> {
        self.job = job.offer.id.clone();
        let id = self.job.clone();
        let fits = |ack: &Ack| ack.job == id && ack.state != AckState::Receiving;
        let ack = self.tell("firmware/activate", fits).await?;
        match ack.state {
            AckState::Failed => Err(TransferError::Refused(ack.reason)),
            _ => Ok(()),
        }
    }

    async fn roll_back(&mut self, job: &Job) -> Result<(), TransferError> {
        self.job = job.offer.id.clone();
        self.tell("firmware/rollback", |_| true).await.map(|_| ())
    }
}
