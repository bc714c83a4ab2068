//! Plant time: a date and time of day that counts from the scenario's start by the steps of the model, so that it is
//! the same in every run.

/// A date and time without a zone, as an old controller keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Calendar {
    /// Such as 2026.
    pub year: u16,
    /// 1 ..= 12.
    pub month: u8,
    /// 1 ..= 31.
    pub day: u8,
    /// 0 ..= 23.
    pub hour: u8,
    /// 0 ..= 59.
    pub minute: u8,
    /// 0 ..= 59.
    pub second: u8,
}

impl Calendar {
    /// The calendar `seconds` after 1970-01-01 00:00:00 (Hinnant's `civil_from_days`).
    pub fn from_epoch_seconds(seconds: u64) -> Self {
        let (days, of_day) = ((seconds / 86_400) as i64, seconds % 86_400);
        let shifted = days + 719_468;
        let era = shifted.div_euclid(146_097);
        let day_of_era = shifted.rem_euclid(146_097);
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        Self {
            year: year as u16,
            month: month as u8,
            day: (day_of_year - (153 * month_from_march + 2) / 5 + 1) as u8,
            hour: (of_day / 3_600) as u8,
            minute: (of_day / 60 % 60) as u8,
            second: (of_day % 60) as u8,
        }
    }

    /// Seconds since 1970-01-01 00:00:00 (Hinnant's `days_from_civil`).
    pub fn epoch_seconds(&self) -> u64 {
        let year = i64::from(self.year) - i64::from(self.month <= 2);
        let era = year.div_euclid(400);
        let year_of_era = year.rem_euclid(400);
        let month_from_march = (i64::from(self.month) + 9) % 12;
        let day_of_year = (153 * month_from_march + 2) / 5 + i64::from(self.day) - 1;
        let days = era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468;
        days.max(0) as u64 * 86_400
            + u64::from(self.hour) * 3_600
            + u64::from(self.minute) * 60
            + u64::from(self.second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_dates() {
        let leap = Calendar { year: 2024, month: 2, day: 29, hour: 23, minute: 59, second: 58 };
        assert_eq!(leap.epoch_seconds(), 1_709_251_198);
        assert_eq!(Calendar::from_epoch_seconds(1_709_251_198), leap);
        assert_eq!(Calendar::from_epoch_seconds(0).year, 1970);
        assert_eq!(Calendar::from_epoch_seconds(1_709_251_200).day, 1);
    }

    #[test]
    fn every_day_of_eight_years_goes_there_and_back() {
        for day in 0..(8 * 366) {
            let seconds = 1_700_000_000 + day * 86_400;
            assert_eq!(Calendar::from_epoch_seconds(seconds).epoch_seconds(), seconds);
        }
    }
}
