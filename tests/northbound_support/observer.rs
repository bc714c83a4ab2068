//! A client that looks at what arrives at a broker.
#![allow(dead_code, reason = "every test binary uses its own part")]

use std::time::Duration;

use rumqttc::{AsyncClient, Event, MqttOptions, Packet, Publish, QoS};
use tokio::sync::mpsc;

/// A client with a persistent session that reports everything under a filter and can publish.
pub struct Observer {
    pub messages: mpsc::Receiver<Publish>,
    pub client: AsyncClient,
    task: tokio::task::JoinHandle<()>,
}

impl Observer {
    /// Subscribes with QoS 1 and returns when the broker has confirmed it.
    pub async fn start(port: u16, filter: &str) -> Self {
        Self::with_credentials(port, filter, None).await
    }

    pub async fn with_credentials(port: u16, filter: &str, login: Option<(&str, &str)>) -> Self {
        let mut options = MqttOptions::new("observer", "127.0.0.1", port);
        options.set_clean_session(false).set_keep_alive(Duration::from_secs(5)).set_max_packet_size(1 << 22, 1 << 22);
        if let Some((user, password)) = login {
            options.set_credentials(user, password);
        }
        let (client, mut events) = AsyncClient::new(options, 100);
        client.subscribe(filter, QoS::AtLeastOnce).await.unwrap();
        let (out, messages) = mpsc::channel(100_000);
        let (subscribed, ready) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(async move {
            let mut subscribed = Some(subscribed);
            loop {
                match events.poll().await {
                    Ok(Event::Incoming(Packet::Publish(publish))) => {
                        if out.send(publish).await.is_err() {
                            return;
                        }
                    }
                    Ok(Event::Incoming(Packet::SubAck(_))) => {
                        if let Some(subscribed) = subscribed.take() {
                            let _ = subscribed.send(());
                        }
                    }
                    Ok(_) => {}
                    // The broker is being restarted.
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        });
        tokio::time::timeout(Duration::from_secs(10), ready).await.expect("subscribed in time").unwrap();
        Self { messages, client, task }
    }

    /// The next message on a topic that ends like this.
    pub async fn next_on(&mut self, end: &str) -> Publish {
        loop {
            let message = tokio::time::timeout(Duration::from_secs(30), self.messages.recv())
                .await
                .unwrap_or_else(|_| panic!("no message on {end} in time"))
                .expect("the observer runs");
            if message.topic.ends_with(end) {
                return message;
            }
        }
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.task.abort();
    }
}
