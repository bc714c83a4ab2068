//! The step from one state to the next: the table decides, and what a row asks for is done.

use super::identity::Claim;
use super::record::DeviceRecord;
use super::registry::{Lifecycle, object};
use super::states::{Action, Event, Guard, TABLE};
use super::types::Follow;
use crate::contract::v1::event::Severity;
use crate::management::request::Refusal;
use crate::management::step::{Cause, Effect, Step};
use crate::management::table::Word;
use crate::model::{DeviceId, Stamp};

impl Lifecycle {
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
                if event == Event::Replace {
                    record.replaced = record.pinned.take();
                }
                if event != Event::Approve {
                    record.piece += 1;
                }
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
                if let Some(old) = record.replaced.take()
                    && record.pinned.replace(old).is_some()
                {
                    record.piece -= 1;
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
