//! Setting times the way an application asked for them, and the clock for promises.

use crate::base::time::Time;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

/// One of the two times of utimensat(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Stamp {
    /// Leave it.
    #[default]
    Omit,
    /// The kernel's own idea of now, which no later change of a file can precede.
    Now,
    /// This time.
    At(Time),
}

/// The time since the machine was started, also while it slept: two nodes' differ, but both go on.
pub fn boottime() -> Duration {
    let mut ts = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid place for the answer. The call cannot fail for this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut ts) };
    Duration::new(ts.tv_sec as u64, ts.tv_nsec as u32)
}

/// utimensat(2) of what an (O_PATH) descriptor refers to.
pub fn set_times(fd: impl AsFd, atime: Stamp, mtime: Stamp) -> io::Result<()> {
    let ts = |t: Stamp| match t {
        Stamp::Omit => libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT },
        Stamp::Now => libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_NOW },
        Stamp::At(t) => libc::timespec { tv_sec: t.sec, tv_nsec: t.nsec.into() },
    };
    let times = [ts(atime), ts(mtime)];
    // SAFETY: valid C string and array of two.
    let r = unsafe { libc::utimensat(fd.as_fd().as_raw_fd(), c"".as_ptr(), times.as_ptr(), libc::AT_EMPTY_PATH) };
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
