//! Checked configuration of one consumer of the store.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::filter::Filter;
use super::message::Qos;
use super::schedule::TimeWindow;
use crate::contract::Encoding;
use crate::model::Order;
use crate::security::Secret;

/// A configuration value that cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A server address cannot be read.
    #[error("server {0:?} is no address; write mqtt://host:port or mqtts://host:port")]
    Server(String),
    /// An IPv6 address cannot be verified against a certificate.
    #[error("server {0:?}: TLS needs a host name or an IPv4 address to verify; give the broker a name")]
    TlsAddress(String),
    /// No server.
    #[error("uplink {0:?} has no server; give at least one as mqtt://host:port or mqtts://host:port")]
    NoServer(String),
    /// A password alone.
    #[error("uplink {0:?} has a password and no user; give the user too")]
    PasswordWithoutUser(String),
    /// A number outside its range.
    #[error("{key} of consumer {consumer:?} is {value}; it must be {range}")]
    Range {
        /// The consumer.
        consumer: String,
        /// The key.
        key: &'static str,
        /// What was given.
        value: String,
        /// What is allowed.
        range: &'static str,
    },
    /// The root topic holds a wildcard, is empty, or begins or ends with a slash.
    #[error("root topic {0:?} must have 1 to 200 characters, no + or #, and no slash at its ends")]
    Root(String),
}

/// Address of a broker: `mqtt://host[:1883]` or `mqtts://host[:8883]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServerUrl {
    /// Name or address; IPv6 without brackets. With TLS the certificate must carry it.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Whether the connection is TLS.
    pub tls: bool,
}

impl FromStr for ServerUrl {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let bad = || ConfigError::Server(text.to_owned());
        let (scheme, rest) = text.split_once("://").ok_or_else(bad)?;
        let (tls, default_port) = match scheme {
            "mqtt" => (false, 1883),
            "mqtts" => (true, 8883),
            _ => return Err(bad()),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = match rest.strip_prefix('[') {
            Some(v6) => {
                let (host, tail) = v6.split_once(']').ok_or_else(bad)?;
                host.parse::<std::net::Ipv6Addr>().map_err(|_| bad())?;
                (host, tail.strip_prefix(':').or((tail.is_empty()).then_some("")).ok_or_else(bad)?)
            }
            None => rest.split_once(':').unwrap_or((rest, "")),
        };
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
        if host.is_empty() || !host.chars().all(legal) {
            return Err(bad());
        }
        let port = if port.is_empty() { default_port } else { port.parse().map_err(|_| bad())? };
        if port == 0 {
            return Err(bad());
        }
        if tls && host.contains(':') {
            return Err(ConfigError::TlsAddress(text.to_owned()));
        }
        Ok(Self { host: host.to_owned(), port, tls })
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "mqtts" } else { "mqtt" };
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{scheme}://{}:{}", self.host, self.port)
        }
    }
}

/// Version of the MQTT protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Version {
    /// MQTT 3.1.1, which every broker speaks. The default.
    #[default]
    V311,
    /// MQTT 5: reason codes, response topics.
    V5,
}

/// How a broker elsewhere is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UplinkConfig {
    /// Brokers in order of preference; the next one is tried when one fails. At least one.
    pub servers: Vec<ServerUrl>,
    /// Protocol version.
    pub version: Version,
    /// Client id, unique on the broker; `None`: `fieldgate-{gateway}-{consumer}`.
    pub client_id: Option<String>,
    /// User name; `None`: anonymous, or by certificate.
    pub user: Option<String>,
    /// Password of the user.
    pub password: Option<Secret>,
    /// How often a silent connection is probed; a dead one is found within 1.5 times this. 5 s to 1 h, default 20 s.
    pub keep_alive: Duration,
    /// How long a connection may take to be made, TLS and CONNACK included. 1 s to 5 min, default 5 s.
    pub connect_timeout: Duration,
    /// How long the broker keeps requests for us while we are away (MQTT 5; a 3.1.1 broker has its own rule). Zero: not
    /// at all. Default 1 day.
    pub session_expiry: Duration,
    /// Longest pause between attempts to connect; the pauses double up to it, with jitter. 1 s to 10 min, default 4 s.
    pub reconnect_max: Duration,
    /// Largest packet sent or accepted, in bytes. 1 KiB to 256 MiB, default 1 MiB. An MQTT 5 broker may lower it.
    pub max_packet: usize,
}

impl UplinkConfig {
    /// An uplink to these servers with every default.
    pub fn new(servers: Vec<ServerUrl>) -> Self {
        Self {
            servers,
            version: Version::default(),
            client_id: None,
            user: None,
            password: None,
            keep_alive: Duration::from_secs(20),
            connect_timeout: Duration::from_secs(5),
            session_expiry: Duration::from_secs(86_400),
            reconnect_max: Duration::from_secs(4),
            max_packet: 1024 * 1024,
        }
    }
}

/// What carries the messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConsumerKind {
    /// The embedded broker.
    Local,
    /// A broker elsewhere.
    Uplink(UplinkConfig),
}

/// Which classes of messages a consumer publishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublishSet {
    /// `devices/{d}/telemetry`: one message per batch.
    pub telemetry: bool,
    /// `devices/{d}/points/{p}`: the last value of each point, retained.
    pub points: bool,
    /// `devices/{d}/events` and `events`.
    pub events: bool,
    /// `gaps`.
    pub gaps: bool,
    /// `devices/{d}/command/result`.
    pub results: bool,
    /// The retained states: health, onboarding, capabilities and the like. `status` is always published.
    pub state: bool,
}

/// Delivery promise of each class. All at least once by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "the same names as in PublishSet")]
pub struct QosSet {
    pub telemetry: Qos,
    pub points: Qos,
    pub events: Qos,
    pub gaps: Qos,
    pub results: Qos,
    pub state: Qos,
}

/// How a backlog is delivered after an outage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplayConfig {
    /// Live data first (default), or everything in order.
    pub order: Order,
    /// Most backlog records per second; `None`: as fast as the broker confirms.
    pub max_records: Option<u32>,
    /// Most backlog bytes per second; `None`: as fast as the broker confirms.
    pub max_bytes: Option<u64>,
    /// PUBACK delay above which the backlog slows down. 10 ms to 1 min, default 250 ms.
    pub target_latency: Duration,
}

impl Default for ReplayConfig {
    fn default() -> Self {
        Self { order: Order::LiveFirst, max_records: None, max_bytes: None, target_latency: Duration::from_millis(250) }
    }
}

/// Limits of a metered link.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LinkPolicy {
    /// Times of day (UTC) at which the link may be open; empty: always. An unsynchronised clock opens it at any time.
    pub windows: Vec<TimeWindow>,
    /// Most bytes per UTC day, packets included; `None`: no limit.
    pub daily_bytes: Option<u64>,
    /// Records of the critical lane open the link outside its window and beyond its budget. Default false.
    pub critical_overrides: bool,
}

/// One consumer of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerConfig {
    /// Name of the consumer and of its cursor in the store; renaming it starts a new one.
    pub name: String,
    /// Carrier.
    pub kind: ConsumerKind,
    /// Root of all topics, such as `fieldgate/v1/plant-7`.
    pub root: String,
    /// Encoding of all messages.
    pub encoding: Encoding,
    /// Classes published.
    pub publish: PublishSet,
    /// Promise of each class.
    pub qos: QosSet,
    /// Devices, points and lanes wanted.
    pub filter: Filter,
    /// Messages in flight, not yet confirmed. 10 to 1,000, default 200. After a drop at most so many are sent twice.
    pub window: u16,
    /// How a backlog is delivered.
    pub replay: ReplayConfig,
    /// Limits of a metered link.
    pub link: LinkPolicy,
    /// Confirmed records are sent again after a reconnection when they were confirmed less than this ago, so that a
    /// broker that confirmed and then forgot (restored from an old database) gets them back. At most 1 h, default zero.
    pub resend_window: Duration,
    /// Whether requests are accepted from this consumer's clients. Default true.
    pub requests: bool,
}

impl ConsumerConfig {
    /// The embedded broker as a consumer: JSON, last values retained.
    pub fn local(name: &str, root: &str) -> Self {
        Self {
            name: name.to_owned(),
            kind: ConsumerKind::Local,
            root: root.to_owned(),
            encoding: Encoding::Json,
            publish: PublishSet { telemetry: true, points: true, events: true, gaps: true, results: true, state: true },
            qos: QosSet::default(),
            filter: Filter::default(),
            window: 200,
            replay: ReplayConfig::default(),
            link: LinkPolicy::default(),
            resend_window: Duration::ZERO,
            requests: true,
        }
    }

    /// A broker elsewhere as a consumer: JSON batches, no topic per point.
    pub fn uplink(name: &str, root: &str, servers: Vec<ServerUrl>) -> Self {
        let local = Self::local(name, root);
        Self {
            kind: ConsumerKind::Uplink(UplinkConfig::new(servers)),
            publish: PublishSet { points: false, ..local.publish },
            ..local
        }
    }

    /// Refuses values that cannot work.
    ///
    /// # Errors
    /// The first value outside its documented range.
    pub fn check(&self) -> Result<(), ConfigError> {
        let range = |key, value: String, ok: bool, range| {
            if ok { Ok(()) } else { Err(ConfigError::Range { consumer: self.name.clone(), key, value, range }) }
        };
        let root = &self.root;
        if root.is_empty()
            || root.len() > 200
            || root.contains(['+', '#', '\0'])
            || root.starts_with('/')
            || root.ends_with('/')
        {
            return Err(ConfigError::Root(root.clone()));
        }
        range("window", self.window.to_string(), (10..=1000).contains(&self.window), "10 to 1000 messages")?;
        let hour = Duration::from_secs(3600);
        range("resend-window", format!("{:?}", self.resend_window), self.resend_window <= hour, "at most 1 h")?;
        let latency = self.replay.target_latency;
        let ok = (Duration::from_millis(10)..=Duration::from_secs(60)).contains(&latency);
        range("replay.target-latency", format!("{latency:?}"), ok, "10 ms to 1 min")?;
        range("replay.max-records", "0".into(), self.replay.max_records != Some(0), "at least 1")?;
        range(
            "replay.max-bytes",
            "less than 1024".into(),
            self.replay.max_bytes.is_none_or(|b| b >= 1024),
            "at least 1 KiB",
        )?;
        let ConsumerKind::Uplink(uplink) = &self.kind else { return Ok(()) };
        if uplink.servers.is_empty() {
            return Err(ConfigError::NoServer(self.name.clone()));
        }
        if uplink.password.is_some() && uplink.user.is_none() {
            return Err(ConfigError::PasswordWithoutUser(self.name.clone()));
        }
        let keep = uplink.keep_alive;
        range("keep-alive", format!("{keep:?}"), (Duration::from_secs(5)..=hour).contains(&keep), "5 s to 1 h")?;
        let connect = uplink.connect_timeout;
        let ok = (Duration::from_secs(1)..=Duration::from_secs(300)).contains(&connect);
        range("connect-timeout", format!("{connect:?}"), ok, "1 s to 5 min")?;
        let pause = uplink.reconnect_max;
        let ok = (Duration::from_secs(1)..=Duration::from_secs(600)).contains(&pause);
        range("reconnect-max", format!("{pause:?}"), ok, "1 s to 10 min")?;
        let packet = uplink.max_packet;
        range("max-packet", packet.to_string(), (1024..=256 << 20).contains(&packet), "1 KiB to 256 MiB")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn server_addresses() {
        let url = |t: &str| t.parse::<ServerUrl>();
        assert_eq!(url("mqtt://broker").unwrap(), ServerUrl { host: "broker".into(), port: 1883, tls: false });
        assert_eq!(url("mqtts://b.example:99/").unwrap(), ServerUrl { host: "b.example".into(), port: 99, tls: true });
        assert_eq!(url("mqtt://[::1]:7").unwrap().to_string(), "mqtt://[::1]:7");
        for bad in [
            "broker",
            "http://a",
            "mqtt://",
            "mqtt://a:0",
            "mqtt://a:99999",
            "mqtt://a b",
            "mqtt://[x]",
            "mqtt://[::1]7",
            "mqtt://u:p@h",
        ] {
            assert!(matches!(url(bad), Err(ConfigError::Server(_))), "{bad}");
        }
        assert!(matches!(url("mqtts://[::1]"), Err(ConfigError::TlsAddress(_))));
    }

    #[test]
    fn values_outside_their_range_are_named() {
        let good = ConsumerConfig::uplink("site", "a/b", vec!["mqtt://h".parse().unwrap()]);
        assert_eq!(good.check(), Ok(()));
        assert!(matches!(
            ConsumerConfig { window: 5, ..good.clone() }.check(),
            Err(ConfigError::Range { key: "window", .. })
        ));
        assert!(matches!(ConsumerConfig { root: "a/#".into(), ..good.clone() }.check(), Err(ConfigError::Root(_))));
        assert!(matches!(ConsumerConfig::uplink("s", "a", vec![]).check(), Err(ConfigError::NoServer(_))));
    }

    proptest! {
        #[test]
        fn any_text_is_an_address_or_refused(text in ".{0,30}") {
            if let Ok(url) = text.parse::<ServerUrl>() {
                prop_assert_eq!(url.to_string().parse::<ServerUrl>().unwrap(), url);
            }
        }
    }
}
