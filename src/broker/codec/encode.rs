//! From packets to bytes. Everything is appended to one buffer that the connection writes at once.

use bytes::{BufMut, BytesMut};

use super::Version;
use crate::broker::Qos;

/// QoS 2 messages that a client may have sent and not released.
pub(crate) const RECEIVE_MAXIMUM: u16 = 1000;

/// What a CONNACK tells an MQTT 5 client.
#[derive(Debug, Clone, Default)]
pub(crate) struct ConnAckProperties<'a> {
    /// Seconds, where it differs from what the client asked for.
    pub session_expiry: Option<u32>,
    pub assigned_client_id: Option<&'a str>,
    pub maximum_packet: u32,
    pub reason: &'a str,
}

/// CONNACK. `code` is the return code of the connection's version.
pub(crate) fn connack(
    out: &mut BytesMut,
    version: Version,
    present: bool,
    code: u8,
    properties: &ConnAckProperties<'_>,
) {
    if version == Version::V311 {
        out.put_slice(&[0x20, 2, u8::from(present), code]);
        return;
    }
    let mut list = BytesMut::new();
    if let Some(seconds) = properties.session_expiry {
        list.put_u8(0x11);
        list.put_u32(seconds);
    }
    if let Some(id) = properties.assigned_client_id {
        list.put_u8(0x12);
        text(&mut list, id);
    }
    if code == 0 {
        list.put_u8(0x21);
        list.put_u16(RECEIVE_MAXIMUM);
        list.put_u8(0x27);
        list.put_u32(properties.maximum_packet);
    }
    if !properties.reason.is_empty() {
        list.put_u8(0x1f);
        text(&mut list, properties.reason);
    }
    out.put_u8(0x20);
    varint(out, 2 + varint_len(list.len()) + list.len());
    out.put_slice(&[u8::from(present), code]);
    varint(out, list.len());
    out.put_slice(&list);
}

/// The parts of a PUBLISH that differ per subscriber.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PublishHeader<'a> {
    pub qos: Qos,
    pub retain: bool,
    pub dup: bool,
    /// 0 for QoS 0.
    pub id: u16,
    /// Seconds left; MQTT 5 only.
    pub expiry: Option<u32>,
    /// MQTT 5 only.
    pub subscriptions: &'a [u32],
}

/// PUBLISH. `forward` are encoded properties, left out for 3.1.1. Returns the packet's size; when that is above `limit`
/// nothing is written.
pub(crate) fn publish(
    out: &mut BytesMut,
    version: Version,
    header: PublishHeader<'_>,
    (topic, payload, forward): (&str, &[u8], &[u8]),
    limit: u32,
) -> usize {
    let v5 = version == Version::V5;
    let id_len = if header.qos == Qos::AtMostOnce { 0 } else { 2 };
    let properties = if v5 { properties_len(&header, forward) } else { 0 };
    let properties_size = if v5 { varint_len(properties) + properties } else { 0 };
    let remaining = 2 + topic.len() + id_len + properties_size + payload.len();
    let size = 1 + varint_len(remaining) + remaining;
    if size > limit as usize {
        return size;
    }
    out.reserve(size);
    out.put_u8(0x30 | u8::from(header.dup) << 3 | (header.qos as u8) << 1 | u8::from(header.retain));
    varint(out, remaining);
    text(out, topic);
    if id_len > 0 {
        out.put_u16(header.id);
    }
    if v5 {
        varint(out, properties);
        if let Some(seconds) = header.expiry {
            out.put_u8(0x02);
            out.put_u32(seconds);
        }
        for &subscription in header.subscriptions {
            out.put_u8(0x0b);
            varint(out, subscription as usize);
        }
        out.put_slice(forward);
    }
    out.put_slice(payload);
    size
}

fn properties_len(header: &PublishHeader<'_>, forward: &[u8]) -> usize {
    let expiry = if header.expiry.is_some() { 5 } else { 0 };
    let subscriptions: usize = header.subscriptions.iter().map(|&id| 1 + varint_len(id as usize)).sum();
    expiry + subscriptions + forward.len()
}

fn ack(out: &mut BytesMut, first: u8, version: Version, id: u16, reason: u8) {
    let long = version == Version::V5 && reason != 0;
    out.put_slice(&[first, if long { 3 } else { 2 }]);
    out.put_u16(id);
    if long {
        out.put_u8(reason);
    }
}

/// PUBACK; 3.1.1 has no reason and always says success.
pub(crate) fn puback(out: &mut BytesMut, version: Version, id: u16, reason: u8) {
    ack(out, 0x40, version, id, reason);
}

/// PUBREC; 3.1.1 has no reason and always says success.
pub(crate) fn pubrec(out: &mut BytesMut, version: Version, id: u16, reason: u8) {
    ack(out, 0x50, version, id, reason);
}

/// PUBREL.
pub(crate) fn pubrel(out: &mut BytesMut, version: Version, id: u16) {
    ack(out, 0x62, version, id, 0);
}

/// PUBCOMP.
pub(crate) fn pubcomp(out: &mut BytesMut, version: Version, id: u16, reason: u8) {
    ack(out, 0x70, version, id, reason);
}

/// SUBACK with one code per filter.
pub(crate) fn suback(out: &mut BytesMut, version: Version, id: u16, codes: &[u8]) {
    codes_packet(out, 0x90, version, id, codes);
}

/// UNSUBACK; 3.1.1 has no codes.
pub(crate) fn unsuback(out: &mut BytesMut, version: Version, id: u16, codes: &[u8]) {
    codes_packet(out, 0xb0, version, id, if version == Version::V5 { codes } else { &[] });
}

fn codes_packet(out: &mut BytesMut, first: u8, version: Version, id: u16, codes: &[u8]) {
    let v5 = version == Version::V5;
    out.put_u8(first);
    varint(out, 2 + usize::from(v5) + codes.len());
    out.put_u16(id);
    if v5 {
        out.put_u8(0);
    }
    out.put_slice(codes);
}

/// PINGRESP.
pub(crate) fn pingresp(out: &mut BytesMut) {
    out.put_slice(&[0xd0, 0]);
}

/// DISCONNECT from the server; MQTT 5 only.
pub(crate) fn disconnect(out: &mut BytesMut, reason: u8) {
    out.put_slice(&[0xe0, 2, reason, 0]);
}

fn text(out: &mut BytesMut, text: &str) {
    out.put_u16(text.len() as u16);
    out.put_slice(text.as_bytes());
}

fn varint(out: &mut BytesMut, mut value: usize) {
    loop {
        let byte = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            out.put_u8(byte);
            return;
        }
        out.put_u8(byte | 0x80);
    }
}

const fn varint_len(value: usize) -> usize {
    match value {
        0..=0x7f => 1,
        0x80..=0x3fff => 2,
        0x4000..=0x1f_ffff => 3,
        _ => 4,
    }
}
