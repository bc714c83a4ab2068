//! Writes down what happens to a job: its topic, events, and the audit log for who asked at the local socket.

use super::worker::Asked;
use super::{GATEWAY, Jobs, Paper, Question, Reply};
use crate::app::ingest::device_hash;
use crate::contract::v1::event::Severity;
use crate::contract::{ContractMessage, Encoding, Stamped, timestamp, topics, v1};
use crate::management::firmware::{Approval, Job, Stage};
use crate::management::request::Refusal;
use crate::model::{Lane, RecordKind};
use crate::store::NewRecord;

/// Writes for one target.
pub(super) struct Clerk {
    paper: Paper,
    jobs: Jobs,
    /// Its device; empty for the gateway.
    device: String,
    /// The stage that was told last.
    told: Option<Stage>,
}

impl Clerk {
    /// What ended in an earlier life was told then.
    pub(super) fn new(paper: Paper, jobs: Jobs, target: &str, job: Option<&Job>) -> Self {
        let device = if target == GATEWAY { String::new() } else { target.to_owned() };
        Self { paper, jobs, device, told: job.map(|job| job.stage).filter(|stage| stage.is_final()) }
    }

    /// Shows a job, and tells a new stage, once. After a restart one that is under way is told again: a new version of the
    /// gateway proves with it that it publishes.
    pub(super) async fn show(&mut self, job: Option<&Job>) {
        let Some(job) = job else { return };
        self.post(job);
        if self.told.replace(job.stage) == Some(job.stage) {
            return;
        }
        let severity = match job.stage {
            Stage::Failed | Stage::RolledBack => Severity::Alarm,
            Stage::Refused => Severity::Warning,
            _ => Severity::Info,
        };
        let code = job.code.as_ref().map_or_else(String::new, |code| format!(" ({code})"));
        let reason = job.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
        let text = format!("firmware {} for {} is {}{code}{reason}", job.version, job.target, job.stage.as_str());
        tracing::info!("{text}");
        self.paper.events.report(severity, &format!("firmware-{}", job.stage.as_str()), &self.device, text).await;
    }

    /// Puts a job on its topic and before who asks.
    pub(super) fn post(&self, job: &Job) {
        self.paper.board.set(&topics::firmware_status(&self.device), &status(&self.device, job));
        self.jobs.with(|jobs| jobs.insert(job.target.clone(), job.clone()));
    }

    /// Writes down a request and its outcome, if nobody else does.
    pub(super) async fn audit(&self, asked: &Asked, answer: &Result<Reply, Refusal>) {
        let (action, id) = match &asked.question {
            Question::Offer { offer, .. } => ("firmware-offer", &offer.id),
            Question::Decide { id, approve: true, .. } => ("firmware-approve", id),
            Question::Decide { id, .. } => ("firmware-abort", id),
            Question::Chunk { .. } | Question::Jobs { .. } => return,
        };
        if !asked.is_audited {
            return;
        }
        let (detail, outcome) = match answer {
            Ok(Reply::Job(job)) => (format!("version {}", job.version), "done".to_owned()),
            Ok(_) => (String::new(), "done".to_owned()),
            Err(refusal) => (refusal.message.clone(), refusal.code.to_owned()),
        };
        let now = self.paper.clock.now();
        let object = if self.device.is_empty() { GATEWAY.to_owned() } else { format!("devices/{}", self.device) };
        let entry = v1::AuditEntry {
            actor: asked.actor.clone(),
            action: action.to_owned(),
            object,
            detail,
            outcome,
            correlation_id: id.clone(),
            ..v1::AuditEntry::default()
        }
        .stamped(now);
        let record = NewRecord {
            lane: Lane::Critical,
            kind: RecordKind::Audit,
            device: device_hash(&self.device),
            ts_ms: now.wall_ms,
            count: 1,
            payload: entry.encode_as(Encoding::Protobuf),
        };
        if let Err(error) = self.paper.store.append_synced(vec![record]).await {
            tracing::error!(%error, asked.actor, action, "an audit entry was not stored");
        }
    }
}

/// The job as its topic shows it.
fn status(device: &str, job: &Job) -> v1::FirmwareStatus {
    v1::FirmwareStatus {
        device: device.to_owned(),
        job: job.offer.id.clone(),
        stage: job.stage.as_str().to_owned(),
        version: job.version.clone(),
        from_version: job.from_version.clone().unwrap_or_default(),
        progress: job.progress(),
        size: job.size,
        sha256: job.sha256.clone(),
        signer: job.signer.clone(),
        approved_by: match &job.approval {
            Some(Approval::Operator(who)) => who.clone(),
            Some(Approval::Window) => "window".to_owned(),
            None => String::new(),
        },
        received: job.received,
        code: job.code.clone().unwrap_or_default(),
        reason: job.reason.clone().unwrap_or_default(),
        since: Some(timestamp(job.since_ms)),
    }
}
