//! Syncs, and what a power cut leaves.

use super::data::Luck;
use super::inode::Id;
use super::log::{Dropped, Side};
use super::{Disk, Ofd, Res, Rng};
use std::collections::BTreeSet;

/// How a power cut is drawn. All false: a prefix of the operations, whole pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cut {
    /// Nothing that was not synced is left.
    pub none_of_unsynced: bool,
    /// Everything is left.
    pub all_of_unsynced: bool,
    /// Sectors of 512 bytes are drawn, not pages.
    pub sectors: bool,
    /// Operations survive in any order that their dependencies allow.
    pub unordered: bool,
}

impl Cut {
    /// A cut of one of the kinds, the extremes less often.
    pub fn draw(rng: &mut Rng) -> Cut {
        let kind = rng.below(8);
        Cut {
            none_of_unsynced: kind == 0,
            all_of_unsynced: kind == 1,
            sectors: rng.coin(),
            unordered: rng.chance(0.25),
        }
    }
}

/// A call after which something is more durable than before, or which replaces something.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SyncPoint {
    /// From 1.
    pub number: u64,
    /// `fsync`, `fdatasync`, `syncfs` or `rename`.
    pub what: &'static str,
    /// What it was called for, from the root of the disk; of a rename the former name.
    pub path: Vec<u8>,
}

/// Points that are remembered; the oldest half is forgotten then.
const POINTS_MAX: usize = 1 << 14;

impl Disk {
    /// fsync(2), or fdatasync(2) when `data_only`. EBADF, EINVAL for what cannot be synced, EIO as a fault.
    pub fn fsync(&mut self, o: Ofd, data_only: bool) -> Res<()> {
        let open = *self.opens.get(o)?;
        if open.is_path() {
            return Err(libc::EBADF);
        }
        let kind = self.table.live(open.id).meta.kind();
        if !matches!(kind, libc::S_IFREG | libc::S_IFDIR) {
            return Err(libc::EINVAL);
        }
        self.count_sync(if data_only { "fdatasync" } else { "fsync" }, open.id);
        self.look_at_maps();
        if self.draw_sync_fault(open.id) {
            self.lose(open.id);
            return Err(libc::EIO);
        }
        self.keep_content(open.id);
        if !data_only || kind == libc::S_IFDIR {
            self.commit(self.table.get(open.id).last_op);
            self.keep_times(open.id);
        }
        self.clean(open.id);
        Ok(())
    }

    /// syncfs(2).
    pub fn syncfs(&mut self) -> Res<()> {
        self.count_sync("syncfs", super::inode::ROOT);
        self.look_at_maps();
        let dirty: Vec<Id> = self.table.dirty.iter().copied().collect();
        if dirty.iter().any(|id| self.draw_sync_fault(*id)) {
            dirty.iter().for_each(|id| self.lose(*id));
            return Err(libc::EIO);
        }
        dirty.iter().for_each(|id| self.keep_content(*id));
        self.commit(u64::MAX);
        for id in dirty {
            self.keep_times(id);
            self.clean(id);
        }
        Ok(())
    }

    /// Calls of fsync, fdatasync, syncfs and rename so far.
    pub fn syncs(&self) -> u64 {
        self.syncs
    }

    /// The last of them, some ten thousand.
    pub fn sync_log(&self) -> &[SyncPoint] {
        &self.sync_log
    }

    pub(super) fn count_sync(&mut self, what: &'static str, id: Id) {
        self.syncs += 1;
        if self.sync_log.len() >= POINTS_MAX {
            self.sync_log.drain(..POINTS_MAX / 2);
        }
        let path = self.path_of(id);
        self.sync_log.push(SyncPoint { number: self.syncs, what, path });
    }

    /// Notes what was stored through maps, so that each value at a sync is one that a cut may leave.
    fn look_at_maps(&mut self) {
        let mapped: Vec<Id> = self.mapped.iter().copied().collect();
        mapped.into_iter().for_each(|id| self.look_at(id));
    }

    /// The same for one object.
    pub(super) fn look_at(&mut self, id: Id) {
        let Some(i) = self.table.find_mut(id).filter(|i| i.data.is_mapped() && i.live.is_some()) else {
            self.mapped.remove(&id);
            return;
        };
        let cost = i.data.cost();
        if i.data.look() {
            self.pages_used = self.pages_used + i.data.cost() - cost;
            self.table.soil(id);
        }
    }

    fn keep_content(&mut self, id: Id) {
        let remember = self.faults.rates.stale_read > 0.0;
        if let Some(i) = self.table.find_mut(id) {
            i.data.keep(remember);
        }
    }

    fn keep_times(&mut self, id: Id) {
        let Some(i) = self.table.find_mut(id) else { return };
        if let (Some(kept), Some((mtime, ctime))) = (&mut i.kept, i.lazy.take()) {
            (kept.meta.mtime, kept.meta.ctime) = (mtime, kept.meta.ctime.max(ctime));
        }
    }

    /// Takes an object off the list when nothing of it is unkept.
    fn clean(&mut self, id: Id) {
        let Some(i) = self.table.find_mut(id) else { return };
        if i.lazy.is_none() && !i.data.is_dirty() {
            i.dirty = false;
            self.table.dirty.remove(&id);
        }
    }

    fn lose(&mut self, id: Id) {
        let mut rng = self.faults.rng;
        if let Some(i) = self.table.find_mut(id) {
            i.data.lose(&mut rng);
        }
        self.faults.rng = rng;
    }

    /// The power goes: all descriptions die, and the disk becomes one of the states that its platter may be in.
    pub fn power_cut(&mut self, rng: &mut Rng, cut: &Cut) {
        self.look_at_maps();
        let all = |cut: &Cut| if cut.all_of_unsynced { Luck::All } else { Luck::Any };
        let luck = if cut.none_of_unsynced { Luck::None } else { all(cut) };
        let touched = self.cut_names(rng, luck, cut.unordered);
        // Whole disks that are old or new but for names are what really happens most, and what chance alone hardly gives.
        let luck = match luck {
            Luck::Any => *rng.pick(&[Luck::None, Luck::All, Luck::Any, Luck::Any, Luck::Any, Luck::Any]),
            fixed => fixed,
        };
        let dirty = std::mem::take(&mut self.table.dirty);
        for id in &dirty {
            self.cut_content(*id, rng, luck, cut.sectors);
        }
        self.opens.clear();
        self.mapped.clear();
        for id in touched.union(&dirty) {
            self.restore(*id);
        }
        for id in self.table.ids() {
            self.forget_unnamed(id);
        }
        self.recount();
    }

    /// Commits what survives of the operations; gives the objects of all others.
    fn cut_names(&mut self, rng: &mut Rng, luck: Luck, unordered: bool) -> BTreeSet<Id> {
        let waiting = std::mem::take(&mut self.log.waiting);
        let prefix = luck.draw(waiting.len() + 1, rng);
        let mut dropped = Dropped::default();
        let mut touched = BTreeSet::new();
        for (at, op) in waiting.iter().enumerate() {
            let lives = if unordered && luck == Luck::Any { dropped.survives(op, rng) } else { at < prefix };
            for c in &op.changes {
                touched.extend(c.ids());
                if lives {
                    self.apply(Side::Kept, c);
                }
            }
        }
        touched
    }

    fn cut_content(&mut self, id: Id, rng: &mut Rng, luck: Luck, sectors: bool) {
        let Some(i) = self.table.find_mut(id) else { return };
        i.dirty = false;
        let luck = match luck {
            Luck::Any => *rng.pick(&[Luck::None, Luck::All, Luck::Any, Luck::Any]),
            fixed => fixed,
        };
        i.data.cut(rng, luck, sectors);
        let lazy = i.lazy.take();
        if luck.draw(2, rng) == 1 {
            i.lazy = lazy;
            self.keep_times(id);
        }
    }

    /// What calls see is what was kept.
    fn restore(&mut self, id: Id) {
        if let Some(i) = self.table.find_mut(id) {
            i.live = i.kept.clone();
            i.lazy = None;
        }
    }

    fn forget_unnamed(&mut self, id: Id) {
        let Some(i) = self.table.find_mut(id) else { return };
        i.opens = 0;
        i.last_op = 0;
        if i.live.as_ref().is_none_or(|s| s.meta.nlink == 0) {
            self.table.forget(id);
        }
    }
}
