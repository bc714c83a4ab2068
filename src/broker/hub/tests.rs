//! The hub driven without sockets or time.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use super::*;
use crate::broker::codec::{Connect, FilterRequest, Packet, Publish, RetainHandling, Version, WillPacket};
use crate::broker::{Acl, Identity};

fn connect(version: Version, id: &str, clean: bool) -> Connect {
    Connect {
        version,
        clean_start: clean,
        keep_alive: 0,
        client_id: id.to_owned(),
        will: None,
        user: None,
        password: None,
        session_expiry: if clean { 0 } else { 3600 },
        receive_maximum: 10,
        maximum_packet: u32::MAX,
        extended_auth: false,
    }
}

struct Client {
    ticket: Ticket,
    link: Arc<Link>,
    present: bool,
}

fn join(hub: &mut Hub, connect: &Connect, now: u64) -> Client {
    let identity = Arc::new(Identity { client_id: connect.client_id.as_str().into(), ..Identity::default() });
    let acl = Acl::default().client(&identity);
    let link = Arc::new(Link::default());
    let attached = hub.attach(connect, identity, acl, link.clone(), now, &mut Effects::default());
    Client { ticket: attached.ticket, link, present: attached.present }
}

fn subscribe(hub: &mut Hub, client: &Client, filter: &str, qos: Qos) -> Vec<u8> {
    let request = FilterRequest {
        filter: filter.to_owned(),
        qos,
        no_local: false,
        retain_as_published: false,
        retain_handling: RetainHandling::Always,
    };
    let mut out = BytesMut::new();
    let packet = Packet::Subscribe { id: 1, identifier: None, filters: vec![request] };
    hub.packet(client.ticket, packet, 0, &mut Effects::default(), &mut out).unwrap();
    out.to_vec()
}

fn publish(topic: &str, payload: &str, qos: Qos, retain: bool) -> Publish {
    let id = if qos == Qos::AtMostOnce { 0 } else { 7 };
    let payload = Bytes::copy_from_slice(payload.as_bytes());
    Publish { topic: topic.into(), payload, qos, retain, dup: false, id, forward: Bytes::new(), expiry: None }
}

fn send(hub: &mut Hub, client: &Client, packet: Packet, now: u64) -> Vec<u8> {
    let mut out = BytesMut::new();
    let _ = hub.packet(client.ticket, packet, now, &mut Effects::default(), &mut out);
    out.to_vec()
}

/// Payload, QoS, retain flag and DUP of everything that waits; acknowledges as it goes.
fn receive(hub: &mut Hub, client: &Client, now: u64) -> Vec<(String, u8, bool, bool)> {
    let mut all = Vec::new();
    loop {
        let mut batch = Vec::new();
        let more = hub.collect(client.ticket, 1 << 20, now, &mut batch).unwrap();
        if batch.is_empty() && !more {
            return all;
        }
        for outgoing in batch {
            if let Outgoing::Publish { message, qos, retain, dup, id, .. } = outgoing {
                all.push((String::from_utf8(message.payload.to_vec()).unwrap(), qos as u8, retain, dup));
                if qos != Qos::AtMostOnce {
                    send(hub, client, Packet::PubAck { id }, now);
                }
            }
        }
    }
}

fn own(hub: &mut Hub, topic: &str, payload: &str, retain: Retain) {
    let payload = Bytes::copy_from_slice(payload.as_bytes());
    let publication = Publication { topic: topic.into(), payload, qos: Qos::AtLeastOnce, retain };
    hub.publish([publication], 0, &mut Effects::default());
}

fn will(topic: &str, delay: u32) -> Option<WillPacket> {
    let payload = Bytes::from_static(b"gone");
    Some(WillPacket {
        topic: topic.into(),
        payload,
        qos: Qos::AtLeastOnce,
        retain: false,
        forward: Bytes::new(),
        expiry: None,
        delay,
    })
}

#[test]
fn delivered_qos_is_the_lower_one_and_overlapping_filters_deliver_once() {
    let mut hub = Hub::new(Limits::default());
    let a = join(&mut hub, &connect(Version::V311, "a", true), 0);
    subscribe(&mut hub, &a, "t/#", Qos::AtMostOnce);
    subscribe(&mut hub, &a, "t/+", Qos::ExactlyOnce);
    own(&mut hub, "t/x", "1", Retain::No);
    assert_eq!(receive(&mut hub, &a, 0), [("1".to_owned(), 1, false, false)]);
}

#[test]
fn retained_messages_come_on_every_subscribe_with_the_flag_and_live_ones_without() {
    let mut hub = Hub::new(Limits::default());
    for i in 0..1500 {
        own(&mut hub, &format!("p/{i}"), "v", Retain::Persisted);
    }
    let a = join(&mut hub, &connect(Version::V311, "a", true), 0);
    for _ in 0..2 {
        subscribe(&mut hub, &a, "p/#", Qos::AtLeastOnce);
        let got = receive(&mut hub, &a, 0);
        assert_eq!(got.len(), 1500);
        assert!(got.iter().all(|m| m.2 && m.1 == 1));
    }
    own(&mut hub, "p/1", "new", Retain::Persisted);
    assert_eq!(receive(&mut hub, &a, 0), [("new".to_owned(), 1, false, false)]);
    own(&mut hub, "p/1", "", Retain::Persisted);
    own(&mut hub, "p/2", "", Retain::No);
    assert_eq!(hub.stats().retained, 1499, "only an empty retained message clears");
}

#[test]
fn wills_fire_on_take_over_and_loss_but_not_on_goodbye() {
    let mut hub = Hub::new(Limits::default());
    let watcher = join(&mut hub, &connect(Version::V311, "w", true), 0);
    subscribe(&mut hub, &watcher, "will/#", Qos::AtLeastOnce);
    let with_will = Connect { will: will("will/a", 0), ..connect(Version::V311, "a", true) };
    let first = join(&mut hub, &with_will, 0);
    let second = join(&mut hub, &with_will, 0);
    assert_eq!(first.link.closed(), Some(reason::TAKEN_OVER));
    assert_eq!(receive(&mut hub, &watcher, 0).len(), 1, "take-over publishes the will of the old connection");
    hub.detach(first.ticket, Leave::Lost, 0, &mut Effects::default());
    assert!(receive(&mut hub, &watcher, 0).is_empty(), "an old ticket changes nothing");
    hub.detach(second.ticket, Leave::Lost, 0, &mut Effects::default());
    assert_eq!(receive(&mut hub, &watcher, 0).len(), 1, "and the new connection still has its own");
    let third = join(&mut hub, &with_will, 0);
    hub.detach(third.ticket, Leave::Clean { expiry: None }, 0, &mut Effects::default());
    assert!(receive(&mut hub, &watcher, 0).is_empty());
}

#[test]
fn a_delayed_will_waits_and_is_cancelled_by_the_return() {
    let mut hub = Hub::new(Limits::default());
    let watcher = join(&mut hub, &connect(Version::V5, "w", true), 0);
    subscribe(&mut hub, &watcher, "will/#", Qos::AtMostOnce);
    let persistent = Connect { will: will("will/a", 10), ..connect(Version::V5, "a", false) };
    let fx = &mut Effects::default();
    let client = join(&mut hub, &persistent, 0);
    hub.detach(client.ticket, Leave::Lost, 1_000, fx);
    hub.tick(10_999, fx);
    assert!(receive(&mut hub, &watcher, 10_999).is_empty());
    let client = join(&mut hub, &persistent, 10_999);
    hub.tick(60_000, fx);
    assert!(receive(&mut hub, &watcher, 60_000).is_empty(), "cancelled");
    hub.detach(client.ticket, Leave::Lost, 60_000, fx);
    hub.tick(70_000, fx);
    assert_eq!(receive(&mut hub, &watcher, 70_000).len(), 1);
    let client = join(&mut hub, &persistent, 70_000);
    let taken = join(&mut hub, &Connect { clean_start: true, ..persistent }, 70_001);
    assert_eq!(client.link.closed(), Some(reason::TAKEN_OVER));
    assert!(!taken.present);
    assert_eq!(receive(&mut hub, &watcher, 70_001).len(), 1, "the session ended with the clean start");
}

#[test]
fn a_persistent_session_keeps_what_came_meanwhile_and_resends_with_dup() {
    let mut hub = Hub::new(Limits::default());
    let persistent = connect(Version::V311, "a", false);
    let client = join(&mut hub, &persistent, 0);
    subscribe(&mut hub, &client, "t", Qos::AtLeastOnce);
    own(&mut hub, "t", "unacknowledged", Retain::No);
    hub.collect(client.ticket, 1000, 0, &mut Vec::new()).unwrap();
    hub.detach(client.ticket, Leave::Clean { expiry: None }, 0, &mut Effects::default());
    own(&mut hub, "t", "away", Retain::No);
    let back = join(&mut hub, &persistent, 5);
    assert!(back.present);
    let got = receive(&mut hub, &back, 5);
    assert_eq!(got, [("unacknowledged".to_owned(), 1, false, true), ("away".to_owned(), 1, false, false)]);
    hub.detach(back.ticket, Leave::Lost, 5, &mut Effects::default());
    hub.tick(5 + 24 * 3_600_000, &mut Effects::default());
    assert!(!join(&mut hub, &persistent, 0).present, "expired");
}

#[test]
fn another_user_does_not_get_the_session() {
    let mut hub = Hub::new(Limits::default());
    let persistent = connect(Version::V311, "a", false);
    let client = join(&mut hub, &persistent, 0);
    hub.detach(client.ticket, Leave::Lost, 0, &mut Effects::default());
    let identity = Arc::new(Identity { client_id: "a".into(), user: Some("eve".into()), ..Identity::default() });
    let acl = Acl::default().client(&identity);
    let attached = hub.attach(&persistent, identity, acl, Arc::default(), 0, &mut Effects::default());
    assert!(!attached.present);
}

#[test]
fn a_client_that_cannot_keep_up_is_closed_and_nothing_is_thinned() {
    let limits = Limits { queue_messages: 10, ..Limits::default() };
    let mut hub = Hub::new(limits);
    let slow = join(&mut hub, &connect(Version::V311, "slow", true), 0);
    subscribe(&mut hub, &slow, "t", Qos::AtMostOnce);
    for i in 0..6 {
        own(&mut hub, "t", &i.to_string(), Retain::No);
    }
    assert!(hub.congested(0), "our own publications wait");
    assert!(!hub.congested(10_000), "but not for ever");
    for i in 6..11 {
        own(&mut hub, "t", &i.to_string(), Retain::No);
    }
    assert_eq!(slow.link.closed(), Some(reason::QUOTA));
    assert_eq!(hub.collect(slow.ticket, 1000, 0, &mut Vec::new()), Err(Detached));
    let stats = hub.stats();
    assert_eq!((stats.slow_clients, stats.dropped, stats.queued_bytes, stats.subscriptions), (1, 11, 0, 0));
}

#[test]
fn qos_2_is_routed_once() {
    let mut hub = Hub::new(Limits::default());
    let a = join(&mut hub, &connect(Version::V5, "a", true), 0);
    subscribe(&mut hub, &a, "t", Qos::ExactlyOnce);
    let message = || Packet::Publish(publish("t", "x", Qos::ExactlyOnce, false));
    assert_eq!(send(&mut hub, &a, message(), 0), [0x50, 2, 0, 7]);
    assert_eq!(send(&mut hub, &a, message(), 0), [0x50, 2, 0, 7]);
    assert_eq!(send(&mut hub, &a, Packet::PubRel { id: 7 }, 0), [0x70, 2, 0, 7]);
    assert_eq!(send(&mut hub, &a, Packet::PubRel { id: 7 }, 0), [0x70, 3, 0, 7, 0x92]);
    let mut batch = Vec::new();
    hub.collect(a.ticket, 1000, 0, &mut batch).unwrap();
    assert_eq!(batch.len(), 1);
    assert_eq!(send(&mut hub, &a, Packet::PubRec { id: 1, failed: false }, 0), [0x62, 2, 0, 1]);
    assert!(send(&mut hub, &a, Packet::PubComp { id: 1 }, 0).is_empty());
}

#[test]
fn local_receivers_get_what_clients_publish_and_had_retained_but_not_our_own() {
    let mut hub = Hub::new(Limits::default());
    let a = join(&mut hub, &connect(Version::V311, "a", true), 0);
    send(&mut hub, &a, Packet::Publish(publish("cmd/kept", "r", Qos::AtMostOnce, true)), 0);
    own(&mut hub, "cmd/own", "o", Retain::Persisted);
    let mut receiver = hub.subscribe_local(vec!["cmd/#".into()], 4, 0);
    let kept = receiver.try_recv().unwrap();
    assert_eq!((&*kept.topic, kept.retain, &*kept.client.client_id), ("cmd/kept", true, "a"));
    own(&mut hub, "cmd/own", "o", Retain::No);
    let mut fx = Effects::default();
    let packet = Packet::Publish(publish("cmd/x", "c", Qos::AtMostOnce, false));
    hub.packet(a.ticket, packet, 0, &mut fx, &mut BytesMut::new()).unwrap();
    assert_eq!(fx.local.len(), 1);
    drop((receiver, fx));
    hub.tick(0, &mut Effects::default());
    assert!(hub.locals.iter().all(Option::is_none), "a dropped receiver is forgotten");
}

#[test]
fn expired_messages_are_not_sent() {
    let mut hub = Hub::new(Limits::default());
    let a = join(&mut hub, &connect(Version::V5, "a", true), 0);
    subscribe(&mut hub, &a, "t", Qos::AtMostOnce);
    let message = Publish { expiry: Some(2), ..publish("t", "x", Qos::AtMostOnce, true) };
    send(&mut hub, &a, Packet::Publish(message.clone()), 0);
    send(&mut hub, &a, Packet::Publish(message), 2_000);
    assert_eq!(receive(&mut hub, &a, 2_500).len(), 1);
    assert_eq!(hub.stats().expired, 1);
    hub.tick(5_000, &mut Effects::default());
    assert_eq!(hub.stats().retained, 0);
}

#[test]
fn a_session_loses_subscriptions_that_the_rules_no_longer_allow() {
    let mut hub = Hub::new(Limits::default());
    let persistent = connect(Version::V311, "a", false);
    let client = join(&mut hub, &persistent, 0);
    subscribe(&mut hub, &client, "open/x", Qos::AtMostOnce);
    subscribe(&mut hub, &client, "closed/#", Qos::AtMostOnce);
    hub.detach(client.ticket, Leave::Lost, 0, &mut Effects::default());
    let identity = Arc::new(Identity { client_id: "a".into(), ..Identity::default() });
    let rule =
        crate::broker::AclRule::new(crate::broker::Who::Everyone, crate::broker::Access::Deny, "closed/#").unwrap();
    let acl = Acl { rules: vec![rule], ..Acl::default() }.client(&identity);
    let attached = hub.attach(&persistent, identity, acl, Arc::default(), 0, &mut Effects::default());
    assert!(attached.present);
    let back = Client { ticket: attached.ticket, link: Arc::default(), present: true };
    own(&mut hub, "closed/x", "1", Retain::No);
    own(&mut hub, "open/x", "2", Retain::No);
    assert_eq!(receive(&mut hub, &back, 0), [("2".to_owned(), 0, false, false)]);
}

#[test]
fn large_unacknowledged_messages_are_bounded_by_bytes_too() {
    let mut hub = Hub::new(Limits { queue_bytes: 80_000, ..Limits::default() });
    let a = join(&mut hub, &connect(Version::V5, "a", true), 0);
    subscribe(&mut hub, &a, "t", Qos::AtLeastOnce);
    for _ in 0..8 {
        own(&mut hub, "t", &"x".repeat(4_000), Retain::No);
    }
    let mut batch = Vec::new();
    hub.collect(a.ticket, 1 << 20, 0, &mut batch).unwrap();
    assert_eq!(batch.len(), 2, "an eighth of the queue's bytes");
    assert!(hub.stats().queued_bytes > 32_000, "what is in flight still counts");
    assert_eq!(batch.len() + receive(&mut hub, &a, 0).len(), 2, "nothing more without an acknowledgement");
    for id in 1..=2 {
        send(&mut hub, &a, Packet::PubAck { id }, 0);
    }
    assert_eq!(receive(&mut hub, &a, 0).len(), 6);
    assert_eq!(hub.stats().queued_bytes, 0);
}

#[test]
fn retained_messages_in_flight_do_not_exceed_the_total() {
    let mut hub = Hub::new(Limits { total_queue_bytes: 20_000, ..Limits::default() });
    for i in 0..30 {
        own(&mut hub, &format!("t/{i}"), &"x".repeat(1_000), Retain::Snapshot);
    }
    let clients = ["a", "b", "c"].map(|name| join(&mut hub, &connect(Version::V5, name, true), 0));
    for client in &clients {
        subscribe(&mut hub, client, "t/#", Qos::AtLeastOnce);
        hub.collect(client.ticket, 1 << 20, 0, &mut Vec::new()).unwrap();
    }
    let waiting = hub.stats().queued_bytes;
    assert!((18_000..=20_000 + 2 * 1_200).contains(&waiting), "{waiting}: the limit, and one for each of the others");
    for client in &clients {
        for id in 1..=30 {
            send(&mut hub, client, Packet::PubAck { id }, 0);
            hub.collect(client.ticket, 1 << 20, 0, &mut Vec::new()).unwrap();
        }
        assert_eq!(hub.session(client.ticket.index).unwrap().waiting(), 0, "everyone gets everything");
    }
}

#[test]
fn unreleased_qos_2_messages_are_bounded() {
    let mut hub = Hub::new(Limits::default());
    let a = join(&mut hub, &connect(Version::V5, "a", true), 0);
    for id in 1..=1001 {
        let message = Packet::Publish(Publish { id, ..publish("t", "x", Qos::ExactlyOnce, false) });
        let next = hub.packet(a.ticket, message, 0, &mut Effects::default(), &mut BytesMut::new()).unwrap();
        assert_eq!(next, if id == 1001 { Next::Close(0x93) } else { Next::Continue }, "{id}");
    }
}

/// What a client may do in the random test.
#[derive(Debug, Clone)]
enum Act {
    Join { who: usize, clean: bool, will: bool },
    Lose { who: usize, clean: bool },
    Subscribe { who: usize, filter: &'static str },
    Unsubscribe { who: usize, filter: &'static str },
    Publish { who: usize, topic: &'static str, qos: u8, retain: bool },
    Read { who: usize },
    Own { topic: &'static str },
    Tick,
}

fn act() -> impl Strategy<Value = Act> {
    let filter = prop::sample::select(vec!["a", "#", "a/+", "$share/g/a/#", "a/b", "$share/g/#"]);
    let topic = prop::sample::select(vec!["a", "a/b", "b"]);
    prop_oneof![
        (0..4usize, any::<bool>(), any::<bool>()).prop_map(|(who, clean, will)| Act::Join { who, clean, will }),
        (0..4usize, any::<bool>()).prop_map(|(who, clean)| Act::Lose { who, clean }),
        (0..4usize, filter.clone()).prop_map(|(who, filter)| Act::Subscribe { who, filter }),
        (0..4usize, filter).prop_map(|(who, filter)| Act::Unsubscribe { who, filter }),
        (0..4usize, topic.clone(), 0..3u8, any::<bool>()).prop_map(|(who, topic, qos, retain)| Act::Publish {
            who,
            topic,
            qos,
            retain
        }),
        (0..4usize).prop_map(|who| Act::Read { who }),
        topic.prop_map(|topic| Act::Own { topic }),
        Just(Act::Tick),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn no_sequence_breaks_the_account(acts in prop::collection::vec(act(), 1..120)) {
        let limits = Limits { queue_messages: 8, sessions: 2, retained_messages: 2, total_queue_bytes: 1500, ..Limits::default() };
        let mut hub = Hub::new(limits);
        let mut clients: [Option<Client>; 4] = Default::default();
        let fx = &mut Effects::default();
        for (step, act) in acts.into_iter().enumerate() {
            let now = step as u64 * 1000;
            match act {
                Act::Join { who, clean, will: with } => {
                    let mut packet = connect(Version::V5, &format!("c{who}"), clean);
                    packet.session_expiry = if clean { 0 } else { 20 };
                    packet.will = will("a", u32::from(!clean) * 5).filter(|_| with);
                    clients[who] = Some(join(&mut hub, &packet, now));
                }
                Act::Lose { who, clean } => if let Some(client) = clients[who].take() {
                    hub.detach(client.ticket, if clean { Leave::Clean { expiry: None } } else { Leave::Lost }, now, fx);
                },
                Act::Subscribe { who, filter } => if let Some(client) = &clients[who]
                    && client.link.closed().is_none() { subscribe(&mut hub, client, filter, Qos::ExactlyOnce); },
                Act::Unsubscribe { who, filter } => if let Some(client) = &clients[who] {
                    send(&mut hub, client, Packet::Unsubscribe { id: 1, filters: vec![filter.to_owned()] }, now);
                },
                Act::Publish { who, topic, qos, retain } => if let Some(client) = &clients[who] {
                    send(&mut hub, client, Packet::Publish(publish(topic, "x", Qos::from_u8(qos).unwrap(), retain)), now);
                },
                Act::Read { who } => if let Some(client) = &clients[who] {
                    let _ = hub.collect(client.ticket, 200, now, &mut Vec::new());
                },
                Act::Own { topic } => own(&mut hub, topic, "y", Retain::Snapshot),
                Act::Tick => hub.tick(now, fx),
            }
            let sum: usize = hub.sessions.iter().flatten().map(|s| s.account()).sum();
            prop_assert_eq!(sum, hub.queued_bytes);
            let retained: usize = hub.sessions.iter().flatten().map(|s| s.queue.len() - s.queued_live).sum();
            prop_assert_eq!(retained, hub.queued_retained);
            let filters = |s: &Session| s.subscriptions.keys().map(String::len).sum::<usize>();
            prop_assert!(hub.sessions.iter().flatten().all(|s| s.filter_bytes == filters(s)));
            prop_assert!(hub.queued_bytes <= 1500 + 4 * 200, "one message of each client beyond the limit");
            prop_assert!(hub.sessions.iter().flatten().all(|s| s.queued_bytes == s.account()));
            prop_assert_eq!(hub.sessions.iter().flatten().count(), hub.by_client.len());
            prop_assert!(hub.high.iter().all(|&i| hub.session(i).is_some_and(|s| s.link.is_some())));
            prop_assert!(hub.stats().retained <= 2 && hub.stats().sessions_away <= 2 + 1);
        }
    }
}
