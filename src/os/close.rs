//! close(2) with its error, which std drops.

use std::io;
use std::os::fd::{IntoRawFd, OwnedFd};

/// Closes a descriptor. On a mounted volume this is where data is promised, so its error counts. It is closed either way.
pub fn close(fd: OwnedFd) -> io::Result<()> {
    // SAFETY: the descriptor was owned and is given up here, so nobody else closes or uses it.
    if unsafe { libc::close(fd.into_raw_fd()) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
