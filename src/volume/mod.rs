//! The mirror group: what a mounted volume is made of. Ordering, replication, objects known to the kernel.
//!
//! [`Volume`] has an operation for each thing a kernel asks of a filesystem, with plain results; `fs` only translates.
//! Operations on names run inside the [`order::Order`]. Changes of content and attributes run under the object's own
//! lock, from the journal mark over the local system call to their place in the order; the wait for the sync site comes
//! after the lock is released.
//!
//! Locks, in the order in which they may be taken: `Object::content` → `Volume::names` → the order's own →
//! the table of objects, an object's place, the region's tables. `Volume::names` is shared by operations on names while
//! they are in the order; who finds an object not where it was known to be waits for them by taking it alone.

mod attrs;
mod caller;
mod change;
mod data;
mod dirs;
pub mod fence;
pub mod group;
mod handles;
mod image;
mod names;
pub mod objects;
pub mod order;
pub mod permit;
pub mod queue;
mod reach;
#[cfg(all(test, feature = "schedules"))]
pub(crate) mod schedules;
mod space;
pub mod spool;

pub use attrs::SetAttr;
pub use caller::Caller;
pub use data::{WriteHow, Written};
pub use dirs::DirItem;
pub use handles::Opened;
pub use names::Made;

use crate::base::sync::RwLock;
use crate::base::sync::atomic::{AtomicU64, Ordering};
use crate::base::{Result, Seq, VolId};
use crate::os::sys::{self, Stat};
use crate::store::region::Region;
use handles::{DirHandle, Handles, OpenFile};
use objects::Objects;
use order::Order;
use std::sync::Arc;

/// An object as the kernel is told of it.
#[derive(Clone, Copy, Debug)]
pub struct Node {
    /// Node number, and inode number shown.
    pub node: u64,
    /// With the number, a handle of the object for as long as the volume is mounted; 0 where it is not exported.
    pub generation: u32,
    /// Everything else.
    pub stat: Stat,
}

/// A mounted volume: all operations, on top of an order.
pub struct Volume {
    order: Arc<dyn Order>,
    vol: VolId,
    generation: AtomicU64,
    objects: Objects,
    files: Handles<OpenFile>,
    dirs: Handles<DirHandle>,
    names: RwLock<()>,
    /// The last entry that was answered before the sync site had it; 0: none.
    deferred: AtomicU64,
}

impl Volume {
    /// A volume of a group, ready to be mounted. The process's umask should be 0 in the threads that call it (the mount
    /// sees to that for its own).
    pub fn new(order: Arc<dyn Order>, vol: VolId) -> Result<Arc<Volume>> {
        let generation = order.generation();
        let root = sys::fstat(&**order.region(vol).tree_fd())?;
        Ok(Arc::new(Volume {
            order,
            vol,
            generation: AtomicU64::new(generation),
            objects: Objects::new(root.ino),
            files: Handles::new(),
            dirs: Handles::new(),
            names: RwLock::new(()),
            deferred: AtomicU64::new(0),
        }))
    }

    /// The order below.
    pub fn order(&self) -> &Arc<dyn Order> {
        &self.order
    }

    /// Index of the volume in its group.
    pub fn vol(&self) -> VolId {
        self.vol
    }

    /// Does an operation; when it failed because the leg in use was lost, and another one is in use now, once more.
    pub fn again<T>(&self, mut op: impl FnMut() -> Result<T>) -> Result<T> {
        let generation = self.order.generation();
        match op() {
            Err(e) if self.order.retry(generation, &e) => op(),
            r => r,
        }
    }

    /// Number of objects the kernel knows.
    pub fn known(&self) -> usize {
        self.objects.len()
    }

    /// Number of open files and directories.
    pub fn open_handles(&self) -> usize {
        self.files.len() + self.dirs.len()
    }

    /// Handles of objects shall last as long as the mount (MS-16).
    pub fn export(&self) {
        self.objects.outlast();
    }

    /// True after [`Volume::export`].
    pub fn is_exported(&self) -> bool {
        self.objects.outlasts()
    }

    /// Waits until the sync site has everything that was answered so far.
    pub fn settle(&self) -> Result<()> {
        let last = self.deferred.load(Ordering::Acquire);
        if last > 0 {
            self.order.wait(Seq(last))?;
            let _ = self.deferred.compare_exchange(last, 0, Ordering::AcqRel, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The kernel forgets a node `n` times.
    pub fn forget(&self, node: u64, n: u64) {
        self.objects.forget(node, n);
    }

    /// The region in use: see [`Volume::leg`].
    fn region(&self) -> Arc<Region> {
        self.leg().1
    }

    /// The region in use with its generation. Notices when another one took over, and finds the known objects there.
    fn leg(&self) -> (u64, Arc<Region>) {
        loop {
            let (now, region) = self.order.leg(self.vol);
            if self.generation.load(Ordering::Acquire) == now {
                return (now, region);
            }
            let _quiet = self.names.write();
            if self.generation.load(Ordering::Acquire) < now {
                self.objects.rekey(&region);
                self.generation.store(now, Ordering::Release);
            }
        }
    }
}
