//! From a path to an object, as the kernel walks it.

use super::inode::{Id, ROOT};
use super::{At, Disk, Res};

/// Bytes of a name and of a path, at most.
pub const NAME_MAX: usize = 255;
pub const PATH_MAX: usize = 4096;
/// Symlinks on the way, at most.
const LINKS_MAX: u32 = 40;

/// What the last part of a path is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Last<'a> {
    Name(&'a [u8]),
    Dot,
    DotDot,
    /// The path had no part at all.
    Root,
}

/// Whether a symlink at the end of a path is followed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Follow {
    /// Not even with a slash behind it, where the call is about the name.
    Never,
    /// Only with a slash behind it.
    Slash,
    Always,
    /// As `Always`, but the walk ends at a name with a slash behind it: no file can be made there (O_CREAT).
    Make,
}

impl Follow {
    /// For calls that have AT_SYMLINK_NOFOLLOW or the like.
    pub fn when(follow: bool) -> Follow {
        if follow { Follow::Always } else { Follow::Slash }
    }
}

/// The end of a walk.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    /// The directory of the last part.
    pub dir: Id,
    pub last: Last<'a>,
    /// What is there.
    pub id: Option<Id>,
    /// A slash follows the last part.
    pub slash: bool,
}

impl Found<'_> {
    /// What is there; ENAMETOOLONG, ENOENT.
    pub fn there(&self) -> Res<Id> {
        match self.last {
            Last::Name(name) if name.len() > NAME_MAX => Err(libc::ENAMETOOLONG),
            _ => self.id.ok_or(libc::ENOENT),
        }
    }
}

struct Walk {
    links: u32,
    /// The directory that the walk must not leave (RESOLVE_BENEATH).
    floor: Option<Id>,
}

impl Disk {
    /// The object and the rest of the path at which a walk begins.
    fn start<'a>(&self, at: At<'a>) -> Res<(Id, &'a [u8])> {
        match at {
            At::Root(path) => Ok((ROOT, path)),
            At::Ofd(o, path) => Ok((self.opens.get(o)?.id, path)),
        }
    }

    /// Walks a path to its last part.
    pub(super) fn walk<'a>(&'a self, at: At<'a>, follow: Follow, beneath: bool) -> Res<Found<'a>> {
        let (start, path) = self.start(at)?;
        if path.len() >= PATH_MAX {
            return Err(libc::ENAMETOOLONG);
        }
        if beneath && path.starts_with(b"/") {
            return Err(libc::EXDEV);
        }
        if path.is_empty() {
            return Ok(Found { dir: start, last: Last::Root, id: Some(start), slash: false });
        }
        self.walk_on(start, path, follow, &mut Walk { links: 0, floor: beneath.then_some(start) })
    }

    fn walk_on<'a>(&'a self, start: Id, path: &'a [u8], follow: Follow, w: &mut Walk) -> Res<Found<'a>> {
        let mut dir = start;
        let mut rest = trim(path);
        if rest.is_empty() {
            return Ok(Found { dir, last: Last::Root, id: Some(dir), slash: true });
        }
        loop {
            let len = rest.iter().position(|b| *b == b'/').unwrap_or(rest.len());
            let (part, after) = rest.split_at(len);
            let (slash, after) = (!after.is_empty(), trim(after));
            let Some(names) = &self.table.live(dir).dir else { return Err(libc::ENOTDIR) };
            let end = after.is_empty();
            let (last, id) = match part {
                b"." => (Last::Dot, Some(dir)),
                b".." => (Last::DotDot, Some(self.parent(dir, names.parent, w)?)),
                // Calls about a name look at other things before they look it up, and at its length only then.
                name if name.len() > NAME_MAX && end => (Last::Name(name), None),
                name if name.len() > NAME_MAX => return Err(libc::ENAMETOOLONG),
                name => (Last::Name(name), names.get(name)),
            };
            let through = match follow {
                Follow::Always => true,
                Follow::Slash => !end || slash,
                Follow::Make => !end || !slash,
                Follow::Never => !end,
            };
            let link = id.filter(|id| through && self.is_symlink(*id));
            let found = match link {
                Some(id) => {
                    let last = end && follow == Follow::Make;
                    let f = self.walk_link(dir, id, if last { follow } else { Follow::Always }, w)?;
                    Found { slash: f.slash || slash, ..f }
                }
                None => Found { dir, last, id, slash },
            };
            if end {
                return Ok(found);
            }
            dir = found.there()?;
            rest = after;
        }
    }

    fn walk_link<'a>(&'a self, dir: Id, link: Id, follow: Follow, w: &mut Walk) -> Res<Found<'a>> {
        w.links += 1;
        if w.links > LINKS_MAX {
            return Err(libc::ELOOP);
        }
        let target = &*self.table.get(link).target;
        if !target.starts_with(b"/") {
            return self.walk_on(dir, target, follow, w);
        }
        if w.floor.is_some() {
            return Err(libc::EXDEV);
        }
        let mount = self.mount.strip_suffix(b"/").unwrap_or(&self.mount);
        let rest = target.strip_prefix(mount).filter(|r| r.is_empty() || r.starts_with(b"/")).ok_or(libc::ENOENT)?;
        self.walk_on(ROOT, rest, follow, w)
    }

    fn parent(&self, dir: Id, parent: Id, w: &Walk) -> Res<Id> {
        if w.floor == Some(dir) { Err(libc::EXDEV) } else { Ok(parent) }
    }

    pub(super) fn is_symlink(&self, id: Id) -> bool {
        self.table.live(id).meta.kind() == libc::S_IFLNK
    }

    /// The object at a path, which must be there.
    pub(super) fn find(&self, at: At, follow: bool) -> Res<Id> {
        self.find_beneath(at, Follow::when(follow), false)
    }

    pub(super) fn find_beneath(&self, at: At, follow: Follow, beneath: bool) -> Res<Id> {
        if let At::Ofd(o, b"") = at {
            return Ok(self.opens.get(o)?.id);
        }
        let f = self.walk(at, follow, beneath)?;
        let id = f.there()?;
        if f.slash && !self.is_dir(id) {
            return Err(libc::ENOTDIR);
        }
        Ok(id)
    }

    /// The path of an object from the root of the disk, by the name that it got last; for logs and the choice of faults.
    pub(super) fn path_of(&self, id: Id) -> Vec<u8> {
        let mut parts = Vec::new();
        let mut at = id;
        while let Some((dir, name)) = self.table.find(at).and_then(|i| i.live.as_ref()).and_then(|s| s.home.as_ref()) {
            parts.push(name);
            at = *dir;
        }
        let mut path = Vec::new();
        for name in parts.iter().rev() {
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name);
        }
        path
    }
}

fn trim(path: &[u8]) -> &[u8] {
    let slashes = path.iter().take_while(|b| **b == b'/').count();
    &path[slashes..]
}
