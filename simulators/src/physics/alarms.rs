//! Alarms of the station: raised with hysteresis, latched until acknowledged.

use super::control::Control;
use super::hydraulics::Hydraulics;
use crate::rng::Rng;

/// Alarms by bit of the alarm word.
pub const NAMES: [&str; 8] =
    ["high-level", "low-level", "overflow", "pump1-fault", "pump2-fault", "gas", "door-open", "tank-high"];

/// The alarm list.
#[derive(Debug)]
pub struct Alarms {
    rng: Rng,
    active: u16,
    latched: u16,
    door_open_for: f64,
}

impl Alarms {
    /// No alarm.
    pub fn new(rng: Rng) -> Self {
        Self { rng, active: 0, latched: 0, door_open_for: 0.0 }
    }

    /// Alarms that are true now; bit 0 is the first of [`NAMES`].
    pub fn word(&self) -> u16 {
        self.active
    }

    /// Alarms that were true since the last acknowledgement.
    pub fn latched(&self) -> u16 {
        self.latched
    }

    /// Whether alarm `bit` is true now.
    pub fn is_active(&self, bit: usize) -> bool {
        self.active >> bit & 1 == 1
    }

    /// Forgets alarms that are over.
    pub fn acknowledge(&mut self) {
        self.latched = self.active;
    }

    /// Looks at the station again.
    pub fn step(&mut self, water: &Hydraulics, control: &Control, tripped: [bool; 2], h2s_ppm: f64, dt: f64) {
        // Somebody visits about every quarter of an hour and stays for half a minute.
        if self.rng.chance(dt / 900.0) {
            self.door_open_for = 30.0;
        }
        self.door_open_for -= dt;
        let well = water.well_level();
        let now = [
            self.above(0, well, control.high_level, 0.1),
            self.above(1, -well, -0.4, 0.1),
            water.spill > 0.0,
            tripped[0],
            tripped[1],
            self.above(5, h2s_ppm, 10.0, 2.0),
            self.door_open_for > 0.0,
            self.above(7, water.tank_level(), 4.2, 0.1),
        ];
        self.active = now.iter().enumerate().fold(0, |word, (bit, on)| word | u16::from(*on) << bit);
        self.latched |= self.active;
    }

    /// True above `limit`; once true, until `band` below it.
    fn above(&self, bit: usize, value: f64, limit: f64, band: f64) -> bool {
        value > if self.is_active(bit) { limit - band } else { limit }
    }
}
