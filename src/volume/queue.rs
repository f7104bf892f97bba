//! The entries that peers have not yet taken, in order: in memory up to a bound, then in a spool on disk up to a limit.
//!
//! ```text
//! push ─▶ memory (queue_memory_mib) ─ thread ─▶ spool (spool_mib) ─ neither takes more ─▶ who lags most is "behind"
//! ```
//! Who is behind comes back by the change journal. The application is never slowed by a peer that does not keep up (only
//! a sync pair in PAIR is waited for), nor by the spool: it is written by a thread of its own, without a lock that a
//! writer needs. Memory holds `queue_memory_mib`, and with a spool what waits for it:
//! [`crate::base::limits::SPOOL_WAITING_BYTES_MAX`] more at most.

mod line;

use super::spool::{Spool, SpoolAt};
use crate::base::planted::{Bug, planted};
use crate::base::sync::thread::{self, JoinHandle};
use crate::base::sync::{Condvar, Mutex};
use crate::base::{Result, Seq, time::Time};
use crate::format::op::Op;
pub use line::Keep;
use line::{Dropped, Found, Line};
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

impl Tally {
    /// Of an operation with its data.
    pub fn of(op: &Op, data: &[u8]) -> Tally {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut object = 0;
        if let Op::Write { at, .. } | Op::Truncate { at, .. } | Op::Fallocate { at, .. } = op {
            let mut h = DefaultHasher::new();
            at.hash(&mut h);
            object = h.finish() | 1;
        }
        Tally { data: data.len() as u64, object, rename: matches!(op, Op::Rename { .. }) }
    }
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

/// What the queue takes, for status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// In memory, bytes.
    pub memory: u64,
    /// Entries in the spool that are still needed, bytes.
    pub spooled: u64,
    /// What the files of the spool take, bytes.
    pub spool_files: u64,
}

struct Inner {
    line: Line,
    spool_files: u64,
    /// What is needed of the spool as its files were last cut back to; `None`: something was written since.
    kept_from: Option<Option<u64>>,
    closed: bool,
}

struct Shared {
    inner: Mutex<Inner>,
    pushed: Condvar,
    /// For the thread of the spool.
    work: Condvar,
    spool: Option<Spool>,
}

/// The queue of a group.
pub struct Queue {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Queue {
    /// An empty queue after `head` for so many peers, each of which has everything up to there; in memory at most `limit`
    /// bytes, then in the spool.
    pub fn new(head: Seq, readers: usize, limit: u64, spool: SpoolAt) -> Result<Queue> {
        let q = Queue::without_thread(head, readers, limit, spool);
        if q.shared.spool.is_some() {
            let shared = q.shared.clone();
            let run = move || while shared.turn(Duration::from_secs(1)) {};
            *q.thread.lock() = Some(thread::Builder::new().name("spool".into()).spawn(run)?);
        }
        Ok(q)
    }

    fn without_thread(head: Seq, readers: usize, limit: u64, spool: SpoolAt) -> Queue {
        let spool = (spool.limit > 0).then(|| Spool::new(spool));
        let mut line = Line::new(head, limit, spool.is_some());
        (0..readers).for_each(|_| line.add_reader());
        let inner = Mutex::new(Inner { line, spool_files: 0, kept_from: Some(None), closed: false });
        let shared = Arc::new(Shared { inner, pushed: Condvar::new(), work: Condvar::new(), spool });
        Queue { shared, thread: Mutex::new(None) }
    }

    /// Changes something, and frees what is not needed any more when the lock is released.
    fn change(&self, f: impl FnOnce(&mut Line) -> Dropped) {
        let mut g = self.shared.inner.lock();
        let spooled = g.line.oldest_spooled();
        let dropped = f(&mut g.line);
        if spooled != g.line.oldest_spooled() || g.line.wants_spool() {
            self.shared.work.notify_one();
        }
        drop(g);
        drop(dropped);
    }

    /// A further peer, which has everything up to now. Its number is the next one.
    pub fn add_reader(&self) {
        self.shared.inner.lock().line.add_reader();
    }

    /// Adds the next entry. Called inside the order.
    pub fn push(&self, seq: Seq, time: Time, frame: Vec<u8>, tally: Tally) {
        self.change(|l| {
            let total = l.total + frame.len() as u64;
            l.push(Item { seq, time, frame, total, tally })
        });
        self.shared.pushed.notify_all();
    }

    /// Entries after `cursor` and not after `upto`, at most `bytes` or `count`.
    pub fn fetch(&self, cursor: Seq, upto: Seq, bytes: usize, count: usize) -> Fetch {
        loop {
            let b = {
                let g = self.shared.inner.lock();
                match g.line.fetch(cursor, upto, bytes, count) {
                    Found::Here(Fetch::Gone) if g.closed => return Fetch::Nothing,
                    Found::Here(f) => return f,
                    Found::Spooled(b) => b,
                }
            };
            let Some(spool) = &self.shared.spool else { return Fetch::Gone };
            match spool.read(&b, cursor, upto) {
                Ok(items) => return Fetch::Items(items),
                Err(e) => self.change(|l| match l.has_batch(&b) {
                    true => {
                        log::error!("{}: reading the spool: {e}", spool.dir().display());
                        l.give_up_spool(&format!("the spool cannot be read ({e})"))
                    }
                    // Given up meanwhile.
                    false => Dropped::new(),
                }),
            }
        }
    }

    /// True when every entry after `cursor` is still here.
    pub fn reaches(&self, cursor: Seq) -> bool {
        self.shared.inner.lock().line.reaches(cursor)
    }

    /// From now on everything after `has` is kept for a peer, until it acknowledges more or is given up. False: it is not
    /// here any more, and nothing has changed.
    pub fn keep_after(&self, reader: usize, has: Seq) -> bool {
        let mut kept = false;
        self.change(|l| {
            kept = l.keep_after(reader, has);
            l.shed()
        });
        kept
    }

    /// No more than this is kept for a peer from now on.
    pub fn at_most(&self, reader: usize, keep: Keep) {
        self.change(|l| l.at_most(reader, keep));
    }

    /// A peer has everything up to `seq`.
    pub fn have(&self, reader: usize, seq: Seq) {
        self.change(|l| l.have(reader, seq));
    }

    /// Why a peer is behind, if what it needs was given up.
    pub fn given_up(&self, reader: usize) -> Option<String> {
        self.shared.inner.lock().line.given_up(reader)
    }

    /// Waits until something after `cursor` is there, or the time is up.
    pub fn wait(&self, cursor: Seq, timeout: Duration) {
        let mut g = self.shared.inner.lock();
        if g.line.head <= cursor {
            if planted(Bug::LookThenWait) {
                drop(g);
                g = self.shared.inner.lock();
            }
            self.shared.pushed.wait_for(&mut g, timeout);
        }
    }

    /// Wakes everybody who waits.
    pub fn wake(&self) {
        drop(self.shared.inner.lock());
        self.shared.pushed.notify_all();
    }

    /// Bytes of all frames so far.
    pub fn total(&self) -> u64 {
        self.shared.inner.lock().line.total
    }

    /// What is taken now.
    pub fn held(&self) -> Held {
        let g = self.shared.inner.lock();
        Held { memory: g.line.held, spooled: g.line.spooled_bytes(), spool_files: g.spool_files }
    }

    /// Bytes of the entries after `cursor`; to a batch of the spool, or about as many if they are not here any more.
    pub fn bytes_after(&self, cursor: Seq) -> u64 {
        let g = self.shared.inner.lock();
        g.line.after(cursor).map_or(0, |(before, _)| g.line.total - before)
    }

    /// When the first entry after `cursor` was issued, to a batch of the spool, or to the second if it is not here any more.
    pub fn time_after(&self, cursor: Seq) -> Option<Time> {
        self.shared.inner.lock().line.after(cursor)?.1
    }

    /// Forgets everything and ends the spool; its files are gone when [`Queue::join`] returns.
    pub fn close(&self) {
        self.shared.inner.lock().closed = true;
        self.change(|l| l.clear());
        self.shared.work.notify_all();
        self.wake();
    }

    /// Waits for the end of the spool after [`Queue::close`].
    pub fn join(&self) {
        if let Some(t) = self.thread.lock().take() {
            let _ = t.join();
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    /// Writes once what is too much for memory, and gives back what is not needed. False when the queue was closed.
    fn turn(&self, patience: Duration) -> bool {
        let Some(spool) = &self.spool else { return false };
        let (items, needed, closed) = {
            let mut g = self.inner.lock();
            let mut items = g.line.next_for_spool();
            if items.is_empty() && !g.closed && Some(g.line.oldest_spooled()) == g.kept_from {
                self.work.wait_for(&mut g, patience);
                items = g.line.next_for_spool();
            }
            (items, g.line.oldest_spooled(), g.closed)
        };
        if let Err(e) = spool.retire(needed.filter(|_| !closed)) {
            log::warn!("{}: giving back the room of the spool: {e}", spool.dir().display());
        }
        if closed {
            return false;
        }
        if planted(Bug::SpoolTooEarly) {
            let _ = self.inner.lock().line.was_spooled(&items);
        }
        let written = spool.append(&items);
        let files = spool.bytes();
        let mut g = self.inner.lock();
        (g.spool_files, g.kept_from) = (files, items.is_empty().then_some(needed));
        let dropped = match written {
            Ok(()) => g.line.was_spooled(&items),
            Err(e) => {
                log::warn!("{}: the spool takes no more: {e}", spool.dir().display());
                g.line.give_up_last(&e.to_string())
            }
        };
        drop(g);
        drop(dropped);
        true
    }
}

#[cfg(all(test, feature = "schedules"))]
mod schedules;
#[cfg(test)]
mod tests;
