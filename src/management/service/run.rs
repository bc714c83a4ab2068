//! The task: inputs in, commit, effects out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::{Message, Outlet, World};
use crate::contract::v1;
use crate::management::clock::Reading;
use crate::management::command::Receipt;
use crate::management::core::{Core, Input, Plan, Settings};
use crate::management::desired::{Watcher, parse_gateway};
use crate::management::journal::Journal;
use crate::management::lifecycle::{Claim, Erasure, Finding, Outcome, ScanRequest};
use crate::management::step::{Effect, Step};
use crate::model::DeviceId;
use crate::platform::clock::SharedClock;

/// Inputs that are one step.
const BATCH: usize = 256;
/// Slow effects at a time.
const EFFECTS: usize = 32;
/// Longest time of one effect; a scan may take longer.
const EFFECT_LIMIT: Duration = Duration::from_secs(120);
/// First and longest pause before the journal is tried again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
/// Between two steps that only time asks for.
const BREATH_NS: u64 = 10_000_000;
/// Sleep when nothing is due.
const IDLE: Duration = Duration::from_secs(3_600);

pub(super) struct Task<J, W, O> {
    core: Core,
    settings: Settings,
    journal: J,
    world: Arc<W>,
    outlet: Arc<O>,
    watcher: Watcher,
    clock: SharedClock,
    /// The files as they were read last: a core that is loaded again needs them.
    files: Option<Input>,
    callers: BTreeMap<String, oneshot::Sender<v1::ManagementResult>>,
    /// Carriers of requests that are part of the step under way.
    receipts: Vec<Receipt>,
    running: JoinSet<Vec<Input>>,
    seats: Arc<Semaphore>,
    applying: JoinSet<Input>,
    plan: Option<Arc<Plan>>,
    /// One scan at a time.
    scan: Arc<Semaphore>,
    /// When the last step was taken.
    stepped_ns: u64,
    /// Counts up when something durable or the plan changed.
    changes: watch::Sender<u64>,
}

impl<J: Journal, W: World, O: Outlet> Task<J, W, O> {
    pub(super) fn new(
        core: Core,
        settings: Settings,
        journal: J,
        world: Arc<W>,
        outlet: Arc<O>,
        watcher: Watcher,
        clock: SharedClock,
    ) -> Self {
        Self {
            core,
            settings,
            journal,
            world,
            outlet,
            watcher,
            clock,
            files: None,
            callers: BTreeMap::new(),
            receipts: Vec::new(),
            running: JoinSet::new(),
            seats: Arc::new(Semaphore::new(EFFECTS)),
            applying: JoinSet::new(),
            plan: None,
            scan: Arc::new(Semaphore::new(1)),
            stepped_ns: 0,
            changes: watch::Sender::new(0),
        }
    }

    /// Counts up when something durable or the plan changed.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub(super) async fn run(mut self, mut inbox: mpsc::Receiver<Message>) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let wake = self.until_wake();
            let inputs = tokio::select! {
                taken = inbox.recv_many(&mut batch, BATCH) => match taken {
                    0 => return,
                    _ => self.inputs(std::mem::take(&mut batch)).await,
                },
                Some(done) = self.running.join_next(), if !self.running.is_empty() => done.unwrap_or_else(|error| {
                    tracing::error!(%error, "an effect of management failed; it is tried again");
                    Vec::new()
                }),
                Some(applied) = self.applying.join_next(), if !self.applying.is_empty() => match applied {
                    Ok(input) => vec![input],
                    Err(error) => {
                        tracing::error!(%error, "the plan of devices could not be applied; it is tried again");
                        self.plan = Some(Arc::new(self.core.plan()));
                        Vec::new()
                    }
                },
                () = sleep(wake) => vec![Input::Tick],
            };
            self.step(inputs).await;
            self.receipts.drain(..).for_each(Receipt::accept);
            self.apply_newest();
        }
    }

    /// Counted from the last step, not from now: whoever looks often must not put off what is due.
    fn until_wake(&self) -> Duration {
        let at = self.core.next_wake().map(|at| at.max(self.stepped_ns.saturating_add(BREATH_NS)));
        at.map_or(IDLE, |at| Duration::from_nanos(at.saturating_sub(self.clock.mono_ns())))
    }

    async fn inputs(&mut self, batch: Vec<Message>) -> Vec<Input> {
        let mut inputs = Vec::with_capacity(batch.len());
        for message in batch {
            match message {
                Message::Input(input) => {
                    if let Input::Files { .. } = *input {
                        self.files = Some((*input).clone());
                    }
                    inputs.push(*input);
                }
                Message::Stored(input, receipt) => {
                    self.receipts.push(receipt);
                    inputs.push(*input);
                }
                Message::Ask(request, reply) => {
                    let key = format!("{} {}", request.ask.correlation_id(), request.actor.name);
                    self.callers.insert(key, reply);
                    inputs.push(Input::Request(request));
                }
                Message::Look(look) => {
                    // What was asked before is seen.
                    self.step(std::mem::take(&mut inputs)).await;
                    look(&self.core);
                }
                Message::Arm(hash) => {
                    let mut step = Step::default();
                    self.core.roles_mut().arm(&hash, &mut step);
                    let (changes, _) = step.into_parts();
                    if let Err(error) = self.journal.commit(changes).await {
                        tracing::error!(%error, "the claim code is not armed");
                    }
                }
            }
        }
        inputs
    }

    /// One step, and the steps that follow from it at once.
    async fn step(&mut self, mut inputs: Vec<Input>) {
        while !inputs.is_empty() {
            let now = self.clock.now();
            self.stepped_ns = now.mono_ns;
            let (changes, effects) = self.core.handle(now, inputs).into_parts();
            let is_news = !changes.is_empty() || effects.iter().any(|effect| matches!(effect, Effect::ApplyPlan));
            if !changes.is_empty()
                && let Err(error) = self.journal.commit(changes).await
            {
                tracing::error!(%error, "a change of management is not durable and is not done");
                self.callers.clear();
                // They are not accepted: their carriers deliver them again.
                self.receipts.clear();
                inputs = self.load_again().await;
                continue;
            }
            if is_news {
                self.changes.send_modify(|count| *count += 1);
            }
            inputs = self.write_audit().await;
            for effect in effects {
                inputs.extend(self.carry_out(effect).await);
            }
        }
    }

    /// After a failed commit: what is on disk counts, whatever it is.
    async fn load_again(&mut self) -> Vec<Input> {
        let mut pause = PAUSE.0;
        loop {
            sleep(pause).await;
            let loaded = match self.journal.load().await {
                Ok(records) => Core::load(&records, self.settings.clone(), self.watcher.clone()),
                Err(error) => Err(error),
            };
            match loaded {
                Ok(core) => {
                    self.core = core;
                    return self.files.clone().into_iter().collect();
                }
                Err(error) => tracing::error!(%error, "management state cannot be read; trying again"),
            }
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    async fn write_audit(&mut self) -> Vec<Input> {
        let entries: Vec<_> = self.core.audit_outbox().map(|(n, note)| (n, note.message(&format!("m{n}")))).collect();
        let Some((last, _)) = entries.last() else { return Vec::new() };
        let last = *last;
        match self.outlet.audit(entries.into_iter().map(|(_, entry)| entry).collect()).await {
            Ok(()) => vec![Input::AuditWritten(last)],
            Err(error) => {
                // They stay in the journal and go with the next step, or at the next start.
                tracing::error!(%error, "audit entries wait in the journal");
                Vec::new()
            }
        }
    }

    async fn carry_out(&mut self, effect: Effect) -> Option<Input> {
        match effect {
            Effect::Show { topic, shown } => self.outlet.show(&topic, shown),
            Effect::Answer(answer) => {
                if let Some(caller) = self.callers.remove(&answer.key) {
                    // A caller that hung up gets his answer when he asks again.
                    let _gone = caller.send(answer.body.clone());
                }
                // A topic has readers: a secret is only for the caller at the socket.
                let body = v1::ManagementResult { token: String::new(), ..answer.body };
                match self.outlet.answer(&answer.topic, &body).await {
                    Ok(()) => return Some(Input::Answered(answer.key)),
                    Err(error) => tracing::error!(%error, topic = answer.topic, "an answer waits for the next start"),
                }
            }
            Effect::Raise(event) => self.outlet.raise(event).await,
            Effect::ApplyPlan => self.plan = Some(Arc::new(self.core.plan())),
            Effect::Scan(scan) => self.scan(scan),
            slow => self.spawn(slow),
        }
        None
    }

    /// One plan at a time, always the newest.
    fn apply_newest(&mut self) {
        if !self.applying.is_empty() {
            return;
        }
        let Some(plan) = self.plan.take() else { return };
        let world = self.world.clone();
        self.applying.spawn(async move {
            let generation = plan.generation;
            Input::PlanApplied { generation, failures: world.apply(plan).await }
        });
    }

    fn scan(&mut self, scan: ScanRequest) {
        let Ok(seat) = self.scan.clone().try_acquire_owned() else {
            tracing::warn!(first = %scan.first, last = %scan.last, "a scan is running; this one is not begun");
            return;
        };
        let world = self.world.clone();
        self.running.spawn(async move {
            let _seat = seat;
            find(&*world, &scan).await
        });
    }

    fn spawn(&mut self, effect: Effect) {
        let (world, seats, clock) = (self.world.clone(), self.seats.clone(), self.clock.clone());
        self.running.spawn(async move {
            // The semaphore is never closed.
            let Ok(_seat) = seats.acquire_owned().await else { return Vec::new() };
            perform(&*world, &clock, effect).await
        });
    }
}

async fn perform<W: World>(world: &W, clock: &SharedClock, effect: Effect) -> Vec<Input> {
    let one = match effect {
        Effect::Identify(device) => {
            let claim = limited(world.identify(&device)).await;
            // Silence is no answer: a device that cannot be reached is asked again when it connects.
            claim.ok().map(|claim| Input::Seen { device, claim })
        }
        Effect::Issue { device, signing_request } => {
            let outcome = match limited(world.issue(&device, &signing_request)).await {
                Ok(chain) => Outcome::Issued(chain),
                Err(why) => Outcome::IssueFailed(why),
            };
            Some(Input::Outcome { device, outcome })
        }
        Effect::Revoke(device) => {
            let revoked = limited(world.revoke(&device)).await;
            let told =
                revoked.inspect_err(|error| tracing::error!(%device, error, "credentials are not taken back yet"));
            told.ok().map(|()| Input::Outcome { device, outcome: Outcome::Revoked })
        }
        Effect::Erase { device, stored } => {
            let outcome = match limited(world.erase(&device, stored)).await {
                Ok(Erasure::Done(what)) => Outcome::Erased(what),
                Ok(Erasure::Waits(whom)) => Outcome::EraseWaits(whom),
                Err(why) => Outcome::EraseFailed(why),
            };
            Some(Input::Outcome { device, outcome })
        }
        Effect::ReadClock(device) => {
            let reading = read_clock(world, clock, &device).await;
            Some(Input::ClockRead { device, reading })
        }
        Effect::SetClock(device) => {
            let result = set_clock(world, clock, &device).await;
            Some(Input::ClockSet { device, result })
        }
        Effect::ApplyGateway(settings) => {
            let result = match parse_gateway(&settings) {
                Ok(overlay) => limited(world.apply_gateway(overlay)).await,
                Err(errors) => Err(errors.first().map(ToString::to_string).unwrap_or_default()),
            };
            Some(Input::GatewayApplied(result))
        }
        Effect::Scan(_) | Effect::Show { .. } | Effect::Answer(_) | Effect::Raise(_) | Effect::ApplyPlan => None,
    };
    one.into_iter().collect()
}

async fn limited<T>(work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    tokio::time::timeout(EFFECT_LIMIT, work).await.unwrap_or_else(|_| Err("took longer than two minutes".to_owned()))
}

async fn read_clock<W: World>(world: &W, clock: &SharedClock, device: &DeviceId) -> Result<Reading, String> {
    let form = world.clock_form(device).ok_or("its profile describes no clock")?;
    let before = clock.wall_ms();
    let values = limited(world.read(device, &form.points())).await?;
    let after = clock.wall_ms();
    let device_ms = form.decode(&values).map_err(|e| e.to_string())?;
    Ok(Reading { device_ms, gateway_ms: before + (after - before) / 2, resolution_ms: form.resolution_ms() })
}

async fn set_clock<W: World>(world: &W, clock: &SharedClock, device: &DeviceId) -> Result<(), String> {
    let form = world.clock_form(device).ok_or("its profile describes no clock")?;
    let writes = form.encode(clock.wall_ms()).map_err(|e| e.to_string())?;
    limited(world.write(device, writes)).await
}

/// One probe at a time, with a pause after each.
async fn find<W: World>(world: &W, scan: &ScanRequest) -> Vec<Input> {
    let mut found = Vec::new();
    for (host, port, unit) in scan.probes() {
        if let Some(claim) = world.probe(host, port, unit).await {
            let claim = Some(claim).filter(|c: &Claim| !c.is_empty());
            let address = format!("tcp://{host}:{port} unit {unit}");
            let finding = Finding { protocol: scan.protocol.clone(), address, claim };
            found.push(Input::Found { finding, asked_by: scan.asked_by.clone() });
        }
        sleep(scan.pause).await;
    }
    tracing::info!(devices = found.len(), by = scan.asked_by, "scan done");
    found
}
