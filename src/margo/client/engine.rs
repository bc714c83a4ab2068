//! The loop.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::errand::{Answer, Errand};
use super::leave::{LeaveFile, Leaving, Wish};
use super::status::ClientStatus;
use crate::margo::api::{Backoff, Dialect};
use crate::margo::capabilities::Roster;
use crate::margo::component::Source;
use crate::margo::config::Config;
use crate::margo::desired::{Exchange, Head, HeadStore};
use crate::margo::plant::Plant;
use crate::margo::reconcile::{Job, JobId, Outcome, Reconciler, Scope, Step};
use crate::margo::schema;
use crate::margo::storage::{Storage, StorageError, commit_in_order};
use crate::margo::survey::survey;
use crate::margo::words::Digest;
use crate::model::{ClockTrust, DeviceId};
use crate::platform::clock::SharedClock;

/// Why the client ended; it is started again, and goes on from what is durable.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The storage.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// What a client is made of.
#[derive(Debug)]
pub struct Parts<P, S, X> {
    /// Settings.
    pub config: Arc<Config>,
    /// What it speaks for.
    pub scope: Scope,
    /// The one device of a client of a transparent gateway.
    pub only: Option<DeviceId>,
    /// The gateway.
    pub plant: Arc<P>,
    /// Its disk.
    pub storage: S,
    /// The way to the fleet manager.
    pub exchange: Arc<X>,
    /// Where components come from.
    pub source: Arc<Source>,
    /// Clocks.
    pub clock: SharedClock,
}

/// A client of one fleet manager. See the module.
pub struct Client<P, S, X> {
    pub(super) parts: Parts<P, S, X>,
    pub(super) dialect: Arc<dyn Dialect>,
    /// Our name towards the fleet manager; empty while there is none. Told anew whenever the identity was exchanged.
    pub(super) identity: watch::Receiver<String>,
    pub(super) reconciler: Reconciler,
    pub(super) roster: Roster,
    pub(super) head: Option<Head>,
    pub(super) held: BTreeMap<Digest, Bytes>,
    pub(super) errands: JoinSet<Answer>,
    pub(super) jobs: JoinSet<(JobId, Outcome)>,
    pub(super) backoff: Backoff,
    /// Nothing is sent before, on the monotonic clock.
    pub(super) not_before_ns: u64,
    pub(super) poll_due_ns: u64,
    pub(super) status: watch::Sender<ClientStatus>,
    /// Alerts that were raised, so that a standing problem is raised once.
    pub(super) raised: BTreeSet<String>,
    /// Whether the table of deployments is to be made anew, and not before which monotonic time.
    pub(super) lines_stale: bool,
    pub(super) lines_due_ns: u64,
    /// Whether somebody wants to leave.
    pub(super) wish: Option<Wish>,
}

impl<P, S, X> std::fmt::Debug for Client<P, S, X> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("head", &self.head).finish_non_exhaustive()
    }
}

pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl<P: Plant, S: Storage + Clone, X: Exchange> Client<P, S, X> {
    /// Reads back what is durable.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn load(
        parts: Parts<P, S, X>,
        dialect: Arc<dyn Dialect>,
        identity: watch::Receiver<String>,
        status: watch::Sender<ClientStatus>,
    ) -> Result<Self, ClientError> {
        let storage = &parts.storage;
        let mut reconciler = Reconciler::load(parts.scope.clone(), storage).await?;
        let roster = Roster::load(&storage.scan(Roster::PREFIX).await?)?;
        let (mut head, mut held, mut begun) = (None, BTreeMap::new(), Step::default());
        if let Some((found, manifest, yamls)) = HeadStore(storage).load().await? {
            // A crash between head and records is mended here: the records follow from the manifest.
            begun = reconciler.accept(&manifest, found.previous, &yamls, parts.clock.mono_ns())?;
            held = yamls.into_values().map(|yaml| (Digest::of(&yaml), yaml)).collect();
            head = Some(found);
        }
        let backoff = Backoff::upto(parts.config.polling.every);
        let wish = LeaveFile::new(&parts.config.directory).wish();
        let mut client = Self {
            parts,
            dialect,
            identity,
            reconciler,
            roster,
            head,
            held,
            errands: JoinSet::new(),
            jobs: JoinSet::new(),
            backoff,
            not_before_ns: 0,
            poll_due_ns: 0,
            status,
            raised: BTreeSet::new(),
            lines_stale: true,
            lines_due_ns: 0,
            wish,
        };
        client.take(begun).await?;
        client.sweep().await?;
        Ok(client)
    }

    /// Runs until `token` is cancelled.
    ///
    /// # Errors
    /// [`ClientError`] when a step could not be made durable.
    pub async fn run(mut self, token: CancellationToken) -> Result<(), ClientError> {
        let plant = self.parts.plant.clone();
        let mut changed = watch_plant(plant.clone());
        self.relate().await?;
        self.look().await?;
        loop {
            if self.retreats() {
                self.roster.want(Vec::new());
            }
            self.begin_errand().await?;
            self.publish();
            let (nap, leave) = (self.nap(), self.leave_file());
            tokio::select! {
                () = token.cancelled() => return Ok(()),
                Some(answer) = self.errands.join_next() => match answer {
                    Ok(answer) => self.answered(answer).await?,
                    Err(error) => tracing::error!(%error, "a request to the fleet manager failed in itself"),
                },
                Some(job) = self.jobs.join_next() => match job {
                    Ok((id, outcome)) => {
                        let step = self.reconciler.done(id, outcome, self.parts.clock.mono_ns())?;
                        self.take(step).await?;
                    }
                    // Its order stays open and is given again after the next start.
                    Err(error) => tracing::error!(%error, "a job of a deployment failed in itself"),
                },
                () = &mut changed => {
                    changed = watch_plant(plant.clone());
                    self.look().await?;
                }
                Ok(()) = self.identity.changed() => self.new_identity().await?,
                () = leave.turns(self.wish) => self.new_wish().await?,
                () = tokio::time::sleep(nap) => {
                    let step = self.reconciler.wake(self.parts.clock.mono_ns())?;
                    self.take(step).await?;
                }
            }
        }
    }

    /// Until something is due; at most ten seconds, so that a stepped clock or an opened window is noticed.
    fn nap(&self) -> Duration {
        let now = self.parts.clock.mono_ns();
        let mut due = vec![now + nanos(Duration::from_secs(10))];
        if self.errands.is_empty() {
            due.push(self.poll_due_ns.max(self.not_before_ns));
            if self.not_before_ns > now {
                due.push(self.not_before_ns);
            }
        }
        due.extend(self.reconciler.next_wake());
        due.extend(self.lines_stale.then_some(self.lines_due_ns));
        let next = due.into_iter().filter(|at| *at > now).min().unwrap_or(now);
        Duration::from_nanos(next.saturating_sub(now)).max(Duration::from_millis(20))
    }

    pub(super) fn second(&self) -> Option<i64> {
        let now = self.parts.clock.now();
        (now.trust != ClockTrust::Unsynchronised).then_some(now.wall_ms.div_euclid(1_000))
    }

    async fn begin_errand(&mut self) -> Result<(), ClientError> {
        let now = self.parts.clock.mono_ns();
        let second = self.second();
        let polling = &self.parts.config.polling;
        let ended = self.status.borrow().retired || self.leaving() == Leaving::Left;
        let quiet = ended || polling.is_down(second) || now < self.not_before_ns;
        if quiet || !self.errands.is_empty() {
            return Ok(());
        }
        let errand = if let Some(act) = self.roster.next() {
            if let Some(change) = self.roster.asked(&act)? {
                self.parts.storage.commit(vec![change]).await?;
            }
            Some(Errand::Report(act))
        } else if now >= self.poll_due_ns && polling.is_open(second) {
            Some(Errand::Poll { head: self.head.clone(), held: self.held.clone() })
        } else {
            let first = self.reconciler.outbox().first();
            first.map(|(number, status)| Errand::Tell(number, Box::new(status.clone())))
        };
        if let Some(errand) = errand {
            let wall = self.parts.clock.wall_ms().div_euclid(1_000);
            self.errands.spawn(errand.run(self.parts.exchange.clone(), self.dialect.clone(), wall));
        }
        Ok(())
    }

    /// Looks at the plant again.
    pub(super) async fn look(&mut self) -> Result<(), ClientError> {
        let Some(inventory) = self.parts.plant.inventory().await else { return Ok(()) };
        let found = survey(&self.parts.config, &self.parts.scope, self.parts.only.as_ref(), &inventory);
        let (good, bad): (Vec<_>, Vec<_>) =
            found.report.into_iter().partition(|device| schema::capabilities(&device.to_json()).is_empty());
        for device in bad {
            let why = schema::capabilities(&device.to_json()).join("; ");
            self.alert(
                "margo-report-invalid",
                false,
                format!("{} is not reported to the fleet manager: {why}", device.id),
            )
            .await;
        }
        self.roster.want(if self.retreats() { Vec::new() } else { good });
        let step = self.reconciler.inventory(found.places, self.parts.clock.mono_ns())?;
        self.take(step).await
    }

    /// Makes a step durable and begins its jobs.
    pub(super) async fn take(&mut self, step: Step) -> Result<(), ClientError> {
        self.lines_stale |= !step.changes.is_empty();
        commit_in_order(&self.parts.storage, step.changes).await?;
        for (id, job) in step.jobs {
            let (plant, source) = (self.parts.plant.clone(), self.parts.source.clone());
            self.jobs.spawn(async move { (id, carry_out(job, &*plant, &source).await) });
        }
        Ok(())
    }
}

fn watch_plant<P: Plant>(plant: Arc<P>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move { plant.changed().await })
}

async fn carry_out<P: Plant>(job: Job, plant: &P, source: &Source) -> Outcome {
    match job {
        Job::Fetch(deployment) => Outcome::Fetched(source.fetch_all(&deployment).await.map_err(|error| {
            let code = if error.is_transient() { "artifact-unavailable" } else { "artifact-refused" };
            (error.is_transient(), code, error.to_string())
        })),
        Job::Before { device, work } => Outcome::Before(plant.before(device.as_ref(), &work).await),
        Job::Order(order) => Outcome::Done(plant.carry_out(order).await),
    }
}
