//! Devices that leave for, or come from, another gateway.

use super::record::{DeviceRecord, Source};
use super::registry::Lifecycle;
use super::states::{Event, State, TABLE};
use crate::management::request::Refusal;
use crate::management::step::{Cause, Step};
use crate::management::table::Word;
use crate::management::transfer::ExportedDevice;
use crate::model::{DeviceId, Stamp};

impl Lifecycle {
    /// Whether every one of these devices can be exported.
    ///
    /// # Errors
    /// [`Refusal`] that names the first that cannot.
    pub fn can_export(&self, devices: &[DeviceId]) -> Result<(), Refusal> {
        for id in devices {
            let record = self.devices.get(id).ok_or_else(|| Refusal::unknown_device(id))?;
            if record.state != State::Active {
                let text = format!("{id} is {}; only active devices can be exported", record.state);
                return Err(Refusal::new("not-possible", text));
            }
        }
        Ok(())
    }

    /// A device becomes part of a transfer.
    pub fn export(&mut self, now: Stamp, id: &DeviceId, transfer: &str, cause: &Cause, step: &mut Step) {
        if self.transition(now, id, Event::Export, cause, "", step).is_ok() {
            if let Some(record) = self.devices.get_mut(id) {
                transfer.clone_into(&mut record.transfer);
            }
            self.keep(id, step);
        }
    }

    /// What the next owner has to know of a device but its configuration.
    pub fn exported(&self, id: &DeviceId) -> Option<ExportedDevice> {
        let record = self.devices.get(id)?;
        Some(ExportedDevice {
            device: id.as_str().to_owned(),
            protocol: record.protocol.clone(),
            address: record.address.clone(),
            tier: record.tier,
            profile: record.profile.clone(),
            pinned: record.pinned.clone(),
            claim: record.claim.clone(),
            in_force: None,
            history: Vec::new(),
        })
    }

    /// Whether a device with this id can be taken from another gateway: none here is alive.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn can_import(&self, id: &DeviceId) -> Result<(), Refusal> {
        let Some(record) = self.devices.get(id) else { return Ok(()) };
        // A file may declare it before it arrives. It must not have been approved, or two gateways would own it.
        if TABLE.decide(record.state, Event::Import, |_| true).is_ok() {
            return Ok(());
        }
        let text = format!("{id} is {} here; decommission it first, or choose another id there", record.state);
        Err(Refusal::new("not-possible", text))
    }

    /// A device is held for another gateway, which still owns it.
    pub fn receive(
        &mut self,
        now: Stamp,
        id: &DeviceId,
        exported: &ExportedDevice,
        transfer: &str,
        cause: &Cause,
        step: &mut Step,
    ) {
        let mut record = DeviceRecord::new(State::Receiving, Source::Received, now.wall_ms);
        record.protocol.clone_from(&exported.protocol);
        record.address.clone_from(&exported.address);
        record.tier = exported.tier;
        record.profile.clone_from(&exported.profile);
        record.pinned.clone_from(&exported.pinned);
        record.claim = exported.claim.clone().map(super::Claim::bounded);
        record.approved_by.clone_from(&cause.actor);
        record.approved_ms = now.wall_ms;
        transfer.clone_into(&mut record.transfer);
        let before = self.devices.insert(id.clone(), record);
        let detail = match before {
            Some(before) => format!("{} to {}: transfer {transfer}", before.state, State::Receiving),
            None => format!("{}: transfer {transfer}", State::Receiving),
        };
        step.audit(now, cause, Event::Import.as_str(), super::registry::object(id), detail, "done");
        self.keep(id, step);
    }

    /// The transfer that a device is part of went on.
    pub fn transferred(
        &mut self,
        now: Stamp,
        id: &DeviceId,
        event: Event,
        transfer: &str,
        cause: &Cause,
        step: &mut Step,
    ) {
        if self.devices.get(id).is_none_or(|r| r.transfer != transfer) {
            return;
        }
        if self.transition(now, id, event, cause, "", step).is_ok() {
            if let Some(record) = self.devices.get_mut(id) {
                record.transfer.clear();
            }
            self.keep(id, step);
            self.settle(now, id, step);
        }
    }
}
