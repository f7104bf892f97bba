//! Calls about attributes.

use super::inode::{Id, Xattrs};
use super::log::Change;
use super::{At, Attr, Disk, Res, Stamp};
use std::sync::Arc;

/// Bytes of an attribute's name and value, at most.
const XATTR_NAME_MAX: usize = 255;
const XATTR_VALUE_MAX: usize = 65_536;
/// What a write and a change of the owner take away.
const CAPABILITY: &[u8] = b"security.capability";

impl Disk {
    /// fstatat(2), statx(2).
    pub fn stat(&self, at: At, follow: bool) -> Res<Attr> {
        let id = self.find(at, follow)?;
        Ok(self.attr(id))
    }

    /// What stat(2) tells of an object.
    pub(super) fn attr(&self, id: Id) -> Attr {
        let i = self.table.get(id);
        let s = self.table.live(id);
        let (size, blocks) = match s.meta.kind() {
            libc::S_IFREG => (i.data.size(), i.data.cost() * 8),
            libc::S_IFDIR => (4096, 8),
            libc::S_IFLNK => (i.target.len() as u64, 0),
            _ => (0, 0),
        };
        let m = &s.meta;
        Attr {
            ino: i.number,
            mode: m.mode,
            nlink: m.nlink,
            uid: m.uid,
            gid: m.gid,
            rdev: m.rdev,
            size,
            blocks,
            atime: m.atime,
            mtime: m.mtime,
            ctime: m.ctime,
            btime: m.btime,
        }
    }

    fn ctime_now(&self, id: Id) -> Change {
        Change::Times { id, atime: None, mtime: None, ctime: self.now }
    }

    /// fchmodat(2); EOPNOTSUPP for a symlink itself.
    pub fn chmod(&mut self, at: At, follow: bool, mode: u32) -> Res<()> {
        let id = self.find(at, follow)?;
        if self.is_symlink(id) {
            return Err(libc::EOPNOTSUPP);
        }
        self.change(vec![Change::Mode { id, mode }, self.ctime_now(id)]);
        Ok(())
    }

    /// fchownat(2); `None` leaves an id. As for everybody, suid and the like of what is no directory go, also with nothing
    /// to change.
    pub fn chown(&mut self, at: At, follow: bool, uid: Option<u32>, gid: Option<u32>) -> Res<()> {
        let id = self.find(at, follow)?;
        self.drop_capability(id);
        let m = &self.table.live(id).meta;
        let (uid, gid) = (uid.unwrap_or(m.uid), gid.unwrap_or(m.gid));
        let mut mode = m.mode;
        if m.kind() != libc::S_IFDIR {
            mode &= !libc::S_ISUID;
            if mode & libc::S_IXGRP != 0 {
                mode &= !libc::S_ISGID;
            }
        }
        let changed = mode != m.mode;
        let mut changes = vec![Change::Owner { id, uid, gid }, self.ctime_now(id)];
        if changed {
            changes.push(Change::Mode { id, mode });
        }
        self.change(changes);
        Ok(())
    }

    /// utimensat(2); `None` leaves a time (UTIME_OMIT).
    pub fn utimens(&mut self, at: At, follow: bool, atime: Option<Stamp>, mtime: Option<Stamp>) -> Res<()> {
        if atime.is_none() && mtime.is_none() {
            return Ok(()); // The kernel does not even look for the path then.
        }
        let id = self.find(at, follow)?;
        self.change(vec![Change::Times { id, atime, mtime, ctime: self.now }]);
        Ok(())
    }

    fn xattrs(&self, id: Id) -> Option<&Xattrs> {
        self.table.live(id).meta.xattrs.as_deref()
    }

    fn set_xattrs(&mut self, id: Id, xattrs: Xattrs) {
        let xattrs = (!xattrs.is_empty()).then(|| Arc::new(xattrs));
        self.change(vec![Change::Attributes { id, xattrs }, self.ctime_now(id)]);
    }

    /// The object of a call about an attribute. `denied`: what the call says where the object cannot have it.
    fn with_xattr(&self, at: At, follow: bool, name: &[u8], denied: i32) -> Res<Id> {
        if name.is_empty() || name.len() > XATTR_NAME_MAX {
            return Err(libc::ERANGE);
        }
        let id = self.find(at, follow)?;
        let kind = self.table.live(id).meta.kind();
        let own = |prefix: &[u8]| name.starts_with(prefix);
        if own(b"user.") && !matches!(kind, libc::S_IFREG | libc::S_IFDIR) {
            return Err(denied);
        }
        if matches!(name, b"user." | b"trusted." | b"security.") {
            return Err(libc::EINVAL);
        }
        let acl = matches!(name, b"system.posix_acl_access" | b"system.posix_acl_default");
        if own(b"user.") || own(b"trusted.") || own(b"security.") || acl && kind != libc::S_IFLNK {
            return Ok(id);
        }
        Err(libc::EOPNOTSUPP)
    }

    /// getxattr(2): the value. ENODATA when there is none.
    pub fn getxattr(&self, at: At, follow: bool, name: &[u8]) -> Res<Vec<u8>> {
        let id = self.with_xattr(at, follow, name, libc::ENODATA)?;
        self.xattrs(id).and_then(|x| x.get(name)).cloned().ok_or(libc::ENODATA)
    }

    /// setxattr(2) with 0, XATTR_CREATE or XATTR_REPLACE.
    pub fn setxattr(&mut self, at: At, follow: bool, name: &[u8], value: &[u8], flags: i32) -> Res<()> {
        if flags & !(libc::XATTR_CREATE | libc::XATTR_REPLACE) != 0 {
            return Err(libc::EINVAL);
        }
        if value.len() > XATTR_VALUE_MAX {
            return Err(libc::E2BIG);
        }
        let id = self.with_xattr(at, follow, name, libc::EPERM)?;
        let mut all = self.xattrs(id).cloned().unwrap_or_default();
        match all.contains_key(name) {
            true if flags & libc::XATTR_CREATE != 0 => return Err(libc::EEXIST),
            false if flags & libc::XATTR_REPLACE != 0 => return Err(libc::ENODATA),
            _ => {}
        }
        all.insert(name.to_vec(), value.to_vec());
        self.set_xattrs(id, all);
        Ok(())
    }

    /// removexattr(2).
    pub fn removexattr(&mut self, at: At, follow: bool, name: &[u8]) -> Res<()> {
        let id = self.with_xattr(at, follow, name, libc::EPERM)?;
        let mut all = self.xattrs(id).cloned().unwrap_or_default();
        all.remove(name).ok_or(libc::ENODATA)?;
        self.set_xattrs(id, all);
        Ok(())
    }

    /// listxattr(2): the names.
    pub fn listxattr(&self, at: At, follow: bool) -> Res<Vec<Vec<u8>>> {
        let id = self.find(at, follow)?;
        Ok(self.xattrs(id).map(|x| x.keys().cloned().collect()).unwrap_or_default())
    }

    /// A program that is written or given away loses its capabilities.
    pub(super) fn drop_capability(&mut self, id: Id) {
        if let Some(all) = self.xattrs(id).filter(|x| x.contains_key(CAPABILITY)) {
            let mut all = all.clone();
            all.remove(CAPABILITY);
            self.set_xattrs(id, all);
        }
    }
}
