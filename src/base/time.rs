//! Wall-clock time with nanoseconds, as files and entries carry it.

use bincode::de::Decoder;
use bincode::error::DecodeError;
use bincode::{Decode, Encode};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A point in time: seconds since 1970 (negative before) and nanoseconds 0..1e9.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Default)]
pub struct Time {
    /// Seconds since 1970-01-01 UTC.
    pub sec: i64,
    /// Nanoseconds within the second.
    pub nsec: u32,
}

impl Time {
    /// Nanoseconds since 1970, saturating; for lag arithmetic, not for files.
    pub fn nanos_total(self) -> u64 {
        (self.sec.max(0) as u64).saturating_mul(1_000_000_000).saturating_add(self.nsec as u64)
    }

    /// Seconds since 1970, with their fraction.
    pub fn unix(self) -> f64 {
        self.sec as f64 + f64::from(self.nsec) / 1e9
    }

    /// As a [`SystemTime`].
    pub fn system(self) -> SystemTime {
        if self.sec >= 0 {
            UNIX_EPOCH + Duration::new(self.sec as u64, self.nsec)
        } else {
            UNIX_EPOCH - Duration::from_secs(self.sec.unsigned_abs()) + Duration::from_nanos(self.nsec as u64)
        }
    }
}

/// Nanoseconds of a second or more are no time: the kernel would refuse them, or take two of them as orders (UTIME_NOW,
/// UTIME_OMIT).
impl<C> Decode<C> for Time {
    fn decode<D: Decoder<Context = C>>(d: &mut D) -> Result<Time, DecodeError> {
        let t = Time { sec: Decode::decode(d)?, nsec: Decode::decode(d)? };
        if t.nsec < 1_000_000_000 {
            Ok(t)
        } else {
            Err(DecodeError::Other("a time with a second or more of nanoseconds"))
        }
    }
}
bincode::impl_borrow_decode!(Time);

impl From<SystemTime> for Time {
    fn from(t: SystemTime) -> Time {
        match t.duration_since(UNIX_EPOCH) {
            Ok(d) => Time { sec: d.as_secs() as i64, nsec: d.subsec_nanos() },
            Err(e) => {
                let d = e.duration();
                match d.subsec_nanos() {
                    0 => Time { sec: -(d.as_secs() as i64), nsec: 0 },
                    n => Time { sec: -(d.as_secs() as i64) - 1, nsec: 1_000_000_000 - n },
                }
            }
        }
    }
}

/// `2026-11-21 11:30:12`, in UTC, for people.
pub fn utc(t: Time) -> String {
    let (days, s) = (t.sec.div_euclid(86_400), t.sec.rem_euclid(86_400));
    // Days since 1 March of the year 0, in eras of 400 years.
    let z = days + 719_468;
    let (era, day) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let (d, m) = (of_year - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let y = year + era * 400 + i64::from(m <= 2);
    format!("{y:04}-{m:02}-{d:02} {:02}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
}

/// Reads a span of time: a number with `ms`, `s`, `m`, `h` or `d`; a bare number is seconds. `None`: it is not one.
pub fn duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let seconds = match unit.trim_start() {
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()
}

/// A time as machines read it, in UTC to the millisecond: `2026-11-21T10:00:00.000Z`. Such texts sort as their times do.
pub fn iso(t: Time) -> String {
    format!("{}.{:03}Z", utc(t).replace(' ', "T"), t.nsec / 1_000_000)
}

/// The current time.
pub fn now() -> Time {
    SystemTime::now().into()
}

#[cfg(test)]
mod tests {
    use super::{Duration, Time, duration, iso, utc};

    #[test]
    fn dates_are_those_of_the_calendar() {
        let at = |sec| utc(Time { sec, nsec: 0 });
        assert_eq!(at(951_782_399), "2000-02-28 23:59:59");
        assert_eq!(at(951_868_800), "2000-03-01 00:00:00");
        assert_eq!(at(1_795_255_200), "2026-11-21 10:00:00");
        assert_eq!(at(-1), "1969-12-31 23:59:59");
        assert_eq!(iso(Time { sec: 1_795_255_200, nsec: 7_999_999 }), "2026-11-21T10:00:00.007Z");
    }

    #[test]
    fn spans_are_read_with_their_unit() {
        for (text, ms) in
            [("10s", 10_000), ("500ms", 500), ("1.5", 1500), ("2m", 120_000), ("1 h", 3_600_000), ("1d", 86_400_000)]
        {
            assert_eq!(duration(text), Some(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "-1s", "ten", "1w", "1e400", "1..2"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }
}
