//! A pump with its motor and drive: speed ramps, start-up current, heat, wear, faults and their reset.

use super::hydraulics::PumpHead;
use super::parts::{Wander, lag, ramp};
use crate::rng::Rng;

/// Speed at 50 Hz, rpm.
const RATED_RPM: f64 = 1_480.0;
/// Rated current, A.
pub const RATED_AMPERE: f64 = 38.0;
/// Percent per second that the drive changes its speed.
const RAMP: f64 = 9.0;
/// Winding temperature at which the drive trips, °C.
const TRIP_TEMPERATURE: f64 = 125.0;
/// Seconds that a pump may run dry.
const DRY_SECONDS: f64 = 6.0;
/// Depth below which the pump draws air, m.
const DRY_LEVEL: f64 = 0.25;

/// Why a drive tripped, as its fault code register shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Fault {
    /// Healthy.
    None = 0,
    /// A rag or a stone: too much current.
    Overcurrent = 3,
    /// The pump draws air.
    DryRun = 7,
    /// Winding too hot.
    Overtemperature = 9,
}

/// What the control asks of a drive in this step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Wanted {
    /// Whether the motor shall turn.
    pub run: bool,
    /// Speed while it turns, percent of rated.
    pub speed: f64,
}

/// One pump with motor and drive.
#[derive(Debug)]
pub struct Pump {
    rng: Rng,
    /// Speed now, percent of rated.
    pub speed: f64,
    /// Speed asked for in manual mode, percent.
    pub speed_setpoint: f64,
    /// Highest speed in any mode, percent.
    pub speed_limit: f64,
    /// Manual start command.
    pub run_command: bool,
    running: bool,
    fault: Fault,
    tripped_for: f64,
    dry_for: f64,
    inrush: f64,
    clogging: f64,
    noise: Wander,
    /// Flow now, m³/s.
    pub flow: f64,
    /// Motor current, A.
    pub current: f64,
    power: f64,
    /// Winding temperature, °C.
    pub temperature: f64,
    /// Vibration, mm/s RMS.
    pub vibration: f64,
    /// Hours with the motor turning.
    pub run_hours: f64,
    /// Starts since commissioning.
    pub starts: u64,
    /// Trips since commissioning.
    pub trips: u64,
}

impl Pump {
    /// A stopped, healthy pump with `run_hours` behind it.
    pub fn new(rng: Rng, run_hours: f64) -> Self {
        Self {
            rng,
            speed: 0.0,
            speed_setpoint: 80.0,
            speed_limit: 100.0,
            run_command: false,
            running: false,
            fault: Fault::None,
            tripped_for: 0.0,
            dry_for: 0.0,
            inrush: 0.0,
            clogging: 0.0,
            noise: Wander::new(1.0, 0.6),
            flow: 0.0,
            current: 0.0,
            power: 0.0,
            temperature: 24.0,
            vibration: 0.0,
            run_hours,
            starts: (run_hours * 5.3) as u64,
            trips: 11,
        }
    }

    /// Whether the drive lets the motor turn.
    pub fn is_running(&self) -> bool {
        self.running
    }

    /// Whether the shaft still moves, be it by coasting.
    pub fn is_turning(&self) -> bool {
        self.speed > 0.5
    }

    /// Whether a fault keeps it from running.
    pub fn is_tripped(&self) -> bool {
        self.fault != Fault::None
    }

    /// Fault code of the drive.
    pub fn fault_code(&self) -> u16 {
        self.fault as u16
    }

    /// Whether something clogs the impeller: more current for less flow.
    pub fn is_clogged(&self) -> bool {
        self.clogging > 0.3
    }

    /// Shaft speed, rpm.
    pub fn rpm(&self) -> f64 {
        self.speed / 100.0 * RATED_RPM
    }

    /// Electrical power, kW.
    pub fn power_kw(&self) -> f64 {
        self.power
    }

    /// Torque in percent of rated, from power and speed.
    pub fn torque(&self) -> f64 {
        if self.is_turning() { (self.power / 18.5 / (self.speed / 100.0)).clamp(0.0, 2.5) * 100.0 } else { 0.0 }
    }

    /// Acknowledges a fault; the pump may start again.
    pub fn reset(&mut self) {
        self.fault = Fault::None;
        self.tripped_for = 0.0;
        self.dry_for = 0.0;
        self.clogging = 0.0;
    }

    /// What the pump can lift at this speed (affinity laws).
    pub fn head(&self) -> PumpHead {
        let speed = self.speed / 100.0;
        PumpHead { shutoff: 30.0 * speed * speed, slope: 3_000.0 * (1.0 + 1.5 * self.clogging) }
    }

    /// The drive: obeys, ramps, and trips by chance.
    pub fn step_drive(&mut self, wanted: Wanted, trips_per_hour: f64, auto_reset: f64, dt: f64) {
        // A rag takes a minute to grow; it starts by chance and ends in an overcurrent trip.
        let rag = self.rng.chance(trips_per_hour * dt / 3_600.0);
        if self.running && (rag || self.clogging > 0.0) {
            self.clogging += dt / 60.0;
        }
        if self.is_tripped() {
            self.tripped_for += dt;
            if auto_reset > 0.0 && self.tripped_for > auto_reset {
                self.reset();
            }
        }
        let run = wanted.run && !self.is_tripped();
        if run && !self.running {
            self.starts += 1;
            self.inrush = 1.0;
        }
        self.running = run;
        let target = if run { wanted.speed.min(self.speed_limit).clamp(30.0, 100.0) } else { 0.0 };
        ramp(&mut self.speed, target, RAMP, dt);
        lag(&mut self.inrush, 0.0, 1.5, dt);
    }

    /// The motor: current, heat, wear and the faults that come of them, after the hydraulics gave it its `flow`.
    pub fn step_motor(&mut self, flow: f64, well_level: f64, ambient: f64, dt: f64) {
        self.flow = flow;
        let speed = self.speed / 100.0;
        let noise = self.noise.step(&mut self.rng, dt);
        let head = self.head();
        let lifted = (head.shutoff - head.slope * flow * flow).max(0.0);
        let hydraulic = 9.81 * flow * lifted;
        let shaft = (hydraulic / 0.68 + 1.6 * speed.powi(3)) * (1.0 + 0.9 * self.clogging);
        let turning = self.is_turning();
        self.power = if turning { shaft / 0.92 + 0.25 } else { 0.06 };
        self.current = if turning {
            let active = self.power * 1_000.0 / (3.0_f64.sqrt() * 400.0 * 0.87);
            let magnetising = 7.0 * speed;
            let inrush = if self.running { 1.4 * RATED_AMPERE * self.inrush } else { 0.0 };
            (active.hypot(magnetising) + inrush) * (1.0 + 0.006 * noise)
        } else {
            0.0
        };
        let heat = 62.0 * (self.current / RATED_AMPERE).powi(2);
        lag(&mut self.temperature, ambient + heat, 240.0, dt);
        let vibration = if turning { 0.6 + 1.4 * speed * speed + 3.5 * self.clogging + 0.08 * noise } else { 0.0 };
        lag(&mut self.vibration, vibration.max(0.0), 1.0, dt);
        if turning {
            self.run_hours += dt / 3_600.0;
        }
        self.dry_for = if self.running && well_level < DRY_LEVEL { self.dry_for + dt } else { 0.0 };
        self.check_faults();
    }

    fn check_faults(&mut self) {
        let fault = if self.clogging > 1.0 {
            Fault::Overcurrent
        } else if self.dry_for > DRY_SECONDS {
            Fault::DryRun
        } else if self.temperature > TRIP_TEMPERATURE {
            Fault::Overtemperature
        } else {
            return;
        };
        if !self.is_tripped() {
            self.fault = fault;
            self.trips += 1;
            self.running = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(pump: &mut Pump, seconds: f64, wanted: Wanted, level: f64) -> f64 {
        let mut peak = 0.0_f64;
        for _ in 0..(seconds / 0.1) as usize {
            pump.step_drive(wanted, 0.0, 0.0, 0.1);
            pump.step_motor(0.04 * pump.speed / 100.0, level, 20.0, 0.1);
            peak = peak.max(pump.current);
        }
        peak
    }

    const FULL: Wanted = Wanted { run: true, speed: 100.0 };

    #[test]
    fn a_start_draws_more_than_the_run_and_counts() {
        let mut pump = Pump::new(Rng::new(1), 0.0);
        let peak = run(&mut pump, 30.0, FULL, 2.0);
        assert!(peak > 1.2 * pump.current && pump.current > 10.0, "{peak} {}", pump.current);
        assert!((pump.speed - 100.0).abs() < 1e-9 && pump.starts == 1);
        assert!((pump.run_hours - 30.0 / 3_600.0).abs() < 1e-3);
    }

    #[test]
    fn a_running_motor_warms_up_without_tripping() {
        let mut pump = Pump::new(Rng::new(1), 0.0);
        run(&mut pump, 3_600.0, FULL, 2.0);
        assert!(pump.temperature > 50.0 && pump.temperature < TRIP_TEMPERATURE, "{}", pump.temperature);
        assert!(!pump.is_tripped());
    }

    #[test]
    fn running_dry_trips_until_reset() {
        let mut pump = Pump::new(Rng::new(1), 0.0);
        run(&mut pump, 10.0, FULL, 0.1);
        assert_eq!(pump.fault_code(), Fault::DryRun as u16);
        run(&mut pump, 30.0, FULL, 2.0);
        assert!(!pump.is_running() && pump.speed < 0.5);
        pump.reset();
        run(&mut pump, 30.0, FULL, 2.0);
        assert!(pump.is_running() && pump.trips == 12);
    }
}
