//! The southbound side against servers that are slow, silent or gone, and under changes while it runs.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod southbound_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use fieldgate::model::{DeviceId, Reason, Value};
use fieldgate::platform::clock::SystemClock;
use fieldgate::southbound::modbus::Table;
use fieldgate::southbound::{DeviceState, Southbound, Update};
use southbound_support::faulty::*;
use southbound_support::*;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

#[tokio::test]
async fn replies_in_single_octets_are_put_together() {
    let (port, _) = server(false, |asked| {
        let octets = asked.frame(false, &asked.right_pdu());
        Act::Send(octets.into_iter().map(|octet| vec![octet]).collect(), Duration::from_millis(1))
    })
    .await;
    let mut running = start(vec![plain("d1", tcp(port), 1)]);
    assert_right(&running.good_scan("d1").await, 1);
    running.southbound.shutdown().await;
}

#[tokio::test]
async fn a_unit_that_ignores_the_echo_question_comes_back() {
    let (port, _) = server(true, |asked| match (asked.pdu[0], asked.number) {
        (8, _) | (_, 0..3) => Act::Silence,
        _ => asked.right(true),
    })
    .await;
    let mut running = start(vec![hasty("d1", rtu_tcp(port), 1)]);
    running.bad_scan("d1", Reason::Timeout).await;
    assert_right(&running.good_scan("d1").await, 1);
    running.southbound.shutdown().await;
}

#[tokio::test]
async fn an_exception_storm_is_reported_and_the_device_stays_on_scan() {
    let storm = Arc::new(AtomicBool::new(true));
    let flag = storm.clone();
    let (port, _) = server(false, move |asked| match flag.load(Ordering::SeqCst) {
        true => Act::Send(vec![asked.frame(false, &[0x83, 6])], Duration::ZERO),
        false => asked.right(false),
    })
    .await;
    let mut running = start(vec![plain("d1", tcp(port), 1)]);
    running.bad_scan("d1", Reason::DeviceException).await;
    running.state("d1", "degraded").await;
    storm.store(false, Ordering::SeqCst);
    assert_right(&running.good_scan("d1").await, 1);
    running.state("d1", "online").await;
    running.southbound.shutdown().await;
}

#[tokio::test]
async fn a_dead_unit_goes_off_scan_at_once_with_all_its_points_and_its_bus_mates_go_on() {
    let dead = Arc::new(AtomicBool::new(false));
    let flag = dead.clone();
    let (port, _) = server(true, move |asked| match asked.unit {
        2 if flag.load(Ordering::SeqCst) => Act::Silence,
        _ => asked.right(true),
    })
    .await;
    // The mates are given time to answer: on a busy machine this server, too, is late now and then.
    let member = |unit: u8| {
        let mut config = quick(rtu_tcp(port), unit);
        config.reply_timeout = Some(if unit == 2 { Duration::from_millis(150) } else { PATIENCE });
        device(&format!("d{unit}"), config, FAST)
    };
    let mut running = start((1..=3).map(member).collect());
    for unit in 1..=3 {
        assert_right(&running.good_scan(&format!("d{unit}")).await, unit);
    }
    dead.store(true, Ordering::SeqCst);
    let bad = running.bad_scan("d2", Reason::OffScan).await;
    assert_eq!(bad.results.len(), 5, "every point is reported");
    running.state("d2", "off-scan").await;

    // The others go on, without a failure of their own. How much of their schedule they keep is asserted on a virtual
    // clock, in src/southbound/link/tests.rs: here it would measure the machine.
    for _ in 0..40 {
        for unit in [1, 3] {
            assert_right(&running.good_scan(&format!("d{unit}")).await, unit);
        }
    }
    for unit in ["d1", "d3"] {
        assert_eq!(running.stats(unit).await.failures, 0);
    }
    dead.store(false, Ordering::SeqCst);
    assert_right(&running.good_scan("d2").await, 2);
    running.state("d2", "online").await;
    running.southbound.shutdown().await;
}

#[tokio::test]
async fn a_link_that_goes_down_makes_every_point_bad_at_once_and_comes_back() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve = |listener: TcpListener| {
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            drop(listener);
            converse(stream, false, Arc::default(), Arc::new(|asked: &Asked| asked.right(false)), Newest::default())
                .await;
        })
    };
    let first = serve(listener);
    let mut running = start(vec![plain("d1", tcp(port), 1)]);
    assert_right(&running.good_scan("d1").await, 1);
    first.abort();
    let bad = running.bad_scan("d1", Reason::LinkDown).await;
    assert_eq!(bad.results.len(), 5);
    let state = running.state("d1", "offline").await;
    assert!(state.reason().unwrap().contains(&format!("127.0.0.1:{port}")), "{state}");
    let id = DeviceId::new("d1").unwrap();
    assert_eq!(running.southbound.write(&id, 0, Value::Uint(1)).await.unwrap_err().code(), "link-down");
    let _second = serve(TcpListener::bind(("127.0.0.1", port)).await.unwrap());
    assert_right(&running.good_scan("d1").await, 1);
    running.state("d1", "online").await;
    running.southbound.shutdown().await;
}

#[tokio::test]
async fn a_serial_port_that_vanishes_and_comes_back_is_used_again() {
    let pair = pty_pair().await;
    let task = tokio::spawn(converse(
        open_pty(&pair.theirs),
        true,
        Arc::default(),
        Arc::new(|asked: &Asked| asked.right(true)),
        Newest::default(),
    ));
    let mut running = start(vec![plain("d1", serial(&pair.ours), 1)]);
    assert_right(&running.good_scan("d1").await, 1);
    let PtyPair { ours, theirs, socat: first, dir } = pair;
    drop(first);
    task.abort();
    running.state("d1", "offline").await;
    let _ = (std::fs::remove_file(&ours), std::fs::remove_file(&theirs));
    let _second = socat(&ours, &theirs).await;
    tokio::spawn(converse(
        open_pty(&theirs),
        true,
        Arc::default(),
        Arc::new(|asked: &Asked| asked.right(true)),
        Newest::default(),
    ));
    assert_right(&running.good_scan("d1").await, 1);
    running.southbound.shutdown().await;
    drop(dir);
}

#[tokio::test]
async fn a_stop_takes_less_than_two_seconds_although_the_device_hangs() {
    let (port, count) = server(false, |_| Act::Silence).await;
    let mut config = quick(tcp(port), 1);
    config.reply_timeout = Some(Duration::from_secs(60));
    let running = start(vec![device("d1", config, FAST)]);
    timeout(PATIENCE, async {
        while count.load(Ordering::SeqCst) == 0 {
            sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .unwrap();
    let (southbound, id) = (running.southbound.clone(), DeviceId::new("d1").unwrap());
    let write = tokio::spawn(async move { southbound.write(&id, 0, Value::Uint(1)).await });
    tokio::task::yield_now().await;
    let begun = Instant::now();
    running.southbound.shutdown().await;
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert!(["stopped", "unknown-point"].contains(&write.await.unwrap().unwrap_err().code()));
}

#[tokio::test]
async fn a_write_without_an_answer_is_sent_once_and_says_that_it_may_have_happened() {
    let writes = Arc::new(AtomicUsize::new(0));
    let counter = writes.clone();
    let (port, _) = server(false, move |asked| match asked.pdu[0] {
        6 => {
            counter.fetch_add(1, Ordering::SeqCst);
            Act::Silence
        }
        _ => asked.right(false),
    })
    .await;
    let mut running = start(vec![hasty("d1", tcp(port), 1)]);
    running.good_scan("d1").await;
    let error = running.southbound.write(&DeviceId::new("d1").unwrap(), 0, Value::Uint(1)).await.unwrap_err();
    assert_eq!((error.code(), error.may_have_happened()), ("timeout", true));
    assert_right(&running.good_scan("d1").await, 1);
    assert_eq!(writes.load(Ordering::SeqCst), 1);
    running.southbound.shutdown().await;
}

#[tokio::test]
async fn a_device_that_confirms_and_does_nothing_is_found_out() {
    let (port, _) = server(false, |asked| match asked.pdu[0] {
        6 => Act::Send(vec![asked.frame(false, &asked.pdu)], Duration::ZERO),
        _ => asked.right(false),
    })
    .await;
    let running = start(vec![plain("d1", tcp(port), 1)]);
    let error = running.southbound.write(&DeviceId::new("d1").unwrap(), 0, Value::Uint(1)).await.unwrap_err();
    assert_eq!(error.code(), "read-back-mismatch");
    running.southbound.shutdown().await;
}

#[tokio::test]
async fn applying_a_change_leaves_the_other_devices_and_the_connection_alone() {
    let (port, _) = server(false, |asked| asked.right(false)).await;
    let connections = Arc::new(AtomicUsize::new(0));
    let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy_port = proxy.local_addr().unwrap().port();
    let counter = connections.clone();
    tokio::spawn(async move {
        while let Ok((mut here, _)) = proxy.accept().await {
            counter.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                let mut there = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut here, &mut there).await;
            });
        }
    });
    let link = tcp(proxy_port);
    let (kept, removed) = (plain("kept", link.clone(), 1), plain("removed", link.clone(), 2));
    let changed = plain("changed", link.clone(), 3);
    let mut running = start(vec![kept.clone(), removed, changed]);
    for name in ["kept", "removed", "changed"] {
        running.good_scan(name).await;
    }
    let mut config = quick(link.clone(), 3);
    config.points = words(Table::Holding, 100..102);
    let applied = running.southbound.apply(vec![kept, device("changed", config, FAST), plain("added", link, 4)]).await;
    let names = |ids: &[DeviceId]| ids.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(names(&applied.unchanged), ["kept"]);
    assert_eq!(names(&applied.changed), ["changed"]);
    assert_eq!(names(&applied.added), ["added"]);
    assert_eq!(names(&applied.removed), ["removed"]);
    let scan = running
        .wait("the new points", |update| match update {
            Update::Scan(scan) if scan.device.as_str() == "changed" && scan.results.len() == 2 => Some(scan),
            _ => None,
        })
        .await;
    assert_eq!(outcome(&scan, 0), Ok(Value::Uint(3100)));
    assert_right(&running.good_scan("added").await, 4);
    assert_right(&running.good_scan("kept").await, 1);
    assert_eq!(connections.load(Ordering::SeqCst), 1, "one connection served them all the time");
    running.southbound.shutdown().await;
}

#[tokio::test]
async fn what_is_not_taken_over_waits_and_is_counted_as_backpressure() {
    let (port, _) = server(false, |asked| asked.right(false)).await;
    let (sender, mut updates) = mpsc::channel(1);
    let southbound = Southbound::start(vec![plain("d1", tcp(port), 1)], sender, SystemClock::shared());
    let first = timeout(PATIENCE, updates.recv()).await.unwrap().unwrap();
    assert!(matches!(first, Update::Device { state: DeviceState::Connecting, .. }), "{first:?}");
    sleep(Duration::from_millis(500)).await;
    let (mut scans, mut counted) = (0, 0);
    timeout(PATIENCE, async {
        while scans == 0 || counted == 0 {
            match updates.recv().await.unwrap() {
                Update::Scan(scan) => {
                    assert_right(&scan, 1);
                    scans += 1;
                }
                Update::Device { stats, .. } => counted = stats.overruns.get("backpressure").copied().unwrap_or(0),
                Update::Identity { .. } => {}
            }
        }
    })
    .await
    .unwrap();
    southbound.shutdown().await;
}
