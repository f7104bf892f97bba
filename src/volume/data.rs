//! Files' content: open, read, write, sync.

use super::caller::Caller;
use super::change::{Change, file_name};
use super::handles::{OpenFile, Opened};
use super::image::Of;
use super::names::Made;
use super::order::Mark;
use super::{Node, Volume};
use crate::base::planted::{Bug, planted};
use crate::base::sync::atomic::Ordering;
use crate::base::{Error, Result, Seq};
use crate::format::op::{NodeKind, Op};
use crate::os::sys;

/// Writes of the page cache up to this size are answered before the sync site has them, bytes. Of larger ones the kernel has
/// several under way.
pub(super) const DEFERRED_BYTES_MAX: usize = 64 << 10;

/// How a write comes.
#[derive(Clone, Copy, Debug, Default)]
pub struct WriteHow {
    /// From the page cache: rights were decided before.
    pub cached: bool,
    /// The kernel keeps the time of cached writes (writeback). Without, what was stored into mapped memory is cached, too,
    /// and nobody but us sets its time.
    pub timed: bool,
    /// At the end of the file, wherever that is.
    pub append: bool,
    /// Durable before it is answered (direct I/O with O_DSYNC; for buffered writes the kernel sends an fsync).
    pub durable: bool,
}

/// What a write did.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    /// Bytes: less than asked for when the disk filled up on the way.
    pub len: usize,
    /// The file's allocated space changed.
    pub allocated: bool,
}

/// How kagami opens a file for an application: appending, truncating and caching are done above, and what writes must be
/// able to read (the page cache fills pages that are written in part).
fn local_flags(flags: i32) -> i32 {
    match flags & libc::O_ACCMODE {
        libc::O_RDONLY => libc::O_RDONLY,
        _ => libc::O_RDWR,
    }
}

impl Volume {
    /// Opens a file; with `O_TRUNC` its content goes.
    pub fn open(&self, node: u64, flags: i32, who: &Caller) -> Result<Opened> {
        let obj = self.objects.get(node)?;
        let (generation, region) = self.leg();
        let truncate = flags & libc::O_TRUNC != 0;
        let local = local_flags(if truncate { libc::O_RDWR } else { flags });
        let fd = self.open_object(&obj, local)?;
        if truncate {
            let mut c = Change::new(self, &obj, region);
            self.truncate(&mut c, &fd, 0, true, who)?;
            c.finish()?;
        }
        let fh = self.files.add(OpenFile::new(obj, local, generation, fd));
        Ok(Opened { fh, node: None })
    }

    /// Makes and opens a regular file.
    pub fn create(&self, parent: u64, name: &[u8], mode: u32, flags: i32, who: &Caller) -> Result<(Node, Opened)> {
        let (generation, _) = self.leg();
        let (node, fd) = self.make_open(parent, name, Made::Node(NodeKind::File), mode, who)?;
        let obj = self.objects.get(node.node)?;
        let fd = match fd {
            Some(fd) => fd,
            None => self.open_object(&obj, libc::O_RDWR)?,
        };
        obj.plain.store(true, Ordering::Release);
        let fh = self.files.add(OpenFile::new(obj, local_flags(flags), generation, fd));
        Ok((node, Opened { fh, node: Some(node) }))
    }

    /// Before a close(2) is answered: waits for what the page cache wrote and was answered for before the sync site had it (G1).
    pub fn flush(&self, fh: u64) -> Result<()> {
        let obj = self.files.get(fh)?.obj.clone();
        let owed = obj.owed.load(Ordering::Acquire);
        if owed > 0 {
            self.order.wait(Seq(owed))?;
            let _ = obj.owed.compare_exchange(owed, 0, Ordering::AcqRel, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Closes an open file.
    pub fn release(&self, fh: u64) {
        self.files.remove(fh);
    }

    /// Reads until the buffer is full or the file ends.
    pub fn read(&self, fh: u64, off: u64, buf: &mut [u8]) -> Result<usize> {
        let fd = self.files.get(fh)?.fd(self)?;
        Ok(sys::pread_full(&*fd, buf, off)?)
    }

    /// Writes.
    pub fn write(&self, fh: u64, off: u64, data: &[u8], how: WriteHow, who: &Caller) -> Result<Written> {
        let h = self.files.get(fh)?;
        let region = self.region();
        let fd = h.fd(self)?;
        let mut c = Change::new(self, &h.obj, region);
        let before = c.stat(&fd)?;
        let off = if how.append { before.size } else { off };
        let mark = Mark::Data { from: off, to: off.saturating_add(data.len() as u64) };
        c.charge(&fd, &before, off, off.saturating_add(data.len() as u64))?;
        c.begin(mark, &fd, Of::Content(off, off.saturating_add(data.len() as u64)))?;
        let (done, r) = sys::pwrite_all(&*fd, data, off);
        if done == 0 {
            c.undo(&fd, &before)?;
            c.finish()?;
            return r.map(|()| Written { len: 0, allocated: false }).map_err(Error::from);
        }
        if how.timed {
            // The kernel owns the time of cached writes and sends it by itself, now and then before the data. Until
            // then the time stays what it was, here and at every replica.
            sys::utimensat(&*fd, b"", None, Some(before.mtime))?;
        }
        let (st, mode) = c.strip(&fd, &before, (!how.cached).then_some(who))?;
        c.settle(&st);
        let make = |t| Op::Write { at: file_name(t), off, mtime: Some(st.mtime) };
        c.commit(mark, &make, data.get(..done).unwrap_or(data))?;
        c.commit_mode(mode)?;
        match how.cached && done == data.len() && done <= DEFERRED_BYTES_MAX {
            true => c.finish_later()?,
            false => c.finish()?,
        }
        if how.durable {
            self.sync_parts(&fd, true)?;
        }
        Ok(Written { len: done, allocated: st.blocks != before.blocks })
    }

    /// Sets the size through a descriptor that may write; part of a change. `modifies`: also when the size stays, as for
    /// ftruncate(2) and O_TRUNC; truncate(2) leaves the time alone then, and so does the kernel in what it cached.
    pub(super) fn truncate(
        &self,
        c: &mut Change<'_>,
        fd: &std::os::fd::OwnedFd,
        size: u64,
        modifies: bool,
        who: &Caller,
    ) -> Result<()> {
        let before = c.stat(fd)?;
        let mark = Mark::Data { from: before.size.min(size), to: u64::MAX };
        c.charge(fd, &before, size, size)?;
        c.begin(mark, fd, Of::Content(before.size.min(size), u64::MAX))?;
        sys::ftruncate(fd, size)?;
        if size == before.size && !modifies {
            sys::utimensat(fd, b"", None, Some(before.mtime))?;
        }
        let (st, mode) = c.strip(fd, &before, Some(who))?;
        c.settle(&st);
        c.commit(mark, &|t| Op::Truncate { at: file_name(t), size, mtime: Some(st.mtime) }, &[])?;
        c.commit_mode(mode)
    }

    /// fsync and fdatasync: durable here and at the sync site.
    pub fn fsync(&self, fh: u64, data_only: bool) -> Result<()> {
        let fd = self.files.get(fh)?.fd(self)?;
        self.sync_parts(&fd, data_only)
    }

    /// The local file and the order's barrier at the same time.
    pub(super) fn sync_parts(&self, fd: &std::os::fd::OwnedFd, data_only: bool) -> Result<()> {
        let mut local = Ok(());
        let remote = self.order.barrier(&mut || {
            if !planted(Bug::FsyncThereOnly) {
                local = sys::sync_fd(fd, data_only);
            }
        });
        if let Err(e) = local {
            // What a failed fsync lost cannot be known, and a second one would lie: this leg is no longer good.
            let e = Error::from(e).context("fsync");
            self.order.local_fault(self.vol, &e);
            return Err(e);
        }
        remote
    }

    /// lseek(2) with `SEEK_DATA` or `SEEK_HOLE`.
    pub fn seek(&self, fh: u64, off: u64, whence: i32) -> Result<u64> {
        let fd = self.files.get(fh)?.fd(self)?;
        sys::seek(&*fd, off, whence)?.ok_or_else(|| Error::os(libc::ENXIO))
    }

    /// True while some open file of the node may write, so that the page cache may hold what the tree does not.
    pub fn has_writers(&self, node: u64) -> bool {
        self.objects.get(node).is_ok_and(|o| o.writers.load(Ordering::Relaxed) > 0)
    }
}
