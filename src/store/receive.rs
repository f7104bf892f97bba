//! The receiving side of a replica: frames are accepted into the entry log (that is what an acknowledgement promises),
//! then applied to the tree one by one, in order. A staged resync is applied only once its commit record is in the log.
//!
//! ```text
//! link ─▶ accept ─▶ entry log ─▶ (up to the last commit) ─▶ apply ─▶ tree, id table, journal, live page
//! ```

use super::exec::Side;
use super::live::Drive;
use super::loss::{self, LostArea};
use super::replica::{Mark, Meta, Replica};
use crate::base::planted::{Bug, planted};
use crate::base::sync::{Condvar, Mutex, MutexGuard};
use crate::base::{At, Epoch, Error, Result, Seq, VolId};
use crate::format::codec;
use crate::format::frame::{self, FrameKind, Header};
use crate::format::msg::CopyState;
use crate::format::op::{Entry, Op, Target, TxnBegin, TxnCommit};
use crate::os::sys;
use crate::pair::chain::Chain;
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
    /// Room that the copies it keeps may take, bytes.
    kept: u64,
}

struct Inner {
    received: Seq,
    durable: Seq,
    txns: VecDeque<Txn>,
    fault: Option<Error>,
    /// Applying waits for space or descriptors.
    full: Option<Error>,
    stopped: bool,
    closed: bool,
    pending: Vec<Epoch>,
    /// Config definitions in what is being accepted.
    heads: Vec<(VolId, Vec<u8>)>,
    /// The highest volume in what is being accepted.
    highest: VolId,
    fsync: bool,
    /// The link that may send; earlier ones are refused.
    session: u64,
    /// A resync or first copy was announced and is not committed: what was received before it counts for nothing.
    preparing: bool,
    hold: Option<Hold>,
    taken: Taken,
    /// So many wait until everything is applied.
    draining: usize,
    /// The thread that applies is not woken for less than the log up to here.
    lingers_until: u64,
    /// What was last seen of the tree: see [`Receiver::lately`].
    shown: (Seq, Seq),
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
mod beats;
mod copy;
mod faults;
mod hold;
mod unsynced;

use beats::Beats;
pub use beats::Taken;
pub use faults::{is_drive, is_full, is_scarce, missing};
use hold::Hold;

/// A replica that receives.
pub struct Receiver {
    /// The replica.
    pub replica: Arc<Replica>,
    inner: Mutex<Inner>,
    /// For who waits for news.
    changed: Condvar,
    /// For the thread that applies.
    work: Condvar,
    applying: Mutex<()>,
    busy: Mutex<Option<Instant>>,
    drive: Drive,
    beats: Beats,
}

/// Left free beside what a resync needs, for tables and journal, bytes.
const ROOM_KEPT_BYTES: u64 = 1 << 20;
/// Log segments beyond which the tree is synced so that they can go, count.
const SEGMENTS_KEPT: usize = 2;

impl Receiver {
    /// Over an open replica; reads what the log holds beyond the tree, and forgets a staged resync without its commit.
    pub fn new(replica: Arc<Replica>) -> Result<Receiver> {
        finish_step(&replica)?;
        let (torn, replaying) = {
            let m = replica.order();
            (m.state.torn || m.state.suspect, m.state.replay != 0)
        };
        let area = LostArea::of(&replica);
        area.mend()?;
        // What the log brings about again goes on with its draft.
        if !replaying && replica.order().live.txn().is_none() {
            area.cut_short()?;
        }
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
            heads: Vec::new(),
            highest: VolId(0),
            fsync: false,
            session: 0,
            preparing: false,
            hold: None,
            taken: Taken::default(),
            draining: 0,
            lingers_until: 0,
            shown: (Seq(0), Seq(0)),
        };
        if let Some((from, to)) = in_txn {
            inner.txns.push_back(Txn { lsn: applied_lsn, id: 0, common: from, to: Some(to), cursor: to, kept: 0 });
            inner.received = to;
        }
        let scanned = inner.scan_log(&replica, applied_lsn);
        if torn && !replaying && (scanned.is_err() || !inner.txns.is_empty()) {
            // The log may have lost what the page knows of, and a resync cannot be rolled forward on a torn tree.
            log::warn!("group {}: the entry log counts for nothing: it may be older than the tree", replica.group);
            inner.txns.clear();
            inner.pending.clear();
            inner.received = applied_seq;
            replica.order().live.set_applied(replica.log.end(), applied_seq);
        } else {
            scanned?;
        }
        if planted(Bug::CommitHalfResync)
            && let Some(t) = inner.txns.back_mut().filter(|t| t.to.is_none())
        {
            t.to = Some(t.cursor);
            inner.received = t.cursor;
        }
        if let Some(t) = inner.open_txn() {
            log::info!("group {}: a staged resync without its commit is forgotten", replica.group);
            replica.log.truncate(t.lsn)?;
            inner.txns.pop_back();
        }
        let drive = {
            let m = replica.order();
            let (point, drive) = (m.live.txn().is_none() && Replica::consistent(&m), m.live.drive());
            drop(m);
            // A marker that kill -9 left; it stays where a resync is rolled forward at once (G2).
            if point && inner.txns.is_empty() {
                replica.set_between(false)?;
            }
            drive
        };
        let r = Receiver {
            replica,
            inner: Mutex::new(inner),
            changed: Condvar::new(),
            work: Condvar::new(),
            drive,
            applying: Mutex::new(()),
            busy: Mutex::new(None),
            beats: Beats::default(),
        };
        {
            let mut g = r.inner.lock();
            g.heads.clear();
            g.highest = VolId(0);
        }
        let pending = std::mem::take(&mut r.inner.lock().pending);
        r.adopt_epochs(&pending)?;
        r.replayed()?;
        if r.replica.unsynced() {
            r.inner.lock().fault = Some(Error::failed("the drive failed to write what it had taken"));
        }
        r.replica.begin_receiving().inspect_err(|e| r.sync_failed(e))?;
        Ok(r)
    }

    /// After a power cut: applies what the entry log had then, unless something stops it.
    pub fn replay(&self) {
        let mut buf = Vec::new();
        while self.replaying() && self.fault().is_none() && self.full().is_none() {
            self.step(&mut buf, Duration::ZERO);
        }
    }

    fn replaying(&self) -> bool {
        self.replica.order().state.replay != 0
    }

    /// A new link is to send; what earlier ones still send is refused. Returns its number.
    pub fn begin_session(&self) -> u64 {
        self.look_at_marker();
        let mut g = self.inner.lock();
        g.session += 1;
        g.preparing = false;
        g.shown = (Seq(0), Seq(0));
        self.beats.forget();
        g.session
    }

    /// Everything up to here survives kill -9 of this node.
    pub fn received(&self) -> Seq {
        self.inner.lock().received
    }

    /// What was received of entries, for the lag.
    pub fn taken(&self) -> Taken {
        self.inner.lock().taken
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

    /// Before the resync of a torn tree: what waits in the log, or could not be applied, is part of what is compared.
    pub fn void(&self) {
        let _quiet = self.applying.lock();
        let mut g = self.inner.lock();
        let m = self.replica.order();
        if m.state.torn {
            m.live.set_applied(self.replica.log.end(), m.live.applied_seq());
            g.txns.clear();
            g.fault = None;
        }
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
        let mut g = self.inner.lock();
        let m = self.replica.order();
        g.look(&m).0
    }

    /// For an acknowledgement: up to where entries are in the tree, and up to where a power cut leaves them there; at least,
    /// for who applies one now is not waited for.
    pub fn lately(&self) -> (Seq, Seq) {
        let mut g = self.inner.lock();
        // Before a resync is rolled forward what was seen last may be beyond the common point.
        let now = if g.txns.is_empty() { self.replica.try_order() } else { Some(self.replica.order()) };
        if let Some(m) = now {
            g.look(&m);
        }
        (g.shown.0, if g.preparing { Seq(0) } else { g.shown.1.min(g.received) })
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
        let done = self.sync_tree();
        if let Err(e) = done.and_then(|_| self.replica.log.release(self.replica.log_needed_from())) {
            log::warn!("group {}: making room: {e}", self.replica.group);
        }
    }

    /// Why nothing more is accepted, while applying waits for space or descriptors.
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
            .and_then(|()| self.replica.region(std::mem::take(&mut g.highest)).map(drop))
            .and_then(|()| self.check_epochs(&g.pending))
            .and_then(|()| self.check_heads(&std::mem::take(&mut g.heads)))
            .and_then(|()| self.room_to_roll_forward(&g, &before.3, base + batch.len() as u64))
            .and_then(|()| match planted(Bug::AckBeforeLog) && batch.len().is_multiple_of(5) {
                true => Ok(base),
                false => self.replica.log.append(batch),
            });
        let r = r.and_then(|_| self.drive.kept());
        if let Err(e) = r {
            (g.received, g.durable, g.preparing, g.txns) = before;
            g.pending.clear();
            g.heads.clear();
            g.highest = VolId(0);
            if is_drive(&e) {
                g.fault = Some(e.clone());
            }
            return Err(e);
        }
        let pending = std::mem::take(&mut g.pending);
        let got = Accepted { received: g.received, fsync: std::mem::take(&mut g.fsync) };
        let enough = self.replica.log.end() >= g.lingers_until;
        drop(g);
        self.adopt_epochs(&pending)?;
        if enough {
            self.work.notify_one();
        }
        Ok(got)
    }

    /// Nothing of a batch is stored whose config definition does not fit this site's table (CD-5).
    fn check_heads(&self, heads: &[(VolId, Vec<u8>)]) -> Result<()> {
        heads.iter().try_for_each(|(vol, body)| self.replica.region(*vol)?.check_head(body))
    }

    /// What a resync stages is written twice: to the log now and to the tree after its commit. Once committed it must
    /// fit, or the tree would stay between two points until somebody made room (G2, G8); so it is refused before.
    fn room_to_roll_forward(&self, g: &Inner, before: &VecDeque<Txn>, end: u64) -> Result<()> {
        let Some(t) = g.txns.back() else { return Ok(()) };
        let known = before.iter().any(|b| b.lsn == t.lsn && b.to.is_some());
        if known || t.id == 0 {
            return Ok(());
        }
        let staged = end.saturating_sub(t.lsn) + end.saturating_sub(self.replica.log.end());
        let need = staged.saturating_add(t.kept).saturating_add(ROOM_KEPT_BYTES);
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

    /// An epoch that cannot follow what is here is refused before it is in the log, where every start would meet it again.
    fn check_epochs(&self, epochs: &[Epoch]) -> Result<()> {
        if epochs.is_empty() {
            return Ok(());
        }
        let m = self.replica.order();
        let mut chain = self.replica.chain(&m);
        for e in epochs {
            if m.state.replay == 0 && !chain.epochs().iter().any(|known| known.same(e)) {
                chain.append(e.clone())?;
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
            match chain.append(e.clone()) {
                // A resync later in the log has put it aside already.
                Err(_) if m.state.replay != 0 => continue,
                r => r?,
            }
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
        if !planted(Bug::FsyncHereOnly) {
            // What was taken and not written is not there after a power cut, though the next sync may succeed.
            self.replica.log.sync().inspect_err(|e| {
                if is_drive(e) {
                    self.drive_lost(e.clone());
                }
            })?;
        }
        let mut g = self.inner.lock();
        if let Some(r) = r {
            g.durable = g.durable.max(r);
        }
        self.wake();
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
        self.wake();
    }

    fn wake(&self) {
        self.changed.notify_all();
        self.work.notify_all();
    }

    /// Waits for news (something accepted or applied), or until the time is up.
    pub fn wait_change(&self, timeout: Duration) {
        let mut g = self.inner.lock();
        self.changed.wait_for(&mut g, timeout);
    }

    /// Stops accepting and applying, for good (takeover, shutdown).
    pub fn stop(&self) {
        self.inner.lock().stopped = true;
        self.wake();
    }

    /// Makes the tree durable, and drops log segments that are applied when there are enough of them.
    pub fn checkpoint(&self) -> Result<()> {
        let room = self.wants_room();
        self.sync_tree()?;
        if room {
            self.replica.log.retire(self.replica.log_needed_from())?;
        }
        self.wake();
        Ok(())
    }

    /// True when there are so many log segments that a checkpoint should make room.
    pub fn wants_room(&self) -> bool {
        let lsn = self.replica.order().live.applied_lsn();
        let log = &self.replica.log;
        let many = log.segments() > SEGMENTS_KEPT || log.bytes() > self.replica.log_bytes / 2;
        many && log.can_retire(lsn) || self.replica.names.lock().many()
    }

    /// Up to where the tree survives a power cut.
    pub fn checkpointed(&self) -> Seq {
        let g = self.inner.lock();
        if g.preparing { Seq(0) } else { Replica::checkpointed(&self.replica.order()).min(g.received) }
    }

    /// True when `more` bytes would take the log beyond its limit and something is there that can be waited for: the
    /// sender must be slowed down. What a resync stages cannot be applied before its commit, and has the room of the
    /// filesystem as its limit (see `room_to_roll_forward`).
    pub fn overloaded(&self, more: u64) -> bool {
        let log = &self.replica.log;
        if log.bytes() + more <= self.replica.log_bytes {
            return false;
        }
        let applied = self.replica.order().live.applied_lsn();
        self.inner.lock().open_txn().is_none() && (applied < log.end() || log.can_retire(applied))
    }

    /// True while a session may go on and what it sends can be applied some time.
    pub fn accepts(&self, session: u64) -> bool {
        let g = self.inner.lock();
        g.session == session && !g.stopped && !g.closed && g.fault.is_none() && g.full.is_none()
    }
}

impl Inner {
    fn scan_log(&mut self, replica: &Replica, mut at: u64) -> Result<()> {
        let mut buf = Vec::new();
        while let Some(next) = replica.log.read(at, &mut buf)? {
            let head = frame::check(&buf)?;
            self.scan(&buf, &head, at)?;
            at = next;
        }
        Ok(())
    }

    /// See [`Receiver::lately`].
    fn look(&mut self, m: &Meta) -> (Seq, Seq) {
        let last = m.live.last_seq();
        self.shown = (self.txns.front().map_or(last, |t| last.min(t.common)), Replica::checkpointed(m));
        self.shown
    }

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
                if e.seq != cursor.next() && !rolled && !planted(Bug::AcceptGap) {
                    return Err(Error::corrupt(format!("entry {} came after {}", e.seq.0, cursor.0)));
                }
                *cursor = (*cursor).max(e.seq);
                self.taken.bytes += f.len() as u64;
                self.fsync |= matches!(e.op, Op::Fsync);
                self.highest = self.highest.max(e.vol);
                if let Op::ConfigDef { body } = &e.op {
                    self.heads.push((e.vol, body.clone()));
                }
                if let (Op::EpochStart { epoch }, false) = (&e.op, open) {
                    self.pending.push(epoch.clone());
                }
            }
            FrameKind::Staged => {
                let e = Entry::parse(f, head)?;
                if e.seq.0 != 0 || (!open && self.txns.front().is_none_or(|t| t.id != 0)) {
                    return Err(Error::corrupt("a staged operation outside of a transaction"));
                }
                self.highest = self.highest.max(e.vol);
                if let Op::ConfigDef { body } = &e.op {
                    self.heads.push((e.vol, body.clone()));
                }
                if let (Op::Keep { at: Some(_), lost, .. }, Some(t)) = (&e.op, self.txns.back_mut().filter(|_| open)) {
                    t.kept = t.kept.saturating_add(lost.size);
                }
            }
            FrameKind::TxnBegin => {
                let b = TxnBegin::parse(f, head)?;
                if open || b.from != self.received {
                    return Err(Error::corrupt("transaction begins at the wrong place"));
                }
                self.txns.push_back(Txn { lsn, id: b.id, common: b.common, to: None, cursor: b.base, kept: 0 });
            }
            FrameKind::TxnCommit => {
                let c = TxnCommit::parse(f, head)?;
                Chain::from_epochs(c.epochs).validate(c.to)?;
                let rolled = self.txns.front().is_some_and(|t| t.id == 0);
                match self.txns.back_mut() {
                    Some(t) if open && t.id == c.id && t.cursor == c.to => t.to = Some(c.to),
                    Some(_) if !open && rolled => {}
                    _ => return Err(Error::corrupt("commit record without its transaction")),
                }
                self.received = c.to;
                self.preparing = false;
                self.shown = (Seq(0), Seq(0));
                // The position may be an earlier one than before; what was durable were other entries.
                self.durable = self.durable.min(c.to);
            }
            FrameKind::Msg => return Err(Error::corrupt("a message among entries")),
        }
        Ok(())
    }
}

/// Finishes the step of the roll forward that kill -9 may have cut in two.
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
    Ok(())
}

#[cfg(test)]
#[path = "receive_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "replay_tests.rs"]
mod replay_tests;
