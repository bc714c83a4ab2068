//! **A client in this process against the simulated fleet manager**: a plant that takes everything, artifacts in a directory.
#![allow(dead_code, unused_imports, reason = "each test binary uses its own part")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fieldgate::margo::api::Base;
use fieldgate::margo::client::{self, ClientStatus};
use fieldgate::margo::component::{SourceConfig, Work};
use fieldgate::margo::config::{Config, Details, Generation, Mode};
use fieldgate::margo::identity::{BundleSource, IdentityFiles, TlsVersions};
use fieldgate::margo::plant::{Act, Alert, Before, Child, Functions, Identity, Inventory, Order, Plant, Refusal};
use fieldgate::margo::polling::Polling;
use fieldgate::margo::reconcile::Wildcard;
use fieldgate::margo::storage::MemoryStorage;
use fieldgate::margo::words::DevicePath;
use fieldgate::model::DeviceId;
use fieldgate::platform::clock::SystemClock;
use fieldgate::security::pki::BelievedTime;
use fieldgate_simulators::margo::wfm::Generation as Interface;
use fieldgate_simulators::margo::{Authority, Deployment, Flaw, Op, Wfm, WfmOptions};
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

pub const PATIENCE: Duration = Duration::from_secs(90);

/// Devices with points.
#[derive(Default)]
pub struct Site {
    pub children: Mutex<Vec<Child>>,
    pub points: Mutex<BTreeMap<(String, String), Value>>,
    pub answers: Mutex<BTreeMap<String, Result<(), Refusal>>>,
    pub refuse: Mutex<Option<Refusal>>,
    pub alerts: Mutex<Vec<Alert>>,
    pub changed: Notify,
}

impl Site {
    pub fn with(names: &[&str]) -> Arc<Self> {
        let child = |name: &&str| Child {
            id: DeviceId::new(name).unwrap(),
            tier: 1,
            firmware: None,
            identity: Identity {
                vendor: Some("Acme".into()),
                model: Some("P-100".into()),
                serial: Some((*name).into()),
            },
            hardware: String::new(),
            protocol: "modbus-tcp".into(),
            functions: Functions { recipe: true, ..Functions::default() },
            reachable: true,
            connecting: false,
            lost: BTreeSet::new(),
        };
        let site = Self::default();
        *site.children.lock().unwrap() = names.iter().map(child).collect();
        Arc::new(site)
    }

    pub fn point(&self, device: &str, point: &str) -> Option<Value> {
        self.points.lock().unwrap().get(&(device.to_owned(), point.to_owned())).cloned()
    }

    pub fn change(&self, change: impl FnOnce(&mut Vec<Child>)) {
        change(&mut self.children.lock().unwrap());
        self.changed.notify_one();
    }
}

impl Plant for Site {
    async fn inventory(&self) -> Option<Inventory> {
        Some(Inventory { children: self.children.lock().unwrap().clone(), ..Inventory::default() })
    }

    async fn changed(&self) {
        self.changed.notified().await;
    }

    async fn before(&self, device: Option<&DeviceId>, work: &Work) -> Result<Before, Refusal> {
        let Work::Recipe { values } = work else { return Err(Refusal::new("not-supported", "no")) };
        let name = device.unwrap().to_string();
        let held = |point: &String| (point.clone(), self.point(&name, point).unwrap_or(json!(0)));
        Ok(Before { values: values.iter().map(|value| held(&value.point)).collect(), token: None })
    }

    async fn carry_out(&self, order: Order) -> Result<(), Refusal> {
        if let Some(answer) = self.answers.lock().unwrap().get(&order.key) {
            return answer.clone();
        }
        let name = order.device.unwrap().to_string();
        let answer = self.refuse.lock().unwrap().clone().map_or(Ok(()), Err);
        if answer.is_ok() {
            let values: Vec<(String, Value)> = match order.act {
                Act::Apply { work: Work::Recipe { values }, .. } => {
                    values.into_iter().map(|v| (v.point, v.value)).collect()
                }
                Act::Undo { before, .. } => before.values.into_iter().collect(),
                Act::Apply { .. } => Vec::new(),
            };
            let mut points = self.points.lock().unwrap();
            points.extend(values.into_iter().map(|(point, value)| ((name.clone(), point), value)));
        }
        self.answers.lock().unwrap().insert(order.key, answer.clone());
        answer
    }

    async fn alert(&self, alert: Alert) {
        self.alerts.lock().unwrap().push(alert);
    }
}

pub struct Bench {
    pub directory: tempfile::TempDir,
    pub authority: Arc<Authority>,
    pub wfm: Wfm,
    pub site: Arc<Site>,
    pub storage: MemoryStorage,
    pub status: watch::Receiver<ClientStatus>,
    pub running: Option<(CancellationToken, tokio::task::JoinHandle<()>)>,
    pub mode: Mode,
    /// What a client is started with otherwise.
    pub tune: fn(&mut Config),
}

impl Bench {
    pub async fn new(names: &[&str], options: impl FnOnce(&mut WfmOptions)) -> Self {
        let authority = Authority::new("plant.example").unwrap();
        let mut settings = WfmOptions::new(authority.clone());
        settings.prefix = "/v1alpha2/margo".to_owned();
        options(&mut settings);
        let wfm = Wfm::start(settings).await.unwrap();
        let bench = Self {
            directory: tempfile::tempdir().unwrap(),
            authority,
            wfm,
            site: Site::with(names),
            storage: MemoryStorage::default(),
            status: watch::channel(ClientStatus::default()).1,
            running: None,
            mode: Mode::SeeThru,
            tune: |_| {},
        };
        bench.renew(Duration::from_secs(86_400));
        bench.recipe("pump", "1.0", &json!({ "values": [{ "point": "speed", "value": 40 }] }));
        bench.recipe(
            "pump",
            "2.0",
            &json!({ "values": [{ "point": "speed", "value": 60 }, { "point": "mode", "value": "auto" }] }),
        );
        bench
    }

    pub fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    /// A new SVID and the bundle of now, as an operator installs them.
    pub fn renew(&self, life: Duration) {
        let svid = self.authority.client_svid(self.wfm.id(), "gw-7", life, Flaw::None).unwrap();
        std::fs::write(self.path("svid.pem"), &svid.chain_pem).unwrap();
        std::fs::write(self.path("svid.key"), &svid.key_pem).unwrap();
        std::fs::write(self.path("bundle.json"), self.authority.bundle().to_string()).unwrap();
        std::fs::write(self.path("web-ca.pem"), self.authority.roots_pem()).unwrap();
    }

    /// Puts a recipe into the directory of artifacts.
    pub fn recipe(&self, name: &str, tag: &str, payload: &Value) {
        let layout = self.path("artifacts").join("registry.example").join(name);
        store(&layout, tag, payload.to_string().as_bytes());
    }

    pub fn config(&self) -> Config {
        let interface = self.wfm.options().generation;
        Config {
            url: Base::new(&self.wfm.url()).unwrap(),
            generation: match interface {
                Interface::Rc3 => Generation::Rc3 {
                    bundle: BundleSource::File(self.path("bundle.json")),
                    tls: TlsVersions::Only13,
                    max_age: Duration::from_secs(3_600),
                },
                Interface::Older => Generation::Preview { ca: self.path("web-ca.pem"), pss: true },
            },
            identity: IdentityFiles { chain: self.path("svid.pem"), key: self.path("svid.key"), enrolled: None },
            mode: self.mode.clone(),
            device: DevicePath::new("gw").unwrap(),
            timeout: Duration::from_secs(10),
            polling: Polling { every: Duration::from_millis(250), ..Polling::default() },
            wildcard: Wildcard::One,
            source: SourceConfig { directory: Some(self.path("artifacts")), ..SourceConfig::default() },
            delegate: Functions { recipe: true, ..Functions::default() },
            gateway: Details { vendor: Some("Acme".into()), ..Details::default() },
            devices: BTreeMap::new(),
            directory: self.path("margo"),
        }
    }

    pub fn start(&mut self) {
        let mut config = self.config();
        (self.tune)(&mut config);
        self.start_with(config);
    }

    pub fn start_with(&mut self, config: Config) {
        let token = CancellationToken::new();
        let (status, seen) = watch::channel(ClientStatus::default());
        self.status = seen;
        let clock = SystemClock::shared();
        let time = BelievedTime::new(clock.clone(), 0);
        let (site, storage, ended) = (self.site.clone(), self.storage.clone(), token.clone());
        let task = tokio::spawn(async move {
            let member = config.members().remove(0);
            client::run(Arc::new(config), member, site, storage, clock, time, status, ended).await.unwrap();
        });
        self.running = Some((token, task));
    }

    pub async fn stop(&mut self) {
        let (token, task) = self.running.take().unwrap();
        token.cancel();
        task.await.unwrap();
    }

    pub async fn deploy(&self, deployment: Deployment) -> String {
        self.wfm.deploy(deployment).unwrap()
    }

    pub async fn reaches(&self, id: &str, device: Option<&str>, state: &str) {
        let what = format!("{id} {state} on {device:?}");
        let reached =
            self.wfm.wait(&what, PATIENCE, |seen| (seen.status(id, device)?.state == state).then_some(())).await;
        reached
            .unwrap_or_else(|error| panic!("{error}; {:?}; {:?}", *self.status.borrow(), self.wfm.records().notes()));
    }

    pub async fn problem(&mut self, part: &str) {
        let found = self.status.wait_for(|status| status.problem.contains(part));
        let found = tokio::time::timeout(PATIENCE, found).await;
        assert!(found.is_ok(), "{part:?} was never told");
    }

    /// Waits until the client has asked for the list so many times more.
    pub async fn polls(&self, more: usize) {
        let count = |seen: &fieldgate_simulators::margo::Records| seen.requests_of(Op::Manifest).count();
        let before = self.wfm.with(count);
        self.wfm.wait("polls", PATIENCE, |seen| (count(seen) >= before + more).then_some(())).await.unwrap();
    }

    pub async fn connected(&mut self) {
        let found = self
            .status
            .wait_for(|status| status.connected && status.devices_reported == status.devices && status.devices > 0);
        let found = tokio::time::timeout(PATIENCE, found).await.map(|found| found.is_ok());
        assert!(found.unwrap_or(false), "{:?}", *self.status.borrow());
    }
}

/// Writes one artifact into an OCI image layout.
pub fn store(layout: &Path, tag: &str, payload: &[u8]) {
    let digest = |bytes: &[u8]| fieldgate::margo::words::Digest::of(bytes);
    let blobs = layout.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": { "mediaType": "application/vnd.oci.empty.v1+json", "digest": digest(b"{}").to_string(), "size": 2 },
        "layers": [{ "mediaType": fieldgate::margo::component::RECIPE_TYPE, "digest": digest(payload).to_string(), "size": payload.len() }],
    })
    .to_string();
    for bytes in [payload, manifest.as_bytes()] {
        std::fs::write(blobs.join(digest(bytes).hex()), bytes).unwrap();
    }
    let path = layout.join("index.json");
    let old: Option<Value> = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let mut index = old.unwrap_or_else(|| json!({ "schemaVersion": 2, "manifests": [] }));
    index["manifests"].as_array_mut().unwrap().push(json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest(manifest.as_bytes()).to_string(),
        "size": manifest.len(), "annotations": { "org.opencontainers.image.ref.name": tag },
    }));
    std::fs::write(path, index.to_string()).unwrap();
}

pub fn pump(target: &str, revision: &str) -> Deployment {
    Deployment::custom(target, "pump-recipe").component("recipe", "oci://registry.example/pump", revision)
}
