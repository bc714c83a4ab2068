//! What the broker remembers of one client.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use super::wills::Will;
use super::{Link, Message};
use crate::broker::acl::ClientAcl;
use crate::broker::codec::{Connect, Version};
use crate::broker::{Identity, Qos};

/// What a client asked for with a filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SubOptions {
    pub qos: Qos,
    pub no_local: bool,
    pub retain_as_published: bool,
    /// MQTT 5 subscription identifier.
    pub id: Option<u32>,
}

/// A message that waits for the client.
#[derive(Debug, Clone)]
pub(super) struct Delivery {
    pub message: Arc<Message>,
    pub qos: Qos,
    pub retain: bool,
    /// Sent because of a SUBSCRIBE, not counted against the queue limits.
    pub on_subscribe: bool,
    pub ids: Option<Box<[u32]>>,
}

/// A message that was sent and is not acknowledged.
#[derive(Debug)]
pub(super) struct Inflight {
    pub id: u16,
    /// `None` once PUBREC has come: only PUBCOMP is awaited.
    pub delivery: Option<Delivery>,
    /// Sent on an earlier connection and not yet again on this one.
    pub resend: bool,
}

/// State of one client; outlives its connection when the session is persistent.
#[derive(Debug)]
pub(super) struct Session {
    pub client_id: Arc<str>,
    pub identity: Arc<Identity>,
    pub acl: Option<ClientAcl>,
    pub version: Version,
    pub link: Option<Arc<Link>>,
    pub epoch: u64,
    /// Seconds it outlives the connection.
    pub expiry: u32,
    pub away_since: u64,
    pub will: Option<Will>,
    /// By filter as the client wrote it, `$share` included.
    pub subscriptions: HashMap<String, SubOptions>,
    pub queue: VecDeque<Delivery>,
    /// Sum of the lengths of the filters.
    pub filter_bytes: usize,
    /// Cost of the live messages in `queue` and of all messages in `inflight`.
    pub queued_bytes: usize,
    pub queued_live: usize,
    pub inflight: VecDeque<Inflight>,
    /// Packet identifiers of QoS 2 messages from the client that were routed and not yet released.
    pub received: HashSet<u16>,
    pub high_since: u64,
    /// The link was woken and has not yet collected everything.
    pub signalled: bool,
    pub window: u16,
    pub maximum_packet: u32,
    next_id: u16,
}

impl Session {
    pub fn new(client_id: Arc<str>) -> Self {
        Self {
            client_id,
            identity: Arc::default(),
            acl: None,
            version: Version::V311,
            link: None,
            epoch: 0,
            expiry: 0,
            away_since: 0,
            will: None,
            subscriptions: HashMap::new(),
            queue: VecDeque::new(),
            filter_bytes: 0,
            queued_bytes: 0,
            queued_live: 0,
            inflight: VecDeque::new(),
            received: HashSet::new(),
            high_since: 0,
            signalled: false,
            window: 1,
            maximum_packet: u32::MAX,
            next_id: 0,
        }
    }

    /// A new connection takes the session.
    #[allow(clippy::too_many_arguments, reason = "one call site; a struct of the same eight fields would say no more")]
    pub fn attach(
        &mut self,
        connect: &Connect,
        identity: Arc<Identity>,
        acl: ClientAcl,
        link: Arc<Link>,
        epoch: u64,
        expiry: u32,
        window: u16,
        will: Option<Will>,
    ) {
        self.identity = identity;
        self.acl = Some(acl);
        self.version = connect.version;
        self.link = Some(link);
        self.epoch = epoch;
        self.expiry = expiry;
        self.will = will;
        self.signalled = false;
        self.window = window;
        self.maximum_packet = connect.maximum_packet;
        self.inflight.iter_mut().for_each(|sent| sent.resend = true);
    }

    /// Whether the session may be continued by this client: it is persistent and belongs to the same user.
    pub fn continues_for(&self, identity: &Identity) -> bool {
        self.expiry > 0 && self.identity.name() == identity.name()
    }

    /// Drops queued QoS 0 messages; the client is away.
    pub fn drop_unacknowledged_kind(&mut self) {
        self.queue.retain(|d| d.qos != Qos::AtMostOnce);
        self.queued_live = self.queue.iter().filter(|d| !d.on_subscribe).count();
        self.queued_bytes = self.account();
        self.queue.shrink_to_fit();
    }

    /// What `queued_bytes` must be.
    pub fn account(&self) -> usize {
        let live = self.queue.iter().filter(|d| !d.on_subscribe).map(|d| d.message.cost()).sum::<usize>();
        live + self.inflight_bytes()
    }

    /// Cost of the messages in flight.
    pub fn inflight_bytes(&self) -> usize {
        self.inflight.iter().filter_map(|sent| Some(sent.delivery.as_ref()?.message.cost())).sum()
    }

    /// The client has the message with this packet identifier; what it cost.
    pub fn acknowledge(&mut self, id: u16) -> usize {
        let freed = self.received_by_client(id);
        self.inflight.retain(|sent| sent.id != id);
        freed
    }

    /// The client has received the QoS 2 message but not released it; what it cost.
    pub fn received_by_client(&mut self, id: u16) -> usize {
        let sent = self.inflight.iter_mut().find(|sent| sent.id == id);
        let freed = sent.and_then(|sent| sent.delivery.take()).map_or(0, |delivery| delivery.message.cost());
        self.queued_bytes -= freed;
        freed
    }

    /// Forgets a subscription; whether there was one.
    pub fn unsubscribe(&mut self, filter: &str) -> bool {
        let known = self.subscriptions.remove(filter).is_some();
        if known {
            self.filter_bytes -= filter.len();
        }
        known
    }

    /// Messages that wait because of a SUBSCRIBE.
    pub fn waiting_retained(&self) -> usize {
        self.queue.len() - self.queued_live
    }

    /// Messages that wait or are in flight.
    pub fn waiting(&self) -> usize {
        self.queue.len() + self.inflight.iter().filter(|sent| sent.delivery.is_some()).count()
    }

    /// A packet identifier that is not in use. The window is far below 65,535, so there is one.
    pub fn fresh_id(&mut self) -> u16 {
        loop {
            self.next_id = if self.next_id == u16::MAX { 1 } else { self.next_id + 1 };
            if !self.inflight.iter().any(|sent| sent.id == self.next_id) {
                return self.next_id;
            }
        }
    }
}
