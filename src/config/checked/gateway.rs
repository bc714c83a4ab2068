//! Everything in `fieldgate.toml` but the defaults of devices.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::certificates::{Certificates, Est, Pki, ServerTls};
use crate::config::Secret;
use crate::contract::Encoding;
use crate::management::lifecycle::Approval;
use crate::management::roles::Role;
use crate::model::{GatewayId, Lane};

/// The gateway itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Gateway {
    /// `[gateway]`
    pub identity: Identity,
    /// `[store]`
    pub store: Store,
    /// `[broker]`; `None` when it is switched off.
    pub broker: Option<Broker>,
    /// `[local]`
    pub local: Consumer,
    /// `[[uplink]]`
    pub uplinks: Vec<Uplink>,
    /// `[log]`
    pub log: Log,
    /// `[otlp]`; `None` exports nothing.
    pub otlp: Option<Otlp>,
    /// `[limits]`
    pub limits: Limits,
    /// `[pki]`
    pub pki: Pki,
    /// `[est]`; `None` enrols nowhere.
    pub est: Option<Est>,
    /// `[management]`
    pub management: Management,
}

/// `[management]`
#[derive(Debug, Clone, PartialEq)]
pub struct Management {
    /// Devices that a file declares are approved by that.
    pub approve_declared: bool,
    /// Identity patterns and their roles.
    pub roles: Vec<(String, Role)>,
    /// Other devices that are approved without a person.
    pub approve: Vec<Approval>,
    /// Public keys (Ed25519, 32 octets) of gateways that devices may be handed to or taken from, by their ids.
    pub partners: BTreeMap<String, Vec<u8>>,
}

/// `[gateway]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Unique on its brokers.
    pub id: GatewayId,
    /// Text for people; may be empty.
    pub description: String,
    /// Where everything that must survive a restart lies.
    pub data_dir: PathBuf,
    /// Root of all topics, without a `/` at either end.
    pub root: String,
}

/// `[store]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store {
    /// Most octets on disk for all lanes, 8 MiB to 16 TiB.
    pub max_size: u64,
    /// Part of `max_size` that telemetry can never take from the critical lane.
    pub critical_min: u64,
    /// Part of `max_size` that the critical lane can never take from telemetry.
    pub bulk_min: u64,
    /// When writes reach the medium.
    pub sync: SyncMode,
    /// Longest wait for the medium in the critical lane, 1 ms to 10 s (`interval` only).
    pub critical_interval: Duration,
    /// Longest wait for the medium in the bulk lane, 1 ms to 60 s (`interval` only).
    pub bulk_interval: Duration,
    /// What happens at `max_size`.
    pub when_full: FullPolicy,
    /// Records older than this are evicted; `None` keeps them.
    pub max_age: Option<Duration>,
}

/// When writes reach the medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncMode {
    /// Before anything is acknowledged.
    Always,
    /// Group commit at intervals.
    Interval,
    /// When the operating system likes.
    Os,
}

/// What happens when the store is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FullPolicy {
    /// The oldest records of the bulk lane go, with a gap record.
    DropOldest,
    /// New records are refused, with a gap record.
    DropNewest,
    /// Devices are not read until there is room.
    PushBack,
    /// From three quarters on one of so many new telemetry records of each device is kept, at least 2; then as
    /// `DropOldest`.
    ThinOut(u32),
}

/// How a server is verified and how this gateway proves who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientTls {
    /// Authorities that may sign the server's certificate, PEM; `None` for the operating system's.
    pub ca: Option<PathBuf>,
    /// Certificate chain of this client and its private key, PEM.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The identity is what `[est]` enrolled.
    pub enrolled: bool,
    /// Name that the server's certificate must carry, when it is not the host in the address.
    pub server_name: Option<String>,
}

/// `[broker]`
#[derive(Debug, Clone, PartialEq)]
pub struct Broker {
    /// `[[broker.listener]]`, at least one.
    pub listeners: Vec<Listener>,
    /// `[[broker.user]]`
    pub users: Vec<User>,
    /// `[[broker.acl]]`
    pub acl: Vec<Acl>,
    /// `[broker.limits]`
    pub limits: BrokerLimits,
    /// What a client with a name may do where no rule speaks.
    pub authenticated_access: Access,
    /// What a client without a name may do where no rule speaks.
    pub anonymous_access: Access,
    /// How often changed last values are written down, 10 s to 24 h.
    pub snapshot_interval: Duration,
    /// How often the broker proves by a connection to itself that it serves, 1 s to 1 h.
    pub probe_interval: Duration,
}

impl Broker {
    /// Whether a listener has its certificate from the plant's authority.
    pub fn uses_plant(&self) -> bool {
        let of_plant = |tls: &ServerTls| tls.certificates == Certificates::Plant;
        self.listeners.iter().any(|listener| listener.tls.as_ref().is_some_and(of_plant))
    }

    /// The same but for who gets in and what he may do: what a running broker cannot take.
    pub fn without_access(&self) -> Self {
        let deny = Access::Deny;
        let (users, acl) = (Vec::new(), Vec::new());
        Self { users, acl, authenticated_access: deny, anonymous_access: deny, ..self.clone() }
    }
}

/// `[[broker.listener]]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Address and port; port 0 takes a free one.
    pub address: SocketAddr,
    /// Clients may come without a name; only on loopback addresses.
    pub allow_anonymous: bool,
    /// Certificates; `None` speaks plain MQTT.
    pub tls: Option<ServerTls>,
}

/// `[[broker.user]]`
#[derive(Debug, Clone, PartialEq)]
pub struct User {
    /// Unique name.
    pub name: String,
    /// Argon2 hash in PHC form, or the password itself (from a file or the environment).
    pub password: Secret,
    /// Whether `password` is a hash.
    pub hashed: bool,
}

/// `[[broker.acl]]`: read in order, the first rule that speaks about an act decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acl {
    /// A user or the name in a client certificate, `*` standing for any characters; `*` alone, `$anonymous` or
    /// `$authenticated`.
    pub user: String,
    /// What the rule allows or takes away.
    pub access: Access,
    /// Topic filters; `%u` and `%c` stand for the client's name and id.
    pub topics: Vec<String>,
}

/// What a rule allows or takes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Neither publish nor subscribe.
    Deny,
    /// Subscribe.
    Read,
    /// Publish.
    Write,
    /// Both.
    ReadWrite,
}

/// `[broker.limits]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerLimits {
    /// Clients at once, 1 to 10,000.
    pub connections: usize,
    /// Clients at once from one address, 1 to 10,000.
    pub connections_per_address: usize,
    /// Largest packet, 1 KiB to 256 MiB.
    pub packet_size: u64,
    /// Filters of one client, 1 to 100,000.
    pub filters_per_client: usize,
    /// Messages that wait for one client, 10 to 10,000,000.
    pub queue_messages: usize,
    /// Octets that wait for one client, 64 KiB to 1 GiB.
    pub queue_size: u64,
    /// Octets that wait for all clients, 64 KiB to 16 GiB.
    pub total_queue_size: u64,
    /// Messages sent to a client and not yet confirmed, 1 to 65,535.
    pub inflight: u16,
    /// Retained messages, 0 to 10,000,000.
    pub retained_messages: usize,
    /// Octets of retained messages, 64 KiB to 16 GiB.
    pub retained_size: u64,
    /// Persistent sessions of clients that are away, 0 to 10,000.
    pub sessions: usize,
    /// How long such a session is kept, 0 to 30 d.
    pub session_expiry: Duration,
    /// How long the gateway waits for one slow subscriber, 0 to 60 s.
    pub patience: Duration,
    /// Longest wait for CONNECT, the TLS handshake included, 100 ms to 60 s.
    pub connect_timeout: Duration,
}

/// What one consumer of the store gets, and how. `[local]` is one, each `[[uplink]]` is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consumer {
    /// Encoding of payloads.
    pub encoding: Encoding,
    /// Root of its topics.
    pub root: String,
    /// Kinds of messages that are published.
    pub publish: Publish,
    /// Quality of service of each kind.
    pub qos: QosSet,
    /// Devices and points it gets.
    pub filter: Filter,
    /// Messages in flight, 10 to 1,000.
    pub window: u16,
    /// How a backlog is sent.
    pub replay: Replay,
    /// When and how much it may send.
    pub link: LinkPolicy,
    /// Records confirmed less than this before a break are sent again, 0 to 1 h.
    pub resend_window: Duration,
    /// Whether requests (commands) are taken from it.
    pub requests: bool,
}

/// Kinds of messages. `status` is always published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Publish {
    /// `devices/{d}/telemetry`
    pub telemetry: bool,
    /// `devices/{d}/points/{p}`
    pub points: bool,
    /// `devices/{d}/events` and `events`
    pub events: bool,
    /// `gaps`
    pub gaps: bool,
    /// `devices/{d}/command/result`
    pub results: bool,
    /// `health`, `onboarding`, `capabilities`
    pub state: bool,
}

/// Quality of service by kind of message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of Publish")]
pub struct QosSet {
    pub telemetry: Qos,
    pub points: Qos,
    pub events: Qos,
    pub gaps: Qos,
    pub results: Qos,
    pub state: Qos,
}

/// MQTT quality of service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Qos {
    /// 0
    AtMostOnce,
    /// 1
    AtLeastOnce,
}

/// Devices and points; empty lists stand for all. `*` stands for any characters, `?` for one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// Patterns of device ids.
    pub devices: Vec<String>,
    /// Patterns of point ids.
    pub points: Vec<String>,
    /// Lanes of the store.
    pub lanes: Vec<Lane>,
}

/// How a backlog is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replay {
    /// Live data first, the backlog behind it and marked historical; else everything in the order of the log.
    pub live_first: bool,
    /// Most backlog records per second; `None` for as fast as the broker confirms.
    pub max_records: Option<u32>,
    /// Most backlog octets per second.
    pub max_bytes: Option<u64>,
    /// Delay of confirmations above which the backlog slows down, 10 ms to 1 min.
    pub target_latency: Duration,
}

/// When and how much a metered link may carry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkPolicy {
    /// Times of day; empty for always.
    pub windows: Vec<Window>,
    /// Most octets per day (UTC).
    pub daily_budget: Option<u64>,
    /// The critical lane opens the link outside its windows and beyond its budget.
    pub critical_overrides: bool,
}

/// A time of day, in minutes since midnight UTC. `from > to` goes over midnight; equal ends are the whole day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// First minute, 0 to 1439.
    pub from: u16,
    /// Minute at which it closes, 0 to 1439.
    pub to: u16,
}

/// `[[uplink]]`: another broker that gets what the store keeps.
#[derive(Debug, Clone, PartialEq)]
pub struct Uplink {
    /// Unique; also the name of its place in the log.
    pub name: String,
    /// Tried in this order.
    pub servers: Vec<Server>,
    /// Protocol version.
    pub version: MqttVersion,
    /// Client id; `None` for `fieldgate-{gateway}-{name}`.
    pub client_id: Option<String>,
    /// User name.
    pub user: Option<String>,
    /// Password.
    pub password: Option<Secret>,
    /// TLS settings, used by `mqtts` servers.
    pub tls: ClientTls,
    /// Keep-alive, 5 s to 1 h.
    pub keep_alive: Duration,
    /// Longest wait for a connection, 1 s to 5 min.
    pub connect_timeout: Duration,
    /// Longest pause between two attempts to connect, 1 s to 10 m.
    pub reconnect_max: Duration,
    /// How long the broker keeps requests while the gateway is away (MQTT 5), 0 to 30 d.
    pub session_expiry: Duration,
    /// Largest packet, 1 KiB to 256 MiB.
    pub packet_size: u64,
    /// What it gets, and how.
    pub consumer: Consumer,
}

/// Address of a broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Whether it is spoken to over TLS (`mqtts://`).
    pub tls: bool,
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.tls { "mqtts" } else { "mqtt" };
        match self.host.contains(':') {
            true => write!(f, "{scheme}://[{}]:{}", self.host, self.port),
            false => write!(f, "{scheme}://{}:{}", self.host, self.port),
        }
    }
}

/// MQTT protocol version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MqttVersion {
    /// 3.1.1
    V4,
    /// 5
    V5,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// A level (`info`) or a tracing filter (`info,fieldgate::southbound=debug`).
    pub level: String,
    /// How lines look.
    pub format: LogFormat,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// `[otlp]`
#[derive(Debug, Clone, PartialEq)]
pub struct Otlp {
    /// Base address of the collector.
    pub endpoint: String,
    /// Wire protocol.
    pub protocol: OtlpProtocol,
    /// Headers of every request.
    pub headers: BTreeMap<String, Secret>,
    /// Export metrics.
    pub metrics: bool,
    /// Export traces.
    pub traces: bool,
    /// Export logs.
    pub logs: bool,
    /// Time between exports of metrics, 1 s to 1 h.
    pub interval: Duration,
    /// Longest wait for the collector, 100 ms to 60 s.
    pub timeout: Duration,
}

/// Wire protocol of OTLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtlpProtocol {
    /// Protobuf over HTTP.
    HttpProtobuf,
}

/// `[limits]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Scans that may wait between drivers and pipeline, 1 to 100,000.
    pub scan_queue: usize,
    /// Commands that may wait for one device, 1 to 10,000; more are answered `busy`.
    pub command_queue: usize,
    /// Commands per second for one device, 1 to 1,000.
    pub commands_per_second: u32,
    /// Longest time that one command may take, 100 ms to 10 min.
    pub command_timeout: Duration,
}
