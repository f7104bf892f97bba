//! What fuser speaks, from and to what the volume speaks.

use crate::base::{Error, Result, time::Time};
use crate::os::times::Stamp;
use crate::volume::{Caller, Node};
use fuser::*;
use std::time::{SystemTime, UNIX_EPOCH};

pub(super) fn errno(e: &Error) -> Errno {
    Errno::from_i32(e.errno)
}

pub(super) fn caller(req: &Request, umask: u32) -> Caller {
    Caller { uid: req.uid(), gid: req.gid(), pid: req.pid(), umask }
}

/// FUSE carries device numbers in 32 bits: 12 of the major, 20 of the minor number.
pub(super) fn dev_to_wire(dev: u64) -> u32 {
    let (major, minor) = (libc::major(dev), libc::minor(dev));
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

pub(super) fn dev_from_wire(dev: u32) -> u64 {
    libc::makedev((dev >> 8) & 0xfff, (dev & 0xff) | ((dev >> 12) & 0xf_ff00))
}

pub(super) fn file_type(mode: u32) -> FileType {
    match mode & libc::S_IFMT {
        libc::S_IFDIR => FileType::Directory,
        libc::S_IFLNK => FileType::Symlink,
        libc::S_IFIFO => FileType::NamedPipe,
        libc::S_IFSOCK => FileType::Socket,
        libc::S_IFCHR => FileType::CharDevice,
        libc::S_IFBLK => FileType::BlockDevice,
        _ => FileType::RegularFile,
    }
}

pub(super) fn attr(n: &Node) -> FileAttr {
    let s = &n.stat;
    FileAttr {
        ino: INodeNo(n.node),
        size: s.size,
        blocks: s.blocks,
        atime: s.atime.system(),
        mtime: s.mtime.system(),
        ctime: s.ctime.system(),
        crtime: UNIX_EPOCH,
        kind: file_type(s.mode),
        perm: s.perm() as u16,
        nlink: u32::try_from(s.nlink).unwrap_or(u32::MAX),
        uid: s.uid,
        gid: s.gid,
        rdev: dev_to_wire(s.rdev),
        blksize: s.blksize,
        flags: 0,
    }
}

pub(super) fn generation(n: &Node) -> Generation {
    Generation(u64::from(n.generation))
}

/// An entry without a node: the kernel remembers that the name is free.
pub(super) fn nothing() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

/// A time as the application meant it. fuser 0.18 takes seconds before 1970 and their nanoseconds away from 1970
/// instead of taking the one away and adding the other; both can be read off the result.
pub(super) fn stamp(t: Option<TimeOrNow>) -> Stamp {
    match t {
        None => Stamp::Omit,
        Some(TimeOrNow::Now) => Stamp::Now,
        Some(TimeOrNow::SpecificTime(t)) => Stamp::At(time(t)),
    }
}

pub(super) fn time(t: SystemTime) -> Time {
    match t.duration_since(UNIX_EPOCH) {
        Ok(d) => Time { sec: d.as_secs() as i64, nsec: d.subsec_nanos() },
        Err(e) => Time { sec: (e.duration().as_secs() as i64).wrapping_neg(), nsec: e.duration().subsec_nanos() },
    }
}

/// Errors that no local system call gives for a good reason: the order refused, or lost the sync site on the way.
pub(super) fn in_doubt(e: &Error) -> bool {
    !matches!(
        e.errno,
        libc::ENOENT
            | libc::EEXIST
            | libc::ENOTDIR
            | libc::EISDIR
            | libc::ENOTEMPTY
            | libc::EPERM
            | libc::EACCES
            | libc::EINVAL
            | libc::ENAMETOOLONG
            | libc::ENODATA
            | libc::EMLINK
            | libc::EXDEV
            | libc::EOPNOTSUPP
    )
}

pub(super) fn reply_empty(r: Result<()>, reply: ReplyEmpty) {
    match r {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(errno(&e)),
    }
}

pub(super) fn reply_xattr(r: Result<Vec<u8>>, size: u32, reply: ReplyXattr) {
    match r {
        Ok(v) if size == 0 => reply.size(v.len() as u32),
        Ok(v) if v.len() <= size as usize => reply.data(&v),
        Ok(_) => reply.error(Errno::ERANGE),
        Err(e) => reply.error(errno(&e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn devices_and_times_survive_the_wire() {
        for (major, minor) in [(1, 3), (8, 17), (259, 0x12345), (0, 0)] {
            let d = libc::makedev(major, minor);
            assert_eq!(dev_from_wire(dev_to_wire(d)), d);
        }
        // What fuser makes of 1.25 s after 1969-12-31 23:59:50: -10 s and 250 ms, both taken away from 1970.
        let t = UNIX_EPOCH - Duration::new(10, 250_000_000);
        assert_eq!(time(t), Time { sec: -10, nsec: 250_000_000 });
        assert_eq!(time(UNIX_EPOCH + Duration::new(10, 5)), Time { sec: 10, nsec: 5 });
    }
}
