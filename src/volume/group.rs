//! A group at its primary: every mutation gets its place here, goes to the peers, and is answered when it may be.
//!
//! ```text
//! begin/commit, namespace ─▶ order lock: journal, local tree, sequence, queue ─▶ wait for the sync pairs ─▶ answer
//!                                                                 └▶ queue ─▶ a sender for each pair
//! ```

use super::order::{Mark, Named, Order};
use super::queue::{Queue, Tally};
use crate::base::{Error, Kind, Result, Seq, VolId, time};
use crate::format::op::{Entry, Op, Target};
use crate::store::exec::{Acted, Pre, Side};
use crate::store::head::ConfigDef;
use crate::store::region::Region;
use crate::store::replica::{self, Meta, Replica};
use parking_lot::{Condvar, Mutex};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

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
    /// The peer has everything up to here.
    pub received: Seq,
    /// Durably.
    pub durable: Seq,
    /// In its tree.
    pub applied: Seq,
    /// Queue total at `received`.
    pub bytes: u64,
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
}

/// Changes of content that have begun and have no place in the order yet.
#[derive(Default)]
struct InFlight {
    /// The position at which each began, and its number.
    begun: HashMap<ThreadId, (Seq, u64)>,
    /// Numbers given out.
    count: u64,
}

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
    write_through: bool,
    gate: Mutex<Gate>,
    gate_changed: Condvar,
    stopped: AtomicBool,
    frozen: AtomicBool,
    in_flight: Mutex<InFlight>,
    /// Everything up to here is durable at every configured peer.
    trim: AtomicU64,
    fault: Mutex<Option<String>>,
}

impl Group {
    /// Over a replica that became primary. `pairs` tells for each outgoing pair, in order, what it is for.
    pub fn new(
        replica: Arc<Replica>,
        fence: Fence,
        write_through: bool,
        pairs: &[PairKind],
        queue_bytes: u64,
    ) -> Group {
        let head = replica.order().live.last_seq();
        Group {
            name: replica.group.clone(),
            queue: Queue::new(head, queue_bytes),
            replica,
            fence,
            write_through: write_through || fence == Fence::Data,
            gate: Mutex::new(Gate { pairs: pairs.iter().map(|s| (*s, Progress::default())).collect() }),
            gate_changed: Condvar::new(),
            stopped: AtomicBool::new(false),
            frozen: AtomicBool::new(false),
            in_flight: Mutex::new(InFlight::default()),
            trim: AtomicU64::new(0),
            fault: Mutex::new(None),
        }
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
        self.queue.wake();
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
        let mut g = self.gate.lock();
        g.pairs.push((kind, Progress::default()));
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
        if let Some(p) = self.gate.lock().pairs.get_mut(pair) {
            change(&mut p.1);
        }
        self.gate_changed.notify_all();
    }

    /// From now on entries are answered only when this pair's peer has them. Returns the position it begins after.
    pub fn enforce(&self, pair: usize) -> Seq {
        let m = self.replica.order();
        let head = m.live.last_seq();
        self.update(pair, |p| p.enforced = Some(head));
        head
    }

    /// Up to where an asynchronous pair may send: not past what the enforced sync pairs have (MS-4).
    pub fn async_limit(&self) -> Seq {
        let g = self.gate.lock();
        let sync = g.pairs.iter().filter(|(k, p)| *k == PairKind::Sync && p.enforced.is_some());
        sync.map(|(_, p)| p.received).min().unwrap_or(Seq(u64::MAX))
    }

    /// Waits until [`Group::async_limit`] may have risen above `cursor`, or the time is up.
    pub fn wait_async_limit(&self, cursor: Seq, timeout: Duration) {
        let mut g = self.gate.lock();
        let behind = g.pairs.iter().any(|(k, p)| *k == PairKind::Sync && p.enforced.is_some() && p.received <= cursor);
        if behind {
            self.gate_changed.wait_for(&mut g, timeout);
        }
    }

    /// Drops what every peer has durably: from the queue, and interval by interval from the journal (MS-18).
    pub fn trim(&self) -> Seq {
        let (received, durable) = {
            let g = self.gate.lock();
            let min = |f: &dyn Fn(&Progress) -> Seq| g.pairs.iter().map(|p| f(&p.1)).min().unwrap_or(Seq(u64::MAX));
            (min(&|p| p.received), min(&|p| p.durable))
        };
        self.queue.trim(received);
        let mut m = self.replica.order();
        let settled = m.live.settled();
        let under_way = !self.in_flight.lock().begun.is_empty();
        let mut upto = durable.min(if under_way { replica::before(settled) } else { settled });
        // What reached the tree before a crash and has no place in the order is known from its mark alone: that stays
        // until every peer is past the crash.
        for (low, head) in &m.state.crashes {
            if durable <= *head {
                upto = upto.min(replica::before(*low));
            }
        }
        if let Err(e) = m.journal.trim(upto) {
            log::warn!("group {}: {e}", self.name);
        }
        self.trim.store(upto.0, Ordering::Relaxed);
        upto
    }

    fn admit(&self) -> Result<()> {
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
        if self.fence == Fence::Data {
            let g = self.gate.lock();
            if g.pairs.iter().any(|(k, p)| *k == PairKind::Sync && p.enforced.is_none()) {
                return Err(Error {
                    kind: Kind::Refused,
                    errno: libc::EIO,
                    msg: format!("group {}: write refused: fence = data and the sync pair is not in PAIR", self.name),
                });
            }
        }
        Ok(())
    }

    fn send(&self, m: &mut Meta, seq: Seq, vol: VolId, op: Op, data: &[u8]) -> Result<Op> {
        let entry = Entry { seq, vol, time: time::now(), op };
        let tally = tally(&entry.op, data);
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

    /// Closes the journal's interval, so that what follows is told apart from what was before.
    pub fn rotate(&self, m: &mut Meta) -> Result<()> {
        let last = m.live.last_seq();
        if m.journal.rotate(last)? {
            log::warn!(
                "group {}: the journal reached its limit; peers older than {} will need a full comparison",
                self.name,
                m.journal.begins_after().0
            );
        }
        Ok(())
    }

    fn settle(&self, m: &Meta, begun: Option<Seq>) {
        let mut f = self.in_flight.lock();
        let me = std::thread::current().id();
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
            if Instant::now() > until {
                return Err(Error::new(Kind::Timeout, "a write to the local tree does not end"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(self.head())
    }

    fn wait_for(&self, seq: Seq, have: impl Fn(&Progress) -> Seq) -> Result<()> {
        let mut g = self.gate.lock();
        let mut waited = false;
        loop {
            let missing =
                g.pairs.iter().any(|(k, p)| k.waited_for() && p.enforced.is_some_and(|e| seq > e) && have(p) < seq);
            if !missing {
                break;
            }
            if self.is_stopped() {
                return Err(Error::os(libc::EIO));
            }
            waited = true;
            self.gate_changed.wait_for(&mut g, Duration::from_secs(1));
        }
        if waited
            && self.fence == Fence::Data
            && g.pairs.iter().any(|(k, p)| *k == PairKind::Sync && p.enforced.is_none() && have(p) < seq)
        {
            return Err(Error {
                kind: Kind::Refused,
                errno: libc::EIO,
                msg: "the sync site was lost before it had this write".into(),
            });
        }
        Ok(())
    }

    /// Adds an entry that changes no file (epoch start, heartbeat).
    pub fn announce(&self, op: Op) -> Result<Seq> {
        let mut m = self.replica.order();
        let seq = m.live.last_seq().next();
        self.send(&mut m, seq, VolId(0), op, b"")?;
        Ok(seq)
    }

    /// Writes the config definition of a volume at its first mount, here and in the copy (CD-4). One that is there stays.
    pub fn define(&self, vol: VolId, def: &ConfigDef) -> Result<()> {
        let region = self.replica.region(vol)?.clone();
        let mut m = self.replica.order();
        if region.head()?.is_none() {
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

    fn namespace(&self, vol: VolId, mut op: Op, side: Side, done: &mut dyn FnMut(&Op, &Pre, &Acted)) -> Result<Named> {
        let mut m = self.replica.order();
        self.admit()?;
        let seq = m.live.last_seq().next();
        let acted = self.replica.names(&mut m, (seq, vol, 0), &mut op, side, done)?;
        let op = self.send(&mut m, seq, vol, op, b"")?;
        Ok(Named { op, acted, seq })
    }

    fn begin(&self, vol: VolId, locate: &dyn Fn() -> Option<Target>, mark: Mark) -> Result<bool> {
        let mut m = self.replica.order();
        self.admit()?;
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
        self.settle(&m, None);
        sent.map(|_| Some(seq))
    }

    fn cancel(&self) {
        let m = self.replica.order();
        self.settle(&m, None);
    }

    fn wait(&self, seq: Seq) -> Result<()> {
        self.wait_for(seq, |p| p.received)
    }

    fn barrier(&self) -> Result<()> {
        let seq = self.announce(Op::Fsync)?;
        self.replica.sync_meta()?;
        self.wait_for(seq, |p| p.durable)
    }

    fn write_through(&self) -> bool {
        self.write_through
    }

    fn local_fault(&self, vol: VolId, error: &Error) {
        log::error!("group {}: volume {}: {error}", self.name, vol.0);
        *self.fault.lock() = Some(error.to_string());
    }
}

fn tally(op: &Op, data: &[u8]) -> Tally {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut object = 0;
    if let Op::Write { at, .. } | Op::Truncate { at, .. } | Op::Fallocate { at, .. } = op {
        let mut h = DefaultHasher::new();
        at.hash(&mut h);
        object = h.finish() | 1;
    }
    Tally { data: data.len() as u64, object, rename: matches!(op, Op::Rename { .. }) }
}
