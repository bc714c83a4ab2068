//! Stamps of stored messages that were taken before the clock was set.

use bytes::Bytes;
use prost::Message;

use super::stamped::{Stamped, trust};
use super::v1;
use super::view::TelemetryView;
use crate::model::{ClockTrust, Correction, Record, RecordKind, Uptime};

/// Says how a stamp is to be changed: uptime, wall time in milliseconds, trust in it.
/// `None`: not at all.
pub type Correct<'a> = &'a dyn Fn(Uptime, i64, ClockTrust) -> Option<Correction>;

/// The record with corrected times, if any of them is to be changed. Gaps carry nothing that would allow it.
pub fn mend(record: &Record, by: Correct<'_>) -> Option<Record> {
    let (payload, shift_ms) = match record.kind {
        RecordKind::Telemetry => telemetry(&record.payload, by)?,
        RecordKind::Event => other::<v1::Event>(&record.payload, by)?,
        RecordKind::CommandResult => other::<v1::CommandResult>(&record.payload, by)?,
        RecordKind::ManagementResult => other::<v1::ManagementResult>(&record.payload, by)?,
        RecordKind::Audit => other::<v1::AuditEntry>(&record.payload, by)?,
        RecordKind::Gap | RecordKind::Journal | RecordKind::Erased => return None,
    };
    Some(Record { payload, ts_ms: record.ts_ms.saturating_add(shift_ms), ..record.clone() })
}

fn telemetry(payload: &Bytes, by: Correct<'_>) -> Option<(Bytes, i64)> {
    // The view costs nothing; few stamps need mending.
    let view = TelemetryView::parse(payload).ok().filter(|view| view.uptime.boot != 0 && !view.mended)?;
    let trust = trust(view.clock)?;
    let wall_ms = view.time.seconds.checked_mul(1_000)?.checked_add(i64::from(view.time.nanos) / 1_000_000)?;
    let Correction { shift_ms, trust } = by(view.uptime, wall_ms, trust)?;
    let mut message = v1::Telemetry::decode(payload.as_ref()).ok()?;
    shift(&mut message.time, shift_ms);
    message.points.iter_mut().for_each(|point| shift(&mut point.time, shift_ms));
    (message.clock, message.mended) = (v1::ClockTrust::from(trust).into(), true);
    Some((message.encode_to_vec().into(), shift_ms))
}

fn other<M: Stamped + Message + Default>(payload: &Bytes, by: Correct<'_>) -> Option<(Bytes, i64)> {
    let mut message = M::decode(payload.as_ref()).ok()?;
    let shift_ms = message.mend(by)?;
    Some((message.encode_to_vec().into(), shift_ms))
}

pub(super) fn shift(time: &mut Option<pbjson_types::Timestamp>, by_ms: i64) {
    if let Some(time) = time {
        let nanos = i64::from(time.nanos) + by_ms.rem_euclid(1_000) * 1_000_000;
        time.seconds = time.seconds.saturating_add(by_ms.div_euclid(1_000)).saturating_add(nanos / 1_000_000_000);
        time.nanos = (nanos % 1_000_000_000) as i32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::timestamp;
    use crate::model::{Lane, Stamp};

    fn mend_by(record: &Record, shift_ms: i64) -> Option<Record> {
        mend(record, &|uptime, wall_ms, trust| {
            assert_eq!((uptime, wall_ms), (Uptime { boot: 3, ms: 1_500 }, 1_500));
            (trust != ClockTrust::Synchronised).then_some(Correction { shift_ms, trust: ClockTrust::Holdover })
        })
    }

    fn record(kind: RecordKind, message: &impl Message) -> Record {
        let payload = message.encode_to_vec().into();
        Record { lane: Lane::Bulk, seq: 1, ts_ms: 1_500, device: 1, kind, count: 1, payload }
    }

    #[test]
    fn every_time_of_a_batch_is_shifted_and_marked() {
        let point = |time: Option<i64>| v1::PointValue { time: time.map(timestamp), ..v1::PointValue::default() };
        let message = v1::Telemetry {
            time: Some(timestamp(1_500)),
            points: vec![point(None), point(Some(1_400))],
            clock: v1::ClockTrust::Unsynchronised.into(),
            boot: 3,
            uptime_ms: 1_500,
            ..v1::Telemetry::default()
        };
        let stored = record(RecordKind::Telemetry, &message);
        for by in [1_763_812_800_123, -7_199_999] {
            let mended = mend_by(&stored, by).unwrap();
            let read = v1::Telemetry::decode(mended.payload.as_ref()).unwrap();
            assert_eq!((read.time, mended.ts_ms), (Some(timestamp(1_500 + by)), 1_500 + by));
            assert_eq!((read.points[0].time, read.points[1].time), (None, Some(timestamp(1_400 + by))));
            assert!(read.mended && read.clock() == v1::ClockTrust::Holdover);
            assert_eq!(mend_by(&mended, 5), None, "once is enough");
        }
    }

    #[test]
    fn events_are_mended_and_what_has_no_uptime_is_not() {
        let event = v1::Event {
            time: Some(timestamp(1_500)),
            clock: v1::ClockTrust::Unsynchronised.into(),
            boot: 3,
            uptime_ms: 1_500,
            ..v1::Event::default()
        };
        let mended = mend_by(&record(RecordKind::Event, &event), 60_000).unwrap();
        assert_eq!(v1::Event::decode(mended.payload.as_ref()).unwrap().time, Some(timestamp(61_500)));
        let at = Stamp {
            wall_ms: 1_500,
            mono_ns: 0,
            uptime: Uptime { boot: 3, ms: 1_500 },
            trust: ClockTrust::Unsynchronised,
        };
        let entry = record(RecordKind::Audit, &v1::AuditEntry::default().stamped(at));
        let result = record(RecordKind::CommandResult, &v1::CommandResult::default().stamped(at));
        let answer = record(RecordKind::ManagementResult, &v1::ManagementResult::default().stamped(at));
        for stored in [entry, result, answer] {
            let mended = mend_by(&stored, 60_000).unwrap();
            assert_eq!(mended.ts_ms, 61_500);
            assert_eq!(mend_by(&mended, 1), None, "once is enough");
        }
        let event = v1::Event { boot: 0, ..event };
        assert_eq!(mend_by(&record(RecordKind::Event, &event), 1), None);
        let damaged = Record { payload: vec![0xff; 9].into(), ..record(RecordKind::Telemetry, &event) };
        assert_eq!(mend_by(&damaged, 1), None);
    }
}
