//! The air around the station: weather above ground, gas below.

use super::parts::{Wander, lag};
use crate::rng::Rng;

/// Weather and gas.
#[derive(Debug)]
pub struct Air {
    rng: Rng,
    /// °C.
    pub temperature: f64,
    temperature_noise: Wander,
    /// Percent relative humidity.
    pub humidity: f64,
    humidity_noise: Wander,
    pressure_noise: Wander,
    wind_noise: Wander,
    /// Wind direction, degrees.
    pub wind_direction: f64,
    raining_for: f64,
    intensity: f64,
    /// Rain, mm/h.
    pub rain_mm_h: f64,
    /// Rain since the start, mm.
    pub rain_total_mm: f64,
    /// Hydrogen sulphide, ppm.
    pub h2s_ppm: f64,
    gas_noise: Wander,
    /// Methane, percent of the lower explosive limit.
    pub ch4_lel: f64,
    /// Oxygen, percent.
    pub o2: f64,
    /// Detector battery, percent.
    pub battery: f64,
    stagnant: f64,
}

impl Air {
    /// A dry morning.
    pub fn new(rng: Rng) -> Self {
        Self {
            rng,
            temperature: 14.0,
            temperature_noise: Wander::new(0.4, 60.0),
            humidity: 70.0,
            humidity_noise: Wander::new(3.0, 90.0),
            pressure_noise: Wander::new(6.0, 1_200.0),
            wind_noise: Wander::new(2.0, 6.0),
            wind_direction: 240.0,
            raining_for: 0.0,
            intensity: 0.0,
            rain_mm_h: 0.0,
            rain_total_mm: 0.0,
            h2s_ppm: 1.0,
            gas_noise: Wander::new(0.25, 5.0),
            ch4_lel: 1.0,
            o2: 20.8,
            battery: 97.0,
            stagnant: 0.0,
        }
    }

    /// Air pressure, hPa.
    pub fn pressure(&self) -> f64 {
        1_013.0 + self.pressure_noise.value
    }

    /// Wind, m/s.
    pub fn wind_speed(&self) -> f64 {
        (4.0 + self.wind_noise.value).max(0.0)
    }

    /// Lets `dt` seconds pass at `hour` of the day; `pumping` stirs the well.
    pub fn step(&mut self, hour: f64, pumping: bool, dt: f64) {
        let day = ((hour - 9.0) / 24.0 * std::f64::consts::TAU).sin();
        self.temperature = 15.0 + 7.0 * day + self.temperature_noise.step(&mut self.rng, dt);
        let wet = if self.rain_mm_h > 0.5 { 18.0 } else { 0.0 };
        self.humidity = (66.0 - 16.0 * day + wet + self.humidity_noise.step(&mut self.rng, dt)).clamp(15.0, 100.0);
        self.pressure_noise.step(&mut self.rng, dt);
        self.wind_noise.step(&mut self.rng, dt);
        self.wind_direction = (self.wind_direction + 6.0 * dt.sqrt() * self.rng.normal()).rem_euclid(360.0);
        self.step_rain(dt);
        self.step_gas(pumping, dt);
    }

    /// A shower every ten minutes or so, for a minute or two.
    fn step_rain(&mut self, dt: f64) {
        let starts = self.rng.chance(dt / 600.0);
        if starts && self.raining_for <= 0.0 {
            self.raining_for = self.rng.between(50.0, 150.0);
            self.intensity = self.rng.between(3.0, 16.0);
        }
        self.raining_for -= dt;
        let target = if self.raining_for > 0.0 { self.intensity } else { 0.0 };
        lag(&mut self.rain_mm_h, target, 8.0, dt);
        if self.rain_mm_h < 0.01 {
            self.rain_mm_h = 0.0;
        }
        self.rain_total_mm += self.rain_mm_h * dt / 3_600.0;
    }

    /// Sewage that stands gives off gas; pumping releases what has gathered, then clears the air.
    fn step_gas(&mut self, pumping: bool, dt: f64) {
        self.stagnant = if pumping { (self.stagnant - 2.0 * dt).max(0.0) } else { (self.stagnant + dt).min(300.0) };
        let noise = self.gas_noise.step(&mut self.rng, dt);
        let release = if pumping { self.stagnant / 6.0 } else { self.stagnant / 40.0 };
        lag(&mut self.h2s_ppm, (0.8 + release + noise).max(0.0), 12.0, dt);
        lag(&mut self.ch4_lel, (0.6 + release / 4.0 + 0.2 * noise).clamp(0.0, 100.0), 25.0, dt);
        self.o2 = (20.9 - 0.02 * self.h2s_ppm - 0.01 * self.ch4_lel).clamp(0.0, 25.0);
        self.battery = (self.battery - dt * 2e-5).max(0.0);
    }
}
