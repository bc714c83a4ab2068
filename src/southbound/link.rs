//! The supervised link: one task that owns one physical link and serves every device on it.
//!
//! Order of service: writes, then questions of operators and requests of transfers (of these one when nothing is due, or after eight
//! reads that were), then probes of devices that are off scan (a twentieth of the
//! time at most while others are well), then scans, request by request in turn. Nothing here knows a protocol.
//!
//! What happens when something is full: commands beyond 64 are refused at once (`busy`); a scan result that the gateway does
//! not take over waits here, and its device starts no new cycle until it is gone.

mod commands;
mod report;
mod serve;

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::model::Reason;
use crate::platform::beat;
use crate::platform::clock::SharedClock;

use super::breaker::{Permit, ProbeBudget};
use super::device::{Asking, DeviceRun};
use super::driver::{Driver, Fault};
use super::schedule::{Job, Schedule};
use super::{DeviceConfig, DeviceState, Update};

pub(super) use commands::Command;
use serve::Cycle;

/// The link cannot be made.
#[derive(Debug)]
struct Down {
    retry_at: Duration,
    backoff: Duration,
    reason: String,
}

/// One link and its devices.
pub(super) struct LinkTask<D: Driver> {
    driver: D,
    name: String,
    devices: Vec<Option<DeviceRun>>,
    schedule: Schedule,
    cycles: HashMap<Job, Cycle<D::Step>>,
    budget: ProbeBudget,
    down: Option<Down>,
    late_replies: u64,
    connects: u64,
    waiting: VecDeque<Command>,
    /// Reads that have their turn before the next foreign request, as long as any are due.
    owed_reads: u8,
    outbox: VecDeque<Update>,
    updates: mpsc::Sender<Update>,
    clock: SharedClock,
    origin: Instant,
}

impl<D: Driver> LinkTask<D> {
    pub fn new(name: String, driver: D, updates: mpsc::Sender<Update>, clock: SharedClock) -> Self {
        Self {
            driver,
            name,
            devices: Vec::new(),
            schedule: Schedule::default(),
            cycles: HashMap::new(),
            budget: ProbeBudget::default(),
            down: None,
            late_replies: 0,
            connects: 0,
            waiting: VecDeque::new(),
            owed_reads: 0,
            outbox: VecDeque::new(),
            updates,
            clock,
            origin: beat::before(Instant::now()),
        }
    }

    /// Serves the link for ever; returns when no more commands can come.
    pub async fn run(&mut self, commands: &mut mpsc::Receiver<Command>) {
        loop {
            while self.waiting.len() < commands::CAPACITY {
                match commands.try_recv() {
                    Ok(command) => self.accept(command),
                    Err(mpsc::error::TryRecvError::Empty) => break,
                    Err(mpsc::error::TryRecvError::Disconnected) => return,
                }
            }
            // First what was read is handed over, then time moves on: a cycle that comes due in this moment is not held
            // up by results that are on their way out.
            self.report();
            self.tick();
            if self.serve_next().await {
                // One long-running link must not hold a thread for itself.
                tokio::task::consume_budget().await;
                continue;
            }
            if !self.wait(commands).await {
                return;
            }
        }
    }

    /// Does the most urgent thing; false when there is nothing to do now.
    async fn serve_next(&mut self) -> bool {
        if let Some(command) = self.next_command() {
            self.obey(command).await;
            return true;
        }
        let now = self.now();
        if self.down.is_some() {
            return self.try_reconnect(now).await;
        }
        if let Some(slot) = self.due_probe(now) {
            self.probe(slot).await;
            return true;
        }
        if let Some(slot) = self.slot_to_identify(now) {
            self.ask_identity(slot).await;
            return true;
        }
        if let Some((job, starts)) = self.schedule.next(now) {
            self.owed_reads = self.owed_reads.saturating_sub(1);
            self.serve(job, starts).await;
            return true;
        }
        // Nothing is due: who had to let others go first has his turn again.
        std::mem::take(&mut self.owed_reads) > 0
    }

    fn slot_to_identify(&self, now: Duration) -> Option<usize> {
        let wanted = |slot: usize, device: &DeviceRun| {
            device.asking == Asking::Now
                && device.breaker.permit(now) == Permit::Scan
                && self.driver.held(slot).is_none()
        };
        self.slots().find(|&(slot, device)| wanted(slot, device)).map(|(slot, _)| slot)
    }

    /// Sleeps until something is due. False when no more commands can come.
    async fn wait(&mut self, commands: &mut mpsc::Receiver<Command>) -> bool {
        let wake = self.origin + self.wake_at();
        let blocked = !self.outbox.is_empty();
        let updates = self.updates.clone();
        tokio::select! {
            biased;
            command = commands.recv() => match command {
                Some(command) => self.accept(command),
                None => return false,
            },
            permit = updates.reserve(), if blocked => match permit {
                // The permit is used, not tried for again: links that take turns in trying could starve each other.
                Ok(permit) => self.hand_over_with(permit),
                Err(_) => return false,
            },
            () = tokio::time::sleep_until(wake) => {}
        }
        true
    }

    fn wake_at(&self) -> Duration {
        let mut wake = self.next_report();
        wake = self.command_due().map_or(wake, |due| wake.min(due));
        if let Some(down) = &self.down {
            return wake.min(down.retry_at);
        }
        wake = self.schedule.wake_at().map_or(wake, |due| wake.min(due));
        self.next_probe().map_or(wake, |(at, _)| wake.min(at))
    }

    fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    fn tick(&mut self) {
        let now = self.now();
        let devices = &mut self.devices;
        self.schedule.tick(now, rand::random::<f64>, |job, cause, count| {
            if let Some(device) = devices[job.slot].as_mut() {
                *device.stats.overruns.entry(cause.as_str()).or_default() += count;
            }
        });
    }

    fn device(&mut self, slot: usize) -> &mut DeviceRun {
        self.devices[slot].as_mut().expect("scheduled slots are in use")
    }

    fn slots(&self) -> impl Iterator<Item = (usize, &DeviceRun)> {
        self.devices.iter().enumerate().filter_map(|(slot, device)| Some((slot, device.as_ref()?)))
    }

    fn slot_where(&self, test: impl Fn(&DeviceRun) -> bool) -> Option<usize> {
        self.slots().find(|(_, device)| test(device)).map(|(slot, _)| slot)
    }

    /// Hands over what the gateway takes without waiting; for the end of the task.
    pub fn hand_over_rest(&mut self) {
        self.hand_over();
    }

    /// Configurations of all devices, to begin anew with.
    pub fn configs(&self) -> Vec<DeviceConfig> {
        self.slots().map(|(_, device)| device.config.clone()).collect()
    }

    /// Takes devices on that are not on the link yet.
    pub fn attach(&mut self, config: DeviceConfig) {
        let slot = self.devices.iter().position(Option::is_none).unwrap_or_else(|| {
            self.devices.push(None);
            self.devices.len() - 1
        });
        let now = self.now();
        self.driver.attach(slot, &config);
        for (group, rate) in config.groups.iter().enumerate() {
            self.schedule.add(Job { slot, group }, rate.every, now, rand::random());
        }
        self.devices[slot] = Some(DeviceRun::new(config));
        if let Some(down) = &self.down {
            let reason = down.reason.clone();
            self.schedule.pause(slot, true);
            self.device(slot).fail(DeviceState::Offline { reason }, Reason::LinkDown);
        }
    }

    fn detach(&mut self, slot: usize) {
        self.schedule.remove(slot);
        self.cycles.retain(|job, _| job.slot != slot);
        self.driver.detach(slot);
        self.devices[slot] = None;
    }

    /// The link cannot be made: every device on it is offline at once.
    pub fn link_down(&mut self, fault: &Fault) {
        // All devices on a link agree on it.
        let of_device = self.slots().next().map(|(_, device)| device.config.reconnect());
        let (first, longest) = of_device.unwrap_or((Duration::from_secs(1), Duration::from_secs(30)));
        let backoff = self.down.as_ref().map_or(first, |down| (down.backoff * 2).min(longest));
        if self.down.is_none() {
            warn!(link = self.name, reason = fault.text, "link down");
        }
        let retry_at = self.now() + backoff.mul_f64(1.0 - 0.2 * rand::random::<f64>());
        self.down = Some(Down { retry_at, backoff, reason: fault.text.clone() });
        self.cycles.clear();
        self.owed_reads = 0;
        self.driver.close();
        for slot in 0..self.devices.len() {
            if let Some(device) = self.devices[slot].as_mut() {
                self.schedule.pause(slot, true);
                device.fail(DeviceState::Offline { reason: fault.text.clone() }, Reason::LinkDown);
            }
        }
    }

    async fn try_reconnect(&mut self, now: Duration) -> bool {
        if self.down.as_ref().is_some_and(|down| now < down.retry_at) {
            return false;
        }
        match self.driver.connect().await {
            Ok(()) => self.link_up(),
            Err(fault) => self.link_down(&fault),
        }
        self.count();
        true
    }

    fn link_up(&mut self) {
        info!(link = self.name, "link up");
        self.down = None;
        let now = self.now();
        for slot in 0..self.devices.len() {
            if let Some(device) = self.devices[slot].as_mut() {
                device.breaker.reset();
                device.resume();
                self.schedule.pause(slot, false);
                self.schedule.hurry(slot, now);
            }
        }
    }

    /// Adds up what the driver counted. Behind a connection that was made anew there may be another device.
    fn count(&mut self) {
        let tally = self.driver.take_tally();
        if tally.connects > 0 && self.connects > 0 && !self.driver.closes_after_cycle() {
            self.devices.iter_mut().flatten().for_each(DeviceRun::ask_again);
        }
        self.late_replies += tally.late_replies;
        self.connects += tally.connects;
    }
}

#[cfg(test)]
mod tests;
