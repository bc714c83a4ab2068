//! A core on a journal that outlives it, and a world that answers what the core asks.
#![allow(dead_code, clippy::unwrap_used, reason = "each test file uses its part; helpers of tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use fieldgate::contract::v1;
use fieldgate::management::clock::{ClockForm, Reading};
use fieldgate::management::core::{Core, Input, Plan, Request, Settings};
use fieldgate::management::desired::{Observed, PointProfile, Profile, Target, Watcher};
use fieldgate::management::journal::{MemoryJournal, Shelf};
use fieldgate::management::lifecycle::{Claim, Declaration, Mode, Outcome, Policy, State, Stored};
use fieldgate::management::request::{Actor, Ask};
use fieldgate::management::step::{Effect, Shown};
use fieldgate::management::transfer::SigningKey;
use fieldgate::model::{Access, DataType, Device, DeviceId, GatewayId, Limits, Point, PointId, Stamp, Tier};
use fieldgate::platform::clock::{Clock, ManualClock};

pub const ADMIN: &str = "cli:uid=0";

pub fn id(text: &str) -> DeviceId {
    DeviceId::new(text).unwrap()
}

pub fn claim(serial: &str) -> Claim {
    Claim { vendor: "ACME".into(), model: "P1".into(), serial: serial.into(), ..Claim::default() }
}

pub fn profile() -> Profile {
    let point = |access, limits| PointProfile {
        data_type: DataType::F32,
        max_access: access,
        limits,
        polled: true,
        every_ms: 1_000,
    };
    Profile {
        base: serde_json::from_str(r#"{"rate":"1 s","on_change":true}"#).unwrap(),
        points: BTreeMap::from([
            ("level".to_owned(), point(Access::Read, None)),
            ("setpoint".to_owned(), point(Access::ReadWrite, Some(Limits { min: 0.0, max: 10.0 }))),
            ("sensor".to_owned(), point(Access::Read, None)),
        ]),
        groups: BTreeSet::from(["fast".to_owned()]),
        clock: Some(ClockForm::UnixSeconds { point: "level".to_owned() }),
        ..Profile::default()
    }
}

pub fn declaration(name: &str) -> Declaration {
    Declaration {
        device: id(name),
        protocol: "modbus-tcp".into(),
        address: format!("tcp://192.0.2.7:502 unit {name}"),
        tier: 2,
        fingerprint: None,
        identifies: true,
        delegated: BTreeSet::new(),
        profile: Arc::new(profile()),
    }
}

pub fn settings(gateway: &str) -> Settings {
    Settings {
        gateway: GatewayId::new(gateway).unwrap(),
        policy: Policy::default(),
        roles: Vec::new(),
        partners: BTreeMap::new(),
        signing_key: None,
        counters: Arc::default(),
    }
}

/// How the simulated plant behaves.
#[derive(Debug, Clone, Default)]
pub struct Plant {
    /// What each device reveals when it is polled or asked.
    pub claims: BTreeMap<DeviceId, Claim>,
    /// Devices whose values are bad while this rate is configured.
    pub breaks_at: Option<Duration>,
    /// Devices that the drivers refuse to set up.
    pub refuses: BTreeSet<DeviceId>,
    /// Offset of all device clocks, milliseconds.
    pub clock_offset: i64,
    pub clock_sets: u32,
    pub erase_fails: u32,
    /// Consumers that stored values wait for, and what was to become of these.
    pub waits_for: Vec<String>,
    pub stored: Vec<Stored>,
    /// Refuses to take credentials back so often.
    pub revoke_fails: u32,
    pub revoked: Vec<DeviceId>,
    pub erased: Vec<DeviceId>,
}

/// A gateway that can crash.
pub struct Rig {
    pub clock: Arc<ManualClock>,
    pub disk: MemoryJournal,
    pub settings: Settings,
    pub core: Core,
    pub plant: Plant,
    pub declared: Vec<Declaration>,
    pub profiles: BTreeMap<String, Arc<Profile>>,
    pub watcher: Watcher,
    /// Retained topics as the broker holds them: they survive a crash of the gateway.
    pub topics: BTreeMap<String, Shown>,
    pub answers: Vec<v1::ManagementResult>,
    pub events: Vec<v1::Event>,
    /// The audit log by the ids of its entries.
    pub log: BTreeMap<u64, v1::AuditEntry>,
    pub plan: Plan,
    pub crashes: u32,
    next: u32,
}

impl Rig {
    pub fn new(gateway: &str, declared: Vec<Declaration>) -> Self {
        Self::with(settings(gateway), declared, MemoryJournal::default())
    }

    pub fn with(settings: Settings, declared: Vec<Declaration>, disk: MemoryJournal) -> Self {
        let clock = ManualClock::at(1_763_812_800_000);
        clock.advance(Duration::from_secs(1));
        let watcher = Watcher::default();
        let core = Core::load(&disk.records(), settings.clone(), watcher.clone()).unwrap();
        let claims = declared.iter().map(|d| (d.device.clone(), claim(d.device.as_str()))).collect();
        let mut rig = Self {
            clock,
            disk,
            settings,
            core,
            plant: Plant { claims, ..Plant::default() },
            declared,
            profiles: BTreeMap::new(),
            watcher,
            topics: BTreeMap::new(),
            answers: Vec::new(),
            events: Vec::new(),
            log: BTreeMap::new(),
            plan: Plan::default(),
            crashes: 0,
            next: 0,
        };
        rig.boot();
        rig
    }

    pub fn now(&self) -> Stamp {
        self.clock.now()
    }

    /// The process starts and reads its files.
    pub fn boot(&mut self) {
        let files = Input::Files { devices: self.declared.clone(), profiles: self.profiles.clone() };
        self.feed(vec![files]);
    }

    /// The process ends and starts again: only the disk and the broker's retained topics are left.
    pub fn restart(&mut self) {
        self.crashes += 1;
        self.disk.restore_power();
        self.watcher = Watcher::default();
        self.core = Core::load(&self.disk.records(), self.settings.clone(), self.watcher.clone()).unwrap();
        self.plan = Plan::default();
        self.boot();
    }

    /// Inputs and everything that follows from them, until nothing follows any more.
    pub fn feed(&mut self, inputs: Vec<Input>) {
        let mut inputs = inputs;
        for _ in 0..100 {
            let (changes, effects) = self.core.handle(self.now(), inputs).into_parts();
            if !changes.is_empty() && self.disk.apply(changes).is_err() {
                return self.restart();
            }
            inputs = self.carry_out(effects);
            if inputs.is_empty() {
                return;
            }
        }
        panic!("the core does not come to rest");
    }

    fn carry_out(&mut self, effects: Vec<Effect>) -> Vec<Input> {
        let mut next = Vec::new();
        let outbox: Vec<_> = self.core.audit_outbox().map(|(n, note)| (n, note.message(&n.to_string()))).collect();
        if let Some((last, _)) = outbox.last() {
            next.push(Input::AuditWritten(*last));
        }
        self.log.extend(outbox);
        for effect in effects {
            match effect {
                Effect::Show { topic, shown: Shown::Nothing } => {
                    self.topics.remove(&topic);
                }
                Effect::Show { topic, shown } => {
                    self.topics.insert(topic, shown);
                }
                Effect::Answer(answer) => {
                    next.push(Input::Answered(answer.key));
                    self.answers.push(answer.body);
                }
                Effect::Raise(event) => self.events.push(event),
                Effect::ApplyPlan => next.extend(self.apply()),
                Effect::Identify(device) => next.extend(self.identify(&device)),
                Effect::Issue { device, signing_request } => {
                    let outcome = match signing_request.as_str() {
                        "broken" => Outcome::IssueFailed("no request in PEM".into()),
                        "" => Outcome::Issued(String::new()),
                        request => Outcome::Issued(format!("chain for {request}")),
                    };
                    next.push(Input::Outcome { device, outcome });
                }
                Effect::Scan(_) => {}
                Effect::Revoke(device) => {
                    if self.plant.revoke_fails > 0 {
                        self.plant.revoke_fails -= 1;
                    } else {
                        self.plant.revoked.push(device.clone());
                        next.push(Input::Outcome { device, outcome: Outcome::Revoked });
                    }
                }
                Effect::Erase { device, stored } => {
                    self.plant.stored.push(stored);
                    let waits = stored == Stored::AfterDelivery && !self.plant.waits_for.is_empty();
                    let outcome = if waits {
                        Outcome::EraseWaits(self.plant.waits_for.clone())
                    } else if self.plant.erase_fails > 0 {
                        self.plant.erase_fails -= 1;
                        Outcome::EraseFailed("disk busy".into())
                    } else {
                        self.plant.erased.push(device.clone());
                        Outcome::Erased(vec!["topics".into(), "credentials".into()])
                    };
                    next.push(Input::Outcome { device, outcome });
                }
                Effect::ReadClock(device) => {
                    let gateway_ms = self.now().wall_ms;
                    let device_ms = gateway_ms + self.plant.clock_offset;
                    let reading = Ok(Reading { device_ms, gateway_ms, resolution_ms: 1_000 });
                    next.push(Input::ClockRead { device, reading });
                }
                Effect::SetClock(device) => {
                    self.plant.clock_offset = 0;
                    self.plant.clock_sets += 1;
                    next.push(Input::ClockSet { device, result: Ok(()) });
                }
                Effect::ApplyGateway(_) => next.push(Input::GatewayApplied(Ok(()))),
            }
        }
        next
    }

    fn apply(&mut self) -> Vec<Input> {
        self.plan = self.core.plan();
        let failed = |d: &&DeviceId| self.plan.devices.contains_key(*d);
        let failures =
            self.plant.refuses.iter().filter(failed).map(|d| (d.clone(), "port is taken".to_owned())).collect();
        let mut next = vec![Input::PlanApplied { generation: self.plan.generation, failures }];
        for device in self.plan.devices.keys().cloned().collect::<Vec<_>>() {
            next.extend(self.identify(&device));
        }
        next
    }

    fn identify(&self, device: &DeviceId) -> Option<Input> {
        let claim = self.plant.claims.get(device)?.clone();
        Some(Input::Seen { device: device.clone(), claim })
    }

    /// Time passes second by second; running devices give values.
    pub fn seconds(&mut self, seconds: u32) {
        for _ in 0..seconds {
            self.clock.advance(Duration::from_secs(1));
            self.poll();
            self.feed(vec![Input::Tick]);
        }
    }

    fn poll(&mut self) {
        for (name, planned) in &self.plan.devices {
            let broken = self.plant.breaks_at.is_some() && planned.overlay.rate == self.plant.breaks_at;
            let mono_ns = self.now().mono_ns;
            let results = (0..3u32).map(|i| {
                // The sensor is always broken: no configuration is to blame.
                let good = i != 2 && !broken;
                (i, Observed { mono_ns, good, value: good.then_some(5.0) })
            });
            self.watcher.scan(&device(name), results);
        }
    }

    pub fn ask_as(&mut self, actor: Actor, ask: Ask) -> v1::ManagementResult {
        let before = self.answers.len();
        self.feed(vec![Input::Request(Box::new(Request { actor, ask }))]);
        self.answers.get(before).cloned().unwrap_or_default()
    }

    /// A client that gets no answer asks again with the same correlation id.
    fn ask_until_answered(&mut self, ask: Ask) -> v1::ManagementResult {
        let id = ask.correlation_id().into_owned();
        for _ in 0..3 {
            let answer = self.ask_as(Actor::named(ADMIN), ask.clone());
            if answer.correlation_id == id {
                return answer;
            }
        }
        panic!("no answer to {id}");
    }

    pub fn manage(&mut self, action: &str, device: &str) -> v1::ManagementResult {
        self.request(v1::ManagementRequest { action: action.into(), device: device.into(), ..Default::default() })
    }

    pub fn request(&mut self, request: v1::ManagementRequest) -> v1::ManagementResult {
        self.next += 1;
        let correlation_id = format!("c{}", self.next);
        let request = v1::ManagementRequest { correlation_id, ..request };
        self.ask_until_answered(Ask::Manage { device: None, request })
    }

    pub fn desire(&mut self, name: &str, version: u64, settings: &str) -> v1::ManagementResult {
        let settings = serde_json::from_str(settings).unwrap();
        let document = v1::DesiredConfig {
            version,
            settings: Some(settings),
            prove_within: "5 s".into(),
            ..v1::DesiredConfig::default()
        };
        let target = if name.is_empty() { Target::Gateway } else { Target::Device(id(name)) };
        self.ask_until_answered(Ask::Desire { target, document })
    }

    pub fn state(&self, name: &str) -> State {
        self.core.lifecycle().device(&id(name)).unwrap().state
    }

    pub fn piece(&self, name: &str) -> u32 {
        self.core.lifecycle().device(&id(name)).unwrap().piece
    }

    pub fn mode(&self, name: &str) -> Option<Mode> {
        self.plan.devices.get(&id(name)).map(|p| p.mode)
    }

    pub fn onboarding(&self, name: &str) -> v1::Onboarding {
        match self.topics.get(&format!("devices/{name}/onboarding")) {
            Some(Shown::Onboarding(message)) => (**message).clone(),
            other => panic!("{other:?}"),
        }
    }

    pub fn reported(&self, name: &str) -> v1::ReportedConfig {
        let topic = if name.is_empty() { "config/reported".into() } else { format!("devices/{name}/config/reported") };
        match self.topics.get(&topic) {
            Some(Shown::Config(message)) => (**message).clone(),
            other => panic!("{other:?}"),
        }
    }

    pub fn audited(&self, action: &str) -> usize {
        self.log.values().filter(|e| e.action == action && e.outcome == "done").count()
    }

    pub fn alarms(&self, kind: &str) -> usize {
        self.events.iter().filter(|e| e.kind == kind).count()
    }

    /// Topics, registry and audit log agree.
    pub fn check_agreement(&self) {
        for (name, record) in self.core.lifecycle().devices() {
            assert_eq!(self.onboarding(name.as_str()).state, record.state.to_string(), "topic of {name}");
            let object = format!("devices/{name}");
            let last = self
                .log
                .values()
                .rev()
                .find(|e| e.object == object && e.outcome == "done" && e.detail.contains(" to "));
            if let Some(entry) = last {
                let says = entry.detail.split(" to ").nth(1).unwrap().split(':').next().unwrap();
                assert_eq!(says, record.state.to_string(), "audit log of {name}: {entry:?}");
            }
        }
        assert!(self.disk.len(Shelf::Answers) <= 4_096);
    }
}

pub fn done(result: &v1::ManagementResult) {
    assert_eq!(result.outcome(), v1::management_result::Outcome::Done, "{result:?}");
}

pub fn refused(result: &v1::ManagementResult, code: &str) {
    assert_eq!(result.outcome(), v1::management_result::Outcome::Rejected, "{result:?}");
    assert_eq!(result.code, code, "{result:?}");
}

pub fn device(name: &DeviceId) -> Arc<Device> {
    let points = ["level", "setpoint", "sensor"].map(|p| Point {
        id: PointId::new(p).unwrap(),
        description: String::new(),
        unit: String::new(),
        data_type: DataType::F32,
        access: Access::Read,
        limits: None,
    });
    Arc::new(Device {
        id: name.clone(),
        description: String::new(),
        protocol: "modbus-tcp",
        address: String::new(),
        tier: Tier::Two,
        points: points.to_vec().into(),
    })
}

/// Two gateways that know each other's keys.
pub fn partners(devices: Vec<Declaration>) -> (Rig, Rig) {
    let (a_key, _) = SigningKey::generate().unwrap();
    let (b_key, _) = SigningKey::generate().unwrap();
    let known = BTreeMap::from([("a".to_owned(), a_key.public()), ("b".to_owned(), b_key.public())]);
    let with =
        |name: &str, key: SigningKey| Settings { partners: known.clone(), signing_key: Some(key), ..settings(name) };
    let b = Settings { policy: Policy { auto_approve_declared: false, ..Policy::default() }, ..with("b", b_key) };
    let claims: BTreeMap<_, _> = devices.iter().map(|d| (d.device.clone(), claim(d.device.as_str()))).collect();
    let mut there = Rig::with(b, devices.clone(), MemoryJournal::default());
    there.plant.claims = claims;
    (Rig::with(with("a", a_key), devices, MemoryJournal::default()), there)
}
