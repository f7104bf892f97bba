//! Open files and directories.

use super::Volume;
use super::objects::Object;
use crate::base::sync::atomic::{AtomicU64, Ordering};
use crate::base::sync::{Mutex, RwLock};
use crate::base::{Error, Result};
use crate::os::sys::{Dirent, Stat};
use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Handles by number.
pub struct Handles<T> {
    map: RwLock<HashMap<u64, Arc<T>>>,
    next: AtomicU64,
}

impl<T> Handles<T> {
    /// None yet.
    pub fn new() -> Handles<T> {
        Handles { map: RwLock::new(HashMap::new()), next: AtomicU64::new(1) }
    }
    /// Adds one and gives its number.
    pub fn add(&self, t: T) -> u64 {
        let fh = self.next.fetch_add(1, Ordering::Relaxed);
        self.map.write().insert(fh, Arc::new(t));
        fh
    }
    /// The handle of a number.
    pub fn get(&self, fh: u64) -> Result<Arc<T>> {
        self.map.read().get(&fh).cloned().ok_or_else(|| Error::os(libc::EBADF))
    }
    /// Closes it.
    pub fn remove(&self, fh: u64) {
        // The last descriptor is closed outside of the lock.
        let gone = self.map.write().remove(&fh);
        drop(gone);
    }
    /// How many are open.
    pub fn len(&self) -> usize {
        self.map.read().len()
    }
}

/// What open answers.
#[derive(Clone, Copy, Debug)]
pub struct Opened {
    /// Number of the handle.
    pub fh: u64,
    /// The node as it is after a create.
    pub node: Option<super::Node>,
}

/// An open file.
pub struct OpenFile {
    /// What it is.
    pub obj: Arc<Object>,
    /// open(2) flags for opening it again: access mode only.
    pub flags: i32,
    fd: RwLock<(u64, Arc<OwnedFd>)>,
}

impl OpenFile {
    /// Over a descriptor that belongs to a generation of regions.
    pub fn new(obj: Arc<Object>, flags: i32, generation: u64, fd: OwnedFd) -> OpenFile {
        let f = OpenFile { obj, flags, fd: RwLock::new((generation, Arc::new(fd))) };
        if f.writable() {
            f.obj.writers.fetch_add(1, Ordering::Relaxed);
        }
        f
    }

    /// True when it was opened for writing.
    pub fn writable(&self) -> bool {
        self.flags & libc::O_ACCMODE != libc::O_RDONLY
    }

    /// The descriptor; opened again by name when another region took over since.
    pub fn fd(&self, v: &Volume) -> Result<Arc<OwnedFd>> {
        let now = v.order.generation();
        {
            let g = self.fd.read();
            if g.0 == now {
                return Ok(g.1.clone());
            }
        }
        let _ = v.region();
        let mut g = self.fd.write();
        if g.0 != now {
            if self.obj.target().is_some() {
                g.1 = Arc::new(v.open_object(&self.obj, self.flags)?);
            }
            g.0 = now;
        }
        Ok(g.1.clone())
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        if self.writable() {
            self.obj.writers.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// An open directory: a descriptor of its own, read ahead of what the kernel asked for.
pub struct DirHandle {
    /// What it is.
    pub obj: Arc<Object>,
    /// Position and what was read.
    pub state: Mutex<DirState>,
}

/// Position of an open directory.
pub struct DirState {
    /// The generation of regions that `fd` belongs to.
    pub generation: u64,
    /// The directory, open for reading.
    pub fd: Arc<OwnedFd>,
    /// The cookie at which `ahead` begins.
    pub next: u64,
    /// Read and not yet asked for.
    pub ahead: VecDeque<Dirent>,
    /// Buffer for getdents.
    pub buf: Vec<u8>,
}

/// Stat and node.
impl super::Node {
    /// From an object and its stat.
    pub fn of(obj: &Object, stat: Stat) -> super::Node {
        super::Node { node: obj.node, generation: obj.generation, stat }
    }
}
