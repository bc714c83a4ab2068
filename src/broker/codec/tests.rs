//! Packets from bytes and back.

use bytes::{BufMut, BytesMut};
use proptest::prelude::*;

use super::*;

fn one(bytes: &[u8], version: Version) -> Result<Option<Packet>, DecodeError> {
    decode(&mut BytesMut::from(bytes), version, 1 << 20)
}

#[test]
fn a_connect_of_each_version_is_read() {
    let v311 = b"\x10\x1e\0\x04MQTT\x04\xee\0\x3c\0\x02c/\0\x01w\0\x02by\0\x01u\0\x01p";
    let mut buffer = BytesMut::from(&v311[..]);
    buffer[1] = (v311.len() - 2) as u8;
    let connect = decode_connect(&mut buffer, 1000).unwrap().unwrap();
    assert_eq!((connect.version, connect.clean_start, connect.keep_alive), (Version::V311, true, 60));
    assert_eq!((connect.client_id.as_str(), connect.user.as_deref()), ("c/", Some("u")));
    let will = connect.will.unwrap();
    assert_eq!((&*will.topic, &will.payload[..], will.qos, will.retain), ("w", &b"by"[..], Qos::AtLeastOnce, true));
    assert!(buffer.is_empty());

    let v5 = b"\x10\x15\0\x04MQTT\x05\x02\0\x00\x08\x11\0\0\0\x0a\x21\0\x05\0\0";
    let connect = decode_connect(&mut BytesMut::from(&v5[..]), 1000).unwrap().unwrap();
    assert_eq!((connect.session_expiry, connect.receive_maximum, connect.client_id.as_str()), (10, 5, ""));
}

#[test]
fn what_is_refused_and_with_which_reason() {
    let first = |bytes: &[u8]| decode_connect(&mut BytesMut::from(bytes), 100).unwrap_err();
    assert_eq!(first(b"GET / HTTP/1.1\r\n").reason(), 0x82);
    assert_eq!(first(b"\x10\x0c\0\x06MQIsdp\x03\x02\0\0"), DecodeError::Version(3));
    assert_eq!(first(b"\x10\x0c\0\x04MQTT\x04\x03\0\0\0\0").reason(), 0x81);
    assert_eq!(first(b"\x10\xff\xff\xff\xff").reason(), 0x81);
    assert_eq!(first(b"\x10\xff\x7f").reason(), 0x95);
    for (bytes, reason) in [
        (&b"\x36\x05\0\x01a\0\x01"[..], 0x81), // QoS 3
        (b"\x38\x03\0\x01a", 0x81),            // DUP on QoS 0
        (b"\x30\x05\0\x03a/+", 0x81),          // wildcard in a topic
        (b"\x32\x05\0\x01a\0\0", 0x81),        // packet id 0
        (b"\x80\x06\0\x01\0\x01a\0", 0x81),    // flags of SUBSCRIBE
        (b"\x82\x02\0\x01", 0x82),             // no filter
        (b"\x30\x03\0\x01\0", 0x81),           // U+0000
        (b"\x30\x03\0\x01\xff", 0x81),         // not UTF-8
        (b"\x20\x02\0\0", 0x81),               // CONNACK from a client
        (b"\x10\x00", 0x82),                   // second CONNECT
    ] {
        assert_eq!(one(bytes, Version::V311).unwrap_err().reason(), reason, "{bytes:02x?}");
    }
    for (bytes, reason) in [
        (&b"\x30\x07\0\x01a\x03\x23\0\x01"[..], 0x94),  // topic alias
        (b"\x30\x08\0\x01a\x04\x01\0\x01\0", 0x82),     // a property twice
        (b"\x30\x06\0\x01a\x02\x0b\x01", 0x82),         // subscription identifier
        (b"\x82\x09\0\x01\x02\x0b\x00\0\x01a\0", 0x82), // subscription identifier 0
        (b"\xf0\x02\x18\0", 0x82),                      // AUTH
    ] {
        assert_eq!(one(bytes, Version::V5).unwrap_err().reason(), reason, "{bytes:02x?}");
    }
}

#[test]
fn an_incomplete_packet_waits_for_the_rest() {
    let whole = b"\x32\x07\0\x01a\0\x09hi";
    for cut in 0..whole.len() {
        assert_eq!(one(&whole[..cut], Version::V311), Ok(None), "{cut}");
    }
    assert!(matches!(one(whole, Version::V311), Ok(Some(Packet::Publish(p))) if p.id == 9 && &p.payload[..] == b"hi"));
}

prop_compose! {
    fn message()(
        topic in "[a-z/]{1,20}", payload in prop::collection::vec(any::<u8>(), 0..6000), qos in 0..3u8, retain: bool,
        id in 1..u16::MAX, expiry in prop::option::of(any::<u32>()), user in prop::option::of("[a-z]{0,5}"),
    ) -> Publish {
        let mut forward = BytesMut::new();
        if let Some(user) = user {
            forward.put_slice(&[0x26, 0, 1, b'k']);
            forward.put_u16(user.len() as u16);
            forward.put_slice(user.as_bytes());
        }
        let qos = Qos::from_u8(qos).unwrap();
        let id = if qos == Qos::AtMostOnce { 0 } else { id };
        Publish { topic: topic.as_str().into(), payload: payload.into(), qos, retain, dup: false, id, forward: forward.freeze(), expiry }
    }
}

proptest! {
    #[test]
    fn a_publish_round_trips(p in message(), v5: bool) {
        let version = if v5 { Version::V5 } else { Version::V311 };
        let header = PublishHeader { qos: p.qos, retain: p.retain, dup: false, id: p.id, expiry: p.expiry, subscriptions: &[] };
        let mut out = BytesMut::new();
        let size = publish(&mut out, version, header, (&p.topic, &p.payload, &p.forward), u32::MAX);
        prop_assert_eq!(size, out.len());
        let mut small = BytesMut::new();
        publish(&mut small, version, header, (&p.topic, &p.payload, &p.forward), size as u32 - 1);
        prop_assert!(small.is_empty(), "a packet above the client's limit is not begun");
        let expected = if v5 { p } else { Publish { forward: Bytes::new(), expiry: None, ..p } };
        prop_assert_eq!(decode(&mut out, version, 1 << 20), Ok(Some(Packet::Publish(expected))));
        prop_assert!(out.is_empty());
    }

    #[test]
    fn random_bytes_never_panic_and_always_make_progress(bytes in prop::collection::vec(any::<u8>(), 0..200), v5: bool) {
        let version = if v5 { Version::V5 } else { Version::V311 };
        let mut buffer = BytesMut::from(&bytes[..]);
        loop {
            let before = buffer.len();
            match decode(&mut buffer, version, 1000) {
                Ok(Some(_)) => prop_assert!(buffer.len() < before),
                Ok(None) | Err(_) => break,
            }
        }
        let mut connect = BytesMut::from(&b"\x10"[..]);
        connect.put_slice(&bytes);
        let _ = decode_connect(&mut connect, 1000);
    }

    #[test]
    fn damaged_packets_never_panic(p in message(), at in any::<prop::sample::Index>(), bit in 0..8u8) {
        let header = PublishHeader { qos: p.qos, retain: p.retain, dup: false, id: p.id, expiry: p.expiry, subscriptions: &[5] };
        let mut out = BytesMut::new();
        publish(&mut out, Version::V5, header, (&p.topic, &p.payload, &p.forward), u32::MAX);
        let at = at.index(out.len());
        out[at] ^= 1 << bit;
        let _ = decode(&mut out, Version::V5, 1 << 20);
    }
}
