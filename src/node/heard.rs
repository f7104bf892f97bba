//! How far a secondary is behind, as each end can know it (MS-19).
//!
//! What the primary tells is in order with the entries: when it is read here, everything sent before it was received. Up to
//! which time the tree has everything is said by the thread that applies ([`crate::store::receive::Receiver::beat`]) and
//! told to the primary. So whatever stands still on the way, the seconds count on (G9): the sender, the link, the log, the
//! applying. Only while nothing is known to be missing and confirmations come as they should, the lag is 0.

use super::status::Lag;
use crate::base::{Seq, time, time::Time};
use crate::store::receive::Taken;
use crate::volume::group::Group;
use std::time::{Duration, Instant};

/// The primary's last word about its position.
#[derive(Clone, Debug)]
pub struct Heard {
    /// The site it came from.
    pub site: String,
    /// Its position.
    pub head: Seq,
    /// Bytes of the entries up to there that were still to come.
    pub unsent: u64,
    /// What had been received by then.
    pub taken: Taken,
    /// When it was said, by its clock.
    pub time: Time,
    /// When it was heard.
    pub at: Instant,
}

/// What a secondary has by now.
#[derive(Clone, Copy, Debug)]
pub struct Got {
    /// In its log.
    pub received: Seq,
    /// In its tree.
    pub applied: Seq,
    /// What was received, by size.
    pub taken: Taken,
    /// Its tree has everything of this time, by the primary's clock.
    pub confirmed: Option<Time>,
}

impl Heard {
    /// How far this replica, secondary since `since`, is behind. `patience`: how old the last confirmation may be while
    /// nothing is known to be missing; `None`: there is no link.
    pub fn lag(&self, got: &Got, since: Instant, patience: Option<Duration>) -> Lag {
        let entries = self.head.0.saturating_sub(got.received.min(got.applied).0);
        let bytes = match got.received >= self.head {
            true => 0,
            false => self.unsent.saturating_sub(got.taken.bytes.saturating_sub(self.taken.bytes)),
        };
        let age = match got.confirmed {
            Some(c) => {
                Duration::from_nanos(self.time.nanos_total().saturating_sub(c.nanos_total())) + self.at.elapsed()
            }
            None => since.elapsed(),
        };
        Lag { entries, bytes, seconds: shown(entries, age, patience) }
    }
}

/// How far the peer of an outgoing pair is behind. `patience` as for [`Heard::lag`].
pub fn out_lag(group: &Group, pair: usize, patience: Option<Duration>) -> Lag {
    let p = group.progress(pair);
    let has = p.in_tree();
    let entries = group.head().0.saturating_sub(has.0);
    let bytes = if entries == 0 { 0 } else { group.queue.bytes_after(p.received.max(p.shown)) };
    let age = |t: Time| Duration::from_nanos(time::now().nanos_total().saturating_sub(t.nanos_total()));
    let silent = age(p.confirmed.unwrap_or(group.since));
    // The entry that is missing is not older than the last confirmation.
    let oldest = group.queue.time_after(has).map(age).filter(|_| entries > 0);
    Lag { entries, bytes, seconds: shown(entries, oldest.unwrap_or(silent).min(silent), patience) }
}

fn shown(entries: u64, age: Duration, patience: Option<Duration>) -> f64 {
    match patience {
        Some(p) if entries == 0 && age <= p => 0.0,
        _ => age.as_secs_f64(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Option<Duration> = Some(Duration::from_secs(3));

    fn at(sec: i64) -> Time {
        Time { sec, nsec: 0 }
    }

    fn heard(head: u64, unsent: u64, time: i64) -> Heard {
        let taken = Taken { bytes: 1000 };
        Heard { site: "p".into(), head: Seq(head), unsent, taken, time: at(time), at: Instant::now() }
    }

    fn got(received: u64, applied: u64, bytes: u64, confirmed: i64) -> Got {
        let confirmed = Some(at(confirmed));
        Got { received: Seq(received), applied: Seq(applied), taken: Taken { bytes }, confirmed }
    }

    /// MS-19: in entries, bytes and seconds at the secondary as well.
    #[test]
    fn the_lag_shrinks_with_what_is_received_and_its_age_is_that_of_the_oldest_missing_entry() {
        let now = Instant::now();
        assert_eq!(heard(10, 0, 100).lag(&got(10, 10, 1000, 98), now, PATIENCE), Lag::default());
        let h = heard(30, 2000, 104);
        let l = h.lag(&got(12, 12, 1000, 101), now, PATIENCE);
        assert_eq!((l.entries, l.bytes), (18, 2000));
        assert!(l.seconds >= 3.0 && l.seconds < 3.9, "{l:?}");
        let l = h.lag(&got(22, 20, 2200, 103), now, PATIENCE);
        assert_eq!((l.entries, l.bytes), (10, 800));
        assert!(l.seconds >= 1.0 && l.seconds < 1.9, "{l:?}");
        assert_eq!(h.lag(&got(30, 30, 3000, 104), now, PATIENCE), Lag::default());
    }

    /// G9: nothing is heard, and that is seen.
    #[test]
    fn without_a_link_the_lag_grows_also_when_nothing_is_known_to_be_missing() {
        let mut h = heard(10, 0, 100);
        h.at -= Duration::from_secs(7);
        let l = h.lag(&got(10, 10, 1000, 100), Instant::now(), None);
        assert_eq!((l.entries, l.bytes), (0, 0));
        assert!(l.seconds >= 7.0 && l.seconds < 7.9, "{l:?}");
        // The link is there and says nothing any more.
        let l = h.lag(&got(10, 10, 1000, 100), Instant::now(), PATIENCE);
        assert!(l.seconds >= 7.0, "{l:?}");
    }

    /// G9: words come and the applying stands still, with and without anything to apply.
    #[test]
    fn the_lag_grows_while_nothing_is_applied_though_words_come() {
        for minute in 1..4 {
            let h = heard(10, 0, 100 + 60 * minute);
            for applied in [10, 9] {
                let l = h.lag(&got(10, applied, 1000, 100), Instant::now(), PATIENCE);
                assert!(l.seconds >= 60.0 * minute as f64, "{l:?}");
                assert_eq!((l.entries, l.bytes), (10 - applied, 0));
            }
        }
        let never = Got { confirmed: None, ..got(10, 10, 1000, 0) };
        let l = heard(10, 0, 100).lag(&never, Instant::now() - Duration::from_secs(9), PATIENCE);
        assert!(l.seconds >= 9.0, "{l:?}");
    }
}
