//! The registry of devices: takes what is seen and asked, follows the table, and says what shall run.

use std::collections::BTreeMap;

use super::identity::{Claim, PinKind};
use super::record::{DeviceRecord, Source, is_request};
use super::states::{Action, Event, Guard, State, TABLE};
use super::token::Token;
use super::types::{Approval, Declaration, Details, Follow, Mode, Outcome, Planned, Policy, Stored};
use crate::contract::{topics, v1::event::Severity};
use crate::management::journal::{JournalError, Records, Shelf};
use crate::management::request::{Refusal, fits};
use crate::management::step::{Cause, Effect, Shown, Step};
use crate::management::table::Word;
use crate::model::{ClockTrust, DeviceId, Stamp};

/// Pause between two attempts to erase or to issue credentials, and to ask a silent device who it is.
const RETRY_NS: u64 = 30_000_000_000;
const ASK_AGAIN_NS: u64 = 600_000_000_000;
/// No clock that was ever set showed less (2024).
const PLAUSIBLE_MS: i64 = 1_704_067_200_000;

/// All devices. Changes in memory at once; the caller makes the step durable, or loads again.
#[derive(Debug, Default)]
pub struct Lifecycle {
    pub(super) policy: Policy,
    pub(super) devices: BTreeMap<DeviceId, DeviceRecord>,
    pub(super) declared: BTreeMap<DeviceId, Declaration>,
    pub(super) tokens: BTreeMap<String, Token>,
    follow: Vec<Follow>,
    /// Devices whose state asks something of the world, and the monotonic time to ask (again).
    pub(super) todo: BTreeMap<DeviceId, u64>,
    /// When devices in service asked for another certificate last, on the monotonic clock.
    pub(super) renewed: BTreeMap<DeviceId, u64>,
}

impl Lifecycle {
    /// Reads the registry.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn load(records: &Records, policy: Policy) -> Result<Self, JournalError> {
        let unreadable = |key: &str, e: crate::model::IdError| JournalError::Record {
            shelf: Shelf::Devices.as_str(),
            key: key.to_owned(),
            reason: e.to_string(),
        };
        let mut devices = BTreeMap::new();
        for (key, record) in records.read_all::<DeviceRecord>(Shelf::Devices)? {
            devices.insert(DeviceId::new(&key).map_err(|e| unreadable(&key, e))?, record);
        }
        let tokens = records.read_all(Shelf::Tokens)?;
        let todo = devices.keys().map(|id| (id.clone(), 0)).collect();
        Ok(Self { policy, devices, tokens, todo, ..Self::default() })
    }

    /// Whether devices that a file declares are approved by that, from now on.
    pub fn set_auto_approve_declared(&mut self, yes: bool) {
        self.policy.auto_approve_declared = yes;
    }

    /// All devices, by id.
    pub fn devices(&self) -> &BTreeMap<DeviceId, DeviceRecord> {
        &self.devices
    }

    /// One device.
    pub fn device(&self, id: &DeviceId) -> Option<&DeviceRecord> {
        self.devices.get(id)
    }

    /// What the files say of a device.
    pub fn declaration(&self, id: &DeviceId) -> Option<&Declaration> {
        self.declared.get(id)
    }

    /// Whether a device is polled and trusted.
    pub fn is_running(&self, id: &DeviceId) -> bool {
        self.plan_of(id).is_some_and(|p| p.mode == Mode::Trusted)
    }

    /// How a device shall run; `None` when it shall not.
    pub fn plan_of(&self, id: &DeviceId) -> Option<Planned> {
        let record = self.devices.get(id)?;
        let mode = match record.state {
            State::Enrolling | State::Active | State::Transferring => Mode::Trusted,
            State::Replacing if record.pinned.is_some() => Mode::Trusted,
            State::Replacing | State::IdentityChanged => Mode::Untrusted,
            _ => return None,
        };
        if self.declared.contains_key(id) {
            return Some(Planned { mode, undeclared: None });
        }
        let undeclared = Some((record.profile.clone(), record.address.clone()));
        (!record.profile.is_empty()).then_some(Planned { mode, undeclared })
    }

    /// Every device that shall run.
    pub fn plan(&self) -> BTreeMap<DeviceId, Planned> {
        self.devices.keys().filter_map(|id| Some((id.clone(), self.plan_of(id)?))).collect()
    }

    /// What other parts have to do because of the last calls.
    pub fn take_follow(&mut self) -> Vec<Follow> {
        std::mem::take(&mut self.follow)
    }

    /// The files were read, at the start or after a change.
    pub fn files(&mut self, now: Stamp, declarations: Vec<Declaration>, step: &mut Step) {
        let cause = Cause::own("configuration");
        self.declared = declarations.into_iter().map(|d| (d.device.clone(), d)).collect();
        let declared: Vec<Declaration> = self.declared.values().cloned().collect();
        for declaration in declared {
            self.declare(now, &declaration, &cause, step);
        }
        let orphans: Vec<DeviceId> =
            self.devices.keys().filter(|id| !self.declared.contains_key(*id)).cloned().collect();
        for id in orphans {
            self.orphan(&id, step);
        }
        step.apply_plan();
    }

    fn declare(&mut self, now: Stamp, declaration: &Declaration, cause: &Cause, step: &mut Step) {
        let id = &declaration.device;
        let first = !self.devices.contains_key(id);
        let record = self
            .devices
            .entry(id.clone())
            .or_insert_with(|| DeviceRecord::new(State::Discovered, Source::Declared, now.wall_ms));
        let before = record.clone();
        record.protocol.clone_from(&declaration.protocol);
        record.address.clone_from(&declaration.address);
        record.tier = declaration.tier;
        if record.source == Source::Declared && record.pinned.is_none() {
            record.expected.clone_from(&declaration.fingerprint);
        }
        if record.reason == ORPHAN {
            record.reason.clear();
        }
        if let Some(pin) = record.pinned.as_mut().filter(|p| p.kind == PinKind::Address) {
            pin.value.clone_from(&declaration.address);
        }
        let changed = *record != before;
        if first {
            step.audit(now, cause, "discover", object(id), format!("declared, {}", declaration.address), "done");
        }
        if first || changed {
            self.keep(id, step);
        } else {
            self.show(id, step);
        }
        if first {
            self.offer(now, id, cause, step);
        }
    }

    fn orphan(&mut self, id: &DeviceId, step: &mut Step) {
        let Some(record) = self.devices.get_mut(id) else { return };
        if record.source == Source::Declared && record.profile.is_empty() && record.reason.is_empty() {
            ORPHAN.clone_into(&mut record.reason);
            self.keep(id, step);
        } else {
            self.show(id, step);
        }
    }

    /// Offers a device for approval, and approves it if the policy does.
    pub(super) fn offer(&mut self, now: Stamp, id: &DeviceId, cause: &Cause, step: &mut Step) {
        if self.transition(now, id, Event::Offer, cause, "", step).is_err() {
            return;
        }
        if let Some(by) = self.approved_by_policy(id) {
            let _refused_when_the_fingerprint_is_another = self.approve(now, id, &Cause::own(by), step);
        }
    }

    fn approved_by_policy(&self, id: &DeviceId) -> Option<&'static str> {
        let record = self.devices.get(id)?;
        if self.policy.auto_approve_declared && self.declared.contains_key(id) {
            return Some("configuration");
        }
        let claim = record.claim.clone().unwrap_or_default();
        let fit = |rule: &Approval| {
            fits(&rule.device, id.as_str())
                && fits(&rule.protocol, &record.protocol)
                && fits(&rule.vendor, &claim.vendor)
                && fits(&rule.model, &claim.model)
        };
        self.policy.rules.iter().any(fit).then_some("policy")
    }

    /// Trusts a device.
    pub(super) fn approve(&mut self, now: Stamp, id: &DeviceId, cause: &Cause, step: &mut Step) -> Result<(), Refusal> {
        let record = self.devices.get(id).ok_or_else(|| Refusal::unknown_device(id))?;
        if !self.declared.contains_key(id) && !record.connects() && record.profile.is_empty() {
            let text = format!("no file declares {id}: name the type of the device in `profile`");
            return Err(Refusal::new("invalid", text));
        }
        let before = (record.approved_by.clone(), record.approved_ms);
        if let Some(record) = self.devices.get_mut(id) {
            record.approved_by.clone_from(&cause.actor);
            record.approved_ms = now.wall_ms;
        }
        if let Err(refusal) = self.transition(now, id, Event::Approve, cause, "", step) {
            if let Some(record) = self.devices.get_mut(id) {
                (record.approved_by, record.approved_ms) = before;
            }
            return Err(refusal);
        }
        self.settle(now, id, step);
        Ok(())
    }

    /// A client asks for an event of the table. `details` are put into the record first when the event is possible.
    ///
    /// # Errors
    /// [`Refusal`]; nothing is changed then.
    pub fn request(
        &mut self,
        now: Stamp,
        id: &DeviceId,
        event: Event,
        details: &Details,
        cause: &Cause,
        step: &mut Step,
    ) -> Result<(), Refusal> {
        if !is_request(event) {
            return Err(Refusal::new("not-allowed", format!("`{event}` happens by itself; it cannot be asked for")));
        }
        let record = self.devices.get_mut(id).ok_or_else(|| Refusal::unknown_device(id))?;
        let before = record.clone();
        match event {
            Event::Approve | Event::Replace => {
                if details.fingerprint.is_some() || event == Event::Replace {
                    record.expected.clone_from(&details.fingerprint);
                }
                if !details.profile.is_empty() {
                    record.profile.clone_from(&details.profile);
                }
            }
            Event::Decommission => record.erase_data = details.erase_data,
            _ => {}
        }
        let done = match event {
            Event::Approve => self.approve(now, id, cause, step),
            Event::Offer => self.transition(now, id, event, cause, &details.reason, step).map(|()| {
                if let Some(by) = self.approved_by_policy(id) {
                    let _refused = self.approve(now, id, &Cause::own(by), step);
                }
            }),
            _ => self.transition(now, id, event, cause, &details.reason, step),
        };
        match done {
            Err(refusal) => {
                self.devices.insert(id.clone(), before);
                Err(refusal)
            }
            Ok(()) => {
                if event == Event::Readmit {
                    self.readmit(now, id, cause, step);
                }
                self.settle(now, id, step);
                Ok(())
            }
        }
    }

    /// A second life begins without what was known in the first.
    fn readmit(&mut self, now: Stamp, id: &DeviceId, cause: &Cause, step: &mut Step) {
        if let Some(record) = self.devices.get_mut(id) {
            let fresh = DeviceRecord::new(record.state, record.source, record.since_ms);
            *record = DeviceRecord {
                protocol: std::mem::take(&mut record.protocol),
                address: std::mem::take(&mut record.address),
                claim: record.claim.take(),
                tier: record.tier,
                ..fresh
            };
            if let Some(declaration) = self.declared.get(id) {
                record.expected.clone_from(&declaration.fingerprint);
            }
        }
        self.keep(id, step);
        self.offer(now, id, cause, step);
    }

    /// A device that is polled said who it is.
    pub fn seen(&mut self, now: Stamp, id: &DeviceId, claim: Claim, step: &mut Step) {
        let claim = claim.bounded();
        let Some(record) = self.devices.get_mut(id) else { return };
        if record.claim.as_ref() != Some(&claim) {
            let silent = claim.is_empty() && record.claim.as_ref().is_some_and(|c| !c.is_empty());
            if !silent {
                record.claim = Some(claim);
                self.keep(id, step);
            }
        }
        self.settle(now, id, step);
    }

    /// Takes every step that follows from what is known by now. Does nothing when there is none, however often called.
    pub(super) fn settle(&mut self, now: Stamp, id: &DeviceId, step: &mut Step) {
        let cause = Cause::own("gateway");
        for _ in 0..4 {
            let Some((event, words)) = self.next_event(id) else { return };
            if self.transition(now, id, event, &cause, &words, step).is_err() {
                return;
            }
        }
    }

    /// The event that is due in the device's state.
    fn next_event(&mut self, id: &DeviceId) -> Option<(Event, String)> {
        let declared = self.declared.get(id);
        let record = self.devices.get_mut(id)?;
        let claim = record.claim.clone().unwrap_or_default();
        let mismatch = record.pinned.as_ref().is_some_and(|p| !p.fits(&claim));
        let words = || format!("reveals {}", claim.fingerprint());
        match record.state {
            State::Enrolling | State::Active | State::Transferring if mismatch => {
                Some((Event::IdentityMismatch, words()))
            }
            State::Enrolling if record.connects() => {
                (record.credentials && record.pinned.is_some()).then(|| (Event::Enrolled, String::new()))
            }
            State::Enrolling => {
                if record.pinned.is_none() {
                    let silent = !declared.is_none_or(|d| d.identifies);
                    let said = record.claim.is_some() || silent;
                    if !said {
                        return None;
                    }
                    let unfit = record.expected.as_ref().is_some_and(|e| *e != claim.fingerprint());
                    if unfit {
                        return Some((Event::IdentityMismatch, words()));
                    }
                    record.pinned = Some(claim.pin(&record.address));
                }
                Some((Event::Enrolled, String::new()))
            }
            State::Replacing if record.pinned.is_some() => mismatch.then(|| (Event::IdentityMismatch, words())),
            State::Replacing => {
                let old = record.replaced.as_ref();
                let blind = old.is_none_or(|p| p.kind == PinKind::Address);
                // Without a serial number new hardware of the same make looks like the old: whoever answers is taken.
                let alike = old.is_some_and(|p| !p.names_one_piece()) && record.claim.is_some();
                let other = old.is_some_and(|p| !p.fits(&claim));
                (blind || alike || other).then(|| (Event::ReplacementSeen, words()))
            }
            _ => None,
        }
    }

    /// Something that was asked of the world ended.
    pub fn outcome(&mut self, now: Stamp, id: &DeviceId, outcome: Outcome, step: &mut Step) {
        let cause = Cause::own("gateway");
        let (event, words) = match outcome {
            Outcome::Issued(chain) => {
                let Some(record) = self.devices.get_mut(id).filter(|r| wants_credentials(r)) else { return };
                record.credentials = true;
                record.signing_request.clear();
                record.certificate = chain;
                if record.state == State::Active {
                    step.audit(now, &cause, "renew-certificate", object(id), String::new(), "done");
                    self.keep(id, step);
                    return self.show(id, step);
                }
                if record.pinned.is_none() {
                    record.pinned = record.claim.as_ref().filter(|c| !c.is_empty()).map(|c| c.pin(&record.address));
                }
                self.keep(id, step);
                return self.settle(now, id, step);
            }
            // It keeps the certificate that it has, and may send another request.
            Outcome::IssueFailed(why) if self.devices.get(id).is_some_and(|r| r.state == State::Active) => {
                let Some(record) = self.devices.get_mut(id) else { return };
                record.signing_request.clear();
                let words = format!("the certificate of {id} is not renewed: {why}");
                step.raise(now, Some(id), Severity::Warning, "certificate-not-renewed", words);
                return self.keep(id, step);
            }
            Outcome::IssueFailed(why) => (Event::EnrolFailed, why),
            Outcome::Revoked => {
                let Some(record) = self.devices.get_mut(id).filter(|r| r.state == State::Transferred) else { return };
                record.credentials = false;
                record.certificate.clear();
                self.keep(id, step);
                return self.show(id, step);
            }
            Outcome::EraseWaits(whom) => {
                let pause = self.patience();
                let Some(record) = self.devices.get_mut(id).filter(|r| r.state == State::Decommissioning) else {
                    return;
                };
                self.todo.insert(id.clone(), now.mono_ns.saturating_add(pause));
                let words = format!("stored values are erased when {} has them", whom.join(" and "));
                if record.reason != words {
                    record.reason = words;
                    self.keep(id, step);
                }
                return;
            }
            Outcome::Erased(what) => (Event::Erased, what.join("; ")),
            Outcome::EraseFailed(why) => (Event::EraseFailed, why),
            Outcome::Proven => (Event::Proven, String::new()),
            Outcome::ProofFailed(why) => (Event::ProofFailed, why),
        };
        // An outcome that comes late, when the device is in another state by then, changes nothing.
        let _late = self.transition(now, id, event, &cause, &words, step);
    }

    /// Pause between two looks whether stored values are delivered: each goes through the whole log, for some dozens of
    /// devices at a time.
    fn patience(&self) -> u64 {
        let waiting = self.devices.values().filter(|r| r.state == State::Decommissioning).count() as u64;
        RETRY_NS * (1 + waiting / 32)
    }

    /// The only place where a device changes its state.
    pub(super) fn transition(
        &mut self,
        now: Stamp,
        id: &DeviceId,
        event: Event,
        cause: &Cause,
        words: &str,
        step: &mut Step,
    ) -> Result<(), Refusal> {
        let record = self.devices.get_mut(id).ok_or_else(|| Refusal::unknown_device(id))?;
        let row = TABLE.decide(record.state, event, |guard| holds(record, guard))?;
        if row.from != row.to {
            record.state = row.to;
            record.since_ms = now.wall_ms;
        }
        words.clone_into(&mut record.reason);
        let detail = match words.is_empty() {
            true => format!("{} to {}", row.from, row.to),
            false => format!("{} to {}: {words}", row.from, row.to),
        };
        step.audit(now, cause, event.as_str(), object(id), detail, "done");
        for &action in row.effects {
            self.perform(now, id, action, event, cause, words, step);
        }
        self.keep(id, step);
        Ok(())
    }

    #[allow(clippy::too_many_arguments, reason = "one row's context, used by one caller")]
    fn perform(
        &mut self,
        now: Stamp,
        id: &DeviceId,
        action: Action,
        event: Event,
        cause: &Cause,
        words: &str,
        step: &mut Step,
    ) {
        let Some(record) = self.devices.get_mut(id) else { return };
        match action {
            Action::Pin => {
                record.pinned = record.claim.as_ref().filter(|c| !c.is_empty()).map(|c| c.pin(&record.address));
                if record.pinned.is_none() && event != Event::Approve {
                    record.pinned = Some(Claim::default().pin(&record.address));
                }
                record.expected = record.expected.take().filter(|_| record.pinned.is_none());
            }
            Action::Unpin => {
                record.replaced = record.pinned.take();
                // What the old hardware said is no sign of the new one.
                record.claim = None;
            }
            Action::Restore => {
                if let Some(old) = record.replaced.take() {
                    record.pinned = Some(old);
                }
            }
            Action::Identify => step.act(Effect::Identify(id.clone())),
            Action::Plan => step.apply_plan(),
            Action::Alarm => {
                let what = format!("device {id}: {event}, now {}: {words}; look at its onboarding topic", record.state);
                step.raise(now, Some(id), Severity::Alarm, event.as_str(), what);
            }
            Action::Reapply => self.follow.push(Follow::Reapply(id.clone())),
            Action::VoidTransfer => {
                record.transfer.clear();
                self.follow.push(Follow::VoidTransfer(id.clone()));
            }
            Action::Issue | Action::Revoke | Action::Erase => {
                self.todo.insert(id.clone(), 0);
            }
            Action::Certificate => {
                let what = format!("certificate of erasure: {words}");
                // As an event of the gateway: those of the device are erased, and consumers learn what they will not get.
                step.raise(now, None, Severity::Info, "device-erased", format!("device {id}: {what}"));
                step.audit(now, cause, "certificate-of-erasure", object(id), what, "done");
                let fresh = DeviceRecord::new(record.state, record.source, record.since_ms);
                let (protocol, address) = (record.protocol.clone(), record.address.clone());
                *record = DeviceRecord { protocol, address, tier: record.tier, ..fresh };
                self.follow.push(Follow::Gone(id.clone()));
            }
        }
    }

    /// Asks for what the states of devices need: after a transition, after a start, and again when nobody reported.
    pub fn reconcile(&mut self, now: Stamp, step: &mut Step) {
        let due: Vec<DeviceId> =
            self.todo.iter().filter(|(_, at)| **at <= now.mono_ns).map(|(id, _)| id.clone()).collect();
        for id in due {
            match self.devices.get(&id).and_then(|record| wanted(now, &self.policy, &id, record)) {
                Some(effect) => {
                    let pause = if matches!(effect, Effect::Identify(_)) { ASK_AGAIN_NS } else { RETRY_NS };
                    step.act(effect);
                    self.todo.insert(id, now.mono_ns.saturating_add(pause));
                }
                None => {
                    self.todo.remove(&id);
                }
            }
        }
    }

    /// Monotonic time of the next [`Self::reconcile`] that does something.
    pub fn next_wake(&self) -> Option<u64> {
        self.todo.values().min().copied()
    }

    /// Shows every device, as after a start.
    pub fn show_all(&self, step: &mut Step) {
        for id in self.devices.keys() {
            self.show(id, step);
        }
    }

    pub(super) fn keep(&self, id: &DeviceId, step: &mut Step) {
        if let Some(record) = self.devices.get(id) {
            step.put(Shelf::Devices, id.as_str(), record);
        }
        self.show(id, step);
    }

    fn show(&self, id: &DeviceId, step: &mut Step) {
        if let Some(record) = self.devices.get(id) {
            let message = record.message(id, self.declared.get(id));
            step.show(topics::onboarding(id), Shown::Onboarding(Box::new(message)));
        }
    }
}

/// Why a device without a file does not run.
const ORPHAN: &str = "no file declares it any more";

/// What the state of a device asks of the world. It is asked until the answer moves the device to another state.
fn wanted(now: Stamp, policy: &Policy, id: &DeviceId, record: &DeviceRecord) -> Option<Effect> {
    let device = id.clone();
    match record.state {
        State::Decommissioning => Some(Effect::Erase { device, stored: stored(now, policy, record) }),
        State::Transferred if record.credentials => Some(Effect::Revoke(device)),
        State::Enrolling | State::Active if wants_credentials(record) => {
            Some(Effect::Issue { device, signing_request: record.signing_request.clone() })
        }
        State::Enrolling | State::Replacing if record.pinned.is_none() => Some(Effect::Identify(device)),
        _ => None,
    }
}

/// Whether credentials are to be made: the first ones, or those that a device in service asks for before its own end.
fn wants_credentials(record: &DeviceRecord) -> bool {
    match record.state {
        State::Enrolling => record.connects() && !record.credentials,
        State::Active => record.connects() && !record.signing_request.is_empty(),
        _ => false,
    }
}

/// What becomes of its values now. Delivery is not waited for without end, but a wrong clock ends no wait.
fn stored(now: Stamp, policy: &Policy, record: &DeviceRecord) -> Stored {
    let is_known = now.trust == ClockTrust::Synchronised && record.since_ms >= PLAUSIBLE_MS;
    let is_over = is_known && now.wall_ms.saturating_sub(record.since_ms) > policy.deliver_within_ms;
    match policy.stored {
        _ if record.erase_data => Stored::Now,
        Stored::AfterDelivery if is_over => Stored::Now,
        stored => stored,
    }
}

fn holds(record: &DeviceRecord, guard: Guard) -> bool {
    let claim = record.claim.as_ref();
    match guard {
        Guard::ExpectedFits => match (&record.expected, claim) {
            (Some(expected), Some(claim)) => {
                *expected == claim.fingerprint() || claim.certificate.as_ref() == Some(expected)
            }
            _ => true,
        },
        Guard::IdentityFits => match (&record.pinned, claim) {
            (Some(pin), Some(claim)) => pin.fits(claim),
            (Some(_), None) => true,
            (None, _) => false,
        },
        Guard::NotPinned => record.pinned.is_none(),
        Guard::IdentitySeen => claim.is_some_and(|c| !c.is_empty()),
    }
}

pub(super) fn object(id: &DeviceId) -> String {
    format!("devices/{id}")
}
