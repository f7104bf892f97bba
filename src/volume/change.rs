//! A change of content or attributes: object's lock, journal mark, local system call, place in the order, wait.

use super::caller::Caller;
use super::objects::Object;
use super::{Volume, order::Mark};
use crate::base::{DirId, Name, Result, Seq};
use crate::format::op::{Op, Target};
use crate::os::sys::{self, Stat};
use parking_lot::MutexGuard;
use std::os::fd::OwnedFd;

/// A change under way; the object's lock is held until [`Change::finish`].
pub(super) struct Change<'a> {
    v: &'a Volume,
    obj: &'a Object,
    guard: Option<MutexGuard<'a, ()>>,
    last: Option<Seq>,
    named: bool,
    /// Something was begun and not committed yet.
    begun: bool,
}

impl<'a> Change<'a> {
    /// Takes the object's lock.
    pub fn new(v: &'a Volume, obj: &'a Object) -> Change<'a> {
        Change { v, obj, guard: Some(obj.content.lock()), last: None, named: true, begun: false }
    }

    /// Marks the journal; nothing may be changed before. On error nothing must be changed at all.
    pub fn begin(&mut self, mark: Mark) -> Result<()> {
        self.named = self.v.order.begin(self.v.vol, &|| self.obj.target(), mark)?;
        self.begun |= self.named;
        Ok(())
    }

    /// Gives what was changed its place in the order. An object without a name: nothing to do.
    pub fn commit(&mut self, mark: Mark, make: &dyn Fn(Target) -> Op, data: &[u8]) -> Result<()> {
        if self.named {
            let seq = self.v.order.commit(self.v.vol, &|| self.obj.target(), mark, make, data)?;
            self.last = seq.or(self.last);
            self.begun = false;
        }
        Ok(())
    }

    /// Tells the order that what was begun did not happen.
    fn give_up(&mut self) {
        if std::mem::take(&mut self.begun) {
            self.v.order.cancel();
        }
    }

    /// After a change of content by `who` (`None`: by the page cache, whose rights were decided before): applies the
    /// rules for setuid and setgid on top of what the system call did. Returns the stat, and the mode to be sent if
    /// the file has or had such bits.
    pub fn strip(&self, fd: &OwnedFd, before: &Stat, who: Option<&Caller>) -> Result<(Stat, Option<u32>)> {
        let mut st = sys::fstat(fd)?;
        if before.mode & 0o6000 == 0 {
            return Ok((st, None));
        }
        let want = match who {
            Some(c) => c.strip(st.perm(), st.gid),
            None => before.perm(),
        };
        if want != st.perm() {
            sys::chmod_fd(fd, want)?;
            st = sys::fstat(fd)?;
        }
        Ok((st, Some(st.perm())))
    }

    /// After a call that failed and changed no content: it may have set the time, and taken setuid and setgid, before it
    /// found the disk full. Nobody else is told of that, so it is taken back.
    pub fn undo(&self, fd: &OwnedFd, before: &Stat) -> Result<()> {
        let now = sys::fstat(fd)?;
        if now.perm() != before.perm() {
            sys::chmod_fd(fd, before.perm())?;
        }
        if now.mtime != before.mtime {
            sys::utimensat(fd, b"", None, Some(before.mtime))?;
        }
        Ok(())
    }

    /// Sends a mode that [`Change::strip`] found.
    pub fn commit_mode(&mut self, mode: Option<u32>) -> Result<()> {
        if mode.is_none() {
            return Ok(());
        }
        let make = |at| Op::SetAttr { at, mode, uid: None, gid: None, atime: None, mtime: None };
        self.commit(Mark::Attr, &make, &[])
    }

    /// Releases the lock and waits for the sync site.
    pub fn finish(mut self) -> Result<()> {
        self.give_up();
        self.guard = None;
        match self.last {
            Some(seq) => self.v.order.wait(seq),
            None => Ok(()),
        }
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        self.give_up();
    }
}

/// The name in a target that is no directory. For a directory: a name that every check refuses.
pub(super) fn file_name(t: Target) -> Name {
    match t {
        Target::File(n) => n,
        Target::Dir(_) => Name::new(DirId(0), Vec::new()),
    }
}
