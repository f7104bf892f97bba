//! What tests look at and lay out, beside the calls: nothing here is a persist point or has faults.

use super::data::{PAGE, Page};
use super::inode::{Id, Xattrs};
use super::{At, Disk, Ino, Ofd, Res, Stamp};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// The bytes of a file at one moment. Making it copies nothing.
#[derive(Clone, Default)]
pub struct Content {
    size: u64,
    pages: BTreeMap<u64, Page>,
}

impl Content {
    /// Bytes.
    pub fn len(&self) -> u64 {
        self.size
    }

    pub fn is_empty(&self) -> bool {
        self.size == 0
    }

    /// All bytes; of a sparse file the zeroes too.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut all = vec![0; self.size as usize];
        for (page, bytes) in &self.pages {
            let at = *page as usize * PAGE;
            if let Some(to) = all.get_mut(at..) {
                let n = to.len().min(PAGE);
                to[..n].copy_from_slice(&bytes[..n]);
            }
        }
        all
    }

    fn page(&self, page: u64) -> &[u8; PAGE] {
        const ZEROES: [u8; PAGE] = [0; PAGE];
        self.pages.get(&page).map_or(&ZEROES, |p| &**p)
    }

    /// The first byte in which two contents differ; the shorter one's end counts.
    pub fn differs_at(&self, other: &Content) -> Option<u64> {
        let end = self.size.min(other.size);
        let pages: BTreeSet<u64> = self.pages.keys().chain(other.pages.keys()).copied().collect();
        for page in pages {
            let (a, b) = (self.page(page), other.page(page));
            if a == b {
                continue;
            }
            let at = page * PAGE as u64 + a.iter().zip(b).position(|(a, b)| a != b).unwrap_or(0) as u64;
            if at < end {
                return Some(at);
            }
        }
        (self.size != other.size).then_some(end)
    }
}

impl PartialEq for Content {
    fn eq(&self, other: &Content) -> bool {
        self.differs_at(other).is_none()
    }
}

impl Eq for Content {}

impl PartialEq<[u8]> for Content {
    fn eq(&self, other: &[u8]) -> bool {
        self.size == other.len() as u64 && self.to_vec() == other
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        // FNV-1a, so that a message tells contents apart without printing them.
        let all = self.to_vec();
        let h = all.iter().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3));
        write!(f, "{} bytes {h:016x}", self.size)
    }
}

/// An object of a tree. Two with the same `ino` are hard links.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// The `S_IF*` bits.
    pub kind: u32,
    /// Permission bits with suid, sgid, sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u64,
    pub mtime: Stamp,
    pub nlink: u64,
    pub ino: Ino,
    pub size: u64,
    /// Of a regular file.
    pub content: Content,
    /// Of a symlink.
    pub target: Vec<u8>,
    pub xattrs: Xattrs,
}

impl Disk {
    /// Everything at and below a path, by path relative to it (the path itself is the empty one). Empty when it is not there.
    pub fn tree(&mut self, path: &[u8]) -> BTreeMap<Vec<u8>, Node> {
        let mut all = BTreeMap::new();
        let Ok(top) = self.find(At::Root(path), false) else { return all };
        let mut todo = vec![(Vec::new(), top)];
        while let Some((at, id)) = todo.pop() {
            if let Some(dir) = &self.table.live(id).dir {
                for (name, (child, _)) in &dir.names {
                    let slash: &[u8] = if at.is_empty() { b"" } else { b"/" };
                    todo.push(([&at, slash, name].concat(), *child));
                }
            }
            all.insert(at, self.node(id));
        }
        all
    }

    fn node(&mut self, id: Id) -> Node {
        self.look_at(id);
        let a = self.attr(id);
        let i = self.table.get(id);
        let content = Content { size: i.data.size(), pages: i.data.pages() };
        let xattrs = i.live.as_ref().and_then(|s| s.meta.xattrs.as_deref()).cloned().unwrap_or_default();
        Node {
            kind: a.mode & libc::S_IFMT,
            mode: a.mode & 0o7777,
            uid: a.uid,
            gid: a.gid,
            rdev: a.rdev,
            mtime: a.mtime,
            nlink: a.nlink,
            ino: a.ino,
            size: a.size,
            content,
            target: i.target.to_vec(),
            xattrs,
        }
    }

    /// The bytes of a regular file, symlinks followed.
    pub fn read_file(&self, path: &[u8]) -> Option<Vec<u8>> {
        let id = self.find(At::Root(path), true).ok()?;
        let i = self.table.get(id);
        if self.table.live(id).meta.kind() != libc::S_IFREG {
            return None;
        }
        let mut all = vec![0; i.data.size() as usize];
        i.data.read(&mut all, 0);
        Some(all)
    }

    /// True when something is at a path; a symlink counts by itself.
    pub fn exists(&self, path: &[u8]) -> bool {
        self.find(At::Root(path), false).is_ok()
    }

    /// Makes or replaces the content of a file, with the directories above it. Nothing of it is synced.
    pub fn write_file(&mut self, path: &[u8], bytes: &[u8]) -> Res<()> {
        let faults = std::mem::take(&mut self.faults.rates);
        let done = self.write_file_calmly(path, bytes);
        self.faults.rates = faults;
        done
    }

    fn write_file_calmly(&mut self, path: &[u8], bytes: &[u8]) -> Res<()> {
        let slashes = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at);
        for at in slashes.filter(|at| *at > 0).collect::<Vec<_>>() {
            match self.mkdir(At::Root(&path[..at]), 0o755) {
                Ok(()) | Err(libc::EEXIST) => {}
                Err(e) => return Err(e),
            }
        }
        let o = self.open(At::Root(path), libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC, 0o644, false)?;
        let mut done = 0;
        let mut end = Ok(());
        while done < bytes.len() && end.is_ok() {
            match self.pwrite(o, &bytes[done..], done as u64) {
                Ok(n) => done += n,
                Err(e) => end = Err(e),
            }
        }
        self.close(o);
        end
    }

    /// Removes what is at a path and everything below it; nothing there is no error.
    pub fn remove_tree(&mut self, path: &[u8]) -> Res<()> {
        let all = self.tree(path);
        for (at, node) in all.iter().rev() {
            let slash: &[u8] = if at.is_empty() || path.is_empty() { b"" } else { b"/" };
            let whole = [path, slash, at].concat();
            match node.kind {
                _ if whole.is_empty() => {}
                libc::S_IFDIR => self.rmdir(At::Root(&whole))?,
                _ => self.unlink(At::Root(&whole))?,
            }
        }
        Ok(())
    }

    /// The path that an open object got last, from the root of the disk; for messages.
    pub fn name_of(&self, o: Ofd) -> Vec<u8> {
        self.opens.get(o).map(|open| self.path_of(open.id)).unwrap_or_default()
    }

    /// True when a cut could leave nothing else than what calls see.
    pub fn is_all_kept(&self) -> bool {
        self.log.waiting.is_empty() && self.table.dirty.is_empty()
    }

    /// What is wrong in itself: sides that differ though nothing waits, counts that are not those of the names. For tests.
    pub fn check(&self) -> Result<(), String> {
        let mut links: BTreeMap<Id, u64> = BTreeMap::new();
        for id in self.table.ids() {
            let Some(s) = self.table.find(id).and_then(|i| i.live.as_ref()) else { continue };
            let Some(d) = &s.dir else { continue };
            if d.names.len() != d.order.len() {
                return Err(format!("directory {id}: {} names, {} cookies", d.names.len(), d.order.len()));
            }
            for (name, (child, _)) in &d.names {
                *links.entry(*child).or_default() += 1;
                let there = self.table.find(*child).and_then(|i| i.live.as_ref());
                let Some(c) = there else { return Err(format!("{:?} names nothing", String::from_utf8_lossy(name))) };
                if let Some(below) = &c.dir {
                    *links.entry(*child).or_default() += 1;
                    *links.entry(id).or_default() += 1;
                    if below.parent != id {
                        return Err(format!("directory {child}: its parent is {}, not {id}", below.parent));
                    }
                }
            }
        }
        self.check_objects(&links)
    }

    fn check_objects(&self, links: &BTreeMap<Id, u64>) -> Result<(), String> {
        let (mut pages, mut count) = (0, 0);
        for id in self.table.ids() {
            let Some(i) = self.table.find(id) else { continue };
            if self.is_all_kept() && i.live != i.kept {
                return Err(format!("object {id}: {:?} differs from what is kept, {:?}", i.live, i.kept));
            }
            let Some(s) = &i.live else { continue };
            pages += i.data.cost();
            count += 1;
            let root = if id == super::inode::ROOT { 2 } else { 0 };
            let expected = links.get(&id).copied().unwrap_or(0) + root;
            if s.meta.nlink != expected {
                return Err(format!("object {id}: {} links, {expected} counted", s.meta.nlink));
            }
            if s.meta.nlink == 0 && i.opens == 0 {
                return Err(format!("object {id}: nothing reaches it"));
            }
        }
        if (pages, count) != (self.pages_used, self.table.count) {
            return Err(format!("{pages} pages of {count} objects, noted {} of {}", self.pages_used, self.table.count));
        }
        Ok(())
    }
}
