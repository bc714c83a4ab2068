//! The checked configuration of the embedded broker. What stands here is consistent; [`Config::new`] refuses the rest.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::Acl;
use crate::security::{PasswordHash, ServerTls};

/// A part of the access list is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AclError {
    /// Not a legal MQTT filter.
    #[error(
        "access rule: {0:?} is no topic filter; `+` stands for one whole level, `#` for the rest and only at the end"
    )]
    Filter(String),
}

/// Why a broker configuration is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Other machines can reach the listener and nobody is asked who he is.
    #[error(
        "listener {0} can be reached from other machines and lets anonymous clients in; remove `anonymous = true` and add \
         users or require client certificates, or listen on 127.0.0.1"
    )]
    OpenToTheNetwork(SocketAddr),
    /// Nobody could ever connect.
    #[error(
        "listener {0} needs authentication, but there are no users and it does not ask for client certificates; add a user \
         (`fieldgate hash-password` makes the hash), set `client-ca`, or listen on 127.0.0.1"
    )]
    NobodyMayConnect(SocketAddr),
    /// Two listeners on one address.
    #[error("two listeners on {0}; give each its own port")]
    SameAddress(SocketAddr),
    /// Two users of one name.
    #[error("user {0:?} stands twice; remove one")]
    SameUser(String),
    /// A user without a name.
    #[error("a user has an empty name")]
    EmptyUser,
    /// A limit that cannot work.
    #[error("broker limit {name} = {value} is below the least that works, {least}")]
    Limit {
        /// Name of the field in [`Limits`].
        name: &'static str,
        /// What was given.
        value: u64,
        /// The least allowed.
        least: u64,
    },
}

/// One address that the broker listens on.
#[derive(Debug, Clone)]
pub struct Listener {
    /// Address and port; port 0 takes any free one.
    pub address: SocketAddr,
    /// TLS; `None` is plain TCP.
    pub tls: Option<ServerTls>,
    /// Whether clients without user name and certificate get in.
    pub anonymous: bool,
}

impl Listener {
    /// A plain listener that lets anonymous clients in if and only if it is on loopback.
    pub fn tcp(address: SocketAddr) -> Self {
        Self { address, tls: None, anonymous: address.ip().is_loopback() }
    }

    /// A TLS listener that lets anonymous clients in if and only if it is on loopback and asks for no certificate.
    pub fn tls(address: SocketAddr, tls: ServerTls) -> Self {
        let anonymous = address.ip().is_loopback() && !tls.asks_for_client_certificate();
        Self { address, tls: Some(tls), anonymous }
    }
}

/// A user with a password.
#[derive(Debug, Clone)]
pub struct User {
    /// Name as clients send it.
    pub name: String,
    /// Hash made by [`crate::security::hash_password`].
    pub hash: PasswordHash,
}

/// Bounds of everything that a client can make grow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections in total. Default 200.
    pub connections: usize,
    /// Connections from one address other than loopback. Default 50.
    pub connections_per_address: usize,
    /// Bytes of one packet from a client. Default 1 MiB.
    pub packet_bytes: usize,
    /// Subscriptions of one client. Default 5,000.
    pub filters_per_client: usize,
    /// Messages that wait for one client. Default 50,000.
    pub queue_messages: usize,
    /// Bytes that wait for one client, each message with 96 bytes of overhead. Default 4 MiB.
    pub queue_bytes: usize,
    /// Bytes that wait for all clients together; beyond it the client with the longest queue is dropped. A message that
    /// waits for several clients is held once and counted for each. Default 24 MiB.
    pub total_queue_bytes: usize,
    /// Messages sent to one client and not yet acknowledged. Default 100.
    pub inflight: u16,
    /// Retained messages. Default 100,000.
    pub retained_messages: usize,
    /// Bytes of retained messages, each with 96 bytes of overhead. Default 16 MiB.
    pub retained_bytes: usize,
    /// Persistent sessions whose client is away. Default 100; the one away longest is discarded first.
    pub sessions: usize,
    /// How long a persistent session outlives its connection. Default 24 h.
    pub session_expiry: Duration,
    /// How long our own publications are held back for one subscriber whose queue holds an eighth of its limit (or for all
    /// of them together, at half of theirs). Default 5 s.
    pub patience: Duration,
    /// From accept to CONNECT, the TLS handshake included. Default 10 s; the handshake alone has at most 5 s.
    pub connect_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 200,
            connections_per_address: 50,
            packet_bytes: 1 << 20,
            filters_per_client: 5_000,
            queue_messages: 50_000,
            queue_bytes: 4 << 20,
            total_queue_bytes: 24 << 20,
            inflight: 100,
            retained_messages: 100_000,
            retained_bytes: 16 << 20,
            sessions: 100,
            session_expiry: Duration::from_secs(24 * 3600),
            patience: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(10),
        }
    }
}

impl Limits {
    fn check(&self) -> Result<(), ConfigError> {
        let least = [
            ("connections", self.connections as u64, 1),
            ("connections-per-address", self.connections_per_address as u64, 1),
            ("packet-bytes", self.packet_bytes as u64, 128),
            ("filters-per-client", self.filters_per_client as u64, 1),
            ("queue-messages", self.queue_messages as u64, 10),
            ("queue-bytes", self.queue_bytes as u64, 1024),
            ("total-queue-bytes", self.total_queue_bytes as u64, 1024),
            ("inflight", u64::from(self.inflight), 1),
            ("connect-timeout (milliseconds)", self.connect_timeout.as_millis() as u64, 100),
        ];
        match least.into_iter().find(|&(_, value, least)| value < least) {
            Some((name, value, least)) => Err(ConfigError::Limit { name, value, least }),
            None => Ok(()),
        }
    }
}

/// Everything the broker is told. Made by [`Config::new`].
#[derive(Debug, Clone)]
pub struct Config {
    pub(super) listeners: Vec<Listener>,
    pub(super) users: HashMap<String, PasswordHash>,
    pub(super) acl: Acl,
    pub(super) limits: Limits,
    /// How often changed [`super::Retain::Snapshot`] messages are written. Default 10 min.
    pub snapshot_interval: Duration,
    /// How often the broker connects to itself to prove that it still serves. Default 10 s.
    pub probe_interval: Duration,
}

impl Config {
    /// Checks the parts against each other. No listener at all is allowed: the broker then serves this process only.
    pub fn new(listeners: Vec<Listener>, users: Vec<User>, acl: Acl, limits: Limits) -> Result<Self, ConfigError> {
        let mut by_name = HashMap::new();
        for user in users {
            if user.name.is_empty() {
                return Err(ConfigError::EmptyUser);
            }
            if by_name.insert(user.name.clone(), user.hash).is_some() {
                return Err(ConfigError::SameUser(user.name));
            }
        }
        for (at, listener) in listeners.iter().enumerate() {
            let address = listener.address;
            let certificates = listener.tls.as_ref().is_some_and(ServerTls::asks_for_client_certificate);
            let required = listener.tls.as_ref().is_some_and(ServerTls::requires_client_certificate);
            if listener.anonymous && !required && !address.ip().is_loopback() {
                return Err(ConfigError::OpenToTheNetwork(address));
            }
            if !listener.anonymous && by_name.is_empty() && !certificates {
                return Err(ConfigError::NobodyMayConnect(address));
            }
            if address.port() != 0 && listeners[..at].iter().any(|other| other.address == address) {
                return Err(ConfigError::SameAddress(address));
            }
        }
        limits.check()?;
        Ok(Self {
            listeners,
            users: by_name,
            acl,
            limits,
            snapshot_interval: Duration::from_secs(600),
            probe_interval: Duration::from_secs(10),
        })
    }

    /// One open listener on `127.0.0.1:port`, everything else default: the first run.
    pub fn loopback(port: u16) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        Self::new(vec![Listener::tcp(address)], Vec::new(), Acl::default(), Limits::default())
            .expect("one loopback listener is always a legal configuration")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(listener: Listener, users: Vec<User>) -> Result<Config, ConfigError> {
        Config::new(vec![listener], users, Acl::default(), Limits::default())
    }

    #[test]
    fn a_listener_that_others_can_reach_needs_authentication() {
        let outside: SocketAddr = "0.0.0.0:1883".parse().unwrap();
        let error = config(Listener::tcp(outside), vec![]).unwrap_err();
        assert_eq!(error, ConfigError::NobodyMayConnect(outside));
        let open = Listener { anonymous: true, ..Listener::tcp(outside) };
        let user = User { name: "u".into(), hash: crate::security::hash_password(&"p".into()).unwrap() };
        assert_eq!(config(open, vec![user.clone()]).unwrap_err(), ConfigError::OpenToTheNetwork(outside));
        assert!(config(Listener::tcp(outside), vec![user.clone()]).is_ok());
        assert_eq!(
            config(Listener::tcp(outside), vec![user.clone(), user]).unwrap_err(),
            ConfigError::SameUser("u".into())
        );
        assert!(config(Listener::tcp("[::1]:0".parse().unwrap()), vec![]).is_ok());
    }

    #[test]
    fn limits_that_cannot_work_are_refused() {
        let limits = Limits { packet_bytes: 0, ..Limits::default() };
        let error = Config::new(vec![], vec![], Acl::default(), limits).unwrap_err();
        assert!(error.to_string().contains("packet-bytes = 0"), "{error}");
    }
}
