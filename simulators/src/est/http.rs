//! As much of HTTP/1.1 as an enrolment needs: one request, one answer, end of the connection.

use std::io;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const MAX: usize = 64 * 1024;

pub(super) struct Request {
    pub method: String,
    pub path: String,
    headers: Vec<(String, String)>,
    pub body: String,
}

pub(super) struct Answer {
    pub status: u16,
    headers: Vec<(&'static str, String)>,
    pub body: String,
}

impl Request {
    pub fn act(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub fn credentials(&self) -> Option<(String, String)> {
        let encoded = self.header("authorization")?.strip_prefix("Basic ")?;
        let text = String::from_utf8(STANDARD.decode(encoded).ok()?).ok()?;
        let (user, password) = text.split_once(':')?;
        Some((user.to_owned(), password.to_owned()))
    }
}

impl Answer {
    pub fn text(status: u16, text: &str) -> Self {
        Self { status, headers: vec![("content-type", "text/plain".to_owned())], body: text.to_owned() }
    }

    pub fn pkcs7(body: String) -> Self {
        let kind = "application/pkcs7-mime; smime-type=certs-only".to_owned();
        let headers = vec![("content-type", kind), ("content-transfer-encoding", "base64".to_owned())];
        Self { status: 200, headers, body }
    }

    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.headers.push(("retry-after", seconds.to_string()));
        self
    }
}

pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Request> {
    let broken = || io::Error::from(io::ErrorKind::InvalidData);
    let mut bytes = Vec::new();
    let head = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at;
        }
        if bytes.len() > MAX || stream.read_buf(&mut bytes).await? == 0 {
            return Err(broken());
        }
    };
    let text = String::from_utf8(bytes[..head].to_vec()).map_err(|_| broken())?;
    let mut lines = text.split("\r\n");
    let mut first = lines.next().unwrap_or_default().split(' ');
    let (method, path) = (first.next().unwrap_or_default().to_owned(), first.next().unwrap_or_default().to_owned());
    let headers =
        lines.filter_map(|line| line.split_once(':')).map(|(key, value)| (key.to_owned(), value.trim().to_owned()));
    let mut request = Request { method, path, headers: headers.collect(), body: String::new() };
    let length: usize = request.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut body = bytes.split_off(head + 4);
    while body.len() < length {
        if length > MAX || stream.read_buf(&mut body).await? == 0 {
            return Err(broken());
        }
    }
    request.body = String::from_utf8(body).map_err(|_| broken())?;
    Ok(request)
}

pub(super) async fn write(stream: &mut (impl AsyncWrite + Unpin), answer: &Answer, endless: bool) -> io::Result<()> {
    let mut head = format!("HTTP/1.1 {} Scripted\r\nconnection: close\r\n", answer.status);
    for (key, value) in &answer.headers {
        head.push_str(&format!("{key}: {value}\r\n"));
    }
    if !endless {
        head.push_str(&format!("content-length: {}\r\n", answer.body.len()));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(answer.body.as_bytes()).await?;
    if endless {
        // Ends with an error when the client has had enough.
        loop {
            stream.write_all(&[b'A'; 16 * 1024]).await?;
        }
    }
    stream.flush().await?;
    stream.shutdown().await
}
