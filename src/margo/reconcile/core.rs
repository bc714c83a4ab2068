//! The whole of it: what happened comes in, a step comes out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::place::{DeviceView, Scope, Works};
use super::record::{ORDERS, PLACEMENTS, Placement, RECORDS, Ready, ReadyPart, Record};
use super::report;
use crate::margo::api::Backoff;
use crate::margo::component::{Fetched, Work};
use crate::margo::deployment::{Deployment, DeploymentError};
use crate::margo::desired::Manifest;
use crate::margo::outbox::{self, Outbox};
use crate::margo::plant::{Before, Order, Refusal};
use crate::margo::storage::{Change, Storage, StorageError, get_blob, put_blob, read};
use crate::margo::words::{DeploymentId, DevicePath, Digest};
use crate::model::DeviceId;

/// Jobs at a time.
pub(super) const JOBS: usize = 8;
/// Shortest pause before something is tried again that may pass.
const PATIENCE: Duration = Duration::from_secs(3);

/// Names a job.
pub type JobId = u64;

/// Something to do, slow.
#[derive(Debug, Clone, PartialEq)]
pub enum Job {
    /// Fetch the components of a deployment.
    Fetch(Arc<Deployment>),
    /// Ask what is in force of what a work would change.
    Before {
        /// Where; `None` is the gateway itself.
        device: Option<DeviceId>,
        /// What would change it.
        work: Arc<Work>,
    },
    /// Carry out an order.
    Order(Order),
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Of [`Job::Fetch`]; an error says whether it may pass, a code and why.
    Fetched(Result<Vec<Fetched>, (bool, &'static str, String)>),
    /// Of [`Job::Before`].
    Before(Result<Before, Refusal>),
    /// Of [`Job::Order`].
    Done(Result<(), Refusal>),
}

/// What a step asks for: first the changes, durable, then the jobs.
#[derive(Debug, Default)]
pub struct Step {
    /// To commit in this order.
    pub changes: Vec<Change>,
    /// To begin once they are durable.
    pub jobs: Vec<(JobId, Job)>,
}

pub(super) type PlacementKey = (DeploymentId, DevicePath);

/// A job that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Running {
    Fetch(DeploymentId, Digest),
    Part(PlacementKey, String),
}

/// What is tried again later.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Retry {
    Fetch(DeploymentId),
    Part(PlacementKey, String),
}

/// Deployments on devices. See the module.
#[derive(Debug)]
pub struct Reconciler {
    pub(super) scope: Scope,
    pub(super) head: u64,
    pub(super) records: BTreeMap<DeploymentId, Record>,
    pub(super) placements: BTreeMap<PlacementKey, Placement>,
    pub(super) deployments: BTreeMap<DeploymentId, Result<Arc<Deployment>, DeploymentError>>,
    pub(super) works: Works,
    pub(super) devices: BTreeMap<DevicePath, DeviceView>,
    /// Before the first inventory nobody knows whether a child is unknown.
    inventory_known: bool,
    pub(super) outbox: Outbox,
    /// How many orders were given since the gateway was set up, and how many of them the disk knows of.
    pub(super) orders: u64,
    orders_kept: u64,
    pub(super) running: BTreeMap<JobId, Running>,
    next_job: JobId,
    retries: BTreeMap<Retry, (u64, Backoff)>,
    /// Deployments whose components cannot be used. Not durable: after a restart other settings may let them pass.
    pub(super) refused: BTreeSet<DeploymentId>,
    /// Records to place again.
    pub(super) stirred: BTreeSet<DeploymentId>,
    /// Placements and records that changed in this step.
    pub(super) changed: BTreeSet<PlacementKey>,
    pub(super) changed_records: BTreeSet<DeploymentId>,
    pub(super) step: Step,
}

impl Reconciler {
    /// Reads everything back.
    ///
    /// # Errors
    /// [`StorageError`].
    pub async fn load<S: Storage>(scope: Scope, storage: &S) -> Result<Self, StorageError> {
        let mut records = BTreeMap::new();
        for (key, value) in storage.scan(RECORDS).await? {
            let record: Record = read(&key, &value)?;
            records.insert(record.id.clone(), record);
        }
        let mut placements = BTreeMap::new();
        for (key, value) in storage.scan(PLACEMENTS).await? {
            let placement: Placement = read(&key, &value)?;
            placements.insert((placement.deployment.clone(), placement.path.clone()), placement);
        }
        let outbox = Outbox::load(&storage.scan(outbox::PREFIX).await?)?;
        let orders = match storage.scan(ORDERS).await?.first() {
            Some((key, value)) => read(key, value)?,
            None => 0,
        };
        let mut named: BTreeSet<Digest> = BTreeSet::new();
        named.extend(
            records.values().filter_map(|r| r.ready.as_ref()).flat_map(|r| r.parts.iter().map(|part| part.work)),
        );
        let parts = placements.values().flat_map(|placement| &placement.parts);
        named.extend(parts.flat_map(|part| [part.wanted, part.applied, part.touched]).flatten());
        let mut works = Works::new();
        for digest in named {
            let Some(bytes) = get_blob(storage, &digest).await? else { continue };
            works.insert(digest, Arc::new(read(&format!("work {digest}"), &bytes)?));
        }
        let stirred = records.keys().cloned().collect();
        Ok(Self {
            scope,
            head: 0,
            records,
            placements,
            deployments: BTreeMap::new(),
            works,
            devices: BTreeMap::new(),
            inventory_known: false,
            outbox,
            orders,
            orders_kept: orders,
            running: BTreeMap::new(),
            next_job: 0,
            retries: BTreeMap::new(),
            refused: BTreeSet::new(),
            stirred,
            changed: BTreeSet::new(),
            changed_records: BTreeSet::new(),
            step: Step::default(),
        })
    }

    /// A manifest is in force: after its acceptance, and after every start.
    ///
    /// # Errors
    /// [`StorageError`].
    pub fn accept(
        &mut self,
        manifest: &Manifest,
        previous: u64,
        yamls: &BTreeMap<DeploymentId, bytes::Bytes>,
        now_ns: u64,
    ) -> Result<Step, StorageError> {
        self.head = manifest.version;
        let wanted: BTreeMap<DeploymentId, Digest> =
            manifest.deployments.iter().map(|entry| (entry.id.clone(), entry.artifact.digest)).collect();
        self.deployments = yamls.iter().map(|(id, yaml)| (id.clone(), Deployment::parse(yaml).map(Arc::new))).collect();
        for (id, digest) in &wanted {
            let names = match self.deployments.get(id) {
                Some(Ok(deployment)) => deployment.component_names().map(str::to_owned).collect(),
                _ => Vec::new(),
            };
            self.want(id, Some(*digest), names, previous);
        }
        let gone: Vec<DeploymentId> = self.records.keys().filter(|id| !wanted.contains_key(*id)).cloned().collect();
        for id in gone {
            self.want(&id, None, Vec::new(), previous);
        }
        // The version that unchanged deployments are adopted at moved.
        self.changed.extend(self.placements.keys().cloned());
        self.advance(now_ns)
    }

    fn want(&mut self, id: &DeploymentId, digest: Option<Digest>, names: Vec<String>, previous: u64) {
        let head = self.head;
        let fresh = || Record {
            id: id.clone(),
            wanted: None,
            arrived: head,
            names: Vec::new(),
            ready: None,
            failed: None,
            chosen: Vec::new(),
            told: None,
            foreign: false,
        };
        let is_new = !self.records.contains_key(id);
        let record = self.records.entry(id.clone()).or_insert_with(fresh);
        self.stirred.insert(id.clone());
        if record.foreign && digest.is_some() {
            // This fleet manager wants what the one before has left: it is told of it from the beginning, by the versions of
            // its own manifests.
            (record.foreign, record.arrived, record.told) = (false, head, None);
            for (_, placement) in of_mut(&mut self.placements, id) {
                (placement.begun, placement.aligned, placement.told) = (None, None, None);
            }
            self.change_all_of(id);
            return self.want(id, digest, names, previous);
        }
        if record.wanted == digest && !is_new {
            return;
        }
        if let Some(old) = record.wanted {
            for (_, placement) in of_mut(&mut self.placements, id) {
                if let Some(begun) = placement.begun.as_mut().filter(|begun| begun.digest == old) {
                    begun.version = begun.version.max(previous);
                }
            }
        }
        record.wanted = digest;
        record.failed = None;
        if !names.is_empty() {
            record.names = names;
        }
        self.retries.remove(&Retry::Fetch(id.clone()));
        self.refused.remove(id);
        self.changed_records.insert(id.clone());
        self.change_all_of(id);
    }

    /// Who is there now.
    ///
    /// # Errors
    /// [`StorageError`].
    pub fn inventory(&mut self, devices: BTreeMap<DevicePath, DeviceView>, now_ns: u64) -> Result<Step, StorageError> {
        if self.inventory_known && devices == self.devices {
            return self.advance(now_ns);
        }
        // Who answers again is not kept waiting.
        let back = |path: &DevicePath| {
            devices.get(path).is_some_and(|view| view.reachable)
                && self.devices.get(path).is_none_or(|view| !view.reachable)
        };
        self.retries.retain(|retry, _| !matches!(retry, Retry::Part((_, path), _) if back(path)));
        self.devices = devices;
        self.inventory_known = true;
        self.stirred.extend(self.records.keys().cloned());
        self.advance(now_ns)
    }

    /// A job ended.
    ///
    /// # Errors
    /// [`StorageError`].
    pub fn done(&mut self, id: JobId, outcome: Outcome, now_ns: u64) -> Result<Step, StorageError> {
        match (self.running.remove(&id), outcome) {
            (Some(Running::Fetch(deployment, digest)), Outcome::Fetched(fetched)) => {
                self.fetched(&deployment, digest, fetched, now_ns)?;
            }
            (Some(Running::Part(key, part)), Outcome::Before(before)) => self.prepared(&key, &part, before, now_ns),
            (Some(Running::Part(key, part)), Outcome::Done(done)) => self.answered(&key, &part, done, now_ns),
            // A job of a run before: its order is given again.
            _ => {}
        }
        self.advance(now_ns)
    }

    /// Time has passed.
    ///
    /// # Errors
    /// [`StorageError`].
    pub fn wake(&mut self, now_ns: u64) -> Result<Step, StorageError> {
        self.advance(now_ns)
    }

    /// When [`Reconciler::wake`] is wanted, on the monotonic clock.
    pub fn next_wake(&self) -> Option<u64> {
        self.retries.values().map(|(due, _)| *due).min()
    }

    /// The statuses that wait.
    pub fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    /// A status was confirmed, or will never be.
    pub fn told(&mut self, number: u64) -> Change {
        self.outbox.done(number)
    }

    /// Another fleet manager is told nothing of what the one before deployed, unless it wants the same.
    ///
    /// # Errors
    /// [`StorageError::Failed`] when something cannot be written as JSON.
    pub fn forget_relation(&mut self) -> Result<Vec<Change>, StorageError> {
        let mut changes = self.outbox.forget();
        for record in self.records.values_mut() {
            record.foreign = true;
            changes.push(record.save()?);
        }
        Ok(changes)
    }

    /// Works that are named somewhere, for the sweep of blobs.
    pub fn named_works(&self) -> BTreeSet<Digest> {
        let ready = self.records.values().filter_map(|record| record.ready.as_ref());
        let parts = self.placements.values().flat_map(|placement| &placement.parts);
        let mut named: BTreeSet<Digest> = ready.flat_map(|ready| ready.parts.iter().map(|part| part.work)).collect();
        named.extend(parts.flat_map(|part| [part.wanted, part.applied, part.touched]).flatten());
        named
    }

    /// Images of firmware that are named somewhere, for the sweep of the cache.
    pub fn named_images(&self) -> BTreeSet<Digest> {
        let image = |digest: &Digest| match self.works.get(digest).map(AsRef::as_ref) {
            Some(Work::Firmware { image, .. }) => Some(*image),
            _ => None,
        };
        self.named_works().iter().filter_map(image).collect()
    }

    /// The deployments with their placements, for tables.
    pub fn view(&self) -> impl Iterator<Item = (&Record, Vec<&Placement>)> {
        self.records.values().map(|record| (record, self.placements_of(&record.id).collect()))
    }

    /// Where a deployment is.
    pub(super) fn placements_of<'a>(&'a self, id: &'a DeploymentId) -> impl Iterator<Item = &'a Placement> {
        let from = self.placements.range((id.clone(), DevicePath::least())..);
        from.take_while(move |((of, _), _)| of == id).map(|(_, placement)| placement)
    }

    pub(super) fn change_all_of(&mut self, id: &DeploymentId) {
        self.changed.extend(of_mut(&mut self.placements, id).map(|(key, _)| key.clone()));
    }

    /// The newest manifest whose revision of a deployment a device has begun; without one, the manifest that brought it.
    pub fn adopted(&self, record: &Record, placement: Option<&Placement>) -> u64 {
        placement.map_or(record.arrived, |placement| report::adopted(record, placement, self.head))
    }

    fn fetched(
        &mut self,
        id: &DeploymentId,
        digest: Digest,
        outcome: Result<Vec<Fetched>, (bool, &'static str, String)>,
        now_ns: u64,
    ) -> Result<(), StorageError> {
        self.stirred.insert(id.clone());
        self.changed_records.insert(id.clone());
        self.change_all_of(id);
        let names: Vec<String> = match self.deployments.get(id) {
            Some(Ok(deployment)) => deployment.component_names().map(str::to_owned).collect(),
            _ => return Ok(()),
        };
        let Some(record) = self.records.get_mut(id).filter(|record| record.wanted == Some(digest)) else {
            return Ok(());
        };
        match outcome {
            Ok(fetched) => {
                let mut parts = Vec::with_capacity(fetched.len());
                for (name, Fetched { work, fits, .. }) in names.into_iter().zip(fetched) {
                    let bytes = serde_json::to_vec(&work).map_err(|error| StorageError::Failed(error.to_string()))?;
                    let named = Digest::of(&bytes);
                    self.step.changes.extend(put_blob(&named, &bytes.into()));
                    self.works.insert(named, Arc::new(work));
                    parts.push(ReadyPart { name, work: named, fits });
                }
                record.ready = Some(Ready { digest, parts });
                record.failed = None;
                self.retries.remove(&Retry::Fetch(id.clone()));
            }
            Err((transient, code, why)) => {
                record.failed = Some(report::error(&self.scope.top, code, &why));
                if transient {
                    self.later(Retry::Fetch(id.clone()), now_ns);
                } else {
                    self.refused.insert(id.clone());
                }
            }
        }
        Ok(())
    }

    /// Notes that something is tried again, with growing pauses.
    pub(super) fn later(&mut self, what: Retry, now_ns: u64) {
        let (due, backoff) = self.retries.entry(what).or_default();
        // Everything here is one gateway's: there is no crowd to spread.
        let pause = backoff.pause(None, 1.0).max(PATIENCE) * 2;
        *due = now_ns.saturating_add(u64::try_from(pause.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(super) fn forget_retry(&mut self, what: &Retry) {
        self.retries.remove(what);
    }

    /// Whether something that failed may be tried again now.
    pub(super) fn may_try(&self, what: &Retry, now_ns: u64) -> bool {
        self.retries.get(what).is_none_or(|(due, _)| now_ns >= *due)
    }

    pub(super) fn begin(&mut self, running: Running, job: Job) {
        self.next_job += 1;
        self.running.insert(self.next_job, running);
        self.step.jobs.push((self.next_job, job));
    }

    /// Everything that can be done now.
    fn advance(&mut self, now_ns: u64) -> Result<Step, StorageError> {
        if self.inventory_known {
            let due = self.retries.iter().filter_map(|(retry, (due, _))| match retry {
                Retry::Fetch(id) if now_ns >= *due => Some(id.clone()),
                _ => None,
            });
            self.stirred.extend(due);
            self.go_on(now_ns);
            // Who waited for what was given up in this step is looked at again, as who has just begun to wait.
            if self.placements.values().any(Placement::is_gone) {
                let waiting = self.placements.iter().filter(|(_, placement)| placement.is_in_conflict());
                self.stirred.extend(waiting.map(|((id, _), _)| id.clone()).collect::<Vec<_>>());
            }
            if !self.stirred.is_empty() {
                self.go_on(now_ns);
            }
        }
        if self.orders != self.orders_kept {
            // Before the placements that name the orders: a number is never given twice.
            self.step.changes.push(Change::put(ORDERS.to_owned(), &self.orders)?);
            self.orders_kept = self.orders;
        }
        self.tell()?;
        Ok(std::mem::take(&mut self.step))
    }

    /// Places what is to be placed, and takes the next step of every placement that has one.
    fn go_on(&mut self, now_ns: u64) {
        for id in std::mem::take(&mut self.stirred) {
            self.place(&id, now_ns);
        }
        let keys: Vec<PlacementKey> =
            self.placements.iter().filter(|(_, p)| !self.settled(p)).map(|(key, _)| key.clone()).collect();
        for key in keys {
            // What only waits for a free place looks again when a job has ended.
            if self.running.len() < JOBS || !self.waits(&key) {
                self.step_placement(&key, now_ns);
            }
        }
    }
}

/// Where a deployment is, to change it.
pub(super) fn of_mut<'a>(
    placements: &'a mut BTreeMap<PlacementKey, Placement>,
    id: &'a DeploymentId,
) -> impl Iterator<Item = (&'a PlacementKey, &'a mut Placement)> {
    let from = placements.range_mut((id.clone(), DevicePath::least())..);
    from.take_while(move |((of, _), _)| of == id)
}
