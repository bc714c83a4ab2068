//! Entry point: read the command line, do what it says, say how it ended.

use std::process::ExitCode;

use clap::Parser;
use fieldgate::cli::Cli;

fn main() -> ExitCode {
    match Cli::parse().execute() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fieldgate: {error}");
            ExitCode::FAILURE
        }
    }
}
