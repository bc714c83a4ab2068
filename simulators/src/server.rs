//! **Servers in front of the plant**: they move bytes between sockets or serial lines and [`crate::modbus`].
//!
//! One connection is served one request at a time, as simple devices do: a request that arrives while a reply is being
//! delayed waits in the system's buffers. On a shared line (RTU) this holds across all connections. A stop closes
//! everything at once, delayed replies included.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Semaphore, broadcast, watch};
use tokio::task::JoinSet;
use tokio_serial::SerialStream;
use tracing::{debug, info, warn};

use crate::faults::Wire;
use crate::modbus::frame::{Decoder, Framing, Request};
use crate::world::{Answer, World};

/// A pause of this length ends a partial RTU frame. Far more than 3.5 characters: sockets and ptys stutter.
const SILENCE: Duration = Duration::from_millis(50);
/// Time between attempts to open a serial line again.
const REOPEN: Duration = Duration::from_secs(1);

/// Replies that a converter keeps for a connection that does not take them; older ones are lost.
pub(crate) const LATE: usize = 64;

/// What all connections of one listener share.
#[derive(Clone)]
pub(crate) struct Port {
    pub world: Arc<Mutex<World>>,
    pub listener: usize,
    pub framing: Framing,
    /// Speed of the line behind a converter; bytes cost time.
    pub baud: Option<u32>,
    /// Set for a converter that gives every reply to every open connection.
    pub replies: Option<broadcast::Sender<Vec<u8>>>,
    /// One at a time on a shared line.
    pub line: Arc<tokio::sync::Mutex<()>>,
    pub stop: watch::Receiver<bool>,
}

impl Port {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn stopped(&mut self) {
        // An error means that the plant is gone, which is a stop as well.
        let _ = self.stop.wait_for(|stop| *stop).await;
    }

    /// Time on the line: 10 bits per byte, and 3.5 characters of silence before each frame.
    fn line_time(&self, request: usize, reply: usize) -> Duration {
        self.baud.map_or(Duration::ZERO, |baud| {
            let characters = (request + reply) as f64 + 7.0;
            Duration::from_secs_f64(characters * 10.0 / f64::from(baud))
        })
    }
}

/// Accepts connections until the plant stops.
pub(crate) async fn accept(mut port: Port, listener: TcpListener, max_connections: Option<usize>) {
    let slots = Arc::new(Semaphore::new(max_connections.unwrap_or(Semaphore::MAX_PERMITS)));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = port.stopped() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "accepting a connection failed; trying again");
                tokio::time::sleep(SILENCE).await;
                continue;
            }
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else { continue };
        if port.world().is_disconnected(port.listener) {
            continue;
        }
        let _ = stream.set_nodelay(true);
        let port = port.clone();
        connections.spawn(async move {
            if let Err(error) = serve(port, stream).await {
                debug!(%error, "a connection ended");
            }
            drop(slot);
        });
    }
    connections.shutdown().await;
}

/// Serves a serial line until the plant stops; opens it again when it fails.
pub(crate) async fn serve_serial(mut port: Port, path: String, baud: u32, first: SerialStream) {
    let mut stream = Some(first);
    loop {
        let open = || SerialStream::open(&tokio_serial::new(&path, baud)).ok();
        if let Some(line) = stream.take().or_else(open) {
            match serve(port.clone(), line).await {
                Ok(()) => info!(path, "the serial line closed"),
                Err(error) => warn!(path, %error, "the serial line failed; opening it again"),
            }
        }
        tokio::select! {
            () = port.stopped() => return,
            () = tokio::time::sleep(REOPEN) => {}
        }
    }
}

/// Serves one stream until it ends, breaks, or the plant stops.
pub(crate) async fn serve(mut port: Port, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    let mut decoder = Decoder::new(port.framing);
    let mut buffer = [0; 1024];
    let mut replies = port.replies.as_ref().map(broadcast::Sender::subscribe);
    loop {
        let read = tokio::select! {
            () = port.stopped() => return Ok(()),
            bytes = next_reply(&mut replies) => {
                stream.write_all(&bytes).await?;
                continue;
            }
            read = tokio::time::timeout(SILENCE, stream.read(&mut buffer)) => read,
        };
        match read {
            Err(_silence) => decoder.silence(),
            Ok(Ok(0)) => return Ok(()),
            Ok(Ok(count)) => decoder.push(&buffer[..count]),
            Ok(Err(error)) => return Err(error),
        }
        loop {
            match decoder.next_request() {
                Ok(Some(request)) => {
                    if !reply(&mut port, &mut stream, &request).await? {
                        return Ok(());
                    }
                }
                Ok(None) => break,
                Err(_broken) => return Ok(()),
            }
        }
    }
}

/// The next reply of the line behind a converter; pends where replies go to their own connection.
async fn next_reply(replies: &mut Option<broadcast::Receiver<Vec<u8>>>) -> Vec<u8> {
    let Some(replies) = replies else { return std::future::pending().await };
    loop {
        match replies.recv().await {
            Ok(bytes) => return bytes,
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return std::future::pending().await,
        }
    }
}

/// Answers one request; false when the connection must close.
async fn reply(port: &mut Port, stream: &mut (impl AsyncWrite + Unpin), request: &Request) -> io::Result<bool> {
    let line = port.line.clone();
    let _held = match port.framing {
        Framing::Rtu => Some(line.lock().await),
        Framing::Tcp => None,
    };
    let Answer { delay, wire } = port.world().serve(port.listener, port.framing, request);
    let bytes = match wire {
        Wire::Bytes(bytes) => bytes,
        Wire::Nothing => return Ok(true),
        Wire::Close => return Ok(false),
    };
    let wait = delay + port.line_time(request.wire_bytes, bytes.len());
    if !wait.is_zero() {
        tokio::select! {
            () = port.stopped() => return Ok(false),
            () = tokio::time::sleep(wait) => {}
        }
    }
    match &port.replies {
        // This connection listens as well, so that there is a receiver.
        Some(replies) => _ = replies.send(bytes),
        None => stream.write_all(&bytes).await?,
    }
    Ok(true)
}
