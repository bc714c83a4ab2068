//! Reads a desired document into checked types; every problem with its JSON pointer.
//!
//! Keys of a device: `enabled`, `rate`, `deadband`, `heartbeat`, `on_change`, `stale_after`, `groups.{g}.rate`,
//! `points.{p}.{enabled, rate, deadband, heartbeat, on_change, access, limits.{min, max}, expect.{min, max}, critical,
//! interlock.{point, equals | min | max}}`, `time.{set, every, warn, alarm}`, `observability.owner`,
//! `commands.{rate, per}`. Keys of the gateway are those that can change while it runs: `log.level`, `history`,
//! `auto_approve_declared`; of others the refusal says where they are set. Secrets have no place here.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value as Json};

use super::profile::{PointProfile, Profile};
use crate::management::request::FieldError;
use crate::model::{Access, Limits};

const DAY_MS: u64 = 86_400_000;
/// Errors after these are not worth reading.
const MAX_ERRORS: usize = 100;

/// Who sets up and pays for OpenTelemetry of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Owner {
    /// The gateway's own export, where the user configured one, covers the device.
    #[default]
    Gateway,
    /// The device exports by itself; the gateway exports nothing of it.
    Device,
    /// Nobody exports anything.
    None,
}

/// Smallest change that is reported.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum DeadbandOverlay {
    /// Engineering units.
    Absolute(f64),
    /// Percent of the last reported value.
    Percent(f64),
}

/// Range of values.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct LimitsOverlay {
    /// Smallest.
    pub min: Option<f64>,
    /// Largest.
    pub max: Option<f64>,
}

/// A write is allowed only when another point of the device has a value.
#[derive(Debug, Clone, PartialEq)]
pub struct Interlock {
    /// The other point.
    pub point: String,
    /// The exact value (boolean, number or text).
    pub equals: Option<Json>,
    /// Or a range.
    pub range: LimitsOverlay,
}

/// Overlay of one point.
#[derive(Debug, Clone, PartialEq, Default)]
#[allow(missing_docs, reason = "the keys of the document, described in the module")]
pub struct PointOverlay {
    pub enabled: Option<bool>,
    pub rate: Option<Duration>,
    pub deadband: Option<DeadbandOverlay>,
    pub heartbeat: Option<Duration>,
    pub on_change: Option<bool>,
    pub access: Option<Access>,
    pub limits: Option<LimitsOverlay>,
    pub expect: Option<LimitsOverlay>,
    pub critical: Option<bool>,
    pub interlock: Option<Interlock>,
}

/// How the clock of a device is looked after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeSettings {
    /// Set the clock when it is off by more than `warn`; else only look.
    pub set: bool,
    /// Time between two readings, 1 min to 7 d.
    pub every: Duration,
    /// Offset that is shown as drifting.
    pub warn: Duration,
    /// Offset that raises an alarm.
    pub alarm: Duration,
}

impl Default for TimeSettings {
    fn default() -> Self {
        Self {
            set: false,
            every: Duration::from_secs(3600),
            warn: Duration::from_secs(2),
            alarm: Duration::from_secs(60),
        }
    }
}

/// Most writes in a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommandLimits {
    /// Writes, 1 to 1,000.
    pub rate: u32,
    /// In this time.
    pub per: Duration,
}

/// Overlay of a device: every key that is `None` is the file's.
#[derive(Debug, Clone, PartialEq, Default)]
#[allow(missing_docs, reason = "the keys of the document, described in the module")]
pub struct DeviceOverlay {
    pub enabled: Option<bool>,
    pub rate: Option<Duration>,
    pub deadband: Option<DeadbandOverlay>,
    pub heartbeat: Option<Duration>,
    pub on_change: Option<bool>,
    pub stale_after: Option<Duration>,
    pub groups: BTreeMap<String, Duration>,
    pub points: BTreeMap<String, PointOverlay>,
    pub time: Option<TimeSettings>,
    pub observability: Option<Owner>,
    pub commands: Option<CommandLimits>,
}

/// Overlay of the gateway itself.
#[derive(Debug, Clone, PartialEq, Default)]
#[allow(missing_docs, reason = "the keys of the document, described in the module")]
pub struct GatewayOverlay {
    pub log_level: Option<String>,
    pub history: Option<usize>,
    pub auto_approve_declared: Option<bool>,
}

/// Reads `1 s`, `500 ms`, `1.5 s`, `2 min`, `1 h`, `1 d`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').filter(|&i| i > 0)?;
    let number: f64 = text[..digits].parse().ok()?;
    let unit = match text[digits..].trim() {
        "ms" => 1,
        "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => DAY_MS,
        _ => return None,
    };
    let millis = number * unit as f64;
    (millis < 1e15).then(|| Duration::from_millis(millis.round() as u64))
}

/// One object of the document, with the errors found so far.
struct Part<'a, 'e> {
    path: String,
    map: &'a Map<String, Json>,
    errors: &'e mut Vec<FieldError>,
}

/// Escapes a key for a JSON pointer (RFC 6901).
fn pointer(path: &str, key: &str) -> String {
    format!("{path}/{}", key.replace('~', "~0").replace('/', "~1"))
}

fn fail(errors: &mut Vec<FieldError>, path: &str, code: &str, message: impl Into<String>) {
    if errors.len() < MAX_ERRORS {
        errors.push(FieldError::new(path, code, message));
    }
}

impl<'a> Part<'a, '_> {
    fn fail(&mut self, key: &str, code: &str, message: impl Into<String>) {
        fail(self.errors, &pointer(&self.path, key), code, message);
    }

    /// Refuses every key that is not in `known`.
    fn only(&mut self, known: &[&str]) {
        let unknown: Vec<&str> = self.map.keys().map(String::as_str).filter(|k| !known.contains(k)).collect();
        for key in unknown {
            let shown: String = key.chars().take(64).collect();
            self.fail(&shown, "unknown-key", format!("is not known here; known: {}", known.join(", ")));
        }
    }

    /// As [`Self::only`], for the gateway: what its files hold beside these counts from a reload or a start.
    fn only_here(&mut self, known: &[&str]) {
        let others: Vec<String> = self.map.keys().filter(|k| !known.contains(&k.as_str())).cloned().collect();
        for key in others {
            let shown: String = key.chars().take(64).collect();
            let text = format!(
                "cannot be changed here; known: {}. The rest stands in fieldgate.toml: change it \
                 there; the gateway reads it again, and health says what waits for a restart",
                known.join(", ")
            );
            self.fail(&shown, "not-permitted", text);
        }
    }

    fn bool(&mut self, key: &str) -> Option<bool> {
        match self.map.get(key)? {
            Json::Bool(b) => Some(*b),
            _ => {
                self.fail(key, "wrong-type", "must be true or false");
                None
            }
        }
    }

    fn number(&mut self, key: &str) -> Option<f64> {
        match self.map.get(key)?.as_f64().filter(|n| n.is_finite()) {
            Some(n) => Some(n),
            None => {
                self.fail(key, "wrong-type", "must be a number");
                None
            }
        }
    }

    fn whole(&mut self, key: &str, range: std::ops::RangeInclusive<u32>) -> Option<u32> {
        let number = self.number(key)?;
        let (low, high) = (*range.start(), *range.end());
        // Numbers of a protobuf Struct are doubles: 5 comes as 5.0.
        if number.fract() == 0.0 && number >= f64::from(low) && number <= f64::from(high) {
            return Some(number as u32);
        }
        self.fail(key, "out-of-range", format!("must be a whole number from {low} to {high}"));
        None
    }

    fn text(&mut self, key: &str) -> Option<&'a str> {
        match self.map.get(key)? {
            Json::String(s) => Some(s),
            _ => {
                self.fail(key, "wrong-type", "must be a text");
                None
            }
        }
    }

    fn duration(&mut self, key: &str, low_ms: u64, high_ms: u64) -> Option<Duration> {
        let text = self.text(key)?;
        let Some(duration) = parse_duration(text) else {
            self.fail(
                key,
                "wrong-type",
                "must be a duration such as \"500 ms\", \"1 s\", \"2 min\", \"1 h\" or \"1 d\"",
            );
            return None;
        };
        let range = Duration::from_millis(low_ms)..=Duration::from_millis(high_ms);
        if range.contains(&duration) {
            return Some(duration);
        }
        self.fail(key, "out-of-range", format!("must be from {low_ms} ms to {} s", high_ms / 1000));
        None
    }

    fn choice<T: Copy>(&mut self, key: &str, choices: &[(&str, T)]) -> Option<T> {
        let text = self.text(key)?;
        let found = choices.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
        if found.is_none() {
            let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
            self.fail(key, "out-of-range", format!("must be one of {}", names.join(", ")));
        }
        found
    }

    fn part<R>(&mut self, key: &str, read: impl FnOnce(&mut Part<'a, '_>) -> R) -> Option<R> {
        match self.map.get(key)? {
            Json::Object(map) => {
                Some(read(&mut Part { path: pointer(&self.path, key), map, errors: &mut *self.errors }))
            }
            _ => {
                self.fail(key, "wrong-type", "must be an object");
                None
            }
        }
    }

    fn limits(&mut self, key: &str) -> Option<LimitsOverlay> {
        let limits = self.part(key, |part| {
            part.only(&["min", "max"]);
            LimitsOverlay { min: part.number("min"), max: part.number("max") }
        })?;
        if matches!((limits.min, limits.max), (Some(min), Some(max)) if min > max) {
            self.fail(key, "out-of-range", "min is above max");
        }
        Some(limits)
    }

    fn deadband(&mut self, key: &str) -> Option<DeadbandOverlay> {
        let (value, percent) = match self.map.get(key)? {
            Json::String(text) => (text.trim().strip_suffix('%').and_then(|n| n.trim().parse::<f64>().ok()), true),
            other => (other.as_f64(), false),
        };
        match (value, percent) {
            (Some(v), true) if (0.0..=100.0).contains(&v) => Some(DeadbandOverlay::Percent(v)),
            (Some(v), false) if v.is_finite() && v >= 0.0 => Some(DeadbandOverlay::Absolute(v)),
            _ => {
                self.fail(key, "wrong-type", "must be a number from 0 on, or a percentage such as \"2 %\"");
                None
            }
        }
    }
}

fn root<R>(settings: &Json, read: impl FnOnce(&mut Part<'_, '_>) -> R) -> Result<R, Vec<FieldError>> {
    let mut errors = Vec::new();
    let Json::Object(map) = settings else {
        return Err(vec![FieldError::new("/settings", "wrong-type", "must be an object")]);
    };
    let value = read(&mut Part { path: "/settings".to_owned(), map, errors: &mut errors });
    if errors.is_empty() { Ok(value) } else { Err(errors) }
}

/// Reads the settings of a device within the frame of its profile.
///
/// # Errors
/// Every problem (the first 100).
pub fn parse_device(settings: &Json, profile: &Profile) -> Result<DeviceOverlay, Vec<FieldError>> {
    root(settings, |part| {
        part.only(&[
            "enabled",
            "rate",
            "deadband",
            "heartbeat",
            "on_change",
            "stale_after",
            "groups",
            "points",
            "time",
            "observability",
            "commands",
        ]);
        DeviceOverlay {
            enabled: part.bool("enabled"),
            rate: part.duration("rate", 50, DAY_MS),
            deadband: part.deadband("deadband"),
            heartbeat: part.duration("heartbeat", 100, 7 * DAY_MS),
            on_change: part.bool("on_change"),
            stale_after: part.duration("stale_after", 100, 7 * DAY_MS),
            groups: part.part("groups", |groups| read_groups(groups, profile)).unwrap_or_default(),
            points: part.part("points", |points| read_points(points, profile)).unwrap_or_default(),
            time: part.part("time", read_time),
            observability: part
                .part("observability", |part| {
                    part.only(&["owner"]);
                    part.choice(
                        "owner",
                        &[("gateway", Owner::Gateway), ("device", Owner::Device), ("none", Owner::None)],
                    )
                })
                .flatten(),
            commands: part
                .part("commands", |part| {
                    part.only(&["rate", "per"]);
                    let rate = part.whole("rate", 1..=1_000);
                    let per = part.duration("per", 100, 3_600_000).or(Some(Duration::from_secs(1)));
                    Some(CommandLimits { rate: rate?, per: per? })
                })
                .flatten(),
        }
    })
}

fn read_groups(groups: &mut Part<'_, '_>, profile: &Profile) -> BTreeMap<String, Duration> {
    let mut read = BTreeMap::new();
    for name in groups.map.keys() {
        if !profile.groups.contains(name) {
            groups.fail(name, "unknown-group", "the device has no rate group of this name");
            continue;
        }
        let rate = groups.part(name, |group| {
            group.only(&["rate"]);
            group.duration("rate", 50, DAY_MS)
        });
        if let Some(rate) = rate.flatten() {
            read.insert(name.clone(), rate);
        }
    }
    read
}

fn read_points(points: &mut Part<'_, '_>, profile: &Profile) -> BTreeMap<String, PointOverlay> {
    let mut read = BTreeMap::new();
    for name in points.map.keys() {
        let Some(known) = profile.points.get(name) else {
            let shown: String = name.chars().take(64).collect();
            points.fail(&shown, "unknown-point", "the device has no point of this name");
            continue;
        };
        if let Some(overlay) = points.part(name, |point| read_point(point, known, profile)) {
            read.insert(name.clone(), overlay);
        }
    }
    read
}

fn read_point(part: &mut Part<'_, '_>, known: &PointProfile, profile: &Profile) -> PointOverlay {
    part.only(&[
        "enabled",
        "rate",
        "deadband",
        "heartbeat",
        "on_change",
        "access",
        "limits",
        "expect",
        "critical",
        "interlock",
    ]);
    let overlay = PointOverlay {
        enabled: part.bool("enabled"),
        rate: part.duration("rate", 50, DAY_MS),
        deadband: part.deadband("deadband"),
        heartbeat: part.duration("heartbeat", 100, 7 * DAY_MS),
        on_change: part.bool("on_change"),
        access: part
            .choice("access", &[("read", Access::Read), ("read-write", Access::ReadWrite), ("write", Access::Write)]),
        limits: part.limits("limits"),
        expect: part.limits("expect"),
        critical: part.bool("critical"),
        interlock: part.part("interlock", |part| read_interlock(part, profile)).flatten(),
    };
    if overlay.access.is_some_and(|wanted| !within(wanted, known.max_access)) {
        part.fail("access", "not-permitted", "the device's file does not permit this; change it there");
    }
    if let Some(limits) = overlay.limits {
        check_limits(part, limits, known.limits);
    }
    overlay
}

fn within(wanted: Access, most: Access) -> bool {
    wanted == Access::Read || most == Access::ReadWrite || wanted == most
}

fn check_limits(part: &mut Part<'_, '_>, wanted: LimitsOverlay, file: Option<Limits>) {
    let Some(file) = file else { return };
    let wide = wanted.min.is_some_and(|m| m < file.min) || wanted.max.is_some_and(|m| m > file.max);
    let outside = wanted.min.is_some_and(|m| m > file.max) || wanted.max.is_some_and(|m| m < file.min);
    if wide || outside {
        let text = format!("must lie within the file's limits, {} to {}", file.min, file.max);
        part.fail("limits", "not-permitted", text);
    }
}

fn read_interlock(part: &mut Part<'_, '_>, profile: &Profile) -> Option<Interlock> {
    part.only(&["point", "equals", "min", "max"]);
    let point = part.text("point")?;
    if !profile.points.get(point).is_some_and(|p| p.polled) {
        part.fail("point", "unknown-point", "must name a polled point of the same device");
    }
    let equals = part.map.get("equals").cloned();
    if equals.as_ref().is_some_and(|v| matches!(v, Json::Null | Json::Array(_) | Json::Object(_))) {
        part.fail("equals", "wrong-type", "must be true, false, a number or a text");
    }
    let range = LimitsOverlay { min: part.number("min"), max: part.number("max") };
    if equals.is_some() == (range != LimitsOverlay::default()) {
        part.fail("point", "missing", "an interlock needs either `equals`, or `min` and `max`");
    }
    Some(Interlock { point: point.to_owned(), equals, range })
}

fn read_time(part: &mut Part<'_, '_>) -> TimeSettings {
    part.only(&["set", "every", "warn", "alarm"]);
    let usual = TimeSettings::default();
    let time = TimeSettings {
        set: part.bool("set").unwrap_or(usual.set),
        every: part.duration("every", 60_000, 7 * DAY_MS).unwrap_or(usual.every),
        warn: part.duration("warn", 100, DAY_MS).unwrap_or(usual.warn),
        alarm: part.duration("alarm", 100, 365 * DAY_MS).unwrap_or(usual.alarm),
    };
    if time.warn > time.alarm {
        part.fail("warn", "out-of-range", "is above `alarm`");
    }
    time
}

/// Reads the settings of the gateway itself.
///
/// # Errors
/// Every problem (the first 100).
pub fn parse_gateway(settings: &Json) -> Result<GatewayOverlay, Vec<FieldError>> {
    root(settings, |part| {
        part.only_here(&["log", "history", "auto_approve_declared"]);
        let level = part.part("log", |part| {
            part.only_here(&["level"]);
            part.choice("level", &["error", "warn", "info", "debug", "trace"].map(|l| (l, l))).map(str::to_owned)
        });
        GatewayOverlay {
            log_level: level.flatten(),
            history: part.whole("history", 2..=100).map(|n| n as usize),
            auto_approve_declared: part.bool("auto_approve_declared"),
        }
    })
}
