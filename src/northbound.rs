//! Northbound: one session per consumer of the store, from records to MQTT messages and from requests to management.
//!
//! Promise
//! - A record is confirmed to the store only when the broker has confirmed **all** of its messages. What a broken
//!   connection leaves unconfirmed is sent again: nothing lost, duplicates at most the window (and the re-send window).
//! - Order per point is the order of the log; `points` topics never go back in time; replayed telemetry says
//!   `historical` and keeps its original times.
//! - What cannot be delivered (too large, refused by the broker, damaged) is counted, published as a gap and reported as a
//!   notice; a refused request gets an answer.
//! - A dead connection is found within 1.5 times the keep-alive. Reconnection backs off with jitter.
//!
//! Shape
//! - [`Publisher`] turns deliveries into messages; `core` decides what to send next and what a confirmation means;
//!   `ledger`, `budget`, `schedule`, [`StateBoard`] and `requests` are its parts. All of that is Sans-IO.
//! - `feed` reads the [`RecordSource`]; it runs beside the session in the same task, so that no network event cancels a
//!   read from the disk.
//! - Two shells carry sessions: `local` (the embedded broker, through [`LocalPublisher`]) and `uplink` (rumqttc). Another
//!   kind (Sparkplug B) is one more shell that reads the same [`RecordSource`].
//!
//! Limits: every queue is bounded; the outbox takes records in only while it holds fewer than 256 messages, so its length
//! is bounded by two batches of records. One connection per uplink at a time.
//!
//! Known limits of the MQTT client underneath: its sockets take no TCP_USER_TIMEOUT, so silence is timed here; one packet
//! must pass the network within 1.5 keep-alives; TLS needs a host name or an IPv4 address. A broker of MQTT 3.1.1 that
//! refuses a publication by its ACL confirms it all the same, which nobody can see: use MQTT 5 where ACLs may refuse.
//!
//! It must not: talk to devices, write to the store, decide about requests, or read a clock but through
//! [`crate::platform::clock::Clock`] (tokio's timers serve for time-outs).

mod board;
mod budget;
mod config;
mod core;
mod feed;
mod filter;
mod health;
mod ledger;
mod local;
mod message;
mod publisher;
mod requests;
mod schedule;
mod source;
mod uplink;

use std::sync::Arc;

use tokio::sync::{mpsc, watch};

pub use self::board::{StateBoard, StateMessage};
pub use self::config::{
    ConfigError, ConsumerConfig, ConsumerKind, LinkPolicy, PublishSet, QosSet, ReplayConfig, ServerUrl, UplinkConfig,
    Version,
};
pub use self::filter::{Filter, Pattern};
pub use self::health::{ConsumerHealth, Notice, Severity};
pub use self::local::{LocalClosed, LocalPublisher};
pub use self::message::{Inbound, Message, Qos, Retain, Sender};
pub use self::publisher::{Directory, PublishError, Publisher};
pub use self::requests::{MAX_MANAGEMENT, MAX_REQUEST, Origin, Receipt, Request, RequestKind};
pub use self::schedule::{TimeWindow, TimeWindowError, Usage};
pub use self::source::{RecordSource, SourceClosed};
pub use self::uplink::TlsSource;
use crate::platform::clock::{ClockBook, SharedClock};

/// What every status message says of this gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayInfo {
    /// Id of the gateway.
    pub id: String,
    /// Version of the program.
    pub version: String,
    /// Grows by one with every start of the process.
    pub epoch: u64,
}

/// What sessions share.
#[derive(Debug, Clone)]
pub struct Context {
    /// This gateway.
    pub gateway: GatewayInfo,
    /// Retained state messages.
    pub board: StateBoard,
    /// The devices, for units.
    pub directory: watch::Receiver<Arc<Directory>>,
    /// Requests to management; full: the request is refused as busy.
    pub requests: mpsc::Sender<Request>,
    /// Notices to be appended to the store as events; full: they stand in the log only.
    pub notices: mpsc::Sender<Notice>,
    /// Wall clock.
    pub clock: SharedClock,
    /// Settings of the wall clock, for stamps that were taken before them.
    pub settings: Arc<ClockBook>,
}

/// One consumer with its source, ready to run a session: [`Consumer::run_local`] or [`Consumer::run_uplink`].
pub struct Consumer<S> {
    core: core::Core,
    context: Context,
    source: S,
}

impl<S: RecordSource> Consumer<S> {
    /// Prepares a consumer. `usage`: what a metered link sent today before this start.
    ///
    /// # Errors
    /// The configuration cannot work.
    pub fn new(
        config: ConsumerConfig,
        source: S,
        context: Context,
        usage: Usage,
    ) -> Result<(Self, watch::Receiver<ConsumerHealth>), ConfigError> {
        config.check()?;
        let (meter, health) = health::Meter::new(&config.name, config.window, usage);
        Ok((Self { core: core::Core::new(config, &context, meter), context, source }, health))
    }
}
