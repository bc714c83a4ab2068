//! What management asks of devices and of the gateway.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use bytes::Bytes;

use super::fleet::Fleet;
use crate::app::commands::COMMANDS;
use crate::contract::topics;
use crate::management::clock::ClockForm;
use crate::management::core::Plan;
use crate::management::desired::GatewayOverlay;
use crate::management::lifecycle::Claim;
use crate::management::service::World;
use crate::model::{DeviceId, Value};
use crate::northbound::StateBoard;
use crate::southbound::IdentifyError;
use crate::store::{Op, Store};

/// Results of commands that are forgotten in one write.
const CHUNK: usize = 500;

/// [`World`] on the drivers and the store.
#[derive(Debug)]
pub struct Plant {
    /// What runs.
    pub fleet: Fleet,
    /// Retained topics.
    pub board: StateBoard,
    /// What is kept.
    pub store: Store,
}

impl World for Plant {
    async fn apply(&self, plan: Arc<Plan>) -> BTreeMap<DeviceId, String> {
        self.fleet.apply(&plan).await
    }

    async fn apply_gateway(&self, _: GatewayOverlay) -> Result<(), String> {
        Err("this version takes no settings for the gateway itself over topics".to_owned())
    }

    async fn identify(&self, device: &DeviceId) -> Result<Claim, String> {
        match self.fleet.southbound().identify(device).await {
            Ok(identity) => Ok(super::fleet::claim(&identity)),
            Err(IdentifyError::Unsupported) => Ok(Claim::default()),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn probe(&self, _: Ipv4Addr, _: u16, _: u8) -> Option<Claim> {
        None
    }

    async fn issue(&self, _: &DeviceId, _: &str) -> Result<(), String> {
        Err("this version issues no credentials by itself; use `fieldgate certs issue`".to_owned())
    }

    async fn revoke(&self, _: &DeviceId) -> Result<(), String> {
        Ok(())
    }

    async fn erase(&self, device: &DeviceId, _data: bool) -> Result<Vec<String>, String> {
        self.fleet.forget(device);
        for point in self.fleet.points_of(device) {
            self.board.clear(&topics::point(device.as_str(), &point));
        }
        self.board.clear(&topics::capabilities(device));
        let state = self.store.state();
        let commands = state.scan(COMMANDS, format!("{device}/").as_bytes()).map_err(|e| e.to_string())?;
        for some in commands.chunks(CHUNK) {
            let delete = |(key, _): &(Bytes, Bytes)| Op::Delete { tree: COMMANDS.to_owned(), key: key.clone() };
            state.batch(some.iter().map(delete).collect()).await.map_err(|e| e.to_string())?;
        }
        Ok(vec!["retained topics".to_owned(), "configuration".to_owned(), "results of commands".to_owned()])
    }

    fn clock_form(&self, _: &DeviceId) -> Option<ClockForm> {
        None
    }

    async fn read(&self, device: &DeviceId, _: &[&str]) -> Result<BTreeMap<String, Value>, String> {
        Err(format!("{device} cannot be read on demand"))
    }

    async fn write(&self, device: &DeviceId, _: Vec<(String, Value)>) -> Result<(), String> {
        Err(format!("{device} cannot be written"))
    }
}
