//! Who wants the tree to have everything, or to stand still at a point.

use super::*;
use crate::base::limits;

/// Applying is held for a comparison no longer than this, whatever the primary says.
const HOLD_MAX: Duration = Duration::from_secs(60);
/// Nor while more than this waits to be applied, bytes: far below where the sender would have to be slowed down.
const HOLD_BYTES_MAX: u64 = 2 * limits::LOG_SEGMENT_BYTES;

/// Applying stops at a point, for a comparison.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hold {
    id: u64,
    at: Seq,
    until: Instant,
}

impl Receiver {
    /// Waits until everything received is applied. False when the time is up or applying has stopped.
    pub fn drain(&self, timeout: Duration) -> bool {
        let until = Instant::now() + timeout;
        let mut g = self.inner.lock();
        g.hold = None;
        g.draining += 1;
        self.wake();
        let drained = loop {
            if self.replica.order().live.applied_lsn() >= g.limit(self.replica.log.end()) {
                break true;
            }
            if g.fault.is_some() || g.stopped || Instant::now() > until {
                break false;
            }
            self.changed.wait_for(&mut g, Duration::from_millis(50));
        };
        g.draining -= 1;
        drained
    }

    /// True when nothing waits to be applied, or applying is held.
    pub fn idle(&self) -> bool {
        let g = self.inner.lock();
        let m = self.replica.order();
        m.live.applied_lsn() >= g.limit(self.replica.log.end()) || g.hold.is_some_and(|h| m.live.last_seq() >= h.at)
    }

    /// Applies nothing after `at` from now on, for a comparison; ends by itself when it lasts too long or too much waits.
    /// Accepting goes on. To be called before any entry after `at` is accepted.
    pub fn hold(&self, id: u64, at: Seq) {
        self.inner.lock().hold = Some(Hold { id, at, until: Instant::now() + HOLD_MAX });
        self.wake();
    }

    /// Waits until the tree is exactly at the point of the hold; false when it is not, or not in time.
    pub fn await_held(&self, id: u64, timeout: Duration) -> bool {
        let until = Instant::now() + timeout;
        let mut g = self.inner.lock();
        loop {
            let Some(h) = g.hold.filter(|h| h.id == id) else { return false };
            let (last, txn) = {
                let m = self.replica.order();
                (m.live.last_seq(), m.live.txn().is_some())
            };
            if last >= h.at && !txn {
                return last == h.at;
            }
            if g.fault.is_some() || g.stopped || Instant::now() > until {
                return false;
            }
            self.changed.wait_for(&mut g, Duration::from_millis(50));
        }
    }

    /// Ends a hold (`None`: whichever there is); true when it lasted until now.
    pub fn release(&self, id: Option<u64>) -> bool {
        let mut g = self.inner.lock();
        let kept = g.hold.take_if(|h| id.is_none_or(|id| id == h.id)).is_some();
        self.wake();
        kept
    }

    pub(super) fn holding(&self, g: &mut Inner) -> bool {
        let Some(h) = g.hold else { return false };
        let (last, lsn) = {
            let m = self.replica.order();
            (m.live.last_seq(), m.live.applied_lsn())
        };
        let over = Instant::now() > h.until
            || self.replica.log.end().saturating_sub(lsn) > HOLD_BYTES_MAX.min(self.replica.log_bytes / 4);
        if last >= h.at && over {
            g.hold = None;
        }
        last >= h.at && !over
    }
}
