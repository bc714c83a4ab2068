//! `fieldgate demo`: a simulated pump station, the gateway and its broker in one process, and a live table of values. With
//! `--margo` a simulated fleet manager, too, that sees the station's devices and deploys to them.

#[cfg(feature = "margo")]
mod fleet;

use std::io::{IsTerminal, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use fieldgate_simulators::{Plant, Scenario, demo};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, interval};

use super::CliError;
use super::live::{devices_table, points_table};
use crate::app::{self, EXPORT_LIMIT, Gateway, STOP_LIMIT};
use crate::config;
use crate::management::firmware::Slot;
use crate::telemetry::Telemetry;

/// Rows of the live table; the rest is one `fieldgate points` away.
const ROWS: usize = 28;
/// Between two tables when standard output is no terminal.
const PLAIN_EVERY: Duration = Duration::from_secs(5);

/// Options of the demo.
#[derive(Debug, clap::Args)]
pub struct DemoArgs {
    /// Where the configuration and the data of the demo go.
    #[arg(long, default_value = "fieldgate-demo")]
    directory: PathBuf,
    /// Port of the embedded broker; the next free one is taken if it is in use.
    #[arg(long, default_value_t = 1883)]
    port: u16,
    /// Stop after this many seconds instead of at Ctrl-C.
    #[arg(long)]
    seconds: Option<u64>,
    /// Also start a simulated Margo fleet manager with a page; its demo has a folder of its own below the directory.
    #[cfg(feature = "margo")]
    #[arg(long)]
    margo: bool,
}

/// Runs the demo.
pub fn run(args: DemoArgs) -> Result<(), CliError> {
    app::runtime()?.block_on(serve(args))
}

async fn serve(mut args: DemoArgs) -> Result<(), CliError> {
    let other = |what: &str, error: &dyn std::fmt::Display| CliError::Other(format!("{what}: {error}"));
    let plant = Plant::start(Scenario::pump_station()).await.map_err(|e| other("start the simulated plant", &e))?;
    let port = free_port(args.port).ok_or_else(|| CliError::Other(format!("no free port from {} on", args.port)))?;
    let joined = join_fleet(&mut args).await?;
    let (section, note) = joined.as_ref().map_or(("", ""), |(_, section, note)| (section, note));
    write_configuration(&args.directory, port, section).map_err(|e| other("write the demo's configuration", &e))?;
    let loaded = config::load(&args.directory)?;
    let id = loaded.gateway.identity.id.to_string();
    let telemetry =
        Telemetry::start(&loaded.gateway.log, loaded.gateway.otlp.as_ref(), &id).map_err(app::RunError::from)?;
    let gateway =
        Gateway::start(&args.directory, loaded, &telemetry, Slot::Packaged).await.map_err(app::RunError::from)?;
    let shown = show(gateway, &args, port, &id, note).await;
    plant.stop().await;
    telemetry.shutdown(EXPORT_LIMIT);
    shown
}

/// Starts the fleet manager if it is asked for: itself, what the gateway's main file says of it, and where to look.
#[cfg(feature = "margo")]
async fn join_fleet(args: &mut DemoArgs) -> Result<Option<(fleet::Fleet, String, String)>, CliError> {
    if !args.margo {
        return Ok(None);
    }
    let other = |error: &dyn std::fmt::Display| CliError::Other(format!("start the simulated fleet manager: {error}"));
    args.directory = fleet::Fleet::folder(&args.directory).map_err(|e| other(&e))?;
    let fleet = fleet::Fleet::start().await.map_err(|e| other(&e))?;
    let section = fleet.join(&args.directory).map_err(|e| other(&e))?;
    let note = format!("The fleet manager sees the devices: {}\n", fleet.page());
    Ok(Some((fleet, section, note)))
}

/// Nobody to join.
#[cfg(not(feature = "margo"))]
async fn join_fleet(_: &mut DemoArgs) -> Result<Option<(std::convert::Infallible, String, String)>, CliError> {
    Ok(None)
}

async fn show(mut gateway: Gateway, args: &DemoArgs, port: u16, id: &str, note: &str) -> Result<(), CliError> {
    let signals = |kind| signal(kind).map_err(app::RunError::Runtime);
    let (mut interrupt, mut terminate) = (signals(SignalKind::interrupt())?, signals(SignalKind::terminate())?);
    let screen = std::io::stdout().is_terminal();
    let mut ticks = interval(if screen { Duration::from_secs(1) } else { PLAIN_EVERY });
    let end = args.seconds.map(|s| Instant::now() + Duration::from_secs(s));
    let ended = async {
        match end {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(ended);
    let outcome = loop {
        tokio::select! {
            _ = interrupt.recv() => break Ok(()),
            _ = terminate.recv() => break Ok(()),
            () = &mut ended => break Ok(()),
            failure = gateway.failure() => break Err(app::RunError::Failed(failure).into()),
            _ = ticks.tick() => {
                let text = page(&gateway, args, port, id) + note;
                let mut out = std::io::stdout().lock();
                let clear = if screen { "\x1b[H\x1b[2J" } else { "" };
                if write!(out, "{clear}{text}").and_then(|()| out.flush()).is_err() {
                    break Ok(()); // the reader of a pipe has gone
                }
            }
        }
    };
    println!("\nstopping …");
    gateway.stop(STOP_LIMIT).await;
    outcome
}

fn page(gateway: &Gateway, args: &DemoArgs, port: u16, id: &str) -> String {
    let (devices, mut points) = gateway.tables();
    let count = points.len();
    let waiting = points.iter().filter(|p| p.time.is_empty()).count();
    points.retain(|p| !p.time.is_empty());
    points.truncate(ROWS);
    let port_option = if port == 1883 { String::new() } else { format!(" -p {port}") };
    format!(
        "fieldgate demo: a simulated pump station, read over Modbus, published by the embedded broker\n\n\
         {}\n{}… {count} points in all ({waiting} not yet read); all of them: fieldgate --config {} points\n\n\
         Subscribe on mqtt://127.0.0.1:{port} with any MQTT client:\n  \
         mosquitto_sub -h 127.0.0.1{port_option} -v -t 'fieldgate/v1/{id}/devices/+/points/#'   every value by itself\n  \
         mosquitto_sub -h 127.0.0.1{port_option} -v -t 'fieldgate/v1/{id}/devices/+/telemetry'  values in batches\n  \
         mosquitto_sub -h 127.0.0.1{port_option} -v -t 'fieldgate/v1/{id}/#'                    everything\n\
         Configuration and data are in {}. Stop with Ctrl-C.\n",
        devices_table(&devices),
        points_table(&points),
        args.directory.display(),
        args.directory.display(),
    )
}

fn free_port(first: u16) -> Option<u16> {
    (first..first.saturating_add(100)).find(|&port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok())
}

/// Where the part of `fieldgate.toml` begins that each demo writes anew.
const ANEW: &str = "\n# ---- written by each demo\n";

/// Writes the files that are not there yet, so that what the user changed stays; only the broker's port and what this run
/// adds to the main file are written anew.
fn write_configuration(directory: &Path, port: u16, section: &str) -> std::io::Result<()> {
    for (name, text) in demo::FILES {
        let path = directory.join(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let text = if path.exists() { std::fs::read_to_string(&path)? } else { (*text).to_owned() };
        let text = if *name == config::MAIN_FILE { with_section(&with_port(&text, port), section) } else { text };
        std::fs::write(path, text)?;
    }
    Ok(())
}

fn with_port(text: &str, port: u16) -> String {
    let line = |line: &str| match line.trim_start().starts_with("address = \"127.0.0.1:") {
        true => format!("address = \"127.0.0.1:{port}\""),
        false => line.to_owned(),
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n") + "\n"
}

fn with_section(text: &str, section: &str) -> String {
    let own = text.split_once(ANEW).map_or(text, |(own, _)| own);
    if section.is_empty() { own.to_owned() } else { format!("{own}{ANEW}{section}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_run_adds_replaces_what_the_run_before_added() {
        let own = "[gateway]\nid = \"demo\"\n";
        let first = with_section(own, "[margo]\nurl = \"https://a\"\n");
        let second = with_section(&first, "[margo]\nurl = \"https://b\"\n");
        assert!(second.starts_with(own) && second.contains("https://b") && !second.contains("https://a"), "{second}");
        assert_eq!(with_section(&second, ""), own);
    }

    #[test]
    fn the_port_is_set_and_the_rest_is_left_alone() {
        let text = "[gateway]\nid = \"demo\"\n[[broker.listener]]\naddress = \"127.0.0.1:1883\"\n";
        assert_eq!(with_port(text, 1890), text.replace("1883", "1890"));
    }
}
