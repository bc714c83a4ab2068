//! The seam between the supervised link, which is the same for every protocol, and a protocol's driver.
//!
//! One driver value owns one physical link (a socket, a serial port, a session) and speaks for every device on it. The
//! link task calls it from a single place, one call at a time, so a driver needs no locks. A call that was dropped half
//! way (shutdown only) is never followed by another one on the same driver.

use std::collections::VecDeque;
use std::future::Future;
use std::time::Duration;

use crate::model::{Reason, Value};

use super::{DeviceConfig, ExchangeError, Identity, PointResult, WriteDone, WriteError};

/// Why a request brought no valid reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Fault {
    /// Whom it concerns.
    pub scope: Scope,
    /// The reason that the points get.
    pub reason: Reason,
    /// What happened, for people.
    pub text: String,
}

/// Whom a fault concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The device that was asked; its bus-mates may be well.
    Device,
    /// Every device on the link: it cannot be made.
    Link,
}

/// A valid reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The points asked for have their outcomes.
    Values,
    /// The device refused; refused points have their outcomes, or smaller requests were put in front of the steps left.
    Refused,
}

/// What happened on the link since the last call of [`Driver::take_tally`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Replies thrown away because they came late or belonged to nobody.
    pub late_replies: u64,
    /// Times the link was made.
    pub connects: u64,
}

/// A protocol on one physical link.
pub trait Driver: Send + 'static {
    /// One request of a plan.
    type Step: Clone + Send + Sync;

    /// Takes a device on at place `slot`, which is free.
    fn attach(&mut self, slot: usize, device: &DeviceConfig);

    /// Forgets the device at `slot`.
    fn detach(&mut self, slot: usize);

    /// Makes the link if it is down. Errors have [`Scope::Link`].
    fn connect(&mut self) -> impl Future<Output = Result<(), Fault>> + Send;

    /// Asks the device what it is. `Ok(None)` when it does not say.
    fn identify(&mut self, slot: usize) -> impl Future<Output = Result<Option<Identity>, Fault>> + Send;

    /// Adds the requests of one cycle of a rate group to `steps`, and outcomes that need no request to `results`.
    fn plan(&mut self, slot: usize, group: usize, steps: &mut VecDeque<Self::Step>, results: &mut Vec<PointResult>);

    /// The cheapest request that shows whether the device is alive.
    fn probe(&self, slot: usize) -> Option<Self::Step>;

    /// Sends one request, waits for its reply and adds the outcome of each of its points to `results`. On a fault nothing
    /// is added, and the driver has seen to it that no later call can take the reply for its own.
    fn read(
        &mut self,
        slot: usize,
        step: &Self::Step,
        steps: &mut VecDeque<Self::Step>,
        results: &mut Vec<PointResult>,
    ) -> impl Future<Output = Result<Answer, Fault>> + Send;

    /// The points of a step, for reporting that it failed.
    fn points(&self, step: &Self::Step, each: impl FnMut(u32));

    /// Asks a device that pushes values to do so, at most every `every`. `Ok(false)` when the protocol cannot: it is polled.
    fn subscribe(
        &mut self,
        slot: usize,
        group: usize,
        every: Duration,
    ) -> impl Future<Output = Result<bool, Fault>> + Send {
        let _ = (slot, group, every);
        async { Ok(false) }
    }

    /// Writes one point, once, and reads it back where the configuration asks for it. Never repeated after the request
    /// may have left the gateway.
    fn write(
        &mut self,
        slot: usize,
        point: u32,
        value: &Value,
    ) -> impl Future<Output = Result<WriteDone, WriteError>> + Send;

    /// Carries one request that somebody above put together in the protocol's own form, and gives the reply in the same
    /// form. Sent once; the reply was checked against the request.
    fn exchange(&mut self, slot: usize, request: &[u8]) -> impl Future<Output = Result<Vec<u8>, ExchangeError>> + Send {
        let _ = (slot, request);
        async { Err(ExchangeError::Unsupported("this protocol has none".to_owned())) }
    }

    /// How long the device must be left alone because of its last failure, while others on the link go on.
    fn held(&self, slot: usize) -> Option<Duration> {
        let _ = slot;
        None
    }

    /// Closes the link; the next call that needs it makes it again.
    fn close(&mut self);

    /// Whether the link is closed between cycles, for devices that accept one client at a time.
    fn closes_after_cycle(&self) -> bool {
        false
    }

    /// Counts since the last call.
    fn take_tally(&mut self) -> Tally;
}
