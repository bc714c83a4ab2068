//! The task round the core: takes requests, stores, runs one job per device at a time, answers.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::{Id, JoinHandle, JoinSet};
use tokio::time::{Instant, timeout, timeout_at};

use super::desk::{CommandDesk, Decision, Job};
use super::ledger::{CommandKey, CommandLedger, LedgerEntry, LedgerError};
use super::result::Attempt;
use super::{Answer, AnswerSink, CommandLimits, CommandRequest, DeviceWriter, Devices, Receipt, WriteFailure};
use crate::management::permit::{CommandRules, PointValues};
use crate::model::{DeviceId, PointId, Value};
use crate::platform::clock::SharedClock;

/// Requests that may wait for the task; a sender waits when there are so many.
const QUEUE: usize = 64;
/// Requests that are stored together.
const BATCH: usize = 32;
/// How long running writes may take when the gateway stops.
const DRAIN: Duration = Duration::from_secs(2);

/// The service has stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the gateway is stopping and takes no commands; send it again later")]
pub struct ServiceClosed;

enum Message {
    Request(CommandRequest, Receipt),
    Devices(Devices),
    Rules(BTreeMap<DeviceId, CommandRules>, Arc<dyn PointValues>),
}

/// Handle of the running service.
#[derive(Debug, Clone)]
pub struct CommandService {
    messages: mpsc::Sender<Message>,
}

impl CommandService {
    /// Reads the ledger, answers what a restart interrupted, and takes commands from then on. The task ends, after at
    /// most 2 s for writes under way, when the last handle is dropped.
    ///
    /// # Errors
    /// When the ledger cannot be read or written: without it nothing can be promised.
    pub async fn start<W: DeviceWriter, L: CommandLedger, S: AnswerSink>(
        limits: CommandLimits,
        devices: Devices,
        writer: W,
        ledger: L,
        sink: S,
        clock: SharedClock,
    ) -> Result<(Self, JoinHandle<()>), LedgerError> {
        let mut desk = CommandDesk::new(limits.clone(), devices);
        let restored = desk.restore(ledger.load().await?, clock.now());
        ledger.apply(restored.put, restored.remove).await?;
        let (messages, inbox) = mpsc::channel(QUEUE);
        let task = Task {
            desk,
            writer: Arc::new(writer),
            ledger,
            sink,
            clock,
            timeout: limits.timeout,
            running: JoinSet::new(),
            keys: HashMap::new(),
        };
        Ok((Self { messages }, tokio::spawn(task.run(inbox, restored.answers))))
    }

    /// Hands over a request; waits while 64 others wait. Its answer comes through the sink.
    ///
    /// # Errors
    /// When the service has stopped; the receipt is dropped, so the carrier delivers the request again.
    pub async fn submit(&self, request: CommandRequest, receipt: Receipt) -> Result<(), ServiceClosed> {
        self.messages.send(Message::Request(request, receipt)).await.map_err(|_| ServiceClosed)
    }

    /// Other devices from now on, after a reload.
    ///
    /// # Errors
    /// When the service has stopped.
    pub async fn set_devices(&self, devices: Devices) -> Result<(), ServiceClosed> {
        self.messages.send(Message::Devices(devices)).await.map_err(|_| ServiceClosed)
    }

    /// Other interlocks, critical points, rates and methods for these devices from now on; `values` gives the last good
    /// values of points.
    ///
    /// # Errors
    /// When the service has stopped.
    pub async fn set_rules(
        &self,
        rules: BTreeMap<DeviceId, CommandRules>,
        values: Arc<dyn PointValues>,
    ) -> Result<(), ServiceClosed> {
        self.messages.send(Message::Rules(rules, values)).await.map_err(|_| ServiceClosed)
    }
}

struct Task<W, L, S> {
    desk: CommandDesk,
    writer: Arc<W>,
    ledger: L,
    sink: S,
    clock: SharedClock,
    timeout: Duration,
    running: JoinSet<Vec<Attempt>>,
    keys: HashMap<Id, CommandKey>,
}

impl<W: DeviceWriter, L: CommandLedger, S: AnswerSink> Task<W, L, S> {
    async fn run(mut self, mut inbox: mpsc::Receiver<Message>, interrupted: Vec<Answer>) {
        self.answer_known(interrupted).await;
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                Some(ended) = self.running.join_next_with_id(), if !self.running.is_empty() => self.ended(ended).await,
                taken = inbox.recv_many(&mut batch, BATCH) => match taken {
                    0 => break,
                    _ => self.take(std::mem::take(&mut batch)).await,
                },
            }
        }
        if timeout(DRAIN, self.drain()).await.is_err() {
            let left = self.running.len();
            tracing::error!(
                commands = left,
                "the gateway stops while it writes; these commands are answered \"outcome unknown\" at the next start"
            );
        }
    }

    /// Lets running writes end. Queued commands stay in the ledger and are answered at the next start.
    async fn drain(&mut self) {
        while let Some(ended) = self.running.join_next_with_id().await {
            let Some((key, attempts)) = self.outcome(ended) else { continue };
            let mut finished = self.desk.finish(&key, &attempts, self.clock.now());
            if finished.next.is_some() {
                // It will not begin any more: it stays queued in the ledger, so that the next start says "restarted".
                finished.put.truncate(1);
            }
            self.apply(finished.put, finished.remove).await;
            self.answer_known(finished.answers).await;
        }
    }

    /// Takes requests that arrived together: one write to the ledger for all of them.
    async fn take(&mut self, batch: Vec<Message>) {
        let (mut entries, mut answers) = (Vec::new(), Vec::new());
        let (mut to_store, mut to_answer) = (Vec::new(), Vec::new());
        for message in batch {
            let (request, receipt) = match message {
                Message::Devices(devices) => {
                    self.desk.set_devices(devices);
                    continue;
                }
                Message::Rules(rules, values) => {
                    self.desk.set_rules(rules, values);
                    continue;
                }
                Message::Request(request, receipt) => (request, receipt),
            };
            let device = request.device.clone();
            let writer = self.writer.clone();
            let fits = |point: &PointId, value: &Value| writer.check(&device, point, value);
            match self.desk.handle(request, self.clock.now(), fits) {
                Decision::InHand => receipt.accept(),
                Decision::Answer(answer) => {
                    answers.push(*answer);
                    to_answer.push(receipt);
                }
                Decision::Store(entry) => {
                    to_store.push((entry.key.clone(), receipt));
                    entries.push(*entry);
                }
            }
        }
        self.store(entries, to_store).await;
        if !answers.is_empty() && self.answer(answers).await {
            to_answer.into_iter().for_each(Receipt::accept);
        }
    }

    async fn store(&mut self, entries: Vec<LedgerEntry>, receipts: Vec<(CommandKey, Receipt)>) {
        if entries.is_empty() {
            return;
        }
        let stored = self.ledger.apply(entries, Vec::new()).await;
        if let Err(error) = stored {
            tracing::error!(%error, commands = receipts.len(), "commands are refused");
            let now = self.clock.now();
            let refused = receipts.iter().filter_map(|(key, _)| self.desk.not_stored(key, &error.to_string(), now));
            let refused = refused.collect();
            if self.answer(refused).await {
                receipts.into_iter().for_each(|(_, receipt)| receipt.accept());
            }
            return;
        }
        let mut jobs = Vec::new();
        for (key, receipt) in receipts {
            receipt.accept();
            jobs.extend(self.desk.stored(&key));
        }
        for job in jobs {
            self.begin(job).await;
        }
    }

    /// Begins a job, unless it may not be done any more; then the next one of the device, and so on.
    async fn begin(&mut self, job: Job) {
        let mut next = Some(job);
        while let Some(job) = next.take() {
            let writer = self.writer.clone();
            let device: DeviceId = job.key.device.clone();
            let fits = |point: &PointId, value: &Value| writer.check(&device, point, value);
            match self.desk.recheck(&job, self.clock.now(), fits) {
                Ok(()) => {
                    let key = job.key.clone();
                    let handle = self.running.spawn(write(job, self.writer.clone(), self.timeout));
                    self.keys.insert(handle.id(), key);
                }
                Err(attempts) => next = self.finish(&job.key, &attempts).await,
            }
        }
    }

    async fn ended(&mut self, ended: Result<(Id, Vec<Attempt>), tokio::task::JoinError>) {
        let Some((key, attempts)) = self.outcome(ended) else { return };
        if let Some(next) = self.finish(&key, &attempts).await {
            self.begin(next).await;
        }
    }

    /// Which command a task was for, and how it went; a task that panicked may have written.
    fn outcome(
        &mut self,
        ended: Result<(Id, Vec<Attempt>), tokio::task::JoinError>,
    ) -> Option<(CommandKey, Vec<Attempt>)> {
        match ended {
            Ok((id, attempts)) => Some((self.keys.remove(&id)?, attempts)),
            Err(error) => {
                let key = self.keys.remove(&error.id())?;
                tracing::error!(device = %key.device, %error, "a write failed inside the gateway; please report this");
                let message =
                    "the gateway failed while writing; read the points before sending the command again".to_owned();
                let failure = WriteFailure { code: "internal".to_owned(), message, may_have_happened: true };
                Some((key, vec![Attempt::Failed(failure)]))
            }
        }
    }

    /// Stores and gives the answers of a command; returns the next job of its device, which is stored as started.
    async fn finish(&mut self, key: &CommandKey, attempts: &[Attempt]) -> Option<Job> {
        let finished = self.desk.finish(key, attempts, self.clock.now());
        self.apply(finished.put, finished.remove).await;
        self.answer_known(finished.answers).await;
        finished.next
    }

    /// A result that cannot be stored is still answered; after a crash it would be answered "outcome unknown".
    async fn apply(&self, put: Vec<LedgerEntry>, remove: Vec<CommandKey>) {
        if let Err(error) = self.ledger.apply(put, remove).await {
            tracing::error!(%error, "results of commands are not stored");
        }
    }

    /// Gives answers to commands of the ledger and notes there that they were given.
    async fn answer_known(&mut self, answers: Vec<Answer>) {
        let keys: Vec<_> = answers.iter().filter_map(|a| key_of(&a.result)).collect();
        if answers.is_empty() || !self.answer(answers).await {
            return;
        }
        let given: Vec<_> = keys.iter().filter_map(|key| self.desk.answered(key)).collect();
        if !given.is_empty() {
            self.apply(given, Vec::new()).await;
        }
    }

    async fn answer(&self, answers: Vec<Answer>) -> bool {
        let count = answers.len();
        match self.sink.answer(answers).await {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(%error, answers = count, "answers to commands could not be given; those of finished commands are given at the next start");
                false
            }
        }
    }
}

fn key_of(result: &crate::contract::v1::CommandResult) -> Option<CommandKey> {
    Some(CommandKey { device: result.device.parse().ok()?, correlation_id: result.correlation_id.clone() })
}

/// Does the writes of a job in order; the first failure ends it.
async fn write<W: DeviceWriter>(job: Job, writer: Arc<W>, limit: Duration) -> Vec<Attempt> {
    let deadline = Instant::now() + limit;
    let mut attempts = Vec::with_capacity(job.writes.len());
    for one in &job.writes {
        let late = |may_have_happened| WriteFailure {
            code: "timeout".to_owned(),
            message: format!("the command took longer than {limit:?}"),
            may_have_happened,
        };
        let attempt = if Instant::now() >= deadline {
            Attempt::Failed(late(false))
        } else {
            match timeout_at(deadline, writer.write(&job.key.device, &one.point, one.value.clone())).await {
                Ok(Ok(read_back)) => Attempt::Done { read_back },
                Ok(Err(failure)) => Attempt::Failed(failure),
                Err(_) => Attempt::Failed(late(true)),
            }
        };
        let failed = matches!(attempt, Attempt::Failed(_));
        attempts.push(attempt);
        if failed {
            break;
        }
    }
    attempts.resize(job.writes.len(), Attempt::NotTried);
    attempts
}
