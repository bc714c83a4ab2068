//! Follows the table for the clock of each device that has one.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::states::{Action, Event, Guard, State, TABLE};
use crate::contract::{timestamp, topics, v1, v1::event::Severity};
use crate::management::desired::TimeSettings;
use crate::management::journal::{JournalError, Records, Shelf};
use crate::management::request::Refusal;
use crate::management::step::{Cause, Effect, Shown, Step};
use crate::management::table::Word;
use crate::model::{ClockTrust, DeviceId, Stamp};

const SECOND_NS: u64 = 1_000_000_000;
/// A device that does not run is looked at again after this time; a set that nobody reported is repeated.
const RETRY_NS: u64 = 60 * SECOND_NS;

/// A clock that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// What the device shows, milliseconds since 1970.
    pub device_ms: i64,
    /// The gateway's time in the middle of the reading.
    pub gateway_ms: i64,
    /// Smallest step of the device's clock, milliseconds.
    pub resolution_ms: i64,
}

/// What is kept of a clock.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClockRecord {
    /// What is known.
    pub state: State,
    /// Device minus gateway at the last reading, milliseconds.
    pub offset_ms: Option<i64>,
    /// When it was read, milliseconds since 1970.
    pub read_ms: i64,
    /// When it was set last.
    pub set_ms: i64,
    /// Why it could not be read or set.
    #[serde(default)]
    pub reason: String,
}

/// In memory only: a drift is measured within one run.
#[derive(Debug, Default)]
struct Watch {
    due_ns: u64,
    set_ns: Option<u64>,
    first: Option<(u64, i64)>,
    drift_ppm: Option<f64>,
    settings: TimeSettings,
}

/// All clocks.
#[derive(Debug, Default)]
pub struct Clocks {
    records: BTreeMap<DeviceId, ClockRecord>,
    watches: BTreeMap<DeviceId, Watch>,
}

impl Clocks {
    /// Reads the records.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn load(records: &Records) -> Result<Self, JournalError> {
        let records: BTreeMap<String, ClockRecord> = records.read_all(Shelf::Clocks)?;
        let records = records.into_iter().filter_map(|(id, r)| Some((DeviceId::new(&id).ok()?, r))).collect();
        Ok(Self { records, watches: BTreeMap::new() })
    }

    /// Devices that have a clock, from the files.
    pub fn devices(&mut self, devices: &BTreeSet<DeviceId>) {
        self.watches.retain(|id, _| devices.contains(id));
        for id in devices {
            self.watches.entry(id.clone()).or_default();
        }
    }

    /// The record of a device, if its clock was ever looked at.
    pub fn record(&self, id: &DeviceId) -> Option<&ClockRecord> {
        self.records.get(id)
    }

    /// Asks for the readings that are due, and again for a setting that nobody reported.
    pub fn reconcile(&mut self, now: Stamp, facts: impl Fn(&DeviceId) -> Option<TimeSettings>, step: &mut Step) {
        for (id, watch) in self.watches.iter_mut().filter(|(_, w)| w.due_ns <= now.mono_ns) {
            let Some(settings) = facts(id) else {
                watch.due_ns = now.mono_ns.saturating_add(RETRY_NS);
                continue;
            };
            watch.settings = settings;
            if self.records.get(id).is_some_and(|r| r.state == State::Setting) {
                watch.due_ns = now.mono_ns.saturating_add(RETRY_NS);
                step.act(Effect::SetClock(id.clone()));
            } else {
                watch.due_ns = now.mono_ns.saturating_add(settings.every.as_nanos() as u64);
                step.act(Effect::ReadClock(id.clone()));
            }
        }
    }

    /// Monotonic time of the next [`Self::reconcile`] that does something.
    pub fn next_wake(&self) -> Option<u64> {
        self.watches.values().map(|w| w.due_ns).min()
    }

    /// A clock was read, or could not be.
    pub fn read(&mut self, now: Stamp, id: &DeviceId, reading: Result<Reading, String>, step: &mut Step) {
        let Some(watch) = self.watches.get_mut(id) else { return };
        let event = match &reading {
            Err(_) => Event::Unreadable,
            Ok(reading) => {
                let offset = reading.device_ms - reading.gateway_ms;
                watch.measure(now, offset, reading.resolution_ms);
                let off = offset.unsigned_abs().saturating_sub(reading.resolution_ms.unsigned_abs());
                match u128::from(off) {
                    off if off > watch.settings.alarm.as_millis() => Event::FarOff,
                    off if off > watch.settings.warn.as_millis() => Event::Off,
                    _ => Event::Good,
                }
            }
        };
        let record = self.records.entry(id.clone()).or_insert_with(fresh);
        match &reading {
            Ok(reading) => {
                record.offset_ms = Some(reading.device_ms - reading.gateway_ms);
                record.read_ms = now.wall_ms;
                record.reason.clear();
            }
            Err(why) => record.reason.clone_from(why),
        }
        let words = match (&reading, record.offset_ms) {
            (Err(why), _) => why.clone(),
            (Ok(_), Some(offset)) => format!("device minus gateway: {offset} ms"),
            (Ok(_), None) => String::new(),
        };
        // A reading that comes while the clock is being set says nothing.
        let _late = self.follow(now, id, event, &Cause::own("gateway"), &words, step);
    }

    /// Somebody asks to set a clock.
    ///
    /// # Errors
    /// [`Refusal`] when the device has none or the gateway's own clock is not trusted.
    pub fn set(&mut self, now: Stamp, id: &DeviceId, cause: &Cause, step: &mut Step) -> Result<(), Refusal> {
        if !self.watches.contains_key(id) {
            let text = format!("{id} has no clock that its profile describes");
            return Err(Refusal::new("not-possible", text));
        }
        self.records.entry(id.clone()).or_insert_with(fresh);
        self.follow(now, id, Event::Set, cause, "", step)
    }

    /// A clock was set, or could not be.
    pub fn set_done(&mut self, now: Stamp, id: &DeviceId, result: Result<(), String>, step: &mut Step) {
        let (event, words) = match result {
            Ok(()) => (Event::SetDone, String::new()),
            Err(why) => (Event::SetFailed, why),
        };
        if let (Some(record), Event::SetDone) = (self.records.get_mut(id), event) {
            record.set_ms = now.wall_ms;
        }
        if let Some(watch) = self.watches.get_mut(id) {
            (watch.set_ns, watch.first, watch.drift_ppm) = (Some(now.mono_ns), None, None);
        }
        let _late = self.follow(now, id, event, &Cause::own("gateway"), &words, step);
    }

    /// The device is gone.
    pub fn forget(&mut self, id: &DeviceId, step: &mut Step) {
        self.watches.remove(id);
        if self.records.remove(id).is_some() {
            step.delete(Shelf::Clocks, id.as_str());
            step.show(topics::device_time(id), Shown::Nothing);
        }
    }

    /// Shows every clock, as after a start.
    pub fn show_all(&self, step: &mut Step) {
        for id in self.records.keys() {
            self.show(id, step);
        }
    }

    fn follow(
        &mut self,
        now: Stamp,
        id: &DeviceId,
        event: Event,
        cause: &Cause,
        words: &str,
        step: &mut Step,
    ) -> Result<(), Refusal> {
        let Some(record) = self.records.get_mut(id) else { return Ok(()) };
        let watch = self.watches.entry(id.clone()).or_default();
        let trusted = now.trust == ClockTrust::Synchronised;
        let row = TABLE.decide(record.state, event, |guard| match guard {
            Guard::Trusted => trusted,
            Guard::MaySet => trusted && watch.may_set(now),
        })?;
        let changed = row.from != row.to;
        record.state = row.to;
        if event == Event::SetFailed {
            words.clone_into(&mut record.reason);
        }
        for &action in row.effects {
            match action {
                // Both are asked for by `reconcile`, at the end of this step: a start takes the same path.
                Action::Write | Action::Read => watch.due_ns = 0,
                Action::Alarm => {
                    let what = format!("clock of {id} is {}: {words}", row.to);
                    step.raise(now, Some(id), Severity::Alarm, "device-clock", what);
                }
            }
        }
        if changed {
            let detail = format!("{} to {}: {words}", row.from, row.to);
            step.audit(now, cause, &format!("clock-{}", event.as_str()), format!("devices/{id}/clock"), detail, "done");
            step.put(Shelf::Clocks, id.as_str(), record);
        }
        self.show(id, step);
        Ok(())
    }

    fn show(&self, id: &DeviceId, step: &mut Step) {
        let Some(record) = self.records.get(id) else { return };
        let time = |ms: i64| (ms != 0).then(|| timestamp(ms));
        let message = v1::DeviceClock {
            device: id.as_str().to_owned(),
            state: record.state.as_str().to_owned(),
            offset_seconds: record.offset_ms.map(|ms| ms as f64 / 1_000.0),
            drift_ppm: self.watches.get(id).and_then(|w| w.drift_ppm),
            read_at: time(record.read_ms),
            set_at: time(record.set_ms),
            reason: record.reason.clone(),
        };
        step.show(topics::device_time(id), Shown::Clock(message));
    }
}

impl Watch {
    /// The drift since the first reading after the clock was set; known once the readings are far enough apart.
    fn measure(&mut self, now: Stamp, offset_ms: i64, resolution_ms: i64) {
        let Some((since_ns, first_ms)) = self.first else {
            self.first = Some((now.mono_ns, offset_ms));
            return;
        };
        let apart_ms = now.mono_ns.saturating_sub(since_ns) / 1_000_000;
        // A step of the device's clock must not look like a drift: below 1,000 steps it may be one.
        if apart_ms >= 1_000 * resolution_ms.unsigned_abs() {
            self.drift_ppm = Some((offset_ms - first_ms) as f64 * 1e6 / apart_ms as f64);
        }
    }

    fn may_set(&self, now: Stamp) -> bool {
        let every = self.settings.every.as_nanos() as u64;
        self.settings.set && self.set_ns.is_none_or(|at| now.mono_ns.saturating_sub(at) >= every)
    }
}

fn fresh() -> ClockRecord {
    ClockRecord { state: State::Unknown, offset_ms: None, read_ms: 0, set_ms: 0, reason: String::new() }
}
