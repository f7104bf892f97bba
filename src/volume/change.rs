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
    _guard: MutexGuard<'a, ()>,
    last: Option<Seq>,
    named: bool,
    begun: Begun<'a>,
}

/// Whether the order counts on a commit. A change that fails in between takes that back, whichever way it ends.
struct Begun<'a> {
    v: &'a Volume,
    yes: bool,
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if self.yes {
            self.v.order.cancel();
        }
    }
}

impl<'a> Change<'a> {
    /// Takes the object's lock.
    pub fn new(v: &'a Volume, obj: &'a Object) -> Change<'a> {
        Change { v, obj, _guard: obj.content.lock(), last: None, named: true, begun: Begun { v, yes: false } }
    }

    /// Marks the journal; nothing may be changed before. On error nothing must be changed at all.
    pub fn begin(&mut self, mark: Mark) -> Result<()> {
        self.named = self.v.order.begin(self.v.vol, &|| self.obj.target(), mark)?;
        self.begun.yes |= self.named;
        Ok(())
    }

    /// Gives what was changed its place in the order. An object without a name: nothing to do.
    pub fn commit(&mut self, mark: Mark, make: &dyn Fn(Target) -> Op, data: &[u8]) -> Result<()> {
        if self.named {
            self.begun.yes = false;
            let seq = self.v.order.commit(self.v.vol, &|| self.obj.target(), mark, make, data)?;
            self.last = seq.or(self.last);
        }
        Ok(())
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

    /// Sends a mode that [`Change::strip`] found.
    pub fn commit_mode(&mut self, mode: Option<u32>) -> Result<()> {
        if mode.is_none() {
            return Ok(());
        }
        let make = |at| Op::SetAttr { at, mode, uid: None, gid: None, atime: None, mtime: None };
        self.commit(Mark::Attr, &make, &[])
    }

    /// Releases the lock and waits for the sync site.
    pub fn finish(self) -> Result<()> {
        let (v, last) = (self.v, self.last);
        drop(self);
        match last {
            Some(seq) => v.order.wait(seq),
            None => Ok(()),
        }
    }
}

/// The name in a target that is no directory. For a directory: a name that every check refuses.
pub(super) fn file_name(t: Target) -> Name {
    match t {
        Target::File(n) => n,
        Target::Dir(_) => Name::new(DirId(0), Vec::new()),
    }
}
