//! The last value of each point, one retained message per point.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use prost::encoding::{WireType, encode_key, encode_varint};

use crate::contract::view::{PointView, TelemetryView, TimeView, ViewError};
use crate::contract::{ContractMessage, Encoding, json, v1};
use crate::model::{Device, Lane, Record, Seq};
use crate::northbound::filter::Filter;
use crate::northbound::message::{Message, Qos, Retain};

/// What is known of one point's topic.
#[derive(Debug)]
pub(super) struct PointSlot {
    wanted: bool,
    topic: Arc<str>,
    unit: Box<str>,
    newest: Option<(Lane, Seq)>,
    /// The newest value, when it is held or kept.
    value: Option<Bytes>,
    held: bool,
}

impl PointSlot {
    fn new(name: &str, prefix: &str, device: Option<&Device>, filter: &Filter) -> Self {
        let mut slot = Self {
            wanted: filter.wants_point(name),
            topic: format!("{prefix}points/{name}").into(),
            unit: Box::default(),
            newest: None,
            value: None,
            held: false,
        };
        slot.set_unit(name, device);
        slot
    }

    pub(super) fn set_unit(&mut self, name: &str, device: Option<&Device>) {
        let point = device.and_then(|d| d.points.iter().find(|p| p.id.as_str() == name));
        self.unit = point.map_or_else(Box::default, |p| p.unit.as_str().into());
    }

    /// Whether a record is at least as new as what was seen. The same record again is: its first message may be lost.
    fn advances(&mut self, lane: Lane, seq: Seq) -> bool {
        let newer = self.newest.is_none_or(|(l, s)| l != lane || seq >= s);
        if newer {
            self.newest = Some((lane, seq));
        }
        newer
    }

    /// The held value, which then counts as published.
    pub(super) fn release(&mut self, qos: Qos) -> Option<Message> {
        if !std::mem::take(&mut self.held) { None } else { self.again(qos) }
    }

    /// The newest published value once more.
    pub(super) fn again(&mut self, qos: Qos) -> Option<Message> {
        if self.held { None } else { self.value.clone().map(|payload| self.message(payload, qos)) }
    }

    fn message(&self, payload: Bytes, qos: Qos) -> Message {
        Message { topic: self.topic.clone(), payload, qos, retain: Retain::Snapshot, correlation: None }
    }
}

/// One telemetry record on its way out.
pub(super) struct TelemetryOfDevice<'a> {
    pub(super) view: TelemetryView<'a>,
    pub(super) record: &'a Record,
    pub(super) historical: bool,
    pub(super) filter: &'a Filter,
    pub(super) encoding: Encoding,
    pub(super) scratch: &'a mut Vec<u8>,
}

impl TelemetryOfDevice<'_> {
    /// Publishes or holds the value of every wanted point.
    #[allow(clippy::too_many_arguments, reason = "the borrowed parts of one publisher")]
    pub(super) fn points(
        &mut self,
        slots: &mut HashMap<Box<str>, PointSlot>,
        prefix: &str,
        device: Option<&Device>,
        hold: bool,
        keep: bool,
        qos: Qos,
        out: &mut Vec<Message>,
    ) -> Result<(), ViewError> {
        for point in self.view.points() {
            let point = point?;
            if !slots.contains_key(point.name) {
                slots.insert(point.name.into(), PointSlot::new(point.name, prefix, device, self.filter));
            }
            let Some(slot) = slots.get_mut(point.name) else { continue };
            if !slot.wanted || !slot.advances(self.record.lane, self.record.seq) {
                continue;
            }
            let payload = self.point(&point, &slot.unit);
            slot.held = hold;
            slot.value = (hold || keep).then(|| payload.clone());
            if !hold {
                out.push(slot.message(payload, qos));
            }
        }
        Ok(())
    }

    fn point(&mut self, point: &PointView<'_>, unit: &str) -> Bytes {
        self.scratch.clear();
        match self.encoding {
            Encoding::Json if json::point(self.scratch, point, self.view.time, unit) => {}
            Encoding::Json => return self.point_decoded(point, unit),
            Encoding::Protobuf => encode_point(self.scratch, point, self.view.time, unit),
        }
        Bytes::copy_from_slice(self.scratch)
    }

    fn point_decoded(&self, point: &PointView<'_>, unit: &str) -> Bytes {
        let full = v1::PointValue::decode_as(Encoding::Protobuf, point.raw).unwrap_or_default();
        let TimeView { seconds, nanos } = point.time.unwrap_or(self.view.time);
        let time = Some(pbjson_types::Timestamp { seconds, nanos });
        v1::Point { value: full.value, quality: full.quality, reason: full.reason, time, unit: unit.to_owned() }
            .encode_as(self.encoding)
    }
}

/// A `Point` out of a stored `PointValue`: the value is copied as it is.
fn encode_point(out: &mut Vec<u8>, point: &PointView<'_>, batch: TimeView, unit: &str) {
    if point.value.is_some() {
        bytes_field(1, point.raw_value, out);
    }
    prost::encoding::int32::encode(2, &point.quality, out);
    if !point.reason.is_empty() {
        bytes_field(3, point.reason.as_bytes(), out);
    }
    let TimeView { seconds, nanos } = point.time.unwrap_or(batch);
    prost::encoding::message::encode(4, &pbjson_types::Timestamp { seconds, nanos }, out);
    if !unit.is_empty() {
        bytes_field(5, unit.as_bytes(), out);
    }
}

fn bytes_field(number: u32, bytes: &[u8], out: &mut Vec<u8>) {
    encode_key(number, WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}
