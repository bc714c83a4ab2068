//! A stored [`super::v1::Telemetry`] read in place.
//!
//! The hot path of every session: thousands of values a second are forwarded, filtered or printed as JSON without being
//! copied into messages first. Everything borrows from the stored octets. Fields that this version does not know are
//! skipped, as protobuf readers do.

use std::str::from_utf8;

use crate::model::Uptime;

/// The stored octets are no telemetry message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the stored telemetry is not valid protobuf: {0}")]
pub struct ViewError(&'static str);

type Read<T> = Result<T, ViewError>;

/// Seconds and nanoseconds since 1970, as in `google.protobuf.Timestamp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TimeView {
    /// Whole seconds since 1970, rounded down.
    pub seconds: i64,
    /// Nanoseconds within the second.
    pub nanos: i32,
}

/// A value as it lies in the message.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ValueView<'a> {
    /// JSON null.
    Null,
    /// A number.
    Number(f64),
    /// A string.
    Text(&'a str),
    /// A boolean.
    Bool(bool),
    /// A list or an object; the gateway writes none, a reader decodes the message in full.
    Composite,
}

/// One value of one point.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PointView<'a> {
    /// Point id.
    pub name: &'a str,
    /// The value, if there is one.
    pub value: Option<ValueView<'a>>,
    /// Number of the [`super::v1::Quality`].
    pub quality: i32,
    /// Why the quality is not good.
    pub reason: &'a str,
    /// Its own time, if it differs from the batch's.
    pub time: Option<TimeView>,
    /// The encoded `google.protobuf.Value` without its tag.
    pub raw_value: &'a [u8],
    /// The encoded `PointValue` without its tag.
    pub raw: &'a [u8],
}

/// A batch of values of one device.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TelemetryView<'a> {
    /// Device id.
    pub device: &'a str,
    /// When the batch was closed.
    pub time: TimeView,
    /// Number of the [`super::v1::ClockTrust`].
    pub clock: i32,
    /// Boot of the machine and uptime at `time`, where the clock may be wrong.
    pub uptime: Uptime,
    /// The times were corrected.
    pub mended: bool,
    stored: &'a [u8],
}

impl<'a> TelemetryView<'a> {
    /// Reads the fields around the points; the points are read one by one by [`TelemetryView::points`].
    pub fn parse(stored: &'a [u8]) -> Read<Self> {
        let mut view = TelemetryView {
            device: "",
            time: TimeView::default(),
            clock: 0,
            uptime: Uptime::default(),
            mended: false,
            stored,
        };
        let mut fields = Fields(stored);
        while let Some((number, field)) = fields.next()? {
            match (number, field) {
                (1, Field::Bytes(b)) => view.device = text(b)?,
                (2, Field::Bytes(b)) => view.time = time(b)?,
                (4, Field::Varint(v)) => view.clock = v as i32,
                (7, Field::Fixed32(v)) => view.uptime.boot = v,
                (8, Field::Varint(v)) => view.uptime.ms = v,
                (9, Field::Varint(v)) => view.mended = v != 0,
                _ => {}
            }
        }
        Ok(view)
    }

    /// The points in the order in which they were read.
    pub fn points(&self) -> Points<'a> {
        Points(Fields(self.stored))
    }
}

/// Iterator over the points of a batch.
#[derive(Debug, Clone)]
pub struct Points<'a>(Fields<'a>);

impl<'a> Iterator for Points<'a> {
    type Item = Read<PointView<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.0.next() {
                Ok(Some((3, Field::Bytes(raw)))) => return Some(point(raw)),
                Ok(Some(_)) => {}
                Ok(None) => return None,
                Err(e) => {
                    self.0 = Fields(&[]);
                    return Some(Err(e));
                }
            }
        }
    }
}

fn point(raw: &[u8]) -> Read<PointView<'_>> {
    let mut view = PointView { name: "", value: None, quality: 0, reason: "", time: None, raw_value: &[], raw };
    let mut fields = Fields(raw);
    while let Some((number, field)) = fields.next()? {
        match (number, field) {
            (1, Field::Bytes(b)) => view.name = text(b)?,
            (2, Field::Bytes(b)) => {
                view.value = value(b)?;
                view.raw_value = b;
            }
            (3, Field::Varint(v)) => view.quality = v as i32,
            (4, Field::Bytes(b)) => view.reason = text(b)?,
            (5, Field::Bytes(b)) => view.time = Some(time(b)?),
            _ => {}
        }
    }
    Ok(view)
}

fn value(raw: &[u8]) -> Read<Option<ValueView<'_>>> {
    let mut value = None;
    let mut fields = Fields(raw);
    while let Some((number, field)) = fields.next()? {
        value = match (number, field) {
            (1, Field::Varint(_)) => Some(ValueView::Null),
            (2, Field::Fixed64(bits)) => Some(ValueView::Number(f64::from_bits(bits))),
            (3, Field::Bytes(b)) => Some(ValueView::Text(text(b)?)),
            (4, Field::Varint(v)) => Some(ValueView::Bool(v != 0)),
            (5 | 6, Field::Bytes(_)) => Some(ValueView::Composite),
            _ => value,
        };
    }
    Ok(value)
}

fn time(raw: &[u8]) -> Read<TimeView> {
    let mut time = TimeView::default();
    let mut fields = Fields(raw);
    while let Some((number, field)) = fields.next()? {
        match (number, field) {
            (1, Field::Varint(v)) => time.seconds = v as i64,
            (2, Field::Varint(v)) => time.nanos = v as i32,
            _ => {}
        }
    }
    Ok(time)
}

fn text(bytes: &[u8]) -> Read<&str> {
    from_utf8(bytes).map_err(|_| ViewError("a text is not UTF-8"))
}

#[derive(Debug, Clone, Copy)]
enum Field<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

/// What is left to read of a message.
#[derive(Debug, Clone)]
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn next(&mut self) -> Read<Option<(u32, Field<'a>)>> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let field = match tag & 7 {
            0 => Field::Varint(self.varint()?),
            1 => {
                let bytes = self.take(8)?;
                Field::Fixed64(u64::from_le_bytes(bytes.try_into().map_err(|_| ViewError("a number is cut off"))?))
            }
            2 => {
                let len = self.varint()?;
                Field::Bytes(self.take(len)?)
            }
            5 => {
                let bytes = self.take(4)?;
                Field::Fixed32(u32::from_le_bytes(bytes.try_into().map_err(|_| ViewError("a number is cut off"))?))
            }
            _ => return Err(ViewError("a wire type is unknown")),
        };
        Ok(Some(((tag >> 3) as u32, field)))
    }

    fn varint(&mut self) -> Read<u64> {
        let mut value = 0u64;
        for (i, &byte) in self.0.iter().enumerate().take(10) {
            value |= u64::from(byte & 0x7f) << (7 * i);
            if byte & 0x80 == 0 {
                self.0 = &self.0[i + 1..];
                return Ok(value);
            }
        }
        Err(ViewError("an integer is cut off"))
    }

    fn take(&mut self, len: u64) -> Read<&'a [u8]> {
        if len > self.0.len() as u64 {
            return Err(ViewError("a field is cut off"));
        }
        let (head, tail) = self.0.split_at(len as usize);
        self.0 = tail;
        Ok(head)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;
    use crate::contract::v1;

    #[test]
    fn reads_what_prost_writes() {
        let message = v1::Telemetry {
            device: "pump".into(),
            time: Some(pbjson_types::Timestamp { seconds: -1, nanos: 5 }),
            points: vec![v1::PointValue {
                name: "level".into(),
                value: Some(pbjson_types::Value::from(21.5)),
                quality: v1::Quality::Bad.into(),
                reason: "timeout".into(),
                time: None,
            }],
            clock: 3,
            ..v1::Telemetry::default()
        };
        let stored = message.encode_to_vec();
        let view = TelemetryView::parse(&stored).unwrap();
        assert_eq!((view.device, view.time, view.clock), ("pump", TimeView { seconds: -1, nanos: 5 }, 3));
        let points: Vec<_> = view.points().collect::<Result<_, _>>().unwrap();
        assert_eq!(points.len(), 1);
        assert_eq!((points[0].name, points[0].value, points[0].quality), ("level", Some(ValueView::Number(21.5)), 3));
        assert_eq!((points[0].reason, points[0].time), ("timeout", None));
    }

    proptest! {
        #[test]
        fn any_octets_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(view) = TelemetryView::parse(&bytes) {
                for point in view.points() {
                    if point.is_err() { break; }
                }
            }
        }
    }
}
