//! Bad networks between the gateway and its broker: one byte at a time, a trickle, a stall, a half-open connection,
//! resets. Each link is healed again, and at the latest five seconds later what the plant answers now must arrive; in the
//! end nothing is missing.
#![allow(clippy::unwrap_used, reason = "a test ends with a panic when its surroundings fail")]

mod support;
mod torture_support;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use fieldgate_simulators::proxy::{CutKind, Faults, Flow, Proxy};
use support::{Mosquitto, SOON, eventually, temp_dir};
use torture_support::{Collector, CountingPlant, Dice, Setup, run_for, times};

/// A fault and how long it lasts.
struct Trouble {
    name: &'static str,
    lasts: Duration,
    faults: Faults,
    /// Cut all connections this often meanwhile.
    resets: u32,
}

fn troubles(dice: &Dice) -> Vec<Trouble> {
    let flow = |slice, bytes_per_second| Flow { slice, bytes_per_second, ..Flow::default() };
    let both = |flow: Flow| Faults { up: flow, down: flow, ..Faults::default() };
    let slow = Flow { latency: Duration::from_millis(300), jitter: Duration::from_millis(200), ..Flow::default() };
    let trouble = |name, seconds, faults| Trouble { name, lasts: Duration::from_secs(seconds), faults, resets: 0 };
    vec![
        trouble("one byte at a time", 3, both(flow(Some(1), None))),
        trouble("a trickle of 2,000 bytes per second", 4, both(flow(None, Some(2_000)))),
        trouble("300 to 500 ms each way", 3, both(slow)),
        trouble("a stall", 3, Faults { hold: true, ..Faults::default() }),
        // Longer than 1.5 times the keep-alive of 5 s: found while it lasts, or at the latest when it ends.
        trouble("half-open", 9, Faults { blackhole: true, ..Faults::default() }),
        trouble("nobody listens", 4, Faults { refuse: true, ..Faults::default() }),
        Trouble { resets: 3 + dice.roll(5) as u32, ..trouble("resets at random moments", 3, Faults::default()) },
        Trouble { resets: 2, ..trouble("resets while bytes come one by one", 3, both(flow(Some(1), None))) },
    ]
}

#[test]
fn every_bad_network_is_left_within_five_seconds_and_nothing_is_lost() {
    let (rounds, dice) = (times("FIELDGATE_NETWORKS", 1), Dice::new());
    let (folder, plant) = (temp_dir(), CountingPlant::start());
    let broker = Mosquitto::with_config("allow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 0\n");
    let collector = Collector::start(broker.port());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("threads");
    let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
    let proxy = runtime.block_on(Proxy::start(loopback(0), loopback(broker.port()))).expect("a port");
    let mut setup = Setup::new(folder.path(), &plant, proxy.address().port());
    setup.uplinks = &[("ordered", true), ("live", false)];
    setup.write();
    let mut gateway = setup.start();
    collector.wait_for_number("live", 1, 10, SOON);

    for _ in 0..rounds {
        for Trouble { name, lasts, faults, resets } in troubles(&dice) {
            proxy.change(|now| *now = faults);
            if faults.refuse {
                proxy.cut(CutKind::Rst);
            }
            for _ in 0..resets {
                run_for(dice.millis(0, (lasts / (resets + 1)).as_millis() as u64));
                proxy.cut(if dice.roll(2) == 0 { CutKind::Rst } else { CutKind::Fin });
            }
            run_for(lasts / (resets + 1));
            proxy.clear();
            let healed = Instant::now();
            let now = plant.answers();
            let mut recovered = Duration::ZERO;
            for root in ["live", "ordered"] {
                for (device, answers) in &now {
                    collector.wait_for_number(root, *device, answers.len() as u32, SOON);
                }
                recovered = recovered.max(healed.elapsed());
            }
            println!("{name} for {lasts:?}: everything is through {recovered:?} after healing");
            assert!(recovered <= Duration::from_secs(5), "{name}: recovered after {recovered:?}");
            assert!(gateway.child.is_running(), "{name}: {:#?}", gateway.child.lines());
        }
    }
    let answers = plant.answers();
    for root in ["live", "ordered"] {
        eventually("everything at the subscriber", SOON, || {
            collector.account(root).missing(&answers).is_empty().then_some(())
        });
        let account = collector.account(root);
        assert!(account.gaps.is_empty(), "{root}: {:?}", account.gaps);
        assert_eq!(account.contradictions(), Vec::<String>::new(), "{root}");
        println!("{root}: {} arrivals, {} of them twice, 0 lost", account.arrivals.len(), account.duplicates().len());
    }
    gateway.stop();
}
