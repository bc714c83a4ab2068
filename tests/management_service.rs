//! The shell: commits before effects, answers at the socket and on topics, a journal that fails and comes back.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod management_support;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fieldgate::contract::{Encoding, v1};
use fieldgate::management::clock::ClockForm;
use fieldgate::management::core::{Input, Plan};
use fieldgate::management::desired::GatewayOverlay;
use fieldgate::management::journal::MemoryJournal;
use fieldgate::management::lifecycle::{Claim, Erasure, Policy, Stored};
use fieldgate::management::request::Actor;
use fieldgate::management::service::{Management, Outlet, World};
use fieldgate::management::socket::{SocketAnswer, SocketAsk};
use fieldgate::management::step::Shown;
use fieldgate::model::{DeviceId, Value};
use fieldgate::platform::clock::{ManualClock, SystemClock};
use management_support::{claim, declaration, id, settings};
use tokio::sync::watch;

#[derive(Clone)]
struct Outside(Arc<Mutex<Seen>>, watch::Sender<u64>);

#[derive(Default)]
struct Seen {
    plan: Plan,
    topics: BTreeMap<String, Shown>,
    answers: Vec<(String, v1::ManagementResult)>,
    audit: Vec<v1::AuditEntry>,
    clock: BTreeMap<String, Value>,
    erased: u32,
}

impl Outside {
    fn new() -> Self {
        Self(Arc::default(), watch::channel(0).0)
    }

    fn see<T>(&self, look: impl FnOnce(&mut Seen) -> T) -> T {
        let seen = look(&mut self.0.lock().unwrap());
        self.1.send_modify(|n| *n += 1);
        seen
    }

    async fn until(&self, holds: impl Fn(&Seen) -> bool) {
        let mut changed = self.1.subscribe();
        let wait = async {
            while !holds(&self.0.lock().unwrap()) {
                changed.changed().await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait).await.expect("it happens within 20 s");
    }
}

impl World for Outside {
    async fn apply(&self, plan: Arc<Plan>) -> BTreeMap<DeviceId, String> {
        self.see(|s| s.plan = (*plan).clone());
        BTreeMap::new()
    }

    async fn apply_gateway(&self, _: GatewayOverlay) -> Result<(), String> {
        Ok(())
    }

    async fn identify(&self, device: &DeviceId) -> Result<Claim, String> {
        Ok(claim(device.as_str()))
    }

    async fn probe(&self, host: Ipv4Addr, _: u16, unit: u8) -> Option<Claim> {
        (host == Ipv4Addr::new(192, 0, 2, 2) && unit == 1).then(|| claim("found"))
    }

    async fn issue(&self, _: &DeviceId, _: &str) -> Result<String, String> {
        Ok(String::new())
    }

    async fn revoke(&self, _: &DeviceId) -> Result<(), String> {
        Ok(())
    }

    async fn erase(&self, _: &DeviceId, _: Stored) -> Result<Erasure, String> {
        self.see(|s| s.erased += 1);
        Ok(Erasure::Done(vec!["topics".into()]))
    }

    fn clock_form(&self, _: &DeviceId) -> Option<ClockForm> {
        Some(ClockForm::UnixSeconds { point: "t".into() })
    }

    async fn read(&self, _: &DeviceId, _: &[&str]) -> Result<BTreeMap<String, Value>, String> {
        Ok(self.see(|s| s.clock.clone()))
    }

    async fn write(&self, _: &DeviceId, values: Vec<(String, Value)>) -> Result<(), String> {
        self.see(|s| s.clock.extend(values));
        Ok(())
    }
}

impl Outlet for Outside {
    fn show(&self, topic: &str, shown: Shown) {
        self.see(|s| s.topics.insert(topic.to_owned(), shown));
    }

    async fn answer(&self, topic: &str, body: &v1::ManagementResult) -> Result<(), String> {
        self.see(|s| s.answers.push((topic.to_owned(), body.clone())));
        Ok(())
    }

    async fn raise(&self, _: v1::Event) {}

    async fn audit(&self, entries: Vec<v1::AuditEntry>) -> Result<(), String> {
        self.see(|s| s.audit.extend(entries));
        Ok(())
    }
}

async fn start(journal: &MemoryJournal, outside: &Outside, devices: &[&str], auto: bool) -> Management {
    let policy = Policy { auto_approve_declared: auto, ..Policy::default() };
    let settings = fieldgate::management::core::Settings { policy, ..settings("g") };
    let (journal, world, outlet) = (journal.clone(), outside.clone(), outside.clone());
    let started =
        Management::start(settings, journal, world, outlet, Default::default(), ManualClock::at(1_763_812_800_000))
            .await;
    let (management, _task) = started.unwrap();
    let devices = devices.iter().map(|d| declaration(d)).collect();
    management.report(Input::Files { devices, profiles: BTreeMap::new() }).await.unwrap();
    management
}

fn result(answer: SocketAnswer) -> v1::ManagementResult {
    match answer {
        SocketAnswer::Result(result) => *result,
        other => panic!("{other:?}"),
    }
}

fn state(seen: &Seen, device: &str) -> String {
    match seen.topics.get(&format!("devices/{device}/onboarding")) {
        Some(Shown::Onboarding(shown)) => shown.state.clone(),
        _ => String::new(),
    }
}

#[tokio::test]
async fn an_approval_at_the_socket_runs_the_device_and_is_answered_there_and_on_the_topic() {
    let (journal, outside) = (MemoryJournal::default(), Outside::new());
    let management = start(&journal, &outside, &["pump", "fan"], false).await;
    let answer = management.socket(0, SocketAsk::action("approve", "pu*")).await.unwrap();
    management_support::done(&result(answer));
    outside.until(|s| state(s, "pump") == "active" && s.plan.devices.contains_key(&id("pump"))).await;
    outside.until(|s| s.answers.len() == 1 && s.audit.iter().any(|e| e.action == "approve")).await;
    let list = management.socket_json(0, serde_json::json!("list")).await.unwrap();
    assert_eq!(list["devices"]["devices"][0]["state"], "pending");
    let odd = management.socket_json(0, serde_json::json!({"drop": "tables"})).await.unwrap();
    assert!(odd["error"].as_str().unwrap().contains("not a question"));
}

#[tokio::test]
async fn a_token_is_shown_at_the_socket_and_on_no_topic() {
    let (journal, outside) = (MemoryJournal::default(), Outside::new());
    let management = start(&journal, &outside, &[], true).await;
    let made = result(management.socket(0, SocketAsk::action("create-token", "*")).await.unwrap());
    assert!(made.token.starts_with("fgt."));
    outside.until(|s| s.answers.len() == 1 && !s.audit.is_empty()).await;
    let secret = made.token.rsplit('.').next().unwrap().to_owned();
    outside.see(|s| assert!(!format!("{:?}{:?}", s.answers, s.audit).contains(&secret)));
}

#[tokio::test]
async fn a_journal_that_fails_loses_nothing_that_was_acknowledged() {
    let (journal, outside) = (MemoryJournal::default(), Outside::new());
    let management = start(&journal, &outside, &["pump"], true).await;
    outside.until(|s| state(s, "pump") == "active").await;
    journal.cut_power_after(0);
    let failed = management.socket(0, SocketAsk::action("suspend", "pump")).await;
    assert!(failed.is_err(), "not durable is not acknowledged");
    journal.restore_power();
    outside.until(|s| state(s, "pump") == "active").await;
    management_support::done(&result(management.socket(0, SocketAsk::action("suspend", "pump")).await.unwrap()));
    outside.until(|s| state(s, "pump") == "suspended" && s.plan.devices.is_empty()).await;
}

#[tokio::test]
async fn requests_over_topics_need_a_role_and_devices_are_found_erased_and_set() {
    let (journal, outside) = (MemoryJournal::default(), Outside::new());
    let management = start(&journal, &outside, &["pump"], true).await;
    outside.until(|s| state(s, "pump") == "active").await;
    let eve = Actor::named("mqtt:local:eve");
    let payload = br#"{"correlationId":"1","action":"decommission"}"#;
    let topic = "devices/pump/onboarding/request";
    assert!(management.request(eve.clone(), topic, Encoding::Json, payload).await.unwrap());
    outside
        .until(|s| s.answers.iter().any(|(t, a)| t == "devices/pump/onboarding/result" && a.code == "not-allowed"))
        .await;
    assert!(!management.request(eve, "status", Encoding::Json, b"{}").await.unwrap());

    management_support::done(&result(management.socket(0, SocketAsk::action("set-clock", "pump")).await.unwrap()));
    outside.until(|s| s.clock.contains_key("t")).await;
    let scan = v1::ManagementRequest {
        action: "scan".into(),
        protocol: "modbus-tcp".into(),
        range: "192.0.2.1-192.0.2.3".into(),
        ..Default::default()
    };
    management_support::done(&result(management.socket(0, SocketAsk::Manage(Box::new(scan))).await.unwrap()));
    outside.until(|s| s.topics.keys().any(|t| t.starts_with("devices/found-192.0.2.2"))).await;
    management_support::done(&result(management.socket(0, SocketAsk::action("decommission", "pump")).await.unwrap()));
    outside.until(|s| state(s, "pump") == "decommissioned" && s.erased == 1).await;
    outside.until(|s| s.audit.iter().any(|e| e.action == "certificate-of-erasure")).await;
}

#[tokio::test]
async fn a_proof_ends_in_time_also_while_somebody_looks_all_the_time() {
    let (journal, outside) = (MemoryJournal::default(), Outside::new());
    let (world, outlet, clock) = (outside.clone(), outside.clone(), SystemClock::shared());
    let started = Management::start(settings("g"), journal, world, outlet, Default::default(), clock).await;
    let (management, _task) = started.unwrap();
    let devices = vec![declaration("pump")];
    management.report(Input::Files { devices, profiles: BTreeMap::new() }).await.unwrap();
    outside.until(|s| state(s, "pump") == "active").await;
    let looker = tokio::spawn({
        let management = management.clone();
        async move {
            while management.look(|_| ()).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    });
    // No value ever comes.
    let payload = br#"{"version":"1","settings":{"rate":"2 s"},"proveWithin":"1 s"}"#;
    let root = Actor::named(management_support::ADMIN);
    assert!(management.request(root, "devices/pump/config/desired", Encoding::Json, payload).await.unwrap());
    let ended = |s: &Seen| match s.topics.get("devices/pump/config/reported") {
        Some(Shown::Config(shown)) => shown.state == "settled" && shown.result == "rolled-back",
        _ => false,
    };
    outside.until(ended).await;
    looker.abort();
}
