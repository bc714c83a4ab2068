//! Starts, runs and stops the broker.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::acl::ClientAcl;
use super::auth::Authenticator;
use super::hub::{Effects, Hub, decode_retained, encode_retained, millis};
use super::listener::{Census, accept_loop};
use super::local::{BrokerClosed, LocalBroker, SubscribeError};
use super::{
    Acl, BrokerStats, Config, Identity, Inbound, Limits, Publication, RetainedChange, RetainedStore,
    RetainedStoreError, User, probe, topic,
};
use crate::platform::beat;
use crate::platform::clock::SharedClock;
use crate::security::PasswordHash;

/// How often time is told to the hub and retained messages are written.
const TICK: Duration = Duration::from_millis(500);
/// Messages published under one hold of the hub.
const CHUNK: usize = 128;
/// Messages of clients that wait for one local receiver.
const LOCAL_ROOM: usize = 256;
/// Longest wait for clients to take their last messages.
const STOP: Duration = Duration::from_secs(2);
/// How long a held-back publication sleeps before it looks again, should no client ring.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Why the broker does not start or does not go on.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// An address cannot be listened on.
    #[error("the broker cannot listen on {address}: {source}; is another broker running there?")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Retained messages cannot be read.
    #[error(transparent)]
    Retained(#[from] RetainedStoreError),
    /// A part of the broker ended while it should run.
    #[error("the embedded broker failed: {0}")]
    Failed(String),
}

/// Who gets in and what he may do; replaced as a whole.
#[derive(Debug)]
pub(super) struct Gate {
    pub auth: Authenticator,
    pub acl: Acl,
}

/// What all tasks of the broker share.
#[derive(Debug)]
pub(super) struct Shared {
    pub limits: Limits,
    pub clock: SharedClock,
    pub stop: CancellationToken,
    pub tasks: TaskTracker,
    pub census: Arc<Census>,
    /// Rung when no subscriber's queue is long any more.
    pub room: Notify,
    hub: Mutex<Hub>,
    gate: RwLock<Arc<Gate>>,
    failure: watch::Sender<Option<String>>,
    broken: AtomicBool,
}

impl Shared {
    /// Monotonic milliseconds.
    pub fn now(&self) -> u64 {
        self.clock.mono_ns() / 1_000_000
    }

    /// The hub, for some microseconds: never across an await. A panic inside it is a failure of the broker.
    pub fn hub(&self) -> MutexGuard<'_, Hub> {
        self.hub.lock().unwrap_or_else(|poisoned: PoisonError<_>| {
            if !self.broken.swap(true, Ordering::Relaxed) {
                self.fail("a panic in the hub");
            }
            poisoned.into_inner()
        })
    }

    pub fn gate(&self) -> Arc<Gate> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks at every client again; see [`Hub::revise`].
    pub fn revise(&self, judge: impl Fn(&Identity) -> Option<ClientAcl>) {
        let mut fx = Effects::default();
        let now = self.now();
        self.hub().revise(judge, now, &mut fx);
        self.settle(fx);
    }

    /// Wakes connections, and hands messages to local receivers where no one can wait: in order of a task per message that
    /// finds the channel full (wills only, so at most one per connection).
    pub fn settle(&self, mut fx: Effects) {
        fx.ring();
        for (receiver, message) in fx.local {
            if let Err(mpsc::error::TrySendError::Full(message)) = receiver.try_send(message) {
                self.tasks.spawn(async move {
                    let _ = receiver.send(message).await;
                });
            }
        }
    }

    /// The broker cannot go on.
    pub fn fail(&self, why: &str) {
        tracing::error!("the embedded broker failed: {why}");
        self.failure.send_replace(Some(why.to_owned()));
        self.stop.cancel();
    }
}

/// The embedded broker. Clones are handles of the same one; it stops when [`LocalBroker::shutdown`] is called or the last
/// handle is dropped.
#[derive(Debug, Clone)]
pub struct EmbeddedBroker {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    addresses: Vec<SocketAddr>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

impl EmbeddedBroker {
    /// Reads the retained messages and listens. When this returns, clients can connect.
    pub async fn start(config: Config, retained: impl RetainedStore, clock: SharedClock) -> Result<Self, BrokerError> {
        let mut hub = Hub::new(config.limits.clone());
        restore(&mut hub, &retained, &clock).await?;
        let mut sockets = Vec::new();
        for listener in &config.listeners {
            let address = listener.address;
            let failed = |source| BrokerError::Listen { address, source };
            let socket = TcpListener::bind(address).await.map_err(failed)?;
            sockets.push((socket.local_addr().map_err(failed)?, socket, listener.clone()));
        }
        let shared = Arc::new(Shared {
            limits: config.limits,
            clock,
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            census: Arc::default(),
            room: Notify::new(),
            hub: Mutex::new(hub),
            gate: RwLock::new(Arc::new(Gate { auth: Authenticator::new(config.users), acl: config.acl })),
            failure: watch::Sender::new(None),
            broken: AtomicBool::new(false),
        });
        let addresses = sockets.iter().map(|(address, ..)| *address).collect();
        for (address, socket, listener) in sockets {
            let tls = listener.tls.is_some();
            tracing::info!(%address, tls, anonymous = listener.anonymous, "the embedded broker listens");
            if !tls && !address.ip().is_loopback() {
                tracing::warn!(%address, "passwords cross the network in clear on this listener; prefer TLS");
            }
            watched(&shared, "a listener ended", accept_loop(shared.clone(), socket, listener));
        }
        watched(&shared, "the probe ended", probe::run(shared.clone(), config.probe_interval));
        let writer = tokio::spawn(keep_time(shared.clone(), retained, config.snapshot_interval));
        Ok(Self { inner: Arc::new(Inner { shared, addresses, writer: Mutex::new(Some(writer)) }) })
    }

    /// The addresses listened on, in the order of the configuration; a port 0 there is the real port here.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.inner.addresses
    }

    /// Pends while the broker works; its failure ends the process or at least restarts the broker.
    pub async fn failed(&self) -> BrokerError {
        let mut failure = self.inner.shared.failure.subscribe();
        // The guard is given back before anything else is awaited.
        let why = failure.wait_for(Option::is_some).await.map(|why| why.clone().unwrap_or_default());
        match why {
            Ok(why) => BrokerError::Failed(why),
            Err(_) => std::future::pending().await,
        }
    }

    /// New users and rules, for everyone at once: who is connected as a user that is gone or has another password is
    /// disconnected (reason code 0x87), and subscriptions that the rules no longer allow end.
    pub fn set_access(&self, users: Vec<User>, acl: Acl) {
        let shared = &self.inner.shared;
        let users = users.into_iter().map(|user| (user.name, user.hash)).collect();
        let gate = Arc::new(Gate { auth: Authenticator::new(users), acl });
        // The gate first: whoever attaches looks at it while holding the hub, so nobody slips in between.
        let before = std::mem::replace(&mut *shared.gate.write().unwrap_or_else(PoisonError::into_inner), gate.clone());
        let judge = |identity: &Identity| {
            let same =
                |user: &String| gate.auth.hash_of(user).is_some_and(|hash| before.auth.hash_of(user) == Some(hash));
            identity.user.as_ref().is_none_or(same).then(|| gate.acl.client(identity))
        };
        shared.revise(judge);
    }

    /// The hash of a user's password as it is in force, so that an unchanged password need not be hashed anew.
    pub fn password_hash(&self, user: &str) -> Option<PasswordHash> {
        self.inner.shared.gate().auth.hash_of(user).cloned()
    }
}

impl LocalBroker for EmbeddedBroker {
    async fn publish(&self, messages: Vec<Publication>) -> Result<(), BrokerClosed> {
        let shared = &self.inner.shared;
        let mut messages = messages.into_iter().filter(legal).peekable();
        while messages.peek().is_some() {
            wait_for_room(shared).await?;
            let mut fx = Effects::default();
            let now = shared.now();
            shared.hub().publish(messages.by_ref().take(CHUNK), now, &mut fx);
            shared.settle(fx);
            if messages.peek().is_some() {
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }

    fn subscribe(&self, filters: Vec<String>) -> Result<mpsc::Receiver<Inbound>, SubscribeError> {
        let shared = &self.inner.shared;
        if let Some(bad) = filters.iter().find(|f| !topic::valid_filter(f) || f.starts_with(topic::SHARE)) {
            return Err(SubscribeError::Filter(bad.clone()));
        }
        if shared.stop.is_cancelled() {
            return Err(BrokerClosed.into());
        }
        let now = shared.now();
        Ok(shared.hub().subscribe_local(filters, LOCAL_ROOM, now))
    }

    fn stats(&self) -> BrokerStats {
        self.inner.shared.hub().stats()
    }

    async fn shutdown(self) {
        let shared = &self.inner.shared;
        shared.stop.cancel();
        let mut fx = Effects::default();
        shared.hub().close_all(&mut fx);
        shared.settle(fx);
        shared.tasks.close();
        if timeout(STOP, shared.tasks.wait()).await.is_err() {
            tracing::warn!("clients did not take their last messages in time");
        }
        let writer = self.inner.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            let _ = timeout(STOP, writer).await;
        }
    }
}

fn legal(publication: &Publication) -> bool {
    let legal = topic::valid_name(&publication.topic);
    if !legal {
        tracing::error!(topic = %publication.topic, "not published: this is no topic name");
    }
    legal
}

async fn wait_for_room(shared: &Shared) -> Result<(), BrokerClosed> {
    loop {
        if shared.stop.is_cancelled() {
            return Err(BrokerClosed);
        }
        let room = shared.room.notified();
        if !shared.hub().congested(shared.now()) {
            return Ok(());
        }
        let _ = timeout(LOOK_AGAIN, room).await;
    }
}

/// Runs a part of the broker whose end, before the stop, is a failure of the whole.
fn watched(shared: &Arc<Shared>, what: &'static str, part: impl Future<Output = ()> + Send + 'static) {
    let task = tokio::spawn(part);
    let shared = shared.clone();
    tokio::spawn(async move {
        let ended = task.await;
        if !shared.stop.is_cancelled() {
            shared.fail(&ended.err().map_or_else(|| what.to_owned(), |panic| format!("{what}: {panic}")));
        }
    });
}

/// Wall milliseconds minus monotonic milliseconds, now.
fn wall_minus_mono(clock: &SharedClock) -> i64 {
    let now = clock.now();
    now.wall_ms - i64::try_from(now.mono_ns / 1_000_000).unwrap_or(i64::MAX)
}

async fn restore(hub: &mut Hub, store: &impl RetainedStore, clock: &SharedClock) -> Result<(), BrokerError> {
    let difference = wall_minus_mono(clock);
    let now = clock.mono_ns() / 1_000_000;
    for (name, value) in store.load().await? {
        match decode_retained(&name, value, difference) {
            Some(message) if message.expired(now) => {}
            Some(message) => {
                if !hub.retained().restore(message) {
                    tracing::warn!(topic = %name, "retained message not restored: the limit is reached");
                }
            }
            None => tracing::warn!(topic = %name, "retained message not restored: its stored form is not known"),
        }
    }
    Ok(())
}

/// Tells the hub the time and writes retained messages, until the broker stops and once more then.
async fn keep_time(shared: Arc<Shared>, store: impl RetainedStore, snapshot_interval: Duration) {
    let mut tick = beat::every(TICK);
    let mut next_snapshot = shared.now() + millis(snapshot_interval);
    loop {
        tokio::select! {
            () = shared.stop.cancelled() => break,
            _ = tick.tick() => {}
        }
        let now = shared.now();
        let mut fx = Effects::default();
        shared.hub().tick(now, &mut fx);
        shared.settle(fx);
        let snapshot = now >= next_snapshot;
        if snapshot {
            next_snapshot = now + millis(snapshot_interval);
        }
        write_retained(&shared, &store, snapshot).await;
    }
    // However the stop came: by shutdown, by a failure, or because the last handle was dropped.
    let mut fx = Effects::default();
    shared.hub().close_all(&mut fx);
    shared.settle(fx);
    shared.tasks.close();
    let _ = timeout(STOP, shared.tasks.wait()).await;
    write_retained(&shared, &store, true).await;
}

async fn write_retained(shared: &Shared, store: &impl RetainedStore, snapshot: bool) {
    let changes = shared.hub().retained().changes(snapshot);
    if changes.is_empty() {
        return;
    }
    let difference = wall_minus_mono(&shared.clock);
    let changes: Vec<RetainedChange> = changes
        .into_iter()
        .map(|(topic, message)| RetainedChange { value: message.map(|m| encode_retained(&m, difference)), topic })
        .collect();
    let topics: Vec<Arc<str>> = changes.iter().map(|change| change.topic.clone()).collect();
    if let Err(error) = store.write(changes).await {
        tracing::error!(%error, topics = topics.len(), "retained messages are kept in memory and written again later");
        shared.hub().retained().not_written(topics);
    }
}
