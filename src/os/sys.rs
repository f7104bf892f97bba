//! System calls relative to directory descriptors.

use crate::base::time::Time;
use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// stat(2) with what kagami uses of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Device of the filesystem.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// Type and permission bits.
    pub mode: u32,
    /// Links.
    pub nlink: u64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node.
    pub rdev: u64,
    /// Size, bytes.
    pub size: u64,
    /// Allocated 512-byte blocks.
    pub blocks: u64,
    /// Preferred I/O size, bytes.
    pub blksize: u32,
    /// Access time.
    pub atime: Time,
    /// Modification time.
    pub mtime: Time,
    /// Change time.
    pub ctime: Time,
}

impl Stat {
    /// True for a directory.
    pub fn is_dir(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFDIR
    }
    /// True for a regular file.
    pub fn is_file(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFREG
    }
    /// True for a symbolic link.
    pub fn is_symlink(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFLNK
    }
    /// Permission bits with suid, sgid, sticky.
    pub fn perm(&self) -> u32 {
        self.mode & 0o7777
    }
}

/// One name of a directory listing.
#[derive(Clone, Debug)]
pub struct Dirent {
    /// The name.
    pub name: Vec<u8>,
    /// Inode number.
    pub ino: u64,
    /// `DT_*` type.
    pub kind: u8,
    /// Cookie of the next entry (the filesystem's own, stable for seekdir).
    pub off: i64,
}

fn check(r: libc::c_int) -> io::Result<libc::c_int> {
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(r) }
}

fn check_long(r: libc::c_long) -> io::Result<libc::c_long> {
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(r) }
}

fn c(name: &[u8]) -> io::Result<CString> {
    CString::new(name).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

fn to_stat(s: &libc::stat64) -> Stat {
    Stat {
        dev: s.st_dev,
        ino: s.st_ino,
        mode: s.st_mode,
        nlink: s.st_nlink,
        uid: s.st_uid,
        gid: s.st_gid,
        rdev: s.st_rdev,
        size: s.st_size as u64,
        blocks: s.st_blocks as u64,
        blksize: s.st_blksize as u32,
        atime: Time { sec: s.st_atime, nsec: s.st_atime_nsec as u32 },
        mtime: Time { sec: s.st_mtime, nsec: s.st_mtime_nsec as u32 },
        ctime: Time { sec: s.st_ctime, nsec: s.st_ctime_nsec as u32 },
    }
}

/// openat(2) of one component, never following a symlink, close-on-exec.
pub fn openat(dir: impl AsFd, name: &[u8], flags: i32, mode: u32) -> io::Result<OwnedFd> {
    let n = c(name)?;
    // SAFETY: valid C string; the returned descriptor is owned by nobody else.
    let fd = check(unsafe {
        libc::openat(dir.as_fd().as_raw_fd(), n.as_ptr(), flags | libc::O_CLOEXEC | libc::O_NOFOLLOW, mode)
    })?;
    // SAFETY: fd was just opened.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// open(2) of a path (configuration and our own files; may follow symlinks).
pub fn open_path(path: &std::path::Path, flags: i32, mode: u32) -> io::Result<OwnedFd> {
    use std::os::unix::ffi::OsStrExt;
    let n = c(path.as_os_str().as_bytes())?;
    // SAFETY: as in openat.
    let fd = check(unsafe { libc::open(n.as_ptr(), flags | libc::O_CLOEXEC, mode) })?;
    // SAFETY: fd was just opened.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Opens the object behind a descriptor again with other flags (O_PATH → readable, say).
pub fn reopen(fd: impl AsFd, flags: i32) -> io::Result<OwnedFd> {
    let p = c(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()).as_bytes())?;
    // SAFETY: as in openat; the magic link is meant to be followed.
    let fd = check(unsafe { libc::open(p.as_ptr(), (flags | libc::O_CLOEXEC) & !libc::O_NOFOLLOW) })?;
    // SAFETY: fd was just opened.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// fstatat(2), not following symlinks.
pub fn statat(dir: impl AsFd, name: &[u8]) -> io::Result<Stat> {
    let n = c(name)?;
    let mut s = MaybeUninit::<libc::stat64>::uninit();
    // SAFETY: s is written by a successful call only, and read only then.
    check(unsafe { libc::fstatat64(dir.as_fd().as_raw_fd(), n.as_ptr(), s.as_mut_ptr(), libc::AT_SYMLINK_NOFOLLOW) })?;
    // SAFETY: filled by the successful call.
    Ok(to_stat(unsafe { s.assume_init_ref() }))
}

/// When the object at a name was made (statx(2)); the beginning of 1970 where the filesystem does not tell.
pub fn birth(dir: impl AsFd, name: &[u8]) -> io::Result<Time> {
    let n = c(name)?;
    let mut s = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: s is written by a successful call only, and zeros are a valid value of it.
    let s = unsafe {
        check(libc::statx(
            dir.as_fd().as_raw_fd(),
            n.as_ptr(),
            libc::AT_SYMLINK_NOFOLLOW,
            libc::STATX_BTIME,
            s.as_mut_ptr(),
        ))?;
        s.assume_init()
    };
    if s.stx_mask & libc::STATX_BTIME == 0 {
        return Ok(Time::default());
    }
    Ok(Time { sec: s.stx_btime.tv_sec, nsec: s.stx_btime.tv_nsec })
}

/// fstat(2), also of an O_PATH descriptor.
pub fn fstat(fd: impl AsFd) -> io::Result<Stat> {
    let mut s = MaybeUninit::<libc::stat64>::uninit();
    // SAFETY: s is written by a successful call only, and read only then.
    check(unsafe { libc::fstatat64(fd.as_fd().as_raw_fd(), c"".as_ptr(), s.as_mut_ptr(), libc::AT_EMPTY_PATH) })?;
    // SAFETY: filled by the successful call.
    Ok(to_stat(unsafe { s.assume_init_ref() }))
}

/// mkdirat(2).
pub fn mkdirat(dir: impl AsFd, name: &[u8], mode: u32) -> io::Result<()> {
    let n = c(name)?;
    // SAFETY: valid C string.
    check(unsafe { libc::mkdirat(dir.as_fd().as_raw_fd(), n.as_ptr(), mode) }).map(drop)
}

/// mknodat(2); `mode` includes the type.
pub fn mknodat(dir: impl AsFd, name: &[u8], mode: u32, rdev: u64) -> io::Result<()> {
    let n = c(name)?;
    // SAFETY: valid C string.
    check(unsafe { libc::mknodat(dir.as_fd().as_raw_fd(), n.as_ptr(), mode, rdev) }).map(drop)
}

/// symlinkat(2).
pub fn symlinkat(target: &[u8], dir: impl AsFd, name: &[u8]) -> io::Result<()> {
    let (t, n) = (c(target)?, c(name)?);
    // SAFETY: valid C strings.
    check(unsafe { libc::symlinkat(t.as_ptr(), dir.as_fd().as_raw_fd(), n.as_ptr()) }).map(drop)
}

/// readlinkat(2); with an empty name, of an O_PATH descriptor of the link itself.
pub fn readlinkat(dir: impl AsFd, name: &[u8]) -> io::Result<Vec<u8>> {
    let n = c(name)?;
    let mut buf = vec![0u8; libc::PATH_MAX as usize];
    // SAFETY: the buffer's length is passed along.
    let len = unsafe { libc::readlinkat(dir.as_fd().as_raw_fd(), n.as_ptr(), buf.as_mut_ptr().cast(), buf.len()) };
    if len < 0 {
        return Err(io::Error::last_os_error());
    }
    buf.truncate(len as usize);
    Ok(buf)
}

/// linkat(2), not following symlinks.
pub fn linkat(from: impl AsFd, from_name: &[u8], to: impl AsFd, to_name: &[u8]) -> io::Result<()> {
    let (f, t) = (c(from_name)?, c(to_name)?);
    // SAFETY: valid C strings.
    check(unsafe { libc::linkat(from.as_fd().as_raw_fd(), f.as_ptr(), to.as_fd().as_raw_fd(), t.as_ptr(), 0) })
        .map(drop)
}

/// unlinkat(2) of a non-directory.
pub fn unlinkat(dir: impl AsFd, name: &[u8]) -> io::Result<()> {
    let n = c(name)?;
    // SAFETY: valid C string.
    check(unsafe { libc::unlinkat(dir.as_fd().as_raw_fd(), n.as_ptr(), 0) }).map(drop)
}

/// unlinkat(2) of an empty directory.
pub fn rmdirat(dir: impl AsFd, name: &[u8]) -> io::Result<()> {
    let n = c(name)?;
    // SAFETY: valid C string.
    check(unsafe { libc::unlinkat(dir.as_fd().as_raw_fd(), n.as_ptr(), libc::AT_REMOVEDIR) }).map(drop)
}

/// renameat2(2).
pub fn renameat2(from: impl AsFd, from_name: &[u8], to: impl AsFd, to_name: &[u8], flags: u32) -> io::Result<()> {
    let (f, t) = (c(from_name)?, c(to_name)?);
    // SAFETY: valid C strings.
    check(unsafe { libc::renameat2(from.as_fd().as_raw_fd(), f.as_ptr(), to.as_fd().as_raw_fd(), t.as_ptr(), flags) })
        .map(drop)
}

/// Changes the permission bits of `name` (not of a symlink).
pub fn chmodat(dir: impl AsFd, name: &[u8], mode: u32) -> io::Result<()> {
    let fd = openat(dir, name, libc::O_PATH, 0)?;
    chmod_fd(&fd, mode)
}

/// Changes the permission bits of what an (O_PATH) descriptor refers to.
pub fn chmod_fd(fd: impl AsFd, mode: u32) -> io::Result<()> {
    let p = c(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()).as_bytes())?;
    // SAFETY: valid C string; chmod follows the magic link to the object itself.
    check(unsafe { libc::chmod(p.as_ptr(), mode) }).map(drop)
}

/// fchownat(2), not following symlinks; `None` leaves an id as it is. Empty name: the descriptor itself.
pub fn chownat(dir: impl AsFd, name: &[u8], uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
    let n = c(name)?;
    let flags = libc::AT_SYMLINK_NOFOLLOW | if name.is_empty() { libc::AT_EMPTY_PATH } else { 0 };
    let (u, g) = (uid.unwrap_or(u32::MAX), gid.unwrap_or(u32::MAX));
    // SAFETY: valid C string.
    check(unsafe { libc::fchownat(dir.as_fd().as_raw_fd(), n.as_ptr(), u, g, flags) }).map(drop)
}

/// utimensat(2), not following symlinks; `None` leaves a time as it is. Empty name: the descriptor itself.
pub fn utimensat(dir: impl AsFd, name: &[u8], atime: Option<Time>, mtime: Option<Time>) -> io::Result<()> {
    let n = c(name)?;
    let ts = |t: Option<Time>| match t {
        Some(t) => libc::timespec { tv_sec: t.sec, tv_nsec: t.nsec as i64 },
        None => libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT },
    };
    let times = [ts(atime), ts(mtime)];
    let flags = libc::AT_SYMLINK_NOFOLLOW | if name.is_empty() { libc::AT_EMPTY_PATH } else { 0 };
    // SAFETY: valid C string and array of two.
    check(unsafe { libc::utimensat(dir.as_fd().as_raw_fd(), n.as_ptr(), times.as_ptr(), flags) }).map(drop)
}

fn proc_path(dir: impl AsFd, name: &[u8]) -> io::Result<CString> {
    let mut p = format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd()).into_bytes();
    if !name.is_empty() {
        p.push(b'/');
        p.extend_from_slice(name);
    }
    c(&p)
}

/// getxattr of `name` in `dir` (not following a symlink), or with an empty name of the descriptor itself.
pub fn getxattr(dir: impl AsFd, name: &[u8], key: &[u8]) -> io::Result<Vec<u8>> {
    let (p, k) = (proc_path(dir, name)?, c(key)?);
    let mut buf = vec![0u8; 256];
    loop {
        // SAFETY: the buffer's length is passed along. With an empty name the magic link itself must be followed.
        let n = unsafe {
            if name.is_empty() {
                libc::getxattr(p.as_ptr(), k.as_ptr(), buf.as_mut_ptr().cast(), buf.len())
            } else {
                libc::lgetxattr(p.as_ptr(), k.as_ptr(), buf.as_mut_ptr().cast(), buf.len())
            }
        };
        if n >= 0 {
            buf.truncate(n as usize);
            return Ok(buf);
        }
        let e = io::Error::last_os_error();
        if e.raw_os_error() != Some(libc::ERANGE) || buf.len() >= 1 << 20 {
            return Err(e);
        }
        buf.resize(buf.len() * 16, 0);
    }
}

/// listxattr: the names.
pub fn listxattr(dir: impl AsFd, name: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    let p = proc_path(dir, name)?;
    let mut buf = vec![0u8; 1024];
    loop {
        // SAFETY: the buffer's length is passed along.
        let n = unsafe {
            if name.is_empty() {
                libc::listxattr(p.as_ptr(), buf.as_mut_ptr().cast(), buf.len())
            } else {
                libc::llistxattr(p.as_ptr(), buf.as_mut_ptr().cast(), buf.len())
            }
        };
        if n >= 0 {
            buf.truncate(n as usize);
            return Ok(buf.split(|b| *b == 0).filter(|s| !s.is_empty()).map(<[u8]>::to_vec).collect());
        }
        let e = io::Error::last_os_error();
        if e.raw_os_error() != Some(libc::ERANGE) || buf.len() >= 1 << 20 {
            return Err(e);
        }
        buf.resize(buf.len() * 16, 0);
    }
}

/// setxattr with `flags` (XATTR_CREATE 1, XATTR_REPLACE 2).
pub fn setxattr(dir: impl AsFd, name: &[u8], key: &[u8], value: &[u8], flags: i32) -> io::Result<()> {
    let (p, k) = (proc_path(dir, name)?, c(key)?);
    // SAFETY: valid C strings, length passed along.
    check(unsafe {
        if name.is_empty() {
            libc::setxattr(p.as_ptr(), k.as_ptr(), value.as_ptr().cast(), value.len(), flags)
        } else {
            libc::lsetxattr(p.as_ptr(), k.as_ptr(), value.as_ptr().cast(), value.len(), flags)
        }
    })
    .map(drop)
}

/// removexattr.
pub fn removexattr(dir: impl AsFd, name: &[u8], key: &[u8]) -> io::Result<()> {
    let (p, k) = (proc_path(dir, name)?, c(key)?);
    // SAFETY: valid C strings.
    check(unsafe {
        if name.is_empty() {
            libc::removexattr(p.as_ptr(), k.as_ptr())
        } else {
            libc::lremovexattr(p.as_ptr(), k.as_ptr())
        }
    })
    .map(drop)
}

/// pwrite(2) of the whole buffer. On error tells how much was written before it.
pub fn pwrite_all(fd: impl AsFd, mut buf: &[u8], mut off: u64) -> (usize, io::Result<()>) {
    let mut done = 0;
    while !buf.is_empty() {
        // SAFETY: the buffer's length is passed along.
        let n = unsafe { libc::pwrite64(fd.as_fd().as_raw_fd(), buf.as_ptr().cast(), buf.len(), off as i64) };
        if n < 0 {
            let e = io::Error::last_os_error();
            if e.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return (done, Err(e));
        }
        if n == 0 {
            return (done, Err(io::Error::from_raw_os_error(libc::ENOSPC)));
        }
        done += n as usize;
        off += n as u64;
        buf = &buf[n as usize..];
    }
    (done, Ok(()))
}

/// pread(2) until the buffer is full or the file ends; returns the bytes read.
pub fn pread_full(fd: impl AsFd, buf: &mut [u8], off: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        let rest = &mut buf[done..];
        // SAFETY: the buffer's length is passed along.
        let n = unsafe {
            libc::pread64(fd.as_fd().as_raw_fd(), rest.as_mut_ptr().cast(), rest.len(), (off + done as u64) as i64)
        };
        if n < 0 {
            let e = io::Error::last_os_error();
            if e.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(e);
        }
        if n == 0 {
            break;
        }
        done += n as usize;
    }
    Ok(done)
}

/// ftruncate(2).
pub fn ftruncate(fd: impl AsFd, size: u64) -> io::Result<()> {
    // SAFETY: plain call.
    check(unsafe { libc::ftruncate64(fd.as_fd().as_raw_fd(), size as i64) }).map(drop)
}

/// fallocate(2).
pub fn fallocate(fd: impl AsFd, mode: u32, off: u64, len: u64) -> io::Result<()> {
    // SAFETY: plain call.
    check(unsafe { libc::fallocate64(fd.as_fd().as_raw_fd(), mode as i32, off as i64, len as i64) }).map(drop)
}

/// Makes `to` share all blocks of `from` (ioctl FICLONE); an error where the filesystem cannot.
pub fn reflink(from: impl AsFd, to: impl AsFd) -> io::Result<()> {
    // SAFETY: plain call with two descriptors.
    check(unsafe { libc::ioctl(to.as_fd().as_raw_fd(), libc::FICLONE as _, from.as_fd().as_raw_fd()) }).map(drop)
}

/// lseek(2) to the next data (`SEEK_DATA`) or hole (`SEEK_HOLE`) at or after `off`; `None` past the last.
pub fn seek(fd: impl AsFd, off: u64, whence: i32) -> io::Result<Option<u64>> {
    // SAFETY: plain call.
    let r = unsafe { libc::lseek64(fd.as_fd().as_raw_fd(), off as i64, whence) };
    if r >= 0 {
        return Ok(Some(r as u64));
    }
    let e = io::Error::last_os_error();
    if e.raw_os_error() == Some(libc::ENXIO) { Ok(None) } else { Err(e) }
}

/// Drops clean cached pages of a range (posix_fadvise(2) with DONTNEED).
pub fn forget_pages(fd: impl AsFd, off: u64, len: u64) {
    // SAFETY: plain call; a hint whose failure changes nothing.
    unsafe { libc::posix_fadvise64(fd.as_fd().as_raw_fd(), off as i64, len as i64, libc::POSIX_FADV_DONTNEED) };
}

/// fsync(2) or fdatasync(2).
pub fn sync_fd(fd: impl AsFd, data_only: bool) -> io::Result<()> {
    // SAFETY: plain calls.
    check(unsafe {
        if data_only { libc::fdatasync(fd.as_fd().as_raw_fd()) } else { libc::fsync(fd.as_fd().as_raw_fd()) }
    })
    .map(drop)
}

/// syncfs(2): everything of the filesystem that holds `fd`.
pub fn syncfs(fd: impl AsFd) -> io::Result<()> {
    // SAFETY: plain call.
    check(unsafe { libc::syncfs(fd.as_fd().as_raw_fd()) }).map(drop)
}

/// flock(2), non-blocking.
pub fn try_lock(fd: impl AsFd) -> io::Result<()> {
    // SAFETY: plain call.
    check(unsafe { libc::flock(fd.as_fd().as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }).map(drop)
}

/// Capacity and use of a filesystem.
#[derive(Clone, Copy, Debug)]
pub struct StatFs {
    /// Block size, bytes.
    pub bsize: u64,
    /// Fragment size (unit of the block counts), bytes.
    pub frsize: u64,
    /// Total blocks.
    pub blocks: u64,
    /// Free blocks.
    pub bfree: u64,
    /// Free blocks for ordinary users.
    pub bavail: u64,
    /// Inodes.
    pub files: u64,
    /// Free inodes.
    pub ffree: u64,
    /// Longest name, bytes.
    pub namemax: u64,
}

/// fstatvfs(3).
pub fn statfs(fd: impl AsFd) -> io::Result<StatFs> {
    let mut s = MaybeUninit::<libc::statvfs64>::uninit();
    // SAFETY: s is written by a successful call only, and read only then.
    check(unsafe { libc::fstatvfs64(fd.as_fd().as_raw_fd(), s.as_mut_ptr()) })?;
    // SAFETY: filled by the successful call.
    let s = unsafe { s.assume_init_ref() };
    Ok(StatFs {
        bsize: s.f_bsize,
        frsize: s.f_frsize,
        blocks: s.f_blocks,
        bfree: s.f_bfree,
        bavail: s.f_bavail,
        files: s.f_files,
        ffree: s.f_ffree,
        namemax: s.f_namemax,
    })
}

/// The magic number of the filesystem (`f_type` of statfs(2)).
pub fn fs_magic(fd: impl AsFd) -> io::Result<i64> {
    let mut s = MaybeUninit::<libc::statfs64>::uninit();
    // SAFETY: s is written by a successful call only, and read only then.
    check(unsafe { libc::fstatfs64(fd.as_fd().as_raw_fd(), s.as_mut_ptr()) })?;
    // SAFETY: filled by the successful call.
    Ok(unsafe { s.assume_init_ref() }.f_type)
}

/// Reads directory entries from an open directory, from its current position, into `out`; false at the end.
pub fn getdents(fd: impl AsFd, buf: &mut [u8], out: &mut Vec<Dirent>) -> io::Result<bool> {
    // SAFETY: the buffer's length is passed along.
    let n = check_long(unsafe {
        libc::syscall(libc::SYS_getdents64, fd.as_fd().as_raw_fd(), buf.as_mut_ptr(), buf.len())
    })? as usize;
    let mut rest = buf.get(..n).unwrap_or(&[]);
    // struct linux_dirent64: ino u64, off i64, reclen u16, type u8, name (NUL-terminated).
    while rest.len() > 19 {
        let word = |a: usize| {
            let mut w = [0u8; 8];
            w.copy_from_slice(&rest[a..a + 8]);
            w
        };
        let reclen = u16::from_le_bytes([rest[16], rest[17]]) as usize;
        let Some(rec) = rest.get(..reclen).filter(|r| r.len() > 19) else { break };
        let name = CStr::from_bytes_until_nul(&rec[19..]).map(|s| s.to_bytes().to_vec()).unwrap_or_default();
        out.push(Dirent { name, ino: u64::from_le_bytes(word(0)), kind: rec[18], off: i64::from_le_bytes(word(8)) });
        rest = &rest[reclen..];
    }
    Ok(n > 0)
}

/// Moves the position of an open directory to a cookie of [`Dirent::off`] (0 = start).
pub fn seekdir(fd: impl AsFd, off: i64) -> io::Result<()> {
    // SAFETY: plain call.
    if unsafe { libc::lseek64(fd.as_fd().as_raw_fd(), off, libc::SEEK_SET) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Sets the calling thread's own umask (after [`own_fs_state`]) and returns the former one.
pub fn umask(mask: u32) -> u32 {
    // SAFETY: umask cannot fail.
    unsafe { libc::umask(mask) }
}

/// Gives the calling thread its own umask and working directory, so that [`umask`] does not touch other threads.
pub fn own_fs_state() -> io::Result<()> {
    // SAFETY: plain call; affects this thread only.
    check(unsafe { libc::unshare(libc::CLONE_FS) }).map(drop)
}

/// Effective user and group of the process.
pub fn ids() -> (u32, u32) {
    // SAFETY: cannot fail.
    unsafe { (libc::geteuid(), libc::getegid()) }
}

/// Raises the soft limit of open files to the hard limit (as root: to at least `want`) and returns it.
pub fn raise_nofile(want: u64) -> u64 {
    let mut r = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: r is a valid out parameter.
    if unsafe { libc::getrlimit64(libc::RLIMIT_NOFILE, &mut r) } != 0 {
        return 1024;
    }
    let mut n = libc::rlimit64 { rlim_cur: r.rlim_max.max(want), rlim_max: r.rlim_max.max(want) };
    // SAFETY: n is a valid parameter.
    if unsafe { libc::setrlimit64(libc::RLIMIT_NOFILE, &n) } != 0 {
        n = libc::rlimit64 { rlim_cur: r.rlim_max, rlim_max: r.rlim_max };
        // SAFETY: as above.
        if unsafe { libc::setrlimit64(libc::RLIMIT_NOFILE, &n) } != 0 {
            return r.rlim_cur;
        }
    }
    n.rlim_cur
}

/// Sends a signal to a process by pid.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: plain call.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// mount(2).
pub fn mount(source: &CStr, target: &CStr, fstype: &CStr, flags: u64, data: &CStr) -> io::Result<()> {
    // SAFETY: valid C strings.
    check(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), fstype.as_ptr(), flags, data.as_ptr().cast()) })
        .map(drop)
}

/// umount2(2), which refuses (EBUSY) while anything below is in use.
pub fn umount(target: &CStr) -> io::Result<()> {
    // SAFETY: valid C string.
    check(unsafe { libc::umount2(target.as_ptr(), libc::UMOUNT_NOFOLLOW) }).map(drop)
}

/// umount2(2) with `MNT_DETACH`.
pub fn umount_detach(target: &CStr) -> io::Result<()> {
    // SAFETY: valid C string.
    check(unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) }).map(drop)
}

/// Detaches the calling process from its session (for `-d`).
pub fn setsid() -> io::Result<i32> {
    // SAFETY: plain call.
    check(unsafe { libc::setsid() })
}

/// Asks the kernel to send `signal` to this process when its parent dies.
pub fn die_with_parent(signal: i32) -> io::Result<()> {
    // SAFETY: plain call.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal as libc::c_ulong) }).map(drop)
}

/// Blocks SIGTERM and SIGINT in this thread (and those it starts) and returns a descriptor that reads them. From then on
/// a file that reaches the process's limit of sizes is an error (EFBIG) and not the end of the process.
pub fn signal_fd() -> io::Result<OwnedFd> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the set is initialised by sigemptyset before use; the descriptor is checked.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGTERM);
        libc::sigaddset(set.as_mut_ptr(), libc::SIGINT);
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        if libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = check(libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// read(2) from a descriptor.
pub fn read(fd: impl AsFd, buf: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the buffer's length is passed along.
    let n = unsafe { libc::read(fd.as_fd().as_raw_fd(), buf.as_mut_ptr().cast(), buf.len()) };
    if n < 0 { Err(io::Error::last_os_error()) } else { Ok(n as usize) }
}
