//! What an answer of the fleet manager changes: the roster, the outbox, pauses, and what people are told.

use rand::Rng;

use super::engine::{Client, ClientError, nanos};
use super::errand::Answer;
use crate::margo::api::{Problem, Response, Verdict, judge};
use crate::margo::capabilities::Act;
use crate::margo::desired::{Exchange, ExchangeError};
use crate::margo::plant::{Alert, Plant};
use crate::margo::storage::{Storage, commit_in_order};

impl<P: Plant, S: Storage + Clone, X: Exchange> Client<P, S, X> {
    pub(super) async fn answered(&mut self, answer: Answer) -> Result<(), ClientError> {
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

    pub(super) async fn reported(
        &mut self,
        act: Act,
        outcome: Result<Response, ExchangeError>,
    ) -> Result<(), ClientError> {
        let (path, is_report) = match &act {
            Act::Report { device, .. } => (device.id.clone(), true),
            Act::Forget(path) => (path.clone(), false),
        };
        let unheard = matches!(&outcome, Err(error) if !error.may_have_had_effect());
        let changes = match self.verdict(outcome, &format!("the report of {path}")).await {
            None if unheard => self.roster.without_effect().into_iter().collect(),
            None | Some(Verdict::Later(_) | Verdict::Retired(_)) => Vec::new(),
            Some(Verdict::Done | Verdict::Unchanged) => vec![self.roster.done(&act)?],
            // What shall go is gone.
            Some(Verdict::NotFound(_)) if !is_report => vec![self.roster.done(&act)?],
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
    pub(super) async fn verdict(&mut self, outcome: Result<Response, ExchangeError>, what: &str) -> Option<Verdict> {
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

    pub(super) fn unanswered(&mut self, error: &ExchangeError) {
        self.pause(None);
        if !self.parts.config.polling.is_down(self.second()) {
            self.problem(error.to_string());
        }
    }

    pub(super) fn works(&mut self) {
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

    pub(super) fn problem(&self, text: String) {
        self.status.send_if_modified(|status| {
            let changed = status.problem != text;
            if changed {
                tracing::warn!("fleet manager: {text}");
            }
            (status.connected, status.problem) = (false, text);
            changed
        });
    }

    pub(super) fn pause(&mut self, problem: Option<&Problem>) {
        let pause = self.backoff.pause(problem, rand::rng().random_range(0.0..1.0));
        self.not_before_ns = self.parts.clock.mono_ns().saturating_add(nanos(pause));
    }

    pub(super) async fn retire(&mut self, problem: &Problem) {
        let text = format!(
            "the fleet manager has retired this gateway ({problem}); nothing is sent any more until a new identity is installed or the gateway is started again"
        );
        self.status
            .send_modify(|status| (status.retired, status.connected, status.problem) = (true, false, text.clone()));
        self.alert("margo-retired", true, text).await;
    }

    pub(super) async fn alert(&mut self, code: &'static str, security: bool, text: String) {
        if !self.raised.insert(format!("{code} {text}")) && code != "margo-retired" {
            return;
        }
        if self.raised.len() > 1_000 {
            self.raised.clear();
        }
        tracing::error!(code, "{text}");
        self.parts.plant.alert(Alert { code, security, text }).await;
    }
}
