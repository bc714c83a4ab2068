//! One Modbus connection and the rule that no reply is ever taken for another's.
//!
//! After any timeout, broken frame or wrong reply the connection is *spoilt*: TCP and RTU-over-TCP are closed and made
//! again; a serial port is drained until it is silent and cleared, and decoding starts afresh. On RTU the unit is moreover
//! left alone for a guard time and must prove that it owes nothing ([`super::resync`]). On TCP transaction ids go on counting over reconnects, so that
//! a gateway which keeps a reply for the next connection is recognised too.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::model::Reason;
use crate::southbound::driver::{Fault, Scope, Tally};

use super::frame::{self, Frame, FrameError, Framing};
use super::pdu::{PduError, Reply, Request};
use super::resync::{Before, Resync};
use super::transport::Transport;
use super::{Link, LinkOptions, timing};

/// Why a call brought no reply.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The link could not be made. Nothing was sent.
    #[error("cannot open {link}: {problem}")]
    Connect {
        /// The link.
        link: String,
        /// What the operating system said.
        problem: String,
    },
    /// The unit must be left alone for a while. Nothing was sent.
    #[error("the unit may still owe an earlier reply; it is left alone for {0:?}")]
    Held(Duration),
    /// The unit did not prove that it owes no reply. The request was not sent.
    #[error("no answer to the question after an earlier timeout within {0:?}")]
    Unsure(Duration),
    /// No reply in time.
    #[error("no reply within {0:?}")]
    Timeout(Duration),
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// Not a Modbus frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A frame, but not the reply.
    #[error(transparent)]
    Pdu(#[from] PduError),
    /// Another unit answered.
    #[error("unit {found} answered instead of unit {expected}")]
    Unit {
        /// The unit asked.
        expected: u8,
        /// The unit in the reply.
        found: u8,
    },
    /// More octets than the reply.
    #[error("{0} octets came after the reply")]
    Excess(usize),
}

impl CallError {
    /// Whether the request may have reached the device.
    pub fn may_be_sent(&self) -> bool {
        !matches!(self, CallError::Connect { .. } | CallError::Held(_) | CallError::Unsure(_))
    }

    /// As the link task wants it.
    pub fn fault(&self) -> Fault {
        let (scope, reason) = match self {
            CallError::Connect { .. } => (Scope::Link, Reason::LinkDown),
            CallError::Broken(_) => (Scope::Device, Reason::LinkDown),
            CallError::Timeout(_) | CallError::Held(_) | CallError::Unsure(_) => (Scope::Device, Reason::Timeout),
            _ => (Scope::Device, Reason::ProtocolError),
        };
        Fault { scope, reason, text: self.to_string() }
    }
}

/// A connection that is made when it is needed.
#[derive(Debug)]
pub struct Client {
    link: Link,
    options: LinkOptions,
    framing: Framing,
    transport: Option<Transport>,
    received: Vec<u8>,
    filled: usize,
    /// Octets of `received` that belong to the last reply.
    used: usize,
    sending: Vec<u8>,
    transaction: u16,
    resync: Resync,
    /// When the last exchange on the link ended.
    quiet_since: Instant,
    /// A serial line must be drained until then before it is used again.
    drain_until: Option<Instant>,
    origin: Instant,
    tally: Tally,
}

/// How long a unit is left alone after a timeout on RTU, if the configuration does not say.
const UNIT_GUARD: Duration = Duration::from_secs(1);
/// A connection that was used so lately is not asked before a read whether it is still there.
const IDLE: Duration = Duration::from_secs(1);
/// Line silence that ends a drain.
const DRAINED: Duration = Duration::from_millis(20);
/// Longest drain: a line that never falls silent is reported, not waited for.
const LONGEST_DRAIN: Duration = Duration::from_secs(5);
/// Room for two frames: a reply, and whatever should not be there.
const BUFFER: usize = 2 * frame::MAX_FRAME;

impl Client {
    /// A client that is not connected yet.
    pub fn new(link: Link, options: LinkOptions) -> Self {
        let framing = if matches!(link, Link::Tcp { .. }) { Framing::Tcp } else { Framing::Rtu };
        let now = Instant::now();
        Self {
            framing,
            transport: None,
            received: vec![0; BUFFER],
            filled: 0,
            used: 0,
            sending: Vec::with_capacity(frame::MAX_FRAME),
            transaction: rand::random(),
            resync: Resync::new(options.resync_echo, options.late_reply_guard.unwrap_or(UNIT_GUARD)),
            quiet_since: now,
            drain_until: None,
            origin: now,
            tally: Tally::default(),
            link,
            options,
        }
    }

    /// How long a unit must be left alone.
    pub fn held(&self, unit: u8) -> Option<Duration> {
        self.resync.held(unit, self.origin.elapsed())
    }

    /// Counts since the last call.
    pub fn take_tally(&mut self) -> Tally {
        std::mem::take(&mut self.tally)
    }

    /// How the link is set up.
    pub fn link(&self) -> (&Link, &LinkOptions) {
        (&self.link, &self.options)
    }

    /// Closes the connection.
    pub fn close(&mut self) {
        self.transport = None;
        self.forget_received();
    }

    fn forget_received(&mut self) {
        self.filled = 0;
        self.used = 0;
    }

    /// Makes the link if it is down or was closed by the other end.
    pub async fn connect(&mut self) -> Result<(), CallError> {
        if self.transport.as_ref().is_some_and(|transport| transport.waiting().is_err()) {
            self.close();
        }
        if self.transport.is_some() {
            return Ok(());
        }
        let fail = |problem: String| CallError::Connect { link: self.link.to_string(), problem };
        let limit = self.options.connect_timeout;
        let transport = match tokio::time::timeout(limit, Transport::open(&self.link)).await {
            Ok(Ok(transport)) => transport,
            Ok(Err(error)) => return Err(fail(error.to_string())),
            Err(_) => return Err(fail(format!("no answer within {limit:?}"))),
        };
        self.transport = Some(transport);
        self.forget_received();
        self.tally.connects += 1;
        if !self.options.pause_after_connect.is_zero() {
            tokio::time::sleep(self.options.pause_after_connect).await;
        }
        Ok(())
    }

    /// Sends a request to a unit and waits for its reply. Data lies in the client's buffer until the next call.
    pub async fn call(&mut self, unit: u8, request: &Request<'_>, limit: Duration) -> Result<Reply<'_>, CallError> {
        // After a pause, and before anything that is sent only once: has the other end closed meanwhile?
        let once = !matches!(request, Request::Read { .. });
        if self.transport.is_none() || once || self.quiet_since.elapsed() > IDLE {
            self.connect().await?;
        }
        match self.resync.before(unit, self.origin.elapsed()) {
            Before::Go => {}
            Before::Hold(until) => return Err(CallError::Held(until.saturating_sub(self.origin.elapsed()))),
            Before::Echo => self.ask_echo(unit, limit).await?,
        }
        let frame = match self.exchange(unit, request, limit).await {
            Ok(frame) => frame,
            Err(error) => {
                self.spoil(&error);
                if self.framing == Framing::Rtu {
                    let owed = matches!(error, CallError::Timeout(_) | CallError::Broken(_));
                    self.resync.failed(unit, self.origin.elapsed(), owed);
                }
                return Err(error);
            }
        };
        self.resync.answered(unit);
        Ok(request.parse(&self.received[frame.start..frame.end])?)
    }

    /// Asks a suspect unit for an echo, which shows that nothing older is on its way from it.
    async fn ask_echo(&mut self, unit: u8, limit: Duration) -> Result<(), CallError> {
        let echo = Request::Echo { nonce: rand::random() };
        match self.exchange(unit, &echo, limit).await {
            Ok(_) => {
                self.resync.echo_answered(unit);
                Ok(())
            }
            Err(error) => {
                self.spoil(&error);
                self.resync.echo_failed(unit, self.origin.elapsed());
                match error {
                    CallError::Timeout(limit) => Err(CallError::Unsure(limit)),
                    other => Err(other),
                }
            }
        }
    }

    /// The connection may carry a reply that nobody waits for any more.
    fn spoil(&mut self, error: &CallError) {
        self.forget_received();
        if !matches!(self.link, Link::Serial(_)) || matches!(error, CallError::Broken(_)) {
            self.close();
        }
        if matches!(self.link, Link::Serial(_)) {
            self.drain_until = Some(Instant::now() + DRAINED);
        }
    }

    /// One request and its reply, whose frame lies in `received`. On any error the caller spoils the connection.
    async fn exchange(&mut self, unit: u8, request: &Request<'_>, limit: Duration) -> Result<Frame, CallError> {
        self.settle().await?;
        self.transaction = self.transaction.wrapping_add(1);
        frame::encode(self.framing, self.transaction, unit, &mut self.sending, |out| request.encode(out));
        let deadline = Instant::now() + limit;
        let outcome =
            timeout_at(deadline, self.converse(unit, request)).await.unwrap_or(Err(CallError::Timeout(limit)));
        self.quiet_since = Instant::now();
        outcome
    }

    /// Waits until the line may be used, and sees to it that nothing old lies in it.
    async fn settle(&mut self) -> Result<(), CallError> {
        if let Some(until) = self.drain_until {
            self.drain(until).await?;
            self.drain_until = None;
        }
        let silence = if let Link::Serial(line) = &self.link { timing::silence(line) } else { Duration::ZERO };
        let pause = self.options.pause_between_requests.max(silence);
        if !pause.is_zero() && self.quiet_since.elapsed() < pause {
            sleep_until(self.quiet_since + pause).await;
        }
        let transport = self.transport.as_mut().ok_or_else(closed)?;
        if self.framing == Framing::Rtu && transport.waiting().map_err(broken)? > 0 {
            // Nobody asked for these octets, or gave up waiting for them.
            self.tally.late_replies += 1;
            match self.link {
                Link::Serial(_) => self.drain(Instant::now() + DRAINED).await?,
                Link::Tcp { .. } | Link::RtuOverTcp { .. } => {
                    self.close();
                    self.connect().await?;
                }
            }
        }
        if self.framing == Framing::Tcp {
            // What came behind the last reply is judged by its own transaction id.
            self.received.copy_within(self.used..self.filled, 0);
            self.filled -= self.used;
            self.used = 0;
        } else {
            self.forget_received();
        }
        Ok(())
    }

    /// Reads and drops what a serial line still brings, until `until` and until it falls silent.
    async fn drain(&mut self, until: Instant) -> Result<(), CallError> {
        let begun = Instant::now();
        let transport = self.transport.as_mut().ok_or_else(closed)?;
        let mut dropped = 0;
        let mut end = until;
        loop {
            match timeout_at(end, transport.read(&mut self.received)).await {
                Err(_) => break,
                Ok(Ok(0)) => return Err(closed()),
                Ok(Err(error)) => return Err(broken(error)),
                Ok(Ok(count)) => {
                    dropped += count;
                    end = until.max(Instant::now() + DRAINED);
                }
            }
            if begun.elapsed() > LONGEST_DRAIN * 2 {
                return Err(CallError::Broken(
                    "the line never falls silent; check termination and other masters".into(),
                ));
            }
        }
        self.tally.late_replies += u64::from(dropped > 0);
        transport.clear().map_err(broken)
    }

    /// Sends what lies in `sending` and receives until the reply is there.
    async fn converse(&mut self, unit: u8, request: &Request<'_>) -> Result<Frame, CallError> {
        let transport = self.transport.as_mut().ok_or_else(closed)?;
        transport.write_all(&self.sending).await.map_err(broken)?;
        loop {
            if let Some(frame) = frame::decode(self.framing, &self.received[..self.filled])? {
                match self.judge(unit, request, &frame)? {
                    Verdict::Reply => {
                        self.used = frame.used;
                        return Ok(frame);
                    }
                    Verdict::Late => {
                        self.tally.late_replies += 1;
                        self.resync.late(frame.unit, self.origin.elapsed());
                        self.received.copy_within(frame.used..self.filled, 0);
                        self.filled -= frame.used;
                        continue;
                    }
                }
            }
            let transport = self.transport.as_mut().ok_or_else(closed)?;
            match transport.read(&mut self.received[self.filled..]).await.map_err(broken)? {
                0 => return Err(closed()),
                count => self.filled += count,
            }
        }
    }

    /// Whether a frame is the reply, or a late one to an earlier request.
    fn judge(&self, unit: u8, request: &Request<'_>, frame: &Frame) -> Result<Verdict, CallError> {
        let pdu = &self.received[frame.start..frame.end];
        if self.framing == Framing::Tcp {
            if frame.transaction != self.transaction {
                return Ok(Verdict::Late);
            }
            if frame.unit != unit && self.options.check_unit {
                return Err(CallError::Unit { expected: unit, found: frame.unit });
            }
        } else {
            let suspect = self.resync.is_suspect(frame.unit);
            if frame.unit != unit {
                let error = CallError::Unit { expected: unit, found: frame.unit };
                return if suspect { Ok(Verdict::Late) } else { Err(error) };
            }
            if suspect && request.parse(pdu).is_err() {
                return Ok(Verdict::Late);
            }
        }
        request.parse(pdu)?;
        match self.filled - frame.used {
            0 => Ok(Verdict::Reply),
            // On TCP what follows carries its own transaction id and is looked at when it is due.
            _ if self.framing == Framing::Tcp => Ok(Verdict::Reply),
            excess => Err(CallError::Excess(excess)),
        }
    }
}

enum Verdict {
    Reply,
    Late,
}

fn broken(error: io::Error) -> CallError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => closed(),
        _ => CallError::Broken(error.to_string()),
    }
}

fn closed() -> CallError {
    CallError::Broken("the other end closed it".into())
}
