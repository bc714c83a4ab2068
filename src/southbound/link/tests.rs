//! A link with a driver of the tests' own, on a clock that moves only when everybody waits: what is asserted here is the
//! arithmetic of the schedule, however busy the machine is.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::time::{sleep, timeout};

use super::*;
use crate::model::{Access, DataType, Device, DeviceId, Point, PointId, Tier, Value};
use crate::platform::clock::SystemClock;
use crate::southbound::driver::{Answer, Scope, Tally};
use crate::southbound::modbus::{Config, Link, PointAddress, Table};
use crate::southbound::{DriverConfig, ExchangeError, Identity, PointResult, RateGroup, WriteDone, WriteError};

const MS: Duration = Duration::from_millis(1);
const EVERY: Duration = Duration::from_millis(50);
const TIMEOUT: Duration = Duration::from_millis(150);
const GUARD: Duration = Duration::from_secs(1);

/// What the units on the bus do, by slot.
#[derive(Debug, Default)]
struct Plant {
    replies_after: BTreeMap<usize, Duration>,
    dead: Option<usize>,
    /// Requests to a unit that had to be left alone.
    while_held: u32,
    requests: BTreeMap<usize, u32>,
    /// Questions who a device is, and the number of reads after each of which the connection is made anew.
    questions: u32,
    reconnects_every: Option<u32>,
    connects: u64,
}

#[derive(Debug, Default)]
struct Bus {
    plant: Arc<Mutex<Plant>>,
    held_until: BTreeMap<usize, Instant>,
}

impl Driver for Bus {
    type Step = ();

    fn attach(&mut self, _: usize, _: &DeviceConfig) {}

    fn detach(&mut self, _: usize) {}

    async fn connect(&mut self) -> Result<(), Fault> {
        Ok(())
    }

    async fn identify(&mut self, _: usize) -> Result<Option<Identity>, Fault> {
        self.plant.lock().unwrap().questions += 1;
        Ok(Some(Identity::default()))
    }

    fn plan(&mut self, _: usize, _: usize, steps: &mut VecDeque<()>, _: &mut Vec<PointResult>) {
        steps.push_back(());
    }

    fn probe(&self, _: usize) -> Option<()> {
        Some(())
    }

    async fn read(
        &mut self,
        slot: usize,
        (): &(),
        _: &mut VecDeque<()>,
        results: &mut Vec<PointResult>,
    ) -> Result<Answer, Fault> {
        let held = self.held(slot).is_some();
        let (dead, latency) = {
            let mut plant = self.plant.lock().unwrap();
            plant.while_held += u32::from(held);
            *plant.requests.entry(slot).or_default() += 1;
            let reads: u32 = plant.requests.values().sum();
            plant.connects += u64::from(plant.reconnects_every.is_some_and(|every| reads % every == 1));
            (plant.dead == Some(slot), plant.replies_after.get(&slot).copied().unwrap_or(2 * MS))
        };
        if dead {
            sleep(TIMEOUT).await;
            self.held_until.insert(slot, Instant::now() + GUARD);
            return Err(Fault { scope: Scope::Device, reason: Reason::Timeout, text: "no reply".into() });
        }
        sleep(latency).await;
        results.push(PointResult { point: 0, outcome: Ok(Value::Uint(1)), at: None });
        Ok(Answer::Values)
    }

    fn points(&self, (): &(), mut each: impl FnMut(u32)) {
        each(0);
    }

    async fn exchange(&mut self, _: usize, request: &[u8]) -> Result<Vec<u8>, ExchangeError> {
        sleep(10 * MS).await;
        Ok(request.to_vec())
    }

    async fn write(&mut self, _: usize, _: u32, _: &Value) -> Result<WriteDone, WriteError> {
        Err(WriteError::Stopped)
    }

    fn held(&self, slot: usize) -> Option<Duration> {
        let until = *self.held_until.get(&slot)?;
        until.checked_duration_since(Instant::now()).filter(|time| !time.is_zero())
    }

    fn close(&mut self) {}

    fn take_tally(&mut self) -> Tally {
        Tally { connects: std::mem::take(&mut self.plant.lock().unwrap().connects), ..Tally::default() }
    }
}

fn device(name: &str, unit: u8) -> DeviceConfig {
    let mut config = Config::new(Link::RtuOverTcp { host: "bus".into(), port: 1 }, unit);
    config.points = vec![PointAddress::new(Table::Holding, 0, DataType::U16)];
    config.identify = false;
    let point = Point {
        id: PointId::new("p").unwrap(),
        description: String::new(),
        unit: String::new(),
        data_type: DataType::U16,
        access: Access::Read,
        limits: None,
    };
    let device = Device {
        id: DeviceId::new(name).unwrap(),
        description: String::new(),
        protocol: "modbus",
        address: String::new(),
        tier: Tier::One,
        points: vec![point].into(),
    };
    let groups = vec![RateGroup { every: EVERY, points: vec![0] }];
    DeviceConfig { device: Arc::new(device), groups, driver: DriverConfig::Modbus(config) }
}

/// Good scans by device, and the last statistics of each.
#[derive(Debug, Default)]
struct Seen {
    scans: BTreeMap<String, u32>,
    stats: BTreeMap<String, super::super::DeviceStats>,
}

/// Runs devices d0, d1, … on one bus for a time that only the virtual clock knows.
async fn run(count: usize, plant: Plant, time: Duration) -> (Seen, Plant) {
    let plant = Arc::new(Mutex::new(plant));
    let (updates, mut received) = mpsc::channel(64);
    let bus = Bus { plant: plant.clone(), ..Bus::default() };
    let mut link = LinkTask::new("bus".into(), bus, updates, SystemClock::shared());
    let asks = plant.lock().unwrap().reconnects_every.is_some();
    (0..count).for_each(|slot| {
        let mut config = device(&format!("d{slot}"), slot as u8 + 1);
        let DriverConfig::Modbus(modbus) = &mut config.driver;
        modbus.identify = asks;
        link.attach(config);
    });
    let (commands, mut inbox) = mpsc::channel(1);
    let task = tokio::spawn(async move { link.run(&mut inbox).await });
    let mut seen = Seen::default();
    let _ = timeout(time, async {
        while let Some(update) = received.recv().await {
            match update {
                Update::Scan(scan) if scan.results.iter().all(|result| result.outcome.is_ok()) => {
                    *seen.scans.entry(scan.device.to_string()).or_default() += 1;
                }
                Update::Device { device, stats, .. } => drop(seen.stats.insert(device.to_string(), stats)),
                _ => {}
            }
        }
    })
    .await;
    drop(commands);
    task.await.unwrap();
    let plant = std::mem::take(&mut *plant.lock().unwrap());
    (seen, plant)
}

fn share(seen: &Seen, device: &str, time: Duration) -> f64 {
    f64::from(seen.scans[device]) / (time.as_secs_f64() / EVERY.as_secs_f64())
}

#[tokio::test(start_paused = true)]
async fn a_dead_unit_costs_its_bus_mates_a_twentieth_at_most() {
    let time = Duration::from_secs(600);
    let (seen, plant) = run(3, Plant { dead: Some(1), ..Plant::default() }, time).await;
    for mate in ["d0", "d2"] {
        let kept = share(&seen, mate, time);
        assert!(kept > 0.99, "{mate} kept {kept:.4} of its schedule: {:?}", seen.stats[mate]);
    }
    assert!(!seen.scans.contains_key("d1"));
    assert_eq!(plant.while_held, 0, "a unit that must be left alone was asked");
    // Three failures, then probes after 5, 10, 20, ... 300 s.
    assert!((8..=12).contains(&plant.requests[&1]), "{:?}", plant.requests);
}

#[tokio::test(start_paused = true)]
async fn a_bus_that_can_do_it_leaves_no_cycle_out() {
    let time = Duration::from_secs(60);
    let (seen, _) = run(4, Plant::default(), time).await;
    for (device, stats) in &seen.stats {
        assert!(stats.overruns.is_empty(), "{device}: {:?}", stats.overruns);
        let kept = share(&seen, device, time);
        assert!(kept > 0.995, "{device} kept {kept:.4}");
    }
}

/// The cycle that came due while the reply was on its way is read at once, late, instead of being left out; what is left
/// out is counted against the device itself.
#[tokio::test(start_paused = true)]
async fn a_device_slower_than_its_rate_is_read_as_fast_as_it_can() {
    let time = Duration::from_secs(60);
    let slow = Plant { replies_after: BTreeMap::from([(0, 60 * MS)]), ..Plant::default() };
    let (seen, _) = run(1, slow, time).await;
    let (most, scans) = (60_000 / 60, seen.scans["d0"]);
    assert!(scans > most * 95 / 100, "{scans} of at most {most}");
    let causes: Vec<_> = seen.stats["d0"].overruns.keys().copied().collect();
    assert_eq!(causes, ["previous-scan"]);
}

#[tokio::test(start_paused = true)]
async fn a_slow_device_takes_the_bus_from_nobody_more_than_its_turn() {
    let time = Duration::from_secs(60);
    let slow = Plant { replies_after: BTreeMap::from([(0, 40 * MS)]), ..Plant::default() };
    let (seen, _) = run(3, slow, time).await;
    for device in ["d0", "d1", "d2"] {
        let kept = share(&seen, device, time);
        assert!(kept > 0.99, "{device} kept {kept:.4}: {:?}", seen.stats[device]);
    }
}

/// Hardware that is exchanged quickly costs no request: the next one finds a new connection, and perhaps another device.
#[tokio::test(start_paused = true)]
async fn a_device_is_asked_who_it_is_after_every_new_connection() {
    let (_, plant) = run(1, Plant { reconnects_every: Some(100), ..Plant::default() }, Duration::from_secs(50)).await;
    // The last connection may be so new that nothing was read from it.
    let connections = plant.requests[&0] / 100;
    assert!((connections..=connections + 1).contains(&plant.questions), "{:?}", (&plant.requests, plant.questions));
    assert!(plant.questions > 5);
}

/// The pauses between attempts to make a link are those of its devices' configuration.
#[tokio::test(start_paused = true)]
async fn a_link_that_cannot_be_made_is_tried_at_the_pauses_that_are_configured() {
    let mut config = device("d0", 1);
    let DriverConfig::Modbus(modbus) = &mut config.driver;
    modbus.options.reconnect = (Duration::from_secs(2), Duration::from_secs(8));
    let (updates, _received) = mpsc::channel(64);
    let mut link = LinkTask::new("bus".into(), Bus::default(), updates, SystemClock::shared());
    link.attach(config);
    let fault = Fault { scope: Scope::Link, reason: Reason::LinkDown, text: "refused".into() };
    let pauses: Vec<u64> = (0..4)
        .map(|_| {
            link.link_down(&fault);
            link.down.as_ref().unwrap().backoff.as_secs()
        })
        .collect();
    assert_eq!(pauses, [2, 4, 8, 8]);
    let until = link.down.as_ref().unwrap().retry_at - link.now();
    assert!((6.4..=8.0).contains(&until.as_secs_f64()), "a fifth of the pause is left to chance: {until:?}");
}

/// A transfer that sends as fast as it is answered, on a bus that is half full: the others keep their schedule, and the
/// transfer gets on.
#[tokio::test(start_paused = true)]
async fn a_transfer_takes_the_bus_from_nobody_more_than_its_turn() {
    let time = Duration::from_secs(30);
    let (updates, mut received) = mpsc::channel(64);
    let slow = Plant { replies_after: (0..3).map(|slot| (slot, 8 * MS)).collect(), ..Plant::default() };
    let bus = Bus { plant: Arc::new(Mutex::new(slow)), ..Bus::default() };
    let mut link = LinkTask::new("bus".into(), bus, updates, SystemClock::shared());
    (0..3).for_each(|slot| link.attach(device(&format!("d{slot}"), slot as u8 + 1)));
    let (commands, mut inbox) = mpsc::channel(4);
    let task = tokio::spawn(async move { link.run(&mut inbox).await });
    let began = Instant::now();
    let transfer = async {
        for carried in 0.. {
            let (reply, answer) = tokio::sync::oneshot::channel();
            let request = vec![21, carried as u8];
            let device = DeviceId::new("d0").unwrap();
            commands.send(Command::Exchange { device, request: request.clone(), reply }).await.unwrap();
            assert_eq!(answer.await.unwrap().unwrap(), request);
            if began.elapsed() >= time {
                return carried;
            }
        }
        0
    };
    let mut scans: BTreeMap<String, u32> = BTreeMap::new();
    let reads = async {
        while let Some(update) = received.recv().await {
            if let Update::Scan(scan) = update {
                *scans.entry(scan.device.to_string()).or_default() += 1;
            }
        }
    };
    let carried = tokio::select! {
        carried = transfer => carried,
        () = reads => panic!("the link ended"),
    };
    drop(commands);
    drop(received);
    task.await.unwrap();
    let due = time.as_millis() / EVERY.as_millis();
    for (device, scans) in &scans {
        assert!(u128::from(*scans) >= due * 95 / 100, "{device} was read {scans} times of {due}");
    }
    assert_eq!(scans.len(), 3);
    assert!(carried > 600, "{carried} requests were carried");
}
