//! Scenarios made in code, for benches and tests that need many plain registers.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::{Link, Listener, ModelSpec, Scenario};
use crate::device::{Block, DeviceSpec, Fill, Identity};
use crate::faults::Faults;
use crate::modbus::Table;

impl Scenario {
    /// `devices` Modbus TCP devices named `device-000` and so on, each on a free loopback port as unit 1, with
    /// `registers` holding registers from address 0 on that hold `fill`. Replies are instant.
    pub fn uniform(devices: usize, registers: u16, fill: Fill) -> Self {
        let name = |index: usize| format!("device-{index:03}");
        let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self {
            name: "uniform".to_owned(),
            description: format!("{devices} devices of {registers} registers"),
            seed: 1,
            step: Duration::from_millis(100),
            speed: 1,
            runs: true,
            plant: ModelSpec::None,
            generators: Vec::new(),
            listeners: (0..devices)
                .map(|index| Listener { name: name(index), link: Link::Tcp(anywhere), max_connections: None })
                .collect(),
            devices: (0..devices)
                .map(|index| DeviceSpec {
                    name: name(index),
                    description: String::new(),
                    listener: index,
                    unit: 1,
                    identity: Identity::default(),
                    points: Vec::new(),
                    blocks: vec![Block { table: Table::Holding, address: 0, count: registers, fill }],
                    faults: Faults::default(),
                })
                .collect(),
        }
    }
}
