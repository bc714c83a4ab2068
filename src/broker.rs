//! The embedded broker: MQTT 3.1.1 and 5 for the plant's own network, inside the gateway's process.
//!
//! **Promise.** Any client that works with mosquitto works here: QoS 0, 1 and 2, retained messages (all of them, on every
//! SUBSCRIBE, across restarts), wills that fire on every kind of loss and on none else, persistent and shared
//! subscriptions, any legal client id, users with hashed passwords, client certificates, topic rules, and the refusal codes
//! of the standard. Both versions on one port, each listener TCP or TLS. Random bytes close the connection they came on
//! and nothing else.
//!
//! **Nothing is thinned out silently.** A subscriber that cannot keep up is slowed down for while it makes progress (our own
//! publications wait for it, [`Limits::patience`]) and is then disconnected with an event and a counter; a persistent
//! session that overflows while its client is away is discarded the same way, so that the client sees `session present = 0`
//! and knows. Every queue, map and cache has a limit in [`Limits`].
//!
//! **Shape.** [`hub`] is the whole broker without I/O: sessions, subscription tree, retained messages, wills. It is one
//! value behind one mutex that is held for microseconds; connection tasks take packets to it and carry deliveries away in
//! batches (one wake-up and one write for many messages). `codec` turns bytes into packets, `listener` accepts,
//! `connection` is the task of one client. `docs/decisions/0003-embedded-broker.md` says why this is not rumqttd's router.
//!
//! **Limits.** One process, some hundreds of clients. Sessions (not retained messages) end with the process. No
//! websocket, no bridges, no topic aliases (announced to MQTT 5 clients as maximum 0), no extended authentication.
//!
//! **What it must not do.** Know devices, the store or the contract's topics: it sees names and bytes.

mod acl;
mod auth;
mod codec;
mod config;
mod connection;
mod embedded;
mod fuzz;
mod hub;
mod listener;
mod local;
mod probe;
mod retained_store;
mod topic;
mod tree;

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;

use crate::security::CertificateId;

pub use acl::{Access, Acl, AclRule, Who};
pub use config::{AclError, Config, ConfigError, Limits, Listener, User};
pub use embedded::{BrokerError, EmbeddedBroker};
#[doc(hidden)]
pub use fuzz::{fuzz_packets, fuzz_retained, fuzz_topics};
pub use hub::BrokerStats;
pub use local::{BrokerClosed, LocalBroker, SubscribeError};
pub use retained_store::{MemoryRetained, RetainedChange, RetainedStore, RetainedStoreError};

/// Quality of service of a message or subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(u8)]
pub enum Qos {
    /// 0: sent once, lost when the connection is.
    #[default]
    AtMostOnce = 0,
    /// 1: acknowledged; may come twice.
    AtLeastOnce = 1,
    /// 2: acknowledged; comes once.
    ExactlyOnce = 2,
}

impl Qos {
    pub(crate) const fn from_u8(number: u8) -> Option<Self> {
        match number {
            0 => Some(Qos::AtMostOnce),
            1 => Some(Qos::AtLeastOnce),
            2 => Some(Qos::ExactlyOnce),
            _ => None,
        }
    }
}

/// Whether and how a message is retained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Retain {
    /// Not at all.
    #[default]
    No,
    /// Retained, and written to the retained store within a second (the last value of that second).
    Persisted,
    /// Retained in memory; written to the retained store only at intervals ([`Config::snapshot_interval`]) and at stop.
    /// For values that change all the time, which would wear flash.
    Snapshot,
}

/// A message of the gateway itself.
#[derive(Debug, Clone)]
pub struct Publication {
    /// Topic name, no wildcards. Reuse the same `Arc` for the same topic.
    pub topic: Arc<str>,
    /// Any bytes, up to 256 MiB less the header. Empty and retained clears the topic's retained message.
    pub payload: Bytes,
    /// Highest QoS at which a subscriber may get it.
    pub qos: Qos,
    /// Whether it stays for later subscribers.
    pub retain: Retain,
}

/// Who a client is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Identity {
    /// Client id of its CONNECT, or the one assigned to it.
    pub client_id: Arc<str>,
    /// User name, verified by password.
    pub user: Option<String>,
    /// Where the connection comes from; `None` for a retained message of an earlier connection.
    pub address: Option<SocketAddr>,
    /// Name in the verified client certificate: `device:` and the id for one that the plant issued to a device; else the
    /// common name, else the first DNS, mail or URI alternative name.
    pub tls_name: Option<String>,
    /// Which verified client certificate that is.
    pub certificate: Option<CertificateId>,
}

impl Identity {
    /// The name that access rules see: the certificate's, else the user's; `None` for an anonymous client.
    pub fn name(&self) -> Option<&str> {
        self.tls_name.as_deref().or(self.user.as_deref())
    }
}

/// A message that a client published and a local subscription asked for.
#[derive(Debug, Clone)]
pub struct Inbound {
    /// Topic it was published to.
    pub topic: String,
    /// Its payload.
    pub payload: Bytes,
    /// It was retained before the subscription was made; a live message has `false`.
    pub retain: bool,
    /// Who published it.
    pub client: Arc<Identity>,
    /// MQTT 5 response topic.
    pub response_topic: Option<String>,
    /// MQTT 5 correlation data.
    pub correlation: Option<Bytes>,
}
