//! Reads the fields of a packet: integers, strings, properties.

use bytes::{BufMut, Bytes, BytesMut};

use super::DecodeError;

type Result<T> = std::result::Result<T, DecodeError>;

/// Cursor over the body of one packet.
pub(super) struct Reader<'a> {
    data: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub fn new(data: &'a [u8]) -> Self {
        Self { data, at: 0 }
    }

    pub fn position(&self) -> usize {
        self.at
    }

    pub fn is_empty(&self) -> bool {
        self.at >= self.data.len()
    }

    pub fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(len).filter(|&end| end <= self.data.len());
        let end = end.ok_or(DecodeError::Malformed("a field ends beyond the packet"))?;
        let slice = &self.data[self.at..end];
        self.at = end;
        Ok(slice)
    }

    pub fn u8(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    pub fn u16(&mut self) -> Result<u16> {
        let b = self.take(2)?;
        Ok(u16::from_be_bytes([b[0], b[1]]))
    }

    pub fn u32(&mut self) -> Result<u32> {
        let b = self.take(4)?;
        Ok(u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
    }

    pub fn varint(&mut self) -> Result<u32> {
        let mut value = 0u32;
        for shift in [0, 7, 14, 21] {
            let byte = self.u8()?;
            value |= u32::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeError::Malformed("a variable length has more than four bytes"))
    }

    pub fn binary(&mut self) -> Result<&'a [u8]> {
        let len = self.u16()?;
        self.take(usize::from(len))
    }

    /// UTF-8 without U+0000 [MQTT-1.5.4-2].
    pub fn text(&mut self) -> Result<&'a str> {
        let text = std::str::from_utf8(self.binary()?).map_err(|_| DecodeError::Malformed("text is not UTF-8"))?;
        if text.contains('\0') {
            return Err(DecodeError::Malformed("text contains U+0000"));
        }
        Ok(text)
    }

    /// Packet identifier: not 0 [MQTT-2.2.1-3].
    pub fn packet_id(&mut self) -> Result<u16> {
        match self.u16()? {
            0 => Err(DecodeError::Malformed("packet identifier 0")),
            id => Ok(id),
        }
    }

    /// The property list at the cursor.
    pub fn properties(&mut self) -> Result<Properties<'a>> {
        let len = self.varint()? as usize;
        Ok(Properties { reader: Reader::new(self.take(len)?), seen: 0 })
    }
}

/// Value of one MQTT 5 property.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value<'a> {
    Byte(u8),
    Two(u16),
    Four(u32),
    Variable(u32),
    Text(&'a str),
    Binary(&'a [u8]),
    Pair,
}

/// One MQTT 5 property with its encoded form.
pub(super) struct Property<'a> {
    pub id: u8,
    pub value: Value<'a>,
    pub raw: &'a [u8],
}

/// Iterates a property list; refuses unknown and repeated properties [MQTT 5, 2.2.2.2].
pub(super) struct Properties<'a> {
    reader: Reader<'a>,
    seen: u64,
}

const USER_PROPERTY: u8 = 0x26;

impl<'a> Properties<'a> {
    pub fn next(&mut self) -> Result<Option<Property<'a>>> {
        if self.reader.is_empty() {
            return Ok(None);
        }
        let start = self.reader.position();
        let id = self.reader.u8()?;
        let value = self.value(id)?;
        if id != USER_PROPERTY && self.seen & (1 << id) != 0 {
            return Err(DecodeError::Protocol("a property stands twice"));
        }
        self.seen |= 1 << id;
        Ok(Some(Property { id, value, raw: &self.reader.data[start..self.reader.position()] }))
    }

    fn value(&mut self, id: u8) -> Result<Value<'a>> {
        let r = &mut self.reader;
        Ok(match id {
            0x01 | 0x17 | 0x19 | 0x24 | 0x25 | 0x28 | 0x29 | 0x2a => Value::Byte(r.u8()?),
            0x13 | 0x21 | 0x22 | 0x23 => Value::Two(r.u16()?),
            0x02 | 0x11 | 0x18 | 0x27 => Value::Four(r.u32()?),
            0x0b => Value::Variable(r.varint()?),
            0x03 | 0x08 | 0x12 | 0x15 | 0x1a | 0x1c | 0x1f => Value::Text(r.text()?),
            0x09 | 0x16 => Value::Binary(r.binary()?),
            USER_PROPERTY => {
                r.text()?;
                r.text()?;
                Value::Pair
            }
            _ => return Err(DecodeError::Malformed("unknown property")),
        })
    }
}

/// Properties of an application message, of a PUBLISH or of a will.
#[derive(Default)]
pub(super) struct MessageProperties {
    pub forward: Bytes,
    pub expiry: Option<u32>,
    pub will_delay: u32,
}

/// Reads the properties of a message. `will` allows the will delay and refuses what only a PUBLISH may have.
pub(super) fn message_properties(mut properties: Properties<'_>, will: bool) -> Result<MessageProperties> {
    let mut found = MessageProperties::default();
    let mut forward = BytesMut::new();
    while let Some(property) = properties.next()? {
        match (property.id, property.value) {
            (0x02, Value::Four(seconds)) => found.expiry = Some(seconds),
            (0x18, Value::Four(seconds)) if will => found.will_delay = seconds,
            (0x23, _) if !will => return Err(DecodeError::TopicAlias),
            (0x01, Value::Byte(2..)) => return Err(DecodeError::Protocol("payload format is not 0 or 1")),
            (0x08, Value::Text(topic)) if topic.is_empty() || topic.contains(['+', '#']) => {
                return Err(DecodeError::Protocol("the response topic has wildcards"));
            }
            (0x01 | 0x03 | 0x08 | 0x09 | USER_PROPERTY, _) => forward.put_slice(property.raw),
            _ => return Err(DecodeError::Protocol("a property does not belong to this packet")),
        }
    }
    found.forward = forward.freeze();
    Ok(found)
}

/// Response topic and correlation data in encoded message properties.
pub(crate) fn response_to(forward: &[u8]) -> (Option<String>, Option<Bytes>) {
    let mut properties = Properties { reader: Reader::new(forward), seen: 0 };
    let mut found = (None, None);
    while let Ok(Some(property)) = properties.next() {
        match (property.id, property.value) {
            (0x08, Value::Text(topic)) => found.0 = Some(topic.to_owned()),
            (0x09, Value::Binary(data)) => found.1 = Some(Bytes::copy_from_slice(data)),
            _ => {}
        }
    }
    found
}
