//! Space of a volume that has a capacity (CD-1): what is used is counted as it changes, in a page that survives kill -9
//! without a system call. A file costs what of it is not a hole, in units of 4 KiB and one at least, however many names it
//! has; every other object costs one unit.
//!
//! ```text
//! .kagami/space, 64 KiB, mapped shared:
//!    0 magic "KGMSPAC\0"    8 version u64     16 boot id (16 bytes)    32 clean u64
//!   40 used u64            48 its check       56 used again            64 its check
//!   72 1: an operation on names is under way, 80 which adds this (i64)
//! 4096 + 512 n: a change of content under way: | len u32, crc u32 | cost before u64 | directory u64 | name |
//! ```
//! After kill -9 what was under way is looked at again: its cost now, less that before, is what the number lacks. After a
//! power cut the tree may be older than the page: everything is counted anew, once.

use super::live::boot_id;
use super::region::Region;
use crate::base::sync::Mutex;
use crate::base::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::base::{At, DirId, Error, Kind, Name, Result, size};
use crate::format::op::{Op, RENAME_EXCHANGE};
use crate::os::map::Page;
use crate::os::sys::{self, Stat};
use crate::store::exec::{Before, Pre};
use std::collections::HashSet;

/// In which space is counted, bytes.
pub const UNIT: u64 = 4096;
const MAGIC: u64 = u64::from_le_bytes(*b"KGMSPAC\0");
const VERSION: u64 = 1;
const BYTES: usize = 64 << 10;
const O_MAGIC: usize = 0;
const O_VERSION: usize = 8;
const O_BOOT: usize = 16;
const O_CLEAN: usize = 32;
const O_USED: [usize; 2] = [40, 56];
const O_NAMES: usize = 72;
const O_DELTA: usize = 80;
const SLOTS_AT: usize = 4096;
const SLOT: usize = 512;
const SLOTS: usize = (BYTES - SLOTS_AT) / SLOT;

/// `n` rounded up to whole units, bytes.
pub fn whole(n: u64) -> u64 {
    n.div_ceil(UNIT).saturating_mul(UNIT)
}

/// What an object costs, bytes. Space beyond the end of a file (preallocated, or the filesystem's own) is not the user's.
pub fn cost(st: &Stat) -> u64 {
    if !st.is_file() {
        return UNIT;
    }
    whole(st.blocks.saturating_mul(512)).min(whole(st.size)).max(UNIT)
}

/// At most how much a write of `from..to` adds to a file.
pub fn growth(before: &Stat, from: u64, to: u64) -> u64 {
    if from >= to {
        return 0;
    }
    let touched = whole(to).saturating_sub(from - from % UNIT);
    touched.min(whole(before.size.max(to)).saturating_sub(cost(before)))
}

/// Exactly how much a write of `from..to` adds: the holes in it, all of it where the filesystem cannot tell.
pub fn holes(fd: &std::os::fd::OwnedFd, from: u64, to: u64) -> u64 {
    let (mut at, to) = (from - from % UNIT, whole(to));
    let mut sum = 0;
    while at < to {
        let data = sys::seek(fd, at, libc::SEEK_DATA).ok().flatten().unwrap_or(to).clamp(at, to);
        sum += data - at;
        at = match sys::seek(fd, data, libc::SEEK_HOLE) {
            Ok(Some(hole)) if data < to => whole(hole),
            _ => to,
        };
    }
    sum
}

/// A change of content under way.
pub struct Ticket {
    slot: Option<usize>,
    before: u64,
    grow: u64,
}

struct Counter {
    page: Page,
    used: u64,
    /// What changes under way may still add.
    promised: u64,
    names: i64,
    free: Vec<usize>,
}

/// The space of a region's volume.
#[derive(Default)]
pub struct Space {
    counting: AtomicBool,
    /// Bytes; 0: not enforced.
    capacity: AtomicU64,
    counter: Mutex<Option<Counter>>,
}

impl Space {
    /// True while what is used is counted.
    pub fn counts(&self) -> bool {
        self.counting.load(Ordering::Relaxed)
    }

    /// Bytes used, where they are counted.
    pub fn used(&self) -> Option<u64> {
        self.counter.lock().as_ref().map(|c| c.used)
    }

    /// The capacity that is enforced here, bytes; 0: none.
    pub fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::Relaxed)
    }

    /// From now on nothing may go past it; 0: no limit. Only where the volume is mounted.
    pub fn enforce(&self, capacity: u64) {
        self.capacity.store(capacity, Ordering::Relaxed);
    }

    /// A change of content begins that adds `grow` bytes at most.
    ///
    /// # Errors
    /// ENOSPC when that would go past the capacity; nothing was begun then.
    pub fn begin(&self, at: &Name, before: u64, grow: u64) -> Result<Option<Ticket>> {
        let mut g = self.counter.lock();
        let Some(c) = g.as_mut() else { return Ok(None) };
        c.room(self.capacity(), grow)?;
        c.promised += grow;
        let slot = c.free.pop();
        if let Some(s) = slot {
            c.put_slot(s, at, before);
        }
        Ok(Some(Ticket { slot, before, grow }))
    }

    /// The change is over; the file costs `after` now.
    pub fn end(&self, t: Ticket, after: u64) {
        let mut g = self.counter.lock();
        let Some(c) = g.as_mut() else { return };
        c.promised = c.promised.saturating_sub(t.grow);
        c.add(after as i64 - t.before as i64);
        if let Some(s) = t.slot {
            c.page.store_u64(SLOTS_AT + s * SLOT, 0);
            c.free.push(s);
        }
    }

    /// An operation on names begins; one at a time. At the primary (`enforced`) it may be refused with ENOSPC.
    pub fn begin_names(&self, op: &Op, pre: &Pre, enforced: bool) -> Result<()> {
        let mut g = self.counter.lock();
        let Some(c) = g.as_mut() else { return Ok(()) };
        let delta = names_delta(op, pre);
        if enforced && delta > 0 {
            c.room(self.capacity(), delta as u64)?;
        }
        c.names = delta;
        c.page.store_u64(O_DELTA, delta as u64);
        c.page.store_u64(O_NAMES, 1);
        Ok(())
    }

    /// It was done, or not.
    pub fn end_names(&self, done: bool) {
        let mut g = self.counter.lock();
        let Some(c) = g.as_mut() else { return };
        if c.page.load_u64(O_NAMES) == 0 {
            return;
        }
        if done {
            c.add(c.names);
        }
        c.page.store_u64(O_NAMES, 0);
    }

    fn install(&self, c: Option<Counter>) {
        let mut g = self.counter.lock();
        self.counting.store(c.is_some(), Ordering::Relaxed);
        *g = c;
    }
}

impl Counter {
    fn room(&self, capacity: u64, grow: u64) -> Result<()> {
        if capacity == 0 || grow == 0 || self.used + self.promised + grow <= capacity {
            return Ok(());
        }
        let msg = format!(
            "the volume's capacity of {} is used up: remove something, or make it larger",
            size::show(capacity)
        );
        // Of the volume, not of a disk: no other leg has more.
        Err(Error { kind: Kind::Refused, errno: libc::ENOSPC, msg })
    }

    fn add(&mut self, delta: i64) {
        self.used = self.used.saturating_add_signed(delta);
        self.store_used();
    }

    fn store_used(&self) {
        for off in O_USED {
            self.page.store_u64(off, self.used);
            self.page.store_u64(off + 8, check_of(self.used));
        }
    }

    fn put_slot(&mut self, slot: usize, at: &Name, before: u64) {
        let mut body = at.dir.0.to_le_bytes().to_vec();
        body.extend_from_slice(&at.name);
        let off = SLOTS_AT + slot * SLOT;
        self.page.store_u64(off, 0);
        self.page.store_u64(off + 8, before);
        if let Some(room) = self.page.bytes_mut().get_mut(off + 16..off + 16 + body.len().min(SLOT - 16)) {
            room.copy_from_slice(body.get(..room.len()).unwrap_or_default());
        }
        self.page.store_u64(off, (body.len() as u64) << 32 | crc32c::crc32c(&body) as u64);
    }

    /// A change that was under way: the name and its cost before.
    fn slot(&self, slot: usize) -> Option<(Name, u64)> {
        let off = SLOTS_AT + slot * SLOT;
        let head = self.page.load_u64(off);
        let body = self.page.bytes().get(off + 16..off + 16 + (head >> 32) as usize)?;
        let (dir, name) = body.split_first_chunk::<8>()?;
        (crc32c::crc32c(body) == head as u32)
            .then(|| (Name::new(DirId(u64::from_le_bytes(*dir)), name), self.page.load_u64(off + 8)))
    }
}

fn check_of(v: u64) -> u64 {
    1 << 32 | crc32c::crc32c(&v.to_le_bytes()) as u64
}

/// What an operation on names adds. What goes to the lost area leaves the volume.
fn names_delta(op: &Op, pre: &Pre) -> i64 {
    let last = |b: Option<Before>| b.filter(|b| b.nlink <= 1 || b.is_dir()).map_or(0, |b| b.cost as i64);
    match op {
        Op::Create { .. } | Op::Mkdir { .. } => UNIT as i64,
        Op::Unlink { .. } => -last(pre.first),
        Op::Rmdir { .. } => -(UNIT as i64),
        Op::Rename { flags, .. } if flags & RENAME_EXCHANGE != 0 => 0,
        Op::Rename { from, to, .. } => {
            let gone = if to.dir == DirId::LOST && from.dir != DirId::LOST { last(pre.first) } else { 0 };
            let same = pre.first.map(|b| b.ino) == pre.second.map(|b| b.ino);
            -gone - if same { 0 } else { last(pre.second) }
        }
        _ => 0,
    }
}

impl Region {
    /// Takes up the counting where it was left. To be called when the region is opened, and nothing changes in it.
    pub(super) fn open_space(&self, power_lost: bool) -> Result<()> {
        let path = self.meta().join("space");
        if !path.exists() {
            return Ok(());
        }
        let what = path.display();
        let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).at(&what)?;
        let counter = match file.metadata().at(&what)?.len() {
            n if n >= BYTES as u64 => Counter::read(Page::map(&file, BYTES).at(&what)?),
            _ => None,
        };
        let boot = boot_id();
        let sure = |c: &Counter| {
            !power_lost
                && (c.page.load_u64(O_CLEAN) == 1 || c.page.bytes().get(O_BOOT..O_BOOT + 16) == Some(boot.as_slice()))
        };
        let Some(mut c) = counter.filter(sure) else {
            log::warn!("{what}: not known what is used any more: it is counted anew before the next mount");
            return std::fs::remove_file(&path).at(&what);
        };
        c.stamp(&boot);
        for s in 0..SLOTS {
            if let Some((at, before)) = c.slot(s) {
                let now = self.look(&at)?.map(|(st, _)| cost(&st));
                c.add(now.map_or(0, |now| now as i64 - before as i64));
            }
            c.page.store_u64(SLOTS_AT + s * SLOT, 0);
        }
        c.names = c.page.load_u64(O_DELTA) as i64;
        self.space.install(Some(c));
        Ok(())
    }

    /// Counts everything, once, and goes on counting from there. Nothing may change meanwhile. `each` is told the number
    /// of objects now and then.
    pub fn count_space(&self, each: &mut dyn FnMut(u64)) -> Result<()> {
        self.space.install(None);
        let used = self.walk(each)?;
        let path = self.meta().join("space");
        let what = path.display();
        let file =
            std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path).at(&what)?;
        // A store into a hole of a full disk would kill the process.
        sys::fallocate(&file, 0, 0, BYTES as u64).or_else(|_| file.set_len(BYTES as u64)).at(&what)?;
        let page = Page::map(&file, BYTES).at(&what)?;
        let mut c = Counter { page, used, promised: 0, names: 0, free: (0..SLOTS).collect() };
        c.stamp(&boot_id());
        c.store_used();
        c.page.store_u64(O_VERSION, VERSION);
        c.page.store_u64(O_MAGIC, MAGIC);
        self.space.install(Some(c));
        Ok(())
    }

    /// The page is complete and on disk; called when everything else is.
    pub(super) fn close_space(&self) {
        if let Some(c) = self.space.counter.lock().as_ref() {
            c.page.store_u64(O_CLEAN, 1);
        }
    }

    fn walk(&self, each: &mut dyn FnMut(u64)) -> Result<u64> {
        let (mut todo, mut linked) = (vec![DirId::ROOT], HashSet::new());
        let (mut used, mut n, mut buf) = (0u64, 0u64, vec![0u8; 64 << 10]);
        while let Some(d) = todo.pop() {
            let fd = self.dirfd(d)?;
            let dir = sys::openat(&*fd, b".", libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
            let mut list = Vec::new();
            while sys::getdents(&dir, &mut buf, &mut list)? {}
            for e in list.iter().filter(|e| e.name != b"." && e.name != b"..") {
                let st = sys::statat(&*fd, &e.name)?;
                if st.is_dir() {
                    todo.extend(self.dir_by_ino(st.ino));
                } else if st.nlink > 1 && !linked.insert(st.ino) {
                    continue;
                }
                used += cost(&st);
                n += 1;
                if n.is_multiple_of(10_000) {
                    each(n);
                }
            }
        }
        Ok(used)
    }
}

impl Counter {
    fn read(page: Page) -> Option<Counter> {
        let right = page.load_u64(O_MAGIC) == MAGIC && page.load_u64(O_VERSION) == VERSION;
        let used = O_USED.into_iter().find_map(|off| {
            let v = page.load_u64(off);
            (page.load_u64(off + 8) == check_of(v)).then_some(v)
        });
        let used = used.filter(|_| right)?;
        Some(Counter { page, used, promised: 0, names: 0, free: (0..SLOTS).collect() })
    }

    fn stamp(&mut self, boot: &[u8; 16]) {
        if let Some(room) = self.page.bytes_mut().get_mut(O_BOOT..O_BOOT + 16) {
            room.copy_from_slice(boot);
        }
        self.page.store_u64(O_CLEAN, 0);
    }
}
