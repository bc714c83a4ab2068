//! The core of management: everything that happens goes in, a [`Step`] comes out. No clock, no I/O, no tasks.
//!
//! The caller ([`super::service`]) makes the step's changes durable and then carries out its effects. When the commit
//! fails the core is thrown away and loaded again, exactly as after a crash.

mod answers;
mod carried;
mod handover;
mod meter;
mod onboard;
mod requests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use serde_json::Value as Json;

use super::clock::{Clocks, Reading};
use super::desired::{Desired, DeviceOverlay, Facts, Profile, Target, Watcher, parse_gateway};
use super::journal::{JournalError, Records, Shelf};
use super::lifecycle::{Claim, Declaration, Finding, Follow, Lifecycle, Mode, Outcome, Policy};
use super::request::{Actor, Ask, Refusal};
use super::roles::{Role, Roles};
use super::step::{AuditNote, Cause, Effect, Step};
use super::transfer::Transfers;
use crate::contract::v1;
use crate::model::{DeviceId, GatewayId, Stamp};
pub use answers::Answer;
use answers::Answers;
use meter::Meter;
pub use meter::{Counters, Counts};
use requests::Done;

/// What the core is made with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// This gateway.
    pub gateway: GatewayId,
    /// Who is trusted without a person.
    pub policy: Policy,
    /// Roles from the files: identity pattern and role.
    pub roles: Vec<(String, Role)>,
    /// Public keys (Ed25519, 32 octets) of gateways and services that devices may be handed to or taken from, by name.
    pub partners: BTreeMap<String, Vec<u8>>,
    /// Own key for signing, PKCS#8; `None` when nothing can be transferred.
    pub signing_key: Option<super::transfer::SigningKey>,
    /// Where requests are counted.
    pub counters: Arc<Counters>,
}

/// A request with its requester.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Who asks.
    pub actor: Actor,
    /// What.
    pub ask: Ask,
}

/// Something that happened.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "fields are what the variant says")]
pub enum Input {
    /// The files were read: devices, and types for devices that no file declares.
    Files { devices: Vec<Declaration>, profiles: BTreeMap<String, Arc<Profile>> },
    /// Somebody asks.
    Request(Box<Request>),
    /// A request that somebody else carried out, and what came of it: words when it was done.
    Carried { request: Box<Request>, outcome: Result<String, Refusal> },
    /// A request that could not be parsed.
    Malformed { actor: Actor, refusal: Refusal },
    /// A polled device said who it is.
    Seen { device: DeviceId, claim: Claim },
    /// Something asked of the world ended.
    Outcome { device: DeviceId, outcome: Outcome },
    /// The plan with this number runs; devices that could not be set up, and why.
    PlanApplied { generation: u64, failures: BTreeMap<DeviceId, String> },
    /// Settings of the gateway itself are in force and it is healthy, or why not.
    GatewayApplied(Result<(), String>),
    /// A scan found something.
    Found { finding: Finding, asked_by: String },
    /// The clock of a device was read.
    ClockRead { device: DeviceId, reading: Result<Reading, String> },
    /// The clock of a device was set.
    ClockSet { device: DeviceId, result: Result<(), String> },
    /// Audit entries up to this number are in the log.
    AuditWritten(u64),
    /// An answer was handed to the broker.
    Answered(String),
    /// Time passed.
    Tick,
}

/// One device of a [`Plan`].
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedDevice {
    /// Trusted or not.
    pub mode: Mode,
    /// Type and address, when no file declares it.
    pub undeclared: Option<(String, String)>,
    /// Settings laid on the files.
    pub overlay: Arc<DeviceOverlay>,
}

/// What shall run. Plans have growing numbers; only the newest counts.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    /// Its number.
    pub generation: u64,
    /// Devices to poll.
    pub devices: BTreeMap<DeviceId, PlannedDevice>,
    /// Devices whose life here has ended: nothing is shown of them but that.
    pub gone: BTreeSet<DeviceId>,
}

/// The whole state of management.
#[derive(Debug)]
pub struct Core {
    settings: Settings,
    pub(super) lifecycle: Lifecycle,
    pub(super) desired: Desired,
    pub(super) roles: Roles,
    pub(super) clocks: Clocks,
    pub(super) transfers: Transfers,
    profiles: BTreeMap<String, Arc<Profile>>,
    watcher: Watcher,
    answers: Answers,
    meter: Meter,
    generation: u64,
    audit_next: u64,
    outbox: VecDeque<(u64, AuditNote)>,
    /// Records that are not needed any more; removed with the next commit.
    cleanup: Vec<(Shelf, String)>,
    flush_at: Option<u64>,
    is_fresh: bool,
}

const AUDIT_NEXT: &str = "audit-next";
const FLUSH_NS: u64 = 1_000_000_000;

impl Core {
    /// Reads everything from the journal.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn load(records: &Records, settings: Settings, watcher: Watcher) -> Result<Self, JournalError> {
        let meta: BTreeMap<String, Json> = records.read_all(Shelf::Meta)?;
        let outbox: BTreeMap<String, AuditNote> = records.read_all(Shelf::Audit)?;
        let outbox: VecDeque<_> =
            outbox.into_iter().filter_map(|(key, note)| Some((key.parse().ok()?, note))).collect();
        let last = outbox.iter().map(|(id, _)| *id).max().unwrap_or(0);
        Ok(Self {
            lifecycle: Lifecycle::load(records, settings.policy.clone())?,
            desired: Desired::load(records)?,
            roles: Roles::load(records, settings.roles.clone())?,
            clocks: Clocks::load(records)?,
            transfers: Transfers::load(records)?,
            answers: Answers::load(records)?,
            meter: Meter::new(settings.counters.clone()),
            settings,
            profiles: BTreeMap::new(),
            watcher,
            generation: 0,
            audit_next: meta.get(AUDIT_NEXT).and_then(Json::as_u64).unwrap_or(1).max(last + 1),
            outbox,
            cleanup: Vec::new(),
            flush_at: None,
            is_fresh: true,
        })
    }

    /// Takes what happened. Everything in one call is one commit.
    pub fn handle(&mut self, now: Stamp, inputs: Vec<Input>) -> Step {
        let mut step = Step::default();
        for input in inputs {
            self.take(now, input, &mut step);
        }
        self.settle(now, &mut step);
        step
    }

    fn take(&mut self, now: Stamp, input: Input, step: &mut Step) {
        match input {
            Input::Files { devices, profiles } => self.files(now, devices, profiles, step),
            Input::Request(request) => self.request(now, *request, None, step),
            Input::Carried { request, outcome } => self.request(now, *request, Some(outcome), step),
            Input::Malformed { actor, refusal } => self.meter.malformed(now, &actor, &refusal, step),
            Input::Seen { device, claim } => self.lifecycle.seen(now, &device, claim, step),
            Input::Outcome { device, outcome } => self.lifecycle.outcome(now, &device, outcome, step),
            Input::PlanApplied { generation, failures } => self.plan_applied(now, generation, &failures, step),
            Input::GatewayApplied(result) => {
                self.applied(now, &Target::Gateway, result, step);
                self.follow_gateway();
            }
            Input::Found { finding, asked_by } => {
                if let Err(refusal) = self.lifecycle.found(now, finding, &Cause::own(&asked_by), step) {
                    tracing::warn!(%refusal, "a device that a scan found is not taken");
                }
            }
            Input::ClockRead { device, reading } => {
                self.clocks.read(now, &device, reading, step);
            }
            Input::ClockSet { device, result } => self.clocks.set_done(now, &device, result, step),
            Input::AuditWritten(last) => {
                while self.outbox.front().is_some_and(|(id, _)| *id <= last) {
                    if let Some((id, _)) = self.outbox.pop_front() {
                        self.cleanup.push((Shelf::Audit, audit_key(id)));
                    }
                }
            }
            Input::Answered(key) => self.answers.delivered(&key),
            Input::Tick => {}
        }
    }

    fn files(
        &mut self,
        now: Stamp,
        devices: Vec<Declaration>,
        profiles: BTreeMap<String, Arc<Profile>>,
        step: &mut Step,
    ) {
        self.profiles = profiles;
        self.follow_gateway();
        self.lifecycle.files(now, devices, step);
        self.clocks.devices(&self.with_clocks());
        if std::mem::take(&mut self.is_fresh) {
            self.desired.resume(step);
            let (lifecycle, profiles) = (&self.lifecycle, &self.profiles);
            self.desired.show_all(|target| facts(lifecycle, profiles, target), step);
            self.clocks.show_all(step);
            for answer in self.answers.undelivered() {
                step.act(Effect::Answer(Box::new(answer)));
            }
        }
        let (lifecycle, profiles) = (&self.lifecycle, &self.profiles);
        self.desired.check_files(now, |target| facts(lifecycle, profiles, target), step);
    }

    /// What the gateway's own settings change in here.
    fn follow_gateway(&mut self) {
        let overlay = self.desired.settings(&Target::Gateway).and_then(|settings| parse_gateway(settings).ok());
        let wanted = overlay.and_then(|overlay| overlay.auto_approve_declared);
        self.lifecycle.set_auto_approve_declared(wanted.unwrap_or(self.settings.policy.auto_approve_declared));
    }

    fn with_clocks(&self) -> BTreeSet<DeviceId> {
        let has = |id: &&DeviceId| {
            let target = Target::Device((*id).clone());
            facts(&self.lifecycle, &self.profiles, &target).profile.is_some_and(|p| p.clock.is_some())
        };
        self.lifecycle.devices().keys().filter(has).cloned().collect()
    }

    fn plan_applied(&mut self, now: Stamp, generation: u64, failures: &BTreeMap<DeviceId, String>, step: &mut Step) {
        for target in self.desired.awaiting(generation) {
            let failure = target.device().and_then(|d| failures.get(d));
            self.applied(now, &target, failure.map_or(Ok(()), |why| Err(why.clone())), step);
        }
    }

    fn applied(&mut self, now: Stamp, target: &Target, result: Result<(), String>, step: &mut Step) {
        let known = facts(&self.lifecycle, &self.profiles, target);
        self.desired.applied(now, target, result, known, &self.watcher, step);
    }

    /// Takes what follows from the inputs until nothing follows any more, then numbers audit entries and plans.
    fn settle(&mut self, now: Stamp, step: &mut Step) {
        if !self.is_fresh {
            let (lifecycle, profiles) = (&self.lifecycle, &self.profiles);
            let ended = self.desired.tick(now, |target| facts(lifecycle, profiles, target), &self.watcher, step);
            for (target, result) in ended {
                if let Some(device) = target.device() {
                    let outcome = result.map_or_else(Outcome::ProofFailed, |()| Outcome::Proven);
                    self.lifecycle.outcome(now, device, outcome, step);
                }
            }
            self.lifecycle.reconcile(now, step);
            self.clocks.reconcile(now, clock_facts(&self.lifecycle, &self.profiles, &self.desired), step);
        }
        for _ in 0..4 {
            let follow = self.lifecycle.take_follow();
            if follow.is_empty() {
                break;
            }
            for order in follow {
                self.follow(now, order, step);
            }
        }
        if !self.is_fresh {
            for target in self.desired.busy() {
                let known = facts(&self.lifecycle, &self.profiles, &target);
                self.desired.runs(now, &target, known, &self.watcher, step);
            }
        }
        self.meter.roll(now, step);
        self.finish(now, step);
    }

    fn follow(&mut self, now: Stamp, order: Follow, step: &mut Step) {
        match order {
            Follow::Reapply(device) => {
                let target = Target::Device(device);
                let known = facts(&self.lifecycle, &self.profiles, &target);
                self.desired.reapply(now, &target, known, &self.watcher, step);
            }
            Follow::VoidTransfer(device) => self.transfers.void(now, &device, &mut self.lifecycle, step),
            Follow::Gone(device) => {
                self.desired.forget(&Target::Device(device.clone()), step);
                self.clocks.forget(&device, step);
                self.watcher.forget(&device);
            }
        }
    }

    fn finish(&mut self, now: Stamp, step: &mut Step) {
        if step.wants_plan() {
            self.generation += 1;
            self.desired.planned(self.generation);
        }
        if !step.notes.is_empty() {
            for note in std::mem::take(&mut step.notes) {
                let id = self.audit_next;
                self.audit_next += 1;
                step.put(Shelf::Audit, audit_key(id), &note);
                self.outbox.push_back((id, note));
            }
            step.put(Shelf::Meta, AUDIT_NEXT, &self.audit_next);
        }
        // What is not needed any more goes along with the next commit, or a second later by itself.
        let waits = !self.cleanup.is_empty() || self.answers.is_dirty();
        if waits && (step.has_changes() || self.flush_at.is_some_and(|at| now.mono_ns >= at)) {
            for (shelf, key) in self.cleanup.drain(..) {
                step.delete(shelf, key);
            }
            self.answers.write_dirty(step);
            self.flush_at = None;
        } else if waits && self.flush_at.is_none() {
            self.flush_at = Some(now.mono_ns.saturating_add(FLUSH_NS));
        }
    }

    /// What shall run now.
    pub fn plan(&self) -> Plan {
        let planned = self.lifecycle.plan().into_iter().map(|(id, planned)| {
            let target = Target::Device(id.clone());
            let profile = facts(&self.lifecycle, &self.profiles, &target).profile;
            // Settings that do not fit the files any more were reported when the files were read.
            let overlay = profile.and_then(|p| self.desired.overlay(&target, p).ok()).unwrap_or_default();
            (id, PlannedDevice { mode: planned.mode, undeclared: planned.undeclared, overlay: Arc::new(overlay) })
        });
        let gone = self.lifecycle.devices().iter().filter(|(_, r)| r.is_gone()).map(|(id, _)| id.clone()).collect();
        Plan { generation: self.generation, devices: planned.collect(), gone }
    }

    /// Audit entries that are not in the log yet, oldest first.
    pub fn audit_outbox(&self) -> impl Iterator<Item = (u64, &AuditNote)> {
        self.outbox.iter().map(|(id, note)| (*id, note))
    }

    /// Every device as its topic shows it.
    pub fn list(&self) -> v1::DeviceList {
        let line =
            |(id, r): (&DeviceId, &super::lifecycle::DeviceRecord)| r.message(id, self.lifecycle.declaration(id));
        v1::DeviceList { devices: self.lifecycle.devices().iter().map(line).collect() }
    }

    /// The configuration of a target as its topic shows it; `None` when nobody ever asked for one.
    pub fn reported(&self, target: &Target) -> Option<v1::ReportedConfig> {
        self.desired.reported(target, facts(&self.lifecycle, &self.profiles, target))
    }

    /// The lifecycle, to look at.
    pub fn lifecycle(&self) -> &Lifecycle {
        &self.lifecycle
    }

    /// The configuration jobs, to look at.
    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// Who may do what, to look at.
    pub fn roles(&self) -> &Roles {
        &self.roles
    }

    /// Who may do what, to arm the claim code.
    pub fn roles_mut(&mut self) -> &mut Roles {
        &mut self.roles
    }

    /// What was refused so far.
    pub fn counters(&self) -> Counts {
        self.meter.counts()
    }

    /// Monotonic time at which something is due; `None` when nothing is.
    pub fn next_wake(&self) -> Option<u64> {
        let due = [
            self.lifecycle.next_wake(),
            self.desired.next_look(),
            self.desired.next_retry(),
            self.clocks.next_wake(),
            self.meter.next_wake(),
            self.flush_at,
        ];
        due.into_iter().flatten().min()
    }
}

/// Tier 1 devices keep their own management: only what was delegated can be managed here.
pub(super) fn may_manage(declaration: &Declaration, function: &str) -> Result<(), Refusal> {
    if declaration.tier >= 2 || declaration.delegated.contains(function) {
        return Ok(());
    }
    let text = format!("{} is a tier 1 device that did not delegate `{function}`; see its file", declaration.device);
    Err(Refusal::new("not-delegated", text))
}

pub(super) fn facts<'a>(
    lifecycle: &'a Lifecycle,
    profiles: &'a BTreeMap<String, Arc<Profile>>,
    target: &Target,
) -> Facts<'a> {
    let Some(device) = target.device() else { return Facts { profile: None, runs: true } };
    let declared = lifecycle.declaration(device).map(|d| &d.profile);
    let typed = || lifecycle.device(device).and_then(|r| profiles.get(&r.profile));
    Facts { profile: declared.or_else(typed).map(Arc::as_ref), runs: lifecycle.is_running(device) }
}

/// What the clocks have to know: devices that run, with their time settings.
fn clock_facts<'a>(
    lifecycle: &'a Lifecycle,
    profiles: &'a BTreeMap<String, Arc<Profile>>,
    desired: &'a Desired,
) -> impl Fn(&DeviceId) -> Option<super::desired::TimeSettings> + 'a {
    move |device| {
        if !lifecycle.is_running(device) {
            return None;
        }
        let target = Target::Device(device.clone());
        let profile = facts(lifecycle, profiles, &target).profile?;
        profile.clock.as_ref()?;
        let overlay = desired.overlay(&target, profile).ok().and_then(|o| o.time);
        Some(overlay.or(profile.time).unwrap_or_default())
    }
}

fn audit_key(id: u64) -> String {
    format!("{id:020}")
}
