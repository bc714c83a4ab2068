//! From bytes to packets.

use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};

use super::reader::{Reader, Value, message_properties};
use super::{Connect, DecodeError, FilterRequest, Packet, Publish, RetainHandling, Version, WillPacket};
use crate::broker::Qos;
use crate::broker::topic;

type Result<T> = std::result::Result<T, DecodeError>;

/// Takes the first packet, a CONNECT, off `buffer`; `None` while it is incomplete. `limit` bounds the packet in bytes.
pub(crate) fn decode_connect(buffer: &mut BytesMut, limit: usize) -> Result<Option<Connect>> {
    match buffer.first() {
        None => return Ok(None),
        Some(0x10) => {}
        Some(_) => return Err(DecodeError::Protocol("the first packet is not CONNECT")),
    }
    let Some((_, body)) = frame(buffer, limit)? else { return Ok(None) };
    connect(&body).map(Some)
}

/// Takes one packet off `buffer`; `None` while it is incomplete. `limit` bounds the packet in bytes.
pub(crate) fn decode(buffer: &mut BytesMut, version: Version, limit: usize) -> Result<Option<Packet>> {
    let Some((first, body)) = frame(buffer, limit)? else { return Ok(None) };
    let v5 = version == Version::V5;
    let flags = first & 0x0f;
    let kind = first >> 4;
    let expected = if matches!(kind, 6 | 8 | 10) { 2 } else { 0 };
    if kind != 3 && flags != expected {
        return Err(DecodeError::Malformed("reserved flags of the fixed header"));
    }
    let packet = match kind {
        3 => Packet::Publish(publish(flags, &body, v5)?),
        4 => Packet::PubAck { id: ack(&body, v5)?.0 },
        5 => {
            let (id, reason) = ack(&body, v5)?;
            Packet::PubRec { id, failed: reason >= 0x80 }
        }
        6 => Packet::PubRel { id: ack(&body, v5)?.0 },
        7 => Packet::PubComp { id: ack(&body, v5)?.0 },
        8 => subscribe(&body, v5)?,
        10 => unsubscribe(&body, v5)?,
        12 if body.is_empty() => Packet::PingReq,
        14 => disconnect(&body, v5)?,
        1 => return Err(DecodeError::Protocol("a second CONNECT")),
        15 => return Err(DecodeError::Protocol("AUTH without an authentication method")),
        _ => return Err(DecodeError::Malformed("a packet type that a client does not send")),
    };
    Ok(Some(packet))
}

/// Splits one packet off: its first byte and its body.
fn frame(buffer: &mut BytesMut, limit: usize) -> Result<Option<(u8, Bytes)>> {
    let mut remaining = 0usize;
    let mut header = None;
    for at in 1..=4 {
        let Some(&byte) = buffer.get(at) else { return Ok(None) };
        remaining |= usize::from(byte & 0x7f) << (7 * (at - 1));
        if byte & 0x80 == 0 {
            header = Some(at + 1);
            break;
        }
    }
    let header = header.ok_or(DecodeError::Malformed("the remaining length has more than four bytes"))?;
    let size = header + remaining;
    if size > limit {
        return Err(DecodeError::TooLarge { size, limit });
    }
    if buffer.len() < size {
        buffer.reserve(size - buffer.len());
        return Ok(None);
    }
    let first = buffer[0];
    let mut packet = buffer.split_to(size).freeze();
    packet.advance(header);
    Ok(Some((first, packet)))
}

fn connect(body: &[u8]) -> Result<Connect> {
    let mut r = Reader::new(body);
    let name = r.binary()?;
    let level = r.u8()?;
    let version = match (name, level) {
        (b"MQTT", 4) => Version::V311,
        (b"MQTT", 5) => Version::V5,
        (b"MQTT" | b"MQIsdp", level) => return Err(DecodeError::Version(level)),
        _ => return Err(DecodeError::Malformed("the protocol name is not MQTT")),
    };
    let flags = r.u8()?;
    if flags & 1 != 0 {
        return Err(DecodeError::Malformed("the reserved connect flag is set"));
    }
    let (has_will, has_password, has_user) = (flags & 0x04 != 0, flags & 0x40 != 0, flags & 0x80 != 0);
    if !has_will && flags & 0x38 != 0 {
        return Err(DecodeError::Malformed("will flags without a will"));
    }
    if version == Version::V311 && has_password && !has_user {
        return Err(DecodeError::Malformed("a password without a user name"));
    }
    let keep_alive = r.u16()?;
    let mut connect = Connect {
        version,
        clean_start: flags & 0x02 != 0,
        keep_alive,
        client_id: String::new(),
        will: None,
        user: None,
        password: None,
        session_expiry: 0,
        receive_maximum: u16::MAX,
        maximum_packet: u32::MAX,
        extended_auth: false,
    };
    if version == Version::V5 {
        connect_properties(&mut r, &mut connect)?;
    }
    connect.client_id = r.text()?.to_owned();
    if has_will {
        connect.will = Some(will(&mut r, flags, version)?);
    }
    if has_user {
        connect.user = Some(r.text()?.to_owned());
    }
    if has_password {
        connect.password = Some(Bytes::copy_from_slice(r.binary()?));
    }
    if !r.is_empty() {
        return Err(DecodeError::Malformed("bytes after the last field of CONNECT"));
    }
    Ok(connect)
}

fn connect_properties(r: &mut Reader<'_>, connect: &mut Connect) -> Result<()> {
    let mut properties = r.properties()?;
    while let Some(property) = properties.next()? {
        match (property.id, property.value) {
            (0x11, Value::Four(seconds)) => connect.session_expiry = seconds,
            (0x21, Value::Two(0)) => return Err(DecodeError::Protocol("receive maximum 0")),
            (0x21, Value::Two(count)) => connect.receive_maximum = count,
            (0x27, Value::Four(0)) => return Err(DecodeError::Protocol("maximum packet size 0")),
            (0x27, Value::Four(size)) => connect.maximum_packet = size,
            (0x17 | 0x19, Value::Byte(2..)) => return Err(DecodeError::Protocol("a flag is not 0 or 1")),
            (0x15, _) => connect.extended_auth = true,
            (0x16 | 0x17 | 0x19 | 0x22 | 0x26, _) => {}
            _ => return Err(DecodeError::Protocol("a property does not belong to CONNECT")),
        }
    }
    Ok(())
}

fn will(r: &mut Reader<'_>, flags: u8, version: Version) -> Result<WillPacket> {
    let found = if version == Version::V5 { message_properties(r.properties()?, true)? } else { Default::default() };
    let topic = r.text()?;
    if !topic::valid_name(topic) {
        return Err(DecodeError::Malformed("the will topic is no topic name"));
    }
    let payload = r.binary()?;
    Ok(WillPacket {
        topic: topic.into(),
        payload: Bytes::copy_from_slice(payload),
        qos: qos(flags >> 3)?,
        retain: flags & 0x20 != 0,
        forward: found.forward,
        expiry: found.expiry,
        delay: found.will_delay,
    })
}

fn qos(bits: u8) -> Result<Qos> {
    Qos::from_u8(bits & 3).ok_or(DecodeError::Malformed("QoS 3"))
}

fn publish(flags: u8, body: &[u8], v5: bool) -> Result<Publish> {
    let qos = qos(flags >> 1)?;
    let dup = flags & 8 != 0;
    if dup && qos == Qos::AtMostOnce {
        return Err(DecodeError::Malformed("DUP on QoS 0"));
    }
    let mut r = Reader::new(body);
    let name = r.text()?;
    let id = if qos == Qos::AtMostOnce { 0 } else { r.packet_id()? };
    let found = if v5 { message_properties(r.properties()?, false)? } else { Default::default() };
    if !topic::valid_name(name) {
        return Err(DecodeError::Malformed("the topic is no topic name (empty, wildcards, or too many levels)"));
    }
    // A copy: a slice of the read buffer would keep all of it alive for as long as the message is retained.
    let payload = Bytes::copy_from_slice(&body[r.position()..]);
    let topic: Arc<str> = name.into();
    Ok(Publish { topic, payload, qos, retain: flags & 1 != 0, dup, id, forward: found.forward, expiry: found.expiry })
}

/// Identifier and reason of PUBACK, PUBREC, PUBREL and PUBCOMP.
fn ack(body: &[u8], v5: bool) -> Result<(u16, u8)> {
    let mut r = Reader::new(body);
    let id = r.packet_id()?;
    if r.is_empty() {
        return Ok((id, 0));
    }
    if !v5 {
        return Err(DecodeError::Malformed("bytes after the packet identifier"));
    }
    let reason = r.u8()?;
    if !r.is_empty() {
        only(&mut r, &[0x1f, 0x26])?;
    }
    Ok((id, reason))
}

/// Reads a property list that may hold `allowed` only and drops it.
fn only(r: &mut Reader<'_>, allowed: &[u8]) -> Result<()> {
    let mut properties = r.properties()?;
    while let Some(property) = properties.next()? {
        if !allowed.contains(&property.id) {
            return Err(DecodeError::Protocol("a property does not belong to this packet"));
        }
    }
    if r.is_empty() { Ok(()) } else { Err(DecodeError::Malformed("bytes after the properties")) }
}

fn subscribe(body: &[u8], v5: bool) -> Result<Packet> {
    let mut r = Reader::new(body);
    let id = r.packet_id()?;
    let mut identifier = None;
    if v5 {
        let mut properties = r.properties()?;
        while let Some(property) = properties.next()? {
            match (property.id, property.value) {
                (0x0b, Value::Variable(0)) => return Err(DecodeError::Protocol("subscription identifier 0")),
                (0x0b, Value::Variable(value)) => identifier = Some(value),
                (0x26, _) => {}
                _ => return Err(DecodeError::Protocol("a property does not belong to SUBSCRIBE")),
            }
        }
    }
    let mut filters = Vec::new();
    while !r.is_empty() {
        let filter = r.text()?.to_owned();
        let options = r.u8()?;
        filters.push(filter_request(filter, options, v5)?);
    }
    if filters.is_empty() {
        return Err(DecodeError::Protocol("SUBSCRIBE without a filter"));
    }
    Ok(Packet::Subscribe { id, identifier, filters })
}

fn filter_request(filter: String, options: u8, v5: bool) -> Result<FilterRequest> {
    let reserved = if v5 { 0xc0 } else { 0xfc };
    if options & reserved != 0 {
        return Err(DecodeError::Malformed("reserved subscription options"));
    }
    let retain_handling = match (options >> 4) & 3 {
        0 => RetainHandling::Always,
        1 => RetainHandling::IfNew,
        2 => RetainHandling::Never,
        _ => return Err(DecodeError::Protocol("retain handling 3")),
    };
    let no_local = options & 4 != 0;
    if no_local && filter.starts_with(topic::SHARE) {
        return Err(DecodeError::Protocol("no-local on a shared subscription"));
    }
    Ok(FilterRequest { qos: qos(options)?, no_local, retain_as_published: options & 8 != 0, retain_handling, filter })
}

fn unsubscribe(body: &[u8], v5: bool) -> Result<Packet> {
    let mut r = Reader::new(body);
    let id = r.packet_id()?;
    if v5 {
        let mut properties = r.properties()?;
        while let Some(property) = properties.next()? {
            if property.id != 0x26 {
                return Err(DecodeError::Protocol("a property does not belong to UNSUBSCRIBE"));
            }
        }
    }
    let mut filters = Vec::new();
    while !r.is_empty() {
        filters.push(r.text()?.to_owned());
    }
    if filters.is_empty() {
        return Err(DecodeError::Protocol("UNSUBSCRIBE without a filter"));
    }
    Ok(Packet::Unsubscribe { id, filters })
}

fn disconnect(body: &[u8], v5: bool) -> Result<Packet> {
    let mut found = (0, None);
    if v5 && !body.is_empty() {
        let mut r = Reader::new(body);
        found.0 = r.u8()?;
        if !r.is_empty() {
            let mut properties = r.properties()?;
            while let Some(property) = properties.next()? {
                match (property.id, property.value) {
                    (0x11, Value::Four(seconds)) => found.1 = Some(seconds),
                    (0x1c | 0x1f | 0x26, _) => {}
                    _ => return Err(DecodeError::Protocol("a property does not belong to DISCONNECT")),
                }
            }
        }
    } else if !body.is_empty() {
        return Err(DecodeError::Malformed("DISCONNECT with a body"));
    }
    Ok(Packet::Disconnect { reason: found.0, session_expiry: found.1 })
}
