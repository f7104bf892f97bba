//! The order: the one door through which every mutation of a mounted volume goes.
//!
//! Operations on names run wholly inside the order (resolution, journal record, local system call, sequence, send).
//! Changes of content and attributes are made by the caller, under the object's own lock, between [`Order::begin`]
//! (journal mark, before anything changes) and [`Order::commit`] (sequence and send, after it changed), so that
//! conflicting operations get their sequence in the order in which they change the local tree.

use super::fence;
use crate::base::sync::Mutex;
use crate::base::{Error, Name, Result, Seq, VolId, time::Time};
use crate::format::op::{Op, Target};
use crate::os::sys;
use crate::store::exec::{Acted, Pre, Side};
use crate::store::region::Region;
pub use crate::store::replica::Mark;
use std::sync::Arc;

/// A finished operation on names.
pub struct Named {
    /// The operation with what the tree filled in.
    pub op: Op,
    /// Stat and descriptor of what was made.
    pub acted: Acted,
    /// Its place in the order, to [`Order::answer`] for.
    pub seq: Seq,
    /// What takes it back, and the inode number that must be there for it. Where that is asked for and possible.
    pub back: Option<(Op, u64)>,
}

impl Named {
    /// What takes an operation on names back: `times` as [`Named::times`] gave them before it.
    pub fn back(op: &Op, pre: &Pre, acted: &Acted, times: [Time; 2]) -> Option<(Op, u64)> {
        let ino = acted.stat.map(|st| st.ino).or(pre.first.map(|b| b.ino))?;
        Some((fence::inverse(op, pre, times)?, ino))
    }

    /// The modification times of the parents of an operation's names.
    pub fn times(region: &Region, op: &Op) -> Result<[Time; 2]> {
        let of = |n: Option<&Name>| -> Result<Time> {
            match n {
                Some(n) => Ok(sys::fstat(&*region.dirfd(n.dir)?)?.mtime),
                None => Ok(Time::default()),
            }
        };
        let [first, second] = op.names();
        Ok([of(first)?, of(second)?])
    }
}

/// Changes a tree for [`Order::put_back`], told how the object is addressed: what it did, for the peers, and how it ended.
pub type PutBack<'a> = &'a mut dyn FnMut(Option<&Target>) -> (Vec<(Op, Vec<u8>)>, Result<()>);

/// The door. Errors carry the errno for the application.
pub trait Order: Send + Sync {
    /// The region that a volume's files are read from and written to now.
    fn region(&self, vol: VolId) -> Arc<Region>;

    /// Counts up when [`Order::region`] starts to answer another region (a lost leg): open files must be reopened by name.
    fn generation(&self) -> u64;

    /// [`Order::generation`] and [`Order::region`], both of one moment.
    fn leg(&self, vol: VolId) -> (u64, Arc<Region>) {
        (self.generation(), self.region(vol))
    }

    /// Executes an operation on names, if `on`, which the caller looked at, is still the region in use. `done` runs inside
    /// the order after the local call succeeded: it updates the objects known to the kernel.
    fn namespace(
        &self,
        at: (VolId, &Region),
        op: Op,
        side: Side,
        done: &mut dyn FnMut(&Op, &Pre, &Acted),
    ) -> Result<Named>;

    /// Checks that mutations are allowed now and marks the journal. `locate` runs inside the order and says how the
    /// object is reached; `None`: it has no name any more, the change stays local, and `false` is returned. An error, too,
    /// when the region that the caller has a descriptor in is not the one in use any more.
    fn begin(&self, at: (VolId, &Region), locate: &dyn Fn() -> Option<Target>, mark: Mark) -> Result<bool>;

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

    /// True where what the page cache writes may be answered before the sync site has it: whoever closes or syncs the file
    /// waits for it then.
    fn defers(&self) -> bool {
        !self.undoes()
    }

    /// Before such a change is answered: waits until the sync site lacks few of the entries before `seq`.
    fn pace(&self, seq: Seq) -> Result<()> {
        let _ = seq;
        Ok(())
    }

    /// True where a change must come with what undoes it: the fence may refuse it after it was done.
    fn undoes(&self) -> bool {
        false
    }

    /// Ends what this thread began with [`Order::begin`] or [`Order::namespace`], and whose last place is `seq`: waits as
    /// [`Order::wait`]. When it is refused, `undo` is called, once, after those of everything later; then the error is
    /// returned.
    fn answer(&self, seq: Seq, undo: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let _ = undo;
        self.wait(seq)
    }

    /// Ends what this thread began, without an answer to wait for.
    fn leave(&self) {}

    /// Within an undo: does an operation on names as a peer would, whether mutations are allowed or not.
    fn take_back(&self, vol: VolId, op: Op, done: &mut dyn FnMut(&Op, &Pre, &Acted)) -> Result<()> {
        let _ = (vol, op, done);
        Err(Error::failed("nothing is undone here"))
    }

    /// Within an undo: marks, then lets `act` change an object, and sends what it did, whether mutations are allowed or
    /// not.
    fn put_back(
        &self,
        vol: VolId,
        locate: &dyn Fn() -> Option<Target>,
        marks: &[Mark],
        act: PutBack<'_>,
    ) -> Result<()> {
        let _ = (vol, locate, marks, act);
        Err(Error::failed("nothing is undone here"))
    }

    /// fsync: everything answered so far is durable at the sync site and in our own journal when this returns. `local`
    /// is called once, while the sync site is at it: the caller syncs the local file there.
    fn barrier(&self, local: &mut dyn FnMut()) -> Result<()>;

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
    fn namespace(
        &self,
        _at: (VolId, &Region),
        mut op: Op,
        side: Side,
        done: &mut dyn FnMut(&Op, &Pre, &Acted),
    ) -> Result<Named> {
        let mut seq = self.seq.lock();
        let pre = self.region.prepare(&op)?;
        let acted = self.region.act(&mut op, side)?;
        self.region.settle(&op, &pre)?;
        done(&op, &pre, &acted);
        *seq += 1;
        Ok(Named { op, acted, seq: Seq(*seq), back: None })
    }
    fn begin(&self, _at: (VolId, &Region), locate: &dyn Fn() -> Option<Target>, _mark: Mark) -> Result<bool> {
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
    fn barrier(&self, local: &mut dyn FnMut()) -> Result<()> {
        local();
        Ok(())
    }
    fn write_through(&self) -> bool {
        false
    }
    fn local_fault(&self, _vol: VolId, error: &Error) {
        log::error!("local fault: {error}");
    }
}
