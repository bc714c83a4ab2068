//! When which rate group of which device is read on one link.
//!
//! Sans-IO: `tick` moves time on, `next` names the job to serve, `wake_at` says when to come back. Promise: a group is
//! never queued twice (a cycle that comes due while the last one waits or runs is left out and counted with its cause),
//! and devices take turns request by request, so that a long cycle of one does not hold up a short one of another.

use std::time::Duration;

use crate::platform::beat;

/// Name of a rate group of a device on the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Job {
    /// Place of the device on the link.
    pub slot: usize,
    /// Index of the rate group in the device.
    pub group: usize,
}

/// Why a poll cycle was left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Overrun {
    /// The previous cycle of the group was still being read: the rate is faster than the device.
    PreviousScan,
    /// The link served others the whole time: the bus has more to do than it can.
    BusBusy,
    /// Results of the device still wait to be taken over by the gateway.
    Backpressure,
    /// The device is left alone for a moment after a failure.
    Recovering,
}

impl Overrun {
    /// The name used in statistics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Overrun::PreviousScan => "previous-scan",
            Overrun::BusBusy => "bus-busy",
            Overrun::Backpressure => "backpressure",
            Overrun::Recovering => "recovering",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    Ready,
    Running,
}

#[derive(Debug)]
struct Entry {
    job: Job,
    every: Duration,
    /// Next tick of the grid.
    due: Duration,
    /// The tick that made it ready.
    since: Duration,
    state: State,
    /// When its last cycle ended.
    ended: Duration,
    /// When the group was served last, as a count of services on the link.
    served: u64,
}

#[derive(Debug, Default, Clone, Copy)]
struct Slot {
    /// When the slot was served last, as a count of services on the link.
    served: u64,
    paused: bool,
    blocked: bool,
    held_until: Duration,
}

/// Longest wait before the first cycle of a group, whatever its rate: a gateway shows values soon after its start.
const FIRST_WITHIN: Duration = Duration::from_millis(200);

/// All rate groups of one link.
#[derive(Debug, Default)]
pub struct Schedule {
    entries: Vec<Entry>,
    slots: Vec<Slot>,
    services: u64,
}

impl Schedule {
    /// Adds a group. `chance` (0..1, random) spreads first cycles over 200 ms and the later ones over half a period, as
    /// `phase` has it. Times are counted from any beat.
    pub fn add(&mut self, job: Job, every: Duration, now: Duration, chance: f64) {
        if self.slots.len() <= job.slot {
            self.slots.resize(job.slot + 1, Slot::default());
        }
        let due = now + every.min(FIRST_WITHIN).mul_f64(chance);
        self.entries.push(Entry { job, every, due, since: due, state: State::Idle, ended: Duration::ZERO, served: 0 });
    }

    /// Takes all groups of a slot off the schedule; the slot may be used again.
    pub fn remove(&mut self, slot: usize) {
        self.entries.retain(|entry| entry.job.slot != slot);
        if let Some(slot) = self.slots.get_mut(slot) {
            *slot = Slot::default();
        }
    }

    /// A paused slot is neither read nor counted as overrun: the device is off scan or its link is down.
    pub fn pause(&mut self, slot: usize, paused: bool) {
        let Some(state) = self.slots.get_mut(slot) else { return };
        state.paused = paused;
        for entry in self.entries.iter_mut().filter(|entry| entry.job.slot == slot) {
            entry.state = State::Idle;
        }
    }

    /// A blocked slot starts no new cycle: its results are not taken over yet.
    pub fn block(&mut self, slot: usize, blocked: bool) {
        if let Some(state) = self.slots.get_mut(slot) {
            state.blocked = blocked;
        }
    }

    /// A held slot is left alone until a time; cycles under way go on then.
    pub fn hold(&mut self, slot: usize, until: Duration) {
        if let Some(state) = self.slots.get_mut(slot) {
            state.held_until = until;
        }
    }

    /// Makes every group of the slot due now: the device came back, or a point was written.
    pub fn hurry(&mut self, slot: usize, now: Duration) {
        for entry in self.entries.iter_mut().filter(|entry| entry.job.slot == slot && entry.state == State::Idle) {
            entry.state = State::Ready;
            entry.since = now;
        }
    }

    /// Moves time on to `now`; reports each group whose cycles were left out, why, and how many.
    pub fn tick(&mut self, now: Duration, chance: impl Fn() -> f64, mut overrun: impl FnMut(Job, Overrun, u64)) {
        for entry in &mut self.entries {
            if entry.due > now {
                continue;
            }
            let slot = self.slots[entry.job.slot];
            let ticks = 1 + (now - entry.due).as_nanos() / entry.every.as_nanos().max(1);
            let ticks = u64::try_from(ticks).unwrap_or(u64::MAX);
            let first = entry.since == entry.due && entry.state == State::Idle;
            let tick = entry.due;
            entry.due = later(entry.due, entry.every, ticks);
            if first && ticks == 1 {
                // The second cycle leaves the common start: half to a whole period after the first.
                entry.due = phase(tick + entry.every.mul_f64(0.5 + 0.5 * chance()), entry.every);
            }
            if slot.paused {
                continue;
            }
            let missed = match (entry.state, slot.blocked) {
                (State::Ready | State::Running, _) if now < slot.held_until => Some((Overrun::Recovering, ticks)),
                (State::Idle, true) => Some((Overrun::Backpressure, ticks)),
                (State::Idle, false) => {
                    entry.state = State::Ready;
                    entry.since = tick;
                    // Ticks that passed while the link was held up by one long request: its own, or another's.
                    let cause = if entry.ended > tick { Overrun::PreviousScan } else { Overrun::BusBusy };
                    (ticks > 1).then_some((cause, ticks - 1))
                }
                (State::Ready, true) => Some((Overrun::Backpressure, ticks)),
                (State::Ready, false) => Some((Overrun::BusBusy, ticks)),
                (State::Running, _) => Some((Overrun::PreviousScan, ticks)),
            };
            if let Some((cause, count)) = missed {
                overrun(entry.job, cause, count);
            }
        }
    }

    /// The job to serve with one request now, if any; call again after each request. `true` when the job just starts.
    pub fn next(&mut self, now: Duration) -> Option<(Job, bool)> {
        let slots = &self.slots;
        let entry = self
            .entries
            .iter_mut()
            .filter(|entry| {
                let slot = slots[entry.job.slot];
                !slot.paused
                    && now >= slot.held_until
                    && (entry.state == State::Running || (entry.state == State::Ready && !slot.blocked))
            })
            .min_by_key(|entry| (slots[entry.job.slot].served, entry.served, entry.since, entry.job))?;
        let starts = entry.state == State::Ready;
        entry.state = State::Running;
        self.services += 1;
        entry.served = self.services;
        self.slots[entry.job.slot].served = self.services;
        Some((entry.job, starts))
    }

    /// The cycle of a job ended at `now`, well or not.
    pub fn finished(&mut self, job: Job, now: Duration) {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.job == job) {
            entry.state = State::Idle;
            entry.ended = now;
        }
    }

    /// Whether no cycle runs or waits.
    pub fn is_idle(&self) -> bool {
        self.entries.iter().all(|entry| entry.state == State::Idle || self.slots[entry.job.slot].paused)
    }

    /// The next time at which a group comes due or a held slot with work is free again.
    pub fn wake_at(&self) -> Option<Duration> {
        let entries = self.entries.iter().map(|entry| (entry, &self.slots[entry.job.slot]));
        let wakes = entries.filter(|(_, slot)| !slot.paused).map(|(entry, slot)| match entry.state {
            State::Ready | State::Running if !slot.blocked || entry.state == State::Running => {
                slot.held_until.min(entry.due)
            }
            _ => entry.due,
        });
        wakes.min()
    }
}

/// Groups of one rate meet at ten moments of their period, those of a second and more on the beats: devices that are read
/// together cost the gateway half as much as one by one.
fn phase(due: Duration, every: Duration) -> Duration {
    beat::put_off(due, (every / 10).min(beat::BEAT))
}

fn later(due: Duration, every: Duration, ticks: u64) -> Duration {
    match u32::try_from(ticks) {
        Ok(ticks) => due + every * ticks,
        Err(_) => due + Duration::from_nanos(u64::try_from(every.as_nanos()).unwrap_or(u64::MAX).saturating_mul(ticks)),
    }
}

#[cfg(test)]
mod tests;
