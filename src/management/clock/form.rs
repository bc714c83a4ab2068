//! How a device holds its time: which points, and what their values mean.

use std::collections::BTreeMap;

use jiff::civil::DateTime;
use jiff::tz::{Offset, TimeZone};
use serde::{Deserialize, Serialize};

use crate::model::Value;

/// Points that hold the clock of a device. Points of type BCD are numbers here: the driver decodes them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "form", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ClockForm {
    /// Seconds since 1970 (UTC) in one point, usually two registers.
    UnixSeconds {
        /// The point.
        point: String,
    },
    /// Milliseconds since 1970 (UTC) in one point, usually four registers.
    UnixMilliseconds {
        /// The point.
        point: String,
    },
    /// One point per field, as in many meters and PLCs.
    Fields {
        /// Year, full or without the century.
        year: String,
        /// 1 to 12.
        month: String,
        /// 1 to 31.
        day: String,
        /// 0 to 23.
        hour: String,
        /// 0 to 59.
        minute: String,
        /// 0 to 59.
        second: String,
        /// Added to the year: 2000 for two-digit years, 0 for full ones.
        #[serde(default)]
        year_base: i16,
        /// Minutes that the device's time is ahead of UTC.
        #[serde(default)]
        utc_offset: i32,
        /// A point that takes the time over when 1 is written to it, after the fields.
        #[serde(default)]
        strobe: Option<String>,
    },
}

/// Why values are no time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormError {
    /// A point has no number.
    #[error("point {0} of the clock gave no number")]
    NoNumber(String),
    /// The numbers are no date.
    #[error("the clock shows no date: {0}")]
    NoDate(String),
    /// The time cannot be written in this form.
    #[error("the time does not fit the clock's form: {0}")]
    Unfit(String),
}

impl ClockForm {
    /// Points to read.
    pub fn points(&self) -> Vec<&str> {
        match self {
            ClockForm::UnixSeconds { point } | ClockForm::UnixMilliseconds { point } => vec![point],
            ClockForm::Fields { year, month, day, hour, minute, second, .. } => {
                vec![year, month, day, hour, minute, second]
            }
        }
    }

    /// The smallest step of the clock, milliseconds.
    pub const fn resolution_ms(&self) -> i64 {
        match self {
            ClockForm::UnixMilliseconds { .. } => 1,
            ClockForm::UnixSeconds { .. } | ClockForm::Fields { .. } => 1_000,
        }
    }

    /// The device's time in milliseconds since 1970.
    ///
    /// # Errors
    /// [`FormError`] when a value is missing or the fields are no date.
    pub fn decode(&self, values: &BTreeMap<String, Value>) -> Result<i64, FormError> {
        let number = |point: &str| {
            let value = values.get(point).and_then(Value::as_f64).filter(|n| n.fract() == 0.0 && n.abs() < 1e15);
            value.map(|n| n as i64).ok_or_else(|| FormError::NoNumber(point.to_owned()))
        };
        match self {
            ClockForm::UnixSeconds { point } => Ok(number(point)?.saturating_mul(1_000)),
            ClockForm::UnixMilliseconds { point } => number(point),
            ClockForm::Fields { year, month, day, hour, minute, second, year_base, utc_offset, .. } => {
                let small =
                    |n: i64| i8::try_from(n).map_err(|_| FormError::NoDate(format!("{n} is no field of a date")));
                let full = number(year)? + i64::from(*year_base);
                let full = i16::try_from(full).map_err(|_| FormError::NoDate(format!("year {full}")))?;
                let date = DateTime::new(
                    full,
                    small(number(month)?)?,
                    small(number(day)?)?,
                    small(number(hour)?)?,
                    small(number(minute)?)?,
                    small(number(second)?)?,
                    0,
                );
                let date = date.map_err(|e| FormError::NoDate(e.to_string()))?;
                let zone = zone(*utc_offset).map_err(FormError::NoDate)?;
                let instant = date.to_zoned(zone).map_err(|e| FormError::NoDate(e.to_string()))?;
                Ok(instant.timestamp().as_millisecond())
            }
        }
    }

    /// Writes that set the clock to `unix_ms`, in order.
    ///
    /// # Errors
    /// [`FormError::Unfit`].
    pub fn encode(&self, unix_ms: i64) -> Result<Vec<(String, Value)>, FormError> {
        // Clocks of whole seconds are set to the nearest one, so that the error is at most half a second.
        let seconds = unix_ms.saturating_add(500).div_euclid(1_000);
        match self {
            ClockForm::UnixSeconds { point } => Ok(vec![(point.clone(), Value::Int(seconds))]),
            ClockForm::UnixMilliseconds { point } => Ok(vec![(point.clone(), Value::Int(unix_ms))]),
            ClockForm::Fields { year, month, day, hour, minute, second, year_base, utc_offset, strobe } => {
                let zone = zone(*utc_offset).map_err(FormError::Unfit)?;
                let instant = jiff::Timestamp::from_second(seconds).map_err(|e| FormError::Unfit(e.to_string()))?;
                let date = instant.to_zoned(zone).datetime();
                let short = i64::from(date.year()) - i64::from(*year_base);
                if *year_base != 0 && !(0..100).contains(&short) {
                    return Err(FormError::Unfit(format!("year {} with base {year_base}", date.year())));
                }
                let fields = [
                    (year, short),
                    (month, i64::from(date.month())),
                    (day, i64::from(date.day())),
                    (hour, i64::from(date.hour())),
                    (minute, i64::from(date.minute())),
                    (second, i64::from(date.second())),
                ];
                let mut writes: Vec<_> = fields.into_iter().map(|(p, v)| (p.clone(), Value::Int(v))).collect();
                writes.extend(strobe.iter().map(|p| (p.clone(), Value::Int(1))));
                Ok(writes)
            }
        }
    }
}

fn zone(minutes: i32) -> Result<TimeZone, String> {
    let seconds = minutes.checked_mul(60).ok_or_else(|| format!("offset {minutes} min"))?;
    Offset::from_seconds(seconds).map(TimeZone::fixed).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fields(year_base: i16, utc_offset: i32) -> ClockForm {
        let p = |s: &str| s.to_owned();
        ClockForm::Fields {
            year: p("y"),
            month: p("mo"),
            day: p("d"),
            hour: p("h"),
            minute: p("mi"),
            second: p("s"),
            year_base,
            utc_offset,
            strobe: Some(p("go")),
        }
    }

    #[test]
    fn a_two_digit_clock_in_local_time() {
        let writes = fields(2000, 60).encode(1_763_812_800_400).unwrap();
        let text: Vec<_> = writes.iter().map(|(p, v)| format!("{p}={v}")).collect();
        assert_eq!(text, ["y=25", "mo=11", "d=22", "h=13", "mi=0", "s=0", "go=1"]);
    }

    #[test]
    fn nonsense_is_no_date() {
        let mut values: BTreeMap<_, _> = fields(2000, 0).encode(0).unwrap_or_default().into_iter().collect();
        assert!(fields(2000, 0).decode(&values).is_err(), "1970 has no two-digit form with base 2000");
        values = fields(0, 0).encode(0).unwrap().into_iter().collect();
        values.insert("mo".to_owned(), Value::Int(13));
        assert!(matches!(fields(0, 0).decode(&values), Err(FormError::NoDate(_))));
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(ms in 946_684_800_000i64..4_102_444_799_000, offset in -720i32..=840, short: bool) {
            for form in [
                fields(if short { 2000 } else { 0 }, offset),
                ClockForm::UnixSeconds { point: "t".into() },
                ClockForm::UnixMilliseconds { point: "t".into() },
            ] {
                let Ok(writes) = form.encode(ms) else { continue };
                let back = form.decode(&writes.into_iter().collect()).unwrap();
                prop_assert!((back - ms).abs() <= form.resolution_ms() / 2);
            }
        }
    }
}
