//! What the station's controller decides: lead and lag pump by level, duty alternation, the outlet valve.

use super::parts::ramp;
use super::pump::{Pump, Wanted};

/// Percent per second of valve travel.
const VALVE_RATE: f64 = 4.0;

/// The controller with its set points.
#[derive(Debug)]
pub struct Control {
    /// Automatic by level; otherwise the manual commands count.
    pub auto: bool,
    /// Level at which the pumps stop, m.
    pub stop_level: f64,
    /// Level at which the lead pump starts, m.
    pub start_level: f64,
    /// Level at which the lag pump joins, m.
    pub lag_level: f64,
    /// Level alarm, m.
    pub high_level: f64,
    /// Which pump leads, 0 or 1; changes with every cycle.
    pub lead: usize,
    lead_on: bool,
    lag_on: bool,
    /// Wanted opening of the outlet valve, percent.
    pub valve_setpoint: f64,
    /// Opening of the outlet valve, percent.
    pub valve_position: f64,
    /// Cycles of the lead pump since the start.
    pub cycles: u64,
}

impl Default for Control {
    fn default() -> Self {
        Self {
            auto: true,
            stop_level: 1.0,
            start_level: 2.2,
            lag_level: 3.2,
            high_level: 4.0,
            lead: 0,
            lead_on: false,
            lag_on: false,
            valve_setpoint: 85.0,
            valve_position: 85.0,
            cycles: 0,
        }
    }
}

impl Control {
    /// What each drive shall do at this well `level` (m).
    pub fn decide(&mut self, level: f64, pumps: &[Pump; 2]) -> [Wanted; 2] {
        if !self.auto {
            (self.lead_on, self.lag_on) = (false, false);
            return std::array::from_fn(|i| Wanted { run: pumps[i].run_command, speed: pumps[i].speed_setpoint });
        }
        if level < self.stop_level {
            if self.lead_on {
                self.lead = 1 - self.lead;
            }
            (self.lead_on, self.lag_on) = (false, false);
        } else {
            if level > self.start_level && !self.lead_on {
                self.lead_on = true;
                self.cycles += 1;
            }
            self.lag_on |= level > self.lag_level;
        }
        let span = (self.lag_level - self.stop_level).max(0.1);
        let speed = (93.0 + 7.0 * (level - self.stop_level) / span).clamp(93.0, 100.0);
        std::array::from_fn(|i| {
            // The partner takes over when the pump that should run has tripped.
            let on = if i == self.lead { self.lead_on } else { self.lag_on };
            let cover = self.lead_on && pumps[1 - i].is_tripped();
            Wanted { run: on || cover, speed }
        })
    }

    /// Moves the valve towards its set point.
    pub fn step_valve(&mut self, dt: f64) {
        ramp(&mut self.valve_position, self.valve_setpoint, VALVE_RATE, dt);
    }
}
