//! Listings: getdents64(2), and the C library's streams of directories.

use super::names::{self, Path};
use super::{close, file_at};
use crate::mem;
use crate::sched::{Res, world};
use std::collections::VecDeque;
use std::ffi::c_int;

/// Bytes of the longest record.
const RECORD_MAX: usize = 19 + 256 + 8;
/// Names read at a time by a stream.
const AHEAD: usize = 64;

/// getdents64(2).
pub fn getdents(fd: c_int, buf: &mut [u8]) -> Res<i64> {
    let (m, disk, ofd) = file_at(fd)?;
    let max = buf.len() / RECORD_MAX;
    if max == 0 {
        return Err(libc::EINVAL);
    }
    let mut at = 0;
    for (name, ino, kind, next) in world().disk(m, disk).getdents(ofd, max)? {
        let len = (19 + name.len() + 1).next_multiple_of(8);
        let r = &mut buf[at..at + len];
        r.fill(0);
        r[..8].copy_from_slice(&ino.to_le_bytes());
        r[8..16].copy_from_slice(&next.to_le_bytes());
        r[16..18].copy_from_slice(&(len as u16).to_le_bytes());
        r[18] = kind;
        r[19..19 + name.len()].copy_from_slice(&name);
        at += len;
    }
    Ok(at as i64)
}

/// A `DIR` of ours.
pub struct Stream {
    fd: c_int,
    ahead: VecDeque<(Vec<u8>, u64, u8, i64)>,
    entry: libc::dirent64,
}

/// True for a stream of ours: it lies in the memory of simulated threads.
pub fn is_ours(d: *const libc::DIR) -> bool {
    mem::is_ours(d.cast())
}

/// fdopendir(3); the descriptor belongs to the stream.
pub fn stream(fd: c_int) -> Res<*mut libc::DIR> {
    let (m, disk, ofd) = file_at(fd)?;
    // Refused when it is no directory.
    world().disk(m, disk).getdents(ofd, 0)?;
    // SAFETY: dirent64 is plain data; all zero is a valid value of it.
    let entry = unsafe { std::mem::zeroed() };
    Ok(Box::into_raw(Box::new(Stream { fd, ahead: VecDeque::new(), entry })).cast())
}

/// opendir(3). `None`: the kernel's.
pub fn opendir(path: &[u8]) -> Res<Option<*mut libc::DIR>> {
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    match names::open(Path(libc::AT_FDCWD, path), flags, 0, false)? {
        None => Ok(None),
        Some(fd) => stream(fd as c_int).map(Some),
    }
}

/// The stream behind a pointer.
///
/// # Safety
/// It came from [`stream`] and was not closed.
unsafe fn behind<'a>(d: *mut libc::DIR) -> &'a mut Stream {
    // SAFETY: as our caller promises.
    unsafe { &mut *d.cast::<Stream>() }
}

/// readdir64(3): null at the end.
///
/// # Safety
/// `d` came from [`stream`] and was not closed.
pub unsafe fn readdir(d: *mut libc::DIR) -> Res<*mut libc::dirent64> {
    // SAFETY: as our caller promises.
    let s = unsafe { behind(d) };
    if s.ahead.is_empty() {
        let (m, disk, ofd) = file_at(s.fd)?;
        s.ahead = world().disk(m, disk).getdents(ofd, AHEAD)?.into();
    }
    let Some((name, ino, kind, next)) = s.ahead.pop_front() else { return Ok(std::ptr::null_mut()) };
    let e = &mut s.entry;
    (e.d_ino, e.d_off, e.d_type) = (ino, next, kind);
    e.d_reclen = size_of::<libc::dirent64>() as u16;
    for (to, from) in e.d_name.iter_mut().zip(name.iter().chain([&0])) {
        *to = *from as _;
    }
    Ok(e)
}

/// closedir(3).
///
/// # Safety
/// As for [`readdir`].
pub unsafe fn closedir(d: *mut libc::DIR) -> Res<i64> {
    // SAFETY: as our caller promises; it is not used afterwards.
    let s = unsafe { Box::from_raw(d.cast::<Stream>()) };
    close(s.fd)
}

/// dirfd(3).
///
/// # Safety
/// As for [`readdir`].
pub unsafe fn dirfd(d: *mut libc::DIR) -> c_int {
    // SAFETY: as our caller promises.
    unsafe { behind(d) }.fd
}
