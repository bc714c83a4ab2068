//! Water quality in the inflow.

use super::parts::{Wander, lag};
use crate::rng::Rng;

/// pH, conductivity, turbidity and temperature of the sewage.
#[derive(Debug)]
pub struct Analyser {
    rng: Rng,
    acidity: Wander,
    salt: Wander,
    /// Turbidity, NTU.
    pub turbidity: f64,
    /// Conductivity, µS/cm.
    pub conductivity: f64,
}

impl Analyser {
    /// A freshly cleaned probe.
    pub fn new(rng: Rng) -> Self {
        let (acidity, salt) = (Wander::new(0.15, 60.0), Wander::new(40.0, 45.0));
        Self { rng, acidity, salt, turbidity: 80.0, conductivity: 900.0 }
    }

    /// pH.
    pub fn ph(&self) -> f64 {
        7.4 + self.acidity.value
    }

    /// Rain dilutes; a strong inflow stirs up what had settled.
    pub fn step(&mut self, inflow: f64, rain_mm_h: f64, dt: f64) {
        self.acidity.step(&mut self.rng, dt);
        let salt = self.salt.step(&mut self.rng, dt);
        lag(&mut self.turbidity, 40.0 + 1_400.0 * inflow, 15.0, dt);
        lag(&mut self.conductivity, (950.0 + salt - 22.0 * rain_mm_h).max(120.0), 20.0, dt);
    }
}
