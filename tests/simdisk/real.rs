//! The calls of a sequence on a real directory.

use crate::step::{Ability, Gave, Place, SLOTS, STRANGE_DEVICE, Seen, Step, Value};
use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

/// A directory with the descriptors of a sequence.
pub struct Real {
    slots: [Option<OwnedFd>; SLOTS],
    able: Ability,
}

fn c(bytes: &[u8]) -> CString {
    CString::new(bytes).expect("no NUL in a drawn name")
}

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn check(r: impl Into<i64>) -> Result<u64, i32> {
    u64::try_from(r.into()).map_err(|_| errno())
}

fn done(r: impl Into<i64>) -> Gave {
    check(r).map(|_| Value::Nothing)
}

fn number(r: impl Into<i64>) -> Gave {
    check(r).map(Value::Number)
}

/// A descriptor that is none: every call says EBADF.
const NONE: RawFd = 1_000_000;

impl Real {
    pub fn open(dir: &Path, able: Ability) -> Real {
        let top: OwnedFd = std::fs::File::open(dir).expect("the directory just made").into();
        let mut slots = [const { None }; SLOTS];
        slots[0] = Some(top);
        Real { slots, able }
    }

    fn fd(&self, slot: usize) -> RawFd {
        self.slots[slot].as_ref().map_or(NONE, AsRawFd::as_raw_fd)
    }

    fn set(&mut self, slot: usize, fd: i64) -> Gave {
        let fd = check(fd)?;
        // SAFETY: the call that gave it just opened it.
        self.slots[slot] = Some(unsafe { OwnedFd::from_raw_fd(fd as RawFd) });
        Ok(Value::Nothing)
    }

    fn proc_path(&self, slot: usize) -> Result<CString, i32> {
        if self.slots[slot].is_none() {
            return Err(libc::EBADF);
        }
        Ok(c(format!("/proc/self/fd/{}", self.fd(slot)).as_bytes()))
    }

    /// Does a call.
    pub fn run(&mut self, step: &Step) -> Gave {
        match step {
            Step::Open { .. } | Step::Reopen { .. } | Step::Close(_) => self.opening(step),
            Step::Pread { .. }
            | Step::Pwrite { .. }
            | Step::Read { .. }
            | Step::Write { .. }
            | Step::Seek { .. }
            | Step::Truncate { .. }
            | Step::Allocate { .. }
            | Step::Sync { .. } => self.content(step),
            Step::Stat { at, follow } => self.stat(at, *follow).map(|s| Value::Seen(self.seen(&s))),
            Step::List { slot } => self.list(*slot),
            Step::GetXattr { .. } | Step::SetXattr { .. } | Step::RemoveXattr { .. } | Step::ListXattr { .. } => {
                self.xattr(step)
            }
            Step::Chmod { .. } | Step::Chown { .. } | Step::Utimens { .. } => self.attribute(step),
            _ => self.name(step),
        }
    }

    fn opening(&mut self, step: &Step) -> Gave {
        match step {
            Step::Open { into, at, flags, mode, beneath: true } => {
                let fd = self.open_beneath(at, flags | libc::O_CLOEXEC, *mode);
                self.set(*into, fd)
            }
            Step::Open { into, at, flags, mode, .. } => {
                // SAFETY: a C string.
                let fd =
                    unsafe { libc::openat(self.fd(at.slot), c(&at.path).as_ptr(), flags | libc::O_CLOEXEC, *mode) };
                self.set(*into, fd.into())
            }
            Step::Reopen { into, from, flags } => {
                let path = self.proc_path(*from)?;
                // SAFETY: a C string.
                let fd = unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC, 0o600) };
                self.set(*into, fd.into())
            }
            Step::Close(slot) => self.slots[*slot].take().map(|_| Value::Nothing).ok_or(libc::EBADF),
            _ => unreachable!("only openings come here"),
        }
    }

    fn open_beneath(&self, at: &Place, flags: i32, mode: u32) -> i64 {
        const PATH_FLAGS: i32 = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        let path = c(&at.path);
        let flags = if flags & libc::O_PATH != 0 { flags & PATH_FLAGS } else { flags };
        let makes = flags & (libc::O_CREAT | libc::O_TMPFILE & !libc::O_DIRECTORY) != 0;
        loop {
            // SAFETY: open_how is plain data for which zeroes are valid; the path is a C string, the size is true.
            let fd = unsafe {
                let mut how: libc::open_how = std::mem::zeroed();
                how.flags = flags as u64;
                how.mode = if makes { u64::from(mode) } else { 0 };
                how.resolve = libc::RESOLVE_BENEATH;
                libc::syscall(libc::SYS_openat2, self.fd(at.slot), path.as_ptr(), &raw const how, size_of_val(&how))
            };
            // A rename anywhere on the machine makes `..` uncertain for a moment.
            if fd >= 0 || errno() != libc::EAGAIN {
                return fd;
            }
        }
    }

    fn content(&mut self, step: &Step) -> Gave {
        // SAFETY: buffers are passed with their lengths; the other calls have numbers only.
        unsafe {
            match step {
                Step::Pread { slot, off, len } => {
                    let mut buf = vec![0; *len];
                    let n = check(libc::pread(self.fd(*slot), buf.as_mut_ptr().cast(), *len, *off as i64) as i64)?;
                    buf.truncate(n as usize);
                    Ok(Value::Bytes(buf))
                }
                Step::Read { slot, len } => {
                    let mut buf = vec![0; *len];
                    let n = check(libc::read(self.fd(*slot), buf.as_mut_ptr().cast(), *len) as i64)?;
                    buf.truncate(n as usize);
                    Ok(Value::Bytes(buf))
                }
                Step::Pwrite { slot, off, len, byte } => {
                    let buf = vec![*byte; *len];
                    number(libc::pwrite(self.fd(*slot), buf.as_ptr().cast(), *len, *off as i64) as i64)
                }
                Step::Write { slot, len, byte } => {
                    let buf = vec![*byte; *len];
                    number(libc::write(self.fd(*slot), buf.as_ptr().cast(), *len) as i64)
                }
                Step::Seek { slot, off, whence } => number(libc::lseek(self.fd(*slot), *off, *whence)),
                Step::Truncate { slot, size } => done(libc::ftruncate(self.fd(*slot), *size as i64)),
                Step::Allocate { slot, mode, off, len } => {
                    done(libc::fallocate(self.fd(*slot), *mode, *off as i64, *len as i64))
                }
                // A real sync would take milliseconds and change nothing that a call shows.
                Step::Sync { .. } => Ok(Value::Nothing),
                _ => unreachable!("only calls about content come here"),
            }
        }
    }

    fn stat(&self, at: &Place, follow: bool) -> Result<libc::stat, i32> {
        let flags =
            if follow { 0 } else { libc::AT_SYMLINK_NOFOLLOW } | if at.itself() { libc::AT_EMPTY_PATH } else { 0 };
        // SAFETY: stat is plain data for which zeroes are valid, filled by the call.
        unsafe {
            let mut s = std::mem::zeroed();
            check(libc::fstatat(self.fd(at.slot), c(&at.path).as_ptr(), &mut s, flags))?;
            Ok(s)
        }
    }

    fn seen(&self, s: &libc::stat) -> Seen {
        let dir = s.st_mode & libc::S_IFMT == libc::S_IFDIR;
        Seen {
            mode: s.st_mode,
            nlink: if dir && !self.able.dir_links { 0 } else { s.st_nlink },
            owner: if self.able.root { (s.st_uid, s.st_gid) } else { (0, 0) },
            rdev: s.st_rdev,
            size: if dir { 0 } else { s.st_size as u64 },
        }
    }

    fn list(&self, slot: usize) -> Gave {
        let mut names = Vec::new();
        let mut buf = vec![0u8; 32 * 1024];
        // SAFETY: the buffer is passed with its length; rewinding needs numbers only.
        unsafe {
            if libc::fcntl(self.fd(slot), libc::F_GETFL) & libc::O_PATH == 0 {
                libc::lseek(self.fd(slot), 0, libc::SEEK_SET);
            }
        }
        loop {
            // SAFETY: as above.
            let n = unsafe { libc::syscall(libc::SYS_getdents64, self.fd(slot), buf.as_mut_ptr(), buf.len()) };
            let n = check(n)? as usize;
            if n == 0 {
                break;
            }
            let mut rest = &buf[..n];
            while !rest.is_empty() {
                let len = usize::from(u16::from_le_bytes([rest[16], rest[17]]));
                let name = rest[19..len].split(|b| *b == 0).next().unwrap_or_default();
                names.push((name.to_vec(), rest[18]));
                rest = &rest[len..];
            }
        }
        names.sort();
        Ok(Value::Names(names))
    }

    fn name(&mut self, step: &Step) -> Gave {
        // SAFETY: all paths are C strings, and buffers are passed with their lengths.
        unsafe {
            match step {
                Step::Mkdir { at, mode } => done(libc::mkdirat(self.fd(at.slot), c(&at.path).as_ptr(), *mode)),
                Step::Mknod { at, mode, rdev } => {
                    done(libc::mknodat(self.fd(at.slot), c(&at.path).as_ptr(), *mode, *rdev))
                }
                Step::Symlink { target, at } => {
                    done(libc::symlinkat(c(target).as_ptr(), self.fd(at.slot), c(&at.path).as_ptr()))
                }
                Step::Readlink { at } => {
                    let mut buf = vec![0u8; 8192];
                    let path = c(&at.path);
                    let n = libc::readlinkat(self.fd(at.slot), path.as_ptr(), buf.as_mut_ptr().cast(), buf.len());
                    buf.truncate(check(n as i64)? as usize);
                    Ok(Value::Bytes(buf))
                }
                Step::Link { from, follow, to } => {
                    let flags = if from.itself() {
                        libc::AT_EMPTY_PATH
                    } else if *follow {
                        libc::AT_SYMLINK_FOLLOW
                    } else {
                        0
                    };
                    let (f, t) = (c(&from.path), c(&to.path));
                    done(libc::linkat(self.fd(from.slot), f.as_ptr(), self.fd(to.slot), t.as_ptr(), flags))
                }
                Step::Unlink { at } => done(libc::unlinkat(self.fd(at.slot), c(&at.path).as_ptr(), 0)),
                Step::Rmdir { at } => done(libc::unlinkat(self.fd(at.slot), c(&at.path).as_ptr(), libc::AT_REMOVEDIR)),
                Step::Rename { from, to, flags } => {
                    let (f, t) = (c(&from.path), c(&to.path));
                    done(libc::renameat2(self.fd(from.slot), f.as_ptr(), self.fd(to.slot), t.as_ptr(), *flags))
                }
                _ => unreachable!("only calls about names come here"),
            }
        }
    }

    fn attribute(&mut self, step: &Step) -> Gave {
        let nofollow = |follow: bool| if follow { 0 } else { libc::AT_SYMLINK_NOFOLLOW };
        let empty = |at: &Place| if at.itself() { libc::AT_EMPTY_PATH } else { 0 };
        // SAFETY: all paths are C strings, and the times an array of two.
        unsafe {
            match step {
                Step::Chmod { at, mode } if at.itself() => done(libc::chmod(self.proc_path(at.slot)?.as_ptr(), *mode)),
                Step::Chmod { at, mode } => done(libc::fchmodat(self.fd(at.slot), c(&at.path).as_ptr(), *mode, 0)),
                Step::Chown { at, follow, uid, gid } => {
                    let (uid, gid) = (uid.unwrap_or(u32::MAX), gid.unwrap_or(u32::MAX));
                    let path = c(&at.path);
                    done(libc::fchownat(self.fd(at.slot), path.as_ptr(), uid, gid, nofollow(*follow) | empty(at)))
                }
                Step::Utimens { at, follow, atime, mtime } => {
                    let spec = |t: &Option<i64>| libc::timespec {
                        tv_sec: t.unwrap_or(0),
                        tv_nsec: if t.is_some() { 0 } else { libc::UTIME_OMIT },
                    };
                    let times = [spec(atime), spec(mtime)];
                    let path = c(&at.path);
                    let flags = nofollow(*follow) | empty(at);
                    check(libc::utimensat(self.fd(at.slot), path.as_ptr(), times.as_ptr(), flags))?;
                    let s = self.stat(at, *follow)?;
                    Ok(Value::Times(atime.map(|_| s.st_atime), mtime.map(|_| s.st_mtime)))
                }
                _ => unreachable!("only calls about attributes come here"),
            }
        }
    }

    fn xattr(&mut self, step: &Step) -> Gave {
        let mut buf = vec![0u8; 4096];
        // SAFETY: all names are C strings, and buffers are passed with their lengths.
        unsafe {
            match step {
                Step::GetXattr { slot, name } => {
                    let (path, name) = (self.proc_path(*slot)?, c(name));
                    let n = libc::getxattr(path.as_ptr(), name.as_ptr(), buf.as_mut_ptr().cast(), buf.len());
                    buf.truncate(check(n as i64)? as usize);
                    Ok(Value::Bytes(buf))
                }
                Step::SetXattr { slot, name, value, flags } => {
                    let (path, name) = (self.proc_path(*slot)?, c(name));
                    done(libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), *flags))
                }
                Step::RemoveXattr { slot, name } => {
                    done(libc::removexattr(self.proc_path(*slot)?.as_ptr(), c(name).as_ptr()))
                }
                Step::ListXattr { slot } => {
                    let path = self.proc_path(*slot)?;
                    let n = libc::listxattr(path.as_ptr(), buf.as_mut_ptr().cast(), buf.len());
                    buf.truncate(check(n as i64)? as usize);
                    let own = |name: &&[u8]| name.starts_with(b"user.") || name.starts_with(b"trusted.");
                    let mut names: Vec<_> = buf.split(|b| *b == 0).filter(own).map(|n| (n.to_vec(), 0)).collect();
                    names.sort();
                    Ok(Value::Names(names))
                }
                _ => unreachable!("only calls about xattrs come here"),
            }
        }
    }
}

/// Tries what a directory can do.
pub fn ability(dir: &Path) -> Ability {
    let mut all = Ability {
        // SAFETY: cannot fail.
        root: unsafe { libc::geteuid() } == 0,
        xattrs: true,
        allocate: true,
        zero_range: true,
        tmpfile: true,
        beneath: true,
        exchange: true,
        holes: true,
        dir_links: true,
    };
    for sub in ["x", "y"] {
        std::fs::create_dir(dir.join(sub)).expect("a directory to try things in");
    }
    let mut r = Real::open(dir, all);
    let top = |path: &str| Place { slot: 0, path: path.into() };
    let open = |into, path, flags, beneath| Step::Open { into, at: top(path), flags, mode: 0o644, beneath };
    let fits = |r: &mut Real, step: &Step| r.run(step).is_ok();
    assert!(fits(&mut r, &open(1, "f", libc::O_RDWR | libc::O_CREAT, false)));
    all.tmpfile = fits(&mut r, &open(2, "x", libc::O_RDWR | libc::O_TMPFILE, false));
    all.beneath = fits(&mut r, &open(2, "x", libc::O_RDONLY, true));
    all.exchange = fits(&mut r, &Step::Rename { from: top("x"), to: top("y"), flags: libc::RENAME_EXCHANGE });
    all.xattrs = fits(&mut r, &Step::SetXattr { slot: 1, name: b"user.x".to_vec(), value: vec![1], flags: 0 });
    let allocate = |mode, off| Step::Allocate { slot: 1, mode, off, len: 4096 };
    assert!(fits(&mut r, &Step::Pwrite { slot: 1, off: 0, len: 12_288, byte: 1 }));
    all.zero_range = fits(&mut r, &allocate(libc::FALLOC_FL_ZERO_RANGE, 0));
    all.allocate = fits(&mut r, &allocate(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 4096));
    let data = r.run(&Step::Seek { slot: 1, off: 4096, whence: libc::SEEK_DATA });
    all.holes = all.allocate && data == Ok(Value::Number(8192));
    let links = r.stat(&top(""), true).expect("its own directory").st_nlink;
    all.dir_links = links == 4;
    let at = top("f");
    all.root = all.root
        && fits(&mut r, &Step::Chown { at: at.clone(), follow: false, uid: Some(1), gid: Some(2) })
        && fits(&mut r, &Step::SetXattr { slot: 1, name: b"trusted.x".to_vec(), value: vec![1], flags: 0 })
        && fits(&mut r, &Step::Mknod { at: top("z"), mode: libc::S_IFCHR | 0o600, rdev: STRANGE_DEVICE })
        && r.run(&open(2, "z", libc::O_RDONLY, false)) == Err(libc::ENXIO);
    all
}
