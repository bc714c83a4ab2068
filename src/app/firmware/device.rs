//! Devices as they are now: their profile, their place in the registry, and the way to them, looked up for every call, so that a
//! reload, a suspension or a changed identity counts at once.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::app::management::Fleet;
use crate::broker::{EmbeddedBroker, Inbound, LocalBroker, Publication, Qos, Retain};
use crate::management::firmware::{
    AnyTransfer, ChunkBus, ChunkTransfer, Delivered, DeviceForm, DeviceTarget, FileRecordTransfer, Job, PduLink, Proof,
    Target, TargetError, Version, Way,
};
use crate::management::request::Refusal;
use crate::model::DeviceId;
use crate::platform::clock::SharedClock;
use crate::southbound::{IdentifyError, Southbound};

/// Pauses between questions who the device is, after an update.
const LOOKS: [Duration; 4] =
    [Duration::from_millis(100), Duration::from_millis(500), Duration::from_secs(2), Duration::from_secs(5)];

/// Ways to devices.
#[derive(Debug, Clone)]
pub(super) struct Ways {
    pub(super) fleet: Fleet,
    pub(super) broker: Option<EmbeddedBroker>,
    /// Root of the gateway's topics.
    pub(super) root: String,
    pub(super) clock: SharedClock,
}

impl Ways {
    /// How a device takes firmware, or why not.
    pub(super) fn form(&self, device: &DeviceId) -> Result<DeviceForm, Refusal> {
        if device.as_str() == super::GATEWAY {
            let text = "a device named gateway cannot be updated here: the name means the gateway itself";
            return Err(Refusal::new("not-possible", text));
        }
        self.fleet.firmware(device)
    }

    fn transfer(&self, device: &DeviceId, form: &DeviceForm) -> Result<AnyTransfer<PolledLink, BrokerBus>, String> {
        match &form.way {
            Way::FileRecords(profile) => {
                let link = PolledLink { southbound: self.fleet.southbound().clone(), device: device.clone() };
                FileRecordTransfer::new(profile.clone(), link).map(AnyTransfer::FileRecords)
            }
            Way::Chunks { topic, size, patience } => {
                let broker = self.broker.clone().ok_or("there is no embedded broker to reach it over")?;
                let base = topic.clone().unwrap_or_else(|| format!("{}/devices/{device}", self.root));
                let bus = BrokerBus { broker, base, acks: None };
                Ok(AnyTransfer::Chunks(ChunkTransfer::new(bus, *size, *patience)))
            }
        }
    }
}

type Inner = DeviceTarget<AnyTransfer<PolledLink, BrokerBus>>;

/// A device that is looked up for every call.
#[derive(Debug)]
pub(super) struct LiveTarget {
    device: DeviceId,
    ways: Ways,
    /// What manifests must name, as of the last look.
    name: String,
    inner: Option<(DeviceForm, Inner)>,
}

impl LiveTarget {
    pub(super) fn new(device: DeviceId, ways: Ways) -> Self {
        let name = ways.form(&device).map(|form| form.target).unwrap_or_default();
        Self { device, ways, name, inner: None }
    }

    /// The way to the device, if it may be used now.
    async fn way(&mut self) -> Result<&mut Inner, TargetError> {
        let wait = |reason: String| TargetError::Transient(reason);
        let form = self.ways.form(&self.device).map_err(|refusal| wait(refusal.message))?;
        self.name.clone_from(&form.target);
        if !self.ways.fleet.is_trusted(&self.device).await {
            return Err(wait(format!("{} is not in service", self.device)));
        }
        let kept = self.inner.take().filter(|(known, _)| *known == form);
        let inner = match kept {
            Some((_, inner)) => inner,
            None => {
                let transfer = self.ways.transfer(&self.device, &form).map_err(wait)?;
                let (target, within, pause) = (form.target.as_str(), form.prove_within, form.pause());
                DeviceTarget::new(target, transfer, within, pause, self.ways.clock.clone())
            }
        };
        Ok(&mut self.inner.insert((form, inner)).1)
    }
}

impl LiveTarget {
    /// Has the device say who it is, so that its capabilities show what runs now. One that says nothing of itself is as
    /// before; one that has no time is asked a few times more.
    async fn look_again(&self) {
        for pause in LOOKS {
            match self.ways.fleet.southbound().identify(&self.device).await {
                Err(IdentifyError::Failed(_) | IdentifyError::Busy) => tokio::time::sleep(pause).await,
                _ => return,
            }
        }
    }
}

impl Target for LiveTarget {
    fn name(&self) -> &str {
        &self.name
    }

    async fn current(&mut self) -> Result<Option<Version>, TargetError> {
        let current = self.way().await?.current().await;
        // Nothing is under way here: a subscription for answers must not lie about and fill up.
        self.inner = None;
        current
    }

    async fn install(&mut self, job: &Job, artifact: &std::path::Path) -> Result<Delivered, TargetError> {
        self.way().await?.install(job, artifact).await
    }

    async fn prove(&mut self, job: &Job) -> Result<Proof, TargetError> {
        let proof = self.way().await?.prove(job).await;
        if !matches!(proof, Ok(Proof::Waiting(_)) | Err(TargetError::Transient(_))) {
            self.inner = None;
            self.look_again().await;
        }
        proof
    }
}

/// The link that polls the device.
#[derive(Debug)]
pub(super) struct PolledLink {
    southbound: Southbound,
    device: DeviceId,
}

impl PduLink for PolledLink {
    async fn exchange(&mut self, request: &[u8]) -> Result<Vec<u8>, String> {
        self.southbound.exchange(&self.device, request.to_vec()).await.map_err(|error| error.to_string())
    }
}

/// The device's topics on the embedded broker.
#[derive(Debug)]
pub(super) struct BrokerBus {
    broker: EmbeddedBroker,
    base: String,
    /// Subscribed with the first message.
    acks: Option<mpsc::Receiver<Inbound>>,
}

impl ChunkBus for BrokerBus {
    async fn publish(&mut self, topic: &str, payload: Vec<u8>) -> Result<(), String> {
        if self.acks.is_none() {
            let filter = format!("{}/firmware/ack", self.base);
            self.acks = Some(self.broker.subscribe(vec![filter]).map_err(|e| e.to_string())?);
        }
        let message = Publication {
            topic: format!("{}/{topic}", self.base).into(),
            payload: payload.into(),
            qos: Qos::AtLeastOnce,
            retain: Retain::No,
        };
        self.broker.publish(vec![message]).await.map_err(|e| e.to_string())
    }

    async fn next_ack(&mut self, patience: Duration) -> Result<Option<Vec<u8>>, String> {
        let Some(acks) = &mut self.acks else { return Ok(None) };
        let next = async {
            loop {
                match acks.recv().await {
                    // An answer that was kept answers nothing that is asked now.
                    Some(ack) if ack.retain => {}
                    other => return other,
                }
            }
        };
        match timeout(patience, next).await {
            Ok(Some(ack)) => Ok(Some(ack.payload.to_vec())),
            Ok(None) => {
                self.acks = None;
                Err("the embedded broker is stopping".to_owned())
            }
            Err(_) => Ok(None),
        }
    }
}
