//! What others ask of a link: writes, identification, requests in the protocol's own form, another set of devices.

use std::time::Duration;

use tokio::sync::oneshot;
use tracing::info;

use crate::model::{DeviceId, Reason, Value};

use super::super::driver::{Driver, Fault, Scope};
use super::super::{DeviceConfig, ExchangeError, IdentifyError, Identity, WriteDone, WriteError};
use super::LinkTask;

/// Reads that are due and go before the next foreign request: a full bus gives a transfer a ninth of its turns.
const READS_BETWEEN: u8 = 8;
/// Commands that may wait for a link.
pub(in super::super) const CAPACITY: usize = 64;

/// A request to a link task.
#[derive(Debug)]
pub(in super::super) enum Command {
    /// Write one point.
    Write { device: DeviceId, point: u32, value: Value, reply: oneshot::Sender<Result<WriteDone, WriteError>> },
    /// Ask a device what it is.
    Identify { device: DeviceId, reply: oneshot::Sender<Result<Identity, IdentifyError>> },
    /// Carry one request in the protocol's own form.
    Exchange { device: DeviceId, request: Vec<u8>, reply: oneshot::Sender<Result<Vec<u8>, ExchangeError>> },
    /// Read the points of a device soon, whenever they are due.
    Hurry { device: DeviceId },
    /// Serve exactly these devices from now on; those that are the same go on undisturbed.
    Devices { devices: Vec<DeviceConfig>, done: oneshot::Sender<()> },
}

impl Command {
    fn is_for(&self, id: &DeviceId) -> bool {
        match self {
            Command::Write { device, .. } | Command::Identify { device, .. } | Command::Exchange { device, .. } => {
                device == id
            }
            Command::Devices { .. } | Command::Hurry { .. } => false,
        }
    }
}

/// A write that has begun. When the link is stopped in the middle of it nobody knows what the device did, and the answer
/// says so.
struct Underway(Option<oneshot::Sender<Result<WriteDone, WriteError>>>);

impl Underway {
    fn ended(mut self, outcome: Result<WriteDone, WriteError>) {
        if let Some(reply) = self.0.take() {
            let _ = reply.send(outcome);
        }
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        if let Some(reply) = self.0.take() {
            let _ = reply.send(Err(WriteError::AnswerLost("the link was stopped meanwhile".to_owned())));
        }
    }
}

impl<D: Driver> LinkTask<D> {
    /// Takes a command in; a new set of devices is put in force at once, the others wait for the link.
    pub(super) fn accept(&mut self, command: Command) {
        match command {
            Command::Devices { devices, done } => {
                self.set_devices(devices);
                // Nobody waiting any more is fine: the devices are in force.
                let _ = done.send(());
            }
            Command::Hurry { device } => {
                let now = self.now();
                if let Some(slot) = self.slot_where(|run| *run.id() == device) {
                    self.schedule.hurry(slot, now);
                }
            }
            other => self.waiting.push_back(other),
        }
    }

    /// The next command to obey: writes first. One for a device that must be left alone waits until it need not. After a
    /// foreign request whatever is due is read first: a transfer of firmware is long, and the others must not notice it.
    pub(super) fn next_command(&mut self) -> Option<Command> {
        let after = |command: &Command| self.owed_reads > 0 && matches!(command, Command::Exchange { .. });
        let free = |command: &Command| self.held(command).is_none() && !after(command);
        let write = self.waiting.iter().position(|command| matches!(command, Command::Write { .. }) && free(command));
        let next = write.or_else(|| self.waiting.iter().position(free))?;
        self.waiting.remove(next)
    }

    /// When the first waiting command can be obeyed.
    pub(super) fn command_due(&self) -> Option<Duration> {
        self.waiting.iter().map(|command| self.now() + self.held(command).unwrap_or_default()).min()
    }

    fn held(&self, command: &Command) -> Option<Duration> {
        let (Command::Write { device, .. } | Command::Identify { device, .. } | Command::Exchange { device, .. }) =
            command
        else {
            return None;
        };
        let slot = self.slot_where(|run| run.id() == device)?;
        if self.down.is_some() || self.devices[slot].as_ref().is_some_and(|run| run.breaker.is_open()) {
            return None;
        }
        self.driver.held(slot)
    }

    /// Obeys a write or a question. One whose asker has gone is not carried out.
    pub(super) async fn obey(&mut self, command: Command) {
        match command {
            Command::Write { device, point, value, reply } if !reply.is_closed() => {
                let underway = Underway(Some(reply));
                underway.ended(self.write(&device, point, &value).await);
            }
            Command::Identify { device, reply } if !reply.is_closed() => {
                let outcome = self.identify_now(device).await;
                let _ = reply.send(outcome);
            }
            Command::Exchange { device, request, reply } if !reply.is_closed() => {
                let outcome = self.exchange(&device, &request).await;
                // A transfer that was given up needs no answer: every request of it may come again.
                let _ = reply.send(outcome);
                self.owed_reads = READS_BETWEEN;
            }
            Command::Write { .. } | Command::Identify { .. } | Command::Exchange { .. } | Command::Hurry { .. } => {}
            Command::Devices { devices, .. } => self.set_devices(devices),
        }
    }

    async fn write(&mut self, id: &DeviceId, point: u32, value: &Value) -> Result<WriteDone, WriteError> {
        let unknown = || WriteError::UnknownPoint { device: id.clone(), point };
        let slot = self.slot_where(|device| device.id() == id).ok_or_else(unknown)?;
        let device = self.device(slot);
        if point as usize >= device.config.device.points.len() {
            return Err(unknown());
        }
        if device.breaker.is_open() {
            return Err(WriteError::OffScan(device.state.reason().unwrap_or("repeated failures").to_owned()));
        }
        if let Some(down) = &self.down {
            return Err(WriteError::LinkDown(down.reason.clone()));
        }
        let outcome = self.driver.write(slot, point, value).await;
        self.count();
        self.account(slot, &outcome);
        outcome
    }

    /// A write tells about the device's health like any request; after one, its points are read soon.
    fn account(&mut self, slot: usize, outcome: &Result<WriteDone, WriteError>) {
        let (at, now) = (self.clock.now(), self.now());
        let device = self.device(slot);
        let fault = |reason, error: &WriteError| Fault { scope: Scope::Device, reason, text: error.to_string() };
        match outcome {
            Err(WriteError::LinkDown(text)) => {
                let fault = Fault { scope: Scope::Link, reason: Reason::LinkDown, text: text.clone() };
                return self.link_down(&fault);
            }
            Err(error @ (WriteError::Timeout(_) | WriteError::AnswerLost(_))) => {
                device.stats.requests += 1;
                device.stats.failures += 1;
                device.stats.timeouts += u64::from(matches!(error, WriteError::Timeout(_)));
                self.failed(slot, &fault(Reason::Timeout, error));
                return;
            }
            Err(WriteError::DeviceException { .. }) => {
                device.stats.requests += 1;
                device.stats.replies += 1;
                device.stats.exceptions += 1;
                device.stats.last_reply = Some(at);
            }
            Ok(_) | Err(WriteError::ReadBackMismatch { .. }) => {
                device.stats.requests += 1;
                device.stats.replies += 1;
                device.stats.last_reply = Some(at);
                device.breaker.success();
            }
            Err(_) => return,
        }
        self.schedule.hurry(slot, now);
    }

    async fn exchange(&mut self, id: &DeviceId, request: &[u8]) -> Result<Vec<u8>, ExchangeError> {
        let slot = self.slot_where(|device| device.id() == id);
        let slot = slot.ok_or_else(|| ExchangeError::UnknownDevice(id.clone()))?;
        let device = self.device(slot);
        if device.breaker.is_open() {
            return Err(ExchangeError::OffScan(device.state.reason().unwrap_or("repeated failures").to_owned()));
        }
        if let Some(down) = &self.down {
            return Err(ExchangeError::LinkDown(down.reason.clone()));
        }
        let outcome = self.driver.exchange(slot, request).await;
        self.count();
        let at = self.clock.now();
        let device = self.device(slot);
        match &outcome {
            Ok(_) => {
                device.stats.requests += 1;
                device.stats.replies += 1;
                device.stats.last_reply = Some(at);
                device.breaker.success();
            }
            Err(ExchangeError::LinkDown(text)) => {
                self.link_down(&Fault { scope: Scope::Link, reason: Reason::LinkDown, text: text.clone() });
            }
            Err(ExchangeError::NoAnswer(text)) => {
                device.stats.requests += 1;
                device.stats.failures += 1;
                self.failed(slot, &Fault { scope: Scope::Device, reason: Reason::Timeout, text: text.clone() });
            }
            Err(_) => {}
        }
        outcome
    }

    async fn identify_now(&mut self, id: DeviceId) -> Result<Identity, IdentifyError> {
        let Some(slot) = self.slot_where(|device| device.id() == &id) else {
            return Err(IdentifyError::UnknownDevice(id));
        };
        if let Some(down) = &self.down {
            return Err(IdentifyError::Failed(down.reason.clone()));
        }
        match self.identify(slot).await {
            Ok(Some(identity)) => Ok(identity),
            Ok(None) => Err(IdentifyError::Unsupported),
            Err(fault) => {
                if fault.scope == Scope::Link {
                    self.link_down(&fault);
                }
                Err(IdentifyError::Failed(fault.text))
            }
        }
    }

    pub(in super::super) fn set_devices(&mut self, wanted: Vec<DeviceConfig>) {
        for slot in 0..self.devices.len() {
            let Some(device) = &self.devices[slot] else { continue };
            if !wanted.contains(&device.config) {
                info!(device = %device.id(), link = self.name, "taken off the link");
                let id = device.id().clone();
                // Both name points by their place in a list that is no longer in force. Who waits for a write is told
                // that it was not done.
                self.waiting.retain(|command| !command.is_for(&id));
                self.outbox.retain(|update| update.device() != &id);
                self.detach(slot);
            }
        }
        for config in wanted {
            if self.slot_where(|device| device.id() == &config.device.id).is_none() {
                self.attach(config);
            }
        }
    }
}
