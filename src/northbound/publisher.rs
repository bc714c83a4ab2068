//! Turns deliveries of the store into messages for one consumer. Pure: no clock, no I/O.
//!
//! Promise: every record that the consumer wants becomes at least one message, and a record that cannot become one is an
//! error, never silence. A `points` topic never goes back in time: while older records are replayed their newest values
//! are held and published when the replay pauses, unless something newer was published meanwhile.
//!
//! Cost: stored protobuf is forwarded without decoding, JSON is written from the stored octets, and topics are kept per
//! device and point.

mod points;

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use prost::encoding::{WireType, encode_key, encode_varint};

use self::points::{PointSlot, TelemetryOfDevice};
use super::config::{ConsumerConfig, ConsumerKind, PublishSet, QosSet};
use super::filter::Filter;
use super::message::{Message, Qos, Retain};
use crate::contract::mend::mend;
use crate::contract::view::{TelemetryView, ViewError};
use crate::contract::{ContractMessage, DecodeError, Encoding, json, topics, v1, with_delivery};
use crate::model::{Delivery, Device, Lane, Order, Record, RecordKind, Seq, Uptime};
use crate::platform::clock::ClockBook;

/// The devices behind the gateway, for what a record does not carry (units).
pub type Directory = HashMap<String, Arc<Device>>;

/// A stored record is not what its kind says. It cannot be delivered by anybody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// Telemetry that is no protobuf.
    #[error("record {lane} {seq} cannot be published: {source}", lane = .lane.as_str())]
    Telemetry {
        /// Lane of the record.
        lane: Lane,
        /// Its sequence number.
        seq: Seq,
        /// What is wrong.
        source: ViewError,
    },
    /// Another message that is no protobuf.
    #[error("record {lane} {seq} cannot be published: {source}", lane = .lane.as_str())]
    Message {
        /// Lane of the record.
        lane: Lane,
        /// Its sequence number.
        seq: Seq,
        /// What is wrong.
        source: DecodeError,
    },
}

/// Topics of one device and the last values of its points.
#[derive(Debug)]
struct DeviceTopics {
    wanted: bool,
    telemetry: Arc<str>,
    points: HashMap<Box<str>, PointSlot>,
    device: Option<Arc<Device>>,
}

/// Makes the messages of one consumer.
#[derive(Debug)]
pub struct Publisher {
    root: String,
    encoding: Encoding,
    set: PublishSet,
    qos: QosSet,
    filter: Filter,
    order: Order,
    /// Whether last values are kept to fill a broker that has none.
    keep_values: bool,
    settings: Arc<ClockBook>,
    directory: Arc<Directory>,
    devices: HashMap<Box<str>, DeviceTopics>,
    scratch: Vec<u8>,
}

impl Publisher {
    /// A publisher for this consumer; nothing is published yet.
    pub fn new(config: &ConsumerConfig) -> Self {
        Self {
            root: config.root.clone(),
            encoding: config.encoding,
            set: config.publish,
            qos: config.qos,
            filter: config.filter.clone(),
            order: config.replay.order,
            keep_values: matches!(config.kind, ConsumerKind::Uplink(_)),
            settings: Arc::default(),
            directory: Arc::default(),
            devices: HashMap::new(),
            scratch: Vec::with_capacity(4096),
        }
    }

    /// Takes over a changed list of devices: units follow it, topics of devices that are gone are forgotten.
    pub fn set_directory(&mut self, directory: Arc<Directory>) {
        self.devices.retain(|name, topics| {
            let Some(device) = directory.get(&**name) else { return false };
            if topics.device.as_ref() != Some(device) {
                // What was published last stays known, so that no replay undoes it.
                topics.points.iter_mut().for_each(|(point, slot)| slot.set_unit(point, Some(device)));
                topics.device = Some(device.clone());
            }
            true
        });
        self.directory = directory;
    }

    /// Where stamps are looked up that were taken before the clock was set.
    pub fn set_clock_book(&mut self, settings: Arc<ClockBook>) {
        self.settings = settings;
    }

    /// A relative topic under this consumer's root.
    pub fn topic(&self, relative: &str) -> Arc<str> {
        format!("{}/{relative}", self.root).into()
    }

    /// Appends the messages of one delivery to `out`: none if the consumer does not want it.
    ///
    /// # Errors
    /// The record is damaged; `out` is unchanged and the record should be confirmed and reported as lost.
    pub fn delivery(&mut self, delivery: &Delivery, out: &mut Vec<Message>) -> Result<(), PublishError> {
        match delivery {
            Delivery::Gap(gap) if self.filter.wants_lane(gap.lane) => self.gap_message(&crate::contract::gap(gap), out),
            Delivery::Gap(_) => {}
            Delivery::Record { record, .. } if !self.filter.wants_lane(record.lane) => {}
            Delivery::Record { record, historical } => {
                let mended = mend(record, &|uptime, wall_ms, trust| self.settings.correct(uptime, wall_ms, trust));
                return self.record(mended.as_ref().unwrap_or(record), *historical, out);
            }
        }
        Ok(())
    }

    /// The last values that were held while older records were replayed; call when the replay pauses or has ended.
    pub fn held_points(&mut self, out: &mut Vec<Message>) {
        let qos = self.qos.points;
        self.devices
            .values_mut()
            .flat_map(|d| d.points.values_mut())
            .filter_map(|slot| slot.release(qos))
            .for_each(|m| out.push(m));
    }

    /// Every last value again, for a broker that may not have them. Held values stay held.
    pub fn all_points(&mut self, out: &mut Vec<Message>) {
        let qos = self.qos.points;
        self.devices
            .values_mut()
            .flat_map(|d| d.points.values_mut())
            .filter_map(|slot| slot.again(qos))
            .for_each(|m| out.push(m));
    }

    /// One record that cannot be delivered, as a gap with a reason of the session's own.
    pub fn undeliverable(&self, consumer: &str, lane: Lane, seq: Seq, reason: &str, out: &mut Vec<Message>) {
        let gap = v1::Gap {
            lane: lane.as_str().to_owned(),
            consumer: consumer.to_owned(),
            from_seq: seq,
            to_seq: seq,
            records: 1,
            reason: reason.to_owned(),
            ..v1::Gap::default()
        };
        self.gap_message(&gap, out);
    }

    fn gap_message(&self, gap: &v1::Gap, out: &mut Vec<Message>) {
        if self.set.gaps {
            out.push(self.message(topics::GAPS, gap, self.qos.gaps));
        }
    }

    /// A message that is not kept by the broker.
    pub fn message<M: ContractMessage>(&self, relative: &str, message: &M, qos: Qos) -> Message {
        let payload = message.encode_as(self.encoding);
        Message { topic: self.topic(relative), payload, qos, retain: Retain::No, correlation: None }
    }

    fn record(&mut self, record: &Record, historical: bool, out: &mut Vec<Message>) -> Result<(), PublishError> {
        let damaged = |source| PublishError::Message { lane: record.lane, seq: record.seq, source };
        match record.kind {
            RecordKind::Telemetry if self.set.telemetry || self.set.points => {
                let before = out.len();
                self.telemetry(record, historical, out).map_err(|source| {
                    out.truncate(before);
                    PublishError::Telemetry { lane: record.lane, seq: record.seq, source }
                })?;
            }
            RecordKind::Event if self.set.events => {
                let event = v1::Event::decode_as(Encoding::Protobuf, &record.payload).map_err(damaged)?;
                if self.filter.wants_device(&event.device) {
                    let event = v1::Event { seq: record.seq, historical, ..event };
                    out.push(self.message(&topics::events(&event.device), &event, self.qos.events));
                }
            }
            RecordKind::Gap if self.set.gaps => {
                let gap = v1::Gap::decode_as(Encoding::Protobuf, &record.payload).map_err(damaged)?;
                self.gap_message(&v1::Gap { seq: record.seq, ..gap }, out);
            }
            RecordKind::CommandResult if self.set.results => {
                let result = v1::CommandResult::decode_as(Encoding::Protobuf, &record.payload).map_err(damaged)?;
                if self.filter.wants_device(&result.device) {
                    let result = v1::CommandResult { seq: record.seq, ..result };
                    out.push(self.message(&topics::command_result(&result.device), &result, self.qos.results));
                }
            }
            RecordKind::ManagementResult if self.set.results => {
                let result = v1::ManagementResult::decode_as(Encoding::Protobuf, &record.payload).map_err(damaged)?;
                if result.device.is_empty() || self.filter.wants_device(&result.device) {
                    let topic = topics::management_result(&result.action, &result.device);
                    out.push(self.message(&topic, &result, self.qos.results));
                }
            }
            // Audit and journal stay on the gateway; the rest is not wanted.
            _ => {}
        }
        Ok(())
    }

    fn telemetry(&mut self, record: &Record, historical: bool, out: &mut Vec<Message>) -> Result<(), ViewError> {
        let view = TelemetryView::parse(&record.payload)?;
        if !self.devices.contains_key(view.device) {
            let topics = self.device_topics(view.device);
            self.devices.insert(view.device.into(), topics);
        }
        let Some(device) = self.devices.get_mut(view.device) else { return Ok(()) };
        if !device.wanted {
            return Ok(());
        }
        let mut telemetry = TelemetryOfDevice {
            view,
            record,
            historical,
            filter: &self.filter,
            encoding: self.encoding,
            scratch: &mut self.scratch,
        };
        if self.set.telemetry
            && let Some(payload) = telemetry.batch()?
        {
            out.push(Message {
                topic: device.telemetry.clone(),
                payload,
                qos: self.qos.telemetry,
                retain: Retain::No,
                correlation: None,
            });
        }
        if self.set.points {
            let hold = historical && self.order == Order::LiveFirst;
            let prefix = &device.telemetry[..device.telemetry.len() - "telemetry".len()];
            telemetry.points(
                &mut device.points,
                prefix,
                device.device.as_deref(),
                hold,
                self.keep_values,
                self.qos.points,
                out,
            )?;
        }
        Ok(())
    }

    fn device_topics(&self, name: &str) -> DeviceTopics {
        DeviceTopics {
            wanted: self.filter.wants_device(name),
            telemetry: self.topic(&topics::telemetry(name)),
            points: HashMap::new(),
            device: self.directory.get(name).cloned(),
        }
    }
}

impl TelemetryOfDevice<'_> {
    /// The batch as one message; `None` when the filter leaves no point.
    fn batch(&mut self) -> Result<Option<Bytes>, ViewError> {
        let all = self.filter.points.is_empty();
        match self.encoding {
            Encoding::Protobuf if all => {
                Ok(Some(with_delivery(&self.record.payload, self.record.seq, self.historical)))
            }
            Encoding::Protobuf => self.batch_of_wanted(),
            Encoding::Json => self.batch_as_json(),
        }
    }

    fn batch_as_json(&mut self) -> Result<Option<Bytes>, ViewError> {
        let filter = self.filter;
        self.scratch.clear();
        let kept = json::telemetry(self.scratch, &self.view, self.record.seq, self.historical, |p| {
            filter.wants_point(p.name)
        })?;
        Ok(match kept {
            Some(0) if !filter.points.is_empty() => None,
            Some(_) => Some(Bytes::copy_from_slice(self.scratch)),
            None => self.batch_decoded(),
        })
    }

    /// For values that only the full decoder knows (lists and objects); the gateway itself writes none.
    fn batch_decoded(&self) -> Option<Bytes> {
        let message = v1::Telemetry::decode_as(Encoding::Protobuf, &self.record.payload).ok()?;
        let points: Vec<_> = message.points.iter().filter(|p| self.filter.wants_point(&p.name)).cloned().collect();
        let message = v1::Telemetry { points, seq: self.record.seq, historical: self.historical, ..message };
        (!message.points.is_empty()).then(|| message.encode_as(self.encoding))
    }

    fn batch_of_wanted(&mut self) -> Result<Option<Bytes>, ViewError> {
        let out = &mut *self.scratch;
        out.clear();
        prost::encoding::string::encode(1, &self.view.device.to_owned(), out);
        let time = pbjson_types::Timestamp { seconds: self.view.time.seconds, nanos: self.view.time.nanos };
        prost::encoding::message::encode(2, &time, out);
        let head = out.len();
        for point in self.view.points() {
            let point = point?;
            if self.filter.wants_point(point.name) {
                encode_key(3, WireType::LengthDelimited, out);
                encode_varint(point.raw.len() as u64, out);
                out.extend_from_slice(point.raw);
            }
        }
        if out.len() == head {
            return Ok(None);
        }
        prost::encoding::int32::encode(4, &self.view.clock, out);
        let Uptime { boot, ms } = self.view.uptime;
        if boot != 0 {
            prost::encoding::fixed32::encode(7, &boot, out);
            prost::encoding::uint64::encode(8, &ms, out);
        }
        if self.view.mended {
            prost::encoding::bool::encode(9, &true, out);
        }
        Ok(Some(with_delivery(out, self.record.seq, self.historical)))
    }
}

#[cfg(test)]
mod tests;
