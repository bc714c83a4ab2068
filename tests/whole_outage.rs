//! The site's broker is away while the gateway reads on and is killed with -9 in the middle; later it is killed once more
//! while it sends. Everything that was read is at the site's subscriber in the end: what is missing against the plant's
//! own journal can only be the read that was under way when the gateway was killed, and nothing that anybody saw from
//! the gateway's log is missing at all. Order per point holds, and what comes twice fits in the in-flight window.
//!
//! The outage takes 8 s, with `FIELDGATE_FULL=1` a minute.
#![allow(clippy::unwrap_used, reason = "a test ends with a panic when its surroundings fail")]

mod support;
mod whole_support;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use support::{Child, Mosquitto, PythonServer, SOON, eventually};
use whole_support::{Site, journal, now_ms, recorder, sized, stop};

const DEVICES: usize = 5;
const REGISTERS: usize = 20;
const WINDOW: usize = 20;
/// Backlog batches per second: four times what is read, so that a kill falls into the middle of the backlog.
const REPLAY: usize = 4 * DEVICES * 4;
/// Longest way of a read from the plant into the log, in milliseconds, when nobody gets the processor at once.
const UNDER_WAY: i64 = 250;

/// A read, as device and number.
type Read = (String, i64);

#[test]
fn nothing_is_missing_after_an_outage_and_two_kills_in_the_order_of_the_log() {
    nothing_is_missing("in-order");
}

#[test]
fn nothing_is_missing_after_an_outage_and_two_kills_with_live_data_first() {
    nothing_is_missing("live-first");
}

fn nothing_is_missing(order: &str) {
    let outage = sized(Duration::from_secs(8), Duration::from_secs(60));
    let mut broker = Mosquitto::with_config(
        "allow_anonymous true\npersistence true\npersistence_location {dir}/\nmax_queued_messages 0\nmax_inflight_messages 0\n",
    );
    let site = Site::new(&format!(
        "[[uplink]]\nname = \"site\"\nservers = [\"mqtt://127.0.0.1:{}\"]\nkeep_alive = \"5 s\"\nreconnect_max = \"1 s\"\n\
         window = {WINDOW}\nreplay = {{ order = \"{order}\", max_records = {REPLAY} }}\n\n[defaults]\non_change = false\n",
        broker.port()
    ));
    let out = |name: &str| site.path().join(name).display().to_string();
    let (count, registers) = (DEVICES.to_string(), REGISTERS.to_string());
    let mut plant = PythonServer::start(
        "plant_pymodbus.py",
        &[
            "--devices",
            &count,
            "--registers",
            &registers,
            "--rate",
            "250 ms",
            "--config",
            &site.text(),
            "--journal",
            &out("journal"),
        ],
    );
    let mut far = recorder(broker.port(), &["--persistent", "--client-id", "scada", "--out", &out("far")]);

    let gateway = site.start();
    // Who looks at the embedded broker sees what is in the log.
    let mut near = site.recorder(&["--out", &out("near")]);
    wait_for_samples(&mut far, DEVICES * REGISTERS * 8);

    broker.stop();
    std::thread::sleep(outage / 2);
    near.ask("report");
    let mut kills = vec![killed(gateway)];
    let gateway = site.start();
    std::thread::sleep(outage / 2);
    broker.restart();
    eventually("the backlog to begin", SOON * 2, || (far.ask("count")["historical"].as_u64() > Some(0)).then_some(()));

    near.ask("report");
    kills.push(killed(gateway));
    let gateway = site.start();
    let reached = newest(&mut plant, &site.path().join("journal"));
    caught_up(&mut far, &reached);
    near.ask("report");
    // With live data first the end of the backlog comes last: what was seen in the log is waited for.
    let in_log: BTreeSet<Read> = reads(&site.path().join("near"));
    let mut absent = in_log.len();
    let deadline = std::time::Instant::now() + SOON * 3;
    while absent > 0 && std::time::Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(100));
        far.ask("report");
        let there = reads(&site.path().join("far"));
        let first = firsts(&there);
        absent =
            in_log.difference(&there).filter(|(device, n)| first.get(device).is_some_and(|first| n >= first)).count();
    }
    let arrived = telemetry(&site.path().join("far"));
    stop(gateway);

    let received: BTreeSet<Read> = arrived.iter().flat_map(Message::reads).collect();
    let made = journal(&site.path().join("journal"));
    let first = firsts(&received);
    let expected = made.iter().filter(|read| read.n >= first[read.device.as_str()] && read.n <= reached[&read.device]);
    let missing: Vec<_> = expected.filter(|read| !received.contains(&(read.device.clone(), read.n))).collect();
    // What the plant answered last may not have reached the log; a kill takes its time on a machine under load.
    let under_way = |read: &whole_support::Read| {
        kills.iter().any(|&(from, to)| {
            let before = made.iter().filter(|other| other.device == read.device && other.at_ms <= to + 20);
            let last = before.map(|other| other.n).max() == Some(read.n);
            last || (from - UNDER_WAY..=to + 20).contains(&read.at_ms)
        })
    };
    let lost: Vec<_> = missing.iter().filter(|read| !under_way(read)).collect();
    assert!(
        lost.is_empty(),
        "these reads were accepted, and are missing at the subscriber: {lost:?}; kills at {kills:?}"
    );
    let seen = reads(&site.path().join("near"));
    let seen_only: Vec<_> = seen
        .iter()
        .filter(|(device, n)| *n >= first[device.as_str()] && *n <= reached[device])
        .filter(|read| !received.contains(*read))
        .collect();
    assert!(seen_only.is_empty(), "these were in the log, and are missing at the subscriber: {seen_only:?}");

    // The outage was one: batches of its time came late, marked as such, and there was something to be lost.
    let late = arrived.iter().filter(|message| message.historical).map(|message| message.seq).collect::<HashSet<_>>();
    let due = DEVICES * outage.as_millis() as usize / 250;
    assert!(late.len() >= due / 2, "{} batches came late; the outage took {due}", late.len());
    println!("{order}: {} reads, {} missing at kills, {} batches late", received.len(), missing.len(), late.len());
    assert_whole_batches(&arrived);
    assert_order(&arrived, order == "in-order");
    let twice = arrived.len() - arrived.iter().map(|message| message.seq).collect::<HashSet<_>>().len();
    // One break by the outage, two by the kills.
    println!("{order}: {twice} batches came twice");
    assert!(twice <= 3 * WINDOW, "{twice} batches came twice; at most {WINDOW} may be in flight at each of 3 breaks");
}

fn reads(path: &Path) -> BTreeSet<Read> {
    telemetry(path).iter().flat_map(Message::reads).collect()
}

/// Number of the first read of each device: the set is in order.
fn firsts(reads: &BTreeSet<Read>) -> BTreeMap<String, i64> {
    reads.iter().rev().cloned().collect()
}

/// Kills the gateway; between which two times.
fn killed(gateway: Child) -> (i64, i64) {
    let from = now_ms();
    gateway.kill();
    (from, now_ms())
}

/// A batch as a subscriber got it.
struct Message {
    device: String,
    seq: u64,
    historical: bool,
    /// Number of the read, by point.
    points: BTreeMap<u32, i64>,
}

impl Message {
    fn reads(&self) -> impl Iterator<Item = Read> + '_ {
        self.points.values().map(|&n| (self.device.clone(), n))
    }
}

/// What a recorder wrote down, good values only.
fn telemetry(path: &Path) -> Vec<Message> {
    let text = std::fs::read_to_string(path).expect("the recorder writes");
    text.lines().filter_map(|line| message(&serde_json::from_str::<Value>(line).ok()?["body"])).collect()
}

fn message(body: &Value) -> Option<Message> {
    let device = body["device"].as_str()?.to_owned();
    let index: i64 = device.strip_prefix("plc-")?.parse().ok()?;
    let mut points = BTreeMap::new();
    for point in body["points"].as_array()?.iter().filter(|point| point["quality"] == "GOOD") {
        let register: u32 = point["name"].as_str()?.strip_prefix('r')?.parse().ok()?;
        let value = point["value"].as_i64()?;
        points.insert(register, (value - 1_009 * index - 257 * i64::from(register)).rem_euclid(65_536));
    }
    let seq = body["seq"].as_str()?.parse().ok()?;
    Some(Message { device, seq, historical: body["historical"] == true, points })
}

fn wait_for_samples(recorder: &mut PythonServer, wanted: usize) {
    eventually("samples at the subscriber", SOON * 2, || {
        (recorder.ask("count")["samples"].as_u64() >= Some(wanted as u64)).then_some(())
    });
}

/// Number of the newest read of each device, a second from now, so that all have been read by the gateway that runs.
fn newest(plant: &mut PythonServer, path: &Path) -> BTreeMap<String, i64> {
    let began = now_ms();
    eventually("reads of every device", SOON, || {
        plant.ask("stats");
        let reads = journal(path);
        let fresh = reads.iter().filter(|read| read.at_ms > began).fold(BTreeMap::new(), |mut newest, read| {
            newest.insert(read.device.clone(), read.n);
            newest
        });
        (fresh.len() == DEVICES).then_some(fresh)
    })
}

/// Waits until the recorder has everything up to `reached`, but for one read at each kill.
fn caught_up(recorder: &mut PythonServer, reached: &BTreeMap<String, i64>) {
    let mut last = Value::Null;
    let deadline = std::time::Instant::now() + SOON * 3;
    while std::time::Instant::now() < deadline {
        last = recorder.ask("report");
        let all = reached.iter().all(|(device, n)| last["spans"][device]["last"].as_i64() >= Some(*n));
        if all && last["judged"]["missing"].as_u64() <= Some((2 * DEVICES * REGISTERS) as u64) {
            return;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    panic!("the subscriber did not get everything within {:?}: {last}; the plant is at {reached:?}", SOON * 3);
}

/// All points of a device are read by one request, so they carry one number.
fn assert_whole_batches(arrived: &[Message]) {
    for message in arrived.iter().filter(|message| !message.points.is_empty()) {
        let numbers: BTreeSet<_> = message.points.values().collect();
        assert_eq!((numbers.len(), message.points.len()), (1, REGISTERS), "seq {} of {}", message.seq, message.device);
    }
}

/// Of what came for the first time, no point ever goes back: at all, or among live and among delayed batches.
fn assert_order(arrived: &[Message], strict: bool) {
    let (mut known, mut highest) = (HashSet::new(), BTreeMap::new());
    for message in arrived {
        if !known.insert(message.seq) {
            continue;
        }
        for (register, n) in &message.points {
            let kind = !strict && message.historical;
            let highest = highest.entry((message.device.as_str(), *register, kind)).or_insert(0);
            assert!(*n > *highest, "{}: read {n} came after {highest} (seq {})", message.device, message.seq);
            *highest = *n;
        }
    }
}
