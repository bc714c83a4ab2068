//! Firmware of the gateway itself and of devices while the gateway runs: offers and decisions of people, the jobs that are under
//! way, the proof that a new version works, and the restart that changes the gateway's own.
//!
//! `boot` runs before everything else and may become another binary. [`desk`] makes the place where everybody asks; [`start`]
//! takes up the jobs of an earlier life and serves questions: of the command line, and of topics ([`requests`]). Each target has
//! a [`worker`] of its own that acts out its job step by step on a thread that may block; between two steps it answers. Devices
//! are reached as [`device`] says: over the link that polls them, or over the embedded broker.
//!
//! Who opens the local socket may offer and approve (its mode is 0600); who asks over topics needs the right for it. What is
//! offered counts only with the signature of a configured key. Every request is in the audit log, every change of stage is an
//! event and stands on `firmware/status`.
//!
//! Limits: 64 questions may wait, and 16 for one target; more of them are refused as `busy`. Eight devices take a step at a time.

mod clerk;
mod device;
mod question;
mod requests;
mod source;
mod worker;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use question::{Question, Reply};
pub use requests::{FirmwareRequests, is_about_firmware};

use super::events::EventLog;
use super::health::HealthDesk;
use super::management::Fleet;
use super::supervisor::Supervisor;
use crate::broker::EmbeddedBroker;
use crate::config::Gateway;
use crate::management::firmware::{
    Boot, FileJournal, GatewayTarget, HealthReport, Job, Journal, Policy, Slot, Target, Updater, UpdaterConfig, Version,
};
use crate::management::request::Refusal;
use crate::model::DeviceId;
use crate::northbound::StateBoard;
use crate::platform::beat;
use crate::platform::clock::SharedClock;
use crate::platform::durable::Disk;
use crate::security::pki::BelievedTime;
use crate::store::Store;
use clerk::Clerk;
use device::{LiveTarget, Ways};
use source::{Source, Sources};
use worker::{Asked, Worker};

/// The gateway's name among targets.
pub const GATEWAY: &str = "gateway";
/// Questions that may wait, and those for one target.
const QUEUE: usize = 64;
const OWN_QUEUE: usize = 16;
/// Devices that take a step at a time.
const STEPS: usize = 8;
/// Between two looks for jobs of devices that were not declared when the gateway started.
const REVIVE_EVERY: Duration = Duration::from_secs(5);

/// Where binaries and jobs are.
pub fn directory(data: &Path) -> PathBuf {
    data.join("firmware")
}

/// The first thing that `run` does: becomes the binary that is to run, or says which place this one is.
pub fn boot(data: &Path) -> Slot {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    Boot::new(&directory(data), Disk::default()).start(&arguments)
}

enum Message {
    Ask(Asked),
    /// The device is gone: so are its job and what was fetched for it.
    Forget(DeviceId, oneshot::Sender<Result<(), String>>),
}

/// Asks the running updates. Cheap to clone.
#[derive(Debug, Clone)]
pub struct FirmwareDesk(mpsc::Sender<Message>);

/// What was asked, for [`start`].
pub struct FirmwareQuestions(mpsc::Receiver<Message>);

/// A desk and what is asked there: others know the desk before the jobs are taken up.
pub fn desk() -> (FirmwareDesk, FirmwareQuestions) {
    let (ask, asked) = mpsc::channel(QUEUE);
    (FirmwareDesk(ask), FirmwareQuestions(asked))
}

fn gone() -> Refusal {
    Refusal::new("stopping", "the gateway is stopping; ask again later")
}

impl FirmwareDesk {
    /// Asks as a person at the local socket; the desk itself writes the audit log.
    pub async fn ask(&self, question: Question, actor: &str) -> Result<Reply, Refusal> {
        self.submit(question, actor, true).await?.await.map_err(|_| gone())?
    }

    /// Hands a question over, in order; its answer comes later.
    async fn submit(
        &self,
        question: Question,
        actor: &str,
        is_audited: bool,
    ) -> Result<oneshot::Receiver<Result<Reply, Refusal>>, Refusal> {
        let (reply, answer) = oneshot::channel();
        let asked = Asked { question, actor: actor.to_owned(), is_audited, reply };
        self.0.send(Message::Ask(asked)).await.map_err(|_| gone())?;
        Ok(answer)
    }

    /// Forgets a device. Errors are words for people.
    pub async fn forget(&self, device: &DeviceId) -> Result<(), String> {
        let (done, answer) = oneshot::channel();
        self.0.send(Message::Forget(device.clone(), done)).await.map_err(|_| gone().message)?;
        answer.await.map_err(|_| gone().message)?
    }
}

/// What updates stand on.
#[derive(Debug)]
pub struct Ground {
    /// What this process was started from.
    pub running: Slot,
    /// The log.
    pub store: Store,
    /// Events.
    pub events: EventLog,
    /// Retained topics.
    pub board: StateBoard,
    /// The devices.
    pub fleet: Fleet,
    /// The embedded broker, for devices that take firmware over it.
    pub broker: Option<EmbeddedBroker>,
    /// What proves that a new version works.
    pub health: HealthDesk,
    /// Tells why a restart is wanted.
    pub restart: watch::Sender<Option<String>>,
    /// The time that servers' certificates are checked against.
    pub time: BelievedTime,
    /// Time.
    pub clock: SharedClock,
}

/// Takes up what an earlier life left, and serves questions from now on.
pub fn start(
    gateway: &Gateway,
    ground: Ground,
    questions: FirmwareQuestions,
    supervisor: &mut Supervisor,
) -> Result<(), String> {
    let Ground { running, store, events, board, fleet, broker, health, restart, time, clock } = ground;
    let (directory, disk) = (directory(&gateway.identity.data_dir), Disk::default());
    let section = &gateway.firmware;
    let journal = FileJournal::new(&directory.join("jobs"), disk.clone()).map_err(|e| e.to_string())?;
    let sources = Sources::new(section.ca.clone(), &time)?;
    let updater = UpdaterConfig {
        target: GATEWAY.to_owned(),
        directory: directory.clone(),
        policy: Policy { keys: source::keys(&section.keys)?, limit: section.max_size },
        window: section.window,
        rate: section.rate,
        disk: disk.clone(),
    };
    let (told, report) = watch::channel(HealthReport::default());
    let boot = Boot::new(&directory, disk);
    let version = Version::parse(env!("CARGO_PKG_VERSION"))?;
    let own = GatewayTarget::new(boot, running, version, section.prove_within, report, restart, clock.clone());
    let ways = Ways { fleet, broker, root: gateway.identity.root.clone(), clock: clock.clone() };
    let mut office = Office {
        jobs: Jobs::default(),
        workers: BTreeMap::new(),
        tasks: JoinSet::new(),
        steps: Arc::new(Semaphore::new(STEPS)),
        token: supervisor.token(),
        ways,
        updater,
        journal,
        sources,
        paper: Paper { store, events, board, clock },
    };
    // Looked at right before each step: an installation notes what is polled at that very moment.
    let refresh = move || drop(told.send_replace(health.report()));
    office.employ(GATEWAY, own, refresh)?;
    office.take_up()?;
    supervisor.spawn("firmware", office.serve(questions.0));
    Ok(())
}

/// Jobs as they stand, for who asks.
#[derive(Debug, Clone, Default)]
struct Jobs(Arc<Mutex<BTreeMap<String, Job>>>);

impl Jobs {
    fn with<T>(&self, look: impl FnOnce(&mut BTreeMap<String, Job>) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What every worker writes on.
#[derive(Debug, Clone)]
struct Paper {
    store: Store,
    events: EventLog,
    board: StateBoard,
    clock: SharedClock,
}

/// Hands questions to the worker of their target.
struct Office {
    jobs: Jobs,
    workers: BTreeMap<String, Worker>,
    /// Ends with the target's name and why.
    tasks: JoinSet<(String, Result<(), String>)>,
    steps: Arc<Semaphore>,
    token: CancellationToken,
    ways: Ways,
    updater: UpdaterConfig,
    journal: FileJournal,
    sources: Sources,
    paper: Paper,
}

impl Office {
    async fn serve(mut self, mut messages: mpsc::Receiver<Message>) -> Result<(), String> {
        let token = self.token.clone();
        let mut revive = beat::every(REVIVE_EVERY);
        loop {
            tokio::select! {
                () = token.cancelled() => break,
                next = messages.recv() => match next {
                    Some(Message::Ask(asked)) => self.dispatch(asked).await,
                    Some(Message::Forget(device, done)) => {
                        // Who asked asks again if he has gone meanwhile.
                        let _ = done.send(self.forget(&device).await);
                    }
                    None => break,
                },
                Some(ended) = self.tasks.join_next() => {
                    let (target, outcome) = ended.map_err(|e| e.to_string())?;
                    self.ended(&target, outcome)?;
                }
                _ = revive.tick() => self.revive(),
            }
        }
        while let Some(ended) = self.tasks.join_next().await {
            ended.map_err(|e| e.to_string())?.1?;
        }
        Ok(())
    }

    /// The gateway's own worker must not end; that of a device is made anew with the next question.
    fn ended(&mut self, target: &str, outcome: Result<(), String>) -> Result<(), String> {
        // One that was employed since, under the same name, stays.
        if self.workers.get(target).is_some_and(|worker| worker.questions.is_closed()) {
            self.workers.remove(target);
        }
        match outcome {
            Err(error) if target == GATEWAY => return Err(error),
            Err(error) => tracing::error!(target_id = target, %error, "updates of a device are interrupted"),
            Ok(()) => {}
        }
        Ok(())
    }

    async fn dispatch(&mut self, asked: Asked) {
        let target = match &asked.question {
            Question::Jobs { target } => {
                let wanted = |name: &String| target.as_ref().is_none_or(|target| target == name);
                let jobs =
                    self.jobs.with(|jobs| jobs.iter().filter(|(n, _)| wanted(n)).map(|(_, j)| j.clone()).collect());
                return asked.answer(Ok(Reply::Jobs(jobs)));
            }
            Question::Offer { target, .. } | Question::Chunk { target, .. } | Question::Decide { target, .. } => {
                target.clone()
            }
        };
        let worker = match self.worker(&target) {
            Ok(worker) => worker,
            Err(refusal) => {
                let answer = Err(refusal);
                Clerk::new(self.paper.clone(), self.jobs.clone(), &target, None).audit(&asked, &answer).await;
                return asked.answer(answer);
            }
        };
        if let Err(mpsc::error::TrySendError::Full(asked) | mpsc::error::TrySendError::Closed(asked)) =
            worker.questions.try_send(asked)
        {
            asked.answer(Err(Refusal::new("busy", format!("{target} is busy with earlier requests; ask again"))));
        }
    }

    /// Who looks after a target, employed now if it is a device that takes firmware.
    fn worker(&mut self, target: &str) -> Result<&Worker, Refusal> {
        if !self.workers.contains_key(target) {
            let device = DeviceId::new(target).map_err(|e| Refusal::new("invalid", e.to_string()))?;
            self.ways.form(&device)?;
            let live = LiveTarget::new(device, self.ways.clone());
            self.employ(target, live, || {}).map_err(|error| Refusal::new("unreadable", error))?;
        }
        self.workers.get(target).ok_or_else(gone)
    }

    fn employ<T: Target + 'static>(
        &mut self,
        target: &str,
        way: T,
        refresh: impl Fn() + Send + 'static,
    ) -> Result<(), String> {
        let config = UpdaterConfig { target: target.to_owned(), ..self.updater.clone() };
        let fetch: Source = self.sources.make()?;
        let updater = Updater::new(config, way, fetch, self.journal.clone(), self.paper.clock.clone());
        let updater = updater.map_err(|e| e.to_string())?;
        let clerk = Clerk::new(self.paper.clone(), self.jobs.clone(), target, updater.job());
        let (questions, asked) = mpsc::channel(OWN_QUEUE);
        let stop = self.token.child_token();
        let gate = (target != GATEWAY).then(|| self.steps.clone());
        let (name, task) = (target.to_owned(), worker::serve(updater, asked, clerk, refresh, gate, stop.clone()));
        self.tasks.spawn(async move { (name, task.await) });
        self.workers.insert(target.to_owned(), Worker { questions, stop });
        Ok(())
    }

    /// Jobs of devices from an earlier life: shown as they ended, gone on with when they did not.
    fn take_up(&mut self) -> Result<(), String> {
        for target in self.journal.targets().map_err(|e| e.to_string())? {
            // A job that cannot be read must not keep the gateway from starting: whoever asks about the device is told.
            match self.journal.load(&target) {
                Ok(Some(job)) if target != GATEWAY => {
                    Clerk::new(self.paper.clone(), self.jobs.clone(), &target, Some(&job)).post(&job);
                }
                Ok(_) => {}
                Err(error) => tracing::error!(%error, "a firmware job is left alone"),
            }
        }
        self.revive();
        Ok(())
    }

    /// Employs somebody for every job that is not over and whose device is declared.
    fn revive(&mut self) {
        let open = |(target, job): (&String, &Job)| (!job.stage.is_final()).then(|| target.clone());
        let waiting: Vec<_> = self.jobs.with(|jobs| jobs.iter().filter_map(open).collect());
        for target in waiting {
            if !self.workers.contains_key(&target)
                && let Err(refusal) = self.worker(&target)
            {
                tracing::debug!(target_id = target, %refusal, "a firmware job waits");
            }
        }
    }

    async fn forget(&mut self, device: &DeviceId) -> Result<(), String> {
        if device.as_str() == GATEWAY {
            return Ok(());
        }
        if let Some(worker) = self.workers.remove(device.as_str()) {
            worker.stop.cancel();
            // Its end shows when it has let go of the questions.
            worker.questions.closed().await;
        }
        self.journal.forget(device.as_str()).map_err(|e| e.to_string())?;
        let fetched = self.updater.directory.join("incoming").join(device.as_str());
        if let Err(error) = tokio::fs::remove_dir_all(&fetched).await
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(format!("remove {}: {error}", fetched.display()));
        }
        self.jobs.with(|jobs| jobs.remove(device.as_str()));
        Ok(())
    }
}
