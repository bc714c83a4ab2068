//! **Discovery and trust bundles** over ordinary HTTPS: `/.well-known/margo` names the trust domain and where the bundle
//! is, `/bundle` is the authority's SPIFFE bundle as it is at that moment.
//!
//! Its certificate comes from an authority of its own, as the web's do: a client's first contact rests on that anchor and
//! the DNS name, or on a pin of the public key.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::http::{Answer, Ask, Down, Listener, Serve};
use super::scripted::{Scripted, Times};
use super::tls::{self, Identity, TlsVersions};
use super::tools::locked;
use super::{Authority, MargoSimError, Svid};

const BUNDLE_PATH: &str = "/bundle";
const DISCOVERY_PATH: &str = "/.well-known/margo";
/// Requests that are kept in the log.
const KEPT: usize = 10_000;

/// What goes wrong with the bundle or with discovery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "fault", rename_all = "kebab-case")]
pub enum DiscoveryFault {
    /// The bundle's sequence is 0, below any that was served.
    LowerSequence,
    /// The bundle has no keys.
    Empty,
    /// The bundle has keys for JWTs only.
    OnlyJwt,
    /// The bundle is no JSON.
    Garbage,
    /// A key of the bundle holds no certificate.
    BadKey,
    /// The bundle has no `spiffe_sequence` and no `spiffe_refresh_hint`.
    Bare,
    /// The bundle is mebibytes of blanks and then right.
    Huge {
        /// Mebibytes.
        mebibytes: usize,
    },
    /// Discovery names another trust domain.
    OtherDomain,
    /// Discovery names the bundle by `http:`.
    PlainHttp,
    /// Discovery is no JSON.
    DiscoveryGarbage,
    /// Everything is answered with this status.
    Status {
        /// HTTP status.
        status: u16,
    },
    /// The answer comes later.
    Latency {
        /// Milliseconds.
        ms: u64,
    },
    /// The bundle ends early.
    Truncate {
        /// After so many bytes.
        bytes: usize,
    },
}

impl DiscoveryFault {
    fn fits(&self, path: &str) -> bool {
        match self {
            Self::OtherDomain | Self::PlainHttp | Self::DiscoveryGarbage => path == DISCOVERY_PATH,
            Self::Status { .. } | Self::Latency { .. } => true,
            _ => path == BUNDLE_PATH,
        }
    }
}

/// The certificate that the server shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WebCertificate {
    /// The right one. Every time another key, so that a pin of the one before fails.
    #[default]
    Right,
    /// For another name.
    OtherName,
    /// From an authority that nobody trusts.
    Stranger,
}

struct Shared {
    authority: Arc<Authority>,
    faults: Mutex<Scripted<DiscoveryFault>>,
    log: Mutex<Vec<(String, u16)>>,
}

/// A running server; it ends when dropped.
pub struct Discovery {
    listener: Listener,
    identity: Arc<Identity>,
    web: Arc<Authority>,
    shown: Mutex<Svid>,
    shared: Arc<Shared>,
}

impl Discovery {
    /// Serves the authority's bundle.
    pub async fn start(listen: SocketAddr, authority: Arc<Authority>) -> Result<Self, MargoSimError> {
        let web = Authority::new("web.example")?;
        let svid = web.server_certificate(&["localhost", "127.0.0.1", "::1"])?;
        let identity = Identity::new(&svid)?;
        let config = tls::server(identity.clone(), TlsVersions::Both)?;
        let shared = Arc::new(Shared { authority, faults: Mutex::default(), log: Mutex::default() });
        let listener = Listener::start(listen, Some(config), shared.clone()).await?;
        Ok(Self { listener, identity, web, shown: Mutex::new(svid), shared })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    /// Its origin, by DNS name.
    pub fn url(&self) -> String {
        format!("https://localhost:{}", self.address().port())
    }

    /// Where the bundle is.
    pub fn bundle_url(&self) -> String {
        self.url() + BUNDLE_PATH
    }

    /// The anchor of its certificate, PEM.
    pub fn roots_pem(&self) -> String {
        self.web.roots_pem()
    }

    /// Base64 of the SHA-256 of its SubjectPublicKeyInfo, as of now.
    pub fn pin(&self) -> String {
        let shown = locked(&self.shown);
        let info = X509Certificate::from_der(&shown.chain[0]).map(|(_, leaf)| leaf.public_key().raw.to_vec());
        STANDARD.encode(ring::digest::digest(&ring::digest::SHA256, &info.unwrap_or_default()))
    }

    /// Adds a fault.
    pub fn inject(&self, fault: impl Into<Times<DiscoveryFault>>) {
        locked(&self.shared.faults).add(fault.into());
    }

    /// The faults in force.
    pub fn faults(&self) -> Vec<Times<DiscoveryFault>> {
        locked(&self.shared.faults).all().to_vec()
    }

    /// Takes all faults back.
    pub fn clear_faults(&self) {
        locked(&self.shared.faults).clear();
    }

    /// Goes down or comes back, on the same port. Returns when it is so.
    pub async fn set_down(&self, down: Down) -> Result<(), MargoSimError> {
        self.listener.set_down(down).await
    }

    /// Shows a fresh certificate to new connections.
    pub fn serve(&self, certificate: WebCertificate) -> Result<(), MargoSimError> {
        const NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];
        let svid = match certificate {
            WebCertificate::Right => self.web.server_certificate(&NAMES)?,
            WebCertificate::OtherName => self.web.server_certificate(&["elsewhere.example"])?,
            WebCertificate::Stranger => Authority::new("stranger.example")?.server_certificate(&NAMES)?,
        };
        self.identity.serve(&svid)?;
        *locked(&self.shown) = svid;
        Ok(())
    }

    /// Paths and statuses so far, oldest first.
    pub fn log(&self) -> Vec<(String, u16)> {
        locked(&self.shared.log).clone()
    }
}

impl Serve for Shared {
    fn answer(&self, ask: &Ask) -> Answer {
        let faults = locked(&self.faults).take(|fault| fault.fits(&ask.path));
        let mut answer = match (ask.method.as_str(), ask.path.as_str()) {
            ("GET", DISCOVERY_PATH) => self.discovery(ask, &faults),
            ("GET", BUNDLE_PATH) => self.bundle(&faults),
            _ => Answer::with(404, "text/plain", "nothing here"),
        };
        for fault in &faults {
            match fault {
                DiscoveryFault::Status { status } => answer = Answer::with(*status, "text/plain", "scripted"),
                DiscoveryFault::Latency { ms } => answer.manner.latency = Duration::from_millis(*ms),
                DiscoveryFault::Truncate { bytes } => answer.manner.truncate = Some(*bytes),
                _ => {}
            }
        }
        let mut log = locked(&self.log);
        if log.len() < KEPT {
            log.push((ask.path.clone(), answer.status));
        }
        answer
    }
}

impl Shared {
    fn discovery(&self, ask: &Ask, faults: &[DiscoveryFault]) -> Answer {
        if faults.contains(&DiscoveryFault::DiscoveryGarbage) {
            return Answer::with(200, "application/json", "{ \"trustDomain\":");
        }
        let other = faults.contains(&DiscoveryFault::OtherDomain);
        let domain = if other { "elsewhere.example" } else { self.authority.trust_domain() };
        let scheme = if faults.contains(&DiscoveryFault::PlainHttp) { "http" } else { "https" };
        let host = ask.header("host").unwrap_or("localhost");
        let uri = format!("{scheme}://{host}{BUNDLE_PATH}");
        Answer::json(200, &json!({ "trustDomain": domain, "trustBundleUri": uri }))
    }

    fn bundle(&self, faults: &[DiscoveryFault]) -> Answer {
        let mut bundle = self.authority.bundle();
        let mut before = String::new();
        for fault in faults {
            match fault {
                DiscoveryFault::LowerSequence => bundle["spiffe_sequence"] = json!(0),
                DiscoveryFault::Empty => bundle["keys"] = json!([]),
                DiscoveryFault::OnlyJwt => {
                    if let Some(keys) = bundle["keys"].as_array_mut() {
                        keys.retain(|key| key["use"] != "x509-svid");
                    }
                }
                DiscoveryFault::BadKey => bundle["keys"][0]["x5c"] = json!(["AAAA"]),
                DiscoveryFault::Bare => {
                    if let Value::Object(fields) = &mut bundle {
                        fields.retain(|key, _| key == "keys");
                    }
                }
                DiscoveryFault::Garbage => return Answer::with(200, "application/json", "<html>not here</html>"),
                DiscoveryFault::Huge { mebibytes } => before = " ".repeat(mebibytes * 1024 * 1024),
                _ => {}
            }
        }
        Answer::with(200, "application/json", before + &bundle.to_string())
    }
}
