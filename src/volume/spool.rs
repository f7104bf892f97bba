//! The spool: entries that a lagging peer still needs and that memory has no room for, in files.
//!
//! ```text
//! .kagami/spool/%016x.kl   segments of frames, in the format of the entry log; the name is the number of bytes before it
//! ```
//! It belongs to one run of one primary: whatever is found at a start is removed, the journal covers it. Room for a
//! whole segment is taken before it is used, and the spool ends where its limit or the reserve of its filesystem begins.

use super::queue::{Item, Tally};
use crate::base::sync::Mutex;
use crate::base::{At, Error, Result, Seq, limits, time::Time};
use crate::format::frame;
use crate::format::op::Entry;
use crate::os::sys;
use crate::store::files;
use crate::store::log::{EntryLog, Shape};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Entries that were written together, and where.
#[derive(Clone, Copy, Debug)]
pub struct Batch {
    /// The first of them.
    pub first: Seq,
    /// When that was issued.
    pub time: Time,
    /// The last of them.
    pub last: Seq,
    /// Bytes of all frames of the group before them, which is their position in the files.
    pub from: u64,
    /// The same after them.
    pub upto: u64,
}

/// Where a spool lies, and what it may take.
#[derive(Clone, Debug)]
pub struct SpoolAt {
    /// Directory of the segments.
    pub dir: PathBuf,
    /// Bytes of all segments together; 0: none.
    pub limit: u64,
}

/// The files. Used by one thread for writing, by any for reading.
pub struct Spool {
    at: SpoolAt,
    shape: Shape,
    log: Mutex<Option<Arc<EntryLog>>>,
}

impl Spool {
    /// Nothing is made before it is needed.
    pub fn new(at: SpoolAt) -> Spool {
        let (least, most) = limits::SPOOL_SEGMENT_BYTES;
        let shape = Shape { segment_bytes: (at.limit / 8).clamp(least, most), preallocate: true };
        Spool { at, shape, log: Mutex::new(None) }
    }

    /// Where its files are.
    pub fn dir(&self) -> &Path {
        &self.at.dir
    }

    /// Writes entries, of which there is at least one and none missing between them. On error nothing of them is there.
    pub fn append(&self, items: &[Arc<Item>]) -> Result<()> {
        let Some(first) = items.first() else { return Ok(()) };
        let from = first.total - first.frame.len() as u64;
        let mut bytes = Vec::with_capacity(items.iter().map(|i| i.frame.len()).sum());
        items.iter().for_each(|i| bytes.extend_from_slice(&i.frame));
        let log = self.log_at(from)?;
        if log.begins_segment(bytes.len() as u64) {
            self.room(&log, bytes.len() as u64)?;
        }
        log.append(&bytes).map(drop)
    }

    /// The log, when it goes on at `from`, or a new one: what was before was not needed any more.
    fn log_at(&self, from: u64) -> Result<Arc<EntryLog>> {
        let mut g = self.log.lock();
        if let Some(l) = g.as_ref().filter(|l| l.end() == from) {
            return Ok(l.clone());
        }
        files::remove_dir(&self.at.dir)?;
        let l = Arc::new(EntryLog::open(&self.at.dir, from, self.shape)?);
        *g = Some(l.clone());
        Ok(l)
    }

    /// A further segment must be within the limit and leave the reserve free.
    fn room(&self, log: &EntryLog, len: u64) -> Result<()> {
        let more = self.shape.segment_bytes.max(len);
        if self.bytes_of(log) + more > self.at.limit {
            return Err(Error::failed(format!("the spool has reached spool_mib = {}", self.at.limit >> 20)));
        }
        let dir = std::fs::File::open(&self.at.dir).at(self.at.dir.display())?;
        let s = sys::statfs(&dir).at(self.at.dir.display())?;
        let (least, most) = limits::SPOOL_RESERVE_BYTES;
        let reserve = (s.blocks.saturating_mul(s.frsize) / 20).clamp(least, most);
        let free = s.bavail.saturating_mul(s.frsize);
        if free < reserve + more {
            let dir = self.at.dir.display();
            return Err(Error::failed(format!(
                "the spool at {dir} leaves {} MiB of its filesystem free, and {} MiB are",
                reserve >> 20,
                free >> 20
            )));
        }
        Ok(())
    }

    fn bytes_of(&self, log: &EntryLog) -> u64 {
        log.bytes().max(log.segments() as u64 * self.shape.segment_bytes)
    }

    /// Bytes that it takes on disk.
    pub fn bytes(&self) -> u64 {
        let log = self.log.lock().clone();
        log.map_or(0, |l| self.bytes_of(&l))
    }

    /// Reads the entries of a batch after `cursor` and not after `upto`. Error: what is there is not what was written.
    pub fn read(&self, b: &Batch, cursor: Seq, upto: Seq) -> Result<Vec<Arc<Item>>> {
        let log = self.log.lock().clone().ok_or_else(|| Error::failed("the spool was given up"))?;
        let (mut at, mut seq, mut out) = (b.from, b.first, Vec::new());
        while seq <= b.last && seq <= upto {
            let mut frame = Vec::new();
            let next = log.read(at, &mut frame)?.ok_or_else(|| Error::corrupt("spool: it ends too early"))?;
            let head = frame::check(&frame)?;
            let e = Entry::parse(&frame, &head)?;
            if e.seq != seq {
                return Err(Error::corrupt(format!("spool: entry {} where {} was written", e.seq.0, seq.0)));
            }
            if seq > cursor {
                let tally = Tally::of(&e.op, frame::data_part(&frame, &head));
                out.push(Arc::new(Item { seq, time: e.time, frame, total: next, tally }));
            }
            (at, seq) = (next, seq.next());
        }
        Ok(out)
    }

    /// Gives back the segments before a position; all of them when nothing is needed (`None`).
    pub fn retire(&self, upto: Option<u64>) -> Result<()> {
        let mut g = self.log.lock();
        match (upto, g.as_ref()) {
            (Some(at), Some(l)) => l.retire(at),
            (None, Some(_)) => {
                *g = None;
                files::remove_dir(&self.at.dir)
            }
            (_, None) => Ok(()),
        }
    }
}
