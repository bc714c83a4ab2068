//! What management asks of devices and of the gateway.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

#[cfg(feature = "modbus")]
use tokio::sync::mpsc;
#[cfg(feature = "modbus")]
use tokio::time::timeout;
use tokio::time::{Instant, sleep};

use super::credentials::Credentials;
use super::fleet::Fleet;
use crate::app::commands::ScaledWriter;
use crate::app::firmware::FirmwareDesk;
use crate::management::clock::ClockForm;
use crate::management::command::DeviceWriter;
use crate::management::core::Plan;
use crate::management::desired::{GatewayOverlay, Observed, Watcher};
use crate::management::lifecycle::{Claim, Erasure, Stored};
use crate::management::service::World;
#[cfg(feature = "modbus")]
use crate::model::{Device, Tier};
use crate::model::{DeviceId, PointId, Value};
use crate::platform::clock::SharedClock;
use crate::southbound::IdentifyError;
#[cfg(feature = "modbus")]
use crate::southbound::{DeviceConfig, DriverConfig, Southbound};
use crate::store::Store;
use crate::telemetry::LogHandle;

/// Longest wait for values that are read on demand, and the pause between two looks at them.
const READ_LIMIT: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(5);
/// Longest wait for the answer of an address that a scan looks at.
#[cfg(feature = "modbus")]
const PROBE_LIMIT: Duration = Duration::from_secs(2);

/// [`World`] on the drivers and the store.
#[derive(Debug)]
pub struct Plant {
    /// Root of all topics.
    pub root: String,
    /// What runs.
    pub fleet: Fleet,
    /// What is kept.
    pub store: Store,
    /// What the drivers gave last.
    pub watcher: Watcher,
    /// Writes through scaling and driver.
    pub writer: ScaledWriter,
    /// Updates under way.
    pub firmware: FirmwareDesk,
    /// The log level.
    pub logs: LogHandle,
    /// Certificates of devices that connect by themselves.
    pub credentials: Arc<Credentials>,
    /// Time.
    pub clock: SharedClock,
}

impl World for Plant {
    async fn apply(&self, plan: Arc<Plan>) -> BTreeMap<DeviceId, String> {
        self.fleet.apply(&plan).await
    }

    /// The rest of its settings is management's own.
    async fn apply_gateway(&self, settings: GatewayOverlay) -> Result<(), String> {
        self.logs.set_over(settings.log_level.as_deref()).map_err(|e| e.to_string())
    }

    async fn identify(&self, device: &DeviceId) -> Result<Claim, String> {
        match self.fleet.southbound().identify(device).await {
            Ok(identity) => Ok(super::fleet::claim(&identity)),
            Err(IdentifyError::Unsupported) => Ok(Claim::default()),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn probe(&self, host: Ipv4Addr, port: u16, unit: u8) -> Option<Claim> {
        probe(host, port, unit, self.clock.clone()).await
    }

    async fn issue(&self, device: &DeviceId, signing_request: &str) -> Result<String, String> {
        let (credentials, device, request) = (self.credentials.clone(), device.clone(), signing_request.to_owned());
        blocking(move || credentials.issue(&device, &request)).await
    }

    async fn revoke(&self, device: &DeviceId) -> Result<(), String> {
        let (credentials, device) = (self.credentials.clone(), device.clone());
        blocking(move || credentials.revoke(&device)).await.map(drop)
    }

    async fn erase(&self, device: &DeviceId, stored: Stored) -> Result<Erasure, String> {
        self.remove(device, stored).await
    }

    fn clock_form(&self, device: &DeviceId) -> Option<ClockForm> {
        self.fleet.clock_form(device)
    }

    /// Read soon, and taken from what the drivers give: the clock shows what it shows at that moment.
    async fn read(&self, device: &DeviceId, points: &[&str]) -> Result<BTreeMap<String, Value>, String> {
        let since = self.clock.mono_ns();
        if !self.fleet.southbound().hurry(device).await {
            return Err(format!("{device} is not polled"));
        }
        let deadline = Instant::now() + READ_LIMIT;
        loop {
            let latest = self.watcher.latest(device);
            let seen = points.iter().map(|p| latest.get(*p).filter(|o| o.mono_ns > since).map(|o| (*p, o)));
            if let Some(seen) = seen.collect::<Option<Vec<_>>>() {
                let value = |(name, seen): (&str, &Observed)| match seen.value.filter(|_| seen.good) {
                    Some(value) => Ok((name.to_owned(), Value::Double(value))),
                    None => Err(format!("point {name} gave no number")),
                };
                return seen.into_iter().map(value).collect();
            }
            if Instant::now() >= deadline {
                return Err(format!("{device} gave no values within {READ_LIMIT:?}"));
            }
            sleep(LOOK).await;
        }
    }

    async fn write(&self, device: &DeviceId, values: Vec<(String, Value)>) -> Result<(), String> {
        for (point, value) in values {
            let point = PointId::new(&point).map_err(|e| e.to_string())?;
            self.writer.write(device, &point, value).await.map_err(|e| format!("{point}: {}", e.message))?;
        }
        Ok(())
    }
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|e| e.to_string())?
}

/// One device, asked who it is once, over a connection of its own.
#[cfg(feature = "modbus")]
async fn probe(host: Ipv4Addr, port: u16, unit: u8, clock: SharedClock) -> Option<Claim> {
    let device = nobody(host, port, unit)?;
    let id = device.device.id.clone();
    let (updates, mut said) = mpsc::channel(8);
    let southbound = Southbound::start(vec![device], updates, clock);
    let asked = async {
        let outcome = southbound.identify(&id).await;
        match outcome {
            Ok(identity) => Some(super::fleet::claim(&identity)),
            Err(IdentifyError::Unsupported) => Some(Claim::default()),
            Err(_) => None,
        }
    };
    let drain = async {
        while said.recv().await.is_some() {}
        None
    };
    let claim = tokio::select! {
        claim = timeout(PROBE_LIMIT, asked) => claim.ok().flatten(),
        none = drain => none,
    };
    southbound.shutdown().await;
    claim
}

/// A device without points: enough to ask it who it is.
#[cfg(feature = "modbus")]
fn nobody(host: Ipv4Addr, port: u16, unit: u8) -> Option<DeviceConfig> {
    use crate::southbound::modbus::{Config, Link, LinkOptions};
    let config = Config::new(Link::Tcp { host: host.to_string(), port }, unit);
    let options = LinkOptions { connect_timeout: PROBE_LIMIT / 2, ..config.options.clone() };
    let device = Device {
        id: DeviceId::new("probe").ok()?,
        description: String::new(),
        protocol: "modbus-tcp",
        address: format!("tcp://{host}:{port} unit {unit}"),
        tier: Tier::One,
        points: [].into(),
    };
    let driver = DriverConfig::Modbus(Config { options, retries: 0, ..config });
    Some(DeviceConfig { device: Arc::new(device), groups: Vec::new(), driver })
}

#[cfg(not(feature = "modbus"))]
async fn probe(_: Ipv4Addr, _: u16, _: u8, _: SharedClock) -> Option<Claim> {
    None
}
