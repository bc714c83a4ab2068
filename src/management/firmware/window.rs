//! Maintenance windows: when an update may begin without anybody's word. Pure.

use crate::model::{ClockTrust, Stamp};

const MINUTES_PER_DAY: i64 = 24 * 60;

/// A time of day in UTC on some days of the week.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Monday first.
    pub days: [bool; 7],
    /// First minute of the day, 0 to 1439.
    pub from: u16,
    /// Minute at which it ends, exclusive; smaller than `from` when the window crosses midnight (it then belongs to the day
    /// on which it began); equal for the whole day.
    pub to: u16,
}

impl Window {
    /// Reads `HH:MM-HH:MM` with optional days before it: `sat,sun 02:00-04:30`. UTC.
    ///
    /// # Errors
    /// Says what a window looks like.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is no maintenance window; write it as 02:00-04:30 or sat,sun 22:00-03:00 (UTC)");
        let (days, times) = match text.trim().split_once(' ') {
            Some((days, times)) => (parse_days(days).ok_or_else(wrong)?, times.trim()),
            None => ([true; 7], text.trim()),
        };
        let (from, to) = times.split_once('-').ok_or_else(wrong)?;
        Ok(Self { days, from: parse_time(from).ok_or_else(wrong)?, to: parse_time(to).ok_or_else(wrong)? })
    }

    /// Whether `now` lies in the window. A clock that was never set opens no window.
    pub fn is_open(&self, now: Stamp) -> bool {
        if now.trust == ClockTrust::Unsynchronised {
            return false;
        }
        let minutes = now.wall_ms.div_euclid(60_000);
        let day = minutes.div_euclid(MINUTES_PER_DAY);
        let minute = minutes.rem_euclid(MINUTES_PER_DAY) as u16;
        // 1970-01-01 was a Thursday.
        let on = |day: i64| self.days[(day + 3).rem_euclid(7) as usize];
        match self.from.cmp(&self.to) {
            std::cmp::Ordering::Equal => on(day),
            std::cmp::Ordering::Less => on(day) && (self.from..self.to).contains(&minute),
            std::cmp::Ordering::Greater => (on(day) && minute >= self.from) || (on(day - 1) && minute < self.to),
        }
    }
}

fn parse_days(text: &str) -> Option<[bool; 7]> {
    const NAMES: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
    let mut days = [false; 7];
    for name in text.split(',') {
        days[NAMES.iter().position(|known| *known == name)?] = true;
    }
    Some(days)
}

fn parse_time(text: &str) -> Option<u16> {
    let (hour, minute) = text.split_once(':')?;
    let plain = |digits: &str| digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_digit());
    if !plain(hour) || !plain(minute) {
        return None;
    }
    let (hour, minute): (u16, u16) = (hour.parse().ok()?, minute.parse().ok()?);
    (hour < 24 && minute < 60).then_some(hour * 60 + minute)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-21 00:00 UTC, a Saturday.
    const SATURDAY: i64 = 1_795_219_200;

    fn at(minutes: i64) -> Stamp {
        Stamp {
            wall_ms: (SATURDAY + minutes * 60) * 1_000,
            mono_ns: 0,
            uptime: Default::default(),
            trust: ClockTrust::Synchronised,
        }
    }

    #[test]
    fn a_window_opens_and_closes_and_may_cross_midnight() {
        let plain = Window::parse("02:00-04:30").unwrap();
        assert!(!plain.is_open(at(119)) && plain.is_open(at(120)) && plain.is_open(at(269)) && !plain.is_open(at(270)));
        let night = Window::parse("sat 22:00-03:00").unwrap();
        assert!(night.is_open(at(22 * 60)) && night.is_open(at(26 * 60)), "Saturday night, and Sunday before three");
        assert!(!night.is_open(at(60)) && !night.is_open(at(46 * 60)), "not Saturday's first hours, not Sunday night");
        assert!(Window::parse("sun 00:00-00:00").unwrap().is_open(at(24 * 60 + 700)));
        let unset = Stamp { trust: ClockTrust::Unsynchronised, ..at(130) };
        assert!(!plain.is_open(unset), "a clock that was never set opens nothing");
    }

    #[test]
    fn what_is_no_window_is_refused() {
        for wrong in ["", "2-4", "25:00-26:00", "caturday 01:00-02:00", "01:00", "+1:00-02:00", "1:000-02:00"] {
            assert!(Window::parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
