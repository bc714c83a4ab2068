//! The whole gateway as its user runs it, measured from outside: CPU per value, latency, memory, start-up.
//!
//! ```text
//! cargo build --release && cargo bench --bench throughput
//! ```
//! This process plays the devices (Modbus TCP servers) and the subscriber; the gateway is the release binary as a child
//! process with its durable log on, and only its CPU time (`/proc/PID/task/*/schedstat`) is counted.
//! `FIELDGATE_BENCH_SECONDS` (default 10) sets the length of each row, `FIELDGATE_BENCH_BINARY` another gateway.
#![allow(clippy::unwrap_used, reason = "a test ends with a panic when its surroundings fail")]

use std::collections::HashMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fieldgate::contract::{ContractMessage, Encoding, v1};
use pbjson_types::value::Kind;
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const DEVICES: usize = 20;
const REGISTERS: usize = 100;

/// One line of the table.
struct Row {
    name: &'static str,
    interval: Duration,
    /// Every register changes at every poll, or only the marked one at random times.
    encoding: Encoding,
    per_point: bool,
}

fn main() -> Outcome<()> {
    let seconds: u64 = std::env::var("FIELDGATE_BENCH_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(10);
    let binary = binary()?;
    println!("binary: {:.1} MB", std::fs::metadata(&binary)?.len() as f64 / 1e6);
    println!(
        "{:<44} {:>9} {:>10} {:>9} {:>9} {:>8} {:>8} {:>9}",
        "20 devices × 100 registers, durable log on",
        "values/s",
        "CPU µs/val",
        "late p50",
        "late p99",
        "RSS MiB",
        "CPU %",
        "first ms"
    );
    let second = Duration::from_secs(1);
    let tenth = Duration::from_millis(100);
    let rows = [
        Row { name: "2,000/s protobuf batches", interval: second, encoding: Encoding::Protobuf, per_point: false },
        Row { name: "2,000/s JSON batches", interval: second, encoding: Encoding::Json, per_point: false },
        Row { name: "2,000/s one JSON message per point", interval: second, encoding: Encoding::Json, per_point: true },
        Row { name: "20,000/s protobuf batches", interval: tenth, encoding: Encoding::Protobuf, per_point: false },
        Row { name: "20,000/s JSON batches", interval: tenth, encoding: Encoding::Json, per_point: false },
        Row { name: "20,000/s one JSON message per point", interval: tenth, encoding: Encoding::Json, per_point: true },
    ];
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    for row in rows {
        let figures = runtime.block_on(measure(&binary, &row, Duration::from_secs(seconds)))?;
        println!(
            "{:<44} {:>9.0} {:>10.2} {:>6.1} ms {:>6.1} ms {:>8.1} {:>8.2} {:>9.0}",
            row.name,
            figures.values_per_second,
            figures.cpu_us_per_value,
            figures.late_p50_ms,
            figures.late_p99_ms,
            figures.rss_mib,
            figures.cpu_percent,
            figures.first_publish_ms,
        );
    }
    println!("late: time from a changed register to the subscriber, minus the poll interval (negative: inside it)");
    Ok(())
}

struct Figures {
    values_per_second: f64,
    cpu_us_per_value: f64,
    late_p50_ms: f64,
    late_p99_ms: f64,
    rss_mib: f64,
    cpu_percent: f64,
    first_publish_ms: f64,
}

async fn measure(binary: &Path, row: &Row, length: Duration) -> Outcome<Figures> {
    let plant = Plant::start(row.interval).await?;
    let directory = tempfile::tempdir()?;
    let port = free_port().await?;
    write_configuration(directory.path(), port, &plant.ports, row)?;
    let started = Instant::now();
    let mut gateway = Gateway(
        Command::new(binary)
            .args(["--config".as_ref(), directory.path().as_os_str(), "run".as_ref()])
            .env("FIELDGATE_LOG", "error")
            .stdout(Stdio::null())
            .spawn()?,
    );
    let mut subscriber = Subscriber::connect(port, row, started).await?;
    let first = subscriber.first_value(&plant).await?;
    subscriber.run(&plant, Duration::from_secs(2)).await?; // warm up
    subscriber.reset();
    let (cpu_before, begun) = (gateway.cpu_seconds()?, Instant::now());
    subscriber.run(&plant, length).await?;
    let (cpu, wall) = (gateway.cpu_seconds()? - cpu_before, begun.elapsed().as_secs_f64());
    let rss_mib = gateway.rss_mib()?;
    gateway.0.kill()?;
    gateway.0.wait()?;
    let interval = row.interval.as_secs_f64() * 1e3;
    let late = |p: f64| percentile(&mut subscriber.late_ms.clone(), p) - interval;
    Ok(Figures {
        values_per_second: subscriber.values as f64 / wall,
        cpu_us_per_value: cpu * 1e6 / subscriber.values as f64,
        late_p50_ms: late(0.50),
        late_p99_ms: late(0.99),
        rss_mib,
        cpu_percent: 100.0 * cpu / wall,
        first_publish_ms: first.as_secs_f64() * 1e3,
    })
}

fn percentile(sorted: &mut [f64], p: f64) -> f64 {
    sorted.sort_by(f64::total_cmp);
    sorted.get(((sorted.len() as f64 - 1.0) * p) as usize).copied().unwrap_or(f64::NAN)
}

fn binary() -> Outcome<PathBuf> {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/release/fieldgate");
    let path = std::env::var_os("FIELDGATE_BENCH_BINARY").map_or(built, PathBuf::from);
    if path.exists() { Ok(path) } else { Err("build the gateway first: cargo build --release".into()) }
}

async fn free_port() -> Outcome<u16> {
    Ok(TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port())
}

fn write_configuration(directory: &Path, port: u16, plcs: &[u16], row: &Row) -> Outcome<()> {
    let encoding = if row.encoding == Encoding::Json { "json" } else { "protobuf" };
    let gateway = format!(
        "[gateway]\nid = \"bench\"\ndata_dir = \"data\"\n\n[broker]\n[[broker.listener]]\naddress = \"127.0.0.1:{port}\"\n\n\
         [local]\nencoding = \"{encoding}\"\nqos = 0\n\n[local.publish]\ntelemetry = {}\npoints = {}\n",
        !row.per_point, row.per_point
    );
    std::fs::write(directory.join("fieldgate.toml"), gateway)?;
    std::fs::create_dir(directory.join("devices"))?;
    for (device, plc) in plcs.iter().enumerate() {
        let mut text = format!(
            "id = \"plc-{device}\"\nrate = \"{} ms\"\n\n[modbus]\nlink = \"tcp://127.0.0.1:{plc}\"\nunit = 1\n",
            row.interval.as_millis()
        );
        for register in 0..REGISTERS {
            text += &format!(
                "\n[[points]]\nid = \"r{register}\"\ntable = \"holding\"\naddress = {register}\ntype = \"u16\"\n"
            );
        }
        std::fs::write(directory.join(format!("devices/plc-{device}.toml")), text)?;
    }
    Ok(())
}

/// The gateway process; killed when dropped.
struct Gateway(Child);

impl Gateway {
    /// All threads' time on a core, in nanoseconds' resolution: `/proc/PID/stat` counts hundredths of a second.
    fn cpu_seconds(&self) -> Outcome<f64> {
        let mut nanos = 0.0;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.0.id()))? {
            let figures = std::fs::read_to_string(task?.path().join("schedstat"))?;
            nanos += figures.split_whitespace().next().ok_or("an empty schedstat")?.parse::<f64>()?;
        }
        Ok(nanos / 1e9)
    }

    fn rss_mib(&self) -> Outcome<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let line = status.lines().find(|l| l.starts_with("VmRSS")).ok_or("no VmRSS")?;
        Ok(line.split_whitespace().nth(1).ok_or("no VmRSS")?.parse::<f64>()? / 1024.0)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Twenty Modbus TCP servers. Register 0 changes every 2.4 to 2.6 poll intervals (so that no change is
/// overwritten before it was polled) and its change times are remembered; the others change with
/// every read.
struct Plant {
    ports: Vec<u16>,
    changed: Arc<Mutex<HashMap<(usize, u16), Instant>>>,
}

impl Plant {
    async fn start(interval: Duration) -> Outcome<Self> {
        let changed: Arc<Mutex<HashMap<(usize, u16), Instant>>> = Arc::default();
        let mut ports = Vec::new();
        for device in 0..DEVICES {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            ports.push(listener.local_addr()?.port());
            let marked = Arc::new(AtomicU16::new(0));
            tokio::spawn(change(device, interval, marked.clone(), changed.clone()));
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(serve(stream, marked.clone()));
                }
            });
        }
        Ok(Self { ports, changed })
    }
}

async fn change(
    device: usize,
    interval: Duration,
    marked: Arc<AtomicU16>,
    changed: Arc<Mutex<HashMap<(usize, u16), Instant>>>,
) {
    let mut ticks = tokio::time::interval(interval.mul_f64(2.37 + 0.01 * device as f64));
    loop {
        ticks.tick().await;
        let value = marked.load(Ordering::Relaxed).wrapping_add(1);
        changed.lock().unwrap().insert((device, value), Instant::now());
        marked.store(value, Ordering::Relaxed);
    }
}

async fn serve(mut stream: TcpStream, marked: Arc<AtomicU16>) -> Outcome<()> {
    static TICK: AtomicU64 = AtomicU64::new(0);
    stream.set_nodelay(true)?;
    let mut request = [0u8; 12];
    loop {
        stream.read_exact(&mut request[..7]).await?;
        let length = u16::from_be_bytes([request[4], request[5]]) as usize - 1;
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        let mut reply = request[..4].to_vec();
        if body[0] == 3 {
            let first = u16::from_be_bytes([body[1], body[2]]);
            let count = u16::from_be_bytes([body[3], body[4]]);
            let tick = TICK.fetch_add(1, Ordering::Relaxed) as u16;
            reply.extend((3 + 2 * count).to_be_bytes());
            reply.extend([request[6], 3, 2 * count as u8]);
            for register in first..first + count {
                let value = if register == 0 { marked.load(Ordering::Relaxed) } else { tick.wrapping_add(register) };
                reply.extend(value.to_be_bytes());
            }
        } else {
            reply.extend([0, 3, request[6], body[0] | 0x80, 1]);
        }
        stream.write_all(&reply).await?;
    }
}

/// Counts values and takes the time of the marked ones.
struct Subscriber {
    events: rumqttc::EventLoop,
    _client: AsyncClient,
    per_point: bool,
    encoding: Encoding,
    started: Instant,
    values: u64,
    late_ms: Vec<f64>,
}

impl Subscriber {
    async fn connect(port: u16, row: &Row, started: Instant) -> Outcome<Self> {
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            if started.elapsed() > Duration::from_secs(10) {
                return Err("the gateway's broker does not listen".into());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let mut options = MqttOptions::new("bench", "127.0.0.1", port);
        options.set_max_packet_size(1 << 20, 1 << 20).set_clean_session(true);
        let (client, events) = AsyncClient::new(options, 64);
        let filter = if row.per_point {
            "fieldgate/v1/bench/devices/+/points/+"
        } else {
            "fieldgate/v1/bench/devices/+/telemetry"
        };
        client.try_subscribe(filter, QoS::AtMostOnce)?;
        Ok(Self {
            events,
            _client: client,
            per_point: row.per_point,
            encoding: row.encoding,
            started,
            values: 0,
            late_ms: Vec::new(),
        })
    }

    fn reset(&mut self) {
        self.values = 0;
        self.late_ms.clear();
    }

    async fn first_value(&mut self, plant: &Plant) -> Outcome<Duration> {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        while self.values == 0 {
            let event =
                tokio::time::timeout_at(deadline, self.events.poll()).await.map_err(|_| "no value within 10 s")??;
            self.take(plant, event)?;
        }
        Ok(self.started.elapsed())
    }

    async fn run(&mut self, plant: &Plant, length: Duration) -> Outcome<()> {
        let deadline = tokio::time::Instant::now() + length;
        while let Ok(event) = tokio::time::timeout_at(deadline, self.events.poll()).await {
            self.take(plant, event?)?;
        }
        Ok(())
    }

    fn take(&mut self, plant: &Plant, event: Event) -> Outcome<()> {
        let Event::Incoming(Packet::Publish(publish)) = event else { return Ok(()) };
        let now = Instant::now();
        let device =
            publish.topic.split('/').nth(4).and_then(|d| d.strip_prefix("plc-")).ok_or("odd topic")?.parse()?;
        if self.per_point {
            self.values += 1;
            if publish.topic.ends_with("/r0") {
                let point = v1::Point::decode_as(self.encoding, &publish.payload)?;
                self.note(plant, device, point.value, now);
            }
            return Ok(());
        }
        let batch = v1::Telemetry::decode_as(self.encoding, &publish.payload)?;
        self.values += batch.points.len() as u64;
        if let Some(marked) = batch.points.into_iter().find(|p| p.name == "r0") {
            self.note(plant, device, marked.value, now);
        }
        Ok(())
    }

    fn note(&mut self, plant: &Plant, device: usize, value: Option<pbjson_types::Value>, now: Instant) {
        if let Some(Kind::NumberValue(value)) = value.and_then(|v| v.kind)
            && let Some(at) = plant.changed.lock().unwrap().get(&(device, value as u16))
        {
            self.late_ms.push(now.duration_since(*at).as_secs_f64() * 1e3);
        }
    }
}
