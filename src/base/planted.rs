//! Bugs planted on purpose, to see whether the tests find them (D2). A build without debug assertions has none of this: the
//! switch is a constant there.

#[cfg(not(feature = "schedules"))]
use std::sync::atomic::{AtomicU8, Ordering};

macro_rules! bugs {
    ({ $($(#[$doc:meta])* $name:ident),* $(,)? } { $($(#[$narrow_doc:meta])* $narrow:ident),* $(,)? }) => {
        /// A bug that can be planted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Bug {
            $($(#[$doc])* $name,)*
            $($(#[$narrow_doc])* $narrow),*
        }

        impl Bug {
            /// Every one that the simulation must find.
            pub const ALL: &[Bug] = &[$(Bug::$name),*];
            /// Every one that the schedules between single lock operations must find.
            pub const NARROW: &[Bug] = &[$(Bug::$narrow),*];
        }
    };
}

bugs! {{
    /// A change is answered before the sync site has it.
    AnswerBeforeSync,
    /// A receiver acknowledges what is not in its entry log.
    AckBeforeLog,
    /// An fsync does not wait for the sync site's disk.
    FsyncHereOnly,
    /// An fsync does not sync the local file.
    FsyncThereOnly,
    /// Who greets with an older epoch is believed to be the primary.
    SkipEpochCheck,
    /// Every eighth change of content has no mark in the journal.
    DropMark,
    /// A change of names has no record in the journal.
    DropNames,
    /// The journal is trimmed to what peers have received, not to what is on their disks.
    TrimTooEarly,
    /// The entry log takes a torn or damaged end for good.
    ApplyTornEntry,
    /// A staged resync is kept though its commit record never came.
    CommitHalfResync,
    /// An operation on names is done without noting it before.
    SkipIntent,
    /// A change of content is passed without being applied, now and then.
    SkipApply,
    /// The asynchronous site gets what the sync site does not have.
    AsyncAhead,
    /// What a losing site had is not kept.
    DropLosses,
    /// A takeover does not apply what was received.
    SkipDrain,
    /// A voter keeps no promise.
    VoteTwice,
    /// A primary answers without a majority.
    AnswerWithoutVotes,
    /// A pair in PSUE releases the answers that wait before the state is on disk.
    ReleaseBeforePersist,
    /// A checkpoint counts before the filesystem was synced.
    CheckpointBeforeSync,
    /// A resync copies content without attributes.
    ResyncWithoutAttributes,
    /// A receiver leaves holes out.
    SkipPunch,
    /// A crash of the primary is not noted, so that changes without a place in the order are not compared.
    ForgetCrash,
    /// The log of a receiver may have a gap.
    AcceptGap,
    /// A receiver leaves some extended attributes out.
    DropXattr,
} {
    /// Who waits for an entry looks whether it is there, and waits without the lock in between.
    LookThenWait,
    /// Entries leave memory before they are in the spool.
    SpoolTooEarly,
    /// Who waits for an acknowledgement is woken before it counts.
    WakeTooEarly,
    /// A write has its place in the order after the object's lock was released.
    UnlockTooEarly,
    /// The objects known to the kernel follow a change of names after the order.
    FollowTooLate,
    /// Marks spared in an interval are spared in the next one as well.
    SpareAcrossIntervals,
    /// The journal is trimmed past the mark of a change that is under way.
    TrimUnderWay,
    /// A change that began on one leg gets its place on another.
    CommitElsewhere,
    /// Another leg is gone on with while the one in use still accepts changes.
    SwitchUnfrozen,
}}

const NONE: u8 = u8::MAX;

#[cfg(not(feature = "schedules"))]
static ON: AtomicU8 = AtomicU8::new(NONE);

// Tests that schedule run side by side, each with all its threads on one thread of the system.
#[cfg(feature = "schedules")]
thread_local! {
    static ON: std::cell::Cell<u8> = const { std::cell::Cell::new(NONE) };
}

/// Plants a bug, from now on and in the whole process; `None`: takes it out again.
#[cfg(not(feature = "schedules"))]
pub fn plant(bug: Option<Bug>) {
    ON.store(bug.map_or(NONE, |b| b as u8), Ordering::Relaxed);
}

/// Plants a bug in what this thread of the system runs; `None`: takes it out again.
#[cfg(feature = "schedules")]
pub fn plant(bug: Option<Bug>) {
    ON.set(bug.map_or(NONE, |b| b as u8));
}

#[cfg(not(feature = "schedules"))]
#[inline(always)]
fn on() -> u8 {
    ON.load(Ordering::Relaxed)
}

#[cfg(feature = "schedules")]
fn on() -> u8 {
    ON.get()
}

/// Whether this bug is planted.
#[inline(always)]
pub fn planted(bug: Bug) -> bool {
    cfg!(debug_assertions) && on() == bug as u8
}
