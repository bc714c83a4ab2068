//! `fieldgate-est`: a simulated enrolment server (EST, RFC 7030).

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use fieldgate_simulators::est::{EstServer, Options};

/// A simulated enrolment server (EST, RFC 7030) that signs whatever asks with the right token.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Where to listen; port 0 lets the system choose.
    #[arg(long, default_value = "127.0.0.1:8085", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// User that a first enrolment needs.
    #[arg(long, default_value = "gateway")]
    user: String,
    /// Its password. A simulator's password is no secret.
    #[arg(long, default_value = "enrol-me")]
    password: String,
    /// Life of the certificates it issues, in seconds.
    #[arg(long, default_value_t = 3600, value_name = "SECONDS")]
    life: u64,
    /// Where to write the root that vouches for it (PEM).
    #[arg(long, value_name = "FILE")]
    root: PathBuf,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match serve(arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fieldgate-est: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(arguments: Arguments) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let server = EstServer::start(Options {
        listen: arguments.listen,
        credentials: Some((arguments.user, arguments.password)),
        life: Duration::from_secs(arguments.life),
    })
    .await?;
    std::fs::write(&arguments.root, server.root_pem())?;
    println!("{} vouched for by {}", server.url(), arguments.root.display());
    tokio::signal::ctrl_c().await?;
    Ok(())
}
