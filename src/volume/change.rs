//! A change of content or attributes: object's lock, journal mark, local system call, place in the order, wait.

use super::caller::Caller;
use super::image::{IMAGE_BYTES_MAX, Image, Of};
use super::objects::Object;
use super::{Volume, order::Mark};
use crate::base::planted::{Bug, planted};
use crate::base::sync::MutexGuard;
use crate::base::sync::atomic::Ordering;
use crate::base::{DirId, Error, Name, Result, Seq};
use crate::format::op::{Op, Target};
use crate::os::sys::{self, Stat};
use crate::store::region::Region;
use crate::store::space::{self, Ticket};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// A change under way; the object's lock is held until [`Change::finish`].
pub(super) struct Change<'a> {
    v: &'a Volume,
    obj: &'a Object,
    /// What was in use before the descriptor was opened that is changed through.
    on: Arc<Region>,
    guard: Option<MutexGuard<'a, ()>>,
    last: Option<Seq>,
    named: bool,
    /// What the change may add to the volume, and where that is counted.
    charge: Option<(Arc<Region>, Ticket)>,
    /// Something was begun and not committed yet.
    begun: bool,
    /// What the change replaced, where it may have to be undone.
    images: Vec<(OwnedFd, Image)>,
}

impl<'a> Change<'a> {
    /// Takes the object's lock. `on`: the region in use, asked for before the descriptor that the change goes through.
    pub fn new(v: &'a Volume, obj: &'a Object, on: Arc<Region>) -> Change<'a> {
        let guard = Some(obj.content.lock());
        Change { v, obj, on, guard, last: None, named: true, charge: None, begun: false, images: Vec::new() }
    }

    /// Marks the journal; nothing may be changed before. On error nothing must be changed at all. `of`: what is to be
    /// replaced through `fd`.
    pub fn begin(&mut self, mark: Mark, fd: &OwnedFd, of: Of<'_>) -> Result<()> {
        self.named = self.v.order.begin((self.v.vol, &*self.on), &|| self.obj.target(), mark)?;
        self.begun |= self.named;
        if self.named && self.v.order.undoes() {
            let image = Image::take(&self.v.region(), fd, of)?;
            self.images.push((fd.try_clone()?, image));
        }
        Ok(())
    }

    /// Before the content of `from..to` is written: room for what that may add to the volume (CD-1). An object without a
    /// name takes none.
    ///
    /// # Errors
    /// ENOSPC at the capacity; nothing may be changed then.
    pub fn charge(&mut self, fd: &OwnedFd, before: &Stat, from: u64, to: u64) -> Result<()> {
        let region = self.v.region();
        if !region.space.counts() {
            return Ok(());
        }
        let grow = space::growth(before, from, to);
        if grow == 0 && from < to {
            return Ok(());
        }
        let Some(Target::File(at)) = self.obj.target() else { return Ok(()) };
        let cost = space::cost(before);
        let ticket = match region.space.begin(&at, cost, grow) {
            // It may be that there is data already in a file with holes.
            Err(_) if space::holes(fd, from, to) < grow => region.space.begin(&at, cost, space::holes(fd, from, to)),
            r => r,
        };
        self.charge = ticket?.map(|t| (region, t));
        Ok(())
    }

    /// After the content was changed, or not.
    pub fn settle(&mut self, after: &Stat) {
        if let Some((region, ticket)) = self.charge.take() {
            region.space.end(ticket, space::cost(after));
        }
    }

    /// Gives what was changed its place in the order. An object without a name: nothing to do.
    pub fn commit(&mut self, mark: Mark, make: &dyn Fn(Target) -> Op, data: &[u8]) -> Result<()> {
        if planted(Bug::UnlockTooEarly) {
            self.guard = None;
        }
        if self.named {
            let seq = self.v.order.commit(self.v.vol, &|| self.obj.target(), mark, make, data)?;
            self.last = seq.or(self.last);
            self.begun = false;
        }
        Ok(())
    }

    /// Tells the order that what was begun did not happen.
    fn give_up(&mut self) {
        if self.charge.is_some()
            && let Ok(st) = self.v.stat_object(self.obj)
        {
            self.settle(&st);
        }
        if std::mem::take(&mut self.begun) {
            self.v.order.cancel();
        }
    }

    /// The stat of what is changed, as all sites are to have it.
    pub fn stat(&self, fd: &OwnedFd) -> Result<Stat> {
        Ok(self.v.region().wanted(sys::fstat(fd)?))
    }

    /// After a change of content by `who` (`None`: by the page cache, whose rights were decided before): applies the
    /// rules for setuid and setgid on top of what the system call did. Returns the stat, and the mode to be sent if
    /// the file has or had such bits.
    pub fn strip(&self, fd: &OwnedFd, before: &Stat, who: Option<&Caller>) -> Result<(Stat, Option<u32>)> {
        let region = self.v.region();
        region.content_changed(fd)?;
        let mut st = self.stat(fd)?;
        if before.mode & 0o6000 == 0 {
            return Ok((st, None));
        }
        let want = match who {
            Some(c) => c.strip(st.perm(), st.gid),
            None => before.perm(),
        };
        if want != st.perm() {
            region.set_attrs(fd, b"", Some(want), None, None)?;
            st = self.stat(fd)?;
        }
        Ok((st, Some(st.perm())))
    }

    /// After a call that failed and changed no content: it may have set the time, and taken setuid and setgid, before it
    /// found the disk full. Nobody else is told of that, so it is taken back.
    pub fn undo(&self, fd: &OwnedFd, before: &Stat) -> Result<()> {
        let now = self.stat(fd)?;
        if now.perm() != before.perm() {
            self.v.region().set_attrs(fd, b"", Some(before.perm()), None, None)?;
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

    /// Releases the lock and waits for the sync site. What the fence refuses is undone.
    pub fn finish(mut self) -> Result<()> {
        self.give_up();
        self.guard = None;
        match self.last {
            Some(seq) => self.v.order.answer(seq, &mut || self.v.put_back(self.obj, &self.images)),
            None => Ok(()),
        }
    }

    /// As [`Change::finish`] for what the page cache wrote, which nobody was promised yet: it is [`Volume::flush`] or the
    /// barrier of an fsync that waits, where the order allows that.
    pub fn finish_later(mut self) -> Result<()> {
        if !self.v.order.defers() {
            return self.finish();
        }
        self.give_up();
        let Some(seq) = self.last else { return Ok(()) };
        // Under the lock still: a close that comes later sees it.
        self.obj.owed.fetch_max(seq.0, Ordering::AcqRel);
        self.v.deferred.fetch_max(seq.0, Ordering::AcqRel);
        self.guard = None;
        self.v.order.pace(seq)
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        self.give_up();
        self.v.order.leave();
    }
}

impl Volume {
    /// Puts back what a change replaced, the latest first.
    fn put_back(&self, obj: &Object, images: &[(OwnedFd, Image)]) -> Result<()> {
        if images.iter().any(|(_, i)| i.is_short()) {
            return Err(Error::failed(format!("it replaced more than {} MiB", IMAGE_BYTES_MAX >> 20)));
        }
        let region = self.region();
        for (fd, image) in images.iter().rev() {
            let now = region.wanted(sys::fstat(fd)?);
            let marks = image.marks(&now);
            self.order.put_back(self.vol, &|| obj.target(), &marks, &mut |at| {
                let ticket = match at {
                    Some(Target::File(n)) => region.space.begin(n, space::cost(&now), 0).ok().flatten(),
                    _ => None,
                };
                let (mut told, mut r) = (Vec::new(), Ok(()));
                for step in image.steps(&now) {
                    r = step.act(&region, fd);
                    if r.is_err() {
                        break;
                    }
                    told.extend(at.map(|at| step.entry(at)));
                }
                if let Some(t) = ticket {
                    region.space.end(t, sys::fstat(fd).map_or(0, |st| space::cost(&st)));
                }
                (told, r)
            })?;
        }
        *obj.inherit.lock() = None;
        Ok(())
    }
}

/// The name in a target that is no directory. For a directory: a name that every check refuses.
pub(super) fn file_name(t: Target) -> Name {
    match t {
        Target::File(n) => n,
        Target::Dir(_) => Name::new(DirId(0), Vec::new()),
    }
}
