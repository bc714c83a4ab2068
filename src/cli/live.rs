//! The values of a running gateway: `devices`, `points`, `tail`.

use std::io::Write;
use std::path::Path;

use super::CliError;
use super::table::Table;
use crate::admin::{Answer, Client, DeviceLine, PointLine, Request};

/// `fieldgate devices`
pub async fn devices(data_dir: &Path, json: bool) -> Result<(), CliError> {
    let Answer::Devices { devices } = ask(data_dir, Request::Devices).await? else {
        return Err(CliError::odd_answer());
    };
    if json {
        return print_json(&devices);
    }
    print!("{}", devices_table(&devices));
    Ok(())
}

/// `fieldgate points`
pub async fn points(data_dir: &Path, device: Option<String>, json: bool) -> Result<(), CliError> {
    let Answer::Points { points } = ask(data_dir, Request::Points { device }).await? else {
        return Err(CliError::odd_answer());
    };
    if json {
        return print_json(&points);
    }
    print!("{}", points_table(&points));
    Ok(())
}

/// `fieldgate tail`: until the user stops it or the gateway ends.
pub async fn tail(data_dir: &Path, device: Option<String>, point: Option<String>, json: bool) -> Result<(), CliError> {
    let mut client = Client::connect(data_dir).await?;
    let mut answer = Some(client.ask(&Request::Tail { device, point }).await?);
    let mut out = std::io::stdout().lock();
    while let Some(line) = answer {
        let written = match (&line, json) {
            (_, true) => serde_json::to_writer(&mut out, &line).map_err(Into::into).and_then(|()| writeln!(out)),
            (Answer::Sample(sample), false) => writeln!(out, "{}", sample_line(sample)),
            (Answer::Skipped { count }, false) => writeln!(out, "… {count} batches skipped: this terminal is too slow"),
            _ => return Err(CliError::odd_answer()),
        };
        if written.and_then(|()| out.flush()).is_err() {
            return Ok(()); // the reader of a pipe has gone, as `head` does
        }
        answer = client.next().await?;
    }
    Err(crate::admin::AdminError::Closed.into())
}

/// Asks the running gateway one question.
pub async fn ask(data_dir: &Path, request: Request) -> Result<Answer, CliError> {
    Ok(Client::connect(data_dir).await?.ask(&request).await?)
}

pub(super) fn devices_table(devices: &[DeviceLine]) -> Table {
    let mut table = Table::new([
        "device",
        "life",
        "state",
        "protocol",
        "address",
        "points",
        "requests",
        "failures",
        "overruns",
        "says it is",
        "reason",
    ]);
    for d in devices {
        let identity = ["vendor", "model", "firmware"].iter().filter_map(|k| d.identity.get(*k));
        let identity = identity.filter(|v| !v.is_empty()).cloned().collect::<Vec<_>>().join(" ");
        table.row([
            d.device.clone(),
            d.life.clone(),
            d.state.clone(),
            d.protocol.clone(),
            d.address.clone(),
            d.points.to_string(),
            d.requests.to_string(),
            d.failures.to_string(),
            d.overruns.to_string(),
            identity,
            d.reason.clone(),
        ]);
    }
    table
}

pub(super) fn points_table(points: &[PointLine]) -> Table {
    let mut table = Table::new(["device", "point", "value", "unit", "quality", "time", "reason"]);
    for p in points {
        table.row([
            p.device.clone(),
            p.point.clone(),
            value_text(&p.value),
            p.unit.clone(),
            p.quality.clone(),
            p.time.clone(),
            p.reason.clone(),
        ]);
    }
    table
}

fn value_text(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::Null => "-".to_owned(),
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn sample_line(s: &PointLine) -> String {
    let name = format!("{}/{}", s.device, s.point);
    let reason = if s.reason.is_empty() { String::new() } else { format!(" ({})", s.reason) };
    let safe: String = value_text(&s.value).chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    format!("{}  {name:<32} {safe:>14} {:<6} {}{reason}", s.time, s.unit, s.quality)
}

pub(super) fn print_json(value: &impl serde::Serialize) -> Result<(), CliError> {
    let text = serde_json::to_string_pretty(value).map_err(|e| CliError::Other(e.to_string()))?;
    println!("{text}");
    Ok(())
}
