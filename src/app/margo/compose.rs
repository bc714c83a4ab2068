//! Compose projects that a fleet manager deploys: brought up, judged by their containers, and taken down again, each by the compose
//! program at the container engine of its host.
//!
//! **Promise.** A project of its own per deployment, component and host, by a name that nobody else has: nothing else is touched.
//! An order is written down before it has an effect ([`store`]), so that one that was cut off by a kill goes on, and one that was
//! answered is answered again; bringing up twice is bringing up once. `Ok` means that every container runs and is healthy, or has
//! ended with 0. What does not come up is set back to the revision that ran before, or to nothing.
//!
//! What was installed is looked for every `check_every`. Containers that are gone, because somebody took them down or the engine was
//! set up anew, are told to the reconciler ([`Engines::lost`]), which installs them again.
//!
//! **Limits.** The compose program has no shell, no input, an environment of its own, and at most the time that the deployment or
//! the configuration gives it; it ends with the gateway ([`command`]). Volumes go with their deployment unless `keep_volumes` says
//! otherwise; images stay.
//!
//! **Must not** judge what a compose file may: that is [`crate::margo::component::compose`]'s.

mod command;
mod judge;
mod store;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch as channel;
use tokio::time::Instant;

use self::command::{CommandError, Output, Tool};
use self::judge::Standing;
use self::store::{Answered, Begun, Installed, Journal, Place, Revision};
use crate::margo::component::compose::Project;
use crate::margo::host::{ContainerEngine, MAX_TIMEOUT};
use crate::margo::plant::{Before, Refusal};
use crate::model::DeviceId;

/// A host: a device, or the gateway itself.
type Host = Option<DeviceId>;

/// How often containers that are not ready yet are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Longest time for a question to the engine.
const QUESTION: Duration = Duration::from_secs(60);
/// Least time for going back, so that a short limit does not cut it off, too.
const BACK: Duration = Duration::from_secs(120);

/// The container engines of one client's hosts.
#[derive(Debug)]
pub(super) struct Engines {
    /// Where projects lie.
    root: PathBuf,
    hosts: BTreeMap<Host, ContainerEngine>,
    /// Hosts whose compose program was found fit.
    fit: Mutex<BTreeSet<Host>>,
    /// Projects under an order: what is looked for in the meantime means nothing.
    busy: Arc<Mutex<BTreeMap<String, u64>>>,
    lost: channel::Sender<BTreeMap<Host, BTreeSet<String>>>,
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Engines {
    pub(super) fn new(root: PathBuf, hosts: BTreeMap<Host, ContainerEngine>) -> Arc<Self> {
        let lost = channel::Sender::new(BTreeMap::new());
        Arc::new(Self { root, hosts, fit: Mutex::default(), busy: Arc::default(), lost })
    }

    /// Changes of [`Engines::lost`].
    pub(super) fn changes(&self) -> channel::Receiver<BTreeMap<Host, BTreeSet<String>>> {
        self.lost.subscribe()
    }

    /// Owners of projects of which the containers are gone.
    pub(super) fn lost(&self, host: Option<&DeviceId>) -> BTreeSet<String> {
        self.lost.borrow().get(&host.cloned()).cloned().unwrap_or_default()
    }

    /// The ways to a project at its host.
    pub(super) fn ways(&self, host: Option<&DeviceId>, owner: &str) -> Result<Ways<'_>, Refusal> {
        let host = host.cloned();
        let place = Place::new(&self.root, host.as_ref(), owner);
        match self.hosts.get(&host) {
            Some(engine) => Ok(Ways { engines: self, tool: Tool::new(engine, &self.root), host, place }),
            None => {
                let text = format!(
                    "no container engine is configured for {}; configure it again, so that what runs there can be taken down",
                    name(host.as_ref())
                );
                Err(Refusal::new("no-engine", text))
            }
        }
    }

    fn found(&self, host: &Host, owner: &str) {
        self.lost.send_if_modified(|lost| lost.get_mut(host).is_some_and(|lost| lost.remove(owner)));
    }
}

fn name(host: Option<&DeviceId>) -> String {
    host.map_or_else(|| "the gateway".to_owned(), ToString::to_string)
}

/// Counts an order of a project while it lives.
struct Busy<'a>(&'a Engines, String);

impl<'a> Busy<'a> {
    fn new(engines: &'a Engines, project: &str) -> Self {
        *held(&engines.busy).entry(project.to_owned()).or_default() += 1;
        Self(engines, project.to_owned())
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        // It counts on, so that who looked before and after sees that there was one.
        *held(&self.0.busy).entry(std::mem::take(&mut self.1)).or_default() += 1;
    }
}

/// The ways to one project.
#[derive(Debug)]
pub(super) struct Ways<'a> {
    engines: &'a Engines,
    tool: Tool<'a>,
    host: Host,
    place: Place,
}

/// Why a project did not come up.
enum Failure {
    /// It may later.
    Passing(Refusal),
    /// It will not: a code and words.
    Final(&'static str, String),
}

impl Ways<'_> {
    /// There is nothing to remember: what ran before is kept here. Asks whether the engine answers.
    pub(super) async fn before(&self) -> Result<Before, Refusal> {
        self.ready().await.map(|()| Before::default())
    }

    /// Brings a revision up and waits for its containers.
    pub(super) async fn apply(&self, key: &str, project: &Project) -> Result<(), Refusal> {
        let _busy = Busy::new(self.engines, self.place.name());
        let mut journal = self.load(&project.owner).await?;
        if let Some(answer) = journal.answer(key) {
            return answer;
        }
        self.ready().await?;
        let variables = self.tool.engine.collector.variables();
        let revision = Revision::of(project, &variables);
        let failed = match journal.order.take() {
            // Cut off while it went back.
            Some(Begun { key: begun, failed, .. }) if begun == key => failed,
            _ => None,
        };
        self.place.keep(&revision).await.map_err(not_kept)?;
        let begun = Begun { key: key.to_owned(), revision: Some(revision.name.clone()), failed: failed.clone() };
        journal.order = Some(begun);
        self.place.save(&journal).await.map_err(not_kept)?;
        let limit = project.timeout_ms.map_or(self.tool.engine.timeout, Duration::from_millis).min(MAX_TIMEOUT);
        let failure = match failed {
            Some(refusal) => refusal,
            None => match self.up(&revision.name, limit).await {
                Ok(containers) => {
                    journal.installed = Some(Installed { revision: revision.name, containers });
                    self.answer(journal, None).await?;
                    self.engines.found(&self.host, &project.owner);
                    return Ok(());
                }
                Err(Failure::Passing(refusal)) => return Err(refusal),
                Err(Failure::Final(code, words)) => Refusal::new(code, words),
            },
        };
        if journal.installed.as_ref().is_some_and(|installed| installed.revision == revision.name) {
            // It ran before: there is nothing better to go back to, and nothing of it that somebody should deploy anew.
            let refusal = Refusal { passing: true, ..failure };
            self.answer(journal, Some(refusal.clone())).await?;
            return Err(refusal);
        }
        if let Some(order) = &mut journal.order {
            order.failed = Some(failure.clone());
        }
        self.place.save(&journal).await.map_err(not_kept)?;
        let refusal = self.go_back(&journal, &revision.name, failure, limit.max(BACK)).await?;
        self.answer(journal, Some(refusal.clone())).await?;
        Err(refusal)
    }

    /// Sets back to what ran before; how it stands then.
    async fn go_back(
        &self,
        journal: &Journal,
        revision: &str,
        why: Refusal,
        limit: Duration,
    ) -> Result<Refusal, Refusal> {
        let (done, told) = match &journal.installed {
            Some(installed) => {
                let back = self.up(&installed.revision, limit).await.map(drop);
                (back, "the revision of before runs again")
            }
            None => (self.down(revision, limit).await, "nothing of it is left"),
        };
        match done {
            Ok(()) => Ok(Refusal { message: format!("{}; {told}", why.message), untouched: true, ..why }),
            Err(Failure::Passing(refusal)) => Err(refusal),
            Err(Failure::Final(_, words)) => {
                Ok(Refusal { message: format!("{}; it could not be set back: {words}", why.message), ..why })
            }
        }
    }

    /// Takes everything of it down.
    pub(super) async fn undo(&self, owner: &str) -> Result<(), Refusal> {
        let _busy = Busy::new(self.engines, self.place.name());
        let journal = self.load(owner).await?;
        let revisions = self.place.revisions().await.map_err(not_kept)?;
        if !revisions.is_empty() {
            self.ready().await?;
        }
        // The one that runs comes last; what an order that was cut off began goes with it.
        let runs = journal.installed.map(|installed| installed.revision);
        let (last, others): (Vec<String>, Vec<String>) = revisions.into_iter().partition(|r| Some(r) == runs.as_ref());
        for revision in others.iter().chain(&last) {
            self.down(revision, self.tool.engine.timeout.max(BACK)).await.map_err(|failure| match failure {
                Failure::Passing(refusal) => refusal,
                Failure::Final(code, words) => Refusal::new(code, words),
            })?;
        }
        self.engines.found(&self.host, owner);
        self.place.remove().await.map_err(not_kept)
    }

    async fn load(&self, owner: &str) -> Result<Journal, Refusal> {
        self.place.load(owner).await.map_err(not_kept)
    }

    /// The order is over: what became of it is durable before it is told. What may still be there of it is kept, for taking it down.
    async fn answer(&self, mut journal: Journal, refusal: Option<Refusal>) -> Result<(), Refusal> {
        let is_settled = refusal.as_ref().is_none_or(|refusal| refusal.untouched);
        if let Some(order) = journal.order.take() {
            journal.answered = Some(Answered { key: order.key, refusal });
        }
        self.place.save(&journal).await.map_err(not_kept)?;
        if !is_settled {
            return Ok(());
        }
        let runs = journal.installed.map(|installed| installed.revision);
        self.place.forget_all_but(runs.as_deref()).await.map_err(not_kept)
    }

    /// Brings a revision up; the number of its containers.
    async fn up(&self, revision: &str, limit: Duration) -> Result<usize, Failure> {
        let until = Instant::now() + limit;
        let mut arguments = vec!["up", "--detach", "--wait", "--remove-orphans", "--quiet-pull"];
        if !self.tool.engine.allowed.builds() {
            arguments.push("--no-build");
        }
        let output = self.run(revision, &arguments, limit).await?;
        // Containers that have done their work are no failure, though Compose waits for all to stay.
        let only_ended = output.words.contains("exited (0)");
        loop {
            let standing = match output.is_success || only_ended {
                true => self.standing(revision).await?,
                false => Standing::Bad(String::new()),
            };
            match standing {
                Standing::Up(containers) => return Ok(containers),
                Standing::Bad(why) => return Err(self.judge(&output, &why).await),
                Standing::Coming(why) if Instant::now() > until => {
                    return Err(Failure::Final("timeout", format!("not up within {limit:?}: {why}")));
                }
                Standing::Coming(_) => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// Whether a failure is the project's, or the engine is not there.
    async fn judge(&self, output: &Output, why: &str) -> Failure {
        match self.answers().await {
            Ok(_) if why.is_empty() => Failure::Final("compose-failed", output.words.clone()),
            Ok(_) => Failure::Final("compose-failed", why.to_owned()),
            Err(refusal) => Failure::Passing(refusal),
        }
    }

    async fn down(&self, revision: &str, limit: Duration) -> Result<(), Failure> {
        let mut arguments = vec!["down", "--remove-orphans"];
        if !self.tool.engine.keep_volumes {
            arguments.push("--volumes");
        }
        let output = self.run(revision, &arguments, limit).await?;
        if output.is_success { Ok(()) } else { Err(self.judge(&output, "").await) }
    }

    async fn standing(&self, revision: &str) -> Result<Standing, Failure> {
        let output = self.run(revision, &["ps", "--all", "--format", "json"], QUESTION).await?;
        match output.is_success {
            true => Ok(judge::standing(&output.stdout)),
            false => Err(self.judge(&output, "").await),
        }
    }

    async fn run(&self, revision: &str, arguments: &[&str], limit: Duration) -> Result<Output, Failure> {
        let call = self.place.call(revision, arguments).await.map_err(|error| Failure::Passing(not_kept(error)))?;
        match self.tool.run(call, limit).await {
            Ok(output) => Ok(output),
            // Too slow by itself, or because nobody answers any more.
            Err(CommandError::TimedOut(words)) => Err(match self.answers().await {
                Ok(_) => Failure::Final("timeout", format!("not done within {limit:?}: {words}")),
                Err(refusal) => Failure::Passing(refusal),
            }),
            Err(error) => Err(Failure::Passing(self.not_fit(&error))),
        }
    }

    /// Whether the compose program can be used and its engine answers.
    async fn ready(&self) -> Result<(), Refusal> {
        if !held(&self.engines.fit).contains(&self.host) {
            let output =
                self.tool.ask(&["version", "--short"], QUESTION).await.map_err(|error| self.not_fit(&error))?;
            let said = if output.is_success { output.stdout } else { output.words };
            judge::version(&said).map_err(|why| self.not_fit(&CommandError::Unfit(why)))?;
            held(&self.engines.fit).insert(self.host.clone());
        }
        self.answers().await.map(drop)
    }

    /// The engine's projects with their containers.
    async fn answers(&self) -> Result<BTreeMap<String, usize>, Refusal> {
        let words = match self.tool.ask(&["ls", "--all", "--format", "json"], QUESTION).await {
            Ok(output) => match judge::projects(&output.stdout).filter(|_| output.is_success) {
                Some(projects) => return Ok(projects),
                None => output.words,
            },
            Err(CommandError::TimedOut(words)) => words,
            Err(error) => return Err(self.not_fit(&error)),
        };
        let text = format!("the container engine of {} does not answer: {words}", name(self.host.as_ref()));
        Err(match self.host {
            Some(_) => Refusal { unreachable: true, ..Refusal::new("unreachable", text) },
            None => Refusal { passing: true, ..Refusal::new("engine-unreachable", text) },
        })
    }

    fn not_fit(&self, error: &CommandError) -> Refusal {
        let command = self.tool.engine.command.join(" ");
        let text = format!("`{command}` for the container engine of {}: {error}", name(self.host.as_ref()));
        Refusal { passing: true, ..Refusal::new("compose-command", text) }
    }
}

/// Nothing was begun; it is tried again.
fn not_kept(error: std::io::Error) -> Refusal {
    let text = format!("the files of the deployment cannot be kept: {error}; see to the disk of the gateway");
    Refusal { passing: true, ..Refusal::new("not-kept", text) }
}
