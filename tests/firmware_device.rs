//! Updates of devices: over Modbus file records against a simulated device, and over MQTT chunks against one that loses
//! and repeats messages.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod firmware_support;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fieldgate::management::firmware::{
    Ack, AckState, Approval, ChunkBus, ChunkTransfer, DeviceTarget, DeviceTransfer, FileFetch, FileJournal,
    FileRecordProfile, FileRecordTransfer, Job, PduLink, Stage, Updater, UpdaterConfig,
};
use fieldgate::platform::clock::ManualClock;
use fieldgate::platform::durable::Disk;
use fieldgate_simulators::firmware_target::{FirmwareTarget, Settings, Trouble};
use firmware_support::{Builder, Mortal, file_url, script};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A plain Modbus TCP link that connects again when it broke.
#[derive(Debug)]
struct TcpLink {
    address: SocketAddr,
    socket: Option<TcpStream>,
    transaction: u16,
}

impl TcpLink {
    async fn once(&mut self, request: &[u8]) -> std::io::Result<Vec<u8>> {
        if self.socket.is_none() {
            self.socket = Some(TcpStream::connect(self.address).await?);
        }
        let socket = self.socket.as_mut().unwrap();
        self.transaction = self.transaction.wrapping_add(1);
        let mut frame = self.transaction.to_be_bytes().to_vec();
        frame.extend([0, 0]);
        frame.extend((request.len() as u16 + 1).to_be_bytes());
        frame.push(1);
        frame.extend(request);
        socket.write_all(&frame).await?;
        let mut head = [0; 7];
        socket.read_exact(&mut head).await?;
        let mut pdu = vec![0; usize::from(u16::from_be_bytes([head[4], head[5]])) - 1];
        socket.read_exact(&mut pdu).await?;
        Ok(pdu)
    }
}

impl PduLink for TcpLink {
    async fn exchange(&mut self, request: &[u8]) -> Result<Vec<u8>, String> {
        let answer = tokio::time::timeout(Duration::from_secs(5), self.once(request)).await;
        match answer {
            Ok(Ok(pdu)) => Ok(pdu),
            Ok(Err(error)) => {
                self.socket = None;
                Err(error.to_string())
            }
            Err(_) => {
                self.socket = None;
                Err("timeout".to_owned())
            }
        }
    }
}

fn profile() -> FileRecordProfile {
    FileRecordProfile {
        first_file: 1,
        records_per_file: 10_000,
        registers_per_write: 120,
        status: 0,
        command: 1,
        size: 2,
        received: Some(4),
        digest: Some(8),
        version: 32,
        version_registers: 16,
        commands: [1, 2, 3],
        states: [0, 1, 2, 3, 4],
    }
}

struct Bench {
    directory: tempfile::TempDir,
    builder: Builder,
    clock: Arc<ManualClock>,
    image: Vec<u8>,
}

type Over<T> = Updater<DeviceTarget<T>, FileFetch, FileJournal>;

impl Bench {
    fn new(size: usize) -> Self {
        let directory = firmware_support::fast_directory();
        let mut image = script("2.0.0", size);
        image.push(b'#');
        std::fs::write(directory.path().join("image"), &image).unwrap();
        Self { directory, builder: Builder::new(), clock: ManualClock::at(1_790_000_000_000), image }
    }

    fn updater<T: DeviceTransfer>(
        &self,
        transfer: T,
        disk: Disk,
    ) -> Result<Over<T>, fieldgate::management::firmware::JournalError> {
        let target =
            DeviceTarget::new("pump-p7", transfer, Duration::from_secs(60), Duration::ZERO, self.clock.clone());
        let config = UpdaterConfig {
            target: "pump-1".to_owned(),
            directory: self.directory.path().to_owned(),
            policy: self.builder.policy(),
            window: None,
            rate: None,
            disk: disk.clone(),
        };
        let journal = FileJournal::new(&self.directory.path().join("jobs"), disk)?;
        Updater::new(config, target, FileFetch::default(), journal, self.clock.clone())
    }

    fn modbus(&self, address: SocketAddr) -> FileRecordTransfer<TcpLink> {
        FileRecordTransfer::new(profile(), TcpLink { address, socket: None, transaction: 0 }).unwrap()
    }

    /// Offers, approves and steps until the job is over; pauses pass on the clock, and a little in truth.
    async fn run<T: DeviceTransfer>(&self, updater: &mut Over<T>) -> Option<Job> {
        let artifact = self.directory.path().join("image");
        let manifest = self.builder.manifest("pump-p7", "2.0.0", &artifact);
        updater.offer(self.builder.offer("job-1", &manifest, file_url(&artifact))).await.ok()?;
        updater.approve("job-1", Approval::Operator("ann".to_owned())).ok()?;
        for _ in 0..5_000 {
            let pause = updater.step().await.ok()?;
            if updater.stage().is_final() {
                return updater.job().cloned();
            }
            let pause = pause.unwrap_or_default();
            self.clock.advance(pause);
            if !pause.is_zero() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        panic!("it never ends: {:?}", updater.job());
    }
}

async fn device(trouble: Trouble) -> FirmwareTarget {
    let listen = "127.0.0.1:0".parse().unwrap();
    let restart = Duration::from_millis(15);
    FirmwareTarget::start(Settings { listen, version: "1.0.0".to_owned(), restart, trouble }).await.unwrap()
}

#[tokio::test]
async fn a_device_is_updated_over_file_records_through_every_trouble_or_keeps_its_old_image() {
    let cases = [
        (Trouble::None, Stage::Done, None),
        (Trouble::Busy, Stage::Done, None),
        (Trouble::DisconnectAfter(40), Stage::Done, None),
        (Trouble::PowerCutAfter(40), Stage::Done, None),
        (Trouble::BadMemory, Stage::RolledBack, Some("device-failed")),
        (Trouble::DoesNotStart, Stage::RolledBack, Some("device-failed")),
        (Trouble::NeverReady, Stage::RolledBack, Some("device-failed")),
        (Trouble::Refuses, Stage::Failed, Some("device-refused")),
    ];
    for (trouble, stage, code) in cases {
        // 45 KB: three files of 10,000 records, and an odd last byte.
        let bench = Bench::new(45_000);
        let device = device(trouble).await;
        let mut updater = bench.updater(bench.modbus(device.address()), Disk::default()).unwrap();
        let job = bench.run(&mut updater).await.unwrap();
        assert_eq!((job.stage, job.code.as_deref()), (stage, code), "{trouble:?}: {:?}", job.reason);
        match stage {
            Stage::Done => {
                assert_eq!(device.version(), "2.0.0", "{trouble:?}");
                assert!(device.image() == bench.image, "{trouble:?}: byte by byte");
            }
            _ => assert_eq!(device.version(), "1.0.0", "{trouble:?}"),
        }
        let pieces = bench.image.len().div_ceil(240) + 2;
        match trouble {
            Trouble::None | Trouble::Busy => assert!(device.writes() <= pieces, "{} writes", device.writes()),
            Trouble::DisconnectAfter(_) => assert!(device.writes() <= pieces + 2, "it went on where it was"),
            _ => {}
        }
    }
}

#[tokio::test]
async fn the_gateway_killed_at_every_step_never_leaves_a_device_between_two_images() {
    for steps in 0.. {
        let bench = Bench::new(20_000);
        let device = device(Trouble::None).await;
        let mortal = Mortal::after(steps);
        if let Ok(mut updater) = bench.updater(bench.modbus(device.address()), mortal.disk()) {
            let _ = bench.run(&mut updater).await;
        }
        let version = device.version();
        assert!(version == "1.0.0" || (version == "2.0.0" && device.image() == bench.image), "after step {steps}");
        if mortal.is_dead() {
            mortal.lose_power();
        }
        let mut again = bench.updater(bench.modbus(device.address()), Disk::default()).unwrap();
        let job = bench.run(&mut again).await.unwrap();
        assert_eq!(job.stage, Stage::Done, "after step {steps}: {:?}", job.reason);
        assert_eq!(device.version(), "2.0.0");
        assert!(device.image() == bench.image);
        if !mortal.is_dead() {
            assert!(steps > 50, "only {steps} steps were seen");
            return;
        }
    }
}

/// A vendor device on MQTT, simulated by its answers; loses and repeats messages by a fixed pattern.
#[derive(Debug, Clone)]
struct VendorDevice {
    state: Arc<Mutex<Vendor>>,
    lossy: bool,
}

#[derive(Debug)]
struct Vendor {
    version: String,
    image: Vec<u8>,
    job: String,
    state: AckState,
    size: usize,
    acks: VecDeque<Vec<u8>>,
    messages: usize,
}

impl VendorDevice {
    fn new(lossy: bool) -> Self {
        let state = Vendor {
            version: "1.0.0".to_owned(),
            image: Vec::new(),
            job: String::new(),
            state: AckState::Idle,
            size: 0,
            acks: VecDeque::new(),
            messages: 0,
        };
        Self { state: Arc::new(Mutex::new(state)), lossy }
    }
}

impl ChunkBus for VendorDevice {
    async fn publish(&mut self, topic: &str, payload: Vec<u8>) -> Result<(), String> {
        let mut device = self.state.lock().unwrap();
        device.messages += 1;
        let number = device.messages;
        if self.lossy && number % 5 == 2 {
            return Ok(());
        }
        let text = || serde_json::from_slice::<serde_json::Value>(&payload).unwrap();
        match topic.split('/').nth(1).unwrap() {
            "begin" => {
                let begin = text();
                if device.job != begin["job"].as_str().unwrap() {
                    device.job = begin["job"].as_str().unwrap().to_owned();
                    device.size = begin["size"].as_u64().unwrap() as usize;
                    device.image = Vec::new();
                }
                device.state = AckState::Receiving;
            }
            "chunk" => {
                let offset: usize = topic.rsplit('/').next().unwrap().parse().unwrap();
                if offset == device.image.len() {
                    device.image.extend(&payload);
                }
            }
            "activate" if device.image.len() == device.size => {
                device.version = "2.0.0".to_owned();
                device.state = AckState::Idle;
            }
            "activate" => device.state = AckState::Failed,
            _ => {}
        }
        let ack = Ack {
            job: device.job.clone(),
            state: device.state,
            offset: device.image.len() as u64,
            version: device.version.clone(),
            reason: String::new(),
        };
        let ack = serde_json::to_vec(&ack).unwrap();
        if !(self.lossy && number % 7 == 3) {
            device.acks.push_back(ack.clone());
        }
        if self.lossy && number % 4 == 1 {
            device.acks.push_back(ack);
            device.acks.push_back(b"noise".to_vec());
        }
        Ok(())
    }

    async fn next_ack(&mut self, _: Duration) -> Result<Option<Vec<u8>>, String> {
        Ok(self.state.lock().unwrap().acks.pop_front())
    }
}

#[tokio::test]
async fn a_device_is_updated_over_chunks_even_when_messages_are_lost_and_repeated() {
    for lossy in [false, true] {
        let bench = Bench::new(30_000);
        let device = VendorDevice::new(lossy);
        let transfer = ChunkTransfer::new(device.clone(), 1_000, Duration::from_millis(10));
        let mut updater = bench.updater(transfer, Disk::default()).unwrap();
        let job = bench.run(&mut updater).await.unwrap();
        assert_eq!(job.stage, Stage::Done, "lossy {lossy}: {:?}", job.reason);
        let state = device.state.lock().unwrap();
        assert!(state.image == bench.image && state.version == "2.0.0");
        if !lossy {
            assert!(state.messages <= 31 + 6, "{} messages for 31 chunks", state.messages);
        }
    }
}
