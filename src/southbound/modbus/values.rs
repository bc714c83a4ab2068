//! Registers to values and back.
//!
//! Sans-IO and without allocation but for texts and bytes. Register data is in wire order: each register two octets,
//! most significant first.

use std::sync::Arc;

use crate::model::{DataType, Reason, Value};

use super::{Charset, PointAddress, WordOrder};

/// Most octets of a numeric value.
const NUMBER: usize = 8;

/// The state of the bit at `offset` of packed bits (V1.1b3, section 6.1: the first bit is the lowest of the first octet).
pub fn bit(data: &[u8], offset: u16) -> bool {
    data.get(usize::from(offset / 8)).is_some_and(|octet| octet >> (offset % 8) & 1 == 1)
}

/// Decodes the value of a point from its own registers.
pub fn decode(point: &PointAddress, data: &[u8]) -> Result<Value, Reason> {
    if data.len() != usize::from(point.width()) * 2 {
        return Err(Reason::ProtocolError);
    }
    match point.data_type {
        DataType::Text => text(point, data),
        DataType::Bytes => Ok(Value::Bytes(octets(point, data).into())),
        DataType::F32 => finite_f32(f32::from_bits(number(data, point.order) as u32)),
        DataType::F64 => finite_f64(f64::from_bits(number(data, point.order))),
        DataType::Bcd => bcd(number(data, point.order)).map(Value::Uint).ok_or(Reason::DecodeError),
        DataType::Bool => Ok(Value::Bool(field(point, data) != 0)),
        DataType::U8 | DataType::U16 | DataType::U32 | DataType::U64 => Ok(Value::Uint(field(point, data))),
        DataType::I8 | DataType::I16 | DataType::I32 | DataType::I64 => Ok(Value::Int(sign_extend(
            field(point, data),
            bit_range(point).map_or(bits(point), |(low, high)| high - low + 1),
        ))),
    }
}

/// The registers that hold `value`, in wire order, appended to `out`. For a point that is part of a register (see
/// [`mask`]) the other bits are 0. The error says what would fit.
pub fn encode(point: &PointAddress, value: &Value, out: &mut Vec<u8>) -> Result<(), String> {
    match point.data_type {
        DataType::Text => return encode_text(point, value, out),
        DataType::Bytes => return encode_bytes(point, value, out),
        _ => {}
    }
    let width = usize::from(point.width()) * 2;
    let raw = match point.data_type {
        DataType::F32 => u64::from(to_f32(value)?.to_bits()),
        DataType::F64 => to_f64(value)?.to_bits(),
        DataType::Bcd => to_bcd(to_integer(value)?, u32::from(point.length) * 4)?,
        DataType::Bool => placed(point, u64::from(to_bool(value)?)),
        DataType::U8 | DataType::U16 | DataType::U32 | DataType::U64 => placed(point, fit_unsigned(point, value)?),
        _ => placed(point, fit_signed(point, value)?),
    };
    let from = out.len();
    out.extend_from_slice(&raw.to_be_bytes()[NUMBER - width..]);
    reorder(&mut out[from..], point.order);
    Ok(())
}

/// The bits of its registers that a point owns, in wire order, if it does not own them all.
pub fn mask(point: &PointAddress) -> Option<Vec<u8>> {
    if point.table.is_bits() {
        return None;
    }
    let (low, high) = bit_range(point)?;
    let owned = ones(high - low + 1) << low;
    let mut out = owned.to_be_bytes()[NUMBER - usize::from(point.width()) * 2..].to_vec();
    reorder(&mut out, point.order);
    Some(out)
}

/// Whether a value read back is the value written, with a tolerance in raw units.
pub fn same(written: &Value, read: &Value, tolerance: f64) -> bool {
    match (written, read) {
        (Value::Text(_) | Value::Bytes(_), _) | (_, Value::Text(_) | Value::Bytes(_)) => written == read,
        (Value::Float(_) | Value::Double(_), _) | (_, Value::Float(_) | Value::Double(_)) => {
            match (written.as_f64(), read.as_f64()) {
                (Some(a), Some(b)) => a == b || (a - b).abs() <= tolerance,
                _ => false,
            }
        }
        _ => match (to_integer(written), to_integer(read)) {
            (Ok(a), Ok(b)) => a == b || (a.abs_diff(b) as f64) <= tolerance,
            _ => false,
        },
    }
}

/// The bits of a value that count, lowest and highest. 8-bit types are the low octet unless a range says otherwise.
fn bit_range(point: &PointAddress) -> Option<(u8, u8)> {
    match (point.bit, point.data_type) {
        (Some(range), _) => Some(range),
        (None, DataType::I8 | DataType::U8) => Some((0, 7)),
        (None, _) => None,
    }
}

fn bits(point: &PointAddress) -> u8 {
    (point.width() * 16) as u8
}

fn field(point: &PointAddress, data: &[u8]) -> u64 {
    let raw = number(data, point.order);
    match bit_range(point) {
        Some((low, high)) => raw >> low & ones(high - low + 1),
        None => raw,
    }
}

fn placed(point: &PointAddress, raw: u64) -> u64 {
    match bit_range(point) {
        Some((low, high)) => (raw & ones(high - low + 1)) << low,
        None => raw & ones(bits(point)),
    }
}

fn ones(count: u8) -> u64 {
    u64::MAX >> (64 - u32::from(count.clamp(1, 64)))
}

fn sign_extend(raw: u64, bits: u8) -> i64 {
    let shift = 64 - u32::from(bits.clamp(1, 64));
    ((raw << shift) as i64) >> shift
}

/// Up to four registers as a number, most significant octet first after undoing the device's order.
fn number(data: &[u8], order: WordOrder) -> u64 {
    let mut raw = [0; NUMBER];
    let used = data.len().min(NUMBER);
    let place = &mut raw[NUMBER - used..];
    place.copy_from_slice(&data[..used]);
    reorder(place, order);
    u64::from_be_bytes(raw)
}

/// Between the device's order and most-significant-first; its own inverse.
fn reorder(data: &mut [u8], order: WordOrder) {
    match order {
        WordOrder::ABCD => {}
        WordOrder::DCBA => data.reverse(),
        WordOrder::BADC => swap_octets(data),
        WordOrder::CDAB => {
            data.reverse();
            swap_octets(data);
        }
    }
}

fn swap_octets(data: &mut [u8]) {
    data.chunks_exact_mut(2).for_each(|pair| pair.swap(0, 1));
}

fn finite_f32(value: f32) -> Result<Value, Reason> {
    if value.is_finite() { Ok(Value::Float(value)) } else { Err(Reason::NotANumber) }
}

fn finite_f64(value: f64) -> Result<Value, Reason> {
    if value.is_finite() { Ok(Value::Double(value)) } else { Err(Reason::NotANumber) }
}

fn bcd(raw: u64) -> Option<u64> {
    (0..16).rev().try_fold(0u64, |value, digit| match raw >> (digit * 4) & 0xF {
        figure @ 0..=9 => Some(value * 10 + figure),
        _ => None,
    })
}

fn to_bcd(value: i128, digits: u32) -> Result<u64, String> {
    let most = 10i128.pow(digits) - 1;
    if !(0..=most).contains(&value) {
        return Err(format!("a bcd value of {digits} digits is 0 to {most}"));
    }
    let digit = |place: u32| (value / 10i128.pow(place) % 10) as u64;
    Ok((0..digits).fold(0, |raw, place| raw | digit(place) << (place * 4)))
}

/// The octets of a text or of bytes, in reading order, without the filling octet of an odd length.
fn octets(point: &PointAddress, data: &[u8]) -> Vec<u8> {
    let mut data = data.to_vec();
    if point.text.swap_octets {
        swap_octets(&mut data);
    }
    data.truncate(usize::from(point.length));
    data
}

fn text(point: &PointAddress, data: &[u8]) -> Result<Value, Reason> {
    let mut octets = octets(point, data);
    if point.text.trim_nul
        && let Some(end) = octets.iter().position(|&octet| octet == 0)
    {
        octets.truncate(end);
    }
    if point.text.charset == Charset::Ascii && !octets.is_ascii() {
        return Err(Reason::DecodeError);
    }
    let text = std::str::from_utf8(&octets).map_err(|_| Reason::DecodeError)?;
    let text = if point.text.trim_space { text.trim_end_matches(' ') } else { text };
    Ok(Value::Text(Arc::from(text)))
}

fn encode_text(point: &PointAddress, value: &Value, out: &mut Vec<u8>) -> Result<(), String> {
    let Value::Text(text) = value else { return Err("a text is wanted".into()) };
    if text.len() > usize::from(point.length) {
        return Err(format!("the text may have {} octets and has {}", point.length, text.len()));
    }
    if point.text.charset == Charset::Ascii && !text.is_ascii() {
        return Err("the device takes ASCII only".into());
    }
    if point.text.trim_nul && text.contains('\0') {
        return Err("the text contains NUL, which ends a text in this device".into());
    }
    // What reading would trim is used to fill up, so that a text reads back as it was written.
    let filling = if !point.text.trim_nul && point.text.trim_space { b' ' } else { 0 };
    fill(point, text.as_bytes(), filling, out);
    Ok(())
}

fn encode_bytes(point: &PointAddress, value: &Value, out: &mut Vec<u8>) -> Result<(), String> {
    let Value::Bytes(bytes) = value else { return Err("octets are wanted".into()) };
    if bytes.len() != usize::from(point.length) {
        return Err(format!("exactly {} octets are wanted", point.length));
    }
    fill(point, bytes, 0, out);
    Ok(())
}

fn fill(point: &PointAddress, octets: &[u8], filling: u8, out: &mut Vec<u8>) {
    let from = out.len();
    out.extend_from_slice(octets);
    out.resize(from + usize::from(point.length), filling);
    out.resize(from + usize::from(point.width()) * 2, 0);
    if point.text.swap_octets {
        swap_octets(&mut out[from..]);
    }
}

/// True or false, also written as 1 or 0.
pub fn to_bool(value: &Value) -> Result<bool, String> {
    match *value {
        Value::Bool(on) => Ok(on),
        Value::Int(0) | Value::Uint(0) => Ok(false),
        Value::Int(1) | Value::Uint(1) => Ok(true),
        Value::Float(0.0) | Value::Double(0.0) => Ok(false),
        Value::Float(1.0) | Value::Double(1.0) => Ok(true),
        _ => Err("true or false is wanted".into()),
    }
}

fn to_integer(value: &Value) -> Result<i128, String> {
    let whole = |number: f64| match number.fract() == 0.0 && number.abs() <= 1.0e20 {
        true => Ok(number as i128),
        false => Err("a whole number is wanted".to_owned()),
    };
    match *value {
        Value::Bool(on) => Ok(i128::from(on)),
        Value::Int(number) => Ok(i128::from(number)),
        Value::Uint(number) => Ok(i128::from(number)),
        Value::Float(number) => whole(f64::from(number)),
        Value::Double(number) => whole(number),
        Value::Text(_) | Value::Bytes(_) => Err("a number is wanted".into()),
    }
}

fn value_bits(point: &PointAddress) -> u8 {
    bit_range(point).map_or(bits(point), |(low, high)| high - low + 1)
}

fn fit_unsigned(point: &PointAddress, value: &Value) -> Result<u64, String> {
    let most = ones(value_bits(point));
    u64::try_from(to_integer(value)?).ok().filter(|&raw| raw <= most).ok_or_else(|| format!("0 to {most} fits"))
}

fn fit_signed(point: &PointAddress, value: &Value) -> Result<u64, String> {
    let most = i64::MAX >> (64 - u32::from(value_bits(point)));
    let range = -most - 1..=most;
    let number = i64::try_from(to_integer(value)?).ok().filter(|number| range.contains(number));
    number.map(|number| number as u64).ok_or_else(|| format!("{} to {most} fits", -most - 1))
}

fn to_f64(value: &Value) -> Result<f64, String> {
    value.as_f64().filter(|number| number.is_finite()).ok_or_else(|| "a finite number is wanted".to_owned())
}

fn to_f32(value: &Value) -> Result<f32, String> {
    if let Value::Float(number) = value {
        return if number.is_finite() { Ok(*number) } else { Err("a finite number is wanted".into()) };
    }
    let number = to_f64(value)? as f32;
    if number.is_finite() { Ok(number) } else { Err(format!("{} to {} fits a 32-bit float", f32::MIN, f32::MAX)) }
}

#[cfg(test)]
mod tests;
