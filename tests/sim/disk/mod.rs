//! A filesystem in memory with what a power cut leaves of it, and faults. No globals, no threads, no clock of its own: the
//! same calls with the same seeds give the same states.
//!
//! # What it is
//!
//! An ordinary Linux filesystem as root sees it: results and errnos are those of ext4, and the test program `simdisk`
//! compares them with a real directory. What is left to who calls: descriptors (several may share one [`Ofd`]), the umask
//! (modes come with it applied), the refusal of an empty path where the call does not have AT_EMPTY_PATH, fchmod(2) and
//! its like on O_PATH descriptors (see [`Disk::flags`]), locks, and the routing of absolute paths. Not modelled: rights of
//! others than root, access times by reading, ACLs as rights (their xattrs are kept as they are), quotas.
//!
//! Names have cookies made from their bytes, so a listing has an order that is nobody's. Inode numbers are used again, the
//! lowest first, once their object is gone from the platter too ([`Disk::reuse_numbers`]).
//!
//! # What a power cut leaves
//!
//! The fault model of an ordinary journalling filesystem on a disk with a volatile cache.
//!
//! - Content: each 4 KiB page (with [`Cut::sectors`], or in a mapped file, each 512-byte sector) of each file has, each by
//!   itself, its value of the last sync or any value since; so has the size. Where the size outlives the bytes there are
//!   zeroes. Of pages written more than seven times between two syncs the latest seven values are drawn from.
//! - Names, attributes, xattrs: operations are atomic, and a prefix of all operations of the disk since the last commit
//!   survives; with [`Cut::unordered`] any subset in which an operation survives only with all former ones of the same
//!   object and of the same name, directories are removed only with what emptied them, and directories keep the order
//!   in which they were moved.
//! - `fsync` of an object keeps its content and times, and commits the operations up to the last that mentions it: its
//!   making, names, attributes; of a directory also what was entered there. `fdatasync` keeps content and size, both ways,
//!   and commits no operation: a new file may vanish whole. `syncfs` keeps everything. The journal commits the older half
//!   of 32,768 waiting operations by itself.
//! - Times that a write sets are old or new by themselves; so are pages that fallocate set aside.
//! - A failed fsync or fdatasync: each page that it should have written is on the platter or lost. Calls see it as before until
//!   the cut, and no later sync writes it unless it is written again. Operations are not committed, sizes not kept.
//! - A map: what was stored is noticed at calls on that file and at each sync of the disk; between two of those any mixture
//!   of sectors may be left.
//! - Inode numbers and hard links survive; objects without a name do not, nor do open descriptions.
//!
//! # Rooms
//!
//! `inode` what an object is, on both sides · `log` changes, and how they come to the platter · `data`, `map`, `runs`
//! content · `paths` from a path to an object · `open`, `io` descriptions · `names`, `attrs` calls · `durable` syncs and
//! cuts · `faults` · `look` what tests look at.
#![allow(dead_code, unused_imports)] // Each program that includes it uses a part of it.

mod attrs;
mod data;
mod durable;
mod faults;
mod inode;
mod io;
mod log;
mod look;
mod map;
mod names;
mod open;
mod paths;
mod runs;

pub use data::{PAGE, SECTOR};
pub use durable::{Cut, SyncPoint};
pub use faults::{DiskFaults, FaultCounts};
pub use look::{Content, Node};

use super::rng::Rng;
use inode::{Id, Meta, ROOT, Table};
use log::{Change, Log};
use open::Opens;
use std::collections::BTreeSet;
use std::sync::Arc;

/// What a call gives: a value, or an errno.
pub type Res<T> = Result<T, i32>;
/// An inode number.
pub type Ino = u64;

/// An open file description. It is never used again for another.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Ofd(pub u64);

/// A point in time, since 1970.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Stamp {
    pub sec: i64,
    pub nsec: u32,
}

/// What stat(2) tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attr {
    pub ino: Ino,
    /// Type and permission bits.
    pub mode: u32,
    pub nlink: u64,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u64,
    /// Bytes.
    pub size: u64,
    /// 512-byte blocks.
    pub blocks: u64,
    pub atime: Stamp,
    pub mtime: Stamp,
    pub ctime: Stamp,
    pub btime: Stamp,
}

/// Where a path begins. Symlinks and `..` never lead out of the disk.
#[derive(Clone, Copy, Debug)]
pub enum At<'a> {
    /// At the root of this disk; an empty path is the root itself.
    Root(&'a [u8]),
    /// At an open directory; an empty path is the open object itself, whatever it is.
    Ofd(Ofd, &'a [u8]),
}

/// What statfs(2) tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Statfs {
    pub blocks: u64,
    pub free: u64,
    pub files: u64,
    pub ffree: u64,
    /// Bytes of a block.
    pub bsize: u64,
}

/// Bytes that an object takes beside its content.
const OBJECT_BYTES: u64 = 512;
/// Objects that a disk can have.
const OBJECTS_MAX: u64 = 1 << 24;

/// One filesystem of one machine.
pub struct Disk {
    dev: u64,
    capacity: u64,
    /// Less than the capacity while something else fills the disk.
    limit: u64,
    /// Where it is mounted: absolute symlinks that begin so lead on, all others lead nowhere.
    mount: Vec<u8>,
    now: Stamp,
    table: Table,
    log: Log,
    opens: Opens,
    /// Files that are mapped.
    mapped: BTreeSet<Id>,
    /// Pages of all files.
    pages_used: u64,
    syncs: u64,
    sync_log: Vec<SyncPoint>,
    faults: faults::Faults,
}

impl Disk {
    /// An empty filesystem of `capacity` bytes with device number `dev`.
    pub fn new(dev: u64, capacity: u64) -> Disk {
        let mut d = Disk {
            dev,
            capacity,
            limit: capacity,
            mount: b"/".to_vec(),
            now: Stamp::default(),
            table: Table::new(),
            log: Log::default(),
            opens: Opens::default(),
            mapped: BTreeSet::new(),
            pages_used: 0,
            syncs: 0,
            sync_log: Vec::new(),
            faults: faults::Faults::default(),
        };
        let id = d.table.add(Arc::from(&b""[..]));
        let meta = d.new_meta(libc::S_IFDIR | 0o755, 0, 0);
        d.change(vec![Change::Make { id, meta: Box::new(meta), parent: Some(ROOT) }]);
        d.commit(u64::MAX);
        d
    }

    /// The device number.
    pub fn dev(&self) -> u64 {
        self.dev
    }

    /// Bytes that it can hold.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Sets the time that changes get from now on.
    pub fn set_now(&mut self, now: Stamp) {
        self.now = now;
    }

    /// Says where it is mounted, as an absolute path without a trailing slash: an absolute symlink whose target begins so is
    /// followed from the root of the disk, any other is ENOENT. `/` until it is said.
    pub fn set_mount(&mut self, prefix: &[u8]) {
        self.mount = prefix.to_vec();
    }

    /// Whether inode numbers of removed objects are given again (yes until it is said).
    pub fn reuse_numbers(&mut self, yes: bool) {
        self.table.reuse = yes;
    }

    /// The capacity and its use.
    pub fn statfs(&self) -> Statfs {
        let bsize = PAGE as u64;
        Statfs {
            blocks: self.capacity / bsize,
            free: self.free_bytes() / bsize,
            files: OBJECTS_MAX,
            ffree: OBJECTS_MAX - self.table.count,
            bsize,
        }
    }

    fn used_bytes(&self) -> u64 {
        self.pages_used * PAGE as u64 + self.table.count * OBJECT_BYTES
    }

    fn free_bytes(&self) -> u64 {
        self.limit.saturating_sub(self.used_bytes())
    }

    fn new_meta(&self, mode: u32, gid: u32, rdev: u64) -> Meta {
        let dir = mode & libc::S_IFMT == libc::S_IFDIR;
        Meta {
            mode,
            uid: 0,
            gid,
            rdev,
            nlink: if dir { 2 } else { 0 },
            atime: self.now,
            mtime: self.now,
            ctime: self.now,
            btime: self.now,
            xattrs: None,
        }
    }

    /// Counts objects and pages anew, where they did not change one by one.
    fn recount(&mut self) {
        let all = self.table.ids().filter_map(|id| self.table.find(id)).filter(|i| i.live.is_some());
        (self.table.count, self.pages_used) = all.fold((0, 0), |(n, pages), i| (n + 1, pages + i.data.cost()));
    }

    fn is_dir(&self, id: Id) -> bool {
        self.table.find(id).and_then(|i| i.live.as_ref()).is_some_and(|s| s.dir.is_some())
    }
}
