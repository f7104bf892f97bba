//! The receiving side of a replica: frames are accepted into the entry log (that is what an acknowledgement promises),
//! then applied to the tree one by one, in order. A staged resync is applied only once its commit record is in the log.
//!
//! ```text
//! link ─▶ accept ─▶ entry log ─▶ (up to the last commit) ─▶ apply ─▶ tree, id table, journal, live page
//! ```

use super::exec::Side;
use super::replica::{Mark, Replica};
use crate::base::{At, Epoch, Error, Kind, Result, Seq, limits};
use crate::format::codec;
use crate::format::frame::{self, FrameKind, Header};
use crate::format::msg::CopyState;
use crate::format::op::{Entry, Op, Target, TxnBegin, TxnCommit};
use crate::os::sys;
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A staged resync in the log: where it begins, the position it starts from in the journal, the position after.
#[derive(Clone, Copy, Debug)]
struct Txn {
    lsn: u64,
    id: u64,
    common: Seq,
    /// Known with the commit record.
    to: Option<Seq>,
    /// Last entry received inside it.
    cursor: Seq,
}

struct Inner {
    received: Seq,
    durable: Seq,
    txns: VecDeque<Txn>,
    fault: Option<Error>,
    /// Applying waits for space.
    full: Option<Error>,
    stopped: bool,
    closed: bool,
    pending: Vec<Epoch>,
    fsync: bool,
    /// The link that may send; earlier ones are refused.
    session: u64,
    /// A resync or first copy was announced and is not committed: what was received before it counts for nothing.
    preparing: bool,
    hold: Option<Hold>,
}

/// Applying stops at a point, for a comparison.
#[derive(Clone, Copy, Debug)]
struct Hold {
    id: u64,
    at: Seq,
    until: Instant,
}

/// What [`Receiver::accept`] took in.
#[derive(Clone, Copy, Debug)]
pub struct Accepted {
    /// Everything up to here is received.
    pub received: Seq,
    /// There was an fsync barrier among it.
    pub fsync: bool,
}

mod apply;

/// A replica that receives.
pub struct Receiver {
    /// The replica.
    pub replica: Arc<Replica>,
    inner: Mutex<Inner>,
    changed: Condvar,
    applying: Mutex<()>,
}

/// Left free beside what a resync needs, for tables and journal, bytes.
const ROOM_KEPT_BYTES: u64 = 1 << 20;
/// Log segments beyond which the tree is synced so that they can go, count.
const SEGMENTS_KEPT: usize = 2;
/// Applying is held for a comparison no longer than this, whatever the primary says.
const HOLD_MAX: Duration = Duration::from_secs(60);
/// Nor while more than this waits to be applied, bytes: far below where the sender would have to be slowed down.
const HOLD_BYTES_MAX: u64 = 2 * limits::LOG_SEGMENT_BYTES;

impl Receiver {
    /// Over an open replica; reads what the log holds beyond the tree, and forgets a staged resync without its commit.
    pub fn new(replica: Arc<Replica>) -> Result<Receiver> {
        finish_step(&replica)?;
        let (applied_lsn, applied_seq, in_txn) = {
            let m = replica.order();
            (m.live.applied_lsn(), m.live.last_seq().max(m.live.applied_seq()), m.live.txn())
        };
        let mut inner = Inner {
            received: applied_seq,
            durable: Seq(0),
            txns: VecDeque::new(),
            fault: None,
            full: None,
            stopped: false,
            closed: false,
            pending: Vec::new(),
            fsync: false,
            session: 0,
            preparing: false,
            hold: None,
        };
        if let Some((from, to)) = in_txn {
            inner.txns.push_back(Txn { lsn: applied_lsn, id: 0, common: from, to: Some(to), cursor: to });
            inner.received = to;
        }
        let (mut at, mut buf) = (applied_lsn, Vec::new());
        while let Some(next) = replica.log.read(at, &mut buf)? {
            let head = frame::check(&buf)?;
            inner.scan(&buf, &head, at)?;
            at = next;
        }
        if let Some(t) = inner.open_txn() {
            log::info!("group {}: a staged resync without its commit is forgotten", replica.group);
            replica.log.truncate(t.lsn)?;
            inner.txns.pop_back();
        }
        let r = Receiver { replica, inner: Mutex::new(inner), changed: Condvar::new(), applying: Mutex::new(()) };
        let pending = std::mem::take(&mut r.inner.lock().pending);
        r.adopt_epochs(&pending)?;
        Ok(r)
    }

    /// A new link is to send; what earlier ones still send is refused. Returns its number.
    pub fn begin_session(&self) -> u64 {
        let mut g = self.inner.lock();
        g.session += 1;
        g.preparing = false;
        g.session
    }

    /// Everything up to here survives kill -9 of this node.
    pub fn received(&self) -> Seq {
        self.inner.lock().received
    }

    /// What may be acknowledged: received, durable. Nothing between the announcement of a resync and its commit, for a
    /// position from before it may lie beyond it and mean other entries.
    pub fn acknowledged(&self) -> (Seq, Seq) {
        let g = self.inner.lock();
        if g.preparing { (Seq(0), Seq(0)) } else { (g.received, g.durable.min(g.received)) }
    }

    /// A resync or first copy was announced: see [`Receiver::acknowledged`].
    pub fn prepare(&self) {
        self.inner.lock().preparing = true;
    }

    /// True while a committed resync waits to be applied or is being applied.
    pub fn has_txn(&self) -> bool {
        self.inner.lock().txns.iter().any(|t| t.to.is_some())
    }

    /// Everything up to here survives a power cut.
    pub fn durable(&self) -> Seq {
        self.inner.lock().durable
    }

    /// Everything up to here is in the tree. Before a resync is rolled forward that is at most the common point: what
    /// this replica has beyond it has the numbers of other entries.
    pub fn applied(&self) -> Seq {
        let g = self.inner.lock();
        let last = self.replica.order().live.last_seq();
        g.txns.front().map_or(last, |t| last.min(t.common))
    }

    /// What stopped the applying, if anything did.
    pub fn fault(&self) -> Option<Error> {
        self.inner.lock().fault.clone()
    }

    /// Accepts a batch of whole, checked frames of a session: into the log, then counted as received. On error nothing of it counts.
    pub fn accept(&self, session: u64, batch: &[u8]) -> Result<Accepted> {
        match self.take_in(session, batch) {
            Err(e) if is_full(&e) && self.full().is_none() => {
                self.relieve();
                self.take_in(session, batch)
            }
            r => r,
        }
    }

    /// Gives back the space of what is applied.
    fn relieve(&self) {
        let lsn = self.replica.order().live.applied_lsn();
        let done = self.replica.sync_meta().and_then(|()| self.replica.regions.iter().try_for_each(|r| r.syncfs()));
        if let Err(e) = done.and_then(|()| self.replica.log.release(lsn)) {
            log::warn!("group {}: making room: {e}", self.replica.group);
        }
    }

    /// Why nothing more is accepted, while applying waits for space.
    pub fn full(&self) -> Option<Error> {
        self.inner.lock().full.clone()
    }

    fn take_in(&self, session: u64, batch: &[u8]) -> Result<Accepted> {
        let mut g = self.inner.lock();
        if session != g.session {
            return Err(Error::link("a newer link has taken over"));
        }
        if let Some(e) = g.fault.as_ref().or(g.full.as_ref()) {
            return Err(e.clone());
        }
        if g.stopped || g.closed {
            return Err(Error::link("the replica is being taken over"));
        }
        let before = (g.received, g.durable, g.preparing, g.txns.clone());
        let base = self.replica.log.end();
        let mut at = 0;
        let mut parse = || -> Result<()> {
            while at < batch.len() {
                let (h, rest) = (batch.get(at..at + frame::HEADER_BYTES), &batch[at..]);
                let h = h.and_then(|h| h.first_chunk()).ok_or_else(|| Error::corrupt("batch: torn frame"))?;
                let head = frame::parse_header(h)?;
                let len = frame::HEADER_BYTES + head.len as usize;
                let f = rest.get(..len).ok_or_else(|| Error::corrupt("batch: torn frame"))?;
                g.scan(f, &head, base + at as u64)?;
                at += len;
            }
            Ok(())
        };
        let r = parse()
            .and_then(|()| self.room_to_roll_forward(&g, &before.3, base + batch.len() as u64))
            .and_then(|()| self.replica.log.append(batch));
        if let Err(e) = r {
            (g.received, g.durable, g.preparing, g.txns) = before;
            g.pending.clear();
            return Err(e);
        }
        let pending = std::mem::take(&mut g.pending);
        let got = Accepted { received: g.received, fsync: std::mem::take(&mut g.fsync) };
        drop(g);
        self.adopt_epochs(&pending)?;
        self.changed.notify_all();
        Ok(got)
    }

    /// What a resync stages is written twice: to the log now and to the tree after its commit. Once committed it must
    /// fit, or the tree would stay between two points until somebody made room (G2, G8); so it is refused before.
    fn room_to_roll_forward(&self, g: &Inner, before: &VecDeque<Txn>, end: u64) -> Result<()> {
        let Some(t) = g.txns.back() else { return Ok(()) };
        let known = before.iter().any(|b| b.lsn == t.lsn && b.to.is_some());
        if known || t.id == 0 {
            return Ok(());
        }
        let need = end.saturating_sub(t.lsn) + end.saturating_sub(self.replica.log.end()) + ROOM_KEPT_BYTES;
        for r in &self.replica.regions {
            let s = sys::statfs(&**r.tree_fd())?;
            let free = s.bavail.saturating_mul(s.frsize);
            if free < need {
                return Err(Error::os(libc::ENOSPC).context(format!(
                    "{}: the resync needs {need} bytes at least, {free} are free",
                    r.path.display()
                )));
            }
        }
        Ok(())
    }

    fn adopt_epochs(&self, epochs: &[Epoch]) -> Result<()> {
        for e in epochs {
            let mut m = self.replica.order();
            let mut chain = self.replica.chain(&m);
            // Read again from the log after a restart.
            if chain.epochs().iter().any(|known| known.same(e)) {
                continue;
            }
            chain.append(e.clone())?;
            self.replica.save_state(&mut m, |s| s.chain = chain.epochs().to_vec())?;
        }
        Ok(())
    }

    /// Makes everything received so far durable.
    pub fn sync(&self) -> Result<Seq> {
        let r = {
            let g = self.inner.lock();
            if g.open_txn().is_some() { None } else { Some(g.received) }
        };
        self.replica.log.sync()?;
        let mut g = self.inner.lock();
        if let Some(r) = r {
            g.durable = g.durable.max(r);
        }
        Ok(g.durable)
    }

    /// True while no newer link has taken over.
    pub fn is_session(&self, session: u64) -> bool {
        self.inner.lock().session == session
    }

    /// Ends a session: forgets a staged resync of it that was not committed (the link broke, or the source gave up).
    pub fn end_session(&self, session: u64) -> Result<()> {
        if self.inner.lock().session == session { self.abandon() } else { Ok(()) }
    }

    /// Forgets a staged resync that was not committed.
    pub fn abandon(&self) -> Result<()> {
        let mut g = self.inner.lock();
        g.preparing = false;
        if let Some(t) = g.open_txn() {
            self.replica.log.truncate(t.lsn)?;
            g.txns.pop_back();
        }
        Ok(())
    }

    /// Waits until everything received is applied. False when the time is up or applying has stopped.
    pub fn drain(&self, timeout: Duration) -> bool {
        let until = Instant::now() + timeout;
        let mut g = self.inner.lock();
        g.hold = None;
        self.changed.notify_all();
        while self.replica.order().live.applied_lsn() < g.limit(self.replica.log.end()) {
            if g.fault.is_some() || g.stopped || Instant::now() > until {
                return false;
            }
            self.changed.wait_for(&mut g, Duration::from_millis(50));
        }
        true
    }

    /// Refuses what comes from links from now on; what was received is still applied.
    pub fn close_door(&self) {
        self.inner.lock().closed = true;
    }

    /// Accepts again.
    pub fn open_door(&self) {
        self.inner.lock().closed = false;
    }

    /// True after [`Receiver::stop`].
    pub fn stopped(&self) -> bool {
        self.inner.lock().stopped
    }

    /// Wakes who waits for news.
    pub fn nudge(&self) {
        self.changed.notify_all();
    }

    /// Waits for news (something accepted or applied), or until the time is up.
    pub fn wait_change(&self, timeout: Duration) {
        let mut g = self.inner.lock();
        self.changed.wait_for(&mut g, timeout);
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
        self.changed.notify_all();
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
        self.changed.notify_all();
        kept
    }

    fn holding(&self, g: &mut Inner) -> bool {
        let Some(h) = g.hold else { return false };
        let (last, lsn) = {
            let m = self.replica.order();
            (m.live.last_seq(), m.live.applied_lsn())
        };
        let over = Instant::now() > h.until || self.replica.log.end().saturating_sub(lsn) > HOLD_BYTES_MAX;
        if last >= h.at && over {
            g.hold = None;
        }
        last >= h.at && !over
    }

    /// Stops accepting and applying, for good (takeover, shutdown).
    pub fn stop(&self) {
        self.inner.lock().stopped = true;
        self.changed.notify_all();
    }

    /// Begins a first copy: the tree is no point of the order from now on; everything in the log is void.
    pub fn begin_copy(&self) -> Result<()> {
        let _quiet = self.applying.lock();
        let mut g = self.inner.lock();
        let mut m = self.replica.order();
        self.replica.save_state(&mut m, |s| {
            s.copy = CopyState::Copying;
            s.suspect = false;
        })?;
        self.replica.set_between(true)?;
        m.live.set_applied(self.replica.log.end(), m.live.applied_seq());
        m.live.set_txn(None);
        m.live.clear_intent();
        for r in &self.replica.regions {
            let n = r.drop_lost_dirs()?;
            if n > 0 {
                log::warn!("group {}: {n} directories were removed or replaced from outside", self.replica.group);
            }
        }
        g.txns.clear();
        g.fault = None;
        g.hold = None;
        Ok(())
    }

    /// Ends a first copy: the tree has the names of `base`, and is a point of the order once entries up to `whole` are
    /// applied.
    pub fn end_copy(&self, base: Seq, whole: Seq, epochs: Vec<Epoch>, group_id: u64) -> Result<()> {
        for r in &self.replica.regions {
            r.forget_files();
            r.syncfs()?;
        }
        self.replica.set_group_id(group_id)?;
        let mut g = self.inner.lock();
        let mut m = self.replica.order();
        m.journal.reset(base)?;
        m.live.set_last_seq(base);
        m.live.set_settled(base);
        m.live.set_applied(self.replica.log.end(), base);
        self.replica.save_state(&mut m, |s| {
            *s = super::replica::State {
                chain: epochs,
                copy: CopyState::Consistent,
                whole,
                suspect: false,
                crashes: Vec::new(),
                was_primary: false,
            }
        })?;
        g.received = base;
        g.preparing = false;
        drop(m);
        drop(g);
        if base >= whole {
            self.replica.set_between(false)?;
        }
        Ok(())
    }

    /// Syncs the trees and drops log segments that are applied, when there are enough of them. Call now and then.
    pub fn checkpoint(&self) -> Result<()> {
        if self.replica.log.segments() <= SEGMENTS_KEPT {
            return Ok(());
        }
        let (lsn, seq) = {
            let m = self.replica.order();
            (m.live.applied_lsn(), m.live.last_seq())
        };
        self.replica.sync_meta()?;
        for r in &self.replica.regions {
            r.syncfs()?;
        }
        self.replica.log.retire(lsn)?;
        let mut g = self.inner.lock();
        g.durable = g.durable.max(seq);
        Ok(())
    }

    /// True when so much waits to be applied that the sender must be slowed down.
    pub fn overloaded(&self) -> bool {
        let applied = self.replica.order().live.applied_lsn();
        self.inner.lock().open_txn().is_none()
            && self.replica.log.end().saturating_sub(applied) > 4 * limits::LOG_SEGMENT_BYTES
    }
}

impl Inner {
    fn open_txn(&self) -> Option<Txn> {
        self.txns.back().copied().filter(|t| t.to.is_none())
    }

    /// Up to where frames may be applied.
    fn limit(&self, end: u64) -> u64 {
        self.open_txn().map_or(end, |t| t.lsn)
    }

    /// Follows the sequence through one frame; refuses gaps and what does not belong where it is.
    fn scan(&mut self, f: &[u8], head: &Header, lsn: u64) -> Result<()> {
        let open = self.open_txn().is_some();
        match head.kind {
            FrameKind::Entry => {
                let e = Entry::parse(f, head)?;
                let rolled = self.txns.front().filter(|t| t.id == 0).is_some_and(|t| e.seq <= t.cursor);
                let cursor = match self.txns.back_mut().filter(|_| open) {
                    Some(t) => &mut t.cursor,
                    None => &mut self.received,
                };
                // Entries of a transaction that was being rolled forward at a restart come with its own numbers.
                if e.seq != cursor.next() && !rolled {
                    return Err(Error::corrupt(format!("entry {} came after {}", e.seq.0, cursor.0)));
                }
                *cursor = (*cursor).max(e.seq);
                self.fsync |= matches!(e.op, Op::Fsync);
                if let (Op::EpochStart { epoch }, false) = (&e.op, open) {
                    self.pending.push(epoch.clone());
                }
            }
            FrameKind::Staged => {
                let e = Entry::parse(f, head)?;
                if e.seq.0 != 0 || (!open && self.txns.front().is_none_or(|t| t.id != 0)) {
                    return Err(Error::corrupt("a staged operation outside of a transaction"));
                }
            }
            FrameKind::TxnBegin => {
                let b: TxnBegin = codec::decode(frame::head_part(f, head))?;
                if open || b.from != self.received || b.id == 0 {
                    return Err(Error::corrupt("transaction begins at the wrong place"));
                }
                self.txns.push_back(Txn { lsn, id: b.id, common: b.common, to: None, cursor: b.base });
            }
            FrameKind::TxnCommit => {
                let c: TxnCommit = codec::decode(frame::head_part(f, head))?;
                let rolled = self.txns.front().is_some_and(|t| t.id == 0);
                match self.txns.back_mut() {
                    Some(t) if open && t.id == c.id && t.cursor == c.to => t.to = Some(c.to),
                    Some(_) if !open && rolled => {}
                    _ => return Err(Error::corrupt("commit record without its transaction")),
                }
                self.received = c.to;
                self.preparing = false;
                // The position may be an earlier one than before; what was durable were other entries.
                self.durable = self.durable.min(c.to);
            }
            FrameKind::Msg => return Err(Error::corrupt("a message among entries")),
        }
        Ok(())
    }
}

/// Finishes the step of the roll forward that kill -9 may have cut in two, and takes down a marker that it left.
fn finish_step(replica: &Replica) -> Result<()> {
    let mut m = replica.order();
    let (at, mut buf) = (m.live.applied_lsn(), Vec::new());
    if let Some(next) = replica.log.read(at, &mut buf)? {
        let head = frame::check(&buf)?;
        match (head.kind, m.live.txn()) {
            // Begun, but the record of its beginning was not yet passed: it is begun again.
            (FrameKind::TxnBegin, Some(_)) => m.live.set_txn(None),
            // Ended, but the commit record was not yet passed.
            (FrameKind::TxnCommit, None) => {
                let c: TxnCommit = codec::decode(frame::head_part(&buf, &head))?;
                m.live.set_applied(next, c.to);
                m.journal.rotate(c.to)?;
            }
            _ => {}
        }
    }
    // A replica that received last and was killed between the two numbers of an applied entry.
    if m.live.txn().is_none() && !m.state.was_primary && m.live.last_seq() < m.live.applied_seq() {
        m.live.set_last_seq(m.live.applied_seq());
    }
    if m.live.txn().is_none() && m.state.copy == CopyState::Consistent && m.live.last_seq() >= m.state.whole {
        drop(m);
        replica.set_between(false)?;
    }
    Ok(())
}

fn is_full(e: &Error) -> bool {
    matches!(e.errno, libc::ENOSPC | libc::EDQUOT) && e.kind == Kind::Failed
}

#[cfg(test)]
#[path = "receive_tests.rs"]
mod tests;
