//! Calls that make, remove and move names.

use super::inode::{Id, Name, ROOT};
use super::log::Change;
use super::paths::{Follow, Found, Last, NAME_MAX, PATH_MAX};
use super::{At, Disk, OBJECT_BYTES, Res};
use std::sync::Arc;

/// Names that one object can have, as on ext4.
const LINKS_MAX: u64 = 65_000;

/// An existing name: its directory, itself, what it names, and whether a slash followed it.
struct There {
    dir: Id,
    name: Name,
    id: Option<Id>,
    slash: bool,
}

impl There {
    /// What is there; ENAMETOOLONG, ENOENT.
    fn found(&self) -> Res<Id> {
        self.fits().and(self.id.ok_or(libc::ENOENT))
    }

    fn fits(&self) -> Res<()> {
        if self.name.len() > NAME_MAX { Err(libc::ENAMETOOLONG) } else { Ok(()) }
    }
}

impl Disk {
    /// Adds an object without a name and without a state. ENOENT in a directory that was removed, ENOSPC.
    pub(super) fn new_object(&mut self, dir: Id, target: &[u8]) -> Res<Id> {
        if self.is_dead(dir) {
            return Err(libc::ENOENT);
        }
        if self.free_bytes() < OBJECT_BYTES {
            return Err(libc::ENOSPC);
        }
        Ok(self.table.add(Arc::from(target)))
    }

    /// Makes an object and its name.
    pub(super) fn make_object(&mut self, dir: Id, name: Name, mode: u32, rdev: u64, target: &[u8]) -> Res<Id> {
        let id = self.new_object(dir, target)?;
        let is_dir = mode & libc::S_IFMT == libc::S_IFDIR;
        let inherited = if is_dir { self.table.live(dir).meta.mode & libc::S_ISGID } else { 0 };
        let mut meta = self.new_meta(mode | inherited, self.group_in(dir), rdev);
        meta.nlink = if is_dir { 2 } else { 1 };
        let mut changes = vec![
            Change::Make { id, meta: Box::new(meta), parent: is_dir.then_some(dir) },
            Change::Enter { dir, name, id },
            Change::Touch { dir, at: self.now },
        ];
        if is_dir {
            changes.push(Change::Subdirs { dir, by: 1 });
        }
        self.change(changes);
        Ok(id)
    }

    /// The group of what is made in a directory.
    pub(super) fn group_in(&self, dir: Id) -> u32 {
        let m = &self.table.live(dir).meta;
        if m.mode & libc::S_ISGID != 0 { m.gid } else { 0 }
    }

    /// True for a directory that was removed and is still open.
    fn is_dead(&self, dir: Id) -> bool {
        self.table.live(dir).meta.nlink == 0
    }

    /// The place of a new name. EEXIST when it is taken; ENOENT for a trailing slash where no directory is to be made.
    fn vacant(&self, at: At, makes_dir: bool) -> Res<(Id, Name)> {
        match self.walk(at, Follow::Never, false)? {
            Found { id: Some(_), .. } => Err(libc::EEXIST),
            Found { last: Last::Name(name), .. } if name.len() > NAME_MAX => Err(libc::ENAMETOOLONG),
            Found { slash: true, .. } if !makes_dir => Err(libc::ENOENT),
            Found { dir, last: Last::Name(name), .. } => Ok((dir, Arc::from(name))),
            _ => Err(libc::EEXIST),
        }
    }

    /// mkdirat(2); `mode` with the umask applied.
    pub fn mkdir(&mut self, at: At, mode: u32) -> Res<()> {
        let (dir, name) = self.vacant(at, true)?;
        self.make_object(dir, name, libc::S_IFDIR | mode & 0o1777, 0, b"").map(drop)
    }

    /// mknodat(2); `mode` with the type.
    pub fn mknod(&mut self, at: At, mode: u32, rdev: u64) -> Res<()> {
        let kind = match mode & libc::S_IFMT {
            0 => libc::S_IFREG,
            libc::S_IFDIR => return Err(libc::EPERM),
            k @ (libc::S_IFREG | libc::S_IFCHR | libc::S_IFBLK | libc::S_IFIFO | libc::S_IFSOCK) => k,
            _ => return Err(libc::EINVAL),
        };
        let (dir, name) = self.vacant(at, false)?;
        let rdev = if matches!(kind, libc::S_IFCHR | libc::S_IFBLK) { rdev } else { 0 };
        self.make_object(dir, name, kind | mode & 0o7777, rdev, b"").map(drop)
    }

    /// symlinkat(2).
    pub fn symlink(&mut self, target: &[u8], at: At) -> Res<()> {
        if target.is_empty() {
            return Err(libc::ENOENT);
        }
        if target.len() >= PATH_MAX {
            return Err(libc::ENAMETOOLONG);
        }
        let (dir, name) = self.vacant(at, false)?;
        self.make_object(dir, name, libc::S_IFLNK | 0o777, 0, target).map(drop)
    }

    /// readlinkat(2).
    pub fn readlink(&self, at: At) -> Res<Vec<u8>> {
        let id = self.find(at, false)?;
        if !self.is_symlink(id) {
            let itself = matches!(at, At::Ofd(_, b""));
            return Err(if itself { libc::ENOENT } else { libc::EINVAL });
        }
        Ok(self.table.get(id).target.to_vec())
    }

    /// linkat(2); an empty path with an [`At::Ofd`] is that object (AT_EMPTY_PATH).
    pub fn link(&mut self, from: At, follow: bool, to: At) -> Res<()> {
        let id = self.find(from, follow)?;
        let (dir, name) = self.vacant(to, false)?;
        if self.is_dead(dir) {
            return Err(libc::ENOENT);
        }
        let i = self.table.get(id);
        let nlink = self.table.live(id).meta.nlink;
        if self.is_dir(id) {
            return Err(libc::EPERM);
        }
        // Only a file made by O_TMPFILE may get a first name; what lost its last stays without.
        let nameless = self.table.live(id).home.is_none();
        if nlink == 0 && !(i.linkable && nameless) {
            return Err(libc::ENOENT);
        }
        if nlink >= LINKS_MAX {
            return Err(libc::EMLINK);
        }
        let now = self.now;
        self.change(vec![
            Change::Enter { dir, name, id },
            Change::Links { id, by: 1 },
            Change::Times { id, atime: None, mtime: None, ctime: now },
            Change::Touch { dir, at: now },
        ]);
        Ok(())
    }

    fn there(&self, f: Found, not_a_name: impl Fn(Last) -> i32) -> Res<There> {
        match f.last {
            Last::Name(name) => Ok(There { dir: f.dir, name: Arc::from(name), id: f.id, slash: f.slash }),
            last => Err(not_a_name(last)),
        }
    }

    /// unlinkat(2) of anything but a directory.
    pub fn unlink(&mut self, at: At) -> Res<()> {
        let t = self.there(self.walk(at, Follow::Never, false)?, |_| libc::EISDIR)?;
        let id = t.found()?;
        if self.is_dir(id) {
            return Err(libc::EISDIR);
        }
        if t.slash {
            return Err(libc::ENOTDIR);
        }
        let mut changes = vec![Change::Leave { dir: t.dir, name: t.name }];
        self.unname(id, &mut changes);
        changes.push(Change::Touch { dir: t.dir, at: self.now });
        self.change(changes);
        self.drop_unreached(id);
        Ok(())
    }

    /// An object loses a name; a directory, which has but one, all its links.
    fn unname(&self, id: Id, changes: &mut Vec<Change>) {
        let nlink = self.table.live(id).meta.nlink;
        let by = if self.is_dir(id) { -(nlink as i64) } else { -1 };
        changes.push(Change::Links { id, by });
        changes.push(Change::Times { id, atime: None, mtime: None, ctime: self.now });
    }

    /// unlinkat(2) of an empty directory.
    pub fn rmdir(&mut self, at: At) -> Res<()> {
        let t = self.there(self.walk(at, Follow::Never, false)?, |last| match last {
            Last::Dot => libc::EINVAL,
            Last::DotDot => libc::ENOTEMPTY,
            _ => libc::EBUSY,
        })?;
        let id = t.found()?;
        if !self.is_dir(id) {
            return Err(libc::ENOTDIR);
        }
        if !self.is_empty(id) {
            return Err(libc::ENOTEMPTY);
        }
        let mut changes = vec![Change::Leave { dir: t.dir, name: t.name }];
        self.unname(id, &mut changes);
        changes.push(Change::Subdirs { dir: t.dir, by: -1 });
        changes.push(Change::Touch { dir: t.dir, at: self.now });
        self.change(changes);
        self.drop_unreached(id);
        Ok(())
    }

    fn is_empty(&self, id: Id) -> bool {
        self.table.live(id).dir.as_ref().is_none_or(|d| d.names.is_empty())
    }

    /// True when `above` is `below` or one of the directories that it is in.
    fn holds(&self, above: Id, below: Id) -> bool {
        let mut at = below;
        loop {
            if at == above {
                return true;
            }
            match &self.table.live(at).dir {
                Some(d) if at != ROOT => at = d.parent,
                _ => return false,
            }
        }
    }

    /// renameat2(2) with 0, RENAME_NOREPLACE or RENAME_EXCHANGE.
    pub fn rename(&mut self, from: At, to: At, flags: u32) -> Res<()> {
        let (keep, swap) = (flags & libc::RENAME_NOREPLACE != 0, flags & libc::RENAME_EXCHANGE != 0);
        if flags & !(libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE) != 0 || keep && swap {
            return Err(libc::EINVAL);
        }
        let (f, t) = (self.walk(from, Follow::Never, false)?, self.walk(to, Follow::Never, false)?);
        let f = self.there(f, |_| libc::EBUSY)?;
        let t = self.there(t, |_| if keep { libc::EEXIST } else { libc::EBUSY })?;
        let id = f.found()?;
        t.fits()?;
        if keep && t.id.is_some() {
            return Err(libc::EEXIST);
        }
        if swap {
            let other = t.id.ok_or(libc::ENOENT)?;
            if !self.is_dir(other) && t.slash {
                return Err(libc::ENOTDIR);
            }
        }
        if !self.is_dir(id) && (f.slash || !swap && t.slash) {
            return Err(libc::ENOTDIR);
        }
        if self.is_dir(id) && self.holds(id, t.dir) {
            return Err(libc::EINVAL);
        }
        if t.id.is_some_and(|other| self.is_dir(other) && self.holds(other, f.dir)) {
            return Err(if swap { libc::EINVAL } else { libc::ENOTEMPTY });
        }
        if t.id == Some(id) {
            return Ok(());
        }
        match t.id.filter(|_| swap) {
            Some(other) => self.exchange(&f, id, &t, other),
            None => self.rename_over(&f, id, &t)?,
        }
        Ok(())
    }

    fn exchange(&mut self, f: &There, id: Id, t: &There, other: Id) {
        let mut changes = vec![
            Change::Enter { dir: t.dir, name: t.name.clone(), id },
            Change::Enter { dir: f.dir, name: f.name.clone(), id: other },
        ];
        self.moved(id, f.dir, t.dir, &mut changes);
        self.moved(other, t.dir, f.dir, &mut changes);
        self.touch_both(f.dir, t.dir, &mut changes);
        self.count_sync("rename", id);
        self.change(changes);
    }

    fn rename_over(&mut self, f: &There, id: Id, t: &There) -> Res<()> {
        if self.is_dead(t.dir) {
            return Err(libc::ENOENT);
        }
        let mut changes = vec![
            Change::Leave { dir: f.dir, name: f.name.clone() },
            Change::Enter { dir: t.dir, name: t.name.clone(), id },
        ];
        self.moved(id, f.dir, t.dir, &mut changes);
        if let Some(old) = t.id {
            match (self.is_dir(id), self.is_dir(old)) {
                (true, false) => return Err(libc::ENOTDIR),
                (false, true) => return Err(libc::EISDIR),
                (true, true) if !self.is_empty(old) => return Err(libc::ENOTEMPTY),
                (true, true) => changes.push(Change::Subdirs { dir: t.dir, by: -1 }),
                (false, false) => {}
            }
            self.unname(old, &mut changes);
        }
        self.touch_both(f.dir, t.dir, &mut changes);
        self.count_sync("rename", id);
        self.change(changes);
        if let Some(old) = t.id {
            self.drop_unreached(old);
        }
        Ok(())
    }

    /// What a new place changes of an object itself and of the counts of directories.
    fn moved(&self, id: Id, from: Id, to: Id, changes: &mut Vec<Change>) {
        if from != to && self.is_dir(id) {
            changes.push(Change::Moved { id });
            changes.push(Change::Subdirs { dir: from, by: -1 });
            changes.push(Change::Subdirs { dir: to, by: 1 });
        }
        changes.push(Change::Times { id, atime: None, mtime: None, ctime: self.now });
    }

    fn touch_both(&self, a: Id, b: Id, changes: &mut Vec<Change>) {
        changes.push(Change::Touch { dir: a, at: self.now });
        if a != b {
            changes.push(Change::Touch { dir: b, at: self.now });
        }
    }
}
