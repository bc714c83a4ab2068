//! Signals that need no model: a scenario lists them, for plants of the reader's own.

use std::f64::consts::TAU;

use super::parts::Wander;
use crate::rng::Rng;
use crate::signal::Signal;

/// Course of a generated signal over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Stays at `low`; may be written.
    Constant,
    /// From `low` to `high` and back, as a sine.
    Sine,
    /// From `low` to `high`, then at once to `low`.
    Ramp,
    /// True for the second half of each period.
    Square,
    /// Wanders between `low` and `high`.
    Walk,
    /// Counts up by one per period, from `low`.
    Counter,
}

/// One generated signal.
#[derive(Debug)]
pub struct Generator {
    shape: Shape,
    low: f64,
    high: f64,
    period: f64,
    elapsed: f64,
    rng: Rng,
    walk: Wander,
}

impl Generator {
    /// A signal between `low` and `high` with `period` in seconds (> 0).
    pub fn new(shape: Shape, low: f64, high: f64, period: f64, rng: Rng) -> Self {
        Self { shape, low, high, period, elapsed: 0.0, rng, walk: Wander::new((high - low) / 5.0, period) }
    }

    /// Lets `dt` seconds pass.
    pub fn step(&mut self, dt: f64) {
        self.elapsed += dt;
        if self.shape == Shape::Walk {
            self.walk.step(&mut self.rng, dt);
        }
    }

    /// The value now.
    pub fn value(&self) -> Signal {
        let cycles = self.elapsed / self.period;
        let span = self.high - self.low;
        match self.shape {
            Shape::Constant => Signal::Number(self.low),
            Shape::Sine => Signal::Number(self.low + span * (0.5 - 0.5 * (cycles * TAU).cos())),
            Shape::Ramp => Signal::Number(self.low + span * cycles.fract()),
            Shape::Square => Signal::Bool(cycles.fract() >= 0.5),
            Shape::Walk => Signal::Number((self.low + span / 2.0 + self.walk.value).clamp(self.low, self.high)),
            Shape::Counter => Signal::Count(self.low.max(0.0) as u64 + cycles as u64),
        }
    }

    /// Sets a constant; the other shapes refuse.
    pub fn set(&mut self, value: &Signal) -> Result<(), String> {
        let number = value.as_f64().filter(|_| self.shape == Shape::Constant);
        self.low = number.ok_or("only a generated constant can be written, with a number")?;
        Ok(())
    }

    /// Whether [`Generator::set`] can succeed.
    pub fn is_writable(&self) -> bool {
        self.shape == Shape::Constant
    }
}
