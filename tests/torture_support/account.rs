//! A subscriber with a persistent session (mosquitto's client, QoS 1) and the account of what it got.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::program;

/// A number of a device that arrived.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    pub device: u8,
    pub number: u32,
    pub seq: u64,
    pub historical: bool,
    pub at: Instant,
    /// The time that the message says, milliseconds since 1970.
    pub wall_ms: i64,
    pub mended: bool,
}

/// A gap message.
#[derive(Debug, Clone)]
pub struct GapSeen {
    pub lane: String,
    pub from: u64,
    pub to: u64,
    pub records: u64,
    pub reason: String,
}

/// What arrived under one root.
#[derive(Debug, Clone, Default)]
pub struct Account {
    pub arrivals: Vec<Arrival>,
    /// Records that carry no new number: a device that does not answer, a value that has become stale.
    pub other_seqs: BTreeSet<u64>,
    pub gaps: Vec<GapSeen>,
    /// Event messages.
    pub events: usize,
    /// Epochs of the process and when their first `status` came.
    pub epochs: BTreeMap<u64, Instant>,
}

impl Account {
    /// Numbers by device.
    pub fn numbers(&self) -> BTreeMap<u8, BTreeSet<u32>> {
        let mut all: BTreeMap<u8, BTreeSet<u32>> = BTreeMap::new();
        for a in &self.arrivals {
            all.entry(a.device).or_default().insert(a.number);
        }
        all
    }

    /// Numbers that were answered and have not arrived, with the time of the answer.
    pub fn missing(&self, answers: &BTreeMap<u8, Vec<Instant>>) -> Vec<(u8, u32, Instant)> {
        let (numbers, none) = (self.numbers(), BTreeSet::new());
        let mut missing = Vec::new();
        for (device, times) in answers {
            let got = numbers.get(device).unwrap_or(&none);
            let all = times.iter().enumerate().map(|(i, at)| (*device, i as u32 + 1, *at));
            missing.extend(all.filter(|(_, number, _)| !got.contains(number)));
        }
        missing
    }

    /// First arrivals only, in the order in which they came.
    pub fn first_arrivals(&self) -> Vec<Arrival> {
        let mut seen = BTreeSet::new();
        self.arrivals.iter().filter(|a| seen.insert(a.seq)).copied().collect()
    }

    /// Arrivals of records that had come before.
    pub fn duplicates(&self) -> Vec<Arrival> {
        let mut seen = BTreeSet::new();
        self.arrivals.iter().filter(|a| !seen.insert(a.seq)).copied().collect()
    }

    /// One number must never carry two records, and one record never two numbers; returns what contradicts that, and
    /// where a later number of a device has a smaller place in the log.
    pub fn contradictions(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut by_seq: BTreeMap<u64, (u8, u32)> = BTreeMap::new();
        for a in &self.arrivals {
            let known = *by_seq.entry(a.seq).or_insert((a.device, a.number));
            if known != (a.device, a.number) {
                wrong.push(format!("seq {} is {known:?} and {:?}", a.seq, (a.device, a.number)));
            }
        }
        let mut last: BTreeMap<u8, u32> = BTreeMap::new();
        for (seq, (device, number)) in by_seq {
            if let Some(before) = last.insert(device, number)
                && before >= number
            {
                wrong.push(format!("device {device}: {number} at seq {seq} comes after {before}"));
            }
        }
        wrong
    }
}

/// All roots under `fieldgate/v1/`.
#[derive(Debug, Default)]
pub struct Books {
    roots: BTreeMap<String, Account>,
    subscribed: bool,
    ended: bool,
}

/// The running subscriber.
pub struct Collector {
    child: Child,
    books: Arc<(Mutex<Books>, Condvar)>,
}

impl Collector {
    /// Subscribes with a session that mosquitto keeps; returns when that is confirmed.
    pub fn start(port: u16) -> Self {
        let mut command = Command::new(program("stdbuf"));
        command.arg("-oL").arg(program("mosquitto_sub")).args(["-d", "-h", "127.0.0.1", "-p", &port.to_string()]);
        command.args(["-c", "-i", "torture-subscriber", "-q", "1", "-t", "fieldgate/v1/#", "-F", "MESSAGE %t %p"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
        let mut child = command.spawn().expect("mosquitto_sub starts");
        let books = Arc::new((Mutex::new(Books::default()), Condvar::new()));
        let (reader, shared) = (BufReader::new(child.stdout.take().expect("piped")), books.clone());
        std::thread::spawn(move || {
            for line in reader.split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line);
                let mut now = lock(&shared.0);
                now.subscribed |= line.starts_with("Subscribed");
                note(&mut now, &line);
                shared.1.notify_all();
            }
            lock(&shared.0).ended = true;
            shared.1.notify_all();
        });
        let collector = Self { child, books };
        collector.wait("that it subscribed", Duration::from_secs(20), |books| books.subscribed.then_some(()));
        collector
    }

    fn wait<T>(&self, what: &str, limit: Duration, look: impl Fn(&Books) -> Option<T>) -> T {
        let began = Instant::now();
        let mut books = lock(&self.books.0);
        loop {
            if let Some(found) = look(&books) {
                return found;
            }
            let left = limit.saturating_sub(began.elapsed());
            assert!(!left.is_zero() && !books.ended, "the subscriber waited {limit:?} in vain for {what}");
            books = self.books.1.wait_timeout(books, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// What has come under a root.
    pub fn account(&self, root: &str) -> Account {
        lock(&self.books.0).roots.get(root).cloned().unwrap_or_default()
    }

    /// Waits until the account of `root` satisfies `wanted`.
    pub fn wait_for<T>(&self, root: &str, what: &str, limit: Duration, wanted: impl Fn(&Account) -> Option<T>) -> T {
        self.wait(what, limit, |books| wanted(books.roots.get(root)?))
    }

    /// Waits for a number of a device, or a later one, and returns its first arrival.
    pub fn wait_for_number(&self, root: &str, device: u8, number: u32, limit: Duration) -> Arrival {
        self.wait_for(root, &format!("number {number} of device {device}"), limit, |account| {
            account.arrivals.iter().rev().find(|a| a.device == device && a.number >= number).copied()
        })
    }

    /// How many numbers of a device have come, and the highest, cheaply.
    pub fn account_len(&self, root: &str, device: u8) -> (usize, u64) {
        let books = lock(&self.books.0);
        let Some(account) = books.roots.get(root) else { return (0, 0) };
        let of = || account.arrivals.iter().rev().filter(|a| a.device == device);
        (of().count(), of().next().map_or(0, |a| u64::from(a.number)))
    }

    /// Number of epochs seen under `root`, cheaply.
    pub fn epochs(&self, root: &str) -> usize {
        lock(&self.books.0).roots.get(root).map_or(0, |account| account.epochs.len())
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lock(books: &Mutex<Books>) -> MutexGuard<'_, Books> {
    books.lock().unwrap_or_else(PoisonError::into_inner)
}

fn number(value: &Value) -> u64 {
    value.as_u64().or_else(|| value.as_str()?.parse().ok()).unwrap_or(0)
}

fn note(books: &mut Books, line: &str) -> Option<()> {
    let (topic, payload) = line.strip_prefix("MESSAGE fieldgate/v1/")?.split_once(' ')?;
    let (root, topic) = topic.split_once('/')?;
    let body: Value = serde_json::from_str(payload).ok()?;
    let account = books.roots.entry(root.to_owned()).or_default();
    let levels: Vec<&str> = topic.split('/').collect();
    match levels[..] {
        ["status"] if body["state"] == "ONLINE" => {
            account.epochs.entry(number(&body["epoch"])).or_insert_with(Instant::now);
        }
        ["events"] | ["devices", _, "events"] => account.events += 1,
        ["gaps"] => account.gaps.push(GapSeen {
            lane: body["lane"].as_str().unwrap_or_default().to_owned(),
            from: number(&body["fromSeq"]),
            to: number(&body["toSeq"]),
            records: number(&body["records"]),
            reason: body["reason"].as_str().unwrap_or_default().to_owned(),
        }),
        ["devices", device, "telemetry"] => {
            let device = device.strip_prefix('c')?.parse().ok()?;
            let (seq, historical) = (number(&body["seq"]), body["historical"] == true);
            let good = body["points"].as_array()?.iter().find(|p| p["quality"] == "GOOD" && p["name"] == "count");
            match good.and_then(|point| point["value"].as_f64()) {
                Some(count) => {
                    account.arrivals.push(Arrival {
                        device,
                        number: count as u32,
                        seq,
                        historical,
                        at: Instant::now(),
                        wall_ms: body["time"].as_str()?.parse::<jiff::Timestamp>().ok()?.as_millisecond(),
                        mended: body["mended"] == true,
                    });
                }
                None => _ = account.other_seqs.insert(seq),
            }
        }
        _ => {}
    }
    Some(())
}
