//! **An enrolment server** (EST, RFC 7030) with an authority of its own, that answers as scripted.
//!
//! It serves `/cacerts`, `/simpleenroll` and `/simplereenroll` below `/.well-known/est` over TLS, with a two-stage
//! authority (root and issuing). Requests are signed as they come. [`EstServer::script`] queues [`Fault`]s; each spoils one
//! request, first in, first out. [`EstServer::log`] tells what was asked.
//!
//! Limits: HTTP/1.1, one request per connection, bodies of at most 64 KiB, loopback unless told otherwise.

mod authority;
mod http;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use authority::Authority;
use http::{Answer, Request};

/// How one request is spoilt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// 202 with `Retry-After` in seconds.
    Pending(u64),
    /// 401.
    Unauthorized,
    /// 500 with a page for people.
    Broken,
    /// 503 with `Retry-After` in seconds.
    Busy(u64),
    /// A certificate from an authority that nobody trusts.
    WrongAuthority,
    /// A certificate for another key.
    WrongKey,
    /// The first half of the right answer.
    Truncated,
    /// Something that is no CMS message.
    Nonsense,
    /// An endless answer.
    Endless,
    /// The right answer after this long.
    Slow(Duration),
    /// The connection ends without an answer.
    HangUp,
    /// The right answer is made (and logged as granted) and then lost.
    LoseAnswer,
}

/// One request as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Last part of the path: `cacerts`, `simpleenroll`, `simplereenroll`.
    pub act: String,
    /// User and password of HTTP Basic.
    pub credentials: Option<(String, String)>,
    /// Whether the client showed a certificate of this authority.
    pub mutual: bool,
    /// The request's body (PKCS#10 in base64).
    pub body: String,
    /// HTTP status of the answer, 0 for none.
    pub status: u16,
}

/// Settings.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where to listen; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// User and password that a first enrolment needs; none asks for none.
    pub credentials: Option<(String, String)>,
    /// Life of issued certificates.
    pub life: Duration,
}

/// An authority that signs instead of the server's own.
pub trait Issuer: Send + Sync {
    /// Its certificates, roots first, for `/cacerts`.
    fn authorities(&self) -> Vec<CertificateDer<'static>>;

    /// The chain for a request (PKCS#10 DER), the leaf first, with `life` to live.
    ///
    /// # Errors
    /// Why it is not signed.
    fn sign(&self, request: &[u8], life: Duration) -> Result<Vec<CertificateDer<'static>>, String>;
}

struct Shared {
    authority: Authority,
    options: Options,
    script: Mutex<VecDeque<Fault>>,
    log: Mutex<Vec<Asked>>,
    ahead: Mutex<Duration>,
}

/// A running server; it ends when dropped.
pub struct EstServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl EstServer {
    /// Makes the authority and listens.
    pub async fn start(options: Options) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        Self::start_for(options, None).await
    }

    /// As [`EstServer::start`], with certificates from `issuer`. The server itself is vouched for by [`EstServer::root_pem`]
    /// all the same.
    pub async fn start_for(
        options: Options,
        issuer: Option<Arc<dyn Issuer>>,
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let authority = Authority::new(issuer)?;
        let acceptor = TlsAcceptor::from(Arc::new(authority.tls()?));
        let listener = TcpListener::bind(options.listen).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            authority,
            options,
            script: Mutex::default(),
            log: Mutex::default(),
            ahead: Mutex::default(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, acceptor, shared.clone()));
        Ok(Self { address, shared, _tasks: tasks })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL, without the well-known path.
    pub fn url(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }

    /// The root that vouches for it, PEM.
    pub fn root_pem(&self) -> String {
        self.shared.authority.root_pem()
    }

    /// Spoils the next requests.
    pub fn script(&self, faults: impl IntoIterator<Item = Fault>) {
        locked(&self.shared.script).extend(faults);
    }

    /// What was asked so far.
    pub fn log(&self) -> Vec<Asked> {
        locked(&self.shared.log).clone()
    }

    /// Issues as if it were this much later.
    pub fn set_ahead(&self, ahead: Duration) {
        *locked(&self.shared.ahead) = ahead;
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => { connections.spawn(serve(socket, acceptor.clone(), shared.clone())); }
                Err(error) => tracing::warn!(%error, "enrolment server: accept failed"),
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(socket: TcpStream, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    let Ok(mut tls) = acceptor.accept(socket).await else { return };
    let mutual = tls.get_ref().1.peer_certificates().is_some();
    let Ok(request) = http::read(&mut tls).await else { return };
    let fault = locked(&shared.script).pop_front();
    if let Some(Fault::Slow(pause)) = &fault {
        tokio::time::sleep(*pause).await;
    }
    let answer = shared.answer(&request, mutual, fault.as_ref());
    let status = answer.as_ref().map_or(0, |answer| answer.status);
    locked(&shared.log).push(Asked {
        act: request.act().to_owned(),
        credentials: request.credentials(),
        mutual,
        body: request.body.clone(),
        status,
    });
    let answer = answer.filter(|_| fault != Some(Fault::LoseAnswer));
    if let Some(answer) = answer {
        let endless = fault == Some(Fault::Endless);
        if let Err(error) = http::write(&mut tls, &answer, endless).await {
            tracing::debug!(%error, "enrolment server: the client went away");
        }
    }
}

impl Shared {
    /// `None` hangs up.
    fn answer(&self, request: &Request, mutual: bool, fault: Option<&Fault>) -> Option<Answer> {
        match fault {
            Some(Fault::HangUp) => return None,
            Some(Fault::Pending(after)) => return Some(Answer::text(202, "waiting for approval").retry_after(*after)),
            Some(Fault::Unauthorized) => return Some(Answer::text(401, "who are you?")),
            Some(Fault::Broken) => return Some(Answer::text(500, "<h1>NullPointerException</h1>")),
            Some(Fault::Busy(after)) => return Some(Answer::text(503, "busy").retry_after(*after)),
            Some(Fault::Nonsense) => return Some(Answer::pkcs7("SGVsbG8=".to_owned())),
            _ => {}
        }
        let mut answer = match (request.method.as_str(), request.act()) {
            ("GET", "cacerts") => Answer::pkcs7(STANDARD.encode(self.authority.authorities())),
            ("POST", "simpleenroll")
                if !mutual
                    && self.options.credentials.is_some()
                    && request.credentials() != self.options.credentials =>
            {
                Answer::text(401, "wrong token")
            }
            ("POST", "simplereenroll") if !mutual => Answer::text(403, "show your certificate"),
            ("POST", "simpleenroll" | "simplereenroll") => self.grant(request, fault),
            _ => Answer::text(404, "not here"),
        };
        if fault == Some(&Fault::Truncated) {
            answer.body.truncate(answer.body.len() / 2);
        }
        Some(answer)
    }

    fn grant(&self, request: &Request, fault: Option<&Fault>) -> Answer {
        let text: String = request.body.chars().filter(|c| !c.is_whitespace()).collect();
        let Ok(der) = STANDARD.decode(text) else { return Answer::text(400, "no base64") };
        let ahead = *locked(&self.ahead);
        match self.authority.grant(&der, self.options.life, ahead, fault) {
            Ok(message) => Answer::pkcs7(STANDARD.encode(message)),
            Err(error) => Answer::text(400, &error.to_string()),
        }
    }
}
