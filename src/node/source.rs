//! Reading the source's tree for a copy while it is in use: where an object is now, and what differs from the target.

use super::tell;
use crate::base::sync::Mutex;
use crate::base::{DirId, LinkId, Name, Result, VolId, limits, time};
use crate::format::msg::{BlockHash, Have, Told};
use crate::format::op::{Attr, NodeKind, Op, Target};
use crate::os::sys::{self, Stat};
use crate::pair::change::What;
use crate::pair::plan::Extent;
use crate::store::kept::CAPABILITY;
use crate::store::region::Region;
use crate::store::replica::Replica;
use crate::store::watch::Watch;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Bytes compared and sent at a time.
const CHUNK: u64 = 1 << 20;

/// The source's trees as seen from a fixed point of the order.
pub struct Source {
    /// The replica.
    pub replica: Arc<Replica>,
    /// What became of the names since the point.
    pub watch: Arc<Mutex<Watch>>,
}

/// An object of the source.
pub struct Found {
    region: Arc<Region>,
    at: Target,
    stat: Stat,
    fd: Option<OwnedFd>,
    lid: Option<LinkId>,
    /// Of what is neither opened nor a directory.
    still: Option<Still>,
}

/// What was read of an object when it was found, since its name may be another's a moment later.
struct Still {
    /// A symlink's target.
    target: Vec<u8>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Source {
    /// The object that had this name at the point; `None` when it is gone. It stays the same one whatever happens to its
    /// names afterwards.
    pub fn find(&self, vol: VolId, at_q: &Name) -> Result<Option<Found>> {
        let region = self.replica.region(vol)?;
        // Within the order no name changes between asking where the object is and opening it.
        let _order = self.replica.order();
        let Some(now) = self.locate(region, at_q) else { return Ok(None) };
        let Some((stat, what)) = (match region.look(&now) {
            Ok(l) => l,
            Err(e) if tell::is_gone(&e) => None,
            Err(e) => return Err(e),
        }) else {
            return Ok(None);
        };
        let stat = region.wanted(stat);
        let fd = if stat.is_file() { Some(region.open_file(&now, libc::O_RDONLY)?) } else { None };
        let lid = if let What::Linked(l) = what { Some(l) } else { None };
        let still = if stat.is_file() || stat.is_dir() {
            None
        } else {
            let dir = region.dirfd(now.dir)?;
            let target = if stat.is_symlink() { sys::readlinkat(&*dir, &now.name)? } else { Vec::new() };
            Some(Still { target, xattrs: region.xattrs(&dir, &now.name)? })
        };
        Ok(Some(Found { region: region.clone(), at: Target::File(now), stat, fd, lid, still }))
    }

    /// Where the object is now; within the order.
    fn locate(&self, region: &Region, at_q: &Name) -> Option<Name> {
        let other = |l: LinkId| region.ids.read().names_of(l).first().cloned();
        self.watch.lock().locate(region.vol, at_q, other)
    }

    /// Bytes that comparing an extent of a file reads, as far as can be told without looking closely.
    pub fn extent(&self, vol: VolId, at_q: &Name, extent: &Extent) -> u64 {
        let region = self.replica.region(vol).ok();
        let stat = region.and_then(|r| r.look(&self.locate(r, at_q)?).ok().flatten());
        let size = stat.filter(|(s, _)| s.is_file()).map_or(0, |(s, _)| s.size);
        match extent {
            Extent::Whole => size,
            Extent::Ranges(r) => r.bytes(size),
        }
    }

    /// A directory, by id; `None` when it is gone.
    pub fn find_dir(&self, vol: VolId, id: DirId) -> Result<Option<Found>> {
        let region = self.replica.region(vol)?;
        match region.dirfd(id) {
            Ok(fd) => {
                let stat = region.wanted(sys::fstat(&*fd)?);
                Ok(Some(Found { region: region.clone(), at: Target::Dir(id), stat, fd: None, lid: None, still: None }))
            }
            Err(e) if tell::is_gone(&e) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// What a stand-in for a vanished object starts with.
    pub fn default_attr(&self) -> Attr {
        let (uid, gid) = sys::ids();
        Attr { mode: 0o600, uid, gid, mtime: time::now(), ..Attr::default() }
    }
}

impl Found {
    /// Its stat.
    pub fn stat(&self) -> &Stat {
        &self.stat
    }

    /// Its content, if it is a regular file.
    pub fn content(&self) -> Option<&OwnedFd> {
        self.fd.as_ref()
    }

    /// Its link id, when it has or had several links.
    pub fn lid(&self) -> Option<LinkId> {
        self.lid
    }

    /// Its stat, as late as it can be had.
    fn stat_now(&self) -> Result<Stat> {
        Ok(match (&self.fd, &self.still) {
            (Some(fd), _) => sys::fstat(fd)?,
            (None, Some(_)) => self.stat,
            (None, None) => {
                let (dir, name) = self.region.reach(&self.at)?;
                if name.is_empty() { sys::fstat(&*dir)? } else { sys::statat(&*dir, name)? }
            }
        })
    }

    fn xattrs(&self) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        match (&self.fd, &self.still) {
            (Some(fd), _) => self.region.xattrs(fd, b""),
            (None, Some(s)) => Ok(s.xattrs.clone()),
            (None, None) => {
                let (dir, name) = self.region.reach(&self.at)?;
                self.region.xattrs(&dir, name)
            }
        }
    }

    /// Its state now, as a receiver would tell it.
    pub fn have(&self) -> Result<Have> {
        let target = self.still.as_ref().map_or_else(Vec::new, |s| s.target.clone());
        let have = tell::plain(&self.region, &self.stat_now()?, self.lid);
        Ok(Have { target, xattrs: self.xattrs()?, ..have })
    }

    /// What it is.
    pub fn kind(&self) -> NodeKind {
        match self.stat.mode & libc::S_IFMT {
            libc::S_IFLNK => NodeKind::Symlink(self.still.as_ref().map_or_else(Vec::new, |s| s.target.clone())),
            libc::S_IFIFO => NodeKind::Fifo,
            libc::S_IFSOCK => NodeKind::Socket,
            libc::S_IFCHR => NodeKind::Char(self.stat.rdev),
            libc::S_IFBLK => NodeKind::Block(self.stat.rdev),
            _ => NodeKind::File,
        }
    }

    /// Its mode, owner and time.
    pub fn attr(&self) -> Attr {
        let s = &self.stat;
        Attr { mode: s.perm(), uid: s.uid, gid: s.gid, mtime: s.mtime, acl_access: None, acl_default: None }
    }

    /// The operations that give `to` at the target the attributes of this object. `have`: what it has; `written`: its
    /// content was changed, so its mtime is set in any case.
    pub fn attr_ops(&self, to: Target, have: Option<&Have>, written: bool) -> Result<Vec<Op>> {
        let s = self.region.wanted(self.stat_now()?);
        let symlink = s.is_symlink();
        let mut ops = Vec::new();
        let owner = have.is_none_or(|h| h.uid != s.uid || h.gid != s.gid);
        // What was written to may have lost setuid and setgid on the way, and its capability.
        let lost = written && s.perm() & 0o6000 != 0;
        let mode = !symlink && (owner || lost || have.is_none_or(|h| h.mode & 0o7777 != s.perm()));
        let xattrs = self.xattrs()?;
        if owner || mode {
            ops.push(Op::SetAttr {
                at: to.clone(),
                mode: mode.then_some(s.perm()),
                uid: owner.then_some(s.uid),
                gid: owner.then_some(s.gid),
                atime: None,
                mtime: None,
            });
        }
        let theirs = have.map(|h| h.xattrs.as_slice()).unwrap_or(&[]);
        for (k, v) in &xattrs {
            let lost = (written || owner) && k == CAPABILITY;
            if lost || !theirs.iter().any(|(tk, tv)| tk == k && tv == v) {
                ops.push(Op::SetXattr { at: to.clone(), name: k.clone(), value: v.clone() });
            }
        }
        for (k, _) in theirs {
            if !xattrs.iter().any(|(sk, _)| sk == k) {
                ops.push(Op::RemoveXattr { at: to.clone(), name: k.clone() });
            }
        }
        if written || have.is_none_or(|h| h.mtime != s.mtime) || !ops.is_empty() {
            ops.push(Op::SetAttr { at: to, mode: None, uid: None, gid: None, atime: None, mtime: Some(s.mtime) });
        }
        Ok(ops)
    }
}

/// Walks the ranges of a file that may differ and yields what makes the target equal.
pub struct Differ<'a> {
    found: &'a Found,
    theirs: Vec<(u64, &'a [BlockHash])>,
    todo: VecDeque<(u64, u64)>,
    out: VecDeque<(Op2, Vec<u8>)>,
    size_told: u64,
    size_done: bool,
    /// Bytes compared.
    pub compared: u64,
    /// Bytes of data sent.
    pub bytes: u64,
    /// The size was changed or something was punched.
    pub resized: bool,
}

enum Op2 {
    Write(u64),
    Punch(u64, u64),
    Size(u64),
}

impl<'a> Differ<'a> {
    /// For one file; `told`: the target's state and hashes for exactly these ranges.
    pub fn new(found: &'a Found, told: &'a Option<Told>, extent: &Extent) -> Differ<'a> {
        const B: u64 = limits::COMPARE_BLOCK_BYTES;
        let ranges: Vec<(u64, u64)> = match extent {
            Extent::Whole => vec![(0, u64::MAX)],
            Extent::Ranges(r) => r.iter().map(|(a, b)| (a / B * B, b)).collect(),
        };
        let have = told.as_ref().and_then(|t| t.have.as_ref());
        let theirs = match told {
            Some(t) if have.is_some() => ranges.iter().zip(&t.blocks).map(|((a, _), b)| (*a, b.as_slice())).collect(),
            _ => Vec::new(),
        };
        Differ {
            found,
            theirs,
            todo: ranges.into(),
            out: VecDeque::new(),
            size_told: have.map_or(0, |h| h.size),
            size_done: found.fd.is_none() || matches!(extent, Extent::Ranges(r) if r.is_empty()),
            compared: 0,
            bytes: 0,
            resized: false,
        }
    }

    /// Compares the next part, of [`CHUNK`] bytes at most; false when all is done.
    pub fn advance(&mut self) -> Result<bool> {
        let Some(fd) = &self.found.fd else { return Ok(false) };
        let size = sys::fstat(fd)?.size;
        if !std::mem::replace(&mut self.size_done, true) && self.size_told != size {
            self.resized = true;
            self.out.push_back((Op2::Size(size), Vec::new()));
            return Ok(true);
        }
        let Some((from, to)) = self.todo.pop_front() else { return Ok(false) };
        let to = to.min(size);
        if from < to {
            let end = to.min(from + CHUNK);
            self.compare(fd, from, end)?;
            self.compared += end - from;
            if end < to {
                self.todo.push_front((end, to));
            }
        }
        Ok(true)
    }

    /// The next operation on `at` that the parts compared so far call for, with its data.
    pub fn take(&mut self, at: &Name) -> Option<(Op, Vec<u8>)> {
        self.out.pop_front().map(|(o, data)| {
            let at = at.clone();
            match o {
                Op2::Write(off) => (Op::Write { at, off, mtime: None }, data),
                Op2::Punch(off, len) => (Op::Fallocate { at, mode: 3, off, len, mtime: None }, data),
                Op2::Size(size) => (Op::Truncate { at, size, mtime: None }, data),
            }
        })
    }

    fn compare(&mut self, fd: &OwnedFd, from: u64, end: u64) -> Result<()> {
        const B: u64 = limits::COMPARE_BLOCK_BYTES;
        let mut buf = Vec::new();
        let ours = tell::blocks(fd, from, end, &mut buf)?;
        let start = self.theirs.iter().rev().find(|(a, _)| *a <= from).copied();
        // Of a large file not everything is told, and what is not may be anything.
        let told = self.size_told;
        let their = |i: u64| -> Option<BlockHash> {
            let beyond = (from + i * B >= told).then_some(None);
            let Some((a, list)) = start else { return beyond };
            list.get(((from - a) / B + i) as usize).copied().or(beyond)
        };
        let mut run: Option<(u64, Vec<u8>)> = None;
        for (i, our) in ours.iter().enumerate() {
            let off = from + i as u64 * B;
            let len = B.min(end - off);
            let differs = Some(*our) != their(i as u64);
            match (differs, our.is_some()) {
                (true, true) => {
                    let a = (off - from) as usize;
                    let bytes = buf.get(a..a + len as usize).unwrap_or(&[]);
                    run.get_or_insert_with(|| (off, Vec::new())).1.extend_from_slice(bytes);
                }
                _ => {
                    self.flush(&mut run);
                    if differs {
                        self.resized = true;
                        self.out.push_back((Op2::Punch(off, len), Vec::new()));
                    }
                }
            }
        }
        self.flush(&mut run);
        Ok(())
    }

    fn flush(&mut self, run: &mut Option<(u64, Vec<u8>)>) {
        if let Some((off, data)) = run.take() {
            self.bytes += data.len() as u64;
            self.out.push_back((Op2::Write(off), data));
        }
    }
}
