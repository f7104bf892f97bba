//! Descriptors of FUSE connections: from mount(2)'s side, and from fusermount3 over its socket.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// umount2(2) with `MNT_FORCE | MNT_DETACH`: aborts the FUSE connection (as root) and takes the mount away.
pub fn umount_force(target: &CStr) -> io::Result<()> {
    // SAFETY: valid C string.
    let r = unsafe { libc::umount2(target.as_ptr(), libc::MNT_FORCE | libc::MNT_DETACH) };
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Receives one descriptor sent with `SCM_RIGHTS`; `None` when the other side closed without sending one.
pub fn receive_fd(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    // Aligned for a cmsghdr, and large enough for one descriptor.
    let mut control = [0u64; 8];
    let mut byte = [0u8; 1];
    let mut iov = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: byte.len() };
    // SAFETY: msghdr is plain data; all zero is a valid value of it.
    let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
    msg.msg_iov = &mut iov;
    msg.msg_iovlen = 1;
    msg.msg_control = control.as_mut_ptr().cast();
    msg.msg_controllen = std::mem::size_of_val(&control);
    loop {
        // SAFETY: msg points at live buffers with their true lengths.
        let n = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut msg, libc::MSG_CMSG_CLOEXEC) };
        if n < 0 {
            let e = io::Error::last_os_error();
            if e.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(e);
        }
        if n == 0 {
            return Ok(None);
        }
        break;
    }
    // SAFETY: the kernel filled control and its length; the macros stay within it, and what is read was sent as an int.
    unsafe {
        let h = libc::CMSG_FIRSTHDR(&msg);
        if h.is_null() || (*h).cmsg_level != libc::SOL_SOCKET || (*h).cmsg_type != libc::SCM_RIGHTS {
            return Ok(None);
        }
        if (*h).cmsg_len < libc::CMSG_LEN(std::mem::size_of::<libc::c_int>() as u32) as usize {
            return Ok(None);
        }
        let fd = libc::CMSG_DATA(h).cast::<libc::c_int>().read_unaligned();
        if fd < 0 { Ok(None) } else { Ok(Some(OwnedFd::from_raw_fd(fd))) }
    }
}
