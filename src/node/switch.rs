//! The order of a mounted volume over several legs: the group on the leg in use, replaced by the group on another leg
//! when the first fails (MS-1, MS-21). What was being done then is done again on the new leg; the application waits.

use crate::base::planted::{Bug, planted};
use crate::base::sync::{self, Mutex, RwLock};
use crate::base::{Error, Kind, Result, Seq, VolId};
use crate::format::op::{Op, Target};
use crate::store::exec::{Acted, Pre, Side};
use crate::store::region::Region;
use crate::volume::group::Group;
use crate::volume::order::{Mark, Named, Order, PutBack};
use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

/// Finds another leg when one failed. True when the group now runs on another one.
pub type Failover = Box<dyn Fn(&Arc<Group>, &Error) -> Option<Arc<Group>> + Send + Sync>;

/// How long the other legs and sites may take to get what was accepted.
const AT_REST: Duration = Duration::from_secs(3);

sync::thread_local! {
    /// The generation in which this thread's change began: it must be committed in the same.
    static BEGUN: Cell<u64> = const { Cell::new(0) };
}

/// The door of a mounted volume.
pub struct Switch {
    /// The group in use, and how many there were up to it.
    current: RwLock<(u64, Arc<Group>)>,
    failover: Failover,
    changing: Mutex<()>,
    /// Shared while a change gets its place: none does while the leg in use is left, for nobody would wait until it is on
    /// the other one.
    placing: RwLock<()>,
}

impl Switch {
    /// Over a group.
    pub fn new(group: Arc<Group>, failover: Failover) -> Switch {
        Switch { current: RwLock::new((1, group)), failover, changing: Mutex::new(()), placing: RwLock::new(()) }
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
        // What is refused just now is undone on the leg that it was done on.
        old.wait_refusal();
        let _placed = self.placing.write();
        let Some(new) = (self.failover)(&old, error) else { return false };
        *self.current.write() = (generation + 1, new);
        true
    }

    /// The group in use, on which this thread begins a change.
    fn begun_on(&self) -> Arc<Group> {
        let now = self.current.read();
        BEGUN.with(|b| b.set(now.0));
        now.1.clone()
    }

    /// The group in use, if this thread's change began on it.
    fn same_leg(&self) -> Result<Arc<Group>> {
        let now = self.current.read();
        match planted(Bug::CommitElsewhere) || BEGUN.with(Cell::get) == now.0 {
            true => Ok(now.1.clone()),
            // The change went into a leg that is no longer in use.
            false => Err(Error::os(libc::EIO)),
        }
    }

    /// Waits on the group in use; when another leg took over meanwhile, that one must have it.
    fn either(&self, seq: Seq, wait: impl FnOnce(&Group) -> Result<()>) -> Result<()> {
        let g = self.group();
        let r = wait(&g);
        if r.is_ok() || !g.is_stopped() {
            return r;
        }
        // It may be that it is being left just now.
        drop(self.changing.lock());
        let now = self.group();
        if Arc::ptr_eq(&g, &now) { r } else { now.wait(seq) }
    }

    /// The group in use.
    pub fn group(&self) -> Arc<Group> {
        self.current.read().1.clone()
    }
}

/// Before a leg is left for one that has everything (`has_all`): nothing more is accepted, and who must have everything has it.
/// False: that cannot be reached, and the leg goes on.
pub fn come_to_rest(old: &Group, has_all: impl Fn() -> bool) -> bool {
    let head = if planted(Bug::SwitchUnfrozen) { old.head() } else { old.freeze() };
    if old.wait_all(head, AT_REST) && has_all() {
        return true;
    }
    old.thaw();
    false
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
        self.current.read().0
    }

    fn leg(&self, vol: VolId) -> (u64, Arc<Region>) {
        let now = self.current.read();
        (now.0, now.1.region(vol))
    }

    fn namespace(
        &self,
        (vol, on): (VolId, &Region),
        op: Op,
        side: Side,
        done: &mut dyn FnMut(&Op, &Pre, &Acted),
    ) -> Result<Named> {
        self.begun_on().namespace((vol, on), op, side, done)
    }

    fn begin(&self, (vol, on): (VolId, &Region), locate: &dyn Fn() -> Option<Target>, mark: Mark) -> Result<bool> {
        self.begun_on().begin((vol, on), locate, mark)
    }

    fn commit(
        &self,
        vol: VolId,
        locate: &dyn Fn() -> Option<Target>,
        mark: Mark,
        make: &dyn Fn(Target) -> Op,
        data: &[u8],
    ) -> Result<Option<Seq>> {
        let _placing = self.placing.read();
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

#[cfg(all(test, feature = "schedules"))]
mod schedules;
