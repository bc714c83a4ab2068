//! One application message, shared by everyone it waits for.

use std::sync::Arc;

use bytes::Bytes;

use crate::broker::codec::{self, Publish};
use crate::broker::{Identity, Inbound, Qos};

/// What one message costs in queues beside its own bytes.
const OVERHEAD: usize = 96;

/// A message on its way.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::broker) struct Message {
    pub topic: Arc<str>,
    pub payload: Bytes,
    pub qos: Qos,
    /// As published.
    pub retain: bool,
    /// Encoded MQTT 5 properties that travel with it.
    pub forward: Bytes,
    /// Monotonic milliseconds.
    pub expires: Option<u64>,
    /// Who published it; `None` for the gateway itself.
    pub from: Option<Arc<Identity>>,
}

impl Message {
    /// A message of the gateway itself.
    pub fn own(topic: Arc<str>, payload: Bytes, qos: Qos, retain: bool) -> Self {
        Self { topic, payload, qos, retain, forward: Bytes::new(), expires: None, from: None }
    }

    /// A message that a client published.
    pub fn client(publish: Publish, from: Arc<Identity>, now: u64) -> Self {
        let Publish { topic, payload, qos, retain, forward, expiry, .. } = publish;
        let expires = expiry.map(|seconds| now + u64::from(seconds) * 1000);
        Self { topic, payload, qos, retain, forward, expires, from: Some(from) }
    }

    pub fn expired(&self, now: u64) -> bool {
        self.expires.is_some_and(|at| at <= now)
    }

    /// Seconds left, rounded up, for the expiry property of what is sent on.
    pub fn seconds_left(&self, now: u64) -> Option<u32> {
        self.expires.map(|at| u32::try_from(at.saturating_sub(now).div_ceil(1000)).unwrap_or(u32::MAX))
    }

    /// Bytes it counts for in queues.
    pub fn cost(&self) -> usize {
        self.topic.len() + self.payload.len() + self.forward.len() + OVERHEAD
    }

    /// For a receiver in this process.
    pub fn inbound(&self, retained: bool) -> Inbound {
        let (response_topic, correlation) = codec::response_to(&self.forward);
        Inbound {
            topic: self.topic.to_string(),
            payload: self.payload.clone(),
            retain: retained,
            client: self.from.clone().unwrap_or_default(),
            response_topic,
            correlation,
        }
    }
}
