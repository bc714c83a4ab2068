//! What the gateway says about each device: onboarding and capabilities on retained topics, changes of state as events.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Mutex;

use super::events::EventLog;
use crate::contract::topics;
use crate::contract::v1::event::Severity;
use crate::management::onboarding::{DeviceIdentity, Onboarding, OnboardingOutput, Pin};
use crate::model::{Device, DeviceId};
use crate::northbound::StateBoard;
use crate::platform::clock::SharedClock;
use crate::southbound::{DeviceState, Identity};
use crate::store::{Op, Store};

/// Tree of the state store that holds pinned identities.
const PINS: &str = "pins";

/// Turns what drivers report into topics; cheap to clone.
#[derive(Debug, Clone)]
pub struct DeviceDesk {
    onboarding: Arc<Mutex<Onboarding>>,
    store: Store,
    board: StateBoard,
    events: EventLog,
    clock: SharedClock,
}

impl DeviceDesk {
    /// A desk that knows no device yet.
    pub fn new(store: Store, board: StateBoard, events: EventLog, clock: SharedClock) -> Self {
        Self { onboarding: Arc::default(), store, board, events, clock }
    }

    /// Takes the declared devices, at start and after each reload.
    pub async fn declare(&self, devices: &[Arc<Device>]) -> Result<(), String> {
        let kept = self.store.state().scan(PINS, b"").map_err(|e| format!("read pinned identities: {e}"))?;
        let readable =
            |(id, octets): (Bytes, Bytes)| Some((String::from_utf8_lossy(&id).into_owned(), Pin::decode(&octets)?));
        let kept: HashMap<String, Pin> = kept.into_iter().filter_map(readable).collect();
        let mut onboarding = self.onboarding.lock().await;
        let outputs = onboarding.declare(devices, |id| kept.get(id.as_str()).cloned(), self.clock.now());
        self.perform(outputs).await
    }

    /// Takes what a device says of itself.
    pub async fn identified(&self, device: &DeviceId, identity: &Identity) -> Result<(), String> {
        let mut onboarding = self.onboarding.lock().await;
        let outputs = onboarding.identified(device, translate(identity), self.clock.now());
        self.perform(outputs).await
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

    /// What is to survive a restart is durable before anything that follows from it is published.
    async fn perform(&self, outputs: Vec<OnboardingOutput>) -> Result<(), String> {
        let kept: Vec<Op> = outputs.iter().filter_map(to_keep).collect();
        if !kept.is_empty() {
            self.store.state().batch(kept).await.map_err(|e| format!("keep pinned identities: {e}"))?;
        }
        for output in outputs {
            match output {
                OnboardingOutput::Keep(..) => {}
                OnboardingOutput::Forget(id) => {
                    self.board.remove(&topics::onboarding(&id));
                    self.board.remove(&topics::capabilities(&id));
                }
                OnboardingOutput::Onboarding(message) => {
                    self.board.set(&format!("devices/{}/onboarding", message.device), &message)
                }
                OnboardingOutput::Capabilities(message) => {
                    self.board.set(&format!("devices/{}/capabilities", message.device), &message);
                }
                OnboardingOutput::Event(event) => {
                    let severity = event.severity();
                    self.events.report(severity, &event.kind, &event.device, event.message).await;
                }
            }
        }
        Ok(())
    }
}

fn to_keep(output: &OnboardingOutput) -> Option<Op> {
    let key = |id: &DeviceId| Bytes::copy_from_slice(id.as_str().as_bytes());
    match output {
        OnboardingOutput::Keep(id, pin) => Some(Op::Put { tree: PINS.to_owned(), key: key(id), value: pin.encode() }),
        OnboardingOutput::Forget(id) => Some(Op::Delete { tree: PINS.to_owned(), key: key(id) }),
        _ => None,
    }
}

fn translate(identity: &Identity) -> DeviceIdentity {
    let text = |part: &Option<String>| part.clone().unwrap_or_default();
    DeviceIdentity {
        vendor: text(&identity.vendor),
        model: text(&identity.model),
        serial: text(&identity.serial),
        firmware: text(&identity.firmware),
        other: identity.other.clone(),
        fingerprint: if identity.is_empty() { String::new() } else { identity.fingerprint() },
    }
}
