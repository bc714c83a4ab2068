//! The gateway's side of the socket.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::address::Address;
use super::{Answer, Reply, Request, Service};

const MAX_REQUEST: u64 = 1024 * 1024;
const MAX_CLIENTS: usize = 16;
const WRITE_LIMIT: Duration = Duration::from_secs(5);
const READ_LIMIT: Duration = Duration::from_secs(30);

/// Why the socket cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("serve the admin socket {path}: {source}")]
pub struct ServeError {
    path: PathBuf,
    source: io::Error,
}

/// Opens the socket at `path`: from now on clients can connect. One left by a dead process is replaced.
pub fn bind(path: &Path) -> Result<UnixListener, ServeError> {
    let fail = |source| ServeError { path: path.to_owned(), source };
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(error)),
        _ => {}
    }
    let listener = Address::of(path).and_then(|address| UnixListener::bind(address.path())).map_err(fail)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(fail)?;
    Ok(listener)
}

/// Serves `service` until the future is dropped.
pub async fn serve(listener: UnixListener, service: Arc<impl Service>) {
    let seats = Arc::new(Semaphore::new(MAX_CLIENTS));
    let mut clients = tokio::task::JoinSet::new();
    loop {
        let (stream, _) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "admin socket: accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        while clients.try_join_next().is_some() {}
        let Ok(seat) = seats.clone().try_acquire_owned() else { continue };
        let service = service.clone();
        clients.spawn(async move {
            let _seat = seat;
            if let Err(error) = talk(stream, service).await {
                tracing::debug!(%error, "admin client left");
            }
        });
    }
}

async fn talk(stream: UnixStream, service: Arc<impl Service>) -> io::Result<()> {
    let uid = stream.peer_cred()?.uid();
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).take(MAX_REQUEST);
    let mut line = String::new();
    loop {
        line.clear();
        lines.set_limit(MAX_REQUEST);
        if timeout(READ_LIMIT, lines.read_line(&mut line)).await?? == 0 {
            return Ok(());
        }
        if !line.ends_with('\n') {
            let error = format!("request is longer than {MAX_REQUEST} bytes or was cut off");
            return send(&mut write, &Answer::Error { error }).await;
        }
        let reply = match serde_json::from_str::<Request>(&line) {
            Ok(request) => service.answer(uid, request).await,
            Err(error) => Reply::One(Answer::Error { error: format!("not a request: {error}") }),
        };
        match reply {
            Reply::One(answer) => send(&mut write, &answer).await?,
            Reply::Stream(mut answers) => {
                // A client that hangs up while a stream is quiet must not keep its seat.
                loop {
                    let mut probe = [0u8; 1];
                    tokio::select! {
                        answer = answers.recv() => match answer {
                            Some(answer) => send(&mut write, &answer).await?,
                            None => return Ok(()),
                        },
                        _ = lines.read(&mut probe) => return Ok(()),
                    }
                }
            }
        }
    }
}

async fn send(write: &mut (impl AsyncWriteExt + Unpin), answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    timeout(WRITE_LIMIT, write.write_all(&line)).await?
}
