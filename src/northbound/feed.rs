//! Pulls records out of a [`RecordSource`] for one session: live first, the backlog beside it as far as it was granted.
//!
//! It runs next to the session in the same task, joined by bounded channels, because a network event must not cancel a
//! read from the disk that is under way. Full channel: the next read waits.

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Interval, sleep_until, timeout};

use super::ledger::Ack;
use super::source::{RecordSource, SourceClosed};
use crate::model::{Delivery, Depth, Order};
use crate::platform::beat;

/// Records taken at once.
const BATCH: usize = 64;
/// How long live data is waited for before the backlog has a turn.
const LIVE_WAIT: Duration = Duration::from_millis(1);
/// How long the backlog is waited for before live data has a turn: a read from a slow disk.
const BACKLOG_WAIT: Duration = Duration::from_millis(50);
/// Live batches in a row before the backlog has a turn all the same.
const LIVE_RUN: u32 = 8;
/// Turns without backlog after which it counts as drained although the store says that something is pending.
const QUIET_TURNS: u32 = 20;
/// How often a backlog that counts as drained is looked at again while the store says that something is pending.
const PROBE_EVERY: Duration = Duration::from_secs(5);
/// How long confirmations wait for a read that is under way: longer than [`BACKLOG_WAIT`], and so long that while values
/// flow at all the next ones bring them along instead of a timer.
const PATIENCE: Duration = Duration::from_millis(150);
/// Confirmed records that do not wait: so few may come twice when the process is killed.
const MANY_ACKS: u64 = 32;
/// Commands that may wait.
const COMMANDS: usize = 64;
/// How often the depth is looked up.
const DEPTH_EVERY: Duration = Duration::from_millis(500);
/// How often at most it is looked up while records flow.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What a session tells its feed.
#[derive(Debug)]
pub(super) enum Command {
    /// A session begins; everything not confirmed comes again, marked with this number.
    Begin { session: u64, order: Order },
    /// The session is over: take nothing until the next one.
    End,
    /// Confirm these.
    Acks(Vec<Ack>),
    /// So many more records of the backlog may be taken.
    Grant(usize),
}

/// What a feed gives its session.
#[derive(Debug, PartialEq)]
pub(super) enum Fed {
    Live(Vec<Delivery>),
    Backlog(Vec<Delivery>),
    /// There is no backlog (any more).
    Drained,
}

/// The session's ends of the channels.
#[derive(Debug)]
pub(super) struct Feed {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) fed: mpsc::Receiver<(u64, Fed)>,
    pub(super) depth: watch::Receiver<Depth>,
}

/// The source's ends of the channels.
#[derive(Debug)]
pub(super) struct Feeder {
    commands: mpsc::Receiver<Command>,
    fed: mpsc::Sender<(u64, Fed)>,
    depth: watch::Sender<Depth>,
    session: Option<u64>,
    granted: usize,
    drained: bool,
    told: bool,
    handed: u64,
    live_run: u32,
    quiet: u32,
    order: Order,
    probed: Instant,
    looked: Instant,
}

/// What was read, the commands that came meanwhile, and whether the session is gone.
type Turn = (Option<Result<Option<Fed>, SourceClosed>>, Vec<Command>, bool);

pub(super) fn channels() -> (Feed, Feeder) {
    let (commands_in, commands) = mpsc::channel(COMMANDS);
    let (fed, fed_out) = mpsc::channel(2);
    let (depth, depth_out) = watch::channel(Depth::default());
    let feeder = Feeder {
        commands,
        fed,
        depth,
        session: None,
        granted: 0,
        drained: false,
        told: false,
        handed: 0,
        live_run: 0,
        quiet: 0,
        order: Order::default(),
        probed: Instant::now(),
        looked: Instant::now(),
    };
    (Feed { commands: commands_in, fed: fed_out, depth: depth_out }, feeder)
}

impl Feeder {
    /// Runs until the session drops its ends (then every command sent has been carried out) or the source closes.
    pub(super) async fn run<S: RecordSource>(mut self, source: &mut S) -> Result<(), SourceClosed> {
        let mut tick = beat::every(DEPTH_EVERY);
        let fed = self.fed.clone();
        loop {
            tokio::select! {
                biased;
                command = self.commands.recv() => match command {
                    Some(command) => self.apply(source, command),
                    None => return Ok(()),
                },
                _ = tick.tick() => self.look(source),
                permit = fed.reserve(), if self.session.is_some() => {
                    let Ok(permit) = permit else { self.session = None; continue };
                    let (pulled, commands, over) = self.turn(source, &mut tick).await;
                    let noted = match pulled {
                        Some(pulled) => self.note(source, pulled?),
                        None => None,
                    };
                    if let (Some(fed), Some(session)) = (noted, self.session) {
                        permit.send((session, fed));
                    }
                    for command in commands {
                        self.apply(source, command);
                    }
                    if over {
                        return Ok(());
                    }
                    if self.looked.elapsed() >= LOOK_EVERY {
                        self.look(source);
                    }
                }
            }
        }
    }

    /// One read of the source, during which commands are collected; it is cut short by a command that cannot wait, or
    /// when one has waited long enough. Gives what was read, the commands, and whether the session is gone.
    async fn turn<S: RecordSource>(&mut self, source: &mut S, tick: &mut Interval) -> Turn {
        let mut commands = Vec::new();
        let pull = Self::pull(source, self.granted, self.drained, self.live_run);
        tokio::pin!(pull);
        let mut patience = Instant::now();
        let mut confirmed = 0;
        loop {
            tokio::select! {
                biased;
                pulled = &mut pull => return (Some(pulled), commands, false),
                command = self.commands.recv() => match command {
                    None => return (None, commands, true),
                    Some(command) => {
                        let urgent = match &command {
                            Command::Begin { .. } | Command::End => true,
                            Command::Grant(_) => self.granted == 0,
                            Command::Acks(acks) => {
                                confirmed += acks.iter().map(|ack| ack.last - ack.first + 1).sum::<u64>();
                                confirmed >= MANY_ACKS
                            }
                        };
                        if commands.is_empty() {
                            patience = Instant::now() + PATIENCE;
                        }
                        commands.push(command);
                        if urgent || commands.len() >= COMMANDS {
                            return (None, commands, false);
                        }
                    }
                },
                () = sleep_until(patience), if !commands.is_empty() => return (None, commands, false),
                _ = tick.tick() => return (None, commands, false),
            }
        }
    }

    /// Publishes the depth, and doubts a drained backlog if records are pending that nobody handed out.
    fn look<S: RecordSource>(&mut self, source: &S) {
        self.looked = Instant::now();
        let depth = source.depth();
        self.depth.send_replace(depth);
        let doubtful = self.drained && self.order == Order::LiveFirst && depth.records > self.handed;
        if doubtful && self.probed.elapsed() >= PROBE_EVERY {
            self.probed = Instant::now();
            self.drained = false;
            self.quiet = QUIET_TURNS - 1;
            self.granted = self.granted.max(BATCH);
        }
    }

    fn apply<S: RecordSource>(&mut self, source: &mut S, command: Command) {
        match command {
            Command::Begin { session, order } => {
                source.begin_session(order);
                self.session = Some(session);
                (self.granted, self.handed, self.live_run, self.quiet) = (0, 0, 0, 0);
                self.drained = order == Order::InOrder;
                (self.order, self.probed) = (order, Instant::now());
                self.told = false;
                self.depth.send_replace(source.depth());
            }
            Command::End => self.session = None,
            Command::Acks(acks) => {
                for ack in acks {
                    source.ack(ack.lane, ack.first, ack.last);
                    self.handed = self.handed.saturating_sub(ack.last - ack.first + 1);
                }
            }
            Command::Grant(records) => self.granted += records,
        }
    }

    /// One turn at the source. `None`: nothing came in time. Cancel safe, since nothing is awaited after a read.
    async fn pull<S: RecordSource>(
        source: &mut S,
        granted: usize,
        drained: bool,
        live_run: u32,
    ) -> Result<Option<Fed>, SourceClosed> {
        if drained || granted == 0 {
            return source.live(BATCH).await.map(|batch| Some(Fed::Live(batch)));
        }
        if live_run < LIVE_RUN
            && let Ok(batch) = timeout(LIVE_WAIT, source.live(BATCH)).await
        {
            return batch.map(|batch| Some(Fed::Live(batch)));
        }
        match timeout(BACKLOG_WAIT, source.backlog(BATCH.min(granted))).await {
            Ok(batch) => batch.map(|batch| Some(Fed::Backlog(batch))),
            Err(_) => Ok(None),
        }
    }

    fn note<S: RecordSource>(&mut self, source: &S, pulled: Option<Fed>) -> Option<Fed> {
        match &pulled {
            Some(Fed::Live(batch)) => {
                self.live_run += 1;
                self.handed += batch.len() as u64;
            }
            Some(Fed::Backlog(batch)) => {
                (self.live_run, self.quiet) = (0, 0);
                self.handed += batch.len() as u64;
                self.granted = self.granted.saturating_sub(batch.len());
            }
            Some(Fed::Drained) | None => {
                (self.live_run, self.quiet) = (0, self.quiet + 1);
                self.drained = source.depth().records <= self.handed || self.quiet >= QUIET_TURNS;
                if self.drained && !std::mem::replace(&mut self.told, true) {
                    return Some(Fed::Drained);
                }
            }
        }
        pulled
    }
}

/// How long a session may wait before it looks at its grants and figures again.
pub(super) fn next_look(drained: bool) -> Instant {
    if drained { beat::after(DEPTH_EVERY) } else { Instant::now() + Duration::from_millis(10) }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::model::{Lane, Record, RecordKind, Seq};

    /// A store on a slow disk: a backlog read takes 40 ms and is lost when it is cancelled; live data come at times.
    struct Slow {
        next: Seq,
        end: Seq,
        acked: Arc<Mutex<u64>>,
    }

    fn delivery(seq: Seq) -> Delivery {
        let record = Record {
            lane: Lane::Bulk,
            seq,
            ts_ms: 0,
            device: 0,
            kind: RecordKind::Telemetry,
            count: 1,
            payload: Vec::new().into(),
        };
        Delivery::Record { record, historical: true }
    }

    impl RecordSource for Slow {
        fn begin_session(&mut self, _: Order) {
            self.next = 1;
        }

        async fn live(&mut self, _: usize) -> Result<Vec<Delivery>, SourceClosed> {
            std::future::pending().await
        }

        async fn backlog(&mut self, max: usize) -> Result<Vec<Delivery>, SourceClosed> {
            if self.next > self.end {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(Duration::from_millis(40)).await;
            let last = self.end.min(self.next + max as u64 - 1);
            let batch = (self.next..=last).map(delivery).collect();
            self.next = last + 1;
            Ok(batch)
        }

        fn ack(&self, _: Lane, first: Seq, last: Seq) {
            *self.acked.lock().unwrap() += last - first + 1;
        }

        fn depth(&self) -> Depth {
            Depth { records: self.end - *self.acked.lock().unwrap(), ..Depth::default() }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_disk_drains_although_confirmations_stream_in() {
        let acked = Arc::new(Mutex::new(0));
        let mut source = Slow { next: 1, end: 1000, acked: acked.clone() };
        let (mut feed, feeder) = channels();
        let session = async move {
            feed.commands.send(Command::Begin { session: 1, order: Order::LiveFirst }).await.unwrap();
            feed.commands.send(Command::Grant(2000)).await.unwrap();
            let mut got = Vec::new();
            let mut confirmed = 0;
            loop {
                tokio::select! {
                    fed = feed.fed.recv() => match fed.unwrap() {
                        (1, Fed::Backlog(batch)) => got.extend(batch.iter().map(|d| Ack::of(d).first)),
                        (1, Fed::Drained) => break,
                        other => panic!("{other:?}"),
                    },
                    // Every 10 ms one record is confirmed: no read may be cancelled by that.
                    () = tokio::time::sleep(Duration::from_millis(10)), if (confirmed as usize) < got.len() => {
                        confirmed += 1;
                        feed.commands.send(Command::Acks(vec![Ack { lane: Lane::Bulk, first: confirmed, last: confirmed }])).await.unwrap();
                    }
                }
            }
            (got, confirmed)
        };
        let (fed, (got, confirmed)) = tokio::join!(feeder.run(&mut source), session);
        fed.unwrap();
        assert_eq!(got, (1..=1000).collect::<Vec<_>>());
        assert_eq!(*acked.lock().unwrap(), confirmed, "every confirmation sent is carried out");
    }
}
