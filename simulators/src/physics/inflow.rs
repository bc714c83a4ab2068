//! Water that arrives: a daily curve of people's habits, rain that runs off with a delay, and noise.

use super::parts::{Wander, lag};
use crate::rng::Rng;

/// m³/s of run-off for each mm/h of rain that lasts.
const RUNOFF_PER_MM_H: f64 = 0.004;
/// Seconds that rain needs to reach the station.
const RUNOFF_LAG: f64 = 40.0;

/// The inflow of the station.
#[derive(Debug)]
pub struct Inflow {
    mean: f64,
    rng: Rng,
    noise: Wander,
    runoff: f64,
    /// Inflow now, m³/s.
    pub now: f64,
}

impl Inflow {
    /// Dry-weather mean in m³/h.
    pub fn new(mean_m3h: f64, rng: Rng) -> Self {
        Self { mean: mean_m3h / 3_600.0, rng, noise: Wander::new(0.05, 8.0), runoff: 0.0, now: mean_m3h / 3_600.0 }
    }

    /// Inflow in m³/s at `hour` of the day.
    pub fn step(&mut self, hour: f64, rain_mm_h: f64, dt: f64) -> f64 {
        lag(&mut self.runoff, rain_mm_h * RUNOFF_PER_MM_H, RUNOFF_LAG, dt);
        let noise = self.noise.step(&mut self.rng, dt);
        self.now = (self.mean * daily(hour) * (1.0 + noise) + self.runoff).max(0.0);
        self.now
    }
}

/// Share of the mean at `hour`: quiet at night, one peak in the morning and one in the evening. Its mean is about 1.
pub fn daily(hour: f64) -> f64 {
    let peak = |at: f64, width: f64| {
        let away = (hour - at).rem_euclid(24.0);
        let away = away.min(24.0 - away);
        (-(away / width).powi(2)).exp()
    };
    0.55 + 1.15 * peak(7.5, 2.6) + 1.0 * peak(19.0, 3.2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_day_has_its_peaks_and_its_mean() {
        assert!(daily(7.5) > 1.5 && daily(19.0) > 1.4 && daily(3.0) < 0.8);
        let mean = (0..240).map(|i| daily(f64::from(i) / 10.0)).sum::<f64>() / 240.0;
        assert!((mean - 1.0).abs() < 0.05, "{mean}");
        assert!((daily(23.999) - daily(0.0)).abs() < 0.01);
    }
}
