//! The desk and its task against a ledger, a device and a sink in memory.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::JoinHandle;

use super::result::Attempt;
use super::*;
use crate::contract::v1::command_result::Outcome;
use crate::contract::{json_value, timestamp};
use crate::model::{Access, ClockTrust, DataType, Device, Limits, Point, PointId, Tier};
use crate::platform::clock::{Clock, ManualClock};

const NOW_MS: i64 = 1_763_812_800_000;

fn id(text: &str) -> DeviceId {
    DeviceId::new(text).unwrap()
}

fn device(name: &str, access: Access) -> Arc<Device> {
    let point = |id: &str, data_type, access, limits| Point {
        id: PointId::new(id).unwrap(),
        description: String::new(),
        unit: String::new(),
        data_type,
        access,
        limits,
    };
    Arc::new(Device {
        id: id(name),
        description: String::new(),
        protocol: "modbus-tcp",
        address: "tcp://h unit 1".into(),
        tier: Tier::One,
        points: Arc::new([
            point("level", DataType::F32, Access::Read, None),
            point("setpoint", DataType::I16, access, Some(Limits { min: 0.0, max: 100.0 })),
            point("pump", DataType::Bool, access, None),
            point("name", DataType::Text, access, None),
            point("big", DataType::U64, access, None),
        ]),
    })
}

fn devices() -> Devices {
    [device("d", Access::ReadWrite), device("e", Access::ReadWrite)].into_iter().map(|d| (d.id.clone(), d)).collect()
}

fn write(point: &str, value: Value) -> v1::Write {
    v1::Write { point: point.into(), value: Some(json_value(&value)) }
}

fn request(correlation_id: &str, writes: Vec<v1::Write>) -> CommandRequest {
    let command = v1::Command { correlation_id: correlation_id.into(), writes, ..v1::Command::default() };
    CommandRequest { device: id("d"), command, actor: "mqtt:local:anna".into(), forbidden: None }
}

fn setpoint(correlation_id: &str, value: i64) -> CommandRequest {
    request(correlation_id, vec![write("setpoint", Value::Int(value))])
}

#[derive(Clone, Default)]
struct Memory {
    entries: Arc<Mutex<BTreeMap<CommandKey, bytes::Bytes>>>,
    broken: Arc<AtomicBool>,
}

impl CommandLedger for Memory {
    async fn load(&self) -> Result<Vec<LedgerEntry>, LedgerError> {
        self.entries.lock().unwrap().values().map(|octets| LedgerEntry::decode(octets)).collect()
    }

    async fn apply(&self, put: Vec<LedgerEntry>, remove: Vec<CommandKey>) -> Result<(), LedgerError> {
        if self.broken.load(Ordering::SeqCst) {
            return Err(LedgerError { act: "written", reason: "disk full".into() });
        }
        let mut entries = self.entries.lock().unwrap();
        put.into_iter().for_each(|e| drop(entries.insert(e.key.clone(), e.encode())));
        remove.iter().for_each(|key| drop(entries.remove(key)));
        Ok(())
    }
}

/// A device that writes when it has a permit.
#[derive(Clone)]
struct Plant {
    written: Arc<Mutex<Vec<(String, String)>>>,
    permits: Arc<Semaphore>,
    asked: Arc<Notify>,
    refuses: Arc<Mutex<Option<(&'static str, WriteFailure)>>>,
}

impl Default for Plant {
    fn default() -> Self {
        let permits = Arc::new(Semaphore::new(1_000));
        Self { written: Arc::default(), permits, asked: Arc::default(), refuses: Arc::default() }
    }
}

impl Plant {
    fn blocked() -> Self {
        Self { permits: Arc::new(Semaphore::new(0)), ..Self::default() }
    }

    fn written(&self) -> Vec<(String, String)> {
        self.written.lock().unwrap().clone()
    }
}

impl DeviceWriter for Plant {
    fn check(&self, _: &DeviceId, point: &PointId, value: &Value) -> Result<(), String> {
        let is_long = matches!(value, Value::Text(t) if t.len() > 16) && point.as_str() == "name";
        if is_long { Err("the text does not fit 16 octets".into()) } else { Ok(()) }
    }

    async fn write(&self, _: &DeviceId, point: &PointId, value: Value) -> Result<Option<Value>, WriteFailure> {
        self.asked.notify_one();
        self.permits.acquire().await.unwrap().forget();
        if let Some((_, failure)) = self.refuses.lock().unwrap().as_ref().filter(|(p, _)| *p == point.as_str()) {
            return Err(failure.clone());
        }
        self.written.lock().unwrap().push((point.to_string(), value.to_string()));
        Ok(Some(value))
    }
}

struct Sink(mpsc::Sender<Answer>);

impl AnswerSink for Sink {
    async fn answer(&self, answers: Vec<Answer>) -> Result<(), String> {
        for answer in answers {
            self.0.send(answer).await.map_err(|e| e.to_string())?;
        }
        Ok(())
    }
}

struct Bench {
    service: CommandService,
    task: JoinHandle<()>,
    answers: mpsc::Receiver<Answer>,
}

async fn bench(limits: CommandLimits, plant: &Plant, ledger: &Memory, clock: &Arc<ManualClock>) -> Bench {
    let (tx, answers) = mpsc::channel(1_000);
    let clock: Arc<dyn Clock> = clock.clone();
    let (service, task) =
        CommandService::start(limits, devices(), plant.clone(), ledger.clone(), Sink(tx), clock).await.unwrap();
    Bench { service, task, answers }
}

impl Bench {
    async fn ask(&mut self, request: CommandRequest) -> v1::CommandResult {
        self.service.submit(request, Receipt::none()).await.unwrap();
        self.answer().await
    }

    async fn answer(&mut self) -> v1::CommandResult {
        self.answers.recv().await.unwrap().result
    }

    /// The process dies.
    async fn crash(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

#[tokio::test]
async fn what_may_not_be_done_is_refused_with_a_code_and_nothing_is_written() {
    let (plant, ledger, clock) = (Plant::default(), Memory::default(), ManualClock::at(NOW_MS));
    let mut bench = bench(CommandLimits::default(), &plant, &ledger, &clock).await;
    let one = |point: &str, value| request("c", vec![write(point, value)]);
    let expired = |ms: i64| {
        let mut request = setpoint("c", 1);
        request.command.expires = Some(timestamp(ms));
        request
    };
    let null = v1::Write { point: "setpoint".into(), value: None };
    for (request, code) in [
        (one("level", Value::Int(1)), "denied"),
        (one("nothing", Value::Int(1)), "unknown-point"),
        (CommandRequest { device: id("x"), ..setpoint("c", 1) }, "unknown-device"),
        (setpoint("c", 101), "out-of-range"),
        (setpoint("c", -1), "out-of-range"),
        (one("setpoint", Value::Text("much".into())), "wrong-type"),
        (one("setpoint", Value::Bool(true)), "wrong-type"),
        (one("pump", Value::Int(2)), "wrong-type"),
        (one("name", Value::Int(2)), "wrong-type"),
        (one("name", Value::Text("a text of 20 letters".into())), "out-of-range"),
        (one("name", Value::Text("x".repeat(1_025).into())), "too-large"),
        (request("c", vec![null]), "malformed"),
        (request("c", vec![]), "malformed"),
        (request("c", vec![write("setpoint", Value::Int(1)); 33]), "too-large"),
        (setpoint("", 1), "malformed"),
        (setpoint(&"x".repeat(65), 1), "malformed"),
        (setpoint("a\nb", 1), "malformed"),
        (expired(NOW_MS - 1), "expired"),
        (request("c", vec![write("setpoint", Value::Int(1)), write("level", Value::Int(1))]), "denied"),
    ] {
        let shown = format!("{request:?}");
        let result = bench.ask(request).await;
        assert_eq!((result.outcome(), result.code.as_str()), (Outcome::Rejected, code), "{shown}");
        assert!(!result.message.is_empty());
    }
    assert_eq!(bench.ask(expired(NOW_MS)).await.outcome(), Outcome::Done);
    clock.set_trust(ClockTrust::Unsynchronised);
    assert_eq!(bench.ask(CommandRequest { device: id("e"), ..expired(NOW_MS + 5) }).await.code, "clock-not-set");
    assert_eq!(plant.written().len(), 1);
}

#[tokio::test]
async fn values_that_fit_are_written_in_order_and_read_back() {
    let (plant, ledger, clock) = (Plant::default(), Memory::default(), ManualClock::at(NOW_MS));
    let mut bench = bench(CommandLimits::default(), &plant, &ledger, &clock).await;
    let writes = vec![
        write("setpoint", Value::Int(100)),
        write("pump", Value::Int(1)),
        write("name", Value::Text("tank".into())),
        write("big", Value::Uint(u64::MAX)),
    ];
    bench.service.submit(request("c1", writes), Receipt::none()).await.unwrap();
    let answer = bench.answers.recv().await.unwrap();
    assert_eq!(answer.result.outcome(), Outcome::Done);
    assert!(answer.result.writes.iter().all(|w| w.outcome() == Outcome::Done && w.read_back.is_some()));
    let names: Vec<_> = plant.written().into_iter().map(|(p, v)| format!("{p}={v}")).collect();
    assert_eq!(names, ["setpoint=100", "pump=1", "name=tank", "big=18446744073709551615"]);
    let audit = answer.audit.unwrap();
    assert_eq!((audit.actor.as_str(), audit.outcome.as_str()), ("mqtt:local:anna", "done"));
    assert!(audit.detail.contains("setpoint = 100 (reads 100)"), "{}", audit.detail);
}

#[tokio::test]
async fn the_first_failure_ends_a_command() {
    let (plant, ledger, clock) = (Plant::default(), Memory::default(), ManualClock::at(NOW_MS));
    let mut bench = bench(CommandLimits::default(), &plant, &ledger, &clock).await;
    let writes = || {
        vec![write("setpoint", Value::Int(1)), write("pump", Value::Bool(true)), write("name", Value::Text("x".into()))]
    };
    let failure =
        |may_have_happened| WriteFailure { code: "link-down".into(), message: "no".into(), may_have_happened };
    let outcomes = |r: &v1::CommandResult| r.writes.iter().map(v1::WriteResult::outcome).collect::<Vec<_>>();

    *plant.refuses.lock().unwrap() = Some(("pump", failure(false)));
    let result = bench.ask(request("a", writes())).await;
    assert_eq!((result.outcome(), result.code.as_str()), (Outcome::Failed, "link-down"), "the first write was done");
    assert_eq!(outcomes(&result), [Outcome::Done, Outcome::Rejected, Outcome::Rejected]);

    *plant.refuses.lock().unwrap() = Some(("setpoint", failure(false)));
    assert_eq!(bench.ask(request("b", writes())).await.outcome(), Outcome::Rejected, "nothing was written");
    *plant.refuses.lock().unwrap() = Some(("setpoint", failure(true)));
    let result = bench.ask(request("c", writes())).await;
    assert_eq!(outcomes(&result), [Outcome::Failed, Outcome::Rejected, Outcome::Rejected]);
}

#[tokio::test]
async fn a_command_that_comes_twice_is_answered_twice_and_done_once() {
    let (plant, ledger, clock) = (Plant::default(), Memory::default(), ManualClock::at(NOW_MS));
    let mut first = bench(CommandLimits::default(), &plant, &ledger, &clock).await;
    let result = first.ask(setpoint("c1", 5)).await;
    assert_eq!(first.ask(setpoint("c1", 5)).await, result);
    assert_eq!(first.ask(setpoint("c1", 6)).await.code, "correlation-id-reused");
    let other = CommandRequest { device: id("e"), ..setpoint("c1", 5) };
    assert_eq!(first.ask(other).await.outcome(), Outcome::Done, "ids are per device");
    first.crash().await;
    let mut second = bench(CommandLimits::default(), &plant, &ledger, &clock).await;
    assert_eq!(second.ask(setpoint("c1", 5)).await, result);
    assert_eq!(plant.written().len(), 2);
    clock.advance(Duration::from_secs(24 * 3_600 + 1));
    assert_eq!(second.ask(setpoint("c2", 5)).await.outcome(), Outcome::Done);
    assert_eq!(ledger.entries.lock().unwrap().len(), 1, "what is older than a day is forgotten");
}

#[tokio::test]
async fn a_command_that_comes_again_while_it_runs_is_answered_for_each() {
    let (plant, ledger, clock) = (Plant::blocked(), Memory::default(), ManualClock::at(NOW_MS));
    let mut bench = bench(CommandLimits::default(), &plant, &ledger, &clock).await;
    for _ in 0..3 {
        bench.service.submit(setpoint("c1", 5), Receipt::none()).await.unwrap();
    }
    plant.asked.notified().await;
    // The other two are in hand when a later one of another device is answered.
    assert_eq!(bench.ask(CommandRequest { device: id("x"), ..setpoint("z", 1) }).await.code, "unknown-device");
    plant.permits.add_permits(1);
    for _ in 0..3 {
        assert_eq!(bench.answer().await.outcome(), Outcome::Done);
    }
    assert_eq!(plant.written().len(), 1);
}

#[tokio::test]
async fn a_crash_while_writing_is_answered_unknown_and_never_repeated() {
    let (plant, ledger, clock) = (Plant::blocked(), Memory::default(), ManualClock::at(NOW_MS));
    let first = bench(CommandLimits::default(), &plant, &ledger, &clock).await;
    let (stored, mut receipts) = mpsc::channel(2);
    for id in ["running", "queued"] {
        let stored = stored.clone();
        first.service.submit(setpoint(id, 5), Receipt::new(move || stored.try_send(id).unwrap())).await.unwrap();
        assert_eq!(receipts.recv().await, Some(id));
    }
    plant.asked.notified().await;
    first.crash().await;

    plant.permits.add_permits(10);
    let mut second = bench(CommandLimits::default(), &plant, &ledger, &clock).await;
    let answers = [second.answers.recv().await.unwrap(), second.answers.recv().await.unwrap()];
    let told: Vec<_> = answers
        .iter()
        .map(|a| (a.result.correlation_id.as_str(), a.result.outcome(), a.result.code.as_str()))
        .collect();
    assert!(told.contains(&("running", Outcome::Failed, "outcome-unknown")), "{told:?}");
    assert!(told.contains(&("queued", Outcome::Rejected, "restarted")), "{told:?}");
    assert!(answers.iter().all(|a| a.audit.as_ref().is_some_and(|e| e.actor == "mqtt:local:anna")));
    assert_eq!(second.ask(setpoint("running", 5)).await.code, "outcome-unknown");
    assert_eq!(plant.written(), []);
    second.crash().await;
    let mut third = bench(CommandLimits::default(), &plant, &ledger, &clock).await;
    assert_eq!(third.ask(setpoint("new", 5)).await.correlation_id, "new", "given answers are not given again");
}

#[tokio::test]
async fn an_answer_that_was_not_given_is_given_after_the_restart() {
    let (plant, ledger, clock) = (Plant::default(), Memory::default(), ManualClock::at(NOW_MS));
    let mut first = bench(CommandLimits::default(), &plant, &ledger, &clock).await;
    first.answers.close();
    first.service.submit(setpoint("c1", 5), Receipt::none()).await.unwrap();
    drop(first.service);
    first.task.await.unwrap();
    let mut second = bench(CommandLimits::default(), &plant, &ledger, &clock).await;
    assert_eq!(second.answer().await.outcome(), Outcome::Done);
    assert_eq!(plant.written().len(), 1);
}

#[tokio::test]
async fn nothing_is_written_or_acknowledged_that_could_not_be_stored() {
    let (plant, ledger, clock) = (Plant::default(), Memory::default(), ManualClock::at(NOW_MS));
    let mut bench = bench(CommandLimits::default(), &plant, &ledger, &clock).await;
    ledger.broken.store(true, Ordering::SeqCst);
    let result = bench.ask(setpoint("c1", 5)).await;
    assert_eq!((result.outcome(), result.code.as_str()), (Outcome::Rejected, "not-stored"));
    ledger.broken.store(false, Ordering::SeqCst);
    assert_eq!(
        bench.ask(setpoint("c1", 5)).await.outcome(),
        Outcome::Done,
        "a command that was not done may be sent again"
    );
    assert_eq!(plant.written().len(), 1);
}

#[tokio::test]
async fn a_device_takes_so_many_commands_and_no_more() {
    let (plant, ledger, clock) = (Plant::blocked(), Memory::default(), ManualClock::at(NOW_MS));
    let limits = CommandLimits { queue: 3, per_second: 6, ..CommandLimits::default() };
    let mut bench = bench(limits, &plant, &ledger, &clock).await;
    bench.service.submit(setpoint("c0", 5), Receipt::none()).await.unwrap();
    plant.asked.notified().await;
    for n in 1..=3 {
        bench.service.submit(setpoint(&format!("c{n}"), 5), Receipt::none()).await.unwrap();
    }
    assert_eq!(bench.ask(setpoint("c4", 5)).await.code, "busy");
    plant.permits.add_permits(100);
    for n in 0..=3 {
        assert_eq!(bench.answer().await.correlation_id, format!("c{n}"), "in the order of arrival");
    }
    assert_eq!(bench.ask(setpoint("c5", 5)).await.outcome(), Outcome::Done);
    assert_eq!(bench.ask(setpoint("c6", 5)).await.outcome(), Outcome::Done);
    assert_eq!(bench.ask(setpoint("c7", 5)).await.code, "rate-limited");
    clock.advance(Duration::from_millis(200));
    assert_eq!(bench.ask(setpoint("c7", 5)).await.outcome(), Outcome::Done);
}

#[tokio::test]
async fn a_queued_command_is_checked_again_when_its_turn_comes() {
    let (plant, ledger, clock) = (Plant::blocked(), Memory::default(), ManualClock::at(NOW_MS));
    let mut bench = bench(CommandLimits::default(), &plant, &ledger, &clock).await;
    bench.service.submit(setpoint("running", 5), Receipt::none()).await.unwrap();
    plant.asked.notified().await;
    let mut expires = setpoint("expires", 5);
    expires.command.expires = Some(timestamp(NOW_MS + 1_000));
    let (stored, mut receipts) = mpsc::channel(2);
    for request in [expires, setpoint("denied", 5)] {
        let stored = stored.clone();
        bench.service.submit(request, Receipt::new(move || stored.try_send(()).unwrap())).await.unwrap();
        receipts.recv().await.unwrap();
    }
    clock.advance(Duration::from_secs(2));
    let read_only = [device("d", Access::Read)].into_iter().map(|d| (d.id.clone(), d)).collect();
    bench.service.set_devices(read_only).await.unwrap();
    assert_eq!(bench.ask(CommandRequest { device: id("e"), ..setpoint("z", 1) }).await.code, "unknown-device");
    plant.permits.add_permits(10);
    assert_eq!(bench.answer().await.outcome(), Outcome::Done);
    let (a, b) = (bench.answer().await, bench.answer().await);
    assert_eq!((a.correlation_id.as_str(), a.code.as_str(), a.outcome()), ("expires", "expired", Outcome::Rejected));
    assert_eq!((b.correlation_id.as_str(), b.code.as_str()), ("denied", "denied"));
    assert_eq!(plant.written().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_command_that_takes_too_long_is_answered_and_the_next_one_is_done() {
    let (plant, ledger, clock) = (Plant::blocked(), Memory::default(), ManualClock::at(NOW_MS));
    let mut bench = bench(CommandLimits::default(), &plant, &ledger, &clock).await;
    let result = bench.ask(setpoint("slow", 5)).await;
    assert_eq!((result.outcome(), result.code.as_str()), (Outcome::Failed, "timeout"));
    plant.permits.add_permits(1);
    assert_eq!(bench.ask(setpoint("next", 5)).await.outcome(), Outcome::Done);
}

#[tokio::test]
async fn the_last_handle_stops_the_task_after_the_write_under_way() {
    let (plant, ledger, clock) = (Plant::blocked(), Memory::default(), ManualClock::at(NOW_MS));
    let mut bench = bench(CommandLimits::default(), &plant, &ledger, &clock).await;
    bench.service.submit(setpoint("running", 5), Receipt::none()).await.unwrap();
    bench.service.submit(setpoint("queued", 5), Receipt::none()).await.unwrap();
    plant.asked.notified().await;
    drop(bench.service);
    plant.permits.add_permits(10);
    bench.task.await.unwrap();
    assert_eq!(bench.answers.recv().await.unwrap().result.outcome(), Outcome::Done);
    assert_eq!(plant.written().len(), 1, "the queued one is not begun any more");
    let progress: Vec<_> =
        ledger.load().await.unwrap().into_iter().map(|e| (e.key.correlation_id, e.progress)).collect();
    assert_eq!(progress[0], ("queued".to_owned(), Progress::Queued));
}

fn any_request() -> impl Strategy<Value = CommandRequest> {
    let point = prop_oneof![Just("setpoint".to_owned()), Just("level".to_owned()), ".{0,80}"];
    let value = prop_oneof![
        any::<i64>().prop_map(Value::Int),
        any::<f64>().prop_map(Value::Double),
        (".{0,4}", 0..500usize).prop_map(|(t, n)| Value::Text(t.repeat(n).into())),
        Just(Value::Bool(true)),
    ];
    let writes = proptest::collection::vec(
        (point, value).prop_map(|(p, v)| v1::Write { point: p, value: Some(json_value(&v)) }),
        0..40,
    );
    let correlation = prop_oneof![Just("same".to_owned()), ".{0,100}"];
    let device = prop_oneof![Just("d"), Just("nobody")];
    (device, correlation, writes, any::<Option<i64>>()).prop_map(|(device, correlation_id, writes, expires)| {
        CommandRequest {
            device: id(device),
            command: v1::Command {
                correlation_id,
                writes,
                expires: expires.map(|s| pbjson_types::Timestamp { seconds: s, nanos: 0 }),
                ..v1::Command::default()
            },
            actor: "mqtt:local:x".into(),
            forbidden: None,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, ..ProptestConfig::default() })]

    /// 20 × 500 requests that must not be done, with one that was done sent again between them.
    #[test]
    fn ten_thousand_bad_requests_change_nothing(requests in proptest::collection::vec(any_request(), 500)) {
        let clock = ManualClock::at(NOW_MS);
        let read_only: Devices = [device("d", Access::Read)].into_iter().map(|d| (d.id.clone(), d)).collect();
        let mut desk = CommandDesk::new(CommandLimits::default(), devices());
        let good = setpoint("good", 5);
        let Decision::Store(entry) = desk.handle(good.clone(), clock.now(), |_, _| Ok(())) else { panic!() };
        let job = desk.stored(&entry.key).unwrap();
        let done = desk.finish(&job.key, &[super::result::Attempt::Done { read_back: None }], clock.now());
        let weight = desk.weight();
        desk.set_devices(read_only);
        let mut audited = 0;
        for request in requests {
            let answer = match desk.handle(request, clock.now(), |_, _| Ok(())) {
                Decision::Answer(answer) => answer,
                other => panic!("{other:?}"),
            };
            prop_assert_eq!(answer.result.outcome(), Outcome::Rejected);
            prop_assert!(prost::Message::encoded_len(&answer.result) < 8_192);
            audited += usize::from(answer.audit.is_some());
            let Decision::Answer(again) = desk.handle(good.clone(), clock.now(), |_, _| Ok(())) else { panic!() };
            prop_assert_eq!(&again.result, &done.answers[0].result);
        }
        prop_assert_eq!((desk.in_hand(), desk.weight()), (0, weight));
        prop_assert!(audited <= 60);
    }
}

#[test]
fn memory_of_results_is_bounded() {
    let clock = ManualClock::at(NOW_MS);
    let mut desk = CommandDesk::new(CommandLimits { per_second: 1_000, ..CommandLimits::default() }, devices());
    let mut removed = 0;
    for n in 0..5_000 {
        clock.advance(Duration::from_millis(10));
        let text = Value::Text("x".repeat(1_000).into());
        let request = request(&format!("c{n}"), vec![write("name", text); 4]);
        let Decision::Store(entry) = desk.handle(request, clock.now(), |_, _| Ok(())) else { panic!() };
        let job = desk.stored(&entry.key).unwrap();
        let attempts = vec![super::result::Attempt::Done { read_back: None }; 4];
        removed += desk.finish(&job.key, &attempts, clock.now()).remove.len();
        assert!(desk.weight() <= 4 << 20);
    }
    assert!(removed >= 4_000, "{removed}");
}

struct Level(f64);

impl crate::management::permit::PointValues for Level {
    fn good(&self, _: &DeviceId, point: &str) -> Option<Value> {
        (point == "level").then_some(Value::Double(self.0))
    }
}

#[test]
fn a_critical_write_takes_two_steps_and_an_interlock_is_checked_again_before_writing() {
    use crate::management::desired::{Interlock, LimitsOverlay};
    use crate::management::permit::CommandRules;
    let clock = ManualClock::at(1_763_812_800_000);
    let mut desk = CommandDesk::new(CommandLimits::default(), devices());
    let range = LimitsOverlay { min: Some(1.0), max: None };
    let rules = CommandRules {
        critical: ["setpoint".to_owned()].into(),
        interlocks: [("setpoint".to_owned(), Interlock { point: "level".into(), equals: None, range })].into(),
        ..CommandRules::default()
    };
    let rules = || BTreeMap::from([(id("d"), rules.clone())]);
    let fits = |_: &PointId, _: &Value| Ok(());
    desk.set_rules(rules(), Arc::new(Level(0.5)));
    let refused = |decision: Decision| match decision {
        Decision::Answer(answer) => answer.result,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(desk.handle(setpoint("1", 5), clock.now(), fits)).code, "interlocked");
    desk.set_rules(rules(), Arc::new(Level(2.0)));
    let first = refused(desk.handle(setpoint("2", 5), clock.now(), fits));
    assert_eq!(first.outcome(), v1::command_result::Outcome::ConfirmationRequired);
    let mut second = setpoint("3", 5);
    second.command.confirmation = first.confirmation;
    let Decision::Store(entry) = desk.handle(second, clock.now(), fits) else { panic!("not taken") };
    let job = desk.stored(&entry.key).unwrap();
    assert!(desk.recheck(&job, clock.now(), fits).is_ok());
    desk.set_rules(rules(), Arc::new(Level(0.5)));
    assert!(desk.recheck(&job, clock.now(), fits).is_err(), "the level fell while the command waited");
}

#[test]
fn a_crash_between_result_and_audit_loses_no_line_and_a_line_that_comes_twice_says_so() {
    let mut desk = CommandDesk::new(CommandLimits::default(), devices());
    let now = ManualClock::at(NOW_MS).now();
    let Decision::Store(entry) = desk.handle(setpoint("c", 7), now, |_, _| Ok(())) else { panic!() };
    let job = desk.stored(&entry.key).unwrap();
    let finished = desk.finish(&job.key, &[Attempt::Done { read_back: Some(Value::Int(7)) }], now);
    let line = finished.answers[0].audit.clone().unwrap();
    assert!(!line.id.is_empty());
    // The result was stored, and the process died before it was audited and answered.
    let mut after = CommandDesk::new(CommandLimits::default(), devices());
    let restored = after.restore(finished.put.clone(), now);
    assert_eq!(restored.answers[0].audit.as_ref(), Some(&line));
    assert_eq!(restored.answers[0].result, finished.answers[0].result);
    // It was answered: nothing comes again.
    let answered = desk.answered(&job.key).unwrap();
    assert!(CommandDesk::new(CommandLimits::default(), devices()).restore(vec![answered], now).answers.is_empty());
}
