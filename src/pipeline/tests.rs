use proptest::prelude::*;

use super::*;
use crate::model::{Access, ClockTrust, DataType, DeviceId, Point, PointId, Tier};

fn device(types: &[DataType]) -> Arc<Device> {
    let points = types
        .iter()
        .enumerate()
        .map(|(i, &data_type)| Point {
            id: PointId::new(&format!("p{i}")).unwrap(),
            description: String::new(),
            unit: String::new(),
            data_type,
            access: Access::Read,
            limits: None,
        })
        .collect();
    Arc::new(Device {
        id: DeviceId::new("d").unwrap(),
        description: String::new(),
        protocol: "test",
        address: String::new(),
        tier: Tier::One,
        points,
    })
}

fn at(ms: u64) -> Stamp {
    Stamp { wall_ms: ms as i64, mono_ns: ms * 1_000_000, uptime: Default::default(), trust: ClockTrust::Synchronised }
}

fn one(rule: PointRule) -> DevicePipeline {
    DevicePipeline::new(device(&[DataType::F64]), vec![rule], BatchLimits::default())
}

fn feed(pipeline: &mut DevicePipeline, outcome: Result<Value, Reason>, ms: u64) -> Vec<Sample> {
    let batches = pipeline.scan([Input { point: 0, outcome, at: None }], at(ms));
    batches.into_iter().flat_map(|b| b.samples).collect()
}

fn number(pipeline: &mut DevicePipeline, value: f64, ms: u64) -> Vec<Option<Value>> {
    feed(pipeline, Ok(Value::Double(value)), ms).into_iter().map(|s| s.value).collect()
}

#[test]
fn scaling_prints_as_people_expect() {
    let mut p = one(PointRule { scale: 0.1, offset: -10.0, ..PointRule::default() });
    let got = feed(&mut p, Ok(Value::Uint(2353)), 0);
    assert_eq!(got[0].value, Some(Value::Double(225.3)));
}

#[test]
fn values_that_are_no_numbers_are_missing_and_bad() {
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let mut p = one(PointRule::default());
        let got = feed(&mut p, Ok(Value::Double(bad)), 0);
        assert_eq!(
            (got[0].value.clone(), got[0].quality, got[0].reason),
            (None, Quality::Bad, Some(Reason::NotANumber))
        );
        assert!(feed(&mut p, Ok(Value::Double(bad)), 1).is_empty(), "NaN is not a change from NaN");
    }
}

#[test]
fn overflow_of_the_scale_is_not_a_number() {
    let mut p = one(PointRule { scale: 1e300, ..PointRule::default() });
    assert_eq!(feed(&mut p, Ok(Value::Double(1e300)), 0)[0].reason, Some(Reason::NotANumber));
}

#[test]
fn clamping_keeps_the_end_and_says_so() {
    let mut p = one(PointRule { clamp: Some((0.0, 10.0)), ..PointRule::default() });
    let got = feed(&mut p, Ok(Value::Double(11.0)), 0);
    assert_eq!((got[0].value.clone(), got[0].quality), (Some(Value::Double(10.0)), Quality::Uncertain));
    assert_eq!(feed(&mut p, Ok(Value::Double(5.0)), 1)[0].quality, Quality::Good);
}

#[test]
fn absolute_deadband_compares_with_the_last_reported_value() {
    let mut p = one(PointRule { deadband: Deadband::Absolute(1.0), ..PointRule::default() });
    assert_eq!(number(&mut p, 10.0, 0).len(), 1);
    for (i, v) in [10.4, 10.8, 11.0].into_iter().enumerate() {
        assert!(number(&mut p, v, i as u64 + 1).is_empty(), "{v}");
    }
    assert_eq!(number(&mut p, 11.1, 9), [Some(Value::Double(11.1))]);
}

#[test]
fn percent_deadband_is_of_the_last_reported_magnitude() {
    let mut p = one(PointRule { deadband: Deadband::Percent(10.0), ..PointRule::default() });
    number(&mut p, -100.0, 0);
    assert!(number(&mut p, -109.0, 1).is_empty());
    assert_eq!(number(&mut p, -111.0, 2).len(), 1);
}

#[test]
fn heartbeat_reports_an_unchanged_value() {
    let mut p = one(PointRule { heartbeat: Some(Duration::from_secs(10)), ..PointRule::default() });
    assert_eq!(number(&mut p, 1.0, 0).len(), 1);
    assert!(number(&mut p, 1.0, 9_999).is_empty());
    assert_eq!(number(&mut p, 1.0, 10_000).len(), 1);
    assert!(number(&mut p, 1.0, 10_001).is_empty());
}

#[test]
fn without_on_change_every_scan_is_reported_but_a_standing_fault_is_not_repeated() {
    let mut p = one(PointRule { on_change: false, ..PointRule::default() });
    assert_eq!(number(&mut p, 1.0, 0).len(), 1);
    assert_eq!(number(&mut p, 1.0, 1).len(), 1);
    assert_eq!(feed(&mut p, Err(Reason::Timeout), 2).len(), 1);
    assert!(feed(&mut p, Err(Reason::Timeout), 3).is_empty());
}

#[test]
fn every_change_of_quality_or_reason_is_reported_at_once() {
    let mut p = one(PointRule { deadband: Deadband::Absolute(1e9), ..PointRule::default() });
    number(&mut p, 1.0, 0);
    assert_eq!(feed(&mut p, Err(Reason::Timeout), 1)[0].reason, Some(Reason::Timeout));
    assert_eq!(feed(&mut p, Err(Reason::OffScan), 2)[0].reason, Some(Reason::OffScan));
    assert_eq!(number(&mut p, 1.0, 3), [Some(Value::Double(1.0))]);
}

#[test]
fn silence_makes_a_value_stale_once_and_a_result_brings_it_back() {
    let mut p = one(PointRule { stale_after: Some(Duration::from_secs(3)), ..PointRule::default() });
    number(&mut p, 7.0, 0);
    assert!(p.tick(at(2_999)).is_empty());
    let stale = p.tick(at(3_000));
    assert_eq!(
        (stale[0].samples[0].reason, stale[0].samples[0].value.clone()),
        (Some(Reason::Stale), Some(Value::Double(7.0)))
    );
    assert!(p.tick(at(9_000)).is_empty());
    assert_eq!(number(&mut p, 7.0, 9_001).len(), 1);
}

#[test]
fn batches_close_by_size_and_by_time() {
    let limits = BatchLimits { max_samples: 3, max_delay: Duration::from_millis(100) };
    let mut p = DevicePipeline::new(device(&[DataType::F64; 5]), vec![], limits);
    let inputs = |range: std::ops::Range<u32>| range.map(|point| Input { point, outcome: Ok(Value::Int(1)), at: None });
    let closed = p.scan(inputs(0..5), at(0));
    assert_eq!(closed.iter().map(|b| b.samples.len()).collect::<Vec<_>>(), [3]);
    assert!(p.tick(at(99)).is_empty());
    assert_eq!(p.tick(at(100))[0].samples.len(), 2);
}

#[test]
fn a_reload_keeps_what_was_reported_and_flushes_what_was_pending() {
    let limits = BatchLimits { max_samples: 10, max_delay: Duration::from_secs(1) };
    let mut old = DevicePipeline::new(device(&[DataType::F64]), vec![], limits);
    assert!(old.scan([Input { point: 0, outcome: Ok(Value::Int(1)), at: None }], at(0)).is_empty());
    let mut new = DevicePipeline::new(device(&[DataType::F64]), vec![], BatchLimits::default());
    assert_eq!(new.inherit(old).len(), 1);
    assert!(new.scan([Input { point: 0, outcome: Ok(Value::Int(1)), at: None }], at(1)).is_empty());
}

#[test]
fn unknown_points_of_an_older_configuration_are_ignored() {
    let mut p = one(PointRule::default());
    assert!(p.scan([Input { point: 7, outcome: Ok(Value::Int(1)), at: None }], at(0)).is_empty());
}

#[test]
fn writes_are_unscaled_and_checked_against_the_type() {
    let rule = PointRule { scale: 0.1, offset: 5.0, ..PointRule::default() };
    let p = DevicePipeline::new(
        device(&[DataType::U16, DataType::Bool]),
        vec![rule, PointRule::default()],
        BatchLimits::default(),
    );
    assert_eq!(p.scaling().unscale(0, &Value::Double(17.34)), Ok(Value::Uint(123)));
    assert!(matches!(p.scaling().unscale(0, &Value::Double(4.0)), Err(WriteValueError::Range { .. })));
    assert!(matches!(p.scaling().unscale(0, &Value::Double(6559.0)), Err(WriteValueError::Range { .. })));
    assert!(matches!(p.scaling().unscale(0, &Value::Text("on".into())), Err(WriteValueError::Type { .. })));
    assert!(matches!(p.scaling().unscale(0, &Value::Bool(true)), Err(WriteValueError::Type { .. })));
    assert_eq!(p.scaling().unscale(1, &Value::Int(1)), Ok(Value::Bool(true)));
    assert!(p.scaling().unscale(1, &Value::Int(2)).is_err());
}

#[test]
fn unscaled_64_bit_integers_are_exact() {
    let p = DevicePipeline::new(device(&[DataType::U64, DataType::I64]), vec![], BatchLimits::default());
    assert_eq!(p.scaling().unscale(0, &Value::Text("18446744073709551615".into())), Ok(Value::Uint(u64::MAX)));
    assert_eq!(p.scaling().unscale(1, &Value::Text("-9223372036854775808".into())), Ok(Value::Int(i64::MIN)));
}

proptest! {
    #[test]
    fn nothing_that_leaves_is_infinite_and_faults_have_reasons(
        raw in any::<f64>(), scale in any::<f64>(), offset in any::<f64>(), low in -1e6..0f64, high in 0f64..1e6,
    ) {
        let mut p = one(PointRule { scale, offset, clamp: Some((low, high)), ..PointRule::default() });
        let sample = feed(&mut p, Ok(Value::Double(raw)), 0).remove(0);
        match sample.value.as_ref().and_then(Value::as_f64) {
            Some(v) => prop_assert!(v.is_finite() && v >= low && v <= high),
            None => prop_assert_eq!(sample.quality, Quality::Bad),
        }
        prop_assert_eq!(sample.reason.is_some(), sample.quality != Quality::Good);
    }

    #[test]
    fn a_written_integer_reads_back_as_asked(raw in any::<i32>(), scale in prop::sample::select(vec![0.001, 0.1, 1.0, 2.5, -10.0])) {
        let rule = PointRule { scale, offset: 3.0, ..PointRule::default() };
        let p = DevicePipeline::new(device(&[DataType::I32]), vec![rule], BatchLimits::default());
        let shown = p.scaling().rescale(0, Value::Int(raw.into())).unwrap();
        prop_assert_eq!(p.scaling().unscale(0, &shown), Ok(Value::Int(raw.into())));
    }
}
