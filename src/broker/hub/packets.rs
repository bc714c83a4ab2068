//! What the broker does with each packet of a connected client.

use std::sync::Arc;

use bytes::BytesMut;

use super::session::SubOptions;
use super::{Detached, Effects, Hub, Message, Ticket};
use crate::broker::codec::{self, FilterRequest, Packet, Publish, RetainHandling, Version};
use crate::broker::tree::Target;
use crate::broker::{Qos, Retain, topic};

/// Reason codes of MQTT 5 in acknowledgements.
mod code {
    pub const SUCCESS: u8 = 0x00;
    pub const NO_SUBSCRIPTION: u8 = 0x11;
    pub const FAILURE_V311: u8 = 0x80;
    pub const NOT_AUTHORISED: u8 = 0x87;
    pub const BAD_FILTER: u8 = 0x8f;
    pub const ID_NOT_FOUND: u8 = 0x92;
    pub const RECEIVE_MAXIMUM: u8 = 0x93;
    pub const QUOTA: u8 = 0x97;
}

/// Retained messages that one SUBSCRIBE may have searched; bounds how long it holds the hub (some 100 ms).
const SEARCHED: usize = 2_000_000;
/// Bytes of filters that a client may have, per filter that it may have.
const FILTER_BYTES: usize = 256;

/// What follows from a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::broker) enum Next {
    /// Go on.
    Continue,
    /// The client broke a rule; close with this reason code.
    Close(u8),
    /// The client said goodbye.
    Disconnect {
        /// Publish the will all the same (reason 0x04 or an error).
        with_will: bool,
        expiry: Option<u32>,
    },
}

impl Hub {
    /// Handles one packet. Acknowledgements are appended to `out`.
    pub fn packet(
        &mut self,
        ticket: Ticket,
        packet: Packet,
        now: u64,
        fx: &mut Effects,
        out: &mut BytesMut,
    ) -> Result<Next, Detached> {
        let session = self.connected(ticket)?;
        let version = session.version;
        match packet {
            Packet::Publish(publish) => return self.published(ticket, publish, now, fx, out),
            Packet::PubAck { id } => self.queued_bytes -= session.acknowledge(id),
            Packet::PubRec { id, failed } => {
                self.queued_bytes -= if failed { session.acknowledge(id) } else { session.received_by_client(id) };
                if !failed {
                    codec::pubrel(out, version, id);
                }
            }
            Packet::PubComp { id } => session.inflight.retain(|sent| sent.id != id || sent.delivery.is_some()),
            Packet::PubRel { id } => {
                let known = session.received.remove(&id);
                codec::pubcomp(out, version, id, if known { code::SUCCESS } else { code::ID_NOT_FOUND });
            }
            Packet::Subscribe { id, identifier, filters } => {
                self.subscribe(ticket, id, identifier, filters, now, out)?
            }
            Packet::Unsubscribe { id, filters } => self.unsubscribe(ticket, id, filters, out)?,
            Packet::PingReq => codec::pingresp(out),
            Packet::Disconnect { reason, session_expiry } => {
                return Ok(Next::Disconnect { with_will: reason != 0, expiry: session_expiry });
            }
        }
        Ok(Next::Continue)
    }

    fn published(
        &mut self,
        ticket: Ticket,
        publish: Publish,
        now: u64,
        fx: &mut Effects,
        out: &mut BytesMut,
    ) -> Result<Next, Detached> {
        self.stats.messages_in += 1;
        let session = self.connected(ticket)?;
        let (version, qos, id) = (session.version, publish.qos, publish.id);
        if qos == Qos::ExactlyOnce && session.received.contains(&id) {
            // Sent again because our PUBREC was lost: it was routed the first time.
            codec::pubrec(out, version, id, code::SUCCESS);
            return Ok(Next::Continue);
        }
        if qos == Qos::ExactlyOnce && session.received.len() >= usize::from(codec::RECEIVE_MAXIMUM) {
            return Ok(Next::Close(code::RECEIVE_MAXIMUM));
        }
        let allowed = session.acl.as_ref().is_some_and(|acl| acl.may_publish(&publish.topic));
        let mut answer = code::SUCCESS;
        if allowed {
            let message = Arc::new(Message::client(publish, session.identity.clone(), now));
            if message.retain && !self.retain(&message, Retain::Persisted) {
                answer = code::QUOTA;
            }
            self.route(&message, now, fx);
            self.flush_late(now, fx);
        } else {
            tracing::debug!(client = %session.client_id, topic = %publish.topic, "publication denied by the access list");
            self.stats.denied_publishes += 1;
            answer = code::NOT_AUTHORISED;
        }
        match qos {
            Qos::AtMostOnce => {}
            Qos::AtLeastOnce => codec::puback(out, version, id, answer),
            Qos::ExactlyOnce => {
                if answer < 0x80 || version == Version::V311 {
                    // The session may just have ended because it was slow itself.
                    self.connected(ticket)?.received.insert(id);
                }
                codec::pubrec(out, version, id, answer);
            }
        }
        Ok(Next::Continue)
    }

    fn subscribe(
        &mut self,
        ticket: Ticket,
        id: u16,
        identifier: Option<u32>,
        filters: Vec<FilterRequest>,
        now: u64,
        out: &mut BytesMut,
    ) -> Result<(), Detached> {
        let version = self.connected(ticket)?.version;
        let mut codes = Vec::with_capacity(filters.len());
        let mut budget = SEARCHED;
        for request in filters {
            let granted = request.qos as u8;
            let answer = match self.subscribe_one(ticket, identifier, request, now, &mut budget)? {
                Ok(()) => granted,
                Err(_) if version == Version::V311 => code::FAILURE_V311,
                Err(reason) => reason,
            };
            if answer >= 0x80 {
                self.stats.denied_subscriptions += 1;
            }
            codes.push(answer);
        }
        codec::suback(out, version, id, &codes);
        Ok(())
    }

    fn subscribe_one(
        &mut self,
        ticket: Ticket,
        identifier: Option<u32>,
        request: FilterRequest,
        now: u64,
        budget: &mut usize,
    ) -> Result<Result<(), u8>, Detached> {
        let most = self.limits.filters_per_client;
        let search = if request.filter.contains(['+', '#']) { self.retained.len() } else { 1 };
        if std::mem::replace(budget, budget.saturating_sub(search)) == 0 {
            return Ok(Err(code::QUOTA));
        }
        let session = self.connected(ticket)?;
        let Ok((group, inner)) = topic::split_share(&request.filter) else { return Ok(Err(code::BAD_FILTER)) };
        if !session.acl.as_ref().is_some_and(|acl| acl.may_subscribe(inner)) {
            tracing::info!(client = %session.client_id, filter = %request.filter, "subscription denied by the access list");
            return Ok(Err(code::NOT_AUTHORISED));
        }
        let known = session.subscriptions.contains_key(&request.filter);
        let bytes: usize = session.filter_bytes + request.filter.len();
        if !known && (session.subscriptions.len() >= most || bytes > most * FILTER_BYTES) {
            tracing::warn!(client = %session.client_id, limit = most, "subscription refused: the client has too many");
            return Ok(Err(code::QUOTA));
        }
        let options = SubOptions {
            qos: request.qos,
            no_local: request.no_local,
            retain_as_published: request.retain_as_published,
            id: identifier,
        };
        if session.subscriptions.insert(request.filter.clone(), options).is_none() {
            session.filter_bytes = bytes;
        }
        self.tree.insert(inner, group, Target::Session(ticket.index), options);
        let wants_retained = match request.retain_handling {
            RetainHandling::Always => true,
            RetainHandling::IfNew => !known,
            RetainHandling::Never => false,
        };
        if group.is_none() && wants_retained && !self.enqueue_retained(ticket.index, inner, options, now) {
            return Ok(Err(code::QUOTA));
        }
        Ok(Ok(()))
    }

    fn unsubscribe(
        &mut self,
        ticket: Ticket,
        id: u16,
        filters: Vec<String>,
        out: &mut BytesMut,
    ) -> Result<(), Detached> {
        let version = self.connected(ticket)?.version;
        let mut codes = Vec::with_capacity(filters.len());
        for filter in filters {
            let known = self.connected(ticket)?.unsubscribe(&filter);
            if known && let Ok((group, inner)) = topic::split_share(&filter) {
                self.tree.remove(inner, group, Target::Session(ticket.index));
            }
            codes.push(if known { code::SUCCESS } else { code::NO_SUBSCRIPTION });
        }
        codec::unsuback(out, version, id, &codes);
        Ok(())
    }
}
