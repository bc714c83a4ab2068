//! Active discovery: only when an engineer asks, only the addresses named, slowly. Old devices are disturbed by scans.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::identity::Claim;
use super::token::sha256_hex;
use crate::model::{DeviceId, is_unreserved};

/// Most addresses (hosts times units) of one scan.
pub const MAX_PROBES: usize = 4_096;
/// Least pause between two probes.
pub const MIN_PAUSE: Duration = Duration::from_millis(50);

/// A range of addresses to look at. [`Self::parse`] gives only ranges that may be scanned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScanRequest {
    /// Such as `modbus-tcp`.
    pub protocol: String,
    /// First host.
    pub first: Ipv4Addr,
    /// Last host, included.
    pub last: Ipv4Addr,
    /// TCP port.
    pub port: u16,
    /// Unit ids, included.
    pub units: (u8, u8),
    /// Pause between two probes; one probe at a time.
    pub pause: Duration,
    /// Who asked, for the audit entries of what is found.
    pub asked_by: String,
}

/// Why a range is not scanned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScanError {
    /// Another protocol.
    #[error("cannot scan for {0:?}; this version scans for modbus-tcp")]
    Protocol(String),
    /// Not a range.
    #[error(
        "range {0:?} is not understood; write 192.0.2.0/28, 192.0.2.10-192.0.2.20 or one address, then `port 502` and `units 1-3`"
    )]
    Range(String),
    /// Too many.
    #[error("the range has {0} probes; at most 4096 in one scan, so name a smaller one")]
    TooLarge(u64),
}

impl ScanRequest {
    /// Reads `192.0.2.0/28 port 502 units 1-3`; port 502 and unit 1 when they are not named.
    ///
    /// # Errors
    /// [`ScanError`].
    pub fn parse(protocol: &str, range: &str, asked_by: &str) -> Result<Self, ScanError> {
        if protocol != "modbus-tcp" {
            return Err(ScanError::Protocol(protocol.chars().take(32).collect()));
        }
        let bad = || ScanError::Range(range.chars().take(64).collect());
        let mut words = range.split_whitespace();
        let (first, last) = hosts(words.next().ok_or_else(bad)?).ok_or_else(bad)?;
        let (mut port, mut units) = (502u16, (1u8, 1u8));
        while let Some(word) = words.next() {
            let value = words.next().ok_or_else(bad)?;
            match word {
                "port" => port = value.parse().ok().filter(|p| *p != 0).ok_or_else(bad)?,
                "unit" | "units" => units = pair(value).ok_or_else(bad)?,
                _ => return Err(bad()),
            }
        }
        let request = Self {
            protocol: protocol.to_owned(),
            first,
            last,
            port,
            units,
            pause: MIN_PAUSE,
            asked_by: asked_by.to_owned(),
        };
        match request.size() {
            size if size > MAX_PROBES as u64 => Err(ScanError::TooLarge(size)),
            _ => Ok(request),
        }
    }

    fn size(&self) -> u64 {
        let hosts = u64::from(u32::from(self.last) - u32::from(self.first)) + 1;
        hosts * (u64::from(self.units.1 - self.units.0) + 1)
    }

    /// Every address to probe, in order: host, port, unit.
    pub fn probes(&self) -> impl Iterator<Item = (Ipv4Addr, u16, u8)> + use<> {
        let (port, units) = (self.port, self.units);
        let hosts = u32::from(self.first)..=u32::from(self.last);
        hosts.flat_map(move |host| (units.0..=units.1).map(move |unit| (Ipv4Addr::from(host), port, unit)))
    }
}

fn hosts(text: &str) -> Option<(Ipv4Addr, Ipv4Addr)> {
    if let Some((network, bits)) = text.split_once('/') {
        let (network, bits): (Ipv4Addr, u32) = (network.parse().ok()?, bits.parse().ok()?);
        let mask = u32::MAX.checked_shl(32u32.checked_sub(bits)?).unwrap_or(0);
        let first = u32::from(network) & mask;
        // Network and broadcast addresses are no hosts, except in networks of one or two.
        let edge = u32::from(bits < 31);
        return Some(((first + edge).into(), ((first | !mask) - edge).into()));
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last): (Ipv4Addr, Ipv4Addr) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some((first, last))
}

fn pair(text: &str) -> Option<(u8, u8)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last): (u8, u8) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last && last <= 247).then_some((first, last))
}

/// Something answered a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Such as `modbus-tcp`.
    pub protocol: String,
    /// In the form that devices of this protocol use, such as `tcp://192.0.2.7:502 unit 3`.
    pub address: String,
    /// What it reveals; `None` when it answers but does not say who it is.
    pub claim: Option<Claim>,
}

impl Finding {
    /// An id made of protocol and address: the same thing found twice has the same id.
    pub fn id(&self) -> DeviceId {
        let readable: String = self.address.chars().map(|c| if is_unreserved(c) { c } else { '-' }).collect();
        let readable = readable.trim_start_matches("tcp---").replace("--", "-");
        let hash = sha256_hex(format!("{} {}", self.protocol, self.address).as_bytes());
        let short: String = readable.chars().take(40).collect();
        DeviceId::new(&format!("found-{short}-{}", &hash[..6]))
            .expect("made of unreserved characters, at most 53 of them")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_bounded() {
        let parse = |range: &str| ScanRequest::parse("modbus-tcp", range, "x");
        assert_eq!(parse("192.0.2.0/28 units 1-3").unwrap().probes().count(), 14 * 3);
        assert_eq!(parse("192.0.2.9").unwrap().probes().collect::<Vec<_>>(), [([192, 0, 2, 9].into(), 502, 1)]);
        assert_eq!(parse("192.0.2.1-192.0.2.2 port 1502").unwrap().probes().count(), 2);
        assert_eq!(parse("192.0.2.1/32").unwrap().probes().count(), 1);
        assert!(matches!(parse("0.0.0.0/0"), Err(ScanError::TooLarge(_))));
        assert!(matches!(parse("192.0.2.0/24 units 1-247"), Err(ScanError::TooLarge(_))));
        for bad in [
            "",
            "x",
            "192.0.2.9-192.0.2.1",
            "192.0.2.0/33",
            "192.0.2.1 units 3-1",
            "192.0.2.1 port 0",
            "192.0.2.1 fast",
        ] {
            assert!(matches!(parse(bad), Err(ScanError::Range(_))), "{bad}");
        }
    }

    #[test]
    fn the_same_finding_has_the_same_id() {
        let finding = |a: &str| Finding { protocol: "modbus-tcp".into(), address: a.into(), claim: None }.id();
        assert_eq!(finding("tcp://192.0.2.7:502 unit 3"), finding("tcp://192.0.2.7:502 unit 3"));
        assert_ne!(finding("tcp://192.0.2.7:502 unit 3"), finding("tcp://192.0.2.7:502 unit 4"));
        assert!(finding("tcp://192.0.2.7:502 unit 3").as_str().starts_with("found-192.0.2.7-502-unit-3-"));
    }
}
