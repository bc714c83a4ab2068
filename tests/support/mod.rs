//! **Harness of the integration tests**: child processes that never outlive their test, brokers and servers that nobody
//! here wrote, and waiting for events with deadlines.
//!
//! Everything listens on loopback on ports that the system chose, and lives in a temporary directory. Nothing here
//! knows the gateway's insides. `tests/run` installs what is needed; without it a test fails and says so.
#![allow(dead_code, unused_imports, reason = "each test binary uses its own part")]

mod mosquitto;
mod process;
mod python;
mod serial;

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

pub use mosquitto::{Message, Mosquitto, Subscriber, publish};
pub use process::Child;
pub use python::{PythonServer, interpreter as python};
pub use serial::PtyPair;

/// Generous: only a test that fails waits this long. Machines that build at the same time are slow.
pub const SOON: Duration = Duration::from_secs(20);

/// A loopback port that nobody listens on now. Somebody may take it before it is used; callers retry or fail loudly.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback gives a port");
    listener.local_addr().expect("bound").port()
}

/// A directory that vanishes with its value.
pub fn temp_dir() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("fieldgate-test-").tempdir().expect("the system's temporary directory is writable")
}

/// The repository.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Looks every 10 ms until `look` finds something. For states that cannot be awaited; fails with `what` after `limit`.
pub fn eventually<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < limit, "waited {limit:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// As [`eventually`], inside a tokio runtime.
pub async fn eventually_async<T>(what: &str, limit: Duration, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(began.elapsed() < limit, "waited {limit:?} in vain for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until something accepts connections on a loopback port.
pub fn wait_for_port(port: u16, limit: Duration) {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    eventually(&format!("a listener on {address}"), limit, || {
        TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok().map(drop)
    });
}

/// The path of a program that a test needs.
pub fn program(name: &str) -> PathBuf {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("this test needs `{name}`; run tests/run, which installs it"))
}
