//! `fieldgate store …`: look into the store of a running or a stopped gateway.
//!
//! Everything but `repair` only reads and may be used while the gateway runs.

mod status;

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use clap::{Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::CliError;
use super::live::print_json;
use super::table::Table;
use crate::contract::timestamp;
use crate::model::{Gap, Lane};
use crate::platform::clock::ClockBook;
use crate::store::export::{self, Filter, Format};
use crate::store::inspect::{self, LaneReport, Progress};

#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Lanes, sizes, consumers and what they have not confirmed.
    Status {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Read everything, check every checksum, list damage; exit code 1 when there is any.
    Verify {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// List what was lost: from, to, how many, why.
    Gaps {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Write the stored values as CSV or JSON lines.
    Export {
        /// Form of the file.
        #[arg(long, value_enum, default_value_t = Form::Csv)]
        format: Form,
        /// Where to; standard output when not given.
        #[arg(long, short)]
        output: Option<PathBuf>,
        /// Only this device.
        #[arg(long)]
        device: Option<String>,
        /// Only this lane: `critical` (events, results, audit) or `bulk` (values).
        #[arg(long, value_enum)]
        lane: Option<LaneName>,
        /// Only records stored at or after this time, such as 2026-11-22T08:00:00Z.
        #[arg(long)]
        from: Option<jiff::Timestamp>,
        /// Only records stored before this time.
        #[arg(long)]
        until: Option<jiff::Timestamp>,
    },
    /// Save what is intact in damaged segments and set the damaged files aside. The gateway must be stopped.
    Repair {
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
}

/// Form of an export.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Form {
    /// A line for each value, event, result and gap.
    Csv,
    /// A JSON object for each record.
    Jsonl,
}

/// Name of a lane on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
#[allow(missing_docs, reason = "the names say it")]
pub enum LaneName {
    Critical,
    Bulk,
}

/// Does what was asked.
pub fn execute(config: &Path, command: StoreCommand) -> Result<(), CliError> {
    let data_dir = super::data_dir(config)?;
    let store = data_dir.join("store");
    match command {
        StoreCommand::Status { json } => status::status(&data_dir, &store, json),
        StoreCommand::Verify { json } => verify(&store, json),
        StoreCommand::Gaps { json } => gaps(&store, json),
        StoreCommand::Repair { yes } => repair(&store, yes),
        StoreCommand::Export { format, output, device, lane, from, until } => {
            let filter = Filter {
                lane: lane.map(|name| match name {
                    LaneName::Critical => Lane::Critical,
                    LaneName::Bulk => Lane::Bulk,
                }),
                device,
                from_ms: from.map(|t| t.as_millisecond()),
                until_ms: until.map(|t| t.as_millisecond()),
            };
            let format = match format {
                Form::Csv => Format::Csv,
                Form::Jsonl => Format::JsonLines,
            };
            export(&data_dir, &store, &filter, format, output.as_deref())
        }
    }
}

fn failed(error: impl std::fmt::Display) -> CliError {
    CliError::Other(error.to_string())
}

/// Shows a bar on a terminal's standard error; nothing elsewhere.
fn bar(what: &'static str) -> impl FnMut(Progress) {
    let shown = std::io::stderr().is_terminal();
    let mut last = u64::MAX;
    move |progress| {
        let percent = (100 * progress.done).checked_div(progress.total).unwrap_or(100);
        if !shown || percent == last {
            return;
        }
        last = percent;
        let filled = "#".repeat(percent as usize * 30 / 100);
        eprint!("\r{what} [{filled:<30}] {percent:3} %{}", if percent == 100 { "\n" } else { "" });
    }
}

fn verify(store: &Path, json: bool) -> Result<(), CliError> {
    let report = inspect::verify(store, bar("reading")).map_err(failed)?;
    if json {
        print_json(&json!({ "lanes": report.lanes.iter().map(lane_json).collect::<Vec<_>>() }))?;
    } else {
        let mut table = Table::new(["lane", "first", "last", "records", "missing", "damaged segments"]);
        for lane in &report.lanes {
            let (first, last) =
                lane.range.map_or_else(|| ("-".into(), "-".into()), |(a, b)| (a.to_string(), b.to_string()));
            let missing: u64 = lane.gaps.iter().map(|g| g.records).sum();
            let records = lane.records.to_string();
            table.row([
                lane.lane.as_str().to_owned(),
                first,
                last,
                records,
                missing.to_string(),
                lane.damaged.len().to_string(),
            ]);
        }
        print!("{table}");
    }
    let damaged: Vec<_> = report.lanes.iter().flat_map(|l| &l.damaged).map(|p| p.display().to_string()).collect();
    if damaged.is_empty() {
        return Ok(());
    }
    Err(failed(format!("damaged: {}; `fieldgate store repair` saves what is intact in them", damaged.join(", "))))
}

fn gaps(store: &Path, json: bool) -> Result<(), CliError> {
    let report = inspect::verify(store, bar("reading")).map_err(failed)?;
    let gaps: Vec<_> = report.lanes.iter().flat_map(|l| &l.gaps).collect();
    if json {
        return print_json(&gaps.into_iter().map(gap_json).collect::<Vec<_>>());
    }
    let mut table = Table::new(["lane", "from", "to", "records", "reason", "first lost", "last lost"]);
    let time = |ms: i64| if ms == 0 { "unknown".to_owned() } else { rfc3339(ms) };
    for gap in gaps {
        table.row([
            gap.lane.as_str().to_owned(),
            gap.from_seq.to_string(),
            gap.to_seq.to_string(),
            gap.records.to_string(),
            gap.reason.as_str().to_owned(),
            time(gap.from_ms),
            time(gap.to_ms),
        ]);
    }
    print!("{table}");
    Ok(())
}

fn repair(store: &Path, yes: bool) -> Result<(), CliError> {
    if !yes {
        if !std::io::stdin().is_terminal() {
            return Err(failed("a repair makes damage final; say --yes to do it without being asked"));
        }
        eprint!("This saves what is intact in damaged segments and sets the files aside as .bad. Go on? [y/N] ");
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer).map_err(failed)?;
        if !answer.trim().eq_ignore_ascii_case("y") {
            return Err(failed("nothing was changed"));
        }
    }
    let repaired = inspect::repair(store, bar("reading")).map_err(failed)?;
    if repaired.set_aside.is_empty() {
        println!("nothing is damaged");
    }
    for path in &repaired.set_aside {
        println!("set aside {}", path.display());
    }
    println!("saved {} records, lost {}", repaired.saved, repaired.lost);
    Ok(())
}

fn export(
    data_dir: &Path,
    store: &Path,
    filter: &Filter,
    format: Format,
    output: Option<&Path>,
) -> Result<(), CliError> {
    let settings = ClockBook::open(data_dir);
    let exported = match output {
        Some(path) => {
            let file = File::create_new(path).map_err(|e| failed(format!("create {}: {e}", path.display())))?;
            export::export(store, filter, format, &settings, file, bar("exporting"))
        }
        None => export::export(store, filter, format, &settings, std::io::stdout().lock(), |_| {}),
    };
    let exported = exported.map_err(failed)?;
    let _ = writeln!(std::io::stderr(), "{} records and {} gaps exported", exported.records, exported.gaps);
    Ok(())
}

fn lane_json(lane: &LaneReport) -> Value {
    json!({
        "lane": lane.lane.as_str(),
        "bytes": lane.bytes,
        "segments": lane.segments,
        "setAside": lane.set_aside,
        "closedCleanly": lane.clean,
        "firstSeq": lane.range.map(|r| r.0),
        "lastSeq": lane.range.map(|r| r.1),
        "records": lane.records,
        "damaged": lane.damaged,
        "gaps": lane.gaps.iter().map(gap_json).collect::<Vec<_>>(),
        "consumers": lane.consumers.iter().map(|c| json!({ "name": c.name, "confirmedUpTo": c.cursor, "lost": c.lost })).collect::<Vec<_>>(),
    })
}

fn gap_json(gap: &Gap) -> Value {
    let time = |ms: i64| (ms != 0).then(|| rfc3339(ms));
    json!({
        "lane": gap.lane.as_str(),
        "fromSeq": gap.from_seq,
        "toSeq": gap.to_seq,
        "records": gap.records,
        "reason": gap.reason.as_str(),
        "from": time(gap.from_ms),
        "to": time(gap.to_ms),
    })
}

fn rfc3339(wall_ms: i64) -> String {
    serde_json::to_value(timestamp(wall_ms)).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}
