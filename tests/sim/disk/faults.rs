//! Faults of the disk that are no power cut: errors, short writes, old content, no room, rot, torn files.

use super::inode::Id;
use super::{At, Disk, Rng};

/// Chances of faults, each per call.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct DiskFaults {
    /// pread and read fail with EIO.
    pub eio_read: f64,
    /// pwrite and write fail with EIO; nothing is written.
    pub eio_write: f64,
    /// fsync, fdatasync and syncfs (for each file that it would write) fail with EIO; what was dirty may be lost.
    pub eio_sync: f64,
    /// A write of more than one byte writes a part only, and says so.
    pub short_write: f64,
    /// A read gives pages that are clean as they were before the last sync that changed them. What they were is remembered from
    /// the moment on at which this is above 0.
    pub stale_read: f64,
    /// Only files whose path from the root of the disk begins so.
    pub only: Option<Vec<u8>>,
}

/// How often each fault happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FaultCounts {
    pub eio_reads: u64,
    pub eio_writes: u64,
    pub eio_syncs: u64,
    pub short_writes: u64,
    pub stale_reads: u64,
    /// Writes and other calls cannot be counted here; this is how often [`Disk::fill`] was called.
    pub fills: u64,
    pub rots: u64,
    pub tears: u64,
}

/// The chances, and where they are drawn from.
pub struct Faults {
    pub rates: DiskFaults,
    pub rng: Rng,
    pub counts: FaultCounts,
}

impl Default for Faults {
    fn default() -> Faults {
        Faults { rates: DiskFaults::default(), rng: Rng(0), counts: FaultCounts::default() }
    }
}

impl Disk {
    /// Sets the chances of faults from now on, and the stream that they are drawn from.
    pub fn set_faults(&mut self, faults: DiskFaults, rng_seed: u64) {
        self.faults.rates = faults;
        self.faults.rng = Rng(rng_seed);
    }

    /// The chances of faults.
    pub fn faults(&self) -> &DiskFaults {
        &self.faults.rates
    }

    /// How often faults happened since the disk was made.
    pub fn fault_counts(&self) -> FaultCounts {
        self.faults.counts
    }

    fn hit(&mut self, id: Id, chance: f64) -> bool {
        if chance <= 0.0 {
            return false;
        }
        let meant = match &self.faults.rates.only {
            Some(prefix) => self.path_of(id).starts_with(prefix),
            None => true,
        };
        meant && self.faults.rng.chance(chance)
    }

    pub(super) fn draw_read_fault(&mut self, id: Id) -> Result<(), i32> {
        if self.hit(id, self.faults.rates.eio_read) {
            self.faults.counts.eio_reads += 1;
            return Err(libc::EIO);
        }
        Ok(())
    }

    pub(super) fn draw_stale(&mut self, id: Id) -> bool {
        self.hit(id, self.faults.rates.stale_read)
    }

    /// How much of a write of `len` bytes is done.
    pub(super) fn draw_write_fault(&mut self, id: Id, len: usize) -> Result<usize, i32> {
        if self.hit(id, self.faults.rates.eio_write) {
            self.faults.counts.eio_writes += 1;
            return Err(libc::EIO);
        }
        if len > 1 && self.hit(id, self.faults.rates.short_write) {
            self.faults.counts.short_writes += 1;
            return Ok(1 + self.faults.rng.index(len - 1));
        }
        Ok(len)
    }

    pub(super) fn draw_sync_fault(&mut self, id: Id) -> bool {
        let hit = self.hit(id, self.faults.rates.eio_sync);
        self.faults.counts.eio_syncs += u64::from(hit);
        hit
    }

    /// Something else fills the disk until `free_bytes` are left: ENOSPC beyond them. What is removed is free again.
    pub fn fill(&mut self, free_bytes: u64) {
        self.limit = self.capacity.min(self.used_bytes() + free_bytes);
        self.faults.counts.fills += 1;
    }

    /// Ends [`Disk::fill`].
    pub fn unfill(&mut self) {
        self.limit = self.capacity;
    }

    /// Bytes that can still be written.
    pub fn free(&self) -> u64 {
        self.free_bytes()
    }

    fn file_at(&self, path: &[u8]) -> Option<Id> {
        let id = self.find(At::Root(path), false).ok()?;
        (self.table.live(id).meta.kind() == libc::S_IFREG).then_some(id)
    }

    /// Flips a bit of a file's content behind everyone's back, on both sides: neither times nor anything else tell. The
    /// offset with the byte before and after; `None` when there is no such file, or nothing is written in it.
    pub fn rot(&mut self, path: &[u8], rng: &mut Rng) -> Option<(u64, u8, u8)> {
        let id = self.file_at(path)?;
        self.look_at(id);
        let data = &self.table.get(id).data;
        let size = data.size();
        let pages = data.written();
        let page = super::PAGE as u64;
        let start = pages.get(rng.index(pages.len()))? * page;
        let off = start + rng.below(page.min(size.checked_sub(start)?));
        self.rot_at(path, off, rng.below(8) as u32)
    }

    /// As [`Disk::rot`], of a given bit (0 to 7) of the byte at `off`. `None` also where there is a hole.
    pub fn rot_at(&mut self, path: &[u8], off: u64, bit: u32) -> Option<(u64, u8, u8)> {
        let id = self.file_at(path)?;
        self.look_at(id);
        let (old, new) = self.table.get_mut(id).data.rot(off, bit & 7)?;
        self.faults.counts.rots += 1;
        Some((off, old, new))
    }

    /// Cuts a file's content to its first `keep` bytes, on both sides, without a trace in its times: a record that was torn
    /// by the cut before. What was not synced counts as synced then. False when there is no such file.
    pub fn tear(&mut self, path: &[u8], keep: u64) -> bool {
        let Some(id) = self.file_at(path) else { return false };
        self.look_at(id);
        self.table.get_mut(id).data.tear(keep);
        self.faults.counts.tears += 1;
        self.recount();
        true
    }
}
