//! One simulated device: its identity, the points that map signals to its memory, and its counters.

use std::collections::BTreeMap;

use crate::faults::Faults;
use crate::modbus::memory::Memory;
use crate::modbus::value::Format;
use crate::modbus::{Exception, Table};
use crate::rng::Rng;
use crate::signal::Signal;

/// Where a point's value comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// A signal of the model.
    Signal(String),
    /// The same at all times; kept when a client writes it.
    Constant(Signal),
}

/// One value of a device.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// Unique in its device.
    pub name: String,
    /// Where it stands.
    pub table: Table,
    /// 0-based address of its first item.
    pub address: u16,
    /// How it stands there.
    pub format: Format,
    /// What it shows.
    pub source: Source,
    /// Whether clients may write it.
    pub writable: bool,
    /// Engineering unit, for people.
    pub unit: String,
}

/// What a device reveals about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// Object 0 of function 43/14.
    pub vendor: String,
    /// Object 1.
    pub product: String,
    /// Object 2, the firmware.
    pub revision: String,
    /// Object 5.
    pub model: String,
    /// The private object 0x80, and the text of function 17.
    pub serial: String,
}

impl Identity {
    /// Objects of function 43/14 that are not empty, by id.
    pub fn objects(&self) -> Vec<(u8, String)> {
        [(0, &self.vendor), (1, &self.product), (2, &self.revision), (5, &self.model), (0x80, &self.serial)]
            .into_iter()
            .filter(|(_, text)| !text.is_empty())
            .map(|(id, text)| (id, text.clone()))
            .collect()
    }
}

/// Addresses without a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// Table.
    pub table: Table,
    /// First address.
    pub address: u16,
    /// Number of addresses.
    pub count: u16,
    /// What stands there.
    pub fill: Fill,
}

/// Content of a [`Block`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// Zeros at first; clients may write coils and holding registers, and the handle may poke all.
    Keep,
    /// Each address holds itself.
    Address,
    /// Each address holds itself plus the number of steps since the start, modulo 2^16.
    Count,
}

/// What was asked of a device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Requests that reached it.
    pub requests: u64,
    /// Honest replies, exceptions of its own included.
    pub replies: u64,
    /// Requests that an outage left without a reply.
    pub silenced: u64,
    /// Requests that got a wrong reply.
    pub lies: u64,
    /// Requests by function code.
    pub by_function: BTreeMap<u8, u64>,
}

/// Checked description of a device, as a scenario gives it.
#[derive(Debug, Clone)]
pub struct DeviceSpec {
    /// Unique in the scenario.
    pub name: String,
    /// Text for people.
    pub description: String,
    /// Index of its listener in the scenario.
    pub listener: usize,
    /// Unit id or slave address.
    pub unit: u8,
    /// Identity; empty fields are not revealed.
    pub identity: Identity,
    /// Values.
    pub points: Vec<Point>,
    /// Further addresses.
    pub blocks: Vec<Block>,
    /// What is wrong with it.
    pub faults: Faults,
}

/// A running device.
#[derive(Debug)]
pub struct Device {
    /// Its description.
    pub spec: DeviceSpec,
    /// Its addresses and their content.
    pub memory: Memory,
    /// Its counters.
    pub stats: Stats,
    /// Its own randomness.
    pub rng: Rng,
    /// The honest reply before, for lies about it: transaction and PDU.
    pub last_reply: Option<(u16, Vec<u8>)>,
}

impl Device {
    /// A device with its memory laid out; registers hold zeros until the first [`Device::show`].
    pub fn new(spec: DeviceSpec, seed: u64) -> Self {
        let mut memory = Memory::default();
        for block in &spec.blocks {
            let writable = block.table.is_writable() && block.fill == Fill::Keep;
            for offset in 0..block.count {
                let address = block.address.wrapping_add(offset);
                memory.add(block.table, address, writable);
                if block.fill == Fill::Address {
                    memory.store(block.table, address, &[address]);
                }
            }
        }
        for point in &spec.points {
            for offset in 0..point.format.kind.items() {
                memory.add(point.table, point.address + offset, point.writable);
            }
        }
        let rng = Rng::labelled(seed, &spec.name);
        Self { spec, memory, stats: Stats::default(), rng, last_reply: None }
    }

    /// Writes the present signals into memory. `steps` since the start moves the counting blocks.
    pub fn show(&mut self, steps: u64, signal: impl Fn(&str) -> Option<Signal>) {
        for block in self.spec.blocks.iter().filter(|block| block.fill == Fill::Count) {
            for offset in 0..block.count {
                let address = block.address.wrapping_add(offset);
                self.memory.store(block.table, address, &[address.wrapping_add(steps as u16)]);
            }
        }
        for point in &self.spec.points {
            let value = match &point.source {
                Source::Signal(name) => signal(name),
                Source::Constant(value) => Some(value.clone()),
            };
            let Some(value) = value else { continue };
            let before = self.memory.read(point.table, point.address, 1).unwrap_or_default();
            self.memory.store(point.table, point.address, &point.format.encode(&value, &before));
        }
    }

    /// Takes a client's write: memory first, then every writable point that it touched goes to `act` as a signal.
    /// The first refusal ends it as an illegal value; what was accepted before stays, as in a real controller.
    pub fn write(
        &mut self,
        table: Table,
        address: u16,
        values: &[u16],
        mut act: impl FnMut(&str, &Signal) -> Result<(), String>,
    ) -> Result<(), Exception> {
        self.memory.write(table, address, values)?;
        let end = u32::from(address) + values.len() as u32;
        for point in self.spec.points.iter_mut().filter(|point| point.writable && point.table == table) {
            let (first, length) = (point.address, point.format.kind.items());
            if u32::from(first) >= end || u32::from(first) + u32::from(length) <= u32::from(address) {
                continue;
            }
            let words = self.memory.read(table, first, length)?;
            let value = point.format.decode(&words).ok_or(Exception::IllegalValue)?;
            match &mut point.source {
                Source::Signal(name) => act(name, &value).map_err(|_| Exception::IllegalValue)?,
                Source::Constant(constant) => *constant = value,
            }
        }
        Ok(())
    }
}
