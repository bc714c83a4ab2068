//! The loop.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::Rng;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::errand::{Answer, Errand};
use super::status::{ClientStatus, DeploymentLine};
use crate::margo::api::{Backoff, Dialect, Problem, StatusError, Verdict, judge, overall};
use crate::margo::capabilities::{Act, Roster};
use crate::margo::component::Source;
use crate::margo::config::Config;
use crate::margo::desired::{AcceptError, Accepted, Exchange, ExchangeError, Head, HeadStore, Polled};
use crate::margo::plant::{Alert, Plant};
use crate::margo::reconcile::{Job, JobId, Outcome, Placement, Reconciler, Scope, Step};
use crate::margo::schema;
use crate::margo::storage::{Storage, StorageError, commit_in_order, sweep_blobs};
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
    parts: Parts<P, S, X>,
    dialect: Arc<dyn Dialect>,
    /// Changes when the identity did.
    identity: watch::Receiver<u64>,
    reconciler: Reconciler,
    roster: Roster,
    head: Option<Head>,
    held: BTreeMap<Digest, Bytes>,
    errands: JoinSet<Answer>,
    jobs: JoinSet<(JobId, Outcome)>,
    backoff: Backoff,
    /// Nothing is sent before, on the monotonic clock.
    not_before_ns: u64,
    poll_due_ns: u64,
    status: watch::Sender<ClientStatus>,
    /// Alerts that were raised, so that a standing problem is raised once.
    raised: BTreeSet<String>,
}

impl<P, S, X> std::fmt::Debug for Client<P, S, X> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("head", &self.head).finish_non_exhaustive()
    }
}

fn nanos(duration: Duration) -> u64 {
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
        identity: watch::Receiver<u64>,
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
            backoff: Backoff::default(),
            not_before_ns: 0,
            poll_due_ns: 0,
            status,
            raised: BTreeSet::new(),
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
        self.look().await?;
        loop {
            self.begin_errand();
            self.publish();
            let nap = self.nap();
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
        let next = due.into_iter().filter(|at| *at > now).min().unwrap_or(now);
        Duration::from_nanos(next.saturating_sub(now)).max(Duration::from_millis(20))
    }

    fn second(&self) -> Option<i64> {
        let now = self.parts.clock.now();
        (now.trust != ClockTrust::Unsynchronised).then_some(now.wall_ms.div_euclid(1_000))
    }

    fn begin_errand(&mut self) {
        let now = self.parts.clock.mono_ns();
        let second = self.second();
        let polling = &self.parts.config.polling;
        let quiet = self.status.borrow().retired || polling.is_down(second) || now < self.not_before_ns;
        if quiet || !self.errands.is_empty() {
            return;
        }
        let errand = if let Some(act) = self.roster.next() {
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
    }

    /// Looks at the plant again.
    async fn look(&mut self) -> Result<(), ClientError> {
        let inventory = self.parts.plant.inventory().await;
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
        self.roster.want(good);
        let step = self.reconciler.inventory(found.places, self.parts.clock.mono_ns())?;
        self.take(step).await
    }

    /// Makes a step durable and begins its jobs.
    async fn take(&mut self, step: Step) -> Result<(), ClientError> {
        commit_in_order(&self.parts.storage, step.changes).await?;
        for (id, job) in step.jobs {
            let (plant, source) = (self.parts.plant.clone(), self.parts.source.clone());
            self.jobs.spawn(async move { (id, carry_out(job, &*plant, &source).await) });
        }
        Ok(())
    }

    async fn answered(&mut self, answer: Answer) -> Result<(), ClientError> {
        match answer {
            Answer::Reported(act, outcome) => self.reported(act, outcome).await,
            Answer::Polled(outcome) => self.polled(outcome).await,
            Answer::Told(number, status, outcome) => {
                let what = format!("the status of deployment {}", status.deployment_id);
                match self.verdict(outcome, &what).await {
                    None | Some(Verdict::Later(_) | Verdict::Retired(_)) => Ok(()),
                    Some(Verdict::ParentMissing(problem)) => {
                        if let Some(device) = &status.device {
                            let changes = self.roster.parent_missing(device);
                            commit_in_order(&self.parts.storage, changes).await?;
                        }
                        self.pause(Some(&problem));
                        Ok(())
                    }
                    Some(verdict) => {
                        if let Verdict::Refused(problem) | Verdict::NotFound(problem) = verdict {
                            let text = format!("the fleet manager does not take {what}, which is given up: {problem}");
                            self.alert("margo-status-refused", false, text).await;
                        }
                        let change = self.reconciler.told(number);
                        Ok(self.parts.storage.commit(vec![change]).await?)
                    }
                }
            }
        }
    }

    async fn reported(
        &mut self,
        act: Act,
        outcome: Result<crate::margo::api::Response, ExchangeError>,
    ) -> Result<(), ClientError> {
        let (path, is_report) = match &act {
            Act::Report { device, .. } => (device.id.clone(), true),
            Act::Forget(path) => (path.clone(), false),
        };
        let changes = match self.verdict(outcome, &format!("the report of {path}")).await {
            None | Some(Verdict::Later(_) | Verdict::Retired(_)) => Vec::new(),
            Some(Verdict::Done | Verdict::Unchanged) => vec![self.roster.confirmed(&act)?],
            // What shall go is gone.
            Some(Verdict::NotFound(_)) if !is_report => vec![self.roster.confirmed(&act)?],
            Some(Verdict::ParentMissing(problem)) => {
                self.pause(Some(&problem));
                self.roster.parent_missing(&path)
            }
            Some(Verdict::NotFound(problem) | Verdict::Refused(problem)) => {
                let text = format!("the fleet manager does not take the report of {path} as it is: {problem}");
                self.alert("margo-report-refused", false, text).await;
                self.roster.refuse(&act).into_iter().collect()
            }
        };
        Ok(commit_in_order(&self.parts.storage, changes).await?)
    }

    /// What an answer means; pauses, alerts and the standing problem are seen to. `None` when nobody answered.
    async fn verdict(
        &mut self,
        outcome: Result<crate::margo::api::Response, ExchangeError>,
        what: &str,
    ) -> Option<Verdict> {
        let response = match outcome {
            Ok(response) => response,
            Err(error) => {
                self.unanswered(&error);
                return None;
            }
        };
        let verdict = judge(&response);
        match &verdict {
            Verdict::Later(problem) => {
                self.pause(Some(problem));
                self.problem(format!("{what}: {problem}"));
            }
            Verdict::Retired(problem) => self.retire(problem).await,
            _ => self.works(),
        }
        Some(verdict)
    }

    fn unanswered(&mut self, error: &ExchangeError) {
        self.pause(None);
        if !self.parts.config.polling.is_down(self.second()) {
            self.problem(error.to_string());
        }
    }

    fn works(&mut self) {
        self.backoff.reset();
        self.status.send_if_modified(|status| {
            let changed = !status.connected || !status.problem.is_empty();
            if changed {
                tracing::info!(url = %status.url, "the fleet manager answers");
            }
            (status.connected, status.problem) = (true, String::new());
            changed
        });
    }

    fn problem(&self, text: String) {
        self.status.send_if_modified(|status| {
            let changed = status.problem != text;
            if changed {
                tracing::warn!("fleet manager: {text}");
            }
            (status.connected, status.problem) = (false, text);
            changed
        });
    }

    fn pause(&mut self, problem: Option<&Problem>) {
        let pause = self.backoff.pause(problem, rand::rng().random_range(0.0..1.0));
        self.not_before_ns = self.parts.clock.mono_ns().saturating_add(nanos(pause));
    }

    async fn retire(&mut self, problem: &Problem) {
        let text = format!(
            "the fleet manager has retired this gateway ({problem}); nothing is sent any more until a new identity is installed or the gateway is started again"
        );
        self.status
            .send_modify(|status| (status.retired, status.connected, status.problem) = (true, false, text.clone()));
        self.alert("margo-retired", true, text).await;
    }

    async fn new_identity(&mut self) -> Result<(), ClientError> {
        self.identity.borrow_and_update();
        self.status.send_modify(|status| status.retired = false);
        self.not_before_ns = 0;
        self.raised.remove("margo-retired");
        Ok(())
    }

    async fn polled(&mut self, outcome: Result<Polled, AcceptError>) -> Result<(), ClientError> {
        let interval = nanos(self.parts.config.polling.every);
        self.poll_due_ns = self.parts.clock.mono_ns().saturating_add(interval);
        let error = match outcome {
            Ok(polled) => {
                self.works();
                self.status.send_modify(|status| status.polled_ms = self.parts.clock.wall_ms());
                self.raised.retain(|code| !code.starts_with("margo-manifest"));
                return self.desired(polled).await;
            }
            Err(error) => error,
        };
        match &error {
            AcceptError::Exchange(error) => self.unanswered(error),
            AcceptError::Retired(problem) => self.retire(problem).await,
            AcceptError::Later(problem) => {
                self.pause(Some(problem));
                self.problem(error.to_string());
            }
            AcceptError::NotAvailable { problem, .. } => {
                // Never before the server allows, and not faster than usual.
                self.pause(Some(problem));
                self.problem(error.to_string());
            }
            _ => {
                // An answer came; what it says is refused.
                self.backoff.reset();
                self.problem(error.to_string());
                let security = error.is_security_event();
                let code = if security { "margo-manifest-security" } else { "margo-manifest-refused" };
                self.alert(code, security, error.to_string()).await;
            }
        }
        if !matches!(error, AcceptError::NotAvailable { .. } | AcceptError::Refused(_)) && self.not_before_ns > 0 {
            // A poll that failed on its way is due again as soon as something may be sent.
            let failed_on_its_way = matches!(error, AcceptError::Exchange(_) | AcceptError::Later(_));
            if failed_on_its_way {
                self.poll_due_ns = self.not_before_ns.min(self.poll_due_ns);
            }
        }
        Ok(())
    }

    async fn desired(&mut self, polled: Polled) -> Result<(), ClientError> {
        match (polled, &self.head) {
            (Polled::NotModified, _) => Ok(()),
            (Polled::Unchanged(etag), Some(head)) if etag != head.etag => {
                self.head = Some(HeadStore(&self.parts.storage).set_etag(head, etag).await?);
                Ok(())
            }
            (Polled::Unchanged(_), _) => Ok(()),
            (Polled::Accepted(accepted), _) => self.accept(*accepted).await,
        }
    }

    async fn accept(&mut self, accepted: Accepted) -> Result<(), ClientError> {
        let Accepted { manifest, body, etag, yamls } = accepted;
        let known: BTreeSet<Digest> = self.held.keys().copied().collect();
        let head =
            HeadStore(&self.parts.storage).advance(self.head.as_ref(), &manifest, &body, etag, &yamls, &known).await?;
        tracing::info!(
            version = head.version,
            deployments = manifest.deployments.len(),
            "manifest of the fleet manager accepted"
        );
        let step = self.reconciler.accept(&manifest, head.previous, &yamls, self.parts.clock.mono_ns())?;
        self.head = Some(head);
        self.held = yamls.into_values().map(|yaml| (Digest::of(&yaml), yaml)).collect();
        self.take(step).await?;
        self.sweep().await
    }

    /// Removes what nobody names any more.
    async fn sweep(&self) -> Result<(), ClientError> {
        let mut named = self.reconciler.named_works();
        named.extend(self.held.keys().copied());
        named.extend(self.head.as_ref().map(|head| head.body));
        if self.jobs.is_empty() {
            self.parts.source.sweep(&self.reconciler.named_images());
        }
        Ok(sweep_blobs(&self.parts.storage, &named).await?)
    }

    async fn alert(&mut self, code: &'static str, security: bool, text: String) {
        if !self.raised.insert(format!("{code} {text}")) && code != "margo-retired" {
            return;
        }
        if self.raised.len() > 1_000 {
            self.raised.clear();
        }
        tracing::error!(code, "{text}");
        self.parts.plant.alert(Alert { code, security, text }).await;
    }

    fn publish(&self) {
        let (devices_reported, devices) = self.roster.progress();
        let lines = self.lines();
        self.status.send_if_modified(|status| {
            let next = ClientStatus {
                device: self.parts.scope.top.to_string(),
                url: self.parts.config.url.to_string(),
                manifest_version: self.head.as_ref().map_or(0, |head| head.version),
                devices_reported,
                devices,
                statuses_waiting: self.reconciler.outbox().len(),
                deployments: lines,
                ..status.clone()
            };
            let changed = *status != next;
            *status = next;
            changed
        });
    }

    fn lines(&self) -> Vec<DeploymentLine> {
        let mut lines = Vec::new();
        for (record, placements) in self.reconciler.view() {
            let line = |placement: Option<&Placement>, state: &str, reason: String| DeploymentLine {
                deployment: record.id.to_string(),
                device: placement.map(|placement| placement.path.to_string()).unwrap_or_default(),
                adopted: self.reconciler.adopted(record, placement),
                state: state.to_owned(),
                reason,
            };
            let failed = record.failed.as_ref();
            let reason = |error: Option<&StatusError>| {
                error.map(|error| format!("{}: {}", error.code, error.message)).unwrap_or_default()
            };
            if placements.is_empty() {
                lines.push(line(None, if failed.is_some() { "failed" } else { "pending" }, reason(failed)));
            }
            for placement in placements {
                let error = placement.parts.iter().find_map(|part| part.error.as_ref()).or(failed);
                let state = overall(placement.parts.iter().map(|part| part.state));
                lines.push(line(Some(placement), state.as_str(), reason(error)));
            }
        }
        lines
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
