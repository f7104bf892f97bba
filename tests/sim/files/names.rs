//! Calls on paths.

use super::paths::{Place, own, resolve};
use super::{Kind, file_at, fixed, here, io};
use crate::disk::{At, Attr, Stamp};
use crate::sched::{Res, clock, world};
use std::ffi::c_int;

/// Where a call begins and its path.
#[derive(Clone, Copy)]
pub struct Path<'a>(pub c_int, pub &'a [u8]);

/// What a call answers, or that the kernel is to be asked.
pub type Maybe = Res<Option<i64>>;

fn umask() -> u32 {
    let w = world();
    w.threads[w.current].umask
}

/// An empty path is refused, where the call does not say otherwise.
fn named(p: Path<'_>) -> Res<()> {
    if p.1.is_empty() { Err(libc::ENOENT) } else { Ok(()) }
}

/// open(2), openat(2) and openat2(2).
pub fn open(p: Path<'_>, flags: c_int, mode: u32, beneath: bool) -> Maybe {
    named(p)?;
    // A path that is absolute leads out.
    if beneath && p.1.first() == Some(&b'/') {
        return Err(libc::EXDEV);
    }
    if p.0 == libc::AT_FDCWD
        && let Some(text) = fixed::text_of(p.1)
    {
        return Ok(Some(world().table.add(here(), Kind::Text { text, at: 0 }).into()));
    }
    let Some((m, disk, at, magic)) = own(p.0, p.1)? else {
        let writes = flags & (libc::O_CREAT | libc::O_TRUNC) != 0 || flags & libc::O_ACCMODE != libc::O_RDONLY;
        if writes && p.1 != b"/dev/null" {
            let path = String::from_utf8_lossy(p.1).into_owned();
            world().fail(format!("{path} of the real machine is to be written"));
        }
        return Ok(None);
    };
    let mode = mode & !umask();
    let d = world().disk(m, disk);
    let ofd = match at {
        At::Ofd(o, b"") if magic => d.reopen(o, flags)?,
        _ => d.open(at, flags, mode, beneath)?,
    };
    Ok(Some(world().table.add(here(), Kind::File { of: m, disk, ofd }).into()))
}

/// stat(2) and its like.
pub fn stat(p: Path<'_>, flags: c_int) -> Res<Option<(u64, Attr)>> {
    if p.1.is_empty() {
        if flags & libc::AT_EMPTY_PATH == 0 {
            return Err(libc::ENOENT);
        }
        return if super::is_ours(p.0) { io::fstat(p.0).map(Some) } else { Ok(None) };
    }
    let Some((m, disk, at, magic)) = own(p.0, p.1)? else { return Ok(None) };
    io::stat_at(m, disk, at, magic || flags & libc::AT_SYMLINK_NOFOLLOW == 0).map(Some)
}

/// A call on one path that a disk answers.
fn one(p: Path<'_>, f: impl FnOnce(&mut crate::disk::Disk, At<'_>, bool) -> Res<()>) -> Maybe {
    let Some((m, disk, at, magic)) = own(p.0, p.1)? else {
        let path = String::from_utf8_lossy(p.1).into_owned();
        world().fail(format!("{path} of the real machine is to be changed"));
    };
    f(world().disk(m, disk), at, magic).map(|()| Some(0))
}

pub fn mkdir(p: Path<'_>, mode: u32) -> Maybe {
    named(p)?;
    let mode = mode & !umask();
    one(p, |d, at, _| d.mkdir(at, mode))
}

pub fn mknod(p: Path<'_>, mode: u32, rdev: u64) -> Maybe {
    named(p)?;
    let mode = mode & !(umask() & 0o7777);
    one(p, |d, at, _| d.mknod(at, mode, rdev))
}

pub fn symlink(target: &[u8], p: Path<'_>) -> Maybe {
    named(p)?;
    one(p, |d, at, _| d.symlink(target, at))
}

pub fn unlink(p: Path<'_>, flags: c_int) -> Maybe {
    named(p)?;
    one(p, |d, at, _| if flags & libc::AT_REMOVEDIR == 0 { d.unlink(at) } else { d.rmdir(at) })
}

/// readlink(2): with an empty path, of the descriptor's own object.
pub fn readlink(p: Path<'_>) -> Res<Option<Vec<u8>>> {
    if p.1.is_empty() && p.0 == libc::AT_FDCWD {
        return Err(libc::ENOENT);
    }
    let Some((m, disk, at, magic)) = own(p.0, p.1)? else { return Ok(None) };
    if magic && !p.1.is_empty() {
        world().fail("the name of a descriptor is not simulated".into());
    }
    world().disk(m, disk).readlink(at).map(Some)
}

pub fn chmod(p: Path<'_>, flags: c_int, mode: u32) -> Maybe {
    named(p)?;
    one(p, |d, at, magic| d.chmod(at, magic || flags & libc::AT_SYMLINK_NOFOLLOW == 0, mode))
}

pub fn fchmod(fd: c_int, mode: u32) -> Res<i64> {
    let (m, disk, ofd) = file_at(fd)?;
    let d = world().disk(m, disk);
    if d.flags(ofd) & libc::O_PATH != 0 {
        return Err(libc::EBADF);
    }
    d.chmod(At::Ofd(ofd, b""), true, mode).map(|()| 0)
}

pub fn chown(p: Path<'_>, flags: c_int, uid: u32, gid: u32) -> Maybe {
    if p.1.is_empty() && flags & libc::AT_EMPTY_PATH == 0 {
        return Err(libc::ENOENT);
    }
    let set = |id: u32| (id != u32::MAX).then_some(id);
    one(p, |d, at, magic| d.chown(at, magic || flags & libc::AT_SYMLINK_NOFOLLOW == 0, set(uid), set(gid)))
}

/// utimensat(2); an empty path for the descriptor itself.
pub fn utimens(p: Path<'_>, flags: c_int, times: Option<[libc::timespec; 2]>) -> Maybe {
    let now = clock::real_now();
    let stamp = |t: libc::timespec| match t.tv_nsec {
        libc::UTIME_OMIT => Ok(None),
        libc::UTIME_NOW => Ok(Some(Stamp { sec: now.tv_sec, nsec: now.tv_nsec as u32 })),
        n => u32::try_from(n).map(|nsec| Some(Stamp { sec: t.tv_sec, nsec })).map_err(|_| libc::EINVAL),
    };
    let [a, m] = times.unwrap_or([libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_NOW }; 2]);
    let (a, m) = (stamp(a)?, stamp(m)?);
    one(p, |d, at, magic| d.utimens(at, magic || flags & libc::AT_SYMLINK_NOFOLLOW == 0, a, m))
}

/// Two paths that must be on one disk. `None`: the kernel's, both.
#[allow(clippy::type_complexity, reason = "used twice, at once taken apart")]
fn both<'a>(a: Path<'a>, b: Path<'a>) -> Res<Option<(usize, usize, At<'a>, At<'a>, bool)>> {
    match (own(a.0, a.1)?, own(b.0, b.1)?) {
        (Some((m, d, from, magic)), Some((n, e, to, _))) => {
            if (m, d) == (n, e) {
                Ok(Some((m, d, from, to, magic)))
            } else {
                Err(libc::EXDEV)
            }
        }
        (None, None) => Ok(None),
        _ => Err(libc::EXDEV),
    }
}

pub fn rename(a: Path<'_>, b: Path<'_>, flags: u32) -> Maybe {
    named(a)?;
    named(b)?;
    let Some((m, d, from, to, _)) = both(a, b)? else { return refused() };
    io::persist(m, || world().disk(m, d).rename(from, to, flags).map(|()| 0)).map(Some)
}

pub fn link(a: Path<'_>, b: Path<'_>, flags: c_int) -> Maybe {
    named(b)?;
    if a.1.is_empty() && flags & libc::AT_EMPTY_PATH == 0 {
        return Err(libc::ENOENT);
    }
    let Some((m, d, from, to, magic)) = both(a, b)? else { return refused() };
    // Of a magic link its own object is meant only when it is to be followed.
    let follow = magic || flags & libc::AT_SYMLINK_FOLLOW != 0;
    world().disk(m, d).link(from, follow, to).map(|()| Some(0))
}

fn refused() -> Maybe {
    world().fail("a name of the real machine is to be changed".into())
}

pub fn truncate(p: Path<'_>, size: i64) -> Maybe {
    named(p)?;
    let size = u64::try_from(size).map_err(|_| libc::EINVAL)?;
    one(p, |d, at, _| d.truncate(at, size))
}

/// access(2): there is root only, so what is there may be used.
pub fn access(p: Path<'_>) -> Maybe {
    Ok(stat(p, 0)?.map(|_| 0))
}

/// statfs(2): the disk's numbers and the longest name.
pub fn statfs(fd: c_int) -> Res<crate::disk::Statfs> {
    let (m, disk, _) = file_at(fd)?;
    Ok(world().disk(m, disk).statfs())
}

/// realpath(3): the path without symlinks, `.` and `..`; all of it must be there.
pub fn realpath(path: &[u8]) -> Res<Option<Vec<u8>>> {
    if !matches!(resolve(libc::AT_FDCWD, path)?, Place::Disk { .. }) {
        return Ok(None);
    }
    let mut left: Vec<Vec<u8>> = parts(path);
    let mut out: Vec<Vec<u8>> = Vec::new();
    let mut links = 0;
    while let Some(part) = left.pop() {
        match part.as_slice() {
            b"." => continue,
            b".." => {
                out.pop();
                continue;
            }
            _ => out.push(part),
        }
        // The room of all machines and a machine's own directory are no symlinks.
        if out.len() <= 2 {
            continue;
        }
        let here = join(&out);
        let Some((_, a)) = stat(Path(libc::AT_FDCWD, &here), libc::AT_SYMLINK_NOFOLLOW)? else { return Ok(None) };
        if a.mode & libc::S_IFMT == libc::S_IFLNK {
            links += 1;
            if links > 40 {
                return Err(libc::ELOOP);
            }
            let to = readlink(Path(libc::AT_FDCWD, &here))?.unwrap_or_default();
            out.pop();
            if to.first() == Some(&b'/') {
                out.clear();
            }
            left.extend(parts(&to));
        }
    }
    Ok(Some(join(&out)))
}

/// The components of a path, the last first.
fn parts(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|b| *b == b'/').filter(|p| !p.is_empty()).rev().map(<[u8]>::to_vec).collect()
}

fn join(parts: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::new();
    for p in parts {
        out.push(b'/');
        out.extend_from_slice(p);
    }
    if out.is_empty() { b"/".to_vec() } else { out }
}
