//! Rules for commands beyond access, type and limits: interlocks, two steps for critical points, a rate, methods.
//!
//! - An **interlock** permits a write only while another point of the device has a good value that fits. It is checked when
//!   the command arrives and again right before it is written.
//! - A **critical** point needs two commands: the first is answered `confirmation-required` with a token, valid for 30 s,
//!   once, for the same requester and the same writes; the second carries the token and a new correlation id.
//! - A **method** of the device's type stands for a list of writes, with arguments.
//!
//! Limits: 1,024 open confirmations; the oldest go. They are not kept across a restart: the first step is asked again.
//! Pure but for the random token.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use prost::Message;
use serde_json::Value as Json;

use super::desired::{CommandLimits, DeviceOverlay, Interlock};
use super::lifecycle::{hex, random, same_secret, sha256_hex};
use crate::contract::{json_value, v1};
use crate::model::{DeviceId, Stamp, Value};

/// Life of a confirmation token.
const CONFIRM_NS: u64 = 30_000_000_000;
const MAX_OPEN: usize = 1_024;

/// One write of a method.
#[derive(Debug, Clone, PartialEq)]
pub struct MethodWrite {
    /// The point.
    pub point: String,
    /// A fixed value, or the name of an argument.
    pub value: MethodValue,
}

/// Where the value of a method's write comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum MethodValue {
    /// Always this.
    Fixed(Value),
    /// The argument of this name.
    Argument(String),
}

/// Rules of one device.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CommandRules {
    /// Why nothing may be written at all; `None` for a device in service.
    pub closed: Option<String>,
    /// Points that need two steps.
    pub critical: BTreeSet<String>,
    /// Interlocks by the point that is written.
    pub interlocks: BTreeMap<String, Interlock>,
    /// Most writes in a time.
    pub rate: Option<CommandLimits>,
    /// Methods by name.
    pub methods: BTreeMap<String, Vec<MethodWrite>>,
}

impl CommandRules {
    /// The rules in a configuration, and the methods of the device's type.
    pub fn new(overlay: &DeviceOverlay, methods: BTreeMap<String, Vec<MethodWrite>>) -> Self {
        let points = overlay.points.iter();
        Self {
            closed: None,
            critical: points.clone().filter(|(_, p)| p.critical == Some(true)).map(|(name, _)| name.clone()).collect(),
            interlocks: points.filter_map(|(name, p)| Some((name.clone(), p.interlock.clone()?))).collect(),
            rate: overlay.commands,
            methods,
        }
    }
}

/// Last good values of points, for interlocks.
pub trait PointValues: Send + Sync + 'static {
    /// The value of a point when it is good and not stale.
    fn good(&self, device: &DeviceId, point: &str) -> Option<Value>;
}

/// Why a command is not permitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied {
    /// Stable code: `not-in-service`, `interlocked`, `confirmation-required`, `confirmation-invalid`, `rate-limited`, `unknown-method`,
    /// `malformed`.
    pub code: &'static str,
    /// For people.
    pub message: String,
    /// The write it is about.
    pub write: Option<usize>,
    /// With `confirmation-required`: the token.
    pub confirmation: Option<String>,
}

fn denied(code: &'static str, message: impl Into<String>) -> Denied {
    Denied { code, message: message.into(), write: None, confirmation: None }
}

struct Open {
    order: u64,
    secret: String,
    expires_ns: u64,
}

/// The rules of all devices and the confirmations that are open.
#[derive(Default)]
pub struct Permits {
    rules: BTreeMap<DeviceId, CommandRules>,
    values: Option<Arc<dyn PointValues>>,
    /// By digest of requester, device and writes.
    open: BTreeMap<String, Open>,
    next: u64,
    /// Per device: writes left and when they were counted.
    buckets: BTreeMap<DeviceId, (f64, u64)>,
}

impl fmt::Debug for Permits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permits").field("rules", &self.rules).field("open", &self.open.len()).finish_non_exhaustive()
    }
}

impl Permits {
    /// Other rules for these devices from now on; those of others and open confirmations stay.
    pub fn set(&mut self, rules: BTreeMap<DeviceId, CommandRules>, values: Arc<dyn PointValues>) {
        self.rules.extend(rules);
        self.values = Some(values);
    }

    /// Forgets devices that are gone.
    pub fn keep(&mut self, is_known: impl Fn(&DeviceId) -> bool) {
        self.buckets.retain(|id, _| is_known(id));
        self.rules.retain(|id, _| is_known(id));
    }

    /// The writes that a command stands for: its own, or those of its method.
    ///
    /// # Errors
    /// [`Denied`] for a device out of service, an unknown method or arguments that do not fit it.
    pub fn expand(&self, device: &DeviceId, command: &v1::Command) -> Result<Vec<v1::Write>, Denied> {
        self.in_service(device)?;
        if command.method.is_empty() {
            return match command.arguments.is_empty() {
                true => Ok(command.writes.clone()),
                false => Err(denied("malformed", "`arguments` without a `method`")),
            };
        }
        let name: String = command.method.chars().filter(|c| !c.is_control()).take(64).collect();
        let Some(method) = self.rules.get(device).and_then(|r| r.methods.get(&command.method)) else {
            return Err(denied("unknown-method", format!("{device} has no method \"{name}\"; see its capabilities")));
        };
        if !command.writes.is_empty() {
            return Err(denied("malformed", "give `writes` or a `method`, not both"));
        }
        let wanted: BTreeSet<&str> = method
            .iter()
            .filter_map(|w| match &w.value {
                MethodValue::Argument(name) => Some(name.as_str()),
                MethodValue::Fixed(_) => None,
            })
            .collect();
        let given: BTreeSet<&str> = command.arguments.iter().map(|a| a.name.as_str()).collect();
        if wanted != given || given.len() != command.arguments.len() {
            let names: Vec<_> = wanted.into_iter().collect();
            return Err(denied(
                "malformed",
                format!("method {name} takes exactly these arguments: [{}]", names.join(", ")),
            ));
        }
        let value = |from: &MethodValue| match from {
            MethodValue::Fixed(value) => Some(json_value(value)),
            MethodValue::Argument(name) => {
                command.arguments.iter().find(|a| a.name == *name).and_then(|a| a.value.clone())
            }
        };
        Ok(method.iter().map(|w| v1::Write { point: w.point.clone(), value: value(&w.value) }).collect())
    }

    /// Whether writes may be done now by this requester. Uses up a confirmation and a part of the rate.
    ///
    /// # Errors
    /// [`Denied`]; nothing was written.
    pub fn check(
        &mut self,
        now: Stamp,
        device: &DeviceId,
        actor: &str,
        writes: &[v1::Write],
        confirmation: &str,
    ) -> Result<(), Denied> {
        self.interlocks(device, writes)?;
        self.confirmed(now, device, actor, writes, confirmation)?;
        self.rate(now, device, writes.len())
    }

    /// Whether the device is in service and the interlocks permit the writes, right before they are done.
    ///
    /// # Errors
    /// [`Denied`] `not-in-service` or `interlocked`.
    pub fn interlocks(&self, device: &DeviceId, writes: &[v1::Write]) -> Result<(), Denied> {
        let Some(rules) = self.rules.get(device) else { return Ok(()) };
        self.in_service(device)?;
        for (index, write) in writes.iter().enumerate() {
            let Some(interlock) = rules.interlocks.get(&write.point) else { continue };
            let now = self.values.as_ref().and_then(|v| v.good(device, &interlock.point));
            if now.as_ref().is_some_and(|value| is_met(interlock, value)) {
                continue;
            }
            let is = now.map_or_else(|| "has no good value".to_owned(), |v| format!("is {v}"));
            let text =
                format!("{} may be written only while {} {}; it {is}", write.point, interlock.point, wish(interlock));
            return Err(Denied { write: Some(index), ..denied("interlocked", text) });
        }
        Ok(())
    }

    fn in_service(&self, device: &DeviceId) -> Result<(), Denied> {
        match self.rules.get(device).and_then(|rules| rules.closed.clone()) {
            Some(why) => Err(denied("not-in-service", why)),
            None => Ok(()),
        }
    }

    fn confirmed(
        &mut self,
        now: Stamp,
        device: &DeviceId,
        actor: &str,
        writes: &[v1::Write],
        confirmation: &str,
    ) -> Result<(), Denied> {
        let critical = |w: &v1::Write| self.rules.get(device).is_some_and(|r| r.critical.contains(&w.point));
        let Some(index) = writes.iter().position(critical) else { return Ok(()) };
        self.open.retain(|_, open| open.expires_ns > now.mono_ns);
        let key = digest(device, actor, writes);
        if confirmation.is_empty() {
            let secret = random::<12>().map(|octets| hex(&octets)).map_err(|r| denied("unavailable", r.message))?;
            self.next += 1;
            let expires_ns = now.mono_ns.saturating_add(CONFIRM_NS);
            self.open.insert(key, Open { order: self.next, secret: secret.clone(), expires_ns });
            if self.open.len() > MAX_OPEN
                && let Some(oldest) = self.open.iter().min_by_key(|(_, o)| o.order).map(|(key, _)| key.clone())
            {
                self.open.remove(&oldest);
            }
            let text = format!(
                "{} is critical: send the same writes again within 30 s, with a new correlation id and this confirmation",
                writes[index].point
            );
            let confirmation = Some(secret);
            return Err(Denied { write: Some(index), confirmation, ..denied("confirmation-required", text) });
        }
        // A wrong token also ends the right one: guessing costs the first step again.
        match self.open.remove(&key) {
            Some(open) if same_secret(&open.secret, confirmation) => Ok(()),
            _ => Err(denied("confirmation-invalid", "the confirmation is unknown, used, expired, or for other writes")),
        }
    }

    fn rate(&mut self, now: Stamp, device: &DeviceId, writes: usize) -> Result<(), Denied> {
        let Some(limit) = self.rules.get(device).and_then(|r| r.rate) else { return Ok(()) };
        let full = f64::from(limit.rate);
        let (left, at) = self.buckets.entry(device.clone()).or_insert((full, now.mono_ns));
        let seconds = now.mono_ns.saturating_sub(*at) as f64 / 1e9;
        *left = (*left + full * seconds / limit.per.as_secs_f64()).min(full);
        *at = now.mono_ns;
        if *left < writes as f64 {
            let text = format!("{device} takes {} writes in {:?}; send this one again later", limit.rate, limit.per);
            return Err(denied("rate-limited", text));
        }
        *left -= writes as f64;
        Ok(())
    }
}

fn digest(device: &DeviceId, actor: &str, writes: &[v1::Write]) -> String {
    let mut octets = format!("{device}\n{actor}\n").into_bytes();
    for write in writes {
        octets.extend(write.encode_length_delimited_to_vec());
    }
    sha256_hex(&octets)
}

fn is_met(interlock: &Interlock, value: &Value) -> bool {
    if let Some(wanted) = &interlock.equals {
        return match (wanted, value) {
            (Json::Bool(wanted), Value::Bool(is)) => wanted == is,
            (Json::Bool(wanted), other) => other.as_f64() == Some(f64::from(u8::from(*wanted))),
            (Json::Number(wanted), other) => wanted.as_f64() == other.as_f64(),
            (Json::String(wanted), Value::Text(is)) => **wanted == **is,
            _ => false,
        };
    }
    let above = |number: f64| interlock.range.min.is_none_or(|m| number >= m);
    let below = |number: f64| interlock.range.max.is_none_or(|m| number <= m);
    value.as_f64().is_some_and(|number| above(number) && below(number))
}

fn wish(interlock: &Interlock) -> String {
    match (&interlock.equals, interlock.range.min, interlock.range.max) {
        (Some(value), ..) => format!("is {value}"),
        (None, Some(min), Some(max)) => format!("is from {min} to {max}"),
        (None, Some(min), None) => format!("is at least {min}"),
        (None, None, max) => format!("is at most {}", max.unwrap_or(f64::INFINITY)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::management::desired::LimitsOverlay;
    use crate::platform::clock::{Clock, ManualClock};
    use std::sync::Mutex;
    use std::time::Duration;

    #[derive(Default)]
    struct Fixed(Mutex<Option<Value>>);

    impl PointValues for Arc<Fixed> {
        fn good(&self, _: &DeviceId, _: &str) -> Option<Value> {
            self.0.lock().unwrap().clone()
        }
    }

    fn pump() -> DeviceId {
        DeviceId::new("pump").unwrap()
    }

    fn writes(point: &str, value: i64) -> Vec<v1::Write> {
        vec![v1::Write { point: point.to_owned(), value: Some(json_value(&Value::Int(value))) }]
    }

    fn permits(rules: CommandRules) -> (Permits, Arc<Fixed>) {
        let values = Arc::new(Fixed::default());
        let mut permits = Permits::default();
        permits.set(BTreeMap::from([(pump(), rules)]), Arc::new(values.clone()));
        (permits, values)
    }

    #[test]
    fn a_write_is_interlocked_unless_the_other_point_is_good_and_fits() {
        let range = LimitsOverlay { min: Some(2.0), max: None };
        let interlock = Interlock { point: "level".into(), equals: None, range };
        let rules = CommandRules { interlocks: BTreeMap::from([("go".into(), interlock)]), ..CommandRules::default() };
        let (mut permits, values) = permits(rules);
        let now = ManualClock::at(0).now();
        let mut check = |value: Option<Value>| {
            *values.0.lock().unwrap() = value;
            permits.check(now, &pump(), "anna", &writes("go", 1), "").map_err(|d| d.code)
        };
        assert_eq!(check(None), Err("interlocked"));
        assert_eq!(check(Some(Value::Double(1.9))), Err("interlocked"));
        assert_eq!(check(Some(Value::Double(2.0))), Ok(()));
    }

    #[test]
    fn a_critical_write_needs_the_token_of_the_same_requester_and_writes_once_and_in_time() {
        let rules = CommandRules { critical: BTreeSet::from(["trip".to_owned()]), ..CommandRules::default() };
        let (mut permits, _) = permits(rules);
        let clock = ManualClock::at(0);
        let first = |permits: &mut Permits| {
            let denied = permits.check(clock.now(), &pump(), "anna", &writes("trip", 1), "").unwrap_err();
            assert_eq!(denied.code, "confirmation-required");
            denied.confirmation.unwrap()
        };
        let second = |permits: &mut Permits, who: &str, value: i64, token: &str| {
            permits.check(clock.now(), &pump(), who, &writes("trip", value), token).map_err(|d| d.code)
        };
        let token = first(&mut permits);
        assert_eq!(second(&mut permits, "eve", 1, &token), Err("confirmation-invalid"));
        assert_eq!(second(&mut permits, "anna", 2, &token), Err("confirmation-invalid"));
        assert_eq!(second(&mut permits, "anna", 1, &token), Ok(()));
        assert_eq!(second(&mut permits, "anna", 1, &token), Err("confirmation-invalid"), "once");
        let token = first(&mut permits);
        clock.advance(Duration::from_secs(31));
        assert_eq!(second(&mut permits, "anna", 1, &token), Err("confirmation-invalid"), "in time");
        let token = first(&mut permits);
        assert_eq!(second(&mut permits, "anna", 1, "guess"), Err("confirmation-invalid"));
        assert_eq!(second(&mut permits, "anna", 1, &token), Err("confirmation-invalid"), "no second guess");
        for value in 0..5_000 {
            let _ = permits.check(clock.now(), &pump(), "anna", &writes("trip", value), "");
        }
        assert_eq!(permits.open.len(), MAX_OPEN);
    }

    #[test]
    fn the_rate_counts_writes() {
        let rate = Some(CommandLimits { rate: 2, per: Duration::from_secs(10) });
        let (mut permits, _) = permits(CommandRules { rate, ..CommandRules::default() });
        let clock = ManualClock::at(0);
        let mut check = || permits.check(clock.now(), &pump(), "a", &writes("x", 1), "").map_err(|d| d.code);
        assert_eq!((check(), check(), check()), (Ok(()), Ok(()), Err("rate-limited")));
        clock.advance(Duration::from_secs(5));
        assert_eq!((check(), check()), (Ok(()), Err("rate-limited")));
    }

    #[test]
    fn a_method_becomes_its_writes() {
        let method = vec![
            MethodWrite { point: "speed".into(), value: MethodValue::Argument("rpm".into()) },
            MethodWrite { point: "run".into(), value: MethodValue::Fixed(Value::Bool(true)) },
        ];
        let rules = CommandRules { methods: BTreeMap::from([("start".into(), method)]), ..CommandRules::default() };
        let (permits, _) = permits(rules);
        let command = |method: &str, arguments: &[(&str, i64)]| v1::Command {
            method: method.to_owned(),
            arguments: arguments
                .iter()
                .map(|(n, v)| v1::Argument { name: (*n).to_owned(), value: Some(json_value(&Value::Int(*v))) })
                .collect(),
            ..v1::Command::default()
        };
        let expanded = permits.expand(&pump(), &command("start", &[("rpm", 900)])).unwrap();
        assert_eq!(expanded[0], writes("speed", 900)[0]);
        assert_eq!(expanded.len(), 2);
        assert_eq!(permits.expand(&pump(), &command("start", &[])).unwrap_err().code, "malformed");
        assert_eq!(permits.expand(&pump(), &command("start", &[("rpm", 1), ("x", 2)])).unwrap_err().code, "malformed");
        assert_eq!(permits.expand(&pump(), &command("stop", &[])).unwrap_err().code, "unknown-method");
    }
}
