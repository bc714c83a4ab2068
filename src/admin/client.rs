//! The command line's side of the socket.

use std::io;
use std::path::{Path, PathBuf};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::address::Address;
use super::{Answer, Request, SOCKET};

/// Why the running gateway could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Nothing listens on the socket.
    #[error("no gateway is running with data directory {0} (start it with `fieldgate run`)")]
    NotRunning(PathBuf),
    /// The socket belongs to somebody else.
    #[error("not allowed to open {0}: use the user that runs the gateway, or root")]
    Forbidden(PathBuf),
    /// The gateway went away in the middle.
    #[error("the gateway closed the connection")]
    Closed,
    /// The gateway answered with an error.
    #[error("{0}")]
    Refused(String),
    /// Anything else.
    #[error("talk to the gateway at {path}: {source}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
}

/// A connection to the gateway that runs on this machine.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    lines: Lines<BufReader<OwnedReadHalf>>,
    write: OwnedWriteHalf,
}

impl Client {
    /// Connects to the gateway that uses `data_dir`.
    pub async fn connect(data_dir: &Path) -> Result<Self, AdminError> {
        let path = data_dir.join(SOCKET);
        let fail = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => AdminError::NotRunning(data_dir.to_owned()),
            io::ErrorKind::PermissionDenied => AdminError::Forbidden(path.clone()),
            _ => AdminError::Io { path: path.clone(), source },
        };
        let address = Address::of(&path).map_err(fail)?;
        let stream = UnixStream::connect(address.path()).await.map_err(fail)?;
        let (read, write) = stream.into_split();
        Ok(Self { path, lines: BufReader::new(read).lines(), write })
    }

    /// Sends a request and returns its (first) answer.
    pub async fn ask(&mut self, request: &Request) -> Result<Answer, AdminError> {
        let mut line = serde_json::to_vec(request).expect("requests have string keys");
        line.push(b'\n');
        self.write.write_all(&line).await.map_err(|source| self.io(source))?;
        self.next().await?.ok_or(AdminError::Closed)
    }

    /// The next answer of a stream; `None` at its end.
    pub async fn next(&mut self) -> Result<Option<Answer>, AdminError> {
        let Some(line) = self.lines.next_line().await.map_err(|source| self.io(source))? else { return Ok(None) };
        match serde_json::from_str(&line).map_err(|e| self.io(e.into()))? {
            Answer::Error { error } => Err(AdminError::Refused(error)),
            answer => Ok(Some(answer)),
        }
    }

    fn io(&self, source: io::Error) -> AdminError {
        AdminError::Io { path: self.path.clone(), source }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::mpsc;

    use super::*;
    use crate::admin::{Reply, Service, bind, serve};

    struct Echo;

    impl Service for Echo {
        async fn answer(&self, _: u32, request: Request) -> Reply {
            match request {
                Request::Tail { .. } => {
                    let (send, receive) = mpsc::channel(4);
                    for count in 1..=3 {
                        send.send(Answer::Skipped { count }).await.unwrap();
                    }
                    Reply::Stream(receive)
                }
                other => Reply::One(Answer::Text { text: format!("{other:?}") }),
            }
        }
    }

    async fn connect(dir: &Path) -> Client {
        loop {
            match Client::connect(dir).await {
                Ok(client) => return client,
                Err(AdminError::NotRunning(_)) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    }

    #[tokio::test]
    async fn a_data_directory_may_lie_deeper_than_a_socket_s_address_reaches() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(100)).join("e".repeat(100));
        assert!(matches!(Client::connect(&deep).await, Err(AdminError::NotRunning(_))));
        std::fs::create_dir_all(&deep).unwrap();
        let server = tokio::spawn(serve(bind(&deep.join(SOCKET)).unwrap(), Arc::new(Echo)));
        let answer = connect(&deep).await.ask(&Request::Devices).await.unwrap();
        assert_eq!(answer, Answer::Text { text: "Devices".into() });
        server.abort();
    }

    #[tokio::test]
    async fn requests_are_answered_streams_end_and_garbage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(SOCKET);
        assert!(matches!(Client::connect(dir.path()).await, Err(AdminError::NotRunning(_))));
        let server = tokio::spawn(serve(bind(&path).unwrap(), Arc::new(Echo)));

        let mut client = connect(dir.path()).await;
        assert_eq!(client.ask(&Request::Devices).await.unwrap(), Answer::Text { text: "Devices".into() });
        client.write.write_all(b"{\"ask\":\"nonsense\"}\n").await.unwrap();
        assert!(matches!(client.next().await, Err(AdminError::Refused(e)) if e.contains("nonsense")));
        assert_eq!(
            client.ask(&Request::Tail { device: None, point: None }).await.unwrap(),
            Answer::Skipped { count: 1 }
        );
        assert_eq!(client.next().await.unwrap(), Some(Answer::Skipped { count: 2 }));
        assert_eq!(client.next().await.unwrap(), Some(Answer::Skipped { count: 3 }));
        assert_eq!(client.next().await.unwrap(), None);
        server.abort();
    }

    #[tokio::test]
    async fn an_endless_request_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(SOCKET);
        let server = tokio::spawn(serve(bind(&path).unwrap(), Arc::new(Echo)));
        let mut client = connect(dir.path()).await;
        let flood = vec![b'x'; 1_100_000];
        let _ = client.write.write_all(&flood).await;
        assert!(matches!(client.next().await, Err(AdminError::Refused(e)) if e.contains("longer than")));
        server.abort();
    }
}
