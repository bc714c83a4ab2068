//! The Margo client against the simulated fleet manager: whole ways through TLS, HTTP and the reconciler, and every fault.
#![cfg(feature = "margo")]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fieldgate::margo::api::Base;
use fieldgate::margo::capabilities::is_label;
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
use fieldgate_simulators::margo::{Authority, Deployment, Fault, Flaw, Op, Rule, Wfm, WfmOptions};
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(90);

/// Devices with points.
#[derive(Default)]
struct Site {
    children: Mutex<Vec<Child>>,
    points: Mutex<BTreeMap<(String, String), Value>>,
    answers: Mutex<BTreeMap<String, Result<(), Refusal>>>,
    refuse: Mutex<Option<Refusal>>,
    alerts: Mutex<Vec<Alert>>,
    changed: Notify,
}

impl Site {
    fn with(names: &[&str]) -> Arc<Self> {
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
        };
        let site = Self::default();
        *site.children.lock().unwrap() = names.iter().map(child).collect();
        Arc::new(site)
    }

    fn point(&self, device: &str, point: &str) -> Option<Value> {
        self.points.lock().unwrap().get(&(device.to_owned(), point.to_owned())).cloned()
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Child>)) {
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

struct Bench {
    directory: tempfile::TempDir,
    authority: Arc<Authority>,
    wfm: Wfm,
    site: Arc<Site>,
    storage: MemoryStorage,
    status: watch::Receiver<ClientStatus>,
    running: Option<(CancellationToken, tokio::task::JoinHandle<()>)>,
    mode: Mode,
}

impl Bench {
    async fn new(names: &[&str], options: impl FnOnce(&mut WfmOptions)) -> Self {
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

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    /// A new SVID and the bundle of now, as an operator installs them.
    fn renew(&self, life: Duration) {
        let svid = self.authority.client_svid(self.wfm.id(), "gw-7", life, Flaw::None).unwrap();
        std::fs::write(self.path("svid.pem"), &svid.chain_pem).unwrap();
        std::fs::write(self.path("svid.key"), &svid.key_pem).unwrap();
        std::fs::write(self.path("bundle.json"), self.authority.bundle().to_string()).unwrap();
        std::fs::write(self.path("web-ca.pem"), self.authority.roots_pem()).unwrap();
    }

    /// Puts a recipe into the directory of artifacts.
    fn recipe(&self, name: &str, tag: &str, payload: &Value) {
        let layout = self.path("artifacts").join("registry.example").join(name);
        store(&layout, tag, payload.to_string().as_bytes());
    }

    fn config(&self) -> Config {
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
            identity: IdentityFiles { chain: self.path("svid.pem"), key: self.path("svid.key") },
            mode: self.mode.clone(),
            device: DevicePath::new("gw").unwrap(),
            timeout: Duration::from_secs(10),
            polling: Polling { every: Duration::from_secs(1), ..Polling::default() },
            wildcard: Wildcard::One,
            source: SourceConfig { directory: Some(self.path("artifacts")), ..SourceConfig::default() },
            delegate: Functions { recipe: true, ..Functions::default() },
            gateway: Details { vendor: Some("Acme".into()), ..Details::default() },
            devices: BTreeMap::new(),
            directory: self.path("margo"),
        }
    }

    fn start(&mut self) {
        self.start_with(self.config());
    }

    fn start_with(&mut self, config: Config) {
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

    async fn stop(&mut self) {
        let (token, task) = self.running.take().unwrap();
        token.cancel();
        task.await.unwrap();
    }

    async fn deploy(&self, deployment: Deployment) -> String {
        self.wfm.deploy(deployment).unwrap()
    }

    async fn reaches(&self, id: &str, device: Option<&str>, state: &str) {
        let what = format!("{id} {state} on {device:?}");
        let reached =
            self.wfm.wait(&what, PATIENCE, |seen| (seen.status(id, device)?.state == state).then_some(())).await;
        reached
            .unwrap_or_else(|error| panic!("{error}; {:?}; {:?}", *self.status.borrow(), self.wfm.records().notes()));
    }

    async fn problem(&mut self, part: &str) {
        let found = self.status.wait_for(|status| status.problem.contains(part));
        let found = tokio::time::timeout(PATIENCE, found).await;
        assert!(found.is_ok(), "{part:?} was never told");
    }

    /// Waits until the client has asked for the list so many times more.
    async fn polls(&self, more: usize) {
        let count = |seen: &fieldgate_simulators::margo::Records| seen.requests_of(Op::Manifest).count();
        let before = self.wfm.with(count);
        self.wfm.wait("polls", PATIENCE, |seen| (count(seen) >= before + more).then_some(())).await.unwrap();
    }

    async fn connected(&mut self) {
        let found = self
            .status
            .wait_for(|status| status.connected && status.devices_reported == status.devices && status.devices > 0);
        let found = tokio::time::timeout(PATIENCE, found).await.map(|found| found.is_ok());
        assert!(found.unwrap_or(false), "{:?}", *self.status.borrow());
    }
}

/// Writes one artifact into an OCI image layout.
fn store(layout: &Path, tag: &str, payload: &[u8]) {
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

fn pump(target: &str, revision: &str) -> Deployment {
    Deployment::custom(target, "pump-recipe").component("recipe", "oci://registry.example/pump", revision)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_reaches_a_device_is_updated_and_removed() {
    let mut bench = Bench::new(&["a", "b"], |_| {}).await;
    bench.start();
    bench.wfm.wait("children", PATIENCE, |seen| seen.devices.contains_key("gw/b").then_some(())).await.unwrap();
    let labels = bench.wfm.with(|seen| seen.devices["gw/a"].capabilities["labels"].clone());
    assert!(labels.as_object().unwrap().values().all(is_label));
    let id = bench.deploy(pump("gw/a", "1.0").parameter("speed", 45, "/values/speed", "recipe")).await;
    bench.reaches(&id, Some("gw/a"), "installed").await;
    assert_eq!(bench.site.point("a", "speed"), Some(json!(45)));
    let before = bench.wfm.with(|seen| seen.manifests.back().unwrap().version);
    let update = Deployment { id: id.clone(), ..pump("gw/a", "2.0") };
    bench.deploy(update).await;
    let updated = |seen: &fieldgate_simulators::margo::Records| {
        let status = seen.status(&id, Some("gw/a"))?;
        (status.state == "installed" && status.adopted? > before).then_some(())
    };
    bench.wfm.wait("the update", PATIENCE, updated).await.unwrap();
    assert_eq!(bench.site.point("a", "mode"), Some(json!("auto")));
    let unknown = bench.deploy(pump("gw/nobody", "1.0")).await;
    bench.reaches(&unknown, Some("gw/nobody"), "failed").await;
    assert!(bench.wfm.remove(&id) && bench.wfm.remove(&unknown));
    bench.reaches(&id, Some("gw/a"), "removed").await;
    assert_eq!((bench.site.point("a", "speed"), bench.site.point("b", "speed")), (Some(json!(0)), None));
    bench.site.change(|children| drop(children.pop()));
    bench
        .wfm
        .wait("a child that left", PATIENCE, |seen| (!seen.devices.contains_key("gw/b")).then_some(()))
        .await
        .unwrap();
    assert_eq!(bench.wfm.records().notes(), Vec::<String>::new(), "nothing that we sent contradicts the reference");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_steady_poll_costs_one_conditional_request_and_a_restart_sends_nothing_again() {
    let mut bench = Bench::new(&["a"], |_| {}).await;
    bench.start();
    let id = bench.deploy(pump("gw/a", "1.0")).await;
    bench.reaches(&id, Some("gw/a"), "installed").await;
    bench.polls(3).await;
    bench.stop().await;
    let (reports, statuses, answers) = bench.wfm.with(|seen| {
        (
            seen.requests_of(Op::Capabilities).count(),
            seen.requests_of(Op::Status).count(),
            seen.count(Op::Manifest, 304),
        )
    });
    assert!(answers >= 2, "polls are conditional");
    bench.start();
    bench.polls(3).await;
    bench.stop().await;
    bench.wfm.with(|seen| {
        assert_eq!(seen.requests_of(Op::Capabilities).count(), reports);
        assert_eq!(seen.requests_of(Op::Status).count(), statuses);
        let last = seen.requests_of(Op::Manifest).last().unwrap();
        assert!(last.if_none_match.is_some());
    });
    assert_eq!(bench.site.answers.lock().unwrap().len(), 1, "nothing is applied again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_spoilt_manifest_and_artifact_is_refused_whole_and_the_right_one_accepted_afterwards() {
    let faults = [
        Fault::EntryDigest { index: 3 },
        Fault::BundleDigest,
        Fault::Sha512,
        Fault::Sha512Entry { index: 5 },
        // Older than what is held, and the same version with another content: the client holds version 2 by then.
        Fault::Version { value: 1 },
        Fault::Version { value: 2 },
        Fault::ManifestGarbage,
        Fault::AlteredDeployment { index: 2 },
        Fault::WrongId { index: 1 },
        Fault::DeploymentGarbage { index: 4 },
        Fault::ExtraFile,
        Fault::MissingFile { index: 0 },
        Fault::DuplicateFile,
        Fault::NestedFiles,
        Fault::Names { names: vec!["../../etc/passwd".to_owned()] },
        Fault::Symlink,
        Fault::Bomb { mebibytes: 200 },
        Fault::BundleGarbage,
        Fault::ArtifactMissing,
    ];
    for fault in faults {
        let mut bench = Bench::new(&["a"], |_| {}).await;
        bench.start();
        bench.connected().await;
        bench.polls(1).await;
        let first = bench.deploy(pump("gw/a", "1.0")).await;
        bench.reaches(&first, Some("gw/a"), "installed").await;
        bench.stop().await;
        let version = bench.status.borrow().manifest_version;
        assert_eq!(version, 2);
        bench.wfm.inject(fault.clone());
        for _ in 0..9 {
            bench.deploy(pump("gw/nobody", "1.0")).await;
        }
        assert!(bench.wfm.remove(&first));
        bench.start();
        let refused = bench
            .status
            .wait_for(|status| status.polled_ms == 0 && status.manifest_version > 0 && !status.problem.is_empty());
        assert!(
            tokio::time::timeout(PATIENCE, refused).await.is_ok_and(|seen| seen.is_ok()),
            "{fault:?} was never refused"
        );
        assert_eq!(bench.status.borrow().manifest_version, version, "{fault:?} was accepted");
        assert_eq!(bench.site.point("a", "speed"), Some(json!(40)), "{fault:?} changed something");
        assert!(bench.wfm.with(|seen| seen.status(&first, Some("gw/a")).unwrap().state == "installed"), "{fault:?}");
        bench.wfm.clear_faults();
        bench.reaches(&first, Some("gw/a"), "removed").await;
        bench.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_only_odd_is_accepted() {
    let faults = [
        Fault::SizesLie { by: -7 },
        Fault::SizesMissing,
        Fault::UnknownFields,
        Fault::BundleNull,
        Fault::EtagIgnored,
        Fault::EtagMissing,
    ];
    let mut bench = Bench::new(&["a"], |_| {}).await;
    faults.into_iter().for_each(|fault| bench.wfm.inject(fault));
    bench.start();
    let id = bench.deploy(pump("gw/a", "1.0")).await;
    bench.reaches(&id, Some("gw/a"), "installed").await;
    bench.polls(3).await;
    assert!(bench.site.alerts.lock().unwrap().is_empty(), "an identical re-delivery is no rollback");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_manager_with_a_flawed_svid_is_not_spoken_to() {
    let mut bench = Bench::new(&["a"], |_| {}).await;
    for flaw in Flaw::ALL {
        bench.wfm.serve(flaw).unwrap();
        bench.wfm.disconnect().await.unwrap();
        let requests = bench.wfm.with(|seen| seen.clients.values().map(|client| client.requests).sum::<u64>());
        bench.start();
        bench.problem("no connection that both sides believe").await;
        let after = bench.wfm.with(|seen| seen.clients.values().map(|client| client.requests).sum::<u64>());
        assert_eq!(after, requests, "{flaw:?}");
        bench.stop().await;
    }
    bench.wfm.serve(Flaw::None).unwrap();
    bench.start();
    bench.connected().await;
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_and_anchors_are_exchanged_while_running() {
    let mut bench = Bench::new(&["a"], |_| {}).await;
    bench.start();
    bench.connected().await;
    let before = bench.wfm.with(|seen| seen.clients.values().next().unwrap().certificate.clone());
    bench.authority.add_root().unwrap();
    bench.renew(Duration::from_secs(86_400));
    let changed = |seen: &fieldgate_simulators::margo::Records| {
        seen.clients.values().any(|client| client.certificate != before).then_some(())
    };
    bench.wfm.wait("the new certificate", PATIENCE, changed).await.unwrap();
    bench.authority.retire_old_roots();
    bench.renew(Duration::from_secs(86_400));
    bench.wfm.serve(Flaw::None).unwrap();
    bench.wfm.disconnect().await.unwrap();
    let id = bench.deploy(pump("gw/a", "1.0")).await;
    bench.reaches(&id, Some("gw/a"), "installed").await;
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statuses_wait_while_the_fleet_manager_refuses_them_and_arrive_in_order() {
    let mut bench = Bench::new(&["a"], |_| {}).await;
    bench.start();
    bench.connected().await;
    let busy = Fault::Problem {
        name: "server-cannot-generate-response".to_owned(),
        status: 503,
        root: Default::default(),
        retry_after: Some(1),
        retryable: Some(true),
        retry_after_seconds: None,
        backoff: Some("fixed".to_owned()),
    };
    bench.wfm.inject(Rule::from(busy).on(Op::Status).times(3));
    bench.wfm.inject(Rule::from(Fault::LoseAnswer).on(Op::Status).times(1));
    let id = bench.deploy(pump("gw/a", "1.0")).await;
    bench.reaches(&id, Some("gw/a"), "installed").await;
    let mut states: Vec<String> =
        bench.wfm.with(|seen| seen.statuses.iter().filter(|s| s.deployment == id).map(|s| s.state.clone()).collect());
    states.dedup();
    assert_eq!(states, ["pending", "installing", "installed"]);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retired_relationship_stops_all_requests_and_raises_an_alarm() {
    let mut bench = Bench::new(&["a"], |_| {}).await;
    bench.start();
    bench.connected().await;
    bench.wfm.inject(Fault::Retired);
    let retired = bench.status.wait_for(|status| status.retired);
    tokio::time::timeout(PATIENCE, retired).await.unwrap().unwrap();
    let requests = bench.wfm.with(|seen| seen.requests.len());
    bench.wfm.clear_faults();
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(bench.wfm.with(|seen| seen.requests.len()), requests, "nothing is sent any more");
    assert!(bench.site.alerts.lock().unwrap().iter().any(|alert| alert.code == "margo-retired"));
    // A new identity begins anew.
    bench.renew(Duration::from_secs(86_400));
    bench.polls(1).await;
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_older_interface_is_onboarded_signed_and_deployed_to() {
    let mut bench = Bench::new(&["a"], |options| options.generation = Interface::Older).await;
    bench.start();
    let id = bench.deploy(pump("gw/a", "1.0")).await;
    bench.reaches(&id, Some("gw/a"), "installed").await;
    bench.stop().await;
    bench.start();
    bench.polls(2).await;
    assert_eq!(bench.wfm.with(|seen| seen.requests_of(Op::Onboarding).count()), 1, "the client id is kept");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_health_gate_is_reported_and_the_old_revision_stays() {
    let mut bench = Bench::new(&["a"], |_| {}).await;
    bench.start();
    let id = bench.deploy(pump("gw/a", "1.0")).await;
    bench.reaches(&id, Some("gw/a"), "installed").await;
    *bench.site.refuse.lock().unwrap() = Some(Refusal::new("health-gate", "values went bad; set back"));
    bench.deploy(Deployment { id: id.clone(), ..pump("gw/a", "2.0") }).await;
    bench.reaches(&id, Some("gw/a"), "failed").await;
    let error = bench.wfm.with(|seen| seen.status(&id, Some("gw/a")).unwrap().body["status"]["error"].clone());
    assert_eq!((&error["code"], &error["source"]), (&json!("health-gate"), &json!("gw/a")));
    assert_eq!(bench.site.point("a", "speed"), Some(json!(40)));
    bench.stop().await;
}
