//! Applying what was accepted, one frame at a time, in order.

use super::*;
use crate::base::planted::{Bug, planted};
use crate::base::sync::thread;
use crate::store::loss::{self, LostArea};
use crate::store::replica::Meta;
use crate::store::{before, power};

/// What was accepted and is not durable waits this long to be applied, for more to come.
const ARMS_WITHIN: Duration = Duration::from_millis(20);
/// Unless there is more than this already, bytes.
const ARMS_BEYOND_BYTES: u64 = 4 << 20;

impl Receiver {
    /// Applies one frame if there is one that may be applied; waits up to `patience` for it. False when stopped.
    pub fn step(&self, buf: &mut Vec<u8>, patience: Duration) -> bool {
        self.pass_beats();
        {
            let mut g = self.inner.lock();
            let ready = |g: &Inner| self.replica.order().live.applied_lsn() < g.limit(self.replica.log.end());
            if !g.stopped && (g.fault.is_some() || !ready(&g)) {
                self.work.wait_for(&mut g, patience);
            }
            if g.stopped {
                return false;
            }
            if g.fault.is_some() || !ready(&g) {
                return true;
            }
            if self.holding(&mut g) {
                self.changed.notify_all();
                self.work.wait_for(&mut g, patience.min(Duration::from_millis(100)));
                return !g.stopped;
            }
            if patience > Duration::ZERO
                && self.linger(&mut g)
                && (g.stopped || g.fault.is_some() || self.holding(&mut g))
            {
                return !g.stopped;
            }
        }
        *self.busy.lock() = Some(Instant::now());
        let applying = self.applying.lock();
        let r = self.apply_next(buf).and_then(|()| self.replayed());
        drop(applying);
        *self.busy.lock() = None;
        match r {
            Ok(()) => {
                if self.inner.lock().full.take().is_some() {
                    log::info!("group {}: applying goes on: there is again what was missing", self.replica.group);
                }
            }
            Err(e) if is_full(&e) || is_scarce(&e) => self.wait_for_space(e),
            Err(e) if is_drive(&e) => self.drive_lost(e),
            Err(e) => self.diverged(e),
        }
        true
    }

    /// How long applying has been at one and the same entry, if it is at one (G9): a disk that answers late or not at all
    /// shows in nothing else but the lag.
    pub fn at_one_entry(&self) -> Option<Duration> {
        self.busy.lock().map(|since| since.elapsed())
    }

    /// What is applied must be durable in the log first. An fsync of the application makes it so, or a little time later
    /// one write to the disk for many entries, unless somebody waits for them to be applied. True when it waited.
    fn linger(&self, g: &mut MutexGuard<'_, Inner>) -> bool {
        let (at, needed) = {
            let m = self.replica.order();
            (m.live.applied_lsn(), m.activity.replay().is_some())
        };
        if !needed || self.replica.names.lock().armed() > at {
            return false;
        }
        let (log, until) = (&self.replica.log, Instant::now() + ARMS_WITHIN);
        let enough = at.saturating_add(ARMS_BEYOND_BYTES.min(self.replica.log_bytes / 8));
        let waits = |g: &Inner| {
            let hurry = g.draining > 0 || g.closed || g.stopped || g.hold.is_some() || !g.txns.is_empty();
            !hurry && g.fault.is_none() && log.durable() <= at && log.end() < enough
        };
        let mut waited = false;
        g.lingers_until = enough;
        while waits(g) {
            waited = true;
            if self.work.wait_until(g, until).timed_out() {
                break;
            }
        }
        g.lingers_until = 0;
        waited
    }

    /// Decided entries wait for room, or for descriptors; nothing is lost, and nothing more is accepted (G8).
    fn wait_for_space(&self, e: Error) {
        if self.inner.lock().full.replace(e.clone()).is_none() {
            log::error!("group {}: applying waits: {}: {e}", self.replica.group, missing(&e));
        }
        self.relieve();
        self.wake();
        thread::sleep(Duration::from_millis(500));
    }

    /// The drive takes no more writes: nothing more is accepted here before it is opened anew.
    pub(super) fn drive_lost(&self, e: Error) {
        log::error!("group {}: applying stopped: {e}", self.replica.group);
        self.stop_because(e.context("the drive failed"));
    }

    /// An accepted entry cannot be applied: the tree is not what it must be. A comparison with the peer repairs it.
    fn diverged(&self, e: Error) {
        if self.replaying() {
            return self.leave_out(e);
        }
        if self.replica.order().state.torn {
            // After a power cut that is to be expected, and what is in the log is part of what a peer compares.
            log::warn!("group {}: the rest of the entry log does not fit the tree: {e}", self.replica.group);
            return self.void();
        }
        log::error!("group {}: applying stopped: {e}", self.replica.group);
        self.stop_because(e.context("the replica differs from what its log expects"));
    }

    /// After a power cut an entry cannot be brought about: it is named, and those after it are applied all the same (G1).
    fn leave_out(&self, e: Error) {
        log::error!("group {}: left out after a power cut: {e}", self.replica.group);
        let r = self.pass_over(&e);
        if let Err(e) = r {
            self.stop_because(e.context("the entry log cannot be applied after a power cut"));
        }
    }

    fn pass_over(&self, why: &Error) -> Result<()> {
        let r = &self.replica;
        let mut buf = Vec::new();
        let mut m = r.order();
        let at = m.live.applied_lsn();
        let Some(next) = r.log.read(at, &mut buf)? else { return Err(why.clone()) };
        let head = frame::check(&buf)?;
        let (FrameKind::Entry | FrameKind::Staged) = head.kind else { return Err(why.clone()) };
        let seq = Entry::parse(&buf, &head)?.seq;
        let (low, dirs) = (m.activity.at(), m.activity.dirs());
        let last = m.live.last_seq().max(seq);
        r.save_state(&mut m, |s| {
            if !s.torn {
                power::tear(s, low, crate::base::time::now().sec, last);
            }
            power::add_dirs(s, dirs);
            if s.unmended.len() < power::UNMENDED_KEPT {
                s.unmended.push(why.to_string());
            }
        })?;
        Self::advance(&m, seq, next);
        m.live.clear_intent();
        drop(m);
        self.replayed()
    }

    /// An entry is passed. Returns the position it was at outside of a resync.
    fn advance(m: &Meta, seq: Seq, next: u64) {
        if m.live.txn().is_some() {
            m.live.set_applied(next, m.live.applied_seq());
        } else {
            m.live.set_applied(next, seq);
            m.live.set_last_seq(seq);
            m.live.set_settled(seq);
        }
    }

    /// When the log is applied again as far as it was at a power cut, the tree is a point of the order.
    pub(super) fn replayed(&self) -> Result<()> {
        let mut m = self.replica.order();
        let (upto, at) = (m.state.replay, m.live.applied_lsn());
        // A resync without its commit was cut off.
        if upto == 0 || at < upto.min(self.replica.log.end()) {
            return Ok(());
        }
        self.replica.save_state(&mut m, |s| s.replay = 0)?;
        log::info!("group {}: the entry log is applied again up to entry {}", self.replica.group, m.live.last_seq().0);
        if Replica::consistent(&m) && m.live.txn().is_none() {
            drop(m);
            self.replica.set_between(false)?;
        }
        Ok(())
    }

    /// Makes what comes next in the log such that it may be applied: see [`crate::store::before`].
    pub(super) fn arm(&self) -> Result<()> {
        let (at, needed) = {
            let m = self.replica.order();
            (m.live.applied_lsn(), m.activity.replay().is_some())
        };
        let r = &self.replica;
        if !needed || r.names.lock().armed() > at {
            return Ok(());
        }
        let limit = self.inner.lock().limit(r.log.end());
        before::arm(&r.names, &r.log, &r.regions, at, limit)
    }

    /// Nothing is accepted or applied any more, and the tree is to be compared when it is opened again.
    fn stop_because(&self, e: Error) {
        {
            let mut m = self.replica.order();
            if let Err(e) = self.replica.save_state(&mut m, |s| s.suspect = true) {
                log::error!("group {}: {e}", self.replica.group);
            }
        }
        let mut g = self.inner.lock();
        g.fault = Some(e);
        drop(g);
        self.wake();
    }

    fn apply_next(&self, buf: &mut Vec<u8>) -> Result<()> {
        self.arm()?;
        let at = self.replica.order().live.applied_lsn();
        let Some(next) = self.replica.log.read(at, buf)? else { return Ok(()) };
        let head = frame::check(buf)?;
        match head.kind {
            FrameKind::Entry | FrameKind::Staged => self.apply_entry(buf, &head, next)?,
            FrameKind::TxnBegin => self.begin_txn(at, next)?,
            FrameKind::TxnCommit => self.commit_txn(codec::decode(frame::head_part(buf, &head))?, next)?,
            FrameKind::Msg => return Err(Error::corrupt("a message in the entry log")),
        }
        if next >= self.replica.log.end() {
            self.changed.notify_all();
        }
        Ok(())
    }

    fn begin_txn(&self, at: u64, next: u64) -> Result<()> {
        let t = self.inner.lock().txns.front().copied().filter(|t| t.lsn == at);
        let Some(Txn { common: from, to: Some(to), .. }) = t else {
            return Err(Error::corrupt("entry log: unknown transaction"));
        };
        self.replica.set_between(true)?;
        // A repair may be about files that were replaced from outside: kept descriptors would miss the new ones.
        self.replica.regions.iter().for_each(|r| r.forget_all());
        let mut m = self.replica.order();
        m.activity.rewind(from)?;
        m.journal.begin_jump(from, to)?;
        m.live.set_txn(Some((from, to)));
        let seq = m.live.applied_seq();
        m.live.set_applied(next, seq);
        Ok(())
    }

    fn commit_txn(&self, c: TxnCommit, next: u64) -> Result<()> {
        let point = {
            let mut m = self.replica.order();
            // The manifest first: while it is not written, this step is done again (G6).
            let common = m.live.txn().map_or(Seq(0), |t| t.0);
            LostArea::of(&self.replica).finish(loss::set_back(c.id, &m, common, c.epochs.last()))?;
            // The source's state has taken the place of whatever a power cut had left.
            if m.state.torn {
                self.replica.regions.iter().try_for_each(|r| r.sweep_aside())?;
            }
            self.replica.save_state(&mut m, |s| {
                s.chain = c.epochs.clone();
                s.copy = CopyState::Consistent;
                s.whole = Seq(0);
                s.suspect = false;
                // What the journal lacks for it stays lacking: `cuts` is kept.
                s.torn = false;
                s.unmended.clear();
                s.cuts.iter_mut().for_each(|c| c.open = false);
                s.was_primary = false;
                s.yields = false;
                // The tree is the source's now: what it had of its own is gone, and recorded as part of this step.
                s.crashes.clear();
            })?;
            // Whatever can fail for want of space comes first: the whole is then done again.
            m.journal.rotate(c.to)?;
            m.live.set_last_seq(c.to);
            m.live.set_settled(c.to);
            // Killed between these two, the commit record is met again without its transaction: see `finish_step`.
            m.live.set_txn(None);
            m.live.set_applied(next, c.to);
            Replica::consistent(&m)
        };
        self.inner.lock().txns.pop_front();
        if point { self.replica.set_between(false) } else { Ok(()) }
    }

    fn apply_entry(&self, buf: &[u8], head: &Header, next: u64) -> Result<()> {
        let e = Entry::parse(buf, head)?;
        let data = frame::data_part(buf, head);
        let r = &self.replica;
        let mut m = r.order();
        if m.activity.replay().is_some() && r.names.lock().armed() < next {
            // A checkpoint has begun meanwhile: what its names were before is noted anew.
            return Ok(());
        }
        let txn = m.live.txn();
        let seq = if e.seq.0 == 0 { txn.map_or(Seq(0), |t| t.1) } else { e.seq };
        let what = std::fmt::from_fn(|f| write!(f, "entry {} ({:?})", seq.0, e.op));
        if e.op.is_namespace() {
            let mut op = e.op.clone();
            r.names(&mut m, (seq, e.vol, next), &mut op, Side::Receiver, &mut |_, _, _| {}).at(&what)?;
        } else if let Op::Keep { event, at, lost } = &e.op {
            LostArea::of(r).keep(e.vol, *event, at.as_ref(), lost).at(&what)?;
        } else if let Op::ConfigDef { .. } = &e.op {
            r.region(e.vol)?.apply_content(&e.op, data).at(&what)?;
        } else if let Some((target, mark)) = mark_of(&e.op, data.len() as u64) {
            r.mark(&mut m, seq, e.vol, &target, mark)?;
            if !planted(Bug::SkipApply) || !seq.0.is_multiple_of(16) {
                r.region(e.vol)?.apply_content(&e.op, data).at(&what)?;
            }
        }
        Self::advance(&m, seq, next);
        if txn.is_none() {
            self.beats.applied(e.time);
        }
        m.live.clear_intent();
        if txn.is_none() {
            // The entry is applied: that the interval cannot be closed now does not make it fail.
            if m.journal.wants_rotation()
                && let Err(e) = m.journal.rotate(seq)
            {
                log::warn!("group {}: the journal's interval goes on: {e}", r.group);
            }
            if m.state.whole == seq && seq.0 != 0 && Replica::consistent(&m) {
                drop(m);
                r.set_between(false)?;
            }
        }
        Ok(())
    }
}

/// What an operation on content marks in the journal.
fn mark_of(op: &Op, data_len: u64) -> Option<(Target, Mark)> {
    let file = |n: &crate::base::Name| Target::File(n.clone());
    Some(match op {
        Op::Write { at, off, .. } => (file(at), Mark::Data { from: *off, to: off + data_len }),
        Op::Truncate { at, size, .. } => (file(at), Mark::Data { from: *size, to: u64::MAX }),
        Op::Fallocate { at, off, len, .. } => (file(at), Mark::Data { from: *off, to: off + len }),
        Op::SetAttr { at, .. } | Op::SetXattr { at, .. } | Op::RemoveXattr { at, .. } => (at.clone(), Mark::Attr),
        _ => return None,
    })
}
