//! The command line: one subcommand per thing a person at the gateway wants to do.
//!
//! Promise: exit code 0 means done, 1 means that it failed (standard error says what and what to do), 2 means that the
//! command line was not understood. Tables go to standard output, everything else to standard error. Commands that only
//! look never change anything and never disturb a running gateway.

// `print!` of the standard library panics when the reader of a pipe has gone, as `fieldgate points | head` does. All
// files below print with these.
macro_rules! print {
    ($($text:tt)*) => { $crate::cli::show(format_args!($($text)*)) };
}
macro_rules! println {
    ($($text:tt)*) => { $crate::cli::show(format_args!("{}\n", format_args!($($text)*))) };
}

mod certs;
mod configuration;
#[cfg(feature = "demo")]
mod demo;
mod firmware;
mod live;
mod manage;
#[cfg(feature = "margo")]
mod margo;
mod store;
mod table;

use std::io::Write;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::app;
use crate::config::starter;
use crate::model::GatewayId;

/// Where the configuration lies when nobody says.
const DEFAULT_CONFIG: &str = "/etc/fieldgate";

/// Gateway that turns brownfield devices into MQTT, SCADA and Margo citizens.
#[derive(Debug, Parser)]
#[command(name = "fieldgate", version, about, propagate_version = true)]
pub struct Cli {
    /// Configuration: a directory with fieldgate.toml, or the file itself [default: /etc/fieldgate].
    #[arg(long, short, global = true, env = "FIELDGATE_CONFIG", value_name = "PATH")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway until SIGTERM or Ctrl-C.
    Run,
    /// Check the configuration and say what is wrong, with file, line and key.
    Check,
    /// Show the read plan, the requests per second and the predicted bus load of each device.
    Explain {
        /// Only this device.
        device: Option<String>,
    },
    /// Write a commented starter configuration into a new directory.
    Init {
        /// Where to write it; where `--config` says, or here, when not given.
        directory: Option<PathBuf>,
        /// Id of the gateway on its brokers; the machine's name when not given.
        #[arg(long)]
        id: Option<GatewayId>,
        /// Link of the first device, such as tcp://192.0.2.7:502.
        #[arg(long)]
        link: Option<String>,
        /// Make no certificate authority, because the plant brings one along (`fieldgate certs ca --import`).
        #[arg(long)]
        no_ca: bool,
    },
    /// List the devices of the running gateway with their state.
    Devices {
        /// Print JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// List points with their last values.
    Points {
        /// Only this device.
        device: Option<String>,
        /// Print JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Print new values as they arrive.
    Tail {
        /// Only this device.
        device: Option<String>,
        /// Only this point.
        point: Option<String>,
        /// Print one JSON object per line.
        #[arg(long)]
        json: bool,
    },
    /// Devices on their way in and out: list, scan, tokens, suspend, replace, decommission, roles.
    Onboard {
        #[command(subcommand)]
        command: manage::OnboardCommand,
    },
    /// Trust devices that wait for approval.
    Approve(manage::On),
    /// Refuse devices that wait for approval.
    Reject(manage::On),
    /// The configuration of a device or of the gateway: show, set, restore.
    Config {
        #[command(subcommand)]
        command: manage::ConfigCommand,
    },
    /// Write points of a device, or run a method, and show what was read back.
    #[command(name = "command")]
    Send(manage::CommandArgs),
    /// Who did what, when, from where, and how it ended.
    Audit(manage::AuditArgs),
    /// Hand devices over to another gateway: makes a signed document.
    Export(manage::ExportArgs),
    /// Take a signed document of another gateway: an export, a receipt or a release.
    Import(manage::ImportArgs),
    /// Look into the store.
    Store {
        #[command(subcommand)]
        command: store::StoreCommand,
    },
    /// The plant's certificate authority and what it issued.
    Certs {
        #[command(subcommand)]
        command: certs::CertsCommand,
    },
    /// Make a claim code: whoever sends it first over MQTT becomes an administrator.
    Claim,
    /// Keys and signatures of firmware; updates of the running gateway.
    Firmware {
        #[command(subcommand)]
        command: firmware::FirmwareCommand,
    },
    /// The Margo fleet manager: join it, see how the client stands, leave it.
    #[cfg(feature = "margo")]
    Margo {
        #[command(subcommand)]
        command: margo::MargoCommand,
    },
    /// Make the password hash for a user of the embedded broker; reads the password from standard input.
    HashPassword,
    /// Print the version and what was built in.
    Version {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Run a simulated pump station, a gateway and a broker, and show the values live.
    #[cfg(feature = "demo")]
    Demo(demo::DemoArgs),
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The configuration has problems.
    #[error("{0}")]
    Config(#[from] crate::config::Problems),
    /// The running gateway could not be asked.
    #[error(transparent)]
    Admin(#[from] crate::admin::AdminError),
    /// The gateway could not run.
    #[error(transparent)]
    Run(#[from] app::RunError),
    /// Anything else, in words.
    #[error("{0}")]
    Other(String),
}

impl CliError {
    fn odd_answer() -> Self {
        Self::Other(
            "the gateway gave an answer that this version does not understand; are both of the same version?"
                .to_owned(),
        )
    }
}

impl Cli {
    /// Does what was asked.
    pub fn execute(self) -> Result<(), CliError> {
        let named = self.config.filter(|path| !path.as_os_str().is_empty());
        let config = named.clone().unwrap_or_else(|| DEFAULT_CONFIG.into());
        match self.command {
            Command::Run => Ok(app::run(&config)?),
            Command::Check => configuration::check(&config),
            Command::Explain { device } => configuration::explain(&config, device.as_deref()),
            Command::Init { directory, id, link, no_ca } => {
                let directory = directory.or(named).unwrap_or_else(|| ".".into());
                configuration::init(&directory, &starter::Options { id, link }, !no_ca)
            }
            Command::Certs { command } => certs::execute(&config, &crate::platform::process::host_id(), command),
            Command::Claim => configuration::new_claim(&data_dir(&config)?),
            Command::Firmware { command } => firmware::execute(&config, command),
            #[cfg(feature = "margo")]
            Command::Margo { command } => {
                let loaded = crate::config::load(&config)?;
                margo::execute(loaded.gateway.margo.as_ref(), loaded.gateway.svid.as_ref(), command)
            }
            Command::HashPassword => configuration::hash_password(),
            Command::Store { command } => store::execute(&config, command),
            Command::Devices { json } => block_on(live::devices(&data_dir(&config)?, json)),
            Command::Points { device, json } => block_on(live::points(&data_dir(&config)?, device, json)),
            Command::Tail { device, point, json } => block_on(live::tail(&data_dir(&config)?, device, point, json)),
            Command::Onboard { command } => block_on(manage::onboard(&data_dir(&config)?, command)),
            Command::Approve(on) => block_on(manage::act(&data_dir(&config)?, "approve", on)),
            Command::Reject(on) => block_on(manage::act(&data_dir(&config)?, "reject", on)),
            Command::Config { command } => block_on(manage::config(&data_dir(&config)?, command)),
            Command::Send(args) => block_on(manage::command(&data_dir(&config)?, args)),
            Command::Audit(args) => manage::audit(&data_dir(&config)?, &args),
            Command::Export(args) => block_on(manage::export(&data_dir(&config)?, args)),
            Command::Import(args) => block_on(manage::import(&data_dir(&config)?, args)),
            Command::Version { json } => version(json),
            #[cfg(feature = "demo")]
            Command::Demo(args) => demo::run(args),
        }
    }
}

/// Writes to standard output. Nobody may be left to read it, which is no failure of ours.
fn show(text: std::fmt::Arguments<'_>) {
    let mut out = std::io::stdout().lock();
    if let Err(error) = out.write_fmt(text).and_then(|()| out.flush())
        && error.kind() != std::io::ErrorKind::BrokenPipe
    {
        eprintln!("fieldgate: write to standard output: {error}");
    }
}

fn data_dir(config: &std::path::Path) -> Result<PathBuf, CliError> {
    Ok(crate::config::find_data_dir(config)?)
}

/// Runs a short client command on a runtime of its own.
pub(crate) fn block_on<T>(task: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| CliError::Other(format!("start: {e}")))?.block_on(task)
}

fn version(json: bool) -> Result<(), CliError> {
    let features: Vec<_> =
        [("modbus", cfg!(feature = "modbus")), ("otlp", cfg!(feature = "otlp")), ("demo", cfg!(feature = "demo"))]
            .into_iter()
            .filter_map(|(name, built)| built.then_some(name))
            .collect();
    let version = env!("CARGO_PKG_VERSION");
    if json {
        return live::print_json(&serde_json::json!({ "version": version, "features": features, "contract": "v1" }));
    }
    println!("fieldgate {version} (topic contract v1; built with {})", features.join(", "));
    Ok(())
}
