//! The session with a broker elsewhere: connect, serve until it breaks, back off, take the next server.
//!
//! One client and one event loop of rumqttc serve exactly one connection and are dropped with it: what it left
//! unconfirmed comes from the store again, so rumqttc's own resending never happens. Network failures back off to
//! [`UplinkConfig::reconnect_max`] with jitter; a broker that refuses us (credentials, certificate) to a minute, since
//! only a person can mend that.

mod connection;
mod failure;
mod link;
mod suspect;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use self::connection::{Connection, Ended};
use self::failure::Failure;
use self::suspect::Suspect;
use super::config::{ConsumerKind, ServerUrl, UplinkConfig};
use super::core::Core;
use super::feed::{self, Command, Fed, Feed};
use super::health::Severity;
use super::requests::Gate;
use super::schedule::{Permission, Schedule};
use super::source::RecordSource;
use super::{Consumer, Context};
use crate::model::{Lane, Order};
use crate::platform::beat;

/// First pause after a failure.
const BACKOFF_MIN: Duration = Duration::from_millis(250);
/// Longest pause after the broker refused us.
const REFUSED_MAX: Duration = Duration::from_secs(60);
/// A connection that lasted this long was a good one: the next failure starts with a short pause.
const GOOD_CONNECTION: Duration = Duration::from_secs(10);
/// How often a closed link looks whether it may open.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Gives the TLS configuration of an uplink, afresh for every connection so that new certificates take effect.
pub trait TlsSource: Send + Sync + 'static {
    /// The configuration for this consumer: trusted roots, server verification, client certificate if there is one.
    ///
    /// # Errors
    /// Why there is none, in words.
    fn client_config(&self, consumer: &str) -> Result<Arc<rustls::ClientConfig>, String>;
}

impl<F> TlsSource for F
where
    F: Fn(&str) -> Result<Arc<rustls::ClientConfig>, String> + Send + Sync + 'static,
{
    fn client_config(&self, consumer: &str) -> Result<Arc<rustls::ClientConfig>, String> {
        self(consumer)
    }
}

impl<S: RecordSource> Consumer<S> {
    /// Runs the session with a broker elsewhere until it is told to stop or the store closes. Gives the source back.
    /// A consumer that is configured as local ends at once.
    pub async fn run_uplink(self, tls: Arc<dyn TlsSource>, stop: CancellationToken) -> S {
        let Consumer { core, context, mut source } = self;
        let ConsumerKind::Uplink(config) = core.config.kind.clone() else { return source };
        let (feed, feeder) = feed::channels();
        let gate = Gate::new(&core.config.name, &core.config.root, context.requests.clone());
        let schedule = Schedule::new(core.config.link.clone(), core.meter.health.usage);
        let uplink = Uplink {
            core,
            context,
            config,
            tls,
            feed,
            gate,
            schedule,
            started: Instant::now(),
            subscribed: false,
            suspect: Suspect::default(),
        };
        let (fed, ()) = tokio::join!(feeder.run(&mut source), uplink.run(stop));
        if let Err(closed) = fed {
            tracing::info!("uplink session ended: {closed}");
        }
        source
    }
}

/// What outlives a connection.
struct Uplink {
    core: Core,
    context: Context,
    config: UplinkConfig,
    tls: Arc<dyn TlsSource>,
    feed: Feed,
    gate: Gate,
    schedule: Schedule,
    started: Instant,
    /// Whether this process has subscribed on the broker's persistent session.
    subscribed: bool,
    suspect: Suspect,
}

impl fmt::Debug for Uplink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uplink").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Uplink {
    /// Ends when the store closes or, after its last word, when told to stop.
    async fn run(mut self, stop: CancellationToken) {
        let mut backoff = Backoff::new(self.config.reconnect_max);
        let mut server = 0;
        loop {
            let permitted = tokio::select! {
                () = stop.cancelled() => false,
                permitted = self.wait_for_permission() => permitted,
            };
            if !permitted || self.feed.commands.is_closed() {
                break;
            }
            let url = self.config.servers[server].clone();
            let began = Instant::now();
            let ended = self.one_connection(&url, &stop).await;
            self.pause_feed().await;
            let (failure, served) = match ended {
                Ended::Stopped | Ended::SourceClosed => break,
                Ended::LinkClosed(reason) => {
                    self.core.meter.disconnected(reason.to_owned());
                    continue;
                }
                Ended::Failed { failure, served } => (failure, served),
            };
            self.report(&url, &failure);
            if served && began.elapsed() >= GOOD_CONNECTION {
                backoff.reset();
            }
            server = (server + 1) % self.config.servers.len();
            // All servers are tried in turn before the first pause.
            if server == 0 || served {
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = self.rest(backoff.next(failure.refused)) => {}
                }
            }
        }
        self.core.meter.disconnected("stopped".to_owned());
    }

    /// A pause during which the figures go on.
    async fn rest(&mut self, pause: Duration) {
        let end = Instant::now() + pause;
        while Instant::now() < end {
            self.core.meter.refresh(self.core.confirmed_records(), *self.feed.depth.borrow());
            sleep_until(end.min(beat::after(LOOK_EVERY))).await;
        }
    }

    fn report(&mut self, url: &ServerUrl, failure: &Failure) {
        let message = format!("no connection to {url}: {}", failure.reason);
        self.core.meter.disconnected(message.clone());
        let severity = if failure.refused { Severity::Alarm } else { Severity::Warning };
        self.core.notices.report(severity, "uplink-disconnected", &failure.reason, message);
    }

    async fn one_connection(&mut self, url: &ServerUrl, stop: &CancellationToken) -> Ended {
        let tls = match url.tls.then(|| self.tls.client_config(&self.core.config.name)).transpose() {
            Ok(tls) => tls,
            Err(reason) => {
                return Ended::Failed {
                    failure: Failure::refused(format!("no TLS configuration: {reason}")),
                    served: false,
                };
            }
        };
        let (connection, events) = Connection::open(self, url, tls);
        connection.run(events, stop).await
    }

    /// Nothing is read from the store while there is no connection.
    async fn pause_feed(&mut self) {
        let acks = self.core.take_acks(self.now_ms());
        // Sending fails only when the store closed.
        let _ = self.feed.commands.send(Command::Acks(acks)).await;
        let _ = self.feed.commands.send(Command::End).await;
    }

    /// Waits until the link may be open: always, in its window and budget, or for something critical. False: the store
    /// closed.
    async fn wait_for_permission(&mut self) -> bool {
        let mut looking = false;
        loop {
            let permission = self.schedule.permission(self.context.clock.now());
            self.core.critical_only = permission != Permission::Open;
            let Permission::Closed(reason) = permission else {
                return true;
            };
            self.core.meter.disconnected(reason.to_owned());
            self.core.meter.refresh(self.core.confirmed_records(), *self.feed.depth.borrow());
            if !self.core.config.link.critical_overrides {
                sleep_until(beat::after(LOOK_EVERY)).await;
                continue;
            }
            if !looking {
                looking = self.look_for_critical().await;
            }
            tokio::select! {
                fed = self.feed.fed.recv() => match fed {
                    Some((session, fed)) if session == self.core.session && holds_critical(&fed) => {
                        self.pause_feed().await;
                        return true;
                    }
                    Some(_) => {}
                    None => return false,
                },
                () = sleep_until(beat::after(LOOK_EVERY)) => {}
            }
        }
    }

    /// Starts a session that is only looked at: what it hands out is not confirmed and comes again.
    async fn look_for_critical(&mut self) -> bool {
        self.core.begin_session(self.now_ms());
        let begin = Command::Begin { session: self.core.session, order: Order::LiveFirst };
        let sent = self.feed.commands.send(begin).await.is_ok();
        sent && self.feed.commands.send(Command::Grant(1)).await.is_ok()
    }

    fn send_acks(&mut self) {
        if let Ok(permit) = self.feed.commands.try_reserve() {
            let acks = self.core.take_acks(self.started.elapsed().as_millis() as u64);
            if !acks.is_empty() {
                permit.send(Command::Acks(acks));
            }
        }
    }

    fn board_watch(&self) -> watch::Receiver<u64> {
        self.context.board.watch()
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}

fn holds_critical(fed: &Fed) -> bool {
    match fed {
        Fed::Live(batch) | Fed::Backlog(batch) => {
            batch.iter().any(|d| super::ledger::Ack::of(d).lane == Lane::Critical)
        }
        Fed::Drained => false,
    }
}

/// Pauses between attempts: doubling, with jitter so that a fleet does not come back at once.
#[derive(Debug)]
struct Backoff {
    next: Duration,
    max: Duration,
}

impl Backoff {
    fn new(max: Duration) -> Self {
        Self { next: BACKOFF_MIN, max }
    }

    fn reset(&mut self) {
        self.next = BACKOFF_MIN;
    }

    /// Between half of the present pause and all of it.
    fn next(&mut self, refused: bool) -> Duration {
        let most = if refused { REFUSED_MAX.max(self.max) } else { self.max };
        let pause = self.next.min(most);
        self.next = (pause * 2).min(most);
        pause.mul_f64(rand::rng().random_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_limit_and_vary() {
        let mut backoff = Backoff::new(Duration::from_secs(4));
        let pauses: Vec<_> = (0..8).map(|_| backoff.next(false)).collect();
        for (pause, most) in pauses.iter().zip([250, 500, 1000, 2000, 4000, 4000, 4000, 4000]) {
            let most = Duration::from_millis(most);
            assert!(*pause >= most / 2 && *pause <= most, "{pauses:?}");
        }
        assert!((0..20).map(|_| backoff.next(true)).max().unwrap() > Duration::from_secs(20));
        backoff.reset();
        assert!(backoff.next(false) <= BACKOFF_MIN);
    }
}
