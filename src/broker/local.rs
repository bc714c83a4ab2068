//! The broker as the rest of the gateway sees it.

use std::future::Future;

use tokio::sync::mpsc;

use super::{BrokerStats, Inbound, Publication};

/// The broker has stopped or failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the embedded broker has stopped")]
pub struct BrokerClosed;

/// Why a local subscription is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubscribeError {
    /// Not a legal MQTT filter, or a shared one.
    #[error("{0:?} is no topic filter for a local subscription")]
    Filter(String),
    /// The broker has stopped or failed.
    #[error(transparent)]
    Closed(#[from] BrokerClosed),
}

/// A broker in this process.
pub trait LocalBroker: Clone + Send + Sync + 'static {
    /// Publishes messages in order. Waits for subscribers with long queues, a while
    /// ([`super::Limits::patience`]); `Ok` means that the broker has taken all of them for every matching subscriber and,
    /// where asked, retained them. Not cancel safe: a dropped future may have published a part.
    fn publish(&self, messages: Vec<Publication>) -> impl Future<Output = Result<(), BrokerClosed>> + Send;

    /// Messages that clients publish to `filters`, and what they had retained there before. Not the gateway's own
    /// messages. The channel holds 256; when it is full, clients that publish to it wait, at most 5 s.
    fn subscribe(&self, filters: Vec<String>) -> Result<mpsc::Receiver<Inbound>, SubscribeError>;

    /// Counters and gauges.
    fn stats(&self) -> BrokerStats;

    /// Stops: clients get what waits for them and a DISCONNECT, retained messages are written. Takes at most 3 s.
    fn shutdown(self) -> impl Future<Output = ()> + Send;
}
