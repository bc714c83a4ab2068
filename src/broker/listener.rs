//! Accepts connections. Whatever a client does in its TLS handshake happens in its own task: the accept loop never waits
//! for anybody.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::Listener;
use super::connection::{Peer, serve};
use super::embedded::Shared;
use crate::security::{CertificateId, ServerTls, peer_name};

/// Longest TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Pause after an error of `accept` itself (no file descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Idle time before TCP asks whether the other machine is still there.
const TCP_KEEPALIVE: Duration = Duration::from_secs(60);

/// Connections open now, in total and by address.
#[derive(Debug, Default)]
pub(super) struct Census {
    open: Mutex<(usize, HashMap<IpAddr, usize>)>,
}

impl Census {
    /// Counts a connection in, unless a limit is reached. Loopback has no limit per address: local tools share it.
    fn enter(self: &Arc<Self>, address: IpAddr, total: usize, per_address: usize) -> Option<Seat> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let here = open.1.get(&address).copied().unwrap_or(0);
        if open.0 >= total || here >= per_address && !address.is_loopback() {
            return None;
        }
        open.0 += 1;
        *open.1.entry(address).or_insert(0) += 1;
        Some(Seat { census: self.clone(), address })
    }
}

/// One counted connection; dropping it frees the place.
struct Seat {
    census: Arc<Census>,
    address: IpAddr,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut open = self.census.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.0 -= 1;
        if let Some(count) = open.1.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.1.remove(&self.address);
            }
        }
    }
}

/// Accepts until the broker stops.
pub(super) async fn accept_loop(shared: Arc<Shared>, socket: TcpListener, mut listener: Listener) {
    loop {
        let accepted = tokio::select! {
            () = shared.stop.cancelled() => return,
            () = changed(&mut listener.tls) => {
                disconnect_revoked(&shared, listener.tls.as_ref());
                continue;
            }
            accepted = socket.accept() => accepted,
        };
        match accepted {
            Ok((stream, address)) => admit(&shared, stream, address, &listener),
            Err(error) => {
                tracing::warn!(%error, address = %listener.address, "a connection cannot be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Pends until the listener's certificates or revocation lists are others; for ever without TLS.
async fn changed(tls: &mut Option<ServerTls>) {
    match tls {
        Some(tls) => tls.changed().await,
        None => std::future::pending().await,
    }
}

/// A certificate that was taken back ends the connection that it opened. New ones are refused by the handshake.
fn disconnect_revoked(shared: &Shared, tls: Option<&ServerTls>) {
    let Some(tls) = tls else { return };
    let gate = shared.gate();
    shared.revise(|identity| {
        let revoked = identity.certificate.as_ref().is_some_and(|certificate| tls.has_revoked(certificate));
        (!revoked).then(|| gate.acl.client(identity))
    });
}

fn admit(shared: &Arc<Shared>, stream: TcpStream, address: SocketAddr, listener: &Listener) {
    let limits = &shared.limits;
    let Some(seat) =
        shared.census.enter(address.ip().to_canonical(), limits.connections, limits.connections_per_address)
    else {
        shared.hub().count(|stats| stats.refused_connections += 1);
        tracing::warn!(%address, "connection refused: too many connections");
        return;
    };
    let shared = shared.clone();
    let listener = listener.clone();
    shared.tasks.clone().spawn(async move {
        let _seat = seat;
        prepare(&stream);
        let stopped = shared.stop.clone();
        let peer = Peer { address: Some(address), tls_name: None, certificate: None, anonymous: listener.anonymous };
        match &listener.tls {
            None => serve(shared, stream, peer).await,
            Some(tls) => {
                let handshake = timeout(
                    HANDSHAKE.min(shared.limits.connect_timeout),
                    TlsAcceptor::from(tls.current()).accept(stream),
                );
                let handshake = tokio::select! {
                    () = stopped.cancelled() => return,
                    done = handshake => done,
                };
                match handshake {
                    Ok(Ok(stream)) => {
                        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
                        let tls_name = shown.and_then(peer_name);
                        let certificate = shown.and_then(CertificateId::of).map(|id| (tls.clone(), id));
                        serve(shared, stream, Peer { tls_name, certificate, ..peer }).await;
                    }
                    Ok(Err(error)) => refused(&shared, address, &error),
                    Err(late) => refused(&shared, address, &late),
                }
            }
        }
    });
}

fn refused(shared: &Shared, address: SocketAddr, error: &dyn std::fmt::Display) {
    shared.hub().count(|stats| stats.refused_connections += 1);
    tracing::info!(%address, "TLS handshake failed: {error}");
}

fn prepare(stream: &TcpStream) {
    let set = stream.set_nodelay(true).and_then(|()| {
        let probes = TcpKeepalive::new().with_time(TCP_KEEPALIVE).with_interval(TCP_KEEPALIVE / 4);
        SockRef::from(stream).set_tcp_keepalive(&probes)
    });
    if let Err(error) = set {
        tracing::debug!(%error, "socket options cannot be set");
    }
}
