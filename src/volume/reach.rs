//! From a node number to the object in the tree: by the descriptor it keeps, else by its present name.
//!
//! A name is looked up without a lock and the inode number checked. Only when that fails the operations on names that
//! are under way are waited for, and it is tried once more.

use super::Volume;
use super::objects::{Inherit, Object, Place};
use crate::base::sync::atomic::Ordering;
use crate::base::{DirId, Error, Name, Result};
use crate::os::sys::{self, Stat};
use crate::store::region::Region;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// A directory that entries are looked up, made or removed in.
pub(super) struct Dir {
    pub obj: Arc<Object>,
    pub id: DirId,
    pub region: Arc<Region>,
    pub generation: u64,
    pub fd: Arc<OwnedFd>,
}

fn stale() -> Error {
    Error::os(libc::ESTALE)
}

impl Volume {
    /// Tries without, then with all operations on names held off.
    fn settled<T>(&self, f: impl Fn(&Region) -> Result<T>) -> Result<T> {
        let region = self.region();
        f(&region).or_else(|_| {
            let _quiet = self.names.write();
            f(&region)
        })
    }

    /// The object's stat, as it is shown.
    pub(super) fn stat_object(&self, obj: &Object) -> Result<Stat> {
        self.settled(|region| {
            if let Some(fd) = obj.kept() {
                return Ok(region.shown(sys::fstat(&*fd)?));
            }
            match obj.place() {
                Place::Dir(id) => Ok(region.shown(sys::fstat(&*region.dirfd(id)?)?)),
                Place::Name(n) => {
                    let st = sys::statat(&*region.dirfd(n.dir)?, &n.name)?;
                    if st.ino == obj.ino() { Ok(region.shown(st)) } else { Err(stale()) }
                }
                Place::Gone => Err(stale()),
            }
        })
    }

    /// An O_PATH descriptor of the object.
    pub(super) fn path_fd(&self, obj: &Object) -> Result<Arc<OwnedFd>> {
        self.settled(|region| {
            if let Some(fd) = obj.kept() {
                return Ok(fd);
            }
            match obj.place() {
                Place::Dir(id) => region.dirfd(id),
                Place::Name(n) => open_checked(region, &n, obj.ino(), libc::O_PATH).map(Arc::new),
                Place::Gone => Err(stale()),
            }
        })
    }

    /// Opens a regular file or directory.
    pub(super) fn open_object(&self, obj: &Object, flags: i32) -> Result<OwnedFd> {
        let r = self.settled(|region| {
            if let Some(fd) = obj.kept() {
                return Ok(sys::reopen(&*fd, flags)?);
            }
            match obj.place() {
                Place::Dir(id) => Ok(sys::openat(&*region.dirfd(id)?, b".", flags, 0)?),
                Place::Name(n) => open_checked(region, &n, obj.ino(), flags),
                Place::Gone => Err(stale()),
            }
        });
        match r {
            // An ordinary user's node may own files whose mode keeps it out, which the kernel decided this open may have
            // (a write-only file is opened for reading too, for the page cache).
            Err(e) if e.errno == libc::EACCES => self.region().lend(&*self.path_fd(obj)?, flags),
            r => r,
        }
    }

    /// The descriptor of a directory by node.
    pub(super) fn dir(&self, node: u64) -> Result<Dir> {
        let obj = self.objects.get(node)?;
        let id = obj.dir_id()?;
        let (generation, region) = self.leg();
        let fd = region.dirfd(id).or_else(|_| {
            let _quiet = self.names.write();
            region.dirfd(id)
        })?;
        Ok(Dir { obj, id, region, generation, fd })
    }

    /// What new entries of a directory inherit. The kernel holds the directory's lock over both its changes and ours.
    pub(super) fn inherit(&self, obj: &Object, fd: &OwnedFd) -> Result<Inherit> {
        let mut known = obj.inherit.lock();
        if let Some(i) = *known {
            return Ok(i);
        }
        let st = sys::fstat(fd)?;
        let i = Inherit {
            default_acl: sys::getxattr(fd, b"", b"system.posix_acl_default").is_ok(),
            group: (st.mode & libc::S_ISGID != 0).then_some(st.gid),
        };
        *known = Some(i);
        Ok(i)
    }

    /// Makes an object found at a name known to the kernel once more.
    pub(super) fn enter(&self, region: &Region, at: &Name, st: Stat) -> Result<super::Node> {
        let st = region.shown(st);
        let place = match st.is_dir() {
            false => Place::Name(at.clone()),
            true => match region.dir_by_ino(st.ino) {
                Some(id) => Place::Dir(id),
                None if self.objects.known(st.ino).is_some_and(|o| o.node == super::objects::ROOT) => {
                    Place::Dir(DirId::ROOT)
                }
                None => {
                    return Err(Error::corrupt(format!(
                        "directory {:?} has no id: made behind kagami's back? Run `kagami verify`",
                        region.path_of(at)
                    )));
                }
            },
        };
        Ok(super::Node::of(&self.objects.enter(st.ino, st.mode & libc::S_IFMT, place), st))
    }

    /// As [`Volume::enter`] for what was found or made in the region of `generation`, which another one may have taken over
    /// from since: there it has another inode number.
    pub(super) fn enter_found(
        &self,
        (generation, region): (u64, &Region),
        at: &Name,
        st: Option<Stat>,
    ) -> Result<super::Node> {
        {
            let _under_way = self.names.read();
            if self.generation.load(Ordering::Acquire) == generation {
                let st = match st {
                    Some(st) => st,
                    None => sys::statat(&*region.dirfd(at.dir)?, &at.name)?,
                };
                return self.enter(region, at, st);
            }
        }
        let now = self.region();
        let st = sys::statat(&*now.dirfd(at.dir)?, &at.name)?;
        self.enter(&now, at, st)
    }

    /// An object by its node number alone: what a file handle refers to. Counts it as known to the kernel once more.
    pub(super) fn itself(&self, node: u64) -> Result<super::Node> {
        let obj = self.objects.get(node)?;
        let st = self.stat_object(&obj)?;
        let place = obj.place();
        match place {
            Place::Gone => Err(stale()),
            _ => Ok(super::Node::of(&self.objects.enter(obj.ino(), obj.kind, place), st)),
        }
    }

    /// The directory above a directory. Counts it as known to the kernel once more.
    pub(super) fn above(&self, node: u64) -> Result<super::Node> {
        let id = self.objects.get(node)?.dir_id()?;
        let (fd, parent) = self.settled(|region| {
            let parent = match id {
                DirId::ROOT => id,
                _ => region.ids.read().dir(id).map(|d| d.parent).ok_or_else(stale)?,
            };
            Ok((region.dirfd(parent)?, parent))
        })?;
        let st = sys::fstat(&*fd)?;
        self.enter(&self.region(), &Name::new(parent, b"."), st)
    }

    /// Before a name may go: if the kernel knows the object and this is its last name, it gets a descriptor to live on.
    pub(super) fn keep_alive(&self, region: &Region, dir: &OwnedFd, at: &Name) -> Option<Arc<Object>> {
        let fd = sys::openat(dir, &at.name, libc::O_PATH, 0).ok()?;
        let st = sys::fstat(&fd).ok()?;
        let obj = self.objects.known(st.ino)?;
        if !st.is_dir() && st.nlink > 1 && region.link_names(at).is_some_and(|(_, names)| names.len() > 1) {
            return None;
        }
        obj.keep(fd);
        Some(obj)
    }
}

/// Opens what is at a name, if it is the inode expected.
fn open_checked(region: &Region, at: &Name, ino: u64, flags: i32) -> Result<OwnedFd> {
    let dir = region.dirfd(at.dir)?;
    let fd = sys::openat(&*dir, &at.name, flags | libc::O_NONBLOCK | libc::O_NOCTTY, 0)?;
    if sys::fstat(&fd)?.ino == ino { Ok(fd) } else { Err(stale()) }
}
