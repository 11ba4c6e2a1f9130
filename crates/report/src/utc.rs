//! Dates and times of day without a time zone database.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

/// A moment in UTC, to the second, as calendars write it.
///
/// ```
/// use bitmill_report::Utc;
/// let leap = Utc::at(951_782_400);
/// assert_eq!(leap.to_string(), "2000-02-29T00:00:00Z");
/// assert_eq!((leap.weekday, leap.day_of_year), (2, 60));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Utc {
    /// 1970 or later.
    pub year: u64,
    /// 1 to 12.
    pub month: u64,
    /// 1 to 31.
    pub day: u64,
    /// 0 to 23.
    pub hour: u64,
    /// 0 to 59.
    pub minute: u64,
    /// 0 to 59.
    pub second: u64,
    /// Days since Sunday, 0 to 6.
    pub weekday: u64,
    /// 1 to 366.
    pub day_of_year: u64,
}

impl Utc {
    /// The moment `seconds` after the beginning of 1970.
    pub fn at(seconds: u64) -> Self {
        let (days, rest) = (seconds / 86_400, seconds % 86_400);
        // Years begin in March here, so that the leap day is the last of its year (Hinnant, "chrono-compatible
        // low-level date algorithms").
        let shifted = days + 719_468;
        let era = shifted / 146_097;
        let day_of_era = shifted % 146_097;
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let march_day = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * march_day + 2) / 153;
        let day = march_day - (153 * march_month + 2) / 5 + 1;
        let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
        let year = era * 400 + year_of_era + u64::from(month <= 2);
        let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        let day_of_year = if month <= 2 { march_day - 305 } else { march_day + 60 + u64::from(leap) };
        Self {
            year,
            month,
            day,
            hour: rest / 3600,
            minute: rest / 60 % 60,
            second: rest % 60,
            // 1970 began on a Thursday.
            weekday: (days + 4) % 7,
            day_of_year,
        }
    }

    /// This moment; the beginning of 1970 on a clock that stands before it.
    pub fn now() -> Self {
        Self::at(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
    }
}

impl fmt::Display for Utc {
    /// ISO 8601: `2026-11-22T18:02:30Z`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { year, month, day, hour, minute, second, .. } = self;
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

/// Now, in UTC, to the second: `2026-11-22T18:02:30Z`.
pub fn timestamp() -> String {
    Utc::now().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_around_leap_days_are_right() {
        // date -u -d @N '+%FT%TZ %w %j'
        for (seconds, text, weekday, day_of_year) in [
            (0, "1970-01-01T00:00:00Z", 4, 1),
            (951_782_400, "2000-02-29T00:00:00Z", 2, 60),
            (951_868_799, "2000-02-29T23:59:59Z", 2, 60),
            (951_868_800, "2000-03-01T00:00:00Z", 3, 61),
            (1_735_689_599, "2024-12-31T23:59:59Z", 2, 366),
            (4_107_542_400, "2100-03-01T00:00:00Z", 1, 60),
        ] {
            let utc = Utc::at(seconds);
            assert_eq!(utc.to_string(), text);
            assert_eq!((utc.weekday, utc.day_of_year), (weekday, day_of_year), "{text}");
        }
    }
}
