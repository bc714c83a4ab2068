//! Who a device is: what it claims, and what was pinned.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Longest text of a claim that is kept, in bytes, and most extra entries.
const MAX_TEXT: usize = 256;
const MAX_OTHER: usize = 32;

/// What a device reveals of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Claim {
    /// What its client certificate proves; only for devices that connect by themselves.
    pub certificate: Option<String>,
    /// Manufacturer.
    pub vendor: String,
    /// Model or product code.
    pub model: String,
    /// Serial number.
    pub serial: String,
    /// Firmware revision; no part of the identity.
    pub firmware: String,
    /// Whatever else it tells.
    pub other: BTreeMap<String, String>,
}

impl Claim {
    /// Whether it reveals nothing that tells it from another device.
    pub fn is_empty(&self) -> bool {
        self.certificate.is_none() && self.vendor.is_empty() && self.model.is_empty() && self.serial.is_empty()
    }

    /// One line that stays the same as long as the hardware does: vendor, model and serial number, each with its length in
    /// front so that no two identities share a line. Firmware is left out: an update is not a new device.
    pub fn fingerprint(&self) -> String {
        let part = |text: &str| format!("{}:{text}", text.len());
        [part(&self.vendor), part(&self.model), part(&self.serial)].join("|")
    }

    /// The strongest identity in it; the address where it reveals nothing.
    pub fn pin(&self, address: &str) -> Pin {
        match &self.certificate {
            Some(certificate) => Pin { kind: PinKind::Certificate, value: certificate.clone() },
            None if self.is_empty() => Pin { kind: PinKind::Address, value: address.to_owned() },
            None => Pin { kind: PinKind::Fingerprint, value: self.fingerprint() },
        }
    }

    /// Cuts what a hostile device could blow up, and control characters that would garble tables and logs.
    pub fn bounded(mut self) -> Self {
        let cut = |text: &mut String| {
            text.retain(|c| !c.is_control());
            let end = (0..=MAX_TEXT.min(text.len())).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
            text.truncate(end);
        };
        for text in [&mut self.vendor, &mut self.model, &mut self.serial, &mut self.firmware] {
            cut(text);
        }
        let other = std::mem::take(&mut self.other).into_iter().take(MAX_OTHER);
        self.other = other
            .map(|(mut key, mut value)| {
                cut(&mut key);
                cut(&mut value);
                (key, value)
            })
            .collect();
        self
    }
}

/// What kind of identity was pinned, strongest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PinKind {
    /// What the client certificate proves.
    Certificate,
    /// Vendor, model and serial number.
    Fingerprint,
    /// Only the address: the device reveals nothing.
    Address,
}

/// The identity that a device was approved with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// What it is.
    pub kind: PinKind,
    /// The comparable text.
    pub value: String,
}

impl Pin {
    /// Whether it tells this piece of hardware from another one of the same make: an address does not, and neither do vendor
    /// and model without a serial number.
    pub fn names_one_piece(&self) -> bool {
        match self.kind {
            PinKind::Certificate => true,
            PinKind::Fingerprint => !self.value.ends_with("|0:"),
            PinKind::Address => false,
        }
    }

    /// Vendor, model and serial number, where they are what was pinned.
    pub fn name_plate(&self) -> Option<Claim> {
        if self.kind != PinKind::Fingerprint {
            return None;
        }
        let mut rest = self.value.as_str();
        let mut part = || {
            let (length, text) = rest.split_once(':')?;
            let (part, after) = text.split_at_checked(length.parse().ok()?)?;
            rest = after.strip_prefix('|').unwrap_or(after);
            Some(part.to_owned())
        };
        Some(Claim { vendor: part()?, model: part()?, serial: part()?, ..Claim::default() })
    }

    /// The same identity with the serial number of the claim, where no serial number was known.
    pub fn completed(&self, claim: &Claim) -> Option<Self> {
        let known = self.name_plate().filter(|known| known.serial.is_empty() && !claim.serial.is_empty())?;
        let alike = known.vendor == claim.vendor && known.model == claim.model;
        alike.then(|| Self { kind: PinKind::Fingerprint, value: claim.fingerprint() })
    }

    /// Whether the claim is that of the pinned device. A claim that reveals nothing says nothing against it, and neither does
    /// a serial number where none was known.
    pub fn fits(&self, claim: &Claim) -> bool {
        match self.kind {
            PinKind::Certificate => claim.certificate.as_ref().is_none_or(|c| *c == self.value),
            PinKind::Fingerprint => {
                (claim.vendor.is_empty() && claim.model.is_empty() && claim.serial.is_empty())
                    || claim.fingerprint() == self.value
                    || self.completed(claim).is_some()
            }
            PinKind::Address => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(vendor: &str, serial: &str) -> Claim {
        Claim { vendor: vendor.to_owned(), serial: serial.to_owned(), ..Claim::default() }
    }

    #[test]
    fn firmware_is_no_identity_but_the_serial_number_is() {
        let pin = claim("ACME", "1").pin("tcp://a");
        assert!(pin.fits(&Claim { firmware: "2.0".to_owned(), ..claim("ACME", "1") }));
        assert!(!pin.fits(&claim("ACME", "2")));
        assert!(pin.fits(&Claim::default()), "silence is no mismatch");
        assert!(pin.names_one_piece() && !claim("ACME", "").pin("x").names_one_piece());
    }

    #[test]
    fn a_serial_number_completes_an_identity_without_one_and_never_exchanges_it() {
        let pin = claim("ACME", "").pin("tcp://a");
        let whole = pin.completed(&claim("ACME", "1")).unwrap();
        assert!(pin.fits(&claim("ACME", "1")) && whole == claim("ACME", "1").pin("tcp://a"));
        assert!(!whole.fits(&claim("ACME", "2")) && !whole.fits(&claim("ACME", "")), "it counts from then on");
        assert!(!pin.fits(&claim("Other", "1")) && whole.completed(&claim("ACME", "2")).is_none());
        assert_eq!(Claim::default().pin("tcp://a").completed(&claim("ACME", "1")), None, "an address is no name plate");
    }

    #[test]
    fn the_name_plate_can_be_read_back_from_the_pin() {
        for (vendor, serial) in [("ACME", "1"), ("", "7|3:x"), ("A|B", ""), ("Ö", "3:|")] {
            let claim = claim(vendor, serial);
            assert_eq!(claim.pin("tcp://a").name_plate(), (!claim.is_empty()).then_some(claim));
        }
        assert_eq!(Claim::default().pin("tcp://a").name_plate(), None);
    }

    #[test]
    fn the_certificate_outweighs_the_name_plate() {
        let with = |c: &str| Claim { certificate: Some(c.to_owned()), ..claim("ACME", "1") };
        let pin = with("aa").pin("x");
        assert_eq!(pin.kind, PinKind::Certificate);
        assert!(pin.fits(&with("aa")) && !pin.fits(&with("bb")));
    }

    #[test]
    fn hostile_claims_are_cut() {
        let claim = Claim {
            vendor: "ü".repeat(10_000),
            model: "a\nb\u{7}".to_owned(),
            other: (0..1000).map(|i| (i.to_string(), String::new())).collect(),
            ..Claim::default()
        };
        let cut = claim.bounded();
        assert!(cut.vendor.len() <= MAX_TEXT && cut.other.len() == MAX_OTHER && cut.model == "ab");
    }
}
