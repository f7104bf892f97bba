//! Space of files: allocation, holes, copies between files, and of the whole filesystem.

use super::Volume;
use super::caller::Caller;
use super::change::{Change, file_name};
use super::image::Of;
use super::order::Mark;
use crate::base::{Error, Result};
use crate::format::op::Op;
use crate::os::sys::{self, StatFs};
use std::os::fd::OwnedFd;

/// Bytes copied by one entry.
const CHUNK_BYTES: u64 = 1 << 20;
/// Most bytes that one copy request moves; the application asks again for the rest.
const COPY_BYTES_MAX: u64 = 64 << 20;
const KEEP_SIZE: u32 = 1;
const PUNCH_HOLE: u32 = 2;
const ZERO_RANGE: u32 = 16;

impl Volume {
    /// fallocate(2).
    pub fn fallocate(&self, fh: u64, mode: u32, off: u64, len: u64, who: &Caller) -> Result<()> {
        let h = self.files.get(fh)?;
        let region = self.region();
        let fd = h.fd(self)?;
        let mut c = Change::new(self, &h.obj, region);
        self.allocate(&mut c, &fd, mode, off, len, who)?;
        c.finish()
    }

    fn allocate(&self, c: &mut Change<'_>, fd: &OwnedFd, mode: u32, off: u64, len: u64, who: &Caller) -> Result<()> {
        let before = c.stat(fd)?;
        // Collapse and insert move everything behind them; all but KEEP_SIZE may change the size.
        let to = if mode & KEEP_SIZE != 0 && mode & 0o50 == 0 { off.saturating_add(len) } else { u64::MAX };
        let mark = Mark::Data { from: off.min(before.size), to };
        // What is beyond the end and what gives space back costs nothing.
        let end =
            if mode & KEEP_SIZE != 0 { before.size.min(off.saturating_add(len)) } else { off.saturating_add(len) };
        let adds = mode & !(KEEP_SIZE | ZERO_RANGE) == 0 && off < end;
        c.charge(fd, &before, off, if adds { end } else { off })?;
        // Collapse and insert change everything behind them.
        let changed = if mode & 0o50 == 0 { off.saturating_add(len) } else { u64::MAX };
        c.begin(mark, fd, Of::Content(off, changed))?;
        if let Err(e) = sys::fallocate(fd, mode, off, len) {
            // A full disk may have cut it short after the size grew.
            let st = sys::fstat(fd)?;
            c.settle(&st);
            if st.size != before.size {
                c.commit(mark, &|t| Op::Truncate { at: file_name(t), size: st.size, mtime: Some(st.mtime) }, &[])?;
            } else {
                c.undo(fd, &before)?;
            }
            return Err(e.into());
        }
        let (st, bits) = c.strip(fd, &before, Some(who))?;
        c.settle(&st);
        c.commit(mark, &|t| Op::Fallocate { at: file_name(t), mode, off, len, mtime: Some(st.mtime) }, &[])?;
        c.commit_mode(bits)
    }

    /// copy_file_range(2): copies up to `len` bytes, holes as holes. Returns how many.
    pub fn copy_range(&self, src: u64, from: u64, dst: u64, to: u64, len: u64, who: &Caller) -> Result<u64> {
        let (src, dst) = (self.files.get(src)?, self.files.get(dst)?);
        let region = self.region();
        let (src_fd, fd) = (src.fd(self)?, dst.fd(self)?);
        let mut c = Change::new(self, &dst.obj, region);
        let end = sys::fstat(&*src_fd)?.size;
        let len = len.min(COPY_BYTES_MAX).min(end.saturating_sub(from));
        let mut buf = vec![0u8; CHUNK_BYTES.min(len) as usize];
        let mut done = 0;
        let mut failed = None;
        while done < len {
            match self.copy_step(&mut c, &src_fd, from + done, &fd, to + done, len - done, &mut buf, who) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) => {
                    failed = Some(e);
                    break;
                }
            }
        }
        c.finish()?;
        match failed {
            Some(e) if done == 0 => Err(e),
            _ => Ok(done),
        }
    }

    /// Copies one chunk of data or one hole.
    #[allow(clippy::too_many_arguments)]
    fn copy_step(
        &self,
        c: &mut Change<'_>,
        src: &OwnedFd,
        from: u64,
        dst: &OwnedFd,
        to: u64,
        len: u64,
        buf: &mut [u8],
        who: &Caller,
    ) -> Result<u64> {
        let data_at = match sys::seek(src, from, libc::SEEK_DATA) {
            Ok(at) => at.unwrap_or(u64::MAX),
            // A filesystem that cannot tell has no holes.
            Err(_) => from,
        };
        let before = c.stat(dst)?;
        if data_at > from {
            let hole = (data_at - from).min(len);
            if to < before.size {
                let n = hole.min(before.size - to);
                self.allocate(c, dst, KEEP_SIZE | PUNCH_HOLE, to, n, who)?;
            }
            if to + hole > before.size {
                self.truncate(c, dst, to + hole, true, who)?;
            }
            return Ok(hole);
        }
        let data_end = sys::seek(src, from, libc::SEEK_HOLE).ok().flatten().unwrap_or(u64::MAX);
        let want = len.min(CHUNK_BYTES).min(data_end.saturating_sub(from).max(1));
        let chunk = buf.get_mut(..want as usize).ok_or_else(|| Error::os(libc::EIO))?;
        let n = sys::pread_full(src, chunk, from)?;
        if n == 0 {
            return Ok(0);
        }
        let mark = Mark::Data { from: to, to: to + n as u64 };
        c.charge(dst, &before, to, to + n as u64)?;
        c.begin(mark, dst, Of::Content(to, to + n as u64))?;
        let (done, r) = sys::pwrite_all(dst, chunk.get(..n).unwrap_or_default(), to);
        if done == 0 {
            c.undo(dst, &before)?;
            r?;
        }
        let (st, mode) = c.strip(dst, &before, Some(who))?;
        c.settle(&st);
        let data = chunk.get(..done).unwrap_or_default();
        c.commit(mark, &|t| Op::Write { at: file_name(t), off: to, mtime: Some(st.mtime) }, data)?;
        c.commit_mode(mode)?;
        Ok(done as u64)
    }

    /// Capacity and use: of the volume where it has a capacity, never more than the filesystem below has.
    pub fn statfs(&self) -> Result<StatFs> {
        let region = self.region();
        let mut s = sys::statfs(&**region.tree_fd())?;
        if let (capacity @ 1.., Some(used)) = (region.space.capacity(), region.space.used()) {
            let unit = s.frsize.max(1);
            let free = capacity.saturating_sub(used) / unit;
            (s.blocks, s.bfree, s.bavail) = (capacity / unit, free.min(s.bfree), free.min(s.bavail));
        }
        Ok(s)
    }
}
