//! What a fence that closes refuses, decided without threads or disks (MS-6, MS-7).
//!
//! ```text
//! a call: open ─ its entries get their places ─▶ waiting for the sync site ─▶ answered
//!                                                      │ the sync pair is lost
//!                                                      ▼
//! quiet (no call is open) ─▶ undone, the latest first ─▶ all are undone, what is in doubt is noted ─▶ refused
//! ```
//! A *call* is what one request of an application did; it may have several entries, and is undone as a whole. Calls whose
//! last entry the sync site had received are answered as ever.

use crate::base::{Seq, VolId, time::Time};
use crate::format::op::{Op, RENAME_EXCHANGE, RENAME_NOREPLACE, Target};
use crate::store::exec::Pre;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// One entry of a call.
#[derive(Clone, Debug)]
pub struct Did {
    /// Its place.
    pub seq: Seq,
    /// Volume.
    pub vol: VolId,
    /// When it was issued.
    pub time: Time,
    /// What it does.
    pub op: Op,
    /// Bytes of data in it.
    pub len: u64,
}

/// What becomes of a call that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The fence has nothing to say: it is answered once the peers have it.
    Free,
    /// It waits for others.
    Wait,
    /// It is its turn to be undone.
    Undo,
    /// It is answered with an error now.
    Refuse,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Waiting,
    Undoing,
    Undone(bool),
}

struct Call {
    did: Vec<Did>,
    stage: Stage,
    /// It was under way when a refusal was over: it is refused whenever it comes.
    late: bool,
}

impl Call {
    fn new() -> Call {
        Call { did: Vec::new(), stage: Stage::Waiting, late: false }
    }
}

/// Everything after `cut` is refused; once it is over, what had its place by `head`.
#[derive(Clone, Copy)]
struct Refusal {
    cut: Seq,
    phase: Phase,
    head: Seq,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
enum Phase {
    /// Calls that have begun are waited for.
    Quieting,
    /// What is refused is being undone.
    Undoing,
    /// Refused calls are answered.
    Over,
}

/// What a fence refused.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Calls refused.
    pub calls: u64,
    /// Their entries that the sync site may have, or that could not be undone here, in order; with whether they were
    /// undone.
    pub doubts: Vec<(Did, bool)>,
}

/// The fence of a group. `K` tells apart those whose calls are under way.
pub struct Fence<K> {
    open: HashMap<K, Call>,
    waiting: BTreeMap<Seq, Call>,
    refusal: Option<Refusal>,
    gaps: Vec<(Seq, Seq)>,
}

impl<K> Default for Fence<K> {
    fn default() -> Fence<K> {
        Fence { open: HashMap::new(), waiting: BTreeMap::new(), refusal: None, gaps: Vec::new() }
    }
}

impl<K: Eq + Hash> Fence<K> {
    /// A call begins. False: it has begun already.
    pub fn enter(&mut self, who: K) -> bool {
        match self.open.entry(who) {
            std::collections::hash_map::Entry::Occupied(_) => false,
            std::collections::hash_map::Entry::Vacant(v) => {
                v.insert(Call::new());
                true
            }
        }
    }

    /// A call is under way.
    pub fn is_open(&self, who: &K) -> bool {
        self.open.contains_key(who)
    }

    /// It got an entry.
    pub fn did(&mut self, who: &K, did: Did) {
        if let Some(c) = self.open.get_mut(who) {
            c.did.push(did);
        }
    }

    /// It is over, and nobody waits for it.
    pub fn leave(&mut self, who: &K) {
        self.open.remove(who);
    }

    /// It changes nothing more, and waits for its last entry.
    pub fn waits(&mut self, who: &K, last: Seq) {
        if let Some(call) = self.open.remove(who) {
            self.waiting.insert(last, call);
        }
    }

    /// It is answered.
    pub fn answered(&mut self, last: Seq) {
        self.waiting.remove(&last);
    }

    /// The sync site is lost; it had everything up to `cut`. False: that was so already, and only more is refused now.
    pub fn fall(&mut self, cut: Seq) -> bool {
        match &mut self.refusal {
            Some(r) if r.phase < Phase::Over => {
                r.cut = cut.min(r.cut);
                false
            }
            r => {
                *r = Some(Refusal { cut, phase: Phase::Quieting, head: Seq(u64::MAX) });
                true
            }
        }
    }

    /// No call is under way.
    pub fn is_quiet(&self) -> bool {
        self.open.is_empty()
    }

    /// From now on what is refused is undone.
    pub fn undo(&mut self) {
        if let Some(r) = &mut self.refusal {
            r.phase = Phase::Undoing;
        }
    }

    /// The refusal that is under way.
    fn present(&self) -> Option<Refusal> {
        self.refusal.filter(|r| r.phase < Phase::Over)
    }

    fn refused(&self) -> impl DoubleEndedIterator<Item = (Seq, &Call)> {
        let cut = self.present().map_or(Seq(u64::MAX), |r| r.cut);
        self.waiting.iter().filter(move |(last, c)| c.late || **last > cut).map(|(last, c)| (*last, c))
    }

    /// Everything that is refused is undone, or could not be.
    pub fn is_undone(&self) -> bool {
        self.refused().all(|(_, c)| matches!(c.stage, Stage::Undone(_)))
    }

    /// What is refused, of which the sync site may have entries up to `sent`. Calls that are still open count as not
    /// undone.
    pub fn report(&self, sent: Seq) -> Report {
        let Some(Refusal { cut, .. }) = self.refusal else { return Report::default() };
        let over = |c: &Call| matches!(c.stage, Stage::Undone(_));
        let mut r = Report { calls: self.refused().count() as u64, doubts: Vec::new() };
        for (_, c) in self.refused() {
            let undone = c.stage == Stage::Undone(true);
            let doubted = c.did.iter().filter(|d| (d.seq > cut && d.seq <= sent) || (over(c) && !undone));
            r.doubts.extend(doubted.map(|d| (d.clone(), undone)));
        }
        let late = self.open.values().flat_map(|c| &c.did).filter(|d| d.seq > cut && d.seq <= sent);
        r.doubts.extend(late.map(|d| (d.clone(), false)));
        r.doubts.sort_by_key(|(d, _)| d.seq);
        r
    }

    /// Refused calls are answered from now on. The entries from the one after the cut up to `head` bring about nothing:
    /// who has none of them need not get them.
    pub fn over(&mut self, head: Seq) {
        let Some(r) = &mut self.refusal else { return };
        (r.phase, r.head) = (Phase::Over, head);
        let cut = r.cut;
        if head > cut {
            self.gaps.push((cut, head));
        }
        self.waiting.iter_mut().filter(|(last, _)| **last > cut).for_each(|(_, c)| c.late = true);
        self.open.values_mut().for_each(|c| c.late = true);
    }

    /// A refusal is under way: nothing new is accepted.
    pub fn is_refusing(&self) -> bool {
        self.present().is_some()
    }

    /// Some refused call has not been answered yet.
    pub fn is_busy(&self) -> bool {
        self.is_refusing() || self.refused().next().is_some()
    }

    /// What becomes of the call, or of the fsync, with this last entry.
    pub fn verdict(&self, last: Seq) -> Verdict {
        let present = self.present();
        let Some(c) = self.waiting.get(&last) else {
            return match self.refusal {
                Some(r) if last > r.cut && last <= r.head => {
                    if present.is_some() {
                        Verdict::Wait
                    } else {
                        Verdict::Refuse
                    }
                }
                _ => Verdict::Free,
            };
        };
        if !c.late && present.is_none_or(|r| last <= r.cut) {
            return Verdict::Free;
        }
        match c.stage {
            Stage::Undone(_) if present.is_none() => Verdict::Refuse,
            Stage::Waiting if present.is_none_or(|r| r.phase > Phase::Quieting) => {
                let latest = self.refused().rev().find(|(_, c)| !matches!(c.stage, Stage::Undone(_)));
                if latest.is_some_and(|(l, _)| l == last) { Verdict::Undo } else { Verdict::Wait }
            }
            _ => Verdict::Wait,
        }
    }

    /// The call is being undone.
    pub fn undoing(&mut self, last: Seq) {
        if let Some(c) = self.waiting.get_mut(&last) {
            c.stage = Stage::Undoing;
        }
    }

    /// It was undone, or that failed.
    pub fn undone(&mut self, last: Seq, well: bool) {
        if let Some(c) = self.waiting.get_mut(&last) {
            c.stage = Stage::Undone(well);
        }
    }

    /// What follows `has` is refused and taken back again: somebody who has not seen it is brought past it in one step.
    pub fn in_gap(&self, has: Seq) -> bool {
        self.gaps.iter().any(|(cut, end)| *cut <= has && has < *end)
    }

    /// Some of what was refused is at this position, and not all that takes it back.
    pub fn is_inside(&self, at: Seq) -> bool {
        self.gaps.iter().any(|(cut, end)| *cut < at && at < *end)
    }

    /// Everybody has everything up to here.
    pub fn forget_gaps(&mut self, upto: Seq) {
        self.gaps.retain(|(_, end)| *end > upto);
    }
}

/// The operation that takes an operation on names back; `None`: nothing does, for an object is gone. `times`: the
/// modification times of the parents of its first and second name before it.
pub fn inverse(op: &Op, pre: &Pre, times: [Time; 2]) -> Option<Op> {
    let [first, second] = times;
    Some(match op {
        Op::Create { at, .. } => Op::Unlink { at: at.clone(), pmtime: first },
        Op::Mkdir { at, id, .. } => Op::Rmdir { at: at.clone(), id: *id, pmtime: first },
        Op::Link { to, .. } => Op::Unlink { at: to.clone(), pmtime: second },
        Op::Rename { from, to, flags, .. } if pre.second.is_none() || flags & RENAME_EXCHANGE != 0 => Op::Rename {
            from: to.clone(),
            to: from.clone(),
            flags: if flags & RENAME_EXCHANGE != 0 { RENAME_EXCHANGE } else { RENAME_NOREPLACE },
            from_pmtime: second,
            to_pmtime: first,
        },
        _ => return None,
    })
}

/// An entry in words; `path` gives the path of what it is about.
pub fn words(d: &Did, path: &dyn Fn(&Target) -> String) -> String {
    let file = |n: &crate::base::Name| path(&Target::File(n.clone()));
    match &d.op {
        Op::Create { .. } => "create".into(),
        Op::Mkdir { .. } => "mkdir".into(),
        Op::Link { from, .. } => format!("link to {}", file(from)),
        Op::Unlink { .. } => "unlink".into(),
        Op::Rmdir { .. } => "rmdir".into(),
        Op::Rename { from, .. } => format!("rename of {}", file(from)),
        Op::Write { off, .. } => format!("write {off}..{}", off.saturating_add(d.len)),
        Op::Truncate { size, .. } => format!("truncate to {size}"),
        Op::Fallocate { off, len, .. } => format!("fallocate {off}..{}", off.saturating_add(*len)),
        Op::SetAttr { .. } => "attributes".into(),
        Op::SetXattr { name, .. } | Op::RemoveXattr { name, .. } => {
            format!("extended attribute {}", String::from_utf8_lossy(name))
        }
        _ => "no change of a file".into(),
    }
}

/// What an entry is about.
pub fn target(op: &Op) -> Option<Target> {
    match op {
        Op::SetAttr { at, .. } | Op::SetXattr { at, .. } | Op::RemoveXattr { at, .. } => Some(at.clone()),
        Op::Link { to, .. } | Op::Rename { to, .. } => Some(Target::File(to.clone())),
        op => op.names().into_iter().flatten().next().map(|n| Target::File(n.clone())),
    }
}

#[cfg(test)]
#[path = "fence_tests.rs"]
mod tests;
