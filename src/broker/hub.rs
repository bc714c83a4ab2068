//! The broker without I/O: sessions, subscriptions, retained messages and wills. Time comes in as `now`, milliseconds on
//! the monotonic clock.
//!
//! Invariants: a session that is connected has exactly one [`Link`]; a ticket of an earlier connection changes nothing; a
//! subscription stands in the tree if and only if it stands in its session; what waits never exceeds the limits.

mod deliver;
mod lifecycle;
mod message;
mod packets;
mod retained;
mod session;
mod wills;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};

use super::tree::{Target, Tree};
use super::{Inbound, Limits, Publication, Qos, Retain};
pub(super) use deliver::Outgoing;
pub(super) use message::Message;
pub(super) use packets::Next;
use retained::Retained;
pub(super) use retained::{decode_retained, encode_retained};
use session::{Session, SubOptions};
use wills::Wills;

/// What the broker counted since it started, and what it holds now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct BrokerStats {
    /// Clients connected now.
    pub clients: u64,
    /// Persistent sessions whose client is away now.
    pub sessions_away: u64,
    /// Subscriptions now.
    pub subscriptions: u64,
    /// Retained messages now.
    pub retained: u64,
    /// Bytes of retained messages now.
    pub retained_bytes: u64,
    /// Bytes that wait for clients now.
    pub queued_bytes: u64,
    /// Connections accepted with a CONNACK of success.
    pub connects: u64,
    /// Messages published by clients.
    pub messages_in: u64,
    /// Messages handed to clients' connections.
    pub messages_out: u64,
    /// Messages published by the gateway.
    pub published: u64,
    /// Clients disconnected because they could not keep up.
    pub slow_clients: u64,
    /// Persistent sessions discarded because they overflowed, expired, or were too many.
    pub sessions_discarded: u64,
    /// Messages that waited for a client and were dropped with its connection or session.
    pub dropped: u64,
    /// Messages whose expiry passed before they were sent.
    pub expired: u64,
    /// Messages larger than the client's own limit, not sent to it.
    pub too_large: u64,
    /// Connections refused: wrong password or no right to connect.
    pub refused_logins: u64,
    /// Connections refused by a limit.
    pub refused_connections: u64,
    /// Publications refused by the access list.
    pub denied_publishes: u64,
    /// Subscriptions refused by the access list or a limit.
    pub denied_subscriptions: u64,
    /// Retained messages refused because there are too many.
    pub refused_retained: u64,
    /// Connections closed because of bytes that are no MQTT.
    pub protocol_errors: u64,
}

/// The hub's side of one connection.
#[derive(Debug, Default)]
pub(super) struct Link {
    /// Rung when there is something to collect or the connection must close.
    pub wake: Notify,
    /// Reason code of the close, 0 while open.
    closed: AtomicU8,
}

impl Link {
    /// Why the hub closed this connection; `None` while it is open.
    pub fn closed(&self) -> Option<u8> {
        Some(self.closed.load(Ordering::Acquire)).filter(|&reason| reason != 0)
    }

    fn close(&self, reason: u8) {
        self.closed.store(reason, Ordering::Release);
    }
}

/// Reason codes of MQTT 5 that the hub closes connections with.
pub(super) mod reason {
    pub const NOT_AUTHORISED: u8 = 0x87;
    pub const SHUTTING_DOWN: u8 = 0x8b;
    pub const KEEP_ALIVE: u8 = 0x8d;
    pub const TAKEN_OVER: u8 = 0x8e;
    pub const QUOTA: u8 = 0x97;
}

/// A connection's right to act on its session; worthless once another connection has taken the session over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket {
    index: usize,
    epoch: u64,
}

/// The ticket's session belongs to another connection or is gone; close.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Detached;

/// What the caller does after it has released the hub.
#[derive(Debug, Default)]
pub(super) struct Effects {
    /// Connections to wake.
    pub wake: Vec<Arc<Link>>,
    /// Messages for receivers in this process; wait for room in their channels.
    pub local: Vec<(mpsc::Sender<Inbound>, Inbound)>,
}

impl Effects {
    /// Wakes the connections.
    pub fn ring(&mut self) {
        self.wake.drain(..).for_each(|link| link.wake.notify_one());
    }
}

/// What a successful CONNECT gets.
#[derive(Debug)]
pub(super) struct Attached {
    pub ticket: Ticket,
    /// An earlier session continues.
    pub present: bool,
    /// Seconds the session outlives the connection.
    pub expiry: u32,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leave {
    /// DISCONNECT: no will.
    Clean { expiry: Option<u32> },
    /// Anything else.
    Lost,
}

/// The broker's state.
#[derive(Debug)]
pub(super) struct Hub {
    limits: Limits,
    sessions: Vec<Option<Box<Session>>>,
    free: Vec<usize>,
    by_client: HashMap<Arc<str>, usize>,
    tree: Tree<SubOptions>,
    retained: Retained,
    wills: Wills,
    locals: Vec<Option<Local>>,
    /// Connected sessions whose queue is long.
    high: HashSet<usize>,
    queued_bytes: usize,
    /// Since when all queues together hold more than half of what they may.
    total_high_since: Option<u64>,
    /// Messages that wait because of a SUBSCRIBE.
    queued_retained: usize,
    epoch: u64,
    stats: BrokerStats,
    /// Wills of sessions that were closed while a message was being routed; routed next.
    late: Vec<Message>,
    scratch: Vec<(Target, SubOptions)>,
}

#[derive(Debug)]
struct Local {
    filters: Vec<String>,
    sender: mpsc::Sender<Inbound>,
}

impl Hub {
    pub fn new(limits: Limits) -> Self {
        Self {
            retained: Retained::new(limits.retained_messages, limits.retained_bytes),
            limits,
            sessions: Vec::new(),
            free: Vec::new(),
            by_client: HashMap::new(),
            tree: Tree::default(),
            wills: Wills::default(),
            locals: Vec::new(),
            high: HashSet::new(),
            queued_bytes: 0,
            total_high_since: None,
            queued_retained: 0,
            epoch: 0,
            stats: BrokerStats::default(),
            late: Vec::new(),
            scratch: Vec::new(),
        }
    }

    /// Counters and gauges.
    pub fn stats(&self) -> BrokerStats {
        let connected = self.sessions.iter().flatten().filter(|s| s.link.is_some()).count();
        BrokerStats {
            clients: connected as u64,
            sessions_away: (self.by_client.len() - connected) as u64,
            subscriptions: self.sessions.iter().flatten().map(|s| s.subscriptions.len() as u64).sum(),
            retained: self.retained.len() as u64,
            retained_bytes: self.retained.bytes() as u64,
            queued_bytes: self.queued_bytes as u64,
            ..self.stats
        }
    }

    /// Counters that the shell keeps here.
    pub fn count(&mut self, add: impl FnOnce(&mut BrokerStats)) {
        add(&mut self.stats);
    }

    /// Retained messages and what must be written of them.
    pub fn retained(&mut self) -> &mut Retained {
        &mut self.retained
    }

    /// Time has passed: delayed wills, expired sessions and retained messages. Call it at least every second.
    pub fn tick(&mut self, now: u64, fx: &mut Effects) {
        self.late.extend(self.wills.due(now));
        for index in 0..self.sessions.len() {
            let Some(session) = self.session(index) else { continue };
            let lifetime = u64::from(session.expiry) * 1000;
            if session.link.is_none() && now.saturating_sub(session.away_since) >= lifetime {
                tracing::info!(client = %session.client_id, "persistent session expired");
                self.stats.sessions_discarded += 1;
                self.end_session(index, now);
            }
        }
        for at in 0..self.locals.len() {
            if self.locals[at].as_ref().is_some_and(|local| local.sender.is_closed()) {
                self.unsubscribe_local(at);
            }
        }
        self.retained.expire(now);
        self.flush_late(now, fx);
    }

    /// Publishes messages of the gateway itself.
    pub fn publish(&mut self, publications: impl IntoIterator<Item = Publication>, now: u64, fx: &mut Effects) {
        for publication in publications {
            let Publication { topic, payload, qos, retain } = publication;
            let message = Message::own(topic, payload, qos, retain != Retain::No);
            self.stats.published += 1;
            let message = Arc::new(message);
            if retain != Retain::No {
                self.retain(&message, retain);
            }
            self.route(&message, now, fx);
        }
        self.flush_late(now, fx);
    }

    /// Keeps or clears a retained message; whether there was room.
    fn retain(&mut self, message: &Arc<Message>, class: Retain) -> bool {
        let kept = self.retained.put(message, class);
        if !kept {
            self.stats.refused_retained += 1;
            tracing::warn!(topic = %message.topic, messages = self.retained.len(), bytes = self.retained.bytes(),
                "retained message refused: the limit is reached; raise broker.limits or clear topics");
        }
        kept
    }

    /// A receiver in this process for messages of clients. `room` is the size of its channel without the retained ones.
    pub fn subscribe_local(&mut self, filters: Vec<String>, room: usize, now: u64) -> mpsc::Receiver<Inbound> {
        let retained: Vec<Arc<Message>> = self
            .retained
            .all()
            .filter(|m| {
                m.from.is_some() && !m.expired(now) && filters.iter().any(|f| super::topic::matches(f, &m.topic))
            })
            .cloned()
            .collect();
        let (sender, receiver) = mpsc::channel(room + retained.len());
        for message in retained {
            // The channel was made with room for all of them.
            let _ = sender.try_send(message.inbound(true));
        }
        let at = self.locals.iter().position(Option::is_none).unwrap_or_else(|| {
            self.locals.push(None);
            self.locals.len() - 1
        });
        let options = SubOptions { qos: Qos::ExactlyOnce, no_local: false, retain_as_published: false, id: None };
        for filter in &filters {
            self.tree.insert(filter, None, Target::Local(at), options);
        }
        self.locals[at] = Some(Local { filters, sender });
        receiver
    }

    fn unsubscribe_local(&mut self, at: usize) {
        if let Some(local) = self.locals[at].take() {
            for filter in &local.filters {
                self.tree.remove(filter, None, Target::Local(at));
            }
        }
    }

    /// Whether our own publications should wait: a connected subscriber's queue is long, or all together are, and the
    /// patience for it is not used up.
    pub fn congested(&self, now: u64) -> bool {
        let patience = self.limits.patience.as_millis() as u64;
        let mut since =
            self.high.iter().filter_map(|&i| self.session(i)).map(|s| s.high_since).chain(self.total_high_since);
        since.any(|at| now.saturating_sub(at) < patience)
    }

    /// Closes all connections; nobody gets a will, for nobody is left to read it.
    pub fn close_all(&mut self, fx: &mut Effects) {
        for session in self.sessions.iter_mut().flatten() {
            session.will = None;
            if let Some(link) = &session.link {
                link.close(reason::SHUTTING_DOWN);
                fx.wake.push(link.clone());
            }
        }
    }

    /// Routes the wills that came up meanwhile; each may close further slow sessions and bring further wills.
    fn flush_late(&mut self, now: u64, fx: &mut Effects) {
        while let Some(message) = self.late.pop() {
            let message = Arc::new(message);
            if message.retain {
                self.retain(&message, Retain::Persisted);
            }
            self.route(&message, now, fx);
        }
    }
}

/// Milliseconds of a duration.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
