//! The station as a whole: conservation, bounds, repeatability, and set points that act.

use proptest::prelude::*;

use super::hydraulics::{TANK_DEPTH, WELL_DEPTH};
use super::*;

fn number(station: &PumpStation, name: &str) -> f64 {
    station.read(name).and_then(|signal| signal.as_f64()).unwrap_or_else(|| panic!("no signal {name}"))
}

fn run(station: &mut PumpStation, seconds: u32) {
    for _ in 0..seconds * 10 {
        station.step(0.1);
    }
}

#[test]
fn one_seed_plays_the_same_and_another_does_not() {
    let play = |seed| {
        let mut station = PumpStation::new(Settings { seed, ..Settings::default() });
        run(&mut station, 300);
        ["well.level", "pump1.current", "air.wind_speed", "energy.voltage2"].map(|name| number(&station, name))
    };
    assert_eq!(play(3), play(3));
    assert_ne!(play(3), play(4));
}

#[test]
fn an_hour_of_life_keeps_water_and_bounds_and_shows_both_pumps() {
    let mut station = PumpStation::new(Settings::default());
    let mut ran = [false; 2];
    for second in 0..3_600 {
        run(&mut station, 1);
        let (well, tank) = (number(&station, "well.level"), number(&station, "tank.level"));
        assert!((0.0..=WELL_DEPTH).contains(&well), "well {well} at {second} s");
        assert!((0.0..=TANK_DEPTH).contains(&tank), "tank {tank} at {second} s");
        assert!(station.imbalance_m3().abs() < 1e-6, "{} m3 at {second} s", station.imbalance_m3());
        ran = [ran[0] || station.pumps[0].is_running(), ran[1] || station.pumps[1].is_running()];
    }
    assert_eq!(ran, [true, true]);
    assert!(station.control.cycles > 5, "{} cycles", station.control.cycles);
    assert!(number(&station, "flow.total") > 1_284_400.0);
}

#[test]
fn set_points_act() {
    let mut station = PumpStation::new(Settings { trips_per_hour: 0.0, ..Settings::default() });
    let mut set = |name: &str, value: Signal| station.write(name, &value).expect(name);
    set("control.auto", Signal::Bool(false));
    set("pump2.run_command", Signal::Bool(true));
    set("pump2.speed_setpoint", Signal::Number(70.0));
    set("valve.setpoint", Signal::Number(20.0));
    run(&mut station, 30);
    assert_eq!(number(&station, "pump2.speed"), 70.0);
    assert_eq!(number(&station, "pump1.speed"), 0.0);
    assert_eq!(number(&station, "valve.position"), 20.0);
    station.write("pump2.run_command", &Signal::Bool(false)).expect("stops");
    run(&mut station, 30);
    assert_eq!(number(&station, "pump2.speed"), 0.0);
    assert_eq!(number(&station, "pump2.current"), 0.0);
}

#[test]
fn a_raised_start_level_keeps_the_pumps_waiting() {
    let mut station = PumpStation::new(Settings { trips_per_hour: 0.0, ..Settings::default() });
    station.write("control.lag_level", &Signal::Number(4.5)).expect("in range");
    station.write("control.start_level", &Signal::Number(3.5)).expect("in range");
    let mut highest = 0.0_f64;
    for _ in 0..600 {
        run(&mut station, 1);
        highest = highest.max(number(&station, "well.level"));
    }
    assert!(highest > 3.4, "{highest}");
}

#[test]
fn every_listed_signal_is_there() {
    let station = PumpStation::new(Settings::default());
    for name in SIGNALS {
        assert!(station.read(name).is_some(), "{name}");
    }
    for name in ["well", "well.", "energy.", "energy.voltage", "energy.voltage4", "pump3.speed", "alarm.none", ""] {
        assert!(station.read(name).is_none(), "{name}");
    }
}

#[test]
fn refusals_name_the_range() {
    let mut station = PumpStation::new(Settings::default());
    let refusal = station.write("valve.setpoint", &Signal::Number(101.0)).expect_err("out of range");
    assert!(refusal.contains("0.00 to 100.00"), "{refusal}");
    assert!(station.write("well.level", &Signal::Number(1.0)).is_err());
    assert!(!station.is_writable("well.level") && station.is_writable("pump1.reset"));
}

proptest! {
    /// Whatever an operator writes, and however violent the inflow: water is neither made nor lost.
    #[test]
    fn nothing_an_operator_does_makes_water(
        inflow in 0.0..4_000.0_f64,
        seed: u64,
        actions in prop::collection::vec((0..6_usize, -10.0..110.0_f64), 1..12),
    ) {
        let settings = Settings { inflow_m3h: inflow, seed, trips_per_hour: 30.0, ..Settings::default() };
        let mut station = PumpStation::new(settings);
        let names = ["control.auto", "pump1.run_command", "pump2.run_command", "pump1.speed_setpoint",
            "valve.setpoint", "control.start_level"];
        for (which, value) in actions {
            let _ = station.write(names[which], &Signal::Number(value));
            run(&mut station, 20);
            prop_assert!(station.imbalance_m3().abs() < 1e-6);
            prop_assert!((0.0..=WELL_DEPTH + 1e-9).contains(&number(&station, "well.level")));
            prop_assert!((0.0..=TANK_DEPTH).contains(&number(&station, "tank.level")));
            prop_assert!(number(&station, "pump1.current").is_finite());
        }
    }
}
