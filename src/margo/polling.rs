//! When the fleet manager is asked, and when its silence is expected.
//!
//! Three settings of the user: the polling rate, polling hours (outside of them nothing is asked for; reports and statuses
//! are sent all the same), and known downtime (nothing is sent, and nothing that fails is a fault). Windows are in UTC,
//! which has no hour twice. A gateway whose clock was never set does not know the hour, and polls.

use std::time::Duration;

/// A window cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no window; write \"22:00-04:00\", \"Sat,Sun 00:00-24:00\", \"Mon-Fri 06:00-22:00\" or \"2026-12-24T18:00Z/2026-12-27T06:00Z\", all in UTC"
)]
pub struct WindowError(String);

/// A span of time, in UTC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Window {
    /// On some days of the week.
    Weekly {
        /// Bit 0 is Monday: the days on which it begins.
        days: u8,
        /// Minutes after midnight.
        from: u16,
        /// Minutes after midnight; not after `from` means on the next day.
        to: u16,
    },
    /// Once, Unix seconds; the end is outside.
    Once {
        /// First second.
        from: i64,
        /// First second after it.
        to: i64,
    },
}

const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
const DAY: i64 = 86_400;

impl Window {
    /// Reads a window.
    ///
    /// # Errors
    /// [`WindowError`].
    pub fn parse(text: &str) -> Result<Self, WindowError> {
        let wrong = || WindowError(text.chars().take(100).collect());
        if let Some((from, to)) = text.split_once('/') {
            let at = |text: &str| moment(text.trim()).ok_or_else(wrong);
            let (from, to) = (at(from)?, at(to)?);
            return if from < to { Ok(Self::Once { from, to }) } else { Err(wrong()) };
        }
        let words: Vec<&str> = text.split_whitespace().collect();
        let (days, hours) = match words[..] {
            [hours] => (0b111_1111, hours),
            [days, hours] => (parse_days(days).ok_or_else(wrong)?, hours),
            _ => return Err(wrong()),
        };
        let (from, to) = hours.split_once('-').ok_or_else(wrong)?;
        let minutes = |text: &str| clock(text).ok_or_else(wrong);
        let (from, to) = (minutes(from)?, minutes(to)?);
        if from == to || from == 1_440 { Err(wrong()) } else { Ok(Self::Weekly { days, from, to }) }
    }

    /// Whether a second (Unix) lies inside.
    pub fn contains(&self, second: i64) -> bool {
        match *self {
            Self::Once { from, to } => (from..to).contains(&second),
            Self::Weekly { days, from, to } => {
                let (day, minute) = (second.div_euclid(DAY), (second.rem_euclid(DAY) / 60) as u16);
                // 1970-01-01 was a Thursday.
                let begins = |day: i64| days & (1 << (day + 3).rem_euclid(7)) != 0;
                match from < to {
                    true => begins(day) && (from..to).contains(&minute),
                    false => (begins(day) && minute >= from) || (begins(day - 1) && minute < to),
                }
            }
        }
    }
}

fn moment(text: &str) -> Option<i64> {
    // Seconds may be left out.
    let whole = text.strip_suffix('Z').filter(|rest| rest.matches(':').count() == 1).map(|rest| format!("{rest}:00Z"));
    whole.as_deref().unwrap_or(text).parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_second)
}

fn clock(text: &str) -> Option<u16> {
    let (hours, minutes) = text.split_once(':')?;
    let number = |text: &str| (text.len() == 2).then(|| text.parse::<u16>().ok())?;
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    (minutes < 60 && hours * 60 + minutes <= 1_440).then_some(hours * 60 + minutes)
}

fn parse_days(text: &str) -> Option<u8> {
    let day = |name: &str| DAYS.iter().position(|known| known.eq_ignore_ascii_case(name));
    text.split(',').try_fold(0, |all, part| match part.split_once('-') {
        None => Some(all | 1 << day(part)?),
        Some((from, to)) => {
            let (from, to) = (day(from)?, day(to)?);
            let length = (to + 7 - from) % 7;
            Some((0..=length).fold(all, |all, i| all | 1 << ((from + i) % 7)))
        }
    })
}

/// The settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Polling {
    /// Between two polls.
    pub every: Duration,
    /// Polling hours; none means always.
    pub hours: Vec<Window>,
    /// Known downtime of the fleet manager.
    pub downtime: Vec<Window>,
}

impl Default for Polling {
    fn default() -> Self {
        Self { every: Duration::from_secs(60), hours: Vec::new(), downtime: Vec::new() }
    }
}

impl Polling {
    /// Whether silence of the fleet manager is expected at this second; `None` for a clock that was never set.
    pub fn is_down(&self, second: Option<i64>) -> bool {
        second.is_some_and(|second| self.downtime.iter().any(|window| window.contains(second)))
    }

    /// Whether it may be polled.
    pub fn is_open(&self, second: Option<i64>) -> bool {
        let inside = |second| self.hours.iter().any(|window| window.contains(second));
        !self.is_down(second) && (self.hours.is_empty() || second.is_none_or(inside))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// 2026-11-20, a Friday.
    const FRIDAY: i64 = 1_795_132_800;

    fn at(day: i64, hours: i64, minutes: i64) -> i64 {
        FRIDAY + day * DAY + hours * 3_600 + minutes * 60
    }

    #[test]
    fn polling_hours_and_known_downtime_are_kept() {
        let window = |text| Window::parse(text).unwrap();
        let polling = Polling {
            hours: vec![window("Mon-Fri 06:00-22:00")],
            downtime: vec![window("12:00-12:30")],
            ..Polling::default()
        };
        assert!(
            polling.is_open(Some(at(0, 6, 0)))
                && !polling.is_open(Some(at(0, 5, 59)))
                && !polling.is_open(Some(at(0, 22, 0)))
        );
        assert!(!polling.is_open(Some(at(1, 10, 0))), "Saturday");
        assert!(
            polling.is_down(Some(at(0, 12, 29)))
                && !polling.is_open(Some(at(0, 12, 0)))
                && polling.is_open(Some(at(0, 12, 30)))
        );
        assert!(polling.is_open(None) && !polling.is_down(None), "a clock that was never set knows no hours");
    }

    #[test]
    fn windows_go_over_midnight_and_over_the_week() {
        let night = Window::parse("Fri 22:00-04:00").unwrap();
        assert!(night.contains(at(0, 23, 0)) && night.contains(at(1, 3, 59)));
        assert!(!night.contains(at(1, 4, 0)) && !night.contains(at(0, 3, 0)) && !night.contains(at(1, 23, 0)));
        let weekend = Window::parse("Sat-Mon 00:00-24:00").unwrap();
        assert!([1, 2, 3].iter().all(|day| weekend.contains(at(*day, 12, 0))) && !weekend.contains(at(4, 0, 0)));
        let once = Window::parse("2026-11-20T10:00Z/2026-11-20T12:30:00Z").unwrap();
        assert!(once.contains(at(0, 10, 0)) && !once.contains(at(0, 12, 30)) && !once.contains(at(7, 11, 0)));
    }

    #[test]
    fn what_is_no_window_is_refused() {
        for bad in [
            "",
            "22-04",
            "22:00-22:00",
            "25:00-26:00",
            "24:00-01:00",
            "Xyz 01:00-02:00",
            "01:00 02:00",
            "2026-01-02/2026-01-01",
            "1:00-2:00",
        ] {
            assert!(Window::parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,40}", second in any::<i32>()) {
            if let Ok(window) = Window::parse(&text) {
                let _ = window.contains(i64::from(second));
            }
        }
    }
}
