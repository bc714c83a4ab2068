//! Eclipse Mosquitto: the broker that the embedded one is compared with, and its command line clients.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::{Child, SOON, free_port, program, temp_dir};

/// A broker with its own configuration and directory.
pub struct Mosquitto {
    child: Option<Child>,
    port: u16,
    config: PathBuf,
    folder: tempfile::TempDir,
}

impl Mosquitto {
    /// A broker for anybody on loopback, without persistence.
    pub fn start() -> Self {
        Self::with_config("allow_anonymous true\npersistence false\n")
    }

    /// A broker with further configuration lines; `{dir}` in them stands for its directory.
    pub fn with_config(lines: &str) -> Self {
        Self::with_files(lines, &[])
    }

    /// As [`Mosquitto::with_config`], with files in its directory, as (name, content).
    pub fn with_files(lines: &str, files: &[(&str, &str)]) -> Self {
        let folder = temp_dir();
        for (name, content) in files {
            std::fs::write(folder.path().join(name), content).expect("the temporary directory is writable");
        }
        let config = folder.path().join("mosquitto.conf");
        let lines = lines.replace("{dir}", &folder.path().display().to_string());
        // Another process may take the port between choosing and binding it.
        for _ in 0..5 {
            let port = free_port();
            // `user` has no effect unless it is root, who would otherwise become a user that cannot read the directory.
            let head =
                format!("listener {port} 127.0.0.1\nuser root\nlog_dest stderr\nlog_type all\nset_tcp_nodelay true\n");
            std::fs::write(&config, head + &lines).expect("the temporary directory is writable");
            if let Some(child) = run(&config) {
                return Self { child: Some(child), port, config, folder };
            }
        }
        panic!("mosquitto did not find a free port in five attempts");
    }

    /// Its port on loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its directory.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Stops it in order.
    pub fn stop(&mut self) {
        if let Some(child) = self.child.take() {
            child.terminate(SOON);
        }
    }

    /// Kills it.
    pub fn kill(&mut self) {
        if let Some(child) = self.child.take() {
            child.kill();
        }
    }

    /// Starts it again on the same port, with what it persisted.
    pub fn restart(&mut self) {
        self.stop();
        self.child = Some(run(&self.config).expect("nobody took its port"));
    }

    /// Its log.
    pub fn log(&self) -> Vec<String> {
        self.child.as_ref().map(Child::lines).unwrap_or_default()
    }

    /// Waits for a line of its log.
    pub fn wait_for_log(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        self.child.as_ref().expect("it runs").wait_for(what, SOON, wanted)
    }
}

/// Starts it and waits until it says so; `None` when its port was taken.
fn run(config: &Path) -> Option<Child> {
    let mut command = Command::new(program("mosquitto"));
    command.arg("-c").arg(config);
    let mut child = Child::spawn("mosquitto", command);
    let line = child.wait_for("whether it runs", SOON, |line| {
        line.ends_with("running") || line.contains("Address already in use") || line.contains("Error")
    });
    if line.contains("Address already in use") {
        child.wait(SOON);
        return None;
    }
    assert!(line.ends_with("running"), "mosquitto refused its configuration: {line}");
    Some(child)
}

/// A message as a subscriber saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Topic.
    pub topic: String,
    /// Whether it came from the retained ones.
    pub retain: bool,
    /// Quality of service.
    pub qos: u8,
    /// Payload.
    pub payload: Vec<u8>,
}

/// `mosquitto_sub` at work.
pub struct Subscriber {
    child: Child,
}

impl Subscriber {
    /// Subscribes at QoS 1 on a loopback port and waits until that is acknowledged. `more` are further arguments, such
    /// as `-u` and `-P`.
    pub fn start(port: u16, filter: &str, more: &[&str]) -> Self {
        // It would keep its lines in a buffer, as its output is no terminal.
        let mut command = Command::new(program("stdbuf"));
        // Payloads as hexadecimal: they may hold anything. `-d` says when the subscription is acknowledged.
        command.arg("-oL").arg(program("mosquitto_sub"));
        command.args(["-d", "-h", "127.0.0.1", "-p", &port.to_string(), "-q", "1", "-t", filter]);
        command.args(["-F", "MESSAGE %r %q %x %t"]).args(more);
        let child = Child::spawn("mosquitto_sub", command);
        child.wait_for("that it subscribed", SOON, |line| line.starts_with("Subscribed"));
        Self { child }
    }

    /// Everything received so far.
    pub fn messages(&self) -> Vec<Message> {
        self.child.lines().iter().filter_map(|line| parse(line)).collect()
    }

    /// The first message, old or new, that `wanted` accepts.
    pub fn wait_for(&self, what: &str, limit: Duration, wanted: impl Fn(&Message) -> bool) -> Message {
        let line = self.child.wait_for(what, limit, |line| parse(line).is_some_and(|message| wanted(&message)));
        parse(&line).expect("just parsed")
    }

    /// Waits for a line of what the client says about itself.
    pub fn wait_for_line(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        self.child.wait_for(what, super::SOON, wanted)
    }

    /// Waits until at least `count` messages have come.
    pub fn wait_for_count(&self, count: usize, limit: Duration) -> Vec<Message> {
        super::eventually(&format!("{count} messages"), limit, || {
            Some(self.messages()).filter(|messages| messages.len() >= count)
        })
    }
}

fn parse(line: &str) -> Option<Message> {
    let mut parts = line.strip_prefix("MESSAGE ")?.splitn(4, ' ');
    let (retain, qos, hex) = (parts.next()? == "1", parts.next()?.parse().ok()?, parts.next()?);
    let digits = hex.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).ok());
    let payload = digits.map(|pair| u8::from_str_radix(pair?, 16).ok()).collect::<Option<Vec<u8>>>()?;
    Some(Message { topic: parts.next()?.to_owned(), retain, qos, payload })
}

/// Publishes once with `mosquitto_pub` at QoS 1; the result is what the client printed when it failed.
pub fn publish(port: u16, topic: &str, payload: &str, more: &[&str]) -> Result<(), String> {
    let mut command = Command::new(program("mosquitto_pub"));
    command.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-q", "1", "-t", topic, "-m", payload]).args(more);
    let output = command.output().expect("it starts");
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()) }
}
