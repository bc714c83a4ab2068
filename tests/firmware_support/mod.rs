//! What the firmware tests share: artifacts that really run, a web server that breaks, and a disk that dies.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use fieldgate::management::firmware::{
    Manifest, Offer, Policy, SigningKey, Source, TrustedKeys, Version, sha256_of_file,
};
use fieldgate::platform::durable::{Disk, Observer, Step};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A shell script of `size` bytes that answers `version`, as the real binary does.
pub fn script(version: &str, size: usize) -> Vec<u8> {
    let mut text = format!("#!/bin/sh\necho {version}\nexit 0\n").into_bytes();
    let filler = b"# 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abc\n";
    while text.len() + filler.len() <= size {
        text.extend_from_slice(filler);
    }
    text
}

/// A directory in memory where there is one: thousands of crashes need no real disk, they are simulated anyway.
pub fn fast_directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// A firmware builder: key, artifact, manifest.
pub struct Builder {
    pub key: SigningKey,
}

impl Builder {
    pub fn new() -> Self {
        Self { key: SigningKey::generate().unwrap() }
    }

    pub fn policy(&self) -> Policy {
        Policy { keys: TrustedKeys::from_pem(&self.key.public_pem()).unwrap(), limit: 16 * 1024 * 1024 }
    }

    pub fn manifest(&self, target: &str, version: &str, artifact: &Path) -> Manifest {
        let (size, sha256) = sha256_of_file(artifact).unwrap();
        Manifest {
            target: target.to_owned(),
            version: Version::parse(version).unwrap(),
            size,
            sha256,
            min_version: None,
        }
    }

    pub fn offer(&self, id: &str, manifest: &Manifest, source: Source) -> Offer {
        let manifest = manifest.sign(&self.key);
        Offer { id: id.to_owned(), manifest, source, allow_downgrade: false, in_window: false }
    }
}

pub fn file_url(path: &Path) -> Source {
    Source::Url(format!("file://{}", path.display()))
}

pub fn gateway() -> String {
    format!("gateway-{}", std::env::consts::ARCH)
}

/// How a machine stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// The process is killed: what was written stays.
    Kill,
    /// The power goes: what was not synced is gone, names included.
    PowerCut,
}

/// A disk that dies at the n-th step and then refuses everything; a power cut takes back what was not durable.
pub struct Mortal {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    left: Option<usize>,
    seen: usize,
    dead: bool,
    /// Length of each file when it was last synced.
    synced: BTreeMap<PathBuf, u64>,
    /// What a name meant when its directory was last synced.
    names: Vec<(PathBuf, Named)>,
}

enum Named {
    Nothing,
    File(Vec<u8>, u32),
    Link(PathBuf),
}

fn named(path: &Path) -> Named {
    match std::fs::symlink_metadata(path) {
        Err(_) => Named::Nothing,
        Ok(meta) if meta.is_symlink() => Named::Link(std::fs::read_link(path).unwrap()),
        Ok(meta) => Named::File(std::fs::read(path).unwrap(), meta.permissions().mode()),
    }
}

impl Mortal {
    pub fn after(steps: usize) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State { left: Some(steps), ..State::default() }) })
    }

    pub fn disk(self: &Arc<Self>) -> Disk {
        Disk::observed(self.clone())
    }

    pub fn is_dead(&self) -> bool {
        self.state.lock().unwrap().dead
    }

    /// Takes back what was not durable.
    pub fn lose_power(&self) {
        let mut state = self.state.lock().unwrap();
        for (path, length) in std::mem::take(&mut state.synced) {
            if let Ok(file) = std::fs::File::options().write(true).open(&path) {
                file.set_len(length.min(file.metadata().unwrap().len())).unwrap();
            }
        }
        while let Some((path, named)) = state.names.pop() {
            let _ = std::fs::remove_file(&path);
            match named {
                Named::Nothing => {}
                Named::Link(target) => std::os::unix::fs::symlink(target, &path).unwrap(),
                Named::File(bytes, mode) => {
                    std::fs::write(&path, bytes).unwrap();
                    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
                }
            }
        }
    }
}

impl Observer for Mortal {
    fn before(&self, step: Step<'_>) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        match &mut state.left {
            Some(0) => {
                state.dead = true;
                return Err(io::Error::other("the machine is dead"));
            }
            Some(left) => *left -= 1,
            None => {}
        }
        state.seen += 1;
        match step {
            Step::CreateDirectory(_) => {}
            Step::Create(path) | Step::Link(path) | Step::Remove(path) => {
                state.names.push((path.to_owned(), named(path)))
            }
            Step::Write(path) => {
                let length = std::fs::metadata(path).map_or(0, |meta| meta.len());
                state.synced.entry(path.to_owned()).or_insert(length);
            }
            Step::Sync(path) => {
                state.synced.remove(path);
            }
            Step::Rename { from, to } => {
                // A rename carries an unsynced file along under its new name.
                if let Some(length) = state.synced.remove(from) {
                    state.synced.insert(to.to_owned(), length);
                }
                state.names.push((from.to_owned(), named(from)));
                state.names.push((to.to_owned(), named(to)));
            }
            Step::SyncDirectory(directory) => state.names.retain(|(path, _)| path.parent() != Some(directory)),
        }
        Ok(())
    }
}

/// How the web server treats a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Web {
    /// As it should.
    Good,
    /// It ends the connection after that many bytes of the body.
    CutAfter(usize),
    /// It does not know ranges.
    NoRanges,
    /// It answers with this status.
    Status(u16),
}

/// Serves `body` on an ephemeral port; each request is treated by the next entry of `script`, then [`Web::Good`].
/// Returns the URL and the ranges that were asked for.
pub async fn web(body: Vec<u8>, script: Vec<Web>) -> (String, Arc<Mutex<Vec<usize>>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/firmware.bin", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = asked.clone();
    tokio::spawn(async move {
        let mut script = script.into_iter();
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.windows(4).any(|window| window == b"\r\n\r\n") {
                if socket.read_buf(&mut head).await.unwrap_or(0) == 0 {
                    break;
                }
            }
            let text = String::from_utf8_lossy(&head).to_lowercase();
            let range = text.split("range: bytes=").nth(1).and_then(|rest| rest.split('-').next()?.parse().ok());
            let offset: usize = range.unwrap_or(0);
            log.lock().unwrap().push(offset);
            let treat = script.next().unwrap_or(Web::Good);
            let (status, part) = match treat {
                Web::Status(status) => (status, &body[..0]),
                Web::NoRanges => (200, &body[..]),
                _ if offset > body.len() => (416, &body[..0]),
                _ if range.is_some() => (206, &body[offset..]),
                _ => (200, &body[..]),
            };
            let mut answer =
                format!("HTTP/1.1 {status} Scripted\r\nconnection: close\r\ncontent-length: {}\r\n", part.len());
            if status == 206 {
                answer.push_str(&format!("content-range: bytes {offset}-{}/{}\r\n", body.len() - 1, body.len()));
            }
            answer.push_str("\r\n");
            let sent = if let Web::CutAfter(bytes) = treat { &part[..bytes.min(part.len())] } else { part };
            let _ = socket.write_all(answer.as_bytes()).await;
            let _ = socket.write_all(sent).await;
            let _ = socket.shutdown().await;
        }
    });
    (url, asked)
}
