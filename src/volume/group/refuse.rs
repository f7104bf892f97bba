//! The fence of a group when its sync pair is lost (MS-6, MS-7): what [`super::super::fence`] decides is done here.

use super::*;
use crate::store::doubt::{Doubt, Doubts};
use crate::volume::fence::{self, Did, Report, Verdict};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// How long what has begun may take to end, and all of it to be undone; what comes later is undone then.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a mutation waits for a sync pair that is expected to be back at once.
const COMES_BACK: Duration = Duration::from_secs(5);

/// What was refused when a sync pair was lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    /// Requests.
    pub calls: u64,
    /// Entries of theirs that the sync site may have, or that could not be undone.
    pub doubts: u64,
    /// Those of them that could not be undone.
    pub left: u64,
}

impl Gate {
    /// Writes are refused; `data`: that is wanted at all.
    pub(super) fn fenced(&self, data: bool) -> bool {
        let fences = |(k, p): &(PairKind, Progress)| *k == PairKind::Sync && p.enforced.is_none() && !p.waived;
        data && (self.fence.is_refusing() || self.pairs.iter().any(fences))
    }

    /// Up to where an asynchronous pair may send.
    pub(super) fn async_limit(&self) -> Seq {
        let all = Seq(u64::MAX);
        if planted(Bug::AsyncAhead) {
            return all;
        }
        let of = |p: &Progress| match p.enforced {
            Some(_) => p.received,
            None if p.waived || p.simplex => all,
            None => self.hold.unwrap_or(all),
        };
        self.pairs.iter().filter(|(k, _)| *k == PairKind::Sync).map(|(_, p)| of(p)).min().unwrap_or(all)
    }
}

impl Group {
    /// True while writes are refused because the sync site cannot take them (MS-6).
    pub fn is_fenced(&self) -> bool {
        self.fence == Fence::Data && self.gate.lock().fenced(true)
    }

    /// Until the sync site is in step again, asynchronous sites get nothing after `had` (MS-4, MS-6).
    pub fn hold_back(&self, had: Seq) {
        self.gate.lock().hold = Some(had);
    }

    /// The sync pairs were in PAIR a moment ago and are expected back at once: for a while mutations wait for them instead
    /// of being refused.
    pub fn await_return(&self) {
        self.gate.lock().patience = Some(Instant::now() + COMES_BACK);
    }

    /// Before a mutation takes the order: waits while the fence is expected to open.
    pub(super) fn patient(&self) {
        if !self.undoes {
            return;
        }
        let mut g = self.gate.lock();
        while g.patience.is_some_and(|t| Instant::now() < t) && g.fenced(true) && !self.is_stopped() {
            self.gate_changed.wait_for(&mut g, Duration::from_millis(100));
        }
    }

    /// A call of this thread begins, if it may. Called inside the order.
    pub(super) fn enter(&self) -> Result<()> {
        self.moves()?;
        if !self.undoes {
            return self.admitted();
        }
        let mut g = self.gate.lock();
        let me = thread::current().id();
        // What has begun is ended as a whole, and undone as a whole.
        if !g.fence.is_open(&me) {
            if g.fenced(true) {
                return Err(self.refusal());
            }
            self.admitted()?;
        }
        g.fence.enter(me);
        Ok(())
    }

    pub(super) fn did(&self, seq: Seq, vol: VolId, op: &Op, len: usize) {
        if self.undoes {
            let did = Did { seq, vol, time: time::now(), op: op.clone(), len: len as u64 };
            self.gate.lock().fence.did(&thread::current().id(), did);
        }
    }

    pub(super) fn forget_call(&self) {
        if self.undoes {
            let mut g = self.gate.lock();
            g.fence.leave(&thread::current().id());
            if g.fence.is_refusing() {
                self.gate_changed.notify_all();
            }
        }
    }

    pub(super) fn refusal(&self) -> Error {
        Error {
            kind: Kind::Refused,
            errno: libc::EIO,
            msg: format!("group {}: write refused: fence = data and the sync pair is not in PAIR", self.name),
        }
    }

    /// Waits until every pair that answers wait for has `seq`, or the fence refuses it: then `undo` is called in its turn.
    pub(super) fn wait_for(
        &self,
        seq: Seq,
        have: impl Fn(&Progress) -> Seq,
        mut undo: Option<&mut dyn FnMut() -> Result<()>>,
    ) -> Result<()> {
        let mut g = self.gate.lock();
        if undo.is_some() && self.undoes {
            g.fence.waits(&thread::current().id(), seq);
            if g.fence.is_refusing() {
                self.gate_changed.notify_all();
            }
        }
        let mut held = None;
        let r = loop {
            let missing =
                g.pairs.iter().any(|(k, p)| k.waited_for() && p.enforced.is_some_and(|e| seq > e) && have(p) < seq);
            match g.fence.verdict(seq) {
                Verdict::Free if !missing => match self.held(&g, seq, &mut held) {
                    Ok(false) => break Ok(()),
                    Err(e) => break Err(e),
                    Ok(true) => {
                        self.gate_changed.wait_for(&mut g, Duration::from_millis(100));
                        continue;
                    }
                },
                _ if self.is_stopped() => break Err(Error::os(libc::EIO)),
                Verdict::Refuse => {
                    let msg = "the sync site was lost before it had this write; it was undone".into();
                    break Err(Error { kind: Kind::Refused, errno: libc::EIO, msg });
                }
                Verdict::Undo => {
                    g.fence.undoing(seq);
                    drop(g);
                    let r = catch_unwind(AssertUnwindSafe(|| undo.as_mut().map_or(Ok(()), |u| u())));
                    let r = r.unwrap_or_else(|_| Err(Error::failed("panic while undoing: this is a bug of kagami")));
                    if let Err(e) = &r {
                        log::error!("group {}: entry {} was refused and is not undone: {e}", self.name, seq.0);
                    }
                    g = self.gate.lock();
                    g.fence.undone(seq, r.is_ok());
                    self.gate_changed.notify_all();
                    continue;
                }
                Verdict::Free | Verdict::Wait => {}
            }
            self.gate_changed.wait_for(&mut g, Duration::from_secs(1));
        };
        g.fence.answered(seq);
        r
    }

    /// A change may begin, as far as the voters are concerned.
    pub(super) fn admitted(&self) -> Result<()> {
        self.permit.get().map_or(Ok(()), |p| p.admit(&self.name))
    }

    /// Whether the answer to an entry that all have who must is held until it is permitted (G3); since when is in `begun`.
    /// An error when that lasts too long.
    fn held(&self, g: &Gate, seq: Seq, begun: &mut Option<Instant>) -> Result<bool> {
        let Some(permit) = self.permit.get() else { return Ok(false) };
        let lacks = g.pairs.iter().any(|(k, p)| *k == PairKind::Sync && p.received < seq);
        if permit.answers(lacks) {
            return Ok(false);
        }
        if self.is_stopped() {
            return Err(Error::os(libc::EIO));
        }
        if begun.get_or_insert_with(Instant::now).elapsed() > permit.patience() {
            return Err(Error {
                kind: Kind::Timeout,
                errno: libc::EIO,
                msg: "no majority of the three voters supports this primary: whether this write counts is not known"
                    .into(),
            });
        }
        Ok(true)
    }

    /// Waits until a condition on the gate holds, the time is up, or the group stops.
    fn wait_gate(&self, patience: Duration, ok: impl Fn(&Gate) -> bool) -> bool {
        let until = Instant::now() + patience;
        let mut g = self.gate.lock();
        while !ok(&g) {
            if Instant::now() > until || self.is_stopped() {
                return false;
            }
            self.gate_changed.wait_for(&mut g, Duration::from_millis(50));
        }
        true
    }

    /// Waits until nothing is being refused and undone; false when the time is up.
    pub fn wait_refusal(&self) -> bool {
        self.wait_gate(PATIENCE, |g| !g.fence.is_busy())
    }

    /// Entries up to here are being handed to a pair's link: from now on its peer may have them.
    pub fn sending(&self, pair: usize, upto: Seq) {
        if self.undoes
            && let Some((_, p)) = self.gate.lock().pairs.get_mut(pair)
        {
            p.sent = p.sent.max(upto);
        }
    }

    /// A peer that has everything up to `has` would get what was refused and taken back again by being sent the entries
    /// after that: a resync brings it past them in one step.
    pub fn refused_after(&self, pair: usize, has: Seq) -> bool {
        let g = self.gate.lock();
        g.pairs.get(pair).is_some_and(|(k, _)| *k != PairKind::Leg) && g.fence.in_gap(has)
    }

    /// What is at a position has changes that were refused, and of which what takes them back comes after it.
    pub fn has_refused(&self, pair: usize, at: Seq) -> bool {
        let g = self.gate.lock();
        g.pairs.get(pair).is_some_and(|(k, _)| *k != PairKind::Leg) && g.fence.is_inside(at)
    }

    /// A pair has no link any more: answers wait for it no longer. With the fence, what its peer did not have is undone
    /// and refused first. The fault is persisted before this is called. `waived`: whether it fences nothing; asked here,
    /// so that an order of the operator (see [`Group::waive`]) comes before or after it.
    pub fn release(&self, pair: usize, waived: impl FnOnce() -> bool) -> Refused {
        let (cut, had, sent) = {
            let mut g = self.gate.lock();
            g.patience = None;
            let Some((kind, p)) = g.pairs.get_mut(pair) else { return Refused::default() };
            let (enforced, had, sent) = (p.enforced.take(), p.received, p.sent);
            let waived = waived();
            p.waived = waived;
            let falls = self.undoes && *kind == PairKind::Sync && !waived && !self.is_stopped();
            let cut = enforced.filter(|_| falls).map(|e| had.max(e));
            if waived {
                g.hold = None;
            }
            let first = cut.is_some_and(|cut| {
                let first = g.fence.fall(cut);
                g.hold = Some(g.hold.filter(|_| !first).map_or(had, |h| h.min(had)));
                first
            });
            (cut.filter(|_| first), had, sent)
        };
        self.gate_changed.notify_all();
        match cut {
            Some(cut) => self.refuse(cut, had, sent),
            None => Refused::default(),
        }
    }

    /// Lets what has begun end, undoes what is refused, and notes what is in doubt before anything is answered.
    fn refuse(&self, cut: Seq, had: Seq, sent: Seq) -> Refused {
        if !self.wait_gate(PATIENCE, |g| g.fence.is_quiet()) {
            log::error!("group {}: a write to the local tree does not end; it is undone when it does", self.name);
        }
        let before = self.doubts.get();
        let first = self.gate.lock().fence.report(sent);
        self.note(&before, had, &first);
        self.gate.lock().fence.undo();
        self.gate_changed.notify_all();
        if !self.wait_gate(PATIENCE, |g| g.fence.is_undone()) {
            log::error!("group {}: not everything that was refused is undone", self.name);
        }
        let report = self.gate.lock().fence.report(sent);
        self.note(&before, had, &report);
        let head = if report.calls > 0 { self.head() } else { cut };
        self.gate.lock().fence.over(head);
        self.gate_changed.notify_all();
        let left = report.doubts.iter().filter(|(_, undone)| !undone).count() as u64;
        if report.calls > 0 {
            log::warn!(
                "group {}: refused {} that the sync site did not acknowledge, and took them back up to entry {}",
                self.name,
                report.calls,
                head.0
            );
        }
        Refused { calls: report.calls, doubts: report.doubts.len() as u64, left }
    }

    fn note(&self, before: &Option<Doubts>, had: Seq, report: &Report) {
        if report.calls == 0 && report.doubts.is_empty() {
            return;
        }
        let entries = report.doubts.iter().map(|(d, undone)| self.doubt(d, *undone)).collect();
        let mut all = before.clone().unwrap_or_default();
        all.add(Doubts { since: time::now(), had, refused: report.calls, entries, more: 0 });
        if let Err(e) = self.doubts.set(Some(all)) {
            log::error!("group {}: what is in doubt cannot be noted: {e}", self.name);
        }
    }

    fn doubt(&self, d: &Did, undone: bool) -> Doubt {
        let region = self.region(d.vol);
        let path = |t: &Target| match t {
            Target::File(n) => region.path_bytes(n),
            Target::Dir(id) => region.path_of_dir(*id),
        };
        let words = |t: &Target| String::from_utf8_lossy(&path(t)).into_owned();
        let at = fence::target(&d.op).map_or_else(Vec::new, |t| path(&t));
        Doubt { seq: d.seq, time: d.time, vol: d.vol, path: at, what: fence::words(d, &words), undone }
    }
}
