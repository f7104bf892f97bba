//! Open files and what they hold.

use super::*;

impl Model {
    pub(super) fn open(&mut self, slot: u8, path: &Path, flags: i32, mode: u32, now: Mtime) -> Res<Answer> {
        let has = |flag: i32| flags & flag == flag;
        let (create, access) = (has(libc::O_CREAT), flags & libc::O_ACCMODE);
        let excl = create && has(libc::O_EXCL);
        let follow = !has(libc::O_NOFOLLOW) && (!excl || self.mistake == Mistake::ExclFollows);
        let found = self.find(path, follow)?;
        if excl && found.ino.is_some() {
            return Err(libc::EEXIST);
        }
        let ino = match found.ino {
            None if !create => return Err(libc::ENOENT),
            None => self.make_at(found.dir, found.name, Kind::File(Content::default()), mode, now),
            Some(ino) => {
                match &self.inodes[&ino].kind {
                    Kind::Symlink(_) if has(libc::O_DIRECTORY) => return Err(libc::ENOTDIR),
                    Kind::Symlink(_) => return Err(libc::ELOOP),
                    Kind::Dir(_) if create || access != libc::O_RDONLY => return Err(libc::EISDIR),
                    Kind::File(_) if has(libc::O_DIRECTORY) => return Err(libc::ENOTDIR),
                    _ => {}
                }
                if has(libc::O_TRUNC) {
                    // The kernel shows a time of its own, and sends it when the file is closed.
                    self.resize(ino, 0, Mtime::Any)?;
                }
                ino
            }
        };
        // What was open in this slot is closed first, but only when the new one could be had.
        let _ = self.close(slot);
        let (read, write) = (access != libc::O_WRONLY, access != libc::O_RDONLY);
        self.slots[slot as usize] = Some(Handle { ino, read, write, append: has(libc::O_APPEND), at: 0 });
        Ok(Answer::Done)
    }

    pub(super) fn close(&mut self, slot: u8) -> Res<Answer> {
        let h = self.handle(slot)?;
        if h.write {
            self.promised(h.ino);
        }
        self.slots[slot as usize] = None;
        self.forget(h.ino);
        Ok(Answer::Done)
    }

    pub(super) fn content(&mut self, ino: Ino) -> Res<&mut Content> {
        match &mut self.inode(ino).kind {
            Kind::File(c) => Ok(c),
            _ => Err(libc::EISDIR),
        }
    }

    /// fsync, msync or close has been answered.
    pub(super) fn promised(&mut self, ino: Ino) {
        if let Ok(c) = self.content(ino) {
            c.earlier.clear();
        }
    }

    /// A change of content; `at_once`: it is promised when it is answered.
    pub(super) fn change(&mut self, ino: Ino, at_once: bool, change: impl FnOnce(&mut Vec<u8>)) {
        let Ok(c) = self.content(ino) else { return };
        let before = c.data.clone();
        change(&mut c.data);
        // What was not promised before is not so now: the parts that did not change.
        if !at_once || !c.earlier.is_empty() {
            c.earlier.push(before);
        }
    }

    pub(super) fn pread(&mut self, slot: u8, at: u64, len: u64) -> Res<Vec<u8>> {
        let h = self.handle(slot)?;
        if !h.read {
            return Err(libc::EBADF);
        }
        let data = &self.content(h.ino)?.data;
        let from = (at as usize).min(data.len());
        let to = (at.saturating_add(len) as usize).min(data.len());
        Ok(data[from..to].to_vec())
    }

    /// Gives the position after what was written.
    pub(super) fn write(&mut self, slot: u8, at: u64, bytes: &[u8], now: Mtime) -> Res<u64> {
        let h = self.handle(slot)?;
        if !h.write {
            return Err(libc::EBADF);
        }
        let (mistake, at_once) = (self.mistake, self.write_through);
        let size = self.content(h.ino)?.data.len() as u64;
        let at = if h.append && mistake != Mistake::AppendAtOffset { size } else { at };
        if bytes.is_empty() {
            return Ok(at);
        }
        self.change(h.ino, at_once, |data| put(data, at as usize, bytes));
        self.inode(h.ino).mtime = now;
        Ok(at + bytes.len() as u64)
    }

    pub(super) fn map_write(&mut self, slot: u8, at: u64, bytes: &[u8], now: Mtime) -> Res<Answer> {
        let h = self.handle(slot)?;
        let size = self.content(h.ino).map_err(|_| libc::EACCES)?.data.len() as u64;
        if !h.read || !h.write {
            return Err(libc::EACCES);
        }
        let len = size.saturating_sub(at).min(bytes.len() as u64);
        if len > 0 {
            self.change(h.ino, false, |data| put(data, at as usize, &bytes[..len as usize]));
            self.inode(h.ino).mtime = now;
            self.promised(h.ino);
        }
        Ok(Answer::Number(len))
    }

    pub(super) fn copy_range(&mut self, slots: [u8; 2], [at, to_at]: [u64; 2], len: u64, now: Mtime) -> Res<Answer> {
        let [from, to] = [self.handle(slots[0])?, self.handle(slots[1])?];
        self.content(from.ino)?;
        self.content(to.ino)?;
        if !from.read || !to.write || to.append {
            return Err(libc::EBADF);
        }
        let source = &self.content(from.ino)?.data;
        let end = (at.saturating_add(len) as usize).min(source.len());
        let bytes = source.get(at as usize..end).unwrap_or_default().to_vec();
        let n = bytes.len() as u64;
        if from.ino == to.ino && at < to_at + n && to_at < at + n {
            return Err(libc::EINVAL);
        }
        if n > 0 {
            self.change(to.ino, false, |data| put(data, to_at as usize, &bytes));
            self.inode(to.ino).mtime = now;
        }
        Ok(Answer::Number(n))
    }

    pub(super) fn resize(&mut self, ino: Ino, size: u64, now: Mtime) -> Res<Answer> {
        let comes_back = self.mistake == Mistake::CutComesBack;
        let c = self.content(ino).map_err(|_| libc::EINVAL)?;
        let same = c.data.len() as u64 == size;
        let cut = c.data.get(size as usize..).unwrap_or_default().to_vec();
        let back = std::mem::replace(&mut c.cut, cut);
        self.change(ino, true, |data| {
            let end = data.len();
            data.resize(size as usize, 0);
            if comes_back && data.len() > end {
                let n = back.len().min(data.len() - end);
                data[end..end + n].copy_from_slice(&back[..n]);
            }
        });
        // Whether a size that stays counts as a change is told differently by ftruncate, truncate and O_TRUNC.
        self.inode(ino).mtime = if same { Mtime::Any } else { now };
        Ok(Answer::Done)
    }

    pub(super) fn fallocate(&mut self, slot: u8, mode: i32, at: u64, len: u64) -> Res<Answer> {
        let h = self.handle(slot);
        if len == 0 {
            return Err(h.map_or(libc::EBADF, |_| libc::EINVAL));
        }
        let h = h?;
        if !h.write {
            return Err(libc::EBADF);
        }
        let has = |flag: i32| mode & flag != 0;
        let zeros = has(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE);
        let punch_extends = self.mistake == Mistake::PunchExtends && has(libc::FALLOC_FL_PUNCH_HOLE);
        let extends = !has(libc::FALLOC_FL_KEEP_SIZE) || punch_extends;
        let end = (at + len) as usize;
        self.change(h.ino, true, |data| {
            if zeros {
                let (from, to) = ((at as usize).min(data.len()), end.min(data.len()));
                data[from..to].fill(0);
            }
            if extends && data.len() < end {
                data.resize(end, 0);
            }
        });
        // Which of them count as a modification is the file system's choice.
        self.inode(h.ino).mtime = Mtime::Any;
        Ok(Answer::Done)
    }
}

fn put(data: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    let end = at + bytes.len();
    if data.len() < end {
        data.resize(end, 0);
    }
    data[at..end].copy_from_slice(bytes);
}
