//! Raw values to engineering values and back.

use super::PointRule;
use crate::model::{DataType, Quality, Reason, Value};

impl PointRule {
    /// Scales, checks and clamps one outcome.
    pub(super) fn apply(&self, outcome: Result<Value, Reason>) -> (Option<Value>, Quality, Option<Reason>) {
        let raw = match outcome {
            Ok(raw) => raw,
            Err(reason) => return (None, Quality::Bad, Some(reason)),
        };
        let value = if self.is_identity() { raw } else { self.to_engineering(raw) };
        match value.as_f64() {
            Some(number) if !number.is_finite() => (None, Quality::Bad, Some(Reason::NotANumber)),
            Some(number) => self.clamp_to_range(value, number),
            None => (Some(value), Quality::Good, None),
        }
    }

    /// A raw number in engineering units, not clamped.
    pub(super) fn number(&self, raw: &Value) -> Option<f64> {
        let number = raw.as_f64()?;
        let is_plain = self.is_identity() || matches!(raw, Value::Bool(_));
        Some(if is_plain { number } else { tidy(number * self.scale + self.offset) })
    }

    fn is_identity(&self) -> bool {
        self.scale == 1.0 && self.offset == 0.0
    }

    fn to_engineering(&self, raw: Value) -> Value {
        match (&raw, raw.as_f64()) {
            (Value::Bool(_), _) | (_, None) => raw,
            (_, Some(number)) => Value::Double(tidy(number * self.scale + self.offset)),
        }
    }

    fn clamp_to_range(&self, value: Value, number: f64) -> (Option<Value>, Quality, Option<Reason>) {
        match self.clamp {
            Some((min, max)) if (number < min || number > max) && !matches!(value, Value::Bool(_)) => {
                (Some(Value::Double(number.clamp(min, max))), Quality::Uncertain, Some(Reason::Clamped))
            }
            _ => (Some(value), Quality::Good, None),
        }
    }
}

/// Rounds to 15 significant digits, which is what a double holds for sure: 235 × 0.1 reads 23.5 and not
/// 23.500000000000004.
fn tidy(number: f64) -> f64 {
    if number == 0.0 || !number.is_finite() {
        return number;
    }
    let exponent = 14 - number.abs().log10().floor() as i32;
    if !(-300..=300).contains(&exponent) {
        return number;
    }
    let (factor, up) = (10f64.powi(exponent.abs()), exponent >= 0);
    let rounded = if up { (number * factor).round() / factor } else { (number / factor).round() * factor };
    if rounded.is_finite() { rounded } else { number }
}

/// Why a requested value cannot be written to a point of its type.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum WriteValueError {
    /// A text for a number, or the like.
    #[error("{got} cannot be written to a point of type {wanted}")]
    Type {
        /// What was sent.
        got: String,
        /// The point's type.
        wanted: &'static str,
    },
    /// The point's index is not in the device, because the configuration has changed meanwhile.
    #[error("the device has no point number {0} any more")]
    NoSuchPoint(u32),
    /// The raw value does not fit the type.
    #[error("{value} is outside what type {wanted} can hold after scaling (raw {raw})")]
    Range {
        /// What was sent.
        value: String,
        /// The raw value it scales to.
        raw: f64,
        /// The point's type.
        wanted: &'static str,
    },
}

/// See [`super::Scaling::unscale`].
pub(super) fn unscale(rule: &PointRule, data_type: DataType, wanted: &Value) -> Result<Value, WriteValueError> {
    let wrong_type = || WriteValueError::Type { got: describe(wanted), wanted: data_type.as_str() };
    match (data_type, wanted) {
        (DataType::Bool, Value::Bool(b)) => Ok(Value::Bool(*b)),
        (DataType::Bool, Value::Int(0) | Value::Uint(0)) => Ok(Value::Bool(false)),
        (DataType::Bool, Value::Int(1) | Value::Uint(1)) => Ok(Value::Bool(true)),
        (DataType::Text, Value::Text(t)) => Ok(Value::Text(t.clone())),
        (DataType::Bytes, Value::Bytes(b)) => Ok(Value::Bytes(b.clone())),
        (DataType::Bytes, Value::Text(t)) => from_hex(t).map(Value::Bytes).ok_or_else(wrong_type),
        (DataType::Bool | DataType::Text | DataType::Bytes, _) | (_, Value::Bool(_) | Value::Bytes(_)) => {
            Err(wrong_type())
        }
        (_, number) => to_raw_number(rule, data_type, number).unwrap_or_else(|| Err(wrong_type())),
    }
}

/// `None` when `wanted` is no number.
fn to_raw_number(rule: &PointRule, data_type: DataType, wanted: &Value) -> Option<Result<Value, WriteValueError>> {
    let exact = match wanted {
        // 64-bit integers beyond 2^53 arrive as text, because JSON numbers cannot carry them.
        Value::Text(t) => match (t.parse::<i64>(), t.parse::<u64>()) {
            (Ok(i), _) => Value::Int(i),
            (_, Ok(u)) => Value::Uint(u),
            _ => return None,
        },
        other => other.clone(),
    };
    if rule.is_identity()
        && let Some(raw) = exact_integer(data_type, &exact)
    {
        return Some(Ok(raw));
    }
    let raw = (exact.as_f64()? - rule.offset) / rule.scale;
    let out_of_range = || WriteValueError::Range { value: wanted.to_string(), raw, wanted: data_type.as_str() };
    Some(match data_type {
        DataType::F64 => Ok(Value::Double(raw)),
        DataType::F32 if raw.abs() <= f64::from(f32::MAX) => Ok(Value::Float(raw as f32)),
        DataType::F32 => Err(out_of_range()),
        _ => integer(data_type, raw.round()).ok_or_else(out_of_range),
    })
}

fn exact_integer(data_type: DataType, value: &Value) -> Option<Value> {
    match (data_type, value) {
        (DataType::I64, Value::Int(i)) => Some(Value::Int(*i)),
        (DataType::U64 | DataType::Bcd, Value::Uint(u)) => Some(Value::Uint(*u)),
        (DataType::U64 | DataType::Bcd, Value::Int(i)) => u64::try_from(*i).ok().map(Value::Uint),
        _ => None,
    }
}

fn integer(data_type: DataType, raw: f64) -> Option<Value> {
    // The upper ends of the 64-bit types are not doubles; a double at or above them does not fit.
    let within = |min: f64, below: f64| (min..below).contains(&raw);
    let signed = |bits: i32| within(-(2f64.powi(bits - 1)), 2f64.powi(bits - 1)).then_some(Value::Int(raw as i64));
    let unsigned = |bits: i32| within(0.0, 2f64.powi(bits)).then_some(Value::Uint(raw as u64));
    match data_type {
        DataType::I8 => signed(8),
        DataType::I16 => signed(16),
        DataType::I32 => signed(32),
        DataType::I64 => signed(64),
        DataType::U8 => unsigned(8),
        DataType::U16 => unsigned(16),
        DataType::U32 => unsigned(32),
        DataType::U64 | DataType::Bcd => unsigned(64),
        _ => None,
    }
}

fn describe(value: &Value) -> String {
    match value {
        Value::Text(t) => format!("the text {t:?}"),
        Value::Bool(b) => format!("the boolean {b}"),
        Value::Bytes(_) => "octets".to_owned(),
        number => format!("the number {number}"),
    }
}

fn from_hex(text: &str) -> Option<std::sync::Arc<[u8]>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).ok()).collect()
}
