use super::*;
use crate::contract::{telemetry, timestamp};
use crate::model::{Batch, ClockTrust, DeviceId, Gap, GapReason, PointId, Quality, Sample, Stamp, Value};
use crate::northbound::filter::Pattern;

fn record(seq: Seq, device: &str, points: &[(&str, f64)]) -> Record {
    let at = Stamp {
        wall_ms: 1_763_812_800_000 + seq as i64,
        mono_ns: 0,
        uptime: Default::default(),
        trust: ClockTrust::Synchronised,
    };
    let sample = |&(name, v): &(&str, f64)| Sample {
        point: PointId::new(name).unwrap(),
        value: Some(Value::Double(v)),
        quality: Quality::Good,
        reason: None,
        at,
    };
    let batch = Batch { device: DeviceId::new(device).unwrap(), at, samples: points.iter().map(sample).collect() };
    let payload = telemetry(&batch).encode_as(Encoding::Protobuf);
    Record {
        lane: Lane::Bulk,
        seq,
        ts_ms: at.wall_ms,
        device: 1,
        kind: RecordKind::Telemetry,
        count: points.len() as u16,
        payload,
    }
}

fn live(record: Record) -> Delivery {
    Delivery::Record { record, historical: false }
}

fn old(record: Record) -> Delivery {
    Delivery::Record { record, historical: true }
}

fn run(publisher: &mut Publisher, delivery: &Delivery) -> Vec<Message> {
    let mut out = Vec::new();
    publisher.delivery(delivery, &mut out).unwrap();
    out
}

fn topics_of(messages: &[Message]) -> Vec<&str> {
    messages.iter().map(|m| &*m.topic).collect()
}

#[test]
fn a_batch_becomes_one_telemetry_message_and_one_per_point() {
    for encoding in [Encoding::Json, Encoding::Protobuf] {
        let mut publisher = Publisher::new(&ConsumerConfig { encoding, ..ConsumerConfig::local("local", "r") });
        let out = run(&mut publisher, &live(record(7, "pump", &[("level", 1.5), ("flow", 2.0)])));
        assert_eq!(
            topics_of(&out),
            ["r/devices/pump/telemetry", "r/devices/pump/points/level", "r/devices/pump/points/flow"]
        );
        let batch = v1::Telemetry::decode_as(encoding, &out[0].payload).unwrap();
        assert_eq!((batch.seq, batch.historical, batch.points.len()), (7, false, 2));
        let point = v1::Point::decode_as(encoding, &out[1].payload).unwrap();
        assert_eq!(point.value, Some(pbjson_types::Value::from(1.5)));
        assert_eq!(point.time, Some(timestamp(1_763_812_800_007)));
        assert_eq!((out[0].retain, out[1].retain), (Retain::No, Retain::Snapshot));
    }
}

#[test]
fn filters_leave_out_devices_points_and_lanes() {
    for encoding in [Encoding::Json, Encoding::Protobuf] {
        let filter =
            Filter { devices: vec![Pattern::new("pump*")], points: vec![Pattern::new("l*")], ..Filter::default() };
        let mut publisher = Publisher::new(&ConsumerConfig { encoding, filter, ..ConsumerConfig::local("local", "r") });
        let out = run(&mut publisher, &live(record(1, "pump1", &[("level", 1.5), ("flow", 2.0)])));
        assert_eq!(topics_of(&out), ["r/devices/pump1/telemetry", "r/devices/pump1/points/level"]);
        assert_eq!(v1::Telemetry::decode_as(encoding, &out[0].payload).unwrap().points.len(), 1);
        assert_eq!(run(&mut publisher, &live(record(2, "pump1", &[("flow", 2.0)]))), []);
        assert_eq!(run(&mut publisher, &live(record(3, "fan", &[("level", 2.0)]))), []);
    }
    let filter = Filter { lanes: vec![Lane::Critical], ..Filter::default() };
    let mut publisher = Publisher::new(&ConsumerConfig { filter, ..ConsumerConfig::local("local", "r") });
    assert_eq!(run(&mut publisher, &live(record(1, "pump", &[("level", 2.0)]))), []);
}

#[test]
fn point_topics_never_go_back_in_time() {
    let mut publisher = Publisher::new(&ConsumerConfig::local("local", "r"));
    assert_eq!(run(&mut publisher, &live(record(10, "pump", &[("level", 10.0)]))).len(), 2);
    // Replay: the batch goes out as history, the points are held back.
    let out = run(&mut publisher, &old(record(5, "pump", &[("level", 5.0), ("flow", 5.0)])));
    assert_eq!(topics_of(&out), ["r/devices/pump/telemetry"]);
    assert!(v1::Telemetry::decode_as(Encoding::Json, &out[0].payload).unwrap().historical);
    run(&mut publisher, &old(record(6, "pump", &[("flow", 6.0)])));
    let mut held = Vec::new();
    publisher.held_points(&mut held);
    // `level` has a newer live value; `flow` gets its newest old one, once.
    assert_eq!(topics_of(&held), ["r/devices/pump/points/flow"]);
    assert_eq!(
        v1::Point::decode_as(Encoding::Json, &held[0].payload).unwrap().value,
        Some(pbjson_types::Value::from(6.0))
    );
    held.clear();
    publisher.held_points(&mut held);
    assert_eq!(held, []);
    assert_eq!(run(&mut publisher, &live(record(4, "pump", &[("level", 4.0)]))).len(), 1);
}

#[test]
fn in_order_replay_moves_point_topics_along() {
    let mut config = ConsumerConfig::local("local", "r");
    config.replay.order = Order::InOrder;
    let mut publisher = Publisher::new(&config);
    assert_eq!(run(&mut publisher, &old(record(5, "pump", &[("level", 5.0)]))).len(), 2);
}

#[test]
fn an_uplink_can_fill_a_broker_that_forgot_the_points() {
    let mut config = ConsumerConfig::uplink("site", "r", vec![]);
    config.publish.points = true;
    let mut publisher = Publisher::new(&config);
    run(&mut publisher, &live(record(1, "pump", &[("level", 1.0)])));
    let mut out = Vec::new();
    publisher.all_points(&mut out);
    assert_eq!(topics_of(&out), ["r/devices/pump/points/level"]);
}

#[test]
fn units_come_from_the_directory_and_follow_it() {
    let device = |unit: &str| {
        let point = crate::model::Point {
            id: PointId::new("level").unwrap(),
            description: String::new(),
            unit: unit.to_owned(),
            data_type: crate::model::DataType::F32,
            access: crate::model::Access::Read,
            limits: None,
        };
        let device = Device {
            id: DeviceId::new("pump").unwrap(),
            description: String::new(),
            protocol: "modbus-tcp",
            address: String::new(),
            tier: crate::model::Tier::One,
            points: vec![point].into(),
        };
        Arc::new(Directory::from([("pump".to_owned(), Arc::new(device))]))
    };
    let mut publisher = Publisher::new(&ConsumerConfig::local("local", "r"));
    for (seq, unit) in [(1, "m"), (2, "ft")] {
        publisher.set_directory(device(unit));
        let out = run(&mut publisher, &live(record(seq, "pump", &[("level", 1.0)])));
        assert_eq!(v1::Point::decode_as(Encoding::Json, &out[1].payload).unwrap().unit, unit);
    }
    // A changed device does not make an older value publishable.
    assert_eq!(run(&mut publisher, &live(record(1, "pump", &[("level", 1.0)]))).len(), 1);
}

#[test]
fn events_results_and_gaps_carry_their_sequence_number() {
    let mut publisher = Publisher::new(&ConsumerConfig::local("local", "r"));
    let make =
        |kind, payload| live(Record { lane: Lane::Critical, seq: 9, ts_ms: 0, device: 0, kind, count: 1, payload });
    let event = v1::Event { kind: "k".into(), ..v1::Event::default() }.encode_as(Encoding::Protobuf);
    let out = run(&mut publisher, &make(RecordKind::Event, event));
    assert_eq!(out[0].topic.as_ref(), "r/events");
    assert_eq!(v1::Event::decode_as(Encoding::Json, &out[0].payload).unwrap().seq, 9);
    let result =
        v1::CommandResult { device: "pump".into(), ..v1::CommandResult::default() }.encode_as(Encoding::Protobuf);
    assert_eq!(
        topics_of(&run(&mut publisher, &make(RecordKind::CommandResult, result))),
        ["r/devices/pump/command/result"]
    );
    assert_eq!(run(&mut publisher, &make(RecordKind::Audit, Bytes::new())), []);
    let gap = Gap {
        lane: Lane::Bulk,
        consumer: None,
        from_seq: 1,
        to_seq: 2,
        from_ms: 0,
        to_ms: 0,
        records: 2,
        reason: GapReason::QuotaBytes,
    };
    assert_eq!(topics_of(&run(&mut publisher, &Delivery::Gap(gap))), ["r/gaps"]);
}

#[test]
fn a_damaged_record_is_an_error_and_leaves_no_half_messages() {
    let mut publisher = Publisher::new(&ConsumerConfig::local("local", "r"));
    let mut broken = record(3, "pump", &[("level", 1.0)]);
    broken.payload = broken.payload.slice(..broken.payload.len() - 1);
    let mut out = Vec::new();
    assert!(matches!(publisher.delivery(&live(broken), &mut out), Err(PublishError::Telemetry { seq: 3, .. })));
    assert_eq!(out, []);
}

#[test]
fn stamps_from_before_the_clock_was_set_are_mended_and_order_does_not_change() {
    let boot = crate::platform::clock::Boot { id: 5, origin_ms: 0 };
    let early = |seq: Seq| {
        let at = Stamp {
            wall_ms: 1_000 * seq as i64,
            mono_ns: seq * 1_000_000_000,
            uptime: boot.uptime(seq * 1_000_000_000),
            trust: ClockTrust::Unsynchronised,
        };
        let sample = Sample {
            point: PointId::new("n").unwrap(),
            value: Some(Value::Uint(seq)),
            quality: Quality::Good,
            reason: None,
            at,
        };
        let batch = Batch { device: DeviceId::new("pump").unwrap(), at, samples: vec![sample] };
        let payload = telemetry(&batch).encode_as(Encoding::Protobuf);
        Record { seq, ts_ms: at.wall_ms, payload, ..record(seq, "pump", &[]) }
    };
    let noon = 1_763_812_800_000;
    let settings = Arc::new(ClockBook::default());
    for encoding in [Encoding::Json, Encoding::Protobuf] {
        let mut publisher = Publisher::new(&ConsumerConfig { encoding, ..ConsumerConfig::local("local", "r") });
        publisher.set_clock_book(settings.clone());
        for seq in [1, 2, 3] {
            let known = seq > 1 || encoding == Encoding::Protobuf;
            if known {
                let now = Stamp {
                    wall_ms: noon,
                    mono_ns: 10_000_000_000,
                    uptime: Default::default(),
                    trust: ClockTrust::Synchronised,
                };
                settings.observe(boot, now);
            }
            let messages = run(&mut publisher, &live(early(seq)));
            let got = v1::Telemetry::decode_as(encoding, &messages[0].payload).unwrap();
            let right = if known { noon - 10_000 + 1_000 * seq as i64 } else { 1_000 * seq as i64 };
            assert_eq!(got.time, Some(timestamp(right)), "{encoding:?} {seq}");
            let trust = if known { v1::ClockTrust::Synchronised } else { v1::ClockTrust::Unsynchronised };
            assert_eq!((got.mended, got.clock(), got.seq, got.uptime_ms), (known, trust, seq, 1_000 * seq));
            let point = v1::Point::decode_as(encoding, &messages[1].payload).unwrap();
            assert_eq!(point.time, Some(timestamp(right)));
        }
    }
}
