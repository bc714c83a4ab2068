//! Servers in Python, around packages that nobody here wrote. They live in `tests/servers/`, print `ready` with what a
//! test must know as JSON, take commands on standard input and end when it closes.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::{Child, SOON, root};

/// A running server.
pub struct PythonServer {
    child: Child,
    ready: Value,
    read: usize,
}

impl PythonServer {
    /// Starts `tests/servers/{script}` and waits for its line `ready {json}`.
    pub fn start(script: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new(interpreter());
        command.arg("-u").arg(root().join("tests/servers").join(script)).args(arguments);
        let child = Child::spawn(script, command);
        let (read, line) = child.wait_for_after(0, "that it is ready", SOON * 2, |line| line.starts_with("ready"));
        let ready = serde_json::from_str(line["ready".len()..].trim()).unwrap_or(Value::Null);
        Self { child, ready, read }
    }

    /// What the server said about itself, such as its ports.
    pub fn ready(&self) -> &Value {
        &self.ready
    }

    /// The ports in its `ready` line.
    pub fn ports(&self) -> Vec<u16> {
        let ports = self.ready["ports"].as_array().expect("the server names its ports");
        ports.iter().map(|port| port.as_u64().and_then(|port| port.try_into().ok()).expect("a port")).collect()
    }

    /// Sends a command and returns the JSON of its answer.
    pub fn ask(&mut self, command: &str) -> Value {
        self.ask_within(command, SOON)
    }

    /// As [`PythonServer::ask`], for answers that take longer.
    pub fn ask_within(&mut self, command: &str, limit: Duration) -> Value {
        self.child.say(command);
        let (read, line) =
            self.child.wait_for_after(self.read, &format!("an answer to `{command}`"), limit, |l| l.starts_with('{'));
        self.read = read;
        serde_json::from_str(&line).expect("the answer is JSON")
    }

    /// The process.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Kills it, as a device that loses power.
    pub fn kill(self) {
        self.child.kill();
    }
}

/// The interpreter that `tests/run` prepared, with the packages of `tests/requirements.txt`.
pub fn interpreter() -> PathBuf {
    let prepared = std::env::var_os("FIELDGATE_PYTHON").map(PathBuf::from);
    let path = prepared.unwrap_or_else(|| root().join("target/test-venv/bin/python"));
    assert!(path.is_file(), "this test needs {}; run tests/run, which prepares it", path.display());
    path
}
