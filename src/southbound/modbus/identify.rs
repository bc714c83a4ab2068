//! What a Modbus device says of itself: FC 43/14 (read device identification), else FC 17 (report server id).
//!
//! Sans-IO: the walk over the objects and the reading of the replies; the driver sends.

use std::collections::BTreeMap;

use crate::southbound::Identity;

use super::pdu::Request;

/// Most replies of one walk; a device that always has more to follow is not followed for ever.
const MOST_REPLIES: usize = 32;

/// A walk over the identification objects of a device.
#[derive(Debug)]
pub struct Walk {
    code: u8,
    next: u8,
    replies: usize,
    objects: BTreeMap<u8, String>,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Send this.
    Ask(Request<'static>),
    /// The walk is over.
    Done,
}

impl Default for Walk {
    fn default() -> Self {
        Self { code: 1, next: 0, replies: 0, objects: BTreeMap::new() }
    }
}

impl Walk {
    /// The first request: basic identification from object 0.
    pub fn first(&self) -> Request<'static> {
        Request::DeviceId { code: self.code, object: self.next }
    }

    /// Takes the data of a reply (behind the MEI type) and says what to do next.
    pub fn reply(&mut self, data: &[u8]) -> Next {
        self.replies += 1;
        let Some((&[_, conformity, more, next, count], mut rest)) = data.split_first_chunk::<5>() else {
            return Next::Done;
        };
        for _ in 0..count {
            let Some((&[id, length], tail)) = rest.split_first_chunk::<2>() else { break };
            let Some((value, tail)) = tail.split_at_checked(usize::from(length)) else { break };
            self.objects.insert(id, printable(value));
            rest = tail;
        }
        if self.replies >= MOST_REPLIES {
            return Next::Done;
        }
        if more == 0xFF && next > self.next {
            self.next = next;
            return Next::Ask(self.first());
        }
        // The conformity level says which further categories exist: 1 basic, 2 regular, 3 extended (V1.1b3, 6.21).
        let highest = conformity & 0x03;
        if self.code < highest {
            self.code += 1;
            self.next = if self.code == 2 { 3 } else { 0x80 };
            return Next::Ask(self.first());
        }
        Next::Done
    }

    /// Whether the device told anything so far.
    pub fn has_objects(&self) -> bool {
        !self.objects.is_empty()
    }

    /// What was found; `None` when nothing was. `serial` is the object that holds the serial number.
    pub fn finish(mut self, serial: Option<u8>) -> Option<Identity> {
        if self.objects.is_empty() {
            return None;
        }
        let serial = serial.and_then(|id| self.objects.remove(&id)).filter(|text| !text.is_empty());
        let vendor = self.objects.remove(&0).filter(|text| !text.is_empty());
        let code = self.objects.remove(&1).filter(|text| !text.is_empty());
        let firmware = self.objects.remove(&2).filter(|text| !text.is_empty());
        let name = self.objects.remove(&5).filter(|text| !text.is_empty());
        let mut other: BTreeMap<String, String> = self
            .objects
            .into_iter()
            .filter(|(_, text)| !text.is_empty())
            .map(|(id, text)| (object_name(id), text))
            .collect();
        if let (Some(name), Some(code)) = (&name, &code)
            && name != code
        {
            other.insert("product-name".into(), name.clone());
        }
        Some(Identity { vendor, model: code.or(name), serial, firmware, other })
    }
}

fn object_name(id: u8) -> String {
    match id {
        3 => "vendor-url".into(),
        4 => "product-name".into(),
        5 => "model-name".into(),
        6 => "application-name".into(),
        _ => format!("object-{id}"),
    }
}

/// Octets as text: what is not printable becomes a dot, NUL and spaces at the end go.
fn printable(octets: &[u8]) -> String {
    let text = String::from_utf8_lossy(octets);
    let text = text.trim_end_matches(['\0', ' ']);
    text.chars().map(|c| if c.is_control() { '.' } else { c }).collect()
}

/// Reads a reply to FC 17: its content is the vendor's own, so that it is kept as text if it is one, else as octets.
pub fn server_id(data: &[u8]) -> Option<Identity> {
    let (&id, rest) = data.split_first()?;
    let mut identity = Identity::default();
    identity.other.insert("server-id".into(), id.to_string());
    let text = rest.strip_prefix(&[0xFF]).or_else(|| rest.strip_prefix(&[0])).unwrap_or(rest);
    let text = text.strip_suffix(&[0xFF]).unwrap_or(text);
    let readable = text.iter().all(|octet| (0x20..0x7F).contains(octet) || *octet == 0) && !text.is_empty();
    if readable {
        identity.model = Some(printable(text)).filter(|text| !text.is_empty());
    } else if !rest.is_empty() {
        identity.other.insert("server-data".into(), rest.iter().map(|octet| format!("{octet:02x}")).collect());
    }
    Some(identity)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reply(code: u8, conformity: u8, more: u8, next: u8, objects: &[(u8, &str)]) -> Vec<u8> {
        let mut data = vec![code, conformity, more, next, objects.len() as u8];
        for (id, text) in objects {
            data.extend_from_slice(&[*id, text.len() as u8]);
            data.extend_from_slice(text.as_bytes());
        }
        data
    }

    #[test]
    fn follows_more_follows_and_the_higher_categories() {
        let mut walk = Walk::default();
        assert_eq!(walk.first(), Request::DeviceId { code: 1, object: 0 });
        let next = walk.reply(&reply(1, 0x83, 0xFF, 2, &[(0, "ACME"), (1, "PM-5")]));
        assert_eq!(next, Next::Ask(Request::DeviceId { code: 1, object: 2 }));
        let next = walk.reply(&reply(1, 0x83, 0, 0, &[(2, "V1.2")]));
        assert_eq!(next, Next::Ask(Request::DeviceId { code: 2, object: 3 }));
        let next = walk.reply(&reply(2, 0x83, 0, 0, &[(5, "Power meter")]));
        assert_eq!(next, Next::Ask(Request::DeviceId { code: 3, object: 0x80 }));
        assert_eq!(walk.reply(&reply(3, 0x83, 0, 0, &[(0x81, "x\u{1}y ")])), Next::Done);
        let identity = walk.finish(None).unwrap();
        assert_eq!(identity.vendor.as_deref(), Some("ACME"));
        assert_eq!(identity.model.as_deref(), Some("PM-5"));
        assert_eq!(identity.firmware.as_deref(), Some("V1.2"));
        assert_eq!(identity.other["object-129"], "x.y");
        assert_eq!(identity.other["product-name"], "Power meter");
    }

    #[test]
    fn the_serial_number_stands_where_the_profile_says() {
        let told = |serial| {
            let mut walk = Walk::default();
            walk.reply(&reply(3, 3, 0, 0, &[(0, "ACME"), (0x80, "S-4711"), (0x81, "")]));
            walk.finish(serial).unwrap()
        };
        assert_eq!(told(Some(0x80)).serial.as_deref(), Some("S-4711"));
        assert!(!told(Some(0x80)).other.contains_key("object-128"), "it is told once");
        assert_eq!((told(Some(0x81)).serial, told(None).serial), (None, None));
        assert_eq!(told(None).other["object-128"], "S-4711");
    }

    #[test]
    fn server_id_text_becomes_the_model() {
        assert_eq!(server_id(b"\x05\xFFPLC-7").unwrap().model.as_deref(), Some("PLC-7"));
        assert_eq!(server_id(&[5, 0xFF, 1, 2]).unwrap().other["server-data"], "ff0102");
        assert_eq!(server_id(&[]), None);
    }

    proptest! {
        #[test]
        fn a_walk_over_any_replies_ends(replies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 1..50)) {
            let mut walk = Walk::default();
            let mut sent = 1;
            for data in replies.iter().cycle() {
                match walk.reply(data) {
                    Next::Ask(_) => sent += 1,
                    Next::Done => break,
                }
                prop_assert!(sent <= MOST_REPLIES);
            }
            let _ = walk.finish(None);
        }
    }
}
