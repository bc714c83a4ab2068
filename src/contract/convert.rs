//! From the domain's words to contract messages and back.

use pbjson_types::value::Kind;

use super::v1;
use crate::model::{Batch, ClockTrust, Gap, Quality, Sample, Stamp, Uptime, Value};

/// A wall clock that moved more than this between two stamps was set.
const STEP_MS: i64 = 1_000;
/// Largest integer that a JSON number carries exactly.
const EXACT: u64 = 1 << 53;

/// Milliseconds since 1970 as a protobuf timestamp (RFC 3339 in JSON).
pub fn timestamp(wall_ms: i64) -> pbjson_types::Timestamp {
    pbjson_types::Timestamp { seconds: wall_ms.div_euclid(1000), nanos: (wall_ms.rem_euclid(1000) * 1_000_000) as i32 }
}

/// A value as JSON shows it: numbers, booleans, strings; integers beyond 2^53 and octets (hexadecimal) are strings.
pub fn json_value(value: &Value) -> pbjson_types::Value {
    let kind = match value {
        Value::Bool(b) => Kind::BoolValue(*b),
        Value::Int(i) if i.unsigned_abs() > EXACT => Kind::StringValue(i.to_string()),
        Value::Uint(u) if *u > EXACT => Kind::StringValue(u.to_string()),
        Value::Int(i) => Kind::NumberValue(*i as f64),
        Value::Uint(u) => Kind::NumberValue(*u as f64),
        Value::Float(f) => Kind::NumberValue(shortest(*f)),
        Value::Double(d) => Kind::NumberValue(*d),
        Value::Text(t) => Kind::StringValue(t.to_string()),
        Value::Bytes(_) => Kind::StringValue(value.to_string()),
    };
    pbjson_types::Value { kind: Some(kind) }
}

/// The double whose shortest decimal digits are those of `f`: 21.3f32 becomes 21.3 and not 21.299999237060547.
fn shortest(f: f32) -> f64 {
    let wide = f64::from(f);
    if wide.fract() == 0.0 { wide } else { f.to_string().parse().unwrap_or(wide) }
}

/// A value out of a request; `None` for null, lists and objects. Integers become integers.
pub fn value_from_json(value: &pbjson_types::Value) -> Option<Value> {
    match value.kind.as_ref()? {
        Kind::BoolValue(b) => Some(Value::Bool(*b)),
        Kind::NumberValue(n) if n.fract() == 0.0 && n.abs() <= EXACT as f64 => Some(Value::Int(*n as i64)),
        Kind::NumberValue(n) if n.is_finite() => Some(Value::Double(*n)),
        Kind::StringValue(s) => Some(Value::Text(s.as_str().into())),
        Kind::NumberValue(_) | Kind::NullValue(_) | Kind::StructValue(_) | Kind::ListValue(_) => None,
    }
}

impl From<Quality> for v1::Quality {
    fn from(quality: Quality) -> Self {
        match quality {
            Quality::Good => v1::Quality::Good,
            Quality::Uncertain => v1::Quality::Uncertain,
            Quality::Bad => v1::Quality::Bad,
        }
    }
}

impl From<ClockTrust> for v1::ClockTrust {
    fn from(trust: ClockTrust) -> Self {
        match trust {
            ClockTrust::Unsynchronised => v1::ClockTrust::Unsynchronised,
            ClockTrust::Holdover => v1::ClockTrust::Holdover,
            ClockTrust::Synchronised => v1::ClockTrust::Synchronised,
        }
    }
}

/// The wall time of a stamp as the clock shows it at `now`: when it was set in between, what counts is how long ago it was.
fn wall_as_of(at: Stamp, now: Stamp) -> i64 {
    let (Some(mono_ns), true) = (now.mono_ns.checked_sub(at.mono_ns), at.mono_ns > 0) else { return at.wall_ms };
    let by_mono = now.wall_ms.saturating_sub((mono_ns / 1_000_000) as i64);
    if (by_mono - at.wall_ms).abs() >= STEP_MS { by_mono } else { at.wall_ms }
}

/// One sample; its time is left out when it is that of the batch.
pub fn point_value(sample: &Sample, batch_at: Stamp) -> v1::PointValue {
    let wall_ms = wall_as_of(sample.at, batch_at);
    v1::PointValue {
        name: sample.point.as_str().to_owned(),
        value: sample.value.as_ref().map(json_value),
        quality: v1::Quality::from(sample.quality).into(),
        reason: sample.reason.map_or_else(String::new, |r| r.as_str().to_owned()),
        time: (wall_ms != batch_at.wall_ms).then(|| timestamp(wall_ms)),
    }
}

/// A batch without `seq` and `historical`, the form that the log keeps. The uptime of its time is kept where the clock may
/// turn out to be wrong.
pub fn telemetry(batch: &Batch) -> v1::Telemetry {
    let Uptime { boot, ms } = batch.at.uptime.unless_synchronised(batch.at.trust);
    v1::Telemetry {
        device: batch.device.as_str().to_owned(),
        time: Some(timestamp(batch.at.wall_ms)),
        points: batch.samples.iter().map(|s| point_value(s, batch.at)).collect(),
        clock: v1::ClockTrust::from(batch.at.trust).into(),
        seq: 0,
        historical: false,
        boot,
        uptime_ms: ms,
        mended: false,
    }
}

/// A gap as subscribers see it.
pub fn gap(gap: &Gap) -> v1::Gap {
    v1::Gap {
        lane: gap.lane.as_str().to_owned(),
        consumer: gap.consumer.clone().unwrap_or_default(),
        from_seq: gap.from_seq,
        to_seq: gap.to_seq,
        from: (gap.from_ms != 0).then(|| timestamp(gap.from_ms)),
        to: (gap.to_ms != 0).then(|| timestamp(gap.to_ms)),
        records: gap.records,
        reason: gap.reason.as_str().to_owned(),
        seq: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::{ContractMessage, Encoding, with_delivery};
    use crate::model::{DeviceId, PointId, Reason};

    fn batch() -> Batch {
        let at = Stamp {
            wall_ms: 1_763_812_800_123,
            mono_ns: 5,
            uptime: Default::default(),
            trust: ClockTrust::Synchronised,
        };
        let sample = |name: &str, value, quality, reason| Sample {
            point: PointId::new(name).unwrap(),
            value,
            quality,
            reason,
            at,
        };
        Batch {
            device: DeviceId::new("pump").unwrap(),
            at,
            samples: vec![
                sample("level", Some(Value::Float(21.3)), Quality::Good, None),
                sample("count", Some(Value::Uint(u64::MAX)), Quality::Good, None),
                sample("run", Some(Value::Bool(false)), Quality::Good, None),
                sample("flow", None, Quality::Bad, Some(Reason::Timeout)),
            ],
        }
    }

    #[test]
    fn json_is_what_the_documentation_shows() {
        let json = String::from_utf8(telemetry(&batch()).encode_as(Encoding::Json).to_vec()).unwrap();
        assert_eq!(
            json,
            r#"{"device":"pump","time":"2025-11-22T12:00:00.123+00:00","points":[{"name":"level","value":21.3,"quality":"GOOD"},{"name":"count","value":"18446744073709551615","quality":"GOOD"},{"name":"run","value":false,"quality":"GOOD"},{"name":"flow","quality":"BAD","reason":"timeout"}],"clock":"SYNCHRONISED"}"#
        );
    }

    #[test]
    fn delivery_fields_append_to_the_stored_form() {
        let stored = telemetry(&batch());
        let sent = with_delivery(&stored.encode_as(Encoding::Protobuf), 77, true);
        let back = v1::Telemetry::decode_as(Encoding::Protobuf, &sent).unwrap();
        assert_eq!(back, v1::Telemetry { seq: 77, historical: true, ..stored });
    }

    #[test]
    fn a_clock_that_is_set_within_a_batch_does_not_tear_it_apart() {
        let at = |wall_ms, mono_s: u64| Stamp {
            wall_ms,
            mono_ns: mono_s * 1_000_000_000,
            uptime: Default::default(),
            trust: ClockTrust::Holdover,
        };
        let noon = at(1_763_812_800_000, 100);
        assert_eq!(wall_as_of(at(40_000, 98), noon), noon.wall_ms - 2_000);
        assert_eq!(wall_as_of(at(noon.wall_ms + 3_600_000, 99), noon), noon.wall_ms - 1_000);
        assert_eq!(wall_as_of(at(noon.wall_ms - 2_100, 98), noon), noon.wall_ms - 2_100, "no step");
    }

    #[test]
    fn uptime_is_kept_where_the_clock_may_be_wrong() {
        let mut batch = batch();
        batch.at.uptime = Uptime { boot: 9, ms: 77 };
        assert_eq!(telemetry(&batch).boot, 0);
        batch.at.trust = ClockTrust::Holdover;
        let kept = telemetry(&batch);
        assert_eq!((kept.boot, kept.uptime_ms, kept.mended), (9, 77, false));
    }

    #[test]
    fn times_before_1970_keep_their_milliseconds() {
        assert_eq!(timestamp(-1), pbjson_types::Timestamp { seconds: -1, nanos: 999_000_000 });
    }
}
