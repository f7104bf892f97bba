//! What a change of content or attributes is about to replace, and how it is put back when the fence refuses the change
//! (MS-6).
//!
//! An image is taken before the tree is touched: size, attributes, and of the range that is written the part inside the
//! old size, holes as holes in units of 4 KiB. [`Image::steps`] says what puts it back; each step is done in the tree and
//! told to the peers by the same operation.

use crate::base::{Result, limits::COMPARE_BLOCK_BYTES, time::Time};
use crate::format::op::{Op, Target};
use crate::os::sys::{self, Stat};
use crate::store::region::Region;
use crate::store::replica::Mark;
use std::os::fd::OwnedFd;

/// Content kept for one change, bytes at most. What takes away more (a truncation, a hole) cannot be undone.
pub const IMAGE_BYTES_MAX: u64 = 64 << 20;
/// Bytes put back by one entry.
const PIECE_BYTES: usize = 1 << 20;
const KEEP_SIZE: u32 = 1;
const PUNCH_HOLE: u32 = 2;
/// Lost by whatever changes a program's content or owner.
const CAPABILITY: &[u8] = b"security.capability";
const ACL_ACCESS: &[u8] = b"system.posix_acl_access";

/// What is to be replaced.
#[derive(Clone, Copy, Debug)]
pub enum Of<'a> {
    /// Bytes from the first to the one before the second, with size and times; `u64::MAX`: to the end.
    Content(u64, u64),
    /// Mode, owner and times.
    Attrs,
    /// An extended attribute, with the mode that an ACL sets.
    Xattr(&'a [u8]),
}

/// Pieces of content with their places.
type Pieces = Vec<(u64, Vec<u8>)>;

/// See the head of this file.
#[derive(Debug)]
pub struct Image {
    was: Stat,
    from: u64,
    to: u64,
    /// Pieces of data; what lies between them is a hole. `None`: it was too much.
    data: Option<Pieces>,
    content: bool,
    xattrs: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

/// One step of putting an image back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// Set the size.
    Size(u64),
    /// Make a hole: from, length.
    Hole(u64, u64),
    /// Write at.
    Write(u64, &'a [u8]),
    /// Mode, owner, group, access time, modification time.
    Attrs(Option<u32>, Option<u32>, Option<u32>, Option<Time>, Time),
    /// Set or remove an extended attribute.
    Xattr(&'a [u8], Option<&'a [u8]>),
}

impl Image {
    /// Of an object, before it is changed. `fd`: for content, open for reading and writing.
    pub fn take(region: &Region, fd: &OwnedFd, of: Of<'_>) -> Result<Image> {
        let was = region.wanted(sys::fstat(fd)?);
        let mut image = Image { was, from: 0, to: 0, data: Some(Vec::new()), content: false, xattrs: Vec::new() };
        let keep = |key: &[u8]| (key.to_vec(), region.xattr(fd, key).ok());
        if was.is_file() && was.mode & 0o111 != 0 && !matches!(of, Of::Xattr(CAPABILITY)) {
            image.xattrs.extend(Some(keep(CAPABILITY)).filter(|(_, v)| v.is_some()));
        }
        match of {
            Of::Attrs => {}
            Of::Xattr(key) => image.xattrs.push(keep(key)),
            Of::Content(from, to) => {
                let block = COMPARE_BLOCK_BYTES;
                image.content = true;
                image.from = (from - from % block).min(was.size);
                image.to = to.checked_next_multiple_of(block).unwrap_or(u64::MAX).min(was.size).max(image.from);
                image.data = read(fd, image.from, image.to)?;
            }
        }
        Ok(image)
    }

    /// The content was too much to be kept.
    pub fn is_short(&self) -> bool {
        self.data.is_none()
    }

    /// What the journal is to say of putting it back.
    pub fn marks(&self, now: &Stat) -> Vec<Mark> {
        let to = if now.size == self.was.size { self.to } else { u64::MAX };
        let from = self.from.min(now.size);
        let data = Mark::Data { from, to };
        let content = self.content && (from < to || now.size != self.was.size);
        [content.then_some(data), Some(Mark::Attr)].into_iter().flatten().collect()
    }

    /// What puts it back, except that of a short image; `now`: as the object is.
    pub fn steps(&self, now: &Stat) -> Vec<Step<'_>> {
        let mut steps = Vec::new();
        if let (true, Some(data)) = (self.content, &self.data) {
            if now.size != self.was.size {
                steps.push(Step::Size(self.was.size));
            }
            let mut at = self.from;
            for (off, bytes) in data {
                if at < *off {
                    steps.push(Step::Hole(at, off - at));
                }
                let pieces = bytes.chunks(PIECE_BYTES).enumerate();
                steps.extend(pieces.map(|(i, b)| Step::Write(off + (i * PIECE_BYTES) as u64, b)));
                at = off + bytes.len() as u64;
            }
            if at < self.to {
                // To the end of the last block, which may be beyond that of the file.
                steps.push(Step::Hole(at, self.to.next_multiple_of(COMPARE_BLOCK_BYTES) - at));
            }
        }
        let acl = self.xattrs.iter().filter(|(k, _)| k == ACL_ACCESS);
        steps.extend(acl.map(|(k, v)| Step::Xattr(k, v.as_deref())));
        let was = &self.was;
        let owner = was.uid != now.uid || was.gid != now.gid;
        let mode = was.perm() != now.perm() || (was.mode & 0o6000 != 0 && (owner || self.content));
        steps.push(Step::Attrs(
            (mode && !was.is_symlink()).then(|| was.perm()),
            (was.uid != now.uid).then_some(was.uid),
            (was.gid != now.gid).then_some(was.gid),
            (!self.content && was.atime != now.atime).then_some(was.atime),
            was.mtime,
        ));
        let others = self.xattrs.iter().filter(|(k, _)| k != ACL_ACCESS);
        steps.extend(others.map(|(k, v)| Step::Xattr(k, v.as_deref())));
        steps
    }
}

/// The data of a range, without the holes; `None` when it is too much.
fn read(fd: &OwnedFd, from: u64, to: u64) -> Result<Option<Pieces>> {
    let (mut out, mut at, mut sum) = (Vec::new(), from, 0);
    // Mostly there is no hole, and one look is enough.
    let dense = from < to && sys::seek(fd, from, libc::SEEK_HOLE).is_ok_and(|hole| hole.is_none_or(|h| h >= to));
    while at < to {
        let (data, end) = match dense {
            true => (at, to),
            // A filesystem that cannot tell has no holes.
            false => {
                let data = sys::seek(fd, at, libc::SEEK_DATA).unwrap_or(Some(at)).unwrap_or(to).clamp(at, to);
                (data, sys::seek(fd, data, libc::SEEK_HOLE).ok().flatten().unwrap_or(to).clamp(data, to))
            }
        };
        let len = end - data;
        sum += len;
        if sum > IMAGE_BYTES_MAX {
            return Ok(None);
        }
        if len > 0 {
            let mut bytes = vec![0; len as usize];
            let n = sys::pread_full(fd, &mut bytes, data)?;
            bytes.truncate(n);
            out.push((data, bytes));
        }
        at = end.max(at + 1);
    }
    Ok(Some(out))
}

impl Step<'_> {
    /// Does it to the object itself.
    pub fn act(&self, region: &Region, fd: &OwnedFd) -> Result<()> {
        match self {
            Step::Size(size) => Ok(sys::ftruncate(fd, *size)?),
            Step::Hole(off, len) => Ok(sys::fallocate(fd, KEEP_SIZE | PUNCH_HOLE, *off, *len)?),
            Step::Write(off, bytes) => Ok(sys::pwrite_all(fd, bytes, *off).1?),
            Step::Attrs(mode, uid, gid, atime, mtime) => {
                if mode.is_some() || uid.is_some() || gid.is_some() {
                    region.set_attrs(fd, b"", *mode, *uid, *gid)?;
                }
                Ok(sys::utimensat(fd, b"", *atime, Some(*mtime))?)
            }
            Step::Xattr(key, Some(value)) => region.set_xattr(fd, b"", key, value),
            Step::Xattr(key, None) => region.remove_xattr(fd, b"", key),
        }
    }

    /// The entry that does it at the peers, with its data.
    pub fn entry(&self, at: &Target) -> (Op, Vec<u8>) {
        let file = || super::change::file_name(at.clone());
        let none = Vec::new();
        match self {
            Step::Size(size) => (Op::Truncate { at: file(), size: *size, mtime: None }, none),
            Step::Hole(off, len) => {
                let mode = KEEP_SIZE | PUNCH_HOLE;
                (Op::Fallocate { at: file(), mode, off: *off, len: *len, mtime: None }, none)
            }
            Step::Write(off, bytes) => (Op::Write { at: file(), off: *off, mtime: None }, bytes.to_vec()),
            Step::Attrs(mode, uid, gid, atime, mtime) => {
                let (mode, uid, gid, atime, mtime) = (*mode, *uid, *gid, *atime, Some(*mtime));
                (Op::SetAttr { at: at.clone(), mode, uid, gid, atime, mtime }, none)
            }
            Step::Xattr(key, Some(value)) => {
                (Op::SetXattr { at: at.clone(), name: key.to_vec(), value: value.to_vec() }, none)
            }
            Step::Xattr(key, None) => (Op::RemoveXattr { at: at.clone(), name: key.to_vec() }, none),
        }
    }
}
