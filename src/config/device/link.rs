//! Reads a link: `tcp://host:502`, `rtu-over-tcp://host:port`, `serial:///dev/ttyUSB0?baud=9600&parity=even&stop=1`, or the
//! same as a table.

use std::time::Duration;

use crate::config::checked::{Link, Parity, Serial, Transport};
use crate::config::reader::Reader;
use crate::config::suggest;
use crate::config::tree::{Item, Node};
use crate::config::units::format_duration;
use crate::config::value::{choice, host_port, line, unsigned};

const PARITIES: &[(&str, Parity)] = &[("none", Parity::None), ("even", Parity::Even), ("odd", Parity::Odd)];
const KINDS: &[(&str, Kind)] = &[("tcp", Kind::Tcp), ("rtu-over-tcp", Kind::RtuOverTcp), ("serial", Kind::Serial)];
const HELP: &str = "write \"tcp://192.0.2.7:502\", \"rtu-over-tcp://192.0.2.7:4001\" or \"serial:///dev/ttyUSB0?baud=9600&parity=even&stop=1\"";
/// Modbus TCP's registered port.
const PORT: u16 = 502;

#[derive(Clone, Copy)]
enum Kind {
    Tcp,
    RtuOverTcp,
    Serial,
}

/// Reads `link`, a text or a table.
pub(super) fn transport(modbus: &Reader<'_>) -> Option<Transport> {
    match modbus.item("link").map(|item| &item.node) {
        Some(Node::Table(table)) => {
            from_table(&Reader::new(modbus.context, table, "device.modbus.link", &modbus.key("link")))
        }
        _ => modbus.optional("link", from_text),
    }
}

fn from_text(item: &Item) -> Result<Transport, String> {
    let text = line(300)(item)?;
    let (scheme, rest) = text.split_once("://").ok_or_else(|| format!("\"{text}\" is no link; {HELP}"))?;
    match scheme {
        "tcp" | "rtu-over-tcp" => {
            let default = (scheme == "tcp").then_some(PORT);
            let (host, port) = host_port(rest.trim_end_matches('/'), default)?;
            if port == 0 {
                return Err(format!("\"{text}\": port 0 cannot be reached; ports are 1 to 65535"));
            }
            Ok(if scheme == "tcp" { Transport::Tcp { host, port } } else { Transport::RtuOverTcp { host, port } })
        }
        "serial" => serial_text(rest).map(Transport::Serial),
        other => {
            let meant = suggest::nearest(other, KINDS.iter().map(|(w, _)| *w))
                .map_or_else(|| HELP.to_owned(), |n| format!("did you mean {n}://?"));
            Err(format!("`{other}` is no kind of link; {meant}"))
        }
    }
}

fn serial_text(rest: &str) -> Result<Serial, String> {
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    if !path.starts_with('/') || path.len() < 2 {
        return Err(format!(
            "\"{path}\" is no serial port; write three slashes and the path, such as serial:///dev/ttyUSB0"
        ));
    }
    let mut serial = Serial { path: path.to_owned(), baud: 19_200, parity: Parity::Even, data_bits: 8, stop_bits: 1 };
    for setting in query.split('&').filter(|s| !s.is_empty()) {
        let (name, value) = setting
            .split_once('=')
            .ok_or_else(|| format!("`{setting}` has no value; write baud=9600&parity=even&stop=1"))?;
        let number = |range: std::ops::RangeInclusive<u32>| {
            value
                .parse()
                .ok()
                .filter(|n| range.contains(n))
                .ok_or_else(|| format!("{name}={value} must be from {} to {}", range.start(), range.end()))
        };
        match name {
            "baud" => serial.baud = number(300..=921_600)?,
            "stop" => serial.stop_bits = number(1..=2)? as u8,
            "data" => serial.data_bits = number(8..=8)? as u8,
            "parity" => {
                let found = PARITIES.iter().find(|(word, _)| *word == value);
                serial.parity = found.ok_or_else(|| format!("parity={value} must be none, even or odd"))?.1;
            }
            other => {
                let meant = suggest::nearest(other, ["baud", "parity", "stop", "data"])
                    .map_or_else(String::new, |n| format!("; did you mean `{n}`?"));
                return Err(format!("`{other}` is no setting of a serial port (baud, parity, stop, data){meant}"));
            }
        }
    }
    Ok(serial)
}

fn from_table(table: &Reader<'_>) -> Option<Transport> {
    let kind = table.required("kind", "kind = \"tcp\", \"rtu-over-tcp\" or \"serial\"", choice(KINDS))?;
    if let Kind::Serial = kind {
        return Some(Transport::Serial(Serial {
            baud: table.or("baud", 19_200, unsigned(300..=921_600)),
            stop_bits: table.or("stop", 1, unsigned(1..=2)),
            data_bits: table.or("data", 8, unsigned(8..=8)),
            path: table.required("path", "path = \"/dev/ttyUSB0\"", serial_path)?,
            parity: table.or("parity", Parity::Even, choice(PARITIES)),
        }));
    }
    let host = table.required("host", "host = \"192.0.2.7\"", host);
    let port = match kind {
        Kind::Tcp => table.or("port", PORT, unsigned(1..=65_535)),
        _ => table.required("port", "port = 4001", unsigned(1..=65_535))?,
    };
    let host = host?;
    Some(if let Kind::Tcp = kind { Transport::Tcp { host, port } } else { Transport::RtuOverTcp { host, port } })
}

fn serial_path(item: &Item) -> Result<String, String> {
    let text = line(300)(item)?;
    if text.starts_with('/') { Ok(text) } else { Err(format!("\"{text}\" is no path; write \"/dev/ttyUSB0\"")) }
}

fn host(item: &Item) -> Result<String, String> {
    let text = line(253)(item)?;
    let bracketed = if text.contains(':') { format!("[{text}]") } else { text.clone() };
    host_port(&bracketed, Some(PORT))
        .map(|(host, _)| host)
        .map_err(|_| format!("\"{text}\" is no host name or address"))
}

/// What two devices that share a link say differently of it.
pub(super) fn difference(a: &Link, b: &Link) -> Option<String> {
    if a.transport != b.transport {
        return Some(format!("one says {} and the other {}", a.transport, b.transport));
    }
    let (a, b) = (&a.options, &b.options);
    let time = |d: Option<Duration>| d.map_or_else(|| "its default".to_owned(), format_duration);
    let settings = [
        ("connect_timeout", time(Some(a.connect_timeout)), time(Some(b.connect_timeout))),
        ("pause_after_connect", time(Some(a.pause_after_connect)), time(Some(b.pause_after_connect))),
        ("pause_between_requests", time(Some(a.pause_between_requests)), time(Some(b.pause_between_requests))),
        ("late_reply_guard", time(a.late_reply_guard), time(b.late_reply_guard)),
        ("turnaround", time(Some(a.turnaround)), time(Some(b.turnaround))),
        ("close_after_cycle", a.close_after_cycle.to_string(), b.close_after_cycle.to_string()),
        ("resync_echo", a.resync_echo.to_string(), b.resync_echo.to_string()),
        ("check_unit", a.check_unit.to_string(), b.check_unit.to_string()),
    ];
    let differs = settings.into_iter().find(|(_, x, y)| x != y);
    differs.map(|(name, x, y)| format!("`{name}` is {x} there and {y} here"))
}
