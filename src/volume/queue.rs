//! The entries that peers have not yet taken, in order, in memory up to a bound.
//!
//! Beyond the bound the oldest are given up: a peer that needs them is "behind" and comes back by the change journal.
//! The application is never slowed by a peer that does not keep up (only a sync pair in PAIR is waited for).

use crate::base::{Seq, time::Time};
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// One entry, ready for the wire.
pub struct Item {
    /// Its place.
    pub seq: Seq,
    /// When it was issued.
    pub time: Time,
    /// The frame.
    pub frame: Vec<u8>,
    /// Bytes of all frames of the group up to and with this one.
    pub total: u64,
    /// Bytes of user data in it, and whether it writes or renames (for the counters of a catch-up).
    pub tally: Tally,
}

/// What an entry does, for counters.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Bytes of user data.
    pub data: u64,
    /// A name hash of the object written to; 0 when no object is involved.
    pub object: u64,
    /// It changes names by rename.
    pub rename: bool,
}

/// Where the order was at a time: what remains of entries that were given up, for the lag of who still needs them.
struct Stamp {
    seq: Seq,
    time: Time,
    /// Bytes of all frames before it.
    before: u64,
}

/// One a second, until there are this many; then every second one goes.
const STAMPS_MAX: usize = 4096;

struct Inner {
    items: VecDeque<Arc<Item>>,
    stamps: Vec<Stamp>,
    bytes: u64,
    total: u64,
    head: Seq,
}

/// What a fetch found.
pub enum Fetch {
    /// Entries after the cursor, at least one.
    Items(Vec<Arc<Item>>),
    /// Nothing new.
    Nothing,
    /// The entry after the cursor has been given up.
    Gone,
}

/// The queue of a group.
pub struct Queue {
    inner: Mutex<Inner>,
    pushed: Condvar,
    limit: u64,
}

impl Queue {
    /// An empty queue after `head`, holding at most `limit` bytes of frames.
    pub fn new(head: Seq, limit: u64) -> Queue {
        let inner = Inner { items: VecDeque::new(), stamps: Vec::new(), bytes: 0, total: 0, head };
        Queue { inner: Mutex::new(inner), pushed: Condvar::new(), limit }
    }

    /// Adds the next entry. Called inside the order.
    pub fn push(&self, seq: Seq, time: Time, frame: Vec<u8>, tally: Tally) {
        let mut g = self.inner.lock();
        g.stamp(seq, time);
        g.total += frame.len() as u64;
        g.bytes += frame.len() as u64;
        g.head = seq;
        let total = g.total;
        g.items.push_back(Arc::new(Item { seq, time, frame, total, tally }));
        while g.bytes > self.limit && g.items.len() > 1 {
            if let Some(i) = g.items.pop_front() {
                g.bytes -= i.frame.len() as u64;
            }
        }
        drop(g);
        self.pushed.notify_all();
    }

    /// Entries after `cursor` and not after `upto`, at most `bytes` or `count`.
    pub fn fetch(&self, cursor: Seq, upto: Seq, bytes: usize, count: usize) -> Fetch {
        let g = self.inner.lock();
        if cursor >= g.head || cursor >= upto {
            return Fetch::Nothing;
        }
        let Some(first) = g.items.front().map(|i| i.seq.0) else { return Fetch::Gone };
        if cursor.0 + 1 < first {
            return Fetch::Gone;
        }
        let mut out = Vec::new();
        let mut sum = 0;
        for i in g.items.iter().skip((cursor.0 + 1 - first) as usize) {
            if i.seq > upto || out.len() >= count || (sum + i.frame.len() > bytes && !out.is_empty()) {
                break;
            }
            sum += i.frame.len();
            out.push(i.clone());
        }
        if out.is_empty() { Fetch::Nothing } else { Fetch::Items(out) }
    }

    /// True when every entry after `cursor` is still here.
    pub fn reaches(&self, cursor: Seq) -> bool {
        let g = self.inner.lock();
        cursor >= g.head || g.items.front().is_some_and(|i| i.seq.0 <= cursor.0 + 1)
    }

    /// Waits until something after `cursor` is there, or the time is up.
    pub fn wait(&self, cursor: Seq, timeout: Duration) {
        let mut g = self.inner.lock();
        if g.head <= cursor {
            self.pushed.wait_for(&mut g, timeout);
        }
    }

    /// Wakes everybody who waits.
    pub fn wake(&self) {
        drop(self.inner.lock());
        self.pushed.notify_all();
    }

    /// Forgets what all peers have.
    pub fn trim(&self, upto: Seq) {
        let mut g = self.inner.lock();
        while g.items.front().is_some_and(|i| i.seq <= upto) {
            if let Some(i) = g.items.pop_front() {
                g.bytes -= i.frame.len() as u64;
            }
        }
    }

    /// Bytes held, and bytes of all frames so far.
    pub fn bytes(&self) -> (u64, u64) {
        let g = self.inner.lock();
        (g.bytes, g.total)
    }

    /// Bytes of the entries after `cursor`; about as many if they are not here any more.
    pub fn bytes_after(&self, cursor: Seq) -> u64 {
        let g = self.inner.lock();
        let first = g.items.front().map_or(0, |i| i.seq.0);
        match g.items.get((cursor.0 + 1).saturating_sub(first) as usize) {
            _ if cursor.0 + 1 < first => g.total - g.stamp_after(cursor).map_or(g.total, |s| s.before),
            Some(i) => g.total - (i.total - i.frame.len() as u64),
            None => 0,
        }
    }

    /// When the first entry after `cursor` was issued, to the second if it is not here any more.
    pub fn time_after(&self, cursor: Seq) -> Option<Time> {
        let g = self.inner.lock();
        let first = g.items.front()?.seq.0;
        match (cursor.0 + 1).checked_sub(first) {
            Some(i) => g.items.get(i as usize).map(|i| i.time),
            None => g.stamp_after(cursor).map(|s| s.time),
        }
    }
}

impl Inner {
    fn stamp(&mut self, seq: Seq, time: Time) {
        if self.stamps.last().is_some_and(|s| time.nanos_total() < s.time.nanos_total() + 1_000_000_000) {
            return;
        }
        if self.stamps.len() >= STAMPS_MAX {
            let mut n = 0;
            self.stamps.retain(|_| {
                n += 1;
                n % 2 == 1
            });
        }
        self.stamps.push(Stamp { seq, time, before: self.total });
    }

    /// The stamp nearest to the first entry after `cursor`.
    fn stamp_after(&self, cursor: Seq) -> Option<&Stamp> {
        let after = self.stamps.partition_point(|s| s.seq.0 <= cursor.0 + 1);
        self.stamps.get(after.saturating_sub(1))
    }
}
