//! Small parts that several models use: a first-order lag and a bounded random walk.

use crate::rng::Rng;

/// Moves `value` towards `target` with time constant `tau` seconds; exact for any step.
pub fn lag(value: &mut f64, target: f64, tau: f64, dt: f64) {
    *value += (target - *value) * (1.0 - (-dt / tau).exp());
}

/// Moves `value` towards `target` by at most `rate` per second.
pub fn ramp(value: &mut f64, target: f64, rate: f64, dt: f64) {
    *value += (target - *value).clamp(-rate * dt, rate * dt);
}

/// A value that wanders around its mean (Ornstein and Uhlenbeck): never far, never still.
#[derive(Debug)]
pub struct Wander {
    /// Deviation from the mean now.
    pub value: f64,
    deviation: f64,
    tau: f64,
}

impl Wander {
    /// Wanders with standard `deviation`; memory of about `tau` seconds.
    pub fn new(deviation: f64, tau: f64) -> Self {
        Self { value: 0.0, deviation, tau }
    }

    /// Lets `dt` seconds pass; the result is kept within four deviations.
    pub fn step(&mut self, rng: &mut Rng, dt: f64) -> f64 {
        let keep = (-dt / self.tau).exp();
        let kick = self.deviation * (1.0 - keep * keep).sqrt();
        self.value = (self.value * keep + kick * rng.normal()).clamp(-4.0 * self.deviation, 4.0 * self.deviation);
        self.value
    }
}
