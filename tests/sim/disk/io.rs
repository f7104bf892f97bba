//! Calls on open descriptions: content, positions, listings.

use super::data::PAGE;
use super::inode::{FIRST_COOKIE, Id};
use super::open::Open;
use super::{Disk, Ino, Ofd, Res};

/// Bytes of a file, at most, as on ext4 with blocks of 4 KiB.
const FILE_MAX: u64 = (1 << 44) - PAGE as u64;

/// A name of a listing: the name, its inode number, `DT_*`, and the cookie at which the listing goes on after it.
pub type Entry = (Vec<u8>, Ino, u8, i64);

impl Disk {
    fn opened(&self, o: Ofd) -> Res<Open> {
        self.opens.get(o).copied()
    }

    /// The object of a description that is open for reading.
    fn readable(&self, o: Ofd) -> Res<Id> {
        let open = self.opened(o)?;
        if !open.reads() {
            return Err(libc::EBADF);
        }
        if self.is_dir(open.id) {
            return Err(libc::EISDIR);
        }
        Ok(open.id)
    }

    fn is_file(&self, id: Id) -> bool {
        self.table.live(id).meta.kind() == libc::S_IFREG
    }

    /// pread(2); less than the buffer holds only at the end of the file.
    pub fn pread(&mut self, o: Ofd, buf: &mut [u8], off: u64) -> Res<usize> {
        let id = self.readable(o)?;
        if off > i64::MAX as u64 {
            return Err(libc::EINVAL);
        }
        self.draw_read_fault(id)?;
        if self.draw_stale(id)
            && let Some(n) = self.table.get(id).data.read_stale(buf, off)
        {
            self.faults.counts.stale_reads += 1;
            return Ok(n);
        }
        Ok(self.table.get(id).data.read(buf, off))
    }

    /// pwrite(2), which appends on a description with O_APPEND. May write less than asked when the disk is nearly full.
    pub fn pwrite(&mut self, o: Ofd, buf: &[u8], off: u64) -> Res<usize> {
        self.write_at(o, buf, off).map(|(n, _)| n)
    }

    /// read(2), at the position of the description.
    pub fn read(&mut self, o: Ofd, buf: &mut [u8]) -> Res<usize> {
        let pos = self.opened(o)?.pos;
        let n = self.pread(o, buf, pos)?;
        self.opens.get_mut(o)?.pos += n as u64;
        Ok(n)
    }

    /// write(2), at the position of the description.
    pub fn write(&mut self, o: Ofd, buf: &[u8]) -> Res<usize> {
        let pos = self.opened(o)?.pos;
        let (n, end) = self.write_at(o, buf, pos)?;
        if n > 0 {
            self.opens.get_mut(o)?.pos = end;
        }
        Ok(n)
    }

    /// Writes, and gives the bytes written and where they end.
    fn write_at(&mut self, o: Ofd, buf: &[u8], off: u64) -> Res<(usize, u64)> {
        let open = self.opened(o)?;
        if !open.writes() {
            return Err(libc::EBADF);
        }
        if !self.is_file(open.id) || off > i64::MAX as u64 {
            return Err(libc::EINVAL);
        }
        if buf.is_empty() {
            return Ok((0, off));
        }
        let append = open.flags & libc::O_APPEND != 0;
        let off = if append { self.table.get(open.id).data.size() } else { off };
        if off >= FILE_MAX {
            return Err(libc::EFBIG);
        }
        let len = self.draw_write_fault(open.id, buf.len())?;
        let len = len.min((FILE_MAX - off) as usize);
        let n = self.put(open.id, &buf[..len], off);
        if n == 0 {
            return Err(libc::ENOSPC);
        }
        Ok((n, off + n as u64))
    }

    /// Writes page by page as far as there is room.
    fn put(&mut self, id: Id, buf: &[u8], off: u64) -> usize {
        let mut room = self.free_bytes() / PAGE as u64;
        let now = self.now;
        self.drop_capability(id);
        let i = self.table.get_mut(id);
        let cost = i.data.cost();
        let mut done = 0;
        while done < buf.len() {
            let at = off + done as u64;
            let len = (PAGE - (at % PAGE as u64) as usize).min(buf.len() - done);
            if !i.data.has_room(at / PAGE as u64) {
                if room == 0 {
                    break;
                }
                room -= 1;
            }
            i.data.write_page(&buf[done..done + len], at);
            done += len;
        }
        self.pages_used += i.data.cost() - cost;
        if done > 0 {
            self.written(id, now);
        }
        done
    }

    /// Content changed: times that no operation of the log has.
    fn written(&mut self, id: Id, now: super::Stamp) {
        let i = self.table.get_mut(id);
        i.lazy = Some((now, now));
        if let Some(s) = &mut i.live {
            (s.meta.mtime, s.meta.ctime) = (now, now);
        }
        self.table.soil(id);
    }

    /// Changes the content of a file in a way that takes no room, or as much as was seen to be there.
    fn reshape(&mut self, id: Id, how: impl FnOnce(&mut super::data::Data)) {
        let i = self.table.get_mut(id);
        let cost = i.data.cost();
        how(&mut i.data);
        self.pages_used = self.pages_used + i.data.cost() - cost;
        self.written(id, self.now);
    }

    /// lseek(2), with SEEK_DATA and SEEK_HOLE by pages; in a directory positions are cookies.
    pub fn lseek(&mut self, o: Ofd, off: i64, whence: i32) -> Res<u64> {
        let open = self.opened(o)?;
        if open.is_path() {
            return Err(libc::EBADF);
        }
        let kind = self.table.live(open.id).meta.kind();
        if !matches!(kind, libc::S_IFREG | libc::S_IFDIR) {
            return Err(libc::ESPIPE);
        }
        if matches!(whence, libc::SEEK_DATA | libc::SEEK_HOLE) {
            self.look_at(open.id);
        }
        let i = self.table.get(open.id);
        let size = if kind == libc::S_IFDIR { i64::MAX as u64 } else { i.data.size() };
        let sum = |base: u64| base.checked_add_signed(off).filter(|p| *p <= i64::MAX as u64).ok_or(libc::EINVAL);
        let start = u64::try_from(off).ok().filter(|off| *off < size).ok_or(libc::ENXIO);
        let to = match whence {
            libc::SEEK_SET => sum(0)?,
            libc::SEEK_CUR => sum(open.pos)?,
            libc::SEEK_END => sum(size)?,
            libc::SEEK_DATA if kind == libc::S_IFREG => i.data.data_from(start?).ok_or(libc::ENXIO)?,
            libc::SEEK_HOLE if kind == libc::S_IFREG => i.data.hole_from(start?),
            _ => return Err(libc::EINVAL),
        };
        self.opens.get_mut(o)?.pos = to;
        Ok(to)
    }

    /// ftruncate(2).
    pub fn ftruncate(&mut self, o: Ofd, size: u64) -> Res<()> {
        let open = self.opened(o)?;
        if open.is_path() {
            return Err(libc::EBADF);
        }
        if !open.writes() || !self.is_file(open.id) || size > i64::MAX as u64 {
            return Err(libc::EINVAL);
        }
        self.truncate_id(open.id, size)
    }

    /// truncate(2).
    pub fn truncate(&mut self, at: super::At, size: u64) -> Res<()> {
        let id = self.find(at, true)?;
        match self.table.live(id).meta.kind() {
            libc::S_IFREG => self.truncate_id(id, size),
            libc::S_IFDIR => Err(libc::EISDIR),
            _ => Err(libc::EINVAL),
        }
    }

    pub(super) fn truncate_id(&mut self, id: Id, size: u64) -> Res<()> {
        if size > FILE_MAX {
            return Err(libc::EFBIG);
        }
        self.drop_capability(id);
        self.reshape(id, |d| d.truncate(size));
        Ok(())
    }

    /// fallocate(2): no mode, KEEP_SIZE, PUNCH_HOLE with KEEP_SIZE, ZERO_RANGE with or without it; EOPNOTSUPP for others.
    pub fn fallocate(&mut self, o: Ofd, mode: i32, off: u64, len: u64) -> Res<()> {
        let keep = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        let what = mode & !libc::FALLOC_FL_KEEP_SIZE;
        let open = self.opened(o)?;
        if open.is_path() {
            return Err(libc::EBADF);
        }
        if len == 0 || off > i64::MAX as u64 || len > i64::MAX as u64 {
            return Err(libc::EINVAL);
        }
        match what {
            0 | libc::FALLOC_FL_ZERO_RANGE => {}
            libc::FALLOC_FL_PUNCH_HOLE if keep => {}
            _ => return Err(libc::EOPNOTSUPP),
        }
        if !open.writes() {
            return Err(libc::EBADF);
        }
        match self.table.live(open.id).meta.kind() {
            libc::S_IFREG => {}
            libc::S_IFIFO => return Err(libc::ESPIPE),
            _ => return Err(libc::ENODEV),
        }
        let end = off.checked_add(len).filter(|end| *end <= FILE_MAX).ok_or(libc::EFBIG)?;
        if what == libc::FALLOC_FL_PUNCH_HOLE {
            self.punch(open.id, off, end);
            return Ok(());
        }
        let data = &self.table.get(open.id).data;
        if data.lacking(off, end) > self.free_bytes() / PAGE as u64 {
            return Err(libc::ENOSPC);
        }
        self.reshape(open.id, |d| {
            if what == libc::FALLOC_FL_ZERO_RANGE {
                d.zero(off, end);
            }
            d.reserve(off, end);
            if !keep {
                d.grow(end);
            }
        });
        Ok(())
    }

    fn punch(&mut self, id: Id, off: u64, end: u64) {
        if off >= self.table.get(id).data.size() {
            return;
        }
        self.reshape(id, |d| {
            d.zero(off, end);
            d.release(off, end);
        });
    }

    /// Pages of an open file that fallocate set aside and nothing was written to; 0 for what has none.
    pub fn set_aside(&self, o: Ofd) -> u64 {
        self.opens.get(o).map_or(0, |open| self.table.get(open.id).data.set_aside())
    }

    /// getdents64(2): up to `max` names from the position of the description on, `.` and `..` first.
    pub fn getdents(&mut self, o: Ofd, max: usize) -> Res<Vec<Entry>> {
        let open = self.opened(o)?;
        if open.is_path() {
            return Err(libc::EBADF);
        }
        let state = self.table.live(open.id);
        let dir = state.dir.as_ref().ok_or(libc::ENOTDIR)?;
        if state.meta.nlink == 0 {
            return Err(libc::ENOENT);
        }
        let pos = i64::try_from(open.pos).unwrap_or(i64::MAX);
        let itself = [(0, &b"."[..], open.id), (1, &b".."[..], dir.parent)];
        let names = dir.order.range(pos.max(FIRST_COOKIE)..).map(|(c, n)| (*c, &**n, dir.get(n).unwrap_or(open.id)));
        let all = itself.into_iter().filter(|(c, ..)| *c >= pos).chain(names).take(max);
        let found: Vec<Entry> = all
            .map(|(cookie, name, id)| {
                let i = self.table.get(id);
                let kind = i.live.as_ref().map_or(0, |s| s.meta.kind() >> 12);
                (name.to_vec(), i.number, kind as u8, cookie.saturating_add(1))
            })
            .collect();
        if let Some((.., next)) = found.last() {
            self.opens.get_mut(o)?.pos = *next as u64;
        }
        Ok(found)
    }

    /// mmap(2) with MAP_SHARED of the first `len` bytes of a regular file: the address of a page-aligned block that is never
    /// given back and is the content of these pages from then on, for all calls. Not beyond the end of the file (EINVAL):
    /// extend it before. A second map that is not longer has the same address.
    pub fn map(&mut self, o: Ofd, len: usize) -> Res<*mut u8> {
        let id = self.readable(o).map_err(|e| if e == libc::EISDIR { libc::ENODEV } else { e })?;
        if !self.is_file(id) {
            return Err(libc::ENODEV);
        }
        let i = self.table.get_mut(id);
        if len == 0 || len as u64 > i.data.size() {
            return Err(libc::EINVAL);
        }
        let at = i.data.map(len);
        self.mapped.insert(id);
        Ok(at)
    }
}
