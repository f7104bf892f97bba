//! Functions that take descriptors.

use super::calls;
use crate::files::{self, dirs, io, is_ours, names};
use crate::sched::call;
use std::ffi::{c_int, c_long, c_void};

fn int(r: i64) -> Option<c_int> {
    Some(r as c_int)
}

fn size(r: i64) -> Option<isize> {
    Some(r as isize)
}

calls! {
    fn close(fd: c_int) -> c_int {
        if is_ours(fd) { int(call("close", || files::close(fd))) } else { None }
    }
    fn read(fd: c_int, buf: *mut c_void, n: usize) -> isize {
        if is_ours(fd) { size(call("read", || io::read(fd, io::room(buf, n), 0))) } else { None }
    }
    fn write(fd: c_int, buf: *const c_void, n: usize) -> isize {
        if is_ours(fd) { size(call("write", || io::write(fd, io::bytes(buf, n), 0))) } else { None }
    }
    fn readv(fd: c_int, iov: *const libc::iovec, n: c_int) -> isize {
        if is_ours(fd) {
            size(call("readv", || io::each(iov, n as usize, |p, n| io::read(fd, io::room(p, n), 0))))
        } else { None }
    }
    fn writev(fd: c_int, iov: *const libc::iovec, n: c_int) -> isize {
        if is_ours(fd) {
            size(call("writev", || io::each(iov, n as usize, |p, n| io::write(fd, io::bytes(p, n), 0))))
        } else { None }
    }
    fn pread(fd: c_int, buf: *mut c_void, n: usize, off: i64) -> isize {
        if is_ours(fd) { size(call("pread", || io::pread(fd, io::room(buf, n), off))) } else { None }
    }
    fn pread64(fd: c_int, buf: *mut c_void, n: usize, off: i64) -> isize {
        if is_ours(fd) { size(call("pread", || io::pread(fd, io::room(buf, n), off))) } else { None }
    }
    fn pwrite(fd: c_int, buf: *const c_void, n: usize, off: i64) -> isize {
        if is_ours(fd) { size(call("pwrite", || io::pwrite(fd, io::bytes(buf, n), off))) } else { None }
    }
    fn pwrite64(fd: c_int, buf: *const c_void, n: usize, off: i64) -> isize {
        if is_ours(fd) { size(call("pwrite", || io::pwrite(fd, io::bytes(buf, n), off))) } else { None }
    }
    fn lseek(fd: c_int, off: i64, whence: c_int) -> i64 {
        if is_ours(fd) { Some(call("lseek", || io::lseek(fd, off, whence))) } else { None }
    }
    fn lseek64(fd: c_int, off: i64, whence: c_int) -> i64 {
        if is_ours(fd) { Some(call("lseek", || io::lseek(fd, off, whence))) } else { None }
    }
    fn ftruncate(fd: c_int, len: i64) -> c_int {
        if is_ours(fd) { int(call("ftruncate", || io::ftruncate(fd, len))) } else { None }
    }
    fn ftruncate64(fd: c_int, len: i64) -> c_int {
        if is_ours(fd) { int(call("ftruncate", || io::ftruncate(fd, len))) } else { None }
    }
    fn fallocate(fd: c_int, mode: c_int, off: i64, len: i64) -> c_int {
        if is_ours(fd) { int(call("fallocate", || io::fallocate(fd, mode, off, len))) } else { None }
    }
    fn fallocate64(fd: c_int, mode: c_int, off: i64, len: i64) -> c_int {
        if is_ours(fd) { int(call("fallocate", || io::fallocate(fd, mode, off, len))) } else { None }
    }
    fn fsync(fd: c_int) -> c_int {
        if is_ours(fd) { int(call("fsync", || io::fsync(fd, false))) } else { None }
    }
    fn fdatasync(fd: c_int) -> c_int {
        if is_ours(fd) { int(call("fdatasync", || io::fsync(fd, true))) } else { None }
    }
    fn syncfs(fd: c_int) -> c_int {
        if is_ours(fd) { int(call("syncfs", || io::syncfs(fd))) } else { None }
    }
    fn flock(fd: c_int, how: c_int) -> c_int {
        if is_ours(fd) { int(call("flock", || files::flock(fd, how))) } else { None }
    }
    fn fcntl(fd: c_int, command: c_int, arg: c_long) -> c_int {
        if is_ours(fd) { int(call("fcntl", || files::fcntl(fd, command, arg))) } else { None }
    }
    fn fcntl64(fd: c_int, command: c_int, arg: c_long) -> c_int {
        if is_ours(fd) { int(call("fcntl", || files::fcntl(fd, command, arg))) } else { None }
    }
    fn dup(fd: c_int) -> c_int {
        if is_ours(fd) { int(call("dup", || files::fcntl(fd, libc::F_DUPFD, 0))) } else { None }
    }
    fn ioctl(fd: c_int, request: u64, arg: *mut c_void) -> c_int {
        if is_ours(fd) { int(call("ioctl", || io::ioctl(fd, request, arg))) } else { None }
    }
    fn isatty(fd: c_int) -> c_int {
        if is_ours(fd) { Some(0) } else { None }
    }
    fn fchmod(fd: c_int, mode: u32) -> c_int {
        if is_ours(fd) { int(call("fchmod", || names::fchmod(fd, mode))) } else { None }
    }
    fn posix_fadvise(fd: c_int, _off: i64, _len: i64, _how: c_int) -> c_int {
        if is_ours(fd) { Some(0) } else { None }
    }
    fn posix_fadvise64(fd: c_int, _off: i64, _len: i64, _how: c_int) -> c_int {
        if is_ours(fd) { Some(0) } else { None }
    }
    fn mmap(at: *mut c_void, n: usize, prot: c_int, flags: c_int, fd: c_int, off: i64) -> *mut c_void {
        if is_ours(fd) { Some(map(fd, n, flags, off)) } else { None }
    }
    fn mmap64(at: *mut c_void, n: usize, prot: c_int, flags: c_int, fd: c_int, off: i64) -> *mut c_void {
        if is_ours(fd) { Some(map(fd, n, flags, off)) } else { None }
    }
    fn munmap(at: *mut c_void, n: usize) -> c_int {
        // The pages of a mapped file stay with the disk.
        if crate::mem::is_ours(at.cast()) { int(call("munmap", || Ok(0))) } else { None }
    }
    fn msync(at: *mut c_void, n: usize, _flags: c_int) -> c_int {
        if crate::mem::is_ours(at.cast()) {
            crate::sched::within(|| crate::sched::world().fail("msync is not simulated".into()))
        } else { None }
    }
    fn fdopendir(fd: c_int) -> *mut libc::DIR {
        if is_ours(fd) { Some(call("fdopendir", || dirs::stream(fd).map(|d| d as i64)).max(0) as *mut libc::DIR) } else { None }
    }
    fn readdir64(d: *mut libc::DIR) -> *mut libc::dirent64 {
        if dirs::is_ours(d) {
            Some(call("readdir", || dirs::readdir(d).map(|e| e as i64)).max(0) as *mut libc::dirent64)
        } else { None }
    }
    fn closedir(d: *mut libc::DIR) -> c_int {
        if dirs::is_ours(d) { int(call("closedir", || dirs::closedir(d))) } else { None }
    }
    fn dirfd(d: *mut libc::DIR) -> c_int {
        if dirs::is_ours(d) { Some(dirs::dirfd(d)) } else { None }
    }
    fn copy_file_range(from: c_int, a: *mut i64, to: c_int, b: *mut i64, n: usize, flags: u32) -> isize {
        // Who copies does it by hand then.
        if is_ours(from) || is_ours(to) { size(call("copy_file_range", || Err(libc::EXDEV))) } else { None }
    }
    fn sendfile64(to: c_int, from: c_int, off: *mut i64, n: usize) -> isize {
        if is_ours(from) || is_ours(to) { size(call("sendfile", || Err(libc::EINVAL))) } else { None }
    }
    fn splice(from: c_int, a: *mut i64, to: c_int, b: *mut i64, n: usize, flags: u32) -> isize {
        if is_ours(from) || is_ours(to) { size(call("splice", || Err(libc::EINVAL))) } else { None }
    }
    fn fstatvfs64(fd: c_int, to: *mut libc::statvfs64) -> c_int {
        if is_ours(fd) {
            int(call("fstatvfs", || {
                let s = names::statfs(fd)?;
                let mut v: libc::statvfs64 = std::mem::zeroed();
                (v.f_bsize, v.f_frsize, v.f_namemax) = (s.bsize, s.bsize, 255);
                (v.f_blocks, v.f_bfree, v.f_bavail) = (s.blocks, s.free, s.free);
                (v.f_files, v.f_ffree, v.f_favail) = (s.files, s.ffree, s.ffree);
                *to = v;
                Ok(0)
            }))
        } else { None }
    }
    fn fstatfs64(fd: c_int, to: *mut libc::statfs64) -> c_int {
        if is_ours(fd) {
            int(call("fstatfs", || {
                let s = names::statfs(fd)?;
                let mut v: libc::statfs64 = std::mem::zeroed();
                (v.f_type, v.f_bsize, v.f_namelen) = (libc::EXT4_SUPER_MAGIC as _, s.bsize as _, 255);
                (v.f_blocks, v.f_bfree, v.f_bavail, v.f_files, v.f_ffree) = (s.blocks, s.free, s.free, s.files, s.ffree);
                *to = v;
                Ok(0)
            }))
        } else { None }
    }
}

fn map(fd: c_int, n: usize, flags: c_int, off: i64) -> *mut c_void {
    let at = call("mmap", || io::mmap(fd, n, flags, off).map(|p| p as i64));
    if at < 0 { libc::MAP_FAILED } else { at as *mut c_void }
}
