//! A TCP proxy that can cut, swallow or delay what passes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(dead_code)]
pub enum Mode {
    Pass,
    /// Connections stay open, nothing passes.
    Swallow,
    /// One byte at a time.
    Slices,
    /// Every chunk waits.
    Delay(Duration),
}

pub struct Proxy {
    pub port: u16,
    cut: watch::Sender<u64>,
    mode: Arc<watch::Sender<Mode>>,
    task: tokio::task::JoinHandle<()>,
}

#[allow(dead_code)]
impl Proxy {
    pub async fn start(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (cut, cut_seen) = watch::channel(0);
        let mode = Arc::new(watch::channel(Mode::Pass).0);
        let modes = mode.clone();
        let task = tokio::spawn(async move {
            loop {
                let Ok((client, _)) = listener.accept().await else { return };
                let target = SocketAddr::from(([127, 0, 0, 1], target));
                let (mut cut, modes) = (cut_seen.clone(), modes.clone());
                cut.mark_unchanged();
                tokio::spawn(async move {
                    let Ok(server) = TcpStream::connect(target).await else { return };
                    let (client_in, client_out) = client.into_split();
                    let (server_in, server_out) = server.into_split();
                    tokio::select! {
                        () = pass(client_in, server_out, modes.subscribe()) => {}
                        () = pass(server_in, client_out, modes.subscribe()) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        Self { port, cut, mode, task }
    }

    /// Closes every connection that there is.
    pub fn cut(&self) {
        self.cut.send_modify(|n| *n += 1);
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut mode: watch::Receiver<Mode>) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        let now = *mode.borrow_and_update();
        let done = match now {
            Mode::Pass => to.write_all(&buffer[..n]).await.is_ok(),
            Mode::Delay(by) => {
                tokio::time::sleep(by).await;
                to.write_all(&buffer[..n]).await.is_ok()
            }
            Mode::Slices => {
                let mut ok = true;
                for byte in &buffer[..n] {
                    ok = ok && to.write_all(std::slice::from_ref(byte)).await.is_ok() && to.flush().await.is_ok();
                    tokio::task::yield_now().await;
                }
                ok
            }
            Mode::Swallow => {
                mode.wait_for(|m| *m != Mode::Swallow).await.is_ok() && to.write_all(&buffer[..n]).await.is_ok()
            }
        };
        if !done {
            return;
        }
    }
}
