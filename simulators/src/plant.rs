//! A running scenario and the handle to it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_serial::SerialStream;

use crate::SimError;
use crate::device::Stats;
use crate::faults::OutageKind;
use crate::modbus::Table;
use crate::modbus::frame::Framing;
use crate::scenario::{Link, Listener, Scenario};
use crate::server::{self, Port};
use crate::signal::Signal;
use crate::world::World;

/// Where a device is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Device name.
    pub device: String,
    /// Unit id or slave address.
    pub unit: u8,
    /// Its link, with the port that is really bound.
    pub link: Link,
}

/// A plant that runs as tokio tasks until it is stopped or dropped.
pub struct Plant {
    world: Arc<Mutex<World>>,
    endpoints: Vec<Endpoint>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Plant {
    /// Binds every listener, then starts plant time. An error leaves nothing running.
    pub async fn start(scenario: Scenario) -> Result<Self, SimError> {
        let world = Arc::new(Mutex::new(World::new(&scenario)));
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let mut links = Vec::new();
        for (index, listener) in scenario.listeners.iter().enumerate() {
            let port = Port {
                world: world.clone(),
                listener: index,
                framing: if matches!(listener.link, Link::Tcp(_)) { Framing::Tcp } else { Framing::Rtu },
                baud: match listener.link {
                    Link::RtuOverTcp { baud, .. } => baud,
                    Link::Tcp(_) | Link::Serial { .. } => None,
                },
                replies: match listener.link {
                    Link::RtuOverTcp { broadcast: true, .. } => Some(broadcast::Sender::new(server::LATE)),
                    _ => None,
                },
                line: Arc::default(),
                stop: stopped.clone(),
            };
            links.push(open(listener, port, &mut tasks).await?);
        }
        if scenario.runs {
            tasks.spawn(run_time(world.clone(), scenario.step, stopped));
        }
        let endpoint = |device: &crate::device::DeviceSpec| Endpoint {
            device: device.name.clone(),
            unit: device.unit,
            link: links[device.listener].clone(),
        };
        let endpoints = scenario.devices.iter().map(endpoint).collect();
        Ok(Self { world, endpoints, stop, tasks })
    }

    /// Where each device is reached, in the scenario's order.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// Socket address of a device; `None` when it is unknown or on a serial line.
    pub fn address(&self, device: &str) -> Option<SocketAddr> {
        match self.endpoints.iter().find(|endpoint| endpoint.device == device)?.link {
            Link::Tcp(address) | Link::RtuOverTcp { bind: address, .. } => Some(address),
            Link::Serial { .. } => None,
        }
    }

    /// Counters of a device.
    pub fn stats(&self, device: &str) -> Result<Stats, SimError> {
        let world = self.world();
        Ok(world.stats(find(&world, device)?))
    }

    /// A signal of the model now.
    pub fn signal(&self, name: &str) -> Option<Signal> {
        self.world().signal(name)
    }

    /// Sets a signal that clients could write; memory shows it at once.
    pub fn set(&self, name: &str, value: &Signal) -> Result<(), SimError> {
        let refused = |problem| SimError::Refused { name: name.to_owned(), problem };
        self.world().set_signal(name, value).map_err(refused)
    }

    /// Puts raw values into a device's memory, read-only tables included. Points with a signal overwrite theirs at the
    /// next step; addresses of a block keep what is put there.
    pub fn poke(&self, device: &str, table: Table, address: u16, values: &[u16]) -> Result<(), SimError> {
        let mut world = self.world();
        let index = find(&world, device)?;
        let memory = &mut world.device_mut(index).memory;
        for offset in 0..values.len() as u32 {
            let at = u16::try_from(u32::from(address) + offset).ok().filter(|at| memory.contains(table, *at));
            at.ok_or_else(|| no_address(device, table, address))?;
        }
        memory.store(table, address, values);
        Ok(())
    }

    /// Raw values of a device's memory.
    pub fn peek(&self, device: &str, table: Table, address: u16, count: u16) -> Result<Vec<u16>, SimError> {
        let world = self.world();
        let memory = &world.device(find(&world, device)?).memory;
        memory.read(table, address, count).map_err(|_| no_address(device, table, address))
    }

    /// Takes a device out, or with `None` back to what the scenario plans.
    pub fn set_outage(&self, device: &str, outage: Option<OutageKind>) -> Result<(), SimError> {
        let mut world = self.world();
        let index = find(&world, device)?;
        world.set_outage(index, outage);
        Ok(())
    }

    /// Other hardware of the same make takes a device's place: another serial number, its memory as it was made, its counters
    /// at nothing. Take the device out meanwhile, as somebody who exchanges it does: connections stay open otherwise.
    pub fn exchange(&self, device: &str, serial: &str) -> Result<(), SimError> {
        let mut world = self.world();
        let index = find(&world, device)?;
        world.exchange(index, serial);
        Ok(())
    }

    /// Plant time since the start.
    pub fn elapsed(&self) -> Duration {
        self.world().elapsed()
    }

    /// Lets plant time pass by hand, in a scenario that does not run by itself ([`Scenario::runs`]).
    pub fn advance(&self, by: Duration) {
        let until = self.elapsed() + by;
        while self.elapsed() < until {
            self.world().tick();
        }
    }

    /// Closes every connection and listener; returns when all are closed.
    pub async fn stop(mut self) {
        let _ = self.stop.send(true);
        while self.tasks.join_next().await.is_some() {}
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Plant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plant").field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
}

fn find(world: &World, device: &str) -> Result<usize, SimError> {
    world.device_index(device).ok_or_else(|| SimError::NoDevice(device.to_owned()))
}

fn no_address(device: &str, table: Table, address: u16) -> SimError {
    SimError::NoAddress { device: device.to_owned(), table: table.as_str(), address }
}

/// Opens one listener and serves it; the link says the port that was bound.
async fn open(listener: &Listener, port: Port, tasks: &mut JoinSet<()>) -> Result<Link, SimError> {
    let bind = async |address: SocketAddr| {
        let bound = TcpListener::bind(address).await.and_then(|socket| Ok((socket.local_addr()?, socket)));
        bound.map_err(|source| SimError::Bind { address, source })
    };
    match &listener.link {
        Link::Tcp(address) => {
            let (bound, socket) = bind(*address).await?;
            tasks.spawn(server::accept(port, socket, listener.max_connections));
            Ok(Link::Tcp(bound))
        }
        Link::RtuOverTcp { bind: address, baud, broadcast } => {
            let (bound, socket) = bind(*address).await?;
            tasks.spawn(server::accept(port, socket, listener.max_connections));
            Ok(Link::RtuOverTcp { bind: bound, baud: *baud, broadcast: *broadcast })
        }
        Link::Serial { path, baud } => {
            let stream = SerialStream::open(&tokio_serial::new(path, *baud))
                .map_err(|source| SimError::Serial { path: path.clone(), source })?;
            tasks.spawn(server::serve_serial(port, path.clone(), *baud, stream));
            Ok(listener.link.clone())
        }
    }
}

/// Steps the world at a fixed rate. Steps that the machine was too busy for are made up, so that plant time keeps pace.
async fn run_time(world: Arc<Mutex<World>>, step: Duration, mut stop: watch::Receiver<bool>) {
    let mut interval = tokio::time::interval_at(tokio::time::Instant::now() + step, step);
    interval.set_missed_tick_behavior(MissedTickBehavior::Burst);
    loop {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            _ = interval.tick() => world.lock().unwrap_or_else(PoisonError::into_inner).tick(),
        }
    }
}
