//! An HTTPS client by hand: one connection per call, any server certificate (which is kept to be looked at).
#![allow(dead_code, reason = "each test file uses its part of this")]

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fieldgate_simulators::margo::{Authority, Flaw, Svid, Wfm};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

pub const PATIENCE: Duration = Duration::from_secs(60);
pub const MANIFEST: (&str, &str) = ("Accept", "application/vnd.margo.manifest.v1+json");

/// An answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Whether the body is as long as promised.
    pub complete: bool,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    pub fn problem(&self) -> (u16, String) {
        let kind = self.json()["type"].as_str().expect("type").to_owned();
        (self.status, kind.rsplit(['/', '#']).next().expect("a segment").to_owned())
    }
}

/// Somebody who calls.
#[derive(Debug, Clone)]
pub struct Caller {
    pub address: SocketAddr,
    pub prefix: String,
    pub svid: Option<Svid>,
    pub versions: &'static [&'static rustls::SupportedProtocolVersion],
    pub seen: Arc<Mutex<Vec<CertificateDer<'static>>>>,
}

impl Caller {
    /// A client of a fleet manager.
    pub fn client(wfm: &Wfm, authority: &Authority, client: &str) -> Self {
        let svid = authority.client_svid(wfm.id(), client, Duration::from_secs(3600), Flaw::None).unwrap();
        Self { svid: Some(svid), prefix: wfm.options().prefix.clone(), ..Self::stranger(wfm.address()) }
    }

    /// Somebody without a certificate.
    pub fn stranger(address: SocketAddr) -> Self {
        let versions = rustls::ALL_VERSIONS;
        Self { address, prefix: String::new(), svid: None, versions, seen: Arc::default() }
    }

    pub async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Reply {
        self.call("GET", path, headers, b"").await.expect("an answer")
    }

    pub async fn send(&self, method: &str, path: &str, body: &Value) -> Reply {
        let json = [("Content-Type", "application/json")];
        self.call(method, path, &json, body.to_string().as_bytes()).await.expect("an answer")
    }

    pub async fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<Reply> {
        let request = self.request(method, path, headers, body);
        let call = async {
            let socket = TcpStream::connect(self.address).await?;
            let name = ServerName::from(self.address.ip());
            let tls = TlsConnector::from(Arc::new(self.config())).connect(name, socket).await?;
            exchange(tls, &request).await
        };
        tokio::time::timeout(PATIENCE, call).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    /// The same without TLS.
    pub async fn plain(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<Reply> {
        let request = self.request(method, path, headers, body);
        let call = async { exchange(TcpStream::connect(self.address).await?, &request).await };
        tokio::time::timeout(PATIENCE, call).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
        let mut request = format!("{method} {}{path} HTTP/1.1\r\nHost: {}\r\n", self.prefix, self.address);
        request += &format!("Connection: close\r\nContent-Length: {}\r\n", body.len());
        for (name, value) in headers {
            request += &format!("{name}: {value}\r\n");
        }
        [request.as_bytes(), b"\r\n", body].concat()
    }

    fn config(&self) -> ClientConfig {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(self.versions)
            .expect("versions")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody(self.seen.clone())));
        match &self.svid {
            Some(svid) => config.with_client_auth_cert(svid.chain.clone(), svid.key.clone_key()).expect("a key"),
            None => config.with_no_client_auth(),
        }
    }
}

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &[u8]) -> io::Result<Reply> {
    stream.write_all(request).await?;
    let mut bytes = Vec::new();
    let end = stream.read_to_end(&mut bytes).await;
    let Some(head) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Err(end.err().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into()));
    };
    let text = String::from_utf8_lossy(&bytes[..head]).into_owned();
    let mut lines = text.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).expect("a status line");
    let headers: Vec<(String, String)> =
        lines.filter_map(|line| line.split_once(": ")).map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    let mut reply = Reply { status, headers, body: bytes[head + 4..].to_vec(), complete: true };
    let promised = reply.header("content-length").map_or(reply.body.len(), |length| length.parse().expect("a length"));
    reply.complete = promised == reply.body.len() || status == 304;
    Ok(reply)
}

/// Takes any certificate, and keeps it.
#[derive(Debug)]
struct Anybody(Arc<Mutex<Vec<CertificateDer<'static>>>>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.0.lock().unwrap().push(leaf.clone().into_owned());
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Capabilities of a device that hosts nothing.
pub fn capabilities(id: &str) -> Value {
    serde_json::json!({
        "properties": { "id": id, "vendor": "Vendor", "modelNumber": "Model", "serialNumber": format!("S-{}", id.len()) }
    })
}

/// Reports a device, which must be taken.
pub async fn report(caller: &Caller, id: &str) {
    let reply = caller.send("PUT", &format!("/api/v1/capabilities/{id}"), &capabilities(id)).await;
    assert!(matches!(reply.status, 200 | 201), "{id}: {} {}", reply.status, String::from_utf8_lossy(&reply.body));
}
