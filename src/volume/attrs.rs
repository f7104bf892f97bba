//! Attributes and extended attributes.

use super::caller::Caller;
use super::change::Change;
use super::image::Of;
use super::objects::{Object, Place};
use super::order::Mark;
use super::{Node, Volume};
use crate::base::sync::atomic::Ordering;
use crate::base::{Error, Result};
use crate::format::op::Op;
use crate::os::sys::{self, Stat};
use crate::os::times::{Stamp, set_times};
use crate::store::region::Region;
use std::os::fd::OwnedFd;

const CAPABILITY: &[u8] = b"security.capability";
const ACL_ACCESS: &[u8] = b"system.posix_acl_access";

/// What setattr changes.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size, bytes.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Stamp,
    /// Modification time.
    pub mtime: Stamp,
    /// It is the page cache's own, the time of what was written before: waited for by the fsync or close that follows.
    pub cached: bool,
}

impl SetAttr {
    fn has_attrs(&self) -> bool {
        self.mode.is_some()
            || self.uid.is_some()
            || self.gid.is_some()
            || self.atime != Stamp::Omit
            || self.mtime != Stamp::Omit
    }
}

impl Volume {
    /// The node's attributes; through an open file if one is given.
    pub fn getattr(&self, node: u64, fh: Option<u64>) -> Result<Node> {
        let obj = self.objects.get(node)?;
        if let Some(h) = fh.and_then(|fh| self.files.get(fh).ok())
            && h.obj.node == node
        {
            return Ok(Node::of(&obj, self.region().shown(sys::fstat(&*h.fd(self)?)?)));
        }
        Ok(Node::of(&obj, self.stat_object(&obj)?))
    }

    /// Changes attributes; returns them as they are then.
    pub fn setattr(&self, node: u64, fh: Option<u64>, set: &SetAttr, who: &Caller) -> Result<Node> {
        let obj = self.objects.get(node)?;
        if set.size.is_none() && !set.has_attrs() {
            return self.getattr(node, fh);
        }
        let handle = fh.and_then(|fh| self.files.get(fh).ok()).filter(|h| h.obj.node == node);
        let on = self.region();
        let path = match &handle {
            Some(h) => h.fd(self)?,
            None => self.path_fd(&obj)?,
        };
        let mut c = Change::new(self, &obj, on);
        if let Some(size) = set.size {
            // What counts as a modification comes with a time.
            let modifies = set.mtime != Stamp::Omit;
            match &handle {
                Some(h) if h.writable() => self.truncate(&mut c, &path, size, modifies, who)?,
                _ => {
                    let fd = self.open_object(&obj, libc::O_RDWR)?;
                    self.truncate(&mut c, &fd, size, modifies, who)?;
                }
            }
        }
        if set.has_attrs() {
            self.set_attrs(&mut c, &obj, &path, set)?;
        }
        match set.cached {
            true => c.finish_later()?,
            false => c.finish()?,
        }
        Ok(Node::of(&obj, self.region().shown(sys::fstat(&*path)?)))
    }

    fn set_attrs(&self, c: &mut Change<'_>, obj: &Object, fd: &OwnedFd, set: &SetAttr) -> Result<()> {
        c.begin(Mark::Attr, fd, Of::Attrs)?;
        let region = self.region();
        let before = region.wanted(sys::fstat(fd)?);
        let r = apply(&region, fd, set, &before);
        *obj.inherit.lock() = None;
        // Also what a call that failed half-way did is sent.
        let st = region.wanted(sys::fstat(fd)?);
        let owner = set.uid.is_some() || set.gid.is_some();
        let mode = set.mode.is_some() || owner || st.perm() != before.perm();
        if r.is_ok() || st.ctime != before.ctime {
            c.commit(
                Mark::Attr,
                &|at| Op::SetAttr {
                    at,
                    mode: (mode && !st.is_symlink()).then(|| st.perm()),
                    uid: set.uid.map(|_| st.uid),
                    gid: set.gid.map(|_| st.gid),
                    atime: (set.atime != Stamp::Omit).then_some(st.atime),
                    mtime: (set.mtime != Stamp::Omit).then_some(st.mtime),
                },
                &[],
            )?;
        }
        r
    }

    /// An extended attribute's value.
    pub fn getxattr(&self, node: u64, name: &[u8]) -> Result<Vec<u8>> {
        let obj = self.objects.get(node)?;
        if name == CAPABILITY && obj.plain.load(Ordering::Acquire) {
            return Err(Error::os(libc::ENODATA));
        }
        self.region().xattr(&*self.path_fd(&obj)?, name)
    }

    /// Names of the extended attributes.
    pub fn listxattr(&self, node: u64) -> Result<Vec<Vec<u8>>> {
        let obj = self.objects.get(node)?;
        self.region().xattr_names(&*self.path_fd(&obj)?)
    }

    /// Sets an extended attribute or ACL, with `XATTR_CREATE` or `XATTR_REPLACE`.
    pub fn setxattr(&self, node: u64, name: &[u8], value: &[u8], flags: i32, who: &Caller) -> Result<()> {
        let obj = self.objects.get(node)?;
        let on = self.region();
        let fd = self.path_fd(&obj)?;
        obj.plain.store(false, Ordering::Release);
        let mut c = Change::new(self, &obj, on);
        c.begin(Mark::Attr, &fd, Of::Xattr(name))?;
        let region = self.region();
        let before = region.wanted(sys::fstat(&*fd)?);
        sys::setxattr(&*fd, b"", name, value, flags)?;
        if region.keeps() {
            region.set_xattr(&fd, b"", name, value)?;
        }
        *obj.inherit.lock() = None;
        let make = |at| Op::SetXattr { at, name: name.to_vec(), value: value.to_vec() };
        c.commit(Mark::Attr, &make, &[])?;
        if name == ACL_ACCESS {
            self.mode_after_acl(&mut c, &fd, &before, who)?;
        }
        c.finish()
    }

    /// An access ACL sets the mode as well, and takes setgid from a file whose group the caller is not in.
    fn mode_after_acl(&self, c: &mut Change<'_>, fd: &OwnedFd, before: &Stat, who: &Caller) -> Result<()> {
        let region = self.region();
        let mut st = region.wanted(sys::fstat(fd)?);
        if st.perm() & 0o2000 != 0 && !who.in_group(st.gid) {
            region.set_attrs(fd, b"", Some(st.perm() & !0o2000), None, None)?;
            st = region.wanted(sys::fstat(fd)?);
        }
        let changed = st.perm() != before.perm() || st.perm() & 0o6000 != 0;
        c.commit_mode(changed.then(|| st.perm()))
    }

    /// Removes an extended attribute or ACL.
    pub fn removexattr(&self, node: u64, name: &[u8]) -> Result<()> {
        let obj = self.objects.get(node)?;
        let on = self.region();
        let fd = self.path_fd(&obj)?;
        let mut c = Change::new(self, &obj, on);
        c.begin(Mark::Attr, &fd, Of::Xattr(name))?;
        let region = self.region();
        // An attribute that is only kept beside is not in the tree.
        match sys::removexattr(&*fd, b"", name) {
            Err(e) if !region.has_kept_xattr(&fd, name)? => return Err(e.into()),
            _ if region.keeps() => region.remove_xattr(&fd, b"", name)?,
            _ => {}
        }
        *obj.inherit.lock() = None;
        c.commit(Mark::Attr, &|at| Op::RemoveXattr { at, name: name.to_vec() }, &[])?;
        c.finish()
    }

    /// True while the object has a name.
    pub fn has_name(&self, node: u64) -> Result<bool> {
        Ok(self.objects.get(node)?.place() != Place::Gone)
    }
}

/// The system calls of setattr, in the order in which a chown's loss of setuid is made good by an explicit mode.
fn apply(region: &Region, fd: &OwnedFd, set: &SetAttr, before: &Stat) -> Result<()> {
    let owner = set.uid.is_some() || set.gid.is_some();
    if owner {
        sys::chownat(fd, b"", set.uid, set.gid)?;
    }
    match set.mode {
        _ if region.keeps() && (owner || set.mode.is_some()) => {
            region.set_attrs(fd, b"", Some(mode_beside(set, before)), set.uid, set.gid)?;
        }
        Some(mode) => sys::chmod_fd(fd, mode & 0o7777)?,
        None => {}
    }
    if set.atime != Stamp::Omit || set.mtime != Stamp::Omit {
        set_times(fd, set.atime, set.mtime)?;
    }
    Ok(())
}

/// The mode after setattr where owner and mode may be kept beside. Nobody but its owner may make a file setuid, so
/// one whose owner is kept has that bit only if it had it before.
fn mode_beside(set: &SetAttr, before: &Stat) -> u32 {
    let has = before.perm();
    let (own_uid, own_gid) = sys::ids();
    let file = !before.is_dir();
    let foreign = |now: u32, own: u32, bit: u32| if file && own != 0 && now != own { bit & !has } else { 0 };
    let drop = foreign(set.uid.unwrap_or(before.uid), own_uid, 0o4000)
        | foreign(set.gid.unwrap_or(before.gid), own_gid, 0o2000);
    match set.mode {
        Some(mode) => mode & 0o7777 & !drop,
        // chown(2) takes setuid, and setgid where it means "runs as the group".
        None if file && has & 0o010 != 0 => has & !0o6000,
        None if file => has & !0o4000,
        None => has,
    }
}
