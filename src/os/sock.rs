//! Socket calls that std does not have: peer credentials, buffer sizes, vectored sends without SIGPIPE.

use std::io;
use std::io::IoSlice;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Most slices that one [`send_vectored`] hands to the kernel (UIO_MAXIOV).
pub const SLICES_MAX: usize = 1024;

fn cvt(r: isize) -> io::Result<usize> {
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(r as usize) }
}

/// The user this process acts as.
pub fn own_uid() -> u32 {
    // SAFETY: geteuid takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

/// The user at the other end of a connected Unix socket (as it was at connect or listen).
pub fn peer_uid(fd: BorrowedFd<'_>) -> io::Result<u32> {
    let mut cred = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: `cred` and `len` live through the call and `len` is the size of `cred`.
    let r = unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, (&raw mut cred).cast(), &raw mut len)
    };
    cvt(r as isize)?;
    if len as usize != size_of::<libc::ucred>() || cred.uid == u32::MAX {
        return Err(io::Error::other("the kernel gave no peer credentials"));
    }
    Ok(cred.uid)
}

fn set_int(fd: BorrowedFd<'_>, name: libc::c_int, value: usize) -> io::Result<()> {
    let v = libc::c_int::try_from(value).unwrap_or(libc::c_int::MAX);
    // SAFETY: `v` lives through the call and its size is given.
    let r = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            name,
            (&raw const v).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    cvt(r as isize).map(|_| ())
}

/// Asks for socket buffers of `bytes` in both directions, as far as the kernel lets us.
///
/// The forced form needs CAP_NET_ADMIN. Without it a TCP socket keeps its automatic sizes: the plain form is capped at
/// `net.core.[rw]mem_max`, far below what autotuning reaches, and would turn autotuning off.
pub fn want_buffers(fd: BorrowedFd<'_>, bytes: usize, autotuned: bool) {
    for (force, plain) in [(libc::SO_SNDBUFFORCE, libc::SO_SNDBUF), (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF)] {
        if set_int(fd, force, bytes).is_err() && !autotuned {
            // Best effort: a small buffer costs speed, nothing else.
            let _ = set_int(fd, plain, bytes);
        }
    }
}

/// Sends from several slices at once; returns how many bytes the kernel took. A closed peer is `EPIPE`, never a signal.
pub fn send_vectored(fd: BorrowedFd<'_>, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    // SAFETY: msghdr is plain data for which all zeroes are valid.
    let mut m: libc::msghdr = unsafe { std::mem::zeroed() };
    // IoSlice is guaranteed to have the layout of iovec; sendmsg does not write through it.
    m.msg_iov = slices.as_ptr().cast_mut().cast();
    m.msg_iovlen = slices.len().min(SLICES_MAX) as _;
    // SAFETY: `m` names `msg_iovlen` slices that live through the call, and nothing else.
    cvt(unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const m, libc::MSG_NOSIGNAL) })
}

/// Shuts a socket down in both directions, a listening one too: every thread blocked on it returns.
pub fn shutdown(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no memory is passed.
    cvt(unsafe { libc::shutdown(fd.as_raw_fd(), libc::SHUT_RDWR) } as isize).map(|_| ())
}

/// Connects to a Unix socket within `timeout` (`WouldBlock` when it runs out: a frozen listener with a full backlog would
/// otherwise block for ever).
pub fn connect_unix(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    // SAFETY: no memory is passed; the result is checked before use.
    let fd = cvt(unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) } as isize)?;
    // SAFETY: `fd` was just made and belongs to nobody else.
    let s = UnixStream::from(unsafe { OwnedFd::from_raw_fd(fd as i32) });
    s.set_write_timeout(Some(timeout))?;
    // SAFETY: sockaddr_un is plain data for which all zeroes are valid.
    let mut addr: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    addr.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let bytes = path.as_os_str().as_bytes();
    if bytes.is_empty() || bytes.len() >= addr.sun_path.len() || bytes.contains(&0) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in addr.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    let len = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    loop {
        // SAFETY: `addr` lives through the call, holds a NUL-terminated path, and `len` is its size.
        match cvt(unsafe { libc::connect(s.as_raw_fd(), (&raw const addr).cast(), len) } as isize) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            r => {
                r?;
                s.set_write_timeout(None)?;
                return Ok(s);
            }
        }
    }
}
