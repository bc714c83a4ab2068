//! Devices that come by themselves: announced over MQTT, or found by a scan.

use super::identity::{Claim, Pin, PinKind};
use super::record::{DeviceRecord, Source};
use super::registry::{Lifecycle, object};
use super::scan::Finding;
use super::states::State;
use crate::contract::v1::event::Severity;
use crate::management::request::{Actor, Refusal};
use crate::management::step::{Cause, Step};
use crate::model::{DeviceId, Stamp};

/// Largest certificate signing request, in bytes.
const MAX_SIGNING_REQUEST: usize = 8 * 1024;
/// A device in service gets another certificate this often at most.
const RENEWAL_NS: u64 = 3_600_000_000_000;

/// What a device says when it announces itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Announced {
    /// Who it is.
    pub claim: Claim,
    /// Enrolment token; empty for none. Never kept or logged.
    pub token: String,
    /// PEM certificate signing request; empty for none.
    pub signing_request: String,
}

impl Lifecycle {
    /// A device announces itself under `id`.
    ///
    /// # Errors
    /// [`Refusal`] when the credentials are not those of the device, the token is not valid, or the registry is full. A
    /// claim that does not fit the pinned identity also raises an alarm.
    pub fn announce(
        &mut self,
        now: Stamp,
        id: &DeviceId,
        actor: &Actor,
        announced: Announced,
        cause: &Cause,
        step: &mut Step,
    ) -> Result<(), Refusal> {
        let Announced { claim, token, signing_request } = announced;
        let claim = Claim { certificate: actor.certificate.clone(), ..claim }.bounded();
        if signing_request.len() > MAX_SIGNING_REQUEST {
            return Err(Refusal::new(
                "invalid",
                format!("`signing_request` is longer than {MAX_SIGNING_REQUEST} bytes"),
            ));
        }
        let token = if token.is_empty() { None } else { Some(self.check_token(now, &token, id)?) };
        if actor.device.as_ref() != Some(id) && token.is_none() {
            let text = format!("these credentials are not those of {id}, and there is no enrolment token");
            return Err(self.impostor(now, id, Refusal::new("not-allowed", text), step));
        }
        if let Some(record) = self.devices.get(id) {
            if record.pinned.as_ref().is_some_and(|pin| !pin.fits(&claim) || is_weaker(pin, &claim)) {
                let text =
                    format!("{id} is known with another identity; an operator must replace or decommission it first");
                return Err(self.impostor(now, id, Refusal::new("identity-mismatch", text), step));
            }
            if token.is_some() && !matches!(record.state, State::Discovered | State::Pending) {
                let text = format!("{id} is {}; a token only enrols devices that wait for approval", record.state);
                return Err(Refusal::new("not-possible", text));
            }
            if record.state == State::Active && !signing_request.is_empty() {
                self.may_renew(now, id)?;
            }
        } else {
            self.make_room(id)?;
        }
        self.enter(now, id, Source::Announced, "mqtt", "mqtt", cause, step);
        if let Some(record) = self.devices.get_mut(id) {
            record.claim = Some(claim);
            if !signing_request.is_empty() {
                record.signing_request = signing_request;
                self.todo.insert(id.clone(), 0);
            }
        }
        self.keep(id, step);
        if self.devices.get(id).is_some_and(|r| r.state == State::Discovered) {
            self.offer(now, id, cause, step);
        }
        if let Some(token) = token {
            self.enrol_with(now, id, &token, step);
        }
        self.settle(now, id, step);
        Ok(())
    }

    /// Whoever has the certificate of a device may have as many as he asks for; the books shall not grow with them.
    fn may_renew(&mut self, now: Stamp, id: &DeviceId) -> Result<(), Refusal> {
        self.renewed.retain(|_, at| now.mono_ns.saturating_sub(*at) < RENEWAL_NS);
        if self.renewed.contains_key(id) {
            let text = format!("{id} asked for a certificate within the last hour; its answer stands in `onboarding`");
            return Err(Refusal::new("too-soon", text));
        }
        self.renewed.insert(id.clone(), now.mono_ns);
        Ok(())
    }

    fn enrol_with(&mut self, now: Stamp, id: &DeviceId, token: &str, step: &mut Step) {
        // The policy may have approved it already: then the token stays unused.
        if self.devices.get(id).is_none_or(|r| r.state != State::Pending) {
            return;
        }
        if let (Some(token), Some(record)) = (self.tokens.get(token), self.devices.get_mut(id)) {
            record.profile.clone_from(&token.profile);
        }
        // A file may demand another fingerprint: then the device waits for a person, and the token stays unused.
        if self.approve(now, id, &Cause::own(&format!("token:{token}")), step).is_ok() {
            self.use_token(token, step);
        }
    }

    /// A scan found something. Unknown addresses become devices; known ones are left alone.
    pub fn found(&mut self, now: Stamp, finding: Finding, cause: &Cause, step: &mut Step) -> Result<(), Refusal> {
        let known = |r: &DeviceRecord| r.protocol == finding.protocol && r.address == finding.address;
        if self.devices.values().any(known) {
            return Ok(());
        }
        let id = finding.id();
        if self.devices.contains_key(&id) {
            return Ok(());
        }
        self.make_room(&id)?;
        self.enter(now, &id, Source::Found, &finding.protocol, &finding.address, cause, step);
        if let Some(record) = self.devices.get_mut(&id) {
            record.claim = finding.claim.map(Claim::bounded);
        }
        self.keep(&id, step);
        // Who answers and does not say who he is has been asked: his address is what he is known by.
        self.offer(now, &id, cause, step);
        Ok(())
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of a first record")]
    fn enter(
        &mut self,
        now: Stamp,
        id: &DeviceId,
        source: Source,
        protocol: &str,
        address: &str,
        cause: &Cause,
        step: &mut Step,
    ) {
        if self.devices.contains_key(id) {
            return;
        }
        let mut record = DeviceRecord::new(State::Discovered, source, now.wall_ms);
        protocol.clone_into(&mut record.protocol);
        address.clone_into(&mut record.address);
        let what = format!("{}, {protocol} {address}", source.as_str());
        step.audit(now, cause, "discover", object(id), what, "done");
        self.devices.insert(id.clone(), record);
    }

    fn make_room(&self, id: &DeviceId) -> Result<(), Refusal> {
        let stranger = |r: &&DeviceRecord| {
            r.source != Source::Declared && matches!(r.state, State::Discovered | State::Pending | State::Rejected)
        };
        if self.devices.len() >= self.policy.max_devices
            || self.devices.values().filter(stranger).count() >= self.policy.max_strangers
        {
            let text = format!("the registry is full, {id} is not taken; approve or decommission devices that wait");
            return Err(Refusal::new("too-many", text));
        }
        Ok(())
    }

    /// Somebody pretends to be a known device: he is refused, people are told, the device is not touched.
    fn impostor(&self, now: Stamp, id: &DeviceId, refusal: Refusal, step: &mut Step) -> Refusal {
        if self.devices.contains_key(id) {
            let what = format!("refused an announcement as {id}: {refusal}");
            step.raise(now, Some(id), Severity::Alarm, "identity-mismatch", what);
        }
        refusal
    }
}

/// A device that is known by its certificate must come with one.
fn is_weaker(pin: &Pin, claim: &Claim) -> bool {
    pin.kind == PinKind::Certificate && claim.certificate.is_none()
}
