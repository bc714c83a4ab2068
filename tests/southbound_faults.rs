//! The southbound side against servers that misbehave: late, short, wrong, broken, silent or gone.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod southbound_support;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use fieldgate::model::{DeviceId, Reason, Value};
use fieldgate::platform::clock::SystemClock;
use fieldgate::southbound::modbus::{Config, Link, Parity, SerialLine, Table};
use fieldgate::southbound::{DeviceConfig, DeviceState, Scan, Southbound, Update, breaker};
use southbound_support::*;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

const FAST: Duration = Duration::from_millis(50);

/// A request as the server sees it.
#[derive(Debug, Clone)]
struct Asked {
    transaction: [u8; 2],
    unit: u8,
    pdu: Vec<u8>,
    /// Requests before this one, over all connections.
    number: usize,
}

/// What a server does about a request.
enum Act {
    /// Sends these octets, one after the other with a pause between them.
    Send(Vec<Vec<u8>>, Duration),
    /// Says nothing.
    Silence,
    /// Sends this after a delay, on whatever connection is the newest then, while it goes on with the next request.
    Later(Vec<u8>, Duration),
    /// Closes the connection.
    Close,
}

type Behaviour = Arc<dyn Fn(&Asked) -> Act + Send + Sync>;

impl Asked {
    fn address(&self) -> u16 {
        u16::from_be_bytes([self.pdu[1], self.pdu[2]])
    }

    /// The right PDU: register a holds a + 1000 × unit; FC 8 echoes; everything else is an illegal function.
    fn right_pdu(&self) -> Vec<u8> {
        match self.pdu[0] {
            3 => {
                let count = u16::from_be_bytes([self.pdu[3], self.pdu[4]]);
                let words = (0..count).map(|offset| self.address() + offset + 1000 * u16::from(self.unit));
                let data: Vec<u8> = words.flat_map(u16::to_be_bytes).collect();
                [vec![3, data.len() as u8], data].concat()
            }
            8 => self.pdu.clone(),
            function => vec![function | 0x80, 1],
        }
    }

    fn frame(&self, rtu: bool, pdu: &[u8]) -> Vec<u8> {
        if rtu {
            let body = [&[self.unit][..], pdu].concat();
            let sum = crc(&body);
            [body, sum.to_le_bytes().to_vec()].concat()
        } else {
            let length = (pdu.len() as u16 + 1).to_be_bytes();
            [&self.transaction[..], &[0, 0], &length, &[self.unit], pdu].concat()
        }
    }

    fn right(&self, rtu: bool) -> Act {
        Act::Send(vec![self.frame(rtu, &self.right_pdu())], Duration::ZERO)
    }
}

fn crc(octets: &[u8]) -> u16 {
    octets.iter().fold(0xFFFF, |sum, octet| {
        (0..8).fold(sum ^ u16::from(*octet), |sum, _| if sum & 1 == 1 { (sum >> 1) ^ 0xA001 } else { sum >> 1 })
    })
}

async fn read_request(stream: &mut (impl AsyncRead + Unpin), rtu: bool) -> Option<Asked> {
    if rtu {
        // Unit, function, and four octets of every request used here, then the checksum.
        let mut head = [0; 2];
        stream.read_exact(&mut head).await.ok()?;
        let rest = match head[1] {
            43 => 5,
            17 => 2,
            _ => 6,
        };
        let mut body = vec![0; rest];
        stream.read_exact(&mut body).await.ok()?;
        let pdu = [&head[1..], &body[..rest - 2]].concat();
        return Some(Asked { transaction: [0; 2], unit: head[0], pdu, number: 0 });
    }
    let mut head = [0; 7];
    stream.read_exact(&mut head).await.ok()?;
    let mut pdu = vec![0; usize::from(u16::from_be_bytes([head[4], head[5]])) - 1];
    stream.read_exact(&mut pdu).await.ok()?;
    Some(Asked { transaction: [head[0], head[1]], unit: head[6], pdu, number: 0 })
}

/// The newest connection of a server, for replies that come late.
type Newest<S> = Arc<std::sync::Mutex<Option<Output<S>>>>;
type Output<S> = Arc<tokio::sync::Mutex<tokio::io::WriteHalf<S>>>;

async fn converse<S: AsyncRead + AsyncWrite + Send + 'static>(
    stream: S,
    rtu: bool,
    count: Arc<AtomicUsize>,
    behaviour: Behaviour,
    newest: Newest<S>,
) {
    let (mut input, output) = tokio::io::split(stream);
    let output = Arc::new(tokio::sync::Mutex::new(output));
    *newest.lock().unwrap() = Some(output.clone());
    while let Some(mut asked) = read_request(&mut input, rtu).await {
        asked.number = count.fetch_add(1, Ordering::SeqCst);
        match behaviour(&asked) {
            Act::Send(parts, pause) => {
                for part in parts {
                    if output.lock().await.write_all(&part).await.is_err() {
                        return;
                    }
                    sleep(pause).await;
                }
            }
            Act::Silence => {}
            Act::Later(octets, delay) => {
                let newest = newest.clone();
                tokio::spawn(async move {
                    sleep(delay).await;
                    let output = newest.lock().unwrap().clone().unwrap();
                    let _ = output.lock().await.write_all(&octets).await;
                });
            }
            Act::Close => return,
        }
    }
}

/// A server on TCP; returns its port and the number of requests so far.
async fn server(rtu: bool, behaviour: impl Fn(&Asked) -> Act + Send + Sync + 'static) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let count = Arc::new(AtomicUsize::new(0));
    let (behaviour, counter): (Behaviour, _) = (Arc::new(behaviour), count.clone());
    let newest = Newest::default();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(converse(stream, rtu, counter.clone(), behaviour.clone(), newest.clone()));
        }
    });
    (port, count)
}

/// A server on one end of a pseudo terminal pair.
async fn serial_server(behaviour: impl Fn(&Asked) -> Act + Send + Sync + 'static) -> (Link, PtyPair) {
    let pair = pty_pair().await;
    let port = open_pty(&pair.theirs);
    tokio::spawn(converse(port, true, Arc::default(), Arc::new(behaviour), Newest::default()));
    (serial(&pair.ours), pair)
}

fn open_pty(path: &std::path::Path) -> tokio_serial::SerialStream {
    use tokio_serial::SerialPortBuilderExt;
    tokio_serial::new(path.to_str().unwrap(), 115_200).open_native_async().unwrap()
}

fn serial(path: &std::path::Path) -> Link {
    Link::Serial(SerialLine { parity: Parity::None, ..SerialLine::new(path.to_str().unwrap(), 115_200) })
}

/// Registers 0 to 4 of a unit, every 50 ms, 150 ms of patience.
fn plain(name: &str, link: Link, unit: u8) -> DeviceConfig {
    device(name, quick(link, unit), FAST)
}

fn quick(link: Link, unit: u8) -> Config {
    let mut config = Config::new(link, unit);
    config.points = words(Table::Holding, 0..5);
    config.reply_timeout = Some(Duration::from_millis(150));
    config.identify = false;
    config.breaker = breaker::Settings {
        backoff_min: Duration::from_millis(200),
        backoff_max: Duration::from_secs(1),
        ..breaker::Settings::default()
    };
    config
}

fn assert_right(scan: &Scan, unit: u64) {
    for result in &scan.results {
        assert_eq!(result.outcome, Ok(Value::Uint(u64::from(result.point) + 1000 * unit)));
    }
}

/// Every good value of many scans must be the right one, whatever the server does; some must be good, and the process lives.
async fn only_right_values(link: Link, least_good: usize) {
    let mut config = quick(link, 1);
    config.breaker.failures = 1000;
    config.options.late_reply_guard = Some(Duration::from_millis(300));
    let mut running = start(vec![device("d1", config, FAST)]);
    let (mut good, mut bad) = (0, 0);
    let deadline = Instant::now() + PATIENCE;
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

/// Replies take 100 ms, and every third one 290 ms, with content of its own: after the timeout of 150 ms, when the next
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
            if read % 3 == 2 { ([3, 10].into_iter().chain([9; 10]).collect(), 290) } else { (asked.right_pdu(), 100) };
        Act::Later(asked.frame(rtu, &pdu), Duration::from_millis(delay))
    }
}

async fn no_late_reply_is_a_value(link: Link) {
    let mut config = quick(link, 1);
    config.breaker.failures = 1000;
    config.retries = 0;
    let mut running = start(vec![device("d1", config, FAST)]);
    let (mut good, mut failed) = (0, 0);
    let deadline = Instant::now() + PATIENCE;
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

#[tokio::test]
async fn a_unit_that_ignores_the_echo_question_comes_back() {
    let (port, _) = server(true, |asked| match (asked.pdu[0], asked.number) {
        (8, _) | (_, 0..3) => Act::Silence,
        _ => asked.right(true),
    })
    .await;
    let mut running = start(vec![plain("d1", rtu_tcp(port), 1)]);
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
    let mut running = start((1..=3).map(|unit| plain(&format!("d{unit}"), rtu_tcp(port), unit)).collect());
    for unit in 1..=3 {
        assert_right(&running.good_scan(&format!("d{unit}")).await, unit);
    }
    dead.store(true, Ordering::SeqCst);
    let bad = running.bad_scan("d2", Reason::OffScan).await;
    assert_eq!(bad.results.len(), 5, "every point is reported");
    running.state("d2", "off-scan").await;

    // After quarantine the others keep their schedule.
    let begun = Instant::now();
    let mut scans: HashMap<String, u32> = HashMap::new();
    while begun.elapsed() < Duration::from_secs(4) {
        if let Ok(Some(Update::Scan(scan))) = timeout(FAST, running.updates.recv()).await {
            *scans.entry(scan.device.to_string()).or_default() += 1;
        }
    }
    let planned = 4.0 / FAST.as_secs_f64();
    for unit in ["d1", "d3"] {
        let share = f64::from(scans[unit]) / planned;
        assert!(share > 0.93, "{unit} kept {share:.3} of its schedule while probes take a twentieth");
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
    let mut running = start(vec![plain("d1", tcp(port), 1)]);
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
