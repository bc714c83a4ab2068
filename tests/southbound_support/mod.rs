//! What the southbound tests share: devices to configure, updates to wait for, servers to start.
#![allow(dead_code, reason = "every test binary uses its own part")]

pub mod faulty;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use fieldgate::model::{Access, DataType, Device, DeviceId, Point, PointId, Reason, Tier, Value};
use fieldgate::platform::clock::SystemClock;
use fieldgate::southbound::modbus::{Config, Link, PointAddress, Table};
use fieldgate::southbound::{DeviceConfig, DeviceState, DriverConfig, RateGroup, Scan, Southbound, Update};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Longest wait for anything that must happen; generous, for machines under load.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A device whose points are all polled every `every`.
pub fn device(name: &str, config: Config, every: Duration) -> DeviceConfig {
    let points: Vec<Point> = config
        .points
        .iter()
        .enumerate()
        .map(|(index, address)| Point {
            id: PointId::new(&format!("p{index}")).unwrap(),
            description: String::new(),
            unit: String::new(),
            data_type: address.data_type,
            access: if address.table.is_writable() { Access::ReadWrite } else { Access::Read },
            limits: None,
        })
        .collect();
    let all = (0..points.len() as u32).collect();
    let device = Device {
        id: DeviceId::new(name).unwrap(),
        description: String::new(),
        protocol: "modbus",
        address: config.link.to_string(),
        tier: Tier::One,
        points: points.into(),
    };
    DeviceConfig {
        device: Arc::new(device),
        groups: vec![RateGroup { every, points: all }],
        driver: DriverConfig::Modbus(config),
    }
}

pub fn tcp(port: u16) -> Link {
    Link::Tcp { host: "127.0.0.1".into(), port }
}

pub fn rtu_tcp(port: u16) -> Link {
    Link::RtuOverTcp { host: "127.0.0.1".into(), port }
}

/// Registers of a table as u16 points.
pub fn words(table: Table, addresses: impl IntoIterator<Item = u16>) -> Vec<PointAddress> {
    addresses.into_iter().map(|address| PointAddress::new(table, address, DataType::U16)).collect()
}

/// Bits of a table.
pub fn bits(table: Table, addresses: impl IntoIterator<Item = u16>) -> Vec<PointAddress> {
    addresses.into_iter().map(|address| PointAddress::new(table, address, DataType::Bool)).collect()
}

/// A running southbound side and its updates.
pub struct Running {
    pub southbound: Southbound,
    pub updates: mpsc::Receiver<Update>,
}

pub fn start(devices: Vec<DeviceConfig>) -> Running {
    let (sender, updates) = mpsc::channel(256);
    Running { southbound: Southbound::start(devices, sender, SystemClock::shared()), updates }
}

impl Running {
    /// The first update that `pick` takes; the others are dropped.
    pub async fn wait<T>(&mut self, what: &str, mut pick: impl FnMut(Update) -> Option<T>) -> T {
        let mut last = None;
        let found = timeout(PATIENCE, async {
            loop {
                let update = self.updates.recv().await.expect("the southbound side runs");
                last = Some(format!("{update:?}"));
                if let Some(found) = pick(update) {
                    return found;
                }
            }
        });
        match found.await {
            Ok(found) => found,
            Err(_) => panic!("waited {PATIENCE:?} for {what}; last update: {last:?}"),
        }
    }

    pub async fn scan(&mut self, device: &str) -> Scan {
        self.wait("a scan", |update| match update {
            Update::Scan(scan) if scan.device.as_str() == device => Some(scan),
            _ => None,
        })
        .await
    }

    /// The first scan of which every outcome is good.
    pub async fn good_scan(&mut self, device: &str) -> Scan {
        self.wait("a good scan", |update| match update {
            Update::Scan(scan) if scan.device.as_str() == device && scan.results.iter().all(|r| r.outcome.is_ok()) => {
                Some(scan)
            }
            _ => None,
        })
        .await
    }

    /// The first scan in which every outcome failed with `reason`.
    pub async fn bad_scan(&mut self, device: &str, reason: Reason) -> Scan {
        self.wait("a scan of failures", |update| match update {
            Update::Scan(scan)
                if scan.device.as_str() == device && scan.results.iter().all(|r| r.outcome == Err(reason)) =>
            {
                Some(scan)
            }
            _ => None,
        })
        .await
    }

    pub async fn state(&mut self, device: &str, word: &str) -> DeviceState {
        self.wait(word, |update| match update {
            Update::Device { device: id, state, .. } if id.as_str() == device && state.as_str() == word => Some(state),
            _ => None,
        })
        .await
    }
}

/// Outcome of a point in a scan.
pub fn outcome(scan: &Scan, point: u32) -> Result<Value, Reason> {
    let found = scan.results.iter().find(|result| result.point == point);
    found.unwrap_or_else(|| panic!("point {point} is missing")).outcome.clone()
}

/// A process that is killed when the test ends.
pub struct Process(pub Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a Python Modbus server; returns it and its port.
pub fn python_server(script: &str, arguments: &[&str]) -> (Process, u16) {
    let (process, ports) = python_servers(script, arguments);
    (process, ports[0])
}

/// Starts a Python process with Modbus servers; returns it and their ports.
pub fn python_servers(script: &str, arguments: &[&str]) -> (Process, Vec<u16>) {
    let python = std::env::var("FIELDGATE_PYTHON").unwrap_or_else(|_| "python3".into());
    let check = Command::new(&python).args(["-c", "import pymodbus, pyModbusTCP, serial"]).output();
    assert!(
        check.is_ok_and(|output| output.status.success()),
        "{python} has no pymodbus==3.16.1, pyModbusTCP==0.3.1 and pyserial. Run the tests with .ci/run, which installs them, \
         or set FIELDGATE_PYTHON to an interpreter that has them"
    );
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/servers").join(script);
    let mut child = Command::new(python)
        .arg(path)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python starts");
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let process = Process(child);
    let ready = lines.find_map(|line| {
        let line = line.unwrap();
        let ports = line.strip_prefix("READY ")?;
        Some(ports.split(' ').map(|port| port.parse().unwrap()).collect())
    });
    (process, ready.unwrap_or_else(|| panic!("{script} ended before it was ready")))
}

/// A pair of connected pseudo terminals.
pub struct PtyPair {
    pub ours: PathBuf,
    pub theirs: PathBuf,
    pub socat: Process,
    pub dir: tempfile::TempDir,
}

pub async fn pty_pair() -> PtyPair {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));
    let socat = socat(&ours, &theirs).await;
    PtyPair { ours, theirs, socat, dir }
}

/// Starts socat on a pair of paths and waits until both are there.
pub async fn socat(ours: &Path, theirs: &Path) -> Process {
    let end = |path: &Path| format!("pty,raw,echo=0,link={}", path.display());
    let child = Command::new("socat").args([end(ours), end(theirs)]).stdin(Stdio::null()).spawn();
    let process = Process(child.expect("socat is installed (Debian package socat)"));
    timeout(PATIENCE, async {
        while !(ours.exists() && theirs.exists()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("socat makes the pair");
    process
}

impl Running {
    /// Statistics of a device, as reported next.
    pub async fn stats(&mut self, device: &str) -> fieldgate::southbound::DeviceStats {
        self.wait("statistics", |update| match update {
            Update::Device { device: id, stats, .. } if id.as_str() == device => Some(stats),
            _ => None,
        })
        .await
    }
}
