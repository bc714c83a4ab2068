//! The real binary with a configuration for the counting plant.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::{CountingPlant, run_for};
use crate::support::{Child, SOON, eventually};

/// What is configured. Every uplink is (name = root, in order).
pub struct Setup<'a> {
    pub folder: &'a Path,
    /// Where the data directory lies; `data` in the folder unless it is said.
    pub data: Option<PathBuf>,
    pub plant: &'a CountingPlant,
    pub devices: u8,
    pub broker_port: u16,
    pub uplinks: &'a [(&'a str, bool)],
    pub quota_mib: u64,
    pub rate_ms: u64,
    /// Further lines of `[store]`.
    pub store_lines: &'a str,
    /// Further lines of each uplink, of the first one only, and of the replay of each.
    pub uplink_lines: &'a str,
    pub first_uplink_lines: &'a str,
    pub replay_lines: &'a str,
    /// An uplink whose broker nobody runs.
    pub away: Option<&'a str>,
    /// Root of all uplinks, whose names follow.
    pub root: &'a str,
    /// Octets that each device has besides its number.
    pub octets: u16,
}

impl<'a> Setup<'a> {
    pub fn new(folder: &'a Path, plant: &'a CountingPlant, broker_port: u16) -> Self {
        Self {
            folder,
            data: None,
            plant,
            devices: 5,
            broker_port,
            uplinks: &[("ordered", true)],
            quota_mib: 64,
            rate_ms: 50,
            store_lines: "",
            uplink_lines: "",
            first_uplink_lines: "",
            replay_lines: "",
            away: None,
            root: "fieldgate/v1",
            octets: 0,
        }
    }

    pub fn data_dir(&self) -> PathBuf {
        self.data.clone().unwrap_or_else(|| self.folder.join("data"))
    }

    /// Writes the configuration, replacing what was there.
    pub fn write(&self) {
        let mut main = format!(
            "[gateway]\nid = \"torture\"\ndata_dir = \"{}\"\n\n[store]\nmax_size = \"{} MiB\"\n{}\n\n[broker]\nenabled = false\n\n[log]\nlevel = \"info\"\n\n",
            self.data_dir().display(),
            self.quota_mib,
            self.store_lines
        );
        for (index, (name, in_order)) in self.uplinks.iter().enumerate() {
            let order = if *in_order { "in-order" } else { "live-first" };
            let port = if self.away == Some(*name) { crate::support::free_port() } else { self.broker_port };
            let first = if index == 0 { self.first_uplink_lines } else { "" };
            main += &format!(
                "[[uplink]]\nname = \"{name}\"\nservers = [\"mqtt://127.0.0.1:{port}\"]\nroot = \"{}/{name}\"\nkeep_alive = \"5 s\"\nreconnect_max = \"1 s\"\n{}\n{first}\n[uplink.replay]\norder = \"{order}\"\n{}\n\n",
                self.root, self.uplink_lines, self.replay_lines
            );
        }
        main += &format!("[defaults]\nrate = \"{} ms\"\n", self.rate_ms);
        std::fs::write(self.folder.join("fieldgate.toml"), main).expect("writable");
        let devices = self.folder.join("devices");
        let _ = std::fs::remove_dir_all(&devices);
        std::fs::create_dir_all(&devices).expect("writable");
        let octets = match self.octets {
            0 => String::new(),
            n => format!(
                "\n[[points]]\nid = \"octets\"\ntable = \"holding\"\naddress = 2\ntype = \"bytes\"\nlength = {n}\n"
            ),
        };
        for unit in 1..=self.devices {
            let text = format!(
                "[modbus]\nlink = \"tcp://127.0.0.1:{}\"\nunit = {unit}\ntimeout = \"10 s\"\nretries = 0\nidentify = false\nresync_echo = false\n\n[[points]]\nid = \"count\"\ntable = \"holding\"\naddress = 0\ntype = \"u32\"\n{octets}",
                self.plant.port()
            );
            std::fs::write(devices.join(format!("c{unit}.toml")), text).expect("writable");
        }
    }

    pub fn start(&self) -> Gateway {
        self.start_under(&[])
    }

    /// Starts it as the last arguments of another program, such as strace.
    pub fn start_under(&self, wrapper: &[&str]) -> Gateway {
        let binary = env!("CARGO_BIN_EXE_fieldgate");
        let mut command = match wrapper.split_first() {
            Some((program, arguments)) => {
                let mut command = Command::new(crate::support::program(program));
                command.args(arguments).arg(binary);
                command
            }
            None => Command::new(binary),
        };
        command.arg("--config").arg(self.folder).arg("run");
        Gateway { child: Child::spawn("fieldgate", command), socket: self.data_dir().join("admin.sock") }
    }
}

/// A running gateway.
pub struct Gateway {
    pub child: Child,
    socket: PathBuf,
}

impl Gateway {
    /// The health message over the admin socket; `None` while it does not answer.
    pub fn health(&self) -> Option<Value> {
        let mut socket = UnixStream::connect(&self.socket).ok()?;
        socket.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        socket.write_all(b"{\"ask\":\"health\"}\n").ok()?;
        let mut line = String::new();
        BufReader::new(socket).read_line(&mut line).ok()?;
        let answer: Value = serde_json::from_str(&line).ok()?;
        Some(answer["value"].clone()).filter(Value::is_object)
    }

    /// Waits until the admin socket answers.
    pub fn wait_until_up(&self) -> Value {
        eventually("an answer on the admin socket", SOON, || self.health())
    }

    /// Numbers up to here are said to be safe on the disk, in the bulk lane.
    pub fn synced(&self) -> u64 {
        self.health().map_or(0, |health| lane(&health, "syncedSeq"))
    }

    /// Records that consumers have not confirmed.
    pub fn pending(&self) -> Option<u64> {
        let health = self.health()?;
        let all = health["consumers"].as_array()?;
        Some(all.iter().map(|c| number(&c["pendingRecords"])).sum())
    }

    /// Waits until everything is confirmed by all consumers. What a session that is just beginning owes shows in the
    /// figures only after a moment, so nothing must be pending for a second.
    pub fn wait_until_drained(&self, limit: Duration) {
        let mut quiet = 0;
        eventually("an empty backlog", limit, || {
            run_for(Duration::from_millis(100));
            quiet = if self.pending() == Some(0) { quiet + 1 } else { 0 };
            (quiet >= 10).then_some(())
        });
    }

    /// An orderly stop.
    pub fn stop(self) {
        self.child.terminate(SOON);
    }

    /// As a power cut does to a process.
    pub fn kill(self) {
        self.child.kill();
    }
}

/// A figure of the bulk lane.
pub fn lane(health: &Value, key: &str) -> u64 {
    let lanes = health["lanes"].as_array().cloned().unwrap_or_default();
    lanes.iter().find(|lane| lane["lane"] == "bulk").map_or(0, |lane| number(&lane[key]))
}

fn number(value: &Value) -> u64 {
    value.as_u64().or_else(|| value.as_str()?.parse().ok()).unwrap_or(0)
}
