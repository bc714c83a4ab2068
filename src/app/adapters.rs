//! The few lines that let modules meet without knowing each other: each implements a trait that one module owns on the
//! type of another.

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::broker::{self, EmbeddedBroker, LocalBroker, RetainedChange, RetainedStore, RetainedStoreError};
use crate::model::{Delivery, Depth, Lane, Order, Seq};
use crate::northbound::{self, LocalClosed, LocalPublisher, RecordSource, SourceClosed};
use crate::store::{self, Store};

/// Tree of the state store that holds retained messages.
pub const RETAINED: &str = "retained";

/// A consumer of the log as a session's source.
#[derive(Debug)]
pub struct LogSource(pub store::Consumer);

impl RecordSource for LogSource {
    fn begin_session(&mut self, order: Order) {
        self.0.begin_session(order);
    }

    async fn live(&mut self, max: usize) -> Result<Vec<Delivery>, SourceClosed> {
        self.0.live(max).await.map_err(|_| SourceClosed)
    }

    async fn backlog(&mut self, max: usize) -> Result<Vec<Delivery>, SourceClosed> {
        self.0.backlog(max).await.map_err(|_| SourceClosed)
    }

    fn ack(&self, lane: Lane, first: Seq, last: Seq) {
        self.0.ack(lane, first, last);
    }

    fn depth(&self) -> Depth {
        self.0.depth()
    }
}

/// The embedded broker as the local session's publisher.
#[derive(Debug, Clone)]
pub struct BrokerPublisher(pub EmbeddedBroker);

impl LocalPublisher for BrokerPublisher {
    async fn publish(&self, messages: Vec<northbound::Message>) -> Result<(), LocalClosed> {
        let publications = messages.into_iter().map(publication).collect();
        self.0.publish(publications).await.map_err(|_| LocalClosed)
    }

    fn subscribe(&self, filters: Vec<String>) -> Result<mpsc::Receiver<northbound::Inbound>, LocalClosed> {
        let mut from = self.0.subscribe(filters).map_err(|_| LocalClosed)?;
        let (to, receiver) = mpsc::channel(64);
        // Ends with either side: the session drops the receiver, or the broker closes its channel.
        tokio::spawn(async move {
            while let Some(message) = from.recv().await {
                if to.send(inbound(message)).await.is_err() {
                    return;
                }
            }
        });
        Ok(receiver)
    }
}

fn publication(message: northbound::Message) -> broker::Publication {
    broker::Publication {
        topic: message.topic,
        payload: message.payload,
        qos: match message.qos {
            northbound::Qos::AtMostOnce => broker::Qos::AtMostOnce,
            northbound::Qos::AtLeastOnce => broker::Qos::AtLeastOnce,
        },
        retain: match message.retain {
            northbound::Retain::No => broker::Retain::No,
            northbound::Retain::Persisted => broker::Retain::Persisted,
            northbound::Retain::Snapshot => broker::Retain::Snapshot,
        },
    }
}

fn inbound(message: broker::Inbound) -> northbound::Inbound {
    let client = &message.client;
    let sender = northbound::Sender {
        name: client.name().unwrap_or("anonymous").to_owned(),
        address: client.address.map_or_else(String::new, |address| address.ip().to_string()),
    };
    northbound::Inbound {
        topic: message.topic,
        payload: message.payload,
        retain: message.retain,
        sender,
        response_topic: message.response_topic,
        correlation: message.correlation,
    }
}

/// Retained messages of the embedded broker, kept in the state store.
#[derive(Debug, Clone)]
pub struct RetainedInState(pub Store);

impl RetainedStore for RetainedInState {
    async fn load(&self) -> Result<Vec<(String, Bytes)>, RetainedStoreError> {
        let all =
            self.0.state().scan(RETAINED, b"").map_err(|e| RetainedStoreError { act: "read", source: Box::new(e) })?;
        Ok(all.into_iter().map(|(topic, value)| (String::from_utf8_lossy(&topic).into_owned(), value)).collect())
    }

    async fn write(&self, changes: Vec<RetainedChange>) -> Result<(), RetainedStoreError> {
        let state = self.0.state();
        for RetainedChange { topic, value } in changes {
            let written = match value {
                Some(value) => state.put_lazy(RETAINED, topic.as_bytes(), value).await,
                None => state.delete_lazy(RETAINED, topic.as_bytes()).await,
            };
            written.map_err(|e| RetainedStoreError { act: "written", source: Box::new(e) })?;
        }
        Ok(())
    }
}
