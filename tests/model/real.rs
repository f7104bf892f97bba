//! The same operations on a real directory, by plain system calls.

use super::fs::{Answer, Ino, Kind, Model, Mtime, ROOT, Stat};
use super::ops::{Op, Path, SLOTS, XATTRS, names};
use crate::support::sys;
use std::collections::HashMap;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

/// A directory in which a sequence is played.
pub struct Real {
    pub root: PathBuf,
    dir: OwnedFd,
    slots: [Option<OwnedFd>; SLOTS as usize],
    names: Vec<Vec<u8>>,
}

type Res = io::Result<Answer>;

impl Real {
    /// In this directory, which is there and empty.
    pub fn new(root: PathBuf) -> io::Result<Real> {
        Ok(Real { dir: sys::open_dir(&root)?, root, slots: Default::default(), names: names() })
    }

    /// After the mount went away and came back: nothing is open any more.
    pub fn reopen(&mut self) -> io::Result<()> {
        self.slots = Default::default();
        self.dir = sys::open_dir(&self.root)?;
        Ok(())
    }

    pub fn apply(&mut self, op: &Op) -> Answer {
        self.answer(op).unwrap_or_else(|e| Answer::Errno(e.raw_os_error().unwrap_or(-1)))
    }

    fn fd(&self, slot: u8) -> RawFd {
        self.slots[slot as usize].as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }

    fn path(&self, path: &Path) -> PathBuf {
        let parts: Vec<&[u8]> = path.iter().map(|n| self.names[*n as usize].as_slice()).collect();
        PathBuf::from(sys::os(&parts.join(&b'/')))
    }

    /// A C string of the whole path, for calls that take no directory.
    fn whole(&self, path: &Path) -> io::Result<CString> {
        sys::c(self.root.join(self.path(path)))
    }

    fn answer(&mut self, op: &Op) -> Res {
        let dir = self.dir.as_raw_fd();
        let done = |r: io::Result<()>| r.map(|()| Answer::Done);
        match op {
            Op::Open { slot, path, flags, mode } => {
                let file = sys::openat(dir, self.path(path), *flags, *mode)?;
                match self.slots[*slot as usize].replace(file) {
                    Some(before) => done(sys::close(before)),
                    None => Ok(Answer::Done),
                }
            }
            Op::Close { slot } => match self.slots[*slot as usize].take() {
                Some(file) => done(sys::close(file)),
                None => Err(io::Error::from_raw_os_error(libc::EBADF)),
            },
            Op::Fsync { slot, data_only: false } => done(sys::fsync(self.fd(*slot))),
            // SAFETY: plain number.
            Op::Fsync { slot, .. } => done(check(unsafe { libc::fdatasync(self.fd(*slot)) })),
            Op::Mkdir { path, mode } => done(sys::mkdirat(dir, self.path(path), *mode)),
            Op::Mkfifo { path, mode } => done(sys::mknodat(dir, self.path(path), sys::S_IFIFO | mode, 0)),
            Op::Symlink { target, path } => {
                let target = self.path(target);
                done(sys::symlinkat(target.as_os_str().as_encoded_bytes(), dir, self.path(path)))
            }
            Op::Readlink { path } => sys::readlinkat(dir, self.path(path)).map(Answer::Bytes),
            Op::Link { from, to } => done(sys::linkat(dir, self.path(from), dir, self.path(to))),
            Op::Unlink { path } => done(sys::unlinkat(dir, self.path(path), 0)),
            Op::Rmdir { path } => done(sys::unlinkat(dir, self.path(path), libc::AT_REMOVEDIR)),
            Op::Rename { from, to, flags } => done(sys::renameat2(dir, self.path(from), dir, self.path(to), *flags)),
            Op::Chmod { path, mode } => done(sys::chmodat(dir, self.path(path), *mode)),
            // SAFETY: plain numbers.
            Op::Fchmod { slot, mode } => done(check(unsafe { libc::fchmod(self.fd(*slot), *mode) })),
            Op::Chown { path, uid, gid } => done(sys::lchownat(dir, self.path(path), *uid, *gid)),
            Op::Utimens { path, sec, nsec } => done(sys::set_times(dir, self.path(path), (1, 0), (*sec, *nsec))),
            Op::Lstat { path } => sys::lstatat(dir, self.path(path)).map(|st| Answer::Stat(seen(&st))),
            Op::Fstat { slot } => sys::fstat(self.fd(*slot)).map(|st| Answer::Stat(seen(&st))),
            Op::Readdir { path } => {
                let open = sys::openat(dir, self.path(path), sys::O_RDONLY | sys::O_DIRECTORY, 0)?;
                sys::names(open.as_raw_fd()).map(Answer::Names)
            }
            Op::SetXattr { .. } | Op::GetXattr { .. } | Op::RemoveXattr { .. } | Op::ListXattr { .. } => self.xattr(op),
            _ => self.content(op),
        }
    }

    fn content(&mut self, op: &Op) -> Res {
        let number =
            |n: isize| usize::try_from(n).map(|n| Answer::Number(n as u64)).map_err(|_| io::Error::last_os_error());
        match op {
            Op::Read { slot, len } => {
                let mut buf = vec![0; *len as usize];
                // SAFETY: the length given is that of the buffer.
                let n = unsafe { libc::read(self.fd(*slot), buf.as_mut_ptr().cast(), buf.len()) };
                buf.truncate(usize::try_from(n).map_err(|_| io::Error::last_os_error())?);
                Ok(Answer::Bytes(buf))
            }
            Op::Pread { slot, at, len } => {
                let mut buf = vec![0; *len as usize];
                let n = sys::pread(self.fd(*slot), &mut buf, *at)?;
                buf.truncate(n);
                Ok(Answer::Bytes(buf))
            }
            Op::Write { slot, len, stamp } => {
                let bytes = Op::bytes(*stamp, *len);
                // SAFETY: the length given is that of the bytes.
                number(unsafe { libc::write(self.fd(*slot), bytes.as_ptr().cast(), bytes.len()) })
            }
            Op::Pwrite { slot, at, len, stamp } => {
                let bytes = Op::bytes(*stamp, *len);
                // SAFETY: the length given is that of the bytes.
                number(unsafe { libc::pwrite(self.fd(*slot), bytes.as_ptr().cast(), bytes.len(), *at as i64) })
            }
            Op::Seek { slot, at } => {
                let is_file = sys::fstat(self.fd(*slot))?.st_mode & sys::S_IFMT == sys::S_IFREG;
                let at = if is_file { *at as i64 } else { 0 };
                // SAFETY: plain numbers.
                number(unsafe { libc::lseek(self.fd(*slot), at, libc::SEEK_SET) as isize }).map(|_| Answer::Done)
            }
            Op::MapWrite { slot, at, len, stamp } => self.map_write(*slot, *at, &Op::bytes(*stamp, *len)),
            Op::CopyRange { from, at, to, to_at, len } => {
                let n = sys::copy_file_range(self.fd(*from), *at as i64, self.fd(*to), *to_at as i64, *len as usize)?;
                Ok(Answer::Number(n as u64))
            }
            // SAFETY: plain numbers.
            Op::Ftruncate { slot, size } => {
                check(unsafe { libc::ftruncate(self.fd(*slot), *size as i64) }).map(|()| Answer::Done)
            }
            Op::Truncate { path, size } => {
                let path = self.whole(path)?;
                // SAFETY: NUL-terminated path.
                check(unsafe { libc::truncate(path.as_ptr(), *size as i64) }).map(|()| Answer::Done)
            }
            Op::Fallocate { slot, mode, at, len } => {
                sys::fallocate(self.fd(*slot), *mode, *at as i64, *len as i64).map(|()| Answer::Done)
            }
            other => unreachable!("{other:?}"),
        }
    }

    fn map_write(&mut self, slot: u8, at: u64, bytes: &[u8]) -> Res {
        let fd = self.fd(slot);
        let size = sys::fstat(fd)?.st_size as u64;
        let len = size.saturating_sub(at).min(bytes.len() as u64) as usize;
        let whole = size.max(1) as usize;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping; stores stay below the size of the file, which nobody else changes; unmapped before the end.
        unsafe {
            let map = libc::mmap(std::ptr::null_mut(), whole, access, libc::MAP_SHARED, fd, 0);
            if map == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            let mut result = Ok(());
            if len > 0 {
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), map.cast::<u8>().add(at as usize), len);
                result = check(libc::msync(map, whole, libc::MS_SYNC));
            }
            libc::munmap(map, whole);
            result.map(|()| Answer::Number(len as u64))
        }
    }

    fn xattr(&self, op: &Op) -> Res {
        let mut buf = vec![0u8; 4096];
        let into = |buf: &mut [u8]| (buf.as_mut_ptr(), buf.len());
        let name = |n: &u8| sys::c(XATTRS[*n as usize]);
        let len = |n: isize| usize::try_from(n).map_err(|_| io::Error::last_os_error());
        // SAFETY (all calls): NUL-terminated paths and names, and lengths that are those of the buffers.
        match op {
            Op::SetXattr { path, name: n, len, stamp, flags } => {
                let (path, name, value) = (self.whole(path)?, name(n)?, Op::bytes(*stamp, *len));
                check(unsafe {
                    libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), *flags)
                })?;
                Ok(Answer::Done)
            }
            Op::GetXattr { path, name: n } => {
                let (path, name, (p, l)) = (self.whole(path)?, name(n)?, into(&mut buf));
                let n = len(unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), p.cast(), l) })?;
                Ok(Answer::Bytes(buf[..n].to_vec()))
            }
            Op::RemoveXattr { path, name: n } => {
                let (path, name) = (self.whole(path)?, name(n)?);
                check(unsafe { libc::lremovexattr(path.as_ptr(), name.as_ptr()) })?;
                Ok(Answer::Done)
            }
            Op::ListXattr { path } => {
                let (path, (p, l)) = (self.whole(path)?, into(&mut buf));
                let n = len(unsafe { libc::llistxattr(path.as_ptr(), p.cast(), l) })?;
                Ok(Answer::Names(ours(buf[..n].split(|b| *b == 0).map(<[u8]>::to_vec).collect())))
            }
            other => unreachable!("{other:?}"),
        }
    }
}

fn check(rc: libc::c_int) -> io::Result<()> {
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The attributes that sequences set, sorted; what the system adds is its own business.
fn ours(mut names: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    names.retain(|n| XATTRS.iter().any(|x| x.as_bytes() == n));
    names.sort();
    names
}

/// What is seen of an object, as the model tells it.
pub fn seen(st: &libc::stat) -> Stat {
    let kind = match st.st_mode & sys::S_IFMT {
        sys::S_IFREG => "file",
        sys::S_IFDIR => "directory",
        sys::S_IFLNK => "symlink",
        sys::S_IFIFO => "fifo",
        _ => "something else",
    };
    let is_dir = kind == "directory";
    Stat {
        kind,
        mode: st.st_mode & 0o7777,
        uid: st.st_uid,
        gid: st.st_gid,
        links: if is_dir { 0 } else { st.st_nlink },
        size: if matches!(kind, "file" | "symlink") { st.st_size as u64 } else { 0 },
        mtime: Mtime::Is(st.st_mtime, st.st_mtime_nsec),
        ino: st.st_ino,
    }
}

/// The difference of what the model says and what was seen, if there is one. A time that the model left open is settled by
/// what was seen; one that may be any only with `settle`, for the kernel shows its own until it asks the tree again.
pub fn compare(model: &mut Model, expected: &Stat, got: &Stat, settle: bool) -> Result<(), String> {
    let Mtime::Is(sec, nsec) = got.mtime else { return Err("no time".into()) };
    if !expected.mtime.allows(sec, nsec) {
        return Err(format!("mtime {sec}.{nsec:09}, the model says {:?}", expected.mtime));
    }
    let same = Stat { mtime: expected.mtime, ino: expected.ino, ..got.clone() };
    if &same != expected {
        return Err(format!("{got:?}, the model says {expected:?}"));
    }
    let open = expected.mtime == Mtime::Any && !settle;
    if let Some(node) = model.inodes.get_mut(&expected.ino).filter(|_| !open) {
        node.mtime = got.mtime;
    }
    Ok(())
}

/// Everything below a directory is as the model says: names, kinds, content, attributes, and which names are one object.
/// The differences, each with its path.
pub fn whole(model: &mut Model, root: &std::path::Path, settle: bool) -> Vec<String> {
    let mut look = Look { inos: HashMap::new(), told: Vec::new(), settle };
    match sys::open_dir(root) {
        Ok(dir) => look.dir(model, ROOT, dir.as_raw_fd(), &mut Vec::new()),
        Err(e) => look.told.push(format!("{}: {e}", root.display())),
    }
    look.told
}

struct Look {
    /// Objects by their real number: each is one of the model.
    inos: HashMap<u64, Ino>,
    told: Vec<String>,
    settle: bool,
}

impl Look {
    fn tell(&mut self, path: &[u8], what: impl std::fmt::Display) {
        self.told.push(format!("/{}: {what}", path.escape_ascii()));
    }

    fn dir(&mut self, model: &mut Model, ino: Ino, dir: RawFd, path: &mut Vec<u8>) {
        let Kind::Dir(entries) = &model.inodes[&ino].kind else { return };
        let entries = entries.clone();
        match sys::names(dir) {
            Ok(names) if names.iter().eq(entries.keys()) => {}
            Ok(names) => {
                let text = |n: &[u8]| n.escape_ascii().to_string();
                let got: Vec<String> = names.iter().map(|n| text(n)).collect();
                let expected: Vec<String> = entries.keys().map(|n| text(n)).collect();
                self.tell(path, format!("holds {got:?}, the model says {expected:?}"));
            }
            Err(e) => self.tell(path, e),
        }
        for (name, child) in entries {
            let len = path.len();
            path.extend(if len > 0 { &b"/"[..] } else { b"" });
            path.extend(&name);
            if let Err(e) = self.object(model, child, dir, &name, path) {
                self.tell(path, e);
            }
            path.truncate(len);
        }
    }

    fn object(&mut self, model: &mut Model, ino: Ino, dir: RawFd, name: &[u8], path: &mut Vec<u8>) -> io::Result<()> {
        let name = sys::os(name);
        let got = seen(&sys::lstatat(dir, name)?);
        if *self.inos.entry(got.ino).or_insert(ino) != ino {
            self.tell(path, "is the same object as another name, in the model it is not");
        }
        let expected = model.stat(ino);
        if let Err(why) = compare(model, &expected, &got, self.settle) {
            self.tell(path, why);
        }
        let node = model.inodes[&ino].clone();
        match node.kind {
            Kind::Dir(_) => {
                let sub = sys::openat(dir, name, sys::O_RDONLY | sys::O_DIRECTORY | sys::O_NOFOLLOW, 0)?;
                self.dir(model, ino, sub.as_raw_fd(), path);
            }
            Kind::File(c) => {
                let file = sys::openat(dir, name, sys::O_RDONLY | sys::O_NOFOLLOW, 0)?;
                let mut bytes = Vec::new();
                io::Read::read_to_end(&mut std::fs::File::from(file), &mut bytes)?;
                if let Some(why) = differs(&bytes, &c.data) {
                    self.tell(path, why);
                }
            }
            Kind::Symlink(target) if sys::readlinkat(dir, name)? != target => self.tell(path, "leads elsewhere"),
            _ => {}
        }
        let object = sys::openat(dir, name, sys::O_PATH | sys::O_NOFOLLOW, 0)?;
        let found = ours(sys::list_xattrs(object.as_raw_fd()).unwrap_or_default());
        let get = |n: &Vec<u8>| {
            (String::from_utf8_lossy(n).into_owned(), sys::get_xattr(object.as_raw_fd(), n).unwrap_or_default())
        };
        if found.iter().map(get).ne(node.xattrs) {
            self.tell(path, "has other attributes");
        }
        Ok(())
    }
}

/// Where two contents differ.
pub fn differs(got: &[u8], expected: &[u8]) -> Option<String> {
    let at = got.iter().zip(expected).position(|(a, b)| a != b);
    let sizes = format!("{} bytes, the model says {}", got.len(), expected.len());
    match at {
        Some(at) => Some(format!("content differs from byte {at} on; {sizes}")),
        None if got.len() != expected.len() => Some(sizes),
        None => None,
    }
}
