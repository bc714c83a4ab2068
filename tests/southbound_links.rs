//! How links are made: to names and IPv6 addresses, and to devices that take one client at a time.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod southbound_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fieldgate::model::Reason;
use fieldgate::southbound::Scan;
use fieldgate::southbound::modbus::Link;
use southbound_support::faulty::{Act, Newest, assert_right, converse, plain, server};
use southbound_support::*;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

#[tokio::test]
async fn a_host_name_is_looked_up() {
    let (port, _) = server(false, |asked| asked.right(false)).await;
    let mut running = start(vec![plain("named", Link::Tcp { host: "localhost".into(), port }, 1)]);
    assert_right(&running.good_scan("named").await, 1);
}

#[tokio::test]
async fn a_name_that_nobody_knows_is_a_link_that_is_down() {
    let mut running = start(vec![plain("nowhere", Link::Tcp { host: "nobody.invalid".into(), port: 502 }, 1)]);
    let scan = running.bad_scan("nowhere", Reason::LinkDown).await;
    assert_eq!(scan.results.len(), 5);
}

#[tokio::test]
async fn ipv6_addresses_are_taken_with_and_without_brackets() {
    let Ok(listener) = TcpListener::bind("[::1]:0").await else {
        eprintln!("this machine has no IPv6 loopback: nothing to test");
        return;
    };
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(converse(
                stream,
                false,
                Arc::default(),
                Arc::new(|asked| asked.right(false)),
                Newest::default(),
            ));
        }
    });
    for (name, host) in [("bare", "::1"), ("brackets", "[::1]")] {
        let mut running = start(vec![plain(name, Link::Tcp { host: host.into(), port }, 1)]);
        assert_right(&running.good_scan(name).await, 1);
    }
}

/// Many old PLCs have one connection to give, which the engineer's tool needs too.
#[tokio::test]
async fn a_device_that_takes_one_client_is_shared_when_the_link_closes_after_each_cycle() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (accepted, mut clients) = mpsc::channel(64);
    tokio::spawn(async move {
        // One connection at a time, as the device does it; further ones wait in the backlog.
        while let Ok((stream, from)) = listener.accept().await {
            accepted.send(from).await.unwrap();
            converse(stream, false, Arc::default(), Arc::new(|asked| asked.right(false)), Newest::default()).await;
        }
    });
    let mut shared = plain("shared", tcp(port), 1);
    let fieldgate::southbound::DriverConfig::Modbus(config) = &mut shared.driver;
    config.options.close_after_cycle = true;
    let mut running = start(vec![shared]);
    for _ in 0..5 {
        assert_right(&running.good_scan("shared").await, 1);
    }
    let cycles = std::iter::from_fn(|| clients.try_recv().ok()).count();
    assert!(cycles >= 5, "a connection for each cycle, not {cycles}");
    // The engineer's tool gets its turn, and the gateway goes on when it has left.
    let tool = timeout(PATIENCE, TcpStream::connect(("127.0.0.1", port))).await.unwrap().unwrap();
    let own = tool.local_addr().unwrap();
    timeout(PATIENCE, async { while clients.recv().await != Some(own) {} }).await.unwrap();
    drop(tool);
    timeout(PATIENCE, clients.recv()).await.unwrap().unwrap();
    assert_right(&running.good_scan("shared").await, 1);
}

/// An update of the device may bring what it refused before.
#[tokio::test]
async fn refused_points_are_asked_for_again_after_a_while() {
    let updated = Arc::new(AtomicBool::new(false));
    let there = updated.clone();
    let (port, asked) = server(false, move |asked| {
        let count = u16::from_be_bytes([asked.pdu[3], asked.pdu[4]]);
        let refused = !there.load(Ordering::SeqCst) && (asked.address()..asked.address() + count).contains(&3);
        if refused { Act::Send(vec![asked.frame(false, &[0x83, 2])], Duration::ZERO) } else { asked.right(false) }
    })
    .await;
    let mut device = plain("updated", tcp(port), 1);
    let fieldgate::southbound::DriverConfig::Modbus(config) = &mut device.driver;
    config.retry_refused = Duration::from_millis(500);
    let mut running = start(vec![device]);
    let one_hole = |scan: &Scan| {
        scan.results.iter().all(|result| (result.point == 3) == (result.outcome == Err(Reason::IllegalAddress)))
    };
    while !one_hole(&running.scan("updated").await) {}
    // The hole is known: two requests per cycle, none of them for it.
    let before = asked.load(Ordering::SeqCst);
    assert!(one_hole(&running.scan("updated").await));
    assert!(asked.load(Ordering::SeqCst) - before <= 4);
    updated.store(true, Ordering::SeqCst);
    assert_right(&running.good_scan("updated").await, 1);
}
