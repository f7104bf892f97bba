//! Where a path leads: to the disk of a machine, or to the kernel.

use super::{Kind, fixed, here, open_at};
use crate::disk::At;
use crate::sched::{HOST, MachineId, Res, world};
use std::ffi::c_int;

/// Where a path leads.
#[derive(Clone, Copy, Debug)]
pub enum Place<'a> {
    Disk {
        machine: MachineId,
        disk: usize,
        at: At<'a>,
        /// It ends in `/proc/self/fd/N`: the open object, however symlinks are to be treated.
        magic: bool,
    },
    Kernel,
}

/// The path without the slashes that it begins with.
fn rest(mut p: &[u8]) -> &[u8] {
    while let Some((b'/', r)) = p.split_first() {
        p = r;
    }
    p
}

/// The first component of a path, and what follows.
fn first(p: &[u8]) -> (&[u8], &[u8]) {
    let n = p.iter().position(|b| *b == b'/').unwrap_or(p.len());
    p.split_at(n)
}

/// What follows `prefix` in a path, if it begins with those components.
fn below<'a>(path: &'a [u8], prefix: &[u8]) -> Option<&'a [u8]> {
    let r = path.strip_prefix(prefix)?;
    (r.is_empty() || prefix.is_empty() || r.first() == Some(&b'/')).then(|| rest(r))
}

/// Finds where a path leads, which begins at a descriptor or [`libc::AT_FDCWD`].
pub fn resolve(fd: c_int, path: &[u8]) -> Res<Place<'_>> {
    if path.first() != Some(&b'/') {
        if !super::is_ours(fd) {
            return Ok(Place::Kernel);
        }
        let o = open_at(fd)?;
        return match o.kind {
            Kind::File { of, disk, ofd } => {
                Ok(Place::Disk { machine: of, disk, at: At::Ofd(ofd, path), magic: path.is_empty() })
            }
            _ => Err(libc::ENOTDIR),
        };
    }
    if let Some(p) = below(path, b"/sim") {
        return on_a_disk(p);
    }
    if let Some(p) = below(path, b"/proc/self/fd") {
        let (number, after) = first(p);
        let n = std::str::from_utf8(number).ok().and_then(|n| n.parse::<c_int>().ok());
        if let Some(n) = n.filter(|n| super::is_ours(*n)) {
            let o = open_at(n).map_err(|_| libc::ENOENT)?;
            let Kind::File { of, disk, ofd } = o.kind else { return Err(libc::ENXIO) };
            let at = At::Ofd(ofd, rest(after));
            return Ok(Place::Disk { machine: of, disk, at, magic: rest(after).is_empty() });
        }
    }
    if fixed::is_of_a_process(path) {
        return Err(libc::ENOENT);
    }
    Ok(Place::Kernel)
}

fn on_a_disk(path: &[u8]) -> Res<Place<'_>> {
    let (name, after) = first(path);
    let after = rest(after);
    let w = world();
    let found = w.machines.iter().position(|m| m.name.as_bytes() == name && m.drives.iter().len() > 0);
    let machine = found.ok_or(libc::ENOENT)?;
    let drives = &w.machines[machine].drives;
    let here = |i: usize| below(after, &drives[i].prefix).map(|p| (drives[i].prefix.len(), i, p));
    let (_, disk, p) = (0..drives.len()).filter_map(here).max_by_key(|f| f.0).ok_or(libc::ENOENT)?;
    Ok(Place::Disk { machine, disk, at: At::Root(p), magic: false })
}

/// As [`resolve`], for what is to be changed or read: a machine has only its own disks. `None`: it is the kernel's.
pub fn own(fd: c_int, path: &[u8]) -> Res<Option<(MachineId, usize, At<'_>, bool)>> {
    match resolve(fd, path)? {
        Place::Kernel => Ok(None),
        Place::Disk { machine, disk, at, magic } => {
            let me = here();
            if machine != me && me != HOST {
                let p = String::from_utf8_lossy(path).into_owned();
                world().fail(format!("machine {me} uses {p} of another machine"));
            }
            Ok(Some((machine, disk, at, magic)))
        }
    }
}
