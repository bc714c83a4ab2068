//! When a metered link may be open: times of day and a byte budget per day.

use std::str::FromStr;

use super::config::LinkPolicy;
use crate::model::{ClockTrust, Stamp};

const DAY_MS: i64 = 86_400_000;

/// A time of day during which a link may be open, in UTC; may pass midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeWindow {
    /// First minute of the day, 0 to 1439.
    pub from: u16,
    /// Minute at which it closes, 0 to 1439; equal to `from`: the whole day.
    pub to: u16,
}

/// A text is no time window.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no time window; write it as 22:00-04:30 (UTC)")]
pub struct TimeWindowError(String);

impl FromStr for TimeWindow {
    type Err = TimeWindowError;

    fn from_str(text: &str) -> Result<Self, TimeWindowError> {
        let bad = || TimeWindowError(text.to_owned());
        let minute = |t: &str| {
            let (h, m) = t.trim().split_once(':')?;
            let (h, m): (u16, u16) = (h.parse().ok()?, m.parse().ok()?);
            (h < 24 && m < 60).then_some(h * 60 + m)
        };
        let (from, to) = text.split_once('-').ok_or_else(bad)?;
        Ok(Self { from: minute(from).ok_or_else(bad)?, to: minute(to).ok_or_else(bad)? })
    }
}

impl TimeWindow {
    fn contains(self, minute: u16) -> bool {
        if self.from < self.to {
            (self.from..self.to).contains(&minute)
        } else {
            minute >= self.from || minute < self.to
        }
    }
}

/// Bytes sent on one UTC day. Hand it back at the next start so that a restart does not renew the budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Days since 1970.
    pub day: i64,
    /// Bytes sent on it.
    pub bytes: u64,
}

/// Whether a link may be open now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Permission {
    /// It may.
    Open,
    /// Only for the critical lane, if the policy says so; the reason in words.
    Closed(&'static str),
}

/// Keeps the windows and the budget of one link.
#[derive(Debug)]
pub(super) struct Schedule {
    policy: LinkPolicy,
    usage: Usage,
}

impl Schedule {
    pub(super) fn new(policy: LinkPolicy, usage: Usage) -> Self {
        Self { policy, usage }
    }

    pub(super) fn usage(&self) -> Usage {
        self.usage
    }

    pub(super) fn sent(&mut self, bytes: usize) {
        self.usage.bytes += bytes as u64;
    }

    /// Whether the link may be open at `now`.
    pub(super) fn permission(&mut self, now: Stamp) -> Permission {
        let day = now.wall_ms.div_euclid(DAY_MS);
        // A clock that steps back does not renew a spent day, and an unsynchronised one names no day at all.
        if day > self.usage.day && now.trust != ClockTrust::Unsynchronised {
            self.usage = Usage { day, bytes: 0 };
        }
        if self.policy.daily_bytes.is_some_and(|most| self.usage.bytes >= most) {
            return Permission::Closed("the byte budget of the day is spent");
        }
        let minute = (now.wall_ms.rem_euclid(DAY_MS) / 60_000) as u16;
        let open = self.policy.windows.is_empty()
            || now.trust == ClockTrust::Unsynchronised
            || self.policy.windows.iter().any(|w| w.contains(minute));
        if open { Permission::Open } else { Permission::Closed("outside the connection window") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minute: i64, trust: ClockTrust) -> Stamp {
        Stamp { wall_ms: 20_000 * DAY_MS + minute * 60_000, mono_ns: 0, uptime: Default::default(), trust }
    }

    #[test]
    fn windows_may_pass_midnight() {
        let night: TimeWindow = "22:00-04:30".parse().unwrap();
        for (minute, open) in [(22 * 60, true), (0, true), (4 * 60 + 29, true), (4 * 60 + 30, false), (12 * 60, false)]
        {
            assert_eq!(night.contains(minute), open, "{minute}");
        }
        for bad in ["", "22-23", "24:00-01:00", "1:60-2:00", "a:b-c:d"] {
            assert!(bad.parse::<TimeWindow>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_closed_window_opens_and_an_unknown_time_does_not_close_it() {
        let policy = LinkPolicy { windows: vec!["22:00-23:00".parse().unwrap()], ..LinkPolicy::default() };
        let mut schedule = Schedule::new(policy, Usage::default());
        assert!(matches!(schedule.permission(at(600, ClockTrust::Synchronised)), Permission::Closed(_)));
        assert_eq!(schedule.permission(at(22 * 60 + 5, ClockTrust::Holdover)), Permission::Open);
        assert_eq!(schedule.permission(at(600, ClockTrust::Unsynchronised)), Permission::Open);
    }

    #[test]
    fn the_budget_returns_with_the_next_day_and_not_with_a_clock_that_steps_back() {
        let policy = LinkPolicy { daily_bytes: Some(100), ..LinkPolicy::default() };
        let mut schedule = Schedule::new(policy, Usage::default());
        let noon = at(720, ClockTrust::Synchronised);
        assert_eq!(schedule.permission(noon), Permission::Open);
        schedule.sent(100);
        assert!(matches!(schedule.permission(noon), Permission::Closed(_)));
        assert!(matches!(schedule.permission(Stamp { wall_ms: noon.wall_ms - DAY_MS, ..noon }), Permission::Closed(_)));
        assert_eq!(schedule.permission(Stamp { wall_ms: noon.wall_ms + DAY_MS, ..noon }), Permission::Open);
    }
}
