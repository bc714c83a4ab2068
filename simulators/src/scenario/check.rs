//! From the file as written to a scenario that can run; the first contradiction is named with its place.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use super::text::{Span, parse_address, parse_kind};
use super::{GeneratorSpec, Link, Listener, ModelSpec, Scenario, TEXT_SIGNALS, raw};
use crate::clock::Calendar;
use crate::device::{Block, DeviceSpec, Fill, Identity, Point, Source};
use crate::faults::{Delay, Faults, Lie, LieKind, Outage, OutageKind};
use crate::modbus::value::{Format, Kind, Order};
use crate::modbus::{Exception, Table};
use crate::physics::{PumpStation, Settings, Shape};
use crate::signal::{Model, Signal};

/// A contradiction and its place.
#[derive(Debug)]
pub struct Problem {
    pub at: String,
    pub text: String,
}

type Checked<T> = Result<T, Problem>;

fn at(place: impl Into<String>) -> impl FnOnce(String) -> Problem {
    let place = place.into();
    move |text| Problem { at: place, text }
}

/// Checks the whole file.
pub fn check(raw: raw::Scenario) -> Checked<Scenario> {
    let step = raw.step.map_or(Duration::from_millis(100), |span| span.0);
    if !(Duration::from_millis(10)..=Duration::from_secs(1)).contains(&step) {
        return Err(at("step")("must be 10ms to 1s".to_owned()));
    }
    let speed = raw.speed.unwrap_or(1);
    if !(1..=1_000).contains(&speed) {
        return Err(at("speed")("must be 1 to 1000".to_owned()));
    }
    let plant = plant(raw.plant, raw.seed)?;
    let generators = raw.signals.into_iter().map(generator).collect::<Checked<Vec<_>>>()?;
    let listeners = raw.listeners.into_iter().map(listener).collect::<Checked<Vec<_>>>()?;
    unique("listener", listeners.iter().map(|listener| listener.name.as_str()))?;
    unique("signal", generators.iter().map(|generator| generator.name.as_str()))?;
    unique("device", raw.devices.iter().map(|device| device.name.as_str()))?;

    let signals = SignalNames::new(&plant, &generators);
    let mut devices = Vec::new();
    let mut units = BTreeMap::new();
    for raw_device in raw.devices {
        let device = device(raw_device, &listeners, &signals)?;
        if let Some(other) = units.insert((device.listener, device.unit), device.name.clone()) {
            let text = format!("has the same listener and unit {} as device `{other}`", device.unit);
            return Err(at(format!("device `{}`", device.name))(text));
        }
        devices.push(device);
    }
    let (name, description, seed) = (raw.name, raw.description, raw.seed);
    Ok(Scenario { name, description, seed, step, speed, runs: true, plant, generators, listeners, devices })
}

fn unique<'a>(what: &str, names: impl Iterator<Item = &'a str>) -> Checked<()> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(at(format!("{what} `{name}`"))("is there twice; give one of them another name".to_owned()));
        }
    }
    Ok(())
}

fn plant(raw: Option<raw::Plant>, seed: u64) -> Checked<ModelSpec> {
    let Some(raw) = raw else { return Ok(ModelSpec::None) };
    let defaults = Settings::default();
    let settings = Settings {
        inflow_m3h: raw.inflow_m3h.unwrap_or(defaults.inflow_m3h),
        day_seconds: raw.day.map_or(defaults.day_seconds, |span| span.0.as_secs_f64()),
        start_hour: raw.start_hour.unwrap_or(defaults.start_hour),
        trips_per_hour: raw.trips_per_hour.unwrap_or(defaults.trips_per_hour),
        auto_reset_seconds: raw.auto_reset.map_or(defaults.auto_reset_seconds, |span| span.0.as_secs_f64()),
        start_epoch: raw.clock.map_or(Ok(defaults.start_epoch), epoch)?,
        seed,
    };
    let ranges = [
        ("inflow_m3h", settings.inflow_m3h, 0.0, 5_000.0),
        ("day", settings.day_seconds, 10.0, 1e6),
        ("start_hour", settings.start_hour, 0.0, 24.0),
        ("trips_per_hour", settings.trips_per_hour, 0.0, 1_000.0),
    ];
    for (key, value, low, high) in ranges {
        if !(low..=high).contains(&value) {
            return Err(at(format!("plant.{key}"))(format!("must be {low} to {high}, not {value}")));
        }
    }
    match raw.model.as_str() {
        "pump-station" => Ok(ModelSpec::PumpStation(settings)),
        "none" => Ok(ModelSpec::None),
        other => Err(at("plant.model")(format!("`{other}` is not a model; choose pump-station or none"))),
    }
}

fn epoch(clock: toml::value::Datetime) -> Checked<u64> {
    let refused = || at("plant.clock")("must be a local date and time such as 2026-06-15T06:00:00".to_owned());
    let (Some(date), Some(time), None) = (clock.date, clock.time, clock.offset) else { return Err(refused()) };
    let (year, month, day) = (date.year, date.month, date.day);
    let calendar =
        Calendar { year, month, day, hour: time.hour, minute: time.minute, second: time.second.unwrap_or(0) };
    if year < 1970 { Err(refused()) } else { Ok(calendar.epoch_seconds()) }
}

fn generator(raw: raw::Signal) -> Checked<GeneratorSpec> {
    let place = format!("signal `{}`", raw.name);
    let shape = match raw.shape.as_str() {
        "constant" => Shape::Constant,
        "sine" => Shape::Sine,
        "ramp" => Shape::Ramp,
        "square" => Shape::Square,
        "walk" => Shape::Walk,
        "counter" => Shape::Counter,
        other => {
            let text = format!("`{other}` is not a shape; choose constant, sine, ramp, square, walk or counter");
            return Err(at(place)(text));
        }
    };
    let (low, high) = (raw.low.unwrap_or(0.0), raw.high.unwrap_or(100.0));
    let period = raw.period.map_or(Duration::from_secs(60), |span| span.0);
    if !(low.is_finite() && high.is_finite() && low <= high) || period.is_zero() {
        return Err(at(place)("needs low ≤ high and a period above zero".to_owned()));
    }
    Ok(GeneratorSpec { name: raw.name, shape, low, high, period })
}

fn listener(raw: raw::Listener) -> Checked<Listener> {
    let place = format!("listener `{}`", raw.name);
    let bind = |bind: Option<String>| -> Checked<SocketAddr> {
        bind.as_deref().and_then(|text| text.parse().ok()).ok_or_else(|| {
            at(place.clone())("needs bind with an address and a port, such as 127.0.0.1:5020".to_owned())
        })
    };
    let link = match raw.kind.as_str() {
        "tcp" => Link::Tcp(bind(raw.bind)?),
        "rtu-over-tcp" => Link::RtuOverTcp { bind: bind(raw.bind)?, baud: raw.baud, broadcast: raw.broadcast },
        "serial" => Link::Serial {
            path: raw.path.ok_or_else(|| at(place.clone())("needs path, such as /dev/ttyUSB0".to_owned()))?,
            baud: raw.baud.unwrap_or(19_200),
        },
        other => {
            let text = format!("`{other}` is not a kind of listener; choose tcp, rtu-over-tcp or serial");
            return Err(at(place)(text));
        }
    };
    if raw.broadcast && raw.kind != "rtu-over-tcp" {
        return Err(at(place)("broadcast is for kind rtu-over-tcp only".to_owned()));
    }
    if raw.baud.is_some_and(|baud| !(300..=4_000_000).contains(&baud)) || raw.max_connections == Some(0) {
        return Err(at(place)("baud must be 300 to 4000000 and max_connections above 0".to_owned()));
    }
    Ok(Listener { name: raw.name, link, max_connections: raw.max_connections })
}

/// Which signals there are, and which may be written.
struct SignalNames<'a> {
    model: Option<PumpStation>,
    generators: &'a [GeneratorSpec],
}

impl<'a> SignalNames<'a> {
    fn new(plant: &ModelSpec, generators: &'a [GeneratorSpec]) -> Self {
        let model = match plant {
            ModelSpec::None => None,
            ModelSpec::PumpStation(settings) => Some(PumpStation::new(settings.clone())),
        };
        Self { model, generators }
    }

    fn check(&self, name: &str, written: bool) -> Result<(), String> {
        let generator = self.generators.iter().find(|generator| generator.name == name);
        let model = self.model.as_ref().filter(|model| model.read(name).is_some());
        if generator.is_none() && model.is_none() && !TEXT_SIGNALS.contains(&name) {
            return Err(format!("there is no signal `{name}`; `fieldgate-sim --signals` lists them"));
        }
        let writable = generator.is_some_and(|generator| generator.shape == Shape::Constant)
            || model.is_some_and(|model| model.is_writable(name));
        if written && !writable { Err(format!("signal `{name}` cannot be written")) } else { Ok(()) }
    }
}

fn device(raw: raw::Device, listeners: &[Listener], signals: &SignalNames) -> Checked<DeviceSpec> {
    let place = format!("device `{}`", raw.name);
    let listener = listeners.iter().position(|listener| listener.name == raw.listener).ok_or_else(|| {
        at(place.clone())(format!("there is no listener `{}`; add one or correct the name", raw.listener))
    })?;
    let unit = raw.unit.unwrap_or(1);
    if !(1..=247).contains(&unit) {
        return Err(at(place)(format!("unit must be 1 to 247, not {unit}")));
    }
    let faults = Faults {
        delay: raw.delay.map_or(Delay::default(), delay),
        outages: each(&place, raw.outages, outage)?,
        lies: each(&place, raw.lies, lie)?,
    };
    let blocks = each(&place, raw.blocks, block)?;
    let points = raw.points.into_iter().map(|raw| point(&place, raw, signals)).collect::<Checked<Vec<_>>>()?;
    no_overlap(&place, &points)?;
    let raw::Identity { vendor, product, revision, model, serial } = raw.identity;
    let identity = Identity { vendor, product, revision, model, serial };
    Ok(DeviceSpec { name: raw.name, description: raw.description, listener, unit, identity, points, blocks, faults })
}

fn each<R, T>(place: &str, raw: Vec<R>, check: impl Fn(R) -> Result<T, String>) -> Checked<Vec<T>> {
    raw.into_iter().map(check).collect::<Result<_, _>>().map_err(at(place))
}

fn delay(raw: raw::Delay) -> Delay {
    let typical = raw.typical.0;
    let (min, max) = (raw.min.map_or(Duration::ZERO, |span| span.0), raw.max.map_or(typical * 10, |span| span.0));
    Delay { min, typical: typical.max(min), max: max.max(min) }
}

fn exception(code: Option<u8>, default: Exception) -> Result<Exception, String> {
    let known = code.map_or(Some(default), Exception::from_code);
    known.ok_or_else(|| format!("exception code {} is not one of 1, 2, 3, 4, 6, 11", code.unwrap_or(0)))
}

fn outage(raw: raw::Outage) -> Result<Outage, String> {
    let kind = match raw.kind.as_deref().unwrap_or("silent") {
        "silent" => OutageKind::Silent,
        "disconnected" => OutageKind::Disconnected,
        "exception" => OutageKind::Exception(exception(raw.code, Exception::TargetFailed)?),
        other => return Err(format!("`{other}` is not an outage; choose silent, disconnected or exception")),
    };
    let every = raw.every.map(|Span(every)| every);
    if every.is_some_and(|every| every <= raw.lasts.0) {
        return Err("an outage must be over before it comes again: make `every` longer than `lasts`".to_owned());
    }
    Ok(Outage { kind, after: raw.after.0, lasts: raw.lasts.0, every })
}

fn lie(raw: raw::Lie) -> Result<Lie, String> {
    if !(0.0..=1.0).contains(&raw.chance) {
        return Err(format!("the chance of a lie is 0 to 1, not {}", raw.chance));
    }
    let kind = match raw.kind.as_str() {
        "short-data" => LieKind::ShortData,
        "long-data" => LieKind::LongData,
        "wrong-length" => LieKind::WrongLength,
        "wrong-unit" => LieKind::WrongUnit,
        "stale-transaction" => LieKind::StaleTransaction,
        "stale-data" => LieKind::StaleData,
        "wrong-function" => LieKind::WrongFunction,
        "bad-check" => LieKind::BadCheck,
        "garbage" => LieKind::Garbage,
        "truncated" => LieKind::Truncated,
        "twice" => LieKind::Twice,
        "silence" => LieKind::Silence,
        "disconnect" => LieKind::Disconnect,
        "exception" => LieKind::Exception(exception(raw.code, Exception::DeviceFailure)?),
        other => return Err(format!("`{other}` is not a lie")),
    };
    Ok(Lie { kind, chance: raw.chance })
}

fn block(raw: raw::Block) -> Result<Block, String> {
    let (table, address) = parse_address(&raw.at)?;
    if raw.count == 0 || u32::from(address) + u32::from(raw.count) > 0x1_0000 {
        return Err(format!("block `{}`: count must be above 0 and stay within the table", raw.at));
    }
    let fill = match raw.fill.as_deref().unwrap_or("keep") {
        "keep" => Fill::Keep,
        "address" => Fill::Address,
        "count" => Fill::Count,
        other => return Err(format!("block `{}`: `{other}` is not a fill; choose keep, address or count", raw.at)),
    };
    Ok(Block { table, address, count: raw.count, fill })
}

fn point(device: &str, raw: raw::Point, signals: &SignalNames) -> Checked<Point> {
    let place = format!("{device}: point `{}`", raw.name);
    checked_point(raw, signals).map_err(at(place))
}

fn checked_point(raw: raw::Point, signals: &SignalNames) -> Result<Point, String> {
    let (table, address) = parse_address(&raw.at)?;
    let kind = parse_kind(raw.kind.as_deref(), table)?;
    if u32::from(address) + u32::from(kind.items()) > 0x1_0000 {
        return Err("reaches beyond address 65535".to_owned());
    }
    if raw.write && !table.is_writable() {
        return Err(format!("a {} point cannot be written; use coil or holding", table.as_str()));
    }
    let order = raw.order.as_deref().map_or(Some(Order::Abcd), Order::parse);
    let order = order.ok_or("order must be abcd, cdab, badc or dcba")?;
    let (scale, offset) = (raw.scale.unwrap_or(1.0), raw.offset.unwrap_or(0.0));
    if !(scale.is_finite() && scale != 0.0 && offset.is_finite()) {
        return Err("scale must be a number other than 0, offset a number".to_owned());
    }
    let source = match (raw.signal, raw.value) {
        (Some(signal), None) => {
            signals.check(&signal, raw.write)?;
            Source::Signal(signal)
        }
        (None, Some(value)) => Source::Constant(constant(value)),
        _ => return Err("needs either signal or value".to_owned()),
    };
    let format = Format { kind, order, scale, offset };
    Ok(Point { name: raw.name, table, address, format, source, writable: raw.write, unit: raw.unit })
}

fn constant(raw: raw::Constant) -> Signal {
    match raw {
        raw::Constant::Bool(on) => Signal::Bool(on),
        raw::Constant::Count(count) => Signal::Count(count),
        raw::Constant::Number(number) => Signal::Number(number),
        raw::Constant::Text(text) => Signal::Text(text),
    }
}

/// Names are unique, and so are addresses; bits may share a register when they are different bits.
fn no_overlap(device: &str, points: &[Point]) -> Checked<()> {
    unique(&format!("{device}: point"), points.iter().map(|point| point.name.as_str()))?;
    let mut owners: BTreeMap<(Table, u16, u8), &str> = BTreeMap::new();
    for point in points {
        let bits = match point.format.kind {
            Kind::Bits { first, count } => first..first + count,
            _ => 0..16,
        };
        for address in point.address..=point.address + (point.format.kind.items() - 1) {
            for bit in bits.clone() {
                if let Some(other) = owners.insert((point.table, address, bit), &point.name) {
                    let text = format!("shares {} {address} with point `{other}`", point.table.as_str());
                    return Err(at(format!("{device}: point `{}`", point.name))(text));
                }
            }
        }
    }
    Ok(())
}
