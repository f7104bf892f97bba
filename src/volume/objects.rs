//! The objects known to the kernel: what a node number means, and where the object is now.
//!
//! fuser 0.18 shows a node's number as its `st_ino`, so that the node number is the local inode number (the root: 1),
//! as stable as the filesystem below. An object whose last name is gone keeps a descriptor, so that the number is not
//! given out again while the kernel knows it.
//!
//! Of an exported volume (NFS) nothing is forgotten while it exists: a file handle is a node number and a generation, and
//! comes back long after the kernel forgot the node.

use crate::base::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::base::sync::{Mutex, RwLock};
use crate::base::{DirId, Error, LinkId, Name, Result, random_u64};
use crate::format::op::{Op, RENAME_EXCHANGE, Target};
use crate::pair::change::What;
use crate::store::exec::{Before, Pre};
use crate::store::region::Region;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Node number of the root.
pub const ROOT: u64 = 1;
/// Node numbers for objects whose inode number is taken (after a region was exchanged).
const FIRST_SPARE: u64 = 1 << 62;

/// Where an object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A directory.
    Dir(DirId),
    /// Anything else: one of its names.
    Name(Name),
    /// It has no name any more.
    Gone,
}

/// What new entries of a directory inherit from it.
#[derive(Clone, Copy, Debug)]
pub struct Inherit {
    /// It has a default ACL.
    pub default_acl: bool,
    /// It is setgid: new entries belong to this group.
    pub group: Option<u32>,
}

/// An object known to the kernel.
pub struct Object {
    /// Its node number.
    pub node: u64,
    /// Tells it from others that had or will have its number: of an exported volume, else 0.
    pub generation: u32,
    /// Its type (`S_IFMT` bits).
    pub kind: u32,
    /// Its inode number in the present region.
    pub(super) ino: AtomicU64,
    lookups: AtomicU64,
    place: Mutex<Place>,
    fd: Mutex<Option<Arc<OwnedFd>>>,
    /// Held over a change of content or attributes, from the journal mark to its place in the order.
    pub(super) content: Mutex<()>,
    /// Open handles that may write.
    pub(super) writers: AtomicU64,
    /// A file that was made here and never got `security.capability`, which the kernel asks for at its first write.
    pub(super) plain: AtomicBool,
    /// The last entry that was answered before the sync site had it, and that nobody has waited for since; 0: none.
    pub(super) owed: AtomicU64,
    /// Of a directory, once known; cleared when its mode, group or ACL change.
    pub(super) inherit: Mutex<Option<Inherit>>,
}

impl Object {
    fn new(node: u64, generation: u32, kind: u32, ino: u64, place: Place) -> Object {
        Object {
            node,
            generation,
            kind,
            ino: AtomicU64::new(ino),
            lookups: AtomicU64::new(1),
            place: Mutex::new(place),
            fd: Mutex::new(None),
            content: Mutex::new(()),
            writers: AtomicU64::new(0),
            plain: AtomicBool::new(false),
            owed: AtomicU64::new(0),
            inherit: Mutex::new(None),
        }
    }

    /// Its inode number in the present region.
    pub fn ino(&self) -> u64 {
        self.ino.load(Ordering::Relaxed)
    }

    /// True for a directory.
    pub fn is_dir(&self) -> bool {
        self.kind == libc::S_IFDIR
    }

    /// Where it is now.
    pub fn place(&self) -> Place {
        self.place.lock().clone()
    }

    /// How entries address it now; `None` when it has no name.
    pub fn target(&self) -> Option<Target> {
        match &*self.place.lock() {
            Place::Dir(id) => Some(Target::Dir(*id)),
            Place::Name(n) => Some(Target::File(n.clone())),
            Place::Gone => None,
        }
    }

    /// The id of a directory that exists.
    pub fn dir_id(&self) -> Result<DirId> {
        match &*self.place.lock() {
            Place::Dir(id) => Ok(*id),
            Place::Name(_) => Err(Error::os(libc::ENOTDIR)),
            Place::Gone => Err(Error::os(libc::ENOENT)),
        }
    }

    /// The descriptor it keeps, if it may have lost its name.
    pub fn kept(&self) -> Option<Arc<OwnedFd>> {
        self.fd.lock().clone()
    }

    /// Gives it a descriptor to live on without a name.
    pub fn keep(&self, fd: OwnedFd) {
        self.fd.lock().get_or_insert_with(|| Arc::new(fd));
    }

    /// Takes the descriptor back: the name stayed after all.
    pub fn unkeep(&self) {
        let place = self.place.lock();
        if *place != Place::Gone {
            *self.fd.lock() = None;
        }
    }
}

#[derive(Default)]
struct Maps {
    by_node: HashMap<u64, Arc<Object>>,
    by_ino: HashMap<u64, Arc<Object>>,
    spare: u64,
    /// The generation given out last, of an exported volume.
    lasting: Option<u32>,
}

impl Maps {
    fn remove(&mut self, o: &Arc<Object>) {
        self.by_node.remove(&o.node);
        let ino = o.ino();
        if self.by_ino.get(&ino).is_some_and(|other| Arc::ptr_eq(other, o)) {
            self.by_ino.remove(&ino);
        }
    }

    fn remove_unknown(&mut self, o: &Arc<Object>) {
        if o.lookups.load(Ordering::Relaxed) == 0 {
            self.remove(o);
        }
    }
}

/// The table of known objects.
pub struct Objects {
    maps: RwLock<Maps>,
}

impl Objects {
    /// With the root, whose inode number is given.
    pub fn new(root_ino: u64) -> Objects {
        let root = Arc::new(Object::new(ROOT, 0, libc::S_IFDIR, root_ino, Place::Dir(DirId::ROOT)));
        let mut m = Maps { spare: FIRST_SPARE, ..Maps::default() };
        m.by_node.insert(ROOT, root.clone());
        m.by_ino.insert(root_ino, root);
        Objects { maps: RwLock::new(m) }
    }

    /// From now on nothing is forgotten that has a name.
    pub fn outlast(&self) {
        self.maps.write().lasting.get_or_insert(random_u64() as u32);
    }

    /// True after [`Objects::outlast`].
    pub fn outlasts(&self) -> bool {
        self.maps.read().lasting.is_some()
    }

    /// The object of a node number.
    pub fn get(&self, node: u64) -> Result<Arc<Object>> {
        self.maps.read().by_node.get(&node).cloned().ok_or_else(|| Error::os(libc::ESTALE))
    }

    /// The known object with an inode number.
    pub fn known(&self, ino: u64) -> Option<Arc<Object>> {
        self.maps.read().by_ino.get(&ino).cloned()
    }

    /// The number to show for an inode number in a listing.
    pub fn shown(&self, ino: u64) -> u64 {
        self.maps.read().by_ino.get(&ino).map_or(ino, |o| o.node)
    }

    /// Number of objects known.
    pub fn len(&self) -> usize {
        self.maps.read().by_node.len()
    }

    /// Never: the root is always there.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The object with this inode number, counted once more as known to the kernel; made known at `place` if it is new.
    pub fn enter(&self, ino: u64, kind: u32, place: Place) -> Arc<Object> {
        if let Some(o) = self.maps.read().by_ino.get(&ino).filter(|o| o.kind == kind) {
            o.lookups.fetch_add(1, Ordering::Relaxed);
            return o.clone();
        }
        let mut m = self.maps.write();
        if let Some(o) = m.by_ino.get(&ino).filter(|o| o.kind == kind) {
            o.lookups.fetch_add(1, Ordering::Relaxed);
            return o.clone();
        }
        let node = if ino > ROOT && ino < FIRST_SPARE && !m.by_node.contains_key(&ino) {
            ino
        } else {
            m.spare += 1;
            m.spare
        };
        let generation = m.lasting.as_mut().map_or(0, |g| {
            *g = g.wrapping_add(1);
            *g
        });
        let o = Arc::new(Object::new(node, generation, kind, ino, place));
        m.by_node.insert(node, o.clone());
        m.by_ino.insert(ino, o.clone());
        o
    }

    /// The kernel forgets a node `n` times.
    pub fn forget(&self, node: u64, n: u64) {
        if node == ROOT {
            return;
        }
        let mut m = self.maps.write();
        let Some(o) = m.by_node.get(&node).cloned() else { return };
        let left = o.lookups.load(Ordering::Relaxed).saturating_sub(n);
        o.lookups.store(left, Ordering::Relaxed);
        if left > 0 {
            return;
        }
        if m.lasting.is_none() {
            return m.remove(&o);
        }
        drop(m);
        let place = o.place.lock();
        if *place == Place::Gone {
            self.maps.write().remove_unknown(&o);
        }
    }

    /// Follows an operation on names; runs inside the order, after the tables of the region were brought up to date.
    pub fn follow(&self, region: &Region, op: &Op, pre: &Pre) {
        match op {
            Op::Unlink { at, .. } | Op::Rmdir { at, .. } => self.name_gone(region, at, pre.first),
            Op::Rename { from, to, flags, .. } => {
                self.name_moved(from, to, pre.first);
                if flags & RENAME_EXCHANGE != 0 {
                    self.name_moved(to, from, pre.second);
                } else {
                    self.name_gone(region, to, pre.second);
                }
            }
            _ => {}
        }
    }

    fn name_moved(&self, from: &Name, to: &Name, who: Option<Before>) {
        let Some(o) = who.and_then(|b| self.known(b.ino)) else { return };
        let mut place = o.place.lock();
        if matches!(&*place, Place::Name(n) if n == from) {
            *place = Place::Name(to.clone());
        }
    }

    fn name_gone(&self, region: &Region, at: &Name, who: Option<Before>) {
        let Some(b) = who else { return };
        let Some(o) = self.known(b.ino) else { return };
        let mut place = o.place.lock();
        match (&*place, b.what) {
            (Place::Dir(_), _) => *place = Place::Gone,
            (Place::Name(_), _) if b.nlink <= 1 => *place = Place::Gone,
            (Place::Name(n), What::Linked(lid)) if n == at => *place = other_name(region, lid, at),
            (Place::Name(n), _) if n == at => *place = Place::Gone,
            _ => {}
        }
        if *place == Place::Gone {
            let mut m = self.maps.write();
            m.by_ino.remove(&b.ino);
            m.remove_unknown(&o);
        }
    }

    /// After another region took over: finds every object's inode there, by its name.
    pub fn rekey(&self, region: &Region) {
        let mut m = self.maps.write();
        m.by_ino.clear();
        let all: Vec<Arc<Object>> = m.by_node.values().cloned().collect();
        for o in all {
            let st = match o.place() {
                Place::Dir(id) => region.dirfd(id).and_then(|fd| Ok(crate::os::sys::fstat(&*fd)?)).ok(),
                Place::Name(n) => region.look(&n).ok().flatten().map(|(st, _)| st),
                Place::Gone => continue,
            };
            match st.map(|st| region.shown(st)).filter(|st| st.mode & libc::S_IFMT == o.kind) {
                Some(st) => {
                    o.ino.store(st.ino, Ordering::Relaxed);
                    m.by_ino.insert(st.ino, o);
                }
                None => log::error!("node {} is not in the region that took over", o.node),
            }
        }
    }
}

/// Another name of a file with several links.
fn other_name(region: &Region, lid: LinkId, but: &Name) -> Place {
    let ids = region.ids.read();
    match ids.names_of(lid).iter().find(|n| *n != but) {
        Some(n) => Place::Name(n.clone()),
        None => Place::Gone,
    }
}
