//! After a power cut: the table of ids and the tree may each have lost what the other still has. The tree decides.

use super::activity::ActiveDir;
use super::region::Region;
use super::set_back::ASIDE;
use crate::base::{At, DirId, Error, LinkId, Name, Result};
use crate::os::sys;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// A directory met in the tree: where, and its inode number.
struct Met {
    at: Name,
    ino: u64,
}

/// A name of something with several links, or of which the table says so.
struct Linked {
    at: Name,
    ino: u64,
    nlink: u64,
}

/// How much more a name counts that no power cut can have undone.
const ELSEWHERE: usize = 1 << 20;

impl Region {
    /// These directories, with everything below where an entry says so, as the table of ids has it.
    pub fn expand(&self, dirs: &[ActiveDir]) -> BTreeSet<DirId> {
        let mut out: BTreeSet<DirId> = dirs.iter().map(|d| d.dir).collect();
        let below: BTreeSet<DirId> = dirs.iter().filter(|d| d.below).map(|d| d.dir).collect();
        if below.is_empty() {
            return out;
        }
        let ids = self.ids.read();
        let mut inside: HashMap<DirId, bool> = below.iter().map(|d| (*d, true)).collect();
        for (id, _) in ids.dirs() {
            let (mut chain, mut at) = (Vec::new(), id);
            let is = loop {
                if let Some(known) = inside.get(&at) {
                    break *known;
                }
                chain.push(at);
                match ids.dir(at) {
                    Some(r) if chain.len() <= ids.len() + 1 => at = r.parent,
                    _ => break false,
                }
            };
            inside.extend(chain.into_iter().map(|d| (d, is)));
        }
        out.extend(inside.into_iter().filter(|(_, is)| *is).map(|(d, _)| d));
        out
    }

    /// Brings the table of ids in step with what is in these directories. Returns how many records were wrong.
    pub fn mend(&self, scope: &BTreeSet<DirId>) -> Result<u64> {
        self.forget_all();
        let mut wrong = 0;
        let mut seen: BTreeSet<DirId> = BTreeSet::new();
        let mut links = Vec::new();
        // A directory that is met at its new place makes those below it reachable, so until nothing is new.
        loop {
            let todo: Vec<DirId> = scope.iter().copied().filter(|d| !seen.contains(d)).collect();
            let mut met = Vec::new();
            let before = seen.len();
            for d in todo {
                if let Some(fd) = self.open_place(d)? {
                    seen.insert(d);
                    self.list(d, &fd, &mut met, &mut links)?;
                }
            }
            wrong += self.mend_dirs(met, &mut links)?;
            if seen.len() == before {
                break;
            }
        }
        // All of them together, for one id may be at names in several directories.
        wrong += self.mend_links(links, scope)?;
        let dropped = self.drop_missing(scope)?;
        self.forget_all();
        Ok(wrong + dropped)
    }

    /// The directory at the place that the table tells, if its inode is the one known there.
    fn open_place(&self, d: DirId) -> Result<Option<Arc<OwnedFd>>> {
        match self.dirfd(d) {
            Ok(fd) => Ok(Some(fd)),
            Err(e) if e.kind == crate::base::Kind::Corrupt || matches!(e.errno, libc::ENOENT | libc::ENOTDIR) => {
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    fn list(&self, d: DirId, fd: &Arc<OwnedFd>, met: &mut Vec<Met>, links: &mut Vec<Linked>) -> Result<()> {
        let dir = sys::openat(&**fd, b".", libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
        let (mut buf, mut list) = (vec![0u8; 64 << 10], Vec::new());
        while sys::getdents(&dir, &mut buf, &mut list)? {}
        for e in list.into_iter().filter(|e| e.name != b"." && e.name != b"..") {
            let Ok(st) = sys::statat(&**fd, &e.name) else { continue };
            let at = Name::new(d, e.name);
            if st.is_dir() {
                met.push(Met { at, ino: st.ino });
            } else if st.nlink > 1 || self.ids.read().link_of(&at).is_some() {
                links.push(Linked { at, ino: st.ino, nlink: st.nlink });
            }
        }
        Ok(())
    }

    /// Directories met: known by inode, they are where they were met; unknown ones take the id that the table has at that
    /// name, or a new one.
    fn mend_dirs(&self, met: Vec<Met>, links: &mut Vec<Linked>) -> Result<u64> {
        let mut wrong = 0;
        let mut unknown = Vec::new();
        for m in met {
            let known = {
                let ids = self.ids.read();
                ids.by_ino(m.ino)
                    .map(|id| (id, ids.dir(id).is_some_and(|r| r.parent == m.at.dir && *r.name == *m.at.name)))
            };
            match known {
                Some((_, true)) => {}
                Some((id, false)) => {
                    self.ids.write().put_dir(id, m.at.dir, &m.at.name, m.ino)?;
                    wrong += 1;
                }
                None => unknown.push(m),
            }
        }
        for m in unknown {
            let mut ids = self.ids.write();
            let there = ids.dirs().find(|(_, r)| r.parent == m.at.dir && *r.name == *m.at.name).map(|(id, _)| id);
            let id = there.unwrap_or_else(|| ids.fresh_dir_id());
            ids.put_dir(id, m.at.dir, &m.at.name, m.ino)?;
            drop(ids);
            self.forget_dirfd(id);
            wrong += 1;
            // Whatever is below it was made since, too.
            let mut below = Vec::new();
            if let Some(fd) = self.open_place(id)? {
                self.list(id, &fd, &mut below, links)?;
            }
            wrong += self.mend_dirs(below, links)?;
        }
        Ok(wrong)
    }

    /// Names that are one file have one link id; a name that stands alone without having had company has none.
    fn mend_links(&self, links: Vec<Linked>, scope: &BTreeSet<DirId>) -> Result<u64> {
        let mut wrong = 0;
        let listed: HashSet<&Name> = links.iter().map(|l| &l.at).collect();
        // Names in other directories are what they were: they say what an id stands for; without them most names do.
        let weight = |n: &Name| if scope.contains(&n.dir) || listed.contains(n) { 1 } else { ELSEWHERE };
        // The id of each file, and how much says so.
        let mut by_ino: HashMap<u64, (usize, LinkId)> = HashMap::new();
        // Names that the table gives one id and that are several files: only those of one file keep it.
        let mut owner: HashMap<LinkId, (u64, usize)> = HashMap::new();
        for l in &links {
            let Some((lid, names)) = self.link_names(&l.at) else { continue };
            let (ino, many) = *owner.entry(lid).or_insert_with(|| {
                let mut found: HashMap<u64, usize> = HashMap::new();
                for n in &names {
                    if let Ok(Some((st, _))) = self.look(n) {
                        *found.entry(st.ino).or_default() += weight(n);
                    }
                }
                found.into_iter().max_by_key(|(i, n)| (*n, *i == l.ino, *i)).unwrap_or((l.ino, 1))
            });
            if ino == l.ino {
                let known = by_ino.entry(l.ino).or_insert((many, lid));
                *known = (*known).max((many, lid));
            } else {
                self.ids.write().drop_link(&l.at)?;
                wrong += 1;
            }
        }
        for l in &links {
            let has = self.ids.read().link_of(&l.at);
            match (has, by_ino.get(&l.ino).map(|(_, lid)| *lid)) {
                (Some(has), Some(lid)) if has != lid => {
                    let mut ids = self.ids.write();
                    ids.drop_link(&l.at)?;
                    ids.put_link(lid, &l.at)?;
                    wrong += 1;
                }
                (Some(_), _) => {}
                (None, Some(lid)) => {
                    self.ids.write().put_link(lid, &l.at)?;
                    wrong += 1;
                }
                (None, None) if l.nlink > 1 => {
                    let lid = self.ids.read().fresh_link_id();
                    self.ids.write().put_link(lid, &l.at)?;
                    by_ino.insert(l.ino, (1, lid));
                    wrong += 1;
                }
                (None, None) => {}
            }
        }
        Ok(wrong)
    }

    /// Removes what was moved out of the way, and its directory ids.
    pub fn sweep_staging(&self) -> Result<()> {
        let fd = self.dirfd(DirId::STAGING)?;
        self.sweep_dir(&fd)
    }

    /// Removes what setting names back after a power cut had moved aside and could not put in its place.
    pub fn sweep_aside(&self) -> Result<()> {
        let aside = self.meta().join(ASIDE);
        match sys::open_path(&aside, libc::O_PATH | libc::O_DIRECTORY, 0) {
            Ok(dir) => {
                self.sweep_dir(&dir)?;
                std::fs::remove_dir(&aside).at(aside.display())
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(Error::from(e).context(aside.display())),
        }
    }

    fn sweep_dir(&self, dir: &OwnedFd) -> Result<()> {
        let open = sys::openat(dir, b".", libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
        let (mut buf, mut list) = (vec![0u8; 64 << 10], Vec::new());
        while sys::getdents(&open, &mut buf, &mut list)? {}
        for e in list.iter().filter(|e| e.name != b"." && e.name != b"..") {
            let st = sys::statat(dir, &e.name)?;
            if st.is_dir() || st.nlink <= 1 {
                self.forget_kept(st.ino)?;
            }
            if st.is_dir() {
                let sub = sys::openat(dir, &e.name, libc::O_PATH | libc::O_DIRECTORY, 0)?;
                self.sweep_dir(&sub)?;
                sys::rmdirat(dir, &e.name)?;
                let id = self.dir_by_ino(st.ino);
                if let Some(id) = id {
                    self.ids.write().drop_dir(id)?;
                    self.forget_dirfd(id);
                }
            } else {
                sys::unlinkat(dir, &e.name)?;
            }
        }
        Ok(())
    }

    /// Forgets directories and linked names of the table that are not in the tree.
    fn drop_missing(&self, scope: &BTreeSet<DirId>) -> Result<u64> {
        let mut wrong = 0;
        // One that is gone takes those below it along, round by round.
        loop {
            let dirs: Vec<DirId> = {
                let ids = self.ids.read();
                let lost = |p: DirId| !p.is_internal() && p != DirId::ROOT && ids.dir(p).is_none();
                let at = |(_, r): &(DirId, &super::idtable::DirRec)| scope.contains(&r.parent) || lost(r.parent);
                ids.dirs().filter(at).map(|(id, _)| id).collect()
            };
            let mut gone = 0;
            for id in dirs {
                if self.open_place(id)?.is_none() {
                    self.ids.write().drop_dir(id)?;
                    self.forget_dirfd(id);
                    gone += 1;
                }
            }
            wrong += gone;
            if gone == 0 {
                break;
            }
        }
        let names: Vec<Name> = {
            let ids = self.ids.read();
            ids.linked_names()
                .filter(|n| scope.contains(&n.dir) || (n.dir != DirId::ROOT && ids.dir(n.dir).is_none()))
                .cloned()
                .collect()
        };
        for n in names {
            if n.dir.is_internal() {
                continue;
            }
            let there = self.open_place(n.dir)?.is_some_and(|fd| sys::statat(&*fd, &n.name).is_ok());
            if !there {
                self.ids.write().drop_link(&n)?;
                wrong += 1;
            }
        }
        Ok(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::VolId;

    /// G5: a rename that exchanged two names survived in the table and not in the tree, so that one file has names with two
    /// ids: it has that of its other names afterwards, and the other file has its own.
    #[test]
    fn a_file_has_one_link_id_after_a_power_cut() {
        let d = tempfile::tempdir().unwrap();
        let path = d.path().join("region");
        Region::create(&path, "g", "v", VolId(0)).unwrap();
        let r = Region::open(&path, "g", "v", VolId(0)).unwrap();
        let n = |s: &str| Name::new(DirId::ROOT, s);
        for (i, names) in [["a1", "a2", "a3"], ["b1", "b2", "b3"]].iter().enumerate() {
            std::fs::write(path.join("tree").join(names[0]), "x").unwrap();
            std::fs::hard_link(path.join("tree").join(names[0]), path.join("tree").join(names[1])).unwrap();
            std::fs::hard_link(path.join("tree").join(names[0]), path.join("tree").join(names[2])).unwrap();
            for s in names {
                r.ids.write().put_link(LinkId(100 + i as u64), &n(s)).unwrap();
            }
        }
        // As if `a3` and `b3` were exchanged; and `b3`, in the tree, is a name of `a` as well.
        std::fs::remove_file(path.join("tree/b3")).unwrap();
        std::fs::hard_link(path.join("tree/a1"), path.join("tree/b3")).unwrap();
        let scope = BTreeSet::from([DirId::ROOT]);
        assert_eq!(r.mend(&scope).unwrap(), 2, "the name loses the one id and gets the other");
        let lid = |s: &str| r.ids.read().link_of(&n(s)).map(|l| l.0);
        for (s, id) in [("a1", 100), ("a2", 100), ("a3", 100), ("b3", 100), ("b1", 101), ("b2", 101)] {
            assert_eq!(lid(s), Some(id), "{s}");
        }
        assert_eq!(r.mend(&scope).unwrap(), 0);
        // Two ids on one file, each of them nowhere else.
        r.ids.write().drop_link(&n("b1")).unwrap();
        r.ids.write().drop_link(&n("b2")).unwrap();
        r.ids.write().put_link(LinkId(7), &n("b1")).unwrap();
        r.ids.write().put_link(LinkId(8), &n("b2")).unwrap();
        assert_eq!(r.mend(&scope).unwrap(), 1);
        assert_eq!(lid("b1"), lid("b2"));
        assert!(lid("b1").is_some());
        // A name where nothing was under way says what an id stands for, however many others have it.
        let (d, sub) = (DirId(1000), path.join("tree/d"));
        std::fs::create_dir(&sub).unwrap();
        std::fs::write(sub.join("c1"), "x").unwrap();
        let ino = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&sub).unwrap());
        r.ids.write().put_dir(d, DirId::ROOT, b"d", ino).unwrap();
        for at in [Name::new(d, "c1"), n("b1"), n("b2")] {
            r.ids.write().drop_link(&at).unwrap();
            r.ids.write().put_link(LinkId(9), &at).unwrap();
        }
        assert_eq!(r.mend(&scope).unwrap(), 4, "both names lose the one id and get another");
        assert_eq!(r.ids.read().names_of(LinkId(9)), [Name::new(d, "c1")]);
        assert!(lid("b1") == lid("b2") && lid("b1").is_some());
    }
}
