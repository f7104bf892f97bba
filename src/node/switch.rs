//! The order of a mounted volume over several legs: the group on the leg in use, replaced by the group on another leg
//! when the first fails (MS-1, MS-21). What was being done then is done again on the new leg; the application waits.

use crate::base::{Error, Kind, Result, Seq, VolId};
use crate::format::op::{Op, Target};
use crate::store::exec::{Acted, Pre, Side};
use crate::store::region::Region;
use crate::volume::group::Group;
use crate::volume::order::{Mark, Named, Order, PutBack};
use parking_lot::{Mutex, RwLock};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Finds another leg when one failed. True when the group now runs on another one.
pub type Failover = Box<dyn Fn(&Arc<Group>, &Error) -> Option<Arc<Group>> + Send + Sync>;

thread_local! {
    /// The generation in which this thread's change began: it must be committed in the same.
    static BEGUN: Cell<u64> = const { Cell::new(0) };
}

/// The door of a mounted volume.
pub struct Switch {
    current: RwLock<Arc<Group>>,
    generation: AtomicU64,
    failover: Failover,
    changing: Mutex<()>,
}

impl Switch {
    /// Over a group.
    pub fn new(group: Arc<Group>, failover: Failover) -> Switch {
        Switch { current: RwLock::new(group), generation: AtomicU64::new(1), failover, changing: Mutex::new(()) }
    }

    /// Leaves the leg in use for another one, by order. False when no other leg has everything.
    pub fn leave(&self, why: &Error) -> bool {
        self.change(self.generation(), why)
    }

    /// Goes on with another leg, unless that was done since `generation`.
    fn change(&self, generation: u64, error: &Error) -> bool {
        let _one = self.changing.lock();
        if self.generation() != generation {
            return true; // another thread found the leg lost and changed it
        }
        let old = self.group();
        let Some(new) = (self.failover)(&old, error) else { return false };
        *self.current.write() = new;
        self.generation.fetch_add(1, Ordering::SeqCst);
        true
    }

    /// The group in use, if this thread's change began on it.
    fn same_leg(&self) -> Result<Arc<Group>> {
        match BEGUN.get() == self.generation() {
            true => Ok(self.group()),
            // The change went into a leg that is no longer in use.
            false => Err(Error::os(libc::EIO)),
        }
    }

    /// Waits on the group in use; when another leg took over meanwhile, that one must have it.
    fn either(&self, seq: Seq, wait: impl FnOnce(&Group) -> Result<()>) -> Result<()> {
        let g = self.group();
        match wait(&g) {
            Err(_) if g.is_stopped() && !Arc::ptr_eq(&g, &self.group()) => self.group().wait(seq),
            r => r,
        }
    }

    /// The group in use.
    pub fn group(&self) -> Arc<Group> {
        self.current.read().clone()
    }
}

/// Errors that say something about the leg, not about the operation.
fn is_leg_error(e: &Error) -> bool {
    // The volume's capacity and the fence are the same on every leg, and votes that did not come in time.
    let group = (e.kind == Kind::Refused && matches!(e.errno, libc::ENOSPC | libc::EIO)) || e.kind == Kind::Timeout;
    let leg = matches!(
        e.errno,
        libc::EIO
            | libc::EROFS
            | libc::ENOSPC
            | libc::EDQUOT
            | libc::ENODEV
            | libc::ENXIO
            | libc::ESTALE
            | libc::EUCLEAN
    );
    leg && !group
}

impl Order for Switch {
    fn region(&self, vol: VolId) -> Arc<Region> {
        self.group().region(vol)
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    fn namespace(&self, vol: VolId, op: Op, side: Side, done: &mut dyn FnMut(&Op, &Pre, &Acted)) -> Result<Named> {
        BEGUN.set(self.generation());
        self.group().namespace(vol, op, side, done)
    }

    fn begin(&self, vol: VolId, locate: &dyn Fn() -> Option<Target>, mark: Mark) -> Result<bool> {
        BEGUN.set(self.generation());
        self.group().begin(vol, locate, mark)
    }

    fn commit(
        &self,
        vol: VolId,
        locate: &dyn Fn() -> Option<Target>,
        mark: Mark,
        make: &dyn Fn(Target) -> Op,
        data: &[u8],
    ) -> Result<Option<Seq>> {
        self.same_leg()?.commit(vol, locate, mark, make, data)
    }

    fn cancel(&self) {
        self.group().cancel();
    }

    fn wait(&self, seq: Seq) -> Result<()> {
        self.either(seq, |g| g.wait(seq))
    }

    fn defers(&self) -> bool {
        self.group().defers()
    }

    fn pace(&self, seq: Seq) -> Result<()> {
        self.group().pace(seq)
    }

    fn undoes(&self) -> bool {
        self.group().undoes()
    }

    fn answer(&self, seq: Seq, undo: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        self.either(seq, |g| g.answer(seq, undo))
    }

    fn leave(&self) {
        self.group().leave();
    }

    fn take_back(&self, vol: VolId, op: Op, done: &mut dyn FnMut(&Op, &Pre, &Acted)) -> Result<()> {
        self.same_leg()?.take_back(vol, op, done)
    }

    fn put_back(
        &self,
        vol: VolId,
        locate: &dyn Fn() -> Option<Target>,
        marks: &[Mark],
        act: PutBack<'_>,
    ) -> Result<()> {
        self.same_leg()?.put_back(vol, locate, marks, act)
    }

    fn barrier(&self, local: &mut dyn FnMut()) -> Result<()> {
        self.group().barrier(local)
    }

    fn write_through(&self) -> bool {
        self.group().write_through()
    }

    fn local_fault(&self, vol: VolId, error: &Error) {
        let generation = self.generation();
        if !self.retry(generation, error) {
            self.group().local_fault(vol, error);
        }
    }

    fn retry(&self, generation: u64, error: &Error) -> bool {
        is_leg_error(error) && self.change(generation, error)
    }
}
