//! Power cuts: what may be lost is bounded by the last checkpoint and the active directories ([`super::activity`]).
//!
//! ```text
//! open after a power cut ─▶ Cut: from the checkpoint on, the journal and the tree may lack changes under these directories
//!     receiver: suspect until a resync by state (of the names below them, and of what the source's journal knows)
//!     primary:  the same from the sync site, or it goes on alone, and the peers are brought to its state likewise
//! ```

use super::activity::{self, ActiveDir, Activity, Record, Replay};
use super::before;
use super::exec::Pre;
use super::idtable;
use super::journal::Journal;
use super::live::Live;
use super::log::EntryLog;
use super::receive::{is_drive, is_full};
use super::region::Region;
use super::replica::{Meta, Place, Replica, SETTING_BACK, State};
use super::set_back;
use crate::base::planted::{Bug, planted};
use crate::base::{DirId, Result, Seq, VolId};
use crate::format::msg::CopyState;
use crate::format::op::{Op, Target};
use crate::pair::change::What;
use bincode::{Decode, Encode};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

/// Power cuts remembered, count; more become one.
const CUTS_KEPT: usize = 8;
/// Directories of a cut, count; of more, the roots of their volumes take the place.
const DIRS_KEPT: usize = 16 << 10;

/// Lines kept of what is lost, count.
pub(super) const UNMENDED_KEPT: usize = 8;

/// What a power cut may have undone without a trace in the journal.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Cut {
    /// Everything up to here was durable.
    pub low: Seq,
    /// The last position known of after the cut.
    pub head: Seq,
    /// When the checkpoint at `low` was taken, seconds since 1970; 0: there was none.
    pub time: i64,
    /// What may be affected: anything in these directories.
    pub dirs: Vec<ActiveDir>,
    /// The tree is not brought to a point of the order yet; later only the journal lacks something.
    pub open: bool,
}

/// What a replica's activity file and tables of ids said before they were opened.
pub(super) struct Active {
    rec: Option<Record>,
    /// Directories made or moved since the checkpoint.
    young: Vec<ActiveDir>,
    volumes: u16,
}

impl Active {
    pub(super) fn read(place: &Place) -> Result<Active> {
        let meta = |p: &Path| p.join(".kagami");
        let volumes = place.volumes.len() as u16;
        let Some((_, lead)) = place.volumes.first() else {
            return Ok(Active { rec: None, young: Vec::new(), volumes });
        };
        let rec = activity::read(&meta(lead).join("active"))?;
        let mut young = Vec::new();
        for (i, ((_, p), len)) in place.volumes.iter().zip(rec.iter().flat_map(|r| &r.tables)).enumerate() {
            let ids = idtable::dirs_after(&meta(p).join("ids"), *len)?;
            young.extend(ids.into_iter().map(|dir| ActiveDir { vol: VolId(i as u16), dir, below: false }));
        }
        Ok(Active { rec, young, volumes })
    }

    /// Its position and time.
    fn checkpoint(&self) -> (Seq, i64) {
        self.rec.as_ref().map_or((Seq(0), 0), |r| (r.at, r.time))
    }

    fn dirs(&self) -> Vec<ActiveDir> {
        match &self.rec {
            Some(r) => r.dirs.iter().chain(&self.young).copied().collect(),
            None => (0..self.volumes).map(|v| ActiveDir { vol: VolId(v), dir: DirId::ROOT, below: true }).collect(),
        }
    }

    pub(super) fn replay(&self) -> Option<Replay> {
        self.rec.as_ref().and_then(|r| r.replay)
    }

    pub(super) fn open(self, path: &Path, regions: &[Arc<Region>]) -> Result<Activity> {
        Activity::open(path, self.rec, &self.young, lengths(regions), self.volumes)
    }
}

fn lengths(regions: &[Arc<Region>]) -> Vec<u64> {
    regions.iter().map(|r| r.ids.read().bytes()).collect()
}

/// Adds what is suspect now to the state. `cut`: the power went since the replica was opened the last time.
pub(super) fn note(state: &mut State, live: &Live, journal: &Journal, active: &Active, cut: bool) -> Result<()> {
    if cut {
        let begun = state.chain.last().map_or(Seq(0), |e| e.parent);
        if state.was_primary {
            // Numbers must not be given out again, though the page may have forgotten them.
            let last = live.last_seq().max(journal.last_found()).max(begun);
            live.set_last_seq(last);
            live.set_settled(last);
        } else {
            // Epochs of which no entry is left.
            let last = live.last_seq();
            state.chain.retain(|e| e.parent <= last);
        }
        let (low, time) = active.checkpoint();
        log::warn!(
            "the machine went down while this replica was open: what was changed after entry {} may be lost, until the state is compared with that of a peer",
            low.0
        );
        tear(state, low, time, live.last_seq());
    }
    // Also what a resync under way had touched, when the process was killed in the middle of it.
    add_dirs(state, active.dirs());
    Ok(())
}

/// The tree is no point of the order before it was compared with a peer: what came after `low` may be missing in part.
pub(super) fn tear(state: &mut State, low: Seq, time: i64, last: Seq) {
    state.cuts.push(Cut { low, head: last.max(low), time, dirs: Vec::new(), open: true });
    while state.cuts.len() > CUTS_KEPT {
        let old = state.cuts.remove(0);
        if let Some(next) = state.cuts.first_mut() {
            next.low = next.low.min(old.low);
            next.dirs.extend(old.dirs);
            next.open |= old.open;
        }
    }
    state.torn = true;
}

/// Adds directories to what the last power cut may have affected.
pub(super) fn add_dirs(state: &mut State, dirs: Vec<ActiveDir>) {
    let Some(c) = state.cuts.last_mut() else { return };
    let mut all: BTreeSet<ActiveDir> = c.dirs.drain(..).chain(dirs).collect();
    if all.len() > DIRS_KEPT {
        all = all.iter().map(|d| ActiveDir { vol: d.vol, dir: DirId::ROOT, below: true }).collect();
    }
    c.dirs = all.into_iter().collect();
}

/// After a power cut, of a replica that received: its names are those of the checkpoint again, and what is to be done is
/// what the log says from there on. When that cannot be, `state.replay` stays [`SETTING_BACK`].
pub(super) fn set_back(
    lead: &Path,
    regions: &[Arc<Region>],
    state: &mut State,
    to: &Replay,
    (live, log): (&Live, &EntryLog),
    active: &Active,
    save: &dyn Fn(&State) -> Result<()>,
) -> Result<()> {
    state.replay = SETTING_BACK;
    save(state)?;
    let mut lost = Vec::new();
    let done = before::read(lead, to.names).and_then(|were| {
        let ops = set_back::names_in(log, to.lsn)?;
        for r in regions {
            lost.extend(set_back::set_back(r, &were, &ops)?.iter().map(|n| r.path_of(n)));
        }
        Journal::cut(&lead.join("journal"), to.journal)
    });
    match done {
        Ok(()) => {}
        Err(e) if is_drive(&e) || is_full(&e) => return Err(e.context("setting names back after a power cut")),
        Err(e) => {
            log::error!("the names cannot be set back to the last checkpoint: {e}");
            return Ok(());
        }
    }
    live.clear_intent();
    live.set_txn(to.txn);
    live.set_applied(to.lsn, to.applied);
    live.set_last_seq(to.last);
    live.set_settled(to.last);
    state.chain.retain(|e| e.parent <= to.last);
    if !lost.is_empty() {
        log::error!("lost in a power cut though no entry removed them: {}", lost.join(", "));
        let (low, time) = active.checkpoint();
        tear(state, low, time, to.last);
        add_dirs(state, active.dirs());
        state.unmended = lost.iter().take(UNMENDED_KEPT).map(|n| format!("{n} is gone")).collect();
    }
    log::info!(
        "the machine went down while this replica was open: the entry log is applied again from entry {} on",
        to.last.0
    );
    state.replay = if log.end() > to.lsn { log.end() } else { 0 };
    save(state)
}

/// Forgets what was under way: the tree is not what it was when it began.
pub(super) fn give_up_steps(live: &Live, log: &EntryLog, regions: &[Arc<Region>]) -> Result<()> {
    live.clear_intent();
    if live.txn().is_some() {
        live.set_txn(None);
        live.set_applied(log.end(), live.applied_seq());
    }
    regions.iter().try_for_each(|r| r.sweep_staging())
}

/// Brings the tables of ids in step with the trees, where they may differ.
pub(super) fn mend(regions: &[Arc<Region>], state: &State) -> Result<()> {
    for r in regions {
        let dirs: Vec<ActiveDir> =
            state.cuts.iter().flat_map(|c| &c.dirs).filter(|d| d.vol == r.vol).copied().collect();
        let mut scope = r.expand(&dirs);
        scope.insert(DirId::STAGING);
        let n = r.mend(&scope)?;
        if n > 0 {
            log::warn!("{}: {n} records of directories and links did not survive the power cut", r.path.display());
        }
    }
    Ok(())
}

impl Replica {
    /// Says that something below the directories of an operation on names is about to change.
    pub(super) fn touch_names(&self, m: &mut Meta, seq: Seq, vol: VolId, op: &Op, pre: &Pre) -> Result<()> {
        let (a, b) = match op {
            Op::Create { at, .. } | Op::Mkdir { at, .. } | Op::Unlink { at, .. } | Op::Rmdir { at, .. } => (at, None),
            Op::Link { from, to, .. } | Op::Rename { from, to, .. } => (from, Some(to)),
            _ => return Ok(()),
        };
        let region = self.region(vol)?;
        let ids = region.ids.read();
        let parent = |_: VolId, d: DirId| ids.dir(d).map(|r| r.parent);
        m.activity.touch(vol, a.dir, seq, &parent)?;
        if let Some(b) = b {
            m.activity.touch(vol, b.dir, seq, &parent)?;
        }
        for what in [pre.first, pre.second].into_iter().flatten().map(|b| b.what) {
            if let (What::Dir(d), Op::Rename { .. }) = (what, op) {
                m.activity.moves(vol, d)?;
            }
        }
        Ok(())
    }

    /// Says that an object is about to change.
    pub(super) fn touch(&self, m: &mut Meta, seq: Seq, vol: VolId, at: &Target) -> Result<()> {
        let dir = match at {
            Target::Dir(d) => *d,
            Target::File(n) => n.dir,
        };
        let ids = self.region(vol)?.ids.read();
        m.activity.touch(vol, dir, seq, &|_, d| ids.dir(d).map(|r| r.parent))
    }

    /// Makes everything durable, and says so: what a power cut can undo lies after it. Not for the way of an operation.
    pub fn checkpoint(&self) -> Result<Seq> {
        let _one = self.checkpointing.lock();
        let begun = {
            let mut m = self.order();
            // The next sync would succeed, and say nothing of what the last one could not write.
            if self.unsynced() {
                return Ok(m.activity.at());
            }
            let at = Self::settled_now(&m);
            let receiving = m.receiving && m.state.copy == CopyState::Consistent;
            let applied = m.live.applied_lsn();
            let moved = receiving && m.activity.replay().is_none_or(|r| r.lsn != applied);
            if !m.activity.due(at) && !moved {
                return Ok(at);
            }
            let last = m.live.last_seq();
            if m.live.txn().is_none()
                && m.journal.may_rotate()
                && let Err(e) = m.journal.rotate(last)
            {
                log::warn!("group {}: the journal's interval goes on: {e}", self.group);
            }
            let tables = lengths(&self.regions);
            let replay = match receiving {
                true => Some(Replay {
                    lsn: applied,
                    applied: m.live.applied_seq(),
                    last,
                    txn: m.live.txn(),
                    journal: m.journal.place(),
                    names: self.names.lock().begin()?,
                }),
                false => None,
            };
            m.activity.begin(at, tables, replay)
        };
        let at = begun.at();
        let done = match planted(Bug::CheckpointBeforeSync) {
            true => Ok(()),
            false => self.sync_meta().and_then(|()| self.regions.iter().try_for_each(|r| r.syncfs())),
        };
        let mut m = self.order();
        if done.is_err() {
            m.activity.give_up();
        }
        let done = done.and_then(|()| m.activity.finish(begun));
        match done {
            Ok(()) => self.names.lock().finish(),
            Err(_) => self.names.lock().give_up(),
        }
        done.map(|()| at)
    }

    /// Says durably which directories are active, where for a moment an entry stood for more. Not for the way of an operation.
    pub fn sharpen(&self) -> Result<()> {
        self.order().activity.sharpen()
    }

    /// From now on the tree is changed by the entry log only.
    pub(super) fn begin_receiving(&self) -> Result<()> {
        let due = {
            let mut m = self.order();
            m.receiving = true;
            m.activity.replay().is_none() && m.state.copy == CopyState::Consistent && !self.unsynced()
        };
        if due { self.checkpoint().map(drop) } else { Ok(()) }
    }

    /// The replica is to lead. What the entry log had is durable in the tree: the log does not tell what comes now.
    pub fn end_receiving(&self) -> Result<()> {
        if self.follows_log() {
            self.checkpoint()?;
        }
        let mut m = self.order();
        m.receiving = false;
        m.activity.no_replay()
    }

    /// True for a replica whose tree is changed by the entry log: it received last, and has not led since.
    pub fn follows_log(&self) -> bool {
        self.order().activity.replay().is_some()
    }

    /// Up to where the entry log may be given back.
    pub(super) fn log_needed_from(&self) -> u64 {
        let m = self.order();
        let applied = m.live.applied_lsn();
        m.activity.replay().map_or(applied, |r| r.lsn.min(applied))
    }

    /// Everything up to here is in the tree.
    fn settled_now(m: &Meta) -> Seq {
        let at = m.live.settled().min(m.live.last_seq());
        m.live.txn().map_or(at, |(from, _)| at.min(from))
    }

    /// Up to where the tree survives a power cut.
    pub fn checkpointed(m: &Meta) -> Seq {
        // What is torn is durable only up to where it was before.
        m.state.cuts.iter().filter(|c| c.open).map(|c| c.low).fold(m.activity.at(), Seq::min)
    }

    /// Drops the records up to a position that is durable everywhere, and what is remembered of power cuts before it.
    pub fn trim(&self, m: &mut Meta, upto: Seq) -> Result<()> {
        m.journal.trim(upto)?;
        let begins = m.journal.begins_after();
        if !m.state.torn && m.state.cuts.iter().any(|c| c.head < begins) {
            self.save_state(m, |s| s.cuts.retain(|c| c.head >= begins))?;
        }
        Ok(())
    }
}
