//! Whether a command may be done.

use super::{CommandRequest, Devices};
use crate::contract::value_from_json;
use crate::management::permit::Denied;
use crate::model::{Access, ClockTrust, DataType, Device, Point, PointId, Stamp, Value};

/// Most writes in one command.
pub(super) const MAX_WRITES: usize = 32;
/// Longest text in a write, in octets: a string point holds 250.
const MAX_TEXT: usize = 1_024;
/// Longest correlation id, in characters.
const MAX_ID: usize = 64;

/// One write that may be done, in engineering units.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct CheckedWrite {
    pub point: PointId,
    pub value: Value,
}

/// Why a command is refused: a stable code and the words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub code: &'static str,
    pub message: String,
    /// The write it is about.
    pub write: Option<usize>,
    /// The token for the second step of a critical command.
    pub confirmation: Option<String>,
}

impl From<Denied> for Refusal {
    fn from(denied: Denied) -> Self {
        let Denied { code, message, write, confirmation } = denied;
        Self { code, message, write, confirmation }
    }
}

pub(super) fn refuse(code: &'static str, message: impl Into<String>) -> Refusal {
    Refusal { code, message: message.into(), write: None, confirmation: None }
}

/// The form of a request, before anything is looked up.
pub(super) fn form(request: &CommandRequest) -> Result<(), Refusal> {
    let command = &request.command;
    let id = &command.correlation_id;
    match id.chars().count() {
        1..=MAX_ID if !id.chars().any(char::is_control) => {}
        1..=MAX_ID => return Err(refuse("malformed", "correlationId contains a control character")),
        n => return Err(refuse("malformed", format!("correlationId has {n} characters; give 1 to {MAX_ID}"))),
    }
    match command.writes.len() {
        0 if !command.method.is_empty() => {}
        0 => return Err(refuse("malformed", "the command has no writes")),
        1..=MAX_WRITES => {}
        n => {
            return Err(refuse(
                "too-large",
                format!("the command has {n} writes; at most {MAX_WRITES} are done together"),
            ));
        }
    }
    Ok(())
}

/// Whether a command is too old. Times cannot be compared on a clock that was never set, so it is refused then, too.
pub(super) fn expiry(request: &CommandRequest, now: Stamp) -> Result<(), Refusal> {
    let Some(expires) = &request.command.expires else { return Ok(()) };
    if now.trust == ClockTrust::Unsynchronised {
        return Err(refuse(
            "clock-not-set",
            "the gateway's clock was never set, so `expires` cannot be judged; leave it out or set the clock",
        ));
    }
    let expires_ms = i128::from(expires.seconds) * 1_000 + i128::from(expires.nanos) / 1_000_000;
    if i128::from(now.wall_ms) > expires_ms {
        return Err(refuse("expired", "the command arrived after the time in `expires`; nothing was written"));
    }
    Ok(())
}

/// Looks up every write; `fits` knows the raw types. The first that may not be done refuses the command.
pub(super) fn writes(
    request: &CommandRequest,
    devices: &Devices,
    fits: impl Fn(&PointId, &Value) -> Result<(), String>,
) -> Result<Vec<CheckedWrite>, Refusal> {
    let Some(device) = devices.get(&request.device) else {
        return Err(refuse("unknown-device", format!("there is no device {}", request.device)));
    };
    let mut checked = Vec::with_capacity(request.command.writes.len());
    for (index, write) in request.command.writes.iter().enumerate() {
        let value = write.value.as_ref();
        let one = point(device, &write.point).and_then(|point| {
            let value = value.and_then(value_from_json).ok_or_else(|| {
                refuse("malformed", format!("the value for {} must be a number, a boolean or a text", point.id))
            })?;
            allowed(point, &value)?;
            fits(&point.id, &value).map_err(|why| refuse("out-of-range", why))?;
            Ok(CheckedWrite { point: point.id.clone(), value })
        });
        checked.push(one.map_err(|refusal| Refusal { write: Some(index), ..refusal })?);
    }
    Ok(checked)
}

fn point<'a>(device: &'a Device, name: &str) -> Result<&'a Point, Refusal> {
    let found = device.points.iter().find(|p| p.id.as_str() == name);
    let unknown = || {
        let shown: String = name.chars().take(MAX_ID).filter(|c| !c.is_control()).collect();
        refuse("unknown-point", format!("device {} has no point \"{shown}\"", device.id))
    };
    found.ok_or_else(unknown)
}

/// Access, type and limits of one point.
fn allowed(point: &Point, value: &Value) -> Result<(), Refusal> {
    if point.access == Access::Read {
        return Err(refuse(
            "denied",
            format!(
                "point {} is read only; writes are denied unless its configuration says access = \"read-write\"",
                point.id
            ),
        ));
    }
    if let Value::Text(text) = value
        && text.len() > MAX_TEXT
    {
        return Err(refuse(
            "too-large",
            format!("the text for {} has {} octets; at most {MAX_TEXT} are written", point.id, text.len()),
        ));
    }
    let wrong = |wanted: &str| {
        Err(refuse("wrong-type", format!("point {} is a {}; send {wanted}", point.id, point.data_type.as_str())))
    };
    match (point.data_type, value) {
        (DataType::Bool, Value::Bool(_) | Value::Int(0 | 1)) => Ok(()),
        (DataType::Bool, _) => wrong("true or false"),
        (DataType::Text, Value::Text(_)) => Ok(()),
        (DataType::Text, _) => wrong("a text"),
        (DataType::Bytes, Value::Text(_)) => Ok(()),
        (DataType::Bytes, _) => wrong("a text of hexadecimal digits"),
        (_, value) => match number(value) {
            Some(number) => in_limits(point, number),
            None => wrong("a number"),
        },
    }
}

/// The number in a value; integers beyond 2^53 come as texts.
fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Text(text) => {
            text.parse::<i64>().map(|i| i as f64).or_else(|_| text.parse::<u64>().map(|u| u as f64)).ok()
        }
        Value::Bool(_) => None,
        other => other.as_f64().filter(|n| n.is_finite()),
    }
}

fn in_limits(point: &Point, number: f64) -> Result<(), Refusal> {
    match point.limits {
        Some(limits) if number < limits.min || number > limits.max => Err(refuse(
            "out-of-range",
            format!("{number} is outside {} to {}, the limits of point {}", limits.min, limits.max, point.id),
        )),
        _ => Ok(()),
    }
}
