//! One face for rumqttc's two protocol versions.
//!
//! The client and its event loop live for one connection. `poll` is **not** cancel safe (a packet half-way into the
//! socket would vanish), so its future is kept until it ends or the connection does.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use rumqttc::v5;
use rumqttc::v5::mqttbytes::v5 as five;

use super::failure::{Failure, out_of_order, words};
use crate::northbound::config::{ServerUrl, UplinkConfig, Version};
use crate::northbound::message::{Inbound, Message, Qos, Retain, Sender};

/// Requests beside publications that may wait in the client: subscribe, acknowledgements, disconnect.
const SPARE: usize = 128;

/// What a connection is made with.
pub(super) struct LinkOptions<'a> {
    pub(super) config: &'a UplinkConfig,
    pub(super) server: &'a ServerUrl,
    pub(super) tls: Option<Arc<rustls::ClientConfig>>,
    pub(super) client_id: String,
    pub(super) will: Message,
    pub(super) window: u16,
}

/// What the broker said when it accepted us.
#[derive(Debug, Default)]
pub(super) struct Accepted {
    pub(super) session_present: bool,
    /// Most publications in flight.
    pub(super) window: Option<u16>,
    /// Largest packet in bytes.
    pub(super) max_packet: Option<usize>,
    /// The keep-alive that the broker wants instead of ours.
    pub(super) keep_alive: Option<Duration>,
}

/// What happened on a connection.
#[derive(Debug)]
pub(super) enum Event {
    /// The broker accepted us.
    Connected(Accepted),
    /// The oldest publication not yet sent went out with this packet id, 0 for QoS 0.
    Sent(u16),
    /// The broker confirmed.
    Confirmed(u16),
    /// The broker refused (MQTT 5).
    Refused { pkid: u16, reason: String, passing: bool },
    /// A client published to us.
    Request(Inbound, ToAck),
    /// The broker's answer to our subscription, `Err` per refused filter.
    Subscribed(Vec<Result<(), String>>),
    /// The broker sent something else: it lives.
    Heard,
    /// We sent something else.
    Other,
}

/// A received message to acknowledge later.
#[derive(Debug)]
pub(super) enum ToAck {
    Four(Box<rumqttc::Publish>),
    Five(Box<five::Publish>),
}

/// Sends; kept apart from [`Events`] because it is used while a poll is under way.
pub(super) enum Client {
    Four(rumqttc::AsyncClient),
    Five(v5::AsyncClient),
}

/// Receives.
pub(super) enum Events {
    Four(Box<rumqttc::EventLoop>),
    Five(Box<v5::EventLoop>, Duration),
}

/// Packet ids come from a ring; a ring four times the window cannot meet an id that is still in use unless the broker
/// confirms far out of order.
fn ring(window: u16) -> u16 {
    window.saturating_mul(4)
}

pub(super) fn open(options: LinkOptions<'_>) -> (Client, Events) {
    match options.config.version {
        Version::V311 => open_four(options),
        Version::V5 => open_five(options),
    }
}

fn host(server: &ServerUrl) -> String {
    // rumqttc joins host and port with a colon.
    if server.host.contains(':') { format!("[{}]", server.host) } else { server.host.clone() }
}

fn transport(tls: Option<Arc<rustls::ClientConfig>>) -> rumqttc::Transport {
    match tls {
        Some(config) => rumqttc::Transport::tls_with_config(rumqttc::TlsConfiguration::Rustls(config)),
        None => rumqttc::Transport::tcp(),
    }
}

/// Larger than the silence after which we give up ourselves: rumqttc 3.1.1 takes it as the limit of every write too.
fn network_timeout(config: &UplinkConfig) -> u64 {
    config.connect_timeout.max(config.keep_alive * 2).as_secs() + 1
}

fn open_four(o: LinkOptions<'_>) -> (Client, Events) {
    let mut options = rumqttc::MqttOptions::new(o.client_id, host(o.server), o.server.port);
    options
        .set_transport(transport(o.tls))
        .set_keep_alive(o.config.keep_alive)
        .set_clean_session(o.config.session_expiry.is_zero())
        .set_inflight(ring(o.window))
        .set_max_packet_size(o.config.max_packet, o.config.max_packet)
        .set_manual_acks(true)
        .set_last_will(rumqttc::LastWill::new(&*o.will.topic, o.will.payload, rumqttc::QoS::AtLeastOnce, true));
    if let Some(user) = &o.config.user {
        options.set_credentials(user, o.config.password.as_ref().map_or("", |p| p.expose()));
    }
    let (client, mut events) = rumqttc::AsyncClient::new(options, usize::from(o.window) + SPARE);
    let mut network = rumqttc::NetworkOptions::new();
    network.set_tcp_nodelay(true);
    network.set_connection_timeout(network_timeout(o.config));
    events.set_network_options(network);
    (Client::Four(client), Events::Four(Box::new(events)))
}

fn open_five(o: LinkOptions<'_>) -> (Client, Events) {
    let mut options = v5::MqttOptions::new(o.client_id, host(o.server), o.server.port);
    let mut network = rumqttc::NetworkOptions::new();
    network.set_tcp_nodelay(true);
    let expiry = u32::try_from(o.config.session_expiry.as_secs()).unwrap_or(u32::MAX);
    options
        .set_transport(transport(o.tls))
        .set_keep_alive(o.config.keep_alive)
        .set_clean_start(expiry == 0)
        .set_session_expiry_interval(Some(expiry))
        .set_max_packet_size(Some(u32::try_from(o.config.max_packet).unwrap_or(u32::MAX)))
        .set_outgoing_inflight_upper_limit(ring(o.window))
        .set_connection_timeout(network_timeout(o.config))
        .set_manual_acks(true)
        .set_network_options(network)
        .set_last_will(five::LastWill::new(
            &*o.will.topic,
            o.will.payload,
            v5::mqttbytes::QoS::AtLeastOnce,
            true,
            None,
        ));
    if let Some(user) = &o.config.user {
        options.set_credentials(user, o.config.password.as_ref().map_or("", |p| p.expose()));
    }
    let keep_alive = o.config.keep_alive;
    let (client, events) = v5::AsyncClient::new(options, usize::from(o.window) + SPARE);
    (Client::Five(client), Events::Five(Box::new(events), keep_alive))
}

impl Client {
    /// Hands a message to the event loop; false when its queue is full, which the window rules out.
    pub(super) fn publish(&self, message: Message) -> bool {
        let retain = message.retain != Retain::No;
        match self {
            Client::Four(client) => {
                let qos = match message.qos {
                    Qos::AtMostOnce => rumqttc::QoS::AtMostOnce,
                    Qos::AtLeastOnce => rumqttc::QoS::AtLeastOnce,
                };
                let sent = client.publish_bytes(&*message.topic, qos, retain, message.payload).now_or_never();
                matches!(sent, Some(Ok(())))
            }
            Client::Five(client) => {
                let qos = match message.qos {
                    Qos::AtMostOnce => v5::mqttbytes::QoS::AtMostOnce,
                    Qos::AtLeastOnce => v5::mqttbytes::QoS::AtLeastOnce,
                };
                match message.correlation {
                    None => client.try_publish(&*message.topic, qos, retain, message.payload).is_ok(),
                    correlation_data => {
                        let properties =
                            five::PublishProperties { correlation_data, ..five::PublishProperties::default() };
                        client
                            .try_publish_with_properties(&*message.topic, qos, retain, message.payload, properties)
                            .is_ok()
                    }
                }
            }
        }
    }

    pub(super) fn subscribe(&self, filters: Vec<String>) -> bool {
        match self {
            Client::Four(client) => client
                .try_subscribe_many(
                    filters.into_iter().map(|f| rumqttc::SubscribeFilter::new(f, rumqttc::QoS::AtLeastOnce)),
                )
                .is_ok(),
            Client::Five(client) => client
                .try_subscribe_many(filters.into_iter().map(|f| five::Filter::new(f, v5::mqttbytes::QoS::AtLeastOnce)))
                .is_ok(),
        }
    }

    pub(super) fn acknowledge(&self, message: &ToAck) -> bool {
        match (self, message) {
            (Client::Four(client), ToAck::Four(publish)) => client.try_ack(publish).is_ok(),
            (Client::Five(client), ToAck::Five(publish)) => client.try_ack(publish).is_ok(),
            _ => false,
        }
    }

    pub(super) fn disconnect(&self) -> bool {
        match self {
            Client::Four(client) => client.try_disconnect().is_ok(),
            Client::Five(client) => client.try_disconnect().is_ok(),
        }
    }
}

impl Events {
    /// The next event. Not cancel safe.
    pub(super) async fn poll(&mut self) -> Result<Event, Failure> {
        match self {
            Events::Four(events) => from_four(events.poll().await?),
            Events::Five(events, keep_alive) => {
                let event = events.poll().await?;
                if events.options.keep_alive().is_zero() {
                    // The broker asks for no keep-alive; rumqttc would ping without pause.
                    events.options.set_keep_alive(*keep_alive);
                }
                from_five(event)
            }
        }
    }

    /// Events that are there already, without touching the network. After a failure these are the last.
    pub(super) fn drain(&mut self, out: &mut VecDeque<Event>) -> Result<(), Failure> {
        match self {
            Events::Four(events) => {
                while let Some(event) = events.state.events.pop_front() {
                    out.push_back(from_four(event)?);
                }
            }
            Events::Five(events, _) => {
                while let Some(event) = events.state.events.pop_front() {
                    out.push_back(from_five(event)?);
                }
            }
        }
        Ok(())
    }
}

fn from_four(event: rumqttc::Event) -> Result<Event, Failure> {
    use rumqttc::{Outgoing, Packet, SubscribeReasonCode};
    Ok(match event {
        rumqttc::Event::Outgoing(Outgoing::Publish(pkid)) => Event::Sent(pkid),
        rumqttc::Event::Outgoing(Outgoing::AwaitAck(_)) => return Err(out_of_order()),
        rumqttc::Event::Incoming(Packet::PubAck(ack)) => Event::Confirmed(ack.pkid),
        rumqttc::Event::Incoming(Packet::ConnAck(ack)) => {
            Event::Connected(Accepted { session_present: ack.session_present, ..Accepted::default() })
        }
        rumqttc::Event::Incoming(Packet::Publish(publish)) => {
            let inbound = Inbound {
                topic: publish.topic.clone(),
                payload: publish.payload.clone(),
                retain: publish.retain,
                sender: Sender::default(),
                response_topic: None,
                correlation: None,
            };
            Event::Request(inbound, ToAck::Four(Box::new(publish)))
        }
        rumqttc::Event::Incoming(Packet::SubAck(ack)) => Event::Subscribed(
            ack.return_codes
                .iter()
                .map(|code| match code {
                    SubscribeReasonCode::Success(_) => Ok(()),
                    SubscribeReasonCode::Failure => Err("refused".to_owned()),
                })
                .collect(),
        ),
        rumqttc::Event::Incoming(_) => Event::Heard,
        rumqttc::Event::Outgoing(_) => Event::Other,
    })
}

fn from_five(event: v5::Event) -> Result<Event, Failure> {
    use rumqttc::Outgoing;
    Ok(match event {
        v5::Event::Outgoing(Outgoing::Publish(pkid)) => Event::Sent(pkid),
        v5::Event::Outgoing(Outgoing::AwaitAck(_)) => return Err(out_of_order()),
        v5::Event::Incoming(five::Packet::PubAck(ack)) => confirmation(&ack),
        v5::Event::Incoming(five::Packet::ConnAck(ack)) => {
            let properties = ack.properties.as_ref();
            Event::Connected(Accepted {
                session_present: ack.session_present,
                window: properties.and_then(|p| p.receive_max),
                max_packet: properties.and_then(|p| p.max_packet_size).map(|n| n as usize),
                keep_alive: properties.and_then(|p| p.server_keep_alive).map(|s| Duration::from_secs(s.into())),
            })
        }
        v5::Event::Incoming(five::Packet::Publish(publish)) => {
            let properties = publish.properties.as_ref();
            let inbound = Inbound {
                topic: String::from_utf8_lossy(&publish.topic).into_owned(),
                payload: publish.payload.clone(),
                retain: publish.retain,
                sender: Sender::default(),
                response_topic: properties.and_then(|p| p.response_topic.clone()),
                correlation: properties.and_then(|p| p.correlation_data.clone()),
            };
            Event::Request(inbound, ToAck::Five(Box::new(publish)))
        }
        v5::Event::Incoming(five::Packet::SubAck(ack)) => Event::Subscribed(
            ack.return_codes
                .iter()
                .map(|code| match code {
                    five::SubscribeReasonCode::Success(_) => Ok(()),
                    other => Err(words(&format!("{other:?}"))),
                })
                .collect(),
        ),
        v5::Event::Incoming(_) => Event::Heard,
        v5::Event::Outgoing(_) => Event::Other,
    })
}

/// [MQTT5 3.4.2.1] The reasons that concern this very message are final; the others may pass.
fn confirmation(ack: &five::PubAck) -> Event {
    use five::PubAckReason as R;
    let passing = match ack.reason {
        R::Success | R::NoMatchingSubscribers => return Event::Confirmed(ack.pkid),
        R::NotAuthorized | R::TopicNameInvalid | R::PayloadFormatInvalid => false,
        R::UnspecifiedError | R::ImplementationSpecificError | R::PacketIdentifierInUse | R::QuotaExceeded => true,
    };
    let said =
        ack.properties.as_ref().and_then(|p| p.reason_string.as_ref()).map(|s| format!(" ({s})")).unwrap_or_default();
    Event::Refused { pkid: ack.pkid, reason: format!("{}{said}", words(&format!("{:?}", ack.reason))), passing }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn five_event(packet: five::Packet) -> Event {
        from_five(v5::Event::Incoming(packet)).unwrap()
    }

    #[test]
    fn reason_codes_of_mqtt5_are_read() {
        let puback = |reason| five_event(five::Packet::PubAck(five::PubAck { pkid: 7, reason, properties: None }));
        assert!(matches!(puback(five::PubAckReason::NoMatchingSubscribers), Event::Confirmed(7)));
        assert!(matches!(puback(five::PubAckReason::QuotaExceeded), Event::Refused { pkid: 7, passing: true, .. }));
        let Event::Refused { reason, passing: false, .. } = puback(five::PubAckReason::NotAuthorized) else { panic!() };
        assert_eq!(reason, "not authorized");

        let codes = vec![
            five::SubscribeReasonCode::Success(v5::mqttbytes::QoS::AtLeastOnce),
            five::SubscribeReasonCode::NotAuthorized,
        ];
        let suback = five::SubAck { pkid: 1, return_codes: codes, properties: None };
        let Event::Subscribed(answers) = five_event(five::Packet::SubAck(suback)) else { panic!() };
        assert_eq!(answers, [Ok(()), Err("not authorized".to_owned())]);
    }

    #[test]
    fn an_id_that_is_still_in_use_ends_the_connection() {
        assert!(from_four(rumqttc::Event::Outgoing(rumqttc::Outgoing::AwaitAck(1))).is_err());
        assert!(from_five(v5::Event::Outgoing(rumqttc::Outgoing::AwaitAck(1))).is_err());
    }

    #[test]
    fn ipv6_addresses_are_bracketed_for_the_resolver() {
        assert_eq!(host(&"mqtt://[::1]:1883".parse().unwrap()), "[::1]");
        assert_eq!(host(&"mqtt://broker".parse().unwrap()), "broker");
    }
}
