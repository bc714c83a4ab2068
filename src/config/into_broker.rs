//! `[broker]` as the embedded broker takes it.

use std::path::{Path, PathBuf};

use super::checked::{self, Access, Broker, BrokerLimits};
use crate::broker::{self, AclRule, Who};
use crate::security::pki::BelievedTime;
use crate::security::{self, ClientCertificates, DEVICE, PasswordHash, ServerTls, ServerTlsFiles};

/// Why the embedded broker cannot be made although every value is legal.
#[derive(Debug, thiserror::Error)]
pub enum IntoBrokerError {
    /// A certificate, key or list cannot be used.
    #[error("listener {address}: {source}")]
    Tls {
        /// Which listener.
        address: std::net::SocketAddr,
        /// What is wrong with which file.
        source: security::TlsError,
    },
    /// A password cannot be hashed, or its hash is none.
    #[error("user {name}: {source}")]
    Password {
        /// Which user.
        name: String,
        /// What is wrong.
        source: security::PasswordError,
    },
    /// A rule has no legal filter.
    #[error(transparent)]
    Acl(#[from] broker::AclError),
    /// The parts contradict each other.
    #[error(transparent)]
    Config(#[from] broker::ConfigError),
}

/// Name of the broker's listeners in `<data>/pki/server`.
pub const PLANT_SLOT: &str = "mqtt";

/// What listeners with TLS need beside their own settings.
#[derive(Debug, Clone)]
pub struct TlsContext {
    /// `<data>/pki`
    pub pki: PathBuf,
    /// The time that certificates are checked against.
    pub time: BelievedTime,
}

impl Broker {
    /// Settings of the embedded broker of a gateway with this root of topics. Reads certificates and hashes plain passwords (about 50 ms each).
    ///
    /// # Errors
    /// When a certificate, password or rule cannot be used; the error names it.
    pub fn config(&self, root: &str, context: &TlsContext) -> Result<broker::Config, IntoBrokerError> {
        let listeners = self.listeners.iter().map(|l| listener(l, context)).collect::<Result<_, _>>()?;
        let (users, acl) = self.access(root, |_| None)?;
        let mut config = broker::Config::new(listeners, users, acl, limits(&self.limits))?;
        config.snapshot_interval = self.snapshot_interval;
        config.probe_interval = self.probe_interval;
        Ok(config)
    }

    /// Who gets in and what he may do. `known` gives the hash of a user's password where that is at hand; others are
    /// hashed (about 50 ms each).
    ///
    /// # Errors
    /// When a password or rule cannot be used; the error names it.
    pub fn access(
        &self,
        root: &str,
        known: impl Fn(&checked::User) -> Option<PasswordHash>,
    ) -> Result<(Vec<broker::User>, broker::Acl), IntoBrokerError> {
        let made = |u: &checked::User| match known(u) {
            Some(hash) => Ok(broker::User { name: u.name.clone(), hash }),
            None => user(u),
        };
        let users = self.users.iter().map(made).collect::<Result<_, _>>()?;
        let rules = rules(root, &self.acl)?;
        let (authenticated, anonymous) = (access(self.authenticated_access), access(self.anonymous_access));
        Ok((users, broker::Acl { rules, authenticated, anonymous }))
    }
}

/// The rules of the file, and before them those of devices that connect by themselves: a device touches its own topics, and
/// beyond them only what a rule gives that is made for devices by name.
fn rules(root: &str, acl: &[checked::Acl]) -> Result<Vec<AclRule>, broker::AclError> {
    let own = format!("{root}/devices/%n/#");
    let devices = |access, filter: &str| AclRule::new(Who::Name(format!("{DEVICE}*")), access, filter);
    let mut rules = vec![devices(broker::Access::ReadWrite, &own)?];
    let (for_devices, for_others): (Vec<_>, Vec<_>) = acl.iter().partition(|acl| acl.user.starts_with(DEVICE));
    let add = |acl: &checked::Acl, rules: &mut Vec<AclRule>| {
        for filter in &acl.topics {
            rules.push(AclRule::new(Who::parse(&acl.user), access(acl.access), filter)?);
        }
        Ok::<_, broker::AclError>(())
    };
    for_devices.into_iter().try_for_each(|acl| add(acl, &mut rules))?;
    rules.push(devices(broker::Access::Deny, "#")?);
    for_others.into_iter().try_for_each(|acl| add(acl, &mut rules))?;
    Ok(rules)
}

fn listener(listener: &checked::Listener, context: &TlsContext) -> Result<broker::Listener, IntoBrokerError> {
    let failed = |source| IntoBrokerError::Tls { address: listener.address, source };
    let load = |tls| ServerTls::load(files(tls, &context.pki), &context.time);
    let tls = listener.tls.as_ref().map(load).transpose().map_err(failed)?;
    Ok(broker::Listener { address: listener.address, tls, anonymous: listener.allow_anonymous })
}

fn files(tls: &checked::ServerTls, pki: &Path) -> ServerTlsFiles {
    let required = if tls.require_client_cert { ClientCertificates::Required } else { ClientCertificates::Optional };
    match &tls.certificates {
        checked::Certificates::Plant => ServerTlsFiles::of_plant(pki, PLANT_SLOT, required),
        checked::Certificates::Files { cert, key, client_ca, crl } => ServerTlsFiles {
            certificate: cert.clone(),
            key: key.clone(),
            client_ca: client_ca.clone(),
            client_certificates: required,
            revocation_lists: crl.iter().cloned().collect(),
        },
    }
}

fn user(user: &checked::User) -> Result<broker::User, IntoBrokerError> {
    let text = user.password.expose();
    let hash = if user.hashed { PasswordHash::parse(text) } else { security::hash_password(&user.password) };
    let hash = hash.map_err(|source| IntoBrokerError::Password { name: user.name.clone(), source })?;
    Ok(broker::User { name: user.name.clone(), hash })
}

const fn access(access: Access) -> broker::Access {
    match access {
        Access::Deny => broker::Access::Deny,
        Access::Read => broker::Access::Read,
        Access::Write => broker::Access::Write,
        Access::ReadWrite => broker::Access::ReadWrite,
    }
}

fn limits(limits: &BrokerLimits) -> broker::Limits {
    let octets = |size: u64| usize::try_from(size).unwrap_or(usize::MAX);
    broker::Limits {
        connections: limits.connections,
        connections_per_address: limits.connections_per_address,
        packet_bytes: octets(limits.packet_size),
        filters_per_client: limits.filters_per_client,
        queue_messages: limits.queue_messages,
        queue_bytes: octets(limits.queue_size),
        total_queue_bytes: octets(limits.total_queue_size),
        inflight: limits.inflight,
        retained_messages: limits.retained_messages,
        retained_bytes: octets(limits.retained_size),
        sessions: limits.sessions,
        session_expiry: limits.session_expiry,
        patience: limits.patience,
        connect_timeout: limits.connect_timeout,
    }
}
