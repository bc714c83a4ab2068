//! `fieldgate store status`: the figures of the running gateway, or what the files say when it is stopped.

use std::path::Path;

use serde_json::{Value, json};

use crate::admin::{AdminError, Answer, Request};
use crate::cli::CliError;
use crate::cli::live::{ask, print_json};
use crate::cli::table::Table;
use crate::store::inspect::{self, LaneReport};

/// Prints the status; a stopped gateway's store is read from its files.
pub fn status(data_dir: &Path, store: &Path, json: bool) -> Result<(), CliError> {
    match crate::cli::block_on(running(data_dir, json)) {
        Err(CliError::Admin(AdminError::NotRunning(_))) => stopped(store, json),
        outcome => outcome,
    }
}

fn stopped(store: &Path, json: bool) -> Result<(), CliError> {
    let report = inspect::status(store).map_err(|e| CliError::Other(e.to_string()))?;
    if json {
        return print_json(
            &json!({ "running": false, "lanes": report.lanes.iter().map(super::lane_json).collect::<Vec<_>>() }),
        );
    }
    let mut lanes = Table::new(["lane", "bytes", "segments", "set aside", "closed cleanly"]);
    for lane in &report.lanes {
        let clean = lane.clean.map_or("unknown", |clean| if clean { "yes" } else { "no" });
        lanes.row([
            lane.lane.as_str().to_owned(),
            lane.bytes.to_string(),
            lane.segments.to_string(),
            lane.set_aside.to_string(),
            clean.to_owned(),
        ]);
    }
    println!("the gateway is not running; this is what its files say\n");
    print!("{lanes}\n{}", consumers(&report.lanes));
    Ok(())
}

fn consumers(lanes: &[LaneReport]) -> Table {
    let mut table = Table::new(["consumer", "lane", "confirmed up to", "lost"]);
    for lane in lanes {
        for consumer in &lane.consumers {
            let lane = lane.lane.as_str().to_owned();
            table.row([consumer.name.clone(), lane, consumer.cursor.to_string(), consumer.lost.to_string()]);
        }
    }
    table
}

/// The store's part of the health message: the figures that `health` publishes, of now.
async fn running(data_dir: &Path, json: bool) -> Result<(), CliError> {
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
