//! The registry of devices: takes what is seen and asked, follows the table, and says what shall run.

use std::collections::BTreeMap;

use super::identity::{Claim, PinKind};
use super::record::{DeviceRecord, Source, is_request};
use super::states::{Event, State};
use super::token::Token;
use super::types::{Approval, Declaration, Details, Follow, Mode, Planned, Policy};
use crate::contract::topics;
use crate::management::journal::{JournalError, Records, Shelf};
use crate::management::request::{Refusal, fits};
use crate::management::step::{Cause, Shown, Step};
use crate::model::{DeviceId, Stamp};

/// All devices. Changes in memory at once; the caller makes the step durable, or loads again.
#[derive(Debug, Default)]
pub struct Lifecycle {
    pub(super) policy: Policy,
    pub(super) devices: BTreeMap<DeviceId, DeviceRecord>,
    pub(super) declared: BTreeMap<DeviceId, Declaration>,
    pub(super) tokens: BTreeMap<String, Token>,
    pub(super) follow: Vec<Follow>,
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
                let completed = record.pinned.as_ref().and_then(|pin| pin.completed(&claim));
                if let Some(pin) = completed {
                    let words = format!("serial number {}", claim.serial);
                    step.audit(now, &Cause::own("gateway"), "complete-identity", object(id), words, "done");
                    record.pinned = Some(pin);
                }
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

    pub(super) fn show(&self, id: &DeviceId, step: &mut Step) {
        if let Some(record) = self.devices.get(id) {
            let message = record.message(id, self.declared.get(id));
            step.show(topics::onboarding(id), Shown::Onboarding(Box::new(message)));
        }
    }
}

/// Why a device without a file does not run.
const ORPHAN: &str = "no file declares it any more";

pub(super) fn object(id: &DeviceId) -> String {
    format!("devices/{id}")
}
