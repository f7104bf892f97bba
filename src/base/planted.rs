//! Bugs planted on purpose, to see whether the tests find them (D2). A build without debug assertions has none of this: the
//! switch is a constant there.

use std::sync::atomic::{AtomicU8, Ordering};

macro_rules! bugs {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// A bug that can be planted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Bug {
            $($(#[$doc])* $name),*
        }

        impl Bug {
            /// Every one.
            pub const ALL: &[Bug] = &[$(Bug::$name),*];
        }
    };
}

bugs! {
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
}

const NONE: u8 = u8::MAX;

static ON: AtomicU8 = AtomicU8::new(NONE);

/// Plants a bug, from now on and in the whole process; `None`: takes it out again.
pub fn plant(bug: Option<Bug>) {
    ON.store(bug.map_or(NONE, |b| b as u8), Ordering::Relaxed);
}

/// Whether this bug is planted.
#[inline(always)]
pub fn planted(bug: Bug) -> bool {
    cfg!(debug_assertions) && ON.load(Ordering::Relaxed) == bug as u8
}
