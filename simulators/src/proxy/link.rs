//! One connection through the proxy: two pumps, one per direction, and whoever ends first ends both.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::settings::{CutKind, Faults, Flow};
use super::{Control, Counters};
use crate::rng::Rng;

/// Chunks on their way in one direction.
pub const QUEUE: usize = 256;
/// Bytes of a chunk.
const CHUNK: usize = 4_096;

/// Why a connection ended.
enum End {
    /// One side closed; the other is told the same way.
    Peer,
    /// A fault.
    Cut(CutKind),
    /// The proxy stops.
    Stop,
}

/// What both pumps of a connection share.
struct Shared<'a> {
    control: watch::Receiver<Control>,
    cuts_at_start: u64,
    carried: AtomicU64,
    /// A black hole hit this connection.
    dead: AtomicBool,
    counters: &'a Counters,
    began: Instant,
    /// One exponential draw with mean 1; times the mean of a random cut it is when that comes.
    fate: f64,
}

/// Forwards between `client` and `server` until one closes or a fault cuts.
pub(super) async fn run(client: TcpStream, server: TcpStream, control: watch::Receiver<Control>, counters: &Counters) {
    let (_, _) = (client.set_nodelay(true), server.set_nodelay(true));
    let cuts_at_start = control.borrow().cuts;
    // Connections differ from each other and repeat from run to run.
    let mut rng = Rng::new(counters.accepted.load(Ordering::Relaxed));
    let fate = rng.exponential(1.0);
    let shared = Shared {
        control,
        cuts_at_start,
        carried: AtomicU64::new(0),
        dead: AtomicBool::new(false),
        counters,
        began: Instant::now(),
        fate,
    };
    let seeds = (rng.next_u64(), rng.next_u64());
    let up = pump(&client, &server, &shared, |faults| faults.up, &counters.up, seeds.0);
    let down = pump(&server, &client, &shared, |faults| faults.down, &counters.down, seeds.1);
    let end = tokio::select! {
        end = both(up, down) => end,
        end = ended(&shared) => end,
    };
    if let End::Cut(kind) = end {
        counters.cut.fetch_add(1, Ordering::Relaxed);
        if kind == CutKind::Rst {
            let (_, _) = (client.set_zero_linger(), server.set_zero_linger());
        }
    }
}

/// A half that ends in order lets the other go on, as TCP does; a fault ends both.
async fn both(up: impl Future<Output = End>, down: impl Future<Output = End>) -> End {
    tokio::pin!(up, down);
    tokio::select! {
        end = &mut up => if matches!(end, End::Peer) { down.await } else { end },
        end = &mut down => if matches!(end, End::Peer) { up.await } else { end },
    }
}

/// Ends when the connection is cut by hand or at random, or the proxy stops.
async fn ended(shared: &Shared<'_>) -> End {
    let mut control = shared.control.clone();
    loop {
        let (stop, cuts, kind, random) = {
            let now = control.borrow_and_update();
            (now.stop, now.cuts, now.cut_kind, now.faults.cut_random)
        };
        if stop {
            return End::Stop;
        }
        if cuts > shared.cuts_at_start {
            return End::Cut(kind);
        }
        let random_cut = async {
            match random {
                Some((mean, kind)) => {
                    tokio::time::sleep_until(shared.began + mean.mul_f64(shared.fate)).await;
                    kind
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = control.changed() => if changed.is_err() { return End::Stop },
            kind = random_cut => return End::Cut(kind),
        }
    }
}

/// Moves bytes one way: reads with their due time into a bounded queue, writes when they are due.
async fn pump(
    from: &TcpStream,
    to: &TcpStream,
    shared: &Shared<'_>,
    flow: impl Fn(&Faults) -> Flow,
    total: &AtomicU64,
    seed: u64,
) -> End {
    let (sender, receiver) = mpsc::channel::<(Instant, Vec<u8>)>(QUEUE);
    let read = read_side(from, shared, &flow, sender, Rng::new(seed));
    let write = write_side(to, shared, &flow, receiver, total);
    let (read, write) = (async { read.await.unwrap_or(End::Peer) }, async { write.await.unwrap_or(End::Peer) });
    tokio::pin!(read, write);
    tokio::select! {
        // The reader ends in order: what it read is still delivered, then the end of file is passed on.
        end = &mut read => match end {
            End::Peer => write.await,
            end => end,
        },
        end = &mut write => end,
    }
}

async fn read_side(
    from: &TcpStream,
    shared: &Shared<'_>,
    flow: &impl Fn(&Faults) -> Flow,
    sender: mpsc::Sender<(Instant, Vec<u8>)>,
    mut rng: Rng,
) -> io::Result<End> {
    let mut buffer = vec![0; CHUNK];
    let mut latest = Instant::now();
    loop {
        from.readable().await?;
        let count = match from.try_read(&mut buffer) {
            Ok(0) if shared.swallows() => std::future::pending().await,
            Ok(0) => return Ok(End::Peer),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        if shared.swallows() {
            shared.counters.swallowed.fetch_add(count as u64, Ordering::Relaxed);
            continue;
        }
        let flow = flow(&shared.control.borrow().faults);
        let due = Instant::now() + flow.latency + flow.jitter.mul_f64(rng.unit());
        latest = latest.max(due);
        if sender.send((latest, buffer[..count].to_vec())).await.is_err() {
            return Ok(End::Peer);
        }
    }
}

async fn write_side(
    to: &TcpStream,
    shared: &Shared<'_>,
    flow: &impl Fn(&Faults) -> Flow,
    mut receiver: mpsc::Receiver<(Instant, Vec<u8>)>,
    total: &AtomicU64,
) -> io::Result<End> {
    let mut control = shared.control.clone();
    let mut ready = Instant::now();
    while let Some((due, bytes)) = receiver.recv().await {
        tokio::time::sleep_until(due).await;
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            // An error means that the proxy is gone, which `ended` sees as well.
            let _ = control.wait_for(|now| !now.faults.hold || now.faults.blackhole).await;
            if shared.swallows() {
                shared.counters.swallowed.fetch_add(rest.len() as u64, Ordering::Relaxed);
                break;
            }
            let now = flow(&control.borrow().faults);
            let (slice, cut) = shared.allowance(now, rest.len());
            write_all(to, &rest[..slice]).await?;
            total.fetch_add(slice as u64, Ordering::Relaxed);
            if let Some(kind) = cut {
                return Ok(End::Cut(kind));
            }
            rest = &rest[slice..];
            if let Some(rate) = now.bytes_per_second {
                ready = ready.max(Instant::now()) + Duration::from_secs_f64(slice as f64 / rate as f64);
                tokio::time::sleep_until(ready).await;
            } else if now.slice.is_some() {
                // Lets the system send the slice as a segment of its own.
                tokio::time::sleep(Duration::from_micros(200)).await;
            }
        }
    }
    shutdown(to);
    Ok(End::Peer)
}

impl Shared<'_> {
    /// Whether bytes of this connection vanish; once true it stays true.
    fn swallows(&self) -> bool {
        if self.control.borrow().faults.blackhole {
            self.dead.store(true, Ordering::Relaxed);
        }
        self.dead.load(Ordering::Relaxed)
    }

    /// How many of `wanted` bytes may be written at once, and whether the connection is cut behind them.
    fn allowance(&self, flow: Flow, wanted: usize) -> (usize, Option<CutKind>) {
        // A throttle without slices still writes little at a time, so that the rate is even.
        let even = flow.bytes_per_second.map_or(usize::MAX, |rate| (rate / 20).max(1) as usize);
        let slice = wanted.min(flow.slice.unwrap_or(usize::MAX).max(1)).min(even);
        let Some((limit, kind)) = self.control.borrow().faults.cut_after else {
            self.carried.fetch_add(slice as u64, Ordering::Relaxed);
            return (slice, None);
        };
        let carried = self.carried.fetch_add(slice as u64, Ordering::Relaxed);
        let left = limit.saturating_sub(carried);
        if left <= slice as u64 { (left as usize, Some(kind)) } else { (slice, None) }
    }
}

async fn write_all(to: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        to.writable().await?;
        match to.try_write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Passes an end of file on while the other direction may go on.
fn shutdown(to: &TcpStream) {
    let _ = socket2::SockRef::from(to).shutdown(std::net::Shutdown::Write);
}
