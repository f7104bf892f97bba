//! What a node may not set of an object is kept beside it (G5).
//!
//! An ordinary user's node cannot give files away, make devices or set privileged attributes. The tree then holds a safe
//! form, and the table of ids a record of what is wanted, by the object's inode number, so that a rename or a further
//! link needs nothing done. Peers are told of what is wanted ([`Region::wanted`]), the mount of what the node can stand
//! for ([`Region::shown`]).
//!
//! ```text
//! wanted = tree, with the record laid over it      record = what of wanted the tree does not have
//! ```
//! A new object always gets its own record or none, so that an inode number that is used again inherits nothing. The
//! record is written before the tree is changed.

use super::region::Region;
use crate::base::Result;
use crate::os::sys::{self, Stat};
use bincode::{Decode, Encode};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The attribute that gives a program privileges; a change of content or owner takes it away.
pub const CAPABILITY: &[u8] = b"security.capability";
const ACL_ACCESS: &[u8] = b"system.posix_acl_access";

/// What is wanted of an object and not in the tree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Kept {
    /// It is a device: type bits and device number; the tree holds an empty file.
    pub device: Option<(u32, u64)>,
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Extended attributes, sorted by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Kept {
    /// Nothing is kept.
    pub fn is_empty(&self) -> bool {
        *self == Kept::default()
    }

    fn between(want: &Stat, have: &Stat, xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Kept {
        let differ = |w: u32, h: u32| (w != h).then_some(w);
        let kind = want.mode & libc::S_IFMT;
        Kept {
            device: (kind != have.mode & libc::S_IFMT).then_some((kind, want.rdev)),
            mode: differ(want.perm(), have.perm()).filter(|_| !have.is_symlink()),
            uid: differ(want.uid, have.uid),
            gid: differ(want.gid, have.gid),
            xattrs,
        }
    }

    fn shown(&self, st: Stat) -> Stat {
        let (kind, rdev) = self.device.unwrap_or((st.mode & libc::S_IFMT, st.rdev));
        Stat { mode: kind | self.mode.unwrap_or(st.perm()), rdev, ..st }
    }

    fn wanted(&self, st: Stat) -> Stat {
        Stat { uid: self.uid.unwrap_or(st.uid), gid: self.gid.unwrap_or(st.gid), ..self.shown(st) }
    }
}

/// For people.
impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if let Some((fmt, rdev)) = self.device {
            let kind = if fmt == libc::S_IFCHR { "character" } else { "block" };
            parts.push(format!("{kind} device {}:{}", libc::major(rdev), libc::minor(rdev)));
        }
        parts.extend(self.uid.map(|u| format!("user {u}")));
        parts.extend(self.gid.map(|g| format!("group {g}")));
        parts.extend(self.mode.map(|m| format!("mode {m:o}")));
        parts.extend(self.xattrs.iter().map(|(k, _)| format!("attribute {}", String::from_utf8_lossy(k))));
        f.write_str(&parts.join(", "))
    }
}

/// The records by inode number; equal ones share their memory.
#[derive(Default)]
pub struct KeptTable {
    by_ino: HashMap<u64, Arc<Kept>>,
    pool: HashSet<Arc<Kept>>,
}

impl KeptTable {
    /// What is kept of an object.
    pub fn get(&self, ino: u64) -> Option<&Arc<Kept>> {
        self.by_ino.get(&ino)
    }

    /// Number of objects of which something is kept.
    pub fn len(&self) -> usize {
        self.by_ino.len()
    }

    /// Nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.by_ino.is_empty()
    }

    /// All records.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Kept)> {
        self.by_ino.iter().map(|(i, k)| (*i, &**k))
    }

    pub(super) fn set(&mut self, ino: u64, kept: Kept) {
        let shared = self.pool.get(&kept).cloned().unwrap_or_else(|| Arc::new(kept));
        self.pool.insert(shared.clone());
        let old = self.by_ino.insert(ino, shared);
        self.let_go(old);
    }

    pub(super) fn remove(&mut self, ino: u64) {
        let old = self.by_ino.remove(&ino);
        self.let_go(old);
    }

    fn let_go(&mut self, old: Option<Arc<Kept>>) {
        // The pool's and this one.
        if let Some(old) = old.filter(|o| Arc::strong_count(o) == 2) {
            self.pool.remove(&old);
        }
    }
}

/// The form in which the tree holds what is wanted: open to the node itself, and nothing that would give somebody the
/// rights of another owner than it was meant for. A file of the node's own that is only not to be written stays so: it is
/// opened by [`Region::lend`].
fn safe_mode(want: &Stat, have: &Stat) -> u32 {
    if want.mode & libc::S_IFMT != have.mode & libc::S_IFMT {
        return 0o600;
    }
    if have.is_dir() {
        return want.perm() | 0o700;
    }
    let foreign = |w: u32, h: u32, bit: u32| if w == h { 0 } else { bit };
    let drop = foreign(want.uid, have.uid, 0o4000) | foreign(want.gid, have.gid, 0o2000);
    let open = have.is_file() && (want.uid != have.uid || want.perm() & 0o400 == 0);
    (want.perm() & !drop) | if open { 0o600 } else { 0 }
}

/// An access ACL with the entries that are the mode's taken from it, as the kernel keeps the two.
fn acl_of_mode(mut acl: Vec<u8>, mode: u32) -> Vec<u8> {
    let has_mask = acl_entries(&acl).any(|(_, tag, _)| tag == 0x10);
    let todo: Vec<(usize, u32)> = acl_entries(&acl)
        .filter_map(|(at, tag, _)| match tag {
            0x01 => Some((at, mode >> 6)),
            0x04 if !has_mask => Some((at, mode >> 3)),
            0x10 => Some((at, mode >> 3)),
            0x20 => Some((at, mode)),
            _ => None,
        })
        .collect();
    for (at, perm) in todo {
        if let Some(p) = acl.get_mut(at) {
            *p = (perm & 7) as u8;
        }
    }
    acl
}

/// The permission bits that an access ACL stands for, and whether it says more than they do.
fn mode_of_acl(acl: &[u8]) -> (u32, bool) {
    let entry = |t: u16| acl_entries(acl).find(|(_, tag, _)| *tag == t).map(|(_, _, p)| p);
    let group = entry(0x10).or(entry(0x04)).unwrap_or(0);
    let more = acl_entries(acl).any(|(_, tag, _)| matches!(tag, 0x02 | 0x08 | 0x10));
    (entry(0x01).unwrap_or(0) << 6 | group << 3 | entry(0x20).unwrap_or(0), more)
}

/// Entries of an ACL (version u32, then tag u16, perm u16, id u32 each): where the permissions are, tag, permissions.
fn acl_entries(acl: &[u8]) -> impl Iterator<Item = (usize, u16, u32)> + '_ {
    acl.get(4..).unwrap_or(&[]).chunks_exact(8).enumerate().map(|(i, e)| {
        let word = |a: usize| u16::from_le_bytes([e.get(a).copied().unwrap_or(0), e.get(a + 1).copied().unwrap_or(0)]);
        (4 + i * 8 + 2, word(0), u32::from(word(2)) & 7)
    })
}

/// A refusal for want of privilege, which alone must not stop the copy.
fn is_refusal(e: &std::io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::EOPNOTSUPP | libc::EINVAL))
}

/// True when it was done, false when it was refused for want of privilege.
fn allowed(r: std::io::Result<()>) -> Result<bool> {
    match r {
        Ok(()) => Ok(true),
        Err(e) if is_refusal(&e) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

fn stat(dir: &OwnedFd, name: &[u8]) -> Result<Stat> {
    Ok(if name.is_empty() { sys::fstat(dir)? } else { sys::statat(dir, name)? })
}

fn chmod(dir: &OwnedFd, name: &[u8], mode: u32) -> std::io::Result<()> {
    if name.is_empty() { sys::chmod_fd(dir, mode) } else { sys::chmodat(dir, name, mode) }
}

fn put(list: &mut Vec<(Vec<u8>, Vec<u8>)>, key: &[u8], value: Option<&[u8]>) {
    list.retain(|(k, _)| k != key);
    list.extend(value.map(|v| (key.to_vec(), v.to_vec())));
    list.sort();
}

/// Objects here are given by a directory's descriptor and a name in it, or with an empty name by their own descriptor.
impl Region {
    /// True when something of an object may be kept beside it here.
    pub fn keeps(&self) -> bool {
        self.limited || !self.ids.read().kept().is_empty()
    }

    /// What is kept of an object.
    pub fn kept(&self, ino: u64) -> Option<Arc<Kept>> {
        self.ids.read().kept().get(ino).cloned()
    }

    /// The stat of an object as all sites are to have it.
    pub fn wanted(&self, st: Stat) -> Stat {
        self.kept(st.ino).map_or(st, |k| k.wanted(st))
    }

    /// The stat of an object as this node's mount shows it: a device is one and the mode is the wanted one, but it
    /// belongs to whom it belongs to here.
    pub fn shown(&self, st: Stat) -> Stat {
        self.kept(st.ino).map_or(st, |k| k.shown(st))
    }

    /// All extended attributes that are copied, as all sites are to have them, sorted by name.
    pub fn xattrs(&self, dir: &OwnedFd, name: &[u8]) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut out = Vec::new();
        let names = match sys::listxattr(dir, name) {
            Ok(n) => n,
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Vec::new(),
            Err(e) => return Err(e.into()),
        };
        for k in names {
            if k == b"security.selinux" {
                continue;
            }
            if let Ok(v) = sys::getxattr(dir, name, &k) {
                out.push((k, v));
            }
        }
        if self.keeps() {
            let st = stat(dir, name)?;
            if let Some(kept) = self.kept(st.ino) {
                for (k, v) in &kept.xattrs {
                    put(&mut out, k, Some(v));
                }
                let mode = kept.wanted(st).perm();
                for (_, v) in out.iter_mut().filter(|(k, _)| k == ACL_ACCESS) {
                    *v = acl_of_mode(std::mem::take(v), mode);
                }
            }
        }
        out.sort();
        Ok(out)
    }

    /// One extended attribute, as the mount shows it.
    pub fn xattr(&self, fd: &OwnedFd, key: &[u8]) -> Result<Vec<u8>> {
        let st = if self.keeps() { sys::fstat(fd)? } else { return Ok(sys::getxattr(fd, b"", key)?) };
        let Some(kept) = self.kept(st.ino) else { return Ok(sys::getxattr(fd, b"", key)?) };
        let v = match kept.xattrs.iter().find(|(k, _)| k == key) {
            Some((_, v)) => v.clone(),
            None => sys::getxattr(fd, b"", key)?,
        };
        Ok(if key == ACL_ACCESS { acl_of_mode(v, kept.wanted(st).perm()) } else { v })
    }

    /// Names of the extended attributes, as the mount shows them.
    pub fn xattr_names(&self, fd: &OwnedFd) -> Result<Vec<Vec<u8>>> {
        let mut names = sys::listxattr(fd, b"")?;
        if self.keeps()
            && let Some(kept) = self.kept(sys::fstat(fd)?.ino)
        {
            // Those that only a privileged program is shown are not.
            let more = kept.xattrs.iter().filter(|(k, _)| !k.starts_with(b"trusted.")).map(|(k, _)| k.clone());
            names.extend(more);
            names.sort();
            names.dedup();
        }
        Ok(names)
    }

    /// True when this attribute of an object is kept beside it.
    pub fn has_kept_xattr(&self, fd: &OwnedFd, key: &[u8]) -> Result<bool> {
        let kept = if self.keeps() { self.kept(sys::fstat(fd)?.ino) } else { None };
        Ok(kept.is_some_and(|kept| kept.xattrs.iter().any(|(k, _)| k == key)))
    }

    /// Gives an object mode, owner and group, as far as this node may; the rest is kept.
    pub fn set_attrs(
        &self,
        dir: &OwnedFd,
        name: &[u8],
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
    ) -> Result<()> {
        let owner = uid.is_some() || gid.is_some();
        if !self.keeps() {
            if owner {
                sys::chownat(dir, name, uid, gid)?;
            }
            return Ok(mode.map_or(Ok(()), |m| chmod(dir, name, m))?);
        }
        let _fitting = self.fitting.lock();
        let st = stat(dir, name)?;
        let old = self.kept(st.ino);
        let mut want = old.as_ref().map_or(st, |k| k.wanted(st));
        let mut xattrs = old.map_or_else(Vec::new, |k| k.xattrs.clone());
        want.mode = mode.map_or(want.mode, |m| (want.mode & libc::S_IFMT) | (m & 0o7777));
        (want.uid, want.gid) = (uid.unwrap_or(want.uid), gid.unwrap_or(want.gid));
        if owner {
            if !allowed(sys::chownat(dir, name, uid, gid))? && gid.is_some() {
                allowed(sys::chownat(dir, name, None, gid))?;
            }
            put(&mut xattrs, CAPABILITY, None);
        }
        self.fit(dir, name, &want, xattrs)
    }

    /// Sets an extended attribute or ACL, or keeps it.
    pub fn set_xattr(&self, dir: &OwnedFd, name: &[u8], key: &[u8], value: &[u8]) -> Result<()> {
        if !self.keeps() {
            return Ok(sys::setxattr(dir, name, key, value, 0)?);
        }
        let _fitting = self.fitting.lock();
        let mut done = allowed(self.while_writable(dir, name, || sys::setxattr(dir, name, key, value, 0))?)?;
        let st = stat(dir, name)?;
        let old = self.kept(st.ino);
        let mut want = old.as_ref().map_or(st, |k| k.wanted(st));
        if key == ACL_ACCESS {
            let (mode, more) = mode_of_acl(value);
            want.mode = (want.mode & !0o777) | mode;
            done |= !more;
        }
        let mut xattrs = old.map_or_else(Vec::new, |k| k.xattrs.clone());
        put(&mut xattrs, key, (!done).then_some(value));
        self.fit(dir, name, &want, xattrs)
    }

    /// Removes an extended attribute or ACL, if it is there.
    pub fn remove_xattr(&self, dir: &OwnedFd, name: &[u8], key: &[u8]) -> Result<()> {
        let gone = |r: std::io::Result<()>| match r {
            Err(e) if e.raw_os_error() == Some(libc::ENODATA) => Ok(()),
            Err(e) if self.keeps() && is_refusal(&e) => Ok(()),
            r => r,
        };
        if !self.keeps() {
            return Ok(gone(sys::removexattr(dir, name, key))?);
        }
        let _fitting = self.fitting.lock();
        gone(self.while_writable(dir, name, || sys::removexattr(dir, name, key))?)?;
        let st = stat(dir, name)?;
        if let Some(old) = self.kept(st.ino) {
            let mut xattrs = old.xattrs.clone();
            put(&mut xattrs, key, None);
            self.fit(dir, name, &old.wanted(st), xattrs)?;
        }
        Ok(())
    }

    /// Does what needs the permission to write; on a file or directory of the node's own that has none, with it for that
    /// moment. What is wanted is kept meanwhile, in case the node is killed, until [`Self::fit`] finds it there.
    fn while_writable(
        &self,
        dir: &OwnedFd,
        name: &[u8],
        act: impl Fn() -> std::io::Result<()>,
    ) -> Result<std::io::Result<()>> {
        let r = act();
        if r.as_ref().map_err(|e| e.raw_os_error()) != Err(Some(libc::EACCES)) {
            return Ok(r);
        }
        let st = stat(dir, name)?;
        if st.perm() & 0o200 != 0 || st.is_symlink() || st.uid != sys::ids().0 {
            return Ok(r);
        }
        let old = self.kept(st.ino).as_deref().cloned().unwrap_or_default();
        self.keep_beside(st.ino, Kept { mode: Some(self.wanted(st).perm()), ..old })?;
        chmod(dir, name, st.perm() | 0o200)?;
        let r = act();
        chmod(dir, name, st.perm())?;
        Ok(r)
    }

    /// After a change of content: a capability that is kept goes, as one in the tree does by itself.
    pub fn content_changed(&self, fd: &OwnedFd) -> Result<()> {
        if self.ids.read().kept().is_empty() {
            return Ok(());
        }
        let _fitting = self.fitting.lock();
        let ino = sys::fstat(fd)?.ino;
        if let Some(old) = self.kept(ino).filter(|k| k.xattrs.iter().any(|(k, _)| k == CAPABILITY)) {
            let mut new = Kept::clone(&old);
            put(&mut new.xattrs, CAPABILITY, None);
            self.keep_beside(ino, new)?;
        }
        Ok(())
    }

    /// Opens a file or directory whose mode keeps the node's own user out: the node lends itself the permission for the
    /// moment of the open. What is wanted is kept meanwhile, in case it is killed.
    pub fn lend(&self, fd: &OwnedFd, flags: i32) -> Result<OwnedFd> {
        let _fitting = self.fitting.lock();
        let st = sys::fstat(fd)?;
        let old = self.kept(st.ino);
        let meanwhile = Kept { mode: Some(self.wanted(st).perm()), ..old.as_deref().cloned().unwrap_or_default() };
        self.keep_beside(st.ino, meanwhile)?;
        sys::chmod_fd(fd, st.perm() | if st.is_dir() { 0o700 } else { 0o600 })?;
        let r = sys::reopen(fd, flags);
        sys::chmod_fd(fd, st.perm())?;
        self.keep_beside(st.ino, old.as_deref().cloned().unwrap_or_default())?;
        Ok(r?)
    }

    /// A new object: whatever the table has of its inode number is another one's. `want`: as it is to be.
    pub(super) fn fit_new(&self, dir: &OwnedFd, name: &[u8], want: &Stat) -> Result<()> {
        let _fitting = self.fitting.lock();
        self.fit(dir, name, want, Vec::new())
    }

    /// An object that was in the tree before kagami: made readable for the node itself.
    pub(super) fn fit_found(&self, dir: &OwnedFd, name: &[u8], st: &Stat) -> Result<()> {
        if self.limited && safe_mode(st, st) != st.perm() && !st.is_symlink() {
            self.fit(dir, name, st, Vec::new())?;
        }
        Ok(())
    }

    /// Gives the tree the safe form of what is wanted, and keeps the difference.
    fn fit(&self, dir: &OwnedFd, name: &[u8], want: &Stat, xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Result<()> {
        let have = stat(dir, name)?;
        let mode = if have.is_symlink() { have.perm() } else { safe_mode(want, &have) };
        let mut then = Stat { mode: (have.mode & libc::S_IFMT) | mode, ..have };
        let kept = Kept::between(want, &then, xattrs.clone());
        if !kept.is_empty() && !self.told.swap(true, Ordering::Relaxed) {
            log::info!(
                "{}: this node may not set every owner, mode, device and attribute here; what it may not is kept beside and told to the other sites (`kagami status` counts it)",
                self.path.display()
            );
        }
        self.keep_beside(have.ino, kept)?;
        // Also when the bits are right: an ACL of the tree and its mode go together.
        if mode != have.perm() {
            allowed(chmod(dir, name, mode))?;
            let now = stat(dir, name)?;
            if now.perm() != mode {
                then.mode = now.mode;
                self.keep_beside(now.ino, Kept::between(want, &then, xattrs))?;
            }
        }
        Ok(())
    }

    fn keep_beside(&self, ino: u64, kept: Kept) -> Result<()> {
        if self.ids.read().kept().get(ino).map_or(kept.is_empty(), |old| **old == kept) {
            return Ok(());
        }
        self.ids.write().set_kept(ino, kept)
    }

    /// Before an object is removed outside of the order: its record goes first.
    pub fn forget_kept(&self, ino: u64) -> Result<()> {
        self.keep_beside(ino, Kept::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(user: u8, named: Option<u8>, group: u8, mask: Option<u8>, other: u8) -> Vec<u8> {
        let mut out = vec![2, 0, 0, 0];
        let mut entry = |tag: u8, perm: u8, id: u32| {
            out.extend([tag, 0, perm, 0]);
            out.extend(id.to_le_bytes());
        };
        entry(1, user, u32::MAX);
        named.into_iter().for_each(|p| entry(2, p, 1000));
        entry(4, group, u32::MAX);
        mask.into_iter().for_each(|p| entry(0x10, p, u32::MAX));
        entry(0x20, other, u32::MAX);
        out
    }

    fn st(mode: u32, uid: u32, gid: u32) -> Stat {
        let t = crate::base::time::Time::default();
        let (dev, ino, nlink, rdev, size, blocks, blksize) = (1, 2, 1, 0, 0, 0, 4096);
        Stat { dev, ino, mode, nlink, uid, gid, rdev, size, blocks, blksize, atime: t, mtime: t, ctime: t }
    }

    #[test]
    fn an_acl_and_its_mode_go_together() {
        assert_eq!(mode_of_acl(&acl(6, Some(7), 4, Some(5), 1)), (0o651, true));
        assert_eq!(mode_of_acl(&acl(6, None, 4, None, 1)), (0o641, false));
        assert_eq!(acl_of_mode(acl(6, Some(7), 4, Some(5), 1), 0o4072), acl(0, Some(7), 4, Some(7), 2));
        assert_eq!(acl_of_mode(acl(6, None, 4, None, 1), 0o72), acl(0, None, 7, None, 2));
        // Nonsense is left as it is.
        assert_eq!(acl_of_mode(vec![2, 0, 0], 0o777), vec![2, 0, 0]);
    }

    #[test]
    fn the_safe_form_is_open_to_the_node_and_gives_no_rights_away() {
        let (file, dir) = (libc::S_IFREG, libc::S_IFDIR);
        let own = st(file, 1000, 1000);
        for (want, safe) in [
            (st(file | 0o4755, 1000, 1000), 0o4755),
            (st(file | 0o6755, 0, 0), 0o755),
            (st(file | 0o6755, 1000, 0), 0o4755),
            (st(file, 1000, 1000), 0o600),
            (st(file | 0o444, 1000, 1000), 0o444),
            (st(file | 0o444, 0, 1000), 0o644),
            (st(libc::S_IFCHR | 0o4666, 1000, 1000), 0o600),
        ] {
            assert_eq!(safe_mode(&want, &own), safe, "{:o}", want.mode);
        }
        assert_eq!(safe_mode(&st(dir | 0o3055, 0, 0), &st(dir, 1000, 1000)), 0o3755);
        assert_eq!(safe_mode(&st(libc::S_IFIFO, 0, 0), &st(libc::S_IFIFO, 1000, 1000)), 0);
    }

    #[test]
    fn what_is_kept_laid_over_the_tree_is_what_was_wanted() {
        let have = st(libc::S_IFREG | 0o600, 1000, 1000);
        let want = Stat { rdev: 77, ..st(libc::S_IFBLK | 0o4660, 0, 6) };
        let kept = Kept::between(&want, &have, vec![(b"trusted.a".to_vec(), vec![1])]);
        assert_eq!(kept.wanted(have), want);
        assert_eq!(kept.shown(have), Stat { uid: 1000, gid: 1000, ..want });
        let said = kept.to_string();
        assert_eq!(said, "block device 0:77, user 0, group 6, mode 4660, attribute trusted.a");
        assert!(Kept::between(&have, &have, Vec::new()).is_empty());
        // A symlink has no mode of its own.
        let (a, b) = (st(libc::S_IFLNK | 0o700, 0, 0), st(libc::S_IFLNK | 0o777, 0, 0));
        assert!(Kept::between(&a, &b, Vec::new()).is_empty());
    }

    #[test]
    fn equal_records_share_their_memory_and_give_it_back() {
        let mut t = KeptTable::default();
        let root = Kept { uid: Some(0), ..Kept::default() };
        for ino in 0..1000 {
            t.set(ino, root.clone());
        }
        t.set(5, Kept { uid: Some(1), ..Kept::default() });
        assert_eq!((t.len(), t.pool.len()), (1000, 2));
        t.remove(5);
        assert_eq!((t.get(5), t.pool.len()), (None, 1));
        (0..1000).for_each(|ino| t.remove(ino));
        assert!(t.is_empty() && t.pool.is_empty());
    }
}
