use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

fn job(slot: usize, group: usize) -> Job {
    Job { slot, group }
}

#[test]
fn a_long_cycle_of_one_device_does_not_hold_up_another() {
    let mut schedule = Schedule::default();
    schedule.add(job(0, 0), 1000 * MS, Duration::ZERO, 0.0);
    schedule.add(job(1, 0), 1000 * MS, Duration::ZERO, 0.0);
    schedule.tick(Duration::ZERO, || 0.0, |_, _, _| panic!("no overrun"));
    let served: Vec<usize> = (0..4).map(|_| schedule.next(Duration::ZERO).unwrap().0.slot).collect();
    assert_eq!(served, [0, 1, 0, 1]);
}

#[test]
fn groups_of_a_device_take_turns_too() {
    let mut schedule = Schedule::default();
    schedule.add(job(0, 0), 1000 * MS, Duration::ZERO, 0.0);
    schedule.add(job(0, 1), 50 * MS, Duration::ZERO, 0.0);
    schedule.tick(Duration::ZERO, || 0.0, |_, _, _| {});
    let served: Vec<usize> = (0..4).map(|_| schedule.next(Duration::ZERO).unwrap().0.group).collect();
    assert_eq!(served, [0, 1, 0, 1]);
}

#[test]
fn overruns_name_their_cause() {
    let mut schedule = Schedule::default();
    for slot in 0..4 {
        schedule.add(job(slot, 0), 100 * MS, Duration::ZERO, 0.0);
    }
    schedule.tick(Duration::ZERO, || 1.0, |_, _, _| panic!("no overrun"));
    schedule.block(1, true);
    schedule.pause(3, true);
    let (first, starts) = schedule.next(Duration::ZERO).unwrap();
    assert_eq!((first, starts), (job(0, 0), true));
    let mut causes = BTreeMap::new();
    schedule.tick(
        250 * MS,
        || 1.0,
        |job, cause, count| {
            causes.insert(job.slot, (cause.as_str(), count));
        },
    );
    assert_eq!(causes[&0], ("previous-scan", 2));
    assert_eq!(causes[&1], ("backpressure", 2));
    assert_eq!(causes[&2], ("bus-busy", 2));
    assert!(!causes.contains_key(&3));
    schedule.hold(2, 500 * MS);
    schedule.tick(
        310 * MS,
        || 1.0,
        |job, cause, count| {
            causes.insert(job.slot, (cause.as_str(), count));
        },
    );
    assert_eq!(causes[&2], ("recovering", 1));
    assert!(schedule.next(310 * MS).is_some_and(|(job, _)| job.slot == 0), "a held slot is not served");
}

#[test]
fn hurry_makes_slow_groups_due_now() {
    let mut schedule = Schedule::default();
    schedule.add(job(0, 0), Duration::from_secs(86_400), Duration::ZERO, 0.5);
    assert_eq!(schedule.wake_at(), Some(100 * MS), "the first cycle comes soon whatever the rate");
    assert_eq!(schedule.next(Duration::ZERO), None);
    schedule.hurry(0, Duration::ZERO);
    assert_eq!(schedule.next(Duration::ZERO), Some((job(0, 0), true)));
}

/// When the third cycles of 20 links come due that were started at once, as parts of the period.
fn third_cycles(every: Duration) -> Vec<Duration> {
    let links = (0..20).map(|link| f64::from(link) / 20.0);
    let of_link = |chance: f64| {
        let mut schedule = Schedule::default();
        schedule.add(job(0, 0), every, Duration::ZERO, chance);
        for _ in 0..2 {
            let now = schedule.wake_at().unwrap();
            schedule.tick(now, || chance, |_, _, _| panic!("no overrun"));
            schedule.next(now).unwrap();
            schedule.finished(job(0, 0), now);
        }
        schedule.wake_at().unwrap()
    };
    links.map(of_link).collect()
}

#[test]
fn links_that_are_read_at_one_rate_meet_at_a_few_moments_of_it() {
    for (every, grid) in [(1000 * MS, 100 * MS), (100 * MS, 10 * MS), (50 * MS, 5 * MS), (60_000 * MS, 100 * MS)] {
        let due = third_cycles(every);
        assert!(due.iter().all(|due| due.as_nanos() % grid.as_nanos() == 0), "{every:?}: {due:?}");
        let moments: std::collections::BTreeSet<u128> = due.iter().map(|d| d.as_nanos() % every.as_nanos()).collect();
        assert!(moments.len() >= 4, "{every:?}: {moments:?} are too many devices at once");
        assert!(moments.len() <= 10 || every > 1000 * MS, "{every:?}: {moments:?}");
    }
}

proptest! {
    /// Served or left out, every tick of the grid is accounted for once; a group never runs twice at the same time.
    #[test]
    fn every_tick_is_a_cycle_or_an_overrun(
        rates in prop::collection::vec(50u64..500, 1..6), steps in prop::collection::vec((1u64..120, any::<bool>()), 1..300),
    ) {
        let mut schedule = Schedule::default();
        for (slot, rate) in rates.iter().enumerate() {
            schedule.add(job(slot, 0), *rate as u32 * MS, Duration::ZERO, 0.0);
        }
        let mut now = Duration::ZERO;
        let mut running: Option<Job> = None;
        let (mut started, mut skipped) = (vec![0u64; rates.len()], vec![0u64; rates.len()]);
        for (pass, finish) in steps {
            schedule.tick(now, || 1.0, |job, _, count| skipped[job.slot] += count);
            if let Some(job) = running.take_if(|_| finish) {
                schedule.finished(job, now);
            } else if running.is_none() && let Some((job, starts)) = schedule.next(now) {
                started[job.slot] += u64::from(starts);
                running = Some(job);
            }
            now += pass as u32 * MS;
        }
        schedule.tick(now, || 1.0, |job, _, count| skipped[job.slot] += count);
        for (slot, rate) in rates.iter().enumerate() {
            let ticks = 1 + now.as_millis() as u64 / rate;
            let accounted = started[slot] + skipped[slot];
            // At most one tick is waiting for its turn.
            prop_assert!(ticks == accounted || ticks == accounted + 1, "{ticks} ticks, {accounted} accounted");
        }
    }

    #[test]
    fn the_wake_time_is_never_late(rates in prop::collection::vec(50u64..5000, 1..10), chance in 0.0..1.0f64) {
        let mut schedule = Schedule::default();
        for (slot, rate) in rates.iter().enumerate() {
            schedule.add(job(slot, 0), *rate as u32 * MS, Duration::ZERO, chance);
        }
        for _ in 0..100 {
            let now = schedule.wake_at().unwrap();
            schedule.tick(now, || chance, |job, cause, _| panic!("{job:?} {cause:?}"));
            let mut served = 0;
            while let Some((job, starts)) = schedule.next(now) {
                prop_assert!(starts);
                schedule.finished(job, now);
                served += 1;
            }
            prop_assert!(served > 0, "woken for nothing");
        }
    }
}
