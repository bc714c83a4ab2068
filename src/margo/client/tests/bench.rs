//! A fleet manager of a page of script, a plant that takes everything, and a client between them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::super::leave::{LeaveFile, Wish};
use super::super::{Client, ClientStatus, Parts};
use crate::margo::api::{Method, Rc3, Request, Response};
use crate::margo::component::{Source, SourceConfig, Work};
use crate::margo::config::Config;
use crate::margo::deployment::tests::example;
use crate::margo::desired::{Exchange, ExchangeError};
use crate::margo::plant::{Alert, Before, Child, Functions, Identity, Inventory, Order, Plant, Refusal};
use crate::margo::polling::Polling;
use crate::margo::reconcile::{Scope, Wildcard};
use crate::margo::storage::MemoryStorage;
use crate::margo::words::Digest;
use crate::model::{ClockTrust, DeviceId, Stamp};
use crate::platform::clock::Clock;

/// 2026-11-20, a Friday, 00:00 UTC.
const MIDNIGHT: i64 = 1_795_132_800;
pub(super) const NAME: &str = "spiffe://plant.example/margo/wfm/north/client/gw-7";

/// A clock that goes as the runtime's does.
#[derive(Debug)]
struct Passing(Instant);

impl Clock for Passing {
    fn now(&self) -> Stamp {
        let passed = self.0.elapsed();
        Stamp {
            wall_ms: MIDNIGHT * 1_000 + passed.as_millis() as i64,
            mono_ns: passed.as_nanos() as u64,
            uptime: Default::default(),
            trust: ClockTrust::Synchronised,
        }
    }
}

type Answer = Result<Response, ExchangeError>;
type Trouble = Box<dyn FnMut(&Request) -> Option<Answer> + Send>;

/// A fleet manager that takes everything, but for the trouble that it is in.
pub(super) struct Wfm {
    pub(super) began: Instant,
    pub(super) asked: Mutex<Vec<(Duration, String)>>,
    pub(super) trouble: Mutex<Trouble>,
    pub(super) devices: Mutex<Vec<String>>,
    pub(super) manifest: Mutex<(Value, BTreeMap<String, Bytes>)>,
    pub(super) news: Notify,
}

impl Exchange for Wfm {
    async fn send(&self, request: Request) -> Answer {
        let path = request.url.strip_prefix("https://wfm.example/api/v1/").unwrap().to_owned();
        self.asked.lock().unwrap().push((self.began.elapsed(), format!("{} {path}", request.method.as_str())));
        self.news.notify_waiters();
        // A round trip takes its time.
        tokio::time::sleep(Duration::from_millis(10)).await;
        let trouble = (self.trouble.lock().unwrap())(&request);
        if let Some(answer) = trouble {
            return answer;
        }
        Ok(self.take(request.method, &path))
    }
}

impl Wfm {
    pub(super) fn take(&self, method: Method, path: &str) -> Response {
        let answer = |status: u16, body: Bytes| Response { status, body, ..Response::default() };
        match (method, path.strip_prefix("capabilities/")) {
            (Method::Put, Some(device)) => {
                let mut devices = self.devices.lock().unwrap();
                let is_new = !devices.iter().any(|known| known == device);
                devices.retain(|known| known != device);
                devices.push(device.to_owned());
                answer(if is_new { 201 } else { 200 }, Bytes::new())
            }
            (Method::Delete, Some(device)) => {
                self.devices.lock().unwrap().retain(|known| known != device);
                answer(204, Bytes::new())
            }
            (Method::Post, _) => answer(201, Bytes::new()),
            _ if path == "deployments" => answer(200, self.manifest.lock().unwrap().0.to_string().into()),
            _ => match self.manifest.lock().unwrap().1.get(path) {
                Some(yaml) => answer(200, yaml.clone()),
                None => answer(404, Bytes::new()),
            },
        }
    }

    /// Wants one deployment on `target` from now on.
    pub(super) fn want(&self, version: u64, target: &str) {
        let id = "00000000-0000-4000-8000-000000000001";
        let yaml = Bytes::from(example(id, target, &[("recipe", "1.0")], " {}"));
        let digest = Digest::of(&yaml);
        let list = json!([{ "deploymentId": id, "digest": digest, "url": "" }]);
        *self.manifest.lock().unwrap() = (
            json!({ "manifestVersion": version, "bundle": null, "deployments": list }),
            BTreeMap::from([(format!("deployments/{id}/{digest}"), yaml)]),
        );
    }

    pub(super) fn is_in(&self, trouble: impl FnMut(&Request) -> Option<Answer> + Send + 'static) {
        *self.trouble.lock().unwrap() = Box::new(trouble);
    }

    pub(super) fn asked(&self, part: &str) -> Vec<Duration> {
        self.asked.lock().unwrap().iter().filter(|(_, what)| what.contains(part)).map(|(at, _)| *at).collect()
    }

    pub(super) fn said(&self) -> Vec<String> {
        self.asked.lock().unwrap().iter().map(|(_, what)| what.clone()).collect()
    }

    /// Waits until so many requests of that kind were made.
    pub(super) async fn hears(&self, part: &str, times: usize) {
        let enough = async {
            loop {
                let news = self.news.notified();
                if self.asked(part).len() >= times {
                    return;
                }
                news.await;
            }
        };
        let heard = tokio::time::timeout(Duration::from_secs(86_400), enough).await;
        assert!(heard.is_ok(), "{part:?} was not asked {times} times: {:?}", self.said());
    }
}

pub(super) fn refusal(status: u16, body: &Value) -> Option<Answer> {
    Some(Ok(Response { status, body: body.to_string().into(), ..Response::default() }))
}

#[derive(Default)]
pub(super) struct Yard {
    pub(super) children: Mutex<Vec<Child>>,
    pub(super) alerts: Mutex<Vec<Alert>>,
    pub(super) changed: Notify,
    pub(super) stopped: Mutex<bool>,
}

impl Plant for Yard {
    async fn inventory(&self) -> Option<Inventory> {
        let children = self.children.lock().unwrap().clone();
        (!*self.stopped.lock().unwrap()).then(|| Inventory { children, ..Inventory::default() })
    }

    async fn changed(&self) {
        self.changed.notified().await;
    }

    async fn before(&self, _: Option<&DeviceId>, _: &Work) -> Result<Before, Refusal> {
        Ok(Before::default())
    }

    async fn carry_out(&self, _: Order) -> Result<(), Refusal> {
        Ok(())
    }

    async fn alert(&self, alert: Alert) {
        self.alerts.lock().unwrap().push(alert);
    }
}

impl Yard {
    pub(super) fn has(&self, names: &[&str]) {
        let child = |name: &&str| Child {
            id: DeviceId::new(name).unwrap(),
            tier: 1,
            firmware: None,
            identity: Identity::default(),
            hardware: String::new(),
            protocol: "modbus-tcp".to_owned(),
            functions: Functions { recipe: true, ..Functions::default() },
            reachable: true,
            connecting: false,
            lost: BTreeSet::new(),
        };
        *self.children.lock().unwrap() = names.iter().map(child).collect();
        self.changed.notify_one();
    }

    pub(super) fn codes(&self) -> Vec<(&'static str, bool)> {
        self.alerts.lock().unwrap().iter().map(|alert| (alert.code, alert.security)).collect()
    }
}

pub(super) struct Bench {
    pub(super) directory: tempfile::TempDir,
    pub(super) wfm: Arc<Wfm>,
    pub(super) yard: Arc<Yard>,
    pub(super) storage: MemoryStorage,
    pub(super) polling: Polling,
    pub(super) name: watch::Sender<String>,
    pub(super) status: watch::Receiver<ClientStatus>,
    pub(super) running: Option<(CancellationToken, JoinHandle<()>)>,
}

impl Bench {
    pub(super) fn new(children: &[&str]) -> Self {
        let wfm = Wfm {
            began: Instant::now(),
            asked: Mutex::default(),
            trouble: Mutex::new(Box::new(|_| None)),
            devices: Mutex::default(),
            manifest: Mutex::new((json!({ "manifestVersion": 1, "deployments": [] }), BTreeMap::new())),
            news: Notify::new(),
        };
        let yard = Arc::new(Yard::default());
        yard.has(children);
        Self {
            directory: tempfile::tempdir().unwrap(),
            wfm: Arc::new(wfm),
            yard,
            storage: MemoryStorage::default(),
            polling: Polling { every: Duration::from_secs(30), ..Polling::default() },
            name: watch::channel(NAME.to_owned()).0,
            status: watch::channel(ClientStatus::default()).1,
            running: None,
        }
    }

    pub(super) fn config(&self) -> Config {
        Config { polling: self.polling.clone(), ..Config::for_tests(&self.directory.path().join("margo")) }
    }

    pub(super) async fn start(&mut self) {
        let config = Arc::new(self.config());
        let dialect = Arc::new(Rc3::new(config.url.clone()));
        let source = Source::new(SourceConfig::default(), self.directory.path().join("images")).unwrap();
        let parts = Parts {
            scope: Scope { top: config.device.clone(), opaque: false, wildcard: Wildcard::One },
            config,
            only: None,
            plant: self.yard.clone(),
            storage: self.storage.clone(),
            exchange: self.wfm.clone(),
            source: Arc::new(source),
            clock: Arc::new(Passing(self.wfm.began)),
        };
        let (told, seen) = watch::channel(ClientStatus::default());
        self.status = seen;
        let client = Client::load(parts, dialect, self.name.subscribe(), told).await.unwrap();
        let token = CancellationToken::new();
        let ended = token.clone();
        self.running = Some((token, tokio::spawn(async move { client.run(ended).await.unwrap() })));
    }

    pub(super) async fn stop(&mut self) {
        let (token, task) = self.running.take().unwrap();
        token.cancel();
        tokio::time::timeout(Duration::from_secs(1), task).await.unwrap().unwrap();
    }

    /// Lets time pass, and gives how many requests were made in it.
    pub(super) async fn passes(&self, time: Duration) -> usize {
        let before = self.wfm.asked("").len();
        tokio::time::sleep(time).await;
        self.wfm.asked("").len() - before
    }

    pub(super) fn wish(&self, wish: Option<Wish>) {
        LeaveFile::new(&self.config().directory).set(wish).unwrap();
    }
}
