use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::model::DataType;
use crate::southbound::modbus::{Limits, Link, PointAddress};

fn config(points: Vec<PointAddress>, limits: Limits) -> Config {
    Config { points, limits, ..Config::new(Link::Tcp { host: "x".into(), port: 502 }, 1) }
}

fn words(addresses: &[u16]) -> Vec<PointAddress> {
    addresses.iter().map(|&address| PointAddress::new(Table::Holding, address, DataType::U16)).collect()
}

fn all(config: &Config) -> Vec<u32> {
    (0..config.points.len() as u32).collect()
}

fn ranges(requests: &[Arc<ReadRequest>]) -> Vec<(u16, u16)> {
    requests.iter().map(|request| (request.address, request.count)).collect()
}

#[test]
fn neighbours_and_small_gaps_are_one_request() {
    let config = config(words(&[0, 1, 2, 50, 200]), Limits::default());
    let requests = plan(&config, &all(&config), &Learned::default());
    assert_eq!(ranges(&requests), [(0, 51), (200, 1)]);
    assert_eq!(requests[0].wasted(), 47);
}

#[test]
fn a_refused_range_is_split_at_its_widest_gap() {
    let config = config(words(&[0, 1, 9, 10]), Limits::default());
    let request = plan(&config, &all(&config), &Learned::default()).remove(0);
    let (left, right) = request.split().unwrap();
    assert_eq!((left.address, left.count, right.address, right.count), (0, 2, 9, 2));
    assert_eq!(left.answered(), None);
    assert_eq!(right.answered(), Some(Hole { table: Table::Holding, first: 1, last: 9 }));
}

/// A device that knows only some addresses, and answers like one.
fn teach(config: &Config, legal: impl Fn(u16) -> bool) -> (Learned, BTreeMap<u32, bool>, usize) {
    let mut learned = Learned::default();
    let mut outcomes = BTreeMap::new();
    let mut refused = 0;
    // What the driver does with the verdicts of a device, over enough cycles to learn everything.
    for _ in 0..20 {
        let mut steps: std::collections::VecDeque<_> = plan(config, &all(config), &learned).into();
        while let Some(request) = steps.pop_front() {
            let range = request.address..=request.address + (request.count - 1);
            if range.clone().all(&legal) {
                outcomes.extend(request.entries.iter().map(|entry| (entry.point, true)));
                learned.holes.extend(request.answered());
                continue;
            }
            refused += 1;
            learned.holes.insert(request.as_hole());
            match request.split() {
                Some((left, right)) => {
                    steps.push_front(Arc::new(right));
                    steps.push_front(Arc::new(left));
                }
                None => {
                    learned.illegal.extend(request.entries.iter().map(|entry| entry.point));
                    outcomes.extend(request.entries.iter().map(|entry| (entry.point, false)));
                }
            }
        }
    }
    (learned, outcomes, refused)
}

fn point() -> impl Strategy<Value = PointAddress> {
    let table = prop::sample::select(vec![Table::Coil, Table::Discrete, Table::Input, Table::Holding]);
    let kind = prop::sample::select(vec![DataType::U16, DataType::F32, DataType::F64, DataType::Text]);
    (table, kind, 0u16..2000, 1u16..40).prop_map(|(table, kind, address, length)| {
        let kind = if table.is_bits() { DataType::Bool } else { kind };
        PointAddress { length, ..PointAddress::new(table, address, kind) }
    })
}

fn limits() -> impl Strategy<Value = Limits> {
    (20u16..=125, 1u16..=2000, prop::option::of(0u16..100)).prop_map(|(max_registers, max_bits, max_gap)| Limits {
        max_registers,
        max_bits,
        max_gap,
        ..Limits::default()
    })
}

proptest! {
    #[test]
    fn every_point_is_read_once_whole_and_inside_the_limits(
        points in prop::collection::vec(point(), 0..150), limits in limits(),
    ) {
        let config = config(points, limits);
        let mut seen = vec![0; config.points.len()];
        for request in plan(&config, &all(&config), &Learned::default()) {
            let limit = if request.table.is_bits() { config.limits.max_bits } else { config.limits.max_registers };
            prop_assert!((1..=limit).contains(&request.count));
            prop_assert!(u32::from(request.address) + u32::from(request.count) <= 0x1_0000);
            let (mut end, mut gaps) = (0, 0);
            for entry in &request.entries {
                let point = &config.points[entry.point as usize];
                prop_assert_eq!((point.table, point.address), (request.table, request.address + entry.offset));
                prop_assert_eq!(entry.width, point.width());
                prop_assert!(entry.offset + entry.width <= request.count, "a value is cut");
                gaps += entry.offset.saturating_sub(end);
                end = end.max(entry.offset + entry.width);
                seen[entry.point as usize] += 1;
            }
            prop_assert_eq!(end, request.count, "nothing is read behind the last point");
            prop_assert_eq!(gaps, request.wasted());
        }
        prop_assert!(seen.iter().all(|&times| times == 1), "{seen:?}");
    }

    #[test]
    fn holes_are_learned_and_never_asked_for_again(
        addresses in prop::collection::btree_set(0u16..300, 1..60), holes in prop::collection::vec((0u16..300, 1u16..20), 0..8),
    ) {
        let addresses: Vec<u16> = addresses.into_iter().collect();
        let config = config(words(&addresses), Limits::default());
        let legal = |address: u16| !holes.iter().any(|&(first, length)| (first..first + length).contains(&address));
        let (learned, outcomes, _) = teach(&config, legal);
        for (index, &address) in addresses.iter().enumerate() {
            prop_assert_eq!(outcomes[&(index as u32)], legal(address), "address {}", address);
        }
        for request in plan(&config, &all(&config), &learned) {
            let mut range = request.address..request.address + request.count;
            prop_assert!(range.all(legal), "a refused range is asked for again: {request:?}");
        }
    }

    #[test]
    fn no_request_contains_a_learned_hole(
        points in prop::collection::vec(point(), 0..100), holes in prop::collection::vec((0u16..2000, 2u16..30), 0..10),
    ) {
        let config = config(points, Limits::default());
        let mut learned = Learned::default();
        learned.holes.extend(holes.iter().map(|&(first, length)| Hole { table: Table::Holding, first, last: first + length }));
        for request in plan(&config, &all(&config), &learned) {
            if request.entries.len() > 1 {
                let (first, end) = (u32::from(request.address), u32::from(request.address) + u32::from(request.count));
                // A single value that covers a hole is the only way to read that point at all.
                let single = request.entries.iter().any(|entry| entry.width == request.count);
                prop_assert!(single || !learned.contains_hole(request.table, first, end));
            }
        }
    }
}
