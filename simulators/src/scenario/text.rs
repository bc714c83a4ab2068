//! Small texts inside scenario files: durations, table addresses, type names.

use std::time::Duration;

use serde::Deserialize;

use crate::modbus::Table;
use crate::modbus::value::Kind;

/// A duration with its unit: `250ms`, `5s`, `2m`, `1h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Span(pub Duration);

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        parse_duration(&text).map(Span)
    }
}

/// Parses `250ms`, `0.5s`, `2m`, `1h`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let refused = || format!("`{text}` is not a duration; write a number with a unit, such as 250ms, 5s, 2m or 1h");
    let split = text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(refused)?;
    let number: f64 = text[..split].trim().parse().map_err(|_| refused())?;
    let unit = match &text[split..] {
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        _ => return Err(refused()),
    };
    let seconds = number * unit;
    if (0.0..1e9).contains(&seconds) { Ok(Duration::from_secs_f64(seconds)) } else { Err(refused()) }
}

/// Parses `holding:12`.
pub fn parse_address(text: &str) -> Result<(Table, u16), String> {
    let refused =
        || format!("`{text}` is not an address; write coil, discrete, input or holding, a colon and 0 to 65535");
    let (table, address) = text.split_once(':').ok_or_else(refused)?;
    Ok((Table::parse(table).ok_or_else(refused)?, address.parse().map_err(|_| refused())?))
}

/// Parses a type name; `None` gives the table's own.
pub fn parse_kind(text: Option<&str>, table: Table) -> Result<Kind, String> {
    let Some(text) = text else { return Ok(if table.is_bits() { Kind::Bool } else { Kind::U16 }) };
    let refused = || format!("`{text}` is not a type of a {} point", table.as_str());
    if table.is_bits() {
        return if text == "bool" { Ok(Kind::Bool) } else { Err(refused()) };
    }
    let mut parts = text.split(':');
    let head = parts.next().unwrap_or_default();
    let mut numbers = parts.map(|part| part.parse::<u16>().map_err(|_| refused()));
    let kind = match (head, numbers.next().transpose()?, numbers.next().transpose()?) {
        ("u16", None, None) => Kind::U16,
        ("i16", None, None) => Kind::I16,
        ("u32", None, None) => Kind::U32,
        ("i32", None, None) => Kind::I32,
        ("u64", None, None) => Kind::U64,
        ("i64", None, None) => Kind::I64,
        ("f32", None, None) => Kind::F32,
        ("f64", None, None) => Kind::F64,
        ("bcd16", None, None) => Kind::Bcd { registers: 1 },
        ("bcd32", None, None) => Kind::Bcd { registers: 2 },
        ("bcd64", None, None) => Kind::Bcd { registers: 4 },
        ("text", Some(registers @ 1..=60), None) => Kind::Text { registers },
        ("bit", Some(first @ 0..=15), None) => Kind::Bits { first: first as u8, count: 1 },
        ("bits", Some(first @ 0..=15), Some(count)) if (1..=16 - first).contains(&count) => {
            Kind::Bits { first: first as u8, count: count as u8 }
        }
        _ => return Err(refused()),
    };
    Ok(kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("1.5m"), Ok(Duration::from_secs(90)));
        for bad in ["5", "s", "-1s", "5 fortnights", "1e30h", ""] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_and_types() {
        assert_eq!(parse_address("input:65535"), Ok((Table::Input, 65_535)));
        assert!(parse_address("input:65536").is_err() && parse_address("12").is_err());
        assert_eq!(parse_kind(None, Table::Coil), Ok(Kind::Bool));
        assert_eq!(parse_kind(Some("bits:4:3"), Table::Holding), Ok(Kind::Bits { first: 4, count: 3 }));
        for bad in ["bits:14:3", "bit:16", "text", "text:0", "u16:2", "float"] {
            assert!(parse_kind(Some(bad), Table::Holding).is_err(), "{bad}");
        }
        assert!(parse_kind(Some("u16"), Table::Coil).is_err());
    }
}
