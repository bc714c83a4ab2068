//! Names of the station's signals: what devices show, and what may be written.

use super::PumpStation;
use super::alarms::NAMES as ALARMS;
use super::control::Control;
use super::hydraulics::{TANK_DEPTH, WELL_DEPTH};
use super::pump::{Pump, RATED_AMPERE};
use crate::clock::Calendar;
use crate::signal::Signal::{self, Bool, Count, Number};

pub fn read(station: &PumpStation, name: &str) -> Option<Signal> {
    let (group, item) = name.split_once('.')?;
    match group {
        "pump1" => pump(&station.pumps[0], item),
        "pump2" => pump(&station.pumps[1], item),
        "control" | "valve" => control(&station.control, name),
        "alarm" => alarm(station, item),
        "energy" => energy(station, item),
        "clock" => clock(Calendar::from_epoch_seconds(station.epoch()), item),
        "air" | "gas" => air(station, name),
        _ => water(station, name),
    }
}

fn water(station: &PumpStation, name: &str) -> Option<Signal> {
    let (water, flow) = (&station.water, &station.flow);
    Some(match name {
        "well.level" => Number(water.well_level()),
        "well.percent" => Number(water.well_level() / WELL_DEPTH * 100.0),
        "well.volume" => Number(water.well_volume()),
        "well.inflow" => Number(station.inflow.now * 3_600.0),
        "well.spill" => Number(water.spill * 3_600.0),
        "well.spilled" => Number(water.total_spilled),
        "tank.level" => Number(water.tank_level()),
        "tank.percent" => Number(water.tank_level() / TANK_DEPTH * 100.0),
        "tank.outflow" => Number(water.outflow * 3_600.0),
        "main.pressure" => Number(water.discharge_bar),
        "flow.rate" => Number(flow.flow_m3h),
        "flow.velocity" => Number(flow.velocity()),
        "flow.total" => Number(flow.total_m3),
        "flow.litres" => Count((flow.total_m3 * 1_000.0) as u64),
        "flow.temperature" => Number(flow.temperature),
        "flow.moving" => Bool(flow.flow_m3h > 1.0),
        "water.ph" => Number(station.analyser.ph()),
        "water.conductivity" => Number(station.analyser.conductivity),
        "water.turbidity" => Number(station.analyser.turbidity),
        "plant.hour" => Number(station.hour()),
        "plant.running" => Bool(station.pumps.iter().any(Pump::is_running)),
        "plant.uptime" => Count(station.elapsed as u64),
        _ => return None,
    })
}

fn pump(pump: &Pump, item: &str) -> Option<Signal> {
    Some(match item {
        "running" => Bool(pump.is_running()),
        "turning" => Bool(pump.is_turning()),
        "tripped" => Bool(pump.is_tripped()),
        "clogged" => Bool(pump.is_clogged()),
        "at_speed" => Bool(pump.is_running() && (pump.speed - pump.speed_limit.min(100.0)).abs() < 1.0),
        "fault_code" => Count(u64::from(pump.fault_code())),
        "speed" => Number(pump.speed),
        "rpm" => Number(pump.rpm()),
        "frequency" => Number(pump.speed / 2.0),
        "speed_setpoint" => Number(pump.speed_setpoint),
        "speed_limit" => Number(pump.speed_limit),
        "run_command" => Bool(pump.run_command),
        "reset" => Bool(false),
        "flow" => Number(pump.flow * 3_600.0),
        "current" => Number(pump.current),
        "load" => Number(pump.current / RATED_AMPERE * 100.0),
        "power" => Number(pump.power_kw()),
        "torque" => Number(pump.torque()),
        "temperature" => Number(pump.temperature),
        "vibration" => Number(pump.vibration),
        "run_hours" => Number(pump.run_hours),
        "run_seconds" => Count((pump.run_hours * 3_600.0) as u64),
        "starts" => Count(pump.starts),
        "trips" => Count(pump.trips),
        _ => return None,
    })
}

fn control(control: &Control, name: &str) -> Option<Signal> {
    Some(match name {
        "control.auto" => Bool(control.auto),
        "control.stop_level" => Number(control.stop_level),
        "control.start_level" => Number(control.start_level),
        "control.lag_level" => Number(control.lag_level),
        "control.high_level" => Number(control.high_level),
        "control.lead" => Count(control.lead as u64 + 1),
        "control.cycles" => Count(control.cycles),
        "valve.setpoint" => Number(control.valve_setpoint),
        "valve.position" => Number(control.valve_position),
        "valve.open" => Bool(control.valve_position > 98.0),
        "valve.closed" => Bool(control.valve_position < 2.0),
        "valve.moving" => Bool((control.valve_position - control.valve_setpoint).abs() > 0.1),
        _ => return None,
    })
}

fn alarm(station: &PumpStation, item: &str) -> Option<Signal> {
    Some(match item {
        "word" => Count(u64::from(station.alarms.word())),
        "latched" => Count(u64::from(station.alarms.latched())),
        "any" => Bool(station.alarms.word() != 0),
        "acknowledge" => Bool(false),
        named => Bool(station.alarms.is_active(ALARMS.iter().position(|name| *name == named)?)),
    })
}

fn energy(station: &PumpStation, item: &str) -> Option<Signal> {
    let meter = &station.energy;
    let phase = |text: &str| ["1", "2", "3"].iter().position(|number| *number == text);
    Some(match item {
        "power" => Number(meter.power_kw()),
        "reactive" => Number(meter.reactive_kvar()),
        "apparent" => Number(meter.power_kw() / meter.power_factor()),
        "power_factor" => Number(meter.power_factor()),
        "frequency" => Number(meter.frequency()),
        "peak" => Number(meter.peak_kw),
        "wh" => Count(meter.energy_wh as u64),
        "kwh" => Number(meter.energy_wh / 1_000.0),
        "varh" => Count(meter.reactive_varh as u64),
        other => match other.split_at(other.len().checked_sub(1)?) {
            ("voltage", number) => Number(meter.voltage(phase(number)?)),
            ("current", number) => Number(meter.current(phase(number)?)),
            _ => return None,
        },
    })
}

fn air(station: &PumpStation, name: &str) -> Option<Signal> {
    let air = &station.air;
    Some(match name {
        "air.temperature" => Number(air.temperature),
        "air.humidity" => Number(air.humidity),
        "air.pressure" => Number(air.pressure()),
        "air.wind_speed" => Number(air.wind_speed()),
        "air.wind_direction" => Number(air.wind_direction),
        "air.rain" => Number(air.rain_mm_h),
        "air.rain_total" => Number(air.rain_total_mm),
        "gas.h2s" => Number(air.h2s_ppm),
        "gas.ch4" => Number(air.ch4_lel),
        "gas.o2" => Number(air.o2),
        "gas.battery" => Number(air.battery),
        "gas.alarm" => Bool(air.h2s_ppm > 10.0),
        _ => return None,
    })
}

fn clock(now: Calendar, item: &str) -> Option<Signal> {
    Some(Count(match item {
        "year" => u64::from(now.year),
        "month_day" => u64::from(now.month) * 100 + u64::from(now.day),
        "hour_minute" => u64::from(now.hour) * 100 + u64::from(now.minute),
        "second" => u64::from(now.second),
        "epoch" => now.epoch_seconds(),
        _ => return None,
    }))
}

pub fn is_writable(name: &str) -> bool {
    let pump = name.strip_prefix("pump1.").or_else(|| name.strip_prefix("pump2."));
    match pump {
        Some(item) => ["speed_setpoint", "speed_limit", "run_command", "reset"].contains(&item),
        None => [
            "control.auto",
            "control.stop_level",
            "control.start_level",
            "control.lag_level",
            "control.high_level",
            "valve.setpoint",
            "alarm.acknowledge",
        ]
        .contains(&name),
    }
}

pub fn write(station: &mut PumpStation, name: &str, value: &Signal) -> Result<(), String> {
    let on = value.as_bool().ok_or("takes a number or a state, not text")?;
    let number = value.as_f64().ok_or("takes a number or a state, not text")?;
    let control = &mut station.control;
    match name {
        "control.auto" => control.auto = on,
        "control.stop_level" => control.stop_level = within(number, 0.3, control.start_level - 0.1)?,
        "control.start_level" => {
            control.start_level = within(number, control.stop_level + 0.1, control.lag_level - 0.1)?;
        }
        "control.lag_level" => control.lag_level = within(number, control.start_level + 0.1, WELL_DEPTH)?,
        "control.high_level" => control.high_level = within(number, 0.5, WELL_DEPTH)?,
        "valve.setpoint" => control.valve_setpoint = within(number, 0.0, 100.0)?,
        "alarm.acknowledge" if on => station.alarms.acknowledge(),
        "alarm.acknowledge" => {}
        _ => return write_pump(station, name, on, number),
    }
    Ok(())
}

fn write_pump(station: &mut PumpStation, name: &str, on: bool, number: f64) -> Result<(), String> {
    let (index, item) = match name.split_once('.') {
        Some(("pump1", item)) => (0, item),
        Some(("pump2", item)) => (1, item),
        _ => return Err("is not a signal that may be written".to_owned()),
    };
    let pump = &mut station.pumps[index];
    match item {
        "run_command" => pump.run_command = on,
        "speed_setpoint" => pump.speed_setpoint = within(number, 0.0, 100.0)?,
        "speed_limit" => pump.speed_limit = within(number, 30.0, 100.0)?,
        "reset" if on => pump.reset(),
        "reset" => {}
        _ => return Err("is not a signal that may be written".to_owned()),
    }
    Ok(())
}

fn within(number: f64, low: f64, high: f64) -> Result<f64, String> {
    if (low..=high).contains(&number) { Ok(number) } else { Err(format!("takes {low:.2} to {high:.2}, not {number}")) }
}
