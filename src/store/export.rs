//! The log as text, for an engineer with a laptop: CSV with a line for each value, or a JSON object for each record.

use std::io::{BufWriter, Write};
use std::path::Path;

use prost::Message;
use serde_json::json;

use super::fs::RealFs;
use super::inspect::{InspectError, Progress, lane_files};
use super::log::holes::Hole;
use super::log::progress::Item;
use crate::contract::mend::mend;
use crate::contract::{timestamp, v1};
use crate::model::{Lane, Record, RecordKind};
use crate::platform::clock::ClockBook;

/// Form of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `lane,seq,time,kind,device,point,value,quality,reason`: a line for each value, event, result and gap.
    Csv,
    /// One JSON object for each record, on one line.
    JsonLines,
}

/// What to export.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    /// Only this lane.
    pub lane: Option<Lane>,
    /// Only this device; gaps are always exported.
    pub device: Option<String>,
    /// Only records appended at or after this, milliseconds since 1970.
    pub from_ms: Option<i64>,
    /// Only records appended before this.
    pub until_ms: Option<i64>,
}

/// What was exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Exported {
    /// Records.
    pub records: u64,
    /// Gaps.
    pub gaps: u64,
}

/// Writes what is in the log of the store in `store`, with stamps mended by `settings`. Works while the gateway runs.
///
/// # Errors
/// There is no log, a file cannot be read, or `out` refuses.
pub fn export(
    store: &Path,
    filter: &Filter,
    format: Format,
    settings: &ClockBook,
    out: impl Write,
    mut progress: impl FnMut(Progress),
) -> Result<Exported, InspectError> {
    let lanes: Vec<Lane> = Lane::ALL.into_iter().filter(|l| filter.lane.is_none_or(|only| only == *l)).collect();
    let files = lanes.iter().map(|&lane| lane_files(&RealFs, store, lane)).collect::<Result<Vec<_>, _>>()?;
    let total = files.iter().flat_map(|f| f.segments.iter().map(|s| s.1)).sum();
    let mut done = 0;
    let mut writer = Writer::new(out, format, settings).map_err(InspectError::Output)?;
    for lane in &files {
        let read = |bytes| {
            done += bytes;
            progress(Progress { done, total });
        };
        lane.walk(&RealFs, read, |item| writer.item(filter, lane.lane, item).map_err(InspectError::Output))?;
    }
    writer.finish().map_err(InspectError::Output)
}

/// Every entry of the audit log of the store in `store`, oldest first, with times mended by `settings`. Works while the gateway runs.
///
/// # Errors
/// There is no log, or a file cannot be read.
pub fn audit(store: &Path, settings: &ClockBook, mut each: impl FnMut(v1::AuditEntry)) -> Result<(), InspectError> {
    let by = |uptime, wall_ms, trust| settings.correct(uptime, wall_ms, trust);
    let files = lane_files(&RealFs, store, Lane::Critical)?;
    let take = |item| {
        if let Item::Record(record) = item
            && record.kind == RecordKind::Audit
            && let Ok(entry) =
                v1::AuditEntry::decode(mend(&record, &by).map_or(record.payload, |mended| mended.payload))
        {
            each(v1::AuditEntry { seq: record.seq, ..entry });
        }
        Ok(())
    };
    files.walk(&RealFs, |_| {}, take).map(drop)
}

enum Output<W: Write> {
    Csv(Box<csv::Writer<BufWriter<W>>>),
    Json(BufWriter<W>),
}

struct Writer<'a, W: Write> {
    settings: &'a ClockBook,
    output: Output<W>,
    exported: Exported,
}

/// One line of CSV.
#[derive(Default)]
struct Line {
    device: String,
    point: String,
    value: String,
    quality: String,
    reason: String,
}

impl<'a, W: Write> Writer<'a, W> {
    fn new(out: W, format: Format, settings: &'a ClockBook) -> std::io::Result<Self> {
        let output = match format {
            Format::JsonLines => Output::Json(BufWriter::new(out)),
            Format::Csv => {
                let mut csv = csv::Writer::from_writer(BufWriter::new(out));
                csv.write_record(["lane", "seq", "time", "kind", "device", "point", "value", "quality", "reason"])?;
                Output::Csv(Box::new(csv))
            }
        };
        Ok(Self { settings, output, exported: Exported::default() })
    }

    fn item(&mut self, filter: &Filter, lane: Lane, item: Item) -> std::io::Result<()> {
        match item {
            Item::Hole(hole) if hole.records == 0 => Ok(()),
            Item::Hole(hole) => {
                self.exported.gaps += 1;
                self.gap(lane, &hole)
            }
            Item::Record(record) => {
                let by = |uptime, wall_ms, trust| self.settings.correct(uptime, wall_ms, trust);
                let record = mend(&record, &by).unwrap_or(record);
                let late = filter.from_ms.is_some_and(|from| record.ts_ms < from);
                let early = filter.until_ms.is_some_and(|until| record.ts_ms >= until);
                let wanted = filter.device.as_ref().is_none_or(|d| record.device == crc32c::crc32c(d.as_bytes()));
                if late || early || !wanted || matches!(record.kind, RecordKind::Journal | RecordKind::Erased) {
                    return Ok(());
                }
                self.exported.records += 1;
                self.record(&record)
            }
        }
    }

    fn gap(&mut self, lane: Lane, hole: &Hole) -> std::io::Result<()> {
        let line = Line {
            value: hole.records.to_string(),
            reason: format!("{} {}-{}", hole.reason.as_str(), hole.from, hole.to),
            ..Line::default()
        };
        match &mut self.output {
            Output::Csv(_) => self.lines(lane, hole.to, hole.from_ms, "gap", vec![line]),
            Output::Json(out) => {
                let gap = crate::contract::gap(&hole.gap(lane, None));
                serde_json::to_writer(&mut *out, &json!({ "kind": "gap", "gap": gap }))?;
                out.write_all(b"\n")
            }
        }
    }

    fn record(&mut self, record: &Record) -> std::io::Result<()> {
        let kind = kind_name(record.kind);
        match &mut self.output {
            Output::Csv(_) => self.lines(record.lane, record.seq, record.ts_ms, kind, lines(record)),
            Output::Json(out) => {
                let head = json!({
                    "lane": record.lane.as_str(), "seq": record.seq, "appended": timestamp(record.ts_ms),
                    "kind": kind, "message": message(record),
                });
                serde_json::to_writer(&mut *out, &head)?;
                out.write_all(b"\n")
            }
        }
    }

    fn lines(&mut self, lane: Lane, seq: u64, ts_ms: i64, kind: &str, lines: Vec<Line>) -> std::io::Result<()> {
        let Output::Csv(csv) = &mut self.output else { return Ok(()) };
        let time = time_text(ts_ms);
        let seq = seq.to_string();
        for line in lines {
            let Line { device, point, value, quality, reason } = line;
            csv.write_record([lane.as_str(), &seq, &time, kind, &device, &point, &value, &quality, &reason])?;
        }
        Ok(())
    }

    fn finish(self) -> std::io::Result<Exported> {
        match self.output {
            Output::Csv(mut csv) => csv.flush()?,
            Output::Json(mut out) => out.flush()?,
        }
        Ok(self.exported)
    }
}

fn kind_name(kind: RecordKind) -> &'static str {
    match kind {
        RecordKind::Telemetry => "telemetry",
        RecordKind::Event => "event",
        RecordKind::Gap => "gap",
        RecordKind::CommandResult => "command-result",
        RecordKind::Audit => "audit",
        RecordKind::Journal => "journal",
        RecordKind::ManagementResult => "management-result",
        RecordKind::Erased => "erased",
    }
}

/// RFC 3339, or nothing when the time is unknown.
fn time_text(ms: i64) -> String {
    let text = serde_json::to_value(timestamp(ms)).ok().and_then(|v| v.as_str().map(str::to_owned));
    text.filter(|_| ms != 0).unwrap_or_default()
}

/// The message of a record as JSON; text that says so when it cannot be understood.
fn message(record: &Record) -> serde_json::Value {
    fn decode<M: Message + Default + serde::Serialize>(payload: &[u8]) -> Option<serde_json::Value> {
        serde_json::to_value(M::decode(payload).ok()?).ok()
    }
    let decoded = match record.kind {
        RecordKind::Telemetry => decode::<v1::Telemetry>(&record.payload),
        RecordKind::Event => decode::<v1::Event>(&record.payload),
        RecordKind::CommandResult => decode::<v1::CommandResult>(&record.payload),
        RecordKind::Audit => decode::<v1::AuditEntry>(&record.payload),
        RecordKind::ManagementResult => decode::<v1::ManagementResult>(&record.payload),
        RecordKind::Gap | RecordKind::Journal | RecordKind::Erased => None,
    };
    decoded.unwrap_or_else(
        || json!({ "unreadable": record.payload.iter().map(|b| format!("{b:02x}")).collect::<String>() }),
    )
}

/// The lines of a record: one for each value, or one for the whole.
fn lines(record: &Record) -> Vec<Line> {
    let Some(telemetry) =
        (record.kind == RecordKind::Telemetry).then(|| v1::Telemetry::decode(record.payload.as_ref()).ok()).flatten()
    else {
        let message = message(record);
        let device = message.get("device").and_then(|d| d.as_str()).unwrap_or_default().to_owned();
        return vec![Line { device, value: message.to_string(), ..Line::default() }];
    };
    let line = |point: v1::PointValue| Line {
        device: telemetry.device.clone(),
        value: point.value.as_ref().map(value_text).unwrap_or_default(),
        quality: point.quality().as_str_name().to_ascii_lowercase(),
        point: point.name,
        reason: point.reason,
    };
    telemetry.points.clone().into_iter().map(line).collect()
}

/// A value as a spreadsheet wants it: text without quotes.
fn value_text(value: &pbjson_types::Value) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        Ok(serde_json::Value::Null) | Err(_) => String::new(),
        Ok(other) => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::json_value;
    use crate::model::Value;
    use crate::platform::clock::SystemClock;
    use crate::store::{Config, NewRecord, Store};

    fn telemetry(device: &str, value: Value) -> NewRecord {
        let point = v1::PointValue {
            name: "level".into(),
            value: Some(json_value(&value)),
            quality: v1::Quality::Good.into(),
            ..v1::PointValue::default()
        };
        let message = v1::Telemetry { device: device.into(), points: vec![point], ..v1::Telemetry::default() };
        NewRecord {
            lane: Lane::Bulk,
            kind: RecordKind::Telemetry,
            device: crc32c::crc32c(device.as_bytes()),
            ts_ms: 1_763_812_800_123,
            count: 1,
            payload: message.encode_to_vec().into(),
        }
    }

    #[tokio::test]
    async fn a_running_store_is_exported_as_csv_and_json() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        let store = Store::open(Config::with_quota(&path, 16 << 20), SystemClock::shared()).unwrap();
        let records = vec![telemetry("pump", Value::Double(21.3)), telemetry("fan", Value::Text("a,b".into()))];
        store.append(records).await.unwrap();
        let mut csv = Vec::new();
        let done = export(&path, &Filter::default(), Format::Csv, &ClockBook::default(), &mut csv, |_| {}).unwrap();
        assert_eq!(done, Exported { records: 2, gaps: 0 });
        assert_eq!(
            String::from_utf8(csv).unwrap(),
            "lane,seq,time,kind,device,point,value,quality,reason\n\
             bulk,1,2025-11-22T12:00:00.123+00:00,telemetry,pump,level,21.3,good,\n\
             bulk,2,2025-11-22T12:00:00.123+00:00,telemetry,fan,level,\"a,b\",good,\n"
        );
        let mut json = Vec::new();
        let filter = Filter { device: Some("pump".into()), ..Filter::default() };
        export(&path, &filter, Format::JsonLines, &ClockBook::default(), &mut json, |_| {}).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&json).unwrap();
        assert_eq!((&value["seq"], &value["message"]["points"][0]["value"]), (&json!(1), &json!(21.3)));
    }
}
