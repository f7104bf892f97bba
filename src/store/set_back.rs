//! After a power cut: the names of a tree are set back to what they were at the last checkpoint, so that the entry log can
//! be applied again from there, entry by entry, as ever.
//!
//! Of what was applied since the checkpoint any part may be on disk, each name and each range by itself. What the names
//! referred to then is known ([`super::before`]), and objects are recognised wherever they are now. An object that is
//! nowhere was removed by one of the entries: an empty one stands in for it until that entry removes it again. Contents
//! and attributes stay as they are: what differs from the checkpoint is what the log sets again.
//!
//! Killed in the middle, it is done again: what was moved aside is recognised, too.

use super::before::{self, Object, Was};
use super::log::EntryLog;
use super::region::Region;
use crate::base::{At, DirId, Name, Result, VolId};
use crate::format::codec;
use crate::format::frame::{FrameKind, HEADER_BYTES};
use crate::format::op::{Entry, Op, RENAME_EXCHANGE};
use crate::os::sys;
use crate::pair::change::What;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Where objects are while their names are set back, in a region's metadata directory.
pub(super) const ASIDE: &str = "aside";

/// The operations of the entry log that count, in order: not those of a resync without its commit.
pub(super) fn names_in(log: &EntryLog, from: u64) -> Result<Vec<(VolId, Op)>> {
    let (mut at, mut buf, mut out, mut begun) = (from, Vec::new(), Vec::new(), None);
    while let Some((next, head)) = log.peek(at, &mut buf)? {
        match head.kind {
            FrameKind::Entry | FrameKind::Staged => {
                let e: Entry = codec::decode(buf.get(HEADER_BYTES..).unwrap_or(&[]))?;
                if e.op.is_namespace() {
                    out.push((e.vol, e.op));
                }
            }
            FrameKind::TxnBegin => begun = Some(out.len()),
            FrameKind::TxnCommit => begun = None,
            FrameKind::Msg => {}
        }
        at = next;
    }
    out.truncate(begun.unwrap_or(usize::MAX));
    Ok(out)
}

/// Sets the names of a region back to what they `were`; `ops` are those of the log since. Returns the names of objects
/// that are nowhere although no entry removes them: they are empty now.
pub(super) fn set_back(region: &Region, were: &[Was], ops: &[(VolId, Op)]) -> Result<Vec<Name>> {
    let were: Vec<&Was> = were.iter().filter(|w| w.vol == region.vol).collect();
    let ops: Vec<&Op> = ops.iter().filter(|(v, _)| *v == region.vol).map(|(_, op)| op).collect();
    let aside = region.meta().join(ASIDE);
    std::fs::create_dir_all(&aside).at(aside.display())?;
    let mut s = SetBack::new(region, &were, &aside)?;
    s.tables(&were, &ops)?;
    s.look()?;
    s.clear()?;
    s.place(&were)?;
    region.forget_all();
    std::fs::remove_dir(&aside).at(aside.display())?;
    Ok(survivors(&were, &ops, &s.stands_in))
}

/// Where an object was met.
struct Met {
    dir: Arc<OwnedFd>,
    /// Known for what is at one of the names in question.
    at: Option<Name>,
    name: Vec<u8>,
}

struct SetBack<'a> {
    region: &'a Region,
    aside: Arc<OwnedFd>,
    /// The objects of then, with the names in question that they had, and their ids where they are directories.
    objects: HashMap<Object, (BTreeSet<Name>, Option<DirId>)>,
    /// Directories among them.
    dirs: HashSet<DirId>,
    /// The names in question, by directory.
    names: BTreeMap<DirId, BTreeSet<Vec<u8>>>,
    met: HashMap<Object, Vec<Met>>,
    /// Directories among the objects that were met.
    open: HashMap<DirId, Arc<OwnedFd>>,
    /// Objects that are nowhere.
    stands_in: HashSet<Object>,
}

impl<'a> SetBack<'a> {
    fn new(region: &'a Region, were: &[&Was], aside: &std::path::Path) -> Result<SetBack<'a>> {
        let aside = sys::open_path(aside, libc::O_PATH | libc::O_DIRECTORY, 0).at(aside.display())?;
        let mut s = SetBack {
            region,
            aside: Arc::new(aside),
            objects: HashMap::new(),
            dirs: HashSet::new(),
            names: BTreeMap::new(),
            met: HashMap::new(),
            open: HashMap::new(),
            stands_in: HashSet::new(),
        };
        for w in were {
            s.names.entry(w.at.dir).or_default().insert(w.at.name.clone());
            if let Some((o, what, _)) = w.object {
                let known = s.objects.entry(o).or_default();
                known.0.insert(w.at.clone());
                if let What::Dir(id) = what {
                    known.1 = Some(id);
                    s.dirs.insert(id);
                }
            }
        }
        Ok(s)
    }

    /// The table of ids says again what it said then.
    fn tables(&self, were: &[&Was], ops: &[&Op]) -> Result<()> {
        let mut ids = self.region.ids.write();
        for op in ops {
            if let Op::Mkdir { id, .. } = op
                && !self.dirs.contains(id)
                && ids.dir(*id).is_some()
            {
                ids.drop_dir(*id)?;
            }
        }
        for w in were {
            match w.object {
                Some((_, What::Linked(l), _)) => ids.put_link(l, &w.at)?,
                Some((o, What::Dir(id), _)) => {
                    ids.drop_link(&w.at)?;
                    ids.put_dir(id, w.at.dir, &w.at.name, o.ino)?;
                }
                Some((_, What::File, _)) | None => ids.drop_link(&w.at)?,
            }
        }
        drop(ids);
        self.region.forget_all();
        Ok(())
    }

    /// Finds the objects: at the names in question, and in what was made since.
    fn look(&mut self) -> Result<()> {
        self.look_below(self.aside.clone())?;
        let mut todo: Vec<DirId> = self.names.keys().copied().collect();
        // A directory that is met makes those below it reachable, so until nothing is new.
        loop {
            let mut left = Vec::new();
            let before = todo.len();
            for d in todo {
                let Some(fd) = self.dir(d, 0)? else {
                    left.push(d);
                    continue;
                };
                for name in self.names.get(&d).cloned().unwrap_or_default() {
                    let Ok(st) = sys::statat(&*fd, &name) else { continue };
                    let known = self.meet(&fd, Some(d), &name, st.ino)?;
                    if st.is_dir() && !known {
                        self.look_below(self.open_at(&fd, &name)?)?;
                    }
                }
            }
            if left.len() == before {
                return Ok(());
            }
            todo = left;
        }
    }

    /// Notes an object where it is; false when it is none of those.
    fn meet(&mut self, fd: &Arc<OwnedFd>, dir: Option<DirId>, name: &[u8], ino: u64) -> Result<bool> {
        let o = before::object(fd, name, ino)?;
        let Some(id) = self.objects.get(&o).map(|(_, id)| *id) else { return Ok(false) };
        let at = dir.map(|d| Name::new(d, name));
        self.met.entry(o).or_default().push(Met { dir: fd.clone(), at, name: name.to_vec() });
        if let Some(id) = id {
            self.open.insert(id, self.open_at(fd, name)?);
        }
        Ok(true)
    }

    fn open_at(&self, fd: &OwnedFd, name: &[u8]) -> Result<Arc<OwnedFd>> {
        Ok(Arc::new(sys::openat(fd, name, libc::O_PATH | libc::O_DIRECTORY, 0)?))
    }

    /// Everything below a directory that was not there then.
    fn look_below(&mut self, top: Arc<OwnedFd>) -> Result<()> {
        let mut todo = vec![top];
        while let Some(fd) = todo.pop() {
            for name in list(&fd)? {
                let st = sys::statat(&*fd, &name)?;
                let known = self.meet(&fd, None, &name, st.ino)?;
                if st.is_dir() && !known {
                    todo.push(self.open_at(&fd, &name)?);
                }
            }
        }
        Ok(())
    }

    /// A directory of then, where it is now; `None`: it, or one that it was in, was not met.
    fn dir(&self, d: DirId, depth: usize) -> Result<Option<Arc<OwnedFd>>> {
        if before::always(d) {
            return self.region.dirfd(d).map(Some);
        }
        if let Some(fd) = self.open.get(&d) {
            return Ok(Some(fd.clone()));
        }
        let rec = self.region.ids.read().dir(d).cloned();
        let Some(rec) = rec.filter(|_| !self.dirs.contains(&d) && depth < 100_000) else { return Ok(None) };
        let Some(up) = self.dir(rec.parent, depth + 1)? else { return Ok(None) };
        let Ok(fd) = self.open_at(&up, &rec.name) else { return Ok(None) };
        Ok((sys::fstat(&*fd)?.ino == rec.ino).then_some(fd))
    }

    /// Frees the names in question of what was not at them then; objects of then are kept aside.
    fn clear(&mut self) -> Result<()> {
        for (o, places) in &mut self.met {
            let homes = self.objects.get(o).map(|(names, _)| names.clone()).unwrap_or_default();
            let (home, mut away): (Vec<Met>, Vec<Met>) =
                std::mem::take(places).into_iter().partition(|m| m.at.as_ref().is_some_and(|at| homes.contains(at)));
            *places = home;
            // What was aside already comes first: it is not to be moved there again.
            away.sort_by_key(|m| !Arc::ptr_eq(&m.dir, &self.aside));
            for m in away {
                if places.is_empty() {
                    let name = format!("{:x}-{:x}-{:x}", o.ino, o.born.sec, o.born.nsec).into_bytes();
                    if sys::statat(&*self.aside, &name).is_err() {
                        sys::renameat2(&*m.dir, &m.name, &*self.aside, &name, 0)?;
                    }
                    places.push(Met { dir: self.aside.clone(), at: None, name });
                } else if m.at.is_some() || Arc::ptr_eq(&m.dir, &self.aside) {
                    sys::unlinkat(&*m.dir, &m.name)?;
                }
            }
        }
        let home: HashSet<&Name> = self.met.values().flatten().filter_map(|m| m.at.as_ref()).collect();
        for (d, names) in &self.names {
            let Some(fd) = self.dir(*d, 0)? else { continue };
            for name in names.iter().filter(|n| !home.contains(&Name::new(*d, n.as_slice()))) {
                self.remove(&fd, name)?;
            }
        }
        Ok(())
    }

    /// Removes what was made since, if something is there.
    fn remove(&self, fd: &OwnedFd, name: &[u8]) -> Result<()> {
        let st = match sys::statat(fd, name) {
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
            r => r?,
        };
        if st.is_dir() {
            let sub = self.open_at(fd, name)?;
            for n in list(&sub)? {
                self.remove(&sub, &n)?;
            }
            sys::rmdirat(fd, name)?;
        } else {
            sys::unlinkat(fd, name)?;
        }
        if st.is_dir() || st.nlink <= 1 {
            self.region.forget_kept(st.ino)?;
        }
        Ok(())
    }

    /// Puts each object to the names it had then.
    fn place(&mut self, were: &[&Was]) -> Result<()> {
        let depth = |d: DirId| {
            let ids = self.region.ids.read();
            let up = std::iter::successors(Some(d), |d| ids.dir(*d).map(|r| r.parent));
            up.take(100_000).count()
        };
        let mut all: Vec<_> = were.iter().filter_map(|w| Some((depth(w.at.dir), &w.at, w.object?))).collect();
        all.sort_by_key(|(depth, ..)| *depth);
        for (_, at, (o, what, kind)) in all {
            let dir = self.region.dirfd(at.dir)?;
            let places = self.met.entry(o).or_default();
            if places.iter().any(|m| m.at.as_ref() == Some(at)) {
                continue;
            }
            if places.is_empty()
                && let Some((fd, name)) = elsewhere(self.region, o, at)?
            {
                places.push(Met { dir: fd, at: None, name });
            }
            match places.first() {
                Some(m) if Arc::ptr_eq(&m.dir, &self.aside) => {
                    sys::renameat2(&*m.dir, &m.name, &*dir, &at.name, 0)?;
                    places.clear();
                }
                Some(m) => sys::linkat(&*m.dir, &m.name, &*dir, &at.name)?,
                None => {
                    self.region.forget_kept(o.ino)?;
                    stand_in(self.region, at, &dir, what, kind)?;
                    self.stands_in.insert(o);
                }
            }
            places.push(Met { dir, at: Some(at.clone()), name: at.name.clone() });
        }
        Ok(())
    }
}

/// A name that is not in question of a file that has more than one.
fn elsewhere(region: &Region, o: Object, at: &Name) -> Result<Option<(Arc<OwnedFd>, Vec<u8>)>> {
    let Some((_, names)) = region.link_names(at) else { return Ok(None) };
    for n in names.iter().filter(|n| *n != at) {
        let Ok(fd) = region.dirfd(n.dir) else { continue };
        let Ok(st) = sys::statat(&*fd, &n.name) else { continue };
        if before::object(&fd, &n.name, st.ino)? == o {
            return Ok(Some((fd, n.name.clone())));
        }
    }
    Ok(None)
}

/// Makes something of the kind, for the entries up to the one that removes it.
fn stand_in(region: &Region, at: &Name, dir: &OwnedFd, what: What, kind: u32) -> Result<()> {
    match (kind, what) {
        (_, What::Dir(id)) => {
            sys::mkdirat(dir, &at.name, 0o700)?;
            let ino = sys::statat(dir, &at.name)?.ino;
            region.forget_kept(ino)?;
            return region.ids.write().put_dir(id, at.dir, &at.name, ino);
        }
        (libc::S_IFREG, _) => drop(sys::openat(dir, &at.name, libc::O_RDONLY | libc::O_CREAT | libc::O_EXCL, 0o600)?),
        (libc::S_IFLNK, _) => sys::symlinkat(b"gone", dir, &at.name)?,
        (libc::S_IFSOCK, _) => sys::mknodat(dir, &at.name, libc::S_IFSOCK | 0o600, 0)?,
        _ => sys::mknodat(dir, &at.name, libc::S_IFIFO | 0o600, 0)?,
    }
    region.forget_kept(sys::statat(dir, &at.name)?.ino)
}

fn list(fd: &OwnedFd) -> Result<Vec<Vec<u8>>> {
    let dir = sys::openat(fd, b".", libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
    let (mut buf, mut list) = (vec![0u8; 64 << 10], Vec::new());
    while sys::getdents(&dir, &mut buf, &mut list)? {}
    Ok(list.into_iter().map(|e| e.name).filter(|n| n != b"." && n != b"..").collect())
}

/// The names that stand-ins have after all operations: none, where the filesystem kept to its rules.
fn survivors(were: &[&Was], ops: &[&Op], stands_in: &HashSet<Object>) -> Vec<Name> {
    let mut now: BTreeMap<&Name, Object> = were
        .iter()
        .filter_map(|w| Some((&w.at, w.object.map(|(o, ..)| o)?)))
        .filter(|(_, o)| stands_in.contains(o))
        .collect();
    for op in ops {
        match op {
            Op::Unlink { at, .. } | Op::Rmdir { at, .. } => drop(now.remove(at)),
            Op::Link { from, to, .. } => {
                if let Some(o) = now.get(from).copied() {
                    now.insert(to, o);
                }
            }
            Op::Rename { from, to, flags, .. } => {
                let (a, b) = (now.remove(from), now.remove(to));
                // One file at both names stays at both.
                if a.is_some() && a == b {
                    now.extend(a.map(|o| [(from, o), (to, o)]).into_iter().flatten());
                    continue;
                }
                now.extend(a.map(|o| (to, o)));
                now.extend(b.filter(|_| flags & RENAME_EXCHANGE != 0).map(|o| (from, o)));
            }
            _ => {}
        }
    }
    now.into_keys().cloned().collect()
}
