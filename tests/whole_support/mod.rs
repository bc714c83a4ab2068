//! **The gateway as its user runs it**: the real program with a configuration directory, its command line, and what the
//! judging servers and recorders need to be put around it.
//!
//! Times are short by default. `FIELDGATE_FULL=1` takes the full ones: a minute of measuring, a minute of outage.
#![allow(dead_code, unused_imports, reason = "each test binary uses its own part")]

mod device;
mod gate;
mod kills;
#[cfg(feature = "margo")]
pub mod margo;
mod shim;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

pub use device::{FakeDevice, Mode};
pub use gate::Gate;
pub use kills::{Chapter, Kills, tell};

use super::support::{Child, PythonServer, SOON, Subscriber, eventually, free_port, temp_dir};

/// `short`, or `full` when the environment says `FIELDGATE_FULL=1`.
pub fn sized<T>(short: T, full: T) -> T {
    let is_full = std::env::var("FIELDGATE_FULL").is_ok_and(|value| value == "1");
    if is_full { full } else { short }
}

/// A field as text; what is absent is empty.
pub fn said<'a>(body: &'a Value, field: &str) -> &'a str {
    body[field].as_str().unwrap_or_default()
}

/// A configuration directory, named `plant`, with an embedded broker on a port of its own.
pub struct Site {
    folder: tempfile::TempDir,
    port: u16,
}

impl Site {
    /// A site whose `fieldgate.toml` ends with `more`.
    pub fn new(more: &str) -> Self {
        let site = Self { folder: temp_dir(), port: free_port() };
        site.main_file(more);
        site
    }

    /// Writes `fieldgate.toml` anew.
    pub fn main_file(&self, more: &str) {
        let port = self.port;
        // Clients may command unless a test says who may what.
        let roles = match more.contains("[management") || more.contains("[[management") {
            true => "",
            false => "[[management.role]]\nidentity = \"mqtt:*\"\nrole = \"operator\"\n",
        };
        let text = format!(
            "[gateway]\nid = \"plant\"\n\n[[broker.listener]]\naddress = \"127.0.0.1:{port}\"\n\n{more}\n{roles}\n"
        );
        self.write("fieldgate.toml", &text);
    }

    /// Writes a file of the configuration.
    pub fn write(&self, name: &str, text: &str) {
        self.write_bytes(name, text.as_bytes());
    }

    /// Writes a file that is no text.
    pub fn write_bytes(&self, name: &str, text: &[u8]) {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(path.parent().expect("below the folder")).expect("writable");
        std::fs::write(path, text).expect("writable");
    }

    /// A Modbus TCP device in `devices/{id}.toml`; `points` are lines of `[[points]]` tables, `more` keys of `[modbus]`.
    pub fn device(&self, id: &str, port: u16, head: &str, more: &str, points: &str) {
        let text = format!("{head}\n[modbus]\nlink = \"tcp://127.0.0.1:{port}\"\nunit = 1\n{more}\n{points}\n");
        self.write(&format!("devices/{id}.toml"), &text);
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A file in the directory, as a text.
    pub fn file(&self, name: &str) -> String {
        self.path().join(name).display().to_string()
    }

    /// Runs the program, which must succeed; what it printed.
    pub fn done(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", errors(&output));
        text(&output)
    }

    /// The directory as a text.
    pub fn text(&self) -> String {
        self.folder.path().display().to_string()
    }

    /// Where the gateway keeps its data.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The embedded broker's port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The program with this configuration.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let built = env!("CARGO_BIN_EXE_fieldgate").into();
        let mut command = Command::new(std::env::var_os("FIELDGATE_PROGRAM").unwrap_or(built));
        command.arg("--config").arg(self.path()).args(arguments);
        command
    }

    /// Runs a command to its end.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the program starts")
    }

    /// Runs a command that must succeed and returns its JSON.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", errors(&output));
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{arguments:?} printed no JSON ({error}): {}", text(&output)))
    }

    /// Starts the gateway and waits until it serves.
    pub fn start(&self) -> Child {
        self.start_with(self.command(&["run"]))
    }

    /// As [`Site::start`], with a command that was prepared further.
    pub fn start_with(&self, command: Command) -> Child {
        let gateway = Child::spawn("fieldgate", command);
        gateway.wait_for("that it started", SOON, |line| line.contains("gateway started"));
        gateway
    }

    /// A recorder of telemetry that counts, on the embedded broker.
    pub fn recorder(&self, more: &[&str]) -> PythonServer {
        recorder(self.port, more)
    }

    /// A subscriber below the gateway's root, on the embedded broker.
    pub fn subscribe(&self, filter: &str) -> Subscriber {
        Subscriber::start(self.port, &format!("fieldgate/v1/plant/{filter}"), &[])
    }

    /// A subscriber to everything below the root of a gateway with another id than `plant`.
    pub fn subscribe_root(&self, gateway: &str) -> Subscriber {
        Subscriber::start(self.port, &format!("fieldgate/v1/{gateway}/#"), &[])
    }

    /// As [`Site::subscribe`], with further arguments of the client.
    pub fn subscribe_as(&self, filter: &str, more: &[&str]) -> Subscriber {
        Subscriber::start(self.port, &format!("fieldgate/v1/plant/{filter}"), more)
    }

    /// Waits for a state of a device in `fieldgate devices --json`.
    pub fn wait_for_state(&self, device: &str, state: &str) -> Value {
        eventually(&format!("{device} to be {state}"), SOON * 2, || {
            let all = self.json(&["devices", "--json"]);
            let found = all.as_array()?.iter().find(|line| line["device"] == device)?.clone();
            (found["state"] == state).then_some(found)
        })
    }
}

/// A recorder of telemetry that counts, on any broker.
pub fn recorder(port: u16, more: &[&str]) -> PythonServer {
    let port = port.to_string();
    let mut arguments = vec!["--counting", "--port", &port];
    arguments.extend(more);
    PythonServer::start("record.py", &arguments)
}

/// Standard output.
pub fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Standard error.
pub fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Asks the gateway to stop; it must do so in time and without an error.
pub fn stop(gateway: Child) {
    gateway.signal(Signal::TERM);
    let began = std::time::Instant::now();
    let mut gateway = gateway;
    let status = gateway.wait(SOON);
    assert!(status.success(), "{status}; its last lines:\n{}", tail(&gateway));
    assert!(began.elapsed() < Duration::from_secs(6), "the stop took {:?}", began.elapsed());
}

/// The last lines of a process.
pub fn tail(child: &Child) -> String {
    let lines = child.lines();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// The JSON of a message.
pub fn body(payload: &[u8]) -> Value {
    serde_json::from_slice(payload).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(payload)))
}

/// One read in the journal of a judging plant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    /// Name of the device.
    pub device: String,
    /// First register.
    pub first: u32,
    /// Its number.
    pub n: i64,
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
}

/// The journal; `stats` must have been asked before, so that it is complete.
pub fn journal(path: &Path) -> Vec<Read> {
    let text = std::fs::read_to_string(path).expect("the plant keeps a journal");
    let read = |line: &str| {
        let fields: Vec<i64> = line.split(',').map(|field| field.parse().expect("a number")).collect();
        Read { device: format!("plc-{:02}", fields[0]), first: fields[1] as u32, n: fields[3], at_ms: fields[4] }
    };
    text.lines().map(read).collect()
}

/// Nothing was done twice by an audit log: a request is written down once for each thing that it did.
pub fn done_once(name: &str, audit: &[Value]) {
    let mut requests: BTreeMap<(&str, &str, &str), usize> = BTreeMap::new();
    // What was refused or only asked back is not remembered, so that it may stand there as often as it was sent.
    for entry in audit.iter().filter(|e| !said(e, "correlationId").is_empty() && said(e, "outcome") == "done") {
        *requests.entry((said(entry, "correlationId"), said(entry, "action"), said(entry, "object"))).or_default() += 1;
    }
    let twice: Vec<_> = requests.iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.is_empty(), "{name}: written down twice: {twice:?}");
}

/// Milliseconds since 1970.
pub fn now_ms() -> i64 {
    fieldgate::platform::clock::Clock::wall_ms(&fieldgate::platform::clock::SystemClock::default())
}
