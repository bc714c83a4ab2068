//! **A pump station with life in it.** Sewage flows into a wet well along a daily curve and with the rain; two
//! variable-speed pumps lift it into an elevated tank, from which a valve lets it run to the treatment works. Around
//! it: motors that heat up, wear and trip, an energy meter, a gas detector, a weather station, a water analyser.
//!
//! Promise: water is conserved to rounding ([`PumpStation::imbalance_m3`]), levels stay inside their vessels, and
//! every set point that may be written acts on the next step. The model reads no clock: it moves by `dt` seconds.
//!
//! Limits: one-dimensional, quasi-steady hydraulics (no water hammer), explicit Euler; meant for steps of 10 ms to 1 s.
//!
//! Order of one step: air, inflow, control, motors, hydraulics, meters, alarms.

mod air;
mod alarms;
mod analyser;
mod control;
mod generator;
mod hydraulics;
mod inflow;
mod meters;
mod names;
mod parts;
mod pump;
mod signals;

pub use generator::{Generator, Shape};
pub use names::SIGNALS;

use crate::rng::Rng;
use crate::signal::{Model, Signal};

use air::Air;
use alarms::Alarms;
use analyser::Analyser;
use control::Control;
use hydraulics::{Hydraulics, PumpHead};
use inflow::Inflow;
use meters::{EnergyMeter, FlowMeter};
use pump::Pump;

/// What a scenario may change about the pump station.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Mean dry-weather inflow, m³/h.
    pub inflow_m3h: f64,
    /// Seconds in one plant day: the daily curves run through once in this time.
    pub day_seconds: f64,
    /// Hour of the plant day at the start, 0 ..= 24.
    pub start_hour: f64,
    /// Mean number of motor trips per pump and hour.
    pub trips_per_hour: f64,
    /// Seconds after which a tripped drive resets itself; 0 for never.
    pub auto_reset_seconds: f64,
    /// Plant clock at the start, seconds since 1970.
    pub start_epoch: u64,
    /// Seed of all noise.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            inflow_m3h: 170.0,
            day_seconds: 720.0,
            start_hour: 6.0,
            trips_per_hour: 2.0,
            auto_reset_seconds: 45.0,
            start_epoch: 1_781_503_200,
            seed: 7,
        }
    }
}

/// The pump station. [`SIGNALS`] names its signals.
#[derive(Debug)]
pub struct PumpStation {
    settings: Settings,
    elapsed: f64,
    air: Air,
    inflow: Inflow,
    control: Control,
    pumps: [Pump; 2],
    water: Hydraulics,
    flow: FlowMeter,
    energy: EnergyMeter,
    analyser: Analyser,
    alarms: Alarms,
}

impl PumpStation {
    /// A station that has been running for a while: the well half full, the lead pump off.
    pub fn new(settings: Settings) -> Self {
        let seed = settings.seed;
        let rng = |label: &str| Rng::labelled(seed, label);
        Self {
            elapsed: 0.0,
            air: Air::new(rng("air")),
            inflow: Inflow::new(settings.inflow_m3h, rng("inflow")),
            control: Control::default(),
            pumps: [Pump::new(rng("pump1"), 5_210.4), Pump::new(rng("pump2"), 4_873.9)],
            water: Hydraulics::new(1.9, 2.6),
            flow: FlowMeter::new(rng("flow"), 1_284_390.5),
            energy: EnergyMeter::new(rng("energy"), 734_981_250.0),
            analyser: Analyser::new(rng("analyser")),
            alarms: Alarms::new(rng("alarms")),
            settings,
        }
    }

    /// Inflow minus outflow minus what is stored, since the start, in m³. Zero but for rounding.
    pub fn imbalance_m3(&self) -> f64 {
        self.water.imbalance_m3()
    }

    /// Hour of the plant day, 0 ..= 24.
    pub fn hour(&self) -> f64 {
        (self.settings.start_hour + self.elapsed / self.settings.day_seconds * 24.0).rem_euclid(24.0)
    }

    /// Plant clock, seconds since 1970.
    pub fn epoch(&self) -> u64 {
        self.settings.start_epoch + self.elapsed as u64
    }
}

impl Model for PumpStation {
    fn step(&mut self, dt: f64) {
        self.elapsed += dt;
        let hour = self.hour();
        let pumping = self.pumps.iter().any(Pump::is_turning);
        self.air.step(hour, pumping, dt);
        let inflow = self.inflow.step(hour, self.air.rain_mm_h, dt);

        let wanted = self.control.decide(self.water.well_level(), &self.pumps);
        let auto_reset = self.settings.auto_reset_seconds;
        for (pump, wanted) in self.pumps.iter_mut().zip(wanted) {
            pump.step_drive(wanted, self.settings.trips_per_hour, auto_reset, dt);
        }
        self.control.step_valve(dt);
        let heads: [PumpHead; 2] = std::array::from_fn(|i| self.pumps[i].head());
        let flows = self.water.step(inflow, heads, self.control.valve_position / 100.0, dt);
        let (ambient, well) = (self.air.temperature, self.water.well_level());
        for (pump, flow) in self.pumps.iter_mut().zip(flows) {
            pump.step_motor(flow, well, ambient, dt);
        }
        self.flow.step(flows.iter().sum(), dt);
        self.energy.step(self.pumps.iter().map(Pump::power_kw).sum(), dt);
        self.analyser.step(inflow, self.air.rain_mm_h, dt);
        self.alarms.step(
            &self.water,
            &self.control,
            [self.pumps[0].is_tripped(), self.pumps[1].is_tripped()],
            self.air.h2s_ppm,
            dt,
        );
    }

    fn read(&self, name: &str) -> Option<Signal> {
        signals::read(self, name)
    }

    fn write(&mut self, name: &str, value: &Signal) -> Result<(), String> {
        signals::write(self, name, value)
    }

    fn is_writable(&self, name: &str) -> bool {
        signals::is_writable(name)
    }
}

#[cfg(test)]
mod tests;
