//! Reads a link: `tcp://host:502`, `rtu-over-tcp://host:port`, `serial:///dev/ttyUSB0?baud=9600&parity=even&stop=1`, or the
//! same as a table.

use std::time::Duration;

use crate::config::reader::Reader;
use crate::config::suggest;
use crate::config::tree::{Item, Node};
use crate::config::units::format_duration;
use crate::config::value::{choice, host_port, line, unsigned};
use crate::southbound::modbus::{Config, Link, Parity, SerialLine, StopBits};

const PARITIES: &[(&str, Parity)] = &[("none", Parity::None), ("even", Parity::Even), ("odd", Parity::Odd)];
const KINDS: &[(&str, Kind)] = &[("tcp", Kind::Tcp), ("rtu-over-tcp", Kind::RtuOverTcp), ("serial", Kind::Serial)];
const HELP: &str = "write \"tcp://192.0.2.7:502\", \"rtu-over-tcp://192.0.2.7:4001\" or \"serial:///dev/ttyUSB0?baud=9600&parity=even&stop=1\"";
/// Modbus TCP's registered port.
const PORT: u16 = 502;

/// The standard's baud rate when none is written.
const BAUD: u32 = 19_200;

#[derive(Clone, Copy)]
enum Kind {
    Tcp,
    RtuOverTcp,
    Serial,
}

/// Reads `link`, a text or a table.
pub(super) fn link(modbus: &Reader<'_>) -> Option<Link> {
    match modbus.item("link").map(|item| &item.node) {
        Some(Node::Table(table)) => {
            from_table(&Reader::new(modbus.context, table, "device.modbus.link", &modbus.key("link")))
        }
        _ => modbus.optional("link", from_text),
    }
}

fn from_text(item: &Item) -> Result<Link, String> {
    let text = line(300)(item)?;
    let (scheme, rest) = text.split_once("://").ok_or_else(|| format!("\"{text}\" is no link; {HELP}"))?;
    match scheme {
        "tcp" | "rtu-over-tcp" => {
            let default = (scheme == "tcp").then_some(PORT);
            let (host, port) = host_port(rest.trim_end_matches('/'), default)?;
            if port == 0 {
                return Err(format!("\"{text}\": port 0 cannot be reached; ports are 1 to 65535"));
            }
            Ok(if scheme == "tcp" { Link::Tcp { host, port } } else { Link::RtuOverTcp { host, port } })
        }
        "serial" => serial_text(rest).map(Link::Serial),
        other => {
            let meant = suggest::nearest(other, KINDS.iter().map(|(w, _)| *w))
                .map_or_else(|| HELP.to_owned(), |n| format!("did you mean {n}://?"));
            Err(format!("`{other}` is no kind of link; {meant}"))
        }
    }
}

fn serial_text(rest: &str) -> Result<SerialLine, String> {
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    if !path.starts_with('/') || path.len() < 2 {
        return Err(format!(
            "\"{path}\" is no serial port; write three slashes and the path, such as serial:///dev/ttyUSB0"
        ));
    }
    let mut serial = SerialLine::new(path, BAUD);
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
            "stop" => serial.stop_bits = stop_bits(number(1..=2)?),
            "data" => drop(number(8..=8)?),
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

fn from_table(table: &Reader<'_>) -> Option<Link> {
    let kind = table.required("kind", "kind = \"tcp\", \"rtu-over-tcp\" or \"serial\"", choice(KINDS))?;
    if let Kind::Serial = kind {
        let line = SerialLine {
            baud: table.or("baud", BAUD, unsigned(300..=921_600)),
            stop_bits: stop_bits(table.or("stop", 1, unsigned(1..=2))),
            parity: table.or("parity", Parity::Even, choice(PARITIES)),
            ..SerialLine::new("", BAUD)
        };
        // RTU has 8 data bits; the key may say so.
        table.optional("data", unsigned::<u8>(8..=8));
        let path = table.required("path", "path = \"/dev/ttyUSB0\"", serial_path)?;
        return Some(Link::Serial(SerialLine { path, ..line }));
    }
    let host = table.required("host", "host = \"192.0.2.7\"", host);
    let port = match kind {
        Kind::Tcp => table.or("port", PORT, unsigned(1..=65_535)),
        _ => table.required("port", "port = 4001", unsigned(1..=65_535))?,
    };
    let host = host?;
    Some(if let Kind::Tcp = kind { Link::Tcp { host, port } } else { Link::RtuOverTcp { host, port } })
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

const fn stop_bits(number: u32) -> StopBits {
    if number == 2 { StopBits::Two } else { StopBits::One }
}

/// Name of the protocol in `onboarding` and in logs.
pub(super) const fn protocol(link: &Link) -> &'static str {
    match link {
        Link::Tcp { .. } => "modbus-tcp",
        Link::RtuOverTcp { .. } => "modbus-rtu-over-tcp",
        Link::Serial(_) => "modbus-rtu",
    }
}

/// What two devices must share to share the link: `host:port` or the path of the port.
pub(super) fn medium(link: &Link) -> String {
    match link {
        Link::Tcp { host, port } | Link::RtuOverTcp { host, port } => format!("{host}:{port}"),
        Link::Serial(line) => line.path.clone(),
    }
}

/// The link as one writes it in a file.
pub(super) fn written(link: &Link) -> String {
    let bracketed = |host: &str| if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    match link {
        Link::Tcp { host, port } => format!("tcp://{}:{port}", bracketed(host)),
        Link::RtuOverTcp { host, port } => format!("rtu-over-tcp://{}:{port}", bracketed(host)),
        Link::Serial(line) => {
            let parity = match line.parity {
                Parity::None => 'N',
                Parity::Even => 'E',
                Parity::Odd => 'O',
            };
            let stop_bits = if line.stop_bits == StopBits::Two { 2 } else { 1 };
            format!("serial://{} {} 8{parity}{stop_bits}", line.path, line.baud)
        }
    }
}

/// What two devices that share a link say differently of it.
pub(super) fn difference(a: &Config, b: &Config) -> Option<String> {
    if a.link != b.link {
        return Some(format!("one says {} and the other {}", written(&a.link), written(&b.link)));
    }
    let (a, b) = (&a.options, &b.options);
    let time = |d: Option<Duration>| d.map_or_else(|| "its default".to_owned(), format_duration);
    let settings = [
        ("connect_timeout", time(Some(a.connect_timeout)), time(Some(b.connect_timeout))),
        ("reconnect_min", time(Some(a.reconnect.0)), time(Some(b.reconnect.0))),
        ("reconnect_max", time(Some(a.reconnect.1)), time(Some(b.reconnect.1))),
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
