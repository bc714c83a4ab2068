//! `fieldgate store …`: look into the store of a running gateway.

use std::path::Path;

use clap::Subcommand;
use serde_json::Value;

use super::CliError;
use super::live::{ask, print_json};
use super::table::Table;
use crate::admin::{Answer, Request};

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
    match command {
        StoreCommand::Status { json } => super::block_on(status(&super::data_dir(config)?, json)),
    }
}

/// The store's part of the health message: the figures that `health` publishes, of now.
async fn status(data_dir: &Path, json: bool) -> Result<(), CliError> {
    let Answer::Json { value } = ask(data_dir, Request::Health).await? else {
        return Err(CliError::odd_answer());
    };
    let (lanes, consumers) = (&value["lanes"], &value["consumers"]);
    if json {
        return print_json(&serde_json::json!({ "lanes": lanes, "consumers": consumers }));
    }
    let lane = [
        ("lane", "lane"),
        ("bytes", "bytes"),
        ("quotaBytes", "quota"),
        ("firstSeq", "first"),
        ("lastSeq", "last"),
        ("syncedSeq", "on disk up to"),
        ("evictedRecords", "evicted"),
        ("writeAmplification", "write amplification"),
    ];
    let consumer = [
        ("name", "consumer"),
        ("connected", "connected"),
        ("pendingRecords", "not confirmed"),
        ("pendingBytes", "bytes"),
        ("oldestSeconds", "oldest, s"),
        ("confirmed", "confirmed"),
        ("lost", "lost"),
        ("reason", "reason"),
    ];
    print!("{}\n{}", table(lane, lanes), table(consumer, consumers));
    Ok(())
}

/// One row for each object; columns are a field and its heading.
fn table<const N: usize>(columns: [(&str, &'static str); N], rows: &Value) -> Table {
    let mut table = Table::new(columns.map(|(_, heading)| heading));
    for row in rows.as_array().into_iter().flatten() {
        // The JSON mapping leaves out what has its default.
        table.row(columns.map(|(field, _)| match &row[field] {
            Value::Null if field == "reason" => String::new(),
            Value::Null if field == "connected" => "false".to_owned(),
            Value::Null => "0".to_owned(),
            Value::String(text) => text.clone(),
            Value::Number(number) => {
                number.as_f64().map_or_else(|| number.to_string(), |n| format!("{}", (n * 100.0).round() / 100.0))
            }
            other => other.to_string(),
        }));
    }
    table
}
