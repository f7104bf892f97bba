//! What POSIX and Linux say, in memory: a file system small enough to be seen to be right.
//!
//! Each operation gives what the real one must answer. Where the result depends on the moment (times), the model holds
//! what it may be and adopts what was seen, so that from then on, and at the other sites, it must be exactly that.

#[path = "content.rs"]
mod content;

use super::ops::{Op, Path, SLOTS, XATTRS, names};
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub type Ino = u64;
pub const ROOT: Ino = 1;
/// The longest name, bytes.
const NAME_MAX: usize = 255;
/// Symlinks followed in one path, at most.
const FOLLOWED_MAX: usize = 40;
/// The kernel stamps times with a clock that ticks this seldom, at least.
const TICK: Duration = Duration::from_millis(25);

/// A mistake that is made on purpose, to see that it would be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    None,
    /// What is cut off by a truncation comes back when the file grows again.
    CutComesBack,
    /// A write to a file that is opened with O_APPEND goes where its offset says.
    AppendAtOffset,
    /// An exchange is a rename.
    ExchangeIsRename,
    /// A rename between two names of one file removes the first.
    RenameOfOneFile,
    /// Punching a hole beyond the end makes the file longer.
    PunchExtends,
    /// A removed file that is open still counts the name.
    LinkCount,
    /// O_EXCL follows a symlink that leads nowhere.
    ExclFollows,
    /// A new directory in a setgid directory does not get its group.
    NoSetgid,
    /// Setting an attribute with XATTR_CREATE replaces it.
    XattrReplaced,
}

/// What an operation gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Errno(i32),
    Done,
    Number(u64),
    Bytes(Vec<u8>),
    Names(Vec<Vec<u8>>),
    Stat(Stat),
}

/// What can be seen of an object. Sizes and links of directories are the file system's own business: 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    pub kind: &'static str,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub links: u64,
    pub size: u64,
    pub mtime: Mtime,
    /// The model's own number, or the real one: equal numbers must mean equal objects.
    pub ino: Ino,
}

/// A modification time as far as it is known; times since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mtime {
    Is(i64, i64),
    Between(Duration, Duration),
    Any,
}

impl Mtime {
    pub fn allows(self, sec: i64, nsec: i64) -> bool {
        match self {
            Mtime::Is(s, n) => (s, n) == (sec, nsec),
            Mtime::Any => true,
            Mtime::Between(a, b) => {
                let at = Duration::new(sec.try_into().unwrap_or(0), nsec as u32);
                a <= at && at <= b
            }
        }
    }
}

/// The time that an operation took.
#[derive(Clone, Copy)]
pub struct Span {
    from: Duration,
}

impl Span {
    pub fn begin() -> Span {
        Span { from: now().saturating_sub(TICK) }
    }

    fn end(self) -> Mtime {
        Mtime::Between(self.from, now() + TICK)
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[derive(Clone, Debug, Default)]
pub struct Content {
    pub data: Vec<u8>,
    /// What it was since the last promise (fsync, close): after a crash each byte may be one of these.
    pub earlier: Vec<Vec<u8>>,
    /// For a mistake: what was cut off.
    cut: Vec<u8>,
}

#[derive(Clone, Debug)]
pub enum Kind {
    File(Content),
    Dir(BTreeMap<Vec<u8>, Ino>),
    Symlink(Vec<u8>),
    Fifo,
}

#[derive(Clone, Debug)]
pub struct Inode {
    pub kind: Kind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub links: u64,
    pub mtime: Mtime,
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

#[derive(Clone, Copy, Debug)]
struct Handle {
    ino: Ino,
    read: bool,
    write: bool,
    append: bool,
    at: u64,
}

struct Found {
    dir: Ino,
    name: Vec<u8>,
    ino: Option<Ino>,
}

/// The file system.
#[derive(Clone)]
pub struct Model {
    pub inodes: BTreeMap<Ino, Inode>,
    next: Ino,
    slots: [Option<Handle>; SLOTS as usize],
    names: Vec<Vec<u8>>,
    /// Who works.
    ids: (u32, u32),
    /// Each write is a promise, not only fsync and close.
    write_through: bool,
    mistake: Mistake,
}

type Res<T> = Result<T, i32>;

impl Model {
    pub fn new(ids: (u32, u32), write_through: bool, mistake: Mistake) -> Model {
        let root = Inode {
            kind: Kind::Dir(BTreeMap::new()),
            mode: 0o755,
            uid: ids.0,
            gid: ids.1,
            links: 0,
            mtime: Mtime::Any,
            xattrs: BTreeMap::new(),
        };
        let inodes = BTreeMap::from([(ROOT, root)]);
        Model { inodes, next: ROOT + 1, slots: [None; SLOTS as usize], names: names(), ids, write_through, mistake }
    }

    /// False for what would block: then nobody does it.
    pub fn can(&self, op: &Op) -> bool {
        let fifo = |path: &Path| {
            self.find(path, true).ok().and_then(|f| f.ino).is_some_and(|i| matches!(self.inodes[&i].kind, Kind::Fifo))
        };
        // Opening a FIFO waits for its other end.
        !matches!(op, Op::Open { path, .. } if fifo(path))
    }

    /// What the operation, which took place within the span, must have answered.
    pub fn apply(&mut self, op: &Op, span: Span) -> Answer {
        self.answer(op, span.end()).unwrap_or_else(Answer::Errno)
    }

    fn answer(&mut self, op: &Op, now: Mtime) -> Res<Answer> {
        match op {
            Op::Open { slot, path, flags, mode } => self.open(*slot, path, *flags, *mode, now),
            Op::Close { slot } => self.close(*slot),
            Op::Read { slot, len } => {
                let at = self.handle(*slot)?.at;
                let got = self.pread(*slot, at, *len)?;
                self.slots[*slot as usize].iter_mut().for_each(|h| h.at += got.len() as u64);
                Ok(Answer::Bytes(got))
            }
            Op::Pread { slot, at, len } => self.pread(*slot, *at, *len).map(Answer::Bytes),
            Op::Write { slot, len, stamp } => {
                let h = self.handle(*slot)?;
                let end = self.write(*slot, h.at, &Op::bytes(*stamp, *len), now)?;
                self.slots[*slot as usize].iter_mut().for_each(|h| h.at = if *len > 0 { end } else { h.at });
                Ok(Answer::Number(*len))
            }
            Op::Pwrite { slot, at, len, stamp } => {
                self.write(*slot, *at, &Op::bytes(*stamp, *len), now)?;
                Ok(Answer::Number(*len))
            }
            Op::Seek { slot, at } => {
                let ino = self.handle(*slot)?.ino;
                // Where a directory's position may be is the file system's business.
                if matches!(self.inodes[&ino].kind, Kind::File(_)) {
                    self.slots[*slot as usize].iter_mut().for_each(|h| h.at = *at);
                }
                Ok(Answer::Done)
            }
            Op::MapWrite { slot, at, len, stamp } => self.map_write(*slot, *at, &Op::bytes(*stamp, *len), now),
            Op::CopyRange { from, at, to, to_at, len } => self.copy_range([*from, *to], [*at, *to_at], *len, now),
            Op::Ftruncate { slot, size } => {
                let h = self.handle(*slot)?;
                if !h.write {
                    return Err(libc::EINVAL);
                }
                self.resize(h.ino, *size, now)
            }
            Op::Truncate { path, size } => {
                let ino = self.existing(path, true)?;
                match self.inodes[&ino].kind {
                    Kind::Dir(_) => Err(libc::EISDIR),
                    Kind::File(_) => self.resize(ino, *size, now),
                    _ => Err(libc::EINVAL),
                }
            }
            Op::Fallocate { slot, mode, at, len } => self.fallocate(*slot, *mode, *at, *len),
            Op::Fsync { slot, .. } => {
                let ino = self.handle(*slot)?.ino;
                self.promised(ino);
                Ok(Answer::Done)
            }
            Op::Mkdir { path, mode } => {
                self.make(path, Kind::Dir(BTreeMap::new()), mode & 0o1777, now).map(|_| Answer::Done)
            }
            Op::Mkfifo { path, mode } => self.make(path, Kind::Fifo, *mode, now).map(|_| Answer::Done),
            Op::Symlink { target, path } => {
                let target = self.joined(target);
                self.make(path, Kind::Symlink(target), 0o777, now).map(|_| Answer::Done)
            }
            Op::Readlink { path } => match &self.inodes[&self.existing(path, false)?].kind {
                Kind::Symlink(target) => Ok(Answer::Bytes(target.clone())),
                _ => Err(libc::EINVAL),
            },
            Op::Link { from, to } => self.link(from, to, now),
            Op::Unlink { path } => self.unlink(path, now),
            Op::Rmdir { path } => self.rmdir(path, now),
            Op::Rename { from, to, flags } => self.rename(from, to, *flags, now),
            Op::Chmod { path, mode } => {
                let ino = self.existing(path, true)?;
                self.inode(ino).mode = *mode;
                Ok(Answer::Done)
            }
            Op::Fchmod { slot, mode } => {
                let ino = self.handle(*slot)?.ino;
                self.inode(ino).mode = *mode;
                Ok(Answer::Done)
            }
            Op::Chown { path, uid, gid } => {
                let ino = self.existing(path, false)?;
                let node = self.inode(ino);
                (node.uid, node.gid) = (*uid, *gid);
                if !matches!(node.kind, Kind::Dir(_)) {
                    let group_runs = node.mode & 0o010 != 0;
                    node.mode &= if group_runs { !0o6000 } else { !0o4000 };
                }
                Ok(Answer::Done)
            }
            Op::Utimens { path, sec, nsec } => {
                let ino = self.existing(path, false)?;
                self.inode(ino).mtime = Mtime::Is(*sec, *nsec);
                Ok(Answer::Done)
            }
            Op::SetXattr { path, name, len, stamp, flags } => {
                self.set_xattr(path, *name, &Op::bytes(*stamp, *len), *flags)
            }
            Op::GetXattr { path, name } => {
                let node = &self.inodes[&self.existing(path, false)?];
                let value = node.xattrs.get(XATTRS[*name as usize]).ok_or(libc::ENODATA)?;
                Ok(Answer::Bytes(value.clone()))
            }
            Op::RemoveXattr { path, name } => {
                let ino = self.existing(path, false)?;
                self.may_have(ino, *name)?;
                let gone = self.inode(ino).xattrs.remove(XATTRS[*name as usize]);
                gone.map(|_| Answer::Done).ok_or(libc::ENODATA)
            }
            Op::ListXattr { path } => {
                let node = &self.inodes[&self.existing(path, false)?];
                Ok(Answer::Names(node.xattrs.keys().map(|n| n.clone().into_bytes()).collect()))
            }
            Op::Lstat { path } => Ok(Answer::Stat(self.stat(self.existing(path, false)?))),
            Op::Fstat { slot } => Ok(Answer::Stat(self.stat(self.handle(*slot)?.ino))),
            Op::Readdir { path } => match &self.inodes[&self.existing(path, true)?].kind {
                Kind::Dir(entries) => Ok(Answer::Names(entries.keys().cloned().collect())),
                _ => Err(libc::ENOTDIR),
            },
        }
    }

    // Objects and paths.

    pub fn stat(&self, ino: Ino) -> Stat {
        let node = &self.inodes[&ino];
        let (kind, links, size) = match &node.kind {
            Kind::File(c) => ("file", node.links, c.data.len() as u64),
            Kind::Dir(_) => ("directory", 0, 0),
            Kind::Symlink(target) => ("symlink", node.links, target.len() as u64),
            Kind::Fifo => ("fifo", node.links, 0),
        };
        Stat { kind, mode: node.mode, uid: node.uid, gid: node.gid, links, size, mtime: node.mtime, ino }
    }

    fn inode(&mut self, ino: Ino) -> &mut Inode {
        self.inodes.get_mut(&ino).expect("an inode that is named or open")
    }

    fn entries(&mut self, dir: Ino) -> &mut BTreeMap<Vec<u8>, Ino> {
        match &mut self.inode(dir).kind {
            Kind::Dir(entries) => entries,
            _ => unreachable!("a directory"),
        }
    }

    fn handle(&self, slot: u8) -> Res<Handle> {
        self.slots[slot as usize].ok_or(libc::EBADF)
    }

    /// What an open slot may be read through, for a look at the whole content.
    pub fn readable(&self, slot: u8) -> Option<&[u8]> {
        let h = self.slots[slot as usize].filter(|h| h.read)?;
        match &self.inodes[&h.ino].kind {
            Kind::File(c) => Some(&c.data),
            _ => None,
        }
    }

    fn joined(&self, path: &Path) -> Vec<u8> {
        path.iter().map(|n| self.names[*n as usize].as_slice()).collect::<Vec<_>>().join(&b'/')
    }

    fn find(&self, path: &Path, follow: bool) -> Res<Found> {
        let mut left: VecDeque<Vec<u8>> = path.iter().map(|n| self.names[*n as usize].clone()).collect();
        let (mut dir, mut followed) = (ROOT, 0);
        loop {
            let name = left.pop_front().ok_or(libc::ENOENT)?;
            let Kind::Dir(entries) = &self.inodes[&dir].kind else { return Err(libc::ENOTDIR) };
            if name.len() > NAME_MAX {
                return Err(libc::ENAMETOOLONG);
            }
            let (last, ino) = (left.is_empty(), entries.get(&name).copied());
            match ino.map(|i| (i, &self.inodes[&i].kind)) {
                Some((_, Kind::Symlink(target))) if !last || follow => {
                    followed += 1;
                    if followed > FOLLOWED_MAX {
                        return Err(libc::ELOOP);
                    }
                    for part in target.split(|b| *b == b'/').rev() {
                        left.push_front(part.to_vec());
                    }
                }
                _ if last => return Ok(Found { dir, name, ino }),
                None => return Err(libc::ENOENT),
                Some((i, _)) => dir = i,
            }
        }
    }

    fn existing(&self, path: &Path, follow: bool) -> Res<Ino> {
        self.find(path, follow)?.ino.ok_or(libc::ENOENT)
    }

    /// The directory that holds, or could hold, the last name of a path.
    fn parent(&self, path: &Path) -> Res<()> {
        let above = &path[..path.len() - 1];
        if above.is_empty() {
            return Ok(());
        }
        match self.inodes[&self.existing(&above.to_vec(), true)?].kind {
            Kind::Dir(_) => Ok(()),
            _ => Err(libc::ENOTDIR),
        }
    }

    fn make(&mut self, path: &Path, kind: Kind, mode: u32, now: Mtime) -> Res<Ino> {
        let found = self.find(path, false)?;
        if found.ino.is_some() {
            return Err(libc::EEXIST);
        }
        Ok(self.make_at(found.dir, found.name, kind, mode, now))
    }

    fn make_at(&mut self, dir: Ino, name: Vec<u8>, kind: Kind, mode: u32, now: Mtime) -> Ino {
        let (parent, is_dir) = (&self.inodes[&dir], matches!(kind, Kind::Dir(_)));
        let setgid = parent.mode & 0o2000 != 0 && self.mistake != Mistake::NoSetgid;
        let gid = if setgid { parent.gid } else { self.ids.1 };
        let mode = if setgid && is_dir { mode | 0o2000 } else { mode };
        let ino = self.next;
        self.next += 1;
        let node = Inode { kind, mode, uid: self.ids.0, gid, links: 1, mtime: now, xattrs: BTreeMap::new() };
        self.inodes.insert(ino, node);
        self.entries(dir).insert(name, ino);
        self.inode(dir).mtime = now;
        ino
    }

    /// One name less; without a name and a handle the object is gone.
    fn unname(&mut self, ino: Ino) {
        if self.mistake != Mistake::LinkCount || !self.is_open(ino) {
            self.inode(ino).links -= 1;
        }
        self.forget(ino);
    }

    fn is_open(&self, ino: Ino) -> bool {
        self.slots.iter().flatten().any(|h| h.ino == ino)
    }

    fn forget(&mut self, ino: Ino) {
        if self.inodes[&ino].links == 0 && !self.is_open(ino) {
            self.inodes.remove(&ino);
        }
    }

    // Names.

    fn link(&mut self, from: &Path, to: &Path, now: Mtime) -> Res<Answer> {
        let ino = self.existing(from, false)?;
        let found = self.find(to, false)?;
        if found.ino.is_some() {
            return Err(libc::EEXIST);
        }
        if matches!(self.inodes[&ino].kind, Kind::Dir(_)) {
            return Err(libc::EPERM);
        }
        self.entries(found.dir).insert(found.name, ino);
        self.inode(found.dir).mtime = now;
        self.inode(ino).links += 1;
        Ok(Answer::Done)
    }

    fn unlink(&mut self, path: &Path, now: Mtime) -> Res<Answer> {
        let found = self.find(path, false)?;
        let ino = found.ino.ok_or(libc::ENOENT)?;
        if matches!(self.inodes[&ino].kind, Kind::Dir(_)) {
            return Err(libc::EISDIR);
        }
        self.entries(found.dir).remove(&found.name);
        self.inode(found.dir).mtime = now;
        self.unname(ino);
        Ok(Answer::Done)
    }

    fn rmdir(&mut self, path: &Path, now: Mtime) -> Res<Answer> {
        let found = self.find(path, false)?;
        let ino = found.ino.ok_or(libc::ENOENT)?;
        match &self.inodes[&ino].kind {
            Kind::Dir(entries) if entries.is_empty() => {}
            Kind::Dir(_) => return Err(libc::ENOTEMPTY),
            _ => return Err(libc::ENOTDIR),
        }
        self.entries(found.dir).remove(&found.name);
        self.inode(found.dir).mtime = now;
        self.unname(ino);
        Ok(Answer::Done)
    }

    /// True when `dir` is `below` or contains it.
    fn contains(&self, dir: Ino, below: Ino) -> bool {
        let inside = |i: &Ino| self.contains(*i, below);
        dir == below || matches!(&self.inodes[&dir].kind, Kind::Dir(entries) if entries.values().any(inside))
    }

    fn rename(&mut self, from: &Path, to: &Path, flags: u32, now: Mtime) -> Res<Answer> {
        // Both parents are looked up before either last name is.
        self.parent(from)?;
        self.parent(to)?;
        let (old, new) = (self.find(from, false)?, self.find(to, false)?);
        let ino = old.ino.ok_or(libc::ENOENT)?;
        let exchange = flags & libc::RENAME_EXCHANGE != 0;
        if flags & libc::RENAME_NOREPLACE != 0 && new.ino.is_some() {
            return Err(libc::EEXIST);
        }
        if exchange && new.ino.is_none() {
            return Err(libc::ENOENT);
        }
        if self.contains(ino, new.dir) {
            return Err(libc::EINVAL);
        }
        if let Some(target) = new.ino {
            if self.contains(target, old.dir) {
                return Err(if exchange { libc::EINVAL } else { libc::ENOTEMPTY });
            }
            if target == ino {
                if self.mistake == Mistake::RenameOfOneFile && (old.dir, &old.name) != (new.dir, &new.name) {
                    self.entries(old.dir).remove(&old.name);
                    self.unname(ino);
                }
                return Ok(Answer::Done);
            }
            if !exchange {
                let dir = |i: Ino| matches!(self.inodes[&i].kind, Kind::Dir(_));
                match (dir(ino), &self.inodes[&target].kind) {
                    (true, Kind::Dir(entries)) if !entries.is_empty() => return Err(libc::ENOTEMPTY),
                    (true, Kind::Dir(_)) => {}
                    (true, _) => return Err(libc::ENOTDIR),
                    (false, Kind::Dir(_)) => return Err(libc::EISDIR),
                    _ => {}
                }
            }
        }
        self.entries(old.dir).remove(&old.name);
        let replaced = self.entries(new.dir).insert(new.name, ino);
        match replaced {
            Some(other) if exchange && self.mistake != Mistake::ExchangeIsRename => {
                self.entries(old.dir).insert(old.name, other);
                self.moved(other, new.dir, old.dir);
            }
            Some(other) => self.unname(other),
            None => {}
        }
        self.moved(ino, old.dir, new.dir);
        self.inode(old.dir).mtime = now;
        self.inode(new.dir).mtime = now;
        Ok(Answer::Done)
    }

    /// Whether a directory that gets another parent is modified by that is the file system's choice.
    fn moved(&mut self, ino: Ino, from: Ino, to: Ino) {
        if from != to && matches!(self.inodes[&ino].kind, Kind::Dir(_)) {
            self.inode(ino).mtime = Mtime::Any;
        }
    }

    // Attributes.

    /// Attributes of users are for files and directories only.
    fn may_have(&self, ino: Ino, name: u8) -> Res<()> {
        let fits = matches!(self.inodes[&ino].kind, Kind::File(_) | Kind::Dir(_));
        if fits || !XATTRS[name as usize].starts_with("user.") { Ok(()) } else { Err(libc::EPERM) }
    }

    fn set_xattr(&mut self, path: &Path, name: u8, value: &[u8], flags: i32) -> Res<Answer> {
        let ino = self.existing(path, false)?;
        self.may_have(ino, name)?;
        let mistake = self.mistake;
        let xattrs = &mut self.inode(ino).xattrs;
        let key = XATTRS[name as usize];
        match xattrs.contains_key(key) {
            true if flags == libc::XATTR_CREATE && mistake != Mistake::XattrReplaced => Err(libc::EEXIST),
            false if flags == libc::XATTR_REPLACE => Err(libc::ENODATA),
            _ => {
                xattrs.insert(key.to_owned(), value.to_vec());
                Ok(Answer::Done)
            }
        }
    }

    // Crashes.

    /// The node was killed: what is open is lost, and with it what has no name.
    pub fn crash(&mut self) {
        for slot in 0..SLOTS {
            if let Some(h) = self.slots[slot as usize].take() {
                self.forget(h.ino);
            }
        }
    }

    /// Files of which something was not promised.
    pub fn uncertain(&self) -> Vec<Ino> {
        let open = |n: &Inode| matches!(&n.kind, Kind::File(c) if !c.earlier.is_empty());
        self.inodes.iter().filter(|(_, n)| open(n)).map(|(i, _)| *i).collect()
    }

    /// What was found of such a file after a crash: adopted if it may be so.
    pub fn adopt(&mut self, ino: Ino, found: Vec<u8>) -> Result<(), String> {
        let c = self.content(ino).map_err(|e| format!("errno {e}"))?;
        let versions: Vec<&Vec<u8>> = c.earlier.iter().chain([&c.data]).collect();
        let (least, most) = (versions.iter().map(|v| v.len()).min(), versions.iter().map(|v| v.len()).max());
        if found.len() < least.unwrap_or(0) || found.len() > most.unwrap_or(0) {
            return Err(format!("has {} bytes, promised {least:?}, possible {most:?}", found.len()));
        }
        // Beyond the end of a version there is nothing, which reads as zeros.
        let wrong = (0..found.len()).find(|i| !versions.iter().any(|v| v.get(*i).copied().unwrap_or(0) == found[*i]));
        if let Some(at) = wrong {
            return Err(format!("byte {at} is none of those that it was since the last promise"));
        }
        *c = Content { data: found, ..Content::default() };
        self.inode(ino).mtime = Mtime::Any;
        Ok(())
    }
}
