//! The desk where desired documents arrive: follows the table for each target.

mod follow;

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value as Json};

use super::document::{DeviceOverlay, parse_device, parse_gateway};
use super::effective::reported;
use super::job::{Job, Target, Version};
use super::profile::Profile;
use super::prove::{Verdict, Watcher, judge};
use super::states::{Event, State};
use super::wanted::{Wanted, check, is_taken};
use crate::contract::v1;
use crate::contract::v1::event::Severity;
use crate::management::journal::{JournalError, Records, Shelf};
use crate::management::request::{FieldError, Refusal};
use crate::management::step::{Cause, Effect, Shown, Step};
use crate::model::Stamp;

/// Versions kept per target when nobody says otherwise.
const USUAL_HISTORY: usize = 20;
/// Pause between two attempts to go back to the proven version.
const RETRY_NS: u64 = 10_000_000_000;
/// Between two looks at the values that prove a version.
const LOOK_NS: u64 = 250_000_000;

/// A document that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// It is in work now.
    Accepted,
    /// It came before; nothing was changed.
    Unchanged,
}

#[derive(Debug, Clone, Copy)]
struct Proof {
    since_ns: u64,
    until_ns: u64,
}

/// All configuration jobs.
#[derive(Debug)]
pub struct Desired {
    jobs: BTreeMap<Target, Job>,
    history: BTreeMap<Target, BTreeMap<u64, Version>>,
    keep_versions: usize,
    /// Targets that wait for the plan to be applied, and the plan that holds their settings once it has a number.
    unapplied: BTreeMap<Target, Option<u64>>,
    retry_at: BTreeMap<Target, u64>,
    proofs: BTreeMap<Target, Proof>,
    /// When the proofs were looked at last.
    looked_ns: u64,
}

/// What the desk has to know of a target.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// What the files say of it; `None` for the gateway.
    pub profile: Option<&'a Profile>,
    /// Whether it is polled and trusted.
    pub runs: bool,
}

impl Desired {
    /// Reads all jobs. Those in work are applied and proven again.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn load(records: &Records) -> Result<Self, JournalError> {
        let mut jobs = BTreeMap::new();
        for (key, job) in records.read_all::<Job>(Shelf::Config)? {
            jobs.insert(target_of(Shelf::Config, &key, &key)?, job);
        }
        let mut history: BTreeMap<Target, BTreeMap<u64, Version>> = BTreeMap::new();
        for (key, version) in records.read_all::<Version>(Shelf::History)? {
            let (target, _) = key.rsplit_once('/').unwrap_or((&key, ""));
            history.entry(target_of(Shelf::History, &key, target)?).or_default().insert(version.version, version);
        }
        let busy = |job: &Job| matches!(job.state, State::Applying | State::Proving | State::RollingBack);
        let unapplied = jobs.iter().filter(|(_, j)| busy(j)).map(|(t, _)| (t.clone(), None)).collect();
        let keep = match jobs.get(&Target::Gateway).map(|job| parse_gateway(&job.in_force.settings)) {
            Some(Ok(overlay)) => overlay.history.unwrap_or(USUAL_HISTORY),
            _ => USUAL_HISTORY,
        };
        let (retry_at, proofs) = Default::default();
        Ok(Self { jobs, history, keep_versions: keep, unapplied, retry_at, proofs, looked_ns: 0 })
    }

    /// The job of a target, if a document ever came for it.
    pub fn job(&self, target: &Target) -> Option<&Job> {
        self.jobs.get(target)
    }

    /// Versions that can be restored, oldest first.
    pub fn history(&self, target: &Target) -> Vec<&Version> {
        self.history.get(target).into_iter().flat_map(BTreeMap::values).collect()
    }

    /// The settings that a target shall run with now: those of the version in work, else of the last proven one.
    pub fn settings(&self, target: &Target) -> Option<&Json> {
        self.jobs.get(target).map(|job| &job.running().settings)
    }

    /// Whether this very document was taken before, so that it can be answered as it was then, whatever became of the target.
    pub fn was_taken(&self, target: &Target, wanted: &Wanted) -> bool {
        let (Some(job), history) = (self.jobs.get(target), self.history.get(target)) else { return false };
        let settings = match wanted.restore {
            0 => Some(&wanted.settings),
            number => history.and_then(|h| h.get(&number)).map(|version| &version.settings),
        };
        settings.is_some_and(|settings| is_taken(job, history, wanted.version, settings))
    }

    /// A desired document came.
    ///
    /// # Errors
    /// [`Refusal`] with all errors. What runs is not changed; the refusal is shown in `config/reported`.
    #[allow(clippy::too_many_arguments, reason = "a document and all that it is judged by")]
    pub fn desired(
        &mut self,
        now: Stamp,
        target: &Target,
        wanted: Wanted,
        facts: Facts<'_>,
        watcher: &Watcher,
        cause: &Cause,
        step: &mut Step,
    ) -> Result<Reply, Refusal> {
        let (number, fresh) = (wanted.version, !self.jobs.contains_key(target));
        let job = self.jobs.entry(target.clone()).or_insert_with(|| Job::new(now.wall_ms));
        let checked = check(job, wanted, self.history.get(target), facts, cause, now);
        let version = match checked {
            Ok(Some(version)) => version,
            Ok(None) => return Ok(Reply::Unchanged),
            Err((errors, fingerprint)) => {
                if job.rejected != fingerprint {
                    job.rejected = fingerprint;
                    // Errors of a version in work would hide why it is in work: they are shown only while settled.
                    if job.state == State::Settled {
                        "rejected".clone_into(&mut job.result);
                        job.result_version = number;
                        job.errors.clone_from(&errors);
                    }
                    self.keep(target, facts, step);
                } else if fresh {
                    self.jobs.remove(target);
                }
                return Err(Refusal::invalid(errors));
            }
        };
        job.highest = version.version;
        let event = Event::Desired;
        self.follow(now, target, event, Some(version), facts, watcher, cause, "", step)?;
        Ok(Reply::Accepted)
    }

    /// The device is (or is not) polled now.
    pub fn runs(&mut self, now: Stamp, target: &Target, facts: Facts<'_>, watcher: &Watcher, step: &mut Step) {
        let Some(job) = self.jobs.get(target) else { return };
        let event = match (job.state, facts.runs) {
            (State::Waiting, true) => Event::Runs,
            (State::Applying | State::Proving | State::RollingBack, false) => Event::Stops,
            _ => return,
        };
        let cause = Cause::own("gateway");
        let _taken = self.follow(now, target, event, None, facts, watcher, &cause, "", step);
    }

    /// New hardware: what is in force is applied and proven again, also when only the files speak.
    pub fn reapply(&mut self, now: Stamp, target: &Target, facts: Facts<'_>, watcher: &Watcher, step: &mut Step) {
        let job = self.jobs.entry(target.clone()).or_insert_with(|| Job::new(now.wall_ms));
        let version = job.in_force.clone();
        let cause = Cause::own("gateway");
        let _taken = self.follow(now, target, Event::Reapply, Some(version), facts, watcher, &cause, "", step);
        if let Some(job) = self.jobs.get_mut(target) {
            job.excused.clear();
        }
        self.keep(target, facts, step);
    }

    /// Plans have numbers: everything that waits is part of plan `generation`.
    pub fn planned(&mut self, generation: u64) {
        for waits in self.unapplied.values_mut().filter(|w| w.is_none()) {
            *waits = Some(generation);
        }
    }

    /// Targets whose settings are part of the plan that was applied.
    pub fn awaiting(&self, generation: u64) -> Vec<Target> {
        self.unapplied.iter().filter(|(_, g)| g.is_some_and(|g| g <= generation)).map(|(t, _)| t.clone()).collect()
    }

    /// The drivers took the settings of a target, or refused them.
    pub fn applied(
        &mut self,
        now: Stamp,
        target: &Target,
        result: Result<(), String>,
        facts: Facts<'_>,
        watcher: &Watcher,
        step: &mut Step,
    ) {
        self.unapplied.remove(target);
        let Some(job) = self.jobs.get_mut(target) else { return };
        let cause = Cause::own("gateway");
        let within_ns = job.running().within_ms.saturating_mul(1_000_000);
        let proof = Proof { since_ns: now.mono_ns, until_ns: now.mono_ns.saturating_add(within_ns) };
        match (job.state, result) {
            // After a start: the proof begins again.
            (State::Proving, Ok(())) => {
                self.proofs.insert(target.clone(), proof);
            }
            (State::Proving, Err(why)) => {
                let _taken = self.follow(now, target, Event::ProofFailed, None, facts, watcher, &cause, &why, step);
            }
            (State::RollingBack, Err(why)) => {
                let retry = now.mono_ns.saturating_add(RETRY_NS);
                self.retry_at.insert(target.clone(), retry);
                let _taken = self.follow(now, target, Event::ApplyFailed, None, facts, watcher, &cause, &why, step);
            }
            (_, Err(why)) => {
                let _taken = self.follow(now, target, Event::ApplyFailed, None, facts, watcher, &cause, &why, step);
            }
            (_, Ok(())) => {
                let _taken = self.follow(now, target, Event::Applied, None, facts, watcher, &cause, "", step);
                if self.jobs.get(target).is_some_and(|j| j.state == State::Proving) {
                    self.proofs.insert(target.clone(), proof);
                }
            }
        }
    }

    /// Looks at the values that arrived since versions were applied. Returns proofs that ended.
    pub fn tick<'a>(
        &mut self,
        now: Stamp,
        facts: impl Fn(&Target) -> Facts<'a>,
        watcher: &Watcher,
        step: &mut Step,
    ) -> Vec<(Target, Result<(), String>)> {
        let mut ended = Vec::new();
        self.looked_ns = now.mono_ns;
        let proofs: Vec<(Target, Proof)> = self.proofs.iter().map(|(t, p)| (t.clone(), *p)).collect();
        for (target, proof) in proofs {
            let known = facts(&target);
            let result = match self.look(&target, proof, known, watcher) {
                Verdict::Proven => Ok(()),
                Verdict::Missing(_) if now.mono_ns < proof.until_ns => continue,
                Verdict::Missing(why) => Err(first_few(&why)),
            };
            self.proofs.remove(&target);
            let cause = Cause::own("gateway");
            let (event, words) = match &result {
                Ok(()) => (Event::Proven, String::new()),
                Err(why) => (Event::ProofFailed, why.clone()),
            };
            let _taken = self.follow(now, &target, event, None, known, watcher, &cause, &words, step);
            ended.push((target, result));
        }
        let retry: Vec<Target> =
            self.retry_at.iter().filter(|(_, at)| **at <= now.mono_ns).map(|(t, _)| t.clone()).collect();
        for target in retry {
            self.retry_at.remove(&target);
            if self.jobs.get(&target).is_some_and(|j| j.state == State::RollingBack) {
                self.ask(&target, step);
            }
        }
        ended
    }

    fn look(&self, target: &Target, proof: Proof, facts: Facts<'_>, watcher: &Watcher) -> Verdict {
        let (Some(job), Some(device)) = (self.jobs.get(target), target.device()) else { return Verdict::Proven };
        let Some(profile) = facts.profile else {
            return Verdict::Missing(vec!["no file declares the device any more".to_owned()]);
        };
        let running = job.running();
        let overlay = match parse_device(&running.settings, profile) {
            Ok(overlay) => overlay,
            Err(errors) => return Verdict::Missing(errors.iter().map(ToString::to_string).collect()),
        };
        let within = Duration::from_millis(running.within_ms);
        judge(profile, &overlay, &watcher.latest(device), &job.excused, proof.since_ns, within)
    }

    /// The files changed: settings in force that do not fit them any more are reported and left out.
    pub fn check_files<'a>(&mut self, now: Stamp, facts: impl Fn(&Target) -> Facts<'a>, step: &mut Step) {
        let targets: Vec<Target> = self.jobs.keys().cloned().collect();
        for target in targets {
            let known = facts(&target);
            let (Some(job), Some(profile)) = (self.jobs.get_mut(&target), known.profile) else { continue };
            let errors = parse_device(&job.running().settings, profile).err().unwrap_or_default();
            if errors.is_empty() || errors == job.errors {
                continue;
            }
            let what = format!("configuration of {target} does not fit its files any more: {}", errors[0]);
            step.raise(now, target.device(), Severity::Alarm, "config-does-not-fit", what);
            job.errors = errors;
            self.keep(&target, known, step);
        }
    }

    /// Targets with a version in work or waiting.
    pub fn busy(&self) -> Vec<Target> {
        self.jobs.iter().filter(|(_, job)| job.state != State::Settled).map(|(target, _)| target.clone()).collect()
    }

    /// Monotonic time at which values have to be looked at again, while something is being proven. It does not move when
    /// somebody else asks something in between.
    pub fn next_look(&self) -> Option<u64> {
        (!self.proofs.is_empty()).then(|| self.looked_ns.saturating_add(LOOK_NS))
    }

    /// Monotonic time of the next retry.
    pub fn next_retry(&self) -> Option<u64> {
        self.retry_at.values().min().copied()
    }

    /// The target is gone: its configuration and history are removed.
    pub fn forget(&mut self, target: &Target, step: &mut Step) {
        self.unapplied.remove(target);
        self.retry_at.remove(target);
        self.proofs.remove(target);
        if self.jobs.remove(target).is_some() {
            step.delete(Shelf::Config, target.key());
            step.show(target.topic(), Shown::Nothing);
        }
        for number in self.history.remove(target).into_iter().flat_map(BTreeMap::into_keys) {
            step.delete(Shelf::History, history_key(target, number));
        }
    }

    /// A configuration that came with a device from another gateway: in force as it is, with its history.
    pub fn import(&mut self, now: Stamp, target: &Target, in_force: Version, history: Vec<Version>, step: &mut Step) {
        let mut job = Job::new(now.wall_ms);
        job.highest = history.iter().map(|v| v.version).chain([in_force.version]).max().unwrap_or(0);
        job.in_force = in_force;
        step.put(Shelf::Config, target.key(), &job);
        for version in &history {
            step.put(Shelf::History, history_key(target, version.version), version);
        }
        self.history.insert(target.clone(), history.into_iter().map(|v| (v.version, v)).collect());
        self.jobs.insert(target.clone(), job);
    }

    /// Shows every target, as after a start.
    pub fn show_all<'a>(&self, facts: impl Fn(&Target) -> Facts<'a>, step: &mut Step) {
        for target in self.jobs.keys() {
            self.show(target, facts(target), step);
        }
    }

    /// The message of a target.
    pub fn reported(&self, target: &Target, facts: Facts<'_>) -> Option<v1::ReportedConfig> {
        let empty = Map::new();
        let base = facts.profile.map_or(&empty, |p| &p.base);
        Some(reported(target, self.jobs.get(target)?, base, self.history.get(target)))
    }

    fn show(&self, target: &Target, facts: Facts<'_>, step: &mut Step) {
        if let Some(message) = self.reported(target, facts) {
            step.show(target.topic(), Shown::Config(Box::new(message)));
        }
    }

    fn keep(&self, target: &Target, facts: Facts<'_>, step: &mut Step) {
        if let Some(job) = self.jobs.get(target) {
            step.put(Shelf::Config, target.key(), job);
        }
        self.show(target, facts, step);
    }

    fn ask(&mut self, target: &Target, step: &mut Step) {
        match (target, self.jobs.get(target)) {
            (Target::Gateway, Some(job)) => step.act(Effect::ApplyGateway(job.running().settings.clone())),
            _ => {
                self.unapplied.insert(target.clone(), None);
                step.apply_plan();
            }
        }
    }

    /// After a start: asks for what the gateway's own job needs. Devices are part of the first plan.
    pub fn resume(&mut self, step: &mut Step) {
        self.unapplied.remove(&Target::Gateway);
        if self.jobs.contains_key(&Target::Gateway) {
            self.ask(&Target::Gateway, step);
        }
    }

    /// The typed settings that a device shall run with; the files' when the kept ones do not fit the files any more.
    pub fn overlay(&self, target: &Target, profile: &Profile) -> Result<DeviceOverlay, Vec<FieldError>> {
        self.settings(target).map_or_else(|| Ok(DeviceOverlay::default()), |settings| parse_device(settings, profile))
    }
}

fn history_key(target: &Target, version: u64) -> String {
    format!("{}/{version:020}", target.key())
}

fn target_of(shelf: Shelf, key: &str, target: &str) -> Result<Target, JournalError> {
    Target::parse(target).ok_or_else(|| JournalError::Record {
        shelf: shelf.as_str(),
        key: key.to_owned(),
        reason: "the key names no device".to_owned(),
    })
}

fn first_few(reasons: &[String]) -> String {
    let shown = reasons.iter().take(3).cloned().collect::<Vec<_>>().join("; ");
    match reasons.len() {
        0..=3 => shown,
        n => format!("{shown}; and {} more", n - 3),
    }
}
