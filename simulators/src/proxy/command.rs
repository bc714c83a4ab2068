//! Command lines for shell scripts, on standard input and on the control port. One command per line, one reply per
//! line: `ok`, the answer, or `error: …`.

use std::str::FromStr;
use std::time::Duration;

use super::settings::{CutKind, Direction, Flow};
use crate::scenario::parse_duration;

/// What the control port understands.
pub const HELP: &str = "\
latency TIME [JITTER] [up|down]   delay every byte
throttle BYTES [up|down]          bytes per second; 0: no limit
slice BYTES [up|down]             bytes handed over at once; 0: as they come
cut [fin|rst]                     cut all connections now
cut-after BYTES [fin|rst]         cut each connection after so many bytes; 0: never
cut-random TIME [fin|rst]         cut each connection after this time in the mean; 0s: never
hold on|off                       stall everything, lose nothing
blackhole on|off                  swallow everything without closing
refuse on|off                     refuse new connections
clear                             a faultless link again
stats                             totals
quit                              stop the proxy";

/// One command.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Changes one or both flows.
    Flow(Direction, FlowChange),
    /// Cuts all connections.
    CutNow(CutKind),
    /// See [`super::Faults::cut_after`].
    CutAfter(Option<(u64, CutKind)>),
    /// See [`super::Faults::cut_random`].
    CutRandom(Option<(Duration, CutKind)>),
    /// See [`super::Faults::hold`].
    Hold(bool),
    /// See [`super::Faults::blackhole`].
    Blackhole(bool),
    /// See [`super::Faults::refuse`].
    Refuse(bool),
    /// Takes all faults away.
    Clear,
    /// Asks for the totals.
    Stats,
    /// Asks the program to stop.
    Quit,
}

/// A change of one flow.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum FlowChange {
    /// Latency and jitter.
    Latency(Duration, Duration),
    /// Bytes per second.
    Throttle(Option<u64>),
    /// Bytes at once.
    Slice(Option<usize>),
}

impl FlowChange {
    pub(crate) fn apply(self, flow: &mut Flow) {
        match self {
            FlowChange::Latency(latency, jitter) => (flow.latency, flow.jitter) = (latency, jitter),
            FlowChange::Throttle(rate) => flow.bytes_per_second = rate,
            FlowChange::Slice(slice) => flow.slice = slice,
        }
    }
}

impl FromStr for Command {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (name, mut rest) = words.split_first().ok_or("empty command; `help` lists them")?;
        let direction = take_direction(&mut rest);
        let one = |rest: &[&str]| match rest {
            [word] => Ok((*word).to_owned()),
            _ => Err(format!("`{name}` takes one value; `help` shows it")),
        };
        let command = match *name {
            "latency" => return latency(direction, rest),
            "throttle" => return Ok(Command::Flow(direction, FlowChange::Throttle(count(&one(rest)?)?))),
            "slice" => {
                let slice = count(&one(rest)?)?.map(|bytes| bytes as usize);
                return Ok(Command::Flow(direction, FlowChange::Slice(slice)));
            }
            "cut" => Command::CutNow(take_kind(&mut rest)),
            "cut-after" => {
                let kind = take_kind(&mut rest);
                Command::CutAfter(count(&one(rest)?)?.map(|bytes| (bytes, kind)))
            }
            "cut-random" => {
                let kind = take_kind(&mut rest);
                let mean = parse_duration(&one(rest)?)?;
                Command::CutRandom((!mean.is_zero()).then_some((mean, kind)))
            }
            "hold" => Command::Hold(on_or_off(&one(rest)?)?),
            "blackhole" => Command::Blackhole(on_or_off(&one(rest)?)?),
            "refuse" => Command::Refuse(on_or_off(&one(rest)?)?),
            "clear" => Command::Clear,
            "stats" => Command::Stats,
            "quit" => Command::Quit,
            other => return Err(format!("`{other}` is not a command; `help` lists them")),
        };
        if direction != Direction::Both {
            return Err(format!("`{name}` has no direction; leave up or down out"));
        }
        let takes_nothing = matches!(command, Command::CutNow(_) | Command::Clear | Command::Stats | Command::Quit);
        if takes_nothing && !rest.is_empty() {
            return Err(format!("`{name}` does not take `{}`; `help` shows it", rest.join(" ")));
        }
        Ok(command)
    }
}

fn latency(direction: Direction, rest: &[&str]) -> Result<Command, String> {
    let (latency, jitter) = match rest {
        [latency] => (parse_duration(latency)?, Duration::ZERO),
        [latency, jitter] => (parse_duration(latency)?, parse_duration(jitter)?),
        _ => return Err("`latency` takes a time and perhaps a jitter, such as `latency 50ms 10ms`".to_owned()),
    };
    Ok(Command::Flow(direction, FlowChange::Latency(latency, jitter)))
}

fn take_direction(rest: &mut &[&str]) -> Direction {
    let direction = match rest.last() {
        Some(&"up") => Direction::Up,
        Some(&"down") => Direction::Down,
        _ => return Direction::Both,
    };
    *rest = &rest[..rest.len() - 1];
    direction
}

fn take_kind(rest: &mut &[&str]) -> CutKind {
    let kind = match rest.last() {
        Some(&"fin") => CutKind::Fin,
        Some(&"rst") => CutKind::Rst,
        _ => return CutKind::Rst,
    };
    *rest = &rest[..rest.len() - 1];
    kind
}

fn count(word: &str) -> Result<Option<u64>, String> {
    let bytes: u64 = word.parse().map_err(|_| format!("`{word}` is not a number of bytes"))?;
    Ok((bytes > 0).then_some(bytes))
}

fn on_or_off(word: &str) -> Result<bool, String> {
    match word {
        "on" => Ok(true),
        "off" => Ok(false),
        other => Err(format!("`{other}` is neither on nor off")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_read_as_the_help_says() {
        let ms = Duration::from_millis;
        let cases = [
            ("latency 50ms 10ms up", Command::Flow(Direction::Up, FlowChange::Latency(ms(50), ms(10)))),
            ("throttle 1000", Command::Flow(Direction::Both, FlowChange::Throttle(Some(1000)))),
            ("slice 1 down", Command::Flow(Direction::Down, FlowChange::Slice(Some(1)))),
            ("cut", Command::CutNow(CutKind::Rst)),
            ("cut fin", Command::CutNow(CutKind::Fin)),
            ("cut-after 0", Command::CutAfter(None)),
            ("cut-after 90 fin", Command::CutAfter(Some((90, CutKind::Fin)))),
            ("cut-random 2s", Command::CutRandom(Some((ms(2000), CutKind::Rst)))),
            (" hold  on ", Command::Hold(true)),
        ];
        for (line, expected) in cases {
            assert_eq!(line.parse(), Ok(expected), "{line}");
        }
        for bad in ["", "cat", "hold", "hold up", "hold on down", "latency", "throttle many", "cut now", "stats all"] {
            assert!(bad.parse::<Command>().is_err(), "{bad}");
        }
    }
}
