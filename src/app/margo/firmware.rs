//! Firmware that a fleet manager deploys: an offer at the firmware desk that the deployment itself approves, followed to its end.
//!
//! The desk checks the signed manifest, proves the new version and brings back the old one, as for everybody. The order's key
//! is the id of the job. A [`Mark`] per device, durable before the offer, says which order a job belongs to, so that an order
//! is carried out once, whenever the gateway was killed and whoever else updates the device.
//!
//! A device that falls silent in the middle of it is told as unreachable; its job goes on, and the next order of the same
//! deployment takes it up instead of beginning another one.
//!
//! **Limits.** Firmware is not taken back: a removal calls off what has not begun to be installed, and leaves the rest. An older
//! version than the one that runs is refused.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::app::events::EventLog;
use crate::app::firmware::{FirmwareDesk, Question, Reply};
use crate::app::latest::{DeviceView, Latest};
use crate::contract::v1::event::Severity;
use crate::management::firmware::{Job, Offer, Source, Stage};
use crate::margo::plant::{Before, Refusal};
use crate::margo::words::Digest;
use crate::model::DeviceId;
use crate::southbound::DeviceState;
use crate::store::Store;

/// Tree of the state store with the marks, by device.
const TREE: &str = "margo-firmware";
/// How often a job under way is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// How long a device may be silent before others have their turn; longer than one takes to restart.
const SILENCE: Duration = Duration::from_secs(90);
/// What the desk says of a version that runs already.
const SAME: &str = "same";

/// What a deployment asks for.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    /// Key of the order.
    pub key: &'a str,
    /// Who.
    pub actor: &'a str,
    /// Digest of the image.
    pub image: Digest,
    /// Where the image lies.
    pub cache: &'a Path,
    /// The signed manifest.
    pub manifest: String,
}

/// The ways to one device's firmware.
#[derive(Debug)]
pub(super) struct Ways<'a> {
    pub desk: &'a FirmwareDesk,
    pub latest: &'a Latest,
    pub events: &'a EventLog,
    pub store: &'a Store,
    pub device: &'a DeviceId,
}

/// Which order the job of a device belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    order: String,
    actor: String,
    image: String,
    /// Its job.
    job: String,
    /// The job that was there before its own was offered.
    instead_of: Option<String>,
    /// Told as unreachable: the next order takes its job up.
    left: bool,
}

/// What an order has to do first.
#[derive(Debug, PartialEq, Eq)]
enum Begin {
    Offer,
    Follow,
    /// Somebody else's job took the place of its own.
    Superseded,
}

impl Mark {
    /// The mark of an order, made from the one that is there.
    fn of(wanted: &Wanted<'_>, kept: Option<Self>, there: Option<&str>) -> Self {
        let (order, image) = (wanted.key.to_owned(), wanted.image.hex());
        match kept {
            Some(mark) if mark.order == order => mark,
            Some(mark)
                if mark.left && mark.actor == wanted.actor && mark.image == image && there == Some(&mark.job) =>
            {
                Self { order, left: false, ..mark }
            }
            _ => Self {
                job: order.clone(),
                order,
                actor: wanted.actor.to_owned(),
                image,
                instead_of: there.map(str::to_owned),
                left: false,
            },
        }
    }

    fn begin(&self, there: Option<&str>) -> Begin {
        match there {
            Some(job) if job == self.job => Begin::Follow,
            other if other == self.instead_of.as_deref() => Begin::Offer,
            _ => Begin::Superseded,
        }
    }
}

/// Removes the marks of devices that are not this gateway's any more.
pub(super) async fn sweep(store: &Store, stays: impl Fn(&str) -> bool) {
    let Ok(marks) = store.state().scan(TREE, b"") else { return };
    for (key, _) in marks {
        if std::str::from_utf8(&key).is_ok_and(&stays) {
            continue;
        }
        if let Err(error) = store.state().delete(TREE, &key).await {
            tracing::debug!(%error, "the mark of a device that is gone was not removed; it is tried again");
        }
    }
}

/// Whether a device answers.
pub(super) fn is_polled(view: &DeviceView) -> bool {
    match view.state {
        DeviceState::Online => true,
        // Not to everything: who gave no good value yet, or none any more, does not answer.
        DeviceState::Degraded { .. } => {
            view.samples.iter().flatten().any(|sample| sample.quality == crate::model::Quality::Good)
        }
        _ => false,
    }
}

impl Ways<'_> {
    /// The version that runs now, as far as the device says it.
    pub(super) fn before(&self) -> Result<Before, Refusal> {
        self.latest.read(|table| {
            let view = table.get(self.device).filter(|view| is_polled(view));
            let view = view.ok_or_else(|| super::unreachable(self.device))?;
            Ok(Before { token: view.identity.firmware.clone(), ..Before::default() })
        })
    }

    /// Brings a version to the device and waits for its proof.
    pub(super) async fn apply(&self, wanted: Wanted<'_>) -> Result<(), Refusal> {
        let (kept, there) = (self.kept()?, self.job().await?);
        if let (Some(mark), Some(job)) = (&kept, &there)
            && mark.order != wanted.key
            && mark.image != wanted.image.hex()
            && mark.actor == wanted.actor
            && mark.job == job.offer.id
        {
            self.call_off(job, wanted.actor).await?;
        }
        let there = there.map(|job| job.offer.id);
        let mark = Mark::of(&wanted, kept.clone(), there.as_deref());
        if kept.as_ref() != Some(&mark) {
            self.keep(&mark).await?;
        }
        match mark.begin(there.as_deref()) {
            Begin::Superseded => return Err(self.superseded()),
            Begin::Follow => {}
            Begin::Offer => {
                if let Err(refusal) = self.offer(&mark.job, &wanted).await {
                    return if refusal.code == SAME { self.runs_already(&refusal.message).await } else { Err(refusal) };
                }
            }
        }
        self.follow(mark).await
    }

    /// Ends the claim of a deployment. What was installed stays.
    pub(super) async fn undo(&self, actor: &str, before: &Before) -> Result<(), Refusal> {
        let job = self.job().await?;
        let own = self.kept()?.filter(|mark| mark.actor == actor);
        let job = job.filter(|job| own.as_ref().is_some_and(|mark| mark.job == job.offer.id));
        let called_off = match &job {
            Some(job) => self.call_off(job, actor).await?,
            None => false,
        };
        let earlier = before.token.as_ref().map(|version| format!(" (before it ran {version})")).unwrap_or_default();
        let text = match job {
            Some(job) if called_off => {
                format!("firmware {} for {} is called off: {actor} was removed", job.version, self.device)
            }
            Some(job) if job.stage == Stage::Done => format!(
                "{actor} was removed, its firmware {} stays on {}{earlier}; another deployment brings another version",
                job.version, self.device
            ),
            _ => format!("{actor} was removed; the firmware of {} stays as it is", self.device),
        };
        self.events.report(Severity::Info, "margo-firmware-stays", self.device.as_str(), text).await;
        if own.is_some() {
            let key = self.device.as_str().as_bytes();
            self.store.state().delete(TREE, key).await.map_err(|error| not_kept(&error))?;
        }
        Ok(())
    }

    /// Whether a job was called off; one that is over is left alone, one that is being installed is waited for.
    async fn call_off(&self, job: &Job, actor: &str) -> Result<bool, Refusal> {
        if job.stage.is_final() {
            return Ok(false);
        }
        let (target, id) = (self.device.to_string(), job.offer.id.clone());
        if self.ask(Question::Decide { target, id, approve: false }, actor).await.is_ok() {
            return Ok(true);
        }
        let text = format!("firmware {} is being installed on {}; its end is waited for", job.version, self.device);
        Err(Refusal { unreachable: true, ..Refusal::new("busy", text) })
    }

    async fn offer(&self, id: &str, wanted: &Wanted<'_>) -> Result<(), Refusal> {
        let offer = Offer {
            id: id.to_owned(),
            manifest: wanted.manifest.clone(),
            source: Source::Url(format!("file://{}", wanted.cache.join(wanted.image.hex()).display())),
            allow_downgrade: false,
            in_window: false,
        };
        self.ask(Question::Offer { target: self.device.to_string(), offer }, wanted.actor).await.map(drop)
    }

    /// Until the job is over.
    async fn follow(&self, mark: Mark) -> Result<(), Refusal> {
        let mut heard = Instant::now();
        loop {
            let Some(job) = self.job().await?.filter(|job| job.offer.id == mark.job) else {
                return Err(self.superseded());
            };
            match job.stage {
                Stage::Done => return Ok(()),
                Stage::Refused if job.code.as_deref() == Some(SAME) => {
                    return self.runs_already(job.reason.as_deref().unwrap_or_default()).await;
                }
                stage if stage.is_final() => return Err(ended(&job)),
                // Also after a kill between the offer and this.
                Stage::Offered if job.approval.is_none() => {
                    let question =
                        Question::Decide { target: self.device.to_string(), id: mark.job.clone(), approve: true };
                    match self.ask(question, &mark.actor).await {
                        // Somebody said no in this moment: the next look shows it.
                        Ok(_) => {}
                        Err(refusal) if refusal.code == "out-of-order" => {}
                        Err(refusal) => return Err(refusal),
                    }
                }
                _ => {}
            }
            if self.before().is_ok() {
                heard = Instant::now();
            } else if heard.elapsed() > SILENCE {
                self.keep(&Mark { left: true, ..mark }).await?;
                let text = format!(
                    "{} is silent while firmware {} is {}; the update goes on when it answers",
                    self.device,
                    job.version,
                    job.stage.as_str()
                );
                return Err(Refusal { unreachable: true, ..Refusal::new("unreachable", text) });
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn runs_already(&self, why: &str) -> Result<(), Refusal> {
        let text = format!("nothing is installed on {}: {why}", self.device);
        self.events.report(Severity::Info, "margo-firmware-same", self.device.as_str(), text).await;
        Ok(())
    }

    fn superseded(&self) -> Refusal {
        let text =
            format!("another firmware job of {} took the place of this one; see its firmware/status", self.device);
        Refusal::new("superseded", text)
    }

    async fn job(&self) -> Result<Option<Job>, Refusal> {
        match self.ask(Question::Jobs { target: Some(self.device.to_string()) }, "").await? {
            Reply::Jobs(jobs) => Ok(jobs.into_iter().next()),
            Reply::Job(_) | Reply::Next(_) => Ok(None),
        }
    }

    async fn ask(&self, question: Question, actor: &str) -> Result<Reply, Refusal> {
        match self.desk.ask(question, actor).await {
            Ok(reply) => Ok(reply),
            // No answer is given while the gateway stops: the order is given again in its next life, under the same key.
            Err(refusal) if refusal.code == "stopping" => std::future::pending().await,
            Err(refusal) => Err(Refusal::new(refusal.code, refusal.message)),
        }
    }

    fn kept(&self) -> Result<Option<Mark>, Refusal> {
        let kept = self.store.state().get(TREE, self.device.as_str().as_bytes()).map_err(|error| not_kept(&error))?;
        Ok(kept.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    }

    async fn keep(&self, mark: &Mark) -> Result<(), Refusal> {
        let bytes = Bytes::from(serde_json::to_vec(mark).map_err(|error| not_kept(&error))?);
        self.store.state().put(TREE, self.device.as_str().as_bytes(), bytes).await.map_err(|error| not_kept(&error))
    }
}

/// Nothing was begun; it is tried again.
fn not_kept(error: &dyn std::error::Error) -> Refusal {
    let text = format!("the state of the deployment cannot be kept: {error}");
    Refusal { unreachable: true, ..Refusal::new("not-kept", text) }
}

/// A job that ended otherwise than wished, with the state of the device.
fn ended(job: &Job) -> Refusal {
    let state = match job.stage {
        Stage::RolledBack => "was not proven, and the version of before runs again",
        Stage::Refused => "was not let in, and nothing was changed",
        _ => "failed",
    };
    let reason = job.reason.as_deref().unwrap_or("no reason is known");
    let text = format!("firmware {} {state}: {reason}", job.version);
    Refusal::new(job.code.as_deref().unwrap_or(job.stage.as_str()), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted<'a>(key: &'a str, actor: &'a str, image: &str) -> Wanted<'a> {
        Wanted { key, actor, image: Digest::of(image.as_bytes()), cache: Path::new("/"), manifest: String::new() }
    }

    #[test]
    fn an_order_that_is_given_again_goes_on_where_it_was() {
        let order = wanted("o1", "margo:a", "one");
        let mark = Mark::of(&order, None, Some("somebody"));
        assert_eq!(mark.begin(Some("somebody")), Begin::Offer);
        // Killed before the offer, after it, and after somebody else's later job.
        let again = |there| Mark::of(&order, Some(mark.clone()), Some(there));
        assert_eq!(again("somebody"), mark);
        assert_eq!(again("somebody").begin(Some("somebody")), Begin::Offer);
        assert_eq!(again("o1").begin(Some("o1")), Begin::Follow);
        assert_eq!(again("somebody-else").begin(Some("somebody-else")), Begin::Superseded);
        assert_eq!(mark.begin(None), Begin::Superseded);
    }

    #[test]
    fn only_the_same_deployment_takes_up_a_job_that_was_left() {
        let left = Mark { left: true, ..Mark::of(&wanted("o1", "margo:a", "one"), None, None) };
        let next = |order: &Wanted<'_>, there| Mark::of(order, Some(left.clone()), there);
        let taken = next(&wanted("o2", "margo:a", "one"), Some("o1"));
        assert_eq!((taken.order.as_str(), taken.job.as_str(), taken.left), ("o2", "o1", false));
        assert_eq!(taken.begin(Some("o1")), Begin::Follow);
        for (order, there) in [
            (wanted("o2", "margo:b", "one"), Some("o1")),
            (wanted("o2", "margo:a", "two"), Some("o1")),
            (wanted("o2", "margo:a", "one"), Some("somebody")),
        ] {
            assert_eq!(next(&order, there).begin(there), Begin::Offer, "{order:?}");
        }
        let tried = Mark { left: false, ..left.clone() };
        let anew = Mark::of(&wanted("o2", "margo:a", "one"), Some(tried), Some("o1"));
        assert_eq!(anew.begin(Some("o1")), Begin::Offer, "a new order after an end is a new job");
    }
}
