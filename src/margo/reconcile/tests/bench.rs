//! A plant that remembers what it was told, and a reconciler whose storage may die at any commit.

use super::*;

/// Devices with points, and what was done to them.
#[derive(Default)]
pub(super) struct Plant {
    pub(super) points: BTreeMap<(String, String), Value>,
    pub(super) answers: BTreeMap<String, Result<(), Refusal>>,
    /// Every order that was really carried out.
    pub(super) done: Vec<(String, String)>,
    /// Refusals to give, by device.
    pub(super) refuse: BTreeMap<String, Refusal>,
}

impl Plant {
    pub(super) fn name(device: Option<&DeviceId>) -> String {
        device.map_or("gateway", DeviceId::as_str).to_owned()
    }

    pub(super) fn before(&self, device: Option<&DeviceId>, work: &Work) -> Result<Before, Refusal> {
        let Work::Recipe { values } = work else {
            return Ok(Before { token: Some("v1".to_owned()), ..Before::default() });
        };
        let name = Self::name(device);
        let now = |value: &PointValue| {
            let held = self.points.get(&(name.clone(), value.point.clone())).cloned().unwrap_or(json!(0));
            (value.point.clone(), held)
        };
        Ok(Before { values: values.iter().map(now).collect(), token: None })
    }

    pub(super) fn carry_out(&mut self, order: &Order) -> Result<(), Refusal> {
        if let Some(answer) = self.answers.get(&order.key) {
            return answer.clone();
        }
        let name = Self::name(order.device.as_ref());
        let answer = match self.refuse.get(&name) {
            Some(refusal) => Err(refusal.clone()),
            None => {
                self.write(&name, &order.act);
                Ok(())
            }
        };
        self.answers.insert(order.key.clone(), answer.clone());
        answer
    }

    pub(super) fn write(&mut self, name: &str, act: &Act) {
        let (kind, values) = match act {
            Act::Apply { work: Work::Recipe { values }, .. } => {
                ("apply", values.iter().map(|v| (v.point.clone(), v.value.clone())).collect())
            }
            Act::Undo { before, .. } => ("undo", before.values.clone()),
            Act::Apply { .. } => ("apply", BTreeMap::new()),
        };
        self.done.push((name.to_owned(), kind.to_owned()));
        for (point, value) in values {
            self.points.insert((name.to_owned(), point), value);
        }
    }

    pub(super) fn point(&self, device: &str, point: &str) -> Option<i64> {
        self.points.get(&(device.to_owned(), point.to_owned()))?.as_i64()
    }
}

pub(super) struct Bench {
    pub(super) storage: MemoryStorage,
    pub(super) plant: Plant,
    pub(super) reconciler: Reconciler,
    pub(super) works: BTreeMap<String, Work>,
    pub(super) fits: Fits,
    pub(super) manifest: Manifest,
    pub(super) previous: u64,
    pub(super) yamls: BTreeMap<DeploymentId, Bytes>,
    pub(super) devices: BTreeMap<DevicePath, DeviceView>,
    pub(super) scope: Scope,
    pub(super) told: Vec<DeploymentStatus>,
    pub(super) jobs: Vec<(JobId, Job)>,
    pub(super) now: u64,
    pub(super) deaths: usize,
}

pub(super) fn path(text: &str) -> DevicePath {
    DevicePath::new(text).unwrap()
}

pub(super) fn view(device: Option<&str>) -> DeviceView {
    let all = Functions { configuration: true, recipe: true, firmware: true };
    DeviceView {
        device: device.map(|device| DeviceId::new(device).unwrap()),
        identity: Identity { vendor: Some("Acme".to_owned()), model: Some("P-100".to_owned()), serial: None },
        hardware: String::new(),
        protocol: "modbus-tcp".to_owned(),
        functions: all,
        able: all,
        reachable: true,
        connecting: false,
        engine: None,
        lost: BTreeSet::new(),
    }
}

pub(super) fn manifest(version: u64, deployments: &BTreeMap<DeploymentId, Bytes>) -> Manifest {
    let list: Vec<_> = deployments
        .iter()
        .map(|(id, yaml)| json!({ "deploymentId": id.as_str(), "digest": Digest::of(yaml).to_string(), "url": "" }))
        .collect();
    Manifest::parse(json!({ "manifestVersion": version, "deployments": list }).to_string().as_bytes()).unwrap()
}

impl Bench {
    pub(super) async fn new() -> Self {
        let storage = MemoryStorage::default();
        let scope = Scope { top: path("gw"), opaque: false, wildcard: Wildcard::One };
        let devices = [("gw", None), ("gw/a", Some("a")), ("gw/b", Some("b")), ("gw/c", Some("c"))];
        Self {
            reconciler: Reconciler::load(scope.clone(), &storage).await.unwrap(),
            storage,
            plant: Plant::default(),
            works: BTreeMap::from([
                ("r1".to_owned(), recipe(&[("speed", 10)])),
                ("r2".to_owned(), recipe(&[("speed", 20), ("mode", 2)])),
                ("mode".to_owned(), recipe(&[("mode", 5)])),
                ("cfg".to_owned(), Work::Configuration { document: json!({}) }),
            ]),
            fits: Fits::default(),
            manifest: manifest(1, &BTreeMap::new()),
            previous: 0,
            yamls: BTreeMap::new(),
            devices: devices.into_iter().map(|(at, device)| (path(at), view(device))).collect(),
            scope,
            told: Vec::new(),
            jobs: Vec::new(),
            now: 0,
            deaths: 0,
        }
    }

    /// What the fleet manager wants from now on: number, target, components by the names of their works.
    pub(super) async fn want(&mut self, deployments: &[(usize, &str, &[&str])]) {
        self.wish(deployments).await;
        self.settle().await;
    }

    /// As [`Bench::want`], and nothing is done yet.
    pub(super) async fn wish(&mut self, deployments: &[(usize, &str, &[&str])]) {
        let yaml = |(n, target, works): &(usize, &str, &[&str])| {
            let components: Vec<(&str, &str)> =
                works.iter().map(|work| (work.split('@').next().unwrap(), *work)).collect();
            (DeploymentId::new(&id(*n)).unwrap(), Bytes::from(example(&id(*n), target, &components, " {}")))
        };
        self.yamls = deployments.iter().map(yaml).collect();
        self.previous = self.manifest.version;
        self.manifest = manifest(self.previous + 1, &self.yamls);
        let step = self.reconciler.accept(&self.manifest, self.previous, &self.yamls, self.now);
        self.take(step).await;
    }

    /// Looks at who is there, and nothing is done yet.
    pub(super) async fn see(&mut self) {
        let step = self.reconciler.inventory(self.devices.clone(), self.now);
        self.take(step).await;
    }

    pub(super) async fn look(&mut self) {
        self.see().await;
        self.settle().await;
    }

    pub(super) async fn set(&mut self, device: &str, change: impl FnOnce(&mut DeviceView)) {
        change(self.devices.get_mut(&path(device)).unwrap());
        self.look().await;
    }

    /// Time passes, and nothing is done yet.
    pub(super) async fn wait(&mut self, seconds: u64) {
        self.now += seconds * 1_000_000_000;
        let step = self.reconciler.wake(self.now);
        self.take(step).await;
    }

    pub(super) async fn pass(&mut self, seconds: u64) {
        self.wait(seconds).await;
        self.settle().await;
    }

    /// Commits a step; a failed commit is a death, after which everything is read back.
    pub(super) async fn take(&mut self, step: Result<Step, StorageError>) {
        let step = step.unwrap();
        match commit_in_order(&self.storage, step.changes).await {
            Ok(()) => self.jobs.extend(step.jobs),
            Err(_) => Box::pin(self.rise()).await,
        }
    }

    pub(super) async fn rise(&mut self) {
        self.deaths += 1;
        self.storage.die_after(None);
        self.jobs.clear();
        self.reconciler = Reconciler::load(self.scope.clone(), &self.storage).await.unwrap();
        let step = self.reconciler.accept(&self.manifest, self.previous, &self.yamls, self.now);
        self.take(step).await;
        self.see().await;
    }

    /// Does every job, and hands statuses to the fleet manager, until nothing is left.
    pub(super) async fn settle(&mut self) {
        loop {
            self.tell().await;
            if self.jobs.is_empty() {
                return;
            }
            self.do_job(0).await;
        }
    }

    /// Hands the statuses that wait to the fleet manager.
    pub(super) async fn tell(&mut self) {
        while let Some((number, status)) = self.reconciler.outbox().first() {
            let status = status.clone();
            let change = self.reconciler.told(number);
            if self.told.last() != Some(&status) {
                self.told.push(status);
            }
            if self.storage_commit(change).await.is_err() {
                Box::pin(self.rise()).await;
            }
        }
    }

    /// Does one of the jobs that wait.
    pub(super) async fn do_job(&mut self, at: usize) {
        let (id, job) = self.jobs.remove(at);
        let outcome = self.work(&job);
        let step = self.reconciler.done(id, outcome, self.now);
        self.take(step).await;
    }

    pub(super) async fn storage_commit(&self, change: crate::margo::storage::Change) -> Result<(), StorageError> {
        use crate::margo::storage::Storage;
        self.storage.commit(vec![change]).await
    }

    pub(super) fn work(&mut self, job: &Job) -> Outcome {
        match job {
            Job::Fetch(deployment) => {
                let fetched = |revision: &str| {
                    let work = self.works.get(revision).cloned();
                    work.map(|work| Fetched { work, fits: self.fits.clone(), artifact: Digest::of(b"") })
                };
                let all: Option<Vec<Fetched>> = deployment.components.iter().map(|c| fetched(&c.revision)).collect();
                Outcome::Fetched(all.ok_or((true, "artifact-unavailable", "it is not there".to_owned())))
            }
            Job::Before { device, work } => Outcome::Before(self.plant.before(device.as_ref(), work)),
            Job::Order(order) => Outcome::Done(self.plant.carry_out(order)),
        }
    }

    /// The states that were told of a deployment on a device, in order.
    pub(super) fn states(&self, n: usize, device: Option<&str>) -> Vec<&'static str> {
        let of = |status: &&DeploymentStatus| {
            status.deployment_id.as_str() == id(n) && status.device.as_ref().map(DevicePath::as_str) == device
        };
        let mut states: Vec<_> = self.told.iter().filter(of).map(|status| status.state.as_str()).collect();
        states.dedup();
        states
    }

    pub(super) fn last(&self, n: usize, device: Option<&str>) -> &DeploymentStatus {
        let of = |status: &&DeploymentStatus| {
            status.deployment_id.as_str() == id(n) && status.device.as_ref().map(DevicePath::as_str) == device
        };
        self.told.iter().rfind(of).unwrap()
    }

    pub(super) fn code(&self, n: usize, device: Option<&str>) -> String {
        self.last(n, device).error.as_ref().map(|error| error.code.clone()).unwrap_or_default()
    }
}
