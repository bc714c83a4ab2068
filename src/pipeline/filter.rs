//! Which values are worth reporting.

use super::PointRule;
use crate::model::{Quality, Reason, Value};

/// Smallest change of a number that is worth reporting.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Deadband {
    /// Any change.
    #[default]
    None,
    /// More than this many engineering units from the last reported value.
    Absolute(f64),
    /// More than this percentage of the last reported value's magnitude.
    Percent(f64),
}

impl Deadband {
    fn exceeded(self, last: f64, new: f64) -> bool {
        let distance = (new - last).abs();
        match self {
            Deadband::None => distance != 0.0,
            Deadband::Absolute(band) => distance > band,
            Deadband::Percent(band) => distance > last.abs() * band / 100.0,
        }
    }
}

/// What one point last reported.
#[derive(Debug, Clone, Default)]
pub(super) struct Filter {
    last: Option<Reported>,
    /// Monotonic time of the last result, reported or not.
    seen_ns: u64,
}

#[derive(Debug, Clone)]
struct Reported {
    value: Option<Value>,
    quality: Quality,
    reason: Option<Reason>,
    at_ns: u64,
}

impl Filter {
    /// Whether a new result is to be reported; if so it is remembered as such.
    pub(super) fn passes(
        &mut self,
        rule: &PointRule,
        value: Option<&Value>,
        quality: Quality,
        reason: Option<Reason>,
        now_ns: u64,
    ) -> bool {
        self.seen_ns = now_ns;
        let passes = match &self.last {
            None => true,
            Some(last) => {
                last.quality != quality
                    || last.reason != reason
                    || (!rule.on_change && quality != Quality::Bad)
                    || changed(rule.deadband, last.value.as_ref(), value)
                    || rule.heartbeat.is_some_and(|h| now_ns.saturating_sub(last.at_ns) >= h.as_nanos() as u64)
            }
        };
        if passes {
            self.last = Some(Reported { value: value.cloned(), quality, reason, at_ns: now_ns });
        }
        passes
    }

    /// The last value, if the point has just gone stale; remembered as reported.
    pub(super) fn goes_stale(&mut self, rule: &PointRule, now_ns: u64) -> Option<Option<Value>> {
        let after = rule.stale_after?.as_nanos() as u64;
        let last = self.last.as_mut()?;
        if last.quality == Quality::Bad
            || last.reason == Some(Reason::Stale)
            || now_ns.saturating_sub(self.seen_ns) < after
        {
            return None;
        }
        (last.quality, last.reason, last.at_ns) = (Quality::Uncertain, Some(Reason::Stale), now_ns);
        Some(last.value.clone())
    }
}

fn changed(deadband: Deadband, last: Option<&Value>, new: Option<&Value>) -> bool {
    let (Some(last), Some(new)) = (last, new) else { return last.is_some() != new.is_some() };
    if deadband == Deadband::None {
        return last != new;
    }
    match (last, new) {
        (Value::Bool(a), Value::Bool(b)) => a != b,
        _ => match (last.as_f64(), new.as_f64()) {
            (Some(a), Some(b)) => deadband.exceeded(a, b),
            _ => last != new,
        },
    }
}
