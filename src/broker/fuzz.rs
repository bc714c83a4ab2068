//! The packet path without sockets, for the fuzzer and for the property test that stands in for it in the ordinary build.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::codec::{self, Version};
use super::hub::{Effects, Hub, Leave, Link, Ticket, decode_retained, encode_retained};
use super::{Acl, Identity, Limits, topic};

/// Longest packet taken.
const LIMIT: usize = 4096;

/// Feeds `data` to a broker as what two clients send, in pieces: a byte that says which client and how many bytes, then the
/// bytes. Never panics, whatever they are.
pub fn fuzz_packets(mut data: &[u8]) {
    let limits = Limits {
        queue_messages: 20,
        retained_messages: 5,
        filters_per_client: 5,
        total_queue_bytes: 20_000,
        ..Limits::default()
    };
    let mut hub = Hub::new(limits);
    let mut clients = [Fuzzed::default(), Fuzzed::default()];
    let mut now = 0;
    while let Some((&head, rest)) = data.split_first() {
        let (piece, rest) = rest.split_at(rest.len().min(usize::from(head >> 1)));
        data = rest;
        now += 100;
        clients[usize::from(head & 1)].feed(&mut hub, piece, now);
        hub.tick(now, &mut Effects::default());
    }
}

/// Takes `data` for what the state store kept of a retained message.
pub fn fuzz_retained(data: &[u8]) {
    if let Some(message) = decode_retained("a/b", Bytes::copy_from_slice(data), 0) {
        let again = decode_retained("a/b", encode_retained(&message, 0), 0);
        assert!(again.is_some(), "what was read can be kept again");
    }
}

/// Takes `data` for a filter and a topic, divided by a zero byte. Never panics, and the relations between the two hold.
pub fn fuzz_topics(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (filter, name) = text.split_once('\0').unwrap_or((&text, &text));
    let _ = topic::split_share(filter);
    if !topic::valid_filter(filter) || !topic::valid_filter(name) {
        return;
    }
    assert!(topic::covers(filter, filter), "{filter:?} covers itself");
    assert_eq!(topic::overlaps(filter, name), topic::overlaps(name, filter), "{filter:?} {name:?}");
    if topic::covers(filter, name) {
        assert!(topic::overlaps(filter, name), "{filter:?} covers {name:?} and does not overlap it");
    }
    if topic::valid_name(name) && topic::matches(filter, name) {
        assert!(topic::overlaps(filter, name), "{filter:?} matches {name:?} and does not overlap it");
    }
}

#[derive(Default)]
struct Fuzzed {
    input: BytesMut,
    open: Option<(Ticket, Version)>,
}

impl Fuzzed {
    fn feed(&mut self, hub: &mut Hub, piece: &[u8], now: u64) {
        self.input.extend_from_slice(piece);
        while self.step(hub, now) {}
    }

    /// Takes one packet; whether there may be another.
    fn step(&mut self, hub: &mut Hub, now: u64) -> bool {
        let fx = &mut Effects::default();
        let mut output = BytesMut::new();
        let Some((ticket, version)) = self.open else { return self.connect(hub, now) };
        let alive = match codec::decode(&mut self.input, version, LIMIT) {
            Ok(None) => return false,
            Ok(Some(packet)) => hub.packet(ticket, packet, now, fx, &mut output).is_ok(),
            Err(_) => false,
        };
        let alive = alive && hub.collect(ticket, LIMIT, now, &mut Vec::new()).is_ok();
        if !alive {
            hub.detach(ticket, Leave::Lost, now, fx);
            self.open = None;
            self.input.clear();
        }
        alive
    }

    fn connect(&mut self, hub: &mut Hub, now: u64) -> bool {
        match codec::decode_connect(&mut self.input, LIMIT) {
            Ok(None) => false,
            Ok(Some(connect)) => {
                let identity =
                    Arc::new(Identity { client_id: connect.client_id.as_str().into(), ..Identity::default() });
                let acl = Acl::default().client(&identity);
                let attached =
                    hub.attach(&connect, identity, acl, Arc::<Link>::default(), now, &mut Effects::default());
                self.open = Some((attached.ticket, connect.version));
                true
            }
            Err(_) => {
                self.input.clear();
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Packets that are nearly right, so that most get past the decoder.
    fn packet() -> impl Strategy<Value = Vec<u8>> {
        let connect = (any::<bool>(), any::<u8>(), 0..3u8).prop_map(|(v5, flags, id)| {
            let mut body = vec![0, 4, b'M', b'Q', b'T', b'T', if v5 { 5 } else { 4 }, flags & 0x02, 0, 0];
            if v5 {
                body.extend([5, 0x11, 0, 0, 0, flags >> 4]);
            }
            body.extend([0, 1, b'a' + id]);
            (0x10, body)
        });
        let filter = prop::sample::select(vec!["#", "t", "t/+", "$share/g/#", "bad+"]);
        let subscribe = (filter, 0..3u8, any::<bool>()).prop_map(|(filter, qos, v5)| {
            let mut body = vec![0, 1];
            body.extend(v5.then_some(0));
            body.extend([0, filter.len() as u8]);
            body.extend(filter.as_bytes());
            body.push(qos);
            (0x82, body)
        });
        let publish = (0..3u8, any::<bool>(), any::<bool>(), 0..4u8).prop_map(|(qos, retain, v5, id)| {
            let mut body = vec![0, 1, b't'];
            if qos > 0 {
                body.extend([0, id]);
            }
            body.extend(v5.then_some(0));
            (0x30 | qos << 1 | u8::from(retain), body)
        });
        let ack =
            (prop::sample::select(vec![0x40u8, 0x50, 0x62, 0x70]), 0..4u8).prop_map(|(first, id)| (first, vec![0, id]));
        let other = (any::<u8>(), prop::collection::vec(any::<u8>(), 0..20));
        prop_oneof![connect, subscribe, publish, ack, other]
            .prop_map(|(first, body)| [&[first, body.len() as u8], &body[..]].concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]
        #[test]
        fn nearly_right_packets_never_panic(packets in prop::collection::vec((any::<bool>(), packet()), 0..60)) {
            let pieces = packets.iter().flat_map(|(who, p)| [&[(p.len() as u8) << 1 | u8::from(*who)], &p[..]].concat());
            fuzz_packets(&pieces.collect::<Vec<u8>>());
        }

        #[test]
        fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            fuzz_packets(&bytes);
        }
    }
}
