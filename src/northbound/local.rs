//! The session with the embedded broker.
//!
//! A message is confirmed when the broker took it for every subscriber that is there; nothing is in flight between two
//! publications, so after a crash only what the store had not yet written of the confirmations comes twice.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::core::{Core, Outgoing};
use super::feed::{self, Command, Feed};
use super::health::Severity;
use super::message::{Inbound, Message};
use super::requests::{Gate, Outcome, answer_of};
use super::source::RecordSource;
use super::{Consumer, Context};
use crate::contract::v1::status::State;

/// Messages given to the broker at once.
const CHUNK: usize = 512;
/// How long the broker may take for the last message at the end.
const LAST_WORD: Duration = Duration::from_secs(1);

/// The local broker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the local broker is closed")]
pub struct LocalClosed;

/// The embedded broker as a session sees it; in the shape of `broker::LocalBroker`.
pub trait LocalPublisher: Send + 'static {
    /// Publishes in order; waits while the broker is busy. `Ok`: accepted for all matching subscribers.
    fn publish(&self, messages: Vec<Message>) -> impl Future<Output = Result<(), LocalClosed>> + Send;

    /// Messages of clients (never our own) that match one of the filters.
    ///
    /// # Errors
    /// The broker is closed.
    fn subscribe(&self, filters: Vec<String>) -> Result<mpsc::Receiver<Inbound>, LocalClosed>;
}

impl<S: RecordSource> Consumer<S> {
    /// Runs the session with the embedded broker until it is told to stop, or the store or the broker closes. Gives the
    /// source back.
    pub async fn run_local<P: LocalPublisher>(self, publisher: P, stop: CancellationToken) -> S {
        let Consumer { core, context, mut source } = self;
        let (feed, feeder) = feed::channels();
        let gate = Gate::new(&core.config.name, &core.config.root, context.requests.clone());
        let session = Local { core, context, feed, gate, publisher, granted: 0, started: Instant::now() };
        let (fed, ()) = tokio::join!(feeder.run(&mut source), session.run(stop));
        if let Err(closed) = fed {
            tracing::info!("local session ended: {closed}");
        }
        source
    }
}

struct Local<P> {
    core: Core,
    context: Context,
    feed: Feed,
    gate: Gate,
    publisher: P,
    granted: usize,
    started: Instant,
}

impl<P: LocalPublisher> Local<P> {
    async fn run(mut self, stop: CancellationToken) {
        match self.serve(&stop).await {
            Ok(()) => {
                let rest = flush(&mut self.core, &self.publisher, self.started);
                let _ = timeout(LAST_WORD, rest).await;
                let offline = self.core.status(State::Offline, self.context.clock.wall_ms());
                if timeout(LAST_WORD, self.publisher.publish(vec![offline])).await.is_err() {
                    tracing::warn!("the local broker did not take the last status in time");
                }
            }
            Err(LocalClosed) => {
                self.core.meter.disconnected(LocalClosed.to_string());
                let text = "the embedded broker ended; local subscribers get nothing until it is started again";
                self.core.notices.report(Severity::Alarm, "local-broker-closed", "", text.to_owned());
            }
        }
        self.send_acks();
    }

    async fn serve(&mut self, stop: &CancellationToken) -> Result<(), LocalClosed> {
        let mut requests = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            requests = self.begin() => requests?,
        };
        let mut board = self.context.board.watch();
        let mut look = Instant::now();
        loop {
            self.look_after();
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                Some(inbound) = requests.recv() => self.request(inbound),
                _ = board.changed() => self.core.take_board(),
                fed = self.feed.fed.recv() => match fed {
                    Some((session, fed)) if session == self.core.session => self.accept(fed),
                    Some(_) => {}
                    None => return Ok(()),
                },
                () = sleep_until(look) => {
                    look = feed::next_look(self.core.drained);
                    let depth = *self.feed.depth.borrow();
                    self.core.meter.refresh(self.core.confirmed_records(), depth);
                }
            }
            tokio::select! {
                biased;
                done = flush(&mut self.core, &self.publisher, self.started) => done?,
                () = stop.cancelled() => return Ok(()),
            }
        }
    }

    async fn begin(&mut self) -> Result<mpsc::Receiver<Inbound>, LocalClosed> {
        let requests =
            if self.core.config.requests { self.publisher.subscribe(self.gate.filters())? } else { mpsc::channel(1).1 };
        self.core.begin_session(self.now_ms());
        let order = self.core.config.replay.order;
        let _ = self.feed.commands.send(Command::Begin { session: self.core.session, order }).await;
        let online = self.core.status(State::Online, self.context.clock.wall_ms());
        self.publisher.publish(vec![online]).await?;
        self.core.take_board();
        self.core.meter.connected("embedded broker".to_owned());
        self.core.meter.replay_begins();
        Ok(requests)
    }

    fn accept(&mut self, fed: feed::Fed) {
        if let feed::Fed::Backlog(batch) = &fed {
            self.granted = self.granted.saturating_sub(batch.len());
        }
        self.core.accept(fed);
    }

    fn request(&mut self, inbound: Inbound) {
        match self.gate.receive(inbound) {
            Outcome::Handed { answer, .. } => self.core.await_answer(answer),
            Outcome::Refused { refused, answer, code, message } => {
                let device = answer.device.clone();
                self.core.refuse_request(&refused, answer);
                let text = format!("a request for {} was refused ({code}): {message}", answer_of(&device));
                self.core.notices.report(Severity::Warning, "request-refused", &device, text);
            }
            Outcome::Ignored => {}
        }
    }

    /// Confirms to the store and grants backlog; whatever the full channel does not take now waits for the next turn.
    fn look_after(&mut self) {
        self.send_acks();
        let more = self.core.grant(self.granted, self.now_ms());
        if more > 0 && self.feed.commands.try_send(Command::Grant(more)).is_ok() {
            self.granted += more;
        }
    }

    fn send_acks(&mut self) {
        if let Ok(permit) = self.feed.commands.try_reserve() {
            let acks = self.core.take_acks(self.now_ms());
            if !acks.is_empty() {
                permit.send(Command::Acks(acks));
            }
        }
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}

/// Publishes the whole outbox. Messages of a chunk that was cancelled half-way are not confirmed and come again.
async fn flush<P: LocalPublisher>(core: &mut Core, publisher: &P, started: Instant) -> Result<(), LocalClosed> {
    let mut owners = Vec::new();
    loop {
        let mut chunk = Vec::new();
        owners.clear();
        while chunk.len() < CHUNK {
            let Some(Outgoing { message, owner }) = core.pop() else { break };
            chunk.push(message);
            owners.push(owner);
        }
        if chunk.is_empty() {
            return Ok(());
        }
        let sent = Instant::now();
        publisher.publish(chunk).await?;
        let latency_ms = sent.elapsed().as_secs_f64() * 1000.0;
        let now_ms = started.elapsed().as_millis() as u64;
        for owner in owners.drain(..) {
            core.confirmed(owner, latency_ms, now_ms);
        }
    }
}
