//! Calls on descriptors.

use super::{Kind, file_at, here, open_at};
use crate::disk::{At, Attr};
use crate::net;
use crate::sched::{MachineId, Res, When, world};
use std::ffi::{c_int, c_void};

/// Bytes of a call's buffer, as a slice; nothing for a null address.
///
/// # Safety
/// `p` is valid for `n` bytes while the call lasts.
pub unsafe fn bytes<'a>(p: *const c_void, n: usize) -> &'a [u8] {
    // SAFETY: as our caller promises.
    if p.is_null() || n == 0 { &[] } else { unsafe { std::slice::from_raw_parts(p.cast(), n) } }
}

/// As [`bytes`], to be written.
///
/// # Safety
/// As for [`bytes`], and nobody else uses them.
pub unsafe fn room<'a>(p: *mut c_void, n: usize) -> &'a mut [u8] {
    // SAFETY: as our caller promises.
    if p.is_null() || n == 0 { &mut [] } else { unsafe { std::slice::from_raw_parts_mut(p.cast(), n) } }
}

/// read(2), recv(2).
pub fn read(fd: c_int, buf: &mut [u8], flags: c_int) -> Res<i64> {
    let o = open_at(fd)?;
    match &mut o.kind {
        Kind::File { of, disk, ofd } => world().disk(*of, *disk).read(*ofd, buf).map(|n| n as i64),
        Kind::Socket(s) => net::calls::recv(*s, buf, flags),
        Kind::Text { text, at } => {
            let rest = text.get(*at..).unwrap_or_default();
            let n = rest.len().min(buf.len());
            buf[..n].copy_from_slice(&rest[..n]);
            *at += n;
            Ok(n as i64)
        }
        Kind::Silent => {
            crate::sched::block(&[crate::sched::Key::Never], None, "reads signals that nobody sends");
            Err(libc::EINTR)
        }
    }
}

/// write(2), send(2).
pub fn write(fd: c_int, buf: &[u8], flags: c_int) -> Res<i64> {
    let o = open_at(fd)?;
    match o.kind {
        Kind::File { of, disk, ofd } => world().disk(of, disk).write(ofd, buf).map(|n| n as i64),
        Kind::Socket(s) => net::calls::send(s, buf, flags),
        _ => Err(libc::EBADF),
    }
}

/// pread(2).
pub fn pread(fd: c_int, buf: &mut [u8], off: i64) -> Res<i64> {
    let (m, disk, ofd) = file_at(fd)?;
    let off = u64::try_from(off).map_err(|_| libc::EINVAL)?;
    world().disk(m, disk).pread(ofd, buf, off).map(|n| n as i64)
}

/// pwrite(2).
pub fn pwrite(fd: c_int, buf: &[u8], off: i64) -> Res<i64> {
    let (m, disk, ofd) = file_at(fd)?;
    let off = u64::try_from(off).map_err(|_| libc::EINVAL)?;
    world().disk(m, disk).pwrite(ofd, buf, off).map(|n| n as i64)
}

/// lseek(2).
pub fn lseek(fd: c_int, off: i64, whence: c_int) -> Res<i64> {
    let (m, disk, ofd) = file_at(fd)?;
    world().disk(m, disk).lseek(ofd, off, whence).map(|n| n as i64)
}

/// ftruncate(2).
pub fn ftruncate(fd: c_int, size: i64) -> Res<i64> {
    let (m, disk, ofd) = file_at(fd)?;
    let size = u64::try_from(size).map_err(|_| libc::EINVAL)?;
    world().disk(m, disk).ftruncate(ofd, size).map(|()| 0)
}

/// fallocate(2).
pub fn fallocate(fd: c_int, mode: c_int, off: i64, len: i64) -> Res<i64> {
    let (m, disk, ofd) = file_at(fd)?;
    let (Ok(off), Ok(len)) = (u64::try_from(off), u64::try_from(len)) else { return Err(libc::EINVAL) };
    world().disk(m, disk).fallocate(ofd, mode, off, len).map(|()| 0)
}

/// A call that makes something durable, at which a crash may be planned.
pub fn persist(m: MachineId, f: impl FnOnce() -> Res<i64>) -> Res<i64> {
    let w = world();
    let number = w.machines[m].syncs() + 1;
    w.persist_point(m, number, When::Before);
    let r = f();
    let w = world();
    // A call that was refused outright is no point.
    if w.machines[m].syncs() >= number {
        w.persist_point(m, number, When::After);
    }
    r
}

/// fsync(2), fdatasync(2).
pub fn fsync(fd: c_int, data_only: bool) -> Res<i64> {
    let (m, disk, ofd) = file_at(fd)?;
    persist(m, || world().disk(m, disk).fsync(ofd, data_only).map(|()| 0))
}

/// syncfs(2).
pub fn syncfs(fd: c_int) -> Res<i64> {
    let (m, disk, _) = file_at(fd)?;
    persist(m, || world().disk(m, disk).syncfs().map(|()| 0))
}

/// mmap(2) of a file: shared, from its beginning.
pub fn mmap(fd: c_int, len: usize, flags: c_int, off: i64) -> Res<*mut c_void> {
    let (m, disk, ofd) = file_at(fd)?;
    if flags & libc::MAP_TYPE != libc::MAP_SHARED || off != 0 {
        world().fail(format!("mmap of a file with flags {flags:#x} at {off} is not simulated"));
    }
    world().disk(m, disk).map(ofd, len).map(<*mut u8>::cast)
}

/// fstat(2).
pub fn fstat(fd: c_int) -> Res<(u64, Attr)> {
    let o = open_at(fd)?;
    match o.kind {
        Kind::File { of, disk, ofd } => stat_at(of, disk, At::Ofd(ofd, b""), true),
        Kind::Socket(s) => Ok((8, plain(libc::S_IFSOCK | 0o777, s as u64))),
        Kind::Text { .. } => Ok((4, plain(libc::S_IFREG | 0o444, 1))),
        Kind::Silent => Ok((9, plain(0o600, 1))),
    }
}

/// What is on a disk, and the number of its device.
pub fn stat_at(m: MachineId, disk: usize, at: At<'_>, follow: bool) -> Res<(u64, Attr)> {
    let w = world();
    let dev = w.machines[m].drives[disk].dev;
    w.disk(m, disk).stat(at, follow).map(|a| (dev, a))
}

fn plain(mode: u32, ino: u64) -> Attr {
    let zero = crate::disk::Stamp::default();
    Attr {
        ino,
        mode,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 0,
        blocks: 0,
        atime: zero,
        mtime: zero,
        ctime: zero,
        btime: zero,
    }
}

/// A descriptor that is never readable.
pub fn silent() -> Res<i64> {
    Ok(world().table.add(here(), Kind::Silent).into())
}

/// `ioctl`: what is asked of files and sockets.
///
/// # Safety
/// `arg` is what the request takes.
pub unsafe fn ioctl(fd: c_int, request: u64, arg: *mut c_void) -> Res<i64> {
    let o = open_at(fd)?;
    const NONBLOCK: u64 = libc::FIONBIO;
    const CLONE: u64 = libc::FICLONE;
    match (&o.kind, request) {
        (Kind::Socket(s), NONBLOCK) => {
            // SAFETY: FIONBIO takes the address of an int.
            let on = unsafe { *arg.cast::<c_int>() } != 0;
            world().net.set_nonblocking(*s, on);
            Ok(0)
        }
        (Kind::File { .. }, CLONE) => Err(libc::EOPNOTSUPP),
        _ => Err(libc::ENOTTY),
    }
}

/// Several buffers, one after the other, until one is not filled or emptied whole.
///
/// # Safety
/// As for readv(2) and writev(2).
pub unsafe fn each(iov: *const libc::iovec, n: usize, mut f: impl FnMut(*mut c_void, usize) -> Res<i64>) -> Res<i64> {
    let mut done = 0;
    for i in 0..n {
        // SAFETY: as our caller promises, there are `n` of them.
        let v = unsafe { *iov.add(i) };
        if v.iov_len == 0 {
            continue;
        }
        match f(v.iov_base, v.iov_len) {
            Ok(k) => {
                done += k;
                if k < v.iov_len as i64 {
                    return Ok(done);
                }
            }
            Err(e) if done == 0 => return Err(e),
            Err(_) => return Ok(done),
        }
    }
    Ok(done)
}
