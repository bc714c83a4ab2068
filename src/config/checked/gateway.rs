//! Everything in `fieldgate.toml` but the defaults of devices.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Firmware;
use super::certificates::{Certificates, Est, Pki, ServerTls};
use crate::config::Secret;
use crate::management::lifecycle::{Approval, Stored};
use crate::management::roles::Role;
use crate::model::GatewayId;
use crate::northbound::ConsumerConfig;
use crate::security::ClientTlsFiles;
use crate::store::Backlog;
use crate::telemetry::{LogConfig, OtlpConfig};

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
    pub local: ConsumerConfig,
    /// `[[uplink]]`
    pub uplinks: Vec<Uplink>,
    /// `[log]`
    pub log: LogConfig,
    /// `[otlp]`; `None` exports nothing.
    pub otlp: Option<OtlpConfig>,
    /// `[limits]`
    pub limits: Limits,
    /// `[pki]`
    pub pki: Pki,
    /// `[est]`; `None` enrols nowhere.
    pub est: Option<Est>,
    /// `[firmware]`
    pub firmware: Firmware,
    /// `[margo]`; `None` joins no fleet manager.
    #[cfg(feature = "margo")]
    pub margo: Option<crate::margo::config::Config>,
    /// `[margo.identity.est]`; `None`: the SVID comes from files.
    #[cfg(feature = "margo")]
    pub svid: Option<Est>,
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
    /// What becomes of a device's stored values when it is decommissioned.
    pub stored: Stored,
    /// How long their delivery is waited for.
    pub deliver_within: Duration,
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

/// `[[uplink]]`: another broker that gets what the store keeps.
#[derive(Debug, Clone, PartialEq)]
pub struct Uplink {
    /// What it gets and how, and how it is reached; the name is also that of its place in the log.
    pub consumer: ConsumerConfig,
    /// Files for TLS; `None` when no server is spoken to over TLS.
    pub tls: Option<ClientTlsFiles>,
    /// Its certificate and key are those that `[est]` enrolled.
    pub enrolled: bool,
    /// What may wait for it; none: as much and as old as the store keeps.
    pub backlog: Backlog,
}

impl Uplink {
    /// Files for TLS, of which `enrolled` holds the gateway's enrolled identity.
    pub fn tls_files(&self, enrolled: &Path) -> Option<ClientTlsFiles> {
        let mut files = self.tls.clone()?;
        if self.enrolled {
            files.certificate = Some(enrolled.join("current/cert.pem"));
            files.key = Some(enrolled.join("current/key.pem"));
        }
        Some(files)
    }
}

impl Gateway {
    /// The embedded broker as a consumer of the store; `None` when it is switched off.
    pub fn local_consumer(&self) -> Option<ConsumerConfig> {
        self.broker.as_ref().map(|_| self.local.clone())
    }
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

#[cfg(test)]
mod tests {
    use crate::broker;
    use crate::config::{TlsContext, load_with};
    use crate::platform::clock::SystemClock;
    use crate::security::pki::BelievedTime;

    /// What passed the checks here passes those of the modules.
    #[test]
    fn the_smallest_and_the_richest_gateway_are_legal_to_the_modules() {
        let rich = include_str!("../../../examples/config/reference/fieldgate.toml");
        // Certificates that are none cannot be loaded, so the listener with TLS is left out here.
        let (start, end) =
            (rich.find("[[broker.listener]]\naddress = \"0.0.0.0").unwrap(), rich.find("[[broker.user]]").unwrap());
        let rich = format!("{}{}", &rich[..start], &rich[end..]);
        for (main, uplinks) in [("[gateway]\nid = \"g\"\n", 0), (rich.as_str(), 1)] {
            let dir = tempfile::tempdir().unwrap();
            for file in [
                "fieldgate.toml",
                "secrets/scada",
                "secrets/otlp",
                "secrets/est",
                "tls/est-root.pem",
                "tls/firmware.pub",
                "tls/site-ca.pem",
                "tls/client.pem",
                "tls/client.key",
            ] {
                let path = dir.path().join(file);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, if file == "fieldgate.toml" { main } else { "secret" }).unwrap();
            }
            let loaded = load_with(dir.path(), &|_| Some("x".into())).unwrap_or_else(|problems| panic!("{problems}"));
            let gateway = &loaded.gateway;
            let local = gateway.local_consumer().unwrap();
            assert_eq!(local.check(), Ok(()));
            assert_eq!(gateway.uplinks.len(), uplinks);
            for uplink in &gateway.uplinks {
                assert_eq!(uplink.consumer.check(), Ok(()));
                assert!(uplink.tls_files(dir.path()).is_some());
            }
            let time = BelievedTime::new(SystemClock::shared(), 0);
            let context = TlsContext { pki: dir.path().to_owned(), time };
            let broker = gateway.broker.as_ref().unwrap();
            let config: broker::Config =
                broker.config("fieldgate/v1/plant-7", &context).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(config.snapshot_interval.as_secs(), 600);
            assert_eq!(gateway.store.config(dir.path()).quota_bytes, gateway.store.max_size);
        }
    }
}
