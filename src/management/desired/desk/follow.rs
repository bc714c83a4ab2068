//! The only place where a configuration job changes its state: one row of the table, and what it asks for.

use super::{Desired, Facts, USUAL_HISTORY, history_key};
use crate::contract::v1::event::Severity;
use crate::management::desired::document::parse_gateway;
use crate::management::desired::job::{Target, Version};
use crate::management::desired::prove::{Watcher, baseline};
use crate::management::desired::states::{Action, Event, Guard, TABLE};
use crate::management::journal::Shelf;
use crate::management::request::{FieldError, Refusal};
use crate::management::step::{Cause, Step};
use crate::management::table::Word;
use crate::model::Stamp;

impl Desired {
    #[allow(clippy::too_many_arguments, reason = "one row's context; the only place where a job changes its state")]
    pub(super) fn follow(
        &mut self,
        now: Stamp,
        target: &Target,
        event: Event,
        version: Option<Version>,
        facts: Facts<'_>,
        watcher: &Watcher,
        cause: &Cause,
        words: &str,
        step: &mut Step,
    ) -> Result<(), Refusal> {
        let Some(job) = self.jobs.get_mut(target) else { return Ok(()) };
        let runs = facts.runs || *target == Target::Gateway;
        let row = TABLE.decide(job.state, event, |guard| match guard {
            Guard::Running => runs,
        })?;
        let number = version.as_ref().or(job.candidate.as_ref()).unwrap_or(&job.in_force).version;
        if row.from != row.to {
            job.state = row.to;
            job.since_ms = now.wall_ms;
        }
        if matches!(event, Event::ProofFailed | Event::ApplyFailed | Event::Stops | Event::Reapply) {
            self.proofs.remove(target);
            self.unapplied.remove(target);
        }
        let detail = match words.is_empty() {
            true => format!("version {number}: {} to {}", row.from, row.to),
            false => format!("version {number}: {} to {}: {words}", row.from, row.to),
        };
        step.audit(now, cause, &format!("config-{}", event.as_str()), format!("{target}/config"), detail, "done");
        let mut incoming = version;
        let mut next = false;
        for &action in row.effects {
            let Some(job) = self.jobs.get_mut(target) else { break };
            match action {
                Action::Take => {
                    job.candidate = incoming.take().or(job.candidate.take());
                    // How the version before ended is told by the history; of this one nothing is known yet.
                    job.errors.clear();
                    job.result.clear();
                }
                Action::Queue => job.queued = incoming.take(),
                Action::Baseline => {
                    job.excused = match (facts.profile, target.device()) {
                        (Some(profile), Some(device)) => baseline(profile, &watcher.latest(device)),
                        _ => Vec::new(),
                    };
                }
                Action::Apply => self.ask(target, step),
                Action::Commit => self.end(target, "applied", "", step),
                Action::GiveUp => self.end(target, "rolled-back", words, step),
                Action::Alarm => {
                    let what = format!(
                        "configuration {number} of {target}: {words}; the last proven version is applied again"
                    );
                    step.raise(now, target.device(), Severity::Alarm, "config-rolled-back", what);
                }
                Action::Next => next = true,
            }
        }
        self.keep(target, facts, step);
        if next && let Some(queued) = self.jobs.get_mut(target).and_then(|job| job.queued.take()) {
            let cause = Cause::own(&queued.by.clone());
            return self.follow(now, target, Event::Desired, Some(queued), facts, watcher, &cause, "", step);
        }
        Ok(())
    }

    /// The candidate ended: into force or not, and into the history.
    fn end(&mut self, target: &Target, result: &str, words: &str, step: &mut Step) {
        let Some(job) = self.jobs.get_mut(target) else { return };
        let Some(mut version) = job.candidate.take() else { return };
        job.excused.clear();
        result.clone_into(&mut job.result);
        job.result_version = version.version;
        job.errors = match words.is_empty() {
            true => Vec::new(),
            false => vec![FieldError::new("", "not-proven", words)],
        };
        if version.version == job.in_force.version {
            return;
        }
        result.clone_into(&mut version.result);
        if result == "applied" {
            job.in_force = version.clone();
        }
        let in_force = job.in_force.version;
        step.put(Shelf::History, history_key(target, version.version), &version);
        let history = self.history.entry(target.clone()).or_default();
        history.insert(version.version, version);
        while history.len() > self.keep_versions {
            // The version in force is never the one that goes.
            let Some(oldest) = history.keys().copied().find(|v| *v != in_force) else { break };
            history.remove(&oldest);
            step.delete(Shelf::History, history_key(target, oldest));
        }
        if *target == Target::Gateway
            && let Ok(overlay) = parse_gateway(&self.jobs[target].in_force.settings)
        {
            self.keep_versions = overlay.history.unwrap_or(USUAL_HISTORY);
        }
    }
}
