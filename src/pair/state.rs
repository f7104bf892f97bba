//! Pair states and the one table of their transitions (MS-2, MS-20).
//!
//! ```text
//!              create                     copy done
//!   ┌──────┐ ─────────▶ ┌──────┐ ───────────────────────▶ ┌──────┐ ◀─ reverse
//!   │ SMPL │            │ COPY │                          │ PAIR │
//!   └──────┘ ─ create, no copy ──────────────────────────▶└──────┘
//!      ▲            split │ ▲ │ fault           split, takeover │ ▲ │ fault
//!      │                  ▼ │ ▼                                 │ │ ▼
//!      │ delete   ┌────────┐│┌────────┐     ┌───────────┐ split │ │ ┌──────┐
//!   (any state)   │ PSUS   │││ PSUE   │     │SUSPENDING │◀──────┤ │ │ PSUE │
//!                 │ (copy) │││ (copy) │     └───────────┘ async │ │ └──────┘
//!                 └────────┘│└────────┘  drained, fault │       │ │  │ resync, reverse
//!                    └──────┴─────┘                     ▼       ▼ │  │
//!                        resync                     ┌──────────┐  │  │
//!                                                   │   PSUS   │  │ resync done
//!                                                   └──────────┘  │  │
//!                                           resync, reverse │  ┌──┴──▼─────────┐
//!                                                           └─▶│ COPY (resync) │── split, takeover ▶ PSUS; fault ▶ PSUE
//!                                                              └───────────────┘
//! ```
//!
//! A pair that is suspended before its first copy was complete is shown as PSUS or PSUE, but its secondary has never been
//! equal to anything: nobody may take it over, and a resync has to go on with the first copy.
//!
//! `docs/STATES.md` is [`markdown`]'s text; a test compares them.

use crate::base::{Error, Result};
use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// How a pair copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// An operation is answered after the secondary has it.
    Sync,
    /// Reflection is independent of the answer.
    Async,
}

/// Why a pair is in fault Suspend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The link to the peer broke or does not come up.
    LinkLost,
    /// The peer is there and refuses: wrong region, role, version or identity.
    PeerRefused,
    /// The region of this side failed.
    LocalFault,
    /// The region of the other side failed.
    RemoteFault,
    /// No space at the secondary.
    Full,
    /// More entries wait than queue and spool may hold.
    Behind,
    /// The oldest entry was not acknowledged in time.
    ProgressTimeout,
    /// Both sides were primary and were written to (G6): the operator must say who wins.
    SplitBrain,
    /// The staging of a resync does not fit at the target.
    NeedsSpace,
}

/// A pair's state; persisted before anything is done because of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
pub enum State {
    /// Simplex: no remote copy.
    Smpl,
    /// Initial copying: waits for the first copy to be complete.
    Copy,
    /// Duplex: equal, except for operations on their way.
    Pair,
    /// Suspend by order: nothing is copied, both sides record positions of changes. Waits for the operator.
    Psus,
    /// The same, before the first copy was complete.
    PsusCopy,
    /// Fault Suspend: the same as Suspend, entered by itself. Waits for the fault to go.
    Psue(Reason),
    /// The same, before the first copy was complete.
    PsueCopy(Reason),
    /// Duplex-Pending: copying of differences; waits for both to be equal.
    CopyResync,
    /// On the way to Suspend: waits for entries in memory to be applied (async only).
    Suspending,
}

/// A state without its reason: what the table is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Phase {
    Smpl,
    Copy,
    Pair,
    Psus,
    PsusCopy,
    Psue,
    PsueCopy,
    CopyResync,
    Suspending,
}

/// The names of pair states that people and HORCM scripts know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Shown {
    Smpl,
    Copy,
    Pair,
    Psus,
    Psue,
    Suspending,
}

/// What happens to a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// Order: make the pair. `no_copy`: the operator says that both are equal.
    Create { no_copy: bool },
    /// Order: suspend.
    Split,
    /// Order, or the node's own when a fault has gone: make both equal again.
    Resync,
    /// Order: forget the pair.
    Delete,
    /// The secondary becomes writable (MS-20).
    Takeover,
    /// The secondary becomes the primary, and the primary its secondary.
    Reverse,
    /// Copying became impossible.
    Fault(Reason),
    /// The first copy is complete.
    CopyDone,
    /// The entries in memory have been applied or recorded.
    Drained,
    /// Both are equal again.
    ResyncDone,
}

/// A group of transitions: from each of `from`, on each of `on`, to `to`. `only`: in this mode alone.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// States it starts from.
    pub from: &'static [Phase],
    /// Events that cause it.
    pub on: &'static [Event],
    /// State it ends in; for fault Suspend with the fault as the reason.
    pub to: Phase,
    /// The mode it is limited to.
    pub only: Option<Mode>,
}

const fn row(from: &'static [Phase], on: &'static [Event], to: Phase) -> Row {
    Row { from, on, to, only: None }
}

const fn row_in(mode: Mode, from: &'static [Phase], on: &'static [Event], to: Phase) -> Row {
    Row { from, on, to, only: Some(mode) }
}

use Event::{Create, Delete, Fault, Resync, Reverse, Split, Takeover};
use Phase as P;
use Reason::{Behind, Full, LinkLost, LocalFault, NeedsSpace, PeerRefused, ProgressTimeout, RemoteFault, SplitBrain};

/// Faults that can hit a pair in any state but Simplex.
const FAULTS: &[Event] = &[
    Fault(LinkLost),
    Fault(PeerRefused),
    Fault(LocalFault),
    Fault(RemoteFault),
    Fault(Full),
    Fault(Behind),
    Fault(ProgressTimeout),
];

/// Every transition there is. What is not listed is prohibited.
pub const TABLE: &[Row] = &[
    row(&[P::Smpl], &[Create { no_copy: false }], P::Copy),
    row(&[P::Smpl], &[Create { no_copy: true }], P::Pair),
    row(&[P::Copy], &[Event::CopyDone], P::Pair),
    row(&[P::CopyResync], &[Event::ResyncDone], P::Pair),
    row(&[P::Pair], &[Reverse], P::Pair),
    // Orders to suspend.
    row_in(Mode::Sync, &[P::Pair], &[Split], P::Psus),
    row_in(Mode::Async, &[P::Pair], &[Split], P::Suspending),
    row(&[P::CopyResync, P::Psue], &[Split], P::Psus),
    row(&[P::Copy, P::PsueCopy], &[Split], P::PsusCopy),
    row_in(Mode::Async, &[P::Suspending], &[Event::Drained], P::Psus),
    // What could not be drained is in the record of changes: the order to suspend is carried out all the same.
    row_in(Mode::Async, &[P::Suspending], FAULTS, P::Psus),
    // The staged resync leaves the secondary at its old point, so it can be taken over in the middle of one.
    row(&[P::Pair, P::Psus, P::Psue, P::CopyResync], &[Takeover], P::Psus),
    row_in(Mode::Async, &[P::Suspending], &[Takeover], P::Psus),
    // Faults. In Suspend nothing is copied, so they change nothing there.
    row(&[P::Pair, P::CopyResync, P::Psue], FAULTS, P::Psue),
    row(&[P::Copy, P::PsueCopy], FAULTS, P::PsueCopy),
    row(&[P::CopyResync, P::Psue], &[Fault(NeedsSpace)], P::Psue),
    row(&[P::Copy, P::PsueCopy], &[Fault(NeedsSpace)], P::PsueCopy),
    row(&[P::Psus], FAULTS, P::Psus),
    row(&[P::PsusCopy], FAULTS, P::PsusCopy),
    row(&[P::Pair, P::CopyResync, P::Psue, P::Psus], &[Fault(SplitBrain)], P::Psue),
    row(&[P::Copy, P::PsueCopy, P::PsusCopy], &[Fault(SplitBrain)], P::PsueCopy),
    row_in(Mode::Async, &[P::Suspending], &[Fault(SplitBrain)], P::Psue),
    // The way back.
    row(&[P::Psus, P::Psue], &[Resync, Reverse], P::CopyResync),
    row(&[P::PsusCopy, P::PsueCopy], &[Resync], P::Copy),
    row(&[P::Copy, P::Pair, P::Psus, P::PsusCopy, P::Psue, P::PsueCopy, P::CopyResync], &[Delete], P::Smpl),
    row_in(Mode::Async, &[P::Suspending], &[Delete], P::Smpl),
];

/// Why a transition is refused, for people; becomes exit code 4.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What is the matter and what to do.
    pub reason: String,
}

impl From<Refusal> for Error {
    fn from(r: Refusal) -> Error {
        Error::refused(r.reason)
    }
}

/// The state after an event: what [`TABLE`] says, and anything not listed there is prohibited.
pub fn next(state: State, event: Event, mode: Mode) -> std::result::Result<State, Refusal> {
    let listed = TABLE
        .iter()
        .find(|r| r.from.contains(&state.phase()) && r.on.contains(&event) && r.only.is_none_or(|m| m == mode));
    let Some(row) = listed else {
        return Err(Refusal { reason: refusal(state, event, mode) });
    };
    let reason = match (state.reason(), event) {
        // Only the operator ends a split brain; another fault must not hide it.
        (Some(SplitBrain), _) | (_, Fault(SplitBrain)) => SplitBrain,
        (_, Fault(r)) => r,
        (r, _) => r.unwrap_or(LocalFault),
    };
    Ok(row.to.state(reason))
}

fn refusal(state: State, event: Event, mode: Mode) -> String {
    let why = match (state.phase(), event) {
        (P::Smpl, _) => "there is no pair; create it first",
        (_, Create { .. }) => "the pair exists; delete it first",
        (P::Copy | P::PsusCopy | P::PsueCopy, Takeover | Reverse) => {
            "its first copy was never complete, so the secondary is no point of the primary's order"
        }
        (P::Psus | P::PsusCopy, Split) => "it is suspended already",
        (P::Suspending, Split | Resync | Reverse) => "it is still draining; wait until it is PSUS",
        (P::Pair, Resync) => "both sides are equal; there is nothing to resync",
        (P::Copy | P::CopyResync, Resync) => "it is being copied already",
        (P::CopyResync, Reverse) => "a resync is under way; wait for PAIR or split it first",
        _ => "that does not happen in this state",
    };
    let mode = match mode {
        Mode::Sync => "sync",
        Mode::Async => "async",
    };
    format!(
        "{event} is not possible for {} {mode} pair in state {state}: {why}",
        if mode == "sync" { "a" } else { "an" }
    )
}

impl Phase {
    /// Every phase.
    pub const ALL: [Phase; 9] =
        [P::Smpl, P::Copy, P::Pair, P::Psus, P::PsusCopy, P::Psue, P::PsueCopy, P::CopyResync, P::Suspending];

    /// The state of this phase; `reason` counts for fault Suspend.
    pub fn state(self, reason: Reason) -> State {
        match self {
            P::Smpl => State::Smpl,
            P::Copy => State::Copy,
            P::Pair => State::Pair,
            P::Psus => State::Psus,
            P::PsusCopy => State::PsusCopy,
            P::Psue => State::Psue(reason),
            P::PsueCopy => State::PsueCopy(reason),
            P::CopyResync => State::CopyResync,
            P::Suspending => State::Suspending,
        }
    }
}

impl State {
    /// The state without its reason.
    pub fn phase(self) -> Phase {
        match self {
            State::Smpl => P::Smpl,
            State::Copy => P::Copy,
            State::Pair => P::Pair,
            State::Psus => P::Psus,
            State::PsusCopy => P::PsusCopy,
            State::Psue(_) => P::Psue,
            State::PsueCopy(_) => P::PsueCopy,
            State::CopyResync => P::CopyResync,
            State::Suspending => P::Suspending,
        }
    }

    /// Why, in fault Suspend.
    pub fn reason(self) -> Option<Reason> {
        match self {
            State::Psue(r) | State::PsueCopy(r) => Some(r),
            _ => None,
        }
    }

    /// The name to show.
    pub fn shown(self) -> Shown {
        match self {
            State::Smpl => Shown::Smpl,
            State::Copy | State::CopyResync => Shown::Copy,
            State::Pair => Shown::Pair,
            State::Psus | State::PsusCopy => Shown::Psus,
            State::Psue(_) | State::PsueCopy(_) => Shown::Psue,
            State::Suspending => Shown::Suspending,
        }
    }

    /// True while entries go to the secondary. Otherwise positions of changes are recorded only (MS-5).
    pub fn copies(self) -> bool {
        matches!(self, State::Copy | State::Pair | State::CopyResync | State::Suspending)
    }

    /// True where the secondary may accept writes of its own (MS-20): never before its first copy was complete.
    pub fn secondary_writable(self) -> bool {
        matches!(self, State::Smpl | State::Psus | State::Psue(_))
    }

    /// True if the node may order the resync by itself once the peer is there again.
    pub fn returns_by_itself(self) -> bool {
        self.reason().is_some_and(|r| r != SplitBrain)
    }
}

impl Reason {
    /// Every reason.
    pub const ALL: [Reason; 9] =
        [LinkLost, PeerRefused, LocalFault, RemoteFault, Full, Behind, ProgressTimeout, SplitBrain, NeedsSpace];
}

impl Event {
    /// Every event.
    pub fn all() -> Vec<Event> {
        let mut all =
            vec![Create { no_copy: false }, Create { no_copy: true }, Split, Resync, Delete, Takeover, Reverse];
        all.extend(Reason::ALL.map(Fault));
        all.extend([Event::CopyDone, Event::Drained, Event::ResyncDone]);
        all
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LinkLost => "link-lost",
            PeerRefused => "peer-refused",
            LocalFault => "local-fault",
            RemoteFault => "remote-fault",
            Full => "full",
            Behind => "behind",
            ProgressTimeout => "progress-timeout",
            SplitBrain => "split-brain",
            NeedsSpace => "needs-space",
        })
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Create { no_copy: false } => f.write_str("create"),
            Create { no_copy: true } => f.write_str("create without copy"),
            Split => f.write_str("split"),
            Resync => f.write_str("resync"),
            Delete => f.write_str("delete"),
            Takeover => f.write_str("takeover"),
            Reverse => f.write_str("reverse"),
            Fault(r) => write!(f, "fault {r}"),
            Event::CopyDone => f.write_str("copy done"),
            Event::Drained => f.write_str("drained"),
            Event::ResyncDone => f.write_str("resync done"),
        }
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Shown::Smpl => "SMPL",
            Shown::Copy => "COPY",
            Shown::Pair => "PAIR",
            Shown::Psus => "PSUS",
            Shown::Psue => "PSUE",
            Shown::Suspending => "SUSPENDING",
        })
    }
}

impl FromStr for Shown {
    type Err = Error;

    /// Reads a state's name in any case. Errors are [`crate::base::Kind::Config`].
    fn from_str(s: &str) -> Result<Shown> {
        let all = [Shown::Smpl, Shown::Copy, Shown::Pair, Shown::Psus, Shown::Psue, Shown::Suspending];
        let found = all.into_iter().find(|x| x.to_string().eq_ignore_ascii_case(s));
        found.ok_or_else(|| {
            Error::config(format!("{s:?} is no pair state; write SMPL, COPY, PAIR, PSUS, PSUE or SUSPENDING"))
        })
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.shown())?;
        self.reason().map_or(Ok(()), |r| write!(f, " ({r})"))
    }
}

/// [`TABLE`] for people: `docs/STATES.md`.
pub fn markdown() -> String {
    let name = |p: &Phase| match p {
        P::CopyResync => "COPY (resync)".to_string(),
        P::PsusCopy => "PSUS (first copy incomplete)".to_string(),
        P::PsueCopy => "PSUE (first copy incomplete)".to_string(),
        p => p.state(LocalFault).shown().to_string(),
    };
    let list = |i: &mut dyn Iterator<Item = String>| i.collect::<Vec<_>>().join(", ");
    let mut out = String::from(
        "# Pair states\n\nRendered from `src/pair/state.rs`, where the states are described and drawn. \
         What is not listed is refused with the reason.\n\n| from | on | to |\n|---|---|---|\n",
    );
    for r in TABLE {
        let from = list(&mut r.from.iter().map(name));
        let on = list(&mut r.on.iter().map(|e| e.to_string()));
        let mode = match r.only {
            None => "",
            Some(Mode::Sync) => " (sync only)",
            Some(Mode::Async) => " (async only)",
        };
        out += &format!("| {from} | {on}{mode} | {} |\n", name(&r.to));
    }
    out
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
