//! No wrong value, whatever a server sends: lies, noise, and replies that come late.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod southbound_support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fieldgate::model::Value;
use fieldgate::southbound::modbus::Link;
use southbound_support::faulty::*;
use southbound_support::*;
use tokio::time::Instant;

/// Every good value of many scans must be the right one, whatever the server does; some must be good, and the process lives.
async fn only_right_values(link: Link, least_good: usize) {
    let mut config = quick(link, 1);
    config.breaker.failures = 1000;
    config.options.late_reply_guard = Some(Duration::from_millis(300));
    let mut running = start(vec![device("d1", config, FAST)]);
    let (mut good, mut bad) = (0, 0);
    let deadline = Instant::now() + 3 * PATIENCE;
    while good < least_good || bad < 2 {
        assert!(Instant::now() < deadline, "only {good} good and {bad} bad scans");
        let scan = running.scan("d1").await;
        for result in &scan.results {
            if let Ok(value) = &result.outcome {
                assert_eq!(*value, Value::Uint(u64::from(result.point) + 1000), "a wrong value got through");
            }
        }
        if scan.results.iter().all(|result| result.outcome.is_ok()) { good += 1 } else { bad += 1 }
    }
    running.southbound.shutdown().await;
}

/// Two bad answers in a row out of four, so that the retry fails too; the others right.
fn sometimes(
    rtu: bool,
    bad: impl Fn(&Asked) -> Act + Send + Sync + 'static,
) -> impl Fn(&Asked) -> Act + Send + Sync + 'static {
    let reads = AtomicUsize::new(0);
    move |asked| {
        if asked.pdu[0] != 3 {
            return asked.right(rtu);
        }
        if reads.fetch_add(1, Ordering::SeqCst) % 4 >= 2 { bad(asked) } else { asked.right(rtu) }
    }
}

/// A misbehaviour and its name.
type Lie = (&'static str, fn(&Asked, bool) -> Act);

/// Each misbehaviour, as octets instead of the right reply.
fn lies(rtu: bool) -> Vec<Lie> {
    fn once(octets: Vec<u8>) -> Act {
        Act::Send(vec![octets], Duration::ZERO)
    }
    let mut lies: Vec<Lie> = vec![
        ("fewer registers than asked for", |asked, rtu| once(asked.frame(rtu, &[3, 2, 0, 99]))),
        ("more registers than asked for", |asked, rtu| {
            once(asked.frame(rtu, &[[3, 12].to_vec(), vec![7; 12]].concat()))
        }),
        ("a count that lies", |asked, rtu| once(asked.frame(rtu, &[3, 10, 0, 99]))),
        ("another unit", |asked, rtu| once(Asked { unit: 9, ..asked.clone() }.frame(rtu, &asked.right_pdu()))),
        ("another function", |asked, rtu| once(asked.frame(rtu, &[4, 10, 0, 9, 0, 9, 0, 9, 0, 9, 0, 9]))),
        ("an exception of another function", |asked, rtu| once(asked.frame(rtu, &[0x84, 2]))),
        ("noise", |_, _| once(vec![0xFF; 300])),
        ("nothing", |_, _| Act::Silence),
        ("half a reply", |asked, rtu| once(asked.frame(rtu, &asked.right_pdu())[..7].to_vec())),
        ("a closed connection", |_, rtu| if rtu { Act::Silence } else { Act::Close }),
        ("an empty PDU", |asked, rtu| once(asked.frame(rtu, &[]))),
    ];
    if rtu {
        lies.push(("a wrong checksum", |asked, rtu| {
            let mut octets = asked.frame(rtu, &asked.right_pdu());
            *octets.last_mut().unwrap() ^= 1;
            once(octets)
        }));
        lies.push(("octets after the reply", |asked, rtu| {
            let octets = asked.frame(rtu, &asked.right_pdu());
            once([octets.clone(), octets].concat())
        }));
    } else {
        lies.push(("another transaction", |asked, rtu| {
            once(Asked { transaction: [0xDE, 0xAD], ..asked.clone() }.frame(rtu, &asked.right_pdu()))
        }));
        lies.push(("a header length of 65535", |asked, rtu| {
            let mut octets = asked.frame(rtu, &asked.right_pdu());
            octets[4..6].copy_from_slice(&[0xFF, 0xFF]);
            once(octets)
        }));
    }
    lies
}

#[tokio::test]
async fn no_lie_on_tcp_becomes_a_value() {
    let checks = lies(false).into_iter().map(|(_, lie)| async move {
        let (port, _) = server(false, sometimes(false, move |asked| lie(asked, false))).await;
        only_right_values(tcp(port), 3).await;
    });
    futures::future::join_all(checks).await;
}

#[tokio::test]
async fn no_lie_on_rtu_over_tcp_becomes_a_value() {
    let checks = lies(true).into_iter().map(|(_, lie)| async move {
        let (port, _) = server(true, sometimes(true, move |asked| lie(asked, true))).await;
        only_right_values(rtu_tcp(port), 3).await;
    });
    futures::future::join_all(checks).await;
}

#[tokio::test]
async fn no_lie_on_a_serial_line_becomes_a_value() {
    let checks = lies(true).into_iter().map(|(_, lie)| async move {
        let (link, _pair) = serial_server(sometimes(true, move |asked| lie(asked, true))).await;
        only_right_values(link, 3).await;
    });
    futures::future::join_all(checks).await;
}

#[tokio::test]
async fn random_octets_as_replies_stop_nothing() {
    for rtu in [false, true] {
        let (port, _) = server(rtu, move |asked| {
            if asked.number % 5 == 4 || asked.pdu[0] == 8 {
                return asked.right(rtu);
            }
            let noise: Vec<u8> = (0..rand::random_range(0..400)).map(|_| rand::random()).collect();
            let body = if asked.number % 2 == 0 { noise } else { asked.frame(rtu, &noise[..noise.len().min(250)]) };
            Act::Send(vec![body], Duration::ZERO)
        })
        .await;
        let link = if rtu { rtu_tcp(port) } else { tcp(port) };
        only_right_values(link, 3).await;
    }
}

/// Replies take 100 ms, and every third one 540 ms, with content of its own: after the timeout of 400 ms, when the next
/// request of the same shape is mostly under way. It comes out of order, and over the newest connection, as a converter
/// might send it.
fn late_liar(rtu: bool) -> impl Fn(&Asked) -> Act + Send + Sync + 'static {
    let reads = AtomicUsize::new(0);
    move |asked| {
        if asked.pdu[0] != 3 {
            return asked.right(rtu);
        }
        let read = reads.fetch_add(1, Ordering::SeqCst);
        let (pdu, delay) =
            if read % 3 == 2 { ([3, 10].into_iter().chain([9; 10]).collect(), 540) } else { (asked.right_pdu(), 100) };
        Act::Later(asked.frame(rtu, &pdu), Duration::from_millis(delay))
    }
}

async fn no_late_reply_is_a_value(link: Link) {
    let mut config = quick(link, 1);
    config.breaker.failures = 1000;
    config.retries = 0;
    config.reply_timeout = Some(Duration::from_millis(400));
    let mut running = start(vec![device("d1", config, FAST)]);
    let (mut good, mut failed) = (0, 0);
    let deadline = Instant::now() + 3 * PATIENCE;
    while good < 6 || failed < 3 {
        assert!(Instant::now() < deadline, "only {good} good and {failed} failed scans");
        let scan = running.scan("d1").await;
        if scan.results.iter().all(|result| result.outcome.is_ok()) {
            assert_right(&scan, 1);
            good += 1;
        } else {
            failed += 1;
        }
    }
    running.southbound.shutdown().await;
}

#[tokio::test]
async fn a_late_reply_of_the_same_shape_is_never_a_value_on_tcp() {
    let (port, _) = server(false, late_liar(false)).await;
    no_late_reply_is_a_value(tcp(port)).await;
}

#[tokio::test]
async fn a_late_reply_of_the_same_shape_is_never_a_value_on_rtu_over_tcp() {
    let (port, _) = server(true, late_liar(true)).await;
    no_late_reply_is_a_value(rtu_tcp(port)).await;
}

#[tokio::test]
async fn a_late_reply_of_the_same_shape_is_never_a_value_on_a_serial_line() {
    let (link, _pair) = serial_server(late_liar(true)).await;
    no_late_reply_is_a_value(link).await;
}
