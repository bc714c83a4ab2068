//! `[broker]` as the embedded broker takes it.

use super::checked::{Access, Broker, BrokerLimits, Gateway, Listener, User};
use crate::broker::{self, Acl, AclRule, Who};
use crate::security::{ClientCertificates, PasswordHash, Secret, ServerTls, ServerTlsFiles, hash_password};

/// Why the broker's section cannot be used: a certificate that cannot be read, or parts that contradict each other.
#[derive(Debug, thiserror::Error)]
#[error("[broker]: {0}")]
pub struct BrokerSectionError(String);

impl Gateway {
    /// Settings of the embedded broker; `None` when it is off. Certificates are read here.
    ///
    /// # Errors
    /// A file that cannot be read, or parts that contradict each other.
    pub fn broker_config(&self) -> Result<Option<broker::Config>, BrokerSectionError> {
        self.broker.as_ref().map(convert).transpose()
    }
}

fn convert(from: &Broker) -> Result<broker::Config, BrokerSectionError> {
    let listeners = from.listeners.iter().map(listener).collect::<Result<_, _>>()?;
    let (users, acl) = access(from)?;
    let mut config = broker::Config::new(listeners, users, acl, limits(&from.limits))
        .map_err(|e| BrokerSectionError(e.to_string()))?;
    (config.snapshot_interval, config.probe_interval) = (from.snapshot_interval, from.probe_interval);
    Ok(config)
}

/// Users and rules, which a running broker can take anew.
///
/// # Errors
/// A hash or a filter that cannot be used.
pub fn access(from: &Broker) -> Result<(Vec<broker::User>, Acl), BrokerSectionError> {
    let users = from.users.iter().map(user).collect::<Result<_, _>>()?;
    let mut rules = Vec::new();
    for rule in &from.acl {
        for topic in &rule.topics {
            let rule = AclRule::new(Who::parse(&rule.user), to_access(rule.access), topic);
            rules.push(rule.map_err(|e| BrokerSectionError(e.to_string()))?);
        }
    }
    Ok((users, Acl { rules, ..Acl::default() }))
}

fn listener(from: &Listener) -> Result<broker::Listener, BrokerSectionError> {
    let tls = from.tls.as_ref().map(|tls| {
        ServerTls::load(ServerTlsFiles {
            certificate: tls.cert.clone(),
            key: tls.key.clone(),
            client_ca: tls.client_ca.clone(),
            client_certificates: match tls.require_client_cert {
                true => ClientCertificates::Required,
                false => ClientCertificates::Optional,
            },
            revocation_lists: tls.crl.iter().cloned().collect(),
        })
    });
    let tls = tls.transpose().map_err(|e| BrokerSectionError(format!("listener {}: {e}", from.address)))?;
    Ok(broker::Listener { address: from.address, tls, anonymous: from.allow_anonymous })
}

fn user(from: &User) -> Result<broker::User, BrokerSectionError> {
    let text = from.password.expose();
    let hash = if from.hashed { PasswordHash::parse(text) } else { hash_password(&Secret::new(text)) };
    let hash = hash.map_err(|e| BrokerSectionError(format!("user {}: {e}", from.name)))?;
    Ok(broker::User { name: from.name.clone(), hash })
}

const fn to_access(from: Access) -> broker::Access {
    match from {
        Access::Deny => broker::Access::Deny,
        Access::Read => broker::Access::Read,
        Access::Write => broker::Access::Write,
        Access::ReadWrite => broker::Access::ReadWrite,
    }
}

fn limits(from: &BrokerLimits) -> broker::Limits {
    broker::Limits {
        connections: from.connections,
        connections_per_address: from.connections_per_address,
        packet_bytes: from.packet_size as usize,
        filters_per_client: from.filters_per_client,
        queue_messages: from.queue_messages,
        queue_bytes: from.queue_size as usize,
        total_queue_bytes: from.total_queue_size as usize,
        inflight: from.inflight,
        retained_messages: from.retained_messages,
        retained_bytes: from.retained_size as usize,
        sessions: from.sessions,
        session_expiry: from.session_expiry,
        patience: from.patience,
        connect_timeout: from.connect_timeout,
    }
}
