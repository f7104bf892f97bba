//! One call of a random sequence, and what it gave: the same for the simulated disk and for a real directory.

use crate::rng::Rng;
use std::fmt;

/// Descriptors that a sequence has; the first is its top directory and is never closed.
pub const SLOTS: usize = 6;

/// A path relative to a descriptor; an empty one is the open object itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    pub slot: usize,
    pub path: Vec<u8>,
}

impl Place {
    /// Whether it is the open object itself.
    pub fn itself(&self) -> bool {
        self.path.is_empty()
    }
}

/// A call.
#[derive(Clone, Debug)]
pub enum Step {
    Open {
        into: usize,
        at: Place,
        flags: i32,
        mode: u32,
        beneath: bool,
    },
    Reopen {
        into: usize,
        from: usize,
        flags: i32,
    },
    Close(usize),
    Pread {
        slot: usize,
        off: u64,
        len: usize,
    },
    Pwrite {
        slot: usize,
        off: u64,
        len: usize,
        byte: u8,
    },
    Read {
        slot: usize,
        len: usize,
    },
    Write {
        slot: usize,
        len: usize,
        byte: u8,
    },
    Seek {
        slot: usize,
        off: i64,
        whence: i32,
    },
    Truncate {
        slot: usize,
        size: u64,
    },
    Allocate {
        slot: usize,
        mode: i32,
        off: u64,
        len: u64,
    },
    Stat {
        at: Place,
        follow: bool,
    },
    List {
        slot: usize,
    },
    Mkdir {
        at: Place,
        mode: u32,
    },
    Mknod {
        at: Place,
        mode: u32,
        rdev: u64,
    },
    Symlink {
        target: Vec<u8>,
        at: Place,
    },
    Readlink {
        at: Place,
    },
    Link {
        from: Place,
        follow: bool,
        to: Place,
    },
    Unlink {
        at: Place,
    },
    Rmdir {
        at: Place,
    },
    Rename {
        from: Place,
        to: Place,
        flags: u32,
    },
    Chmod {
        at: Place,
        mode: u32,
    },
    Chown {
        at: Place,
        follow: bool,
        uid: Option<u32>,
        gid: Option<u32>,
    },
    /// utimens, and a stat of the same place at once.
    Utimens {
        at: Place,
        follow: bool,
        atime: Option<i64>,
        mtime: Option<i64>,
    },
    GetXattr {
        slot: usize,
        name: Vec<u8>,
    },
    SetXattr {
        slot: usize,
        name: Vec<u8>,
        value: Vec<u8>,
        flags: i32,
    },
    RemoveXattr {
        slot: usize,
        name: Vec<u8>,
    },
    ListXattr {
        slot: usize,
    },
    Sync {
        slot: usize,
        data_only: bool,
    },
}

/// What stat(2) tells and must be the same everywhere.
#[derive(Clone, PartialEq, Debug)]
pub struct Seen {
    pub mode: u32,
    pub nlink: u64,
    pub owner: (u32, u32),
    pub rdev: u64,
    pub size: u64,
}

/// What a call gave.
#[derive(Clone, PartialEq)]
pub enum Value {
    Nothing,
    Number(u64),
    Bytes(Vec<u8>),
    Seen(Seen),
    /// Names with `DT_*`.
    Names(Vec<(Vec<u8>, u8)>),
    Times(Option<i64>, Option<i64>),
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Value::Nothing => write!(f, "done"),
            Value::Number(n) => write!(f, "{n}"),
            Value::Bytes(b) => write!(f, "{} bytes in runs {:?}", b.len(), runs(b)),
            Value::Seen(s) => write!(f, "{s:?}"),
            Value::Names(n) => {
                f.debug_list().entries(n.iter().map(|(n, k)| (String::from_utf8_lossy(n).into_owned(), k))).finish()
            }
            Value::Times(a, m) => write!(f, "times {a:?} {m:?}"),
        }
    }
}

/// Runs of equal bytes: what a person can compare.
pub fn runs(bytes: &[u8]) -> Vec<(u8, usize)> {
    let mut all: Vec<(u8, usize)> = Vec::new();
    for b in bytes {
        match all.last_mut() {
            Some((last, n)) if last == b => *n += 1,
            _ => all.push((*b, 1)),
        }
    }
    all
}

/// A result: a value or an errno.
pub type Gave = Result<Value, i32>;

/// What the real directory can do; what it cannot is not drawn.
#[derive(Clone, Copy, Debug)]
pub struct Ability {
    /// Root that may do what root may: chown, mknod, trusted xattrs.
    pub root: bool,
    pub xattrs: bool,
    pub allocate: bool,
    pub zero_range: bool,
    pub tmpfile: bool,
    pub beneath: bool,
    pub exchange: bool,
    pub holes: bool,
    /// Directories count the directories in them as links.
    pub dir_links: bool,
}

/// A device that no kernel has a driver for.
pub const STRANGE_DEVICE: u64 = libc::makedev(4000, 300);
const NAMES: [&[u8]; 5] = [b"a", b"b", b"c", b"d", b"e"];
const OFFSETS: [u64; 8] = [0, 1, 511, 4095, 4096, 5000, 8192, 16_384];

/// Draws the calls of a sequence.
pub struct Drawer {
    pub rng: Rng,
    pub able: Ability,
    /// Paths from the top at which something was made, and slots that were opened: most calls are to find something.
    known: Vec<Vec<u8>>,
    open: Vec<usize>,
}

impl Drawer {
    pub fn new(rng: Rng, able: Ability) -> Drawer {
        Drawer { rng, able, known: Vec::new(), open: vec![0] }
    }

    /// Learns from a call that went well.
    pub fn went_well(&mut self, step: &Step) {
        match step {
            Step::Open { into, .. } | Step::Reopen { into, .. } if !self.open.contains(into) => self.open.push(*into),
            Step::Close(slot) => self.open.retain(|s| s != slot),
            _ => {}
        }
        match step {
            Step::Open { at, .. }
            | Step::Mkdir { at, .. }
            | Step::Mknod { at, .. }
            | Step::Symlink { at, .. }
            | Step::Link { to: at, .. }
            | Step::Rename { to: at, .. }
                if at.slot == 0 && at.path.len() < 40 && !self.known.contains(&at.path) =>
            {
                self.known.push(at.path.clone());
            }
            _ => {}
        }
    }

    fn part(&mut self) -> Vec<u8> {
        match self.rng.below(60) {
            0 => b".".to_vec(),
            1 | 2 => b"..".to_vec(),
            3 => vec![b'n'; 255],
            4 => vec![b'n'; 256],
            _ => self.rng.pick(&NAMES).to_vec(),
        }
    }

    fn path(&mut self) -> Vec<u8> {
        let mut path = self.part();
        while self.rng.below(5) < 2 && path.len() < 300 {
            path.extend_from_slice(if self.rng.below(20) == 0 { b"//" } else { b"/" });
            path.extend(self.part());
        }
        if self.rng.below(25) == 0 {
            path.push(b'/');
        }
        path
    }

    fn slot(&mut self) -> usize {
        if self.rng.below(8) == 0 { self.rng.index(SLOTS) } else { *self.rng.pick(&self.open) }
    }

    /// Mostly from the top, where the files are.
    fn base(&mut self) -> usize {
        if self.rng.below(4) == 0 { self.slot() } else { 0 }
    }

    fn place(&mut self) -> Place {
        if !self.known.is_empty() && self.rng.below(5) < 3 {
            let mut path = self.rng.pick(&self.known).clone();
            if self.rng.below(3) == 0 {
                path.push(b'/');
                path.extend(self.part());
            }
            return Place { slot: 0, path };
        }
        Place { slot: self.base(), path: self.path() }
    }

    /// Also the open object itself.
    fn any(&mut self) -> Place {
        if self.rng.below(3) == 0 { Place { slot: self.slot(), path: Vec::new() } } else { self.place() }
    }

    fn open_flags(&mut self) -> i32 {
        let mut flags = *self.rng.pick(&[libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR, libc::O_RDWR]);
        if self.able.tmpfile && self.rng.below(20) == 0 {
            return flags | libc::O_TMPFILE | if self.rng.coin() { libc::O_EXCL } else { 0 };
        }
        for (flag, of) in [
            (libc::O_CREAT, 2),
            (libc::O_EXCL, 10),
            (libc::O_TRUNC, 8),
            (libc::O_APPEND, 6),
            (libc::O_NOFOLLOW, 6),
            (libc::O_PATH, 8),
        ] {
            if self.rng.below(of) == 0 {
                flags |= flag;
            }
        }
        // O_EXCL without O_CREAT is undefined, and O_CREAT with O_DIRECTORY was once a file.
        if flags & libc::O_CREAT == 0 {
            flags &= !libc::O_EXCL;
            if self.rng.below(4) == 0 {
                flags |= libc::O_DIRECTORY;
                flags &= if self.rng.coin() { !libc::O_ACCMODE } else { !0 };
            }
        }
        flags | libc::O_NONBLOCK
    }

    fn file_mode(&mut self) -> u32 {
        let modes: &[u32] =
            if self.able.root { &[0o644, 0o600, 0o755, 0o4755, 0o2755, 0o2644, 0] } else { &[0o644, 0o600, 0o755] };
        *self.rng.pick(modes)
    }

    fn dir_mode(&mut self) -> u32 {
        let modes: &[u32] = if self.able.root { &[0o755, 0o700, 0o2755, 0o1755, 0o4711] } else { &[0o755, 0o700] };
        *self.rng.pick(modes)
    }

    fn off(&mut self) -> u64 {
        *self.rng.pick(&OFFSETS)
    }

    fn len(&mut self) -> usize {
        *self.rng.pick(&[0, 1, 10, 600, 4096, 4097, 9000])
    }

    fn byte(&mut self) -> u8 {
        1 + self.rng.below(255) as u8
    }

    /// The next call.
    pub fn step(&mut self) -> Step {
        match self.rng.below(100) {
            0..=21 => Step::Open {
                into: 1 + self.rng.index(SLOTS - 1),
                at: self.place(),
                flags: self.open_flags(),
                mode: self.file_mode(),
                beneath: self.able.beneath && self.rng.below(8) == 0,
            },
            22 | 23 => Step::Reopen {
                into: 1 + self.rng.index(SLOTS - 1),
                from: self.slot(),
                flags: self.open_flags() & !(libc::O_TMPFILE & !libc::O_DIRECTORY) & !libc::O_NOFOLLOW,
            },
            24..=26 => Step::Close(1 + self.rng.index(SLOTS - 1)),
            27..=47 => self.content_step(),
            48..=83 => self.name_step(),
            _ => self.attribute_step(),
        }
    }

    fn content_step(&mut self) -> Step {
        let slot = self.slot();
        match self.rng.below(20) {
            0..=2 => Step::Pread { slot, off: self.off(), len: self.len() },
            3..=7 => Step::Pwrite { slot, off: self.off(), len: self.len(), byte: self.byte() },
            8 | 9 => Step::Read { slot, len: self.len() },
            10..=12 => Step::Write { slot, len: self.len(), byte: self.byte() },
            13 | 14 => self.seek(slot),
            15 | 16 => Step::Truncate { slot, size: self.off() },
            17 | 18 if self.able.allocate => self.allocate(slot),
            _ => Step::Sync { slot, data_only: self.rng.coin() },
        }
    }

    fn seek(&mut self, slot: usize) -> Step {
        let mut all = vec![libc::SEEK_SET, libc::SEEK_CUR, libc::SEEK_END];
        if self.able.holes {
            all.extend([libc::SEEK_DATA, libc::SEEK_HOLE, libc::SEEK_DATA, libc::SEEK_HOLE]);
        }
        let off = self.off() as i64;
        Step::Seek { slot, off: if self.rng.below(6) == 0 { -off } else { off }, whence: *self.rng.pick(&all) }
    }

    fn allocate(&mut self, slot: usize) -> Step {
        const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
        const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE;
        const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
        let modes: &[i32] = if self.able.zero_range {
            &[0, KEEP, PUNCH | KEEP, PUNCH | KEEP, PUNCH, ZERO, ZERO | KEEP]
        } else {
            &[0, KEEP, PUNCH | KEEP, PUNCH]
        };
        Step::Allocate { slot, mode: *self.rng.pick(modes), off: self.off(), len: self.len() as u64 }
    }

    fn name_step(&mut self) -> Step {
        match self.rng.below(36) {
            0..=4 => Step::Mkdir { at: self.place(), mode: self.dir_mode() },
            5 | 6 => {
                let kinds: &[u32] = if self.able.root {
                    &[libc::S_IFIFO, libc::S_IFSOCK, libc::S_IFREG, libc::S_IFCHR, 0, libc::S_IFDIR, libc::S_IFLNK]
                } else {
                    &[libc::S_IFIFO, libc::S_IFSOCK, libc::S_IFREG, 0]
                };
                let kind = *self.rng.pick(kinds);
                Step::Mknod { at: self.place(), mode: kind | 0o640, rdev: STRANGE_DEVICE }
            }
            7..=9 => Step::Symlink { target: self.target(), at: self.place() },
            10 | 11 => Step::Readlink { at: self.any() },
            12..=15 => Step::Link {
                from: if self.able.root { self.any() } else { self.place() },
                follow: self.rng.coin(),
                to: self.place(),
            },
            16..=19 => Step::Unlink { at: self.place() },
            20 | 21 => Step::Rmdir { at: self.place() },
            22..=29 => {
                let mut all = vec![0, 0, 0, libc::RENAME_NOREPLACE];
                if self.able.exchange {
                    all.extend([libc::RENAME_EXCHANGE, libc::RENAME_EXCHANGE | libc::RENAME_NOREPLACE]);
                }
                Step::Rename { from: self.place(), to: self.place(), flags: *self.rng.pick(&all) }
            }
            _ => Step::List { slot: self.slot() },
        }
    }

    fn target(&mut self) -> Vec<u8> {
        match self.rng.below(12) {
            0 => b"/nowhere/at/all".to_vec(),
            1 => Vec::new(),
            2 => vec![b't'; 4095],
            _ => self.path(),
        }
    }

    fn attribute_step(&mut self) -> Step {
        let slot = self.slot();
        match self.rng.below(if self.able.xattrs { 16 } else { 10 }) {
            0..=5 => Step::Stat { at: self.any(), follow: self.rng.coin() },
            6 | 7 => {
                let mode = if self.able.root { self.file_mode() } else { 0o700 | self.file_mode() };
                Step::Chmod { at: self.any(), mode }
            }
            8 if self.able.root => {
                let id = |r: &mut Rng| r.coin().then(|| r.below(3) as u32);
                let (uid, gid) = (id(&mut self.rng), id(&mut self.rng));
                Step::Chown { at: self.any(), follow: self.rng.coin(), uid, gid }
            }
            8 | 9 => {
                let time = |r: &mut Rng| (r.below(3) > 0).then(|| r.below(1 << 31) as i64);
                let (atime, mtime) = (time(&mut self.rng), time(&mut self.rng));
                Step::Utimens { at: self.any(), follow: self.rng.coin(), atime, mtime }
            }
            10 | 11 => Step::GetXattr { slot, name: self.xattr() },
            12 | 13 => {
                let value = vec![self.byte(); self.rng.index(40)];
                let flags = *self.rng.pick(&[0, 0, libc::XATTR_CREATE, libc::XATTR_REPLACE]);
                Step::SetXattr { slot, name: self.xattr(), value, flags }
            }
            14 => Step::RemoveXattr { slot, name: self.xattr() },
            _ => Step::ListXattr { slot },
        }
    }

    fn xattr(&mut self) -> Vec<u8> {
        let names: &[&[u8]] = if self.able.root {
            &[b"user.one", b"user.two", b"user.three", b"trusted.one", b"user.", b"nothing", b"strange.name"]
        } else {
            &[b"user.one", b"user.two", b"user.three", b"nothing"]
        };
        if self.rng.below(30) == 0 {
            return [b"user.".as_slice(), &vec![b'x'; 251]].concat();
        }
        self.rng.pick(names).to_vec()
    }
}
