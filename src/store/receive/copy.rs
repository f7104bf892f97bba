//! A first copy, at the receiver: its begin and its end.

use super::*;
use crate::base::DirId;
use std::collections::BTreeSet;

impl Receiver {
    /// Begins a first copy from a source with this history: the tree is no point of the order from now on; everything in the
    /// log is void.
    pub fn begin_copy(&self, theirs: &Chain, their_head: Seq) -> Result<()> {
        let _quiet = self.applying.lock();
        let mut g = self.inner.lock();
        let mut m = self.replica.order();
        LostArea::of(&self.replica).cut_short()?;
        let blank = m.state.copy == CopyState::Empty;
        let common = self.replica.chain(&m).common(g.received, theirs, their_head);
        loss::overwritten(&self.replica, &m, g.received, common)?;
        m.activity.no_replay()?;
        self.replica.save_state(&mut m, |s| {
            s.copy = CopyState::Copying;
            s.suspect = false;
            s.replay = 0;
        })?;
        self.replica.names.lock().disarm();
        self.replica.set_between(true)?;
        m.activity.rewind(Seq(0))?;
        m.live.set_applied(self.replica.log.end(), m.live.applied_seq());
        m.live.set_txn(None);
        m.live.clear_intent();
        // An operation that was done and could not be recorded left the table of ids behind the tree: files would count as
        // one that are two, or the other way round (G5).
        if !blank {
            self.mend_tables()?;
        }
        for r in &self.replica.regions {
            let n = r.drop_lost_dirs()?;
            if n > 0 {
                log::warn!("group {}: {n} directories were removed or replaced from outside", self.replica.group);
            }
        }
        self.remove_unsynced()?;
        g.txns.clear();
        g.shown = (Seq(0), Seq(0));
        g.fault = None;
        g.hold = None;
        Ok(())
    }

    /// Looks through the tree: what is in it and has no id gets one. So a tree that was put here by other means can be
    /// compared and addressed; nothing else of it is changed.
    pub fn survey(&self) -> Result<()> {
        let _quiet = self.applying.lock();
        let blank = self.replica.order().state.copy == CopyState::Empty;
        for r in &self.replica.regions {
            if blank {
                r.drop_lost_dirs()?;
                r.import()?;
            }
        }
        self.mend_tables()
    }

    /// Brings the tables of ids in step with the trees, as a whole.
    fn mend_tables(&self) -> Result<()> {
        for r in &self.replica.regions {
            let mut all: BTreeSet<DirId> = r.ids.read().dirs().map(|(id, _)| id).collect();
            all.insert(DirId::ROOT);
            let wrong = r.mend(&all)?;
            if wrong > 0 {
                log::info!("group {}: {wrong} records of the table of ids were not as the tree", self.replica.group);
            }
        }
        Ok(())
    }

    /// Ends a first copy: the tree has the names of `base`, and is a point of the order once entries up to `whole` are
    /// applied.
    pub fn end_copy(&self, base: Seq, whole: Seq, epochs: Vec<Epoch>, group_id: u64) -> Result<()> {
        for r in &self.replica.regions {
            r.forget_files();
            r.sweep_aside()?;
            if r.head()?.is_some_and(|h| h.capacity != 0) {
                r.count_space(&mut |_| {})?;
            }
            r.syncfs().inspect_err(|e| self.sync_failed(e))?;
        }
        self.replica.forget_unsynced()?;
        self.replica.set_group_id(group_id)?;
        let mut g = self.inner.lock();
        let mut m = self.replica.order();
        m.journal.reset(base)?;
        m.live.set_last_seq(base);
        m.live.set_settled(base);
        m.live.set_applied(self.replica.log.end(), base);
        self.replica.save_state(&mut m, |s| {
            *s = crate::store::replica::State {
                chain: epochs,
                copy: CopyState::Consistent,
                whole,
                suspect: false,
                crashes: Vec::new(),
                was_primary: false,
                cuts: Vec::new(),
                torn: false,
                yields: false,
                replay: 0,
                unmended: Vec::new(),
            }
        })?;
        g.received = base;
        g.shown = (Seq(0), Seq(0));
        g.preparing = false;
        drop(m);
        drop(g);
        self.at_point()?;
        self.sync_tree()
    }

    /// Takes the marker "between two points" away if the tree is at one: also what an error left it at.
    fn at_point(&self) -> Result<()> {
        let _quiet = self.applying.lock();
        let rolls = !self.inner.lock().txns.is_empty();
        let point = {
            let m = self.replica.order();
            m.live.txn().is_none() && Replica::consistent(&m)
        };
        if point && !rolls { self.replica.set_between(false) } else { Ok(()) }
    }

    /// A session begins: see [`Receiver::begin_session`].
    pub(super) fn look_at_marker(&self) {
        if let Err(e) = self.at_point() {
            log::warn!("group {}: the marker of its replica: {e}", self.replica.group);
        }
    }
}
