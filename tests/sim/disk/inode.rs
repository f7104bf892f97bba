//! What an object is: its state as calls see it and its state on the platter, its attributes, and the table of all of them.

use super::data::Data;
use super::{Ino, Stamp};
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Index of an object in the table; never used twice, unlike its inode number.
pub type Id = usize;
/// A name, shared by the directories of both sides and the log.
pub type Name = Arc<[u8]>;
/// Extended attributes by name.
pub type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// The root directory.
pub const ROOT: Id = 0;
/// Its inode number, as on ext4.
const ROOT_NUMBER: Ino = 2;
/// The first number of anything else.
const FIRST_NUMBER: Ino = 12;

/// The attributes that a journal keeps; the size is part of the content.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Meta {
    /// Type and permission bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u64,
    pub nlink: u64,
    pub atime: Stamp,
    pub mtime: Stamp,
    pub ctime: Stamp,
    pub btime: Stamp,
    pub xattrs: Option<Arc<Xattrs>>,
}

impl Meta {
    /// The `S_IF*` bits.
    pub fn kind(&self) -> u32 {
        self.mode & libc::S_IFMT
    }
}

/// The names in a directory, also in the order of their cookies.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Dir {
    /// What `..` is.
    pub parent: Id,
    pub names: BTreeMap<Name, (Id, i64)>,
    pub order: BTreeMap<i64, Name>,
}

/// The first cookie of a name; 0 is `.` and 1 is `..`.
pub const FIRST_COOKIE: i64 = 2;

impl Dir {
    /// Adds or replaces a name. Its cookie comes from its bytes, so that a listing has an order of its own, as on ext4,
    /// and a name that leaves and returns is met at the same place.
    pub fn enter(&mut self, name: &Name, id: Id) {
        if let Some(there) = self.names.get_mut(&**name) {
            there.0 = id;
            return;
        }
        let mut cookie = cookie_of(name);
        while self.order.contains_key(&cookie) {
            cookie += 1;
        }
        self.order.insert(cookie, name.clone());
        self.names.insert(name.clone(), (id, cookie));
    }

    /// Removes a name.
    pub fn leave(&mut self, name: &Name) {
        if let Some((_, cookie)) = self.names.remove(&**name) {
            self.order.remove(&cookie);
        }
    }

    /// The object of a name.
    pub fn get(&self, name: &[u8]) -> Option<Id> {
        self.names.get(name).map(|(id, _)| *id)
    }
}

/// FNV-1a folded to 62 bits, so that a few more fit behind it.
fn cookie_of(name: &[u8]) -> i64 {
    let h = name.iter().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3));
    ((h ^ (h >> 29)) >> 2).max(FIRST_COOKIE as u64) as i64
}

/// One side of an object: as calls see it, or as it is kept when the power goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct State {
    pub meta: Meta,
    /// The names, of a directory.
    pub dir: Option<Dir>,
    /// Where the object was entered last: directory and name. For paths in logs only.
    pub home: Option<(Id, Name)>,
}

/// An object: both sides, and its content.
pub struct Inode {
    pub number: Ino,
    pub live: Option<State>,
    pub kept: Option<State>,
    pub data: Data,
    /// Target of a symlink; it never changes.
    pub target: Arc<[u8]>,
    /// Open descriptions.
    pub opens: u32,
    /// False for an O_TMPFILE that was opened with O_EXCL: no name can be given to it.
    pub linkable: bool,
    /// The last operation of the log that mentions the object.
    pub last_op: u64,
    /// Times that writes set and that no sync has kept: mtime and ctime.
    pub lazy: Option<(Stamp, Stamp)>,
    /// In the table's list of those whose content or lazy times are not kept.
    pub dirty: bool,
}

/// All objects, and which numbers are free.
pub struct Table {
    all: Vec<Option<Box<Inode>>>,
    /// Objects that calls can see.
    pub count: u64,
    /// Objects that have content or times that are not kept.
    pub dirty: BTreeSet<Id>,
    /// Numbers below `next` whose former object is gone from the platter too.
    free: BTreeSet<Ino>,
    next: Ino,
    /// Whether free numbers are used again, the lowest first.
    pub reuse: bool,
}

impl Table {
    pub fn new() -> Table {
        Table {
            all: Vec::new(),
            count: 0,
            dirty: BTreeSet::new(),
            free: BTreeSet::new(),
            next: ROOT_NUMBER,
            reuse: true,
        }
    }

    /// A new object that has no state yet.
    pub fn add(&mut self, target: Arc<[u8]>) -> Id {
        let again = if self.reuse { self.free.pop_first() } else { None };
        let number = again.unwrap_or_else(|| {
            let n = self.next;
            self.next = (n + 1).max(FIRST_NUMBER);
            n
        });
        self.all.push(Some(Box::new(Inode {
            number,
            live: None,
            kept: None,
            data: Data::default(),
            target,
            opens: 0,
            linkable: true,
            last_op: 0,
            lazy: None,
            dirty: false,
        })));
        self.all.len() - 1
    }

    /// Forgets an object whose both sides are gone.
    pub fn forget(&mut self, id: Id) {
        if let Some(i) = self.all.get_mut(id).and_then(Option::take) {
            self.free.insert(i.number);
        }
        self.dirty.remove(&id);
    }

    /// The object, if either side of it is left.
    pub fn find(&self, id: Id) -> Option<&Inode> {
        self.all.get(id)?.as_deref()
    }

    pub fn find_mut(&mut self, id: Id) -> Option<&mut Inode> {
        self.all.get_mut(id)?.as_deref_mut()
    }

    /// An object that is known to be there: it has an open description or a name.
    pub fn get(&self, id: Id) -> &Inode {
        self.find(id).expect("an object that is open or has a name")
    }

    pub fn get_mut(&mut self, id: Id) -> &mut Inode {
        self.find_mut(id).expect("an object that is open or has a name")
    }

    /// What calls see of an object that is there.
    pub fn live(&self, id: Id) -> &State {
        self.get(id).live.as_ref().expect("an object that calls can reach")
    }

    pub fn live_mut(&mut self, id: Id) -> &mut State {
        self.get_mut(id).live.as_mut().expect("an object that calls can reach")
    }

    /// Notes that content or times of an object are not kept.
    pub fn soil(&mut self, id: Id) {
        let i = self.get_mut(id);
        if !i.dirty {
            i.dirty = true;
            self.dirty.insert(id);
        }
    }

    /// Every index that an object may have.
    pub fn ids(&self) -> std::ops::Range<Id> {
        0..self.all.len()
    }
}
