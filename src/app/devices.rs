//! What drivers say about devices, on its way to topics: identities to management, changes of state as events.

use super::events::EventLog;
use super::management::{Fleet, claim};
use crate::contract::v1::event::Severity;
use crate::management::core::Input;
use crate::management::service::Management;
use crate::model::DeviceId;
use crate::southbound::{DeviceState, Identity};

/// Turns what drivers report into events and inputs of management; cheap to clone.
#[derive(Debug, Clone)]
pub struct DeviceDesk {
    /// Where identities go.
    pub management: Management,
    /// Who shows capabilities.
    pub fleet: Fleet,
    /// Where changes of state go.
    pub events: EventLog,
}

impl DeviceDesk {
    /// Takes what a device says of itself.
    pub async fn identified(&self, device: &DeviceId, identity: Identity) {
        let claim = claim(&identity);
        self.fleet.identified(device, claim.clone());
        // Management has stopped only when the gateway stops; the device is asked again after the next start.
        let _stopped = self.management.report(Input::Seen { device: device.clone(), claim }).await;
    }

    /// Reports that a device's link state became another.
    pub async fn state_changed(&self, device: &DeviceId, before: &DeviceState, now: &DeviceState) {
        let reason = now.reason().unwrap_or_default();
        let (severity, kind, text) = match now {
            DeviceState::Connecting => return,
            DeviceState::Online if matches!(before, DeviceState::Connecting) => {
                (Severity::Info, "device-online", "the device answers".to_owned())
            }
            DeviceState::Online => (Severity::Info, "device-online", "the device answers again".to_owned()),
            DeviceState::Degraded { .. } => {
                (Severity::Warning, "device-degraded", format!("some requests fail: {reason}"))
            }
            DeviceState::OffScan { retry_in, .. } => {
                (Severity::Alarm, "device-off-scan", format!("off scan, next attempt in {retry_in:.0?}: {reason}"))
            }
            DeviceState::Offline { .. } => (Severity::Alarm, "device-offline", format!("cannot be reached: {reason}")),
        };
        self.events.report(severity, kind, device.as_str(), text).await;
    }
}
