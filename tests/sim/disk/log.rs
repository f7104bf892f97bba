//! The log of changes to names and attributes: each is made to what calls see at once, and to the platter when it is
//! committed, by the same function, so that the two sides cannot come to differ but by what is not committed.

use super::inode::{Dir, Id, Meta, Name, State, Xattrs};
use super::{Disk, Rng, Stamp};
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

/// Operations that wait for a commit, at most; then the older half is committed, as a journal does when it is full.
const WAITING_MAX: usize = 1 << 15;

/// Which side of the objects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    Live,
    Kept,
}

/// One change of one object. An operation is some of them.
#[derive(Clone, Debug)]
pub enum Change {
    /// An object begins. A directory has its parent.
    Make {
        id: Id,
        meta: Box<Meta>,
        parent: Option<Id>,
    },
    /// A name is added or given to another object.
    Enter {
        dir: Id,
        name: Name,
        id: Id,
    },
    Leave {
        dir: Id,
        name: Name,
    },
    /// The links of an object change, of a directory by all when it is removed.
    Links {
        id: Id,
        by: i64,
    },
    /// A directory gains or loses a directory, and so a link.
    Subdirs {
        dir: Id,
        by: i64,
    },
    /// A directory's names changed.
    Touch {
        dir: Id,
        at: Stamp,
    },
    Mode {
        id: Id,
        mode: u32,
    },
    Owner {
        id: Id,
        uid: u32,
        gid: u32,
    },
    Times {
        id: Id,
        atime: Option<Stamp>,
        mtime: Option<Stamp>,
        ctime: Stamp,
    },
    Attributes {
        id: Id,
        xattrs: Option<Arc<Xattrs>>,
    },
    /// Nothing reaches the object any more.
    Gone {
        id: Id,
    },
    /// A directory got another parent: those are never reordered, or a directory could come to be below itself.
    Moved {
        id: Id,
    },
}

/// An operation, atomic on the platter.
#[derive(Clone, Debug)]
pub struct Op {
    pub number: u64,
    pub changes: Vec<Change>,
}

/// Operations since the last commit, in order.
#[derive(Default)]
pub struct Log {
    pub waiting: VecDeque<Op>,
    pub last: u64,
}

impl Change {
    /// The object that the change is bound to: changes of one object survive in order.
    fn object(&self) -> Option<Id> {
        match self {
            Change::Make { id, .. }
            | Change::Enter { id, .. }
            | Change::Links { id, .. }
            | Change::Mode { id, .. }
            | Change::Owner { id, .. }
            | Change::Times { id, .. }
            | Change::Attributes { id, .. }
            | Change::Gone { id }
            | Change::Moved { id } => Some(*id),
            Change::Leave { .. } | Change::Subdirs { .. } | Change::Touch { .. } => None,
        }
    }

    /// All objects that it mentions.
    pub fn ids(&self) -> impl Iterator<Item = Id> + use<> {
        self.object().into_iter().chain(self.place().0)
    }

    /// The directory that the change needs, and the name there that it changes.
    fn place(&self) -> (Option<Id>, Option<&Name>) {
        match self {
            Change::Enter { dir, name, .. } | Change::Leave { dir, name } => (Some(*dir), Some(name)),
            Change::Subdirs { dir, .. } | Change::Touch { dir, .. } => (Some(*dir), None),
            _ => (None, None),
        }
    }
}

impl Disk {
    /// Makes an operation: calls see it at once, the platter when it is committed.
    pub(super) fn change(&mut self, changes: Vec<Change>) {
        self.log.last += 1;
        let number = self.log.last;
        for c in &changes {
            for id in c.ids() {
                if let Some(i) = self.table.find_mut(id) {
                    i.last_op = number;
                }
            }
            self.apply(Side::Live, c);
        }
        self.log.waiting.push_back(Op { number, changes });
        if self.log.waiting.len() > WAITING_MAX {
            self.commit(number - WAITING_MAX as u64 / 2);
        }
    }

    /// Commits all operations up to `number`, in order.
    pub(super) fn commit(&mut self, number: u64) {
        while self.log.waiting.front().is_some_and(|op| op.number <= number) {
            if let Some(op) = self.log.waiting.pop_front() {
                op.changes.iter().for_each(|c| self.apply(Side::Kept, c));
            }
        }
    }

    fn side(&mut self, side: Side, id: Id) -> Option<&mut State> {
        let i = self.table.find_mut(id)?;
        match side {
            Side::Live => i.live.as_mut(),
            Side::Kept => i.kept.as_mut(),
        }
    }

    fn dir(&mut self, side: Side, id: Id) -> Option<&mut Dir> {
        self.side(side, id)?.dir.as_mut()
    }

    pub(super) fn apply(&mut self, side: Side, change: &Change) {
        match change {
            Change::Make { id, meta, parent } => self.make(side, *id, meta, *parent),
            Change::Enter { dir, name, id } => {
                if let Some(d) = self.dir(side, *dir) {
                    d.enter(name, *id);
                }
                if let Some(s) = self.side(side, *id) {
                    s.home = Some((*dir, name.clone()));
                    if let Some(d) = &mut s.dir {
                        d.parent = *dir;
                    }
                }
            }
            Change::Leave { dir, name } => {
                if let Some(d) = self.dir(side, *dir) {
                    d.leave(name);
                }
            }
            Change::Links { id, by } | Change::Subdirs { dir: id, by } => {
                if let Some(s) = self.side(side, *id) {
                    s.meta.nlink = s.meta.nlink.saturating_add_signed(*by);
                }
            }
            Change::Gone { id } => self.gone(side, *id),
            Change::Moved { .. } => {}
            attributes => self.apply_attributes(side, attributes),
        }
    }

    fn apply_attributes(&mut self, side: Side, change: &Change) {
        let Some(id) = change.object().or(change.place().0) else { return };
        let Some(s) = self.side(side, id) else { return };
        let m = &mut s.meta;
        match change {
            Change::Touch { at, .. } => (m.mtime, m.ctime) = (*at, *at),
            Change::Mode { mode, .. } => m.mode = m.kind() | mode & 0o7777,
            Change::Owner { uid, gid, .. } => (m.uid, m.gid) = (*uid, *gid),
            Change::Attributes { xattrs, .. } => m.xattrs = xattrs.clone(),
            Change::Times { atime, mtime, ctime, .. } => {
                m.atime = atime.unwrap_or(m.atime);
                m.mtime = mtime.unwrap_or(m.mtime);
                m.ctime = *ctime;
                if let (Side::Live, Some(_), Some(i)) = (side, mtime, self.table.find_mut(id)) {
                    // What a write set before is overridden on both sides, by an operation of the log.
                    i.lazy = None;
                }
            }
            _ => {}
        }
    }

    fn make(&mut self, side: Side, id: Id, meta: &Meta, parent: Option<Id>) {
        let dir = parent.map(|parent| Dir { parent, ..Dir::default() });
        let state = Some(State { meta: meta.clone(), dir, home: None });
        let Some(i) = self.table.find_mut(id) else { return };
        match side {
            Side::Live => {
                i.live = state;
                self.table.count += 1;
            }
            Side::Kept => i.kept = state,
        }
    }

    fn gone(&mut self, side: Side, id: Id) {
        let Some(i) = self.table.find_mut(id) else { return };
        match side {
            Side::Live => {
                i.live = None;
                self.pages_used -= i.data.cost();
                self.table.count -= 1;
            }
            Side::Kept => self.table.forget(id),
        }
    }
}

/// What was dropped so far, when operations survive a cut in any order.
#[derive(Default)]
pub struct Dropped {
    objects: BTreeSet<Id>,
    entries: BTreeSet<(Id, Name)>,
    /// Directories that lost the operation that made them, or one of one of their names.
    made: BTreeSet<Id>,
    within: BTreeSet<Id>,
    moved: bool,
}

impl Dropped {
    /// Decides whether an operation survives; it cannot when one that it depends on did not.
    pub fn survives(&mut self, op: &Op, rng: &mut Rng) -> bool {
        let lives = !op.changes.iter().any(|c| self.needs(c)) && rng.coin();
        if !lives {
            op.changes.iter().for_each(|c| self.drop(c));
        }
        lives
    }

    fn needs(&self, change: &Change) -> bool {
        let (dir, name) = change.place();
        change.object().is_some_and(|id| self.objects.contains(&id))
            || dir.is_some_and(|d| self.made.contains(&d))
            || dir.zip(name).is_some_and(|(d, n)| self.entries.contains(&(d, n.clone())))
            || matches!(change, Change::Links { id, by } if *by < 0 && self.within.contains(id))
            || (self.moved && matches!(change, Change::Moved { .. }))
    }

    fn drop(&mut self, change: &Change) {
        self.objects.extend(change.object());
        if let (Some(dir), Some(name)) = change.place() {
            self.entries.insert((dir, name.clone()));
            self.within.insert(dir);
        }
        match change {
            Change::Make { id, .. } => drop(self.made.insert(*id)),
            Change::Moved { .. } => self.moved = true,
            _ => {}
        }
    }
}
