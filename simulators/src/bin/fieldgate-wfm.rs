//! `fieldgate-wfm`: a simulated Margo fleet manager with discovery, a registry, a page and a control API.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use fieldgate_simulators::margo::{MargoSimError, Scenario, Site};

/// A simulated Margo fleet manager with discovery, a registry, a page and a control API.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Scenario file; the built-in one when left out.
    #[arg(long, value_name = "FILE")]
    scenario: Option<PathBuf>,
    /// Print the built-in scenario, as a start for one's own.
    #[arg(long)]
    print: bool,
    /// Listen on free ports instead of the scenario's.
    #[arg(long)]
    free_ports: bool,
    /// Where to write the bundle, the anchors, and a chain and key for each client.
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// A client to write a chain and a key for; may be repeated.
    #[arg(long = "client", value_name = "ID", default_value = "gateway")]
    clients: Vec<String>,
    /// Life of those certificates, in seconds.
    #[arg(long, default_value_t = 86_400, value_name = "SECONDS")]
    life: u64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.print {
        print!("{}", Scenario::built_in_text());
        return ExitCode::SUCCESS;
    }
    match serve(arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fieldgate-wfm: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(arguments: Arguments) -> Result<(), MargoSimError> {
    let mut scenario = match &arguments.scenario {
        Some(path) => Scenario::read(path)?,
        None => Scenario::parse("built in", Scenario::built_in_text())?,
    };
    if arguments.free_ports {
        scenario = scenario.on_free_ports();
    }
    let site = Site::start(scenario).await?;
    if let Some(folder) = &arguments.out {
        site.write_files(folder, &arguments.clients, Duration::from_secs(arguments.life))?;
    }
    println!("fleet manager  {}  {}", site.wfm().url(), site.authority().wfm_id(site.wfm().id()));
    println!("discovery      {}", site.discovery().url());
    println!("bundle         {}", site.discovery().bundle_url());
    println!("registry       {}", site.registry().address());
    println!("page           http://{}/", site.control());
    let interrupted = tokio::signal::ctrl_c().await;
    interrupted.map_err(|source| MargoSimError::File { path: "the terminal".into(), source })
}
