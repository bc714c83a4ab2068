//! From a message to the queues of its subscribers, and from a queue to the connection.

use std::sync::Arc;

use super::session::{Delivery, Inflight, SubOptions};
use super::{Detached, Effects, Hub, Message, Ticket, reason};
use crate::broker::Qos;
use crate::broker::codec::Version;
use crate::broker::tree::Target;

/// Our own publications begin to wait for a subscriber when its queue holds this part of its limits: early, so that a
/// flood of ours fills sockets rather than memory.
const HIGH: usize = 8;
/// And they stop waiting when it holds less than this part.
const LOW: usize = 16;
/// Slots above which an empty queue gives its memory back.
const KEEP_SLOTS: usize = 256;

/// Retained messages that may wait for all clients together before further subscriptions are refused; 32 bytes each.
const MOST_RETAINED_WAITING: usize = 1_000_000;

/// One packet that the connection encodes and writes.
#[derive(Debug)]
pub(in crate::broker) enum Outgoing {
    Publish {
        message: Arc<Message>,
        qos: Qos,
        retain: bool,
        dup: bool,
        id: u16,
        expiry: Option<u32>,
        ids: Option<Box<[u32]>>,
    },
    /// The second half of QoS 2, again after a reconnect.
    Release { id: u16 },
}

impl Hub {
    /// Queues `message` for everyone who subscribed, once per client: with the highest QoS of its matching filters.
    pub(super) fn route(&mut self, message: &Arc<Message>, now: u64, fx: &mut Effects) {
        let mut found = std::mem::take(&mut self.scratch);
        let sessions = &self.sessions;
        let usable = |target: Target| match target {
            Target::Session(index) => sessions[index].as_ref().is_some_and(|s| s.link.is_some()),
            Target::Local(_) => true,
        };
        self.tree.matches(&message.topic, &usable, &mut |s| found.push((s.target, s.options)));
        if found.len() > 1 {
            found.sort_unstable_by_key(|&(target, _)| target);
        }
        for same in found.chunk_by(|a, b| a.0 == b.0) {
            match same[0].0 {
                Target::Session(index) => self.enqueue(index, same, message, now, fx),
                Target::Local(at) => self.hand_over(at, message, fx),
            }
        }
        found.clear();
        self.scratch = found;
    }

    /// To a receiver in this process: messages of clients only.
    fn hand_over(&self, at: usize, message: &Arc<Message>, fx: &mut Effects) {
        if let (Some(local), Some(_)) = (&self.locals[at], &message.from) {
            fx.local.push((local.sender.clone(), message.inbound(false)));
        }
    }

    fn enqueue(
        &mut self,
        index: usize,
        same: &[(Target, SubOptions)],
        message: &Arc<Message>,
        now: u64,
        fx: &mut Effects,
    ) {
        // A session that overflowed a moment ago is gone; its subscriptions may still be in the list being routed.
        let Some(session) = self.sessions[index].as_mut() else { return };
        let own = message.from.as_ref().is_some_and(|from| from.client_id == session.client_id);
        let wanted = || same.iter().map(|(_, options)| options).filter(move |options| !(own && options.no_local));
        let Some(most) = wanted().map(|o| o.qos).max() else { return };
        let qos = most.min(message.qos);
        if session.link.is_none() && qos == Qos::AtMostOnce {
            return;
        }
        let retain = message.retain && wanted().any(|o| o.retain_as_published);
        let ids: Vec<u32> = wanted().filter_map(|o| o.id).collect();
        let ids = (!ids.is_empty()).then(|| ids.into_boxed_slice());
        let cost = message.cost();
        session.queue.push_back(Delivery { message: message.clone(), qos, retain, on_subscribe: false, ids });
        session.queued_live += 1;
        session.queued_bytes += cost;
        self.queued_bytes += cost;
        let (bytes, messages) = (session.queued_bytes, session.queued_live);
        if let Some(link) = &session.link {
            if !session.signalled {
                session.signalled = true;
                fx.wake.push(link.clone());
            }
            let high = bytes > self.limits.queue_bytes / HIGH || messages > self.limits.queue_messages / HIGH;
            if high && self.high.insert(index) {
                session.high_since = now;
            }
        }
        if self.total_high() && self.total_high_since.is_none() {
            self.total_high_since = Some(now);
        }
        if bytes > self.limits.queue_bytes || messages > self.limits.queue_messages {
            self.overflow(index, now, fx);
        } else if self.queued_bytes > self.limits.total_queue_bytes {
            let longest = self.sessions.iter().enumerate().filter_map(|(i, s)| Some((i, s.as_ref()?.queued_bytes)));
            if let Some((longest, _)) = longest.max_by_key(|&(_, bytes)| bytes) {
                self.overflow(longest, now, fx);
            }
        }
    }

    /// A client cannot keep up. It is disconnected and its session ends, rather than losing the middle of its data.
    fn overflow(&mut self, index: usize, now: u64, fx: &mut Effects) {
        let Some(session) = self.sessions[index].as_mut() else { return };
        let (messages, bytes) = (session.queued_live, session.queued_bytes);
        match session.link.take() {
            Some(link) => {
                self.stats.slow_clients += 1;
                tracing::warn!(client = %session.client_id, address = ?session.identity.address, messages, bytes,
                    "client cannot keep up: disconnected, its session ends");
                link.close(reason::QUOTA);
                fx.wake.push(link);
                if let Some(will) = session.will.take() {
                    self.late.push(will.publish(now));
                }
            }
            None => {
                self.stats.sessions_discarded += 1;
                tracing::warn!(client = %session.client_id, messages, bytes,
                    "persistent session of an absent client is full: discarded, its client starts clean");
            }
        }
        self.end_session(index, now);
    }

    /// Queues what is retained for a new subscription; `false` when too much of that waits already.
    pub(super) fn enqueue_retained(&mut self, index: usize, filter: &str, options: SubOptions, now: u64) -> bool {
        let Some(session) = self.sessions[index].as_mut() else { return false };
        let waiting = session.queue.len() - session.queued_live;
        if waiting > self.limits.retained_messages || self.queued_retained > MOST_RETAINED_WAITING {
            return false;
        }
        for message in self.retained.matching(filter, now) {
            let own = message.from.as_ref().is_some_and(|from| from.client_id == session.client_id);
            if own && options.no_local {
                continue;
            }
            let ids = options.id.map(|id| vec![id].into_boxed_slice());
            let qos = options.qos.min(message.qos);
            session.queue.push_back(Delivery { message: message.clone(), qos, retain: true, on_subscribe: true, ids });
        }
        self.queued_retained += session.queue.len() - session.queued_live - waiting;
        true
    }

    /// Moves deliveries from the session's queue to `batch`, in order, until about `bytes` are reached, the client's window
    /// is full or nothing is left. `Ok(true)`: call again when the batch is written.
    pub fn collect(
        &mut self,
        ticket: Ticket,
        bytes: usize,
        now: u64,
        batch: &mut Vec<Outgoing>,
    ) -> Result<bool, Detached> {
        self.connected(ticket)?;
        let Some(session) = self.sessions[ticket.index].as_deref_mut() else { return Err(Detached) };
        let before = session.queued_bytes;
        let mut unacknowledged = session.inflight_bytes();
        let mut expired = 0;
        let mut size = 0;
        resend(session, batch, now);
        let more = loop {
            if size >= bytes {
                break !session.queue.is_empty();
            }
            let Some(next) = session.queue.front() else { break false };
            let cost = next.message.cost();
            // Retained messages begin to count when they are in flight: they may take what is left of the whole, and
            // beyond it one per client, so that everyone goes on.
            let total = self.queued_bytes + session.queued_bytes - before;
            let over = unacknowledged + cost > self.limits.queue_bytes / 8
                || next.on_subscribe && total + cost > self.limits.total_queue_bytes;
            let full = session.inflight.len() >= usize::from(session.window) || !session.inflight.is_empty() && over;
            if next.qos != Qos::AtMostOnce && full {
                break false;
            }
            let Some(delivery) = session.queue.pop_front() else { break false };
            if delivery.on_subscribe {
                self.queued_retained -= 1;
            } else {
                session.queued_live -= 1;
                session.queued_bytes -= cost;
            }
            if delivery.message.expired(now) {
                expired += 1;
                continue;
            }
            size += cost;
            let id = if delivery.qos == Qos::AtMostOnce { 0 } else { session.fresh_id() };
            if id != 0 {
                session.queued_bytes += cost;
                unacknowledged += cost;
                session.inflight.push_back(Inflight { id, delivery: Some(delivery.clone()), resend: false });
            }
            batch.push(outgoing(delivery, id, false, session.version, now));
        };
        session.signalled = more;
        if session.queue.is_empty() && session.queue.capacity() > KEEP_SLOTS {
            session.queue.shrink_to(KEEP_SLOTS);
        }
        let after = session.queued_bytes;
        let low =
            after < self.limits.queue_bytes / LOW && session.queued_live < self.limits.queue_messages.div_ceil(LOW);
        self.queued_bytes = self.queued_bytes + after - before;
        self.stats.expired += expired;
        self.stats.messages_out += batch.len() as u64;
        if low && !self.high.is_empty() {
            self.high.remove(&ticket.index);
        }
        if !self.total_high() {
            self.total_high_since = None;
        }
        Ok(more)
    }

    /// Packets that turned out larger than the client takes were not sent [MQTT-3.1.2-24]; they count as done.
    pub fn not_sent(&mut self, ticket: Ticket, ids: &[u16]) {
        self.stats.too_large += ids.len() as u64;
        if let Ok(session) = self.connected(ticket) {
            tracing::warn!(client = %session.client_id, limit = session.maximum_packet, messages = ids.len(),
                "messages larger than the client takes were not sent to it");
            let freed: usize = ids.iter().filter(|&&id| id != 0).map(|&id| session.acknowledge(id)).sum();
            self.queued_bytes -= freed;
        }
    }

    /// Whether someone's queue is long, or all together are; our own publications may be waiting for room.
    pub fn has_high(&self) -> bool {
        !self.high.is_empty() || self.total_high_since.is_some()
    }

    fn total_high(&self) -> bool {
        self.queued_bytes > self.limits.total_queue_bytes / 2
    }
}

/// What was in flight on an earlier connection goes out again, first and with DUP [MQTT-4.4.0-1].
fn resend(session: &mut super::Session, batch: &mut Vec<Outgoing>, now: u64) {
    let version = session.version;
    for sent in session.inflight.iter_mut().filter(|sent| sent.resend) {
        sent.resend = false;
        batch.push(match &sent.delivery {
            Some(delivery) => outgoing(delivery.clone(), sent.id, true, version, now),
            None => Outgoing::Release { id: sent.id },
        });
    }
}

fn outgoing(delivery: Delivery, id: u16, dup: bool, version: Version, now: u64) -> Outgoing {
    let Delivery { message, qos, retain, ids, .. } = delivery;
    let expiry = if version == Version::V5 { message.seconds_left(now) } else { None };
    Outgoing::Publish { message, qos, retain, dup, id, expiry, ids }
}
