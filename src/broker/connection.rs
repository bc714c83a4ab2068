//! The task of one client: bytes in, packets to the hub, deliveries out.
//!
//! One task per connection, no further queues: what waits for the client waits in its session, what is encoded is at most
//! [`WRITE_AHEAD`] bytes. Reading stops while the client does not read its answers.

mod connect;

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::Inbound;
use super::codec::{self, DecodeError, Packet, PublishHeader, Version};
use super::embedded::Shared;
use super::hub::{Detached, Effects, Leave, Link, Next, Outgoing, Ticket, reason};
use crate::security::{CertificateId, ServerTls};

/// Encoded bytes that may wait for the socket.
const WRITE_AHEAD: usize = 64 * 1024;
/// Smallest room for one read.
const READ_ROOM: usize = 2048;
/// Bytes of input above which its buffer is given back.
const LARGE: usize = 16 * 1024;
/// A client that takes no byte for this long is gone.
const STALLED: Duration = Duration::from_secs(60);
/// How long a receiver in this process may block the client that publishes to it.
const LOCAL_PATIENCE: Duration = Duration::from_secs(5);
/// How long the last bytes of a connection may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// Where a connection comes from.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    /// `None` for the broker's own probe.
    pub address: Option<SocketAddr>,
    /// From a verified client certificate.
    pub tls_name: Option<String>,
    /// The TLS that it came through, with its certificate, if it showed one.
    pub certificate: Option<(ServerTls, CertificateId)>,
    /// Clients without user name and certificate get in.
    pub anonymous: bool,
}

/// Why a connection ends.
#[derive(Debug)]
enum End {
    /// The client said goodbye.
    Disconnect { with_will: bool, expiry: Option<u32> },
    /// The socket broke or was closed.
    Lost,
    /// We close it with a reason code.
    Close(u8),
}

impl From<DecodeError> for End {
    fn from(error: DecodeError) -> Self {
        End::Close(error.reason())
    }
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        End::Lost
    }
}

/// Serves one connection until it ends.
pub(super) async fn serve<S>(shared: Arc<Shared>, stream: S, peer: Peer)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let mut wire =
        Wire { stream, input: BytesMut::new(), output: BytesMut::new(), unflushed: false, last_write: Instant::now() };
    let Some(open) = connect::accept(&shared, &mut wire, &peer).await else { return };
    let mut session = Guard { shared: shared.clone(), ticket: open.ticket, leave: Leave::Lost };
    let mut client = Client {
        shared,
        version: open.version,
        ticket: open.ticket,
        link: open.link,
        keep_alive: open.keep_alive,
        maximum_packet: open.maximum_packet,
        last_heard: Instant::now(),
        // The session may have brought messages along.
        pending: true,
        batch: Vec::new(),
        fx: Effects::default(),
    };
    let end = client.run(&mut wire).await;
    tracing::debug!(client = %open.client_id, ?end, "connection ends");
    if let End::Disconnect { with_will: false, expiry } = end {
        session.leave = Leave::Clean { expiry };
    }
    if let End::Close(code) = end {
        client.say_goodbye(&mut wire, code).await;
    }
    drop(session);
    let _ = timeout(GOODBYE, wire.stream.shutdown()).await;
}

/// Detaches the session however the task ends, a panic included.
struct Guard {
    shared: Arc<Shared>,
    ticket: Ticket,
    leave: Leave,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut fx = Effects::default();
        let now = self.shared.now();
        self.shared.hub().detach(self.ticket, self.leave, now, &mut fx);
        self.shared.settle(fx);
    }
}

/// The socket with its buffers.
struct Wire<S> {
    stream: S,
    input: BytesMut,
    output: BytesMut,
    unflushed: bool,
    last_write: Instant,
}

/// What the socket did.
enum Moved {
    Read(usize),
    Wrote,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// Reads or writes, whichever is possible. Cancel safe.
    async fn moved(&mut self) -> io::Result<Moved> {
        poll_fn(|context| self.poll_moved(context)).await
    }

    fn poll_moved(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Moved>> {
        if !self.output.is_empty() {
            if let Poll::Ready(written) = Pin::new(&mut self.stream).poll_write(context, &self.output) {
                let written = written?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.output.advance(written);
                self.unflushed = true;
                self.last_write = Instant::now();
                if self.output.is_empty() && self.output.capacity() > 2 * WRITE_AHEAD {
                    self.output = BytesMut::new();
                }
                return Poll::Ready(Ok(Moved::Wrote));
            }
        } else if self.unflushed
            && let Poll::Ready(flushed) = Pin::new(&mut self.stream).poll_flush(context)
        {
            flushed?;
            self.unflushed = false;
        }
        if self.output.len() < 2 * WRITE_AHEAD {
            if self.input.capacity() - self.input.len() < READ_ROOM {
                self.input.reserve(2 * READ_ROOM);
            }
            if let Poll::Ready(read) = pin!(self.stream.read_buf(&mut self.input)).poll(context) {
                return Poll::Ready(read.map(Moved::Read));
            }
        }
        Poll::Pending
    }

    async fn flush(&mut self) -> io::Result<()> {
        self.stream.write_all_buf(&mut self.output).await?;
        self.stream.flush().await
    }
}

struct Client {
    shared: Arc<Shared>,
    version: Version,
    ticket: Ticket,
    link: Arc<Link>,
    /// One and a half times what the client asked for [MQTT-3.1.2-22]; `None` is off.
    keep_alive: Option<Duration>,
    maximum_packet: u32,
    last_heard: Instant,
    /// Something may wait in the session.
    pending: bool,
    batch: Vec<Outgoing>,
    fx: Effects,
}

impl Client {
    async fn run<S: AsyncRead + AsyncWrite + Unpin>(&mut self, wire: &mut Wire<S>) -> End {
        let link = self.link.clone();
        // A client may send more before its CONNACK comes [MQTT-3.1.4-5].
        if !wire.input.is_empty()
            && let Err(end) = self.take_packets(wire).await
        {
            return end;
        }
        let mut timer = pin!(sleep_until(self.next_check(wire)));
        loop {
            while self.pending && wire.output.len() < WRITE_AHEAD {
                if let Err(end) = self.collect(&mut wire.output) {
                    return end;
                }
            }
            tokio::select! {
                moved = wire.moved() => match moved {
                    Ok(Moved::Read(0)) | Err(_) => return End::Lost,
                    Ok(Moved::Read(_)) => {
                        self.last_heard = Instant::now();
                        if let Err(end) = self.take_packets(wire).await {
                            return end;
                        }
                    }
                    Ok(Moved::Wrote) => {}
                },
                () = link.wake.notified() => match link.closed() {
                    Some(code) => return End::Close(code),
                    None => self.pending = true,
                },
                () = &mut timer => {
                    if let Some(end) = self.overdue(wire) {
                        return end;
                    }
                    timer.as_mut().reset(self.next_check(wire));
                }
            }
        }
    }

    fn next_check<S>(&self, wire: &Wire<S>) -> Instant {
        let stalled = if wire.output.is_empty() { Instant::now() } else { wire.last_write } + STALLED;
        self.keep_alive.map_or(stalled, |limit| stalled.min(self.last_heard + limit))
    }

    fn overdue<S>(&self, wire: &Wire<S>) -> Option<End> {
        if self.keep_alive.is_some_and(|limit| self.last_heard.elapsed() >= limit) {
            return Some(End::Close(reason::KEEP_ALIVE));
        }
        (!wire.output.is_empty() && wire.last_write.elapsed() >= STALLED).then_some(End::Lost)
    }

    /// Decodes everything that was read and takes it to the hub in one go.
    async fn take_packets<S: AsyncRead + AsyncWrite + Unpin>(&mut self, wire: &mut Wire<S>) -> Result<(), End> {
        let limit = self.shared.limits.packet_bytes;
        let large = wire.input.len() > LARGE;
        let mut packets = Vec::new();
        let broken = loop {
            match codec::decode(&mut wire.input, self.version, limit) {
                Ok(Some(packet)) => packets.push(packet),
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
        if large && wire.input.is_empty() {
            // Give back the memory of a large packet.
            wire.input = BytesMut::new();
        }
        let mut outcome = Ok(Next::Continue);
        let mut packets = packets.into_iter().peekable();
        while packets.peek().is_some() && outcome == Ok(Next::Continue) {
            outcome = self.take_to_hub(&mut packets, &mut wire.output);
            self.fx.ring();
            if packets.peek().is_some() {
                tokio::task::yield_now().await;
            }
        }
        if broken.is_some() {
            self.shared.hub().count(|stats| stats.protocol_errors += 1);
        }
        self.pending = true;
        for (receiver, message) in self.fx.local.drain(..) {
            hand_over(receiver, message).await?;
        }
        match (outcome, broken) {
            (Err(_), _) => Err(End::Close(self.link.closed().unwrap_or(reason::TAKEN_OVER))),
            (Ok(Next::Disconnect { with_will, expiry }), _) => Err(End::Disconnect { with_will, expiry }),
            (Ok(Next::Close(code)), _) => Err(End::Close(code)),
            (Ok(Next::Continue), Some(error)) => {
                tracing::info!(%error, "connection closed");
                Err(error.into())
            }
            (Ok(Next::Continue), None) => Ok(()),
        }
    }

    /// Takes packets to the hub under one lock, up to and with the first SUBSCRIBE: that one may take a while.
    fn take_to_hub(
        &mut self,
        packets: &mut impl Iterator<Item = Packet>,
        output: &mut BytesMut,
    ) -> Result<Next, Detached> {
        let now = self.shared.now();
        let mut hub = self.shared.hub();
        for packet in packets {
            let subscribe = matches!(packet, Packet::Subscribe { .. });
            let next = hub.packet(self.ticket, packet, now, &mut self.fx, output)?;
            if subscribe || next != Next::Continue {
                return Ok(next);
            }
        }
        Ok(Next::Continue)
    }

    /// Encodes what waits in the session, up to one buffer.
    fn collect(&mut self, output: &mut BytesMut) -> Result<(), End> {
        let room = WRITE_AHEAD.saturating_sub(output.len());
        let now = self.shared.now();
        let (more, had_high, has_high) = {
            let mut hub = self.shared.hub();
            let had_high = hub.has_high();
            let more = hub.collect(self.ticket, room, now, &mut self.batch);
            (more, had_high, hub.has_high())
        };
        if had_high && !has_high {
            self.shared.room.notify_waiters();
        }
        self.pending = more.map_err(|_| End::Close(self.link.closed().unwrap_or(reason::TAKEN_OVER)))?;
        let mut too_large = Vec::new();
        for outgoing in self.batch.drain(..) {
            if let Some(id) = encode(output, self.version, &outgoing, self.maximum_packet) {
                too_large.push(id);
            }
        }
        if !too_large.is_empty() {
            self.shared.hub().not_sent(self.ticket, &too_large);
            self.pending = true;
        }
        Ok(())
    }

    /// The last bytes: at a stop of the broker everything that waits, else only the reason.
    async fn say_goodbye<S: AsyncRead + AsyncWrite + Unpin>(&mut self, wire: &mut Wire<S>, code: u8) {
        let goodbye = async {
            if code == reason::SHUTTING_DOWN {
                self.pending = true;
                while self.pending && self.collect(&mut wire.output).is_ok() {
                    wire.flush().await?;
                }
            }
            if self.version == Version::V5 {
                codec::disconnect(&mut wire.output, code);
            }
            wire.flush().await
        };
        let _ = timeout(GOODBYE, goodbye).await;
    }
}

/// Waits for room in the channel of a receiver in this process, within bounds.
async fn hand_over(receiver: mpsc::Sender<Inbound>, message: Inbound) -> Result<(), End> {
    match receiver.send_timeout(message, LOCAL_PATIENCE).await {
        // A closed receiver has lost interest.
        Ok(()) | Err(mpsc::error::SendTimeoutError::Closed(_)) => Ok(()),
        Err(mpsc::error::SendTimeoutError::Timeout(message)) => {
            tracing::error!(topic = %message.topic, client = %message.client.client_id,
                "a request was not taken within {} s: the client is disconnected without acknowledgement", LOCAL_PATIENCE.as_secs());
            Err(End::Close(reason::QUOTA))
        }
    }
}

/// Appends one packet; the packet id (0 for QoS 0) when it is larger than the client takes and was left out.
fn encode(output: &mut BytesMut, version: Version, outgoing: &Outgoing, limit: u32) -> Option<u16> {
    match outgoing {
        Outgoing::Release { id } => codec::pubrel(output, version, *id),
        Outgoing::Publish { message, qos, retain, dup, id, expiry, ids } => {
            let subscriptions = ids.as_deref().unwrap_or_default();
            let header =
                PublishHeader { qos: *qos, retain: *retain, dup: *dup, id: *id, expiry: *expiry, subscriptions };
            let size =
                codec::publish(output, version, header, (&message.topic, &message.payload, &message.forward), limit);
            if size > limit as usize {
                return Some(*id);
            }
        }
    }
    None
}
