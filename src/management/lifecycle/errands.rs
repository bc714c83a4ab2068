//! What the states of devices ask of the world (credentials, erasure, who answers), and what its answers change.

use super::record::DeviceRecord;
use super::registry::{Lifecycle, object};
use super::states::{Event, State};
use super::types::{Outcome, Policy, Stored};
use crate::contract::v1::event::Severity;
use crate::management::step::{Cause, Effect, Step};
use crate::model::{ClockTrust, DeviceId, Stamp};

/// Pause between two attempts to erase or to issue credentials, and to ask a silent device who it is.
const RETRY_NS: u64 = 30_000_000_000;
const ASK_AGAIN_NS: u64 = 600_000_000_000;
/// No clock that was ever set showed less (2024).
const PLAUSIBLE_MS: i64 = 1_704_067_200_000;

impl Lifecycle {
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
}

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
