//! Alarms about the end of a certificate's life: at 50, 20 and 5 % of what is left, and when it is over. Pure.

use super::life::{Reading, Validity};

/// How near the end is. Ordered: later is worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Alarm {
    /// More than half of the life is left.
    #[default]
    None,
    /// At most 50 % is left: a notice; renewal is due soon.
    Half,
    /// At most 20 % is left: renewal has been failing.
    Fifth,
    /// At most 5 % is left: an operator must act.
    Twentieth,
    /// It is over.
    Expired,
}

impl Alarm {
    /// Stable name, as in events and tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "ok",
            Self::Half => "half-life",
            Self::Fifth => "fifth-of-life",
            Self::Twentieth => "twentieth-of-life",
            Self::Expired => "expired",
        }
    }
}

/// The alarm for a validity at `now` (Unix seconds).
pub fn alarm(validity: Validity, now: i64) -> Alarm {
    let remaining = validity.remaining(now);
    match now {
        _ if now > validity.not_after => Alarm::Expired,
        _ if remaining <= 0.05 => Alarm::Twentieth,
        _ if remaining <= 0.20 => Alarm::Fifth,
        _ if remaining <= 0.50 => Alarm::Half,
        _ => Alarm::None,
    }
}

/// A change of the alarm of one certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AlarmChange {
    /// Before.
    pub from: Alarm,
    /// Now. [`Alarm::None`] clears it: the certificate was renewed.
    pub to: Alarm,
}

/// Remembers the alarm of one certificate and reports changes only.
#[derive(Debug, Clone, Copy, Default)]
pub struct AlarmTracker {
    current: Alarm,
}

impl AlarmTracker {
    /// The alarm as of the last look.
    pub const fn current(&self) -> Alarm {
        self.current
    }

    /// Looks again; a clock that is not firm changes nothing.
    pub fn observe(&mut self, validity: Validity, now: Reading) -> Option<AlarmChange> {
        let to = if now.firm { alarm(validity, now.seconds) } else { self.current };
        let from = std::mem::replace(&mut self.current, to);
        (from != to).then_some(AlarmChange { from, to })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Validity = Validity { not_before: 1_000, not_after: 2_000 };

    #[test]
    fn the_alarms_come_at_half_a_fifth_a_twentieth_and_the_end() {
        let at = |now| alarm(LIFE, now);
        assert_eq!([at(0), at(1_499)], [Alarm::None; 2]);
        assert_eq!([at(1_500), at(1_799)], [Alarm::Half; 2]);
        assert_eq!([at(1_800), at(1_949)], [Alarm::Fifth; 2]);
        assert_eq!([at(1_950), at(2_000)], [Alarm::Twentieth; 2]);
        assert_eq!(at(2_001), Alarm::Expired);
    }

    #[test]
    fn a_change_is_reported_once_and_an_unsure_clock_changes_nothing() {
        let mut tracker = AlarmTracker::default();
        let look = |tracker: &mut AlarmTracker, seconds, firm| tracker.observe(LIFE, Reading { seconds, firm });
        assert_eq!(look(&mut tracker, 1_600, true), Some(AlarmChange { from: Alarm::None, to: Alarm::Half }));
        assert_eq!(look(&mut tracker, 1_601, true), None);
        assert_eq!(look(&mut tracker, 9_999, false), None, "1970 or 2099 expire nothing");
        assert_eq!(tracker.current(), Alarm::Half);
        let renewed = Validity { not_before: 1_600, not_after: 2_600 };
        let cleared = tracker.observe(renewed, Reading { seconds: 1_601, firm: true });
        assert_eq!(cleared, Some(AlarmChange { from: Alarm::Half, to: Alarm::None }));
    }
}
