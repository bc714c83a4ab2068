//! Everything in `fieldgate.toml` but the defaults of devices.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::Secret;
use crate::contract::Encoding;
use crate::model::GatewayId;

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
    pub local: Local,
    /// `[[uplink]]`
    pub uplinks: Vec<Uplink>,
    /// `[log]`
    pub log: Log,
    /// `[otlp]`; `None` exports nothing.
    pub otlp: Option<Otlp>,
    /// `[limits]`
    pub limits: Limits,
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
}

/// Certificates of a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerTls {
    /// Certificate chain, PEM.
    pub cert: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
    /// Authorities whose client certificates are accepted, PEM.
    pub client_ca: Option<PathBuf>,
    /// Revoked client certificates, PEM.
    pub crl: Option<PathBuf>,
    /// Refuse clients without a certificate.
    pub require_client_cert: bool,
}

/// How a server is verified and how this gateway proves who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientTls {
    /// Authorities that may sign the server's certificate, PEM; `None` for the operating system's.
    pub ca: Option<PathBuf>,
    /// Certificate chain of this client and its private key, PEM.
    pub identity: Option<(PathBuf, PathBuf)>,
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

/// `[[broker.acl]]`: what one user may do. Without any rule a named user may read everything and send requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acl {
    /// User (or common name of a client certificate); `*` for everyone, `anonymous` for clients without a name.
    pub user: String,
    /// Topic filters it may publish to; `%u` and `%c` stand for user and client id.
    pub publish: Vec<String>,
    /// Topic filters it may subscribe to.
    pub subscribe: Vec<String>,
}

/// `[broker.limits]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerLimits {
    /// Clients at once, 1 to 10,000.
    pub connections: usize,
    /// Clients at once from one address, 1 to 10,000.
    pub connections_per_address: usize,
    /// Largest packet, 256 B to 16 MiB.
    pub packet_size: u64,
    /// Filters of one client, 1 to 10,000.
    pub subscriptions: usize,
    /// Retained messages of clients, 0 to 1,000,000.
    pub retained: usize,
    /// Longest wait for CONNECT (and the TLS handshake), 100 ms to 60 s.
    pub connect_timeout: Duration,
}

/// `[local]`: what the embedded broker shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Local {
    /// Encoding of payloads.
    pub encoding: Encoding,
    /// Publish `devices/{d}/telemetry`.
    pub telemetry: bool,
    /// Publish `devices/{d}/points/{p}`.
    pub points: bool,
    /// Quality of service of telemetry.
    pub qos: Qos,
}

/// MQTT quality of service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Qos {
    /// 0
    AtMostOnce,
    /// 1
    AtLeastOnce,
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
    /// Client id.
    pub client_id: String,
    /// User name.
    pub user: Option<String>,
    /// Password.
    pub password: Option<Secret>,
    /// TLS settings, used by `mqtts` servers.
    pub tls: ClientTls,
    /// Keep-alive, 5 s to 18 h.
    pub keep_alive: Duration,
    /// Longest wait for a connection, 100 ms to 60 s.
    pub connect_timeout: Duration,
    /// Encoding of payloads.
    pub encoding: Encoding,
    /// Root of its topics.
    pub root: String,
    /// What it gets.
    pub filter: Filter,
    /// Quality of service of records; 0 confirms nothing.
    pub qos: Qos,
    /// Messages in flight, 1 to 65,535.
    pub window: u16,
    /// Largest packet that its brokers take, 1 KiB to 256 MiB.
    pub packet_size: u64,
    /// Accept commands that come from it.
    pub commands: bool,
    /// How a backlog is sent.
    pub replay: Replay,
    /// Times of day when it may send; empty for always.
    pub windows: Vec<Window>,
    /// Most octets per day (UTC).
    pub daily_budget: Option<u64>,
    /// Retained messages that were confirmed are sent again after a reconnection only when older than this.
    pub resend_window: Duration,
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

/// What an uplink gets. Device patterns may end in `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// Devices; empty for all.
    pub devices: Vec<String>,
    /// Telemetry batches.
    pub telemetry: bool,
    /// Events, gaps and command results.
    pub events: bool,
    /// Last value of each point, retained.
    pub points: bool,
}

/// How a backlog is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replay {
    /// Live data before the backlog, or everything in order.
    pub order: ReplayOrder,
    /// Most backlog records per second; `None` for as fast as the broker confirms.
    pub records_per_second: Option<u32>,
}

/// What goes first after an outage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplayOrder {
    /// Live data first, the backlog behind it, marked historical.
    LiveFirst,
    /// Everything in the order of the log.
    InOrder,
}

/// A time of day, in minutes since midnight UTC. `from > to` goes over midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// First minute, 0 to 1439.
    pub from: u16,
    /// Minute after the last, 0 to 1440.
    pub to: u16,
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
