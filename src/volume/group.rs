//! A group at its primary: every mutation gets its place here, goes to the peers, and is answered when it may be.
//!
//! ```text
//! begin/commit, namespace ─▶ order lock: journal, local tree, sequence, queue ─▶ wait for the sync pairs ─▶ answer
//!                                                                 └▶ queue ─▶ a sender for each pair
//! ```

use super::fence;
use super::order::{Mark, Named, Order, PutBack};
use super::permit::Permit;
use super::queue::{Queue, Tally};
use super::spool::SpoolAt;
use crate::base::planted::{Bug, planted};
use crate::base::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::base::sync::thread::{self, ThreadId};
use crate::base::sync::{Condvar, Mutex};
use crate::base::{Epoch, Error, Kind, Result, Seq, VolId, random_u64, time, time::Time};
use crate::format::op::{Entry, Op, Target};
use crate::store::doubt::DoubtFile;
use crate::store::exec::{Acted, Pre, Side};
use crate::store::head::ConfigDef;
use crate::store::region::Region;
use crate::store::replica::{self, Meta, Replica};
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

mod refuse;

pub use refuse::Refused;

/// What to do with writes that the sync site cannot take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fence {
    /// Refuse them.
    Data,
    /// Go on and journal.
    Never,
}

/// Positions of one outgoing pair.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// Entries after this one are answered only once the peer has them; `None`: not waited for.
    pub enforced: Option<Seq>,
    /// It fences nothing though it is not in PAIR: by order of the operator (MS-6).
    pub waived: bool,
    /// With the fence: entries up to here were handed to the link.
    pub sent: Seq,
    /// The peer has everything up to here.
    pub received: Seq,
    /// Durably.
    pub durable: Seq,
    /// In its tree.
    pub applied: Seq,
    /// Durable in its tree: what a power cut there can undo lies after it.
    pub checkpoint: Seq,
    /// Its tree has everything that was issued by this time; `None`: it has not said so yet.
    pub confirmed: Option<Time>,
    /// For the lag only, while nothing is acknowledged in this session: what it has as far as is known.
    pub shown: Seq,
    /// There is no pair (SMPL): nothing is kept for it.
    pub simplex: bool,
}

impl Progress {
    /// What the peer has in its tree, as far as is known.
    pub fn in_tree(&self) -> Seq {
        self.shown.max(self.applied.min(self.received))
    }
}

/// What an outgoing pair is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PairKind {
    /// To a remote site, waited for in PAIR.
    Sync,
    /// To a remote site, not waited for.
    Async,
    /// To another leg of the mirror group, waited for like a sync pair, but without its fence.
    Leg,
}

impl PairKind {
    fn waited_for(self) -> bool {
        self != PairKind::Async
    }
}

struct Gate {
    pairs: Vec<(PairKind, Progress)>,
    fence: fence::Fence<ThreadId>,
    /// What a sync site that was lost was known to have.
    hold: Option<Seq>,
    /// Until then what is fenced waits for the sync site instead of being refused.
    patience: Option<Instant>,
}

/// Changes of content that have begun and have no place in the order yet.
#[derive(Default)]
struct InFlight {
    /// The position at which each began, and its number.
    begun: HashMap<ThreadId, (Seq, u64)>,
    /// Numbers given out.
    count: u64,
}

/// What the page cache wrote and was answered for may be so many entries ahead of the sync site, count. They are small:
/// [`super::data::DEFERRED_BYTES_MAX`].
const DEFERRED_MAX: u64 = 32;

/// A group whose replica here is the primary one.
pub struct Group {
    /// Group name.
    pub name: String,
    /// The replica that the volume's files live in.
    pub replica: Arc<Replica>,
    /// Entries for the peers.
    pub queue: Queue,
    /// Write protection.
    pub fence: Fence,
    /// When it began to lead.
    pub since: Time,
    write_through: bool,
    /// What the fence refuses is undone, so everything comes with what undoes it.
    undoes: bool,
    /// There are further legs: who goes on when the one in use fails must have been asked.
    legs: AtomicBool,
    doubts: Arc<DoubtFile>,
    gate: Mutex<Gate>,
    gate_changed: Condvar,
    stopped: AtomicBool,
    frozen: AtomicBool,
    in_flight: Mutex<InFlight>,
    /// Everything up to here is durable at every configured peer.
    trim: AtomicU64,
    fault: Mutex<Option<String>>,
    permit: OnceLock<Arc<Permit>>,
}

impl Group {
    /// Over a replica that became primary. `pairs` tells for each outgoing pair, in order, what it is for; `doubts` keeps
    /// what the fence leaves in doubt.
    pub fn new(
        replica: Arc<Replica>,
        (fence, doubts): (Fence, Arc<DoubtFile>),
        write_through: bool,
        pairs: &[PairKind],
        queue_bytes: u64,
        spool_bytes: u64,
    ) -> Result<Group> {
        let head = replica.order().live.last_seq();
        let spool = SpoolAt { dir: replica.spool_dir(), limit: spool_bytes };
        Ok(Group {
            name: replica.group.clone(),
            queue: Queue::new(head, pairs.len(), queue_bytes, spool)?,
            replica,
            fence,
            since: time::now(),
            write_through: write_through || fence == Fence::Data,
            undoes: fence == Fence::Data && pairs.contains(&PairKind::Sync),
            legs: AtomicBool::new(pairs.contains(&PairKind::Leg)),
            doubts,
            gate: Mutex::new(Gate {
                pairs: pairs.iter().map(|s| (*s, Progress::default())).collect(),
                fence: fence::Fence::default(),
                hold: None,
                patience: None,
            }),
            gate_changed: Condvar::new(),
            stopped: AtomicBool::new(false),
            frozen: AtomicBool::new(false),
            in_flight: Mutex::new(InFlight::default()),
            trim: AtomicU64::new(0),
            fault: Mutex::new(None),
            permit: OnceLock::new(),
        })
    }

    /// From now on nothing is answered without this permission (G3).
    pub fn governed(&self, by: Arc<Permit>) {
        let _ = self.permit.set(by);
    }

    /// The permission may have changed.
    pub fn nudge(&self) {
        drop(self.gate.lock());
        self.gate_changed.notify_all();
    }

    /// Calls `f` with whether every sync peer has everything that was answered, and whatever is answered from now on without
    /// the permission to answer alone. Nothing is answered meanwhile.
    pub fn secured<T>(&self, f: impl FnOnce(bool) -> T) -> T {
        let g = self.gate.lock();
        let mut sync = g.pairs.iter().filter(|(k, _)| *k == PairKind::Sync);
        f(sync.all(|(_, p)| p.enforced.is_some_and(|e| p.received >= e)))
    }

    /// The last position given out.
    pub fn head(&self) -> Seq {
        self.replica.order().live.last_seq()
    }

    /// No further mutation is accepted (the group moves, or a newer primary exists, G3).
    pub fn stop(&self) {
        let m = self.replica.order();
        self.stopped.store(true, Ordering::SeqCst);
        drop(m);
        drop(self.gate.lock());
        self.gate_changed.notify_all();
        self.queue.close();
    }

    /// No further mutation is accepted for now, but what was accepted still goes out. Returns the last position.
    pub fn freeze(&self) -> Seq {
        let m = self.replica.order();
        self.frozen.store(true, Ordering::SeqCst);
        m.live.last_seq()
    }

    /// Ends [`Group::freeze`].
    pub fn thaw(&self) {
        self.frozen.store(false, Ordering::SeqCst);
    }

    /// Adds an outgoing pair; returns its index.
    pub fn add_pair(&self, kind: PairKind) -> usize {
        self.legs.fetch_or(kind == PairKind::Leg, Ordering::SeqCst);
        let mut g = self.gate.lock();
        g.pairs.push((kind, Progress::default()));
        self.queue.add_reader();
        g.pairs.len() - 1
    }

    /// Waits until every pair that answers wait for has everything up to `seq`, or the time is up.
    pub fn wait_all(&self, seq: Seq, timeout: Duration) -> bool {
        let until = Instant::now() + timeout;
        let mut g = self.gate.lock();
        while g.pairs.iter().any(|(k, p)| k.waited_for() && p.enforced.is_some() && p.received < seq) {
            if Instant::now() > until {
                return false;
            }
            self.gate_changed.wait_for(&mut g, Duration::from_millis(20));
        }
        true
    }

    /// True after [`Group::stop`].
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// The positions of a pair.
    pub fn progress(&self, pair: usize) -> Progress {
        self.gate.lock().pairs.get(pair).map(|p| p.1).unwrap_or_default()
    }

    /// Changes the positions of a pair and wakes who waits for them.
    pub fn update(&self, pair: usize, change: impl FnOnce(&mut Progress)) {
        if planted(Bug::WakeTooEarly) {
            self.gate_changed.notify_all();
        }
        if let Some(p) = self.gate.lock().pairs.get_mut(pair) {
            change(&mut p.1);
        }
        if !planted(Bug::WakeTooEarly) {
            self.gate_changed.notify_all();
        }
    }

    /// A peer acknowledged: received, durable, applied, checkpoint, and up to which time its tree has everything.
    pub fn acknowledged(&self, pair: usize, positions: [Seq; 4], confirmed: Option<Time>) {
        let [received, durable, applied, checkpoint] = positions;
        self.update(pair, |p| {
            p.received = p.received.max(received);
            p.durable = p.durable.max(durable);
            p.applied = applied;
            p.checkpoint = checkpoint;
            p.confirmed = confirmed.or(p.confirmed);
        });
        self.queue.have(pair, received);
    }

    /// From now on entries are answered only when this pair's peer has them. Returns the position it begins after.
    pub fn enforce(&self, pair: usize) -> Seq {
        let m = self.replica.order();
        let head = m.live.last_seq();
        self.update(pair, |p| (p.enforced, p.waived) = (Some(head), false));
        head
    }

    /// Nothing that was refused is still to be undone.
    pub fn may_enforce(&self) -> bool {
        !self.gate.lock().fence.is_busy()
    }

    /// It fences nothing any more though it is not in PAIR: by order of the operator (MS-6).
    pub fn waive(&self, pair: usize) {
        self.gate.lock().hold = None;
        self.update(pair, |p| p.waived = true);
    }

    /// Up to where an asynchronous pair may send: not past what the sync pairs have that answers wait for, or had when the
    /// fence closed (MS-4, MS-6).
    pub fn async_limit(&self) -> Seq {
        self.gate.lock().async_limit()
    }

    /// Waits until [`Group::async_limit`] may have risen above `cursor`, or the time is up.
    pub fn wait_async_limit(&self, cursor: Seq, timeout: Duration) {
        let mut g = self.gate.lock();
        if g.async_limit() <= cursor {
            self.gate_changed.wait_for(&mut g, timeout);
        }
    }

    /// Drops what every peer has durably, interval by interval from the journal (MS-18).
    pub fn trim(&self) -> Seq {
        let durable = {
            let g = self.gate.lock();
            let kept_for = g.pairs.iter().filter(|p| !p.1.simplex);
            kept_for
                .map(|p| if planted(Bug::TrimTooEarly) { p.1.received } else { p.1.durable.min(p.1.checkpoint) })
                .min()
                .unwrap_or(Seq(u64::MAX))
        };
        if self.undoes {
            self.gate.lock().fence.forget_gaps(durable);
        }
        let mut m = self.replica.order();
        let settled = m.live.settled();
        // What a power cut here can undo is in the journals of the peers until it cannot.
        let durable = if planted(Bug::TrimTooEarly) { durable } else { durable.min(Replica::checkpointed(&m)) };
        let under_way = !planted(Bug::TrimUnderWay) && !self.in_flight.lock().begun.is_empty();
        let mut upto = durable.min(if under_way { replica::before(settled) } else { settled });
        // What reached the tree before a crash and has no place in the order is known from its mark alone: that stays
        // until every peer is past the crash.
        for (low, head) in &m.state.crashes {
            if durable <= *head {
                upto = upto.min(replica::before(*low));
            }
        }
        for c in &m.state.cuts {
            if durable <= c.head {
                upto = upto.min(replica::before(c.low));
            }
        }
        if let Err(e) = self.replica.trim(&mut m, upto) {
            log::warn!("group {}: {e}", self.name);
        }
        self.trim.store(upto.0, Ordering::Relaxed);
        upto
    }

    /// Whether a write would be accepted now; the error says why not.
    pub fn accepts(&self) -> Result<()> {
        match self.fault() {
            Some(why) => Err(Error::failed(why)),
            None => self.admit(),
        }
    }

    /// What was looked at is the tree that would be changed, not that of a leg that was left meanwhile.
    fn on_leg(&self, vol: VolId, on: &Region) -> Result<()> {
        match std::ptr::eq(&**self.replica.region(vol)?, on) {
            true => Ok(()),
            false => Err(Error::os(libc::EIO).context("the leg in use was changed")),
        }
    }

    fn admit(&self) -> Result<()> {
        self.moves()?;
        if self.is_fenced() { Err(self.refusal()) } else { self.admitted() }
    }

    /// Whether the group leads here and stays where it is.
    fn moves(&self) -> Result<()> {
        if self.is_stopped() {
            return Err(Error {
                kind: Kind::Refused,
                errno: libc::EROFS,
                msg: format!("group {} is not primary here any more", self.name),
            });
        }
        if self.frozen.load(Ordering::SeqCst) {
            return Err(Error::os(libc::EIO).context("the leg in use is being changed"));
        }
        Ok(())
    }

    fn send(&self, m: &mut Meta, seq: Seq, vol: VolId, op: Op, data: &[u8]) -> Result<Op> {
        // The position is that of an operation which is done and not recorded: no peer may have another one there.
        self.replica.whole(m)?;
        let entry = Entry { seq, vol, time: time::now(), op };
        let tally = Tally::of(&entry.op, data);
        let frame = entry.frame(data)?;
        // First, so that after kill -9 no peer has an entry that this replica does not know to have given out.
        m.live.set_last_seq(seq);
        let begun = self.in_flight.lock().begun.values().map(|(s, _)| *s).min();
        m.live.set_settled(begun.unwrap_or(seq));
        self.queue.push(seq, entry.time, frame, tally);
        // The entry is on its way: that the interval cannot be closed now (a full disk) does not make it fail.
        if m.journal.wants_rotation()
            && let Err(e) = self.rotate(m)
        {
            log::warn!("group {}: the journal's interval goes on: {e}", self.name);
        }
        Ok(entry.op)
    }

    fn names(
        &self,
        m: &mut Meta,
        vol: VolId,
        op: &mut Op,
        side: Side,
        done: &mut dyn FnMut(&Op, &Pre, &Acted),
    ) -> Result<Named> {
        let times = if self.undoes { Some(Named::times(self.replica.region(vol)?, op)?) } else { None };
        let (seq, mut back) = (m.live.last_seq().next(), None);
        let acted = self.replica.names(m, (seq, vol, 0), op, side, &mut |op, pre, acted| {
            back = times.and_then(|t| Named::back(op, pre, acted, t));
            done(op, pre, acted);
        });
        if let Err(e) = self.replica.whole(m) {
            // Until the node is started anew, `status` says so.
            *self.fault.lock() = Some(e.to_string());
        }
        let acted = acted?;
        let op = self.send(m, seq, vol, op.clone(), b"")?;
        self.did(seq, vol, &op, 0);
        Ok(Named { op, acted, seq, back })
    }

    /// Closes the journal's interval, so that what follows is told apart from what was before.
    pub fn rotate(&self, m: &mut Meta) -> Result<()> {
        let last = m.live.last_seq();
        let forgot = m.journal.rotate(last)?;
        self.say_forgotten(m, forgot);
        Ok(())
    }

    /// The peer of a pair is lost: what it does not have is told apart in the journal from what it has (G4).
    pub fn split_journal(&self, pair: usize) -> Result<()> {
        let mut m = self.replica.order();
        let (has, last) = (self.progress(pair).received, m.live.last_seq());
        let forgot = m.journal.split(has, last)?;
        self.say_forgotten(&m, forgot);
        Ok(())
    }

    fn say_forgotten(&self, m: &Meta, forgot: bool) {
        if forgot {
            log::warn!(
                "group {}: the journal reached its limit; peers older than {} will need a full comparison",
                self.name,
                m.journal.begins_after().0
            );
        }
    }

    fn settle(&self, m: &Meta, begun: Option<Seq>) {
        let mut f = self.in_flight.lock();
        let me = thread::current().id();
        match begun {
            Some(s) => {
                f.count += 1;
                let number = f.count;
                f.begun.insert(me, (s, number));
            }
            None => {
                f.begun.remove(&me);
            }
        }
        let low = f.begun.values().map(|(s, _)| *s).min().unwrap_or(m.live.last_seq());
        m.live.set_settled(low);
    }

    /// Waits until every change that has begun by now has its place in the order, and returns a position that is not
    /// before any of them: whatever was read from the tree before this call is of entries up to there (G2).
    pub fn quiesce(&self, timeout: Duration) -> Result<Seq> {
        let until = Instant::now() + timeout;
        let before = self.in_flight.lock().count;
        while self.in_flight.lock().begun.values().any(|(_, number)| *number <= before) {
            if Instant::now() > until || self.is_stopped() {
                return Err(Error::new(Kind::Timeout, "a write to the local tree does not end"));
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(self.head())
    }

    /// Adds an entry that changes no file (epoch start, heartbeat).
    pub fn announce(&self, op: Op) -> Result<Seq> {
        let mut m = self.replica.order();
        let seq = m.live.last_seq().next();
        self.send(&mut m, seq, VolId(0), op, b"")?;
        Ok(seq)
    }

    /// Begins a new epoch while in use: the operator's word, after a split brain, that this history wins over the one that
    /// ends with `rival` (G6). Durable before its first entry.
    pub fn overrule(&self, site: &str, rival: &Epoch) -> Result<Epoch> {
        let mut m = self.replica.order();
        let at = m.live.last_seq();
        let mut chain = self.replica.chain(&m);
        let epoch = chain.begin_over(site, random_u64(), at, rival)?;
        self.replica.save_state(&mut m, |s| s.chain = chain.epochs().to_vec())?;
        self.send(&mut m, at.next(), VolId(0), Op::EpochStart { epoch: epoch.clone() }, b"")?;
        Ok(epoch)
    }

    /// Writes the config definition of a volume, here and in the copy (CD-4). The same once more does nothing.
    pub fn define(&self, vol: VolId, def: &ConfigDef) -> Result<()> {
        let region = self.replica.region(vol)?.clone();
        let mut m = self.replica.order();
        if region.head()?.as_ref() != Some(def) {
            let body = def.body()?;
            region.put_head(&body)?;
            let seq = m.live.last_seq().next();
            self.send(&mut m, seq, vol, Op::ConfigDef { body }, b"")?;
        }
        Ok(())
    }

    /// Waits until a condition on a pair's positions holds.
    pub fn wait_pair(&self, pair: usize, timeout: Duration, ok: impl Fn(&Progress) -> bool) -> bool {
        let until = Instant::now() + timeout;
        let mut g = self.gate.lock();
        loop {
            if g.pairs.get(pair).is_some_and(|p| ok(&p.1)) {
                return true;
            }
            if Instant::now() > until {
                return false;
            }
            self.gate_changed.wait_for(&mut g, Duration::from_millis(100));
        }
    }

    /// Why the local tree cannot be trusted any more, if so.
    pub fn fault(&self) -> Option<String> {
        self.fault.lock().clone()
    }
}

impl Order for Group {
    fn region(&self, vol: VolId) -> Arc<Region> {
        // The volume index comes from our own configuration; the lead region stands in for an impossible one.
        self.replica.region(vol).unwrap_or(&self.replica.regions[0]).clone()
    }

    fn generation(&self) -> u64 {
        0
    }

    fn namespace(
        &self,
        (vol, on): (VolId, &Region),
        mut op: Op,
        side: Side,
        done: &mut dyn FnMut(&Op, &Pre, &Acted),
    ) -> Result<Named> {
        self.on_leg(vol, on)?;
        self.patient();
        let mut m = self.replica.order();
        self.enter()?;
        let r = self.names(&mut m, vol, &mut op, side, done);
        if r.is_err() {
            self.forget_call();
        }
        r
    }

    fn begin(&self, (vol, on): (VolId, &Region), locate: &dyn Fn() -> Option<Target>, mark: Mark) -> Result<bool> {
        self.on_leg(vol, on)?;
        self.patient();
        let mut m = self.replica.order();
        self.replica.whole(&m)?;
        self.enter()?;
        let Some(t) = locate() else { return Ok(false) };
        let seq = m.live.last_seq();
        self.settle(&m, Some(seq));
        if let Err(e) = self.replica.mark(&mut m, seq.next(), vol, &t, mark) {
            self.settle(&m, None);
            return Err(e);
        }
        Ok(true)
    }

    fn commit(
        &self,
        vol: VolId,
        locate: &dyn Fn() -> Option<Target>,
        mark: Mark,
        make: &dyn Fn(Target) -> Op,
        data: &[u8],
    ) -> Result<Option<Seq>> {
        let mut m = self.replica.order();
        let Some(t) = locate() else {
            self.settle(&m, None);
            return Ok(None);
        };
        let seq = m.live.last_seq().next();
        // The tree is changed already: the peers must get it, whatever becomes of its mark (it has one from `begin`).
        if let Err(e) = self.replica.mark(&mut m, seq, vol, &t, mark) {
            log::error!("group {}: marking entry {}: {e}", self.name, seq.0);
        }
        let sent = self.send(&mut m, seq, vol, make(t), data);
        // What no peer gets is still under way for whoever looks after the restart.
        self.replica.whole(&m)?;
        self.settle(&m, None);
        self.did(seq, vol, &sent?, data.len());
        Ok(Some(seq))
    }

    fn cancel(&self) {
        let m = self.replica.order();
        self.settle(&m, None);
    }

    fn wait(&self, seq: Seq) -> Result<()> {
        if planted(Bug::AnswerBeforeSync) {
            return Ok(());
        }
        self.wait_for(seq, |p| p.received, None)
    }

    fn defers(&self) -> bool {
        !self.undoes && !self.legs.load(Ordering::SeqCst)
    }

    fn pace(&self, seq: Seq) -> Result<()> {
        self.wait_for(Seq(seq.0.saturating_sub(DEFERRED_MAX)), |p| p.received, None)
    }

    fn undoes(&self) -> bool {
        self.undoes
    }

    fn answer(&self, seq: Seq, undo: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        if planted(Bug::AnswerBeforeSync) {
            return Ok(());
        }
        self.wait_for(seq, |p| p.received, Some(undo))
    }

    fn leave(&self) {
        self.forget_call();
    }

    fn take_back(&self, vol: VolId, mut op: Op, done: &mut dyn FnMut(&Op, &Pre, &Acted)) -> Result<()> {
        let mut m = self.replica.order();
        self.moves()?;
        let seq = m.live.last_seq().next();
        self.replica.names(&mut m, (seq, vol, 0), &mut op, Side::Receiver, done)?;
        self.send(&mut m, seq, vol, op, b"").map(drop)
    }

    fn put_back(
        &self,
        vol: VolId,
        locate: &dyn Fn() -> Option<Target>,
        marks: &[Mark],
        act: PutBack<'_>,
    ) -> Result<()> {
        let mut m = self.replica.order();
        self.moves()?;
        let at = locate();
        if let Some(t) = &at {
            let seq = m.live.last_seq().next();
            marks.iter().try_for_each(|mark| self.replica.mark(&mut m, seq, vol, t, *mark))?;
        }
        let (told, r) = act(at.as_ref());
        for (op, data) in told {
            let seq = m.live.last_seq().next();
            self.send(&mut m, seq, vol, op, &data)?;
        }
        r
    }

    fn barrier(&self, local: &mut dyn FnMut()) -> Result<()> {
        let announced = self.announce(Op::Fsync);
        local();
        let seq = announced?;
        self.replica.sync_meta()?;
        self.wait_for(seq, |p| if planted(Bug::FsyncHereOnly) { p.received } else { p.durable }, None)
    }

    fn write_through(&self) -> bool {
        self.write_through
    }

    fn local_fault(&self, vol: VolId, error: &Error) {
        log::error!("group {}: volume {}: {error}", self.name, vol.0);
        *self.fault.lock() = Some(format!("{error}; restart this node when its disk is well"));
    }
}
