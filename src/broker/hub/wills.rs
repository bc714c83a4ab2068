//! Wills that wait for their delay [MQTT 5, 3.1.3.2.2].

use std::collections::HashMap;
use std::sync::Arc;

use super::Message;
use crate::broker::Identity;
use crate::broker::codec::WillPacket;

/// The will of a connection.
#[derive(Debug)]
pub(super) struct Will {
    pub message: Message,
    /// Seconds between the loss of the connection and the publication.
    pub delay: u32,
    /// Seconds of life after publication.
    expiry: Option<u32>,
}

impl Will {
    pub fn new(will: &WillPacket, from: Arc<Identity>) -> Self {
        let message = Message {
            topic: will.topic.clone(),
            payload: will.payload.clone(),
            qos: will.qos,
            retain: will.retain,
            forward: will.forward.clone(),
            expires: None,
            from: Some(from),
        };
        Self { message, delay: will.delay, expiry: will.expiry }
    }

    /// The message as published `now`: its expiry starts then.
    pub fn publish(mut self, now: u64) -> Message {
        self.message.expires = self.expiry.map(|seconds| now + u64::from(seconds) * 1000);
        self.message
    }
}

/// Wills of lost connections, by client id.
#[derive(Debug, Default)]
pub(super) struct Wills {
    waiting: HashMap<Arc<str>, (u64, Will)>,
}

impl Wills {
    /// Publishes `will` in `delay` seconds unless the client comes back.
    pub fn schedule(&mut self, client: Arc<str>, will: Will, now: u64, delay: u32) {
        self.waiting.insert(client, (now + u64::from(delay) * 1000, will));
    }

    /// The client's session continues: its will is not published [MQTT-3.1.3-9].
    pub fn cancel(&mut self, client: &str) {
        self.waiting.remove(client);
    }

    /// The client's session ends: its will is published at once.
    pub fn take(&mut self, client: &str, now: u64) -> Option<Message> {
        self.waiting.remove(client).map(|(_, will)| will.publish(now))
    }

    /// The wills whose delay is over.
    pub fn due(&mut self, now: u64) -> Vec<Message> {
        self.waiting.extract_if(|_, (at, _)| *at <= now).map(|(_, (_, will))| will.publish(now)).collect()
    }
}
