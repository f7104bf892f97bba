//! The calls of a sequence on the simulated disk.

use crate::disk::{At, Attr, Disk, Ofd, Stamp};
use crate::step::{Ability, Gave, Place, SLOTS, Seen, Step, Value};

/// A disk with the descriptors of a sequence.
pub struct Simulated {
    pub disk: Disk,
    slots: [Option<Ofd>; SLOTS],
    able: Ability,
}

/// A description that is none.
const NONE: Ofd = Ofd(u64::MAX);

fn nothing(_: impl Sized) -> Value {
    Value::Nothing
}

impl Simulated {
    /// A disk with `top` as the directory of the sequence.
    pub fn open(mut disk: Disk, top: &str, able: Ability) -> Simulated {
        let o = disk.open(At::Root(top.as_bytes()), libc::O_RDONLY, 0, false).expect("the directory just made");
        let mut slots = [None; SLOTS];
        slots[0] = Some(o);
        Simulated { disk, slots, able }
    }

    fn ofd(&self, slot: usize) -> Ofd {
        self.slots[slot].unwrap_or(NONE)
    }

    fn at<'a>(&self, at: &'a Place) -> At<'a> {
        At::Ofd(self.ofd(at.slot), &at.path)
    }

    fn set(&mut self, slot: usize, o: Result<Ofd, i32>) -> Gave {
        let o = o?;
        if let Some(old) = self.slots[slot].replace(o) {
            self.disk.close(old);
        }
        Ok(Value::Nothing)
    }

    /// True for a call whose result on a real directory depends on what is not simulated: positions in directories, what
    /// goes through a fifo, holes where pages are set aside, the mode of a symlink, which of two errors comes first.
    pub fn is_unsure(&self, step: &Step) -> bool {
        let kind =
            |slot: usize| self.disk.stat(At::Ofd(self.ofd(slot), b""), false).map_or(0, |a| a.mode & libc::S_IFMT);
        match step {
            Step::Pread { slot, .. }
            | Step::Pwrite { slot, .. }
            | Step::Read { slot, .. }
            | Step::Write { slot, .. }
            | Step::Allocate { slot, .. } => {
                let read = matches!(step, Step::Read { .. });
                kind(*slot) == libc::S_IFIFO || read && kind(*slot) == libc::S_IFDIR
            }
            Step::Seek { slot, whence, .. } => {
                let holes = matches!(*whence, libc::SEEK_DATA | libc::SEEK_HOLE);
                kind(*slot) == libc::S_IFDIR || holes && self.disk.set_aside(self.ofd(*slot)) > 0
            }
            Step::Chmod { at, .. } => at.itself() && kind(at.slot) == libc::S_IFLNK,
            Step::GetXattr { slot, .. } | Step::SetXattr { slot, .. } | Step::RemoveXattr { slot, .. } => {
                kind(*slot) == 0
            }
            _ => false,
        }
    }

    /// Closes all descriptors but the first.
    pub fn close_all(&mut self) {
        for o in self.slots[1..].iter_mut().filter_map(Option::take) {
            self.disk.close(o);
        }
    }

    /// Does a call.
    pub fn run(&mut self, step: &Step) -> Gave {
        match step {
            Step::Open { into, at, flags, mode, beneath } => {
                let o = self.disk.open(self.at(at), *flags, *mode, *beneath);
                self.set(*into, o)
            }
            Step::Reopen { into, from, flags } => {
                let o = self.disk.reopen(self.ofd(*from), *flags);
                self.set(*into, o)
            }
            Step::Close(slot) => {
                let o = self.slots[*slot].take().ok_or(libc::EBADF)?;
                self.disk.close(o);
                Ok(Value::Nothing)
            }
            Step::Pread { .. } | Step::Pwrite { .. } | Step::Read { .. } | Step::Write { .. } => self.transfer(step),
            Step::Seek { slot, off, whence } => self.seek(*slot, *off, *whence),
            Step::Truncate { slot, size } => self.disk.ftruncate(self.ofd(*slot), *size).map(nothing),
            Step::Allocate { slot, mode, off, len } => {
                self.disk.fallocate(self.ofd(*slot), *mode, *off, *len).map(nothing)
            }
            Step::Sync { slot, data_only } => {
                // The real side has none; that it goes through or not is tested elsewhere.
                let _ = self.disk.fsync(self.ofd(*slot), *data_only);
                Ok(Value::Nothing)
            }
            Step::Stat { at, follow } => self.disk.stat(self.at(at), *follow).map(|a| Value::Seen(self.seen(&a))),
            Step::List { slot } => self.list(*slot),
            _ => self.name_or_attribute(step),
        }
    }

    fn transfer(&mut self, step: &Step) -> Gave {
        let cut = |mut buf: Vec<u8>, n: Result<usize, i32>| {
            buf.truncate(n?);
            Ok(Value::Bytes(buf))
        };
        match step {
            Step::Pread { slot, off, len } => {
                let mut buf = vec![0; *len];
                let n = self.disk.pread(self.ofd(*slot), &mut buf, *off);
                cut(buf, n)
            }
            Step::Read { slot, len } => {
                let mut buf = vec![0; *len];
                let n = self.disk.read(self.ofd(*slot), &mut buf);
                cut(buf, n)
            }
            Step::Pwrite { slot, off, len, byte } => {
                self.disk.pwrite(self.ofd(*slot), &vec![*byte; *len], *off).map(|n| Value::Number(n as u64))
            }
            Step::Write { slot, len, byte } => {
                self.disk.write(self.ofd(*slot), &vec![*byte; *len]).map(|n| Value::Number(n as u64))
            }
            _ => unreachable!("only reads and writes come here"),
        }
    }

    fn seek(&mut self, slot: usize, off: i64, whence: i32) -> Gave {
        let o = self.ofd(slot);
        let n = self.disk.lseek(o, off, whence)?;
        Ok(Value::Number(n))
    }

    fn seen(&self, a: &Attr) -> Seen {
        let dir = a.mode & libc::S_IFMT == libc::S_IFDIR;
        Seen {
            mode: a.mode,
            nlink: if dir && !self.able.dir_links { 0 } else { a.nlink },
            owner: if self.able.root { (a.uid, a.gid) } else { (0, 0) },
            rdev: a.rdev,
            size: if dir { 0 } else { a.size },
        }
    }

    /// Lists in pieces, so that each piece goes on where the last ended.
    fn list(&mut self, slot: usize) -> Gave {
        let o = self.ofd(slot);
        let _ = self.disk.lseek(o, 0, libc::SEEK_SET);
        let mut names = Vec::new();
        loop {
            let some = self.disk.getdents(o, 2)?;
            if some.is_empty() {
                break;
            }
            names.extend(some.into_iter().map(|(name, _, kind, _)| (name, kind)));
        }
        names.sort();
        Ok(Value::Names(names))
    }

    fn name_or_attribute(&mut self, step: &Step) -> Gave {
        let d = &mut self.disk;
        let slots = &self.slots;
        let ofd = |slot: usize| slots[slot].unwrap_or(NONE);
        let itself = |slot: usize| At::Ofd(ofd(slot), b"");
        fn at_of<'a>(slots: &[Option<Ofd>; SLOTS], at: &'a Place) -> At<'a> {
            At::Ofd(slots[at.slot].unwrap_or(NONE), &at.path)
        }
        let at = |place| at_of(slots, place);
        match step {
            Step::Mkdir { at: p, mode } => d.mkdir(at(p), *mode).map(nothing),
            Step::Mknod { at: p, mode, rdev } => d.mknod(at(p), *mode, *rdev).map(nothing),
            Step::Symlink { target, at: p } => d.symlink(target, at(p)).map(nothing),
            Step::Readlink { at: p } => d.readlink(at(p)).map(Value::Bytes),
            Step::Link { from, follow, to } => d.link(at(from), *follow, at(to)).map(nothing),
            Step::Unlink { at: p } => d.unlink(at(p)).map(nothing),
            Step::Rmdir { at: p } => d.rmdir(at(p)).map(nothing),
            Step::Rename { from, to, flags } => d.rename(at(from), at(to), *flags).map(nothing),
            Step::Chmod { at: p, mode } => d.chmod(at(p), true, *mode).map(nothing),
            Step::Chown { at: p, follow, uid, gid } => d.chown(at(p), *follow, *uid, *gid).map(nothing),
            Step::Utimens { at: p, follow, atime, mtime } => {
                let stamp = |t: &Option<i64>| t.map(|sec| Stamp { sec, nsec: 0 });
                d.utimens(at(p), *follow, stamp(atime), stamp(mtime))?;
                let a = d.stat(at(p), *follow)?;
                Ok(Value::Times(atime.map(|_| a.atime.sec), mtime.map(|_| a.mtime.sec)))
            }
            Step::GetXattr { slot, name } => d.getxattr(itself(*slot), true, name).map(Value::Bytes),
            Step::SetXattr { slot, name, value, flags } => {
                d.setxattr(itself(*slot), true, name, value, *flags).map(nothing)
            }
            Step::RemoveXattr { slot, name } => d.removexattr(itself(*slot), true, name).map(nothing),
            Step::ListXattr { slot } => {
                let mut names: Vec<_> = d.listxattr(itself(*slot), true)?.into_iter().map(|n| (n, 0)).collect();
                names.sort();
                Ok(Value::Names(names))
            }
            _ => unreachable!("all other calls are above"),
        }
    }
}
