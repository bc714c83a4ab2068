//! The gateway as a target of its own updates.

use std::path::Path;
use std::time::Duration;

use tokio::sync::watch;

use super::boot::{Boot, BootError, Slot};
use super::health::{HealthGate, HealthReport, HealthVerdict};
use super::updater::{Delivered, Proof, Target, TargetError};
use super::{Job, SignedManifest, Version};
use crate::platform::clock::SharedClock;

/// Installs into the place that does not run, restarts, proves.
#[derive(Debug)]
pub struct GatewayTarget {
    boot: Boot,
    running: Slot,
    version: Version,
    name: String,
    within: Duration,
    gate: Option<HealthGate>,
    health: watch::Receiver<HealthReport>,
    restart: watch::Sender<Option<String>>,
    clock: SharedClock,
}

impl GatewayTarget {
    /// `running` is what [`Boot::start`] returned, `version` this binary's. A new binary has to be healthy `within` that
    /// time after its start. When a restart is wanted, its reason appears on `restart`; `app` then drains and ends, and
    /// the service manager starts the launcher again.
    pub fn new(
        boot: Boot,
        running: Slot,
        version: Version,
        within: Duration,
        health: watch::Receiver<HealthReport>,
        restart: watch::Sender<Option<String>>,
        clock: SharedClock,
    ) -> Self {
        let name = format!("gateway-{}", std::env::consts::ARCH);
        Self { boot, running, version, name, within, gate: None, health, restart, clock }
    }

    fn judge(&mut self, devices: &[String]) -> HealthVerdict {
        let now = self.clock.now();
        let gate = self.gate.get_or_insert_with(|| HealthGate::new(devices.to_vec(), self.within, now));
        gate.judge(&self.health.borrow(), now)
    }

    fn want_restart(&self, reason: &str) {
        self.restart.send_if_modified(|wanted| {
            let is_new = wanted.is_none();
            wanted.get_or_insert_with(|| reason.to_owned());
            is_new
        });
    }
}

fn failed(error: BootError) -> TargetError {
    match error {
        BootError::Copy(refusal) => TargetError::Mismatch(refusal),
        BootError::DoesNotRun(_) => TargetError::Permanent { code: "does-not-run", reason: error.to_string() },
        BootError::Busy(_) => TargetError::Permanent { code: "busy", reason: error.to_string() },
        BootError::Io { .. } => TargetError::Transient(error.to_string()),
    }
}

impl Target for GatewayTarget {
    fn name(&self) -> &str {
        &self.name
    }

    async fn current(&mut self) -> Result<Option<Version>, TargetError> {
        Ok(Some(self.version.clone()))
    }

    async fn install(&mut self, job: &Job, artifact: &Path) -> Result<Delivered, TargetError> {
        let record = self.boot.record();
        let installed = |job: &Job| {
            let on_trial = record.trial.as_ref().is_some_and(|trial| trial.job == job.offer.id);
            on_trial || record.last.as_ref().is_some_and(|last| last.job == job.offer.id)
        };
        if installed(job) {
            // The update happened and the process died before it could say so.
            return Ok(Delivered::Installed);
        }
        let signed = SignedManifest::parse(&job.offer.manifest).map_err(TargetError::Mismatch)?;
        let (boot, artifact, id) = (self.boot.clone(), artifact.to_owned(), job.offer.id.clone());
        let devices = self.health.borrow().online.iter().cloned().collect();
        let done = tokio::task::spawn_blocking(move || {
            let slot = boot.install(&artifact, signed.unverified())?;
            boot.begin_trial(slot, &id, signed.unverified(), devices)
        });
        match done.await {
            Ok(done) => done.map(|()| Delivered::Installed).map_err(failed),
            Err(error) => Err(TargetError::Transient(error.to_string())),
        }
    }

    async fn prove(&mut self, job: &Job) -> Result<Proof, TargetError> {
        let record = self.boot.record();
        let Some(trial) = record.trial.as_ref().filter(|trial| trial.job == job.offer.id) else {
            return Ok(match record.last.filter(|last| last.job == job.offer.id) {
                Some(last) if last.proven => Proof::Healthy,
                Some(last) => Proof::RolledBack { code: last.code, reason: last.reason },
                None => Proof::RolledBack {
                    code: "boot-record-lost".to_owned(),
                    reason: "the boot record was lost; the packaged binary runs".to_owned(),
                },
            });
        };
        if self.running != trial.slot || trial.starts == 0 {
            self.want_restart("a new version is installed");
            return Ok(Proof::Waiting("waiting for the restart".to_owned()));
        }
        if trial.given_up.is_some() {
            self.want_restart("the new version is not healthy");
            return Ok(Proof::Waiting("waiting for the restart with the old version".to_owned()));
        }
        match self.judge(&trial.devices) {
            HealthVerdict::Healthy => self.boot.prove().map(|()| Proof::Healthy).map_err(failed),
            HealthVerdict::Waiting(missing) => Ok(Proof::Waiting(missing)),
            HealthVerdict::Failed(missing) => {
                self.boot.give_up(&missing).map_err(failed)?;
                self.want_restart("the new version is not healthy");
                Ok(Proof::Waiting(missing))
            }
        }
    }
}
