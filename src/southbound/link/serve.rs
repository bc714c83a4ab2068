//! Reading: cycles of rate groups, probes of devices off scan, identification.

use std::collections::VecDeque;
use std::time::Duration;

use tracing::{debug, info, warn};

use crate::model::{Reason, Stamp};

use super::super::breaker::Permit;
use super::super::device::Asking;
use super::super::driver::{Answer, Driver, Fault, Scope};
use super::super::schedule::Job;
use super::super::{DeviceState, Identity, PointResult, Scan, Update};
use super::LinkTask;

/// A cycle of a rate group under way.
#[derive(Debug)]
pub(super) struct Cycle<S> {
    steps: VecDeque<S>,
    results: Vec<PointResult>,
    /// Where the outcomes of each reply end, and when it came.
    marks: Vec<(usize, Stamp)>,
    /// Failed attempts at the step in front.
    tries: u8,
    /// The last failure that was given up on.
    failure: Option<String>,
}

/// Outcomes that are older than the end of their cycle by more than this carry their own time.
const SAME_TIME: Duration = Duration::from_millis(10);

impl<D: Driver> LinkTask<D> {
    /// Serves a job with one request.
    pub(super) async fn serve(&mut self, job: Job, starts: bool) {
        let mut cycle = match self.cycles.remove(&job) {
            Some(cycle) if !starts => cycle,
            _ => self.begin(job),
        };
        if let Some(step) = cycle.steps.pop_front() {
            let outcome = self.request(job.slot, &step, &mut cycle.steps, &mut cycle.results).await;
            match outcome {
                Ok(_) => {
                    cycle.tries = 0;
                    cycle.marks.push((cycle.results.len(), self.clock.now()));
                }
                Err(fault) if fault.scope == Scope::Link => return self.link_down(&fault),
                Err(fault) => {
                    if self.failed(job.slot, &fault) {
                        return;
                    }
                    self.again_or_give_up(job.slot, &mut cycle, step, fault);
                }
            }
        }
        if cycle.steps.is_empty() {
            self.finish(job, cycle);
        } else {
            self.cycles.insert(job, cycle);
        }
    }

    fn begin(&mut self, job: Job) -> Cycle<D::Step> {
        let points = self.device(job.slot).config.groups[job.group].points.len();
        let mut cycle = Cycle {
            steps: VecDeque::new(),
            results: Vec::with_capacity(points),
            marks: Vec::new(),
            tries: 0,
            failure: None,
        };
        self.driver.plan(job.slot, job.group, &mut cycle.steps, &mut cycle.results);
        cycle
    }

    /// One request and its accounts.
    async fn request(
        &mut self,
        slot: usize,
        step: &D::Step,
        steps: &mut VecDeque<D::Step>,
        results: &mut Vec<PointResult>,
    ) -> Result<Answer, Fault> {
        let begun = self.now();
        let outcome = self.driver.read(slot, step, steps, results).await;
        let round_trip = self.now().saturating_sub(begun);
        self.count();
        let at = self.clock.now();
        let device = self.device(slot);
        device.stats.requests += 1;
        match &outcome {
            Ok(answer) => {
                device.stats.exceptions += u64::from(*answer == Answer::Refused);
                device.replied(round_trip, at);
                device.breaker.success();
            }
            Err(fault) => {
                device.stats.failures += 1;
                device.stats.timeouts += u64::from(fault.reason == Reason::Timeout);
            }
        }
        outcome
    }

    /// Puts a failed step in front again, or reports its points as failed: at once if the device must be left alone.
    fn again_or_give_up(&mut self, slot: usize, cycle: &mut Cycle<D::Step>, step: D::Step, fault: Fault) {
        if self.driver.held(slot).is_none() && cycle.tries < self.device(slot).config.retries() {
            cycle.tries += 1;
            cycle.steps.push_front(step);
            return;
        }
        cycle.tries = 0;
        let results = &mut cycle.results;
        self.driver.points(&step, |point| results.push(PointResult { point, outcome: Err(fault.reason), at: None }));
        cycle.marks.push((cycle.results.len(), self.clock.now()));
        cycle.failure = Some(fault.text);
    }

    /// Counts a failed request; true when the device is off scan now.
    pub(super) fn failed(&mut self, slot: usize, fault: &Fault) -> bool {
        let now = self.now();
        // Two devices may be the same unit to the driver.
        for held in 0..self.devices.len() {
            if self.devices[held].is_some()
                && let Some(time) = self.driver.held(held)
            {
                self.schedule.hold(held, now + time);
            }
        }
        let device = self.device(slot);
        let Some(retry_in) = device.breaker.failure(now, rand::random()) else { return false };
        if !matches!(device.state, DeviceState::OffScan { .. }) {
            warn!(device = %device.id(), reason = fault.text, "off scan");
        }
        device.fail(DeviceState::OffScan { reason: fault.text.clone(), retry_in }, Reason::OffScan);
        self.schedule.pause(slot, true);
        self.cycles.retain(|job, _| job.slot != slot);
        true
    }

    fn finish(&mut self, job: Job, cycle: Cycle<D::Step>) {
        self.schedule.finished(job, self.now());
        let at = cycle.marks.last().map_or_else(|| self.clock.now(), |&(_, at)| at);
        let mut results = cycle.results;
        date(&mut results, &cycle.marks, at);
        let device = self.device(job.slot);
        device.finished(job.group, &results, cycle.failure);
        let scan = Scan { device: device.id().clone(), at, results };
        device.outstanding += 1;
        self.schedule.block(job.slot, true);
        self.outbox.push_back(Update::Scan(scan));
        if self.driver.closes_after_cycle() && self.schedule.is_idle() {
            self.driver.close();
        }
    }

    /// The next probe that will be due, and whose.
    pub(super) fn next_probe(&self) -> Option<(Duration, usize)> {
        let mut healthy = false;
        let mut first: Option<(Duration, usize)> = None;
        for (slot, device) in self.slots() {
            let at = match device.breaker.permit(Duration::ZERO) {
                Permit::Scan => {
                    healthy = true;
                    continue;
                }
                Permit::Probe => Duration::ZERO,
                Permit::Wait(until) => until,
            };
            // A probe of a device that must be left alone would send nothing and count as a failure.
            let at = self.driver.held(slot).map_or(at, |time| at.max(self.now() + time));
            first = Some(first.map_or((at, slot), |first| first.min((at, slot))));
        }
        // With nobody to disturb, probes need no budget.
        first.map(|(at, slot)| (if healthy { at.max(self.budget.next()) } else { at }, slot))
    }

    pub(super) fn due_probe(&self, now: Duration) -> Option<usize> {
        self.next_probe().filter(|&(at, _)| at <= now).map(|(_, slot)| slot)
    }

    /// Sends one request to a device that is off scan.
    pub(super) async fn probe(&mut self, slot: usize) {
        let started = self.now();
        let outcome = match self.driver.probe(slot) {
            Some(step) => self.request(slot, &step, &mut VecDeque::new(), &mut Vec::new()).await.map(drop),
            None => Ok(()),
        };
        let now = self.now();
        match outcome {
            Ok(()) => {
                info!(device = %self.device(slot).id(), "back on scan");
                self.device(slot).breaker.reset();
                self.device(slot).resume();
                self.schedule.pause(slot, false);
                self.schedule.hurry(slot, now);
            }
            Err(fault) if fault.scope == Scope::Link => self.link_down(&fault),
            Err(fault) => {
                self.budget.spent(started, now);
                self.failed(slot, &fault);
            }
        }
    }

    /// Asks a device what it is, by ourselves.
    pub(super) async fn ask_identity(&mut self, slot: usize) {
        match self.identify(slot).await {
            Ok(Some(_)) => self.device(slot).asking = Asking::Done,
            Ok(None) => self.device(slot).asking = Asking::Never,
            Err(fault) => {
                debug!(device = %self.device(slot).id(), reason = fault.text, "does not say what it is");
                self.device(slot).asking = Asking::Never;
                if fault.scope == Scope::Link {
                    self.link_down(&fault);
                }
            }
        }
    }

    pub(super) async fn identify(&mut self, slot: usize) -> Result<Option<Identity>, Fault> {
        let outcome = self.driver.identify(slot).await;
        self.count();
        let device = self.device(slot);
        // A device that says nothing of itself is told, too: who waits for its identity need not wait longer.
        if let Ok(answer) = &outcome {
            let identity = answer.clone().unwrap_or_default();
            if device.identity.as_ref() != Some(&identity) {
                device.identity = Some(identity);
                device.identity_is_news = true;
            }
        }
        outcome
    }
}

/// Gives outcomes their own time where it differs from that of the scan.
fn date(results: &mut [PointResult], marks: &[(usize, Stamp)], end: Stamp) {
    let mut from = 0;
    for &(to, at) in marks {
        if end.mono_ns.saturating_sub(at.mono_ns) <= SAME_TIME.as_nanos() as u64 {
            break;
        }
        results[from..to].iter_mut().for_each(|result| result.at = Some(at));
        from = to;
    }
}
