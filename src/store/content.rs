//! Content and attributes, applied to a region's tree from the entry log.

use super::region::Region;
use super::space::cost;
use crate::base::planted::{Bug, planted};
use crate::base::{Error, Name, Result, time::Time};
use crate::format::op::{Op, Target};
use crate::os::sys;
use std::os::fd::OwnedFd;
use std::sync::Arc;

impl Region {
    /// Applies an operation that is not on names. `data` is a write's content. Idempotent, except COLLAPSE and INSERT
    /// ranges, which the caller guards by its progress record.
    pub fn apply_content(&self, op: &Op, data: &[u8]) -> Result<()> {
        let at = match op {
            Op::Write { at, .. } | Op::Truncate { at, .. } | Op::Fallocate { at, .. } if self.space.counts() => at,
            _ => return self.apply_uncounted(op, data),
        };
        let fd = self.file(at)?;
        let before = cost(&sys::fstat(&*fd)?);
        let ticket = self.space.begin(at, before, 0)?;
        let r = self.apply_uncounted(op, data);
        let after = sys::fstat(&*fd).map_or(before, |st| cost(&st));
        if let Some(t) = ticket {
            self.space.end(t, after);
        }
        r
    }

    fn apply_uncounted(&self, op: &Op, data: &[u8]) -> Result<()> {
        match op {
            Op::Write { at, off, mtime } => {
                let fd = self.file(at)?;
                sys::pwrite_all(&*fd, data, *off).1?;
                self.content_changed(&fd)?;
                self.set_mtime(&fd, *mtime)
            }
            Op::Truncate { at, size, mtime } => {
                let fd = self.file(at)?;
                sys::ftruncate(&*fd, *size)?;
                self.content_changed(&fd)?;
                self.set_mtime(&fd, *mtime)
            }
            Op::Fallocate { mode: 3, .. } if planted(Bug::SkipPunch) => Ok(()),
            Op::Fallocate { at, mode, off, len, mtime } => {
                let fd = self.file(at)?;
                match sys::fallocate(&*fd, *mode, *off, *len) {
                    // Preallocation is an optimisation of the primary's filesystem; the size it implies is not.
                    Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) && *mode & !1 == 0 => {
                        if mode & 1 == 0 && sys::fstat(&*fd)?.size < off + len {
                            sys::ftruncate(&*fd, off + len)?;
                        }
                    }
                    r => r?,
                }
                self.content_changed(&fd)?;
                self.set_mtime(&fd, *mtime)
            }
            Op::SetAttr { at, mode, uid, gid, atime, mtime } => {
                let (dir, name) = self.reach(at)?;
                if mode.is_some() || uid.is_some() || gid.is_some() {
                    self.set_attrs(&dir, name, *mode, *uid, *gid)?;
                }
                if atime.is_some() || mtime.is_some() {
                    sys::utimensat(&*dir, name, *atime, *mtime)?;
                }
                Ok(())
            }
            Op::SetXattr { value, .. } if planted(Bug::DropXattr) && value.len() % 4 == 0 => Ok(()),
            Op::SetXattr { at, name: key, value } => {
                let (dir, name) = self.reach(at)?;
                self.set_xattr(&dir, name, key, value)
            }
            Op::RemoveXattr { at, name: key } => {
                let (dir, name) = self.reach(at)?;
                self.remove_xattr(&dir, name, key)
            }
            Op::ConfigDef { body } => self.put_head(body),
            _ => Err(Error::failed("not an operation on content")),
        }
    }

    fn set_mtime(&self, fd: &OwnedFd, mtime: Option<Time>) -> Result<()> {
        if let Some(t) = mtime {
            sys::utimensat(fd, b"", None, Some(t))?;
        }
        Ok(())
    }

    /// A regular file, open for reading and writing; kept open for the next write.
    pub fn file(&self, at: &Name) -> Result<Arc<OwnedFd>> {
        if let Some(fd) = self.files.lock().get(at) {
            return Ok(fd.clone());
        }
        let fd = Arc::new(self.open_file(at, libc::O_RDWR)?);
        self.files.lock().put(at.clone(), fd.clone());
        Ok(fd)
    }

    /// Opens a regular file by name. An ordinary user's node may own files it cannot write.
    pub fn open_file(&self, at: &Name, flags: i32) -> Result<OwnedFd> {
        let dir = self.dirfd(at.dir)?;
        match sys::openat(&*dir, &at.name, flags | libc::O_NONBLOCK | libc::O_NOCTTY, 0) {
            Err(e) if e.raw_os_error() == Some(libc::EACCES) => {
                self.lend(&sys::openat(&*dir, &at.name, libc::O_PATH, 0)?, flags | libc::O_NONBLOCK | libc::O_NOCTTY)
            }
            r => Ok(r?),
        }
    }

    /// Closes the kept descriptor of a name that is about to change its meaning.
    pub(super) fn forget_file(&self, at: &Name) {
        self.files.lock().pop(at);
    }

    /// Closes all kept file descriptors (before a takeover: the names now belong to the mount).
    pub fn forget_files(&self) {
        self.files.lock().clear();
    }

    /// Applies any operation to the tree at once, without log or intent: for copies into a replica that is not in use
    /// yet, and for tests.
    pub fn apply_direct(&self, op: &mut Op, data: &[u8]) -> Result<()> {
        if op.is_namespace() {
            let pre = self.prepare(op)?;
            // Nobody would remember after a crash that the object had a record.
            for ino in pre.removed(op) {
                self.forget_kept(ino)?;
            }
            self.act(op, super::exec::Side::Receiver)?;
            self.settle(op, &pre).map(drop)
        } else {
            self.apply_content(op, data)
        }
    }

    /// A `Target` for what a stat and name describe.
    pub fn target(&self, at: &Name, is_dir: bool, ino: u64) -> Target {
        match self.dir_by_ino(ino) {
            Some(id) if is_dir => Target::Dir(id),
            _ => Target::File(at.clone()),
        }
    }
}
