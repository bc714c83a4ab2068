//! Everything that shares one moment of plant time: the model, the generated signals and all devices. It is Sans-IO
//! and single-threaded; servers reach it through a mutex for the few microseconds that a request takes.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::device::{Device, Stats};
use crate::faults::{Honest, OutageKind, Wire};
use crate::modbus::frame::{Framing, Request};
use crate::modbus::{Exception, Table, pdu};
use crate::physics::Generator;
use crate::rng::Rng;
use crate::scenario::{Scenario, TEXT_SIGNALS};
use crate::signal::{Model, Signal};

/// Model and devices.
pub(crate) struct World {
    signals: Signals,
    devices: Vec<Device>,
    /// By listener and unit.
    routes: BTreeMap<(usize, u8), usize>,
    outages: BTreeMap<usize, OutageKind>,
    step: Duration,
    steps_per_tick: u32,
    steps: u64,
    seed: u64,
}

/// What a device sends back, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub delay: Duration,
    pub wire: Wire,
}

/// The model and the generated signals, by one name space.
struct Signals {
    model: Option<Box<dyn Model>>,
    generated: BTreeMap<String, Generator>,
    name: String,
}

impl Signals {
    fn read(&self, name: &str) -> Option<Signal> {
        if TEXT_SIGNALS.contains(&name) {
            return Some(Signal::Text(self.name.clone()));
        }
        let generated = self.generated.get(name).map(Generator::value);
        generated.or_else(|| self.model.as_ref().and_then(|model| model.read(name)))
    }

    fn write(&mut self, name: &str, value: &Signal) -> Result<(), String> {
        match (self.generated.get_mut(name), &mut self.model) {
            (Some(generator), _) => generator.set(value),
            (None, Some(model)) => model.write(name, value),
            (None, None) => Err("is not a signal of this scenario".to_owned()),
        }
    }
}

impl World {
    pub fn new(scenario: &Scenario) -> Self {
        let generated = scenario
            .generators
            .iter()
            .map(|spec| {
                let rng = Rng::labelled(scenario.seed, &spec.name);
                (spec.name.clone(), Generator::new(spec.shape, spec.low, spec.high, spec.period.as_secs_f64(), rng))
            })
            .collect();
        let devices: Vec<Device> =
            scenario.devices.iter().map(|spec| Device::new(spec.clone(), scenario.seed)).collect();
        let routes = devices.iter().enumerate().map(|(index, d)| ((d.spec.listener, d.spec.unit), index)).collect();
        let mut world = Self {
            signals: Signals { model: scenario.model(), generated, name: scenario.name.clone() },
            devices,
            routes,
            outages: BTreeMap::new(),
            step: scenario.step,
            steps_per_tick: scenario.speed,
            steps: 0,
            seed: scenario.seed,
        };
        world.show();
        world
    }

    /// One tick of the driver: as many model steps as the scenario's speed says.
    pub fn tick(&mut self) {
        for _ in 0..self.steps_per_tick {
            let dt = self.step.as_secs_f64();
            self.signals.model.iter_mut().for_each(|model| model.step(dt));
            self.signals.generated.values_mut().for_each(|generator| generator.step(dt));
            self.steps += 1;
        }
        self.show();
    }

    fn show(&mut self) {
        for device in &mut self.devices {
            device.show(self.steps, |name| self.signals.read(name));
        }
    }

    /// Plant time since the start.
    pub fn elapsed(&self) -> Duration {
        Duration::from_nanos((self.step.as_nanos() as u64).saturating_mul(self.steps))
    }

    pub fn device_index(&self, name: &str) -> Option<usize> {
        self.devices.iter().position(|device| device.spec.name == name)
    }

    pub fn device(&self, index: usize) -> &Device {
        &self.devices[index]
    }

    pub fn device_mut(&mut self, index: usize) -> &mut Device {
        &mut self.devices[index]
    }

    /// Other hardware of the same make takes a device's place.
    pub fn exchange(&mut self, index: usize, serial: &str) {
        let mut spec = self.devices[index].spec.clone();
        serial.clone_into(&mut spec.identity.serial);
        self.devices[index] = Device::new(spec, self.seed);
        self.show();
    }

    pub fn stats(&self, index: usize) -> Stats {
        self.devices[index].stats.clone()
    }

    pub fn signal(&self, name: &str) -> Option<Signal> {
        self.signals.read(name)
    }

    /// Sets a signal and shows it in memory at once.
    pub fn set_signal(&mut self, name: &str, value: &Signal) -> Result<(), String> {
        self.signals.write(name, value)?;
        self.show();
        Ok(())
    }

    /// An outage by hand; it overrides the planned ones until it is taken back.
    pub fn set_outage(&mut self, index: usize, outage: Option<OutageKind>) {
        match outage {
            Some(kind) => self.outages.insert(index, kind),
            None => self.outages.remove(&index),
        };
    }

    /// How the device is out now.
    pub fn outage(&self, index: usize) -> Option<OutageKind> {
        let planned = || self.devices[index].spec.faults.outage(self.elapsed());
        self.outages.get(&index).copied().or_else(planned)
    }

    /// Whether every device of `listener` is off the network, so that connections must be refused.
    pub fn is_disconnected(&self, listener: usize) -> bool {
        let mut indexes = self.routes.iter().filter(|((l, _), _)| *l == listener).map(|(_, index)| *index).peekable();
        indexes.peek().is_some() && indexes.all(|index| self.outage(index) == Some(OutageKind::Disconnected))
    }

    /// Serves one request that came in on `listener`.
    pub fn serve(&mut self, listener: usize, framing: Framing, request: &Request) -> Answer {
        if request.unit == 0 && framing == Framing::Rtu {
            self.broadcast(listener, &request.pdu);
            return Answer { delay: Duration::ZERO, wire: Wire::Nothing };
        }
        let Some(index) = self.route(listener, framing, request.unit) else {
            return Answer { delay: Duration::ZERO, wire: unknown_unit(framing, request) };
        };
        let elapsed = self.elapsed();
        let by_hand = self.outages.get(&index).copied();
        let device = &mut self.devices[index];
        device.stats.requests += 1;
        *device.stats.by_function.entry(request.pdu.first().copied().unwrap_or(0)).or_default() += 1;
        let turn = device.spec.faults.turn(elapsed, &mut device.rng);
        let answer = |wire| Answer { delay: turn.delay, wire };
        let reply = match by_hand.or(turn.outage) {
            Some(OutageKind::Silent) => {
                device.stats.silenced += 1;
                return answer(Wire::Nothing);
            }
            Some(OutageKind::Disconnected) => {
                device.stats.silenced += 1;
                return answer(if framing == Framing::Tcp { Wire::Close } else { Wire::Nothing });
            }
            Some(OutageKind::Exception(code)) => pdu::exception(request.pdu.first().copied().unwrap_or(0), code),
            None => pdu::answer(&request.pdu, &mut Access { device, signals: &mut self.signals }),
        };
        answer(self.say(index, framing, request, reply, turn.lie))
    }

    fn say(
        &mut self,
        index: usize,
        framing: Framing,
        request: &Request,
        reply: Vec<u8>,
        lie: Option<crate::faults::LieKind>,
    ) -> Wire {
        // A write may have moved a set point that other points of this device show.
        if pdu::is_write(&request.pdu) || request.pdu.first() == Some(&23) {
            self.devices[index].show(self.steps, |name| self.signals.read(name));
        }
        let device = &mut self.devices[index];
        let before = device.last_reply.take();
        let honest = Honest {
            framing,
            transaction: request.transaction,
            unit: request.unit,
            pdu: &reply,
            before: before.as_ref().map(|(transaction, pdu)| (*transaction, pdu.as_slice())),
        };
        let wire = match lie {
            Some(lie) => {
                device.stats.lies += 1;
                honest.spoil(lie, &mut device.rng)
            }
            None => {
                device.stats.replies += 1;
                Wire::Bytes(honest.frame())
            }
        };
        device.last_reply = Some((request.transaction, reply));
        wire
    }

    /// On TCP, units 0 and 255 mean the device itself (V1.0b of the TCP guide, 4.4.2) when there is only one.
    fn route(&self, listener: usize, framing: Framing, unit: u8) -> Option<usize> {
        let exact = self.routes.get(&(listener, unit)).copied();
        exact.or_else(|| {
            let mut here = self.routes.range((listener, 0)..=(listener, u8::MAX));
            match (here.next(), here.next()) {
                (Some((_, index)), None) if framing == Framing::Tcp && matches!(unit, 0 | 255) => Some(*index),
                _ => None,
            }
        })
    }

    fn broadcast(&mut self, listener: usize, request: &[u8]) {
        if !pdu::is_write(request) {
            return;
        }
        for device in self.devices.iter_mut().filter(|device| device.spec.listener == listener) {
            device.stats.requests += 1;
            pdu::answer(request, &mut Access { device, signals: &mut self.signals });
        }
        self.show();
    }
}

/// On a serial line nobody answers for a slave that is not there; a TCP device says so.
fn unknown_unit(framing: Framing, request: &Request) -> Wire {
    match framing {
        Framing::Rtu => Wire::Nothing,
        Framing::Tcp => {
            let reply = pdu::exception(request.pdu.first().copied().unwrap_or(0), Exception::TargetFailed);
            Wire::Bytes(crate::modbus::frame::encode(framing, request.transaction, request.unit, &reply))
        }
    }
}

/// A device as the PDU code sees it.
struct Access<'a> {
    device: &'a mut Device,
    signals: &'a mut Signals,
}

impl pdu::Registers for Access<'_> {
    fn read(&mut self, table: Table, address: u16, count: u16) -> Result<Vec<u16>, Exception> {
        self.device.memory.read(table, address, count)
    }

    fn write(&mut self, table: Table, address: u16, values: &[u16]) -> Result<(), Exception> {
        let signals = &mut self.signals;
        self.device.write(table, address, values, |name, value| signals.write(name, value))
    }

    fn identification(&self) -> Vec<(u8, String)> {
        self.device.spec.identity.objects()
    }

    fn server_id(&self) -> Option<String> {
        Some(self.device.spec.identity.serial.clone()).filter(|serial| !serial.is_empty())
    }
}
