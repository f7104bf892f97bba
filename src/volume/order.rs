//! The order: the one door through which every mutation of a mounted volume goes.
//!
//! Operations on names run wholly inside the order (resolution, journal record, local system call, sequence, send).
//! Changes of content and attributes are made by the caller, under the object's own lock, between [`Order::begin`]
//! (journal mark, before anything changes) and [`Order::commit`] (sequence and send, after it changed), so that
//! conflicting operations get their sequence in the order in which they change the local tree.

use crate::base::{Error, Result, Seq, VolId};
use crate::format::op::{Op, Target};
use crate::store::exec::{Acted, Pre, Side};
use crate::store::region::Region;
pub use crate::store::replica::Mark;
use parking_lot::Mutex;
use std::sync::Arc;

/// A finished operation on names.
pub struct Named {
    /// The operation with what the tree filled in.
    pub op: Op,
    /// Stat and descriptor of what was made.
    pub acted: Acted,
    /// Its place in the order, to [`Order::wait`] for.
    pub seq: Seq,
}

/// The door. Errors carry the errno for the application.
pub trait Order: Send + Sync {
    /// The region that a volume's files are read from and written to now.
    fn region(&self, vol: VolId) -> Arc<Region>;

    /// Counts up when [`Order::region`] starts to answer another region (a lost leg): open files must be reopened by name.
    fn generation(&self) -> u64;

    /// Executes an operation on names. `done` runs inside the order after the local call succeeded: it updates the
    /// objects known to the kernel.
    fn namespace(&self, vol: VolId, op: Op, side: Side, done: &mut dyn FnMut(&Op, &Pre, &Acted)) -> Result<Named>;

    /// Checks that mutations are allowed now and marks the journal. `locate` runs inside the order and says how the
    /// object is reached; `None`: it has no name any more, the change stays local, and `false` is returned.
    fn begin(&self, vol: VolId, locate: &dyn Fn() -> Option<Target>, mark: Mark) -> Result<bool>;

    /// Gives the change its place in the order and sends it. `make` builds the operation for the object's present name.
    /// `None` when the object has no name any more.
    fn commit(
        &self,
        vol: VolId,
        locate: &dyn Fn() -> Option<Target>,
        mark: Mark,
        make: &dyn Fn(Target) -> Op,
        data: &[u8],
    ) -> Result<Option<Seq>>;

    /// After [`Order::begin`], in the same thread: nothing was changed, and [`Order::commit`] will not follow.
    fn cancel(&self) {}

    /// Waits until the sync site has everything up to `seq` (returns at once where that is not promised).
    fn wait(&self, seq: Seq) -> Result<()>;

    /// fsync: everything answered so far is durable at the sync site and in our own journal when this returns. The
    /// caller syncs the local file itself, at the same time if it likes.
    fn barrier(&self) -> Result<()>;

    /// True when every write(2) must be answered by the sync site (`write_through`): no kernel writeback.
    fn write_through(&self) -> bool;

    /// Something went wrong with the local tree while or after changing it.
    fn local_fault(&self, vol: VolId, error: &Error);

    /// After an operation that began in `generation` failed: true when it should be done again, because the leg it ran
    /// on was lost and another one is in use now.
    fn retry(&self, _generation: u64, _error: &Error) -> bool {
        false
    }
}

/// An order for one region alone: no journal, no peers. For tests of what lies above.
pub struct LocalOrder {
    region: Arc<Region>,
    seq: Mutex<u64>,
}

impl LocalOrder {
    /// Over an open region.
    pub fn new(region: Arc<Region>) -> LocalOrder {
        LocalOrder { region, seq: Mutex::new(0) }
    }
}

impl Order for LocalOrder {
    fn region(&self, _vol: VolId) -> Arc<Region> {
        self.region.clone()
    }
    fn generation(&self) -> u64 {
        0
    }
    fn namespace(&self, _vol: VolId, mut op: Op, side: Side, done: &mut dyn FnMut(&Op, &Pre, &Acted)) -> Result<Named> {
        let mut seq = self.seq.lock();
        let pre = self.region.prepare(&op)?;
        let acted = self.region.act(&mut op, side)?;
        self.region.settle(&op, &pre)?;
        done(&op, &pre, &acted);
        *seq += 1;
        Ok(Named { op, acted, seq: Seq(*seq) })
    }
    fn begin(&self, _vol: VolId, locate: &dyn Fn() -> Option<Target>, _mark: Mark) -> Result<bool> {
        let _order = self.seq.lock();
        Ok(locate().is_some())
    }
    fn commit(
        &self,
        _vol: VolId,
        locate: &dyn Fn() -> Option<Target>,
        _mark: Mark,
        make: &dyn Fn(Target) -> Op,
        _data: &[u8],
    ) -> Result<Option<Seq>> {
        let mut seq = self.seq.lock();
        let Some(t) = locate() else { return Ok(None) };
        let _ = make(t);
        *seq += 1;
        Ok(Some(Seq(*seq)))
    }
    fn wait(&self, _seq: Seq) -> Result<()> {
        Ok(())
    }
    fn barrier(&self) -> Result<()> {
        Ok(())
    }
    fn write_through(&self) -> bool {
        false
    }
    fn local_fault(&self, _vol: VolId, error: &Error) {
        log::error!("local fault: {error}");
    }
}
