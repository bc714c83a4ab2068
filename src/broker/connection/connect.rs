//! The first packet: who is it, may he come in.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::time::timeout;

use super::{GOODBYE, Peer, Wire};
use crate::broker::Identity;
use crate::broker::acl::{Acl, ClientAcl};
use crate::broker::auth::Login;
use crate::broker::codec::{self, ConnAckProperties, Connect, DecodeError, Version};
use crate::broker::embedded::{Gate, Shared};
use crate::broker::hub::{Effects, Link, Ticket};

/// A connection that was let in.
pub(super) struct Open {
    pub client_id: Arc<str>,
    pub version: Version,
    pub ticket: Ticket,
    pub link: Arc<Link>,
    pub keep_alive: Option<Duration>,
    pub maximum_packet: u32,
}

/// Why a CONNECT is refused, with the codes of both versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    ClientId,
    WrongPassword,
    NotAuthorised,
    WillTopic,
    TooManyFailures,
    Method,
}

impl Refusal {
    const fn code(self, version: Version) -> u8 {
        match (version, self) {
            (Version::V311, Refusal::ClientId) => 2,
            (Version::V311, Refusal::TooManyFailures) => 3,
            (Version::V311, Refusal::WrongPassword | Refusal::Method) => 4,
            (Version::V311, Refusal::NotAuthorised | Refusal::WillTopic) => 5,
            (Version::V5, Refusal::ClientId) => 0x85,
            (Version::V5, Refusal::WrongPassword) => 0x86,
            (Version::V5, Refusal::NotAuthorised | Refusal::WillTopic) => 0x87,
            (Version::V5, Refusal::Method) => 0x8c,
            (Version::V5, Refusal::TooManyFailures) => 0x9f,
        }
    }

    const fn text(self) -> &'static str {
        match self {
            Refusal::ClientId => "an empty client id needs a clean session",
            Refusal::WrongPassword => "wrong user name or password",
            Refusal::NotAuthorised => "this listener needs a user name and password or a client certificate",
            Refusal::WillTopic => "the will topic is not allowed for this client",
            Refusal::TooManyFailures => "too many failed logins from this address, try again later",
            Refusal::Method => "extended authentication is not supported",
        }
    }
}

/// Reads the CONNECT and answers it; `None` when the connection is not to go on.
pub(super) async fn accept<S>(shared: &Arc<Shared>, wire: &mut Wire<S>, peer: &Peer) -> Option<Open>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let connect = match timeout(shared.limits.connect_timeout, read(shared, wire)).await {
        Ok(Some(connect)) => connect,
        Ok(None) => return None,
        Err(_) => {
            tracing::debug!(address = ?peer.address, "no CONNECT in time");
            return None;
        }
    };
    loop {
        let gate = shared.gate();
        let refusal = match admit(shared, &gate, &connect, peer).await {
            // Users, rules or revocations changed meanwhile: look again.
            Ok(admitted) => match attach(shared, wire, &connect, peer, &gate, admitted) {
                Some(open) => return Some(open),
                None => continue,
            },
            Err(refusal) => refusal,
        };
        shared.hub().count(|stats| stats.refused_logins += 1);
        tracing::warn!(client = %connect.client_id, user = ?connect.user, address = ?peer.address,
            "connection refused: {}", refusal.text());
        let properties = ConnAckProperties { reason: refusal.text(), ..Default::default() };
        codec::connack(&mut wire.output, connect.version, false, refusal.code(connect.version), &properties);
        let _ = timeout(GOODBYE, wire.flush()).await;
        return None;
    }
}

async fn read<S: AsyncRead + AsyncWrite + Unpin>(shared: &Shared, wire: &mut Wire<S>) -> Option<Connect> {
    loop {
        match codec::decode_connect(&mut wire.input, shared.limits.packet_bytes) {
            Ok(Some(connect)) => return Some(connect),
            Ok(None) => {}
            Err(error) => {
                shared.hub().count(|stats| stats.protocol_errors += 1);
                tracing::info!(%error, "connection closed before CONNECT");
                if let DecodeError::Version(_) = error {
                    // Return code 1 in the form of 3.1.1, which clients of every version understand [MQTT-3.1.2-2].
                    codec::connack(&mut wire.output, Version::V311, false, 1, &ConnAckProperties::default());
                    let _ = wire.flush().await;
                }
                return None;
            }
        }
        if wire.stream.read_buf(&mut wire.input).await.ok()? == 0 {
            return None;
        }
    }
}

async fn admit(
    shared: &Shared,
    gate: &Gate,
    connect: &Connect,
    peer: &Peer,
) -> Result<(Arc<Identity>, ClientAcl), Refusal> {
    if connect.extended_auth {
        return Err(Refusal::Method);
    }
    if connect.client_id.is_empty() && connect.version == Version::V311 && !connect.clean_start {
        return Err(Refusal::ClientId);
    }
    if peer.certificate.as_ref().is_some_and(|(tls, id)| tls.has_revoked(id)) {
        return Err(Refusal::NotAuthorised);
    }
    let user = match &connect.user {
        Some(user) if gate.auth.has_users() => {
            let password = connect.password.as_deref().unwrap_or_default();
            match gate.auth.login(user, password, peer.address.map(|a| a.ip()), shared.now()).await {
                Login::Right => Some(user.clone()),
                Login::Wrong => return Err(Refusal::WrongPassword),
                Login::TooMany => return Err(Refusal::TooManyFailures),
            }
        }
        _ => None,
    };
    if user.is_none() && peer.tls_name.is_none() && !peer.anonymous {
        return Err(Refusal::NotAuthorised);
    }
    let client_id = if connect.client_id.is_empty() { assigned_id() } else { connect.client_id.clone() };
    let identity = Identity {
        client_id: client_id.into(),
        user,
        address: peer.address,
        tls_name: peer.tls_name.clone(),
        certificate: peer.certificate.as_ref().map(|(_, id)| id.clone()),
    };
    let acl = if peer.address.is_some() { gate.acl.client(&identity) } else { Acl::default().client(&identity) };
    if connect.will.as_ref().is_some_and(|will| !acl.may_publish(&will.topic)) {
        return Err(Refusal::WillTopic);
    }
    Ok((Arc::new(identity), acl))
}

fn assigned_id() -> String {
    format!("auto-{:032x}", rand::rng().random::<u128>())
}

/// `None` when the client was let in by what is no longer in force: whoever changes it looks at all clients afterwards,
/// and must find this one, or this one must find the change.
fn attach<S>(
    shared: &Arc<Shared>,
    wire: &mut Wire<S>,
    connect: &Connect,
    peer: &Peer,
    gate: &Arc<Gate>,
    (identity, acl): (Arc<Identity>, ClientAcl),
) -> Option<Open> {
    let link = Arc::new(Link::default());
    let client_id = identity.client_id.clone();
    let mut fx = Effects::default();
    let now = shared.now();
    let attached = {
        let mut hub = shared.hub();
        let revoked = peer.certificate.as_ref().is_some_and(|(tls, id)| tls.has_revoked(id));
        if revoked || !Arc::ptr_eq(gate, &shared.gate()) {
            return None;
        }
        hub.attach(connect, identity, acl, link.clone(), now, &mut fx)
    };
    shared.settle(fx);
    let properties = ConnAckProperties {
        session_expiry: (attached.expiry != connect.session_expiry).then_some(attached.expiry),
        assigned_client_id: connect.client_id.is_empty().then_some(&*client_id),
        maximum_packet: u32::try_from(shared.limits.packet_bytes).unwrap_or(u32::MAX),
        reason: "",
    };
    codec::connack(&mut wire.output, connect.version, attached.present, 0, &properties);
    let keep_alive = (connect.keep_alive > 0).then(|| Duration::from_millis(u64::from(connect.keep_alive) * 1500));
    tracing::debug!(client = %client_id, present = attached.present, "client connected");
    Some(Open {
        client_id,
        version: connect.version,
        ticket: attached.ticket,
        link,
        keep_alive,
        maximum_packet: connect.maximum_packet,
    })
}
