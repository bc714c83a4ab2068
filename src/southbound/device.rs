//! What the link task knows of one device while it runs.

use std::time::Duration;

use crate::model::{DeviceId, Reason, Stamp};

use super::breaker::Breaker;
use super::{DeviceConfig, DeviceState, DeviceStats, Identity, PointResult, Scan};

/// A device under way.
#[derive(Debug)]
pub(super) struct DeviceRun {
    pub config: DeviceConfig,
    pub breaker: Breaker,
    pub state: DeviceState,
    pub stats: DeviceStats,
    /// What is wrong with each rate group, if anything.
    trouble: Vec<Option<String>>,
    pub asking: Asking,
    pub identity: Option<Identity>,
    /// Scans in the outbox that the gateway has not taken over yet.
    pub outstanding: usize,
    /// Not reported yet: the state, ...
    pub state_is_news: bool,
    /// ... that every point is bad, and why, ...
    pub all_bad: Option<Reason>,
    /// ... the identity.
    pub identity_is_news: bool,
    pub last_report: Duration,
}

/// Whether to ask a device what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asking {
    /// Not before it has answered a read.
    Later,
    /// At the next opportunity.
    Now,
    /// It has been asked since it was last unreachable.
    Done,
    /// It does not answer the question at all: never again by ourselves.
    Never,
}

impl DeviceRun {
    pub fn new(config: DeviceConfig) -> Self {
        Self {
            breaker: Breaker::new(config.breaker()),
            state: DeviceState::Connecting,
            stats: DeviceStats::default(),
            trouble: vec![None; config.groups.len()],
            asking: if config.identifies() { Asking::Later } else { Asking::Never },
            identity: None,
            outstanding: 0,
            state_is_news: true,
            all_bad: None,
            identity_is_news: false,
            last_report: Duration::ZERO,
            config,
        }
    }

    pub fn id(&self) -> &DeviceId {
        &self.config.device.id
    }

    pub fn set_state(&mut self, state: DeviceState) {
        if self.state != state {
            self.state = state;
            self.state_is_news = true;
        }
    }

    /// The device fails as a whole: every point is bad at once.
    pub fn fail(&mut self, state: DeviceState, reason: Reason) {
        let already =
            !matches!(self.state, DeviceState::Connecting | DeviceState::Online | DeviceState::Degraded { .. });
        let same = already && state.as_str() == self.state.as_str();
        self.set_state(state);
        if !same {
            self.all_bad = Some(reason);
        }
        self.trouble.iter_mut().for_each(|trouble| *trouble = None);
        self.ask_again();
    }

    /// What answers now may be another device than before: it is asked once it has answered a read.
    pub fn ask_again(&mut self) {
        if self.asking == Asking::Done {
            self.asking = Asking::Later;
        }
    }

    /// The device may be read again.
    pub fn resume(&mut self) {
        self.all_bad = None;
        self.set_state(DeviceState::Connecting);
    }

    /// A valid reply arrived.
    pub fn replied(&mut self, round_trip: Duration, at: Stamp) {
        self.stats.replies += 1;
        self.stats.last_reply = Some(at);
        let mean = self.stats.round_trip;
        self.stats.round_trip = if mean.is_zero() { round_trip } else { (mean * 15 + round_trip) / 16 };
        if self.asking == Asking::Later {
            self.asking = Asking::Now;
        }
    }

    /// A cycle of a group ended with these outcomes.
    pub fn finished(&mut self, group: usize, results: &[PointResult], failure: Option<String>) {
        self.stats.scans += 1;
        self.trouble[group] = failure.or_else(|| refusals(results));
        self.set_state(match self.trouble.iter().flatten().next() {
            None => DeviceState::Online,
            Some(reason) => DeviceState::Degraded { reason: reason.clone() },
        });
    }

    /// One failed outcome for every point that is polled.
    pub fn all_points(&self, reason: Reason, at: Stamp) -> Scan {
        let mut points: Vec<u32> = self.config.groups.iter().flat_map(|group| group.points.iter().copied()).collect();
        points.sort_unstable();
        points.dedup();
        let results = points.into_iter().map(|point| PointResult { point, outcome: Err(reason), at: None }).collect();
        Scan { device: self.id().clone(), at, results }
    }
}

/// Points that the device refuses, in words.
fn refusals(results: &[PointResult]) -> Option<String> {
    let refused = |reason| results.iter().filter(|result| result.outcome == Err(reason)).count();
    if results.iter().all(|result| result.outcome.is_ok()) {
        return None;
    }
    match (refused(Reason::IllegalAddress), refused(Reason::DeviceException)) {
        (0, 0) => None,
        (0, other) => Some(format!("{other} points answered by an exception")),
        (illegal, 0) => Some(format!("{illegal} points have an address that the device does not know")),
        (illegal, other) => {
            Some(format!("{illegal} points have an unknown address, {other} are answered by an exception"))
        }
    }
}
