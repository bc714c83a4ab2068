//! Reads one value: a function per type that says what the value must be when it is not.

use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use super::suggest;
use super::tree::{Item, Node};
use super::units::{format_duration, format_size, parse_duration, parse_size};
use crate::model::IdError;

type Read<T> = Result<T, String>;

/// A text, as it stands.
pub(super) fn text(item: &Item) -> Read<String> {
    match &item.node {
        Node::Text(text) | Node::Cell(text) => Ok(text.clone()),
        other => Err(format!("is {}; it must be a text in quotes", other.what())),
    }
}

/// A text of 1 to `max` characters without control characters.
pub(super) fn line(max: usize) -> impl Fn(&Item) -> Read<String> {
    move |item| {
        let text = text(item)?;
        match text.chars().count() {
            0 => Err("is empty; write a text or leave the key out".to_owned()),
            n if n > max => Err(format!("has {n} characters; at most {max} are allowed")),
            _ if text.chars().any(char::is_control) => Err("contains a control character; remove it".to_owned()),
            _ => Ok(text),
        }
    }
}

/// `true` or `false`; cells may also say yes, no, 1 or 0.
pub(super) fn boolean(item: &Item) -> Read<bool> {
    match &item.node {
        Node::Bool(b) => Ok(*b),
        Node::Cell(cell) => match cell.trim().to_ascii_lowercase().as_str() {
            "true" | "yes" | "1" | "x" => Ok(true),
            "false" | "no" | "0" => Ok(false),
            other => Err(format!("`{other}` must be true or false")),
        },
        other => Err(format!("is {}; it must be true or false, without quotes", other.what())),
    }
}

/// An integer in a range. Cells may be hexadecimal (`0x10`).
pub(super) fn integer(range: RangeInclusive<i64>) -> impl Fn(&Item) -> Read<i64> {
    move |item| {
        let (low, high) = (range.start(), range.end());
        let value = match &item.node {
            Node::Integer(value) => *value,
            Node::Cell(cell) => cell_integer(cell)?,
            Node::Text(_) => {
                return Err(format!("is a text; it must be an integer from {low} to {high}, without quotes"));
            }
            other => return Err(format!("is {}; it must be an integer from {low} to {high}", other.what())),
        };
        if range.contains(&value) { Ok(value) } else { Err(format!("is {value}; it must be from {low} to {high}")) }
    }
}

/// An unsigned integer in a range that fits its type.
pub(super) fn unsigned<T: TryFrom<i64>>(range: RangeInclusive<i64>) -> impl Fn(&Item) -> Read<T> {
    let read = integer(range);
    move |item| T::try_from(read(item)?).map_err(|_| "is beyond the range of this key".to_owned())
}

fn cell_integer(cell: &str) -> Read<i64> {
    let cell = cell.trim();
    let parsed = match cell.strip_prefix("0x").or_else(|| cell.strip_prefix("0X")) {
        Some(hex) => i64::from_str_radix(hex, 16),
        None => cell.parse(),
    };
    parsed.map_err(|_| format!("`{cell}` must be an integer"))
}

/// A finite number. A cell with a decimal comma is refused: guessing would turn 1,234 into 1.234.
pub(super) fn number(item: &Item) -> Read<f64> {
    let value = match &item.node {
        Node::Integer(value) => *value as f64,
        Node::Float(value) => *value,
        Node::Cell(cell) => cell_number(cell)?,
        other => return Err(format!("is {}; it must be a number, without quotes", other.what())),
    };
    if value.is_finite() { Ok(value) } else { Err("must be a finite number".to_owned()) }
}

pub(super) fn cell_number(cell: &str) -> Read<f64> {
    let cell = cell.trim();
    match cell.parse() {
        Ok(value) => Ok(value),
        Err(_) if cell.contains(',') => Err(format!(
            "`{cell}` is written with a comma; write a decimal point and no thousands separator, such as {}",
            cell.replace(',', ".")
        )),
        Err(_) => Err(format!("`{cell}` must be a number")),
    }
}

/// A duration with a unit, in a range.
pub(super) fn duration(range: RangeInclusive<Duration>) -> impl Fn(&Item) -> Read<Duration> {
    move |item| {
        let value = match &item.node {
            Node::Text(text) | Node::Cell(text) => parse_duration(text)?,
            Node::Integer(n) => return Err(format!("{n} has no unit; write \"{n} s\" or \"{n} ms\"")),
            Node::Float(n) => return Err(format!("{n} has no unit; write \"{n} s\" or \"{n} ms\"")),
            other => return Err(format!("is {}; it must be a duration such as \"500 ms\"", other.what())),
        };
        if range.contains(&value) {
            return Ok(value);
        }
        let (low, high) = (format_duration(*range.start()), format_duration(*range.end()));
        Err(format!("is {}; it must be from {low} to {high}", format_duration(value)))
    }
}

/// A duration from `low` to `high` milliseconds.
pub(super) fn millis(low: u64, high: u64) -> impl Fn(&Item) -> Read<Duration> {
    duration(Duration::from_millis(low)..=Duration::from_millis(high))
}

/// A size in bytes with a unit, in a range.
pub(super) fn size(range: RangeInclusive<u64>) -> impl Fn(&Item) -> Read<u64> {
    move |item| {
        let value = match &item.node {
            Node::Text(text) | Node::Cell(text) => parse_size(text)?,
            Node::Integer(n) => return Err(format!("{n} has no unit; write \"{n} MiB\", \"{n} KiB\" or \"{n} B\"")),
            other => return Err(format!("is {}; it must be a size such as \"64 MiB\"", other.what())),
        };
        if range.contains(&value) {
            return Ok(value);
        }
        Err(format!(
            "is {}; it must be from {} to {}",
            format_size(value),
            format_size(*range.start()),
            format_size(*range.end())
        ))
    }
}

/// One of a few words.
pub(super) fn choice<T: Copy + 'static>(words: &'static [(&'static str, T)]) -> impl Fn(&Item) -> Read<T> {
    move |item| {
        let known = || words.iter().map(|(word, _)| format!("\"{word}\"")).collect::<Vec<_>>().join(", ");
        let text = match &item.node {
            Node::Text(text) | Node::Cell(text) => text.trim(),
            other => return Err(format!("is {}; it must be one of {}", other.what(), known())),
        };
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
            return Ok(*value);
        }
        let meant = suggest::nearest(text, words.iter().map(|(w, _)| *w))
            .map_or_else(String::new, |w| format!("; did you mean \"{w}\"?"));
        Err(format!("\"{text}\" is none of {}{meant}", known()))
    }
}

/// An identifier of the domain (device, point, gateway).
pub(super) fn id<T: FromStr<Err = IdError>>(item: &Item) -> Read<T> {
    text(item)?.trim().parse().map_err(|e: IdError| e.to_string())
}

/// A `host:port` address; brackets round an IPv6 address.
pub(super) fn host_port(text: &str, default_port: Option<u16>) -> Read<(String, u16)> {
    let help = || format!("`{text}` is not host:port, such as \"192.0.2.7:502\" or \"[2001:db8::7]:502\"");
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, tail) = rest.split_once(']').ok_or_else(help)?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| help())?;
            (
                host,
                tail.strip_prefix(':').map_or(if tail.is_empty() { Ok(None) } else { Err(help()) }, |p| Ok(Some(p)))?,
            )
        }
        None => match text.split_once(':') {
            Some((_, tail)) if tail.contains(':') => return Err(help()),
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    if host.is_empty() || !host.chars().all(legal) {
        return Err(help());
    }
    let port = match port {
        Some(port) => port.parse().map_err(|_| format!("port `{port}` in `{text}` must be from 0 to 65535"))?,
        None => default_port.ok_or_else(help)?,
    };
    Ok((host.to_ascii_lowercase(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_ports() {
        assert_eq!(host_port("plc.local:502", None), Ok(("plc.local".into(), 502)));
        assert_eq!(host_port("192.0.2.7", Some(502)), Ok(("192.0.2.7".into(), 502)));
        assert_eq!(host_port("[::1]:1883", None), Ok(("::1".into(), 1883)));
        assert_eq!(host_port("[::1]", Some(1)), Ok(("::1".into(), 1)));
        for bad in ["", ":502", "a b:1", "h:70000", "h:x", "::1:502", "[::1", "[::1]x", "[zz]:1", "h/p:1"] {
            assert!(host_port(bad, Some(1)).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_decimal_comma_is_refused_with_what_to_write() {
        assert!(cell_number("21,5").unwrap_err().contains("such as 21.5"));
        assert_eq!(cell_number(" 21.5 "), Ok(21.5));
    }
}
