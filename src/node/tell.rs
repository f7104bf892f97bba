//! What a receiver tells about its tree: states of objects, hashes of blocks, listings.

use crate::base::{DirId, LinkId, Name, Result, VolId, limits};
use crate::format::msg::{Ask, BlockHash, Have, Listed, Told};
use crate::format::op::Target;
use crate::os::sys::{self, Stat};
use crate::store::region::Region;
use crate::store::replica::Replica;
use std::os::fd::OwnedFd;

/// Blocks hashed for one question at most, count (bounds the answer, G10).
const BLOCKS_MAX: u64 = 128 << 10;

/// The hash of a block.
pub fn hash(block: &[u8]) -> [u8; 16] {
    let h = blake3::hash(block);
    let mut out = [0u8; 16];
    out.copy_from_slice(&h.as_bytes()[..16]);
    out
}

/// Reads `from..to` (both block-aligned, or `to` the end of the file) and says what each block is. Blocks in holes are
/// `None`. The bytes read are left in `buf` (zeros in holes).
pub fn blocks(fd: &OwnedFd, from: u64, to: u64, buf: &mut Vec<u8>) -> Result<Vec<BlockHash>> {
    const B: u64 = limits::COMPARE_BLOCK_BYTES;
    buf.clear();
    buf.resize((to - from) as usize, 0);
    let mut out = vec![None; (to - from).div_ceil(B) as usize];
    let mut at = from;
    while at < to {
        let Some(data) = sys::seek(fd, at, libc::SEEK_DATA)?.filter(|d| *d < to) else { break };
        let start = data / B * B;
        let end = sys::seek(fd, data, libc::SEEK_HOLE)?.unwrap_or(to).div_ceil(B).saturating_mul(B).min(to);
        let (a, b) = ((start.max(from) - from) as usize, (end - from) as usize);
        let Some(part) = buf.get_mut(a..b) else { break };
        let n = sys::pread_full(fd, part, start.max(from))?;
        for (i, chunk) in part.get(..n).unwrap_or(&[]).chunks(B as usize).enumerate() {
            let off = start.max(from) + i as u64 * B;
            if let Some(o) = out.get_mut(a / B as usize + i) {
                *o = if chunk.iter().all(|b| *b == 0) && is_unwritten(fd, off)? { None } else { Some(hash(chunk)) };
            }
        }
        at = end;
    }
    Ok(out)
}

/// True for a block of zeros that only looks like data because it was read: a preallocated block counts as a hole, until
/// a page of it is in the cache.
fn is_unwritten(fd: &OwnedFd, off: u64) -> Result<bool> {
    sys::forget_pages(fd, off, limits::COMPARE_BLOCK_BYTES);
    Ok(sys::seek(fd, off, libc::SEEK_DATA)?.is_none_or(|d| d >= off + limits::COMPARE_BLOCK_BYTES))
}

/// The state of an object whose stat is known, with what is kept beside it.
pub fn have(region: &Region, at: &Target, st: &Stat, xattrs: bool) -> Result<Have> {
    let (dir, name) = region.reach(at)?;
    let lid = match at {
        Target::File(n) => region.ids.read().link_of(n),
        Target::Dir(_) => None,
    };
    let mut h = plain(region, st, lid);
    if h.mode & libc::S_IFMT == libc::S_IFLNK {
        h.target = sys::readlinkat(&*dir, name)?;
    }
    if xattrs {
        h.xattrs = region.xattrs(&dir, name)?;
    }
    Ok(h)
}

/// The same without what is to be read of the object.
pub fn plain(region: &Region, st: &Stat, lid: Option<LinkId>) -> Have {
    let st = &region.wanted(*st);
    Have {
        mode: st.mode,
        uid: st.uid,
        gid: st.gid,
        size: if st.is_file() { st.size } else { 0 },
        mtime: st.mtime,
        rdev: st.rdev,
        target: Vec::new(),
        dir: if st.is_dir() { region.dir_by_ino(st.ino) } else { None },
        lid,
        ino: st.ino,
        nlink: st.nlink,
        xattrs: Vec::new(),
    }
}

/// The object is not there; or a file is where a directory on the way was (after a power cut).
pub fn is_gone(e: &crate::base::Error) -> bool {
    matches!(e.errno, libc::ENOENT | libc::ENOTDIR)
}

/// Answers one question.
pub fn tell(replica: &Replica, ask: &Ask) -> Result<Told> {
    let region = replica.region(ask.vol)?;
    let st = match region
        .reach(&ask.at)
        .and_then(|(d, n)| Ok(if n.is_empty() { sys::fstat(&*d)? } else { sys::statat(&*d, n)? }))
    {
        Ok(st) => region.wanted(st),
        Err(e) if is_gone(&e) => return Ok(Told { have: None, blocks: Vec::new() }),
        Err(e) => return Err(e),
    };
    let mut told = Told { have: Some(have(region, &ask.at, &st, true)?), blocks: Vec::new() };
    if let (true, Target::File(n), false) = (st.is_file(), &ask.at, ask.ranges.is_empty()) {
        let fd = region.open_file(n, libc::O_RDONLY)?;
        let (mut buf, mut left) = (Vec::new(), BLOCKS_MAX);
        for (from, to) in &ask.ranges {
            let from = from / limits::COMPARE_BLOCK_BYTES * limits::COMPARE_BLOCK_BYTES;
            let to = (*to).min(st.size);
            let mut all = Vec::new();
            let mut at = from;
            while at < to && left > 0 {
                let end = to.min(at + (1 << 20));
                let b = blocks(&fd, at, end, &mut buf)?;
                left = left.saturating_sub(b.len() as u64);
                all.extend(b);
                at = end;
            }
            told.blocks.push(all);
        }
    }
    Ok(told)
}

/// Lists a directory, `None` when there is none with this id.
pub fn list(replica: &Replica, vol: VolId, dir: DirId) -> Result<Option<Vec<Listed>>> {
    let region = replica.region(vol)?;
    let Some(names) = names(region, dir)? else { return Ok(None) };
    let fd = region.dirfd(dir)?;
    let mut out = Vec::new();
    for name in names {
        let Ok(st) = sys::statat(&*fd, &name) else { continue };
        let at = Name::new(dir, name.clone());
        let target = Target::File(at);
        out.push(Listed { name, have: have(region, &target, &st, false)? });
    }
    Ok(Some(out))
}

/// The names in a directory, without `.` and `..`; `None` when there is none with this id.
pub fn names(region: &Region, dir: DirId) -> Result<Option<Vec<Vec<u8>>>> {
    let fd = match region.dirfd(dir) {
        Ok(fd) => fd,
        Err(e) if is_gone(&e) => return Ok(None),
        Err(e) => return Err(e),
    };
    let Ok(open) = sys::openat(&*fd, b".", libc::O_RDONLY | libc::O_DIRECTORY, 0) else { return Ok(None) };
    let (mut buf, mut list) = (vec![0u8; 64 << 10], Vec::new());
    loop {
        match sys::getdents(&open, &mut buf, &mut list) {
            Ok(true) => {}
            Ok(false) => break,
            // Removed while it is open.
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
            Err(e) => return Err(e.into()),
        }
    }
    Ok(Some(list.into_iter().map(|d| d.name).filter(|n| n != b"." && n != b"..").collect()))
}
