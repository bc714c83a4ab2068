//! MQTT 3.1.1 and 5.0 packets as a server reads and writes them. Sans-IO: bytes in, packets out, and back.
//!
//! Promise: no input makes it panic or allocate more than the packet limit; every malformed packet gets an error with the
//! MQTT 5 reason code that answers it. Property tests feed it random bytes and its own output.
//!
//! What it must not do: know topics' meaning, sessions or sockets.

mod decode;
mod encode;
mod reader;

pub(crate) use decode::{decode, decode_connect};
pub(crate) use encode::{
    ConnAckProperties, PublishHeader, RECEIVE_MAXIMUM, connack, disconnect, pingresp, puback, pubcomp, publish, pubrec,
    pubrel, suback, unsuback,
};
pub(crate) use reader::response_to;

use std::sync::Arc;

use bytes::Bytes;

use super::Qos;

/// Protocol level of a connection, from its CONNECT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    V311,
    V5,
}

/// Why bytes are no packet that may be accepted here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DecodeError {
    #[error("malformed packet: {0}")]
    Malformed(&'static str),
    #[error("protocol error: {0}")]
    Protocol(&'static str),
    #[error("a packet of {size} bytes is larger than the limit of {limit}")]
    TooLarge { size: usize, limit: usize },
    #[error("topic alias used although none is allowed")]
    TopicAlias,
    #[error("protocol level {0} is not MQTT 3.1.1 or 5")]
    Version(u8),
}

impl DecodeError {
    /// The MQTT 5 reason code that tells the client.
    pub(crate) const fn reason(self) -> u8 {
        match self {
            DecodeError::Malformed(_) => 0x81,
            DecodeError::Protocol(_) => 0x82,
            DecodeError::Version(_) => 0x84,
            DecodeError::TopicAlias => 0x94,
            DecodeError::TooLarge { .. } => 0x95,
        }
    }
}

/// First packet of a connection.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Connect {
    pub version: Version,
    pub clean_start: bool,
    /// Seconds; 0 is off.
    pub keep_alive: u16,
    pub client_id: String,
    pub will: Option<WillPacket>,
    pub user: Option<String>,
    pub password: Option<Bytes>,
    /// Seconds; MQTT 5 only.
    pub session_expiry: u32,
    pub receive_maximum: u16,
    pub maximum_packet: u32,
    /// An authentication method was asked for (AUTH packets), which no one here speaks.
    pub extended_auth: bool,
}

/// Will of a CONNECT.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct WillPacket {
    pub topic: Arc<str>,
    pub payload: Bytes,
    pub qos: Qos,
    pub retain: bool,
    /// Encoded MQTT 5 properties that travel with the message.
    pub forward: Bytes,
    /// Seconds.
    pub expiry: Option<u32>,
    /// Seconds.
    pub delay: u32,
}

/// A PUBLISH from a client.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Publish {
    pub topic: Arc<str>,
    pub payload: Bytes,
    pub qos: Qos,
    pub retain: bool,
    pub dup: bool,
    /// 0 for QoS 0.
    pub id: u16,
    /// Encoded MQTT 5 properties that travel with the message (all but expiry, alias and subscription identifiers).
    pub forward: Bytes,
    /// Seconds.
    pub expiry: Option<u32>,
}

/// One filter of a SUBSCRIBE.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct FilterRequest {
    pub filter: String,
    pub qos: Qos,
    pub no_local: bool,
    pub retain_as_published: bool,
    pub retain_handling: RetainHandling,
}

/// MQTT 5 retain handling [MQTT-3.3.1-9 to -11].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RetainHandling {
    Always,
    IfNew,
    Never,
}

/// Anything a client sends after its CONNECT.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Packet {
    Publish(Publish),
    PubAck { id: u16 },
    PubRec { id: u16, failed: bool },
    PubRel { id: u16 },
    PubComp { id: u16 },
    Subscribe { id: u16, identifier: Option<u32>, filters: Vec<FilterRequest> },
    Unsubscribe { id: u16, filters: Vec<String> },
    PingReq,
    Disconnect { reason: u8, session_expiry: Option<u32> },
}

#[cfg(test)]
mod tests;
