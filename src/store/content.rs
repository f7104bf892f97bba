//! Content and attributes, applied to a region's tree from the entry log.

use super::exec::may_lack_privilege;
use super::region::Region;
use crate::base::{Error, Name, Result, time::Time};
use crate::format::op::{Op, Target};
use crate::os::sys;
use std::os::fd::OwnedFd;
use std::sync::Arc;

impl Region {
    /// Applies an operation that is not on names. `data` is a write's content. Idempotent, except COLLAPSE and INSERT
    /// ranges, which the caller guards by its progress record.
    pub fn apply_content(&self, op: &Op, data: &[u8]) -> Result<()> {
        match op {
            Op::Write { at, off, mtime } => {
                let fd = self.file(at)?;
                sys::pwrite_all(&*fd, data, *off).1?;
                self.set_mtime(&fd, *mtime)
            }
            Op::Truncate { at, size, mtime } => {
                let fd = self.file(at)?;
                sys::ftruncate(&*fd, *size)?;
                self.set_mtime(&fd, *mtime)
            }
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
                self.set_mtime(&fd, *mtime)
            }
            Op::SetAttr { at, mode, uid, gid, atime, mtime } => {
                let (dir, name) = self.reach(at)?;
                if uid.is_some() || gid.is_some() {
                    may_lack_privilege(sys::chownat(&*dir, name, *uid, *gid))?;
                }
                if let Some(m) = mode {
                    if name.is_empty() { sys::chmod_fd(&*dir, *m)? } else { sys::chmodat(&*dir, name, *m)? }
                }
                if atime.is_some() || mtime.is_some() {
                    sys::utimensat(&*dir, name, *atime, *mtime)?;
                }
                Ok(())
            }
            Op::SetXattr { at, name: key, value } => {
                let (dir, name) = self.reach(at)?;
                may_lack_privilege(sys::setxattr(&*dir, name, key, value, 0))
            }
            Op::RemoveXattr { at, name: key } => {
                let (dir, name) = self.reach(at)?;
                match sys::removexattr(&*dir, name, key) {
                    Err(e) if e.raw_os_error() == Some(libc::ENODATA) => Ok(()),
                    r => may_lack_privilege(r),
                }
            }
            Op::Keep { at, kept } => self.keep(at, kept),
            Op::ConfigDef { body } => self.put_head(body),
            _ => Err(Error::failed("not an operation on content")),
        }
    }

    /// Copies a file's present content into the lost area. Done before anything of it is overwritten, so it may be
    /// repeated after a crash.
    fn keep(&self, at: &Name, kept: &[u8]) -> Result<()> {
        let from = self.file(at)?;
        let lost = self.dirfd(crate::base::DirId::LOST)?;
        let to = sys::openat(&*lost, kept, libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC, 0o600)?;
        let mut buf = vec![0u8; 1 << 20];
        let mut off = 0;
        loop {
            let n = sys::pread_full(&*from, &mut buf, off)?;
            if n == 0 {
                return Ok(());
            }
            sys::pwrite_all(&to, buf.get(..n).unwrap_or(&[]), off).1?;
            off += n as u64;
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

    /// Opens a regular file by name. An ordinary user's node may own files it cannot write: it lends itself the
    /// permission for the moment of the open.
    pub fn open_file(&self, at: &Name, flags: i32) -> Result<OwnedFd> {
        let dir = self.dirfd(at.dir)?;
        match sys::openat(&*dir, &at.name, flags | libc::O_NONBLOCK | libc::O_NOCTTY, 0) {
            Err(e) if e.raw_os_error() == Some(libc::EACCES) => {
                let st = sys::statat(&*dir, &at.name)?;
                sys::chmodat(&*dir, &at.name, st.perm() | 0o600)?;
                let r = sys::openat(&*dir, &at.name, flags | libc::O_NONBLOCK | libc::O_NOCTTY, 0);
                sys::chmodat(&*dir, &at.name, st.perm())?;
                Ok(r?)
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
