//! Meters on the rising main and on the mains supply. Their totals only ever grow.

use super::parts::{Wander, lag};
use crate::rng::Rng;

/// Cross-section of the rising main (DN 200), m².
const PIPE_AREA: f64 = 0.0314;

/// Magnetic flow meter on the rising main.
#[derive(Debug)]
pub struct FlowMeter {
    rng: Rng,
    noise: Wander,
    /// Flow, m³/h.
    pub flow_m3h: f64,
    /// Total, m³.
    pub total_m3: f64,
    /// Temperature of the water, °C.
    pub temperature: f64,
    drift: Wander,
}

impl FlowMeter {
    /// A meter that has already counted `total_m3`.
    pub fn new(rng: Rng, total_m3: f64) -> Self {
        let (noise, drift) = (Wander::new(0.004, 0.5), Wander::new(0.6, 120.0));
        Self { rng, noise, flow_m3h: 0.0, total_m3, temperature: 12.5, drift }
    }

    /// Sees `flow` m³/s for `dt` seconds.
    pub fn step(&mut self, flow: f64, dt: f64) {
        let noise = self.noise.step(&mut self.rng, dt);
        lag(&mut self.flow_m3h, flow * 3_600.0 * (1.0 + noise), 0.4, dt);
        self.total_m3 += flow * dt;
        self.temperature = 12.5 + self.drift.step(&mut self.rng, dt);
    }

    /// Velocity in the pipe, m/s.
    pub fn velocity(&self) -> f64 {
        self.flow_m3h / 3_600.0 / PIPE_AREA
    }
}

/// Three-phase energy meter on the supply.
#[derive(Debug)]
pub struct EnergyMeter {
    rng: Rng,
    sags: [Wander; 3],
    mains: Wander,
    power_kw: f64,
    /// Active energy, Wh.
    pub energy_wh: f64,
    /// Reactive energy, varh.
    pub reactive_varh: f64,
    /// Highest power seen, kW.
    pub peak_kw: f64,
}

impl EnergyMeter {
    /// A meter that has already counted `energy_wh`.
    pub fn new(rng: Rng, energy_wh: f64) -> Self {
        Self {
            rng,
            sags: std::array::from_fn(|_| Wander::new(1.2, 4.0)),
            mains: Wander::new(0.015, 10.0),
            power_kw: 0.9,
            energy_wh,
            reactive_varh: energy_wh * 0.41,
            peak_kw: 31.7,
        }
    }

    /// Sees the pumps draw `pumps_kw` for `dt` seconds, beside 0.9 kW of light and control.
    pub fn step(&mut self, pumps_kw: f64, dt: f64) {
        for sag in &mut self.sags {
            sag.step(&mut self.rng, dt);
        }
        self.mains.step(&mut self.rng, dt);
        self.power_kw = pumps_kw + 0.9;
        self.energy_wh += self.power_kw * dt / 3.6;
        self.reactive_varh += self.reactive_kvar() * dt / 3.6;
        self.peak_kw = self.peak_kw.max(self.power_kw);
    }

    /// Active power, kW.
    pub fn power_kw(&self) -> f64 {
        self.power_kw
    }

    /// Power factor: worse at low load.
    pub fn power_factor(&self) -> f64 {
        (0.72 + 0.18 * (self.power_kw / 20.0).min(1.0)).min(0.95)
    }

    /// Reactive power, kvar.
    pub fn reactive_kvar(&self) -> f64 {
        self.power_kw * self.power_factor().acos().tan()
    }

    /// Voltage of phase 0, 1 or 2 against neutral, V.
    pub fn voltage(&self, phase: usize) -> f64 {
        231.0 + self.sags[phase].value - 0.12 * self.power_kw
    }

    /// Current of phase 0, 1 or 2, A.
    pub fn current(&self, phase: usize) -> f64 {
        let unbalance = [1.0, 0.97, 1.03][phase];
        self.power_kw * 1_000.0 / (3.0 * self.voltage(phase) * self.power_factor()) * unbalance
    }

    /// Mains frequency, Hz.
    pub fn frequency(&self) -> f64 {
        50.0 + self.mains.value
    }
}
