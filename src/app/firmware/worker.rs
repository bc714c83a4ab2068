//! Looks after one target: answers questions and acts out its job, one step after the other.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::clerk::Clerk;
use super::source::Source;
use super::{Question, Reply};
use crate::management::firmware::{Approval, FileJournal, FirmwareError, Job, Target, Updater};
use crate::management::request::Refusal;

/// After a step that the disk refused.
const AGAIN: Duration = Duration::from_secs(5);

/// A question with its asker.
pub(super) struct Asked {
    pub(super) question: Question,
    pub(super) actor: String,
    /// Whether the desk writes the audit log; otherwise device management does.
    pub(super) is_audited: bool,
    pub(super) reply: oneshot::Sender<Result<Reply, Refusal>>,
}

impl Asked {
    pub(super) fn answer(self, answer: Result<Reply, Refusal>) {
        // The asker may have hung up; what was decided stands in the job.
        let _ = self.reply.send(answer);
    }
}

/// The way to somebody who looks after a target.
pub(super) struct Worker {
    pub(super) questions: mpsc::Sender<Asked>,
    pub(super) stop: CancellationToken,
}

type Running<T> = Updater<T, Source, FileJournal>;

/// Answers questions and acts out the job until `token` is cancelled. Steps wait for their turn at `gate`.
pub(super) async fn serve<T: Target + 'static>(
    mut updater: Running<T>,
    mut asked: mpsc::Receiver<Asked>,
    mut clerk: Clerk,
    refresh: impl Fn() + Send + 'static,
    gate: Option<Arc<Semaphore>>,
    token: CancellationToken,
) -> Result<(), String> {
    let mut due = Some(Instant::now());
    loop {
        clerk.show(updater.job()).await;
        let wake = async {
            match due {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
            match &gate {
                // Nobody closes the gate.
                Some(gate) => gate.clone().acquire_owned().await.ok(),
                None => None,
            }
        };
        tokio::select! {
            biased;
            () = token.cancelled() => return Ok(()),
            next = asked.recv() => {
                let Some(next) = next else { return Ok(()) };
                let answer = answer(&mut updater, &next.question, &next.actor).await;
                clerk.audit(&next, &answer).await;
                // Who was answered and looks at once sees what was answered.
                if let Some(job) = updater.job() {
                    clerk.post(job);
                }
                next.answer(answer);
                due = Some(Instant::now());
            }
            turn = wake => {
                refresh();
                // A step hashes, syncs and copies: not on a thread that others wait for.
                let (runtime, stop) = (tokio::runtime::Handle::current(), token.clone());
                let stepped = tokio::task::spawn_blocking(move || {
                    let step = runtime.block_on(async {
                        tokio::select! {
                            () = stop.cancelled() => Ok(None),
                            step = updater.step() => step,
                        }
                    });
                    drop(turn);
                    (updater, step)
                });
                let (after, step) = stepped.await.map_err(|e| e.to_string())?;
                updater = after;
                due = match step {
                    Ok(pause) => pause.map(|pause| Instant::now() + pause),
                    Err(error) => {
                        tracing::warn!(%error, "a step of a firmware update could not be kept; it is done again");
                        Some(Instant::now() + AGAIN)
                    }
                };
            }
        }
    }
}

async fn answer<T: Target>(updater: &mut Running<T>, question: &Question, actor: &str) -> Result<Reply, Refusal> {
    let failed = |error: FirmwareError| Refusal::new(error.code(), error.to_string());
    let job = |job: &Job| Reply::Job(Box::new(job.clone()));
    // Without a name the job that is there is meant.
    let named = |id: &str, there: Option<&Job>| match there {
        Some(job) if id.is_empty() => job.offer.id.clone(),
        _ => id.to_owned(),
    };
    match question {
        Question::Offer { offer, .. } => updater.offer(offer.clone()).await.map(job).map_err(failed),
        Question::Chunk { id, offset, data, .. } => {
            let bytes =
                STANDARD.decode(data).map_err(|e| Refusal::new("invalid", format!("the part is no base64: {e}")))?;
            let id = named(id, updater.job());
            updater.chunk(&id, *offset, &bytes).map(Reply::Next).map_err(failed)
        }
        Question::Decide { id, approve, .. } => {
            let id = named(id, updater.job());
            let decided = match approve {
                true => updater.approve(&id, Approval::Operator(actor.to_owned())),
                false => updater.reject(&id, actor),
            };
            decided.map(job).map_err(failed)
        }
        Question::Jobs { .. } => Ok(Reply::Jobs(updater.job().cloned().into_iter().collect())),
    }
}
