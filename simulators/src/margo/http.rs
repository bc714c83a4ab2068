//! The shell that all simulated services share: a listener (TLS or not) that can be taken down and up again on the same
//! port, HTTP/1.1, and answers that may come late, in dribs, cut short or not at all.
//!
//! Limits: request bodies of 4 MiB, [`MAX_CONNECTIONS`] connections at a time; those above are closed at once.

mod answer;
mod dribble;

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Body;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response};
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

pub(crate) use answer::{Answer, Manner};

use super::MargoSimError;

const MAX_BODY: usize = 4 * 1024 * 1024;
const MAX_CONNECTIONS: usize = 2_048;
const HANDSHAKE: Duration = Duration::from_secs(30);

/// Whether a service can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Down {
    /// It answers.
    #[default]
    Up,
    /// Connections are refused; those that exist end.
    Refused,
    /// Connections are accepted and reset; those that exist end.
    Reset,
    /// Connections are accepted and nothing is ever said; those that exist end.
    Silent,
}

/// A request as it came, with who sent it.
#[derive(Debug)]
pub(crate) struct Ask {
    pub method: Method,
    pub path: String,
    pub query: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// Number of the connection, from 1.
    pub connection: u64,
    /// The client's certificate, DER.
    pub certificate: Option<Vec<u8>>,
}

impl Ask {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// What answers. It must not block.
pub(crate) trait Serve: Send + Sync + 'static {
    fn answer(&self, ask: &Ask) -> Answer;

    /// A handshake failed.
    fn refused(&self, _connection: u64, _why: &str) {}
}

/// A listener; it ends when dropped.
pub(crate) struct Listener {
    address: SocketAddr,
    wanted: watch::Sender<(u64, Down)>,
    applied: watch::Receiver<u64>,
    _tasks: JoinSet<()>,
}

impl Listener {
    pub async fn start(
        address: SocketAddr,
        tls: Option<Arc<ServerConfig>>,
        service: Arc<dyn Serve>,
    ) -> Result<Self, MargoSimError> {
        // Shared ports would let a second simulator take half of the connections; this tells that the port is taken.
        drop(bound(address, false)?);
        // This socket never listens. It holds the port while the service is down, so that nobody else gets it.
        let placeholder = bound(address, true)?;
        let found = placeholder.local_addr().map_err(|source| MargoSimError::Bind { address, source })?;
        let address = found.as_socket().unwrap_or(address);
        let listener = listen(address)?;
        let (wanted, orders) = watch::channel((0, Down::Up));
        let (done, applied) = watch::channel(0);
        let keeper = Keeper { address, _placeholder: placeholder, tls, service, orders, done };
        let mut tasks = JoinSet::new();
        tasks.spawn(keeper.run(listener));
        Ok(Self { address, wanted, applied, _tasks: tasks })
    }

    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn down(&self) -> Down {
        self.wanted.borrow().1
    }

    /// Returns when it is so.
    pub async fn set_down(&self, down: Down) -> Result<(), MargoSimError> {
        let mut order = 0;
        self.wanted.send_modify(|(number, state)| {
            *number += 1;
            *state = down;
            order = *number;
        });
        let mut applied = self.applied.clone();
        applied.wait_for(|&done| done >= order).await.map_err(|_| MargoSimError::Ended)?;
        Ok(())
    }
}

fn bound(address: SocketAddr, shared: bool) -> Result<Socket, MargoSimError> {
    let make = || -> std::io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(shared)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        Ok(socket)
    };
    make().map_err(|source| MargoSimError::Bind { address, source })
}

fn listen(address: SocketAddr) -> Result<TcpListener, MargoSimError> {
    let socket = bound(address, true)?;
    socket
        .listen(1_024)
        .and_then(|()| TcpListener::from_std(socket.into()))
        .map_err(|source| MargoSimError::Bind { address, source })
}

struct Keeper {
    address: SocketAddr,
    _placeholder: Socket,
    tls: Option<Arc<ServerConfig>>,
    service: Arc<dyn Serve>,
    orders: watch::Receiver<(u64, Down)>,
    done: watch::Sender<u64>,
}

impl Keeper {
    async fn run(mut self, first: TcpListener) {
        let mut listener = Some(first);
        let mut connections = JoinSet::new();
        let numbers = AtomicU64::new(0);
        loop {
            let (order, down) = *self.orders.borrow_and_update();
            if down != Down::Up {
                connections.shutdown().await;
            }
            if down == Down::Refused {
                listener = None;
            } else if listener.is_none() {
                match listen(self.address) {
                    Ok(made) => listener = Some(made),
                    Err(error) => tracing::error!(%error, "the simulator cannot come back"),
                }
            }
            // Nobody may be left that waits for it.
            self.done.send_replace(order);
            loop {
                tokio::select! {
                    changed = self.orders.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => return,
                    },
                    accepted = accept(listener.as_ref()) => {
                        let number = numbers.fetch_add(1, Ordering::Relaxed) + 1;
                        self.take(accepted, number, down, &mut connections);
                    }
                    Some(_) = connections.join_next() => {}
                }
            }
        }
    }

    fn take(&self, socket: TcpStream, number: u64, down: Down, connections: &mut JoinSet<()>) {
        if down == Down::Reset || connections.len() >= MAX_CONNECTIONS {
            reset_on_close(SockRef::from(&socket));
            return;
        }
        if down == Down::Silent {
            connections.spawn(async move {
                let _kept_open = socket;
                std::future::pending::<()>().await;
            });
            return;
        }
        connections.spawn(connection(socket, number, self.tls.clone(), self.service.clone()));
    }
}

async fn accept(listener: Option<&TcpListener>) -> TcpStream {
    let Some(listener) = listener else { return std::future::pending().await };
    loop {
        match listener.accept().await {
            Ok((socket, _)) => return socket,
            // Out of descriptors: let some connections end first.
            Err(error) => {
                tracing::warn!(%error, "simulator: accept failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

fn reset_on_close(socket: SockRef<'_>) {
    if let Err(error) = socket.set_linger(Some(Duration::ZERO)) {
        tracing::debug!(%error, "simulator: a connection will close in an orderly way instead of being reset");
    }
}

async fn connection(socket: TcpStream, number: u64, tls: Option<Arc<ServerConfig>>, service: Arc<dyn Serve>) {
    let _ = socket.set_nodelay(true);
    // A second handle, to reset the connection from below TLS.
    let Ok(handle) = socket.as_fd().try_clone_to_owned() else { return };
    let handle = Arc::new(Socket::from(handle));
    let Some(config) = tls else { return speak(socket, number, None, service, handle).await };
    match tokio::time::timeout(HANDSHAKE, TlsAcceptor::from(config).accept(socket)).await {
        Ok(Ok(stream)) => {
            let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
            let certificate = certificate.map(|leaf| leaf.to_vec());
            speak(stream, number, certificate, service, handle).await;
        }
        Ok(Err(error)) => service.refused(number, &error.to_string()),
        Err(_) => service.refused(number, "no handshake within 30 s"),
    }
}

/// The answer is not sent: the connection ends here.
#[derive(Debug, thiserror::Error)]
#[error("the connection ends as scripted")]
struct HungUp;

async fn speak(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    number: u64,
    certificate: Option<Vec<u8>>,
    service: Arc<dyn Serve>,
    handle: Arc<Socket>,
) {
    let answer = service_fn(|request: Request<Incoming>| {
        let (service, handle, certificate) = (service.clone(), handle.clone(), certificate.clone());
        async move { one(request, number, certificate, service.as_ref(), &handle).await }
    });
    let served = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
    if let Err(error) = served {
        tracing::debug!(%error, "simulator: a connection ended early");
    }
}

async fn one(
    request: Request<Incoming>,
    connection: u64,
    certificate: Option<Vec<u8>>,
    service: &dyn Serve,
    handle: &Socket,
) -> Result<Response<Body>, HungUp> {
    let (head, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(Body::new(body), MAX_BODY).await else {
        return Ok(Answer::new(413).into_response(&Manner::default()));
    };
    let ask = Ask {
        method: head.method,
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        headers: head.headers,
        body,
        connection,
        certificate,
    };
    let mut answer = service.answer(&ask);
    let manner = std::mem::take(&mut answer.manner);
    if !manner.latency.is_zero() {
        tokio::time::sleep(manner.latency).await;
    }
    if manner.reset {
        reset_on_close(SockRef::from(handle));
    }
    if manner.reset || manner.hang_up {
        return Err(HungUp);
    }
    Ok(answer.into_response(&manner))
}
