//! Acts out the plan for one target, one step per call. Every stage is durable before it is shown.

use std::fmt;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::artifact::{Incoming, check_file};
use super::fetch::{Fetch, FetchError};
use super::plan::{Action, plan};
use super::refusal::{Policy, REJECTED, admit};
use super::table::{Event, Stage, next};
use super::{Approval, Job, Journal, JournalError, Offer, Refusal, SignedManifest, Source, Version, Window};
use crate::platform::clock::SharedClock;
use crate::platform::durable::Disk;

/// Bytes between two syncs of what comes in.
const SYNC_EVERY: u64 = 256 * 1024;
/// Between two looks at whether it is healthy.
const PROVE_EVERY: Duration = Duration::from_secs(1);
/// Between two looks at the maintenance window.
const WINDOW_EVERY: Duration = Duration::from_secs(30);
/// First and last pause after a failure.
const PAUSES: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(300));
/// Failures of one step before the job is given up.
const MAX_ATTEMPTS: u32 = 30;

/// How far an installation got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivered {
    /// This many bytes are on the target; call again.
    More(u64),
    /// It is in place.
    Installed,
}

/// What the target says about its new firmware.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// It runs and is healthy.
    Healthy,
    /// Not known yet; why, for people.
    Waiting(String),
    /// The old one runs again.
    RolledBack {
        /// Stable code.
        code: String,
        /// For people.
        reason: String,
    },
}

/// Why a target could not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// It may work later.
    #[error("{0}")]
    Transient(String),
    /// It will not work.
    #[error("{reason}")]
    Permanent {
        /// Stable code.
        code: &'static str,
        /// For people.
        reason: String,
    },
    /// The bytes that arrived are not those that were signed.
    #[error(transparent)]
    Mismatch(Refusal),
}

/// Something that can be updated. Every call may be repeated after a crash.
pub trait Target: Send {
    /// What a manifest's `target` must say.
    fn name(&self) -> &str;

    /// The version that runs; `None` when it does not say.
    fn current(&mut self) -> impl Future<Output = Result<Option<Version>, TargetError>> + Send;

    /// Puts a part of the checked `artifact` in place, at most about a second's worth.
    fn install(&mut self, job: &Job, artifact: &Path) -> impl Future<Output = Result<Delivered, TargetError>> + Send;

    /// Asks whether the new firmware is healthy.
    fn prove(&mut self, job: &Job) -> impl Future<Output = Result<Proof, TargetError>> + Send;
}

/// Settings of an updater.
#[derive(Debug, Clone)]
pub struct UpdaterConfig {
    /// Id of the target: `gateway` or a device's.
    pub target: String,
    /// `<data>/firmware`.
    pub directory: PathBuf,
    /// Keys and size limit.
    pub policy: Policy,
    /// When jobs may begin without a person.
    pub window: Option<Window>,
    /// Most bytes per second from a URL; `None` for no limit.
    pub rate: Option<u64>,
    /// The disk; tests look over its shoulder.
    pub disk: Disk,
}

/// Why a request or a step failed.
#[derive(Debug, thiserror::Error)]
pub enum FirmwareError {
    /// It is not allowed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The job could not be kept; nothing was done.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The artifact's file.
    #[error("cannot keep the artifact: {0}")]
    Disk(#[from] io::Error),
    /// A chunk is not the next one.
    #[error("the next chunk begins at byte {0}")]
    Expected(u64),
    /// There is no job.
    #[error("there is no firmware job for {0}")]
    NoJob(String),
}

impl FirmwareError {
    /// Stable name of the failure for machines.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.code(),
            Self::Journal(_) => "journal",
            Self::Disk(_) => "disk",
            Self::Expected(_) => "expected-offset",
            Self::NoJob(_) => "no-job",
        }
    }
}

/// Updates one target.
pub struct Updater<T, F, J> {
    config: UpdaterConfig,
    target: T,
    fetch: F,
    journal: J,
    clock: SharedClock,
    job: Option<Job>,
    incoming: Option<Incoming>,
    fetching: bool,
    resumable: bool,
}

impl<T, F, J> fmt::Debug for Updater<T, F, J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Updater").field("target", &self.config.target).field("job", &self.job).finish_non_exhaustive()
    }
}

impl<T: Target, F: Fetch, J: Journal> Updater<T, F, J> {
    /// Takes up the job that the journal has, if any.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn new(
        config: UpdaterConfig,
        target: T,
        fetch: F,
        journal: J,
        clock: SharedClock,
    ) -> Result<Self, JournalError> {
        let job = journal.load(&config.target)?;
        sweep(&config, job.as_ref());
        Ok(Self { config, target, fetch, journal, clock, job, incoming: None, fetching: false, resumable: true })
    }

    /// The job, for `firmware/status`.
    pub const fn job(&self) -> Option<&Job> {
        self.job.as_ref()
    }

    /// The target, to look at.
    pub const fn target(&mut self) -> &mut T {
        &mut self.target
    }

    /// Where the job stands.
    pub fn stage(&self) -> Stage {
        self.job.as_ref().map_or(Stage::Idle, |job| job.stage)
    }

    /// Takes an offer: checked and durable when this returns `Ok`. The same offer again is answered again and done once.
    ///
    /// # Errors
    /// Why it is refused; nothing is changed then.
    pub async fn offer(&mut self, offer: Offer) -> Result<&Job, FirmwareError> {
        if self.job.as_ref().is_some_and(|job| job.offer == offer) {
            return self.job.as_ref().ok_or_else(|| FirmwareError::NoJob(self.config.target.clone()));
        }
        let stage = self.stage();
        if !stage.is_final() {
            return Err(Refusal::Busy(self.config.target.clone()).into());
        }
        // A target that does not answer says nothing about versions; what it runs is asked again before installation.
        let current = self.target.current().await.ok().flatten();
        let signed = SignedManifest::parse(&offer.manifest)?;
        let (manifest, signer) =
            admit(&signed, &self.config.policy, self.target.name(), current.as_ref(), offer.allow_downgrade)?;
        let job = Job {
            target: self.config.target.clone(),
            stage: next(stage, Event::Offer)?,
            version: manifest.version.to_string(),
            size: manifest.size,
            sha256: manifest.sha256.clone(),
            signer,
            from_version: current.map(|version| version.to_string()),
            approval: None,
            received: 0,
            delivered: 0,
            attempts: 0,
            code: None,
            reason: None,
            since_ms: self.clock.wall_ms(),
            offer,
        };
        (self.incoming, self.fetching) = (None, false);
        self.keep(job)
    }

    /// Approves the job `id`. Doing it twice changes nothing.
    ///
    /// # Errors
    /// When there is no such job, or it is not waiting for that.
    pub fn approve(&mut self, id: &str, approval: Approval) -> Result<&Job, FirmwareError> {
        let job = self.expect(id)?.clone();
        if job.approval.is_some() {
            return self.expect(id);
        }
        self.moved(Job { approval: Some(approval), ..job }, Event::Approve)
    }

    /// Rejects the job `id`, possible until its installation begins. Doing it twice changes nothing.
    ///
    /// # Errors
    /// When there is no such job, or it is too late.
    pub fn reject(&mut self, id: &str, who: &str) -> Result<&Job, FirmwareError> {
        let job = self.expect(id)?.clone();
        if job.stage == Stage::Refused && job.code.as_deref() == Some(REJECTED) {
            return self.expect(id);
        }
        (self.incoming, self.fetching) = (None, false);
        self.ended(job, Event::Reject, &Refusal::Rejected { who: who.to_owned() })
    }

    /// Takes a chunk of an upload that begins at `offset`; returns where the next one begins. A chunk that was taken
    /// before is answered the same; nothing is durable before the answer.
    ///
    /// # Errors
    /// When no upload is wanted, the chunk is not the next one, or there are too many bytes.
    pub fn chunk(&mut self, id: &str, offset: u64, bytes: &[u8]) -> Result<u64, FirmwareError> {
        let mut job = self.expect(id)?.clone();
        if job.offer.source != Source::Upload || !matches!(job.stage, Stage::Approved | Stage::Transferring) {
            return Err(Refusal::OutOfOrder { event: "chunk", stage: job.stage.as_str() }.into());
        }
        if job.stage == Stage::Approved {
            job = self.moved(job, Event::Start)?.clone();
        }
        if offset + bytes.len() as u64 <= job.received {
            return Ok(job.received);
        }
        if offset != job.received {
            return Err(FirmwareError::Expected(job.received));
        }
        let incoming = open(&mut self.incoming, &self.config, &job)?;
        if incoming.received() != job.received {
            // The file is gone or was cut: the sender begins again.
            let received = incoming.received();
            self.moved(Job { received, ..job }, Event::Progress)?;
            return Err(FirmwareError::Expected(received));
        }
        incoming.append(bytes)??;
        let received = incoming.sync()?;
        Ok(self.moved(Job { received, ..job }, Event::Progress)?.received)
    }

    fn expect(&self, id: &str) -> Result<&Job, FirmwareError> {
        self.job
            .as_ref()
            .filter(|job| job.offer.id == id)
            .ok_or_else(|| FirmwareError::NoJob(self.config.target.clone()))
    }

    /// Does the next thing. Returns how long there is nothing more to do, `None` until somebody asks for something.
    ///
    /// # Errors
    /// When the journal or the disk refuses; the step is repeated with the next call.
    pub async fn step(&mut self) -> Result<Option<Duration>, FirmwareError> {
        let Some(job) = self.job.clone() else { return Ok(None) };
        match plan(&job, self.config.window.as_ref(), self.clock.now()) {
            Action::Nothing => Ok(None),
            Action::AwaitWindow => Ok(Some(WINDOW_EVERY)),
            Action::ApproveByWindow => {
                let approved = Job { approval: Some(Approval::Window), ..job };
                self.moved(approved, Event::Approve)?;
                Ok(Some(Duration::ZERO))
            }
            Action::Start => {
                self.moved(job, Event::Start)?;
                Ok(Some(Duration::ZERO))
            }
            Action::Fetch => self.fetch_some(job).await,
            Action::Verify => self.verify(job),
            Action::Install => self.begin_install(job).await,
            Action::Deliver => self.deliver(job).await,
            Action::Prove => self.prove(job).await,
        }
    }

    fn artifact(&self, job: &Job) -> PathBuf {
        Incoming::path(&incoming_directory(&self.config), &job.sha256)
    }

    async fn fetch_some(&mut self, job: Job) -> Result<Option<Duration>, FirmwareError> {
        let Source::Url(url) = &job.offer.source else { return Ok(None) };
        if !self.fetching {
            self.incoming = None;
            let durable = open(&mut self.incoming, &self.config, &job)?.received();
            match self.fetch.open(url, durable).await {
                Ok(begins) if begins == durable => {
                    (self.fetching, self.resumable) = (true, begins > 0 || self.resumable)
                }
                Ok(_) => {
                    // The source cannot resume: begin again, and do not call it progress when it breaks each time.
                    (self.fetching, self.resumable) = (true, false);
                    self.incoming = None;
                    let job = self.moved(Job { received: 0, ..job.clone() }, Event::Progress)?.clone();
                    open(&mut self.incoming, &self.config, &job)?;
                }
                Err(error) => return self.not_fetched(job, &error),
            }
        }
        let mut job = self.job.clone().unwrap_or(job);
        let began = job.received;
        loop {
            let incoming = open(&mut self.incoming, &self.config, &job)?;
            let taken = incoming.received() - began;
            match self.fetch.next().await {
                Ok(Some(piece)) if taken + (piece.len() as u64) < SYNC_EVERY && incoming.received() < job.size => {
                    if let Err(refusal) = incoming.append(&piece)? {
                        return self.refuse(job, Event::Mismatch, &refusal);
                    }
                }
                Ok(piece) => {
                    let at_end = piece.is_none();
                    if let Err(refusal) = incoming.append(&piece.unwrap_or_default())? {
                        return self.refuse(job, Event::Mismatch, &refusal);
                    }
                    job.received = incoming.sync()?;
                    job.attempts = if self.resumable { 0 } else { job.attempts };
                    if at_end {
                        self.fetching = false;
                        if job.received < job.size {
                            let refusal = Refusal::Truncated { received: job.received, expected: job.size };
                            return self.refuse(job, Event::Mismatch, &refusal);
                        }
                    }
                    let taken = job.received - began;
                    self.moved(job, Event::Progress)?;
                    return Ok(Some(self.pace(taken)));
                }
                Err(error) => {
                    job.received = incoming.sync()?;
                    return self.not_fetched(job, &error);
                }
            }
        }
    }

    /// How long to wait so that `bytes` keep the rate.
    fn pace(&self, bytes: u64) -> Duration {
        match self.config.rate {
            Some(rate) if rate > 0 => Duration::from_secs_f64(bytes as f64 / rate as f64),
            _ => Duration::ZERO,
        }
    }

    fn not_fetched(&mut self, job: Job, error: &FetchError) -> Result<Option<Duration>, FirmwareError> {
        self.fetching = false;
        match error {
            FetchError::Transient { .. } => self.try_again(job, &error.to_string()),
            FetchError::Permanent { .. } => self.fail(job, "cannot-fetch", &error.to_string()),
        }
    }

    fn verify(&mut self, job: Job) -> Result<Option<Duration>, FirmwareError> {
        (self.incoming, self.fetching) = (None, false);
        match check_file(&self.artifact(&job), job.size, &job.sha256)? {
            Ok(()) => {
                self.moved(Job { attempts: 0, ..job }, Event::Verify)?;
                Ok(Some(Duration::ZERO))
            }
            Err(refusal) => self.refuse(job, Event::Mismatch, &refusal),
        }
    }

    /// Signature, version and bytes once more: keys may have been withdrawn and disks decay while a job waits.
    async fn begin_install(&mut self, job: Job) -> Result<Option<Duration>, FirmwareError> {
        let current = match self.target.current().await {
            Ok(current) => current,
            Err(TargetError::Transient(reason)) => return self.try_again(job, &reason),
            Err(error) => return self.refuse_or_fail(job, error),
        };
        let allow = job.offer.allow_downgrade;
        let admitted = SignedManifest::parse(&job.offer.manifest).and_then(|signed| {
            admit(&signed, &self.config.policy, self.target.name(), current.as_ref(), allow).map(|_| ())
        });
        let checked = match admitted {
            Ok(()) => check_file(&self.artifact(&job), job.size, &job.sha256)?,
            refused => refused,
        };
        match checked {
            Ok(()) => {
                self.moved(Job { attempts: 0, ..job }, Event::Install)?;
                Ok(Some(Duration::ZERO))
            }
            Err(refusal) => self.refuse(job, Event::Mismatch, &refusal),
        }
    }

    async fn deliver(&mut self, job: Job) -> Result<Option<Duration>, FirmwareError> {
        let artifact = self.artifact(&job);
        match self.target.install(&job, &artifact).await {
            Ok(Delivered::More(delivered)) => {
                self.moved(Job { delivered, attempts: 0, ..job }, Event::Progress)?;
                Ok(Some(Duration::ZERO))
            }
            Ok(Delivered::Installed) => {
                let delivered = job.size;
                self.moved(Job { delivered, attempts: 0, ..job }, Event::Installed)?;
                Ok(Some(Duration::ZERO))
            }
            Err(TargetError::Transient(reason)) => self.try_again(job, &reason),
            Err(error) => self.refuse_or_fail(job, error),
        }
    }

    async fn prove(&mut self, job: Job) -> Result<Option<Duration>, FirmwareError> {
        match self.target.prove(&job).await {
            Ok(Proof::Healthy) => {
                self.moved(Job { reason: None, ..job.clone() }, Event::Healthy)?;
                self.tidy(&job);
                Ok(None)
            }
            Ok(Proof::RolledBack { code, reason }) => {
                let after = Job { code: Some(code), reason: Some(reason), ..job.clone() };
                self.moved(after, Event::Unhealthy)?;
                self.tidy(&job);
                Ok(None)
            }
            Ok(Proof::Waiting(_)) | Err(TargetError::Transient(_)) => Ok(Some(PROVE_EVERY)),
            Err(TargetError::Permanent { code, reason }) => self.fail(job, code, &reason),
            Err(error @ TargetError::Mismatch(_)) => {
                let after = Job { code: Some("unhealthy".to_owned()), reason: Some(error.to_string()), ..job.clone() };
                self.moved(after, Event::Unhealthy)?;
                self.tidy(&job);
                Ok(None)
            }
        }
    }

    fn try_again(&mut self, job: Job, reason: &str) -> Result<Option<Duration>, FirmwareError> {
        let attempts = job.attempts + 1;
        if attempts > MAX_ATTEMPTS {
            return self.fail(job, "gave-up", reason);
        }
        tracing::warn!(target_id = job.target, attempts, reason, "firmware step failed; trying again");
        self.keep(Job { attempts, reason: Some(reason.to_owned()), ..job })?;
        let pause = PAUSES.0.saturating_mul(1 << attempts.min(10)).min(PAUSES.1);
        Ok(Some(pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)))
    }

    fn refuse_or_fail(&mut self, job: Job, error: TargetError) -> Result<Option<Duration>, FirmwareError> {
        match error {
            TargetError::Mismatch(refusal) => self.refuse(job, Event::Mismatch, &refusal),
            TargetError::Permanent { code, reason } => self.fail(job, code, &reason),
            TargetError::Transient(reason) => self.try_again(job, &reason),
        }
    }

    fn refuse(&mut self, job: Job, event: Event, refusal: &Refusal) -> Result<Option<Duration>, FirmwareError> {
        (self.incoming, self.fetching) = (None, false);
        self.ended(job, event, refusal)?;
        Ok(None)
    }

    fn ended(&mut self, job: Job, event: Event, refusal: &Refusal) -> Result<&Job, FirmwareError> {
        let after = Job { code: Some(refusal.code().to_owned()), reason: Some(refusal.to_string()), ..job.clone() };
        self.moved(after, event)?;
        self.tidy(&job);
        self.expect(&job.offer.id)
    }

    fn fail(&mut self, job: Job, code: &str, reason: &str) -> Result<Option<Duration>, FirmwareError> {
        // The table ends a verified job only by a mismatch; what cannot even be begun is begun and fails.
        let job = if job.stage == Stage::Verified { self.moved(job, Event::Install)?.clone() } else { job };
        let after = Job { code: Some(code.to_owned()), reason: Some(reason.to_owned()), ..job.clone() };
        self.moved(after, Event::Fail)?;
        self.tidy(&job);
        Ok(None)
    }

    /// The artifact is not needed any more. Best effort: what stays is overwritten by the next job with the same bytes.
    fn tidy(&mut self, job: &Job) {
        self.incoming = None;
        if let Err(error) = self.config.disk.remove(&self.artifact(job)) {
            tracing::debug!(%error, "an artifact was not removed");
        }
    }

    /// Moves the job along the table and keeps it.
    fn moved(&mut self, job: Job, event: Event) -> Result<&Job, FirmwareError> {
        let stage = next(job.stage, event)?;
        let since_ms = if stage == job.stage { job.since_ms } else { self.clock.wall_ms() };
        self.keep(Job { stage, since_ms, ..job })
    }

    /// Durable first, shown then.
    fn keep(&mut self, job: Job) -> Result<&Job, FirmwareError> {
        self.journal.put(&job)?;
        Ok(self.job.insert(job))
    }
}

/// Each target has its own: two jobs with the same artifact must not write into one file.
fn incoming_directory(config: &UpdaterConfig) -> PathBuf {
    config.directory.join("incoming").join(&config.target)
}

/// Removes artifacts that a crash left behind; the one of a job under way stays.
fn sweep(config: &UpdaterConfig, job: Option<&Job>) {
    let directory = incoming_directory(config);
    let wanted = job.filter(|job| !job.stage.is_final()).map(|job| Incoming::path(&directory, &job.sha256));
    let Ok(entries) = std::fs::read_dir(&directory) else { return };
    for path in entries.flatten().map(|entry| entry.path()).filter(|path| Some(path) != wanted.as_ref()) {
        if let Err(error) = config.disk.remove(&path) {
            tracing::debug!(%error, path = %path.display(), "an old artifact was not removed");
        }
    }
}

/// The file that comes in, opened at what the job counts as durable.
fn open<'a>(incoming: &'a mut Option<Incoming>, config: &UpdaterConfig, job: &Job) -> io::Result<&'a mut Incoming> {
    let opened = match incoming.take() {
        Some(opened) => opened,
        None => Incoming::open(&incoming_directory(config), &job.sha256, job.size, job.received, &config.disk)?,
    };
    Ok(incoming.insert(opened))
}
