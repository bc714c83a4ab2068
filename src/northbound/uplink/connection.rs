//! One connection, from CONNECT to its end.
//!
//! [mqtt.md] Publications are handed to the client only while the window has room, their owners on a queue in the same
//! order; `Sent(pkid)` moves the front of the queue to its packet id, `Confirmed(pkid)` takes it out. A record is
//! confirmed to the store when all its messages are. Silence of 1.5 keep-alives ends the connection: rumqttc pings once
//! per keep-alive whatever else is sent, so a living broker is heard more often than that.

mod incoming;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::Uplink;
use super::failure::Failure;
use super::link::{self, Client, Event, Events, LinkOptions, ToAck};
use super::suspect::Mark;
use crate::contract::v1::status::State;
use crate::northbound::config::ServerUrl;
use crate::northbound::core::{Outgoing, Owner};
use crate::northbound::feed::{self, Command, Fed};
use crate::northbound::health::Severity;
use crate::northbound::message::Message;
use crate::northbound::schedule::Permission;

/// How long the end of a connection may take: the last confirmations, the last status, DISCONNECT.
const LAST_WORD: Duration = Duration::from_secs(1);
/// A link that was opened for the critical lane only is closed when nothing was in flight for this long.
const CRITICAL_IDLE: Duration = Duration::from_secs(5);

/// Confirmations are told to the store at most this often, so that they do not interrupt its reads.
const ACKS_EVERY: Duration = Duration::from_millis(10);
/// A connection that the broker closes longer than this after a message was sent does not accuse that message.
const SUSPICION: Duration = Duration::from_secs(10);
/// A connection that lasts this long is a good one whatever was suspected.
const UNSUSPICIOUS: Duration = Duration::from_secs(60);

/// How a connection ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// We were told to stop.
    Stopped,
    /// The store closed.
    SourceClosed,
    /// Its window or budget ended.
    LinkClosed(&'static str),
    /// It broke or was never made; `served`: it had been accepted.
    Failed { failure: Failure, served: bool },
}

/// A publication under way.
#[derive(Debug)]
struct InFlight {
    /// Grows with every message of a connection.
    number: u64,
    owner: Owner,
    topic: Arc<str>,
    sent: Instant,
}

impl InFlight {
    fn mark(&self) -> Mark {
        match self.owner {
            Owner::Record { lane, seq, .. } => Mark::Record(lane, seq),
            Owner::Kept(_) | Owner::Extra => Mark::Topic(self.topic.clone()),
        }
    }
}

pub(super) struct Connection<'a> {
    up: &'a mut Uplink,
    url: ServerUrl,
    client: Client,
    window: usize,
    /// Most messages in flight that the broker allows.
    most: usize,
    max_packet: usize,
    /// Handed to the client, not yet on the wire.
    queued: VecDeque<InFlight>,
    /// On the wire, by packet id.
    unconfirmed: Vec<Option<InFlight>>,
    in_flight: usize,
    granted: usize,
    number: u64,
    /// The broker has confirmed something in this connection.
    proved: bool,
    began: Instant,
    /// The connection is dead when nothing was heard for this long.
    silence: Duration,
    acked: Instant,
    heard: Instant,
    busy: Instant,
    receipts: FuturesUnordered<BoxFuture<'static, Option<ToAck>>>,
    ready: VecDeque<Event>,
}

impl<'a> Connection<'a> {
    pub(super) fn open(up: &'a mut Uplink, url: &ServerUrl, tls: Option<Arc<rustls::ClientConfig>>) -> (Self, Events) {
        let window = up.core.config.window;
        let default_id = || format!("fieldgate-{}-{}", up.context.gateway.id, up.core.config.name);
        let options = LinkOptions {
            config: &up.config,
            server: url,
            tls,
            client_id: up.config.client_id.clone().unwrap_or_else(default_id),
            will: up.core.status(State::Offline, up.context.clock.wall_ms()),
            window,
        };
        let (client, events) = link::open(options);
        let connection = Self {
            url: url.clone(),
            client,
            window: up.suspect.window(usize::from(window)),
            most: usize::MAX,
            max_packet: up.config.max_packet,
            queued: VecDeque::new(),
            unconfirmed: Vec::new(),
            in_flight: 0,
            granted: 0,
            number: 0,
            proved: false,
            began: Instant::now(),
            silence: up.config.keep_alive.mul_f64(1.5),
            acked: Instant::now(),
            heard: Instant::now(),
            busy: Instant::now(),
            receipts: FuturesUnordered::new(),
            ready: VecDeque::new(),
            up,
        };
        (connection, events)
    }

    pub(super) async fn run(mut self, mut events: Events, stop: &CancellationToken) -> Ended {
        match self.connect(&mut events, stop).await {
            Ok(true) => {}
            Ok(false) => return Ended::Stopped,
            Err(failure) => return Ended::Failed { failure, served: false },
        }
        match self.serve(&mut events, stop).await {
            Ok(ended) => {
                self.say_goodbye(&mut events).await;
                ended
            }
            Err(failure) => {
                // What was confirmed before the connection broke need not be sent again.
                let _ = events.drain(&mut self.ready);
                while let Some(event) = self.ready.pop_front() {
                    let _ = self.settle(event);
                }
                if failure.closed {
                    self.accuse();
                }
                Ended::Failed { failure, served: true }
            }
        }
    }

    /// Makes the connection. False: told to stop.
    async fn connect(&mut self, events: &mut Events, stop: &CancellationToken) -> Result<bool, Failure> {
        let event = tokio::select! {
            () = stop.cancelled() => return Ok(false),
            event = timeout(self.up.config.connect_timeout, events.poll()) => match event {
                Ok(event) => event?,
                Err(_) => return Err(Failure::passing("no connection in time: the server's address or the broker behind it does not answer")),
            },
        };
        let Event::Connected(accepted) = event else {
            return Err(Failure::passing("the broker did not begin with CONNACK"));
        };
        if let Some(theirs) = accepted.window {
            self.most = usize::from(theirs);
            self.window = self.window.min(self.most);
        }
        if let Some(theirs) = accepted.max_packet {
            self.max_packet = self.max_packet.min(theirs);
        }
        // rumqttc pings at the broker's pace then, and only that often is it heard.
        self.silence = self.up.config.keep_alive.max(accepted.keep_alive.unwrap_or_default()).mul_f64(1.5);
        self.begin(accepted.session_present).await;
        Ok(true)
    }

    async fn begin(&mut self, session_present: bool) {
        self.heard = Instant::now();
        self.busy = Instant::now();
        let now_ms = self.up.now_ms();
        self.up.core.begin_session(now_ms);
        // The subscription goes first: rumqttc draws its packet id from the ring of the publications.
        if self.up.core.config.requests && !(session_present && self.up.subscribed) {
            self.client.subscribe(self.up.gate.filters());
        }
        let online = self.up.core.status(State::Online, self.up.context.clock.wall_ms());
        self.send(Outgoing { message: online, owner: Owner::Extra });
        self.up.core.take_board();
        // The broker may be another one, or one that forgot; and what was on its way may be lost.
        self.up.core.refill_points();
        let begin = Command::Begin { session: self.up.core.session, order: self.up.core.config.replay.order };
        // Sending fails only when the store closed, which the next read tells.
        let _ = self.up.feed.commands.send(begin).await;
        self.up.core.meter.connected(self.url.to_string());
        self.up.core.meter.replay_begins();
        self.up.core.notices.report(Severity::Info, "uplink-connected", "", format!("connected to {}", self.url));
    }

    async fn serve(&mut self, events: &mut Events, stop: &CancellationToken) -> Result<Ended, Failure> {
        let mut board = self.up.board_watch();
        let mut look = Instant::now();
        loop {
            self.look_after();
            let event = {
                let poll = events.poll();
                tokio::pin!(poll);
                loop {
                    self.pump();
                    let wake = self.next_look(look);
                    tokio::select! {
                        event = &mut poll => break event?,
                        () = stop.cancelled() => return Ok(Ended::Stopped),
                        fed = self.up.feed.fed.recv(), if self.up.core.has_room() => match fed {
                            Some((session, fed)) => self.accept(session, fed),
                            None => return Ok(Ended::SourceClosed),
                        },
                        _ = board.changed() => self.up.core.take_board(),
                        Some(stored) = self.receipts.next(), if !self.receipts.is_empty() => {
                            if let Some(message) = stored {
                                self.client.acknowledge(&message);
                            }
                        }
                        () = sleep_until(wake) => {
                            look = feed::next_look(self.up.core.drained);
                            if let Some(ended) = self.look_around()? {
                                return Ok(ended);
                            }
                            self.look_after();
                        }
                    }
                }
            };
            self.ready.push_back(event);
            events.drain(&mut self.ready)?;
            while let Some(event) = self.ready.pop_front() {
                self.settle(event)?;
            }
        }
    }

    fn next_look(&self, look: Instant) -> Instant {
        if self.up.core.has_acks() { look.min(self.acked + ACKS_EVERY) } else { look }
    }

    fn accept(&mut self, session: u64, fed: Fed) {
        if session != self.up.core.session {
            return;
        }
        if let Fed::Backlog(batch) = &fed {
            self.granted = self.granted.saturating_sub(batch.len());
        }
        self.up.core.accept(fed);
    }

    /// Hands messages to the client while the window has room.
    fn pump(&mut self) {
        while self.in_flight < self.window {
            let Some(outgoing) = self.up.core.pop() else { return };
            self.send(outgoing);
        }
    }

    fn send(&mut self, Outgoing { message, owner }: Outgoing) {
        let size = message.wire_size();
        if size > self.max_packet {
            let detail = format!("the message has {size} bytes, {} takes at most {}", self.url, self.max_packet);
            let now_ms = self.up.now_ms();
            self.up.core.undeliverable(owner, &message.topic, "message-too-large", &detail, now_ms);
            return;
        }
        if owner == Owner::Extra && self.up.core.is_shunned(&message.topic) {
            return;
        }
        self.number += 1;
        let item = InFlight { number: self.number, owner, topic: message.topic.clone(), sent: Instant::now() };
        if self.client.publish(message) {
            self.up.schedule.sent(size);
            self.queued.push_back(item);
            self.in_flight += 1;
        } else {
            // The client's queue is longer than the window; if it is full all the same, the record stays unconfirmed.
            tracing::error!(consumer = %self.up.core.config.name, topic = %item.topic, "the MQTT client did not take a message");
        }
    }

    /// Draws the consequences of one event.
    fn settle(&mut self, event: Event) -> Result<(), Failure> {
        if !matches!(event, Event::Sent(_) | Event::Other) {
            self.heard = Instant::now();
        }
        match event {
            Event::Sent(pkid) => self.sent(pkid),
            Event::Confirmed(pkid) => {
                if let Some(item) = self.take(pkid) {
                    self.confirmed(&item);
                }
            }
            Event::Refused { pkid, reason, passing } => return self.refused(pkid, &reason, passing),
            Event::Request(inbound, message) => self.request(inbound, message),
            Event::Subscribed(answers) => self.subscribed(&answers),
            Event::Connected(_) => return Err(Failure::passing("the client connected again by itself")),
            Event::Heard | Event::Other => {}
        }
        Ok(())
    }

    fn sent(&mut self, pkid: u16) {
        let Some(item) = self.queued.pop_front() else { return };
        if pkid == 0 {
            self.in_flight -= 1;
            self.confirmed(&item);
            return;
        }
        let slot = usize::from(pkid);
        if self.unconfirmed.len() <= slot {
            self.unconfirmed.resize_with(slot + 1, || None);
        }
        self.unconfirmed[slot] = Some(item);
    }

    fn take(&mut self, pkid: u16) -> Option<InFlight> {
        let item = self.unconfirmed.get_mut(usize::from(pkid))?.take()?;
        self.in_flight -= 1;
        Some(item)
    }

    fn confirmed(&mut self, item: &InFlight) {
        self.proved = true;
        if self.up.suspect.confirmed(&item.mark()) {
            self.widen();
        }
        let latency_ms = item.sent.elapsed().as_secs_f64() * 1000.0;
        let now_ms = self.up.now_ms();
        self.up.core.confirmed(item.owner, latency_ms, now_ms);
    }

    /// Nothing is suspected any more.
    fn widen(&mut self) {
        self.window = self.window.max(usize::from(self.up.core.config.window).min(self.most));
    }

    /// The broker closed the connection: was it a message that it had not confirmed?
    fn accuse(&mut self) {
        // Those handed to the client too: it may not have told of sending what ended the connection.
        let mut on_wire: Vec<_> = self.unconfirmed.iter().flatten().chain(&self.queued).collect();
        on_wire.sort_unstable_by_key(|item| item.number);
        let Some(first) = on_wire.first().filter(|item| item.sent.elapsed() < SUSPICION) else { return };
        if self.up.suspect.closed(on_wire.iter().map(|item| item.mark()).collect(), self.proved) {
            let now_ms = self.up.started.elapsed().as_millis() as u64;
            let detail = "the broker closes the connection whenever it gets this message";
            self.up.core.give_up(first.owner, &first.topic, "broker-disconnects", detail, now_ms);
        }
    }

    /// [MQTT5 3.4.2.1] A final refusal costs this message; a passing one ends the connection, and the message comes again
    /// after a pause.
    fn refused(&mut self, pkid: u16, reason: &str, passing: bool) -> Result<(), Failure> {
        let Some(item) = self.take(pkid) else { return Ok(()) };
        if passing {
            return Err(Failure::refused(format!("the broker does not take {} now: {reason}", item.topic)));
        }
        let now_ms = self.up.now_ms();
        let detail = format!("the broker refuses it: {reason}");
        self.up.core.undeliverable(item.owner, &item.topic, "refused-by-broker", &detail, now_ms);
        Ok(())
    }

    /// Confirms to the store and grants backlog; whatever the full channel does not take now waits for the next turn.
    fn look_after(&mut self) {
        if self.up.core.has_acks() && self.acked.elapsed() >= ACKS_EVERY {
            self.acked = Instant::now();
            self.up.send_acks();
        }
        let now_ms = self.up.now_ms();
        let more = self.up.core.grant(self.granted, now_ms);
        if more > 0 && self.up.feed.commands.try_send(Command::Grant(more)).is_ok() {
            self.granted += more;
        }
    }

    /// Silence, windows and figures.
    fn look_around(&mut self) -> Result<Option<Ended>, Failure> {
        let silence = self.heard.elapsed();
        if silence >= self.silence {
            return Err(Failure::passing(format!("the broker has been silent for {:.0} s", silence.as_secs_f64())));
        }
        if self.began.elapsed() >= UNSUSPICIOUS {
            self.up.suspect.clear();
            self.widen();
        }
        self.up.send_acks();
        let depth = *self.up.feed.depth.borrow();
        self.up.core.meter.health.usage = self.up.schedule.usage();
        let confirmed = self.up.core.confirmed_records();
        self.up.core.meter.refresh(confirmed, depth);
        Ok(self.link_closes())
    }

    fn link_closes(&mut self) -> Option<Ended> {
        let permission = self.up.schedule.permission(self.up.context.clock.now());
        if !(self.up.core.is_idle() && self.in_flight == 0) {
            self.busy = Instant::now();
        }
        match (permission, self.up.core.critical_only) {
            (Permission::Open, false) => None,
            (Permission::Open, true) => Some(Ended::LinkClosed("the link opens for everything")),
            (Permission::Closed(reason), false) => Some(Ended::LinkClosed(reason)),
            (Permission::Closed(reason), true) => {
                (self.busy.elapsed() >= CRITICAL_IDLE).then_some(Ended::LinkClosed(reason))
            }
        }
    }

    /// The last status and DISCONNECT, so that the broker does not publish the will; and the confirmations that come
    /// meanwhile. All within [`LAST_WORD`], since unconfirmed records are safe in the store.
    async fn say_goodbye(&mut self, events: &mut Events) {
        let offline: Message = self.up.core.status(State::Offline, self.up.context.clock.wall_ms());
        self.send(Outgoing { message: offline, owner: Owner::Extra });
        let end = Instant::now() + LAST_WORD;
        let mut asked = false;
        loop {
            if self.in_flight == 0 && !asked {
                asked = self.client.disconnect();
            }
            let event = tokio::select! {
                event = events.poll() => event,
                () = sleep_until(end) => return,
            };
            let Ok(event) = event else { return };
            if self.settle(event).is_err() {
                return;
            }
        }
    }
}
