//! Wet well, rising main and elevated tank: who holds how much water, and what the pumps move against.

/// Plan area of the wet well, m².
const WELL_AREA: f64 = 2.0;
/// Depth at which the wet well spills over its weir, m.
const WELL_CREST: f64 = 5.0;
/// Depth of the wet well, m.
pub const WELL_DEPTH: f64 = 6.0;
/// Plan area of the tank, m².
const TANK_AREA: f64 = 8.0;
/// Depth at which the tank returns water to the well, m.
const TANK_CREST: f64 = 4.6;
/// Depth of the tank, m.
pub const TANK_DEPTH: f64 = 5.0;
/// Tank floor above the well floor, m.
const LIFT: f64 = 14.0;
/// Friction of the rising main: head in m for (m³/s)².
const FRICTION: f64 = 900.0;
/// Outlet of the tank: m³/s for a valve fully open and 1 m of water.
const OUTLET: f64 = 0.05;

/// What a pump can do at its present speed: head = `shutoff` − `slope` · flow².
#[derive(Debug, Clone, Copy, Default)]
pub struct PumpHead {
    /// Head at no flow, m.
    pub shutoff: f64,
    /// Loss of head for (m³/s)².
    pub slope: f64,
}

/// Both vessels and the totals that prove conservation.
#[derive(Debug)]
pub struct Hydraulics {
    well_m3: f64,
    tank_m3: f64,
    start_m3: f64,
    total_in: f64,
    total_out: f64,
    /// Spilled to the river since the start, m³.
    pub total_spilled: f64,
    /// Flow over the well's weir now, m³/s.
    pub spill: f64,
    /// Flow out of the tank now, m³/s.
    pub outflow: f64,
    /// Gauge pressure in the rising main at the station, bar.
    pub discharge_bar: f64,
}

impl Hydraulics {
    /// Vessels filled to these depths in m.
    pub fn new(well: f64, tank: f64) -> Self {
        let (well_m3, tank_m3) = (well * WELL_AREA, tank * TANK_AREA);
        Self {
            well_m3,
            tank_m3,
            start_m3: well_m3 + tank_m3,
            total_in: 0.0,
            total_out: 0.0,
            total_spilled: 0.0,
            spill: 0.0,
            outflow: 0.0,
            discharge_bar: 0.0,
        }
    }

    /// Depth of water in the wet well, m.
    pub fn well_level(&self) -> f64 {
        self.well_m3 / WELL_AREA
    }

    /// Depth of water in the tank, m.
    pub fn tank_level(&self) -> f64 {
        self.tank_m3 / TANK_AREA
    }

    /// Volume in the wet well, m³.
    pub fn well_volume(&self) -> f64 {
        self.well_m3
    }

    /// See [`super::PumpStation::imbalance_m3`].
    pub fn imbalance_m3(&self) -> f64 {
        let stored = self.well_m3 + self.tank_m3 - self.start_m3;
        self.total_in - self.total_out - self.total_spilled - stored
    }

    /// Lets water flow for `dt` seconds. `inflow` in m³/s, `opening` of the outlet valve 0 ..= 1. Returns the flow of
    /// each pump in m³/s; no pump takes water that the well does not hold.
    pub fn step(&mut self, inflow: f64, pumps: [PumpHead; 2], opening: f64, dt: f64) -> [f64; 2] {
        let static_head = LIFT + self.tank_level() - self.well_level();
        let mut flows = operating_point(static_head, pumps);
        let wanted: f64 = flows.iter().sum();
        let share = if wanted > 0.0 { ((self.well_m3 / dt) / wanted).min(1.0) } else { 1.0 };
        flows = flows.map(|flow| flow * share);
        let pumped: f64 = flows.iter().sum();
        self.discharge_bar = (static_head + self.well_level() + FRICTION * pumped * pumped) * 0.0981;

        let after_pumps = self.well_m3 - pumped * dt;
        let over = (self.well_level() - WELL_CREST).max(0.0);
        self.spill = (3.0 * over.powf(1.5)).min(after_pumps.max(0.0) / dt);
        self.outflow = (OUTLET * opening * self.tank_level().sqrt()).min(self.tank_m3 / dt);
        let mut tank = self.tank_m3 + (pumped - self.outflow) * dt;
        let returned = (tank - TANK_CREST * TANK_AREA).max(0.0);
        tank -= returned;
        let mut well = (after_pumps + (inflow - self.spill) * dt + returned).max(0.0);
        let above_rim = (well - WELL_DEPTH * WELL_AREA).max(0.0);
        well -= above_rim;
        self.spill += above_rim / dt;

        self.well_m3 = well;
        self.tank_m3 = tank;
        self.total_in += inflow * dt;
        self.total_out += self.outflow * dt;
        self.total_spilled += self.spill * dt;
        flows
    }
}

/// Flow of pumps in parallel against the rising main: the head that all share, by bisection. Check valves keep a weak
/// pump at zero instead of letting water run back.
fn operating_point(static_head: f64, pumps: [PumpHead; 2]) -> [f64; 2] {
    let flows_at =
        |head: f64| pumps.map(|p| if p.shutoff > head { ((p.shutoff - head) / p.slope).sqrt() } else { 0.0 });
    let (mut low, mut high) = (static_head, pumps[0].shutoff.max(pumps[1].shutoff));
    if high <= low {
        return [0.0; 2];
    }
    for _ in 0..40 {
        let head = 0.5 * (low + high);
        let total: f64 = flows_at(head).iter().sum();
        if static_head + FRICTION * total * total > head { low = head } else { high = head }
    }
    flows_at(0.5 * (low + high))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRONG: PumpHead = PumpHead { shutoff: 30.0, slope: 3_000.0 };
    const OFF: PumpHead = PumpHead { shutoff: 0.0, slope: 3_000.0 };

    #[test]
    fn two_pumps_move_more_than_one_but_less_than_twice() {
        let one: f64 = operating_point(14.0, [STRONG, OFF]).iter().sum();
        let two: f64 = operating_point(14.0, [STRONG, STRONG]).iter().sum();
        assert!(one > 0.03 && two > one && two < 2.0 * one, "{one} {two}");
    }

    #[test]
    fn a_weak_pump_never_runs_backwards() {
        let weak = PumpHead { shutoff: 15.0, slope: 3_000.0 };
        let [strong, nothing] = operating_point(14.5, [STRONG, weak]);
        assert!(strong > 0.0);
        assert_eq!(nothing, 0.0);
        assert_eq!(operating_point(40.0, [STRONG, weak]), [0.0, 0.0]);
    }

    #[test]
    fn an_empty_well_gives_no_water_and_a_full_one_spills() {
        let mut water = Hydraulics::new(0.0, 2.0);
        assert_eq!(water.step(0.0, [STRONG, STRONG], 0.0, 0.1), [0.0, 0.0]);
        let mut water = Hydraulics::new(WELL_CREST + 0.5, 2.0);
        water.step(0.1, [OFF, OFF], 0.0, 0.1);
        assert!(water.spill > 0.5, "{}", water.spill);
    }

    #[test]
    fn a_flood_far_beyond_the_weir_stays_inside_the_well() {
        let mut water = Hydraulics::new(WELL_DEPTH, TANK_DEPTH - 0.5);
        for _ in 0..1_000 {
            water.step(50.0, [STRONG, STRONG], 0.0, 0.5);
            assert!(water.well_level() <= WELL_DEPTH + 1e-9 && water.tank_level() <= TANK_DEPTH);
        }
        assert!(water.imbalance_m3().abs() < 1e-6, "{}", water.imbalance_m3());
    }
}
