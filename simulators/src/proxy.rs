//! **A TCP proxy that spoils links on command**: between any client and server, in tests and from shell scripts.
//!
//! What it can do, per direction where that makes sense: latency with jitter, throttling, slicing into tiny segments,
//! holding everything back for a while, a black hole that swallows without closing, cuts by FIN or RST (now, after so
//! many bytes, or at random), and refusing new connections.
//!
//! * Latency delays bytes without limiting the rate: what arrives together leaves together, later. At most
//!   [`QUEUE`] chunks are on their way in each direction; then the sender is no longer read, which is back-pressure.
//! * `hold` is a network that stalls: nothing is lost and everything arrives when it ends.
//! * `blackhole` is a state that a firewall lost: connections that it hit stay dead after it ends; new ones work.
//! * Cuts close both sides at once. Bytes still on their way are lost.
//!
//! It listens on loopback unless it is told that any address will do.

mod command;
mod link;
mod settings;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{debug, warn};

pub use command::{Command, HELP};
pub use link::QUEUE;
pub use settings::{CutKind, Direction, Faults, Flow};

use crate::SimError;

/// How long connecting to the server may take.
const CONNECT: Duration = Duration::from_secs(5);

/// What all connections watch.
#[derive(Debug, Clone)]
pub(crate) struct Control {
    pub faults: Faults,
    /// Each cut by hand raises it; a connection that sees it rise ends.
    pub cuts: u64,
    pub cut_kind: CutKind,
    pub stop: bool,
}

/// Totals since the start.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub accepted: AtomicU64,
    pub refused: AtomicU64,
    pub open: AtomicU64,
    pub cut: AtomicU64,
    pub up: AtomicU64,
    pub down: AtomicU64,
    pub swallowed: AtomicU64,
}

/// A reading of the proxy's totals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Connections accepted.
    pub accepted: u64,
    /// Connections closed at once because the server could not be reached.
    pub refused: u64,
    /// Connections open now.
    pub open: u64,
    /// Connections cut on purpose.
    pub cut: u64,
    /// Bytes forwarded to the server.
    pub up: u64,
    /// Bytes forwarded to the client.
    pub down: u64,
    /// Bytes lost in black holes.
    pub swallowed: u64,
}

/// A running proxy. Dropping it closes everything.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    control: watch::Sender<Control>,
    counters: Arc<Counters>,
    tasks: JoinSet<()>,
}

impl Proxy {
    /// Listens on `listen` (loopback; port 0 lets the system choose) and forwards to `upstream`.
    pub async fn start(listen: SocketAddr, upstream: SocketAddr) -> Result<Self, SimError> {
        if !listen.ip().is_loopback() {
            return Err(SimError::NotLoopback(listen));
        }
        Self::start_anywhere(listen, upstream).await
    }

    /// As [`Proxy::start`], on any address. Whoever reaches it reaches `upstream`.
    pub async fn start_anywhere(listen: SocketAddr, upstream: SocketAddr) -> Result<Self, SimError> {
        let bind = |source| SimError::Bind { address: listen, source };
        let listener = TcpListener::bind(listen).await.map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;
        let start = Control { faults: Faults::default(), cuts: 0, cut_kind: CutKind::Fin, stop: false };
        let (control, watched) = watch::channel(start);
        let counters = Arc::new(Counters::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, address, upstream, watched, counters.clone()));
        Ok(Self { address, control, counters, tasks })
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the faults; open connections follow at once.
    pub fn change(&self, change: impl FnOnce(&mut Faults)) {
        self.control.send_modify(|control| change(&mut control.faults));
    }

    /// A faultless link again. Connections that a black hole hit stay dead.
    pub fn clear(&self) {
        self.change(|faults| *faults = Faults::default());
    }

    /// Cuts every open connection now.
    pub fn cut(&self, kind: CutKind) {
        self.control.send_modify(|control| {
            control.cuts += 1;
            control.cut_kind = kind;
        });
    }

    /// Totals.
    pub fn stats(&self) -> Stats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let c = &self.counters;
        Stats {
            accepted: read(&c.accepted),
            refused: read(&c.refused),
            open: read(&c.open),
            cut: read(&c.cut),
            up: read(&c.up),
            down: read(&c.down),
            swallowed: read(&c.swallowed),
        }
    }

    /// Obeys a command line (see [`Command`]) and returns the reply.
    pub fn obey(&self, command: &Command) -> String {
        match command {
            Command::Flow(direction, change) => self.change(|faults| direction.each(faults, |flow| change.apply(flow))),
            Command::CutNow(kind) => self.cut(*kind),
            Command::CutAfter(cut) => self.change(|faults| faults.cut_after = *cut),
            Command::CutRandom(cut) => self.change(|faults| faults.cut_random = *cut),
            Command::Hold(on) => self.change(|faults| faults.hold = *on),
            Command::Blackhole(on) => self.change(|faults| faults.blackhole = *on),
            Command::Refuse(on) => self.change(|faults| faults.refuse = *on),
            Command::Clear => self.clear(),
            Command::Stats => return format!("{:?}", self.stats()),
            Command::Quit => {}
        }
        "ok".to_owned()
    }

    /// Closes everything and waits until it is closed.
    pub async fn stop(mut self) {
        self.control.send_modify(|control| control.stop = true);
        while self.tasks.join_next().await.is_some() {}
    }
}

/// Accepts while it is not told to refuse. To refuse is to close the listening socket, so that the system answers
/// with a reset as it does where nothing listens.
async fn accept(
    listener: TcpListener,
    address: SocketAddr,
    upstream: SocketAddr,
    mut control: watch::Receiver<Control>,
    counters: Arc<Counters>,
) {
    let mut listener = Some(listener);
    let mut connections = JoinSet::new();
    loop {
        let (refuse, stop) = {
            let now = control.borrow_and_update();
            (now.faults.refuse, now.stop)
        };
        if stop {
            break;
        }
        match (&listener, refuse) {
            (Some(_), true) => listener = None,
            (None, false) => listener = reopen(address).await,
            _ => {}
        }
        let accepted = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = control.changed() => if changed.is_err() { break },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = accepted => match accepted {
                Ok((client, _)) => {
                    connections.spawn(connection(client, upstream, control.clone(), counters.clone()));
                }
                Err(error) => {
                    warn!(%error, "accepting a connection failed; trying again");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
        }
    }
    connections.shutdown().await;
}

/// Takes the port again. Somebody else may hold it for a moment; the accept loop comes back on the next change, so
/// this waits until it succeeds or ten seconds have passed.
async fn reopen(address: SocketAddr) -> Option<TcpListener> {
    for _ in 0..100 {
        match TcpListener::bind(address).await {
            Ok(listener) => return Some(listener),
            Err(error) => debug!(%error, %address, "the port is not free yet"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    warn!(%address, "the port was taken by somebody else; the proxy stays closed until the next command");
    None
}

async fn connection(
    client: TcpStream,
    upstream: SocketAddr,
    control: watch::Receiver<Control>,
    counters: Arc<Counters>,
) {
    counters.accepted.fetch_add(1, Ordering::Relaxed);
    let server = match tokio::time::timeout(CONNECT, TcpStream::connect(upstream)).await {
        Ok(Ok(server)) => server,
        _ => {
            counters.refused.fetch_add(1, Ordering::Relaxed);
            let _ = client.set_zero_linger();
            return;
        }
    };
    counters.open.fetch_add(1, Ordering::Relaxed);
    link::run(client, server, control, &counters).await;
    counters.open.fetch_sub(1, Ordering::Relaxed);
}

#[cfg(test)]
mod tests;
