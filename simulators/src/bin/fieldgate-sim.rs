//! `fieldgate-sim`: runs a simulated plant until it is interrupted.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use fieldgate_simulators::device::Source;
use fieldgate_simulators::firmware_target::{self, FirmwareTarget, Trouble};
use fieldgate_simulators::physics::{PumpStation, SIGNALS, Settings};
use fieldgate_simulators::scenario::{Link, PUMP_STATION};
use fieldgate_simulators::signal::Model;
use fieldgate_simulators::{Plant, Scenario, SimError};

/// Runs a simulated plant of Modbus devices until it is interrupted.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Scenario file; without it the built-in pump station.
    #[arg(long, value_name = "FILE")]
    scenario: Option<PathBuf>,
    /// Lists devices and points, then ends.
    #[arg(long)]
    list: bool,
    /// Lists the signals of the pump station, then ends; `w` marks those that can be written.
    #[arg(long)]
    signals: bool,
    /// Prints the built-in scenario as a start for one's own, then ends.
    #[arg(long)]
    print: bool,
    /// Checks the scenario, then ends.
    #[arg(long)]
    check: bool,
    /// Another seed than the scenario's.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Ports that the system chooses, printed at the start.
    #[arg(long)]
    free_ports: bool,
    /// Also runs a device that takes firmware by Modbus file records; it begins with version 1.0.0.
    #[arg(long, value_name = "ADDRESS:PORT")]
    firmware_device: Option<SocketAddr>,
    /// What goes wrong with its updates: none, bad-memory, does-not-start, never-ready, busy or refuses.
    #[arg(long, value_name = "WHAT", default_value = "none", requires = "firmware_device")]
    firmware_trouble: Trouble,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read the output, such as `head`, has seen enough.
        Err(error) if is_broken_pipe(error.as_ref()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fieldgate-sim: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn std::error::Error>> {
    if arguments.print {
        return Ok(write!(std::io::stdout(), "{PUMP_STATION}")?);
    }
    if arguments.signals {
        return Ok(list_signals()?);
    }
    let scenario = load(arguments)?;
    if arguments.check {
        return Ok(writeln!(std::io::stdout(), "{}: {}", scenario.name, size(&scenario))?);
    }
    if arguments.list {
        return Ok(list(&scenario)?);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(play(scenario, arguments))
}

fn is_broken_pipe(error: &(dyn std::error::Error + 'static)) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

fn list_signals() -> std::io::Result<()> {
    let station = PumpStation::new(Settings::default());
    let mut out = std::io::stdout().lock();
    for name in SIGNALS {
        writeln!(out, "{} {name}", if station.is_writable(name) { "w" } else { " " })?;
    }
    Ok(())
}

fn load(arguments: &Arguments) -> Result<Scenario, SimError> {
    let mut scenario = match &arguments.scenario {
        Some(path) => Scenario::load(path)?,
        None => Scenario::pump_station(),
    };
    if let Some(seed) = arguments.seed {
        scenario = scenario.with_seed(seed);
    }
    Ok(if arguments.free_ports { scenario.on_free_ports() } else { scenario })
}

fn size(scenario: &Scenario) -> String {
    let points: usize = scenario.devices.iter().map(|device| device.points.len()).sum();
    format!("{} devices, {points} points", scenario.devices.len())
}

/// Runs the plant until SIGINT or SIGTERM. The line `ready` tells scripts that every port is open.
async fn play(scenario: Scenario, arguments: &Arguments) -> Result<(), Box<dyn std::error::Error>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let heading = format!("{}: {}, seed {}", scenario.name, size(&scenario), scenario.seed);
    let plant = Plant::start(scenario).await?;
    let updatable = match arguments.firmware_device {
        Some(listen) => Some(firmware_device(listen, arguments.firmware_trouble).await?),
        None => None,
    };
    {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{heading}")?;
        for endpoint in plant.endpoints() {
            writeln!(out, "  {:<14} unit {:<3} {}", endpoint.device, endpoint.unit, place(&endpoint.link))?;
        }
        if let Some(device) = &updatable {
            writeln!(out, "  {:<14} every unit modbus-tcp {}", "updatable", device.address())?;
        }
        writeln!(out, "ready")?;
        out.flush()?;
    }
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    plant.stop().await;
    Ok(())
}

async fn firmware_device(listen: SocketAddr, trouble: Trouble) -> std::io::Result<FirmwareTarget> {
    let (version, restart) = ("1.0.0".to_owned(), Duration::from_secs(2));
    FirmwareTarget::start(firmware_target::Settings { listen, version, restart, trouble }).await
}

fn place(link: &Link) -> String {
    match link {
        Link::Tcp(address) => format!("modbus-tcp {address}"),
        Link::RtuOverTcp { bind, .. } => format!("modbus-rtu-over-tcp {bind}"),
        Link::Serial { path, baud } => format!("modbus-rtu {path} {baud} baud"),
    }
}

fn list(scenario: &Scenario) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}: {}", scenario.name, size(scenario))?;
    for device in &scenario.devices {
        let link = place(&scenario.listeners[device.listener].link);
        writeln!(out, "\n{} — {} ({link}, unit {})", device.name, device.description, device.unit)?;
        for point in &device.points {
            let at = format!("{}:{}", point.table.as_str(), point.address);
            let kind = format!("{:?}", point.format.kind).to_lowercase();
            let access = if point.writable { "rw" } else { "r" };
            let from = match &point.source {
                Source::Signal(name) => name.clone(),
                Source::Constant(value) => format!("{value:?}"),
            };
            let order = point.format.order.as_str();
            writeln!(out, "  {:<22} {at:<14} {kind:<26} {order} {access:<2} {:<6} {from}", point.name, point.unit)?;
        }
    }
    Ok(())
}
