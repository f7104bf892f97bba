//! Safe faces of the system calls the tests need, all relative to directory handles, so that depth is no limit.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

pub use libc::{
    AT_EMPTY_PATH, AT_FDCWD, AT_SYMLINK_NOFOLLOW, FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE,
    O_APPEND, O_CLOEXEC, O_CREAT, O_DIRECTORY, O_EXCL, O_NOFOLLOW, O_PATH, O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY,
    RENAME_EXCHANGE, RENAME_NOREPLACE, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, S_IFSOCK,
};

/// A C string of a name or path; one with a NUL inside is EINVAL.
pub fn c(name: impl AsRef<OsStr>) -> io::Result<CString> {
    CString::new(name.as_ref().as_bytes()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// The name as bytes, for calls that take [`OsStr`].
pub fn os(name: &[u8]) -> &OsStr {
    OsStr::from_bytes(name)
}

fn check(rc: libc::c_int) -> io::Result<libc::c_int> {
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(rc) }
}

fn check_len(rc: isize) -> io::Result<usize> {
    usize::try_from(rc).map_err(|_| io::Error::last_os_error())
}

/// The errno of a failure, 0 for success.
pub fn errno<T>(result: &io::Result<T>) -> i32 {
    result.as_ref().err().and_then(io::Error::raw_os_error).unwrap_or(0)
}

pub fn openat(dir: RawFd, name: impl AsRef<OsStr>, flags: i32, mode: u32) -> io::Result<OwnedFd> {
    let name = c(name)?;
    // SAFETY: the name is NUL-terminated; the descriptor returned is ours alone.
    unsafe { Ok(OwnedFd::from_raw_fd(check(libc::openat(dir, name.as_ptr(), flags | O_CLOEXEC, mode))?)) }
}

/// Opens a directory by path.
pub fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    openat(AT_FDCWD, path, O_RDONLY | O_DIRECTORY, 0)
}

pub fn fstatat(dir: RawFd, name: impl AsRef<OsStr>, flags: i32) -> io::Result<libc::stat> {
    let name = c(name)?;
    // SAFETY: stat is plain data, filled by the call.
    unsafe {
        let mut st = std::mem::zeroed();
        check(libc::fstatat(dir, name.as_ptr(), &mut st, flags))?;
        Ok(st)
    }
}

/// lstat of a name in a directory.
pub fn lstatat(dir: RawFd, name: impl AsRef<OsStr>) -> io::Result<libc::stat> {
    fstatat(dir, name, AT_SYMLINK_NOFOLLOW)
}

pub fn lstat(path: &Path) -> io::Result<libc::stat> {
    lstatat(AT_FDCWD, path)
}

pub fn fstat(fd: RawFd) -> io::Result<libc::stat> {
    fstatat(fd, "", AT_EMPTY_PATH)
}

pub fn mkdirat(dir: RawFd, name: impl AsRef<OsStr>, mode: u32) -> io::Result<()> {
    let name = c(name)?;
    // SAFETY: NUL-terminated name.
    unsafe { check(libc::mkdirat(dir, name.as_ptr(), mode)).map(drop) }
}

pub fn mknodat(dir: RawFd, name: impl AsRef<OsStr>, mode: u32, dev: u64) -> io::Result<()> {
    let name = c(name)?;
    // SAFETY: NUL-terminated name.
    unsafe { check(libc::mknodat(dir, name.as_ptr(), mode, dev)).map(drop) }
}

pub fn unlinkat(dir: RawFd, name: impl AsRef<OsStr>, flags: i32) -> io::Result<()> {
    let name = c(name)?;
    // SAFETY: NUL-terminated name.
    unsafe { check(libc::unlinkat(dir, name.as_ptr(), flags)).map(drop) }
}

pub fn symlinkat(target: &[u8], dir: RawFd, name: impl AsRef<OsStr>) -> io::Result<()> {
    let (target, name) = (c(os(target))?, c(name)?);
    // SAFETY: NUL-terminated names.
    unsafe { check(libc::symlinkat(target.as_ptr(), dir, name.as_ptr())).map(drop) }
}

pub fn linkat(from: RawFd, old: impl AsRef<OsStr>, to: RawFd, new: impl AsRef<OsStr>) -> io::Result<()> {
    let (old, new) = (c(old)?, c(new)?);
    // SAFETY: NUL-terminated names.
    unsafe { check(libc::linkat(from, old.as_ptr(), to, new.as_ptr(), 0)).map(drop) }
}

/// renameat2; `flags` are RENAME_*.
pub fn renameat2(from: RawFd, old: impl AsRef<OsStr>, to: RawFd, new: impl AsRef<OsStr>, flags: u32) -> io::Result<()> {
    let (old, new) = (c(old)?, c(new)?);
    // SAFETY: NUL-terminated names.
    unsafe { check(libc::renameat2(from, old.as_ptr(), to, new.as_ptr(), flags)).map(drop) }
}

pub fn readlinkat(dir: RawFd, name: impl AsRef<OsStr>) -> io::Result<Vec<u8>> {
    let name = c(name)?;
    let mut buf = vec![0u8; libc::PATH_MAX as usize];
    // SAFETY: the length given is that of the buffer.
    let n = check_len(unsafe { libc::readlinkat(dir, name.as_ptr(), buf.as_mut_ptr().cast(), buf.len()) })?;
    buf.truncate(n);
    Ok(buf)
}

/// Sets access and modification time (seconds, nanoseconds) of a name, not following a symlink.
pub fn set_times(dir: RawFd, name: impl AsRef<OsStr>, atime: (i64, i64), mtime: (i64, i64)) -> io::Result<()> {
    let name = c(name)?;
    let spec = |(sec, nsec): (i64, i64)| libc::timespec { tv_sec: sec, tv_nsec: nsec };
    let times = [spec(atime), spec(mtime)];
    // SAFETY: two timespecs, as the call wants.
    unsafe { check(libc::utimensat(dir, name.as_ptr(), times.as_ptr(), AT_SYMLINK_NOFOLLOW)).map(drop) }
}

/// chmod that follows symlinks (Linux has no other).
pub fn chmodat(dir: RawFd, name: impl AsRef<OsStr>, mode: u32) -> io::Result<()> {
    let name = c(name)?;
    // SAFETY: NUL-terminated name.
    unsafe { check(libc::fchmodat(dir, name.as_ptr(), mode, 0)).map(drop) }
}

pub fn lchownat(dir: RawFd, name: impl AsRef<OsStr>, uid: u32, gid: u32) -> io::Result<()> {
    let name = c(name)?;
    // SAFETY: NUL-terminated name.
    unsafe { check(libc::fchownat(dir, name.as_ptr(), uid, gid, AT_SYMLINK_NOFOLLOW)).map(drop) }
}

pub fn fallocate(fd: RawFd, mode: i32, offset: i64, len: i64) -> io::Result<()> {
    // SAFETY: plain numbers.
    unsafe { check(libc::fallocate(fd, mode, offset, len)).map(drop) }
}

pub fn copy_file_range(from: RawFd, at: i64, to: RawFd, to_at: i64, len: usize) -> io::Result<usize> {
    let (mut at, mut to_at) = (at, to_at);
    // SAFETY: both offsets live through the call.
    check_len(unsafe { libc::copy_file_range(from, &mut at, to, &mut to_at, len, 0) })
}

/// SEEK_DATA or SEEK_HOLE; `None` when there is no more.
fn seek(fd: RawFd, at: u64, whence: i32) -> io::Result<Option<u64>> {
    // SAFETY: plain numbers.
    let got = unsafe { libc::lseek(fd, at as i64, whence) };
    if got >= 0 {
        return Ok(Some(got as u64));
    }
    match io::Error::last_os_error() {
        e if e.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        e => Err(e),
    }
}

/// The data segments `[start, end)` of a file as SEEK_DATA and SEEK_HOLE tell them. Preallocated blocks count as holes;
/// a file with such blocks is written out first and its pages are dropped, because the kernel takes them for data while
/// a page of them is cached.
pub fn data_segments(fd: RawFd, size: u64) -> io::Result<Vec<(u64, u64)>> {
    let found = cached_segments(fd, size)?;
    if found.len() == 1 && found[0].0 == 0 && found[0].1 >= size && size < 1 << 16 {
        return Ok(found);
    }
    // SAFETY: plain numbers.
    unsafe {
        libc::fdatasync(fd);
        libc::posix_fadvise(fd, 0, 0, libc::POSIX_FADV_DONTNEED);
    }
    cached_segments(fd, size)
}

fn cached_segments(fd: RawFd, size: u64) -> io::Result<Vec<(u64, u64)>> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < size {
        let Some(start) = seek(fd, at, libc::SEEK_DATA)? else { break };
        let end = seek(fd, start, libc::SEEK_HOLE)?.unwrap_or(size);
        found.push((start, end.max(start + 1)));
        at = end.max(start + 1);
    }
    Ok(found)
}

pub fn pread(fd: RawFd, buf: &mut [u8], at: u64) -> io::Result<usize> {
    // SAFETY: the length given is that of the buffer.
    check_len(unsafe { libc::pread(fd, buf.as_mut_ptr().cast(), buf.len(), at as i64) })
}

/// Writes all of `data` at `at`.
pub fn pwrite_all(fd: RawFd, mut data: &[u8], mut at: u64) -> io::Result<()> {
    while !data.is_empty() {
        // SAFETY: the length given is that of the slice.
        let n = check_len(unsafe { libc::pwrite(fd, data.as_ptr().cast(), data.len(), at as i64) })?;
        data = &data[n..];
        at += n as u64;
    }
    Ok(())
}

pub fn fsync(fd: RawFd) -> io::Result<()> {
    // SAFETY: plain number.
    unsafe { check(libc::fsync(fd)).map(drop) }
}

/// close(2) with its result, which Rust's own drop swallows.
pub fn close(fd: OwnedFd) -> io::Result<()> {
    use std::os::fd::IntoRawFd;
    // SAFETY: the descriptor was owned and is not used again.
    unsafe { check(libc::close(fd.into_raw_fd())).map(drop) }
}

/// The names of a directory except `.` and `..`, sorted.
pub fn names(dir: RawFd) -> io::Result<Vec<Vec<u8>>> {
    let own = openat(dir, ".", O_RDONLY | O_DIRECTORY, 0)?;
    // SAFETY: fdopendir takes the descriptor over; entries are read before the next call to readdir.
    unsafe {
        let stream = libc::fdopendir(own.as_raw_fd());
        if stream.is_null() {
            return Err(io::Error::last_os_error());
        }
        std::mem::forget(own);
        let mut found = Vec::new();
        let result = loop {
            *libc::__errno_location() = 0;
            let entry = libc::readdir64(stream);
            if entry.is_null() {
                break match *libc::__errno_location() {
                    0 => Ok(()),
                    e => Err(io::Error::from_raw_os_error(e)),
                };
            }
            let name = std::ffi::CStr::from_ptr((*entry).d_name.as_ptr()).to_bytes();
            if name != b"." && name != b".." {
                found.push(name.to_vec());
            }
        };
        libc::closedir(stream);
        result?;
        found.sort();
        Ok(found)
    }
}

/// A path that reaches the object behind any descriptor, O_PATH ones included.
fn magic(fd: RawFd) -> CString {
    CString::new(format!("/proc/self/fd/{fd}")).expect("no NUL")
}

/// Calls with a small buffer on the stack, and again with the largest there can be if that was too small.
fn with_buffer(call: impl Fn(&mut [u8]) -> isize) -> io::Result<Vec<u8>> {
    let mut small = [0u8; 1024];
    match check_len(call(&mut small)) {
        Ok(n) => return Ok(small[..n].to_vec()),
        Err(e) if e.raw_os_error() == Some(libc::ERANGE) => {}
        Err(e) => return Err(e),
    }
    let mut large = vec![0u8; 64 * 1024];
    let n = check_len(call(&mut large))?;
    large.truncate(n);
    Ok(large)
}

/// Names of the extended attributes of an object (of any type) behind an O_PATH or ordinary descriptor.
pub fn list_xattrs(fd: RawFd) -> io::Result<Vec<Vec<u8>>> {
    let path = magic(fd);
    // SAFETY: the length given is that of the buffer.
    let all = with_buffer(|buf| unsafe { libc::listxattr(path.as_ptr(), buf.as_mut_ptr().cast(), buf.len()) })?;
    Ok(all.split(|b| *b == 0).filter(|n| !n.is_empty()).map(<[u8]>::to_vec).collect())
}

pub fn get_xattr(fd: RawFd, name: &[u8]) -> io::Result<Vec<u8>> {
    let (path, name) = (magic(fd), c(os(name))?);
    // SAFETY: the length given is that of the buffer.
    with_buffer(|buf| unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), buf.as_mut_ptr().cast(), buf.len()) })
}

pub fn set_xattr(path: &Path, name: &str, value: &[u8]) -> io::Result<()> {
    let (path, name) = (c(path)?, c(name)?);
    // SAFETY: the length given is that of the value.
    unsafe { check(libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0)).map(drop) }
}

/// As [`set_xattr`], on an open file.
pub fn fset_xattr(fd: RawFd, name: &str, value: &[u8]) -> io::Result<()> {
    let name = c(name)?;
    // SAFETY: the length given is that of the value.
    unsafe { check(libc::fsetxattr(fd, name.as_ptr(), value.as_ptr().cast(), value.len(), 0)).map(drop) }
}

/// A POSIX ACL in the kernel's form: mode bits of the owner, entries for users, the group, the mask, others.
pub fn acl(user: u16, users: &[(u32, u16)], group: u16, mask: u16, other: u16) -> Vec<u8> {
    const NOBODY: u32 = u32::MAX;
    let mut out = 2u32.to_le_bytes().to_vec();
    let mut entry = |tag: u16, perm: u16, id: u32| {
        out.extend(tag.to_le_bytes());
        out.extend(perm.to_le_bytes());
        out.extend(id.to_le_bytes());
    };
    entry(0x01, user, NOBODY);
    users.iter().for_each(|(id, perm)| entry(0x02, *perm, *id));
    entry(0x04, group, NOBODY);
    entry(0x10, mask, NOBODY);
    entry(0x20, other, NOBODY);
    out
}

pub fn is_root() -> bool {
    // SAFETY: no arguments.
    unsafe { libc::geteuid() == 0 }
}

/// Lets this process open as many files as it may; deep trees take one descriptor a level.
pub fn raise_file_limit() {
    // SAFETY: rlimit is plain data.
    unsafe {
        let mut limit = std::mem::zeroed::<libc::rlimit>();
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}
