//! Reads what device management has to know of a device: its identity, what may be managed here, its clock, its methods.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::DAY;
use super::firmware;
use super::point::CheckedPoint;
use crate::config::checked::DeviceManagement;
use crate::config::reader::Reader;
use crate::config::tree::{Item, Node};
use crate::config::value::{boolean, choice, duration, integer, line, millis, text};
use crate::management::clock::ClockForm;
use crate::management::desired::{Interlock, LimitsOverlay, TimeSettings};
use crate::management::permit::{MethodValue, MethodWrite};
use crate::model::{Access, Tier, Value};

/// What a tier 1 device can delegate.
const FUNCTIONS: &[(&str, &str)] =
    &[("command", "command"), ("config", "config"), ("firmware", "firmware"), ("time", "time")];
const FORMS: &[(&str, Form)] =
    &[("unix-seconds", Form::Seconds), ("unix-milliseconds", Form::Milliseconds), ("fields", Form::Fields)];
/// Most writes of one method, as of one command.
const MAX_WRITES: usize = 32;

#[derive(Clone, Copy)]
enum Form {
    Seconds,
    Milliseconds,
    Fields,
}

/// Everything but what stands with the points.
pub(super) fn read(device: &Reader<'_>, tier: Tier, profile: Option<&str>) -> DeviceManagement {
    // Whoever declares a writable point wants it written.
    let usual = match tier {
        Tier::One => BTreeSet::from(["command"]),
        Tier::Two => FUNCTIONS.iter().map(|(name, _)| *name).collect(),
    };
    let delegated = device.list("delegated", choice(FUNCTIONS)).map(|list| list.into_iter().collect());
    let delegated: BTreeSet<_> = delegated.unwrap_or(usual);
    let firmware = device.table("firmware", "device.firmware").and_then(|r| firmware::read(&r, profile));
    if firmware.is_some() && tier == Tier::One && !delegated.contains("firmware") {
        let text = "is not used: a tier 1 device has to delegate it, delegated = [\"command\", \"firmware\"]";
        device.warn("firmware", text);
    }
    DeviceManagement {
        fingerprint: device.optional("fingerprint", line(1_000)),
        delegated,
        firmware,
        clock: device.table("clock", "device.clock").and_then(|r| clock(&r)),
        time: device.table("time", "device.time").map(|r| time(&r)),
        methods: methods(device),
        ..DeviceManagement::default()
    }
}

/// Points that the clock, methods and interlocks name must be there and be of use.
pub(super) fn check(device: &Reader<'_>, management: &mut DeviceManagement, points: &[CheckedPoint]) {
    let find = |name: &str| points.iter().find(|p| p.model.id.as_str() == name);
    for point in management.clock.iter().flat_map(ClockForm::points) {
        match find(point) {
            Some(known) if known.model.access != Access::Write => {}
            Some(_) => device.error("clock", format!("point `{point}` is written only, so the clock cannot be read")),
            None => device.error("clock", format!("there is no point `{point}`")),
        }
    }
    for (name, writes) in &management.methods {
        for write in writes {
            match find(&write.point) {
                Some(known) if known.model.access != Access::Read => {}
                Some(_) => device.error("methods", format!("method {name}: point `{}` is read only", write.point)),
                None => device.error("methods", format!("method {name}: there is no point `{}`", write.point)),
            }
        }
    }
    for point in points {
        let id = point.model.id.as_str().to_owned();
        if point.critical {
            management.critical.insert(id.clone());
        }
        let Some(interlock) = &point.interlock else { continue };
        match find(&interlock.point) {
            Some(other) if other.model.access != Access::Write => {
                management.interlocks.insert(id, interlock.clone());
            }
            _ => device
                .error("points", format!("interlock of `{id}`: there is no point `{}` that is read", interlock.point)),
        }
    }
}

fn clock(r: &Reader<'_>) -> Option<ClockForm> {
    let form = r.required("form", "form = \"unix-seconds\", \"unix-milliseconds\" or \"fields\"", choice(FORMS));
    let point = r.optional("point", line(64));
    let field = |key| r.optional(key, line(64));
    let fields = [field("year"), field("month"), field("day"), field("hour"), field("minute"), field("second")];
    let year_base = r.or("year_base", 0, |item: &Item| integer(0..=9_000)(item).map(|n| n as i16));
    let utc_offset = r.or("utc_offset", 0, |item: &Item| integer(-1_440..=1_440)(item).map(|n| n as i32));
    let strobe = r.optional("strobe", line(64));
    let point = || {
        if point.is_none() {
            r.context.error(&r.table.place, r.key("point"), "`point` is missing: which point holds the clock");
        }
        point.clone()
    };
    match form? {
        Form::Seconds => Some(ClockForm::UnixSeconds { point: point()? }),
        Form::Milliseconds => Some(ClockForm::UnixMilliseconds { point: point()? }),
        Form::Fields => {
            let [Some(year), Some(month), Some(day), Some(hour), Some(minute), Some(second)] = fields else {
                let text = "needs year, month, day, hour, minute and second: the points that hold them";
                r.error("form", text);
                return None;
            };
            Some(ClockForm::Fields { year, month, day, hour, minute, second, year_base, utc_offset, strobe })
        }
    }
}

fn time(r: &Reader<'_>) -> TimeSettings {
    let usual = TimeSettings::default();
    let time = TimeSettings {
        set: r.or("set", usual.set, boolean),
        every: r.or("every", usual.every, duration(Duration::from_secs(60)..=Duration::from_secs(7 * 86_400))),
        warn: r.or("warn", usual.warn, millis(100, DAY)),
        alarm: r.or("alarm", usual.alarm, millis(100, 365 * DAY)),
    };
    if time.warn > time.alarm {
        r.error("warn", "is above `alarm`");
    }
    time
}

fn methods(device: &Reader<'_>) -> BTreeMap<String, Vec<MethodWrite>> {
    let read = |(name, place, item): (&str, _, &Item)| {
        let Node::Table(table) = &item.node else {
            let text = format!("write [[methods.{name}.writes]] before each write");
            device.context.error(&item.place, device.key("methods"), text);
            return None;
        };
        let r = Reader::new(device.context, table, "method", &device.key(&format!("methods.{name}")));
        let writes: Vec<_> = r.tables("writes", "method.write").iter().filter_map(method_write).collect();
        if writes.is_empty() || writes.len() > MAX_WRITES || name.is_empty() || name.len() > 64 {
            device.context.error(place, r.key("writes"), format!("a method has 1 to {MAX_WRITES} writes"));
            return None;
        }
        Some((name.to_owned(), writes))
    };
    device.names("methods").into_iter().filter_map(read).collect()
}

fn method_write(r: &Reader<'_>) -> Option<MethodWrite> {
    let point = r.required("point", "point = \"setpoint\"", line(64));
    let (value, argument) = (r.optional("value", value), r.optional("argument", line(64)));
    let value = match (value, argument) {
        (Some(value), None) => MethodValue::Fixed(value),
        (None, Some(argument)) => MethodValue::Argument(argument),
        _ => {
            let text = "needs exactly one of `value` (always this) and `argument` (the name of an argument)";
            r.context.error(&r.table.place, r.key("value"), text);
            return None;
        }
    };
    Some(MethodWrite { point: point?, value })
}

fn value(item: &Item) -> Result<Value, String> {
    match &item.node {
        Node::Bool(b) => Ok(Value::Bool(*b)),
        Node::Integer(i) => Ok(Value::Int(*i)),
        Node::Float(f) if f.is_finite() => Ok(Value::Double(*f)),
        _ => text(item).map(|text| Value::Text(text.into())),
    }
}

/// `level >= 2`, `level <= 5`, `level 2..5` or `run = true`.
pub(super) fn interlock(item: &Item) -> Result<Interlock, String> {
    let text = text(item)?;
    let help = || {
        format!("\"{text}\" is no condition; write \"level >= 2\", \"level <= 5\", \"level 2..5\" or \"run = true\"")
    };
    let number = |text: &str| text.trim().parse::<f64>().ok().filter(|n| n.is_finite());
    let (point, rest) = text.trim().split_once(' ').ok_or_else(help)?;
    let rest = rest.trim();
    let range = |min, max| Interlock { point: point.to_owned(), equals: None, range: LimitsOverlay { min, max } };
    if let Some(min) = rest.strip_prefix(">=") {
        return Ok(range(Some(number(min).ok_or_else(help)?), None));
    }
    if let Some(max) = rest.strip_prefix("<=") {
        return Ok(range(None, Some(number(max).ok_or_else(help)?)));
    }
    if let Some(equal) = rest.strip_prefix("=") {
        let wanted = match equal.trim() {
            "" => return Err(help()),
            "true" => true.into(),
            "false" => false.into(),
            other => number(other).map_or_else(|| other.into(), serde_json::Value::from),
        };
        let nothing = LimitsOverlay::default();
        return Ok(Interlock { point: point.to_owned(), equals: Some(wanted), range: nothing });
    }
    match rest.split_once("..").map(|(low, high)| (number(low), number(high))) {
        Some((Some(low), Some(high))) if low <= high => Ok(range(Some(low), Some(high))),
        _ => Err(help()),
    }
}

/// Whether writes to a point need two steps.
pub(super) fn critical(r: &Reader<'_>, access: Access) -> bool {
    let critical = r.or("critical", false, boolean);
    if critical && access == Access::Read {
        r.error("critical", "is for points that are written; this one is read only");
    }
    critical
}
