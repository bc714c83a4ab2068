//! Devices as targets: bytes travel by whatever the device's profile describes.

use std::fs::File;
use std::future::Future;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use super::updater::{Delivered, Proof, Target, TargetError};
use super::{Job, Version};
use crate::platform::clock::SharedClock;

/// Bytes handed over between two durable marks of progress.
const MARK_EVERY: u64 = 16 * 1024;

/// Why a transfer could not go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// It may work later: no answer, busy.
    #[error("the device does not answer: {0}")]
    NoAnswer(String),
    /// The device refused.
    #[error("the device refused: {0}")]
    Refused(String),
    /// The profile cannot carry this artifact.
    #[error("the device's profile cannot carry this artifact: {0}")]
    Unfit(String),
}

/// What a device says that it is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceRun {
    /// Nothing.
    Idle,
    /// Taking bytes.
    Receiving,
    /// It has all bytes and found them right.
    Verified,
    /// Starting the new firmware.
    Activating,
    /// The last update failed; the device's own code or text.
    Failed(String),
}

/// What a device says about its firmware.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// The version that runs.
    pub version: Version,
    /// What it is doing.
    pub run: DeviceRun,
}

/// A way to bring firmware to a device. Every call may be repeated.
pub trait DeviceTransfer: Send {
    /// The device's word about itself.
    fn info(&mut self) -> impl Future<Output = Result<DeviceInfo, TransferError>> + Send;

    /// Announces an artifact, or takes up one that was announced. Returns the byte at which to go on.
    fn begin(&mut self, job: &Job) -> impl Future<Output = Result<u64, TransferError>> + Send;

    /// Hands over bytes at `offset`; returns the byte at which to go on, which may lie before the end of `bytes`.
    fn send(&mut self, offset: u64, bytes: &[u8]) -> impl Future<Output = Result<u64, TransferError>> + Send;

    /// Most bytes that one [`DeviceTransfer::send`] takes.
    fn piece(&self) -> usize;

    /// Tells the device to check and start what it has. Returning `Ok` means that it heard.
    fn activate(&mut self, job: &Job) -> impl Future<Output = Result<(), TransferError>> + Send;

    /// Tells the device to go back to what ran before.
    fn roll_back(&mut self, job: &Job) -> impl Future<Output = Result<(), TransferError>> + Send;
}

/// A device that is updated through a [`DeviceTransfer`].
#[derive(Debug)]
pub struct DeviceTarget<T> {
    profile: String,
    transfer: T,
    within: Duration,
    pause: Duration,
    announced: bool,
    proving_since_ns: Option<u64>,
    taken_back: bool,
    clock: SharedClock,
}

impl<T: DeviceTransfer> DeviceTarget<T> {
    /// `profile` is what manifests for this kind of device name as their target. The new firmware has to run `within` that
    /// time; between two pieces the device gets a `pause`, so that polling goes on.
    pub fn new(profile: &str, transfer: T, within: Duration, pause: Duration, clock: SharedClock) -> Self {
        let (announced, proving_since_ns, taken_back) = (false, None, false);
        Self { profile: profile.to_owned(), transfer, within, pause, announced, proving_since_ns, taken_back, clock }
    }

    /// The way to the device.
    pub const fn transfer(&mut self) -> &mut T {
        &mut self.transfer
    }

    async fn hand_over(&mut self, job: &Job, artifact: &Path) -> Result<Delivered, TargetError> {
        // The device knows best what it has; a device that restarted meanwhile begins again.
        let mut offset = match self.announced {
            true => job.delivered,
            false => self.transfer.begin(job).await.map_err(failed)?.min(job.size),
        };
        self.announced = true;
        let disk = |error: std::io::Error| TargetError::Transient(format!("cannot read the artifact: {error}"));
        let mut file = File::open(artifact).map_err(disk)?;
        let stop = offset.saturating_add(MARK_EVERY).min(job.size);
        let mut buffer = vec![0; self.transfer.piece().max(1)];
        while offset < stop {
            let piece = &mut buffer[..(job.size - offset).min(self.transfer.piece().max(1) as u64) as usize];
            file.seek(SeekFrom::Start(offset)).and_then(|_| file.read_exact(piece)).map_err(disk)?;
            match self.transfer.send(offset, piece).await {
                Ok(next) => offset = next.min(job.size),
                Err(TransferError::NoAnswer(reason)) if offset > job.delivered => {
                    // What arrived so far is progress, not a failed attempt; ask the device anew where to go on.
                    tracing::debug!(reason, offset, "a firmware transfer was interrupted");
                    self.announced = false;
                    return Ok(Delivered::More(offset));
                }
                Err(error) => return Err(failed(error)),
            }
            if !self.pause.is_zero() {
                tokio::time::sleep(self.pause).await;
            }
        }
        if offset < job.size {
            return Ok(Delivered::More(offset));
        }
        self.transfer.activate(job).await.map_err(failed)?;
        Ok(Delivered::Installed)
    }
}

fn failed(error: TransferError) -> TargetError {
    match error {
        TransferError::NoAnswer(_) => TargetError::Transient(error.to_string()),
        TransferError::Refused(_) => TargetError::Permanent { code: "device-refused", reason: error.to_string() },
        TransferError::Unfit(_) => TargetError::Permanent { code: "unfit", reason: error.to_string() },
    }
}

impl<T: DeviceTransfer> Target for DeviceTarget<T> {
    fn name(&self) -> &str {
        &self.profile
    }

    async fn current(&mut self) -> Result<Option<Version>, TargetError> {
        self.transfer.info().await.map(|info| Some(info.version)).map_err(failed)
    }

    async fn install(&mut self, job: &Job, artifact: &Path) -> Result<Delivered, TargetError> {
        if !self.announced {
            // After a crash of ours the device may have gone on without us.
            let info = self.transfer.info().await.map_err(failed)?;
            let is_new = Version::parse(&job.version).is_ok_and(|version| version == info.version);
            if is_new || info.run == DeviceRun::Activating {
                return Ok(Delivered::Installed);
            }
        }
        let delivered = self.hand_over(job, artifact).await;
        if delivered.is_err() {
            self.announced = false;
        }
        delivered
    }

    async fn prove(&mut self, job: &Job) -> Result<Proof, TargetError> {
        self.announced = false;
        let now = self.clock.mono_ns();
        let since = *self.proving_since_ns.get_or_insert(now);
        let over = now.saturating_sub(since) >= self.within.as_nanos() as u64;
        let info = match self.transfer.info().await {
            Err(TransferError::NoAnswer(reason)) if over => {
                (self.proving_since_ns, self.taken_back) = (None, false);
                let reason = format!("it has not answered for {:?} after the update: {reason}", self.within);
                return Err(TargetError::Permanent { code: "no-answer", reason });
            }
            info => info.map_err(failed)?,
        };
        let is_new = Version::parse(&job.version).is_ok_and(|version| version == info.version);
        let verdict = match &info.run {
            DeviceRun::Failed(reason) if !is_new => {
                rolled_back("device-failed", format!("the device reports {reason}"))
            }
            DeviceRun::Idle | DeviceRun::Verified if is_new && !self.taken_back => Proof::Healthy,
            _ if !over => Proof::Waiting(format!("the device runs {}", info.version)),
            _ if is_new => {
                // It runs, but does not come to rest: back to what worked.
                self.transfer.roll_back(job).await.map_err(failed)?;
                // Going back takes time, too.
                (self.taken_back, self.proving_since_ns) = (true, Some(now));
                Proof::Waiting("the device was told to go back".to_owned())
            }
            _ => rolled_back("no-proof", format!("the device still runs {} after {:?}", info.version, self.within)),
        };
        if !matches!(verdict, Proof::Waiting(_)) {
            (self.proving_since_ns, self.taken_back) = (None, false);
        }
        Ok(verdict)
    }
}

fn rolled_back(code: &str, reason: String) -> Proof {
    Proof::RolledBack { code: code.to_owned(), reason }
}
