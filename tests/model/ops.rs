//! The operations of a sequence: made from a seed, small enough to be shrunk, and written as text to be played again.
//!
//! An operation names slots and paths from small fixed sets, so that any part of a sequence is a sequence again: what is
//! left of it may fail with other errors, and the model says with which.

use crate::support::Rng;
use serde::{Deserialize, Serialize};

/// Places for open files.
pub const SLOTS: u8 = 4;

/// A path below the sequence's directory: indices into [`names`].
pub type Path = Vec<u8>;

/// The names that paths are made of: ordinary ones, the longest there can be, one of odd bytes, one that is too long.
pub fn names() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = [b"a", b"b", b"c", b"d", b"e"].map(|n| n.to_vec()).into();
    all.push(vec![b'n'; 255]);
    all.push(vec![0xff, 0xfe, b' ']);
    all.push(vec![b'n'; 256]);
    all
}

/// Index of the name that is too long.
const TOO_LONG: u8 = 7;

/// The extended attributes that are used; the last one only by root.
pub const XATTRS: [&str; 3] = ["user.one", "user.two", "trusted.three"];

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    Open {
        slot: u8,
        path: Path,
        flags: i32,
        mode: u32,
    },
    Close {
        slot: u8,
    },
    Read {
        slot: u8,
        len: u64,
    },
    Write {
        slot: u8,
        len: u64,
        stamp: u64,
    },
    Pread {
        slot: u8,
        at: u64,
        len: u64,
    },
    Pwrite {
        slot: u8,
        at: u64,
        len: u64,
        stamp: u64,
    },
    Seek {
        slot: u8,
        at: u64,
    },
    /// Stores into a shared mapping, then msync. What lies beyond the end of the file is left out.
    MapWrite {
        slot: u8,
        at: u64,
        len: u64,
        stamp: u64,
    },
    CopyRange {
        from: u8,
        at: u64,
        to: u8,
        to_at: u64,
        len: u64,
    },
    Ftruncate {
        slot: u8,
        size: u64,
    },
    Truncate {
        path: Path,
        size: u64,
    },
    Fallocate {
        slot: u8,
        mode: i32,
        at: u64,
        len: u64,
    },
    Fsync {
        slot: u8,
        data_only: bool,
    },
    Mkdir {
        path: Path,
        mode: u32,
    },
    Mkfifo {
        path: Path,
        mode: u32,
    },
    Symlink {
        target: Path,
        path: Path,
    },
    Readlink {
        path: Path,
    },
    Link {
        from: Path,
        to: Path,
    },
    Unlink {
        path: Path,
    },
    Rmdir {
        path: Path,
    },
    Rename {
        from: Path,
        to: Path,
        flags: u32,
    },
    Chmod {
        path: Path,
        mode: u32,
    },
    Fchmod {
        slot: u8,
        mode: u32,
    },
    Chown {
        path: Path,
        uid: u32,
        gid: u32,
    },
    Utimens {
        path: Path,
        sec: i64,
        nsec: i64,
    },
    SetXattr {
        path: Path,
        name: u8,
        len: u64,
        stamp: u64,
        flags: i32,
    },
    GetXattr {
        path: Path,
        name: u8,
    },
    RemoveXattr {
        path: Path,
        name: u8,
    },
    ListXattr {
        path: Path,
    },
    Lstat {
        path: Path,
    },
    Fstat {
        slot: u8,
    },
    Readdir {
        path: Path,
    },
}

impl Op {
    /// The bytes that a write of this stamp and length writes.
    pub fn bytes(stamp: u64, len: u64) -> Vec<u8> {
        Rng::new(stamp).bytes(len as usize)
    }

    /// Simpler forms of an operation, the simplest first, for shrinking.
    pub fn simpler(&self) -> Vec<Op> {
        let mut out = Vec::new();
        let mut with = |change: &dyn Fn(&mut Op)| {
            let mut op = self.clone();
            change(&mut op);
            if op != *self && !out.contains(&op) {
                out.push(op);
            }
        };
        for to in [0, 1, 4096] {
            with(&|op| op.numbers().into_iter().for_each(|n| *n = (*n).min(to)));
        }
        for i in 0..self.clone().numbers().len() {
            for to in [0, 1, 4096] {
                with(&|op| *op.numbers()[i] = (*op.numbers()[i]).min(to));
            }
            with(&|op| *op.numbers()[i] /= 2);
        }
        for i in 0..self.clone().paths().len() {
            with(&|op| op.paths()[i].truncate(1));
            with(&|op| op.paths()[i].iter_mut().for_each(|n| *n = 0));
            // Out of a directory, which is not needed then.
            if self.clone().paths()[i].len() > 1 {
                (1..3).for_each(|name| with(&|op| *op.paths()[i] = vec![name]));
            }
        }
        // The content of another file is not needed.
        if let Op::CopyRange { to, to_at, len, .. } = self {
            out.push(Op::Pwrite { slot: *to, at: *to_at, len: *len, stamp: 1 });
        }
        out
    }

    fn numbers(&mut self) -> Vec<&mut u64> {
        match self {
            Op::Read { len, .. } | Op::Write { len, .. } | Op::SetXattr { len, .. } => vec![len],
            Op::Pread { at, len, .. } | Op::Pwrite { at, len, .. } | Op::MapWrite { at, len, .. } => vec![at, len],
            Op::Fallocate { at, len, .. } => vec![at, len],
            Op::Seek { at, .. } => vec![at],
            Op::CopyRange { at, to_at, len, .. } => vec![at, to_at, len],
            Op::Ftruncate { size, .. } | Op::Truncate { size, .. } => vec![size],
            _ => vec![],
        }
    }

    fn paths(&mut self) -> Vec<&mut Path> {
        match self {
            Op::Open { path, .. } | Op::Truncate { path, .. } | Op::Mkdir { path, .. } | Op::Mkfifo { path, .. } => {
                vec![path]
            }
            Op::Readlink { path } | Op::Unlink { path } | Op::Rmdir { path } | Op::Chmod { path, .. } => vec![path],
            Op::Chown { path, .. } | Op::Utimens { path, .. } | Op::SetXattr { path, .. } => vec![path],
            Op::GetXattr { path, .. } | Op::RemoveXattr { path, .. } | Op::ListXattr { path } => vec![path],
            Op::Lstat { path } | Op::Readdir { path } => vec![path],
            Op::Symlink { target, path } => vec![target, path],
            Op::Link { from, to } | Op::Rename { from, to, .. } => vec![from, to],
            _ => vec![],
        }
    }
}

/// Makes sequences: the same seed, the same sequence.
pub struct Maker {
    rng: Rng,
    /// What only root may do is left out.
    ordinary: bool,
    /// The names of the last link, and the last attribute set: some of what comes uses them again.
    linked: [Path; 2],
    attribute: (Path, u8),
}

impl Maker {
    pub fn new(seed: u64, ordinary: bool) -> Maker {
        Maker { rng: Rng::new(seed), ordinary, linked: [vec![0], vec![1]], attribute: (vec![0], 0) }
    }

    /// A sequence; it begins with something to work on.
    pub fn sequence(&mut self, len: usize) -> Vec<Op> {
        let rw = libc::O_CREAT | libc::O_RDWR;
        let mut all = vec![
            Op::Mkdir { path: vec![3], mode: 0o755 },
            Op::Open { slot: 0, path: vec![0], flags: rw, mode: 0o644 },
            Op::Open { slot: 1, path: vec![3, 1], flags: rw, mode: 0o600 },
        ];
        while all.len() < len {
            all.push(self.one());
        }
        all
    }

    fn one(&mut self) -> Op {
        match self.rng.below(100) {
            0..=11 => self.open(),
            12..=47 => self.content(),
            48..=74 => self.name(),
            75..=88 => self.attribute(),
            _ => self.look(),
        }
    }

    fn open(&mut self) -> Op {
        let mut flags = [libc::O_RDWR, libc::O_RDWR, libc::O_WRONLY, libc::O_RDONLY][self.rng.below(4) as usize];
        for (flag, one_in) in [(libc::O_CREAT, 2), (libc::O_EXCL, 6), (libc::O_NOFOLLOW, 10)] {
            if self.rng.one_in(one_in) {
                flags |= flag;
            }
        }
        if flags & libc::O_ACCMODE != libc::O_RDONLY {
            for (flag, one_in) in [(libc::O_TRUNC, 6), (libc::O_APPEND, 5)] {
                if self.rng.one_in(one_in) {
                    flags |= flag;
                }
            }
        }
        if flags & libc::O_CREAT == 0 {
            // Without O_CREAT its meaning is not defined.
            flags &= !libc::O_EXCL;
            if self.rng.one_in(8) {
                flags |= libc::O_DIRECTORY;
            }
        }
        Op::Open { slot: self.slot(), path: self.path(), flags, mode: self.mode() }
    }

    fn content(&mut self) -> Op {
        let (slot, at, len, stamp) = (self.slot(), self.offset(), self.len(), self.rng.below(1 << 20));
        match self.rng.below(36) {
            0..=3 => Op::Write { slot, len, stamp },
            4..=11 => Op::Pwrite { slot, at, len, stamp },
            12..=14 => Op::MapWrite { slot, at, len, stamp },
            15..=16 => Op::CopyRange { from: self.slot(), at, to: slot, to_at: self.offset(), len },
            17..=19 => Op::Ftruncate { slot, size: at },
            20 => Op::Truncate { path: self.path(), size: at },
            21..=24 => {
                let keep = libc::FALLOC_FL_KEEP_SIZE;
                let punch = libc::FALLOC_FL_PUNCH_HOLE | keep;
                let zero = libc::FALLOC_FL_ZERO_RANGE;
                let mode = [0, keep, punch, punch, zero, zero | keep][self.rng.below(6) as usize];
                Op::Fallocate { slot, mode, at, len }
            }
            25..=27 => Op::Fsync { slot, data_only: self.rng.one_in(2) },
            28 => Op::Seek { slot, at },
            29..=30 => Op::Read { slot, len },
            31..=33 => Op::Pread { slot, at, len },
            _ => Op::Close { slot },
        }
    }

    fn name(&mut self) -> Op {
        let path = self.path();
        match self.rng.below(27) {
            0..=3 => Op::Mkdir { path, mode: self.mode() | 0o700 },
            4 => Op::Mkfifo { path, mode: self.mode() },
            5..=7 => Op::Symlink { target: self.path(), path },
            8..=10 => {
                self.linked = [path.clone(), self.path()];
                Op::Link { from: path, to: self.linked[1].clone() }
            }
            11..=14 => Op::Unlink { path },
            15..=16 => Op::Rmdir { path },
            17 => Op::Readlink { path },
            18 => {
                let [to, from] = self.linked.clone();
                if from.contains(&TOO_LONG) || to.contains(&TOO_LONG) {
                    Op::Unlink { path }
                } else {
                    Op::Rename { from, to, flags: 0 }
                }
            }
            _ => {
                let flags = [0, 0, 0, libc::RENAME_NOREPLACE, libc::RENAME_EXCHANGE][self.rng.below(5) as usize];
                // Which of two errors is told first when this name is too long is not the same in all kernels.
                let to = self.path().into_iter().map(|n| if n == TOO_LONG { 0 } else { n }).collect();
                Op::Rename { from: path, to, flags }
            }
        }
    }

    fn attribute(&mut self) -> Op {
        let names = if self.ordinary { 2 } else { 3 };
        let (path, name) = match self.rng.one_in(3) {
            true => self.attribute.clone(),
            false => (self.path(), self.rng.below(names) as u8),
        };
        match self.rng.below(14) {
            0 | 1 => Op::Chmod { path, mode: self.mode() },
            2 => Op::Chmod { path: vec![3], mode: self.mode() },
            3 => Op::Fchmod { slot: self.slot(), mode: self.mode() },
            4..=5 if !self.ordinary => {
                let id = |rng: &mut Rng| [0, 1, 1000, 65534][rng.below(4) as usize];
                Op::Chown { path, uid: id(&mut self.rng), gid: id(&mut self.rng) }
            }
            4..=7 => {
                let sec = [0, -3, 1, 1_700_000_000, 4_000_000_000][self.rng.below(5) as usize];
                Op::Utimens { path, sec, nsec: self.rng.below(1_000_000_000) as i64 }
            }
            8..=10 => {
                let flags = [0, 0, libc::XATTR_CREATE, libc::XATTR_REPLACE][self.rng.below(4) as usize];
                self.attribute = (path.clone(), name);
                Op::SetXattr { path, name, len: self.rng.below(600), stamp: self.rng.below(1 << 20), flags }
            }
            11 => Op::RemoveXattr { path, name },
            12 => Op::GetXattr { path, name },
            _ => Op::ListXattr { path },
        }
    }

    fn look(&mut self) -> Op {
        match self.rng.below(4) {
            0 => Op::Fstat { slot: self.slot() },
            1 => Op::Readdir { path: self.path() },
            _ => Op::Lstat { path: self.path() },
        }
    }

    fn slot(&mut self) -> u8 {
        // Some more often, so that an operation often finds an open file.
        self.rng.below(u64::from(SLOTS)).min(self.rng.below(u64::from(SLOTS))) as u8
    }

    fn path(&mut self) -> Path {
        let len = [1, 1, 1, 2, 2, 3][self.rng.below(6) as usize];
        let dirs = [3, 3, 4, 0];
        let mut path: Path = (1..len).map(|_| dirs[self.rng.below(4) as usize]).collect();
        path.push([0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 6][self.rng.below(14) as usize]);
        if self.rng.one_in(60) {
            path.pop();
            path.push(TOO_LONG);
        }
        path
    }

    fn offset(&mut self) -> u64 {
        match self.rng.below(8) {
            0 | 1 => 0,
            2 => [1, 4095, 4096, 4097, 8192, 12288][self.rng.below(6) as usize],
            3 => 65536 + self.rng.below(3) - 1,
            4 => self.rng.below(200_000),
            _ => self.rng.below(20_000),
        }
    }

    fn len(&mut self) -> u64 {
        match self.rng.below(10) {
            0 => self.rng.below(2),
            1..=3 => self.rng.below(100) + 1,
            4 | 5 => [4095, 4096, 4097, 8192][self.rng.below(4) as usize],
            6 => self.rng.below(70_000) + 1,
            _ => self.rng.below(9_000) + 1,
        }
    }

    fn mode(&mut self) -> u32 {
        let mode = [0o644, 0o600, 0o755, 0o700, 0o666, 0o4755, 0o2755, 0o2644, 0o444, 0][self.rng.below(10) as usize];
        // An ordinary user must get at what he made, and loses the set-id bits by writing.
        if self.ordinary { mode & 0o777 | 0o700 } else { mode }
    }
}
