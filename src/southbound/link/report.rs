//! Handing updates over to the gateway.

use std::time::Duration;

use tokio::sync::mpsc::Permit;

use super::super::driver::Driver;
use super::super::{DeviceStats, Update};
use super::LinkTask;
use crate::platform::beat;

/// Statistics are reported at least this often.
const REPORT_EVERY: Duration = Duration::from_secs(10);

impl<D: Driver> LinkTask<D> {
    /// Puts news into the outbox and hands over as much of it as the gateway takes now.
    pub(super) fn report(&mut self) {
        self.hand_over();
        let now = self.now();
        let (late_replies, reconnects) = (self.late_replies, self.connects.saturating_sub(1));
        let mut added = false;
        for device in self.devices.iter_mut().flatten().filter(|device| device.outstanding == 0) {
            if let Some(reason) = device.all_bad.take() {
                device.outstanding += 1;
                self.outbox.push_back(Update::Scan(device.all_points(reason, self.clock.now())));
            }
            if device.identity_is_news
                && let Some(identity) = device.identity.clone()
            {
                device.identity_is_news = false;
                self.outbox.push_back(Update::Identity { device: device.id().clone(), identity });
            }
            if device.state_is_news || now >= device.last_report + REPORT_EVERY {
                device.state_is_news = false;
                device.last_report = now;
                let stats = DeviceStats { late_replies, reconnects, ..device.stats.clone() };
                let state = device.state.clone();
                device.outstanding += 1;
                self.outbox.push_back(Update::Device { device: device.id().clone(), state, stats });
            }
            added |= device.outstanding > 0;
        }
        if added {
            self.hand_over();
        }
    }

    /// Hands over without waiting.
    pub(super) fn hand_over(&mut self) {
        let updates = self.updates.clone();
        while !self.outbox.is_empty() {
            let Ok(permit) = updates.try_reserve() else { return };
            self.hand_over_with(permit);
        }
    }

    pub(super) fn hand_over_with(&mut self, permit: Permit<'_, Update>) {
        let Some(update) = self.outbox.pop_front() else { return };
        let counted = !matches!(update, Update::Identity { .. });
        let slot = self.slot_of(&update).filter(|_| counted);
        permit.send(update);
        if let Some(slot) = slot {
            self.release(slot);
        }
    }

    fn slot_of(&self, update: &Update) -> Option<usize> {
        let device = update.device();
        self.slot_where(|run| run.id() == device)
    }

    fn release(&mut self, slot: usize) {
        let device = self.device(slot);
        device.outstanding = device.outstanding.saturating_sub(1);
        if device.outstanding == 0 {
            self.schedule.block(slot, false);
        }
    }

    pub(super) fn next_report(&self) -> Duration {
        let next =
            self.slots().filter(|(_, device)| device.outstanding == 0).map(|(_, device)| device.last_report).min();
        beat::put_off(next.unwrap_or_else(|| self.now()) + REPORT_EVERY, beat::BEAT)
    }
}
