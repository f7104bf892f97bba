//! Functions that take paths.

use super::{calls, maybe, text};
use crate::disk::Attr;
use crate::files::names::{self, Path};
use crate::files::{io, is_ours, xattrs};
use crate::sched::Res;
use std::ffi::{c_char, c_int, c_void};

const HERE: c_int = libc::AT_FDCWD;

fn int(r: Option<i64>) -> Option<c_int> {
    r.map(|n| n as c_int)
}

fn size(r: Option<i64>) -> Option<isize> {
    r.map(|n| n as isize)
}

calls! {
    fn open(path: *const c_char, flags: c_int, mode: u32) -> c_int {
        int(maybe("open", || names::open(Path(HERE, text(path)), flags, mode, false)))
    }
    fn open64(path: *const c_char, flags: c_int, mode: u32) -> c_int {
        int(maybe("open", || names::open(Path(HERE, text(path)), flags, mode, false)))
    }
    fn openat(fd: c_int, path: *const c_char, flags: c_int, mode: u32) -> c_int {
        int(maybe("open", || names::open(Path(fd, text(path)), flags, mode, false)))
    }
    fn openat64(fd: c_int, path: *const c_char, flags: c_int, mode: u32) -> c_int {
        int(maybe("open", || names::open(Path(fd, text(path)), flags, mode, false)))
    }
    fn opendir(path: *const c_char) -> *mut libc::DIR {
        let r = maybe("opendir", || Ok(crate::files::dirs::opendir(text(path))?.map(|d| d as i64)));
        r.map(|d| d.max(0) as *mut libc::DIR)
    }
    fn stat64(path: *const c_char, to: *mut libc::stat64) -> c_int {
        int(maybe("stat", || put(names::stat(Path(HERE, text(path)), 0), to)))
    }
    fn lstat64(path: *const c_char, to: *mut libc::stat64) -> c_int {
        int(maybe("stat", || put(names::stat(Path(HERE, text(path)), libc::AT_SYMLINK_NOFOLLOW), to)))
    }
    fn fstat64(fd: c_int, to: *mut libc::stat64) -> c_int {
        if is_ours(fd) { int(maybe("stat", || put(io::fstat(fd).map(Some), to))) } else { None }
    }
    fn fstatat(fd: c_int, path: *const c_char, to: *mut libc::stat64, flags: c_int) -> c_int {
        int(maybe("stat", || put(names::stat(Path(fd, text(path)), flags), to)))
    }
    fn fstatat64(fd: c_int, path: *const c_char, to: *mut libc::stat64, flags: c_int) -> c_int {
        int(maybe("stat", || put(names::stat(Path(fd, text(path)), flags), to)))
    }
    fn statx(fd: c_int, path: *const c_char, flags: c_int, mask: u32, to: *mut libc::statx) -> c_int {
        int(maybe("stat", || {
            // Asked whether the call is there at all, with no place for an answer.
            if to.is_null() {
                return Err(libc::EFAULT);
            }
            Ok(names::stat(Path(fd, text(path)), flags)?.map(|(dev, a)| {
                *to = extended(dev, &a);
                0
            }))
        }))
    }
    fn access(path: *const c_char, mode: c_int) -> c_int {
        int(maybe("access", || names::access(Path(HERE, text(path)))))
    }
    fn mkdir(path: *const c_char, mode: u32) -> c_int {
        int(maybe("mkdir", || names::mkdir(Path(HERE, text(path)), mode)))
    }
    fn mkdirat(fd: c_int, path: *const c_char, mode: u32) -> c_int {
        int(maybe("mkdir", || names::mkdir(Path(fd, text(path)), mode)))
    }
    fn mknodat(fd: c_int, path: *const c_char, mode: u32, dev: u64) -> c_int {
        int(maybe("mknod", || names::mknod(Path(fd, text(path)), mode, dev)))
    }
    fn mkfifo(path: *const c_char, mode: u32) -> c_int {
        int(maybe("mknod", || names::mknod(Path(HERE, text(path)), libc::S_IFIFO | mode, 0)))
    }
    fn symlink(target: *const c_char, path: *const c_char) -> c_int {
        int(maybe("symlink", || names::symlink(text(target), Path(HERE, text(path)))))
    }
    fn symlinkat(target: *const c_char, fd: c_int, path: *const c_char) -> c_int {
        int(maybe("symlink", || names::symlink(text(target), Path(fd, text(path)))))
    }
    fn unlink(path: *const c_char) -> c_int {
        int(maybe("unlink", || names::unlink(Path(HERE, text(path)), 0)))
    }
    fn rmdir(path: *const c_char) -> c_int {
        int(maybe("rmdir", || names::unlink(Path(HERE, text(path)), libc::AT_REMOVEDIR)))
    }
    fn unlinkat(fd: c_int, path: *const c_char, flags: c_int) -> c_int {
        int(maybe("unlink", || names::unlink(Path(fd, text(path)), flags)))
    }
    fn rename(a: *const c_char, b: *const c_char) -> c_int {
        int(maybe("rename", || names::rename(Path(HERE, text(a)), Path(HERE, text(b)), 0)))
    }
    fn renameat(fa: c_int, a: *const c_char, fb: c_int, b: *const c_char) -> c_int {
        int(maybe("rename", || names::rename(Path(fa, text(a)), Path(fb, text(b)), 0)))
    }
    fn renameat2(fa: c_int, a: *const c_char, fb: c_int, b: *const c_char, flags: u32) -> c_int {
        int(maybe("rename", || names::rename(Path(fa, text(a)), Path(fb, text(b)), flags)))
    }
    fn link(a: *const c_char, b: *const c_char) -> c_int {
        int(maybe("link", || names::link(Path(HERE, text(a)), Path(HERE, text(b)), 0)))
    }
    fn linkat(fa: c_int, a: *const c_char, fb: c_int, b: *const c_char, flags: c_int) -> c_int {
        int(maybe("link", || names::link(Path(fa, text(a)), Path(fb, text(b)), flags)))
    }
    fn chmod(path: *const c_char, mode: u32) -> c_int {
        int(maybe("chmod", || names::chmod(Path(HERE, text(path)), 0, mode)))
    }
    fn fchmodat(fd: c_int, path: *const c_char, mode: u32, flags: c_int) -> c_int {
        int(maybe("chmod", || names::chmod(Path(fd, text(path)), flags, mode)))
    }
    fn chown(path: *const c_char, uid: u32, gid: u32) -> c_int {
        int(maybe("chown", || names::chown(Path(HERE, text(path)), 0, uid, gid)))
    }
    fn lchown(path: *const c_char, uid: u32, gid: u32) -> c_int {
        int(maybe("chown", || names::chown(Path(HERE, text(path)), libc::AT_SYMLINK_NOFOLLOW, uid, gid)))
    }
    fn fchown(fd: c_int, uid: u32, gid: u32) -> c_int {
        if is_ours(fd) { int(maybe("chown", || names::chown(Path(fd, b""), libc::AT_EMPTY_PATH, uid, gid))) } else { None }
    }
    fn fchownat(fd: c_int, path: *const c_char, uid: u32, gid: u32, flags: c_int) -> c_int {
        int(maybe("chown", || names::chown(Path(fd, text(path)), flags, uid, gid)))
    }
    fn utimensat(fd: c_int, path: *const c_char, times: *const libc::timespec, flags: c_int) -> c_int {
        int(maybe("utimens", || {
            if !path.is_null() && text(path).is_empty() && flags & libc::AT_EMPTY_PATH == 0 {
                return Err(libc::ENOENT);
            }
            names::utimens(Path(fd, text(path)), flags, times.cast::<[libc::timespec; 2]>().as_ref().copied())
        }))
    }
    fn futimens(fd: c_int, times: *const libc::timespec) -> c_int {
        if is_ours(fd) {
            let t = times.cast::<[libc::timespec; 2]>().as_ref().copied();
            int(maybe("utimens", || names::utimens(Path(fd, b""), 0, t)))
        } else { None }
    }
    fn truncate64(path: *const c_char, len: i64) -> c_int {
        int(maybe("truncate", || names::truncate(Path(HERE, text(path)), len)))
    }
    fn readlink(path: *const c_char, buf: *mut c_char, n: usize) -> isize {
        size(maybe("readlink", || give(names::readlink(Path(HERE, text(path))), io::room(buf.cast(), n))))
    }
    fn readlinkat(fd: c_int, path: *const c_char, buf: *mut c_char, n: usize) -> isize {
        size(maybe("readlink", || give(names::readlink(Path(fd, text(path))), io::room(buf.cast(), n))))
    }
    fn realpath(path: *const c_char, to: *mut c_char) -> *mut c_char {
        let mut found = Vec::new();
        let r = maybe("realpath", || Ok(names::realpath(text(path))?.map(|p| { found = p; 0 })));
        r.map(|r| if r < 0 { std::ptr::null_mut() } else { c_string(&found, to) })
    }
    fn getxattr(path: *const c_char, key: *const c_char, buf: *mut c_void, n: usize) -> isize {
        size(maybe("getxattr", || xattrs::get(Path(HERE, text(path)), true, text(key), io::room(buf, n))))
    }
    fn lgetxattr(path: *const c_char, key: *const c_char, buf: *mut c_void, n: usize) -> isize {
        size(maybe("getxattr", || xattrs::get(Path(HERE, text(path)), false, text(key), io::room(buf, n))))
    }
    fn fgetxattr(fd: c_int, key: *const c_char, buf: *mut c_void, n: usize) -> isize {
        if is_ours(fd) { size(maybe("getxattr", || xattrs::get(Path(fd, b""), true, text(key), io::room(buf, n)))) } else { None }
    }
    fn listxattr(path: *const c_char, buf: *mut c_char, n: usize) -> isize {
        size(maybe("listxattr", || xattrs::list(Path(HERE, text(path)), true, io::room(buf.cast(), n))))
    }
    fn llistxattr(path: *const c_char, buf: *mut c_char, n: usize) -> isize {
        size(maybe("listxattr", || xattrs::list(Path(HERE, text(path)), false, io::room(buf.cast(), n))))
    }
    fn setxattr(path: *const c_char, key: *const c_char, v: *const c_void, n: usize, flags: c_int) -> c_int {
        int(maybe("setxattr", || xattrs::set(Path(HERE, text(path)), true, text(key), io::bytes(v, n), flags)))
    }
    fn lsetxattr(path: *const c_char, key: *const c_char, v: *const c_void, n: usize, flags: c_int) -> c_int {
        int(maybe("setxattr", || xattrs::set(Path(HERE, text(path)), false, text(key), io::bytes(v, n), flags)))
    }
    fn fsetxattr(fd: c_int, key: *const c_char, v: *const c_void, n: usize, flags: c_int) -> c_int {
        if is_ours(fd) { int(maybe("setxattr", || xattrs::set(Path(fd, b""), true, text(key), io::bytes(v, n), flags))) } else { None }
    }
    fn removexattr(path: *const c_char, key: *const c_char) -> c_int {
        int(maybe("removexattr", || xattrs::remove(Path(HERE, text(path)), true, text(key))))
    }
    fn lremovexattr(path: *const c_char, key: *const c_char) -> c_int {
        int(maybe("removexattr", || xattrs::remove(Path(HERE, text(path)), false, text(key))))
    }
}

/// A path for a caller who gave a place for it, or wants one that it can free.
///
/// # Safety
/// `to` is null or has room for PATH_MAX bytes.
unsafe fn c_string(path: &[u8], to: *mut c_char) -> *mut c_char {
    // SAFETY: the library's own memory has room for the path and its end; so has what the caller gave.
    unsafe {
        let at = if to.is_null() { libc::malloc(path.len() + 1).cast::<c_char>() } else { to };
        if !at.is_null() {
            at.copy_from_nonoverlapping(path.as_ptr().cast(), path.len());
            *at.add(path.len()) = 0;
        }
        at
    }
}

fn give(target: Res<Option<Vec<u8>>>, buf: &mut [u8]) -> Res<Option<i64>> {
    Ok(target?.map(|t| {
        let n = t.len().min(buf.len());
        buf[..n].copy_from_slice(&t[..n]);
        n as i64
    }))
}

/// Writes what stat(2) tells.
///
/// # Safety
/// `to` is a place for it.
unsafe fn put(found: Res<Option<(u64, Attr)>>, to: *mut libc::stat64) -> Res<Option<i64>> {
    let Some((dev, a)) = found? else { return Ok(None) };
    // SAFETY: plain data, of which all zero is a valid value; the place is the caller's.
    unsafe {
        let mut s: libc::stat64 = std::mem::zeroed();
        (s.st_dev, s.st_ino, s.st_mode, s.st_nlink) = (dev, a.ino, a.mode, a.nlink as _);
        (s.st_uid, s.st_gid, s.st_rdev) = (a.uid, a.gid, a.rdev);
        (s.st_size, s.st_blocks, s.st_blksize) = (a.size as i64, a.blocks as i64, 4096);
        (s.st_atime, s.st_atime_nsec) = (a.atime.sec, a.atime.nsec.into());
        (s.st_mtime, s.st_mtime_nsec) = (a.mtime.sec, a.mtime.nsec.into());
        (s.st_ctime, s.st_ctime_nsec) = (a.ctime.sec, a.ctime.nsec.into());
        *to = s;
    }
    Ok(Some(0))
}

fn extended(dev: u64, a: &Attr) -> libc::statx {
    let time = |s: crate::disk::Stamp| {
        // SAFETY: plain data, of which all zero is a valid value.
        let mut t: libc::statx_timestamp = unsafe { std::mem::zeroed() };
        (t.tv_sec, t.tv_nsec) = (s.sec, s.nsec);
        t
    };
    // SAFETY: as above.
    let mut x: libc::statx = unsafe { std::mem::zeroed() };
    x.stx_mask = libc::STATX_BASIC_STATS | libc::STATX_BTIME;
    (x.stx_blksize, x.stx_nlink, x.stx_uid, x.stx_gid) = (4096, a.nlink as u32, a.uid, a.gid);
    (x.stx_mode, x.stx_ino, x.stx_size, x.stx_blocks) = (a.mode as u16, a.ino, a.size, a.blocks);
    (x.stx_atime, x.stx_btime, x.stx_ctime, x.stx_mtime) = (time(a.atime), time(a.btime), time(a.ctime), time(a.mtime));
    (x.stx_rdev_major, x.stx_rdev_minor) = (libc::major(a.rdev), libc::minor(a.rdev));
    (x.stx_dev_major, x.stx_dev_minor) = (libc::major(dev), libc::minor(dev));
    x
}
