//! Wall-clock time with nanoseconds, as files and entries carry it.

use bincode::{Decode, Encode};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A point in time: seconds since 1970 (negative before) and nanoseconds 0..1e9.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode, Default)]
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

    /// As a [`SystemTime`].
    pub fn system(self) -> SystemTime {
        if self.sec >= 0 {
            UNIX_EPOCH + Duration::new(self.sec as u64, self.nsec)
        } else {
            UNIX_EPOCH - Duration::from_secs(self.sec.unsigned_abs()) + Duration::from_nanos(self.nsec as u64)
        }
    }
}

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

/// The current time.
pub fn now() -> Time {
    SystemTime::now().into()
}
