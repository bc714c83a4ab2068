//! What a session sends and gets, whatever carries it.

use std::sync::Arc;

use bytes::Bytes;

/// Delivery promise of one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Qos {
    /// Sent once; lost if the connection drops. The record counts as confirmed when it was sent.
    AtMostOnce,
    /// Sent until the broker confirms it.
    #[default]
    AtLeastOnce,
}

/// Whether the broker keeps the message for those who subscribe later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Retain {
    /// Not kept.
    #[default]
    No,
    /// Kept; a local broker writes it to disk within a second.
    Persisted,
    /// Kept; a local broker writes it to disk only by snapshot, since it changes fast.
    Snapshot,
}

/// One message to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Full topic, root included.
    pub topic: Arc<str>,
    /// Encoded payload; empty together with `retain` removes the retained message.
    pub payload: Bytes,
    /// Delivery promise.
    pub qos: Qos,
    /// Whether it is kept.
    pub retain: Retain,
    /// MQTT 5 correlation data of the request that this answers.
    pub correlation: Option<Bytes>,
}

impl Message {
    /// Octets on the wire: payload, topic and the packet around them (an upper bound of 12 without correlation data).
    pub fn wire_size(&self) -> usize {
        self.payload.len() + self.topic.len() + 12 + self.correlation.as_ref().map_or(0, |c| c.len() + 3)
    }
}

/// Who published a message, as far as its carrier proved it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sender {
    /// Name of the user or certificate; empty when the carrier does not tell (an uplink's broker).
    pub name: String,
    /// Address it connects from; may be empty.
    pub address: String,
}

/// A message that a client published to the gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inbound {
    /// Full topic.
    pub topic: String,
    /// Encoded payload.
    pub payload: Bytes,
    /// The broker had kept it.
    pub retain: bool,
    /// Who published, as far as the carrier knows.
    pub sender: Sender,
    /// MQTT 5 response topic.
    pub response_topic: Option<String>,
    /// MQTT 5 correlation data.
    pub correlation: Option<Bytes>,
}
